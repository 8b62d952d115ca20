//! Changes of iptables Service by Service: the outcome is that of rendering and comparing
//! everything, at a cost that depends on what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use model::{ClusterConfig, Family, FlatSet, NamespacedName, Protocol};
use plan::services::{
    Backends, Frontend, FrontendPlan, RangeFrontend, RangeScope, Scheduling, ServicePlan,
};
use plan::{Desired, NodeFacts};
use proptest::prelude::*;
use render::iptables::{
    IptablesObserved, IptablesOp, IptablesProgram, Touched, diff, diff_touched, render, update,
};

const NODE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(172, 30, 0, 2)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x172, 0, 0, 0, 0, 0, 2)),
];
/// So many that lists branch, in two levels where they are crowded.
const SERVICES: u8 = 120;
/// Services before the first change at most.
const FIRST_MAX: usize = 90;

/// What happens to one Service: another plan, or none.
type Change = BTreeMap<u8, Option<ServicePlan>>;

fn config() -> ClusterConfig {
    let mut config = ClusterConfig::default();
    config.pod_cidrs.push("fd00:10:244::/56".parse().expect("a range"));
    config.service_cidrs.push("fd00:10:96::/112".parse().expect("a range"));
    config.node_cidrs.push("fd00:172::/64".parse().expect("a range"));
    config
}

fn facts() -> NodeFacts {
    NodeFacts { name: "node1".into(), addresses: NODE.into(), ..NodeFacts::default() }
}

fn key(index: u8) -> NamespacedName {
    NamespacedName::new("shop", format!("s{index}"))
}

/// Addresses far apart and in crowds: the eighth bit decides.
fn cluster_ip(index: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => [10, 96, 200 * (index % 2), index / 2].into(),
        Family::V6 => {
            [0xfd00, 0x10, 0x96, 0, 0, 0, u16::from(index % 2) << 12, index.into()].into()
        }
    }
}

fn plan_of(endpoints: &BTreeSet<u8>, family: Family) -> FrontendPlan {
    let endpoint = |last: &u8| match family {
        Family::V4 => SocketAddr::from(([10, 244, 0, *last], 8080)),
        Family::V6 => SocketAddr::from(([0xfd00, 0x10, 0x244, 0, 0, 0, 0, u16::from(*last)], 8080)),
    };
    let all: FlatSet<SocketAddr> = endpoints.iter().map(endpoint).collect();
    FrontendPlan::new(if all.is_empty() { Backends::Reject } else { Backends::Endpoints(all) })
}

/// A Service in one family or both. Of external addresses two Services may have the same.
fn service(index: u8) -> impl Strategy<Value = ServicePlan> {
    let endpoints = || prop::collection::btree_set(1_u8..6, 0..3);
    let families = prop::sample::subsequence(vec![Family::V4, Family::V6], 1..=2);
    let sources = prop::sample::subsequence(vec!["10.244.0.0/25", "0.0.0.0/0"], 0..=2);
    let external = prop::option::weighted(0.4, (0_u8..8, prop::option::of(sources)));
    let options = (
        families,
        endpoints(),
        prop::option::weighted(0.3, endpoints()),
        external,
        prop::option::weighted(0.2, 1_u32..100),
        any::<[bool; 3]>(),
    );
    options.prop_map(move |(families, endpoints, outside, external, affinity_timeout_s, flags)| {
        let [is_udp, has_node_port, has_range] = flags;
        let protocol = if is_udp { Protocol::Udp } else { Protocol::Tcp };
        let mut service = ServicePlan::default();
        for family in families {
            let base = FrontendPlan { affinity_timeout_s, ..plan_of(&endpoints, family) };
            let address = cluster_ip(index, family);
            let cluster_ip = Frontend::ClusterIp { address, protocol, port: 80 };
            service.frontends.insert(cluster_ip, base.clone());
            let outside = outside.as_ref().map(|some| plan_of(some, family).backends);
            let plan = FrontendPlan { outside, ..base.clone() };
            if has_node_port {
                let port = 30_000 + 7 * u16::from(index);
                let node_port = Frontend::NodePort { family, protocol, port };
                service.frontends.insert(node_port, plan.clone());
            }
            if let (Some((last, sources)), Family::V4) = (&external, family) {
                let source_ranges = sources.as_ref().map(|ranges| {
                    ranges.iter().map(|range| range.parse().expect("a range")).collect()
                });
                // The first is the node's own.
                let address =
                    if *last == 0 { NODE[0] } else { IpAddr::from([198, 51, 100, *last]) };
                let external = Frontend::External { address, protocol, port: 80 };
                service.frontends.insert(external, FrontendPlan { source_ranges, ..plan });
            }
            if has_range {
                add_range(&mut service, address, protocol, &base);
            }
        }
        service
    })
}

fn add_range(service: &mut ServicePlan, address: IpAddr, protocol: Protocol, plan: &FrontendPlan) {
    let backends = match &plan.backends {
        Backends::Endpoints(all) => {
            Backends::Endpoints(all.iter().map(|one| SocketAddr::new(one.ip(), 0)).collect())
        }
        other => other.clone(),
    };
    let scope = RangeScope::ClusterIp;
    let range = RangeFrontend { scope, address, protocol, first: 100, last: 200 };
    let scheduling = Scheduling::Random;
    service.ranges.insert(range, FrontendPlan { backends, scheduling, ..plan.clone() });
}

fn change(count: std::ops::Range<usize>) -> impl Strategy<Value = Change> {
    let one = (0..SERVICES).prop_flat_map(|index| {
        prop::option::weighted(0.7, service(index)).prop_map(move |plan| (index, plan))
    });
    prop::collection::vec(one, count).prop_map(|pairs| pairs.into_iter().collect())
}

/// A crowd, then some changes, the last of which may empty it.
fn changes() -> impl Strategy<Value = Vec<Change>> {
    let few = prop::collection::vec(prop_oneof![4 => change(1..3), 1 => change(20..60)], 1..6);
    (change(0..FIRST_MAX), few).prop_map(|(first, few)| [first].into_iter().chain(few).collect())
}

/// Applies a change to the plan; answers the plans before.
fn apply(desired: &mut Desired, change: &Change) -> BTreeMap<NamespacedName, Option<ServicePlan>> {
    let replace = |(&index, plan): (&u8, &Option<ServicePlan>)| {
        let key = key(index);
        let before = match plan {
            Some(plan) => desired.services.insert(key.clone(), plan.clone()),
            None => desired.services.remove(&key),
        };
        (key, before)
    };
    change.iter().map(replace).collect()
}

fn scratch(desired: &Desired) -> IptablesProgram {
    render(desired, &config(), &facts())
}

fn carry_out(observed: &mut IptablesObserved, ops: &[IptablesOp]) {
    for op in ops {
        observed.apply(op).unwrap_or_else(|error| panic!("{error}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    /// The program is a function of the present plan alone (invariant 1), and what was not touched
    /// does not differ: the same transactions, the same flows to forget.
    #[test]
    fn step_by_step_equals_from_scratch(changes in changes()) {
        let mut desired = Desired::default();
        let mut program = scratch(&desired);
        let mut observed = IptablesObserved::default();
        carry_out(&mut observed, &diff(&program, &IptablesObserved::default()));
        for change in &changes {
            let before = apply(&mut desired, change);
            let touched = update(&mut program, &desired, &config(), &facts(), &before);
            prop_assert_eq!(&program, &scratch(&desired));
            let ops = diff_touched(&program, &observed, &touched);
            prop_assert_eq!(&ops, &diff(&program, &observed));
            carry_out(&mut observed, &ops);
            prop_assert_eq!(diff(&program, &observed), vec![]);
        }
    }

    /// Several changes whose ops were not carried out between: what they touched adds up.
    #[test]
    fn what_was_touched_adds_up(changes in changes()) {
        let mut desired = Desired::default();
        let mut program = scratch(&desired);
        let mut observed = IptablesObserved::default();
        carry_out(&mut observed, &diff(&program, &IptablesObserved::default()));
        let mut touched = Touched::nothing();
        for change in &changes {
            let before = apply(&mut desired, change);
            touched.merge(update(&mut program, &desired, &config(), &facts(), &before));
        }
        let ops = diff_touched(&program, &observed, &touched);
        prop_assert_eq!(&ops, &diff(&program, &observed));
        prop_assert!(ops.is_empty() || !touched.is_nothing());
        carry_out(&mut observed, &ops);
        prop_assert_eq!(diff(&program, &observed), vec![]);
    }
}

/// A change of one Service costs the same however many others there are: that is its point (G5).
#[test]
fn one_service_touches_its_own_chains_and_the_way_to_them() {
    let plan = |index: u8, endpoint: u8| {
        let address = cluster_ip(index, Family::V4);
        let cluster_ip = Frontend::ClusterIp { address, protocol: Protocol::Udp, port: 80 };
        let frontends = [(cluster_ip, plan_of(&[endpoint].into(), Family::V4))].into();
        ServicePlan { frontends, ..ServicePlan::default() }
    };
    let mut desired = Desired::default();
    for index in 1..SERVICES {
        desired.services.insert(key(index), plan(index, 1));
    }
    let mut program = scratch(&desired);
    // Another endpoint: the choice, and the chains of both endpoints. A new Service: its two
    // chains, and the branch that it stands in.
    for (index, endpoint) in [(7, 2), (0, 1)] {
        let before = desired.services.insert(key(index), plan(index, endpoint));
        let before = [(key(index), before)].into();
        let touched = update(&mut program, &desired, &config(), &facts(), &before);
        let Touched::Only(families) = touched else { panic!("everything") };
        let tables: Vec<_> = families.into_values().collect();
        let [tables] = tables.as_slice() else { panic!("{tables:?}") };
        let chains: usize = tables.chains.values().map(BTreeSet::len).sum();
        assert_eq!(chains, 3, "{tables:?}");
        assert_eq!(tables.places.addresses.len(), 1, "{tables:?}");
    }
}
