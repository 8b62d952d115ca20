//! what a translated pod answers to a flow that is forgotten never leaves with the pod's own
//! source. And what can be seen of a port of SCTP without any SCTP in the kernel (PM).

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use model::attachment::{Masquerade, PortMapping};
use model::{Attachment, Protocol};

use crate::clients::{Server, UdpClient};
use crate::frames::{Capture, IPV4, MARK, Sender, frame, ipv4, tcp, udp, v4};
use crate::lab::{Lab, NODE, OUTSIDE, attach, net};

const TRIALS: usize = 20;
/// The node's port that leads to the pod's port 80.
const HOST_PORT: u16 = 8080;
const CLIENT_PORT: u16 = 40000;
/// Where the packet goes that comes last, and always passes.
const LAST_PORT: u16 = 40009;
const SCTP: u8 = 132;
const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN_ACK: u8 = 0x12;

fn address(text: &str) -> Ipv4Addr {
    text.parse().expect("an address")
}

fn mapping(protocol: Protocol) -> PortMapping {
    PortMapping {
        host_port: HOST_PORT,
        container_port: 80,
        protocol,
        host_ip: None,
        snat: true,
        masquerade_all: false,
    }
}

/// Source and ports of an IPv4 packet of a protocol.
fn endpoints(frame: &[u8], protocol: u8) -> Option<(Ipv4Addr, u16, u16)> {
    let is_wanted = frame.get(12..14)? == IPV4.to_be_bytes() && frame[23] == protocol;
    let octets: [u8; 4] = frame.get(26..30)?.try_into().ok()?;
    let port = |at: usize| Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?));
    is_wanted.then_some((octets.into(), port(34)?, port(36)?))
}

/// The sources under which packets of the pod to the client arrive outside.
fn sources_outside(lab: &Lab, packets: &[Vec<u8>], protocol: u8) -> Vec<Ipv4Addr> {
    let pod = &lab.a;
    let bridge = lab.mac_of(&lab.node, crate::lab::BRIDGE);
    let sender = Sender::open(&pod.namespace);
    let capture = Capture::open(&lab.outside);
    let from_pod = |packet: &[u8]| whole(bridge, pod.mac(), packet);
    for packet in packets {
        sender.send(&from_pod(packet));
    }
    let last = ipv4(v4(pod.address()), address(OUTSIDE), UDP, &[], &udp(4000, LAST_PORT));
    sender.send(&from_pod(&last));
    let mut sources = Vec::new();
    capture.until(|frame| {
        let to_client = endpoints(frame, protocol).filter(|(_, _, to)| *to == CLIENT_PORT);
        sources.extend(to_client.map(|(source, _, _)| source));
        endpoints(frame, UDP).is_some_and(|(_, _, to)| to == LAST_PORT)
    });
    sources
}

/// A frame as short as its packet: what is behind would not be forwarded.
fn whole(to: model::MacAddress, from: model::MacAddress, packet: &[u8]) -> Vec<u8> {
    let mut bytes = frame(to, from, IPV4, packet);
    bytes.truncate((bytes.len() - MARK.len()).min(14 + packet.len()));
    bytes
}

/// Answers of a TCP server to a client that nobody remembers.
fn forgotten_answers(lab: &Lab) -> Vec<Vec<u8>> {
    let (pod, client) = (v4(lab.a.address()), address(OUTSIDE));
    let answer = ipv4(pod, client, TCP, &[], &tcp(pod, client, (80, CLIENT_PORT), SYN_ACK));
    vec![answer; TRIALS]
}

fn with_port(lab: &Lab, protocol: Protocol) -> Attachment {
    let mut attachment = lab.a.attachment.clone();
    attachment.edge.host_ports = vec![mapping(protocol)];
    attachment
}

#[test]
fn an_answer_to_a_forgotten_flow_does_not_leave_with_the_pods_source() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    let own = v4(lab.a.address());
    let masqueraded = |attachment: &Attachment| {
        let mut attachment = attachment.clone();
        attachment.edge.masquerade = Some(Masquerade { except: vec![net("10.50.0.0/16")] });
        attachment
    };
    let plain = lab.a.attachment.clone();
    let port = with_port(&lab, Protocol::Tcp);
    for (name, attachment, passes) in [
        ("an untranslated pod", plain.clone(), true),
        ("a masqueraded pod", masqueraded(&plain), false),
        ("a pod with a port of the node", port.clone(), false),
        ("a pod with both", masqueraded(&port), false),
    ] {
        attach(&mut edge, &attachment);
        let sources = sources_outside(&lab, &forgotten_answers(&lab), TCP);
        let expected = if passes { vec![own; TRIALS] } else { vec![] };
        assert_eq!(sources, expected, "{name}");
        if !passes {
            without_the_rule(&lab);
            let sources = sources_outside(&lab, &forgotten_answers(&lab), TCP);
            assert_eq!(sources, vec![own; TRIALS], "{name}: the leak itself does not happen");
            edge.repair(std::slice::from_ref(&attachment)).expect("repair");
        }
        edge.detach(&attachment).expect("detach");
    }
}

/// Takes the defence away.
fn without_the_rule(lab: &Lab) {
    for table in ["flatnet-masquerade", "flatnet-host-ports"] {
        let flush = ["flush", "chain", "ip", table, "forward"];
        let run = || Command::new("nft").args(flush).output().expect("nft");
        // The pod may not need that table.
        lab.node.run(run).expect("the node");
    }
}

#[test]
fn a_late_datagram_of_a_masqueraded_pod_has_the_nodes_source() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    let _server = Server::start(&lab.a.namespace, "a", 80);
    let mut attachment = with_port(&lab, Protocol::Udp);
    attachment.edge.masquerade = Some(Masquerade { except: vec![net("10.50.0.0/16")] });
    attach(&mut edge, &attachment);
    let client = UdpClient::open(&lab.outside, &format!("0.0.0.0:{CLIENT_PORT}"));
    assert_eq!(client.ask(&format!("{NODE}:{HOST_PORT}")), Some(format!("a {OUTSIDE}")));
    // The flow is forgotten while the server still thinks.
    edge.detach(&attachment).expect("detach");
    attach(&mut edge, &attachment);
    let (pod, to) = (v4(lab.a.address()), address(OUTSIDE));
    let late = ipv4(pod, to, UDP, &[], &udp(80, CLIENT_PORT));
    let sources = sources_outside(&lab, &vec![late; TRIALS], UDP);
    assert_eq!(sources, vec![address(NODE); TRIALS]);
}

/// PM: the INIT of an SCTP client reaches the pod at its own port. Nobody needs to speak SCTP.
#[test]
fn a_port_of_sctp_leads_to_the_pod() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    let node = lab.mac_of(&lab.node, "eth0");
    let client_mac = lab.mac_of(&lab.outside, "eth0");
    let (client, pod) = (address(OUTSIDE), lab.a.address());
    let to: SocketAddr = format!("{NODE}:{HOST_PORT}").parse().expect("an address");
    // INIT (RFC 9260, section 3.3.2): tag, window, streams, first number.
    let chunk = [1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 9];
    let ports = [CLIENT_PORT.to_be_bytes(), to.port().to_be_bytes()].concat();
    let mut message = [&ports[..], &[0; 8], &chunk].concat();
    let sum = crc32c(&message);
    message[8..12].copy_from_slice(&sum.to_le_bytes());
    let init = ipv4(client, address(NODE), SCTP, &[], &message);
    let mark = ipv4(client, v4(pod), UDP, &[], &udp(4000, LAST_PORT));
    let arrives = || {
        let sender = Sender::open(&lab.outside);
        let capture = Capture::open(&lab.a.namespace);
        for packet in [&init, &mark] {
            sender.send(&whole(node, client_mac, packet));
        }
        let mut seen = None;
        capture.until(|frame| {
            seen = seen.or(endpoints(frame, SCTP));
            endpoints(frame, UDP).is_some_and(|(_, _, to)| to == LAST_PORT)
        });
        seen
    };
    assert_eq!(arrives(), None);
    let attachment = with_port(&lab, Protocol::Sctp);
    attach(&mut edge, &attachment);
    edge.detach(&attachment).expect("what was tracked as the node's is forgotten");
    attach(&mut edge, &attachment);
    assert_eq!(arrives(), Some((client, CLIENT_PORT, 80)));
}

/// RFC 9260, appendix A: what an SCTP packet is checked by.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum: u32, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| {
            (sum >> 1) ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}
