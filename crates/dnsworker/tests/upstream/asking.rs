//! How these tests ask a worker.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use dns::{Response, parse_response, query};

use crate::lab::{DNS_ADDRESS, Lab};

/// Waits are bounded by this; a busy machine takes long for little.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// The record type of IPv4 addresses.
pub const A: u16 = 1;

/// A client's socket whose waits are bounded.
pub fn client(lab: &Lab) -> UdpSocket {
    let socket = lab.udp_client();
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    socket
}

pub fn send(socket: &UdpSocket, id: u16, name: &str, kind: u16) {
    let message = query(id, &name.parse().expect("a name"), kind, true);
    socket.send_to(&message, DNS_ADDRESS).expect("sends");
}

pub fn receive(socket: &UdpSocket) -> Option<Response> {
    let mut buffer = [0; 4096];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    assert_eq!(from, SocketAddr::from(DNS_ADDRESS));
    parse_response(&buffer[..length])
}

/// One question, and its answer.
pub fn ask(lab: &Lab, name: &str) -> Response {
    let socket = client(lab);
    send(&socket, 7, name, A);
    receive(&socket).unwrap_or_else(|| panic!("no answer for {name}"))
}

/// The addresses of a name.
pub fn addresses(lab: &Lab, name: &str) -> Vec<Vec<u8>> {
    ask(lab, name).answers.into_iter().map(|record| record.data).collect()
}

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < DEADLINE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
