//! [`MacAddress`]: the address of a link, and the ones that are derived instead of exchanged.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An EUI-48 link-layer address.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(into = "String", try_from = "String")]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// The address of the link that carries a pod or gateway address. Equal IP, equal MAC: who
    /// still remembers the neighbour of a reused pod address remembers the right one.
    pub fn of_pod_address(address: IpAddr) -> Self {
        Self::derived([0x0a, 0x58], address)
    }

    /// The address of a node's VXLAN link (VTEP), from the node's `InternalIP`: peers compute it,
    /// so nothing needs to be exchanged.
    pub fn of_vtep(node_address: IpAddr) -> Self {
        Self::derived([0x0e, 0x66], node_address)
    }

    /// Both prefixes are locally administered and unicast. An IPv4 address fits whole; an IPv6
    /// address is folded, which can collide once in 2^32 pairs of one segment.
    fn derived(prefix: [u8; 2], address: IpAddr) -> Self {
        let [a, b, c, d] = match address {
            IpAddr::V4(address) => address.octets(),
            IpAddr::V6(address) => fnv1a(&address.octets()).to_be_bytes(),
        };
        Self([prefix[0], prefix[1], a, b, c, d])
    }
}

fn is_hex_pair(part: &str) -> bool {
    part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// FNV-1a, 32 bits: short, well spread, and the same in every program and release.
pub fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fault = || format!("{text:?} is no MAC address: write it as 0a:58:0a:f4:01:05");
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| is_hex_pair(part)).ok_or_else(fault)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| fault())?;
        }
        if parts.next().is_some() { Err(fault()) } else { Ok(Self(octets)) }
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for MacAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_addresses_are_unicast_local_and_tell_pods_from_tunnels() {
        let address: IpAddr = "10.244.1.5".parse().expect("an address");
        let pod = MacAddress::of_pod_address(address);
        let tunnel = MacAddress::of_vtep(address);
        assert_eq!(pod.to_string(), "0a:58:0a:f4:01:05");
        assert_ne!(pod, tunnel);
        for mac in [pod, tunnel] {
            assert_eq!(mac.0[0] & 0b11, 0b10, "{mac} must be local and unicast");
        }
    }

    #[test]
    fn text_and_value_are_one_to_one() {
        let mac: MacAddress = "0e:66:ac:1e:00:02".parse().expect("a MAC");
        assert_eq!(mac.to_string().parse(), Ok(mac));
        for wrong in
            ["", "0e:66:ac:1e:00", "0e:66:ac:1e:00:02:03", "0e-66-ac-1e-00-02", "+e:66:ac:1e:00:02"]
        {
            assert!(wrong.parse::<MacAddress>().is_err(), "{wrong:?}");
        }
    }
}
