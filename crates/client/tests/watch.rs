//! Watches against a scripted server: what a client of a misbehaving one sees.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use client::{
    Body, BodyError, Client, ClientError, ResourcePath, Transport, TransportFuture, WatchEvent,
    WatchSpec, Watcher,
};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Frame};
use hyper::{Request, Response};
use serde_json::{Value, json};

/// What the server does with one request.
enum Scripted {
    /// Answers.
    Answer(u16, String),
    /// Answers with these pieces; then the stream ends, or stays open and silent.
    Stream { pieces: Vec<String>, stays_open: bool },
    /// Is not there.
    Unreachable,
}

#[derive(Clone, Default)]
struct Script {
    steps: Arc<Mutex<VecDeque<Scripted>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Script {
    fn new(steps: impl IntoIterator<Item = Scripted>) -> Self {
        let script = Self::default();
        script.steps.lock().expect("a lock").extend(steps);
        script
    }

    fn watch(&self) -> Watcher<Value> {
        let client = Client::with_transport(Arc::new(self.clone()));
        client.watch(WatchSpec::new(ResourcePath::new("v1", "pods")))
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("a lock").clone()
    }
}

impl Transport for Script {
    fn send(&self, request: Request<Full<Bytes>>) -> TransportFuture {
        self.asked.lock().expect("a lock").push(request.uri().to_string());
        let step = self.steps.lock().expect("a lock").pop_front();
        Box::pin(async move {
            match step {
                Some(Scripted::Answer(code, text)) => {
                    let body = Full::new(Bytes::from(text)).map_err(|never| match never {});
                    let mut response = Response::new(body.boxed_unsync());
                    *response.status_mut() = code.try_into().expect("a code");
                    Ok(response)
                }
                Some(Scripted::Stream { pieces, stays_open }) => {
                    let pieces = pieces.into_iter().map(Bytes::from).collect();
                    Ok(Response::new(Pieces { pieces, stays_open }.boxed_unsync()))
                }
                Some(Scripted::Unreachable) => Err(ClientError::Transport {
                    target: "test".to_owned(),
                    problem: "connection refused".to_owned(),
                    hint: "",
                }),
                None => std::future::pending().await,
            }
        })
    }
}

struct Pieces {
    pieces: VecDeque<Bytes>,
    stays_open: bool,
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.pieces.pop_front() {
            Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            None if self.stays_open => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

fn pod(name: &str, version: u64) -> Value {
    json!({"metadata": {"name": name, "resourceVersion": version.to_string()}})
}

fn list(version: u64, pods: &[Value], continue_token: &str) -> Scripted {
    let metadata = json!({"resourceVersion": version.to_string(), "continue": continue_token});
    Scripted::Answer(200, json!({"metadata": metadata, "items": pods}).to_string())
}

fn line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

fn closing(lines: &[String]) -> Scripted {
    Scripted::Stream { pieces: lines.to_vec(), stays_open: false }
}

fn open(lines: &[String]) -> Scripted {
    Scripted::Stream { pieces: lines.to_vec(), stays_open: true }
}

fn version_asked(url: &str) -> &str {
    let (_, rest) = url.split_once("resourceVersion=").expect("a version");
    rest.split('&').next().expect("a value")
}

#[tokio::test(start_paused = true)]
async fn pages_of_the_list_become_one_event_and_the_watch_starts_at_its_revision() {
    let script = Script::new([
        list(7, &[pod("a", 1)], "next"),
        list(7, &[pod("b", 2)], ""),
        open(&[line("ADDED", &pod("c", 8)), line("DELETED", &pod("a", 9))]),
    ]);
    let mut watch = script.watch();
    assert_eq!(watch.next().await, WatchEvent::Listed(vec![pod("a", 1), pod("b", 2)]));
    assert_eq!(watch.next().await, WatchEvent::Applied(pod("c", 8)));
    assert_eq!(watch.next().await, WatchEvent::Deleted(pod("a", 9)));
    let asked = script.asked();
    assert!(asked[1].contains("continue=next"), "{asked:?}");
    assert_eq!(version_asked(&asked[2]), "7");
}

/// How many objects each page of a list had.
#[derive(Debug, Default, PartialEq, Eq)]
struct PageSizes(Vec<usize>);

impl Extend<Value> for PageSizes {
    fn extend<I: IntoIterator<Item = Value>>(&mut self, page: I) {
        self.0.push(page.into_iter().count());
    }
}

/// What a list broke off with is of no list: the next one begins anew.
#[tokio::test(start_paused = true)]
async fn a_list_is_taken_in_page_by_page() {
    let script = Script::new([
        list(7, &[pod("a", 1), pod("b", 2)], "next"),
        Scripted::Unreachable,
        list(8, &[pod("a", 1), pod("b", 2)], "next"),
        list(8, &[pod("c", 3)], ""),
        open(&[line("ADDED", &pod("d", 9))]),
    ]);
    let client = Client::with_transport(Arc::new(script));
    let pods = WatchSpec::new(ResourcePath::new("v1", "pods"));
    let mut watch: Watcher<Value, PageSizes> = client.watch_into(pods);
    assert!(matches!(watch.next().await, WatchEvent::Lost { .. }));
    assert_eq!(watch.next().await, WatchEvent::Listed(PageSizes(vec![2, 1])));
    assert_eq!(watch.next().await, WatchEvent::Applied(pod("d", 9)));
}

#[tokio::test(start_paused = true)]
async fn a_closed_stream_resumes_after_the_last_event_or_bookmark() {
    let script = Script::new([
        list(7, &[], ""),
        closing(&[line("ADDED", &pod("a", 8)), line("BOOKMARK", &pod("", 20))]),
        closing(&[line("MODIFIED", &pod("a", 21))]),
        open(&[line("MODIFIED", &pod("a", 22))]),
    ]);
    let mut watch = script.watch();
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(watch.next().await);
    }
    assert_eq!(
        seen,
        [
            WatchEvent::Listed(vec![]),
            WatchEvent::Applied(pod("a", 8)),
            WatchEvent::Applied(pod("a", 21)),
            WatchEvent::Applied(pod("a", 22)),
        ]
    );
    let asked = script.asked();
    assert_eq!(version_asked(&asked[2]), "20");
    assert_eq!(version_asked(&asked[3]), "21");
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_told_once_and_its_end_too() {
    let script = Script::new([
        list(7, &[], ""),
        closing(&[line("ADDED", &pod("a", 8))]),
        Scripted::Unreachable,
        Scripted::Unreachable,
        Scripted::Unreachable,
        open(&[line("MODIFIED", &pod("a", 9))]),
    ]);
    let mut watch = script.watch();
    assert_eq!(watch.next().await, WatchEvent::Listed(vec![]));
    assert_eq!(watch.next().await, WatchEvent::Applied(pod("a", 8)));
    assert!(matches!(watch.next().await, WatchEvent::Lost { .. }));
    assert_eq!(watch.next().await, WatchEvent::Resumed);
    assert_eq!(watch.next().await, WatchEvent::Applied(pod("a", 9)));
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_revision_brings_a_new_list() {
    let expired = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"});
    for forgotten in [
        closing(&[line("ERROR", &expired)]),
        Scripted::Answer(410, expired.to_string()),
        closing(&["this is no JSON\n".to_owned()]),
    ] {
        let script =
            Script::new([list(7, &[pod("a", 1)], ""), forgotten, list(50, &[pod("b", 40)], "")]);
        let mut watch = script.watch();
        assert_eq!(watch.next().await, WatchEvent::Listed(vec![pod("a", 1)]));
        assert!(matches!(watch.next().await, WatchEvent::Lost { .. }));
        assert_eq!(watch.next().await, WatchEvent::Listed(vec![pod("b", 40)]));
    }
}

#[tokio::test(start_paused = true)]
async fn waits_grow_to_a_bound() {
    const FAILURES: usize = 40;
    let script = Script::new((0..FAILURES).map(|_| Scripted::Unreachable));
    script.steps.lock().expect("a lock").push_back(list(1, &[], ""));
    let started = tokio::time::Instant::now();
    let mut watch = script.watch();
    assert!(matches!(watch.next().await, WatchEvent::Lost { .. }));
    assert_eq!(watch.next().await, WatchEvent::Listed(vec![]));
    let waited = started.elapsed();
    // At least half of the longest wait for most of the tries, and never more than all of it.
    assert!(waited > Duration::from_secs(60), "{waited:?} is a busy loop");
    assert!(waited < Duration::from_secs(5 * FAILURES as u64), "{waited:?} is too long");
}

#[tokio::test(start_paused = true)]
async fn streams_that_never_say_anything_do_not_spin() {
    let mut steps = vec![list(7, &[], "")];
    steps.extend((0..20).map(|_| closing(&[])));
    steps.push(open(&[line("ADDED", &pod("a", 8))]));
    let script = Script::new(steps);
    let mut watch = script.watch();
    let started = tokio::time::Instant::now();
    assert_eq!(watch.next().await, WatchEvent::Listed(vec![]));
    assert_eq!(watch.next().await, WatchEvent::Applied(pod("a", 8)));
    assert!(started.elapsed() > Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn events_are_cut_at_newlines_wherever_the_pieces_end() {
    let text: String = (10..40_u64).map(|version| line("ADDED", &pod("täst", version))).collect();
    for size in [1, 7, 64, 4096] {
        let bytes = text.as_bytes();
        let pieces: VecDeque<Bytes> = bytes.chunks(size).map(Bytes::copy_from_slice).collect();
        let script = Script::new([list(7, &[], "")]);
        let transport = PiecesOnce { script: script.clone(), pieces: Mutex::new(Some(pieces)) };
        let client = Client::with_transport(Arc::new(transport));
        let mut watch = client.watch::<Value>(WatchSpec::new(ResourcePath::new("v1", "pods")));
        assert_eq!(watch.next().await, WatchEvent::Listed(vec![]));
        for version in 10..40 {
            assert_eq!(watch.next().await, WatchEvent::Applied(pod("täst", version)), "{size}");
        }
    }
}

/// The script for the list, then one stream of byte pieces that may split characters.
struct PiecesOnce {
    script: Script,
    pieces: Mutex<Option<VecDeque<Bytes>>>,
}

impl Transport for PiecesOnce {
    fn send(&self, request: Request<Full<Bytes>>) -> TransportFuture {
        if !request.uri().to_string().contains("watch=true") {
            return self.script.send(request);
        }
        let pieces = self.pieces.lock().expect("a lock").take().unwrap_or_default();
        let body: Body = Pieces { pieces, stays_open: true }.boxed_unsync();
        Box::pin(async move { Ok(Response::new(body)) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_without_end_is_cut_off() {
    let piece = "x".repeat(1 << 20);
    let script = Script::new([
        list(7, &[], ""),
        Scripted::Stream { pieces: vec![piece; 9], stays_open: true },
        open(&[line("ADDED", &pod("a", 8))]),
    ]);
    let mut watch = script.watch();
    assert_eq!(watch.next().await, WatchEvent::Listed(vec![]));
    match watch.next().await {
        WatchEvent::Lost { reason } => assert!(reason.contains("longer than"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(watch.next().await, WatchEvent::Resumed);
}

#[tokio::test(start_paused = true)]
async fn a_dead_connection_is_given_up() {
    let script = Script::new([list(7, &[], ""), open(&[]), open(&[line("ADDED", &pod("a", 8))])]);
    let mut watch = script.watch();
    assert_eq!(watch.next().await, WatchEvent::Listed(vec![]));
    assert!(matches!(watch.next().await, WatchEvent::Lost { .. }));
    assert_eq!(watch.next().await, WatchEvent::Resumed);
    assert_eq!(watch.next().await, WatchEvent::Applied(pod("a", 8)));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_wait_loses_nothing() {
    let script = Script::new([list(7, &[pod("a", 1)], ""), open(&[line("ADDED", &pod("b", 8))])]);
    let mut watch = script.watch();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        tokio::select! {
            biased;
            () = tokio::task::yield_now() => {}
            event = watch.next() => seen.push(event),
        }
    }
    assert_eq!(seen, [WatchEvent::Listed(vec![pod("a", 1)]), WatchEvent::Applied(pod("b", 8))]);
}
