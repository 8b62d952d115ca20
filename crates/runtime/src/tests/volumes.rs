//! Volumes as containers see them.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use super::api::Api;
use super::node::{Node, is_running, on_node, shell};
use super::pods::output;

/// A container with mounts, in a pod with volumes.
fn mounting(script: &str, mounts: Value, volumes: Value) -> Value {
    let mut container = shell(script);
    container["volumeMounts"] = mounts;
    json!({"restartPolicy": "Never", "containers": [container], "volumes": volumes})
}

#[test]
fn tokens_and_other_sources_stand_in_one_volume_and_follow_their_objects() {
    on_node("projected", |node: Node| async move {
        let base = "/api/v1/namespaces/default";
        let map = |color: &str| json!({"metadata": {"name": "settings"}, "data": {"color": color}});
        node.api.put(&format!("{base}/configmaps/settings"), map("red"));
        let _runtime = node.start();
        let script = "while :; do echo $(cd /a; cat token namespace color app; stat -L -c %a token); \
                      sleep 0.1; done";
        let volumes = json!([{"name": "access", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 607}},
            {"configMap": {"name": "settings"}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}},
                {"path": "app", "fieldRef": {"fieldPath": "metadata.labels['app']"}}]}},
        ]}}]);
        let mounts = json!([{"name": "access", "mountPath": "/a"}]);
        let mut spec = mounting(script, mounts, volumes);
        spec["serviceAccountName"] = "robot".into();
        spec["securityContext"] = json!({"runAsUser": 1000});
        let uid = node.api.create_pod("projected", spec);
        node.api.until_pod("projected", "running", is_running).await;
        let says = |line: &'static str| {
            let (node, uid) = (&node, &uid);
            async move {
                let found = node.api.until(|_| {
                    let lines = node.log(uid, "main", 0);
                    lines.iter().any(|known| known == line).then_some(())
                });
                assert!(found.await.is_some(), "{line}: {:?}", node.log(uid, "main", 0).last());
            }
        };
        // No newline ends any of these files.
        says("robot:607:1defaultred600").await;
        node.api.put(&format!("{base}/configmaps/settings"), map("blue"));
        let mut pod = node.api.pod("projected").expect("a pod");
        pod["metadata"]["labels"] = json!({"app": "web"});
        node.api.put(&super::api::pod_path("projected"), pod);
        // A token that is good for long is not asked for again.
        says("robot:607:1defaultblueweb600").await;
    });
}

#[test]
fn parts_of_volumes_are_shown_and_nothing_outside_of_them() {
    on_node("subpath", |node: Node| async move {
        let _runtime = node.start();
        let volumes = json!([{"name": "shared", "emptyDir": {}}]);
        let mut init = shell(
            "ln -s / /shared/root; ln -s ../../../../.. /shared/up; mkdir /shared/in; \
             echo inside > /shared/in/file; ln -s in /shared/link",
        );
        init["name"] = "links".into();
        init["volumeMounts"] = json!([{"name": "shared", "mountPath": "/shared"}]);
        let with = |mount: Value| {
            let mut mount = mount;
            mount["name"] = "shared".into();
            mount["mountPath"] = "/part".into();
            let mut spec = mounting("cat /part/file; ls /part", json!([mount]), volumes.clone());
            spec["initContainers"] = json!([init]);
            spec["containers"][0]["env"] = json!([{"name": "PART", "value": "in"}]);
            spec
        };
        for (name, path) in [("root", "root"), ("up", "up"), ("below", "root/etc")] {
            node.api.create_pod(name, with(json!({"subPath": path})));
            let refused = |pod: &Value| {
                let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
                let message = ended["message"].as_str().unwrap_or_default();
                ended["reason"] == "StartError" && message.starts_with("cannot mount")
            };
            node.api.until_pod(name, "refused", refused).await;
        }
        for (name, mount) in [
            ("plain", json!({"subPath": "in"})),
            ("link", json!({"subPath": "link"})),
            ("variable", json!({"subPathExpr": "$(PART)"})),
        ] {
            assert_eq!(output(&node, name, with(mount)).await, ["inside", "file"], "{name}");
        }
    });
}

#[test]
fn claims_memory_and_paths_of_the_node_are_as_the_pod_expects() {
    on_node("volumes", |node: Node| async move {
        let data = node.root.join("data");
        fs::create_dir_all(&data).expect("a directory");
        fs::write(data.join("old"), "kept").expect("a file");
        let base = "/api/v1/namespaces/default/persistentvolumeclaims/data";
        let claim = json!({"metadata": {"name": "data", "uid": "claim"},
            "spec": {"volumeName": "disk"}, "status": {"phase": "Bound"}});
        node.api.put(base, claim);
        let volume = json!({"metadata": {"name": "disk"}, "spec": {"local": {"path": data},
            "claimRef": {"uid": "claim"}}});
        node.api.put("/api/v1/persistentvolumes/disk", volume);
        let _runtime = node.start();
        let script = "cat /data/old; echo; echo more >> /data/old && touch /data/new; \
                      stat -c '%a %g' /data /data/old; df -k --output=size /memory | tail -1 | tr -d ' '";
        let mounts = json!([{"name": "data", "mountPath": "/data"},
            {"name": "memory", "mountPath": "/memory"}]);
        let volumes = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]);
        let mut spec = mounting(script, mounts, volumes);
        spec["securityContext"] = json!({"runAsUser": 1000, "fsGroup": 2000});
        let lines = output(&node, "claim", spec).await;
        assert_eq!(lines, ["kept", "2775 2000", "664 2000", "1024"]);
        let path = data.join("old");
        let volumes = json!([{"name": "data", "hostPath": {"path": path, "type": "Directory"}}]);
        let mounts = json!([{"name": "data", "mountPath": "/data"}]);
        node.api.create_pod("wrong", mounting("true", mounts, volumes));
        let refused = |(reason, message): &(String, String)| {
            reason == "FailedMount" && message.ends_with("/data/old is not a directory")
        };
        let told = node.api.until(|api| api.events("wrong").iter().any(refused).then_some(()));
        assert!(told.await.is_some(), "{:?}", node.api.events("wrong"));
    });
}

#[test]
fn a_pod_that_keeps_too_much_on_the_disk_is_evicted_and_its_volumes_go() {
    on_node("eviction", |mut node: Node| async move {
        node.options.storage_period = Duration::from_millis(100);
        let _runtime = node.start();
        let path = format!("/api/v1/nodes/{}", node.options.node_name);
        for field in ["capacity", "allocatable"] {
            let size = |api: &Api| {
                let size = &api.get(&path)?["status"][field]["ephemeral-storage"];
                size.as_str()?.strip_suffix("Ki")?.parse::<u64>().ok()
            };
            let size_kib = node.api.until(size).await;
            assert!(size_kib.is_some_and(|size| size > 0), "{field}: {:?}", node.api.get(&path));
        }
        let script = |file: &str, kilobytes: u32| {
            format!("dd if=/dev/zero of={file} bs=1k count={kilobytes} 2>&1; exec sleep 1000")
        };
        let mounts = json!([{"name": "data", "mountPath": "/data"}]);
        let sized = |limit: &str| json!([{"name": "data", "emptyDir": {"sizeLimit": limit}}]);
        let modest = mounting(&script("/data/file", 100), mounts.clone(), sized("64Mi"));
        node.api.create_pod("modest", modest);
        let greedy = mounting(&script("/data/file", 4000), mounts, sized("1Mi"));
        let mut written = mounting(&script("/tmp/file", 4000), json!([]), json!([]));
        written["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "2Mi"}});
        let cases = [
            ("greedy", greedy, "Usage of EmptyDir volume \"data\" exceeds the limit \"1Mi\". "),
            (
                "written",
                written,
                "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ",
            ),
        ];
        for (name, spec, message) in cases {
            let uid = node.api.create_pod(name, spec);
            let evicted = |pod: &Value| {
                let status = &pod["status"];
                let conditions = status["conditions"].as_array();
                let is_target = conditions.is_some_and(|all| {
                    all.iter().any(|one| {
                        one["type"] == "DisruptionTarget"
                            && one["status"] == "True"
                            && one["reason"] == "TerminationByKubelet"
                            && one["message"] == message
                    })
                });
                let ended = &status["containerStatuses"][0]["state"]["terminated"];
                let said = (&status["phase"], &status["reason"], &status["message"]);
                is_target
                    && ended.is_object()
                    && said == (&json!("Failed"), &json!("Evicted"), &json!(message))
            };
            node.api.until_pod(name, "evicted", evicted).await;
            let told = ("Evicted".to_owned(), message.to_owned());
            let told = node.api.until(|api| api.events(name).contains(&told).then_some(())).await;
            assert!(told.is_some(), "{:?}", node.api.events(name));
            let volumes = node.pod_state(&uid).join("volumes");
            let freed = node.api.until(|_| (!volumes.exists()).then_some(())).await;
            assert!(freed.is_some(), "what the pod kept is still there");
            assert!(!node.log(&uid, "main", 0).is_empty(), "its log stays");
        }
        assert!(is_running(&node.api.pod("modest").expect("a pod")), "within its limit");
        node.api.delete_pod("greedy", 30);
        node.api.until_gone("greedy").await;
    });
}
