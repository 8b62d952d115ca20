//! Deleting links without waiting for what the kernel does after they are gone.
//!
//! The kernel takes a link out of sight within a fraction of a millisecond, and then holds the
//! caller until all processors have passed a grace period (`netdev_run_todo`). Measured on Linux
//! 6.18 with two processors, median of 40 pods: deletion of a veth pair by index, by group, or
//! from the inside of the pod 21 to 25 ms, the removal of the pod's namespace until the node's
//! end is gone 17 ms, moving both ends to a namespace that is then dropped 36 ms; until neither
//! end can be found any more, in whichever way, 0.4 ms. So a child process does the waiting.
#![allow(unsafe_code)] // fork, and system calls between it and the child's end

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use crate::link::{RTM_DELLINK, header};
use crate::message::Request;
use crate::{Error, Netlink};

/// Milliseconds after which a link that is still there is an error.
const GONE_TIMEOUT_MS: u64 = 10_000;
/// Milliseconds for which the child keeps `held` open when the kernel is through. nftables' sockets
/// are closed one by one, each behind what all have removed until then: 60 pods that went one after
/// another took 0.8 s when the child closed its socket at once, and 0.25 s so.
const HELD_MS: libc::c_long = 1_000;
/// Microseconds between the first two looks. The first that finds the kernel at work waits for its
/// lock.
const LOOK_PAUSE_US: u64 = 50;
/// Microseconds between two looks at most: on a busy machine the child gets its turn late, and looks
/// would only take processor and lock from it.
const LOOK_PAUSE_US_MAX: u64 = 2_000;

impl Netlink {
    /// Removes a link as [`Netlink::delete_link`] does, and returns as soon as neither it nor a
    /// peer can be found; a child process stays with the kernel for some milliseconds. Meant for
    /// programs that end soon: they leave the child to init.
    ///
    /// The child keeps `held` open, and closes it at leisure ([`HELD_MS`]): whoever closes a socket
    /// of nftables last waits until nobody can see the rules that were removed, 13 ms, and so do
    /// all who want to change rules meanwhile.
    ///
    /// # Errors
    /// When the kernel refuses. A link that is gone already is no error.
    pub fn delete_link_promptly(
        &mut self,
        index: u32,
        held: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        // The same socket, since another would be one of the caller's namespace. All else that
        // the child needs is made before, too: it may not allocate.
        let (socket, sequence) = self.socket.lend();
        let socket = socket.as_raw_fd();
        let bytes = Request::new(RTM_DELLINK, 0, &header(index)).finish(sequence, 0);
        // SAFETY: the child makes system calls on memory that exists, and ends by `_exit`.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                send_alone(socket, held.map_or(socket, |held| held.as_raw_fd()), &bytes);
                // SAFETY: _exit takes no pointers and does not return.
                unsafe { libc::_exit(0) }
            }
            Ok(ForkResult::Parent { child }) => self.wait_until_gone(index, child),
            // No room for another process: then we wait ourselves.
            Err(_) => self.delete_link_if_there(index),
        }
    }

    fn wait_until_gone(&mut self, index: u32, child: Pid) -> Result<(), Error> {
        let deadline = Instant::now() + Duration::from_millis(GONE_TIMEOUT_MS);
        let mut pause_us = LOOK_PAUSE_US;
        while Instant::now() < deadline {
            let status = waitpid(child, Some(WaitPidFlag::WNOHANG));
            if self.link_at(index)?.is_none() {
                return Ok(());
            }
            if status != Ok(WaitStatus::StillAlive) {
                // It was refused, or the child was killed before.
                return self.delete_link_if_there(index);
            }
            std::thread::sleep(Duration::from_micros(pause_us));
            pause_us = LOOK_PAUSE_US_MAX.min(pause_us * 2);
        }
        Err(Error {
            reason: Some(format!("it is still there after {GONE_TIMEOUT_MS} ms")),
            ..Error::new(libc::ETIMEDOUT, format!("delete the link number {index}"))
        })
    }

    /// Removes a link that may go by itself meanwhile, as one end of a veth does with the namespace
    /// of the other.
    ///
    /// # Errors
    /// When the kernel refuses. A link that is gone already is no error.
    pub fn delete_link_if_there(&mut self, index: u32) -> Result<(), Error> {
        match self.delete_link(index) {
            Err(error) if !error.is_absent() => Err(error),
            _ => Ok(()),
        }
    }
}

/// The child's work: sends one request, which returns when the kernel is through. Has nothing else
/// open meanwhile but `held`, neither locks nor the output that somebody reads to its end.
fn send_alone(socket: i32, held: i32, bytes: &[u8]) {
    let (low, high) = (socket.min(held), socket.max(held));
    for (first, last) in [(0, low - 1), (low + 1, high - 1), (high + 1, i32::MAX)] {
        if first <= last {
            let [first, last] = [first, last].map(libc::c_long::from);
            // SAFETY: close_range takes numbers.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
    let pause = libc::timespec { tv_sec: HELD_MS / 1_000, tv_nsec: HELD_MS % 1_000 * 1_000_000 };
    // SAFETY: send gets a live buffer with its length; nanosleep reads a live timespec.
    unsafe {
        libc::send(socket, bytes.as_ptr().cast(), bytes.len(), 0);
        if held != socket {
            libc::nanosleep(&raw const pause, std::ptr::null_mut());
        }
    }
}
