//! Archives and layers, compressed or not, by their first bytes.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Frames of zstd that hold none of the content: `0x184D2A50` to `0x184D2A5F`, little-endian.
const SKIPPED: [u8; 3] = [0x2a, 0x4d, 0x18];
/// Largest window of zstd, bytes: what one layer may take of memory (zstd's own default limit).
const MAX_WINDOW_BYTES: u64 = 128 << 20;

/// What a frame is read from: its first bytes, which were looked at, and the rest.
type Source<R> = Chain<Cursor<[u8; 4]>, R>;

/// The content without compression.
///
/// # Errors
/// The reader's, or a zstd header that is wrong.
pub fn plain<'a>(mut reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut first = Vec::new();
    (&mut reader).take(ZSTD.len() as u64).read_to_end(&mut first)?;
    let (is_gzip, is_zstd) = (is_gzip(&first), is_zstd(&first));
    let whole = BufReader::new(Cursor::new(first).chain(reader));
    Ok(if is_gzip {
        Box::new(MultiGzDecoder::new(whole))
    } else if is_zstd {
        Box::new(Zstd { frame: None, rest: Some(whole) })
    } else {
        Box::new(whole)
    })
}

/// One frame after another: some tools make a frame of each file.
struct Zstd<R: Read> {
    frame: Option<StreamingDecoder<Source<R>, FrameDecoder>>,
    /// What follows, between frames.
    rest: Option<R>,
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(frame) = &mut self.frame {
                let count = frame.read(buffer)?;
                if count > 0 {
                    return Ok(count);
                }
            }
            if let Some(frame) = self.frame.take() {
                self.rest = Some(frame.into_inner().into_inner().1);
            }
            let Some(mut rest) = self.rest.take() else { return Ok(0) };
            if rest.fill_buf()?.is_empty() {
                return Ok(0);
            }
            let mut magic = [0; 4];
            rest.read_exact(&mut magic)?;
            if is_skipped(&magic) {
                let mut length = [0; 4];
                rest.read_exact(&mut length)?;
                let length = u64::from(u32::from_le_bytes(length));
                io::copy(&mut (&mut rest).take(length), &mut io::sink())?;
                self.rest = Some(rest);
                continue;
            }
            let source = Cursor::new(magic).chain(rest);
            let frame = StreamingDecoder::new_with_max_window_size(source, MAX_WINDOW_BYTES);
            self.frame = Some(frame.map_err(io::Error::other)?);
        }
    }
}

/// Whether content that begins so is compressed in one of the ways that are read.
pub fn is_compressed(first: &[u8]) -> bool {
    is_gzip(first) || is_zstd(first)
}

fn is_gzip(first: &[u8]) -> bool {
    first.starts_with(&GZIP)
}

fn is_zstd(first: &[u8]) -> bool {
    first == ZSTD || is_skipped(first)
}

fn is_skipped(magic: &[u8]) -> bool {
    matches!(magic, [first, rest @ ..] if first & 0xf0 == 0x50 && rest == SKIPPED)
}
