//! Answers: JSON, YAML and text, with the headers that the real server sends.

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WARNING};
use hyper::{Response, StatusCode};
use serde::{Serialize, Serializer};
use serde_json::Value;
use store::{List, Status};

use client::{Body, BodyError};

const JSON: &str = "application/json";
/// The longest text of a Warning header, bytes; Go's clients refuse very long headers.
const MAX_WARNING_BYTES: usize = 256;

/// Text for people and probes.
pub(super) fn text(code: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    bytes(code, "text/plain; charset=utf-8", text.into())
}

/// Success with nothing to say.
pub(super) fn nothing() -> Response<Body> {
    let mut response = bytes(StatusCode::NO_CONTENT, JSON, Bytes::new());
    // What is not there has no type.
    response.headers_mut().remove(CONTENT_TYPE);
    response
}

/// A `Status`, with its own code.
pub(super) fn status(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(code, &status.to_value());
    let retry = status.details.as_ref().and_then(|details| details.retry_after_seconds);
    if let Some(seconds) = retry {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// A value as JSON.
pub(super) fn json(code: StatusCode, value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(text) => bytes(code, JSON, text.into()),
        // Only non-string map keys cannot be written, and we have none.
        Err(error) => bytes(StatusCode::INTERNAL_SERVER_ERROR, JSON, error.to_string().into()),
    }
}

/// A value as JSON or YAML.
pub(super) fn value(code: StatusCode, value: &impl Serialize, yaml: bool) -> Response<Body> {
    if !yaml {
        return json(code, value);
    }
    match serde_yaml_ng::to_string(value) {
        Ok(text) => bytes(code, "application/yaml", text.into()),
        Err(error) => self::status(&Status::internal(error)),
    }
}

/// Bytes of a given media type.
pub(super) fn bytes(code: StatusCode, media_type: &'static str, body: Bytes) -> Response<Body> {
    stream(code, media_type, full(body))
}

/// A body that comes piece by piece.
pub(super) fn stream(code: StatusCode, media_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    headers.insert(
        HeaderName::from_static("x-content-type-options"),
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// A body that is there already.
pub(crate) fn full(body: Bytes) -> Body {
    Full::new(body).map_err(|never| match never {}).map_err(|error: BodyError| error).boxed_unsync()
}

/// Adds one `Warning` header a text: code 299, the text quoted (RFC 7234, 5.5).
pub(super) fn add_warnings(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let mut quoted = String::new();
        for character in warning.chars().filter(|character| !character.is_control()) {
            if quoted.len() >= MAX_WARNING_BYTES {
                break;
            }
            if matches!(character, '"' | '\\') {
                quoted.push('\\');
            }
            quoted.push(character);
        }
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

/// A list that is written without copying its objects; items carry neither kind nor apiVersion.
pub(super) struct PlainList<'a>(pub &'a List);

impl Serialize for PlainList<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        let list = self.0;
        let mut map = serializer.serialize_map(Some(4))?;
        map.serialize_entry("kind", &list.resource.list_kind())?;
        map.serialize_entry("apiVersion", &list.resource.api_version())?;
        map.serialize_entry("metadata", &list.metadata())?;
        map.serialize_entry("items", &Items(list))?;
        map.end()
    }
}

struct Items<'a>(&'a List);

impl Serialize for Items<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.items.iter().map(|object| Item(&object.value)))
    }
}

struct Item<'a>(&'a Value);

impl Serialize for Item<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(map) => serializer.collect_map(
                map.iter().filter(|(key, _)| !matches!(key.as_str(), "kind" | "apiVersion")),
            ),
            other => other.serialize(serializer),
        }
    }
}
