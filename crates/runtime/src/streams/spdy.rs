//! SPDY/3.1 framing, as much as `kubectl` speaks: SYN_STREAM, SYN_REPLY, DATA, RST_STREAM,
//! PING and GOAWAY. Nobody on either side uses flow control. Pure: bytes in, frames out.
//!
//! Header blocks of one direction are one zlib stream for the whole connection, with a preset
//! dictionary (SPDY Protocol Draft 3, section 2.6.10.1).

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

/// Largest frame that is accepted, bytes. kubectl sends 32 KiB at a time.
pub const MAX_FRAME_BYTES: usize = 1 << 20;
/// Largest header block, expanded, bytes.
const MAX_HEADER_BYTES: usize = 16 * 1024;

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;
const FRAME_HEAD_BYTES: usize = 8;
const STREAM_MASK: u32 = 0x7fff_ffff;

/// A frame that matters to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The peer opens a stream.
    Open {
        /// Its number.
        stream: u32,
        /// Its headers.
        headers: Vec<(String, String)>,
        /// Whether the peer will send nothing on it.
        fin: bool,
    },
    /// Bytes of a stream.
    Data {
        /// Its number.
        stream: u32,
        /// The bytes.
        bytes: Vec<u8>,
        /// Whether these are the last.
        fin: bool,
    },
    /// The peer gave a stream up.
    Reset {
        /// Its number.
        stream: u32,
    },
    /// To be sent back as it is.
    Ping {
        /// Its number.
        id: u32,
    },
    /// The peer leaves.
    GoAway,
}

/// Reads frames from a connection's bytes.
pub struct Decoder {
    buffer: Vec<u8>,
    inflate: Decompress,
}

/// Writes frames.
pub struct Encoder {
    deflate: Compress,
}

impl Default for Decoder {
    /// For a new connection.
    fn default() -> Self {
        Self { buffer: Vec::new(), inflate: Decompress::new(true) }
    }
}

impl Decoder {
    /// For a new connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes and gives the whole frames in them.
    ///
    /// # Errors
    /// The peer broke the protocol or a limit: the connection is to be closed.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Frame>, String> {
        self.buffer.extend_from_slice(bytes);
        let mut frames = Vec::new();
        while let Some((head, rest)) = self.buffer.split_first_chunk::<FRAME_HEAD_BYTES>() {
            let [_, _, _, _, flags, high, middle, low] = *head;
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            if length > MAX_FRAME_BYTES {
                return Err(format!("a frame of {length} bytes is larger than {MAX_FRAME_BYTES}"));
            }
            let Some(payload) = rest.get(..length) else { break };
            let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            let payload = payload.to_vec();
            self.buffer.drain(..FRAME_HEAD_BYTES + length);
            frames.extend(self.frame(first, flags, payload)?);
        }
        Ok(frames)
    }

    fn frame(&mut self, first: u32, flags: u8, payload: Vec<u8>) -> Result<Option<Frame>, String> {
        let fin = flags & FIN != 0;
        if first & !STREAM_MASK == 0 {
            return Ok(Some(Frame::Data { stream: first, bytes: payload, fin }));
        }
        let version = (first >> 16) as u16 & 0x7fff;
        if version != VERSION {
            return Err(format!("SPDY version {version} is not spoken here"));
        }
        let number = |at: usize| {
            let bytes = payload.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
            bytes.map(u32::from_be_bytes).ok_or_else(|| "a control frame is too short".to_owned())
        };
        Ok(match first as u16 {
            SYN_STREAM => {
                let stream = number(0)? & STREAM_MASK;
                let block = payload.get(10..).ok_or("a SYN_STREAM is too short")?;
                Some(Frame::Open { stream, headers: self.headers(block)?, fin })
            }
            // A header block that is skipped would break all that follow.
            SYN_REPLY | 8 => {
                self.headers(payload.get(4..).ok_or("a control frame is too short")?)?;
                None
            }
            RST_STREAM => Some(Frame::Reset { stream: number(0)? & STREAM_MASK }),
            PING => Some(Frame::Ping { id: number(0)? }),
            GOAWAY => Some(Frame::GoAway),
            _ => None, // SETTINGS, WINDOW_UPDATE and what we do not know.
        })
    }

    fn headers(&mut self, block: &[u8]) -> Result<Vec<(String, String)>, String> {
        let plain = self.expand(block)?;
        let mut rest = plain.as_slice();
        let count = take_number(&mut rest)?;
        let mut headers = Vec::new();
        for _ in 0..count {
            let name = take_text(&mut rest)?;
            let value = take_text(&mut rest)?;
            headers.push((name, value));
        }
        Ok(headers)
    }

    fn expand(&mut self, block: &[u8]) -> Result<Vec<u8>, String> {
        let mut plain = Vec::with_capacity(MAX_HEADER_BYTES);
        let mut input = block;
        while !input.is_empty() {
            let before = self.inflate.total_in();
            let result = self.inflate.decompress_vec(input, &mut plain, FlushDecompress::Sync);
            let taken = (self.inflate.total_in() - before) as usize;
            input = input.get(taken..).unwrap_or_default();
            match result {
                Ok(_) if plain.len() == plain.capacity() => {
                    return Err(format!("headers are larger than {MAX_HEADER_BYTES} bytes"));
                }
                Ok(_) if taken == 0 => return Err("a header block is not compressed right".into()),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate
                        .set_dictionary(&dictionary())
                        .map_err(|error| format!("wrong dictionary: {error}"))?;
                }
                Err(error) => {
                    return Err(format!("a header block is not compressed right: {error}"));
                }
            }
        }
        Ok(plain)
    }
}

impl Encoder {
    /// For a new connection.
    ///
    /// # Errors
    /// The compressor refuses the dictionary.
    pub fn new() -> Result<Self, String> {
        let mut deflate = Compress::new(Compression::fast(), true);
        deflate.set_dictionary(&dictionary()).map_err(|error| error.to_string())?;
        Ok(Self { deflate })
    }

    /// Opens a stream; what a client does.
    ///
    /// # Errors
    /// The compressor fails.
    pub fn open(
        &mut self,
        stream: u32,
        headers: &[(&str, &str)],
        fin: bool,
    ) -> Result<Vec<u8>, String> {
        let mut payload = stream.to_be_bytes().to_vec();
        payload.extend_from_slice(&[0; 6]);
        payload.extend(self.block(headers)?);
        Ok(control(SYN_STREAM, u8::from(fin), &payload))
    }

    /// Accepts a stream.
    ///
    /// # Errors
    /// The compressor fails.
    pub fn accept(&mut self, stream: u32) -> Result<Vec<u8>, String> {
        let mut payload = stream.to_be_bytes().to_vec();
        payload.extend(self.block(&[])?);
        Ok(control(SYN_REPLY, 0, &payload))
    }

    fn block(&mut self, headers: &[(&str, &str)]) -> Result<Vec<u8>, String> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        let mut block = Vec::with_capacity(plain.len() + 128);
        let before = self.deflate.total_in();
        self.deflate
            .compress_vec(&plain, &mut block, FlushCompress::Sync)
            .map_err(|error| error.to_string())?;
        if self.deflate.total_in() - before == plain.len() as u64 && block.len() < block.capacity()
        {
            Ok(block)
        } else {
            Err("the compressor did not take the headers at once".into())
        }
    }
}

/// Bytes of a stream.
pub fn data(stream: u32, bytes: &[u8], fin: bool) -> Vec<u8> {
    frame(stream & STREAM_MASK, u8::from(fin), bytes)
}

/// Gives a stream up. The peer drops what is under way on it.
pub fn reset(stream: u32) -> Vec<u8> {
    /// `CANCEL` (SPDY draft 3.1, section 2.6.3).
    const CANCEL: u32 = 5;
    let payload = [stream.to_be_bytes(), CANCEL.to_be_bytes()].concat();
    control(RST_STREAM, 0, &payload)
}

/// The answer to a ping.
pub fn ping(id: u32) -> Vec<u8> {
    control(PING, 0, &id.to_be_bytes())
}

/// Leaves the connection after `last_stream`.
pub fn go_away(last_stream: u32) -> Vec<u8> {
    let mut payload = last_stream.to_be_bytes().to_vec();
    payload.extend_from_slice(&[0; 4]);
    control(GOAWAY, 0, &payload)
}

fn control(kind: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    frame(!STREAM_MASK | u32::from(VERSION) << 16 | u32::from(kind), flags, payload)
}

fn frame(first: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = (payload.len() as u32).to_be_bytes();
    let mut bytes = Vec::with_capacity(FRAME_HEAD_BYTES + payload.len());
    bytes.extend_from_slice(&first.to_be_bytes());
    bytes.extend_from_slice(&[flags, high, middle, low]);
    bytes.extend_from_slice(payload);
    bytes
}

fn take_number(rest: &mut &[u8]) -> Result<usize, String> {
    let (number, after) = rest.split_first_chunk::<4>().ok_or("headers are cut short")?;
    *rest = after;
    Ok(u32::from_be_bytes(*number) as usize)
}

fn take_text(rest: &mut &[u8]) -> Result<String, String> {
    let length = take_number(rest)?;
    let (text, after) = rest.split_at_checked(length).ok_or("headers are cut short")?;
    *rest = after;
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// The words of the dictionary that stand with their lengths.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding \
    accept-language accept-ranges age allow authorization cache-control connection content-base \
    content-encoding content-language content-length content-location content-md5 content-range \
    content-type date etag expect expires from host if-match if-modified-since if-none-match \
    if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate \
    proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url \
    public set-cookie keep-alive origin";
/// Status codes that follow without lengths.
const CODES: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416\
    417502504505";
/// And the rest, likewise.
const TEXTS: &str = "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad \
    Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented\
    503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, \
    Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,\
    application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
    charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The preset dictionary, 1,423 bytes.
fn dictionary() -> Vec<u8> {
    let mut dictionary = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        let word = word.replace('_', " ");
        dictionary.extend_from_slice(&(word.len() as u32).to_be_bytes());
        dictionary.extend_from_slice(word.as_bytes());
    }
    dictionary.extend_from_slice(CODES.as_bytes());
    dictionary.extend_from_slice(TEXTS.as_bytes());
    dictionary
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The identity that every SPDY/3 stream carries in its zlib header.
    const DICTIONARY_ADLER_32: u32 = 0xe3c6_a7c2;

    #[test]
    fn the_dictionary_is_the_protocols() {
        let dictionary = dictionary();
        assert_eq!(dictionary.len(), 1423);
        let (mut a, mut b) = (1_u32, 0_u32);
        for byte in dictionary {
            a = (a + u32::from(byte)) % 65_521;
            b = (b + a) % 65_521;
        }
        assert_eq!(b << 16 | a, DICTIONARY_ADLER_32);
    }

    #[test]
    fn frames_survive_any_cut() {
        let mut encoder = Encoder::new().expect("an encoder");
        let mut bytes = Vec::new();
        let headers = [("streamtype", "stdin"), ("port", "80")];
        bytes.extend(encoder.open(1, &headers, false).expect("a frame"));
        bytes.extend(encoder.open(3, &[("streamtype", "error")], true).expect("a frame"));
        bytes.extend(data(1, b"hello", false));
        bytes.extend(encoder.accept(5).expect("a frame"));
        bytes.extend(data(1, b"", true));
        bytes.extend(ping(7));
        bytes.extend(go_away(3));
        let owned = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let expected = [
            Frame::Open {
                stream: 1,
                headers: vec![owned("streamtype", "stdin"), owned("port", "80")],
                fin: false,
            },
            Frame::Open { stream: 3, headers: vec![owned("streamtype", "error")], fin: true },
            Frame::Data { stream: 1, bytes: b"hello".to_vec(), fin: false },
            Frame::Data { stream: 1, bytes: Vec::new(), fin: true },
            Frame::Ping { id: 7 },
            Frame::GoAway,
        ];
        for size in [1, 2, 3, 7, 64, 4096] {
            let mut decoder = Decoder::new();
            let mut frames = Vec::new();
            for piece in bytes.chunks(size) {
                frames.extend(decoder.feed(piece).expect("frames"));
            }
            assert_eq!(frames, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn broken_input_is_an_error_and_nothing_worse() {
        let oversized = [0, 0, 0, 1, 0, 0xff, 0xff, 0xff];
        assert!(Decoder::new().feed(&oversized).is_err());
        let wrong_version = [0x80, 2, 0, 1, 0, 0, 0, 0];
        assert!(Decoder::new().feed(&wrong_version).is_err());
        let short = control(SYN_STREAM, 0, &[0; 4]);
        assert!(Decoder::new().feed(&short).is_err());
        let garbage = control(SYN_STREAM, 0, &[7; 40]);
        assert!(Decoder::new().feed(&garbage).is_err());
        let mut encoder = Encoder::new().expect("an encoder");
        let long = "x".repeat(MAX_HEADER_BYTES);
        let bomb = encoder.open(1, &[("a", &long)], false);
        assert!(bomb.is_ok_and(|bytes| Decoder::new().feed(&bytes).is_err()));
    }
}
