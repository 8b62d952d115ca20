//! [`NodeServices`]: Services in eBPF on one node, as `render::ebpf::node` asks for them. Nothing
//! of eBPF is touched on a node that never had them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use model::layout::{BRIDGE, POD_LINK_ALIAS_PREFIX};
use netlink::{Link, Netlink};
use render::OpError;
use render::ebpf::node::{
    LinkPrograms, NodeObserved, NodeOp, PacketsObserved, Place, Sockets, UplinkProgram,
};
use render::ebpf::{EbpfOp, Sizes};
use render::net::OWN_LINKS;

use super::service_nat::{LinkKind, MASQUERADE_PORTS, Options, ServiceNat, Wanted};
use super::services::EbpfDriver;
use super::{FILE_SYSTEM, from_netlink, probe, refused, service_nat, services};

/// Flows of Services go on for so long at most after another backend took over: what is idle for
/// longer meets programs that end half-open connections too.
pub const DRAINING_MAX: Duration = Duration::from_secs(3600);

/// Where cgroups of version 2 are mounted, alone and beside version 1; a container may have the host's
/// below a directory of its own.
const CGROUP_PLACES: [&str; 2] = ["sys/fs/cgroup", "sys/fs/cgroup/unified"];

/// What this node lacks of what Services in eBPF need, for people; empty: it has all.
pub fn missing() -> Vec<String> {
    let mut missing = services::missing();
    if !Path::new(FILE_SYSTEM).is_dir() {
        missing.push(format!(
            "{FILE_SYSTEM} does not exist: the kernel has no eBPF file system, or /sys is not \
             mounted"
        ));
    }
    missing.extend(cgroup().err().map(|error| error.message));
    missing
}

/// The programs and maps of one node. Everything is done in the network namespace of the calling
/// thread, which is the node's.
pub struct NodeServices {
    file_system: PathBuf,
    /// Whose sockets are translated; otherwise [`cgroup`] finds it.
    cgroup: Option<PathBuf>,
    sizes: Sizes,
    services: Option<EbpfDriver>,
    nat: Option<ServiceNat>,
    /// What links were brought to.
    place: Option<Place>,
    draining_since: Option<Instant>,
    /// As it was read or written last.
    last: NodeObserved,
}

impl Default for NodeServices {
    fn default() -> Self {
        Self::at(FILE_SYSTEM.as_ref())
    }
}

impl NodeServices {
    /// With another eBPF file system than the machine's own.
    pub fn at(file_system: &Path) -> Self {
        Self {
            file_system: file_system.to_owned(),
            cgroup: None,
            sizes: Sizes::default(),
            services: None,
            nat: None,
            place: None,
            draining_since: None,
            last: NodeObserved::default(),
        }
    }

    /// For the sockets of this cgroup, where several nodes share a mount of cgroups.
    pub fn in_cgroup(self, cgroup: &Path) -> Self {
        Self { cgroup: Some(cgroup.to_owned()), ..self }
    }

    /// With maps of other sizes than usual: those that are there are replaced without a gap.
    pub fn with_sizes(self, sizes: Sizes) -> Self {
        Self { sizes, ..self }
    }

    /// Reads back what is there, and remembers it for [`NodeServices::has_changed`].
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn observe(&mut self) -> Result<NodeObserved, OpError> {
        self.last = self.read()?;
        Ok(self.last.clone())
    }

    /// Whether it is otherwise than it was read or written last: maps and programs tell nobody of
    /// their changes.
    pub fn has_changed(&mut self) -> bool {
        let is_nothing = self.last == NodeObserved::default();
        !is_nothing && self.read().is_ok_and(|present| present != self.last)
    }

    /// What comes before the stack at the uplink, as it was read or written last; `None` until this
    /// process has brought the links to something.
    pub fn uplink(&self) -> Option<&UplinkProgram> {
        let packets = self.last.packets.as_ref()?;
        packets.place.as_ref().map(|_| &packets.uplink)
    }

    /// Carries out one op.
    ///
    /// # Errors
    /// The kernel's refusal, after which it has to be observed again.
    pub fn apply(&mut self, op: &NodeOp) -> Result<(), OpError> {
        match op {
            NodeOp::Make(sizes) => self.make(*sizes)?,
            NodeOp::Maps(op) => self.change(op)?,
            NodeOp::AttachLinks(place) => self.attach_links(place)?,
            NodeOp::AttachSockets => {
                let cgroup = self.cgroup()?;
                self.services()?.attach(&cgroup)?;
                self.services()?.remove_others()?;
            }
            NodeOp::DetachSockets => self.services()?.detach()?,
            NodeOp::Drain => self.nat()?.drain()?,
            NodeOp::Remove => self.remove()?,
        }
        self.last.apply(op)
    }

    /// Brings links that have come since to what the others have, without waiting for the next
    /// reading. Answers whether packets of this one are translated then; `None` where no link shall
    /// be brought to anything: this process has not done so yet, or another backend takes over.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn follow_links(&mut self, link: &str) -> Result<Option<bool>, OpError> {
        let Some(place) = self.place.clone() else { return Ok(None) };
        if self.nat()?.is_draining()? {
            return Ok(None);
        }
        let links = read_links()?;
        let wanted = wanted_at(&place, &links);
        if !wanted.links.contains_key(link) {
            return Ok(Some(false));
        }
        let nat = self.nat()?;
        let done = nat.apply_among(&wanted, &links)?;
        if done.failures.is_empty() {
            return Ok(Some(true));
        }
        // What fails elsewhere is told and tried again by the next turn.
        Ok(Some(nat.links(&wanted, &links)?.get(link) == Some(&LinkPrograms::Attached)))
    }

    /// Removes everything, wherever it comes from. Flows end.
    ///
    /// # Errors
    /// When something of ours stays.
    pub fn remove(&mut self) -> Result<(), OpError> {
        if services::is_present(&self.file_system) {
            self.services()?;
            if self.nat.is_some() || service_nat::is_present(&self.file_system) {
                self.nat()?;
            }
            self.nat.take().map_or(Ok(()), ServiceNat::remove)?;
            self.services.take().map_or(Ok(()), EbpfDriver::remove)?;
        }
        let cgroup = self.cgroup.take();
        *self = Self { cgroup, sizes: self.sizes, ..Self::at(&self.file_system) };
        Ok(())
    }

    fn read(&mut self) -> Result<NodeObserved, OpError> {
        if self.services.is_none() && !services::is_present(&self.file_system) {
            return Ok(NodeObserved::default());
        }
        let cgroup = self.cgroup();
        let services = self.services()?;
        let maps = Some(services.observe()?);
        let sockets = match services.is_leading() {
            false => Sockets::Detached,
            true if services.is_attached(&cgroup?)? => Sockets::Attached,
            true => Sockets::Partly,
        };
        let has_programs = self.nat.is_some() || service_nat::is_present(&self.file_system);
        let packets = if has_programs { Some(self.read_packets()?) } else { None };
        Ok(NodeObserved { maps, sockets, packets })
    }

    fn cgroup(&self) -> Result<PathBuf, OpError> {
        self.cgroup.clone().map_or_else(cgroup, Ok)
    }

    fn read_packets(&mut self) -> Result<PacketsObserved, OpError> {
        let place = self.place.clone();
        let links = if place.is_some() { read_links()? } else { Vec::new() };
        let wanted = place.as_ref().map(|place| wanted_at(place, &links));
        let nat = self.nat()?;
        let (links, uplink) = match wanted {
            Some(wanted) => (nat.links(&wanted, &links)?, nat.uplink_among(&wanted, &links)?),
            None => (BTreeMap::new(), UplinkProgram::Absent),
        };
        let (draining, has_flows) = (nat.is_draining()?, nat.has_flows()?);
        if !draining {
            self.draining_since = None;
            return Ok(PacketsObserved { place, links, uplink, draining, drained: false });
        }
        let since = *self.draining_since.get_or_insert_with(Instant::now);
        let drained = !has_flows || since.elapsed() > DRAINING_MAX;
        Ok(PacketsObserved { place, links, uplink, draining, drained })
    }

    fn make(&mut self, sizes: Sizes) -> Result<(), OpError> {
        if sizes != self.sizes {
            (self.sizes, self.services) = (sizes, None);
        }
        self.services().map(drop)
    }

    fn change(&mut self, op: &EbpfOp) -> Result<(), OpError> {
        self.services()?.apply(op)
    }

    fn attach_links(&mut self, place: &Place) -> Result<(), OpError> {
        let links = read_links()?;
        let mut done = self.nat()?.apply_among(&wanted_at(place, &links), &links)?;
        self.place = Some(place.clone());
        match done.failures.pop() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    /// The maps; made anew where somebody unpinned them, and then with all that used them.
    fn services(&mut self) -> Result<&mut EbpfDriver, OpError> {
        let services = match self.services.take().filter(EbpfDriver::are_pinned) {
            Some(services) => services,
            None => {
                if !services::has_maps(&self.file_system, &self.sizes) {
                    self.place = None;
                    self.nat.take().map_or(Ok(()), |nat| nat.keep_flows())?;
                    service_nat::forget_programs(&self.file_system)?;
                }
                EbpfDriver::open(&self.file_system, self.sizes)?
            }
        };
        Ok(self.services.insert(services))
    }

    /// The programs at links, which need the maps.
    fn nat(&mut self) -> Result<&mut ServiceNat, OpError> {
        let services_maps = self.services()?.maps_directory();
        let nat = match self.nat.take() {
            Some(nat) if nat.are_pinned() => nat,
            former => {
                self.place = None;
                former.map_or(Ok(()), |nat| nat.keep_flows())?;
                ServiceNat::load(&Options {
                    file_system: self.file_system.clone(),
                    services_maps,
                    hook: probe(&self.file_system).hook,
                    flows_max: self.sizes.flows,
                })?
            }
        };
        Ok(self.nat.insert(nat))
    }
}

/// All links of the node that are there now.
fn read_links() -> Result<Vec<Link>, OpError> {
    Netlink::open().and_then(|mut netlink| netlink.links()).map_err(from_netlink)
}

/// What these links shall have.
fn wanted_at(place: &Place, links: &[Link]) -> Wanted {
    let is_pod =
        |alias: Option<&str>| alias.is_some_and(|alias| alias.starts_with(POD_LINK_ALIAS_PREFIX));
    let kind = |name: &str, alias: Option<&str>| match name {
        name if name == place.uplink && !place.is_uplink_a_way => Some(LinkKind::Outside),
        name if name == place.uplink => Some(LinkKind::Nodes),
        // Its ports have pods' programs, or are nobody's.
        BRIDGE => None,
        name if OWN_LINKS.contains(&name) => Some(LinkKind::Nodes),
        _ => is_pod(alias).then_some(LinkKind::Pod),
    };
    let links = links.iter().filter_map(|link| {
        let kind = kind(&link.name, link.alias.as_deref())?;
        Some((link.name.clone(), kind))
    });
    Wanted {
        links: links.collect(),
        node_addresses: place.addresses.clone(),
        ports: MASQUERADE_PORTS,
        draining: false,
        uplink: Some(place.uplink.clone()),
        acceleration: place.acceleration,
    }
}

/// The cgroup of version 2 whose processes are the node's and its pods': the outermost that is
/// mounted here, also where the controllers are those of version 1.
///
/// # Errors
/// When none is mounted.
pub fn cgroup() -> Result<PathBuf, OpError> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| refused("read /proc/self/mountinfo", &error))?;
    outermost_cgroup(&mounts).ok_or_else(|| OpError {
        errno: libc::ENOENT,
        message: "no cgroup of version 2 is mounted: mount cgroup2 on /sys/fs/cgroup, or on \
                  /sys/fs/cgroup/unified beside version 1"
            .into(),
    })
}

/// A container's own mount shows its own cgroup as `/`; one of the host's, beside it, shows what is
/// above as `/..` (cgroup_namespaces(7)). Whatever else is mounted, such as a test's or a tool's own
/// view of the whole machine, says nothing of the node, unless there is nothing else.
fn outermost_cgroup(mounts: &str) -> Option<PathBuf> {
    let mounts = mounts.lines().filter_map(|line| {
        let (place, system) = line.split_once(" - ")?;
        let mut fields = place.split(' ').skip(3);
        let (root, path) = (fields.next()?, Path::new(fields.next()?));
        (system.split(' ').next() == Some("cgroup2")).then_some((root, path))
    });
    let rank = |(root, path): &(&str, &Path)| {
        let is_usual = CGROUP_PLACES.iter().any(|place| path.ends_with(place));
        (is_usual, root.split('/').filter(|part| *part == "..").count())
    };
    // Of equals the first: a later one may be a part of it.
    mounts
        .reduce(|best, next| if rank(&next) > rank(&best) { next } else { best })
        .map(|(_, path)| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_cgroup_is_found_in_all_layouts() {
        const OWN: &str = "31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup rw\n";
        const HOST: &str =
            "40 24 0:27 /../../.. /host/sys/fs/cgroup ro - cgroup2 cgroup rw,nsdelegate\n";
        const OLD: &str = "32 24 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        const BESIDE: &str = "33 24 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        const OTHER: &str = "34 24 0:27 /../../../.. /tmp/all rw - cgroup2 none rw\n";
        let rows = [
            (vec![OWN], Some("/sys/fs/cgroup")),
            (vec![OWN, HOST], Some("/host/sys/fs/cgroup")),
            (vec![HOST, OWN], Some("/host/sys/fs/cgroup")),
            (vec![OLD, BESIDE], Some("/sys/fs/cgroup/unified")),
            (vec![OTHER, BESIDE], Some("/sys/fs/cgroup/unified")),
            (vec![OWN, OTHER, HOST], Some("/host/sys/fs/cgroup")),
            (vec![OTHER], Some("/tmp/all")),
            (vec![OLD], None),
        ];
        for (mounts, expected) in rows {
            let found = outermost_cgroup(&mounts.concat());
            assert_eq!(found.as_deref(), expected.map(Path::new), "{mounts:?}");
        }
    }
}
