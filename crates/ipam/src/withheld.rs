//! Addresses that the configuration keeps back from pods.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Addresses from one to another of a family, both included. Written `10.0.0.9`,
/// `10.0.0.9-10.0.0.20` or `10.0.0.16/28`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    first: IpAddr,
    last: IpAddr,
}

/// What no pod gets, and what only those pods get that ask for it. Keys `reserved` and
/// `onRequest` beside `ranges` in the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Withheld {
    /// Never given out, whoever asks: addresses of other machines in the subnet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reserved: Vec<Span>,
    /// Given only to a pod that asks for the very address, so that fixed addresses are free
    /// when their pods come.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub on_request: Vec<Span>,
}

impl Span {
    /// Whether the address is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && (self.first..=self.last).contains(&address)
    }

    /// The first of them.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The last of them.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// The address at an index, counted from 0.
    pub fn nth(&self, index: u128) -> Option<IpAddr> {
        let address = match self.first {
            IpAddr::V4(first) => {
                IpAddr::V4(u32::from(first).checked_add(u32::try_from(index).ok()?)?.into())
            }
            IpAddr::V6(first) => IpAddr::V6(u128::from(first).checked_add(index)?.into()),
        };
        (address <= self.last).then_some(address)
    }

    /// How many they are; one less than the whole of IPv6 at most.
    pub fn count(&self) -> u128 {
        let distance = match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => u128::from(u32::from(last) - u32::from(first)),
            (IpAddr::V6(first), IpAddr::V6(last)) => u128::from(last) - u128::from(first),
            _ => 0,
        };
        distance.saturating_add(1)
    }
}

impl Withheld {
    /// Whether nobody may have the address.
    pub fn is_reserved(&self, address: IpAddr) -> bool {
        self.reserved.iter().any(|span| span.contains(address))
    }

    /// Whether only a pod that asks for the address may have it.
    pub fn is_on_request(&self, address: IpAddr) -> bool {
        self.on_request.iter().any(|span| span.contains(address))
    }

    /// The last address of a span of either kind that the address is in: where a search goes on.
    pub(crate) fn skip(&self, address: IpAddr) -> Option<IpAddr> {
        let spans = self.reserved.iter().chain(&self.on_request);
        spans.filter(|span| span.contains(address)).map(Span::last).max()
    }
}

/// A text that is no [`Span`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither an address, nor FIRST-LAST of one family in rising order, nor a subnet")]
pub struct SpanError(String);

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let wrong = || SpanError(text.to_owned());
        let text = text.trim();
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(Self { first: net.network(), last: net.broadcast() });
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let parse = |part: &str| part.trim().parse::<IpAddr>().map_err(|_| wrong());
        let (first, last) = (parse(first)?, parse(last)?);
        if first.is_ipv4() != last.is_ipv4() || first > last {
            return Err(wrong());
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return write!(f, "{}", self.first);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_in_three_forms_and_print_so_that_they_read_back() {
        let rows = [
            ("10.0.0.9", "10.0.0.9", 1),
            (" 10.0.0.9 - 10.0.0.20 ", "10.0.0.9-10.0.0.20", 12),
            ("10.0.0.16/28", "10.0.0.16-10.0.0.31", 16),
            ("fd00::/127", "fd00::-fd00::1", 2),
        ];
        for (text, printed, count) in rows {
            let span: Span = text.parse().expect(text);
            assert_eq!((span.to_string().as_str(), span.count()), (printed, count));
            assert_eq!(printed.parse(), Ok(span));
            assert_eq!(span.nth(count - 1), Some(span.last()));
            assert_eq!(span.nth(count), None);
        }
        for wrong in ["", "ten", "10.0.0.9-", "10.0.0.9-10.0.0.1", "10.0.0.1-fd00::1", "1-2-3"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn families_do_not_mix() {
        let all: Span = "0.0.0.0/0".parse().expect("a span");
        assert!(!all.contains("::1".parse().expect("an address")));
    }
}
