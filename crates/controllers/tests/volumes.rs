//! Claims over the real store, with lagging watches: they get their volumes, pods follow them, and
//! what nobody uses any more goes.

mod cluster;

use std::collections::BTreeSet;
use std::time::Duration;

use cluster::{Cluster, node, text};
use controllers::Kind;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);

fn settle(cluster: &mut Cluster) {
    cluster.settle(SOON, |_| {});
    assert!(cluster.failures.is_empty(), "{:#?}", cluster.failures);
}

/// A cluster with the class that every cluster of this program has, and others.
fn with_classes(seed: u64, nodes: usize) -> Cluster {
    let mut cluster = Cluster::new(seed, nodes);
    for (name, provisioner, mode, policy) in [
        ("standard", "flatnet.io/host-path", "WaitForFirstConsumer", "Delete"),
        ("now", "flatnet.io/host-path", "Immediate", "Retain"),
        ("local", "kubernetes.io/no-provisioner", "WaitForFirstConsumer", "Delete"),
        ("foreign", "example.org/disks", "Immediate", "Delete"),
    ] {
        let mut class = json!({"metadata": {"name": name}, "provisioner": provisioner,
            "volumeBindingMode": mode, "reclaimPolicy": policy});
        if name == "standard" {
            let key = "storageclass.kubernetes.io/is-default-class";
            class["metadata"]["annotations"] = json!({key: "true"});
        }
        cluster.create("StorageClass", "", class);
    }
    cluster
}

fn claim(name: &str, spec: Value) -> Value {
    let mut all = json!({"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}});
    for (field, value) in spec.as_object().into_iter().flatten() {
        all[field] = value.clone();
    }
    json!({"metadata": {"name": name}, "spec": all})
}

fn volume(name: &str, storage: &str, spec: Value) -> Value {
    let mut all = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": storage},
        "hostPath": {"path": format!("/data/{name}")}});
    for (field, value) in spec.as_object().into_iter().flatten() {
        all[field] = value.clone();
    }
    json!({"metadata": {"name": name}, "spec": all})
}

fn pod(name: &str, claims: &[&str]) -> Value {
    let volumes: Vec<Value> = claims
        .iter()
        .map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}}))
        .collect();
    json!({"metadata": {"name": name}, "spec": {
        "containers": [{"name": "c", "image": "i"}], "volumes": volumes}})
}

fn get(cluster: &Cluster, kind: Kind, name: &str) -> Value {
    let namespace = if kind.row().namespaced { "default" } else { "" };
    cluster.get(kind, namespace, name).unwrap_or_default()
}

fn phase(cluster: &Cluster, kind: Kind, name: &str) -> String {
    text(&get(cluster, kind, name)["status"]["phase"])
}

fn volume_of(cluster: &Cluster, claim: &str) -> String {
    text(&get(cluster, Kind::PersistentVolumeClaim, claim)["spec"]["volumeName"])
}

fn delete(cluster: &mut Cluster, kind: Kind, namespace: &str, name: &str) {
    cluster.delete(kind, namespace, name, json!({}));
}

/// The reasons of all Events.
fn told(cluster: &Cluster) -> BTreeSet<String> {
    cluster.all(Kind::Event).iter().map(|event| text(&event["reason"])).collect()
}

fn why_waiting(cluster: &Cluster, pod: &str) -> String {
    let pod = get(cluster, Kind::Pod, pod);
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let scheduled = conditions.iter().find(|one| one["type"] == "PodScheduled");
    scheduled.map(|one| text(&one["message"])).unwrap_or_default()
}

#[test]
fn a_claim_gets_a_directory_where_its_first_pod_goes_and_it_goes_with_the_claim() {
    for seed in 0..5 {
        let mut cluster = with_classes(seed, 3);
        cluster.create("PersistentVolumeClaim", "default", claim("data", json!({})));
        settle(&mut cluster);
        assert_eq!(phase(&cluster, Kind::PersistentVolumeClaim, "data"), "Pending");
        assert!(told(&cluster).contains("WaitForFirstConsumer"));
        cluster.create("Pod", "default", pod("first", &["data"]));
        settle(&mut cluster);
        let bound = get(&cluster, Kind::PersistentVolumeClaim, "data");
        assert_eq!(bound["status"]["phase"], "Bound");
        assert_eq!(bound["status"]["capacity"]["storage"], "1Gi");
        assert_eq!(bound["spec"]["storageClassName"], "standard");
        let name = volume_of(&cluster, "data");
        assert_eq!(name, format!("pvc-{}", text(&bound["metadata"]["uid"])));
        assert_eq!(cluster.volumes, BTreeSet::from([name.clone()]));
        let made = get(&cluster, Kind::PersistentVolume, &name);
        assert_eq!(made["status"]["phase"], "Bound");
        assert_eq!(made["spec"]["hostPath"]["path"], format!("/volumes/{name}"));
        // Whoever comes later goes where the data is.
        let home = text(&get(&cluster, Kind::Pod, "first")["spec"]["nodeName"]);
        assert!(!home.is_empty());
        for name in ["second", "third", "fourth"] {
            cluster.create("Pod", "default", pod(name, &["data"]));
        }
        settle(&mut cluster);
        for name in ["second", "third", "fourth"] {
            assert_eq!(text(&get(&cluster, Kind::Pod, name)["spec"]["nodeName"]), home);
        }
        // The claim outlives its deletion until no pod uses it; then the directory goes too.
        delete(&mut cluster, Kind::PersistentVolumeClaim, "default", "data");
        settle(&mut cluster);
        assert!(!get(&cluster, Kind::PersistentVolumeClaim, "data").is_null());
        assert_eq!(cluster.volumes.len(), 1);
        for name in ["first", "second", "third", "fourth"] {
            delete(&mut cluster, Kind::Pod, "default", name);
        }
        settle(&mut cluster);
        assert!(get(&cluster, Kind::PersistentVolumeClaim, "data").is_null());
        assert!(get(&cluster, Kind::PersistentVolume, &name).is_null());
        assert!(cluster.volumes.is_empty());
    }
}

#[test]
fn a_claim_takes_the_smallest_volume_that_fits() {
    let mut cluster = with_classes(7, 1);
    for (name, storage, spec) in [
        ("large", "10Gi", json!({})),
        ("small", "500Mi", json!({})),
        ("fits", "2Gi", json!({})),
        ("classed", "1Gi", json!({"storageClassName": "now"})),
        ("kept", "1Gi", json!({"claimRef": {"namespace": "default", "name": "other"}})),
        ("shared", "1Gi", json!({"accessModes": ["ReadWriteMany"]})),
    ] {
        cluster.create("PersistentVolume", "", volume(name, storage, spec));
    }
    settle(&mut cluster);
    assert_eq!(phase(&cluster, Kind::PersistentVolume, "kept"), "Available");
    let no_class = |spec: Value| {
        let mut spec = spec;
        spec["storageClassName"] = json!("");
        spec
    };
    for (name, spec) in [
        ("data", json!({})),
        ("more", json!({})),
        ("none-left", json!({})),
        ("other", json!({})),
        ("many", json!({"accessModes": ["ReadWriteMany"]})),
        ("named", json!({"volumeName": "small"})),
    ] {
        cluster.create("PersistentVolumeClaim", "default", claim(name, no_class(spec)));
        settle(&mut cluster);
    }
    for (name, wanted) in [
        ("data", "fits"),
        ("more", "large"),
        ("none-left", ""),
        ("other", "kept"),
        ("many", "shared"),
    ] {
        assert_eq!(volume_of(&cluster, name), wanted, "{name}");
    }
    assert_eq!(phase(&cluster, Kind::PersistentVolume, "fits"), "Bound");
    assert_eq!(phase(&cluster, Kind::PersistentVolumeClaim, "named"), "Pending");
    let told = told(&cluster);
    assert!(told.contains("FailedBinding") && told.contains("VolumeMismatch"), "{told:?}");
    // What people made stays for them to look at, whatever was to become of it.
    delete(&mut cluster, Kind::PersistentVolumeClaim, "default", "data");
    settle(&mut cluster);
    assert_eq!(phase(&cluster, Kind::PersistentVolume, "fits"), "Released");
}

#[test]
fn what_no_provisioner_makes_says_why_and_holds_its_pod_back() {
    let mut cluster = with_classes(3, 2);
    let class = |name: &str| json!({"storageClassName": name});
    for name in ["foreign", "absent", "local"] {
        cluster.create("PersistentVolumeClaim", "default", claim(name, class(name)));
        cluster.create("Pod", "default", pod(name, &[name]));
    }
    cluster.create("Pod", "default", pod("early", &["later"]));
    settle(&mut cluster);
    let begin = |why: &str| format!("0/2 nodes are available: {why}. preemption");
    for (name, why) in [
        ("foreign", "pod has unbound immediate PersistentVolumeClaims"),
        ("absent", "pod has unbound immediate PersistentVolumeClaims"),
        ("local", "2 node(s) didn't find available persistent volumes to bind"),
        ("early", "persistentvolumeclaim \"later\" not found"),
    ] {
        let told = why_waiting(&cluster, name);
        assert!(told.starts_with(&begin(why)), "{name}: {told}");
    }
    let told = told(&cluster);
    assert!(told.contains("ExternalProvisioning") && told.contains("ProvisioningFailed"));
    let asked = get(&cluster, Kind::PersistentVolumeClaim, "foreign");
    let key = "volume.kubernetes.io/storage-provisioner";
    assert_eq!(asked["metadata"]["annotations"][key], "example.org/disks");
    // A volume that somebody makes on one node draws the pod there.
    let terms = json!([{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node2"]}]}]);
    let spec = json!({"storageClassName": "local",
        "nodeAffinity": {"required": {"nodeSelectorTerms": terms}}});
    cluster.create("PersistentVolume", "", volume("disk", "1Gi", spec));
    cluster.create("PersistentVolumeClaim", "default", claim("later", json!({})));
    settle(&mut cluster);
    assert_eq!(text(&get(&cluster, Kind::Pod, "local")["spec"]["nodeName"]), "node2");
    assert_ne!(text(&get(&cluster, Kind::Pod, "early")["spec"]["nodeName"]), "");
    delete(&mut cluster, Kind::Node, "", "node2");
    cluster.create("Pod", "default", pod("again", &["local"]));
    settle(&mut cluster);
    let told = why_waiting(&cluster, "again");
    assert!(told.contains("1 node(s) had volume node affinity conflict"), "{told}");
    cluster.create("Node", "", node("node2"));
    settle(&mut cluster);
    assert_eq!(text(&get(&cluster, Kind::Pod, "again")["spec"]["nodeName"]), "node2");
}

#[test]
fn a_volume_that_is_kept_survives_its_claim_and_a_lost_one_is_told() {
    let mut cluster = with_classes(5, 2);
    let spec = json!({"storageClassName": "now"});
    cluster.create("PersistentVolumeClaim", "default", claim("data", spec));
    settle(&mut cluster);
    let name = volume_of(&cluster, "data");
    delete(&mut cluster, Kind::PersistentVolumeClaim, "default", "data");
    settle(&mut cluster);
    assert_eq!(phase(&cluster, Kind::PersistentVolume, &name), "Released");
    delete(&mut cluster, Kind::PersistentVolume, "", &name);
    settle(&mut cluster);
    assert!(get(&cluster, Kind::PersistentVolume, &name).is_null());
    assert_eq!(cluster.volumes.len(), 1, "Retain: the data stays where it lies");

    let spec = json!({"storageClassName": "now"});
    cluster.create("PersistentVolumeClaim", "default", claim("other", spec));
    settle(&mut cluster);
    let name = volume_of(&cluster, "other");
    // Protected while it is bound; whoever takes that away loses the data.
    delete(&mut cluster, Kind::PersistentVolume, "", &name);
    settle(&mut cluster);
    assert!(!get(&cluster, Kind::PersistentVolume, &name).is_null());
    let free = json!({"metadata": {"finalizers": null}});
    cluster.patch(Kind::PersistentVolume, "", &name, free);
    settle(&mut cluster);
    assert_eq!(phase(&cluster, Kind::PersistentVolumeClaim, "other"), "Lost");
    assert!(told(&cluster).contains("ClaimLost"));
}

#[test]
fn a_namespace_takes_its_claims_and_their_data_along() {
    let mut cluster = with_classes(9, 2);
    cluster.create("Namespace", "", json!({"metadata": {"name": "team"}}));
    cluster.create("PersistentVolumeClaim", "team", claim("data", json!({})));
    cluster.create("Pod", "team", pod("user", &["data"]));
    settle(&mut cluster);
    assert_eq!(cluster.volumes.len(), 1);
    delete(&mut cluster, Kind::Namespace, "", "team");
    settle(&mut cluster);
    assert!(get(&cluster, Kind::Namespace, "team").is_null());
    assert!(cluster.all(Kind::PersistentVolume).is_empty() && cluster.volumes.is_empty());
}

fn stateful_set(policy: Value) -> Value {
    json!({"metadata": {"name": "db"}, "spec": {
        "replicas": 3,
        "serviceName": "db",
        "selector": {"matchLabels": {"app": "db"}},
        "persistentVolumeClaimRetentionPolicy": policy,
        "template": {"metadata": {"labels": {"app": "db"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}],
    }})
}

fn claims(cluster: &Cluster) -> Vec<String> {
    let all = cluster.all(Kind::PersistentVolumeClaim);
    all.iter().map(|claim| text(&claim["metadata"]["name"])).collect()
}

#[test]
fn a_stateful_set_has_a_claim_for_each_ordinal_that_outlives_the_pod() {
    for seed in 0..3 {
        let mut cluster = with_classes(seed, 3);
        cluster.create("StatefulSet", "default", stateful_set(json!({})));
        settle(&mut cluster);
        assert_eq!(claims(&cluster), ["data-db-0", "data-db-1", "data-db-2"]);
        let before = volume_of(&cluster, "data-db-1");
        let pod = get(&cluster, Kind::Pod, "db-1");
        let mounted = &pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"];
        assert_eq!(mounted, "data-db-1");
        delete(&mut cluster, Kind::Pod, "default", "db-1");
        settle(&mut cluster);
        let again = get(&cluster, Kind::Pod, "db-1");
        assert_ne!(pod["metadata"]["uid"], again["metadata"]["uid"]);
        assert_eq!(pod["spec"]["nodeName"], again["spec"]["nodeName"]);
        assert_eq!(volume_of(&cluster, "data-db-1"), before);
        let scale = json!({"spec": {"replicas": 1}});
        cluster.patch(Kind::StatefulSet, "default", "db", scale);
        settle(&mut cluster);
        delete(&mut cluster, Kind::StatefulSet, "default", "db");
        settle(&mut cluster);
        assert_eq!(claims(&cluster).len(), 3, "Retain is the default");
    }
}

#[test]
fn claims_go_with_the_set_and_with_surplus_pods_where_the_set_says_so() {
    let mut cluster = with_classes(2, 3);
    let policy = json!({"whenDeleted": "Delete", "whenScaled": "Delete"});
    cluster.create("StatefulSet", "default", stateful_set(policy));
    settle(&mut cluster);
    assert_eq!(claims(&cluster).len(), 3);
    // A pod that comes again has its data.
    delete(&mut cluster, Kind::Pod, "default", "db-0");
    settle(&mut cluster);
    assert_eq!(claims(&cluster).len(), 3);
    let scale = json!({"spec": {"replicas": 1}});
    cluster.patch(Kind::StatefulSet, "default", "db", scale);
    settle(&mut cluster);
    assert_eq!(claims(&cluster), ["data-db-0"]);
    delete(&mut cluster, Kind::StatefulSet, "default", "db");
    settle(&mut cluster);
    assert!(claims(&cluster).is_empty() && cluster.volumes.is_empty());
}
