//! Zones: from the agent over its socket, and from the file that keeps the newest one.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use dns::feed::{Decoder, FeedError};
use socket2::{Domain, SockAddr, Socket, Type};

/// The first wait before connecting to the agent again, in milliseconds; it doubles each time.
const MIN_BACK_OFF_MS: u64 = 20;
/// The longest wait, in milliseconds.
const MAX_BACK_OFF_MS: u64 = 1000;
/// The file is written at most once in this time, in milliseconds.
const FILE_INTERVAL_MS: u64 = 1000;
/// Bytes read from the agent at once.
const READ_BYTES: usize = 64 << 10;

/// The connection to the agent, made anew whenever it ends.
pub(crate) struct Feed {
    path: PathBuf,
    socket: Option<Socket>,
    decoder: Decoder,
    back_off_ms: u64,
    connect_at_ms: u64,
    was_connected: bool,
}

impl Feed {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            socket: None,
            decoder: Decoder::default(),
            back_off_ms: MIN_BACK_OFF_MS,
            connect_at_ms: 0,
            was_connected: true,
        }
    }

    /// When to call [`Feed::connect`], if the feed is not connected.
    pub(crate) fn next_deadline_ms(&self) -> Option<u64> {
        self.socket.is_none().then_some(self.connect_at_ms)
    }

    /// Connects when it is time. Returns the socket to watch when that was done now.
    pub(crate) fn connect(&mut self, now_ms: u64) -> Option<BorrowedFd<'_>> {
        if self.socket.is_some() || now_ms < self.connect_at_ms {
            return None;
        }
        match self.try_connect() {
            Ok(socket) => {
                self.was_connected = true;
                self.socket = Some(socket);
                self.socket.as_ref().map(AsFd::as_fd)
            }
            Err(error) => {
                // Once, not at every try.
                if std::mem::take(&mut self.was_connected) {
                    tracing::warn!(
                        "no zones from the agent at {}: {error}; the zone known so far is served",
                        self.path.display()
                    );
                }
                self.wait(now_ms);
                None
            }
        }
    }

    /// Reads what is there. Returns the JSON of the newest zone, if a whole one came.
    pub(crate) fn read(&mut self, now_ms: u64) -> Option<Vec<u8>> {
        let mut buffer = vec![0; READ_BYTES];
        let mut newest = None;
        while let Some(socket) = &mut self.socket {
            let taken: Result<usize> = match socket.read(&mut buffer) {
                Ok(0) => Err(anyhow::anyhow!("the agent closed the connection")),
                Ok(count) => Ok(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return newest,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => Err(error.into()),
            };
            let frame = taken.and_then(|count| {
                self.decoder.push(buffer.get(..count).unwrap_or_default());
                self.decoder.newest().map_err(|error: FeedError| error.into())
            });
            match frame {
                Ok(frame) => {
                    if frame.is_some() {
                        self.back_off_ms = MIN_BACK_OFF_MS;
                        newest = frame;
                    }
                }
                Err(error) => {
                    tracing::warn!("the feed of zones ended: {error}; connecting again");
                    self.socket = None;
                    self.wait(now_ms);
                }
            }
        }
        newest
    }

    fn try_connect(&mut self) -> io::Result<Socket> {
        self.decoder = Decoder::default();
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // A full queue at the agent must not stop the answers.
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(&self.path)?)?;
        Ok(socket)
    }

    fn wait(&mut self, now_ms: u64) {
        self.connect_at_ms = now_ms + self.back_off_ms;
        self.back_off_ms = (self.back_off_ms * 2).min(MAX_BACK_OFF_MS);
    }
}

/// The file with the newest zone. It is a cache: a damaged one is as good as none.
pub(crate) struct ZoneFile {
    path: PathBuf,
    waiting: Option<Vec<u8>>,
    write_at_ms: u64,
}

impl ZoneFile {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), waiting: None, write_at_ms: 0 }
    }

    /// The zone's JSON as it was kept, if there is one.
    pub(crate) fn load(&self) -> Option<Vec<u8>> {
        let file = std::fs::File::open(&self.path).ok()?;
        let mut json = Vec::new();
        let limit = dns::feed::MAX_FRAME_OCTETS as u64;
        file.take(limit).read_to_end(&mut json).ok()?;
        Some(json)
    }

    /// Keeps a zone, now or when the last write is long enough ago.
    pub(crate) fn keep(&mut self, json: Vec<u8>, now_ms: u64) {
        self.waiting = Some(json);
        self.write_when_due(now_ms);
    }

    /// When to call [`ZoneFile::write_when_due`], if something waits.
    pub(crate) fn next_deadline_ms(&self) -> Option<u64> {
        self.waiting.as_ref().map(|_| self.write_at_ms)
    }

    pub(crate) fn write_when_due(&mut self, now_ms: u64) {
        if now_ms < self.write_at_ms {
            return;
        }
        let Some(json) = self.waiting.take() else { return };
        self.write_at_ms = now_ms + FILE_INTERVAL_MS;
        if let Err(error) = replace(&self.path, &json) {
            tracing::warn!(
                "the zone cannot be kept in {}: {error}; a restarted worker will know no names \
                 until the agent runs",
                self.path.display()
            );
        }
    }
}

/// Makes the directory of the zone file, for its owner alone.
pub(crate) fn make_directory(directory: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .and_then(|()| std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700)))
        .with_context(|| format!("making the directory {}", directory.display()))
}

/// A reader finds the old or the new file, never a part.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(&temporary)?.write_all(content)?;
    std::fs::rename(&temporary, path)
}
