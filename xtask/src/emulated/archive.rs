//! The archive that the kernel unpacks into memory at boot: cpio in the "newc" format
//! (Documentation/driver-api/early-userspace/buffer-format.rst of the kernel).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Entries and the data of a file are padded to this, in bytes.
const ALIGNMENT: usize = 4;
const DIRECTORY_MODE: u32 = 0o040_755;
const FILE_MODE: u32 = 0o100_644;
const PROGRAM_MODE: u32 = 0o100_755;

/// An archive that is being written.
pub struct Archive {
    output: BufWriter<File>,
    directories: BTreeSet<String>,
    files: BTreeSet<String>,
    /// Inode numbers tell entries apart.
    next_inode: u32,
}

impl Archive {
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        let output = BufWriter::new(File::create(path)?);
        Ok(Self { output, directories: BTreeSet::new(), files: BTreeSet::new(), next_inode: 1 })
    }

    /// Adds a directory and all above it, once.
    ///
    /// # Errors
    /// When the archive cannot be written.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for end in ends.filter(|end| *end > 0) {
            if self.directories.insert(path[..end].to_owned()) {
                self.entry(&path[..end], DIRECTORY_MODE, &[])?;
            }
        }
        Ok(())
    }

    /// Adds a file that nobody executes.
    ///
    /// # Errors
    /// As [`Archive::directory`].
    pub fn file(&mut self, path: &str, contents: &[u8]) -> io::Result<()> {
        self.put(path, FILE_MODE, contents)
    }

    /// Adds a program or a library.
    ///
    /// # Errors
    /// As [`Archive::directory`].
    pub fn program(&mut self, path: &str, contents: &[u8]) -> io::Result<()> {
        self.put(path, PROGRAM_MODE, contents)
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// As [`Archive::directory`].
    pub fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.output.flush()
    }

    /// A path that is there already stays: programs share libraries.
    fn put(&mut self, path: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        let path = path.trim_matches('/');
        if !self.files.insert(path.to_owned()) {
            return Ok(());
        }
        if let Some((directory, _)) = path.rsplit_once('/') {
            self.directory(directory)?;
        }
        self.entry(path, mode, contents)
    }

    fn entry(&mut self, name: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        let too_big = |_| io::Error::other(format!("{name} is too big for the archive"));
        let size = u32::try_from(contents.len()).map_err(too_big)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_big)?;
        let inode = self.next_inode;
        self.next_inode += 1;
        let links = 1;
        // inode, mode, user, group, links, time, size, device and special device as major and
        // minor, size of the name with its NUL, checksum.
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.output.write_all(header.as_bytes())?;
        self.output.write_all(name.as_bytes())?;
        self.output.write_all(&[0])?;
        self.pad(header.len() + name.len() + 1)?;
        self.output.write_all(contents)?;
        self.pad(contents.len())
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        let missing = written.next_multiple_of(ALIGNMENT) - written;
        self.output.write_all(&[0; ALIGNMENT][..missing])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_follow_their_directories_and_are_padded() {
        let path = std::env::temp_dir().join(format!("flatnet-archive-{}", std::process::id()));
        let mut archive = Archive::create(&path).expect("created");
        archive.program("/usr/bin/x", b"12345").expect("written");
        archive.program("/usr/bin/x", b"again").expect("left out");
        archive.file("/usr/y", b"").expect("written");
        archive.finish().expect("written");
        let bytes = std::fs::read(&path).expect("the archive");
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(bytes.len() % ALIGNMENT, 0);
        let text = String::from_utf8_lossy(&bytes);
        let names: Vec<&str> = text
            .split("070701")
            .skip(1)
            .map(|entry| entry[104..].split('\0').next().unwrap_or_default())
            .collect();
        assert_eq!(names, ["usr", "usr/bin", "usr/bin/x", "usr/y", "TRAILER!!!"]);
        let program = text.split("070701").nth(3).expect("the program");
        assert_eq!(&program[8..16], "000081ed", "a regular file, rwxr-xr-x");
        assert_eq!(&program[48..56], "00000005", "its size");
        // 110 bytes of header and 11 of name are padded by three, five of contents by three.
        assert_eq!(&program[104..], "usr/bin/x\0\0\0\0\0"[..10].to_owned() + "12345\0\0\0");
    }
}
