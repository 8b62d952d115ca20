//! Addresses of links (`include/uapi/linux/if_addr.h`).

use std::net::IpAddr;

use ipnet::IpNet;

use crate::message::{Request, family_of, u32_of};
use crate::socket::Message;
use crate::{Error, Netlink};

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
/// Who made the address (Linux 5.18); older kernels pass over it.
const IFA_PROTO: u16 = 11;
/// No duplicate address detection: an IPv6 address of ours is usable at once, and unique by
/// allocation.
const IFA_F_NODAD: u8 = 0x02;
/// `lo` in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK_INDEX: u32 = 1;
/// Bytes of `struct ifaddrmsg`.
const HEADER_BYTES: usize = 8;

/// An address on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The link.
    pub link_index: u32,
    /// The address with its prefix length.
    pub address: IpNet,
    /// Who made it: a number that its maker chose, as with routes; 0 where nobody said.
    pub protocol: u8,
}

impl Netlink {
    /// The addresses of one link, or of all.
    ///
    /// # Errors
    /// `ENODEV` when the link is gone.
    pub fn addresses(&mut self, link_index: Option<u32>) -> Result<Vec<Address>, Error> {
        let mut header = [0; HEADER_BYTES];
        header[4..].copy_from_slice(&link_index.unwrap_or_default().to_ne_bytes());
        let request = Request::new(RTM_GETADDR, 0, &header);
        let messages = self.socket.dump(&request, || "list addresses".into())?;
        Ok(messages.iter().filter_map(parse).collect())
    }

    /// Adds an address. An IPv4 prefix shorter than 31 bits also gets its broadcast address.
    ///
    /// # Errors
    /// `EEXIST` when the link has it, `ENODEV` when the link is gone.
    pub fn add_address(&mut self, link_index: u32, address: IpNet) -> Result<(), Error> {
        self.add_address_of(link_index, address, 0)
    }

    /// The same, with a number that says who made it.
    ///
    /// # Errors
    /// As [`Netlink::add_address`].
    pub fn add_address_of(
        &mut self,
        link_index: u32,
        address: IpNet,
        protocol: u8,
    ) -> Result<(), Error> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut request = message(RTM_NEWADDR, flags, link_index, address);
        if let IpNet::V4(net) = address
            && net.prefix_len() < 31
        {
            request.address(IFA_BROADCAST, net.broadcast().into());
        }
        if protocol != 0 {
            request.u8(IFA_PROTO, protocol);
        }
        let action = || format!("add the address {address} to the link number {link_index}");
        self.socket.call(&request, action).map(drop)
    }

    /// Removes an address.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL` when the link does not have it.
    pub fn delete_address(&mut self, link_index: u32, address: IpNet) -> Result<(), Error> {
        let request = message(RTM_DELADDR, 0, link_index, address);
        let action = || format!("remove the address {address} of the link number {link_index}");
        self.socket.call(&request, action).map(drop)
    }
}

fn message(kind: u16, flags: i32, link_index: u32, address: IpNet) -> Request {
    let mut header = [0; HEADER_BYTES];
    header[0] = family_of(address.addr());
    header[1] = address.prefix_len();
    header[2] = if address.addr().is_ipv6() { IFA_F_NODAD } else { 0 };
    header[3] = scope(link_index, address.addr());
    header[4..].copy_from_slice(&link_index.to_ne_bytes());
    let mut request = Request::new(kind, flags, &header);
    request.address(IFA_LOCAL, address.addr()).address(IFA_ADDRESS, address.addr());
    request
}

/// Addresses on `lo` are valid on this host alone. With a wider scope the kernel would take one of
/// them as the source when it masquerades what a node sends to itself.
fn scope(link_index: u32, address: IpAddr) -> u8 {
    match link_index == LOOPBACK_INDEX || address.is_loopback() {
        true => libc::RT_SCOPE_HOST,
        false => libc::RT_SCOPE_UNIVERSE,
    }
}

fn parse(message: &Message) -> Option<Address> {
    if message.kind != RTM_NEWADDR {
        return None;
    }
    let header: [u8; HEADER_BYTES] = message.header()?;
    let attributes = message.attributes(HEADER_BYTES);
    // IFA_ADDRESS alone is what IPv6 sends; on point-to-point links it is the peer's address.
    let address = attributes.address(IFA_LOCAL).or_else(|| attributes.address(IFA_ADDRESS))?;
    Some(Address {
        link_index: u32_of(&header[4..])?,
        address: IpNet::new(address, header[1]).ok()?,
        protocol: attributes.u8(IFA_PROTO).unwrap_or_default(),
    })
}
