//! Types of whole objects, for checks of expressions that see them without a schema when they run:
//! fields have their names of JSON, and times and octets are the texts that JSON has of them.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::Type;
use crate::{Message, table};

impl Type {
    /// Objects of a kind of the table.
    pub fn of_kind(message: &'static Message) -> Self {
        Shapes::default().of_message(message)
    }

    /// Objects of a kind that a definition's schema describes.
    pub fn of_schema(tree: &Json) -> Self {
        let Self::Object(_) = of_tree(tree) else { return Self::Dyn };
        let metadata = table().named("meta.v1.ObjectMeta").map_or(Self::Dyn, Self::of_kind);
        let own = [("apiVersion", Self::String), ("kind", Self::String), ("metadata", metadata)];
        Self::record(properties(tree).chain(own))
    }
}

/// Types of messages that are known already; `None` while they are looked at, since some are made
/// of themselves.
#[derive(Default)]
struct Shapes(BTreeMap<&'static str, Option<Type>>);

impl Shapes {
    fn of_message(&mut self, message: &'static Message) -> Type {
        if message.open {
            return Type::Dyn;
        }
        if let Some(known) = self.0.get(message.name) {
            return known.clone().unwrap_or(Type::Dyn);
        }
        self.0.insert(message.name, None);
        let mut fields: Vec<(&str, Type)> =
            message.fields.iter().map(|field| (field.name, self.of(&field.kind))).collect();
        if message.typed {
            fields.extend([("apiVersion", Type::String), ("kind", Type::String)]);
        }
        let shape = Type::record(fields);
        self.0.insert(message.name, Some(shape.clone()));
        shape
    }

    fn of(&mut self, kind: &'static crate::Type) -> Type {
        use crate::Type as Field;
        match kind {
            Field::Text | Field::Bytes | Field::Time | Field::MicroTime => Type::String,
            Field::Bool => Type::Bool,
            Field::Int32 | Field::Int64 => Type::Int,
            Field::Double => Type::Double,
            Field::Quantity | Field::IntOrString | Field::Raw => Type::Dyn,
            Field::List(item) => Type::list(self.of(item)),
            Field::Map(value) => Type::map(Type::String, self.of(value)),
            Field::Message(_) | Field::Own(_) => {
                table().message(kind).map_or(Type::Dyn, |message| self.of_message(message))
            }
        }
    }
}

fn of_tree(tree: &Json) -> Type {
    let flag = |name: &str| tree.get(name).and_then(Json::as_bool).unwrap_or(false);
    let is_open = ["int-or-string", "preserve-unknown-fields", "embedded-resource"]
        .iter()
        .any(|name| flag(&format!("x-kubernetes-{name}")));
    match tree.get("type").and_then(Json::as_str) {
        _ if is_open => Type::Dyn,
        Some("object") => match tree.get("additionalProperties") {
            Some(value @ Json::Object(_)) => Type::map(Type::String, of_tree(value)),
            Some(Json::Bool(true)) => Type::map(Type::String, Type::Dyn),
            _ => Type::record(properties(tree)),
        },
        Some("array") => Type::list(tree.get("items").map_or(Type::Dyn, of_tree)),
        Some("boolean") => Type::Bool,
        Some("integer") => Type::Int,
        Some("number") => Type::Double,
        Some("string") => Type::String,
        _ => Type::Dyn,
    }
}

fn properties(tree: &Json) -> impl Iterator<Item = (&str, Type)> {
    let members = tree.get("properties").and_then(Json::as_object).into_iter().flatten();
    members.map(|(name, inner)| (name.as_str(), of_tree(inner)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cel::Program;

    fn faults(kind: &Type, text: &str) -> String {
        Program::compile(text, &[("object", kind.clone())]).err().unwrap_or_default()
    }

    #[test]
    fn kinds_of_the_table_have_their_fields() {
        let kind = |version, kind| Type::of_kind(table().kind(version, kind).expect("a kind"));
        let deployment = kind("apps/v1", "Deployment");
        for text in [
            "object.spec.replicas > 1 && object.metadata.namespace == 'x' && object.kind != ''",
            "object.spec.template.spec.containers.all(c, c.name.size() > 1 && has(c.securityContext))",
            "object.metadata.labels['a'] == 'b' && object.spec.selector.matchLabels.app == 'x'",
            "object.spec.strategy.rollingUpdate.maxSurge == 1",
            "object.spec.strategy.rollingUpdate.maxSurge == '10%'",
            "quantity(object.spec.template.spec.containers[0].resources.limits.cpu).sign() > 0",
            "timestamp(object.metadata.creationTimestamp) < timestamp('2030-01-01T00:00:00Z')",
            "object == null",
        ] {
            assert_eq!(faults(&deployment, text), "", "{text}");
        }
        for (text, expected) in [
            ("object.replicas > 1", "undefined field 'replicas'"),
            ("object.spec.template.spec.nodename == ''", "undefined field 'nodename'"),
            ("object.spec.replicas > '1'", "applied to '(int, string)'"),
            ("object.metadata.labels.a == 1", "applied to '(string, int)'"),
        ] {
            let found = faults(&deployment, text);
            assert!(found.contains(expected), "{text}: {found}");
        }
        let definition = kind("apiextensions.k8s.io/v1", "CustomResourceDefinition");
        let nested =
            "object.spec.versions[0].schema.openAPIV3Schema.properties.a.properties.b.type";
        assert_eq!(faults(&definition, &format!("{nested} == 'string'")), "");
    }

    #[test]
    fn kinds_of_definitions_have_the_fields_of_their_schemas() {
        let kind = Type::of_schema(&json!({"type": "object", "properties": {"spec": {
            "type": "object", "properties": {
                "size": {"type": "integer"}, "sizes": {"type": "array", "items": {"type": "number"}},
                "tags": {"type": "object", "additionalProperties": {"type": "string"}},
                "port": {"x-kubernetes-int-or-string": true},
                "rest": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "sure": {"type": "boolean"}, "name": {"type": "string"}}}}}));
        let text = "object.spec.size > 1 && object.spec.sizes[0] > 1.5 && object.spec.port == 'a' && \
                    object.spec.rest.any.thing == 1 && object.spec.sure && object.metadata.uid != '' \
                    && object.spec.tags.a == 'b' && object.apiVersion != ''";
        assert_eq!(faults(&kind, text), "");
        for (text, expected) in [
            ("object.spec.length", "undefined field 'length'"),
            ("object.spec.name == 1", "applied to '(string, int)'"),
            ("object.metadata.color == ''", "undefined field 'color'"),
        ] {
            let found = faults(&kind, text);
            assert!(found.contains(expected), "{text}: {found}");
        }
        let open = Type::of_schema(&json!({"type": "object",
            "x-kubernetes-preserve-unknown-fields": true}));
        assert_eq!(faults(&open, "object.any.thing == 1"), "");
    }
}
