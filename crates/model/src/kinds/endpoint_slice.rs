//! discovery.k8s.io/v1 EndpointSlice, narrowed.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::meta::{NarrowMeta, nullable};
use crate::{NamespacedName, Protocol};

/// The label that names the Service which a slice belongs to.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// A part of a Service's endpoints, of one address family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// Name and labels.
    pub metadata: NarrowMeta,
    /// `IPv4`, `IPv6` or `FQDN`; slices of names take no packets.
    pub address_type: String,
    /// The endpoints.
    #[serde(with = "nullable")]
    pub endpoints: Vec<Endpoint>,
    /// The ports that every endpoint of this slice has.
    #[serde(with = "nullable")]
    pub ports: Vec<EndpointPort>,
}

/// One endpoint: all its addresses are of one pod or machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// Addresses; consumers use the first (API: "fungible").
    #[serde(with = "nullable")]
    pub addresses: Vec<String>,
    /// Readiness.
    #[serde(with = "nullable")]
    pub conditions: Conditions,
    /// The endpoint's own DNS label below a headless Service.
    #[serde(with = "nullable")]
    pub hostname: String,
    /// The node that the endpoint is on; empty when unknown.
    #[serde(with = "nullable")]
    pub node_name: String,
    /// Whose clients shall prefer the endpoint.
    pub hints: Option<Box<EndpointHints>>,
    /// The object that the endpoint stands for, mostly a pod.
    pub target_ref: Option<Box<TargetReference>>,
}

/// `hints` of an endpoint: an empty list says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointHints {
    /// Zones whose clients shall prefer it (KEP-2433).
    #[serde(with = "nullable")]
    pub for_zones: Vec<ForName>,
    /// Nodes whose clients shall prefer it (KEP-3015).
    #[serde(with = "nullable")]
    pub for_nodes: Vec<ForName>,
}

/// One entry of the hints: `ForZone` or `ForNode` of the API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ForName {
    /// The zone's or node's name.
    pub name: String,
}

/// `targetRef` of an endpoint, narrowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TargetReference {
    /// The object's name, in the namespace of the slice.
    #[serde(with = "nullable")]
    pub name: String,
}

/// `conditions` of an endpoint. An absent condition has the API's default, see the methods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// Absent means ready.
    pub ready: Option<bool>,
    /// Absent means the same as ready.
    pub serving: Option<bool>,
    /// Absent means not terminating.
    pub terminating: Option<bool>,
}

/// One port of a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointPort {
    /// Matches the Service port's name.
    #[serde(with = "nullable")]
    pub name: String,
    /// The transport protocol.
    #[serde(with = "nullable")]
    pub protocol: Protocol,
    /// The port. Absent: all ports, which Services without a selector may use; no VIP maps to it.
    pub port: Option<u16>,
}

impl EndpointSlice {
    /// The Service of the slice; `None` for a slice without the label, which nothing reads.
    pub fn service(&self) -> Option<NamespacedName> {
        let name = self.metadata.labels.get(SERVICE_NAME_LABEL)?;
        Some(NamespacedName::new(self.metadata.namespace.clone(), name.clone()))
    }
}

impl Endpoint {
    /// The address that consumers use.
    pub fn address(&self) -> Option<IpAddr> {
        self.addresses.first()?.parse().ok()
    }
}

impl Conditions {
    /// Takes new connections.
    pub fn is_ready(&self) -> bool {
        self.ready.unwrap_or(true)
    }

    /// Answers, whether or not it is terminating.
    pub fn is_serving(&self) -> bool {
        self.serving.unwrap_or_else(|| self.is_ready())
    }

    /// Is on its way out.
    pub fn is_terminating(&self) -> bool {
        self.terminating.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_and_targets_are_read_as_the_api_writes_them() {
        let text = r#"{"addresses":["10.244.1.5"],"zone":"a",
            "hints":{"forZones":[{"name":"a"},{"name":"b"}],"forNodes":null},
            "targetRef":{"kind":"Pod","namespace":"shop","name":"web-1","uid":"u"}}"#;
        let endpoint: Endpoint = serde_json::from_str(text).expect("an endpoint");
        let hints = endpoint.hints.expect("hints");
        let zones: Vec<&str> = hints.for_zones.iter().map(|zone| zone.name.as_str()).collect();
        assert_eq!((zones, hints.for_nodes), (vec!["a", "b"], vec![]));
        assert_eq!(endpoint.target_ref.expect("a target").name, "web-1");
        let bare: Endpoint =
            serde_json::from_str(r#"{"hints":null,"targetRef":null}"#).expect("an endpoint");
        assert_eq!(bare, Endpoint::default());
    }
}
