//! The answer to the plugin's question: which addresses shall this pod get (`cni::agent`)?
//!
//! The pod's annotations and its namespace's labels decide, so the API is asked about both; pools
//! and blocks are known. A pod that cannot have what it asks for gets none, and is told why.

use std::collections::BTreeMap;
use std::time::Duration;

use client::{Client, ClientError, ResourcePath};
use cni::agent::PodAddresses;
use ipam::fixed::{self, ADDRESSES_ANNOTATION, POOL_ANNOTATION};
use ipam::{Range, pools};
use ipnet::IpNet;
use model::{ClusterConfig, NamespacedName, ObjectMeta};
use serde::Deserialize;
use tokio::sync::watch;

use crate::blocks::{Claimed, View, is_general};

/// Longest wait for the API server; the plugin waits a little longer.
const API_TIMEOUT: Duration = Duration::from_secs(8);
/// Where the kubelet notes on the API's copy of a static pod which pod it stands for.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// All that answers need.
#[derive(Clone)]
pub(crate) struct Addressing {
    pub(crate) client: Client,
    pub(crate) config: ClusterConfig,
    pub(crate) view: watch::Receiver<View>,
    pub(crate) claimed: watch::Receiver<Claimed>,
}

/// Why a pod gets no addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It may get some soon.
    NotYet(String),
    /// Not before somebody changes something.
    Never(String),
}

/// An object of which only the metadata matter.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    metadata: ObjectMeta,
}

impl Addressing {
    /// Answers for one pod.
    pub(crate) async fn answer(
        &self,
        key: &NamespacedName,
        uid: &str,
    ) -> Result<PodAddresses, Refusal> {
        let known = tokio::time::timeout(API_TIMEOUT, self.look_up(key)).await;
        let not_yet = |error: String| {
            Refusal::NotYet(format!("the API server does not tell about pod {key}: {error}"))
        };
        let (pod, namespace) = known
            .map_err(|_| not_yet(format!("no answer in {} s", API_TIMEOUT.as_secs())))?
            .map_err(|error| not_yet(error.to_string()))?;
        let Some(pod) = pod.filter(|pod| is_same(pod, uid)) else {
            let other = format!("the API server has no pod {key} with the UID {uid} (yet)");
            return Err(Refusal::NotYet(other));
        };
        let (view, claimed) = (self.view.borrow().clone(), self.claimed.borrow().clone());
        decide(&self.config, &pod, &namespace.labels, &view, &claimed)
    }

    async fn look_up(
        &self,
        key: &NamespacedName,
    ) -> Result<(Option<ObjectMeta>, ObjectMeta), ClientError> {
        let path = ResourcePath::new("v1", "pods").namespace(key.namespace.clone());
        let pod: Option<Named> = self.client.get_optional(&path.name(key.name.clone())).await?;
        let path = ResourcePath::new("v1", "namespaces").name(key.namespace.clone());
        let namespace: Named = match self.config.pools.is_empty() {
            true => Named::default(),
            false => self.client.get(&path).await?,
        };
        Ok((pod.map(|pod| pod.metadata), namespace.metadata))
    }
}

fn is_same(pod: &ObjectMeta, uid: &str) -> bool {
    uid.is_empty()
        || pod.uid == uid
        || pod.annotations.get(MIRROR_ANNOTATION).is_some_and(|mirrored| mirrored == uid)
}

fn decide(
    config: &ClusterConfig,
    pod: &ObjectMeta,
    namespace_labels: &BTreeMap<String, String>,
    view: &View,
    claimed: &Claimed,
) -> Result<PodAddresses, Refusal> {
    let asks = [ADDRESSES_ANNOTATION, POOL_ANNOTATION]
        .into_iter()
        .find(|key| pod.annotations.contains_key(*key));
    if let (Some(key), false) = (asks, config.pod_address_annotations) {
        return Err(Refusal::Never(format!(
            "the annotation {key} is not allowed in this cluster: remove it, or set \
             podAddressAnnotations in the cluster's configuration"
        )));
    }
    let requested = fixed::requested(&pod.name, &pod.annotations)
        .map_err(|error| Refusal::Never(error.to_string()))?;
    let mut ranges = Vec::new();
    for range in &view.node_ranges {
        let is_ipv4 = range.addr().is_ipv4();
        let pool = pools::pool_for(&config.pools, is_ipv4, namespace_labels, &view.node_labels);
        let Some(pool) = pool else {
            ranges.push(vec![Range::whole(*range)]);
            continue;
        };
        let open = |block: &&IpNet| pool.has_block(block) && !claimed.closed.contains_key(*block);
        let own = is_general(pool).then_some(range);
        let blocks = view.blocks.iter().filter(open);
        let set: Vec<Range> = own.into_iter().chain(blocks).copied().map(Range::whole).collect();
        if set.is_empty() {
            return Err(Refusal::NotYet(match claimed.problems.get(&pool.name) {
                Some(problem) => problem.clone(),
                None => format!("this node has no block of pool {} yet", pool.name),
            }));
        }
        ranges.push(set);
    }
    if ranges.is_empty() {
        return Err(Refusal::NotYet("this node has no pod range yet".into()));
    }
    Ok(PodAddresses { requested, ranges })
}

#[cfg(test)]
mod tests {
    use model::Pool;
    use model::selector::LabelSelector;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a range")
    }

    fn labels(team: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("team".into(), team.into())])
    }

    fn pool(name: &str, cidr: &str, namespaces: LabelSelector) -> Pool {
        Pool {
            name: name.into(),
            cidr: net(cidr),
            block_size: 28,
            namespace_selector: namespaces,
            node_selector: LabelSelector::default(),
        }
    }

    fn config() -> ClusterConfig {
        let shop = LabelSelector { match_labels: labels("shop"), ..LabelSelector::default() };
        ClusterConfig {
            pools: vec![pool("shop", "10.244.200.0/24", shop)],
            pod_address_annotations: true,
            ..ClusterConfig::default()
        }
    }

    fn view(blocks: &[&str]) -> View {
        View {
            node_ranges: vec![net("10.244.1.0/24")],
            blocks: blocks.iter().map(|text| net(text)).collect(),
            ..View::default()
        }
    }

    fn pod(annotations: &[(&str, &str)]) -> ObjectMeta {
        let annotations = annotations.iter().map(|(key, value)| ((*key).into(), (*value).into()));
        ObjectMeta {
            name: "web-1".into(),
            uid: "u-1".into(),
            annotations: annotations.collect(),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn ranges_follow_the_namespace_and_addresses_the_pod() {
        let (a, b) = ("10.244.200.0/28", "10.244.200.16/28");
        let closed =
            Claimed { closed: [(net(a), std::time::Instant::now())].into(), ..Claimed::default() };
        let open = Claimed::default();
        let subnets = |team: &str, blocks: &[&str], claimed: &Claimed| {
            let found = decide(&config(), &pod(&[]), &labels(team), &view(blocks), claimed)?;
            let sets = found.ranges.iter().flatten().map(|range| range.subnet);
            Ok::<_, Refusal>(sets.collect::<Vec<_>>())
        };
        assert_eq!(subnets("other", &[a], &open), Ok(vec![net("10.244.1.0/24")]));
        assert_eq!(subnets("shop", &[a, b], &open), Ok(vec![net(a), net(b)]));
        assert_eq!(subnets("shop", &[a, b], &closed), Ok(vec![net(b)]));
        assert!(matches!(subnets("shop", &[a], &closed), Err(Refusal::NotYet(_))));
        // A pool for all is what a full node borrows from.
        let mut general = config();
        general.pools = vec![pool("all", "10.244.200.0/24", LabelSelector::default())];
        let found = decide(&general, &pod(&[]), &labels("x"), &view(&[a]), &open).expect("ranges");
        let wanted = [net("10.244.1.0/24"), net(a)].map(Range::whole).to_vec();
        assert_eq!(found.ranges, [wanted]);
        let by_ordinal = pod(&[(POOL_ANNOTATION, "10.244.1.100-10.244.1.109")]);
        let found = decide(&config(), &by_ordinal, &labels("x"), &view(&[]), &open);
        let address: std::net::IpAddr = "10.244.1.101".parse().expect("an address");
        assert_eq!(found.expect("an address").requested, [address]);
    }

    #[test]
    fn what_cannot_be_is_told_as_what_it_is() {
        let never = |config: &ClusterConfig, annotations: &[(&str, &str)]| {
            let found =
                decide(config, &pod(annotations), &labels("x"), &view(&[]), &Claimed::default());
            match found {
                Err(Refusal::Never(reason)) => reason,
                other => panic!("{other:?}"),
            }
        };
        let asks = [(ADDRESSES_ANNOTATION, "10.244.1.9")];
        let strict = ClusterConfig { pod_address_annotations: false, ..config() };
        assert!(never(&strict, &asks).contains("podAddressAnnotations"));
        assert!(never(&config(), &[(POOL_ANNOTATION, "10.244.1.9")]).contains("ordinal"));
        let nothing = View::default();
        let found = decide(&config(), &pod(&[]), &labels("x"), &nothing, &Claimed::default());
        assert!(matches!(found, Err(Refusal::NotYet(_))), "{found:?}");
    }

    #[test]
    fn a_pod_is_known_by_its_uid_or_as_a_mirror() {
        let mirror = pod(&[(MIRROR_ANNOTATION, "hash")]);
        for (uid, expected) in [("", true), ("u-1", true), ("hash", true), ("u-2", false)] {
            assert_eq!(is_same(&mirror, uid), expected, "{uid}");
        }
    }
}
