//! Nobody grants what he does not have, and a node writes of itself alone (X-27).

mod common;

use common::Api;
use serde_json::{Value, json};
use store::{Action, DeleteOptions, PatchKind, Subresource};

const GROUP: &str = "rbac.authorization.k8s.io";

fn role(api: &mut Api, kind: &str, namespace: &str, name: &str, rules: Value) {
    let body = json!({"metadata": {"name": name}, "rules": rules});
    api.create(&format!("{}s", kind.to_lowercase()), namespace, body).expect("a role");
}

fn binding(kind: &str, role: &str, user: &str) -> Value {
    json!({
        "metadata": {"name": format!("{role}-{user}")},
        "subjects": [{"kind": "User", "name": user}],
        "roleRef": {"apiGroup": GROUP, "kind": kind, "name": role},
    })
}

/// `jane` rules over roles in the namespace `default`, and reads pods in it; `secrets` is a role
/// that she does not have.
fn world() -> Api {
    let mut api = Api::new();
    let own = json!([
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
        {"apiGroups": ["apps"], "resources": ["*/scale"], "verbs": ["*"]},
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["a", "b"],
         "verbs": ["get"]},
        {"apiGroups": [GROUP], "resources": ["roles", "rolebindings"], "verbs": ["*"],
         "resourceNames": ["unused"]},
    ]);
    role(&mut api, "Role", "default", "own", own);
    api.create("rolebindings", "default", binding("Role", "own", "jane")).expect("a binding");
    let secrets = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list"]}]);
    role(&mut api, "ClusterRole", "", "secrets", secrets);
    api.user = Some(("jane", vec!["dev".to_owned(), "system:authenticated".to_owned()]));
    api
}

#[test]
fn a_role_has_only_what_its_writer_has() {
    let rules = [
        (json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}), true),
        (json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "get"]}), true),
        (
            json!({"apiGroups": [""], "resources": ["pods"], "resourceNames": ["x"], "verbs": ["get"]}),
            true,
        ),
        (json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["delete"]}), false),
        (json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["*"]}), false),
        (json!({"apiGroups": ["*"], "resources": ["pods"], "verbs": ["get"]}), false),
        (json!({"apiGroups": [""], "resources": ["*"], "verbs": ["get"]}), false),
        (json!({"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]}), false),
        (
            json!({"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["get"]}),
            true,
        ),
        (json!({"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"]}), false),
        (
            json!({"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["b"], "verbs": ["get"]}),
            true,
        ),
        (
            json!({"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["b", "c"], "verbs": ["get"]}),
            false,
        ),
        (json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}), false),
    ];
    for (rule, allowed) in rules {
        let mut api = world();
        let body = json!({"metadata": {"name": "new"}, "rules": [rule]});
        let made = api.create("roles", "default", body);
        assert_eq!(made.is_ok(), allowed, "{rule}: {made:?}");
        if let Err(refusal) = made {
            assert_eq!(refusal.code, 403, "{rule}");
        }
    }
}

#[test]
fn the_refusal_says_what_is_missing_in_the_real_servers_words() {
    let mut api = world();
    let rules = json!([
        {"apiGroups": [""], "resources": ["pods", "secrets"], "verbs": ["get", "delete"]},
        {"apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["web"],
         "verbs": ["get"]},
    ]);
    let body = json!({"metadata": {"name": "new"}, "rules": rules});
    let refused = api.create("roles", "default", body).expect_err("refused");
    assert_eq!(
        refused.message,
        "roles.rbac.authorization.k8s.io \"new\" is forbidden: user \"jane\" (groups=[\"dev\" \
         \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n\
         {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}\n\
         {APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"delete\"]}\n\
         {APIGroups:[\"apps\"], Resources:[\"deployments\"], ResourceNames:[\"web\"], \
         Verbs:[\"get\"]}"
    );
}

#[test]
fn changes_of_a_role_are_checked_by_every_way() {
    let mut api = world();
    api.user = None;
    let rules = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
    role(&mut api, "Role", "default", "r", rules);
    api.user = world().user;
    let more = json!([{"op": "add", "path": "/rules/0/verbs/-", "value": "delete"}]);
    let patched = api.patch("roles", "default", "r", PatchKind::Json, more);
    assert_eq!(patched.expect_err("refused").code, 403);
    let body = json!({"metadata": {"name": "r"},
        "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]});
    assert_eq!(api.update("roles", "default", "r", body.clone()).expect_err("refused").code, 403);
    let mut config = body;
    config["apiVersion"] = "rbac.authorization.k8s.io/v1".into();
    config["kind"] = "Role".into();
    let applied = api.act("roles", "default", "r", None, Action::Apply { config, force: true });
    assert_eq!(applied.expect_err("refused").code, 403);
    // Labels of a role of rights that one has may be changed, and rights taken away.
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    assert!(api.patch("roles", "default", "r", PatchKind::Merge, label).is_ok());
    let none = json!({"rules": []});
    assert!(api.patch("roles", "default", "r", PatchKind::Merge, none).is_ok());
}

#[test]
fn a_finalizer_of_a_stronger_role_may_go_without_its_rights() {
    let mut api = world();
    api.user = None;
    let body = json!({"metadata": {"name": "strong", "finalizers": ["acme.com/x"]},
        "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]});
    api.create("roles", "default", body).expect("a role");
    api.user = world().user;
    let freed = json!({"metadata": {"finalizers": null}});
    assert!(api.patch("roles", "default", "strong", PatchKind::Merge, freed).is_ok());
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    let refused = api.patch("roles", "default", "strong", PatchKind::Merge, label);
    assert_eq!(refused.expect_err("refused").code, 403);
}

#[test]
fn a_binding_gives_only_what_its_writer_has_or_may_bind() {
    let mut api = world();
    let refused = api
        .create("rolebindings", "default", binding("ClusterRole", "secrets", "joe"))
        .expect_err("refused");
    assert!(
        refused.message.contains("is attempting to grant RBAC permissions not currently held:\n{"),
        "{refused}"
    );
    let absent = api
        .create("rolebindings", "default", binding("ClusterRole", "nope", "joe"))
        .expect_err("refused");
    assert_eq!(absent.code, 404, "{absent}");
    assert!(api.create("rolebindings", "default", binding("Role", "own", "joe")).is_ok());
    // What one has in a namespace, one does not have in the cluster.
    let pods = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
    let jane = api.user.take();
    role(&mut api, "ClusterRole", "", "pods", pods);
    api.user = jane.clone();
    let everywhere = api.create("clusterrolebindings", "", binding("ClusterRole", "pods", "joe"));
    assert_eq!(everywhere.expect_err("refused").code, 403);
    assert!(api.create("rolebindings", "default", binding("ClusterRole", "pods", "joe")).is_ok());

    // The verb `bind` gives the right for one role, in one namespace.
    api.user = None;
    let rules = json!([{"apiGroups": [GROUP], "resources": ["clusterroles"],
        "resourceNames": ["secrets"], "verbs": ["bind"]}]);
    role(&mut api, "Role", "default", "binder", rules);
    api.create("rolebindings", "default", binding("Role", "binder", "jane")).expect("a binding");
    api.user = jane;
    let bound = api.create("rolebindings", "default", binding("ClusterRole", "secrets", "joe"));
    assert!(bound.is_ok(), "{bound:?}");
    let wider = api.create("clusterrolebindings", "", binding("ClusterRole", "secrets", "joe"));
    assert_eq!(wider.expect_err("refused").code, 403);
}

#[test]
fn the_verb_escalate_lets_one_change_a_role_beyond_oneself() {
    let mut api = world();
    let jane = api.user.take();
    let rules = json!([{"apiGroups": [GROUP], "resources": ["clusterroles"],
        "resourceNames": ["secrets"], "verbs": ["escalate"]}]);
    role(&mut api, "ClusterRole", "", "escalator", rules);
    let bound = binding("ClusterRole", "escalator", "jane");
    api.create("clusterrolebindings", "", bound).expect("a binding");
    api.user = jane;
    let more = json!([{"op": "add", "path": "/rules/0/verbs/-", "value": "delete"}]);
    let named = api.patch("clusterroles", "", "secrets", PatchKind::Json, more.clone());
    assert!(named.is_ok(), "{named:?}");
    let other = json!({"metadata": {"name": "other"},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]});
    assert_eq!(api.create("clusterroles", "", other).expect_err("refused").code, 403);
}

#[test]
fn rules_without_end_are_refused_and_not_counted_out() {
    let mut api = world();
    let many: Vec<String> = (0..2_000).map(|n| format!("r{n}")).collect();
    let body = json!({"metadata": {"name": "many"},
        "rules": [{"apiGroups": many, "resources": many, "verbs": many}]});
    let refused = api.create("roles", "default", body).expect_err("refused");
    assert!(refused.message.contains("split the role"), "{refused}");
}

fn node_world() -> Api {
    let mut api = Api::new();
    for name in ["kube-node-lease", "kube-system"] {
        api.create("namespaces", "", json!({"metadata": {"name": name}})).expect("a namespace");
    }
    for name in ["a", "b"] {
        api.create("nodes", "", json!({"metadata": {"name": name}})).expect("a node");
        let pod = json!({
            "metadata": {"name": format!("on-{name}")},
            "spec": {"nodeName": name, "containers": [{"name": "c", "image": "i"}]},
        });
        api.create("pods", "default", pod).expect("a pod");
    }
    api.user = Some(("system:node:a", vec!["system:nodes".to_owned()]));
    api
}

#[test]
fn a_node_changes_of_nodes_itself_and_not_what_decides_over_it() {
    let cases = [
        (json!({"metadata": {"labels": {"kubernetes.io/os": "linux"}}}), true),
        (json!({"metadata": {"labels": {"node.kubernetes.io/x": "1"}}}), true),
        (json!({"metadata": {"labels": {"acme.com/disk": "fast"}}}), true),
        (json!({"metadata": {"annotations": {"a": "b"}}}), true),
        (json!({"metadata": {"labels": {"node-restriction.kubernetes.io/x": "1"}}}), false),
        (json!({"metadata": {"labels": {"a.node-restriction.kubernetes.io/x": "1"}}}), false),
        (json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}}), false),
        (json!({"metadata": {"labels": {"k8s.io/x": "1"}}}), false),
        (json!({"metadata": {"labels": {"notkubernetes.io/x": "1"}}}), true),
        (json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}), false),
        (json!({"spec": {"unschedulable": true}}), true),
        (
            json!({"metadata": {"ownerReferences":
                [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]}}),
            false,
        ),
    ];
    for (patch, allowed) in cases {
        let mut api = node_world();
        let patched = api.patch("nodes", "", "a", PatchKind::Merge, patch.clone());
        assert_eq!(patched.is_ok(), allowed, "{patch}: {patched:?}");
        let foreign = api.patch("nodes", "", "b", PatchKind::Merge, patch.clone());
        let refused = foreign.expect_err("another node");
        assert_eq!(
            refused.message,
            "nodes \"b\" is forbidden: node \"a\" is not allowed to modify node \"b\""
        );
    }
}

#[test]
fn a_node_cannot_change_its_protected_labels_by_its_status_either() {
    let mut api = node_world();
    let action = Action::Patch(
        PatchKind::Merge,
        json!({"metadata": {"labels": {"node-restriction.kubernetes.io/x": "1"}}}),
    );
    let refused = api.act("nodes", "", "a", Some(Subresource::Status), action);
    assert_eq!(
        refused.expect_err("refused").message,
        "nodes \"a\" is forbidden: is not allowed to modify labels: node-restriction.kubernetes.io/x"
    );
}

#[test]
fn a_node_writes_and_deletes_its_own_pods_alone() {
    let mut api = node_world();
    let ready = json!({"status": {"phase": "Running"}});
    let mut status = |pod: &str, patch: &Value| {
        let action = Action::Patch(PatchKind::Merge, patch.clone());
        api.act("pods", "default", pod, Some(Subresource::Status), action)
    };
    assert!(status("on-a", &ready).is_ok());
    assert_eq!(
        status("on-b", &ready).expect_err("refused").message,
        "pods \"on-b\" is forbidden: node \"a\" can only update pod status for pods with \
         spec.nodeName set to itself"
    );
    for (pod, allowed) in [("on-a", true), ("on-b", false)] {
        let body = json!({"metadata": {"name": pod}});
        let evicted =
            api.act("pods", "default", pod, Some(Subresource::Eviction), Action::Create(body));
        assert_eq!(evicted.is_ok(), allowed, "{pod}");
        let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        let deleted = api.act("pods", "default", pod, None, Action::Delete(options));
        assert_eq!(deleted.is_ok(), allowed, "{pod}");
    }
}

#[test]
fn a_node_makes_mirror_pods_of_itself_alone() {
    let mut api = node_world();
    let nodes = common::row("nodes");
    let uid = |api: &Api, name: &str| api.store.get(nodes, "", name).expect("it").uid().to_owned();
    let (own, other) = (uid(&api, "a"), uid(&api, "b"));
    let pod = |owner: &str, uid: &str, node: &str, annotations: Value| {
        json!({
            "metadata": {"name": "m", "annotations": annotations, "ownerReferences":
                [{"apiVersion": "v1", "kind": "Node", "name": owner, "uid": uid}]},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
        })
    };
    let mirror = json!({"kubernetes.io/config.mirror": "x"});
    for (body, why) in [
        (pod("a", &own, "a", json!({})), "no mirror pod"),
        (pod("a", &own, "b", mirror.clone()), "for another node"),
        (pod("b", &other, "a", mirror.clone()), "owned by another node"),
        (pod("a", &other, "a", mirror.clone()), "owned by a node that is gone"),
    ] {
        assert_eq!(api.create("pods", "default", body).expect_err(why).code, 403, "{why}");
    }
    let good = pod("a", &own, "a", mirror);
    for (field, value) in [
        ("serviceAccountName", json!("default")),
        ("imagePullSecrets", json!([{"name": "s"}])),
        ("volumes", json!([{"name": "v", "secret": {"secretName": "s"}}])),
        ("volumes", json!([{"name": "v", "projected": {"sources": [{"secret": {"name": "s"}}]}}])),
    ] {
        let mut body = good.clone();
        body["spec"][field] = value;
        let refused = api.create("pods", "default", body).expect_err("refused");
        assert!(refused.message.contains("can not create pods that reference"), "{refused}");
    }
    let made = api.create("pods", "default", good);
    assert!(made.is_ok(), "{made:?}");
}

#[test]
fn a_node_keeps_its_lease_and_its_claims_of_blocks() {
    let mut api = node_world();
    let mut lease = |namespace: &str, name: &str, labels: Value| {
        let body = json!({"metadata": {"name": name, "labels": labels}});
        api.create("leases", namespace, body).map(drop).map_err(|refused| refused.code)
    };
    assert_eq!(lease("kube-node-lease", "a", json!({})), Ok(()));
    assert_eq!(lease("kube-node-lease", "b", json!({})), Err(403));
    assert_eq!(lease("kube-system", "x", json!({})), Err(403));
    assert_eq!(lease("kube-system", "y", json!({"flatnet.io/pod-block": "p"})), Ok(()));
    assert_eq!(lease("default", "a", json!({"flatnet.io/pod-block": "p"})), Err(403));
}

/// An aggregated role gathers what others label, so that only who has all rights may have one made.
#[test]
fn only_who_may_everything_puts_roles_together() {
    let mut api = world();
    let cluster = json!([{"apiGroups": [GROUP], "resources": ["clusterroles"], "verbs": ["*"],
        "resourceNames": ["unused"]}]);
    let all = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
        {"nonResourceURLs": ["*"], "verbs": ["*"]}]);
    let user = api.user.take();
    role(&mut api, "ClusterRole", "", "cluster", cluster);
    role(&mut api, "ClusterRole", "", "all", all);
    for (name, user) in [("cluster", "jane"), ("all", "root")] {
        let binding = binding("ClusterRole", name, user);
        api.create("clusterrolebindings", "", binding).expect("a binding");
    }
    api.user = user;
    let selector = json!({"matchLabels": {"part-of": "whole"}});
    let whole = json!({"metadata": {"name": "whole"},
        "aggregationRule": {"clusterRoleSelectors": [selector]}});
    let refused = api.create("clusterroles", "", whole.clone()).expect_err("refused");
    assert_eq!(refused.code, 403);
    let why = "must have cluster-admin privileges to use an aggregationRule";
    assert!(refused.message.contains(why), "{}", refused.message);
    api.user = Some(("root", Vec::new()));
    api.create("clusterroles", "", whole).expect("made");
    let none = json!({"metadata": {"name": "n"}, "aggregationRule": {}});
    let refused = api.create("clusterroles", "", none).expect_err("refused");
    assert!(refused.message.contains("at least one clusterRoleSelector"), "{}", refused.message);

    // A part of a part comes too, each rule once, and goes with its role.
    let rules = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
    let part = json!({"metadata": {"name": "part", "labels": {"part-of": "whole"}},
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"part-of": "part"}}]}});
    api.create("clusterroles", "", part).expect("made");
    for name in ["leaf", "twin"] {
        let leaf =
            json!({"metadata": {"name": name, "labels": {"part-of": "part"}}, "rules": rules});
        api.create("clusterroles", "", leaf).expect("made");
    }
    let found = |api: &Api| {
        let whole = api.get("clusterroles", "", "whole").expect("a role");
        whole.value.get("rules").cloned()
    };
    assert_eq!(found(&api), Some(rules));
    for name in ["leaf", "twin"] {
        api.delete("clusterroles", "", name, Value::Null).expect("deleted");
    }
    assert_eq!(found(&api), Some(json!([])));
}

/// The messages of a policy can tell its parameters.
#[test]
fn only_who_reads_parameters_makes_policies_use_them() {
    let mut api = world();
    let of_kind = |kind: &str, name: &str| {
        json!({"metadata": {"name": name}, "spec": {
            "paramKind": {"apiVersion": "v1", "kind": kind},
            "matchConstraints": {"resourceRules": [{"operations": ["*"], "apiGroups": [""],
                "apiVersions": ["v1"], "resources": ["pods"]}]},
            "validations": [{"expression": "params.data.a == 'b'"}],
        }})
    };
    let binding = |name: &str| {
        json!({"metadata": {"name": "b"}, "spec": {
            "policyName": "secret", "validationActions": ["Deny"],
            "paramRef": {"name": name, "namespace": "default", "parameterNotFoundAction": "Deny"}}})
    };
    let policies = "validatingadmissionpolicies";
    let bindings = "validatingadmissionpolicybindings";
    let refused = api.create(policies, "", of_kind("Secret", "secret")).expect_err("refused");
    assert_eq!(refused.code, 403);
    assert!(refused.message.contains("does not have \"get\" permission"), "{}", refused.message);
    let jane = api.user.take();
    api.create(policies, "", of_kind("Secret", "secret")).expect("made");
    api.user = jane.clone();
    assert_eq!(api.create(bindings, "", binding("key")).expect_err("refused").code, 403);
    api.user = None;
    let rules = json!([{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["key"],
        "verbs": ["get"]}]);
    role(&mut api, "Role", "default", "key", rules);
    let right = json!({"metadata": {"name": "key"}, "subjects": [{"kind": "User", "name": "jane"}],
        "roleRef": {"kind": "Role", "name": "key"}});
    api.create("rolebindings", "default", right).expect("a binding");
    api.user = jane;
    assert_eq!(api.create(bindings, "", binding("other")).expect_err("refused").code, 403);
    api.create(bindings, "", binding("key")).expect("made");
}
