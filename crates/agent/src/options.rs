//! How an agent is called.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use client::{Client, SERVICE_ACCOUNT_DIRECTORY};
use model::{ClusterConfig, layout};

use crate::paths;

/// How an agent is called.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node's name in the API.
    pub node_name: String,
    /// Where the API server is and who we are.
    pub api: Api,
    /// Ranges, overlay, names.
    pub config: ClusterConfig,
    /// The link to the other nodes; `None` finds the one that has the Node's address, or that of
    /// the default route.
    pub uplink: Option<String>,
    /// The plugin's program, from where it is installed.
    pub cni_binary: PathBuf,
    /// How often paths to other nodes are tested that work.
    pub path_test_period: Duration,
    /// The node's directories.
    pub places: Places,
}

impl Options {
    /// Options with the usual places, and the plugin from beside our own program.
    ///
    /// # Errors
    /// When the own program's place is not known.
    pub fn new(node_name: String, api: Api, config: ClusterConfig) -> Result<Self> {
        let own = std::env::current_exe().context("finding the own program")?;
        let cni_binary = own.with_file_name("flatnet-cni");
        let places = Places::default();
        let path_test_period = paths::PERIOD;
        Ok(Self { node_name, api, config, uplink: None, cni_binary, path_test_period, places })
    }
}

/// The directories of a node that we write to, or read what the plugin wrote.
#[derive(Clone, Debug)]
pub struct Places {
    /// Our sockets and lock.
    pub run: PathBuf,
    /// Where the CNI configuration goes.
    pub cni_configuration: PathBuf,
    /// Where the CNI plugin goes.
    pub cni_plugin: PathBuf,
    /// The plugin's addresses, to tell how many are free.
    pub ipam: PathBuf,
    /// The plugin's records of pods, whose edges are kept.
    pub records: PathBuf,
    /// The node's WireGuard keys.
    pub wireguard_keys: PathBuf,
    /// Where the DNS worker keeps the newest zone.
    pub dns_zone: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            run: layout::RUN_DIRECTORY.into(),
            cni_configuration: layout::CNI_CONFIGURATION_DIRECTORY.into(),
            cni_plugin: layout::CNI_PLUGIN_DIRECTORY.into(),
            ipam: layout::IPAM_DIRECTORY.into(),
            records: layout::CNI_RECORD_DIRECTORY.into(),
            wireguard_keys: layout::WIREGUARD_KEY_DIRECTORY.into(),
            dns_zone: layout::DNS_ZONE_DIRECTORY.into(),
        }
    }
}

/// Where the API server is and who we are.
#[derive(Clone, Debug)]
pub enum Api {
    /// By a kubeconfig file.
    Kubeconfig(PathBuf),
    /// As a pod with a ServiceAccount.
    ServiceAccount {
        /// The server's URL. In a cluster whose Services are our own work it is a host address.
        server: String,
        /// Token and authorities; the usual place in a pod when `None`.
        directory: Option<PathBuf>,
    },
}

impl Api {
    pub(crate) async fn client(&self) -> Result<Client> {
        Ok(match self {
            Self::Kubeconfig(path) => Client::from_kubeconfig(path).await?,
            Self::ServiceAccount { server, directory } => {
                let usual = || SERVICE_ACCOUNT_DIRECTORY.into();
                let directory = directory.clone().unwrap_or_else(usual);
                Client::from_service_account(server, &directory)?
            }
        })
    }
}
