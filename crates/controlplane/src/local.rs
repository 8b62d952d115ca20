//! The API without a socket, for the control plane's own controllers.

use std::sync::Arc;

use client::{Client, Transport, TransportFuture};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Bytes;

use crate::api::{Api, Call};
use crate::tls::User;

/// A client whose requests are function calls, in the name of `user`.
pub(crate) fn local_client(api: Arc<Api>, user: User) -> Client {
    Client::with_transport(Arc::new(LocalTransport { api, user, is_exempt: false }))
}

/// The same for what the cluster cannot be without: no admission webhook is asked.
pub(crate) fn exempt_client(api: Arc<Api>, user: User) -> Client {
    Client::with_transport(Arc::new(LocalTransport { api, user, is_exempt: true }))
}

struct LocalTransport {
    api: Arc<Api>,
    user: User,
    is_exempt: bool,
}

impl Transport for LocalTransport {
    fn send(&self, request: Request<Full<Bytes>>) -> TransportFuture {
        let (api, user) = (Arc::clone(&self.api), self.user.clone());
        let is_exempt = self.is_exempt;
        Box::pin(async move {
            // Nothing here ever waits: without this a controller that lists everything, as all do
            // first, would keep the thread from everybody else until it has.
            tokio::task::yield_now().await;
            let (head, body) = request.into_parts();
            let body = match body.collect().await {
                Ok(body) => body.to_bytes(),
                Err(never) => match never {},
            };
            Ok(api
                .handle(Call {
                    method: head.method,
                    uri: head.uri,
                    headers: head.headers,
                    body,
                    user: Some(user),
                    source: None,
                    is_exempt,
                    upgrade: None,
                })
                .await)
        })
    }
}
