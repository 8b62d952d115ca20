//! Services in eBPF on one node: the maps, and the programs at links and sockets that use them.
//!
//! Pods come and go without the loop, and so do their links: the program names no links of pods.
//! `kernel` knows them by their alias, and tells of each whether its packets are translated.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::{ClusterConfig, NamespacedName, ServiceAcceleration};
use plan::network::Path;
use plan::services::ServicePlan;
use plan::{Desired, NodeFacts};

use super::{EbpfObserved, EbpfOp, EbpfProgram, FrontendKey, FrontendProgram, Sizes};
use crate::OpError;

/// What the node shall hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeProgram {
    /// The maps.
    pub maps: EbpfProgram,
    /// How much they take.
    pub sizes: Sizes,
    /// What links are translated by.
    pub place: Place,
    /// Frontends that several Services claim, of which one has each in `maps`.
    pub contested: BTreeSet<FrontendKey>,
}

/// Where a program may differ from what is there since the two agreed last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// Anywhere.
    Everything,
    /// At these frontends.
    Only(BTreeSet<FrontendKey>),
}

/// What the programs at links depend on, besides the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The node's link to other machines. Packets of Services come by it, by the tunnels of ours,
    /// and by the links of pods.
    pub uplink: String,
    /// The node's addresses, for links that have none of their own.
    pub addresses: Vec<IpAddr>,
    /// Whether other nodes' packets to pods come by the uplink as they are, in no tunnel.
    pub is_uplink_a_way: bool,
    /// Whether what only passes this node is sent on at the uplink, before the node's stack.
    pub acceleration: ServiceAcceleration,
}

/// What is there; nothing of eBPF by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeObserved {
    /// The maps, where there are any.
    pub maps: Option<EbpfObserved>,
    /// The programs at the sockets of the node and its pods.
    pub sockets: Sockets,
    /// The programs at links, where there are any.
    pub packets: Option<PacketsObserved>,
}

/// Programs at sockets: there are several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sockets {
    /// None is attached.
    #[default]
    Detached,
    /// Not all are attached, or others than this build's.
    Partly,
    /// All are attached.
    Attached,
}

/// Programs at links, as they were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PacketsObserved {
    /// What the links were brought to by this process; unknown after a restart.
    pub place: Option<Place>,
    /// Each link that packets of Services come by, or came by; empty while `place` is unknown.
    pub links: BTreeMap<String, LinkPrograms>,
    /// What comes before the stack at the uplink; unknown like `links`.
    pub uplink: UplinkProgram,
    /// Whether known flows go on here, and new ones are another backend's.
    pub draining: bool,
    /// No flow goes on any more, or they have had their time.
    pub drained: bool,
}

/// What the packets of a link meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkPrograms {
    /// Nothing yet: the link has just come.
    New,
    /// The programs, with what they must know of the link.
    Attached,
    /// Less than that, though it was all there.
    Damaged,
    /// Nothing, and something of ours is kept for it: the link is gone.
    Gone,
}

/// The program at the hook XDP of the uplink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum UplinkProgram {
    /// None is attached, and nobody has tried.
    #[default]
    Absent,
    /// This build's is attached.
    Attached,
    /// It cannot be, with the reason: packets take the path of the other programs.
    Refused(String),
}

impl UplinkProgram {
    /// Whether it is as it shall be.
    pub(crate) fn serves(&self, acceleration: ServiceAcceleration) -> bool {
        match acceleration {
            ServiceAcceleration::Disabled => *self == Self::Absent,
            ServiceAcceleration::Native => *self == Self::Attached,
            ServiceAcceleration::BestEffort => *self != Self::Absent,
        }
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeOp {
    /// Make maps of these sizes, empty. Programs go on with those that they have.
    Make(Sizes),
    /// Change one of them.
    Maps(EbpfOp),
    /// Translate packets of all links that are there, and take new flows.
    AttachLinks(Place),
    /// Translate at the sockets.
    AttachSockets,
    /// Translate at no socket any more.
    DetachSockets,
    /// Take no new flows.
    Drain,
    /// Remove all programs and maps.
    Remove,
}

/// Says a plan in the words of eBPF. A pure function of its arguments.
pub fn render_node(desired: &Desired, config: &ClusterConfig, facts: &NodeFacts) -> NodeProgram {
    NodeProgram {
        maps: super::render(desired, config, facts),
        sizes: config.ebpf_maps,
        place: place(desired, config, facts),
        contested: contested(desired, config, facts),
    }
}

fn place(desired: &Desired, config: &ClusterConfig, facts: &NodeFacts) -> Place {
    let mut peers = desired.network.iter().flat_map(|network| network.peers.values());
    Place {
        uplink: facts.uplink.clone(),
        addresses: facts.addresses.clone(),
        is_uplink_a_way: peers.any(|peer| matches!(peer.path, Path::Direct | Path::Native)),
        acceleration: config.service_acceleration,
    }
}

fn contested(
    desired: &Desired,
    config: &ClusterConfig,
    facts: &NodeFacts,
) -> BTreeSet<FrontendKey> {
    let mut claimed = BTreeSet::new();
    let services = desired.services.values();
    let keys = services.flat_map(|plan| super::render_service(plan, config, facts).into_keys());
    keys.filter(|key| !claimed.insert(*key)).collect()
}

/// Brings a program up to date with the plans of some Services, whose former plans `before` has.
/// All else that it depends on must be as it was. Answers where the program may have changed.
pub fn update_node(
    program: &mut NodeProgram,
    desired: &Desired,
    config: &ClusterConfig,
    facts: &NodeFacts,
    before: &BTreeMap<NamespacedName, Option<ServicePlan>>,
) -> Touched {
    let rendered = |plan: &ServicePlan| super::render_service(plan, config, facts);
    let former = before.values().flatten().flat_map(rendered).map(|(key, _)| key).collect();
    let plans = before.keys().filter_map(|name| desired.services.get(name));
    let frontends: Vec<_> = plans.flat_map(rendered).collect();
    if let Some(touched) = program.replace(former, frontends) {
        return Touched::Only(touched);
    }
    // Which of them has the frontend shows only when all stand in order.
    *program = render_node(desired, config, facts);
    Touched::Everything
}

/// The ops from what is to what shall be. Maps are whole before programs use them, and stay as
/// long as one does (invariant 5).
pub fn diff_node(program: Option<&NodeProgram>, observed: &NodeObserved) -> Vec<NodeOp> {
    diff_node_touched(program, observed, &Touched::Everything)
}

/// The same at a cost that depends on what changed, where the program differs from what is there
/// only in what was touched.
pub fn diff_node_touched(
    program: Option<&NodeProgram>,
    observed: &NodeObserved,
    touched: &Touched,
) -> Vec<NodeOp> {
    match program {
        Some(program) => build(program, observed, touched),
        None => dismantle(observed),
    }
}

impl NodeProgram {
    /// Puts frontends of some Services in the place of their former ones. Answers which are
    /// touched; nothing where others may have a part in one of them, and then the program is not as
    /// it shall be. Entries of ranges may be others' too, with other first and last ports.
    fn replace(
        &mut self,
        former: BTreeSet<FrontendKey>,
        frontends: Vec<(FrontendKey, FrontendProgram)>,
    ) -> Option<BTreeSet<FrontendKey>> {
        let is_alone = |key: &FrontendKey| {
            matches!(key, FrontendKey::Port(_)) && !self.contested.contains(key)
        };
        if !former.iter().chain(frontends.iter().map(|(key, _)| key)).all(is_alone) {
            return None;
        }
        let mut touched = former;
        for key in &touched {
            self.maps.frontends.remove(key);
        }
        for (key, frontend) in frontends {
            if self.maps.frontends.contains_key(&key) {
                return None;
            }
            self.maps.frontends.insert(&key, &frontend);
            touched.insert(key);
        }
        Some(touched)
    }
}

impl Touched {
    /// Nowhere.
    pub fn nothing() -> Self {
        Self::Only(BTreeSet::new())
    }

    /// Whether the program differs nowhere.
    pub fn is_nothing(&self) -> bool {
        *self == Self::nothing()
    }

    /// Adds what changed besides.
    pub fn merge(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Only(own), Self::Only(others)) => own.extend(others),
            (own, _) => *own = Self::Everything,
        }
    }
}

fn build(program: &NodeProgram, observed: &NodeObserved, touched: &Touched) -> Vec<NodeOp> {
    let mut anew = NodeObserved::default();
    let mut ops = Vec::new();
    let mut observed = observed;
    if observed.maps.as_ref().is_none_or(|maps| maps.sizes != program.sizes) {
        ops.push(NodeOp::Make(program.sizes));
        anew.clone_from(observed);
        anew.make(program.sizes);
        observed = &anew;
    }
    if let Some(maps) = &observed.maps {
        let changes = match touched {
            Touched::Only(keys) if ops.is_empty() => {
                super::diff_frontends(&program.maps, maps, keys)
            }
            _ => super::diff(&program.maps, maps),
        };
        ops.extend(changes.into_iter().map(NodeOp::Maps));
    }
    let are_attached = |packets: &PacketsObserved| {
        packets.place.as_ref() == Some(&program.place)
            && !packets.draining
            && packets.links.values().all(|link| *link == LinkPrograms::Attached)
            && packets.uplink.serves(program.place.acceleration)
    };
    if !observed.packets.as_ref().is_some_and(are_attached) {
        ops.push(NodeOp::AttachLinks(program.place.clone()));
    }
    if observed.sockets != Sockets::Attached {
        ops.push(NodeOp::AttachSockets);
    }
    ops
}

/// New flows go elsewhere at once, known ones go on; then everything goes.
fn dismantle(observed: &NodeObserved) -> Vec<NodeOp> {
    let mut ops = Vec::new();
    if observed.sockets != Sockets::Detached {
        ops.push(NodeOp::DetachSockets);
    }
    match &observed.packets {
        Some(packets) if !packets.draining => ops.push(NodeOp::Drain),
        Some(packets) if !packets.drained => {}
        None if observed.maps.is_none() => {}
        _ => ops.push(NodeOp::Remove),
    }
    ops
}

impl NodeObserved {
    /// The state after one op.
    ///
    /// # Errors
    /// `ENOENT` where the op needs what is not there, and what the maps refuse.
    pub fn apply(&mut self, op: &NodeOp) -> Result<(), OpError> {
        match op {
            NodeOp::Make(sizes) => self.make(*sizes),
            NodeOp::Maps(op) => self.maps.as_mut().ok_or_else(without_maps)?.apply(op)?,
            NodeOp::AttachLinks(place) => {
                self.maps.as_ref().ok_or_else(without_maps)?;
                let packets = self.packets.get_or_insert_default();
                packets.place = Some(place.clone());
                (packets.draining, packets.drained) = (false, false);
                packets.links.retain(|_, link| *link != LinkPrograms::Gone);
                packets.links.values_mut().for_each(|link| *link = LinkPrograms::Attached);
                packets.uplink = match place.acceleration {
                    ServiceAcceleration::Disabled => UplinkProgram::Absent,
                    _ => UplinkProgram::Attached,
                };
            }
            NodeOp::AttachSockets => {
                self.maps.as_ref().ok_or_else(without_maps)?;
                self.sockets = Sockets::Attached;
            }
            NodeOp::DetachSockets => self.sockets = Sockets::Detached,
            NodeOp::Drain => {
                let packets = self.packets.as_mut().ok_or_else(without_programs)?;
                // Only the next reading tells whether a flow began meanwhile.
                (packets.draining, packets.drained) = (true, false);
            }
            NodeOp::Remove => *self = Self::default(),
        }
        Ok(())
    }

    /// Empty maps. What is attached already is so with others.
    fn make(&mut self, sizes: Sizes) {
        let former = self.maps.replace(EbpfObserved { sizes, ..EbpfObserved::default() });
        if former.is_none() {
            return;
        }
        if self.sockets == Sockets::Attached {
            self.sockets = Sockets::Partly;
        }
        if let Some(packets) = &mut self.packets {
            (packets.place, packets.links) = (None, BTreeMap::new());
            packets.uplink = UplinkProgram::Absent;
        }
    }
}

const ENOENT: i32 = 2;

fn without_maps() -> OpError {
    OpError { errno: ENOENT, message: "there are no eBPF maps of Services yet".into() }
}

fn without_programs() -> OpError {
    OpError { errno: ENOENT, message: "there are no eBPF programs of Services at links".into() }
}
