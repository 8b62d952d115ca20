//! The source ports of what pods send outside.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use model::PortRange;
use netlink::Netns;

use crate::lab::{DEADLINE, INTERNET, Lab, NODE, POD1, POD2, socket};

/// A connection that gets no port waits this long at least: a handshake is repeated meanwhile.
const IN_VAIN: Duration = Duration::from_millis(1500);

/// A connection from a pod, both ends held, and the source that the server saw.
struct Connection {
    client: TcpStream,
    server: TcpStream,
    saw: SocketAddr,
}

impl Connection {
    fn open(pod: &Netns, to: &TcpListener) -> Self {
        let address = to.local_addr().expect("an address");
        let connect = || TcpStream::connect_timeout(&address, DEADLINE);
        let client = pod.run(connect).expect("the pod").expect("a connection");
        let (server, saw) = to.accept().expect("accepted");
        server.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        Self { client, server, saw }
    }

    fn carries_data(&mut self) -> bool {
        let mut heard = [0];
        self.client.write_all(b"x").is_ok() && self.server.read_exact(&mut heard).is_ok()
    }
}

fn listen(lab: &Lab, port: u16) -> TcpListener {
    let bind = || TcpListener::bind(socket(INTERNET, port));
    lab.outside.run(bind).expect("outside").expect("a listener")
}

#[test]
fn each_port_serves_one_connection_to_a_destination_and_a_new_range_cuts_none() {
    let mut lab = Lab::new();
    lab.config.masquerade_ports = PortRange::new(40_000, 40_001);
    let mut driver = lab.driver();
    lab.converge(&mut driver);
    let [web, dns] = [443, 853].map(|port| listen(&lab, port));

    let mut held = [Connection::open(&lab.pod1, &web), Connection::open(&lab.pod2, &web)];
    let mut ports: Vec<u16> = held.iter().map(|one| one.saw.port()).collect();
    ports.sort_unstable();
    assert_eq!(ports, [40_000, 40_001]);
    assert!(held.iter().all(|one| one.saw.ip().to_string() == NODE));
    let third = || TcpStream::connect_timeout(&socket(INTERNET, 443), IN_VAIN);
    let refused = lab.pod1.run(third).expect("the pod").expect_err("a third one");
    assert_eq!(refused.kind(), std::io::ErrorKind::TimedOut);
    // Another destination has all of them.
    let elsewhere = Connection::open(&lab.pod1, &dns).saw.port();
    assert!((40_000..=40_001).contains(&elsewhere), "{elsewhere}");

    lab.config.masquerade_ports = PortRange::new(50_000, 50_063);
    assert_eq!(lab.converge(&mut driver).len(), 1);
    assert!(held.iter_mut().all(Connection::carries_data));
    for _ in 0..20 {
        let port = Connection::open(&lab.pod1, &web).saw.port();
        assert!((50_000..=50_063).contains(&port), "{port}");
    }
    assert!(held.iter_mut().all(Connection::carries_data));
    assert_eq!(lab.converge(&mut driver), []);
}

#[test]
fn pods_among_themselves_and_the_node_keep_their_ports() {
    let mut lab = Lab::new();
    lab.config.masquerade_ports = PortRange::new(40_000, 40_063);
    lab.converge(&mut lab.driver());
    let bind = || TcpListener::bind(socket(POD2, 8080));
    let pod = lab.pod2.run(bind).expect("the pod").expect("a listener");
    let own = Connection::open(&lab.pod1, &pod);
    let local = own.client.local_addr().expect("an address");
    assert_eq!((own.saw, local.ip().to_string().as_str()), (local, POD1));
    let web = listen(&lab, 443);
    let of_node = Connection::open(&lab.node, &web);
    assert_eq!(of_node.saw, of_node.client.local_addr().expect("an address"));
}

#[test]
fn people_can_list_the_range_with_nft() {
    let mut lab = Lab::new();
    lab.config.masquerade_ports = PortRange::new(40_000, 40_063);
    lab.converge(&mut lab.driver());
    let list = || {
        let chain = ["list", "chain", "ip", "flatnet", "nat-postrouting"];
        std::process::Command::new("nft").args(chain).output()
    };
    let output = lab.node.run(list).expect("node").expect("the nft program");
    let text = String::from_utf8_lossy(&output.stdout);
    let words = "masquerade to :40000-40063 fully-random";
    assert!(output.status.success() && text.matches(words).count() == 2, "{text}");
}
