//! What kubectl 1.20 and 1.33 sent to a real API server, sent again to ours: each answer must be
//! of the recorded kind. So these versions judge the server on machines that have neither.
//!
//! `data/kubectl-*.jsonl` hold one request a line, in the order of arrival: what the client sent,
//! and of the answer the status code, its form, and for a `Status` its reason and length (with
//! the real server's final line feed), which pins the words. The recording cut long bodies;
//! those marked `restored` are the manifests that were applied, wrapped as kubectl wraps them,
//! and agree with what the recording kept. The same holds for all of `protobuf`. Not among them
//! are `/openapi/v2`, which the recorder answered itself, and a few watches without a record.
//!
//! No controllers ran beside the recorded server, and none run here.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{HeaderMap, Request, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use support::{Scratch, Server, endpoint, start, within};

/// One line of a recording.
#[derive(Debug, Deserialize)]
struct Recorded {
    number: u32,
    /// What the person typed.
    command: String,
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    #[serde(default)]
    body: Option<Value>,
    /// A body in Kubernetes' protobuf form, as base64.
    #[serde(default)]
    protobuf: Option<String>,
    status: u16,
    form: Form,
    /// Why a failure happened, in the real server's word.
    #[serde(default)]
    reason: Option<String>,
    /// The message, where kubectl printed it and the length is that of protobuf.
    #[serde(default)]
    message: Option<String>,
    /// The length of a `Status` as JSON, bytes.
    #[serde(default)]
    length: Option<usize>,
    #[serde(default)]
    etag: Option<String>,
}

/// What an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Form {
    /// An object, a list, or a document of discovery.
    #[serde(rename = "object")]
    Object,
    Table,
    Status,
    #[serde(rename = "APIGroupDiscoveryList")]
    Discovery,
    /// Events of a watch.
    #[serde(rename = "events")]
    Events,
    #[serde(rename = "text")]
    Text,
    #[serde(rename = "none")]
    Nothing,
}

/// Recorded requests that are answered otherwise here, and why.
struct LeftOut {
    numbers: &'static [u32],
    reason: &'static str,
}

const CRD: &str = "the recording lacks the body that makes the definition: kubectl.rs does this";
const AUTOSCALING: &str = "autoscaling is not served yet";
const CERTIFICATES: &str = "signing requests are not served: the cluster makes its certificates";
const AGGREGATION: &str = "aggregated API servers and their flow control are not served";
const SCHEDULING: &str = "devices are not served";
const STORAGE: &str = "runtime classes are not served";

const LEFT_OUT_1_33: &[LeftOut] = &[
    LeftOut { numbers: &[197, 199, 200, 202, 203, 204, 205, 206, 207, 208, 246, 247], reason: CRD },
    LeftOut { numbers: &[94], reason: AUTOSCALING },
];

const LEFT_OUT_1_20: &[LeftOut] = &[
    LeftOut { numbers: &[221, 226, 248, 250, 251, 252, 253, 254, 255, 256, 292], reason: CRD },
    LeftOut { numbers: &[7, 14, 113, 209, 212, 233, 234], reason: AUTOSCALING },
    LeftOut { numbers: &[16, 214, 247], reason: CERTIFICATES },
    LeftOut { numbers: &[4, 11, 196, 197, 227, 243], reason: AGGREGATION },
    LeftOut { numbers: &[13, 216, 242], reason: SCHEDULING },
    LeftOut { numbers: &[24, 211, 240], reason: STORAGE },
];

#[tokio::test]
async fn kubectl_1_33_gets_the_recorded_answers() {
    let scratch = Scratch::new("recorded-133");
    let server = start(&scratch.0, 0).await;
    // The recording began with a Namespace that was ending since an earlier one.
    let mut replay = Replay::new(&server);
    let namespace = json!({"metadata": {"name": "n2"}});
    replay.prepare("POST", "/api/v1/namespaces", &namespace).await;
    replay.prepare("DELETE", "/api/v1/namespaces/n2", &json!({})).await;
    judge(&mut replay, include_str!("data/kubectl-1.33.jsonl"), LEFT_OUT_1_33).await;
    server.running.stop().await;
}

#[tokio::test]
async fn kubectl_1_20_gets_the_recorded_answers() {
    let scratch = Scratch::new("recorded-120");
    let server = start(&scratch.0, 0).await;
    let mut replay = Replay::new(&server);
    judge(&mut replay, include_str!("data/kubectl-1.20.jsonl"), LEFT_OUT_1_20).await;
    server.running.stop().await;
}

/// Replays a recording, and fails with everything that differs from it.
async fn judge(replay: &mut Replay<'_>, recording: &str, left_out: &[LeftOut]) {
    let mut reasons = BTreeMap::new();
    for entry in left_out {
        for number in entry.numbers {
            let before = reasons.insert(*number, entry.reason);
            assert!(before.is_none(), "#{number} stands twice in the list of what is left out");
        }
    }
    let mut unused: BTreeSet<u32> = reasons.keys().copied().collect();
    let (mut replayed, mut faults) = (0, Vec::new());
    for line in recording.lines() {
        let recorded: Recorded = serde_json::from_str(line).expect("a recorded request");
        let head = format!("#{} {} {}", recorded.number, recorded.method, recorded.target);
        let context = format!("{head} ({})", recorded.command);
        unused.remove(&recorded.number);
        match (replay.play(&recorded).await, reasons.get(&recorded.number)) {
            (Ok(()), None) => replayed += 1,
            (Err(_), Some(_)) => {}
            (Err(fault), None) => faults.push(format!("{context}: {fault}")),
            (Ok(()), Some(reason)) => faults.push(format!(
                "{context}: is answered as recorded, so take it out of the list ({reason})"
            )),
        }
    }
    println!("replayed {replayed}, left out {}", reasons.len());
    for entry in left_out {
        println!("  {}: {:?}", entry.reason, entry.numbers);
    }
    assert!(unused.is_empty(), "left out but not in the recording: {unused:?}");
    assert!(faults.is_empty(), "{} answers differ:\n{}", faults.len(), faults.join("\n"));
}

/// A client that repeats a recording, with this server's versions in place of the recorded ones.
struct Replay<'a> {
    server: &'a Server,
    /// The last seen `resourceVersion` of each path.
    versions: BTreeMap<String, String>,
    /// Recorded entity tags, and what this server gave in the same place.
    etags: BTreeMap<String, String>,
    /// Where the OpenAPI index sends clients, by the path without the hash.
    documents: BTreeMap<String, String>,
}

/// An answer, its body complete; of a watch only the head.
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    /// The body as a tree, from JSON or protobuf.
    fn value(&self) -> Option<Value> {
        let read = schema::protobuf::decode(&self.body);
        read.ok().or_else(|| serde_json::from_slice(&self.body).ok())
    }
}

impl<'a> Replay<'a> {
    fn new(server: &'a Server) -> Self {
        Self {
            server,
            versions: BTreeMap::new(),
            etags: BTreeMap::new(),
            documents: BTreeMap::new(),
        }
    }

    /// Sends a request that must succeed and is in no recording.
    async fn prepare(&self, method: &str, target: &str, body: &Value) {
        let request = Request::builder().method(method).uri(target);
        let request = request.body(Full::new(Bytes::from(body.to_string()))).expect("a request");
        let response = self.send(request).await;
        assert!(response.status().is_success(), "{method} {target}: {}", response.status());
    }

    /// Sends a recorded request; the error says how the answer differs from the recorded one.
    async fn play(&mut self, recorded: &Recorded) -> Result<(), String> {
        let mut request =
            Request::builder().method(recorded.method.as_str()).uri(self.target(recorded));
        for (name, value) in &recorded.headers {
            let value = self.etags.get(value).unwrap_or(value);
            request = request.header(name, value);
            if name == "upgrade" {
                request = request.header("connection", "Upgrade");
            }
        }
        let request = request.body(Full::new(self.body(recorded))).expect("a request");
        let response = self.send(request).await;
        let is_watch = recorded.form == Form::Events && response.status().is_success();
        let (head, body) = response.into_parts();
        let body = match is_watch {
            true => Bytes::new(),
            false => within("a body", body.collect()).await.expect("a body").to_bytes(),
        };
        let answer = Answer { status: head.status.as_u16(), headers: head.headers, body };
        self.remember(recorded, &answer);
        compare(recorded, &answer)
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        within("an answer", endpoint(self.server).send_once(request)).await.expect("an answer")
    }

    /// The target, with this server's hash of an OpenAPI document and the version to watch from.
    fn target(&self, recorded: &Recorded) -> String {
        let path = path(recorded);
        if let Some(document) = self.documents.get(path) {
            return document.clone();
        }
        let Some(version) = self.versions.get(path).filter(|_| recorded.form == Form::Events)
        else {
            return recorded.target.clone();
        };
        let parameters = recorded.target.split(['?', '&']).skip(1).map(|parameter| match parameter
            .starts_with("resourceVersion=")
        {
            true => format!("resourceVersion={version}"),
            false => parameter.to_owned(),
        });
        format!("{path}?{}", parameters.collect::<Vec<_>>().join("&"))
    }

    /// The body; a version in it is the one that the client saw last.
    fn body(&self, recorded: &Recorded) -> Bytes {
        if let Some(encoded) = &recorded.protobuf {
            let decoded = base64::engine::general_purpose::STANDARD.decode(encoded);
            return decoded.expect("base64").into();
        }
        let Some(mut body) = recorded.body.clone() else { return Bytes::new() };
        if let Some(version) = body.pointer_mut("/metadata/resourceVersion") {
            let seen = self.versions.get(path(recorded));
            *version = seen.expect("the client saw the object before").as_str().into();
        }
        body.to_string().into()
    }

    fn remember(&mut self, recorded: &Recorded, answer: &Answer) {
        let etag = answer.headers.get("etag").and_then(|etag| etag.to_str().ok());
        if let (Some(known), Some(etag)) = (&recorded.etag, etag) {
            self.etags.insert(known.clone(), etag.to_owned());
        }
        let Some(value) = answer.value() else { return };
        if let Some(version) = value["metadata"]["resourceVersion"].as_str() {
            self.versions.insert(path(recorded).to_owned(), version.to_owned());
        }
        if path(recorded) == "/openapi/v3" {
            let documents = value["paths"].as_object().expect("paths").values();
            let urls = documents.filter_map(|entry| entry["serverRelativeURL"].as_str());
            self.documents = urls
                .filter_map(|url| Some((url.split_once('?')?.0.to_owned(), url.to_owned())))
                .collect();
        }
    }
}

fn path(recorded: &Recorded) -> &str {
    recorded.target.split('?').next().unwrap_or_default()
}

fn compare(recorded: &Recorded, answer: &Answer) -> Result<(), String> {
    let shown: String = String::from_utf8_lossy(&answer.body).chars().take(1000).collect();
    let expect = |what: &str, ours: &str, theirs: &str| match ours == theirs {
        true => Ok(()),
        false => Err(format!("{what} {ours} instead of {theirs}: {shown}")),
    };
    expect("status", &answer.status.to_string(), &recorded.status.to_string())?;
    let media_type = answer.headers.get("content-type").and_then(|value| value.to_str().ok());
    expect("media type", media_type.unwrap_or_default(), media_type_of(recorded))?;
    if recorded.form == Form::Events {
        return Ok(());
    }
    let value = answer.value();
    expect(
        "form",
        &format!("{:?}", form(answer, value.as_ref())),
        &format!("{:?}", recorded.form),
    )?;
    let status = value.unwrap_or_default();
    if let Some(reason) = &recorded.reason {
        expect("reason", status["reason"].as_str().unwrap_or_default(), reason)?;
        expect("code", &status["code"].to_string(), &recorded.status.to_string())?;
    }
    if let Some(message) = &recorded.message {
        expect("message", status["message"].as_str().unwrap_or_default(), message)?;
    }
    if let Some(length) = recorded.length {
        expect("length", &(answer.body.len() + 1).to_string(), &length.to_string())?;
    }
    Ok(())
}

/// The Content-Type of an answer: protobuf for objects where the client asks for it first.
fn media_type_of(recorded: &Recorded) -> &'static str {
    const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
    let prefers =
        |(name, value): &(String, String)| name == "accept" && value.starts_with(PROTOBUF);
    match recorded.form {
        Form::Object | Form::Status if recorded.headers.iter().any(prefers) => PROTOBUF,
        Form::Object | Form::Table | Form::Status | Form::Events => "application/json",
        Form::Discovery => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        Form::Text => "text/plain; charset=utf-8",
        Form::Nothing => "",
    }
}

fn form(answer: &Answer, value: Option<&Value>) -> Form {
    let Some(value) = value else {
        return if answer.body.is_empty() { Form::Nothing } else { Form::Text };
    };
    match value["kind"].as_str() {
        Some("Table") => Form::Table,
        Some("Status") => Form::Status,
        Some("APIGroupDiscoveryList") => Form::Discovery,
        _ => Form::Object,
    }
}
