//! Pools of addresses that nodes take blocks from: which pool a pod is of, which block a node
//! claims next, and when it gives one back.
//!
//! A claim is an object in the API: one `Lease` (`coordination.k8s.io/v1`) in `kube-system` a
//! block, named by the block, held by the node. Creating an object is atomic, so of two nodes
//! that want one block one is refused and chooses again; no node ever needs another's answer.
//! Everything here is a decision; the agent carries it out and decides anew from what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use model::Timestamp;
use model::cluster::overlap;
pub use model::layout::{CLAIM_LABEL, CLAIM_NAMESPACE};
use model::mac::fnv1a;
pub use model::pool::Pool;
use model::selector::LabelSelector;
use serde_json::{Value, json};

use crate::directory::REUSE_DELAY_S;

const CLAIM_PREFIX: &str = "pod-block-";
/// One block that a node holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// The block.
    pub block: IpNet,
    /// The pool that it is of.
    pub pool: String,
    /// The node that holds it.
    pub node: String,
}

/// What a node knows of a block that it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The block.
    pub block: IpNet,
    /// Addresses of it that pods have.
    pub held: u128,
    /// When the last of them was given back; `None` when none ever was, or long ago.
    pub last_release: Option<Timestamp>,
    /// Whether the node has stopped giving out its addresses, so as to give it back.
    pub closed: bool,
}

/// What a node does about its blocks of one pool next. One at a time: then it decides again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Enough is free, and not too much.
    Nothing,
    /// Create the claim of this block; when it exists already, decide again with it.
    Claim(IpNet),
    /// Stop giving out addresses of this block.
    Close(IpNet),
    /// Give out addresses of this block again: a pod came in between, or it is needed.
    Reopen(IpNet),
    /// Delete the claim of this block: it is closed, and nobody has an address of it.
    GiveBack(IpNet),
    /// Every block is taken: tell the operator to enlarge the pool.
    Exhausted,
}

/// The pool of one family that a pod gets its address from: of those that select its namespace
/// and node the one that says the most, then the first by name. There is never a second choice:
/// who tells pods apart by their range must not see one elsewhere because a pool was full.
pub fn pool_for<'a>(
    pools: &'a [Pool],
    is_ipv4: bool,
    namespace_labels: &BTreeMap<String, String>,
    node_labels: &BTreeMap<String, String>,
) -> Option<&'a Pool> {
    let everything = LabelSelector::default();
    pools
        .iter()
        .filter(|pool| pool.cidr.addr().is_ipv4() == is_ipv4)
        .filter(|pool| pool.namespace_selector.matches(namespace_labels))
        .filter(|pool| pool.node_selector.matches(node_labels))
        .min_by_key(|pool| {
            let any_namespace = pool.namespace_selector == everything;
            (any_namespace, pool.node_selector == everything, &pool.name)
        })
}

/// What a node does next about its blocks of a pool. It claims one when less than a quarter of a
/// block is free, so that pods do not wait for the API; it gives one back when a whole block
/// more is free than that, all of its addresses rested, and it was closed first: then no pod can
/// have got an address of it meanwhile, whatever happens between two steps.
pub fn decide(
    pool: &Pool,
    node: &str,
    uses: &[Use],
    taken: &BTreeSet<IpNet>,
    now: Timestamp,
) -> Step {
    let free = |block: &Use| pool.usable().saturating_sub(block.held);
    let open_free: u128 = uses.iter().filter(|block| !block.closed).map(free).sum();
    let reserve = (pool.usable() / 4).max(1);
    let short = open_free < reserve;
    for block in uses.iter().filter(|block| block.closed) {
        if block.held > 0 || short {
            return Step::Reopen(block.block);
        }
        if has_rested(block, now) {
            return Step::GiveBack(block.block);
        }
    }
    if short {
        let own = uses.iter().map(|block| block.block);
        let taken: BTreeSet<IpNet> = taken.iter().copied().chain(own).collect();
        return next_block(pool, node, &taken).map_or(Step::Exhausted, Step::Claim);
    }
    // The block that was claimed last in address order goes first: pods gather at the front.
    let surplus = uses.iter().rev().find(|block| {
        !block.closed
            && block.held == 0
            && has_rested(block, now)
            && open_free.saturating_sub(pool.usable()) >= pool.usable()
    });
    surplus.map_or(Step::Nothing, |block| Step::Close(block.block))
}

/// Claims whose node is gone: the blocks are free for others.
pub fn orphans<'a>(claims: &'a [Claim], nodes: &BTreeSet<String>) -> Vec<&'a Claim> {
    claims.iter().filter(|claim| !nodes.contains(&claim.node)).collect()
}

impl Claim {
    /// The name of the claim's object.
    pub fn name(&self) -> String {
        let address = match self.block.network() {
            IpAddr::V4(address) => address.octets().map(|part| part.to_string()).join("-"),
            IpAddr::V6(address) => address.segments().map(|part| format!("{part:x}")).join("-"),
        };
        format!("{CLAIM_PREFIX}{address}-{}", self.block.prefix_len())
    }

    /// The object to create.
    pub fn to_lease(&self) -> Value {
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": self.name(),
                "namespace": CLAIM_NAMESPACE,
                "labels": { (CLAIM_LABEL): self.pool },
            },
            "spec": { "holderIdentity": self.node },
        })
    }

    /// Reads an object. `None` when it is no claim; a claim without a holder is held by the
    /// node with the empty name, so that nobody takes its block before somebody looked.
    pub fn of_lease(lease: &Value) -> Option<Self> {
        let metadata = lease.get("metadata")?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let pool = text(metadata.get("labels")?.get(CLAIM_LABEL)?)?;
        let block = parse_name(metadata.get("name")?.as_str()?)?;
        let holder = lease.get("spec").and_then(|spec| spec.get("holderIdentity"));
        Some(Self { block, pool, node: holder.and_then(text).unwrap_or_default() })
    }
}

/// The first block that nobody has, from a place on that differs by node, so that nodes that
/// start at once seldom want the same. Steps at most once more than there are claims.
fn next_block(pool: &Pool, node: &str, taken: &BTreeSet<IpNet>) -> Option<IpNet> {
    let count = pool.block_count();
    let start = u128::from(fnv1a(node.as_bytes())) % count;
    let steps = count.min(taken.len() as u128 + 1);
    (0..steps)
        .filter_map(|step| pool.block(start.checked_add(step)? % count))
        .find(|block| !taken.iter().any(|other| overlap(other, block)))
}

fn has_rested(block: &Use, now: Timestamp) -> bool {
    block.last_release.is_none_or(|at| now.seconds().saturating_sub(at.seconds()) >= REUSE_DELAY_S)
}

fn parse_name(name: &str) -> Option<IpNet> {
    let parts: Vec<&str> = name.strip_prefix(CLAIM_PREFIX)?.split('-').collect();
    let (prefix_length, address) = parts.split_last()?;
    let address: IpAddr = match address.len() {
        4 => IpAddr::V4(address.join(".").parse().ok()?),
        8 => IpAddr::V6(address.join(":").parse::<Ipv6Addr>().ok()?),
        _ => return None,
    };
    let block = IpNet::new(address, prefix_length.parse().ok()?).ok()?;
    (block.trunc() == block).then_some(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(name: &str, cidr: &str, block_size: u8) -> Pool {
        Pool {
            name: name.into(),
            cidr: cidr.parse().expect("a range"),
            block_size,
            namespace_selector: LabelSelector::default(),
            node_selector: LabelSelector::default(),
        }
    }

    fn labels(key: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(key.into(), value.into())])
    }

    fn selecting(key: &str, value: &str) -> LabelSelector {
        LabelSelector { match_labels: labels(key, value), ..LabelSelector::default() }
    }

    fn block(text: &str) -> IpNet {
        text.parse().expect("a block")
    }

    #[test]
    fn the_pool_that_says_the_most_about_a_pod_wins_and_there_is_no_second() {
        let mut shop = pool("shop", "10.1.0.0/16", 26);
        shop.namespace_selector = selecting("team", "shop");
        let mut edge = pool("edge", "10.2.0.0/16", 26);
        edge.node_selector = selecting("zone", "edge");
        let pools = [pool("all", "10.0.0.0/16", 26), edge, shop, pool("six", "fd00::/64", 122)];
        let name = |is_ipv4, team: &str, zone: &str| {
            let found = pool_for(&pools, is_ipv4, &labels("team", team), &labels("zone", zone));
            found.map(|pool| pool.name.as_str())
        };
        assert_eq!(name(true, "x", "x"), Some("all"));
        assert_eq!(name(true, "x", "edge"), Some("edge"));
        assert_eq!(name(true, "shop", "edge"), Some("shop"));
        assert_eq!(name(false, "shop", "edge"), Some("six"));
        assert!(pool_for(&pools[2..3], true, &labels("team", "x"), &labels("a", "b")).is_none());
    }

    #[test]
    fn claims_read_back_from_their_objects() {
        for text in ["10.244.3.0/26", "10.0.0.0/8", "fd00:10:244::40/122", "::/96"] {
            let claim = Claim { block: block(text), pool: "all".into(), node: "node1".into() };
            let lease = claim.to_lease();
            assert_eq!(Claim::of_lease(&lease), Some(claim.clone()));
            let name = claim.name();
            let is_dns = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            assert!(is_dns && name.len() <= 63, "{name}");
        }
        let lease =
            |name: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}});
        let label = json!({ (CLAIM_LABEL): "all" });
        for other in [
            lease("node1", label.clone()),
            lease("pod-block-10-0-0-26", label.clone()),
            lease("pod-block-10-0-0-1-26", label.clone()),
            lease("pod-block-10-0-0-0-33", label.clone()),
            lease("pod-block-10-0-0-0-26", json!({})),
            json!([]),
        ] {
            assert_eq!(Claim::of_lease(&other), None, "{other}");
        }
        let nobody = Claim::of_lease(&lease("pod-block-10-0-0-0-26", label)).expect("a claim");
        assert_eq!(nobody.node, "");
        assert_eq!(
            orphans(std::slice::from_ref(&nobody), &BTreeSet::from(["node1".into()])),
            [&nobody]
        );
    }

    #[test]
    fn steps_follow_what_is_free() {
        let pool = pool("all", "10.0.0.0/26", 28); // four blocks of thirteen
        type Row<'a> = (&'a str, u128, Option<i64>, bool);
        let uses = |rows: &[Row<'_>]| -> Vec<Use> {
            let of = |&(text, held, released, closed): &Row<'_>| Use {
                block: block(text),
                held,
                last_release: released.map(Timestamp::from_seconds),
                closed,
            };
            rows.iter().map(of).collect()
        };
        let (a, b, c) = ("10.0.0.0/28", "10.0.0.16/28", "10.0.0.32/28");
        let rows: [(&[Row<'_>], Step); 9] = [
            (&[(a, 10, None, false)], Step::Nothing),
            (&[(a, 0, None, false)], Step::Nothing),
            (&[(a, 3, None, false), (b, 0, None, false)], Step::Nothing),
            (&[(a, 0, None, false), (b, 0, None, false)], Step::Close(block(b))),
            (&[(a, 0, None, false), (b, 0, Some(90), false)], Step::Close(block(a))),
            (&[(a, 0, None, false), (b, 0, Some(90), true)], Step::Nothing),
            (&[(a, 0, None, false), (b, 0, Some(60), true)], Step::GiveBack(block(b))),
            (&[(a, 0, None, false), (b, 1, None, true)], Step::Reopen(block(b))),
            (&[(a, 12, None, false), (c, 0, None, true)], Step::Reopen(block(c))),
        ];
        let now = Timestamp::from_seconds(100);
        for (known, expected) in rows {
            let step = decide(&pool, "node1", &uses(known), &BTreeSet::new(), now);
            assert_eq!(step, expected, "{known:?}");
        }
        let all: BTreeSet<IpNet> = (0..4).filter_map(|index| pool.block(index)).collect();
        assert_eq!(decide(&pool, "node1", &[], &all, now), Step::Exhausted);
        for free in &all {
            let mut others = all.clone();
            others.remove(free);
            assert_eq!(decide(&pool, "node1", &[], &others, now), Step::Claim(*free));
        }
    }
}
