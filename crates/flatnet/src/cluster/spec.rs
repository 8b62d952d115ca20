//! What a cluster was made as: `cluster.json` in its state directory.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use model::cluster::nth_address;
use model::{ClusterConfig, Family};
use serde::{Deserialize, Serialize};

use super::paths::Paths;

/// The format that this program writes.
const VERSION: u32 = 2;
/// More nodes than this on one machine are refused.
pub const NODES_MAX: usize = 100;

/// A cluster of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterSpec {
    /// Format of this file.
    pub version: u32,
    /// Ranges, overlay, names.
    pub config: ClusterConfig,
    /// The nodes, by number.
    pub nodes: Vec<NodeSpec>,
    /// The host's addresses on the node network, one a family, the cluster's first family first.
    pub host_addresses: Vec<IpAddr>,
    /// The API server's port on that address and on loopback.
    pub api_port: u16,
    /// Where DNS questions outside the cluster go.
    pub upstream_resolvers: Vec<IpAddr>,
    /// Most endpoints of one EndpointSlice; absent: the controller's own number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_endpoints_per_slice: Option<usize>,
    /// Where requests to the API server are written down; absent: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_log_path: Option<PathBuf>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// The node's name, also its host name.
    pub name: String,
    /// Its addresses on the node network, one a family, the cluster's first family first.
    pub addresses: Vec<IpAddr>,
}

impl ClusterSpec {
    /// A new cluster of `nodes` nodes. Addresses are given in order, the host first.
    ///
    /// # Errors
    /// Every fault of the ranges, a line each.
    pub fn new(config: ClusterConfig, nodes: usize, api_port: u16) -> Result<Self> {
        if nodes == 0 || nodes > NODES_MAX {
            bail!("--nodes {nodes}: use 1 to {NODES_MAX}");
        }
        if let Err(errors) = config.check_ranges(nodes) {
            let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
            bail!("{}", lines.join("\n"));
        }
        check_families(&config)?;
        let addresses = |index: usize| -> Result<Vec<IpAddr>> {
            let of_range = |range: &IpNet| {
                nth_address(range, index as u128)
                    .with_context(|| format!("--node-cidr {range} has no address number {index}"))
            };
            config.node_cidrs.iter().map(of_range).collect()
        };
        let host_addresses = addresses(1)?;
        let nodes = (1..=nodes)
            .map(|number| {
                Ok(NodeSpec { name: format!("node{number}"), addresses: addresses(number + 1)? })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            version: VERSION,
            config,
            nodes,
            host_addresses,
            api_port,
            upstream_resolvers: vec![],
            max_endpoints_per_slice: None,
            audit_log_path: None,
        })
    }

    /// Reads the cluster's file; `None` when there is no such cluster.
    ///
    /// # Errors
    /// When the file is damaged, with what to do.
    pub fn load(paths: &Paths) -> Result<Option<Self>> {
        let file = paths.spec();
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
        };
        let spec: Self = serde_json::from_str(&text).with_context(|| {
            format!(
                "{} is damaged. `flatnet down --name {}` removes the cluster; or put the file back \
                 from a copy",
                file.display(),
                paths.name()
            )
        })?;
        if spec.version != VERSION {
            bail!(
                "{} has format {}, this program reads format {VERSION}: use the program that made \
                 the cluster, or remove it with `flatnet down --name {}`",
                file.display(),
                spec.version,
                paths.name()
            );
        }
        Ok(Some(spec))
    }

    /// Writes the cluster's file.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, paths: &Paths) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        write_private(&paths.spec(), &format!("{text}\n"))
    }

    /// Where clients on the nodes reach the API server: the host's address of the cluster's first
    /// family.
    ///
    /// # Errors
    /// When the file names no address of the host.
    pub fn api_address(&self) -> Result<SocketAddr> {
        let address = self.host_addresses.first().context("the cluster's file names no host")?;
        Ok(SocketAddr::new(*address, self.api_port))
    }

    /// The addresses of cluster DNS, the cluster's first family first.
    pub fn dns_addresses(&self) -> Vec<IpAddr> {
        let families = self.config.service_cidrs.iter().map(|range| Family::of(&range.addr()));
        families.filter_map(|family| self.config.dns_address(family)).collect()
    }

    /// All addresses that the nodes' DNS workers answer at.
    pub fn listened_dns_addresses(&self) -> Vec<IpAddr> {
        let families = self.config.service_cidrs.iter().map(|range| Family::of(&range.addr()));
        families.flat_map(|family| self.config.dns_addresses(family)).collect()
    }

    /// The API server as clients on the host reach it.
    pub fn local_api_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.api_port)
    }
}

/// Pods, Services and nodes have the same families in the same order: the first is that of the
/// Services which do not choose, and a route needs a next hop of its own family.
fn check_families(config: &ClusterConfig) -> Result<()> {
    let families = |ranges: &[IpNet]| -> Vec<Family> {
        ranges.iter().map(|range| Family::of(&range.addr())).collect()
    };
    let pods = families(&config.pod_cidrs);
    if pods.len() > 2 || pods.first() == pods.get(1) {
        bail!("--pod-cidr takes one range, or one of each family");
    }
    for (flag, ranges) in
        [("--service-cidr", &config.service_cidrs), ("--node-cidr", &config.node_cidrs)]
    {
        if families(ranges) != pods {
            let list = |families: &[Family]| {
                families.iter().map(Family::to_string).collect::<Vec<_>>().join(",")
            };
            bail!(
                "{flag} has families {}, --pod-cidr has {}: give each of the three the same \
                 families in the same order, or leave them all to --ip-family",
                list(&families(ranges)),
                list(&pods)
            );
        }
    }
    Ok(())
}

/// Writes a file for root alone, whole or not at all.
///
/// # Errors
/// The file system's.
pub fn write_private(file: &Path, text: &str) -> Result<()> {
    let new = file.with_extension("new");
    let write = || -> std::io::Result<()> {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut handle =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        handle.write_all(text.as_bytes())?;
        handle.sync_all()?;
        fs::rename(&new, file)
    };
    write().with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_in_order_the_host_first() {
        let spec = ClusterSpec::new(ClusterConfig::default(), 3, 6443).expect("a cluster");
        assert_eq!(spec.api_address().expect("an address").to_string(), "172.30.0.1:6443");
        let nodes: Vec<String> =
            spec.nodes.iter().map(|node| format!("{} {:?}", node.name, node.addresses)).collect();
        assert_eq!(nodes, ["node1 [172.30.0.2]", "node2 [172.30.0.3]", "node3 [172.30.0.4]"]);
    }

    #[test]
    fn families_are_the_same_everywhere_and_in_one_order() {
        let ranges = |text: &str| -> Vec<IpNet> {
            text.split(',').map(|range| range.parse().expect("a range")).collect()
        };
        let with = |pods: &str, services: &str, nodes: &str| {
            let config = ClusterConfig {
                pod_cidrs: ranges(pods),
                service_cidrs: ranges(services),
                node_cidrs: ranges(nodes),
                ..ClusterConfig::default()
            };
            ClusterSpec::new(config, 2, 6443)
        };
        let dual = with(
            "10.244.0.0/16,fd00:10:244::/56",
            "10.96.0.0/16,fd00:10:96::/112",
            "172.30.0.0/24,fd00:172:30::/64",
        )
        .expect("a cluster");
        let [v4, v6] = ["172.30.0.2", "fd00:172:30::2"]
            .map(|text| text.parse::<IpAddr>().expect("an address"));
        assert_eq!(dual.nodes[0].addresses, [v4, v6]);
        assert_eq!(dual.dns_addresses().len(), 2);
        let other = with("10.244.0.0/16", "fd00:10:96::/112", "172.30.0.0/24");
        let error = other.expect_err("families differ").to_string();
        assert!(error.contains("--service-cidr has families IPv6, --pod-cidr has IPv4"), "{error}");
        let twice = with("10.244.0.0/16,10.245.0.0/16", "10.96.0.0/16", "172.30.0.0/24");
        assert!(twice.is_err());
    }

    #[test]
    fn faults_of_the_ranges_are_listed_together() {
        let config = ClusterConfig {
            pod_cidrs: vec!["10.96.0.0/20".parse().expect("a range")],
            node_cidrs: vec!["172.30.0.0/30".parse().expect("a range")],
            ..ClusterConfig::default()
        };
        let error = ClusterSpec::new(config, 3, 6443).expect_err("faults").to_string();
        assert_eq!(error.lines().count(), 2, "{error}");
    }
}
