//! what others break on a node is put back within a second, and the agent says what it was.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::eventually;
use e2e::processes::agent_status;

use super::kills::back;
use super::world::World;

///
const REPAIRED_MS: u64 = 1000;
/// The counters follow the repair, on a busy machine too.
const TOLD: Duration = Duration::from_secs(10);

/// One way to break a node.
pub struct Damage {
    /// In the report.
    name: &'static str,
    /// The label of its counter.
    kind: &'static str,
    /// A shell command that breaks it.
    pub breaks: &'static str,
    /// A shell command that succeeds when it is whole.
    is_whole: &'static str,
    /// A word by which the log names what was damaged.
    named: &'static str,
}

/// On the first node, which has a pod with a host port; `$peer` is the other node's pod range,
/// `$port` the node's end of a pod's link; for `@pods` and `@services` see [`World::with_octets`].
pub const DAMAGES: &[Damage] = &[
    Damage {
        name: "the rules of the table are flushed",
        kind: "nftables",
        breaks: "nft flush table ip flatnet",
        is_whole: "nft list chain ip flatnet nat-prerouting | grep -q cluster-ip-classes",
        named: "flatnet",
    },
    Damage {
        name: "the table is deleted",
        kind: "nftables",
        breaks: "nft delete table ip flatnet",
        is_whole: "nft list chain ip flatnet nat-prerouting | grep -q cluster-ip-classes",
        named: "flatnet",
    },
    Damage {
        name: "one element is deleted",
        kind: "nftables",
        breaks: "nft delete element ip flatnet cluster-addresses { 10.@services.0.1 }",
        is_whole: "nft get element ip flatnet cluster-addresses { 10.@services.0.1 }",
        named: "cluster-addresses",
    },
    Damage {
        name: "the bridge loses its address",
        kind: "address",
        breaks: "ip address flush dev cni0 scope global",
        is_whole: "ip -4 -o address show cni0 | grep -q inet",
        named: "cni0",
    },
    Damage {
        name: "the bridge is set down",
        kind: "link",
        breaks: "ip link set cni0 down",
        is_whole: "ip -o link show cni0 up | grep -q cni0 && ip route show proto 102 | grep -q via",
        named: "cni0",
    },
    Damage {
        name: "a route is deleted",
        kind: "route",
        breaks: "ip route delete $peer",
        is_whole: "ip route show $peer | grep -q via",
        named: "10.@pods.0.",
    },
    Damage {
        name: "a neighbour is deleted",
        kind: "neighbour",
        breaks: "ip neigh flush dev flatnet.1 nud permanent",
        is_whole: "ip neigh show dev flatnet.1 nud permanent | grep -q lladdr",
        named: "10.@pods.0.",
    },
    Damage {
        name: "a forwarding entry is deleted",
        kind: "forwarding",
        breaks: "bridge fdb delete $(bridge fdb show dev flatnet.1 | awk '/dst/ {print $1; exit}') dev flatnet.1",
        is_whole: "bridge fdb show dev flatnet.1 | grep -q dst",
        named: "172.29.@pods.",
    },
    Damage {
        name: "the tunnel's link is deleted",
        kind: "link",
        breaks: "ip link delete flatnet.1",
        is_whole: "ip route show $peer | grep -q flatnet.1 && bridge fdb show dev flatnet.1 | grep -q dst",
        named: "flatnet.1",
    },
    Damage {
        name: "forwarding is switched off",
        kind: "sysctl",
        breaks: "sysctl -qw net.ipv4.ip_forward=0",
        is_whole: "[ $(sysctl -n net.ipv4.ip_forward) = 1 ]",
        named: "ip_forward",
    },
    Damage {
        name: "the table at pods' edges is deleted",
        kind: "pod-edge",
        breaks: "nft delete table bridge flatnet-pods",
        is_whole: "nft list chain bridge flatnet-pods from-pods | grep -q flatnet",
        named: "flatnet-pods",
    },
    Damage {
        name: "the rules of a host port are flushed",
        kind: "pod-edge",
        breaks: "nft flush map ip flatnet-host-ports endpoints",
        is_whole: "nft list map ip flatnet-host-ports endpoints | grep -q 18080",
        named: "flatnet-host-ports",
    },
    Damage {
        name: "a pod's link is taken off the bridge",
        kind: "link",
        breaks: "ip link set $port nomaster",
        is_whole: "ip -o link show $port | grep -q 'master cni0'",
        named: "veth",
    },
];

/// What the commands above use.
pub const VARIABLES: &str =
    "peer=$(ip -o route show proto 102 | awk '/flatnet.1/ {print $1; exit}')
port=$(ip -o link show master cni0 | awk -F'[ :@]+' '{print $2; exit}')
";

/// Each kind, one after another; all that went wrong is told, not the first alone.
pub fn repaired(world: &World) -> Result<()> {
    back(world)?;
    let mut wrong = Vec::new();
    for damage in DAMAGES {
        match repair_ms(world, damage) {
            Ok(took_ms) if took_ms <= REPAIRED_MS => println!("    {}: {took_ms} ms", damage.name),
            Ok(took_ms) => wrong.push(format!("{}: {took_ms} ms", damage.name)),
            Err(error) => wrong.push(format!("{}: {error:#}", damage.name)),
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    world.request()
}

/// Breaks it, and answers how long it stayed so. The clock runs on the node, without the start of
/// another program between the damage and the first look.
fn repair_ms(world: &World, damage: &Damage) -> Result<u64> {
    let count = || -> Result<u64> {
        let status = agent_status(&world.cluster, "node1")?;
        Ok(status["repairs"][damage.kind].as_u64().unwrap_or(0))
    };
    let log = || {
        std::fs::read_to_string(format!(
            "/var/lib/flatnet/{}/logs/agent-node1.log",
            world.cluster.name
        ))
    };
    let (counted, logged) = (count()?, log()?.len());
    let Damage { breaks, is_whole, .. } = damage;
    let named = world.with_octets(damage.named);
    let script = world.with_octets(&format!(
        "{VARIABLES}
whole() {{ {{ {is_whole}; }} >/dev/null 2>&1; }}
whole || {{ echo 'it was broken before' >&2; exit 1; }}
{breaks} || exit 1
start=$(date +%s%N)
until whole; do
  [ $(( $(date +%s%N) - start )) -lt 10000000000 ] || {{ echo 'it stays broken' >&2; exit 1; }}
  sleep 0.01
done
echo $(( ($(date +%s%N) - start) / 1000000 ))"
    ));
    let took_ms = world.cluster.on_node("node1", &["sh", "-c", &script])?.trim().parse()?;
    eventually("the agent tells of it", TOLD, || {
        ensure!(
            count()? > counted,
            "flatnet_repairs_total{{kind={:?}}} stays {counted}",
            damage.kind
        );
        let log = log()?;
        let new = log.get(logged..).context("the log was cut")?;
        let told = new
            .lines()
            .any(|line| line.contains("another program changed") && line.contains(&named));
        ensure!(told, "the log does not name {named}: {new}");
        Ok(())
    })?;
    back(world)?;
    Ok(took_ms)
}
