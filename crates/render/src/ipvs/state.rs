//! What the kernel holds of ours, and what it refuses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use model::Protocol;

use super::{IpvsOp, ServerKey, ServerSettings};
use crate::OpError;

const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EADDRNOTAVAIL: i32 = 99;

/// What the kernel holds, read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpvsObserved {
    /// The addresses on our link; `None` without the link.
    pub link: Option<BTreeSet<IpAddr>>,
    /// Of the parameters of IPVS, those that the kernel has; not looked at without the link.
    pub parameters: BTreeMap<&'static str, String>,
    /// Our virtual servers; others' are not in it.
    pub servers: BTreeMap<ServerKey, ObservedServer>,
    /// Addresses of servers that were told to go since this was read. Whether they went, or wait for
    /// connections, shows at the next reading.
    pub retiring: BTreeSet<IpAddr>,
}

/// One virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedServer {
    /// How it chooses.
    pub settings: ServerSettings,
    /// Its endpoints.
    pub destinations: BTreeMap<SocketAddr, ObservedDestination>,
}

/// One endpoint of a virtual server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ObservedDestination {
    /// Its weight; with 0 it gets no new connections.
    pub weight: u32,
    /// Whether it has connections that still have time to end. Told only of one with weight 0:
    /// what others do is no change of the state.
    pub is_busy: bool,
}

impl ObservedDestination {
    /// Whether it shall go and waits for the end of its connections.
    pub fn is_waiting(&self, protocol: Protocol) -> bool {
        self.weight == 0 && self.may_wait(protocol)
    }

    /// Whether it has connections to wait for. A UDP client may never cease to send.
    pub fn may_wait(&self, protocol: Protocol) -> bool {
        self.is_busy && protocol != Protocol::Udp
    }
}

impl ObservedServer {
    /// Whether it waits for the end of connections of all the endpoints it has left, its stand-in
    /// aside.
    fn is_waiting(&self, key: &ServerKey) -> bool {
        let mut left = self.destinations.iter().filter(|(at, _)| **at != key.address).peekable();
        left.peek().is_some() && left.all(|(_, one)| one.is_waiting(key.protocol))
    }
}

impl IpvsObserved {
    /// Whether a server that shall go has nothing left to do but to wait.
    pub fn is_retired(&self, key: &ServerKey, server: &ObservedServer) -> bool {
        let stand_in = server.destinations.get(&key.address);
        let is_open = stand_in.is_some_and(|one| one.weight > 0);
        server.is_waiting(key) && (is_open || !self.needs_stand_in(key))
    }

    /// Whether new clients of a server that shall go are the node's own: at its addresses, not at
    /// those of our link. While IPVS waits there it would refuse them; so the node's own port
    /// becomes an endpoint, to which IPVS hands packets as they are, and connections to it outlive
    /// the server.
    pub fn needs_stand_in(&self, key: &ServerKey) -> bool {
        !self.link.as_ref().is_some_and(|link| link.contains(&key.address.ip()))
    }

    /// The state after one op, or why Linux would refuse it; then nothing has changed.
    ///
    /// # Errors
    /// The errno that Linux answers for the same op in the same state.
    pub fn apply(&mut self, op: &IpvsOp) -> Result<(), OpError> {
        match op {
            IpvsOp::CreateLink => match self.link {
                Some(_) => Err(refused(EEXIST, op)),
                None => {
                    self.link = Some(BTreeSet::new());
                    Ok(())
                }
            },
            IpvsOp::DeleteLink => {
                self.link.take().ok_or_else(|| refused(ENODEV, op))?;
                self.parameters.clear();
                Ok(())
            }
            IpvsOp::SetParameter { name, value } => {
                self.parameters.insert(name, (*value).into());
                Ok(())
            }
            IpvsOp::AddAddress(address) => {
                let link = self.link.as_mut().ok_or_else(|| refused(ENODEV, op))?;
                if link.insert(*address) { Ok(()) } else { Err(refused(EEXIST, op)) }
            }
            IpvsOp::DeleteAddress(address) => {
                let link = self.link.as_mut().ok_or_else(|| refused(ENODEV, op))?;
                if link.remove(address) { Ok(()) } else { Err(refused(EADDRNOTAVAIL, op)) }
            }
            _ => self.apply_to_server(op),
        }
    }

    fn apply_to_server(&mut self, op: &IpvsOp) -> Result<(), OpError> {
        match op {
            IpvsOp::AddServer(key, settings) => {
                if self.servers.contains_key(key) {
                    return Err(refused(EEXIST, op));
                }
                let settings = settings.clone();
                let server = ObservedServer { settings, destinations: BTreeMap::new() };
                self.servers.insert(*key, server);
            }
            IpvsOp::ChangeServer(key, settings) => {
                self.server(key, op)?.settings = settings.clone();
            }
            IpvsOp::RetireServer(key) => {
                let needs_stand_in = self.needs_stand_in(key);
                let server = self.server(key, op)?;
                server.destinations.values_mut().for_each(|one| one.weight = 0);
                server.destinations.retain(|_, one| one.is_waiting(key.protocol));
                if !server.is_waiting(key) {
                    self.servers.remove(key);
                    if key.protocol != Protocol::Udp {
                        self.retiring.insert(key.address.ip());
                    }
                } else if needs_stand_in {
                    let stand_in = ObservedDestination { weight: 1, is_busy: false };
                    server.destinations.insert(key.address, stand_in);
                }
            }
            IpvsOp::AddDestination(key, endpoint, weight) => {
                let destinations = &mut self.server(key, op)?.destinations;
                if destinations.contains_key(endpoint) {
                    return Err(refused(EEXIST, op));
                }
                let added = ObservedDestination { weight: *weight, is_busy: false };
                destinations.insert(*endpoint, added);
            }
            IpvsOp::ChangeDestination(key, endpoint, weight) => {
                let destinations = &mut self.server(key, op)?.destinations;
                let one = destinations.get_mut(endpoint).ok_or_else(|| refused(ENOENT, op))?;
                one.weight = *weight;
            }
            IpvsOp::RetireDestination(key, endpoint) => {
                let destinations = &mut self.server(key, op)?.destinations;
                let one = destinations.get_mut(endpoint).ok_or_else(|| refused(ENOENT, op))?;
                one.weight = 0;
                if !one.may_wait(key.protocol) {
                    destinations.remove(endpoint);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn server(&mut self, key: &ServerKey, op: &IpvsOp) -> Result<&mut ObservedServer, OpError> {
        self.servers.get_mut(key).ok_or_else(|| refused(ESRCH, op))
    }
}

fn refused(errno: i32, op: &IpvsOp) -> OpError {
    OpError { errno, message: format!("{op:?}: errno {errno}") }
}
