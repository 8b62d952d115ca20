//! The CNI configuration: written last, whole or not at all, for its presence tells the runtime
//! that pods can be added.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use model::layout;

/// Writes the configuration list where it differs.
///
/// # Errors
/// The file system's.
pub(crate) fn write(directory: &Path, text: &str) -> Result<()> {
    let file = directory.join(layout::CNI_CONFIGURATION_FILE);
    if fs::read_to_string(&file).is_ok_and(|present| present == text) {
        return Ok(());
    }
    // Runtimes read *.conf, *.conflist and *.json: the unfinished file is none of them.
    let new = file.with_extension("new");
    let replace = || -> std::io::Result<()> {
        fs::create_dir_all(directory)?;
        let mut handle = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        handle.write_all(text.as_bytes())?;
        handle.sync_all()?;
        fs::rename(&new, &file)
    };
    replace().with_context(|| format!("writing {}", file.display()))
}
