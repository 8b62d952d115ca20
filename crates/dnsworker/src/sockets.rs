//! The sockets that clients ask at: opened by the worker's starter, inherited by the worker.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};
use socket2::{Domain, Protocol, Socket, Type};

/// The port of DNS.
const DNS_PORT: u16 = 53;
/// Room for questions that wait while a worker is replaced, in bytes.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
/// TCP connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// The most threads, and so sockets of one address: one of them answers 100,000 questions a
/// second, more than the pods of a node ask.
const MAX_THREADS: usize = 4;

/// Sockets that are looked for among the passed descriptors: both kinds for every thread at four
/// addresses, and as many again.
pub(crate) const MAX_PASSED: RawFd = 64;

/// Sockets of one address.
pub struct Listening {
    /// For datagrams, one a thread.
    pub udp: Vec<UdpSocket>,
    /// For connections, one a thread.
    pub tcp: Vec<TcpListener>,
}

/// The inherited sockets, sorted by what they are.
#[derive(Default)]
pub(crate) struct Inherited {
    pub(crate) udp: Vec<UdpSocket>,
    pub(crate) tcp: Vec<TcpListener>,
    /// Listeners where no datagrams are taken: of a predecessor's metrics.
    pub(crate) metrics: Vec<TcpListener>,
}

/// Opens the sockets of one address in the current network namespace: one of each kind for every
/// processor, to the limit. The address need not exist yet.
///
/// # Errors
/// The kernel's, such as for a port in use.
pub fn listen(address: SocketAddr) -> io::Result<Listening> {
    be_alone(address)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let mut listening = Listening { udp: vec![], tcp: vec![] };
    for _ in 0..threads {
        let udp = open(address, Type::DGRAM, Protocol::UDP)?;
        udp.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
        listening.udp.push(udp.into());
        let tcp = open(address, Type::STREAM, Protocol::TCP)?;
        tcp.listen(BACKLOG)?;
        listening.tcp.push(tcp.into());
    }
    // One program a group, attached by any of its sockets.
    if let (Some(udp), Some(tcp)) = (listening.udp.first(), listening.tcp.first()) {
        steer_by_client(udp, address, threads)?;
        steer_by_client(tcp, address, threads)?;
    }
    Ok(listening)
}

/// Fails where anybody takes datagrams already. Another server that shares its port, as many do,
/// would not refuse ours, and each of us would miss questions.
pub(crate) fn be_alone(address: SocketAddr) -> io::Result<()> {
    unbound(address, Type::DGRAM, Protocol::UDP)?.bind(&address.into())
}

fn open(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = unbound(address, kind, protocol)?;
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn unbound(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    Ok(socket)
}

/// Has the kernel choose among the sockets of a group by the client's address alone.
fn steer_by_client(socket: &impl AsRawFd, address: SocketAddr, sockets: usize) -> io::Result<()> {
    // The last four octets of the source address, from the start of the network header.
    let offset = if address.is_ipv4() { 12 } else { 20 };
    let network_header = libc::SKF_NET_OFF as u32;
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, network_header.wrapping_add(offset)),
        statement(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, sockets as u32),
        statement(libc::BPF_RET | libc::BPF_A, 0),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the option reads one `sock_fprog`, whose statements live until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as u32,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An upstream server that is ourselves would be asked without end.
pub(crate) fn without_own(upstreams: &[SocketAddr], own: &Inherited) -> Result<Vec<SocketAddr>> {
    let mut kept = upstreams.to_vec();
    for socket in &own.udp {
        let own = socket.local_addr().context("reading the address of an inherited socket")?;
        if kept.contains(&own) {
            tracing::warn!(
                "{own} is this DNS worker's own address and not asked as upstream server"
            );
        }
        kept.retain(|upstream| *upstream != own);
    }
    Ok(kept)
}

/// The addresses that clients ask at, at the port of DNS.
pub(crate) fn addresses(inherited: &Inherited) -> BTreeSet<IpAddr> {
    let addresses = inherited.udp.iter().filter_map(|socket| socket.local_addr().ok());
    addresses.filter(|address| address.port() == DNS_PORT).map(|address| address.ip()).collect()
}

/// The same sockets again, for whoever takes them over.
pub(crate) fn duplicates(inherited: &Inherited) -> io::Result<Vec<OwnedFd>> {
    let udp = inherited.udp.iter().map(|socket| Ok(socket.try_clone()?.into()));
    udp.chain(inherited.tcp.iter().map(|socket| Ok(socket.try_clone()?.into()))).collect()
}

/// Deals the sockets out to threads: each gets one of every address, as far as they go.
pub(crate) fn share(inherited: Inherited) -> Result<Vec<Inherited>> {
    let mut shares: Vec<Inherited> = Vec::new();
    let mut seen: BTreeMap<SocketAddr, usize> = BTreeMap::new();
    for udp in inherited.udp {
        let place = seen.entry(udp.local_addr()?).or_default();
        if *place >= shares.len() {
            shares.push(Inherited::default());
        }
        if let Some(share) = shares.get_mut(*place) {
            share.udp.push(udp);
        }
        *place += 1;
    }
    seen.clear();
    for tcp in inherited.tcp {
        let place = seen.entry(tcp.local_addr()?).or_default();
        let thread = *place % shares.len().max(1);
        if let Some(share) = shares.get_mut(thread) {
            share.tcp.push(tcp);
        }
        *place += 1;
    }
    Ok(shares)
}

impl Listening {
    /// All of them, to be passed to a worker.
    pub fn into_descriptors(self) -> Vec<OwnedFd> {
        let udp = self.udp.into_iter().map(OwnedFd::from);
        udp.chain(self.tcp.into_iter().map(OwnedFd::from)).collect()
    }
}

/// The sockets that a starter passed, one behind the other from a number on.
pub fn passed(first: RawFd) -> Vec<RawFd> {
    let is_socket = |number: &RawFd| {
        // SAFETY: the number is only asked about, and not kept beyond this.
        let descriptor = unsafe { BorrowedFd::borrow_raw(*number) };
        fstat(descriptor).is_ok_and(|state| {
            SFlag::from_bits_truncate(state.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFSOCK
        })
    };
    (first..first + MAX_PASSED).take_while(is_socket).collect()
}

/// Takes over inherited sockets.
pub(crate) fn inherit(numbers: &[RawFd]) -> Result<Inherited> {
    let mut inherited = Inherited::default();
    for number in numbers {
        let socket = Socket::from(take(*number)?);
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
    let addresses: BTreeSet<SocketAddr> =
        inherited.udp.iter().map(UdpSocket::local_addr).collect::<io::Result<_>>()?;
    let is_of_metrics = |listener: &mut TcpListener| {
        listener.local_addr().is_ok_and(|address| !addresses.contains(&address))
    };
    inherited.metrics = inherited.tcp.extract_if(.., is_of_metrics).collect();
    // Not those of metrics: a thread waits in them, and a predecessor's too.
    inherited.udp.iter().try_for_each(|socket| socket.set_nonblocking(true))?;
    inherited.tcp.iter().try_for_each(|socket| socket.set_nonblocking(true))?;
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
