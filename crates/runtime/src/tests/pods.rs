//! Pods from their object to their end.

use serde_json::{Value, json};

use super::node::{Node, on_node};

fn shell(script: &str) -> Value {
    json!({"name": "main", "image": "localhost/host", "command": ["sh", "-c", script]})
}

fn is_running(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running"
        && pod["status"]["containerStatuses"][0]["state"]["running"].is_object()
}

#[test]
fn a_pod_runs_and_is_removed_without_a_trace() {
    on_node("runs", |node: Node| async move {
        let _runtime = node.start();
        let uid = node
            .api
            .create_pod("web", json!({"containers": [shell("echo hello; exec sleep 1000")]}));
        let pod = node.api.until_pod("web", "running", is_running).await;
        let status = &pod["status"];
        assert_eq!(status["podIP"], "10.99.0.2");
        assert_eq!(status["hostIP"], "10.99.255.1");
        let kinds: Vec<(&str, &str)> = status["conditions"]
            .as_array()
            .expect("conditions")
            .iter()
            .map(|one| (one["type"].as_str().unwrap_or(""), one["status"].as_str().unwrap_or("")))
            .collect();
        let expected = [
            ("PodReadyToStartContainers", "True"),
            ("Initialized", "True"),
            ("Ready", "True"),
            ("ContainersReady", "True"),
            ("PodScheduled", "True"),
        ];
        assert_eq!(kinds, expected);
        let log = node.api.until(|_| node.log(&uid, "main", 0).first().cloned()).await;
        assert_eq!(log.as_deref(), Some("hello"));
        node.api.delete_pod("web", 0);
        node.api.until_gone("web").await;
        let gone = || !node.pod_state(&uid).exists() && !node.pod_run(&uid).exists();
        node.api.until(|_| gone().then_some(())).await.expect("nothing is left on disk");
    });
}
