//! The peer: Debian's `etcd-server`, asked over gRPC as the real API server asks it, without TLS.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::server::{Process, free_port};

/// Longest wait for it to listen, and between two tries.
const START_LIMIT: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(20);

/// A running etcd, killed with its owner.
pub struct Etcd {
    process: Process,
    port: u16,
}

impl Etcd {
    /// Starts it with an empty store.
    pub async fn start(directory: &Path) -> Self {
        let (port, peers) = (free_port(), free_port());
        let clients = format!("http://127.0.0.1:{port}");
        let peers = format!("http://127.0.0.1:{peers}");
        let mut command = Command::new(program());
        command.arg("--data-dir").arg(directory).args(["--log-level", "error"]);
        command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
        command.args(["--initial-cluster", &format!("default={peers}")]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let process = Process(command.spawn().expect("etcd starts; `./x bench api` fetches it"));
        let this = Self { process, port };
        let started = Instant::now();
        while !this.answers().await {
            assert!(started.elapsed() < START_LIMIT, "etcd does not answer");
            tokio::time::sleep(RETRY).await;
        }
        this
    }

    pub fn id(&self) -> u32 {
        self.process.0.id()
    }

    /// Puts values of some size from some clients, each with a connection; answers how many.
    pub async fn put_for(&self, writers: usize, time: Duration, value_bytes: usize) -> usize {
        let mut connections = Vec::new();
        for _ in 0..writers {
            connections.push(self.connect().await.expect("etcd accepts"));
        }
        let until = Instant::now() + time;
        let mut tasks = JoinSet::new();
        for (writer, mut connection) in connections.into_iter().enumerate() {
            tasks.spawn(async move {
                let value = vec![b'x'; value_bytes];
                let mut made = 0;
                while Instant::now() < until {
                    let key = format!("/registry/configmaps/default/{writer}-{made}");
                    put(&mut connection, key.as_bytes(), &value).await.expect("a value is put");
                    made += 1;
                }
                made
            });
        }
        tasks.join_all().await.into_iter().sum()
    }

    /// Puts a number of values from some clients.
    pub async fn put_all(&self, writers: usize, values: usize, value_bytes: usize) {
        let mut tasks = JoinSet::new();
        for writer in 0..writers {
            let mut connection = self.connect().await.expect("etcd accepts");
            tasks.spawn(async move {
                let value = vec![b'x'; value_bytes];
                for number in (writer..values).step_by(writers) {
                    let key = format!("/registry/configmaps/default/object-{number}");
                    put(&mut connection, key.as_bytes(), &value).await.expect("a value is put");
                }
            });
        }
        tasks.join_all().await;
    }

    async fn answers(&self) -> bool {
        match self.connect().await {
            Ok(mut connection) => put(&mut connection, b"first", b"").await.is_ok(),
            Err(_) => false,
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await;
        let stream = stream.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let opened = handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = opened.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// One `etcdserverpb.KV/Put`.
async fn put(
    connection: &mut SendRequest<Full<Bytes>>,
    key: &[u8],
    value: &[u8],
) -> Result<(), String> {
    let request = Request::builder()
        .method(Method::POST)
        .uri("http://etcd/etcdserverpb.KV/Put")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(put_message(key, value)))
        .map_err(|error| error.to_string())?;
    connection.ready().await.map_err(|error| error.to_string())?;
    let answer = connection.send_request(request).await.map_err(|error| error.to_string())?;
    let early = answer.headers().get("grpc-status").cloned();
    let body = answer.into_body().collect().await.map_err(|error| error.to_string())?;
    let status = body.trailers().and_then(|trailers| trailers.get("grpc-status").cloned());
    match status.or(early) {
        Some(code) if code == "0" => Ok(()),
        other => Err(format!("gRPC status {other:?}")),
    }
}

/// The message in gRPC's frame: no compression, its length, and two fields of bytes.
fn put_message(key: &[u8], value: &[u8]) -> Bytes {
    let mut message = Vec::new();
    for (tag, bytes) in [(0x0a, key), (0x12, value)] {
        message.push(tag);
        let mut length = bytes.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(bytes);
    }
    let length = u32::try_from(message.len()).expect("a small message").to_be_bytes();
    Bytes::from([&[0][..], &length, &message].concat())
}

/// Where `./x bench api` unpacked it.
fn program() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.join("target/tools/etcd-server/usr/bin/etcd")
}
