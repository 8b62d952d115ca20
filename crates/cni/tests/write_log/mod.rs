//! What a program changes in a file system, as a log, and every state that a power cut may leave.
//!
//! The model is weaker than any journal: a name is durable only once its directory was synced,
//! contents only once their file was. Between two syncs any number of name changes may have
//! reached the disk, in order, and contents wholly, half or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::unistd::Pid;

use crate::tracer::{self, Call};

/// One file, whatever its names.
type Inode = usize;
/// Names that change in one step; `None` where a name goes.
type Names = Vec<(PathBuf, Option<Inode>)>;

/// One change.
#[derive(Clone, Debug)]
enum Change {
    Names(Names),
    /// At a place of the file.
    Write(Inode, usize, Vec<u8>),
    /// To a length.
    Truncate(Inode, usize),
    SyncFile(Inode),
    SyncDirectory(PathBuf),
}

/// All files below a directory: names relative to it, and contents. Names of one file share a
/// number.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct State {
    pub names: BTreeMap<PathBuf, Inode>,
    pub contents: BTreeMap<Inode, Vec<u8>>,
}

/// The changes below a directory, in order, and what was there before, all of it durable.
#[derive(Debug)]
pub struct WriteLog {
    root: PathBuf,
    before: State,
    changes: Vec<Change>,
    /// The names as the program sees them.
    current: BTreeMap<PathBuf, Inode>,
    next_inode: Inode,
    /// Where each open file is written next, by descriptor.
    offsets: BTreeMap<u64, usize>,
}

/// How much of the contents that were not synced has reached the disk.
#[derive(Clone, Copy, Debug)]
enum Unsynced {
    Lost,
    Torn,
    Whole,
}

impl State {
    /// Reads a directory.
    pub fn read(root: &Path) -> Self {
        let mut state = Self::default();
        let mut inodes = BTreeMap::new();
        let mut directories = vec![root.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory).expect("a directory").flatten() {
                let (path, metadata) = (entry.path(), entry.metadata().expect("there"));
                if metadata.is_dir() {
                    directories.push(path);
                    continue;
                }
                let count = inodes.len();
                let inode = *inodes.entry(metadata.ino()).or_insert(count);
                state.contents.insert(inode, fs::read(&path).expect("a file"));
                state.names.insert(relative(root, &path).expect("below"), inode);
            }
        }
        state.renumbered()
    }

    /// The same with numbers in the order of names, so that equal states are equal values.
    fn renumbered(&self) -> Self {
        let mut numbers = BTreeMap::new();
        let mut state = Self::default();
        for (name, inode) in &self.names {
            let count = numbers.len();
            let number = *numbers.entry(*inode).or_insert(count);
            state.names.insert(name.clone(), number);
            state.contents.insert(number, self.contents.get(inode).cloned().unwrap_or_default());
        }
        state
    }

    /// Writes the state into a directory that is empty.
    pub fn write(&self, root: &Path) {
        let mut written: BTreeMap<Inode, PathBuf> = BTreeMap::new();
        for (name, inode) in &self.names {
            let path = root.join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            match written.get(inode) {
                Some(first) => fs::hard_link(first, &path).expect("a second name"),
                None => {
                    fs::write(&path, &self.contents[inode]).expect("written");
                    written.insert(*inode, path);
                }
            }
        }
    }
}

impl WriteLog {
    /// Begins a log of what happens below a directory.
    pub fn new(root: &Path) -> Self {
        let before = State::read(root);
        let current = before.names.clone();
        let next_inode = before.contents.keys().max().map_or(0, |last| last + 1);
        let (root, offsets) = (root.to_owned(), BTreeMap::new());
        Self { root, before, changes: vec![], current, next_inode, offsets }
    }

    /// How many changes there were.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Takes note of a system call that succeeded.
    pub fn observe(&mut self, call: &Call, returned: i64) {
        let arguments = call.arguments;
        let thread = call.thread;
        match call.number {
            libc::SYS_openat => {
                self.opened(thread, returned as u64, arguments[2] as i32);
            }
            libc::SYS_write => self.written(thread, arguments[0], arguments[1], returned as usize),
            libc::SYS_ftruncate => self.truncated(thread, arguments[0], arguments[1] as usize),
            libc::SYS_writev | libc::SYS_pwrite64 | libc::SYS_lseek => {
                let path = self.of_descriptor(thread, arguments[0]);
                let is_file = path.is_some_and(|path| self.current.contains_key(&path));
                assert!(!is_file, "teach this to the log");
            }
            libc::SYS_fsync | libc::SYS_fdatasync => self.synced(thread, arguments[0]),
            libc::SYS_renameat | libc::SYS_renameat2 => {
                let from = self.path(thread, arguments[0], arguments[1]);
                let to = self.path(thread, arguments[2], arguments[3]);
                self.renamed(from, to);
            }
            libc::SYS_linkat => {
                let from = self.path(thread, arguments[0], arguments[1]);
                let to = self.path(thread, arguments[2], arguments[3]);
                self.linked(from, to);
            }
            libc::SYS_unlinkat => {
                let path = self.path(thread, arguments[0], arguments[1]);
                self.unlinked(path);
            }
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => self.opened(thread, returned as u64, arguments[1] as i32),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_rename => {
                let from = self.path(thread, libc::AT_FDCWD as u64, arguments[0]);
                let to = self.path(thread, libc::AT_FDCWD as u64, arguments[1]);
                self.renamed(from, to);
            }
            #[cfg(target_arch = "x86_64")]
            libc::SYS_link => {
                let from = self.path(thread, libc::AT_FDCWD as u64, arguments[0]);
                let to = self.path(thread, libc::AT_FDCWD as u64, arguments[1]);
                self.linked(from, to);
            }
            #[cfg(target_arch = "x86_64")]
            libc::SYS_unlink => {
                let path = self.path(thread, libc::AT_FDCWD as u64, arguments[0]);
                self.unlinked(path);
            }
            _ => {}
        }
    }

    /// Every state that a cut after the first `cut` changes may leave.
    pub fn states_after(&self, cut: usize) -> BTreeSet<State> {
        let mut names = self.before.names.clone();
        let mut pending: Vec<&Names> = Vec::new();
        let mut synced = self.before.contents.clone();
        let mut latest = synced.clone();
        for change in self.changes.iter().take(cut) {
            match change {
                Change::Names(batch) => pending.push(batch),
                Change::Write(inode, offset, bytes) => {
                    let content = latest.entry(*inode).or_default();
                    let end = offset + bytes.len();
                    content.resize(content.len().max(end), 0);
                    content[*offset..end].copy_from_slice(bytes);
                }
                Change::Truncate(inode, length) => {
                    latest.entry(*inode).or_default().resize(*length, 0);
                }
                Change::SyncFile(inode) => {
                    synced.insert(*inode, latest.get(inode).cloned().unwrap_or_default());
                }
                Change::SyncDirectory(directory) => {
                    let is_in = |batch: &Names| {
                        batch.iter().any(|(path, _)| path.parent() == Some(directory))
                    };
                    for batch in pending.iter().filter(|batch| is_in(batch)) {
                        rename_all(&mut names, batch);
                    }
                    pending.retain(|batch| !is_in(batch));
                }
            }
        }
        let mut states = BTreeSet::new();
        for durable in 0..=pending.len() {
            if let Some(batch) = durable.checked_sub(1).and_then(|last| pending.get(last)) {
                rename_all(&mut names, batch);
            }
            for unsynced in [Unsynced::Lost, Unsynced::Torn, Unsynced::Whole] {
                let used: BTreeSet<Inode> = names.values().copied().collect();
                let contents = used.into_iter().map(|inode| {
                    (inode, content(synced.get(&inode), latest.get(&inode), unsynced))
                });
                let state = State { names: names.clone(), contents: contents.collect() };
                states.insert(state.renumbered());
            }
        }
        states
    }

    fn opened(&mut self, thread: Pid, descriptor: u64, flags: i32) {
        if flags & libc::O_DIRECTORY != 0 {
            return;
        }
        assert_eq!(flags & libc::O_APPEND, 0, "teach this to the log");
        self.offsets.insert(descriptor, 0);
        let Some(path) = self.of_descriptor(thread, descriptor) else { return };
        if self.root.join(&path).is_dir() {
            return;
        }
        match self.current.get(&path) {
            None => {
                let inode = self.next_inode;
                self.next_inode += 1;
                self.rename(vec![(path, Some(inode))]);
            }
            Some(inode) if flags & libc::O_TRUNC != 0 => {
                self.changes.push(Change::Truncate(*inode, 0));
            }
            Some(_) => {}
        }
    }

    fn written(&mut self, thread: Pid, descriptor: u64, address: u64, length: usize) {
        let Some(path) = self.of_descriptor(thread, descriptor) else { return };
        let inode = *self.current.get(&path).expect("a file that was opened");
        let offset = self.offsets.entry(descriptor).or_default();
        let bytes = tracer::memory(thread, address, length);
        self.changes.push(Change::Write(inode, *offset, bytes));
        *offset += length;
    }

    fn truncated(&mut self, thread: Pid, descriptor: u64, length: usize) {
        let Some(path) = self.of_descriptor(thread, descriptor) else { return };
        let inode = *self.current.get(&path).expect("a file that was opened");
        self.changes.push(Change::Truncate(inode, length));
    }

    fn synced(&mut self, thread: Pid, descriptor: u64) {
        let Some(path) = self.of_descriptor(thread, descriptor) else { return };
        self.changes.push(match self.current.get(&path) {
            Some(inode) => Change::SyncFile(*inode),
            None => Change::SyncDirectory(path),
        });
    }

    fn renamed(&mut self, from: Option<PathBuf>, to: Option<PathBuf>) {
        if let (Some(from), Some(to)) = (from, to) {
            let inode = *self.current.get(&from).expect("a known name");
            self.rename(vec![(from, None), (to, Some(inode))]);
        }
    }

    fn linked(&mut self, from: Option<PathBuf>, to: Option<PathBuf>) {
        if let (Some(from), Some(to)) = (from, to) {
            let inode = *self.current.get(&from).expect("a known name");
            self.rename(vec![(to, Some(inode))]);
        }
    }

    fn unlinked(&mut self, path: Option<PathBuf>) {
        if let Some(path) = path {
            self.rename(vec![(path, None)]);
        }
    }

    fn rename(&mut self, batch: Names) {
        rename_all(&mut self.current, &batch);
        self.changes.push(Change::Names(batch));
    }

    /// The path of an open file; `None` outside of the directory.
    fn of_descriptor(&self, thread: Pid, descriptor: u64) -> Option<PathBuf> {
        let link = format!("/proc/{thread}/fd/{}", descriptor as i32);
        relative(&self.root, &fs::read_link(link).ok()?)
    }

    /// The path that a call names; `None` outside of the directory.
    fn path(&self, thread: Pid, directory: u64, address: u64) -> Option<PathBuf> {
        let name = tracer::text(thread, address);
        let base = match directory as i32 {
            libc::AT_FDCWD => PathBuf::new(),
            descriptor => fs::read_link(format!("/proc/{thread}/fd/{descriptor}")).ok()?,
        };
        relative(&self.root, &base.join(name))
    }
}

fn relative(root: &Path, path: &Path) -> Option<PathBuf> {
    path.strip_prefix(root).ok().map(Path::to_owned)
}

fn rename_all(names: &mut BTreeMap<PathBuf, Inode>, batch: &Names) {
    for (path, inode) in batch {
        match inode {
            Some(inode) => names.insert(path.clone(), *inode),
            None => names.remove(path),
        };
    }
}

fn content(synced: Option<&Vec<u8>>, latest: Option<&Vec<u8>>, unsynced: Unsynced) -> Vec<u8> {
    let (synced, latest) =
        (synced.cloned().unwrap_or_default(), latest.cloned().unwrap_or_default());
    match unsynced {
        _ if synced == latest => latest,
        Unsynced::Lost => synced,
        Unsynced::Whole => latest,
        Unsynced::Torn => {
            let kept = if latest.starts_with(&synced) { synced.len() } else { 0 };
            let new = kept + (latest.len() - kept) / 2;
            // Behind what is new stands what was there.
            latest.iter().take(new).chain(synced.iter().skip(new)).copied().collect()
        }
    }
}
