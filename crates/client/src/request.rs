//! Requests with one answer: get, list, create, update, patch, delete.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::path::with_query;
use crate::{
    Body, ClientError, Endpoint, HttpsTransport, Kubeconfig, List, ListOptions, ResourcePath,
    Status, Transport, WatchSpec, Watcher,
};

/// Longest wait for an answer and its whole body, milliseconds. The server's own limit is 60 s.
const REQUEST_TIMEOUT_MS: u64 = 65_000;
/// Largest answer that is read into memory, bytes. Lists are asked for in pages well below.
const MAX_RESPONSE_BYTES: usize = 64 << 20;
/// Largest `Status` that is read, bytes.
const MAX_STATUS_BYTES: usize = 1 << 20;

/// How a patch is to be read: the three types of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902, a list of operations.
    Json,
    /// RFC 7386: given fields replace, nulls remove.
    Merge,
    /// Kubernetes' own: lists merge by key where the kind says so.
    Strategic,
}

impl PatchKind {
    const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
        }
    }
}

/// `meta/v1 DeleteOptions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteOptions {
    /// Seconds until the object goes; `None` leaves it to the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<i64>,
    /// `Background`, `Foreground` or `Orphan`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub propagation_policy: Option<&'static str>,
    /// Delete only this very object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preconditions: Option<Preconditions>,
}

/// What must hold for a delete to take place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preconditions {
    /// The object still has this uid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The object still has this version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
}

/// An API server, reached over any [`Transport`]. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
}

impl Client {
    /// A client for the current context of a kubeconfig file. Connects on the first request.
    ///
    /// # Errors
    /// [`ClientError::Config`] naming the file and the entry to mend.
    pub async fn from_kubeconfig(path: &Path) -> Result<Self, ClientError> {
        let endpoint = Kubeconfig::read(path)?.endpoint()?;
        Ok(Self::with_transport(Arc::new(HttpsTransport::new(endpoint))))
    }

    /// A client with the files of a pod's ServiceAccount. Connects on the first request.
    ///
    /// # Errors
    /// [`ClientError::Config`] naming the file or URL to mend.
    pub fn from_service_account(server: &str, directory: &Path) -> Result<Self, ClientError> {
        let endpoint = Endpoint::for_service_account(server, directory)?;
        Ok(Self::with_transport(Arc::new(HttpsTransport::new(endpoint))))
    }

    /// A client over a transport of the caller.
    pub fn with_transport(transport: Arc<dyn Transport>) -> Self {
        Self { transport }
    }

    /// Reads one object, or a subresource.
    ///
    /// # Errors
    /// See [`ClientError`]; this holds for all requests.
    pub async fn get<T: DeserializeOwned>(&self, path: &ResourcePath) -> Result<T, ClientError> {
        self.json(Method::GET, path.to_string(), None, Bytes::new()).await
    }

    /// Reads one object that may be absent.
    ///
    /// # Errors
    /// As [`Client::get`], but for NotFound.
    pub async fn get_optional<T: DeserializeOwned>(
        &self,
        path: &ResourcePath,
    ) -> Result<Option<T>, ClientError> {
        match self.get(path).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads one page of a collection.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn list<T: DeserializeOwned>(
        &self,
        path: &ResourcePath,
        options: &ListOptions,
    ) -> Result<List<T>, ClientError> {
        let limit = match options.limit {
            0 => String::new(),
            limit => limit.to_string(),
        };
        let path = with_query(
            path,
            &[
                ("labelSelector", options.label_selector.as_str()),
                ("fieldSelector", &options.field_selector),
                ("limit", &limit),
                ("continue", &options.continue_token),
            ],
        );
        self.json(Method::GET, path, None, Bytes::new()).await
    }

    /// Creates an object in a collection, or posts to a subresource such as `binding`.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn create<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        path: &ResourcePath,
        body: &B,
    ) -> Result<T, ClientError> {
        self.with_body(Method::POST, path, JSON, body).await
    }

    /// Replaces an object.
    ///
    /// # Errors
    /// See [`Client::get`]; a stale `resourceVersion` is a conflict.
    pub async fn update<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        path: &ResourcePath,
        body: &B,
    ) -> Result<T, ClientError> {
        self.with_body(Method::PUT, path, JSON, body).await
    }

    /// Replaces an object's status; all else in `body` is ignored by the server.
    ///
    /// # Errors
    /// See [`Client::update`].
    pub async fn update_status<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        path: &ResourcePath,
        body: &B,
    ) -> Result<T, ClientError> {
        self.update(&path.clone().subresource("status"), body).await
    }

    /// Changes a part of an object.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn patch<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        path: &ResourcePath,
        kind: PatchKind,
        patch: &B,
    ) -> Result<T, ClientError> {
        self.with_body(Method::PATCH, path, kind.content_type(), patch).await
    }

    /// Deletes an object. The answer is a `Status`, or the object while it is still going.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn delete(
        &self,
        path: &ResourcePath,
        options: &DeleteOptions,
    ) -> Result<Value, ClientError> {
        self.with_body(Method::DELETE, path, JSON, options).await
    }

    /// Follows a collection for ever.
    pub fn watch<T: DeserializeOwned + Send + 'static>(&self, spec: WatchSpec) -> Watcher<T> {
        self.watch_into(spec)
    }

    /// Follows a collection for ever. Its lists are taken in page by page: of a large one, whoever
    /// keeps less of an object than `T` never holds all of them whole.
    pub fn watch_into<T, L>(&self, spec: WatchSpec) -> Watcher<T, L>
    where
        T: DeserializeOwned + Send + 'static,
        L: Default + Extend<T> + Send + 'static,
    {
        Watcher::new(self.clone(), spec)
    }

    /// Sends any request (`path` with query) and hands back the answer as it comes, whatever its
    /// code. The body is not bounded: the caller reads it piece by piece.
    ///
    /// # Errors
    /// [`ClientError::Transport`]; a path that is not a URI is [`ClientError::Config`].
    pub async fn raw(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: Bytes,
    ) -> Result<Response<Body>, ClientError> {
        let request = request(method, path, content_type, body)?;
        self.transport.send(request).await
    }

    /// Opens a stream: a GET whose answer has no end. Owns all that it needs.
    pub(crate) fn open(
        &self,
        path: String,
    ) -> impl Future<Output = Result<Body, ClientError>> + Send + 'static {
        let client = self.clone();
        async move {
            let request = request(Method::GET, &path, None, Bytes::new())?;
            let response = client.transport.send(request).await?;
            Ok(refuse_failure(format!("GET {path}"), response).await?.into_body())
        }
    }

    async fn with_body<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &ResourcePath,
        content_type: &'static str,
        body: &B,
    ) -> Result<T, ClientError> {
        let path = path.to_string();
        let bytes = serde_json::to_vec(body).map_err(|error| ClientError::Decode {
            what: format!("{method} {path}"),
            problem: format!("our own body cannot be written: {error}"),
        })?;
        self.json(method, path, Some(content_type), bytes.into()).await
    }

    /// One exchange with a JSON answer. Not an `async fn`: a future that owns all that it needs
    /// is `Send` wherever it is used.
    fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: String,
        content_type: Option<&str>,
        body: Bytes,
    ) -> impl Future<Output = Result<T, ClientError>> + Send + use<T> {
        let what = format!("{method} {path}");
        let request = request(method, &path, content_type, body);
        let transport = Arc::clone(&self.transport);
        async move {
            let exchange = exchange(transport, request?, what.clone());
            let limit = Duration::from_millis(REQUEST_TIMEOUT_MS);
            let bytes = tokio::time::timeout(limit, exchange).await.map_err(|_| {
                ClientError::Transport {
                    target: what.clone(),
                    problem: format!("no answer within {REQUEST_TIMEOUT_MS} ms"),
                    hint: "the server is overloaded or gone: retry later",
                }
            })??;
            serde_json::from_slice(&bytes)
                .map_err(|error| ClientError::Decode { what, problem: error.to_string() })
        }
    }
}

async fn exchange(
    transport: Arc<dyn Transport>,
    request: Request<Full<Bytes>>,
    what: String,
) -> Result<Bytes, ClientError> {
    let response = transport.send(request).await?;
    let response = refuse_failure(what.clone(), response).await?;
    read_bounded(what, response.into_body(), MAX_RESPONSE_BYTES).await
}

fn request(
    method: Method,
    path: &str,
    content_type: Option<&str>,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, ClientError> {
    let mut builder = Request::builder()
        .method(method)
        .uri(path)
        .header(ACCEPT, JSON)
        .header(USER_AGENT, concat!("flatnet/", env!("CARGO_PKG_VERSION")));
    if let Some(content_type) = content_type {
        builder = builder.header(CONTENT_TYPE, content_type);
    }
    builder
        .body(Full::new(body))
        .map_err(|error| ClientError::Config { path: path.to_owned(), problem: error.to_string() })
}

const JSON: &str = "application/json";

/// Turns an answer other than 2xx into an error with the server's `Status`.
async fn refuse_failure(
    what: String,
    response: Response<Body>,
) -> Result<Response<Body>, ClientError> {
    let code = response.status();
    if code.is_success() {
        return Ok(response);
    }
    let bytes = read_bounded(what, response.into_body(), MAX_STATUS_BYTES).await?;
    Err(ClientError::Api(Box::new(status_of(code, &bytes))))
}

/// Not every refusal has a `Status` body: proxies and 401 answer in plain text.
fn status_of(code: StatusCode, body: &[u8]) -> Status {
    match serde_json::from_slice::<Status>(body) {
        Ok(status) if status.code != 0 => status,
        _ => Status {
            status: "Failure".to_owned(),
            message: format!("{code}: {}", String::from_utf8_lossy(body).trim()),
            code: code.as_u16(),
            ..Status::default()
        },
    }
}

async fn read_bounded(what: String, body: Body, limit_bytes: usize) -> Result<Bytes, ClientError> {
    match Limited::new(body, limit_bytes).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ClientError::Decode {
            what,
            problem: format!("the answer is longer than {limit_bytes} bytes"),
        }),
        Err(error) => Err(ClientError::Transport {
            target: what,
            problem: format!("the answer broke off: {error}"),
            hint: "the server may be restarting: retry",
        }),
    }
}
