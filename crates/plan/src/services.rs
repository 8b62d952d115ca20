//! Frontends and endpoints of one Service at one node.

use model::{ClusterConfig, NamespacedName, World};

use crate::{Finding, NodeFacts};

/// What one Service shall be at this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {}

/// Plans one Service at one node. `None` when it needs nothing in the kernel.
pub fn plan(
    _world: &World,
    _config: &ClusterConfig,
    _facts: &NodeFacts,
    _service: &NamespacedName,
) -> (Option<ServicePlan>, Vec<Finding>) {
    (None, vec![])
}
