//! Objects as the controllers hold them: metadata, and of the rest only what some decision
//! reads. A pod as full JSON costs tens of kilobytes, this form about one.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use model::kinds::IntOrString;
use model::meta::{ObjectMeta, null_as_default};
use model::selector::LabelSelector;
use model::{NamespacedName, Timestamp};

use crate::amounts::{self, Amounts};
use crate::cron_job::CronJob;
use crate::disruption::DisruptionBudget;
use crate::job::Job;
use crate::kind::{Kind, ObjectKey};
use crate::pod::Pod;
use crate::slice::{EndpointSubset, SliceEndpoint, SlicePort};
use crate::token_secrets;
use crate::volume::{Claim, StorageClass, Volume};
use crate::workload::{ControllerRevision, DaemonSet, StatefulSet};

/// Holds the CA certificate that clients in the namespace trust.
pub const ROOT_CA_CONFIG_MAP: &str = "kube-root-ca.crt";

/// One object.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Its kind.
    pub kind: Kind,
    /// Its metadata.
    pub meta: ObjectMeta,
    /// What else is read of it.
    pub body: Body,
}

/// The part of an object beside its metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// A namespace.
    Namespace(Namespace),
    /// A node.
    Node(Node),
    /// A pod.
    Pod(Box<Pod>),
    /// A Service.
    Service(Box<Service>),
    /// An EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// An Endpoints object.
    Endpoints(Endpoints),
    /// A Deployment.
    Deployment(Box<Deployment>),
    /// A ReplicaSet, or a ReplicationController, which is one with a plain selector.
    ReplicaSet(Box<ReplicaSet>),
    /// A StatefulSet.
    StatefulSet(Box<StatefulSet>),
    /// A DaemonSet.
    DaemonSet(Box<DaemonSet>),
    /// A ControllerRevision.
    ControllerRevision(Box<ControllerRevision>),
    /// A PodDisruptionBudget.
    DisruptionBudget(Box<DisruptionBudget>),
    /// A Job.
    Job(Box<Job>),
    /// A CronJob.
    CronJob(Box<CronJob>),
    /// A PersistentVolumeClaim.
    Claim(Box<Claim>),
    /// A PersistentVolume.
    Volume(Box<Volume>),
    /// A StorageClass.
    StorageClass(StorageClass),
    /// A lease.
    Lease(Lease),
    /// A ServiceCIDR.
    ServiceCidr(ServiceCidr),
    /// A Secret for a token of a ServiceAccount. What it holds is not kept.
    TokenSecret {
        /// Whether all is in it that belongs to it.
        is_filled: bool,
    },
    /// The CA text of the ConfigMap `kube-root-ca.crt`.
    RootCa(String),
    /// Only metadata is read: of kinds that are owned or counted, and of objects whose content
    /// does not have the form of its kind. Those take part in nothing but clean-up.
    Other,
}

impl Object {
    /// Reads an object that the server sent. `None` when it has no usable metadata.
    pub fn read(kind: Kind, mut value: Value) -> Option<Self> {
        let meta: ObjectMeta = serde_json::from_value(value.get_mut("metadata")?.take()).ok()?;
        if meta.name.is_empty() {
            return None;
        }
        let body = match kind {
            Kind::Namespace => part(value, Body::Namespace),
            Kind::Node => part(value, Body::Node),
            Kind::Pod => part(value, |body| Body::Pod(Box::new(body))),
            Kind::Service => part(value, |body| Body::Service(Box::new(body))),
            Kind::EndpointSlice => part(value, Body::EndpointSlice),
            Kind::Endpoints => part(value, Body::Endpoints),
            Kind::Deployment => part(value, |body| Body::Deployment(Box::new(body))),
            Kind::ReplicaSet => part(value, |body| Body::ReplicaSet(Box::new(body))),
            Kind::ReplicationController => {
                let selector = value.pointer_mut("/spec/selector").map(Value::take);
                value["spec"]["selector"] = json!({"matchLabels": selector});
                part(value, |body| Body::ReplicaSet(Box::new(body)))
            }
            Kind::PodDisruptionBudget => part(value, |body| Body::DisruptionBudget(Box::new(body))),
            Kind::Job => part(value, |body| Body::Job(Box::new(body))),
            Kind::CronJob => part(value, |body| Body::CronJob(Box::new(body))),
            Kind::StatefulSet => part(value, |body| Body::StatefulSet(Box::new(body))),
            Kind::DaemonSet => part(value, |body| Body::DaemonSet(Box::new(body))),
            Kind::ControllerRevision => {
                part(value, |body| Body::ControllerRevision(Box::new(body)))
            }
            Kind::PersistentVolumeClaim => part(value, |body| Body::Claim(Box::new(body))),
            Kind::PersistentVolume => part(value, |body| Body::Volume(Box::new(body))),
            Kind::StorageClass => part(value, Body::StorageClass),
            Kind::Lease => part(value, Body::Lease),
            Kind::ServiceCidr => part(value, Body::ServiceCidr),
            Kind::Secret => token_secrets::read(&value),
            Kind::ConfigMap if meta.name == ROOT_CA_CONFIG_MAP => {
                let text = value.pointer("/data/ca.crt").and_then(Value::as_str);
                Body::RootCa(text.unwrap_or_default().to_owned())
            }
            _ => Body::Other,
        };
        Some(Self { kind, meta, body })
    }

    /// The object's key.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.kind, self.meta.key())
    }

    /// Whether deletion has begun.
    pub fn is_terminating(&self) -> bool {
        self.meta.deletion_timestamp.is_some()
    }

    /// The version as a number. Our server counts; text of another server reads as 0 and then
    /// never counts as old.
    pub fn version(&self) -> u64 {
        self.meta.resource_version.parse().unwrap_or(0)
    }

    /// Whether `name` stands among the finalizers.
    pub fn has_finalizer(&self, name: &str) -> bool {
        self.meta.finalizers.iter().any(|finalizer| finalizer == name)
    }
}

fn part<T: DeserializeOwned>(value: Value, wrap: impl FnOnce(T) -> Body) -> Body {
    serde_json::from_value(value).map_or(Body::Other, wrap)
}

macro_rules! views {
    ($($method:ident: $variant:ident => $view:ty;)*) => {
        impl Object {
            $(
                #[doc = concat!("The content, where this is a ", stringify!($variant), ".")]
                pub fn $method(&self) -> Option<&$view> {
                    match &self.body {
                        Body::$variant(view) => Some(view),
                        _ => None,
                    }
                }
            )*
        }
    };
}

views! {
    namespace: Namespace => Namespace;
    node: Node => Node;
    pod: Pod => Pod;
    service: Service => Service;
    slice: EndpointSlice => EndpointSlice;
    endpoints: Endpoints => Endpoints;
    deployment: Deployment => Deployment;
    replica_set: ReplicaSet => ReplicaSet;
    stateful_set: StatefulSet => StatefulSet;
    daemon_set: DaemonSet => DaemonSet;
    controller_revision: ControllerRevision => ControllerRevision;
    disruption_budget: DisruptionBudget => DisruptionBudget;
    job: Job => Job;
    cron_job: CronJob => CronJob;
    claim: Claim => Claim;
    volume: Volume => Volume;
    storage_class: StorageClass => StorageClass;
    lease: Lease => Lease;
    service_cidr: ServiceCidr => ServiceCidr;
    root_ca: RootCa => str;
}

/// A condition, with every field that any kind's conditions have: patches write the list whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// The condition's name.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One CamelCase word.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// For people.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// When `status` changed last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Timestamp>,
    /// Deployments: when anything of it changed last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_update_time: Option<Timestamp>,
    /// Nodes: when the node reported last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_heartbeat_time: Option<Timestamp>,
    /// Pods: when it was probed last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_probe_time: Option<Timestamp>,
    /// Pods: the generation that it speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// The condition of this name.
pub fn condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.kind == kind)
}

/// Whether the condition of this name is `True`.
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    condition(conditions, kind).is_some_and(|condition| condition.status == "True")
}

/// A Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// `spec`.
    pub spec: NamespaceSpec,
    /// `status`.
    pub status: NamespaceStatus,
}

/// `spec` of a Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NamespaceSpec {
    /// `kubernetes` until its content is gone.
    #[serde(deserialize_with = "null_as_default")]
    pub finalizers: Vec<String>,
}

/// `status` of a Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NamespaceStatus {
    /// How far its deletion is.
    #[serde(deserialize_with = "null_as_default")]
    pub conditions: Vec<Condition>,
}

/// A Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Node {
    /// `spec`.
    pub spec: NodeSpec,
    /// `status`.
    pub status: NodeStatus,
}

/// `spec` of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// The node's pod ranges as text: foreign text is kept, not judged.
    #[serde(rename = "podCIDRs", deserialize_with = "null_as_default")]
    pub pod_cidrs: Vec<String>,
    /// Set by `kubectl cordon`.
    #[serde(deserialize_with = "null_as_default")]
    pub unschedulable: bool,
    /// Keeps pods without a matching toleration away.
    #[serde(deserialize_with = "null_as_default")]
    pub taints: Vec<Taint>,
}

/// One taint of a node, whole, since patches write the list whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Taint {
    /// The taint's key.
    pub key: String,
    /// The taint's value, often empty.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
    /// When it was set: pods that tolerate it for a time count from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_added: Option<Timestamp>,
}

/// `status` of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Conditions.
    #[serde(deserialize_with = "null_as_default")]
    pub conditions: Vec<Condition>,
    /// What pods may use.
    #[serde(deserialize_with = "amounts::read")]
    pub allocatable: Amounts,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Service {
    /// `spec`.
    pub spec: ServiceSpec,
}

/// `spec` of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP`, …; only `ExternalName` matters here.
    #[serde(rename = "type", deserialize_with = "null_as_default")]
    pub kind: String,
    /// `None` for headless Services.
    #[serde(rename = "clusterIP", deserialize_with = "null_as_default")]
    pub cluster_ip: String,
    /// The families that endpoints are wanted in; IPv4 when absent.
    #[serde(deserialize_with = "null_as_default")]
    pub ip_families: Vec<model::Family>,
    /// Selects the pods; empty means that somebody else writes the endpoints.
    #[serde(deserialize_with = "null_as_default")]
    pub selector: BTreeMap<String, String>,
    /// The ports.
    #[serde(deserialize_with = "null_as_default")]
    pub ports: Vec<ServicePort>,
    /// Endpoints count as ready whatever their pods say.
    #[serde(deserialize_with = "null_as_default")]
    pub publish_not_ready_addresses: bool,
    /// Which endpoints clients prefer (KEP-4444); empty for no preference.
    #[serde(deserialize_with = "null_as_default")]
    pub traffic_distribution: String,
}

/// One port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Its name; empty for an only port.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// The transport protocol.
    #[serde(deserialize_with = "null_as_default")]
    pub protocol: model::Protocol,
    /// The application protocol, a hint that is passed on.
    pub app_protocol: Option<String>,
    /// The port of the Service.
    pub port: u16,
    /// The port of the pods, by number or name.
    pub target_port: Option<IntOrString>,
}

/// An EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: String,
    /// The endpoints.
    #[serde(deserialize_with = "null_as_default")]
    pub endpoints: Vec<SliceEndpoint>,
    /// The ports.
    #[serde(deserialize_with = "null_as_default")]
    pub ports: Vec<SlicePort>,
}

/// An Endpoints object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Endpoints {
    /// The subsets.
    #[serde(deserialize_with = "null_as_default")]
    pub subsets: Vec<EndpointSubset>,
}

/// A lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Lease {
    /// `spec`.
    pub spec: LeaseSpec,
}

/// `spec` of a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LeaseSpec {
    /// When its holder renewed it last.
    pub renew_time: Option<Timestamp>,
}

/// A ServiceCIDR.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ServiceCidr {
    /// `spec`.
    pub spec: ServiceCidrSpec,
    /// `status`.
    pub status: ServiceCidrStatus,
}

/// `spec` of a ServiceCIDR.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ServiceCidrSpec {
    /// The ranges as text: foreign text is kept, not judged.
    #[serde(deserialize_with = "null_as_default")]
    pub cidrs: Vec<String>,
}

/// `status` of a ServiceCIDR.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ServiceCidrStatus {
    /// Ready.
    #[serde(deserialize_with = "null_as_default")]
    pub conditions: Vec<Condition>,
}

/// A Deployment.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Deployment {
    /// `spec`.
    pub spec: DeploymentSpec,
    /// `status`.
    pub status: DeploymentStatus,
}

/// `spec` of a Deployment.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentSpec {
    /// Wanted pods; 1 when absent.
    pub replicas: Option<i32>,
    /// Selects the pods.
    pub selector: LabelSelector,
    /// The pod template, whole: it is copied into ReplicaSets.
    pub template: Value,
    /// How pods are replaced.
    pub strategy: DeploymentStrategy,
    /// Seconds that a ready pod must stay ready before it counts as available.
    pub min_ready_seconds: i32,
    /// Old ReplicaSets that are kept; 10 when absent.
    pub revision_history_limit: Option<i32>,
    /// Seconds without progress after which the rollout counts as failed; never when absent.
    pub progress_deadline_seconds: Option<i32>,
    /// Changes of the template wait.
    pub paused: bool,
}

/// `spec.strategy` of a Deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentStrategy {
    /// `RollingUpdate` (also when empty) or `Recreate`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The limits of a rolling update.
    pub rolling_update: Option<RollingUpdate>,
}

/// `spec.strategy.rollingUpdate` of a Deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RollingUpdate {
    /// Pods below the wanted number that may be unavailable; 25% when absent.
    pub max_unavailable: Option<IntOrString>,
    /// Pods above the wanted number that may exist; 25% when absent.
    pub max_surge: Option<IntOrString>,
}

/// `status` of a Deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentStatus {
    /// The generation that the status speaks of.
    pub observed_generation: i64,
    /// Pods of all ReplicaSets.
    pub replicas: i32,
    /// Pods of the new ReplicaSet.
    pub updated_replicas: i32,
    /// Ready pods.
    pub ready_replicas: i32,
    /// Ready pods, long enough.
    pub available_replicas: i32,
    /// Pods that are wanted and not available.
    pub unavailable_replicas: i32,
    /// How often the hash of a template met a foreign ReplicaSet of the same name.
    pub collision_count: Option<i32>,
    /// Available, Progressing, ReplicaFailure.
    #[serde(deserialize_with = "null_as_default")]
    pub conditions: Vec<Condition>,
}

/// A ReplicaSet.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ReplicaSet {
    /// `spec`.
    pub spec: ReplicaSetSpec,
    /// `status`.
    pub status: ReplicaSetStatus,
}

/// `spec` of a ReplicaSet.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSetSpec {
    /// Wanted pods; 1 when absent.
    pub replicas: Option<i32>,
    /// Selects the pods.
    pub selector: LabelSelector,
    /// The pod template, whole: it is copied into pods.
    pub template: Value,
    /// Seconds that a ready pod must stay ready before it counts as available.
    pub min_ready_seconds: i32,
}

/// `status` of a ReplicaSet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSetStatus {
    /// Pods that are neither ended nor being deleted.
    pub replicas: i32,
    /// Of those, pods with all labels of the template.
    pub fully_labeled_replicas: i32,
    /// Of those, ready ones.
    pub ready_replicas: i32,
    /// Of those, ready long enough.
    pub available_replicas: i32,
    /// The generation that the status speaks of.
    pub observed_generation: i64,
    /// ReplicaFailure.
    #[serde(deserialize_with = "null_as_default")]
    pub conditions: Vec<Condition>,
}

impl DeploymentSpec {
    /// The wanted number of pods.
    pub fn replicas(&self) -> i32 {
        self.replicas.unwrap_or(1).max(0)
    }
}

impl ReplicaSetSpec {
    /// The wanted number of pods.
    pub fn replicas(&self) -> i32 {
        self.replicas.unwrap_or(1).max(0)
    }
}

impl Service {
    /// Whether the Service has no address of its own on purpose.
    pub fn is_headless(&self) -> bool {
        self.spec.cluster_ip == "None"
    }

    /// Whether pods are selected for it at all.
    pub fn selects(&self) -> bool {
        self.spec.kind != "ExternalName" && !self.spec.selector.is_empty()
    }
}

/// The name of an object in the namespace of `meta`.
pub(crate) fn beside(meta: &ObjectMeta, name: &str) -> NamespacedName {
    NamespacedName::new(meta.namespace.clone(), name)
}

/// The fields of a status, with null for zeros and empty lists: a merge patch then leaves them
/// out, as the API does.
pub(crate) fn omit_empty(mut status: Value) -> Value {
    for value in status.as_object_mut().into_iter().flat_map(serde_json::Map::values_mut) {
        let empty = match value {
            Value::Number(number) => number.as_i64() == Some(0),
            Value::Array(items) => items.is_empty(),
            _ => false,
        };
        if empty {
            *value = Value::Null;
        }
    }
    status
}
