//! A watcher that writes down what the wire shows, over all its connections.

use std::path::PathBuf;
use std::time::Duration;

use client::{Body, Client, ListOptions};
use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::body::Bytes;
use serde_json::Value;
use tokio::sync::watch;

use crate::checker::{History, Kind, Seen};

/// The name of the object after which nothing is written.
pub const LAST: &str = "zz-last";
/// The label's value that selectors select.
pub const SELECTED: &str = "yes";
/// How long to wait for a server that is away.
const AWAY: Duration = Duration::from_millis(10);
/// Most connections of one watcher: ends a loop that gets nowhere.
const MAX_CONNECTIONS: usize = 2_000;

/// How a watcher behaves.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// Watches only what a selector selects.
    pub selects: bool,
    /// Takes the first list as a part of the watch.
    pub streams_list: bool,
    /// Waits this long after each event.
    pub pause_ms: u64,
    /// Closes its connection after so many events, and comes back; 0 never.
    pub leaves_after: usize,
}

impl Mode {
    pub const PLAIN: Self =
        Self { selects: false, streams_list: false, pause_ms: 0, leaves_after: 0 };
}

/// What a watcher saw.
pub struct Watched {
    pub mode: Mode,
    pub connections: usize,
    /// One for each list.
    pub histories: Vec<History>,
}

/// Watches until [`LAST`] has come; tells which revision it has reached, once the first connection
/// is there.
pub async fn follow(
    kubeconfig: PathBuf,
    mode: Mode,
    reached: watch::Sender<Option<u64>>,
) -> Watched {
    let client = Client::from_kubeconfig(&kubeconfig).await.expect("a client");
    let mut watched = Watched { mode, connections: 0, histories: Vec::new() };
    let mut current: Option<History> = None;
    for _ in 0..MAX_CONNECTIONS {
        let mut history = match current.take() {
            Some(history) => history,
            None if mode.streams_list => History::default(),
            None => match list(&client, mode.selects).await {
                Some(history) => history,
                None => {
                    tokio::time::sleep(AWAY).await;
                    continue;
                }
            },
        };
        let opened = open(&client, mode, &history).await;
        let end = match opened {
            Some(body) => {
                watched.connections += 1;
                reached.send_replace(Some(history.until));
                read(body, mode, &mut history, &reached).await
            }
            None => End::Closed,
        };
        match end {
            End::Closed => current = Some(history),
            End::Expired => watched.histories.push(history),
            End::Last => {
                watched.histories.push(history);
                return watched;
            }
        }
        tokio::time::sleep(AWAY).await;
    }
    panic!("{mode:?}: {MAX_CONNECTIONS} connections did not reach the end");
}

/// A history that begins with a list; `None` when the server is away.
pub async fn list(client: &Client, selects: bool) -> Option<History> {
    let mut options = ListOptions::default();
    if selects {
        options.label_selector = format!("watched={SELECTED}");
    }
    let listed = client.list::<Value>(&crate::config_maps(), &options).await.ok()?;
    let from = listed.metadata.resource_version.parse().expect("a revision");
    let objects = listed.items.iter().map(snapshot);
    Some(History { from, listed: objects.collect(), events: Vec::new(), until: from })
}

/// An object's name, with what is remembered of it.
pub fn snapshot(object: &Value) -> (String, (u64, bool)) {
    (text(object, "/metadata/name").to_owned(), (revision(object), is_selected(object)))
}

/// Why a connection ended.
enum End {
    Closed,
    Expired,
    Last,
}

/// Resumes where the history ends; `None` when the server is away.
async fn open(client: &Client, mode: Mode, history: &History) -> Option<Body> {
    let mut path = format!("{}?watch=true&allowWatchBookmarks=true", crate::config_maps());
    if history.is_unread() {
        path += "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    } else {
        path += &format!("&resourceVersion={}", history.until);
    }
    if mode.selects {
        path += &format!("&labelSelector=watched%3D{SELECTED}");
    }
    let answer = client.raw(Method::GET, &path, None, Bytes::new()).await.ok()?;
    assert_eq!(answer.status(), 200, "{path}");
    Some(answer.into_body())
}

async fn read(
    mut body: Body,
    mode: Mode,
    history: &mut History,
    reached: &watch::Sender<Option<u64>>,
) -> End {
    let mut initial = history.is_unread();
    let (mut pending, mut events) = (Vec::new(), 0);
    loop {
        let mut taken = 0;
        while let Some(length) = pending[taken..].iter().position(|byte| *byte == b'\n') {
            let line = &pending[taken..taken + length];
            let event: Value = serde_json::from_slice(line).expect("one event a line");
            taken += length + 1;
            let end = take(history, &event, &mut initial);
            reached.send_replace(Some(history.until));
            if let Some(end) = end {
                return end;
            }
            events += 1;
            // A list that comes as events has no revision to resume from until it is whole.
            if events == mode.leaves_after && !initial {
                return End::Closed;
            }
            if mode.pause_ms > 0 {
                tokio::time::sleep(Duration::from_millis(mode.pause_ms)).await;
            }
        }
        pending.drain(..taken);
        match body.frame().await {
            Some(Ok(frame)) => {
                pending.extend_from_slice(&frame.into_data().unwrap_or_default());
            }
            // Killed in the midst of a list: it begins anew.
            Some(Err(_)) | None if initial => {
                *history = History::default();
                return End::Closed;
            }
            Some(Err(_)) | None => return End::Closed,
        }
    }
}

/// Writes one event down; says when the connection is of no more use.
fn take(history: &mut History, event: &Value, initial: &mut bool) -> Option<End> {
    let object = &event["object"];
    let kind = match text(event, "/type") {
        "ADDED" => Kind::Added,
        "MODIFIED" => Kind::Modified,
        "DELETED" => Kind::Deleted,
        "BOOKMARK" => {
            let revision = revision(object);
            assert!(revision >= history.until, "a bookmark of the past: {event}");
            history.until = revision;
            if std::mem::take(initial) {
                history.from = revision;
            }
            return None;
        }
        "ERROR" => {
            assert_eq!(object["code"], 410, "{event}");
            return Some(End::Expired);
        }
        other => panic!("an event of the type {other:?}: {event}"),
    };
    let name = text(object, "/metadata/name").to_owned();
    let (revision, selected) = (revision(object), is_selected(object));
    if *initial {
        assert_eq!(kind, Kind::Added, "{event}");
        history.listed.insert(name, (revision, selected));
        return None;
    }
    history.until = history.until.max(revision);
    let is_last = name == LAST;
    history.events.push(Seen { kind, name, revision, selected });
    is_last.then_some(End::Last)
}

/// `metadata.resourceVersion`.
pub fn revision(object: &Value) -> u64 {
    text(object, "/metadata/resourceVersion").parse().expect("a revision")
}

fn is_selected(object: &Value) -> bool {
    text(object, "/metadata/labels/watched") == SELECTED
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
