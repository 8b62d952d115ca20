//! The streams of one command: input, output, errors, a last status, and the terminal's size, over
//! SPDY (one stream each, `v4.channel.k8s.io`) or a websocket (the first byte of each message is the
//! channel; `v5.channel.k8s.io` can also close one, KEP-4006).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::spdy::{self, Decoder, Encoder, Frame};
use super::{Activity, CHUNK_BYTES, LINGER_S, QUEUE, websocket, write_frames};

/// Longest wait for a SPDY client to open its streams, seconds (the kubelet's).
const STREAMS_TIMEOUT_S: u64 = 30;
/// Input that may come before all streams are open, bytes and frames.
const MAX_EARLY_BYTES: usize = 1 << 20;
const MAX_EARLY_FRAMES: usize = 1024;
/// The version of websocket sessions in which a client can close a channel.
pub const V5: &str = "v5.channel.k8s.io";
/// The channel by which it does.
const CLOSE_CHANNEL: u8 = 255;

/// One of the streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// What the client types.
    Stdin,
    /// What the command prints.
    Stdout,
    /// Its complaints.
    Stderr,
    /// How it ended, as a `Status`.
    Error,
    /// The size of the client's terminal, as JSON.
    Resize,
}

/// Name in SPDY's `streamtype` header; the place is the number in websockets.
const CHANNELS: [(Channel, &str); 5] = [
    (Channel::Stdin, "stdin"),
    (Channel::Stdout, "stdout"),
    (Channel::Stderr, "stderr"),
    (Channel::Error, "error"),
    (Channel::Resize, "resize"),
];

/// What a client asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Whether it sends input.
    pub stdin: bool,
    /// Whether it wants standard output.
    pub stdout: bool,
    /// Whether it wants standard error.
    pub stderr: bool,
    /// Whether it has a terminal.
    pub tty: bool,
}

impl Wanted {
    /// The channels of such a session.
    pub fn channels(&self) -> Vec<Channel> {
        let rows = [
            (Channel::Error, true),
            (Channel::Stdin, self.stdin),
            (Channel::Stdout, self.stdout),
            (Channel::Stderr, self.stderr && !self.tty),
            (Channel::Resize, self.tty),
        ];
        rows.into_iter().filter_map(|(channel, wanted)| wanted.then_some(channel)).collect()
    }
}

/// What a client sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Bytes of a channel.
    Data(Channel, Vec<u8>),
    /// The end of a channel.
    End(Channel),
}

/// A session whose streams are open.
pub struct Session {
    /// What the client sends; ends when it has left or broke the protocol.
    pub incoming: mpsc::Receiver<Incoming>,
    /// The way to the client.
    pub output: Output,
    /// When something last flowed.
    pub activity: Arc<Activity>,
    reading: JoinHandle<()>,
    writing: JoinHandle<()>,
}

/// The way to the client; clones share it.
#[derive(Clone)]
pub struct Output {
    frames: mpsc::Sender<Vec<u8>>,
    numbers: Arc<Numbers>,
    activity: Arc<Activity>,
}

/// How channels are named on the connection.
enum Numbers {
    /// By the numbers that the client gave.
    Spdy(BTreeMap<Channel, u32>),
    /// By their places. These are wanted.
    WebSocket(Vec<Channel>),
}

impl Output {
    /// Whether the client wants this channel.
    pub fn has(&self, channel: Channel) -> bool {
        match &*self.numbers {
            Numbers::Spdy(numbers) => numbers.contains_key(&channel),
            Numbers::WebSocket(channels) => channels.contains(&channel),
        }
    }

    /// Sends bytes; false when the client is gone.
    pub async fn send(&self, channel: Channel, bytes: &[u8]) -> bool {
        self.activity.touch();
        let frame = match &*self.numbers {
            Numbers::Spdy(numbers) => match numbers.get(&channel) {
                Some(number) => spdy::data(*number, bytes, false),
                None => return true,
            },
            Numbers::WebSocket(_) => {
                let place = CHANNELS.iter().position(|(known, _)| *known == channel);
                let mut message = vec![place.unwrap_or_default() as u8];
                message.extend_from_slice(bytes);
                message
            }
        };
        self.frames.send(frame).await.is_ok()
    }

    /// Ends output with the last word on the command.
    async fn finish(&self, status: &str) {
        if let Numbers::WebSocket(_) = &*self.numbers {
            self.send(Channel::Error, status.as_bytes()).await;
            return; // The end of the connection ends all channels.
        }
        let Numbers::Spdy(numbers) = &*self.numbers else { return };
        for (channel, text) in
            [(Channel::Stdout, ""), (Channel::Stderr, ""), (Channel::Error, status)]
        {
            if let Some(number) = numbers.get(&channel) {
                let _ = self.frames.send(spdy::data(*number, text.as_bytes(), true)).await;
            }
        }
        let last = numbers.values().max().copied().unwrap_or(0);
        let _ = self.frames.send(spdy::go_away(last)).await;
    }
}

impl Session {
    /// Waits until a SPDY client has opened the streams that it asked for.
    ///
    /// # Errors
    /// It does not, or breaks the protocol.
    pub async fn over_spdy<S>(connection: S, wanted: &[Channel]) -> Result<Self, String>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (mut reader, writer) = tokio::io::split(connection);
        let (frames, queue) = mpsc::channel(QUEUE);
        let writing = tokio::spawn(write_frames(writer, queue));
        let mut decoder = Decoder::new();
        let opening = open_streams(&mut reader, &mut decoder, wanted, &frames);
        let (numbers, early) =
            tokio::time::timeout(Duration::from_secs(STREAMS_TIMEOUT_S), opening)
                .await
                .map_err(|_| "timed out waiting for client to create streams".to_owned())??;
        let activity = Arc::new(Activity::new());
        let (sender, incoming) = mpsc::channel(QUEUE);
        let demux = Demux {
            numbers: numbers.iter().map(|(channel, number)| (*number, *channel)).collect(),
            frames: frames.downgrade(),
            sender,
            activity: activity.clone(),
        };
        let reading = tokio::spawn(demux.read(reader, decoder, early));
        let numbers = Arc::new(Numbers::Spdy(numbers));
        let output = Output { frames, numbers, activity: activity.clone() };
        Ok(Self { incoming, output, activity, reading, writing })
    }

    /// All channels of a websocket are open from the start.
    pub async fn over_websocket<S>(connection: S, protocol: &str, wanted: &[Channel]) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sink, messages) = websocket::accept(connection).await.split();
        let (frames, queue) = mpsc::channel(QUEUE);
        let activity = Arc::new(Activity::new());
        let (sender, incoming) = mpsc::channel(QUEUE);
        let writing = tokio::spawn(write_messages(sink, queue));
        let can_close = protocol == V5;
        let reading = tokio::spawn(read_messages(messages, sender, activity.clone(), can_close));
        let numbers = Arc::new(Numbers::WebSocket(wanted.to_vec()));
        let output = Output { frames, numbers, activity: activity.clone() };
        Self { incoming, output, activity, reading, writing }
    }

    /// Says the last word, and closes once the client has taken note.
    pub async fn finish(self, status: &str) {
        let Self { incoming, output, mut reading, mut writing, .. } = self;
        // What the client still sends is dropped, so that it can go on to read.
        drop(incoming);
        output.finish(status).await;
        drop(output);
        let closed = async {
            let _ = (&mut writing).await;
            let _ = (&mut reading).await;
        };
        let _ = tokio::time::timeout(Duration::from_secs(LINGER_S), closed).await;
        writing.abort();
        reading.abort();
    }
}

type Opened = (BTreeMap<Channel, u32>, Vec<Frame>);

/// The numbers of the streams, and what came right behind them.
async fn open_streams<R: AsyncRead + Unpin>(
    reader: &mut R,
    decoder: &mut Decoder,
    wanted: &[Channel],
    frames: &mpsc::Sender<Vec<u8>>,
) -> Result<Opened, String> {
    let mut encoder = Encoder::new()?;
    let (mut numbers, mut early, mut early_bytes) = (BTreeMap::new(), Vec::new(), 0);
    let mut buffer = vec![0; CHUNK_BYTES];
    while numbers.len() < wanted.len() {
        let count = reader.read(&mut buffer).await.map_err(|error| error.to_string())?;
        if count == 0 {
            return Err("the client left".into());
        }
        for frame in decoder.feed(buffer.get(..count).unwrap_or_default())? {
            match frame {
                Frame::Open { stream, headers, .. } => {
                    let kind = headers.iter().find(|(name, _)| name == "streamtype");
                    let known = kind
                        .and_then(|(_, kind)| CHANNELS.iter().find(|(_, name)| name == kind))
                        .filter(|(channel, _)| wanted.contains(channel))
                        .ok_or("the client opened a stream that it did not ask for")?;
                    let _ = frames.send(encoder.accept(stream)?).await;
                    numbers.insert(known.0, stream);
                }
                Frame::Ping { id } => drop(frames.send(spdy::ping(id)).await),
                Frame::GoAway => return Err("the client left".into()),
                other => {
                    if let Frame::Data { bytes, .. } = &other {
                        early_bytes += bytes.len();
                    }
                    early.push(other);
                    if early_bytes > MAX_EARLY_BYTES || early.len() > MAX_EARLY_FRAMES {
                        return Err("too much was sent before all streams were open".into());
                    }
                }
            }
        }
    }
    Ok((numbers, early))
}

/// Sorts the frames of a SPDY client.
struct Demux {
    numbers: BTreeMap<u32, Channel>,
    /// Weak, so that the connection is closed once the session is over.
    frames: mpsc::WeakSender<Vec<u8>>,
    sender: mpsc::Sender<Incoming>,
    activity: Arc<Activity>,
}

impl Demux {
    /// Returns when the client has left or broke the protocol.
    async fn read<R: AsyncRead + Unpin>(
        self,
        mut reader: R,
        mut decoder: Decoder,
        early: Vec<Frame>,
    ) {
        for frame in early {
            if !self.take(frame).await {
                return;
            }
        }
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let Ok(count @ 1..) = reader.read(&mut buffer).await else { return };
            let bytes = buffer.get(..count).unwrap_or_default();
            let Ok(frames) = decoder.feed(bytes) else { return };
            for frame in frames {
                if !self.take(frame).await {
                    return;
                }
            }
        }
    }

    async fn take(&self, frame: Frame) -> bool {
        let (stream, bytes, fin) = match frame {
            Frame::Data { stream, bytes, fin } => (stream, bytes, fin),
            Frame::Reset { stream } => (stream, Vec::new(), true),
            Frame::Ping { id } => {
                // A session that is over answers no more, but is still read.
                if let Some(frames) = self.frames.upgrade() {
                    let _ = frames.send(spdy::ping(id)).await;
                }
                return true;
            }
            Frame::GoAway => return false,
            Frame::Open { .. } => return true,
        };
        let Some(channel) = self.numbers.get(&stream).copied() else { return true };
        self.activity.touch();
        if !bytes.is_empty() {
            let _ = self.sender.send(Incoming::Data(channel, bytes)).await;
        }
        if fin {
            let _ = self.sender.send(Incoming::End(channel)).await;
        }
        true
    }
}

async fn read_messages<S: AsyncRead + AsyncWrite + Unpin>(
    mut messages: SplitStream<WebSocketStream<S>>,
    sender: mpsc::Sender<Incoming>,
    activity: Arc<Activity>,
    can_close: bool,
) {
    let channel = |number: u8| CHANNELS.get(usize::from(number)).map(|(channel, _)| *channel);
    while let Some(Ok(message)) = messages.next().await {
        let bytes = match &message {
            Message::Binary(bytes) => bytes.as_ref(),
            Message::Text(text) => text.as_bytes(),
            // Go on: the library answers pings, and a close, while it is read.
            _ => continue,
        };
        let incoming = match bytes {
            [CLOSE_CHANNEL, number] if can_close => channel(*number).map(Incoming::End),
            [number, rest @ ..] if !rest.is_empty() => {
                channel(*number).map(|channel| Incoming::Data(channel, rest.to_vec()))
            }
            _ => None,
        };
        // What is for no channel is passed over, as kubelets do.
        if let Some(incoming) = incoming {
            activity.touch();
            let _ = sender.send(incoming).await;
        }
    }
}

/// Writes messages until nobody has more, and then the end.
pub(super) async fn write_messages<S: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    mut queue: mpsc::Receiver<Vec<u8>>,
) {
    while let Some(message) = queue.recv().await {
        if sink.send(Message::Binary(message.into())).await.is_err() {
            return;
        }
    }
    let _ = sink.send(websocket::normal_end()).await;
}
