//! Port-forward in the channels of a websocket (section 1.4 of the API server's specification).

use std::collections::BTreeMap;
use std::future::pending;

use futures_util::{SinkExt, StreamExt};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use super::port_forward::{NEVER_IDLE, V4, closed_port, place};
use super::{run, within};
use crate::streams::port_channels::{MAX_PORTS, ports, serve};

/// The client's end of a session.
struct Client {
    socket: WebSocketStream<DuplexStream>,
    received: BTreeMap<u8, Vec<u8>>,
    closed: bool,
}

impl Client {
    async fn open(ports: Vec<u16>) -> Self {
        let (near, far) = duplex(64 * 1024);
        tokio::spawn(async move { serve(far, place(), &ports, pending(), NEVER_IDLE).await });
        let socket = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        Self { socket, received: BTreeMap::new(), closed: false }
    }

    async fn send(&mut self, channel: u8, bytes: &[u8]) {
        let message = [&[channel], bytes].concat();
        self.socket.send(Message::Binary(message.into())).await.expect("sent");
    }

    /// Reads until a condition holds of what the channels brought.
    async fn until(&mut self, what: &str, holds: impl Fn(&BTreeMap<u8, Vec<u8>>) -> bool) {
        within(what, async {
            while !holds(&self.received) {
                assert!(!self.closed, "{what}: closed with {:?}", self.received.keys());
                self.receive().await;
            }
        })
        .await;
    }

    async fn receive(&mut self) {
        match self.socket.next().await {
            Some(Ok(Message::Binary(bytes))) => {
                let (channel, bytes) = bytes.split_first().expect("a channel");
                self.received.entry(*channel).or_default().extend(bytes);
            }
            Some(Ok(Message::Close(Some(close)))) => {
                assert_eq!(u16::from(close.code), 1000, "a session ends as it should");
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => self.closed = true,
        }
    }

    async fn until_closed(&mut self) {
        within("the end", async {
            while !self.closed {
                self.receive().await;
            }
        })
        .await;
    }
}

/// Answers every line with the same line reversed, and ends after `over`.
async fn line_reverser() -> u16 {
    let listener = TcpListener::bind((V4, 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut line = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    line.insert(0, byte);
                    if byte == b'\n' {
                        stream.write_all(&line).await.expect("written");
                        if line == b"\nrevo" {
                            return;
                        }
                        line.clear();
                    }
                }
            });
        }
    });
    port
}

#[test]
fn each_port_has_two_channels_that_begin_with_its_number() {
    run(async {
        let (first, second) = (line_reverser().await, line_reverser().await);
        let mut client = Client::open(vec![first, second]).await;
        let heads = |received: &BTreeMap<u8, Vec<u8>>| {
            [first, first, second, second].iter().zip(0..).all(|(port, channel): (_, u8)| {
                received.get(&channel).is_some_and(|bytes| *bytes == port.to_le_bytes())
            })
        };
        client.until("all heads", heads).await;
        client.received.clear();
        client.send(2, b"for the second\n").await;
        client.send(0, b"for the first\n").await;
        client.send(0, b"over\n").await;
        // Channels of errors and of no port take nothing.
        client.send(1, b"nothing\n").await;
        client.send(9, b"nothing\n").await;
        client
            .until("both answers", |received| {
                received.get(&0).is_some_and(|bytes| bytes == b"\ntsrif eht rof\nrevo")
                    && received.get(&2).is_some_and(|bytes| bytes == b"\ndnoces eht rof")
            })
            .await;
        // The first is over; the second goes on, and then so is the session.
        client.send(2, b"over\n").await;
        client.until_closed().await;
        assert_eq!(client.received[&2], b"\ndnoces eht rof\nrevo");
        assert!(!client.received.contains_key(&1) && !client.received.contains_key(&3));
    });
}

#[test]
fn a_refused_port_is_told_on_its_own_channel_of_errors() {
    run(async {
        let (port, closed) = (line_reverser().await, closed_port().await);
        let mut client = Client::open(vec![closed, port]).await;
        let told = |received: &BTreeMap<u8, Vec<u8>>| {
            received.get(&1).is_some_and(|bytes| {
                String::from_utf8_lossy(bytes).contains(&format!(
                    "error forwarding port {closed} to pod web, uid 42: failed to connect"
                ))
            })
        };
        client.until("the error", told).await;
        client.send(0, b"to nobody\n").await;
        client.send(2, b"over\n").await;
        client.until_closed().await;
        assert_eq!(&client.received[&2][2..], b"\nrevo");
        assert_eq!(client.received[&0].len(), 2, "nothing came from a port that nobody has");
    });
}

#[test]
fn what_a_client_sent_before_it_left_reaches_the_pod() {
    run(async {
        let listener = TcpListener::bind((V4, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let mut client = Client::open(vec![port]).await;
        let block = vec![b'x'; 200_000];
        client.send(0, &block).await;
        client.socket.close(None).await.expect("closed");
        let (mut stream, _) = within("a connection", listener.accept()).await.expect("accepted");
        let mut received = Vec::new();
        within("all", stream.read_to_end(&mut received)).await.expect("read");
        assert_eq!(received.len(), block.len());
        drop(stream);
        client.until_closed().await;
    });
}

#[test]
fn ports_stand_in_one_parameter_or_in_several() {
    let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    type Case<'a> = (&'a [&'a str], Result<Vec<u16>, &'a str>);
    let cases: &[Case<'_>] = &[
        (&["80"], Ok(vec![80])),
        (&["80,81", "443"], Ok(vec![80, 81, 443])),
        (&[], Err("\"ports\" is required")),
        (&[""], Err("port \"\" is not")),
        (&["0"], Err("port \"0\" is not")),
        (&["80,65536"], Err("port \"65536\" is not")),
        (&["http"], Err("port \"http\" is not")),
    ];
    for (parameters, expected) in cases {
        match (ports(&texts(parameters)), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, *expected),
            (Err(message), Err(part)) => assert!(message.contains(part), "{message}"),
            (found, expected) => panic!("{parameters:?}: {found:?}, not {expected:?}"),
        }
    }
    let most = vec!["7".to_owned(); MAX_PORTS];
    assert_eq!(ports(&most).map(|ports| ports.len()), Ok(MAX_PORTS));
    assert!(ports(&[most, vec!["7".to_owned()]].concat()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// whatever comes, the session ends and nothing worse.
    #[test]
    fn no_bytes_break_a_session(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        run(async {
            let (mut near, far) = duplex(64 * 1024);
            let served = tokio::spawn(async move {
                serve(far, place(), &[closed_port().await], pending(), NEVER_IDLE).await;
            });
            let _ = near.write_all(&bytes).await;
            let _ = near.shutdown().await;
            let mut rest = Vec::new();
            within("the client", async { near.read_to_end(&mut rest).await.ok() }).await;
            within("the session", served).await.expect("no panic");
        });
    }
}
