//! Keys and data of sets as bytes: a node keeps tens of thousands, of what shall be and of what is.

use std::net::IpAddr;

use ipnet::IpNet;
use model::packed::take_bytes;
use model::{MacAddress, Pack, PackedMap, Part, Unpack};

use super::language::{Datum, LinkName, Tuple, Value, Verdict};

/// The entries of a set or map, by key.
pub type Elements = PackedMap<Tuple, Datum>;

/// What a value begins with. The family of an address is told by the address itself.
mod kind {
    pub const ADDRESS: u8 = 0;
    pub const PROTOCOL: u8 = 1;
    pub const PORT: u8 = 2;
    pub const NUMBER: u8 = 3;
    pub const LINK: u8 = 4;
    pub const MAC: u8 = 5;
    pub const PORT_RANGE: u8 = 6;
    pub const NETWORK: u8 = 7;
}

impl Pack for Value {
    fn pack(&self, to: &mut Vec<u8>) {
        match *self {
            Self::Address(address) => {
                to.push(kind::ADDRESS);
                address.pack(to);
            }
            Self::Protocol(protocol) => to.extend([kind::PROTOCOL, protocol]),
            Self::Port(port) => {
                to.push(kind::PORT);
                to.extend(port.to_be_bytes());
            }
            Self::Number(number) => {
                to.push(kind::NUMBER);
                number.pack(to);
            }
            Self::Link(LinkName(name)) => {
                to.push(kind::LINK);
                to.extend(name);
            }
            Self::Mac(MacAddress(address)) => {
                to.push(kind::MAC);
                to.extend(address);
            }
            Self::PortRange(first, last) => {
                to.push(kind::PORT_RANGE);
                to.extend(first.to_be_bytes());
                to.extend(last.to_be_bytes());
            }
            Self::Network(network) => {
                to.push(kind::NETWORK);
                network.addr().pack(to);
                to.push(network.prefix_len());
            }
        }
    }
}

impl Part for Value {
    fn take(bytes: &mut &[u8]) -> Self {
        let port = |bytes: &mut &[u8]| u16::from_be_bytes(take_bytes(bytes));
        let [found] = take_bytes(bytes);
        match found {
            kind::ADDRESS => Self::Address(IpAddr::take(bytes)),
            kind::PROTOCOL => {
                let [protocol] = take_bytes(bytes);
                Self::Protocol(protocol)
            }
            kind::PORT => Self::Port(port(bytes)),
            kind::NUMBER => Self::Number(u32::take(bytes)),
            kind::LINK => Self::Link(LinkName(take_bytes(bytes))),
            kind::MAC => Self::Mac(MacAddress(take_bytes(bytes))),
            kind::PORT_RANGE => {
                let first = port(bytes);
                Self::PortRange(first, port(bytes))
            }
            _ => {
                let address = IpAddr::take(bytes);
                let [prefix_len] = take_bytes(bytes);
                Self::Network(IpNet::new_assert(address, prefix_len))
            }
        }
    }
}

/// What a datum begins with that is not empty.
mod datum {
    pub const VALUES: u8 = 0;
    pub const ACCEPT: u8 = 1;
    pub const DROP: u8 = 2;
    pub const JUMP: u8 = 3;
    pub const GOTO: u8 = 4;
}

impl Pack for Datum {
    fn pack(&self, to: &mut Vec<u8>) {
        match self {
            Self::Member => {}
            Self::Values(values) => {
                to.push(datum::VALUES);
                values.pack(to);
            }
            Self::Verdict(Verdict::Accept) => to.push(datum::ACCEPT),
            Self::Verdict(Verdict::Drop) => to.push(datum::DROP),
            Self::Verdict(Verdict::Jump(chain)) => {
                to.push(datum::JUMP);
                to.extend_from_slice(chain.as_bytes());
            }
            Self::Verdict(Verdict::Goto(chain)) => {
                to.push(datum::GOTO);
                to.extend_from_slice(chain.as_bytes());
            }
        }
    }
}

impl Unpack for Datum {
    fn unpack(bytes: &[u8]) -> Self {
        let Some((found, rest)) = bytes.split_first() else { return Self::Member };
        let chain = || String::from_utf8_lossy(rest).into_owned();
        match *found {
            datum::VALUES => Self::Values(Tuple::unpack(rest)),
            datum::ACCEPT => Self::Verdict(Verdict::Accept),
            datum::DROP => Self::Verdict(Verdict::Drop),
            datum::JUMP => Self::Verdict(Verdict::Jump(chain())),
            _ => Self::Verdict(Verdict::Goto(chain())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn elements_are_what_was_put_in() {
        let address = |text: &str| Value::Address(text.parse().expect("an address"));
        let network = |text: &str| Value::Network(text.parse().expect("a network"));
        let keys = [
            vec![],
            vec![address("10.0.0.1")],
            vec![address("10.0.0.1"), Value::Protocol(6), Value::Port(0x1234)],
            vec![address("fd00::1"), Value::Protocol(17), Value::PortRange(1, 0xff00)],
            vec![Value::Number(0x0102_0304)],
            vec![Value::Link(LinkName::new("eth0")), Value::Mac(MacAddress([1, 2, 3, 4, 5, 6]))],
            vec![Value::Protocol(6), network("10.1.2.3/15")],
            vec![Value::Protocol(6), network("fd00::/128")],
        ];
        let data = [
            Datum::Member,
            Datum::Values(vec![]),
            Datum::Values(vec![address("fd00::2"), Value::Port(80)]),
            Datum::Verdict(Verdict::Accept),
            Datum::Verdict(Verdict::Drop),
            Datum::Verdict(Verdict::Jump(String::new())),
            Datum::Verdict(Verdict::Goto("somewhere".into())),
            Datum::Member,
        ];
        let all: Vec<(Tuple, Datum)> = keys.into_iter().zip(data).collect();
        let elements: Elements = all.iter().cloned().collect();
        assert_eq!(elements.len(), all.len());
        for (key, datum) in &all {
            assert_eq!(elements.get(key).as_ref(), Some(datum));
        }
        let found: BTreeMap<Tuple, Datum> = elements.iter().collect();
        assert_eq!(found, all.iter().cloned().collect());
        let [_, some, more, ..] = &all[..] else { unreachable!() };
        let beginning: Vec<(Tuple, Datum)> = elements.starting_with(&some.0).collect();
        assert_eq!(beginning, [some.clone(), more.clone()]);
    }
}
