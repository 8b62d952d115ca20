//! `udp`: datagrams to an echo server, each from a socket of its own, and who answered.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::arguments::Arguments;
use crate::http::{Crc32, pattern};
use crate::resolver::{self, describe};
use crate::summary::Summary;
use crate::{CommandResult, Outcome};

/// How long an answer may take, unless told otherwise.
const TIMEOUT_MS: u64 = 2000;
/// Bytes of a datagram, unless told otherwise.
const PAYLOAD_BYTES: usize = 32;

/// The command.
pub(crate) fn run(arguments: &Arguments) -> CommandResult {
    let host = arguments.word(0, "HOST")?;
    let port = arguments.parse("PORT", arguments.word(1, "PORT")?)?;
    let payload = pattern(0, arguments.parsed("--payload-bytes")?.unwrap_or(PAYLOAD_BYTES));
    let count: u64 = arguments.parsed("--count")?.unwrap_or(1);
    let timeout_ms = arguments.parsed("--timeout-ms")?.unwrap_or(TIMEOUT_MS).max(1);
    let address = *resolver::resolve(host)?.first().ok_or("no address")?;
    let server = SocketAddr::new(address, port);
    let mut summary = Summary::default();
    for _ in 0..count {
        let began = Instant::now();
        match exchange(server, &payload, Duration::from_millis(timeout_ms)) {
            Ok(answer) => {
                println!("{answer}");
                summary.succeeded(answer["pod"].as_str(), began.elapsed());
            }
            Err(fault) => {
                println!("failed: {fault}");
                summary.failed(&fault);
            }
        }
    }
    if count > 1 {
        println!("{}", summary.json());
    }
    Ok(if summary.failed == 0 { Outcome::Success } else { Outcome::Failed })
}

fn exchange(server: SocketAddr, payload: &[u8], timeout: Duration) -> Result<Value, String> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut buffer = [0; 4096];
    let receive = || -> std::io::Result<usize> {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(timeout))?;
        socket.send(payload)?;
        socket.recv(&mut buffer)
    };
    let length = { receive }().map_err(|error| describe(&error))?;
    let answer = buffer.get(..length).unwrap_or_default();
    let answer: Value = serde_json::from_slice(answer)
        .map_err(|error| format!("the answer is not our echo server's: {error}"))?;
    let mut sent = Crc32::default();
    sent.add(payload);
    if answer["crc32"].as_str() != Some(sent.text().as_str()) {
        return Err("the datagram was changed on its way".into());
    }
    Ok(answer)
}
