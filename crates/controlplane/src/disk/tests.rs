//! the store after `kill -9`, and after a power cut, at every call that it makes to its file.
//!
//! A kill leaves what was written so far. A power cut leaves what was synced; of what was written
//! since, each piece is there, half there or not there, by a seed. Lengths of the file are taken for
//! kept, as file systems with a journal keep them.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{ClusterConfig, Timestamp};
use redb::StorageBackend;
use serde_json::{Value, json};
use store::webhooks::Admission;
use store::{
    Action, Context, DeleteOptions, FieldValidation, ListOptions, Random, Record, Request,
    Resource, Store, StoreConfig, registry,
};

use super::Disk;

/// Commits of one history.
const COMMITS: usize = 24;
/// Different power cuts at each call.
const CUTS: u64 = 2;
/// Log entries that are kept in the history: older ones are forgotten, as windows forget them.
const KEPT_LOG_ENTRIES: u64 = 20;

/// What the store asked of its file.
#[derive(Clone, Debug)]
enum Call {
    Write(usize, Vec<u8>),
    Resize(usize),
    Sync,
}

/// A file in memory that remembers every call.
#[derive(Clone, Debug, Default)]
struct Tape(Arc<Mutex<(Vec<u8>, Vec<Call>)>>);

impl Tape {
    fn of(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new((bytes, Vec::new()))))
    }

    fn lock(&self) -> MutexGuard<'_, (Vec<u8>, Vec<Call>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn calls(&self) -> usize {
        self.lock().1.len()
    }

    fn do_call(&self, call: Call) {
        let mut tape = self.lock();
        apply(&mut tape.0, &call);
        tape.1.push(call);
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("a file that fits into memory")
}

fn apply(bytes: &mut Vec<u8>, call: &Call) {
    match call {
        Call::Write(offset, data) => {
            let end = offset + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*offset..end].copy_from_slice(data);
        }
        Call::Resize(length) => bytes.resize(*length, 0),
        Call::Sync => {}
    }
}

impl StorageBackend for Tape {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().0.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let tape = self.lock();
        let range = index(offset)..index(offset) + out.len();
        let found = tape.0.get(range).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.do_call(Call::Resize(index(length)));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.do_call(Call::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.do_call(Call::Write(index(offset), data.to_vec()));
        Ok(())
    }
}

struct Seed(u64);

impl Random for Seed {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 27)
    }
}

impl Seed {
    fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
}

/// What clients see: the objects by name, and the revision.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    objects: BTreeMap<String, Value>,
    revision: u64,
}

/// A history of commits, and all that it did to the file.
struct History {
    calls: Vec<Call>,
    /// After how many calls which state was acknowledged.
    acknowledged: Vec<(usize, Seen)>,
}

fn config_maps() -> &'static Resource {
    registry::by_kind("v1", "ConfigMap").expect("a row")
}

fn store_config() -> StoreConfig {
    StoreConfig::from(&ClusterConfig::default())
}

fn open(tape: Tape) -> Disk {
    Disk::over(tape, PathBuf::from("tape")).expect("it opens")
}

fn seen(store: &Store) -> Seen {
    let list = store.list(config_maps(), &ListOptions::default()).expect("a list");
    let objects = list.items.iter().map(|one| (one.key.name.clone(), one.value.clone())).collect();
    Seen { objects, revision: store.revision() }
}

/// Some requests of one batch: new ConfigMaps, changed ones, and deletions.
fn stage(store: &mut Store, commit: usize, seed: &mut Seed) -> Vec<Record> {
    let mut records = Vec::new();
    for _ in 0..=seed.below(5) {
        let name = format!("c{}", seed.below(9));
        let size = index(seed.below(3_000));
        let body = json!({"metadata": {"name": &name}, "data": {"commit": commit.to_string(),
            "text": "x".repeat(size)}});
        let action = match seed.below(3) {
            0 => Action::Delete(DeleteOptions::default()),
            1 => Action::Create(body),
            _ => Action::Update(body),
        };
        let is_new = matches!(action, Action::Create(_));
        let request = Request {
            resource: config_maps(),
            namespace: "default".to_owned(),
            name: if is_new { String::new() } else { name },
            subresource: None,
            action,
        };
        let mut context = Context {
            now: Timestamp::from_seconds(1_800_000_000),
            random: seed,
            subject: None,
            manager: "test",
            create_refusal: None,
            dry_run: false,
            validation: FieldValidation::default(),
            admission: Admission::Whole,
        };
        // What is there already, or is not there, is refused and leaves no record.
        if let Ok(staged) = store.stage(&request, &mut context) {
            records.extend(staged.records);
        }
    }
    records
}

fn live(seed: &mut Seed) -> History {
    let tape = Tape::default();
    let disk = open(tape.clone());
    let mut store = Store::new(store_config());
    let namespace = Request {
        resource: registry::by_kind("v1", "Namespace").expect("a row"),
        namespace: String::new(),
        name: String::new(),
        subresource: None,
        action: Action::Create(json!({"metadata": {"name": "default"}})),
    };
    let mut acknowledged = vec![(tape.calls(), seen(&store))];
    let mut forgotten = 0;
    for commit in 0..COMMITS {
        let records = match commit {
            0 => {
                let mut context = Context {
                    now: Timestamp::from_seconds(1_800_000_000),
                    random: seed,
                    subject: None,
                    manager: "test",
                    create_refusal: None,
                    dry_run: false,
                    validation: FieldValidation::default(),
                    admission: Admission::Whole,
                };
                store.stage(&namespace, &mut context).expect("the namespace").records
            }
            _ => stage(&mut store, commit, seed),
        };
        if records.is_empty() {
            continue;
        }
        let until = store.revision().saturating_sub(KEPT_LOG_ENTRIES);
        let dropped: Vec<u64> = (forgotten + 1..=until).collect();
        forgotten = forgotten.max(until);
        disk.commit(&records, &dropped).expect("committed");
        store.publish();
        acknowledged.push((tape.calls(), seen(&store)));
    }
    drop(disk);
    let calls = tape.lock().1.clone();
    History { calls, acknowledged }
}

/// What a power cut leaves of the calls before it.
fn after_cut(calls: &[Call], seed: &mut Seed) -> Vec<u8> {
    let synced = calls.iter().rposition(|call| matches!(call, Call::Sync)).map_or(0, |at| at + 1);
    let mut bytes = Vec::new();
    let (kept, unsure) = calls.split_at(synced);
    kept.iter().for_each(|call| apply(&mut bytes, call));
    for call in unsure {
        match (call, seed.below(3)) {
            (Call::Write(..), 0) => {}
            (Call::Write(offset, data), 1) => {
                let half = data[..data.len() / 2].to_vec();
                apply(&mut bytes, &Call::Write(*offset, half));
            }
            _ => apply(&mut bytes, call),
        }
    }
    bytes
}

/// Opens what is left: it is what was acknowledged last, or that with the whole of the commit that
/// was under way.
fn check(bytes: Vec<u8>, history: &History, call: usize, what: &str) {
    let disk = open(Tape::of(bytes));
    let (store, _) = disk.load(store_config()).expect("it loads");
    let found = seen(&store);
    let done = history.acknowledged.iter().rposition(|(after, _)| *after <= call);
    let last = done.unwrap_or(0);
    let allowed = &history.acknowledged[last..(last + 2).min(history.acknowledged.len())];
    let fits = allowed.iter().any(|(_, state)| *state == found);
    let revisions: Vec<u64> = allowed.iter().map(|(_, state)| state.revision).collect();
    assert!(fits, "{what} at call {call}: revision {} of {revisions:?}", found.revision);
}

#[test]
fn what_was_acknowledged_survives_an_end_at_every_call() {
    let history = live(&mut Seed(1));
    let commits = history.acknowledged.len();
    let calls = history.calls.len();
    assert!(commits > COMMITS / 2 && calls > 4 * commits, "{commits} commits, {calls} calls");
    let mut killed = Vec::new();
    let (whole, _) = history.acknowledged[0];
    for (at, call) in history.calls.iter().enumerate() {
        if at < whole {
            // It has not got its name yet, and is made anew.
            apply(&mut killed, call);
            continue;
        }
        check(killed.clone(), &history, at, "killed");
        for cut in 0..CUTS {
            let seed = &mut Seed(at as u64 * CUTS + cut);
            check(after_cut(&history.calls[..at], seed), &history, at, "power cut");
        }
        apply(&mut killed, call);
    }
    check(killed, &history, calls, "ended");
}

#[test]
fn a_file_that_was_never_finished_is_made_anew() {
    let directory = std::env::temp_dir().join(format!("flatnet-disk-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    std::fs::write(directory.join(super::UNFINISHED_FILE), vec![7; 5_000]).expect("half a file");
    let disk = Disk::open(&directory).expect("it opens");
    assert!(!directory.join(super::UNFINISHED_FILE).exists(), "it has its name now");
    assert!(matches!(Disk::open(&directory), Err(super::DiskError::InUse { .. })));
    drop(disk);
    Disk::open(&directory).expect("it opens again");
    std::fs::remove_dir_all(&directory).expect("removed");
}
