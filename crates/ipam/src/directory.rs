//! host-local's directory: one file an address, named by it, holding its owner.
//!
//! ```text
//! /var/lib/cni/networks/flatnet/10.244.1.5          container id CR LF interface name
//! /var/lib/cni/networks/flatnet/last_reserved_ip.0  the last address of range set 0
//! /var/lib/cni/networks/flatnet/lock                held while the directory is read or changed
//! ```
//!
//! A reservation appears whole or not at all, whenever the power fails: its file is written and
//! synced under another name and then linked, which also refuses a name that exists; then the
//! directory is synced. Files of others may be torn, empty, or end in any white space; the name
//! alone says that the address is taken.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::allocator::{self, Exhausted, Range, RangeSet};

const LOCK_FILE: &str = "lock";
const LAST_RESERVED_PREFIX: &str = "last_reserved_ip.";
/// A file that is being written; under the lock at most one, left over only by a crash.
const UNFINISHED_FILE: &str = ".unfinished";
/// What host-local writes between the two lines.
const LINE_BREAK: &str = "\r\n";
/// Bytes read of a reservation at most; container ids and link names are far shorter.
const FILE_BYTES_MAX: u64 = 4096;

/// The reservations of one network, locked against every other process until dropped.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    _lock: Flock<File>,
}

/// Who holds an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reservation {
    /// The address.
    pub address: IpAddr,
    /// The container; empty when the file is torn.
    pub container_id: String,
    /// The interface; empty in files of old versions, which stand for all of the container.
    pub interface: String,
}

/// An address that was just reserved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// The address.
    pub address: IpAddr,
    /// The range that it is of.
    pub range: Range,
    /// Whether the same container and interface had it before: the earlier request was answered
    /// but its answer lost.
    pub existing: bool,
}

/// Why an address could not be reserved or released.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// All are taken.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// A requested address is in no range, or reserved for the gateway.
    #[error("the requested address {0} can be given in none of the configured ranges")]
    NotAllowed(IpAddr),
    /// A requested address is taken.
    #[error("the requested address {0} is taken by another container")]
    Taken(IpAddr),
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Directory {
    /// Opens and locks the directory of a network below `base`; makes both where missing, with
    /// mode 0700. Waits for whoever holds the lock; the kernel releases the lock of the dead.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(base: &Path, network: &str) -> Result<Self, Error> {
        let path = base.join(network);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(file_error("create the directory", &path))?;
        let lock_path = path.join(LOCK_FILE);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(file_error("open", &lock_path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| file_error("lock", &lock_path)(errno.into()))?;
        Ok(Self { path, _lock: lock })
    }

    /// All reservations by address.
    ///
    /// # Errors
    /// The file system's.
    pub fn reservations(&self) -> Result<BTreeMap<IpAddr, Reservation>, Error> {
        let mut found = BTreeMap::new();
        let entries = fs::read_dir(&self.path).map_err(file_error("read", &self.path))?;
        for entry in entries {
            let entry = entry.map_err(file_error("read", &self.path))?;
            let name = entry.file_name();
            let Some(address) = name.to_str().and_then(|name| name.parse::<IpAddr>().ok()) else {
                continue;
            };
            let text = read_bounded(&entry.path()).map_err(file_error("read", &entry.path()))?;
            found.insert(address, parse(address, &text));
        }
        Ok(found)
    }

    /// Reserves one address of each set, durably; what the container and interface already have
    /// in a set is answered again. On an error nothing new stays reserved.
    ///
    /// # Errors
    /// [`Error::Exhausted`], [`Error::NotAllowed`], [`Error::Taken`] or the file system's.
    pub fn reserve(
        &self,
        sets: &[RangeSet],
        container_id: &str,
        interface: &str,
        requested: &[IpAddr],
    ) -> Result<Vec<Reserved>, Error> {
        let mut taken = self.reservations()?;
        let in_no_set =
            |address: &&IpAddr| !sets.iter().flatten().any(|range| range.allows(**address));
        if let Some(address) = requested.iter().find(in_no_set) {
            return Err(Error::NotAllowed(*address));
        }
        let mut reserved: Vec<Reserved> = Vec::new();
        for (index, set) in sets.iter().enumerate() {
            match self.reserve_one(index, set, container_id, interface, requested, &taken) {
                Ok(one) => {
                    let (container_id, interface) = (container_id.to_owned(), interface.to_owned());
                    let owner = Reservation { address: one.address, container_id, interface };
                    taken.insert(one.address, owner);
                    reserved.push(one);
                }
                Err(error) => {
                    for one in reserved.iter().filter(|one| !one.existing) {
                        self.remove(one.address)?;
                    }
                    return Err(error);
                }
            }
        }
        self.sync()?;
        Ok(reserved)
    }

    /// Releases what a container and interface have, durably; answers the addresses. Nothing to
    /// release is no error.
    ///
    /// # Errors
    /// The file system's; what was not released stays reserved.
    pub fn release(&self, container_id: &str, interface: &str) -> Result<Vec<IpAddr>, Error> {
        self.release_where(|reservation| owns(reservation, container_id, interface))
    }

    /// Releases every reservation that a predicate names; answers the addresses.
    ///
    /// # Errors
    /// As [`Directory::release`].
    pub fn release_where(
        &self,
        mut names: impl FnMut(&Reservation) -> bool,
    ) -> Result<Vec<IpAddr>, Error> {
        let mut released = Vec::new();
        for reservation in self.reservations()?.values().filter(|reservation| names(reservation)) {
            self.remove(reservation.address)?;
            released.push(reservation.address);
        }
        if !released.is_empty() {
            self.sync()?;
        }
        Ok(released)
    }

    fn reserve_one(
        &self,
        set_index: usize,
        set: &RangeSet,
        container_id: &str,
        interface: &str,
        requested: &[IpAddr],
        taken: &BTreeMap<IpAddr, Reservation>,
    ) -> Result<Reserved, Error> {
        let range_of = |address: IpAddr| set.iter().find(|range| range.allows(address)).cloned();
        let held = taken.values().filter(|held| owns(held, container_id, interface));
        for held in held {
            if let Some(range) = range_of(held.address) {
                return Ok(Reserved { address: held.address, range, existing: true });
            }
        }
        let wanted = requested.iter().find_map(|address| Some((*address, range_of(*address)?)));
        let (address, range) = match wanted {
            Some((address, _)) if taken.contains_key(&address) => {
                return Err(Error::Taken(address));
            }
            Some(wanted) => wanted,
            None => {
                let last = self.last_reserved(set_index);
                let (address, range) =
                    allocator::next(set, &taken.keys().copied().collect(), last)?;
                (address, range.clone())
            }
        };
        let text = format!("{container_id}{LINE_BREAK}{interface}");
        self.write_new(&self.path.join(address.to_string()), &text)?;
        // Only a hint where to go on: torn or lost, the round merely starts again.
        let hint = self.path.join(format!("{LAST_RESERVED_PREFIX}{set_index}"));
        write_private(&hint, &address.to_string(), false).map_err(file_error("write", &hint))?;
        Ok(Reserved { address, range, existing: false })
    }

    fn last_reserved(&self, set_index: usize) -> Option<IpAddr> {
        let path = self.path.join(format!("{LAST_RESERVED_PREFIX}{set_index}"));
        read_bounded(&path).ok()?.trim().parse().ok()
    }

    /// Makes a file that is whole from the moment that its name exists.
    fn write_new(&self, path: &Path, text: &str) -> Result<(), Error> {
        let unfinished = self.path.join(UNFINISHED_FILE);
        // What a crash left may already be linked: writing into it would change its owner.
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(file_error("remove", &unfinished)(error));
            }
            _ => {}
        }
        write_private(&unfinished, text, true).map_err(file_error("write", &unfinished))?;
        fs::hard_link(&unfinished, path).map_err(file_error("create", path))?;
        fs::remove_file(&unfinished).map_err(file_error("remove", &unfinished))
    }

    fn remove(&self, address: IpAddr) -> Result<(), Error> {
        let path = self.path.join(address.to_string());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(file_error("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    fn sync(&self) -> Result<(), Error> {
        File::open(&self.path)
            .and_then(|directory| directory.sync_all())
            .map_err(file_error("sync", &self.path))
    }
}

/// Old files without an interface stand for the whole container.
fn owns(reservation: &Reservation, container_id: &str, interface: &str) -> bool {
    reservation.container_id == container_id
        && (reservation.interface == interface || reservation.interface.is_empty())
        && !container_id.is_empty()
}

fn parse(address: IpAddr, text: &str) -> Reservation {
    let mut words = text.split_whitespace().map(str::to_owned);
    Reservation {
        address,
        container_id: words.next().unwrap_or_default(),
        interface: words.next().unwrap_or_default(),
    }
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn write_private(path: &Path, text: &str, sync: bool) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    if sync { file.sync_all() } else { Ok(()) }
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::File { action, path, source }
}
