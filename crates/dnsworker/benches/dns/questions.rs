//! What is asked, the same of each server in the same order.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use dns::query;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg};
use plan::zone::{HeadlessEndpoint, NamedPort, ServiceRecords, Zone};

use crate::connected;

pub const DOMAIN: &str = "cluster.local";
/// The zones that peers need for the cluster's names and addresses.
pub const ZONES: [&str; 2] = [DOMAIN, "10.in-addr.arpa"];
/// Services with an address and a port; these are asked for.
pub const ADDRESSED: usize = 9_000;
/// Services without.
pub const HEADLESS: usize = 1_000;
/// Endpoints of each of those, which have hostnames.
pub const ENDPOINTS: usize = 100;
/// Questions that are made ahead.
const PREPARED: usize = 4096;

/// What may be asked of a Service.
#[derive(Clone, Copy)]
pub enum Question {
    /// Its address.
    Address,
    /// Its IPv6 address, which it has not.
    NoAddress,
    /// Its port.
    Port,
    /// One that is not there.
    Missing,
}

/// Addresses alone.
pub const PLAIN: &[Question] = &[Question::Address];
/// What pods ask: half of it addresses, most of the rest what is not there.
pub const MIX: &[Question] = &[
    Question::Address,
    Question::NoAddress,
    Question::Address,
    Question::Missing,
    Question::Address,
    Question::NoAddress,
    Question::Address,
    Question::Port,
    Question::Address,
    Question::Missing,
];

/// A Service's name and namespace.
pub fn service(number: usize) -> String {
    format!("service-{number}.default")
}

/// From 10.97.0.0 on.
fn address_of(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0A61_0000 + number as u32)
}

/// Of an endpoint; from 10.128.0.0 on.
fn endpoint_address(headless: usize, endpoint: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0A80_0000 + (headless * ENDPOINTS + endpoint) as u32)
}

/// The same names, as an agent tells them.
pub fn zone() -> Zone {
    let port =
        |name: &str, port| NamedPort { name: name.into(), protocol: model::Protocol::Tcp, port };
    let with_address = |number| ServiceRecords::ClusterIp {
        addresses: vec![address_of(number).into()],
        ports: vec![port("http", 80)],
    };
    let endpoint = |number, endpoint| HeadlessEndpoint {
        label: format!("db-{endpoint}"),
        address: endpoint_address(number, endpoint).into(),
        has_hostname: true,
        ports: vec![port("sql", 5432)],
    };
    let headless = |number| {
        let mut endpoints: Vec<HeadlessEndpoint> =
            (0..ENDPOINTS).map(|one| endpoint(number, one)).collect();
        endpoints.sort_by(|one, other| one.label.cmp(&other.label));
        ServiceRecords::Headless { endpoints }
    };
    let addressed = (0..ADDRESSED).map(|one| (format!("service-{one}"), with_address(one)));
    let headless = (0..HEADLESS).map(|one| (format!("headless-{one}"), headless(one)));
    Zone {
        domain: DOMAIN.into(),
        namespaces: BTreeMap::from([("default".to_owned(), addressed.chain(headless).collect())]),
        reverse_ranges: vec!["10.0.0.0/8".parse().expect("a range")],
        ..Zone::default()
    }
}

/// One record of a peer.
pub struct Record {
    pub owner: String,
    pub data: String,
}

/// The same names, record by record, of one of the [`ZONES`].
pub fn records(zone: &str) -> impl Iterator<Item = Record> {
    let apex = [
        format!("{zone}. SOA ns.dns.{DOMAIN}. hostmaster.{DOMAIN}. 1 7200 1800 86400 5"),
        format!("{zone}. NS ns.dns.{DOMAIN}."),
    ];
    let is_reverse = zone != DOMAIN;
    let server = (!is_reverse).then(|| format!("ns.dns.{DOMAIN}. A 10.96.0.10"));
    let addressed = (0..ADDRESSED).flat_map(move |number| {
        let (name, address) = (format!("{}.svc.{DOMAIN}.", service(number)), address_of(number));
        if is_reverse {
            return vec![pointer(address, &name)];
        }
        vec![format!("{name} A {address}"), format!("_http._tcp.{name} SRV 0 100 80 {name}")]
    });
    let headless = (0..HEADLESS * ENDPOINTS).flat_map(move |number| {
        let (number, endpoint) = (number / ENDPOINTS, number % ENDPOINTS);
        let service = format!("headless-{number}.default.svc.{DOMAIN}.");
        let (own, address) =
            (format!("db-{endpoint}.{service}"), endpoint_address(number, endpoint));
        if is_reverse {
            return vec![pointer(address, &own)];
        }
        vec![
            format!("{service} A {address}"),
            format!("{own} A {address}"),
            format!("_sql._tcp.{service} SRV 0 1 5432 {own}"),
        ]
    });
    apex.into_iter().chain(server).chain(addressed).chain(headless).map(|text| {
        let (owner, data) = text.split_once(' ').expect("an owner");
        Record { owner: owner.into(), data: data.into() }
    })
}

fn pointer(address: Ipv4Addr, name: &str) -> String {
    let [a, b, c, d] = address.octets();
    format!("{d}.{c}.{b}.{a}.in-addr.arpa. PTR {name}")
}

/// Whether a server knows the last of the names.
pub fn is_ready(server: SocketAddr) -> bool {
    let socket = connected(server);
    let (message, _) = Question::Address.message(ADDRESSED - 1);
    let mut reply = [0; 4096];
    socket.send(&message).is_ok() && socket.recv(&mut reply).is_ok() && reply[7] == 1
}

/// A client of one server.
pub struct Asking {
    socket: UdpSocket,
    questions: Vec<(Vec<u8>, Right)>,
    next: usize,
}

/// The response code and the number of answers that are right.
type Right = (u8, u8);

impl Asking {
    pub fn new(server: SocketAddr, mix: &[Question]) -> Self {
        let mut seed: u64 = 1;
        let questions = (0..PREPARED).map(|place| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
            mix[place % mix.len()].message((seed >> 33) as usize % ADDRESSED)
        });
        let mut questions: Vec<(Vec<u8>, Right)> = questions.collect();
        for (id, (message, _)) in questions.iter_mut().enumerate() {
            message[..2].copy_from_slice(&(id as u16).to_be_bytes());
        }
        Self { socket: connected(server), questions, next: 0 }
    }

    /// Asks so many questions, in bursts: the next begins when the one before was answered.
    pub fn ask(&mut self, count: usize, burst: usize) {
        let mut reply = [0; 4096];
        for _ in 0..count / burst {
            self.send(burst);
            for _ in 0..burst {
                let length = self.socket.recv(&mut reply).expect("an answer to every question");
                let id = usize::from(u16::from_be_bytes([reply[0], reply[1]]));
                let (question, right) = &self.questions[id];
                assert_eq!((reply[3] & 15, reply[7]), *right, "{question:?}");
                assert!(length > question.len(), "with records");
            }
        }
    }

    fn send(&mut self, burst: usize) {
        if self.next + burst > self.questions.len() {
            self.next = 0;
        }
        let questions = &self.questions[self.next..self.next + burst];
        self.next += burst;
        if let [(only, _)] = questions {
            self.socket.send(only).expect("sent");
            return;
        }
        let slices: Vec<[IoSlice<'_>; 1]> =
            questions.iter().map(|(message, _)| [IoSlice::new(message)]).collect();
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(burst, None);
        let none: Vec<Option<SockaddrStorage>> = vec![None; burst];
        let socket = self.socket.as_raw_fd();
        let sent = sendmmsg(socket, &mut headers, &slices, none, [], MsgFlags::empty());
        assert_eq!(sent.expect("sent").count(), burst);
    }
}

impl Question {
    /// The message, whose number is set later, and what is right.
    pub fn message(self, service_number: usize) -> (Vec<u8>, Right) {
        let service = service(service_number);
        let (name, kind, right) = match self {
            Self::Address => (format!("{service}.svc.{DOMAIN}"), 1, (0, 1)),
            Self::NoAddress => (format!("{service}.svc.{DOMAIN}"), 28, (0, 0)),
            Self::Port => (format!("_http._tcp.{service}.svc.{DOMAIN}"), 33, (0, 1)),
            Self::Missing => (format!("none-{service}.svc.{DOMAIN}"), 1, (3, 0)),
        };
        (query(0, &name.parse().expect("a name"), kind, true), right)
    }
}
