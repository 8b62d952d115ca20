//! The descriptor row of one resource: all that differs between kinds. Handlers are written once
//! over rows, so that no kind drifts away from the others.

use std::fmt;

use serde_json::Value;

use crate::conversion::Converter;
use crate::definitions::Custom;
use crate::names::NameRule;
use crate::table::Column;
use crate::validate::FieldErrors;

/// One resource: what the API serves and how its objects behave.
pub struct Resource {
    /// The API group; empty for core.
    pub group: &'static str,
    /// The version; the only one that is served.
    pub version: &'static str,
    /// The kind, such as `Pod`.
    pub kind: &'static str,
    /// The plural in URLs, such as `pods`.
    pub plural: &'static str,
    /// The singular that kubectl accepts.
    pub singular: &'static str,
    /// The short names that kubectl accepts.
    pub short_names: &'static [&'static str],
    /// The categories, such as `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// The verbs that discovery names.
    pub verbs: &'static [&'static str],
    /// The subresources that are served.
    pub subresources: &'static [Subresource],
    /// Where objects are kept: `deployments.apps`. Two rows share a storage when they are two
    /// versions of one object, as the two Event kinds are.
    pub storage: &'static str,
    /// The columns of its Tables.
    pub columns: &'static [Column],
    /// JSON pointers of the fields that field selectors may name, beyond name and namespace.
    pub selectable_fields: &'static [&'static str],
    pub(crate) name_rule: NameRule,
    /// Whether `metadata.generation` counts changes of the spec.
    pub(crate) has_generation: bool,
    /// Whether PUT on an absent object makes it.
    pub create_on_update: bool,
    /// Whether an update may leave `resourceVersion` out.
    pub(crate) unconditional_update: bool,
    /// Whether DELETE answers with the object rather than with a `Status`.
    pub(crate) returns_deleted: bool,
    /// Whether `metadata.deletionTimestamp` may lie ahead (pods).
    pub(crate) graceful: bool,
    /// Whether a creator may set the status, as a node's agent does when it registers.
    pub(crate) keeps_status_on_create: bool,
    /// Whether labels and annotations may be changed through `status`.
    pub(crate) metadata_through_status: bool,
    /// A warning for every write: nothing acts on these objects yet.
    pub(crate) notice: Option<&'static str>,
    /// What a definition brought, for the rows that one made.
    pub custom: Option<&'static Custom>,
    /// Fills in defaults; runs on creates and updates.
    pub(crate) default: fn(&mut Value),
    /// Resets what a creator may not decide (beyond the status).
    pub(crate) prepare_create: fn(&mut Value),
    /// Carries over what an update may not change: `(new, old)`.
    pub(crate) prepare_update: fn(&mut Value, &Value),
    /// Checks a new object, and its change when the old one is given.
    pub(crate) validate: fn(&Value, Option<&Value>, &mut FieldErrors),
}

/// The subresources that the API knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subresource {
    /// `status`: the part that controllers and node runtimes write.
    Status,
    /// `scale`: `autoscaling/v1 Scale`.
    Scale,
    /// `binding` of a pod to a node.
    Binding,
    /// `eviction` of a pod.
    Eviction,
    /// `ephemeralcontainers` of a pod: containers that are added to look into it.
    EphemeralContainers,
    /// `finalize` of a namespace.
    Finalize,
    /// `log` of a container; served by the shell.
    Log,
    /// `attach` to a container; served by the shell.
    Attach,
    /// `exec` in a container; served by the shell.
    Exec,
    /// `portforward` to a pod; served by the shell.
    PortForward,
    /// `proxy` of a pod, a Service or a node: HTTP that is sent on by the shell.
    Proxy,
    /// `token` of a ServiceAccount (TokenRequest); signed by the shell.
    Token,
}

impl Subresource {
    /// The name in URLs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Binding => "binding",
            Self::Eviction => "eviction",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Finalize => "finalize",
            Self::Log => "log",
            Self::Attach => "attach",
            Self::Exec => "exec",
            Self::PortForward => "portforward",
            Self::Proxy => "proxy",
            Self::Token => "token",
        }
    }
}

impl Resource {
    /// The values that most rows share.
    pub(crate) const BASE: Self = Self {
        group: "",
        version: "v1",
        kind: "",
        plural: "",
        singular: "",
        short_names: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL_VERBS,
        subresources: &[],
        storage: "",
        columns: &[],
        selectable_fields: &[],
        name_rule: NameRule::Subdomain,
        has_generation: false,
        create_on_update: false,
        unconditional_update: true,
        returns_deleted: false,
        graceful: false,
        keeps_status_on_create: false,
        metadata_through_status: false,
        notice: None,
        custom: None,
        default: |_| {},
        prepare_create: |_| {},
        prepare_update: |_, _| {},
        validate: |_, _, _| {},
    };

    /// Group and version as `apiVersion` writes them: `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The fields of the kind. A test holds every row to having them.
    pub fn message(&self) -> Option<&'static schema::Message> {
        if let Some(custom) = self.custom {
            return Some(&custom.message);
        }
        schema::table().kind(&self.api_version(), self.kind)
    }

    /// The webhook that makes versions of one another, where one does.
    pub fn converter(&self) -> Option<&'static Converter> {
        self.custom.and_then(|custom| custom.converter)
    }

    /// Whether objects have a form in protobuf.
    pub fn has_protobuf(&self) -> bool {
        self.custom.is_none() && self.message().is_some_and(|message| !message.json_only)
    }

    /// Plural and group as errors write them: `pods`, `deployments.apps`.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// The kind of a list.
    pub fn list_kind(&self) -> String {
        match self.custom {
            Some(custom) => custom.list_kind.to_owned(),
            None => format!("{}List", self.kind),
        }
    }

    /// The subresource of a URL, when the row serves it.
    pub fn subresource(&self, name: &str) -> Option<Subresource> {
        self.subresources.iter().copied().find(|subresource| subresource.name() == name)
    }

    /// Whether the row serves a verb.
    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// Fills in what is absent.
    pub(crate) fn fill(&self, value: &mut Value) {
        match self.custom {
            Some(custom) => custom.fill(value),
            None => (self.default)(value),
        }
    }

    /// Checks an object that is to be stored, and its change when the old one is given.
    pub(crate) fn check(&self, value: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
        match self.custom {
            Some(custom) => custom.check(value, old, errors),
            None => (self.validate)(value, old, errors),
        }
    }

    pub(crate) fn has(&self, subresource: Subresource) -> bool {
        self.subresources.contains(&subresource)
    }
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.group_resource())
    }
}

impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        (self.group, self.version, self.plural) == (other.group, other.version, other.plural)
    }
}

impl Eq for Resource {}

/// The verbs of an ordinary resource, in the order of the real server.
pub(crate) const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
