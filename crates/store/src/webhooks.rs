//! Admission webhooks: which of them are asked about a write, what they are told, and what their
//! answers mean. The shell sends and waits.
//!
//! Source: kubernetes.io, "Dynamic Admission Control"; admission.k8s.io/v1 AdmissionReview.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::NamespacedName;
use serde_json::{Value, json as tree};

use crate::authorize::User;
use crate::conversion::Conversions;
use crate::expressions::{self, Rights, WRITE};
use crate::kinds::core::NAMESPACE;
use crate::kinds::webhook::{MUTATING, VALIDATING};
use crate::matching::{is_of_admission, selects};
use crate::{
    Action, Object, PatchKind, Request, Resource, Status, Store, Subresource, json, patch,
};

/// Most warnings of one answer that are passed on.
const MAX_WARNINGS: usize = 16;
/// Longest text of a refusal that is passed on, in characters.
const MAX_MESSAGE_CHARACTERS: usize = 4_096;

/// What happens to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// It is made.
    Create,
    /// It is changed.
    Update,
    /// It goes, or begins to.
    Delete,
    /// Somebody connects to it.
    Connect,
}

impl Operation {
    /// As rules and reviews write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// Group, version and kind of what is posted to a subresource, where that is no object of its row.
pub type Kind = (&'static str, &'static str, &'static str);

/// A write as webhooks and policies see it.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The row of the object.
    pub resource: &'static Resource,
    /// The subresource that is written, or connected to.
    pub subresource: Option<Subresource>,
    /// What `object` is, where it is no object of the row: a Scale, a Binding, …
    pub kind: Option<Kind>,
    /// What happens.
    pub operation: Operation,
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    /// The name of the URL; empty for creates on the collection.
    pub url_name: String,
    /// What there was.
    pub old: Option<Arc<Object>>,
    /// What there shall be; `None` for a deletion.
    pub object: Option<Value>,
}

/// How far a write goes, where webhooks have a say.
#[derive(Clone, Debug, Default)]
pub enum Admission {
    /// All the way.
    #[default]
    Whole,
    /// To where webhooks look at it.
    Propose,
    /// On from there, with what they made of it. If what there was has changed meanwhile, it ends
    /// there again.
    Admitted {
        /// The version of the object that they saw; `None` where there was none.
        revision: Option<u64>,
        /// What they made of it; `None` for a deletion.
        object: Option<Value>,
    },
}

/// Where a webhook answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// An `https` URL.
    Url(String),
    /// A Service of the cluster.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The path that is asked for.
        path: String,
        /// Its port.
        port: u16,
    },
}

/// How a webhook is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callee {
    /// Where it answers.
    pub place: Place,
    /// The authorities that may sign its certificate, PEM; empty for those that the system trusts.
    pub authorities: Vec<u8>,
    /// How long it may take, seconds.
    pub timeout_seconds: u64,
}

/// A webhook that is asked.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// Its name.
    pub name: String,
    /// How it is called.
    pub callee: Callee,
    /// Whether a write that it cannot be asked about is refused.
    pub fails_closed: bool,
    /// Whether it is asked again when a later one changed the object.
    pub is_asked_again: bool,
    /// The row in whose version it is asked.
    pub row: &'static Resource,
    object_selector: Value,
    conditions: Vec<Value>,
}

/// What a webhook said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What it changes, as a JSON patch.
    pub patch: Option<Value>,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
}

/// Which webhooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Those that may change the object, one after the other.
    Mutating,
    /// Those that judge what came of it.
    Validating,
}

impl Store {
    /// Whether a webhook or a policy may have to be asked about a write: only then it takes the
    /// long way.
    pub fn concerns_admission(&self, request: &Request) -> bool {
        !matches!(request.action, Action::DeleteCollection(..))
            && self.is_looked_at(request.resource, request.subresource)
    }

    /// Whether a webhook or a policy may have to be asked about writes of a resource, or
    /// connections to it.
    pub fn is_looked_at(
        &self,
        resource: &'static Resource,
        subresource: Option<Subresource>,
    ) -> bool {
        let mut webhooks = self.configurations(&MUTATING).chain(self.configurations(&VALIDATING));
        !is_of_admission(resource)
            && (webhooks.any(|webhook| {
                let policy = json::text(webhook, "/matchPolicy");
                self.may_take(json::items(webhook, "/rules"), policy, resource, subresource)
            }) || self.concerns_policies(resource, subresource))
    }

    /// The webhooks of a phase that a write is for, in their order. Their object selectors are
    /// asked by [`Webhook::selects`], since earlier ones may change labels, and their conditions
    /// by [`Webhook::wants`].
    pub fn webhooks(&self, phase: Phase, proposal: &Proposal) -> Vec<Webhook> {
        let kind = match phase {
            Phase::Mutating => &MUTATING,
            Phase::Validating => &VALIDATING,
        };
        self.configurations(kind)
            .filter(|webhook| self.is_in_namespaces(webhook, proposal))
            .filter_map(|webhook| {
                let policy = json::text(webhook, "/matchPolicy");
                let row = self.taken_as(json::items(webhook, "/rules"), policy, proposal)?;
                Some(Webhook::read(webhook, row))
            })
            .collect()
    }

    /// Whether anybody may judge what comes of a proposal.
    pub fn is_judged(&self, proposal: &Proposal) -> bool {
        self.concerns_policies(proposal.resource, proposal.subresource)
            || !self.webhooks(Phase::Validating, proposal).is_empty()
    }

    fn configurations(&self, kind: &'static Resource) -> impl Iterator<Item = &Value> {
        let shelf = self.shelf(kind).into_iter();
        let objects = shelf.flat_map(|shelf| shelf.objects.values());
        objects.flat_map(|kept| json::items(&kept.settled().value, "/webhooks"))
    }
}

impl Callee {
    /// Reads a `clientConfig`.
    pub(crate) fn read(config: &Value, timeout_seconds: u64) -> Self {
        let text = |field: &str| json::text(config, field).to_owned();
        let place = match json::at(config, "/service") {
            None => Place::Url(text("/url")),
            Some(_) => Place::Service {
                namespace: text("/service/namespace"),
                name: text("/service/name"),
                path: text("/service/path"),
                port: json::integer(config, "/service/port")
                    .and_then(|port| u16::try_from(port).ok())
                    .unwrap_or(443),
            },
        };
        let authorities = STANDARD.decode(text("/caBundle")).unwrap_or_default();
        Self { place, authorities, timeout_seconds }
    }
}

impl Webhook {
    fn read(webhook: &Value, row: &'static Resource) -> Self {
        let seconds = json::integer(webhook, "/timeoutSeconds").unwrap_or(10);
        let config = json::at(webhook, "/clientConfig").unwrap_or(&Value::Null);
        Self {
            name: json::text(webhook, "/name").to_owned(),
            callee: Callee::read(config, u64::try_from(seconds).unwrap_or(10)),
            fails_closed: json::text(webhook, "/failurePolicy") != "Ignore",
            is_asked_again: json::text(webhook, "/reinvocationPolicy") == "IfNeeded",
            row,
            object_selector: json::at(webhook, "/objectSelector").cloned().unwrap_or(tree!({})),
            conditions: json::items(webhook, "/matchConditions").to_vec(),
        }
    }

    /// Whether its `objectSelector` takes the object as it was or as it shall be.
    pub fn selects(&self, proposal: &Proposal) -> bool {
        selects(&self.object_selector, proposal)
    }

    /// Whether its `matchConditions` hold for what a review shows.
    ///
    /// # Errors
    /// What they failed with, where that refuses the write.
    pub fn wants(&self, store: &Store, review: &Value) -> Result<bool, String> {
        let rights = Rights::of(store, review);
        match expressions::hold(&self.conditions, &WRITE, &expressions::values(review, &rights)) {
            Err(_) if !self.fails_closed => Ok(false),
            held => held,
        }
    }
}

impl Proposal {
    /// The object's name; empty where the server is to choose one.
    pub fn name(&self) -> &str {
        match self.url_name.as_str() {
            "" => self.shown("/metadata/name"),
            name => name,
        }
    }

    fn shown(&self, field: &str) -> &str {
        let old = self.old.as_ref().map(|old| &*old.value);
        self.object.as_ref().or(old).map_or("", |object| json::text(object, field))
    }

    /// The AdmissionReview that asks about it, in the version of a row.
    pub fn review(
        &self,
        row: &'static Resource,
        uid: &str,
        user: Option<&User>,
        dry_run: bool,
    ) -> Value {
        let kind = |row: &'static Resource| {
            let (group, version, kind) = self.kind.unwrap_or((row.group, row.version, row.kind));
            tree!({"group": group, "version": version, "kind": kind})
        };
        let path = |row: &Resource| tree!({"group": row.group, "version": row.version, "resource": row.plural});
        let namespace = if self.resource == &NAMESPACE { self.name() } else { &self.namespace };
        let options = match self.operation {
            Operation::Create => option("CreateOptions"),
            Operation::Update => option("UpdateOptions"),
            Operation::Delete => option("DeleteOptions"),
            Operation::Connect => Value::Null,
        };
        let mut request = tree!({
            "uid": uid,
            "kind": kind(row),
            "resource": path(row),
            "requestKind": kind(self.resource),
            "requestResource": path(self.resource),
            "name": self.name(),
            "namespace": namespace,
            "operation": self.operation.name(),
            "userInfo": user.map_or(tree!({}), User::info),
            "object": self.object.clone().map(|object| self.in_version(row, object)),
            "oldObject": self.old.as_ref().map(|old| self.in_version(row, old.to_value())),
            "dryRun": dry_run,
            "options": options,
        });
        if let Some(subresource) = self.subresource {
            json::set(&mut request, "/subResource", subresource.name());
            json::set(&mut request, "/requestSubResource", subresource.name());
        }
        tree!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request})
    }

    /// As it is seen by who is asked in the version of a row: where a webhook makes versions of one
    /// another, that is to be done first.
    ///
    /// # Errors
    /// 500 where objects are to be converted first.
    pub fn seen_in(
        &self,
        row: &'static Resource,
        conversions: &mut Conversions,
    ) -> Result<Self, Status> {
        let mut seen = self.clone();
        if row == self.resource || self.kind.is_some() || row.converter().is_none() {
            return Ok(seen);
        }
        let old = self.old.as_ref().map(|old| conversions.object(row, old));
        if let Some(object) = &self.object {
            seen.object = Some(self.converted(self.resource, object, row, conversions)?);
        }
        seen.old = old.transpose()?;
        Ok(seen)
    }

    /// Takes up what somebody made of the object who saw it in the version of a row.
    ///
    /// # Errors
    /// As for [`Proposal::seen_in`].
    pub fn taken_back(
        &self,
        seen: Self,
        row: &'static Resource,
        conversions: &mut Conversions,
    ) -> Result<Self, Status> {
        let object = match &seen.object {
            Some(object) if row != self.resource => {
                Some(self.converted(row, object, self.resource, conversions)?)
            }
            _ => seen.object,
        };
        Ok(Self { object, ..self.clone() })
    }

    /// The object, which is not stored yet, in another version.
    fn converted(
        &self,
        from: &'static Resource,
        object: &Value,
        to: &'static Resource,
        conversions: &mut Conversions,
    ) -> Result<Value, Status> {
        let key = NamespacedName::new(self.namespace.clone(), self.name());
        let given = Arc::new(Object::new(from, key, 0, object.clone()));
        conversions.object(to, &given).map(|object| object.to_value())
    }

    /// An object in the version of a row: it is so already where more than the name differs.
    fn in_version(&self, row: &Resource, mut object: Value) -> Value {
        if row != self.resource && self.kind.is_none() {
            json::set(&mut object, "/apiVersion", row.api_version());
        }
        object
    }

    /// Changes the object as a webhook said that saw it in the version of a row.
    ///
    /// # Errors
    /// Why the patch cannot be applied.
    pub fn apply(&mut self, webhook: &Webhook, changes: &Value) -> Result<(), Status> {
        let Some(object) = &self.object else { return Ok(()) };
        let object = self.in_version(webhook.row, object.clone());
        let patched = patch::apply(self.resource, PatchKind::Json, &object, changes);
        let fault = |why: &dyn std::fmt::Display| {
            let name = &webhook.name;
            Status::internal(format!("the patch of webhook {name:?} does not apply: {why}"))
        };
        let mut patched = patched.map_err(|status| fault(&status.message))?;
        crate::write::check_size(&patched).map_err(|status| fault(&status.message))?;
        if webhook.row != self.resource && self.kind.is_none() {
            json::set(&mut patched, "/apiVersion", self.resource.api_version());
        }
        self.object = Some(patched);
        Ok(())
    }
}

fn option(kind: &str) -> Value {
    tree!({"kind": kind, "apiVersion": "meta.k8s.io/v1"})
}

/// What a webhook's answer means.
///
/// # Errors
/// The inner error is the refusal for the client; the outer one says why the answer is none.
pub fn verdict(
    webhook: &str,
    uid: &str,
    answer: &Value,
) -> Result<Result<Verdict, Status>, String> {
    let kind = (json::text(answer, "/apiVersion"), json::text(answer, "/kind"));
    if kind != ("admission.k8s.io/v1", "AdmissionReview") {
        return Err(format!(
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {:?}, \
             Kind={:?}",
            kind.0, kind.1
        ));
    }
    let Some(response) = json::at(answer, "/response") else {
        return Err("webhook response was absent".to_owned());
    };
    if json::text(response, "/uid") != uid {
        return Err(format!(
            "expected response.uid={uid:?}, got {:?}",
            json::text(response, "/uid")
        ));
    }
    if json::at(response, "/allowed") != Some(&Value::Bool(true)) {
        return Ok(Err(refusal(webhook, json::at(response, "/status"))));
    }
    let texts = json::texts(response, "/warnings").into_iter().take(MAX_WARNINGS);
    let warnings = texts.map(str::to_owned).collect();
    let patch = match (json::text(response, "/patch"), json::text(response, "/patchType")) {
        ("", _) => None,
        (text, "JSONPatch") => {
            let text = STANDARD.decode(text).map_err(|error| format!("the patch: {error}"))?;
            let patch =
                serde_json::from_slice(&text).map_err(|error| format!("the patch: {error}"))?;
            Some(patch)
        }
        (_, kind) => return Err(format!("invalid patchType {kind:?}, only JSONPatch is allowed")),
    };
    Ok(Ok(Verdict { patch, warnings }))
}

/// A webhook's no, in the real server's words.
fn refusal(webhook: &str, status: Option<&Value>) -> Status {
    const REASONS: [&str; 8] = [
        "AlreadyExists",
        "BadRequest",
        "Conflict",
        "Forbidden",
        "Invalid",
        "NotFound",
        "TooManyRequests",
        "Unauthorized",
    ];
    let text = |field| status.map_or("", |status| json::text(status, field));
    let denied = format!("admission webhook {webhook:?} denied the request");
    let cut = |text: &str| text.chars().take(MAX_MESSAGE_CHARACTERS).collect::<String>();
    let message = match (text("/message"), text("/reason")) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {}", cut(reason)),
        (message, _) => format!("{denied}: {}", cut(message)),
    };
    let code = status.and_then(|status| json::integer(status, "/code")).unwrap_or(0);
    let code = u16::try_from(code).ok().filter(|code| (400..600).contains(code)).unwrap_or(400);
    let reason = REASONS.into_iter().find(|one| *one == text("/reason")).unwrap_or_default();
    Status::failure(code, reason, message)
}
