//! How each fact changes the memory of a pod.

use std::time::Duration;

use model::Timestamp;

use super::{
    BACKOFF_FIRST_S, BACKOFF_FORGOTTEN_S, BACKOFF_LIMIT_S, CONFIG_RETRY_S, ContainerRecord,
    ContainerState, Ended, Hook, ImageFailure, Judgement, LAST_GRACE_S, Machine, Note, Outcome,
    SANDBOX_RETRY_LIMIT_S, SANDBOX_RETRY_S, SandboxState, StartFailure, Stop, restarts,
};
use crate::pod::{Container, ProbeKind};

impl Machine {
    pub(super) fn sandbox_failed(
        &mut self,
        reason: &'static str,
        message: String,
        now: Timestamp,
    ) -> Note {
        let sandbox = &mut self.record.sandbox;
        sandbox.state = SandboxState::Absent;
        let wait_s = SANDBOX_RETRY_S
            .checked_shl(sandbox.failures.min(16))
            .map_or(SANDBOX_RETRY_LIMIT_S, |wait_s| wait_s.min(SANDBOX_RETRY_LIMIT_S));
        sandbox.failures = sandbox.failures.saturating_add(1);
        sandbox.retry_at = Some(now.after(Duration::from_secs(wait_s)));
        Note::pod(true, reason, message)
    }

    /// A pod that ends anyway is left to its end.
    pub(super) fn evicted(&mut self, message: String) -> Option<Note> {
        if self.is_ending() {
            return None;
        }
        self.record.finished = Some(Outcome::Failed);
        self.record.evicted = Some(message.clone());
        Some(Note::pod(true, "Evicted", message))
    }

    /// The kernel ended every process of the pod with the pause process.
    pub(super) fn sandbox_lost(&mut self, now: Timestamp) -> Vec<Note> {
        if self.record.sandbox.state != SandboxState::Ready {
            return Vec::new();
        }
        self.record.sandbox.state = SandboxState::Removing;
        self.record.sandbox.retry_at = None;
        self.record.initialized = false;
        let mut lost = Vec::new();
        for (name, record) in &self.record.containers {
            let (id, started_at) = match &record.state {
                ContainerState::Running { id, started_at } => (id, *started_at),
                ContainerState::Starting { id } => (id, now),
                _ => continue,
            };
            let ended = Ended {
                id: id.clone(),
                code: 137,
                reason: "Error".into(),
                message: "The pod's sandbox ended.".into(),
                started_at,
                finished_at: now,
            };
            lost.push((name.clone(), ended));
        }
        let mut notes: Vec<Note> =
            lost.into_iter().flat_map(|(name, ended)| self.ended(&name, ended)).collect();
        // The new sandbox has a new address: init containers run again, as in the kubelet.
        if !self.is_ending() && self.will_run_again() {
            for init in &self.pod.spec.init_containers {
                if let Some(record) = self.record.containers.get_mut(&init.name)
                    && let Some(ended) = record.ended().cloned()
                {
                    record.last = Some(ended);
                    record.restarts += 1;
                    record.state = ContainerState::default();
                    record.start_at = None;
                }
            }
            let message = "Pod sandbox changed, it will be killed and re-created.";
            notes.push(Note::pod(false, "SandboxChanged", message.into()));
        }
        notes
    }

    fn will_run_again(&self) -> bool {
        self.pod.spec.containers.iter().any(|container| {
            let record = self.record.containers.get(&container.name);
            record
                .and_then(ContainerRecord::ended)
                .is_none_or(|ended| restarts(container, &self.pod, ended.code))
        })
    }

    pub(super) fn started(&mut self, name: &str, id: &str, started_at: Timestamp) -> Vec<Note> {
        let Some(container) = self.pod.container(name) else { return Vec::new() };
        let (startup, readiness) =
            (container.startup_probe.is_some(), container.readiness_probe.is_some());
        let has_hook = container.lifecycle.post_start.is_some();
        let Some(record) = self.record.containers.get_mut(name) else { return Vec::new() };
        // The end of a short run may be known before the answer to its start.
        if record.is_starting(id) {
            record.state = ContainerState::Running { id: id.to_owned(), started_at };
            record.start_at = None;
            record.hook = has_hook.then_some(Hook::Due);
            if !has_hook {
                record.started = !startup;
                record.ready = !startup && !readiness;
                self.begin_probes(name, started_at);
            }
        }
        vec![
            Note::container(false, "Created", format!("Created container: {name}"), name),
            Note::container(false, "Started", format!("Started container {name}"), name),
        ]
    }

    /// What failed is not told: a hook's output may hold secrets (the kubelet's reason).
    pub(super) fn post_started(
        &mut self,
        name: &str,
        id: &str,
        result: &Result<(), String>,
        now: Timestamp,
    ) -> Vec<Note> {
        let Some(container) = self.pod.container(name) else { return Vec::new() };
        let (startup, readiness) =
            (container.startup_probe.is_some(), container.readiness_probe.is_some());
        let stop = Stop::new(container, self.pod.grace_s(), now);
        let Some(record) = self.record.containers.get_mut(name) else { return Vec::new() };
        let ContainerState::Running { id: running, started_at } = &record.state else {
            return Vec::new();
        };
        if running != id || record.stop.is_some() {
            return Vec::new();
        }
        if result.is_ok() {
            let started_at = *started_at;
            record.hook = None;
            record.started = !startup;
            record.ready = !startup && !readiness;
            self.begin_probes(name, started_at);
            return Vec::new();
        }
        record.stop = Some(stop);
        let (reason, failed) = ("FailedPostStartHook", "PostStartHook failed");
        vec![
            Note::container(true, reason, failed.into(), name),
            Note::container(false, "Killing", reason.into(), name),
        ]
    }

    pub(super) fn stop_asked(
        &mut self,
        name: &str,
        hook_failed: bool,
        now: Timestamp,
    ) -> Vec<Note> {
        let record = self.record.containers.get_mut(name);
        if let Some(stop) = record.and_then(|record| record.stop.as_mut()) {
            stop.signalled(now);
        }
        let note = || Note::container(true, "FailedPreStopHook", "PreStopHook failed".into(), name);
        hook_failed.then(note).into_iter().collect()
    }

    pub(super) fn not_started(
        &mut self,
        name: &str,
        id: &str,
        failure: &StartFailure,
        now: Timestamp,
    ) -> Vec<Note> {
        if !self.record.containers.get(name).is_some_and(|record| record.is_starting(id)) {
            return Vec::new();
        }
        match failure {
            StartFailure::Run(message) => {
                let ended = Ended {
                    id: id.to_owned(),
                    code: 128,
                    reason: "StartError".into(),
                    message: message.clone(),
                    started_at: now,
                    finished_at: now,
                };
                let text = format!("Error: {message}");
                let mut notes = vec![Note::container(true, "Failed", text, name)];
                notes.extend(self.ended(name, ended));
                notes
            }
            StartFailure::Config(message) => {
                self.not_created(name, "CreateContainerConfigError", message, now)
            }
            StartFailure::Create(message) => {
                self.not_created(name, "CreateContainerError", message, now)
            }
            StartFailure::Image(failure) => self.image_missing(name, failure, now),
            StartFailure::Withdrawn => {
                self.forget_start(name);
                Vec::new()
            }
        }
    }

    fn not_created(
        &mut self,
        name: &str,
        reason: &str,
        message: &str,
        now: Timestamp,
    ) -> Vec<Note> {
        let Some(record) = self.record.containers.get_mut(name) else { return Vec::new() };
        record.start_at = Some(now.after(Duration::from_secs(CONFIG_RETRY_S)));
        let (reason, text) = (reason.to_owned(), format!("Error: {message}"));
        record.state = ContainerState::Waiting { reason, message: message.to_owned() };
        vec![Note::container(true, "Failed", text, name)]
    }

    /// The first failure shows its reason, later ones that the next try waits.
    fn image_missing(&mut self, name: &str, failure: &ImageFailure, now: Timestamp) -> Vec<Note> {
        let image = self.pod.container(name).map_or("", |container| &container.image).to_owned();
        let Some(record) = self.record.containers.get_mut(name) else { return Vec::new() };
        let wait_s = record.next_backoff(now).max(BACKOFF_FIRST_S);
        record.start_at = Some(now.after(Duration::from_secs(wait_s.into())));
        let first = wait_s == BACKOFF_FIRST_S && record.backoff_s == BACKOFF_FIRST_S;
        let (reason, message) = (failure.reason(), failure.message());
        let failed = |text: String| Note::container(true, "Failed", text, name);
        let backoff = format!("Back-off pulling image \"{image}\"");
        let mut notes = vec![match failure {
            ImageFailure::Pull(message) => {
                failed(format!("Failed to pull image \"{image}\": {message}"))
            }
            ImageFailure::Never(message) => {
                Note::container(true, "ErrImageNeverPull", message.clone(), name)
            }
            ImageFailure::Name(message) => {
                Note::container(true, "InspectFailed", message.clone(), name)
            }
        }];
        notes.push(failed(format!("Error: {reason}")));
        let is_pull = matches!(failure, ImageFailure::Pull(_));
        let (reason, message) = if is_pull && !first {
            ("ImagePullBackOff", format!("{backoff}: {reason}: {message}"))
        } else {
            (reason, message.to_owned())
        };
        record.state = ContainerState::Waiting { reason: reason.into(), message };
        if is_pull {
            notes.push(Note::container(false, "BackOff", backoff, name));
            notes.push(failed("Error: ImagePullBackOff".into()));
        }
        notes
    }

    pub(super) fn ended(&mut self, name: &str, ended: Ended) -> Vec<Note> {
        self.probes.remove(name);
        let ending = self.is_ending();
        let restarts = match self.pod.container(name) {
            Some(container) => !ending && restarts(container, &self.pod, ended.code),
            None => false,
        };
        let metadata = &self.pod.metadata;
        let pod = format!("{}_{}({})", metadata.name, metadata.namespace, metadata.uid);
        let Some(record) = self.record.containers.get_mut(name) else { return Vec::new() };
        if record.active_id() != Some(ended.id.as_str()) {
            return Vec::new();
        }
        let finished_at = ended.finished_at;
        record.started = false;
        record.ready = false;
        record.hook = None;
        record.stop = None;
        record.start_at = None;
        record.state = ContainerState::Ended(ended);
        if !restarts {
            return Vec::new();
        }
        let wait_s = record.next_backoff(finished_at);
        if wait_s == 0 {
            return Vec::new();
        }
        record.start_at = Some(finished_at.after(Duration::from_secs(wait_s.into())));
        let message = format!("Back-off restarting failed container {name} in pod {pod}");
        vec![Note::container(true, "BackOff", message, name)]
    }

    pub(super) fn probed(
        &mut self,
        name: &str,
        kind: ProbeKind,
        result: Result<(), String>,
        now: Timestamp,
    ) -> Vec<Note> {
        let Some(container) = self.pod.container(name) else { return Vec::new() };
        let (Some(probe), Some(probes)) = (container.probe(kind), self.probes.get_mut(name)) else {
            return Vec::new();
        };
        let judgement = probes.result(kind, probe, result.is_ok(), now);
        if judgement == Judgement::Early {
            return Vec::new();
        }
        let grace_s = probe.termination_grace_period_seconds.unwrap_or_else(|| self.pod.grace_s());
        let stop = Stop::new(container, grace_s, now);
        let waits_for_readiness = container.readiness_probe.is_some();
        let mut notes = Vec::new();
        if let Err(message) = result {
            let text = format!("{} probe failed: {message}", kind.title());
            notes.push(Note::container(true, "Unhealthy", text, name));
        }
        let Some(record) = self.record.containers.get_mut(name) else { return notes };
        match (kind, judgement) {
            (_, Judgement::Open | Judgement::Early) => {}
            (ProbeKind::Readiness, judgement) => record.ready = judgement == Judgement::Healthy,
            (ProbeKind::Startup, Judgement::Healthy) => {
                record.started = true;
                record.ready = !waits_for_readiness;
            }
            (ProbeKind::Liveness, Judgement::Healthy) => {}
            (ProbeKind::Startup | ProbeKind::Liveness, Judgement::Unhealthy) => {
                if record.stop.is_none() && record.is_running() {
                    record.stop = Some(stop);
                    let probe = kind.title().to_lowercase();
                    let text = format!("Container {name} failed {probe} probe, will be restarted");
                    notes.push(Note::container(false, "Killing", text, name));
                }
            }
        }
        notes
    }
}

impl Stop {
    /// The stop of a container that has `grace_s` for it.
    pub(super) fn new(container: &Container, grace_s: i64, now: Timestamp) -> Self {
        let has_hook = grace_s > 0 && container.lifecycle.pre_stop.is_some();
        let wait_s = grace_s.max(0) + if has_hook { LAST_GRACE_S } else { 0 };
        let kill_at = now.after(Duration::from_secs(wait_s as u64));
        Self { grace_s, kill_at, asked: false, has_hook, killed: false }
    }

    /// SIGTERM was sent: SIGKILL follows at the end of the grace, or a moment later.
    fn signalled(&mut self, now: Timestamp) {
        if self.has_hook {
            let last = Duration::from_secs(LAST_GRACE_S as u64);
            let grace_ends =
                Timestamp::from_microseconds(self.kill_at.microseconds() - last.as_micros() as i64);
            self.has_hook = false;
            self.kill_at = self.kill_at.min(grace_ends.max(now.after(last)));
        }
    }
}

impl ContainerRecord {
    /// Seconds that the next start waits; the first after a quiet time waits for nothing.
    fn next_backoff(&mut self, at: Timestamp) -> u32 {
        let forgotten = Duration::from_secs(BACKOFF_FORGOTTEN_S);
        if self.backoff_used_at.is_some_and(|used_at| at.since(used_at) > forgotten) {
            self.backoff_s = 0;
        }
        let wait_s = self.backoff_s;
        self.backoff_s = match wait_s {
            0 => BACKOFF_FIRST_S,
            wait_s => wait_s.saturating_mul(2).min(BACKOFF_LIMIT_S),
        };
        self.backoff_used_at = Some(at);
        wait_s
    }
}
