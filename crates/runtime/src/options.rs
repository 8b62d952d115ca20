//! What the runtime of one node must be told.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use model::layout;

use crate::storage;

/// Where the administrator says how registries are reached.
const REGISTRIES: &str = "/etc/flatnet/registries.json";
/// Where pods' `localhostProfile` is looked for, as on nodes of kubelets.
const SECCOMP_PROFILES: &str = "/var/lib/kubelet/seccomp";
/// Processes and threads of a pod where nobody says: enough for any server, and an end to a program
/// that starts itself for ever.
const POD_PROCESS_LIMIT: u32 = 4096;

/// The options of [`crate::run`]. The caller has already entered the node's network, mount, UTS
/// and cgroup namespaces; all paths are meant there.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node's name, also its hostname.
    pub node_name: String,
    /// The node's addresses on the node network, at most one a family; the first is the
    /// `InternalIP` that the log and exec server listens on.
    pub node_addresses: Vec<IpAddr>,
    /// How to reach the API server, with the credentials of `system:node:NODE`.
    pub kubeconfig: PathBuf,
    /// PEM certificate of the log and exec server.
    pub serving_certificate: PathBuf,
    /// PEM key of the log and exec server.
    pub serving_key: PathBuf,
    /// PEM certificate of the authority that signs the API server's client certificate.
    pub client_authority: PathBuf,
    /// The common name of the one client that may read logs and run commands.
    pub client_name: String,
    /// What must survive a reboot: pods, their writable layers, logs. On disk.
    pub state_directory: PathBuf,
    /// The images that were loaded and pulled, for all nodes of the cluster. On disk.
    pub image_directory: PathBuf,
    /// How registries are reached, see [`crate::images::Settings`]; need not be there.
    pub registries: PathBuf,
    /// Sockets, network namespaces and secrets of running pods: volatile, in memory.
    pub run_directory: PathBuf,
    /// Nameservers of pods with `dnsPolicy: ClusterFirst`.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's DNS suffix, without a final dot.
    pub cluster_domain: String,
    /// `flatnet-pause`.
    pub pause_binary: PathBuf,
    /// The static binary that the image `localhost/toolbox` consists of.
    pub toolbox_binary: PathBuf,
    /// Where network configurations are; see [`layout::CNI_CONFIGURATION_DIRECTORY`].
    pub cni_configuration_directory: PathBuf,
    /// Where network plugins are; see [`layout::CNI_PLUGIN_DIRECTORY`].
    pub cni_plugin_directory: PathBuf,
    /// Where results of network plugins are kept; see [`cni::runtime_side::CACHE_DIRECTORY`].
    pub cni_cache_directory: PathBuf,
    /// Where the administrator's profiles of system calls are (the kubelet's directory of them).
    pub seccomp_directory: PathBuf,
    /// Processes and threads that one pod may have (the kubelet's `podPidsLimit`).
    pub pod_process_limit: u32,
    /// Time between two looks whether a pod keeps more on the disk than it may.
    pub storage_period: Duration,
    /// TCP port of the log and exec server; see [`layout::RUNTIME_PORT`].
    pub port: u16,
}

impl Options {
    /// Options with the usual places: everything that the caller need not choose.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            node_name: node_name.into(),
            node_addresses: Vec::new(),
            kubeconfig: PathBuf::new(),
            serving_certificate: PathBuf::new(),
            serving_key: PathBuf::new(),
            client_authority: PathBuf::new(),
            client_name: String::new(),
            state_directory: PathBuf::new(),
            image_directory: PathBuf::new(),
            registries: PathBuf::from(REGISTRIES),
            run_directory: PathBuf::from(layout::RUN_DIRECTORY),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            pause_binary: PathBuf::new(),
            toolbox_binary: PathBuf::new(),
            cni_configuration_directory: layout::CNI_CONFIGURATION_DIRECTORY.into(),
            cni_plugin_directory: layout::CNI_PLUGIN_DIRECTORY.into(),
            cni_cache_directory: ::cni::runtime_side::CACHE_DIRECTORY.into(),
            seccomp_directory: PathBuf::from(SECCOMP_PROFILES),
            pod_process_limit: POD_PROCESS_LIMIT,
            storage_period: storage::PERIOD,
            port: layout::RUNTIME_PORT,
        }
    }
}
