//! Whether packets of Services are sent on before the kernel makes packets of their frames.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Whether nodes with Services in eBPF send on, at the hook XDP of their uplink, what clients outside
/// send to endpoints on other nodes. The words are those of Cilium's `loadBalancer.acceleration`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceAcceleration {
    /// Nowhere.
    #[default]
    Disabled,
    /// On each node; one whose device cannot do it says that it is not as it shall be.
    Native,
    /// On each node whose device can do it for certain; veth is left out, whose other end loses what
    /// is sent so unless it is set up for it.
    BestEffort,
}

impl ServiceAcceleration {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Disabled, Self::Native, Self::BestEffort];

    /// The name, as in configurations.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Native => "native",
            Self::BestEffort => "best-effort",
        }
    }
}

impl fmt::Display for ServiceAcceleration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No acceleration has the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the accelerations of Services are disabled, native and best-effort")]
pub struct UnknownServiceAcceleration;

impl FromStr for ServiceAcceleration {
    type Err = UnknownServiceAcceleration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|one| one.as_str() == text).ok_or(UnknownServiceAcceleration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accelerations_have_one_name_everywhere() {
        for one in ServiceAcceleration::ALL {
            assert_eq!(one.to_string().parse(), Ok(one));
            assert_eq!(serde_json::to_string(&one).expect("written"), format!("\"{one}\""));
        }
        assert_eq!("xdp".parse::<ServiceAcceleration>(), Err(UnknownServiceAcceleration));
    }
}
