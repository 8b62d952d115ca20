//! [`Config`]: the network configuration from standard input, checked.
//!
//! One object has the keys of the reference plugins bridge, portmap, bandwidth, firewall and
//! tuning. What concerns the interface is read by [`crate::link::options`]; the rest here.

mod addressing;
mod capabilities;
mod edge;
mod port_map;

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use model::layout;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::fault::{Fault, INVALID_CONFIG, UNSUPPORTED_FIELD};
use crate::request::{is_identifier, parse_address};
use crate::result::Success;

pub use addressing::{Addressing, BuiltIn, ResolvConf};
pub use capabilities::spell_as_conventions;
pub use edge::EdgeOptions;

/// Smallest and largest MTU in bytes of an IPv4 link.
const MTU_RANGE: std::ops::RangeInclusive<u32> = 68..=65535;
/// Attachments of a GC that are read at most: far more than a node has.
const VALID_ATTACHMENTS_MAX: usize = 1 << 16;

/// The network configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The version that the caller speaks.
    pub version: String,
    /// The network's name.
    pub network: String,
    /// Who gives the pod its addresses.
    pub addressing: Addressing,
    /// Addresses that the configuration asks for.
    pub requested_addresses: Vec<IpAddr>,
    /// What happens where the pod meets the node.
    pub edge: EdgeOptions,
    /// Passed on into the result.
    pub dns: Dns,
    /// The result of the plugins before; for DEL and CHECK, of the whole list.
    pub previous: Option<Previous>,
    /// For GC: all that lives.
    pub valid_attachments: Vec<ValidAttachment>,
    /// Where records of attachments are kept, a directory a network.
    pub data_directory: PathBuf,
    /// The agent's socket, on nodes where STATUS shall know whether it answers.
    pub agent_socket: Option<PathBuf>,
}

/// An earlier result, as it came and as it was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Previous {
    /// To be passed on with nothing lost (CNI-11).
    pub value: Value,
    /// What it says.
    pub success: Success,
}

/// A route inside the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// The next hop; the pod's gateway when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// MTU of the path in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Segment size to announce, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Preference, lower first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// The routing table; the main one when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The kernel's number of the scope (0 universe, 253 link).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// A route by the pod's gateway, with nothing else said.
    pub fn to(dst: IpNet) -> Self {
        Self { dst, gw: None, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// Resolver settings, passed through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search path.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One living attachment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ValidAttachment {
    /// The container.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface inside it.
    #[serde(rename = "ifname")]
    pub interface: String,
}

/// The document as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    name: Option<String>,
    mtu: Option<u32>,
    #[serde(default)]
    ipam: Value,
    #[serde(default)]
    dns: Option<Dns>,
    #[serde(default)]
    runtime_config: Requested,
    #[serde(default)]
    args: Arguments,
    #[serde(default)]
    prev_result: Value,
    #[serde(rename = "cni.dev/valid-attachments", default)]
    valid_attachments: Vec<ValidAttachment>,
    data_dir: Option<PathBuf>,
    agent_socket: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Arguments {
    cni: Requested,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Requested {
    ips: Vec<String>,
    #[serde(rename = "infinibandGUID")]
    infiniband_guid: Value,
}

impl Config {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// Code 7 for one that cannot work, code 2 for a key that asks for what we do not do.
    pub fn parse(value: &Value, version: String) -> Result<Self, Fault> {
        let document: Document = Document::deserialize(value)
            .map_err(|error| invalid("the configuration cannot be understood", error))?;
        let network = document.name.unwrap_or_default();
        if !is_identifier(&network) {
            return Err(invalid(
                &format!("invalid network name: {network:?}"),
                "it starts with a letter or digit; letters, digits, '_', '.' and '-' follow",
            ));
        }
        if let Some(mtu) = document.mtu.filter(|mtu| !MTU_RANGE.contains(mtu) && *mtu != 0) {
            let range = "it is between 68 and 65535 bytes";
            return Err(invalid(&format!("invalid mtu: {mtu}"), range));
        }
        refuse_infiniband(&document.runtime_config, &document.args.cni)?;
        if document.valid_attachments.len() > VALID_ATTACHMENTS_MAX {
            return Err(invalid(
                "too many entries of cni.dev/valid-attachments",
                format!("{VALID_ATTACHMENTS_MAX} are read at most"),
            ));
        }
        let requested = document.runtime_config.ips.iter().chain(&document.args.cni.ips);
        Ok(Self {
            version,
            network,
            addressing: Addressing::parse(&document.ipam)?,
            requested_addresses: requested.map(requested_address).collect::<Result<_, _>>()?,
            edge: EdgeOptions::parse(value)?,
            dns: document.dns.unwrap_or_default(),
            previous: previous(document.prev_result)?,
            valid_attachments: document.valid_attachments,
            data_directory: absolute("dataDir", document.data_dir)?
                .unwrap_or_else(|| layout::CNI_RECORD_DIRECTORY.into()),
            agent_socket: absolute("agentSocket", document.agent_socket)?,
        })
    }

    /// Whether another plugin of the list made the interface, and only what happens at its edge
    /// is ours.
    pub fn is_chained(&self) -> bool {
        self.previous.is_some() && self.addressing == Addressing::None
    }
}

/// A path of the configuration: relative ones would depend on where the runtime was started.
pub(crate) fn absolute(key: &str, path: Option<PathBuf>) -> Result<Option<PathBuf>, Fault> {
    let is_plain = |path: &PathBuf| {
        path.is_absolute()
            && path.components().all(|part| !matches!(part, std::path::Component::ParentDir))
    };
    match path {
        Some(path) if path.as_os_str().is_empty() => Ok(None),
        Some(path) if !is_plain(&path) => {
            let message = format!("invalid {key}: {}", path.display());
            Err(invalid(&message, "it is an absolute path without \"..\""))
        }
        path => Ok(path),
    }
}

fn previous(value: Value) -> Result<Option<Previous>, Fault> {
    if value.is_null() {
        return Ok(None);
    }
    let success = Success::from_json(&value)
        .map_err(|problem| invalid("prevResult cannot be understood", problem))?;
    Ok(Some(Previous { value, success }))
}

fn requested_address(text: &String) -> Result<IpAddr, Fault> {
    parse_address(text)
        .ok_or_else(|| invalid(&format!("invalid address in ips: {text:?}"), "write an IP address"))
}

fn refuse_infiniband(runtime: &Requested, arguments: &Requested) -> Result<(), Fault> {
    let places = [("runtimeConfig", runtime), ("args.cni", arguments)];
    for (place, Requested { infiniband_guid: guid, .. }) in places {
        if !guid.is_null() && *guid != "" {
            let key = format!("{place}.infinibandGUID");
            return Err(unsupported(&key, guid, "pods' interfaces are Ethernet: remove it"));
        }
    }
    Ok(())
}

fn unsupported(key: &str, value: &Value, remedy: &str) -> Fault {
    Fault::new(UNSUPPORTED_FIELD, format!("unsupported field {key}: {value}"), remedy)
}

fn invalid(message: &str, details: impl std::fmt::Display) -> Fault {
    Fault::new(INVALID_CONFIG, message, details)
}

#[cfg(test)]
mod tests;
