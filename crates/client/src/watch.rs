//! Watches that never end: list, then watch from the list's revision, resume when the stream
//! closes, list again when the server forgot the revision.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body as _, Buf as _, Bytes};
use serde::de::DeserializeOwned;
use tokio::time::Sleep;

use crate::event::{self, Told};
use crate::path::with_query;
use crate::{Body, Client, ClientError, ListOptions, ResourcePath};

/// Objects a page of the initial list: bounds the memory of a list, not its length.
const LIST_PAGE_OBJECTS: u32 = 250;
/// The longest event that is read, bytes: above the server's limit for one object.
const MAX_EVENT_BYTES: usize = 8 << 20;
/// How long the server is asked to keep one stream open, seconds.
const STREAM_SECONDS: u64 = 290;
/// A stream is given up when it is this much older than it should get, seconds.
const STREAM_GRACE_SECONDS: u64 = 30;
/// Longest wait for the stream to be opened, and for a whole list, seconds.
const OPEN_TIMEOUT_SECONDS: u64 = 65;
/// First wait after a failure, milliseconds. A restarting control plane is back within a second.
const RETRY_FIRST_MS: u64 = 50;
/// Longest wait between two tries, milliseconds.
const RETRY_MAX_MS: u64 = 5_000;

/// What to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchSpec {
    /// A collection.
    pub path: ResourcePath,
    /// A label selector in the API's text form; empty selects all.
    pub label_selector: String,
    /// A field selector in the API's text form; empty selects all.
    pub field_selector: String,
}

impl WatchSpec {
    /// Follows a whole collection.
    pub fn new(path: ResourcePath) -> Self {
        Self { path, label_selector: String::new(), field_selector: String::new() }
    }

    /// Follows only objects with these labels.
    pub fn label_selector(mut self, selector: impl Into<String>) -> Self {
        self.label_selector = selector.into();
        self
    }

    /// Follows only objects with these field values.
    pub fn field_selector(mut self, selector: impl Into<String>) -> Self {
        self.field_selector = selector.into();
        self
    }
}

/// What a [`Watcher`] saw. Presence decides, never the kind of the event (invariant 2): the
/// server's ADDED and MODIFIED are one here. Lists come as `L`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent<T, L = Vec<T>> {
    /// The complete collection: whatever is not in it is gone. First event, and after gaps.
    Listed(L),
    /// This object is there, in this state.
    Applied(T),
    /// This object is gone; its last state.
    Deleted(T),
    /// The stream broke and cannot be resumed yet. What was seen before still stands; the
    /// watcher goes on trying. Sent once an outage.
    Lost {
        /// For people.
        reason: String,
    },
    /// The stream goes on after [`WatchEvent::Lost`], nothing was missed. (After a gap,
    /// [`WatchEvent::Listed`] comes in its place.)
    Resumed,
}

/// Follows a collection; made by [`Client::watch`] or [`Client::watch_into`]. Dropping it closes
/// the stream.
pub struct Watcher<T, L = Vec<T>> {
    client: Client,
    spec: WatchSpec,
    state: State<L>,
    /// The revision to resume from; `None` asks for a list.
    revision: Option<String>,
    failures: u32,
    lost: bool,
    of: PhantomData<fn() -> T>,
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

enum State<L> {
    Waiting(Pin<Box<Sleep>>),
    Listing(BoxFuture<Result<(L, String), ClientError>>),
    Opening(BoxFuture<Result<Body, ClientError>>),
    Streaming(Box<Stream>),
    /// Decide what comes next from `revision`.
    Starting,
}

struct Stream {
    body: Body,
    lines: Lines,
    deadline: Pin<Box<Sleep>>,
    /// Whether this stream has brought anything: one that never does counts as a failure.
    productive: bool,
}

impl<T, L> Watcher<T, L>
where
    T: DeserializeOwned + Send + 'static,
    L: Default + Extend<T> + Send + 'static,
{
    pub(crate) fn new(client: Client, spec: WatchSpec) -> Self {
        let (state, revision) = (State::Starting, None);
        Self { client, spec, state, revision, failures: 0, lost: false, of: PhantomData }
    }

    /// Waits for the next event. Cancel-safe: dropping the future loses nothing.
    pub async fn next(&mut self) -> WatchEvent<T, L> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The version of the collection that the last event brought us to: after
    /// [`WatchEvent::Listed`], that of the list. `None` before the first list.
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// [`Watcher::next`] for tasks that follow many collections at once.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<WatchEvent<T, L>> {
        loop {
            let event = match &mut self.state {
                State::Starting => {
                    self.start();
                    None
                }
                State::Waiting(sleep) => {
                    ready!(sleep.as_mut().poll(cx));
                    self.state = State::Starting;
                    None
                }
                State::Listing(future) => {
                    let listed = ready!(future.as_mut().poll(cx));
                    self.on_listed(listed)
                }
                State::Opening(future) => {
                    let opened = ready!(future.as_mut().poll(cx));
                    self.on_opened(opened)
                }
                State::Streaming(stream) => {
                    let step = ready!(stream.poll_step(cx));
                    self.on_step(step)
                }
            };
            if let Some(event) = event {
                return Poll::Ready(event);
            }
        }
    }

    fn start(&mut self) {
        let (client, spec) = (self.client.clone(), self.spec.clone());
        self.state = match self.revision.clone() {
            None => State::Listing(Box::pin(list_all::<T, L>(client, spec))),
            Some(revision) => State::Opening(Box::pin(open(client, spec, revision))),
        };
    }

    fn on_listed(&mut self, listed: Result<(L, String), ClientError>) -> Option<WatchEvent<T, L>> {
        match listed {
            Ok((items, revision)) => {
                self.revision = Some(revision);
                self.lost = false;
                self.failures = 0;
                self.state = State::Starting;
                Some(WatchEvent::Listed(items))
            }
            Err(error) => self.fail(error.to_string()),
        }
    }

    fn on_opened(&mut self, opened: Result<Body, ClientError>) -> Option<WatchEvent<T, L>> {
        match opened {
            Ok(body) => {
                let limit = Duration::from_secs(STREAM_SECONDS + STREAM_GRACE_SECONDS);
                self.state = State::Streaming(Box::new(Stream {
                    body,
                    lines: Lines::default(),
                    deadline: Box::pin(tokio::time::sleep(limit)),
                    productive: false,
                }));
                std::mem::take(&mut self.lost).then_some(WatchEvent::Resumed)
            }
            Err(error) => {
                if error.is_expired() {
                    self.revision = None;
                }
                self.fail(error.to_string())
            }
        }
    }

    fn on_step(&mut self, step: Step) -> Option<WatchEvent<T, L>> {
        match step {
            Step::Line(line) => {
                self.failures = 0;
                self.on_event(event::read(&line))
            }
            // The server ends every stream after a while: no fault, unless it never says anything.
            Step::Ended { productive: true } => {
                self.state = State::Starting;
                None
            }
            Step::Ended { productive: false } => {
                self.wait();
                None
            }
            Step::Failed(reason) => self.fail(reason),
        }
    }

    fn on_event(&mut self, told: Result<Told<T>, serde_json::Error>) -> Option<WatchEvent<T, L>> {
        let (event, revision) = match told {
            Ok(Told::Applied(object, revision)) => (Some(WatchEvent::Applied(object)), revision),
            Ok(Told::Deleted(object, revision)) => (Some(WatchEvent::Deleted(object)), revision),
            Ok(Told::Bookmark(revision)) => (None, revision),
            // Whether too much is lost or something cannot be read: only a new list makes it good.
            Ok(Told::Error(status)) => {
                self.revision = None;
                return self.fail(status.message);
            }
            Err(error) => {
                self.revision = None;
                return self.fail(format!("an event is unreadable: {error}"));
            }
        };
        self.revision = Some(revision);
        event
    }

    fn fail(&mut self, reason: String) -> Option<WatchEvent<T, L>> {
        self.wait();
        tracing::debug!(path = %self.spec.path, %reason, failures = self.failures, "watch broke");
        let first = !std::mem::replace(&mut self.lost, true);
        first.then_some(WatchEvent::Lost { reason })
    }

    fn wait(&mut self) {
        let wait = retry_after(self.failures);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Waiting(Box::pin(tokio::time::sleep(wait)));
    }
}

/// Doubling from [`RETRY_FIRST_MS`] to [`RETRY_MAX_MS`], less up to a half by chance, so that
/// many watchers do not come back in the same instant.
fn retry_after(failures: u32) -> Duration {
    let full_ms = RETRY_FIRST_MS.saturating_mul(1 << failures.min(16)).min(RETRY_MAX_MS);
    // Without randomness the full wait is right, only less well spread.
    let chance = getrandom::u32().unwrap_or(0);
    Duration::from_millis(full_ms - u64::from(chance) % (full_ms / 2 + 1))
}

async fn list_all<T: DeserializeOwned, L: Default + Extend<T>>(
    client: Client,
    spec: WatchSpec,
) -> Result<(L, String), ClientError> {
    let mut items = L::default();
    let mut options = ListOptions {
        label_selector: spec.label_selector,
        field_selector: spec.field_selector,
        limit: LIST_PAGE_OBJECTS,
        continue_token: String::new(),
    };
    // Ends: the server's tokens only go forward through a finite snapshot.
    loop {
        let page = client.list::<T>(&spec.path, &options).await?;
        items.extend(page.items);
        if page.metadata.continue_token.is_empty() {
            return Ok((items, page.metadata.resource_version));
        }
        options.continue_token = page.metadata.continue_token;
    }
}

async fn open(client: Client, spec: WatchSpec, revision: String) -> Result<Body, ClientError> {
    let path = with_query(
        &spec.path,
        &[
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", &revision),
            ("timeoutSeconds", &STREAM_SECONDS.to_string()),
            ("labelSelector", &spec.label_selector),
            ("fieldSelector", &spec.field_selector),
        ],
    );
    let limit = Duration::from_secs(OPEN_TIMEOUT_SECONDS);
    match tokio::time::timeout(limit, client.open(path)).await {
        Ok(opened) => opened,
        Err(_) => Err(ClientError::Transport {
            target: spec.path.to_string(),
            problem: format!("no answer within {OPEN_TIMEOUT_SECONDS} s"),
            hint: "the server is overloaded or gone: retry later",
        }),
    }
}

enum Step {
    Line(Bytes),
    Ended { productive: bool },
    Failed(String),
}

impl Stream {
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        loop {
            match self.lines.next() {
                Some(Ok(line)) => {
                    self.productive = true;
                    return Poll::Ready(Step::Line(line));
                }
                Some(Err(reason)) => return Poll::Ready(Step::Failed(reason)),
                None => {}
            }
            if self.deadline.as_mut().poll(cx).is_ready() {
                let reason = "the stream outlived its time: the connection is dead".to_owned();
                return Poll::Ready(Step::Failed(reason));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.lines.push(data);
                    }
                }
                Some(Err(error)) => {
                    return Poll::Ready(Step::Failed(format!("the stream broke: {error}")));
                }
                None => return Poll::Ready(Step::Ended { productive: self.productive }),
            }
        }
    }
}

/// Cuts a byte stream into lines, holding no more than one line that is not complete yet and
/// what arrived with it. A line that arrives in one piece is not copied.
#[derive(Default)]
struct Lines {
    /// What came before `arrived` of the first line that was not given out yet: no newline.
    begun: Vec<u8>,
    arrived: Bytes,
}

impl Lines {
    /// Takes the next piece, once [`Lines::next`] finds nothing more.
    fn push(&mut self, data: Bytes) {
        self.arrived = data;
    }

    fn next(&mut self) -> Option<Result<Bytes, String>> {
        while let Some(length) = memchr::memchr(b'\n', &self.arrived) {
            let mut line = self.arrived.split_to(length);
            // The newline.
            self.arrived.advance(1);
            if !self.begun.is_empty() {
                self.begun.extend_from_slice(&line);
                line = std::mem::take(&mut self.begun).into();
            }
            if !line.iter().all(u8::is_ascii_whitespace) {
                return Some(Ok(line));
            }
        }
        // An idle stream holds no buffer but what it has begun.
        self.begun.extend_from_slice(&std::mem::take(&mut self.arrived));
        let is_long = self.begun.len() > MAX_EVENT_BYTES;
        is_long.then(|| Err(format!("an event is longer than {MAX_EVENT_BYTES} bytes")))
    }
}
