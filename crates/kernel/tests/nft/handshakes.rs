//! Handshakes that nobody answers, as fail-over reads them (issue 4, item 5).

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use kernel::nft::handshakes::Handshakes;
use model::Protocol;
use netlink::{LinkChange, Netlink};

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
    let mut handshakes = lab.node.run(Handshakes::open).expect("the node").expect("a socket");
    ask_tcp(&lab.pod1, socket(VIP, 80), DEADLINE);
    assert_eq!(handshakes.unanswered().expect("read"), [].into(), "answered, and so not told");

    let mut pod2 = Netlink::open_in(&lab.pod2).expect("a socket");
    let eth0 = pod2.require_link("eth0").expect("its link").index;
    let down = LinkChange { up: Some(false), ..LinkChange::default() };
    pod2.change_link(eth0, &down).expect("down");
    let target = socket(VIP, 80);
    let connect = || TcpStream::connect_timeout(&target, TRY).is_ok();
    assert!(!lab.pod1.run(connect).expect("the pod"), "a pod whose link is down answers nobody");
    let until = Instant::now() + DEADLINE;
    loop {
        let unanswered: Vec<SocketAddr> =
            handshakes.unanswered().expect("read").into_values().collect();
        if unanswered.contains(&socket(POD2, 8080)) {
            break;
        }
        assert!(Instant::now() < until, "not told, but {unanswered:?}; the client is {POD1}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
