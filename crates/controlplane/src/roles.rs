//! The roles that every cluster has, and who has them: the real server's, as far as the resources
//! are served here.

use client::ResourcePath;
use model::layout;
use serde_json::{Value, json};

use crate::bootstrap::Wanted;

const GROUP_VERSION: &str = "rbac.authorization.k8s.io/v1";
/// Marks what the server itself makes and mends.
const BOOTSTRAPPING: &str = "kubernetes.io/bootstrapping";
const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "delete", "deletecollection", "patch", "update"];

/// Roles and their bindings.
pub(crate) fn wanted() -> Vec<Wanted> {
    let mut all = vec![
        role(
            "cluster-admin",
            json!([
                {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
                {"nonResourceURLs": ["*"], "verbs": ["*"]},
            ]),
        ),
        role(
            "system:discovery",
            json!([{
                "nonResourceURLs": ["/", "/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez",
                    "/openapi", "/openapi/*", "/readyz", "/version", "/version/"],
                "verbs": ["get"],
            }]),
        ),
        role("system:node", node_rules()),
        role("view", json!(rules(&READ, false))),
        role("edit", json!([rules(&all_verbs(), true), exec()].concat())),
        role(
            "admin",
            json!(
                [
                    rules(&READ, true),
                    rules(&WRITE, true),
                    exec(),
                    vec![json!({
                        "apiGroups": ["rbac.authorization.k8s.io"],
                        "resources": ["roles", "rolebindings"],
                        "verbs": all_verbs(),
                    })]
                ]
                .concat()
            ),
        ),
    ];
    let bindings = [
        ("cluster-admin", layout::GROUP_MASTERS),
        ("system:discovery", "system:authenticated"),
        ("system:node", layout::GROUP_NODES),
    ];
    all.extend(bindings.map(|(role, group)| binding(role, group)));
    all
}

/// What agent and runtime of a node do. The real server's node authorizer narrows this further, to
/// the node's own pods.
fn node_rules() -> Value {
    json!([
        {"apiGroups": [""], "resources": ["nodes"],
         "verbs": ["create", "get", "list", "patch", "update", "watch"]},
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch", "update"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["delete", "get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch", "update"]},
        {"apiGroups": [""], "resources": ["configmaps", "namespaces", "secrets", "services"],
         "verbs": READ},
        {"apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"]},
        {"apiGroups": ["", "events.k8s.io"], "resources": ["events"],
         "verbs": ["create", "patch", "update"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"],
         "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": READ},
        {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies", "servicecidrs"],
         "verbs": READ},
    ])
}

/// What people of a namespace work with; secrets only for those who may also write.
fn rules(verbs: &[&str], with_secrets: bool) -> Vec<Value> {
    let mut core = vec![
        "configmaps",
        "endpoints",
        "events",
        "pods",
        "pods/log",
        "pods/status",
        "replicationcontrollers",
        "replicationcontrollers/scale",
        "serviceaccounts",
        "services",
        "services/status",
    ];
    if with_secrets {
        core.push("secrets");
    }
    vec![
        json!({"apiGroups": [""], "resources": core, "verbs": verbs}),
        json!({"apiGroups": [""], "resources": ["limitranges"], "verbs": READ}),
        json!({
            "apiGroups": ["apps"],
            "resources": ["daemonsets", "deployments", "deployments/scale", "replicasets",
                "replicasets/scale", "statefulsets", "statefulsets/scale"],
            "verbs": verbs,
        }),
        json!({"apiGroups": ["apps"], "resources": ["controllerrevisions"], "verbs": READ}),
        json!({
            "apiGroups": ["batch"],
            "resources": ["cronjobs", "cronjobs/status", "jobs", "jobs/status"],
            "verbs": verbs,
        }),
        json!({
            "apiGroups": ["policy"],
            "resources": ["poddisruptionbudgets", "poddisruptionbudgets/status"],
            "verbs": verbs,
        }),
        json!({"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": verbs}),
        json!({
            "apiGroups": ["networking.k8s.io"],
            "resources": ["ingresses", "networkpolicies"],
            "verbs": verbs,
        }),
    ]
}

fn all_verbs() -> Vec<&'static str> {
    [READ.as_slice(), WRITE.as_slice()].concat()
}

fn exec() -> Vec<Value> {
    vec![json!({
        "apiGroups": [""],
        "resources": [
            "pods/attach",
            "pods/eviction",
            "pods/exec",
            "pods/portforward",
            "serviceaccounts/token",
        ],
        "verbs": ["create", "get"],
    })]
}

fn role(name: &str, rules: Value) -> Wanted {
    Wanted {
        collection: ResourcePath::new(GROUP_VERSION, "clusterroles"),
        object: json!({
            "apiVersion": GROUP_VERSION,
            "kind": "ClusterRole",
            "metadata": {"name": name, "labels": {BOOTSTRAPPING: "rbac-defaults"}},
            "rules": rules,
        }),
        kept: &["rules"],
    }
}

fn binding(role: &str, group: &str) -> Wanted {
    Wanted {
        collection: ResourcePath::new(GROUP_VERSION, "clusterrolebindings"),
        object: json!({
            "apiVersion": GROUP_VERSION,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": role, "labels": {BOOTSTRAPPING: "rbac-defaults"}},
            "subjects": [
                {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group},
            ],
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": role,
            },
        }),
        kept: &["subjects"],
    }
}
