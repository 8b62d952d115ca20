//! [`IpvsDriver`]: our virtual servers, their addresses and the parameters of IPVS.
//!
//! The kernel has no names for virtual servers. Ours carry bits in their flags that it keeps and
//! does not use; others' servers are not seen here and not touched (invariant 4).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use model::Protocol;
use netlink::ipvs::{Destination, Ipvs, ServerId, ServerOptions};
use netlink::socket::Socket;
use netlink::{Error, LinkChange, Netlink, Netns, sysctl};
use render::OpError;
use render::ipvs::{
    IpvsObserved, IpvsOp, ObservedDestination, ObservedServer, PARAMETERS, Scheduler, ServerKey,
    ServerSettings,
};
use render::owned::{IPVS_FLAGS, IPVS_FLAGS_MASK, IPVS_LINK};

use crate::nft::forget_flows;

/// Connections to an endpoint that goes live on for so long at most: what is idle for longer IPVS
/// has forgotten anyway (15 minutes for TCP), and other ways to go on are others' to choose.
pub const DRAINING_MAX: Duration = Duration::from_secs(3600);
/// How long the kernel takes to forget connections whose endpoint has gone (`expire_nodest_conn`: a
/// tick after that, by a worker). Until then it takes an error about their next datagram for the
/// endpoint's.
const EXPIRY: Duration = Duration::from_millis(20);
/// Virtual servers that one look for changes reads: some 15 ms of processor time each 500 ms. Of
/// more than these, another part is read each time; that many are gone is seen at once.
pub const LOOK_SERVERS: usize = 1_024;
/// Where the parameters are.
const PARAMETERS_DIRECTORY: &str = "net/ipv4/vs";
const LINK_KIND: &str = "dummy";
/// It is the only one that gets connections.
const STAND_IN_WEIGHT: u32 = 1;

/// The writer of our part of IPVS, over kept sockets.
pub struct IpvsDriver {
    ipvs: Ipvs,
    netlink: Netlink,
    /// Forgets tracked flows.
    flows: Socket,
    /// Whose parameters are meant, whichever thread calls.
    namespace: Netns,
    /// As it was read or written last.
    last: IpvsObserved,
    /// Up to which server the last look for changes went.
    looked_at: Option<ServerKey>,
    /// Since when an endpoint has no new connections and waits for the others.
    draining: BTreeMap<(ServerKey, SocketAddr), Instant>,
}

/// What this machine lacks of what Services by IPVS need, for people; empty: it has all. Tried in a
/// network namespace that lives as long as the question; modules are loaded by it.
///
/// # Errors
/// When no namespace can be had to try it in.
pub fn missing() -> Result<Vec<&'static str>, OpError> {
    let attempt = || -> Result<Vec<&'static str>, Error> {
        let mut missing = Vec::new();
        if Ipvs::open()?.load().is_err() {
            missing.push("IPVS (module ip_vs)");
        }
        if Netlink::open()?.create_dummy(IPVS_LINK).is_err() {
            missing.push("dummy links (module dummy)");
        }
        Ok(missing)
    };
    Netns::create().and_then(|namespace| namespace.run(attempt)?).map_err(refused)
}

impl IpvsDriver {
    /// Opens the driver in the network namespace of the calling thread. IPVS is not loaded before
    /// it is needed.
    ///
    /// # Errors
    /// When the system refuses the sockets.
    pub fn open() -> Result<Self, OpError> {
        let open = || {
            Ok(Self {
                ipvs: Ipvs::open()?,
                netlink: Netlink::open()?,
                flows: Socket::open(libc::NETLINK_NETFILTER)?,
                namespace: Netns::current()?,
                last: IpvsObserved::default(),
                looked_at: None,
                draining: BTreeMap::new(),
            })
        };
        open().map_err(refused)
    }

    /// Reads back what is ours, and remembers it for [`IpvsDriver::has_changed`]. Where IPVS is not
    /// loaded, it is not loaded for that.
    ///
    /// # Errors
    /// When the kernel cannot be asked; nothing may be concluded about what is there.
    pub fn observe(&mut self) -> Result<IpvsObserved, OpError> {
        self.last = self.read().map_err(refused)?;
        Ok(self.last.clone())
    }

    /// Whether it is otherwise than it was read or written last: IPVS tells nobody of its changes.
    pub fn has_changed(&mut self) -> bool {
        let is_nothing = self.last == IpvsObserved::default();
        !is_nothing && self.look().is_ok_and(|is_same| !is_same)
    }

    /// Carries out one op, wholly or not at all.
    ///
    /// # Errors
    /// The kernel's errno and words, the object, and what to do where that is known.
    pub fn apply(&mut self, op: &IpvsOp) -> Result<(), OpError> {
        self.write(op).map_err(|error| {
            let hint = hint(op, error.errno);
            let mut refused = refused(error);
            refused.message.push_str(hint);
            refused
        })?;
        // Where the kernel has more connections than are known here, the next look tells.
        self.last.apply(op)
    }

    /// Removes all that is ours at once; connections end.
    ///
    /// # Errors
    /// When something of ours stays.
    pub fn remove(&mut self) -> Result<(), OpError> {
        let observed = self.read().map_err(refused)?;
        if observed.link.is_some() {
            self.write(&IpvsOp::DeleteLink).map_err(refused)?;
        }
        for key in observed.servers.keys() {
            self.ipvs.delete_server(id_of(*key)).map_err(refused)?;
        }
        self.last = IpvsObserved::default();
        Ok(())
    }

    fn read(&mut self) -> Result<IpvsObserved, Error> {
        let mut observed = IpvsObserved { link: self.addresses()?, ..IpvsObserved::default() };
        if !self.is_loaded()? {
            return Ok(observed);
        }
        let found: Vec<_> = self
            .ipvs
            .servers()?
            .into_iter()
            .filter(|(_, options)| is_ours(options))
            .filter_map(|(id, options)| Some((key_of(id)?, options)))
            .collect();
        for (key, options) in found {
            let settings = ServerSettings {
                scheduler: Scheduler::from_name(&options.scheduler),
                affinity_timeout_s: options.affinity_timeout_s,
            };
            let server = ObservedServer { settings, destinations: self.destinations(key)? };
            observed.servers.insert(key, server);
        }
        if observed.link.is_some() {
            observed.parameters = self.parameters()?;
        }
        self.draining.retain(|(key, endpoint), _| {
            let server = observed.servers.get(key);
            let one = server.and_then(|server| server.destinations.get(endpoint));
            one.is_some_and(|one| one.weight == 0)
        });
        Ok(observed)
    }

    /// Whether what a short look sees is as it was.
    fn look(&mut self) -> Result<bool, Error> {
        if !self.last.retiring.is_empty()
            || self.addresses()? != self.last.link
            || self.parameters()? != self.last.parameters
        {
            return Ok(false);
        }
        let after = self.looked_at.and_then(|key| self.last.servers.range(key..).nth(1));
        let start = after.or(self.last.servers.first_key_value()).map(|(key, _)| *key);
        let Some(start) = start else { return Ok(true) };
        let part: Vec<(ServerKey, BTreeMap<SocketAddr, ObservedDestination>)> = self
            .last
            .servers
            .range(start..)
            .take(LOOK_SERVERS)
            .map(|(key, server)| (*key, server.destinations.clone()))
            .collect();
        for (key, destinations) in part {
            self.looked_at = Some(key);
            if self.destinations(key)? != destinations {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Of our link; `None` without it.
    fn addresses(&mut self) -> Result<Option<BTreeSet<IpAddr>>, Error> {
        let link = self.netlink.link(IPVS_LINK)?.filter(|link| link.kind == LINK_KIND);
        let Some(link) = link else { return Ok(None) };
        let addresses = self.netlink.addresses(Some(link.index))?.into_iter();
        // The kernel gives an address of its own to each link.
        let addresses = addresses.map(|one| one.address.addr()).filter(|one| !is_automatic(*one));
        Ok(Some(addresses.collect()))
    }

    fn parameters(&mut self) -> Result<BTreeMap<&'static str, String>, Error> {
        let read = |name: &str| sysctl::read(&format!("{PARAMETERS_DIRECTORY}/{name}"));
        self.namespace.run(|| {
            // Absent until IPVS is loaded: writing it will say so.
            let known = PARAMETERS.into_iter().map(|(name, _)| (name, read(name)));
            known.filter_map(|(name, value)| Some((name, value.ok()?))).collect()
        })
    }

    fn is_loaded(&self) -> Result<bool, Error> {
        let parameter = format!("{PARAMETERS_DIRECTORY}/{}", PARAMETERS[0].0);
        self.namespace.run(|| sysctl::read(&parameter).is_ok())
    }

    fn destinations(
        &mut self,
        key: ServerKey,
    ) -> Result<BTreeMap<SocketAddr, ObservedDestination>, Error> {
        let now = Instant::now();
        let found = self.ipvs.destinations(id_of(key))?.into_iter().map(|one| {
            let is_draining = one.weight == 0 && has_connections(&one);
            let since =
                is_draining.then(|| *self.draining.entry((key, one.address)).or_insert(now));
            let is_busy = since.is_some_and(|since| now.duration_since(since) < DRAINING_MAX);
            (one.address, ObservedDestination { weight: one.weight, is_busy })
        });
        Ok(found.collect())
    }

    fn write(&mut self, op: &IpvsOp) -> Result<(), Error> {
        match op {
            IpvsOp::CreateLink => self.create_link(),
            IpvsOp::DeleteLink => {
                let index = self.netlink.require_link(IPVS_LINK)?.index;
                self.netlink.delete_link(index)
            }
            IpvsOp::SetParameter { name, value } => {
                self.ipvs.load()?;
                let key = format!("{PARAMETERS_DIRECTORY}/{name}");
                self.namespace.run(|| sysctl::write(&key, value))?
            }
            IpvsOp::AddAddress(address) => {
                let index = self.netlink.require_link(IPVS_LINK)?.index;
                self.netlink.add_address(index, IpNet::from(*address))
            }
            IpvsOp::DeleteAddress(address) => {
                let index = self.netlink.require_link(IPVS_LINK)?.index;
                self.netlink.delete_address(index, IpNet::from(*address))
            }
            IpvsOp::AddServer(key, settings) => self.add_server(*key, settings),
            IpvsOp::ChangeServer(key, settings) => {
                self.ipvs.change_server(id_of(*key), &options_of(settings))
            }
            IpvsOp::RetireServer(key) => self.retire_server(*key),
            IpvsOp::AddDestination(key, endpoint, weight) => {
                self.add_destination(*key, *endpoint, *weight)
            }
            IpvsOp::ChangeDestination(key, endpoint, weight) => {
                self.ipvs.change_destination(id_of(*key), *endpoint, *weight)
            }
            IpvsOp::RetireDestination(key, endpoint) => self.retire(*key, *endpoint).map(drop),
            IpvsOp::ForgetFlows(stale) => {
                std::thread::sleep(EXPIRY);
                forget_flows(&mut self.flows, stale)
            }
        }
    }

    /// One that is not there yet, up: addresses of IPv6 on a link that is down are nobody's.
    fn create_link(&mut self) -> Result<(), Error> {
        self.netlink.create_dummy(IPVS_LINK)?;
        let index = self.netlink.require_link(IPVS_LINK)?.index;
        self.netlink.change_link(index, &LinkChange::up())
    }

    /// One that shall go may be waiting there, with connections that nobody has read since: then it
    /// is taken up again, and new clients are no longer the node's own.
    fn add_server(&mut self, key: ServerKey, settings: &ServerSettings) -> Result<(), Error> {
        let (id, options) = (id_of(key), options_of(settings));
        let refused = match self.ipvs.add_server(id, &options) {
            Err(error) if error.errno == libc::EEXIST => error,
            result => return result,
        };
        let servers = self.ipvs.servers()?;
        if !servers.iter().any(|(found, options)| *found == id && is_ours(options)) {
            return Err(refused);
        }
        self.ipvs.change_server(id, &options)?;
        if self.destinations(key)?.contains_key(&key.address) {
            self.retire(key, key.address)?;
        }
        Ok(())
    }

    /// One that shall go may be waiting there too.
    fn add_destination(
        &mut self,
        key: ServerKey,
        endpoint: SocketAddr,
        weight: u32,
    ) -> Result<(), Error> {
        match self.ipvs.add_destination(id_of(key), endpoint, weight) {
            Err(error) if error.errno == libc::EEXIST => {
                self.ipvs.change_destination(id_of(key), endpoint, weight)
            }
            result => result,
        }
    }

    fn retire_server(&mut self, key: ServerKey) -> Result<(), Error> {
        let id = id_of(key);
        let (stand_ins, endpoints): (Vec<_>, Vec<_>) =
            self.ipvs.destinations(id)?.into_iter().partition(|one| one.address == key.address);
        let mut is_empty = true;
        for one in endpoints {
            is_empty &= self.retire(key, one.address)?;
        }
        if is_empty {
            return self.ipvs.delete_server(id);
        }
        match stand_ins.first() {
            _ if !self.last.needs_stand_in(&key) => Ok(()),
            None => self.ipvs.add_destination(id, key.address, STAND_IN_WEIGHT),
            Some(one) if one.weight == STAND_IN_WEIGHT => Ok(()),
            Some(_) => self.ipvs.change_destination(id, key.address, STAND_IN_WEIGHT),
        }
    }

    /// First no new connections, then a look at how many there are: so none begins in between.
    /// Answers whether the endpoint is gone.
    fn retire(&mut self, key: ServerKey, endpoint: SocketAddr) -> Result<bool, Error> {
        let id = id_of(key);
        self.ipvs.change_destination(id, endpoint, 0)?;
        let destinations = self.destinations(key)?;
        if destinations.get(&endpoint).is_some_and(|one| one.is_waiting(key.protocol)) {
            return Ok(false);
        }
        self.ipvs.delete_destination(id, endpoint)?;
        Ok(true)
    }
}

fn is_ours(options: &ServerOptions) -> bool {
    options.flags & IPVS_FLAGS_MASK == IPVS_FLAGS
}

fn is_automatic(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn options_of(settings: &ServerSettings) -> ServerOptions {
    ServerOptions {
        scheduler: settings.scheduler.name().into(),
        flags: IPVS_FLAGS,
        affinity_timeout_s: settings.affinity_timeout_s,
    }
}

fn id_of(key: ServerKey) -> ServerId {
    ServerId { protocol: key.protocol.number(), address: key.address }
}

/// `None` for a protocol that no Service has.
fn key_of(id: ServerId) -> Option<ServerKey> {
    let mut protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter();
    let protocol = protocols.find(|protocol| protocol.number() == id.protocol)?;
    Some(ServerKey { protocol, address: id.address })
}

/// Open and closing ones: who has sent all may still be answered.
fn has_connections(one: &Destination) -> bool {
    one.active > 0 || one.inactive > 0
}

/// What to do about a refusal, where that is known.
fn hint(op: &IpvsOp, errno: i32) -> &'static str {
    match (op, errno) {
        (IpvsOp::CreateLink, libc::EOPNOTSUPP) => {
            "; the kernel has no dummy links: load the module dummy, or choose another \
             --service-backend"
        }
        (IpvsOp::CreateLink, libc::EEXIST) => {
            "; there is a link of this name and another kind: remove or rename it"
        }
        (IpvsOp::AddServer(..), libc::EEXIST) => {
            "; another program has a virtual server there: remove it (ipvsadm -D), or stop the \
             other proxy"
        }
        (IpvsOp::AddServer(..) | IpvsOp::ChangeServer(..), libc::ENOENT) => {
            "; the kernel lacks IPVS or this scheduler: load the modules ip_vs and ip_vs_…, or \
             choose another --service-backend"
        }
        (IpvsOp::SetParameter { .. }, libc::ENOENT) => {
            "; the kernel has no IPVS: load the module ip_vs, or choose another --service-backend"
        }
        _ => "",
    }
}

fn refused(error: Error) -> OpError {
    OpError { errno: error.errno, message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_without_our_flags_are_others() {
        let options =
            |flags| ServerOptions { scheduler: "rr".into(), flags, affinity_timeout_s: None };
        // 0x2: hashed, which the kernel sets itself.
        let rows = [(IPVS_FLAGS, true), (IPVS_FLAGS | 2, true), (2, false), (0x6700_0000, false)];
        for (flags, ours) in rows {
            assert_eq!(is_ours(&options(flags)), ours, "{flags:x}");
        }
    }

    #[test]
    fn each_protocol_of_services_has_a_key() {
        let address = "10.96.0.20:80".parse().expect("an address");
        let keys = [6, 17, 132].map(|protocol| key_of(ServerId { protocol, address }));
        let distinct: BTreeSet<_> = keys.iter().flatten().collect();
        assert_eq!(distinct.len(), 3);
        assert_eq!(key_of(ServerId { protocol: 1, address }), None);
    }
}
