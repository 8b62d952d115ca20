//! The compatibility list, by every kubectl of this machine: a table of where each of its lines is
//! held, and the lines that no other test of real clients runs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::support::within;
use super::{Kubectl, MANIFESTS, with_every_kubectl, words};

/// The lines of the list, and the tests that hold them: `here` is this file, `kubectl` the one above,
/// `e2e` crates/e2e/tests/cluster, `store` crates/store/tests, others are files beside `kubectl`.
const HELD: [(u8, &str, &str); 42] = [
    (1, "version", "recorded"),
    (2, "api-resources", "here::kinds_are_listed"),
    (3, "get ns", "here::kinds_are_listed"),
    (4, "apply the recorded manifests", "e2e kubectl::manifests"),
    (5, "apply them again", "e2e kubectl::manifests"),
    (6, "get svc", "e2e kubectl::manifests, store kubectl"),
    (7, "get svc -o wide", "store kubectl"),
    (8, "get pods -A -o wide", "e2e kubectl::troubleshooting_chain"),
    (9, "get endpointslices", "store kubectl"),
    (10, "get all", "here::kinds_are_listed"),
    (11, "selectors and pages", "here::kinds_are_listed, store rows"),
    (12, "jsonpath", "here::kinds_are_listed"),
    (13, "-o yaml has the defaults", "store golden"),
    (14, "get -w", "kubectl::a_watch_prints_changes_as_they_come, here::watches_print_lines"),
    (15, "describe", "e2e kubectl::troubleshooting_chain"),
    (16, "label, annotate", "kubectl::the_usual_verbs_work, here::labels_are_removed"),
    (17, "patch", "kubectl::the_usual_verbs_work, store definitions"),
    (18, "scale, rollout", "kubectl::the_usual_verbs_work, e2e controllers"),
    (19, "run, expose, create", "kubectl::create_commands_make_objects"),
    (20, "edit", "here::objects_are_edited_and_replaced"),
    (21, "apply --server-side", "kubectl::server_side_apply_keeps_managers_apart"),
    (22, "--dry-run=server, diff", "kubectl::changes_are_tried_and_shown_before_they_are_made"),
    (23, "replace", "here::objects_are_edited_and_replaced"),
    (24, "what is invalid", "kubectl::errors_read_as_the_real_servers_do"),
    (25, "what is there or not", "here::objects_are_edited_and_replaced, kubectl"),
    (26, "custom resources", "kubectl::custom_resources_are_like_any_others"),
    (27, "Gateway API", "store definitions"),
    (28, "logs", "e2e kubectl::logs"),
    (29, "exec, attach, cp", "e2e kubectl::exec, streams"),
    (30, "port-forward", "e2e streams::port_forward, streams::refused"),
    (31, "wait", "here::objects_are_deleted_in_every_way, e2e controllers"),
    (32, "delete", "here::objects_are_deleted_in_every_way"),
    (33, "taint, cordon, drain", "here::nodes_are_tainted_and_cordoned, e2e controllers"),
    (34, "auth can-i, whoami", "reviews"),
    (35, "get events", "kubectl::describe_and_events_show_what_the_controllers_did"),
    (36, "raw probes", "rest"),
    (37, "Python", "e2e languages::python"),
    (38, "npm", "e2e languages::npm"),
    (39, "kube-rs", "e2e kube_rs"),
    (40, "client-go", "recorded"),
    (41, "kill -9 during creates", "durability, watch_history"),
    (42, "recorded answers", "store golden"),
];

/// The kinds that the list asks for, with their short names.
const KINDS: &str = "
    configmaps cm, endpoints ep, events ev, namespaces ns, nodes no, pods po,
    replicationcontrollers rc, resourcequotas quota, limitranges limits, serviceaccounts sa,
    services svc, persistentvolumeclaims pvc, persistentvolumes pv, customresourcedefinitions crd,
    daemonsets ds, deployments deploy, replicasets rs, statefulsets sts, cronjobs cj,
    ingresses ing, networkpolicies netpol, poddisruptionbudgets pdb, priorityclasses pc,
    storageclasses sc, secrets -, jobs -, leases -, endpointslices -, ingressclasses -,
    ipaddresses -, servicecidrs -, roles -, rolebindings -, clusterroles -, clusterrolebindings -,
    csidrivers -, controllerrevisions -";

#[tokio::test]
async fn every_line_of_the_list_is_held_by_a_test() {
    let lines: Vec<u8> = HELD.iter().map(|(line, _, _)| *line).collect();
    assert_eq!(lines, (1..=42).collect::<Vec<u8>>());
    let source = include_str!("compatibility.rs");
    let above = include_str!("../kubectl.rs");
    let tests =
        HELD.iter().flat_map(|(line, _, tests)| tests.split(", ").map(move |test| (*line, test)));
    for (line, test) in tests {
        let (text, name) = match test.split_once("::") {
            Some(("here", name)) => (source, name),
            Some(("kubectl", name)) => (above, name),
            _ => continue,
        };
        assert!(text.contains(&format!("async fn {name}(")), "line {line} names {test}");
    }
}

#[tokio::test]
async fn kinds_are_listed() {
    with_every_kubectl("list-kinds", async |kubectl, _| {
        let table = kubectl.ok(&["api-resources", "--no-headers"]).await;
        let rows = words(&table);
        for kind in KINDS.split(',').map(str::trim) {
            let (plural, short) = kind.split_once(' ').expect("a name and a short one");
            let row = rows.iter().find(|row| row[0] == plural).expect(plural);
            assert!(short == "-" || row[1].split(',').any(|name| name == short), "{row:?}");
        }
        let cluster = kubectl.ok(&["api-resources", "--namespaced=false", "-o", "name"]).await;
        assert!(cluster.lines().any(|line| line == "nodes"), "{cluster}");
        assert!(!cluster.lines().any(|line| line == "pods"), "{cluster}");

        let namespaces = kubectl.ok(&["get", "ns", "--no-headers"]).await;
        let rows = words(&namespaces);
        let names: Vec<&str> = rows.iter().map(|row| row[0]).collect();
        assert_eq!(names, ["default", "kube-node-lease", "kube-public", "kube-system"]);
        assert!(rows.iter().all(|row| row[1] == "Active"), "{namespaces}");

        kubectl.ok_with(&["apply", "-f", "-"], MANIFESTS).await;
        kubectl.ok_with(&["apply", "-f", "-"], SETS).await;
        kubectl.ok(&["rollout", "status", "sts/db", "-n", "shop", "--timeout=1s"]).await;
        let all = kubectl.ok(&["get", "all", "-n", "shop", "-o", "name"]).await;
        let mut kinds: Vec<&str> = all.lines().filter_map(|line| line.split('/').next()).collect();
        kinds.dedup();
        let order = ["pod", "service", "daemonset.apps", "deployment.apps", "replicaset.apps"];
        assert_eq!(kinds, [&order[..], &["statefulset.apps"]].concat(), "{all}");

        let pending = ["get", "pods", "-n", "shop", "-o", "name", "--chunk-size=1"];
        let by_phase = [&pending[..], &["--field-selector=status.phase=Pending"]].concat();
        let by_label = [&pending[..], &["-l", "app=front"]].concat();
        let (by_phase, by_label) = (kubectl.ok(&by_phase).await, kubectl.ok(&by_label).await);
        assert_eq!(by_label.lines().count(), 2, "{by_label}");
        assert_eq!(by_phase, by_label, "no other pod waits for a node");
        let path = ["get", "svc", "front", "-n", "shop", "-o", "jsonpath={.spec.clusterIP}"];
        let address: std::net::Ipv4Addr = kubectl.ok(&path).await.parse().expect("an address");
        let (first, last) = ([10, 96, 1, 0], [10, 111, 255, 254]);
        assert!((first..=last).contains(&address.octets()), "{address}: not of the upper band");
    })
    .await;
}

#[tokio::test]
async fn watches_print_lines() {
    with_every_kubectl("watch-names", async |kubectl, _| {
        kubectl.ok(&["create", "configmap", "seen"]).await;
        let watch = ["get", "cm", "-w", "-o", "name", "--field-selector=metadata.name=seen"];
        let mut lines = Lines::of(kubectl, &watch);
        assert_eq!(lines.next().await, "configmap/seen", "as it is");
        kubectl.ok(&["label", "configmap", "seen", "a=b"]).await;
        kubectl.ok(&["delete", "configmap", "seen"]).await;
        for what in ["labelled", "gone"] {
            assert_eq!(lines.next().await, "configmap/seen", "{what}");
        }
        let deploy = async |name: &str| {
            kubectl.ok(&["create", "deployment", name, "--image=localhost/toolbox"]).await
        };
        deploy("first").await;
        while kubectl.ok(&["get", "events", "-o", "name"]).await.is_empty() {}
        let mut events = Lines::of(kubectl, &["get", "events", "-w", "--no-headers"]);
        while !events.next().await.contains("first") {}
        deploy("second").await;
        loop {
            let line = events.next().await;
            if line.contains("deployment/second") {
                assert!(line.contains("Normal") && line.contains("ScalingReplicaSet"), "{line}");
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn labels_are_removed() {
    with_every_kubectl("labels", async |kubectl, _| {
        kubectl.ok(&["create", "configmap", "one"]).await;
        kubectl.ok(&["label", "configmap", "one", "tier=front", "keep=yes"]).await;
        kubectl.ok(&["label", "configmap", "one", "tier-"]).await;
        kubectl.ok(&["annotate", "configmap", "one", "note=x"]).await;
        kubectl.ok(&["annotate", "configmap", "one", "note-"]).await;
        let path = "jsonpath={.metadata.labels}{.metadata.annotations}";
        let left = kubectl.ok(&["get", "configmap", "one", "-o", path]).await;
        assert_eq!(left, r#"{"keep":"yes"}"#);
        let fails = kubectl.fails(&["label", "configmap", "one", "keep=no"], "").await;
        assert!(fails.contains("'keep' already has a value (yes)"), "{fails}");
    })
    .await;
}

#[tokio::test]
async fn objects_are_edited_and_replaced() {
    with_every_kubectl("edit", async |kubectl, _| {
        kubectl.ok(&["create", "configmap", "one", "--from-literal=a=1"]).await;
        let editor = kubectl.kubeconfig.with_file_name("editor");
        fs::write(&editor, "#!/bin/sh\nsed -i 's/a: \"1\"/a: \"2\"/' \"$1\"\n").expect("a script");
        fs::set_permissions(&editor, fs::Permissions::from_mode(0o755)).expect("a program");
        let mut edit = kubectl.command(&["edit", "configmap", "one"]);
        edit.env("KUBE_EDITOR", &editor);
        let edited = tokio::process::Command::from(edit).output();
        let edited = within("kubectl edit", edited).await.expect("kubectl starts");
        let said = String::from_utf8_lossy(&edited.stdout).into_owned();
        assert_eq!(said, "configmap/one edited\n", "{}", String::from_utf8_lossy(&edited.stderr));
        let stale = kubectl.ok(&["get", "configmap", "one", "-o", "json"]).await;
        assert!(stale.contains(r#""a": "2""#), "{stale}");

        let replacement = stale.replace(r#""a": "2""#, r#""a": "3""#);
        let replaced = kubectl.ok_with(&["replace", "-f", "-"], &replacement).await;
        assert_eq!(replaced, "configmap/one replaced\n");
        let conflict = kubectl.fails(&["replace", "-f", "-"], &stale).await;
        let words = "Operation cannot be fulfilled on configmaps \"one\": the object has been \
                     modified; please apply your changes to the latest version and try again";
        assert!(conflict.contains(words), "{conflict}");
        let again = kubectl.fails(&["create", "-f", "-"], &stale).await;
        assert!(again.contains("(AlreadyExists)"), "{again}");
        assert!(again.contains("configmaps \"one\" already exists"), "{again}");
    })
    .await;
}

#[tokio::test]
async fn objects_are_deleted_in_every_way() {
    with_every_kubectl("delete", async |kubectl, _| {
        let names = async |kind: &str| {
            kubectl.ok(&["get", kind, "-o", "name", "-l", "app"]).await.lines().count()
        };
        let made = async || {
            let create = ["create", "deployment", "web", "--image=localhost/toolbox"];
            kubectl.ok(&create).await;
            let wait = ["rollout", "history", "deployment/web"];
            while !kubectl.ok(&wait).await.contains('1') {}
        };
        made().await;
        kubectl.ok(&["delete", "deployment", "web", "--cascade=orphan"]).await;
        assert_eq!(names("replicasets").await, 1, "orphans stay");
        let force = ["delete", "replicaset", "-l", "app=web", "--cascade=foreground"];
        kubectl.ok(&force).await;
        assert_eq!(names("pods").await, 0, "what waits for its dependants goes after them");
        made().await;
        kubectl.ok(&["delete", "deployment", "--all"]).await;
        let gone = ["wait", "--for=delete", "replicaset", "-l", "app=web", "--timeout=20s"];
        // Nothing to wait for is an error of kubectl's.
        let said = kubectl.run(&gone, "").await;
        let error = String::from_utf8_lossy(&said.stderr).into_owned();
        let none = error.contains("no matching resources found");
        assert!(said.status.success() || none, "{error}");
        kubectl.ok(&["run", "single", "--image=localhost/toolbox"]).await;
        let force = ["delete", "pod", "single", "--force", "--grace-period=0"];
        let forced = kubectl.ok(&force).await;
        assert!(forced.contains("force deleted"), "{forced}");
        kubectl.ok(&["run", "single", "--image=localhost/toolbox"]).await;
        kubectl.ok(&["delete", "pod", "single", "--now"]).await;
    })
    .await;
}

#[tokio::test]
async fn nodes_are_tainted_and_cordoned() {
    with_every_kubectl("taints", async |kubectl, _| {
        let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n";
        kubectl.ok_with(&["apply", "-f", "-"], node).await;
        let tainted = kubectl.ok(&["taint", "node", "n1", "team=blue:NoExecute"]).await;
        assert_eq!(tainted, "node/n1 tainted\n");
        let path = "jsonpath={.spec.taints[?(@.key==\"team\")].effect}";
        let effect = async || kubectl.ok(&["get", "node", "n1", "-o", path]).await;
        assert_eq!(effect().await, "NoExecute");
        kubectl.ok(&["taint", "node", "n1", "team-"]).await;
        assert_eq!(effect().await, "");
        assert_eq!(kubectl.ok(&["cordon", "n1"]).await, "node/n1 cordoned\n");
        let rows = kubectl.ok(&["get", "nodes", "--no-headers"]).await;
        assert!(rows.contains("SchedulingDisabled"), "{rows}");
        assert_eq!(kubectl.ok(&["uncordon", "n1"]).await, "node/n1 uncordoned\n");
    })
    .await;
}

/// What a kubectl prints while it runs. It ends with this value.
struct Lines {
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
    _kubectl: tokio::process::Child,
}

impl Lines {
    fn of(kubectl: &Kubectl, arguments: &[&str]) -> Self {
        let mut command = kubectl.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut command = tokio::process::Command::from(command);
        let mut kubectl = command.kill_on_drop(true).spawn().expect("kubectl starts");
        let output = kubectl.stdout.take().expect("a pipe");
        Self { lines: BufReader::new(output).lines(), _kubectl: kubectl }
    }

    async fn next(&mut self) -> String {
        within("a line", self.lines.next_line()).await.expect("output").expect("a line")
    }
}

const SETS: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: shop}
spec:
  replicas: 0
  serviceName: peers
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: main, image: localhost/toolbox}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: every, namespace: shop}
spec:
  selector: {matchLabels: {app: every}}
  template:
    metadata: {labels: {app: every}}
    spec: {containers: [{name: main, image: localhost/toolbox}]}
"#;
