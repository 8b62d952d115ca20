//! [`Socket`]: one kept netlink socket, request and answer strictly in turn.
//!
//! The messy reality: an answer may belong to an earlier request that was given up (sequence
//! numbers tell), a dump may be torn by a concurrent change (`NLM_F_DUMP_INTR`: read again), and
//! the kernel truncates silently what does not fit the buffer (`MSG_TRUNC` tells).
#![allow(unsafe_code)] // setsockopt(SOL_NETLINK), which nix does not wrap

mod batch;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockType, bind, getsockname, recv, send,
    setsockopt, sockopt,
};
use nix::sys::time::TimeVal;

use crate::Error;
use crate::message::{Attributes, HEADER_BYTES, Request, aligned, u16_of, u32_of};

/// Receive buffer in bytes: the largest piece that the kernel fills for a dump.
const RECEIVE_BYTES: usize = 32 * 1024;
/// Messages that one dump may have: above the largest node's routes and neighbours.
const DUMP_MESSAGES_MAX: usize = 1_000_000;
/// How often a dump is begun again when others change what it reads.
const DUMP_ATTEMPTS: usize = 8;
/// Seconds without any answer after which a request fails. The kernel answers within the send.
const ANSWER_TIMEOUT_S: i64 = 10;

/// One message of an answer.
#[derive(Clone, Debug)]
pub struct Message {
    /// `nlmsg_type`.
    pub kind: u16,
    /// What follows the netlink header: a family header, then attributes.
    pub payload: Vec<u8>,
}

impl Message {
    /// The first bytes of the payload, when there are as many.
    pub fn header<const N: usize>(&self) -> Option<[u8; N]> {
        self.payload.get(..N)?.try_into().ok()
    }

    /// The attributes after a family header of `header_bytes` bytes.
    pub fn attributes(&self, header_bytes: usize) -> Attributes<'_> {
        Attributes::new(self.payload.get(aligned(header_bytes)..).unwrap_or_default())
    }
}

/// One kept netlink socket of any netlink protocol.
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket of a netlink protocol, such as `libc::NETLINK_ROUTE`.
    ///
    /// # Errors
    /// When the system refuses it.
    pub fn open(protocol: i32) -> Result<Self, Error> {
        let action = || "open a netlink socket".to_owned();
        let failed = |errno: Errno| Error::new(errno as i32, action());
        let fd = open_raw(protocol).map_err(failed)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_TIMEOUT_S, 0))
            .map_err(failed)?;
        // The kernel's own words in errors, without a copy of our request.
        set_option(&fd, libc::NETLINK_EXT_ACK, ON).map_err(failed)?;
        set_option(&fd, libc::NETLINK_CAP_ACK, ON).map_err(failed)?;
        // Filters in dump requests are obeyed, or refused, but not ignored.
        set_option(&fd, libc::NETLINK_GET_STRICT_CHK, ON).map_err(failed)?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// The socket's own address, which notifications of what it changed carry
    /// ([`crate::Notice::port_id`]). 0 when the system does not tell.
    pub fn port_id(&self) -> u32 {
        getsockname::<NetlinkAddr>(self.fd.as_raw_fd()).map_or(0, |address| address.pid())
    }

    /// Sends a request and waits for its acknowledgement; answers the messages before it.
    /// `action` completes "cannot …" in an error.
    ///
    /// # Errors
    /// What the kernel refused, in its words.
    pub fn call(
        &mut self,
        request: &Request,
        action: impl Fn() -> String,
    ) -> Result<Vec<Message>, Error> {
        self.send(request, libc::NLM_F_ACK, &action)?;
        let mut messages = Vec::new();
        self.receive(&action, &mut messages)?;
        Ok(messages)
    }

    /// Sends a dump request and collects its answer, again when others changed it meanwhile.
    ///
    /// # Errors
    /// What the kernel refused; `EINTR` when the dump was torn time after time.
    pub fn dump(
        &mut self,
        request: &Request,
        action: impl Fn() -> String,
    ) -> Result<Vec<Message>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            self.send(request, libc::NLM_F_DUMP, &action)?;
            let mut messages = Vec::new();
            if self.receive(&action, &mut messages)? == Consistency::Whole {
                return Ok(messages);
            }
        }
        Err(Error {
            reason: Some("others kept changing what is read; try again".into()),
            ..Error::new(libc::EINTR, action())
        })
    }

    /// The descriptor, and a sequence number whose answers nobody here waits for.
    pub(crate) fn lend(&mut self) -> (BorrowedFd<'_>, u32) {
        self.sequence = self.sequence.wrapping_add(1);
        (self.fd.as_fd(), self.sequence)
    }

    fn send(
        &mut self,
        request: &Request,
        flags: i32,
        action: &impl Fn() -> String,
    ) -> Result<(), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = request.finish(self.sequence, flags);
        loop {
            match send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::new(errno as i32, action())),
            }
        }
    }

    /// Reads until the acknowledgement or the end of the dump of the current request.
    fn receive(
        &mut self,
        action: &impl Fn() -> String,
        messages: &mut Vec<Message>,
    ) -> Result<Consistency, Error> {
        let mut consistency = Consistency::Whole;
        loop {
            let length = self.receive_piece(action)?;
            let mut rest = &self.buffer[..length];
            while !rest.is_empty() {
                let (header, payload, next) = split(rest)
                    .ok_or_else(|| Error::malformed(action(), "a message length is wrong"))?;
                rest = next;
                if header.sequence != self.sequence {
                    continue; // of an earlier request that was given up
                }
                if i32::from(header.flags) & libc::NLM_F_DUMP_INTR != 0 {
                    consistency = Consistency::Torn;
                }
                match i32::from(header.kind) {
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                        return outcome(header, payload, action).map(|()| consistency);
                    }
                    libc::NLMSG_NOOP => {}
                    _ if messages.len() >= DUMP_MESSAGES_MAX => {
                        return Err(Error::malformed(action(), "the answer does not end"));
                    }
                    _ => messages.push(Message { kind: header.kind, payload: payload.to_vec() }),
                }
            }
        }
    }

    fn receive_piece(&mut self, action: &impl Fn() -> String) -> Result<usize, Error> {
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(length) if length <= self.buffer.len() => return Ok(length),
                Ok(length) => {
                    let reason = format!("an answer of {length} bytes does not fit the buffer");
                    return Err(Error::malformed(action(), reason));
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::new(errno as i32, action())),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Consistency {
    Whole,
    Torn,
}

#[derive(Clone, Copy)]
struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

/// The first message, its payload, and the bytes after it.
fn split(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let length = usize::try_from(u32_of(bytes)?).ok()?;
    let payload = bytes.get(HEADER_BYTES..length)?;
    let header = Header {
        kind: u16_of(bytes.get(4..)?)?,
        flags: u16_of(bytes.get(6..)?)?,
        sequence: u32_of(bytes.get(8..)?)?,
    };
    Some((header, payload, bytes.get(aligned(length)..).unwrap_or_default()))
}

/// `NLMSGERR_ATTR_MSG`: the kernel's words.
const ERROR_TEXT: u16 = 1;

/// Reads an acknowledgement or the end of a dump. Both begin with a negative errno; words of the
/// kernel may follow.
fn outcome(header: Header, payload: &[u8], action: &impl Fn() -> String) -> Result<(), Error> {
    let Some(code) = u32_of(payload) else {
        // A DONE without a code is what older dumps send.
        return Ok(());
    };
    let code = i32::from_ne_bytes(code.to_ne_bytes());
    if code >= 0 {
        return Ok(());
    }
    // An error repeats our message's header (NETLINK_CAP_ACK: only the header) before the words.
    let skip = if i32::from(header.kind) == libc::NLMSG_ERROR { 4 + HEADER_BYTES } else { 4 };
    let words = Attributes::new(payload.get(skip..).unwrap_or_default()).text(ERROR_TEXT);
    Err(Error { reason: words, ..Error::new(code.saturating_neg(), action()) })
}

pub(crate) fn open_raw(protocol: i32) -> Result<OwnedFd, Errno> {
    use std::os::fd::FromRawFd;
    let family = AddressFamily::Netlink as i32;
    let kind = SockType::Raw as i32 | SockFlag::SOCK_CLOEXEC.bits();
    // SAFETY: socket() takes no pointers.
    let fd = Errno::result(unsafe { libc::socket(family, kind, protocol) })?;
    // SAFETY: the descriptor is fresh, valid, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

const ON: libc::c_int = 1;

/// Sets an option of `SOL_NETLINK`.
pub(crate) fn set_option(fd: &OwnedFd, option: i32, value: libc::c_int) -> Result<(), Errno> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointer and length describe a live c_int; the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            std::ptr::from_ref(&value).cast(),
            length,
        )
    };
    Errno::result(result).map(drop)
}
