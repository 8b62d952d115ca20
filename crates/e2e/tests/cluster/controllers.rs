//! Deployments under load, and what is deleted with what.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use e2e::eventually;

use super::world::{NAMESPACE, World};

/// How long the load of one scenario lasts.
const LOAD_S: u64 = 25;

fn web_deployment(replicas: usize, version: &str) -> String {
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
      terminationGracePeriodSeconds: 10
      containers:
      - name: web
        image: localhost/toolbox
        args: [serve, --http, "8080"]
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
    world.cluster.apply(&web_deployment(2, "1"))?;
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

pub fn rolling_update_under_load(world: &World) -> Result<()> {
    world.cluster.apply(&web_deployment(4, "1"))?;
    world.cluster.rolled_out(NAMESPACE, "shopfront")?;
    let before = addresses(world)?;
    let address = world.cluster_ip("shopfront")?;
    world.start_load("load-update", &format!("http://{address}/"), LOAD_S)?;
    world.cluster.apply(&web_deployment(4, "2"))?;
    world.cluster.rolled_out(NAMESPACE, "shopfront")?;
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
    let manifest =
        web_deployment(2, "1").replace(&format!("namespace: {NAMESPACE}"), "namespace: doomed");
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: doomed}\n---";
    world.cluster.apply(&format!("{namespace}{manifest}"))?;
    world.cluster.rolled_out("doomed", "shopfront")?;
    world.cluster.kubectl(&["delete", "namespace", "doomed", "--timeout=60s"])?;
    let left = world.cluster.kubectl(&["get", "all", "-n", "doomed", "-o", "name"])?;
    ensure!(left.is_empty(), "left: {left}");
    Ok(())
}
