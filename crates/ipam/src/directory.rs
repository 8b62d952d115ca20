//! host-local's directory: one file an address, named by it, holding its owner.
//!
//! ```text
//! /var/lib/cni/networks/flatnet/10.244.1.5          container id CR LF interface name
//! /var/lib/cni/networks/flatnet/last_reserved_ip.0  the last address of range set 0
//! /var/lib/cni/networks/flatnet/lock                held while the directory is read or changed
//! ```
//!
//! These are host-local's own, so that either program can follow the other on a node. Beside
//! them stand names that host-local passes over, since they are no addresses:
//!
//! ```text
//! .owner-HASH-10.244.1.5            a second name of the same file: whose it is, by name alone
//! .released-MICROSECONDS-10.244.1.9 a file that was a reservation until then
//! .unfinished                       a file that is being written
//! ```
//!
//! A reservation appears whole or not at all, whenever the power fails: its file is written and
//! synced under another name and then linked, which also refuses a name that exists. It is given
//! back by one rename, which also notes the time. Then the directory is synced. Files of others
//! may be torn, empty, or end in any white space; the name alone says that an address is taken.
//! All names that begin with a dot may be lost without harm.

mod files;
mod listing;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use model::Timestamp;
use nix::fcntl::Flock;

use crate::allocator::{self, Exhausted, Occupancy, Range, RangeSet};
use crate::withheld::Withheld;
use files::Files;
use listing::{Held, Listing};

/// How long an address rests before another pod gets it, in seconds, unless no other is left
/// (R-10): caches of clients and of connections forget it meanwhile.
pub const REUSE_DELAY_S: i64 = 30;
/// Releases that are remembered beyond [`REUSE_DELAY_S`], so that the longest-free comes first.
const RELEASES_MAX: usize = 1024;

const LOCK_FILE: &str = "lock";
const LAST_RESERVED_PREFIX: &str = "last_reserved_ip.";
/// Under the lock there is at most one, left over only by a crash.
const UNFINISHED_FILE: &str = ".unfinished";
/// What host-local writes between the two lines.
const LINE_BREAK: &str = "\r\n";

/// The reservations of one network, locked against every other process until dropped.
#[derive(Debug)]
pub struct Directory {
    files: Files,
    _lock: Flock<File>,
}

/// What an ADD asks for.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Ranges to choose from, one address of each set.
    pub sets: &'a [RangeSet],
    /// What the configuration keeps back.
    pub withheld: &'a Withheld,
    /// Who asks.
    pub container_id: &'a str,
    /// For which of its interfaces.
    pub interface: &'a str,
    /// The very addresses that it asks for, at most one of a set; of other sets any.
    pub requested: &'a [IpAddr],
}

/// Who holds an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reservation {
    /// The address.
    pub address: IpAddr,
    /// The container; empty when the file is torn: its writer died, or was not us.
    pub container_id: String,
    /// The interface; empty in files of old versions, which stand for all of the container.
    pub interface: String,
    /// When the file was written.
    pub since: Timestamp,
}

/// An address that was just reserved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// The address.
    pub address: IpAddr,
    /// The range that it is of.
    pub range: Range,
}

/// Why an address could not be reserved or released.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// All are taken.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// A requested address is in no range, or the gateway's, the network's or broadcast.
    #[error("the requested address {0} can be given in none of the configured ranges")]
    NotAllowed(IpAddr),
    /// A requested address is kept back by the configuration.
    #[error("the requested address {0} is reserved by the configuration")]
    Withheld(IpAddr),
    /// A requested address is taken.
    #[error("the requested address {0} is taken by another container")]
    Taken(IpAddr),
    /// A requested address could not be used beside another one of the same set.
    #[error("the requested address {0} is left over: a pod gets one address of each range set")]
    Unused(IpAddr),
    /// The container and interface hold an address already.
    #[error(
        "the address {address} has been allocated to container {container_id} already, and an \
         interface gets one only once: call DEL before another ADD"
    )]
    Duplicate {
        /// The address.
        address: IpAddr,
        /// The container.
        container_id: String,
    },
    /// The network's name would lead out of the directory.
    #[error("{0:?} cannot name a network: use letters, digits, '_', '.' and '-'")]
    Name(String),
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
    /// [`Error::Name`] or the file system's.
    pub fn open(base: &Path, network: &str) -> Result<Self, Error> {
        Self::lock(Files::open_or_make(&place(base, network)?)?)
    }

    /// As [`Directory::open`], but makes nothing: `None` when the network never had a pod here.
    ///
    /// # Errors
    /// As [`Directory::open`].
    pub fn open_existing(base: &Path, network: &str) -> Result<Option<Self>, Error> {
        Files::open(&place(base, network)?)?.map(Self::lock).transpose()
    }

    /// All reservations by address.
    ///
    /// # Errors
    /// The file system's.
    pub fn reservations(&self) -> Result<BTreeMap<IpAddr, Reservation>, Error> {
        let mut found = BTreeMap::new();
        for held in &self.listing()?.held {
            found.entry(held.address).or_insert(self.read(held)?.0);
        }
        Ok(found)
    }

    /// Addresses that nobody has, and when they were given back, as far as it is remembered.
    ///
    /// # Errors
    /// The file system's.
    pub fn released(&self) -> Result<BTreeMap<IpAddr, Timestamp>, Error> {
        Ok(self.listing()?.released)
    }

    /// Whether an ADD would find an address in each set.
    ///
    /// # Errors
    /// [`Error::Exhausted`] or the file system's.
    pub fn available(&self, sets: &[RangeSet], withheld: &Withheld) -> Result<(), Error> {
        let occupancy = self.listing()?.occupancy();
        for set in sets {
            allocator::next(set, &occupancy, withheld, None)?;
        }
        Ok(())
    }

    /// Reserves one address of each set, durably. On an error nothing new stays reserved.
    ///
    /// # Errors
    /// All kinds but [`Error::Name`]; [`Error::Duplicate`] when the interface has one already.
    pub fn reserve(&self, ask: &Ask<'_>) -> Result<Vec<Reserved>, Error> {
        let listing = self.listing()?;
        self.refuse_second(&listing, ask)?;
        let chosen = self.choose(&listing, ask)?;
        for (done, reserved) in chosen.iter().enumerate() {
            if let Err(error) = self.write(reserved.address, ask) {
                for one in chosen.iter().take(done) {
                    self.unwrite(one.address, ask)?;
                }
                return Err(error);
            }
        }
        for (index, reserved) in chosen.iter().enumerate() {
            // Only a hint where to go on: torn or lost, the round merely goes on elsewhere.
            let hint = format!("{LAST_RESERVED_PREFIX}{index}");
            self.files.overwrite(&hint, &reserved.address.to_string())?;
            if let Some(at) = listing.released.get(&reserved.address) {
                self.files.remove(&listing::released_name(*at, reserved.address))?;
            }
        }
        self.tidy(&listing)?;
        self.files.sync()?;
        Ok(chosen)
    }

    /// Gives back what a container and interface have, durably; answers the addresses. Nothing
    /// to give back is no error.
    ///
    /// # Errors
    /// The file system's; what was not released stays reserved.
    pub fn release(
        &self,
        container_id: &str,
        interface: &str,
        now: Timestamp,
    ) -> Result<Vec<IpAddr>, Error> {
        let listing = self.listing()?;
        let held = self.held_by(&listing, container_id, interface)?;
        self.give_back(&listing, &held, now)
    }

    /// Gives back every reservation that a predicate names; answers the addresses. For those of
    /// the dead: see [`crate::life`].
    ///
    /// # Errors
    /// As [`Directory::release`].
    pub fn release_where(
        &self,
        now: Timestamp,
        mut names: impl FnMut(&Reservation) -> bool,
    ) -> Result<Vec<IpAddr>, Error> {
        let listing = self.listing()?;
        let mut chosen = Vec::new();
        for held in &listing.held {
            let (reservation, is_file) = self.read(held)?;
            if is_file && names(&reservation) {
                chosen.push(held);
            }
        }
        self.give_back(&listing, &chosen, now)
    }

    fn lock(files: Files) -> Result<Self, Error> {
        let lock = files.lock(LOCK_FILE)?;
        Ok(Self { files, _lock: lock })
    }

    fn listing(&self) -> Result<Listing, Error> {
        Ok(Listing::of(self.files.names()?))
    }

    /// The reservation of a file, and whether it is a regular one.
    fn read(&self, held: &Held) -> Result<(Reservation, bool), Error> {
        let content = self.files.read(&held.name)?;
        let is_file = content.is_some();
        let content = content.unwrap_or_default();
        let mut words = content.text.split_whitespace().map(str::to_owned);
        let reservation = Reservation {
            address: held.address,
            container_id: words.next().unwrap_or_default(),
            interface: words.next().unwrap_or_default(),
            since: content.modified,
        };
        Ok((reservation, is_file))
    }

    /// What an owner holds. Reads only files whose names leave it open.
    fn held_by<'a>(
        &self,
        listing: &'a Listing,
        container_id: &str,
        interface: &str,
    ) -> Result<Vec<&'a Held>, Error> {
        let hash = listing::owner_hash(container_id, interface);
        let mut found = Vec::new();
        for held in listing.held.iter().filter(|held| held.owner.is_none_or(|one| one == hash)) {
            if owns(&self.read(held)?.0, container_id, interface) {
                found.push(held);
            }
        }
        Ok(found)
    }

    fn refuse_second(&self, listing: &Listing, ask: &Ask<'_>) -> Result<(), Error> {
        let held = self.held_by(listing, ask.container_id, ask.interface)?;
        let in_a_set =
            |held: &&&Held| ask.sets.iter().flatten().any(|range| range.allows(held.address));
        match held.iter().find(in_a_set) {
            None => Ok(()),
            Some(held) => Err(Error::Duplicate {
                address: held.address,
                container_id: ask.container_id.to_owned(),
            }),
        }
    }

    /// One address of each set. Changes nothing.
    fn choose(&self, listing: &Listing, ask: &Ask<'_>) -> Result<Vec<Reserved>, Error> {
        let mut occupancy = listing.occupancy();
        let mut unused = ask.requested.to_vec();
        let mut chosen = Vec::new();
        for (index, set) in ask.sets.iter().enumerate() {
            let (address, range) = match take_requested(&mut unused, set) {
                Some((address, range)) => {
                    check_requested(address, &occupancy, ask.withheld)?;
                    (address, range)
                }
                None => allocator::next(set, &occupancy, ask.withheld, self.last_reserved(index))?,
            };
            occupancy.taken.insert(address);
            chosen.push(Reserved { address, range: range.clone() });
        }
        let allowed =
            |address: &IpAddr| ask.sets.iter().flatten().any(|range| range.allows(*address));
        match unused.first() {
            None => Ok(chosen),
            Some(address) if allowed(address) => Err(Error::Unused(*address)),
            Some(address) => Err(Error::NotAllowed(*address)),
        }
    }

    fn last_reserved(&self, set_index: usize) -> Option<IpAddr> {
        let hint = self.files.read(&format!("{LAST_RESERVED_PREFIX}{set_index}"));
        hint.ok()??.text.trim().parse().ok()
    }

    /// Makes a reservation that is whole from the moment that its name exists.
    fn write(&self, address: IpAddr, ask: &Ask<'_>) -> Result<(), Error> {
        let text = format!("{}{LINE_BREAK}{}", ask.container_id, ask.interface);
        let owner = listing::owner_hash(ask.container_id, ask.interface);
        self.files.create(UNFINISHED_FILE, &text)?;
        self.files.link(UNFINISHED_FILE, &address.to_string())?;
        let indexed = self.files.rename(UNFINISHED_FILE, &listing::owner_name(owner, address));
        if indexed.is_err() {
            self.unwrite(address, ask)?;
        }
        indexed
    }

    /// Takes a reservation back that nobody was told of.
    fn unwrite(&self, address: IpAddr, ask: &Ask<'_>) -> Result<(), Error> {
        let owner = listing::owner_hash(ask.container_id, ask.interface);
        self.files.remove(&address.to_string())?;
        self.files.remove(&listing::owner_name(owner, address))
    }

    fn give_back(
        &self,
        listing: &Listing,
        given: &[&Held],
        now: Timestamp,
    ) -> Result<Vec<IpAddr>, Error> {
        for held in given {
            self.files.rename(&held.name, &listing::released_name(now, held.address))?;
            if let Some(hash) = held.owner {
                self.files.remove(&listing::owner_name(hash, held.address))?;
            }
        }
        if !given.is_empty() {
            self.forget_releases(listing, now)?;
            self.tidy(listing)?;
            self.files.sync()?;
        }
        Ok(given.iter().map(|held| held.address).collect())
    }

    /// Forgets the oldest of too many releases; addresses that nothing is known of count as
    /// free for longer than all others.
    fn forget_releases(&self, listing: &Listing, now: Timestamp) -> Result<(), Error> {
        let mut oldest: Vec<(Timestamp, IpAddr)> =
            listing.released.iter().map(|(address, at)| (*at, *address)).collect();
        oldest.sort_unstable();
        let rested = |at: Timestamp| now.seconds().saturating_sub(at.seconds()) > REUSE_DELAY_S;
        let surplus = oldest.len().saturating_sub(RELEASES_MAX);
        for (at, address) in oldest.into_iter().take(surplus).filter(|(at, _)| rested(*at)) {
            self.files.remove(&listing::released_name(at, address))?;
        }
        Ok(())
    }

    fn tidy(&self, listing: &Listing) -> Result<(), Error> {
        listing.stale.iter().try_for_each(|name| self.files.remove(name))
    }
}

impl Error {
    fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { action, path: path.to_owned(), source }
    }
}

/// The directory of a network. The name comes from configurations and must stay below `base`.
fn place(base: &Path, network: &str) -> Result<PathBuf, Error> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if network.is_empty() || network.starts_with('.') || !network.bytes().all(is_plain) {
        return Err(Error::Name(network.to_owned()));
    }
    Ok(base.join(network))
}

/// Old files without an interface stand for the whole container.
fn owns(reservation: &Reservation, container_id: &str, interface: &str) -> bool {
    reservation.container_id == container_id
        && (reservation.interface == interface || reservation.interface.is_empty())
        && !container_id.is_empty()
}

/// Takes the first requested address that a set allows.
fn take_requested<'a>(
    requested: &mut Vec<IpAddr>,
    set: &'a RangeSet,
) -> Option<(IpAddr, &'a Range)> {
    let range_of = |address: IpAddr| set.iter().find(|range| range.allows(address));
    let index = requested.iter().position(|address| range_of(*address).is_some())?;
    let address = requested.remove(index);
    Some((address, range_of(address)?))
}

fn check_requested(
    address: IpAddr,
    occupancy: &Occupancy,
    withheld: &Withheld,
) -> Result<(), Error> {
    if withheld.is_reserved(address) {
        return Err(Error::Withheld(address));
    }
    if occupancy.taken.contains(&address) {
        return Err(Error::Taken(address));
    }
    Ok(())
}
