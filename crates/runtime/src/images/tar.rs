//! Reads tar archives: POSIX ustar, pax and GNU long names. Every length that the archive gives has
//! a limit before memory is taken for it: archives come from strangers.

use std::io::{self, Read};

/// Size of a block.
const BLOCK_BYTES: usize = 512;
/// Longest extended header or long name, bytes.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;

/// An archive that is read from front to back.
pub struct Archive<R> {
    reader: R,
    /// Bytes read so far.
    position: u64,
    /// Bytes up to the next header.
    rest: u64,
    /// Bytes of the present entry that are not read yet.
    data: u64,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its path, as the archive has it.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub user: u32,
    /// Group.
    pub group: u32,
    /// Time of its last change, seconds since the epoch.
    pub modified_s: i64,
    /// Length of its content, bytes.
    pub size: u64,
    /// Where its content begins in the archive.
    pub offset: u64,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to this.
    Symlink(Vec<u8>),
    /// The same file as that of this path.
    Link(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A device.
    Device,
}

/// What extended headers say of the next entry.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    user: Option<u32>,
    group: Option<u32>,
    modified_s: Option<i64>,
}

impl<R: Read> Archive<R> {
    /// Reads an archive.
    pub fn new(reader: R) -> Self {
        Self { reader, position: 0, rest: 0, data: 0 }
    }

    /// The next entry; `None` at the archive's end. What was not read of the last is skipped.
    ///
    /// # Errors
    /// Where the archive is broken, and how.
    pub fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut extension = Extension::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = number(&header[124..136])?;
            let padded = |size: u64| {
                size.checked_next_multiple_of(BLOCK_BYTES as u64)
                    .ok_or_else(|| broken("an entry is too long"))
            };
            let kind = match header[156] {
                b'x' | b'g' | b'L' | b'K' => {
                    (self.rest, self.data) = (padded(size)?, size);
                    let content = self.extension(size)?;
                    match header[156] {
                        b'x' => extension.read(&content)?,
                        b'L' => extension.path = Some(until_nul(&content).to_vec()),
                        b'K' => extension.link = Some(until_nul(&content).to_vec()),
                        _ => {} // Of the whole archive: nothing that matters here.
                    }
                    continue;
                }
                0 | b'0' | b'7' => Kind::File,
                b'1' => Kind::Link(extension.take_link(&header)),
                b'2' => Kind::Symlink(extension.take_link(&header)),
                b'3' | b'4' => Kind::Device,
                b'5' => Kind::Directory,
                b'6' => Kind::Fifo,
                other => {
                    let kind = char::from(other);
                    return Err(broken(&format!("an entry is of the unknown kind {kind:?}")));
                }
            };
            let path = extension.path.take().unwrap_or_else(|| path(&header));
            let has_content = kind == Kind::File;
            let kind = if has_content && path.ends_with(b"/") { Kind::Directory } else { kind };
            let size = if has_content { extension.size.unwrap_or(size) } else { 0 };
            (self.rest, self.data) = (padded(size)?, size);
            return Ok(Some(Entry {
                path,
                kind,
                mode: number(&header[100..108])? as u32 & 0o7777,
                user: extension.user.map_or_else(|| id(&header[108..116]), Ok)?,
                group: extension.group.map_or_else(|| id(&header[116..124]), Ok)?,
                modified_s: match extension.modified_s {
                    Some(seconds) => seconds,
                    None => i64::try_from(number(&header[136..148])?).unwrap_or(0),
                },
                size,
                offset: self.position,
            }));
        }
    }

    /// A block that describes an entry; `None` at the end.
    fn header(&mut self) -> io::Result<Option<[u8; BLOCK_BYTES]>> {
        let mut header = [0; BLOCK_BYTES];
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            match self.reader.read(&mut header[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(broken("it ends within a header")),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.position += BLOCK_BYTES as u64;
        if header.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u64 = header
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) })
            .sum();
        if number(&header[148..156])? != sum {
            return Err(broken("a header's checksum is wrong"));
        }
        Ok(Some(header))
    }

    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_EXTENSION_BYTES {
            return Err(broken(&format!(
                "an extended header has {size} bytes, at most {MAX_EXTENSION_BYTES} are read"
            )));
        }
        let mut content = vec![0; size as usize];
        self.read_exact(&mut content)?;
        Ok(content)
    }

    fn skip(&mut self) -> io::Result<()> {
        let rest = self.rest;
        let skipped = io::copy(&mut (&mut self.reader).take(rest), &mut io::sink())?;
        self.position += skipped;
        (self.rest, self.data) = (0, 0);
        if skipped < rest { Err(broken("it ends within an entry")) } else { Ok(()) }
    }
}

/// The content of the present entry.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.data).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.reader.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(broken("it ends within an entry"));
        }
        self.data -= count as u64;
        self.rest -= count as u64;
        self.position += count as u64;
        Ok(count)
    }
}

impl Extension {
    /// Records of the form `LENGTH NAME=VALUE\n`, the length counting all of it.
    fn read(&mut self, mut content: &[u8]) -> io::Result<()> {
        while !content.is_empty() {
            let record =
                pax_record(content).ok_or_else(|| broken("an extended header is wrong"))?;
            let (length, name, value) = record;
            let text = || std::str::from_utf8(value).unwrap_or_default();
            let wrong = |_| broken("a number of an extended header is wrong");
            match name {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(text().parse().map_err(wrong)?),
                b"uid" => self.user = Some(text().parse().map_err(wrong)?),
                b"gid" => self.group = Some(text().parse().map_err(wrong)?),
                b"mtime" => {
                    let seconds = text().split('.').next().unwrap_or_default();
                    self.modified_s = Some(seconds.parse().map_err(wrong)?);
                }
                name if name.starts_with(b"GNU.sparse.") => {
                    return Err(broken("it has sparse files, which layers may not have"));
                }
                _ => {}
            }
            content = &content[length..];
        }
        Ok(())
    }

    fn take_link(&mut self, header: &[u8; BLOCK_BYTES]) -> Vec<u8> {
        self.link.take().unwrap_or_else(|| until_nul(&header[157..257]).to_vec())
    }
}

fn pax_record(content: &[u8]) -> Option<(usize, &[u8], &[u8])> {
    let blank = content.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&content[..blank]).ok()?.parse().ok()?;
    let record = content.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((length, &record[..equals], &record[equals + 1..]))
}

fn path(header: &[u8; BLOCK_BYTES]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    // GNU's own format has other things in the prefix's place.
    let prefix = if &header[257..263] == b"ustar\0" { until_nul(&header[345..500]) } else { b"" };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits, or, with the highest bit set, a big-endian number (GNU).
fn number(field: &[u8]) -> io::Result<u64> {
    let wrong = || broken("a number of a header is wrong");
    if let Some((first, rest)) = field.split_first()
        && *first & 0x80 != 0
    {
        if *first != 0x80 {
            return Err(wrong()); // Negative, or larger than all that there can be.
        }
        let push =
            |value: u64, byte: &u8| value.checked_mul(256).map(|value| value | u64::from(*byte));
        return rest.iter().try_fold(0, push).ok_or_else(wrong);
    }
    let text = std::str::from_utf8(until_nul(field)).map_err(|_| wrong())?.trim();
    if text.is_empty() { Ok(0) } else { u64::from_str_radix(text, 8).map_err(|_| wrong()) }
}

fn id(field: &[u8]) -> io::Result<u32> {
    u32::try_from(number(field)?).map_err(|_| broken("an owner's number is too large"))
}

fn broken(how: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the archive is broken: {how}"))
}

#[cfg(test)]
mod tests;
