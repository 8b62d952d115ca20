//! IP-in-IP, WireGuard and dummy links (`include/uapi/linux/if_tunnel.h`). VXLAN is in
//! [`crate::link`].

use std::net::IpAddr;

use crate::link::{IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU, creation};
use crate::message::{Attributes, Request};
use crate::{Error, Netlink};

const IFLA_IPTUN_LINK: u16 = 1;
const IFLA_IPTUN_LOCAL: u16 = 2;
const IFLA_IPTUN_REMOTE: u16 = 3;
const IFLA_IPTUN_FLAGS: u16 = 8;
const IFLA_IPTUN_PROTO: u16 = 9;
const IFLA_IPTUN_COLLECT_METADATA: u16 = 19;
/// Without an option of eight bytes in each packet that limits nesting.
const IP6_TNL_F_IGN_ENCAP_LIMIT: u32 = 1;

/// An IP-in-IP link to make, for packets of one family in packets of the same. It has no far end
/// of its own. Over IPv4 the next hop of each route is the outer destination. Over IPv6 that would
/// have to be a next hop that no other link leads to, as the uplink does to each node: routes say
/// the outer header themselves ([`crate::OuterHeader`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpipSpec {
    /// Its name.
    pub name: String,
    /// The outer source address.
    pub local: IpAddr,
    /// The index of the link that outer packets leave by.
    pub uplink_index: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// What an IP-in-IP link is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpipParameters {
    /// The outer source address.
    pub local: Option<IpAddr>,
    /// The one outer destination, of links that have one. Ours have none.
    pub remote: Option<IpAddr>,
    /// The index of the link that outer packets leave by.
    pub uplink_index: Option<u32>,
}

impl Netlink {
    /// Makes an IP-in-IP link, down: `ipip` (RFC 2003) or `ip6tnl` (RFC 2473) by the family of
    /// the outer source.
    ///
    /// # Errors
    /// `EEXIST` when the name, or the outer source without a far end, is taken; `EOPNOTSUPP` when
    /// the kernel has no such links.
    pub fn create_ipip(&mut self, spec: &IpipSpec) -> Result<(), Error> {
        let request = ipip(spec)?;
        self.socket.call(&request, || format!("create the IP-in-IP link {}", spec.name)).map(drop)
    }

    /// Makes a WireGuard link, down, without key, port and peers; see [`crate::wireguard`].
    ///
    /// # Errors
    /// `EEXIST` when the name is taken, `EOPNOTSUPP` when the kernel has no WireGuard.
    pub fn create_wireguard(&mut self, name: &str, mtu: u32) -> Result<(), Error> {
        let mut request = creation(name)?;
        request.u32(IFLA_MTU, mtu);
        request.nested(IFLA_LINKINFO, &[], |info| {
            info.text(IFLA_INFO_KIND, "wireguard");
        });
        self.socket.call(&request, || format!("create the WireGuard link {name}")).map(drop)
    }

    /// Makes a dummy link, down: a place for addresses that sends nothing.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken, `EOPNOTSUPP` when the kernel has no such links.
    pub fn create_dummy(&mut self, name: &str) -> Result<(), Error> {
        let mut request = creation(name)?;
        request.nested(IFLA_LINKINFO, &[], |info| {
            info.text(IFLA_INFO_KIND, "dummy");
        });
        self.socket.call(&request, || format!("create the dummy link {name}")).map(drop)
    }
}

fn ipip(spec: &IpipSpec) -> Result<Request, Error> {
    let mut request = creation(&spec.name)?;
    request.u32(IFLA_MTU, spec.mtu);
    let is_v4 = spec.local.is_ipv4();
    let protocol = if is_v4 { libc::IPPROTO_IPIP } else { libc::IPPROTO_IPV6 };
    request.nested(IFLA_LINKINFO, &[], |info| {
        info.text(IFLA_INFO_KIND, if is_v4 { "ipip" } else { "ip6tnl" });
        info.nested(IFLA_INFO_DATA, &[], |data| {
            data.u32(IFLA_IPTUN_LINK, spec.uplink_index)
                .address(IFLA_IPTUN_LOCAL, spec.local)
                .u8(IFLA_IPTUN_PROTO, u8::try_from(protocol).unwrap_or_default());
            if !is_v4 {
                data.u32(IFLA_IPTUN_FLAGS, IP6_TNL_F_IGN_ENCAP_LIMIT)
                    .attribute(IFLA_IPTUN_COLLECT_METADATA, &[]);
            }
        });
    });
    Ok(request)
}

pub(crate) fn parse_ipip(data: Attributes<'_>) -> IpipParameters {
    let address = |kind| data.address(kind).filter(|address| !address.is_unspecified());
    IpipParameters {
        local: address(IFLA_IPTUN_LOCAL),
        remote: address(IFLA_IPTUN_REMOTE),
        uplink_index: data.u32(IFLA_IPTUN_LINK).filter(|&index| index != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::HEADER_BYTES;
    use crate::message;

    #[test]
    fn a_link_is_asked_for_as_the_kernel_describes_it() {
        for (local, kind, protocol) in [("172.30.0.2", "ipip", 4), ("fd00::2", "ip6tnl", 41)] {
            let local: IpAddr = local.parse().expect("an address");
            let spec = IpipSpec { name: "flatnet-ipip".into(), local, uplink_index: 7, mtu: 1480 };
            let bytes = ipip(&spec).expect("a name").finish(1, 0);
            let attributes = Attributes::new(&bytes[message::HEADER_BYTES + HEADER_BYTES..]);
            assert_eq!(attributes.u32(IFLA_MTU), Some(1480));
            let info = attributes.nested(IFLA_LINKINFO).expect("what it is");
            assert_eq!(info.text(IFLA_INFO_KIND).as_deref(), Some(kind));
            let data = info.nested(IFLA_INFO_DATA).expect("its parameters");
            assert_eq!(data.u8(IFLA_IPTUN_PROTO), Some(protocol));
            assert_eq!(data.find(IFLA_IPTUN_COLLECT_METADATA).is_some(), local.is_ipv6());
            let expected =
                IpipParameters { local: Some(local), remote: None, uplink_index: Some(7) };
            assert_eq!(parse_ipip(data), expected);
        }
    }

    #[test]
    fn addresses_that_are_all_zero_are_none() {
        let mut request = Request::new(0, 0, &[]);
        request.attribute(IFLA_IPTUN_LOCAL, &[0; 4]).attribute(IFLA_IPTUN_REMOTE, &[0; 16]);
        let bytes = request.finish(1, 0);
        let parsed = parse_ipip(Attributes::new(&bytes[message::HEADER_BYTES..]));
        assert_eq!(parsed, IpipParameters { local: None, remote: None, uplink_index: None });
    }
}
