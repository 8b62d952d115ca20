//! Frames as a hostile pod would write them, byte by byte, and what sends and sees them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use model::MacAddress;
use netlink::Netns;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;

use crate::lab::DEADLINE;

/// Ends every frame of a test, so that nobody else's is counted.
pub const MARK: &[u8; 8] = b"flatnet?";
/// Bytes that a capture may hold: ten thousand frames with what the kernel needs for each.
const CAPTURE_BYTES: usize = 64 << 20;

pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;
pub const ARP: u16 = 0x0806;
pub const BROADCAST: MacAddress = MacAddress([0xff; 6]);

/// A frame, marked at its end.
pub fn frame(to: MacAddress, from: MacAddress, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [to.0, from.0].concat();
    bytes.extend(ether_type.to_be_bytes());
    bytes.extend(payload);
    // Behind what the packet's own length tells.
    bytes.resize(bytes.len().max(60), 0);
    bytes.extend(MARK);
    bytes
}

/// The same frame, which nobody counts.
pub fn unmarked(mut frame: Vec<u8>) -> Vec<u8> {
    frame.truncate(frame.len() - MARK.len());
    frame
}

/// The end of the frame that comes last in a round.
pub fn last_mark(round: u32) -> [u8; 8] {
    let [a, b, c, d] = round.to_be_bytes();
    [b'l', b'a', b's', b't', a, b, c, d]
}

/// Keeps the calling thread on the processor where it is. A veth pair queues its frames by the
/// processor that sends them: so all of one thread come out in the order in which they went in.
pub fn on_one_processor() {
    let mut here = CpuSet::new();
    here.set(sched_getcpu().expect("a processor")).expect("its number");
    sched_setaffinity(Pid::from_raw(0), &here).expect("the thread stays");
}

/// The frame with VLAN tags around what it carries.
pub fn tagged(frame: &[u8], tags: &[u16]) -> Vec<u8> {
    let mut bytes = frame[..12].to_vec();
    for tag in tags {
        bytes.extend(tag.to_be_bytes());
        bytes.extend([0, 5]);
    }
    bytes.extend(&frame[12..]);
    bytes
}

pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header_bytes = 20 + options.len();
    let length = u16::try_from(header_bytes + payload.len()).expect("a short packet");
    let words = u8::try_from(header_bytes / 4).expect("a short header");
    let mut header = vec![0x40 | words, 0];
    header.extend(length.to_be_bytes());
    header.extend([0, 7, 0, 0, 64, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    header.extend(options);
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [header, payload.to_vec()].concat()
}

pub fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a short packet");
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(length.to_be_bytes());
    bytes.extend([next, 255]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend(payload);
    bytes
}

pub fn udp(from: u16, to: u16) -> Vec<u8> {
    let mut bytes = [from.to_be_bytes(), to.to_be_bytes(), 16_u16.to_be_bytes(), [0; 2]].concat();
    bytes.extend(b"datagram");
    bytes
}

/// The same with its checksum, without which IPv6 takes none (RFC 8200, section 8.1).
pub fn udp6(from: Ipv6Addr, to: Ipv6Addr, ports: (u16, u16)) -> Vec<u8> {
    let mut datagram = udp(ports.0, ports.1);
    let pseudo =
        [&from.octets()[..], &to.octets(), &[0, 0, 0, 16, 0, 0, 0, 17], &datagram].concat();
    let sum = checksum(&pseudo);
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    datagram
}

/// A TCP segment over IPv4 without data, from one port to another, with its checksum (RFC 9293).
pub fn tcp(from: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16), flags: u8) -> Vec<u8> {
    let mut segment = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 6, 0, 20], &segment].concat();
    let sum = checksum(&pseudo);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// An ICMPv6 message with its checksum (RFC 4443, section 2.3).
pub fn icmpv6(from: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(body);
    let length = u32::try_from(message.len()).expect("a short message");
    let mut pseudo = [from.octets(), to.octets()].concat();
    pseudo.extend(length.to_be_bytes());
    pseudo.extend([0, 0, 0, 58]);
    pseudo.extend(&message);
    let sum = checksum(&pseudo);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// The body of a neighbour solicitation or advertisement with options.
pub fn neighbour(target: Ipv6Addr, options: &[(u8, MacAddress)]) -> Vec<u8> {
    let mut body = vec![0x20, 0, 0, 0];
    body.extend(target.octets());
    for (kind, mac) in options {
        body.extend([*kind, 1]);
        body.extend(mac.0);
    }
    body
}

/// `operation` 1 asks, 2 answers.
pub fn arp(operation: u8, mac: MacAddress, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, operation];
    bytes.extend(mac.0);
    bytes.extend(sender.octets());
    bytes.extend([0; 6]);
    bytes.extend(target.octets());
    bytes
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A socket that writes whole frames to a namespace's `eth0`.
pub struct Sender(OwnedFd);

impl Sender {
    pub fn open(namespace: &Netns) -> Self {
        namespace
            .run(|| {
                let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
                    .expect("a packet socket (these tests need root)");
                let link = getifaddrs()
                    .expect("the links")
                    .filter(|one| one.interface_name == "eth0")
                    .find_map(|one| one.address.and_then(|it| it.as_link_addr().copied()))
                    .expect("eth0");
                bind(fd.as_raw_fd(), &link).expect("eth0");
                Self(fd)
            })
            .expect("the sender's namespace")
    }

    pub fn send(&self, frame: &[u8]) {
        loop {
            match send(self.0.as_raw_fd(), frame, MsgFlags::empty()) {
                Ok(_) => return,
                // The queue is full for a moment.
                Err(Errno::ENOBUFS | Errno::EINTR) => std::thread::yield_now(),
                Err(errno) => panic!("cannot send a frame: {errno}"),
            }
        }
    }
}

/// Sees all frames of a namespace from its opening on.
pub struct Capture(OwnedFd);

impl Capture {
    pub fn open(namespace: &Netns) -> Self {
        namespace
            .run(|| {
                let protocol = SockProtocol::EthAll;
                let flags = SockFlag::SOCK_CLOEXEC;
                let fd = socket(AddressFamily::Packet, SockType::Raw, flags, protocol)
                    .expect("a packet socket (these tests need root)");
                setsockopt(&fd, sockopt::RcvBufForce, &CAPTURE_BYTES).expect("a large buffer");
                let tick = TimeVal::new(0, 20_000);
                setsockopt(&fd, sockopt::ReceiveTimeout, &tick).expect("a timeout");
                Self(fd)
            })
            .expect("the capture's namespace")
    }

    /// Counts marked frames until the one with this end, which `send_last` sends: again while it
    /// does not come, for a busy machine may drop it.
    pub fn count(&self, end: &[u8], send_last: impl Fn()) -> usize {
        let mut marked = 0;
        send_last();
        self.watch(|seen| {
            let Some(frame) = seen else {
                send_last();
                return false;
            };
            marked += usize::from(frame.ends_with(MARK));
            frame.ends_with(end)
        });
        marked
    }

    /// Shows frames until one is the last that is waited for.
    pub fn until(&self, mut is_last: impl FnMut(&[u8]) -> bool) {
        self.watch(|seen| seen.is_some_and(&mut is_last));
    }

    /// The same, with nothing when nothing came for a moment.
    fn watch(&self, mut is_last: impl FnMut(Option<&[u8]>) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        let mut buffer = [0; 2048];
        while Instant::now() < deadline {
            let is_end = match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => is_last(Some(&buffer[..length])),
                Err(Errno::EAGAIN) => is_last(None),
                Err(Errno::EINTR) => false,
                Err(errno) => panic!("cannot receive: {errno}"),
            };
            if is_end {
                return;
            }
        }
        panic!("the last frame, which is an honest one, did not come within {DEADLINE:?}");
    }
}

/// Packets that a processor had no room for, whoever sent them (`/proc/net/softnet_stat`).
pub fn dropped_by_the_machine() -> u64 {
    let text = std::fs::read_to_string("/proc/net/softnet_stat").expect("the kernel's counters");
    let dropped = |line: &str| {
        let word = line.split_whitespace().nth(1).expect("the second number");
        u64::from_str_radix(word, 16).expect("a number")
    };
    text.lines().map(dropped).sum()
}

pub fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => panic!("{address} is no IPv4 address"),
    }
}

pub fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V6(address) => address,
        IpAddr::V4(_) => panic!("{address} is no IPv6 address"),
    }
}
