//! Where a cluster of this machine keeps what. Everything below is for root alone.

use std::path::{Path, PathBuf};

/// Below here: one directory a cluster, kept over reboots.
pub const STATE_ROOT: &str = "/var/lib/flatnet";
/// Below here: one directory a cluster, gone with a reboot.
pub const RUN_ROOT: &str = "/run/flatnet";
/// Where iproute2 looks for named network namespaces, so that `ip netns exec` finds ours.
pub const NETNS_ROOT: &str = "/run/netns";
/// A cluster's name becomes part of link, namespace and node names.
pub const NAME_LENGTH_MAX: usize = 32;

/// The places of one cluster.
#[derive(Clone, Debug)]
pub struct Paths {
    name: String,
}

impl Paths {
    /// The places of the cluster of this name.
    ///
    /// # Errors
    /// A text that says which names are allowed.
    pub fn new(name: &str) -> Result<Self, String> {
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let fits = !name.is_empty() && name.len() <= NAME_LENGTH_MAX;
        let edges = !name.starts_with('-') && !name.ends_with('-');
        if fits && edges && name.chars().all(label) {
            Ok(Self { name: name.into() })
        } else {
            Err(format!(
                "{name:?} cannot name a cluster: use 1 to {NAME_LENGTH_MAX} lower-case letters, \
                 digits and inner hyphens"
            ))
        }
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Kept over reboots.
    pub fn state(&self) -> PathBuf {
        Path::new(STATE_ROOT).join(&self.name)
    }

    /// Gone with a reboot.
    pub fn run(&self) -> PathBuf {
        Path::new(RUN_ROOT).join(&self.name)
    }

    /// What the cluster was made as.
    pub fn spec(&self) -> PathBuf {
        self.state().join("cluster.json")
    }

    /// Certificates and keys.
    pub fn pki(&self) -> PathBuf {
        self.state().join("pki")
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state().join("kubeconfig")
    }

    /// A component's kubeconfig.
    pub fn component_kubeconfig(&self, component: &str) -> PathBuf {
        self.pki().join(format!("{component}.kubeconfig"))
    }

    /// Where the processes' messages go.
    pub fn logs(&self) -> PathBuf {
        self.state().join("logs")
    }

    /// What one node keeps on disk.
    pub fn node(&self, node: &str) -> PathBuf {
        self.nodes().join(node)
    }

    /// What the nodes keep on disk.
    pub fn nodes(&self) -> PathBuf {
        self.state().join("nodes")
    }

    /// Images that were loaded or pulled, for all nodes.
    pub fn images(&self) -> PathBuf {
        self.state().join("images")
    }

    /// What the supervisor says of its processes.
    pub fn status(&self) -> PathBuf {
        self.run().join("status.json")
    }

    /// Held by the supervisor while it lives.
    pub fn lock(&self) -> PathBuf {
        self.run().join("lock")
    }

    /// Handles of the nodes' namespaces.
    pub fn namespaces(&self) -> PathBuf {
        self.run().join("ns")
    }

    /// The handle of one of a node's namespaces: `net`, `mnt`, `uts` or `cgroup`.
    pub fn namespace(&self, node: &str, kind: &str) -> PathBuf {
        self.namespaces().join(format!("{node}.{kind}"))
    }

    /// The handle of a network namespace; `node` may be `net`, the node network itself.
    pub fn netns(&self, node: &str) -> PathBuf {
        self.namespace(node, "net")
    }

    /// A link to that handle, where `ip netns` finds it. The handle itself lies elsewhere: other
    /// programs mount and propagate that directory as they like.
    pub fn netns_link(&self, node: &str) -> PathBuf {
        Path::new(NETNS_ROOT).join(format!("{}-{node}", self.name))
    }

    /// Says that this cluster made [`NETNS_ROOT`], which goes with it.
    pub fn netns_root_marker(&self) -> PathBuf {
        self.run().join("made-netns-root")
    }

    /// The host's link to the node network. Link names have at most 15 bytes, so long cluster
    /// names are shortened by a checksum.
    pub fn host_link(&self) -> String {
        if self.name.len() <= 12 {
            format!("fn-{}", self.name)
        } else {
            format!("fn-{:08x}", checksum(&self.name))
        }
    }

    /// The cluster's cgroup below each hierarchy's root.
    pub fn cgroup(&self) -> PathBuf {
        Path::new("flatnet").join(&self.name)
    }
}

/// FNV-1a, 32 bits: names only, nothing hostile.
fn checksum(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        for bad in ["", "..", "a/b", "-a", "a-", "Upper", "white space", &"x".repeat(33)] {
            assert!(Paths::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn link_names_fit_the_kernel() {
        for name in ["flatnet", "a", "a-rather-long-cluster-name"] {
            let paths = Paths::new(name).expect("a good name");
            assert!(paths.host_link().len() <= 15);
        }
    }
}
