//! The controllers by name: which changes concern which of their keys, and what they then want.

use std::collections::BTreeSet;

use model::{ClusterConfig, NamespacedName, Timestamp};

use crate::kind::{Kind, ObjectKey};
use crate::snapshot::{Change, Snapshot};
use crate::write::{Failure, Outcome};
use crate::{
    cron_jobs, daemon_sets, deployment, disruption, endpoint_slices, endpoints, garbage, jobs,
    namespaces, node_lifecycle, node_ranges, pod_garbage, replica_sets, scheduler,
    service_accounts, service_cidrs, slice_mirroring, stateful_sets, taint_eviction, token_secrets,
    volumes,
};

/// One controller. The order is the order in which keys that are due together run: what takes
/// traffic away from a pod comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    /// Service, pods → EndpointSlices.
    EndpointSlices,
    /// Service, pods → Endpoints, which kubectl before 1.27 reads.
    Endpoints,
    /// Endpoints that people write → EndpointSlices.
    SliceMirroring,
    /// Gives claims their volumes.
    Volumes,
    /// Gives pods a node.
    Scheduler,
    /// ReplicaSet, ReplicationController → pods.
    ReplicaSets,
    /// Deployment → ReplicaSets.
    Deployments,
    /// DaemonSet → a pod a node.
    DaemonSets,
    /// StatefulSet → pods with ordinals.
    StatefulSets,
    /// Job → pods that end.
    Jobs,
    /// CronJob → Jobs.
    CronJobs,
    /// PodDisruptionBudget, pods → how many may be evicted.
    Disruption,
    /// Gives nodes their pod ranges.
    NodeRanges,
    /// Leases, conditions → `Ready`, taints.
    NodeLifecycle,
    /// Deletes pods that do not tolerate a `NoExecute` taint of their node (any longer).
    TaintEviction,
    /// Empties namespaces that are being deleted.
    Namespaces,
    /// The ServiceAccount `default` and the CA certificate in every namespace.
    ServiceAccounts,
    /// Secrets with tokens of ServiceAccounts.
    TokenSecrets,
    /// Keeps ranges of Service addresses that are still in use.
    ServiceCidrs,
    /// Deletes what has lost its owners.
    Garbage,
    /// Deletes pods of nodes that are no more.
    PodGarbage,
}

/// What is configured once for all controllers.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster.
    pub cluster: ClusterConfig,
    /// The text (PEM) of the certificate that signs the API server's.
    pub root_ca: String,
    /// When this process began to watch: nodes are not blamed for silence before that.
    pub started: Timestamp,
    /// Most endpoints of one EndpointSlice, at most [`MAX_ENDPOINTS_PER_SLICE`]
    /// (kube-controller-manager's `--max-endpoints-per-slice`).
    pub max_endpoints_per_slice: usize,
    /// Where the directories of provisioned volumes lie, on every node. Without it none are made.
    pub volumes_directory: Option<String>,
}

/// Upstream's default: larger slices make each change of readiness dearer.
pub const DEFAULT_ENDPOINTS_PER_SLICE: usize = 100;
/// Most endpoints that the API takes in one EndpointSlice.
pub const MAX_ENDPOINTS_PER_SLICE: usize = 1_000;

impl Config {
    /// The configuration with the usual size of slices.
    pub fn new(cluster: ClusterConfig, root_ca: String, started: Timestamp) -> Self {
        let max_endpoints_per_slice = DEFAULT_ENDPOINTS_PER_SLICE;
        Self { cluster, root_ca, started, max_endpoints_per_slice, volumes_directory: None }
    }

    /// The size of slices as far as the API takes it; never zero.
    pub(crate) fn endpoints_per_slice(&self) -> usize {
        self.max_endpoints_per_slice.clamp(1, MAX_ENDPOINTS_PER_SLICE)
    }
}

/// What a run of a controller may read beside the snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The time.
    pub now: Timestamp,
    /// The failure that ended the last run for this key, if it failed.
    pub last_failure: Option<&'a LastFailure>,
}

/// A failed write, as the next run for the same key sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastFailure {
    /// What was tried.
    pub verb: Verb,
    /// What the server said.
    pub failure: Failure,
}

/// Sorts writes by what a failure of them means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// A new object.
    Create,
    /// A deletion.
    Delete,
    /// Anything else.
    Change,
}

impl Controller {
    /// All controllers.
    pub const ALL: [Self; 21] = [
        Self::EndpointSlices,
        Self::Endpoints,
        Self::SliceMirroring,
        Self::Volumes,
        Self::Scheduler,
        Self::ReplicaSets,
        Self::Deployments,
        Self::DaemonSets,
        Self::StatefulSets,
        Self::Jobs,
        Self::CronJobs,
        Self::Disruption,
        Self::NodeRanges,
        Self::NodeLifecycle,
        Self::TaintEviction,
        Self::Namespaces,
        Self::ServiceAccounts,
        Self::TokenSecrets,
        Self::ServiceCidrs,
        Self::Garbage,
        Self::PodGarbage,
    ];

    /// Adds the keys that a change makes dirty. The snapshot already holds the change.
    pub fn interested(self, change: &Change, snapshot: &Snapshot, keys: &mut BTreeSet<ObjectKey>) {
        match self {
            Self::EndpointSlices => endpoint_slices::interested(change, snapshot, keys),
            Self::Endpoints => endpoints::interested(change, snapshot, keys),
            Self::SliceMirroring => slice_mirroring::interested(change, keys),
            Self::Volumes => volumes::interested(change, snapshot, keys),
            Self::Scheduler => scheduler::interested(change, keys),
            Self::ReplicaSets => replica_sets::interested(change, snapshot, keys),
            Self::Deployments => deployment::interested(change, snapshot, keys),
            Self::DaemonSets => daemon_sets::interested(change, snapshot, keys),
            Self::StatefulSets => stateful_sets::interested(change, snapshot, keys),
            Self::Jobs => jobs::interested(change, snapshot, keys),
            Self::CronJobs => cron_jobs::interested(change, snapshot, keys),
            Self::Disruption => disruption::interested(change, snapshot, keys),
            Self::NodeRanges => node_ranges::interested(change, keys),
            Self::NodeLifecycle => node_lifecycle::interested(change, keys),
            Self::TaintEviction => taint_eviction::interested(change, snapshot, keys),
            Self::Namespaces => namespaces::interested(change, keys),
            Self::ServiceAccounts => service_accounts::interested(change, keys),
            Self::TokenSecrets => token_secrets::interested(change, snapshot, keys),
            Self::ServiceCidrs => service_cidrs::interested(change, snapshot, keys),
            Self::Garbage => garbage::interested(change, snapshot, keys),
            Self::PodGarbage => pod_garbage::interested(change, keys),
        }
    }

    /// What this controller wants for a key.
    pub fn reconcile(self, key: &ObjectKey, snapshot: &Snapshot, input: &Input<'_>) -> Outcome {
        match self {
            Self::EndpointSlices => endpoint_slices::reconcile(key, snapshot, input.config),
            Self::Endpoints => endpoints::reconcile(key, snapshot),
            Self::SliceMirroring => slice_mirroring::reconcile(key, snapshot),
            Self::Volumes => volumes::reconcile(key, snapshot, input),
            Self::Scheduler => scheduler::reconcile(snapshot, input),
            Self::ReplicaSets => replica_sets::reconcile(key, snapshot, input),
            Self::Deployments => deployment::reconcile(key, snapshot, input),
            Self::DaemonSets => daemon_sets::reconcile(key, snapshot, input),
            Self::StatefulSets => stateful_sets::reconcile(key, snapshot, input),
            Self::Jobs => jobs::reconcile(key, snapshot, input),
            Self::CronJobs => cron_jobs::reconcile(key, snapshot, input),
            Self::Disruption => disruption::reconcile(key, snapshot, input),
            Self::NodeRanges => node_ranges::reconcile(snapshot, input),
            Self::NodeLifecycle => node_lifecycle::reconcile(key, snapshot, input),
            Self::TaintEviction => taint_eviction::reconcile(key, snapshot, input),
            Self::Namespaces => namespaces::reconcile(key, snapshot, input),
            Self::ServiceAccounts => service_accounts::reconcile(key, snapshot, input),
            Self::TokenSecrets => token_secrets::reconcile(key, snapshot, input),
            Self::ServiceCidrs => service_cidrs::reconcile(key, snapshot, input),
            Self::Garbage => garbage::reconcile(key, snapshot),
            Self::PodGarbage => pod_garbage::reconcile(key, snapshot, input),
        }
    }
}

/// The key of controllers that decide about all objects of a kind together.
pub(crate) fn whole(kind: Kind) -> ObjectKey {
    ObjectKey::new(kind, NamespacedName::default())
}
