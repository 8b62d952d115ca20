//! Laws of the nftables half when it is kept up to date Service by Service: whatever changes in
//! whatever order, the outcome is that of a rendering from scratch.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use model::{ClusterConfig, Family, NamespacedName, Protocol};
use plan::services::{
    Backends, Frontend, FrontendPlan, RangeFrontend, RangeScope, Scheduling, ServicePlan,
};
use plan::{Desired, NodeFacts};
use proptest::prelude::*;
use render::nft::{
    NftObserved, NftOp, NftProgram, Role, Touched, diff, diff_touched, render_as, update,
};

/// Few, so that Services often meet.
const SERVICES: u8 = 4;

fn config() -> ClusterConfig {
    ClusterConfig::default()
}

fn facts() -> NodeFacts {
    let addresses = vec!["172.30.0.2".parse().expect("an address")];
    NodeFacts { name: "node1".into(), uplink: "eth0".into(), addresses, ..NodeFacts::default() }
}

fn key(index: u8) -> NamespacedName {
    NamespacedName::new("shop", format!("s{index}"))
}

fn backends() -> impl Strategy<Value = Backends> {
    let endpoints = prop::collection::btree_set(1_u8..6, 1..4).prop_map(|lasts| {
        let all = lasts.iter().map(|&last| SocketAddr::from(([10, 244, 0, last], 8080)));
        Backends::Endpoints(all.collect())
    });
    prop_oneof![4 => endpoints, 1 => Just(Backends::Reject), 1 => Just(Backends::Drop)]
}

fn frontend_plan() -> impl Strategy<Value = FrontendPlan> {
    let outside = prop::option::weighted(0.3, backends());
    let affinity = prop::option::weighted(0.3, Just(60_u32));
    let range = |text: &str| text.parse::<IpNet>().expect("a range");
    let sources = [range("192.0.2.0/24"), range("192.0.0.0/16"), range("fd00::/8")];
    let sources = prop::sample::subsequence(sources.to_vec(), 0..=3);
    let sources = prop::option::weighted(0.3, sources);
    (backends(), outside, affinity, sources, 0_u16..4).prop_map(
        |(backends, outside, affinity_timeout_s, sources, weight)| {
            let all = [Some(&backends), outside.as_ref()].into_iter().flatten();
            let weights = all
                .filter_map(|backends| match backends {
                    Backends::Endpoints(endpoints) => Some(endpoints),
                    Backends::Reject | Backends::Drop => None,
                })
                .flatten()
                .zip(weight..)
                .map(|(endpoint, weight)| (*endpoint, weight))
                .collect();
            let scheduling =
                if weight == 0 { Scheduling::Random } else { Scheduling::Weighted(weights) };
            FrontendPlan {
                outside,
                affinity_timeout_s,
                source_ranges: sources.map(|sources| sources.into_iter().collect()),
                scheduling,
                ..FrontendPlan::new(backends)
            }
        },
    )
}

/// A frontend of the service's own, or one that others have too.
fn frontends(index: u8) -> impl Strategy<Value = BTreeMap<Frontend, FrontendPlan>> {
    let own: IpAddr = [10, 96, 1, index].into();
    let shared: IpAddr = Ipv4Addr::new(198, 51, 100, 1).into();
    let protocol = if index.is_multiple_of(2) { Protocol::Udp } else { Protocol::Tcp };
    let all = [
        Frontend::ClusterIp { address: own, protocol, port: 80 },
        Frontend::External { address: own, protocol, port: 81 },
        Frontend::External { address: shared, protocol: Protocol::Udp, port: 80 },
        Frontend::NodePort { family: Family::V4, protocol, port: 30_000 + u16::from(index) },
    ];
    let some = prop::sample::subsequence(all.to_vec(), 1..=4);
    some.prop_flat_map(|some| {
        let plans = prop::collection::vec(frontend_plan(), some.len());
        plans.prop_map(move |plans| {
            let pairs = some.iter().copied().zip(plans);
            pairs
                .map(|(frontend, mut plan)| {
                    if !matches!(frontend, Frontend::External { .. }) {
                        plan.source_ranges = None;
                    }
                    if matches!(frontend, Frontend::ClusterIp { .. }) {
                        plan.outside = None;
                    }
                    (frontend, plan)
                })
                .collect()
        })
    })
}

/// Ranges of ports, which may overlap with those of another Service.
fn ranges() -> impl Strategy<Value = BTreeMap<RangeFrontend, FrontendPlan>> {
    let range = (0_u8..3, 0_u16..3, frontend_plan()).prop_map(|(last, start, plan)| {
        let endpoint_ports_go = |backends: Backends| match backends {
            Backends::Endpoints(endpoints) => Backends::Endpoints(
                endpoints.iter().map(|endpoint| SocketAddr::new(endpoint.ip(), 0)).collect(),
            ),
            other => other,
        };
        let frontend = RangeFrontend {
            scope: RangeScope::External,
            address: [198, 51, 100, last].into(),
            protocol: Protocol::Udp,
            first: 9_000 + start * 10,
            last: 9_000 + start * 10 + 15,
        };
        let plan = FrontendPlan {
            backends: endpoint_ports_go(plan.backends),
            outside: plan.outside.map(endpoint_ports_go),
            scheduling: Scheduling::Random,
            ..plan
        };
        (frontend, plan)
    });
    prop::collection::vec(range, 0..2).prop_map(|ranges| ranges.into_iter().collect())
}

fn service(index: u8) -> impl Strategy<Value = ServicePlan> {
    let local = prop::collection::btree_set(1_u8..4, 0..3);
    (frontends(index), ranges(), local, any::<bool>()).prop_map(
        move |(frontends, ranges, local, ping)| ServicePlan {
            frontends: frontends.into(),
            ranges: ranges.into(),
            local_addresses: local.iter().map(|&last| [10, 244, 0, last].into()).collect(),
            answers_ping: ping.then_some([10, 96, 1, index].into()).into_iter().collect(),
            health_check: None,
        },
    )
}

/// The new plans of some Services; `None` for one that goes.
type Change = BTreeMap<u8, Option<ServicePlan>>;

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let one = (0..SERVICES).prop_flat_map(|index| {
        prop::option::weighted(0.8, service(index)).prop_map(move |plan| (index, plan))
    });
    let change = prop::collection::vec(one, 1..3).prop_map(|pairs| pairs.into_iter().collect());
    prop::collection::vec(change, 1..6)
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

fn apply_ops(observed: &mut NftObserved, ops: &[NftOp]) {
    for op in ops {
        observed.apply(op).unwrap_or_else(|error| panic!("{error}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// The program is a function of the present plan alone (invariant 1), and what was not touched
    /// does not differ.
    #[test]
    fn step_by_step_equals_from_scratch(changes in changes(), role in prop::sample::select(&[Role::Backend, Role::Beside, Role::BeforeIpvs, Role::BesideEbpf][..])) {
        let mut desired = Desired::default();
        let scratch = |desired: &Desired| render_as(role, desired, &config(), &facts());
        let mut program: NftProgram = scratch(&desired);
        let mut observed = NftObserved::default();
        let first = diff(&program, &observed);
        apply_ops(&mut observed, &first);
        for change in &changes {
            let before = apply(&mut desired, change);
            let touched = update(&mut program, role, &desired, &config(), &facts(), &before);
            prop_assert_eq!(&program, &scratch(&desired));
            let ops = diff_touched(&program, &observed, &touched);
            apply_ops(&mut observed, &ops);
            prop_assert_eq!(diff(&program, &observed), vec![]);
        }
    }

    /// Several changes whose ops were not carried out between: what they touched adds up.
    #[test]
    fn what_was_touched_adds_up(changes in changes()) {
        let mut desired = Desired::default();
        let role = Role::Backend;
        let mut program = render_as(role, &desired, &config(), &facts());
        let mut observed = NftObserved::default();
        let first = diff(&program, &observed);
        apply_ops(&mut observed, &first);
        let mut touched = Touched::nothing();
        for change in &changes {
            let before = apply(&mut desired, change);
            touched.merge(update(&mut program, role, &desired, &config(), &facts(), &before));
        }
        let ops = diff_touched(&program, &observed, &touched);
        prop_assert!(ops.is_empty() || !touched.is_nothing());
        apply_ops(&mut observed, &ops);
        prop_assert_eq!(diff(&program, &observed), vec![]);
    }

    /// From one role to the other and back, both tables are as from scratch, and the nat chains
    /// never go: while one is there, the kernel translates established flows.
    #[test]
    fn another_backend_takes_over_and_gives_back(plan in service(0)) {
        let desired = Desired { network: None, services: [(key(0), plan)].into() };
        let mut observed = NftObserved::default();
        let roles = [Role::Beside, Role::BeforeIpvs, Role::BesideEbpf];
        for role in [Role::Backend].into_iter().chain(roles).chain([Role::Backend]) {
            let program = render_as(role, &desired, &config(), &facts());
            for op in diff(&program, &observed) {
                let first = observed.tables.is_empty();
                observed.apply(&op).unwrap_or_else(|error| panic!("{error}"));
                for table in observed.tables.values().filter(|_| !first) {
                    let nat = |name: &str| table.chains.get(name).is_some_and(|chain| chain.base.is_some());
                    prop_assert!(["nat-prerouting", "nat-output", "nat-postrouting"].into_iter().all(nat));
                }
            }
            prop_assert_eq!(diff(&program, &observed), vec![]);
        }
    }
}

/// A change of one Service costs the same however many others there are: that is its point.
#[test]
fn one_service_touches_its_own_and_what_it_shares() {
    let plan = |endpoints: &[u8]| {
        let frontend = Frontend::ClusterIp {
            address: [10, 96, 1, endpoints[0]].into(),
            protocol: Protocol::Tcp,
            port: 80,
        };
        let all = endpoints.iter().map(|&last| SocketAddr::from(([10, 244, 0, last], 80)));
        let plan = FrontendPlan::new(Backends::Endpoints(all.collect()));
        ServicePlan { frontends: [(frontend, plan)].into(), ..ServicePlan::default() }
    };
    let mut desired = Desired::default();
    for index in 1..40 {
        desired.services.insert(key(index), plan(&[index, 100]));
    }
    let mut program = render_as(Role::Backend, &desired, &config(), &facts());
    let before = desired.services.insert(key(7), plan(&[7, 101]));
    let before = [(key(7), before)].into();
    let touched = update(&mut program, Role::Backend, &desired, &config(), &facts(), &before);
    let Touched::Only(tables) = touched else { panic!("everything") };
    let tables: Vec<_> = tables.into_values().collect();
    let [table] = tables.as_slice() else { panic!("{tables:?}") };
    let elements: usize = table.elements.values().map(BTreeSet::len).sum();
    let frontends: usize = table.frontends.values().map(BTreeSet::len).sum();
    // Its class; its endpoints. What others share stays: chain, class and address set alone moved.
    assert_eq!((frontends, table.sets.len(), table.chains.len()), (1, 0, 0), "{table:?}");
    assert_eq!(elements, 2, "{table:?}");
}
