//! All that the agent asks of the API server. The manifests print these rules, and the
//! agent's tests run it with no others.

/// One rule of a ClusterRole (rbac.authorization.k8s.io/v1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// Resources, with their subresources behind a slash.
    pub resources: &'static [&'static str],
    /// What may be done with them.
    pub verbs: &'static [&'static str],
}

/// The agent's rules. A Node's status is the only object that it changes, and it changes its own
/// alone; RBAC cannot say "its own", an admission policy (as the kubelet's `NodeRestriction`) can.
pub const RULES: &[Rule] = &[
    Rule { group: "", resources: &["nodes"], verbs: &["get", "list", "watch"] },
    Rule { group: "", resources: &["nodes/status"], verbs: &["patch"] },
    Rule { group: "", resources: &["services"], verbs: &["list", "watch"] },
    Rule { group: "discovery.k8s.io", resources: &["endpointslices"], verbs: &["list", "watch"] },
    Rule { group: "", resources: &["events"], verbs: &["create"] },
];
