//! Deployments under load, and what is deleted with what.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::cluster::is_ready;
use e2e::eventually;
use serde_json::Value;

use super::world::{NAMESPACE, World};

/// How long the load of one scenario lasts.
const LOAD_S: u64 = 25;
/// What R-20 gives for a rolling update: pods, and new connections a second, by so many clients. A
/// machine that cannot make as many is asked for no more than it can; the rate is printed.
const UPDATED_PODS: usize = 10;
const UPDATE_RATE: u64 = 2000;
const UPDATE_CLIENTS: u64 = 32;

/// A hook before pods end, so that they serve on while the change reaches all.
const SLEEP: &str = "{sleep: {seconds: 3}}";
/// The same as kubectl 1.20 knows it: its `rollout undo` writes back what it knows of a template,
/// and a hook without a handler is refused.
const SLEEP_BY_COMMAND: &str = r#"{exec: {command: [toolbox, sleep, "3"]}}"#;

fn web_deployment(replicas: usize, version: &str, hook: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: shopfront, namespace: {NAMESPACE}, labels: {{app: shopfront}}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: shopfront}}}}
  template:
    metadata: {{labels: {{app: shopfront}}, annotations: {{version: "{version}"}}}}
    spec:
      terminationGracePeriodSeconds: 20
      containers:
      - name: web
        image: localhost/toolbox
        args: [serve, --http, "8080"]
        lifecycle: {{preStop: {hook}}}
        ports: [{{name: http, containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /ready, port: http}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: shopfront, namespace: {NAMESPACE}}}
spec:
  selector: {{app: shopfront}}
  ports: [{{port: 80, targetPort: http}}]
"#
    )
}

fn addresses(world: &World) -> Result<BTreeSet<String>> {
    let pods = world.cluster.list(NAMESPACE, "pods", "app=shopfront")?;
    Ok(pods.iter().filter_map(|pod| pod["status"]["podIP"].as_str().map(Into::into)).collect())
}

fn scale(world: &World, replicas: usize) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    world.cluster.kubectl(&["scale", "-n", NAMESPACE, "deployment/shopfront", &replicas])?;
    world.cluster.rolled_out(NAMESPACE, "shopfront")
}

pub fn scale_under_load(world: &World) -> Result<()> {
    world.cluster.apply(&web_deployment(2, "1", SLEEP))?;
    world.cluster.rolled_out(NAMESPACE, "shopfront")?;
    let address = world.cluster_ip("shopfront")?;
    let before = addresses(world)?;
    world.start_load("load-scale", &format!("http://{address}/"), LOAD_S)?;
    let pods = world.cluster.list(NAMESPACE, "pods", "app=shopfront")?;
    let first = pods[0]["metadata"]["name"].as_str().unwrap_or_default();
    world.cluster.kubectl(&["delete", "pod", "-n", NAMESPACE, first])?;
    world.cluster.rolled_out(NAMESPACE, "shopfront")?;
    ensure!(addresses(world)? != before, "the new pod should have a new address: {before:?}");
    scale(world, 10)?;
    scale(world, 1)?;
    let result = world.ensure_no_failure("load-scale", LOAD_S)?;
    ensure!(world.cluster_ip("shopfront")? == address, "the Service should keep its address");
    let pods = result["by_pod"].as_object().map_or(0, serde_json::Map::len);
    ensure!(pods >= 3, "new pods should have answered too: {result}");
    Ok(())
}

/// R-20.
pub fn rolling_update_under_load(world: &World) -> Result<()> {
    world.cluster.apply(&web_deployment(UPDATED_PODS, "1", SLEEP_BY_COMMAND))?;
    world.cluster.rolled_out(NAMESPACE, "shopfront")?;
    let before = addresses(world)?;
    let address = world.cluster_ip("shopfront")?;
    let url = format!("http://{address}/");
    world.start_load_of("load-update", &url, LOAD_S, UPDATE_RATE, UPDATE_CLIENTS)?;
    let began = Instant::now();
    world.cluster.apply(&web_deployment(UPDATED_PODS, "2", SLEEP_BY_COMMAND))?;
    world.cluster.rolled_out(NAMESPACE, "shopfront")?;
    println!("    {UPDATED_PODS} pods were replaced in {} ms", began.elapsed().as_millis());
    world.ensure_no_failure("load-update", LOAD_S)?;
    let after = addresses(world)?;
    ensure!(before.is_disjoint(&after), "pods were not replaced: {before:?}, {after:?}");
    let history =
        world.cluster.kubectl(&["rollout", "history", "-n", NAMESPACE, "deployment/shopfront"])?;
    ensure!(history.lines().filter(|line| line.starts_with(['1', '2'])).count() == 2, "{history}");
    world.cluster.kubectl(&["rollout", "undo", "-n", NAMESPACE, "deployment/shopfront"])?;
    world.cluster.rolled_out(NAMESPACE, "shopfront")?;
    scale(world, 0)?;
    // Pods that end still serve while nobody else does (KEP-1669); after them connections are
    // refused, and none hangs.
    eventually("connections are refused at once", Duration::from_secs(15), || {
        let url = format!("http://{address}/");
        let curl = ["curl", "-s", "-o", "/dev/null", "--max-time", "2", &url];
        match world.cluster.exec(NAMESPACE, "tools", &curl) {
            Ok(_) => bail!("a pod that ends still answers"),
            // curl: 7 is a refused connection, 28 a timeout.
            Err(error) if format!("{error:#}").contains("code 7") => Ok(()),
            Err(error) => panic!("neither answered nor refused: {error:#}"),
        }
    })?;
    eventually("the pods are gone", Duration::from_secs(20), || {
        ensure!(addresses(world)?.is_empty());
        Ok(())
    })?;
    let target = ["-n", NAMESPACE, "deployment/shopfront", "service/shopfront"];
    let mut delete = vec!["delete"];
    delete.extend(target);
    world.cluster.kubectl(&delete).map(drop)
}

pub fn namespace_deletion(world: &World) -> Result<()> {
    let manifest = web_deployment(2, "1", SLEEP)
        .replace(&format!("namespace: {NAMESPACE}"), "namespace: doomed");
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: doomed}\n---";
    world.cluster.apply(&format!("{namespace}{manifest}"))?;
    world.cluster.rolled_out("doomed", "shopfront")?;
    world.cluster.kubectl(&["delete", "namespace", "doomed", "--timeout=60s"])?;
    let left = world.cluster.kubectl(&["get", "all", "-n", "doomed", "-o", "name"])?;
    ensure!(left.is_empty(), "left: {left}");
    Ok(())
}

/// A DaemonSet on every node, and a StatefulSet of two pods whose budget lets none go.
fn sets(version: &str) -> String {
    let template = |app: &str| {
        format!(
            r#"
  selector: {{matchLabels: {{app: {app}}}}}
  template:
    metadata: {{labels: {{app: {app}}}, annotations: {{version: "{version}"}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: localhost/toolbox
        args: [serve, --http, "8080"]
        ports: [{{name: http, containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /ready, port: http}}, periodSeconds: 1}}
"#
        )
    };
    format!(
        r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: watchman, namespace: {NAMESPACE}}}
spec:{}---
apiVersion: v1
kind: Service
metadata: {{name: ledger, namespace: {NAMESPACE}}}
spec: {{clusterIP: None, selector: {{app: ledger}}, ports: [{{port: 8080}}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: ledger, namespace: {NAMESPACE}}}
spec:
  replicas: 2
  serviceName: ledger{}---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{name: ledger, namespace: {NAMESPACE}}}
spec: {{minAvailable: 2, selector: {{matchLabels: {{app: ledger}}}}}}
"#,
        template("watchman"),
        template("ledger"),
    )
}

/// The version of each pod of an app, by the node or name of the pod.
fn versions(world: &World, app: &str, by: &str) -> Result<BTreeMap<String, String>> {
    let pods = world.cluster.list(NAMESPACE, "pods", &format!("app={app}"))?;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let version = "/metadata/annotations/version";
    // One that leaves may still be there beside its successor.
    let stays = |pod: &&Value| pod.pointer("/metadata/deletionTimestamp").is_none();
    Ok(pods
        .iter()
        .filter(stays)
        .map(|pod| (text(pod.pointer(by)), text(pod.pointer(version))))
        .collect())
}

fn rollout(world: &World, verb: &str, set: &str) -> Result<String> {
    let mut arguments = vec!["rollout", verb, "-n", NAMESPACE, set];
    if verb == "status" {
        arguments.push("--timeout=90s");
    }
    world.cluster.kubectl(&arguments)
}

/// Spec api-server.md 4.3, 18 and 33: rollouts of both kinds, and a drain that a budget stops.
pub fn sets_roll_out_and_budgets_stop_drains(world: &World) -> Result<()> {
    let kinds = ["daemonset/watchman", "statefulset/ledger"];
    let expect = |version: &str| -> Result<()> {
        for set in kinds {
            rollout(world, "status", set)?;
        }
        let on_nodes = versions(world, "watchman", "/spec/nodeName")?;
        let wanted: BTreeMap<String, String> =
            world.cluster.nodes.iter().map(|node| (node.clone(), version.to_owned())).collect();
        ensure!(on_nodes == wanted, "the DaemonSet's pods: {on_nodes:?}");
        let by_name = versions(world, "ledger", "/metadata/name")?;
        let wanted = ["ledger-0", "ledger-1"].map(|name| (name.to_owned(), version.to_owned()));
        ensure!(by_name == BTreeMap::from(wanted), "the StatefulSet's pods: {by_name:?}");
        Ok(())
    };
    for version in ["1", "2"] {
        world.cluster.apply(&sets(version))?;
        expect(version)?;
    }
    for set in kinds {
        let history = rollout(world, "history", set)?;
        let revisions = history.lines().filter(|line| line.starts_with(['1', '2'])).count();
        ensure!(revisions == 2, "{set}: {history}");
        rollout(world, "undo", set)?;
    }
    expect("1")?;
    drained(world)?;
    world.cluster.kubectl(&["delete", "-n", NAMESPACE, "service/ledger", kinds[0], kinds[1]])?;
    Ok(())
}

/// Drains the node of a pod of the StatefulSet: not while its budget forbids that.
fn drained(world: &World) -> Result<()> {
    let node = world.cluster.field(NAMESPACE, "pod", "ledger-0", "/spec/nodeName")?;
    let drain = |timeout: &str| {
        let selector = "--pod-selector=app=ledger";
        world.cluster.kubectl(&["drain", &node, selector, timeout])
    };
    eventually("the budget counts both pods", Duration::from_secs(20), || {
        let healthy = world.cluster.get(NAMESPACE, "pdb", "ledger")?;
        ensure!(healthy["status"]["currentHealthy"] == 2, "{}", healthy["status"]);
        Ok(())
    })?;
    let refused = drain("--timeout=3s");
    let text = refused.map_or_else(|error| format!("{error:#}"), |text| format!("drained: {text}"));
    let why = "Cannot evict pod as it would violate the pod's disruption budget";
    ensure!(text.contains(why), "{text}");
    world.cluster.kubectl(&["delete", "pdb", "-n", NAMESPACE, "ledger"])?;
    drain("--timeout=60s")?;
    eventually("the pod lives on elsewhere", Duration::from_secs(60), || {
        let pod = world.cluster.get(NAMESPACE, "pod", "ledger-0")?;
        ensure!(is_ready(&pod) && pod["spec"]["nodeName"] != node.as_str());
        Ok(())
    })?;
    world.cluster.kubectl(&["uncordon", &node]).map(drop)
}

/// A Job with indexes: each is done once, `kubectl wait` sees the end, and nothing is left.
pub fn jobs_run_to_their_end(world: &World) -> Result<()> {
    world.cluster.apply(&format!(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {{name: tally, namespace: {NAMESPACE}}}
spec:
  completions: 3
  parallelism: 2
  completionMode: Indexed
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: tally
        image: localhost/host
        command: [sh, -c, "echo index $JOB_COMPLETION_INDEX"]
"#
    ))?;
    let wait = ["wait", "-n", NAMESPACE, "job/tally", "--for=condition=complete", "--timeout=90s"];
    world.cluster.kubectl(&wait)?;
    let job = world.cluster.get(NAMESPACE, "job", "tally")?;
    let status = &job["status"];
    ensure!(status["succeeded"] == 3 && status["completedIndexes"] == "0-2", "{status}");
    let pods = world.cluster.list(NAMESPACE, "pods", "job-name=tally")?;
    let mut said = BTreeSet::new();
    for pod in &pods {
        ensure!(pod["metadata"]["finalizers"].is_null(), "{}", pod["metadata"]);
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        said.insert(world.cluster.kubectl(&["logs", "-n", NAMESPACE, name])?.trim().to_owned());
    }
    let wanted = ["index 0", "index 1", "index 2"].map(String::from);
    ensure!(said == BTreeSet::from(wanted), "{said:?}");
    world.cluster.kubectl(&["delete", "-n", NAMESPACE, "job/tally", "--timeout=30s"])?;
    eventually("its pods are gone too", Duration::from_secs(30), || {
        let left = world.cluster.list(NAMESPACE, "pods", "job-name=tally")?;
        ensure!(left.is_empty(), "{} pods are left", left.len());
        Ok(())
    })?;
    failures_mean_what_jobs_say(world)
}

fn job(name: &str, spec: &str, command: &str) -> String {
    format!(
        r#"---
apiVersion: batch/v1
kind: Job
metadata: {{name: {name}, namespace: {NAMESPACE}}}
spec:
  {spec}
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: localhost/host
        command: [sh, -c, "{command}"]
"#
    )
}

/// An exit code that ends its Job at once, and a pod that is deleted and made anew once it is known
/// how it ended.
fn failures_mean_what_jobs_say(world: &World) -> Result<()> {
    let rule = "podFailurePolicy: {rules: [{action: FailJob, onExitCodes: {operator: In, \
                values: [42]}}]}";
    let patient = "podReplacementPolicy: Failed";
    world.cluster.apply(&job("picky", rule, "exit 42"))?;
    world.cluster.apply(&job("patient", patient, "sleep infinity"))?;
    let wait = ["wait", "-n", NAMESPACE, "job/picky", "--for=condition=failed", "--timeout=60s"];
    world.cluster.kubectl(&wait)?;
    let status = world.cluster.get(NAMESPACE, "job", "picky")?["status"].clone();
    let told = status["conditions"].to_string();
    let why = "failed with exit code 42 matching FailJob rule at index 0";
    ensure!(status["failed"] == 1 && told.contains(why), "{status}");
    let running = || -> Result<String> {
        let pods = world.cluster.list(NAMESPACE, "pods", "job-name=patient")?;
        let name = pods.iter().find(|pod| is_ready(pod)).map(|pod| pod["metadata"]["name"].clone());
        name.and_then(|name| Some(name.as_str()?.to_owned())).context("no pod of it runs")
    };
    let first = eventually("the patient Job runs", Duration::from_secs(60), running)?;
    world.cluster.kubectl(&["delete", "pod", "-n", NAMESPACE, &first, "--wait=false"])?;
    eventually("its pod is made anew", Duration::from_secs(60), || {
        let status = world.cluster.get(NAMESPACE, "job", "patient")?["status"].clone();
        ensure!(status["failed"] == 1 && running()? != first, "{status}");
        Ok(())
    })?;
    world.cluster.kubectl(&["delete", "-n", NAMESPACE, "job/picky", "job/patient"]).map(drop)
}

/// A pod of a higher priority takes the place of another, and one without a place says why.
pub fn priorities_decide(world: &World) -> Result<()> {
    let node = &world.cluster.nodes[0];
    let allocatable = world.cluster.get(NAMESPACE, "node", node)?["status"]["allocatable"].clone();
    let processors = allocatable["cpu"].as_str().and_then(|text| text.parse::<u32>().ok());
    let asked = processors.context("a number of processors")? * 600;
    let pod = |name: &str, class: &str| {
        format!(
            r#"---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {NAMESPACE}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  priorityClassName: "{class}"
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: localhost/toolbox
    args: [serve, --http, "8080"]
    resources: {{requests: {{cpu: {asked}m}}}}
"#
        )
    };
    world.cluster.apply(&pod("modest", ""))?;
    world.cluster.pod_ready(NAMESPACE, "modest")?;
    let class = "apiVersion: scheduling.k8s.io/v1\nkind: PriorityClass\n\
                 metadata: {name: important}\nvalue: 1000\n";
    world.cluster.apply(&format!("{class}{}", pod("important", "important")))?;
    world.cluster.pod_ready(NAMESPACE, "important")?;
    eventually("the modest pod goes", Duration::from_secs(20), || {
        ensure!(world.cluster.get(NAMESPACE, "pod", "modest").is_err());
        Ok(())
    })?;
    world.cluster.apply(&pod("late", ""))?;
    let wanted = "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't match Pod's node \
                  affinity/selector. preemption: 0/3 nodes are available: 1 No preemption victims \
                  found for incoming pod, 2 Preemption is not helpful for scheduling.";
    for (reason, words) in [("Preempted", "Preempted by pod"), ("FailedScheduling", wanted)] {
        eventually(reason, Duration::from_secs(20), || {
            let selector = format!("--field-selector=reason={reason}");
            let events = world.cluster.kubectl(&["get", "events", "-n", NAMESPACE, &selector])?;
            ensure!(events.contains(words), "{events}");
            Ok(())
        })?;
    }
    world.cluster.kubectl(&["delete", "pod", "-n", NAMESPACE, "important", "late"])?;
    world.cluster.kubectl(&["delete", "priorityclass", "important"]).map(drop)
}
