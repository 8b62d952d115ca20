//! [`ServiceNat`]: Services packet by packet, by the programs of `bpf/service_nat.c` at both sides
//! of links. The Services themselves stand in the maps of [`super::services`].
//!
//! Flows outlive this process and its programs (invariant 14): a new build's programs replace the
//! old ones in one step and find the same flows.
//!
//! ```text
//! /sys/fs/bpf/flatnet/flows-v1/maps/NAME                 flows, where programs find them, links,
//!                                                        settings, counters
//!                             /programs-FINGERPRINTS/NAME  one build, with its maps of Services
//!                             /links/INDEX-NAME            tcx, XDP: what is attached to which link
//! ```

mod maps;
mod tables;
pub mod unattended;
mod uplink;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use aya::include_bytes_aligned;
use aya::programs::SchedClassifier;
use ebpf_abi::flows::{
    FLOWS_VERSION, NAT_DRAINING, NAT_LINK_ETHERNET, NAT_LINK_NODES, NAT_LINK_POD, NatLink,
    NatSettings,
};
use model::ServiceAcceleration;
use netlink::{Address, Link, Netlink};
use render::OpError;
use render::ebpf::node::{LinkPrograms, UplinkProgram};

use super::attach::{Hooks, unpin};
use super::loader::Loader;
use super::objects::{
    Program, adopt, fingerprint, load_anew, make_directory, remove_programs, require_file_system,
};
use super::{Applied, Hook, Left, Passage, from_netlink, refused};
use maps::Maps;
use uplink::Uplink;
pub use uplink::{XDP_PASS, XDP_TX};

/// `bpf/service_nat.c`, compiled.
static SERVICE_NAT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/service_nat.o"));
/// Its fingerprint: whoever looks whether pins are there asks for it again and again.
static BUILD: LazyLock<String> = LazyLock::new(|| fingerprint(SERVICE_NAT));

/// Ports that masqueraded flows have unless told otherwise: below the node ports and Linux's
/// ephemeral ports, above those that programs of nodes are known to listen on.
pub const MASQUERADE_PORTS: RangeInclusive<u16> = 16_384..=29_999;

pub(super) const DIRECTORY_PREFIX: &str = "flows-v";

/// How the programs are loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The mount point of the eBPF file system; it is mounted where it is not.
    pub file_system: PathBuf,
    /// Where the maps of Services are pinned: [`super::services::EbpfDriver::maps_directory`].
    pub services_maps: PathBuf,
    /// How programs are attached.
    pub hook: Hook,
    /// Entries of the table of flows, two a flow and four a masqueraded one. A table of another
    /// size is replaced, and its flows move.
    pub flows_max: u32,
}

/// What shall be translated where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Links by name: those of pods, the uplink, the tunnels.
    pub links: BTreeMap<String, LinkKind>,
    /// The addresses of the node, for links that have none of their own and no bridge that has.
    pub node_addresses: Vec<IpAddr>,
    /// The ports that masqueraded flows get; nobody else on the node sends from them.
    pub ports: RangeInclusive<u16>,
    /// Whether flows that are known go on and no new ones are taken: while another backend takes
    /// over.
    pub draining: bool,
    /// The link to other machines, by name.
    pub uplink: Option<String>,
    /// Whether what comes and goes by it is sent on before the stack.
    pub acceleration: ServiceAcceleration,
}

/// What a link is, to a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// The node's end of a pod's link.
    Pod,
    /// The uplink: whoever comes by it is outside of this node.
    Outside,
    /// The same, of a tunnel, or of an uplink by which other nodes send packets to pods as they
    /// are: what they hand on is believed.
    Nodes,
}

/// What the kernel holds of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Which programs are attached to which links.
    pub attached: BTreeSet<(String, &'static str)>,
    /// Packets by what became of them, names as in `ebpf_abi::flows::NAT_REASONS`.
    pub counters: BTreeMap<&'static str, u64>,
    /// Whether new flows are left to another backend.
    pub draining: bool,
}

/// A flow as its client began it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TrackedFlow {
    /// The transport protocol's number.
    pub protocol: u8,
    /// The client.
    pub client: SocketAddr,
    /// What it was sent to.
    pub frontend: SocketAddr,
    /// Where it was led.
    pub endpoint: SocketAddr,
    /// What the endpoint sees in the place of the client.
    pub masqueraded_as: Option<SocketAddr>,
    /// Whether the endpoint has answered.
    pub is_answered: bool,
    /// When it was used last, in seconds since the machine started.
    pub used_s: u32,
}

/// Whether flows are known here, or were.
pub fn is_present(file_system: &Path) -> bool {
    file_system.join("flatnet").join(format!("{DIRECTORY_PREFIX}{FLOWS_VERSION}")).exists()
}

/// Frames that were sent on before the stack of this node since the maps were made; `None` where no
/// program of that kind was loaded.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn frames_sent(file_system: &Path) -> Result<Option<u64>, OpError> {
    let directory = file_system.join("flatnet").join(format!("{DIRECTORY_PREFIX}{FLOWS_VERSION}"));
    uplink::read_sent(&directory.join("maps"))
}

/// Unpins the programs: they were loaded with maps of Services that are gone. Attached ones work
/// on until others replace them.
///
/// # Errors
/// When something stays.
pub fn forget_programs(file_system: &Path) -> Result<(), OpError> {
    let directory = file_system.join("flatnet").join(format!("{DIRECTORY_PREFIX}{FLOWS_VERSION}"));
    if directory.exists() { remove_programs(&directory, None) } else { Ok(()) }
}

/// Loaded programs in one node's network namespace.
pub struct ServiceNat {
    options: Options,
    directory: PathBuf,
    netlink: Netlink,
    hooks: Hooks,
    programs: BTreeMap<Program, SchedClassifier>,
    maps: Maps,
    /// Loaded where it is asked for.
    uplink: Option<Uplink>,
    /// Why the uplink does not have it though it is asked for.
    uplink_refusal: Option<String>,
}

impl ServiceNat {
    /// Loads the programs, or takes over those that this build loaded before. Nothing is attached
    /// that was not. To be called in the node's network namespace, like all that follows.
    ///
    /// # Errors
    /// When the file system cannot be mounted or the kernel refuses the programs.
    pub fn load(options: &Options) -> Result<Self, OpError> {
        require_file_system(&options.file_system)?;
        let top = options.file_system.join("flatnet");
        let directory = top.join(format!("{DIRECTORY_PREFIX}{FLOWS_VERSION}"));
        let (maps, programs) = (directory.join("maps"), directory.join(programs_name(options)));
        for path in [&maps, &programs, &directory.join("links")] {
            make_directory(path)?;
        }
        tables::prepare(&maps, options.flows_max)?;
        if !maps::are_pinned(&maps) {
            // Programs of other maps: what they do cannot be seen or changed any more.
            remove_programs(&directory, None)?;
            make_directory(&programs)?;
        }
        let loaded = if Program::SERVICES.iter().all(|one| programs.join(one.name()).exists()) {
            adopt(&programs, &Program::SERVICES)?
        } else {
            let what = "the programs of Services at links";
            let mut loader = Loader::new(what, SERVICE_NAT, &options.services_maps);
            for name in maps::MAPS {
                loader.pinned_at(name, maps.join(name));
            }
            let loaded = load_anew(&loader, &programs, &Program::SERVICES)?;
            remove_programs(&directory, Some(&programs))?;
            loaded
        };
        Ok(Self {
            options: options.clone(),
            hooks: Hooks::open(options.hook, &directory)?,
            netlink: Netlink::open().map_err(from_netlink)?,
            programs: loaded,
            maps: Maps::open(&maps)?,
            uplink: None,
            uplink_refusal: None,
            directory,
        })
    }

    /// Makes the kernel hold what is wanted, whatever it holds: nothing is written where nothing
    /// differs. Repairs also an unmounted file system (R-04) and detached programs (R-22).
    ///
    /// Order (invariant 5): a link is known before its programs, and longer; what comes before the
    /// stack is attached last and detached first, since it leaves to the others what it does not
    /// send.
    ///
    /// # Errors
    /// When the kernel cannot be asked at all.
    pub fn apply(&mut self, wanted: &Wanted) -> Result<Applied, OpError> {
        let links = self.netlink.links().map_err(from_netlink)?;
        self.apply_among(wanted, &links)
    }

    /// The same where the node's links have just been read: whoever reads them waits for whoever
    /// changes any link of the machine.
    pub(super) fn apply_among(
        &mut self,
        wanted: &Wanted,
        links: &[Link],
    ) -> Result<Applied, OpError> {
        let mut done = Applied::default();
        if !self.are_pinned() {
            self.keep_flows()?;
            *self = Self::load(&self.options.clone())?;
            done.changes.push(format!(
                "loaded the programs of Services anew: their pins in {} were gone",
                self.directory.display()
            ));
        }
        let (entries, failures) = self.resolve(wanted, links)?;
        done.failures.extend(failures);
        self.maps.write_settings(settings(wanted), &mut done)?;
        self.maps.write_links(&entries, &mut done)?;
        let uplink = self.accelerated(wanted, links);
        let is_tried = |link: &&Link| uplink::is_left_out(wanted.acceleration, link).is_none();
        self.detach_uplinks(uplink.filter(is_tried), &mut done)?;
        self.attach(&entries, links, &mut done)?;
        if let Some(link) = uplink {
            self.accelerate(link, wanted.acceleration, &mut done);
        }
        self.maps.remove_links(&entries, &mut done)?;
        if done.failures.is_empty() {
            self.remove_other_layouts(&mut done)?;
        }
        Ok(done)
    }

    /// Reads back what is ours.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn observe(&mut self) -> Result<Observed, OpError> {
        let links = self.netlink.links().map_err(from_netlink)?;
        let mut attached = BTreeSet::new();
        for ((index, program), is_current) in self.hooks.attached(&self.programs, &links)? {
            let link = links.iter().find(|link| link.index == index);
            if let (Some(link), true) = (link, is_current) {
                attached.insert((link.name.clone(), program.name()));
            }
        }
        Ok(Observed { attached, counters: self.maps.counters()?, draining: self.is_draining()? })
    }

    /// What each wanted link has: all, nothing yet, or less than it had; and for which others
    /// something is kept still. `links`: all that are there.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub(super) fn links(
        &mut self,
        wanted: &Wanted,
        links: &[Link],
    ) -> Result<BTreeMap<String, LinkPrograms>, OpError> {
        let (entries, _) = self.resolve(wanted, links)?;
        let attached = self.hooks.attached(&self.programs, links)?;
        let present = self.maps.links()?;
        let is_attached = |index, program: &Program| attached.get(&(index, *program));
        let state = |link: &Link| {
            let entry = entries.get(&link.index)?;
            let programs = Program::SERVICES.map(|one| is_attached(link.index, &one));
            let is_known = present.get(&link.index) == Some(&entry.to_bytes());
            Some(match programs {
                [Some(true), Some(true)] if is_known => LinkPrograms::Attached,
                [None, None] if !present.contains_key(&link.index) => LinkPrograms::New,
                _ => LinkPrograms::Damaged,
            })
        };
        let there = links.iter().filter_map(|link| Some((link.name.clone(), state(link)?)));
        let kept = present.keys().chain(attached.keys().map(|(index, _)| index));
        let gone = kept.filter(|index| !entries.contains_key(index));
        let gone = gone.map(|index| (format!("link number {index}"), LinkPrograms::Gone));
        Ok(there.chain(gone).collect())
    }

    /// What comes before the stack at the uplink.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn uplink(&mut self, wanted: &Wanted) -> Result<UplinkProgram, OpError> {
        let links = self.netlink.links().map_err(from_netlink)?;
        self.uplink_among(wanted, &links)
    }

    /// The same where the node's links have just been read.
    pub(super) fn uplink_among(
        &self,
        wanted: &Wanted,
        links: &[Link],
    ) -> Result<UplinkProgram, OpError> {
        let pins = self.links_directory();
        let Some(link) = self.accelerated(wanted, links) else {
            return Ok(match uplink::attached(&pins)?.is_empty() {
                true => UplinkProgram::Absent,
                false => UplinkProgram::Attached,
            });
        };
        let is_attached = |uplink: &Uplink| uplink.is_attached(&pins, link);
        Ok(match (&self.uplink, &self.uplink_refusal) {
            (Some(uplink), _) if is_attached(uplink) => UplinkProgram::Attached,
            (_, Some(refusal)) => UplinkProgram::Refused(refusal.clone()),
            _ => UplinkProgram::Absent,
        })
    }

    /// Whether any flow still goes on.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn has_flows(&self) -> Result<bool, OpError> {
        self.maps.has_flows(super::syscalls::uptime_s())
    }

    /// Takes no new flows: those that are known go on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn drain(&mut self) -> Result<(), OpError> {
        let settings = self.maps.settings()?;
        let settings = NatSettings { flags: settings.flags | NAT_DRAINING, ..settings };
        self.maps.write_settings(settings, &mut Applied::default())
    }

    /// Whether known flows go on and no new ones are taken.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn is_draining(&self) -> Result<bool, OpError> {
        Ok(self.maps.settings()?.flags & NAT_DRAINING != 0)
    }

    /// All flows that are known, also those whose time is over and that wait for their place to be
    /// needed.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn flows(&self) -> Result<Vec<TrackedFlow>, OpError> {
        self.maps.flows()
    }

    /// Packets by what became of them, names as in `ebpf_abi::flows::NAT_REASONS`.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn counters(&self) -> Result<BTreeMap<&'static str, u64>, OpError> {
        self.maps.counters()
    }

    /// Detaches and unpins everything. Flows end: their packets are the next backend's.
    ///
    /// # Errors
    /// When something of ours stays.
    pub fn remove(mut self) -> Result<(), OpError> {
        let nothing = Wanted {
            links: BTreeMap::new(),
            node_addresses: Vec::new(),
            ports: MASQUERADE_PORTS,
            draining: true,
            uplink: None,
            acceleration: ServiceAcceleration::Disabled,
        };
        let mut done = self.apply(&nothing)?;
        if let Some(failure) = done.failures.pop() {
            return Err(failure);
        }
        fs::remove_dir_all(&self.directory)
            .map_err(|error| refused(&format!("remove {}", self.directory.display()), &error))
    }

    /// Runs a loaded program on one frame, as if it came or went by a link, without sending
    /// anything.
    ///
    /// # Errors
    /// When the kernel refuses the frame.
    pub fn run(&self, program: Program, passage: Passage, frame: &[u8]) -> Result<Left, OpError> {
        super::run_one(&self.programs, program, passage, frame)
    }

    /// Runs the program that comes before the stack at the uplink on one frame, as if it came by a
    /// link, without sending anything: its answer (`XDP_…`) and the frame as it left it.
    ///
    /// # Errors
    /// When the program is not loaded, or the kernel refuses the frame.
    pub fn run_uplink(&self, link_index: u32, frame: &[u8]) -> Result<(u32, Vec<u8>), OpError> {
        self.uplink.as_ref().ok_or_else(super::absent)?.run(link_index, frame)
    }

    /// Frames that were sent on before the stack; 0 where that is not asked for.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn sent_at_uplink(&self) -> Result<u64, OpError> {
        self.uplink.as_ref().map_or(Ok(0), Uplink::sent)
    }

    /// Whether the next process would find the programs and maps that this one uses.
    pub fn are_pinned(&self) -> bool {
        let programs = self.directory.join(programs_name(&self.options));
        Program::SERVICES.iter().all(|program| programs.join(program.name()).exists())
            && maps::are_pinned(&self.directory.join("maps"))
    }

    /// Pins the maps again where somebody took the pins away: flows go on (R-04). Programs that
    /// lost theirs are gone or go with this process, and have to be loaded anew.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn keep_flows(&self) -> Result<(), OpError> {
        require_file_system(&self.options.file_system)?;
        let maps = self.directory.join("maps");
        make_directory(&maps)?;
        self.maps.pin_again(&maps)
    }

    /// Finds the numbers of links, and the addresses that flows get which leave by them.
    fn resolve(
        &mut self,
        wanted: &Wanted,
        links: &[Link],
    ) -> Result<(BTreeMap<u32, NatLink>, Vec<OpError>), OpError> {
        let addresses = self.netlink.addresses(None).map_err(from_netlink)?;
        let mut entries = BTreeMap::new();
        let mut failures = Vec::new();
        for (name, kind) in &wanted.links {
            let Some(link) = links.iter().find(|link| link.name == *name) else {
                failures.push(gone(name));
                continue;
            };
            let mut found = own_addresses(link, &addresses);
            found.extend(&wanted.node_addresses);
            entries.insert(link.index, nat_link(*kind, link, &found));
        }
        Ok((entries, failures))
    }

    fn links_directory(&self) -> PathBuf {
        self.directory.join("links")
    }

    /// The link that shall have a program before the stack.
    fn accelerated<'a>(&self, wanted: &Wanted, links: &'a [Link]) -> Option<&'a Link> {
        if wanted.acceleration == ServiceAcceleration::Disabled {
            return None;
        }
        links.iter().find(|link| Some(&link.name) == wanted.uplink.as_ref())
    }

    fn detach_uplinks(&self, except: Option<&Link>, done: &mut Applied) -> Result<(), OpError> {
        let pins = self.links_directory();
        for index in uplink::attached(&pins)? {
            if except.is_some_and(|link| link.index == index) {
                continue;
            }
            match uplink::detach(&pins, index) {
                Ok(()) => done.changes.push(format!("detached XDP from link number {index}")),
                Err(failure) => done.failures.push(failure),
            }
        }
        Ok(())
    }

    /// Attaches what comes before the stack. Where it cannot be, packets take the path of tc, which
    /// is a fault only where it was asked for without condition.
    fn accelerate(&mut self, link: &Link, how: ServiceAcceleration, done: &mut Applied) {
        let attached = self.attach_uplink(link, how);
        self.uplink_refusal = attached.as_ref().err().map(|error| error.message.clone());
        match attached {
            Ok(true) => done.changes.push(format!("attached XDP to {}", link.name)),
            Err(failure) if how == ServiceAcceleration::Native => done.failures.push(failure),
            Ok(false) | Err(_) => {}
        }
    }

    /// Answers whether it was not yet.
    fn attach_uplink(&mut self, link: &Link, how: ServiceAcceleration) -> Result<bool, OpError> {
        if let Some(message) = uplink::is_left_out(how, link) {
            return Err(OpError { errno: libc::EOPNOTSUPP, message });
        }
        let loaded = match self.uplink.take() {
            Some(loaded) => loaded,
            None => Uplink::load(&self.options, &self.directory)?,
        };
        let uplink = self.uplink.insert(loaded);
        let pins = self.directory.join("links");
        if uplink.is_attached(&pins, link) {
            return Ok(false);
        }
        uplink.attach(&pins, link).map(|()| true)
    }

    fn attach(
        &mut self,
        entries: &BTreeMap<u32, NatLink>,
        links: &[Link],
        done: &mut Applied,
    ) -> Result<(), OpError> {
        let attached = self.hooks.attached(&self.programs, links)?;
        for link in links.iter().filter(|link| entries.contains_key(&link.index)) {
            // What leaves first: an answer that finds its flow must also find its way back.
            for program in [Program::ServiceLeave, Program::ServiceEnter] {
                if attached.get(&(link.index, program)) == Some(&true) {
                    continue;
                }
                let loaded = self.programs.get_mut(&program).ok_or_else(super::absent)?;
                match self.hooks.attach(program, loaded, link) {
                    Ok(()) => {
                        done.changes.push(format!("attached {} to {}", program.name(), link.name));
                    }
                    Err(failure) => done.failures.push(failure),
                }
            }
        }
        for (index, program) in attached.into_keys() {
            if entries.contains_key(&index) {
                continue;
            }
            match self.hooks.detach(program, index) {
                Ok(()) => done
                    .changes
                    .push(format!("detached {} from link number {index}", program.name())),
                Err(failure) => done.failures.push(failure),
            }
        }
        Ok(())
    }

    /// Detaches and unpins what an agent with another layout of flows left. Its flows end.
    fn remove_other_layouts(&self, done: &mut Applied) -> Result<(), OpError> {
        let top = self.options.file_system.join("flatnet");
        for path in entries_of(&top)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !name.starts_with(DIRECTORY_PREFIX) || path == self.directory {
                continue;
            }
            for link in entries_of(&path.join("links"))? {
                unpin(&link)?;
            }
            fs::remove_dir_all(&path)
                .map_err(|error| refused(&format!("remove {}", path.display()), &error))?;
            done.changes.push(format!("removed {name}, of another version"));
        }
        Ok(())
    }
}

fn settings(wanted: &Wanted) -> NatSettings {
    let (first, last) = (u32::from(*wanted.ports.start()), u32::from(*wanted.ports.end()));
    NatSettings {
        flags: if wanted.draining { NAT_DRAINING } else { 0 },
        port_first: first,
        port_count: (last + 1).saturating_sub(first),
    }
}

/// The addresses of a link, or of the bridge that it is a port of.
fn own_addresses(link: &Link, all: &[Address]) -> Vec<IpAddr> {
    let index = link.master.unwrap_or(link.index);
    let own = all.iter().filter(|one| one.link_index == index);
    own.map(|one| one.address.addr()).collect()
}

fn nat_link(kind: LinkKind, link: &Link, addresses: &[IpAddr]) -> NatLink {
    let mut entry = NatLink::default();
    if link.mac.is_some() {
        entry.flags |= NAT_LINK_ETHERNET;
    }
    entry.flags |= match kind {
        LinkKind::Pod => NAT_LINK_POD,
        LinkKind::Outside => 0,
        LinkKind::Nodes => NAT_LINK_NODES,
    };
    for address in addresses.iter().rev() {
        match address {
            IpAddr::V4(address) => entry.ipv4 = address.octets(),
            IpAddr::V6(address) if !address.is_unicast_link_local() => {
                entry.ipv6 = address.octets();
            }
            IpAddr::V6(_) => {}
        }
    }
    entry
}

fn entries_of(directory: &Path) -> Result<Vec<PathBuf>, OpError> {
    let failed = |error: std::io::Error| refused(&format!("read {}", directory.display()), &error);
    match fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()
            .map_err(failed),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

/// The directory of the programs of this build with these maps of Services.
fn programs_name(options: &Options) -> String {
    let services = options.services_maps.display().to_string();
    let services = fingerprint(services.as_bytes());
    format!("{}{}-{services}", super::objects::PROGRAMS_PREFIX, *BUILD)
}

fn gone(link: &str) -> OpError {
    OpError {
        errno: libc::ENODEV,
        message: format!(
            "Services in eBPF find no link {link}: packets of Services by it go on untranslated until it is back"
        ),
    }
}
