//! Install manifests as projects publish them: they apply unchanged, and again without a change, and
//! come as far as a cluster without their images: to pods that are bound to nodes.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use client::{Client, ResourcePath};
use serde_json::{Value, json};

use super::support::within;
use super::{Kubectl, root, with_every_kubectl};

/// Where `./x test` unpacks the packages that carry them, from the root of the workspace.
const PUBLISHED: &str = "target/tools/published";
/// Below it: those of a cluster's network, cloud and volumes.
const CLUSTER: &str = "magnum_cluster_api/magnum_cluster_api/manifests";
/// Below it: Dask's operator.
const DASK: &str = "dask_kubernetes/dask_kubernetes/operator";

/// The nodes: one for everybody, one of the control plane, with its taint.
const NODES: [&str; 2] = ["control", "plain"];

/// A project's directory, and on how many nodes each of its workloads has a pod.
type Project = (&'static str, &'static [(&'static str, usize)]);

const PROJECTS: &[Project] = &[
    ("calico", &[("calico-node", 2), ("calico-kube-controllers", 1)]),
    // Its nodes are those of the control plane.
    ("ccm", &[("openstack-cloud-controller-manager", 1)]),
    ("cinder-csi", &[("csi-cinder-nodeplugin", 2), ("csi-cinder-controllerplugin", 1)]),
    (
        "manila-csi",
        &[("openstack-manila-csi-nodeplugin", 2), ("openstack-manila-csi-controllerplugin", 1)],
    ),
    ("nfs-csi", &[("csi-nfs-node", 2), ("csi-nfs-controller", 1)]),
];

/// What the server, as the real one, does not store as it stands in the manifests: kubectl sends a
/// patch for these each time.
const STORED_OTHERWISE: [&str; 4] = [
    // kubectl from 1.21 on always sends its selector, whose patch strategy is `replace`.
    "poddisruptionbudget.policy/calico-kube-controllers ",
    // `preserveUnknownFields: false`.
    "customresourcedefinition.apiextensions.k8s.io/",
    // `emptyDir: null`.
    "deployment.apps/csi-cinder-controllerplugin ",
    // `rules: []` of roles whose rules come from others.
    "clusterrole.rbac.authorization.k8s.io/openstack-manila-csi-",
];

#[tokio::test]
async fn published_manifests_apply_and_their_pods_are_bound() {
    with_every_kubectl("published", async |kubectl, client| {
        for node in NODES {
            add_node(client, node).await;
        }
        for (project, workloads) in PROJECTS {
            let directory = published(CLUSTER).join(project).display().to_string();
            let made = kubectl.ok(&["apply", "-f", &directory]).await;
            assert!(made.lines().all(|line| line.ends_with(" created")), "{project}: {made}");
            unchanged(kubectl, project, &directory, made.lines().count()).await;
            for (workload, count) in *workloads {
                bound(client, workload, *count).await;
            }
            println!("{project}: {} objects, pods wait for their images", made.lines().count());
        }
        calico_resources(kubectl).await;
    })
    .await;
}

/// A second apply changes no specification, and kubectl says so.
async fn unchanged(kubectl: &Kubectl, project: &str, directory: &str, objects: usize) {
    let path = "jsonpath={range .items[*]}{.kind} {.metadata.name} {.metadata.generation} {end}";
    let generations = async || kubectl.ok(&["get", "-f", directory, "-o", path]).await;
    let before = generations().await;
    let again = kubectl.ok(&["apply", "-f", directory]).await;
    let is_unchanged = |line: &str| {
        let differs = STORED_OTHERWISE.iter().any(|object| line.starts_with(object));
        line.ends_with(" unchanged") || differs && line.ends_with(" configured")
    };
    assert!(again.lines().all(is_unchanged), "{project}: {again}");
    assert_eq!(again.lines().count(), objects, "{project}");
    assert_eq!(generations().await, before, "{project}");
}

/// Objects of the kinds that Calico's manifest defines: good ones are kept, bad ones refused.
async fn calico_resources(kubectl: &Kubectl) {
    let pool = |mode: &str| {
        format!(
            "apiVersion: crd.projectcalico.org/v1\nkind: IPPool\nmetadata: {{name: pods}}\n\
             spec: {{cidr: 10.1.0.0/16, blockSize: {mode}, nodeSelector: all()}}\n"
        )
    };
    kubectl.ok_with(&["apply", "-f", "-"], &pool("26")).await;
    let refused = kubectl.fails(&["apply", "--validate=false", "-f", "-"], &pool("wide")).await;
    assert!(refused.contains("spec.blockSize"), "{refused}");
    let size = kubectl.ok(&["get", "ippools", "pods", "-o", "jsonpath={.spec.blockSize}"]).await;
    assert_eq!(size, "26");
}

/// Dask's definitions hold the schema of a pod several times over: the largest has 470 kB. Only
/// server-side apply takes them, at the real server too: an annotation would be too large.
#[tokio::test]
async fn very_large_definitions_apply_and_their_objects_are_validated() {
    with_every_kubectl("large-definitions", async |kubectl, _| {
        let crds = published(DASK).join("deployment/helm/dask-kubernetes-operator/crds");
        let crds = crds.display().to_string();
        let apply = ["apply", "--server-side", "-f", &crds];
        let made = kubectl.ok(&apply).await;
        assert_eq!(made.lines().count(), 4, "{made}");
        let names: Vec<&str> = made.split_whitespace().filter(|word| word.contains('/')).collect();
        let versions = async || {
            let mut get = vec!["get", "-o", "jsonpath={.items[*].metadata.resourceVersion}"];
            get.extend(&names);
            kubectl.ok(&get).await
        };
        let wait = ["wait", "--for=condition=Established", "--timeout=20s"];
        kubectl.ok(&[&wait[..], &names].concat()).await;
        let before = versions().await;
        kubectl.ok(&apply).await;
        assert_eq!(versions().await, before, "a second apply changes nothing");
        let examples = published(DASK).join("controller/tests/resources");
        for example in ["simplecluster", "simplejob", "simpleworkergroup"] {
            let file = examples.join(example).with_extension("yaml");
            let text = fs::read_to_string(&file).expect("an example");
            kubectl.ok_with(&["apply", "-f", "-"], &text).await;
        }
        let cluster = fs::read_to_string(examples.join("simplecluster.yaml")).expect("an example");
        let wrong = cluster.replacen("containerPort: 8788", "containerPort: many", 1);
        assert_ne!(wrong, cluster);
        let refused = kubectl.fails(&["apply", "--validate=false", "-f", "-"], &wrong).await;
        let field = "spec.worker.spec.containers[0].ports[0].containerPort";
        assert!(refused.contains(field), "{refused}");
    })
    .await;
}

fn published(directory: &str) -> PathBuf {
    let directory = root().join(PUBLISHED).join(directory);
    assert!(directory.exists(), "{} is missing: `./x test` fetches it", directory.display());
    directory
}

async fn add_node(client: &Client, name: &str) {
    let mut labels = json!({"kubernetes.io/os": "linux", "kubernetes.io/hostname": name});
    let mut taints = json!([]);
    let control_plane = "node-role.kubernetes.io/control-plane";
    if name == "control" {
        labels[control_plane] = "".into();
        taints = json!([{"key": control_plane, "effect": "NoSchedule"}]);
    }
    let node = json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": taints},
        "status": {
            "allocatable": {"cpu": "8", "memory": "16Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    let nodes = ResourcePath::new("v1", "nodes");
    client.create::<_, Value>(&nodes, &node).await.expect("a node");
}

/// Waits until the pods of a workload are bound to so many nodes, one pod each.
async fn bound(client: &Client, workload: &str, count: usize) {
    let of_workload = |pod: &Value| {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        name.strip_prefix(workload).is_some_and(|rest| rest.starts_with('-'))
    };
    let waiting = async {
        loop {
            let pods = ResourcePath::new("v1", "pods");
            let options = client::ListOptions::default();
            let pods = client.list::<Value>(&pods, &options).await.expect("pods").items;
            let mut nodes = BTreeMap::new();
            for pod in pods.iter().filter(|pod| of_workload(pod)) {
                *nodes.entry(pod["spec"]["nodeName"].as_str()).or_insert(0) += 1;
            }
            let is_bound = nodes.iter().all(|(node, pods)| node.is_some() && *pods == 1);
            if is_bound && nodes.len() == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within(workload, waiting).await;
}
