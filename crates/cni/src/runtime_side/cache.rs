//! [`Cache`]: results of ADD until DEL, in libcni's files and form, so that either finds what the
//! other added.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{List, Target};
use crate::fault::Fault;
use crate::records::{lock, refuse_shared, store_fault};

/// Where libcni keeps results, in a directory `results`.
pub const CACHE_DIRECTORY: &str = "/var/lib/cni";
const RESULTS: &str = "results";
/// What libcni writes into each file; others are not its.
const KIND: &str = "cniCacheV1";
/// Bytes of a file that are read at most.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Files that are looked at, at most.
const FILES_MAX: usize = 1 << 16;

/// The results of one network, locked: shared against a GC, or for a GC.
#[derive(Debug)]
pub(super) struct Cache {
    directory: PathBuf,
    network: String,
    _lock: Flock<File>,
}

/// One file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Entry {
    kind: String,
    container_id: String,
    /// The list, as base64.
    config: String,
    if_name: String,
    network_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    netns: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cni_args: Vec<(String, String)>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    capability_args: Map<String, Value>,
    /// The last result of ADD.
    pub(super) result: Value,
}

impl Cache {
    pub(super) fn open(base: &Path, network: &str, kind: FlockArg) -> Result<Self, Fault> {
        let directory = base.join(RESULTS);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|error| store_fault("create the directory", &directory, error))?;
        refuse_shared(&directory)?;
        let lock = lock(&directory.join(format!(".{network}.lock")), kind)?;
        Ok(Self { directory, network: network.to_owned(), _lock: lock })
    }

    /// What is kept of a target; `None` when it was never added, or the file is damaged.
    pub(super) fn read(&self, target: &Target) -> Result<Option<Entry>, Fault> {
        let path = self.path(target);
        match read(&path) {
            Ok(entry) => Ok(entry),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(store_fault("read", &path, error)),
        }
    }

    pub(super) fn write(&self, list: &List, target: &Target, result: &Value) -> Result<(), Fault> {
        let entry = Entry {
            kind: KIND.into(),
            container_id: target.container_id.clone(),
            config: STANDARD.encode(list.document().to_string()),
            if_name: target.interface.clone(),
            network_name: self.network.clone(),
            netns: target.namespace.display().to_string(),
            cni_args: target.arguments.clone(),
            capability_args: target.capabilities.clone(),
            result: result.clone(),
        };
        let path = self.path(target);
        let unfinished = self.directory.join(format!(".{}", self.name(target)));
        let write = || {
            let text = serde_json::to_vec(&entry)?;
            let _ = fs::remove_file(&unfinished);
            let mut options = OpenOptions::new();
            let options = options.write(true).create_new(true).mode(0o600);
            let mut file = options.open(&unfinished)?;
            file.write_all(&text)?;
            // DEL needs it after the power failed, too.
            file.sync_all()?;
            fs::rename(&unfinished, &path)
        };
        write().map_err(|error| store_fault("write", &path, error))
    }

    pub(super) fn remove(&self, target: &Target) -> Result<(), Fault> {
        let path = self.path(target);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(store_fault("remove", &path, error))
            }
            _ => Ok(()),
        }
    }

    /// All that was added to the network and not deleted. Damaged files are passed over.
    pub(super) fn targets(&self) -> Result<Vec<Target>, Fault> {
        let failed = |error| store_fault("read", &self.directory, error);
        let mut targets = Vec::new();
        for file in fs::read_dir(&self.directory).map_err(failed)?.take(FILES_MAX) {
            let path = file.map_err(failed)?.path();
            let entry = read(&path).unwrap_or_default();
            let Some(entry) = entry.filter(|entry| entry.network_name == self.network) else {
                continue;
            };
            targets.push(Target {
                container_id: entry.container_id,
                namespace: entry.netns.into(),
                interface: entry.if_name,
                arguments: entry.cni_args,
                capabilities: entry.capability_args,
            });
        }
        targets.sort_by(|one, two| {
            (&one.container_id, &one.interface).cmp(&(&two.container_id, &two.interface))
        });
        Ok(targets)
    }

    fn path(&self, target: &Target) -> PathBuf {
        self.directory.join(self.name(target))
    }

    fn name(&self, target: &Target) -> String {
        format!("{}-{}-{}", self.network, target.container_id, target.interface)
    }
}

fn read(path: &Path) -> io::Result<Option<Entry>> {
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    let entry: Option<Entry> = serde_json::from_slice(&bytes).ok();
    Ok(entry.filter(|entry| entry.kind == KIND))
}
