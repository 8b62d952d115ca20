//! Permanent neighbours and forwarding entries (`include/uapi/linux/neighbour.h`).

use std::net::IpAddr;

use model::MacAddress;

use crate::message::{Request, family_of, u16_of, u32_of};
use crate::socket::Message;
use crate::{Error, Netlink};

const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_IFINDEX: u16 = 8;
/// Never asked for again, never collected.
const NUD_PERMANENT: u16 = 0x80;
/// The entry belongs to the link itself (VXLAN's table), not to a bridge above it.
const NTF_SELF: u8 = 0x02;
/// Bytes of `struct ndmsg`.
const HEADER_BYTES: usize = 12;

/// A permanent neighbour: which link-layer address an IP address has on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The link.
    pub link_index: u32,
    /// The neighbour's IP address.
    pub address: IpAddr,
    /// Its link-layer address.
    pub mac: MacAddress,
}

/// A permanent forwarding entry of a VXLAN link: behind which tunnel end a link-layer address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    /// The VXLAN link.
    pub link_index: u32,
    /// The link-layer address.
    pub mac: MacAddress,
    /// The outer destination address.
    pub destination: IpAddr,
}

impl Netlink {
    /// The permanent neighbours on a link.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn neighbours(&mut self, link_index: u32) -> Result<Vec<Neighbour>, Error> {
        let mut request = Request::new(RTM_GETNEIGH, 0, &[0; HEADER_BYTES]);
        request.u32(NDA_IFINDEX, link_index);
        let messages = self.socket.dump(&request, || "list neighbours".into())?;
        Ok(messages.iter().filter_map(parse_neighbour).collect())
    }

    /// Adds or changes a permanent neighbour.
    ///
    /// # Errors
    /// `ENODEV` when the link is gone.
    pub fn set_neighbour(&mut self, neighbour: &Neighbour) -> Result<(), Error> {
        let Neighbour { link_index, address, mac } = *neighbour;
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let mut request =
            Request::new(RTM_NEWNEIGH, flags, &header(family_of(address), link_index, 0));
        request.address(NDA_DST, address).attribute(NDA_LLADDR, &mac.0);
        self.socket.call(&request, || format!("set the neighbour {address} to {mac}")).map(drop)
    }

    /// Removes a neighbour.
    ///
    /// # Errors
    /// `ENOENT` when there is none.
    pub fn delete_neighbour(&mut self, link_index: u32, address: IpAddr) -> Result<(), Error> {
        let mut request = Request::new(RTM_DELNEIGH, 0, &header(family_of(address), link_index, 0));
        request.address(NDA_DST, address);
        self.socket.call(&request, || format!("remove the neighbour {address}")).map(drop)
    }

    /// The permanent forwarding entries of a VXLAN link.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn fdb(&mut self, link_index: u32) -> Result<Vec<FdbEntry>, Error> {
        let mut message = header(bridge_family(), link_index, 0);
        message[8..10].fill(0); // a filter by state is not known to the kernel here
        let request = Request::new(RTM_GETNEIGH, 0, &message);
        let messages = self.socket.dump(&request, || "list forwarding entries".into())?;
        Ok(messages
            .iter()
            .filter_map(parse_fdb)
            .filter(|entry| entry.link_index == link_index)
            .collect())
    }

    /// Adds or changes the forwarding entry of a link-layer address.
    ///
    /// # Errors
    /// `ENODEV` when the link is gone, `EOPNOTSUPP` when it is no VXLAN link.
    pub fn set_fdb(&mut self, entry: &FdbEntry) -> Result<(), Error> {
        let FdbEntry { link_index, mac, destination } = *entry;
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let mut request =
            Request::new(RTM_NEWNEIGH, flags, &header(bridge_family(), link_index, NTF_SELF));
        request.attribute(NDA_LLADDR, &mac.0).address(NDA_DST, destination);
        let action = || format!("set the forwarding entry {mac} to {destination}");
        self.socket.call(&request, action).map(drop)
    }

    /// Removes the forwarding entry of a link-layer address.
    ///
    /// # Errors
    /// `ENOENT` when there is none.
    pub fn delete_fdb(&mut self, link_index: u32, mac: MacAddress) -> Result<(), Error> {
        let mut request =
            Request::new(RTM_DELNEIGH, 0, &header(bridge_family(), link_index, NTF_SELF));
        request.attribute(NDA_LLADDR, &mac.0);
        self.socket.call(&request, || format!("remove the forwarding entry {mac}")).map(drop)
    }
}

fn bridge_family() -> u8 {
    u8::try_from(libc::AF_BRIDGE).unwrap_or_default()
}

/// `struct ndmsg` of a permanent entry.
fn header(family: u8, link_index: u32, flags: u8) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[0] = family;
    bytes[4..8].copy_from_slice(&link_index.to_ne_bytes());
    bytes[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
    bytes[10] = flags;
    bytes
}

/// The header of an entry that is permanent, and neither multicast nor deleted.
fn permanent(message: &Message) -> Option<[u8; HEADER_BYTES]> {
    let header: [u8; HEADER_BYTES] = message.header()?;
    let state = u16_of(&header[8..])?;
    (message.kind == RTM_NEWNEIGH && state & NUD_PERMANENT != 0).then_some(header)
}

fn parse_neighbour(message: &Message) -> Option<Neighbour> {
    let header = permanent(message)?;
    let attributes = message.attributes(HEADER_BYTES);
    Some(Neighbour {
        link_index: u32_of(&header[4..])?,
        address: attributes.address(NDA_DST)?,
        mac: attributes.mac(NDA_LLADDR)?,
    })
}

fn parse_fdb(message: &Message) -> Option<FdbEntry> {
    let header = permanent(message)?;
    let attributes = message.attributes(HEADER_BYTES);
    Some(FdbEntry {
        link_index: u32_of(&header[4..])?,
        mac: attributes.mac(NDA_LLADDR)?,
        destination: attributes.address(NDA_DST)?,
    })
}
