//! The sockets that clients ask at: opened by the worker's starter, inherited by the worker.
#![allow(unsafe_code)]

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use socket2::{Domain, Protocol, Socket, Type};

/// Room for questions that wait while a worker is replaced, in bytes.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
/// TCP connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// The inherited sockets, sorted by what they are.
pub(crate) struct Inherited {
    pub(crate) udp: Vec<UdpSocket>,
    pub(crate) tcp: Vec<TcpListener>,
}

/// Opens the two sockets of one address in the current network namespace. The address need not
/// exist yet.
///
/// # Errors
/// The kernel's, such as for a port in use.
pub fn listen(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let domain = Domain::for_address(address);
    let udp = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    let tcp = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    udp.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    tcp.set_reuse_address(true)?;
    for socket in [&udp, &tcp] {
        match address {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
        socket.bind(&address.into())?;
    }
    tcp.listen(BACKLOG)?;
    Ok((udp.into(), tcp.into()))
}

/// Takes over inherited sockets.
pub(crate) fn inherit(numbers: &[RawFd]) -> Result<Inherited> {
    let mut inherited = Inherited { udp: vec![], tcp: vec![] };
    for number in numbers {
        let socket = Socket::from(take(*number)?);
        socket.set_nonblocking(true)?;
        let kind = socket.r#type().with_context(|| {
            format!("descriptor {number} is no socket: the worker's starter must pass open sockets")
        })?;
        if kind == Type::DGRAM {
            inherited.udp.push(socket.into());
        } else if kind == Type::STREAM {
            inherited.tcp.push(socket.into());
        } else {
            bail!("descriptor {number} is neither a UDP nor a TCP socket");
        }
    }
    if inherited.udp.is_empty() {
        bail!("no UDP socket was passed to the DNS worker: it would answer nobody");
    }
    Ok(inherited)
}

fn take(number: RawFd) -> Result<OwnedFd> {
    // Numbers below belong to the standard streams.
    if number <= 2 {
        bail!("descriptor {number} cannot be a DNS socket: pass a number above 2");
    }
    // SAFETY: the number comes from the starter, which passes each once for the worker to own;
    // that it is open at all is checked by the call below, before it is used.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    match fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
        Ok(_) => Ok(descriptor),
        Err(error) => {
            // Closing what was never open would abort in debug builds.
            std::mem::forget(descriptor);
            Err(error).with_context(|| {
                format!("descriptor {number} was not passed to the DNS worker by its starter")
            })
        }
    }
}
