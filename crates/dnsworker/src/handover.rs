#![allow(unsafe_code)] // Received descriptors: see SAFETY below.
//! A worker's sockets for its successor: another build of the program, or one under another
//! supervisor. Both hold the same sockets for a while, and a question goes to one of them.
//!
//! ```text
//! successor ── GET /sockets ─▶ control socket of the worker
//!           ◀── how many, and the sockets themselves (SCM_RIGHTS, unix(7))
//! ```
//!
//! Who has the sockets answers for the cluster's names. So they go to root alone, and are taken
//! from root alone, whatever the modes of files say.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, UnixCredentials, getsockopt, recvmsg, sendmsg,
};
use nix::unistd::Pid;
use socket2::{Socket, Type};

use crate::sockets::{MAX_PASSED, be_alone, listen};

/// The path of the request.
pub(crate) const PATH: &str = "/sockets";
/// The path of the question whether a worker answers by a zone.
pub(crate) const READY_PATH: &str = "/ready";
/// Octets of the answer to that.
const ANSWER_OCTETS: u64 = 1024;
/// A worker that has not answered after this long is taken for dead.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How often a worker is looked for that is about to be there again.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Octets of the line that comes with the sockets.
const LINE_OCTETS: usize = 64;

/// What a running worker gave.
pub struct Predecessor {
    /// Its sockets, which it goes on answering at, and its listener for metrics.
    pub sockets: Vec<OwnedFd>,
    /// The process to end once a successor answers; 0 for one of another container.
    pub process: Pid,
}

/// The worker of this node, if one runs. One that has just begun has its sockets before it can be
/// asked, and one that died is followed within milliseconds: while somebody has the addresses, it
/// is waited for.
pub fn predecessor(control_socket: &Path, addresses: &[SocketAddr]) -> Option<Predecessor> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let error = match take_over(control_socket) {
            Ok(predecessor) => return Some(predecessor),
            Err(error) => error,
        };
        if addresses.iter().all(|address| be_alone(*address).is_ok()) {
            return None;
        }
        if Instant::now() >= deadline {
            tracing::warn!("somebody answers at {addresses:?}, and no worker of ours: {error:#}");
            return None;
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// Asks the worker behind a control socket for its sockets.
///
/// # Errors
/// When none answers there, it is not root's, or what it gives is not whole.
pub fn take_over(control_socket: &Path) -> Result<Predecessor> {
    let asking = || format!("asking the DNS worker at {}", control_socket.display());
    let (mut stream, peer) = connect(control_socket).with_context(asking)?;
    stream.write_all(format!("GET {PATH} HTTP/1.1\r\n\r\n").as_bytes()).with_context(asking)?;
    let sockets = receive(&stream).with_context(asking)?;
    Ok(Predecessor { sockets, process: Pid::from_raw(peer.pid()) })
}

/// The sockets of addresses: a predecessor's as far as it has them, and new ones for the rest.
/// Besides, its listener for metrics.
///
/// # Errors
/// The kernel's, such as for a port in use.
pub fn sockets_at(
    addresses: &[SocketAddr],
    predecessor: Option<Predecessor>,
) -> io::Result<Vec<OwnedFd>> {
    let taken = predecessor.map(|predecessor| predecessor.sockets).unwrap_or_default();
    let mut taken: Vec<Socket> = taken.into_iter().map(Socket::from).collect();
    let mut sockets = Vec::new();
    for address in addresses {
        let is_here = |socket: &mut Socket| address_of(socket) == Some(*address);
        let here: Vec<Socket> = taken.extract_if(.., is_here).collect();
        let has = |kind| here.iter().any(|socket| socket.r#type().is_ok_and(|own| own == kind));
        if has(Type::DGRAM) && has(Type::STREAM) {
            sockets.extend(here.into_iter().map(OwnedFd::from));
        } else {
            drop(here);
            sockets.extend(listen(*address)?.into_descriptors());
        }
    }
    // Addresses that are not answered at any more have both kinds.
    let is_datagram = |socket: &Socket| socket.r#type().is_ok_and(|kind| kind == Type::DGRAM);
    let given_up: Vec<Option<SocketAddr>> =
        taken.iter().filter(|socket| is_datagram(socket)).map(address_of).collect();
    let metrics = taken.into_iter().filter(|socket| !given_up.contains(&address_of(socket)));
    sockets.extend(metrics.map(OwnedFd::from));
    Ok(sockets)
}

fn address_of(socket: &Socket) -> Option<SocketAddr> {
    socket.local_addr().ok()?.as_socket()
}

/// Whether the worker behind a control socket is of this container and knows a zone. What it has
/// taken over from others is safe with it then.
///
/// Containers on one network cannot be told apart by address and port: two workers answer at the
/// same ones while one takes over from the other. By process they can: those of another container's
/// process namespace have no number here (unix(7), `SO_PEERCRED`; pid_namespaces(7)).
///
/// # Errors
/// Why it is not.
pub fn is_ready(control_socket: &Path) -> Result<()> {
    let asking = || format!("asking the DNS worker at {}", control_socket.display());
    let (mut stream, peer) = connect(control_socket).with_context(asking)?;
    ensure!(peer.pid() != 0, "the worker at {} is another's", control_socket.display());
    stream.write_all(format!("GET {READY_PATH} HTTP/1.1\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_OCTETS).read_to_string(&mut answer).with_context(asking)?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{}", answer.lines().last().unwrap_or_default());
    Ok(())
}

fn connect(control_socket: &Path) -> Result<(UnixStream, UnixCredentials)> {
    let stream = UnixStream::connect(control_socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let peer = root_peer(&stream)?;
    Ok((stream, peer))
}

/// Gives the sockets to whoever asked, if that is root.
pub(crate) fn hand_over(stream: &UnixStream, sockets: &[OwnedFd]) -> Result<()> {
    root_peer(stream)?;
    let numbers: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    let line = format!("{}\n", numbers.len());
    let rights = [ControlMessage::ScmRights(&numbers)];
    let octets = [IoSlice::new(line.as_bytes())];
    sendmsg::<()>(stream.as_raw_fd(), &octets, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    tracing::info!("{} sockets were given to another worker", numbers.len());
    Ok(())
}

fn root_peer(stream: &UnixStream) -> Result<UnixCredentials> {
    let peer = getsockopt(stream, PeerCredentials)?;
    ensure!(peer.uid() == 0, "the other end is process {} of user {}", peer.pid(), peer.uid());
    Ok(peer)
}

fn receive(stream: &UnixStream) -> Result<Vec<OwnedFd>> {
    let mut line = [0; LINE_OCTETS];
    let mut room = nix::cmsg_space!([RawFd; MAX_PASSED as usize]);
    let mut octets = [IoSliceMut::new(&mut line)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut octets, Some(&mut room), flags)?;
    let mut sockets = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            // SAFETY: the kernel made these numbers for this process with this message, so that
            // nobody else has them.
            sockets.extend(numbers.into_iter().map(|one| unsafe { OwnedFd::from_raw_fd(one) }));
        }
    }
    let length = message.bytes;
    let text = String::from_utf8_lossy(line.get(..length).unwrap_or_default()).into_owned();
    let said: usize = text.trim_end().parse().ok().context("it gives no sockets")?;
    if said != sockets.len() || sockets.is_empty() {
        bail!("of {said} sockets {} came", sockets.len());
    }
    Ok(sockets)
}
