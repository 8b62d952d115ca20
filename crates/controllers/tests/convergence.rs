//! All controllers over the real store, to the point where nothing moves any more.

mod cluster;

use std::collections::BTreeSet;
use std::time::Duration;

use cluster::{Cluster, deployment, pods, service, text};
use controllers::Kind;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);

fn settle(cluster: &mut Cluster) {
    cluster.settle(SOON, |_| {});
    assert!(cluster.failures.is_empty(), "{:#?}", cluster.failures);
}

fn endpoints(cluster: &Cluster, service: &str) -> Vec<Value> {
    let slices = cluster.all(Kind::EndpointSlice);
    let ours = slices
        .iter()
        .filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == service);
    ours.flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default()).collect()
}

#[test]
fn a_deployment_becomes_pods_on_nodes_behind_a_service() {
    let mut cluster = Cluster::new(1, 3);
    cluster.create("Service", "default", service("web"));
    cluster.create("Deployment", "default", deployment("web", 3, "a"));
    settle(&mut cluster);
    let nodes: BTreeSet<String> =
        cluster.all(Kind::Pod).iter().map(|pod| text(&pod["spec"]["nodeName"])).collect();
    assert_eq!(nodes.len(), 3, "spread over the nodes");
    let endpoints = endpoints(&cluster, "web");
    assert_eq!(endpoints.len(), 3);
    for endpoint in &endpoints {
        let wanted = json!({"ready": true, "serving": true, "terminating": false});
        assert_eq!(endpoint["conditions"], wanted);
        assert_eq!(endpoint["targetRef"]["kind"], "Pod");
    }
    let old_form = cluster.get(Kind::Endpoints, "default", "web").expect("Endpoints");
    assert_eq!(old_form["subsets"][0]["addresses"].as_array().map(Vec::len), Some(3));
    assert_eq!(old_form["subsets"][0]["ports"][0]["port"], 8080);

    let found = cluster.get(Kind::Deployment, "default", "web").expect("the Deployment");
    assert_eq!(found["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "1");
    let status = &found["status"];
    for field in ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"] {
        assert_eq!(status[field], 3, "{field}");
    }
    assert_eq!(status["unavailableReplicas"], Value::Null);
    assert_eq!(status["observedGeneration"], found["metadata"]["generation"]);
    let reasons: Vec<String> = status["conditions"]
        .as_array()
        .map(|list| list.iter().map(|one| text(&one["reason"])).collect())
        .unwrap_or_default();
    assert!(reasons.contains(&"MinimumReplicasAvailable".into()), "{reasons:?}");
    assert!(reasons.contains(&"NewReplicaSetAvailable".into()), "{reasons:?}");

    let nodes = cluster.all(Kind::Node);
    let ranges: BTreeSet<String> =
        nodes.iter().map(|node| text(&node["spec"]["podCIDR"])).collect();
    let wanted = ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24"].map(String::from);
    assert_eq!(ranges, BTreeSet::from(wanted));
    assert!(cluster.get(Kind::ServiceAccount, "default", "default").is_some());
    let ca = cluster.get(Kind::ConfigMap, "default", "kube-root-ca.crt").expect("the CA");
    assert_eq!(ca["data"]["ca.crt"], "CA");
}

#[test]
fn events_tell_the_story_in_the_words_of_the_real_controllers() {
    let mut cluster = Cluster::new(2, 1);
    cluster.create("Deployment", "default", deployment("web", 1, "a"));
    settle(&mut cluster);
    let pod = text(&cluster.all(Kind::Pod)[0]["metadata"]["name"]);
    let set = text(&cluster.all(Kind::ReplicaSet)[0]["metadata"]["name"]);
    let told: BTreeSet<(String, String, String)> = cluster
        .all(Kind::Event)
        .iter()
        .map(|event| {
            (
                text(&event["involvedObject"]["kind"]),
                text(&event["reason"]),
                text(&event["message"]),
            )
        })
        .collect();
    let wanted = [
        ("Deployment", "ScalingReplicaSet", format!("Scaled up replica set {set} from 0 to 1")),
        ("ReplicaSet", "SuccessfulCreate", format!("Created pod: {pod}")),
        ("Pod", "Scheduled", format!("Successfully assigned default/{pod} to node1")),
    ];
    let wanted: BTreeSet<_> =
        wanted.map(|(kind, reason, message)| (kind.into(), reason.into(), message)).into();
    assert_eq!(told, wanted);
}

#[test]
fn a_fresh_process_finds_nothing_to_do() {
    for seed in 0..8 {
        let mut cluster = Cluster::new(seed, 3);
        cluster.create("Service", "default", service("web"));
        cluster.create("Deployment", "default", deployment("web", 5, "a"));
        settle(&mut cluster);
        cluster.patch(Kind::Deployment, "default", "web", deployment("web", 4, "b"));
        settle(&mut cluster);
        cluster.restart_controllers();
        settle(&mut cluster);
        assert!(cluster.writes.is_empty(), "seed {seed}: {:#?}", cluster.writes);
    }
}

#[test]
fn scaling_up_and_down_reaches_the_wanted_number() {
    let mut cluster = Cluster::new(3, 1);
    cluster.create("Service", "default", service("web"));
    cluster.create("Deployment", "default", deployment("web", 1, "a"));
    settle(&mut cluster);
    let first = text(&cluster.all(Kind::Pod)[0]["metadata"]["name"]);
    for replicas in [10, 1, 0, 2] {
        cluster.pass(Duration::from_secs(20));
        let body = json!({"spec": {"replicas": replicas}});
        cluster.patch(Kind::Deployment, "default", "web", body);
        settle(&mut cluster);
        assert_eq!(pods(&cluster, "web"), (replicas, replicas));
        assert_eq!(endpoints(&cluster, "web").len() as i64, replicas);
        if replicas == 1 {
            let left = text(&cluster.all(Kind::Pod)[0]["metadata"]["name"]);
            assert_eq!(left, first, "the oldest ready pod stays");
        }
    }
    let slices = cluster.all(Kind::EndpointSlice);
    assert_eq!(slices.len(), 1, "no slice is left behind");
}

#[test]
fn a_rollout_stays_within_its_limits_whatever_the_order_of_things() {
    let limits = [
        ("25%", "25%", 4, 3, 5),
        ("1", "0", 3, 3, 4),
        ("0", "1", 3, 2, 3),
        ("50%", "50%", 5, 3, 8),
    ];
    for seed in 0..12 {
        for (surge, unavailable, replicas, least, most) in limits {
            let number =
                |text: &str| text.parse::<i64>().map_or(json!(text), |number| json!(number));
            let mut cluster = Cluster::new(seed, 2);
            let mut body = deployment("web", replicas, "a");
            body["spec"]["strategy"] = json!({"type": "RollingUpdate", "rollingUpdate":
                {"maxSurge": number(surge), "maxUnavailable": number(unavailable)}});
            cluster.create("Deployment", "default", body.clone());
            settle(&mut cluster);
            for image in ["b", "c", "a"] {
                body["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image);
                cluster.patch(Kind::Deployment, "default", "web", body.clone());
                let check = |cluster: &Cluster| {
                    let (all, ready) = pods(cluster, "web");
                    let case = format!("seed {seed}, {surge}/{unavailable} of {replicas}, {image}");
                    assert!(all <= most, "{case}: {all} pods, {most} allowed");
                    assert!(ready >= least, "{case}: {ready} available, {least} needed");
                };
                // The second change comes while the first is under way.
                if image == "b" {
                    for _ in 0..cluster.seed.below(400) {
                        cluster.step();
                        check(&cluster);
                    }
                } else {
                    cluster.settle(SOON, check);
                }
            }
            let images: Vec<String> = cluster
                .all(Kind::Pod)
                .iter()
                .map(|pod| text(&pod["spec"]["containers"][0]["image"]))
                .collect();
            assert_eq!(images, vec!["a"; replicas as usize]);
        }
    }
}

#[test]
fn controllers_that_die_anywhere_keep_the_limits_and_finish() {
    for seed in 0..10 {
        let mut cluster = Cluster::new(seed, 2);
        cluster.create("Service", "default", service("web"));
        cluster.create("Deployment", "default", deployment("web", 4, "a"));
        settle(&mut cluster);
        set_image(&mut cluster, 4, "b");
        for _ in 0..8 {
            for _ in 0..cluster.seed.below(120) {
                cluster.step();
                let (all, ready) = pods(&cluster, "web");
                assert!(all <= 5 && ready >= 3, "seed {seed}: {all} pods, {ready} available");
            }
            // What was under way is half done, and nobody remembers it.
            cluster.restart_controllers();
        }
        settle(&mut cluster);
        assert_eq!(pods(&cluster, "web"), (4, 4), "seed {seed}");
        let sets = cluster.all(Kind::ReplicaSet).len();
        assert_eq!((sets, endpoints(&cluster, "web").len()), (2, 4), "seed {seed}");
    }
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice);
    let found = conditions.unwrap_or_default().iter().find(|found| found["type"] == kind);
    found.unwrap_or(&Value::Null)
}

fn revision(object: &Value) -> &Value {
    &object["metadata"]["annotations"]["deployment.kubernetes.io/revision"]
}

fn set_image(cluster: &mut Cluster, replicas: i64, image: &str) {
    cluster.patch(Kind::Deployment, "default", "web", deployment("web", replicas, image));
}

#[test]
fn going_back_to_an_old_template_uses_its_replica_set_again() {
    let mut cluster = Cluster::new(4, 2);
    cluster.create("Deployment", "default", deployment("web", 2, "a"));
    settle(&mut cluster);
    let first = text(&cluster.all(Kind::ReplicaSet)[0]["metadata"]["name"]);
    for image in ["b", "a"] {
        set_image(&mut cluster, 2, image);
        settle(&mut cluster);
    }
    assert_eq!(cluster.all(Kind::ReplicaSet).len(), 2);
    let set = cluster.get(Kind::ReplicaSet, "default", &first).expect("the first ReplicaSet");
    assert_eq!(revision(&set), "3");
    let history = &set["metadata"]["annotations"]["deployment.kubernetes.io/revision-history"];
    assert_eq!(history, "1");
    let found = cluster.get(Kind::Deployment, "default", "web").expect("the Deployment");
    assert_eq!(revision(&found), "3");
}

#[test]
fn old_replica_sets_are_kept_up_to_the_limit() {
    let mut cluster = Cluster::new(5, 1);
    let mut body = deployment("web", 1, "v0");
    body["spec"]["revisionHistoryLimit"] = json!(2);
    cluster.create("Deployment", "default", body);
    for version in 1..6 {
        settle(&mut cluster);
        set_image(&mut cluster, 1, &format!("v{version}"));
    }
    settle(&mut cluster);
    let mut left: Vec<String> =
        cluster.all(Kind::ReplicaSet).iter().map(|set| text(revision(set))).collect();
    left.sort();
    assert_eq!(left, ["4", "5", "6"]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut cluster = Cluster::new(6, 2);
    cluster.create("Deployment", "default", deployment("web", 2, "a"));
    settle(&mut cluster);
    cluster.patch(Kind::Deployment, "default", "web", json!({"spec": {"paused": true}}));
    settle(&mut cluster);
    set_image(&mut cluster, 3, "b");
    settle(&mut cluster);
    let found = cluster.get(Kind::Deployment, "default", "web").expect("the Deployment");
    assert_eq!(condition(&found, "Progressing")["reason"], "DeploymentPaused");
    assert_eq!(condition(&found, "Progressing")["message"], "Deployment is paused");
    assert_eq!((cluster.all(Kind::ReplicaSet).len(), pods(&cluster, "web")), (1, (3, 3)));
    cluster.patch(Kind::Deployment, "default", "web", json!({"spec": {"paused": false}}));
    settle(&mut cluster);
    let found = cluster.get(Kind::Deployment, "default", "web").expect("the Deployment");
    assert_eq!(condition(&found, "Progressing")["reason"], "NewReplicaSetAvailable");
    assert_eq!(found["status"]["updatedReplicas"], 3);
}

#[test]
fn a_rollout_without_progress_exceeds_its_deadline_and_recovers() {
    let mut cluster = Cluster::new(7, 2);
    let mut body = deployment("web", 2, "a");
    body["spec"]["progressDeadlineSeconds"] = json!(60);
    cluster.create("Deployment", "default", body);
    settle(&mut cluster);
    cluster.pods_become_ready = false;
    set_image(&mut cluster, 2, "b");
    cluster.pass(Duration::from_secs(30));
    let found = cluster.get(Kind::Deployment, "default", "web").expect("the Deployment");
    let progressing = condition(&found, "Progressing");
    assert_eq!(progressing["reason"], "ReplicaSetUpdated");
    cluster.pass(Duration::from_secs(45));
    let found = cluster.get(Kind::Deployment, "default", "web").expect("the Deployment");
    let progressing = condition(&found, "Progressing");
    assert_eq!(progressing["reason"], "ProgressDeadlineExceeded");
    assert_eq!(progressing["status"], "False");
    let set = cluster.all(Kind::ReplicaSet).into_iter().find(|set| revision(set) == "2");
    let name = text(&set.expect("the new ReplicaSet")["metadata"]["name"]);
    let message = format!("ReplicaSet \"{name}\" has timed out progressing.");
    assert_eq!(progressing["message"], message);
    assert_eq!(pods(&cluster, "web").1, 2, "the old pods serve on");
    cluster.pods_become_ready = true;
    settle(&mut cluster);
    let found = cluster.get(Kind::Deployment, "default", "web").expect("the Deployment");
    let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
    assert_eq!(condition(&found, "Progressing")["message"], message);
}

#[test]
fn recreate_never_mixes_versions() {
    for seed in 0..10 {
        let mut cluster = Cluster::new(seed, 2);
        let mut body = deployment("web", 3, "a");
        body["spec"]["strategy"] = json!({"type": "Recreate"});
        cluster.create("Deployment", "default", body);
        settle(&mut cluster);
        set_image(&mut cluster, 3, "b");
        cluster.settle(SOON, |cluster| {
            let images: BTreeSet<String> = cluster
                .all(Kind::Pod)
                .iter()
                .map(|pod| text(&pod["spec"]["containers"][0]["image"]))
                .collect();
            assert!(images.len() < 2, "seed {seed}: {images:?}");
        });
        assert_eq!(pods(&cluster, "web"), (3, 3), "seed {seed}");
    }
}

#[test]
fn deleting_a_deployment_takes_everything_below_it() {
    for policy in ["Background", "Foreground"] {
        let mut cluster = Cluster::new(8, 2);
        cluster.create("Deployment", "default", deployment("web", 3, "a"));
        settle(&mut cluster);
        let options = json!({"propagationPolicy": policy});
        cluster.delete(Kind::Deployment, "default", "web", options);
        cluster.settle(SOON, |cluster| {
            let owner = cluster.get(Kind::Deployment, "default", "web");
            let below = cluster.all(Kind::Pod).len() + cluster.all(Kind::ReplicaSet).len();
            assert!(policy == "Background" || owner.is_some() || below == 0, "{policy}: {below}");
        });
        let left: Vec<usize> = [Kind::Deployment, Kind::ReplicaSet, Kind::Pod]
            .map(|kind| cluster.all(kind).len())
            .into();
        assert_eq!(left, [0, 0, 0], "{policy}");
    }
}

#[test]
fn orphans_stay_and_are_adopted_again() {
    let mut cluster = Cluster::new(9, 2);
    cluster.create("Deployment", "default", deployment("web", 3, "a"));
    settle(&mut cluster);
    let before: BTreeSet<String> =
        cluster.all(Kind::Pod).iter().map(|pod| text(&pod["metadata"]["uid"])).collect();
    let options = json!({"propagationPolicy": "Orphan"});
    cluster.delete(Kind::Deployment, "default", "web", options);
    settle(&mut cluster);
    assert!(cluster.all(Kind::Deployment).is_empty());
    let set = &cluster.all(Kind::ReplicaSet)[0];
    assert_eq!(set["metadata"]["ownerReferences"].as_array().map_or(0, Vec::len), 0);
    cluster.create("Deployment", "default", deployment("web", 3, "a"));
    settle(&mut cluster);
    let after: BTreeSet<String> =
        cluster.all(Kind::Pod).iter().map(|pod| text(&pod["metadata"]["uid"])).collect();
    assert_eq!((cluster.all(Kind::ReplicaSet).len(), after), (1, before));
}

#[test]
fn an_object_stays_while_one_of_its_owners_does() {
    let mut cluster = Cluster::new(10, 1);
    let owner = |name: &str| json!({"metadata": {"name": name}});
    let one = cluster.create("ConfigMap", "default", owner("one"));
    let two = cluster.create("ConfigMap", "default", owner("two"));
    let reference = |owner: &Value| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"]})
    };
    let owned = json!({"metadata": {"name": "owned",
        "ownerReferences": [reference(&one), reference(&two)]}});
    cluster.create("ConfigMap", "default", owned);
    let mut foreign = reference(&one);
    foreign["kind"] = json!("Gadget");
    foreign["apiVersion"] = json!("example.org/v1");
    let owned = json!({"metadata": {"name": "foreign", "ownerReferences": [foreign]}});
    cluster.create("ConfigMap", "default", owned);
    settle(&mut cluster);
    cluster.delete(Kind::ConfigMap, "default", "one", json!({}));
    settle(&mut cluster);
    assert!(cluster.get(Kind::ConfigMap, "default", "owned").is_some());
    cluster.delete(Kind::ConfigMap, "default", "two", json!({}));
    settle(&mut cluster);
    assert!(cluster.get(Kind::ConfigMap, "default", "owned").is_none());
    let kept = cluster.get(Kind::ConfigMap, "default", "foreign");
    assert!(kept.is_some(), "nothing is known about its owner");
}

#[test]
fn a_deleted_namespace_empties_pods_first_and_goes() {
    for seed in 0..10 {
        let mut cluster = Cluster::new(seed, 2);
        cluster.create("Namespace", "", json!({"metadata": {"name": "shop"}}));
        let mut web = deployment("web", 3, "a");
        web["metadata"]["namespace"] = json!("shop");
        cluster.create("Deployment", "shop", web);
        let mut front = service("web");
        front["metadata"]["namespace"] = json!("shop");
        cluster.create("Service", "shop", front);
        cluster.create("ConfigMap", "shop", json!({"metadata": {"name": "c"}}));
        settle(&mut cluster);
        cluster.delete(Kind::Namespace, "", "shop", json!({}));
        cluster.settle(SOON, |cluster| {
            let inside = |kind: Kind| {
                cluster
                    .all(kind)
                    .iter()
                    .filter(|one| one["metadata"]["namespace"] == "shop")
                    .count()
            };
            let gone = inside(Kind::Deployment) == 0;
            assert!(!gone || inside(Kind::Pod) == 0, "seed {seed}: pods outlive the rest");
        });
        assert!(cluster.failures.is_empty(), "seed {seed}: {:#?}", cluster.failures);
        assert!(cluster.get(Kind::Namespace, "", "shop").is_none(), "seed {seed}");
        for row in controllers::kind::KINDS.iter().filter(|row| row.namespaced) {
            let left = cluster.all(row.kind);
            let left = left.iter().filter(|one| one["metadata"]["namespace"] == "shop").count();
            assert_eq!(left, 0, "seed {seed}: {}", row.plural);
        }
    }
}

#[test]
fn a_namespace_that_cannot_go_says_why() {
    let mut cluster = Cluster::new(11, 1);
    cluster.create("Namespace", "", json!({"metadata": {"name": "shop"}}));
    let held = json!({"metadata": {"name": "c", "finalizers": ["example.org/hold"]}});
    cluster.create("ConfigMap", "shop", held);
    cluster.delete(Kind::Namespace, "", "shop", json!({}));
    settle(&mut cluster);
    let namespace = cluster.get(Kind::Namespace, "", "shop").expect("it waits");
    let message = "Some resources are remaining: configmaps. has 1 resource instances";
    assert_eq!(condition(&namespace, "NamespaceContentRemaining")["message"], message);
    let message = "Some content in the namespace has finalizers remaining: example.org/hold in 1 \
                   resource instances";
    assert_eq!(condition(&namespace, "NamespaceFinalizersRemaining")["message"], message);
    cluster.patch(Kind::ConfigMap, "shop", "c", json!({"metadata": {"finalizers": null}}));
    settle(&mut cluster);
    assert!(cluster.get(Kind::Namespace, "", "shop").is_none());
}

#[test]
fn a_silent_node_loses_its_traffic_then_its_pods_and_gets_new_ones_when_it_is_back() {
    let mut cluster = Cluster::new(12, 2);
    cluster.create("Service", "default", service("web"));
    cluster.create("Deployment", "default", deployment("web", 2, "a"));
    cluster.pass(Duration::from_secs(5));
    cluster.dead_nodes = vec!["node2".into()];
    cluster.pass(Duration::from_secs(37));
    assert!(cluster.failures.is_empty(), "{:#?}", cluster.failures);
    assert_eq!(pods(&cluster, "web"), (2, 2), "a short silence means nothing");
    cluster.pass(Duration::from_secs(10));
    let node = cluster.get(Kind::Node, "", "node2").expect("the node");
    let ready = condition(&node, "Ready");
    assert_eq!(
        (&ready["status"], &ready["reason"]),
        (&json!("Unknown"), &json!("NodeStatusUnknown"))
    );
    let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let taints: Vec<(String, String)> =
        taints.iter().map(|taint| (text(&taint["key"]), text(&taint["effect"]))).collect();
    let unreachable = |effect: &str| ("node.kubernetes.io/unreachable".into(), effect.into());
    assert_eq!(taints, [unreachable("NoSchedule"), unreachable("NoExecute")]);
    assert_eq!(pods(&cluster, "web"), (2, 1), "its pod serves nobody");
    let ready = endpoints(&cluster, "web");
    let ready = ready.iter().filter(|one| one["conditions"]["ready"] == true).count();
    assert_eq!(ready, 1);

    // The node comes back before its pods are given up.
    cluster.dead_nodes.clear();
    cluster.pass(Duration::from_secs(3));
    assert_eq!(pods(&cluster, "web"), (2, 2));
    let node = cluster.get(Kind::Node, "", "node2").expect("the node");
    assert_eq!(condition(&node, "Ready")["status"], "True");
    assert_eq!(node["spec"]["taints"].as_array().map_or(0, Vec::len), 0);

    // It goes again, for good: after 300 s its pod is replaced elsewhere.
    cluster.dead_nodes = vec!["node2".into()];
    cluster.pass(Duration::from_secs(45 + 290));
    assert_eq!(pods(&cluster, "web"), (2, 1));
    cluster.pass(Duration::from_secs(20));
    assert_eq!(pods(&cluster, "web"), (2, 2));
    let nodes: BTreeSet<String> = cluster
        .all(Kind::Pod)
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .map(|pod| text(&pod["spec"]["nodeName"]))
        .collect();
    assert_eq!(nodes, BTreeSet::from(["node1".to_owned()]));

    // Its pods are removed when the node itself is.
    cluster.delete(Kind::Node, "", "node2", json!({}));
    cluster.pass(Duration::from_secs(2));
    assert_eq!(cluster.all(Kind::Pod).len(), 2);
}

#[test]
fn a_new_control_plane_does_not_blame_nodes_for_the_time_it_was_away() {
    let mut cluster = Cluster::new(13, 2);
    cluster.create("Deployment", "default", deployment("web", 2, "a"));
    cluster.pass(Duration::from_secs(5));
    cluster.now = cluster.now.after(Duration::from_secs(600));
    cluster.restart_controllers();
    cluster.settle(Duration::ZERO, |_| {});
    cluster.pass(Duration::from_secs(10));
    assert!(cluster.writes.is_empty(), "{:#?}", cluster.writes);
}

#[test]
fn a_pod_that_nobody_can_have_says_why_until_somebody_can() {
    let mut cluster = Cluster::new(14, 3);
    cluster.patch(Kind::Node, "", "node1", json!({"spec": {"unschedulable": true}}));
    let taint = json!({"key": "gpu", "value": "yes", "effect": "NoSchedule"});
    cluster.patch(Kind::Node, "", "node2", json!({"spec": {"taints": [taint]}}));
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeSelector": {"disk": "ssd"},
        "containers": [{"name": "c", "image": "i"}]}});
    cluster.create("Pod", "default", pod);
    settle(&mut cluster);
    let pod = cluster.get(Kind::Pod, "default", "p").expect("the pod");
    let scheduled = condition(&pod, "PodScheduled");
    assert_eq!(
        (&scheduled["status"], &scheduled["reason"]),
        (&json!("False"), &json!("Unschedulable"))
    );
    let message = "0/3 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, \
                   1 node(s) had untolerated taint {gpu: yes}, 1 node(s) were unschedulable. \
                   preemption: 0/3 nodes are available: 3 Preemption is not helpful for \
                   scheduling.";
    assert_eq!(scheduled["message"], message);
    let told = cluster.all(Kind::Event).iter().any(|event| {
        event["reason"] == "FailedScheduling"
            && event["type"] == "Warning"
            && event["message"] == message
    });
    assert!(told);
    cluster.patch(Kind::Node, "", "node3", json!({"metadata": {"labels": {"disk": "ssd"}}}));
    settle(&mut cluster);
    let pod = cluster.get(Kind::Pod, "default", "p").expect("the pod");
    assert_eq!(pod["spec"]["nodeName"], "node3");
    assert_eq!(condition(&pod, "PodScheduled")["status"], "True");
}

#[test]
fn one_changed_pod_of_many_costs_one_slice_write() {
    let mut cluster = Cluster::new(15, 3);
    cluster.create("Service", "default", service("web"));
    cluster.create("Deployment", "default", deployment("web", 230, "a"));
    cluster.settle(SOON, |_| {});
    let sizes = |cluster: &Cluster| {
        let slices = cluster.all(Kind::EndpointSlice);
        let mut sizes: Vec<usize> =
            slices.iter().map(|slice| slice["endpoints"].as_array().map_or(0, Vec::len)).collect();
        sizes.sort_unstable();
        sizes
    };
    assert_eq!(sizes(&cluster).iter().sum::<usize>(), 230);
    assert!(sizes(&cluster).iter().all(|size| *size <= 100), "{:?}", sizes(&cluster));
    cluster.writes.clear();
    let name = text(&cluster.all(Kind::Pod)[17]["metadata"]["name"]);
    let conditions = json!([{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]);
    cluster.patch_status(Kind::Pod, "default", &name, json!({"conditions": conditions}));
    cluster.settle(SOON, |_| {});
    let writes = cluster.writes.iter().filter(|write| write.starts_with("EndpointSlices")).count();
    assert_eq!(writes, 1, "{:#?}", cluster.writes);
    let unready: Vec<Value> = endpoints(&cluster, "web")
        .into_iter()
        .filter(|endpoint| endpoint["conditions"]["ready"] == false)
        .collect();
    assert_eq!(unready.len(), 1);
    assert_eq!(unready[0]["targetRef"]["name"], json!(name));
}

#[test]
fn a_removed_service_takes_its_slices_along() {
    let mut cluster = Cluster::new(16, 1);
    cluster.create("Service", "default", service("web"));
    let bare = json!({"metadata": {"name": "bare"}, "spec": {"ports": [{"port": 80}]}});
    cluster.create("Service", "default", bare);
    settle(&mut cluster);
    let slices = cluster.all(Kind::EndpointSlice);
    assert_eq!(slices.len(), 1, "a Service without selector gets none");
    assert_eq!(slices[0]["metadata"]["labels"]["kubernetes.io/service-name"], "web");
    assert_eq!(slices[0]["metadata"]["ownerReferences"][0]["kind"], "Service");
    cluster.delete(Kind::Service, "default", "web", json!({}));
    settle(&mut cluster);
    assert!(cluster.all(Kind::EndpointSlice).is_empty());
    assert!(cluster.get(Kind::Endpoints, "default", "web").is_none());
}

/// Pods of a node that is given up are taken out of their Services in one go: no more writes than
/// one a pod and one a slice, and within a second.
#[test]
fn pods_of_a_silent_node_leave_their_services_at_once() {
    let mut cluster = Cluster::new(17, 2);
    cluster.create("Service", "default", service("web"));
    cluster.create("Deployment", "default", deployment("web", 60, "a"));
    cluster.pass(Duration::from_secs(5));
    let ready = |cluster: &Cluster| {
        let endpoints = endpoints(cluster, "web");
        endpoints.iter().filter(|endpoint| endpoint["conditions"]["ready"] == true).count()
    };
    assert_eq!(ready(&cluster), 60);
    cluster.dead_nodes = vec!["node2".into()];
    let unknown = |cluster: &Cluster| {
        let node = cluster.get(Kind::Node, "", "node2").expect("the node");
        condition(&node, "Ready")["status"] == "Unknown"
    };
    cluster.writes.clear();
    while !unknown(&cluster) {
        cluster.pass(Duration::from_secs(1));
    }
    assert_eq!(ready(&cluster), 30, "as soon as the node is given up");
    let slice_writes =
        cluster.writes.iter().filter(|write| write.starts_with("EndpointSlices")).count();
    assert!(slice_writes <= 30, "{slice_writes}");
}
