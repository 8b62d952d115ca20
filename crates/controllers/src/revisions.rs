//! ControllerRevisions: the templates that a DaemonSet or StatefulSet had. `kubectl rollout
//! history` lists them, `kubectl rollout undo` applies one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use model::selector::LabelSelector;

use crate::adoption::{claim, owners};
use crate::kind::{Kind, ObjectKey};
use crate::object::Object;
use crate::snapshot::{Change, Snapshot};
use crate::template;
use crate::write::{Outcome, Step, Write};

/// The label of pods that tells the revision that they are of.
pub(crate) const REVISION_HASH: &str = "controller-revision-hash";
/// Old revisions that are kept where nobody says how many.
const DEFAULT_HISTORY_LIMIT: i32 = 10;

/// The revisions of one owner.
pub(crate) struct Revisions {
    /// The oldest first.
    all: Vec<Arc<Object>>,
}

/// The revision of the present template.
pub(crate) enum Present {
    /// It is there.
    Found(Arc<Object>),
    /// It is being made.
    Made,
    /// Its name is taken by one of another template, or of somebody else.
    Collision,
}

/// Adds the objects of `kind`, which have revisions, that a change concerns: themselves, and for
/// their pods and revisions those that own or would adopt them.
pub(crate) fn interested(
    kind: Kind,
    change: &Change,
    snapshot: &Snapshot,
    keys: &mut BTreeSet<ObjectKey>,
    selector: impl Fn(&Object) -> Option<&LabelSelector>,
) {
    for object in change.both() {
        match object.kind {
            Kind::Pod | Kind::ControllerRevision => {
                owners(object, kind, snapshot, keys, &selector);
            }
            _ if object.kind == kind => {
                keys.insert(object.key());
            }
            _ => {}
        }
    }
}

impl Revisions {
    /// What `owner` has; adoptions and releases go into `outcome`.
    pub fn claim(
        owner: &Object,
        selector: &LabelSelector,
        snapshot: &Snapshot,
        outcome: &mut Outcome,
    ) -> Self {
        let claimed = claim(owner, selector, Kind::ControllerRevision, snapshot, |_| true);
        outcome.steps.extend(claimed.steps);
        let mut all = claimed.owned;
        all.sort_by_cached_key(|revision| (number(revision), revision.meta.name.clone()));
        Self { all }
    }

    /// Sees to the revision of the present template: it exists, with the highest number.
    pub fn sync(
        &self,
        owner: &Object,
        template: &Value,
        collisions: Option<i32>,
        snapshot: &Snapshot,
        outcome: &mut Outcome,
    ) -> Present {
        let newest = self.all.last().map_or(0, |last| number(last));
        let found = self.all.iter().rev().find(|revision| {
            template_of(revision)
                .is_some_and(|of_revision| template::is_same(&of_revision, template))
        });
        if let Some(found) = found {
            if number(found) < newest {
                let body = json!({"revision": newest.saturating_add(1)});
                outcome.push(Step::quiet(found.patch_unchanged(body)));
            }
            return Present::Found(found.clone());
        }
        let hash = template::hash(template, collisions.unwrap_or(0));
        let name = format!("{}-{hash}", owner.meta.name);
        let namespace = owner.meta.namespace.clone();
        if snapshot.find(Kind::ControllerRevision, &namespace, &name).is_some() {
            return Present::Collision;
        }
        let mut labels = template::labels(template);
        labels.insert(REVISION_HASH.into(), hash);
        let mut body = Kind::ControllerRevision.object(json!({
            "name": name,
            "namespace": namespace,
            "labels": labels,
            "annotations": owner.meta.annotations,
            "ownerReferences": [owner.controller_reference()],
        }));
        let mut replaced = template::without_nulls(template);
        replaced["$patch"] = json!("replace");
        body["data"] = json!({"spec": {"template": replaced}});
        body["revision"] = json!(newest.saturating_add(1));
        outcome.push(Step::quiet(Write::Create {
            kind: Kind::ControllerRevision,
            namespace,
            body,
        }));
        Present::Made
    }

    /// The revision of this name.
    pub fn named(&self, name: &str) -> Option<&Arc<Object>> {
        self.all.iter().find(|revision| revision.meta.name == name)
    }

    /// Deletes the oldest revisions beyond the limit, of those that are not in use.
    pub fn clean_up(
        &self,
        limit: Option<i32>,
        is_used: impl Fn(&Object) -> bool,
        outcome: &mut Outcome,
    ) {
        let limit = usize::try_from(limit.unwrap_or(DEFAULT_HISTORY_LIMIT)).unwrap_or(0);
        let unused: Vec<_> =
            self.all.iter().filter(|found| !is_used(found) && !found.is_terminating()).collect();
        let surplus = unused.len().saturating_sub(limit);
        for revision in unused.into_iter().take(surplus) {
            outcome.push(Step::quiet(revision.delete()));
        }
    }
}

/// The template of a revision.
pub(crate) fn template_of(revision: &Object) -> Option<Value> {
    let mut template = revision.controller_revision()?.data.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    Some(template)
}

/// The hash by which pods of a revision are known; empty for one that others made without it.
pub(crate) fn hash_of(revision: &Object) -> &str {
    revision.meta.labels.get(REVISION_HASH).map_or("", String::as_str)
}

/// Whether one of these labels is that of a revision.
pub(crate) fn is_of(labels: &BTreeMap<String, String>, hash: &str) -> bool {
    !hash.is_empty() && labels.get(REVISION_HASH).is_some_and(|found| found == hash)
}

fn number(revision: &Object) -> i64 {
    revision.controller_revision().map_or(0, |view| view.revision)
}
