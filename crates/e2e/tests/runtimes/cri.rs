//! The calls of a kubelet to its container runtime: the Container Runtime Interface v1
//! (k8s.io/cri-api, `api.proto`), gRPC over a Unix socket. Field numbers are that file's.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::image;
use crate::protobuf::{Message, Reply};

/// One call takes at most this long.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// A message is preceded by a byte for compression and four of length.
const PREFIX_BYTES: usize = 5;

/// A client; each call has a connection of its own.
pub struct Cri {
    runtime: Runtime,
    socket: &'static str,
}

/// What a kubelet asks for a pod beyond its name.
#[derive(Clone, Copy, Debug, Default)]
pub struct PodOptions<'a> {
    /// TCP ports: of the host, of the pod.
    pub host_ports: &'a [(u16, u16)],
    /// Annotations.
    pub annotations: &'a [(&'a str, &'a str)],
}

impl Cri {
    /// A client of the runtime at a socket.
    pub fn new(socket: &'static str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, socket })
    }

    /// `RunPodSandbox`: answers the sandbox's id.
    pub fn run_sandbox(&self, name: &str, options: PodOptions) -> Result<String> {
        let request = Message::default().message(1, &sandbox_config(name, options));
        Ok(self.call("RunPodSandbox", &request)?.text(1))
    }

    /// `PodSandboxStatus`: answers the pod's address.
    pub fn address(&self, sandbox: &str) -> Result<String> {
        let reply = self.call("PodSandboxStatus", &Message::default().text(1, sandbox))?;
        Ok(reply.message(1)?.message(5)?.text(1))
    }

    /// `StopPodSandbox`.
    pub fn stop_sandbox(&self, sandbox: &str) -> Result<()> {
        self.call("StopPodSandbox", &Message::default().text(1, sandbox)).map(drop)
    }

    /// `RemovePodSandbox`.
    pub fn remove_sandbox(&self, sandbox: &str) -> Result<()> {
        self.call("RemovePodSandbox", &Message::default().text(1, sandbox)).map(drop)
    }

    /// `ListPodSandbox`: answers the ids of all.
    pub fn sandboxes(&self) -> Result<Vec<String>> {
        let reply = self.call("ListPodSandbox", &Message::default())?;
        Ok(reply.messages(1)?.iter().map(|sandbox| sandbox.text(1)).collect())
    }

    /// `CreateContainer` and `StartContainer` of the toolbox; answers the container's id.
    pub fn run_container(&self, pod: &str, sandbox: &str, arguments: &[&str]) -> Result<String> {
        let container_name = Message::default().text(1, "toolbox");
        let image = Message::default().text(1, image::NAME);
        let mut config = Message::default().message(1, &container_name).message(2, &image);
        for argument in arguments {
            config = config.text(4, argument);
        }
        let request = Message::default()
            .text(1, sandbox)
            .message(2, &config)
            .message(3, &sandbox_config(pod, PodOptions::default()));
        let container = self.call("CreateContainer", &request)?.text(1);
        self.call("StartContainer", &Message::default().text(1, &container))?;
        Ok(container)
    }

    /// `ExecSync` of the toolbox: answers the exit code and what was printed.
    pub fn exec(&self, container: &str, arguments: &[&str]) -> Result<(u64, String)> {
        let mut request = Message::default().text(1, container).text(2, image::PROGRAM);
        for argument in arguments {
            request = request.text(2, argument);
        }
        let reply = self.call("ExecSync", &request.number(3, CALL_DEADLINE.as_secs()))?;
        Ok((reply.number(3), reply.text(1) + &reply.text(2)))
    }

    /// `Status`: whether the network is ready, and what the runtime says of it.
    pub fn network_ready(&self) -> Result<(bool, String)> {
        let conditions = self.call("Status", &Message::default())?.message(1)?.messages(1)?;
        let network = conditions.iter().find(|condition| condition.text(1) == "NetworkReady");
        let network = network.context("no condition NetworkReady")?;
        Ok((network.number(2) == 1, network.text(4)))
    }

    fn call(&self, method: &str, request: &Message) -> Result<Reply> {
        let work = async { tokio::time::timeout(CALL_DEADLINE, self.send(method, request)).await };
        let reply = self.runtime.block_on(work).context("no answer in time");
        reply.and_then(|reply| reply).with_context(|| method.to_owned())
    }

    async fn send(&self, method: &str, request: &Message) -> Result<Reply> {
        let stream = UnixStream::connect(self.socket).await?;
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let mut body = vec![0];
        body.extend(u32::try_from(request.encoded().len())?.to_be_bytes());
        body.extend(request.encoded());
        let request = Request::post(format!("http://localhost/runtime.v1.RuntimeService/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from(body)))?;
        let response = sender.send_request(request).await?;
        let mut head = response.headers().clone();
        let body = response.into_body().collect().await?;
        // An answer without a body has its status among the headers.
        head.extend(body.trailers().cloned().unwrap_or_default());
        let word = |name| head.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
        let (status, message) = (word("grpc-status"), word("grpc-message"));
        ensure!(status == "0", "status {status:?}: {message}");
        connection.abort();
        let bytes = body.to_bytes();
        Reply::read(bytes.get(PREFIX_BYTES..).context("no message in the answer")?)
    }
}

fn sandbox_config(name: &str, options: PodOptions) -> Message {
    let metadata = Message::default().text(1, name).text(2, name).text(3, "default");
    let mut config = Message::default()
        .message(1, &metadata)
        .text(2, name)
        // As every pod of a kubelet says it: its own network, host's nothing.
        .message(8, &Message::default());
    for (host, pod) in options.host_ports {
        let port = Message::default().number(2, u64::from(*pod)).number(3, u64::from(*host));
        config = config.message(5, &port);
    }
    for (key, value) in options.annotations {
        config = config.entry(7, key, value);
    }
    config
}
