//! `udp`: datagrams to an echo server, each from a socket of its own, and who answered; or one flow
//! at a rate, and what of it was lost.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::arguments::Arguments;
use crate::http::{Crc32, pattern};
use crate::resolver::{self, describe};
use crate::summary::Summary;
use crate::udp_flow::{self, Flow};
use crate::{CommandResult, Outcome};

/// How long an answer may take, unless told otherwise.
const TIMEOUT_MS: u64 = 2000;
/// How long a flow lasts, unless told otherwise.
const DURATION_S: f64 = 10.0;
/// Bytes of a datagram, unless told otherwise.
const PAYLOAD_BYTES: usize = 32;

/// The command.
pub(crate) fn run(arguments: &Arguments) -> CommandResult {
    let host = arguments.word(0, "HOST")?;
    let port = arguments.parse("PORT", arguments.word(1, "PORT")?)?;
    let payload_bytes = arguments.parsed("--payload-bytes")?.unwrap_or(PAYLOAD_BYTES);
    let count: u64 = arguments.parsed("--count")?.unwrap_or(1);
    let timeout_ms = arguments.parsed("--timeout-ms")?.unwrap_or(TIMEOUT_MS).max(1);
    let timeout = Duration::from_millis(timeout_ms);
    let rate: Option<f64> = arguments.parsed("--rate")?;
    let duration_s: f64 = arguments.parsed("--duration-s")?.unwrap_or(DURATION_S);
    let address = *resolver::resolve(host)?.first().ok_or("no address")?;
    let server = SocketAddr::new(address, port);
    if let Some(rate) = rate {
        let duration = Duration::try_from_secs_f64(duration_s)
            .map_err(|error| arguments.misuse(format!("--duration-s: {error}")))?;
        let socket = connect(server).map_err(|error| describe(&error))?;
        let summary = udp_flow::run(&socket, Flow { rate, duration, timeout, payload_bytes })?;
        println!("{}", summary.json());
        let is_whole = summary.failed == 0 && summary.requests > 0;
        return Ok(if is_whole { Outcome::Success } else { Outcome::Failed });
    }
    let payload = pattern(0, payload_bytes);
    let mut summary = Summary::default();
    for _ in 0..count {
        let began = Instant::now();
        match exchange(server, &payload, timeout) {
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
    let mut buffer = [0; 4096];
    let receive = || -> std::io::Result<usize> {
        let socket = connect(server)?;
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

fn connect(server: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    Ok(socket)
}
