//! What others see of the fast path.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kernel::bpf::names::NameAnswers;
use model::DnsFastPath;
use render::OpError;
use render::names::{Client, key_of};
use serde::{Deserialize, Serialize};

use crate::metrics::Histogram;
use crate::report::Condition;

/// The Node's condition.
const CONDITION: &str = "FlatnetDnsFastPath";
/// Upper bounds of the time from a change to the kernel, in seconds: the DNS worker's.
const LAG_BOUNDS_S: [f64; 10] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0];

/// Whether the kernel answers for the DNS worker, and what it did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FastPathStatus {
    /// What the configuration asks for.
    pub wanted: DnsFastPath,
    /// Whether it answers.
    pub answering: bool,
    /// Why it does not, where it does not.
    pub reason: String,
    /// Links of pods that it answers at.
    pub links: usize,
    /// Questions at them by what became of them, since the program was loaded.
    pub questions: BTreeMap<String, u64>,
}

impl FastPathStatus {
    /// Questions that the kernel answered.
    pub fn answered(&self) -> u64 {
        ["answered", "no_data"].iter().filter_map(|what| self.questions.get(*what)).sum()
    }

    /// Questions that it left to the worker.
    pub fn passed(&self) -> u64 {
        let passed = self.questions.iter().filter(|(what, _)| what.starts_with("passed_"));
        passed.map(|(_, count)| count).sum()
    }
}

/// Whether one question would be answered by the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FastPathAnswer {
    /// The node whose agent says so.
    pub node: String,
    /// Whether it would.
    pub answers: bool,
    /// Why, in words.
    pub reason: String,
}

/// The handle of the fast path.
#[derive(Clone)]
pub(crate) struct FastPath {
    wanted: DnsFastPath,
    inner: Arc<Mutex<Inner>>,
}

pub(super) struct Inner {
    pub(super) answers: Option<NameAnswers>,
    /// The pods that are answered, by link.
    pub(super) clients: BTreeMap<String, Client>,
    pub(super) lag: Histogram,
    state: State,
}

/// What it does.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Nobody knows yet what is wanted; what a former agent left answers on.
    Waiting(String),
    Answering,
    /// The worker is to answer alone.
    Left(String),
    /// The kernel refuses.
    Failed(String),
}

impl FastPath {
    pub(crate) fn new(wanted: DnsFastPath) -> Self {
        let inner = Inner {
            answers: None,
            clients: BTreeMap::new(),
            lag: Histogram::with_bounds(LAG_BOUNDS_S.into_iter()),
            state: State::Waiting("the agent has just started".into()),
        };
        Self { wanted, inner: Arc::new(Mutex::new(inner)) }
    }

    pub(crate) fn status(&self) -> FastPathStatus {
        let inner = self.inner();
        let counters = inner.answers.as_ref().and_then(|answers| answers.counters().ok());
        let questions = counters.unwrap_or_default().into_iter();
        FastPathStatus {
            wanted: self.wanted,
            answering: inner.state == State::Answering,
            reason: inner.state.reason().to_owned(),
            links: inner.clients.len(),
            questions: questions.map(|(what, count)| (what.to_owned(), count)).collect(),
        }
    }

    /// The Node's condition; `None` while nobody knows, and where it is not wanted.
    pub(crate) fn condition(&self) -> Option<Condition> {
        let inner = self.inner();
        let (status, reason) = match &inner.state {
            _ if self.wanted == DnsFastPath::Off => return None,
            State::Waiting(_) => return None,
            State::Answering => ("True", "KernelAnswers"),
            State::Left(_) => ("False", "LeftToWorker"),
            State::Failed(_) => ("False", "KernelRefuses"),
        };
        let message = match &inner.state {
            State::Answering => {
                "plain questions for the cluster's names are answered in the kernel"
            }
            state => state.reason(),
        };
        Some(Condition { kind: CONDITION, status, reason, message: message.to_owned() })
    }

    /// What is wrong: that it does not answer where it was asked for.
    pub(crate) fn problem(&self) -> Option<String> {
        match &self.inner().state {
            State::Left(reason) | State::Failed(reason) if self.wanted == DnsFastPath::On => Some(
                format!("the kernel does not answer for DNS, though dnsFastPath is on: {reason}"),
            ),
            _ => None,
        }
    }

    /// Whether the kernel would answer a pod's plain question, by what it holds now.
    pub(crate) fn explain(&self, name: &str, kind: &str, from: IpAddr) -> FastPathAnswer {
        let inner = self.inner();
        let (answers, reason) = match inner.explain(name, kind, from) {
            Ok(reason) => (true, reason),
            Err(reason) => (false, reason),
        };
        FastPathAnswer { node: String::new(), answers, reason }
    }

    /// Numbers in the text format of Prometheus.
    pub(crate) fn metrics(&self) -> String {
        let status = self.status();
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "# HELP flatnet_dns_fast_path_links Links of pods that the kernel answers at.\n\
             # TYPE flatnet_dns_fast_path_links gauge\n\
             flatnet_dns_fast_path_links {}\n\
             # HELP flatnet_dns_fast_path_questions_total Questions by what became of them.\n\
             # TYPE flatnet_dns_fast_path_questions_total counter\n",
            status.links
        );
        for (result, count) in &status.questions {
            let name = "flatnet_dns_fast_path_questions_total";
            let _ = writeln!(text, "{name}{{result=\"{result}\"}} {count}");
        }
        self.inner().lag.print(
            &mut text,
            "flatnet_dns_fast_path_programming_duration_seconds",
            "From a change that the agent hears of to the names in the kernel.",
        );
        text
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wanted(&self) -> DnsFastPath {
        self.wanted
    }

    pub(super) fn is_loaded(&self) -> bool {
        self.inner().answers.is_some()
    }

    pub(super) fn load(&self, answers: NameAnswers) {
        self.inner().answers = Some(answers);
    }

    /// The kernel leaves everything to the worker, until somebody renews the lease.
    pub(super) fn end_lease(&self) {
        if let Some(answers) = &mut self.inner().answers {
            // Without the maps it answers nothing either.
            let _ = answers.renew(Duration::ZERO);
        }
    }

    /// Takes away what is loaded, also by another agent.
    pub(super) fn unload(&self) -> Result<(), OpError> {
        let mut inner = self.inner();
        inner.clients.clear();
        match inner.answers.take() {
            Some(answers) => answers.remove(),
            None => super::remove().map(drop),
        }
    }

    pub(super) fn wait(&self, reason: &str) {
        self.inner().become_state(State::Waiting(reason.to_owned()));
    }

    pub(super) fn answer(&self) {
        self.inner().become_state(State::Answering);
    }

    pub(super) fn leave(&self, reason: &str) {
        self.inner().become_state(State::Left(reason.to_owned()));
    }

    pub(super) fn fail(&self, reason: &str) {
        self.inner().become_state(State::Failed(reason.to_owned()));
    }
}

impl Inner {
    /// Says it once.
    fn become_state(&mut self, state: State) {
        if self.state == state {
            return;
        }
        match &state {
            State::Waiting(_) => {}
            State::Answering => tracing::info!("the kernel answers for DNS at pods' links"),
            State::Left(reason) => tracing::info!("the DNS worker answers alone: {reason}"),
            State::Failed(reason) => tracing::warn!("the DNS worker answers alone: {reason}"),
        }
        self.state = state;
    }

    fn explain(&self, name: &str, kind: &str, from: IpAddr) -> Result<String, String> {
        if self.state != State::Answering {
            return Err(self.state.reason().to_owned());
        }
        let client = self.clients.iter().find(|(_, client)| client.addresses.contains(&from));
        let Some((link, _)) = client else {
            return Err(format!("{from} is the address of no pod of this node that has a link"));
        };
        let is_ipv4 = match kind {
            "A" => true,
            "AAAA" => false,
            _ => return Err(format!("questions for {kind} are the worker's")),
        };
        let key = key_of(name).ok_or("the name is too long for the kernel")?;
        let answers = self.answers.as_ref().ok_or("the program is not loaded")?;
        let found = answers.find(&key).map_err(|error| error.message)?;
        let Some(found) = found else {
            return Err("the kernel has no such name with up to 8 addresses".into());
        };
        let count = if is_ipv4 { found.ipv4_count } else { found.ipv6_count };
        Ok(format!("the kernel answers at the link {link}, with {count} addresses"))
    }
}

impl State {
    fn reason(&self) -> &str {
        match self {
            Self::Answering => "",
            Self::Waiting(reason) | Self::Left(reason) | Self::Failed(reason) => reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_answer_says_why_and_is_a_problem_only_where_it_was_asked_for() {
        for (wanted, is_problem) in
            [(DnsFastPath::Auto, false), (DnsFastPath::On, true), (DnsFastPath::Off, false)]
        {
            let path = FastPath::new(wanted);
            assert_eq!(path.condition(), None, "nobody knows yet");
            assert_eq!(path.problem(), None);
            path.fail("no such helper");
            assert_eq!(path.problem().is_some(), is_problem, "{wanted}");
            let condition = path.condition();
            assert_eq!(condition.is_none(), wanted == DnsFastPath::Off);
            if let Some(condition) = condition {
                assert_eq!((condition.status, condition.reason), ("False", "KernelRefuses"));
                assert_eq!(condition.message, "no such helper");
            }
            let answer = path.explain("web.lab.svc.cluster.local.", "A", [10, 0, 0, 1].into());
            assert_eq!((answer.answers, answer.reason.as_str()), (false, "no such helper"));
            path.answer();
            assert_eq!(path.problem(), None);
        }
    }

    #[test]
    fn questions_are_answered_or_passed_on() {
        let rows = [("answered", 5), ("no_data", 2), ("passed_name", 3), ("dropped_flood", 9)];
        let questions = rows.map(|(what, count)| (what.to_owned(), count)).into();
        let status = FastPathStatus { questions, ..FastPathStatus::default() };
        assert_eq!((status.answered(), status.passed()), (7, 3));
    }
}
