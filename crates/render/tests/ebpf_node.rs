//! When maps and programs of Services in eBPF come and go.

use std::net::SocketAddr;

use model::{ClusterConfig, NamespacedName, Protocol, ServiceAcceleration, ServiceBackend};
use plan::services::{Backends, Frontend, FrontendPlan, ServicePlan};
use plan::{Desired, NodeFacts};
use render::ebpf::NodeOp;
use render::ebpf::node::{LinkPrograms, Sockets, UplinkProgram};
use render::inventory::{RowKind, damage, differences};
use render::{Observed, Op, Program, diff, render};

fn program(service_backend: ServiceBackend) -> Program {
    let frontend = Frontend::ClusterIp {
        address: "10.96.0.20".parse().expect("an address"),
        protocol: Protocol::Tcp,
        port: 80,
    };
    let endpoint: SocketAddr = "10.244.1.11:8080".parse().expect("an endpoint");
    let plan = FrontendPlan::new(Backends::Endpoints([endpoint].into()));
    let service = ServicePlan { frontends: [(frontend, plan)].into(), ..ServicePlan::default() };
    let mut desired = Desired::default();
    desired.services.insert(NamespacedName::new("default", "web"), service);
    let config = ClusterConfig { service_backend, ..ClusterConfig::default() };
    let facts = NodeFacts { uplink: "eth0".into(), ..NodeFacts::default() };
    render(&desired, &config, &facts)
}

/// Carries out what is to do, and answers it by name.
fn bring(observed: &mut Observed, program: &Program) -> Vec<&'static str> {
    let ops = diff(program, observed);
    for op in &ops {
        observed.apply(op).unwrap_or_else(|error| panic!("{error} at {op:?}"));
    }
    ops.iter().map(name).collect()
}

fn name(op: &Op) -> &'static str {
    match op {
        Op::Ebpf(NodeOp::Make(_)) => "make",
        Op::Ebpf(NodeOp::Maps(_)) => "maps",
        Op::Ebpf(NodeOp::AttachLinks(_)) => "attach-links",
        Op::Ebpf(NodeOp::AttachSockets) => "attach-sockets",
        Op::Ebpf(NodeOp::DetachSockets) => "detach-sockets",
        Op::Ebpf(NodeOp::Drain) => "drain",
        Op::Ebpf(NodeOp::Remove) => "remove",
        Op::Nft(_) => "nft",
        Op::Net(_) | Op::Iptables(_) | Op::Ipvs(_) => "other",
    }
}

fn served() -> Observed {
    let mut observed = Observed::default();
    bring(&mut observed, &program(ServiceBackend::Ebpf));
    observed
}

/// maps, links, sockets, and only then the former backend goes; on the way back the other
/// one is there before new flows are left to it, and known flows have their time.
#[test]
fn a_backend_is_whole_before_the_other_goes_and_known_flows_have_their_time() {
    let mut observed = Observed::default();
    bring(&mut observed, &program(ServiceBackend::Nftables));
    let ebpf = program(ServiceBackend::Ebpf);
    let mut done = bring(&mut observed, &ebpf);
    done.dedup();
    assert_eq!(done, ["make", "maps", "attach-links", "attach-sockets", "nft"]);
    assert_eq!(diff(&ebpf, &observed), []);

    let nftables = program(ServiceBackend::Nftables);
    let mut done = bring(&mut observed, &nftables);
    done.dedup();
    assert_eq!(done, ["nft", "detach-sockets", "drain"]);
    assert_eq!(diff(&nftables, &observed), [], "a flow goes on");
    let packets = observed.ebpf.packets.as_mut().expect("programs");
    packets.drained = true;
    assert_eq!(bring(&mut observed, &nftables), ["remove"]);
    assert_eq!(observed.ebpf, Default::default());
}

/// While flows drain, the backend may come back: it takes new ones again, with the maps of now.
#[test]
fn it_comes_back_while_it_drains() {
    let mut observed = served();
    bring(&mut observed, &program(ServiceBackend::Nftables));
    let mut done = bring(&mut observed, &program(ServiceBackend::Ebpf));
    done.dedup();
    assert_eq!(done, ["attach-links", "attach-sockets", "nft"]);
    assert_eq!(observed.ebpf, served().ebpf);
}

/// maps of other sizes are filled before programs use them.
#[test]
fn maps_of_other_sizes_take_over() {
    let mut observed = served();
    let mut program = program(ServiceBackend::Ebpf);
    let ebpf = program.ebpf.as_mut().expect("a program");
    ebpf.sizes.services = 1000;
    let mut done = bring(&mut observed, &program);
    done.dedup();
    assert_eq!(done, ["make", "maps", "attach-links", "attach-sockets"]);
    assert_eq!(observed.ebpf.maps.as_ref().map(|maps| maps.sizes.services), Some(1000));
    assert_eq!(diff(&program, &observed), []);
}

/// what others broke is put back and told; links that come are only brought.
#[test]
fn what_is_broken_is_mended_and_what_is_new_is_no_damage() {
    type Break = fn(&mut Observed);
    let rows: [(&str, Break, &[&str], usize); 7] = [
        ("wiped maps", |it| it.ebpf.maps = Some(Default::default()), &["maps"], 1),
        ("detached sockets", |it| it.ebpf.sockets = Sockets::Partly, &["attach-sockets"], 1),
        ("no programs", |it| it.ebpf.packets = None, &["attach-links"], 1),
        ("a damaged link", |it| link(it, LinkPrograms::Damaged), &["attach-links"], 1),
        ("a new link", |it| link(it, LinkPrograms::New), &["attach-links"], 0),
        ("a link that went", |it| link(it, LinkPrograms::Gone), &["attach-links"], 0),
        ("a restart", |it| packets(it).place = None, &["attach-links"], 0),
    ];
    let program = program(ServiceBackend::Ebpf);
    for (what, break_it, expected, told) in rows {
        let whole = served();
        let mut broken = whole.clone();
        break_it(&mut broken);
        let damages = damage(&program, &whole, &broken);
        assert_eq!(damages.len(), told, "{what}: {damages:?}");
        assert!(damages.iter().all(|row| row.kind == RowKind::Ebpf), "{damages:?}");
        let mut done = bring(&mut broken, &program);
        done.dedup();
        assert_eq!(done, expected, "{what}");
        assert_eq!(diff(&program, &broken), [], "{what}");
        assert_eq!(differences(&program, &broken), [], "{what}");
    }
}

/// Issue 4: with an acceleration the uplink gets a program before the stack, without it loses it; that
/// a device cannot is a fault only where it was asked for without condition, and told in any case.
#[test]
fn the_uplink_gets_what_its_device_can() {
    use ServiceAcceleration::{BestEffort, Disabled, Native};
    let refused = UplinkProgram::Refused("no such hook".into());
    let rows = [
        (Disabled, UplinkProgram::Absent, true, None),
        (Disabled, UplinkProgram::Attached, false, Some("attached")),
        (Native, UplinkProgram::Attached, true, Some("attached")),
        (Native, UplinkProgram::Absent, false, None),
        (Native, refused.clone(), false, Some("refused: no such hook")),
        (BestEffort, UplinkProgram::Attached, true, Some("attached")),
        (BestEffort, UplinkProgram::Absent, false, None),
        (BestEffort, refused, true, Some("refused: no such hook")),
    ];
    for (acceleration, uplink, is_whole, present) in rows {
        let mut program = program(ServiceBackend::Ebpf);
        program.ebpf.as_mut().expect("a program").place.acceleration = acceleration;
        let mut observed = Observed::default();
        bring(&mut observed, &program);
        assert_eq!(diff(&program, &observed), []);
        packets(&mut observed).uplink = uplink;
        let expected: &[&str] = if is_whole { &[] } else { &["attach-links"] };
        let rows = render::inventory::inventory(&program, &observed);
        let row = rows.iter().find(|row| row.name == "XDP at the uplink");
        assert_eq!(row.and_then(|row| row.present.as_deref()), present, "{acceleration}");
        assert!(row.is_none_or(|row| row.different != is_whole), "{acceleration}");
        assert_eq!(bring(&mut observed, &program), expected, "{acceleration}");
    }
}

fn packets(observed: &mut Observed) -> &mut render::ebpf::node::PacketsObserved {
    observed.ebpf.packets.as_mut().expect("programs")
}

fn link(observed: &mut Observed, state: LinkPrograms) {
    packets(observed).links.insert("eth0".into(), state);
}

/// Invariant 5: programs need maps.
#[test]
fn nothing_is_attached_without_maps() {
    let place = program(ServiceBackend::Ebpf).ebpf.expect("a program").place;
    for op in [NodeOp::AttachSockets, NodeOp::AttachLinks(place), NodeOp::Drain] {
        let refused = Observed::default().apply(&Op::Ebpf(op.clone()));
        assert_eq!(refused.map_err(|error| error.errno), Err(2), "{op:?}");
    }
}
