//! Addresses and ranges of them.

use std::net::IpAddr;

use super::Said;
use crate::cel::Error;
use crate::cel::value::Value;

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    length: u8,
}

pub(super) fn call<'a>(name: &str, arguments: &[Value<'a>]) -> Option<Said<'a>> {
    let value = match (name, arguments) {
        ("isIP", [Value::Text(text)]) => Value::Bool(address(text).is_some()),
        ("ip", [Value::Text(text)]) => match address(text) {
            Some(address) => Value::Ip(address),
            None => return Some(Err(no_address(text))),
        },
        ("ip.isCanonical", [Value::Text(text)]) => match address(text) {
            Some(address) => Value::Bool(address.to_string() == **text),
            None => return Some(Err(no_address(text))),
        },
        ("isCIDR", [Value::Text(text)]) => Value::Bool(Cidr::parse(text).is_some()),
        ("cidr", [Value::Text(text)]) => match Cidr::parse(text) {
            Some(range) => Value::Cidr(range),
            None => return Some(Err(no_range(text))),
        },
        (_, [Value::Ip(address)]) => return of_address(name, *address),
        ("ip", [Value::Cidr(range)]) => Value::Ip(range.address),
        ("masked", [Value::Cidr(range)]) => Value::Cidr(range.masked()),
        ("prefixLength", [Value::Cidr(range)]) => Value::Int(i64::from(range.length)),
        ("containsIP", [Value::Cidr(range), Value::Ip(inner)]) => {
            Value::Bool(range.contains(*inner))
        }
        ("containsIP", [Value::Cidr(range), Value::Text(text)]) => match address(text) {
            Some(inner) => Value::Bool(range.contains(inner)),
            None => return Some(Err(no_address(text))),
        },
        ("containsCIDR", [Value::Cidr(range), Value::Cidr(inner)]) => {
            Value::Bool(range.covers(inner))
        }
        ("containsCIDR", [Value::Cidr(range), Value::Text(text)]) => match Cidr::parse(text) {
            Some(inner) => Value::Bool(range.covers(&inner)),
            None => return Some(Err(no_range(text))),
        },
        ("string", [Value::Cidr(range)]) => {
            Value::text(format!("{}/{}", range.address, range.length))
        }
        _ => return None,
    };
    Some(Ok(value))
}

fn of_address<'a>(name: &str, address: IpAddr) -> Option<Said<'a>> {
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let is_link_local_multicast = match address {
        IpAddr::V4(address) => address.octets().starts_with(&[224, 0, 0]),
        IpAddr::V6(address) => address.segments()[0] & 0xff0f == 0xff02,
    };
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    let value = match name {
        "string" => Value::text(address.to_string()),
        "family" => Value::Int(if address.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => Value::Bool(address.is_unspecified()),
        "isLoopback" => Value::Bool(address.is_loopback()),
        "isLinkLocalUnicast" => Value::Bool(is_link_local),
        "isLinkLocalMulticast" => Value::Bool(is_link_local_multicast),
        // As Go has it: private addresses are such too.
        "isGlobalUnicast" => Value::Bool(
            !is_broadcast
                && !is_link_local
                && !address.is_unspecified()
                && !address.is_loopback()
                && !address.is_multicast(),
        ),
        _ => return None,
    };
    Some(Ok(value))
}

/// An address; IPv4 in IPv6 is none, as with the real server.
fn address(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    let is_mapped = matches!(address, IpAddr::V6(six) if six.to_ipv4_mapped().is_some());
    (!is_mapped).then_some(address)
}

fn no_address(text: &str) -> Error {
    Error::new(format!("IP Address {text:?} parse error during conversion from string"))
}

fn no_range(text: &str) -> Error {
    Error::new(format!("network address parse error during conversion from string: {text:?}"))
}

impl Cidr {
    fn parse(text: &str) -> Option<Self> {
        let (before, length) = text.split_once('/')?;
        let address = address(before)?;
        let is_plain = length.bytes().all(|byte| byte.is_ascii_digit());
        let is_padded = length.len() > 1 && length.starts_with('0');
        let length: u8 = length.parse().ok().filter(|_| is_plain && !is_padded)?;
        (length <= width(address)).then_some(Self { address, length })
    }

    fn masked(&self) -> Self {
        Self { address: network(self.address, self.length), length: self.length }
    }

    fn contains(&self, inner: IpAddr) -> bool {
        self.address.is_ipv4() == inner.is_ipv4()
            && network(inner, self.length) == network(self.address, self.length)
    }

    fn covers(&self, inner: &Self) -> bool {
        inner.length >= self.length && self.contains(inner.address)
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The first address of the range of a length that has an address.
fn network(address: IpAddr, length: u8) -> IpAddr {
    let host = u32::from(width(address).saturating_sub(length));
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(host).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(host).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}
