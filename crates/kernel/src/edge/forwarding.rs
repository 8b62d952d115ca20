//! Our rules in chains of others that drop by policy whatever is forwarded (reference plugin
//! `firewall`): see [`render::edge::firewall`].

use std::collections::BTreeMap;

use model::{Attachment, Family};
use render::OpError;
use render::edge::firewall;
use render::nft::language::{Rule, TableId};

use super::{Edge, iptables, refused};
use crate::nft::ForeignDrop;

/// What becomes of our rules in others' chains.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Those of the given pods are added.
    Add,
    /// Those of the given pods are removed.
    Remove,
    /// Those of the given pods shall be there, and no others.
    Set,
    /// As [`Change::Set`], without writing.
    Look,
    /// As [`Change::Add`], without writing.
    LookForOne,
}

impl Change {
    /// Whether nothing is known of other pods than the given ones.
    fn is_of_some(self) -> bool {
        matches!(self, Self::Add | Self::Remove | Self::LookForOne)
    }

    fn writes(self) -> bool {
        !matches!(self, Self::Look | Self::LookForOne)
    }

    /// Whether a wanted rule shall be there.
    fn adds(self) -> bool {
        self != Self::Remove
    }

    /// Whether a rule of ours shall go.
    fn removes(self, is_wanted: bool) -> bool {
        match self {
            Self::Add | Self::LookForOne => false,
            Self::Remove => is_wanted,
            Self::Set | Self::Look => !is_wanted,
        }
    }
}

impl Edge {
    /// The rules for these pods in chains of others. Answers what differed, in words.
    pub(super) fn change_forwarding(
        &mut self,
        attachments: &[Attachment],
        change: Change,
    ) -> Result<Vec<String>, OpError> {
        if change.is_of_some() && attachments.iter().all(|pod| pod.edge.firewall.is_none()) {
            return Ok(vec![]);
        }
        let mut differed = Vec::new();
        for chain in self.driver.foreign_drops()? {
            differed.extend(self.change_chain(&chain, attachments, change)?);
        }
        for family in [Family::V4, Family::V6] {
            let change = || change_older(family, attachments, change);
            differed.extend(self.namespace.run(change).map_err(refused)??);
        }
        Ok(differed)
    }

    fn change_chain(
        &mut self,
        chain: &ForeignDrop,
        attachments: &[Attachment],
        change: Change,
    ) -> Result<Option<String>, OpError> {
        let mut wanted: Vec<(TableId, Rule)> = Vec::new();
        for id in chain.tables() {
            let rules = firewall::forwarding(&id, attachments);
            wanted.extend(rules.into_iter().map(|rule| (id.clone(), rule)));
        }
        let present: BTreeMap<u64, Rule> = self.driver.own_rules_in(chain)?;
        let is_missing = |wanted: &&(TableId, Rule)| {
            change.adds() && !present.values().any(|present| *present == wanted.1)
        };
        let missing: Vec<_> = wanted.iter().filter(is_missing).cloned().collect();
        let is_wanted = |rule: &Rule| wanted.iter().any(|(_, wanted)| wanted == rule);
        let surplus: Vec<u64> = present
            .iter()
            .filter(|(_, rule)| change.removes(is_wanted(rule)))
            .map(|(&handle, _)| handle)
            .collect();
        if change.writes() && (!missing.is_empty() || !surplus.is_empty()) {
            self.driver.change_rules_in(chain, &missing, &surplus)?;
        }
        Ok(difference(chain, missing.len(), surplus.len()))
    }
}

/// The same in the older iptables.
fn change_older(
    family: Family,
    attachments: &[Attachment],
    change: Change,
) -> Result<Option<String>, OpError> {
    let Some(forward) = iptables::Forward::read(family)? else { return Ok(None) };
    let wanted: Vec<String> =
        firewall::forwarded(family, attachments).flat_map(iptables::accepts).collect();
    let present = forward.own_rules();
    // Where the policy is to accept there is nothing to undo.
    let is_missing =
        |rule: &&String| change.adds() && forward.drops_by_policy() && !present.contains(rule);
    let missing: Vec<String> = wanted.iter().filter(is_missing).cloned().collect();
    let is_surplus = |rule: &&String| change.removes(wanted.contains(rule));
    let surplus: Vec<String> = present.iter().filter(is_surplus).cloned().collect();
    if change.writes() && (!missing.is_empty() || !surplus.is_empty()) {
        forward.change(&missing, &surplus)?;
    }
    Ok(difference("chain FORWARD of the older iptables", missing.len(), surplus.len()))
}

fn difference(chain: impl std::fmt::Display, missing: usize, surplus: usize) -> Option<String> {
    (missing != 0 || surplus != 0)
        .then(|| format!("{chain} lacked {missing} rules of ours, had {surplus} too many"))
}
