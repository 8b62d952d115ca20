//! What the memory of a pod asks for next.

use std::time::Duration;

use model::Timestamp;

use super::{
    Action, ContainerRecord, ContainerState, EVICTED_GRACE_S, Hook, LAST_GRACE_S, Machine, Note,
    OVERDUE_MESSAGE, OVERDUE_REASON, Outcome, REMOVED_GRACE_S, SandboxState, Stop, is_due,
    restarts,
};

/// How long a sandbox stays after its last container, milliseconds. Until every node knows that the
/// pod is gone, clients are still sent to it: its own network refuses them at once, where an address
/// that is no more would let them wait.
pub(super) const LINGER_MS: u64 = 300;

impl Machine {
    /// What to do now. Each action is given once; its answer, a fact, moves the pod on.
    pub fn next(&mut self, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.record.sandbox.state == SandboxState::Removing && !self.removal_asked {
            self.removal_asked = true;
            actions.push(Action::RemoveSandbox);
        }
        actions.extend(self.end_overdue(now));
        if !self.is_ending() {
            match self.record.sandbox.state {
                SandboxState::Absent if is_due(self.record.sandbox.retry_at, now) => {
                    self.record.sandbox.state = SandboxState::Creating;
                    self.record.sandbox.retry_at = None;
                    actions.push(Action::CreateSandbox);
                }
                SandboxState::Absent | SandboxState::Creating | SandboxState::Removing => {}
                SandboxState::Ready => {
                    self.drive_containers(now, &mut actions);
                    self.drive_hooks(&mut actions);
                    self.drive_probes(now, &mut actions);
                }
            }
        }
        if self.is_ending() {
            self.wind_down(now, &mut actions);
        }
        self.drive_stops(now, &mut actions);
        actions
    }

    /// Ends a pod that has been active for as long as it may, whatever of it runs by then.
    fn end_overdue(&mut self, now: Timestamp) -> Option<Action> {
        if self.is_ending() || self.active_until().is_none_or(|until| until > now) {
            return None;
        }
        self.record.finished = Some(Outcome::Failed);
        self.record.overdue = true;
        Some(Action::Emit(Note::pod(false, OVERDUE_REASON, OVERDUE_MESSAGE.into())))
    }

    /// Init containers one after another, then all others together. Containers that were added to
    /// look into the pod wait for none of them.
    fn drive_containers(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let names = |containers: &[crate::pod::Container]| -> Vec<String> {
            containers.iter().map(|container| container.name.clone()).collect()
        };
        for name in names(&self.pod.spec.ephemeral_containers) {
            if self.exit_code(&name).is_none() {
                self.start_if_due(&name, now, actions);
            }
        }
        let (inits, mains) =
            (names(&self.pod.spec.init_containers), names(&self.pod.spec.containers));
        for name in &inits {
            let is_sidecar = self.pod.container(name).is_some_and(|init| init.is_sidecar());
            let Some(record) = self.record.containers.get(name) else { return };
            let done = match &record.state {
                ContainerState::Ended(ended) => !is_sidecar && ended.code == 0,
                ContainerState::Running { .. } => is_sidecar && record.started,
                _ => false,
            };
            if !done && self.has_failed_for_good(name) {
                self.record.finished = Some(Outcome::Failed);
                return;
            }
            // Once the pod is up, a sidecar that restarts holds nobody back.
            if !done {
                self.start_if_due(name, now, actions);
                if !self.record.initialized {
                    return;
                }
            }
        }
        self.record.initialized = true;
        for name in &mains {
            if !self.has_ended_for_good(name) {
                self.start_if_due(name, now, actions);
            }
        }
        if !mains.is_empty() && mains.iter().all(|name| self.has_ended_for_good(name)) {
            let failed = mains.iter().any(|name| self.exit_code(name) != Some(0));
            self.record.finished = Some(if failed { Outcome::Failed } else { Outcome::Succeeded });
        }
    }

    fn start_if_due(&mut self, name: &str, now: Timestamp, actions: &mut Vec<Action>) {
        let uid = self.pod.metadata.uid.clone();
        let Some(record) = self.record.containers.get_mut(name) else { return };
        if record.is_active() || !is_due(record.start_at, now) {
            return;
        }
        if let Some(ended) = record.ended().cloned() {
            record.last = Some(ended);
            record.restarts += 1;
        }
        let id = container_id(&uid, name, record.restarts);
        record.state = ContainerState::Starting { id: id.clone() };
        record.start_at = None;
        actions.push(Action::Start { container: name.into(), id, restarts: record.restarts });
    }

    fn exit_code(&self, name: &str) -> Option<i32> {
        let record = self.record.containers.get(name)?;
        record.ended().map(|ended| ended.code)
    }

    fn has_ended_for_good(&self, name: &str) -> bool {
        match (self.exit_code(name), self.pod.container(name)) {
            (Some(code), Some(container)) => !restarts(container, &self.pod, code),
            _ => false,
        }
    }

    fn has_failed_for_good(&self, name: &str) -> bool {
        self.exit_code(name).is_some_and(|code| code != 0) && self.has_ended_for_good(name)
    }

    fn drive_hooks(&mut self, actions: &mut Vec<Action>) {
        for (name, record) in &mut self.record.containers {
            if let ContainerState::Running { id, .. } = &record.state
                && record.hook == Some(Hook::Due)
                && record.stop.is_none()
            {
                record.hook = Some(Hook::Asked);
                actions.push(Action::PostStart { container: name.clone(), id: id.clone() });
            }
        }
    }

    fn drive_probes(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        for (name, probes) in &mut self.probes {
            let Some(record) = self.record.containers.get(name) else { continue };
            if record.is_running() && record.stop.is_none() {
                let due = probes.take_due(record.started, now);
                let probe = |kind| Action::Probe { container: name.clone(), kind };
                actions.extend(due.into_iter().map(probe));
            }
        }
    }

    /// Stops everything, sidecars last (KEP-753), then removes the sandbox, then, for a deleted pod, the
    /// object itself: whoever sees it gone knows that nothing of it is left (invariant 5).
    fn wind_down(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        self.record.ending_since.get_or_insert(now);
        let to_stop = self.to_stop();
        for name in &to_stop {
            self.begin_stop(name, now, actions);
        }
        if !to_stop.is_empty() {
            return;
        }
        if self.pod.metadata.deletion_timestamp.is_some() && self.record.finished.is_none() {
            // Whoever waits for its end, as a Job does, hears how it was.
            self.record.finished = Some(self.outcome());
        }
        match self.record.sandbox.state {
            SandboxState::Ready => {
                if self.record.containers.values().any(ContainerRecord::has_ended) {
                    let remove_at = now.after(Duration::from_millis(LINGER_MS));
                    let remove_at = *self.record.sandbox.remove_at.get_or_insert(remove_at);
                    if remove_at > now {
                        return;
                    }
                }
                self.record.sandbox.remove_at = None;
                self.record.sandbox.state = SandboxState::Removing;
                self.removal_asked = true;
                actions.push(Action::RemoveSandbox);
            }
            SandboxState::Creating | SandboxState::Removing => {}
            SandboxState::Absent => {
                let deleted = self.record.removed || self.pod.metadata.deletion_timestamp.is_some();
                if deleted && !self.finish_asked {
                    self.finish_asked = true;
                    actions.push(Action::Finish);
                }
            }
        }
    }

    /// How a pod that was stopped has ended: well only if all of its containers have.
    fn outcome(&self) -> Outcome {
        let mains = &self.pod.spec.containers;
        let well = mains.iter().all(|container| self.exit_code(&container.name) == Some(0));
        if well { Outcome::Succeeded } else { Outcome::Failed }
    }

    /// All that runs but sidecars; where nothing else does, the last of these.
    fn to_stop(&self) -> Vec<String> {
        let is_active = |name: &String| {
            self.record.containers.get(name).is_some_and(ContainerRecord::is_active)
        };
        let inits = self.pod.spec.init_containers.iter();
        let sidecars = inits.filter(|init| init.is_sidecar()).map(|init| init.name.clone());
        let sidecars: Vec<String> = sidecars.filter(is_active).collect();
        let names = self.record.containers.keys().cloned();
        let others: Vec<String> =
            names.filter(|name| is_active(name) && !sidecars.contains(name)).collect();
        if others.is_empty() {
            sidecars.into_iter().next_back().into_iter().collect()
        } else {
            others
        }
    }

    /// Seconds between SIGTERM and SIGKILL.
    fn grace_s(&self) -> i64 {
        let grace_s = match (self.record.removed, &self.record.evicted) {
            (true, _) => REMOVED_GRACE_S as i64,
            (false, Some(_)) => EVICTED_GRACE_S.min(self.pod.grace_s()),
            (false, None) => self.pod.grace_s(),
        };
        grace_s.max(0)
    }

    /// What is left of them for a container whose turn to stop is now.
    fn grace_left_s(&self, now: Timestamp) -> i64 {
        let grace_s = self.grace_s();
        let since = self.record.ending_since.unwrap_or(now);
        let elapsed_s = i64::try_from(now.since(since).as_secs()).unwrap_or(i64::MAX);
        grace_s.saturating_sub(elapsed_s).max(grace_s.min(LAST_GRACE_S))
    }

    fn begin_stop(&mut self, name: &str, now: Timestamp, actions: &mut Vec<Action>) {
        let after_s = |seconds: i64| now.after(Duration::from_secs(seconds as u64));
        let shortened = after_s(self.grace_s());
        let grace_s = self.grace_left_s(now);
        let Some(container) = self.pod.container(name) else { return };
        let stop = Stop::new(container, grace_s, now);
        let Some(record) = self.record.containers.get_mut(name) else { return };
        if !record.is_running() {
            return; // Being started: the answer comes first.
        }
        match &mut record.stop {
            // A later deletion may shorten the grace, never lengthen it.
            Some(stop) => stop.kill_at = stop.kill_at.min(shortened),
            None => {
                record.stop = Some(stop);
                let message = format!("Stopping container {name}");
                actions.push(Action::Emit(Note::container(false, "Killing", message, name)));
            }
        }
    }

    fn drive_stops(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        for (name, record) in &mut self.record.containers {
            let is_running = record.is_running();
            let Some(stop) = record.stop.as_mut().filter(|_| is_running) else { continue };
            if !stop.asked {
                stop.asked = true;
                actions.push(Action::Stop { container: name.clone(), grace_s: stop.grace_s });
            }
            if !stop.killed && stop.kill_at <= now {
                stop.killed = true;
                actions.push(Action::Kill { container: name.clone() });
            }
        }
    }
}

/// 64 hexadecimal digits, as users of runtimes know them: the pod, the container, the start.
fn container_id(uid: &str, name: &str, restarts: u32) -> String {
    let pod: String = uid.chars().filter(char::is_ascii_hexdigit).take(32).collect();
    // FNV-1a: tells the containers of one pod apart.
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, fold);
    format!("{pod:0>32}{hash:016x}{restarts:016x}")
}
