//! Port-forward over SPDY, as it is and inside a websocket.

use std::future::pending;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use super::{Client, run, within};
use crate::streams::port_forward::{MAX_STREAMS, Place, serve};
use crate::streams::spdy::{self, Encoder};
use crate::streams::websocket;

pub const NEVER_IDLE: Duration = Duration::from_secs(600);
pub const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

pub fn place() -> Place {
    Place { pod: "web".into(), uid: "42".into(), namespace: None }
}

fn session() -> Client<DuplexStream> {
    let (near, far) = duplex(64 * 1024);
    tokio::spawn(serve(far, place(), pending(), NEVER_IDLE));
    Client::new(near)
}

/// Answers every connection, once its client has sent all, with the same bytes reversed.
pub async fn reverser(address: IpAddr) -> u16 {
    let listener = TcpListener::bind((address, 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).await.expect("read");
                bytes.reverse();
                stream.write_all(&bytes).await.expect("written");
            });
        }
    });
    port
}

/// A port that nobody listens on, in either family.
pub async fn closed_port() -> u16 {
    let taken = TcpListener::bind((V4, 0)).await.expect("a port");
    taken.local_addr().expect("an address").port()
}

async fn reverse_many<S>(client: &mut Client<S>, port: u16)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut connections = Vec::new();
    for number in 0..10_u8 {
        let streams = client.connect(&number.to_string(), port).await;
        connections.push((number, streams));
    }
    for part in [[b'a'; 5000], [b'b'; 5000]] {
        for (number, (data, _)) in &connections {
            client.send(*data, &[*number], false).await;
            client.send(*data, &part, false).await;
        }
    }
    for (number, (data, error)) in connections {
        client.send(data, b"", true).await;
        let expected = [&[b'b'; 5000][..], &[number], &[b'a'; 5000], &[number]].concat();
        assert!(client.whole(data).await == expected, "connection {number}");
        assert_eq!(client.whole(error).await, b"", "no error");
    }
}

#[test]
fn many_connections_flow_at_once_and_close_by_halves() {
    run(async {
        let port = reverser(V4).await;
        let mut client = session();
        reverse_many(&mut client, port).await;
        // One more, after all of them.
        let (data, _) = client.connect("more", port).await;
        client.send(data, b"olleh", true).await;
        assert_eq!(client.whole(data).await, b"hello");
    });
}

#[test]
fn the_same_flows_inside_a_websocket() {
    run(async {
        let port = reverser(V4).await;
        let (near, far) = duplex(64 * 1024);
        tokio::spawn(serve(websocket::tunnel(far), place(), pending(), NEVER_IDLE));
        // kubectl's end: bytes of the inner stream in messages of any size.
        let (inner, stream) = duplex(64 * 1024);
        tokio::spawn(async move {
            let socket = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
            let (mut sink, mut messages) = socket.split();
            let (mut reader, mut writer) = tokio::io::split(inner);
            let outward = async {
                let mut buffer = [0; 1000];
                while let Ok(count @ 1..) = reader.read(&mut buffer).await {
                    let bytes = buffer[..count].to_vec();
                    sink.send(Message::Binary(bytes.into())).await.expect("sent");
                }
                let _ = sink.send(Message::Close(None)).await;
            };
            let inward = async {
                while let Some(Ok(Message::Binary(bytes))) = messages.next().await {
                    writer.write_all(&bytes).await.expect("written");
                }
            };
            tokio::join!(outward, inward);
        });
        let mut client = Client::new(stream);
        reverse_many(&mut client, port).await;
    });
}

#[test]
fn what_listens_on_ipv6_alone_is_reached() {
    run(async {
        let port = reverser(V6).await;
        let mut client = session();
        let (data, _) = client.connect("0", port).await;
        client.send(data, b"xis", true).await;
        assert_eq!(client.whole(data).await, b"six");
    });
}

#[test]
fn a_refused_connection_is_told_and_ends_no_other() {
    run(async {
        let (port, closed) = (reverser(V4).await, closed_port().await);
        let mut client = session();
        let (open, _) = client.connect("0", port).await;
        let (data, error) = client.connect("1", closed).await;
        let message = String::from_utf8(client.whole(error).await).expect("text");
        assert_eq!(
            message,
            format!(
                "error forwarding port {closed} to pod web, uid 42: failed to connect to \
                 localhost:{closed} inside namespace \"host\", IPv4: dial tcp4 127.0.0.1:{closed}: \
                 connect: connection refused IPv6 dial tcp6 [::1]:{closed}: connect: connection \
                 refused"
            )
        );
        assert_eq!(client.whole(data).await, b"");
        client.send(open, b"sey", true).await;
        assert_eq!(client.whole(open).await, b"yes");
    });
}

#[test]
fn streams_that_make_no_connection_are_reset_one_by_one() {
    run(async {
        let port = reverser(V4).await;
        let text = port.to_string();
        let text = text.as_str();
        let mut client = session();
        let long = "9".repeat(1000);
        let wrong: &[&[(&str, &str)]] = &[
            &[],
            &[("streamtype", "data"), ("requestid", "1")],
            &[("streamtype", "data"), ("port", text)],
            &[("streamtype", "data"), ("port", "0"), ("requestid", "1")],
            &[("streamtype", "data"), ("port", "65536"), ("requestid", "1")],
            &[("streamtype", "data"), ("port", "http"), ("requestid", "1")],
            &[("streamtype", "data"), ("port", text), ("requestid", &long)],
            &[("streamtype", "resize"), ("port", text), ("requestid", "1")],
            &[("port", text), ("requestid", "1")],
        ];
        for headers in wrong {
            let stream = client.open(headers).await;
            client.until("a reset", |client| client.reset.contains(&stream)).await;
        }
        let twice = [("streamtype", "data"), ("port", text), ("requestid", "2")];
        client.open(&twice).await;
        let second = client.open(&twice).await;
        client.until("a reset", |client| client.reset.contains(&second)).await;
        let (data, _) = client.connect("3", port).await;
        client.send(data, b"ko", true).await;
        assert_eq!(client.whole(data).await, b"ok");
    });
}

#[test]
fn a_session_has_room_for_a_bounded_number_of_streams_at_a_time() {
    run(async {
        let port = reverser(V4).await;
        let mut client = session();
        let mut streams = Vec::new();
        for number in 0..MAX_STREAMS / 2 {
            streams.push(client.connect(&number.to_string(), port).await);
        }
        let (data, error) = client.connect("over", port).await;
        client
            .until("both resets", |client| {
                client.reset.contains(&data) && client.reset.contains(&error)
            })
            .await;
        let (first, first_error) = streams[0];
        client.send(first, b"", true).await;
        client.whole(first_error).await;
        // The place is free a moment after the end was told.
        within("room again", async {
            for number in 0.. {
                let (data, error) = client.connect(&format!("again {number}"), port).await;
                client.send(data, b"ko", true).await;
                client
                    .until("an answer", |client| {
                        client.finished.contains(&data) || client.reset.contains(&data)
                    })
                    .await;
                if !client.reset.contains(&error) && !client.reset.contains(&data) {
                    assert_eq!(client.whole(data).await, b"ok");
                    break;
                }
            }
        })
        .await;
    });
}

#[test]
fn a_pod_that_reads_nothing_holds_up_its_client_and_loses_nothing() {
    run(async {
        let listener = TcpListener::bind((V4, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let mut client = session();
        let (data, _) = client.connect("0", port).await;
        let (mut stream, _) = within("a connection", listener.accept()).await.expect("accepted");
        // More than the session, the sockets and the connection hold together.
        let total = 24 << 20;
        let sending = tokio::spawn(async move {
            for _ in 0..total / (64 * 1024) {
                client.send(data, &[7; 64 * 1024], false).await;
            }
            client.send(data, b"", true).await;
            client
        });
        for _ in 0..200 {
            tokio::task::yield_now().await;
            assert!(!sending.is_finished(), "nobody has read, and everything was taken");
        }
        let mut received = 0;
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = within("more", stream.read(&mut buffer)).await {
            received += buffer[..count].iter().filter(|byte| **byte == 7).count();
        }
        assert_eq!(received, total);
        drop(stream);
        let mut client = within("the sender", sending).await.expect("sent");
        assert_eq!(client.whole(data).await, b"");
    });
}

#[test]
fn a_session_ends_when_nothing_flows_and_when_the_pod_is_gone() {
    run(async {
        let (near, far) = duplex(1024);
        tokio::spawn(serve(far, place(), pending(), Duration::from_millis(50)));
        Client::new(near).until_ended().await;
        let port = reverser(V4).await;
        let (near, far) = duplex(1024);
        let (delete, deleted) = tokio::sync::oneshot::channel::<()>();
        let gone = async { drop(deleted.await) };
        tokio::spawn(serve(far, place(), gone, NEVER_IDLE));
        let mut client = Client::new(near);
        let (data, _) = client.connect("0", port).await;
        client.send(data, b"x", false).await;
        delete.send(()).expect("told");
        client.until_ended().await;
    });
}

#[test]
fn a_reset_ends_the_connection_inside_the_pod() {
    run(async {
        let listener = TcpListener::bind((V4, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let mut client = session();
        let (data, _) = client.connect("0", port).await;
        let (mut stream, _) = within("a connection", listener.accept()).await.expect("accepted");
        client.stream.write_all(&spdy::reset(data)).await.expect("written");
        let mut rest = Vec::new();
        let _ = within("its end", stream.read_to_end(&mut rest)).await;
        assert_eq!(rest, b"");
    });
}

/// Valid frames, cut and overwritten at random places.
fn broken_frames() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    (changes, any::<prop::sample::Index>()).prop_map(|(changes, end)| {
        let mut encoder = Encoder::new().expect("an encoder");
        let headers = |kind| [("streamtype", kind), ("port", "1"), ("requestid", "1")];
        let mut bytes = encoder.open(1, &headers("error"), true).expect("a frame");
        bytes.extend(encoder.open(3, &headers("data"), false).expect("a frame"));
        bytes.extend(spdy::data(3, b"hello", false));
        bytes.extend(spdy::ping(9));
        bytes.extend(spdy::data(3, b"", true));
        bytes.extend(encoder.open(5, &headers("data"), false).expect("a frame"));
        bytes.extend(spdy::reset(5));
        bytes.extend(spdy::go_away(5));
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
    fn broken_bytes_end_a_session_and_nothing_else(
        bytes in prop_oneof![prop::collection::vec(any::<u8>(), 0..400), broken_frames()],
        in_websocket: bool,
    ) {
        run(async {
            let (mut near, far) = duplex(1024);
            let served = if in_websocket {
                let tunnel = websocket::tunnel(far);
                tokio::spawn(serve(tunnel, place(), pending(), NEVER_IDLE))
            } else {
                tokio::spawn(serve(far, place(), pending(), NEVER_IDLE))
            };
            let writing = async {
                let _ = near.write_all(&bytes).await;
                let _ = near.shutdown().await;
                let mut rest = Vec::new();
                let _ = near.read_to_end(&mut rest).await;
            };
            within("the client", writing).await;
            within("the session", served).await.expect("no panic");
        });
    }
}

/// Answers each datagram with the same bytes reversed.
async fn datagram_reverser(address: IpAddr) -> u16 {
    let socket = tokio::net::UdpSocket::bind((address, 0)).await.expect("a port");
    let port = socket.local_addr().expect("an address").port();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((count, client)) = socket.recv_from(&mut buffer).await {
            buffer[..count].reverse();
            let _ = socket.send_to(&buffer[..count], client).await;
        }
    });
    port
}

/// Opens a flow of datagrams: data and error stream.
async fn datagrams(
    client: &mut Client<DuplexStream>,
    request: &str,
    port: u16,
    protocol: &str,
) -> (u32, u32) {
    let port = port.to_string();
    let headers = |kind| {
        [
            ("streamtype", kind),
            ("port", port.as_str()),
            ("requestid", request),
            ("protocol", protocol),
        ]
    };
    let error = client.open(&headers("error")).await;
    client.send(error, b"", true).await;
    (client.open(&headers("data")).await, error)
}

#[test]
fn datagrams_stay_apart_and_find_back_to_their_client() {
    run(async {
        for address in [V4, V6] {
            let port = datagram_reverser(address).await;
            let mut client = session();
            let (first, _) = datagrams(&mut client, "1", port, "UDP").await;
            let (second, fault) = datagrams(&mut client, "2", port, "UDP").await;
            for (stream, text) in [(first, "abc"), (second, "xyz"), (first, "def")] {
                client.send(stream, text.as_bytes(), false).await;
                let reversed: Vec<u8> = text.bytes().rev().collect();
                client
                    .until("the answer", |client| client.received.get(&stream) == Some(&reversed))
                    .await;
                client.received.remove(&stream);
            }
            client.send(second, b"", true).await;
            assert_eq!(client.whole(fault).await, b"", "it ended as it should");
            assert!(!client.finished.contains(&first), "the other goes on");
        }
    });
}

#[test]
fn a_port_without_a_listener_is_told_of_datagrams_too() {
    run(async {
        let socket = tokio::net::UdpSocket::bind((V4, 0)).await.expect("a port");
        let port = socket.local_addr().expect("an address").port();
        drop(socket);
        let mut client = session();
        let (data, error) = datagrams(&mut client, "1", port, "UDP").await;
        client.send(data, b"hello", false).await;
        let fault = String::from_utf8_lossy(&client.whole(error).await).into_owned();
        let expected = format!("error forwarding port {port} to pod web, uid 42: dial udp [::1]");
        assert!(fault.starts_with(&expected) && fault.ends_with("connection refused"), "{fault}");
        assert_eq!(client.whole(data).await, b"");
        // What is neither is refused stream by stream, and the session goes on.
        let (data, error) = datagrams(&mut client, "2", port, "SCTP").await;
        client.until("refusals", |client| client.reset == [error, data]).await;
    });
}
