//! A case in memory: the node's real loop on an honest fake kernel; every packet through the
//! oracle and through the tracer of the rules.
//!
//! Three laws hold after every step of every case, without being written there: an agent that
//! starts anew on the same kernel writes nothing (invariant 14); an agent that starts on an empty
//! kernel ends with the same verdicts; and the kernel never refuses what was not made to fail.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use model::NamespacedName;
use model::packet::Packet;
use model::world::{Kind, Object};
use reconcile::Event;
use render::fake::FakeKernel;

use super::names::Names;
use super::table::{self, Row};
use super::{Case, Section, Text, split, state};
use crate::node::NodeLoop;
use crate::{objects, verdict};

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
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let case = Case::parse(&name, &text).with_context(|| format!("{}", path.display()))?;
    run(&case, &text).with_context(|| format!("{}", path.display()))
}

/// Runs a case that was read from `text`.
///
/// # Errors
/// When a packet names something unknown.
pub fn run(case: &Case, text: &str) -> Result<Outcome> {
    let facts = objects::facts(case.at);
    let mut runner = Runner {
        case,
        names: Names::new(case),
        objects: BTreeMap::new(),
        node: NodeLoop::new(case.config.clone(), facts, FakeKernel::default()),
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
    outcome: Outcome,
    /// Whether the kernel was told to fail.
    is_armed: bool,
}

impl Runner<'_> {
    /// Carries out a section; answers its body when that is an expectation.
    fn section(&mut self, section: &Section) -> Result<Option<Vec<String>>> {
        match section {
            Section::Objects(objects) => {
                self.set(&self.case.node_objects())?;
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
        Ok(())
    }

    /// Another agent process at the same node.
    fn fresh(&self, kernel: FakeKernel) -> NodeLoop<FakeKernel> {
        let mut node = NodeLoop::new(self.case.config.clone(), self.node.facts.clone(), kernel);
        let objects: Vec<Object> = self.objects.values().cloned().collect();
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
        let kept = self.node.observe().map_err(anyhow::Error::msg)?;
        let anew = from_nothing.observe().map_err(anyhow::Error::msg)?;
        let mut printed = Vec::new();
        for row in rows {
            let packet = self.names.packet(row)?;
            let world = self.node.reconciler.world();
            let facts = &self.node.facts;
            let decision = verdict::by_oracle(world, &self.case.config, facts, &packet);
            let executors = [
                (
                    "the nftables rules",
                    verdict::by_nft(&kept.nft, &self.case.config, facts, &packet),
                ),
                (
                    "the nftables rules made anew",
                    verdict::by_nft(&anew.nft, &self.case.config, facts, &packet),
                ),
            ];
            let (result, rewritten_to, source) =
                self.names.print_verdict(&packet, &decision.verdict);
            let found = Row {
                from: row.from.clone(),
                to: row.to.clone(),
                protocol: row.protocol,
                verdict: result,
                rewritten_to,
                source,
                decided_by: decision.rule.to_string(),
            };
            for (executor, verdict) in executors {
                let said = match verdict {
                    Ok(verdict) if verdict == decision.verdict => continue,
                    Ok(verdict) => verdict.to_string(),
                    Err(error) => error.to_string(),
                };
                self.fault(disagreement(&packet, row, &decision.verdict, executor, &said));
            }
            if found != *row {
                let [expected, found] = [row, &found].map(cells);
                self.outcome
                    .differences
                    .push(format!("expected {expected}\n        found    {found}"));
            }
            self.outcome.packets += 1;
            printed.push(found);
        }
        Ok(table::print(&printed))
    }
}

fn disagreement(
    packet: &Packet,
    row: &Row,
    meant: &model::packet::Verdict,
    executor: &str,
    said: &str,
) -> String {
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
    const SETTINGS: [&str; 4] = ["nodes", "at", "overlay", "cross-subnet"];
    let (_, texts) = split(text)?;
    let mut replaced = replaced.into_iter();
    let preamble = text.lines().take_while(|line| line.starts_with('#') || line.trim().is_empty());
    let mut lines: Vec<String> = preamble.map(String::from).collect();
    for Text { head, argument, body } in texts {
        lines.push(format!("{head}: {argument}").trim_end().to_string());
        let new = if SETTINGS.contains(&head.as_str()) { None } else { replaced.next().flatten() };
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
