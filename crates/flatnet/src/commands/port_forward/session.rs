//! The client's end of a session of port-forward: many flows of one pod over one connection, each
//! two SPDY streams (`portforward.k8s.io`). With `v1.portforward.flatnet` a flow may be of
//! datagrams (`docs/port-forward.md`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use client::{Endpoint, ResourcePath};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{CONNECTION, UPGRADE};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use runtime::DATAGRAM_PROTOCOL;
use runtime::spdy::{self, Decoder, Encoder, Frame};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::ports::Protocol;

/// Names the versions of the protocol over SPDY.
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
/// The protocol of all API servers: connections alone.
const CONNECTIONS: &str = "portforward.k8s.io";
/// Frames that wait to be written.
const QUEUE_FRAMES: usize = 8;
/// Pieces of a flow that wait for whom they are for. SPDY has no flow control here: one that takes
/// nothing holds up the session.
const QUEUE_PIECES: usize = 64;
/// Bytes read at a time.
const CHUNK_BYTES: usize = 16 * 1024;
/// Largest refusal that is read, bytes.
const MAX_REFUSAL_BYTES: usize = 16 * 1024;

/// A session with one pod. It ends when it is dropped.
pub struct Session {
    frames: mpsc::Sender<Vec<u8>>,
    /// The headers of all streams are one compressed text: they are written in its order.
    opening: tokio::sync::Mutex<Opening>,
    streams: Arc<Streams>,
    ended: watch::Receiver<bool>,
    takes_datagrams: bool,
    tasks: [JoinHandle<()>; 2],
}

struct Opening {
    encoder: Encoder,
    next_stream: u32,
}

/// Who waits for what comes on a stream.
#[derive(Default)]
struct Streams(Mutex<BTreeMap<u32, mpsc::Sender<Vec<u8>>>>);

/// One connection, or the datagrams of one client.
pub struct Flow {
    /// To the pod.
    pub input: Input,
    /// What the pod sends, to its end.
    pub output: mpsc::Receiver<Vec<u8>>,
    /// What went wrong, to the end of the flow.
    pub faults: mpsc::Receiver<Vec<u8>>,
}

/// The way to the pod. The flow ends with it.
pub struct Input {
    session: Arc<Session>,
    data: u32,
    error: u32,
}

impl Session {
    /// Connects to a pod through the API server.
    ///
    /// # Errors
    /// The API server's refusal, or that it does not answer.
    pub async fn open(endpoint: &Endpoint, namespace: &str, pod: &str) -> Result<Arc<Self>> {
        let path = ResourcePath::new("v1", "pods").namespace(namespace.to_owned());
        let path = path.name(pod.to_owned()).subresource("portforward");
        let request = Request::post(path.to_string())
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "SPDY/3.1")
            .header(STREAM_PROTOCOL, DATAGRAM_PROTOCOL)
            .header(STREAM_PROTOCOL, CONNECTIONS)
            .body(Full::default())?;
        let response = endpoint.send_once(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let code = response.status();
            let body = Limited::new(response.into_body(), MAX_REFUSAL_BYTES).collect().await;
            let body = body.map(|body| body.to_bytes()).unwrap_or_default();
            let status: Option<client::Status> = serde_json::from_slice(&body).ok();
            let text = String::from_utf8_lossy(&body).into_owned();
            bail!("{code}: {}", status.map_or(text, |status| status.message));
        }
        let protocol = response.headers().get(STREAM_PROTOCOL);
        let takes_datagrams = protocol.is_some_and(|protocol| protocol == DATAGRAM_PROTOCOL);
        let connection = hyper::upgrade::on(response).await.context("the upgrade failed")?;
        Self::over(TokioIo::new(connection), takes_datagrams)
    }

    fn over<S>(connection: S, takes_datagrams: bool) -> Result<Arc<Self>>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (reader, mut writer) = tokio::io::split(connection);
        let (frames, mut queue) = mpsc::channel::<Vec<u8>>(QUEUE_FRAMES);
        let (end, ended) = watch::channel(false);
        let streams = Arc::new(Streams::default());
        let writing = tokio::spawn(async move {
            while let Some(frame) = queue.recv().await {
                if writer.write_all(&frame).await.is_err() || writer.flush().await.is_err() {
                    return;
                }
            }
        });
        let (served, answers) = (Arc::clone(&streams), frames.downgrade());
        let reading = tokio::spawn(async move {
            served.read(reader, answers).await;
            // In this order: what is opened from now on is either refused or ended.
            end.send_replace(true);
            served.clear();
        });
        let encoder = Encoder::new().map_err(anyhow::Error::msg)?;
        let opening = tokio::sync::Mutex::new(Opening { encoder, next_stream: 1 });
        let tasks = [reading, writing];
        Ok(Arc::new(Self { frames, opening, streams, ended, takes_datagrams, tasks }))
    }

    /// Whether the API server and the pod's node carry datagrams.
    pub fn takes_datagrams(&self) -> bool {
        self.takes_datagrams
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Returns once it has ended.
    pub async fn ended(&self) {
        // A sender that is gone has ended too.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Opens a flow to a port of the pod.
    ///
    /// # Errors
    /// The session has ended.
    pub async fn flow(self: &Arc<Self>, port: u16, protocol: Protocol) -> Result<Flow> {
        let mut opening = self.opening.lock().await;
        let (error, data) = (opening.next_stream, opening.next_stream + 2);
        opening.next_stream += 4;
        let (port, request) = (port.to_string(), error.to_string());
        let protocol = protocol.to_string();
        let (to_output, output) = mpsc::channel(QUEUE_PIECES);
        let (to_faults, faults) = mpsc::channel(QUEUE_PIECES);
        self.streams.lock().extend([(error, to_faults), (data, to_output)]);
        for (stream, kind) in [(error, "error"), (data, "data")] {
            let mut headers =
                vec![("streamtype", kind), ("port", port.as_str()), ("requestid", &request)];
            if self.takes_datagrams {
                headers.push(("protocol", protocol.as_str()));
            }
            let frame = opening.encoder.open(stream, &headers, false);
            self.send(frame.map_err(anyhow::Error::msg)?).await?;
        }
        drop(opening);
        // Nothing is ever said on it by us.
        self.send(spdy::data(error, b"", true)).await?;
        if self.has_ended() {
            self.streams.clear();
            bail!("the session has ended");
        }
        Ok(Flow { input: Input { session: Arc::clone(self), data, error }, output, faults })
    }

    async fn send(&self, frame: Vec<u8>) -> Result<()> {
        self.frames.send(frame).await.map_err(|_| anyhow::anyhow!("the session has ended"))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Streams {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, mpsc::Sender<Vec<u8>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all of them.
    fn clear(&self) {
        self.lock().clear();
    }

    /// Hands out what comes, until nothing more does.
    async fn read(&self, mut reader: impl AsyncRead + Unpin, answers: mpsc::WeakSender<Vec<u8>>) {
        let mut decoder = Decoder::new();
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            let Ok(frames) = decoder.feed(buffer.get(..count).unwrap_or_default()) else { return };
            for frame in frames {
                match frame {
                    Frame::Data { stream, bytes, fin } => {
                        let waiting = self.lock().get(&stream).cloned();
                        if let Some(waiting) = waiting
                            && !bytes.is_empty()
                        {
                            let _ = waiting.send(bytes).await;
                        }
                        if fin {
                            self.lock().remove(&stream);
                        }
                    }
                    Frame::Reset { stream } => drop(self.lock().remove(&stream)),
                    Frame::Ping { id } => {
                        if let Some(answers) = answers.upgrade() {
                            let _ = answers.send(spdy::ping(id)).await;
                        }
                    }
                    Frame::GoAway => return,
                    // Nobody opens streams to a client.
                    Frame::Open { .. } => {}
                }
            }
        }
    }
}

impl Input {
    /// Sends bytes, or one datagram.
    ///
    /// # Errors
    /// The session has ended.
    pub async fn send(&self, bytes: &[u8]) -> Result<()> {
        self.session.send(spdy::data(self.data, bytes, false)).await
    }

    /// Says that no more comes from here.
    pub async fn finish(&self) {
        let _ = self.session.send(spdy::data(self.data, b"", true)).await;
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        let mut streams = self.session.streams.lock();
        let is_open = streams.remove(&self.data).is_some();
        streams.remove(&self.error);
        drop(streams);
        if is_open {
            // A queue that is full is that of a session that takes nothing more.
            let _ = self.session.frames.try_send(spdy::reset(self.data));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    /// The node's end: it echoes what flows carry, says what a flow was opened with as its first
    /// piece, and gives up those to port 1.
    async fn node(mut connection: DuplexStream) {
        let (mut decoder, mut encoder) = (Decoder::new(), Encoder::new().expect("an encoder"));
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = connection.read(&mut buffer).await {
            for frame in decoder.feed(&buffer[..count]).expect("frames") {
                let answers = match frame {
                    Frame::Open { stream, headers, .. } => {
                        let header = |name: &str| {
                            let found = headers.iter().find(|(known, _)| known == name);
                            found.map(|(_, value)| value.clone()).unwrap_or_default()
                        };
                        let opened = format!("{} {}", header("port"), header("protocol"));
                        let accepted = encoder.accept(stream).expect("a frame");
                        match (header("streamtype").as_str(), header("port").as_str()) {
                            ("data", "1") => vec![accepted, spdy::reset(stream)],
                            ("data", _) => {
                                vec![accepted, spdy::data(stream, opened.as_bytes(), false)]
                            }
                            _ => vec![accepted, spdy::data(stream, b"so it is", true)],
                        }
                    }
                    Frame::Data { stream, bytes, fin } => vec![spdy::data(stream, &bytes, fin)],
                    Frame::GoAway => return,
                    _ => Vec::new(),
                };
                for answer in answers {
                    if connection.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn flows_are_apart_and_end_with_the_session() {
        let (near, far) = duplex(4096);
        let node = tokio::spawn(node(far));
        let session = Session::over(near, true).expect("a session");
        let mut one = session.flow(80, Protocol::Tcp).await.expect("a flow");
        let mut two = session.flow(53, Protocol::Udp).await.expect("a flow");
        assert_eq!(one.output.recv().await.as_deref(), Some(&b"80 TCP"[..]));
        assert_eq!(two.output.recv().await.as_deref(), Some(&b"53 UDP"[..]));
        assert_eq!(two.faults.recv().await.as_deref(), Some(&b"so it is"[..]));
        for (flow, text) in [(&mut one, b"abc"), (&mut two, b"xyz")] {
            flow.input.send(text).await.expect("sent");
            assert_eq!(flow.output.recv().await.as_deref(), Some(&text[..]));
        }
        one.input.finish().await;
        assert_eq!(one.output.recv().await, None, "its end comes back");
        let mut refused = session.flow(1, Protocol::Tcp).await.expect("a flow");
        assert_eq!(refused.output.recv().await, None, "it was given up");
        node.abort();
        session.ended().await;
        assert_eq!(two.output.recv().await, None, "nobody waits for what cannot come");
        assert!(session.has_ended() && session.flow(80, Protocol::Tcp).await.is_err());
    }

    #[tokio::test]
    async fn other_servers_are_asked_for_what_they_know() {
        let (near, far) = duplex(4096);
        tokio::spawn(node(far));
        let session = Session::over(near, false).expect("a session");
        let mut flow = session.flow(80, Protocol::Tcp).await.expect("a flow");
        assert_eq!(flow.output.recv().await.as_deref(), Some(&b"80 "[..]), "no header of ours");
    }
}
