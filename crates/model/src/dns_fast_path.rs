//! Whether the kernel answers for cluster DNS.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Whether plain questions for addresses of the cluster's names are answered by eBPF at the links of
/// pods, without the DNS worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DnsFastPath {
    /// Where the node's kernel can, and the agent has the right to.
    #[default]
    Auto,
    /// As `auto`; a node that cannot tells that as a problem.
    On,
    /// Nowhere.
    Off,
}

impl DnsFastPath {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::On, Self::Off];

    /// The name, as in configurations.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

impl fmt::Display for DnsFastPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No choice has the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the fast path of DNS is auto, on or off")]
pub struct UnknownDnsFastPath;

impl FromStr for DnsFastPath {
    type Err = UnknownDnsFastPath;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|one| one.as_str() == text).ok_or(UnknownDnsFastPath)
    }
}
