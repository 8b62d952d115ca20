//! What holds while one backend of Services takes over from another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use model::{ClusterConfig, NamespacedName, Protocol, ServiceBackend};
use plan::services::{Backends, Frontend, FrontendPlan, IpvsScheduler, Scheduling, ServicePlan};
use plan::{Desired, NodeFacts};
use render::iptables::IptablesOp;
use render::nft::NftOp;
use render::{Observed, Op, Program, diff, render, unsupported};

fn desired(scheduling: Scheduling) -> Desired {
    let frontend = Frontend::ClusterIp {
        address: "10.96.0.20".parse().expect("an address"),
        protocol: Protocol::Udp,
        port: 80,
    };
    let endpoint: SocketAddr = "10.244.1.11:8080".parse().expect("an endpoint");
    let backends = Backends::Endpoints(BTreeSet::from([endpoint]));
    let plan = FrontendPlan { scheduling, ..FrontendPlan::new(backends) };
    let service = ServicePlan { frontends: [(frontend, plan)].into(), ..ServicePlan::default() };
    let mut desired = Desired::default();
    desired.services.insert(NamespacedName::new("default", "web"), service);
    desired
}

fn program(service_backend: ServiceBackend) -> Program {
    let config = ClusterConfig { service_backend, ..ClusterConfig::default() };
    render(&desired(Scheduling::Random), &config, &NodeFacts::default())
}

fn apply(observed: &mut Observed, op: &Op) {
    observed.apply(op).unwrap_or_else(|error| panic!("{error} at {op:?}"));
}

fn bring(observed: &mut Observed, program: &Program) {
    for op in diff(program, observed) {
        apply(observed, &op);
    }
}

/// Whether the endpoint stands in what a backend has: its address alone also does in guards.
fn has_service(observed: &Observed) -> [bool; 2] {
    let nft = format!("{:?}", observed.nft).contains("10.244.1.11");
    [nft, format!("{:?}", observed.iptables).contains("10.244.1.11")]
}

fn keeps_endpoint(allowed: &BTreeSet<SocketAddr>) -> bool {
    allowed.contains(&"10.244.1.11:8080".parse().expect("an endpoint"))
}

/// at each step at least one has the Service, in the end only the new one.
#[test]
fn the_new_backend_is_there_before_the_old_one_goes() {
    let mut observed = Observed::default();
    bring(&mut observed, &program(ServiceBackend::Nftables));
    assert_eq!(has_service(&observed), [true, false]);
    for (backend, in_the_end) in
        [(ServiceBackend::Iptables, [false, true]), (ServiceBackend::Nftables, [true, false])]
    {
        let program = program(backend);
        for op in diff(&program, &observed) {
            apply(&mut observed, &op);
            let flows = match &op {
                Op::Nft(NftOp::ForgetFlows(flows)) => Some(flows),
                Op::Iptables(IptablesOp::ForgetFlows(flows)) => Some(flows),
                _ => None,
            };
            let keeps = flows.is_none_or(|flows| flows.frontends.values().all(keeps_endpoint));
            assert!(keeps, "flows to the endpoint are forgotten on the way to {backend:?}: {op:?}");
            assert!(has_service(&observed).contains(&true), "a gap on the way to {backend:?}");
        }
        assert_eq!(has_service(&observed), in_the_end, "{backend:?}");
        assert_eq!(diff(&program, &observed), [], "nothing is left to do");
    }
    let chains = observed.nft.tables.values().flat_map(|table| table.chains.values());
    assert!(chains.count() > 0);
    bring(&mut observed, &Program::default());
    assert_eq!(has_service(&observed), [false, false]);
}

/// Invariant 13: the operator is told what a backend does in another way.
#[test]
fn what_a_backend_cannot_do_is_found() {
    use ServiceBackend::{Auto, Ebpf, Iptables, Ipvs, Nftables};
    let rows = [
        (Scheduling::Random, vec![]),
        (Scheduling::Weighted(BTreeMap::new()), vec![]),
        (Scheduling::LeastConnection, vec![Auto, Nftables, Iptables, Ebpf]),
        (Scheduling::Maglev, vec![Auto, Nftables, Iptables]),
        (
            Scheduling::Ipvs(IpvsScheduler::ShortestExpectedDelay, BTreeMap::new()),
            vec![Auto, Nftables, Iptables, Ebpf],
        ),
    ];
    for (scheduling, refusing) in rows {
        let desired = desired(scheduling.clone());
        let (key, plan) = desired.services.first_key_value().expect("a Service");
        for backend in [Auto, Nftables, Iptables, Ebpf, Ipvs] {
            let found = unsupported(backend, key, plan);
            assert_eq!(found.len(), usize::from(refusing.contains(&backend)), "{backend:?}");
            let asked = ["least-connection", "maglev", "sed"];
            assert!(found.iter().all(|finding| finding.about == "Service default/web"
                && asked.iter().any(|asked| finding.message.contains(asked))));
        }
    }
}
