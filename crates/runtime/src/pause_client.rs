//! The runtime's side of a pause process.

use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use pause::{ContainerReport, ExecSpec, MAX_MESSAGE_BYTES, Request, Response};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Longest wait for the answer to a request, seconds: a start mounts and executes, nothing more.
const ANSWER_TIMEOUT_S: u64 = 20;
/// Longest blocking write of a command with its descriptors, seconds. It is smaller than the
/// socket's buffer in all but strange cases.
const WRITE_TIMEOUT_S: u64 = 5;
/// Bytes of reading ahead.
const READ_BYTES: usize = 1024;

/// One connection.
pub struct Connection {
    stream: BufReader<UnixStream>,
}

/// A command that runs in a container.
pub struct RunningCommand {
    connection: Connection,
}

/// What an attached client asks of its container beside input.
pub struct Control {
    writer: UnixStream,
}

impl Connection {
    /// Connects to the pause process at a socket.
    ///
    /// # Errors
    /// There is no such process any more.
    pub async fn open(socket: &Path) -> Result<Self, String> {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|error| format!("the pod's sandbox is not running: {error}"))?;
        Ok(Self { stream: BufReader::with_capacity(READ_BYTES, stream) })
    }

    /// The process id of the pause process.
    pub fn peer(&self) -> Option<i32> {
        self.stream.get_ref().peer_cred().ok()?.pid()
    }

    /// Asks for something and waits for the answer.
    ///
    /// # Errors
    /// The process's refusal, or that it is gone.
    pub async fn ask(&mut self, request: &Request) -> Result<Response, String> {
        let mut text = serde_json::to_vec(request).map_err(|error| error.to_string())?;
        text.push(b'\n');
        if text.len() > MAX_MESSAGE_BYTES {
            return Err(format!("the request is larger than {MAX_MESSAGE_BYTES} bytes"));
        }
        self.stream.get_mut().write_all(&text).await.map_err(|error| error.to_string())?;
        self.answer().await
    }

    /// The next message on a connection that watches; `None` when the process is gone.
    pub async fn next(&mut self) -> Option<Response> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(MAX_MESSAGE_BYTES as u64);
        match limited.read_until(b'\n', &mut line).await {
            Ok(count) if count > 0 => serde_json::from_slice(&line).ok(),
            _ => None,
        }
    }

    async fn answer(&mut self) -> Result<Response, String> {
        let timeout = Duration::from_secs(ANSWER_TIMEOUT_S);
        match tokio::time::timeout(timeout, self.next()).await {
            Ok(Some(Response::Failed { message })) => Err(message),
            Ok(Some(response)) => Ok(response),
            Ok(None) => Err("the pod's sandbox ended".into()),
            Err(_) => Err(format!("the pod's sandbox did not answer within {ANSWER_TIMEOUT_S} s")),
        }
    }
}

/// Asks one thing on a connection of its own.
///
/// # Errors
/// See [`Connection::ask`].
pub async fn ask(socket: &Path, request: &Request) -> Result<Response, String> {
    Connection::open(socket).await?.ask(request).await
}

/// Starts to follow a sandbox: what it holds now, and the connection that tells of every end.
///
/// # Errors
/// The process is gone.
pub async fn watch(socket: &Path) -> Result<(Vec<ContainerReport>, Connection), String> {
    let mut connection = Connection::open(socket).await?;
    match connection.ask(&Request::Watch).await? {
        Response::Containers(reports) => Ok((reports, connection)),
        other => Err(format!("the pod's sandbox gave a strange answer: {other:?}")),
    }
}

/// Runs a command in a container, on the given stdin, stdout and stderr.
///
/// # Errors
/// The command cannot be executed, or the container does not run.
pub async fn execute(
    socket: &Path,
    spec: &ExecSpec,
    streams: [BorrowedFd<'_>; 3],
) -> Result<RunningCommand, String> {
    let mut connection = open_with(socket, &Request::Exec(spec.clone()), streams)?;
    match connection.answer().await? {
        Response::Started { .. } => Ok(RunningCommand { connection }),
        other => Err(format!("the pod's sandbox gave a strange answer: {other:?}")),
    }
}

/// Joins a container's streams: input is taken from the first of the given, output and errors go to
/// the others. Lasts until both results are dropped.
///
/// # Errors
/// The container does not run.
pub async fn attach(
    socket: &Path,
    container: &str,
    streams: [BorrowedFd<'_>; 3],
) -> Result<(RunningCommand, Control), String> {
    let request = Request::Attach { container: container.to_owned() };
    let mut connection = open_with(socket, &request, streams)?;
    match connection.answer().await? {
        Response::Done => {}
        other => return Err(format!("the pod's sandbox gave a strange answer: {other:?}")),
    }
    let failed = |error: std::io::Error| format!("cannot copy a descriptor: {error}");
    let copy = connection.stream.get_ref().as_fd().try_clone_to_owned().map_err(failed)?;
    let writer = UnixStream::from_std(copy.into()).map_err(failed)?;
    Ok((RunningCommand { connection }, Control { writer }))
}

impl RunningCommand {
    /// Waits for the end of the command, or of the container that is attached; `None` when its sandbox ended first.
    pub async fn exit_code(&mut self) -> Option<i32> {
        loop {
            match self.connection.next().await? {
                Response::Exited { code } => return Some(code),
                _ => continue,
            }
        }
    }
}

impl Control {
    /// The client's input ends once all that is in its pipe is read.
    pub async fn end_input(&mut self) {
        self.tell(&Request::EndInput).await;
    }

    /// Tells the programs on the container's terminal its size.
    pub async fn resize(&mut self, columns: u16, rows: u16) {
        self.tell(&Request::Resize { columns, rows }).await;
    }

    /// The answer comes to the other half, and changes nothing.
    async fn tell(&mut self, request: &Request) {
        let Ok(mut text) = serde_json::to_vec(request) else { return };
        text.push(b'\n');
        if let Err(error) = self.writer.write_all(&text).await {
            tracing::debug!("a container's sandbox is not told: {error}");
        }
    }
}

/// A connection whose first request has descriptors beside it.
fn open_with(
    socket: &Path,
    request: &Request,
    streams: [BorrowedFd<'_>; 3],
) -> Result<Connection, String> {
    let mut text = serde_json::to_vec(request).map_err(|error| error.to_string())?;
    text.push(b'\n');
    let stream = send_with_descriptors(socket, &text, streams)
        .map_err(|error| format!("the pod's sandbox is not running: {error}"))?;
    let stream = UnixStream::from_std(stream).map_err(|error| error.to_string())?;
    Ok(Connection { stream: BufReader::with_capacity(READ_BYTES, stream) })
}

fn send_with_descriptors(
    socket: &Path,
    text: &[u8],
    streams: [BorrowedFd<'_>; 3],
) -> std::io::Result<std::os::unix::net::UnixStream> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(Duration::from_secs(WRITE_TIMEOUT_S)))?;
    let raw = streams.map(|stream| stream.as_raw_fd());
    let sent = sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(text)],
        &[ControlMessage::ScmRights(&raw)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    stream.write_all(text.get(sent..).unwrap_or_default())?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Kills a sandbox's pause process, and with it every process of the pod, and waits for its end.
///
/// # Errors
/// It did not end.
pub async fn kill(socket: &Path) -> Result<(), String> {
    let Ok(connection) = Connection::open(socket).await else { return Ok(()) };
    let Some(pid) = connection.peer() else { return Ok(()) };
    let pidfd: OwnedFd = match crate::sys::pidfd_open(pid) {
        Ok(pidfd) => pidfd,
        Err(_) => return Ok(()), // Ended since.
    };
    crate::sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL)
        .or_else(
            |error| if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) },
        )
        .map_err(|error| format!("cannot end the sandbox's process {pid}: {error}"))?;
    let ended = crate::sys::asynchronous(pidfd, tokio::io::Interest::READABLE)
        .map_err(|error| error.to_string())?;
    let timeout = Duration::from_secs(ANSWER_TIMEOUT_S);
    match tokio::time::timeout(timeout, ended.readable()).await {
        Ok(_) => Ok(()),
        Err(_) => {
            Err(format!("the sandbox's process {pid} did not end within {ANSWER_TIMEOUT_S} s"))
        }
    }
}
