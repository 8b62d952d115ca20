//! The machine alone: facts and times in, actions and status out.

use std::net::IpAddr;

use model::Timestamp;
use serde_json::{Value, json};

use super::status::{patch, status};
use super::{Action, ContainerState, Ended, Fact, ImageFailure, Machine, Record, StartFailure};
use crate::pod::{Pod, ProbeKind};

struct Driver {
    machine: Machine,
    now: Timestamp,
}

impl Driver {
    fn new(spec: Value) -> Self {
        let now = Timestamp::from_seconds(1_000);
        Self { machine: Machine::new(pod(spec), Record::default(), now), now }
    }

    /// A pod whose sandbox is there, with the actions that follow.
    fn ready(spec: Value) -> (Self, Vec<String>) {
        let mut driver = Self::new(spec);
        assert_eq!(driver.next(), ["create sandbox"]);
        let address: IpAddr = [10, 244, 1, 5].into();
        let actions = driver.learn(Fact::SandboxReady(vec![address]));
        (driver, actions)
    }

    fn next(&mut self) -> Vec<String> {
        self.machine.next(self.now).iter().map(describe).collect()
    }

    fn learn(&mut self, fact: Fact) -> Vec<String> {
        let notes = self.machine.learn(fact, self.now);
        let mut lines: Vec<String> =
            notes.iter().map(|note| format!("event {}", note.reason)).collect();
        lines.extend(self.next());
        lines
    }

    fn wait(&mut self, seconds: i64) -> Vec<String> {
        self.now = Timestamp::from_seconds(self.now.seconds() + seconds);
        self.next()
    }

    fn id(&self, container: &str) -> String {
        let record = &self.machine.record.containers[container];
        record.active_id().expect("an active container").to_owned()
    }

    fn started(&mut self, container: &str) -> Vec<String> {
        let fact = Fact::Started {
            container: container.into(),
            id: self.id(container),
            started_at: self.now,
        };
        self.learn(fact).into_iter().filter(|line| !line.starts_with("event")).collect()
    }

    fn ended(&mut self, container: &str, code: i32) -> Vec<String> {
        let ended = Ended {
            id: self.id(container),
            code,
            reason: if code == 0 { "Completed" } else { "Error" }.into(),
            message: String::new(),
            started_at: self.now,
            finished_at: self.now,
        };
        self.learn(Fact::Ended { container: container.into(), ended })
    }

    fn probed(&mut self, container: &str, kind: ProbeKind, ok: bool) -> Vec<String> {
        let result = if ok { Ok(()) } else { Err("no".to_owned()) };
        self.learn(Fact::Probed { container: container.into(), kind, result })
    }

    fn delete(&mut self, grace_s: i64) -> Vec<String> {
        let mut pod = self.machine.pod.clone();
        pod.metadata.deletion_timestamp = Some(self.now);
        pod.metadata.deletion_grace_period_seconds = Some(grace_s);
        self.learn(Fact::Updated(Box::new(pod)))
    }

    fn status(&mut self) -> Value {
        status(&mut self.machine, &[], self.now)
    }

    fn phase(&mut self) -> String {
        self.status()["phase"].as_str().unwrap_or_default().to_owned()
    }
}

fn pod(spec: Value) -> Pod {
    let metadata = json!({"name": "p", "namespace": "n", "uid": "0a-1b"});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("a pod")
}

fn describe(action: &Action) -> String {
    match action {
        Action::CreateSandbox => "create sandbox".into(),
        Action::RemoveSandbox => "remove sandbox".into(),
        Action::Start { container, restarts, .. } => format!("start {container} {restarts}"),
        Action::PostStart { container, .. } => format!("hook {container}"),
        Action::Stop { container, grace_s } => format!("stop {container} {grace_s}"),
        Action::Kill { container } => format!("kill {container}"),
        Action::Probe { container, kind } => format!("probe {container} {kind:?}"),
        Action::Finish => "finish".into(),
        Action::Emit(note) => format!("event {}", note.reason),
    }
}

#[test]
fn back_off_doubles_from_ten_seconds_to_five_minutes_and_is_forgotten() {
    let (mut driver, actions) = Driver::ready(json!({"containers": [{"name": "a"}]}));
    assert_eq!(actions, ["start a 0"]);
    driver.started("a");
    assert_eq!(driver.ended("a", 1), ["start a 1"], "the first restart waits for nothing");
    let waits = [10, 20, 40, 80, 160, 300, 300];
    for (index, wait) in waits.into_iter().enumerate() {
        driver.started("a");
        assert_eq!(driver.ended("a", 1), ["event BackOff"]);
        let reason = driver.status()["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
        assert_eq!(reason, "CrashLoopBackOff");
        let deadline = driver.machine.next_deadline().expect("a deadline");
        assert_eq!(deadline.seconds() - driver.now.seconds(), wait);
        assert!(driver.wait(wait - 1).is_empty(), "too early");
        assert_eq!(driver.wait(1), [format!("start a {}", index + 2)]);
    }
    driver.started("a");
    driver.wait(601);
    assert_eq!(driver.ended("a", 1), ["start a 9"], "a long run earns a fresh start");
}

#[test]
fn init_containers_run_in_order_and_their_failure_follows_the_policy() {
    let spec = |policy: &str| {
        json!({"restartPolicy": policy, "containers": [{"name": "main"}],
            "initContainers": [{"name": "one"}, {"name": "two"}]})
    };
    let (mut driver, actions) = Driver::ready(spec("Always"));
    assert_eq!(actions, ["start one 0"]);
    driver.started("one");
    assert_eq!(driver.phase(), "Pending");
    assert_eq!(driver.ended("one", 1), ["start one 1"]);
    driver.started("one");
    assert_eq!(driver.ended("one", 0), ["start two 0"]);
    driver.started("two");
    assert_eq!(driver.ended("two", 0), ["start main 0"]);
    driver.started("main");
    assert_eq!(driver.phase(), "Running");
    let (mut driver, _) = Driver::ready(spec("Never"));
    driver.started("one");
    assert!(driver.ended("one", 1).is_empty(), "its network refuses clients for a moment");
    assert_eq!(driver.wait(1), ["remove sandbox"]);
    assert_eq!(driver.phase(), "Failed");
}

#[test]
fn sidecars_start_before_and_stop_after_the_others() {
    let (mut driver, actions) = Driver::ready(json!({"containers": [{"name": "main"}],
        "initContainers": [{"name": "side", "restartPolicy": "Always"}]}));
    assert_eq!(actions, ["start side 0"]);
    assert_eq!(driver.started("side"), ["start main 0"]);
    driver.started("main");
    assert_eq!(driver.ended("side", 0), ["start side 1"], "a sidecar always restarts");
    driver.started("side");
    assert_eq!(driver.delete(30), ["event Killing", "stop main 30"]);
    assert_eq!(driver.ended("main", 0), ["event Killing", "stop side 30"]);
    assert!(driver.ended("side", 0).is_empty(), "its network refuses clients for a moment");
    assert_eq!(driver.wait(1), ["remove sandbox"]);
    assert_eq!(driver.learn(Fact::SandboxRemoved), ["finish"]);
    assert!(driver.wait(1000).is_empty(), "asked once");
}

#[test]
fn sidecars_stop_last_to_first_in_what_is_left_of_the_grace() {
    let sidecar = |name| json!({"name": name, "restartPolicy": "Always"});
    let (mut driver, _) = Driver::ready(json!({"containers": [{"name": "main"}],
        "initContainers": [sidecar("b"), sidecar("c"), sidecar("a")]}));
    for name in ["b", "c", "a", "main"] {
        driver.started(name);
    }
    assert_eq!(driver.delete(30), ["event Killing", "stop main 30"]);
    driver.wait(10);
    assert_eq!(driver.ended("main", 0), ["event Killing", "stop a 20"]);
    driver.wait(19);
    assert_eq!(driver.ended("a", 0), ["event Killing", "stop c 2"], "a little is always left");
    driver.wait(1);
    assert_eq!(driver.ended("c", 0), ["event Killing", "stop b 2"]);
    assert_eq!(driver.wait(2), ["kill b"]);
}

#[test]
fn grace_ends_in_a_kill_and_can_only_get_shorter() {
    let (mut driver, _) = Driver::ready(json!({"containers": [{"name": "a"}]}));
    driver.started("a");
    assert_eq!(driver.delete(30), ["event Killing", "stop a 30"]);
    assert!(driver.wait(10).is_empty());
    assert!(driver.delete(600).is_empty());
    assert_eq!(driver.wait(20), ["kill a"]);
    assert!(driver.wait(20).is_empty(), "killed once");
    let (mut driver, _) = Driver::ready(json!({"containers": [{"name": "a"}]}));
    driver.started("a");
    driver.delete(30);
    assert_eq!(driver.delete(0), ["kill a"]);
    let (mut driver, _) = Driver::ready(json!({"containers": [{"name": "a"}]}));
    driver.started("a");
    assert_eq!(driver.learn(Fact::Removed), ["event Killing", "stop a 1"]);
}

#[test]
fn a_pod_that_is_active_for_as_long_as_it_may_fails() {
    let spec = json!({"activeDeadlineSeconds": 60, "terminationGracePeriodSeconds": 20,
        "containers": [{"name": "a"}]});
    let (mut driver, _) = Driver::ready(spec.clone());
    driver.started("a");
    assert!(driver.wait(59).is_empty(), "too early");
    let deadline = driver.machine.next_deadline().expect("a deadline");
    assert_eq!(deadline.seconds() - driver.now.seconds(), 1);
    assert_eq!(driver.phase(), "Running");
    assert_eq!(driver.wait(1), ["event DeadlineExceeded", "event Killing", "stop a 20"]);
    let status = driver.status();
    assert_eq!(
        (&status["phase"], &status["reason"], &status["message"]),
        (
            &json!("Failed"),
            &json!("DeadlineExceeded"),
            &json!("Pod was active on the node longer than the specified deadline"),
        )
    );
    driver.ended("a", 143);
    assert_eq!(driver.wait(1), ["remove sandbox"]);
    assert!(driver.learn(Fact::SandboxRemoved).is_empty());
    assert!(driver.wait(1000).is_empty(), "it stays as it ended");
    // The time runs while the pod waits for its network and its images, too.
    let mut driver = Driver::new(spec.clone());
    assert_eq!(driver.next(), ["create sandbox"]);
    driver.learn(Fact::SandboxFailed("no".into()));
    assert_eq!(driver.wait(60), ["event DeadlineExceeded"]);
    assert_eq!(driver.phase(), "Failed");
    // A pod that has ended, or goes, is past it.
    let (mut driver, _) = Driver::ready(spec);
    driver.started("a");
    driver.delete(100);
    assert!(driver.wait(70).is_empty());
    assert_eq!(driver.status()["reason"], Value::Null);
}

#[test]
fn a_container_counts_as_started_once_its_post_start_hook_has_ended() {
    let (mut driver, _) = Driver::ready(json!({"containers": [{"name": "a",
        "lifecycle": {"postStart": {"sleep": {"seconds": 5}}}, "livenessProbe": {}}]}));
    assert_eq!(driver.started("a"), ["hook a"], "no probe yet");
    let state = |driver: &mut Driver| driver.status()["containerStatuses"][0]["state"].clone();
    assert_eq!(state(&mut driver), json!({"waiting": {"reason": "ContainerCreating"}}));
    assert_eq!(driver.phase(), "Pending");
    let id = driver.id("a");
    let ended =
        |id: &str, result| Fact::PostStarted { container: "a".into(), id: id.into(), result };
    assert!(driver.learn(ended("another", Ok(()))).is_empty());
    assert_eq!(driver.phase(), "Pending", "an answer to another start");
    assert_eq!(driver.learn(ended(&id, Ok(()))), ["probe a Liveness"]);
    assert_eq!(driver.phase(), "Running");
    assert!(state(&mut driver)["running"].is_object());
}

#[test]
fn a_post_start_hook_that_fails_ends_its_container() {
    let (mut driver, _) = Driver::ready(json!({"terminationGracePeriodSeconds": 7,
        "containers": [{"name": "a", "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}}]}));
    driver.started("a");
    let failed = Err("a secret".to_owned());
    let fact = Fact::PostStarted { container: "a".into(), id: driver.id("a"), result: failed };
    let notes = driver.machine.learn(fact, driver.now);
    let told: Vec<(&str, &str)> =
        notes.iter().map(|note| (note.reason, note.message.as_str())).collect();
    let expected =
        [("FailedPostStartHook", "PostStartHook failed"), ("Killing", "FailedPostStartHook")];
    assert_eq!(told, expected, "what the hook printed is not told");
    assert_eq!(driver.next(), ["stop a 7"]);
    assert_eq!(driver.ended("a", 143), ["start a 1"]);
    assert_eq!(driver.started("a"), ["hook a"], "each start has its own");
    // A pod that is deleted while the hook runs does not wait for it.
    assert_eq!(driver.delete(7), ["event Killing", "stop a 7"]);
}

#[test]
fn a_hook_that_takes_all_of_the_grace_leaves_the_container_a_moment() {
    let spec = json!({"containers": [{"name": "a",
        "lifecycle": {"preStop": {"sleep": {"seconds": 60}}}}]});
    let asked = |hook_failed| Fact::StopAsked { container: "a".into(), hook_failed };
    let (mut driver, _) = Driver::ready(spec.clone());
    driver.started("a");
    assert_eq!(driver.delete(10), ["event Killing", "stop a 10"]);
    assert!(driver.wait(10).is_empty());
    assert_eq!(driver.learn(asked(true)), ["event FailedPreStopHook"]);
    assert!(driver.wait(1).is_empty());
    assert_eq!(driver.wait(1), ["kill a"]);
    // One that ends in time does not lengthen the grace.
    let (mut driver, _) = Driver::ready(spec.clone());
    driver.started("a");
    driver.delete(10);
    driver.wait(3);
    assert!(driver.learn(asked(false)).is_empty());
    assert!(driver.wait(6).is_empty());
    assert_eq!(driver.wait(1), ["kill a"]);
    // One that never ends does neither: the end is bounded.
    let (mut driver, _) = Driver::ready(spec);
    driver.started("a");
    driver.delete(10);
    assert!(driver.wait(11).is_empty());
    assert_eq!(driver.wait(1), ["kill a"]);
}

#[test]
fn a_deleted_pod_tells_how_it_ended_before_it_goes() {
    for (code, phase) in [(0, "Succeeded"), (143, "Failed")] {
        for policy in ["Always", "Never"] {
            let spec = json!({"containers": [{"name": "a"}], "restartPolicy": policy});
            let (mut driver, _) = Driver::ready(spec);
            driver.started("a");
            driver.delete(30);
            assert_eq!(driver.phase(), "Running", "it has its grace");
            driver.ended("a", code);
            assert_eq!(driver.phase(), phase, "{policy}, exit code {code}");
        }
    }
}

#[test]
fn a_pod_that_is_deleted_before_it_starts_leaves_at_once() {
    let mut driver = Driver::new(json!({"containers": [{"name": "a"}]}));
    assert_eq!(driver.delete(30), ["finish"]);
    let mut driver = Driver::new(json!({"containers": [{"name": "a"}]}));
    driver.next();
    assert!(driver.delete(30).is_empty(), "the sandbox under way comes first");
    assert_eq!(driver.learn(Fact::SandboxReady(vec![])), ["remove sandbox"]);
    // A container whose start is under way is stopped when it runs, not before.
    let (mut driver, actions) = Driver::ready(json!({"containers": [{"name": "a"}]}));
    assert_eq!(actions, ["start a 0"]);
    assert!(driver.delete(30).is_empty());
    assert_eq!(driver.started("a"), ["stop a 30"]);
}

#[test]
fn a_container_that_is_added_runs_once_and_changes_nothing_else() {
    let (mut driver, _) = Driver::ready(json!({"containers": [{"name": "a"}],
        "initContainers": [{"name": "init"}]}));
    let mut pod = driver.machine.pod.clone();
    pod.spec.ephemeral_containers =
        vec![serde_json::from_value(json!({"name": "debug"})).expect("a container")];
    let started = driver.learn(Fact::Updated(Box::new(pod)));
    assert_eq!(started, ["start debug 0"], "it does not wait for init containers");
    driver.started("debug");
    driver.started("init");
    assert_eq!(driver.ended("init", 0), ["start a 0"]);
    driver.started("a");
    let state = |driver: &mut Driver| {
        let status = &driver.status()["ephemeralContainerStatuses"];
        status[0]["state"].as_object().and_then(|state| state.keys().next().cloned())
    };
    assert_eq!(state(&mut driver).as_deref(), Some("running"));
    assert!(driver.ended("debug", 1).is_empty(), "it is not started again");
    assert_eq!(state(&mut driver).as_deref(), Some("terminated"));
    assert_eq!(driver.phase(), "Running");
    assert_eq!(driver.delete(30), ["event Killing", "stop a 30"]);
}

#[test]
fn a_start_that_is_withdrawn_holds_nothing_up() {
    let (mut driver, _) = Driver::ready(json!({"containers": [{"name": "a"}]}));
    assert!(driver.delete(30).is_empty(), "the image is still on its way");
    let withdrawn =
        |id| Fact::NotStarted { container: "a".into(), id, failure: StartFailure::Withdrawn };
    assert!(driver.learn(withdrawn("another".into())).is_empty());
    assert_eq!(driver.learn(withdrawn(driver.id("a"))), ["remove sandbox"]);
}

#[test]
fn probes_decide_readiness_restarts_and_each_other() {
    let (mut driver, _) = Driver::ready(json!({"containers": [{"name": "a",
        "startupProbe": {"periodSeconds": 1}, "livenessProbe": {"failureThreshold": 2},
        "readinessProbe": {"periodSeconds": 1, "failureThreshold": 1}}]}));
    let ready = |driver: &mut Driver| driver.status()["containerStatuses"][0]["ready"].clone();
    assert_eq!(driver.started("a"), ["probe a Startup"]);
    assert_eq!(driver.probed("a", ProbeKind::Startup, false), ["event Unhealthy"]);
    assert_eq!(driver.wait(1), ["probe a Startup"]);
    let both = ["probe a Liveness", "probe a Readiness"];
    assert_eq!(driver.probed("a", ProbeKind::Startup, true), both);
    assert_eq!(ready(&mut driver), false);
    driver.probed("a", ProbeKind::Readiness, true);
    assert_eq!(ready(&mut driver), true);
    driver.probed("a", ProbeKind::Readiness, false);
    assert_eq!(ready(&mut driver), false);
    driver.probed("a", ProbeKind::Liveness, false);
    driver.wait(10);
    let actions = driver.probed("a", ProbeKind::Liveness, false);
    assert_eq!(actions, ["event Unhealthy", "event Killing", "stop a 30"]);
    assert_eq!(driver.ended("a", 143), ["start a 1"]);
}

#[test]
fn a_lost_sandbox_is_removed_made_again_and_starts_over() {
    let (mut driver, _) = Driver::ready(json!({"containers": [{"name": "main"}],
        "initContainers": [{"name": "init"}]}));
    driver.started("init");
    driver.ended("init", 0);
    driver.started("main");
    let actions = driver.learn(Fact::SandboxLost);
    assert_eq!(actions, ["event SandboxChanged", "remove sandbox"]);
    assert_eq!(driver.phase(), "Running");
    assert_eq!(driver.learn(Fact::SandboxRemoved), ["create sandbox"]);
    assert_eq!(driver.learn(Fact::SandboxReady(vec![])), ["start init 1"]);
    driver.started("init");
    assert_eq!(driver.ended("init", 0), ["start main 1"]);
    // A pod that had nothing left to run is not made again.
    let (mut driver, _) =
        Driver::ready(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}));
    driver.started("a");
    assert_eq!(driver.learn(Fact::SandboxLost), ["remove sandbox"]);
    driver.learn(Fact::SandboxRemoved);
    assert!(driver.wait(1000).is_empty());
}

#[test]
fn a_sandbox_that_fails_is_tried_again_ever_later() {
    let mut driver = Driver::new(json!({"containers": [{"name": "a"}]}));
    driver.next();
    for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
        let failed = driver.learn(Fact::SandboxFailed("no address".into()));
        assert_eq!(failed, ["event FailedCreatePodSandBox"]);
        assert!(driver.wait(wait - 1).is_empty());
        assert_eq!(driver.wait(1), ["create sandbox"]);
    }
}

#[test]
fn answers_to_an_older_start_change_nothing() {
    let (mut driver, _) = Driver::ready(json!({"containers": [{"name": "a"}]}));
    let first = driver.id("a");
    assert_eq!(driver.ended("a", 1), ["start a 1"], "its end came before the answer to its start");
    let second = driver.id("a");
    assert_ne!(first, second);
    let late = Fact::Started { container: "a".into(), id: first.clone(), started_at: driver.now };
    driver.learn(late);
    assert!(matches!(driver.machine.record.containers["a"].state, ContainerState::Starting { .. }));
    let failure = StartFailure::Run("late".into());
    let late = Fact::NotStarted { container: "a".into(), id: first, failure };
    assert!(driver.learn(late).is_empty());
    assert_eq!(driver.id("a"), second);
}

#[test]
fn a_new_runtime_goes_on_where_the_old_one_was_killed() {
    let again = |driver: &Driver| {
        let text = serde_json::to_string(&driver.machine.record).expect("a record");
        let record = serde_json::from_str(&text).expect("a record");
        let machine = Machine::new(driver.machine.pod.clone(), record, driver.now);
        Driver { machine, now: driver.now }
    };
    let mut driver = Driver::new(json!({"containers": [{"name": "a"}]}));
    driver.next();
    let mut second = again(&driver);
    assert_eq!(second.next(), ["remove sandbox"], "one that was half made");
    let (mut driver, _) = Driver::ready(json!({"containers": [{"name": "a",
        "lifecycle": {"postStart": {"sleep": {"seconds": 5}}}}]}));
    driver.started("a");
    let mut second = again(&driver);
    assert_eq!(second.next(), ["hook a"], "what came of it nobody knows");
    let (mut driver, _) = Driver::ready(json!({"containers": [{"name": "a"}]}));
    driver.started("a");
    let before = driver.status();
    let mut second = again(&driver);
    assert!(second.next().is_empty());
    assert_eq!(second.status(), before);
    driver.delete(30);
    let mut second = again(&driver);
    assert_eq!(second.next(), ["stop a 30"], "whether the signal was sent is not known");
    assert_eq!(second.wait(30), ["kill a"]);
}

#[test]
fn conditions_keep_the_time_of_their_change() {
    let (mut driver, _) = Driver::ready(json!({"containers": [{"name": "a"}]}));
    let ready = |driver: &mut Driver| {
        let status = driver.status();
        let all = status["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|one| one["type"] == "Ready").expect("Ready")
    };
    let first = ready(&mut driver);
    assert_eq!(first["reason"], "ContainersNotReady");
    assert_eq!(first["message"], "containers with unready status: [a]");
    driver.wait(5);
    assert_eq!(ready(&mut driver), first);
    driver.started("a");
    let second = ready(&mut driver);
    assert_eq!(second["status"], "True");
    assert_ne!(second["lastTransitionTime"], first["lastTransitionTime"]);
}

/// The pod in the API after the driver's status was written to it.
fn reported(driver: &mut Driver, in_api: &Value) -> Value {
    let status = driver.status();
    let patch = patch(&driver.machine.pod, &status);
    let row = store::registry::find("", "v1", "pods").expect("a row");
    store::patch::apply(row, store::PatchKind::Strategic, in_api, &patch).expect("a patch")
}

#[test]
fn what_others_say_meanwhile_stays_and_what_they_take_back_does_not_return() {
    let (mut driver, _) = Driver::ready(json!({"containers": [{"name": "a"}]}));
    let scheduled = json!({"type": "PodScheduled", "status": "True"});
    let gate = json!({"type": "example.org/gate", "status": "True"});
    driver.machine.pod.status.conditions = vec![scheduled.clone(), gate];
    // We have not heard yet that the gate is gone, and that the pod is being evicted.
    let target = json!({"type": "DisruptionTarget", "status": "True",
        "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"});
    let in_api = json!({"metadata": {"name": "p", "namespace": "n", "uid": "0a-1b"}, "status": {
        "phase": "Pending",
        "podIPs": [{"ip": "10.244.1.4"}],
        "conditions": [scheduled.clone(), target.clone()],
    }});
    let first = reported(&mut driver, &in_api);
    let kinds = |pod: &Value| -> Vec<String> {
        let all = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.iter().map(|one| one["type"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let wanted = [
        "PodReadyToStartContainers",
        "Initialized",
        "Ready",
        "ContainersReady",
        "PodScheduled",
        "DisruptionTarget",
    ];
    assert_eq!(kinds(&first), wanted);
    assert_eq!(first["status"]["conditions"][5], target);
    assert_eq!(first["status"]["podIPs"], json!([{"ip": "10.244.1.5"}]), "no address that it had");
    assert_eq!(first["status"]["conditions"][2]["reason"], "ContainersNotReady");
    driver.started("a");
    let second = reported(&mut driver, &first);
    assert_eq!(kinds(&second), wanted);
    let ready = &second["status"]["conditions"][2];
    assert_eq!(
        (&ready["status"], ready.get("reason"), ready.get("message")),
        (&json!("True"), None, None)
    );
}

#[test]
fn a_pod_is_ready_once_others_have_opened_its_gates() {
    let gate = |name: &str| json!({"conditionType": name});
    let (mut driver, _) = Driver::ready(json!({"containers": [{"name": "a"}],
        "readinessGates": [gate("a.b/one"), gate("a.b/two")]}));
    let told = |driver: &mut Driver| -> Vec<Value> {
        let status = driver.status();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.iter().find(|one| one["type"] == "Ready").expect("Ready");
        ["status", "reason", "message"].map(|name| ready[name].clone()).to_vec()
    };
    let unready = json!("containers with unready status: [a]");
    assert_eq!(told(&mut driver), [json!("False"), json!("ContainersNotReady"), unready]);
    driver.started("a");
    let why = "corresponding condition of pod readiness gate \"a.b/one\" does not exist., \
               corresponding condition of pod readiness gate \"a.b/two\" does not exist.";
    let closed = |why: &str| [json!("False"), json!("ReadinessGatesNotReady"), json!(why)];
    assert_eq!(told(&mut driver), closed(why));
    let set = |driver: &mut Driver, two: &str| {
        let mut pod = driver.machine.pod.clone();
        pod.status.conditions = vec![
            json!({"type": "a.b/one", "status": "True"}),
            json!({"type": "a.b/two", "status": two}),
        ];
        driver.learn(Fact::Updated(Box::new(pod)));
    };
    set(&mut driver, "False");
    let why = "the status of pod readiness gate \"a.b/two\" is not \"True\", but False";
    assert_eq!(told(&mut driver), closed(why));
    let conditions = driver.status()["conditions"].clone();
    assert_eq!(
        (&conditions[3]["type"], &conditions[3]["status"]),
        (&json!("ContainersReady"), &json!("True"))
    );
    set(&mut driver, "True");
    assert_eq!(told(&mut driver), [json!("True"), Value::Null, Value::Null]);
}

#[test]
fn images_that_do_not_exist_are_tried_again_ever_later() {
    let (mut driver, _) = Driver::ready(json!({"containers": [{"name": "a", "image": "x"}]}));
    let reason = |driver: &mut Driver| {
        driver.status()["containerStatuses"][0]["state"]["waiting"]["reason"].clone()
    };
    for (wait, expected) in
        [(10, "ErrImagePull"), (10, "ImagePullBackOff"), (20, "ImagePullBackOff")]
    {
        let failure = StartFailure::Image(ImageFailure::Pull("no such image".into()));
        let fact = Fact::NotStarted { container: "a".into(), id: driver.id("a"), failure };
        let events = ["event Failed", "event Failed", "event BackOff", "event Failed"];
        assert_eq!(driver.learn(fact), events);
        assert_eq!(reason(&mut driver), expected);
        assert!(driver.wait(wait - 1).is_empty());
        assert_eq!(driver.wait(1), ["start a 0"], "no container was made: no restart is counted");
    }
}
