//! When to probe, and what the results of several probes mean together.

use std::collections::BTreeMap;
use std::time::Duration;

use model::Timestamp;

use crate::pod::{Container, Probe, ProbeKind};

/// A program that listens a moment after its start shall not wait for a whole period: until the
/// readiness probe succeeds first, or a period is over, it is tried after this time, milliseconds,
/// and then after twice as long each time. These tries count for nothing when they fail.
const EARLY_FIRST_MS: u64 = 20;

/// The probes of one running container. Not kept on disk: a new runtime probes anew, and until
/// then the container is as ready as it was.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Probes {
    states: BTreeMap<ProbeKind, ProbeState>,
}

#[derive(Clone, Debug, PartialEq)]
struct ProbeState {
    due_at: Timestamp,
    /// Set while early tries of the readiness probe go on: the wait after the next failure.
    early: Option<Duration>,
    under_way: bool,
    successes: u32,
    failures: u32,
}

/// What several results mean together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// A try before its time failed: as if it had not been made.
    Early,
    /// Not yet enough results to change anything.
    Open,
    /// Succeeded often enough.
    Healthy,
    /// Failed often enough.
    Unhealthy,
}

impl Probes {
    /// The probes of a container that started at `started_at`.
    pub fn new(container: &Container, started_at: Timestamp) -> Self {
        let state = |kind: ProbeKind, probe: &Probe| ProbeState {
            due_at: started_at.after(Duration::from_secs(probe.initial_delay_seconds.into())),
            early: (kind == ProbeKind::Readiness).then_some(Duration::from_millis(EARLY_FIRST_MS)),
            under_way: false,
            successes: 0,
            failures: 0,
        };
        let states = ProbeKind::ALL
            .into_iter()
            .filter_map(|kind| container.probe(kind).map(|probe| (kind, state(kind, probe))))
            .collect();
        Self { states }
    }

    /// The probes to run now; each is under way until its result comes.
    pub fn take_due(&mut self, started: bool, now: Timestamp) -> Vec<ProbeKind> {
        let mut due = Vec::new();
        for (kind, state) in &mut self.states {
            if applies(*kind, started) && !state.under_way && state.due_at <= now {
                state.under_way = true;
                due.push(*kind);
            }
        }
        due
    }

    /// When the next probe is due.
    pub fn next_due(&self, started: bool) -> Option<Timestamp> {
        self.states
            .iter()
            .filter(|(kind, state)| applies(**kind, started) && !state.under_way)
            .map(|(_, state)| state.due_at)
            .min()
    }

    /// Takes a result and says what it means with those before it.
    pub fn result(
        &mut self,
        kind: ProbeKind,
        probe: &Probe,
        success: bool,
        now: Timestamp,
    ) -> Judgement {
        let Some(state) = self.states.get_mut(&kind) else { return Judgement::Open };
        state.under_way = false;
        let period = Duration::from_secs(probe.period_s().into());
        if let Some(wait) = state.early.take().filter(|wait| !success && *wait < period) {
            state.early = Some(wait * 2);
            state.due_at = now.after(wait);
            return Judgement::Early;
        }
        state.due_at = now.after(period);
        if success {
            state.failures = 0;
            state.successes = state.successes.saturating_add(1);
            if state.successes >= probe.successes() { Judgement::Healthy } else { Judgement::Open }
        } else {
            state.successes = 0;
            state.failures = state.failures.saturating_add(1);
            if state.failures >= probe.failures() { Judgement::Unhealthy } else { Judgement::Open }
        }
    }
}

/// The startup probe runs until it has succeeded, the others from then on.
fn applies(kind: ProbeKind, started: bool) -> bool {
    (kind == ProbeKind::Startup) != started
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    fn container() -> Container {
        let probe = |delay| {
            Some(Probe { initial_delay_seconds: delay, period_seconds: 5, ..Probe::default() })
        };
        Container { startup_probe: probe(1), readiness_probe: probe(2), ..Container::default() }
    }

    #[test]
    fn readiness_waits_for_the_startup_probe() {
        let mut probes = Probes::new(&container(), seconds(100));
        assert_eq!(probes.take_due(false, seconds(100)), []);
        assert_eq!(probes.next_due(false), Some(seconds(101)));
        assert_eq!(probes.take_due(false, seconds(110)), [ProbeKind::Startup]);
        assert_eq!(probes.take_due(false, seconds(110)), [], "one at a time");
        assert_eq!(probes.take_due(true, seconds(110)), [ProbeKind::Readiness]);
    }

    #[test]
    fn a_server_that_listens_late_is_found_before_a_period_is_over() {
        let probe = container().readiness_probe.expect("a probe");
        let mut probes = Probes::new(&container(), seconds(0));
        let mut now = seconds(2);
        for wait_ms in [20, 40, 80] {
            let failed = probes.result(ProbeKind::Readiness, &probe, false, now);
            assert_eq!(failed, Judgement::Early);
            now = now.after(Duration::from_millis(wait_ms));
            assert_eq!(probes.next_due(true), Some(now));
        }
        let found = probes.result(ProbeKind::Readiness, &probe, true, now);
        assert_eq!(found, Judgement::Healthy);
        let later = probes.result(ProbeKind::Readiness, &probe, false, seconds(7));
        assert_eq!(later, Judgement::Open, "from its first success on every failure counts");
        assert_eq!(probes.next_due(true), Some(seconds(12)));
        let mut probes = Probes::new(&container(), seconds(0));
        let early = |_: &u32| {
            probes.result(ProbeKind::Readiness, &probe, false, seconds(3)) == Judgement::Early
        };
        assert_eq!((0..20).filter(early).count(), 8, "they end with the period");
    }

    #[test]
    fn thresholds_count_results_in_a_row() {
        let probe = Probe {
            failure_threshold: 2,
            success_threshold: 2,
            ..container().readiness_probe.expect("a probe")
        };
        let mut probes = Probes::new(&container(), seconds(0));
        let results = [
            (true, Judgement::Open),
            (true, Judgement::Healthy),
            (false, Judgement::Open),
            (true, Judgement::Open),
            (false, Judgement::Open),
            (false, Judgement::Unhealthy),
        ];
        for (success, judgement) in results {
            let result = probes.result(ProbeKind::Readiness, &probe, success, seconds(7));
            assert_eq!(result, judgement);
        }
        assert_eq!(probes.next_due(true), Some(seconds(12)));
    }
}
