//! [`Records`]: all attachments of a network on this node, one file each, written before the
//! kernel is changed and removed after it has been changed back.
//!
//! ```text
//! /var/lib/cni/flatnet/NETWORK/CONTAINER-INTERFACE.json   an Attachment
//! /var/lib/cni/flatnet/NETWORK/lock                       held while the kernel is changed
//! /var/lib/cni/flatnet/NETWORK/boot                       the boot that the records were last compared with
//! ```
//!
//! What a record describes does not outlive the machine's boot, so a record that the power took
//! away is no loss; addresses, which do, are synced by the allocator's own directory. A torn file
//! names its container and interface all the same.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, SystemTime};

use model::Attachment;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;

use crate::fault::{Fault, STATE_STORE, TRY_AGAIN};

/// Longest wait for the lock, seconds: hundreds of ADDs at once take less.
const LOCK_WAIT_S: u64 = 40;
/// Bytes of a record that are read at most; the largest have all ports of a node.
const RECORD_BYTES_MAX: u64 = 64 << 20;
/// Records of a network that are read at most: more than any node has pods.
const RECORDS_MAX: usize = 1 << 16;
const LOCK_FILE: &str = "lock";
/// A file that is being written; under the lock at most one, left over only by a crash.
const UNFINISHED_FILE: &str = ".unfinished";
const BOOT_FILE: &str = "boot";
const EXTENSION: &str = ".json";
/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The records of one network, locked against every other process until dropped.
#[derive(Debug)]
pub struct Records {
    directory: PathBuf,
    _lock: Flock<File>,
}

/// One file.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The name of the file without its extension: container and interface with a hyphen.
    pub name: String,
    /// When it was written, or the ADD ended that wrote it.
    pub modified: SystemTime,
    /// What it says; `None` when it is damaged.
    pub attachment: Option<Attachment>,
}

impl Records {
    /// Opens and locks the records of a network below `base`; makes both directories where
    /// missing, with mode 0700.
    ///
    /// # Errors
    /// Code 11 when the lock is held too long, code 105 when a directory cannot be used or could
    /// be written by others (X-29).
    pub fn open(base: &Path, network: &str) -> Result<Self, Fault> {
        let directory = base.join(network);
        if !directory.exists() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(|error| store_fault("create the directory", &directory, error))?;
        }
        for path in [base, &directory] {
            refuse_shared(path)?;
        }
        let lock = lock(&directory.join(LOCK_FILE), FlockArg::LockExclusive)?;
        Ok(Self { directory, _lock: lock })
    }

    /// All records, by name.
    ///
    /// # Errors
    /// Code 105.
    pub fn list(&self) -> Result<Vec<Record>, Fault> {
        read_all(&self.directory)
    }

    /// The record of an attachment; `None` when there is none or it is damaged.
    ///
    /// # Errors
    /// Code 105.
    pub fn find(&self, container_id: &str, interface: &str) -> Result<Option<Attachment>, Fault> {
        let name = name(container_id, interface);
        match read(&self.directory.join(format!("{name}{EXTENSION}"))) {
            Ok(record) => Ok(record),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(store_fault("read", &self.path(&name), error)),
        }
    }

    /// Writes a record: whole or not at all, as long as the machine runs.
    ///
    /// # Errors
    /// Code 105.
    pub fn write(&self, attachment: &Attachment) -> Result<(), Fault> {
        let path = self.path(&name(&attachment.container_id, &attachment.interface));
        let text = serde_json::to_vec(attachment)
            .map_err(|error| store_fault("write", &path, error.into()))?;
        self.replace(&path, &text)
    }

    /// Whether the records were compared with another boot than this one, or with none.
    ///
    /// # Errors
    /// Code 105.
    pub fn boot_changed(&self, boot_id: &str) -> Result<bool, Fault> {
        let path = self.directory.join(BOOT_FILE);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text != boot_id),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(store_fault("read", &path, error)),
        }
    }

    /// Notes the boot that the records were compared with.
    ///
    /// # Errors
    /// Code 105.
    pub fn note_boot(&self, boot_id: &str) -> Result<(), Fault> {
        self.replace(&self.directory.join(BOOT_FILE), boot_id.as_bytes())
    }

    /// Notes that the ADD of a record has ended: a GC that began before then cannot know it.
    ///
    /// # Errors
    /// Code 105.
    pub fn finish(&self, attachment: &Attachment) -> Result<(), Fault> {
        let path = self.path(&name(&attachment.container_id, &attachment.interface));
        File::open(&path)
            .and_then(|file| file.set_modified(SystemTime::now()))
            .map_err(|error| store_fault("touch", &path, error))
    }

    /// Removes a record by its name. Nothing there is no error.
    ///
    /// # Errors
    /// Code 105.
    pub fn remove(&self, name: &str) -> Result<(), Fault> {
        remove_file(&self.path(name))
    }

    fn replace(&self, path: &Path, text: &[u8]) -> Result<(), Fault> {
        let unfinished = self.directory.join(UNFINISHED_FILE);
        remove_file(&unfinished)?;
        let write = || {
            let mut options = OpenOptions::new();
            let options = options.write(true).create_new(true).mode(0o600);
            options.open(&unfinished)?.write_all(text)?;
            fs::rename(&unfinished, path)
        };
        write().map_err(|error| store_fault("write", path, error))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}{EXTENSION}"))
    }
}

/// The name of an attachment's record.
pub fn name(container_id: &str, interface: &str) -> String {
    format!("{container_id}-{interface}")
}

/// The attachments of all networks below `base`, as far as they can be read, without any lock:
/// for those who look at the whole node. None when no pod was ever added.
///
/// # Errors
/// Code 105.
pub fn of_all_networks(base: &Path) -> Result<Vec<Attachment>, Fault> {
    let entries = match fs::read_dir(base) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(store_fault("read", base, error)),
    };
    let mut directories = Vec::new();
    for entry in entries.take(RECORDS_MAX) {
        let path = entry.map_err(|error| store_fault("read", base, error))?.path();
        if path.is_dir() {
            directories.push(path);
        }
    }
    directories.sort();
    let mut attachments = Vec::new();
    for directory in directories {
        attachments.extend(read_all(&directory)?.into_iter().filter_map(|one| one.attachment));
    }
    Ok(attachments)
}

/// Which boot of the machine this is. No process outlives it: it is read once.
///
/// # Errors
/// Code 105 where `/proc` is not mounted.
pub fn boot_id() -> Result<String, Fault> {
    static READ: OnceLock<String> = OnceLock::new();
    if let Some(read) = READ.get() {
        return Ok(read.clone());
    }
    let text = fs::read_to_string(BOOT_ID)
        .map_err(|error| store_fault("read", Path::new(BOOT_ID), error))?;
    Ok(READ.get_or_init(|| text.trim().to_owned()).clone())
}

/// Locks a file, which is made where missing. The kernel releases the lock of the dead.
///
/// # Errors
/// Code 11 after [`LOCK_WAIT_S`], code 105.
pub(crate) fn lock(path: &Path, kind: FlockArg) -> Result<Flock<File>, Fault> {
    lock_within(path, kind, LOCK_WAIT_S)
}

fn lock_within(path: &Path, kind: FlockArg, wait_s: u64) -> Result<Flock<File>, Fault> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(|error| store_fault("open", path, error))?;
    let at_once = match kind {
        FlockArg::LockShared => FlockArg::LockSharedNonblock,
        _ => FlockArg::LockExclusiveNonblock,
    };
    let file = match Flock::lock(file, at_once) {
        Ok(lock) => return Ok(lock),
        Err((file, Errno::EWOULDBLOCK)) => file,
        Err((_, errno)) => return Err(store_fault("lock", path, errno.into())),
    };
    // flock(2) knows no time limit. A thread that still waits ends with the process.
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(Flock::lock(file, kind)));
    match receiver.recv_timeout(Duration::from_secs(wait_s)) {
        Ok(Ok(lock)) => Ok(lock),
        Ok(Err((_, errno))) => Err(store_fault("lock", path, errno.into())),
        Err(_) => Err(Fault::new(
            TRY_AGAIN,
            format!("the lock {} is held by others", path.display()),
            format!("waited {wait_s} s; a plugin hangs, or very many run: try again"),
        )),
    }
}

/// Refuses a directory that others than its owner may write, or that is another user's: whoever
/// can write there decides what pods may send (X-29).
///
/// # Errors
/// Code 105.
pub(crate) fn refuse_shared(path: &Path) -> Result<(), Fault> {
    let metadata =
        fs::symlink_metadata(path).map_err(|error| store_fault("look at", path, error))?;
    let writable = metadata.mode() & 0o022 != 0;
    let foreign = ![0, nix::unistd::geteuid().as_raw()].contains(&metadata.uid());
    if metadata.is_dir() && !writable && !foreign {
        return Ok(());
    }
    let path = path.display();
    Err(Fault::new(
        STATE_STORE,
        format!("{path} is no directory that only its owner, root, can write"),
        format!("look for who changed it, then: chown root {path}; chmod 0700 {path}"),
    ))
}

fn read_all(directory: &Path) -> Result<Vec<Record>, Fault> {
    let failed = |error| store_fault("read", directory, error);
    let mut records = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)?.take(RECORDS_MAX) {
        let entry = entry.map_err(failed)?;
        let file_name = entry.file_name();
        let Some(name) = file_name.to_str().and_then(|name| name.strip_suffix(EXTENSION)) else {
            continue;
        };
        // Without the lock it may be gone by now.
        let Ok(metadata) = entry.metadata() else { continue };
        records.push(Record {
            name: name.to_owned(),
            modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            attachment: read(&entry.path()).unwrap_or_default(),
        });
    }
    records.sort_by(|one, two| one.name.cmp(&two.name));
    Ok(records)
}

/// `None` for a file that is damaged, or that is none: a link could lead anywhere.
fn read(path: &Path) -> io::Result<Option<Attachment>> {
    let mut options = OpenOptions::new();
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match options.read(true).custom_flags(flags).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return Ok(None),
        file => file?,
    };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(RECORD_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes).ok())
}

fn remove_file(path: &Path) -> Result<(), Fault> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(store_fault("remove", path, error))
        }
        _ => Ok(()),
    }
}

pub(crate) fn store_fault(action: &str, path: &Path, error: io::Error) -> Fault {
    Fault::new(
        STATE_STORE,
        format!("cannot {action} {}: {error}", path.display()),
        "check the space and the permissions of the directory",
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let name = format!("flatnet-records-{}-{name}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn attachment(container_id: &str) -> Attachment {
        Attachment {
            container_id: container_id.into(),
            interface: "eth0".into(),
            ..Attachment::default()
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").mode() & 0o7777
    }

    #[test]
    fn records_are_private_and_read_back_until_they_are_removed() {
        let base = Scratch::new("private");
        let records = Records::open(&base.0, "net").expect("opened");
        records.write(&attachment("c1")).expect("written");
        assert_eq!(records.find("c1", "eth0"), Ok(Some(attachment("c1"))));
        assert_eq!(records.find("c1", "eth1"), Ok(None));
        let directory = base.0.join("net");
        assert_eq!((mode(&base.0), mode(&directory)), (0o700, 0o700));
        for file in ["c1-eth0.json", "lock"] {
            assert_eq!(mode(&directory.join(file)), 0o600, "{file}");
        }
        assert_eq!(of_all_networks(&base.0), Ok(vec![attachment("c1")]));
        for _ in 0..2 {
            records.remove("c1-eth0").expect("removed, however often");
        }
        assert_eq!(records.list(), Ok(vec![]));
        assert_eq!(of_all_networks(&base.0.join("nowhere")), Ok(vec![]));
    }

    #[test]
    fn damaged_files_and_links_hide_no_others() {
        let base = Scratch::new("damaged");
        let records = Records::open(&base.0, "net").expect("opened");
        records.write(&attachment("c1")).expect("written");
        let directory = base.0.join("net");
        fs::write(directory.join("c2-eth0.json"), "{\"containerID\":").expect("a torn file");
        symlink(directory.join("c1-eth0.json"), directory.join("c3-eth0.json")).expect("a link");
        fs::write(directory.join(UNFINISHED_FILE), "left").expect("a crash");
        let found = records.list().expect("a list");
        let found: Vec<_> =
            found.iter().map(|one| (one.name.as_str(), one.attachment.is_some())).collect();
        assert_eq!(found, [("c1-eth0", true), ("c2-eth0", false), ("c3-eth0", false)]);
        assert_eq!(records.find("c2", "eth0"), Ok(None));
        records.write(&attachment("c2")).expect("written over");
        assert_eq!(records.find("c2", "eth0"), Ok(Some(attachment("c2"))));
    }

    /// X-29: state directories that others can write are refused.
    #[test]
    fn directories_that_others_can_write_are_refused() {
        let base = Scratch::new("shared");
        drop(Records::open(&base.0, "net").expect("private"));
        for path in [base.0.clone(), base.0.join("net")] {
            for wrong in [0o777, 0o720, 0o702] {
                fs::set_permissions(&path, fs::Permissions::from_mode(wrong)).expect("changed");
                let fault = Records::open(&base.0, "net").expect_err("refused");
                assert_eq!(fault.code, STATE_STORE);
                assert!(fault.message.contains(&path.display().to_string()), "{fault}");
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("changed");
            Records::open(&base.0, "net").expect("others may look");
        }
        fs::remove_dir_all(base.0.join("net")).expect("removed");
        symlink("/tmp", base.0.join("net")).expect("a link");
        assert!(Records::open(&base.0, "net").is_err(), "a link to elsewhere");
    }

    /// CNI-06: code 11 for what another try may get.
    #[test]
    fn a_lock_that_is_held_too_long_is_worth_another_try() {
        let base = Scratch::new("held");
        let held = Records::open(&base.0, "net").expect("opened");
        let path = base.0.join("net").join(LOCK_FILE);
        let fault = lock_within(&path, FlockArg::LockExclusive, 0).expect_err("held");
        assert_eq!(fault.code, TRY_AGAIN);
        assert!(fault.message.contains(&path.display().to_string()), "{fault}");
        drop(held);
        assert!(lock_within(&path, FlockArg::LockExclusive, LOCK_WAIT_S).is_ok());
    }

    #[test]
    fn whoever_comes_second_waits_for_the_first() {
        let base = Scratch::new("lock");
        let first = Records::open(&base.0, "net").expect("opened");
        let (sender, receiver) = mpsc::channel();
        let path = base.0.clone();
        let second = std::thread::spawn(move || {
            let opened = Records::open(&path, "net").is_ok();
            sender.send(()).expect("sent");
            opened
        });
        Records::open(&base.0, "other").expect("another network is not locked");
        assert!(receiver.try_recv().is_err(), "it waits");
        drop(first);
        receiver.recv_timeout(Duration::from_secs(LOCK_WAIT_S)).expect("it goes on");
        assert!(second.join().expect("ended"));
    }
}
