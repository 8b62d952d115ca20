//! The REST face of the store: authenticates, routes, and carries requests in and answers out.

mod admission;
pub(crate) mod answer;
mod fixed;
mod health;
mod identity;
mod lines;
mod metrics;
mod negotiate;
mod objects;
mod protobuf;
mod proxied;
mod proxy;
mod query;
mod reviews;
mod route;
mod watch;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use client::Body;
use hyper::body::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Method, Response, Uri};
use store::Status;
use store::authorize::Request;

use crate::audit::{Audit, Entry};
use crate::conversion::Converter;
use crate::tls::User;
use crate::tokens::Tokens;
use crate::webhook::Webhooks;
use crate::writer::Shared;
use fixed::Documents;
use lines::Lines;
use metrics::Meters;
use negotiate::Encoding;
use query::Query;
use route::Route;

pub(crate) use proxy::Proxy;

/// Longest time for a request that is neither a watch nor a stream, milliseconds; the real
/// server's limit.
const REQUEST_TIMEOUT_MS: u64 = 60_000;

/// One request, its body complete.
pub(crate) struct Call {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Who asks by his client certificate; a bearer token counts where there is none.
    pub user: Option<User>,
    /// Where the request comes from; `None` for our own.
    pub source: Option<IpAddr>,
    /// Whether webhooks are not asked: a webhook that is away must not keep the server from making
    /// what the cluster cannot be without.
    pub is_exempt: bool,
    /// The connection's bytes after a `101`, when the client asked for an upgrade.
    pub upgrade: Option<OnUpgrade>,
}

impl Call {
    fn query(&self) -> Query {
        Query::parse(self.uri.query().unwrap_or_default())
    }
}

/// The name of an object that a request wrote: clients may leave it to the server.
#[derive(Clone)]
struct Written(String);

/// What policies note of a request for the audit log.
#[derive(Clone)]
struct Noted(BTreeMap<String, String>);

/// All that answers requests.
pub(crate) struct Api {
    shared: Arc<Shared>,
    documents: Documents,
    tokens: Tokens,
    proxy: Arc<Proxy>,
    meters: Meters,
    audit: Option<Audit>,
    webhooks: Arc<Webhooks>,
    converter: Arc<Converter>,
    lines: Arc<Lines>,
    /// Becomes true when the server stops: watches end then.
    stop: tokio::sync::watch::Receiver<bool>,
}

impl Api {
    pub fn new(
        shared: Arc<Shared>,
        tokens: Tokens,
        proxy: Proxy,
        audit: Option<Audit>,
        stop: tokio::sync::watch::Receiver<bool>,
    ) -> Arc<Self> {
        let proxy = Arc::new(proxy);
        let webhooks = Arc::new(Webhooks::new());
        let converter = Converter::new(Arc::clone(&shared), Arc::clone(&webhooks));
        Arc::new(Self {
            shared,
            documents: Documents::default(),
            tokens,
            meters: Meters::new(Arc::clone(&proxy)),
            proxy,
            audit,
            webhooks,
            converter,
            lines: Arc::default(),
            stop,
        })
    }

    /// The answer for a request that never got this far.
    pub fn refuse(status: &Status) -> Response<Body> {
        answer::status(status)
    }

    /// Answers one request, and has it written down where there is an audit log.
    pub async fn handle(&self, call: Call) -> Response<Body> {
        let Some(audit) = &self.audit else { return self.answer(call, &mut None).await };
        let mut entry = Some(Entry::begin(&call.method, &call.uri, &call.headers, call.source));
        let mut response = self.answer(call, &mut entry).await;
        if let Some(mut entry) = entry {
            if let Some(noted) = response.extensions_mut().remove::<Noted>() {
                entry.annotations = noted.0;
            }
            if let Some(made) = response.extensions_mut().remove::<Written>()
                && let Some(object) = entry.object.as_object_mut()
            {
                object.insert("name".to_owned(), made.0.into());
            }
            audit.record(entry, response.status().as_u16()).await;
        }
        response
    }

    /// Answers one request. Every failure is a `Status`.
    async fn answer(&self, mut call: Call, entry: &mut Option<Entry>) -> Response<Body> {
        let Some(segments) = query::segments(call.uri.path()) else {
            return answer::status(&Status::unknown_path());
        };
        let find = |group: &str, version: &str, plural: &str| {
            self.shared.read().find(group, version, plural)
        };
        let route = route::route(&segments, &find);
        // Probes and version checks are open to all, everything else to known clients.
        let open = matches!(route, Route::Health { .. } | Route::Version);
        call.user = self.authenticate(&call);
        if let Some(entry) = entry {
            entry.sender.clone_from(&call.user);
            if let Route::Target(target) = &route {
                objects::describe(&call, target, entry);
            }
        }
        match &call.user {
            None if !open => return answer::status(&Status::unauthorized()),
            None => {}
            Some(sender) => match self.impersonated(sender, &call.headers) {
                Ok(None) => {}
                Ok(user) => {
                    if let Some(entry) = entry {
                        entry.impersonated.clone_from(&user);
                    }
                    call.user = user;
                }
                Err(refusal) => return answer::status(&refusal),
            },
        }
        // Also refusals come as the client likes to read.
        let encoding = match &route {
            Route::Target(_) => negotiate::accepted(&call.headers, false).ok(),
            _ => None,
        };
        let encoding = encoding.map_or(Encoding::Json, |accepted| accepted.encoding);
        let answered = match route {
            Route::Health { endpoint, check }
                if call.method == Method::GET || call.method == Method::HEAD =>
            {
                health::answer(&endpoint, check.as_deref(), &call.query())
            }
            Route::Target(target) => {
                let limit = Duration::from_millis(REQUEST_TIMEOUT_MS);
                match tokio::time::timeout(limit, self.target(call, target)).await {
                    Ok(answered) => answered,
                    Err(_) => Err(timed_out()),
                }
            }
            Route::Unknown => Err(Status::unknown_path()),
            _ if call.method != Method::GET => Err(Status::method_not_allowed()),
            Route::Version => self.documents.answer(&route, &call, &self.shared),
            route => self
                .authorize(&call, &Request::Path { verb: "get", path: call.uri.path() })
                .and_then(|()| match route {
                    Route::Issuer => Ok(answer::issuer("application/json", &self.tokens.issuer())),
                    Route::IssuerKeys => {
                        Ok(answer::issuer("application/jwk-set+json", &self.tokens.keys()))
                    }
                    route => self.documents.answer(&route, &call, &self.shared),
                }),
        };
        answered.unwrap_or_else(|status| answer::encoded_status(&status, encoding))
    }

    /// Whether the caller may do this.
    fn authorize(&self, call: &Call, request: &Request<'_>) -> Result<(), Status> {
        let Some(user) = &call.user else { return Err(Status::unauthorized()) };
        self.shared.read().authorize(user.subject(), request)
    }
}

fn timed_out() -> Status {
    let message = "Timeout: request did not complete within the allotted timeout";
    Status::failure(504, "Timeout", message)
}
