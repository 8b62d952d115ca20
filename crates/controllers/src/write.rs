//! What a controller wants done, and what came of it.

use std::time::Duration;

use serde_json::Value;

use model::NamespacedName;
use model::meta::OwnerReference;

use crate::kind::{Kind, ObjectKey};
use crate::object::Object;

/// One request to the API server. Patches are JSON merge patches (RFC 7386) that carry the
/// object's `uid`, and its `resourceVersion` where the decision rests on the whole object.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Creates an object.
    Create {
        /// Its kind.
        kind: Kind,
        /// Its namespace; empty for cluster-scoped kinds.
        namespace: String,
        /// The whole object.
        body: Value,
    },
    /// Changes some fields of an object.
    Patch {
        /// Which object.
        object: ObjectKey,
        /// The subresource that is patched, such as `status`.
        subresource: Option<&'static str>,
        /// The merge patch.
        body: Value,
    },
    /// Deletes an object.
    Delete {
        /// Which object.
        object: ObjectKey,
        /// Only if it still has this identity.
        uid: String,
        /// What becomes of its dependents; the server's default when absent.
        propagation: Option<Propagation>,
        /// Overrides the object's own grace period.
        grace_period_seconds: Option<u32>,
        /// Objects that must be absent in a fresh read, each with the uid that was seen: watches
        /// of different kinds run at different speeds, so that an owner may seem to be missing.
        absent: Vec<(ObjectKey, String)>,
    },
    /// Deletes all objects of a kind in a namespace.
    DeleteCollection {
        /// The kind.
        kind: Kind,
        /// The namespace.
        namespace: String,
    },
    /// Assigns a pod to a node (core/v1 Binding).
    Bind {
        /// The pod.
        pod: NamespacedName,
        /// Its identity.
        uid: String,
        /// The node.
        node: String,
    },
    /// Makes a token of a ServiceAccount that is bound to a Secret, and puts it there.
    GiveToken {
        /// The Secret.
        secret: ObjectKey,
        /// Its identity.
        uid: String,
        /// The account's name.
        account: String,
        /// What else the Secret gets: a merge patch, to whose `stringData` the token is added.
        body: Value,
    },
    /// Makes the directory of a provisioned volume. One that is there already is fine.
    MakeVolume {
        /// The PersistentVolume's name.
        volume: String,
    },
    /// Removes that directory with all that is in it. An absent one is fine.
    RemoveVolume {
        /// The PersistentVolume's name.
        volume: String,
        /// Objects that must be absent in a fresh read, as for [`Write::Delete`].
        absent: Vec<(ObjectKey, String)>,
    },
    /// Replaces `spec.finalizers` of a namespace.
    Finalize {
        /// The namespace's name.
        namespace: String,
        /// The namespace with the finalizers that remain.
        body: Value,
    },
}

/// What becomes of the dependents of a deleted object (`propagationPolicy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They are deleted afterwards.
    Background,
    /// They are deleted first.
    Foreground,
    /// They stay, without the owner.
    Orphan,
}

impl Propagation {
    /// The API's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Background => "Background",
            Self::Foreground => "Foreground",
            Self::Orphan => "Orphan",
        }
    }
}

/// A write with what people are told about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The request.
    pub write: Write,
    /// Event for success; `{name}` in its message becomes the name of the object written.
    pub success: Option<Report>,
    /// Event for failure; `{error}` in its message becomes the server's message.
    pub failure: Option<Report>,
}

impl Step {
    /// A write that nobody is told about.
    pub fn quiet(write: Write) -> Self {
        Self { write, success: None, failure: None }
    }

    /// The same with an event on success.
    pub fn on_success(mut self, report: Report) -> Self {
        self.success = Some(report);
        self
    }

    /// The same with an event on failure.
    pub fn on_failure(mut self, report: Report) -> Self {
        self.failure = Some(report);
        self
    }
}

/// An Event to record about an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Report {
    /// The object that it is about.
    pub object: ObjectKey,
    /// That object's uid.
    pub uid: String,
    /// `Warning` instead of `Normal`.
    pub warning: bool,
    /// One CamelCase word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// The component that speaks, as `kubectl describe` shows it.
    pub component: &'static str,
}

/// What one run of a controller for one key wants.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The writes.
    pub steps: Vec<Step>,
    /// Whether a step needs the success of the one before it. Otherwise they may run together,
    /// so that one commit of the store takes them all.
    pub in_order: bool,
    /// Run again after this time although nothing changed.
    pub requeue_after: Option<Duration>,
    /// Events that go with no write.
    pub reports: Vec<Report>,
}

impl Outcome {
    /// Nothing to do.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// Adds a step.
    pub fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// Tells people something that goes with no write.
    pub fn report(&mut self, report: Report) {
        self.reports.push(report);
    }

    /// Asks to run again after `delay`, or earlier where that was asked before.
    pub fn requeue(&mut self, delay: Duration) {
        self.requeue_after = Some(self.requeue_after.map_or(delay, |old| old.min(delay)));
    }
}

/// What came of one step.
#[derive(Clone, Debug, PartialEq)]
pub enum StepResult {
    /// The object as the server holds it now.
    Object(Value),
    /// Done, with nothing to show.
    Done,
    /// The object that was to be changed or deleted is gone.
    Gone,
    /// Not done: an object that had to be absent is there.
    NotAbsent,
    /// Not tried, since an earlier step of the same outcome failed.
    NotTried,
    /// Refused, or not delivered.
    Failed(Failure),
}

/// Why the server did not do a write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// The HTTP status code; 0 when no answer came.
    pub code: u16,
    /// The `reason` of the Status.
    pub reason: String,
    /// The server's message.
    pub message: String,
    /// The namespace is being deleted: not worth a retry or an event.
    pub namespace_terminating: bool,
}

/// A list for a merge patch: null where it is empty, as the API leaves empty lists out.
pub(crate) fn list_or_null<T: serde::Serialize>(list: &[T]) -> Value {
    if list.is_empty() { Value::Null } else { serde_json::json!(list) }
}

impl Object {
    /// A merge patch of this very object, whatever became of it meanwhile.
    pub(crate) fn patch(&self, mut body: Value) -> Write {
        body["metadata"]["uid"] = self.meta.uid.clone().into();
        Write::Patch { object: self.key(), subresource: None, body }
    }

    /// A merge patch that fails where the object has changed since it was read.
    pub(crate) fn patch_unchanged(&self, mut body: Value) -> Write {
        body["metadata"]["resourceVersion"] = self.meta.resource_version.clone().into();
        self.patch(body)
    }

    /// A merge patch of the status alone.
    pub(crate) fn patch_status(&self, status: Value) -> Write {
        let body = serde_json::json!({"metadata": {"uid": self.meta.uid}, "status": status});
        Write::Patch { object: self.key(), subresource: Some("status"), body }
    }

    /// The same, failing where the object has changed since it was read.
    pub(crate) fn patch_status_unchanged(&self, status: Value) -> Write {
        let meta = &self.meta;
        let body = serde_json::json!({
            "metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version},
            "status": status,
        });
        Write::Patch { object: self.key(), subresource: Some("status"), body }
    }

    /// The deletion of this very object.
    pub(crate) fn delete(&self) -> Write {
        Write::Delete {
            object: self.key(),
            uid: self.meta.uid.clone(),
            propagation: None,
            grace_period_seconds: None,
            absent: Vec::new(),
        }
    }

    /// An event about this object.
    pub(crate) fn report(
        &self,
        component: &'static str,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Report {
        Report {
            object: self.key(),
            uid: self.meta.uid.clone(),
            warning: false,
            reason,
            message: message.into(),
            component,
        }
    }

    /// The reference by which dependents name this object as their managing controller.
    pub(crate) fn controller_reference(&self) -> OwnerReference {
        let row = self.kind.row();
        OwnerReference {
            api_version: row.api_version.into(),
            kind: row.name.into(),
            name: self.meta.name.clone(),
            uid: self.meta.uid.clone(),
            controller: true,
            block_owner_deletion: true,
        }
    }
}

impl Report {
    /// The same as a warning.
    pub(crate) fn warning(mut self) -> Self {
        self.warning = true;
        self
    }
}
