//! What neither the schema nor the protobuf definitions say, and the Go types do: which plain
//! values are pointers, so that 0 and absence differ, and which messages are not, so that they
//! are written even when they are empty.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

/// Scalars that are pointers: the message and its fields, `*` for all.
const EXPLICIT: &[(&str, &str)] = &[
    ("apps.v1.DaemonSetSpec", "revisionHistoryLimit"),
    ("apps.v1.DaemonSetStatus", "collisionCount"),
    ("apps.v1.DeploymentSpec", "replicas revisionHistoryLimit progressDeadlineSeconds"),
    ("apps.v1.DeploymentStatus", "collisionCount terminatingReplicas"),
    ("apps.v1.ReplicaSetSpec", "replicas"),
    ("apps.v1.ReplicaSetStatus", "terminatingReplicas"),
    ("apps.v1.RollingUpdateStatefulSetStrategy", "partition"),
    ("apps.v1.StatefulSetSpec", "replicas revisionHistoryLimit"),
    ("apps.v1.StatefulSetStatus", "collisionCount"),
    ("authentication.v1.TokenRequestSpec", "expirationSeconds"),
    (
        "batch.v1.CronJobSpec",
        "failedJobsHistoryLimit startingDeadlineSeconds successfulJobsHistoryLimit suspend \
         timeZone",
    ),
    (
        "batch.v1.JobSpec",
        "activeDeadlineSeconds backoffLimit backoffLimitPerIndex completionMode completions \
         managedBy manualSelector maxFailedIndexes parallelism podReplacementPolicy suspend \
         ttlSecondsAfterFinished",
    ),
    ("batch.v1.JobStatus", "failedIndexes ready terminating"),
    ("batch.v1.PodFailurePolicyOnExitCodesRequirement", "containerName"),
    ("batch.v1.SuccessPolicyRule", "succeededCount succeededIndexes"),
    ("coordination.v1.LeaseSpec", "*"),
    ("core.v1.AppArmorProfile", "localhostProfile"),
    ("core.v1.AzureDiskVolumeSource", "cachingMode fsType readOnly"),
    ("core.v1.AzureFilePersistentVolumeSource", "secretNamespace"),
    ("core.v1.CSIVolumeSource", "fsType readOnly"),
    ("core.v1.ClientIPConfig", "timeoutSeconds"),
    ("core.v1.ClusterTrustBundleProjection", "name optional signerName"),
    ("core.v1.ConfigMap", "immutable"),
    ("core.v1.ConfigMapEnvSource", "optional"),
    ("core.v1.ConfigMapKeySelector", "optional"),
    ("core.v1.ConfigMapProjection", "optional"),
    ("core.v1.ConfigMapVolumeSource", "defaultMode optional"),
    ("core.v1.Container", "restartPolicy"),
    ("core.v1.ContainerStatus", "started stopSignal"),
    ("core.v1.DownwardAPIVolumeFile", "mode"),
    ("core.v1.DownwardAPIVolumeSource", "defaultMode"),
    ("core.v1.EndpointAddress", "nodeName"),
    ("core.v1.EndpointPort", "appProtocol"),
    ("core.v1.EphemeralContainer", "restartPolicy"),
    ("core.v1.FCVolumeSource", "lun"),
    ("core.v1.GRPCAction", "service"),
    ("core.v1.GlusterfsPersistentVolumeSource", "endpointsNamespace"),
    ("core.v1.HostPathVolumeSource", "type"),
    ("core.v1.ISCSIPersistentVolumeSource", "initiatorName"),
    ("core.v1.ISCSIVolumeSource", "initiatorName"),
    ("core.v1.KeyToPath", "mode"),
    ("core.v1.Lifecycle", "stopSignal"),
    ("core.v1.LoadBalancerIngress", "ipMode"),
    ("core.v1.LocalVolumeSource", "fsType"),
    ("core.v1.NodeFeatures", "supplementalGroupsPolicy"),
    ("core.v1.NodeRuntimeHandlerFeatures", "*"),
    ("core.v1.NodeSwapStatus", "capacity"),
    ("core.v1.PersistentVolumeClaimSpec", "storageClassName volumeAttributesClassName volumeMode"),
    ("core.v1.PersistentVolumeClaimStatus", "currentVolumeAttributesClassName"),
    ("core.v1.PersistentVolumeSpec", "volumeAttributesClassName volumeMode"),
    ("core.v1.PodDNSConfigOption", "value"),
    ("core.v1.PodResourceClaim", "resourceClaimName resourceClaimTemplateName"),
    ("core.v1.PodResourceClaimStatus", "resourceClaimName"),
    (
        "core.v1.PodSecurityContext",
        "fsGroup fsGroupChangePolicy runAsGroup runAsNonRoot runAsUser seLinuxChangePolicy \
         supplementalGroupsPolicy",
    ),
    (
        "core.v1.PodSpec",
        "activeDeadlineSeconds automountServiceAccountToken enableServiceLinks hostUsers \
         preemptionPolicy priority runtimeClassName setHostnameAsFQDN shareProcessNamespace \
         terminationGracePeriodSeconds",
    ),
    ("core.v1.PortStatus", "error"),
    ("core.v1.Probe", "terminationGracePeriodSeconds"),
    ("core.v1.ProjectedVolumeSource", "defaultMode"),
    ("core.v1.ReplicationControllerSpec", "replicas"),
    ("core.v1.SeccompProfile", "localhostProfile"),
    ("core.v1.Secret", "immutable"),
    ("core.v1.SecretEnvSource", "optional"),
    ("core.v1.SecretKeySelector", "optional"),
    ("core.v1.SecretProjection", "optional"),
    ("core.v1.SecretVolumeSource", "defaultMode optional"),
    (
        "core.v1.SecurityContext",
        "allowPrivilegeEscalation privileged procMount readOnlyRootFilesystem runAsGroup \
         runAsNonRoot runAsUser",
    ),
    ("core.v1.ServiceAccount", "automountServiceAccountToken"),
    ("core.v1.ServiceAccountTokenProjection", "expirationSeconds"),
    ("core.v1.ServicePort", "appProtocol"),
    (
        "core.v1.ServiceSpec",
        "allocateLoadBalancerNodePorts internalTrafficPolicy ipFamilyPolicy loadBalancerClass \
         trafficDistribution",
    ),
    ("core.v1.Toleration", "tolerationSeconds"),
    ("core.v1.TopologySpreadConstraint", "minDomains nodeAffinityPolicy nodeTaintsPolicy"),
    ("core.v1.TypedLocalObjectReference", "apiGroup"),
    ("core.v1.TypedObjectReference", "apiGroup namespace"),
    ("core.v1.VolumeMount", "mountPropagation recursiveReadOnly"),
    ("core.v1.VolumeMountStatus", "recursiveReadOnly"),
    ("core.v1.WindowsSecurityContextOptions", "*"),
    ("discovery.v1.Endpoint", "hostname nodeName zone"),
    ("discovery.v1.EndpointConditions", "*"),
    ("discovery.v1.EndpointPort", "*"),
    ("meta.v1.DeleteOptions", "gracePeriodSeconds orphanDependents propagationPolicy"),
    ("meta.v1.ListMeta", "remainingItemCount"),
    ("meta.v1.ObjectMeta", "deletionGracePeriodSeconds"),
    ("meta.v1.OwnerReference", "blockOwnerDeletion controller"),
    ("meta.v1.Preconditions", "*"),
    ("networking.v1.HTTPIngressPath", "pathType"),
    ("networking.v1.IngressClassParametersReference", "apiGroup namespace scope"),
    ("networking.v1.IngressPortStatus", "error"),
    ("networking.v1.IngressSpec", "ingressClassName"),
    ("networking.v1.NetworkPolicyPort", "endPort protocol"),
    ("policy.v1.PodDisruptionBudgetSpec", "unhealthyPodEvictionPolicy"),
    ("scheduling.v1.PriorityClass", "preemptionPolicy"),
    (
        "storage.v1.CSIDriverSpec",
        "attachRequired fsGroupPolicy nodeAllocatableUpdatePeriodSeconds podInfoOnMount \
         requiresRepublish seLinuxMount storageCapacity",
    ),
    ("storage.v1.StorageClass", "allowVolumeExpansion reclaimPolicy volumeBindingMode"),
    ("storage.v1.TokenRequest", "expirationSeconds"),
];

/// Messages that are no pointers. `metadata`, `spec` and `status` of every kind are none either.
const EMBEDDED: &[(&str, &str)] = &[
    ("apps.v1.DaemonSetSpec", "template updateStrategy"),
    ("apps.v1.DeploymentSpec", "strategy template"),
    ("apps.v1.ReplicaSetSpec", "template"),
    ("apps.v1.StatefulSetSpec", "template updateStrategy"),
    ("authentication.v1.SelfSubjectReviewStatus", "userInfo"),
    ("authentication.v1.TokenReviewStatus", "user"),
    ("batch.v1.CronJobSpec", "jobTemplate"),
    ("batch.v1.JobSpec", "template"),
    ("batch.v1.JobTemplateSpec", "metadata spec"),
    ("core.v1.Binding", "target"),
    ("core.v1.Container", "resources"),
    ("core.v1.ContainerStatus", "lastState state"),
    ("core.v1.EphemeralContainer", "resources"),
    ("core.v1.Event", "involvedObject source"),
    ("core.v1.NodeDaemonEndpoints", "kubeletEndpoint"),
    ("core.v1.NodeStatus", "daemonEndpoints nodeInfo"),
    ("core.v1.PersistentVolumeClaimSpec", "resources"),
    ("core.v1.PersistentVolumeClaimTemplate", "metadata spec"),
    ("core.v1.PodTemplateSpec", "metadata spec"),
    ("core.v1.PreferredSchedulingTerm", "preference"),
    ("core.v1.ServiceStatus", "loadBalancer"),
    ("core.v1.WeightedPodAffinityTerm", "podAffinityTerm"),
    ("discovery.v1.Endpoint", "conditions"),
    ("events.v1.Event", "deprecatedSource regarding"),
    ("networking.v1.HTTPIngressPath", "backend"),
    ("networking.v1.IngressServiceBackend", "port"),
    ("networking.v1.IngressStatus", "loadBalancer"),
    ("networking.v1.NetworkPolicySpec", "podSelector"),
    ("rbac.v1.ClusterRoleBinding", "roleRef"),
    ("rbac.v1.RoleBinding", "roleRef"),
];

/// Messages that have `metadata`, `spec` and `status` and are kinds.
const PARTS_OF_KINDS: &[&str] = &["metadata", "spec", "status"];

/// The marks of a field.
pub(super) fn marks(message: &str, field: &str, is_message: bool) -> &'static str {
    let has = |rows: &[(&str, &str)]| {
        rows.iter().any(|(name, fields)| {
            *name == message && (*fields == "*" || fields.split(' ').any(|one| one == field))
        })
    };
    let is_part = !message.ends_with("Spec") && PARTS_OF_KINDS.contains(&field);
    match () {
        () if is_message && (has(EMBEDDED) || is_part) => " embedded",
        () if !is_message && has(EXPLICIT) => " explicit",
        () => "",
    }
}

/// Whether all rows name messages of the table.
pub(super) fn check(messages: &BTreeSet<String>) -> Result<()> {
    let rows = EXPLICIT.iter().chain(EMBEDDED);
    match rows.map(|(name, _)| name).find(|name| !messages.contains(**name)) {
        Some(name) => bail!("{name} is no message of the table: take its row out"),
        None => Ok(()),
    }
}
