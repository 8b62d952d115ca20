//! The whole program as a user runs it: `flatnet up` from `target/flatnet/`, kubectl, and programs
//! in pods, in nodes and outside. Needs root; without it every test fails and says so.

pub mod balancer;
pub mod cluster;
pub mod inventory;
pub mod load;
pub mod node_state;
pub mod outside;
pub mod processes;
pub mod questions;
pub mod runner;
pub mod sender;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The checkout.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// One of the programs that `./x build` gathers, or of the directory that `E2E_PROGRAMS` names.
pub fn program(name: &str) -> PathBuf {
    let directory = std::env::var_os("E2E_PROGRAMS").map(PathBuf::from);
    directory.unwrap_or_else(|| workspace().join("target/flatnet")).join(name)
}

/// Waits until `check` succeeds, and fails with its last error when that takes too long.
///
/// # Errors
/// The last error of `check`, with what was waited for.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut check: impl FnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                bail!("not within {} ms: {what}: {error:#}", limit.as_millis())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
