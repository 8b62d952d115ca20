//! All of Services in eBPF at one node, but for its sockets, whose cgroup is the machine's.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kernel::bpf::fill::{MapFill, fill};
use kernel::bpf::node::{NodeServices, missing};
use kernel::bpf::service_nat::frames_sent;
use model::ServiceAcceleration;
use model::layout::POD_LINK_ALIAS_PREFIX;
use netlink::{LinkChange, Netlink};
use nix::mount::{MntFlags, umount2};
use render::ebpf::node::{
    LinkPrograms, NodeObserved, NodeProgram, Place, Sockets, UplinkProgram, diff_node,
};
use render::ebpf::{EbpfProgram, NodeOp, Sizes, View};

use crate::lab::{Mode, PATIENCE, TestPod, pod_ranges};
use crate::scene::{
    Connection, FAMILIES, Frontend, Scene, Server, TARGET, TCP, UDP, ask_tcp, ask_udp,
    node_addresses, udp_to,
};

/// A node that has nothing of eBPF yet, with the other ends of a scene.
struct Bare {
    scene: Scene,
    services: NodeServices,
    program: NodeProgram,
}

impl Bare {
    fn new() -> Self {
        assert_eq!(missing(), Vec::<String>::new());
        let mut scene = Scene::new(Mode::Routed);
        for pod in &scene.pods {
            let alias = format!("{POD_LINK_ALIAS_PREFIX}{}", pod.link);
            let change = LinkChange { alias: Some(&alias), ..LinkChange::default() };
            scene.node.netlink.change_link(pod.link_index, &change).expect("an alias");
        }
        let mut services = NodeServices::at(&scene.node.file_system);
        scene.node.run(|| services.remove()).expect("nothing of the scene's");
        let mut program = NodeProgram {
            maps: EbpfProgram {
                node_addresses: node_addresses(1).into(),
                own_pods: pod_ranges(1).into(),
                ..EbpfProgram::default()
            },
            sizes: Sizes::default(),
            place: Place {
                uplink: "eth0".into(),
                addresses: node_addresses(1).into(),
                is_uplink_a_way: false,
                acceleration: ServiceAcceleration::Disabled,
            },
            contested: BTreeSet::new(),
        };
        for family in FAMILIES {
            let endpoint = SocketAddr::new(scene.pods[1].addresses[family], TARGET);
            let plan = Frontend::CLUSTER_IP.plan(&View::Endpoints([(endpoint, 1)].into()), TCP);
            program.maps.frontends.insert(&Frontend::CLUSTER_IP.key(family, TCP), &plan);
        }
        Self { scene, services, program }
    }

    fn observe(&mut self) -> NodeObserved {
        self.scene.node.run(|| self.services.observe()).expect("what is there")
    }

    /// Carries out what is to do, except at sockets. Answers how many operations that took.
    fn bring(&mut self, is_wanted: bool) -> usize {
        let mut observed = self.observe();
        observed.sockets = if is_wanted { Sockets::Attached } else { Sockets::Detached };
        let program = is_wanted.then_some(&self.program);
        let ops = diff_node(program, &observed);
        for op in &ops {
            let done = self.scene.node.run(|| self.services.apply(op));
            done.unwrap_or_else(|error| panic!("{error} at {op:?}"));
        }
        ops.len()
    }

    fn ask(&self) -> bool {
        let client = &self.scene.pods[0].namespace;
        FAMILIES.iter().all(|family| ask_tcp(client, Frontend::CLUSTER_IP.address(*family)).is_ok())
    }

    fn add_pod(&mut self, number: u8) -> TestPod {
        let pod = self.scene.node.add_pod(1, number);
        let alias = format!("{POD_LINK_ALIAS_PREFIX}{}", pod.link);
        let change = LinkChange { alias: Some(&alias), ..LinkChange::default() };
        self.scene.node.netlink.change_link(pod.link_index, &change).expect("an alias");
        // As the plugin does: until this is known of both ends, they send nothing.
        let mut inside = Netlink::open_in(&pod.namespace).expect("a socket");
        let end = Instant::now() + PATIENCE;
        let works = |netlink: &mut Netlink, link: &str| {
            while !netlink.require_link(link).expect("a link").operational {
                assert!(Instant::now() < end, "{link} does not work");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        works(&mut inside, "eth0");
        works(&mut self.scene.node.netlink, &pod.link);
        pod
    }

    fn follow(&mut self, link: &str) -> Option<bool> {
        self.scene.node.run(|| self.services.follow_links(link)).expect("what is there")
    }

    fn has_changed(&mut self) -> bool {
        self.scene.node.run(|| self.services.has_changed())
    }
}

/// pods reach a Service once it is there, whatever others take away is noticed and put
/// back, and in the end nothing is left.
#[test]
fn services_in_ebpf_come_are_mended_and_go() {
    let mut bare = Bare::new();
    let _server = Server::start(&bare.scene.pods[1]);
    assert_eq!(bare.observe(), NodeObserved::default());
    assert!(!bare.has_changed());
    assert!(!bare.ask(), "without Services");
    bare.bring(true);
    assert!(bare.ask(), "with Services");
    bare.observe();
    assert_eq!(bare.bring(true), 0, "nothing is left to do");
    assert!(!bare.has_changed());
    let links = bare.observe().packets.expect("programs").links;
    let names: Vec<&str> = links.keys().map(String::as_str).collect();
    assert_eq!(names, ["eth0", "flatnet.1", "veth11", "veth12"]);
    assert!(links.values().all(|link| *link == LinkPrograms::Attached), "{links:?}");

    let pins = bare.scene.node.file_system.join("flatnet");
    for broken in ["services-v", "flows-v"] {
        let found = fs::read_dir(&pins).expect("the pins").flatten().map(|entry| entry.path());
        let is_it = |path: &PathBuf| path.to_string_lossy().contains(broken);
        let directory = found.into_iter().find(is_it).expect("its directory");
        fs::remove_dir_all(directory).expect("without pins");
        assert!(bare.has_changed(), "{broken}");
        bare.bring(true);
        assert!(bare.ask(), "{broken} are back");
        assert_eq!(bare.bring(true), 0, "{broken}");
    }

    bare.bring(false);
    assert!(!bare.ask(), "new flows are another backend's");
    let observed = bare.observe();
    assert!(observed.packets.is_some_and(|packets| packets.draining));
    let remove = NodeOp::Remove;
    bare.scene.node.run(|| bare.services.apply(&remove)).expect("the end");
    assert_eq!(bare.observe(), NodeObserved::default());
    assert!(!pins.exists(), "nothing stays");
}

/// what was kept for a pod's link does not stay when the link has gone.
#[test]
fn nothing_is_kept_for_links_that_are_gone() {
    let mut bare = Bare::new();
    bare.bring(true);
    let before = bare.observe().packets.expect("programs").links;
    bare.scene.node.run(|| {
        let mut netlink = Netlink::open().expect("netlink");
        let link = netlink.require_link("veth12").expect("a pod's link");
        netlink.delete_link(link.index).expect("it goes");
    });
    assert!(bare.has_changed());
    let links = bare.observe().packets.expect("programs").links;
    assert!(links.values().any(|link| *link == LinkPrograms::Gone), "{links:?}");
    assert_eq!(bare.bring(true), 1, "nobody cleared up");
    let links = bare.observe().packets.expect("programs").links;
    assert_eq!(links.len(), before.len() - 1, "{links:?}");
    assert!(links.values().all(|link| *link == LinkPrograms::Attached), "{links:?}");
    assert_eq!(bare.bring(true), 0, "nothing is left to do");
}

/// the file system of all pins is unmounted: it is mounted again with the flows that were
/// known, and connections go on as if nothing had happened.
#[test]
fn connections_outlive_the_file_system_of_the_pins() {
    let mut bare = Bare::new();
    let _server = Server::start(&bare.scene.pods[1]);
    bare.bring(true);
    let clients = &bare.scene.pods[0].namespace;
    let open = |family: &usize| {
        Connection::open(clients, Frontend::CLUSTER_IP.address(*family)).expect("a connection")
    };
    let mut connections: Vec<Connection> = FAMILIES.iter().map(open).collect();
    let mut ask = |when: &str| -> Vec<_> {
        connections.iter_mut().map(|one| one.ask().expect(when)).collect()
    };
    let before = ask("a connection answers");
    let unmounted = umount2(&bare.scene.node.file_system, MntFlags::MNT_DETACH);
    unmounted.expect("unmounted");
    assert!(bare.has_changed());
    assert!(bare.bring(true) > 0);
    assert_eq!(ask("known connections go on"), before);
    assert!(bare.ask(), "new ones are answered");
    assert_eq!(bare.bring(true), 0, "nothing is left to do");
}

/// Issue 4: operators learn whether the uplink's driver sends on, and why not.
#[test]
fn whether_the_uplink_sends_on_is_known() {
    let mut bare = Bare::new();
    let file_system = bare.scene.node.file_system.clone();
    assert_eq!(bare.services.uplink(), None, "nothing is known yet");
    let mut bring = |acceleration| {
        bare.program.place.acceleration = acceleration;
        bare.bring(true);
        bare.observe();
        bare.services.uplink().cloned().expect("links were brought to something")
    };
    assert_eq!(bring(ServiceAcceleration::Disabled), UplinkProgram::Absent);
    assert_eq!(frames_sent(&file_system).expect("the pins"), None, "nothing was loaded for it");
    assert_eq!(bring(ServiceAcceleration::Native), UplinkProgram::Attached);
    assert_eq!(frames_sent(&file_system).expect("the counter"), Some(0));
    let UplinkProgram::Refused(reason) = bring(ServiceAcceleration::BestEffort) else {
        panic!("best effort leaves out a veth");
    };
    assert!(reason.contains("eth0 is a veth"), "{reason}");
}

/// another configuration of sizes has other maps, and nobody notices: connections go on.
#[test]
fn maps_of_other_sizes_take_over_without_a_gap() {
    let mut bare = Bare::new();
    let _server = Server::start(&bare.scene.pods[1]);
    bare.bring(true);
    let clients = &bare.scene.pods[0].namespace;
    let open = |family: &usize| {
        Connection::open(clients, Frontend::CLUSTER_IP.address(*family)).expect("a connection")
    };
    let mut connections: Vec<Connection> = FAMILIES.iter().map(open).collect();
    let fill = |bare: &Bare| fill(&bare.scene.node.file_system, &bare.program.sizes);
    let flows = |bare: &Bare| {
        let maps = fill(bare).expect("the maps");
        maps.into_iter().find(|map| map.name == "flows").expect("the map of flows")
    };
    let before = flows(&bare);
    assert!(before.entries >= 4, "two entries of each connection: {before:?}");
    assert_eq!(before.entries_max, Sizes::default().flows);
    let sizes = Sizes { services: 1000, flows: 1024, ..Sizes::default() };
    bare.services = NodeServices::at(&bare.scene.node.file_system).with_sizes(sizes);
    bare.program.sizes = sizes;
    assert!(bare.bring(true) > 0);
    assert_eq!(bare.observe().maps.expect("maps").sizes, sizes);
    assert_eq!(flows(&bare), MapFill { entries_max: 1024, ..before });
    assert_eq!(bare.bring(true), 0, "nothing is left to do");
    for connection in &mut connections {
        connection.ask().expect("known connections go on");
    }
    assert!(bare.ask(), "new ones are answered");
}

/// Issue 4: the first datagram of a new pod, by a connected socket, which is not translated at the
/// socket: it is answered once the link was asked about, and would be lost before.
#[test]
fn the_first_datagram_of_a_new_pod_is_answered() {
    let mut bare = Bare::new();
    let _server = Server::start(&bare.scene.pods[1]);
    for family in FAMILIES {
        let endpoint = SocketAddr::new(bare.scene.pods[1].addresses[family], TARGET);
        let plan = Frontend::CLUSTER_IP.plan(&View::Endpoints([(endpoint, 1)].into()), UDP);
        bare.program.maps.frontends.insert(&Frontend::CLUSTER_IP.key(family, UDP), &plan);
    }
    assert_eq!(bare.follow("veth11"), None, "nothing is wanted yet");
    bare.bring(true);
    let early = bare.add_pod(99);
    let socket = udp_to(&early.namespace, Frontend::CLUSTER_IP.address(0));
    assert!(ask_udp(&socket, 10).is_err(), "nobody has brought its programs");
    for number in 100..150 {
        let pod = bare.add_pod(number);
        assert_eq!(bare.follow(&pod.link), Some(true));
        for family in FAMILIES {
            let socket = udp_to(&pod.namespace, Frontend::CLUSTER_IP.address(family));
            socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let said = ask_udp(&socket, 10).expect("an answer to the first datagram");
            assert_eq!(said.server, "veth12");
        }
    }
    assert_eq!(bare.follow("gone"), Some(false));
    bare.bring(false);
    assert_eq!(bare.follow("veth11"), None, "another backend takes over");
}
