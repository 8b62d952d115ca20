//! What the maps hold, the operations on them, and what the kernel refuses.

use std::fmt::Debug;
use std::net::IpAddr;

use ebpf_abi::services::{
    DIRECT_HOSTS_MAX, MemberKey, RangeKey, Service, ServiceKey, Slot, SlotKey,
};
use ipnet::IpNet;
pub use model::EbpfMapSizes as Sizes;

use super::packed::{Entries, Field};
use crate::OpError;

/// What the maps of Services hold, read back. What the programs write themselves (affinity, flows)
/// is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EbpfObserved {
    /// Frontends with one port.
    pub services: Entries<ServiceKey, Service>,
    /// Parts of frontends with many ports.
    pub ranges: Entries<RangeKey, Service>,
    /// Endpoints by slot.
    pub slots: Entries<SlotKey, Slot>,
    /// Slots by hash.
    pub maglev: Entries<SlotKey, u32>,
    /// Endpoints that flows are compared with.
    pub members: Entries<MemberKey, ()>,
    /// Clients that may come.
    pub sources: Entries<ServiceSource, ()>,
    /// Addresses of the node at which node ports answer.
    pub node_addresses: Entries<IpAddr, ()>,
    /// Ranges of this node's pods.
    pub own_pods: Entries<IpNet, ()>,
    /// The cluster's pods and nodes: `DIRECT_PODS`, `DIRECT_NODE`, or 0.
    pub direct_hosts: Entries<IpNet, u32>,
    /// How much the maps take.
    pub sizes: Sizes,
}

/// A range of clients that may come to a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceSource {
    /// The id of the frontend's inside view.
    pub id: u32,
    /// The range.
    pub range: IpNet,
}

/// Addresses and ranges of pods that one node may have; as `bpf/services.h` has it.
pub const NODE_ENTRIES_MAX: usize = 1024;

/// One operation: changes of one map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EbpfOp {
    /// Of frontends with one port.
    Services(Change<ServiceKey, Service>),
    /// Of parts of frontends with many ports.
    Ranges(Change<RangeKey, Service>),
    /// Of endpoints.
    Slots(Change<SlotKey, Slot>),
    /// Of slots by hash.
    Maglev(Change<SlotKey, u32>),
    /// Of endpoints that flows are compared with.
    Members(Change<MemberKey, ()>),
    /// Of clients that may come.
    Sources(Change<ServiceSource, ()>),
    /// Of addresses of the node.
    NodeAddresses(Change<IpAddr, ()>),
    /// Of ranges of this node's pods.
    OwnPods(Change<IpNet, ()>),
    /// Of the cluster's pods and nodes.
    DirectHosts(Change<IpNet, u32>),
}

/// What happens to entries of one map, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<K, V> {
    /// They are written, over what is there.
    Put(Vec<(K, V)>),
    /// They are removed.
    Remove(Vec<K>),
}

impl<K, V> Change<K, V> {
    fn count(&self) -> usize {
        match self {
            Self::Put(entries) => entries.len(),
            Self::Remove(keys) => keys.len(),
        }
    }
}

const E2BIG: i32 = 7;
const ENOENT: i32 = 2;

impl EbpfOp {
    /// How many entries change.
    pub fn count(&self) -> usize {
        match self {
            Self::Services(change) => change.count(),
            Self::Ranges(change) => change.count(),
            Self::Slots(change) => change.count(),
            Self::Maglev(change) => change.count(),
            Self::Members(change) => change.count(),
            Self::Sources(change) => change.count(),
            Self::NodeAddresses(change) => change.count(),
            Self::OwnPods(change) => change.count(),
            Self::DirectHosts(change) => change.count(),
        }
    }
}

impl EbpfObserved {
    /// The state after one op.
    ///
    /// # Errors
    /// `E2BIG` when the map is full, `ENOENT` for the removal of what is not there; then nothing
    /// has changed here. Linux stops in the middle: whoever sees an error reads the maps anew.
    pub fn apply(&mut self, op: &EbpfOp) -> Result<(), OpError> {
        let Sizes { services, slots, .. } = self.sizes;
        match op {
            EbpfOp::Services(change) => apply(&mut self.services, change, "services", services),
            EbpfOp::Ranges(change) => apply(&mut self.ranges, change, "ranges", services),
            EbpfOp::Slots(change) => apply(&mut self.slots, change, "slots", slots),
            EbpfOp::Maglev(change) => apply(&mut self.maglev, change, "maglev", slots),
            EbpfOp::Members(change) => apply(&mut self.members, change, "members", slots),
            EbpfOp::Sources(change) => {
                apply(&mut self.sources, change, "service_sources", services)
            }
            EbpfOp::NodeAddresses(change) => {
                apply(&mut self.node_addresses, change, "node_addresses", NODE_ENTRIES_MAX as u32)
            }
            EbpfOp::OwnPods(change) => {
                apply(&mut self.own_pods, change, "own_pods", NODE_ENTRIES_MAX as u32)
            }
            EbpfOp::DirectHosts(change) => {
                apply(&mut self.direct_hosts, change, "direct_hosts", DIRECT_HOSTS_MAX)
            }
        }
    }
}

fn apply<K: Field + Debug, V: Field>(
    map: &mut Entries<K, V>,
    change: &Change<K, V>,
    name: &str,
    size: u32,
) -> Result<(), OpError> {
    match change {
        Change::Put(entries) => {
            let new = entries.iter().filter(|(key, _)| !map.contains_key(key)).count();
            if map.len() + new > size as usize {
                return Err(OpError { errno: E2BIG, message: full(name, size) });
            }
            map.extend(entries.iter().copied());
        }
        Change::Remove(keys) => {
            if let Some(key) = keys.iter().find(|key| !map.contains_key(key)) {
                let message = format!("the eBPF map {name} has no {key:?} to remove");
                return Err(OpError { errno: ENOENT, message });
            }
            for key in keys {
                map.remove(key);
            }
        }
    }
    Ok(())
}

/// What to tell when a map of Services takes no more.
pub fn full(name: &str, size: u32) -> String {
    format!(
        "the eBPF map {name} is full with {size} entries: Services are missing on this node until \
         ebpfMaps is raised in the configuration"
    )
}
