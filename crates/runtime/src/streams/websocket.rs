//! Websockets: messages as RFC 6455 frames them, read and written by `tokio-tungstenite`.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

use super::{CHUNK_BYTES, LINGER_S};

/// Largest message that is accepted, bytes. kubectl sends 32 KiB at a time.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Bytes of a tunnel that wait in each direction.
const TUNNEL_BUFFER_BYTES: usize = 64 * 1024;

/// The server's end of a websocket on a connection whose handshake is done.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(connection: S) -> WebSocketStream<S> {
    let config = WebSocketConfig::default()
        .read_buffer_size(CHUNK_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(MAX_MESSAGE_BYTES)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    WebSocketStream::from_raw_socket(connection, Role::Server, Some(config)).await
}

/// The end of a session that went as it should. Clients take any other for a fault.
pub fn normal_end() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

/// One stream of bytes in the binary messages of a websocket, until either end closes: SPDY in a
/// websocket (KEP-4006).
pub fn tunnel<S>(connection: S) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (inner, outer) = tokio::io::duplex(TUNNEL_BUFFER_BYTES);
    tokio::spawn(async move {
        let (mut sink, mut messages) = accept(connection).await.split();
        let (mut from_session, mut to_session) = tokio::io::split(inner);
        let inward = async {
            while let Some(Ok(message)) = messages.next().await {
                match message {
                    Message::Binary(bytes) if to_session.write_all(&bytes).await.is_err() => break,
                    Message::Close(_) => break,
                    // Pings are answered by the library, while it is read.
                    _ => {}
                }
            }
            let _ = to_session.shutdown().await;
        };
        let outward = async {
            let mut buffer = vec![0; CHUNK_BYTES];
            while let Ok(count @ 1..) = from_session.read(&mut buffer).await {
                let bytes = buffer.get(..count).unwrap_or_default().to_vec();
                if sink.send(Message::Binary(bytes.into())).await.is_err() {
                    return;
                }
            }
            let _ = sink.send(normal_end()).await;
        };
        let mut inward = std::pin::pin!(inward);
        let mut outward = std::pin::pin!(outward);
        tokio::select! {
            // The session sees its end of input, and ends.
            () = &mut inward => outward.await,
            () = &mut outward => {
                let _ = tokio::time::timeout(Duration::from_secs(LINGER_S), inward).await;
            }
        }
    });
    outer
}
