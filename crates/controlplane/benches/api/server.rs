//! The measured server: this program again, as a process of its own on loopback.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use client::{Client, ResourcePath};
use controlplane::Options;
use controlplane::pki::{self, KubeconfigRequest, PkiRequest};
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use model::{ClusterConfig, Timestamp};

use crate::figures;

/// The server's directory and port, for the process that is measured.
const DIRECTORY: &str = "FLATNET_BENCH_DIRECTORY";
const PORT: &str = "FLATNET_BENCH_PORT";
/// Longest wait for a server to answer, and between two tries.
const START_LIMIT: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(1);
/// How long a server gets to become quiet before its memory is read.
const SETTLING: Duration = Duration::from_secs(5);
/// Syncs of one measurement of the disk.
const SYNCS: usize = 50;

/// A directory on the disk of the build, which goes with its owner. (`/tmp` may be memory.)
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Self {
        let name = format!("bench-api-{}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).expect("a scratch directory");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The collection that the benchmark writes to.
pub fn collection() -> ResourcePath {
    ResourcePath::new("v1", "configmaps").namespace("default")
}

/// A running process with a server, killed with its owner.
pub struct Server {
    pub client: Client,
    process: Process,
}

/// A child that ends with its owner.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    /// Starts the process, and returns with its first list: of one object, so that the client's own
    /// reading is not what is measured.
    pub async fn start(directory: &Path) -> Self {
        std::fs::create_dir_all(directory).expect("a directory");
        let port = free_port();
        let kubeconfig = credentials(directory, port);
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command.env(DIRECTORY, directory).env(PORT, port.to_string());
        let process = Process(command.spawn().expect("the server's process"));
        let client = Client::from_kubeconfig(&kubeconfig).await.expect("a client");
        let started = Instant::now();
        while !answers(&client).await {
            assert!(started.elapsed() < START_LIMIT, "the server does not answer");
            tokio::time::sleep(RETRY).await;
        }
        Self { client, process }
    }

    pub fn id(&self) -> u32 {
        self.process.0.id()
    }

    /// What it takes once nobody asks anything: it gives back what it has freed.
    pub async fn settled_memory(&self) -> Memory {
        settled_memory(self.id()).await
    }
}

async fn answers(client: &Client) -> bool {
    let path = format!("{}?limit=1", collection());
    let answer = client.raw(Method::GET, &path, None, Bytes::new()).await;
    answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
}

/// What a process takes when nobody has asked it anything for a while.
pub async fn settled_memory(process: u32) -> Memory {
    tokio::time::sleep(SETTLING).await;
    let text = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup"));
    let text = text.expect("the process runs");
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
        let number = line.trim_start_matches(':').trim().trim_end_matches(" kB");
        number.parse::<f64>().expect("a number") / 1024.0
    };
    Memory { resident_mb: field("Rss"), proportional_mb: field("Pss") }
}

/// What a process takes.
pub struct Memory {
    resident_mb: f64,
    proportional_mb: f64,
}

impl Memory {
    pub fn row(&self, label: &str) {
        figures::memory_row(label, self.resident_mb, self.proportional_mb);
    }
}

pub fn is_the_server() -> bool {
    std::env::var_os(DIRECTORY).is_some()
}

/// Serves until it is killed, on one thread, as the installed program does.
pub fn be_the_server() {
    let variable = |name: &str| std::env::var(name).expect("set by the benchmark");
    let directory = PathBuf::from(variable(DIRECTORY));
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, variable(PORT).parse().expect("a port")));
    let advertised = SocketAddr::from((Ipv4Addr::new(172, 30, 0, 1), listen.port()));
    let options = Options::new(directory, config(), vec![listen], advertised);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended =
        runtime.expect("a runtime").block_on(controlplane::run(options, std::future::pending()));
    ended.expect("the control plane runs");
}

/// A port of loopback that nobody has at the moment.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// Certificates, which `flatnet up` makes before it starts the server, and a kubeconfig.
fn credentials(directory: &Path, port: u16) -> PathBuf {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = i64::try_from(since.expect("a clock").as_secs()).expect("a time");
    let request = PkiRequest {
        config: config(),
        server_addresses: vec![Ipv4Addr::LOCALHOST.into()],
        nodes: std::collections::BTreeMap::new(),
    };
    let place = directory.join(controlplane::PKI_DIRECTORY);
    let pki = pki::ensure(&place, &request, Timestamp::from_seconds(seconds));
    let pki = pki.expect("certificates");
    let server = format!("https://127.0.0.1:{port}");
    let identity = &pki.admin;
    let request = KubeconfigRequest { cluster: "bench", user: "admin", server: &server, identity };
    let path = directory.join("kubeconfig");
    std::fs::write(&path, pki::kubeconfig_text(&pki, &request).expect("a kubeconfig"))
        .expect("the kubeconfig is written");
    path
}

fn config() -> ClusterConfig {
    let loopback = "127.0.0.0/8".parse().expect("a range");
    ClusterConfig { node_cidrs: vec![loopback], ..ClusterConfig::default() }
}

/// Processor time of all threads of a process, nanoseconds, by the scheduler's count.
pub fn processor_ns(process: u32) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("the process runs");
    let times = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    times.sum()
}

/// The mean time of an `fdatasync` after a kilobyte was appended to a file.
pub fn sync_time(directory: &Path) -> Duration {
    use std::io::Write as _;
    let mut file = std::fs::File::create(directory.join("sync")).expect("a file");
    let started = Instant::now();
    for _ in 0..SYNCS {
        file.write_all(&[b'x'; 1024]).expect("a write");
        file.sync_data().expect("a sync");
    }
    started.elapsed() / SYNCS as u32
}
