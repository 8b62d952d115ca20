//! Links: veth pairs, bridges, VXLAN, and their properties (`include/uapi/linux/if_link.h`).

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use model::MacAddress;

use crate::bridge::IFLA_BR_VLAN_FILTERING;
use crate::macvlan::{IFLA_MACVLAN_MODE, MacvlanMode};
use crate::message::{Attributes, Request, u32_of};
use crate::socket::Message;
use crate::tunnel::{IpipParameters, parse_ipip};
use crate::{Error, Netlink, Netns};

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
pub(crate) const RTM_GETLINK: u16 = 18;
pub(crate) const RTM_SETLINK: u16 = 19;

pub(crate) const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
pub(crate) const IFLA_MTU: u16 = 4;
pub(crate) const IFLA_LINK: u16 = 5;
pub(crate) const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_TXQLEN: u16 = 13;
pub(crate) const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET_CONF: u16 = 1;
pub(crate) const IFLA_LINKINFO: u16 = 18;
const IFLA_OPERSTATE: u16 = 16;
pub(crate) const IFLA_IFALIAS: u16 = 20;
pub(crate) const IFLA_NET_NS_FD: u16 = 28;
pub(crate) const IFLA_EXT_MASK: u16 = 29;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
pub(crate) const IFLA_INFO_KIND: u16 = 1;
pub(crate) const IFLA_INFO_DATA: u16 = 2;
pub(crate) const IFLA_INFO_SLAVE_DATA: u16 = 5;
const VETH_INFO_PEER: u16 = 1;
pub(crate) const IFLA_BRPORT_MODE: u16 = 4;
pub(crate) const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_VXLAN_UDP_CSUM: u16 = 18;
const IFLA_VXLAN_UDP_ZERO_CSUM6_TX: u16 = 19;

/// Leaves statistics, most of a link's message, out of answers.
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
/// The operational state `up` of RFC 2863.
const IF_OPER_UP: u8 = 6;
/// Bytes of `struct ifinfomsg`.
pub(crate) const HEADER_BYTES: usize = 16;
/// Longest alias in bytes that the kernel keeps (`IFALIASZ` less the final zero).
pub(crate) const ALIAS_BYTES_MAX: usize = 255;
/// Longest link name in bytes (`IFNAMSIZ` less the final zero).
const NAME_BYTES_MAX: usize = 15;

/// A link as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in this namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `veth`, `bridge`, `vxlan`, …; empty for loopback and physical links.
    pub kind: String,
    /// Its link-layer address, when it has one of six bytes.
    pub mac: Option<MacAddress>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it works (RFC 2863 `ifOperStatus` up): what it is told to send leaves. Links that say
    /// nothing of it, such as tunnels, never are.
    pub operational: bool,
    /// Whether it takes frames for others.
    pub promiscuous: bool,
    /// Whether it takes all multicast frames.
    pub all_multicast: bool,
    /// Packets that its queue takes.
    pub transmit_queue_length: u32,
    /// The bridge that it is a port of.
    pub master: Option<u32>,
    /// Its alias, free text.
    pub alias: Option<String>,
    /// Whether frames may leave by the port that they came from; only known of bridge ports.
    pub hairpin: Option<bool>,
    /// Whether the port is cut off from other isolated ports; only known of bridge ports.
    pub isolated: Option<bool>,
    /// Whether a bridge tells VLANs apart.
    pub vlan_filtering: Option<bool>,
    /// Who of a macvlan's neighbours may talk to it.
    pub macvlan: Option<MacvlanMode>,
    /// The parameters of a VXLAN link.
    pub vxlan: Option<VxlanParameters>,
    /// The parameters of an IP-in-IP link of either family.
    pub ipip: Option<IpipParameters>,
    /// For a veth, the index of its peer in the peer's namespace; for a macvlan, of the link
    /// below.
    pub peer_index: Option<u32>,
}

/// What a VXLAN link cannot change later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanParameters {
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
    /// The outer source address.
    pub local: Option<IpAddr>,
    /// The index of the link that outer packets leave by.
    pub uplink_index: Option<u32>,
    /// Whether it learns peers from what arrives. Ours never do: entries are static.
    pub learning: bool,
}

/// A VXLAN link to make: without learning, outer checksum off over IPv4 as RFC 7348 advises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanSpec {
    /// Its name.
    pub name: String,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
    /// The outer source address.
    pub local: IpAddr,
    /// The index of the link that outer packets leave by.
    pub uplink_index: u32,
    /// Its own link-layer address.
    pub mac: MacAddress,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// A bridge to make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BridgeSpec {
    /// Its name.
    pub name: String,
    /// A fixed address; without one a bridge takes the lowest of its ports, and changes with them.
    pub mac: Option<MacAddress>,
    /// Its MTU in bytes; 1500 unless given.
    pub mtu: Option<u32>,
}

/// A veth pair to make. Both ends come into being down, with one queue: the kernel makes one a
/// processor and direction unless told, which costs time and memory, and uses none of them to
/// hand a packet over.
#[derive(Clone, Debug)]
pub struct VethSpec<'a> {
    name: &'a str,
    peer_name: &'a str,
    peer_namespace: Option<&'a Netns>,
    mac: Option<MacAddress>,
    peer_mac: Option<MacAddress>,
    mtu: Option<u32>,
    master: Option<u32>,
}

impl<'a> VethSpec<'a> {
    /// A pair with both ends in this namespace.
    pub fn new(name: &'a str, peer_name: &'a str) -> Self {
        Self {
            name,
            peer_name,
            peer_namespace: None,
            mac: None,
            peer_mac: None,
            mtu: None,
            master: None,
        }
    }

    /// The peer is born in another namespace, never visible here.
    #[must_use]
    pub fn peer_in(mut self, namespace: &'a Netns) -> Self {
        self.peer_namespace = Some(namespace);
        self
    }

    /// The near end's link-layer address.
    #[must_use]
    pub fn mac(mut self, mac: MacAddress) -> Self {
        self.mac = Some(mac);
        self
    }

    /// The peer's link-layer address.
    #[must_use]
    pub fn peer_mac(mut self, mac: MacAddress) -> Self {
        self.peer_mac = Some(mac);
        self
    }

    /// MTU in bytes of both ends.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// The bridge that the near end is a port of from its birth.
    #[must_use]
    pub fn master(mut self, index: u32) -> Self {
        self.master = Some(index);
        self
    }
}

/// Properties to set on a link; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct LinkChange<'a> {
    /// Administratively up or down.
    pub up: Option<bool>,
    /// Whether it takes frames for others.
    pub promiscuous: Option<bool>,
    /// Whether it takes all multicast frames.
    pub all_multicast: Option<bool>,
    /// Packets that its queue takes.
    pub transmit_queue_length: Option<u32>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Link-layer address.
    pub mac: Option<MacAddress>,
    /// The bridge that it becomes a port of; 0 detaches.
    pub master: Option<u32>,
    /// Free text.
    pub alias: Option<&'a str>,
    /// A new name; most links must be down for it.
    pub name: Option<&'a str>,
    /// Moves the link to another namespace, where it arrives down and without addresses.
    pub namespace: Option<&'a Netns>,
    /// Parameters of IPv4 on the link, the same as below `net/ipv4/conf` at a tenth of the time.
    /// The kernel sets them after it has set the link up: give them in a message before.
    pub ipv4: &'a [(Ipv4Parameter, u32)],
}

/// A parameter of IPv4 on one link (`IPV4_DEVCONF_…` of `include/uapi/linux/ip.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv4Parameter {
    /// `accept_redirects`.
    AcceptRedirects = 4,
    /// `rp_filter`.
    ReversePathFilter = 8,
}

impl LinkChange<'_> {
    /// Sets a link up.
    pub fn up() -> Self {
        Self { up: Some(true), ..Self::default() }
    }

    /// The message that makes the change.
    pub(crate) fn request(&self, kind: u16, index: u32) -> Result<Request, Error> {
        let flags = [
            (libc::IFF_UP, self.up),
            (libc::IFF_PROMISC, self.promiscuous),
            (libc::IFF_ALLMULTI, self.all_multicast),
        ];
        let mut request = Request::new(kind, 0, &header_with(index, &flags));
        if let Some(mtu) = self.mtu {
            request.u32(IFLA_MTU, mtu);
        }
        if let Some(mac) = self.mac {
            request.attribute(IFLA_ADDRESS, &mac.0);
        }
        if let Some(master) = self.master {
            request.u32(IFLA_MASTER, master);
        }
        if let Some(alias) = self.alias {
            request.attribute(IFLA_IFALIAS, cut(alias, ALIAS_BYTES_MAX).as_bytes());
        }
        if let Some(name) = self.name {
            check_name(name)?;
            request.text(IFLA_IFNAME, name);
        }
        if let Some(namespace) = self.namespace {
            request.u32(IFLA_NET_NS_FD, descriptor(namespace));
        }
        if let Some(length) = self.transmit_queue_length {
            request.u32(IFLA_TXQLEN, length);
        }
        if !self.ipv4.is_empty() {
            request.nested(IFLA_AF_SPEC, &[], |families| {
                families.nested(libc::AF_INET as u16, &[], |ipv4| {
                    ipv4.nested(IFLA_INET_CONF, &[], |parameters| {
                        for (parameter, value) in self.ipv4 {
                            parameters.u32(*parameter as u16, *value);
                        }
                    });
                });
            });
        }
        Ok(request)
    }
}

impl Netlink {
    /// All links of the namespace.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let mut request = Request::new(RTM_GETLINK, 0, &header(0));
        request.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        let messages = self.socket.dump(&request, || "list links".into())?;
        Ok(messages.iter().filter_map(parse).collect())
    }

    /// The link of a name, if there is one.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        let mut request = Request::new(RTM_GETLINK, 0, &header(0));
        request.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS).text(IFLA_IFNAME, name);
        match self.socket.call(&request, || format!("look up the link {name}")) {
            Ok(messages) => Ok(messages.iter().find_map(parse)),
            Err(error) if error.errno == libc::ENODEV => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The link of a number, if there is one.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn link_at(&mut self, index: u32) -> Result<Option<Link>, Error> {
        let mut request = Request::new(RTM_GETLINK, 0, &header(index));
        request.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        match self.socket.call(&request, || format!("look up the link number {index}")) {
            Ok(messages) => Ok(messages.iter().find_map(parse)),
            Err(error) if error.errno == libc::ENODEV => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The link of a name.
    ///
    /// # Errors
    /// `ENODEV` when there is none.
    pub fn require_link(&mut self, name: &str) -> Result<Link, Error> {
        self.link(name)?.ok_or_else(|| Error::new(libc::ENODEV, format!("look up the link {name}")))
    }

    /// Makes a bridge, down.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken, `EOPNOTSUPP` when the kernel has no bridges.
    pub fn create_bridge(&mut self, spec: &BridgeSpec) -> Result<(), Error> {
        let mut request = creation(&spec.name)?;
        if let Some(mac) = spec.mac {
            request.attribute(IFLA_ADDRESS, &mac.0);
        }
        request.nested(IFLA_LINKINFO, &[], |info| {
            info.text(IFLA_INFO_KIND, "bridge");
        });
        let action = || format!("create the bridge {}", spec.name);
        self.socket.call(&request, action)?;
        let Some(mtu) = spec.mtu else { return Ok(()) };
        // Only an MTU that is set later stays: one given at birth follows the ports.
        let index = self.require_link(&spec.name)?.index;
        let change = LinkChange { mtu: Some(mtu), ..LinkChange::default() };
        self.change_link(index, &change).map_err(|error| {
            let _ = self.delete_link(index);
            error.during(action())
        })
    }

    /// Makes a VXLAN link, down.
    ///
    /// # Errors
    /// `EEXIST` when the name, or VNI and port together, are taken in this namespace;
    /// `EOPNOTSUPP` when the kernel has no VXLAN.
    pub fn create_vxlan(&mut self, spec: &VxlanSpec) -> Result<(), Error> {
        let mut request = creation(&spec.name)?;
        request.attribute(IFLA_ADDRESS, &spec.mac.0).u32(IFLA_MTU, spec.mtu);
        request.nested(IFLA_LINKINFO, &[], |info| {
            info.text(IFLA_INFO_KIND, "vxlan").nested(IFLA_INFO_DATA, &[], |data| {
                data.u32(IFLA_VXLAN_ID, spec.vni)
                    .u32(IFLA_VXLAN_LINK, spec.uplink_index)
                    .attribute(IFLA_VXLAN_PORT, &spec.port.to_be_bytes())
                    .u8(IFLA_VXLAN_LEARNING, 0);
                match spec.local {
                    IpAddr::V4(_) => {
                        data.address(IFLA_VXLAN_LOCAL, spec.local).u8(IFLA_VXLAN_UDP_CSUM, 0)
                    }
                    IpAddr::V6(_) => data
                        .address(IFLA_VXLAN_LOCAL6, spec.local)
                        .u8(IFLA_VXLAN_UDP_ZERO_CSUM6_TX, 0),
                };
            });
        });
        self.socket.call(&request, || format!("create the VXLAN link {}", spec.name)).map(drop)
    }

    /// Makes a veth pair.
    ///
    /// # Errors
    /// `EEXIST` when either name is taken in its namespace; then nothing is made.
    pub fn create_veth(&mut self, spec: &VethSpec<'_>) -> Result<(), Error> {
        let mut request = creation(spec.name)?;
        check_name(spec.peer_name)?;
        if let Some(mtu) = spec.mtu {
            request.u32(IFLA_MTU, mtu);
        }
        if let Some(mac) = spec.mac {
            request.attribute(IFLA_ADDRESS, &mac.0);
        }
        if let Some(master) = spec.master {
            request.u32(IFLA_MASTER, master);
        }
        request.u32(IFLA_NUM_TX_QUEUES, 1).u32(IFLA_NUM_RX_QUEUES, 1);
        request.nested(IFLA_LINKINFO, &[], |info| {
            info.text(IFLA_INFO_KIND, "veth").nested(IFLA_INFO_DATA, &[], |data| {
                data.nested(VETH_INFO_PEER, &header(0), |peer| {
                    peer.text(IFLA_IFNAME, spec.peer_name)
                        .u32(IFLA_NUM_TX_QUEUES, 1)
                        .u32(IFLA_NUM_RX_QUEUES, 1);
                    if let Some(namespace) = spec.peer_namespace {
                        peer.u32(IFLA_NET_NS_FD, descriptor(namespace));
                    }
                    if let Some(mac) = spec.peer_mac {
                        peer.attribute(IFLA_ADDRESS, &mac.0);
                    }
                    if let Some(mtu) = spec.mtu {
                        peer.u32(IFLA_MTU, mtu);
                    }
                });
            });
        });
        let action = || format!("create the veth pair {} and {}", spec.name, spec.peer_name);
        self.socket.call(&request, action).map(drop)
    }

    /// Changes properties of a link, all in one message.
    ///
    /// # Errors
    /// `ENODEV` when the link is gone; otherwise what the kernel refused.
    pub fn change_link(&mut self, index: u32, change: &LinkChange<'_>) -> Result<(), Error> {
        let request = change.request(RTM_SETLINK, index)?;
        self.socket.call(&request, || format!("change the link number {index}")).map(drop)
    }

    /// Lets frames leave by the bridge port that they came from: a pod that reaches itself
    /// through its Service needs it.
    ///
    /// # Errors
    /// `EINVAL` or `EOPNOTSUPP` when the link is no bridge port.
    pub fn set_hairpin(&mut self, index: u32, on: bool) -> Result<(), Error> {
        let mut message = header(index);
        message[0] = u8::try_from(libc::AF_BRIDGE).unwrap_or_default();
        let mut request = Request::new(RTM_SETLINK, 0, &message);
        request.nested(IFLA_PROTINFO, &[], |port| {
            port.u8(IFLA_BRPORT_MODE, u8::from(on));
        });
        let action = || format!("set hairpin of the bridge port number {index}");
        self.socket.call(&request, action).map(drop)
    }

    /// Removes a link; a veth takes its peer along.
    ///
    /// # Errors
    /// `ENODEV` when it is gone already.
    pub fn delete_link(&mut self, index: u32) -> Result<(), Error> {
        let request = Request::new(RTM_DELLINK, 0, &header(index));
        self.socket.call(&request, || format!("delete the link number {index}")).map(drop)
    }
}

pub(crate) fn creation(name: &str) -> Result<Request, Error> {
    check_name(name)?;
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut request = Request::new(RTM_NEWLINK, flags, &header(0));
    request.text(IFLA_IFNAME, name);
    Ok(request)
}

pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    if (1..=NAME_BYTES_MAX).contains(&name.len()) {
        return Ok(());
    }
    Err(Error {
        reason: Some(format!("a link name has 1 to {NAME_BYTES_MAX} bytes")),
        ..Error::new(libc::EINVAL, format!("name a link {name:?}"))
    })
}

/// The longest part of a text that ends between characters within `bytes_max`.
fn cut(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    text.get(..end.unwrap_or_default()).unwrap_or_default()
}

/// `struct ifinfomsg` without flags.
pub(crate) fn header(index: u32) -> [u8; HEADER_BYTES] {
    header_with(index, &[])
}

/// `struct ifinfomsg` that sets or clears flags (`IFF_…`).
fn header_with(index: u32, flags: &[(i32, Option<bool>)]) -> [u8; HEADER_BYTES] {
    let (mut values, mut mask) = (0_u32, 0_u32);
    for (flag, wanted) in flags {
        let flag = u32::try_from(*flag).unwrap_or_default();
        if let Some(wanted) = wanted {
            mask |= flag;
            values |= if *wanted { flag } else { 0 };
        }
    }
    let mut bytes = [0; HEADER_BYTES];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&values.to_ne_bytes());
    bytes[12..16].copy_from_slice(&mask.to_ne_bytes());
    bytes
}

pub(crate) fn descriptor(namespace: &Netns) -> u32 {
    u32::try_from(namespace.as_fd().as_raw_fd()).unwrap_or(u32::MAX)
}

fn parse(message: &Message) -> Option<Link> {
    if message.kind != RTM_NEWLINK {
        return None;
    }
    let header: [u8; HEADER_BYTES] = message.header()?;
    let attributes = message.attributes(HEADER_BYTES);
    let info = attributes.nested(IFLA_LINKINFO).unwrap_or(Attributes::new(&[]));
    let kind = info.text(IFLA_INFO_KIND).unwrap_or_default();
    let data = info.nested(IFLA_INFO_DATA);
    let flags = u32_of(&header[8..])?;
    let has = |flag: i32| flags & u32::try_from(flag).unwrap_or_default() != 0;
    let port = |kind: u16| {
        let value = info.nested(IFLA_INFO_SLAVE_DATA).and_then(|port| port.u8(kind));
        value.map(|value| value != 0)
    };
    Some(Link {
        index: u32_of(&header[4..])?,
        name: attributes.text(IFLA_IFNAME)?,
        mac: attributes.mac(IFLA_ADDRESS),
        mtu: attributes.u32(IFLA_MTU).unwrap_or_default(),
        up: has(libc::IFF_UP),
        operational: attributes.u8(IFLA_OPERSTATE) == Some(IF_OPER_UP),
        promiscuous: has(libc::IFF_PROMISC),
        all_multicast: has(libc::IFF_ALLMULTI),
        transmit_queue_length: attributes.u32(IFLA_TXQLEN).unwrap_or_default(),
        master: attributes.u32(IFLA_MASTER),
        alias: attributes.text(IFLA_IFALIAS),
        hairpin: port(IFLA_BRPORT_MODE),
        isolated: port(IFLA_BRPORT_ISOLATED),
        vxlan: data.filter(|_| kind == "vxlan").and_then(parse_vxlan),
        ipip: data.filter(|_| matches!(kind.as_str(), "ipip" | "ip6tnl")).map(parse_ipip),
        vlan_filtering: data
            .filter(|_| kind == "bridge")
            .and_then(|data| data.u8(IFLA_BR_VLAN_FILTERING))
            .map(|value| value != 0),
        macvlan: data
            .filter(|_| kind == "macvlan")
            .and_then(|data| data.u32(IFLA_MACVLAN_MODE))
            .and_then(MacvlanMode::of_number),
        peer_index: attributes
            .u32(IFLA_LINK)
            .filter(|_| matches!(kind.as_str(), "veth" | "macvlan")),
        kind,
    })
}

fn parse_vxlan(data: Attributes<'_>) -> Option<VxlanParameters> {
    Some(VxlanParameters {
        vni: data.u32(IFLA_VXLAN_ID)?,
        port: u16::from_be_bytes(data.find(IFLA_VXLAN_PORT)?.try_into().ok()?),
        local: data.address(IFLA_VXLAN_LOCAL).or_else(|| data.address(IFLA_VXLAN_LOCAL6)),
        uplink_index: data.u32(IFLA_VXLAN_LINK).filter(|&index| index != 0),
        learning: data.u8(IFLA_VXLAN_LEARNING).unwrap_or_default() != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_aliases_are_cut_between_characters() {
        assert_eq!(cut("flatnet:x", 255), "flatnet:x");
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut(&"x".repeat(300), ALIAS_BYTES_MAX).len(), 255);
    }
}
