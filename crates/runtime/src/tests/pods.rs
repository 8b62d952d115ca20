//! Pods from their object to their end.

use serde_json::{Value, json};

use super::node::{Node, is_running, on_node, shell};

/// Runs a script in a pod to its end and gives what it wrote.
pub async fn output(node: &Node, name: &str, spec: Value) -> Vec<String> {
    let uid = node.api.create_pod(name, spec);
    let done = |pod: &Value| pod["status"]["phase"] == "Succeeded";
    let pod = node.api.until_pod(name, "Succeeded", done).await;
    let container = pod["spec"]["containers"][0]["name"].as_str().unwrap_or_default();
    node.log(&uid, container, 0)
}

#[test]
fn a_pod_runs_and_is_removed_without_a_trace() {
    on_node("runs", |node: Node| async move {
        let _runtime = node.start();
        let script = "echo hello; exec sleep 1000";
        let uid = node.api.create_pod("web", json!({"containers": [shell(script)]}));
        let pod = node.api.until_pod("web", "running", is_running).await;
        let status = &pod["status"];
        assert_eq!(status["podIP"], "10.99.0.2");
        assert_eq!(status["hostIP"], "10.99.255.1");
        assert_eq!(status["qosClass"], "BestEffort");
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
        let events = node.api.until(|api| Some(api.events("web")).filter(|all| all.len() >= 3));
        let expected = [
            ("Pulled", "Container image \"localhost/host\" already present on machine"),
            ("Created", "Created container: main"),
            ("Started", "Started container main"),
        ];
        let events = events.await.expect("events");
        let events: Vec<(&str, &str)> =
            events.iter().map(|(reason, message)| (reason.as_str(), message.as_str())).collect();
        assert_eq!(events, expected);
        node.api.delete_pod("web", 0);
        node.api.until_gone("web").await;
        let gone = || !node.pod_state(&uid).exists() && !node.pod_run(&uid).exists();
        node.api.until(|_| gone().then_some(())).await.expect("nothing is left on disk");
        let links = std::process::Command::new("ip").args(["-o", "link"]).output().expect("ip");
        let links = String::from_utf8_lossy(&links.stdout).into_owned();
        assert!(!links.contains("tv2"), "the plugin's DEL was not called: {links}");
    });
}

#[test]
fn a_node_registers_itself_and_is_ready_with_its_network() {
    on_node("registers", |node: Node| async move {
        let list = node.options.cni_configuration_directory.join("10-test.conflist");
        let text = std::fs::read(&list).expect("a configuration");
        std::fs::remove_file(&list).expect("removed");
        let _runtime = node.start();
        let ready = |wanted: &'static str| {
            node.api.until(move |api| {
                let found = api.get("/api/v1/nodes/node1")?;
                let conditions = found["status"]["conditions"].as_array()?.clone();
                let ready = conditions.iter().find(|one| one["type"] == "Ready")?;
                (ready["status"] == wanted).then(|| ready["reason"].clone())
            })
        };
        assert_eq!(ready("False").await, Some(json!("KubeletNotReady")));
        let uid = node.api.create_pod("early", json!({"containers": [shell("sleep 1000")]}));
        let refused = |(reason, message): &(String, String)| {
            reason == "FailedCreatePodSandBox" && message.contains("network is not ready")
        };
        let event = node.api.until(|api| api.events("early").iter().any(refused).then_some(()));
        event.await.expect("an event that says what is missing");
        std::fs::write(&list, text).expect("written");
        assert_eq!(ready("True").await, Some(json!("KubeletReady")));
        node.api.until_pod("early", "running", is_running).await;
        assert!(node.pod_state(&uid).exists());
        let found = node.api.get("/api/v1/nodes/node1").expect("a node");
        assert_eq!(found["metadata"]["labels"]["kubernetes.io/hostname"], "node1");
        assert_eq!(found["status"]["addresses"][0]["address"], "10.99.255.1");
        let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node1";
        let lease = node.api.until(|api| api.get(lease)).await.expect("a lease");
        assert_eq!(lease["spec"]["holderIdentity"], "node1");
    });
}

#[test]
fn a_container_sees_its_own_names_files_and_nothing_of_the_machine() {
    on_node("sees", |node: Node| async move {
        let _runtime = node.start();
        let script = "hostname; cat /etc/resolv.conf; tail -1 /etc/hosts; echo pid $$$$; \
                      pwd; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status; \
                      test -w /proc/sys/net/ipv4/ip_forward && echo writable; \
                      cat /proc/self/cgroup | grep -v ':/$'; \
                      cat /proc/keys /proc/timer_list /proc/kcore 2>/dev/null | head -c 9; mount -t tmpfs none /mnt 2>/dev/null && echo mounted; \
                      ls /dev | tr '\\n' ' '; true";
        let mut container = shell(script);
        container["workingDir"] = "/made/for/it".into();
        let spec = json!({"restartPolicy": "Never", "containers": [container]});
        let lines = output(&node, "see", spec).await;
        let expected = [
            "see",
            "search default.svc.cluster.local svc.cluster.local cluster.local",
            "nameserver 10.96.0.10",
            "options ndots:5",
            "10.99.0.2\tsee",
            "pid 1",
            "/made/for/it",
            "CapEff:\t00000000a80425fb",
            "CapBnd:\t00000000a80425fb",
            "NoNewPrivs:\t0",
            "fd full null ptmx pts random shm stderr stdin stdout termination-log tty urandom zero ",
        ];
        assert_eq!(lines, expected);
    });
}

#[test]
fn environment_and_volumes_come_from_their_sources() {
    on_node("sources", |node: Node| async move {
        let base = "/api/v1/namespaces/default";
        let map = json!({"metadata": {"name": "settings"}, "data": {"color": "red", "size": "9"}});
        node.api.put(&format!("{base}/configmaps/settings"), map);
        let secret = json!({"metadata": {"name": "keys"}, "data": {"key": "aGlkZGVu"}});
        node.api.put(&format!("{base}/secrets/keys"), secret);
        let service = json!({"metadata": {"name": "kubernetes", "namespace": "default"},
            "spec": {"clusterIPs": ["10.96.0.1"], "ports": [{"name": "https", "port": 443}]}});
        node.api.put(&format!("{base}/services/kubernetes"), service);
        let _runtime = node.start();
        let script = "echo $COLOR $KEY $POD $IP $KUBERNETES_SERVICE_HOST; cat /c/color /c/sub/n; echo; \
                      cat /s/key; echo; stat -L -c %a /s/key; cat /one; echo; \
                      touch /c/new 2>/dev/null || echo refused; cat /shared/from-init; \
                      df -t tmpfs /mem | tail -1 | cut -d' ' -f1";
        let mut main = shell(script);
        main["env"] = json!([
            {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "key"}}},
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ]);
        main["volumeMounts"] = json!([
            {"name": "config", "mountPath": "/c"}, {"name": "secret", "mountPath": "/s"},
            {"name": "config", "mountPath": "/one", "subPath": "color"},
            {"name": "shared", "mountPath": "/shared", "readOnly": true},
            {"name": "mem", "mountPath": "/mem"},
        ]);
        let mut init = shell("echo first > /shared/from-init");
        init["name"] = "prepare".into();
        init["volumeMounts"] = json!([{"name": "shared", "mountPath": "/shared"}]);
        let spec = json!({
            "restartPolicy": "Never",
            "initContainers": [init],
            "containers": [main],
            "volumes": [
                {"name": "config", "configMap": {"name": "settings", "items": [
                    {"key": "color", "path": "color"}, {"key": "size", "path": "sub/n"}]}},
                {"name": "secret", "secret": {"secretName": "keys", "defaultMode": 0o400}},
                {"name": "shared", "emptyDir": {}},
                {"name": "mem", "emptyDir": {"medium": "Memory"}},
            ],
        });
        let lines = output(&node, "sources", spec).await;
        let expected = [
            "red hidden sources 10.99.0.2 10.96.0.1",
            "red9",
            "hidden",
            "400",
            "red",
            "refused",
            "first",
            "tmpfs",
        ];
        assert_eq!(lines, expected);
    });
}

#[test]
fn init_containers_come_first_and_a_missing_reference_is_waited_for() {
    on_node("init", |node: Node| async move {
        let _runtime = node.start();
        let mut init = shell("sleep 0.2");
        init["name"] = "first".into();
        let mut main = shell("exec sleep 1000");
        main["env"] = json!([{"name": "A",
            "valueFrom": {"configMapKeyRef": {"name": "late", "key": "a"}}}]);
        node.api.create_pod("waits", json!({"initContainers": [init], "containers": [main]}));
        let initializing = |pod: &Value| {
            let status = &pod["status"];
            status["initContainerStatuses"][0]["state"]["running"].is_object()
                && status["containerStatuses"][0]["state"]["waiting"]["reason"] == "PodInitializing"
        };
        let pod = node.api.until_pod("waits", "initializing", initializing).await;
        assert_eq!(pod["status"]["phase"], "Pending");
        let waiting = |pod: &Value| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            waiting["reason"] == "CreateContainerConfigError"
                && waiting["message"] == "configmap \"late\" not found"
        };
        node.api.until_pod("waits", "waiting for its ConfigMap", waiting).await;
        let map = json!({"metadata": {"name": "late"}, "data": {"a": "1"}});
        node.api.put("/api/v1/namespaces/default/configmaps/late", map);
        node.api.until_pod("waits", "running", is_running).await;
    });
}

#[test]
fn containers_of_a_pod_share_network_and_volumes_but_not_processes() {
    on_node("shares", |node: Node| async move {
        let _runtime = node.start();
        let mut server = shell("exec /bin/toolbox serve --http 8080");
        server["name"] = "server".into();
        server["image"] = "localhost/toolbox".into();
        server["command"] = json!(["/bin/toolbox", "serve", "--http", "8080"]);
        server["readinessProbe"] =
            json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1});
        let mut client = shell("exec sleep 1000");
        client["image"] = "localhost/toolbox".into();
        client["command"] = json!(["/bin/toolbox", "sleep", "infinity"]);
        client["readinessProbe"] = json!({"periodSeconds": 1, "exec": {"command":
            ["/bin/toolbox", "http", "http://127.0.0.1:8080/healthz"]}});
        node.api.create_pod("shares", json!({"containers": [server, client]}));
        let ready = |pod: &Value| {
            let statuses = pod["status"]["containerStatuses"].as_array();
            statuses.is_some_and(|all| all.len() == 2 && all.iter().all(|one| one["ready"] == true))
        };
        node.api.until_pod("shares", "ready", ready).await;
    });
}

#[test]
fn an_image_that_does_not_exist_is_said_so() {
    on_node("image", |node: Node| async move {
        let _runtime = node.start();
        let spec = json!({"containers": [{"name": "main", "image": "localhost/none:1"}]});
        node.api.create_pod("pull", spec);
        let refused = |pod: &Value| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            waiting["reason"] == "ErrImagePull"
                && waiting["message"]
                    .as_str()
                    .is_some_and(|text| text.contains("flatnet image load"))
        };
        node.api.until_pod("pull", "refused", refused).await;
        node.api.delete_pod("pull", 30);
        node.api.until_gone("pull").await;
    });
}

#[test]
fn pods_of_the_nodes_network_have_its_address_and_name() {
    on_node("hostnet", |node: Node| async move {
        let _runtime = node.start();
        let script = "hostname; ip -o addr show dev lo | grep -c 10.99.255.1";
        let spec = json!({"hostNetwork": true, "restartPolicy": "Never",
            "containers": [shell(script)]});
        assert_eq!(output(&node, "net", spec).await, ["node1", "1"]);
        assert_eq!(node.api.pod("net").expect("a pod")["status"]["podIP"], "10.99.255.1");
    });
}

#[test]
fn the_container_gets_its_grace_and_not_more() {
    on_node("grace", |node: Node| async move {
        let _runtime = node.start();
        let graceful = "trap 'echo leaving; sleep 0.3; echo left; exit 0' TERM; \
                        while :; do sleep 0.05; done";
        let stubborn = "trap '' TERM; while :; do sleep 0.05; done";
        let spec = |script| json!({"containers": [shell(script)]});
        let uid = node.api.create_pod("graceful", spec(graceful));
        node.api.create_pod("stubborn", spec(stubborn));
        node.api.until_pod("graceful", "running", is_running).await;
        node.api.until_pod("stubborn", "running", is_running).await;
        let begin = std::time::Instant::now();
        let log = node.pod_state(&uid).join("containers/main/0.log");
        // Open before the end: the directory goes with the pod.
        let mut log = std::fs::File::open(log).expect("a log");
        node.api.delete_pod("graceful", 30);
        node.api.delete_pod("stubborn", 1);
        node.api.until_gone("graceful").await;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut log, &mut text).expect("read");
        assert!(text.contains("leaving") && text.contains("left"), "{text}");
        assert!(begin.elapsed().as_secs() < 25, "its end is not waited for beyond its exit");
        node.api.until_gone("stubborn").await;
        assert!(begin.elapsed().as_millis() >= 1000, "it was killed before its grace was over");
        let killing = ("Killing".to_owned(), "Stopping container main".to_owned());
        assert!(node.api.events("stubborn").contains(&killing));
    });
}
