//! Unanswered handshakes, as fail-over reads them from connection tracking.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::Command;

use kernel::nft::handshakes::Handshakes;
use model::Protocol;

use super::lab::{Answer, Lab, Server, answered, ask_tcp, ask_udp, service, socket};
use super::{DEADLINE, POD1, POD2, SILENCE, VIP};

#[test]
fn the_kernel_names_endpoints_of_unanswered_tcp_handshakes_and_nothing_else() {
    let mut lab = Lab::new();
    lab.set_service(service("web", VIP, Protocol::Tcp, 80, 0), &[socket(POD2, 8080)]);
    lab.set_service(service("names", VIP, Protocol::Udp, 53, 0), &[socket(POD2, 5353)]);
    let mut driver = lab.driver();
    lab.converge(&mut driver);
    let mut reader = lab.node.run(|| Handshakes::open().expect("a socket")).expect("the node");
    assert_eq!(reader.unanswered().expect("read"), BTreeMap::new());

    // Answered, refused, and datagrams: no handshakes that wait.
    let server = Server::start(&lab.pod2, "pod2", 8080);
    let to = socket(VIP, 80);
    assert_eq!(ask_tcp(&lab.pod1, to, DEADLINE), answered("pod2", POD1));
    ask_tcp(&lab.pod1, socket(POD2, 9), DEADLINE);
    ask_udp(&lab.pod1, socket(VIP, 53), SILENCE);
    assert_eq!(reader.unanswered().expect("read"), BTreeMap::new());

    // A pod that swallows what is sent to it, behind its Service and by its own address.
    drop(server);
    swallow(&lab);
    for to in [to, socket(POD2, 81)] {
        assert_eq!(ask_tcp(&lab.pod1, to, SILENCE), Answer::Nothing);
    }
    let unanswered = reader.unanswered().expect("read");
    let lead_to: BTreeSet<SocketAddr> = unanswered.values().copied().collect();
    assert_eq!(lead_to, [socket(POD2, 8080), socket(POD2, 81)].into());
    assert_eq!(reader.unanswered().expect("read"), unanswered, "a flow keeps its number");
}

fn swallow(lab: &Lab) {
    let rules = "table inet t { chain c { type filter hook input priority 0; policy drop; } }";
    let status = lab.pod2.run(|| Command::new("nft").arg(rules).status().expect("nft"));
    assert!(status.expect("the pod").success());
}
