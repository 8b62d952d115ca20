//! Programs and flows over restarts, other builds, damage, and the change to another backend.

use std::fs;

use aya::programs::links::PinnedLink;
use kernel::bpf::{Hook, probe};

use crate::lab::Mode;
use crate::scene::{Connection, FAMILIES, Frontend, Scene, Server, ask_tcp, ask_udp, udp_to};

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
    let mut scene = Scene::with_hook(Mode::Routed, hook);
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

/// While another backend takes over, what is known goes on and nothing new is taken.
#[test]
fn a_draining_backend_keeps_its_flows_and_takes_no_new_ones() {
    let (mut scene, _server) = served(hooks()[0]);
    let mut open = connections(&scene);
    let target = Frontend::CLUSTER_IP.address(0);
    let socket = udp_to(&scene.pods[0].namespace, target);
    ask_udp(&socket, 10).expect("an answer");
    scene.wanted.draining = true;
    assert_eq!(scene.apply(), ["wrote the settings of flows"]);
    assert!(scene.node.run(|| scene.nat.observe()).expect("what is there").draining);
    let taken = scene.counter("nat_flow_new");
    for connection in &mut open {
        connection.ask().expect("an established connection goes on");
    }
    ask_udp(&socket, 10).expect("a known flow goes on");
    ask_tcp(&scene.pods[0].namespace, target).expect_err("nobody takes a new one");
    assert_eq!(scene.counter("nat_flow_new"), taken);
    scene.wanted.draining = false;
    scene.apply();
    ask_tcp(&scene.pods[0].namespace, target).expect("it takes new ones again");
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
