//! Containers of images that were loaded.

use std::fs;

use serde_json::{Value, json};

use super::node::{Node, binaries, is_running, on_node};
use crate::images::tests::{What, saved, tar};
use crate::images::{Store, load};

/// Loads an image of two layers with our own static program.
fn load_image(node: &Node, name: &str, config: Value) -> Store {
    let program = fs::read(binaries().join("flatnet-toolbox")).expect("a program");
    let file = |text: &'static str| What::File(text.as_bytes());
    let layers = [
        tar(&[
            ("bin/toolbox", 0o755, 0, What::File(&program)),
            ("etc/passwd", 0o644, 0, file("web:x:101:102::/srv:/bin/false\n")),
            ("etc/group", 0o644, 0, file("tape:x:26:web\n")),
            ("data/old", 0o644, 0, file("old")),
            ("data/secret", 0o600, 0, file("secret")),
        ]),
        tar(&[("data/.wh.old", 0o644, 0, file("")), ("data/new", 0o640, 101, file("new\n"))]),
    ];
    let store = Store::open(node.options.image_directory.clone()).expect("a store");
    let path = node.root.join("image.tar");
    fs::write(&path, saved(name, &layers, config)).expect("a file");
    load(&store, &path, None).expect("loaded");
    store
}

#[test]
fn a_container_is_what_its_image_says() {
    on_node("image", |node: Node| async move {
        let words = ["cat", "/proc/self/status", "new", "/proc/self/environ"];
        let config = json!({"Entrypoint": ["toolbox"], "Cmd": words, "User": "web",
            "WorkingDir": "/data", "Env": ["PATH=/bin", "A=image", "B=image"]});
        let store = load_image(&node, "shop.test/web:1", config);
        let _runtime = node.start();
        let spec = json!({"restartPolicy": "Never", "securityContext": {"fsGroup": 5},
            "containers": [{"name": "main", "image": "shop.test/web:1",
                "imagePullPolicy": "IfNotPresent", "env": [{"name": "B", "value": "pod"}]}]});
        let uid = node.api.create_pod("made", spec);
        let done = |pod: &Value| pod["status"]["phase"] == "Succeeded";
        let pod = node.api.until_pod("made", "Succeeded", done).await;
        let log = node.log(&uid, "main", 0);
        let line = |name: &str| log.iter().find(|line| line.starts_with(name)).cloned();
        assert_eq!(line("Uid:").as_deref(), Some("Uid:\t101\t101\t101\t101"));
        assert_eq!(line("Gid:").as_deref(), Some("Gid:\t102\t102\t102\t102"));
        assert_eq!(line("Groups:").as_deref().map(str::trim), Some("Groups:\t5 26"));
        assert!(log.contains(&"new".to_owned()), "{log:?}");
        let variables = log.last().cloned().unwrap_or_default();
        let variables: Vec<&str> = variables.split('\0').collect();
        for expected in ["PATH=/bin", "A=image", "B=pod", "HOME=/srv", "HOSTNAME=made"] {
            assert!(variables.contains(&expected), "{expected}: {variables:?}");
        }
        let image = store.list().remove(0);
        assert_eq!(pod["status"]["containerStatuses"][0]["imageID"], image.id.to_string());
        let error = store.remove("shop.test/web:1").expect_err("in use");
        assert!(error.contains("in use"), "{error}");
        node.api.delete_pod("made", 0);
        node.api.until_gone("made").await;
        let gone = || store.remove("shop.test/web:1").ok();
        node.api.until(|_| gone()).await.expect("free again");
    });
}

#[test]
fn what_an_image_hides_is_gone_and_its_stop_signal_is_sent() {
    on_node("stops", |node: Node| async move {
        // SIGTERM would end the program with the code 0.
        let config = json!({"Cmd": ["toolbox", "sleep", "infinity"], "StopSignal": "SIGKILL",
            "Env": ["PATH=/bin"]});
        load_image(&node, "shop.test/web:1", config);
        let _runtime = node.start();
        let image = json!({"name": "main", "image": "shop.test/web:1"});
        let uid = node.api.create_pod("stops", json!({"containers": [image]}));
        node.api.until_pod("stops", "running", is_running).await;
        let usage = node.pod_state(&uid).join("containers/main/0").join(crate::images::USE_FILE);
        let usage: crate::images::Use =
            serde_json::from_slice(&fs::read(usage).expect("a file")).expect("a use");
        assert_eq!(usage.stop_signal, "SIGKILL");
        node.api.delete_pod("stops", 30);
        let exit = node.pod_state(&uid).join("containers/main/0.exit");
        let exit = node.api.until(|_| fs::read(&exit).ok()).await.expect("an exit");
        let exit: Value = serde_json::from_slice(&exit).expect("an exit");
        assert_eq!(exit["signal"], libc::SIGKILL);
        node.api.until_gone("stops").await;
        let mut hidden = json!({"name": "main", "image": "shop.test/web:1",
            "command": ["toolbox", "cat", "/data/old"]});
        let spec = |container: &Value| json!({"restartPolicy": "Never", "containers": [container]});
        let failed = |pod: &Value| pod["status"]["phase"] == "Failed";
        let uid = node.api.create_pod("hidden", spec(&hidden));
        node.api.until_pod("hidden", "Failed", failed).await;
        assert!(node.log(&uid, "main", 0)[0].contains("opening /data/old: No such file"));
        // Files of root stay root's.
        hidden["command"] = json!(["toolbox", "cat", "/data/secret"]);
        hidden["securityContext"] = json!({"runAsUser": 7});
        let uid = node.api.create_pod("secret", spec(&hidden));
        node.api.until_pod("secret", "Failed", failed).await;
        assert!(node.log(&uid, "main", 0)[0].contains("Permission denied"));
    });
}

#[test]
fn an_image_that_is_not_there_is_told_in_the_kubelets_words() {
    on_node("absent", |node: Node| async move {
        let _runtime = node.start();
        let cases = [
            (
                "never",
                "shop.test/none",
                "Never",
                "ErrImageNeverPull",
                "Container image \"shop.test/none\" is not present with pull policy of Never",
            ),
            (
                "name",
                "Not A Name",
                "IfNotPresent",
                "InspectFailed",
                "Failed to apply default image tag \"Not A Name\": couldn't parse image name \
                 \"Not A Name\": invalid reference format",
            ),
        ];
        // A registry that refuses connections.
        let image = "127.0.0.1:9/web:1";
        let container = json!({"name": "main", "image": image, "imagePullPolicy": "Always"});
        node.api.create_pod("away", json!({"containers": [container]}));
        let pulled = |pod: &Value| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            waiting["reason"] == "ErrImagePull"
                && waiting["message"].as_str().is_some_and(|text| text.contains("refused"))
        };
        node.api.until_pod("away", "waiting", pulled).await;
        let told = |wanted: &str| node.api.events("away").iter().any(|event| event.1 == wanted);
        let wanted = [
            "Pulling image \"127.0.0.1:9/web:1\"",
            "Error: ErrImagePull",
            "Back-off pulling image \"127.0.0.1:9/web:1\"",
            "Error: ImagePullBackOff",
        ];
        for wanted in wanted {
            let found = node.api.until(|_| told(wanted).then_some(())).await;
            assert!(found.is_some(), "{wanted}: {:?}", node.api.events("away"));
        }
        for (pod, image, policy, reason, message) in cases {
            let container = json!({"name": "main", "image": image, "imagePullPolicy": policy});
            node.api.create_pod(pod, json!({"containers": [container]}));
            let told = |(known, text): &(String, String)| known == reason && text == message;
            let found = node.api.until(|api| api.events(pod).iter().any(told).then_some(())).await;
            assert!(found.is_some(), "{:?}", node.api.events(pod));
            let waiting = |pod: &Value| {
                let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
                waiting["message"] == message
            };
            node.api.until_pod(pod, "waiting", waiting).await;
        }
    });
}

#[test]
fn a_pod_that_is_deleted_does_not_wait_for_its_image() {
    on_node("pulling", |node: Node| async move {
        let registry = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = registry.local_addr().expect("an address").port();
        let (asked, mut is_asked) = tokio::sync::mpsc::channel(1);
        // It takes every connection and never answers.
        tokio::spawn(async move {
            let mut connections = Vec::new();
            while let Ok((connection, _)) = registry.accept().await {
                connections.push(connection);
                let _ = asked.try_send(());
            }
        });
        let _runtime = node.start();
        let image = format!("127.0.0.1:{port}/web:1");
        let container = json!({"name": "main", "image": image});
        node.api.create_pod("pulls", json!({"containers": [container]}));
        is_asked.recv().await.expect("the registry was asked");
        let begin = std::time::Instant::now();
        node.api.delete_pod("pulls", 30);
        node.api.until_gone("pulls").await;
        assert!(begin.elapsed().as_secs() < 5, "gone after {:?}", begin.elapsed());
    });
}
