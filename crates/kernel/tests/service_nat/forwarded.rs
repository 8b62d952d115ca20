//! Services together with eBPF forwarding: what it takes past the kernel's own path is translated
//! all the same, in both directions, and what it leaves to that path passes there.

use std::io::ErrorKind;
use std::net::IpAddr;

use ebpf_abi::Reason;
use kernel::bpf::{Forwarding, Hook, probe};
use render::bpf::Way;

use crate::lab::{Mode, TestPod, pod_ranges};
use crate::scene::{FAMILIES, Frontend, Scene, Server, ask_tcp, ask_udp, node_addresses, udp_to};
use crate::traffic::{ask_all, assert_masqueraded};

/// The ways to attach that this kernel has.
fn hooks() -> Vec<Hook> {
    match probe("/sys/fs/bpf".as_ref()).hook {
        Hook::Tcx => vec![Hook::Tcx, Hook::Clsact],
        Hook::Clsact => vec![Hook::Clsact],
    }
}

/// Adds forwarding on the first node: of IPv4 by the tunnel, of IPv6 direct, as the kernel does.
fn forward(scene: &mut Scene, hook: Hook) -> Forwarding {
    let next_hop = node_addresses(2)[1];
    let remote = scene.node.wanted.remotes.get_mut(&pod_ranges(2)[1]).expect("the range");
    remote.way = Way::Direct { next_hop };
    let mut forwarding = scene.node.load(hook);
    scene.node.apply(&mut forwarding);
    forwarding
}

/// TCP and UDP of a pod to the Service: answered under its own address.
fn reaches(client: &TestPod, server: &str, context: &str) {
    for family in FAMILIES {
        let target = Frontend::CLUSTER_IP.address(family);
        let tcp = ask_tcp(&client.namespace, target);
        let udp = ask_udp(&udp_to(&client.namespace, target), 10);
        for said in [tcp, udp] {
            let said = said.unwrap_or_else(|error| panic!("{context}: {target}: {error}"));
            assert_eq!(
                (said.server.as_str(), said.client.ip()),
                (server, client.addresses[family])
            );
        }
    }
}

/// The node's own path forwards nothing here: with an answer from a pod of the same node, and of
/// another, and with an error about what nobody listens to.
#[test]
fn answers_and_errors_of_services_pass_the_clients_own_link() {
    for (hook, mode) in hooks().into_iter().zip([Mode::Bridge, Mode::Routed]) {
        let mut scene = Scene::with_hook(mode, hook);
        let forwarding = forward(&mut scene, hook);
        scene.node.set_forwarding(false);
        let endpoints =
            [&scene.pods[1], &scene.remote].map(|pod| (pod.link.clone(), pod.addresses));
        let servers = [&scene.pods[1], &scene.remote].map(Server::start);
        for (server, addresses) in &endpoints {
            scene.serve(Frontend::CLUSTER_IP, &[*addresses]);
            reaches(&scene.pods[0], server, &format!("{hook:?} {server}"));
        }
        let counters = scene.node.run(|| forwarding.counters()).expect("the counters");
        for reason in [Reason::ToPod, Reason::ToTunnel, Reason::ToNextHop] {
            assert!(counters[reason.name()] > 0, "{hook:?}: {counters:?}");
        }
        drop(servers);
        for (server, addresses) in &endpoints {
            scene.serve(Frontend::CLUSTER_IP, &[*addresses]);
            for family in FAMILIES {
                let target = Frontend::CLUSTER_IP.address(family);
                let error = ask_udp(&udp_to(&scene.pods[0].namespace, target), 10);
                let error = error.expect_err("nobody listens").kind();
                assert_eq!(error, ErrorKind::ConnectionRefused, "{hook:?} {server} {target}");
            }
        }
    }
}

/// Masqueraded flows and fragments are the kernel's: a pod that gets itself, a node port of a pod
/// and of somebody outside.
#[test]
fn what_is_left_to_the_kernels_path_is_whole_there() {
    for hook in hooks() {
        let mut scene = Scene::with_hook(Mode::Routed, hook);
        let _forwarding = forward(&mut scene, hook);
        let _servers = scene.pods.each_ref().map(Server::start);
        let [own, other] = scene.pods.each_ref().map(|pod| pod.addresses);
        let masqueraded = |client: &netlink::Netns, frontend: Frontend, name: &str| {
            for family in FAMILIES {
                for said in ask_all(client, frontend.address(family), name) {
                    assert_masqueraded(&said, node_addresses(1)[family], name);
                }
            }
        };
        scene.serve(Frontend::CLUSTER_IP, &[own]);
        masqueraded(&scene.pods[0].namespace, Frontend::CLUSTER_IP, "itself");
        scene.serve(Frontend::NODE_PORT, &[other]);
        masqueraded(&scene.pods[0].namespace, Frontend::NODE_PORT, "a pod");
        masqueraded(&scene.other.namespace, Frontend::NODE_PORT, "outside");
        scene.serve(Frontend::CLUSTER_IP, &[other]);
        for family in FAMILIES {
            let target = Frontend::CLUSTER_IP.address(family);
            let client: IpAddr = scene.pods[0].addresses[family];
            for said in ask_all(&scene.pods[0].namespace, target, "fragments") {
                assert_eq!(said.client.ip(), client);
            }
        }
    }
}

/// Flows of Services that somebody removed while nobody held them are in another map afterwards: the
/// programs are loaded anew with it.
#[test]
fn flows_that_were_made_anew_are_the_ones_that_are_looked_at() {
    let hook = hooks()[0];
    let mut scene = Scene::with_hook(Mode::Routed, hook);
    let mut forwarding = forward(&mut scene, hook);
    let flows = scene.node.file_system.join("flatnet/flows-v1");
    std::fs::remove_dir_all(&flows).expect("removed");
    std::fs::remove_dir_all(scene.node.file_system.join("flatnet/v1/links")).expect("removed");
    scene.restart();
    scene.apply();
    let changes = scene.node.apply(&mut forwarding);
    assert!(changes[0].starts_with("loaded the programs anew"), "{changes:?}");
    scene.node.set_forwarding(false);
    let _server = Server::start(&scene.pods[1]);
    let addresses = scene.pods[1].addresses;
    scene.serve(Frontend::CLUSTER_IP, &[addresses]);
    reaches(&scene.pods[0], "veth12", "anew");
    assert_eq!(scene.node.apply(&mut forwarding), Vec::<String>::new());
}
