//! A control plane on loopback, with its own directory, for one test.

#![allow(dead_code)] // Each test file uses its part.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use client::{Client, Kubeconfig};
use controlplane::pki::{self, KubeconfigRequest, Pki, PkiRequest};
use controlplane::{ControlPlane, Options};
use model::{ClusterConfig, Timestamp};

/// Longest wait for anything in these tests.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A directory that goes away with its owner.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = format!("flatnet-controlplane-{name}-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(directory);
        std::fs::create_dir_all(&path).expect("a scratch directory");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running server and what is needed to reach it.
pub struct Server {
    pub running: ControlPlane,
    pub address: SocketAddr,
    pub client: Client,
    pub pki: Pki,
    pub kubeconfig: PathBuf,
}

pub const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The default cluster, its nodes on loopback.
pub fn config() -> ClusterConfig {
    ClusterConfig {
        node_cidrs: vec!["127.0.0.0/8".parse().expect("a range")],
        ..ClusterConfig::default()
    }
}

pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp::from_seconds(i64::try_from(since.expect("a clock").as_secs()).expect("a time"))
}

pub fn make_pki(directory: &Path) -> Pki {
    let request = PkiRequest {
        config: config(),
        server_addresses: vec![LOOPBACK],
        nodes: BTreeMap::from([("node1".to_owned(), vec![LOOPBACK])]),
    };
    pki::ensure(&directory.join("pki"), &request, now()).expect("certificates")
}

/// Writes the administrator's kubeconfig for a server on a port.
pub fn write_kubeconfig(directory: &Path, pki: &Pki, port: u16) -> PathBuf {
    let path = directory.join("kubeconfig");
    let server = format!("https://127.0.0.1:{port}");
    let request =
        KubeconfigRequest { cluster: "test", user: "admin", server: &server, identity: &pki.admin };
    let text = pki::kubeconfig_text(pki, &request).expect("a kubeconfig");
    std::fs::write(&path, text).expect("the kubeconfig is written");
    path
}

/// Starts a server over a directory; `port` 0 takes a free one.
pub async fn start(directory: &Path, port: u16) -> Server {
    start_with(directory, port, |_| {}).await
}

pub async fn start_with(directory: &Path, port: u16, change: impl FnOnce(&mut Options)) -> Server {
    let pki = make_pki(directory);
    let listen = vec![SocketAddr::new(LOOPBACK, port)];
    let advertised = "172.30.0.1:6443".parse().expect("an address");
    let mut options = Options::new(directory.to_owned(), config(), listen, advertised);
    change(&mut options);
    let running = ControlPlane::start(options).await.expect("the server starts");
    let address = running.addresses()[0];
    let kubeconfig = write_kubeconfig(directory, &pki, address.port());
    let client = Client::from_kubeconfig(&kubeconfig).await.expect("a client");
    Server { running, address, client, pki, kubeconfig }
}

/// An endpoint for raw requests with the administrator's certificate.
pub fn endpoint(server: &Server) -> client::Endpoint {
    Kubeconfig::read(&server.kubeconfig).expect("a kubeconfig").endpoint().expect("an endpoint")
}

/// Waits until a condition holds.
pub async fn eventually<F, Fut>(what: &str, mut condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let started = std::time::Instant::now();
    while !condition().await {
        assert!(started.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for a future, but not for ever.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {DEADLINE:?}"),
    }
}
