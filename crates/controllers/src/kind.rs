//! The kinds of objects that the controllers read and write: one row a kind.

use serde_json::Value;

use model::NamespacedName;

/// A kind of object that controllers know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// core/v1 Namespace.
    Namespace,
    /// core/v1 Node.
    Node,
    /// core/v1 Pod.
    Pod,
    /// core/v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// core/v1 Endpoints.
    Endpoints,
    /// core/v1 ConfigMap.
    ConfigMap,
    /// core/v1 Secret.
    Secret,
    /// core/v1 ServiceAccount.
    ServiceAccount,
    /// coordination.k8s.io/v1 Lease.
    Lease,
    /// apps/v1 Deployment.
    Deployment,
    /// apps/v1 ReplicaSet.
    ReplicaSet,
    /// apps/v1 StatefulSet.
    StatefulSet,
    /// apps/v1 DaemonSet.
    DaemonSet,
    /// apps/v1 ControllerRevision.
    ControllerRevision,
    /// core/v1 ReplicationController.
    ReplicationController,
    /// policy/v1 PodDisruptionBudget.
    PodDisruptionBudget,
    /// batch/v1 Job.
    Job,
    /// batch/v1 CronJob.
    CronJob,
    /// core/v1 LimitRange: goes with its namespace.
    LimitRange,
    /// core/v1 ResourceQuota: the same. What is used is counted by the store.
    ResourceQuota,
    /// core/v1 PersistentVolumeClaim.
    PersistentVolumeClaim,
    /// core/v1 PersistentVolume.
    PersistentVolume,
    /// storage.k8s.io/v1 StorageClass.
    StorageClass,
    /// networking.k8s.io/v1 Ingress.
    Ingress,
    /// networking.k8s.io/v1 NetworkPolicy.
    NetworkPolicy,
    /// networking.k8s.io/v1 ServiceCIDR.
    ServiceCidr,
    /// networking.k8s.io/v1 IPAddress.
    IpAddress,
    /// core/v1 Event: written, never watched.
    Event,
}

/// What the API calls a kind.
#[derive(Clone, Copy, Debug)]
pub struct KindRow {
    /// The kind.
    pub kind: Kind,
    /// The `kind` text.
    pub name: &'static str,
    /// The `apiVersion` text.
    pub api_version: &'static str,
    /// The last part of the collection's path.
    pub plural: &'static str,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Whether controllers watch it. Events are many, and nothing is decided from them.
    pub watched: bool,
}

const fn row(
    kind: Kind,
    name: &'static str,
    api_version: &'static str,
    plural: &'static str,
    namespaced: bool,
    watched: bool,
) -> KindRow {
    KindRow { kind, name, api_version, plural, namespaced, watched }
}

/// All kinds, in the order of [`Kind`].
pub const KINDS: [KindRow; 29] = [
    row(Kind::Namespace, "Namespace", "v1", "namespaces", false, true),
    row(Kind::Node, "Node", "v1", "nodes", false, true),
    row(Kind::Pod, "Pod", "v1", "pods", true, true),
    row(Kind::Service, "Service", "v1", "services", true, true),
    row(Kind::EndpointSlice, "EndpointSlice", "discovery.k8s.io/v1", "endpointslices", true, true),
    row(Kind::Endpoints, "Endpoints", "v1", "endpoints", true, true),
    row(Kind::ConfigMap, "ConfigMap", "v1", "configmaps", true, true),
    row(Kind::Secret, "Secret", "v1", "secrets", true, true),
    row(Kind::ServiceAccount, "ServiceAccount", "v1", "serviceaccounts", true, true),
    row(Kind::Lease, "Lease", "coordination.k8s.io/v1", "leases", true, true),
    row(Kind::Deployment, "Deployment", "apps/v1", "deployments", true, true),
    row(Kind::ReplicaSet, "ReplicaSet", "apps/v1", "replicasets", true, true),
    row(Kind::StatefulSet, "StatefulSet", "apps/v1", "statefulsets", true, true),
    row(Kind::DaemonSet, "DaemonSet", "apps/v1", "daemonsets", true, true),
    row(
        Kind::ControllerRevision,
        "ControllerRevision",
        "apps/v1",
        "controllerrevisions",
        true,
        true,
    ),
    row(
        Kind::ReplicationController,
        "ReplicationController",
        "v1",
        "replicationcontrollers",
        true,
        true,
    ),
    row(
        Kind::PodDisruptionBudget,
        "PodDisruptionBudget",
        "policy/v1",
        "poddisruptionbudgets",
        true,
        true,
    ),
    row(Kind::Job, "Job", "batch/v1", "jobs", true, true),
    row(Kind::CronJob, "CronJob", "batch/v1", "cronjobs", true, true),
    row(Kind::LimitRange, "LimitRange", "v1", "limitranges", true, true),
    row(Kind::ResourceQuota, "ResourceQuota", "v1", "resourcequotas", true, true),
    row(
        Kind::PersistentVolumeClaim,
        "PersistentVolumeClaim",
        "v1",
        "persistentvolumeclaims",
        true,
        true,
    ),
    row(Kind::PersistentVolume, "PersistentVolume", "v1", "persistentvolumes", false, true),
    row(Kind::StorageClass, "StorageClass", "storage.k8s.io/v1", "storageclasses", false, true),
    row(Kind::Ingress, "Ingress", "networking.k8s.io/v1", "ingresses", true, true),
    row(
        Kind::NetworkPolicy,
        "NetworkPolicy",
        "networking.k8s.io/v1",
        "networkpolicies",
        true,
        true,
    ),
    row(Kind::ServiceCidr, "ServiceCIDR", "networking.k8s.io/v1", "servicecidrs", false, true),
    row(Kind::IpAddress, "IPAddress", "networking.k8s.io/v1", "ipaddresses", false, true),
    row(Kind::Event, "Event", "v1", "events", true, false),
];

impl Kind {
    /// The kind's row.
    pub fn row(self) -> &'static KindRow {
        &KINDS[self as usize]
    }

    /// The kind of an owner reference, where controllers know it. The version is not compared:
    /// an owner named by another version of its group is the same object.
    pub fn of_reference(api_version: &str, name: &str) -> Option<Self> {
        let group = group_of(api_version);
        KINDS
            .iter()
            .find(|row| row.name == name && group_of(row.api_version) == group)
            .map(|row| row.kind)
    }

    /// An empty object of this kind with this `metadata`.
    pub(crate) fn object(self, metadata: Value) -> Value {
        let row = self.row();
        serde_json::json!({"apiVersion": row.api_version, "kind": row.name, "metadata": metadata})
    }
}

fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// Names one object among all kinds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The kind.
    pub kind: Kind,
    /// Namespace and name.
    pub name: NamespacedName,
}

impl ObjectKey {
    /// The key of an object of `kind`.
    pub fn new(kind: Kind, name: NamespacedName) -> Self {
        Self { kind, name }
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.row().name, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_in_the_order_of_the_enum() {
        for (index, row) in KINDS.iter().enumerate() {
            assert_eq!(row.kind as usize, index, "{}", row.name);
        }
    }

    #[test]
    fn owners_are_known_by_group_and_kind_whatever_the_version() {
        assert_eq!(Kind::of_reference("apps/v2", "Deployment"), Some(Kind::Deployment));
        assert_eq!(Kind::of_reference("v1", "Pod"), Some(Kind::Pod));
        assert_eq!(Kind::of_reference("example.org/v1", "Deployment"), None);
    }
}
