//! Messages of the table as schemas of OpenAPI, versions 2 and 3, under the names that the real
//! server publishes (kubernetes.io, "The Kubernetes API", "OpenAPI"). Types, names, defaults and how
//! lists merge are told; descriptions are not in the table.

mod gnostic;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

pub use gnostic::{definition, document, path};

use crate::{Field, Message, Relation, Type, table};

/// A version of OpenAPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Swagger 2.0: what kubectl before 1.27 reads.
    Two,
    /// OpenAPI 3.0.
    Three,
}

/// The extension that says which kind a schema or an operation is about.
pub const KIND: &str = "x-kubernetes-group-version-kind";

/// What a document defines and schemas refer to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Definition {
    /// A message of the table.
    Message(&'static Message),
    /// A type that JSON writes as a scalar.
    Scalar(Scalar),
}

/// A type that has a definition of its own, and is a scalar in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// `resource.Quantity`.
    Quantity,
    /// `intstr.IntOrString`.
    IntOrString,
    /// A time with seconds.
    Time,
    /// A time with microseconds.
    MicroTime,
}

/// The name of a message: `io.k8s.api.apps.v1.Deployment`.
pub fn name(message: &Message) -> String {
    let package = match message.name.split('.').next().unwrap_or_default() {
        "meta" => "io.k8s.apimachinery.pkg.apis",
        "apiextensions" => "io.k8s.apiextensions-apiserver.pkg.apis",
        _ => "io.k8s.api",
    };
    format!("{package}.{}", message.name)
}

/// The messages, and all that they are made of, by name.
pub fn definitions(
    messages: impl IntoIterator<Item = &'static Message>,
) -> BTreeMap<String, Definition> {
    let mut found = BTreeMap::new();
    let mut waiting: Vec<&'static Message> = messages.into_iter().collect();
    while let Some(message) = waiting.pop() {
        if found.insert(name(message), Definition::Message(message)).is_some() {
            continue;
        }
        for field in &message.fields {
            let kind = innermost(&field.kind);
            if let Some(scalar) = Scalar::of(kind) {
                found.insert(scalar.name().to_owned(), Definition::Scalar(scalar));
            }
            waiting.extend(table().message(kind));
        }
    }
    found
}

/// What a list or a map is made of in the end.
fn innermost(kind: &Type) -> &Type {
    match kind {
        Type::List(item) | Type::Map(item) => innermost(item),
        other => other,
    }
}

impl Version {
    /// A reference to a definition.
    pub fn reference(self, name: &str) -> Value {
        let place = match self {
            Self::Two => "definitions",
            Self::Three => "components/schemas",
        };
        json!({"$ref": format!("#/{place}/{name}")})
    }

    fn of_type(self, kind: &Type) -> Value {
        if let Some(scalar) = Scalar::of(kind) {
            return self.reference(scalar.name());
        }
        match kind {
            Type::Bool => json!({"type": "boolean"}),
            Type::Int32 => json!({"type": "integer", "format": "int32"}),
            Type::Int64 => json!({"type": "integer", "format": "int64"}),
            Type::Double => json!({"type": "number", "format": "double"}),
            Type::Bytes => json!({"type": "string", "format": "byte"}),
            Type::List(item) => json!({"type": "array", "items": self.of_type(item)}),
            Type::Map(item) => {
                json!({"type": "object", "additionalProperties": self.of_type(item)})
            }
            Type::Message(_) | Type::Own(_) => match table().message(kind) {
                Some(message) => self.reference(&name(message)),
                None => json!({}),
            },
            // Anything may stand there. An empty schema would be none to `kubectl explain`.
            Type::Raw => json!({"x-kubernetes-preserve-unknown-fields": true}),
            _ => json!({"type": "string"}),
        }
    }

    fn of_field(self, field: &Field) -> Value {
        let mut more = extensions(field);
        if let (Self::Three, Some(default)) = (self, &field.default) {
            more.insert("default".to_owned(), default.clone());
        }
        let mut schema = match self.of_type(&field.kind) {
            Value::Object(schema) => schema,
            _ => Map::new(),
        };
        // Version 3 reads nothing that stands beside a reference.
        if self == Self::Three && schema.contains_key("$ref") && !more.is_empty() {
            schema = Map::from_iter([("allOf".to_owned(), json!([schema]))]);
        }
        schema.append(&mut more);
        schema.into()
    }
}

impl Definition {
    /// Its schema.
    pub fn schema(self, version: Version) -> Value {
        match self {
            Self::Message(message) => of_message(message, version),
            Self::Scalar(scalar) => scalar.schema(version),
        }
    }
}

fn of_message(message: &Message, version: Version) -> Value {
    let mut properties = Map::new();
    if message.typed {
        for name in ["apiVersion", "kind"] {
            properties.insert(name.to_owned(), json!({"type": "string"}));
        }
    }
    let fields = message.fields.iter();
    properties.extend(fields.map(|field| (field.name.to_owned(), version.of_field(field))));
    let required: Vec<&str> =
        message.fields.iter().filter(|field| field.required).map(|field| field.name).collect();
    let mut schema = Map::from_iter([("type".to_owned(), "object".into())]);
    let mut add = |name: &str, value: Value| schema.insert(name.to_owned(), value);
    if !properties.is_empty() {
        add("properties", properties.into());
    }
    if !required.is_empty() {
        add("required", required.into());
    }
    if message.atomic {
        add("x-kubernetes-map-type", "atomic".into());
    }
    if let Some((group_version, kind)) = message.kind.and_then(|kind| kind.rsplit_once('/')) {
        let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
        add(KIND, json!([{"group": group, "version": version, "kind": kind}]));
    }
    schema.into()
}

/// How a field is merged, by the names that clients know.
fn extensions(field: &Field) -> Map<String, Value> {
    let mut found = Map::new();
    let mut add = |name: &str, value: Value| found.insert(format!("x-kubernetes-{name}"), value);
    match (&field.kind, &field.relation) {
        (Type::List(_), Relation::Keys(keys)) => {
            add("list-type", "map".into());
            add("list-map-keys", keys.as_slice().into());
        }
        (Type::List(_), Relation::Set) => drop(add("list-type", "set".into())),
        (Type::List(_), _) => drop(add("list-type", "atomic".into())),
        (_, Relation::Atomic) => drop(add("map-type", "atomic".into())),
        _ => {}
    }
    if let Some(key) = field.merge_key.filter(|key| !key.is_empty()) {
        add("patch-merge-key", key.into());
    }
    let strategies = [
        ("merge", field.merge_key.is_some()),
        ("replace", field.replaced),
        ("retainKeys", field.retains_keys),
    ];
    let strategies: Vec<&str> =
        strategies.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect();
    if !strategies.is_empty() {
        add("patch-strategy", strategies.join(",").into());
    }
    found
}

impl Scalar {
    fn of(kind: &Type) -> Option<Self> {
        match kind {
            Type::Quantity => Some(Self::Quantity),
            Type::IntOrString => Some(Self::IntOrString),
            Type::Time => Some(Self::Time),
            Type::MicroTime => Some(Self::MicroTime),
            _ => None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Quantity => "io.k8s.apimachinery.pkg.api.resource.Quantity",
            Self::IntOrString => "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
            Self::Time => "io.k8s.apimachinery.pkg.apis.meta.v1.Time",
            Self::MicroTime => "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime",
        }
    }

    fn schema(self, version: Version) -> Value {
        let either = |other: &str| json!([{"type": other}, {"type": "string"}]);
        match (self, version) {
            (Self::Time | Self::MicroTime, _) => json!({"type": "string", "format": "date-time"}),
            // Version 2 knows no alternatives, and its readers take a number for a text.
            (Self::Quantity, Version::Two) => json!({"type": "string"}),
            (Self::IntOrString, Version::Two) => {
                json!({"type": "string", "format": "int-or-string"})
            }
            (Self::Quantity, Version::Three) => json!({"oneOf": either("number")}),
            (Self::IntOrString, Version::Three) => {
                json!({"oneOf": either("integer"), "format": "int-or-string"})
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(api_version: &str, kind: &str, version: Version) -> BTreeMap<String, Value> {
        let message = table().kind(api_version, kind).expect("a kind");
        let schemas = definitions([message]).into_iter();
        schemas.map(|(name, one)| (name, one.schema(version))).collect()
    }

    /// All references in a tree.
    fn references(tree: &Value, found: &mut Vec<String>) {
        match tree {
            Value::Object(members) => {
                // A property may be named so; a reference is a text.
                found.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
                members.values().for_each(|member| references(member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_of_every_message_leads_to_a_definition() {
        for version in [Version::Two, Version::Three] {
            let all = definitions(table().messages());
            assert!(all.len() > table().messages().len());
            let mut found = Vec::new();
            for definition in all.values() {
                references(&definition.schema(version), &mut found);
            }
            assert!(found.len() > 500);
            for reference in found {
                let name = reference.rsplit('/').next().expect("a name");
                assert!(all.contains_key(name), "{reference}");
                assert_eq!(version.reference(name)["$ref"], reference.as_str());
            }
        }
    }

    /// As `api/openapi-spec/swagger.json` of Kubernetes has them, descriptions and defaults aside.
    #[test]
    fn schemas_are_those_that_the_real_server_publishes() {
        let all = of("apps/v1", "Deployment", Version::Two);
        let deployment = &all["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(
            deployment[KIND],
            json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
        );
        assert_eq!(deployment["properties"]["kind"], json!({"type": "string"}));
        let spec = &all["io.k8s.api.apps.v1.DeploymentSpec"];
        assert_eq!(spec["required"], json!(["selector", "template"]));
        assert_eq!(spec["properties"]["replicas"], json!({"type": "integer", "format": "int32"}));
        assert_eq!(
            spec["properties"]["strategy"],
            json!({
                "$ref": "#/definitions/io.k8s.api.apps.v1.DeploymentStrategy",
                "x-kubernetes-patch-strategy": "retainKeys",
            })
        );
        let volumes = &all["io.k8s.api.core.v1.PodSpec"]["properties"]["volumes"];
        assert_eq!(
            *volumes,
            json!({
                "type": "array",
                "items": {"$ref": "#/definitions/io.k8s.api.core.v1.Volume"},
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
                "x-kubernetes-patch-merge-key": "name",
                "x-kubernetes-patch-strategy": "merge,retainKeys",
            })
        );
        let surge = &all["io.k8s.api.apps.v1.RollingUpdateDeployment"]["properties"]["maxSurge"];
        let either = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
        assert_eq!(*surge, Version::Two.reference(either));
        assert_eq!(all[either], json!({"type": "string", "format": "int-or-string"}));
        let meta = &all["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"]["properties"];
        let texts = json!({"type": "object", "additionalProperties": {"type": "string"}});
        assert_eq!(meta["labels"], texts);
        let finalizers = json!({
            "type": "array", "items": {"type": "string"},
            "x-kubernetes-list-type": "set", "x-kubernetes-patch-strategy": "merge",
        });
        assert_eq!(meta["finalizers"], finalizers);
    }

    #[test]
    fn version_3_has_alternatives_defaults_and_nothing_beside_a_reference() {
        let all = of("v1", "Service", Version::Three);
        let protocol = &all["io.k8s.api.core.v1.ServicePort"]["properties"]["protocol"];
        assert_eq!(*protocol, json!({"type": "string", "default": "TCP"}));
        let port = &all["io.k8s.apimachinery.pkg.util.intstr.IntOrString"];
        assert_eq!(port["oneOf"], json!([{"type": "integer"}, {"type": "string"}]));
        let all = of("apps/v1", "Deployment", Version::Three);
        let strategy = &all["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["strategy"];
        let reference = Version::Three.reference("io.k8s.api.apps.v1.DeploymentStrategy");
        assert_eq!(
            *strategy,
            json!({"allOf": [reference], "x-kubernetes-patch-strategy": "retainKeys"})
        );
    }
}
