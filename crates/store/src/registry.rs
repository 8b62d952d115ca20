//! The registry: every row, found by URL, by kind or by storage.

use crate::kinds::{
    addressing, admission_policy, apps, batch, core, cron_job, csi_driver, definition, endpoints,
    events, limits, networking, node, pod, policy, quota, rbac, review, scheduling, service,
    storage, webhook,
};
use crate::{Resource, metrics};

/// Every resource whose objects are stored, in the order of discovery.
static RESOURCES: &[&Resource] = &[
    &core::CONFIG_MAP,
    &endpoints::ENDPOINTS,
    &events::EVENT,
    &limits::LIMIT_RANGE,
    &core::NAMESPACE,
    &node::NODE,
    &storage::PERSISTENT_VOLUME_CLAIM,
    &storage::PERSISTENT_VOLUME,
    &pod::POD,
    &apps::REPLICATION_CONTROLLER,
    &quota::RESOURCE_QUOTA,
    &core::SECRET,
    &core::SERVICE_ACCOUNT,
    &service::SERVICE,
    &admission_policy::BINDING,
    &admission_policy::POLICY,
    &webhook::MUTATING,
    &webhook::VALIDATING,
    &definition::DEFINITION,
    &apps::CONTROLLER_REVISION,
    &apps::DAEMON_SET,
    &apps::DEPLOYMENT,
    &apps::REPLICA_SET,
    &apps::STATEFUL_SET,
    &cron_job::CRON_JOB,
    &batch::JOB,
    &node::LEASE,
    &endpoints::ENDPOINT_SLICE,
    &events::EVENTS_V1,
    &networking::INGRESS_CLASS,
    &networking::INGRESS,
    &addressing::IP_ADDRESS,
    &networking::NETWORK_POLICY,
    &addressing::SERVICE_CIDR,
    &policy::POD_DISRUPTION_BUDGET,
    &rbac::CLUSTER_ROLE_BINDING,
    &rbac::CLUSTER_ROLE,
    &rbac::ROLE_BINDING,
    &rbac::ROLE,
    &scheduling::PRIORITY_CLASS,
    &csi_driver::CSI_DRIVER,
    &storage::STORAGE_CLASS,
];

/// Every question that is answered at once.
static REVIEWS: &[&Resource] = &[
    &review::SELF_SUBJECT,
    &review::TOKEN,
    &review::LOCAL_SUBJECT_ACCESS,
    &review::SELF_SUBJECT_ACCESS,
    &review::SELF_SUBJECT_RULES,
    &review::SUBJECT_ACCESS,
];

/// Every resource whose objects are stored.
pub fn resources() -> impl Iterator<Item = &'static Resource> {
    RESOURCES.iter().copied()
}

/// Every resource that is answered and not stored ([`crate::reviews`]).
pub fn reviews() -> impl Iterator<Item = &'static Resource> {
    REVIEWS.iter().copied()
}

/// Every resource that is measured and not stored ([`crate::metrics`]).
pub fn measured() -> impl Iterator<Item = &'static Resource> {
    [&metrics::NODES, &metrics::PODS].into_iter()
}

/// The resource of a URL: `find("apps", "v1", "deployments")`; the core group is empty.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    let mut rows = resources().chain(reviews()).chain(measured());
    rows.find(|row| row.group == group && row.version == version && row.plural == plural)
}

/// The resource of an object: `by_kind("apps/v1", "Deployment")`.
pub fn by_kind(api_version: &str, kind: &str) -> Option<&'static Resource> {
    resources().find(|row| row.kind == kind && row.api_version() == api_version)
}

/// The row in whose form a storage keeps its objects.
pub fn by_storage(storage: &str) -> Option<&'static Resource> {
    resources().find(|row| row.storage == storage)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn rows_are_complete_and_distinct() {
        let mut paths = BTreeSet::new();
        for row in resources() {
            assert!(paths.insert((row.group, row.version, row.plural)), "{row:?} stands twice");
            assert_eq!(row.singular, row.kind.to_lowercase(), "{row:?}");
            assert!(!row.columns.is_empty(), "{row:?} has no columns");
            assert!(row.message().is_some(), "{row:?} is not in the table of fields");
            assert!(by_storage(row.storage).is_some(), "{row:?}");
            assert_eq!(find(row.group, row.version, row.plural), Some(row));
            assert_eq!(by_kind(&row.api_version(), row.kind), Some(row));
        }
        for row in reviews() {
            assert!(paths.insert((row.group, row.version, row.plural)), "{row:?} stands twice");
            assert_eq!(row.singular, row.kind.to_lowercase(), "{row:?}");
            assert!(row.message().is_some(), "{row:?} is not in the table of fields");
            assert!(crate::reviews::Review::of(row).is_some(), "{row:?} has no answer");
        }
    }
}
