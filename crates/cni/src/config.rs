//! [`Config`]: the network configuration from standard input, checked.

use std::net::IpAddr;
use std::path::PathBuf;

use ipam::allocator;
use ipam::{Range, RangeSet};
use ipnet::IpNet;
use model::layout;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::fault::{Fault, INVALID_CONFIG, UNSUPPORTED_FIELD};
use crate::request::{is_identifier, parse_address};

/// Smallest and largest MTU in bytes of an IPv4 link.
const MTU_RANGE: std::ops::RangeInclusive<u32> = 68..=65535;
/// Keys of the reference bridge plugin that change what a pod can reach: to pass them over would
/// promise what is not done.
const UNSUPPORTED: [&str; 7] = [
    "vlan",
    "vlanTrunk",
    "macspoofchk",
    "portIsolation",
    "promiscMode",
    "ipMasq",
    "disableContainerInterface",
];

/// The network configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The version that the caller speaks.
    pub version: String,
    /// The network's name.
    pub network: String,
    /// The bridge.
    pub bridge: String,
    /// MTU in bytes of pod links; the kernel's default when `None`.
    pub mtu: Option<u32>,
    /// Where pods get addresses from, one of each set.
    pub ranges: Vec<RangeSet>,
    /// Routes inside the pod.
    pub routes: Vec<Route>,
    /// Where reservations are kept, a directory a network.
    pub data_directory: PathBuf,
    /// Passed on into the result.
    pub dns: Dns,
    /// Addresses that the configuration asks for.
    pub requested_addresses: Vec<IpAddr>,
    /// What an earlier ADD answered; only for CHECK.
    pub previous_result: Option<Value>,
    /// For GC: all that lives.
    pub valid_attachments: Vec<Attachment>,
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

/// One living attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
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
    bridge: Option<String>,
    mtu: Option<u32>,
    #[serde(default)]
    ipam: Ipam,
    #[serde(default)]
    dns: Option<Dns>,
    #[serde(default)]
    runtime_config: RequestedAddresses,
    #[serde(default)]
    args: Arguments,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments", default)]
    valid_attachments: Vec<Attachment>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Ipam {
    #[serde(rename = "type")]
    kind: Option<String>,
    data_dir: Option<PathBuf>,
    ranges: Vec<RangeSet>,
    routes: Vec<Route>,
    // One range beside `ranges`, as old configurations write it.
    subnet: Option<IpNet>,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
    resolv_conf: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Arguments {
    cni: RequestedAddresses,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RequestedAddresses {
    ips: Vec<String>,
}

impl Config {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// Code 7 for one that cannot work, code 2 for a key that asks for what we do not do.
    pub fn parse(value: &Value, version: String) -> Result<Self, Fault> {
        refuse_unsupported(value)?;
        let document: Document = serde_json::from_value(value.clone())
            .map_err(|error| invalid("the configuration cannot be understood", error))?;
        let network = document.name.unwrap_or_default();
        if !is_identifier(&network) {
            return Err(invalid(
                &format!("invalid network name: {network:?}"),
                "it starts with a letter or digit; letters, digits, '_', '.' and '-' follow",
            ));
        }
        if let Some(mtu) = document.mtu.filter(|mtu| !MTU_RANGE.contains(mtu) && *mtu != 0) {
            return Err(invalid(
                &format!("invalid mtu: {mtu}"),
                "it is between 68 and 65535 bytes",
            ));
        }
        let ipam = document.ipam;
        check_ipam_kind(&ipam)?;
        let requested = document.runtime_config.ips.iter().chain(&document.args.cni.ips);
        let requested_addresses = requested
            .map(|text| {
                parse_address(text).ok_or_else(|| {
                    invalid(&format!("invalid address in ips: {text:?}"), "write an IP address")
                })
            })
            .collect::<Result<_, _>>()?;
        let ranges = range_sets(&ipam);
        allocator::check(&ranges)
            .map_err(|error| invalid("the ranges of ipam cannot work", error))?;
        Ok(Self {
            version,
            network,
            bridge: document.bridge.unwrap_or_else(|| layout::BRIDGE.to_owned()),
            mtu: document.mtu.filter(|mtu| *mtu != 0),
            ranges,
            routes: ipam.routes,
            data_directory: ipam.data_dir.unwrap_or_else(|| layout::IPAM_DIRECTORY.into()),
            dns: document.dns.unwrap_or_default(),
            requested_addresses,
            previous_result: document.prev_result,
            valid_attachments: document.valid_attachments,
        })
    }
}

fn range_sets(ipam: &Ipam) -> Vec<RangeSet> {
    let beside = ipam.subnet.map(|subnet| {
        vec![Range {
            subnet,
            range_start: ipam.range_start,
            range_end: ipam.range_end,
            gateway: ipam.gateway,
        }]
    });
    beside.into_iter().chain(ipam.ranges.iter().cloned()).collect()
}

fn check_ipam_kind(ipam: &Ipam) -> Result<(), Fault> {
    let kind = ipam.kind.as_deref().unwrap_or("host-local");
    if kind != "host-local" {
        return Err(unsupported(
            "ipam.type",
            &format!("{kind:?}"),
            "use host-local, which is built in",
        ));
    }
    if let Some(file) = &ipam.resolv_conf {
        return Err(unsupported("ipam.resolvConf", &format!("{file:?}"), "use the key dns"));
    }
    Ok(())
}

fn refuse_unsupported(value: &Value) -> Result<(), Fault> {
    for key in UNSUPPORTED {
        let asked = match value.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Number(number)) => number.as_f64() != Some(0.0),
            Some(Value::Array(items)) => !items.is_empty(),
            Some(_) => true,
        };
        if asked {
            let text = value.get(key).map(Value::to_string).unwrap_or_default();
            return Err(unsupported(
                key,
                &text,
                "remove it: the node's agent does this, or nothing does",
            ));
        }
    }
    Ok(())
}

fn unsupported(key: &str, value: &str, remedy: &str) -> Fault {
    Fault::new(UNSUPPORTED_FIELD, format!("unsupported field {key}: {value}"), remedy)
}

fn invalid(message: &str, details: impl std::fmt::Display) -> Fault {
    Fault::new(INVALID_CONFIG, message, details)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> Result<Config, Fault> {
        Config::parse(&value, "1.0.0".into())
    }

    #[test]
    fn old_and_new_spellings_of_ranges_add_up() {
        let config = parse(json!({
            "name": "net", "type": "flatnet",
            "ipam": {
                "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9",
                "ranges": [[{ "subnet": "fd00::/64", "gateway": "fd00::9" }]],
            },
        }))
        .expect("a configuration");
        assert_eq!(config.ranges.len(), 2);
        assert_eq!(config.ranges[0][0].range_start, "10.1.0.9".parse().ok());
        assert_eq!(config.ranges[1][0].gateway(), "fd00::9".parse().ok());
        assert_eq!(config.bridge, layout::BRIDGE);
        assert_eq!(config.data_directory, PathBuf::from(layout::IPAM_DIRECTORY));
    }

    #[test]
    fn faults_have_the_codes_of_the_specification_and_name_key_and_value() {
        let rows = [
            (json!({ "type": "flatnet" }), INVALID_CONFIG, "network name"),
            (json!({ "name": "-net" }), INVALID_CONFIG, "\"-net\""),
            (json!({ "name": "../etc" }), INVALID_CONFIG, "network name"),
            (json!({ "name": "net", "mtu": 5 }), INVALID_CONFIG, "mtu: 5"),
            (json!({ "name": "net", "mtu": "big" }), INVALID_CONFIG, "cannot be understood"),
            (
                json!({ "name": "net", "ipam": { "type": "dhcp" } }),
                UNSUPPORTED_FIELD,
                "ipam.type: \"dhcp\"",
            ),
            (json!({ "name": "net", "vlan": 7 }), UNSUPPORTED_FIELD, "vlan: 7"),
            (json!({ "name": "net", "ipMasq": true }), UNSUPPORTED_FIELD, "ipMasq: true"),
            (
                json!({ "name": "net", "ipam": { "ranges": [[{ "subnet": "10.0.0.1/24" }]] } }),
                INVALID_CONFIG,
                "ranges of ipam",
            ),
            (
                json!({ "name": "net", "runtimeConfig": { "ips": ["ten"] } }),
                INVALID_CONFIG,
                "\"ten\"",
            ),
        ];
        for (value, code, expected) in rows {
            let fault = parse(value).expect_err(expected);
            assert_eq!(fault.code, code, "{fault}");
            assert!(fault.message.contains(expected), "{fault} should name {expected}");
        }
    }

    #[test]
    fn keys_that_ask_for_nothing_are_no_fault() {
        let config = json!({
            "name": "net", "vlan": 0, "ipMasq": false, "vlanTrunk": [], "promiscMode": null,
            "isGateway": true, "mtu": 0, "x-vendor": { "a": 1 },
        });
        assert_eq!(parse(config).expect("a configuration").mtu, None);
    }
}
