//! What becomes of a packet under the rules, walked as the kernel walks them: nat and filter on the
//! way in, through or out. It interprets rules and knows nothing of Services. Chance is explored:
//! each throw falls both ways once.
//!
//! Of what other tables do it knows one thing: questions to the DNS address are not tracked
//! (`nft::layout`), so that nat does not see them and no flow is new.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use model::packet::{Entry, Packet, SourceTranslation, Verdict};
use model::{ClusterConfig, Family, PortRange, Protocol};
use plan::NodeFacts;

use super::language::{
    CHANCE_ONE, ChainName, Hook, Kind, Match, Rule, Table, TableId, TableName, Target,
};
use super::state::IptablesObserved;

/// Chains that may be nested: far above what a layout of ours has, below what a circle would need.
const CHAIN_DEPTH_MAX: usize = 48;
/// Ways that one trace may explore.
const WAYS_MAX: usize = 100_000;

/// Why a trace has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceError {
    /// A rule that we did not write.
    UnknownRule {
        /// Its chain.
        chain: String,
        /// The rule.
        rule: String,
    },
    /// A rule names a chain that is not there, or jumps in a circle.
    Broken(String),
    /// Chance decides whether the packet passes.
    Undecided(BTreeSet<String>),
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownRule { chain, rule } => {
                write!(f, "chain {chain} has the rule `{rule}`, which is none of ours")
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
    observed: &IptablesObserved,
    packet: &Packet,
    config: &ClusterConfig,
    facts: &NodeFacts,
) -> Result<Verdict, TraceError> {
    let family = Family::of(&packet.destination.ip());
    let mut local_addresses: BTreeSet<IpAddr> = facts.addresses.iter().copied().collect();
    local_addresses.extend(config.dns_addresses(family));
    let is_dns_question = config.is_dns_address(packet.destination.ip())
        && packet.destination.port() == 53
        && packet.protocol != Protocol::Sctp;
    let mut throws = Throws::default();
    let mut outcomes = BTreeSet::new();
    for _ in 0..WAYS_MAX {
        let mut walk = Walk {
            observed,
            family,
            packet,
            local_addresses: &local_addresses,
            tracked: !is_dns_question,
            throws: &mut throws,
            destination: packet.destination,
            mark: 0,
            marked_for: None,
            at_endpoint: false,
            masquerade: None,
        };
        outcomes.insert(walk.run()?);
        if !throws.advance() {
            return merge(&outcomes);
        }
    }
    Err(TraceError::Broken(format!("more than {WAYS_MAX} ways")))
}

/// Where one way led.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Passed { destination: SocketAddr, masquerade: Option<Masquerade> },
    Dropped,
}

/// What became of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Masquerade {
    reason: Reason,
    ports: Option<PortRange>,
}

/// Whether a masquerade depends on the destination that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    AnyDestination,
    ThisDestination,
}

fn merge(outcomes: &BTreeSet<Outcome>) -> Result<Verdict, TraceError> {
    let undecided = || {
        let texts = outcomes.iter().map(|outcome| format!("{outcome:?}"));
        Err(TraceError::Undecided(texts.collect()))
    };
    let mut destinations = BTreeSet::new();
    let mut masquerades = BTreeSet::new();
    let mut only_to = BTreeSet::new();
    let mut source_ports = BTreeMap::new();
    for outcome in outcomes {
        match outcome {
            Outcome::Passed { destination, masquerade } => {
                destinations.insert(*destination);
                let ports = masquerade.and_then(|masquerade| masquerade.ports);
                source_ports.extend(ports.map(|ports| (destination.ip(), ports)));
                let reason = masquerade.map(|masquerade| masquerade.reason);
                masquerades.insert(reason.filter(|reason| *reason == Reason::AnyDestination));
                if reason == Some(Reason::ThisDestination) {
                    only_to.insert(destination.ip());
                }
            }
            Outcome::Dropped if outcomes.len() == 1 => return Ok(Verdict::Drop),
            Outcome::Dropped => return undecided(),
        }
    }
    let source = match masquerades.first() {
        _ if masquerades.len() > 1 => return undecided(),
        Some(Some(_)) => SourceTranslation::Masqueraded,
        _ if only_to.is_empty() => SourceTranslation::Kept,
        _ => SourceTranslation::MasqueradedTo(only_to),
    };
    Ok(Verdict::Pass { destinations, source, source_ports })
}

/// How the throws of chance fell, tried one after the other.
#[derive(Debug, Default)]
struct Throws {
    fell: Vec<bool>,
    next: usize,
}

impl Throws {
    fn throw(&mut self) -> bool {
        if self.next == self.fell.len() {
            self.fell.push(true);
        }
        self.next += 1;
        self.fell[self.next - 1]
    }

    /// The next way; false when all were tried.
    fn advance(&mut self) -> bool {
        self.next = 0;
        while let Some(fell) = self.fell.pop() {
            if fell {
                self.fell.push(false);
                return true;
            }
        }
        false
    }
}

/// How a chain ended.
enum End {
    /// At its last rule, or by one that goes back.
    Through,
    Accept,
    Drop,
}

struct Walk<'a> {
    observed: &'a IptablesObserved,
    family: Family,
    packet: &'a Packet,
    local_addresses: &'a BTreeSet<IpAddr>,
    tracked: bool,
    throws: &'a mut Throws,
    destination: SocketAddr,
    mark: u32,
    /// Why the mark was set.
    marked_for: Option<Reason>,
    /// Within the chain of an endpoint: what happens here depends on the choice.
    at_endpoint: bool,
    masquerade: Option<Masquerade>,
}

impl<'a> Walk<'a> {
    fn run(&mut self) -> Result<Outcome, TraceError> {
        let mut hooks = Vec::new();
        let is_sender = self.packet.entry == Entry::Local;
        if is_sender {
            hooks.extend([(TableName::Nat, Hook::Output), (TableName::Filter, Hook::Output)]);
        } else {
            hooks.push((TableName::Nat, Hook::Prerouting));
        }
        let mut routed = false;
        let mut index = 0;
        while let Some(&(table, hook)) = hooks.get(index) {
            match self.call(table, hook)? {
                End::Drop => return Ok(Outcome::Dropped),
                End::Accept | End::Through => {}
            }
            index += 1;
            if index == hooks.len() && !routed {
                routed = true;
                if is_sender {
                    hooks.push((TableName::Nat, Hook::Postrouting));
                }
                if self.is_local() {
                    hooks.push((TableName::Filter, Hook::Input));
                } else if !is_sender {
                    hooks.push((TableName::Filter, Hook::Forward));
                    hooks.push((TableName::Nat, Hook::Postrouting));
                }
            }
        }
        Ok(Outcome::Passed { destination: self.destination, masquerade: self.masquerade })
    }

    fn is_local(&self) -> bool {
        let address = self.destination.ip();
        address.is_loopback() || self.local_addresses.contains(&address)
    }

    fn table(&self, name: TableName) -> Option<&'a Table> {
        self.observed.tables.get(&TableId { family: self.family, name })
    }

    fn call(&mut self, name: TableName, hook: Hook) -> Result<End, TraceError> {
        if name == TableName::Nat && !self.tracked {
            return Ok(End::Through);
        }
        let Some(table) = self.table(name) else { return Ok(End::Through) };
        match table.hooks.get(&hook) {
            Some(rules) => self.walk(table, hook.text(), rules, 0),
            None => Ok(End::Through),
        }
    }

    fn walk(
        &mut self,
        table: &'a Table,
        name: &str,
        rules: &'a [Rule],
        depth: usize,
    ) -> Result<End, TraceError> {
        if depth >= CHAIN_DEPTH_MAX {
            return Err(TraceError::Broken(format!("chain {name} is nested too deep")));
        }
        for rule in rules {
            if !rule.matches.iter().all(|one| self.holds(one)) {
                continue;
            }
            match &rule.target {
                Target::Jump(chain) => match self.enter(table, chain, depth)? {
                    End::Through => {}
                    end => return Ok(end),
                },
                Target::Return => return Ok(End::Through),
                Target::Accept => return Ok(End::Accept),
                Target::Drop => return Ok(End::Drop),
                Target::SetMark(bits) => {
                    self.mark |= bits;
                    let reason = if self.at_endpoint {
                        Reason::ThisDestination
                    } else {
                        Reason::AnyDestination
                    };
                    self.marked_for.get_or_insert(reason);
                }
                Target::ClearMark(bits) => self.mark &= !bits,
                Target::Translate { address, port } => {
                    let port = port.unwrap_or(self.destination.port());
                    self.destination = SocketAddr::new(*address, port);
                    return Ok(End::Accept);
                }
                Target::Masquerade { ports } => {
                    let reason = self.marked_for.unwrap_or(Reason::AnyDestination);
                    self.masquerade = Some(Masquerade { reason, ports: *ports });
                    return Ok(End::Accept);
                }
                Target::Unknown(rule) => {
                    let rule = rule.to_string();
                    return Err(TraceError::UnknownRule { chain: name.into(), rule });
                }
            }
        }
        Ok(End::Through)
    }

    fn enter(
        &mut self,
        table: &'a Table,
        chain: &ChainName,
        depth: usize,
    ) -> Result<End, TraceError> {
        let name = chain.to_string();
        let rules = table
            .chains
            .get(chain)
            .ok_or_else(|| TraceError::Broken(format!("chain {name} does not exist")))?;
        let before = self.at_endpoint;
        self.at_endpoint |= matches!(chain, ChainName::Keyed(Kind::Endpoint, _));
        let end = self.walk(table, &name, rules, depth + 1);
        self.at_endpoint = before;
        end
    }

    fn holds(&mut self, one: &Match) -> bool {
        match one {
            Match::Source(range) => range.contains(&self.packet.source.ip()),
            Match::Destination(range) => range.contains(&self.destination.ip()),
            Match::Protocol(protocol) => self.packet.protocol == *protocol,
            Match::Ports { first, last } => (*first..=*last).contains(&self.destination.port()),
            Match::FromThisNode => {
                let source = self.packet.source.ip();
                self.packet.entry == Entry::Local
                    || source.is_loopback()
                    || self.local_addresses.contains(&source)
            }
            Match::NewFlow => self.tracked,
            Match::WithoutMark(bits) => self.mark & bits == 0,
            Match::Chance(0) => false,
            Match::Chance(chance) => *chance >= CHANCE_ONE || self.throws.throw(),
            // The client is a new one.
            Match::Remembered { .. } => false,
            Match::Remember { .. } | Match::Comment(_) => true,
        }
    }
}
