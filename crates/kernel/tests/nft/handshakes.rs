//! Handshakes that nobody answers, as fail-over reads them (issue 4, item 5).

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use kernel::nft::handshakes::Handshakes;
use model::{Family, Protocol};
use netlink::{LinkChange, Netlink, Netns};
use socket2::{Domain, Socket, Type};

use super::lab::{Lab, Server, ask_tcp, service, socket};
use super::{DEADLINE, POD1, POD2, VIP};

/// How long a client tries whom nobody answers.
const TRY: Duration = Duration::from_millis(300);

#[test]
fn a_handshake_that_nobody_answers_is_told_by_its_endpoint() {
    let mut lab = Lab::new();
    lab.set_service(service("web", VIP, Protocol::Tcp, 80, 0), &[socket(POD2, 8080)]);
    lab.converge(&mut lab.driver());
    let _server = Server::start(&lab.pod2, "pod2", 8080);
    let mut handshakes = open(&lab);
    ask_tcp(&lab.pod1, socket(VIP, 80), DEADLINE);
    let nobody = BTreeSet::new();
    let found = handshakes.unanswered(&nobody).expect("read");
    assert_eq!(found, [].into(), "answered, and so not told");

    let mut pod2 = Netlink::open_in(&lab.pod2).expect("a socket");
    let eth0 = pod2.require_link("eth0").expect("its link").index;
    let down = LinkChange { up: Some(false), ..LinkChange::default() };
    pod2.change_link(eth0, &down).expect("down");
    let target = socket(VIP, 80);
    let connect = || TcpStream::connect_timeout(&target, TRY).is_ok();
    assert!(!lab.pod1.run(connect).expect("the pod"), "a pod whose link is down answers nobody");
    let unanswered = |handshakes: &mut Handshakes, abandoned| {
        let found = handshakes.unanswered(abandoned).expect("read");
        let of_pod2 = found.into_iter().filter(|(_, to)| *to == socket(POD2, 8080));
        of_pod2.map(|(id, _)| id).collect::<BTreeSet<u64>>()
    };
    let until = Instant::now() + DEADLINE;
    let mut told = unanswered(&mut handshakes, &nobody);
    while told.is_empty() {
        assert!(Instant::now() < until, "not told; the client is {POD1}");
        std::thread::sleep(Duration::from_millis(20));
        told = unanswered(&mut handshakes, &nobody);
    }
    // A reading alone forgets nothing; nor are connections forgotten that no Service led there.
    let direct = || TcpStream::connect_timeout(&socket(POD2, 8080), TRY).is_ok();
    assert!(!lab.pod1.run(direct).expect("the pod"), "nor does it answer who asks it itself");
    let both = unanswered(&mut handshakes, &nobody);
    assert!(both.is_superset(&told) && both.len() > told.len(), "{told:?} {both:?}");
    unanswered(&mut handshakes, &both);
    let left: BTreeSet<u64> = both.difference(&told).copied().collect();
    assert_eq!(unanswered(&mut handshakes, &nobody), left);
}

/// A client that has given up leaves its flow behind. The next one with its port gets to an
/// endpoint that answers, as soon as that flow is forgotten, and not before.
#[test]
fn a_port_that_was_tried_in_vain_is_led_to_a_living_endpoint() {
    for forgets in [false, true] {
        let mut lab = Lab::new();
        let web = || service("web", VIP, Protocol::Tcp, 80, 0);
        lab.set_service(web(), &[socket(POD2, 8080)]);
        lab.converge(&mut lab.driver());
        let mut handshakes = open(&lab);
        let mut pod2 = Netlink::open_in(&lab.pod2).expect("a socket");
        let eth0 = pod2.require_link("eth0").expect("its link").index;
        let down = LinkChange { up: Some(false), ..LinkChange::default() };
        pod2.change_link(eth0, &down).expect("down");
        assert!(!connect_from(&lab.pod1, 40_000, TRY), "its endpoint is silent");

        lab.set_service(web(), &[socket(POD1, 8080)]);
        lab.converge(&mut lab.driver());
        let _server = Server::start(&lab.pod1, "pod1", 8080);
        assert!(connect_from(&lab.pod1, 40_001, DEADLINE), "the new endpoint answers");
        if forgets {
            let found = handshakes.unanswered(&BTreeSet::new()).expect("read");
            let found = found.into_keys().collect();
            handshakes.unanswered(&found).expect("read");
        }
        let patience = if forgets { DEADLINE } else { TRY };
        assert_eq!(connect_from(&lab.pod1, 40_000, patience), forgets);
    }
}

fn open(lab: &Lab) -> Handshakes {
    let open = || Handshakes::open([Family::V4].into());
    lab.node.run(open).expect("the node").expect("a socket")
}

/// Whether the Service takes a connection from this port.
fn connect_from(pod: &Netns, port: u16, patience: Duration) -> bool {
    let connect = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("an option");
        let own: SocketAddr = (Ipv4Addr::UNSPECIFIED, port).into();
        socket.bind(&own.into()).expect("a port of its own");
        socket.connect_timeout(&super::lab::socket(VIP, 80).into(), patience).is_ok()
    };
    pod.run(connect).expect("the pod")
}
