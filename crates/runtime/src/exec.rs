//! `kubectl exec`: a command in a container, its streams carried over SPDY (the kubelet's remote
//! command protocol, `v4.channel.k8s.io`).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pause::ExecSpec;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::pause_client;
use crate::spdy::{self, Decoder, Encoder, Frame};

/// Longest wait for the client to open its streams, seconds (the kubelet's).
const STREAMS_TIMEOUT_S: u64 = 30;
/// Longest wait for output after the command has ended, milliseconds: what it left running in the
/// background may hold its output open for ever.
const REST_OF_OUTPUT_MS: u64 = 500;
/// Bytes moved at a time.
const CHUNK_BYTES: usize = 16 * 1024;
/// Frames that wait to be written, and pieces of input that wait for the command.
const QUEUE: usize = 8;
/// Largest resize message, bytes.
const MAX_RESIZE_BYTES: usize = 4096;

/// What to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOptions {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Whether the client sends input.
    pub stdin: bool,
    /// Whether it wants standard output.
    pub stdout: bool,
    /// Whether it wants standard error.
    pub stderr: bool,
    /// Whether the command gets a terminal; standard error is then part of it.
    pub tty: bool,
}

/// The streams that the client opens, by `streamtype`.
const ERROR: &str = "error";
const STDIN: &str = "stdin";
const STDOUT: &str = "stdout";
const STDERR: &str = "stderr";
const RESIZE: &str = "resize";

impl ExecOptions {
    fn expected(&self) -> Vec<&'static str> {
        let rows = [
            (ERROR, true),
            (STDIN, self.stdin),
            (STDOUT, self.stdout),
            (STDERR, self.stderr && !self.tty),
            (RESIZE, self.tty),
        ];
        rows.into_iter().filter_map(|(name, wanted)| wanted.then_some(name)).collect()
    }
}

/// Where the container is.
#[derive(Clone, Debug)]
pub struct ExecTarget {
    /// The pause process's socket.
    pub socket: PathBuf,
    /// The container.
    pub container: String,
}

/// Serves one session on an upgraded connection, to its end.
pub async fn serve<S>(connection: S, options: ExecOptions, target: ExecTarget)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut reader, writer) = tokio::io::split(connection);
    let (frames, queue) = mpsc::channel(QUEUE);
    let writing = tokio::spawn(write_frames(writer, queue));
    let session = async {
        let mut decoder = Decoder::new();
        let mut early = Vec::new();
        let streams = accept_streams(&mut reader, &mut decoder, &options, &frames, &mut early);
        let timeout = Duration::from_secs(STREAMS_TIMEOUT_S);
        let streams = tokio::time::timeout(timeout, streams)
            .await
            .map_err(|_| "timed out waiting for client to create streams".to_owned())??;
        run(reader, decoder, early, &options, &target, &streams, &frames).await;
        Ok::<(), String>(())
    };
    if let Err(message) = session.await {
        tracing::debug!("exec in {}: {message}", target.container);
    }
    drop(frames);
    let _ = writing.await;
}

async fn write_frames<W: AsyncWrite + Unpin>(mut writer: W, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(frame) = queue.recv().await {
        if writer.write_all(&frame).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
    let _ = writer.shutdown().await;
}

/// Stream numbers by type.
type Streams = BTreeMap<&'static str, u32>;

async fn accept_streams<R: AsyncRead + Unpin>(
    reader: &mut R,
    decoder: &mut Decoder,
    options: &ExecOptions,
    frames: &mpsc::Sender<Vec<u8>>,
    early: &mut Vec<Frame>,
) -> Result<Streams, String> {
    let expected = options.expected();
    let mut encoder = Encoder::new()?;
    let mut streams = Streams::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    while streams.len() < expected.len() {
        let count = reader.read(&mut buffer).await.map_err(|error| error.to_string())?;
        if count == 0 {
            return Err("the client left".into());
        }
        for frame in decoder.feed(&buffer[..count])? {
            match frame {
                Frame::Open { stream, headers, .. } => {
                    let kind = headers
                        .iter()
                        .find(|(name, _)| name.eq_ignore_ascii_case("streamtype"))
                        .and_then(|(_, kind)| expected.iter().find(|known| *known == kind))
                        .ok_or("the client opened a stream that it did not ask for")?;
                    send(frames, encoder.accept(stream)?).await;
                    streams.insert(kind, stream);
                }
                Frame::Ping { id } => send(frames, spdy::ping(id)).await,
                Frame::GoAway => return Err("the client left".into()),
                // Input that comes right behind its stream.
                other => early.push(other),
            }
        }
    }
    Ok(streams)
}

/// What the command is connected to, on our side.
struct Ends {
    /// Takes input; dropping it is its end.
    input: Option<mpsc::Sender<Vec<u8>>>,
    /// Tasks that carry output until its end.
    outputs: Vec<JoinHandle<()>>,
    /// The terminal's controlling side.
    terminal: Option<Arc<AsyncFd<OwnedFd>>>,
    /// What the command gets as stdin, stdout and stderr.
    given: [OwnedFd; 3],
}

async fn run<R: AsyncRead + Unpin + Send + 'static>(
    reader: R,
    decoder: Decoder,
    early: Vec<Frame>,
    options: &ExecOptions,
    target: &ExecTarget,
    streams: &Streams,
    frames: &mpsc::Sender<Vec<u8>>,
) {
    let outcome = async {
        let mut ends = if options.tty {
            terminal_ends(options, target, streams, frames).await?
        } else {
            pipe_ends(options, streams, frames)?
        };
        let spec = ExecSpec {
            container: target.container.clone(),
            arguments: options.command.clone(),
            terminal: options.tty,
            kill_on_close: true,
        };
        let given = [ends.given[0].as_fd(), ends.given[1].as_fd(), ends.given[2].as_fd()];
        let mut running = pause_client::execute(target.socket.clone(), &spec, given).await?;
        // From here on only the command holds its ends: their close is its end.
        drop(ends.given);
        let input = Input {
            streams: streams.clone(),
            frames: frames.clone(),
            sender: ends.input.take(),
            terminal: ends.terminal.clone(),
            resize: Vec::new(),
        };
        let mut incoming = tokio::spawn(input.read(reader, decoder, early));
        let code = tokio::select! {
            code = running.exit_code() => code,
            // A client that left wants nothing more: the command is killed with its connection.
            _ = &mut incoming => return Err("the client left".to_owned()),
        };
        let rest = Duration::from_millis(REST_OF_OUTPUT_MS);
        let _ = tokio::time::timeout(rest, async {
            for output in &mut ends.outputs {
                let _ = output.await;
            }
        })
        .await;
        for output in &ends.outputs {
            output.abort();
        }
        incoming.abort();
        code.ok_or_else(|| format!("container {} ended", target.container))
    };
    let status = match outcome.await {
        Ok(code) => exit_status(code, &options.command),
        Err(message) => failure_status(&message),
    };
    for kind in [STDOUT, STDERR] {
        if let Some(stream) = streams.get(kind) {
            send(frames, spdy::data(*stream, b"", true)).await;
        }
    }
    if let Some(stream) = streams.get(ERROR) {
        send(frames, spdy::data(*stream, status.to_string().as_bytes(), true)).await;
    }
    let last = streams.values().max().copied().unwrap_or(0);
    send(frames, spdy::go_away(last)).await;
}

/// The last word on the error stream: the client takes its own exit code from it.
fn exit_status(code: i32, command: &[String]) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!(
            "command terminated with non-zero exit code: error executing command {command:?}, \
             exit code {code}"
        ),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

fn failure_status(message: &str) -> Value {
    let message = format!("error executing command in container: {message}");
    json!({
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": "InternalError",
        "details": {"causes": [{"message": message}]},
        "code": 500,
    })
}

fn pipe_ends(
    options: &ExecOptions,
    streams: &Streams,
    frames: &mpsc::Sender<Vec<u8>>,
) -> Result<Ends, String> {
    let failed = |error: std::io::Error| error.to_string();
    let null = || -> Result<OwnedFd, String> {
        let mut open = std::fs::OpenOptions::new();
        Ok(open.read(true).write(true).open("/dev/null").map_err(failed)?.into())
    };
    let mut outputs = Vec::new();
    let mut output = |kind: &str| -> Result<OwnedFd, String> {
        let Some(stream) = streams.get(kind) else { return null() };
        let (sender, receiver) = pipe::pipe().map_err(failed)?;
        outputs.push(tokio::spawn(carry_output(receiver, *stream, frames.clone())));
        sender.into_blocking_fd().map_err(failed)
    };
    let (stdout, stderr) = (output(STDOUT)?, output(STDERR)?);
    let (stdin, input) = if options.stdin {
        let (writer, reader) = pipe::pipe().map_err(failed)?;
        let (sender, queue) = mpsc::channel(QUEUE);
        tokio::spawn(carry_input(writer, queue));
        (reader.into_blocking_fd().map_err(failed)?, Some(sender))
    } else {
        (null()?, None)
    };
    Ok(Ends { input, outputs, terminal: None, given: [stdin, stdout, stderr] })
}

/// A terminal of the container's own devpts: `tty` in the container names it right. Its path is
/// found through a process of the container, which the node's /proc shows.
async fn terminal_ends(
    options: &ExecOptions,
    target: &ExecTarget,
    streams: &Streams,
    frames: &mpsc::Sender<Vec<u8>>,
) -> Result<Ends, String> {
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |error: std::io::Error| format!("cannot open a terminal: {error}");
    let (reports, _) = pause_client::watch(&target.socket).await?;
    let pid = reports
        .iter()
        .find(|report| report.name == target.container && report.exit.is_none())
        .map(|report| report.pid)
        .ok_or_else(|| format!("container {} is not running", target.container))?;
    let controller: OwnedFd = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(format!("/proc/{pid}/root/dev/pts/ptmx"))
        .map_err(failed)?
        .into();
    let terminal = crate::sys::terminal_of(controller.as_fd()).map_err(failed)?;
    let copy = || terminal.try_clone().map_err(failed);
    let given = [copy()?, copy()?, copy()?];
    let controller = Arc::new(
        crate::sys::asynchronous(controller, Interest::READABLE | Interest::WRITABLE)
            .map_err(failed)?,
    );
    let mut outputs = Vec::new();
    if let Some(stream) = streams.get(STDOUT) {
        outputs.push(tokio::spawn(carry_terminal(controller.clone(), *stream, frames.clone())));
    }
    let input = options.stdin.then(|| {
        let (sender, queue) = mpsc::channel(QUEUE);
        tokio::spawn(type_input(controller.clone(), queue));
        sender
    });
    Ok(Ends { input, outputs, terminal: Some(controller), given })
}

async fn carry_output(mut from: pipe::Receiver, stream: u32, frames: mpsc::Sender<Vec<u8>>) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(count) = from.read(&mut buffer).await {
        if count == 0 || frames.send(spdy::data(stream, &buffer[..count], false)).await.is_err() {
            return;
        }
    }
}

async fn carry_input(mut to: pipe::Sender, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = queue.recv().await {
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn carry_terminal(from: Arc<AsyncFd<OwnedFd>>, stream: u32, frames: mpsc::Sender<Vec<u8>>) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let Ok(mut ready) = from.readable().await else { return };
        let read = ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), &mut buffer)?));
        match read {
            // A terminal that nobody holds open any more gives an error instead of an end.
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(count)) => {
                if frames.send(spdy::data(stream, &buffer[..count], false)).await.is_err() {
                    return;
                }
            }
            Err(_would_block) => {}
        }
    }
}

async fn type_input(to: Arc<AsyncFd<OwnedFd>>, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = queue.recv().await {
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let Ok(mut ready) = to.writable().await else { return };
            match ready.try_io(|fd| Ok(nix::unistd::write(fd.get_ref(), rest)?)) {
                Ok(Ok(count)) => rest = rest.get(count..).unwrap_or_default(),
                Ok(Err(_)) => return,
                Err(_would_block) => {}
            }
        }
    }
}

/// What the client sends.
struct Input {
    streams: Streams,
    frames: mpsc::Sender<Vec<u8>>,
    sender: Option<mpsc::Sender<Vec<u8>>>,
    terminal: Option<Arc<AsyncFd<OwnedFd>>>,
    resize: Vec<u8>,
}

impl Input {
    /// Returns when the client has left or broke the protocol.
    async fn read<R: AsyncRead + Unpin>(
        mut self,
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
            let Ok(frames) = decoder.feed(&buffer[..count]) else { return };
            for frame in frames {
                if !self.take(frame).await {
                    return;
                }
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> bool {
        match frame {
            Frame::Ping { id } => send(&self.frames, spdy::ping(id)).await,
            Frame::GoAway => return false,
            Frame::Data { stream, bytes, fin } if self.streams.get(STDIN) == Some(&stream) => {
                if let Some(sender) = &self.sender
                    && !bytes.is_empty()
                    && sender.send(bytes).await.is_err()
                {
                    self.sender = None; // The command reads no more.
                }
                if fin {
                    self.sender = None;
                }
            }
            Frame::Reset { stream } if self.streams.get(STDIN) == Some(&stream) => {
                self.sender = None;
            }
            Frame::Data { stream, bytes, .. } if self.streams.get(RESIZE) == Some(&stream) => {
                self.resized(&bytes);
            }
            Frame::Open { .. } | Frame::Data { .. } | Frame::Reset { .. } => {}
        }
        true
    }

    /// JSON documents, one behind the other.
    fn resized(&mut self, bytes: &[u8]) {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Size {
            width: u16,
            height: u16,
        }
        self.resize.extend_from_slice(bytes);
        let mut documents = serde_json::Deserializer::from_slice(&self.resize).into_iter::<Size>();
        let mut newest = None;
        let mut broken = false;
        for document in documents.by_ref() {
            match document {
                Ok(size) => newest = Some(size),
                Err(error) => {
                    broken = !error.is_eof();
                    break;
                }
            }
        }
        let taken = documents.byte_offset();
        self.resize.drain(..taken);
        if broken || self.resize.len() > MAX_RESIZE_BYTES {
            self.resize.clear();
        }
        if let (Some(size), Some(terminal)) = (newest, &self.terminal) {
            let fd = terminal.get_ref().as_fd();
            if let Err(error) = crate::sys::resize_terminal(fd, size.width, size.height) {
                tracing::debug!("terminal not resized: {error}");
            }
        }
    }
}

/// A writer that is gone ends the session elsewhere.
async fn send(frames: &mpsc::Sender<Vec<u8>>, frame: Vec<u8>) {
    let _ = frames.send(frame).await;
}
