//! What an object says, as a tree or as the text of it, each made of the other when it is asked for.
//!
//! A tree takes three times the memory of its text or more, and nearly all objects lie untouched
//! nearly all of the time. So they lie as text, which is at once what stands on disk and what goes
//! over the wire: an object is written as text once, however many watchers hear of it.

use std::borrow::Cow;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::{Arc, OnceLock};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::{Resource, json};

/// The name of the member of `metadata` that is kept apart from the tree.
const MANAGED_FIELDS: &str = "\"managedFields\":";

/// An object's content. It reads as the tree, without `metadata.managedFields`, which as a tree
/// would be larger than the object, and which only writes and answers look at.
///
/// It cannot be cloned, only its tree can: whoever changes a copy needs a new document.
#[derive(Debug)]
pub struct Document {
    /// At least one of the two is there.
    parsed: OnceLock<Box<Parsed>>,
    text: OnceLock<Text>,
}

#[derive(Debug)]
struct Parsed {
    value: Value,
    managed_fields: Option<Arc<str>>,
}

/// The whole object as JSON text: `apiVersion` and `kind`, then `metadata`, whose last member is
/// `managedFields`, then the rest.
#[derive(Clone, Debug)]
struct Text {
    whole: Arc<str>,
    /// Where the members after `apiVersion` and `kind` begin.
    item: u32,
    /// Where `managedFields` stand, with the comma before them.
    managed_fields: Range<u32>,
}

impl Document {
    /// A document of a tree.
    pub(crate) fn of(value: Value, managed_fields: Option<Arc<str>>) -> Self {
        let parsed = OnceLock::from(Box::new(Parsed { value, managed_fields }));
        Self { parsed, text: OnceLock::new() }
    }

    /// A document of the text of an object, and its revision. `None` when it is not laid out as we
    /// write it, by one who may write it as well. The text is read once, and no tree is made.
    ///
    /// # Errors
    /// When it is no JSON.
    pub(crate) fn of_text(
        resource: &Resource,
        text: &str,
    ) -> Result<Option<(Self, u64)>, serde_json::Error> {
        let stored: Stored<'_> = serde_json::from_str(text)?;
        let head = format!(
            "{{\"apiVersion\":\"{}\",\"kind\":\"{}\",",
            resource.api_version(),
            resource.kind
        );
        let Ok(revision) = stored.metadata.resource_version.parse() else { return Ok(None) };
        let managed_fields = match stored.metadata.managed_fields {
            None => Some(0..0),
            Some(entries) => place_of_managed_fields(text, entries.get()),
        };
        let layout = managed_fields.filter(|_| text.starts_with(&head));
        let Some((managed_fields, item)) = layout.zip(u32::try_from(head.len()).ok()) else {
            return Ok(None);
        };
        let text = Text { whole: text.into(), item, managed_fields };
        Ok(Some((Self { parsed: OnceLock::new(), text: OnceLock::from(text) }, revision)))
    }

    /// The same as text alone.
    pub(crate) fn packed(&self) -> Self {
        Self { parsed: OnceLock::new(), text: OnceLock::from(self.text().clone()) }
    }

    /// Whether it lies as text alone.
    pub(crate) fn is_packed(&self) -> bool {
        self.parsed.get().is_none()
    }

    /// `metadata.managedFields` as JSON text; `None` when nobody is on record.
    pub fn managed_fields(&self) -> Option<Arc<str>> {
        match self.parsed.get() {
            Some(parsed) => parsed.managed_fields.clone(),
            None => self.text().managed_fields().map(Arc::from),
        }
    }

    /// The JSON text of the whole object, with `managedFields`.
    pub fn whole_text(&self) -> &str {
        &self.text().whole
    }

    /// The same without `apiVersion` and `kind`, as the items of lists are.
    pub(crate) fn write_item(&self, text: &mut Vec<u8>) {
        let own = self.text();
        text.push(b'{');
        text.extend_from_slice(tail(&own.whole, own.item).as_bytes());
    }

    /// The value at a pointer of object members, below `metadata` or beside it, without making a
    /// tree for it; `null` reads as absent.
    pub(crate) fn peek(&self, pointer: &str) -> Option<Cow<'_, Value>> {
        match (self.parsed.get(), self.text.get()) {
            (None, Some(text)) => text.peek(pointer).map(Cow::Owned),
            _ => json::at(self, pointer).map(Cow::Borrowed),
        }
    }

    /// Whether a text stands anywhere in it; true also when that would take long to tell.
    pub(crate) fn may_mention(&self, text: &str) -> bool {
        match (self.parsed.get(), self.text.get()) {
            (None, Some(own)) => own.whole.contains(text),
            _ => true,
        }
    }

    fn text(&self) -> &Text {
        self.text.get_or_init(|| match self.parsed.get() {
            Some(parsed) => Text::write(&parsed.value, parsed.managed_fields.as_deref()),
            // One of the two is always there.
            None => Text::write(&Value::Null, None),
        })
    }
}

impl Deref for Document {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.parsed.get_or_init(|| Box::new(self.text().parse())).value
    }
}

impl fmt::Display for Document {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.whole_text())
    }
}

impl PartialEq for Document {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl PartialEq<Value> for Document {
    fn eq(&self, other: &Value) -> bool {
        **self == *other
    }
}

impl PartialEq<Document> for Value {
    fn eq(&self, other: &Document) -> bool {
        *self == **other
    }
}

impl Text {
    fn write(value: &Value, managed_fields: Option<&str>) -> Self {
        let nothing = Map::new();
        let members = value.as_object().unwrap_or(&nothing);
        let mut writer = Writer { text: vec![b'{'], is_first: true };
        for name in ["apiVersion", "kind"] {
            if let Some(member) = members.get(name) {
                writer.name(name);
                writer.value(member);
            }
        }
        let rest = |name: &str| !matches!(name, "apiVersion" | "kind" | "metadata");
        let metadata = members.get("metadata");
        if metadata.is_some() || members.keys().any(|name| rest(name)) {
            writer.separate();
        }
        let item = writer.position();
        let mut place = 0..0;
        if let Some(metadata) = metadata {
            writer.name("metadata");
            place = writer.metadata(metadata, managed_fields);
        }
        for (name, member) in members.iter().filter(|(name, _)| rest(name)) {
            writer.name(name);
            writer.value(member);
        }
        writer.text.push(b'}');
        // Texts and trees are written as UTF-8.
        let whole = String::from_utf8(writer.text).unwrap_or_default();
        Self { whole: whole.into(), item, managed_fields: place }
    }

    fn parse(&self) -> Parsed {
        let managed_fields = self.managed_fields().map(Arc::from);
        let plain = match managed_fields {
            None => Cow::Borrowed(&*self.whole),
            Some(_) => {
                let Range { start, end } = self.managed_fields;
                let before = self.whole.get(..index(start)).unwrap_or_default();
                Cow::Owned([before, tail(&self.whole, end)].concat())
            }
        };
        // The text was written by the same library from a tree: it reads back.
        Parsed { value: serde_json::from_str(&plain).unwrap_or_default(), managed_fields }
    }

    fn managed_fields(&self) -> Option<&str> {
        let Range { start, end } = self.managed_fields;
        let member = self.whole.get(index(start)..index(end))?;
        member.trim_start_matches(',').strip_prefix(MANAGED_FIELDS)
    }

    fn peek(&self, pointer: &str) -> Option<Value> {
        let tokens: Vec<String> = json::tokens(pointer).collect();
        let mut found = None;
        let mut reader = serde_json::Deserializer::from_str(&self.whole);
        // It ends with an error as soon as the value is found, so that the rest is not read.
        let _ = Path { tokens: &tokens, found: &mut found }.deserialize(&mut reader);
        found.filter(|value| !value.is_null())
    }
}

/// Writes JSON text member by member.
struct Writer {
    text: Vec<u8>,
    is_first: bool,
}

impl Writer {
    fn position(&self) -> u32 {
        // Objects have a limit far below this.
        u32::try_from(self.text.len()).unwrap_or(u32::MAX)
    }

    fn separate(&mut self) {
        if !std::mem::replace(&mut self.is_first, true) {
            self.text.push(b',');
        }
    }

    fn name(&mut self, name: &str) {
        self.separate();
        self.is_first = false;
        // Writing texts and trees to memory cannot fail.
        let _ = serde_json::to_writer(&mut self.text, name);
        self.text.push(b':');
    }

    fn value(&mut self, value: &Value) {
        let _ = serde_json::to_writer(&mut self.text, value);
    }

    /// Writes the metadata; says where the managers stand.
    fn metadata(&mut self, metadata: &Value, managed_fields: Option<&str>) -> Range<u32> {
        self.value(metadata);
        let Some((entries, members)) = managed_fields.zip(metadata.as_object()) else {
            return 0..0;
        };
        self.text.pop();
        let start = self.position();
        if !members.is_empty() {
            self.text.push(b',');
        }
        self.text.extend_from_slice(MANAGED_FIELDS.as_bytes());
        self.text.extend_from_slice(entries.as_bytes());
        let end = self.position();
        self.text.push(b'}');
        start..end
    }
}

/// What is read of a stored text: the rest is only checked.
#[derive(Deserialize)]
struct Stored<'a> {
    #[serde(borrow)]
    metadata: StoredMetadata<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredMetadata<'a> {
    #[serde(borrow, default)]
    resource_version: Cow<'a, str>,
    #[serde(borrow)]
    managed_fields: Option<&'a RawValue>,
}

/// Where the managers stand in a text, of which their entries are a part. `None` when they are not
/// the last member of the metadata.
fn place_of_managed_fields(text: &str, entries: &str) -> Option<Range<u32>> {
    let entries_start = (entries.as_ptr() as usize).checked_sub(text.as_ptr() as usize)?;
    let end = entries_start.checked_add(entries.len())?;
    let before = text.get(..entries_start)?.strip_suffix(MANAGED_FIELDS)?;
    let start = before.strip_suffix(',').unwrap_or(before).len();
    if !text.get(end..)?.starts_with('}') {
        return None;
    }
    Some(u32::try_from(start).ok()?..u32::try_from(end).ok()?)
}

fn tail(text: &str, from: u32) -> &str {
    text.get(index(from)..).unwrap_or_default()
}

fn index(position: u32) -> usize {
    position as usize
}

/// Reads the value at a path, and nothing after it.
struct Path<'a> {
    tokens: &'a [String],
    found: &'a mut Option<Value>,
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> DeserializeSeed<'de> for Path<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if !self.tokens.is_empty() {
            return deserializer.deserialize_map(self);
        }
        *self.found = Some(Value::deserialize(deserializer)?);
        Err(D::Error::custom("found"))
    }
}

impl<'de> Visitor<'de> for Path<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let Some((first, tokens)) = self.tokens.split_first() else { return Ok(()) };
        while let Some(name) = members.next_key::<Name<'de>>()? {
            if name.0 == *first {
                return members.next_value_seed(Path { tokens, found: self.found });
            }
            members.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry;

    fn config_maps() -> &'static Resource {
        registry::find("", "v1", "configmaps").expect("a resource")
    }

    fn whole() -> Value {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"labels": {"a/b": "1"}, "name": "c", "resourceVersion": "7", "uid": null},
            "data": {"\"quoted\"": "\n", "name": "other"}, "binaryData": {},
        })
    }

    #[test]
    fn text_and_tree_say_the_same_whichever_came_first() {
        let entries = json!([{"manager": "a \"quoted\" one", "time": "metadata"}]);
        for entries in [None, Some(entries)] {
            let managed_fields = entries.as_ref().map(|entries| entries.to_string().into());
            let document = Document::of(whole(), managed_fields.clone());
            let mut shown = whole();
            if let Some(entries) = &entries {
                json::set(&mut shown, "/metadata/managedFields", entries.clone());
            }
            let read = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
            assert_eq!(read(document.whole_text()), shown);
            let stored = Document::of_text(config_maps(), document.whole_text()).expect("JSON");
            let (stored, revision) = stored.expect("our layout");
            assert_eq!(revision, 7);
            for packed in [document.packed(), stored] {
                assert!(packed.is_packed());
                assert_eq!(packed.managed_fields(), managed_fields, "of the text");
                let mut item = Vec::new();
                packed.write_item(&mut item);
                let mut wanted = shown.clone();
                json::remove(&mut wanted, "/apiVersion");
                json::remove(&mut wanted, "/kind");
                assert_eq!(read(std::str::from_utf8(&item).expect("UTF-8")), wanted);
                assert!(packed.is_packed(), "nobody asked for the tree");
                assert_eq!(packed, whole());
                assert_eq!(packed.managed_fields(), managed_fields, "of the tree");
            }
        }
    }

    #[test]
    fn values_are_found_in_a_text_as_in_its_tree() {
        let tree = Document::of(whole(), Some("[{}]".into()));
        let packed = tree.packed();
        for pointer in [
            "/metadata/labels",
            "/metadata/labels/a~1b",
            "/metadata/name",
            "/metadata/uid",
            "/data/name",
            "/data/\"quoted\"",
            "/binaryData",
            "/kind/name",
            "/absent/name",
            "/metadata/labels/absent",
        ] {
            assert_eq!(packed.peek(pointer), tree.peek(pointer), "{pointer}");
        }
        assert!(packed.is_packed(), "looking makes no tree");
        assert!(packed.may_mention("other") && !packed.may_mention("nobody"));
        assert!(tree.may_mention("nobody"), "a tree is not searched");
    }

    #[test]
    fn another_layout_is_known_for_one_and_what_is_no_json_is_refused() {
        let layout = |text: &str| Document::of_text(config_maps(), text).map(|read| read.is_some());
        let head = r#"{"apiVersion":"v1","kind":"ConfigMap","#;
        let good = format!(r#"{head}"metadata":{{"resourceVersion":"7","managedFields":[]}}}}"#);
        assert!(layout(&good).expect("JSON"));
        for other in [
            // As before texts were kept.
            r#"{"apiVersion":"v1","data":{},"kind":"ConfigMap","metadata":{"resourceVersion":"7"}}"#.to_owned(),
            good.replace("v1", "v2"),
            good.replace("\"7\"", "\"seven\""),
            good.replace("[]", "[],\"name\":\"c\""),
            good.replace("[]", "[] "),
        ] {
            assert!(!layout(&other).expect("JSON"), "{other}");
        }
        layout(&good[1..]).expect_err("no object");
        layout(&good.replace("[]", "[")).expect_err("no JSON");
    }

    #[test]
    fn what_is_not_whole_can_be_written_too() {
        for (value, managed_fields, item) in [
            (Value::Null, None, "{}"),
            (json!({"kind": "A"}), Some("[]"), "{}"),
            (json!({"metadata": {}}), Some("[]"), r#"{"metadata":{"managedFields":[]}}"#),
            (json!({"kind": "A", "a": 1, "z": 2}), None, r#"{"a":1,"z":2}"#),
        ] {
            let document = Document::of(value.clone(), managed_fields.map(Arc::from));
            let mut written = Vec::new();
            document.write_item(&mut written);
            assert_eq!(String::from_utf8_lossy(&written), item);
            let packed = document.packed();
            assert_eq!(packed.as_object(), Some(value.as_object().unwrap_or(&Map::new())));
        }
    }
}
