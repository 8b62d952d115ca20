//! The source ports of what a Service leads outside of the cluster, by the programs' own rules:
//! no table of nftables is beside them here.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use model::{PortRange, Protocol};

use crate::common::{DEADLINE, service, to};
use crate::lab::{EACH, Lab};

#[test]
fn what_a_service_leads_outside_has_a_port_of_the_range() {
    let ports = PortRange::new(40_000, 40_015).expect("a range");
    for (variant, family) in EACH {
        let mut lab = Lab::new(variant, family);
        let at = lab.addresses();
        lab.config.masquerade_ports = Some(ports);
        // The machine outside is no neighbour of nodes then.
        lab.config.node_cidrs.clear();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let plan = to(&[at.outside]);
            lab.serve(&protocol.to_string(), service(at.vip, protocol, 80, 30_080, &plan));
        }
        assert_eq!(lab.converge(&mut lab.driver()), [], "{variant:?} {family}");

        let (frontend, endpoint) = (SocketAddr::new(at.vip, 80), SocketAddr::new(at.outside, 8080));
        let bind = || (TcpListener::bind(endpoint), UdpSocket::bind(endpoint));
        let (listener, datagrams) = lab.outside.run(bind).expect("outside");
        let (listener, datagrams) = (listener.expect("TCP"), datagrams.expect("UDP"));
        datagrams.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let any = SocketAddr::new(if at.vip.is_ipv4() { [0; 4].into() } else { [0; 16].into() }, 0);
        let mut seen = Vec::new();
        for _ in 0..8 {
            let ask = || {
                let stream = TcpStream::connect_timeout(&frontend, DEADLINE).expect("connected");
                let socket = UdpSocket::bind(any).expect("a socket");
                socket.send_to(b"who", frontend).expect("sent");
                stream
            };
            let _stream = lab.node.run(ask).expect("the node");
            seen.push(listener.accept().expect("accepted").1);
            seen.push(datagrams.recv_from(&mut [0; 8]).expect("a datagram").1);
        }
        let is_right = |from: &SocketAddr| ports.contains(from.port()) && from.ip() == at.node;
        assert!(seen.iter().all(is_right), "{variant:?} {family}: {seen:?}");
    }
}
