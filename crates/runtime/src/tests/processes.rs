//! Containers that see each other's processes.

use serde_json::{Value, json};

use super::api::pod_path;
use super::node::{Node, is_running, on_node, shell};

/// Prints the command lines of all processes that it sees, itself left out.
const LIST: &str = "for one in /proc/[0-9]*; do tr '\\0' ' ' < $one/cmdline 2>/dev/null; echo; done \
                    | grep '^sleep'";

#[test]
fn a_container_that_is_added_sees_its_targets_processes_and_leaves_the_pod_alone() {
    on_node("debug", |node: Node| async move {
        let _runtime = node.start();
        let uid = node.api.create_pod("web", json!({"containers": [shell("exec sleep 1000")]}));
        node.api.until_pod("web", "running", is_running).await;
        let mut pod = node.api.pod("web").expect("a pod");
        let mut added = Vec::new();
        for (name, target) in [("near", "main"), ("far", "")] {
            let mut container = shell(&format!("{LIST}; sleep 777 & exit 3"));
            container["name"] = name.into();
            container["targetContainerName"] = target.into();
            added.push(container);
        }
        pod["spec"]["ephemeralContainers"] = json!(added);
        node.api.put(&pod_path("web"), pod);
        let ended = |pod: &Value| {
            let statuses = pod["status"]["ephemeralContainerStatuses"].as_array();
            statuses.is_some_and(|all| {
                all.iter().all(|one| one["state"]["terminated"]["exitCode"] == 3)
            })
        };
        let pod = node.api.until_pod("web", "looked into", ended).await;
        assert!(is_running(&pod));
        assert_eq!(node.log(&uid, "near", 0), ["sleep 1000 "]);
        assert_eq!(node.log(&uid, "far", 0), [""; 0]);
        // What it started has ended with it, in the other container's namespace too.
        let mut pod = node.api.pod("web").expect("a pod");
        let mut last = shell(LIST);
        last["name"] = "last".into();
        last["targetContainerName"] = "main".into();
        added.push(last);
        pod["spec"]["ephemeralContainers"] = json!(added);
        node.api.put(&pod_path("web"), pod);
        let looked = |pod: &Value| {
            pod["status"]["ephemeralContainerStatuses"][2]["state"]["terminated"].is_object()
        };
        node.api.until_pod("web", "looked into again", looked).await;
        assert_eq!(node.log(&uid, "last", 0), ["sleep 1000 "]);
        node.api.delete_pod("web", 0);
        node.api.until_gone("web").await;
    });
}

#[test]
fn containers_share_their_processes_where_the_pod_says_so() {
    on_node("shared", |node: Node| async move {
        let _runtime = node.start();
        let mut first = shell("sleep 777 & exit 0");
        first["name"] = "first".into();
        let mut third = shell("exec sleep 888");
        third["name"] = "third".into();
        let script = format!("sleep 1; {LIST}; echo end; exec sleep 1000");
        let spec = json!({"shareProcessNamespace": true, "restartPolicy": "OnFailure",
            "containers": [shell(&script), first, third]});
        let uid = node.api.create_pod("web", spec);
        let printed = || node.log(&uid, "main", 0);
        let ended = || printed().contains(&"end".to_owned()).then_some(());
        assert!(node.api.until(|_| ended()).await.is_some(), "{:?}", printed());
        // The third's, and not what the first left behind.
        assert_eq!(printed(), ["sleep 888 ", "end"]);
    });
}
