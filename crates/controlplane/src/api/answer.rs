//! Answers: JSON, YAML, protobuf and text, with the headers that the real server sends.

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WARNING};
use hyper::{Response, StatusCode};
use serde::Serialize;
use serde_json::Value;
use store::{List, Object, Status};

use client::{Body, BodyError};

use super::negotiate::Encoding;
use super::protobuf;

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

/// A `Status`, with its own code, as clients of no preference get it.
pub(super) fn status(status: &Status) -> Response<Body> {
    encoded_status(status, Encoding::Json)
}

/// A `Status`, with its own code.
pub(super) fn encoded_status(status: &Status, encoding: Encoding) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = value(code, &status.to_value(), encoding);
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

/// A value. One that protobuf does not know goes out as JSON, which every client reads.
pub(super) fn value(code: StatusCode, value: &Value, encoding: Encoding) -> Response<Body> {
    match encoding {
        Encoding::Json => json(code, value),
        Encoding::Yaml => match serde_yaml_ng::to_string(value) {
            Ok(text) => bytes(code, "application/yaml", text.into()),
            Err(error) => status(&Status::internal(error)),
        },
        Encoding::Protobuf => match schema::protobuf::encode(value) {
            Some(encoded) => bytes(code, protobuf::MEDIA_TYPE, encoded.into()),
            None => json(code, value),
        },
    }
}

/// An object.
pub(super) fn object(code: StatusCode, object: &Object, encoding: Encoding) -> Response<Body> {
    if encoding != Encoding::Json {
        return value(code, &object.to_value(), encoding);
    }
    let mut text = Vec::new();
    object.write_text(&mut text);
    bytes(code, JSON, text.into())
}

/// A list. As text or protobuf it is written without a copy of all objects.
pub(super) fn list(code: StatusCode, list: &List, encoding: Encoding) -> Response<Body> {
    if encoding == Encoding::Yaml {
        return value(code, &list.to_value(), encoding);
    }
    if encoding == Encoding::Protobuf {
        let (api_version, kind) = (list.resource.api_version(), list.resource.list_kind());
        let items = list.items.iter().map(|object| object.to_value());
        let encoded = schema::protobuf::encode_list(&api_version, &kind, &list.metadata(), items);
        if let Some(encoded) = encoded {
            return bytes(code, protobuf::MEDIA_TYPE, encoded.into());
        }
    }
    let mut text = Vec::new();
    list.write_text(&mut text);
    bytes(code, JSON, text.into())
}

/// Bytes of a given media type.
pub(super) fn bytes(code: StatusCode, media_type: &'static str, body: Bytes) -> Response<Body> {
    stream(code, media_type, full(body))
}

/// A document about who signs tokens, which clients may keep for an hour (the real server's).
pub(super) fn issuer(media_type: &'static str, document: &Value) -> Response<Body> {
    let mut response = bytes(StatusCode::OK, media_type, document.to_string().into());
    let policy = HeaderValue::from_static("public, max-age=3600");
    response.headers_mut().insert(CACHE_CONTROL, policy);
    response
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
