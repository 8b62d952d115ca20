//! Reads container logs, which the pause process writes in the CRI format, for `kubectl logs`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::body::Bytes;
use model::Timestamp;
use tokio::sync::mpsc;

/// Bytes read, and sent, at a time.
const CHUNK_BYTES: usize = 32 * 1024;
/// Chunks that wait for a slow reader.
pub const QUEUE: usize = 4;
/// Time between two looks for more of a followed log, milliseconds.
const FOLLOW_MS: u64 = 100;
/// A line of the CRI format is never longer than this, bytes: 16 KiB of content and its head.
const MAX_LINE_BYTES: usize = 20 * 1024;

/// What of a log to send: the options of `PodLogOptions`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on with what is written later, until the container ends.
    pub follow: bool,
    /// Only this many lines from the end.
    pub tail_lines: Option<usize>,
    /// Only lines written since.
    pub since: Option<Timestamp>,
    /// Put the time before each line.
    pub timestamps: bool,
    /// Stop after this many bytes.
    pub limit_bytes: Option<usize>,
}

/// Sends a log. `is_running` says whether more may come.
pub async fn send(
    path: PathBuf,
    options: LogOptions,
    is_running: impl Fn() -> bool,
    sender: mpsc::Sender<Bytes>,
) {
    let mut filter = Filter { left: options.limit_bytes, options: options.clone() };
    let mut reader = Reader::new(path);
    if let Some(lines) = options.tail_lines {
        reader.skip_to_tail(lines);
    }
    loop {
        // Asked before reading: what was written before the end is then read.
        let running = is_running();
        let lines = reader.read();
        if lines.is_empty() {
            if !options.follow || !running {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(FOLLOW_MS)) => continue,
                () = sender.closed() => return,
            }
        }
        let text = filter.apply(&lines);
        if !text.is_empty() && sender.send(text.into()).await.is_err() {
            return;
        }
        if filter.left == Some(0) {
            return;
        }
    }
}

/// The end of a log that is written no more: of so many lines at most the last `bytes`.
pub fn end(path: PathBuf, lines: usize, bytes: usize) -> Vec<u8> {
    let mut reader = Reader::new(path);
    reader.skip_to_tail(lines);
    let mut filter = Filter { left: None, options: LogOptions::default() };
    let mut text = Vec::new();
    loop {
        let lines = reader.read();
        if lines.is_empty() {
            return text;
        }
        text.extend(filter.apply(&lines));
        text.drain(..text.len().saturating_sub(bytes));
    }
}

/// Reads whole lines, first of the older file, then of the newer, and follows rotation.
struct Reader {
    path: PathBuf,
    /// Files still to be read, the first of them open.
    file: Option<File>,
    next: Vec<PathBuf>,
    rest: Vec<u8>,
}

impl Reader {
    fn new(path: PathBuf) -> Self {
        Self { file: None, next: vec![older(&path), path.clone()], path, rest: Vec::new() }
    }

    /// Whole lines; nothing when there are none now.
    fn read(&mut self) -> Vec<u8> {
        loop {
            if self.file.is_none() {
                if self.next.is_empty() {
                    self.next.push(self.path.clone());
                }
                match File::open(&self.next[0]) {
                    Ok(file) => {
                        self.next.remove(0);
                        self.file = Some(file);
                    }
                    // The older file is mostly not there.
                    Err(_) if self.next.len() > 1 => {
                        self.next.remove(0);
                        continue;
                    }
                    Err(_) => return Vec::new(),
                }
            }
            let Some(file) = &mut self.file else { return Vec::new() };
            let mut chunk = vec![0; CHUNK_BYTES];
            let count = file.read(&mut chunk).unwrap_or(0);
            self.rest.extend_from_slice(&chunk[..count]);
            if count == 0 {
                if self.next.is_empty() && !self.was_rotated() {
                    return Vec::new();
                }
                self.file = None;
                continue;
            }
            let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            if end > 0 {
                return self.rest.drain(..end).collect();
            }
            if self.rest.len() > MAX_LINE_BYTES {
                self.rest.clear(); // Not a log of ours.
            }
        }
    }

    fn was_rotated(&self) -> bool {
        let open = self.file.as_ref().and_then(|file| file.metadata().ok());
        let named = std::fs::metadata(&self.path).ok();
        open.zip(named).is_some_and(|(open, named)| open.ino() != named.ino())
    }

    /// Leaves out all but the last lines of both files together.
    fn skip_to_tail(&mut self, lines: usize) {
        let mut missing = lines;
        let mut from = Vec::new();
        for path in self.next.iter().rev() {
            let Ok(mut file) = File::open(path) else { continue };
            let Ok((at, found)) = find_tail(&mut file, missing) else { continue };
            if file.seek(SeekFrom::Start(at)).is_err() {
                continue;
            }
            from.push(file);
            missing -= found.min(missing);
            if missing == 0 {
                break;
            }
        }
        // Of two files the older is read first; the newer is opened again after it.
        match (from.len(), from.pop()) {
            (1, Some(newest)) => {
                self.next.clear();
                self.file = Some(newest);
            }
            (2, Some(oldest)) => {
                self.next = vec![self.path.clone()];
                self.file = Some(oldest);
            }
            _ => {}
        }
    }
}

/// Where the last `lines` lines of a file begin, and how many there are.
fn find_tail(file: &mut File, lines: usize) -> io::Result<(u64, usize)> {
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut found = 0;
    let mut chunk = vec![0; CHUNK_BYTES];
    while end > 0 {
        let size = (CHUNK_BYTES as u64).min(end) as usize;
        let start = end - size as u64;
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut chunk[..size])?;
        for at in (0..size).rev() {
            if chunk[at] == b'\n' {
                // Each line ends in one: the one before the wanted lines is one more.
                if found == lines {
                    return Ok((start + at as u64 + 1, found));
                }
                found += 1;
            }
        }
        end = start;
    }
    Ok((0, found))
}

fn older(path: &Path) -> PathBuf {
    let mut older = path.as_os_str().to_owned();
    older.push(".1");
    older.into()
}

/// Turns lines of the CRI format into what the user sees.
struct Filter {
    options: LogOptions,
    left: Option<usize>,
}

impl Filter {
    fn apply(&mut self, lines: &[u8]) -> Vec<u8> {
        let mut text = Vec::with_capacity(lines.len());
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let mut fields = line.splitn(4, |byte| *byte == b' ');
            let (Some(time), Some(_stream), Some(tag), Some(content)) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            if let Some(since) = self.options.since {
                let time = std::str::from_utf8(time).ok().and_then(Timestamp::parse);
                if time.is_none_or(|time| time < since) {
                    continue;
                }
            }
            if self.options.timestamps {
                text.extend_from_slice(time);
                text.push(b' ');
            }
            text.extend_from_slice(content);
            if tag == b"F" {
                text.push(b'\n');
            }
        }
        if let Some(left) = &mut self.left {
            text.truncate(*left);
            *left -= text.len();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("logs-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).expect("a scratch directory");
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn line(second: u32, tag: char, text: &str) -> String {
        format!("2026-01-01T00:00:{second:02}.000000000Z stdout {tag} {text}\n")
    }

    fn collect(path: &Path, options: LogOptions) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let (sender, mut receiver) = mpsc::channel(QUEUE);
            tokio::spawn(send(path.to_owned(), options, || false, sender));
            let mut text = Vec::new();
            while let Some(bytes) = receiver.recv().await {
                text.extend_from_slice(&bytes);
            }
            String::from_utf8_lossy(&text).into_owned()
        })
    }

    #[test]
    fn every_option_selects_what_it_says() {
        let scratch = Scratch::new("options");
        let path = scratch.0.join("0.log");
        let older_text = line(1, 'F', "one") + &line(2, 'F', "two");
        fs::write(older(&path), older_text).expect("written");
        let newer = line(3, 'P', "thr") + &line(3, 'F', "ee") + &line(4, 'F', "four");
        fs::write(&path, newer).expect("written");
        let options = LogOptions::default;
        let cases = [
            (options(), "one\ntwo\nthree\nfour\n"),
            (LogOptions { tail_lines: Some(1), ..options() }, "four\n"),
            (LogOptions { tail_lines: Some(4), ..options() }, "two\nthree\nfour\n"),
            (LogOptions { tail_lines: Some(0), ..options() }, ""),
            (LogOptions { tail_lines: Some(99), ..options() }, "one\ntwo\nthree\nfour\n"),
            (LogOptions { since: Timestamp::parse("2026-01-01T00:00:04Z"), ..options() }, "four\n"),
            (LogOptions { limit_bytes: Some(5), ..options() }, "one\nt"),
            (
                LogOptions { tail_lines: Some(1), timestamps: true, ..options() },
                "2026-01-01T00:00:04.000000000Z four\n",
            ),
        ];
        for (options, expected) in cases {
            assert_eq!(collect(&path, options.clone()), expected, "{options:?}");
        }
    }

    #[test]
    fn the_end_is_bounded_by_lines_and_by_bytes() {
        let scratch = Scratch::new("end");
        let path = scratch.0.join("0.log");
        fs::write(older(&path), line(1, 'F', "one") + &line(2, 'F', "two")).expect("written");
        fs::write(&path, line(3, 'P', "thr") + &line(3, 'F', "ee")).expect("written");
        for (lines, bytes, expected) in
            [(80, 2048, "one\ntwo\nthree\n"), (3, 2048, "two\nthree\n"), (80, 8, "o\nthree\n")]
        {
            let text = end(path.clone(), lines, bytes);
            assert_eq!(String::from_utf8_lossy(&text), expected, "{lines} lines, {bytes} bytes");
        }
        assert!(end(scratch.0.join("none.log"), 80, 2048).is_empty());
    }

    #[test]
    fn a_log_that_was_never_rotated_is_read_at_once() {
        let scratch = Scratch::new("young");
        let path = scratch.0.join("0.log");
        assert_eq!(collect(&path, LogOptions::default()), "");
        fs::write(&path, line(1, 'F', "one")).expect("written");
        assert_eq!(collect(&path, LogOptions::default()), "one\n");
    }

    #[test]
    fn following_goes_over_rotation_and_ends_with_the_container() {
        let scratch = Scratch::new("follow");
        let path = scratch.0.join("0.log");
        fs::write(&path, line(1, 'F', "one")).expect("written");
        let running = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let (sender, mut receiver) = mpsc::channel(QUEUE);
            let is_running = running.clone();
            let options = LogOptions { follow: true, ..LogOptions::default() };
            tokio::spawn(send(
                path.clone(),
                options,
                move || is_running.load(std::sync::atomic::Ordering::Relaxed),
                sender,
            ));
            assert_eq!(receiver.recv().await.as_deref(), Some(&b"one\n"[..]));
            let mut file = fs::OpenOptions::new().append(true).open(&path).expect("open");
            file.write_all(line(2, 'F', "two").as_bytes()).expect("written");
            fs::rename(&path, older(&path)).expect("moved");
            fs::write(&path, line(3, 'F', "three")).expect("written");
            assert_eq!(receiver.recv().await.as_deref(), Some(&b"two\n"[..]));
            assert_eq!(receiver.recv().await.as_deref(), Some(&b"three\n"[..]));
            running.store(false, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(receiver.recv().await, None);
        });
    }
}
