//! Questions and answers over UDP, many in one system call each way.
#![allow(unsafe_code)]

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;

use nix::errno::Errno;

/// Datagrams taken at once.
pub(crate) const MAX_BATCH: usize = 64;
/// The largest question taken over UDP, in octets; real ones take a tenth.
const QUESTION_OCTETS: usize = 2048;

/// Room for one batch, used again for each.
pub(crate) struct Batch {
    questions: Vec<[u8; QUESTION_OCTETS]>,
    lengths: [usize; MAX_BATCH],
    addresses: Vec<libc::sockaddr_storage>,
    /// Answers by the place of their question; an empty one is not sent.
    pub(crate) answers: Vec<Vec<u8>>,
}

impl Batch {
    pub(crate) fn new() -> Self {
        // SAFETY: all zeros are a valid value of this plain C structure.
        let address: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        Self {
            questions: vec![[0; QUESTION_OCTETS]; MAX_BATCH],
            lengths: [0; MAX_BATCH],
            addresses: vec![address; MAX_BATCH],
            answers: vec![Vec::new(); MAX_BATCH],
        }
    }

    /// Takes what waits in a socket and says how many that are. An error of an earlier answer,
    /// such as to a client that went, counts as none and is cleared by the kernel.
    pub(crate) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        // SAFETY: all zeros are a valid value of these plain C structures.
        let mut vectors: [libc::iovec; MAX_BATCH] = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut headers: [libc::mmsghdr; MAX_BATCH] = unsafe { std::mem::zeroed() };
        let places = vectors.iter_mut().zip(&mut headers);
        let room = self.questions.iter_mut().zip(&mut self.addresses);
        for ((vector, header), (question, address)) in places.zip(room) {
            vector.iov_base = question.as_mut_ptr().cast();
            vector.iov_len = QUESTION_OCTETS;
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = std::ptr::from_mut(address).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as u32;
        }
        // SAFETY: each header points to one vector and one address, each vector to one buffer of
        // the length that it names; all live, and nothing else uses them, until the call returns.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                MAX_BATCH as u32,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let count = Errno::result(count)? as usize;
        for (length, header) in self.lengths.iter_mut().zip(headers).take(count) {
            *length = header.msg_len as usize;
        }
        self.answers.iter_mut().take(count).for_each(Vec::clear);
        Ok(count)
    }

    /// One question, who sent it, and room for its answer.
    pub(crate) fn question(&mut self, place: usize) -> Option<(&[u8], SocketAddr, &mut Vec<u8>)> {
        let address = address_of(self.addresses.get(place)?)?;
        let length = *self.lengths.get(place)?;
        let question = self.questions.get(place)?.get(..length)?;
        Some((question, address, self.answers.get_mut(place)?))
    }

    /// Sends the answers of the first `count` questions. What does not fit into the socket is
    /// lost, as datagrams are; its client asks again.
    pub(crate) fn send(&mut self, socket: &UdpSocket, count: usize) {
        // SAFETY: all zeros are a valid value of these plain C structures.
        let mut vectors: [libc::iovec; MAX_BATCH] = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut headers: [libc::mmsghdr; MAX_BATCH] = unsafe { std::mem::zeroed() };
        let mut used = 0;
        let answers = self.answers.iter_mut().zip(&mut self.addresses).take(count);
        let places = vectors.iter_mut().zip(&mut headers);
        for ((answer, address), (vector, header)) in
            answers.filter(|(answer, _)| !answer.is_empty()).zip(places)
        {
            vector.iov_base = answer.as_mut_ptr().cast();
            vector.iov_len = answer.len();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_namelen = match i32::from(address.ss_family) {
                libc::AF_INET => size_of::<libc::sockaddr_in>() as u32,
                _ => size_of::<libc::sockaddr_in6>() as u32,
            };
            header.msg_hdr.msg_name = std::ptr::from_mut(address).cast();
            used += 1;
        }
        let mut sent = 0;
        while sent < used {
            let Some(first) = headers.get_mut(sent) else { return };
            // SAFETY: the headers from the first on point to answers and addresses that live
            // until the call returns; there are `used` of them.
            let result = unsafe {
                libc::sendmmsg(socket.as_raw_fd(), first, (used - sent) as u32, libc::MSG_DONTWAIT)
            };
            // An error is the first message's: the others still go.
            sent += usize::try_from(result).unwrap_or(0).max(1);
        }
    }
}

fn address_of(address: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(address.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the storage, large enough for any, holds this one.
            let v4 = unsafe { &*std::ptr::from_ref(address).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*std::ptr::from_ref(address).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_answered_each_to_its_client() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let server = UdpSocket::bind(any).expect("a socket");
            let to = server.local_addr().expect("an address");
            let clients: Vec<UdpSocket> =
                (0..5).map(|_| UdpSocket::bind(any).expect("a socket")).collect();
            for (number, client) in clients.iter().enumerate() {
                client.send_to(&[number as u8; 20], to).expect("sends");
            }
            let mut batch = Batch::new();
            let count = batch.receive(&server).expect("datagrams");
            assert_eq!(count, clients.len());
            for place in 0..count {
                let (question, address, answer) = batch.question(place).expect("a question");
                let number = question[0];
                assert_eq!(address, clients[usize::from(number)].local_addr().expect("an address"));
                // One gets none.
                if number != 3 {
                    answer.extend_from_slice(&[number, 99]);
                }
            }
            batch.send(&server, count);
            for (number, client) in clients.iter().enumerate() {
                client.set_nonblocking(true).expect("a socket");
                let mut buffer = [0; 64];
                match client.recv(&mut buffer) {
                    Ok(length) => assert_eq!(buffer[..length], [number as u8, 99]),
                    Err(_) => assert_eq!(number, 3),
                }
            }
            assert!(batch.receive(&server).is_err(), "nothing is left");
        }
    }
}
