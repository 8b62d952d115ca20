//! The channels of a command, over websockets and SPDY.

use futures_util::{SinkExt, StreamExt};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use super::{Client, run, within};
use crate::streams::channels::{Channel, Incoming, Session, V5};
use crate::streams::websocket::MAX_MESSAGE_BYTES;

const V4: &str = "v4.channel.k8s.io";
const ALL: [Channel; 4] = [Channel::Error, Channel::Stdin, Channel::Stdout, Channel::Resize];

async fn websocket(protocol: &str) -> (WebSocketStream<DuplexStream>, Session) {
    let (near, far) = duplex(64 * 1024);
    let session = Session::over_websocket(far, protocol, &ALL).await;
    (WebSocketStream::from_raw_socket(near, Role::Client, None).await, session)
}

fn binary(bytes: &[u8]) -> Message {
    Message::Binary(bytes.to_vec().into())
}

#[test]
fn websocket_messages_are_sorted_by_channel_and_version_5_closes_them() {
    let stdin = |bytes: &[u8]| Incoming::Data(Channel::Stdin, bytes.to_vec());
    let resize = Incoming::Data(Channel::Resize, b"{}".to_vec());
    let end = Incoming::End(Channel::Stdin);
    for (protocol, expected) in [
        (V5, vec![stdin(b"one"), resize.clone(), stdin(b"two"), end]),
        // In version 4 nobody can end input; what says so is for no channel.
        (V4, vec![stdin(b"one"), resize, stdin(b"two")]),
    ] {
        run(async {
            let (mut client, mut session) = websocket(protocol).await;
            for message in [
                binary(b"\0one"),
                binary(b""),
                binary(b"\0"),
                binary(b"\x09unknown"),
                binary(&[255, 9]),
                Message::Ping("hello".into()),
                binary(b"\x04{}"),
                Message::Text("\0two".into()),
                binary(&[255, 0]),
                Message::Close(None),
            ] {
                client.send(message).await.expect("sent");
            }
            let mut found = Vec::new();
            while let Some(incoming) = within("more", session.incoming.recv()).await {
                found.push(incoming);
            }
            assert_eq!(found, expected, "{protocol}");
            let pong = within("an answer", client.next()).await.expect("open").expect("a message");
            assert_eq!(pong, Message::Pong("hello".into()));
        });
    }
}

#[test]
fn a_websocket_session_ends_with_its_status_and_a_normal_close() {
    run(async {
        let (mut client, session) = websocket(V5).await;
        assert!(session.output.has(Channel::Stdout) && !session.output.has(Channel::Stderr));
        assert!(session.output.send(Channel::Stdout, b"out").await);
        // Input that nobody reads any more holds nothing up.
        for _ in 0..100 {
            client.send(binary(&[b'\0'; 100])).await.expect("sent");
        }
        let finishing = tokio::spawn(session.finish("{status}"));
        let mut messages = Vec::new();
        within("the end", async {
            while let Some(Ok(message)) = client.next().await {
                messages.push(message);
            }
        })
        .await;
        let [out, status, Message::Close(Some(close))] = messages.as_slice() else {
            panic!("{messages:?}")
        };
        assert_eq!((out, status), (&binary(b"\x01out"), &binary(b"\x03{status}")));
        assert_eq!(close.code, CloseCode::Normal);
        within("the session", finishing).await.expect("ended");
    });
}

#[test]
fn a_message_that_is_too_large_ends_the_session() {
    run(async {
        let (mut client, mut session) = websocket(V5).await;
        let sending = tokio::spawn(async move {
            let _ = client.send(binary(&vec![0; MAX_MESSAGE_BYTES + 1])).await;
            client
        });
        assert_eq!(within("the end", session.incoming.recv()).await, None);
        drop(session);
        drop(within("the client", sending).await);
    });
}

#[test]
fn spdy_streams_carry_what_came_before_the_last_was_open() {
    run(async {
        let (near, far) = duplex(64 * 1024);
        let opening = tokio::spawn(async move { Session::over_spdy(far, &ALL).await });
        let mut client = Client::new(near);
        let error = client.open(&[("streamtype", "error")]).await;
        let stdin = client.open(&[("streamtype", "stdin")]).await;
        client.send(stdin, b"early", true).await;
        let stdout = client.open(&[("streamtype", "stdout")]).await;
        client.open(&[("streamtype", "resize")]).await;
        let mut session = within("a session", opening).await.expect("no panic").expect("open");
        let early = Incoming::Data(Channel::Stdin, b"early".to_vec());
        assert_eq!(session.incoming.recv().await, Some(early));
        assert_eq!(session.incoming.recv().await, Some(Incoming::End(Channel::Stdin)));
        assert!(session.output.send(Channel::Stdout, b"out").await);
        let finishing = tokio::spawn(session.finish("{status}"));
        assert_eq!(client.whole(stdout).await, b"out");
        assert_eq!(client.whole(error).await, b"{status}");
        client.until_ended().await;
        drop(client);
        within("the session", finishing).await.expect("ended");
    });
}

#[test]
fn clients_that_open_other_streams_or_send_too_much_first_get_no_session() {
    run(async {
        let attempts: [(&str, usize, &str); 3] = [
            ("stderr", 0, "did not ask for"),
            ("stdin", 2 << 20, "too much was sent"),
            ("stdin", 0, "the client left"),
        ];
        for (kind, bytes, expected) in attempts {
            let (near, far) = duplex(64 * 1024);
            let opening = tokio::spawn(async move { Session::over_spdy(far, &ALL).await });
            let mut client = Client::new(near);
            let stream = client.open(&[("streamtype", kind)]).await;
            let frame = crate::streams::spdy::data(stream, &[0; 1 << 16], false);
            for _ in 0..bytes / (1 << 16) {
                if client.stream.write_all(&frame).await.is_err() {
                    break;
                }
            }
            let _ = client.stream.shutdown().await;
            let message = within("a refusal", opening).await.expect("no panic").err();
            assert!(message.as_ref().is_some_and(|text| text.contains(expected)), "{message:?}");
        }
    });
}

/// Valid websocket frames of a client (masked with zeros), cut and overwritten at random places.
fn broken_messages() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    (changes, any::<prop::sample::Index>()).prop_map(|(changes, end)| {
        let mut bytes = Vec::new();
        for (kind, payload) in [
            (0x82, &b"\0input"[..]),
            (0x02, b"\0par"),
            (0x80, b"t two"),
            (0x89, b"ping"),
            (0x81, b"\0text"),
            (0x82, &[255, 0]),
            (0x88, &[3, 232]),
        ] {
            bytes.extend([kind, 0x80 | payload.len() as u8, 0, 0, 0, 0]);
            bytes.extend(payload);
        }
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.truncate(end.index(bytes.len()) + 1);
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn broken_messages_end_a_session_and_nothing_else(
        bytes in prop_oneof![prop::collection::vec(any::<u8>(), 0..200), broken_messages()],
    ) {
        run(async {
            let (mut near, far) = duplex(64 * 1024);
            let mut session = Session::over_websocket(far, V5, &ALL).await;
            near.write_all(&bytes).await.expect("written");
            near.shutdown().await.expect("shut down");
            within("the end of input", async {
                while session.incoming.recv().await.is_some() {}
            })
            .await;
            let finishing = tokio::spawn(session.finish("{}"));
            let mut rest = Vec::new();
            let _ = within("the end", near.read_to_end(&mut rest)).await;
            drop(near);
            within("the session", finishing).await.expect("no panic");
        });
    }
}
