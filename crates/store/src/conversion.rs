//! Versions of custom objects that a webhook makes of one another: what it is asked, what its
//! answers mean, and what of them a request knows already. The shell sends and waits.
//!
//! A read or a write that needs an object in another version notes it as wanted and ends; the
//! shell asks the webhook, and runs the whole again with what it has learnt.
//!
//! Source: kubernetes.io, "Versions in CustomResourceDefinitions", "Webhook conversion";
//! apiextensions.k8s.io/v1 ConversionReview.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::NamespacedName;
use serde_json::{Map, Value, json as tree};

use crate::read::present;
use crate::state::Content;
use crate::validate::FieldErrors;
use crate::webhooks::Callee;
use crate::write::{check_size, validate_annotations, validate_labels};
use crate::{Object, Resource, Status, json};

/// How long a webhook may take, seconds (the real server's; definitions cannot change it).
const TIMEOUT_SECONDS: u64 = 30;
/// Most objects of one ConversionReview: a page of kubectl's.
const MAX_REVIEW_OBJECTS: usize = 500;
/// Most bytes of the objects of one ConversionReview, unless one alone is larger.
const MAX_REVIEW_BYTES: usize = 4 << 20;
/// Versions of ConversionReview that are spoken, the newer first.
const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];

/// The webhook that converts the objects of a definition.
#[derive(Debug)]
pub struct Converter {
    /// Where it answers.
    pub callee: Callee,
    /// The versions of ConversionReview that it knows, the one that it likes best first.
    review_versions: Vec<&'static str>,
    /// The versions that the definition has.
    versions: Vec<&'static str>,
}

/// Objects in other versions than they are kept in, as far as a request has them.
#[derive(Clone, Debug, Default)]
pub struct Conversions {
    known: BTreeMap<Key, Vec<Known>>,
    wanted: Vec<Wanted>,
}

/// What is converted: storage, version that is wanted, object and its revision.
type Key = (&'static str, &'static str, NamespacedName, u64);

#[derive(Clone, Debug)]
struct Known {
    given: Arc<Object>,
    converted: Arc<Object>,
}

#[derive(Clone, Debug)]
struct Wanted {
    object: Arc<Object>,
    row: &'static Resource,
}

/// What one ConversionReview asks for.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Who is asked.
    pub converter: &'static Converter,
    row: &'static Resource,
    objects: Vec<Arc<Object>>,
}

impl Converter {
    /// Reads `spec` of a definition; `None` where no webhook converts.
    pub(crate) fn read(spec: &'static Value) -> Option<Self> {
        if json::text(spec, "/conversion/strategy") != "Webhook" {
            return None;
        }
        let versions = json::items(spec, "/versions").iter();
        Some(Self {
            callee: Callee::read(
                json::at(spec, "/conversion/webhook/clientConfig").unwrap_or(&Value::Null),
                TIMEOUT_SECONDS,
            ),
            review_versions: json::texts(spec, "/conversion/webhook/conversionReviewVersions"),
            versions: versions.map(|version| json::text(version, "/name")).collect(),
        })
    }
}

/// The webhook without which a row cannot show an object.
pub(crate) fn converter_for(row: &'static Resource, object: &Object) -> Option<&'static Converter> {
    if row.version == object.resource.version {
        return None;
    }
    row.converter()
}

impl Conversions {
    /// The object as a row shows it; `None` where that is not known yet, which is noted.
    pub(crate) fn present(
        &mut self,
        row: &'static Resource,
        object: &Arc<Object>,
    ) -> Option<Arc<Object>> {
        if converter_for(row, object).is_none() {
            return Some(present(row, object));
        }
        let known = self.known.get(&key(row, object)).into_iter().flatten();
        // What is stored never changes; what is about to be stored has no revision yet.
        let is_it = |known: &&Known| object.revision > 0 || known.given.value == object.value;
        let found = known.into_iter().find(is_it).map(|known| known.converted.clone());
        if found.is_none() {
            self.wanted.push(Wanted { object: object.clone(), row });
        }
        found
    }

    /// As a read of one object that is at hand.
    ///
    /// # Errors
    /// 500 where a webhook is to convert it first.
    pub fn object(
        &mut self,
        row: &'static Resource,
        object: &Arc<Object>,
    ) -> Result<Arc<Object>, Status> {
        self.present(row, object).ok_or_else(|| unconverted(row))
    }

    /// Whether something is missing: what came of the request then means nothing.
    pub fn is_wanting(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// What webhooks are to be asked.
    pub fn take_wanted(&mut self) -> Vec<Batch> {
        let mut batches: Vec<Batch> = Vec::new();
        let mut bytes = 0_usize;
        for Wanted { object, row } in std::mem::take(&mut self.wanted) {
            let Some(converter) = row.converter() else { continue };
            let size = object.value.whole_text().len();
            bytes = bytes.saturating_add(size);
            match batches.last_mut() {
                Some(batch)
                    if std::ptr::eq(batch.row, row)
                        && batch.objects.len() < MAX_REVIEW_OBJECTS
                        && bytes <= MAX_REVIEW_BYTES =>
                {
                    batch.objects.push(object);
                }
                _ => {
                    bytes = size;
                    batches.push(Batch { converter, row, objects: vec![object] });
                }
            }
        }
        batches
    }

    /// Takes up what a webhook made of a batch.
    pub fn learn(&mut self, batch: &Batch, converted: Vec<Object>) {
        for (given, converted) in batch.objects.iter().zip(converted) {
            let known = Known { given: given.clone(), converted: Arc::new(converted) };
            self.known.entry(key(batch.row, given)).or_default().push(known);
        }
    }
}

fn key(row: &'static Resource, object: &Object) -> Key {
    (row.storage, row.version, object.key.clone(), object.revision)
}

/// What a request ends with that needs an object in a version that only a webhook makes.
pub(crate) fn unconverted(row: &Resource) -> Status {
    Status::failure(
        500,
        "",
        format!(
            "an object is not kept in {}, which only the conversion webhook of its \
             CustomResourceDefinition makes, and which is not asked here",
            row.api_version()
        ),
    )
}

impl Batch {
    /// The ConversionReview.
    ///
    /// # Errors
    /// 500 where the webhook cannot be asked.
    pub fn review(&self, uid: &str) -> Result<Value, Status> {
        let known = &self.converter.versions;
        let strange = self.objects.iter().find(|one| !known.contains(&one.resource.version));
        if let Some(strange) = strange {
            let version = strange.resource.api_version();
            let message = format!("request to convert CR from an invalid group/version: {version}");
            return Err(Status::failure(500, "", message));
        }
        let objects: Vec<Value> = self.objects.iter().map(|object| object.to_value()).collect();
        Ok(tree!({
            "kind": "ConversionReview",
            "apiVersion": format!("apiextensions.k8s.io/{}", self.review_version()?),
            "request": {
                "uid": uid,
                "desiredAPIVersion": self.row.api_version(),
                "objects": objects,
            },
        }))
    }

    /// The failure of a call.
    pub fn failure(&self, why: impl std::fmt::Display) -> Status {
        Status::failure(500, "", format!("conversion webhook for {} failed: {why}", self.kind()))
    }

    /// What an answer means: the objects in the version that was asked for.
    ///
    /// # Errors
    /// 500, in the real server's words.
    pub fn converted(&self, uid: &str, answer: &Value) -> Result<Vec<Object>, Status> {
        let found = self.objects_of(uid, answer).map_err(|why| self.failure(why))?;
        let fault = |what: String| {
            let message = format!("conversion webhook for {} returned {what}", self.kind());
            Status::failure(500, "", message)
        };
        if found.len() != self.objects.len() {
            let (count, expected) = (found.len(), self.objects.len());
            return Err(fault(format!("{count} objects, expected {expected}")));
        }
        let mut converted = Vec::with_capacity(found.len());
        for (index, (given, made)) in self.objects.iter().zip(found).enumerate() {
            let object = self.accept(given, made);
            let is_alone = self.objects.len() == 1;
            // The real server counts from 1 where there are several.
            let index = index + 1;
            converted.push(object.map_err(|flaw| match (flaw, is_alone) {
                (Flaw::Kind(why), true) => fault(format!("invalid object at index 0: {why}")),
                (Flaw::Object(why), true) => fault(format!("invalid object: {why}")),
                (Flaw::Metadata(why), true) => fault(format!("invalid metadata: {why}")),
                (Flaw::Kind(why) | Flaw::Object(why), false) => {
                    fault(format!("invalid converted object at index {index}: {why}"))
                }
                (Flaw::Metadata(why), false) => {
                    fault(format!("invalid metadata in object at index {index}: {why}"))
                }
            })?);
        }
        Ok(converted)
    }

    /// The kind that is converted, as the real server's errors write it.
    fn kind(&self) -> String {
        let version = self.objects.first().map(|object| object.resource.api_version());
        format!("{}, Kind={}", version.unwrap_or_default(), self.row.kind)
    }

    fn review_version(&self) -> Result<&'static str, Status> {
        let mut listed = self.converter.review_versions.iter().copied();
        listed
            .find(|version| REVIEW_VERSIONS.contains(version))
            .ok_or_else(|| Status::failure(500, "", "no supported conversion review versions"))
    }

    /// The objects of an answer.
    fn objects_of<'a>(&self, uid: &str, answer: &'a Value) -> Result<&'a [Value], String> {
        let is_first = self.review_version().is_ok_and(|version| version == "v1");
        let text = |pointer| json::text(answer, pointer);
        let (version, kind) = (text("/apiVersion"), text("/kind"));
        if is_first && (version, kind) != ("apiextensions.k8s.io/v1", "ConversionReview") {
            return Err(format!(
                "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got \
                 {version}, Kind={kind}"
            ));
        }
        let response = json::at(answer, "/response").filter(|response| response.is_object());
        let response = response.ok_or("no response provided")?;
        let found = json::text(response, "/uid");
        if is_first && found != uid {
            return Err(format!("expected response.uid={uid:?}, got {found:?}"));
        }
        match (json::text(response, "/result/status"), json::text(response, "/result/message")) {
            ("Success", _) => Ok(json::items(response, "/convertedObjects")),
            (status, "") => Err(format!("response.result.status was '{status}', not 'Success'")),
            (_, message) => Err(message.to_owned()),
        }
    }

    /// One object of an answer.
    fn accept(&self, given: &Object, made: &Value) -> Result<Object, Flaw> {
        let (expected, received) = (self.row.api_version(), json::text(made, "/apiVersion"));
        if expected != received {
            let why = format!("invalid groupVersion (expected {expected}, received {received})");
            return Err(Flaw::Kind(why));
        }
        let (expected, received) = (self.row.kind, json::text(made, "/kind"));
        if expected != received {
            let why = format!("invalid kind (expected {expected}, received {received})");
            return Err(Flaw::Kind(why));
        }
        for (field, name) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
            let pointer = format!("/metadata/{field}");
            let (was, is) = (json::text(&given.value, &pointer), json::text(made, &pointer));
            if was != is {
                return Err(Flaw::Object(format!("must have the same {name}: {was} != {is}")));
            }
        }
        let metadata = restored(&given.value, made).map_err(Flaw::Metadata)?;
        let mut value = made.clone();
        json::set(&mut value, "/metadata", metadata);
        check_size(&value).map_err(|status| Flaw::Object(status.message))?;
        if let Some(message) = self.row.message() {
            schema::decode::prune_unknown(message, &mut value);
        }
        let content = Content { value, managed_fields: given.managed_fields() };
        Ok(content.into_object(self.row, given.key.clone(), given.revision))
    }
}

/// What is wrong with a converted object.
enum Flaw {
    /// Its version or kind.
    Kind(String),
    /// Which object it is, or how large.
    Object(String),
    /// Its metadata.
    Metadata(String),
}

/// The metadata of a converted object: a webhook may change labels and annotations of it.
fn restored(given: &Value, made: &Value) -> Result<Value, String> {
    let made = match made.get("metadata") {
        None => return Err("missing metadata in converted object".to_owned()),
        Some(Value::Object(metadata)) => metadata,
        Some(other) => {
            return Err(format!("invalid metadata of type {} in converted object", go_type(other)));
        }
    };
    let mut metadata = given.get("metadata").cloned().unwrap_or_else(|| tree!({}));
    for field in ["labels", "annotations"] {
        let pointer = format!("/{field}");
        let texts = match made.get(field) {
            None | Some(Value::Null) => {
                json::remove(&mut metadata, &pointer);
                continue;
            }
            Some(Value::Object(texts)) => texts,
            Some(other) => {
                let found = go_type(other);
                return Err(format!(
                    "invalid metadata.{field} of type {found} in converted object"
                ));
            }
        };
        check_texts(field, texts, json::at(&metadata, &pointer))?;
        match texts.is_empty() {
            true => {
                json::remove(&mut metadata, &pointer);
            }
            false => json::set(&mut metadata, &pointer, Value::Object(texts.clone())),
        }
    }
    Ok(metadata)
}

/// Checks labels or annotations of a converted object; what stays as it was is not judged again.
fn check_texts(field: &str, texts: &Map<String, Value>, old: Option<&Value>) -> Result<(), String> {
    if let Some((name, other)) = texts.iter().find(|(_, text)| !text.is_string()) {
        let found = go_type(other);
        return Err(format!(
            "metadata.{field}[{name}] must be a string, but is {found} in converted object"
        ));
    }
    if old.and_then(Value::as_object) == Some(texts) {
        return Ok(());
    }
    let mut errors = FieldErrors::default();
    let given = Value::Object(texts.clone());
    match field {
        "labels" => validate_labels("metadata.labels", Some(&given), &mut errors),
        _ => validate_annotations("metadata.annotation", Some(&given), &mut errors),
    }
    if errors.is_empty() { Ok(()) } else { Err(errors.summary()) }
}

/// What Go calls the type of a decoded JSON value.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}
