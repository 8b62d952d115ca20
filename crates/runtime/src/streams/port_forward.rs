//! `kubectl port-forward`: TCP connections of a client carried to ports of a pod, many in one
//! session. For each the client opens two SPDY streams with one `requestid` and `port`: `data`
//! carries the bytes both ways, and `error` says what went wrong (protocol `portforward.k8s.io`).
//! With [`DATAGRAM_PROTOCOL`] both may name a `protocol`, and with `UDP` each frame is a datagram.
//! `port_channels` serves the clients that speak websockets without SPDY inside.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use netlink::Netns;
use nix::errno::Errno;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};

use super::spdy::{self, Decoder, Encoder, Frame};
use super::{Activity, CHUNK_BYTES, LINGER_S, QUEUE, write_frames};

/// Our own extension of `portforward.k8s.io`, for `flatnet port-forward` (`docs/port-forward.md`).
pub const DATAGRAM_PROTOCOL: &str = "v1.portforward.flatnet";
/// Streams of one session, two for each connection. What is more is refused stream by stream.
pub const MAX_STREAMS: usize = 256;
/// Bytes of a session that wait for slow pods. Neither side of SPDY uses flow control here: a full
/// buffer holds up the whole session.
pub(super) const BUFFER_BYTES: usize = 4 << 20;
/// Longest wait for a connection inside the pod, seconds.
const CONNECT_TIMEOUT_S: u64 = 10;
/// Longest request id, bytes. kubectl counts.
const MAX_REQUEST_ID_BYTES: usize = 64;

/// Where the connections go.
#[derive(Clone, Debug)]
pub struct Place {
    /// The pod's name, for messages.
    pub pod: String,
    /// Its identity, likewise.
    pub uid: String,
    /// Its network namespace; none for a pod of the node's own network.
    pub namespace: Option<PathBuf>,
}

impl Place {
    /// Connects to a port on the pod's loopback, by IPv4 and then IPv6, as kubelets do: also what
    /// listens on localhost alone is reached.
    ///
    /// # Errors
    /// Why neither answers.
    async fn connect(&self, port: u16) -> Result<TcpStream, String> {
        let v4 = match self.dial(IpAddr::V4(Ipv4Addr::LOCALHOST), port).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let v6 = match self.dial(IpAddr::V6(Ipv6Addr::LOCALHOST), port).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let namespace = self.namespace.clone().unwrap_or_else(|| "host".into());
        Err(format!(
            "failed to connect to localhost:{port} inside namespace {namespace:?}, IPv4: dial tcp4 \
             127.0.0.1:{port}: {v4} IPv6 dial tcp6 [::1]:{port}: {v6}"
        ))
    }

    async fn dial(&self, address: IpAddr, port: u16) -> Result<TcpStream, String> {
        let open = || match address {
            IpAddr::V4(_) => TcpSocket::new_v4(),
            IpAddr::V6(_) => TcpSocket::new_v6(),
        };
        let socket = self.socket(open)?;
        let timeout = Duration::from_secs(CONNECT_TIMEOUT_S);
        match tokio::time::timeout(timeout, socket.connect(SocketAddr::new(address, port))).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(format!("connect: {}", words(&error))),
            Err(_) => Err("i/o timeout".to_owned()),
        }
    }
}

impl Place {
    /// Makes a socket in the pod's network: it belongs to the namespace that it was made in,
    /// wherever it is used.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn socket<T: Send>(
        &self,
        open: impl FnOnce() -> io::Result<T> + Send,
    ) -> Result<T, String> {
        let socket = match &self.namespace {
            None => open(),
            Some(path) => {
                let namespace = Netns::open(path).map_err(|error| error.to_string())?;
                namespace.run(open).map_err(|error| error.to_string())?
            }
        };
        socket.map_err(|error| format!("socket: {}", words(&error)))
    }
}

/// An error in Go's words, which scripts look for: `connection refused`.
pub(super) fn words(error: &io::Error) -> String {
    let words = error.raw_os_error().map(|number| Errno::from_raw(number).desc().to_lowercase());
    words.unwrap_or_else(|| error.to_string())
}

/// Serves one session on an upgraded connection until the client leaves, `gone` returns, or
/// nothing has flowed for `idle`.
pub async fn serve<S>(connection: S, place: Place, gone: impl Future<Output = ()>, idle: Duration)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut reader, writer) = tokio::io::split(connection);
    let (frames, queue) = mpsc::channel(QUEUE);
    let mut writing = tokio::spawn(write_frames(writer, queue));
    let activity = Arc::new(Activity::new());
    let message = match Session::new(place, frames, activity.clone()) {
        Ok(mut session) => tokio::select! {
            Err(message) = session.read(&mut reader) => message,
            () = gone => "the pod is gone".to_owned(),
            () = activity.ceased_for(idle) => "nothing has flowed for long".to_owned(),
            _ = &mut writing => "the client takes nothing more".to_owned(),
        },
        Err(message) => message,
    };
    tracing::debug!("a session of port-forward ends: {message}");
    // The session is dropped, and its connections with it: the writer has all that will come.
    let _ = tokio::time::timeout(Duration::from_secs(LINGER_S), async {
        if !writing.is_finished() {
            let _ = (&mut writing).await;
        }
    })
    .await;
    writing.abort();
}

/// What a flow carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Protocol {
    Tcp,
    Udp,
}

/// A client that opened only one of a connection's two streams.
#[derive(Default)]
struct Half {
    error: Option<u32>,
    data: Option<u32>,
}

/// A piece of input, and its share of the session's buffer.
pub(super) type Piece = (Vec<u8>, OwnedSemaphorePermit);

/// A connection that is open, or is being opened.
struct Open {
    /// Takes input until its end.
    input: Option<mpsc::UnboundedSender<Piece>>,
    task: AbortHandle,
}

struct Session {
    place: Place,
    frames: mpsc::Sender<Vec<u8>>,
    activity: Arc<Activity>,
    encoder: Encoder,
    buffer: Arc<Semaphore>,
    /// By request id, port and protocol.
    halves: BTreeMap<(String, u16, Protocol), Half>,
    /// By the number of the data stream.
    open: BTreeMap<u32, Open>,
    tasks: JoinSet<()>,
    last_stream: u32,
}

impl Session {
    fn new(
        place: Place,
        frames: mpsc::Sender<Vec<u8>>,
        activity: Arc<Activity>,
    ) -> Result<Self, String> {
        Ok(Self {
            place,
            frames,
            activity,
            encoder: Encoder::new()?,
            buffer: Arc::new(Semaphore::new(BUFFER_BYTES)),
            halves: BTreeMap::new(),
            open: BTreeMap::new(),
            tasks: JoinSet::new(),
            last_stream: 0,
        })
    }

    /// Ends only with an error: also a client that leaves is one.
    async fn read<R: AsyncRead + Unpin>(
        &mut self,
        reader: &mut R,
    ) -> Result<std::convert::Infallible, String> {
        let mut decoder = Decoder::new();
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let count = reader.read(&mut buffer).await.map_err(|error| error.to_string())?;
            if count == 0 {
                return Err("the client left".into());
            }
            for frame in decoder.feed(buffer.get(..count).unwrap_or_default())? {
                self.take(frame).await?;
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<(), String> {
        match frame {
            Frame::Open { stream, headers, fin } => self.opened(stream, &headers, fin).await?,
            Frame::Data { stream, bytes, fin } => self.input(stream, bytes, fin).await,
            Frame::Reset { stream } => {
                if let Some(open) = self.open.remove(&stream) {
                    open.task.abort();
                }
            }
            Frame::Ping { id } => self.send(spdy::ping(id)).await,
            Frame::GoAway => return Err("the client left".into()),
        }
        Ok(())
    }

    async fn opened(
        &mut self,
        stream: u32,
        headers: &[(String, String)],
        fin: bool,
    ) -> Result<(), String> {
        self.activity.touch();
        // A client's streams are odd, and their numbers rise (SPDY draft 3.1, section 2.3.2).
        if stream.is_multiple_of(2) || stream <= self.last_stream {
            return Err(format!("stream {stream} was opened out of turn"));
        }
        self.last_stream = stream;
        // Every accepted stream is answered, also one that is given up at once.
        let reply = self.encoder.accept(stream)?;
        self.send(reply).await;
        self.forget_ended();
        let accepted = match self.accept(stream, headers) {
            Ok(accepted) => accepted,
            Err(message) => {
                tracing::debug!("stream {stream} of port-forward: {message}");
                self.send(spdy::reset(stream)).await;
                return Ok(());
            }
        };
        if let Some((port, protocol, data, error)) = accepted {
            self.start(port, protocol, data, error);
            if fin && stream == data {
                self.input(stream, Vec::new(), true).await;
            }
        }
        Ok(())
    }

    /// Port, protocol, data and error stream of a connection that is now complete.
    fn accept(
        &mut self,
        stream: u32,
        headers: &[(String, String)],
    ) -> Result<Option<(u16, Protocol, u32, u32)>, String> {
        let header = |wanted: &str| {
            let found = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
            found.map(|(_, value)| value.as_str()).ok_or(format!("\"{wanted}\" header is required"))
        };
        let protocol = match header("protocol") {
            Err(_) | Ok("TCP") => Protocol::Tcp,
            Ok("UDP") => Protocol::Udp,
            Ok(other) => return Err(format!("the protocol {other:?} is neither TCP nor UDP")),
        };
        let port = header("port")?;
        let port = match port.parse::<u16>() {
            Ok(number @ 1..) => number,
            _ => return Err(format!("port {port:?} is not between 1 and 65535")),
        };
        let request = header("requestid")?;
        if request.len() > MAX_REQUEST_ID_BYTES {
            return Err(format!("a request id is longer than {MAX_REQUEST_ID_BYTES} bytes"));
        }
        if 2 * self.open.len() + self.halves.len() >= MAX_STREAMS {
            return Err(format!("a session has at most {MAX_STREAMS} streams"));
        }
        let kind = header("streamtype")?;
        let key = (request.to_owned(), port, protocol);
        let mut half = self.halves.remove(&key).unwrap_or_default();
        let place = match kind {
            "error" => &mut half.error,
            "data" => &mut half.data,
            other => return Err(format!("streams of type {other:?} are not known")),
        };
        if place.replace(stream).is_some() {
            return Err(format!("request {request:?} has its {kind} stream already"));
        }
        match (half.data, half.error) {
            (Some(data), Some(error)) => Ok(Some((port, protocol, data, error))),
            _ => {
                self.halves.insert(key, half);
                Ok(None)
            }
        }
    }

    fn start(&mut self, port: u16, protocol: Protocol, data: u32, error: u32) {
        let (input, pieces) = mpsc::unbounded_channel();
        let forwarding = Forwarding {
            place: self.place.clone(),
            port,
            streams: Streams::Spdy { data, error },
            frames: self.frames.clone(),
            activity: self.activity.clone(),
        };
        let task = match protocol {
            Protocol::Tcp => self.tasks.spawn(forwarding.run(pieces)),
            Protocol::Udp => self.tasks.spawn(forwarding.run_datagrams(pieces)),
        };
        self.open.insert(data, Open { input: Some(input), task });
    }

    async fn input(&mut self, stream: u32, bytes: Vec<u8>, fin: bool) {
        self.activity.touch();
        let Some(open) = self.open.get_mut(&stream) else { return };
        if let Some(input) = &open.input
            && !bytes.is_empty()
        {
            // A frame is never larger than a quarter of the buffer.
            let share = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let Ok(share) = self.buffer.clone().acquire_many_owned(share).await else { return };
            let _ = input.send((bytes, share));
        }
        if fin {
            open.input = None;
        }
    }

    fn forget_ended(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|_, open| !open.task.is_finished());
    }

    async fn send(&self, frame: Vec<u8>) {
        let _ = self.frames.send(frame).await;
    }
}

/// One connection.
pub(super) struct Forwarding {
    pub place: Place,
    pub port: u16,
    pub streams: Streams,
    pub frames: mpsc::Sender<Vec<u8>>,
    pub activity: Arc<Activity>,
}

/// How the two streams of a connection are named to the client.
#[derive(Clone, Copy)]
pub(super) enum Streams {
    /// By the numbers that it gave.
    Spdy { data: u32, error: u32 },
    /// By the first byte of each message. Nothing tells the end of one.
    Channels { data: u8, error: u8 },
}

impl Streams {
    pub(super) fn data(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Spdy { data, .. } => spdy::data(data, bytes, false),
            Self::Channels { data, .. } => message(data, bytes),
        }
    }

    /// The last frames, with what went wrong. SPDY's clients wait for the end of both streams.
    fn end(self, fault: &[u8]) -> Vec<Vec<u8>> {
        match self {
            Self::Spdy { data, error } => {
                vec![spdy::data(error, fault, true), spdy::data(data, b"", true)]
            }
            Self::Channels { .. } if fault.is_empty() => Vec::new(),
            Self::Channels { error, .. } => vec![message(error, fault)],
        }
    }
}

/// A message of a websocket whose first byte is its channel.
pub(super) fn message(channel: u8, bytes: &[u8]) -> Vec<u8> {
    [&[channel], bytes].concat()
}

impl Forwarding {
    /// Serves it to the end of both directions.
    pub async fn run(self, pieces: mpsc::UnboundedReceiver<Piece>) {
        match self.place.connect(self.port).await {
            Ok(stream) => {
                let (from_pod, to_pod) = stream.into_split();
                let (output, input) = (self.carry_output(from_pod), carry_input(to_pod, pieces));
                match self.streams {
                    Streams::Spdy { .. } => drop(tokio::join!(output, input)),
                    // A client that cannot be told of the pod's end does not end its own input.
                    Streams::Channels { .. } => tokio::select! {
                        () = output => {}
                        () = async {
                            input.await;
                            std::future::pending().await
                        } => {}
                    },
                }
            }
            Err(reason) => self.fail(&reason).await,
        }
    }

    /// Says why it comes to nothing, and ends.
    pub(super) async fn fail(&self, reason: &str) {
        let Place { pod, uid, .. } = &self.place;
        let port = self.port;
        let message = format!("error forwarding port {port} to pod {pod}, uid {uid}: {reason}");
        self.end(message.as_bytes()).await;
    }

    /// To the end of what the pod sends. The client may go on sending after that.
    async fn carry_output(&self, mut from: OwnedReadHalf) {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            self.activity.touch();
            let bytes = buffer.get(..count).unwrap_or_default();
            if self.frames.send(self.streams.data(bytes)).await.is_err() {
                return;
            }
        }
        self.end(b"").await;
    }

    pub(super) async fn end(&self, fault: &[u8]) {
        for frame in self.streams.end(fault) {
            let _ = self.frames.send(frame).await;
        }
    }
}

/// To the end of what the client sends, which is the end for the pod as well. What a pod takes no
/// more is dropped.
async fn carry_input(mut to: OwnedWriteHalf, mut pieces: mpsc::UnboundedReceiver<Piece>) {
    let mut takes_more = true;
    while let Some((bytes, _share)) = pieces.recv().await {
        takes_more = takes_more && to.write_all(&bytes).await.is_ok();
    }
    let _ = to.shutdown().await;
}
