//! core/v1 Pod as far as a node runs it. Fields that this runtime does not act on are skipped while
//! decoding; the network's own, narrower view is `model::Pod`.

use std::collections::BTreeMap;

use model::Timestamp;
use model::kinds::IntOrString;
use model::meta::null_as_default;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Declares structs of the API: camelCase, every field optional, null as absent.
macro_rules! api {
    ($($(#[$meta:meta])* struct $name:ident {
        $($(#[$field_meta:meta])* $field:ident : $kind:ty,)*
    })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            $($(#[$field_meta])* #[serde(deserialize_with = "null_as_default")] pub $field: $kind,)*
        }
    )*};
}

api! {
    /// A pod bound to this node.
    struct Pod {
        /// Name, identity, deletion.
        metadata: Metadata,
        /// What shall run.
        spec: PodSpec,
        /// What this node said of it last, and what the scheduler added.
        status: PodStatus,
    }

    /// `metadata`.
    struct Metadata {
        /// Name.
        name: String,
        /// Namespace.
        namespace: String,
        /// Identity.
        uid: String,
        /// Version.
        resource_version: String,
        /// Labels.
        labels: BTreeMap<String, String>,
        /// Annotations.
        annotations: BTreeMap<String, String>,
        /// Present while the pod is being deleted.
        deletion_timestamp: Option<Timestamp>,
        /// Seconds between SIGTERM and SIGKILL in this deletion.
        deletion_grace_period_seconds: Option<i64>,
    }

    /// `spec`.
    struct PodSpec {
        /// This node.
        node_name: String,
        /// Containers.
        containers: Vec<Container>,
        /// Init containers, run in order before the others.
        init_containers: Vec<Container>,
        /// Containers that were added to look into the pod. None of them is started again.
        ephemeral_containers: Vec<Container>,
        /// Whether its containers see each other's processes.
        share_process_namespace: bool,
        /// Volumes.
        volumes: Vec<Volume>,
        /// `Always`, `OnFailure` or `Never`; empty means `Always`.
        restart_policy: String,
        /// Seconds between SIGTERM and SIGKILL where the deletion does not say.
        termination_grace_period_seconds: Option<i64>,
        /// How long the pod may be active on a node.
        active_deadline_seconds: Option<i64>,
        /// Conditions that others must set before the pod counts as ready.
        readiness_gates: Vec<ReadinessGate>,
        /// Whether the pod uses the node's network.
        host_network: bool,
        /// Whether the pod is among the node's processes.
        #[serde(rename = "hostPID")]
        host_pid: bool,
        /// Whether the pod shares memory, semaphores and queues with the node.
        #[serde(rename = "hostIPC")]
        host_ipc: bool,
        /// `false`: users of the pod shall be others than the node's of the same numbers.
        host_users: Option<bool>,
        /// The pod's hostname; its name where empty.
        hostname: String,
        /// Its subdomain.
        subdomain: String,
        /// Whether the pod's processes see the whole name of `hostname` and `subdomain`.
        #[serde(rename = "setHostnameAsFQDN")]
        hostname_is_full: bool,
        /// `ClusterFirst`, `ClusterFirstWithHostNet`, `Default` or `None`.
        dns_policy: String,
        /// Additions to resolv.conf.
        dns_config: DnsConfig,
        /// Lines for /etc/hosts.
        host_aliases: Vec<HostAlias>,
        /// Whether Services of the namespace appear as environment variables; absent means yes.
        enable_service_links: Option<bool>,
        /// User, group.
        security_context: SecurityContext,
        /// For `fieldRef`.
        service_account_name: String,
        /// Secrets with credentials for registries.
        image_pull_secrets: Vec<ObjectReference>,
    }

    /// A condition that somebody else sets (KEP-580).
    struct ReadinessGate {
        /// The condition's name.
        condition_type: String,
    }

    /// `status`, as far as it is kept.
    struct PodStatus {
        /// Conditions, those of others too: ours stand before them.
        conditions: Vec<Value>,
        /// Phase.
        phase: String,
        /// QoS class, settled at creation.
        qos_class: String,
    }

    /// `spec.dnsConfig`.
    struct DnsConfig {
        /// Nameservers.
        nameservers: Vec<String>,
        /// Search domains.
        searches: Vec<String>,
        /// Options.
        options: Vec<DnsOption>,
    }

    /// One option of resolv.conf.
    struct DnsOption {
        /// Name.
        name: String,
        /// Value.
        value: Option<String>,
    }

    /// One entry of `spec.hostAliases`.
    struct HostAlias {
        /// Address.
        ip: String,
        /// Names.
        hostnames: Vec<String>,
    }

    /// A container.
    struct Container {
        /// Name in the pod.
        name: String,
        /// Image.
        image: String,
        /// `Always`, `IfNotPresent` or `Never`.
        image_pull_policy: String,
        /// Replaces the image's entry point.
        command: Vec<String>,
        /// Replaces the image's arguments.
        args: Vec<String>,
        /// Working directory.
        working_dir: String,
        /// The file whose content becomes the message of the container's end.
        termination_message_path: String,
        /// `FallbackToLogsOnError`: where that file is empty, the log's end takes its place.
        termination_message_policy: String,
        /// Variables.
        env: Vec<EnvironmentVariable>,
        /// Whole ConfigMaps and Secrets as variables.
        env_from: Vec<EnvironmentSource>,
        /// Mounts.
        volume_mounts: Vec<VolumeMount>,
        /// Limits and requests.
        resources: Resources,
        /// Decides whether the pod gets traffic.
        readiness_probe: Option<Probe>,
        /// Decides whether the container is restarted.
        liveness_probe: Option<Probe>,
        /// Holds the other two back until it succeeds once.
        startup_probe: Option<Probe>,
        /// Hooks.
        lifecycle: Lifecycle,
        /// User, group, capabilities.
        security_context: SecurityContext,
        /// Whether it has an input, for `attach`.
        stdin: bool,
        /// Whether that ends with the first client's.
        stdin_once: bool,
        /// Whether its streams are a terminal.
        tty: bool,
        /// On an init container `Always` makes a sidecar.
        restart_policy: String,
        /// On an ephemeral container: whose processes it sees.
        target_container_name: String,
        /// Named ports that probes refer to.
        ports: Vec<ContainerPort>,
    }

    /// A declared port.
    struct ContainerPort {
        /// Name.
        name: String,
        /// Port.
        container_port: u16,
        /// The node's port that leads to it; 0 for none.
        host_port: u16,
        /// The node's address that it is open on; empty for all.
        #[serde(rename = "hostIP")]
        host_ip: String,
        /// `TCP`, `UDP` or `SCTP`.
        protocol: String,
    }

    /// One variable.
    struct EnvironmentVariable {
        /// Name.
        name: String,
        /// Value, with `$(NAME)` references.
        value: String,
        /// Or from elsewhere.
        value_from: Option<ValueSource>,
    }

    /// `valueFrom`.
    struct ValueSource {
        /// A field of the pod.
        field_ref: Option<FieldReference>,
        /// A ConfigMap's key.
        config_map_key_ref: Option<KeyReference>,
        /// A Secret's key.
        secret_key_ref: Option<KeyReference>,
        /// A limit or request of a container.
        resource_field_ref: Option<ResourceReference>,
    }

    /// `fieldRef`.
    struct FieldReference {
        /// Such as `metadata.name`.
        field_path: String,
    }

    /// `resourceFieldRef`.
    struct ResourceReference {
        /// Container; this one where empty.
        container_name: String,
        /// Such as `limits.memory`.
        resource: String,
        /// The unit that it is given in; one where absent.
        divisor: Option<Value>,
    }

    /// A key of a ConfigMap or Secret.
    struct KeyReference {
        /// Object.
        name: String,
        /// Key.
        key: String,
        /// Whether it may be absent.
        optional: bool,
    }

    /// One entry of `envFrom`.
    struct EnvironmentSource {
        /// Put before each name.
        prefix: String,
        /// A ConfigMap.
        config_map_ref: Option<ObjectReference>,
        /// A Secret.
        secret_ref: Option<ObjectReference>,
    }

    /// A named object that may be optional.
    struct ObjectReference {
        /// Name.
        name: String,
        /// Whether it may be absent.
        optional: bool,
    }

    /// A mount.
    struct VolumeMount {
        /// Volume.
        name: String,
        /// Place in the container.
        mount_path: String,
        /// A path in the volume.
        sub_path: String,
        /// The same, with `$(NAME)` references.
        sub_path_expr: String,
        /// Whether writing is refused.
        read_only: bool,
    }

    /// A volume: one of its sources is set.
    struct Volume {
        /// Name.
        name: String,
        /// An empty directory that lives as long as the pod.
        empty_dir: Option<EmptyDirectory>,
        /// A ConfigMap's keys as files.
        config_map: Option<ConfigMapVolume>,
        /// A Secret's keys as files.
        secret: Option<SecretVolume>,
        /// The pod's own fields as files.
        #[serde(rename = "downwardAPI")]
        downward_api: Option<DownwardVolume>,
        /// Several of these, and tokens, in one directory.
        projected: Option<ProjectedVolume>,
        /// A directory or file of the node.
        host_path: Option<HostPath>,
        /// The directory of a claim.
        persistent_volume_claim: Option<ClaimVolume>,
    }

    /// `persistentVolumeClaim`.
    struct ClaimVolume {
        /// Claim.
        claim_name: String,
        /// Whether no container may write.
        read_only: bool,
    }

    /// `emptyDir`.
    struct EmptyDirectory {
        /// `Memory` or empty.
        medium: String,
        /// For `Memory`: its size.
        size_limit: Option<Value>,
    }

    /// `configMap`.
    struct ConfigMapVolume {
        /// Object.
        name: String,
        /// Which keys, and where; all when empty.
        items: Vec<KeyToPath>,
        /// File mode.
        default_mode: Option<u32>,
        /// Whether it may be absent.
        optional: bool,
    }

    /// `secret`.
    struct SecretVolume {
        /// Object.
        secret_name: String,
        /// Which keys, and where; all when empty.
        items: Vec<KeyToPath>,
        /// File mode.
        default_mode: Option<u32>,
        /// Whether it may be absent.
        optional: bool,
    }

    /// A key and its file.
    struct KeyToPath {
        /// Key.
        key: String,
        /// File.
        path: String,
        /// File mode.
        mode: Option<u32>,
    }

    /// `downwardAPI`.
    struct DownwardVolume {
        /// Files.
        items: Vec<DownwardItem>,
        /// File mode.
        default_mode: Option<u32>,
    }

    /// One file of a `downwardAPI` volume.
    struct DownwardItem {
        /// File.
        path: String,
        /// Field.
        field_ref: Option<FieldReference>,
        /// A limit or request of a container.
        resource_field_ref: Option<ResourceReference>,
        /// File mode.
        mode: Option<u32>,
    }

    /// `projected`.
    struct ProjectedVolume {
        /// What it is made of.
        sources: Vec<Projection>,
        /// File mode.
        default_mode: Option<u32>,
    }

    /// One source of a `projected` volume: one of them is set.
    struct Projection {
        /// A ConfigMap's keys.
        config_map: Option<ConfigMapVolume>,
        /// A Secret's keys.
        secret: Option<SecretProjection>,
        /// The pod's own fields.
        #[serde(rename = "downwardAPI")]
        downward_api: Option<DownwardVolume>,
        /// A token of the pod's ServiceAccount.
        service_account_token: Option<TokenProjection>,
    }

    /// `secret` of a projection: unlike the volume of that name it has a `name`.
    struct SecretProjection {
        /// Object.
        name: String,
        /// Which keys, and where; all when empty.
        items: Vec<KeyToPath>,
        /// Whether it may be absent.
        optional: bool,
    }

    /// `serviceAccountToken`.
    struct TokenProjection {
        /// For whom the token is; the API server where empty.
        audience: String,
        /// How long it is good.
        expiration_seconds: Option<i64>,
        /// File.
        path: String,
    }

    /// `hostPath`.
    struct HostPath {
        /// Path on the node.
        path: String,
        /// `Directory`, `DirectoryOrCreate`, `File`, … or empty for no check.
        #[serde(rename = "type")]
        kind: String,
    }

    /// `resources`.
    struct Resources {
        /// Limits.
        limits: BTreeMap<String, Value>,
        /// Requests.
        requests: BTreeMap<String, Value>,
    }

    /// `lifecycle`.
    struct Lifecycle {
        /// Run when the container has started; until it ends, the container counts as not started.
        post_start: Option<Handler>,
        /// Run before SIGTERM.
        pre_stop: Option<Handler>,
    }

    /// What a probe or hook does: one is set.
    struct Handler {
        /// A command in the container.
        exec: Option<ExecHandler>,
        /// An HTTP request.
        http_get: Option<HttpHandler>,
        /// A TCP connection.
        tcp_socket: Option<TcpHandler>,
        /// A question by gRPC's health protocol; probes only.
        grpc: Option<GrpcHandler>,
        /// A pause; hooks only.
        sleep: Option<SleepHandler>,
    }

    /// `exec`.
    struct ExecHandler {
        /// Command and arguments.
        command: Vec<String>,
    }

    /// `httpGet`.
    struct HttpHandler {
        /// Path and query.
        path: String,
        /// Port or its name.
        port: Option<IntOrString>,
        /// The pod's address where empty.
        host: String,
        /// `HTTP` or `HTTPS`.
        scheme: String,
        /// Headers.
        http_headers: Vec<HttpHeader>,
    }

    /// A header.
    struct HttpHeader {
        /// Name.
        name: String,
        /// Value.
        value: String,
    }

    /// `tcpSocket`.
    struct TcpHandler {
        /// Port or its name.
        port: Option<IntOrString>,
        /// The pod's address where empty.
        host: String,
    }

    /// `grpc`.
    struct GrpcHandler {
        /// Port.
        port: u16,
        /// The service that is asked for; the server as a whole where empty.
        service: String,
    }

    /// `sleep`.
    struct SleepHandler {
        /// How long.
        seconds: i64,
    }

    /// A probe. Zero and absent mean the default.
    struct Probe {
        /// A command in the container.
        exec: Option<ExecHandler>,
        /// An HTTP request.
        http_get: Option<HttpHandler>,
        /// A TCP connection.
        tcp_socket: Option<TcpHandler>,
        /// A question by gRPC's health protocol.
        grpc: Option<GrpcHandler>,
        /// Before the first probe.
        initial_delay_seconds: u32,
        /// Between probes; default 10.
        period_seconds: u32,
        /// For one probe; default 1.
        timeout_seconds: u32,
        /// Successes in a row to count; default 1.
        success_threshold: u32,
        /// Failures in a row to count; default 3.
        failure_threshold: u32,
        /// In place of the pod's, when this probe ends the container.
        termination_grace_period_seconds: Option<i64>,
    }

    /// `securityContext` of a pod or container.
    struct SecurityContext {
        /// User id.
        run_as_user: Option<u32>,
        /// Group id.
        run_as_group: Option<u32>,
        /// Refuse to run as user 0.
        run_as_non_root: Option<bool>,
        /// Group of volumes, and a supplementary group.
        fs_group: Option<u32>,
        /// `OnRootMismatch`: a volume whose top has the group already is left as it is.
        fs_group_change_policy: String,
        /// Supplementary groups.
        supplemental_groups: Vec<u32>,
        /// `Strict`: the image's groups of the user do not count.
        supplemental_groups_policy: String,
        /// Capabilities added and dropped.
        capabilities: Capabilities,
        /// Whether the root file system is read-only.
        read_only_root_filesystem: Option<bool>,
        /// Whether the container has the node's devices and all capabilities.
        privileged: Option<bool>,
        /// `false`: no program gains rights that it was not started with.
        allow_privilege_escalation: Option<bool>,
        /// `Unmasked`: nothing of /proc is hidden.
        proc_mount: String,
        /// Which system calls are allowed.
        seccomp_profile: Option<SeccompProfile>,
        /// Kernel parameters of the pod.
        sysctls: Vec<Sysctl>,
    }

    /// `seccompProfile`.
    struct SeccompProfile {
        /// `RuntimeDefault`, `Unconfined` or `Localhost`.
        #[serde(rename = "type")]
        kind: String,
        /// For `Localhost`: the file, below the node's directory of profiles.
        localhost_profile: String,
    }

    /// A kernel parameter.
    struct Sysctl {
        /// Its name, with dots or slashes.
        name: String,
        /// Its value.
        value: String,
    }

    /// `capabilities`.
    struct Capabilities {
        /// Added.
        add: Vec<String>,
        /// Dropped; `ALL` drops all.
        drop: Vec<String>,
    }
}

/// Seconds between SIGTERM and SIGKILL where nobody says.
pub const DEFAULT_GRACE_S: i64 = 30;

impl Pod {
    /// The containers that the pod was made with, init containers first.
    pub fn own_containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.init_containers.iter().chain(&self.spec.containers)
    }

    /// All containers, those that were added later last.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.own_containers().chain(&self.spec.ephemeral_containers)
    }

    /// A container of any kind by its name.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.all_containers().find(|container| container.name == name)
    }

    /// Whether another version of the pod says other things of itself to its own containers.
    pub fn has_other_labels(&self, other: &Self) -> bool {
        self.metadata.labels != other.metadata.labels
            || self.metadata.annotations != other.metadata.annotations
    }

    /// The name that the pod's processes see.
    pub fn hostname(&self, node_name: &str, cluster_domain: &str) -> String {
        if self.spec.host_network {
            return node_name.to_owned();
        }
        let full = self.full_name(cluster_domain).filter(|_| self.spec.hostname_is_full);
        full.unwrap_or_else(|| self.short_name())
    }

    /// The pod's name in DNS, where its subdomain gives it one.
    pub fn full_name(&self, cluster_domain: &str) -> Option<String> {
        let (subdomain, namespace) = (&self.spec.subdomain, &self.metadata.namespace);
        let short = self.short_name();
        (!subdomain.is_empty())
            .then(|| format!("{short}.{subdomain}.{namespace}.svc.{cluster_domain}"))
    }

    /// The pod's hostname, cut to what a DNS label holds.
    pub fn short_name(&self) -> String {
        let name =
            if self.spec.hostname.is_empty() { &self.metadata.name } else { &self.spec.hostname };
        name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
    }

    /// Seconds between SIGTERM and SIGKILL.
    pub fn grace_s(&self) -> i64 {
        self.metadata
            .deletion_grace_period_seconds
            .or(self.spec.termination_grace_period_seconds)
            .unwrap_or(DEFAULT_GRACE_S)
    }
}

impl Container {
    /// Whether this init container runs beside the others for the pod's whole life.
    pub fn is_sidecar(&self) -> bool {
        self.restart_policy == "Always"
    }

    /// Whether the container's input ends with that of the first client that attaches. A terminal
    /// stays open for the next one, as containerd has it.
    pub fn input_ends(&self) -> bool {
        self.stdin_once && !self.tty
    }

    /// The number of a port given by number or by name.
    pub fn port(&self, port: &IntOrString) -> Option<u16> {
        match port {
            IntOrString::Int(number) => u16::try_from(*number).ok().filter(|number| *number > 0),
            IntOrString::String(name) => self
                .ports
                .iter()
                .find(|declared| declared.name == *name)
                .map(|declared| declared.container_port)
                .or_else(|| name.parse().ok()),
        }
    }

    /// The probe of a kind.
    pub fn probe(&self, kind: ProbeKind) -> Option<&Probe> {
        match kind {
            ProbeKind::Startup => self.startup_probe.as_ref(),
            ProbeKind::Liveness => self.liveness_probe.as_ref(),
            ProbeKind::Readiness => self.readiness_probe.as_ref(),
        }
    }
}

/// The three kinds of probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Until its first success the other two wait.
    Startup,
    /// Its failure restarts the container.
    Liveness,
    /// Its failure takes the pod out of its Services.
    Readiness,
}

impl ProbeKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Startup, Self::Liveness, Self::Readiness];

    /// As events have it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

impl Probe {
    /// Seconds between probes.
    pub fn period_s(&self) -> u32 {
        if self.period_seconds == 0 { 10 } else { self.period_seconds }
    }

    /// Seconds for one probe.
    pub fn timeout_s(&self) -> u32 {
        self.timeout_seconds.max(1)
    }

    /// Successes in a row to count.
    pub fn successes(&self) -> u32 {
        self.success_threshold.max(1)
    }

    /// Failures in a row to count.
    pub fn failures(&self) -> u32 {
        if self.failure_threshold == 0 { 3 } else { self.failure_threshold }
    }

    /// What it does.
    pub fn handler(&self) -> Handler {
        Handler {
            exec: self.exec.clone(),
            http_get: self.http_get.clone(),
            tcp_socket: self.tcp_socket.clone(),
            grpc: self.grpc.clone(),
            sleep: None,
        }
    }
}
