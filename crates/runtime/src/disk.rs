//! Small files that a killed process must never leave half written, and the places of a pod's files.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Where the files of one pod are.
#[derive(Clone, Debug)]
pub struct PodDirectory {
    /// On disk: kept over a reboot.
    pub state: PathBuf,
    /// In memory: sockets, namespaces, secrets.
    pub run: PathBuf,
}

impl PodDirectory {
    /// The pod's object, the machine's memory and the status reported last.
    pub fn record(&self) -> PathBuf {
        self.state.join("pod.json")
    }

    /// The pod's attachment to the network.
    pub fn attachment(&self) -> PathBuf {
        self.state.join("cni.json")
    }

    /// A volume that belongs to the pod.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.state.join("volumes").join(name)
    }

    /// A volume that must not reach the disk.
    pub fn memory_volume(&self, name: &str) -> PathBuf {
        self.run.join("volumes").join(name)
    }

    /// Logs and exit codes of a container.
    pub fn container(&self, name: &str) -> PathBuf {
        self.state.join("containers").join(name)
    }

    /// The log of one start of a container.
    pub fn log(&self, name: &str, restarts: u32) -> PathBuf {
        self.container(name).join(format!("{restarts}.log"))
    }

    /// The exit of one start of a container.
    pub fn exit(&self, name: &str, restarts: u32) -> PathBuf {
        self.container(name).join(format!("{restarts}.exit"))
    }

    /// What one start of a container writes.
    pub fn layers(&self, name: &str, restarts: u32) -> PathBuf {
        self.container(name).join(restarts.to_string())
    }

    /// What a container's environment came from at its last start. It may hold secrets: in memory.
    pub fn sources(&self, name: &str) -> PathBuf {
        self.run.join(format!("{name}.sources"))
    }

    /// Where the pause process listens.
    pub fn socket(&self) -> PathBuf {
        self.run.join("pause.sock")
    }

    /// Where the memory is mounted that containers share, in the pod's mount namespace.
    pub fn shared_memory(&self) -> PathBuf {
        self.run.join("shm")
    }

    /// The pod's network namespace.
    pub fn namespace(&self) -> PathBuf {
        self.run.join("net")
    }
}

/// Makes a directory and its parents, for root only.
///
/// # Errors
/// The path and the reason.
pub fn make_private(path: &Path) -> Result<(), String> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| format!("cannot make {}: {error}", path.display()))
}

/// Writes a file as a whole: a reader sees the old or the new one.
///
/// # Errors
/// The path and the reason, such as a full disk.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), String> {
    let temporary = path.with_extension("new");
    let written = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(mode)
        .open(&temporary)
        .and_then(|mut file| file.write_all(content))
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// Writes a value as JSON, as a whole.
///
/// # Errors
/// The path and the reason.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), String> {
    let text = serde_json::to_vec(value).map_err(|error| error.to_string())?;
    write(path, &text, 0o600)
}

/// Reads a value; `None` for a file that is not there or not whole.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Removes a directory and all in it. An absent one is no error.
///
/// # Errors
/// The path and the reason.
pub fn remove_tree(path: &Path) -> Result<(), String> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", path.display()))
        }
        _ => Ok(()),
    }
}
