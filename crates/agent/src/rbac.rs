//! All that the agent asks of the API server. The manifests print these rules, and the
//! agent's tests run it with no others.

use ipam::pools::CLAIM_NAMESPACE;
use model::ClusterConfig;

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

/// The agent's rules in every cluster. A Node's status is the only object that it changes, and it changes its own
/// alone; RBAC cannot say "its own", an admission policy (as the kubelet's `NodeRestriction`) can.
pub const RULES: &[Rule] = &[
    Rule { group: "", resources: &["nodes"], verbs: &["get", "list", "watch"] },
    Rule { group: "", resources: &["nodes/status"], verbs: &["patch"] },
    Rule { group: "", resources: &["services"], verbs: &["list", "watch"] },
    // Names of pods by their addresses, and their search paths, in cluster DNS.
    Rule { group: "", resources: &["pods"], verbs: &["list", "watch"] },
    Rule { group: "discovery.k8s.io", resources: &["endpointslices"], verbs: &["list", "watch"] },
    Rule { group: "networking.k8s.io", resources: &["servicecidrs"], verbs: &["list", "watch"] },
    Rule { group: "", resources: &["events"], verbs: &["create"] },
];

/// Where pods choose addresses by annotations, or pools give them: the plugin asks the agent about
/// a pod, and the agent the API server.
const PODS: Rule = Rule { group: "", resources: &["pods"], verbs: &["get"] };
/// Pools go by labels of namespaces.
const NAMESPACES: Rule = Rule { group: "", resources: &["namespaces"], verbs: &["get"] };
/// Claims of blocks are Leases.
const CLAIMS: Rule = Rule {
    group: "coordination.k8s.io",
    resources: &["leases"],
    verbs: &["create", "delete", "list"],
};

/// For the option `namespace_labels` of cluster DNS. It stands in the worker's own file, which may say
/// so at any time: every cluster has the right, and only an agent that is asked uses it.
const LABELLED_NAMESPACES: Rule =
    Rule { group: "", resources: &["namespaces"], verbs: &["list", "watch"] };

/// The rules of the ClusterRole for a configuration: only what is used, or may come to be.
pub fn rules(config: &ClusterConfig) -> Vec<Rule> {
    let pods = config.agent_chooses_addresses().then_some(PODS);
    let namespaces = (!config.pools.is_empty()).then_some(NAMESPACES);
    RULES.iter().copied().chain([LABELLED_NAMESPACES]).chain(pods).chain(namespaces).collect()
}

/// The rules of the Role in a namespace of the cluster's own, where there is one.
pub fn namespaced_rules(config: &ClusterConfig) -> Option<(&'static str, Vec<Rule>)> {
    (!config.pools.is_empty()).then(|| (CLAIM_NAMESPACE, vec![CLAIMS]))
}
