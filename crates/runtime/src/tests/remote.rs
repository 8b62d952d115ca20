//! Logs and streams as the API server asks for them, over mutual TLS.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use super::node::{CLIENT_NAME, Node, is_running, on_node, shell};
use crate::streams::spdy::{self, Decoder, Encoder, Frame};
use crate::streams::tests::{Client, within};

/// Where the runtime serves.
pub const SERVER: &str = "10.99.255.1:10250";

async fn connect(node: &Node, name: &str) -> TlsStream<TcpStream> {
    let issued = node.authority.issue(name, None);
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(node.authority.file()).expect("an authority");
    roots.add(authority).expect("added");
    let certificate = CertificateDer::from_pem_file(&issued.certificate).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(&issued.key).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)
        .expect("an identity");
    let stream = TcpStream::connect(SERVER).await.expect("the server");
    let server = ServerName::try_from("10.99.255.1").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(server, stream).await.expect("TLS")
}

/// A GET, to the end of its answer: status code and body.
pub async fn get(node: &Node, path: &str) -> (u16, String) {
    let mut stream = connect(node, CLIENT_NAME).await;
    let request = format!("GET {path} HTTP/1.1\r\nHost: node1\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a code");
    let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        unchunk(body)
    } else {
        body.to_owned()
    };
    (code, body)
}

fn unchunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        body.push_str(&after[..size]);
        rest = after[size..].trim_start_matches("\r\n");
    }
    body
}

/// A session of exec or attach from the client's side.
pub struct Session {
    stream: TlsStream<TcpStream>,
    decoder: Decoder,
    numbers: BTreeMap<u32, &'static str>,
    received: BTreeMap<&'static str, Vec<u8>>,
    ended: bool,
}

impl Session {
    pub async fn open(node: &Node, path: &str, streams: &[&'static str]) -> Self {
        let mut stream = connect(node, CLIENT_NAME).await;
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: node1\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: v5.channel.k8s.io\r\n\
             X-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("an answer"));
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        assert!(head.starts_with("http/1.1 101"), "{head}");
        assert!(head.contains("x-stream-protocol-version: v4.channel.k8s.io"), "{head}");
        let mut encoder = Encoder::new().expect("an encoder");
        let mut numbers = BTreeMap::new();
        for (index, kind) in streams.iter().enumerate() {
            let number = index as u32 * 2 + 1;
            let frame = encoder.open(number, &[("streamtype", kind)], false).expect("a frame");
            stream.write_all(&frame).await.expect("written");
            numbers.insert(number, *kind);
        }
        let received = BTreeMap::new();
        Self { stream, decoder: Decoder::new(), numbers, received, ended: false }
    }

    pub async fn send(&mut self, kind: &str, bytes: &[u8], fin: bool) {
        let number = self.numbers.iter().find(|(_, known)| **known == kind).expect("a stream").0;
        self.stream.write_all(&spdy::data(*number, bytes, fin)).await.expect("written");
    }

    pub async fn receive(&mut self) {
        let mut buffer = [0; 4096];
        let count = self.stream.read(&mut buffer).await.unwrap_or(0);
        self.ended = count == 0;
        for frame in self.decoder.feed(&buffer[..count]).expect("frames") {
            if let Frame::Data { stream, bytes, .. } = frame {
                self.received.entry(self.numbers[&stream]).or_default().extend(bytes);
            }
        }
    }

    pub async fn until(&mut self, kind: &'static str, text: &str) {
        let wait = async {
            while !self.text(kind).contains(text) {
                assert!(!self.ended, "{kind} ended with {:?}", self.text(kind));
                self.receive().await;
            }
        };
        let waited = tokio::time::timeout(std::time::Duration::from_secs(60), wait).await;
        assert!(waited.is_ok(), "{kind} holds {:?}, not {text:?}", self.text(kind));
    }

    /// To the end of the session: the status on the error stream.
    pub async fn finish(&mut self) -> Value {
        let wait = async {
            while !self.ended {
                self.receive().await;
            }
        };
        let waited = tokio::time::timeout(std::time::Duration::from_secs(60), wait).await;
        assert!(waited.is_ok(), "the session does not end");
        serde_json::from_str(&self.text("error")).expect("a Status")
    }

    pub fn text(&self, kind: &str) -> String {
        let bytes = self.received.get(kind).cloned().unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

async fn running(node: &Node, script: &str) -> String {
    let uid = node.api.create_pod("web", json!({"containers": [shell(script)]}));
    node.api.until_pod("web", "running", is_running).await;
    uid
}

#[test]
fn a_command_gives_its_output_and_exit_code() {
    on_node("exec", |node: Node| async move {
        let _runtime = node.start();
        running(&node, "exec sleep 1000").await;
        let path = "/exec/default/web/main?command=sh&command=-c&command=\
                    echo%20out%3B%20echo%20err%20%3E%262%3B%20exit%203&output=1&error=1";
        let mut session = Session::open(&node, path, &["error", "stdout", "stderr"]).await;
        let status = session.finish().await;
        assert_eq!(session.text("stdout"), "out\n");
        assert_eq!(session.text("stderr"), "err\n");
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"], json!([{"reason": "ExitCode", "message": "3"}]));
        let missing = "/exec/default/web/main?command=nothing-of-that-name&output=1";
        let mut session = Session::open(&node, missing, &["error", "stdout"]).await;
        let status = session.finish().await;
        assert_eq!(status["status"], "Failure");
        let message = status["message"].as_str().unwrap_or_default();
        assert!(message.contains("executable file not found in $PATH"), "{message}");
    });
}

#[test]
fn input_reaches_the_command_and_ends() {
    on_node("stdin", |node: Node| async move {
        let _runtime = node.start();
        running(&node, "exec sleep 1000").await;
        let path = "/exec/default/web/main?command=cat&input=1&output=1";
        let mut session = Session::open(&node, path, &["error", "stdin", "stdout"]).await;
        let block = vec![b'x'; 20_000];
        for _ in 0..20 {
            session.send("stdin", &block, false).await;
            session.receive().await;
        }
        session.send("stdin", b"end", true).await;
        let status = session.finish().await;
        assert_eq!(status["status"], "Success");
        assert_eq!(session.text("stdout").len(), 400_003);
    });
}

#[test]
fn a_terminal_is_the_containers_and_is_resized() {
    on_node("tty", |node: Node| async move {
        let _runtime = node.start();
        running(&node, "exec sleep 1000").await;
        let path = "/exec/default/web/main?command=sh&input=1&output=1&tty=1";
        let mut session = Session::open(&node, path, &["error", "stdin", "stdout", "resize"]).await;
        session.send("resize", br#"{"Width":101,"Height":37}"#, false).await;
        session.send("resize", b"\n{\"Width\":102,", false).await;
        session.send("resize", b"\"Height\":38}", false).await;
        session.send("stdin", b"tty; stty size; exit 5\n", false).await;
        session.until("stdout", "38 102").await;
        let status = session.finish().await;
        assert!(session.text("stdout").contains("/dev/pts/0"), "{}", session.text("stdout"));
        assert_eq!(status["details"]["causes"][0]["message"], "5");
    });
}

#[test]
fn a_client_that_leaves_leaves_nothing_running() {
    on_node("leave", |node: Node| async move {
        let _runtime = node.start();
        running(&node, "exec sleep 1000").await;
        let path = "/exec/default/web/main?command=sh&command=-c&command=\
                    echo%20started%3B%20exec%20sleep%20777&output=1";
        let mut session = Session::open(&node, path, &["error", "stdout"]).await;
        session.until("stdout", "started").await;
        drop(session);
        let count = "/exec/default/web/main?command=sh&command=-c&command=\
                     cat%20%2Fproc%2F%5B0-9%5D*%2Fcmdline%20%7C%20tr%20%27%5C0%27%20%27%20%27&output=1";
        for attempt in 0.. {
            let mut session = Session::open(&node, count, &["error", "stdout"]).await;
            session.finish().await;
            if !session.text("stdout").contains("sleep 777") {
                break;
            }
            assert!(attempt < 200, "still running: {}", session.text("stdout"));
        }
    });
}

#[test]
fn logs_and_use_are_told_and_logs_are_refused_as_a_kubelet_does() {
    on_node("logs", |node: Node| async move {
        let _runtime = node.start();
        let script = "echo one; echo two; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo three; \
                      exit 1";
        running(&node, script).await;
        for (path, part) in [
            ("/stats/summary", "\"podRef\":{\"name\":\"web\",\"namespace\":\"default\""),
            ("/stats/summary", "\"usageCoreNanoSeconds\":"),
            ("/stats/summary", "\"workingSetBytes\":"),
            ("/metrics/resource", "container_cpu_usage_seconds_total{container=\"main\""),
            ("/metrics/resource", "node_memory_working_set_bytes "),
        ] {
            let (code, text) = get(&node, path).await;
            assert!(code == 200 && text.contains(part), "{path}: {code} {text}");
        }
        let base = "/containerLogs/default/web/main";
        let (code, text) = get(&node, &format!("{base}?tailLines=1")).await;
        assert_eq!((code, text.as_str()), (200, "two\n"));
        let path = format!("{base}?follow=true");
        let follow = get(&node, &path);
        let go = async {
            let path = "/exec/default/web/main?command=touch&command=/tmp/go&output=1";
            let mut session = Session::open(&node, path, &["error", "stdout"]).await;
            session.finish().await
        };
        let ((code, text), _) = tokio::join!(follow, go);
        assert_eq!((code, text.as_str()), (200, "one\ntwo\nthree\n"));
        let restarted = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"] == 1;
        node.api.until_pod("web", "restarted", restarted).await;
        let (code, text) = get(&node, &format!("{base}?previous=true&tailLines=1")).await;
        assert_eq!((code, text.as_str()), (200, "three\n"));
        let cases = [
            ("/containerLogs/default/web/other", 400, "container other is not valid for pod web"),
            ("/containerLogs/default/nobody/main", 404, "not on this node"),
            ("/containerLogs/default/web/main?tailLines=-1", 400, "tailLines"),
            ("/healthz", 200, "ok"),
            ("/pods", 404, "page not found"),
        ];
        for (path, code, part) in cases {
            let (found, text) = get(&node, path).await;
            assert!(found == code && text.contains(part), "{path}: {found} {text}");
        }
    });
}

/// A session over a websocket, to its end: messages by channel.
pub async fn websocket(node: &Node, path: &str, protocol: &str, sent: &[&[u8]]) -> [String; 4] {
    let mut stream = connect(node, CLIENT_NAME).await;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: node1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("an answer"));
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    // Of several the first that is served; with ports that is never `v5`, which clients misread.
    let served = match path.starts_with("/portForward/") {
        true => "v4.channel.k8s.io",
        false => protocol.rsplit(", ").next().expect("a protocol"),
    };
    assert!(head.contains(&format!("sec-websocket-protocol: {served}\r\n")), "{head}");
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    for message in sent {
        socket.send(Message::Binary(message.to_vec().into())).await.expect("sent");
    }
    let mut channels: [Vec<u8>; 4] = Default::default();
    within("the end", async {
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Binary(bytes) = message {
                let (channel, bytes) = bytes.split_first().expect("a channel");
                channels[usize::from(*channel)].extend(bytes);
            }
        }
    })
    .await;
    channels.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

#[test]
fn commands_run_over_websockets_too() {
    on_node("socket", |node: Node| async move {
        let _runtime = node.start();
        running(&node, "exec sleep 1000").await;
        let base = "/exec/default/web/main";
        let path = format!(
            "{base}?command=sh&command=-c&command=cat%3B%20echo%20err%20%3E%262%3B%20exit%203\
             &input=1&output=1&error=1"
        );
        let sent: [&[u8]; 3] = [b"\0hello ", b"\0world", &[255, 0]];
        let [_, stdout, stderr, status] =
            websocket(&node, &path, "v6.channel.k8s.io, v5.channel.k8s.io", &sent).await;
        assert_eq!((stdout.as_str(), stderr.as_str()), ("hello world", "err\n"));
        let status: Value = serde_json::from_str(&status).expect("a Status");
        assert_eq!(status["details"]["causes"][0]["message"], "3");
        let path = format!("{base}?command=echo&command=four&output=1");
        let [_, stdout, _, status] = websocket(&node, &path, "v4.channel.k8s.io", &[]).await;
        assert_eq!(stdout, "four\n");
        assert!(status.contains("Success"), "{status}");
        let path = format!("{base}?command=sh&input=1&output=1&tty=1");
        let sent: [&[u8]; 2] = [b"\x04{\"Width\":99,\"Height\":33}", b"\0stty size; exit 4\n"];
        let [_, stdout, _, status] = websocket(&node, &path, "v5.channel.k8s.io", &sent).await;
        assert!(stdout.contains("33 99"), "{stdout}");
        assert!(status.contains("\"4\""), "{status}");
    });
}

#[test]
fn ports_are_forwarded_inside_the_pods_network() {
    on_node("forward", |node: Node| async move {
        let _runtime = node.start();
        let serve = json!({
            "name": "main", "image": "localhost/toolbox", "args": ["serve", "--http", "8080"],
        });
        node.api.create_pod("web", json!({"containers": [serve]}));
        node.api.until_pod("web", "running", is_running).await;
        let mut stream = connect(&node, CLIENT_NAME).await;
        let request = "POST /portForward/default/web HTTP/1.1\r\nHost: node1\r\n\
                       Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
                       X-Stream-Protocol-Version: portforward.k8s.io\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("an answer"));
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        assert!(head.starts_with("http/1.1 101"), "{head}");
        let mut client = Client::new(stream);
        // Started is not yet listening.
        let page = within("a page", async {
            for attempt in 0.. {
                let (data, error) = client.connect(&attempt.to_string(), 8080).await;
                let question = b"GET /ready HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
                client.send(data, question, true).await;
                let message = client.whole(error).await;
                let page = String::from_utf8_lossy(&client.whole(data).await).into_owned();
                if message.is_empty() {
                    return page;
                }
            }
            String::new()
        })
        .await;
        assert!(page.starts_with("HTTP/1.1 200"), "{page}");
        // The same in the channels of a websocket, which begin with the port.
        let path = "/portForward/default/web?ports=8080,81";
        let question: &[u8] = b"\0GET /ready HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
        let [page, fault, _, refused] =
            websocket(&node, path, "v5.channel.k8s.io, v4.channel.k8s.io", &[question]).await;
        assert!(page.contains("HTTP/1.1 200") && fault.len() < 8, "{page} {fault}");
        assert!(refused.contains("dial tcp4 127.0.0.1:81: connect: connection refused"));
        // The same port of the node itself is closed: it was the pod's.
        assert!(TcpStream::connect("127.0.0.1:8080").await.is_err());
        let (_, error) = client.connect("refused", 81).await;
        let message = String::from_utf8_lossy(&client.whole(error).await).into_owned();
        assert!(
            message.contains("dial tcp4 127.0.0.1:81: connect: connection refused"),
            "{message}"
        );
        node.api.delete_pod("web", 0);
        client.until_ended().await;
    });
}

#[test]
fn only_the_api_server_is_let_in() {
    on_node("stranger", |node: Node| async move {
        let _runtime = node.start();
        node.api.until(|api| api.get("/api/v1/nodes/node1")).await.expect("started");
        let mut stream = connect(&node, "system:node:node2").await;
        let request = "GET /healthz HTTP/1.1\r\nHost: node1\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        // Without any certificate TLS itself fails: nothing is answered.
        let mut plain = TcpStream::connect(SERVER).await.expect("the server");
        plain.write_all(request.as_bytes()).await.expect("written");
        let mut answer = Vec::new();
        let _ = plain.read_to_end(&mut answer).await;
        assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1 200"));
    });
}
