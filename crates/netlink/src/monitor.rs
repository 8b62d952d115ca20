//! [`Monitor`]: what the kernel says of its own accord when somebody changes links, routes or
//! rules (multicast groups of rtnetlink and nfnetlink).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, NetlinkAddr, bind, recv, setsockopt, sockopt};

use crate::Error;
use crate::message::{Attributes, HEADER_BYTES, aligned, u16_of, u32_of};
use crate::socket::{open_raw, set_option};

/// Receive buffer in bytes: larger than any single notification.
const RECEIVE_BYTES: usize = 32 * 1024;
/// What the kernel keeps for us while we are busy, in bytes. Beyond it the socket says that it
/// lost some, and everything is read back.
const QUEUE_BYTES: usize = 1 << 20;
/// Notifications that one reading takes at most; the rest waits for the next.
const READ_MAX: usize = 4_096;

/// One notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// `nlmsg_type`.
    pub kind: u16,
    /// The socket whose request it follows from (`nlmsg_pid`); 0 for the kernel itself.
    pub port_id: u32,
    /// What follows the netlink header: a family header, then attributes.
    pub payload: Vec<u8>,
}

impl Notice {
    /// The attributes after a family header of `header_bytes` bytes.
    pub fn attributes(&self, header_bytes: usize) -> Attributes<'_> {
        Attributes::new(self.payload.get(aligned(header_bytes)..).unwrap_or_default())
    }
}

/// What a reading brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notices {
    /// In the kernel's order.
    pub notices: Vec<Notice>,
    /// Whether some were lost: then nothing is known of what changed.
    pub lost: bool,
    /// Whether more wait to be read.
    pub more: bool,
}

/// A socket that hears multicast groups. It never blocks.
pub struct Monitor {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Monitor {
    /// Joins groups of a netlink protocol in the network namespace of the calling thread, such as
    /// `libc::RTNLGRP_LINK` of `libc::NETLINK_ROUTE`.
    ///
    /// # Errors
    /// When the system refuses the socket or a group.
    pub fn open(protocol: i32, groups: &[u32]) -> Result<Self, Error> {
        let failed = |errno: Errno| Error::new(errno as i32, "open a netlink monitor");
        let fd = open_raw(protocol).map_err(failed)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed)?;
        // Without CAP_NET_ADMIN the system's limit holds: some may be lost, which is told.
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &QUEUE_BYTES);
        for group in groups {
            let number = libc::c_int::try_from(*group).unwrap_or_default();
            set_option(&fd, libc::NETLINK_ADD_MEMBERSHIP, number).map_err(|errno| {
                Error::new(errno as i32, format!("join the netlink multicast group {group}"))
            })?;
        }
        Ok(Self { fd, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// Takes what has arrived, without waiting.
    ///
    /// # Errors
    /// When the socket cannot be read any more.
    pub fn read(&mut self) -> Result<Notices, Error> {
        let mut read = Notices::default();
        loop {
            if read.notices.len() >= READ_MAX {
                read.more = true;
                break;
            }
            let flags = MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
            match recv(self.fd.as_raw_fd(), &mut self.buffer, flags) {
                Ok(length) => match self.buffer.get(..length) {
                    Some(bytes) => read.take(bytes),
                    None => read.lost = true,
                },
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => read.lost = true,
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(Error::new(errno as i32, "read a netlink monitor")),
            }
        }
        Ok(read)
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Notices {
    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let message = || {
                let length = usize::try_from(u32_of(bytes)?).ok()?;
                let payload = bytes.get(HEADER_BYTES..length)?.to_vec();
                let kind = u16_of(bytes.get(4..)?)?;
                let port_id = u32_of(bytes.get(12..)?)?;
                Some((Notice { kind, port_id, payload }, aligned(length)))
            };
            let Some((notice, length)) = message() else {
                // The kernel does not write such bytes; nothing can be concluded from them.
                self.lost = true;
                return;
            };
            self.notices.push(notice);
            bytes = bytes.get(length..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_message_count_as_lost() {
        for bytes in [&[1, 0][..], &[200, 0, 0, 0, 1, 0, 0, 0][..], &[0; 16][..]] {
            let mut read = Notices::default();
            read.take(bytes);
            assert!(read.lost && read.notices.is_empty(), "{bytes:?}");
        }
    }
}
