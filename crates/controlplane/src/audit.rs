//! The audit log: who asked for what, and what became of it. One line of JSON a request, an
//! audit.k8s.io/v1 Event of level Metadata, so that no body, and with it no secret, is ever in it.
//!
//! Source: kubernetes.io, "Auditing".

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use hyper::header::USER_AGENT;
use hyper::{HeaderMap, Method, Uri};
use model::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::tls::User;
use crate::writer::{SystemRandom, now};

/// Lines that wait for the disk. Further requests wait with their answers, as with the real
/// server's mode "blocking": what was done is never left out.
const QUEUE_LINES: usize = 4_096;
/// Longest text that a client chooses, such as the URI, in bytes; the rest is cut off.
const MAX_TEXT_BYTES: usize = 4_096;
/// Largest file, bytes, before another one is begun (the real server's `--audit-log-maxsize`).
pub const AUDIT_FILE_BYTES: u64 = 100 << 20;
/// Older files that are kept beside the one that is written.
pub const AUDIT_OLDER_FILES: usize = 4;

/// Where the audit log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditOptions {
    /// The file; older ones stand beside it, as `FILE.1`, `FILE.2`, …
    pub path: PathBuf,
    /// Its largest size, bytes.
    pub max_bytes: u64,
    /// How many older ones are kept.
    pub older_files: usize,
}

impl AuditOptions {
    /// A log of the usual size.
    pub fn new(path: PathBuf) -> Self {
        Self { path, max_bytes: AUDIT_FILE_BYTES, older_files: AUDIT_OLDER_FILES }
    }
}

/// Takes the lines of requests to the disk.
pub(crate) struct Audit(mpsc::Sender<Vec<u8>>);

impl Audit {
    /// Opens the log, for its owner alone, and starts its thread. It ends with the last line when
    /// the server does.
    ///
    /// # Errors
    /// When the file cannot be opened, or the system refuses a thread.
    pub fn start(options: AuditOptions) -> std::io::Result<Self> {
        let mut log = Log::open(options)?;
        let (queue, mut lines) = mpsc::channel::<Vec<u8>>(QUEUE_LINES);
        std::thread::Builder::new().name("audit-log".to_owned()).spawn(move || {
            let mut is_failing = false;
            while let Some(line) = lines.blocking_recv() {
                match log.write(&line) {
                    Ok(()) => is_failing = false,
                    Err(error) if !is_failing => {
                        is_failing = true;
                        tracing::error!(
                            %error, file = %log.options.path.display(),
                            "lines of the audit log are lost; is the disk full?"
                        );
                    }
                    Err(_) => {}
                }
            }
        })?;
        Ok(Self(queue))
    }

    /// Writes down what became of a request.
    pub async fn record(&self, entry: Entry, code: u16) {
        let mut line = entry.event(code, now()).to_string().into_bytes();
        line.push(b'\n');
        // The thread ends after the last sender, so somebody listens.
        let _ = self.0.send(line).await;
    }
}

/// The file that is written.
struct Log {
    options: AuditOptions,
    file: File,
    bytes: u64,
}

impl Log {
    fn open(options: AuditOptions) -> std::io::Result<Self> {
        let file = open(&options.path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { options, file, bytes })
    }

    fn write(&mut self, line: &[u8]) -> std::io::Result<()> {
        let length = u64::try_from(line.len()).unwrap_or(u64::MAX);
        if self.bytes > 0 && self.bytes.saturating_add(length) > self.options.max_bytes {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.bytes = self.bytes.saturating_add(length);
        Ok(())
    }

    /// Begins another file; the oldest goes.
    fn rotate(&mut self) -> std::io::Result<()> {
        let path = &self.options.path;
        for number in (1..self.options.older_files).rev() {
            let _ = std::fs::rename(older(path, number), older(path, number + 1));
        }
        match self.options.older_files {
            0 => std::fs::remove_file(path)?,
            _ => std::fs::rename(path, older(path, 1))?,
        }
        self.file = open(path)?;
        self.bytes = 0;
        Ok(())
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn older(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// What is known of a request by and by.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    id: String,
    received: Option<Timestamp>,
    uri: String,
    user_agent: String,
    source: Option<IpAddr>,
    /// The API's verb, or the method in lower case for a document.
    pub verb: String,
    /// Whose credentials the request shows.
    pub sender: Option<User>,
    /// In whose name it is, where not in the sender's.
    pub impersonated: Option<User>,
    /// What it is about; null for a document.
    pub object: Value,
    /// Whether its answer goes on after its head.
    pub is_stream: bool,
    /// What policies note of it.
    pub annotations: BTreeMap<String, String>,
}

impl Entry {
    /// Begins with what the head says.
    pub fn begin(method: &Method, uri: &Uri, headers: &HeaderMap, source: Option<IpAddr>) -> Self {
        let agent = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok());
        Self {
            id: store::names::uid(&mut SystemRandom),
            received: Some(now()),
            uri: cut(uri.path_and_query().map_or("", |uri| uri.as_str())),
            user_agent: cut(agent.unwrap_or_default()),
            source,
            verb: method.as_str().to_lowercase(),
            ..Self::default()
        }
    }

    fn event(self, code: u16, now: Timestamp) -> Value {
        let stage = if self.is_stream { "ResponseStarted" } else { "ResponseComplete" };
        let mut event = json!({
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": "Metadata",
            "auditID": self.id,
            "stage": stage,
            "requestURI": self.uri,
            "verb": self.verb,
            "user": self.sender.as_ref().map_or_else(|| json!({}), User::info),
            "sourceIPs": self.source.into_iter().collect::<Vec<_>>(),
            "userAgent": self.user_agent,
            "responseStatus": {"metadata": {}, "code": code},
            "requestReceivedTimestamp": self.received.unwrap_or(now).micro(),
            "stageTimestamp": now.micro(),
        });
        if let Some(impersonated) = &self.impersonated {
            event["impersonatedUser"] = impersonated.info();
        }
        if !self.annotations.is_empty() {
            event["annotations"] = json!(self.annotations);
        }
        if !self.object.is_null() {
            event["objectRef"] = self.object;
        }
        event
    }
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn files_are_bounded_in_size_and_number_and_for_their_owner_alone() {
        let directory = std::env::temp_dir().join(format!("flatnet-audit-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let path = directory.join("audit.log");
        let options = AuditOptions { path: path.clone(), max_bytes: 20, older_files: 2 };
        let mut log = Log::open(options.clone()).expect("a log");
        for line in ["first 9..\n", "second 9.\n", "third 9..\n", "fourth 9.\n", "fifth 9..\n"] {
            log.write(line.as_bytes()).expect("written");
        }
        // A restart goes on where the file ends.
        let mut log = Log::open(options).expect("a log");
        log.write(b"sixth 9..\n").expect("written");
        log.write(b"seventh..\n").expect("written");
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(read(&path), "seventh..\n");
        assert_eq!(read(&older(&path, 1)), "fifth 9..\nsixth 9..\n");
        assert_eq!(read(&older(&path, 2)), "third 9..\nfourth 9.\n");
        assert!(!older(&path, 3).exists());
        let mode = std::fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::remove_dir_all(&directory).expect("removed");
    }

    #[test]
    fn texts_of_clients_are_cut_between_characters() {
        assert_eq!(cut("abc"), "abc");
        assert_eq!(cut(&"é".repeat(MAX_TEXT_BYTES)).len(), MAX_TEXT_BYTES);
        assert_eq!(cut(&format!("a{}", "é".repeat(MAX_TEXT_BYTES))).len(), MAX_TEXT_BYTES - 1);
    }
}
