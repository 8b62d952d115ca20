//! Roles and bindings: who may do what.

mod common;

use common::Api;
use serde_json::{Value, json};
use store::authorize::{AUTHENTICATED, Request, Subject};

/// `rules` for one subject, in one namespace or (empty) in the cluster.
fn grant(api: &mut Api, name: &str, namespace: &str, subject: Value, rules: Value) {
    let (role, binding) = match namespace {
        "" => ("ClusterRole", "clusterrolebindings"),
        _ => ("Role", "rolebindings"),
    };
    let roles = format!("{}s", role.to_lowercase());
    api.create(&roles, namespace, json!({"metadata": {"name": name}, "rules": rules}))
        .expect("a role");
    let body = json!({
        "metadata": {"name": name},
        "subjects": [subject],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": name},
    });
    api.create(binding, namespace, body).expect("a binding");
}

fn world() -> Api {
    let mut api = Api::new();
    for name in ["shop", "kube-flatnet"] {
        api.create("namespaces", "", json!({"metadata": {"name": name}})).expect("a namespace");
    }
    let jane = json!({"kind": "User", "name": "jane"});
    let pods =
        json!([{"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]}]);
    grant(&mut api, "reader", "shop", jane, pods);
    let agent = json!({"kind": "ServiceAccount", "namespace": "kube-flatnet", "name": "flatnet"});
    let nodes = json!([
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]},
        {"apiGroups": [""], "resources": ["nodes/status"], "resourceNames": ["node1"], "verbs": ["patch"]},
        {"apiGroups": ["apps"], "resources": ["*/scale"], "verbs": ["*"]},
    ]);
    grant(&mut api, "flatnet", "", agent, nodes);
    let everyone = json!({"kind": "Group", "name": "system:authenticated"});
    let documents = json!([{"nonResourceURLs": ["/openapi/*", "/api"], "verbs": ["get"]}]);
    grant(&mut api, "discovery", "", everyone, documents);
    api
}

const AGENT: &str = "system:serviceaccount:kube-flatnet:flatnet";

#[test]
fn what_no_rule_allows_is_denied() {
    let api = world();
    // User, verb, group, resource, subresource, namespace, name; whether it is allowed.
    type Row = (
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        bool,
    );
    let rows: [Row; 17] = [
        ("jane", "get", "", "pods", "", "shop", "web", true),
        ("jane", "list", "", "pods", "", "shop", "", true),
        ("jane", "get", "", "pods", "log", "shop", "web", true),
        ("jane", "create", "", "pods", "exec", "shop", "web", false),
        ("jane", "delete", "", "pods", "", "shop", "web", false),
        ("jane", "get", "", "pods", "", "default", "web", false),
        ("jane", "list", "", "pods", "", "", "", false),
        ("jane", "get", "", "secrets", "", "shop", "key", false),
        ("john", "get", "", "pods", "", "shop", "web", false),
        (AGENT, "watch", "", "nodes", "", "", "", true),
        (AGENT, "get", "", "nodes", "", "", "node1", false),
        (AGENT, "patch", "", "nodes", "status", "", "node1", true),
        (AGENT, "patch", "", "nodes", "status", "", "node2", false),
        (AGENT, "patch", "", "nodes", "", "", "node1", false),
        (AGENT, "update", "apps", "deployments", "scale", "shop", "web", true),
        (AGENT, "update", "apps", "deployments", "", "shop", "web", false),
        ("system:serviceaccount:shop:flatnet", "watch", "", "nodes", "", "", "", false),
    ];
    for (user, verb, group, plural, subresource, namespace, name, allowed) in rows {
        let request = Request::Resource { verb, group, plural, subresource, namespace, name };
        let subject = Subject { name: user, groups: &[] };
        let decided = api.store.authorize(subject, &request);
        assert_eq!(
            decided.is_ok(),
            allowed,
            "{user} {verb} {plural}/{subresource} {namespace}/{name}"
        );
    }
}

#[test]
fn documents_are_allowed_by_path_and_masters_may_everything() {
    let api = world();
    let ask = |name: &str, group: &str, path: &str| {
        let groups = &[group.to_owned()];
        api.store.authorize(Subject { name, groups }, &Request::Path { verb: "get", path }).is_ok()
    };
    assert!(ask("jane", AUTHENTICATED, "/openapi/v3/apis/apps/v1"));
    assert!(ask("jane", AUTHENTICATED, "/api"));
    assert!(!ask("jane", AUTHENTICATED, "/api/v1"));
    assert!(!ask("system:anonymous", "system:unauthenticated", "/api"));
    assert!(ask("root", "system:masters", "/metrics"));
}

#[test]
fn denials_speak_as_the_real_server_does() {
    let api = world();
    let say = |namespace, name, subresource| {
        let request = Request::Resource {
            verb: "get",
            group: "",
            plural: "pods",
            subresource,
            namespace,
            name,
        };
        let subject = Subject { name: "john", groups: &[] };
        api.store.authorize(subject, &request).expect_err("denied").message
    };
    assert_eq!(
        say("shop", "web", "log"),
        "pods \"web\" is forbidden: User \"john\" cannot get resource \"pods/log\" in API group \"\" \
         in the namespace \"shop\""
    );
    assert_eq!(
        say("", "", ""),
        "pods is forbidden: User \"john\" cannot get resource \"pods\" in API group \"\" at the \
         cluster scope"
    );
}

#[test]
fn roles_are_checked_when_they_are_written() {
    let mut api = Api::new();
    let no_verbs =
        json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": ["pods"]}]});
    let error = api.create("roles", "default", no_verbs).expect_err("refused").message;
    assert!(error.contains("verbs must contain at least one value"), "{error}");
    let wrong_role = json!({
        "metadata": {"name": "b"},
        "roleRef": {"kind": "Role", "name": "r"},
        "subjects": [{"kind": "Robot", "name": "x"}],
    });
    let error = api.create("clusterrolebindings", "", wrong_role).expect_err("refused").message;
    assert!(error.contains("roleRef.kind") && error.contains("subjects[0].kind"), "{error}");
}

/// Source: kubernetes.io, "Using Node Authorization".
#[test]
fn a_node_reads_what_its_own_pods_name_as_long_as_they_do() {
    let mut api = Api::new();
    let reads = json!([
        {"name": "v1", "secret": {"secretName": "mounted"}},
        {"name": "v2", "projected": {"sources": [{"secret": {"name": "projected"}},
            {"configMap": {"name": "map-projected"}}]}},
        {"name": "v3", "configMap": {"name": "map-mounted"}},
        {"name": "v4", "persistentVolumeClaim": {"claimName": "claim"}},
    ]);
    let container = json!({
        "name": "c", "image": "i",
        "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "in-env", "key": "k"}}},
            {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "map-in-env", "key": "k"}}}],
        "envFrom": [{"secretRef": {"name": "all-env"}}, {"configMapRef": {"name": "map-all-env"}}],
    });
    let pod = json!({
        "metadata": {"name": "p"},
        "spec": {
            "nodeName": "a", "containers": [container], "volumes": reads,
            "imagePullSecrets": [{"name": "pull"}],
        },
    });
    api.create("pods", "default", pod).expect("a pod");
    // What a mirror pod names its node cannot read: whoever makes one would choose.
    let mirror = json!({
        "metadata": {"name": "m", "annotations": {"kubernetes.io/config.mirror": "x"}},
        "spec": {"nodeName": "a", "containers": [{"name": "c", "image": "i"}],
            "imagePullSecrets": [{"name": "mirrored"}]},
    });
    api.create("pods", "default", mirror).expect("a pod");
    let claim = json!({"metadata": {"name": "claim"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "volumeName": "disk", "resources": {"requests": {"storage": "1Gi"}}}});
    api.create("persistentvolumeclaims", "default", claim).expect("a claim");

    let groups = ["system:nodes".to_owned()];
    let may = |api: &Api, node: &str, verb: &str, plural: &str, namespace: &str, name: &str| {
        let (group, subresource) = ("", "");
        let request = Request::Resource { verb, group, plural, subresource, namespace, name };
        api.store.authorize(Subject { name: node, groups: &groups }, &request).is_ok()
    };
    let named = [
        ("secrets", "mounted"),
        ("secrets", "projected"),
        ("secrets", "in-env"),
        ("secrets", "all-env"),
        ("secrets", "pull"),
        ("configmaps", "map-mounted"),
        ("configmaps", "map-projected"),
        ("configmaps", "map-in-env"),
        ("configmaps", "map-all-env"),
        ("persistentvolumeclaims", "claim"),
    ];
    for (plural, name) in named {
        assert!(may(&api, "system:node:a", "get", plural, "default", name), "{plural} {name}");
        assert!(!may(&api, "system:node:b", "get", plural, "default", name), "{plural} {name}");
        assert!(!may(&api, "system:node:a", "get", plural, "other", name), "{plural} {name}");
        assert!(!may(&api, "system:node:a", "update", plural, "default", name), "{plural} {name}");
    }
    assert!(may(&api, "system:node:a", "get", "persistentvolumes", "", "disk"));
    assert!(!may(&api, "system:node:b", "get", "persistentvolumes", "", "disk"));
    assert!(!may(&api, "system:node:a", "get", "persistentvolumes", "", "other"));
    assert!(!may(&api, "system:node:a", "get", "secrets", "default", "mirrored"));
    assert!(!may(&api, "system:node:a", "list", "secrets", "default", ""));
    assert!(!may(&api, "a", "get", "secrets", "default", "mounted"), "no node's name");
    assert!(!may(&api, "system:node:", "get", "secrets", "default", "mounted"), "no name");

    let options = store::DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
    api.act("pods", "default", "p", None, store::Action::Delete(options)).expect("deleted");
    for (plural, name) in named {
        assert!(!may(&api, "system:node:a", "get", plural, "default", name), "{plural} {name}");
    }
}

#[test]
fn a_node_gets_tokens_for_its_own_pods_alone() {
    let mut api = Api::new();
    api.create("serviceaccounts", "default", json!({"metadata": {"name": "s"}})).expect("it");
    let mut uids = Vec::new();
    for node in ["a", "b"] {
        let token = json!({"serviceAccountToken": {"path": "t", "audience": "vault"}});
        let volume = json!({"name": "v", "projected": {"sources": [token]}});
        let pod = json!({"metadata": {"name": node}, "spec": {"nodeName": node, "volumes": [volume],
            "serviceAccountName": "s", "containers": [{"name": "c", "image": "i"}]}});
        uids.push(api.create("pods", "default", pod).expect("a pod").uid().to_owned());
    }
    let groups = ["system:nodes".to_owned()];
    let node = Subject { name: "system:node:a", groups: &groups };
    let bound = |kind: &str, name: &str, uid: &str| json!({"spec": {"boundObjectRef": {"kind": kind, "name": name, "uid": uid}}});
    let to = |audiences: &[&str]| {
        let mut request = bound("Pod", "a", &uids[0]);
        request["spec"]["audiences"] = json!(audiences);
        request
    };
    for (request, account, expected) in [
        (bound("Pod", "a", &uids[0]), "s", None),
        (to(&["vault"]), "s", None),
        (to(&["other"]), "s", Some("audience \"other\" not found in pod spec volume")),
        (to(&["vault", "other"]), "s", Some("only request 0 or 1 audiences")),
        (json!({}), "s", Some("not bound to a pod")),
        (bound("Secret", "a", &uids[0]), "s", Some("not bound to a pod")),
        (bound("Pod", "a", ""), "s", Some("without a uid")),
        (bound("Pod", "a", &uids[1]), "s", Some("of another uid")),
        (bound("Pod", "b", &uids[1]), "s", Some("scheduled on a different node")),
        (bound("Pod", "a", &uids[0]), "default", Some("for another service account")),
    ] {
        let judged = api.store.restrict_token(node, "default", account, &request);
        match expected {
            None => assert_eq!(judged, Ok(()), "{request}"),
            Some(text) => {
                let refused = judged.expect_err(text);
                assert!(refused.code == 403 && refused.message.contains(text), "{refused}");
            }
        }
    }
    let account = Subject { name: "jane", groups: &[] };
    assert_eq!(api.store.restrict_token(account, "default", "s", &json!({})), Ok(()));
}
