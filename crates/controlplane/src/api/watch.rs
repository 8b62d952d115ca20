//! Watches over HTTP: a cursor into the store's window, written as lines (or as frames of protobuf)
//! while the client reads.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use client::{Body, BodyError};
use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Frame};
use hyper::{Response, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};
use store::table::{Include, table};
use store::{
    EventType, Object, Random as _, Resource, Status, WATCH_WINDOW_EVENTS, WatchEvent, Watcher,
};
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, Sleep};

use super::lines::Lines;
use super::negotiate::{Accepted, Encoding, Form};
use super::{answer, protobuf};
use crate::conversion::Converter;
use crate::stopped;
use crate::writer::{Shared, SystemRandom, now};

/// A watch without `timeoutSeconds` ends after this and up to twice as long, seconds; the
/// spread keeps clients from coming back all at once.
const DEFAULT_TIMEOUT_SECONDS: u64 = 30 * 60;
/// The longest that a client can ask for, seconds.
const MAX_TIMEOUT_SECONDS: u64 = 24 * 60 * 60;
/// Between two bookmarks, seconds.
const BOOKMARK_SECONDS: u64 = 60;
/// Records looked at in one step: the whole window, so that a step always catches up.
const STEP_RECORDS: usize = WATCH_WINDOW_EVENTS + 1;

/// How a watch is to be answered.
pub(super) struct WatchRequest {
    /// The cursor.
    pub watcher: Watcher,
    /// The form of the objects, and how they are written: as JSON where YAML was asked for.
    pub accepted: Accepted,
    /// What the rows of Tables carry.
    pub include: Include,
    /// `timeoutSeconds`.
    pub timeout_seconds: Option<i64>,
}

/// Starts a watch. It ends at its timeout, when the server stops, when the client falls out of
/// the window, and when the client goes away.
pub(super) fn start(
    shared: &Shared,
    converter: &Arc<Converter>,
    lines: &Arc<Lines>,
    mut stop: watch::Receiver<bool>,
    request: WatchRequest,
) -> Response<Body> {
    let changes = shared.changes(request.watcher.resource.storage);
    let now = Instant::now();
    let deadline = now + timeout(request.timeout_seconds);
    let next_bookmark = now + Duration::from_secs(BOOKMARK_SECONDS);
    let media_type = match request.accepted.encoding {
        Encoding::Protobuf => protobuf::WATCH_MEDIA_TYPE,
        Encoding::Json | Encoding::Yaml => "application/json",
    };
    let stream = Stream {
        converter: Arc::clone(converter),
        teller: Teller {
            lines: Arc::clone(lines),
            resource: request.watcher.resource,
            accepted: request.accepted,
            include: request.include,
            columns_sent: false,
            ended: false,
        },
        watcher: request.watcher,
        state: State::Reading,
        change: Box::pin(Arc::clone(&changes).notified_owned()),
        changes,
        stopped: Box::pin(async move { stopped(&mut stop).await }),
        alarm: Box::pin(tokio::time::sleep_until(deadline.min(next_bookmark))),
        deadline,
    };
    answer::stream(StatusCode::OK, media_type, stream.boxed_unsync())
}

fn timeout(seconds: Option<i64>) -> Duration {
    let seconds = match seconds.and_then(|seconds| u64::try_from(seconds).ok()) {
        Some(asked) if asked > 0 => asked.min(MAX_TIMEOUT_SECONDS),
        _ => DEFAULT_TIMEOUT_SECONDS + SystemRandom.next_u64() % DEFAULT_TIMEOUT_SECONDS,
    };
    Duration::from_secs(seconds)
}

/// A watch as a body. Nothing is made before the client reads it, so a slow client costs one
/// step's lines at most. All that it waits for is made once, not with every event: a thousand
/// watchers are to hear of one within milliseconds.
struct Stream {
    converter: Arc<Converter>,
    watcher: Watcher,
    teller: Teller,
    state: State,
    changes: Arc<Notify>,
    /// The first change since it was made.
    change: Pin<Box<OwnedNotified>>,
    /// Resolves when the server stops.
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// The next bookmark, or the deadline.
    alarm: Pin<Box<Sleep>>,
    deadline: Instant,
}

/// What there is to tell.
type Told = Result<Vec<WatchEvent>, Status>;

enum State {
    /// The store is to be read.
    Reading,
    /// It is read with the help of a webhook; the cursor comes back with what is found.
    Converting(Pin<Box<dyn Future<Output = (Watcher, Told)> + Send>>),
    /// All is told.
    Waiting,
}

/// What ended a wait.
enum Woken {
    Change,
    Bookmark,
    End,
}

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        while !self.teller.ended {
            let bytes = match &mut self.state {
                State::Reading => match self.read() {
                    Some(told) => self.tell(told),
                    None => continue,
                },
                State::Converting(conversion) => {
                    let (watcher, told) = ready!(conversion.as_mut().poll(cx));
                    self.watcher = watcher;
                    self.tell(told)
                }
                State::Waiting => {
                    let woken = ready!(self.poll_wait(cx));
                    self.wake(woken)
                }
            };
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
        }
        Poll::Ready(None)
    }
}

impl Stream {
    /// What there is to tell. `None` where a webhook is asked first: the cursor moves on once all of
    /// it is converted.
    fn read(&mut self) -> Option<Told> {
        let Self { converter, watcher, .. } = self;
        let told = converter.read_now(|store, conversions| {
            store.watch_converted(watcher, STEP_RECORDS, conversions)
        });
        if told.is_none() {
            let (converter, mut watcher) = (Arc::clone(&self.converter), self.watcher.clone());
            self.state = State::Converting(Box::pin(async move {
                let told = converter.read(|store, conversions| {
                    store.watch_converted(&mut watcher, STEP_RECORDS, conversions)
                });
                let told = told.await;
                (watcher, told)
            }));
        }
        told
    }

    /// The lines of what was read. A step always catches up, but that something is defined no more
    /// is only told after its last events.
    fn tell(&mut self, told: Told) -> Bytes {
        let is_custom = self.watcher.resource.custom.is_some();
        let may_end = is_custom && told.as_ref().is_ok_and(|events| !events.is_empty());
        self.state = if may_end { State::Reading } else { State::Waiting };
        match told {
            Ok(events) => self.teller.tell(&events),
            Err(status) => self.teller.fail(&status),
        }
    }

    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<Woken> {
        if self.stopped.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Woken::End);
        }
        if self.alarm.as_mut().poll(cx).is_ready() {
            let is_over = self.alarm.deadline() >= self.deadline;
            return Poll::Ready(if is_over { Woken::End } else { Woken::Bookmark });
        }
        self.change.as_mut().poll(cx).map(|()| Woken::Change)
    }

    /// Goes on after a wait; a bookmark where it is time for one.
    fn wake(&mut self, woken: Woken) -> Bytes {
        match woken {
            Woken::Change => {
                // Before the store is read: a change in between ends the next wait.
                self.change.set(Arc::clone(&self.changes).notified_owned());
                self.state = State::Reading;
                return Bytes::new();
            }
            Woken::Bookmark => {
                let next = Instant::now() + Duration::from_secs(BOOKMARK_SECONDS);
                self.alarm.as_mut().reset(next.min(self.deadline));
            }
            Woken::End => self.teller.ended = true,
        }
        self.watcher.bookmark().map(|bookmark| self.teller.tell(&[bookmark])).unwrap_or_default()
    }
}

/// Writes events in the form that the client wants.
struct Teller {
    lines: Arc<Lines>,
    resource: &'static Resource,
    accepted: Accepted,
    include: Include,
    /// Tables carry their column definitions in the first event only.
    columns_sent: bool,
    ended: bool,
}

impl Teller {
    fn tell(&mut self, events: &[WatchEvent]) -> Bytes {
        // Without a copy, as nearly all events come.
        if let [event] = events {
            return self.write(event);
        }
        let mut lines = Vec::new();
        for event in events {
            lines.extend_from_slice(&self.write(event));
            if self.ended {
                break;
            }
        }
        lines.into()
    }

    fn write(&mut self, event: &WatchEvent) -> Bytes {
        let Accepted { form, encoding } = self.accepted;
        let written = match event {
            WatchEvent::Bookmark(object) => write_bookmark(encoding, object).map(Bytes::from),
            // Its rows tell ages.
            WatchEvent::Object(kind, object) if form == Form::Table => {
                Some(self.write_table(*kind, object).into())
            }
            WatchEvent::Object(kind, object) => {
                let write = || write_object(self.accepted, *kind, object);
                self.lines.get(*kind, self.accepted, object, write)
            }
        };
        // A client that lacks an event must not go on as if it had it.
        written.unwrap_or_else(|| {
            self.fail(&Status::internal("an object cannot be written as protobuf"))
        })
    }

    fn write_table(&mut self, kind: EventType, object: &Object) -> Vec<u8> {
        let first = !std::mem::replace(&mut self.columns_sent, true);
        let metadata = json!({"resourceVersion": object.revision.to_string()});
        let table = table(self.resource, [object], metadata, now(), self.include, first);
        line(&Line { kind: kind.as_str(), object: &table })
    }

    /// Tells why the watch ends.
    fn fail(&mut self, status: &Status) -> Bytes {
        self.ended = true;
        let written = match self.accepted.encoding {
            Encoding::Json | Encoding::Yaml => line(&status.to_watch_event()),
            Encoding::Protobuf => {
                let frame = schema::protobuf::encode_event("ERROR", &status.to_value());
                frame.unwrap_or_default()
            }
        };
        written.into()
    }
}

fn write_bookmark(encoding: Encoding, object: &Value) -> Option<Vec<u8>> {
    match encoding {
        Encoding::Protobuf => schema::protobuf::encode_event("BOOKMARK", object),
        Encoding::Json | Encoding::Yaml => Some(line(&Line { kind: "BOOKMARK", object })),
    }
}

/// An event of an object, or of its metadata; `None` where protobuf cannot say it.
fn write_object(accepted: Accepted, kind: EventType, object: &Object) -> Option<Vec<u8>> {
    let kind = kind.as_str();
    if accepted.encoding == Encoding::Protobuf {
        return schema::protobuf::encode_event(kind, &object.to_value());
    }
    if accepted.form == Form::Partial {
        return Some(line(&Line { kind, object: &object.to_partial() }));
    }
    let text = object.value.whole_text();
    Some([r#"{"type":""#, kind, r#"","object":"#, text, "}\n"].concat().into_bytes())
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    object: &'a Value,
}

fn line(line: &impl Serialize) -> Vec<u8> {
    let mut text = Vec::new();
    // Writing JSON values to memory cannot fail.
    let _ = serde_json::to_writer(&mut text, line);
    text.push(b'\n');
    text
}
