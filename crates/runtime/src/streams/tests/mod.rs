//! Sessions in this process: the client's end is the test's.

mod channels;
mod port_channels;
mod port_forward;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::Activity;
use super::spdy::{self, Decoder, Encoder, Frame};

/// Longest wait for anything in these tests.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits, but not for ever.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {DEADLINE:?}"),
    }
}

/// Runs a test in a runtime with one thread.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(test);
}

/// A SPDY client.
pub struct Client<S> {
    pub stream: S,
    encoder: Encoder,
    decoder: Decoder,
    next: u32,
    pub received: BTreeMap<u32, Vec<u8>>,
    pub finished: Vec<u32>,
    pub reset: Vec<u32>,
    pub ended: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            encoder: Encoder::new().expect("an encoder"),
            decoder: Decoder::new(),
            next: 1,
            received: BTreeMap::new(),
            finished: Vec::new(),
            reset: Vec::new(),
            ended: false,
        }
    }

    /// Opens a stream and answers its number.
    pub async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let number = self.next;
        self.next += 2;
        let frame = self.encoder.open(number, headers, false).expect("a frame");
        self.stream.write_all(&frame).await.expect("written");
        number
    }

    /// Opens the two streams of a connection as kubectl does: data and error.
    pub async fn connect(&mut self, request: &str, port: u16) -> (u32, u32) {
        let port = port.to_string();
        let port = port.as_str();
        let headers = |kind| [("streamtype", kind), ("port", port), ("requestid", request)];
        let error = self.open(&headers("error")).await;
        self.send(error, b"", true).await;
        let data = self.open(&headers("data")).await;
        (data, error)
    }

    pub async fn send(&mut self, stream: u32, bytes: &[u8], fin: bool) {
        self.stream.write_all(&spdy::data(stream, bytes, fin)).await.expect("written");
    }

    /// Reads once.
    pub async fn receive(&mut self) {
        let mut buffer = [0; 4096];
        let count = self.stream.read(&mut buffer).await.unwrap_or(0);
        self.ended |= count == 0;
        for frame in self.decoder.feed(&buffer[..count]).expect("frames") {
            match frame {
                Frame::Data { stream, bytes, fin } => {
                    self.received.entry(stream).or_default().extend(bytes);
                    self.finished.extend(fin.then_some(stream));
                }
                Frame::Reset { stream } => self.reset.push(stream),
                _ => {}
            }
        }
    }

    /// Reads until a condition holds.
    pub async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        within(what, async {
            while !condition(self) {
                assert!(!self.ended, "{what}: the session ended first");
                self.receive().await;
            }
        })
        .await;
    }

    /// What a stream brought, to its end.
    pub async fn whole(&mut self, stream: u32) -> Vec<u8> {
        self.until("the end of a stream", |client| client.finished.contains(&stream)).await;
        self.received.remove(&stream).unwrap_or_default()
    }

    /// Reads until the session ends.
    pub async fn until_ended(&mut self) {
        within("the end of the session", async {
            while !self.ended {
                self.receive().await;
            }
        })
        .await;
    }
}

#[test]
fn a_session_is_idle_only_when_nothing_has_flowed_for_the_whole_time() {
    run(async {
        let activity = Activity::new();
        let limit = Duration::from_millis(200);
        let mut touched = Vec::new();
        let busy = async {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_millis(30)).await;
                activity.touch();
                touched.push(Instant::now());
            }
        };
        let idle = async {
            activity.ceased_for(limit).await;
            Instant::now()
        };
        let ((), ended) = tokio::join!(busy, idle);
        let last = touched.iter().filter(|touched| **touched <= ended).max().expect("touched");
        assert!(ended.duration_since(*last) >= limit - Duration::from_millis(1));
    });
}
