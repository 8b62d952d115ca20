//! Pipes between a session and what runs in a container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::channels::{Channel, Output};
use super::{CHUNK_BYTES, QUEUE};

/// What a session is connected to.
pub struct Ends {
    /// Takes input.
    pub input: Option<Input>,
    /// Tasks that carry output until its end.
    pub outputs: Vec<JoinHandle<()>>,
    /// The other ends: stdin, stdout and stderr.
    pub given: [OwnedFd; 3],
}

/// The way in. Dropping it is the end of input.
pub struct Input {
    pub(super) queue: mpsc::Sender<Vec<u8>>,
    /// Ends once all of the queue is written.
    pub(super) task: JoinHandle<()>,
}

/// Pipes for what the client sends, where it does, and for the channels that it wants.
///
/// # Errors
/// There are no descriptors left.
pub fn ends(stdin: bool, to_client: &Output) -> Result<Ends, String> {
    let failed = |error: std::io::Error| error.to_string();
    let null = || -> Result<OwnedFd, String> {
        let mut open = std::fs::OpenOptions::new();
        Ok(open.read(true).write(true).open("/dev/null").map_err(failed)?.into())
    };
    let mut outputs = Vec::new();
    let mut output = |channel: Channel| -> Result<OwnedFd, String> {
        if !to_client.has(channel) {
            return null();
        }
        let (sender, receiver) = pipe::pipe().map_err(failed)?;
        outputs.push(tokio::spawn(carry_output(receiver, channel, to_client.clone())));
        sender.into_blocking_fd().map_err(failed)
    };
    let (stdout, stderr) = (output(Channel::Stdout)?, output(Channel::Stderr)?);
    let (stdin, input) = if stdin {
        let (writer, reader) = pipe::pipe().map_err(failed)?;
        let (queue, pieces) = mpsc::channel(QUEUE);
        let task = tokio::spawn(carry_input(writer, pieces));
        (reader.into_blocking_fd().map_err(failed)?, Some(Input { queue, task }))
    } else {
        (null()?, None)
    };
    Ok(Ends { input, outputs, given: [stdin, stdout, stderr] })
}

impl Ends {
    /// The other ends, to be passed on.
    pub fn given(&self) -> [BorrowedFd<'_>; 3] {
        let [stdin, stdout, stderr] = &self.given;
        [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]
    }
}

async fn carry_output(mut from: pipe::Receiver, channel: Channel, to: Output) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if !to.send(channel, buffer.get(..count).unwrap_or_default()).await {
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
