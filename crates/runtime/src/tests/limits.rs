//! Limits that bite, and how the status tells of it.

use serde_json::{Value, json};

use super::node::{Node, is_running, on_node, shell};

fn limited(script: &str, limits: Value) -> Value {
    let mut container = shell(script);
    container["resources"] = json!({"limits": limits});
    json!({"restartPolicy": "Never", "containers": [container]})
}

#[test]
fn a_container_that_is_out_of_memory_is_ended_and_says_so() {
    on_node("memory", |node: Node| async move {
        let _runtime = node.start();
        let fill = |bytes: u32| format!("perl -e '$x = \"x\" x {bytes}'");
        let cases = [
            // The kernel ends the container's first process, or one that this reports the end of.
            ("first", format!("exec {}", fill(200_000_000)), 137),
            ("later", format!("{}; exit 3", fill(200_000_000)), 3),
        ];
        for (name, script, code) in cases {
            node.api.create_pod(name, limited(&script, json!({"memory": "32Mi"})));
            let ended = |pod: &Value| {
                let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
                // With cgroup v2 the container ends as a whole.
                let code_is_right = ended["exitCode"] == code || ended["exitCode"] == 137;
                ended["reason"] == "OOMKilled" && code_is_right
            };
            node.api.until_pod(name, "out of memory", ended).await;
        }
        let modest = format!("{}; exit 4", fill(1_000_000));
        node.api.create_pod("modest", limited(&modest, json!({"memory": "32Mi"})));
        let ended = |pod: &Value| {
            let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
            ended["reason"] == "Error" && ended["exitCode"] == 4
        };
        node.api.until_pod("modest", "ended with an error of its own", ended).await;
    });
}

#[test]
fn a_pod_has_only_so_many_processes() {
    on_node("processes", |mut node: Node| async move {
        node.options.pod_process_limit = 20;
        let _runtime = node.start();
        let script = "for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do \
                        sleep 100 & done; echo all; wait";
        let spec = json!({"restartPolicy": "Never", "containers": [shell(script)]});
        let uid = node.api.create_pod("many", spec);
        let failed = |pod: &Value| pod["status"]["phase"] == "Failed";
        node.api.until_pod("many", "out of processes", failed).await;
        let lines = node.log(&uid, "main", 0);
        assert!(!lines.contains(&"all".to_owned()), "{lines:?}");
        let few = json!({"containers": [shell("sleep 100 & sleep 100 & wait")]});
        node.api.create_pod("few", few);
        node.api.until_pod("few", "running", is_running).await;
    });
}

#[test]
fn a_container_gets_no_more_of_the_processors_than_its_limit() {
    on_node("cpu", |node: Node| async move {
        let _runtime = node.start();
        // What it has run after a second of wanting to, in clock ticks of 10 ms.
        let script = "timeout 1 sh -c 'while :; do :; done'; cut -d' ' -f16,17 /proc/$$$$/stat";
        let spec = limited(script, json!({"cpu": "100m"}));
        let uid = node.api.create_pod("busy", spec);
        let ended = |pod: &Value| pod["status"]["phase"] == "Succeeded";
        node.api.until_pod("busy", "done", ended).await;
        let lines = node.log(&uid, "main", 0);
        let line = lines.last().expect("what it has run");
        let ticks: u64 = line.split(' ').filter_map(|text| text.parse::<u64>().ok()).sum();
        assert!((1..=40).contains(&ticks), "{ticks} ticks in a second or little more: {lines:?}");
    });
}
