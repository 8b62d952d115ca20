//! What becomes of a packet under the rules, walked as the kernel walks them: raw, nat and filter
//! hooks on the way in, through or out. It interprets the rules and the maps and knows nothing of
//! Services. Chance is explored: every slot that could be drawn is drawn once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use model::packet::{Entry, Packet, SourceTranslation, Verdict as PacketVerdict};
use model::{ClusterConfig, Family, Overlay, PortRange, Protocol, layout};
use plan::NodeFacts;

use super::language::{
    Chain, ChainType, ConnectionState, Datum, Field, Hook, Rule, Statement, Table, TableId, Tuple,
    Value, Verdict,
};
use super::layout::endpoint_of;
use super::state::NftObserved;
use crate::owned::PRIORITY_IPVS_OUTPUT;

/// Chains that may be nested: the kernel's `NFT_JUMP_STACK_SIZE`.
const CHAIN_DEPTH_MAX: usize = 16;
/// Draws that one trace may explore.
const DRAWS_MAX: usize = 100_000;

/// Why a trace has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceError {
    /// A rule is known by its fingerprint only; see `NftObserved::recognise`.
    UnknownRule {
        /// Its chain.
        chain: String,
        /// Its fingerprint.
        fingerprint: u64,
    },
    /// A rule names a chain or set that is not there, or jumps in a circle.
    Broken(String),
    /// Chance decides whether the packet passes: some slot is missing.
    Undecided(BTreeSet<String>),
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownRule { chain, fingerprint } => {
                write!(f, "chain {chain} has the rule {fingerprint:016x}, which is not known here")
            }
            Self::Broken(what) => write!(f, "the rules are broken: {what}"),
            Self::Undecided(outcomes) => write!(f, "by chance one of {outcomes:?}"),
        }
    }
}

impl std::error::Error for TraceError {}

/// What becomes of a flow's first packet at this node.
///
/// # Errors
/// When the rules cannot be followed, or chance decides between passing and not.
pub fn trace(
    observed: &NftObserved,
    packet: &Packet,
    config: &ClusterConfig,
    facts: &NodeFacts,
) -> Result<PacketVerdict, TraceError> {
    trace_through(observed, &Balancer::default(), packet, config, facts)
}

/// As [`trace`], of a packet that others have given these bits of a mark before.
///
/// # Errors
/// As [`trace`].
pub fn trace_marked(
    observed: &NftObserved,
    mark: u32,
    packet: &Packet,
    config: &ClusterConfig,
    facts: &NodeFacts,
) -> Result<PacketVerdict, TraceError> {
    trace_from(observed, (&Balancer::default(), mark), packet, config, facts)
}

/// What sends elsewhere, between our hooks, what is for this node (IPVS): after the filter hook of
/// what comes in, and between the nat and the filter hook of what goes out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balancer {
    /// Addresses that are the node's for its sake.
    pub addresses: BTreeSet<IpAddr>,
    /// What it takes, and where it may send it.
    pub destinations: BTreeMap<(Protocol, SocketAddr), BTreeSet<SocketAddr>>,
}

/// As [`trace`], with a balancer in the kernel.
///
/// # Errors
/// As [`trace`].
pub fn trace_through(
    observed: &NftObserved,
    balancer: &Balancer,
    packet: &Packet,
    config: &ClusterConfig,
    facts: &NodeFacts,
) -> Result<PacketVerdict, TraceError> {
    trace_from(observed, (balancer, 0), packet, config, facts)
}

/// `others`: what of the kernel is not ours alone, and the packet's mark.
fn trace_from(
    observed: &NftObserved,
    others: (&Balancer, u32),
    packet: &Packet,
    config: &ClusterConfig,
    facts: &NodeFacts,
) -> Result<PacketVerdict, TraceError> {
    let (balancer, mark) = others;
    let family = Family::of(&packet.destination.ip());
    let empty = Table::default();
    let table = observed.tables.get(&TableId::services(family)).unwrap_or(&empty);
    let mut local_addresses: BTreeSet<IpAddr> = facts.addresses.iter().copied().collect();
    local_addresses.extend(config.dns_addresses(family));
    local_addresses.extend(&balancer.addresses);
    let overlay_link = match (config.overlay, family) {
        (Overlay::Vxlan, _) => layout::VXLAN_LINK,
        (Overlay::Wireguard, _) => layout::WIREGUARD_LINK,
        (Overlay::Ipip, Family::V4) => layout::IPIP_LINK,
        (Overlay::Ipip, Family::V6) => layout::IPIP6_LINK,
        (Overlay::HostGw | Overlay::Native, _) => &facts.uplink,
    };
    let mut chance = Chance::default();
    let mut outcomes = Vec::new();
    loop {
        let mut walk = Walk::new(table, packet, &local_addresses, overlay_link, &mut chance);
        walk.balancer = Some(balancer);
        walk.mark = mark;
        let outcome = walk.run()?;
        outcomes.push(outcome);
        if !chance.advance() {
            return merge(packet, outcomes);
        }
        if outcomes.len() >= DRAWS_MAX {
            return Err(TraceError::Broken(format!("more than {DRAWS_MAX} draws")));
        }
    }
}

/// Where one draw of chance led.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Passed { destination: SocketAddr, masquerade: Option<Masquerade> },
    Rejected,
    Dropped,
}

/// What became of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Masquerade {
    reason: Reason,
    ports: Option<PortRange>,
}

/// Whether a masquerade depends on the destination that was drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    AnyDestination,
    ThisDestination,
}

fn merge(packet: &Packet, outcomes: Vec<Outcome>) -> Result<PacketVerdict, TraceError> {
    let outcomes: BTreeSet<Outcome> = outcomes.into_iter().collect();
    let mut destinations = BTreeSet::new();
    let (mut of_any, mut of_none) = (false, false);
    let mut only_to = BTreeSet::new();
    let mut source_ports = BTreeMap::new();
    for outcome in &outcomes {
        match outcome {
            Outcome::Passed { destination, masquerade } => {
                destinations.insert(*destination);
                let ports = masquerade.and_then(|masquerade| masquerade.ports);
                source_ports.extend(ports.map(|ports| (destination.ip(), ports)));
                match masquerade.map(|masquerade| masquerade.reason) {
                    Some(Reason::AnyDestination) => of_any = true,
                    Some(Reason::ThisDestination) => {
                        only_to.insert(destination.ip());
                    }
                    None => of_none = true,
                }
            }
            Outcome::Rejected if outcomes.len() == 1 => return Ok(PacketVerdict::Reject),
            Outcome::Dropped if outcomes.len() == 1 => return Ok(PacketVerdict::Drop),
            Outcome::Rejected | Outcome::Dropped => {
                let texts = outcomes.iter().map(|outcome| format!("{outcome:?}")).collect();
                return Err(TraceError::Undecided(texts));
            }
        }
    }
    let source = if of_any && !of_none {
        SourceTranslation::Masqueraded
    } else if of_any {
        let texts = outcomes.iter().map(|outcome| format!("{outcome:?} from {packet:?}"));
        return Err(TraceError::Undecided(texts.collect()));
    } else if only_to.is_empty() {
        SourceTranslation::Kept
    } else {
        SourceTranslation::MasqueradedTo(only_to)
    };
    Ok(PacketVerdict::Pass { destinations, source, source_ports })
}

/// The numbers that are drawn, tried one after the other like an odometer.
#[derive(Debug, Default)]
struct Chance {
    /// What was drawn, and below which modulus.
    draws: Vec<(u32, u32)>,
    next: usize,
}

impl Chance {
    fn draw(&mut self, modulus: u32) -> u32 {
        if self.next == self.draws.len() {
            self.draws.push((0, modulus));
        }
        let (value, _) = self.draws[self.next];
        self.next += 1;
        value
    }

    /// The next combination; false when all were tried.
    fn advance(&mut self) -> bool {
        self.next = 0;
        while let Some((value, modulus)) = self.draws.pop() {
            if value + 1 < modulus {
                self.draws.push((value + 1, modulus));
                return true;
            }
        }
        false
    }
}

/// How a chain ended.
enum End {
    /// At its last rule, or by a rule that goes back.
    Through,
    Accept,
    Drop,
    Reject,
}

/// How a statement ended.
enum Step {
    Next,
    NoMatch,
    Verdict(Verdict),
    Reject,
}

struct Walk<'a> {
    table: &'a Table,
    packet: &'a Packet,
    local_addresses: &'a BTreeSet<IpAddr>,
    /// The link to the pods of other nodes.
    overlay_link: &'a str,
    /// Until the packet has passed it.
    balancer: Option<&'a Balancer>,
    chance: &'a mut Chance,
    destination: SocketAddr,
    from_loopback: bool,
    mark: u32,
    tracked: bool,
    loaded: Option<SocketAddr>,
    translated: bool,
    masquerade: Option<Masquerade>,
}

impl<'a> Walk<'a> {
    fn new(
        table: &'a Table,
        packet: &'a Packet,
        local_addresses: &'a BTreeSet<IpAddr>,
        overlay_link: &'a str,
        chance: &'a mut Chance,
    ) -> Self {
        Self {
            table,
            packet,
            local_addresses,
            overlay_link,
            balancer: None,
            chance,
            destination: packet.destination,
            from_loopback: false,
            mark: 0,
            tracked: true,
            loaded: None,
            translated: false,
            masquerade: None,
        }
    }

    fn run(&mut self) -> Result<Outcome, TraceError> {
        let mut hooks = if self.packet.entry == Entry::Local {
            vec![Hook::Output, Hook::Postrouting]
        } else {
            vec![Hook::Prerouting]
        };
        let mut index = 0;
        while let Some(&hook) = hooks.get(index) {
            match self.call_hook(hook)? {
                End::Drop => return Ok(Outcome::Dropped),
                End::Reject => return Ok(Outcome::Rejected),
                End::Accept | End::Through => {}
            }
            index += 1;
            let routed = index == hooks.len() && hook != Hook::Input;
            match hook {
                Hook::Prerouting if self.is_local() => hooks.push(Hook::Input),
                Hook::Prerouting => hooks.extend([Hook::Forward, Hook::Postrouting]),
                Hook::Input if self.balance()? && !self.is_local() => {
                    hooks.extend([Hook::Output, Hook::Postrouting]);
                }
                // To itself: over the loopback link, which brings it in again.
                Hook::Postrouting
                    if routed && self.packet.entry == Entry::Local && self.is_local() =>
                {
                    self.from_loopback = true;
                    hooks.push(Hook::Prerouting);
                }
                _ => {}
            }
        }
        Ok(Outcome::Passed { destination: self.destination, masquerade: self.masquerade })
    }

    /// Answers whether the balancer sent the packet elsewhere.
    fn balance(&mut self) -> Result<bool, TraceError> {
        let Some(balancer) = self.balancer else { return Ok(false) };
        let taken = (self.packet.protocol, self.destination);
        let Some(destinations) = balancer.destinations.get(&taken) else { return Ok(false) };
        self.balancer = None;
        let draw = self.chance.draw(u32::try_from(destinations.len()).unwrap_or(u32::MAX));
        let chosen = destinations.iter().nth(usize::try_from(draw).unwrap_or(usize::MAX));
        self.destination = *chosen.ok_or_else(|| {
            TraceError::Broken(format!("the virtual server {} has no endpoint", self.destination))
        })?;
        Ok(true)
    }

    fn is_local(&self) -> bool {
        let address = self.destination.ip();
        address.is_loopback() || self.local_addresses.contains(&address)
    }

    /// The base chains of a hook by priority.
    fn call_hook(&mut self, hook: Hook) -> Result<End, TraceError> {
        let mut chains: Vec<(i32, &'a str, &'a Chain)> = Vec::new();
        for (name, chain) in &self.table.chains {
            if let Some(base) = chain.base.filter(|base| base.hook == hook) {
                let skipped = base.chain_type == ChainType::Nat && !self.sees_nat(hook);
                if !skipped {
                    chains.push((base.priority, name, chain));
                }
            }
        }
        chains.sort_by_key(|&(priority, ..)| priority);
        for (chain_priority, name, chain) in chains {
            // Tracking may have been switched off by a chain before.
            let is_nat = chain.base.is_some_and(|base| base.chain_type == ChainType::Nat);
            if is_nat && !self.sees_nat(hook) {
                continue;
            }
            if hook == Hook::Output && chain_priority > PRIORITY_IPVS_OUTPUT {
                self.balance()?;
            }
            match self.walk_chain(name, chain, 0)? {
                End::Through | End::Accept => {}
                end => return Ok(end),
            }
        }
        Ok(End::Through)
    }

    /// A flow is translated once a side, and only a tracked one. What comes back over the loopback
    /// link was translated on its way out.
    fn sees_nat(&self, hook: Hook) -> bool {
        let was_balanced = self.balancer.is_none();
        self.tracked
            && !(hook == Hook::Prerouting && self.from_loopback)
            && !(hook == Hook::Output && was_balanced)
    }

    fn walk_chain(
        &mut self,
        name: &'a str,
        chain: &'a Chain,
        depth: usize,
    ) -> Result<End, TraceError> {
        if depth >= CHAIN_DEPTH_MAX {
            return Err(TraceError::Broken(format!("chain {name} is nested too deep")));
        }
        for rule in &chain.rules {
            match self.run_rule(name, rule)? {
                Step::Next | Step::NoMatch => {}
                Step::Reject => return Ok(End::Reject),
                Step::Verdict(Verdict::Accept) => return Ok(End::Accept),
                Step::Verdict(Verdict::Drop) => return Ok(End::Drop),
                Step::Verdict(Verdict::Goto(target)) => return self.enter(&target, depth),
                Step::Verdict(Verdict::Jump(target)) => match self.enter(&target, depth)? {
                    End::Through => {}
                    end => return Ok(end),
                },
            }
        }
        Ok(End::Through)
    }

    fn enter(&mut self, target: &str, depth: usize) -> Result<End, TraceError> {
        let table = self.table;
        let (name, chain) = table
            .chains
            .get_key_value(target)
            .ok_or_else(|| TraceError::Broken(format!("chain {target} does not exist")))?;
        self.walk_chain(name, chain, depth + 1)
    }

    fn run_rule(&mut self, chain: &str, rule: &'a Rule) -> Result<Step, TraceError> {
        let statements = rule.statements().ok_or_else(|| TraceError::UnknownRule {
            chain: chain.into(),
            fingerprint: rule.fingerprint(),
        })?;
        let mut by_destination = false;
        for statement in statements {
            by_destination |= match statement {
                Statement::In { key, .. } => {
                    key.contains(&Field::SourceAddress) && key.contains(&Field::DestinationAddress)
                }
                Statement::InRange { field, .. } => *field == Field::DestinationAddress,
                _ => false,
            };
            match self.run_statement(statement, by_destination)? {
                Step::Next => {}
                other => return Ok(other),
            }
        }
        Ok(Step::Next)
    }

    fn came_from(&self, link: &str) -> bool {
        match self.packet.entry {
            Entry::Pod => link == layout::BRIDGE,
            Entry::Overlay => link == self.overlay_link,
            _ => false,
        }
    }

    /// Asked only of packets to pods of other nodes.
    fn goes_to(&self, link: &str) -> bool {
        link == self.overlay_link
    }

    fn translate(&mut self) -> Step {
        match self.loaded {
            Some(endpoint) if !self.translated => {
                self.destination = endpoint;
                self.translated = true;
                Step::Verdict(Verdict::Accept)
            }
            _ => Step::Verdict(Verdict::Drop),
        }
    }

    fn masquerade(&mut self, ports: Option<PortRange>, by_destination: bool) -> Step {
        let reason = if by_destination { Reason::ThisDestination } else { Reason::AnyDestination };
        self.masquerade = Some(Masquerade { reason, ports });
        Step::Verdict(Verdict::Accept)
    }

    /// `by_destination`: the rule asked before for the destination, or for it and the source
    /// together.
    fn run_statement(
        &mut self,
        statement: &'a Statement,
        by_destination: bool,
    ) -> Result<Step, TraceError> {
        let condition = |holds: bool| if holds { Step::Next } else { Step::NoMatch };
        Ok(match statement {
            Statement::InRange { field, range, outside } => {
                condition(range.contains(&self.address(*field)?) != *outside)
            }
            Statement::NotFromLoopback => condition(!self.from_loopback),
            Statement::FromLink(link) => condition(self.came_from(link)),
            Statement::NotFromLink(link) => condition(!self.came_from(link)),
            Statement::NotToLink(link) => condition(!self.goes_to(link)),
            Statement::ToThisNode => condition(self.is_local()),
            // A traced packet is a client's own: there is none within.
            Statement::TunnelPacket { .. } | Statement::TunnelledIs(_) => Step::NoMatch,
            Statement::PortIs(port) => condition(self.destination.port() == *port),
            Statement::ProtocolIs(number) => condition(self.protocol() == *number),
            Statement::StateIs(ConnectionState::New) => condition(self.tracked),
            Statement::StateIs(ConnectionState::Untranslated) => {
                condition(self.tracked && !self.translated)
            }
            // The first packet of a flow is never out of its window.
            Statement::StateIs(ConnectionState::Invalid) => Step::NoMatch,
            Statement::HasMark(bits) => condition(self.mark & bits == *bits),
            Statement::In { key, set } | Statement::HasEntry { key, map: set } => {
                condition(self.find(key, set)?.is_some())
            }
            Statement::NotIn { key, set } => condition(self.find(key, set)?.is_none()),
            // A traced packet has ports.
            Statement::EchoRequest(_) => Step::NoMatch,
            Statement::Dispatch { key, classes, verdicts } => {
                let Some(Datum::Values(class)) = self.find(key, classes)? else {
                    return Ok(Step::NoMatch);
                };
                self.verdict_of(&class.clone(), verdicts)?
            }
            Statement::VerdictOf { key, map } => {
                let Some(key) = self.tuple(key) else { return Ok(Step::NoMatch) };
                self.verdict_of(&key, map)?
            }
            Statement::Load { key, map } => {
                self.loaded = self.find(key, map)?.as_ref().and_then(endpoint_of);
                condition(self.loaded.is_some())
            }
            _ => self.act(statement, by_destination)?,
        })
    }

    /// What a statement does once all before it held.
    fn act(&mut self, statement: &'a Statement, by_destination: bool) -> Result<Step, TraceError> {
        Ok(match statement {
            Statement::LoadEndpoint(endpoint) => {
                self.loaded = Some(*endpoint);
                Step::Next
            }
            // The set has room, and is empty for a first packet.
            Statement::Remember { set, .. } => {
                self.set(set)?;
                Step::Next
            }
            Statement::SetMark(bits) => {
                self.mark |= bits;
                Step::Next
            }
            Statement::ClearMark(bits) => {
                self.mark &= !bits;
                Step::Next
            }
            Statement::NoTrack => {
                self.tracked = false;
                Step::Next
            }
            // A traced packet is the first of its flow, in whatever zone.
            Statement::TrackInZone(_) => Step::Next,
            Statement::RejectWithReset if self.packet.protocol != Protocol::Tcp => {
                return Err(TraceError::Broken("a reset for what is not TCP".into()));
            }
            Statement::RejectWithReset | Statement::RejectWithUnreachable => Step::Reject,
            Statement::Verdict(verdict) => Step::Verdict(verdict.clone()),
            Statement::TranslateDestination => self.translate(),
            Statement::TranslateAddress(address) => {
                self.loaded = Some(SocketAddr::new(*address, self.destination.port()));
                self.translate()
            }
            Statement::Masquerade { ports } => self.masquerade(*ports, by_destination),
            // Conditions on frames: only rules at pods' edges have them, which real frames test.
            other => return Err(TraceError::Broken(format!("{other:?} is of a frame"))),
        })
    }

    fn address(&self, field: Field) -> Result<IpAddr, TraceError> {
        match field {
            Field::SourceAddress => Ok(self.packet.source.ip()),
            Field::DestinationAddress => Ok(self.destination.ip()),
            _ => Err(TraceError::Broken(format!("{field:?} is no address"))),
        }
    }

    fn verdict_of(&self, key: &Tuple, map: &str) -> Result<Step, TraceError> {
        Ok(match self.entry(key, map)? {
            Some(Datum::Verdict(verdict)) => Step::Verdict(verdict),
            _ => Step::NoMatch,
        })
    }

    fn find(&mut self, key: &[Field], set: &str) -> Result<Option<Datum>, TraceError> {
        match self.tuple(key) {
            Some(key) => self.entry(&key, set),
            None => Ok(None),
        }
    }

    fn entry(&self, key: &Tuple, set: &str) -> Result<Option<Datum>, TraceError> {
        Ok(self.set(set)?.find(key))
    }

    fn set(&self, name: &str) -> Result<&'a super::language::Set, TraceError> {
        let missing = || TraceError::Broken(format!("set {name} does not exist"));
        self.table.sets.get(name).ok_or_else(missing)
    }

    /// `None` when the packet lacks a field of the key.
    fn tuple(&mut self, key: &[Field]) -> Option<Tuple> {
        key.iter()
            .map(|field| match field {
                Field::SourceAddress => Some(Value::Address(self.packet.source.ip())),
                Field::DestinationAddress => Some(Value::Address(self.destination.ip())),
                Field::Protocol => Some(Value::Protocol(self.protocol())),
                Field::SourcePort => Some(Value::Port(self.packet.source.port())),
                Field::DestinationPort => Some(Value::Port(self.destination.port())),
                Field::Random { modulus } => Some(Value::Number(self.chance.draw(*modulus))),
                Field::TunnelledSource { .. }
                | Field::IpipSource { .. }
                | Field::FramedSource(_)
                | Field::Link
                | Field::EtherSource
                | Field::ArpSenderMac
                | Field::ArpSenderAddress
                | Field::ArpTargetAddress
                | Field::NeighbourTarget
                | Field::NeighbourOptionMac => None,
            })
            .collect()
    }

    fn protocol(&self) -> u8 {
        self.packet.protocol.number()
    }
}
