//! Kernel parameters below `/proc/sys/net`, of the calling thread's network namespace.
//!
//! Keys are paths with slashes (`net/ipv4/conf/flatnet.1/rp_filter`), because link names may
//! hold the dots that `sysctl -w` writes between the parts.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use crate::Error;

/// The bit of a file's mode.
const OWNER_MAY_WRITE: u32 = 0o200;
/// Where a container may see the host's `/proc/sys`, whose own is read-only.
pub const HOST_ROOT: &str = "/host/proc/sys";

/// Reads a parameter, without surrounding white space.
///
/// # Errors
/// `ENOENT` when the kernel, or the link in the key, does not have it; `EINVAL` for a key that
/// is not below `net/`.
pub fn read(key: &str) -> Result<String, Error> {
    let action = || format!("read the kernel parameter {key}");
    let path = path_of(key).ok_or_else(|| Error::new(libc::EINVAL, action()))?;
    let text = fs::read_to_string(path).map_err(|error| Error::from_io(&error, action()))?;
    Ok(text.trim().to_owned())
}

/// Whether the kernel lets a parameter be written in this network namespace at all: some are the
/// machine's, and only its first namespace sets them.
pub fn is_writable(key: &str) -> bool {
    let metadata = path_of(key).and_then(|path| fs::metadata(path).ok());
    metadata.is_some_and(|metadata| metadata.permissions().mode() & OWNER_MAY_WRITE != 0)
}

/// Writes a parameter.
///
/// # Errors
/// As [`read`]; `EINVAL` also for a value that the kernel refuses.
pub fn write(key: &str, value: &str) -> Result<(), Error> {
    let action = || format!("set the kernel parameter {key} to {value}");
    let path = path_of(key).ok_or_else(|| Error::new(libc::EINVAL, action()))?;
    let written = write_file(&path, value).or_else(|error| {
        let host = Path::new(HOST_ROOT).join(key);
        match error.raw_os_error() {
            Some(libc::EROFS) if host.exists() => write_file(&host, value),
            _ => Err(error),
        }
    });
    written.map_err(|error| Error::from_io(&error, action()))
}

/// Writes several parameters of one directory, such as those of a link. The way to the directory is
/// looked up once: on a node with hundreds of pods each look-up passes what the kernel remembers of
/// every other namespace. Parameters that the kernel does not have are passed over.
///
/// # Errors
/// `ENOENT` when the directory is not there; otherwise as [`write`].
pub fn write_all(directory: &str, parameters: &[(&str, &str)]) -> Result<(), Error> {
    let failed = |errno: Errno, action: String| Error::new(errno as i32, action);
    let action = || format!("open the kernel parameters {directory}");
    let path = path_of(directory).ok_or_else(|| Error::new(libc::EINVAL, action()))?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let inside: OwnedFd =
        open(&path, flags, Mode::empty()).map_err(|errno| failed(errno, action()))?;
    for (name, value) in parameters {
        let action = || format!("set the kernel parameter {directory}/{name} to {value}");
        if name.contains('/') || name.starts_with('.') {
            return Err(failed(Errno::EINVAL, action()));
        }
        match openat(&inside, *name, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()) {
            Ok(file) => File::from(file)
                .write_all(value.as_bytes())
                .map_err(|error| Error::from_io(&error, action()))?,
            Err(Errno::ENOENT) => {}
            // Only elsewhere, it may be.
            Err(Errno::EROFS) => write(&format!("{directory}/{name}"), value)?,
            Err(errno) => return Err(failed(errno, action())),
        }
    }
    Ok(())
}

/// Without the flags that make or empty a file, for which the kernel would lock the directory.
fn write_file(path: &Path, value: &str) -> io::Result<()> {
    File::options().write(true).open(path)?.write_all(value.as_bytes())
}

/// The file of a key; `None` for one that could leave `/proc/sys/net`.
fn path_of(key: &str) -> Option<PathBuf> {
    let inside = key.strip_prefix("net/")?;
    let plain = inside.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    plain.then(|| PathBuf::from("/proc/sys").join(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_below_the_network_parameters() {
        assert!(path_of("net/ipv4/conf/flatnet.1/rp_filter").is_some());
        for outside in ["kernel/panic", "net/../kernel/panic", "net//x", "net/", "/net/ipv4", ""] {
            assert_eq!(path_of(outside), None, "{outside:?}");
        }
    }
}
