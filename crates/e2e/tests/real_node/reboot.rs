//! The machine starts anew while the rest of the cluster goes on: it has its disk, and
//! neither rules nor pods nor the boot id of before.

use anyhow::{Result, ensure};
use e2e::cluster::READY;
use e2e::eventually;
use e2e::sender::Sender;
use serde_json::json;

use super::kubelet::Pod;
use super::machine::ADDRESS;
use super::world::{DNS_DAEMON_SET, NAMESPACE, REMOTE, World};

/// Services for UDP: of the machine's pod, and of those on other nodes.
const TO_MACHINE: &str = "rebooted";
const THROUGH_MACHINE: &str = "elsewhere";
/// How the names of the latter pods begin.
const ELSEWHERE: &str = "echo-";

/// Clients of UDP elsewhere keep their ports and go on sending meanwhile. Who asks the Service of the
/// pod that is gone is told so; all are answered as soon as there is somebody again: by the machine's
/// pod, and through the machine by pods of other nodes.
pub fn rebooted(world: &World) -> Result<()> {
    for (name, app) in [(TO_MACHINE, REMOTE), (THROUGH_MACHINE, "echo")] {
        world.cluster.apply(&service(name, app))?;
    }
    let field = |name, pointer| world.cluster.field(NAMESPACE, "service", name, pointer);
    let to_machine = format!("{}:90", field(TO_MACHINE, "/spec/clusterIP")?);
    let node_port = field(THROUGH_MACHINE, "/spec/ports/0/nodePort")?;
    let through_machine = format!("{ADDRESS}:{node_port}");
    let start = |address: &str, pods| {
        eventually("the Service answers", READY, || Sender::start(address, pods))
    };
    let to_machine = start(&to_machine, REMOTE)?;
    let through_machine = start(&through_machine, ELSEWHERE)?;
    let boot_before = boot_id(world)?;
    end_all(world)?;
    world.machine.reboot()?;
    ensure!(boot_id(world)? != boot_before, "the same boot: {boot_before}");
    // As a kubelet does that comes back.
    world.say_of_remote(&world.pod_ip(REMOTE)?, "False")?;
    to_machine.wait_until_refused()?;
    start_all(world)?;
    for sender in [to_machine, through_machine] {
        sender.wait_until_answered()?;
        sender.ensure_answered()?;
    }
    let gone = ["delete", "service", "-n", NAMESPACE, TO_MACHINE, THROUGH_MACHINE];
    world.cluster.kubectl(&gone).map(drop)
}

/// The power is gone.
fn end_all(world: &World) -> Result<()> {
    world.stop_servers();
    world.pod.borrow_mut().end("agent", "KILL")?;
    world.dns.borrow_mut().end("dns", "KILL")
}

/// What the kubelet and the container runtime start after a boot. All pods of before are dead.
fn start_all(world: &World) -> Result<()> {
    *world.pod.borrow_mut() = Pod::prepare(&world.cluster, &world.machine, "flatnet")?;
    *world.dns.borrow_mut() = Pod::prepare(&world.cluster, &world.machine, DNS_DAEMON_SET)?;
    world.pod.borrow().initialize(&world.machine)?;
    world.dns.borrow_mut().start(&world.machine, "dns")?;
    world.pod.borrow_mut().start(&world.machine, "agent")?;
    world.ready()?;
    // The kubelet finds the pod of before without a network, and takes it away.
    world.machine.flatnet(&["cni", "del", "flatnet", REMOTE])?;
    let address = world.add_pod(REMOTE, &json!({}))?;
    world.serve(REMOTE)?;
    world.say_of_remote(&address, "True")
}

fn boot_id(world: &World) -> Result<String> {
    world.machine.run(&["cat", "/proc/sys/kernel/random/boot_id"])
}

fn service(name: &str, app: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": {
            "type": "NodePort",
            "selector": { "app": app },
            "ports": [{ "port": 90, "targetPort": 9090, "protocol": "UDP" }],
        },
    })
    .to_string()
}
