//! Port-forward in the channels of a websocket, as the Python and npm clients and kube-rs have it:
//! the request names the ports, and each has one connection for the whole session. Port number `i`
//! has channel `2i` for its bytes and `2i + 1` for what went wrong; the first message of the server
//! on either is the port, two bytes, little end first (protocol `v4.channel.k8s.io`).

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::SplitStream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::channels::write_messages;
use super::port_forward::{BUFFER_BYTES, Forwarding, Piece, Place, Streams, message};
use super::{Activity, LINGER_S, QUEUE, websocket};

/// Ports of one session: a channel is one byte.
pub const MAX_PORTS: usize = 128;

/// The ports that a request names: one a parameter, or several with commas.
///
/// # Errors
/// There are none or too many, or one is no port.
pub fn ports(parameters: &[String]) -> Result<Vec<u16>, String> {
    let parse = |text: &str| match text.parse::<u16>() {
        Ok(port @ 1..) => Ok(port),
        _ => Err(format!("port {text:?} is not between 1 and 65535")),
    };
    let words = parameters.iter().flat_map(|text| text.split(','));
    let ports: Vec<u16> = words.map(parse).collect::<Result<_, _>>()?;
    match ports.len() {
        0 => Err("query parameter \"ports\" is required: this protocol has no other place".into()),
        1..=MAX_PORTS => Ok(ports),
        count => Err(format!("{count} ports are more than the {MAX_PORTS} of a session")),
    }
}

/// Serves one session on an upgraded connection until the client leaves or all connections have
/// ended, `gone` returns, or nothing has flowed for `idle`.
pub async fn serve<S>(
    connection: S,
    place: Place,
    ports: &[u16],
    gone: impl Future<Output = ()>,
    idle: Duration,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sink, messages) = websocket::accept(connection).await.split();
    let (frames, queue) = mpsc::channel(QUEUE);
    let mut writing = tokio::spawn(write_messages(sink, queue));
    let activity = Arc::new(Activity::new());
    let mut tasks = JoinSet::new();
    let mut inputs = Vec::new();
    for (data, port) in (0..).step_by(2).zip(ports) {
        let error = data + 1;
        for channel in [data, error] {
            let _ = frames.send(message(channel, &port.to_le_bytes())).await;
        }
        let (input, pieces) = mpsc::unbounded_channel();
        inputs.push(input);
        let forwarding = Forwarding {
            place: place.clone(),
            port: *port,
            streams: Streams::Channels { data, error },
            frames: frames.clone(),
            activity: activity.clone(),
        };
        tasks.spawn(forwarding.run(pieces));
    }
    drop(frames);
    let linger = Duration::from_secs(LINGER_S);
    let mut has_left = false;
    let mut reading = std::pin::pin!(read(messages, inputs, &activity));
    let why = tokio::select! {
        () = &mut reading => {
            has_left = true;
            // What the client has sent still reaches the pods.
            let _ = tokio::time::timeout(linger, ended(&mut tasks)).await;
            "the client left"
        }
        // Every connection has ended, and all of them is written.
        _ = &mut writing => "nothing more comes",
        () = gone => "the pod is gone",
        () = activity.ceased_for(idle) => "nothing has flowed for long",
    };
    tracing::debug!("a session of port-forward ends: {why}");
    drop(tasks);
    let _ = tokio::time::timeout(linger, async {
        if !writing.is_finished() {
            let _ = (&mut writing).await;
        }
        // What was said last arrives only while the client's own bytes are taken.
        if !has_left {
            reading.await;
        }
    })
    .await;
    writing.abort();
}

async fn ended(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

/// Hands the client's bytes to its connections until it has left.
async fn read<S: AsyncRead + AsyncWrite + Unpin>(
    mut messages: SplitStream<WebSocketStream<S>>,
    inputs: Vec<mpsc::UnboundedSender<Piece>>,
    activity: &Activity,
) {
    let buffer = Arc::new(Semaphore::new(BUFFER_BYTES));
    while let Some(Ok(message)) = messages.next().await {
        // The library answers pings, and a close, while it is read.
        let Message::Binary(message) = message else { continue };
        let Some((channel, bytes)) = message.split_first() else { continue };
        activity.touch();
        // Nothing is said on the channels of errors, and nothing on those of no port.
        let input = inputs.get(usize::from(channel / 2)).filter(|_| channel % 2 == 0);
        if let Some(input) = input
            && !bytes.is_empty()
        {
            // A message is never larger than a quarter of the buffer.
            let share = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let Ok(share) = buffer.clone().acquire_many_owned(share).await else { return };
            let _ = input.send((bytes.to_vec(), share));
        }
    }
}
