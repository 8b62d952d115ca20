//! Containers that see each other's processes.

use serde_json::{Value, json};

use super::api::pod_path;
use super::node::{Node, is_running, on_node, shell};
use super::pods::output;

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

/// Prints which namespaces a pod is in, and which file system its shared memory is.
const PLACES: &str = "readlink /proc/self/ns/pid /proc/self/ns/ipc; stat -c %d /dev/shm";

/// The same of the node.
fn places_of_node() -> Vec<String> {
    let output = std::process::Command::new("sh").args(["-c", PLACES]).output().expect("a shell");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Whether any process of this machine has these words as its command line.
fn runs(words: &[&str]) -> bool {
    let wanted: String = words.iter().map(|word| format!("{word}\0")).collect();
    let processes = std::fs::read_dir("/proc").expect("processes").flatten();
    processes
        .filter_map(|process| std::fs::read_to_string(process.path().join("cmdline")).ok())
        .any(|found| found == wanted)
}

#[test]
fn a_pod_is_among_the_nodes_processes_and_in_its_shared_memory_only_where_it_says_so() {
    on_node("hostspaces", |node: Node| async move {
        let _runtime = node.start();
        let of_node = places_of_node();
        let spec = |fields: Value| {
            let mut spec = json!({"restartPolicy": "Never", "containers": [shell(PLACES)]});
            spec.as_object_mut().expect("a spec").extend(fields.as_object().expect("it").clone());
            spec
        };
        let cases = [
            ("own", json!({}), [false, false, false]),
            ("processes", json!({"hostPID": true}), [true, false, false]),
            ("memory", json!({"hostIPC": true}), [false, true, true]),
        ];
        for (name, fields, expected) in cases {
            let lines = output(&node, name, spec(fields)).await;
            let same: Vec<bool> =
                lines.iter().zip(&of_node).map(|(own, of_node)| own == of_node).collect();
            assert_eq!(same, expected, "{name}: {lines:?}, of the node {of_node:?}");
        }
        node.api.create_pod("users", spec(json!({"hostUsers": false})));
        let refused = (
            "FailedCreatePodSandBox".to_owned(),
            "Failed to create pod sandbox: can't \
            set `spec.hostUsers: false`, runtime does not support user namespaces"
                .to_owned(),
        );
        let told = |api: &super::api::Api| api.events("users").contains(&refused).then_some(());
        assert!(node.api.until(told).await.is_some(), "{:?}", node.api.events("users"));
    });
}

#[test]
fn containers_of_a_pod_share_memory_with_each_other() {
    on_node("sharedmemory", |node: Node| async move {
        let _runtime = node.start();
        let mut writer = shell("echo said > /dev/shm/word; exec sleep 1000");
        writer["name"] = "writer".into();
        let script = "until cat /dev/shm/word 2>/dev/null; do sleep 0.02; done; \
                      stat -c %a /dev/shm; exec sleep 1000";
        let uid = node.api.create_pod("web", json!({"containers": [shell(script), writer]}));
        let printed = || node.log(&uid, "main", 0);
        let read = || (printed().len() == 2).then_some(());
        assert!(node.api.until(|_| read()).await.is_some(), "{:?}", printed());
        assert_eq!(printed(), ["said", "1777"]);
    });
}

#[test]
fn nothing_is_left_of_a_pod_that_was_among_the_nodes_processes() {
    on_node("hostpid", |node: Node| async move {
        let _runtime = node.start();
        let number = format!("9{}", std::process::id());
        let script = format!("setsid sleep {number} & sleep {number}1 & wait");
        let uid =
            node.api.create_pod("web", json!({"hostPID": true, "containers": [shell(&script)]}));
        let both = || {
            let all = runs(&["sleep", &number]) && runs(&["sleep", &format!("{number}1")]);
            all.then_some(())
        };
        assert!(node.api.until(|_| both()).await.is_some(), "the container runs");
        // Whoever ends its pause process has ended the pod: what goes on belongs to the next one.
        let pause = node.pause_pid(&uid).await;
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pause),
            nix::sys::signal::Signal::SIGKILL,
        )
        .expect("killed");
        let restarted = |pod: &Value| {
            pod["status"]["containerStatuses"][0]["restartCount"] == 1 && is_running(pod)
        };
        node.api.until_pod("web", "running again", restarted).await;
        node.api.delete_pod("web", 0);
        node.api.until_gone("web").await;
        let none = || {
            let any = runs(&["sleep", &number]) || runs(&["sleep", &format!("{number}1")]);
            (!any).then_some(())
        };
        assert!(node.api.until(|_| none()).await.is_some(), "processes outlived their pod");
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
