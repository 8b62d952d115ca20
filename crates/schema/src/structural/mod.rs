//! Structural schemas: the `openAPIV3Schema` of a CustomResourceDefinition, compiled into what
//! reads, fills in and judges its objects.
//!
//! - [`check`] says whether a schema may stand in a definition (structural, KEP-1693 and
//!   kubernetes.io, "Specifying a structural schema").
//! - [`Schema::compile`] makes it ready once; [`Schema::fill`] adds defaults, [`Schema::validate`]
//!   judges an object in the words of the real server.
//! - [`Schema::validate_rules`] judges it by `x-kubernetes-validations`, in CEL.
//! - [`message`] is its form in the table of fields: pruning, strict decoding and server-side
//!   apply are those of all other kinds.

mod check;
mod extent;
mod fault;
mod format;
mod message;
mod rules;
mod validate;

use std::sync::Arc;

use regex_lite::{Regex, RegexBuilder};
use serde_json::{Map, Value};

pub use check::{MAX_SCHEMA_DEPTH, check};
pub use fault::Fault;
pub(crate) use format::fits as fits_format;
pub use message::message;
use rules::Rules;
pub use validate::MAX_FAULTS;

use crate::cel::Type;

/// Bytes that a compiled pattern may take. Matching is linear in the text by the engine's design.
const MAX_PATTERN_BYTES: usize = 256 * 1024;

/// A schema that is ready for use.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    kind: Kind,
    nullable: bool,
    default: Option<Value>,
    /// Members by name, in the order of their names.
    properties: Vec<(String, Self)>,
    additional: Option<Box<Self>>,
    items: Option<Box<Self>>,
    required: Vec<String>,
    embedded: bool,
    list: List,
    bounds: Bounds,
    choices: Vec<Value>,
    pattern: Option<Regex>,
    format: String,
    all_of: Vec<Self>,
    any_of: Vec<Self>,
    one_of: Vec<Self>,
    not: Option<Box<Self>>,
    rules: Option<Arc<Rules>>,
    /// Whether there are rules here or below.
    has_rules: bool,
}

/// The type of a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    /// Any type.
    #[default]
    Any,
    Array,
    Boolean,
    Integer,
    Number,
    Object,
    String,
    IntOrString,
}

/// What must be distinct in a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum List {
    #[default]
    Atomic,
    Set,
    Map(Vec<String>),
}

/// Limits of numbers, texts, lists and objects.
#[derive(Clone, Debug, Default)]
struct Bounds {
    minimum: Option<f64>,
    exclusive_minimum: bool,
    maximum: Option<f64>,
    exclusive_maximum: bool,
    multiple_of: Option<f64>,
    min_length: Option<u64>,
    max_length: Option<u64>,
    min_items: Option<u64>,
    max_items: Option<u64>,
    min_properties: Option<u64>,
    max_properties: Option<u64>,
}

impl Schema {
    /// Compiles a schema that [`check`] has passed. What is wrong nevertheless says nothing.
    pub fn compile(tree: &Value) -> Self {
        Self::compile_at(tree, true).0
    }

    /// A schema, and the type that expressions see of it.
    fn compile_at(tree: &Value, is_root: bool) -> (Self, Option<Type>) {
        let below = |tree: &Value| Self::compile_at(tree, false);
        let one = |name: &str| tree.get(name).filter(|inner| inner.is_object()).map(below).unzip();
        let several = |name: &str| {
            let schemas = tree.get(name).and_then(Value::as_array).into_iter().flatten();
            schemas.map(|inner| below(inner).0).collect()
        };
        let members = tree.get("properties").and_then(Value::as_object).into_iter().flatten();
        let (mut properties, mut types) = (Vec::new(), Vec::new());
        for (name, inner) in members {
            let (schema, kind) = below(inner);
            properties.push((name.clone(), schema));
            types.extend(kind.map(|kind| (name.as_str(), kind)));
        }
        properties.sort_by(|one, other| one.0.cmp(&other.0));
        let (additional, additional_type) = one("additionalProperties");
        let (items, item_type) = one("items");
        let additional_type = additional_type.flatten();
        let kind = rules::type_of(tree, is_root, types, item_type.flatten(), additional_type);
        let rules = Rules::compile(tree, kind.as_ref());
        let mut schemas =
            properties.iter().map(|(_, inner)| inner).chain(&additional).chain(&items);
        let has_rules = rules.is_some() || schemas.any(|inner| inner.has_rules);
        let schema = Self {
            kind: Kind::of(tree),
            nullable: flag(tree, "nullable"),
            default: tree.get("default").filter(|default| !default.is_null()).cloned(),
            properties,
            additional: additional.map(Box::new),
            items: items.map(Box::new),
            required: texts(tree, "required"),
            embedded: flag(tree, "x-kubernetes-embedded-resource"),
            list: List::of(tree),
            bounds: Bounds::of(tree),
            choices: tree.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
            pattern: tree.get("pattern").and_then(Value::as_str).and_then(|text| regex(text).ok()),
            format: text(tree, "format").to_owned(),
            all_of: several("allOf"),
            any_of: several("anyOf"),
            one_of: several("oneOf"),
            not: one("not").0.map(Box::new),
            rules,
            has_rules,
        };
        (schema, kind)
    }

    /// Adds the defaults of what is absent, and drops the `null` of what has a default and may not
    /// be `null`.
    pub fn fill(&self, value: &mut Value) {
        match value {
            Value::Object(members) => self.fill_members(members),
            Value::Array(items) => {
                for item in items {
                    self.items.iter().for_each(|schema| schema.fill(item));
                }
            }
            _ => {}
        }
    }

    fn fill_members(&self, members: &mut Map<String, Value>) {
        for (name, schema) in &self.properties {
            let Some(default) = &schema.default else { continue };
            let is_absent = match members.get(name) {
                None => true,
                Some(member) => member.is_null() && !schema.nullable,
            };
            if is_absent {
                members.insert(name.clone(), default.clone());
            }
        }
        for (name, member) in members.iter_mut() {
            if let Some(schema) = self.member(name) {
                schema.fill(member);
            }
        }
    }

    /// Whether there are rules in CEL, here or below.
    pub fn has_rules(&self) -> bool {
        self.has_rules
    }

    /// The schema of a member; `None` where anything may stand.
    fn member(&self, name: &str) -> Option<&Self> {
        match self.properties.binary_search_by(|(known, _)| known.as_str().cmp(name)) {
            Ok(place) => self.properties.get(place).map(|(_, schema)| schema),
            Err(_) => self.additional.as_deref(),
        }
    }
}

impl Kind {
    fn of(tree: &Value) -> Self {
        if flag(tree, "x-kubernetes-int-or-string") {
            return Self::IntOrString;
        }
        match text(tree, "type") {
            "array" => Self::Array,
            "boolean" => Self::Boolean,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "object" => Self::Object,
            "string" => Self::String,
            _ => Self::Any,
        }
    }

    /// As messages name it.
    const fn name(self) -> &'static str {
        match self {
            Self::Any => "",
            Self::Array => "array",
            Self::Boolean => "boolean",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Object => "object",
            Self::String => "string",
            Self::IntOrString => "integer,string",
        }
    }
}

impl List {
    fn of(tree: &Value) -> Self {
        match text(tree, "x-kubernetes-list-type") {
            "set" => Self::Set,
            "map" => Self::Map(texts(tree, "x-kubernetes-list-map-keys")),
            _ => Self::Atomic,
        }
    }
}

impl Bounds {
    fn of(tree: &Value) -> Self {
        let number = |name: &str| tree.get(name).and_then(Value::as_f64);
        let count = |name: &str| tree.get(name).and_then(Value::as_u64);
        Self {
            minimum: number("minimum"),
            exclusive_minimum: flag(tree, "exclusiveMinimum"),
            maximum: number("maximum"),
            exclusive_maximum: flag(tree, "exclusiveMaximum"),
            multiple_of: number("multipleOf"),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
        }
    }
}

/// Compiles a pattern, within its bound.
fn regex(pattern: &str) -> Result<Regex, regex_lite::Error> {
    RegexBuilder::new(pattern).size_limit(MAX_PATTERN_BYTES).build()
}

fn flag(tree: &Value, name: &str) -> bool {
    tree.get(name).and_then(Value::as_bool).unwrap_or(false)
}

fn text<'a>(tree: &'a Value, name: &str) -> &'a str {
    tree.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn texts(tree: &Value, name: &str) -> Vec<String> {
    let items = tree.get(name).and_then(Value::as_array).into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests;
