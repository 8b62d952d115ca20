//! Real kubectl against the server and the controllers: 1.20 as Debian packages it, and the one
//! on the PATH where there is one.

#[path = "kubectl/compatibility.rs"]
mod compatibility;
#[path = "kubectl/published.rs"]
mod published;
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use client::{Client, PatchKind, ResourcePath};
use serde_json::{Value, json};
use support::{DEADLINE, Scratch, start, within};

/// Where `./x kubectl` puts Debian's kubectl 1.20, from the root of the workspace.
const KUBECTL_1_20: &str = "target/tools/kubectl-1.20/usr/bin/kubectl";

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: prices, namespace: shop}
data: {tea: "3"}
---
apiVersion: v1
kind: Secret
metadata: {name: till, namespace: shop}
stringData: {pin: "1234"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: front, namespace: shop, labels: {app: front}}
spec:
  replicas: 2
  selector: {matchLabels: {app: front}}
  template:
    metadata: {labels: {app: front}}
    spec:
      containers:
      - name: main
        image: localhost/toolbox
        ports: [{name: http, containerPort: 8080}]
        resources: {requests: {cpu: 100m, memory: 16Mi}}
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop}
spec:
  type: NodePort
  selector: {app: front}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: dns, port: 53, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: peers, namespace: shop}
spec: {clusterIP: None, selector: {app: front}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: shop}
spec: {type: ExternalName, externalName: example.org}
"#;

/// One kubectl with a home of its own, so that no other cluster's cache is read.
struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
}

impl Kubectl {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", &self.home)
            .env_remove("KUBECTL_EXTERNAL_DIFF");
        command
    }

    /// Runs to the end, off the server's thread, with `input` on standard input.
    async fn run(&self, arguments: &[&str], input: &str) -> Output {
        use std::io::Write as _;
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let input = input.to_owned();
        let running = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().expect("kubectl starts");
            let mut stdin = child.stdin.take().expect("a pipe");
            // kubectl may end before it has read everything.
            let _ = stdin.write_all(input.as_bytes());
            drop(stdin);
            child.wait_with_output().expect("kubectl ends")
        });
        within("kubectl", running).await.expect("kubectl ran")
    }

    /// Standard output of a command that succeeds.
    async fn ok(&self, arguments: &[&str]) -> String {
        self.ok_with(arguments, "").await
    }

    async fn ok_with(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, input).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments:?}: {error}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Standard error of a command that fails.
    async fn fails(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, input).await;
        assert!(!output.status.success(), "kubectl {arguments:?} succeeds");
        String::from_utf8(output.stderr).expect("text")
    }
}

/// The lines of a table as their words.
fn words(table: &str) -> Vec<Vec<&str>> {
    table.lines().map(|line| line.split_whitespace().collect()).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn kubectl_1_20() -> PathBuf {
    let program = root().join(KUBECTL_1_20);
    assert!(program.exists(), "{KUBECTL_1_20} is missing: `./x kubectl` fetches it");
    program
}

/// The kubectl on the PATH, if there is one.
fn kubectl_of_the_machine() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join("kubectl"))
        .find(|file| file.exists())
}

/// Runs a scenario with every kubectl, each against a cluster of its own, controllers running.
async fn with_every_kubectl(name: &str, scenario: impl AsyncFn(&Kubectl, &Client)) {
    for program in [Some(kubectl_1_20()), kubectl_of_the_machine()].into_iter().flatten() {
        let scratch = Scratch::new(name);
        let server = start(&scratch.0, 0).await;
        let (stop, stopping) = tokio::sync::watch::channel(false);
        let controllers = controlplane::drive::run(
            server.running.client(),
            controlplane::drive::config(support::config(), String::new()),
            stopping,
        );
        let controllers = tokio::spawn(controllers);
        let kubectl = Kubectl {
            program,
            kubeconfig: server.kubeconfig.clone(),
            home: scratch.0.join("home"),
        };
        scenario(&kubectl, &server.client).await;
        stop.send_replace(true);
        controllers.await.expect("the controllers end well");
        server.running.stop().await;
    }
}

#[tokio::test]
async fn manifests_apply_and_the_second_time_nothing_changes() {
    with_every_kubectl("apply", async |kubectl, _| {
        let first = kubectl.ok_with(&["apply", "-f", "-"], MANIFESTS).await;
        assert_eq!(first.lines().count(), 7, "{first}");
        assert!(first.lines().all(|line| line.ends_with(" created")), "{first}");
        let second = kubectl.ok_with(&["apply", "-f", "-"], MANIFESTS).await;
        for line in second.lines() {
            // stringData is written only: kubectl sees a difference with the real server too.
            let expected = if line.starts_with("secret/") { "configured" } else { "unchanged" };
            assert!(line.ends_with(expected), "{line}");
        }
        let services = kubectl.ok(&["get", "svc", "-n", "shop"]).await;
        let rows = words(&services);
        assert_eq!(rows[0], ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]);
        assert_eq!(rows[1][..2], ["front", "NodePort"]);
        assert!(rows[1][4].starts_with("80:3") && rows[1][4].ends_with("/UDP"), "{services}");
        assert_eq!(rows[2][..5], ["outside", "ExternalName", "<none>", "example.org", "<none>"]);
        assert_eq!(rows[3][..5], ["peers", "ClusterIP", "None", "<none>", "80/TCP"]);
        let changed = MANIFESTS.replace("tea: \"3\"", "tea: \"4\"");
        let third = kubectl.ok_with(&["apply", "-f", "-"], &changed).await;
        assert!(third.contains("configmap/prices configured"), "{third}");
    })
    .await;
}

#[tokio::test]
async fn the_usual_verbs_work() {
    with_every_kubectl("verbs", async |kubectl, client| {
        kubectl.ok_with(&["apply", "-f", "-"], MANIFESTS).await;
        let cases: [(&[&str], &str); 12] = [
            (&["label", "svc", "front", "tier=front"], "service/front labeled"),
            (&["label", "svc", "front", "tier=back", "--overwrite"], "service/front labeled"),
            (&["annotate", "svc", "front", "note=x"], "service/front annotated"),
            (
                &[
                    "patch",
                    "svc",
                    "front",
                    "-p",
                    r#"{"spec":{"ports":[{"port":80,"name":"web"}]}}"#,
                ],
                "service/front patched",
            ),
            (
                &["patch", "cm", "prices", "--type=merge", "-p", r#"{"data":{"tea":null}}"#],
                "configmap/prices patched",
            ),
            (
                &[
                    "patch",
                    "cm",
                    "prices",
                    "--type=json",
                    "-p",
                    r#"[{"op":"add","path":"/data","value":{"b":"1"}}]"#,
                ],
                "configmap/prices patched",
            ),
            (&["scale", "deploy", "front", "--replicas=3"], "deployment.apps/front scaled"),
            (&["rollout", "restart", "deploy/front"], "deployment.apps/front restarted"),
            (
                &["set", "image", "deploy/front", "main=localhost/host"],
                "deployment.apps/front image updated",
            ),
            (
                &["expose", "deploy", "front", "--name=front2", "--port=81"],
                "service/front2 exposed",
            ),
            (
                &["run", "single", "--image=localhost/toolbox", "--restart=Never"],
                "pod/single created",
            ),
            (&["delete", "svc", "front2"], "service \"front2\" deleted"),
        ];
        for (arguments, expected) in cases {
            let arguments = [&["-n", "shop"][..], arguments].concat();
            let output = kubectl.ok(&arguments).await;
            assert!(output.starts_with(expected), "{arguments:?}: {output}");
        }
        let front = ResourcePath::new("v1", "services").namespace("shop").name("front");
        let service: Value = client.get(&front).await.expect("the Service");
        assert_eq!(service["metadata"]["labels"]["tier"], "back");
        assert_eq!(service["spec"]["ports"][0]["name"], "web");
        assert_eq!(service["spec"]["ports"][1]["port"], 53, "the other port stays");
        let prices = ResourcePath::new("v1", "configmaps").namespace("shop").name("prices");
        let prices: Value = client.get(&prices).await.expect("the ConfigMap");
        assert_eq!(prices["data"], json!({"b": "1"}));
    })
    .await;
}

/// Item 21 of the compatibility list.
#[tokio::test]
async fn server_side_apply_keeps_managers_apart() {
    with_every_kubectl("server-side", async |kubectl, client| {
        const APPLY: [&str; 4] = ["apply", "--server-side", "-f", "-"];
        let prices = ResourcePath::new("v1", "configmaps").namespace("shop").name("prices");
        let stored = async || client.get::<Value>(&prices).await.expect("the ConfigMap");
        let first = kubectl.ok_with(&APPLY, MANIFESTS).await;
        assert_eq!(first.lines().count(), 7, "{first}");
        assert!(first.lines().all(|line| line.ends_with(" serverside-applied")), "{first}");
        let before = stored().await;
        kubectl.ok_with(&APPLY, MANIFESTS).await;
        assert_eq!(stored().await, before, "the same again is no write");
        let entry = &before["metadata"]["managedFields"][0];
        assert_eq!((&entry["manager"], &entry["operation"]), (&json!("kubectl"), &json!("Apply")));
        assert_eq!(entry["fieldsV1"], json!({"f:data": {"f:tea": {}}}));

        let dearer = r#"{"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "prices", "namespace": "shop"}, "data": {"tea": "4"}}"#;
        let other = [&APPLY[..], &["--field-manager=other"]].concat();
        let refused = kubectl.fails(&other, dearer).await;
        let conflict = "Apply failed with 1 conflict: conflict with \"kubectl\": .data.tea";
        assert!(refused.contains(conflict), "{refused}");
        kubectl.ok_with(&[&other[..], &["--force-conflicts"]].concat(), dearer).await;
        assert_eq!(stored().await["data"], json!({"tea": "4"}));
        let shown = kubectl.ok(&["get", "cm", "prices", "-n", "shop", "-o", "yaml"]).await;
        let is_old = kubectl.program == kubectl_1_20();
        assert_eq!(shown.contains("managedFields"), is_old, "1.20 knows no other way: {shown}");
        if !is_old {
            let all = ["get", "cm", "prices", "-n", "shop", "-o", "yaml", "--show-managed-fields"];
            let shown = kubectl.ok(&all).await;
            assert!(shown.contains("manager: other") && shown.contains("f:tea: {}"), "{shown}");
        }
    })
    .await;
}

/// kubectl moves an object from its own apply to the server's: what it applies no more goes.
#[tokio::test]
async fn objects_move_from_clients_apply_to_the_servers() {
    with_every_kubectl("migration", async |kubectl, client| {
        let map = |data: &str| {
            format!(
                r#"{{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {{"name": "c"}},
                "data": {{{data}}}}}"#
            )
        };
        kubectl.ok_with(&["apply", "-f", "-"], &map(r#""a": "1", "b": "1""#)).await;
        let server_side = ["apply", "--server-side", "-f", "-"];
        kubectl.ok_with(&server_side, &map(r#""a": "2", "b": "1""#)).await;
        kubectl.ok_with(&server_side, &map(r#""a": "3""#)).await;
        let path = ResourcePath::new("v1", "configmaps").namespace("default").name("c");
        let object: Value = client.get(&path).await.expect("the ConfigMap");
        assert_eq!(object["data"]["a"], "3");
        let entries = object["metadata"]["managedFields"].as_array().expect("managers");
        assert!(entries.iter().any(|entry| entry["operation"] == "Apply"), "{entries:?}");
        if kubectl.program != kubectl_1_20() {
            // 1.20 leaves its old entry, which goes on owning what it set.
            assert_eq!(object["data"], json!({"a": "3"}), "{entries:?}");
        }
        kubectl.ok_with(&["apply", "-f", "-"], &map(r#""a": "4""#)).await;
        let object: Value = client.get(&path).await.expect("the ConfigMap");
        assert_eq!(object["data"]["a"], "4");
    })
    .await;
}

/// From 1.32 on these bodies are protobuf.
#[tokio::test]
async fn create_commands_make_objects() {
    with_every_kubectl("create", async |kubectl, client| {
        let cases: [(&[&str], &str, Value); 7] = [
            (&["namespace", "shop"], "/api/v1/namespaces/shop", json!({})),
            (
                &["configmap", "c", "--from-literal=a=b"],
                "/api/v1/namespaces/default/configmaps/c",
                json!({"data": {"a": "b"}}),
            ),
            (
                &["secret", "generic", "s", "--from-literal=pin=1234"],
                "/api/v1/namespaces/default/secrets/s",
                json!({"data": {"pin": "MTIzNA=="}, "type": "Opaque"}),
            ),
            (
                &["serviceaccount", "robot"],
                "/api/v1/namespaces/default/serviceaccounts/robot",
                json!({}),
            ),
            (
                &["service", "nodeport", "np", "--tcp=80:8080", "--node-port=30007"],
                "/api/v1/namespaces/default/services/np",
                json!({"spec": {"type": "NodePort", "selector": {"app": "np"}}}),
            ),
            (
                &["service", "externalname", "en", "--external-name=example.org"],
                "/api/v1/namespaces/default/services/en",
                json!({"spec": {"externalName": "example.org", "type": "ExternalName"}}),
            ),
            (
                &["deployment", "d", "--image=localhost/toolbox", "--replicas=2"],
                "/apis/apps/v1/namespaces/default/deployments/d",
                json!({"spec": {"replicas": 2, "selector": {"matchLabels": {"app": "d"}}}}),
            ),
        ];
        for (arguments, path, expected) in cases {
            let arguments = [&["create"][..], arguments].concat();
            let output = kubectl.ok(&arguments).await;
            assert!(output.ends_with(" created\n"), "{arguments:?}: {output}");
            let made = kubectl.ok(&["get", "--raw", path]).await;
            let made: Value = serde_json::from_str(&made).expect("JSON");
            assert!(contains(&made, &expected), "{arguments:?}: {made}");
        }
        let np = ResourcePath::new("v1", "services").namespace("default").name("np");
        let np: Value = client.get(&np).await.expect("the Service");
        let port = &np["spec"]["ports"][0];
        assert_eq!((&port["port"], &port["targetPort"]), (&json!(80), &json!(8080)));
        assert_eq!(port["nodePort"], 30007);
    })
    .await;
}

/// Whether `object` has all that `expected` has.
fn contains(object: &Value, expected: &Value) -> bool {
    match expected {
        Value::Object(fields) => fields.iter().all(|(name, value)| contains(&object[name], value)),
        other => object == other,
    }
}

#[tokio::test]
async fn errors_read_as_the_real_servers_do() {
    with_every_kubectl("errors", async |kubectl, _| {
        let bad = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"bad"},
            "spec":{"sessionAffinity":"Zzz","ports":[{"port":99999}]}}"#;
        let error = kubectl.fails(&["create", "-f", "-"], bad).await;
        assert!(error.starts_with("The Service \"bad\" is invalid: \n* spec."), "{error}");
        assert!(error.contains("Invalid value: 99999: must be between 1 and 65535, inclusive"));
        let cases: [(&[&str], &str); 3] = [
            (&["get", "svc", "nope"], "Error from server (NotFound): services \"nope\" not found"),
            (&["get", "nopes"], "error: the server doesn't have a resource type \"nopes\""),
            (&["get", "pods", "--field-selector=data.a=b"], "Error from server (BadRequest): "),
        ];
        for (arguments, expected) in cases {
            let error = kubectl.fails(arguments, "").await;
            assert!(error.contains(expected), "{arguments:?}: {error}");
        }
    })
    .await;
}

/// Item 24 of the compatibility list: 1.20 refuses by what the server publishes, newer ones are
/// refused by the server.
#[tokio::test]
async fn an_unknown_field_is_told() {
    with_every_kubectl("unknown-field", async |kubectl, _| {
        let map = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"},
            "dataz": {}}"#;
        let error = kubectl.fails(&["create", "-f", "-"], map).await;
        let is_old = kubectl.program == kubectl_1_20();
        let expected = match is_old {
            true => {
                "error: error validating \"STDIN\": error validating data: \
                 ValidationError(ConfigMap): unknown field \"dataz\" in \
                 io.k8s.api.core.v1.ConfigMap"
            }
            false => {
                "Error from server (BadRequest): error when creating \"STDIN\": ConfigMap in \
                 version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown \
                 field \"dataz\""
            }
        };
        assert!(error.starts_with(expected), "{error}");
        // What a client does not look at the server tells.
        let output = kubectl.run(&["create", "--validate=false", "-f", "-"], map).await;
        let error = String::from_utf8(output.stderr).expect("text");
        assert!(output.status.success(), "{error}");
        assert_eq!(error.contains("Warning: unknown field \"dataz\""), is_old, "{error}");
        let patch = r#"{"dataz": {}}"#;
        let output = kubectl.run(&["patch", "cm", "c", "-p", patch], "").await;
        let error = String::from_utf8(output.stderr).expect("text");
        assert!(error.contains("unknown field \"dataz\""), "{error}");
    })
    .await;
}

/// What clients know of kinds from the server's OpenAPI: version 2 for 1.20, version 3 for newer
/// ones.
#[tokio::test]
async fn kinds_are_explained() {
    with_every_kubectl("explain", async |kubectl, _| {
        let pod = kubectl.ok(&["explain", "pod"]).await;
        for field in ["apiVersion", "metadata", "spec", "status"] {
            let line = pod.lines().find(|line| line.trim_start().starts_with(field));
            assert!(line.is_some(), "{field}: {pod}");
        }
        let spec = kubectl.ok(&["explain", "pod.spec"]).await;
        let line = spec.lines().find(|line| line.trim_start().starts_with("containers"));
        let line = line.expect("a line");
        assert!(line.contains("<[]") && line.contains("required"), "{line}");
        let tree = kubectl.ok(&["explain", "deployment.spec.strategy", "--recursive"]).await;
        let wanted = ["rollingUpdate", "maxSurge", "maxUnavailable", "type"];
        let found: Vec<&str> =
            tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
        assert!(found.ends_with(&wanted), "{tree}");
        // A kind whose schema refers to itself.
        kubectl.ok(&["explain", "crd", "--recursive"]).await;
        let error = kubectl.fails(&["explain", "pod.spec.nope"], "").await;
        assert!(error.contains("nope"), "{error}");
    })
    .await;
}

/// Item 22 of the compatibility list.
#[tokio::test]
async fn changes_are_tried_and_shown_before_they_are_made() {
    with_every_kubectl("diff", async |kubectl, _| {
        let tried = kubectl.ok_with(&["apply", "--dry-run=server", "-f", "-"], GADGETS).await;
        assert!(tried.ends_with("created (server dry run)\n"), "{tried}");
        kubectl.ok(&["create", "ns", "shop"]).await;
        let tried = kubectl.ok_with(&["apply", "--dry-run=server", "-f", "-"], MANIFESTS).await;
        let is_tried = |line: &str| line.ends_with("(server dry run)");
        assert!(tried.lines().count() == 7 && tried.lines().all(is_tried), "{tried}");
        let left = kubectl.ok(&["get", "cm,deploy,svc", "-n", "shop", "-o", "name"]).await;
        assert!(!left.contains("front") && !left.contains("prices"), "{left}");

        kubectl.ok_with(&["apply", "-f", "-"], MANIFESTS).await;
        let prices = &MANIFESTS.split("---\n").nth(1).expect("a ConfigMap");
        let output = kubectl.run(&["diff", "-f", "-"], prices).await;
        assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
        let output = kubectl.run(&["diff", "-f", "-"], &prices.replace("\"3\"", "\"4\"")).await;
        let shown = String::from_utf8(output.stdout).expect("text");
        assert_eq!(output.status.code(), Some(1), "{shown}");
        assert!(shown.contains("-  tea: \"3\"\n+  tea: \"4\""), "{shown}");

        kubectl.ok_with(&["apply", "-f", "-"], GADGETS).await;
        kubectl.ok(&["wait", "--for=condition=Established", "crd/gadgets.example.com"]).await;
        let tried = kubectl.ok_with(&["apply", "--dry-run=server", "-f", "-"], GADGET).await;
        assert!(is_tried(tried.trim()), "{tried}");
        kubectl.fails(&["get", "gd", "big"], "").await;
    })
    .await;
}

#[tokio::test]
async fn describe_and_events_show_what_the_controllers_did() {
    with_every_kubectl("describe", async |kubectl, client| {
        kubectl.ok_with(&["apply", "-f", "-"], MANIFESTS).await;
        let path = ResourcePath::new("apps/v1", "deployments").namespace("shop").name("front");
        support::eventually("the Deployment is acted upon", async || {
            let deployment: Value = client.get(&path).await.expect("the Deployment");
            deployment["status"]["replicas"] == 2
        })
        .await;
        let deployment = kubectl.ok(&["describe", "deploy", "front", "-n", "shop"]).await;
        assert!(
            deployment.contains("2 desired | 2 updated | 2 total | 0 available"),
            "{deployment}"
        );
        let service = kubectl.ok(&["describe", "svc", "front", "-n", "shop"]).await;
        assert!(service.contains("Selector:") && service.contains("app=front"), "{service}");
        let pods = kubectl.ok(&["get", "pods", "-n", "shop", "-o", "wide", "--show-labels"]).await;
        assert_eq!(words(&pods).len(), 3, "{pods}");
        assert!(pods.contains("app=front,pod-template-hash="), "{pods}");
        support::eventually("the events are there", async || {
            kubectl.ok(&["get", "events", "-n", "shop"]).await.contains("ScalingReplicaSet")
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_watch_prints_changes_as_they_come() {
    with_every_kubectl("watch", async |kubectl, client| {
        kubectl.ok_with(&["apply", "-f", "-"], MANIFESTS).await;
        let mut command = kubectl.command(&["get", "cm", "prices", "-n", "shop", "-w"]);
        command.stdout(Stdio::piped());
        let mut child = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .expect("kubectl starts");
        let output = child.stdout.take().expect("a pipe");
        let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(output));
        let mut line =
            async || within("a line", lines.next_line()).await.expect("output").expect("a line");
        assert!(line().await.starts_with("NAME"));
        assert_eq!(line().await.split_whitespace().nth(1), Some("1"));
        let path = ResourcePath::new("v1", "configmaps").namespace("shop").name("prices");
        let patch = json!({"data": {"coffee": "4"}});
        let _: Value = client.patch(&path, PatchKind::Merge, &patch).await.expect("patched");
        assert_eq!(line().await.split_whitespace().nth(1), Some("2"), "the new count of data");
    })
    .await;
}

#[tokio::test]
async fn deleting_a_namespace_takes_its_content_along() {
    with_every_kubectl("namespace", async |kubectl, _| {
        kubectl.ok_with(&["apply", "-f", "-"], MANIFESTS).await;
        let timeout = format!("--timeout={}s", DEADLINE.as_secs());
        kubectl.ok(&["delete", "ns", "shop", &timeout]).await;
        let error = kubectl.fails(&["get", "ns", "shop"], "").await;
        assert!(error.contains("NotFound"), "{error}");
        let left = kubectl.ok(&["get", "all,cm,secret,endpointslices", "-A"]).await;
        assert!(!left.contains("shop "), "{left}");
    })
    .await;
}

/// S-13: `kubectl get` of ranges and addresses.
#[tokio::test]
async fn ranges_and_addresses_are_listed() {
    with_every_kubectl("addresses", async |kubectl, _| {
        let output = kubectl.ok(&["get", "servicecidrs"]).await;
        let ranges = words(&output);
        assert_eq!(ranges[0], ["NAME", "CIDRS", "AGE"]);
        assert_eq!(ranges[1][..2], ["kubernetes", "10.96.0.0/16"]);
        let more = r#"{"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": "more"}, "spec": {"cidrs": ["10.97.0.0/24"]}}"#;
        let created = kubectl.ok_with(&["create", "-f", "-"], more).await;
        assert_eq!(created.trim(), "servicecidr.networking.k8s.io/more created");
        kubectl.ok(&["wait", "--for=condition=Ready", "servicecidr/more"]).await;
        kubectl.ok(&["create", "service", "clusterip", "far", "--tcp=80"]).await;
        let output = kubectl.ok(&["get", "ip"]).await;
        let addresses = words(&output);
        assert_eq!(addresses[0], ["NAME", "PARENTREF", "AGE"]);
        let parents: Vec<&str> = addresses[1..].iter().map(|row| row[1]).collect();
        for parent in ["default/kubernetes", "kube-system/kube-dns", "default/far"] {
            let parent = format!("services/{parent}");
            assert!(parents.contains(&parent.as_str()), "{parent}: {addresses:?}");
        }
        kubectl.ok(&["delete", "servicecidr", "more"]).await;
    })
    .await;
}

const GADGETS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gadgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: gadgets, kind: Gadget, shortNames: [gd], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [size]
            properties:
              size: {type: integer, minimum: 1, description: How large it is.}
              color: {type: string, default: red}
              replicas: {type: integer}
          status:
            type: object
            properties:
              replicas: {type: integer}
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size}
    - {name: Color, type: string, jsonPath: .spec.color}
"#;

const GADGET: &str = r#"
apiVersion: example.com/v1
kind: Gadget
metadata: {name: big}
spec: {size: 9, replicas: 1}
"#;

/// Entry 26 of the compatibility list.
#[tokio::test]
async fn custom_resources_are_like_any_others() {
    with_every_kubectl("definitions", async |kubectl, client| {
        kubectl.ok_with(&["apply", "-f", "-"], GADGETS).await;
        kubectl.ok(&["wait", "--for=condition=Established", "crd/gadgets.example.com"]).await;
        let listed =
            kubectl.ok(&["api-resources", "--api-group=example.com", "--no-headers"]).await;
        assert!(words(&listed)[0].starts_with(&["gadgets", "gd"]), "{listed}");
        let told = kubectl.ok(&["explain", "gadgets.spec.size"]).await;
        assert!(told.contains("How large it is."), "{told}");
        let told = kubectl.ok(&["explain", "gadgets.metadata.finalizers"]).await;
        assert!(told.contains("<[]string>"), "{told}");

        let applied = kubectl.ok_with(&["apply", "-f", "-"], GADGET).await;
        assert_eq!(applied.trim(), "gadget.example.com/big created");
        let applied = kubectl.ok_with(&["apply", "-f", "-"], GADGET).await;
        assert_eq!(applied.trim(), "gadget.example.com/big unchanged");
        let table = kubectl.ok(&["get", "gd"]).await;
        assert_eq!(words(&table), [["NAME", "SIZE", "COLOR"], ["big", "9", "red"]]);
        let error =
            kubectl.fails(&["apply", "-f", "-"], &GADGET.replace("size: 9", "size: 0")).await;
        let expected =
            "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1";
        assert!(error.contains(expected), "{error}");

        kubectl.ok(&["scale", "gadget/big", "--replicas=4"]).await;
        let patch = r#"{"spec":{"color":"blue"}}"#;
        kubectl.ok(&["patch", "gd", "big", "--type=merge", "-p", patch]).await;
        let shown = kubectl.ok(&["get", "gd", "big", "-o", "jsonpath={.spec}"]).await;
        let spec: Value = serde_json::from_str(&shown).expect("JSON");
        assert_eq!(spec, json!({"size": 9, "replicas": 4, "color": "blue"}));
        let error =
            kubectl.fails(&["patch", "gd", "big", "--type=strategic", "-p", patch], "").await;
        assert!(
            error.contains("415")
                || error.contains("UnsupportedMediaType")
                || error.contains("not supported"),
            "{error}"
        );
        kubectl.ok_with(&["apply", "--server-side", "--force-conflicts", "-f", "-"], GADGET).await;

        let timeout = format!("--timeout={}s", DEADLINE.as_secs());
        kubectl.ok(&["delete", "crd", "gadgets.example.com", &timeout]).await;
        let error = kubectl.fails(&["get", "gadgets"], "").await;
        assert!(error.contains("gadgets"), "{error}");
        let path = ResourcePath::new("example.com/v1", "gadgets").namespace("default").name("big");
        let gone = client.get_optional::<Value>(&path).await.expect("an answer");
        assert_eq!(gone, None);
    })
    .await;
}

/// A server that starts again knows its definitions before the objects that they make readable.
#[tokio::test]
async fn definitions_and_their_objects_outlive_the_server() {
    let scratch = Scratch::new("definitions-restart");
    let server = start(&scratch.0, 0).await;
    let apply = async |client: &Client, path: &ResourcePath, text: &str| {
        let body: Value = serde_yaml_ng::from_str(text).expect("YAML");
        client.create::<_, Value>(path, &body).await.expect("made")
    };
    let crds = ResourcePath::new("apiextensions.k8s.io/v1", "customresourcedefinitions");
    apply(&server.client, &crds, GADGETS).await;
    let gadgets = ResourcePath::new("example.com/v1", "gadgets").namespace("default");
    apply(&server.client, &gadgets, GADGET).await;
    server.running.stop().await;
    let server = start(&scratch.0, 0).await;
    let found: Value = server.client.get(&gadgets.clone().name("big")).await.expect("there");
    assert_eq!(found["spec"]["color"], "red");
    let options = client::DeleteOptions::default();
    let _: Value =
        server.client.delete(&crds.name("gadgets.example.com"), &options).await.expect("deleted");
    server.running.stop().await;
    // The log has entries of a kind that nobody knows now.
    let server = start(&scratch.0, 0).await;
    let gone = server.client.get_optional::<Value>(&gadgets.name("big")).await.expect("an answer");
    assert_eq!(gone, None);
    server.running.stop().await;
}
