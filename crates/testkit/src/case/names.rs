//! Names for addresses in case files, so that no expectation holds an allocated number.
//!
//! | text | means |
//! |---|---|
//! | `pod NAME` | the pod's address |
//! | `node`, `node NAME` | the address of the node that is looked at, or of another |
//! | `outside` | a machine outside of the cluster, behind the nodes' default route |
//! | `dns` | the address of cluster DNS |
//! | `NAME`, `NAMESPACE/NAME` | the Service's ClusterIP |
//! | `10.96.9.9`, `[2001:db8::1]` | that address |
//!
//! Names mean addresses of the cluster's first family, with ` v4` or ` v6` behind them those of
//! that family, such as `web v6:80`. Who sends does it in the family of the destination.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use model::packet::{Entry, Packet, SourceTranslation, Verdict};
use model::world::Object;
use model::{Family, NamespacedName, Unreachable};

use super::Settings;
use super::table::Row;
use crate::objects;

/// The source port of packets whose port does not matter.
pub const CLIENT_PORT: u16 = 40000;

/// The machine outside of the cluster (RFC 5737 and 3849, documentation).
pub const fn outside(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10)),
    }
}

/// The names of one case, as far as its objects were seen.
#[derive(Clone, Debug)]
pub struct Names {
    settings: Settings,
    pods: BTreeMap<String, Pod>,
    services: BTreeMap<NamespacedName, Vec<IpAddr>>,
}

/// A pod of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its addresses, at most one a family.
    pub addresses: Vec<IpAddr>,
    /// The number of its node, from 1.
    pub node: u8,
}

impl Names {
    /// The names of a case without its objects.
    pub fn new(settings: &Settings) -> Self {
        Self { settings: settings.clone(), pods: BTreeMap::new(), services: BTreeMap::new() }
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
                    let addresses = pod.ips();
                    if addresses.is_empty() {
                        continue;
                    }
                    let node = pod.spec.node_name.strip_prefix("node");
                    let node: u8 = node
                        .and_then(|number| number.parse().ok())
                        .filter(|number| (1..=self.settings.nodes).contains(number))
                        .with_context(|| format!("pod {name} is on no node of the case"))?;
                    self.pods.insert(name.clone(), Pod { addresses, node });
                }
                Object::Service(service) => {
                    let addresses: Vec<IpAddr> = service.cluster_ips().collect();
                    if !addresses.is_empty() {
                        self.services.insert(service.metadata.key(), addresses);
                    }
                }
                Object::Node(_) | Object::EndpointSlice(_) | Object::ServiceCidr(_) => {}
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
        let destination = SocketAddr::new(self.destination(name)?, port);
        let (entry, source) = self.sender(&row.from, destination.ip())?;
        Ok(Packet {
            entry,
            source: SocketAddr::new(source, CLIENT_PORT),
            destination,
            protocol: row.protocol,
        })
    }

    /// What the words of `unreachable:` mean.
    ///
    /// # Errors
    /// When a name is unknown.
    pub fn unreachable(&self, words: &[String]) -> Result<Unreachable> {
        let mut unreachable = Unreachable::default();
        for word in words {
            if let Some((name, port)) = word.rsplit_once(':') {
                let port = port.parse().with_context(|| format!("{port:?} is no port"))?;
                unreachable.endpoints.insert(SocketAddr::new(self.destination(name)?, port));
            } else {
                self.address(&format!("node {word}"), self.first_family())?;
                unreachable.nodes.insert(word.clone());
            }
        }
        Ok(unreachable)
    }

    fn destination(&self, text: &str) -> Result<IpAddr> {
        if let Some(name) = text.strip_suffix(" v4") {
            return self.address(name, Family::V4);
        }
        if let Some(name) = text.strip_suffix(" v6") {
            return self.address(name, Family::V6);
        }
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        match bare.parse() {
            Ok(address) => Ok(address),
            Err(_) => self.address(text, self.first_family()),
        }
    }

    /// The family that names without one mean.
    pub fn first_family(&self) -> Family {
        objects::families(&self.settings.config).next().unwrap_or(Family::V4)
    }

    fn sender(&self, from: &str, destination: IpAddr) -> Result<(Entry, IpAddr)> {
        let family = Family::of(&destination);
        if let Some(name) = from.strip_prefix("pod ") {
            let is_here = self.pods.get(name).is_some_and(|pod| pod.node == self.settings.at);
            let entry = match is_here {
                true => Entry::Pod,
                false if self.settings.config.is_pod_address(destination) => Entry::Overlay,
                false => Entry::Uplink,
            };
            return Ok((entry, self.address(from, family)?));
        }
        Ok(match from {
            "node" if destination.is_loopback() => (Entry::Local, destination),
            "node" => (Entry::Local, self.address(from, family)?),
            "outside" => (Entry::Uplink, outside(family)),
            _ if from.starts_with("node ") => (Entry::Uplink, self.address(from, family)?),
            _ => bail!("{from:?} sends nothing: use pod NAME, node, node NAME or outside"),
        })
    }

    fn address(&self, name: &str, family: Family) -> Result<IpAddr> {
        let of_family = |addresses: &[IpAddr]| {
            let found = addresses.iter().copied().find(|address| Family::of(address) == family);
            found.with_context(|| format!("{name} has no {family} address"))
        };
        if let Some(name) = name.strip_prefix("pod ") {
            let pod = self.pods.get(name).with_context(|| format!("there is no pod {name}"))?;
            return of_family(&pod.addresses);
        }
        if let Some(name) = name.strip_prefix("node ") {
            let number = (1..=self.settings.nodes).find(|number| format!("node{number}") == name);
            let number = number.with_context(|| format!("there is no node {name}"))?;
            return Ok(objects::node_address(number, family));
        }
        let key = match name.split_once('/') {
            Some((namespace, name)) => NamespacedName::new(namespace, name),
            None => NamespacedName::new("default", name),
        };
        match name {
            "node" => Ok(objects::node_address(self.settings.at, family)),
            "outside" => Ok(outside(family)),
            "dns" => self.settings.config.dns_address(family).context("no DNS address"),
            _ => {
                let service = self.services.get(&key);
                of_family(
                    service.with_context(|| format!("{name:?} is no Service with an address"))?,
                )
            }
        }
    }

    /// The name of an address with a port.
    pub fn print(&self, address: SocketAddr) -> String {
        match self.print_address(address.ip()) {
            literal if literal.contains(':') => format!("[{literal}]:{}", address.port()),
            name => format!("{name}:{}", address.port()),
        }
    }

    /// The name of an address.
    pub fn print_address(&self, address: IpAddr) -> String {
        let family = Family::of(&address);
        let pod = self.pods.iter().find(|(_, pod)| pod.addresses.contains(&address));
        let service = self.services.iter().find(|(_, others)| others.contains(&address));
        let mut nodes = 1..=self.settings.nodes;
        let node = nodes.find(|number| objects::node_address(*number, family) == address);
        let name = match (pod, service, node) {
            (Some((name, _)), _, _) => name.clone(),
            (_, Some((key, _)), _) => key.to_string(),
            (_, _, Some(number)) if number == self.settings.at => "node".into(),
            (_, _, Some(number)) => format!("node{number}"),
            _ if address == outside(family) => "outside".into(),
            _ => return address.to_string(),
        };
        match family {
            _ if family == self.first_family() => name,
            Family::V4 => format!("{name} v4"),
            Family::V6 => format!("{name} v6"),
        }
    }

    /// The verdict columns of a row: verdict, destinations, source.
    pub fn print_verdict(&self, packet: &Packet, verdict: &Verdict) -> (String, String, String) {
        let nothing = || "-".to_string();
        let Verdict::Pass { destinations, source, source_ports } = verdict else {
            return (verdict.to_string(), nothing(), nothing());
        };
        let unchanged = destinations.iter().eq([&packet.destination]);
        let mut rewritten: Vec<String> =
            destinations.iter().map(|address| self.print(*address)).collect();
        rewritten.sort();
        let rewritten = if unchanged { "unchanged".into() } else { rewritten.join(", ") };
        let mut source = match source {
            SourceTranslation::Kept => "kept".into(),
            SourceTranslation::Masqueraded => "masqueraded".into(),
            SourceTranslation::MasqueradedTo(towards) => {
                let towards: Vec<String> =
                    towards.iter().map(|address| self.print_address(*address)).collect();
                format!("masqueraded towards {}", towards.join(", "))
            }
        };
        for (address, ports) in source_ports {
            source += &format!(", from {ports} towards {}", self.print_address(*address));
        }
        ("pass".into(), rewritten, source)
    }
}
