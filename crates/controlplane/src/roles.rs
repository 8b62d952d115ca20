//! The roles that every cluster has, and who has them: the real server's, as far as the resources
//! are served here.

use client::ResourcePath;
use model::layout;
use serde_json::{Value, json};
use store::authorize::AUTHENTICATED;

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
        role("system:node", json!(store::authorize::node_rules())),
        role("view", json!(view_rules())),
        role("edit", json!([view_rules(), edit_rules()].concat())),
        role("admin", json!([view_rules(), edit_rules(), admin_rules()].concat())),
    ];
    let bindings = [
        ("cluster-admin", Some(layout::GROUP_MASTERS)),
        ("system:discovery", Some(AUTHENTICATED)),
        // Nodes have the role within the limits of their own pods alone (`store::authorize`).
        ("system:node", None),
    ];
    all.extend(bindings.map(|(role, group)| binding(role, group)));
    all
}

/// What whoever may look at a namespace may look at. Secrets are not among it: who reads a
/// ServiceAccount's token can do all that the account can.
fn view_rules() -> Vec<Value> {
    vec![
        rule(
            "",
            &[
                "bindings",
                "configmaps",
                "endpoints",
                "events",
                "limitranges",
                "namespaces",
                "namespaces/status",
                "persistentvolumeclaims",
                "persistentvolumeclaims/status",
                "pods",
                "pods/log",
                "pods/status",
                "replicationcontrollers",
                "replicationcontrollers/scale",
                "replicationcontrollers/status",
                "resourcequotas",
                "resourcequotas/status",
                "serviceaccounts",
                "services",
                "services/status",
            ],
            &READ,
        ),
        rule(
            "apps",
            &[
                "controllerrevisions",
                "daemonsets",
                "daemonsets/status",
                "deployments",
                "deployments/scale",
                "deployments/status",
                "replicasets",
                "replicasets/scale",
                "replicasets/status",
                "statefulsets",
                "statefulsets/scale",
                "statefulsets/status",
            ],
            &READ,
        ),
        rule("batch", &["cronjobs", "cronjobs/status", "jobs", "jobs/status"], &READ),
        rule("discovery.k8s.io", &["endpointslices"], &READ),
        rule("policy", &["poddisruptionbudgets", "poddisruptionbudgets/status"], &READ),
        rule("networking.k8s.io", &["ingresses", "ingresses/status", "networkpolicies"], &READ),
    ]
}

/// What whoever works in a namespace may do beyond looking. Endpoints and their slices are not
/// among it: they can lead a load balancer into other namespaces (CVE-2021-25740); nor is any
/// status, which is the controllers' to say (CVE-2020-8554).
fn edit_rules() -> Vec<Value> {
    let streams = ["pods/attach", "pods/exec", "pods/portforward"];
    vec![
        rule("", &[&["secrets"], streams.as_slice()].concat(), &READ),
        rule("", &["serviceaccounts"], &["impersonate"]),
        rule("", &[&["pods"], streams.as_slice()].concat(), &WRITE),
        rule("", &["pods/eviction", "serviceaccounts/token"], &["create"]),
        rule(
            "",
            &[
                "configmaps",
                "events",
                "persistentvolumeclaims",
                "replicationcontrollers",
                "replicationcontrollers/scale",
                "secrets",
                "serviceaccounts",
                "services",
            ],
            &WRITE,
        ),
        rule(
            "apps",
            &[
                "daemonsets",
                "deployments",
                "deployments/scale",
                "replicasets",
                "replicasets/scale",
                "statefulsets",
                "statefulsets/scale",
            ],
            &WRITE,
        ),
        rule("batch", &["cronjobs", "jobs"], &WRITE),
        rule("policy", &["poddisruptionbudgets"], &WRITE),
        rule("networking.k8s.io", &["ingresses", "networkpolicies"], &WRITE),
        rule("coordination.k8s.io", &["leases"], &[READ.as_slice(), &WRITE].concat()),
    ]
}

/// What whoever rules a namespace may do beyond that: give others rights in it, of his own.
fn admin_rules() -> Vec<Value> {
    let verbs = [READ.as_slice(), &WRITE].concat();
    vec![rule("rbac.authorization.k8s.io", &["roles", "rolebindings"], &verbs)]
}

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": resources, "verbs": verbs})
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

fn binding(role: &str, group: Option<&str>) -> Wanted {
    let mut wanted = Wanted {
        collection: ResourcePath::new(GROUP_VERSION, "clusterrolebindings"),
        object: json!({
            "apiVersion": GROUP_VERSION,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": role, "labels": {BOOTSTRAPPING: "rbac-defaults"}},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": role,
            },
        }),
        kept: &["subjects"],
    };
    if let Some(group) = group {
        wanted.object["subjects"] =
            json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}]);
    }
    wanted
}
