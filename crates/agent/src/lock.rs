//! One agent a node: two would undo each other's work.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// The lock's name in the run directory. It holds the process id, for people.
const LOCK_FILE: &str = "agent.lock";
/// Bytes of it that are read.
const NUMBER_BYTES_MAX: u64 = 32;

/// Held as long as the value lives; the kernel releases it with the process, however that ends.
pub(crate) struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Removes the lock's file, and its directory when nothing else is in it.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn remove(self, run_directory: &Path) -> Result<()> {
        std::fs::remove_file(run_directory.join(LOCK_FILE)).context("removing the agent's lock")?;
        // Clusters of this machine may be in it.
        let _ = std::fs::remove_dir(run_directory);
        Ok(())
    }
}

/// Takes the lock of this node.
///
/// # Errors
/// When another agent has it, naming its process; or the file system's.
pub(crate) fn take(run_directory: &Path) -> Result<Lock> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run_directory)
        .and_then(|()| {
            // A kubelet that mounts it makes it for all to read.
            std::fs::set_permissions(run_directory, Permissions::from_mode(0o700))
        })
        .with_context(|| format!("making {}", run_directory.display()))?;
    let path = run_directory.join(LOCK_FILE);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut file) => {
            file.set_len(0)?;
            writeln!(file, "{}", std::process::id())?;
            Ok(Lock { _file: file })
        }
        Err((file, Errno::EWOULDBLOCK)) => {
            let mut number = String::new();
            let _ = file.take(NUMBER_BYTES_MAX).read_to_string(&mut number);
            bail!(
                "another agent works on this node (process {}, by {}): two would undo each \
                 other's work; stop it first, or do not start this one",
                number.trim(),
                path.display()
            )
        }
        Err((_, error)) => Err(error).with_context(|| format!("locking {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    ///
    #[test]
    fn a_second_agent_of_a_node_is_refused_with_the_process_of_the_first() {
        let directory = std::env::temp_dir().join(format!("flatnet-lock-{}", std::process::id()));
        // also where somebody else made the directory.
        std::fs::create_dir(&directory).expect("made");
        std::fs::set_permissions(&directory, Permissions::from_mode(0o755)).expect("set");
        let first = take(&directory).expect("free");
        let mode = std::fs::metadata(&directory).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let error = take(&directory).err().expect("refused").to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        take(&directory).expect("free again");
        std::fs::remove_dir_all(&directory).expect("removed");
    }
}
