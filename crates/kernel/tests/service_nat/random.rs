//! Random packets in random clusters through the loaded programs: what the API means for them,
//! which `testkit::agreement` holds all tracers to (invariant 13).

use std::net::SocketAddr;

use ebpf_abi::flows::NAT_MARK;
use kernel::bpf::{Passage, Program};
use model::packet::{Entry, SourceTranslation, Verdict};
use model::{LoadBalancerMode, Protocol, World};
use plan::services::Scheduling;
use testkit::agreement::is_of_service;
use testkit::random::{self, Choices};
use testkit::verdict;

use crate::lab::Mode;
use crate::scene::Scene;
use crate::wire::{SYN, read, simple};

/// Clusters, one a seed.
const SEEDS: u64 = 40;
/// Packets of each.
const PACKETS: usize = 50;
/// Bytes that decide a cluster, what does not answer there, and one packet.
const BYTES: [usize; 3] = [600, 100, 16];
/// No port is used twice: flows outlive their cluster.
const FIRST_PORT: u16 = 1024;
/// Packets of all seeds that shall meet a Service, and that shall be stopped: what meets nothing
/// shows nothing. How many are handed on to the node of their endpoint is a matter of the endpoints
/// that the programs choose.
const MET_MIN: [usize; 2] = [200, 40];

/// What a program did with the first packet of a flow.
#[derive(Debug, PartialEq, Eq)]
enum Done {
    Untouched,
    Led { to: SocketAddr, masqueraded: bool, handed_on: bool },
    Rejected,
    Dropped,
}

#[test]
fn loaded_programs_do_what_the_api_means() {
    let mut scene = Scene::new(Mode::Routed);
    let mut place = |name: &str| {
        let link = scene.node.netlink.require_link(name).expect("a link");
        (link.index, link.mac.expect("a MAC address").0)
    };
    let [pod, uplink, tunnel] = ["veth11", "eth0", "flatnet.1"].map(&mut place);
    scene.node.silence();
    let (mut port, mut met) = (FIRST_PORT, [0, 0, 0]);
    for seed in 0..SEEDS {
        let [cluster, silent, packets] = BYTES;
        let bytes = random::bytes(seed, cluster);
        let mut choices = Choices::new(&bytes);
        let mut config = random::config(&mut choices);
        let modes = LoadBalancerMode::ALL.into_iter().cycle();
        config.load_balancer_mode = modes.zip(0..=seed).last().expect("a mode").0;
        let facts = random::facts(&mut choices, &config);
        let mut world = World::default();
        let nodes = random::nodes(&mut choices, &config).into_iter();
        nodes.chain(random::services(&mut choices, &config)).for_each(|it| drop(world.set(it)));
        let silent = random::bytes(seed.rotate_left(32), silent);
        world.set_unreachable(random::unreachable(&mut Choices::new(&silent), &world));
        let (mut desired, _) = plan::node(&world, &config, &facts);
        for service in desired.services.values_mut() {
            let plans = service.frontends.values_mut().chain(service.ranges.values_mut());
            // One consistent hash would fill the small maps of the scene.
            plans
                .filter(|plan| plan.scheduling == Scheduling::Maglev)
                .for_each(|plan| plan.scheduling = Scheduling::Random);
        }
        scene.program = render::ebpf::render(&desired, &config, &facts);
        scene.write();
        for bytes in random::bytes(seed ^ u64::MAX, packets * PACKETS).chunks(packets) {
            let mut packet = random::packet(&mut Choices::new(bytes), &world, &config, &facts);
            let link = match packet.entry {
                Entry::Pod => pod,
                Entry::Uplink => uplink,
                Entry::Overlay => tunnel,
                // The programs at the socket see these, or those at the link of the endpoint.
                Entry::Local => continue,
            };
            packet.source.set_port(port);
            port += 1;
            let meant = verdict::by_oracle(&world, &config, &facts, &packet);
            let is_ours = is_of_service(&meant.rule) && packet.protocol != Protocol::Sctp;
            let done = run(&scene, link, tunnel.0, &packet);
            let agrees =
                if is_ours { agrees(&done, &meant.verdict) } else { done == Done::Untouched };
            assert!(
                agrees,
                "seed {seed}: {packet:?}: {} by {:?}, but {done:?}",
                meant.verdict, meant.rule
            );
            met[0] += usize::from(is_ours);
            met[1] += usize::from(matches!(done, Done::Rejected | Done::Dropped));
            met[2] += usize::from(matches!(done, Done::Led { handed_on: true, .. }));
        }
    }
    let [ours, stopped, handed_on] = met;
    let all = port - FIRST_PORT;
    println!("{all} packets, {ours} by Services, {stopped} stopped, {handed_on} handed on");
    assert!(met.iter().zip(MET_MIN).all(|(met, least)| *met >= least), "{met:?} are too few");
}

fn run(scene: &Scene, link: (u32, [u8; 6]), tunnel: u32, packet: &model::packet::Packet) -> Done {
    let protocol = packet.protocol.number();
    let frame = simple(link.1, protocol, packet.source, packet.destination, SYN);
    let passage = Passage { link_index: link.0, came_by: link.0, mark: 0 };
    let run = || scene.nat.run(Program::ServiceEnter, passage, &frame).expect("a frame");
    let left = scene.node.run(run);
    match left.verdict {
        -1 if left.frame == frame => Done::Untouched,
        -1 => {
            let marked = left.mark & NAT_MARK != 0;
            let passage = Passage { link_index: tunnel, came_by: link.0, mark: left.mark };
            let leave = || scene.nat.run(Program::ServiceLeave, passage, &left.frame);
            // Within another packet, from the node: its own source is what it was.
            let handed_on =
                marked && scene.node.run(leave).expect("a frame").frame.len() > left.frame.len();
            let to = read(&left.frame).destination;
            Done::Led { to, masqueraded: marked && !handed_on, handed_on }
        }
        2 => Done::Dropped,
        7 => Done::Rejected,
        other => panic!("{other} for {packet:?}"),
    }
}

fn agrees(done: &Done, meant: &Verdict) -> bool {
    match (done, meant) {
        (Done::Rejected, Verdict::Reject) | (Done::Dropped, Verdict::Drop) => true,
        (Done::Led { to, masqueraded, .. }, Verdict::Pass { destinations, source, .. }) => {
            let shall = match source {
                SourceTranslation::Kept => false,
                SourceTranslation::Masqueraded => true,
                SourceTranslation::MasqueradedTo(some) => some.contains(&to.ip()),
            };
            destinations.contains(to) && shall == *masqueraded
        }
        _ => false,
    }
}
