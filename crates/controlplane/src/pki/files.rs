//! Files that only root may read, written so that a crash leaves the old or the new one.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::PkiError;

/// A certificate or key file is small; above this it is something else.
const MAX_PEM_BYTES: u64 = 1 << 20;

pub(super) fn create_directory(path: &Path) -> Result<(), PkiError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| PkiError::File { path: path.to_owned(), source })
}

/// Writes a file with mode 0600 in one step.
pub(super) fn write_private(path: &Path, text: &str) -> Result<(), PkiError> {
    let fault = |source| PkiError::File { path: path.to_owned(), source };
    let fresh = path.with_extension("new");
    // What a crash left behind; the open below insists on a file of its own.
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fault(error)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh).map_err(fault)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(fault)?;
    std::fs::rename(&fresh, path).map_err(fault)?;
    match path.parent() {
        Some(parent) => File::open(parent).and_then(|parent| parent.sync_all()).map_err(fault),
        None => Ok(()),
    }
}

/// Reads a file; `None` when there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, PkiError> {
    let fault = |source| PkiError::File { path: path.to_owned(), source };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fault(error)),
        Ok(metadata) if metadata.len() > MAX_PEM_BYTES => {
            return Err(fault(std::io::Error::other("too large for a certificate or key")));
        }
        Ok(_) => {}
    }
    match std::fs::read(path) {
        // Damaged text is the caller's to judge: a leaf is made anew, the authority is not.
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) => Err(fault(error)),
    }
}
