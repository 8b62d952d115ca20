//! The store's durability: one redb file with the objects and the log that watches resume from.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{
    Database, DatabaseError, ReadableDatabase as _, ReadableTable, StorageBackend, TableDefinition,
};
use store::record::object_from_bytes;
use store::{Definitions, Record, RestoreError, Store, StoreConfig, WATCH_WINDOW_EVENTS};

#[cfg(test)]
mod tests;

/// The file's name in the state directory.
pub const FILE: &str = "store.redb";
/// Its name while it is made.
const UNFINISHED_FILE: &str = "store.redb.new";

/// redb's page cache, bytes. All objects live in memory anyway: it only serves commits.
const CACHE_BYTES: usize = 1 << 20;

/// Current objects, by `STORAGE/NAMESPACE/NAME`.
const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
/// The keys of CustomResourceDefinitions: `0` follows `/`.
const DEFINITIONS: Range<&str> = "customresourcedefinitions.apiextensions.k8s.io/"
    .."customresourcedefinitions.apiextensions.k8s.io0";
/// What the watch windows hold, by revision.
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// The file's own facts.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// The key in [`META`] of the file's layout.
const LAYOUT_KEY: &str = "layout";
/// The layout that this program writes.
const LAYOUT: u64 = 1;

/// The open file.
pub(crate) struct Disk {
    database: Database,
    path: PathBuf,
}

/// Why stored objects cannot be had, or a write cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file cannot be opened at all.
    #[error("{path}: {problem}; check the permissions and the space of the state directory")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        problem: String,
    },
    /// Another process has it.
    #[error(
        "{path} is in use: another control plane of this cluster runs; `flatnet status` shows it"
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is not what we wrote.
    #[error(
        "{path} is damaged: {problem}; restore it from a copy, or move it away to start with an \
         empty cluster (all objects are lost then)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// An entry of it cannot be read.
    #[error("{path}: {source}")]
    Restore {
        /// The file.
        path: PathBuf,
        /// Which entry, and what to do.
        source: RestoreError,
    },
    /// A commit failed.
    #[error("{path} cannot be written: {problem}; check the space and the health of the disk")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        problem: String,
    },
}

impl Disk {
    /// Opens or makes the file in a state directory, mode 0600.
    ///
    /// A new one gets its name when it is whole: half of one could never be opened again.
    pub fn open(directory: &Path) -> Result<Self, DiskError> {
        let path = directory.join(FILE);
        if path.exists() {
            return Self::over(lock(&path)?, path);
        }
        let unfinished = directory.join(UNFINISHED_FILE);
        let file = lock(&unfinished)?;
        let cannot = |error: io::Error| open_error(&unfinished, &error);
        // What a process left that was killed here.
        file.set_len(0).map_err(cannot)?;
        let disk = Self::over(file, path)?;
        // It stays open, and so locked, under its new name.
        fs::rename(&unfinished, &disk.path).map_err(cannot)?;
        File::open(directory).and_then(|found| found.sync_all()).map_err(cannot)?;
        Ok(disk)
    }

    /// Opens what lies in a file, or whatever else keeps bytes.
    fn over(bytes: impl StorageBackend, path: PathBuf) -> Result<Self, DiskError> {
        let builder = &mut Database::builder();
        let opened = builder.set_cache_size(CACHE_BYTES).create_with_backend(bytes);
        let database = opened.map_err(|error| refusal(error, path.clone()))?;
        let disk = Self { database, path };
        disk.check_layout()?;
        Ok(disk)
    }

    /// The store as it was when the last commit returned, and log entries that no watch window
    /// holds any more: a crash came before they were forgotten.
    pub fn load(&self, config: StoreConfig) -> Result<(Store, Vec<u64>), DiskError> {
        let restore = |source| DiskError::Restore { path: self.path.clone(), source };
        let transaction = self.database.begin_read().map_err(|error| self.damaged(error))?;
        let mut objects = Vec::new();
        let table = transaction.open_table(OBJECTS).map_err(|error| self.damaged(error))?;
        let definitions = self.definitions(&table)?;
        for entry in table.iter().map_err(|error| self.damaged(error))? {
            let (key, value) = entry.map_err(|error| self.damaged(error))?;
            objects.push(
                object_from_bytes(&definitions, key.value(), value.value()).map_err(restore)?,
            );
        }
        let (mut log, mut orphans) = (Vec::new(), Vec::new());
        let table = transaction.open_table(LOG).map_err(|error| self.damaged(error))?;
        for entry in table.iter().map_err(|error| self.damaged(error))? {
            let (revision, value) = entry.map_err(|error| self.damaged(error))?;
            match Record::from_bytes(&definitions, revision.value(), value.value()) {
                Ok(record) => log.push(record),
                // Its definition is gone, and so are its watches.
                Err(RestoreError::UnknownResource { .. }) => orphans.push(revision.value()),
                Err(error) => return Err(restore(error)),
            }
        }
        let mut surplus = beyond_window(&log);
        surplus.append(&mut orphans);
        Ok((Store::restore(config, definitions, objects, log).map_err(restore)?, surplus))
    }

    /// The definitions come first: they say what the other objects are.
    fn definitions(
        &self,
        objects: &impl ReadableTable<&'static str, &'static [u8]>,
    ) -> Result<Definitions, DiskError> {
        let restore = |source| DiskError::Restore { path: self.path.clone(), source };
        let mut definitions = Definitions::default();
        let range = objects.range(DEFINITIONS).map_err(|error| self.damaged(error))?;
        for entry in range {
            let (key, value) = entry.map_err(|error| self.damaged(error))?;
            let definition = object_from_bytes(&definitions, key.value(), value.value());
            definitions.take(&definition.map_err(restore)?.value);
        }
        Ok(definitions)
    }

    /// Makes records durable, all or none, and forgets log entries that no watch needs.
    pub fn commit(&self, records: &[Record], dropped: &[u64]) -> Result<(), DiskError> {
        self.try_commit(records, dropped).map_err(|error| DiskError::Write {
            path: self.path.clone(),
            problem: error.to_string(),
        })
    }

    fn try_commit(&self, records: &[Record], dropped: &[u64]) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut objects = transaction.open_table(OBJECTS)?;
            let mut log = transaction.open_table(LOG)?;
            for record in records {
                let key = record.object_key();
                match record.object_bytes() {
                    Some(bytes) => objects.insert(key.as_str(), bytes)?,
                    None => objects.remove(key.as_str())?,
                };
                log.insert(record.revision, record.to_bytes().as_slice())?;
            }
            for revision in dropped {
                log.remove(revision)?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Writes the layout into a new file; refuses one that a newer program wrote.
    fn check_layout(&self) -> Result<(), DiskError> {
        let found = self.try_layout().map_err(|error| self.damaged(error))?;
        if found == LAYOUT {
            return Ok(());
        }
        let problem = format!("its layout is {found}, this program knows {LAYOUT}");
        Err(DiskError::Open { path: self.path.clone(), problem })
    }

    fn try_layout(&self) -> Result<u64, redb::Error> {
        let transaction = self.database.begin_write()?;
        let found = {
            let mut meta = transaction.open_table(META)?;
            let found = meta.get(LAYOUT_KEY)?.map(|entry| entry.value());
            if found.is_none() {
                meta.insert(LAYOUT_KEY, LAYOUT)?;
            }
            transaction.open_table(OBJECTS)?;
            transaction.open_table(LOG)?;
            found
        };
        match found {
            Some(found) => {
                transaction.abort()?;
                Ok(found)
            }
            None => {
                transaction.commit()?;
                Ok(LAYOUT)
            }
        }
    }

    fn damaged(&self, problem: impl ToString) -> DiskError {
        DiskError::Damaged { path: self.path.clone(), problem: problem.to_string() }
    }
}

/// Opens a file for this process alone.
fn lock(path: &Path) -> Result<FileBackend, DiskError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| open_error(path, &error))?;
    FileBackend::new(file).map_err(|error| refusal(error, path.to_owned()))
}

fn open_error(path: &Path, error: &io::Error) -> DiskError {
    DiskError::Open { path: path.to_owned(), problem: error.to_string() }
}

fn refusal(error: DatabaseError, path: PathBuf) -> DiskError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => DiskError::InUse { path },
        other => DiskError::Damaged { path, problem: other.to_string() },
    }
}

/// The revisions of records, given in order, that are older than the window of their storage.
fn beyond_window(log: &[Record]) -> Vec<u64> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let newest_first = log.iter().rev();
    let surplus = newest_first.filter(|record| {
        let count = seen.entry(record.resource().storage).or_default();
        *count += 1;
        *count > WATCH_WINDOW_EVENTS
    });
    surplus.map(|record| record.revision).collect()
}
