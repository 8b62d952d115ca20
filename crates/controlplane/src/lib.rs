//! The control plane of a cluster on one machine: the HTTP face of the store, its durability,
//! authentication, and the driver of the controllers.
//!
//! ```text
//! kubectl, agents, runtimes ── TLS ──▶ server ──▶ api ──▶ reads ─────────▶ store (published)
//! controllers ─ local transport ────────────────▶ api ──▶ writer: stage ─▶ disk ─▶ publish
//! ```

mod api;
mod audit;
mod bootstrap;
mod conversion;
mod disk;
pub mod drive;
mod housekeeping;
mod local;
pub mod pki;
mod roles;
mod server;
mod tls;
mod tokens;
mod volumes;
mod webhook;
mod writer;

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use client::{Client, ClientError, Endpoint, Identity};
use model::{ClusterConfig, layout};
use store::StoreConfig;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

pub use audit::{AUDIT_FILE_BYTES, AUDIT_OLDER_FILES, AuditOptions};
pub use controllers::controller::{DEFAULT_ENDPOINTS_PER_SLICE, MAX_ENDPOINTS_PER_SLICE};
pub use disk::{DiskError, FILE as STORE_FILE};
pub use tls::{TlsError, User};

use api::{Api, Proxy};
use audit::Audit;
use disk::Disk;
use local::{exempt_client, local_client};
use pki::Pki;
use tokens::Tokens;
use writer::Shared;

/// How long the writer may take for what is queued when the server stops, milliseconds.
const STOP_TIMEOUT_MS: u64 = 10_000;
/// The directory of provisioned volumes in the state directory.
const VOLUMES_DIRECTORY: &str = "volumes";
/// The directory of certificates in the state directory.
pub const PKI_DIRECTORY: &str = "pki";

/// What a control plane runs with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where [`STORE_FILE`] and [`PKI_DIRECTORY`] are. The certificates must exist
    /// ([`pki::ensure`]).
    pub state_directory: PathBuf,
    /// The cluster.
    pub config: ClusterConfig,
    /// Where to listen; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// What pods reach through the Service `default/kubernetes`.
    pub advertised: SocketAddr,
    /// Where node runtimes listen, the kubelet's port everywhere but in tests.
    pub runtime_port: u16,
    /// Most endpoints of one EndpointSlice, 1 to [`MAX_ENDPOINTS_PER_SLICE`].
    pub max_endpoints_per_slice: usize,
    /// Where requests are written down; `None` for nowhere.
    pub audit: Option<AuditOptions>,
}

impl Options {
    /// Options with the usual runtime port and size of slices.
    pub fn new(
        state_directory: PathBuf,
        config: ClusterConfig,
        listen: Vec<SocketAddr>,
        advertised: SocketAddr,
    ) -> Self {
        Self {
            state_directory,
            config,
            listen,
            advertised,
            runtime_port: layout::RUNTIME_PORT,
            max_endpoints_per_slice: DEFAULT_ENDPOINTS_PER_SLICE,
            audit: None,
        }
    }
}

/// Why a control plane does not start, or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The objects cannot be had.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The certificates cannot be had.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Our identity towards node runtimes cannot be had.
    #[error(transparent)]
    Identity(ClientError),
    /// An address cannot be listened on.
    #[error(
        "cannot listen on {address}: {source}; another program may use the port (`ss -ltnp` shows \
         it), or the address is on no link of this machine"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The audit log cannot be written.
    #[error(
        "cannot write the audit log {}: {source}; its directory must exist and be writable",
        path.display()
    )]
    Audit {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The cluster's own objects cannot be made.
    #[error("the cluster's own objects cannot be made: {0}")]
    Bootstrap(ClientError),
    /// A part panicked. Everything acknowledged is on disk.
    #[error("{part} ended by a fault of ours (see the log); start the control plane again")]
    Fault {
        /// Which part.
        part: &'static str,
    },
    /// The system refused a thread.
    #[error("cannot start the store's writer: {0}; is the limit of processes too low?")]
    Thread(std::io::Error),
}

/// A running API server, without the controllers.
pub struct ControlPlane {
    api: Arc<Api>,
    addresses: Vec<SocketAddr>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    writer_stopped: oneshot::Receiver<()>,
}

impl ControlPlane {
    /// Restores the objects, makes the cluster's own ones, and listens.
    ///
    /// # Errors
    /// [`StartError`], saying what to do.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let pki = Pki::at(&options.state_directory.join(PKI_DIRECTORY), []);
        let tls = tls::server_config(&pki)?;
        let tokens = Tokens::open(&pki.service_account_key, &options.config.cluster_domain)?;
        let proxy = proxy(&pki, &options)?;
        let mut listeners = Vec::new();
        for address in &options.listen {
            let listener = TcpListener::bind(address).await;
            listeners
                .push(listener.map_err(|source| StartError::Listen { address: *address, source })?);
        }
        let addresses =
            listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let disk = Disk::open(&options.state_directory)?;
        let (store, dropped) = disk.load(StoreConfig::from(&options.config))?;
        let (shared, writer_stopped) =
            Shared::start(store, disk, dropped).map_err(StartError::Thread)?;
        let (stop, stopping) = watch::channel(false);
        let audit = audit(options.audit)?;
        let api = Api::new(Arc::clone(&shared), tokens, proxy, audit, stopping.clone());
        let client = exempt_client(Arc::clone(&api), own_user());
        bootstrap::ensure(&client, &options.config, options.advertised)
            .await
            .map_err(StartError::Bootstrap)?;
        let mut tasks = JoinSet::new();
        for listener in listeners {
            let tls = Arc::clone(&tls);
            tasks.spawn(server::serve(listener, tls, Arc::clone(&api), stopping.clone()));
        }
        let advertised = options.advertised;
        tasks.spawn(housekeeping::run(client, shared, options.config, advertised, stopping));
        Ok(Self { api, addresses, stop, tasks, writer_stopped })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// A client without a socket, in the name of the control plane.
    pub fn client(&self) -> Client {
        local_client(Arc::clone(&self.api), own_user())
    }

    /// Ends watches and connections in order, and returns when all that was acknowledged is on
    /// disk. Clients from [`ControlPlane::client`] must be gone by then, or it takes
    /// [`STOP_TIMEOUT_MS`].
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
        drop(self.api);
        let limit = Duration::from_millis(STOP_TIMEOUT_MS);
        if tokio::time::timeout(limit, self.writer_stopped).await.is_err() {
            tracing::warn!("the store's writer did not end in time; what was acknowledged is safe");
        }
    }
}

/// Runs the API server and the controllers until `shutdown` resolves.
///
/// # Errors
/// [`StartError`], when it does not come up, or when a part of it ends by a panic.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> Result<(), StartError> {
    let authority = Pki::at(&options.state_directory.join(PKI_DIRECTORY), []).authority;
    let (cluster, slices) = (options.config.clone(), options.max_endpoints_per_slice);
    let volumes = options.state_directory.join(VOLUMES_DIRECTORY);
    let mut running = ControlPlane::start(options).await?;
    let mut config = drive::config(cluster, read_file(&authority)?);
    config.max_endpoints_per_slice = slices;
    config.volumes_directory = volumes.to_str().map(str::to_owned);
    let (stop, stopping) = watch::channel(false);
    let mut controllers = tokio::spawn(drive::run(running.client(), config, stopping));
    tokio::select! {
        () = shutdown => {}
        never = memory::keep_giving_back() => match never {},
        _ = &mut controllers => return Err(StartError::Fault { part: "the controllers" }),
        _ = &mut running.writer_stopped => {
            return Err(StartError::Fault { part: "the store's writer" });
        }
    }
    // The controllers first: they write through the server.
    stop.send_replace(true);
    let ended = controllers.await;
    running.stop().await;
    ended.map_err(|_| StartError::Fault { part: "the controllers" })
}

fn audit(options: Option<AuditOptions>) -> Result<Option<Audit>, StartError> {
    let Some(options) = options else { return Ok(None) };
    let path = options.path.clone();
    Audit::start(options).map(Some).map_err(|source| StartError::Audit { path, source })
}

fn proxy(pki: &Pki, options: &Options) -> Result<Proxy, StartError> {
    let identity = Identity::from_pem(
        read_file(&pki.authority)?.as_bytes(),
        read_file(&pki.runtime_client.certificate)?.as_bytes(),
        read_file(&pki.runtime_client.key)?.as_bytes(),
        &pki.runtime_client.certificate.display().to_string(),
    )
    .map_err(StartError::Identity)?;
    // The host is each node's own; this one is never dialled.
    let endpoint = Endpoint::new("https://localhost", &identity).map_err(StartError::Identity)?;
    Ok(Proxy::new(endpoint, &options.config, options.runtime_port))
}

fn read_file(path: &Path) -> Result<String, StartError> {
    std::fs::read_to_string(path).map_err(|error| {
        StartError::Identity(ClientError::Config {
            path: path.display().to_string(),
            problem: format!("cannot be read: {error}; `flatnet up` makes it anew"),
        })
    })
}

/// In whose name the control plane itself writes.
fn own_user() -> User {
    User {
        name: "system:apiserver".to_owned(),
        groups: vec![layout::GROUP_MASTERS.to_owned()],
        ..User::default()
    }
}

/// Resolves when the server stops.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone has stopped too.
    let _ = stop.wait_for(|stop| *stop).await;
}
