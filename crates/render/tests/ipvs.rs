//! The IPVS half: which frontends it has, the order of changes, endpoints that go, and what the
//! kernel refuses. That it means what the API means is in testkit's `agreement` and `cases`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use model::{ClusterConfig, Family, NamespacedName, Protocol};
use plan::services::{
    Backends, Frontend, FrontendPlan, IpvsScheduler, RangeFrontend, RangeScope, Scheduling,
    ServicePlan,
};
use plan::{Desired, NodeFacts};
use render::ipvs::{
    IpvsObserved, IpvsOp, IpvsProgram, ObservedDestination, Scheduler, ServerKey, ServerSettings,
    Touched, diff, diff_touched, render, unsupported, update,
};

const NODE: &str = "172.30.0.2";
const VIP: &str = "10.96.0.20";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

fn key(text: &str) -> ServerKey {
    ServerKey { protocol: Protocol::Tcp, address: at(text) }
}

fn facts() -> NodeFacts {
    NodeFacts { addresses: vec![ip(NODE), ip("fd00:30::2")], ..NodeFacts::default() }
}

fn to(endpoints: &[&str]) -> FrontendPlan {
    FrontendPlan::new(Backends::Endpoints(endpoints.iter().map(|text| at(text)).collect()))
}

fn cluster_ip(port: u16) -> Frontend {
    Frontend::ClusterIp { address: ip(VIP), protocol: Protocol::Tcp, port }
}

fn node_port(port: u16) -> Frontend {
    Frontend::NodePort { family: Family::V4, protocol: Protocol::Tcp, port }
}

fn external(address: &str, port: u16) -> Frontend {
    Frontend::External { address: ip(address), protocol: Protocol::Tcp, port }
}

fn plan(frontends: Vec<(Frontend, FrontendPlan)>) -> ServicePlan {
    ServicePlan { frontends: frontends.into_iter().collect(), ..ServicePlan::default() }
}

fn program(services: Vec<(&str, ServicePlan)>) -> IpvsProgram {
    let named = services.into_iter().map(|(name, plan)| (NamespacedName::new("shop", name), plan));
    let desired = Desired { services: named.collect(), ..Desired::default() };
    render(&desired, &ClusterConfig::default(), &facts())
}

fn web(endpoints: &[&str]) -> IpvsProgram {
    program(vec![("web", plan(vec![(cluster_ip(80), to(endpoints))]))])
}

/// What waits for others to go comes with the ops of the next reading.
fn bring(observed: &mut IpvsObserved, program: &IpvsProgram) -> Vec<IpvsOp> {
    let mut all = Vec::new();
    for _ in 0..3 {
        let ops = diff(program, observed);
        for op in &ops {
            observed.apply(op).unwrap_or_else(|error| panic!("{error}"));
        }
        all.extend(ops);
        observed.retiring.clear();
    }
    assert_eq!(diff(program, observed), [], "it comes to an end");
    all
}

#[test]
fn a_service_has_a_server_at_each_place_that_ipvs_can_have() {
    let local = FrontendPlan { outside: Some(Backends::Drop), ..to(&["10.244.0.2:8080"]) };
    let guarded = FrontendPlan { source_ranges: Some(BTreeSet::new()), ..to(&["10.244.0.2:8080"]) };
    let rows = [
        (cluster_ip(80), to(&["10.244.0.2:8080"]), vec!["10.96.0.20:80"]),
        (node_port(30_080), to(&["10.244.0.2:8080"]), vec!["172.30.0.2:30080"]),
        (cluster_ip(80), FrontendPlan::new(Backends::Reject), vec![]),
        (node_port(30_080), FrontendPlan::new(Backends::Drop), vec![]),
        (node_port(30_080), local, vec![]),
        (external("198.51.100.1", 80), to(&["10.244.0.2:8080"]), vec![]),
        (external("198.51.100.1", 80), guarded, vec![]),
    ];
    for (frontend, chosen, expected) in rows {
        let program = program(vec![("web", plan(vec![(frontend, chosen)]))]);
        let servers: Vec<ServerKey> = program.servers.keys().copied().collect();
        assert_eq!(servers, expected.into_iter().map(key).collect::<Vec<_>>(), "{frontend:?}");
        let addresses: Vec<IpAddr> = program.addresses.iter().copied().collect();
        let is_cluster_ip = matches!(frontend, Frontend::ClusterIp { .. });
        let held = if is_cluster_ip { vec![ip(VIP)] } else { vec![] };
        assert_eq!(addresses, held, "node addresses are the node's own: {frontend:?}");
    }
}

#[test]
fn schedulers_are_those_that_are_asked_for() {
    let weights: BTreeMap<SocketAddr, u16> = [(at("10.244.0.2:8080"), 3)].into();
    for (scheduling, name, weight) in [
        (Scheduling::Random, "rr", 1),
        (Scheduling::Weighted(weights), "wrr", 3),
        (Scheduling::LeastConnection, "lc", 1),
        (Scheduling::Maglev, "mh", 1),
    ] {
        let chosen = FrontendPlan { scheduling, ..to(&["10.244.0.2:8080"]) };
        let program = program(vec![("web", plan(vec![(cluster_ip(80), chosen)]))]);
        let server = &program.servers[&key("10.96.0.20:80")];
        assert_eq!(server.settings.scheduler.name(), name);
        assert_eq!(server.destinations[&at("10.244.0.2:8080")], weight, "{name}");
        assert_eq!(Scheduler::from_name(name), server.settings.scheduler);
    }
    for scheduler in IpvsScheduler::ALL {
        let weights = [(at("10.244.0.2:8080"), 7)].into();
        let scheduling = Scheduling::Ipvs(scheduler, weights);
        let chosen = FrontendPlan { scheduling, ..to(&["10.244.0.2:8080", "10.244.0.3:8080"]) };
        let program = program(vec![("web", plan(vec![(cluster_ip(80), chosen)]))]);
        let server = &program.servers[&key("10.96.0.20:80")];
        assert_eq!(server.settings.scheduler.name(), scheduler.name());
        let weights: Vec<u32> = server.destinations.values().copied().collect();
        assert_eq!(weights, [7, 1], "{scheduler}");
    }
    assert_eq!(Scheduler::from_name("new"), Scheduler::Other("new".into()));
}

/// An external address of the node wins over a node port, also where nftables refuses there.
#[test]
fn a_frontend_has_its_first_claimant() {
    let (one, two) = (to(&["10.244.0.2:8080"]), to(&["10.244.0.3:8080"]));
    let refused = FrontendPlan::new(Backends::Reject);
    let rows = [
        (node_port(30_080), one.clone(), node_port(30_080), two.clone(), Some("10.244.0.2:8080")),
        (node_port(30_080), one.clone(), external(NODE, 30_080), two.clone(), None),
        (node_port(30_080), one, external(NODE, 30_080), refused, None),
    ];
    for (first, first_plan, second, second_plan, endpoint) in rows {
        let program = program(vec![
            ("a", plan(vec![(first, first_plan)])),
            ("b", plan(vec![(second, second_plan)])),
        ]);
        let server = program.servers.get(&key("172.30.0.2:30080"));
        let has = server.and_then(|server| server.destinations.keys().next().copied());
        assert_eq!(has, endpoint.map(at), "{second:?}");
    }
}

/// Servers before the addresses that lead to them, on the way in and out: connections that go on
/// need both (invariant 5).
#[test]
fn an_address_comes_after_its_server_and_outlives_it() {
    let mut observed = IpvsObserved::default();
    let place = |ops: &[IpvsOp], wanted: fn(&IpvsOp) -> bool| ops.iter().position(wanted);
    let up = bring(&mut observed, &web(&["10.244.0.2:8080"]));
    let down = bring(&mut observed, &IpvsProgram::default());
    assert!(matches!(up.first(), Some(IpvsOp::CreateLink)), "{up:?}");
    assert!(matches!(up.last(), Some(IpvsOp::AddAddress(_))), "{up:?}");
    assert!(matches!(down.as_slice(), [IpvsOp::RetireServer(_), IpvsOp::DeleteLink]), "{down:?}");
    assert!(observed.servers.is_empty() && observed.link.is_none());

    bring(&mut observed, &web(&["10.244.0.2:8080"]));
    let less = bring(&mut observed, &program(vec![]));
    let server = place(&less, |op| matches!(op, IpvsOp::RetireServer(_)));
    let address = place(&less, |op| matches!(op, IpvsOp::DeleteAddress(_)));
    assert!(server.is_some() && server < address, "{less:?}");
}

/// A server that goes, with its address and the link, stays while an endpoint has connections.
#[test]
fn a_server_that_goes_waits_for_its_connections() {
    let (busy, idle) = (at("10.244.0.2:8080"), at("10.244.0.3:8080"));
    let vip = key("10.96.0.20:80");
    let nobody = program(vec![]);
    let mut observed = IpvsObserved::default();
    bring(&mut observed, &web(&["10.244.0.2:8080", "10.244.0.3:8080"]));
    occupy(&mut observed, vip, busy, true);
    for program in [nobody.clone(), IpvsProgram::default()] {
        let mut observed = observed.clone();
        assert_eq!(bring(&mut observed, &program), [IpvsOp::RetireServer(vip)]);
        let server = &observed.servers[&vip];
        assert!(!server.destinations.contains_key(&idle), "{server:?}");
        assert_eq!(server.destinations[&busy], ObservedDestination { weight: 0, is_busy: true });
        assert!(observed.link.as_ref().is_some_and(|link| link.contains(&ip(VIP))));
        occupy(&mut observed, vip, busy, false);
        let last = bring(&mut observed, &program);
        assert_eq!(last.len(), 2, "{last:?}");
        assert!(observed.servers.is_empty());
        assert!(observed.link.is_none_or(|link| program.is_on && link.is_empty()));
    }
    // It comes back with its connections.
    bring(&mut observed, &nobody);
    let back = bring(&mut observed, &web(&["10.244.0.2:8080"]));
    assert_eq!(back, [IpvsOp::ChangeDestination(vip, busy, 1)]);
}

/// What else listens at a node port's place gets the clients who come after the Service has gone,
/// also while IPVS still has connections there. At a ClusterIP nobody else listens.
#[test]
fn a_node_port_that_goes_is_the_nodes_own_while_it_waits() {
    let endpoint = at("10.244.0.2:8080");
    let web = plan(vec![(node_port(30_080), to(&["10.244.0.2:8080"]))]);
    let (web, nobody) = (program(vec![("web", web)]), program(vec![]));
    let port = key(&format!("{NODE}:30080"));
    let mut observed = IpvsObserved::default();
    bring(&mut observed, &web);
    occupy(&mut observed, port, endpoint, true);
    assert_eq!(bring(&mut observed, &nobody), [IpvsOp::RetireServer(port)]);
    let weights = |observed: &IpvsObserved| -> Vec<(SocketAddr, u32)> {
        let destinations = observed.servers[&port].destinations.iter();
        destinations.map(|(address, one)| (*address, one.weight)).collect()
    };
    assert_eq!(weights(&observed), [(endpoint, 0), (port.address, 1)]);
    // Somebody takes it away.
    let mut damaged = observed.clone();
    damaged.servers.get_mut(&port).expect("it waits").destinations.remove(&port.address);
    assert_eq!(bring(&mut damaged, &nobody), [IpvsOp::RetireServer(port)]);
    assert_eq!(damaged, observed);
    // The Service comes back, with its clients alone.
    let mut back = observed.clone();
    let expected = [
        IpvsOp::ChangeDestination(port, endpoint, 1),
        IpvsOp::RetireDestination(port, port.address),
    ];
    assert_eq!(bring(&mut back, &web), expected);
    assert_eq!(weights(&back), [(endpoint, 1)]);
    // Its own clients keep nothing.
    occupy(&mut observed, port, endpoint, false);
    occupy(&mut observed, port, port.address, true);
    assert_eq!(bring(&mut observed, &nobody), [IpvsOp::RetireServer(port)]);
    assert!(observed.servers.is_empty());
}

fn occupy(observed: &mut IpvsObserved, server: ServerKey, endpoint: SocketAddr, is_busy: bool) {
    let destinations = &mut observed.servers.get_mut(&server).expect("a server").destinations;
    destinations.get_mut(&endpoint).expect("an endpoint").is_busy = is_busy;
}

/// Step by step as from scratch, whoever comes and goes where several claim a place.
#[test]
fn a_program_that_is_kept_up_to_date_is_the_one_from_scratch() {
    let (one, two) = (to(&["10.244.0.2:8080"]), to(&["10.244.0.3:8080", "10.244.0.4:8080"]));
    let refused = FrontendPlan::new(Backends::Reject);
    let variants = [
        None,
        Some(plan(vec![(cluster_ip(80), one.clone()), (node_port(30_080), one.clone())])),
        Some(plan(vec![(cluster_ip(80), two.clone()), (cluster_ip(81), refused.clone())])),
        Some(plan(vec![(node_port(30_080), two)])),
        Some(plan(vec![(external(NODE, 30_080), one), (cluster_ip(81), refused)])),
    ];
    let config = ClusterConfig::default();
    let mut desired = Desired::default();
    let mut kept = render(&desired, &config, &facts());
    let mut observed = IpvsObserved::default();
    bring(&mut observed, &kept);
    // Every variant of one Service beside every variant of the other, in both directions.
    for step in 0..variants.len() * variants.len() * 2 {
        let name = NamespacedName::new("shop", ["a", "b"][step % 2]);
        let number = if step % 2 == 0 { step / 2 } else { step / 10 + step };
        let former = match variants[number % variants.len()].clone() {
            Some(plan) => desired.services.insert(name.clone(), plan),
            None => desired.services.remove(&name),
        };
        let before = [(name, former)].into();
        let touched = update(&mut kept, &desired, &config, &facts(), &before);
        assert_eq!(kept, render(&desired, &config, &facts()), "step {step}");
        let Touched::Only(keys) = &touched else { panic!("{touched:?}") };
        assert!(keys.len() <= 8, "{keys:?}");
        assert_eq!(diff_touched(&kept, &observed, &touched), diff(&kept, &observed), "{step}");
        bring(&mut observed, &kept);
    }
}

#[test]
fn an_endpoint_that_goes_waits_for_its_connections() {
    let (old, new) = (at("10.244.0.2:8080"), at("10.244.0.3:8080"));
    let vip = key("10.96.0.20:80");
    let mut observed = IpvsObserved::default();
    bring(&mut observed, &web(&["10.244.0.2:8080"]));
    occupy(&mut observed, vip, old, true);
    let next = web(&["10.244.0.3:8080"]);
    let expected = [IpvsOp::AddDestination(vip, new, 1), IpvsOp::RetireDestination(vip, old)];
    assert_eq!(bring(&mut observed, &next), expected);
    let waiting = observed.servers[&vip].destinations[&old];
    assert_eq!(waiting, ObservedDestination { weight: 0, is_busy: true });
    assert_eq!(diff(&next, &observed), [], "nothing to do while it waits");
    // It comes back with its connections.
    let both = web(&["10.244.0.2:8080", "10.244.0.3:8080"]);
    assert_eq!(diff(&both, &observed), [IpvsOp::ChangeDestination(vip, old, 1)]);
    occupy(&mut observed, vip, old, false);
    assert_eq!(bring(&mut observed, &next), [IpvsOp::RetireDestination(vip, old)]);
    assert!(!observed.servers[&vip].destinations.contains_key(&old));
}

/// S-07: that a server has no connections is not believed, but read: until then its address stays,
/// and the link. A client of UDP is waited for by nobody.
#[test]
fn an_address_stays_until_the_kernel_says_that_nobody_has_connections_there() {
    for (protocol, is_waiting) in
        [(Protocol::Tcp, true), (Protocol::Sctp, true), (Protocol::Udp, false)]
    {
        let frontend = Frontend::ClusterIp { address: ip(VIP), protocol, port: 80 };
        let served = program(vec![("web", plan(vec![(frontend, to(&["10.244.0.2:8080"]))]))]);
        for gone in [program(vec![]), IpvsProgram::default()] {
            let mut observed = IpvsObserved::default();
            bring(&mut observed, &served);
            for op in diff(&gone, &observed) {
                observed.apply(&op).unwrap_or_else(|error| panic!("{error}"));
            }
            assert_eq!(diff(&gone, &observed).is_empty(), is_waiting, "{protocol}");
            observed.retiring.clear();
            let last = diff(&gone, &observed);
            assert!(matches!(last.as_slice(), [IpvsOp::DeleteAddress(_) | IpvsOp::DeleteLink]));
        }
    }
}

/// S-10: what was the node's own before a server was there, what leads to an endpoint that is gone,
/// and all when the server goes; after the servers are as they shall be. TCP notices itself.
#[test]
fn datagrams_from_one_port_are_led_anew_with_each_change() {
    let served = |protocol, endpoints: &[&str]| {
        let frontend = Frontend::NodePort { family: Family::V4, protocol, port: 30_053 };
        program(vec![("dns", plan(vec![(frontend, to(endpoints))]))])
    };
    let [one, other] = ["10.244.0.2:8080", "10.244.0.3:8080"];
    let steps: [(&[&str], bool); 5] = [
        (&[one], true),
        (&[one, other], false),
        (&[other], true),
        (&[], true),
        (&[one, other], true),
    ];
    for protocol in [Protocol::Udp, Protocol::Tcp, Protocol::Sctp] {
        let mut observed = IpvsObserved::default();
        for (endpoints, is_stale) in steps {
            let wanted = match endpoints {
                [] => program(vec![]),
                _ => served(protocol, endpoints),
            };
            let mut ops = bring(&mut observed, &wanted);
            let is_last = |op: &IpvsOp| matches!(op, IpvsOp::ForgetFlows(_));
            assert_eq!(ops.iter().any(is_last), is_stale && protocol == Protocol::Udp, "{ops:?}");
            if let Some(IpvsOp::ForgetFlows(stale)) = ops.pop_if(|op| is_last(op)) {
                let allowed = endpoints.iter().map(|text| at(text)).collect();
                assert_eq!(stale.frontends, [(at("172.30.0.2:30053"), allowed)].into());
                assert!(!ops.iter().any(is_last), "{ops:?}");
            }
        }
    }
}

/// A client that goes on sending from one port would stay with a dead endpoint.
#[test]
fn an_endpoint_of_udp_waits_for_nobody() {
    let busy = ObservedDestination { weight: 0, is_busy: true };
    assert!(busy.is_waiting(Protocol::Tcp) && busy.is_waiting(Protocol::Sctp));
    assert!(!busy.is_waiting(Protocol::Udp));
}

#[test]
fn the_model_refuses_what_linux_refuses() {
    let vip = key("10.96.0.20:80");
    let settings =
        ServerSettings { scheduler: Scheduler::from_name("rr"), affinity_timeout_s: None };
    let end = at("10.244.0.9:1");
    let mut observed = IpvsObserved::default();
    let refused = |observed: &mut IpvsObserved, op: IpvsOp| {
        let before = observed.clone();
        let errno = observed.apply(&op).map_err(|error| error.errno);
        assert_eq!(*observed, before, "{op:?} changed something");
        errno.expect_err("a refusal")
    };
    assert_eq!(refused(&mut observed, IpvsOp::DeleteLink), 19);
    assert_eq!(refused(&mut observed, IpvsOp::AddAddress(ip(VIP))), 19);
    assert_eq!(refused(&mut observed, IpvsOp::RetireServer(vip)), 3);
    assert_eq!(refused(&mut observed, IpvsOp::ChangeServer(vip, settings.clone())), 3);
    assert_eq!(refused(&mut observed, IpvsOp::AddDestination(vip, end, 1)), 3);
    bring(&mut observed, &web(&["10.244.0.2:8080"]));
    assert_eq!(refused(&mut observed, IpvsOp::CreateLink), 17);
    assert_eq!(refused(&mut observed, IpvsOp::AddAddress(ip(VIP))), 17);
    assert_eq!(refused(&mut observed, IpvsOp::DeleteAddress(ip(NODE))), 99);
    assert_eq!(refused(&mut observed, IpvsOp::AddServer(vip, settings)), 17);
    let there = at("10.244.0.2:8080");
    assert_eq!(refused(&mut observed, IpvsOp::AddDestination(vip, there, 1)), 17);
    assert_eq!(refused(&mut observed, IpvsOp::ChangeDestination(vip, end, 1)), 2);
    assert_eq!(refused(&mut observed, IpvsOp::RetireDestination(vip, end)), 2);
}

#[test]
fn a_scheduler_is_refused_only_where_nftables_chooses() {
    let wish = |scheduling: Scheduling| FrontendPlan { scheduling, ..to(&["10.244.0.2:8080"]) };
    let local = |scheduling| FrontendPlan { outside: Some(Backends::Drop), ..wish(scheduling) };
    let vip = external("198.51.100.1", 80);
    let rows = [
        (cluster_ip(80), wish(Scheduling::LeastConnection), false),
        (node_port(30_080), wish(Scheduling::Maglev), false),
        (node_port(30_080), local(Scheduling::LeastConnection), true),
        (node_port(30_080), local(Scheduling::Random), false),
        (vip, wish(Scheduling::Maglev), true),
    ];
    let name = NamespacedName::new("shop", "web");
    for (frontend, chosen, refused) in rows {
        let found = unsupported(&name, &plan(vec![(frontend, chosen)]));
        assert_eq!(!found.is_empty(), refused, "{frontend:?}");
    }
    let range = RangeFrontend {
        scope: RangeScope::ClusterIp,
        address: ip(VIP),
        protocol: Protocol::Tcp,
        first: 1,
        last: 9,
    };
    let ranges = [(range, wish(Scheduling::LeastConnection))].into();
    assert!(!unsupported(&name, &ServicePlan { ranges, ..ServicePlan::default() }).is_empty());
}
