//! The files of one directory, reached through its descriptor: whatever happens to the path
//! meanwhile, and whatever stands under a name, nothing outside is read or written.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use model::Timestamp;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use super::Error;
use super::listing::Names;

/// Bytes read of a file at most; container ids and link names are far shorter.
const FILE_BYTES_MAX: u64 = 4096;
/// Names read of a directory at most: more than any node has addresses.
const NAMES_MAX: usize = 1 << 20;
const PRIVATE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// An open directory.
#[derive(Debug)]
pub(super) struct Files {
    path: PathBuf,
    directory: File,
}

/// What a regular file holds, and since when.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub text: String,
    pub modified: Timestamp,
}

impl Files {
    /// Opens a directory; `None` when it is not there.
    pub fn open(path: &Path) -> Result<Option<Self>, Error> {
        match File::open(path) {
            Ok(directory) => Ok(Some(Self { path: path.to_owned(), directory })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file("open", path, error)),
        }
    }

    /// Opens a directory; makes it, and those above, with mode 0700 where it is missing.
    pub fn open_or_make(path: &Path) -> Result<Self, Error> {
        if let Some(files) = Self::open(path)? {
            return Ok(files);
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|error| Error::file("create the directory", path, error))?;
        let missing = || Error::file("open", path, io::ErrorKind::NotFound.into());
        Self::open(path)?.ok_or_else(missing)
    }

    /// Locks by a file against every process that locks the same; waits for it. The kernel
    /// releases the lock of the dead.
    pub fn lock(&self, name: &str) -> Result<Flock<File>, Error> {
        let file = self
            .open_file(name, OFlag::O_RDONLY | OFlag::O_CREAT | OFlag::O_NONBLOCK)
            .map_err(|error| self.error("open", name, error))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| self.error("lock", name, errno.into()))
    }

    /// All names with their inodes.
    pub fn names(&self) -> Result<Names, Error> {
        let failed = |errno: Errno| Error::file("read", &self.path, errno.into());
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut directory =
            Dir::openat(&self.directory, ".", flags, Mode::empty()).map_err(failed)?;
        let mut names = Names::default();
        for (count, entry) in directory.iter().enumerate() {
            let entry = entry.map_err(failed)?;
            if count == NAMES_MAX {
                return Err(failed(Errno::EOVERFLOW));
            }
            if let Ok(name) = entry.file_name().to_str() {
                names.add(name, entry.ino());
            }
        }
        Ok(names)
    }

    /// The beginning of a regular file; `None` when the name leads to anything else: a link
    /// could lead anywhere, a pipe would block.
    pub fn read(&self, name: &str) -> Result<Option<Content>, Error> {
        let failed = |error| self.error("read", name, error);
        let file = match self.open_file(name, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
            Ok(file) => file,
            Err(error) => {
                return match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
                    Errno::ELOOP | Errno::ENXIO | Errno::ENOENT => Ok(None),
                    _ => Err(failed(error)),
                };
            }
        };
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
        let modified =
            metadata.modified().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        let microseconds = modified.map_or(0, |since| since.as_micros());
        Ok(Some(Content {
            text: String::from_utf8_lossy(&bytes).into_owned(),
            modified: Timestamp::from_microseconds(microseconds.try_into().unwrap_or_default()),
        }))
    }

    /// Makes a file that is whole on the disk when this returns. What stands under the name
    /// goes; under the lock it is what a crash left.
    pub fn create(&self, name: &str, text: &str) -> Result<(), Error> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        let mut opened = self.open_file(name, flags);
        if matches!(&opened, Err(error) if error.kind() == io::ErrorKind::AlreadyExists) {
            // It may be linked already: writing into it would change a reservation's owner.
            self.remove(name)?;
            opened = self.open_file(name, flags);
        }
        opened
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_data()
            })
            .map_err(|error| self.error("write", name, error))
    }

    /// Writes a file that may be torn by a crash. A pipe in its place has no reader, and would
    /// block: it fails. The file is never emptied: file systems take that for the begin of a
    /// replacement, and its end brings it to the disk at once.
    pub fn overwrite(&self, name: &str, text: &str) -> Result<(), Error> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NONBLOCK;
        let length = text.len() as u64;
        let write = |mut file: File| {
            if file.metadata()?.len() > length {
                file.set_len(length)?;
            }
            file.write_all(text.as_bytes())
        };
        self.open_file(name, flags)
            .and_then(write)
            .map_err(|error| self.error("write", name, error))
    }

    /// Gives a file a second name, which must be new.
    pub fn link(&self, from: &str, to: &str) -> Result<(), Error> {
        let directory = &self.directory;
        linkat(directory, from, directory, to, AtFlags::empty())
            .map_err(|errno| self.error("create", to, errno.into()))
    }

    /// Gives a file another name, in one step.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        renameat(&self.directory, from, &self.directory, to)
            .map_err(|errno| self.error("rename", from, errno.into()))
    }

    /// Removes a name. An absent one is no error.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        match unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(self.error("remove", name, errno.into())),
        }
    }

    /// Makes all names of the directory durable.
    pub fn sync(&self) -> Result<(), Error> {
        self.directory.sync_all().map_err(|error| Error::file("sync", &self.path, error))
    }

    fn open_file(&self, name: &str, flags: OFlag) -> io::Result<File> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(&self.directory, name, flags, PRIVATE)?.into())
    }

    fn error(&self, action: &'static str, name: &str, source: io::Error) -> Error {
        Error::file(action, &self.path.join(name), source)
    }
}
