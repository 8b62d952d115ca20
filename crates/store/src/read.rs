//! Get and list, with the semantics of `resourceVersion`, `limit` and `continue`.

use std::borrow::Cow;
use std::ops::Bound;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::NamespacedName;
use serde_json::{Value, json};

use crate::conversion::{Conversions, unconverted};
use crate::kinds::events;
use crate::object::Kept;
use crate::selector::{FieldSelector, LabelSelector, selects};
use crate::state::{Content, Objects, Shelf};
use crate::validate::FieldErrors;
use crate::{Object, Resource, Status, Store, json as tree};

/// Objects that are converted for a page at a time, at least: where selectors choose few, more are
/// looked at than are shown.
const MIN_CONVERTED: usize = 500;

/// What a list asks for. The texts stand as the query parameters hold them; empty is unset.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Only this namespace; empty for all.
    pub namespace: String,
    /// Which labels.
    pub labels: LabelSelector,
    /// Which fields.
    pub fields: FieldSelector,
    /// At most this many items; 0 for all.
    pub limit: usize,
    /// `continue` of the page before.
    pub continue_token: String,
    /// `resourceVersion`.
    pub resource_version: String,
    /// `resourceVersionMatch`.
    pub resource_version_match: String,
}

/// A page of a list.
#[derive(Clone, Debug)]
pub struct List {
    /// The row that was asked for.
    pub resource: &'static Resource,
    /// The revision of the list.
    pub revision: u64,
    /// The objects, in the order of namespace and name.
    pub items: Vec<Arc<Object>>,
    /// `metadata.continue`, when there is more.
    pub continue_token: Option<String>,
    /// `metadata.remainingItemCount`, when it is known.
    pub remaining: Option<usize>,
}

impl List {
    /// The `metadata` of the list.
    pub fn metadata(&self) -> Value {
        let mut metadata = json!({"resourceVersion": self.revision.to_string()});
        if let Some(token) = &self.continue_token {
            tree::set(&mut metadata, "/continue", token.clone());
        }
        if let Some(remaining) = self.remaining {
            tree::set(&mut metadata, "/remainingItemCount", remaining);
        }
        metadata
    }

    /// The list object for the wire. `items` is never null.
    pub fn to_value(&self) -> Value {
        json!({
            "kind": self.resource.list_kind(),
            "apiVersion": self.resource.api_version(),
            "metadata": self.metadata(),
            "items": self.items.iter().map(|object| object.to_list_item()).collect::<Vec<_>>(),
        })
    }

    /// Writes the JSON text of [`List::to_value`].
    pub fn write_text(&self, text: &mut Vec<u8>) {
        let head = json!({
            "kind": self.resource.list_kind(),
            "apiVersion": self.resource.api_version(),
            "metadata": self.metadata(),
        });
        // Writing a tree to memory cannot fail; the items follow as text.
        let _ = serde_json::to_writer(&mut *text, &head);
        text.pop();
        text.extend_from_slice(b",\"items\":[");
        for (index, object) in self.items.iter().enumerate() {
            if index > 0 {
                text.push(b',');
            }
            object.write_list_item(text);
        }
        text.extend_from_slice(b"]}");
    }

    /// The list as `PartialObjectMetadataList`.
    pub fn to_partial(&self) -> Value {
        json!({
            "kind": "PartialObjectMetadataList",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": self.metadata(),
            "items": self.items.iter().map(|object| object.to_partial()).collect::<Vec<_>>(),
        })
    }
}

impl Store {
    /// One published object.
    ///
    /// # Errors
    /// 404; 500 where a webhook would have to convert it.
    pub fn get(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Object>, Status> {
        self.get_converted(resource, namespace, name, &mut Conversions::default())
    }

    /// As [`Store::get`], with what webhooks have converted, or are to convert then.
    ///
    /// # Errors
    /// As for [`Store::get`].
    pub fn get_converted(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        conversions: &mut Conversions,
    ) -> Result<Arc<Object>, Status> {
        let key = NamespacedName::new(namespace, name);
        let found = self.shelf(resource).and_then(|shelf| shelf.get(&key));
        let object = found.ok_or_else(|| Status::not_found(resource, name))?;
        conversions.present(resource, &object).ok_or_else(|| unconverted(resource))
    }

    /// A page of published objects.
    ///
    /// # Errors
    /// 400 for a malformed revision or token, 410 for an expired one, 504 for a revision that does
    /// not exist yet; 500 where a webhook would have to convert objects.
    pub fn list(&self, resource: &'static Resource, options: &ListOptions) -> Result<List, Status> {
        self.list_converted(resource, options, &mut Conversions::default())
    }

    /// As [`Store::list`], with what webhooks have converted, or are to convert then.
    ///
    /// # Errors
    /// As for [`Store::list`].
    pub fn list_converted(
        &self,
        resource: &'static Resource,
        options: &ListOptions,
        conversions: &mut Conversions,
    ) -> Result<List, Status> {
        let wanted = parse_revision(&options.resource_version)?;
        check_match(options)?;
        let start = options.continue_token.as_str();
        let (revision, after) = if start.is_empty() {
            self.check_not_ahead(wanted.unwrap_or(0))?;
            let exact = options.resource_version_match == "Exact";
            (wanted.filter(|_| exact).unwrap_or(self.revision), None)
        } else {
            if wanted.is_some_and(|wanted| wanted != 0) {
                let complaint = "specifying resource version is not allowed when using continue";
                return Err(Status::bad_request(complaint));
            }
            let (revision, key) = decode_token(start)?;
            (revision, Some(key))
        };
        let Some(shelf) = self.shelf(resource) else {
            return Err(Status::unknown_path());
        };
        let objects = shelf.at(revision, self.revision).ok_or_else(|| expired(start))?;
        let list = page(resource, &objects, revision, after, options, conversions);
        if conversions.is_wanting() { Err(unconverted(resource)) } else { Ok(list) }
    }

    pub(crate) fn shelf(&self, resource: &Resource) -> Option<&Shelf> {
        self.shelves.get(resource.storage)
    }

    pub(crate) fn check_not_ahead(&self, wanted: u64) -> Result<(), Status> {
        if wanted > self.revision {
            return Err(Status::revision_too_large(wanted, self.revision));
        }
        Ok(())
    }
}

/// The objects as a row shows them: two rows may share a storage.
pub(crate) fn present(resource: &'static Resource, object: &Arc<Object>) -> Arc<Object> {
    if object.resource == resource {
        return object.clone();
    }
    Arc::new(converted(resource, object))
}

/// An object in the form of another row of its storage, where no webhook makes it.
pub(crate) fn converted(resource: &'static Resource, object: &Object) -> Object {
    let mut value = match resource.custom {
        None => events::convert(&object.value, resource),
        Some(_) => object.value.clone(),
    };
    tree::set(&mut value, "/apiVersion", resource.api_version());
    if let Some(custom) = resource.custom {
        // What a version does not have nobody sees in it.
        schema::decode::prune_unknown(&custom.message, &mut value);
    }
    let content = Content { value, managed_fields: object.managed_fields() };
    content.into_object(resource, object.key.clone(), object.revision)
}

/// Reads a `resourceVersion` parameter; `None` when it is unset.
pub(crate) fn parse_revision(text: &str) -> Result<Option<u64>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        Status::bad_request(format!(
            "invalid resource version: resourceVersion: Invalid value: {text:?}: \
             strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}

impl Shelf {
    /// The objects at a revision: now, or undone record by record as far as the window reaches.
    /// `None` when it does not reach.
    fn at(&self, revision: u64, now: u64) -> Option<Cow<'_, Objects>> {
        if revision >= now
            || (revision >= self.window.floor && revision >= self.window.last_revision())
        {
            return Some(Cow::Borrowed(&self.objects));
        }
        if revision < self.window.floor {
            return None;
        }
        let mut objects = self.objects.clone();
        for entry in self.window.after(revision).rev() {
            let key = &entry.object.untouched().key;
            match &entry.previous {
                Some(previous) => objects.insert(key.clone(), previous.clone()),
                None => objects.remove(key),
            };
        }
        Some(Cow::Owned(objects))
    }
}

fn page(
    resource: &'static Resource,
    objects: &Objects,
    revision: u64,
    after: Option<NamespacedName>,
    options: &ListOptions,
    conversions: &mut Conversions,
) -> List {
    // Keys are in the order of namespace and name: a namespace is one stretch of them.
    let namespace = options.namespace.as_str();
    let begin = match after {
        Some(key) => Bound::Excluded(key),
        None => Bound::Included(NamespacedName::new(namespace, "")),
    };
    let mut rest = objects
        .range((begin, Bound::Unbounded))
        .take_while(|(key, _)| namespace.is_empty() || key.namespace == namespace)
        .map(|(_, kept)| kept);
    let limit = if options.limit == 0 { usize::MAX } else { options.limit };
    let mut items: Vec<Arc<Object>> = Vec::new();
    let mut pending = 0;
    let selecting = !options.labels.is_empty() || !options.fields.is_empty();
    let at_once = if selecting { limit.max(MIN_CONVERTED) } else { limit };
    while items.len() < limit && pending < at_once {
        let Some(kept) = rest.next() else { break };
        match chosen_of(resource, kept, options, conversions) {
            Ok(chosen) => items.extend(chosen),
            Err(Pending) => pending += 1,
        }
    }
    let left = match items.len() < limit {
        true => 0,
        // Nobody converts objects to count them: the next page may then be empty.
        false if resource.converter().is_some() || !selecting => rest.count(),
        false => rest
            .filter(|kept| matches!(chosen_of(resource, kept, options, conversions), Ok(Some(_))))
            .count(),
    };
    let last = items.last().map(|object| object.key.clone()).filter(|_| left > 0);
    List {
        resource,
        revision,
        continue_token: last.map(|key| encode_token(revision, &key)),
        remaining: (left > 0 && !selecting).then_some(left),
        items,
    }
}

/// What is not known before a webhook has converted an object.
struct Pending;

/// The object as the row shows it, if it is selected.
fn chosen_of(
    resource: &'static Resource,
    kept: &Kept,
    options: &ListOptions,
    conversions: &mut Conversions,
) -> Result<Option<Arc<Object>>, Pending> {
    let selects = |object: &Object| selects(&options.labels, &options.fields, object);
    if kept.untouched().resource == resource {
        return Ok(selects(kept.untouched()).then(|| kept.lent()));
    }
    let shown = conversions.present(resource, &kept.lent()).ok_or(Pending)?;
    Ok(Some(shown).filter(|object| selects(object)))
}

fn check_match(options: &ListOptions) -> Result<(), Status> {
    let wanted = options.resource_version_match.as_str();
    let mut errors = FieldErrors::default();
    match wanted {
        "" => {}
        _ if options.resource_version.is_empty() => errors.forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        _ if !options.continue_token.is_empty() => errors.forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden when continue is provided",
        ),
        "Exact" if options.resource_version == "0" => errors.forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        ),
        "Exact" | "NotOlderThan" => {}
        other => errors.unsupported("resourceVersionMatch", other, &["Exact", "NotOlderThan"]),
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid_kind("meta.k8s.io", "ListOptions", "", &errors))
    }
}

/// A token names the revision of the first page and the last key of this one. The real server's
/// form, so that nobody is surprised who decodes it.
fn encode_token(revision: u64, key: &NamespacedName) -> String {
    let start = format!("{}/{}", key.namespace, key.name);
    let token = json!({"v": "meta.k8s.io/v1", "rv": revision, "start": start});
    URL_SAFE_NO_PAD.encode(token.to_string())
}

fn decode_token(token: &str) -> Result<(u64, NamespacedName), Status> {
    let decode = || {
        let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).ok()?;
        let value: Value = serde_json::from_slice(&bytes).ok()?;
        let revision = value.get("rv")?.as_u64()?;
        let (namespace, name) = value.get("start")?.as_str()?.split_once('/')?;
        Some((revision, NamespacedName::new(namespace, name)))
    };
    decode()
        .ok_or_else(|| Status::bad_request("continue key is not valid: the token cannot be read"))
}

fn expired(continue_token: &str) -> Status {
    if continue_token.is_empty() {
        return Status::expired("The resourceVersion for the provided list is too old.");
    }
    Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can \
         start a new list without the continue parameter.",
    )
}
