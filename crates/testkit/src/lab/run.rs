//! A case with real packets: every node runs its loop on its own kernel, servers stand at every
//! destination, and clients say who answered and which source address was seen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use model::kinds::{SCHEDULING_ANNOTATION, SessionAffinity, TrafficPolicy};
use model::layout::UPLINK;
use model::packet::{Entry, Packet, SourceTranslation, Verdict};
use model::world::{Kind, Object};
use model::{Family, NamespacedName, Protocol, Service, ServiceBackend};
use netlink::Netns;
use oracle::service::{Decision, Rule};
use reconcile::Event;

use super::probe::{self, Answer, PATIENCE, SILENCE, Servers};
use super::{Lab, LabNode, NODE_BRIDGE, is_external, is_node_address};
use crate::agreement::is_of_service;
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
        self.settle_nodes()?;
        self.lab.add_pods(self.names.pods())?;
        self.settle_nodes()
    }

    fn settle_nodes(&mut self) -> Result<()> {
        for node in self.lab.nodes.values_mut() {
            for failure in node.settle()?.failures {
                self.faults.push(format!("{}: Linux refused: {failure}", node.node.facts.name));
            }
        }
        Ok(())
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
        let ask = || questions(&packet, &decision, sticky);
        let answers = match self.node_of(row)? {
            Some(node) => node.run_in(sender, ask),
            None => sender.run(ask).map_err(anyhow::Error::from),
        };
        let answers = answers.context("cannot ask from the sender's namespace")?;
        self.packets += answers.values().map(Vec::len).sum::<usize>();
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

    /// Whether one client always gets one endpoint.
    fn is_sticky(&self, rule: &Rule) -> bool {
        let (Rule::ClusterIp(key, _)
        | Rule::External(key, _)
        | Rule::NodePort(key, _)
        | Rule::PortRange(key, _)) = rule
        else {
            return false;
        };
        let world = self.lab.nodes[&self.case.settings.at].node.reconciler.world();
        // IPVS refuses it where nftables chooses (`render::ipvs::is_possible`).
        let is_local =
            |service: &Service| service.spec.external_traffic_policy == TrafficPolicy::Local;
        let can = |service: &Service| match (self.backend(), rule) {
            (ServiceBackend::Ebpf, _) | (ServiceBackend::Ipvs, Rule::ClusterIp(..)) => true,
            (ServiceBackend::Ipvs, Rule::NodePort(..)) => !is_local(service),
            _ => false,
        };
        let is_hashed = |service: &Service| {
            let asked = service.metadata.annotations.get(SCHEDULING_ANNOTATION);
            can(service) && asked.is_some_and(|how| how == "maglev")
        };
        world.service(key).is_some_and(|service| {
            service.spec.session_affinity == SessionAffinity::ClientIP || is_hashed(&service)
        })
    }

    fn backend(&self) -> ServiceBackend {
        self.case.settings.config.service_backend
    }

    fn sender(&self, row: &Row) -> Result<&Netns> {
        if let Some(name) = row.from.strip_prefix("pod ") {
            return self.lab.pods.get(name).with_context(|| format!("there is no pod {name}"));
        }
        Ok(self.node_of(row)?.map_or(&self.lab.outside, |node| &node.namespace))
    }

    /// The node whose process sends, or whose pod's; none outside.
    fn node_of(&self, row: &Row) -> Result<Option<&LabNode>> {
        let number = match row.from.split_once(' ') {
            Some(("pod", name)) => {
                self.names.pods().get(name).with_context(|| format!("there is no pod {name}"))?.node
            }
            Some(("node", name)) => name.trim_start_matches("node").parse()?,
            _ if row.from == "node" => self.case.settings.at,
            _ => return Ok(None),
        };
        Ok(Some(self.lab.nodes.get(&number).context("there is no such node")?))
    }

    /// The namespace that has an address.
    fn owner(&self, address: IpAddr) -> Result<&Netns> {
        let pod = self.names.pods().iter().find(|(_, pod)| pod.addresses.contains(&address));
        if let Some((name, _)) = pod {
            return self.lab.pods.get(name).with_context(|| format!("there is no pod {name}"));
        }
        let number = match self.node_at(address) {
            Some(number) => number,
            None if address == outside(Family::of(&address)) || is_external(address) => {
                return Ok(&self.lab.outside);
            }
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
/// With each answer the source ports that the server saw.
fn questions(packet: &Packet, decision: &Decision, sticky: bool) -> BTreeMap<Answer, Vec<u16>> {
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
    let mut answers: BTreeMap<Answer, Vec<u16>> = BTreeMap::new();
    for number in 0..most {
        // The first datagram of every row has the same source port: a flow that is tracked
        // towards an endpoint of an earlier step must not hold it (S-10).
        let is_same_flow = number == 0 && packet.protocol == Protocol::Udp;
        let port = if is_same_flow { packet.source.port() } else { 0 };
        let source = SocketAddr::new(packet.source.ip(), port);
        let (answer, seen_port) =
            probe::ask_and_see_port(packet.protocol, source, packet.destination, patience);
        let is_served = matches!(answer, Answer::Served { .. });
        answers.entry(answer).or_default().push(seen_port);
        if answers.len() >= wanted || !is_served {
            break;
        }
    }
    answers
}

/// What is wrong with the answers.
fn judge(
    packet: &Packet,
    decision: &Decision,
    sticky: bool,
    settings: &Settings,
    answers: &BTreeMap<Answer, Vec<u16>>,
) -> Vec<String> {
    let (destinations, source, source_ports) = match &decision.verdict {
        Verdict::Pass { destinations, source, source_ports } => {
            (destinations, source, source_ports)
        }
        Verdict::Reject if answers.keys().eq([&Answer::Refused]) => return vec![],
        Verdict::Drop if answers.keys().eq([&Answer::Silence]) => return vec![],
        Verdict::Reject | Verdict::Drop => return vec![format!("got {answers:?}")],
    };
    let mut faults = Vec::new();
    let mut seen: BTreeSet<SocketAddr> = BTreeSet::new();
    // What a Service of eBPF masquerades has the programs' own ports.
    let has_own_ports =
        settings.config.service_backend == ServiceBackend::Ebpf && is_of_service(&decision.rule);
    for (answer, seen_ports) in answers {
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
        let is_own = *saw == packet.source.ip();
        // At the socket a pod meets itself without leaving its namespace (`socket_services.c`).
        let never_left = is_own && by.ip() == *saw && packet.entry == Entry::Pod;
        let is_right = match masqueraded {
            true if settings.config.service_backend == ServiceBackend::Ebpf && never_left => true,
            true => is_node_address(settings, *saw),
            false => is_own,
        };
        if !is_right {
            faults.push(format!("{by} saw the source {saw}"));
        }
        let ports = source_ports.get(&by.ip()).filter(|_| !has_own_ports);
        let is_foreign = |port: &&u16| ports.is_some_and(|ports| !ports.contains(**port));
        if let Some(port) = seen_ports.iter().find(is_foreign) {
            faults.push(format!("{by} saw the source port {port}"));
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
