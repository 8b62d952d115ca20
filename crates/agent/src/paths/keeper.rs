//! The loop's part of the path self-test: what there is to test, and what follows from what was
//! found.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::overlay::DETOURS_ANNOTATION;
use model::{ClusterConfig, World};
use plan::NodeFacts;
use plan::network::NetworkPlan;
use plan::paths::{self, Judgement};
use serde::{Deserialize, Serialize};

use super::{Found, Paths, Targets};
use crate::report::Condition;

/// The path to one other node, as the self-test found it (`flatnet node status`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathRow {
    /// The other node.
    pub peer: String,
    /// How pod packets travel; behind a detour's name stands "(detour)".
    pub way: String,
    /// The largest packet of a pod in bytes that arrives there.
    pub mtu: Option<u32>,
    /// The fastest answer in microseconds.
    pub rtt_us: Option<u32>,
    /// What was found, in one word of [`plan::paths::State`].
    pub state: String,
}

/// Between the task and the loop.
pub(crate) struct Keeper {
    ends: Paths,
    found: Found,
    judgement: Judgement,
    rows: Arc<Vec<PathRow>>,
    /// Wrong checksums are not seen any more once they are avoided: what was found once holds as
    /// long as the agent runs.
    checksum_broken: bool,
    /// What the node says of itself, without what was found.
    facts: Option<NodeFacts>,
}

impl Keeper {
    pub(crate) fn new(ends: Paths) -> Self {
        Self {
            ends,
            found: Found::default(),
            judgement: Judgement::default(),
            rows: Arc::default(),
            checksum_broken: false,
            facts: None,
        }
    }

    /// Waits until a test found something.
    pub(crate) async fn heard(&mut self) {
        if self.ends.found.changed().await.is_err() {
            // The task ends with the agent.
            std::future::pending().await
        }
        self.found = self.ends.found.borrow_and_update().clone();
    }

    /// Something of this node's network was mended: what did not work may work now.
    pub(crate) fn mended(&self) {
        self.ends.mended.notify_one();
    }

    /// The facts with what was found.
    pub(crate) fn amend(&mut self, facts: NodeFacts) -> NodeFacts {
        self.facts = Some(facts.clone());
        NodeFacts {
            pod_mtu_limit: self.judgement.pod_mtu_limit,
            tunnel_checksum_broken: facts.tunnel_checksum_broken || self.checksum_broken,
            ..facts
        }
    }

    /// Follows the plan, and judges what was found. Answers facts that are new.
    pub(crate) fn follow(
        &mut self,
        config: &ClusterConfig,
        world: &World,
        plan: Option<&NetworkPlan>,
    ) -> Option<NodeFacts> {
        let (plan, facts) = (plan?, self.facts.clone()?);
        let node = world.node(&facts.name)?;
        let addresses: Vec<_> = node.internal_ips().collect();
        let targets = Targets::of(plan, &facts, &addresses, config);
        self.ends.targets.send_if_modified(|present| {
            let changed = *present != targets;
            *present = targets;
            changed
        });
        let judgement = paths::judge(&facts.name, config, plan, &self.found);
        if judgement == self.judgement {
            return None;
        }
        self.checksum_broken |= judgement.checksum_broken;
        self.rows = Arc::new(judgement.rows.iter().map(row).collect());
        let before = self.amend(facts.clone());
        self.judgement = judgement;
        let after = self.amend(facts);
        (before != after).then_some(after)
    }

    /// What the own Node shall say of detours; `None` leaves what it says.
    pub(crate) fn annotation(
        &self,
        config: &ClusterConfig,
        world: &World,
        plan: Option<&NetworkPlan>,
    ) -> Option<(String, String)> {
        let (plan, facts) = (plan?, self.facts.as_ref()?);
        let node = world.node(&facts.name)?;
        let detours = paths::detours(config, facts, node, plan, &self.found);
        let is_there = node.metadata.annotations.contains_key(DETOURS_ANNOTATION);
        let text = paths::detours_text(&detours);
        (is_there || !text.is_empty()).then(|| (DETOURS_ANNOTATION.to_owned(), text))
    }

    /// The Node's condition.
    pub(crate) fn condition(&self) -> Option<Condition> {
        let verdict = self.judgement.verdict.as_ref()?;
        Some(Condition {
            kind: "FlatnetPathsReady",
            status: if verdict.ready { "True" } else { "False" },
            reason: verdict.reason,
            message: verdict.message.clone(),
        })
    }

    pub(crate) fn findings(&self) -> &[plan::Finding] {
        &self.judgement.findings
    }

    pub(crate) fn rows(&self) -> Arc<Vec<PathRow>> {
        Arc::clone(&self.rows)
    }
}

fn row(row: &paths::Row) -> PathRow {
    let detour = if row.detour { " (detour)" } else { "" };
    PathRow {
        peer: row.peer.clone(),
        way: format!("{}{detour}", row.way),
        mtu: row.mtu,
        rtt_us: row.rtt_us,
        state: row.state.as_str().to_owned(),
    }
}

/// How many paths are in each state.
pub(crate) fn count(rows: &[PathRow]) -> BTreeMap<&'static str, usize> {
    let states = paths::State::ALL.map(paths::State::as_str);
    let number = |state| rows.iter().filter(|row| row.state == state).count();
    states.into_iter().map(|state| (state, number(state))).collect()
}
