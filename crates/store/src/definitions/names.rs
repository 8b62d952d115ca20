//! Which names a definition gets: two definitions of a group may not share one
//! (kubernetes.io, "CustomResourceDefinition", condition `NamesAccepted`).

use std::collections::BTreeSet;

use model::Timestamp;
use serde_json::Value;

use super::{approval, is_established, set_condition};
use crate::json;

/// Sets the status of a definition: accepted names, conditions, approval, stored versions. `others` are all
/// definitions of the cluster.
pub(crate) fn establish<'a>(
    definition: &mut Value,
    others: impl IntoIterator<Item = &'a Value>,
    now: Timestamp,
) {
    let own = json::text(definition, "/metadata/name").to_owned();
    let group = json::text(definition, "/spec/group").to_owned();
    let taken = Taken::of(others.into_iter().filter(|other| {
        json::text(other, "/metadata/name") != own && json::text(other, "/spec/group") == group
    }));
    match taken.conflict(definition) {
        None => {
            let names = definition.pointer("/spec/names").cloned().unwrap_or_default();
            json::set(definition, "/status/acceptedNames", names);
            let why = ("NoConflicts", "no conflicts found");
            set_condition(definition, "NamesAccepted", true, why, now);
            let why = ("InitialNamesAccepted", "the initial names have been accepted");
            set_condition(definition, "Established", true, why, now);
        }
        Some((reason, name)) => {
            let message = format!("{name:?} is already in use");
            set_condition(definition, "NamesAccepted", false, (reason, &message), now);
            if !is_established(definition) {
                json::set_default(definition, "/status/acceptedNames", serde_json::json!({}));
                let why = ("NotAccepted", "not all names are accepted");
                set_condition(definition, "Established", false, why, now);
            }
        }
    }
    approval::judge(definition, now);
    remember_stored_version(definition);
}

/// Objects may be kept in every version that was once the storage version.
fn remember_stored_version(definition: &mut Value) {
    let mut stored: Vec<Value> = json::items(definition, "/status/storedVersions").to_vec();
    let storage = json::items(definition, "/spec/versions")
        .iter()
        .find(|version| json::flag(version, "/storage"))
        .and_then(|version| version.get("name"));
    if let Some(name) = storage.filter(|name| !stored.contains(name)) {
        stored.push(name.clone());
        json::set(definition, "/status/storedVersions", stored);
    }
}

/// The names that the other definitions of a group have.
#[derive(Default)]
struct Taken {
    /// Plurals, singulars and short names share one space.
    resources: BTreeSet<String>,
    /// Kinds and kinds of lists share another.
    kinds: BTreeSet<String>,
}

impl Taken {
    fn of<'a>(others: impl Iterator<Item = &'a Value>) -> Self {
        let mut taken = Self::default();
        for names in others.filter_map(|other| other.pointer("/status/acceptedNames")) {
            let texts = json::texts(names, "/shortNames").into_iter();
            let resources =
                texts.chain([json::text(names, "/plural"), json::text(names, "/singular")]);
            taken.resources.extend(resources.map(str::to_owned));
            let kinds = [json::text(names, "/kind"), json::text(names, "/listKind")];
            taken.kinds.extend(kinds.map(str::to_owned));
        }
        taken
    }

    /// The reason and the name of the first conflict.
    fn conflict(&self, definition: &Value) -> Option<(&'static str, String)> {
        let names = definition.pointer("/spec/names")?;
        let resources = [("PluralConflict", "/plural"), ("SingularConflict", "/singular")];
        let kinds = [("KindConflict", "/kind"), ("ListKindConflict", "/listKind")];
        let of = |pointer: &str| json::text(names, pointer).to_owned();
        let resources = resources.map(|(reason, pointer)| (reason, of(pointer)));
        let short = json::texts(names, "/shortNames").into_iter();
        let short = short.map(|name| ("ShortNamesConflict", name.to_owned()));
        let kinds = kinds.map(|(reason, pointer)| (reason, of(pointer)));
        let is_taken =
            |space: &BTreeSet<String>, name: &str| !name.is_empty() && space.contains(name);
        resources
            .into_iter()
            .chain(short)
            .find(|(_, name)| is_taken(&self.resources, name))
            .or_else(|| kinds.into_iter().find(|(_, name)| is_taken(&self.kinds, name)))
    }
}
