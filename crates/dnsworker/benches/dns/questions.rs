//! What is asked, the same of each server in the same order.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use dns::query;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg};
use plan::zone::{NamedPort, ServiceRecords, Zone};

use crate::connected;

pub const DOMAIN: &str = "cluster.local";
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

pub fn address_of(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0A61_0000 + number as u32)
}

/// The same names, as an agent tells them.
pub fn zone(services: usize) -> Zone {
    let port = NamedPort { name: "http".into(), protocol: model::Protocol::Tcp, port: 80 };
    let records = |number| ServiceRecords::ClusterIp {
        addresses: vec![address_of(number).into()],
        ports: vec![port.clone()],
    };
    let services: BTreeMap<String, ServiceRecords> =
        (0..services).map(|number| (format!("service-{number}"), records(number))).collect();
    Zone {
        domain: DOMAIN.into(),
        namespaces: BTreeMap::from([("default".to_owned(), services)]),
        ..Zone::default()
    }
}

/// Whether a server knows the last of the names.
pub fn is_ready(server: SocketAddr, services: usize) -> bool {
    let socket = connected(server);
    let (message, _) = Question::Address.message(services - 1);
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
    pub fn new(server: SocketAddr, mix: &[Question], services: usize) -> Self {
        let mut seed: u64 = 1;
        let questions = (0..PREPARED).map(|place| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
            mix[place % mix.len()].message((seed >> 33) as usize % services)
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
