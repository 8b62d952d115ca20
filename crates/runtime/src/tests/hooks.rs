//! Lifecycle hooks and probes of real containers.

use std::io::{Read, Write};
use std::net::TcpListener;

use serde_json::{Value, json};

use super::node::{Node, is_running, on_node, shell};

fn with(mut container: Value, field: &str, value: Value) -> Value {
    container[field] = value;
    container
}

#[test]
fn hooks_run_in_the_container_and_hold_its_state() {
    on_node("hooks", |node: Node| async move {
        let _runtime = node.start();
        let script = "trap 'cat /tmp/mark; exit 0' TERM; while :; do sleep 0.05; done";
        let hooks = json!({
            "postStart": {"exec": {"command": ["sh", "-c", "echo started > /tmp/mark; sleep 0.5"]}},
            "preStop": {"exec": {"command": ["sh", "-c", "echo stopping >> /tmp/mark"]}},
        });
        let container = with(shell(script), "lifecycle", hooks);
        let uid = node.api.create_pod("hooked", json!({"containers": [container]}));
        let creating = |pod: &Value| {
            pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"]
                == "ContainerCreating"
        };
        node.api.until_pod("hooked", "being started", creating).await;
        node.api.until_pod("hooked", "running", is_running).await;
        node.api.delete_pod("hooked", 30);
        // The log goes with the pod: it is looked at while the pod's network lingers.
        let log =
            node.api.until(|_| node.log(&uid, "main", 0).get(1).map(|_| node.log(&uid, "main", 0)));
        assert_eq!(log.await.expect("a log"), ["started", "stopping"]);
        node.api.until_gone("hooked").await;
    });
}

#[test]
fn a_post_start_hook_that_fails_restarts_the_container() {
    on_node("hookless", |node: Node| async move {
        let _runtime = node.start();
        let hooks =
            json!({"postStart": {"exec": {"command": ["sh", "-c", "echo secret; exit 3"]}}});
        let container = with(shell("exec sleep 1000"), "lifecycle", hooks);
        let spec = json!({"containers": [container], "terminationGracePeriodSeconds": 1});
        node.api.create_pod("broken", spec);
        let restarted = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"] == 1;
        node.api.until_pod("broken", "restarted", restarted).await;
        let events = node.api.events("broken");
        let expected =
            [("FailedPostStartHook", "PostStartHook failed"), ("Killing", "FailedPostStartHook")];
        for (reason, message) in expected {
            let is_there = events.iter().any(|event| event.0 == reason && event.1 == message);
            assert!(is_there, "{reason} {message}: {events:?}");
        }
        assert!(!events.iter().any(|event| event.1.contains("secret")), "{events:?}");
    });
}

#[test]
fn a_hooks_request_needs_an_answer_and_no_success() {
    on_node("asks", |node: Node| async move {
        let _runtime = node.start();
        let listener = TcpListener::bind("10.99.255.1:0").expect("a listener");
        let port = listener.local_addr().expect("its address").port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = [0; 1024];
            let length = stream.read(&mut request).expect("a request");
            let _ = stream.write_all(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let get = json!({"host": "10.99.255.1", "port": port, "path": "/hello"});
        let hooks = json!({"postStart": {"httpGet": get}});
        let container = with(shell("exec sleep 1000"), "lifecycle", hooks);
        node.api.create_pod("asking", json!({"containers": [container]}));
        node.api.until_pod("asking", "running", is_running).await;
        let request = server.join().expect("a server");
        assert!(request.starts_with("GET /hello HTTP/1.1\r\n"), "{request}");
        assert!(request.to_lowercase().contains("user-agent: kube-lifecycle/"), "{request}");
    });
}

#[test]
fn a_liveness_probe_ends_its_container_within_its_own_grace() {
    on_node("liveness", |node: Node| async move {
        let _runtime = node.start();
        // It ignores SIGTERM: the probe's grace of one second ends it, not the pod's of 600.
        let script = "trap '' TERM; while :; do sleep 0.1; done";
        let probe = json!({"exec": {"command": ["false"]}, "periodSeconds": 1,
            "failureThreshold": 1, "terminationGracePeriodSeconds": 1});
        let container = with(shell(script), "livenessProbe", probe);
        let spec = json!({"containers": [container], "terminationGracePeriodSeconds": 600});
        node.api.create_pod("sick", spec);
        let restarted = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"] == 1;
        let pod = node.api.until_pod("sick", "restarted", restarted).await;
        let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
        assert_eq!(last["exitCode"], 137, "{pod}");
        let events = node.api.events("sick");
        let killing = "Container main failed liveness probe, will be restarted";
        assert!(
            events.iter().any(|event| event.0 == "Killing" && event.1 == killing),
            "{events:?}"
        );
    });
}
