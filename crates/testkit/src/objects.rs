//! Kubernetes objects from YAML, and the node objects that most tests start from.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use model::kinds::{NodeAddress, NodeCondition};
use model::world::{Kind, Object};
use model::{ClusterConfig, Node, ObjectMeta};
use plan::NodeFacts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_yaml_ng::Value;

/// MTU of node uplinks in tests, in bytes: Ethernet's.
pub const UPLINK_MTU: u32 = 1500;

/// Reads YAML documents of the kinds that the network reads. A namespaced object without a
/// namespace goes to `default`, as kubectl sends it.
///
/// # Errors
/// When a document is no object of such a kind; the message counts documents from 1.
pub fn parse(yaml: &str) -> Result<Vec<Object>> {
    let mut objects = Vec::new();
    for (index, document) in serde_yaml_ng::Deserializer::from_str(yaml).enumerate() {
        let value = Value::deserialize(document)
            .with_context(|| format!("document {} is no YAML", index + 1))?;
        if value.is_null() {
            continue;
        }
        objects.push(object(value).with_context(|| format!("in document {}", index + 1))?);
    }
    Ok(objects)
}

fn object(value: Value) -> Result<Object> {
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default().to_string();
    Ok(match kind_of(&kind)? {
        Kind::Node => Object::Node(Arc::new(typed(value)?)),
        Kind::Service => {
            let mut service: model::Service = typed(value)?;
            to_default_namespace(&mut service.metadata);
            Object::Service(Arc::new(service))
        }
        Kind::EndpointSlice => {
            let mut slice: model::EndpointSlice = typed(value)?;
            to_default_namespace(&mut slice.metadata);
            Object::EndpointSlice(Arc::new(slice))
        }
        Kind::Pod => {
            let mut pod: model::Pod = typed(value)?;
            to_default_namespace(&mut pod.metadata);
            Object::Pod(Arc::new(pod))
        }
    })
}

/// The kind of this name.
///
/// # Errors
/// When the network does not read it.
pub fn kind_of(name: &str) -> Result<Kind> {
    Ok(match name {
        "Node" => Kind::Node,
        "Service" => Kind::Service,
        "EndpointSlice" => Kind::EndpointSlice,
        "Pod" => Kind::Pod,
        other => {
            bail!("{other:?} is no kind that the network reads: Node, Service, EndpointSlice, Pod")
        }
    })
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T> {
    Ok(serde_yaml_ng::from_value(value)?)
}

fn to_default_namespace(metadata: &mut ObjectMeta) {
    if metadata.namespace.is_empty() {
        metadata.namespace = "default".into();
    }
}

/// The n-th node, counted from 1, as `flatnet up` lays it out: `node1` is 172.30.0.2 and holds
/// 10.244.1.0/24.
pub fn node(number: u8) -> Node {
    let mut node = Node::default();
    node.metadata.name = format!("node{number}");
    node.spec.pod_cidrs = vec![pod_range(number)];
    node.status.addresses =
        vec![NodeAddress { kind: "InternalIP".into(), address: node_address(number).to_string() }];
    node.status.conditions = vec![NodeCondition { kind: "Ready".into(), status: "True".into() }];
    node
}

/// What the n-th node knows of itself.
pub fn facts(number: u8) -> NodeFacts {
    NodeFacts {
        name: format!("node{number}"),
        uplink: model::layout::UPLINK.into(),
        uplink_mtu: UPLINK_MTU,
        addresses: vec![node_address(number)],
        uplink_prefixes: config().node_cidrs,
        ..NodeFacts::default()
    }
}

/// The address of the n-th node.
pub fn node_address(number: u8) -> IpAddr {
    IpAddr::from([172, 30, 0, number.saturating_add(1)])
}

/// The pod range of the n-th node.
pub fn pod_range(number: u8) -> ipnet::IpNet {
    let range = ipnet::Ipv4Net::new_assert([10, 244, number, 0].into(), 24);
    ipnet::IpNet::V4(range)
}

/// The configuration that these nodes belong to.
pub fn config() -> ClusterConfig {
    ClusterConfig::default()
}
