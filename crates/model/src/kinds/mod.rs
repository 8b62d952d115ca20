//! Narrow structs of the Kubernetes kinds that the network reads. Fields that flatnet does not use
//! are skipped while decoding: a full Pod costs about 23 kB in memory, these a few hundred bytes.

mod endpoint_slice;
mod node;
mod pod;
mod service;
mod service_cidr;

pub use endpoint_slice::{
    Conditions, Endpoint, EndpointHints, EndpointPort, EndpointSlice, ForName, SERVICE_NAME_LABEL,
    TargetReference,
};
pub use node::{Node, NodeAddress, NodeCondition, NodeSpec, NodeStatus, Taint, ZONE_LABEL};
pub use pod::{
    Container, ContainerPort, ContainerState, ContainerStatus, Pod, PodCondition, PodIp, PodSpec,
    PodStatus, StateRunning, StateTerminated, StateWaiting,
};
pub use service::{
    CLIENT_IP_TIMEOUT_S, ClientIpConfig, IntOrString, LoadBalancerIngress, LoadBalancerStatus,
    PORT_RANGES_ANNOTATION, SCHEDULING_ANNOTATION, Service, ServicePort, ServiceSpec,
    ServiceStatus, ServiceType, SessionAffinity, SessionAffinityConfig, TrafficPolicy,
    WEIGHTS_ANNOTATION,
};
pub use service_cidr::{ServiceCidr, ServiceCidrSpec};
