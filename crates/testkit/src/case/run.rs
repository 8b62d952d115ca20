//! A case in memory: the node's real loop on an honest fake kernel; every packet through the
//! oracle and through the tracers of that loop's rules and of every backend's.
//!
//! Three laws hold after every step of every case, without being written there: an agent that
//! starts anew on the same kernel writes nothing (invariant 14); an agent that starts on an empty
//! kernel ends with the same verdicts; and the kernel never refuses what was not made to fail.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use model::packet::{Packet, Verdict};
use model::world::{Kind, Object};
use model::{ClusterConfig, LoadBalancerMode, NamespacedName, ServiceBackend};
use oracle::service::Decision;
use reconcile::Event;
use render::fake::FakeKernel;

use super::names::Names;
use super::table::{self, Row};
use super::{Case, Section, Settings, Text, split, state};
use crate::backend::{self, Backend, Place};
use crate::node::NodeLoop;
use crate::verdict;

/// What a run of a case found.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Disagreements between executors, or between a law and the loop: never blessed away.
    pub faults: Vec<String>,
    /// Differences from what the file says.
    pub differences: Vec<String>,
    /// The file with its expectations as they are.
    pub blessed: String,
    /// Packets sent through every executor.
    pub packets: usize,
}

/// Reads and runs a case file.
///
/// # Errors
/// When it cannot be read.
pub fn file(path: &Path) -> Result<Outcome> {
    let (case, text) = Case::file(path)?;
    run(&case, &text).with_context(|| format!("{}", path.display()))
}

/// Runs a case that was read from `text`.
///
/// # Errors
/// When a packet names something unknown.
pub fn run(case: &Case, text: &str) -> Result<Outcome> {
    let facts = case.settings.facts(case.settings.at);
    let mut runner = Runner {
        case,
        names: Names::new(&case.settings),
        objects: BTreeMap::new(),
        node: NodeLoop::new(case.settings.config.clone(), facts, FakeKernel::default()),
        backends: backend::all(),
        outcome: Outcome::default(),
        is_armed: false,
    };
    let mut replaced = Vec::new();
    for section in &case.sections {
        replaced.push(runner.section(section)?);
    }
    let mut outcome = runner.outcome;
    outcome.blessed = bless(text, replaced)?;
    Ok(outcome)
}

struct Runner<'a> {
    case: &'a Case,
    names: Names,
    objects: BTreeMap<(Kind, NamespacedName), Object>,
    node: NodeLoop<FakeKernel>,
    backends: Vec<Box<dyn Backend>>,
    outcome: Outcome,
    /// Whether the kernel was told to fail.
    is_armed: bool,
}

impl Runner<'_> {
    /// Carries out a section; answers its body when that is an expectation.
    fn section(&mut self, section: &Section) -> Result<Option<Vec<String>>> {
        match section {
            Section::Objects(objects) => {
                self.set(&self.case.settings.node_objects())?;
                self.set(objects)?;
                self.list_all();
                self.settle("the first lists")?;
            }
            Section::Update(objects) => {
                self.set(objects)?;
                for object in objects {
                    self.node.handle(Event::Present(object.clone()));
                }
                self.settle("an update")?;
            }
            Section::Delete(kind, key) => {
                if self.objects.remove(&(*kind, key.clone())).is_none() {
                    bail!("there is no {kind:?} {key} to delete");
                }
                self.node.handle(Event::Absent { kind: *kind, key: key.clone() });
                self.settle("a deletion")?;
            }
            Section::Unreachable(words) => {
                let unreachable = self.names.unreachable(words)?;
                self.node.handle(Event::Unreachable(unreachable));
                self.settle("a change of what answers")?;
            }
            Section::Restart => {
                self.node.restart();
                self.list_all();
                let settled = self.node.settle().map_err(anyhow::Error::msg)?;
                if !settled.ops.is_empty() {
                    let first = &settled.ops[0];
                    self.fault(format!("a restart with nothing changed wrote {first:?}"));
                }
            }
            Section::FailNextOp { count, errno } => {
                self.node.kernel.faults = (0..*count).map(|index| (index, *errno)).collect();
                self.is_armed = true;
            }
            Section::Expect(expected) => return Ok(Some(self.expect(expected))),
            Section::Packets(rows) => return self.packets(rows).map(Some),
        }
        Ok(None)
    }

    fn set(&mut self, objects: &[Object]) -> Result<()> {
        self.names.learn(objects)?;
        for object in objects {
            self.objects.insert((object.kind(), object.key()), object.clone());
        }
        Ok(())
    }

    fn list_all(&mut self) {
        let objects: Vec<Object> = self.objects.values().cloned().collect();
        self.node.list(&objects);
    }

    fn settle(&mut self, after: &str) -> Result<()> {
        let settled = self.node.settle().map_err(anyhow::Error::msg)?;
        match (self.is_armed, settled.failures.first()) {
            (false, Some(failure)) => {
                self.fault(format!("after {after} the kernel refused an operation: {failure}"));
            }
            (true, None) => self.fault(format!("after {after} no operation met the armed fault")),
            _ => {}
        }
        self.is_armed = false;
        let mut next = self.fresh(self.node.kernel.clone());
        let settled = next.settle().map_err(anyhow::Error::msg)?;
        if let Some(op) = settled.ops.first() {
            self.fault(format!("after {after} a fresh agent on the same kernel wrote {op:?}"));
        }
        self.bring_backends(after);
        Ok(())
    }

    /// Every backend comes to what the node shall hold now, and then has nothing more to do.
    fn bring_backends(&mut self, after: &str) {
        let (desired, _) = self.node.desired();
        let place = Place { config: &self.case.settings.config, facts: &self.node.facts };
        for backend in &mut self.backends {
            let name = backend::name(backend.kind());
            let fault = match (backend.bring(&desired, place), backend.bring(&desired, place)) {
                (Err(error), _) => format!("after {after} {name} was refused {error}"),
                (_, Ok(ops)) if ops.is_empty() => continue,
                (_, again) => format!("after {after} {name} wrote twice: {again:?}"),
            };
            self.outcome.faults.push(fault);
        }
        let refusing = self.backends.iter().filter(|backend| backend.refuses(&desired));
        let refusing: BTreeSet<String> =
            refusing.map(|backend| backend::name(backend.kind())).collect();
        let stated = &self.case.settings.unsupported;
        if refusing != stated.keys().cloned().collect() {
            let fault = format!("after {after} {refusing:?} refuse something, stated: {stated:?}");
            self.outcome.faults.push(fault);
        }
    }

    /// Another agent process at the same node.
    fn fresh(&self, kernel: FakeKernel) -> NodeLoop<FakeKernel> {
        let mut node =
            NodeLoop::new(self.case.settings.config.clone(), self.node.facts.clone(), kernel);
        let objects: Vec<Object> = self.objects.values().cloned().collect();
        node.handle(Event::Unreachable(self.node.unreachable.clone()));
        node.list(&objects);
        node
    }

    fn fault(&mut self, what: String) {
        self.outcome.faults.push(what);
    }

    fn expect(&mut self, expected: &[String]) -> Vec<String> {
        let expected: Vec<&str> =
            expected.iter().map(String::as_str).filter(|line| !line.is_empty()).collect();
        let (desired, findings) = self.node.desired();
        let found = state::print(&desired, &findings, &self.names);
        for line in expected.iter().filter(|line| !found.iter().any(|other| other == *line)) {
            self.outcome.differences.push(format!("expected, but not there: {line}"));
        }
        for line in found.iter().filter(|line| !expected.contains(&line.as_str())) {
            self.outcome.differences.push(format!("there, but not expected: {line}"));
        }
        found.into_iter().map(|line| format!("  {line}")).collect()
    }

    fn packets(&mut self, rows: &[Row]) -> Result<Vec<String>> {
        let mut from_nothing = self.fresh(FakeKernel::default());
        from_nothing.settle().map_err(anyhow::Error::msg)?;
        let loops = [
            ("the loop's rules", self.node.observe().map_err(anyhow::Error::msg)?),
            ("the loop's rules made anew", from_nothing.observe().map_err(anyhow::Error::msg)?),
        ];
        let anew = self.made_anew()?;
        let mut printed = Vec::new();
        for row in rows {
            let packet = self.names.packet(row)?;
            let (config, facts) = (&self.case.settings.config, &self.node.facts);
            let place = Place { config, facts };
            let world = self.node.reconciler.world();
            let decision = verdict::by_oracle(world, config, facts, &packet);
            // Those that refuse direct server return masquerade in its place.
            let snat = LoadBalancerMode::Snat;
            let in_its_place = ClusterConfig { load_balancer_mode: snat, ..config.clone() };
            let in_its_place = verdict::by_oracle(world, &in_its_place, facts, &packet).verdict;
            let mut said: Vec<(String, Verdict, Result<Verdict, String>)> = Vec::new();
            for (name, observed) in &loops {
                let verdict = verdict::by_nft(&observed.nft, config, facts, &packet);
                let verdict = verdict.map_err(|error| error.to_string());
                said.push((name.to_string(), in_its_place.clone(), verdict));
            }
            for (words, backends) in [("", &self.backends), (" made anew", &anew)] {
                for backend in backends {
                    let name = backend::name(backend.kind()) + words;
                    let meant = match backend.kind() {
                        ServiceBackend::Ebpf => &decision.verdict,
                        _ => &in_its_place,
                    };
                    let said_of_it = backend.trace(&packet, place);
                    let meant = said_of_it.as_ref().map_or_else(
                        |_| meant.clone(),
                        |said| verdict::meant_of(backend.kind(), meant, &decision.rule, said),
                    );
                    said.push((name, meant, said_of_it));
                }
            }
            for (executor, meant, verdict) in said {
                let said = match verdict {
                    Ok(verdict) if verdict == meant => continue,
                    Ok(verdict) => verdict.to_string(),
                    Err(error) => error,
                };
                self.outcome.faults.push(disagreement(&packet, row, &meant, &executor, &said));
            }
            printed.push(self.compare(row, &packet, &decision));
        }
        Ok(table::print(&printed))
    }

    /// Every backend on an empty kernel, brought to what the node shall hold.
    fn made_anew(&self) -> Result<Vec<Box<dyn Backend>>> {
        let (desired, _) = self.node.desired();
        let place = Place { config: &self.case.settings.config, facts: &self.node.facts };
        let mut made = Vec::new();
        for backend in &self.backends {
            let mut anew = backend.anew();
            anew.bring(&desired, place).map_err(anyhow::Error::msg)?;
            made.push(anew);
        }
        Ok(made)
    }

    /// The row as it is found, after it was held against what the file says.
    fn compare(&mut self, row: &Row, packet: &Packet, decision: &Decision) -> Row {
        let (verdict, rewritten_to, source) = self.names.print_verdict(packet, &decision.verdict);
        let found = Row {
            from: row.from.clone(),
            to: row.to.clone(),
            protocol: row.protocol,
            verdict,
            rewritten_to,
            source,
            decided_by: decision.rule.to_string(),
        };
        if found != *row {
            let [expected, found] = [row, &found].map(cells);
            self.outcome.differences.push(format!("expected {expected}\n        found    {found}"));
        }
        self.outcome.packets += 1;
        found
    }
}

fn disagreement(packet: &Packet, row: &Row, meant: &Verdict, executor: &str, said: &str) -> String {
    format!(
        "{} to {} ({} to {}): the API means: {meant}; {executor}: {said}",
        row.from, row.to, packet.source, packet.destination
    )
}

fn cells(row: &Row) -> String {
    let printed = table::print(std::slice::from_ref(row));
    let last = printed.last().cloned().unwrap_or_default();
    last.split('|').map(str::trim).collect::<Vec<_>>().join(" | ")
}

/// The file's text with the bodies of its checks replaced.
fn bless(text: &str, replaced: Vec<Option<Vec<String>>>) -> Result<String> {
    let (_, texts) = split(text)?;
    let mut replaced = replaced.into_iter();
    let preamble = text.lines().take_while(|line| line.starts_with('#') || line.trim().is_empty());
    let mut lines: Vec<String> = preamble.map(String::from).collect();
    for Text { head, argument, body } in texts {
        lines.push(format!("{head}: {argument}").trim_end().to_string());
        let is_setting = Settings::default().read(&head, &argument)?;
        let new = if is_setting { None } else { replaced.next().flatten() };
        match new {
            Some(new) => {
                lines.extend(new);
                if body.last().is_some_and(|line| line.trim().is_empty()) {
                    lines.push(String::new());
                }
            }
            None => lines.extend(body),
        }
    }
    Ok(lines.join("\n").trim_end().to_string() + "\n")
}
