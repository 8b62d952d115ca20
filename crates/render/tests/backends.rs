//! What holds while one backend of Services takes over from another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use model::{ClusterConfig, NamespacedName, Protocol, ServiceBackend};
use plan::services::{Backends, Frontend, FrontendPlan, IpvsScheduler, Scheduling, ServicePlan};
use plan::{Desired, NodeFacts};
use render::ebpf::NodeOp;
use render::fake::FakeKernel;
use render::inventory::{Row, RowKind, damage, differences, inventory};
use render::iptables::IptablesOp;
use render::ipvs::{IpvsObserved, IpvsOp, ObservedDestination, ServerKey};
use render::nft::NftOp;
use render::{Kernel, Observed, Op, Program, diff, render, unsupported};

/// What `xtables` answers while another process writes.
const EAGAIN: i32 = 11;

fn desired(scheduling: Scheduling) -> Desired {
    let frontend = Frontend::ClusterIp {
        address: "10.96.0.20".parse().expect("an address"),
        protocol: Protocol::Udp,
        port: 80,
    };
    let endpoint: SocketAddr = "10.244.1.11:8080".parse().expect("an endpoint");
    let backends = Backends::Endpoints([endpoint].into());
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

/// where the backend that takes over cannot be written, eBPF goes on until it can.
#[test]
fn ebpf_goes_on_until_the_next_backend_is_there() {
    let ends = |kernel: &FakeKernel| {
        let is_end = |op: &&Op| {
            matches!(op, Op::Ebpf(NodeOp::DetachSockets | NodeOp::Drain | NodeOp::Remove))
        };
        kernel.applied.iter().filter(is_end).count()
    };
    for backend in [ServiceBackend::Iptables, ServiceBackend::Nftables] {
        let mut kernel = FakeKernel::default();
        bring(&mut kernel.state, &program(ServiceBackend::Ebpf));
        let program = program(backend);
        kernel.faults.insert(0, EAGAIN);
        let results = kernel.apply(&diff(&program, &kernel.state));
        assert!(results.iter().filter(|result| result.is_err()).count() > 1, "{backend:?}");
        assert_eq!(ends(&kernel), 0, "{backend:?}");
        let results = kernel.apply(&diff(&program, &kernel.state));
        assert!(results.iter().all(Result::is_ok), "{backend:?}: {results:?}");
        assert!(ends(&kernel) > 0, "{backend:?}");
    }
}

/// whom nftables lets through finds its server there, also while IPVS gives back. But no
/// address comes before the table that guards it (invariant 7).
#[test]
fn ipvs_comes_before_nftables_changes_and_goes_after() {
    let is_ipvs = |op: &Op| matches!(op, Op::Ipvs(_));
    let mut observed = Observed::default();
    bring(&mut observed, &program(ServiceBackend::Nftables));
    let mut ops = diff(&program(ServiceBackend::Ipvs), &observed);
    // Who begins a flow from then on begins it by IPVS.
    let Some(Op::Ipvs(IpvsOp::ForgetFlows(stale))) = ops.pop() else { panic!("{ops:?}") };
    assert!(stale.frontends.len() == 1 && stale.frontends.values().all(keeps_endpoint));
    let count = ops.iter().filter(|op| is_ipvs(op)).count();
    assert!(count > 5 && ops.iter().take(count).all(is_ipvs), "{ops:?}");
    bring(&mut observed, &program(ServiceBackend::Ipvs));
    assert_eq!(diff(&program(ServiceBackend::Ipvs), &observed), []);

    let ops = diff(&program(ServiceBackend::Nftables), &observed);
    let place = ops.iter().position(is_ipvs).expect("IPVS goes");
    assert!(place > 0 && ops.iter().skip(place).all(is_ipvs), "{ops:?}");
    bring(&mut observed, &program(ServiceBackend::Nftables));
    bring(&mut observed, &program(ServiceBackend::Nftables));
    assert_eq!(*observed.ipvs, IpvsObserved::default());

    let ops = diff(&program(ServiceBackend::Ipvs), &Observed::default());
    let first = ops.iter().position(|op| matches!(op, Op::Ipvs(IpvsOp::AddAddress(_))));
    let last = ops.iter().rposition(|op| matches!(op, Op::Nft(_)));
    assert!(first > last && last.is_some(), "{ops:?}");
}

/// What others did to the virtual servers is damage; that connections end is none.
#[test]
fn virtual_servers_have_a_row_for_people() {
    let wanted = program(ServiceBackend::Ipvs);
    let mut whole = Observed::default();
    bring(&mut whole, &wanted);
    let of_ipvs = |rows: Vec<Row>| -> Vec<(Option<String>, Option<String>)> {
        let rows = rows.into_iter().filter(|row| row.kind == RowKind::Ipvs);
        rows.map(|row| (row.wanted, row.present)).collect()
    };
    let planned = || Some("as planned".to_owned());
    assert_eq!(of_ipvs(inventory(&wanted, &whole)), [(planned(), planned())]);
    let mut broken = whole.clone();
    let server = broken.ipvs.servers.values_mut().next().expect("a server");
    server.destinations.clear();
    let needs = "needs: add endpoint 10.244.1.11:8080 to 10.96.0.20:80/UDP".to_owned();
    assert_eq!(of_ipvs(damage(&wanted, &whole, &broken)), [(planned(), Some(needs))]);

    let mut leaving = whole.clone();
    let (key, mut server) = leaving.ipvs.servers.pop_first().expect("a server");
    let waits = ObservedDestination { weight: 0, is_busy: true };
    server.destinations.values_mut().for_each(|one| *one = waits);
    leaving.ipvs.servers.insert(ServerKey { protocol: Protocol::Tcp, ..key }, server);
    let without = program(ServiceBackend::Nftables);
    let alone = Some("known connections alone".to_owned());
    assert_eq!(of_ipvs(inventory(&without, &leaving)), [(None, alone)]);
    assert_eq!(of_ipvs(differences(&without, &leaving)), []);
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
