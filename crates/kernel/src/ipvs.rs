//! [`IpvsDriver`]: our virtual servers, their addresses and the parameters of IPVS.
//!
//! The kernel has no names for virtual servers. Ours carry bits in their flags that it keeps and
//! does not use; others' servers are not seen here and not touched (invariant 4).

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use model::Protocol;
use netlink::ipvs::{Destination, Ipvs, ServerId, ServerOptions};
use netlink::{Error, LinkChange, Netlink, Netns, sysctl};
use render::OpError;
use render::ipvs::{
    IpvsObserved, IpvsOp, ObservedDestination, ObservedServer, PARAMETERS, Scheduler, ServerKey,
    ServerSettings,
};
use render::owned::{IPVS_FLAGS, IPVS_FLAGS_MASK, IPVS_LINK};

/// Where the parameters are.
const PARAMETERS_DIRECTORY: &str = "net/ipv4/vs";
const LINK_KIND: &str = "dummy";

/// The writer of our part of IPVS, over kept sockets.
pub struct IpvsDriver {
    ipvs: Ipvs,
    netlink: Netlink,
    /// Whose parameters are meant, whichever thread calls.
    namespace: Netns,
}

impl IpvsDriver {
    /// Opens the driver in the network namespace of the calling thread. IPVS is not loaded before
    /// it is needed.
    ///
    /// # Errors
    /// When the system refuses the sockets.
    pub fn open() -> Result<Self, OpError> {
        let open = || {
            let (ipvs, netlink) = (Ipvs::open()?, Netlink::open()?);
            Ok(Self { ipvs, netlink, namespace: Netns::current()? })
        };
        open().map_err(refused)
    }

    /// Whether the kernel has IPVS; where it is a module, it is loaded now.
    pub fn is_available(&mut self) -> bool {
        self.ipvs.load().is_ok()
    }

    /// Reads back what is ours. Without our link there is nothing, and IPVS is not even asked.
    ///
    /// # Errors
    /// When the kernel cannot be asked; nothing may be concluded about what is there.
    pub fn observe(&mut self) -> Result<IpvsObserved, OpError> {
        self.read().map_err(refused)
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
        })
    }

    fn read(&mut self) -> Result<IpvsObserved, Error> {
        let Some(index) = self.link()? else { return Ok(IpvsObserved::default()) };
        let addresses = self.netlink.addresses(Some(index))?.into_iter();
        // The kernel gives an address of its own to each link.
        let addresses = addresses.map(|one| one.address.addr()).filter(|one| !is_automatic(*one));
        let mut observed =
            IpvsObserved { link: Some(addresses.collect()), ..IpvsObserved::default() };
        let read = |name: &str| sysctl::read(&format!("{PARAMETERS_DIRECTORY}/{name}"));
        for (name, _) in PARAMETERS {
            // Absent until IPVS is loaded: writing it will say so.
            if let Ok(value) = self.namespace.run(|| read(name))? {
                observed.parameters.insert(name, value);
            }
        }
        for (id, options) in self.ipvs.servers()? {
            let Some(key) = key_of(id).filter(|_| is_ours(&options)) else { continue };
            let settings = ServerSettings {
                scheduler: Scheduler::from_name(&options.scheduler),
                affinity_timeout_s: options.affinity_timeout_s,
            };
            let found = self.ipvs.destinations(id)?;
            let destinations = found.iter().map(observed_destination).collect();
            let server = ObservedServer { settings, destinations };
            observed.servers.insert(key, server);
        }
        Ok(observed)
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
            IpvsOp::AddServer(key, settings) => {
                self.ipvs.add_server(id_of(*key), &options_of(settings))
            }
            IpvsOp::ChangeServer(key, settings) => {
                self.ipvs.change_server(id_of(*key), &options_of(settings))
            }
            IpvsOp::DeleteServer(key) => self.ipvs.delete_server(id_of(*key)),
            IpvsOp::AddDestination(key, endpoint, weight) => {
                self.ipvs.add_destination(id_of(*key), *endpoint, *weight)
            }
            IpvsOp::ChangeDestination(key, endpoint, weight) => {
                self.ipvs.change_destination(id_of(*key), *endpoint, *weight)
            }
            IpvsOp::RetireDestination(key, endpoint) => self.retire(*key, *endpoint),
        }
    }

    /// One that is not there yet, up: addresses of IPv6 on a link that is down are nobody's.
    fn create_link(&mut self) -> Result<(), Error> {
        self.netlink.create_dummy(IPVS_LINK)?;
        let index = self.netlink.require_link(IPVS_LINK)?.index;
        self.netlink.change_link(index, &LinkChange::up())
    }

    /// First no new connections, then a look at how many there are: so none begins in between.
    fn retire(&mut self, key: ServerKey, endpoint: SocketAddr) -> Result<(), Error> {
        let id = id_of(key);
        self.ipvs.change_destination(id, endpoint, 0)?;
        let destinations = self.ipvs.destinations(id)?;
        let mut destinations = destinations.iter().map(observed_destination);
        let waits =
            destinations.any(|(one, state)| one == endpoint && state.may_wait(key.protocol));
        if waits { Ok(()) } else { self.ipvs.delete_destination(id, endpoint) }
    }

    fn link(&mut self) -> Result<Option<u32>, Error> {
        let link = self.netlink.link(IPVS_LINK)?;
        Ok(link.filter(|link| link.kind == LINK_KIND).map(|link| link.index))
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

fn observed_destination(one: &Destination) -> (SocketAddr, ObservedDestination) {
    let connections = one.active.saturating_add(one.inactive);
    (one.address, ObservedDestination { weight: one.weight, connections })
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
    use std::collections::BTreeSet;

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
