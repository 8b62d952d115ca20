//! Names and values of the cluster, the narrow structs of the Kubernetes kinds that flatnet
//! reads, and [`World`], the indexed store of the current objects.
//!
//! Pure: no clock, file, socket, thread, environment variable or random source (invariant 9).

pub mod attachment;
pub mod cluster;
pub mod conntrack;
pub mod cron;
pub mod dns_fast_path;
pub mod ebpf_maps;
pub mod flat;
pub mod flat_set;
pub mod kinds;
pub mod layout;
pub mod load_balancer_mode;
pub mod mac;
pub mod meta;
pub mod names;
mod node_local_dns;
pub mod overlay;
pub mod packed;
pub mod packet;
pub mod pool;
mod port_range;
pub mod quantity;
pub mod selector;
pub mod service_acceleration;
pub mod time;
pub mod unreachable;
pub mod world;

pub use attachment::Attachment;
pub use cluster::{ClusterConfig, RangeError, ServiceBackend};
pub use conntrack::ConntrackConfig;
pub use dns_fast_path::DnsFastPath;
pub use ebpf_maps::EbpfMapSizes;
pub use flat::FlatMap;
pub use flat_set::FlatSet;
pub use kinds::{EndpointSlice, Node, Pod, Service, ServiceCidr};
pub use load_balancer_mode::LoadBalancerMode;
pub use mac::MacAddress;
pub use meta::{NarrowMeta, ObjectMeta};
pub use names::{Family, NamespacedName, Protocol};
pub use node_local_dns::NodeLocalDns;
pub use overlay::{Overlay, TunnelConfig, WireguardKey};
pub use packed::{Pack, PackedMap, Part, Unpack};
pub use pool::Pool;
pub use port_range::{PortRange, PortRangeError};
pub use quantity::Quantity;
pub use service_acceleration::ServiceAcceleration;
pub use time::Timestamp;
pub use unreachable::Unreachable;
pub use world::World;
