//! What a write asks for, and what comes back.

use std::fmt;
use std::sync::Arc;

use model::Timestamp;
use serde_json::Value;

use crate::authorize::Subject;
use crate::conversion::Conversions;
use crate::selector::{FieldSelector, LabelSelector};
use crate::webhooks::{Admission, Proposal};
use crate::{Object, Record, Resource, Status, Subresource};

/// One write, as the URL and the body name it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The row that the URL names.
    pub resource: &'static Resource,
    /// The namespace of the URL; empty for cluster-scoped kinds.
    pub namespace: String,
    /// The name of the URL; empty for creates on the collection and for `DeleteCollection`.
    pub name: String,
    /// The subresource of the URL.
    pub subresource: Option<Subresource>,
    /// What to do.
    pub action: Action,
}

/// The verbs that write.
#[derive(Clone, Debug)]
pub enum Action {
    /// POST: an object; on a subresource a Binding or an Eviction.
    Create(Value),
    /// PUT.
    Update(Value),
    /// PATCH.
    Patch(PatchKind, Value),
    /// PATCH by server-side apply.
    Apply {
        /// What the manager wants, and nothing else.
        config: Value,
        /// Whether it takes what others own.
        force: bool,
    },
    /// DELETE of one object.
    Delete(DeleteOptions),
    /// DELETE of all objects that the selectors choose.
    DeleteCollection(DeleteOptions, LabelSelector, FieldSelector),
}

/// The kinds of patches that say how to change an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902, `application/json-patch+json`.
    Json,
    /// RFC 7386, `application/merge-patch+json`.
    Merge,
    /// Kubernetes' own, `application/strategic-merge-patch+json`.
    Strategic,
}

impl PatchKind {
    /// The kind that a media type names (without parameters).
    pub fn from_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            _ => None,
        }
    }
}

/// What happens to the objects that the deleted one owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// The owner goes at once; the garbage collector removes the rest.
    Background,
    /// The owner goes last: finalizer `foregroundDeletion`.
    Foreground,
    /// The owned objects stay: finalizer `orphan`.
    Orphan,
}

/// `metav1.DeleteOptions`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Seconds that a pod gets to stop; `None` for the pod's own.
    pub grace_period_seconds: Option<i64>,
    /// What happens to owned objects; `None` keeps to what an earlier deletion said, else they go
    /// in the background.
    pub propagation: Option<Propagation>,
    /// What must hold for the deletion to happen.
    pub preconditions: Preconditions,
}

/// `metav1.Preconditions`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preconditions {
    /// The identity that the object must have.
    pub uid: Option<String>,
    /// The version that the object must have.
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    /// Reads the body of a DELETE; an absent body is the default.
    ///
    /// # Errors
    /// 400 for a body that is no `DeleteOptions`, 422 for an unknown propagation policy.
    pub fn from_value(value: &Value) -> Result<Self, Status> {
        crate::write::delete_options(value)
    }
}

/// Where randomness comes from: uids, generated names and the start of dynamic allocation.
/// Tests and the simulator pass a seeded one.
pub trait Random {
    /// The next 64 random bits.
    fn next_u64(&mut self) -> u64;
}

/// What happens to fields that a kind does not have, or that stand twice (`fieldValidation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldDirective {
    /// They are dropped.
    Ignore,
    /// They are dropped with a warning.
    #[default]
    Warn,
    /// The request is refused.
    Strict,
}

impl FieldDirective {
    /// The directive of a query parameter; absent means the default.
    pub fn from_query(text: &str) -> Option<Self> {
        match text {
            "Ignore" => Some(Self::Ignore),
            "" | "Warn" => Some(Self::Warn),
            "Strict" => Some(Self::Strict),
            _ => None,
        }
    }
}

/// What is wrong with the fields of a body, and what that means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldValidation {
    /// What it means.
    pub directive: FieldDirective,
    /// What is wrong, from [`schema::decode::read`]. Patches add what the patched object shows.
    pub faults: Vec<String>,
}

impl FieldValidation {
    /// What the strict decoder says; `None` when nothing is refused.
    pub(crate) fn complaint(&self) -> Option<String> {
        let refuses = self.directive == FieldDirective::Strict && !self.faults.is_empty();
        refuses.then(|| format!("strict decoding error: {}", self.faults.join(", ")))
    }
}

/// What the shell knows about a request beyond its content.
pub struct Context<'a> {
    /// The time of the request.
    pub now: Timestamp,
    /// The random source.
    pub random: &'a mut dyn Random,
    /// Who asks; `None` for who may do everything, whom nothing restricts.
    pub subject: Option<Subject<'a>>,
    /// As whom it owns what it writes: `fieldManager`, or the first word of its User-Agent.
    pub manager: &'a str,
    /// Why the user may not create what the request names, if so: a PUT and an apply make what is
    /// absent, which takes another right than to change it.
    pub create_refusal: Option<Status>,
    /// Whether everything shall happen but the write.
    pub dry_run: bool,
    /// What is wrong with the body's fields.
    pub validation: FieldValidation,
    /// How far the write goes.
    pub admission: Admission,
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("now", &self.now)
            .field("subject", &self.subject)
            .field("manager", &self.manager)
            .field("dry_run", &self.dry_run)
            .finish_non_exhaustive()
    }
}

/// The outcome of one staged write.
#[derive(Clone, Debug)]
pub struct Staged {
    /// The HTTP code: 201 for creates, else 200.
    pub code: u16,
    /// The body of the answer; to be sent only after the records are durable and published.
    pub reply: Reply,
    /// Texts for `Warning: 299` headers.
    pub warnings: Vec<String>,
    /// What the shell must make durable, in revision order; empty for a dry run and for a write
    /// that changed nothing.
    pub records: Vec<Record>,
}

impl Staged {
    /// What ends before anything is written.
    pub(crate) fn unfinished(reply: Reply) -> Self {
        Self { code: 200, reply, warnings: Vec::new(), records: Vec::new() }
    }
}

/// The body of an answer.
#[derive(Clone, Debug)]
pub enum Reply {
    /// An object, which can be shown as a Table.
    Object(Arc<Object>),
    /// The objects that a `DeleteCollection` removed or marked.
    Objects(&'static Resource, Vec<Arc<Object>>),
    /// A value of a kind that is not stored, such as `Scale`.
    Value(Value),
    /// A `Status`.
    Status(Status),
    /// None yet: webhooks are to be asked about this first.
    Proposal(Box<Proposal>),
    /// None yet: webhooks are to convert this first.
    Conversions(Box<Conversions>),
}
