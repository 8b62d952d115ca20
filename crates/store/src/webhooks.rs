//! Admission webhooks: which of them are asked about a write, what they are told, and what their
//! answers mean. The shell sends and waits.
//!
//! Source: kubernetes.io, "Dynamic Admission Control"; admission.k8s.io/v1 AdmissionReview.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json as tree};

use crate::authorize::Subject;
use crate::kinds::apps::selects_labels;
use crate::kinds::core::NAMESPACE;
use crate::kinds::webhook::{MUTATING, VALIDATING};
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
}

impl Operation {
    /// As rules and reviews write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }
}

/// A write as webhooks see it.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The row of the object.
    pub resource: &'static Resource,
    /// `status`, where only that is written.
    pub subresource: Option<Subresource>,
    /// What happens.
    pub operation: Operation,
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

/// A webhook that is asked.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// Its name.
    pub name: String,
    /// Where it answers.
    pub place: Place,
    /// The authorities that may sign its certificate, PEM.
    pub authorities: Vec<u8>,
    /// How long it may take, seconds.
    pub timeout_seconds: u64,
    /// Whether a write that it cannot be asked about is refused.
    pub fails_closed: bool,
    /// Whether it is asked again when a later one changed the object.
    pub is_asked_again: bool,
    object_selector: Value,
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
    /// Whether a webhook may have to be asked about a write: only then it takes the long way.
    pub fn concerns_webhooks(&self, request: &Request) -> bool {
        let is_seen = matches!(request.subresource, None | Some(Subresource::Status));
        is_seen
            && ![&MUTATING, &VALIDATING].contains(&request.resource)
            && [&MUTATING, &VALIDATING].iter().any(|kind| {
                self.configurations(kind).any(|webhook| {
                    let rules = json::items(webhook, "/rules");
                    rules.iter().any(|rule| names(rule, request.resource, request.subresource))
                })
            })
            && !matches!(request.action, Action::DeleteCollection(..))
    }

    /// The webhooks of a phase that a write is for, in their order. Their object selectors are
    /// asked by [`Webhook::selects`], since earlier ones may change labels.
    pub fn webhooks(&self, phase: Phase, proposal: &Proposal) -> Vec<Webhook> {
        let kind = match phase {
            Phase::Mutating => &MUTATING,
            Phase::Validating => &VALIDATING,
        };
        self.configurations(kind)
            .filter(|webhook| {
                json::items(webhook, "/rules").iter().any(|rule| {
                    let operations = json::texts(rule, "/operations");
                    let is_named = |one: &&str| *one == "*" || *one == proposal.operation.name();
                    operations.iter().any(is_named)
                        && names(rule, proposal.resource, proposal.subresource)
                })
            })
            .filter(|webhook| self.is_in_namespaces(webhook, proposal))
            .map(Webhook::read)
            .collect()
    }

    fn configurations(&self, kind: &'static Resource) -> impl Iterator<Item = &Value> {
        let shelf = self.shelf(kind).into_iter();
        let objects = shelf.flat_map(|shelf| shelf.objects.values());
        objects.flat_map(|object| json::items(&object.value, "/webhooks"))
    }

    /// Whether a webhook's `namespaceSelector` takes the object's namespace; a Namespace lies in
    /// itself, and what lies in none is always taken.
    fn is_in_namespaces(&self, webhook: &Value, proposal: &Proposal) -> bool {
        let Some(selector) = json::at(webhook, "/namespaceSelector") else { return true };
        let old = proposal.old.as_ref().map(|old| &old.value);
        let Some(shown) = proposal.object.as_ref().or(old) else { return true };
        if proposal.resource == &NAMESPACE {
            return selects_labels(selector, json::at(shown, "/metadata/labels"));
        }
        if !proposal.resource.namespaced {
            return true;
        }
        let namespace = self.get(&NAMESPACE, "", json::text(shown, "/metadata/namespace"));
        let labels =
            namespace.as_ref().ok().and_then(|one| json::at(&one.value, "/metadata/labels"));
        selects_labels(selector, labels)
    }
}

/// What of a configuration is not honoured: who relies on it must know.
pub(crate) fn warnings(resource: &Resource, configuration: &Value) -> Vec<String> {
    if ![&MUTATING, &VALIDATING].contains(&resource) {
        return Vec::new();
    }
    let mut warnings = Vec::new();
    for (index, webhook) in json::items(configuration, "/webhooks").iter().enumerate() {
        let rules = json::items(webhook, "/rules");
        let connects =
            rules.iter().any(|rule| json::texts(rule, "/operations").contains(&"CONNECT"));
        let mut parts = rules.iter().flat_map(|rule| json::texts(rule, "/resources"));
        let part = parts.find(|listed| {
            listed.split_once('/').is_some_and(|(_, part)| !matches!(part, "status" | "*"))
        });
        let named = part.or(connects.then_some("CONNECT"));
        warnings.extend(named.map(|named| {
            format!(
                "webhooks[{index}].rules: {named}: this server asks webhooks about objects and \
                 their status, not about other subresources or connections"
            )
        }));
    }
    warnings
}

/// Whether a rule names a resource.
fn names(rule: &Value, resource: &Resource, subresource: Option<Subresource>) -> bool {
    let lists = |field: &str, wanted: &str| {
        json::texts(rule, field).iter().any(|listed| *listed == "*" || *listed == wanted)
    };
    let in_scope = match json::text(rule, "/scope") {
        "Cluster" => !resource.namespaced,
        "Namespaced" => resource.namespaced,
        _ => true,
    };
    let part = subresource.map_or("", Subresource::name);
    let is_named = json::texts(rule, "/resources").iter().any(|listed| {
        let (parent, listed_part) = listed.split_once('/').unwrap_or((listed, ""));
        (parent == "*" || parent == resource.plural)
            && (listed_part == part || (listed_part == "*" && listed.contains('/')))
    });
    in_scope
        && is_named
        && lists("/apiGroups", resource.group)
        && lists("/apiVersions", resource.version)
}

impl Webhook {
    fn read(webhook: &Value) -> Self {
        let text = |field: &str| json::text(webhook, field).to_owned();
        let place = match json::at(webhook, "/clientConfig/service") {
            None => Place::Url(text("/clientConfig/url")),
            Some(_) => Place::Service {
                namespace: text("/clientConfig/service/namespace"),
                name: text("/clientConfig/service/name"),
                path: text("/clientConfig/service/path"),
                port: json::integer(webhook, "/clientConfig/service/port")
                    .and_then(|port| u16::try_from(port).ok())
                    .unwrap_or(443),
            },
        };
        let seconds = json::integer(webhook, "/timeoutSeconds").unwrap_or(10);
        Self {
            name: text("/name"),
            place,
            authorities: STANDARD.decode(text("/clientConfig/caBundle")).unwrap_or_default(),
            timeout_seconds: u64::try_from(seconds).unwrap_or(10),
            fails_closed: json::text(webhook, "/failurePolicy") != "Ignore",
            is_asked_again: json::text(webhook, "/reinvocationPolicy") == "IfNeeded",
            object_selector: json::at(webhook, "/objectSelector").cloned().unwrap_or(tree!({})),
        }
    }

    /// Whether its `objectSelector` takes the object as it was or as it shall be.
    pub fn selects(&self, proposal: &Proposal) -> bool {
        let old = proposal.old.as_ref().map(|old| &old.value);
        [proposal.object.as_ref(), old].into_iter().flatten().any(|object| {
            selects_labels(&self.object_selector, json::at(object, "/metadata/labels"))
        })
    }
}

impl Proposal {
    /// The AdmissionReview that asks about it.
    pub fn review(&self, uid: &str, subject: Option<Subject<'_>>, dry_run: bool) -> Value {
        let resource = self.resource;
        let kind = tree!({
            "group": resource.group, "version": resource.version, "kind": resource.kind,
        });
        let path = tree!({
            "group": resource.group, "version": resource.version, "resource": resource.plural,
        });
        let old = self.old.as_ref().map(|old| old.to_value());
        let shown = self.object.as_ref().or(old.as_ref());
        let field = |field| shown.map_or("", |object| json::text(object, field));
        let namespace = match resource == &NAMESPACE {
            true => field("/metadata/name"),
            false => field("/metadata/namespace"),
        };
        let user = subject.map_or(
            tree!({}),
            |subject| tree!({"username": subject.name, "groups": subject.groups}),
        );
        let options = match self.operation {
            Operation::Create => "CreateOptions",
            Operation::Update => "UpdateOptions",
            Operation::Delete => "DeleteOptions",
        };
        let mut request = tree!({
            "uid": uid,
            "kind": kind,
            "resource": path,
            "requestKind": kind,
            "requestResource": path,
            "name": field("/metadata/name"),
            "namespace": namespace,
            "operation": self.operation.name(),
            "userInfo": user,
            "object": self.object,
            "oldObject": old,
            "dryRun": dry_run,
            "options": {"kind": options, "apiVersion": "meta.k8s.io/v1"},
        });
        if let Some(subresource) = self.subresource {
            json::set(&mut request, "/subResource", subresource.name());
            json::set(&mut request, "/requestSubResource", subresource.name());
        }
        tree!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request})
    }

    /// Changes the object as a webhook said.
    ///
    /// # Errors
    /// Why the patch cannot be applied.
    pub fn apply(&mut self, webhook: &str, changes: &Value) -> Result<(), Status> {
        let Some(object) = &self.object else { return Ok(()) };
        let patched = patch::apply(self.resource, PatchKind::Json, object, changes);
        let fault = |why: &dyn std::fmt::Display| {
            Status::internal(format!("the patch of webhook {webhook:?} does not apply: {why}"))
        };
        let patched = patched.map_err(|status| fault(&status.message))?;
        crate::write::check_size(&patched).map_err(|status| fault(&status.message))?;
        self.object = Some(patched);
        Ok(())
    }
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
