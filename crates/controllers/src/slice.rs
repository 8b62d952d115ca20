//! The parts of EndpointSlices and Endpoints that are written, with every field that is ours.

use serde::{Deserialize, Serialize};

use model::Protocol;
use model::meta::null_as_default;

/// One endpoint of a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceEndpoint {
    /// The pod's address.
    pub addresses: Vec<String>,
    /// Its readiness.
    pub conditions: EndpointConditions,
    /// Whose traffic it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hints: Option<EndpointHints>,
    /// Its own DNS label below a headless Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// The pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetReference>,
    /// The zone of its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// `conditions` of an endpoint: all three of a pod, only `ready` of an address that was copied
/// from an Endpoints object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointConditions {
    /// Takes new connections: serving and not terminating, or published unready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    /// Answers, terminating or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serving: Option<bool>,
    /// Is being deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminating: Option<bool>,
}

/// `hints` of an endpoint (discovery.k8s.io/v1 EndpointHints).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointHints {
    /// The zones whose clients shall use it.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub for_zones: Vec<HintName>,
    /// The nodes whose clients shall use it.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub for_nodes: Vec<HintName>,
}

/// One zone or node of a hint.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct HintName {
    /// Its name.
    pub name: String,
}

impl EndpointHints {
    /// A hint for one zone.
    pub(crate) fn zone(name: &str) -> Self {
        Self { for_zones: vec![HintName { name: name.into() }], for_nodes: vec![] }
    }
}

impl SliceEndpoint {
    /// Whether it takes new connections.
    pub(crate) fn is_ready(&self) -> bool {
        self.conditions.ready == Some(true)
    }
}

/// The pod behind an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct TargetReference {
    /// `Pod`.
    pub kind: String,
    /// The pod's namespace.
    #[serde(deserialize_with = "null_as_default")]
    pub namespace: String,
    /// The pod's name.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// The pod's identity.
    #[serde(deserialize_with = "null_as_default")]
    pub uid: String,
}

/// One port of a slice or subset.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SlicePort {
    /// The name of the Service's port.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// The port of the pods.
    pub port: Option<u16>,
    /// The transport protocol.
    #[serde(deserialize_with = "null_as_default")]
    pub protocol: Protocol,
    /// The application protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
}

/// One subset of an Endpoints object: addresses that share ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSubset {
    /// Ready addresses.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<EndpointAddress>,
    /// The others.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub not_ready_addresses: Vec<EndpointAddress>,
    /// The ports.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<SlicePort>,
}

/// One address of a subset.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointAddress {
    /// The pod's address.
    pub ip: String,
    /// Its own DNS label below a headless Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// The pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetReference>,
}
