//! Changes of Services in eBPF one by one: the outcome is that of rendering and comparing
//! everything, at a cost that depends on what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use model::{ClusterConfig, Family, FlatSet, NamespacedName, Protocol};
use plan::services::{
    Backends, Frontend, FrontendPlan, RangeFrontend, RangeScope, Scheduling, ServicePlan,
};
use plan::{Desired, NodeFacts};
use proptest::prelude::*;
use render::ebpf::node::Touched;
use render::ebpf::{
    Change, EbpfOp, NodeObserved, NodeOp, NodeProgram, diff_node, diff_node_touched, render_node,
    update_node,
};

const SERVICES: u8 = 20;
const CASES: u32 = 40;

/// What happens to one Service: another plan, or none.
type Changed = (u8, Option<ServicePlan>);

fn config() -> ClusterConfig {
    ClusterConfig::default()
}

fn facts() -> NodeFacts {
    let addresses = vec!["172.30.0.2".parse().expect("an address")];
    NodeFacts { uplink: "eth0".into(), addresses, ..NodeFacts::default() }
}

fn key(index: u8) -> NamespacedName {
    NamespacedName::new("shop", format!("s{index}"))
}

fn plan_of(endpoints: &BTreeSet<u8>) -> FrontendPlan {
    let endpoint = |last: &u8| SocketAddr::from(([10, 244, 1, *last], 8080));
    let all: FlatSet<SocketAddr> = endpoints.iter().map(endpoint).collect();
    FrontendPlan::new(if all.is_empty() { Backends::Reject } else { Backends::Endpoints(all) })
}

/// A Service with a ClusterIP, and with more or less besides. Of external addresses and ranges two
/// Services may have the same.
fn service(index: u8) -> impl Strategy<Value = ServicePlan> {
    let endpoints = prop::collection::btree_set(1_u8..10, 0..9);
    let few = prop::collection::btree_set(1_u8..6, 0..2);
    let outside = prop::option::weighted(0.3, few);
    let external = prop::option::weighted(0.3, 1_u8..6);
    let range = prop::option::weighted(0.1, 1_u8..3);
    let affinity_timeout_s = prop::option::weighted(0.2, 1_u32..100);
    let flags = (any::<bool>(), any::<bool>(), prop::bool::weighted(0.1));
    let options = (endpoints, outside, external, range, affinity_timeout_s, flags);
    options.prop_map(move |(endpoints, outside, external, range, affinity_timeout_s, flags)| {
        let (is_udp, has_node_port, is_maglev) = flags;
        let protocol = if is_udp { Protocol::Udp } else { Protocol::Tcp };
        let scheduling = if is_maglev { Scheduling::Maglev } else { Scheduling::Random };
        let base = FrontendPlan { affinity_timeout_s, scheduling, ..plan_of(&endpoints) };
        let outside = outside.as_ref().map(|few| plan_of(few).backends);
        let plan = FrontendPlan { outside, ..base.clone() };
        let mut service = ServicePlan::default();
        let address = [10, 96, 0, index].into();
        service.frontends.insert(Frontend::ClusterIp { address, protocol, port: 80 }, base);
        if has_node_port {
            let port = 30_000 + u16::from(index);
            let node_port = Frontend::NodePort { family: Family::V4, protocol, port };
            service.frontends.insert(node_port, plan.clone());
        }
        if let Some(last) = external {
            let address = [198, 51, 100, last].into();
            service.frontends.insert(Frontend::External { address, protocol, port: 80 }, plan);
        }
        if let Some(last) = range {
            let address = [203, 0, 113, last].into();
            let (scope, first) = (RangeScope::External, 1000 + 8 * u16::from(index));
            let range = RangeFrontend { scope, address, protocol, first, last: 1400 };
            service.ranges.insert(range, plan_of(&endpoints));
        }
        service
    })
}

fn changes() -> impl Strategy<Value = Vec<Changed>> {
    let one = (0..SERVICES).prop_flat_map(|index| {
        prop::option::weighted(0.7, service(index)).prop_map(move |plan| (index, plan))
    });
    prop::collection::vec(one, 1..40)
}

/// A node, what was planned for it and what it has.
struct Node {
    desired: Desired,
    program: NodeProgram,
    observed: NodeObserved,
}

impl Node {
    fn new() -> Self {
        let desired = Desired::default();
        let program = render_node(&desired, &config(), &facts());
        let mut node = Self { desired, program, observed: NodeObserved::default() };
        node.carry_out(&node.everything());
        node
    }

    /// Changes one Service; answers what was touched.
    fn change(&mut self, (index, plan): &Changed) -> Touched {
        let key = key(*index);
        let former = match plan {
            Some(plan) => self.desired.services.insert(key.clone(), plan.clone()),
            None => self.desired.services.remove(&key),
        };
        let before = BTreeMap::from([(key, former)]);
        update_node(&mut self.program, &self.desired, &config(), &facts(), &before)
    }

    fn everything(&self) -> Vec<NodeOp> {
        diff_node(Some(&self.program), &self.observed)
    }

    fn touched(&self, touched: &Touched) -> Vec<NodeOp> {
        diff_node_touched(Some(&self.program), &self.observed, touched)
    }

    fn carry_out(&mut self, ops: &[NodeOp]) {
        for op in ops {
            self.observed.apply(op).unwrap_or_else(|error| panic!("{error} at {op:?}"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    /// The program is a function of the present plan alone (invariant 1), and what was not touched
    /// does not differ.
    #[test]
    fn step_by_step_equals_from_scratch(changes in changes()) {
        let mut node = Node::new();
        for change in &changes {
            let touched = node.change(change);
            let scratch = render_node(&node.desired, &config(), &facts());
            prop_assert_eq!(&node.program, &scratch);
            let ops = node.touched(&touched);
            prop_assert_eq!(&ops, &node.everything());
            node.carry_out(&ops);
            prop_assert_eq!(node.everything(), vec![]);
        }
    }

    /// Several changes whose ops were not carried out between: what they touched adds up.
    #[test]
    fn what_was_touched_adds_up(changes in changes()) {
        let mut node = Node::new();
        let mut touched = Touched::nothing();
        for change in &changes {
            touched.merge(node.change(change));
        }
        let ops = node.touched(&touched);
        prop_assert_eq!(&ops, &node.everything());
        prop_assert!(ops.is_empty() || !touched.is_nothing());
        node.carry_out(&ops);
        prop_assert_eq!(node.everything(), vec![]);
    }
}

/// A change of one endpoint is one entry, and no other Service is looked at (G5).
#[test]
fn one_endpoint_is_one_entry_however_many_services_there_are() {
    let plan = |index: u8, endpoints: &[u8]| {
        let address = [10, 96, 0, index].into();
        let cluster_ip = Frontend::ClusterIp { address, protocol: Protocol::Tcp, port: 80 };
        let endpoints = endpoints.iter().copied().collect();
        ServicePlan {
            frontends: [(cluster_ip, plan_of(&endpoints))].into(),
            ..ServicePlan::default()
        }
    };
    let mut node = Node::new();
    for index in 0..SERVICES {
        let touched = node.change(&(index, Some(plan(index, &[1, 2, 3]))));
        node.carry_out(&node.touched(&touched));
    }
    let mut changed = |endpoints: &[u8]| {
        let touched = node.change(&(7, Some(plan(7, endpoints))));
        let Touched::Only(keys) = &touched else { panic!("everything") };
        assert_eq!(keys.len(), 1, "{keys:?}");
        let ops = node.touched(&touched);
        node.carry_out(&ops);
        ops
    };
    let ops = changed(&[1, 3, 4]);
    let [NodeOp::Maps(EbpfOp::Services(Change::Put(frontends)))] = ops.as_slice() else {
        panic!("{ops:?}")
    };
    assert_eq!(frontends.len(), 1, "{frontends:?}");

    // Of more than lie in the frontend's entry, the others have entries of their own.
    changed(&[1, 3, 4, 5, 6, 7, 8]);
    let ops = changed(&[1, 3, 4, 5, 6, 7, 9]);
    let [NodeOp::Maps(EbpfOp::Slots(Change::Put(slots)))] = ops.as_slice() else {
        panic!("{ops:?}")
    };
    assert_eq!(slots.len(), 1, "{slots:?}");
}
