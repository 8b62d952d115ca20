//! Kubernetes objects from YAML, and the node objects that most tests start from.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use model::kinds::{NodeAddress, NodeCondition};
use model::world::{Kind, Object};
use model::{ClusterConfig, Family, Node};
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
            to_default_namespace(&mut service.metadata.namespace);
            Object::Service(Arc::new(service))
        }
        Kind::EndpointSlice => {
            let mut slice: model::EndpointSlice = typed(value)?;
            to_default_namespace(&mut slice.metadata.namespace);
            Object::EndpointSlice(Arc::new(slice))
        }
        Kind::ServiceCidr => Object::ServiceCidr(Arc::new(typed(value)?)),
        Kind::Pod => {
            let mut pod: model::Pod = typed(value)?;
            to_default_namespace(&mut pod.metadata.namespace);
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
        "ServiceCIDR" => Kind::ServiceCidr,
        "Pod" => Kind::Pod,
        other => {
            bail!(
                "{other:?} is no kind that the network reads: Node, Service, EndpointSlice, \
                 ServiceCIDR, Pod"
            )
        }
    })
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T> {
    Ok(serde_yaml_ng::from_value(value)?)
}

fn to_default_namespace(namespace: &mut String) {
    if namespace.is_empty() {
        *namespace = "default".into();
    }
}

/// The n-th node, counted from 1, as `flatnet up` lays it out: `node1` is 172.30.0.2 and holds
/// 10.244.1.0/24, in each family that pods have.
pub fn node(number: u8, config: &ClusterConfig) -> Node {
    let mut node = Node::default();
    node.metadata.name = format!("node{number}");
    for family in families(config) {
        node.spec.pod_cidrs.push(pod_range(number, family));
        let address = node_address(number, family).to_string();
        node.status.addresses.push(NodeAddress { kind: "InternalIP".into(), address });
    }
    node.status.conditions = vec![NodeCondition { kind: "Ready".into(), status: "True".into() }];
    node
}

/// What the n-th node knows of itself.
pub fn facts(number: u8, config: &ClusterConfig) -> NodeFacts {
    NodeFacts {
        name: format!("node{number}"),
        uplink: model::layout::UPLINK.into(),
        uplink_mtu: UPLINK_MTU,
        addresses: families(config).map(|family| node_address(number, family)).collect(),
        uplink_prefixes: config.node_cidrs.clone(),
        ..NodeFacts::default()
    }
}

/// The address of the n-th node.
pub fn node_address(number: u8, family: Family) -> IpAddr {
    let host = number.saturating_add(1);
    match family {
        Family::V4 => IpAddr::from([172, 30, 0, host]),
        Family::V6 => IpAddr::from([0xfd00, 0x172, 0x30, 0, 0, 0, 0, host.into()]),
    }
}

/// The pod range of the n-th node.
pub fn pod_range(number: u8, family: Family) -> IpNet {
    match family {
        Family::V4 => Ipv4Net::new_assert([10, 244, number, 0].into(), 24).into(),
        Family::V6 => {
            let network = [0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, 0];
            Ipv6Net::new_assert(network.into(), 64).into()
        }
    }
}

/// The families of a cluster, its first one first.
pub fn families(config: &ClusterConfig) -> impl Iterator<Item = Family> + '_ {
    config.pod_cidrs.iter().map(|range| Family::of(&range.addr()))
}

/// The IPv4 configuration that these nodes belong to.
pub fn config() -> ClusterConfig {
    config_of(&[Family::V4])
}

/// The configuration with ranges of these families, in this order.
pub fn config_of(families: &[Family]) -> ClusterConfig {
    let plain = ClusterConfig::default();
    let ranges = |v4: &[IpNet], v6: [u16; 3], length: u8| -> Vec<IpNet> {
        let [a, b, c] = v6;
        let v6 = Ipv6Net::new_assert([a, b, c, 0, 0, 0, 0, 0].into(), length).into();
        let of = |family: &Family| match family {
            Family::V4 => v4.to_vec(),
            Family::V6 => vec![v6],
        };
        families.iter().flat_map(of).collect()
    };
    ClusterConfig {
        pod_cidrs: ranges(&plain.pod_cidrs, [0xfd00, 0x10, 0x244], 48),
        service_cidrs: ranges(&plain.service_cidrs, [0xfd00, 0x10, 0x96], 112),
        node_cidrs: ranges(&plain.node_cidrs, [0xfd00, 0x172, 0x30], 64),
        ..plain
    }
}
