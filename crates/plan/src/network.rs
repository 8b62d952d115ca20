//! Links, addresses, routes, tunnels, sysctls and masquerade of one node.

use model::{ClusterConfig, World};

use crate::{Finding, NodeFacts};

/// What the node's pod network shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkPlan {}

/// Plans the pod network of one node. `None` until the node has a pod range.
pub fn plan(
    _world: &World,
    _config: &ClusterConfig,
    _facts: &NodeFacts,
) -> (Option<NetworkPlan>, Vec<Finding>) {
    (None, vec![])
}
