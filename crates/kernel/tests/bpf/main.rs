//! eBPF forwarding on this machine's kernel: single frames through the loaded programs against a
//! model, and real connections between pods in network namespaces whose nodes forward nothing
//! themselves. Needs root. On a kernel with tcx both ways to attach are tried, on an older one
//! (the lane of spec/test-kernels.md) the one that it has.

mod arrival;
mod handshakes;
mod lab;
mod model;
mod random;
mod raw;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr};

use aya::programs::links::PinnedLink;
use aya::programs::{SchedClassifier, TcAttachType};
use ebpf_abi::Reason;
use kernel::bpf::{Forwarding, Hook, Program, probe};
use render::bpf::{Remote, Way};

use lab::{
    Mode, Node, address, echo, introduce, make_direct, node_address, pod_addresses, pod_ranges,
    range, route_between, udp_socket, wire,
};
use model::{Fate, Mac, Neighbour, RemoteWay, Scene};
use random::{Pool, Random};
use testkit::lab::probe::uninterrupted;

const FAMILIES: [usize; 2] = [0, 1];
/// Frames of the comparison with the model.
const RANDOM_FRAMES: usize = 10_000;
/// Spoofed frames of each kind.
const SPOOFED_FRAMES: usize = 10_000;
const TC_NEXT: i32 = -1;
const TC_DROP: i32 = 2;
const TC_REDIRECT: i32 = 7;

/// The ways to attach that this kernel has.
fn hooks() -> Vec<Hook> {
    match probe("/sys/fs/bpf".as_ref()).hook {
        Hook::Tcx => vec![Hook::Tcx, Hook::Clsact],
        Hook::Clsact => vec![Hook::Clsact],
    }
}

fn counter(node: &Node, forwarding: &mut Forwarding, reason: Reason) -> u64 {
    node.run(|| forwarding.observe()).expect("what is there").counters[reason.name()]
}

#[test]
fn this_kernel_has_all_that_forwarding_needs() {
    assert_eq!(probe("/sys/fs/bpf".as_ref()).missing, Vec::<String>::new());
    let absent = probe("/sys/fs/nothing".as_ref());
    assert!(absent.missing[0].contains("/sys/fs/nothing does not exist"), "{absent:?}");
    let refused = Forwarding::open("/sys/fs/nothing".as_ref()).err().expect("not possible there");
    assert!(refused.message.contains("take the kernel's own path: /sys/fs/nothing"), "{refused}");
}

#[test]
fn pods_of_one_node_reach_each_other_without_the_kernels_path() {
    for mode in [Mode::Routed, Mode::Bridge] {
        for hook in hooks() {
            let mut node = Node::new(mode);
            let (one, two) = (node.add_pod(1, 11), node.add_pod(1, 12));
            if mode == Mode::Bridge {
                introduce(&one, &two);
            }
            let mut forwarding = node.load(hook);
            for family in FAMILIES {
                let error = echo(&one, &two, family).expect_err("nothing forwards yet");
                assert_eq!(error.kind(), ErrorKind::TimedOut, "{mode:?}: {error}");
            }
            node.apply(&mut forwarding);
            for family in FAMILIES {
                echo(&one, &two, family)
                    .unwrap_or_else(|error| panic!("{mode:?} {hook:?} {family}: {error}"));
            }
            assert!(counter(&node, &mut forwarding, Reason::ToPod) > 0);
        }
    }
}

#[test]
fn pods_of_two_nodes_reach_each_other_by_tunnel_and_by_next_hop() {
    for hook in hooks() {
        let (mut first, mut second) = (Node::new(Mode::Routed), Node::new(Mode::Bridge));
        let (one, two) = (first.add_pod(1, 11), second.add_pod(2, 22));
        wire(&mut first, &mut second);
        let (mut here, mut there) = (first.load(hook), second.load(hook));
        for (way, reason) in [("tunnel", Reason::ToTunnel), ("direct", Reason::ToNextHop)] {
            if way == "direct" {
                make_direct(&mut first, &mut second);
            }
            first.apply(&mut here);
            second.apply(&mut there);
            for family in FAMILIES {
                echo(&one, &two, family)
                    .unwrap_or_else(|error| panic!("{hook:?} {way} {family}: {error}"));
                echo(&two, &one, family)
                    .unwrap_or_else(|error| panic!("{hook:?} {way} {family} back: {error}"));
            }
            assert!(counter(&first, &mut here, reason) > 0, "{way}");
            assert!(counter(&second, &mut there, Reason::ToPod) > 0, "{way}");
        }
    }
}

#[test]
fn a_pod_that_rules_or_queues_act_on_takes_the_kernels_path_in_both_directions() {
    let mut node = Node::new(Mode::Routed);
    let (one, two) = (node.add_pod(1, 11), node.add_pod(1, 12));
    node.wanted.pods.get_mut("veth12").expect("the pod").via_stack = true;
    let mut forwarding = node.load(hooks()[0]);
    node.apply(&mut forwarding);
    echo(&one, &two, 0).expect_err("the kernel's path forwards nothing");
    node.set_forwarding(true);
    echo(&one, &two, 0).expect("the kernel's path forwards");
    echo(&two, &one, 0).expect("the kernel's path forwards");
    assert_eq!(counter(&node, &mut forwarding, Reason::ToPod), 0);
    assert!(counter(&node, &mut forwarding, Reason::StackFlagged) > 0);
}

/// what somebody detached or deleted comes back and is named; a turn or a restart
/// with nothing changed writes nothing, and in between everything goes on.
#[test]
fn damage_is_repaired_and_named_and_a_restart_writes_nothing() {
    for hook in hooks() {
        let mut node = Node::new(Mode::Routed);
        let (one, two) = (node.add_pod(1, 11), node.add_pod(1, 12));
        let mut forwarding = node.load(hook);
        assert_eq!(node.apply(&mut forwarding).len(), 2 + 4 + 2, "links, addresses, programs");
        assert_eq!(node.apply(&mut forwarding), Vec::<String>::new());

        drop(forwarding);
        echo(&one, &two, 0).expect("the kernel forwards while no process of ours runs");
        let mut forwarding = node.load(hook);
        assert_eq!(node.apply(&mut forwarding), Vec::<String>::new());

        detach(&node, hook, one.link_index);
        echo(&one, &two, 0).expect_err("the sender's program is gone");
        assert_eq!(node.apply(&mut forwarding), ["attached from_pod to veth11"]);
        echo(&one, &two, 0).expect("repaired");

        let pin = node.file_system.join("flatnet/v1/maps/pods");
        node.run(|| forget_pod(&pin, two.addresses[0]));
        assert_eq!(node.apply(&mut forwarding), ["wrote pod 10.244.1.12"]);

        node.wanted.pods.remove("veth12");
        let changes = node.apply(&mut forwarding);
        assert!(changes.contains(&"removed pod fd00:1::12".to_owned()), "{changes:?}");
        assert_eq!(node.apply(&mut forwarding), Vec::<String>::new());
        node.run(|| forwarding.remove()).expect("nothing stays");
        assert!(!node.file_system.join("flatnet").exists());
    }
}

fn detach(node: &Node, hook: Hook, link_index: u32) {
    match hook {
        Hook::Tcx => {
            let pin = format!("flatnet/v1/links/{link_index}-from_pod");
            let link = PinnedLink::from_pin(node.file_system.join(pin)).expect("the pin");
            drop(link.unpin().expect("detached"));
        }
        Hook::Clsact => node.run(|| raw::delete_clsact(link_index)),
    }
}

fn forget_pod(pin: &std::path::Path, address: IpAddr) {
    let map = aya::maps::MapData::from_pin(pin).expect("the map");
    let map = aya::maps::Map::from_map_data(map).expect("the map");
    let mut pods: aya::maps::HashMap<_, [u8; 16], [u8; ebpf_abi::Pod::BYTES]> =
        map.try_into().expect("a hash map");
    pods.remove(&ebpf_abi::address_bytes(address)).expect("the pod");
}

/// without the file system all pins are gone. The next turn mounts it and loads anew.
#[test]
fn an_unmounted_file_system_is_mounted_and_filled_anew() {
    for hook in hooks() {
        let mut node = Node::new(Mode::Routed);
        let (one, two) = (node.add_pod(1, 11), node.add_pod(1, 12));
        let mut forwarding = node.load(hook);
        node.apply(&mut forwarding);
        // Somebody else has it still: nothing that was pinned goes by itself.
        let _holder = fs::File::open(&node.file_system).expect("the file system");
        nix::mount::umount2(&node.file_system, nix::mount::MntFlags::MNT_DETACH).expect("unmount");
        let changes = node.apply(&mut forwarding);
        if hook == Hook::Tcx {
            let query = || SchedClassifier::query_tcx("veth11", TcAttachType::Ingress);
            let (_, programs) = node.run(query).expect("attached programs");
            let names: Vec<_> = programs.iter().filter_map(|one| one.name_as_str()).collect();
            assert_eq!(names, ["from_pod"], "one of before would go on with what it knew");
        }
        assert!(changes[0].starts_with("loaded the programs anew"), "{changes:?}");
        echo(&one, &two, 0).expect("it works again");
        assert_eq!(node.apply(&mut forwarding), Vec::<String>::new());
    }
}

/// the programs of another build are replaced where they are attached.
#[test]
fn programs_of_another_build_are_replaced() {
    for hook in hooks() {
        let mut node = Node::new(Mode::Routed);
        let (one, two) = (node.add_pod(1, 11), node.add_pod(1, 12));
        let mut forwarding = node.load(hook);
        node.apply(&mut forwarding);
        drop(forwarding);
        let directory = node.file_system.join("flatnet/v1");
        let builds = || -> Vec<String> {
            let entries = fs::read_dir(&directory).expect("the directory").flatten();
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            names.filter(|name| name.starts_with("programs-")).collect()
        };
        let this_build = builds();
        fs::rename(directory.join(&this_build[0]), directory.join("programs-older"))
            .expect("another name");
        let mut forwarding = node.load(hook);
        assert_eq!(builds(), this_build, "the older ones are unpinned");
        echo(&one, &two, 0).expect("the older programs forward still");
        let changes = node.apply(&mut forwarding);
        assert_eq!(changes, ["attached from_pod to veth11", "attached from_pod to veth12"]);
        echo(&one, &two, 0).expect("the new programs forward");
        assert_eq!(node.apply(&mut forwarding), Vec::<String>::new());
    }
}

#[test]
fn what_cannot_be_found_is_named_and_stops_nothing_else() {
    let mut node = Node::new(Mode::Routed);
    let (one, two) = (node.add_pod(1, 11), node.add_pod(1, 12));
    node.wanted.pods.insert("veth-gone".into(), render::bpf::Pod::default());
    node.wanted.uplink = Some("eth9".into());
    node.wanted.remotes =
        [(pod_ranges(2)[0], remote(Way::Direct { next_hop: node_address(2) }))].into();
    let mut forwarding = node.load(hooks()[0]);
    let done = node.run(|| forwarding.apply(&node.wanted)).expect("a turn");
    let said: Vec<&str> = done.failures.iter().map(|one| one.message.as_str()).collect();
    assert!(
        said.len() == 2 && said[0].contains("veth-gone") && said[1].contains("eth9"),
        "{said:?}"
    );
    echo(&one, &two, 0).expect("the others are forwarded");
}

/// of the frames of each kind that a pod may not send none comes through; with the
/// defence off they do.
#[test]
fn spoofed_frames_do_not_pass_unless_the_defence_is_off() {
    let mut node = Node::new(Mode::Bridge);
    let (attacker, victim) = (node.add_pod(1, 11), node.add_pod(1, 12));
    // Also the kernel's path is open: what is not dropped arrives by either.
    node.set_forwarding(true);
    let mut forwarding = node.load(hooks()[0]);
    let frames = raw::spoofed(&attacker, &victim);
    let honest = raw::honest(&attacker, &victim);
    for defended in [false, true] {
        node.wanted.pods.get_mut("veth11").expect("the pod").anti_spoofing = defended;
        node.apply(&mut forwarding);
        for (kind, reason, frame) in &frames {
            let before = counter(&node, &mut forwarding, *reason);
            let passed = raw::count_passed(&attacker, &victim, frame, &honest, SPOOFED_FRAMES);
            let dropped = counter(&node, &mut forwarding, *reason) - before;
            if defended {
                assert_eq!(passed, 0, "{kind}");
                assert_eq!(dropped, SPOOFED_FRAMES as u64, "{kind}");
            } else {
                assert!(passed > 0, "{kind}: without the defence the attack works");
            }
        }
    }
}

/// a tunnel packet is taken only from the node whose pods it claims to carry.
#[test]
fn tunnel_packets_with_another_nodes_source_do_not_pass_unless_the_defence_is_off() {
    let (mut first, mut second) = (Node::new(Mode::Routed), Node::new(Mode::Routed));
    let one = first.add_pod(1, 11);
    wire(&mut first, &mut second);
    first.set_forwarding(true);
    route_between(&mut first, &mut second, false);
    let mut forwarding = first.load(hooks()[0]);
    let target = udp_socket(&one, 0, 4000);
    let tunnel_mac = first.netlink.require_link("flatnet.1").expect("the tunnel").mac;
    let sources = [("10.244.2.5", true), ("10.244.3.5", false), ("10.244.1.12", false)];
    for defended in [false, true] {
        if defended {
            first.apply(&mut forwarding);
        }
        for (source, is_honest) in sources {
            let frame = raw::udp_frame(
                (tunnel_mac.expect("a MAC address"), lab::mac(99)),
                (address(source), one.addresses[0]),
                (4001, 4000),
            );
            raw::send_tunnelled(&second, node_address(1), &frame);
            let mut piece = [0; 64];
            let arrived = uninterrupted(|| target.recv_from(&mut piece)).is_ok();
            assert_eq!(arrived, is_honest || !defended, "{source}, defended: {defended}");
        }
    }
    assert_eq!(counter(&first, &mut forwarding, Reason::DropTunnel), 2);
}

const OTHER: Mac = [2, 0, 0, 0, 0xd, 1];
const TUNNEL: Mac = [2, 0, 0, 0, 0xd, 2];
const FAR_TUNNEL: Mac = [2, 0, 0, 0, 0xd, 3];

/// the programs and a model of them agree about each of many random frames.
#[test]
fn the_programs_agree_with_their_model_on_random_frames() {
    let seed = std::env::var("FLATNET_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| u64::try_from(now.as_micros()).unwrap_or(1))
    });
    println!("FLATNET_SEED={seed}");
    let mut random = Random::new(seed);
    for (checked, via_stack) in [(true, false), (false, false), (true, true)] {
        compare(&mut random, checked, via_stack, RANDOM_FRAMES / if via_stack { 10 } else { 1 });
    }
}

fn compare(random: &mut Random, checked: bool, via_stack: bool, frames: usize) {
    let (mut node, mut other) = (Node::new(Mode::Bridge), Node::new(Mode::Bridge));
    let (one, two) = (node.add_pod(1, 11), node.add_pod(1, 12));
    let flagged = node.add_pod(1, 13);
    wire(&mut node, &mut other);
    let sender = node.wanted.pods.get_mut("veth11").expect("the pod");
    (sender.anti_spoofing, sender.via_stack) = (checked, via_stack);
    sender.extra_sources = ["10.9.0.0/16", "fd09::/32"].map(range).into();
    node.wanted.pods.get_mut("veth13").expect("the pod").via_stack = true;
    let direct = remote(Way::Direct { next_hop: node_address(2) });
    node.wanted.remotes.insert(range("10.244.3.0/24"), direct);
    node.wanted.remotes.insert(range("10.244.2.128/25"), direct);
    let tunnel = remote(Way::Tunnel { mac: model_mac(FAR_TUNNEL) });
    node.wanted.remotes.insert(range("10.244.2.64/26"), remote(Way::Stack));
    node.wanted.remotes.insert(pod_ranges(2)[0], tunnel);
    node.wanted.remotes.insert(pod_ranges(2)[1], tunnel);
    let tunnel_link = node.netlink.require_link("flatnet.1").expect("the tunnel link");
    let change =
        netlink::LinkChange { mac: Some(model_mac(TUNNEL)), ..netlink::LinkChange::default() };
    node.netlink.change_link(tunnel_link.index, &change).expect("its MAC address");
    let mut forwarding = node.load(hooks()[0]);
    node.apply(&mut forwarding);
    // Nothing but our frames may count.
    node.silence();
    let scene = scene(&one, [&two, &flagged], checked, via_stack);
    let pool = pool(&scene);
    let seen = node.run(|| {
        let mut seen: BTreeMap<Reason, usize> = BTreeMap::new();
        for number in 0..frames {
            let frame = pool.frame(random);
            let expected = model::from_pod(&scene, &frame);
            let found = run_one(&forwarding, Program::FromPod, one.link_index, &frame);
            assert_eq!(found, expected, "frame {number}: {frame:02x?}");
            *seen.entry(expected.reason).or_default() += 1;
        }
        seen
    });
    println!("checked {checked}, via stack {via_stack}: {seen:?}");
    let all = if checked && !via_stack { ebpf_abi::REASONS.len() - 2 } else { 2 };
    assert!(seen.len() >= all, "the frames leave reasons out: {seen:?}");
}

/// Runs a frame through the loaded program; its verdict is that of its reason.
fn run_one(forwarding: &Forwarding, program: Program, link_index: u32, frame: &[u8]) -> Fate {
    let before = forwarding.counters().expect("the counters");
    let (verdict, left) = forwarding
        .run(program, link_index, frame)
        .unwrap_or_else(|error| panic!("{error}: {frame:02x?}"));
    let after = forwarding.counters().expect("the counters");
    let counted = ebpf_abi::REASONS.iter().find(|(_, name)| after[name] > before[name]);
    let (reason, name) = *counted.expect("a counter moved");
    let action = match reason {
        Reason::ToPod | Reason::ToTunnel | Reason::ToNextHop => TC_REDIRECT,
        _ if name.starts_with("drop") => TC_DROP,
        _ => TC_NEXT,
    };
    assert_eq!(verdict, action, "{name}: {frame:02x?}");
    Fate { reason, frame: left }
}

/// Pods of node 2.
fn remote(way: Way) -> Remote {
    Remote { node: node_address(2), way }
}

fn model_mac(mac: Mac) -> ::model::MacAddress {
    ::model::MacAddress(mac)
}

fn scene(
    sender: &lab::TestPod,
    others: [&lab::TestPod; 2],
    checked: bool,
    via_stack: bool,
) -> Scene {
    let mut pods = BTreeMap::new();
    for (pod, flagged) in [(sender, via_stack), (others[0], false), (others[1], true)] {
        for address in pod.addresses {
            let neighbour = Neighbour {
                mac: pod.mac.0,
                gateway: lab::BRIDGE_MAC.0,
                mtu: 1500,
                via_stack: flagged,
                is_sender: pod.link == sender.link,
            };
            pods.insert(address, neighbour);
        }
    }
    let tunnel = || RemoteWay::Tunnel { mac: FAR_TUNNEL, own: TUNNEL, mtu: 1500 };
    let direct = || RemoteWay::Direct { mtu: 1600 };
    Scene {
        mac: sender.mac.0,
        gateway: lab::BRIDGE_MAC.0,
        addresses: sender.addresses.to_vec(),
        extra_sources: ["10.9.0.0/16", "fd09::/32"].map(range).into(),
        checked,
        via_stack,
        pods,
        remotes: vec![
            (pod_ranges(2)[0], tunnel()),
            (pod_ranges(2)[1], tunnel()),
            (range("10.244.2.64/26"), RemoteWay::Stack),
            (range("10.244.3.0/24"), direct()),
            (range("10.244.2.128/25"), direct()),
        ],
    }
}

fn pool(scene: &Scene) -> Pool {
    let [a, b, c, d, e, f] = scene.mac;
    let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    let link_local = IpAddr::V6(Ipv6Addr::from(link_local));
    let mut own = scene.addresses.clone();
    own.extend(["10.9.1.1", "fd09::1", "10.244.1.11", "fd00:1::11"].map(address));
    own.push(link_local);
    let mut addresses = own.clone();
    addresses.extend([12, 12, 13, 77].map(|pod| pod_addresses(1, pod)).concat());
    addresses.extend([5, 5, 70, 200].map(|pod| pod_addresses(2, pod)).concat());
    let odd = ["10.244.3.3", "192.0.2.9", "224.0.0.1", "255.255.255.255", "0.0.0.0"];
    addresses.extend(odd.map(address));
    addresses.extend(["::", "ff02::1", "fe80::1", "2001:db8::1"].map(address));
    let mut macs = vec![scene.gateway; 4];
    macs.extend([lab::mac(12).0, lab::mac(13).0, OTHER, [0xff; 6]]);
    Pool { own_mac: scene.mac, macs, own, addresses }
}
