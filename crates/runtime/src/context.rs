//! What all pods of a node share.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::cni::runtime_side::Driver;
use client::Client;
use model::{NamespacedName, Timestamp};
use tokio::sync::Semaphore;

use crate::capability;
use crate::cgroup::Cgroups;
use crate::cni::Cni;
use crate::disk::PodDirectory;
use crate::events::Events;
use crate::images::Images;
use crate::options::Options;
use crate::tokens::Tokens;

/// Probes that run at one time on a node.
pub const MAX_PROBES: usize = 32;
/// Images that are pulled at one time on a node (the kubelet's `serializeImagePulls`).
const MAX_PULLS: usize = 1;
/// Looks at the disk at one time: each reads as fast as the disk gives.
const MAX_MEASUREMENTS: usize = 1;

/// Shared by every task of the runtime.
pub struct Context {
    /// The options.
    pub options: Options,
    /// The API server.
    pub client: Client,
    /// Where events go.
    pub events: Events,
    /// The network plugins.
    pub cni: Cni,
    /// Control groups.
    pub cgroups: Cgroups,
    /// The capabilities that this process may have at most, and so its containers.
    pub capabilities: u64,
    /// Images.
    pub images: Images,
    /// Tokens of ServiceAccounts that pods have.
    pub tokens: Tokens,
    /// Bounds probes.
    pub probes: Semaphore,
    /// Bounds pulls of images.
    pub pulls: Semaphore,
    /// Bounds looks at what pods keep on the disk.
    pub measurements: Semaphore,
    /// What the log and exec server must know of the pods.
    pods: Mutex<BTreeMap<NamespacedName, PodView>>,
}

/// A pod as the log and exec server sees it.
#[derive(Clone, Debug, Default)]
pub struct PodView {
    /// The pod's identity.
    pub uid: String,
    /// Whether it uses the node's network.
    pub host_network: bool,
    /// Its containers.
    pub containers: BTreeMap<String, ContainerView>,
}

/// A container as the log and exec server sees it.
#[derive(Clone, Debug, Default)]
pub struct ContainerView {
    /// How often it was started again.
    pub restarts: u32,
    /// Whether it runs.
    pub running: bool,
    /// Since when it runs; absent while it does not.
    pub running_since: Option<Timestamp>,
    /// Whether its input ends with that of the first client that attaches.
    pub input_ends: bool,
    /// Why there is no log yet; absent once it was started.
    pub waiting: Option<String>,
}

impl Context {
    /// Everything that pods share.
    pub fn new(options: Options, client: Client, images: Images) -> Arc<Self> {
        let cni = Cni {
            configuration_directory: options.cni_configuration_directory.clone(),
            driver: Arc::new(Driver {
                plugin_path: vec![options.cni_plugin_directory.clone()],
                cache_directory: options.cni_cache_directory.clone(),
            }),
        };
        Arc::new(Self {
            events: Events::start(client.clone(), options.node_name.clone()),
            client,
            cni,
            cgroups: Cgroups::discover(),
            capabilities: capability::available(
                &std::fs::read_to_string("/proc/self/status").unwrap_or_default(),
            ),
            images,
            tokens: Tokens::default(),
            probes: Semaphore::new(MAX_PROBES),
            pulls: Semaphore::new(MAX_PULLS),
            measurements: Semaphore::new(MAX_MEASUREMENTS),
            pods: Mutex::default(),
            options,
        })
    }

    /// Where the files of a pod are.
    pub fn pod_directory(&self, uid: &str) -> PodDirectory {
        PodDirectory {
            state: self.options.state_directory.join("pods").join(uid),
            run: self.options.run_directory.join("pods").join(uid),
        }
    }

    /// The node's own addresses.
    pub fn node_addresses(&self) -> &[IpAddr] {
        &self.options.node_addresses
    }

    /// What the server knows of the pods.
    pub fn pods(&self) -> MutexGuard<'_, BTreeMap<NamespacedName, PodView>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time now.
pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let microseconds = since.map_or(0, |since| since.as_micros());
    Timestamp::from_microseconds(i64::try_from(microseconds).unwrap_or(i64::MAX))
}
