//! `http`: one request or a number of them; and the client that `load` uses too.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::arguments::Arguments;
use crate::http::{Crc32, Head, pattern};
use crate::resolver::{self, describe};
use crate::summary::Summary;
use crate::{CommandResult, Outcome};

/// How long connecting may take, and how long nothing may come, unless told otherwise.
const TIMEOUT_MS: u64 = 5000;
/// Threads at most.
pub(crate) const MAX_CONCURRENCY: usize = 256;
/// The start of a body that is looked at for the name of the pod, in bytes.
const KEPT_BODY_BYTES: usize = 4096;

/// Where requests go, and what counts as an answer.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) host: String,
    port: u16,
    path: String,
    authority: String,
    timeout: Duration,
    expected_codes: Vec<u16>,
}

/// One client with at most one connection.
pub(crate) struct Client {
    target: Target,
    addresses: Vec<IpAddr>,
    keeps_alive: bool,
    connection: Option<BufReader<TcpStream>>,
    /// See [`Summary::resent`].
    pub(crate) resent: u64,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) pod: Option<String>,
    pub(crate) bytes: u64,
}

/// Where the bytes of a body go.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(&[u8]);

/// The command.
pub(crate) fn run(arguments: &Arguments) -> CommandResult {
    let target = Target::from_arguments(arguments)?;
    let count: u64 = arguments.parsed("--count")?.unwrap_or(1);
    let concurrency: usize = arguments.parsed("--concurrency")?.unwrap_or(1);
    let concurrency = concurrency.clamp(1, MAX_CONCURRENCY);
    let interval = Duration::from_millis(arguments.parsed("--interval-ms")?.unwrap_or(0));
    let body = arguments.parsed("--post-bytes")?.map(|bytes| pattern(0, bytes));
    let json = arguments.has("--json");
    if count == 1 && !json {
        return run_one(target, body.as_deref());
    }
    let share = |worker: usize| {
        let workers = concurrency as u64;
        count / workers + u64::from((worker as u64) < count % workers)
    };
    let mut total = Summary::default();
    std::thread::scope(|scope| {
        let start = |worker| {
            let (target, body) = (target.clone(), body.as_deref());
            scope.spawn(move || run_some(target, share(worker), interval, body, !json))
        };
        let workers: Vec<_> = (0..concurrency).map(start).collect();
        for worker in workers {
            match worker.join() {
                Ok(summary) => total.merge(&summary),
                Err(_) => total.failed("a thread of this client failed"),
            }
        }
    });
    println!("{}", total.json());
    Ok(if total.failed == 0 { Outcome::Success } else { Outcome::Failed })
}

fn run_one(target: Target, body: Option<&[u8]>) -> CommandResult {
    let mut client = Client::new(target, vec![], false);
    let mut unprinted = None;
    let mut print = |bytes: &[u8]| {
        unprinted = std::io::stdout().write_all(bytes).err().or(unprinted.take());
    };
    client.request(body, &mut print)?;
    match unprinted {
        Some(error) => Err(format!("writing the output: {error}")),
        None => Ok(Outcome::Success),
    }
}

fn run_some(
    target: Target,
    count: u64,
    interval: Duration,
    body: Option<&[u8]>,
    tell: bool,
) -> Summary {
    let mut summary = Summary::default();
    let mut client = Client::new(target, vec![], false);
    for number in 0..count {
        if number > 0 {
            std::thread::sleep(interval);
        }
        let began = Instant::now();
        let result = client.request(body, &mut |_| {});
        let took = began.elapsed();
        if tell {
            match &result {
                Ok(answer) => {
                    let pod = answer.pod.as_deref().unwrap_or("-");
                    println!(
                        "{} {pod} {} bytes {} us",
                        answer.code,
                        answer.bytes,
                        took.as_micros()
                    );
                }
                Err(fault) => println!("failed: {fault}"),
            }
        }
        note(&mut summary, result, took);
    }
    summary
}

/// Counts one result.
pub(crate) fn note(summary: &mut Summary, result: Result<Answer, String>, took: Duration) {
    match result {
        Ok(answer) => {
            summary.body_bytes += answer.bytes;
            summary.succeeded(answer.pod.as_deref(), took);
        }
        Err(fault) => summary.failed(&fault),
    }
}

impl Target {
    /// Reads URL, `--timeout-ms` and `--expect-codes`.
    pub(crate) fn from_arguments(arguments: &Arguments) -> Result<Self, String> {
        let url = arguments.word(0, "URL")?;
        let timeout_ms = arguments.parsed("--timeout-ms")?.unwrap_or(TIMEOUT_MS).max(1);
        let codes = arguments.value("--expect-codes").unwrap_or_default();
        let codes = codes.split(',').filter(|text| !text.is_empty());
        let codes: Result<Vec<u16>, String> =
            codes.map(|text| arguments.parse("--expect-codes", text)).collect();
        let target = Self::parse(url, Duration::from_millis(timeout_ms), codes?);
        target.ok_or_else(|| arguments.misuse(format!("{url} is no http://HOST[:PORT]/PATH")))
    }

    fn parse(url: &str, timeout: Duration, expected_codes: Vec<u16>) -> Option<Self> {
        let rest = url.strip_prefix("http://")?;
        let (authority, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let path = if path.starts_with('/') { path.into() } else { format!("/{path}") };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
            _ => (authority, 80),
        };
        let host = host.trim_matches(['[', ']']).to_string();
        let authority = authority.to_string();
        (!host.is_empty()).then_some(Self { host, port, path, authority, timeout, expected_codes })
    }

    fn expects(&self, code: u16) -> bool {
        if self.expected_codes.is_empty() {
            (200..300).contains(&code)
        } else {
            self.expected_codes.contains(&code)
        }
    }
}

impl Client {
    /// A client; without addresses it resolves the host for each connection.
    pub(crate) fn new(target: Target, addresses: Vec<IpAddr>, keeps_alive: bool) -> Self {
        Self { target, addresses, keeps_alive, connection: None, resent: 0 }
    }

    /// One request, with a body as POST, else GET. The error says what failed, in words that are
    /// the same for the same cause.
    pub(crate) fn request(&mut self, body: Option<&[u8]>, sink: Sink) -> Result<Answer, String> {
        if let Some(kept) = self.connection.take() {
            match self.exchange(kept, body, sink) {
                // The server closed it while nothing was under way: nothing was answered.
                Err(Failure { before_answer: true, error })
                    if matches!(
                        error.kind(),
                        ErrorKind::UnexpectedEof
                            | ErrorKind::ConnectionReset
                            | ErrorKind::BrokenPipe
                    ) =>
                {
                    self.resent += 1;
                }
                done => return self.judge(done, body),
            }
        }
        let addresses = match self.addresses.as_slice() {
            [] => resolver::resolve(&self.target.host)?,
            known => known.to_vec(),
        };
        let stream = resolver::connect_to(&addresses, self.target.port, self.target.timeout)
            .map_err(|error| match error.kind() {
                ErrorKind::TimedOut => "timeout while connecting".to_string(),
                _ => describe(&error),
            })?;
        let prepared = stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(self.target.timeout)))
            .and_then(|()| stream.set_write_timeout(Some(self.target.timeout)));
        prepared.map_err(|error| describe(&error))?;
        let done = self.exchange(BufReader::new(stream), body, sink);
        self.judge(done, body)
    }

    fn exchange(
        &mut self,
        mut stream: BufReader<TcpStream>,
        body: Option<&[u8]>,
        sink: Sink,
    ) -> Result<(Answer, Vec<u8>), Failure> {
        let before = |error| Failure { before_answer: true, error };
        let within = |error| Failure { before_answer: false, error };
        let Target { path, authority, .. } = &self.target;
        let connection = if self.keeps_alive { "keep-alive" } else { "close" };
        let (method, length) = match body {
            Some(body) => ("POST", format!("Content-Length: {}\r\n", body.len())),
            None => ("GET", String::new()),
        };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: flatnet-toolbox\r\n\
             Accept: */*\r\n{length}Connection: {connection}\r\n\r\n"
        );
        stream.get_mut().write_all(head.as_bytes()).map_err(before)?;
        stream.get_mut().write_all(body.unwrap_or_default()).map_err(before)?;
        if stream.fill_buf().map_err(before)?.is_empty() {
            return Err(before(ErrorKind::UnexpectedEof.into()));
        }
        let head = Head::read(&mut stream).map_err(within)?;
        let head = head.ok_or_else(|| within(ErrorKind::UnexpectedEof.into()))?;
        let bad_head = || within(std::io::Error::new(ErrorKind::InvalidData, "no HTTP answer"));
        let code = head.code().ok_or_else(bad_head)?;
        let (mut bytes, mut start) = (0, Vec::new());
        let mut take = |piece: &[u8]| {
            bytes += piece.len() as u64;
            let room = KEPT_BODY_BYTES.saturating_sub(start.len()).min(piece.len());
            start.extend_from_slice(piece.get(..room).unwrap_or_default());
            sink(piece);
        };
        let reusable = head.read_response_body(&mut stream, &mut take).map_err(within)?;
        if reusable && self.keeps_alive {
            self.connection = Some(stream);
        }
        Ok((Answer { code, pod: None, bytes }, start))
    }

    fn judge(
        &self,
        done: Result<(Answer, Vec<u8>), Failure>,
        body: Option<&[u8]>,
    ) -> Result<Answer, String> {
        let (mut answer, start) = done.map_err(|failure| describe(&failure.error))?;
        if !self.target.expects(answer.code) {
            return Err(format!("code {}", answer.code));
        }
        let json: Value = serde_json::from_slice(&start).unwrap_or_default();
        if let (Some(body), Some(crc)) = (body, json["crc32"].as_str()) {
            let mut sent = Crc32::default();
            sent.add(body);
            if sent.text() != crc {
                return Err("the body was changed on its way".into());
            }
        }
        answer.pod = json["pod"].as_str().map(ToString::to_string);
        Ok(answer)
    }
}

/// Why an exchange on a connection failed.
struct Failure {
    /// Not a byte of the answer had come.
    before_answer: bool,
    error: std::io::Error,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_or_refused() {
        let parse = |url| Target::parse(url, Duration::ZERO, vec![]);
        let rows = [
            ("http://web", "web", 80, "/"),
            ("http://web:8080/a?b=c", "web", 8080, "/a?b=c"),
            ("http://10.0.0.1?x", "10.0.0.1", 80, "/?x"),
            ("http://[fd00::1]:81/", "fd00::1", 81, "/"),
            ("http://[fd00::1]/x", "fd00::1", 80, "/x"),
        ];
        for (url, host, port, path) in rows {
            let target = parse(url).expect(url);
            assert_eq!(
                (target.host.as_str(), target.port, target.path.as_str()),
                (host, port, path)
            );
        }
        for url in ["https://web", "web", "http://", "http://web:x/", "http://:80/"] {
            assert!(parse(url).is_none(), "{url}");
        }
    }
}
