//! Pools of pod addresses besides the nodes' own ranges, as they are configured. Nodes take blocks
//! of them; which one takes which, `ipam::pools` decides.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::Node;
use crate::cluster::{nth_address, overlap};
use crate::selector::LabelSelector;

/// Annotation of a Node, written by its agent: the blocks that it gives pods addresses of, with
/// commas. Others route them to the node as its own range.
pub const BLOCKS_ANNOTATION: &str = "flatnet.io/pod-blocks";
/// Blocks of one node that others read; an annotation is written by hand now and then.
pub const BLOCKS_MAX: usize = 256;
/// Addresses of a block that no pod gets: network, gateway, broadcast.
const UNUSABLE: u128 = 3;
/// Addresses of a block at least: below that little more than the unusable ones is left.
const BLOCK_ADDRESSES_MIN: u128 = 8;

/// Addresses for some pods on some nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pool {
    /// Its name, a label's value.
    pub name: String,
    /// All its addresses.
    pub cidr: IpNet,
    /// Prefix length of the blocks that nodes take.
    pub block_size: u8,
    /// Namespaces whose pods are of this pool; the empty selector selects all.
    #[serde(default)]
    pub namespace_selector: LabelSelector,
    /// Nodes that may take blocks; the empty selector selects all.
    #[serde(default)]
    pub node_selector: LabelSelector,
}

/// Pools that cannot work. The text says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Bits below the prefix are set.
    #[error("pool {0}: the range {1} has bits set below its prefix: write {right}", right = .1.trunc())]
    HostBits(String, IpNet),
    /// Blocks larger than the pool, or too small.
    #[error(
        "pool {pool}: blocks of /{block_size} cannot be taken from {cidr}: choose a blockSize \
         from {least} to {most}"
    )]
    BlockSize {
        /// The pool.
        pool: String,
        /// Its range.
        cidr: IpNet,
        /// Its blocks.
        block_size: u8,
        /// The smallest prefix length.
        least: u8,
        /// The largest.
        most: u8,
    },
    /// Two pools share addresses.
    #[error("the pools {0} and {1} overlap: an address could be given twice")]
    Overlap(String, String),
    /// Outside the cluster's pod range.
    #[error(
        "pool {0}: {1} lies outside the cluster's pod ranges: nodes would take its pods for \
         strangers; name a part of a pod range that no node gets"
    )]
    Outside(String, IpNet),
    /// Two pools share a name.
    #[error("two pools are called {0}: rename one")]
    SameName(String),
}

impl Pool {
    /// The block at an index, counted from 0.
    pub fn block(&self, index: u128) -> Option<IpNet> {
        let host_bits = u32::from(self.cidr.max_prefix_len().checked_sub(self.block_size)?);
        let first = nth_address(&self.cidr, index.checked_mul(1_u128.checked_shl(host_bits)?)?)?;
        IpNet::new(first, self.block_size).ok()
    }

    /// How many blocks it has.
    pub fn block_count(&self) -> u128 {
        let bits = u32::from(self.block_size.saturating_sub(self.cidr.prefix_len()));
        1_u128.checked_shl(bits).unwrap_or(u128::MAX)
    }

    /// Addresses for pods in each block.
    pub fn usable(&self) -> u128 {
        let bits = u32::from(self.cidr.max_prefix_len().saturating_sub(self.block_size));
        1_u128.checked_shl(bits).unwrap_or(u128::MAX).saturating_sub(UNUSABLE)
    }

    /// Whether it is one of the pool's blocks.
    pub fn has_block(&self, block: &IpNet) -> bool {
        self.cidr.contains(block)
            && block.prefix_len() == self.block_size
            && block.trunc() == *block
    }

    fn check(&self) -> Result<(), PoolError> {
        if self.cidr.trunc() != self.cidr {
            return Err(PoolError::HostBits(self.name.clone(), self.cidr));
        }
        let most = self.cidr.max_prefix_len() - BLOCK_ADDRESSES_MIN.ilog2() as u8;
        if !(self.cidr.prefix_len()..=most).contains(&self.block_size) {
            return Err(PoolError::BlockSize {
                pool: self.name.clone(),
                cidr: self.cidr,
                block_size: self.block_size,
                least: self.cidr.prefix_len(),
                most,
            });
        }
        Ok(())
    }
}

/// Checks pools as a whole, within the pod ranges of a cluster.
///
/// # Errors
/// The first fault.
pub fn check(pools: &[Pool], pod_cidrs: &[IpNet]) -> Result<(), PoolError> {
    for (index, pool) in pools.iter().enumerate() {
        pool.check()?;
        if !pod_cidrs.iter().any(|range| range.contains(&pool.cidr)) {
            return Err(PoolError::Outside(pool.name.clone(), pool.cidr));
        }
        for other in pools.iter().skip(index + 1) {
            if pool.name == other.name {
                return Err(PoolError::SameName(pool.name.clone()));
            }
            if overlap(&pool.cidr, &other.cidr) {
                return Err(PoolError::Overlap(pool.name.clone(), other.name.clone()));
            }
        }
    }
    Ok(())
}

/// What a Node's annotation names, in order, that is a block of a pool; and what is not.
pub fn blocks_of(node: &Node, pools: &[Pool]) -> (Vec<IpNet>, Vec<String>) {
    let text = node.metadata.annotations.get(BLOCKS_ANNOTATION).map(String::as_str);
    let parts = text.unwrap_or_default().split(',').map(str::trim).filter(|part| !part.is_empty());
    let (mut blocks, mut wrong) = (Vec::new(), Vec::new());
    for part in parts.take(BLOCKS_MAX) {
        let is_block = |block: &IpNet| pools.iter().any(|pool| pool.has_block(block));
        match part.parse::<IpNet>().ok().filter(is_block) {
            Some(block) if !blocks.contains(&block) => blocks.push(block),
            Some(_) => {}
            None => wrong.push(part.to_owned()),
        }
    }
    (blocks, wrong)
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

    #[test]
    fn pools_that_cannot_work_are_refused_with_the_remedy() {
        let cluster = ["10.0.0.0/8", "fd00::/16"].map(|text| text.parse().expect("a range"));
        let rows = [
            (vec![pool("a", "11.0.0.0/24", 26)], "outside the cluster's"),
            (vec![pool("a", "10.0.0.1/24", 26)], "write 10.0.0.0/24"),
            (vec![pool("a", "10.0.0.0/24", 23)], "from 24 to 29"),
            (vec![pool("a", "10.0.0.0/24", 30)], "from 24 to 29"),
            (vec![pool("a", "fd00::/64", 126)], "from 64 to 125"),
            (vec![pool("a", "10.0.0.0/24", 26), pool("a", "10.1.0.0/24", 26)], "rename one"),
            (vec![pool("a", "10.0.0.0/16", 26), pool("b", "10.0.9.0/24", 26)], "overlap"),
        ];
        for (pools, expected) in rows {
            let error = check(&pools, &cluster).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error:?} should say {expected:?}");
        }
        let both = [pool("a", "10.0.0.0/24", 24), pool("b", "fd00::/48", 122)];
        assert_eq!(check(&both, &cluster), Ok(()));
    }

    #[test]
    fn only_blocks_of_pools_are_read_from_a_node() {
        let pools = [pool("a", "10.9.0.0/24", 28)];
        let mut node = Node::default();
        let text = "10.9.0.16/28, 10.9.0.16/28,10.9.0.0/24,10.9.1.0/28,10.9.0.20/28,x,";
        node.metadata.annotations.insert(BLOCKS_ANNOTATION.into(), text.into());
        let (blocks, wrong) = blocks_of(&node, &pools);
        assert_eq!(blocks, ["10.9.0.16/28".parse().expect("a block")]);
        assert_eq!(wrong, ["10.9.0.0/24", "10.9.1.0/28", "10.9.0.20/28", "x"]);
        assert_eq!(blocks_of(&Node::default(), &pools), (vec![], vec![]));
    }
}
