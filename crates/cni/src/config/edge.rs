//! [`EdgeOptions`]: what shall happen where the pod meets the node. The keys are those of the
//! reference plugins bridge (`ipMasq`, `macspoofchk`), portmap and firewall, and our own.

use std::net::IpAddr;

use ipnet::IpNet;
use model::Protocol;
use model::attachment::{Edge, Firewall, IngressPolicy, Masquerade, NodePort, PortMapping};
use serde::Deserialize;
use serde_json::Value;

use super::{invalid, port_map, unsupported};
use crate::fault::Fault;

/// Port mappings of one pod that are read at most: all ports of all protocols of one address.
const PORT_MAPPINGS_MAX: usize = 3 << 16;
/// Keys of the reference plugins firewall and bandwidth that ask for what is not done, and what there
/// is to do. Those of firewall may also stand inside of `firewall`.
const UNSUPPORTED: [(&str, &str); 4] = [
    ("firewalldZone", "firewalld is not told: firewall-cmd --zone=trusted --add-source=POD-RANGE"),
    ("iptablesAdminChainName", "your own rules in the chain FORWARD come before ours: remove it"),
    ("shapedSubnets", "a limit is of all of a pod's traffic: remove it"),
    ("unshapedSubnets", "a limit is of all of a pod's traffic: remove it"),
];
/// Programs that the reference plugins may make their rules with. Asked for is the effect; it is had
/// with nftables, whichever is named.
const BACKENDS: [&str; 3] = ["", "iptables", "nftables"];
/// The one that owns its rules.
const FIREWALLD: &str = "firewalld";
/// What the reference bridge never masquerades: multicast.
const MULTICAST: [&str; 2] = ["224.0.0.0/4", "ff00::/8"];

/// What shall happen at the pod's edge, before its addresses are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EdgeOptions {
    /// All but the masquerade.
    pub edge: Edge,
    /// Whether what the pod sends beyond its own subnets gets the node's address.
    pub masquerades: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    anti_spoofing: bool,
    extra_sources: Vec<IpNet>,
    node_ports: Option<Vec<NodePort>>,
    block_metadata: bool,
    firewall: Option<FirewallDocument>,
    snat: bool,
    #[serde(rename = "masqAll")]
    masquerade_all: bool,
    runtime_config: RuntimeConfig,
}

impl Default for Document {
    fn default() -> Self {
        Self {
            ip_masq: false,
            ip_masq_backend: None,
            anti_spoofing: true,
            extra_sources: vec![],
            node_ports: None,
            block_metadata: false,
            firewall: None,
            snat: true,
            masquerade_all: false,
            runtime_config: RuntimeConfig::default(),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FirewallDocument {
    ingress_policy: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RuntimeConfig {
    port_mappings: Vec<Mapping>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_port: i64,
    container_port: i64,
    #[serde(default)]
    protocol: String,
    #[serde(rename = "hostIP", default)]
    host_ip: String,
}

impl EdgeOptions {
    /// Reads and checks what concerns the edge in a whole network configuration.
    ///
    /// # Errors
    /// Code 7 for what cannot work, code 2 for what is not done; both name key and value.
    pub(super) fn parse(config: &Value) -> Result<Self, Fault> {
        refuse_others(config)?;
        port_map::check_marks(config)?;
        let document: Document = Document::deserialize(config)
            .map_err(|error| invalid("the configuration cannot be understood", error))?;
        let backend = document.ip_masq_backend.as_deref().unwrap_or_default();
        if !BACKENDS.contains(&backend) {
            let message = format!("invalid ipMasqBackend: {backend:?}");
            return Err(invalid(&message, "it is iptables or nftables"));
        }
        Ok(Self {
            masquerades: document.ip_masq,
            edge: Edge {
                anti_spoofing: document.anti_spoofing,
                host_ports: document.host_ports()?,
                host_port_conditions: port_map::conditions(config)?,
                firewall: document.firewall.map(firewall).transpose()?,
                extra_sources: document.extra_sources,
                masquerade: None,
                node_ports: document.node_ports,
                metadata_blocked: document.block_metadata,
            },
        })
    }

    /// The edge of a pod with these addresses, which have the prefix length of their range.
    pub fn of(&self, addresses: &[IpNet]) -> Edge {
        let except = || {
            let multicast = MULTICAST.iter().filter_map(|text| text.parse::<IpNet>().ok());
            let of_a_family = |range: &IpNet| {
                addresses.iter().any(|own| own.addr().is_ipv4() == range.addr().is_ipv4())
            };
            let own = addresses.iter().map(IpNet::trunc);
            own.chain(multicast.filter(of_a_family)).collect()
        };
        let masquerade = self.masquerades.then(|| Masquerade { except: except() });
        Edge { masquerade, ..self.edge.clone() }
    }
}

/// Refuses what the plugins that this one stands for would do, and it does not.
fn refuse_others(config: &Value) -> Result<(), Fault> {
    for (place, keys) in [("", Some(config)), ("firewall.", config.get("firewall"))] {
        let given = |key: &str| {
            let value = keys?.get(key)?;
            let says_nothing = value.is_null()
                || value.as_str().is_some_and(str::is_empty)
                || value.as_array().is_some_and(Vec::is_empty);
            (!says_nothing).then_some(value)
        };
        for (key, remedy) in UNSUPPORTED {
            if let Some(value) = given(key) {
                return Err(unsupported(&format!("{place}{key}"), value, remedy));
            }
        }
        match given("backend") {
            Some(backend) if *backend == FIREWALLD => {
                let remedy = "firewalld is not told of pods: firewall-cmd --permanent \
                              --zone=trusted --add-source=POD-RANGE lets them through";
                return Err(unsupported(&format!("{place}backend"), backend, remedy));
            }
            Some(backend) if !backend.as_str().is_some_and(|it| BACKENDS.contains(&it)) => {
                let message = format!("invalid {place}backend: {backend}");
                return Err(invalid(&message, "it is iptables or nftables"));
            }
            _ => {}
        }
    }
    Ok(())
}

impl Document {
    fn host_ports(&self) -> Result<Vec<PortMapping>, Fault> {
        let mappings = &self.runtime_config.port_mappings;
        if mappings.len() > PORT_MAPPINGS_MAX {
            let details = format!("{PORT_MAPPINGS_MAX} are read at most");
            return Err(invalid("too many entries of portMappings", details));
        }
        let mut read: Vec<PortMapping> = Vec::with_capacity(mappings.len());
        for mapping in mappings {
            let protocol = match mapping.protocol.as_str() {
                "" => Protocol::Tcp,
                text => text.parse().map_err(|error| invalid("invalid portMappings", error))?,
            };
            read.push(PortMapping {
                host_port: port("hostPort", mapping.host_port)?,
                container_port: port("containerPort", mapping.container_port)?,
                protocol,
                host_ip: host_ip(&mapping.host_ip)?,
                snat: self.snat,
                masquerade_all: self.masquerade_all,
            });
        }
        let key = |mapping: &PortMapping| (mapping.protocol, mapping.host_port, mapping.host_ip);
        read.sort_by_key(key);
        for pair in read.windows(2) {
            if let [one, two] = pair
                && key(one) == key(two)
            {
                let (protocol, port) = (two.protocol, two.host_port);
                return Err(invalid(
                    &format!("portMappings name the hostPort {port} of {protocol} twice"),
                    "one port of the node leads to one port of the pod",
                ));
            }
        }
        Ok(read)
    }
}

fn port(key: &str, number: i64) -> Result<u16, Fault> {
    u16::try_from(number).ok().filter(|port| *port != 0).ok_or_else(|| {
        invalid(&format!("invalid {key} in portMappings: {number}"), "it is between 1 and 65535")
    })
}

fn host_ip(text: &str) -> Result<Option<IpAddr>, Fault> {
    if text.is_empty() {
        return Ok(None);
    }
    let address = text
        .parse()
        .map_err(|error| invalid(&format!("invalid hostIP in portMappings: {text:?}"), error))?;
    Ok(Some(address))
}

fn firewall(document: FirewallDocument) -> Result<Firewall, Fault> {
    let ingress_policy = match document.ingress_policy.as_str() {
        "" | "open" => IngressPolicy::Open,
        "same-bridge" => IngressPolicy::SameBridge,
        "isolated" => IngressPolicy::Isolated,
        other => {
            return Err(invalid(
                &format!("invalid firewall.ingressPolicy: {other:?}"),
                "it is open, same-bridge or isolated",
            ));
        }
    };
    Ok(Firewall { ingress_policy })
}
