//! [`Error`]: what failed, on which object, and the kernel's reason.

use std::fmt;

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The kernel's errno as a positive number; `EPROTO` when its answer could not be read.
    pub errno: i32,
    /// What was tried, with the object's name: completes "cannot …".
    pub action: String,
    /// The kernel's own words (extended acknowledgement), or ours when its answer was unreadable.
    pub reason: Option<String>,
}

impl Error {
    /// An error of the system, by its number.
    pub fn new(errno: i32, action: impl Into<String>) -> Self {
        Self { errno, action: action.into(), reason: None }
    }

    /// An answer of the kernel that does not follow its own format.
    pub fn malformed(action: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { errno: libc::EPROTO, action: action.into(), reason: Some(reason.into()) }
    }

    pub(crate) fn from_io(error: &std::io::Error, action: impl Into<String>) -> Self {
        Self::new(error.raw_os_error().unwrap_or(libc::EIO), action)
    }

    /// Whether the object was not there: what a removal may take for success.
    pub fn is_absent(&self) -> bool {
        matches!(self.errno, libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL)
    }

    /// Whether the object was there already.
    pub fn is_present(&self) -> bool {
        self.errno == libc::EEXIST
    }

    /// The same error under the name of the larger action that it stopped.
    #[must_use]
    pub fn during(mut self, action: impl fmt::Display) -> Self {
        self.action = format!("{action}: {}", self.action);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errno = nix::errno::Errno::from_raw(self.errno);
        write!(f, "cannot {}: {} ({errno:?})", self.action, errno.desc())?;
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}
