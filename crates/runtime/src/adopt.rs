//! What a new runtime finds of a pod that the old one ran: the pause process knows most, the files
//! that it left know the rest.

use std::collections::BTreeSet;

use model::Timestamp;
use pause::{ContainerReport, Exit};

use crate::disk::{self, PodDirectory};
use crate::machine::{ContainerState, Ended, Fact, Machine};
use crate::pause_client::{self, Connection};

/// A sandbox that lives.
pub struct Found {
    /// What has happened since.
    pub facts: Vec<Fact>,
    /// Starts that were decided on but never asked for.
    pub never_started: Vec<String>,
    /// Tells what happens from now on.
    pub connection: Connection,
}

/// Asks the pod's pause process; `None` when it is gone.
pub async fn find(machine: &Machine, directory: &PodDirectory) -> Option<Found> {
    let (reports, connection) = pause_client::watch(&directory.socket()).await.ok()?;
    let (mut facts, mut never_started) = (Vec::new(), Vec::new());
    let mut known = BTreeSet::new();
    for report in &reports {
        known.insert(report.id.clone());
        let record = machine.record.containers.get(&report.name);
        if record.is_some_and(|record| record.is_starting(&report.id)) {
            let started_at = Timestamp::from_microseconds(report.started_at_us);
            let (container, id) = (report.name.clone(), report.id.clone());
            facts.push(Fact::Started { container, id, started_at });
        }
        facts.extend(fact(report));
    }
    for (name, record) in &machine.record.containers {
        match &record.state {
            ContainerState::Starting { id } if !known.contains(id) => {
                never_started.push(name.clone());
            }
            _ => {}
        }
    }
    Some(Found { facts, never_started, connection })
}

/// The ends that a pause process left on disk before it died itself.
pub fn ended(machine: &Machine, directory: &PodDirectory) -> Vec<Fact> {
    let mut facts = Vec::new();
    for (name, record) in &machine.record.containers {
        let ContainerState::Running { id, .. } = &record.state else { continue };
        if let Some(exit) = disk::read_json::<Exit>(&directory.exit(name, record.restarts)) {
            facts.push(Fact::Ended { container: name.clone(), ended: from_exit(id, &exit) });
        }
    }
    facts
}

/// The fact that a report of an end is.
pub fn fact(report: &ContainerReport) -> Option<Fact> {
    let exit = report.exit.as_ref()?;
    let ended = from_exit(&report.id, exit);
    Some(Fact::Ended { container: report.name.clone(), ended })
}

fn from_exit(id: &str, exit: &Exit) -> Ended {
    Ended {
        id: id.to_owned(),
        code: exit.code,
        reason: if exit.code == 0 { "Completed" } else { "Error" }.to_owned(),
        message: String::new(),
        started_at: Timestamp::from_microseconds(exit.started_at_us),
        finished_at: Timestamp::from_microseconds(exit.finished_at_us),
    }
}
