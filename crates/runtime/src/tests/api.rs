//! A small API server in memory, behind the client's transport: objects by path, and watches.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use client::{BodyError, Client, ClientError, Transport, TransportFuture};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame};
use hyper::header::CONTENT_TYPE;
use hyper::http::request::Parts;
use hyper::{Method, Request, Response};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

use crate::context::now;

/// Longest wait for a condition, seconds.
const DEADLINE_S: u64 = 30;

static NEXT_UID: AtomicU32 = AtomicU32::new(1);

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    revision: u64,
    watches: Vec<mpsc::UnboundedSender<Bytes>>,
    writes: VecDeque<String>,
}

/// The server; clones are the same one.
#[derive(Clone, Default)]
pub struct Api {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

impl Api {
    pub fn client(&self) -> Client {
        Client::with_transport(Arc::new(self.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn put(&self, path: &str, object: Value) -> Value {
        let mut state = self.lock();
        state.revision += 1;
        let revision = state.revision;
        let mut object = object;
        object["metadata"]["resourceVersion"] = revision.to_string().into();
        if object["metadata"]["uid"].is_null() {
            // Unique over all tests of this process and others: it names cgroups.
            let number = NEXT_UID.fetch_add(1, Ordering::Relaxed);
            let process = std::process::id();
            object["metadata"]["uid"] =
                format!("{number:08x}-0000-4000-8000-{process:012x}").into();
        }
        let kind = if state.objects.contains_key(path) { "MODIFIED" } else { "ADDED" };
        state.objects.insert(path.to_owned(), object.clone());
        if path.contains("/pods/") {
            tell(&mut state, kind, &object);
        }
        drop(state);
        self.changed.notify_waiters();
        object
    }

    /// Creates a pod that is bound to `node1`, in the namespace `default`.
    pub fn create_pod(&self, name: &str, spec: Value) -> String {
        let mut spec = spec;
        spec["nodeName"] = "node1".into();
        let scheduled = json!({"type": "PodScheduled", "status": "True"});
        let pod = json!({
            "metadata": {"name": name, "namespace": "default"},
            "spec": spec,
            "status": {"phase": "Pending", "conditions": [scheduled]},
        });
        let pod = self.put(&pod_path(name), pod);
        pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
    }

    /// What DELETE does to a pod of a node: it is marked, and the node removes it.
    pub fn delete_pod(&self, name: &str, grace_s: i64) {
        let mut pod = self.get(&pod_path(name)).expect("a pod to delete");
        let at = now().after(Duration::from_secs(grace_s as u64));
        pod["metadata"]["deletionTimestamp"] = json!(at);
        pod["metadata"]["deletionGracePeriodSeconds"] = grace_s.into();
        self.put(&pod_path(name), pod);
    }

    pub fn remove(&self, path: &str) {
        let mut state = self.lock();
        state.revision += 1;
        let revision = state.revision.to_string();
        if let Some(mut object) = state.objects.remove(path) {
            object["metadata"]["resourceVersion"] = revision.into();
            if path.contains("/pods/") {
                tell(&mut state, "DELETED", &object);
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.lock().objects.get(path).cloned()
    }

    pub fn pod(&self, name: &str) -> Option<Value> {
        self.get(&pod_path(name))
    }

    /// Reasons of the events about an object, in order of first occurrence.
    pub fn events(&self, name: &str) -> Vec<(String, String)> {
        let state = self.lock();
        let events = state.objects.iter().filter(|(path, event)| {
            path.contains("/events/") && event["involvedObject"]["name"] == name
        });
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut listed: Vec<(String, String, String)> = events
            .map(|(path, event)| (path.clone(), text(&event["reason"]), text(&event["message"])))
            .collect();
        listed.sort();
        listed.into_iter().map(|(_, reason, message)| (reason, message)).collect()
    }

    /// Forgets the writes seen so far.
    pub fn forget_writes(&self) {
        self.lock().writes.clear();
    }

    /// Every write since, as `METHOD path`.
    pub fn writes(&self) -> Vec<String> {
        self.lock().writes.iter().cloned().collect()
    }

    /// Waits until a pod is as wanted.
    pub async fn until_pod(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let found = self.until(|api| api.pod(name).filter(|pod| wanted(pod))).await;
        found.unwrap_or_else(|| {
            let pod = self.pod(name).map(|pod| pod["status"].clone());
            panic!("pod {name} is not {what}: {pod:#?}\n{:#?}", self.events(name))
        })
    }

    pub async fn until_gone(&self, name: &str) {
        let gone = self.until(|api| api.pod(name).is_none().then_some(())).await;
        assert!(gone.is_some(), "pod {name} is still there: {:#?}", self.pod(name));
    }

    pub async fn until<T>(&self, wanted: impl Fn(&Self) -> Option<T>) -> Option<T> {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if let Some(found) = wanted(self) {
                    return found;
                }
                // Conditions of files and processes do not notify.
                let _ = tokio::time::timeout(Duration::from_millis(20), changed).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(DEADLINE_S), wait).await.ok()
    }

    fn answer(&self, parts: &Parts, body: &[u8]) -> Response<client::Body> {
        let method = &parts.method;
        let uri = parts.uri.to_string();
        let (path, query) = uri.split_once('?').unwrap_or((&uri, ""));
        let body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        if *method != Method::GET {
            self.lock().writes.push_back(format!("{method} {path}"));
        }
        let object_path = path.trim_end_matches("/status");
        match *method {
            Method::GET if query.contains("watch=") => self.watch(),
            Method::GET => match self.get(path) {
                Some(object) => reply(200, &object),
                None if is_collection(path) => self.list(path),
                None => missing(),
            },
            Method::POST if path.ends_with("/token") => self.token(path, &body),
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                reply(201, &self.put(&format!("{path}/{name}"), body))
            }
            Method::PATCH => match self.get(object_path) {
                Some(mut object) => {
                    let uid = &body["metadata"]["uid"];
                    if !uid.is_null() && *uid != object["metadata"]["uid"] {
                        return failure(409, "Conflict");
                    }
                    let strategic = parts
                        .headers
                        .get(CONTENT_TYPE)
                        .is_some_and(|kind| kind == "application/strategic-merge-patch+json");
                    match strategic {
                        true => object = merge_strategic(object_path, &object, &body),
                        false => merge(&mut object, &body),
                    }
                    reply(200, &self.put(object_path, object))
                }
                None => missing(),
            },
            Method::DELETE => {
                if self.get(path).is_none() {
                    return missing();
                }
                self.remove(path);
                reply(200, &json!({"kind": "Status", "status": "Success"}))
            }
            _ => failure(405, "MethodNotAllowed"),
        }
    }

    /// A TokenRequest. The token says for whom it is, for how long, and which one it is.
    fn token(&self, path: &str, request: &Value) -> Response<client::Body> {
        let account = path.rsplit('/').nth(1).unwrap_or_default();
        let (spec, bound) = (&request["spec"], &request["spec"]["boundObjectRef"]);
        let pod = bound["name"].as_str().and_then(|name| self.pod(name));
        if pod.is_none_or(|pod| pod["metadata"]["uid"] != bound["uid"]) {
            return failure(403, "Forbidden");
        }
        let number = self.writes().iter().filter(|write| write.ends_with("/token")).count();
        let seconds = spec["expirationSeconds"].as_i64().unwrap_or_default();
        let expires = now().after(Duration::from_secs(seconds as u64));
        let token = format!("{account}:{seconds}:{number}");
        reply(201, &json!({"status": {"token": token, "expirationTimestamp": expires}}))
    }

    fn list(&self, path: &str) -> Response<client::Body> {
        let state = self.lock();
        let plural = path.rsplit('/').next().unwrap_or_default();
        let namespace = path.split("/namespaces/").nth(1).and_then(|rest| rest.split('/').next());
        let items: Vec<&Value> = state
            .objects
            .iter()
            .filter(|(key, _)| key.contains(&format!("/{plural}/")))
            .filter(|(key, _)| {
                namespace.is_none_or(|namespace| key.contains(&format!("/namespaces/{namespace}/")))
            })
            .map(|(_, object)| object)
            .collect();
        let metadata = json!({"resourceVersion": state.revision.to_string()});
        reply(200, &json!({"metadata": metadata, "items": items}))
    }

    /// Begins with every pod that is there: a watch may repeat (invariant 2).
    fn watch(&self) -> Response<client::Body> {
        let mut state = self.lock();
        let (sender, receiver) = mpsc::unbounded_channel();
        for (path, object) in &state.objects {
            if path.contains("/pods/") {
                let _ = sender.send(line("MODIFIED", object));
            }
        }
        state.watches.push(sender);
        Response::new(Stream(receiver).boxed_unsync())
    }
}

impl Transport for Api {
    fn send(&self, request: Request<Full<Bytes>>) -> TransportFuture {
        let api = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            Ok::<_, ClientError>(api.answer(&parts, &body))
        })
    }
}

pub fn pod_path(name: &str) -> String {
    format!("/api/v1/namespaces/default/pods/{name}")
}

fn is_collection(path: &str) -> bool {
    ["pods", "services", "events", "nodes", "leases", "configmaps", "secrets"]
        .iter()
        .any(|plural| path.ends_with(&format!("/{plural}")))
}

fn tell(state: &mut State, kind: &str, object: &Value) {
    let line = line(kind, object);
    state.watches.retain(|watch| watch.send(line.clone()).is_ok());
}

fn line(kind: &str, object: &Value) -> Bytes {
    format!("{}\n", json!({"type": kind, "object": object})).into()
}

fn reply(code: u16, body: &Value) -> Response<client::Body> {
    let body = Full::new(Bytes::from(body.to_string())).map_err(|never| match never {});
    let response = Response::builder().status(code).header("content-type", "application/json");
    response.body(body.boxed_unsync()).expect("a response")
}

fn missing() -> Response<client::Body> {
    failure(404, "NotFound")
}

fn failure(code: u16, reason: &str) -> Response<client::Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
        "reason": reason, "message": reason, "code": code});
    reply(code, &status)
}

/// As the API server does it, of the two kinds that are patched so.
fn merge_strategic(path: &str, object: &Value, patch: &Value) -> Value {
    let plural = if path.contains("/pods/") { "pods" } else { "nodes" };
    let row = store::registry::find("", "v1", plural).expect("a row");
    store::patch::apply(row, store::PatchKind::Strategic, object, patch).expect("a patch")
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().expect("an object").remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

struct Stream(mpsc::UnboundedReceiver<Bytes>);

impl Body for Stream {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
