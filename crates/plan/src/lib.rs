//! World to Desired: what a node's kernel and workers shall hold, as ordered values.
//!
//! `Desired` is a function of the current `World` alone (invariant 1): no memory of earlier
//! outputs. Each function plans one key; the law "key by key equals from scratch" is a test.

pub mod network;
pub mod paths;
pub mod service_ranges;
pub mod services;
pub mod zone;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use model::{ClusterConfig, NamespacedName, World};

/// What a node knows of itself besides the API's objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// The node's name.
    pub name: String,
    /// The link to the other nodes.
    pub uplink: String,
    /// That link's MTU in bytes.
    pub uplink_mtu: u32,
    /// All addresses of the node itself on that link, at most a few a family.
    pub addresses: Vec<IpAddr>,
    /// The networks that are directly on that link: what [`model::ClusterConfig::cross_subnet`]
    /// takes for one L2 segment.
    pub uplink_prefixes: Vec<IpNet>,
    /// Whether that link writes wrong checksums into packets within tunnels.
    pub tunnel_checksum_broken: bool,
    /// The largest packet in bytes that reaches the pods of all other nodes, where the path
    /// self-test found less than the links promise.
    pub pod_mtu_limit: Option<u32>,
}

/// All that one node's kernel shall hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Links, routes and tunnels. `None` until the node has a pod range.
    pub network: Option<network::NetworkPlan>,
    /// Services, one plan a Service that has any frontend.
    pub services: BTreeMap<NamespacedName, services::ServicePlan>,
}

/// Something that an operator should know; the plan goes on without it (invariant 8).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The object that it is about, as `Kind namespace/name`.
    pub about: String,
    /// What is wrong, the likely cause and what to do, in one sentence.
    pub message: String,
}

/// Plans everything from scratch: what the incremental path must equal.
pub fn node(world: &World, config: &ClusterConfig, facts: &NodeFacts) -> (Desired, Vec<Finding>) {
    let (config, mut findings) = service_ranges::extended(world, config);
    let config = &config;
    let mut desired = Desired::default();
    let (network, found) = network::plan(world, config, facts);
    desired.network = network;
    findings.extend(found);
    for service in world.services() {
        let key = service.metadata.key();
        let (plan, found) = services::plan(world, config, facts, &key);
        findings.extend(found);
        if let Some(plan) = plan {
            desired.services.insert(key, plan);
        }
    }
    (desired, findings)
}
