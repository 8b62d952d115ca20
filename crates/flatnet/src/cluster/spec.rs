//! What a cluster was made as: `cluster.json` in its state directory.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use model::ClusterConfig;
use model::cluster::nth_address;
use serde::{Deserialize, Serialize};

use super::paths::Paths;

/// The format that this program writes.
const VERSION: u32 = 1;
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
    /// The host's address on the node network.
    pub host_address: IpAddr,
    /// The API server's port on that address and on loopback.
    pub api_port: u16,
    /// Where DNS questions outside the cluster go.
    pub upstream_resolvers: Vec<IpAddr>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// The node's name, also its host name.
    pub name: String,
    /// Its address on the node network.
    pub address: IpAddr,
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
        let range = config.node_cidrs.first().context("--node-cidr names no range")?;
        let address = |index: usize| {
            nth_address(range, index as u128)
                .with_context(|| format!("--node-cidr {range} has no address number {index}"))
        };
        let host_address = address(1)?;
        let nodes = (1..=nodes)
            .map(|number| {
                Ok(NodeSpec { name: format!("node{number}"), address: address(number + 1)? })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            version: VERSION,
            config,
            nodes,
            host_address,
            api_port,
            upstream_resolvers: vec![],
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

    /// The API server as clients on the nodes reach it.
    pub fn api_url(&self) -> String {
        format!("https://{}", std::net::SocketAddr::new(self.host_address, self.api_port))
    }

    /// The API server as clients on the host reach it.
    pub fn local_api_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.api_port)
    }
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
        assert_eq!(spec.host_address.to_string(), "172.30.0.1");
        let nodes: Vec<String> =
            spec.nodes.iter().map(|node| format!("{} {}", node.name, node.address)).collect();
        assert_eq!(nodes, ["node1 172.30.0.2", "node2 172.30.0.3", "node3 172.30.0.4"]);
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
