//! The documents that depend on the program only: discovery, OpenAPI, the version.

use std::collections::BTreeMap;

use client::Body;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use hyper::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};
use store::{Status, discovery, openapi, registry};

use super::negotiate::{Form, accepted};
use super::route::Route;
use super::{Call, answer};

/// The Kubernetes version that we answer as: its minor decides which paths clients take.
const MINOR: u32 = 33;

/// A document as it is sent.
struct Document {
    body: Bytes,
    etag: String,
}

/// Documents that clients ask for again and again, made once.
pub(super) struct Documents {
    /// Aggregated discovery of the core group and of the named ones.
    aggregated_core: Document,
    aggregated_groups: Document,
    openapi_index: Document,
    /// By the path below `/openapi/v3/`.
    openapi_groups: BTreeMap<String, Document>,
}

impl Documents {
    pub fn new() -> Self {
        let mut openapi_groups = BTreeMap::new();
        for resource in registry::resources() {
            let path = match resource.group {
                "" => format!("api/{}", resource.version),
                group => format!("apis/{group}/{}", resource.version),
            };
            if let Some(document) = openapi::v3_document(resource.group, resource.version) {
                openapi_groups.entry(path).or_insert_with(|| Document::new(&document));
            }
        }
        Self {
            aggregated_core: Document::new(&discovery::aggregated(true)),
            aggregated_groups: Document::new(&discovery::aggregated(false)),
            openapi_index: Document::new(&openapi::v3_index()),
            openapi_groups,
        }
    }

    /// Answers a GET of a fixed document.
    pub fn answer(&self, route: &Route, call: &Call) -> Result<Response<Body>, Status> {
        match route {
            Route::OpenApiV2 => Ok(answer::bytes(
                StatusCode::OK,
                openapi::V2_MEDIA_TYPE,
                Bytes::from_static(openapi::V2_DOCUMENT),
            )),
            Route::OpenApiV3 => {
                Ok(self.openapi_index.answer(&call.headers, "application/json", false))
            }
            Route::OpenApiV3Group(path) => {
                let document = self.openapi_groups.get(path).ok_or_else(Status::unknown_path)?;
                // With the hash of its content in the URL it may be kept for ever.
                let immutable = call.query().find("hash").is_some();
                Ok(document.answer(&call.headers, "application/json", immutable))
            }
            _ => self.negotiated(route, call),
        }
    }

    fn negotiated(&self, route: &Route, call: &Call) -> Result<Response<Body>, Status> {
        let accepted = accepted(&call.headers, true)?;
        let aggregated = accepted.form == Form::Discovery;
        let value = match route {
            Route::CoreVersions if aggregated => {
                return Ok(self.aggregated_core.answer(
                    &call.headers,
                    discovery::AGGREGATED_MEDIA_TYPE,
                    false,
                ));
            }
            Route::Groups if aggregated => {
                return Ok(self.aggregated_groups.answer(
                    &call.headers,
                    discovery::AGGREGATED_MEDIA_TYPE,
                    false,
                ));
            }
            Route::CoreVersions => Some(discovery::api_versions(host(call))),
            Route::Groups => Some(discovery::api_group_list()),
            Route::Group(group) => discovery::api_group(group),
            Route::Resources { group, version } => discovery::api_resource_list(group, version),
            Route::Version => Some(version()),
            Route::Root => Some(self.root()),
            _ => None,
        };
        let value = value.ok_or_else(Status::unknown_path)?;
        let mut response = answer::value(StatusCode::OK, &value, accepted.encoding);
        response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
        Ok(response)
    }

    fn root(&self) -> Value {
        let mut paths: Vec<String> =
            ["api", "apis", "healthz", "livez", "openapi/v2", "openapi/v3"]
                .into_iter()
                .chain(["readyz", "version"])
                .chain(self.openapi_groups.keys().map(String::as_str))
                .map(|path| format!("/{path}"))
                .collect();
        paths.sort();
        json!({"paths": paths})
    }
}

impl Document {
    fn new(value: &Value) -> Self {
        Self { etag: discovery::etag(value), body: value.to_string().into() }
    }

    /// The document, or 304 for a client that has it already.
    fn answer(
        &self,
        asked: &HeaderMap,
        media_type: &'static str,
        immutable: bool,
    ) -> Response<Body> {
        let known = asked.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok());
        let is_known = known.is_some_and(|known| known.contains(&self.etag));
        let mut response = match is_known {
            true => answer::bytes(StatusCode::NOT_MODIFIED, media_type, Bytes::new()),
            false => answer::bytes(StatusCode::OK, media_type, self.body.clone()),
        };
        let headers = response.headers_mut();
        if is_known {
            headers.remove(CONTENT_TYPE);
        }
        if let Ok(etag) = HeaderValue::from_str(&self.etag) {
            headers.insert(ETAG, etag);
        }
        headers.insert(VARY, HeaderValue::from_static("Accept"));
        headers.insert(
            CACHE_CONTROL,
            HeaderValue::from_static(match immutable {
                true => "public, immutable",
                false => "public",
            }),
        );
        response
    }
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
