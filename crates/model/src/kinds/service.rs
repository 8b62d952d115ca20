//! core/v1 Service, narrowed to what decides where a packet goes.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::meta::{NarrowMeta, nullable};
use crate::{FlatMap, Protocol};

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Service {
    /// Name, labels, annotations.
    pub metadata: NarrowMeta,
    /// What the Service is.
    pub spec: ServiceSpec,
    /// What load balancers say of it.
    #[serde(with = "nullable")]
    pub status: ServiceStatus,
}

/// Ports besides those of `spec.ports`, which endpoints see unchanged: `all`, or a list such as
/// `tcp:30000-30100,udp:5060`.
pub const PORT_RANGES_ANNOTATION: &str = "flatnet.io/port-ranges";
/// How endpoints are chosen: `random`, `least-connection`, `maglev`, or an algorithm that IPVS alone
/// has, such as `ipvs-sed`.
pub const SCHEDULING_ANNOTATION: &str = "flatnet.io/scheduling";
/// Weights of endpoints, 1 where none is given, such as `web-canary-*=5,web-*=95,10.0.0.7=0`: a
/// pod's name, the beginning of one, or an address. The first that fits counts. An endpoint of
/// weight 0 gets no new connections.
pub const WEIGHTS_ANNOTATION: &str = "flatnet.io/weights";

/// `spec` of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// How the Service is exposed.
    #[serde(rename = "type", with = "nullable")]
    pub kind: ServiceType,
    /// The addresses of the Service; `None` (the text) for a headless one, empty before
    /// allocation and for ExternalName.
    #[serde(rename = "clusterIPs", with = "nullable")]
    pub cluster_ips: Vec<String>,
    /// Selects the pods. Empty: somebody else writes the EndpointSlices.
    #[serde(with = "nullable")]
    pub selector: FlatMap<String, String>,
    /// The ports of the Service.
    #[serde(with = "nullable")]
    pub ports: Vec<ServicePort>,
    /// Whether a client stays with one endpoint.
    #[serde(with = "nullable")]
    pub session_affinity: SessionAffinity,
    /// How long a client stays with its endpoint.
    #[serde(with = "nullable")]
    pub session_affinity_config: SessionAffinityConfig,
    /// Which endpoints clients outside the cluster may reach.
    #[serde(with = "nullable")]
    pub external_traffic_policy: TrafficPolicy,
    /// Which endpoints clients inside the cluster may reach.
    #[serde(with = "nullable")]
    pub internal_traffic_policy: TrafficPolicy,
    /// Addresses at which the cluster's nodes take packets for the Service; who routes them there
    /// is not Kubernetes' concern.
    #[serde(rename = "externalIPs", with = "nullable")]
    pub external_ips: Vec<String>,
    /// Clients that the load balancer's addresses are for; empty: everybody.
    #[serde(with = "nullable")]
    pub load_balancer_source_ranges: Vec<String>,
    /// The port of every node that tells a load balancer whether it has endpoints; 0 when there is
    /// none.
    #[serde(with = "nullable")]
    pub health_check_node_port: u16,
    /// Whether endpoints that are not ready count as ready.
    #[serde(with = "nullable")]
    pub publish_not_ready_addresses: bool,
    /// The target name of an ExternalName Service.
    #[serde(with = "nullable")]
    pub external_name: String,
}

/// `status` of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// What a load balancer has made.
    #[serde(with = "nullable")]
    pub load_balancer: LoadBalancerStatus,
}

/// `status.loadBalancer` of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    /// Where traffic for the Service goes in.
    #[serde(with = "nullable")]
    pub ingress: Vec<LoadBalancerIngress>,
}

/// One entry of `status.loadBalancer.ingress`, narrowed to those with addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerIngress {
    /// The address; empty for load balancers that have names.
    #[serde(with = "nullable")]
    pub ip: String,
    /// `VIP` or `Proxy` (KEP-1860).
    pub ip_mode: Option<String>,
}

/// One port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// The port's name; empty when the only port has none. Matches the slice port's name.
    #[serde(with = "nullable")]
    pub name: String,
    /// The transport protocol.
    #[serde(with = "nullable")]
    pub protocol: Protocol,
    /// The port at the Service's address.
    pub port: u16,
    /// The port on every node; 0 when there is none.
    #[serde(with = "nullable")]
    pub node_port: u16,
}

/// A port by number or by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    /// A number.
    Int(i32),
    /// A name.
    String(String),
}

/// `spec.type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceType {
    /// Reachable inside the cluster.
    #[default]
    ClusterIP,
    /// Also on a port of every node.
    NodePort,
    /// Also on an address of a load balancer.
    LoadBalancer,
    /// A DNS alias, without any address.
    ExternalName,
}

/// `spec.sessionAffinity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionAffinity {
    /// Every connection chooses anew.
    #[default]
    None,
    /// One client address stays with one endpoint.
    ClientIP,
}

/// `spec.sessionAffinityConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionAffinityConfig {
    /// For the affinity `ClientIP`.
    #[serde(rename = "clientIP", with = "nullable")]
    pub client_ip: ClientIpConfig,
}

/// `spec.sessionAffinityConfig.clientIP`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIpConfig {
    /// Idle seconds after which a client is forgotten. Absent means 10800, three hours.
    pub timeout_seconds: Option<u32>,
}

/// `spec.externalTrafficPolicy` and `spec.internalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// Every endpoint.
    #[default]
    Cluster,
    /// Only endpoints on the node that the packet reached.
    Local,
}

/// The API's default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
pub const CLIENT_IP_TIMEOUT_S: u32 = 10_800;

impl Service {
    /// Seconds that a client stays with its endpoint; `None` without session affinity.
    pub fn affinity_timeout_s(&self) -> Option<u32> {
        let configured = self.spec.session_affinity_config.client_ip.timeout_seconds;
        (self.spec.session_affinity == SessionAffinity::ClientIP)
            .then(|| configured.unwrap_or(CLIENT_IP_TIMEOUT_S))
    }

    /// Whether the Service has no address of its own on purpose (`clusterIP: None`).
    pub fn is_headless(&self) -> bool {
        self.spec.kind != ServiceType::ExternalName
            && self.spec.cluster_ips.first().is_some_and(|address| address == "None")
    }

    /// The Service's addresses; empty for headless and ExternalName ones.
    pub fn cluster_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.spec.cluster_ips.iter().filter_map(|address| address.parse().ok())
    }

    /// The addresses of load balancers that send packets to nodes as they came (`ipMode: VIP`,
    /// also where it is absent). Packets for the others must go to the load balancer itself.
    pub fn load_balancer_vips(&self) -> impl Iterator<Item = &str> {
        let ingress = match self.spec.kind {
            ServiceType::LoadBalancer => self.status.load_balancer.ingress.as_slice(),
            _ => &[],
        };
        let is_vip = |mode: &Option<String>| mode.as_deref().is_none_or(|mode| mode == "VIP");
        let vips = ingress.iter().filter(move |entry| !entry.ip.is_empty());
        vips.filter(move |entry| is_vip(&entry.ip_mode)).map(|entry| entry.ip.as_str())
    }

    /// Whether node ports are open for this type.
    pub fn has_node_ports(&self) -> bool {
        matches!(self.spec.kind, ServiceType::NodePort | ServiceType::LoadBalancer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Service {
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    #[test]
    fn only_load_balancers_that_leave_balancing_to_nodes_have_vips() {
        let service = |kind: &str| {
            read(&format!(
                r#"{{"spec":{{"type":"{kind}"}},"status":{{"loadBalancer":{{"ingress":[
                    {{"ip":"192.0.2.1"}},
                    {{"ip":"192.0.2.2","ipMode":"VIP","ports":[{{"port":80,"protocol":"TCP"}}]}},
                    {{"ip":"192.0.2.3","ipMode":"Proxy"}},
                    {{"ip":"192.0.2.4","ipMode":null}},
                    {{"ip":"192.0.2.5","ipMode":"Later"}},
                    {{"hostname":"balancer.example"}}]}},"conditions":[]}}}}"#
            ))
        };
        let balanced = service("LoadBalancer");
        let vips: Vec<&str> = balanced.load_balancer_vips().collect();
        assert_eq!(vips, ["192.0.2.1", "192.0.2.2", "192.0.2.4"]);
        assert_eq!(service("NodePort").load_balancer_vips().count(), 0);
    }

    #[test]
    fn absent_and_null_are_the_same() {
        let nulls = r#"{"spec":{"externalIPs":null,"loadBalancerSourceRanges":null,
            "healthCheckNodePort":null},"status":{"loadBalancer":null}}"#;
        for text in ["{}", nulls, r#"{"status":null}"#, r#"{"status":{"loadBalancer":{}}}"#] {
            assert_eq!(read(text), Service::default(), "{text}");
        }
    }
}
