//! As much of HTTP/1.1 (RFC 9112) as a test server and a test client need.

use std::io::{self, BufRead, ErrorKind, Read, Write};

/// The largest head of a message, in bytes.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// The longest line that says how large a chunk is, in bytes.
const MAX_CHUNK_LINE_BYTES: u64 = 256;

/// The first line and the fields of a message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// The first line, such as `GET / HTTP/1.1`.
    pub(crate) start: String,
    fields: Vec<(String, String)>,
}

/// How the body of a message ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

impl Head {
    /// Reads a head. `None` when the stream ends before its first byte.
    pub(crate) fn read(stream: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut head = Self::default();
        let mut left = MAX_HEAD_BYTES as u64;
        loop {
            let mut line = Vec::new();
            let count = stream.by_ref().take(left).read_until(b'\n', &mut line)? as u64;
            left -= count;
            if line.pop() != Some(b'\n') {
                let nothing_came = count == 0 && head.start.is_empty();
                return match (nothing_came, left) {
                    (true, _) => Ok(None),
                    (false, 0) => {
                        Err(io::Error::new(ErrorKind::InvalidData, "the head is too large"))
                    }
                    (false, _) => Err(ErrorKind::UnexpectedEof.into()),
                };
            }
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches('\r');
            if head.start.is_empty() {
                // Empty lines before a request are passed over (RFC 9112, 2.2).
                head.start = line.to_string();
            } else if line.is_empty() {
                return Ok(Some(head));
            } else if let Some((name, value)) = line.split_once(':') {
                head.fields.push((name.to_ascii_lowercase(), value.trim().to_string()));
            }
        }
    }

    /// The value of a field, by its name in lower case.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// The status code of a response.
    pub(crate) fn code(&self) -> Option<u16> {
        self.start.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()
    }

    /// Whether the connection can carry another message behind this one.
    pub(crate) fn keeps_alive(&self) -> bool {
        let connection = self.field("connection").unwrap_or_default().to_ascii_lowercase();
        if self.start.contains("HTTP/1.0") {
            connection.contains("keep-alive")
        } else {
            !connection.contains("close")
        }
    }

    /// Reads the body of a request into a sink.
    pub(crate) fn read_request_body(
        &self,
        stream: &mut impl BufRead,
        sink: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        self.read_body(stream, self.framing(Framing::Length(0))?, sink)
    }

    /// Reads the body of a response into a sink. Returns whether the connection is still of use.
    pub(crate) fn read_response_body(
        &self,
        stream: &mut impl BufRead,
        sink: &mut dyn FnMut(&[u8]),
    ) -> io::Result<bool> {
        let framing = match self.code() {
            Some(204 | 304) => Framing::Length(0),
            _ => self.framing(Framing::UntilClose)?,
        };
        self.read_body(stream, framing, sink)?;
        Ok(framing != Framing::UntilClose && self.keeps_alive())
    }

    fn framing(&self, otherwise: Framing) -> io::Result<Framing> {
        let chunked = self
            .field("transfer-encoding")
            .is_some_and(|value| value.to_ascii_lowercase().ends_with("chunked"));
        if chunked {
            return Ok(Framing::Chunked);
        }
        match self.field("content-length").map(str::parse) {
            None => Ok(otherwise),
            Some(Ok(length)) => Ok(Framing::Length(length)),
            Some(Err(_)) => Err(io::Error::new(ErrorKind::InvalidData, "a bad Content-Length")),
        }
    }

    fn read_body(
        &self,
        stream: &mut impl BufRead,
        framing: Framing,
        sink: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        match framing {
            Framing::Length(length) => copy_exactly(stream, length, sink),
            Framing::UntilClose => loop {
                let bytes = stream.fill_buf()?;
                if bytes.is_empty() {
                    return Ok(());
                }
                sink(bytes);
                let count = bytes.len();
                stream.consume(count);
            },
            Framing::Chunked => loop {
                let length = read_chunk_length(stream)?;
                copy_exactly(stream, length, sink)?;
                // The line end behind the chunk; behind the last one, no trailers are expected.
                copy_exactly(stream, 2, &mut |_| {})?;
                if length == 0 {
                    return Ok(());
                }
            },
        }
    }
}

fn read_chunk_length(stream: &mut impl BufRead) -> io::Result<u64> {
    let mut line = Vec::new();
    stream.by_ref().take(MAX_CHUNK_LINE_BYTES).read_until(b'\n', &mut line)?;
    let text = String::from_utf8_lossy(&line);
    let digits = text.split(';').next().unwrap_or_default().trim();
    u64::from_str_radix(digits, 16)
        .map_err(|_| io::Error::new(ErrorKind::InvalidData, "a bad chunk length"))
}

fn copy_exactly(
    stream: &mut impl BufRead,
    mut left: u64,
    sink: &mut dyn FnMut(&[u8]),
) -> io::Result<()> {
    while left > 0 {
        let bytes = stream.fill_buf()?;
        if bytes.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let count = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        sink(bytes.get(..count).unwrap_or_default());
        stream.consume(count);
        left -= count as u64;
    }
    Ok(())
}

/// Writes a whole response in one piece.
pub(crate) fn respond(
    stream: &mut impl Write,
    code: u16,
    kind: &str,
    body: &[u8],
    keeps_alive: bool,
) -> io::Result<()> {
    let mut message = response_head(code, kind, body.len() as u64, keeps_alive).into_bytes();
    message.extend_from_slice(body);
    stream.write_all(&message)
}

/// The head of a response.
pub(crate) fn response_head(code: u16, kind: &str, length: u64, keeps_alive: bool) -> String {
    let reason = match code {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        503 => "Service Unavailable",
        _ => "",
    };
    let connection = if keeps_alive { "keep-alive" } else { "close" };
    format!(
        "HTTP/1.1 {code} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Connection: {connection}\r\n\r\n"
    )
}

/// CRC-32 as in zip and Ethernet: checks that bodies arrive as they were sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Crc32(u32);

impl Crc32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { 0xEDB8_8320 ^ (value >> 1) } else { value >> 1 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        let mut value = !self.0;
        for byte in bytes {
            value = Self::TABLE[usize::from(value as u8 ^ byte)] ^ (value >> 8);
        }
        self.0 = !value;
    }

    /// Eight hexadecimal digits.
    pub(crate) fn text(self) -> String {
        format!("{:08x}", self.0)
    }
}

/// Bytes of a known pattern: what bodies are made of.
pub(crate) fn pattern(start: u64, length: usize) -> Vec<u8> {
    (start..).take(length).map(|place| (place % 251) as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_32_has_its_check_value() {
        let mut crc = Crc32::default();
        crc.add(b"1234");
        crc.add(b"56789");
        assert_eq!(crc.text(), "cbf43926");
    }

    #[test]
    fn bodies_end_where_their_framing_says() {
        let rows = [
            ("Content-Length: 3\r\n", "abcREST", "abc", true),
            (
                "Transfer-Encoding: chunked\r\n",
                "2\r\nab\r\n1;x=y\r\nc\r\n0\r\n\r\nREST",
                "abc",
                true,
            ),
            ("", "abc", "abc", false),
            ("Connection: close\r\nContent-Length: 3\r\n", "abc", "abc", false),
        ];
        for (fields, body, expected, reusable) in rows {
            let message = format!("HTTP/1.1 200 OK\r\n{fields}\r\n{body}");
            let mut stream = message.as_bytes();
            let head = Head::read(&mut stream).expect("reads").expect("a head");
            let mut found = Vec::new();
            let kept = head.read_response_body(&mut stream, &mut |bytes| found.extend(bytes));
            assert_eq!(String::from_utf8_lossy(&found), expected, "{fields}");
            assert_eq!(kept.expect("a body"), reusable, "{fields}");
        }
    }

    #[test]
    fn what_ends_early_is_an_error() {
        let rows = ["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "HTTP/1.1 200 OK\r\nConte"];
        for message in rows {
            let mut stream = message.as_bytes();
            let result = Head::read(&mut stream).and_then(|head| {
                head.expect("a head").read_response_body(&mut stream, &mut |_| {})
            });
            let error = result.expect_err("it ends early");
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{message}");
        }
        assert_eq!(Head::read(&mut "".as_bytes()).expect("nothing"), None);
        let endless = "x".repeat(MAX_HEAD_BYTES + 10);
        assert!(Head::read(&mut endless.as_bytes()).is_err());
    }
}
