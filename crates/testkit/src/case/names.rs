//! Names for addresses in case files, so that no expectation holds an allocated number.
//!
//! | text | means |
//! |---|---|
//! | `pod NAME` | the pod's address |
//! | `node`, `node NAME` | the address of the node that is looked at, or of another |
//! | `outside` | a machine outside of the cluster, behind the nodes' default route |
//! | `dns` | the address of cluster DNS |
//! | `NAME`, `NAMESPACE/NAME` | the Service's first address |
//! | `10.96.9.9` | that address |

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use model::packet::{Entry, Packet, SourceTranslation, Verdict};
use model::world::Object;
use model::{ClusterConfig, Family, NamespacedName};

use super::Case;
use super::table::Row;
use crate::objects;

/// The machine outside of the cluster (RFC 5737, documentation).
pub const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));
/// The source port of packets whose port does not matter.
pub const CLIENT_PORT: u16 = 40000;

/// The names of one case, as far as its objects were seen.
#[derive(Clone, Debug)]
pub struct Names {
    config: ClusterConfig,
    nodes: u8,
    at: u8,
    pods: BTreeMap<String, Pod>,
    services: BTreeMap<NamespacedName, IpAddr>,
}

/// A pod of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its address.
    pub address: IpAddr,
    /// The number of its node, from 1.
    pub node: u8,
}

impl Names {
    /// The names of a case without its objects.
    pub fn new(case: &Case) -> Self {
        Self {
            config: case.config.clone(),
            nodes: case.nodes,
            at: case.at,
            pods: BTreeMap::new(),
            services: BTreeMap::new(),
        }
    }

    /// Learns pods and Services.
    ///
    /// # Errors
    /// When a pod is on no node of the case.
    pub fn learn(&mut self, objects: &[Object]) -> Result<()> {
        for object in objects {
            match object {
                Object::Pod(pod) => {
                    let name = &pod.metadata.name;
                    let Some(address) = pod.ips().first().copied() else { continue };
                    let node = pod.spec.node_name.strip_prefix("node");
                    let node: u8 = node
                        .and_then(|number| number.parse().ok())
                        .filter(|number| (1..=self.nodes).contains(number))
                        .with_context(|| format!("pod {name} is on no node of the case"))?;
                    self.pods.insert(name.clone(), Pod { address, node });
                }
                Object::Service(service) => {
                    if let Some(address) = service.cluster_ips().next() {
                        self.services.insert(service.metadata.key(), address);
                    }
                }
                Object::Node(_) | Object::EndpointSlice(_) => {}
            }
        }
        Ok(())
    }

    /// The pods by name.
    pub fn pods(&self) -> &BTreeMap<String, Pod> {
        &self.pods
    }

    /// The packet of a row.
    ///
    /// # Errors
    /// When a name is unknown.
    pub fn packet(&self, row: &Row) -> Result<Packet> {
        let (name, port) = row.to.rsplit_once(':').context("a destination has a port")?;
        let port = port.parse().with_context(|| format!("{port:?} is no port"))?;
        let destination = SocketAddr::new(self.address(name)?, port);
        let (entry, source) = self.sender(&row.from, destination.ip())?;
        Ok(Packet {
            entry,
            source: SocketAddr::new(source, CLIENT_PORT),
            destination,
            protocol: row.protocol,
        })
    }

    fn sender(&self, from: &str, destination: IpAddr) -> Result<(Entry, IpAddr)> {
        if let Some(name) = from.strip_prefix("pod ") {
            let pod = self.pods.get(name).with_context(|| format!("there is no pod {name}"))?;
            let entry = match pod.node == self.at {
                true => Entry::Pod,
                false if self.config.is_pod_address(destination) => Entry::Overlay,
                false => Entry::Uplink,
            };
            return Ok((entry, pod.address));
        }
        Ok(match from {
            "node" if destination.is_loopback() => (Entry::Local, destination),
            "node" => (Entry::Local, objects::node_address(self.at)),
            "outside" => (Entry::Uplink, OUTSIDE),
            _ if from.starts_with("node ") => (Entry::Uplink, self.address(from)?),
            _ => bail!("{from:?} sends nothing: use pod NAME, node, node NAME or outside"),
        })
    }

    fn address(&self, name: &str) -> Result<IpAddr> {
        if let Some(name) = name.strip_prefix("pod ") {
            let pod = self.pods.get(name).with_context(|| format!("there is no pod {name}"))?;
            return Ok(pod.address);
        }
        if let Some(name) = name.strip_prefix("node ") {
            let number = (1..=self.nodes).find(|number| format!("node{number}") == name);
            let number = number.with_context(|| format!("there is no node {name}"))?;
            return Ok(objects::node_address(number));
        }
        if let Ok(address) = name.parse() {
            return Ok(address);
        }
        let key = match name.split_once('/') {
            Some((namespace, name)) => NamespacedName::new(namespace, name),
            None => NamespacedName::new("default", name),
        };
        match name {
            "node" => Ok(objects::node_address(self.at)),
            "outside" => Ok(OUTSIDE),
            "dns" => self.config.dns_address(Family::V4).context("no DNS address"),
            _ => self
                .services
                .get(&key)
                .copied()
                .with_context(|| format!("{name:?} is no Service with an address")),
        }
    }

    /// The name of an address with a port.
    pub fn print(&self, address: SocketAddr) -> String {
        format!("{}:{}", self.print_address(address.ip()), address.port())
    }

    /// The name of an address.
    pub fn print_address(&self, address: IpAddr) -> String {
        let pod = self.pods.iter().find(|(_, pod)| pod.address == address);
        let service = self.services.iter().find(|(_, other)| **other == address);
        let node = (1..=self.nodes).find(|number| objects::node_address(*number) == address);
        match (pod, service, node) {
            (Some((name, _)), _, _) => name.clone(),
            (_, Some((key, _)), _) => key.to_string(),
            (_, _, Some(number)) if number == self.at => "node".into(),
            (_, _, Some(number)) => format!("node{number}"),
            _ if address == OUTSIDE => "outside".into(),
            _ => address.to_string(),
        }
    }

    /// The verdict columns of a row: verdict, destinations, source.
    pub fn print_verdict(&self, packet: &Packet, verdict: &Verdict) -> (String, String, String) {
        let nothing = || "-".to_string();
        let Verdict::Pass { destinations, source } = verdict else {
            return (verdict.to_string(), nothing(), nothing());
        };
        let unchanged = destinations.iter().eq([&packet.destination]);
        let mut rewritten: Vec<String> =
            destinations.iter().map(|address| self.print(*address)).collect();
        rewritten.sort();
        let rewritten = if unchanged { "unchanged".into() } else { rewritten.join(", ") };
        let source = match source {
            SourceTranslation::Kept => "kept".into(),
            SourceTranslation::Masqueraded => "masqueraded".into(),
            SourceTranslation::MasqueradedTo(towards) => {
                let towards: Vec<String> =
                    towards.iter().map(|address| self.print_address(*address)).collect();
                format!("masqueraded towards {}", towards.join(", "))
            }
        };
        ("pass".into(), rewritten, source)
    }
}
