//! Services and packets of pods in eBPF, by an agent with the rights of its DaemonSet and no more.

use anyhow::{Context, Result, ensure};
use e2e::cluster::READY;
use e2e::eventually;
use serde_json::Value;

use super::lifecycle::status;
use super::machine::NAME;
use super::packets;
use super::world::World;

/// What stands where agents pin: of Services at sockets, of Services at links, of forwarding.
const WHOLE: &str = "cd /sys/fs/bpf/flatnet && ls service-links/*-connect4 services-v*/maps/services \
                     flows-v*/maps/flows flows-v*/links/*-service_enter v*/maps/pods";

/// The programs have it, and the Node says so: nothing fell back to the kernel's own path.
pub fn carried(world: &World) -> Result<()> {
    eventually("the Node says who forwards", READY, || {
        let node = world.cluster.get("", "node", NAME)?;
        let conditions = node["status"]["conditions"].as_array().context("no conditions")?;
        let forwarding = conditions.iter().find(|one| one["type"] == "FlatnetForwarding");
        let forwarding = forwarding.with_context(|| node["status"].to_string())?;
        ensure!(forwarding["status"] == "True", "{forwarding}");
        Ok(())
    })?;
    let before = status(world)?;
    ensure!(before["serviceBackend"] == "ebpf", "{before}");
    world.machine.shell(WHOLE)?;
    packets::pods(world)?;
    packets::services(world)?;
    eventually("packets are counted", READY, || {
        let now = status(world)?;
        for way in ["to_pod", "to_tunnel"] {
            let count = |status: &Value| status["forwarding"]["packets"][way].as_u64().unwrap_or(0);
            ensure!(count(&now) > count(&before), "{way}: {before}, {now}");
        }
        Ok(())
    })
}

/// all that was pinned is gone, and comes back; what is forwarded goes on.
pub fn repaired(world: &World) -> Result<()> {
    let repairs = |status: &Value| status["repairs"]["ebpf"].as_u64().unwrap_or(0);
    let before = repairs(&status(world)?);
    world.machine.shell("rm -r /sys/fs/bpf/flatnet")?;
    eventually("all is pinned again, and told", READY, || {
        world.machine.shell(WHOLE)?;
        let now = status(world)?;
        ensure!(now["converged"] == true && repairs(&now) > before, "{now}");
        Ok(())
    })?;
    packets::pods(world)?;
    packets::services(world)
}
