//! The zone: from the agent over its socket, and from the file that keeps it.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use dns::Index;
use dns::feed::{Exposure, Follower, News, Place, Plain, Received};
use socket2::{Domain, SockAddr, Socket, Type};

/// The first wait before connecting to the agent again, in milliseconds; it doubles each time.
const MIN_BACK_OFF_MS: u64 = 20;
/// The longest wait, in milliseconds.
const MAX_BACK_OFF_MS: u64 = 1000;
/// Changes in the file are as many octets as its snapshot, or as these, before it is made anew.
const MIN_APPENDED_OCTETS: u64 = 1 << 20;
/// The largest file that is read, in octets: ten times a zone of 100,000 endpoints.
const MAX_FILE_OCTETS: u64 = 128 << 20;
/// Bytes read from the agent at once.
const READ_BYTES: usize = 64 << 10;

/// The connection to the agent, made anew whenever it ends.
pub(crate) struct Feed {
    path: PathBuf,
    socket: Option<Socket>,
    /// The choice of names that zones must be made by.
    wanted: Exposure,
    follower: Follower,
    /// Whether the agent was told on this connection how questions are answered.
    has_said: bool,
    back_off_ms: u64,
    connect_at_ms: u64,
    was_connected: bool,
}

impl Feed {
    pub(crate) fn new(path: &Path, wanted: Exposure) -> Self {
        Self {
            path: path.to_owned(),
            socket: None,
            follower: Follower::default(),
            wanted,
            has_said: false,
            back_off_ms: MIN_BACK_OFF_MS,
            connect_at_ms: 0,
            was_connected: true,
        }
    }

    /// When to call [`Feed::connect`], if the feed is not connected.
    pub(crate) fn next_deadline_ms(&self) -> Option<u64> {
        self.socket.is_none().then_some(self.connect_at_ms)
    }

    /// Connects when it is time.
    pub(crate) fn connect(&mut self, now_ms: u64) {
        if self.socket.is_some() || now_ms < self.connect_at_ms {
            return;
        }
        match self.try_connect() {
            Ok(socket) => {
                self.was_connected = true;
                self.socket = Some(socket);
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
            }
        }
    }

    /// From the next zone on, another choice of names counts.
    pub(crate) fn want(&mut self, wanted: Exposure) {
        self.follower.want(wanted.clone());
        self.wanted = wanted;
    }

    /// Whether the agent was told on this connection how questions are answered.
    pub(crate) fn has_said(&self) -> bool {
        self.has_said
    }

    /// Tells the agent how plain questions are answered, where it is connected.
    pub(crate) fn say(&mut self, plain: &Plain, now_ms: u64) {
        let Some(socket) = &mut self.socket else { return };
        self.has_said = true;
        let written = plain.encode().map_err(io::Error::other).and_then(|octets| {
            // The agent reads what it is told; no more than this ever waits for it.
            if socket.write(&octets)? == octets.len() {
                return Ok(());
            }
            Err(io::Error::other("it reads too slowly"))
        });
        if let Err(error) = written {
            tracing::warn!("the agent cannot be told how questions are answered: {error}");
            self.disconnect(now_ms);
        }
    }

    /// The socket to watch, if there is a connection.
    pub(crate) fn socket(&self) -> Option<&Socket> {
        self.socket.as_ref()
    }

    /// The next frame that came, if a whole one did.
    pub(crate) fn next(&mut self, now_ms: u64) -> Option<Received> {
        let mut buffer = [0; READ_BYTES];
        while let Some(socket) = &mut self.socket {
            let error = match self.follower.next_frame() {
                Ok(Some(received)) => {
                    self.back_off_ms = MIN_BACK_OFF_MS;
                    return Some(received);
                }
                Ok(None) => match socket.read(&mut buffer) {
                    Ok(0) => anyhow::anyhow!("the agent closed the connection"),
                    Ok(count) => {
                        self.follower.push(buffer.get(..count).unwrap_or_default());
                        continue;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => error.into(),
                },
                Err(error) => error.into(),
            };
            tracing::warn!("the feed of the zone ended: {error}; connecting again");
            self.disconnect(now_ms);
        }
        None
    }

    /// Ends the connection; the next one begins with a snapshot.
    pub(crate) fn disconnect(&mut self, now_ms: u64) {
        self.socket = None;
        self.wait(now_ms);
    }

    fn try_connect(&mut self) -> io::Result<Socket> {
        self.follower = Follower::new(self.wanted.clone());
        self.has_said = false;
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

/// The file with the newest zone: the frames of the feed as they came, a snapshot and the changes
/// behind it. It is a cache: of a damaged one, what is whole counts.
pub(crate) struct ZoneFile {
    path: PathBuf,
    /// The snapshot that is coming, beside the file.
    coming: Option<File>,
    /// The file, when changes can be added to it.
    present: Option<File>,
    snapshot_octets: u64,
    appended_octets: u64,
}

impl ZoneFile {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            coming: None,
            present: None,
            snapshot_octets: 0,
            appended_octets: 0,
        }
    }

    /// The zone as it was kept, if there is one that was made by this choice of names.
    pub(crate) fn load(&self, wanted: &Exposure) -> Option<Index> {
        let mut file = File::open(&self.path).ok()?.take(MAX_FILE_OCTETS);
        let mut follower = Follower::new(wanted.clone());
        let mut kept: Option<Index> = None;
        let mut buffer = [0; READ_BYTES];
        loop {
            match follower.next_frame() {
                Ok(Some(received)) => {
                    if let Some(news) = received.news {
                        drop(take(news, &mut kept));
                    }
                }
                Ok(None) => match file.read(&mut buffer) {
                    Ok(count) if count > 0 => {
                        follower.push(buffer.get(..count).unwrap_or_default());
                    }
                    _ => return kept,
                },
                Err(error) => {
                    tracing::warn!(
                        "{}: {error}; what stands before it counts",
                        self.path.display()
                    );
                    return kept;
                }
            }
        }
    }

    /// Keeps a frame. Returns whether changes are so many that a snapshot is worth it.
    pub(crate) fn keep(&mut self, received: &Received) -> bool {
        if let Err(error) = self.write(received) {
            tracing::warn!(
                "the zone cannot be kept in {}: {error}; a restarted worker will know names of \
                 long ago, or none, until the agent runs",
                self.path.display()
            );
            (self.coming, self.present) = (None, None);
        }
        self.appended_octets > self.snapshot_octets.max(MIN_APPENDED_OCTETS)
    }

    fn write(&mut self, received: &Received) -> io::Result<()> {
        let octets = received.frame.len() as u64;
        if received.place == Place::PassedOver {
            return Ok(());
        }
        if received.place == Place::Begin {
            self.coming = Some(make(&self.path.with_extension("new"))?);
            self.snapshot_octets = 0;
        }
        if received.place == Place::Behind {
            self.appended_octets += octets;
            let Some(file) = &mut self.present else { return Ok(()) };
            return file.write_all(&received.frame);
        }
        self.snapshot_octets += octets;
        let Some(file) = &mut self.coming else { return Ok(()) };
        file.write_all(&received.frame)?;
        if received.place == Place::End {
            // A reader finds the old or the new file, never a part.
            std::fs::rename(self.path.with_extension("new"), &self.path)?;
            self.present = self.coming.take();
            self.appended_octets = 0;
        }
        Ok(())
    }
}

/// Takes news into a zone. Changes need one that they are changes of. Answers a zone whose place was
/// taken: to drop a large one takes long.
pub(crate) fn take(news: News, index: &mut Option<Index>) -> Option<Index> {
    match (news, index) {
        (News::Zone(zone), index) => return index.replace(*zone),
        (News::Changes { serial, changes, .. }, Some(index)) => {
            changes.into_iter().for_each(|change| index.apply(change));
            index.set_serial(serial);
        }
        (News::Changes { .. }, None) | (News::Other(_), _) => {}
    }
    None
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

/// A new file for its owner alone, in place of what a killed worker left.
fn make(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use dns::feed::{Change, Publisher, Reader, Settings};
    use model::NamespacedName;
    use plan::zone::ServiceRecords;

    use super::*;

    fn change(last: u8) -> Change {
        let addresses = vec![IpAddr::from([10, 96, 0, last])];
        let records = ServiceRecords::ClusterIp { addresses, ports: vec![] };
        Change::of_service(&NamespacedName::new("shop", format!("s{last}")), Some(&records))
    }

    /// A worker that was killed while it added a change to the file, and that no agent feeds,
    /// answers by all changes that are whole.
    #[test]
    fn the_file_gives_the_snapshot_and_the_changes_that_are_whole() {
        let directory = std::env::temp_dir().join(format!("flatnet-zone-{}", std::process::id()));
        make_directory(&directory).expect("a directory");
        let path = directory.join("zone.json");
        let (mut publisher, mut file) =
            (Publisher::new(Settings::default(), 1), ZoneFile::new(&path));
        publisher.publish([change(1)], 0).expect("fits");
        let mut reader = Reader::default();
        let mut frames = vec![];
        for published in [None, Some(2), Some(3)] {
            publisher.publish(published.map(change), 0).expect("fits");
            while let Some(frame) = publisher.next_frame(&mut reader) {
                frames.push(frame.expect("fits"));
            }
        }
        let mut follower = Follower::default();
        let mut kept = vec![];
        for frame in &frames {
            follower.push(frame);
            while let Some(received) = follower.next_frame().expect("a good stream") {
                assert!(!file.keep(&received), "a snapshot is not worth it yet");
                kept.push(file.load(&Exposure::default()).map(|index| index.services()));
            }
        }
        assert_eq!(kept, [None, None, Some(1), Some(2), Some(3)]);
        let content = std::fs::read(&path).expect("the file");
        std::fs::write(&path, content.get(..content.len() - 1).expect("octets")).expect("writes");
        let cut = file.load(&Exposure::default()).map(|index| index.services());
        std::fs::remove_dir_all(&directory).expect("removes");
        assert_eq!(cut, Some(2));
    }
}
