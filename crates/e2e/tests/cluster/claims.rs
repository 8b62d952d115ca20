//! Claims and quotas, as people use them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::flatnet;
use e2e::eventually;

use super::kubectl::clients;
use super::world::World;

const NAMESPACE: &str = "claims";
const SOON: Duration = Duration::from_secs(30);

/// Pods that keep what they are told, as somebody who is not root.
const SET: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: claims}
spec:
  replicas: 2
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: {runAsUser: 1000}
      containers:
      - name: db
        image: localhost/host
        command: [sh, -c, "echo start >> /data/log; exec sleep 1000000"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec:
      accessModes: [ReadWriteOnce]
      resources: {requests: {storage: 10Mi}}
"#;

/// A StatefulSet's data outlives its pods and goes with the claims.
pub fn data_outlives_pods(world: &World) -> Result<()> {
    let cluster = &world.cluster;
    cluster.kubectl(&["create", "namespace", NAMESPACE])?;
    cluster.apply(SET)?;
    let ready = |name: &str| cluster.pod_ready(NAMESPACE, name);
    let (first, second) = (ready("db-0")?, ready("db-1")?);
    let words = ["one", "two"];
    for (pod, word) in ["db-0", "db-1"].into_iter().zip(words) {
        says(world, pod, "start\n")?;
        let command = format!("echo {word} >> /data/log");
        cluster.exec(NAMESPACE, pod, &["sh", "-c", &command])?;
    }
    let classes = cluster.kubectl(&["get", "storageclass"])?;
    ensure!(classes.contains("standard (default)"), "{classes}");
    let shown = cluster.kubectl(&["get", "pvc", "-n", NAMESPACE])?;
    ensure!(shown.matches("Bound").count() == 2 && shown.contains("10Mi"), "{shown}");
    cluster.kubectl(&["delete", "pod", "db-0", "db-1", "-n", NAMESPACE])?;
    for (old, word) in [(&first, words[0]), (&second, words[1])] {
        let name = old["metadata"]["name"].as_str().context("a name")?;
        let new = eventually("the pod is there again", SOON, || {
            let new = ready(name)?;
            ensure!(new["metadata"]["uid"] != old["metadata"]["uid"], "still the old {name}");
            Ok(new)
        })?;
        ensure!(new["spec"]["nodeName"] == old["spec"]["nodeName"], "{name} moved from its data");
        says(world, name, &format!("start\n{word}\nstart\n"))?;
    }
    let directories = directories(world)?;
    ensure!(directories.iter().all(|path| path.join("log").is_file()), "{directories:?}");
    cluster.kubectl(&["delete", "statefulset,pvc", "--all", "-n", NAMESPACE, "--wait=false"])?;
    eventually("claims, volumes and data are gone", SOON, || {
        let left = cluster.list(NAMESPACE, "pvc", "")?.len();
        ensure!(left == 0, "{left} claims are left");
        let left = directories.iter().filter(|path| path.exists()).count();
        ensure!(left == 0, "{left} directories are left");
        let volumes = cluster.kubectl(&["get", "pv"])?;
        ensure!(!volumes.contains("claims/data-db"), "{volumes}");
        Ok(())
    })?;
    cluster.kubectl(&["delete", "namespace", NAMESPACE]).map(drop)
}

/// What a claim holds is there when a cluster that was stopped comes back.
pub fn data_outlives_a_stop(world: &World) -> Result<()> {
    let cluster = &world.cluster;
    cluster.kubectl(&["create", "namespace", NAMESPACE])?;
    cluster.apply(SET)?;
    cluster.pod_ready(NAMESPACE, "db-1")?;
    says(world, "db-0", "start\n")?;
    cluster.exec(NAMESPACE, "db-0", &["sh", "-c", "echo kept >> /data/log"])?;
    flatnet(&["down", "--name", &cluster.name, "--keep"])?;
    flatnet(&["up", "--name", &cluster.name])?;
    says(world, "db-0", "start\nkept\nstart\n")?;
    cluster.kubectl(&["delete", "namespace", NAMESPACE]).map(drop)
}

/// Waits until a pod's data is this: its shell writes when it begins, a moment after it is ready.
fn says(world: &World, pod: &str, wanted: &str) -> Result<()> {
    eventually(&format!("{pod} has its data"), SOON, || {
        let log = world.cluster.exec(NAMESPACE, pod, &["cat", "/data/log"])?;
        ensure!(log == wanted, "{log:?}");
        Ok(())
    })
}

/// Where the claims of the namespace keep their data.
fn directories(world: &World) -> Result<Vec<PathBuf>> {
    let claims = world.cluster.list(NAMESPACE, "pvc", "")?;
    ensure!(claims.len() == 2, "{claims:?}");
    let directory = |claim: &serde_json::Value| {
        let volume = claim["spec"]["volumeName"].as_str().context("a volume")?;
        let found = world.cluster.get("", "pv", volume)?;
        let path = found["spec"]["hostPath"]["path"].as_str().context("a path")?;
        Ok(PathBuf::from(path))
    };
    claims.iter().map(directory).collect()
}

/// Quotas refuse, count and are described, by every kubectl.
pub fn quotas(world: &World) -> Result<()> {
    for client in clients(world) {
        let run = |arguments: &str| {
            let arguments: Vec<&str> = arguments.split(' ').collect();
            world.cluster.kubectl_by(client, &arguments)
        };
        run("create namespace quotas")?;
        run("create quota few -n quotas --hard=pods=1,configmaps=5,count/deployments.apps=0")?;
        run("create quota best -n quotas --hard=pods=9 --scopes=BestEffort")?;
        run("run first -n quotas --image=localhost/host --command -- sleep 1000000")?;
        let told = |asked: Result<String>| match asked {
            Ok(text) => format!("taken: {text}"),
            Err(error) => format!("{error:#}"),
        };
        let refused = told(run("run second -n quotas --image=localhost/host"));
        let wanted = "pods \"second\" is forbidden: exceeded quota: few, requested: pods=1, used: \
                      pods=1, limited: pods=1";
        ensure!(refused.contains(wanted), "{refused}");
        let refused = told(run("create deployment web -n quotas --image=localhost/host"));
        ensure!(refused.contains("limited: count/deployments.apps=0"), "{refused}");
        let described = run("describe quota few -n quotas")?;
        let rows: Vec<Vec<&str>> =
            described.lines().map(|line| line.split_whitespace().collect()).collect();
        ensure!(rows.contains(&vec!["pods", "1", "1"]), "{described}");
        let described = run("describe quota best -n quotas")?;
        ensure!(described.contains("BestEffort"), "{described}");
        let shown = run("get quota few -n quotas")?;
        ensure!(shown.contains("pods: 1/1"), "{shown}");
        run("delete pod first -n quotas --now")?;
        run("delete namespace quotas")?;
    }
    Ok(())
}
