//! Ports and VLANs of bridges (`include/uapi/linux/if_bridge.h`).

use crate::link::{
    HEADER_BYTES, IFLA_AF_SPEC, IFLA_BRPORT_ISOLATED, IFLA_BRPORT_MODE, IFLA_EXT_MASK,
    IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_INFO_SLAVE_DATA, IFLA_LINKINFO, RTM_DELLINK, RTM_GETLINK,
    RTM_NEWLINK, RTM_SETLINK, header,
};
use crate::message::{Attributes, Request, u16_of, u32_of};
use crate::{Error, LinkChange, Netlink};

const IFLA_INFO_SLAVE_KIND: u16 = 4;
pub(crate) const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BR_NF_CALL_IPTABLES: u16 = 36;
const IFLA_BR_NF_CALL_IP6TABLES: u16 = 37;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const BRIDGE_VLAN_INFO_PVID: u16 = 1 << 1;
const BRIDGE_VLAN_INFO_UNTAGGED: u16 = 1 << 2;
const BRIDGE_VLAN_INFO_RANGE_BEGIN: u16 = 1 << 3;
const BRIDGE_VLAN_INFO_RANGE_END: u16 = 1 << 4;
/// Adds each port's VLANs to answers, one entry a VLAN.
const RTEXT_FILTER_BRVLAN: u32 = 2;

/// What a port of a bridge may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortOptions {
    /// Whether frames may leave by the port that they came from: a pod that reaches itself
    /// through its Service needs it.
    pub hairpin: bool,
    /// Whether the port is cut off from other isolated ports.
    pub isolated: bool,
}

/// One VLAN, or several in a row, of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortVlan {
    /// The first identifier.
    pub first: u16,
    /// The last one.
    pub last: u16,
    /// Whether frames without a tag belong to it, and leave without one.
    pub untagged: bool,
}

impl Netlink {
    /// Changes a port of a bridge and its link in one message.
    ///
    /// # Errors
    /// `EINVAL` or `EOPNOTSUPP` when the link is no port of a bridge.
    pub fn set_port(
        &mut self,
        index: u32,
        change: &LinkChange<'_>,
        options: PortOptions,
    ) -> Result<(), Error> {
        // RTM_SETLINK would pass over what concerns the port.
        let mut request = change.request(RTM_NEWLINK, index)?;
        request.nested(IFLA_LINKINFO, &[], |info| {
            info.text(IFLA_INFO_SLAVE_KIND, "bridge").nested(IFLA_INFO_SLAVE_DATA, &[], |port| {
                port.u8(IFLA_BRPORT_MODE, u8::from(options.hairpin))
                    .u8(IFLA_BRPORT_ISOLATED, u8::from(options.isolated));
            });
        });
        self.socket.call(&request, || format!("set up the bridge port number {index}")).map(drop)
    }

    /// Lets a bridge tell VLANs apart, or not.
    ///
    /// # Errors
    /// `EOPNOTSUPP` when the kernel has no VLAN filtering, `ENODEV` when the bridge is gone.
    pub fn set_vlan_filtering(&mut self, bridge: u32, on: bool) -> Result<(), Error> {
        let mut request = Request::new(RTM_NEWLINK, 0, &header(bridge));
        request.nested(IFLA_LINKINFO, &[], |info| {
            info.text(IFLA_INFO_KIND, "bridge").nested(IFLA_INFO_DATA, &[], |data| {
                data.u8(IFLA_BR_VLAN_FILTERING, u8::from(on));
            });
        });
        let action = || format!("switch VLAN filtering of the bridge number {bridge}");
        self.socket.call(&request, action).map(drop)
    }

    /// Hands what a bridge forwards to the rules of IP, whatever the rest of the node's bridges do.
    ///
    /// # Errors
    /// `ENODEV` when the bridge is gone. A kernel without `br_netfilter` says nothing.
    pub fn show_bridged_to_netfilter(&mut self, bridge: u32) -> Result<(), Error> {
        let mut request = Request::new(RTM_NEWLINK, 0, &header(bridge));
        request.nested(IFLA_LINKINFO, &[], |info| {
            info.text(IFLA_INFO_KIND, "bridge").nested(IFLA_INFO_DATA, &[], |data| {
                data.u8(IFLA_BR_NF_CALL_IPTABLES, 1).u8(IFLA_BR_NF_CALL_IP6TABLES, 1);
            });
        });
        let action = || format!("show netfilter what the bridge number {bridge} forwards");
        self.socket.call(&request, action).map(drop)
    }

    /// Puts a port of a bridge into VLANs.
    ///
    /// # Errors
    /// `EOPNOTSUPP` when the link is no port or the kernel has no VLAN filtering.
    pub fn add_port_vlan(&mut self, port: u32, vlan: PortVlan) -> Result<(), Error> {
        let request = vlan_message(RTM_SETLINK, port, vlan);
        let action = || format!("put the bridge port number {port} into {}", name_of(vlan));
        self.socket.call(&request, action).map(drop)
    }

    /// Takes a port of a bridge out of VLANs. Those that it is not in are no error.
    ///
    /// # Errors
    /// `EOPNOTSUPP` when the link is no port or the kernel has no VLAN filtering.
    pub fn delete_port_vlan(&mut self, port: u32, vlan: PortVlan) -> Result<(), Error> {
        let request = vlan_message(RTM_DELLINK, port, vlan);
        let action = || format!("take the bridge port number {port} out of {}", name_of(vlan));
        self.socket.call(&request, action).map(drop)
    }

    /// The VLANs of a port, one entry each.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn port_vlans(&mut self, port: u32) -> Result<Vec<PortVlan>, Error> {
        let mut request = Request::new(RTM_GETLINK, 0, &bridge_header(0));
        request.u32(IFLA_EXT_MASK, RTEXT_FILTER_BRVLAN);
        let messages = self.socket.dump(&request, || "list VLANs of bridge ports".into())?;
        let of_port = messages.iter().filter(|message| {
            message.header::<HEADER_BYTES>().and_then(|header| u32_of(&header[4..])) == Some(port)
        });
        Ok(of_port.flat_map(|message| vlans_of(message.attributes(HEADER_BYTES))).collect())
    }
}

fn vlan_message(kind: u16, port: u32, vlan: PortVlan) -> Request {
    let own = if vlan.untagged { BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED } else { 0 };
    let mut request = Request::new(kind, 0, &bridge_header(port));
    request.nested(IFLA_AF_SPEC, &[], |spec| {
        let mut entry = |flags: u16, vid: u16| {
            let [a, b] = (own | flags).to_ne_bytes();
            let [c, d] = vid.to_ne_bytes();
            spec.attribute(IFLA_BRIDGE_VLAN_INFO, &[a, b, c, d]);
        };
        if vlan.first == vlan.last {
            entry(0, vlan.first);
        } else {
            entry(BRIDGE_VLAN_INFO_RANGE_BEGIN, vlan.first);
            entry(BRIDGE_VLAN_INFO_RANGE_END, vlan.last);
        }
    });
    request
}

fn name_of(vlan: PortVlan) -> String {
    match vlan.first == vlan.last {
        true => format!("VLAN {}", vlan.first),
        false => format!("VLANs {} to {}", vlan.first, vlan.last),
    }
}

fn vlans_of(attributes: Attributes<'_>) -> Vec<PortVlan> {
    let spec = attributes.nested(IFLA_AF_SPEC).unwrap_or(Attributes::new(&[]));
    let entries = spec.filter(|(kind, _)| *kind == IFLA_BRIDGE_VLAN_INFO);
    let vlan = |value: &[u8]| {
        let (flags, vid) = (u16_of(value)?, u16_of(value.get(2..)?)?);
        let untagged = flags & BRIDGE_VLAN_INFO_PVID != 0;
        Some(PortVlan { first: vid, last: vid, untagged })
    };
    entries.filter_map(|(_, value)| vlan(value)).collect()
}

/// `struct ifinfomsg` of the bridge family.
fn bridge_header(index: u32) -> [u8; HEADER_BYTES] {
    let mut bytes = header(index);
    bytes[0] = u8::try_from(libc::AF_BRIDGE).unwrap_or_default();
    bytes
}
