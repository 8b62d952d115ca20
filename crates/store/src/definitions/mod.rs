//! CustomResourceDefinitions: rows that come and go while the server runs.
//!
//! A definition is compiled once into rows like those of the program itself. Rows live as long as
//! the program, since objects, watches and log entries point to them; a definition that comes back
//! as it was gets its rows again, and [`MAX_COMPILED`] bounds how many there are.

mod approval;
mod instances;
mod names;
mod path;
mod row;
mod validate;

use std::collections::BTreeMap;

use model::Timestamp;
use schema::Message;
use schema::structural::{Fault, Schema};
use serde_json::{Value, json as tree};

use crate::conversion::Converter;
use crate::validate::FieldErrors;
use crate::{Resource, json};

pub(crate) use names::establish;
pub(crate) use path::Path;
pub(crate) use row::rank as version_rank;
pub(crate) use validate::validate;

/// Different definitions that one process compiles; further ones are refused until it starts
/// again. A definition that is written unchanged, or whose status changes, is no different one.
pub const MAX_COMPILED: usize = 4_096;
/// The finalizer under which a definition waits until its last object is gone.
const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// The definitions that are in force.
#[derive(Debug, Default)]
pub struct Definitions {
    /// By name, which is also the name of the storage: `widgets.example.com`.
    in_force: BTreeMap<&'static str, &'static Compiled>,
    /// All that this process has compiled, by name.
    compiled: BTreeMap<&'static str, Vec<&'static Compiled>>,
    compiled_count: usize,
    generation: u64,
}

/// A definition and its rows.
#[derive(Debug)]
struct Compiled {
    /// `spec` and the names that it has got.
    source: &'static Value,
    /// One row a version, the preferred version first.
    rows: Vec<&'static Resource>,
}

/// What a row has that a definition made.
#[derive(Debug)]
pub struct Custom {
    pub(crate) message: Message,
    pub(crate) schema: Schema,
    /// The schema as it was written, for OpenAPI.
    pub(crate) tree: &'static Value,
    /// Whether clients can ask for this version.
    pub(crate) served: bool,
    /// Whether objects are kept in this version.
    pub(crate) storage: bool,
    pub(crate) list_kind: &'static str,
    pub(crate) scale: Option<Scale>,
    /// What makes versions of one another; `None` where they differ by their names alone.
    pub(crate) converter: Option<&'static Converter>,
}

/// Where a custom object has what a Scale tells: JSON pointers.
#[derive(Debug)]
pub(crate) struct Scale {
    pub(crate) spec_replicas: String,
    pub(crate) status_replicas: String,
    pub(crate) selector: Option<String>,
}

impl Custom {
    /// Fills in the defaults of the schema.
    pub(crate) fn fill(&self, value: &mut Value) {
        self.schema.fill(value);
    }

    /// Judges an object by the schema, and by its rules where it has no fault that they would only
    /// stumble over.
    pub(crate) fn check(&self, value: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
        let mut faults = self.schema.validate_change(value, old, "");
        if faults.iter().any(Fault::blocks_rules) {
            faults.extend(self.schema.has_rules().then(Fault::rules_not_checked));
        } else {
            faults.extend(self.schema.validate_rules(value, old));
        }
        faults.into_iter().for_each(|fault| errors.add(fault));
    }
}

impl Definitions {
    /// Takes up a definition as it is stored; one that is not established has no rows.
    pub fn take(&mut self, definition: &Value) {
        let name = json::text(definition, "/metadata/name");
        if !is_established(definition) {
            return self.forget(name);
        }
        let source = source(definition);
        let known = self.known(name, &source);
        let compiled = known.unwrap_or_else(|| self.compile(name, source));
        let name = compiled.name();
        let before = self.in_force.insert(name, compiled);
        if !before.is_some_and(|before| std::ptr::eq(before, compiled)) {
            self.generation += 1;
        }
    }

    /// Drops a definition.
    pub fn forget(&mut self, name: &str) {
        if self.in_force.remove(name).is_some() {
            self.generation += 1;
        }
    }

    /// Counts changes: documents about the API are made anew when it does.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether one more definition can be compiled, or this one is known.
    pub(crate) fn has_room(&self, definition: &Value) -> bool {
        let name = json::text(definition, "/metadata/name");
        self.compiled_count < MAX_COMPILED || self.known(name, &source(definition)).is_some()
    }

    /// The rows that clients can ask for.
    pub(crate) fn served(&self) -> impl Iterator<Item = &'static Resource> {
        let rows = self.in_force.values().flat_map(|compiled| compiled.rows.iter().copied());
        rows.filter(|row| row.custom.is_some_and(|custom| custom.served))
    }

    /// The row in whose form a storage keeps its objects.
    pub(crate) fn storage_row(&self, storage: &str) -> Option<&'static Resource> {
        let rows = &self.in_force.get(storage)?.rows;
        rows.iter().copied().find(|row| row.custom.is_some_and(|custom| custom.storage))
    }

    /// The row in whose form a stored object is: that of the version that it was written in, or of
    /// the storage version where there is no such version any more.
    pub(crate) fn row_of(&self, storage: &str, version: &str) -> Option<&'static Resource> {
        let mut rows = self.in_force.get(storage)?.rows.iter().copied();
        rows.find(|row| row.version == version).or_else(|| self.storage_row(storage))
    }

    /// The storages of all definitions.
    pub(crate) fn storages(&self) -> impl Iterator<Item = &'static str> {
        self.in_force.keys().copied()
    }

    fn known(&self, name: &str, source: &Value) -> Option<&'static Compiled> {
        self.compiled.get(name)?.iter().copied().find(|compiled| compiled.source == source)
    }

    fn compile(&mut self, name: &str, source: Value) -> &'static Compiled {
        let source: &'static Value = keep(source);
        let rows = row::rows(keep(name.to_owned()), source);
        let compiled: &'static Compiled = keep(Compiled { source, rows });
        self.compiled.entry(compiled.name()).or_default().push(compiled);
        self.compiled_count += 1;
        compiled
    }
}

impl Compiled {
    fn name(&self) -> &'static str {
        self.rows.first().map(|row| row.storage).unwrap_or_default()
    }
}

/// The version that an object is written in.
pub(crate) fn version_of(object: &Value) -> &str {
    json::text(object, "/apiVersion").rsplit('/').next().unwrap_or_default()
}

/// What a definition's rows are made of.
fn source(definition: &Value) -> Value {
    tree!({
        "spec": definition.get("spec"),
        "names": definition.pointer("/status/acceptedNames"),
    })
}

/// Gives a value the program's own lifetime. The number of calls is bounded by [`MAX_COMPILED`].
fn keep<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

fn is_established(definition: &Value) -> bool {
    condition(definition, "Established") == "True"
}

/// The status of a condition; empty when there is none.
fn condition<'a>(definition: &'a Value, kind: &str) -> &'a str {
    let mut conditions = json::items(definition, "/status/conditions").iter();
    let found = conditions.find(|condition| json::text(condition, "/type") == kind);
    found.map(|condition| json::text(condition, "/status")).unwrap_or_default()
}

/// Sets a condition. Its time moves when its status does.
fn set_condition(
    definition: &mut Value,
    kind: &str,
    status: bool,
    (reason, message): (&str, &str),
    now: Timestamp,
) {
    let status = if status { "True" } else { "False" };
    let mut conditions = json::items(definition, "/status/conditions").to_vec();
    let place = conditions.iter().position(|one| json::text(one, "/type") == kind);
    let since = place
        .and_then(|place| conditions.get(place))
        .filter(|one| json::text(one, "/status") == status)
        .map(|one| json::text(one, "/lastTransitionTime").to_owned());
    let condition = tree!({
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": since.unwrap_or_else(|| now.to_string()),
    });
    match place.and_then(|place| conditions.get_mut(place)) {
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
    json::set(definition, "/status/conditions", conditions);
}
