//! Aggregated ClusterRoles: one that has an `aggregationRule` has the rules of all roles that it
//! selects. They are filled in by the write that changes one of them, so that no right is early or
//! late.
//!
//! Source: kubernetes.io, "Using RBAC Authorization", "Aggregated ClusterRoles".

use std::sync::Arc;

use serde_json::Value;

use crate::kinds::apps::selects_labels;
use crate::kinds::rbac::CLUSTER_ROLE;
use crate::state::Content;
use crate::{Object, Operation, Store, json};

/// Rounds in which roles of roles get their rules. Roles that select each other come to rest, but
/// a long chain of them would hold up the write.
const MAX_ROUNDS: usize = 16;

impl Store {
    /// Fills in the rules of a role that is about to be written, where it selects others.
    pub(crate) fn aggregate_own(&self, value: &mut Value) {
        if let Some(rules) = self.aggregated_rules(value) {
            json::set(value, "/rules", rules);
        }
    }

    /// Fills in the rules of all roles that select others, after one was written.
    pub(crate) fn aggregate_all(&mut self) {
        for _ in 0..MAX_ROUNDS {
            let mut is_changed = false;
            for role in self.head_objects(CLUSTER_ROLE.storage) {
                is_changed |= self.aggregate_one(&role);
            }
            if !is_changed {
                return;
            }
        }
    }

    /// Whether the role has other rules than before.
    fn aggregate_one(&mut self, role: &Arc<Object>) -> bool {
        let Some(rules) = self.aggregated_rules(&role.value) else { return false };
        if json::items(&role.value, "/rules") == rules {
            return false;
        }
        let mut content = Content::of(role);
        json::set(&mut content.value, "/rules", rules);
        self.stage_record(&CLUSTER_ROLE, role.key.clone(), Operation::Update, content);
        true
    }

    /// The rules of the roles that a role selects, in the order of their names, each once; `None`
    /// for a role that has its own.
    fn aggregated_rules(&self, value: &Value) -> Option<Vec<Value>> {
        json::at(value, "/aggregationRule")?;
        let name = json::text(value, "/metadata/name");
        let all = self.head_objects(CLUSTER_ROLE.storage);
        let mut rules: Vec<Value> = Vec::new();
        for selector in json::items(value, "/aggregationRule/clusterRoleSelectors") {
            for role in all.iter().filter(|role| role.key.name != name) {
                if !selects_labels(selector, json::at(&role.value, "/metadata/labels")) {
                    continue;
                }
                for rule in json::items(&role.value, "/rules") {
                    if !rules.contains(rule) {
                        rules.push(rule.clone());
                    }
                }
            }
        }
        Some(rules)
    }
}
