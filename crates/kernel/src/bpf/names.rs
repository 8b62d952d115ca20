//! [`NameAnswers`]: plain questions for names of the cluster answered at pods' links, by the program
//! of `bpf/names.c`. The DNS worker answers everything else, and all of it where this cannot be
//! loaded; so nothing here is ever missed.
//!
//! Answers go on while no process of ours runs (invariant 14), as old as the worker's then are; but
//! for [`LEASE`] alone, since nobody tells the kernel what the worker's rules say by then.
//!
//! ```text
//! /sys/fs/bpf/flatnet/names-v2/maps/NAME                    names, clients, settings, counters
//!                             /programs-FINGERPRINT/NAME    the program of one build
//!                             /links/INDEX-NAME             tcx: what is attached to which link
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use aya::programs::{ProgramType, SchedClassifier};
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Pod, include_bytes_aligned};
use ebpf_abi::address_bytes;
use ebpf_abi::names::{
    NAME_REASONS, NAMES_VERSION, NameAddresses, NameKey, NameLink, NameSettings,
};
use netlink::{Link, Netlink};
use render::OpError;
use render::names::{Client, Names};

use super::attach::Hooks;
use super::loader::Loader;
use super::objects::{
    PROGRAMS_PREFIX, Program, adopt, fingerprint, load_anew, make_directory, remove_programs,
    require_file_system,
};
use super::{Applied, Options, Passage, from_netlink, refused, syscalls};

/// `bpf/names.c`, compiled.
static NAMES: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/names.o"));
/// Its fingerprint: whoever looks whether pins are there asks for it again and again.
static BUILD: LazyLock<String> = LazyLock::new(|| fingerprint(NAMES));

/// How long the kernel may answer after those who keep the maps were seen last.
pub const LEASE: Duration = Duration::from_secs(30);

/// The maps by name, as `bpf/names.c` declares them.
const MAPS: [&str; 7] = [
    "names",
    "name_servers",
    "name_links",
    "name_spent",
    "name_settings",
    "name_lease",
    "name_counters",
];

const NS_PER_S: u64 = 1_000_000_000;
/// What the name of the directory begins with; the layout's number follows.
const VERSION_PREFIX: &str = "names-v";

/// What shall be answered where, besides the names themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The pods that may ask, by the node's end of their links.
    pub clients: BTreeMap<String, Client>,
    /// The addresses that the cluster's DNS is asked at.
    pub servers: BTreeSet<IpAddr>,
    /// What holds for all answers.
    pub settings: NameSettings,
}

impl Default for Wanted {
    fn default() -> Self {
        let settings = NameSettings::default();
        Self { clients: BTreeMap::new(), servers: BTreeSet::new(), settings }
    }
}

/// What the kernel holds of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The links that the program is attached to.
    pub attached: BTreeSet<String>,
    /// Names that are answered.
    pub names: usize,
    /// Questions by what became of them, names as in `ebpf_abi::names::NAME_REASONS`.
    pub counters: BTreeMap<&'static str, u64>,
}

/// The loaded program in one node's network namespace.
pub struct NameAnswers {
    options: Options,
    directory: PathBuf,
    netlink: Netlink,
    hooks: Hooks,
    programs: BTreeMap<Program, SchedClassifier>,
    maps: Maps,
}

/// What this kernel lacks of what answers need, for people. Changes nothing.
pub fn missing(file_system: &Path) -> Vec<String> {
    let helper = BpfHelper::BPF_FUNC_skb_change_tail;
    let mut missing = match is_helper_supported(ProgramType::SchedClassifier, helper) {
        Ok(true) => vec![],
        Ok(false) => vec!["the kernel has no eBPF helper skb_change_tail, of Linux 4.9".into()],
        Err(error) => vec![refused("ask for eBPF helpers", &error).message],
    };
    if !file_system.is_dir() {
        missing.push(format!("{} does not exist", file_system.display()));
    }
    missing
}

/// Whether anything of this was ever loaded here, by whatever build.
pub fn is_present(file_system: &Path) -> bool {
    let entries = fs::read_dir(file_system.join("flatnet")).into_iter().flatten().flatten();
    entries.into_iter().any(|it| it.file_name().to_string_lossy().starts_with(VERSION_PREFIX))
}

impl NameAnswers {
    /// Loads the program, or takes over what this build loaded before. Nothing is attached that was
    /// not. To be called in the node's network namespace, like all that follows.
    ///
    /// # Errors
    /// When the file system cannot be mounted or the kernel refuses the program: the worker answers
    /// everything then.
    pub fn load(options: &Options) -> Result<Self, OpError> {
        require_file_system(&options.file_system)?;
        let directory = directory(&options.file_system);
        remove_other_versions(&directory)?;
        let (maps, programs) = (directory.join("maps"), directory.join(programs_name()));
        for path in [&maps, &programs, &directory.join("links")] {
            make_directory(path)?;
        }
        if !are_pinned(&maps) {
            // A program of other maps: what it does cannot be seen or changed any more.
            remove_programs(&directory, None)?;
            make_directory(&programs)?;
        }
        let loaded = if programs.join(Program::AnswerName.name()).exists() {
            adopt(&programs, &[Program::AnswerName])?
        } else {
            let loader = Loader::new("the program for names", NAMES, &maps);
            let loaded = load_anew(&loader, &programs, &[Program::AnswerName])?;
            remove_programs(&directory, Some(&programs))?;
            loaded
        };
        Ok(Self {
            options: options.clone(),
            hooks: Hooks::open(options.hook, &directory)?,
            netlink: Netlink::open().map_err(from_netlink)?,
            programs: loaded,
            maps: Maps::open(&maps)?,
            directory,
        })
    }

    /// Makes the kernel hold what is wanted, whatever it holds: nothing is written where nothing
    /// differs. It answers as long as [`NameAnswers::renew`] says.
    ///
    /// Order (invariant 5): who may ask no more is forgotten first, and what is answered is known
    /// before who may ask.
    ///
    /// # Errors
    /// When the kernel cannot be asked at all.
    pub fn apply(&mut self, wanted: &Wanted, names: &Names) -> Result<Applied, OpError> {
        let mut done = Applied::default();
        if !self.are_pinned() {
            *self = Self::load(&self.options.clone())?;
            done.changes.push(format!(
                "loaded the program for names anew: its pins in {} were gone",
                self.directory.display()
            ));
        }
        let links = self.netlink.links().map_err(from_netlink)?;
        let clients = self.resolve(&wanted.clients, &links, &mut done);
        self.forget(&clients, &mut done)?;
        self.maps.write_settings(&wanted.settings, &mut done)?;
        let entry = |(key, found): (&NameKey, &NameAddresses)| (key.to_bytes(), found.to_bytes());
        let names: BTreeMap<_, _> = names.iter().map(entry).collect();
        make_equal(&mut self.maps.names, &names, "names", &mut done)?;
        let servers = wanted.servers.iter().map(|address| (address_bytes(*address), 0)).collect();
        make_equal(&mut self.maps.servers, &servers, "addresses of DNS", &mut done)?;
        self.learn(&clients, &links, &mut done)?;
        Ok(done)
    }

    /// Changes who may ask alone.
    ///
    /// # Errors
    /// When the kernel cannot be asked at all.
    pub fn set_clients(&mut self, wanted: &BTreeMap<String, Client>) -> Result<Applied, OpError> {
        let mut done = Applied::default();
        let links = self.netlink.links().map_err(from_netlink)?;
        let clients = self.resolve(wanted, &links, &mut done);
        self.forget(&clients, &mut done)?;
        self.learn(&clients, &links, &mut done)?;
        Ok(done)
    }

    /// Lets the kernel answer for so long from now on; without it, never.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn renew(&mut self, lease: Duration) -> Result<(), OpError> {
        let action = "renew the lease of names in eBPF";
        let lease_ns = u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX);
        let now_ns = u64::from(syscalls::uptime_s()) * NS_PER_S;
        let until_ns = now_ns.saturating_add(lease_ns);
        self.maps.lease.set(0, until_ns, 0).map_err(|error| refused(action, &error))
    }

    /// What the kernel has for a name.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn find(&self, key: &NameKey) -> Result<Option<NameAddresses>, OpError> {
        match self.maps.names.get(&key.to_bytes(), 0) {
            Ok(found) => Ok(Some(NameAddresses::from_bytes(&found))),
            Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(None),
            Err(error) => Err(refused("look for a name in eBPF", &error)),
        }
    }

    /// Changes names alone: `None` takes one away.
    ///
    /// # Errors
    /// The first name that the kernel refuses; the others are written.
    pub fn change(
        &mut self,
        changes: &BTreeMap<NameKey, Option<NameAddresses>>,
    ) -> Result<(), OpError> {
        let mut failure = None;
        for (key, found) in changes {
            let key = key.to_bytes();
            let written = found.map(|found| self.maps.names.insert(key, found.to_bytes(), 0));
            let result = match written {
                Some(Ok(())) => Ok(()),
                // What it stood for before is wrong: the worker answers.
                Some(refused) => absent_is_fine(self.maps.names.remove(&key)).and(refused),
                None => absent_is_fine(self.maps.names.remove(&key)),
            };
            if let Err(error) = result {
                failure.get_or_insert(refused("write a name for DNS in eBPF", &error));
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Writes what holds for all answers, where it differs.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set(&mut self, settings: &NameSettings) -> Result<(), OpError> {
        self.maps.write_settings(settings, &mut Applied::default())
    }

    /// Reads back what is ours.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn observe(&mut self) -> Result<Observed, OpError> {
        let links = self.netlink.links().map_err(from_netlink)?;
        let attached = self.hooks.attached(&self.programs, &links)?;
        let is_attached =
            |link: &&Link| attached.get(&(link.index, Program::AnswerName)) == Some(&true);
        Ok(Observed {
            attached: links.iter().filter(is_attached).map(|link| link.name.clone()).collect(),
            names: self.maps.names.keys().count(),
            counters: self.counters()?,
        })
    }

    /// Questions by what became of them, names as in `ebpf_abi::names::NAME_REASONS`.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn counters(&self) -> Result<BTreeMap<&'static str, u64>, OpError> {
        let mut counters = BTreeMap::new();
        for (reason, name) in NAME_REASONS {
            let values = self.maps.counters.get(&reason.index(), 0);
            let values = values.map_err(|error| refused("read the counters of names", &error))?;
            counters.insert(name, values.iter().sum());
        }
        Ok(counters)
    }

    /// Detaches and unpins everything: the worker answers.
    ///
    /// # Errors
    /// When something of ours stays.
    pub fn remove(mut self) -> Result<(), OpError> {
        let mut done = self.set_clients(&BTreeMap::new())?;
        if let Some(failure) = done.failures.pop() {
            return Err(failure);
        }
        fs::remove_dir_all(&self.directory)
            .map_err(|error| refused(&format!("remove {}", self.directory.display()), &error))?;
        // Others of ours may have pins beside it.
        let _ = self.directory.parent().map(fs::remove_dir);
        Ok(())
    }

    /// Runs the program on one frame, as if it came from a link, without sending anything: its
    /// verdict (`TC_ACT_…`) and the frame as the program left it.
    ///
    /// # Errors
    /// When the kernel refuses the frame.
    pub fn run(&self, link_index: u32, frame: &[u8]) -> Result<(i32, Vec<u8>), OpError> {
        let passage = Passage { link_index, came_by: link_index, mark: 0 };
        let left = super::run_one(&self.programs, Program::AnswerName, passage, frame)?;
        Ok((left.verdict, left.frame))
    }

    /// Whether the next process would find what this one uses.
    pub fn are_pinned(&self) -> bool {
        let program = self.directory.join(programs_name()).join(Program::AnswerName.name());
        program.exists() && are_pinned(&self.directory.join("maps"))
    }

    /// Finds the numbers of links. One that is gone is left out, and said.
    fn resolve(
        &self,
        wanted: &BTreeMap<String, Client>,
        links: &[Link],
        done: &mut Applied,
    ) -> BTreeMap<u32, NameLink> {
        let mut clients = BTreeMap::new();
        for (name, client) in wanted {
            match links.iter().find(|link| link.name == *name) {
                Some(link) => drop(clients.insert(link.index, name_link(client))),
                None => done.failures.push(OpError {
                    errno: libc::ENODEV,
                    message: format!("answer names at the link {name}: it is not there"),
                }),
            }
        }
        clients
    }

    /// Takes away what is of no client.
    fn forget(
        &mut self,
        clients: &BTreeMap<u32, NameLink>,
        done: &mut Applied,
    ) -> Result<(), OpError> {
        let is_gone = |index: &u32| !clients.contains_key(index);
        let present: Result<Vec<u32>, MapError> = self.maps.links.keys().collect();
        let present = present.map_err(|error| refused("read the links for names", &error))?;
        for index in present.into_iter().filter(is_gone) {
            match absent_is_fine(self.maps.links.remove(&index)) {
                Ok(()) => done.changes.push(format!("forgot the client at link number {index}")),
                Err(error) => done.failures.push(refused("forget a client of names", &error)),
            }
        }
        let attached = self.hooks.attached(&self.programs, &[])?;
        for (index, program) in attached.into_keys().filter(|(index, _)| is_gone(index)) {
            match self.hooks.detach(program, index) {
                Ok(()) => done
                    .changes
                    .push(format!("detached {} from link number {index}", program.name())),
                Err(failure) => done.failures.push(failure),
            }
        }
        Ok(())
    }

    /// Writes down who may ask, and attaches the program there.
    fn learn(
        &mut self,
        clients: &BTreeMap<u32, NameLink>,
        links: &[Link],
        done: &mut Applied,
    ) -> Result<(), OpError> {
        let entries = clients.iter().map(|(index, link)| (*index, link.to_bytes())).collect();
        make_equal(&mut self.maps.links, &entries, "links for names", done)?;
        let program = Program::AnswerName;
        let attached = self.hooks.attached(&self.programs, links)?;
        for link in links.iter().filter(|link| clients.contains_key(&link.index)) {
            if attached.get(&(link.index, program)) == Some(&true) {
                continue;
            }
            let loaded = self.programs.get_mut(&program).ok_or_else(super::absent)?;
            match self.hooks.attach(program, loaded, link) {
                Ok(()) => {
                    done.changes.push(format!("attached {} to {}", program.name(), link.name))
                }
                Err(_) if self.netlink.link(&link.name).is_ok_and(|link| link.is_none()) => {}
                Err(failure) => done.failures.push(failure),
            }
        }
        Ok(())
    }
}

/// The open maps.
struct Maps {
    names: HashMap<MapData, [u8; NameKey::BYTES], [u8; NameAddresses::BYTES]>,
    servers: HashMap<MapData, [u8; 16], u32>,
    links: HashMap<MapData, u32, [u8; NameLink::BYTES]>,
    settings: Array<MapData, [u8; NameSettings::BYTES]>,
    lease: Array<MapData, u64>,
    counters: PerCpuArray<MapData, u64>,
}

impl Maps {
    fn open(directory: &Path) -> Result<Self, OpError> {
        let open = |name: &str| {
            let path = directory.join(name);
            MapData::from_pin(&path)
                .and_then(Map::from_map_data)
                .map_err(|error| refused(&format!("open the map {}", path.display()), &error))
        };
        let wrong = |error: MapError| refused("open the maps of names", &error);
        Ok(Self {
            names: open("names")?.try_into().map_err(wrong)?,
            servers: open("name_servers")?.try_into().map_err(wrong)?,
            links: open("name_links")?.try_into().map_err(wrong)?,
            settings: open("name_settings")?.try_into().map_err(wrong)?,
            lease: open("name_lease")?.try_into().map_err(wrong)?,
            counters: open("name_counters")?.try_into().map_err(wrong)?,
        })
    }

    fn write_settings(&mut self, wanted: &NameSettings, done: &mut Applied) -> Result<(), OpError> {
        let failed = |error: MapError| refused("write the settings of names in eBPF", &error);
        let wanted = wanted.to_bytes();
        if self.settings.get(&0, 0).map_err(failed)? != wanted {
            self.settings.set(0, wanted, 0).map_err(failed)?;
            done.changes.push("wrote the settings of names".into());
        }
        Ok(())
    }
}

/// Writes what differs and removes what is not wanted. What the kernel refuses stops nothing else
/// (invariant 6).
fn make_equal<K: Pod + Ord, V: Pod + PartialEq>(
    map: &mut HashMap<MapData, K, V>,
    wanted: &BTreeMap<K, V>,
    what: &str,
    done: &mut Applied,
) -> Result<(), OpError> {
    let present: Result<BTreeMap<K, V>, MapError> = map.iter().collect();
    let present = present.map_err(|error| refused(&format!("read the {what}"), &error))?;
    let mut failure = None;
    let mut changed = 0;
    for (key, value) in wanted.iter().filter(|(key, value)| present.get(key) != Some(value)) {
        match map.insert(key, value, 0) {
            Ok(()) => changed += 1,
            Err(error) => {
                // What stood there is wrong: nothing is better.
                let _ = map.remove(key);
                failure.get_or_insert(error);
            }
        }
    }
    for key in present.keys().filter(|key| !wanted.contains_key(key)) {
        match absent_is_fine(map.remove(key)) {
            Ok(()) => changed += 1,
            Err(error) => drop(failure.get_or_insert(error)),
        }
    }
    if changed > 0 {
        done.changes.push(format!("wrote {changed} {what}"));
    }
    if let Some(error) = failure {
        done.failures.push(refused(&format!("write the {what}"), &error));
    }
    Ok(())
}

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        result => result,
    }
}

fn name_link(client: &Client) -> NameLink {
    let mut link = NameLink { mac: client.mac.0, ..NameLink::default() };
    for address in client.addresses.iter().rev() {
        match address {
            IpAddr::V4(address) => link.ipv4 = address.octets(),
            IpAddr::V6(address) => link.ipv6 = address.octets(),
        }
    }
    link
}

fn directory(file_system: &Path) -> PathBuf {
    file_system.join("flatnet").join(format!("{VERSION_PREFIX}{NAMES_VERSION}"))
}

/// Unpins, and so detaches, what other builds loaded whose maps had another layout.
fn remove_other_versions(own: &Path) -> Result<(), OpError> {
    let entries = own.parent().and_then(|parent| fs::read_dir(parent).ok());
    for entry in entries.into_iter().flatten().flatten() {
        let is_of_names = entry.file_name().to_string_lossy().starts_with(VERSION_PREFIX);
        if is_of_names && entry.path() != own {
            let path = entry.path();
            fs::remove_dir_all(&path)
                .map_err(|error| refused(&format!("remove {}", path.display()), &error))?;
        }
    }
    Ok(())
}

fn are_pinned(directory: &Path) -> bool {
    MAPS.iter().all(|name| directory.join(name).exists())
}

/// The directory of this build's program.
fn programs_name() -> String {
    format!("{PROGRAMS_PREFIX}{}", *BUILD)
}
