//! The DNS workers' DaemonSet is updated: on this node, as its controller and the kubelet do it.

use anyhow::{Context, Result, ensure};
use e2e::cluster::READY;
use e2e::eventually;
use e2e::questions::{Questions, ask};

use super::kubelet::Pod;
use super::world::{DNS, DNS_DAEMON_SET, NAMESPACE, World};

/// How often the pod is replaced.
const UPDATES: usize = 5;

/// Issue 5, item 5. The new pod starts beside the old one; when its startup probe succeeds the old
/// pod is told to end. Each time all processes that had the sockets are gone, and no question is
/// lost, or asked twice, at either address.
pub fn dns(world: &World) -> Result<()> {
    let name = format!("echo.{NAMESPACE}.svc.cluster.local");
    let namespace = world.machine.network_namespace();
    eventually("names are answered", READY, || ask(&namespace, DNS.parse()?, &name))?;
    let loads = [DNS, "169.254.20.10"].map(|server| {
        let questions = Questions::start(&namespace, server.parse()?, &name)?;
        Ok::<_, anyhow::Error>((server, questions))
    });
    for _ in 0..UPDATES {
        replace(world)?;
        let metrics = world.machine.shell("curl -sf --max-time 5 http://127.0.0.1:9153/metrics")?;
        ensure!(metrics.contains("coredns_dns_requests_total"), "{metrics}");
    }
    for load in loads {
        let (server, questions) = load?;
        for (carrier, answers) in ["UDP", "TCP"].iter().zip(questions.finish()?) {
            println!("    {server} over {carrier}: {answers:?}");
            ensure!(answers.asked_again == 0 && answers.lost == 0, "{server}: {answers:?}");
        }
    }
    Ok(())
}

fn replace(world: &World) -> Result<()> {
    let mut new = Pod::prepare(&world.cluster, &world.machine, DNS_DAEMON_SET)?;
    new.start(&world.machine, "dns")?;
    eventually("the new pod has started", READY, || {
        new.ensure_runs("dns").with_context(|| new.log("dns").unwrap_or_default())?;
        new.probe_start(&world.machine, "dns")
    })?;
    let mut old = world.dns.replace(new);
    old.ensure_runs("dns")?;
    old.end("dns", "TERM")
}
