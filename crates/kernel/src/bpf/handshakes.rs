//! Handshakes that nobody answered, as eBPF knows them; of all others `crate::nft::handshakes` does.
//!
//! - What eBPF forwards passes the kernel's connection tracking. The programs tell of its handshakes
//!   (`bpf/handshakes.h`).
//! - What Services in eBPF lead packet by packet stays with its endpoint as long as the flow is
//!   known: to be led elsewhere it has to be forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use ebpf_abi::flows::{ENTERING, FLOW_ANSWERED, FLOW_BACK, FLOW_DIRECT, FLOW_RESET, Flow, FlowKey};
use ebpf_abi::handshakes::HandshakeKey;
use model::Protocol;
use render::OpError;

use super::{canonical, objects, refused, syscalls};

/// The map by its name in `bpf/handshakes.h`.
pub(super) const MAP: &str = "handshakes";

/// Seconds after its last try that an unanswered handshake counts: clients wait longer between
/// tries only after they have waited for this long in all. Far more than between two readings on a
/// busy machine.
const TRIED_WITHIN_S: u32 = 30;
const NS_PER_S: u64 = 1_000_000_000;
/// Numbers of handshakes have this bit here; those of connection tracking do not.
const NUMBER_BIT: u64 = 1 << 63;

/// Where TCP connections lead to that were tried and not answered, each by a number that lasts for
/// as long. Nothing, where eBPF has no part in them.
///
/// Of what it finds, it forgets those flows in `abandoned` that a Service led to their endpoint: the
/// next repetition of the handshake is led to one that answers.
///
/// # Errors
/// What the kernel refused.
pub fn unanswered(
    file_system: &Path,
    abandoned: &BTreeSet<u64>,
) -> Result<BTreeMap<u64, SocketAddr>, OpError> {
    let read = || {
        let mut found = forwarded(file_system)?;
        found.extend(led(file_system, abandoned)?);
        Ok(found)
    };
    read().map_err(|error: io::Error| refused("read unanswered handshakes in eBPF", &error))
}

/// Of connections that are forwarded.
fn forwarded(file_system: &Path) -> io::Result<BTreeMap<u64, SocketAddr>> {
    let path = objects::versioned(file_system).join("maps").join(MAP);
    let Some(map) = open(&path)? else { return Ok(BTreeMap::new()) };
    let (keys, values) = syscalls::read_all(map.as_fd(), HandshakeKey::BYTES, size_of::<u64>())?;
    let earliest_ns = u64::from(earliest_s()).saturating_mul(NS_PER_S);
    let tried = values.as_chunks().0.iter().map(|value| u64::from_ne_bytes(*value));
    let recent =
        keys.as_chunks().0.iter().zip(tried).filter(|(_, tried_ns)| *tried_ns >= earliest_ns);
    let lead_to = recent.map(|(bytes, _)| {
        let key = HandshakeKey::from_bytes(bytes);
        (number(bytes), address(key.destination, key.destination_port))
    });
    Ok(lead_to.collect())
}

/// Of flows that were led to endpoints, but for what is answered past this node.
fn led(file_system: &Path, abandoned: &BTreeSet<u64>) -> io::Result<BTreeMap<u64, SocketAddr>> {
    let mut found = BTreeMap::new();
    let Some(map) = open(&objects::flows_of_services(file_system))? else { return Ok(found) };
    let earliest_s = earliest_s();
    let mut forgotten = Vec::new();
    syscalls::read_parts(map.as_fd(), FlowKey::BYTES, Flow::BYTES, |keys, values| {
        for (bytes, value) in keys.as_chunks().0.iter().zip(values.as_chunks().0) {
            let (key, flow) = (FlowKey::from_bytes(bytes), Flow::from_bytes(value));
            if !is_unanswered(&key, &flow) || flow.used_s < earliest_s {
                continue;
            }
            let number = number(bytes);
            if abandoned.contains(&number) {
                forgotten.extend_from_slice(bytes);
            } else {
                found.insert(number, address(flow.address, flow.port));
            }
        }
    })?;
    for key in forgotten.chunks_exact(FlowKey::BYTES) {
        match syscalls::delete_batch(map.as_fd(), key, 1) {
            // It has made room for another.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result?,
        }
    }
    Ok(found)
}

/// The same for all tries, by the key of the entry.
fn number(key: &[u8]) -> u64 {
    objects::hash(key) | NUMBER_BIT
}

fn is_unanswered(key: &FlowKey, flow: &Flow) -> bool {
    key.protocol == Protocol::Tcp.number()
        && u32::from(key.side) == ENTERING
        && flow.flags & (FLOW_BACK | FLOW_ANSWERED | FLOW_DIRECT | FLOW_RESET) == 0
}

/// `None` where there is no such map.
fn open(path: &Path) -> io::Result<Option<OwnedFd>> {
    match syscalls::open_pin(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        map => map.map(Some),
    }
}

fn earliest_s() -> u32 {
    syscalls::uptime_s().saturating_sub(TRIED_WITHIN_S)
}

fn address(address: [u8; 16], port: u16) -> SocketAddr {
    let address: IpAddr = canonical(Ipv6Addr::from(address));
    SocketAddr::new(address, port)
}
