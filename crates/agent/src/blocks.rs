//! Blocks of pools: claimed and given back as [`ipam::pools`] decides, a Lease each.
//!
//! ```text
//! claim:      create the Lease ─▶ annotate the Node ─▶ all nodes route it ─▶ pods get addresses
//! give back:  close ─▶ nobody has an address ─▶ take it off the Node ─▶ delete the Lease
//! ```
//!
//! The Lease alone says whose a block is: creating an object is atomic. The Node's annotation tells
//! the way to it. A task of its own: neither the network nor pods wait for the API server here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use client::{Client, DeleteOptions, ListOptions, ResourcePath};
use ipam::pools::{self, CLAIM_LABEL, CLAIM_NAMESPACE, Claim, Step, Use};
use ipam::{Directory, Range};
use ipnet::IpNet;
use model::selector::LabelSelector;
use model::{Pool, Timestamp, layout};
use serde_json::Value;
use tokio::sync::watch;

use crate::metrics::unix_seconds;

/// Blocks are looked at this often.
const PERIOD: Duration = Duration::from_secs(1);
/// Steps of one look: each looks at the claims anew.
const STEPS_MAX: usize = 16;
/// A claim whose Node is not there is left for this long: the Node may be news that comes late.
const ORPHAN_DELAY: Duration = Duration::from_secs(60);
/// A closed block is kept for this long: longer than any ADD takes that was told of it before.
const CLOSED_FOR: Duration = Duration::from_secs(60);
/// Claims that are read: more than a cluster has blocks.
const CLAIMS_MAX: usize = 1 << 16;

/// What the loop knows that addresses depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// Labels of the own Node.
    pub(crate) node_labels: BTreeMap<String, String>,
    /// All Nodes.
    pub(crate) nodes: BTreeSet<String>,
    /// The own Node's ranges, at most one a family.
    pub(crate) node_ranges: Vec<IpNet>,
    /// Blocks that the own Node's annotation names and that are planned for.
    pub(crate) blocks: BTreeSet<IpNet>,
}

/// What this node has of pools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claimed {
    /// For the Node's annotation; `None` before the claims were read for the first time.
    pub(crate) blocks: Option<BTreeSet<IpNet>>,
    /// Blocks that no pod gets an address of any more, and since when.
    pub(crate) closed: BTreeMap<IpNet, Instant>,
    /// What is wrong, by pool.
    pub(crate) problems: BTreeMap<String, String>,
}

/// The keeper of this node's blocks.
pub(crate) struct Keeper {
    pub(crate) client: Client,
    pub(crate) node: String,
    pub(crate) pools: Vec<Pool>,
    /// The plugin's addresses.
    pub(crate) ipam: PathBuf,
    pub(crate) view: watch::Receiver<View>,
    pub(crate) claimed: watch::Sender<Claimed>,
}

/// Whether a pool is for pods of every namespace: its blocks are what nodes borrow when their own
/// ranges run out.
pub(crate) fn is_general(pool: &Pool) -> bool {
    pool.namespace_selector == LabelSelector::default()
}

impl Keeper {
    /// Keeps them for as long as the task lives.
    pub(crate) async fn run(self) {
        if self.pools.is_empty() {
            // Nothing to do; whoever listens to us hears nothing.
            return std::future::pending().await;
        }
        let mut orphans: BTreeMap<String, Instant> = BTreeMap::new();
        let mut failing = false;
        loop {
            let view = self.view.borrow().clone();
            // Before the lists are complete nothing is known, also not who is gone (invariant 3).
            if view.nodes.contains(&self.node) {
                let kept = self.keep(&view, &mut orphans).await;
                if let (Err(error), false) = (&kept, failing) {
                    tracing::warn!("blocks of pools are neither claimed nor given back: {error:#}");
                }
                failing = kept.is_err();
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    async fn keep(&self, view: &View, orphans: &mut BTreeMap<String, Instant>) -> Result<()> {
        let mut claimed = self.claimed.borrow().clone();
        let claims = self.claims().await?;
        self.collect_orphans(&claims, view, orphans).await?;
        claimed.problems.clear();
        for pool in &self.pools {
            self.keep_pool(pool, view, &mut claimed).await?;
        }
        self.claimed.send_if_modified(|present| {
            let changed = *present != claimed;
            *present = claimed;
            changed
        });
        Ok(())
    }

    async fn keep_pool(&self, pool: &Pool, view: &View, claimed: &mut Claimed) -> Result<()> {
        for _ in 0..STEPS_MAX {
            let claims = self.claims().await?;
            let is_own = |claim: &&Claim| claim.node == self.node && pool.has_block(&claim.block);
            let own: BTreeSet<IpNet> = claims.iter().filter(is_own).map(|it| it.block).collect();
            let serves = pool.node_selector.matches(&view.node_labels);
            if own.is_empty() && !serves {
                claimed.publish(pool, own);
                return Ok(());
            }
            let (uses, own_free) = self.uses(pool, &own, view, claimed)?;
            let taken = claims.iter().map(|claim| claim.block).collect();
            let now = Timestamp::from_seconds(unix_seconds() as i64);
            let step = pools::decide(pool, &self.node, &uses, &taken, now);
            let has_room = is_general(pool) && own_free >= (pool.usable() / 4).max(1);
            claimed.publish(pool, own);
            match step {
                Step::Nothing => return Ok(()),
                Step::Claim(_) | Step::Exhausted if has_room || !serves => return Ok(()),
                Step::Claim(block) => self.claim(pool, block).await?,
                Step::Close(block) => {
                    claimed.closed.insert(block, Instant::now());
                    return Ok(());
                }
                Step::Reopen(block) => {
                    claimed.closed.remove(&block);
                }
                Step::GiveBack(block) => return self.give_back(pool, block, view, claimed).await,
                Step::Exhausted => {
                    let problem = format!(
                        "pool {} is exhausted: every block of {} is taken by a node; enlarge the \
                         pool, or delete pods of it",
                        pool.name, pool.cidr
                    );
                    claimed.problems.insert(pool.name.clone(), problem);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn claim(&self, pool: &Pool, block: IpNet) -> Result<()> {
        let claim = Claim { block, pool: pool.name.clone(), node: self.node.clone() };
        match self.client.create::<_, Value>(&leases(), &claim.to_lease()).await {
            Ok(_) => tracing::info!("block {block} of pool {} is this node's", pool.name),
            // Another node was faster: the next look sees its claim.
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// First whoever may still take an address of the block, then the way to it, then the claim.
    async fn give_back(
        &self,
        pool: &Pool,
        block: IpNet,
        view: &View,
        claimed: &mut Claimed,
    ) -> Result<()> {
        if claimed.closed.get(&block).is_none_or(|since| since.elapsed() < CLOSED_FOR) {
            return Ok(());
        }
        if let Some(blocks) = &mut claimed.blocks {
            blocks.remove(&block);
        }
        if view.blocks.contains(&block) {
            return Ok(());
        }
        let claim = Claim { block, pool: pool.name.clone(), node: self.node.clone() };
        self.delete(&claim).await?;
        claimed.closed.remove(&block);
        tracing::info!("block {block} of pool {} is given back", pool.name);
        Ok(())
    }

    /// The node's blocks of a pool, and how many addresses its own range of that family has left.
    fn uses(
        &self,
        pool: &Pool,
        own: &BTreeSet<IpNet>,
        view: &View,
        claimed: &Claimed,
    ) -> Result<(Vec<Use>, u128)> {
        let directory = Directory::open_existing(&self.ipam, layout::CNI_NETWORK)?;
        let (reserved, released) = match &directory {
            Some(directory) => (directory.reservations()?, directory.released()?),
            None => Default::default(),
        };
        let held = |range: &IpNet| reserved.keys().filter(|it| range.contains(*it)).count() as u128;
        let used = |block: &IpNet| Use {
            block: *block,
            held: held(block),
            last_release: released
                .iter()
                .filter(|(address, _)| block.contains(*address))
                .map(|(_, at)| *at)
                .max(),
            closed: claimed.closed.contains_key(block),
        };
        let is_ipv4 = pool.cidr.addr().is_ipv4();
        let ranges = view.node_ranges.iter().filter(|range| range.addr().is_ipv4() == is_ipv4);
        let free = ranges.map(|range| capacity(range).saturating_sub(held(range))).sum();
        Ok((own.iter().map(used).collect(), free))
    }

    async fn claims(&self) -> Result<Vec<Claim>> {
        let options = ListOptions { label_selector: CLAIM_LABEL.into(), ..Default::default() };
        let leases = self.client.list::<Value>(&leases(), &options).await?;
        if leases.items.len() > CLAIMS_MAX {
            bail!("more than {CLAIMS_MAX} claims of blocks in {CLAIM_NAMESPACE}");
        }
        Ok(leases.items.iter().filter_map(Claim::of_lease).collect())
    }

    /// Blocks of nodes that are gone for good are free for others.
    async fn collect_orphans(
        &self,
        claims: &[Claim],
        view: &View,
        seen: &mut BTreeMap<String, Instant>,
    ) -> Result<()> {
        let orphans = pools::orphans(claims, &view.nodes);
        seen.retain(|name, _| orphans.iter().any(|claim| claim.name() == *name));
        for claim in orphans.into_iter().filter(|claim| !claim.node.is_empty()) {
            let since = *seen.entry(claim.name()).or_insert_with(Instant::now);
            if since.elapsed() >= ORPHAN_DELAY {
                tracing::info!("block {} of node {}, which is gone", claim.block, claim.node);
                self.delete(claim).await?;
            }
        }
        Ok(())
    }

    async fn delete(&self, claim: &Claim) -> Result<()> {
        let path = leases().name(claim.name());
        match self.client.delete(&path, &DeleteOptions::default()).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Claimed {
    /// The blocks of one pool are these, but for those that are leaving.
    fn publish(&mut self, pool: &Pool, own: BTreeSet<IpNet>) {
        self.closed.retain(|block, _| !pool.has_block(block) || own.contains(block));
        let blocks = self.blocks.get_or_insert_default();
        blocks.retain(|block| !pool.has_block(block));
        blocks.extend(own);
    }
}

fn leases() -> ResourcePath {
    ResourcePath::new("coordination.k8s.io/v1", "leases").namespace(CLAIM_NAMESPACE)
}

/// Addresses of a range that pods can have: all but those with a meaning of their own.
pub(crate) fn capacity(range: &IpNet) -> u128 {
    let range = Range::whole(*range);
    let (first, last) = range.bounds();
    let number = |address| match address {
        std::net::IpAddr::V4(address) => u128::from(u32::from(address)),
        std::net::IpAddr::V6(address) => u128::from(address),
    };
    let all = number(last).saturating_sub(number(first)).saturating_add(1);
    let gateway = range.gateway().is_some_and(|gateway| (first..=last).contains(&gateway));
    all.saturating_sub(u128::from(gateway))
}

#[cfg(test)]
mod tests;
