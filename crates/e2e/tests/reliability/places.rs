//! files of a node that cannot be written, or are gone.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::eventually;
use e2e::processes::{agent_status, converged};

use super::backends::{DEFAULT, change};
use super::endpoints;
use super::kills::back;
use super::leaks::check_addresses;
use super::pods::{Pods, run};
use super::world::{NAMESPACE, World};

/// Faults are noticed, and gone, this soon.
const NOTICED: Duration = Duration::from_secs(10);

/// Puts a file system without room over a directory, with what was in it: addresses that were given
/// back lie in a file each, of which a range of 256 leaves hundreds.
const FILL: &str = "set -e
rm -rf /run/fill; mkdir /run/fill; cp -a $place/. /run/fill/
mount -t tmpfs -o size=4m,mode=0700 chaos-full $place
cp -a /run/fill/. $place/ || { umount $place; exit 1; }
dd if=/dev/zero of=$place/.full bs=4k count=1024 2>/dev/null || true";
const EMPTY: &str = "umount $place; rm -rf /run/fill";

/// Pods that cannot be written down are refused, with the reason, and leave nothing; what runs
/// goes on. A configuration that cannot be written is a problem that the agent names.
pub fn full_disk(world: &World) -> Result<()> {
    back(world)?;
    let cluster = &world.cluster;
    let at = |place: &str, script: &str| run(cluster, "node1", &format!("place={place}; {script}"));
    let mut pods = Pods::default();
    at("/var/lib/cni", FILL)?;
    let refused = pods.add(cluster, "node1", 2);
    let running = world.request();
    let checked = check_addresses(world);
    at("/var/lib/cni", EMPTY)?;
    let refused = refused?;
    ensure!(refused.len() == 2, "pods were added on a full disk");
    let reason = refused.iter().all(|why| why.to_lowercase().contains("no space left"));
    ensure!(reason, "the reason is not named: {refused:?}");
    running?;
    checked?;
    let refused = pods.add(cluster, "node1", 2)?;
    ensure!(refused.is_empty(), "with room again: {refused:?}");
    pods.delete(cluster, "node1", 2, false)?;

    at("/etc/cni/net.d", FILL)?;
    at("/etc/cni/net.d", "rm $place/10-flatnet.conflist; echo full >>$place/.full || true")?;
    let named = eventually("the agent names the full disk", NOTICED, || {
        let status = agent_status(cluster, "node1")?;
        let problems = status["problems"].to_string();
        ensure!(problems.to_lowercase().contains("no space left"), "{status}");
        Ok(())
    });
    at("/etc/cni/net.d", EMPTY)?;
    named?;
    back(world)
}

/// An agent whose sockets, lock and notes are deleted goes on, and the next one makes them anew.
pub fn run_wiped(world: &World) -> Result<()> {
    back(world)?;
    let cluster = &world.cluster;
    let pid = cluster.process("agent/node1")?;
    run(cluster, "node1", "rm -f /run/flatnet/agent.* /run/flatnet/dns.sock /run/flatnet/*.json")?;
    world.request()?;
    e2e::processes::signal(pid, "KILL")?;
    eventually("another agent runs", NOTICED, || {
        ensure!(cluster.process("agent/node1")? != pid, "still the old process");
        Ok(())
    })?;
    converged(cluster, "node1")?;
    run(cluster, "node1", "ls /run/flatnet/agent.sock /run/flatnet/dns.sock /run/flatnet/*.json")?;
    world.request()
}

/// Where agents pin what they have in eBPF, and what of Services stands there.
const PINS: &str = "/sys/fs/bpf";
const WHOLE: &str = "cd /sys/fs/bpf/flatnet && ls flows-v*/maps/flows flows-v*/links/*-service_enter \
                     services-v*/maps/services service-links/*-connect4";

/// With Services in eBPF and without their pins: all is loaded and pinned anew, the agent tells of
/// it, and Services answer at sockets and by packets.
pub fn pins_unmounted(world: &World) -> Result<()> {
    let cluster = &world.cluster;
    change(world, "ebpf")?;
    back(world)?;
    run(cluster, "node1", WHOLE)?;
    let repairs = || -> Result<u64> {
        Ok(agent_status(cluster, "node1")?["repairs"]["ebpf"].as_u64().unwrap_or(0))
    };
    let before = repairs()?;
    run(cluster, "node1", &format!("umount -l {PINS}"))?;
    ensure!(run(cluster, "node1", WHOLE).is_err(), "the pins survived");
    eventually("everything is pinned again", NOTICED, || run(cluster, "node1", WHOLE).map(drop))?;
    eventually("the agent tells of it", NOTICED, || {
        ensure!(repairs()? > before, "repairs stay {before}");
        Ok(())
    })?;
    back(world)?;
    world.request()?;
    let address = world.service("/spec/clusterIP")?;
    cluster.exec(NAMESPACE, "client", &["toolbox", "udp", &address, "90", "--count", "20"])?;
    change(world, DEFAULT)?;
    // What was pinned before is attached nowhere any more: it would lead to what it knew.
    cluster.apply(endpoints::POD)?;
    world.reaches(endpoints::REMOVED)?;
    let gone =
        ["delete", "pod", "-n", NAMESPACE, endpoints::REMOVED, "--force", "--grace-period=0"];
    cluster.kubectl(&gone).map(drop)
}
