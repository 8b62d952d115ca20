//! what other programs have on a node is theirs.

use anyhow::{Result, ensure};
use e2e::node_state::NodeState;
use e2e::processes::Held;

use super::pods::run;
use super::world::{NAMESPACE, World};

/// After all that the other scenarios did, and then after `flatnet uninstall`, of which nothing of
/// ours may be left. Cached results are the container runtime's. It ends the work of the first node, so it is the last scenario.
pub fn untouched(world: &World) -> Result<()> {
    let cluster = &world.cluster;
    NodeState::foreign(cluster, "node1")?.ensure_same_as(&world.foreign)?;
    for pod in ["echo-node1", "client"] {
        cluster.kubectl(&["delete", "pod", "-n", NAMESPACE, pod])?;
    }
    let _held = Held::hold(cluster, &["node1"])?;
    let said = run(cluster, "node1", "flatnet uninstall --purge")?;
    NodeState::foreign(cluster, "node1")?.ensure_same_as(&world.foreign)?;
    let ours = run(
        cluster,
        "node1",
        "nft list tables | grep flatnet; ip -o link | grep -E 'flatnet|cni0|veth'; \
         ip route show table all | grep -E 'proto 102|flatnet|cni0'; ip rule | grep -i flatnet; \
         ls /etc/cni/net.d | grep flatnet; ls /opt/cni/bin | grep flatnet; find /var/lib/cni -name '*flatnet*' ! -path '*/results/*'; true",
    )?;
    ensure!(ours.trim().is_empty(), "after `uninstall`, which said {said}, there is still {ours}");
    Ok(())
}
