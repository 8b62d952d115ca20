//! A case with real packets: every node runs its loop on its own kernel, servers stand at every
//! destination, and clients say who answered and which source address was seen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, anyhow};
use model::kinds::SessionAffinity;
use model::layout::UPLINK;
use model::packet::{Entry, Packet, SourceTranslation, Verdict};
use model::world::{Kind, Object};
use model::{Family, NamespacedName, Protocol};
use netlink::Netns;
use oracle::service::{Decision, Rule};
use reconcile::Event;

use super::probe::{self, Answer, PATIENCE, SILENCE, Servers};
use super::{Lab, NODE_BRIDGE, is_node_address};
use crate::case::names::{Names, outside};
use crate::case::table::Row;
use crate::case::{Case, Section, Settings};
use crate::{objects, verdict};

/// Questions for each possible destination: one is missed by chance once in e^40 runs.
const QUESTIONS_PER_DESTINATION: usize = 40;

/// Runs a case with real packets. Answers its faults, and how many packets were sent.
///
/// # Errors
/// When the lab cannot be made.
pub fn run(case: &Case) -> Result<(Vec<String>, usize)> {
    let mut runner = Runner {
        case,
        names: Names::new(&case.settings),
        objects: BTreeMap::new(),
        lab: Lab::new(case)?,
        servers: Servers::start(),
        faults: Vec::new(),
        packets: 0,
    };
    for section in &case.sections {
        runner.section(section)?;
    }
    Ok((runner.faults, runner.packets))
}

struct Runner<'a> {
    case: &'a Case,
    names: Names,
    objects: BTreeMap<(Kind, NamespacedName), Object>,
    lab: Lab,
    servers: Servers,
    faults: Vec<String>,
    packets: usize,
}

impl Runner<'_> {
    fn section(&mut self, section: &Section) -> Result<()> {
        match section {
            Section::Objects(objects) => {
                let nodes = self.case.settings.node_objects();
                let all: Vec<Object> = nodes.into_iter().chain(objects.iter().cloned()).collect();
                self.set(&all)?;
                let all: Vec<Object> = self.objects.values().cloned().collect();
                for node in self.lab.nodes.values_mut() {
                    node.node.list(&all);
                }
                self.settle()
            }
            Section::Update(objects) => {
                self.set(objects)?;
                for node in self.lab.nodes.values_mut() {
                    for object in objects {
                        node.node.handle(Event::Present(object.clone()));
                    }
                }
                self.settle()
            }
            Section::Delete(kind, key) => {
                self.objects.remove(&(*kind, key.clone()));
                for node in self.lab.nodes.values_mut() {
                    node.node.handle(Event::Absent { kind: *kind, key: key.clone() });
                }
                self.settle()
            }
            Section::Unreachable(words) => {
                let unreachable = self.names.unreachable(words)?;
                let at = self.case.settings.at;
                let node = self.lab.nodes.get_mut(&at).context("the node that is looked at")?;
                node.node.handle(Event::Unreachable(unreachable));
                self.settle()
            }
            Section::Restart => self.restart(),
            // The real kernel fails when it wants to; the fake one has tried this.
            Section::FailNextOp { .. } | Section::Expect(_) => Ok(()),
            Section::Packets(rows) => rows.iter().try_for_each(|row| self.row(row)),
        }
    }

    fn set(&mut self, objects: &[Object]) -> Result<()> {
        self.names.learn(objects)?;
        for object in objects {
            self.objects.insert((object.kind(), object.key()), object.clone());
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        for node in self.lab.nodes.values_mut() {
            let settled = node.node.settle().map_err(anyhow::Error::msg)?;
            for failure in settled.failures {
                self.faults.push(format!("{}: Linux refused: {failure}", node.node.facts.name));
            }
        }
        self.lab.add_pods(self.names.pods())
    }

    fn restart(&mut self) -> Result<()> {
        let all: Vec<Object> = self.objects.values().cloned().collect();
        for node in self.lab.nodes.values_mut() {
            node.node.restart();
            node.node.list(&all);
            let settled = node.node.settle().map_err(anyhow::Error::msg)?;
            if let Some(op) = settled.ops.first() {
                let name = &node.node.facts.name;
                self.faults.push(format!("{name}: a restart with nothing changed wrote {op:?}"));
            }
        }
        Ok(())
    }

    fn row(&mut self, row: &Row) -> Result<()> {
        let packet = self.names.packet(row)?;
        let decision = self.meant(&packet);
        let sticky = self.is_sticky(&decision.rule);
        let is_attack = packet.destination.ip().is_loopback() && packet.entry != Entry::Local;
        if is_attack {
            self.prepare_attack(row)?;
        }
        if let Verdict::Pass { destinations, .. } = &decision.verdict {
            for destination in destinations {
                let owner = self.owner(destination.ip())?;
                self.servers.listen(owner, packet.protocol, *destination)?;
            }
        }
        let sender = self.sender(row)?;
        let answers = questions(sender, &packet, &decision, sticky)?;
        self.packets += answers.values().sum::<usize>();
        let unexpected = judge(&packet, &decision, sticky, &self.case.settings, &answers);
        self.faults.extend(unexpected.into_iter().map(|fault| {
            format!(
                "{} to {} ({}): meant {}: {fault}",
                row.from, row.to, row.protocol, decision.verdict
            )
        }));
        Ok(())
    }

    /// What becomes of the packet in the end: a case speaks of one node, but a packet that passes
    /// on to another node's address is that node's to decide.
    fn meant(&self, packet: &Packet) -> Decision {
        let decide = |number: u8, packet: &Packet| {
            let node = &self.lab.nodes[&number].node;
            let world = node.reconciler.world();
            verdict::by_oracle(world, &self.case.settings.config, &node.facts, packet)
        };
        let at = self.case.settings.at;
        let decision = decide(at, packet);
        let to = packet.destination.ip();
        let elsewhere = self.node_at(to).filter(|number| *number != at);
        match elsewhere {
            Some(number) if decision.rule == Rule::Untouched => {
                decide(number, &Packet { entry: Entry::Uplink, ..packet.clone() })
            }
            _ => decision,
        }
    }

    /// The node with an address on the node network.
    fn node_at(&self, address: IpAddr) -> Option<u8> {
        let settings = &self.case.settings;
        (1..=settings.nodes).find(|number| settings.facts(*number).addresses.contains(&address))
    }

    fn is_sticky(&self, rule: &Rule) -> bool {
        let (Rule::ClusterIp(key, _)
        | Rule::External(key, _)
        | Rule::NodePort(key, _)
        | Rule::PortRange(key, _)) = rule
        else {
            return false;
        };
        let world = self.lab.nodes[&self.case.settings.at].node.reconciler.world();
        world
            .service(key)
            .is_some_and(|service| service.spec.session_affinity == SessionAffinity::ClientIP)
    }

    fn sender(&self, row: &Row) -> Result<&Netns> {
        if let Some(name) = row.from.strip_prefix("pod ") {
            return self.lab.pods.get(name).with_context(|| format!("there is no pod {name}"));
        }
        let number = match row.from.strip_prefix("node ") {
            Some(name) => name.trim_start_matches("node").parse()?,
            None if row.from == "node" => self.case.settings.at,
            None => return Ok(&self.lab.outside),
        };
        Ok(&self.lab.nodes.get(&number).context("there is no such node")?.namespace)
    }

    /// The namespace that has an address.
    fn owner(&self, address: IpAddr) -> Result<&Netns> {
        let pod = self.names.pods().iter().find(|(_, pod)| pod.addresses.contains(&address));
        if let Some((name, _)) = pod {
            return self.lab.pods.get(name).with_context(|| format!("there is no pod {name}"));
        }
        let number = match self.node_at(address) {
            Some(number) => number,
            None if address == outside(Family::of(&address)) => return Ok(&self.lab.outside),
            // The DNS address and loopback are every node's own.
            None => self.case.settings.at,
        };
        Ok(&self.lab.nodes[&number].namespace)
    }

    fn prepare_attack(&self, row: &Row) -> Result<()> {
        let at = self.case.settings.at;
        let victim = &self.lab.nodes[&at].namespace;
        let (link, address) = match row.from.as_str() {
            "outside" => (NODE_BRIDGE, objects::node_address(at, Family::V4)),
            from if from.starts_with("pod ") => {
                let gateway = plan::network::gateway(&objects::pod_range(at, Family::V4));
                ("eth0", gateway.context("a gateway")?.addr())
            }
            _ => (UPLINK, objects::node_address(at, Family::V4)),
        };
        // Somebody listens: only the guard is between the neighbour and the answer.
        let packet = self.names.packet(row)?;
        self.servers.listen(victim, packet.protocol, packet.destination)?;
        Lab::expose_loopback(self.sender(row)?, link, address, victim)
    }
}

/// Asks until every possible destination has answered, or until it is clear that one does not.
fn questions(
    sender: &Netns,
    packet: &Packet,
    decision: &Decision,
    sticky: bool,
) -> Result<BTreeMap<Answer, usize>> {
    let (wanted, patience) = match &decision.verdict {
        Verdict::Pass { destinations, .. } => (destinations.len(), PATIENCE),
        Verdict::Reject => (1, PATIENCE),
        Verdict::Drop => (1, SILENCE),
    };
    let most = match decision.verdict {
        Verdict::Pass { .. } => wanted * QUESTIONS_PER_DESTINATION,
        Verdict::Reject | Verdict::Drop => 1,
    };
    let wanted = if sticky { usize::MAX } else { wanted };
    let answers = sender.run(|| {
        let mut answers: BTreeMap<Answer, usize> = BTreeMap::new();
        for number in 0..most {
            // The first datagram of every row has the same source port: a flow that is tracked
            // towards an endpoint of an earlier step must not hold it (S-10).
            let is_same_flow = number == 0 && packet.protocol == Protocol::Udp;
            let port = if is_same_flow { packet.source.port() } else { 0 };
            let source = SocketAddr::new(packet.source.ip(), port);
            let answer = probe::ask(packet.protocol, source, packet.destination, patience);
            let is_served = matches!(answer, Answer::Served { .. });
            *answers.entry(answer).or_default() += 1;
            if answers.len() >= wanted || !is_served {
                break;
            }
        }
        answers
    });
    answers.map_err(|error| anyhow!("cannot ask from the sender's namespace: {error}"))
}

/// What is wrong with the answers.
fn judge(
    packet: &Packet,
    decision: &Decision,
    sticky: bool,
    settings: &Settings,
    answers: &BTreeMap<Answer, usize>,
) -> Vec<String> {
    let (destinations, source) = match &decision.verdict {
        Verdict::Pass { destinations, source } => (destinations, source),
        Verdict::Reject if answers.keys().eq([&Answer::Refused]) => return vec![],
        Verdict::Drop if answers.keys().eq([&Answer::Silence]) => return vec![],
        Verdict::Reject | Verdict::Drop => return vec![format!("got {answers:?}")],
    };
    let mut faults = Vec::new();
    let mut seen: BTreeSet<SocketAddr> = BTreeSet::new();
    for answer in answers.keys() {
        let Answer::Served { by, saw } = answer else {
            faults.push(format!("got {answer:?}"));
            continue;
        };
        seen.insert(*by);
        let masqueraded = match source {
            SourceTranslation::Kept => false,
            SourceTranslation::Masqueraded => true,
            SourceTranslation::MasqueradedTo(towards) => towards.contains(&by.ip()),
        };
        let is_right = match masqueraded {
            true => is_node_address(settings, *saw),
            false => *saw == packet.source.ip(),
        };
        if !is_right {
            faults.push(format!("{by} saw the source {saw}"));
        }
    }
    if !seen.is_subset(destinations) {
        faults.push(format!("answered by {seen:?}"));
    }
    if sticky && seen.len() > 1 {
        faults.push(format!("the client did not stay with one endpoint: {seen:?}"));
    }
    if !sticky && faults.is_empty() && seen != *destinations {
        faults.push(format!("answered only by {seen:?}"));
    }
    faults
}
