//! The algorithms of the kernel's IP virtual server, for Services that ask for one by name.

use std::fmt;

/// What an annotation's value begins with, before the kernel's name of the algorithm.
const PREFIX: &str = "ipvs-";

/// An algorithm of IPVS, as ipvsadm(8) describes them. `rr`, `lc` and `dh` look at no weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IpvsScheduler {
    /// One after the other.
    RoundRobin,
    /// The same, as often as the weight says.
    WeightedRoundRobin,
    /// The fewest connections.
    LeastConnection,
    /// The fewest connections for its weight.
    WeightedLeastConnection,
    /// Locality: one endpoint a destination address, unless it is overloaded.
    LocalityBasedLeastConnection,
    /// The same with a set of endpoints a destination address.
    LocalityBasedLeastConnectionWithReplication,
    /// Hash of the destination address.
    DestinationHashing,
    /// Hash of the client's address.
    SourceHashing,
    /// The shortest expected delay.
    ShortestExpectedDelay,
    /// One that is idle, else the shortest expected delay.
    NeverQueue,
    /// The highest weight of those that are there.
    WeightedFailover,
    /// The highest weight until it has as many connections as that, then the next.
    WeightedOverflow,
    /// Consistent hash of the client's address.
    Maglev,
}

impl IpvsScheduler {
    /// All that Linux has.
    pub const ALL: [Self; 13] = [
        Self::RoundRobin,
        Self::WeightedRoundRobin,
        Self::LeastConnection,
        Self::WeightedLeastConnection,
        Self::LocalityBasedLeastConnection,
        Self::LocalityBasedLeastConnectionWithReplication,
        Self::DestinationHashing,
        Self::SourceHashing,
        Self::ShortestExpectedDelay,
        Self::NeverQueue,
        Self::WeightedFailover,
        Self::WeightedOverflow,
        Self::Maglev,
    ];

    /// The kernel's name, and that of its module after `ip_vs_`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "rr",
            Self::WeightedRoundRobin => "wrr",
            Self::LeastConnection => "lc",
            Self::WeightedLeastConnection => "wlc",
            Self::LocalityBasedLeastConnection => "lblc",
            Self::LocalityBasedLeastConnectionWithReplication => "lblcr",
            Self::DestinationHashing => "dh",
            Self::SourceHashing => "sh",
            Self::ShortestExpectedDelay => "sed",
            Self::NeverQueue => "nq",
            Self::WeightedFailover => "fo",
            Self::WeightedOverflow => "ovf",
            Self::Maglev => "mh",
        }
    }

    /// By the kernel's name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// By the value of an annotation, such as `ipvs-wlc`.
    pub(super) fn from_annotation(text: &str) -> Option<Self> {
        Self::from_name(text.strip_prefix(PREFIX)?)
    }
}

/// As in annotations.
impl fmt::Display for IpvsScheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_algorithm_has_a_name_of_its_own() {
        for one in IpvsScheduler::ALL {
            assert_eq!(IpvsScheduler::from_name(one.name()), Some(one));
            assert_eq!(IpvsScheduler::from_annotation(&one.to_string()), Some(one));
            assert_eq!(IpvsScheduler::from_annotation(one.name()), None);
        }
    }
}
