//! Which servers are asked for a name, in which order, and which of them are alive.
//!
//! As in CoreDNS, a server that failed to answer is probed until it answers anything; it counts as
//! down when enough probes failed. A name whose own servers are slow so never takes a server out
//! of service. When all are down, all are asked: the probes may be what fails.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{ATTEMPT_TIMEOUT_MS, Random};
use crate::config::{Carrier, Config, Domain, ForwardRule, Policy, Server, Target};
use crate::message::kind;
use crate::stats::Latency;
use crate::{Name, query};

/// Response codes that are counted by themselves: those of RFC 1035 and RFC 2136. What a server
/// makes of the others is counted under the next number.
const COUNTED_RCODES: u16 = 10;

/// Servers of one zone.
#[derive(Debug)]
pub(super) struct Group {
    index: usize,
    zones: Vec<Domain>,
    except: Vec<Domain>,
    pub(super) servers: Vec<u32>,
    policy: Policy,
    /// Questions that may wait for these servers; 0 leaves it to the general limit.
    pub(super) max_concurrent: usize,
    pub(super) force_tcp: bool,
}

/// A server and what is known of its health.
pub(super) struct Upstream {
    pub(super) server: Server,
    max_fails: u32,
    health_check_ms: u64,
    fails: u32,
    probes_failed_ever: u64,
    /// By response code.
    latencies: BTreeMap<u16, Latency>,
    /// It did not answer, and has not answered anything since.
    is_suspect: bool,
    probe: Option<Probe>,
    probe_at_ms: u64,
    /// Answers of ours that came back to us as questions.
    is_loop: bool,
    loop_name: Name,
    is_loop_asked: bool,
}

struct Probe {
    exchange: u64,
    id: u16,
    deadline_ms: u64,
}

/// A probe to send.
pub(super) struct ProbeToSend {
    pub(super) exchange: u64,
    pub(super) server: Server,
    pub(super) message: Vec<u8>,
}

/// The health of one server, for metrics and people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The server, as the configuration writes it.
    pub server: String,
    /// Whether it is taken for down.
    pub is_down: bool,
    /// Whether it sends our questions back to us.
    pub is_loop: bool,
    /// Probes that failed, one behind the other.
    pub failed_probes: u32,
    /// Probes that failed since the start.
    pub probes_failed_ever: u64,
    /// The time until its answers, by response code.
    pub(crate) latencies: BTreeMap<u16, Latency>,
}

/// All rules and servers.
#[derive(Default)]
pub(super) struct Servers {
    groups: Vec<Arc<Group>>,
    turns: Vec<usize>,
    upstreams: BTreeMap<u32, Upstream>,
    last_id: u32,
    detect_loops: bool,
}

impl Servers {
    /// Takes the rules of a configuration. What is known of servers that stay is kept; `in_use`
    /// are servers that questions wait for.
    pub(super) fn configure(
        &mut self,
        config: &Config,
        host: &[SocketAddr],
        in_use: &[u32],
        random: Random,
    ) {
        self.detect_loops = config.detect_loops;
        self.groups.clear();
        for rule in &config.forward {
            self.add_group(rule, host, random);
        }
        let has_root = |group: &Arc<Group>| group.zones.contains(&Domain::root());
        if !self.groups.iter().any(has_root) && !host.is_empty() {
            // What the host's own resolver does: the first server while it answers.
            self.add_group(&host_rule(), host, random);
        }
        self.turns = vec![0; self.groups.len()];
        let groups = &self.groups;
        let is_used = |id: &u32| groups.iter().any(|group| group.servers.contains(id));
        self.upstreams.retain(|id, _| is_used(id) || in_use.contains(id));
    }

    fn add_group(&mut self, rule: &ForwardRule, host: &[SocketAddr], random: Random) {
        let mut servers = Vec::new();
        for target in &rule.to {
            let named: Vec<Server> = match target {
                Target::Server(server) => vec![with_tls(server, rule)],
                Target::Host => host
                    .iter()
                    .map(|address| Server { address: *address, carrier: Carrier::Plain })
                    .collect(),
            };
            for server in named {
                servers.push(self.add_server(server, rule, random));
            }
        }
        self.groups.push(Arc::new(Group {
            index: self.groups.len(),
            zones: rule.zones.clone(),
            except: rule.except.clone(),
            servers,
            policy: rule.policy,
            max_concurrent: rule.max_concurrent,
            force_tcp: rule.force_tcp,
        }));
    }

    fn add_server(&mut self, server: Server, rule: &ForwardRule, random: Random) -> u32 {
        let known = self.upstreams.iter_mut().find(|(_, upstream)| upstream.server == server);
        if let Some((id, upstream)) = known {
            upstream.max_fails = rule.max_fails;
            upstream.health_check_ms = rule.health_check.ms();
            return *id;
        }
        self.last_id += 1;
        let upstream = Upstream {
            server,
            max_fails: rule.max_fails,
            health_check_ms: rule.health_check.ms(),
            fails: 0,
            probes_failed_ever: 0,
            latencies: BTreeMap::new(),
            is_suspect: false,
            probe: None,
            probe_at_ms: 0,
            is_loop: false,
            loop_name: loop_name(random),
            is_loop_asked: false,
        };
        self.upstreams.insert(self.last_id, upstream);
        self.last_id
    }

    /// The rule for a name: that of the longest zone above it.
    pub(super) fn group_of(&self, name: &Name) -> Option<Arc<Group>> {
        let above = |group: &&Arc<Group>| {
            let longest = group.zones.iter().filter(|zone| zone.holds(name));
            let excepted = group.except.iter().any(|zone| zone.holds(name));
            longest.map(|zone| zone.name().wire().len()).max().filter(|_| !excepted)
        };
        let fitting = self.groups.iter().filter_map(|group| Some((above(&group)?, group)));
        // The first of those that are as long.
        let best = fitting.reduce(|best, next| if next.0 > best.0 { next } else { best });
        best.map(|(_, group)| group.clone())
    }

    /// The rule for a name and its servers, in words.
    pub(super) fn explain(&self, name: &Name) -> String {
        let Some(group) = self.group_of(name) else {
            return format!("forward: no rule has servers for {name}: refused");
        };
        let fitting = group.zones.iter().filter(|zone| zone.holds(name));
        let zone = fitting.max_by_key(|zone| zone.name().wire().len());
        let zone = zone.map_or_else(String::new, |zone| zone.name().to_string());
        let servers = group.servers.iter().filter_map(|id| self.get(*id)).map(|upstream| {
            let state = match upstream {
                one if one.is_loop => " (asks back: not asked)",
                one if one.is_down() => " (down)",
                one if one.is_suspect => " (did not answer: asked last)",
                _ => "",
            };
            format!("{}{state}", upstream.server)
        });
        let servers: Vec<String> = servers.collect();
        let policy = match group.policy {
            Policy::Random => "random",
            Policy::RoundRobin => "round_robin",
            Policy::Sequential => "sequential",
        };
        format!("forward: the rule of {zone} asks {} ({policy})", servers.join(", "))
    }

    /// The servers of a rule in the order to ask them.
    pub(super) fn order(&mut self, group: &Group, random: Random) -> Vec<u32> {
        let count = group.servers.len().max(1);
        let first = match group.policy {
            Policy::Sequential => 0,
            Policy::Random => (random() % count as u64) as usize,
            Policy::RoundRobin => match self.turns.get_mut(group.index) {
                Some(turn) => {
                    *turn = (*turn + 1) % count;
                    (*turn + count - 1) % count
                }
                None => 0,
            },
        };
        let turned = group.servers.iter().cycle().skip(first).take(group.servers.len());
        let mut order: Vec<u32> = turned
            .filter(|id| !self.get(**id).is_some_and(|server| server.is_loop))
            .copied()
            .collect();
        order.sort_by_key(|id| {
            self.get(*id).is_none_or(|server| server.is_suspect || server.is_down())
        });
        order
    }

    pub(super) fn get(&self, id: u32) -> Option<&Upstream> {
        self.upstreams.get(&id)
    }

    /// Counts an answer of a server.
    pub(super) fn answered(&mut self, id: u32, rcode: u16, took_ms: u64) {
        if let Some(upstream) = self.upstreams.get_mut(&id) {
            let rcode = rcode.min(COUNTED_RCODES + 1);
            upstream.latencies.entry(rcode).or_default().record(took_ms.saturating_mul(1000));
        }
    }

    /// Whether none of these is taken for alive.
    pub(super) fn are_down(&self, servers: &[u32]) -> bool {
        servers.iter().all(|id| self.get(*id).is_some_and(Upstream::is_down))
    }

    /// The server answered something. Returns its probe's socket, which is of no use any more.
    pub(super) fn is_alive(&mut self, id: u32) -> Option<u64> {
        let upstream = self.upstreams.get_mut(&id)?;
        upstream.fails = 0;
        upstream.is_suspect = false;
        upstream.probe.take().map(|probe| probe.exchange)
    }

    /// The server did not answer a question: it is asked last, and probed.
    pub(super) fn suspect(&mut self, id: u32, now_ms: u64) {
        if let Some(upstream) = self.upstreams.get_mut(&id)
            && upstream.max_fails > 0
            && !upstream.is_suspect
        {
            upstream.is_suspect = true;
            upstream.probe_at_ms = now_ms;
        }
    }

    /// Whether these octets answer the probe of a server.
    pub(super) fn is_probe_answered(&self, id: u32, from: SocketAddr, answer_id: u16) -> bool {
        self.get(id).is_some_and(|upstream| {
            upstream.server.address == from
                && upstream.probe.as_ref().is_some_and(|probe| probe.id == answer_id)
        })
    }

    /// A probe's socket failed.
    pub(super) fn probe_failed(&mut self, id: u32, now_ms: u64) {
        if let Some(upstream) = self.upstreams.get_mut(&id)
            && upstream.probe.take().is_some()
        {
            upstream.fails = upstream.fails.saturating_add(1);
            upstream.probes_failed_ever += 1;
            upstream.probe_at_ms = now_ms + upstream.health_check_ms;
        }
    }

    /// Probes whose time is over, by server and socket.
    pub(super) fn late_probes(&self, now_ms: u64) -> Vec<(u32, u64)> {
        let late = |(id, upstream): (&u32, &Upstream)| {
            let probe = upstream.probe.as_ref().filter(|probe| probe.deadline_ms <= now_ms)?;
            Some((*id, probe.exchange))
        };
        self.upstreams.iter().filter_map(late).collect()
    }

    /// Begins the probes that are due; `number` gives numbers of sockets.
    pub(super) fn probes(
        &mut self,
        now_ms: u64,
        random: Random,
        mut number: impl FnMut(u32) -> u64,
    ) -> Vec<ProbeToSend> {
        let detect_loops = self.detect_loops;
        let mut probes = Vec::new();
        for (id, upstream) in &mut self.upstreams {
            let asks_for_loop = upstream.asks_for_loop(detect_loops);
            let is_due = upstream.is_suspect && upstream.probe_at_ms <= now_ms;
            if upstream.probe.is_some() || !(is_due || asks_for_loop) {
                continue;
            }
            upstream.is_loop_asked = true;
            let probe = Probe {
                exchange: number(*id),
                id: random() as u16,
                deadline_ms: now_ms + ATTEMPT_TIMEOUT_MS,
            };
            // A name that nobody else knows: should it come back as a question, we asked ourselves.
            let message = query(probe.id, &upstream.loop_name, kind::HINFO, false);
            let server = upstream.server.clone();
            probes.push(ProbeToSend { exchange: probe.exchange, server, message });
            upstream.probe = Some(probe);
        }
        probes
    }

    /// Says whether a question is one of our own probes, come back; its server is not asked any
    /// more until the configuration is read anew.
    pub(super) fn is_own_probe(&mut self, name: &Name) -> Option<String> {
        let returned = self.upstreams.values_mut().find(|upstream| upstream.loop_name.is(name))?;
        returned.is_loop = true;
        Some(returned.server.to_string())
    }

    /// When the next probe is due or late.
    pub(super) fn next_deadline_ms(&self) -> Option<u64> {
        let deadline = |upstream: &Upstream| match &upstream.probe {
            Some(probe) => Some(probe.deadline_ms),
            None if upstream.asks_for_loop(self.detect_loops) => Some(0),
            None => upstream.is_suspect.then_some(upstream.probe_at_ms),
        };
        self.upstreams.values().filter_map(deadline).min()
    }

    /// The health of all servers.
    pub(super) fn health(&self) -> Vec<Health> {
        let health = |upstream: &Upstream| Health {
            server: upstream.server.to_string(),
            is_down: upstream.is_down(),
            is_loop: upstream.is_loop,
            failed_probes: upstream.fails,
            probes_failed_ever: upstream.probes_failed_ever,
            latencies: upstream.latencies.clone(),
        };
        self.upstreams.values().map(health).collect()
    }
}

impl Upstream {
    fn is_down(&self) -> bool {
        self.max_fails > 0 && self.fails >= self.max_fails
    }

    fn asks_for_loop(&self, detect_loops: bool) -> bool {
        detect_loops && !self.is_loop_asked && self.server.carrier == Carrier::Plain
    }
}

fn host_rule() -> ForwardRule {
    ForwardRule {
        zones: vec![Domain::root()],
        to: vec![Target::Host],
        policy: Policy::Sequential,
        ..ForwardRule::default()
    }
}

fn with_tls(server: &Server, rule: &ForwardRule) -> Server {
    let mut server = server.clone();
    if let Some(tls) = server.carrier.tls_mut() {
        tls.server_name.clone_from(&rule.tls_servername);
        tls.files.clone_from(&rule.tls);
    }
    server
}

/// Two labels of random letters.
fn loop_name(random: Random) -> Name {
    let labels = [format!("{:016x}", random()), format!("{:016x}", random())];
    Name::from_labels(labels.iter().map(|label| label.as_bytes())).unwrap_or_else(|_| Name::root())
}
