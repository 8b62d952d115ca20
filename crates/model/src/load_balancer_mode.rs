//! Which way answers go to clients outside of the cluster.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Protocol;

/// How clients outside of the cluster reach endpoints on other nodes than the one that they came
/// to, at node ports and external addresses under `externalTrafficPolicy: Cluster`. The words are
/// those of Cilium's `loadBalancer.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoadBalancerMode {
    /// Under the address of the node that they came to, which their answers pass again.
    #[default]
    Snat,
    /// Under their own address: the endpoint's node answers them itself (direct server return).
    Dsr,
    /// As `Dsr` by TCP, as `Snat` by UDP, whose datagrams cannot be made smaller before they are
    /// sent.
    Hybrid,
}

impl LoadBalancerMode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Snat, Self::Dsr, Self::Hybrid];

    /// The name, as in configurations.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Snat => "snat",
            Self::Dsr => "dsr",
            Self::Hybrid => "hybrid",
        }
    }

    /// Whether answers of a protocol go past the node. Those of SCTP never do.
    pub const fn is_direct(self, protocol: Protocol) -> bool {
        match self {
            Self::Snat => false,
            Self::Dsr => matches!(protocol, Protocol::Tcp | Protocol::Udp),
            Self::Hybrid => matches!(protocol, Protocol::Tcp),
        }
    }
}

impl fmt::Display for LoadBalancerMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No mode has the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the load balancer modes are snat, dsr and hybrid")]
pub struct UnknownLoadBalancerMode;

impl FromStr for LoadBalancerMode {
    type Err = UnknownLoadBalancerMode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|one| one.as_str() == text).ok_or(UnknownLoadBalancerMode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_have_one_name_everywhere_and_say_which_protocols_go_past_the_node() {
        use Protocol::{Sctp, Tcp, Udp};
        let rows = [
            (LoadBalancerMode::Snat, "snat", vec![]),
            (LoadBalancerMode::Dsr, "dsr", vec![Tcp, Udp]),
            (LoadBalancerMode::Hybrid, "hybrid", vec![Tcp]),
        ];
        for (mode, name, direct) in rows {
            assert_eq!((mode.to_string(), name.parse()), (name.to_owned(), Ok(mode)));
            assert_eq!(serde_json::to_string(&mode).expect("written"), format!("{name:?}"));
            let found = [Tcp, Udp, Sctp].into_iter().filter(|one| mode.is_direct(*one));
            assert_eq!(found.collect::<Vec<_>>(), direct, "{name}");
        }
        assert_eq!("direct".parse::<LoadBalancerMode>(), Err(UnknownLoadBalancerMode));
    }
}
