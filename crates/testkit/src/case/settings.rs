//! The first lines of a case file: what the cluster and the node are like before anything happens.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use model::kinds::ZONE_LABEL;
use model::world::Object;
use model::{ClusterConfig, Family, Overlay};
use plan::NodeFacts;

use crate::objects;

/// A case file holds at most so many nodes.
pub const NODES_MAX: u8 = 9;

/// What stands before the first section.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cluster's configuration.
    pub config: ClusterConfig,
    /// Number of nodes.
    pub nodes: u8,
    /// Number of the node where packets are looked at, from 1.
    pub at: u8,
    /// The zones of the nodes in their order; nodes beyond have none.
    pub zones: Vec<String>,
    /// Further addresses of the node that is looked at.
    pub also_at: Vec<IpAddr>,
    /// Backends that refuse something of this case, with what they refuse.
    pub unsupported: BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            config: objects::config(),
            nodes: 3,
            at: 1,
            zones: Vec::new(),
            also_at: Vec::new(),
            unsupported: BTreeMap::new(),
        }
    }
}

impl Settings {
    /// Takes one line. Answers whether it is a setting.
    ///
    /// # Errors
    /// When its value is none.
    pub fn read(&mut self, head: &str, argument: &str) -> Result<bool> {
        match head {
            "nodes" => {
                self.nodes = argument.parse().context("a number")?;
                if !(1..=NODES_MAX).contains(&self.nodes) {
                    bail!("between 1 and {NODES_MAX} nodes");
                }
            }
            "at" => {
                let number = argument.strip_prefix("node").context("a name such as node1")?;
                self.at = number.parse().context("a name such as node1")?;
            }
            "overlay" => {
                self.config.overlay = argument.parse()?;
                if self.config.overlay == Overlay::Wireguard {
                    bail!("the lab has no WireGuard, and rules that are strict about it");
                }
            }
            "cross-subnet" => self.config.cross_subnet = yes(argument)?,
            "families" => self.set_families(argument)?,
            "zones" => self.zones = argument.split_whitespace().map(String::from).collect(),
            "also-at" => self.also_at = words(argument)?,
            "node-port-addresses" => self.config.node_port_addresses = words::<IpNet>(argument)?,
            "external-ip-ranges" => self.config.external_ip_ranges = words::<IpNet>(argument)?,
            "answer-ping" => self.config.answer_ping = yes(argument)?,
            "load-balancer-mode" => self.config.load_balancer_mode = argument.parse()?,
            "non-masquerade-cidrs" => {
                self.config.non_masquerade_cidrs = words::<IpNet>(argument)?;
            }
            "masquerade-ports" => self.config.masquerade_ports = Some(argument.parse()?),
            "masquerade-all" => self.config.masquerade_all = yes(argument)?,
            "unsupported" => {
                let (backend, what) = argument.split_once(' ').context("BACKEND WHAT")?;
                self.unsupported.insert(backend.into(), what.into());
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Puts the ranges of these families in place of the ones before.
    fn set_families(&mut self, argument: &str) -> Result<()> {
        let family = |word: &str| match word {
            "IPv4" => Ok(Family::V4),
            "IPv6" => Ok(Family::V6),
            other => bail!("{other:?} is no family: IPv4 or IPv6"),
        };
        let families: Vec<Family> =
            argument.split_whitespace().map(family).collect::<Result<_>>()?;
        let ranges = objects::config_of(&families);
        self.config.pod_cidrs = ranges.pod_cidrs;
        self.config.service_cidrs = ranges.service_cidrs;
        self.config.node_cidrs = ranges.node_cidrs;
        Ok(())
    }

    /// The node objects that the case starts with.
    pub fn node_objects(&self) -> Vec<Object> {
        (1..=self.nodes).map(|number| Object::Node(self.node(number).into())).collect()
    }

    fn node(&self, number: u8) -> model::Node {
        let mut node = objects::node(number, &self.config);
        if let Some(zone) = self.zones.get(usize::from(number) - 1) {
            node.metadata.labels.insert(ZONE_LABEL.into(), zone.clone());
        }
        node
    }

    /// What the n-th node knows of itself.
    pub fn facts(&self, number: u8) -> NodeFacts {
        let mut facts = objects::facts(number, &self.config);
        if number == self.at {
            facts.addresses.extend(&self.also_at);
        }
        facts
    }
}

fn yes(argument: &str) -> Result<bool> {
    match argument {
        "yes" => Ok(true),
        other => bail!("{other:?}: yes, or leave the line out"),
    }
}

fn words<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    argument: &str,
) -> Result<Vec<T>> {
    let one = |word: &str| word.parse().with_context(|| format!("{word:?}"));
    argument.split_whitespace().map(one).collect()
}
