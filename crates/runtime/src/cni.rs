//! The network of pods, by CNI plugins as any runtime runs them ([`cni::runtime_side`]). What was
//! asked for is on disk before it is asked for, so that a DEL follows every ADD, however this
//! process ends.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::cni::runtime_side::{Driver, List, Target};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::pod::Pod;
use crate::quantity;

/// The interface in the pod.
const INTERFACE: &str = "eth0";
/// What runtimes send for a burst that nobody chose.
const BURST_UNSET_BITS: u32 = u32::MAX;
/// Least and largest rate that a pod's annotations may ask for, bits a second: the kubelet's.
const RATE_BITS_PER_S: std::ops::RangeInclusive<i64> = 1_000..=1_000_000_000_000_000;

/// Where configurations are, and who runs their plugins.
#[derive(Clone, Debug)]
pub struct Cni {
    /// Directory of network configurations.
    pub configuration_directory: PathBuf,
    /// Runs plugins.
    pub driver: Arc<Driver>,
}

/// A pod's attachment to the network, as it is kept on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub id: String,
    /// The pod's network namespace.
    pub namespace: PathBuf,
    /// `K8S_POD_NAMESPACE`, `K8S_POD_NAME`, `K8S_POD_UID`.
    pub pod: [String; 3],
    /// The configuration list in use at ADD: DEL must have the same.
    pub configuration: Value,
    /// What plugins are told by their capabilities.
    #[serde(default)]
    pub capabilities: Map<String, Value>,
}

impl Cni {
    /// The configuration list that comes first in the directory by name; `None` while there is
    /// none.
    ///
    /// # Errors
    /// A file that cannot be read as one, named.
    pub fn configuration(&self) -> Result<Option<List>, String> {
        List::first(&self.configuration_directory).map_err(|fault| fault.to_string())
    }

    /// Adds the network and answers the pod's addresses.
    ///
    /// # Errors
    /// The plugin's own words. The attachment stays on disk for [`Cni::delete`].
    pub async fn add(&self, attachment: &Attachment, file: &Path) -> Result<Vec<IpAddr>, String> {
        crate::disk::write_json(file, attachment)?;
        let result = self.run(attachment, |driver, list, target| driver.add(list, target)).await?;
        let addresses = addresses(&result);
        if addresses.is_empty() {
            Err("the network plugin gave no address".into())
        } else {
            Ok(addresses)
        }
    }

    /// Removes the network.
    ///
    /// # Errors
    /// The plugin's own words; to be tried again.
    pub async fn delete(&self, attachment: &Attachment) -> Result<(), String> {
        self.run(attachment, |driver, list, target| driver.del(list, target)).await
    }

    /// Plugins are waited for on a thread of their own.
    async fn run<T: Send + 'static>(
        &self,
        attachment: &Attachment,
        work: impl FnOnce(&Driver, &List, &Target) -> Result<T, ::cni::fault::Fault> + Send + 'static,
    ) -> Result<T, String> {
        let list = List::from_value(attachment.configuration.clone());
        let list = list.map_err(|fault| fault.to_string())?;
        let (driver, target) = (Arc::clone(&self.driver), target(attachment));
        tokio::task::spawn_blocking(move || work(&driver, &list, &target))
            .await
            .map_err(|error| error.to_string())?
            .map_err(|fault| match fault.details.as_str() {
                "" => fault.message,
                details => format!("{}; {details}", fault.message),
            })
    }
}

/// What plugins are told of a pod by their capabilities: its ports of the node, and the limits
/// that its annotations ask for, as kubelet and container runtimes pass them.
///
/// # Errors
/// An annotation that is no rate.
pub fn capabilities(pod: &Pod) -> Result<Map<String, Value>, String> {
    let mut capabilities = Map::new();
    let ports = pod.spec.containers.iter().flat_map(|container| &container.ports);
    let mappings: Vec<Value> = ports
        .filter(|port| port.host_port != 0)
        .map(|port| {
            let protocol = match port.protocol.as_str() {
                "" => "tcp".to_owned(),
                protocol => protocol.to_lowercase(),
            };
            json!({
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": protocol,
                "hostIP": port.host_ip,
            })
        })
        .collect();
    if !mappings.is_empty() {
        capabilities.insert("portMappings".into(), mappings.into());
    }
    let mut bandwidth = Map::new();
    for direction in ["ingress", "egress"] {
        let key = format!("kubernetes.io/{direction}-bandwidth");
        let Some(text) = pod.metadata.annotations.get(&key) else { continue };
        let rate = quantity::milli(&Value::from(text.as_str())).map(|milli| milli / 1000);
        let rate = rate.filter(|rate| RATE_BITS_PER_S.contains(rate)).ok_or_else(|| {
            format!("annotation {key}: {text:?} is no rate between 1k and 1P bits a second")
        })?;
        bandwidth.insert(format!("{direction}Rate"), rate.into());
        bandwidth.insert(format!("{direction}Burst"), BURST_UNSET_BITS.into());
    }
    if !bandwidth.is_empty() {
        capabilities.insert("bandwidth".into(), bandwidth.into());
    }
    Ok(capabilities)
}

fn target(attachment: &Attachment) -> Target {
    let [namespace, name, uid] = &attachment.pod;
    let argument = |(key, value): (&str, &String)| (key.to_owned(), value.clone());
    let arguments = [
        ("IgnoreUnknown", &"1".to_owned()),
        ("K8S_POD_NAMESPACE", namespace),
        ("K8S_POD_NAME", name),
        ("K8S_POD_INFRA_CONTAINER_ID", &attachment.id),
        ("K8S_POD_UID", uid),
    ];
    Target {
        container_id: attachment.id.clone(),
        namespace: attachment.namespace.clone(),
        interface: INTERFACE.into(),
        arguments: arguments.map(argument).into(),
        capabilities: attachment.capabilities.clone(),
    }
}

/// Addresses of the pod's own interface, or those that name none.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let interfaces = result["interfaces"].as_array();
    let is_inside = |index: Option<u64>| match (index, interfaces) {
        (Some(index), Some(interfaces)) => {
            let interface = usize::try_from(index).ok().and_then(|index| interfaces.get(index));
            interface.is_some_and(|interface| {
                !interface["sandbox"].as_str().unwrap_or_default().is_empty()
            })
        }
        _ => true,
    };
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.filter(|ip| is_inside(ip["interface"].as_u64()))
        .filter_map(|ip| ip["address"].as_str()?.parse::<IpNet>().ok())
        .map(|network| network.addr())
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_are_those_inside_the_pod() {
        let result = json!({
            "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [
                {"address": "10.244.1.1/24", "interface": 0},
                {"address": "10.244.1.5/24", "interface": 1},
                {"address": "fd00::5/64"},
                {"address": "nonsense"}
            ]
        });
        let expected: Vec<IpAddr> =
            ["10.244.1.5", "fd00::5"].map(|text| text.parse().expect("an address")).into();
        assert_eq!(addresses(&result), expected);
    }

    #[test]
    fn host_ports_and_limits_of_a_pod_are_told_to_plugins_that_can_do_them() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "annotations": {
                "kubernetes.io/ingress-bandwidth": "10M",
                "kubernetes.io/egress-bandwidth": "1G",
            }},
            "spec": { "containers": [
                { "ports": [{ "containerPort": 80 }, { "containerPort": 53, "hostPort": 5353,
                    "protocol": "UDP", "hostIP": "127.0.0.1" }] },
                { "ports": [{ "containerPort": 443, "hostPort": 8443 }] },
            ]},
        }))
        .expect("a pod");
        let expected = json!({
            "portMappings": [
                { "hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1" },
                { "hostPort": 8443, "containerPort": 443, "protocol": "tcp", "hostIP": "" },
            ],
            "bandwidth": {
                "ingressRate": 10_000_000_u64, "ingressBurst": BURST_UNSET_BITS,
                "egressRate": 1_000_000_000_u64, "egressBurst": BURST_UNSET_BITS,
            },
        });
        assert_eq!(capabilities(&pod).map(Value::Object), Ok(expected));
        assert_eq!(capabilities(&Pod::default()), Ok(Map::new()));
        for wrong in ["fast", "0", "-1M", "999", "2P"] {
            let mut pod = Pod::default();
            let key = "kubernetes.io/egress-bandwidth".to_owned();
            pod.metadata.annotations.insert(key, wrong.into());
            let message = capabilities(&pod).expect_err(wrong);
            assert!(message.contains(wrong) && message.contains("egress"), "{message}");
        }
    }
}
