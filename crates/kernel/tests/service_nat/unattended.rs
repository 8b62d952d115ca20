//! pods that are added while no agent is there, whose links the plugin brings to what the
//! agent pinned.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use kernel::bpf::service_nat::{LinkKind, unattended};
use netlink::{LinkChange, Netlink};
use render::OpError;

use crate::lab::{Mode, PATIENCE, TestPod};
use crate::scene::{Connection, FAMILIES, Frontend, Scene, Server, ask_tcp, ask_udp, udp_to};

fn served(mode: Mode) -> (Scene, Server) {
    let mut scene = Scene::new(mode);
    let endpoint = scene.pods[1].addresses;
    let server = Server::start(&scene.pods[1]);
    scene.serve(Frontend::CLUSTER_IP, &[endpoint]);
    scene.serve(Frontend::NODE_PORT, &[endpoint]);
    (scene, server)
}

/// A pod whose both ends work, as the plugin leaves it.
fn add_pod(scene: &mut Scene, number: u8) -> TestPod {
    let pod = scene.node.add_pod(1, number);
    let mut inside = Netlink::open_in(&pod.namespace).expect("a socket");
    let end = Instant::now() + PATIENCE;
    for (netlink, link) in [(&mut inside, "eth0"), (&mut scene.node.netlink, pod.link.as_str())] {
        while !netlink.require_link(link).expect("a link").operational {
            assert!(Instant::now() < end, "{link} does not work");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    pod
}

fn attach(scene: &Scene, link: &str) -> Result<bool, OpError> {
    scene.node.run(|| unattended::attach(&scene.node.file_system, link))
}

/// Asks both Services by both protocols in both families: whom the server saw, or `None`.
fn ask_all(pod: &TestPod) -> Vec<Option<IpAddr>> {
    let mut seen = Vec::new();
    for family in FAMILIES {
        for frontend in [Frontend::CLUSTER_IP, Frontend::NODE_PORT] {
            let target = frontend.address(family);
            seen.push(ask_tcp(&pod.namespace, target).ok().map(|said| said.client.ip()));
            let datagram = ask_udp(&udp_to(&pod.namespace, target), 10);
            seen.push(datagram.ok().map(|said| said.client.ip()));
        }
    }
    seen
}

#[test]
fn a_pod_that_comes_while_no_agent_is_there_reaches_services() {
    for mode in [Mode::Routed, Mode::Bridge] {
        let (mut scene, _server) = served(mode);
        let others = ask_all(&scene.pods[0]);
        let pod = add_pod(&mut scene, 99);
        assert!(ask_all(&pod).iter().all(Option::is_none), "{mode:?}: nobody brought programs");
        assert_eq!(attach(&scene, &pod.link), Ok(true));
        let seen = ask_all(&pod);
        // A ClusterIP keeps the pod's own address; a node port has the node's, as for others.
        for (number, (seen, other)) in seen.iter().zip(&others).enumerate() {
            let own = pod.addresses[number / 4];
            let expected = if number % 4 < 2 { Some(own) } else { *other };
            assert_eq!(*seen, expected, "{mode:?}, question {number}");
        }
        assert_eq!(attach(&scene, &pod.link), Ok(true), "again");

        let target = Frontend::CLUSTER_IP.address(0);
        let mut open = Connection::open(&pod.namespace, target).expect("a connection");
        open.ask().expect("an answer");
        scene.restart();
        scene.wanted.links.insert(pod.link.clone(), LinkKind::Pod);
        assert_eq!(scene.apply(), Vec::<String>::new(), "{mode:?}: the agent adopts all of it");
        open.ask().expect("the connection goes on");
        scene.wanted.links.remove(&pod.link);
        assert_eq!(scene.apply().len(), 3, "{mode:?}: two programs and the link go");
        assert!(ask_all(&pod).iter().all(Option::is_none), "{mode:?}: nothing is left of it");
    }
}

/// The number of a link may be another's after its namespace is gone: what was kept for that one is
/// no attachment of this one.
#[test]
fn what_is_kept_for_a_link_that_is_gone_hinders_no_other() {
    let (mut scene, _server) = served(Mode::Routed);
    let pod = add_pod(&mut scene, 99);
    assert_eq!(attach(&scene, &pod.link), Ok(true));
    let number = pod.link_index;
    scene.node.netlink.delete_link(number).expect("deleted");
    let created = scene.node.run(|| {
        Command::new("ip")
            .args(["link", "add", "veth98", "index", &number.to_string(), "type", "bridge"])
            .status()
    });
    assert!(created.expect("ip").success());
    scene.node.netlink.change_link(number, &LinkChange::up()).expect("up");
    assert_eq!(attach(&scene, "veth98"), Ok(true));
    let observed = scene.node.run(|| scene.nat.observe()).expect("what is there");
    for program in ["service_enter", "service_leave"] {
        assert!(observed.attached.contains(&("veth98".into(), program)), "{observed:?}");
    }
}

#[test]
fn without_an_agents_programs_or_while_another_backend_takes_over_nothing_is_attached() {
    let (mut scene, _server) = served(Mode::Routed);
    let pod = add_pod(&mut scene, 99);
    let error = attach(&scene, "gone").expect_err("no such link");
    assert!(error.message.contains("gone"), "{error}");
    scene.wanted.draining = true;
    scene.apply();
    assert_eq!(attach(&scene, &pod.link), Ok(false));
    let nowhere = || unattended::attach(Path::new("/nonexistent"), &pod.link);
    assert_eq!(scene.node.run(nowhere), Ok(false));
    let observed = scene.node.run(|| scene.nat.observe()).expect("what is there");
    assert!(observed.attached.iter().all(|(link, _)| *link != pod.link), "{observed:?}");
}
