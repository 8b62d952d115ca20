//! A range of transport ports, as people write it.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Servers trust senders below this one to be root's (NFS's `secure`, rsh): no pod gets such a
/// source.
const UNPRIVILEGED_FIRST: u16 = 1024;

/// Ports from one to another, both included: `40000-49999`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The range; `None` where it ends before it begins.
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The least of the ports.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The greatest of them.
    pub fn last(self) -> u16 {
        self.last
    }

    /// Whether the port is one of them.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// What is wrong with them as the source ports of what pods send outside, and what to do.
    pub(crate) fn fault_as_sources(self, node_ports: (u16, u16)) -> Option<String> {
        let (first_node_port, last_node_port) = node_ports;
        if self.first < UNPRIVILEGED_FIRST {
            Some(format!(
                "{self} has ports below {UNPRIVILEGED_FIRST}, whose senders servers take for \
                 root: begin at {UNPRIVILEGED_FIRST} or above"
            ))
        } else if self.first <= last_node_port && first_node_port <= self.last {
            Some(format!(
                "{self} overlaps the node ports {first_node_port}-{last_node_port}, where clients \
                 outside reach Services: take ports beside them, such as 32768-60999"
            ))
        } else {
            None
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

/// Why a text is no range of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortRangeError {
    /// Not two numbers.
    #[error("{text:?} is no range of ports: write the first and the last, such as 32768-60999")]
    Form {
        /// What was written.
        text: String,
    },
    /// The end comes first.
    #[error("the range of ports {text:?} ends before it begins: write the lower port first")]
    Backwards {
        /// What was written.
        text: String,
    },
}

impl FromStr for PortRange {
    type Err = PortRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| -> Result<u16, ParseIntError> { text.trim().parse() };
        let ends = text.split_once('-').map(|(first, last)| (number(first), number(last)));
        match ends {
            Some((Ok(first), Ok(last))) => Self::new(first, last)
                .ok_or_else(|| PortRangeError::Backwards { text: text.into() }),
            _ => Err(PortRangeError::Form { text: text.into() }),
        }
    }
}

impl TryFrom<String> for PortRange {
    type Error = PortRangeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_they_are_written() {
        for text in ["40000-40000", "1024-29999", "0-65535"] {
            let range: PortRange = text.parse().expect(text);
            assert_eq!(range.to_string(), text);
            let json = serde_json::to_string(&range).expect("written");
            assert_eq!(serde_json::from_str::<PortRange>(&json).expect("read"), range);
        }
        let range: PortRange = "40000-40009".parse().expect("a range");
        assert!(range.contains(40_000) && range.contains(40_009));
        assert!(!range.contains(39_999) && !range.contains(40_010));
    }

    #[test]
    fn what_is_no_range_is_told_with_how_to_write_it() {
        let rows = [
            ("", "such as 32768-60999"),
            ("40000", "such as 32768-60999"),
            ("40000:50000", "such as 32768-60999"),
            ("40000-65536", "such as 32768-60999"),
            ("-1-5", "such as 32768-60999"),
            ("50000-40000", "the lower port first"),
        ];
        for (text, expected) in rows {
            let error = text.parse::<PortRange>().expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn pods_get_neither_privileged_source_ports_nor_node_ports() {
        let rows = [
            ("32768-60999", None),
            ("1024-29999", None),
            ("0-29999", Some("below 1024")),
            ("1023-2000", Some("below 1024")),
            ("20000-30000", Some("overlaps the node ports 30000-32767")),
            ("32767-40000", Some("overlaps the node ports")),
            ("31000-31000", Some("overlaps the node ports")),
            ("1024-65535", Some("overlaps the node ports")),
        ];
        for (text, expected) in rows {
            let range: PortRange = text.parse().expect(text);
            let fault = range.fault_as_sources((30_000, 32_767));
            match expected {
                None => assert_eq!(fault, None, "{text}"),
                Some(part) => assert!(fault.is_some_and(|fault| fault.contains(part)), "{text}"),
            }
        }
    }
}
