//! Start, change, death and end of the agent on the machine.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::cluster::READY;
use e2e::eventually;
use serde_json::{Value, json};

use super::world::{CONFLIST, DNS, DNS_DAEMON_SET, EBPF, NAMESPACE, REMOTE, World};

/// The uplink's MTU in bytes, and a smaller one.
const MTU: u32 = 1500;
const SMALLER_MTU: u32 = 1400;
/// A datagram that fits into no packet of the smaller one.
const DATAGRAM_BYTES: &str = "1400";
/// How long clients go on while agents are replaced, and how much they do on the busiest machine.
const LOAD_S: &str = "20";
const REQUESTS_LEAST: u64 = 200;

/// Plugin first, configuration last, nothing unfinished.
pub fn started(world: &World) -> Result<()> {
    let times = world.machine.shell(&format!("stat -c %.9Y /opt/cni/bin/flatnet {CONFLIST}"))?;
    let times: Vec<f64> = times.lines().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(matches!(times.as_slice(), [plugin, list] if plugin <= list), "{times:?}");
    let files = world.machine.shell("ls -A /opt/cni/bin /etc/cni/net.d")?;
    ensure!(!files.contains(".new"), "{files}");
    let text = world.machine.shell(&format!("cat {CONFLIST}"))?;
    let list: Value = serde_json::from_str(&text)?;
    ensure!(list["name"] == "flatnet" && text.contains(&world.range), "{text}");
    Ok(())
}

/// Entering pods' namespaces needs `SYS_ADMIN`, which the agent has not: pods that run keep their
/// MTU, and learn of the smaller way as any host does; new pods have the new one.
pub fn mtu(world: &World) -> Result<()> {
    let mtu_of = |pod: &str| -> Result<u32> {
        let link = world.in_pod(pod, &["cat", "/sys/class/net/eth0/mtu"])?;
        Ok(link.trim().parse()?)
    };
    let before = mtu_of(REMOTE)?;
    world.machine.shell(&format!("ip link set eth0 mtu {SMALLER_MTU}"))?;
    let expected = before - (MTU - SMALLER_MTU);
    eventually("new pods have the new MTU", READY, || {
        let text = world.machine.shell(&format!("cat {CONFLIST}"))?;
        ensure!(
            text.contains(&format!("\"mtu\":{expected}"))
                || text.contains(&format!("\"mtu\": {expected}")),
            "{text}"
        );
        Ok(())
    })?;
    world.add_pod("newer", &json!({}))?;
    ensure!(mtu_of("newer")? == expected, "{}", mtu_of("newer")?);
    ensure!(mtu_of(REMOTE)? == before, "{}", mtu_of(REMOTE)?);
    let said = world.pod.borrow().log("agent")?;
    ensure!(said.contains("keeps its MTU"), "the agent does not name the pod: {said}");
    let address = world.pod_ip("echo-node1")?;
    eventually("large datagrams find their way", READY, || {
        world.toolbox(REMOTE, &["udp", &address, "9090", "--payload-bytes", DATAGRAM_BYTES])
    })?;
    world.delete_pod("newer")?;
    world.machine.shell(&format!("ip link set eth0 mtu {MTU}"))?;
    eventually("the MTU is back", READY, || {
        ensure!(configured(world)? == before, "not {before}");
        Ok(())
    })
}

/// The MTU that new pods get.
fn configured(world: &World) -> Result<u32> {
    let list: Value = serde_json::from_str(&world.machine.shell(&format!("cat {CONFLIST}"))?)?;
    let mtu = list["plugins"][0]["mtu"].as_u64().with_context(|| format!("no MTU: {list}"))?;
    Ok(u32::try_from(mtu)?)
}

/// Invariant 6: the older iptables wants a right that the agent has not. It says so, and our own
/// rules at the edges of pods are put back all the same.
pub fn refused(world: &World) -> Result<()> {
    let own = "nft list tables | grep -c flatnet";
    let tables = world.machine.shell(own)?;
    world.machine.shell("iptables-legacy -P FORWARD DROP && nft flush ruleset")?;
    eventually("the rules are back, and the refusal is told", READY, || {
        let found = world.machine.shell(own)?;
        ensure!(found == tables, "{found} tables instead of {tables}");
        let output = world.machine.flatnet_output(&["node", "status"])?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.code() == Some(1) && said.contains("older iptables"), "{said}");
        Ok(())
    })?;
    // A kernel does not forget a table: with an open policy there is nothing to do in it.
    world.machine.shell("iptables-legacy -P FORWARD ACCEPT").map(drop)
}

/// Invariant 14, and names (the worker is another container).
pub fn killed(world: &World) -> Result<()> {
    world.pod.borrow_mut().end("agent", "KILL")?;
    let url = format!(
        "http://{}/",
        world.cluster.field(NAMESPACE, "service", "echo", "/spec/clusterIP")?
    );
    world.toolbox(REMOTE, &["http", &url]).context("without an agent")?;
    let server = format!("@{DNS}");
    let name = format!("echo.{NAMESPACE}.svc.cluster.local");
    let answer = world.in_pod(REMOTE, &["dig", "+short", &server, &name])?;
    ensure!(!answer.trim().is_empty(), "no names without an agent");
    world.add_pod("meanwhile", &json!({})).context("without an agent")?;
    world.toolbox("meanwhile", &["http", &url]).context("without an agent")?;

    world.pod.borrow_mut().start(&world.machine, "agent")?;
    world.ready()?;
    // The pod that came meanwhile is no damage.
    changes_nothing(world)?;
    world.toolbox("meanwhile", &["http", &url])?;
    world.delete_pod("meanwhile")
}

/// Waits until an agent that has just started is at rest, and has changed and repaired nothing. With
/// eBPF it goes over the links once, since it cannot know what the one before brought them to.
fn changes_nothing(world: &World) -> Result<()> {
    let operations = u64::from(world.backend == EBPF);
    eventually("the agent is at rest", READY, || {
        let status = status(world)?;
        ensure!(status["converged"] == true, "{status}");
        ensure!(status["operationsTotal"] == operations, "not {operations}: {status}");
        ensure!(status["repairs"] == json!({}), "{status}");
        Ok(())
    })
}

/// What the agent says of itself, also when something is wrong.
pub fn status(world: &World) -> Result<Value> {
    let output = world.machine.flatnet_output(&["node", "status", "-o", "json"])?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    report.get(0).cloned().with_context(|| format!("no report: {report}"))
}

/// the kubelet starts an agent that died again, and the next version after the one before has
/// ended. Meanwhile pods of the machine are clients, and servers, of Services.
pub fn replaced_under_load(world: &World) -> Result<()> {
    let url = |service: &str| {
        let address = world.cluster.field(NAMESPACE, "service", service, "/spec/clusterIP")?;
        Ok::<_, anyhow::Error>(format!("http://{address}/"))
    };
    let (to_cluster, to_machine) = (url("echo")?, url(REMOTE)?);
    let loads = [
        Load::start(world.toolbox_command(REMOTE), &to_cluster)?,
        Load::start(world.cluster_toolbox_command("echo-node1"), &to_machine)?,
    ];
    let before = pins(world)?;
    for signal in ["KILL", "TERM", "KILL", "TERM"] {
        world.pod.borrow_mut().end("agent", signal)?;
        world.pod.borrow_mut().start(&world.machine, "agent")?;
        world.ready()?;
    }
    changes_nothing(world)?;
    let after = pins(world)?;
    let anew: Vec<&String> = after.difference(&before).collect();
    ensure!(anew.is_empty(), "programs or maps were made anew: {anew:#?}");
    loads.into_iter().try_for_each(Load::ensure_none_failed)
}

/// Programs, maps and attachments in eBPF; what is made anew has another number.
fn pins(world: &World) -> Result<BTreeSet<String>> {
    let text = world.machine.shell("find /sys/fs/bpf -printf '%i %p\n'")?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// New connections for [`LOAD_S`] seconds.
struct Load(Child);

impl Load {
    fn start(mut toolbox: Command, url: &str) -> Result<Self> {
        toolbox.args(["load", url, "--duration-s", LOAD_S, "--rate", "100", "--concurrency", "8"]);
        let load = toolbox.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Self(load.spawn()?))
    }

    fn ensure_none_failed(self) -> Result<()> {
        let output = self.0.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = || format!("{text} {}", String::from_utf8_lossy(&output.stderr));
        let summary: Value = serde_json::from_str(&text).with_context(said)?;
        println!("    {summary}");
        let count = summary["requests"].as_u64().unwrap_or(0);
        ensure!(count >= REQUESTS_LEAST, "too few to mean anything: {summary}");
        ensure!(summary["failed"] == 0, "requests failed: {summary}");
        Ok(())
    }
}

/// R-23, after the DaemonSet is deleted and the pods are drained.
pub fn uninstalled(world: &World) -> Result<()> {
    let refused = world.machine.flatnet_output(&["uninstall"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("another agent works"), "{said}");

    let delete = ["delete", "daemonset", "-n", "kube-system", "flatnet", DNS_DAEMON_SET];
    world.cluster.kubectl(&delete)?;
    for (pod, container) in [(&world.pod, "agent"), (&world.dns, "dns")] {
        pod.borrow_mut().end(container, "TERM")?;
    }
    world.stop_servers();
    world.delete_pod(REMOTE)?;
    // And one that nobody took off.
    world.add_pod("forgotten", &json!({}))?;
    let removed = world.machine.flatnet(&["uninstall", "--purge"])?;
    ensure!(removed.contains("cni0") && removed.contains("conflist"), "{removed}");
    world.machine.run(&["ip", "netns", "delete", "forgotten"])?;
    let after = world.machine.everything()?;
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<String>>();
    let (before, after) = (lines(&world.before), lines(&after));
    let added: Vec<&String> = after.difference(&before).collect();
    let lost: Vec<&String> = before.difference(&after).collect();
    ensure!(added.is_empty() && lost.is_empty(), "added {added:#?}, lost {lost:#?}");
    let again = world.machine.flatnet(&["uninstall", "--purge"])?;
    ensure!(again.contains("there is nothing"), "{again}");
    Ok(())
}
