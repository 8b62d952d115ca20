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
use store::{Random as _, Status, WATCH_WINDOW_EVENTS, WatchEvent, Watcher};
use tokio::sync::watch;
use tokio::time::Instant;

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
    stop: watch::Receiver<bool>,
    request: WatchRequest,
) -> Option<Response<Body>> {
    let changes = shared.changes(request.watcher.resource.storage)?;
    let now = Instant::now();
    let stream = Stream {
        converter: Arc::clone(converter),
        watcher: request.watcher,
        accepted: request.accepted,
        include: request.include,
        changes,
        stop,
        deadline: now + timeout(request.timeout_seconds),
        next_bookmark: now + Duration::from_secs(BOOKMARK_SECONDS),
        columns_sent: false,
        ended: false,
    };
    let media_type = match request.accepted.encoding {
        Encoding::Protobuf => protobuf::WATCH_MEDIA_TYPE,
        Encoding::Json | Encoding::Yaml => "application/json",
    };
    let body = Unfold { next: Box::pin(stream.advance()) };
    Some(answer::stream(StatusCode::OK, media_type, body.boxed_unsync()))
}

fn timeout(seconds: Option<i64>) -> Duration {
    let seconds = match seconds.and_then(|seconds| u64::try_from(seconds).ok()) {
        Some(asked) if asked > 0 => asked.min(MAX_TIMEOUT_SECONDS),
        _ => DEFAULT_TIMEOUT_SECONDS + SystemRandom.next_u64() % DEFAULT_TIMEOUT_SECONDS,
    };
    Duration::from_secs(seconds)
}

struct Stream {
    converter: Arc<Converter>,
    watcher: Watcher,
    accepted: Accepted,
    include: Include,
    changes: watch::Receiver<u64>,
    stop: watch::Receiver<bool>,
    deadline: Instant,
    next_bookmark: Instant,
    /// Tables carry their column definitions in the first event only.
    columns_sent: bool,
    ended: bool,
}

/// What ended a wait.
enum Woken {
    Change,
    Bookmark,
    End,
}

impl Stream {
    /// The next lines and the stream after them; `None` at the end.
    async fn advance(mut self) -> Option<Step> {
        while !self.ended {
            // Marked as seen before the store is read: a change in between wakes the wait.
            self.changes.borrow_and_update();
            let step = self.step().await;
            let mut lines = Vec::new();
            match step {
                Ok(events) => events.iter().for_each(|event| self.write(event, &mut lines)),
                Err(status) => self.fail(&status, &mut lines),
            }
            if lines.is_empty() {
                self.wait(&mut lines).await;
            }
            if !lines.is_empty() {
                return Some((lines.into(), self));
            }
        }
        None
    }

    /// What there is to tell; the cursor moves on once all of it is converted.
    async fn step(&mut self) -> Result<Vec<WatchEvent>, Status> {
        let watcher = &mut self.watcher;
        self.converter
            .read(|store, conversions| store.watch_converted(watcher, STEP_RECORDS, conversions))
            .await
    }

    async fn wait(&mut self, lines: &mut Vec<u8>) {
        let wake_at = self.deadline.min(self.next_bookmark);
        let woken = tokio::select! {
            changed = self.changes.changed() => match changed {
                Ok(()) => Woken::Change,
                Err(_) => Woken::End,
            },
            () = stopped(&mut self.stop) => Woken::End,
            () = tokio::time::sleep_until(wake_at) => {
                if wake_at == self.deadline { Woken::End } else { Woken::Bookmark }
            }
        };
        match woken {
            Woken::Change => return,
            Woken::Bookmark => {
                self.next_bookmark = Instant::now() + Duration::from_secs(BOOKMARK_SECONDS);
            }
            Woken::End => self.ended = true,
        }
        if let Some(bookmark) = self.watcher.bookmark() {
            self.write(&bookmark, lines);
        }
    }

    fn write(&mut self, event: &WatchEvent, lines: &mut Vec<u8>) {
        if self.accepted.encoding == Encoding::Protobuf {
            return self.write_frame(event, lines);
        }
        let (kind, object) = match event {
            WatchEvent::Bookmark(object) => {
                return write_line(&Line { kind: "BOOKMARK", object }, lines);
            }
            WatchEvent::Object(kind, object) => (kind.as_str(), object),
        };
        match self.accepted.form {
            Form::Plain | Form::Discovery => {
                lines.extend_from_slice(b"{\"type\":\"");
                lines.extend_from_slice(kind.as_bytes());
                lines.extend_from_slice(b"\",\"object\":");
                object.write_text(lines);
                lines.extend_from_slice(b"}\n");
            }
            Form::Partial => write_line(&Line { kind, object: &object.to_partial() }, lines),
            Form::Table => {
                let first = !std::mem::replace(&mut self.columns_sent, true);
                let metadata = json!({"resourceVersion": object.revision.to_string()});
                let table =
                    table(self.watcher.resource, [&**object], metadata, now(), self.include, first);
                write_line(&Line { kind, object: &table }, lines);
            }
        }
    }

    fn write_frame(&mut self, event: &WatchEvent, frames: &mut Vec<u8>) {
        let frame = match event {
            WatchEvent::Bookmark(object) => schema::protobuf::encode_event("BOOKMARK", object),
            WatchEvent::Object(kind, object) => {
                schema::protobuf::encode_event(kind.as_str(), &object.to_value())
            }
        };
        match frame {
            Some(mut frame) => frames.append(&mut frame),
            // A client that lacks an event must not go on as if it had it.
            None => self.fail(&Status::internal("an object cannot be written as protobuf"), frames),
        }
    }

    /// Tells why the watch ends.
    fn fail(&mut self, status: &Status, lines: &mut Vec<u8>) {
        self.ended = true;
        match self.accepted.encoding {
            Encoding::Json | Encoding::Yaml => write_line(&status.to_watch_event(), lines),
            Encoding::Protobuf => {
                let frame = schema::protobuf::encode_event("ERROR", &status.to_value());
                lines.extend(frame.into_iter().flatten());
            }
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    object: &'a Value,
}

fn write_line(line: &impl Serialize, lines: &mut Vec<u8>) {
    // Writing JSON values to memory cannot fail.
    let _ = serde_json::to_writer(&mut *lines, line);
    lines.push(b'\n');
}

/// Lines, and the stream after them.
type Step = (Bytes, Stream);

/// A body made of the steps of a [`Stream`]. Nothing is made before the client reads it, so a
/// slow client costs one step's lines at most.
struct Unfold {
    next: Pin<Box<dyn Future<Output = Option<Step>> + Send>>,
}

impl hyper::body::Body for Unfold {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match ready!(self.next.as_mut().poll(cx)) {
            Some((lines, stream)) => {
                self.next = Box::pin(stream.advance());
                Poll::Ready(Some(Ok(Frame::data(lines))))
            }
            None => {
                self.next = Box::pin(std::future::ready(None));
                Poll::Ready(None)
            }
        }
    }
}
