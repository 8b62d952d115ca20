//! Programs and flows over restarts, other builds, damage, and the change to another backend.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::links::PinnedLink;
use kernel::bpf::service_nat::ServiceNat;
use kernel::bpf::{Hook, probe};
use netlink::Netns;

use crate::lab::{Mode, Node, PATIENCE, TestPod, udp_socket};
use crate::scene::{Connection, FAMILIES, Frontend, Scene, Server, TARGET, ask_tcp, udp_to};

/// The ways to attach that this kernel has.
fn hooks() -> Vec<Hook> {
    match probe("/sys/fs/bpf".as_ref()).hook {
        Hook::Tcx => vec![Hook::Tcx, Hook::Clsact],
        Hook::Clsact => vec![Hook::Clsact],
    }
}

/// A connection by each kind of frontend and family, from a pod and from outside.
fn connections(scene: &Scene) -> Vec<Connection> {
    let mut connections = Vec::new();
    for frontend in [Frontend::CLUSTER_IP, Frontend::NODE_PORT] {
        for family in FAMILIES {
            for client in [&scene.pods[0].namespace, &scene.other.namespace] {
                let opened = Connection::open(client, frontend.address(family));
                connections.push(opened.unwrap_or_else(|error| panic!("{frontend:?}: {error}")));
            }
        }
    }
    connections
}

fn served(hook: Hook) -> (Scene, Server) {
    served_by(Scene::with_hook(Mode::Routed, hook))
}

fn served_by(mut scene: Scene) -> (Scene, Server) {
    let endpoint = scene.pods[1].addresses;
    let server = Server::start(&scene.pods[1]);
    scene.serve(Frontend::CLUSTER_IP, &[endpoint]);
    scene.serve(Frontend::NODE_PORT, &[endpoint]);
    (scene, server)
}

/// connections go on over a restart, which writes nothing, and over the programs
/// of another build.
#[test]
fn connections_outlive_the_process_and_its_programs() {
    for hook in hooks() {
        let (mut scene, _server) = served(hook);
        let mut open = connections(&scene);
        let before: Vec<_> = open.iter_mut().map(|one| one.ask().expect("an answer")).collect();
        scene.restart();
        assert_eq!(scene.apply(), Vec::<String>::new(), "{hook:?}");

        let directory = scene.node.file_system.join("flatnet/flows-v1");
        let programs = fs::read_dir(&directory).expect("the pins").flatten();
        let current = programs
            .map(|entry| entry.path())
            .find(|path| path.to_string_lossy().contains("/programs-"))
            .expect("the programs");
        fs::rename(&current, directory.join("programs-older")).expect("another name");
        scene.restart();
        assert!(!directory.join("programs-older").exists());
        assert_eq!(scene.apply().len(), 4 * 2, "{hook:?}: both programs of each link");
        let after: Vec<_> = open.iter_mut().map(|one| one.ask().expect("an answer")).collect();
        assert_eq!(before, after, "{hook:?}: the same server sees the same clients");
    }
}

/// a table of flows of another size takes over without a gap, for the very programs that
/// are attached: what was open goes on, and nothing that begins meanwhile is cut. Also from a process
/// that was killed on the way.
#[test]
fn a_table_of_flows_of_another_size_takes_over_under_load() {
    for hook in hooks() {
        let (mut scene, _server) = served_by(Scene::with_flows(Mode::Routed, hook, 131_072));
        let maps = scene.node.file_system.join("flatnet/flows-v1/maps");
        let mut open = one_by_each(&scene);
        // To bring them along takes a while.
        let node_port = Frontend::NODE_PORT.address(0);
        for _ in 0..8000 {
            udp_to(&scene.other.namespace, node_port).send(b"one of many").expect("sent");
        }
        let Scene { node, nat, options, wanted, pods, other, .. } = &mut scene;
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let clients = ways(&pods[0], other).map(|(client, frontend)| {
                let is_over = &is_over;
                scope.spawn(move || ask_until(client, frontend, is_over))
            });
            for flows_max in [65_536, 262_144].repeat(5) {
                options.flows_max = flows_max;
                *nat = node.run(|| ServiceNat::load(options)).expect("the programs");
                assert!(!maps.join("flows-former").exists(), "{hook:?}: nothing uses it any more");
                let done = node.run(|| nat.apply(wanted)).expect("a turn");
                assert_eq!(done.changes, Vec::<String>::new(), "{hook:?}: no program is replaced");
            }
            is_over.store(true, Ordering::Relaxed);
            for client in clients {
                let asked = client.join().expect("it ends");
                let asked = asked.unwrap_or_else(|error| {
                    panic!("{hook:?}: {error}; {:?}", nat.counters());
                });
                assert!(asked > 10, "{hook:?}: {asked} connections are no load");
            }
        });
        fs::rename(maps.join("flows"), maps.join("flows-former")).expect("another name");
        open.extend(one_by_each(&scene));
        scene.restart();
        assert!(!maps.join("flows-former").exists(), "{hook:?}: the next process ended it");
        assert_eq!(scene.apply(), Vec::<String>::new(), "{hook:?}");
        for connection in &mut open {
            connection.ask().unwrap_or_else(|error| panic!("{hook:?}: {error}"));
        }
    }
}

/// Each client by a frontend of its own: a port that leads to the one endpoint by another frontend
/// is taken.
fn ways<'a>(pod: &'a TestPod, outside: &'a Node) -> [(&'a Netns, Frontend); 2] {
    [(&pod.namespace, Frontend::CLUSTER_IP), (&outside.namespace, Frontend::NODE_PORT)]
}

fn one_by_each(scene: &Scene) -> Vec<Connection> {
    let open = |(client, frontend): (&Netns, Frontend)| {
        FAMILIES.map(|family| Connection::open(client, frontend.address(family)).expect("opened"))
    };
    ways(&scene.pods[0], &scene.other).into_iter().flat_map(open).collect()
}

/// Asks over one connection after another until it is over, for a minute at most: how many.
fn ask_until(client: &Netns, frontend: Frontend, is_over: &AtomicBool) -> Result<usize, String> {
    let target = frontend.address(0);
    let ends = Instant::now() + Duration::from_secs(60);
    let mut asked = 0;
    while !is_over.load(Ordering::Relaxed) && Instant::now() < ends {
        ask_tcp(client, target).map_err(|error| format!("{target}: {error}"))?;
        asked += 1;
    }
    Ok(asked)
}

/// While another backend takes over, connections go on and nothing new is taken.
#[test]
fn a_draining_backend_keeps_its_connections_and_takes_no_new_ones() {
    let (mut scene, _server) = served(hooks()[0]);
    let mut open = connections(&scene);
    let target = Frontend::CLUSTER_IP.address(0);
    scene.wanted.draining = true;
    assert_eq!(scene.apply(), ["wrote the settings of flows"]);
    assert!(scene.node.run(|| scene.nat.observe()).expect("what is there").draining);
    let taken = scene.counter("nat_flow_new");
    for connection in &mut open {
        connection.ask().expect("an established connection goes on");
    }
    ask_tcp(&scene.pods[0].namespace, target).expect_err("nobody takes a new one");
    assert_eq!(scene.counter("nat_flow_new"), taken);
    scene.wanted.draining = false;
    scene.apply();
    ask_tcp(&scene.pods[0].namespace, target).expect("it takes new ones again");
}

/// A rule of another backend: datagrams to the Service go to this endpoint.
fn lead_by_rules(scene: &Scene, frontend: SocketAddr, endpoint: SocketAddr) {
    let family = if frontend.is_ipv4() { "ip" } else { "ip6" };
    let (address, port) = (frontend.ip(), frontend.port());
    let rules = format!(
        "table {family} other {{\n chain services {{\n\
         type nat hook prerouting priority dstnat\n\
         {family} daddr {address} udp dport {port} dnat to {endpoint}\n }}\n }}"
    );
    let run = || Command::new("nft").arg(rules).status();
    assert!(scene.node.run(run).expect("nft runs").success(), "{frontend} to {endpoint}");
}

fn next_datagram(socket: &UdpSocket, context: &str) -> (Vec<u8>, SocketAddr) {
    let mut piece = [0; 64];
    let received = socket.recv_from(&mut piece);
    let (bytes, from) = received.unwrap_or_else(|error| panic!("{context}: {error}"));
    (piece[..bytes].to_vec(), from)
}

/// datagrams of known flows are led by the backend that takes over at once, to the same
/// endpoint or to another, and answers to those before still come from the Service.
#[test]
fn a_draining_backend_hands_datagrams_over_and_loses_no_answer() {
    for (name, next) in [("the same endpoint", 0), ("another endpoint", 1)] {
        let mut scene = Scene::new(Mode::Routed);
        scene.serve(Frontend::CLUSTER_IP, &[scene.pods[1].addresses]);
        let ends = [&scene.pods[1], &scene.remote];
        let open = |pod: &TestPod, family| {
            let socket = udp_socket(pod, family, TARGET);
            socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            socket
        };
        let sockets = FAMILIES.map(|family| {
            let client = udp_to(&scene.pods[0].namespace, Frontend::CLUSTER_IP.address(family));
            client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            (client, ends.map(|pod| open(pod, family)))
        });
        let targets = FAMILIES.map(|family| SocketAddr::new(ends[next].addresses[family], TARGET));
        let first = sockets.each_ref().map(|(client, ends)| {
            client.send(b"before").expect("sent");
            next_datagram(&ends[0], name).1
        });
        for family in FAMILIES {
            lead_by_rules(&scene, Frontend::CLUSTER_IP.address(family), targets[family]);
        }
        scene.wanted.draining = true;
        scene.apply();
        for ((client, ends), first) in sockets.iter().zip(first) {
            client.send(b"after").expect("sent");
            let (text, second) = next_datagram(&ends[next], name);
            assert_eq!(text, b"after", "{name}");
            ends[0].send_to(b"answer before", first).expect("sent");
            ends[next].send_to(b"answer after", second).expect("sent");
            let mut answers = [0; 2].map(|_| next_datagram(client, name).0);
            answers.sort();
            assert_eq!(answers, [b"answer after".to_vec(), b"answer before".to_vec()], "{name}");
        }
        let taken = scene.counter("nat_flow_new");
        assert_eq!(taken, FAMILIES.len() as u64, "{name}");
    }
}

/// what somebody detached or unmounted comes back and is named; in the end nothing
/// stays.
#[test]
fn damage_is_repaired_and_named_and_nothing_stays_behind() {
    for hook in hooks() {
        let (mut scene, _server) = served(hook);
        let target = Frontend::CLUSTER_IP.address(0);
        let ask = |scene: &Scene| ask_tcp(&scene.pods[0].namespace, target);
        ask(&scene).expect("an answer");
        if hook == Hook::Tcx {
            for program in ["service_enter", "service_leave"] {
                let pin = format!("flatnet/flows-v1/links/{}-{program}", scene.pods[0].link_index);
                let link = PinnedLink::from_pin(scene.node.file_system.join(pin));
                drop(link.expect("the pin").unpin().expect("detached"));
                ask(&scene).expect_err("one direction is not translated");
                assert_eq!(scene.apply(), [format!("attached {program} to veth11")]);
                ask(&scene).expect("repaired");
            }
        }
        let observed = scene.node.run(|| scene.nat.observe()).expect("what is there");
        assert_eq!(observed.attached.len(), 4 * 2);
        scene.wanted.links.remove("veth12");
        assert_eq!(scene.apply().len(), 3, "{hook:?}: two programs and the link");
        let Scene { node, nat, .. } = scene;
        node.run(|| nat.remove()).expect("nothing stays");
        assert!(!node.file_system.join("flatnet/flows-v1").exists());
    }
}

#[test]
fn a_link_that_is_gone_is_named_and_stops_no_other() {
    let (mut scene, _server) = served(hooks()[0]);
    let pod = kernel::bpf::service_nat::LinkKind::Pod;
    scene.wanted.links.insert("veth-gone".into(), pod);
    let done = scene.node.run(|| scene.nat.apply(&scene.wanted)).expect("a turn");
    assert_eq!(done.failures.len(), 1);
    assert!(done.failures[0].message.contains("veth-gone"), "{}", done.failures[0]);
    let target = Frontend::CLUSTER_IP.address(0);
    ask_tcp(&scene.pods[0].namespace, target).expect("the others work");
}
