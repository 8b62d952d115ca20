//! Whose pods have which addresses: what verified pod records and search paths are made of.
//!
//! Of a pod only its name and addresses are kept, about 150 octets: a DNS worker knows the pods of
//! the whole cluster, on every node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use model::{NamespacedName, Pod};
use serde::{Deserialize, Serialize};

/// Phases of pods that have ended: others may get their addresses.
const ENDED: [&str; 2] = ["Succeeded", "Failed"];

/// Whose pods have one address.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodNames {
    /// The namespaces, each once, in order; at least one.
    pub namespaces: Vec<Box<str>>,
    /// Whether the address is the pod's own, and not its node's: what comes from it is the pod's.
    pub is_own: bool,
}

/// The addresses of all pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodAddresses {
    namespaces: BTreeMap<Arc<str>, BTreeMap<Box<str>, Addresses>>,
    /// How many pods of a namespace have an address, and how many of them share their node's.
    pods_at: BTreeMap<(IpAddr, Arc<str>), (u32, u32)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Addresses {
    addresses: Box<[IpAddr]>,
    is_of_node: bool,
}

impl PodAddresses {
    /// Sets one pod to its present value. Returns the addresses whose names may be others now.
    pub fn set(&mut self, pod: &Pod) -> BTreeSet<IpAddr> {
        let key = pod.metadata.key();
        let mut touched = self.remove(&key);
        let has_ended = ENDED.contains(&pod.status.phase.as_str());
        let addresses: BTreeSet<IpAddr> = pod
            .status
            .pod_ips
            .iter()
            .map(|one| one.ip.as_str())
            .chain([pod.status.pod_ip.as_str()])
            .filter_map(|text| text.parse().ok())
            .collect();
        if has_ended || addresses.is_empty() {
            return touched;
        }
        let namespace = match self.namespaces.get_key_value(key.namespace.as_str()) {
            Some((namespace, _)) => namespace.clone(),
            None => key.namespace.as_str().into(),
        };
        let is_of_node = pod.spec.host_network;
        for address in &addresses {
            let count = self.pods_at.entry((*address, namespace.clone())).or_default();
            count.0 += 1;
            count.1 += u32::from(is_of_node);
        }
        touched.extend(&addresses);
        let addresses = Addresses { addresses: addresses.into_iter().collect(), is_of_node };
        self.namespaces.entry(namespace).or_default().insert(key.name.into(), addresses);
        touched
    }

    /// Removes one pod. Returns the addresses whose names may be others now.
    pub fn remove(&mut self, key: &NamespacedName) -> BTreeSet<IpAddr> {
        let Some(pods) = self.namespaces.get_mut(key.namespace.as_str()) else {
            return BTreeSet::new();
        };
        let Some(old) = pods.remove(key.name.as_str()) else { return BTreeSet::new() };
        if pods.is_empty() {
            self.namespaces.remove(key.namespace.as_str());
        }
        for address in &old.addresses {
            let at = (*address, key.namespace.as_str().into());
            if let Some(count) = self.pods_at.get_mut(&at) {
                count.0 = count.0.saturating_sub(1);
                count.1 = count.1.saturating_sub(u32::from(old.is_of_node));
                if count.0 == 0 {
                    self.pods_at.remove(&at);
                }
            }
        }
        old.addresses.into_iter().collect()
    }

    /// Replaces all pods by a complete list. Returns the addresses whose names may be others now.
    pub fn replace(&mut self, pods: &[Pod]) -> BTreeSet<IpAddr> {
        let present: BTreeSet<NamespacedName> = pods.iter().map(|pod| pod.metadata.key()).collect();
        let gone: Vec<NamespacedName> = self.keys().filter(|key| !present.contains(key)).collect();
        let mut touched = BTreeSet::new();
        for key in &gone {
            touched.extend(self.remove(key));
        }
        for pod in pods {
            touched.extend(self.set(pod));
        }
        touched
    }

    /// Whose pods have an address; `None`: nobody's.
    pub fn names_at(&self, address: IpAddr) -> Option<PodNames> {
        let mut names = PodNames { namespaces: vec![], is_own: true };
        let from = self.pods_at.range((address, Arc::from(""))..);
        for ((_, namespace), (_, of_node)) in from.take_while(|((one, _), _)| *one == address) {
            names.namespaces.push(namespace.as_ref().into());
            names.is_own &= *of_node == 0;
        }
        (!names.namespaces.is_empty()).then_some(names)
    }

    /// All addresses.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.pods_at.keys().map(|(address, _)| *address).collect()
    }

    fn keys(&self) -> impl Iterator<Item = NamespacedName> {
        self.namespaces.iter().flat_map(|(namespace, pods)| {
            pods.keys().map(|name| NamespacedName::new(namespace.as_ref(), name.as_ref()))
        })
    }
}

#[cfg(test)]
mod tests {
    use model::kinds::PodIp;

    use super::*;

    fn pod(namespace: &str, name: &str, addresses: &[&str]) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.namespace = namespace.into();
        pod.metadata.name = name.into();
        pod.status.pod_ips =
            addresses.iter().map(|text| PodIp { ip: (*text).to_string() }).collect();
        pod
    }

    fn namespaces(all: &PodAddresses, address: &str) -> Vec<String> {
        let names = all.names_at(address.parse().expect("an address")).unwrap_or_default();
        names.namespaces.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_address_has_the_namespaces_of_its_pods_while_they_run() {
        let mut all = PodAddresses::default();
        all.set(&pod("shop", "a", &["10.244.1.5", "fd00::5"]));
        assert_eq!(namespaces(&all, "fd00::5"), ["shop"]);
        // An address can be the next pod's before the first one's end was heard of.
        all.set(&pod("bank", "b", &["10.244.1.5"]));
        assert_eq!(namespaces(&all, "10.244.1.5"), ["bank", "shop"]);
        let mut ended = pod("shop", "a", &["10.244.1.5", "fd00::5"]);
        ended.status.phase = "Failed".into();
        assert_eq!(all.set(&ended).len(), 2);
        assert_eq!(namespaces(&all, "10.244.1.5"), ["bank"]);
        assert_eq!(namespaces(&all, "fd00::5"), [""; 0]);
        all.remove(&NamespacedName::new("bank", "b"));
        assert_eq!(all, PodAddresses::default());
    }

    #[test]
    fn an_address_of_a_node_is_no_pods_own() {
        let mut all = PodAddresses::default();
        let address = "172.30.0.2".parse().expect("an address");
        let mut first = pod("shop", "a", &["172.30.0.2"]);
        first.spec.host_network = true;
        let mut second = first.clone();
        second.metadata.name = "b".into();
        all.set(&first);
        all.set(&second);
        all.remove(&first.metadata.key());
        let names = all.names_at(address).expect("a pod is left");
        assert_eq!((names.namespaces.len(), names.is_own), (1, false));
    }

    #[test]
    fn a_list_removes_what_it_does_not_name() {
        let mut all = PodAddresses::default();
        all.replace(&[pod("shop", "a", &["10.244.1.5"]), pod("shop", "b", &["10.244.1.6"])]);
        let touched = all.replace(&[pod("shop", "b", &["10.244.1.6"])]);
        assert!(touched.contains(&"10.244.1.5".parse().expect("an address")));
        assert_eq!(all.addresses().len(), 1);
    }
}
