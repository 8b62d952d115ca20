//! The field table of `crates/schema`, made from the API definitions that packages carry.
//!
//! Three sources, none of which has everything:
//!
//! - the JSON schema of Kubernetes 1.33 (`_definitions.json` of the Python package
//!   `kubernetes-validate`): names in JSON, types, list types and keys, patch strategies, what is
//!   required;
//! - the Rust sources of the crate `k8s-pb`, which prost made of the `generated.proto` files:
//!   numbers and widths, and in the comments the defaults. A newer version does, since numbers
//!   are never used again;
//! - [`go`]: what only the Go types say.

mod go;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{process, source};

/// Where the table goes.
const TABLE: &str = "crates/schema/src/fields.txt";

/// What stands above the table.
const HEADING: &str = "\
# Messages and fields of the Kubernetes API, version 1.33, without their descriptions.
# Copyright The Kubernetes Authors, Apache License 2.0. Made by `cargo xtask fields`.
#
# MESSAGE [atomic] [typed] [json] [kind=APIVERSION/KIND …]
#  FIELD NUMBER TYPE [required] [explicit|embedded] [atomic|set|map=KEY,…]
#        [merge[=KEY]] [replace] [retainKeys] [default=JSON]
";

/// The kinds that are served, and those of request bodies and answers.
const KINDS: &[&str] = &[
    "v1/Binding",
    "v1/ConfigMap",
    "v1/DeleteOptions",
    "v1/Endpoints",
    "v1/Event",
    "v1/LimitRange",
    "v1/Namespace",
    "v1/Node",
    "v1/PersistentVolume",
    "v1/PersistentVolumeClaim",
    "v1/Pod",
    "v1/ReplicationController",
    "v1/ResourceQuota",
    "v1/Secret",
    "v1/Service",
    "v1/ServiceAccount",
    "v1/Status",
    "admissionregistration.k8s.io/v1/MutatingWebhookConfiguration",
    "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy",
    "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicyBinding",
    "admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration",
    "apiextensions.k8s.io/v1/CustomResourceDefinition",
    "apps/v1/ControllerRevision",
    "apps/v1/DaemonSet",
    "apps/v1/Deployment",
    "apps/v1/ReplicaSet",
    "apps/v1/StatefulSet",
    "authentication.k8s.io/v1/SelfSubjectReview",
    "authentication.k8s.io/v1/TokenRequest",
    "authentication.k8s.io/v1/TokenReview",
    "authorization.k8s.io/v1/LocalSubjectAccessReview",
    "authorization.k8s.io/v1/SelfSubjectAccessReview",
    "authorization.k8s.io/v1/SelfSubjectRulesReview",
    "authorization.k8s.io/v1/SubjectAccessReview",
    "autoscaling/v1/Scale",
    "batch/v1/CronJob",
    "batch/v1/Job",
    "coordination.k8s.io/v1/Lease",
    "discovery.k8s.io/v1/EndpointSlice",
    "events.k8s.io/v1/Event",
    "networking.k8s.io/v1/IPAddress",
    "networking.k8s.io/v1/Ingress",
    "networking.k8s.io/v1/IngressClass",
    "networking.k8s.io/v1/NetworkPolicy",
    "networking.k8s.io/v1/ServiceCIDR",
    "policy/v1/Eviction",
    "policy/v1/PodDisruptionBudget",
    "rbac.authorization.k8s.io/v1/ClusterRole",
    "rbac.authorization.k8s.io/v1/ClusterRoleBinding",
    "rbac.authorization.k8s.io/v1/Role",
    "rbac.authorization.k8s.io/v1/RoleBinding",
    "scheduling.k8s.io/v1/PriorityClass",
    "storage.k8s.io/v1/CSIDriver",
    "storage.k8s.io/v1/StorageClass",
];

macro_rules! apiextensions {
    () => {
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1."
    };
}

/// Messages within messages that JSON does not show, at most.
const MAX_EMBEDDED: usize = 2;

/// Definitions that are values of their own, not messages with fields.
const VALUES: &[(&str, &str)] = &[
    ("io.k8s.apimachinery.pkg.api.resource.Quantity", "quantity"),
    ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", "intOrString"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Time", "time"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime", "microTime"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1", "raw"),
    ("io.k8s.apimachinery.pkg.runtime.RawExtension", "raw"),
    (concat!(apiextensions!(), "CustomResourceSubresourceStatus"), "raw"),
    (concat!(apiextensions!(), "JSON"), "raw"),
    (concat!(apiextensions!(), "JSONSchemaPropsOrArray"), "raw"),
    (concat!(apiextensions!(), "JSONSchemaPropsOrBool"), "raw"),
    (concat!(apiextensions!(), "JSONSchemaPropsOrStringArray"), "raw"),
];

/// Kinds that are JSON here and nothing else: their free JSON has messages of its own in protobuf.
const JSON_ONLY: &[&str] = &["apiextensions.k8s.io/v1/CustomResourceDefinition"];

/// The command: `cargo xtask fields K8S-PB-SOURCES DEFINITIONS`.
///
/// # Errors
/// When a source cannot be read, or the two contradict each other.
pub fn run(arguments: &[String]) -> Result<()> {
    let [sources, definitions] = arguments else {
        bail!(
            "name the `src` directory of the crate k8s-pb and the file \
             kubernetes-json-schema/v1.33.0-local/_definitions.json of the Python package \
             kubernetes-validate"
        );
    };
    let messages = wire_messages(Path::new(sources))?;
    let text = std::fs::read_to_string(definitions).with_context(|| definitions.clone())?;
    let definitions: Value = serde_json::from_str(&text).context("the definitions")?;
    let table = table(&messages, &definitions["$defs"])?;
    std::fs::write(process::root().join(TABLE), table)?;
    println!("{TABLE} is written: review the diff");
    Ok(())
}

/// A field as `k8s-pb` has it.
#[derive(Debug, Default)]
struct WireField {
    number: String,
    /// `string`, `int32`, `message`, …
    kind: String,
    /// The Rust type, for a message within its module.
    rust_type: String,
    default: Option<String>,
}

/// Fields of each message, by the name without underscores: prost's names are in snake case.
type WireMessages = BTreeMap<String, BTreeMap<String, WireField>>;

/// Reads all messages below a directory of prost's output.
fn wire_messages(sources: &Path) -> Result<WireMessages> {
    let mut messages = WireMessages::new();
    for path in source::files(sources, ".rs")? {
        let inside = path.strip_prefix(sources)?;
        let module = inside.parent().unwrap_or(inside).to_string_lossy();
        let module = module.replace('/', ".").replace('_', "-");
        let mut message = String::new();
        let mut field = WireField::default();
        for line in std::fs::read_to_string(&path)?.lines() {
            let line = line.trim();
            if let Some(name) = line.strip_prefix("pub struct ") {
                message = format!("io.k8s.{module}.{}", name.trim_end_matches([' ', '{']));
                messages.entry(message.clone()).or_default();
                field = WireField::default();
            } else if let Some(default) = line.strip_prefix("/// +default=") {
                // A constant of Go is named, not written out.
                field.default = Some(default.to_owned()).filter(|text| !text.starts_with("ref("));
            } else if let Some(attribute) = line.strip_prefix("#[prost(") {
                let (_, number) = attribute.split_once("tag = \"").context("a field's number")?;
                field.number = number.split('"').next().unwrap_or_default().to_owned();
                field.kind = attribute.split([',', ' ']).next().unwrap_or_default().to_owned();
            } else if let Some((name, rust_type)) =
                line.strip_prefix("pub ").and_then(|rest| rest.split_once(':'))
                && !field.number.is_empty()
            {
                let inner = rust_type.rsplit('<').next().unwrap_or_default();
                field.rust_type = inner.trim_end_matches(['>', ',']).to_owned();
                let name = name.trim_start_matches("r#").replace('_', "");
                let fields = messages.get_mut(&message).context("a field of no message")?;
                fields.insert(name, std::mem::take(&mut field));
            }
        }
    }
    Ok(messages)
}

/// The whole table: the messages that the kinds reach, in the order of their names.
fn table(wire: &WireMessages, definitions: &Value) -> Result<String> {
    // Names in JSON have their own spelling of abbreviations, and so have messages.
    let wire = Wire {
        messages: wire.iter().map(|(name, fields)| (name.to_lowercase(), fields)).collect(),
    };
    let mut waiting: Vec<String> = Vec::new();
    let mut kinds: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for kind in KINDS {
        let name = definition_of(definitions, kind)
            .with_context(|| format!("the schema does not have {kind}"))?;
        kinds.entry(name.clone()).or_default().push(kind);
        waiting.push(name);
    }
    let mut rows = BTreeMap::new();
    while let Some(name) = waiting.pop() {
        if rows.contains_key(&short(&name)) {
            continue;
        }
        let (row, reached) = message(&wire, definitions, &name, kinds.get(&name))?;
        rows.insert(short(&name), row);
        waiting.extend(reached);
    }
    go::check(&rows.keys().cloned().collect())?;
    Ok(std::iter::once(HEADING.to_owned()).chain(rows.into_values()).collect())
}

struct Wire<'a> {
    messages: BTreeMap<String, &'a BTreeMap<String, WireField>>,
}

impl Wire<'_> {
    /// The number path and the field of a name in JSON: of the message itself, or of one that Go
    /// embeds and JSON shows in its place.
    fn field(&self, message: &str, name: &str) -> Result<(String, &WireField)> {
        let key = name.trim_start_matches('$').replace('-', "").to_lowercase();
        let fields = self.messages.get(&message.to_lowercase());
        let fields = fields.with_context(|| format!("k8s-pb does not have {message}"))?;
        if let Some(field) = fields.get(&key) {
            return Ok((field.number.clone(), field));
        }
        let package = message.rsplit_once('.').map_or("", |(package, _)| package);
        self.embedded(package, fields, &key, MAX_EMBEDDED)
            .with_context(|| format!("k8s-pb does not have {name} of {message}"))
    }

    /// The number path and the field of a name that an embedded message has.
    fn embedded<'b>(
        &'b self,
        package: &str,
        fields: &'b BTreeMap<String, WireField>,
        key: &str,
        depth: usize,
    ) -> Option<(String, &'b WireField)> {
        let depth = depth.checked_sub(1)?;
        let messages = fields
            .values()
            .filter(|field| field.kind == "message" && !field.rust_type.contains(':'))
            .filter_map(|field| {
                let name = format!("{package}.{}", field.rust_type).to_lowercase();
                Some((&field.number, *self.messages.get(&name)?))
            });
        let messages: Vec<_> = messages.collect();
        let direct = messages.iter().find_map(|(number, inner)| {
            inner.get(key).map(|field| (format!("{number}.{}", field.number), field))
        });
        direct.or_else(|| {
            messages.iter().find_map(|(number, inner)| {
                let (path, field) = self.embedded(package, inner, key, depth)?;
                Some((format!("{number}.{path}"), field))
            })
        })
    }
}

/// The name of the definition that a kind has.
fn definition_of(definitions: &Value, kind: &str) -> Option<String> {
    let is_kind = |one: &Value| {
        let of = |key: &str| one[key].as_str().unwrap_or_default();
        let group = of("group");
        let separator = if group.is_empty() { "" } else { "/" };
        format!("{group}{separator}{}/{}", of("version"), of("kind")) == kind
    };
    let named = definitions.as_object()?.iter();
    named.into_iter().find_map(|(name, definition)| {
        let kinds = definition["x-kubernetes-group-version-kind"].as_array()?;
        kinds.iter().any(is_kind).then(|| name.clone())
    })
}

/// The rows of one message, and the messages that its fields are of.
fn message(
    wire: &Wire<'_>,
    definitions: &Value,
    name: &str,
    kinds: Option<&Vec<&str>>,
) -> Result<(String, BTreeSet<String>)> {
    let definition = &definitions[name];
    let mut row = short(name);
    if definition["x-kubernetes-map-type"] == "atomic" {
        row.push_str(" atomic");
    }
    // `apiVersion` and `kind` of an object stand beside its message in protobuf, not in it.
    let is_typed = definition["x-kubernetes-group-version-kind"].is_array();
    if is_typed {
        row.push_str(" typed");
    }
    if kinds.into_iter().flatten().any(|kind| JSON_ONLY.contains(kind)) {
        row.push_str(" json");
    }
    for kind in kinds.into_iter().flatten() {
        write!(row, " kind={kind}")?;
    }
    row.push('\n');
    let mut reached = BTreeSet::new();
    let required = definition["required"].as_array().cloned().unwrap_or_default();
    let properties = definition["properties"].as_object();
    for (field, schema) in properties.with_context(|| format!("{name} has no fields"))? {
        if is_typed && matches!(field.as_str(), "apiVersion" | "kind") {
            continue;
        }
        let (number, found) = wire.field(name, field)?;
        let described = type_of(schema, found, &mut reached)
            .with_context(|| format!("the type of {field} of {name}"))?;
        write!(row, " {field} {number} {described}")?;
        if required.iter().any(|one| one == field) {
            row.push_str(" required");
        }
        let is_message = schema["$ref"].is_string()
            && value_of(schema) != Some("raw")
            && found.kind == "message";
        row.push_str(go::marks(&short(name), field, is_message));
        row.push_str(&merging(schema));
        if let Some(default) = &found.default {
            serde_json::from_str::<Value>(default).with_context(|| default.clone())?;
            write!(row, " default={default}")?;
        }
        row.push('\n');
    }
    Ok((row, reached))
}

/// The type of a field: `string`, `[TYPE]`, `{TYPE}` or a message.
fn type_of(schema: &Value, wire: &WireField, reached: &mut BTreeSet<String>) -> Result<String> {
    if let Some(value) = value_of(schema) {
        return Ok(value.to_owned());
    }
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.trim_start_matches("#/$defs/");
        reached.insert(name.to_owned());
        return Ok(short(name));
    }
    let kind = schema["type"].as_str().or_else(|| schema["type"][0].as_str());
    Ok(match kind.context("no type")? {
        "array" => format!("[{}]", type_of(&schema["items"], wire, reached)?),
        "object" if schema["additionalProperties"].is_object() => {
            format!("{{{}}}", type_of(&schema["additionalProperties"], wire, reached)?)
        }
        "string" if schema["format"] == "byte" => "bytes".to_owned(),
        "string" => "string".to_owned(),
        "boolean" => "bool".to_owned(),
        "integer" | "number" => match schema["format"].as_str() {
            Some(format @ ("int32" | "int64" | "double")) => format.to_owned(),
            _ => wire.kind.clone(),
        },
        other => bail!("{other} is not known"),
    })
}

/// What a schema refers to, when that is a value of its own.
fn value_of(schema: &Value) -> Option<&'static str> {
    let name = schema["$ref"].as_str()?.trim_start_matches("#/$defs/");
    VALUES.iter().find(|(value, _)| *value == name).map(|(_, value)| *value)
}

/// How lists and maps are merged by server-side apply and by strategic merge patches.
fn merging(schema: &Value) -> String {
    let mut text = String::new();
    let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
    let keys: Vec<&str> = keys.filter_map(Value::as_str).collect();
    match schema["x-kubernetes-list-type"].as_str() {
        Some("map") => text.push_str(&format!(" map={}", keys.join(","))),
        Some("set") => text.push_str(" set"),
        Some("atomic") => text.push_str(" atomic"),
        _ if schema["x-kubernetes-map-type"] == "atomic" => text.push_str(" atomic"),
        _ => {}
    }
    let strategy = schema["x-kubernetes-patch-strategy"].as_str().unwrap_or_default();
    for part in strategy.split(',').filter(|part| !part.is_empty()) {
        match (part, schema["x-kubernetes-patch-merge-key"].as_str()) {
            ("merge", Some(key)) => text.push_str(&format!(" merge={key}")),
            (part, _) => text.push_str(&format!(" {part}")),
        }
    }
    text
}

/// The name of a message in the table: `core.v1.Pod`, `meta.v1.ObjectMeta`.
fn short(name: &str) -> String {
    name.trim_start_matches("io.k8s.api.")
        .replace("io.k8s.apimachinery.pkg.apis.", "")
        .replace("io.k8s.apiextensions-apiserver.pkg.apis.", "")
}
