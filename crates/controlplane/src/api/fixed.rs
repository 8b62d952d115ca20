//! The documents about the API itself: discovery, OpenAPI, the version.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use client::Body;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use hyper::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};
use store::{Resource, Status, discovery, openapi};

use super::negotiate::{Form, accepted};
use super::route::Route;
use super::{Call, answer};
use crate::writer::Shared;

/// The Kubernetes version that we answer as: its minor decides which paths clients take.
const MINOR: u32 = 33;

/// What clients ask version 2 of OpenAPI by, whatever comes behind it.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2";

/// A document as it is sent.
struct Document {
    body: Bytes,
    etag: String,
}

/// Documents that clients ask for again and again, made once for each change of what is served.
#[derive(Default)]
pub(super) struct Documents {
    made: Mutex<Option<Arc<Made>>>,
}

/// The documents of one state of the API.
struct Made {
    /// The store's count of changes.
    generation: u64,
    rows: Vec<&'static Resource>,
    /// Aggregated discovery of the core group and of the named ones.
    aggregated_core: Document,
    aggregated_groups: Document,
    openapi_index: Document,
    /// The entity tags of version 2 of OpenAPI in protobuf and in JSON, once they were made. The
    /// documents are too large to be kept.
    v2_protobuf_etag: OnceLock<String>,
    v2_json_etag: OnceLock<String>,
}

impl Documents {
    /// Answers a GET of a document.
    pub fn answer(
        &self,
        route: &Route,
        call: &Call,
        shared: &Shared,
    ) -> Result<Response<Body>, Status> {
        let made = self.of_now(shared);
        match route {
            Route::OpenApiV2 => Ok(version_2(&made, &call.headers)),
            Route::OpenApiV3 => {
                Ok(made.openapi_index.answer(&call.headers, "application/json", false))
            }
            Route::OpenApiV3Group(path) => {
                let document = openapi::v3_document(&made.rows, path);
                let document = Document::of(document.ok_or_else(Status::unknown_path)?);
                // With the hash of its content in the URL it may be kept for ever.
                let immutable = call.query().find("hash").is_some();
                Ok(document.answer(&call.headers, "application/json", immutable))
            }
            _ => negotiated(&made, route, call),
        }
    }

    fn of_now(&self, shared: &Shared) -> Arc<Made> {
        // A panic elsewhere leaves whole documents or none.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let (generation, rows) = {
            let store = shared.read();
            match &*made {
                Some(made) if made.generation == store.generation() => return Arc::clone(made),
                _ => (store.generation(), store.served()),
            }
        };
        let new = Arc::new(Made::new(generation, rows));
        *made = Some(Arc::clone(&new));
        new
    }
}

impl Made {
    fn new(generation: u64, rows: Vec<&'static Resource>) -> Self {
        Self {
            generation,
            aggregated_core: Document::new(&discovery::aggregated(&rows, true)),
            aggregated_groups: Document::new(&discovery::aggregated(&rows, false)),
            openapi_index: Document::new(&openapi::v3_index(&rows)),
            v2_protobuf_etag: OnceLock::new(),
            v2_json_etag: OnceLock::new(),
            rows,
        }
    }
}

/// The one document of version 2: in protobuf for those that ask for it, as all Go clients do.
fn version_2(made: &Made, headers: &HeaderMap) -> Response<Body> {
    let mut accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let is_protobuf = accepted.any(|value| value.contains(V2_PROTOBUF));
    let (etag, media_type) = match is_protobuf {
        true => (&made.v2_protobuf_etag, openapi::V2_MEDIA_TYPE),
        false => (&made.v2_json_etag, "application/json"),
    };
    if let Some(etag) = etag.get()
        && is_known(headers, etag)
    {
        return unchanged(etag, false);
    }
    let document = match is_protobuf {
        true => Document::of(openapi::v2_protobuf(&made.rows)),
        false => Document::of(openapi::v2_json(&made.rows)),
    };
    etag.get_or_init(|| document.etag.clone());
    document.answer(headers, media_type, false)
}

fn negotiated(made: &Made, route: &Route, call: &Call) -> Result<Response<Body>, Status> {
    let accepted = accepted(&call.headers, true)?;
    let aggregated = match (accepted.form, route) {
        (Form::Discovery, Route::CoreVersions) => Some(&made.aggregated_core),
        (Form::Discovery, Route::Groups) => Some(&made.aggregated_groups),
        _ => None,
    };
    if let Some(document) = aggregated {
        return Ok(document.answer(&call.headers, discovery::AGGREGATED_MEDIA_TYPE, false));
    }
    let rows = &made.rows;
    let value = match route {
        Route::CoreVersions => Some(discovery::api_versions(host(call))),
        Route::Groups => Some(discovery::api_group_list(rows)),
        Route::Group(group) => discovery::api_group(rows, group),
        Route::Resources { group, version } => discovery::api_resource_list(rows, group, version),
        Route::Version => Some(version()),
        Route::Root => Some(root(rows)),
        _ => None,
    };
    let value = value.ok_or_else(Status::unknown_path)?;
    let mut response = answer::value(StatusCode::OK, &value, accepted.encoding);
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

fn root(rows: &[&Resource]) -> Value {
    let groups = rows.iter().map(|row| match row.group {
        "" => format!("/api/{}", row.version),
        group => format!("/apis/{group}/{}", row.version),
    });
    let fixed = [
        ".well-known/openid-configuration",
        "api",
        "apis",
        "healthz",
        "livez",
        "openapi/v2",
        "openapi/v3",
        "openid/v1/jwks",
        "readyz",
        "version",
    ];
    let fixed = fixed.into_iter().map(|path| format!("/{path}"));
    // In order, each once.
    let paths: BTreeSet<String> = fixed.chain(groups).collect();
    json!({"paths": paths})
}

impl Document {
    fn new(value: &Value) -> Self {
        Self::of(value.to_string())
    }

    fn of(body: impl Into<Bytes>) -> Self {
        let body = body.into();
        Self { etag: discovery::etag(&body), body }
    }

    /// The document, or 304 for a client that has it already.
    fn answer(
        &self,
        asked: &HeaderMap,
        media_type: &'static str,
        immutable: bool,
    ) -> Response<Body> {
        if is_known(asked, &self.etag) {
            return unchanged(&self.etag, immutable);
        }
        let response = answer::bytes(StatusCode::OK, media_type, self.body.clone());
        cached(response, &self.etag, immutable)
    }
}

/// Whether a client has the document of an entity tag.
fn is_known(asked: &HeaderMap, etag: &str) -> bool {
    let known = asked.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    known.is_some_and(|known| known.contains(etag))
}

/// What a client that has a document is told.
fn unchanged(etag: &str, immutable: bool) -> Response<Body> {
    let mut response = answer::text(StatusCode::NOT_MODIFIED, Bytes::new());
    // What is not sent has no type.
    response.headers_mut().remove(CONTENT_TYPE);
    cached(response, etag, immutable)
}

/// The headers by which clients keep a document. `immutable` ones they need not ask for again.
fn cached(mut response: Response<Body>, etag: &str, immutable: bool) -> Response<Body> {
    let headers = response.headers_mut();
    if let Ok(etag) = HeaderValue::from_str(etag) {
        headers.insert(ETAG, etag);
    }
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    let policy = if immutable { "public, immutable" } else { "public" };
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(policy));
    response
}

/// The server's name as the client used it.
fn host(call: &Call) -> &str {
    let header = call.headers.get(hyper::header::HOST).and_then(|value| value.to_str().ok());
    call.uri.authority().map(|authority| authority.as_str()).or(header).unwrap_or_default()
}

/// `GET /version`. What comes after the `+` says who we are.
fn version() -> Value {
    json!({
        "major": "1",
        "minor": MINOR.to_string(),
        "gitVersion": format!("v1.{MINOR}.0+flatnet-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", platform()),
    })
}

/// The architecture by Go's name.
fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
