//! Watches over real connections: resuming, bookmarks, timeouts, and the end of the window.

mod support;

use client::{DeleteOptions, PatchKind, ResourcePath, WatchEvent, WatchSpec};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Incoming;
use serde_json::{Value, json};
use support::{Scratch, Server, endpoint, start, within};

fn config_maps() -> ResourcePath {
    ResourcePath::new("v1", "configmaps").namespace("default")
}

async fn make(server: &Server, name: &str) -> Value {
    let object = json!({"metadata": {"name": name, "labels": {"app": "web"}}, "data": {}});
    server.client.create(&config_maps(), &object).await.expect("created")
}

async fn change(server: &Server, name: &str, patch: Value) -> Value {
    let path = config_maps().name(name);
    server.client.patch(&path, PatchKind::Merge, &patch).await.expect("patched")
}

fn version(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str().expect("a version");
    text.parse().expect("a number")
}

/// A watch as the wire shows it.
struct Wire {
    body: Incoming,
    pending: Vec<u8>,
}

impl Wire {
    async fn open(server: &Server, query: &str, accept: &str) -> Self {
        let uri = format!("/api/v1/namespaces/default/configmaps?watch=true&{query}");
        let request = Request::builder().uri(uri).header("accept", accept).body(Full::default());
        let response =
            endpoint(server).send_once(request.expect("a request")).await.expect("an answer");
        assert_eq!(response.status(), 200);
        Self { body: response.into_body(), pending: Vec::new() }
    }

    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("one event a line"));
            }
            let frame = within("the next piece", self.body.frame()).await?.expect("a piece");
            self.pending.extend_from_slice(&frame.into_data().expect("data"));
        }
    }
}

const JSON: &str = "application/json";

/// An event of a protobuf watch, read as client-go does: a length, `WatchEvent`, an object in it.
async fn next_frame(wire: &mut Wire) -> (String, Value) {
    while wire.pending.len() < 4 || wire.pending.len() < 4 + frame_length(&wire.pending) {
        let frame = within("the next piece", wire.body.frame()).await.expect("more");
        wire.pending.extend_from_slice(&frame.expect("a piece").into_data().expect("data"));
    }
    let event: Vec<u8> = wire.pending.drain(..4 + frame_length(&wire.pending)).skip(4).collect();
    let (kind_length, rest) = (usize::from(event[1]), &event[2..]);
    let kind = String::from_utf8(rest[..kind_length].to_vec()).expect("text");
    let magic = rest.windows(4).position(|bytes| bytes == b"k8s\0").expect("an object");
    (kind, schema::protobuf::decode(&rest[magic..]).expect("an object"))
}

fn frame_length(bytes: &[u8]) -> usize {
    u32::from_be_bytes(bytes[..4].try_into().expect("four bytes")) as usize
}

/// client-go since 1.35: protobuf, and the list as a watch.
#[tokio::test]
async fn a_watch_speaks_protobuf_to_those_who_prefer_it() {
    let scratch = Scratch::new("protobuf-watch");
    let server = start(&scratch.0, 0).await;
    make(&server, "web").await;
    // An empty map and none are the same in protobuf.
    let made = change(&server, "web", json!({"data": {"a": "0"}})).await;
    let accept = "application/vnd.kubernetes.protobuf;stream=watch,application/json";
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true\
                 &fieldSelector=metadata.name%3Dweb";
    let mut wire = Wire::open(&server, query, accept).await;
    assert_eq!(next_frame(&mut wire).await, ("ADDED".to_owned(), made));
    let (kind, bookmark) = next_frame(&mut wire).await;
    let end = &bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"];
    assert_eq!((kind.as_str(), end), ("BOOKMARK", &json!("true")));
    let changed = change(&server, "web", json!({"data": {"a": "1"}})).await;
    assert_eq!(next_frame(&mut wire).await, ("MODIFIED".to_owned(), changed));
    server.running.stop().await;
}

#[tokio::test]
async fn a_watcher_sees_every_change_as_it_happens() {
    let scratch = Scratch::new("watch");
    let server = start(&scratch.0, 0).await;
    let mut watch = server.client.watch::<Value>(WatchSpec::new(config_maps()));
    assert_eq!(within("the list", watch.next()).await, WatchEvent::Listed(vec![]));
    let made = make(&server, "web").await;
    assert_eq!(within("the create", watch.next()).await, WatchEvent::Applied(made));
    let changed = change(&server, "web", json!({"data": {"a": "1"}})).await;
    assert_eq!(within("the change", watch.next()).await, WatchEvent::Applied(changed));
    let path = config_maps().name("web");
    server.client.delete(&path, &DeleteOptions::default()).await.expect("deleted");
    match within("the delete", watch.next()).await {
        WatchEvent::Deleted(object) => assert_eq!(object["metadata"]["name"], "web"),
        other => panic!("{other:?}"),
    }
    server.running.stop().await;
}

#[tokio::test]
async fn a_watcher_resumes_over_a_restart_without_a_new_list() {
    let scratch = Scratch::new("restart");
    let server = start(&scratch.0, 0).await;
    let port = server.address.port();
    let first = make(&server, "first").await;
    let mut watch = server.client.watch::<Value>(WatchSpec::new(config_maps()));
    match within("the list", watch.next()).await {
        // Items of a list carry no kind, so only their metadata is the same.
        WatchEvent::Listed(items) => assert_eq!(items[0]["metadata"], first["metadata"]),
        other => panic!("{other:?}"),
    }
    let second = make(&server, "second").await;
    assert_eq!(within("an event", watch.next()).await, WatchEvent::Applied(second));
    server.running.stop().await;

    let server = start(&scratch.0, port).await;
    let third = make(&server, "third").await;
    loop {
        match within("the change after the restart", watch.next()).await {
            WatchEvent::Applied(object) => {
                assert_eq!(object, third);
                break;
            }
            WatchEvent::Lost { .. } | WatchEvent::Resumed => {}
            other => panic!("{other:?}"),
        }
    }
    server.running.stop().await;
}

#[tokio::test]
async fn a_watch_from_a_revision_before_a_restart_misses_nothing() {
    let scratch = Scratch::new("past");
    let server = start(&scratch.0, 0).await;
    let before = version(&make(&server, "a").await);
    make(&server, "b").await;
    change(&server, "a", json!({"data": {"x": "1"}})).await;
    server.running.stop().await;
    let server = start(&scratch.0, 0).await;
    make(&server, "c").await;
    let mut wire = Wire::open(&server, &format!("resourceVersion={before}"), JSON).await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let event = wire.next().await.expect("an event");
        seen.push((event["type"].clone(), event["object"]["metadata"]["name"].clone()));
    }
    assert_eq!(
        seen,
        [
            (json!("ADDED"), json!("b")),
            (json!("MODIFIED"), json!("a")),
            (json!("ADDED"), json!("c")),
        ]
    );
    server.running.stop().await;
}

#[tokio::test]
async fn a_watch_ends_at_its_timeout_with_a_bookmark() {
    let scratch = Scratch::new("timeout");
    let server = start(&scratch.0, 0).await;
    let made = make(&server, "web").await;
    let query =
        format!("resourceVersion={}&timeoutSeconds=1&allowWatchBookmarks=true", version(&made) - 1);
    let mut wire = Wire::open(&server, &query, JSON).await;
    assert_eq!(wire.next().await.expect("an event")["type"], "ADDED");
    let bookmark = wire.next().await.expect("a bookmark");
    assert_eq!(
        (&bookmark["type"], &bookmark["object"]["kind"]),
        (&json!("BOOKMARK"), &json!("ConfigMap"))
    );
    assert_eq!(version(&bookmark["object"]), version(&made));
    assert_eq!(wire.next().await, None);
    server.running.stop().await;
}

#[tokio::test]
async fn falling_out_of_the_window_is_told_in_the_stream() {
    let scratch = Scratch::new("window");
    let server = start(&scratch.0, 0).await;
    let first = version(&make(&server, "web").await);
    // The default window holds a thousand events of a kind.
    for number in 0..=store::WATCH_WINDOW_EVENTS {
        change(&server, "web", json!({"data": {"n": number.to_string()}})).await;
    }
    let mut wire = Wire::open(&server, &format!("resourceVersion={first}"), JSON).await;
    let event = wire.next().await.expect("an event");
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
    let message = event["object"]["message"].as_str().expect("a message");
    assert!(message.starts_with(&format!("too old resource version: {first} (")), "{message}");
    assert_eq!(wire.next().await, None);
    server.running.stop().await;
}

#[tokio::test]
async fn selectors_turn_changes_into_entering_and_leaving() {
    let scratch = Scratch::new("selectors");
    let server = start(&scratch.0, 0).await;
    let spec = WatchSpec::new(config_maps()).label_selector("tier=front");
    let mut watch = server.client.watch::<Value>(spec);
    assert_eq!(within("the list", watch.next()).await, WatchEvent::Listed(vec![]));
    make(&server, "web").await;
    let entered = change(&server, "web", json!({"metadata": {"labels": {"tier": "front"}}})).await;
    assert_eq!(within("entering", watch.next()).await, WatchEvent::Applied(entered));
    change(&server, "web", json!({"metadata": {"labels": {"tier": "back"}}})).await;
    match within("leaving", watch.next()).await {
        WatchEvent::Deleted(object) => assert_eq!(object["metadata"]["labels"]["tier"], "front"),
        other => panic!("{other:?}"),
    }
    server.running.stop().await;
}

#[tokio::test]
async fn events_come_as_tables_with_columns_only_once() {
    let scratch = Scratch::new("tables");
    let server = start(&scratch.0, 0).await;
    make(&server, "a").await;
    make(&server, "b").await;
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let mut wire = Wire::open(&server, "resourceVersion=0", accept).await;
    let first = wire.next().await.expect("an event")["object"].clone();
    let second = wire.next().await.expect("an event")["object"].clone();
    assert_eq!((&first["kind"], &second["kind"]), (&json!("Table"), &json!("Table")));
    assert_eq!(first["rows"].as_array().map(Vec::len), Some(1));
    assert!(first["columnDefinitions"].as_array().is_some_and(|columns| !columns.is_empty()));
    assert!(second["columnDefinitions"].as_array().is_none_or(Vec::is_empty));
    server.running.stop().await;
}

#[tokio::test]
async fn a_stopping_server_ends_its_watches() {
    let scratch = Scratch::new("stop");
    let server = start(&scratch.0, 0).await;
    let mut wire = Wire::open(&server, "resourceVersion=0", JSON).await;
    let Server { running, .. } = server;
    within("the stop", running.stop()).await;
    assert_eq!(wire.next().await, None);
}

#[tokio::test]
async fn a_hundred_watchers_see_the_same() {
    const WATCHERS: usize = 100;
    let scratch = Scratch::new("many");
    let server = start(&scratch.0, 0).await;
    let mut watchers = tokio::task::JoinSet::new();
    for _ in 0..WATCHERS {
        let mut watch = server.running.client().watch::<Value>(WatchSpec::new(config_maps()));
        watchers.spawn(async move {
            let mut seen = Vec::new();
            while seen.len() < 5 {
                match watch.next().await {
                    WatchEvent::Applied(object) => seen.push(object),
                    WatchEvent::Listed(items) => seen.extend(items),
                    other => panic!("{other:?}"),
                }
            }
            seen
        });
    }
    let mut made = Vec::new();
    for number in 0..5 {
        made.push(make(&server, &format!("m{number}")).await);
    }
    while let Some(seen) = within("every watcher", watchers.join_next()).await {
        assert_eq!(seen.expect("a watcher"), made);
    }
    server.running.stop().await;
}
