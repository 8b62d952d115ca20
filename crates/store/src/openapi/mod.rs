//! OpenAPI: what clients validate manifests by before they send them, what `kubectl explain` shows,
//! and where `kubectl apply` looks for the parameters of an operation (kubernetes.io, "The
//! Kubernetes API", "OpenAPI").
//!
//! Documents are written entry by entry and not kept: the largest is half a megabyte of text, and
//! many times that as a tree.

mod custom;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use schema::Message;
use schema::openapi::{self, KIND, Version};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::discovery::{fingerprint, group_versions};
use crate::{Resource, registry};

/// Media type of version 2 in protobuf. With an `@` in it, as clients ask for it, Go clients cannot
/// parse it.
pub const V2_MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

const TITLE: &str = "Kubernetes";

/// The rows that documents are about: [`crate::Store::resources`].
type Rows<'a> = &'a [&'static Resource];

/// `GET /openapi/v2`: everything in one document, in gnostic's protobuf.
pub fn v2_protobuf(rows: Rows<'_>) -> Vec<u8> {
    let (mut paths, mut definitions) = (Vec::new(), Vec::new());
    for (name, item) in self::paths(rows, Version::Two) {
        openapi::path(&mut paths, &name, &item);
    }
    for (name, schema) in schemas(rows, all_messages(), Version::Two) {
        openapi::definition(&mut definitions, &name, &schema);
    }
    openapi::document(TITLE, &paths, &definitions)
}

/// `GET /openapi/v2`, in JSON.
pub fn v2_json(rows: Rows<'_>) -> String {
    to_text(&Document2 {
        swagger: "2.0",
        info: Info::default(),
        paths: Members(|| paths(rows, Version::Two)),
        definitions: Members(|| schemas(rows, all_messages(), Version::Two)),
    })
}

/// `GET /openapi/v3`: where the document of each group and version is.
pub fn v3_index(rows: Rows<'_>) -> Value {
    /// Documents of the program's own kinds are the same as long as it runs.
    static OWN: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
        let rows: Vec<&'static Resource> = registry::resources().collect();
        hashes(group_versions(&rows).into_values())
    });
    let groups = group_versions(rows).into_values();
    let (changing, own): (Vec<_>, Vec<_>) =
        groups.partition(|rows| rows.iter().any(|row| row.custom.is_some()));
    let mut paths = Map::new();
    let own = own.iter().filter_map(|rows| OWN.get_key_value(&path_of(rows)));
    for (path, hash) in own.chain(&hashes(changing)) {
        let url = format!("/openapi/v3/{path}?hash={hash}");
        paths.insert(path.clone(), json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// `GET /openapi/v3/api/v1` and `GET /openapi/v3/apis/GROUP/VERSION`, by what follows
/// `/openapi/v3/`.
pub fn v3_document(rows: Rows<'_>, path: &str) -> Option<String> {
    let rows = group_versions(rows).into_values().find(|rows| path_of(rows) == path)?;
    Some(document3(&rows))
}

fn hashes(groups: impl IntoIterator<Item = Vec<&'static Resource>>) -> BTreeMap<String, String> {
    let hash = |rows: &[_]| (path_of(rows), fingerprint(document3(rows).as_bytes()));
    groups.into_iter().map(|rows| hash(&rows)).collect()
}

/// The document of the rows of one group and version.
fn document3(rows: Rows<'_>) -> String {
    to_text(&Document3 {
        openapi: "3.0.0",
        info: Info::default(),
        paths: Members(|| paths(rows, Version::Three)),
        components: Components {
            schemas: Members(|| schemas(rows, rows_messages(rows), Version::Three)),
        },
    })
}

/// Only what has keys that are no texts cannot be written.
fn to_text(document: &impl Serialize) -> String {
    serde_json::to_string(document).unwrap_or_default()
}

fn all_messages() -> Vec<&'static Message> {
    schema::table().messages().iter().collect()
}

/// The messages that a group's schemas begin with. Custom objects have the metadata of all others.
fn rows_messages(rows: Rows<'_>) -> Vec<&'static Message> {
    let own = rows.iter().filter(|row| row.custom.is_none()).filter_map(|row| row.message());
    own.chain(schema::table().named("meta.v1.ObjectMeta")).collect()
}

/// The schemas of messages and of the custom rows, by name.
fn schemas<'a>(
    rows: Rows<'a>,
    messages: Vec<&'static Message>,
    version: Version,
) -> impl Iterator<Item = (String, Value)> + use<'a> {
    let own = openapi::definitions(messages).into_iter();
    let own = own.map(move |(name, definition)| (name, definition.schema(version)));
    own.chain(rows.iter().filter_map(move |row| custom::schema(row, version)))
}

fn paths<'a>(rows: Rows<'a>, version: Version) -> impl Iterator<Item = (String, Value)> + use<'a> {
    rows.iter().flat_map(move |row| {
        let place = if row.namespaced { "/namespaces/{namespace}" } else { "" };
        let collection = format!("/{}{place}/{}", path_of(&[*row]), row.plural);
        let item = format!("{collection}/{{name}}");
        [
            (item, operations(row, &["patch", "put"], version)),
            (collection, operations(row, &["post"], version)),
        ]
    })
}

fn operations(row: &Resource, actions: &[&str], version: Version) -> Value {
    actions.iter().map(|action| ((*action).to_owned(), operation(row, action, version))).collect()
}

fn operation(row: &Resource, action: &str, version: Version) -> Value {
    let parameter = |name| match version {
        Version::Two => json!({"name": name, "in": "query", "type": "string", "uniqueItems": true}),
        Version::Three => {
            let schema = json!({"type": "string", "uniqueItems": true});
            json!({"name": name, "in": "query", "schema": schema})
        }
    };
    let parameters = ["dryRun", "fieldManager", "fieldValidation"].map(parameter);
    json!({
        "parameters": parameters,
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": action,
        KIND: {"group": row.group, "version": row.version, "kind": row.kind},
    })
}

/// Where the document of rows of one group and version is.
fn path_of(rows: Rows<'_>) -> String {
    match rows.first() {
        None => String::new(),
        Some(row) if row.group.is_empty() => format!("api/{}", row.version),
        Some(row) => format!("apis/{}/{}", row.group, row.version),
    }
}

#[derive(Serialize)]
struct Document2<P, D> {
    swagger: &'static str,
    info: Info,
    paths: P,
    definitions: D,
}

#[derive(Serialize)]
struct Document3<P, S> {
    openapi: &'static str,
    info: Info,
    paths: P,
    components: Components<S>,
}

#[derive(Serialize)]
struct Components<S> {
    schemas: S,
}

#[derive(Serialize)]
struct Info {
    title: &'static str,
    version: &'static str,
}

impl Default for Info {
    fn default() -> Self {
        Self { title: TITLE, version: "v1" }
    }
}

/// An object whose members are made while it is written.
struct Members<F>(F);

impl<F, I> Serialize for Members<F>
where
    F: Fn() -> I,
    I: Iterator<Item = (String, Value)>,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map((self.0)())
    }
}

#[cfg(test)]
mod tests;
