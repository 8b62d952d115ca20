//! Several netfilter requests that take effect together (`nfnetlink_rcv_batch` of the kernel).

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};

use super::{Socket, outcome, split};
use crate::Error;
use crate::message::Request;

/// Bytes of one batch. The kernel takes a batch in one piece and copies it.
const BATCH_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Answers that are read to one batch: one a refused request.
const ANSWERS_MAX: usize = 100_000;

impl Socket {
    /// Sends requests to one netfilter subsystem (such as `libc::NFNL_SUBSYS_NFTABLES`) that take
    /// effect together or not at all. `action` completes "cannot …" for the request of an index,
    /// or for the batch as a whole.
    ///
    /// # Errors
    /// What the kernel refused first, in its words; then nothing has changed.
    pub fn batch(
        &mut self,
        subsystem: u16,
        requests: &[Request],
        action: impl Fn(Option<usize>) -> String,
    ) -> Result<(), Error> {
        let first = self.sequence.wrapping_add(1);
        let bytes = self.batch_bytes(subsystem, requests);
        let whole = || action(None);
        if bytes.len() > BATCH_BYTES_MAX {
            return Err(Error::malformed(whole(), "the batch is larger than the limit"));
        }
        self.make_room(bytes.len()).map_err(|errno| Error::new(errno as i32, whole()))?;
        loop {
            match send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty()) {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::new(errno as i32, whole())),
            }
        }
        self.read_answers(first, requests.len(), &action)
    }

    fn batch_bytes(&mut self, subsystem: u16, requests: &[Request]) -> Vec<u8> {
        // struct nfgenmsg: any family, version 0, the subsystem in network order.
        let [high, low] = subsystem.to_be_bytes();
        let header = [0, 0, high, low];
        let bound = |kind: i32| Request::new(u16::try_from(kind).unwrap_or_default(), 0, &header);
        let begin = bound(libc::NFNL_MSG_BATCH_BEGIN);
        let end = bound(libc::NFNL_MSG_BATCH_END);
        let mut bytes = Vec::new();
        for (index, request) in [&begin].into_iter().chain(requests).chain([&end]).enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            // Errors are answered anyway; one acknowledgement tells that there was none.
            let flags = if index == requests.len() { libc::NLM_F_ACK } else { 0 };
            bytes.extend(request.finish(self.sequence, flags));
        }
        bytes
    }

    /// The kernel refuses what does not fit the send buffer; beyond the system's limit that takes
    /// `CAP_NET_ADMIN`, which writing rules takes anyway.
    fn make_room(&self, bytes: usize) -> Result<(), Errno> {
        let needed = bytes + 1024;
        if nix::sys::socket::getsockopt(&self.fd, sockopt::SndBuf)? >= needed {
            return Ok(());
        }
        setsockopt(&self.fd, sockopt::SndBufForce, &needed)
    }

    /// The kernel has answered when the send returns. A batch without any answer was not taken.
    fn read_answers(
        &mut self,
        first: u32,
        count: usize,
        action: &impl Fn(Option<usize>) -> String,
    ) -> Result<(), Error> {
        let mut refused: Option<(usize, Error)> = None;
        let mut acknowledged = false;
        for _ in 0..ANSWERS_MAX {
            let length = match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(Error::new(errno as i32, action(None))),
            };
            let mut rest = self.buffer.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let malformed = || Error::malformed(action(None), "a message length is wrong");
                let (header, payload, next) = split(rest).ok_or_else(malformed)?;
                rest = next;
                // 0 is the batch itself, then the requests; anything else is an older answer.
                let index = header.sequence.wrapping_sub(first) as usize;
                if index > count || i32::from(header.kind) != libc::NLMSG_ERROR {
                    continue;
                }
                let request = index.checked_sub(1);
                match outcome(header, payload, &|| action(request)) {
                    Ok(()) => acknowledged |= index == count,
                    Err(error) => {
                        if refused.as_ref().is_none_or(|(earlier, _)| index < *earlier) {
                            refused = Some((index, error));
                        }
                    }
                }
            }
        }
        match refused {
            Some((_, error)) => Err(error),
            None if acknowledged => Ok(()),
            None => Err(Error::malformed(action(None), "the kernel did not answer")),
        }
    }
}
