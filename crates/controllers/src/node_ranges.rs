//! Pod ranges of nodes: one block of every cluster range, never two nodes the same. A node keeps
//! what it has.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::json;

use crate::controller::{Input, whole};
use crate::kind::{Kind, ObjectKey};
use crate::snapshot::{Change, Snapshot};
use crate::write::{Outcome, Step};

const COMPONENT: &str = "cidrAllocator";
/// Prefix length of one node's IPv6 pod range, as upstream's default.
const NODE_PREFIX_LENGTH_V6: u8 = 64;
/// Blocks of one range that are looked at: a /0 split into /128 must not be walked through.
const MAX_BLOCKS: u128 = 1 << 16;

pub(crate) fn interested(change: &Change, keys: &mut BTreeSet<ObjectKey>) {
    if change.latest().is_some_and(|object| object.kind == Kind::Node) {
        keys.insert(whole(Kind::Node));
    }
}

/// Decides for all nodes together, so that one block is never given twice.
pub(crate) fn reconcile(snapshot: &Snapshot, input: &Input<'_>) -> Outcome {
    let mut outcome = Outcome::nothing();
    let mut taken: Vec<IpNet> = snapshot
        .all(Kind::Node)
        .filter_map(|node| node.node())
        .flat_map(|node| &node.spec.pod_cidrs)
        .filter_map(|text| text.parse().ok())
        .chain(input.config.cluster.pools.iter().map(|pool| pool.cidr))
        .collect();
    for object in snapshot.all(Kind::Node).filter(|node| !node.is_terminating()) {
        let Some(node) = object.node().filter(|node| node.spec.pod_cidrs.is_empty()) else {
            continue;
        };
        let cluster = &input.config.cluster;
        let blocks: Option<Vec<IpNet>> = cluster
            .pod_cidrs
            .iter()
            .map(|range| free_block(range, cluster.node_prefix_length, &taken))
            .collect();
        let Some(blocks) = blocks.filter(|blocks| !blocks.is_empty()) else {
            // Told where people look; a deleted node makes room, and this runs again.
            let message = format!("Node {} status is now: CIDRNotAvailable", object.meta.name);
            let full = object.report(COMPONENT, "CIDRNotAvailable", message);
            if !crate::object::is_true(&node.status.conditions, CIDR_NOT_AVAILABLE) {
                outcome.push(mark_full(object, node, input).on_success(full));
            }
            continue;
        };
        let texts: Vec<String> = blocks.iter().map(ToString::to_string).collect();
        let body = json!({"spec": {"podCIDR": texts.first(), "podCIDRs": texts}});
        outcome.push(Step::quiet(object.patch_unchanged(body)));
        taken.extend(blocks);
    }
    outcome
}

/// A condition of ours, so that the event comes once and not with each run.
const CIDR_NOT_AVAILABLE: &str = "CIDRNotAvailable";

fn mark_full(
    object: &crate::object::Object,
    node: &crate::object::Node,
    input: &Input<'_>,
) -> Step {
    let mut conditions = node.status.conditions.clone();
    let message = format!(
        "no free block of prefix length {} is left in the cluster's pod ranges: remove a node, or \
         make the cluster anew with a larger --pod-cidr",
        input.config.cluster.node_prefix_length
    );
    let new =
        crate::conditions::new(CIDR_NOT_AVAILABLE, true, "PodRangesExhausted", message, input.now);
    crate::conditions::set(&mut conditions, new);
    Step::quiet(object.patch_status_unchanged(json!({"conditions": conditions})))
}

/// The first block of a range that overlaps nothing taken.
fn free_block(range: &IpNet, length_v4: u8, taken: &[IpNet]) -> Option<IpNet> {
    let length = match range {
        IpNet::V4(_) => length_v4,
        IpNet::V6(_) => NODE_PREFIX_LENGTH_V6.max(range.prefix_len()),
    };
    let bits = length.checked_sub(range.prefix_len())?;
    let blocks = 1_u128.checked_shl(bits.into()).map_or(MAX_BLOCKS, |count| count.min(MAX_BLOCKS));
    (0..blocks)
        .filter_map(|index| block(range, length, index))
        .find(|block| !taken.iter().any(|other| other.contains(block) || block.contains(other)))
}

fn block(range: &IpNet, length: u8, index: u128) -> Option<IpNet> {
    let address = match range.network() {
        IpAddr::V4(network) => {
            let size = 1_u128.checked_shl(u32::from(32_u8.checked_sub(length)?))?;
            let offset = u32::try_from(index.checked_mul(size)?).ok()?;
            IpAddr::V4(Ipv4Addr::from(u32::from(network).checked_add(offset)?))
        }
        IpAddr::V6(network) => {
            let size = 1_u128.checked_shl(u32::from(128_u8.checked_sub(length)?))?;
            let offset = index.checked_mul(size)?;
            IpAddr::V6(Ipv6Addr::from(u128::from(network).checked_add(offset)?))
        }
    };
    IpNet::new(address, length).ok()
}

#[cfg(test)]
mod tests {
    use model::{ClusterConfig, Pool};

    use super::*;
    use crate::controller::Config;
    use crate::fixtures::{snapshot, with_input, writes};

    #[test]
    fn blocks_never_overlap_what_is_taken() {
        let range: IpNet = "10.244.0.0/16".parse().expect("a range");
        let taken: Vec<IpNet> =
            ["10.244.0.0/24", "10.244.2.0/23"].map(|text| text.parse().expect("a range")).into();
        let block = free_block(&range, 24, &taken).map(|block| block.to_string());
        assert_eq!(block.as_deref(), Some("10.244.1.0/24"));
        let wide: IpNet = "10.0.0.0/8".parse().expect("a range");
        assert_eq!(free_block(&range, 24, &[wide]), None);
        assert_eq!(free_block(&range, 8, &[]), None, "a block larger than the range");
        let six: IpNet = "fd00::/48".parse().expect("a range");
        let first: IpNet = "fd00::/64".parse().expect("a range");
        let block = free_block(&six, 24, &[first]).map(|block| block.to_string());
        assert_eq!(block.as_deref(), Some("fd00:0:0:1::/64"));
    }

    #[test]
    fn nodes_get_nothing_of_a_pool() {
        let pool = Pool {
            name: "shop".into(),
            cidr: "10.244.0.0/17".parse().expect("a range"),
            block_size: 26,
            namespace_selector: Default::default(),
            node_selector: Default::default(),
        };
        let cluster = ClusterConfig { pools: vec![pool], ..ClusterConfig::default() };
        let node = json!({"metadata": {"name": "a"}, "spec": {}, "status": {}});
        let snapshot = snapshot(vec![(Kind::Node, node)]);
        let written = with_input(None, |input| {
            let config = Config { cluster, ..input.config.clone() };
            writes(&reconcile(&snapshot, &Input { config: &config, ..*input }))
        });
        assert_eq!(written[0].1["spec"]["podCIDR"], "10.244.128.0/24");
    }
}
