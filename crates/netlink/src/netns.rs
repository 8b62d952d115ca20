//! [`Netns`]: a network namespace held open, and how to make, enter and remove one.
//!
//! A namespace belongs to a thread: everything here that enters one leaves it again before it
//! returns, also when the work panics, so that no caller is ever left in a wrong place. (A thread
//! of its own for the work would do the same for thirty times the time.)

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::Error;

const SELF: &str = "/proc/thread-self/ns/net";

/// A network namespace, alive as long as this value is.
#[derive(Debug)]
pub struct Netns {
    file: File,
    name: String,
}

impl Netns {
    /// Opens the namespace at a path: a bind mount such as `/run/netns/x`, or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// `ENOENT` when nothing is there, `EINVAL` when it is no network namespace.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let action = || format!("open the network namespace {}", path.display());
        let file = File::open(path).map_err(|error| Error::from_io(&error, action()))?;
        if !is_namespace(&file) {
            return Err(Error {
                reason: Some("the file is no namespace: its mount is gone".into()),
                ..Error::new(libc::EINVAL, action())
            });
        }
        Ok(Self { file, name: path.display().to_string() })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> Result<Self, Error> {
        let file = File::open(SELF)
            .map_err(|error| Error::from_io(&error, "open the own network namespace"))?;
        Ok(Self { file, name: "own".into() })
    }

    /// Makes a namespace that only this value (and who holds a copy of its descriptor) keeps.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN`.
    pub fn create() -> Result<Self, Error> {
        let _back = enter_new()?;
        let mut own = Self::current()?;
        own.name = "unnamed".into();
        Ok(own)
    }

    /// Makes a namespace and mounts it at a path, so that it lives until [`Netns::delete_at`].
    /// Missing directories are made with mode 0700.
    ///
    /// # Errors
    /// `EEXIST` when something is there already, `EPERM` without `CAP_SYS_ADMIN`; nothing is
    /// left behind.
    pub fn create_at(path: &Path) -> Result<Self, Error> {
        let action = || format!("create the network namespace {}", path.display());
        let failed = |error: io::Error| Error::from_io(&error, action());
        if let Some(parent) = path.parent() {
            use std::os::unix::fs::DirBuilderExt;
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(parent).map_err(failed)?;
        }
        let target = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        target.map_err(failed)?;
        let make = || {
            let _back = enter_new()?;
            mount(Some(SELF), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(|errno| Error::new(errno as i32, action()))?;
            Self::open(path)
        };
        make().inspect_err(|_| {
            // Who may not make one may not unmount either, and then nothing is mounted.
            let _ = Self::delete_at(path).or_else(|_| fs::remove_file(path).map_err(failed));
        })
    }

    /// Unmounts the namespace at a path and removes the file. The namespace itself goes when
    /// nobody uses it any more. An absent path is no error.
    ///
    /// # Errors
    /// When the path cannot be unmounted or removed.
    pub fn delete_at(path: &Path) -> Result<(), Error> {
        let action = || format!("remove the network namespace {}", path.display());
        match umount2(path, MntFlags::MNT_DETACH) {
            // EINVAL: not a mount, such as what a crash between creation and mount leaves.
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(errno) => return Err(Error::new(errno as i32, action())),
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::from_io(&error, action()))
            }
            _ => Ok(()),
        }
    }

    /// Runs a closure inside the namespace and answers its result. Sockets that it opens stay in
    /// the namespace for their life. `/proc/sys/net` shows this namespace inside;
    /// `/sys/class/net` does not. Where the caller is in it already, no right is needed.
    ///
    /// # Errors
    /// When the namespace cannot be entered (it needs `CAP_SYS_ADMIN`).
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, Error> {
        let current = Self::current()?;
        if current.identity()? == self.identity()? {
            return Ok(work());
        }
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| {
            Error::new(errno as i32, format!("enter the network namespace {}", self.name))
        })?;
        let _back = Return(current);
        Ok(work())
    }

    /// What tells this namespace from all others that exist at the moment: device and inode.
    ///
    /// # Errors
    /// When the descriptor cannot be asked.
    pub fn identity(&self) -> Result<(u64, u64), Error> {
        let metadata = self.file.metadata().map_err(|error| {
            Error::from_io(&error, format!("identify the network namespace {}", self.name))
        })?;
        Ok((metadata.dev(), metadata.ino()))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn enter_new() -> Result<Return, Error> {
    let current = Netns::current()?;
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|errno| Error::new(errno as i32, "make a network namespace"))?;
    Ok(Return(current))
}

/// Whether a file lies on nsfs, where the kernel keeps namespaces (`NSFS_MAGIC`).
fn is_namespace(file: &File) -> bool {
    nix::sys::statfs::fstatfs(file)
        .is_ok_and(|system| system.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

/// Brings a thread that has left back to where it was.
struct Return(Netns);

impl Drop for Return {
    fn drop(&mut self) {
        if setns(self.0.file.as_fd(), CloneFlags::CLONE_NEWNET).is_err() {
            // Whoever could leave can return. What went on in a wrong namespace would break it.
            std::process::abort();
        }
    }
}
