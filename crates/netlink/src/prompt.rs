//! Deleting links without waiting for what the kernel does after they are gone.
//!
//! The kernel takes a link out of sight within a fraction of a millisecond, and then holds the
//! caller until all processors have passed a grace period (`netdev_run_todo`). Measured on Linux
//! 6.18 with two processors, median of 40 pods: deletion of a veth pair by index, by group, or
//! from the inside of the pod 21 to 25 ms, the removal of the pod's namespace until the node's
//! end is gone 17 ms, moving both ends to a namespace that is then dropped 36 ms; until neither
//! end can be found any more, in whichever way, 0.4 ms. So a child process does the waiting.
#![allow(unsafe_code)] // fork, and system calls between it and the child's end

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use crate::link::{RTM_DELLINK, header};
use crate::message::{HEADER_BYTES, Request};
use crate::socket::open_raw;
use crate::{Error, Netlink};

/// Milliseconds after which a link that is still there is an error.
const GONE_TIMEOUT_MS: u64 = 10_000;
/// Microseconds between two looks. The first that finds the kernel at work waits for its lock.
const LOOK_PAUSE_US: u64 = 50;
/// Bytes of an acknowledgement that are read: header, error, and the request's header.
const ANSWER_BYTES: usize = 4 * HEADER_BYTES;

impl Netlink {
    /// Removes a link as [`Netlink::delete_link`] does, and returns as soon as neither it nor a
    /// peer can be found; a child process stays with the kernel for some milliseconds. Meant for
    /// programs that end soon: they leave the child to init.
    ///
    /// # Errors
    /// `ENODEV` when it is gone already.
    pub fn delete_link_promptly(&mut self, index: u32) -> Result<(), Error> {
        let action = || format!("delete the link number {index}");
        let failed = |errno: nix::errno::Errno| Error::new(errno as i32, action());
        // All that the child needs is made before: it may not allocate.
        let socket = open_raw(libc::NETLINK_ROUTE).map_err(failed)?;
        let bytes = Request::new(RTM_DELLINK, 0, &header(index)).finish(1, libc::NLM_F_ACK);
        // SAFETY: the child makes system calls on memory that exists, and ends by `_exit`.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                let status = send_alone(socket.as_raw_fd(), &bytes);
                // SAFETY: _exit takes no pointers and does not return.
                unsafe { libc::_exit(status) }
            }
            Ok(ForkResult::Parent { child }) => self.wait_until_gone(index, child),
            // No room for another process: then we wait ourselves.
            Err(_) => self.delete_link(index),
        }
    }

    fn wait_until_gone(&mut self, index: u32, child: Pid) -> Result<(), Error> {
        let action = || format!("delete the link number {index}");
        let deadline = Instant::now() + Duration::from_millis(GONE_TIMEOUT_MS);
        loop {
            match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => {
                    if self.link_at(index)?.is_none() {
                        return Ok(());
                    }
                }
                Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
                Ok(WaitStatus::Exited(_, errno)) => return Err(Error::new(errno, action())),
                // Killed, or reaped by a program that ignores its children.
                _ => return self.delete_link(index),
            }
            if Instant::now() > deadline {
                let reason = format!("it is still there after {GONE_TIMEOUT_MS} ms");
                return Err(Error {
                    reason: Some(reason),
                    ..Error::new(libc::ETIMEDOUT, action())
                });
            }
            std::thread::sleep(Duration::from_micros(LOOK_PAUSE_US));
        }
    }
}

/// The child's work: sends one request and answers its errno. Holds nothing else open, neither
/// locks nor the output that somebody reads to its end.
fn send_alone(socket: i32, bytes: &[u8]) -> i32 {
    let number = libc::c_long::from(socket);
    let mut answer = [0_u8; ANSWER_BYTES];
    // SAFETY: close_range takes numbers; send and recv get live buffers with their lengths.
    unsafe {
        libc::syscall(libc::SYS_close_range, 0, number - 1, 0);
        libc::syscall(libc::SYS_close_range, number + 1, libc::c_long::from(i32::MAX), 0);
        if libc::send(socket, bytes.as_ptr().cast(), bytes.len(), 0) < 0 {
            return nix::errno::Errno::last_raw();
        }
        let received = libc::recv(socket, answer.as_mut_ptr().cast(), answer.len(), 0);
        if received < 0 {
            return nix::errno::Errno::last_raw();
        }
    }
    // struct nlmsgerr: a negative errno behind the header.
    let [.., a, b, c, d] = *answer.first_chunk::<{ HEADER_BYTES + 4 }>().unwrap_or(&[0; 20]);
    i32::from_ne_bytes([a, b, c, d]).saturating_neg()
}
