//! A container's log file, in the CRI format: `TIME STREAM TAG CONTENT` a line, where the tag is
//! `F` for a whole line and `P` for a part of one that goes on.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use crate::clock::Time;

/// A longer line is written in parts, as containerd and CRI-O do.
pub const LINE_LIMIT_BYTES: usize = 16 * 1024;

/// The output streams of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// An open log file with what is not yet a whole line of each stream.
pub struct Log {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    limit_bytes: u64,
    pending: [Vec<u8>; 2],
}

impl Log {
    /// Opens a log for appending.
    pub fn open(path: PathBuf, limit_bytes: u64) -> io::Result<Self> {
        let file = append_to(&path)?;
        let size_bytes = file.metadata()?.len();
        Ok(Self { path, file, size_bytes, limit_bytes, pending: Default::default() })
    }

    /// Takes output as it was read. A full disk loses lines, never the container.
    pub fn write(&mut self, stream: Stream, mut bytes: &[u8], now: Time) {
        let mut pending = std::mem::take(&mut self.pending[stream as usize]);
        while !bytes.is_empty() {
            let room = LINE_LIMIT_BYTES - pending.len();
            let end = bytes.iter().take(room).position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(room.min(bytes.len()));
            pending.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken + usize::from(end.is_some())..];
            if end.is_some() || pending.len() == LINE_LIMIT_BYTES {
                self.line(stream, if end.is_some() { b'F' } else { b'P' }, &pending, now);
                pending.clear();
            }
        }
        if pending.is_empty() {
            pending = Vec::new(); // Give a long line's memory back.
        }
        self.pending[stream as usize] = pending;
    }

    /// Writes what is left without a line end: the container has ended.
    pub fn finish(&mut self, now: Time) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = std::mem::take(&mut self.pending[stream as usize]);
            if !rest.is_empty() {
                self.line(stream, b'F', &rest, now);
            }
        }
    }

    fn line(&mut self, stream: Stream, tag: u8, content: &[u8], now: Time) {
        let mut record = format!("{now} {} {} ", stream.name(), char::from(tag)).into_bytes();
        record.extend_from_slice(content);
        record.push(b'\n');
        if self.size_bytes > 0 && self.size_bytes + record.len() as u64 > self.limit_bytes {
            self.rotate();
        }
        if self.file.write_all(&record).is_ok() {
            self.size_bytes += record.len() as u64;
        }
    }

    /// Keeps one older file, so that a container holds at most twice the limit on disk.
    fn rotate(&mut self) {
        let mut older = self.path.clone().into_os_string();
        older.push(".1");
        if std::fs::rename(&self.path, older).is_ok()
            && let Ok(file) = append_to(&self.path)
        {
            self.file = file;
            self.size_bytes = 0;
        }
    }
}

fn append_to(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("pause-log-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a scratch directory");
        path
    }

    fn contents(path: &PathBuf) -> Vec<String> {
        let text = std::fs::read_to_string(path).expect("a log");
        text.lines()
            .map(|line| line.split_once(' ').map_or("", |(_, rest)| rest).to_owned())
            .collect()
    }

    #[test]
    fn lines_are_whole_however_the_output_was_cut() {
        let directory = scratch("lines");
        let path = directory.join("0.log");
        let mut log = Log::open(path.clone(), 1 << 20).expect("a log");
        log.write(Stream::Stdout, b"one\ntw", Time::now());
        log.write(Stream::Stderr, b"bad\n", Time::now());
        log.write(Stream::Stdout, b"o\n\nrest", Time::now());
        log.finish(Time::now());
        let expected =
            ["stdout F one", "stderr F bad", "stdout F two", "stdout F ", "stdout F rest"];
        assert_eq!(contents(&path), expected);
        std::fs::remove_dir_all(directory).expect("removed");
    }

    #[test]
    fn a_long_line_is_cut_into_parts_that_join_again() {
        let directory = scratch("long");
        let path = directory.join("0.log");
        let mut log = Log::open(path.clone(), 1 << 20).expect("a log");
        let mut line = vec![b'x'; LINE_LIMIT_BYTES + 5];
        line.push(b'\n');
        log.write(Stream::Stdout, &line, Time::now());
        let lines = contents(&path);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].len(), "stdout P ".len() + LINE_LIMIT_BYTES);
        assert_eq!(lines[1], "stdout F xxxxx");
        std::fs::remove_dir_all(directory).expect("removed");
    }

    #[test]
    fn a_full_log_is_moved_aside_once() {
        let directory = scratch("rotate");
        let path = directory.join("0.log");
        let mut log = Log::open(path.clone(), 1000).expect("a log");
        for number in 0..100 {
            log.write(Stream::Stdout, format!("line {number}\n").as_bytes(), Time::now());
        }
        let older = contents(&directory.join("0.log.1"));
        let newer = contents(&path);
        assert_eq!(newer.last().map(String::as_str), Some("stdout F line 99"));
        let joined: Vec<String> = older.into_iter().chain(newer).collect();
        let first: usize = joined[0].rsplit(' ').next().and_then(|n| n.parse().ok()).expect("n");
        assert_eq!(joined.len(), 100 - first, "the two files hold the end without a gap");
        assert_eq!(std::fs::read_dir(&directory).expect("a directory").count(), 2);
        std::fs::remove_dir_all(directory).expect("removed");
    }
}
