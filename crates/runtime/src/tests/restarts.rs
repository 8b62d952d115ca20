//! What ends and begins again: crashes, probes, sandboxes.

use std::fs;

use serde_json::{Value, json};

use super::node::{Node, is_running, on_node, shell};

#[test]
fn a_crashing_container_restarts_and_the_pod_keeps_its_address() {
    on_node("crash", |node: Node| async move {
        let _runtime = node.start();
        let uid = node.api.create_pod("crash", json!({"containers": [shell("echo run; exit 3")]}));
        let backing_off = |pod: &Value| {
            let status = &pod["status"]["containerStatuses"][0];
            status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
                && status["restartCount"] == 1
                && status["lastState"]["terminated"]["exitCode"] == 3
        };
        let pod = node.api.until_pod("crash", "backing off", backing_off).await;
        let message = pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"].clone();
        let expected =
            format!("back-off 10s restarting failed container=main pod=crash_default({uid})");
        assert_eq!(message, expected);
        assert_eq!(pod["status"]["podIP"], "10.99.0.2");
        assert_eq!(pod["status"]["phase"], "Running");
        assert_eq!(node.log(&uid, "main", 0), ["run"]);
        assert_eq!(node.log(&uid, "main", 1), ["run"]);
    });
}

#[test]
fn restart_policies_decide_phases() {
    on_node("policies", |node: Node| async move {
        let _runtime = node.start();
        let cases = [
            ("never-good", "Never", "exit 0", "Succeeded", "PodCompleted"),
            ("never-bad", "Never", "exit 7", "Failed", "PodFailed"),
            ("failure-good", "OnFailure", "exit 0", "Succeeded", "PodCompleted"),
            ("signal", "Never", "sh -c 'kill -9 $PPID'; exit 9", "Failed", "PodFailed"),
        ];
        for (name, policy, script, ..) in cases {
            let spec = json!({"restartPolicy": policy, "containers": [shell(script)]});
            node.api.create_pod(name, spec);
        }
        for (name, _, _, phase, reason) in cases {
            let ended = |pod: &Value| pod["status"]["phase"] == phase;
            let pod = node.api.until_pod(name, phase, ended).await;
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions.iter().find(|one| one["type"] == "Ready").cloned();
            let ready = ready.unwrap_or_default();
            assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!(reason)));
        }
    });
}

#[test]
fn a_command_that_cannot_be_executed_is_an_error_of_its_start() {
    on_node("start-error", |node: Node| async move {
        let _runtime = node.start();
        let container =
            json!({"name": "main", "image": "localhost/host", "command": ["no-such-program"]});
        let spec = json!({"restartPolicy": "Never", "containers": [container]});
        node.api.create_pod("broken", spec);
        let failed = |pod: &Value| {
            let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
            ended["reason"] == "StartError"
                && ended["exitCode"] == 128
                && ended["message"]
                    == "exec: \"no-such-program\": executable file not found in $PATH"
        };
        node.api.until_pod("broken", "failed", failed).await;
    });
}

#[test]
fn readiness_follows_its_probe_both_ways() {
    on_node("readiness", |node: Node| async move {
        let _runtime = node.start();
        let mut main = shell("exec sleep 1000");
        main["readinessProbe"] = json!({"periodSeconds": 1, "failureThreshold": 1,
            "exec": {"command": ["test", "-e", "/shared/ready"]}});
        main["volumeMounts"] = json!([{"name": "shared", "mountPath": "/shared"}]);
        let spec = json!({"containers": [main], "volumes": [{"name": "shared", "emptyDir": {}}]});
        let uid = node.api.create_pod("ready", spec);
        let is = |wanted: bool| {
            move |pod: &Value| {
                is_running(pod) && pod["status"]["containerStatuses"][0]["ready"] == wanted
            }
        };
        node.api.until_pod("ready", "running but not ready", is(false)).await;
        let file = node.pod_state(&uid).join("volumes/shared/ready");
        fs::write(&file, "").expect("written");
        node.api.until_pod("ready", "ready", is(true)).await;
        fs::remove_file(&file).expect("removed");
        node.api.until_pod("ready", "not ready again", is(false)).await;
        let unhealthy = |(reason, message): &(String, String)| {
            reason == "Unhealthy" && message == "Readiness probe failed: exit code 1"
        };
        assert!(node.api.events("ready").iter().any(unhealthy), "{:?}", node.api.events("ready"));
    });
}

#[test]
fn liveness_restarts_and_startup_holds_it_back() {
    on_node("liveness", |node: Node| async move {
        let _runtime = node.start();
        let mut main = shell("trap 'exit 0' TERM; while :; do sleep 0.05; done");
        main["livenessProbe"] = json!({"periodSeconds": 1, "failureThreshold": 1,
            "tcpSocket": {"port": 9}});
        main["startupProbe"] = json!({"periodSeconds": 1, "exec": {"command": ["true"]}});
        node.api.create_pod("alive", json!({"containers": [main]}));
        let restarted = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"] == 1;
        node.api.until_pod("alive", "restarted", restarted).await;
        let events = node.api.events("alive");
        let has = |reason: &str, text: &str| {
            events.iter().any(|(known, message)| known == reason && message.contains(text))
        };
        assert!(has("Unhealthy", "Liveness probe failed: dial tcp 10.99.0.2:9"), "{events:?}");
        assert!(has("Killing", "Container main failed liveness probe, will be restarted"));
    });
}

#[test]
fn a_killed_pause_process_gives_a_new_sandbox_with_a_new_address() {
    on_node("sandbox", |node: Node| async move {
        let _runtime = node.start();
        let uid = node.api.create_pod("again", json!({"containers": [shell("exec sleep 1000")]}));
        node.api.until_pod("again", "running", is_running).await;
        let pid = node.pause_pid(&uid).await;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL)
            .expect("killed");
        let renewed = |pod: &Value| is_running(pod) && pod["status"]["podIP"] == "10.99.0.3";
        let pod = node.api.until_pod("again", "running at a new address", renewed).await;
        let status = &pod["status"]["containerStatuses"][0];
        assert_eq!(status["restartCount"], 1);
        assert_eq!(status["lastState"]["terminated"]["exitCode"], 137);
        let changed = |(reason, _): &(String, String)| reason == "SandboxChanged";
        assert!(node.api.events("again").iter().any(changed));
    });
}

#[test]
fn last_words_of_a_container_are_in_its_status() {
    on_node("words", |node: Node| async move {
        let _runtime = node.start();
        let fallback = "FallbackToLogsOnError";
        let cases = [
            ("echo -n out of ideas > /dev/termination-log; exit 1", "File", json!("out of ideas")),
            ("echo out; echo of luck >&2; exit 1", fallback, json!("out\nof luck\n")),
            ("echo logged; echo -n said > /dev/termination-log; exit 1", fallback, json!("said")),
            ("echo logged; exit 1", "File", Value::Null),
            ("echo logged; exit 0", fallback, Value::Null),
        ];
        for (number, (script, policy, message)) in cases.into_iter().enumerate() {
            let mut container = shell(script);
            container["terminationMessagePolicy"] = policy.into();
            let name = format!("words-{number}");
            let spec = json!({"restartPolicy": "Never", "containers": [container]});
            node.api.create_pod(&name, spec);
            let ended = |pod: &Value| {
                let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
                let reason = if ended["exitCode"] == 0 { "Completed" } else { "Error" };
                ended.is_object() && ended["message"] == message && ended["reason"] == reason
            };
            node.api.until_pod(&name, "ended with its last words", ended).await;
        }
    });
}

#[test]
fn https_probes_ask_for_health_not_identity() {
    on_node("https", |node: Node| async move {
        super::kill::serve(&node).await;
        let port = super::kill::port(&node);
        let _runtime = node.start();
        let mut main = shell("exec sleep 1000");
        main["readinessProbe"] = json!({"periodSeconds": 1, "httpGet": {"scheme": "HTTPS",
            "host": "127.0.0.1", "port": port, "path": "/api/v1/pods"}});
        let mut wrong = shell("exec sleep 1000");
        wrong["readinessProbe"] = json!({"periodSeconds": 1, "httpGet": {"scheme": "HTTPS",
            "host": "127.0.0.1", "port": port, "path": "/nothing"}});
        node.api.create_pod("right", json!({"containers": [main]}));
        node.api.create_pod("wrong", json!({"containers": [wrong]}));
        let ready = |pod: &Value| pod["status"]["containerStatuses"][0]["ready"] == true;
        node.api.until_pod("right", "ready", ready).await;
        let refused = |(reason, message): &(String, String)| {
            reason == "Unhealthy"
                && message == "Readiness probe failed: HTTP probe failed with statuscode: 404"
        };
        let event = node.api.until(|api| api.events("wrong").iter().any(refused).then_some(()));
        event.await.expect("an event");
    });
}
