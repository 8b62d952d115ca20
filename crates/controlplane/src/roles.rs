//! The roles that every cluster has, and who has them: the real server's, as far as the resources
//! are served here.

use client::ResourcePath;
use model::layout;
use serde_json::{Value, json};
use store::authorize::AUTHENTICATED;

use crate::bootstrap::Wanted;
use crate::tokens::SERVICE_ACCOUNTS;

const GROUP_VERSION: &str = "rbac.authorization.k8s.io/v1";
/// Marks what the server itself makes and mends.
const BOOTSTRAPPING: &str = "kubernetes.io/bootstrapping";
/// The label by whose name roles become a part of another.
const AGGREGATE_TO: &str = "rbac.authorization.k8s.io/aggregate-to-";
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
        role(
            "system:service-account-issuer-discovery",
            json!([{
                "nonResourceURLs": ["/.well-known/openid-configuration",
                    "/.well-known/openid-configuration/", "/openid/v1/jwks", "/openid/v1/jwks/"],
                "verbs": ["get"],
            }]),
        ),
        role("system:basic-user", json!(basic_rules())),
        role("system:auth-delegator", json!(delegator_rules())),
        role("system:node", json!(store::authorize::node_rules())),
    ];
    for (name, above, rules) in [
        ("view", Some("edit"), view_rules()),
        ("edit", Some("admin"), edit_rules()),
        ("admin", None, admin_rules()),
    ] {
        all.extend(aggregated(name, above, json!(rules)));
    }
    let bindings = [
        ("cluster-admin", Some(layout::GROUP_MASTERS)),
        ("system:basic-user", Some(AUTHENTICATED)),
        ("system:discovery", Some(AUTHENTICATED)),
        ("system:service-account-issuer-discovery", Some(SERVICE_ACCOUNTS)),
        // Nodes have the role within the limits of their own pods alone (`store::authorize`).
        ("system:node", None),
    ];
    all.extend(bindings.map(|(role, group)| binding(role, group)));
    all
}

/// A role that is put together of others, and the one that has its own part. All of it is a part
/// of the role above it.
fn aggregated(name: &str, above: Option<&str>, rules: Value) -> [Wanted; 2] {
    let label = |role: &str| format!("{AGGREGATE_TO}{role}");
    let mut whole = role(name, Value::Null);
    let selector = json!({"matchLabels": {(label(name)): "true"}});
    whole.object["aggregationRule"] = json!({"clusterRoleSelectors": [selector]});
    // The store fills it in.
    if let Some(object) = whole.object.as_object_mut() {
        object.remove("rules");
    }
    whole.kept = &["aggregationRule"];
    if let Some(above) = above {
        whole.object["metadata"]["labels"][label(above)] = "true".into();
    }
    let mut own = role(&format!("system:aggregate-to-{name}"), rules);
    own.object["metadata"]["labels"][label(name)] = "true".into();
    [whole, own]
}

/// What everybody may ask about himself.
fn basic_rules() -> Vec<Value> {
    let rights = ["selfsubjectaccessreviews", "selfsubjectrulesreviews"];
    vec![
        rule("authorization.k8s.io", &rights, &["create"]),
        rule("authentication.k8s.io", &["selfsubjectreviews"], &["create"]),
    ]
}

/// What servers ask about their clients that leave to us who these are and what they may.
fn delegator_rules() -> Vec<Value> {
    vec![
        rule("authentication.k8s.io", &["tokenreviews"], &["create"]),
        rule("authorization.k8s.io", &["subjectaccessreviews"], &["create"]),
    ]
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
        // metrics-server's role `system:aggregated-metrics-reader`.
        rule("metrics.k8s.io", &["nodes", "pods"], &READ),
        rule("policy", &["poddisruptionbudgets", "poddisruptionbudgets/status"], &READ),
        rule("networking.k8s.io", &["ingresses", "ingresses/status", "networkpolicies"], &READ),
    ]
}

/// What whoever works in a namespace may do beyond looking. Endpoints and their slices are not
/// among it: they can lead a load balancer into other namespaces (CVE-2021-25740); nor is any
/// status, which is the controllers' to say (CVE-2020-8554).
fn edit_rules() -> Vec<Value> {
    let streams = ["pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "services/proxy"];
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
    vec![
        rule("rbac.authorization.k8s.io", &["roles", "rolebindings"], &verbs),
        rule("authorization.k8s.io", &["localsubjectaccessreviews"], &["create"]),
    ]
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
