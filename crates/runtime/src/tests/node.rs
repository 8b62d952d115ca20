//! A node for one test: mount and network namespaces of its own, a network plugin that gives every
//! pod a veth, and the runtime on this thread. All of it goes when the test ends.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use super::api::Api;
use super::certificates::Authority;
use crate::Options;
use crate::pause_client;

/// Gives pod N the address 10.99.0.N+1, reached from the node over a veth; counts in a file.
/// DEL is recorded.
const PLUGIN: &str = r#"#!/bin/sh
set -e
cat > /dev/null
dir=$(dirname "$0")
case "$CNI_COMMAND" in
ADD)
  n=$(($(cat "$dir/count" 2>/dev/null || echo 1) + 1)); echo $n > "$dir/count"
  ip link add "tv$n" type veth peer name eth0 netns "$CNI_NETNS"
  echo "tv$n" > "$dir/$CNI_CONTAINERID"
  nsenter --net="$CNI_NETNS" ip link set lo up
  nsenter --net="$CNI_NETNS" ip addr add "10.99.0.$n/32" dev eth0
  nsenter --net="$CNI_NETNS" ip link set eth0 up
  nsenter --net="$CNI_NETNS" ip route add 10.99.255.1 dev eth0
  ip link set "tv$n" up
  ip route replace "10.99.0.$n/32" dev "tv$n" src 10.99.255.1
  printf '{"cniVersion":"1.0.0","ips":[{"address":"10.99.0.%s/32"}]}' "$n"
  ;;
DEL)
  if [ -f "$dir/$CNI_CONTAINERID" ]; then
    ip link del "$(cat "$dir/$CNI_CONTAINERID")" 2>/dev/null || true
    rm "$dir/$CNI_CONTAINERID"
  fi
  ;;
esac
"#;

/// The test's node.
pub struct Node {
    pub api: Api,
    pub options: Options,
    pub authority: Authority,
    pub root: PathBuf,
}

/// Who may read logs and run commands in these tests.
pub const CLIENT_NAME: &str = "the-api-server";

impl Node {
    /// Moves this thread into new namespaces. Fails, never skips, without root.
    pub fn new(name: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test makes namespaces: run it as root");
        binaries();
        let root = PathBuf::from(format!("/var/tmp/flatnet-runtime-{}-{name}", std::process::id()));
        fs::create_dir_all(&root).expect("a directory");
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("namespaces");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private");
        for line in ["link set lo up", "addr add 10.99.255.1/32 dev lo"] {
            let status = Command::new("ip").args(line.split(' ')).status().expect("ip");
            assert!(status.success(), "ip {line}");
        }
        let plugins = root.join("plugins");
        let networks = root.join("networks");
        fs::create_dir_all(&plugins).expect("a directory");
        fs::create_dir_all(&networks).expect("a directory");
        fs::write(plugins.join("test"), PLUGIN).expect("a plugin");
        fs::set_permissions(plugins.join("test"), fs::Permissions::from_mode(0o755)).expect("mode");
        let list = r#"{"cniVersion":"1.0.0","name":"test","plugins":[{"type":"test"}]}"#;
        fs::write(networks.join("10-test.conflist"), list).expect("a configuration");
        let authority = Authority::new(&root.join("pki"));
        authority.issue("node1", Some("10.99.255.1"));
        let options = options(&root);
        Self { api: Api::default(), options, authority, root }
    }

    /// Starts the runtime as tasks of a runtime of its own on this thread.
    pub fn start(&self) -> tokio::task::JoinHandle<anyhow::Result<()>> {
        tokio::spawn(crate::run_with(self.options.clone(), self.api.client()))
    }

    pub fn pod_state(&self, uid: &str) -> PathBuf {
        self.options.state_directory.join("pods").join(uid)
    }

    pub fn pod_run(&self, uid: &str) -> PathBuf {
        self.options.run_directory.join("pods").join(uid)
    }

    /// The lines of a container's log, without times.
    pub fn log(&self, uid: &str, container: &str, restarts: u32) -> Vec<String> {
        let path = self.pod_state(uid).join(format!("containers/{container}/{restarts}.log"));
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or("").to_owned()).collect()
    }

    /// The process id of a pod's pause process.
    pub async fn pause_pid(&self, uid: &str) -> i32 {
        let socket = self.pod_run(uid).join("pause.sock");
        let connection = pause_client::Connection::open(&socket).await.expect("a pause process");
        connection.peer().expect("its process id")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let pods = self.options.run_directory.join("pods");
        for entry in fs::read_dir(pods).into_iter().flatten().flatten() {
            kill_pause(&entry.path().join("pause.sock"));
        }
        for entry in
            fs::read_dir(self.options.state_directory.join("pods")).into_iter().flatten().flatten()
        {
            let uid = entry.file_name().to_string_lossy().into_owned();
            let cgroups = crate::cgroup::Cgroups::discover();
            for _ in 0..200 {
                if cgroups.remove_pod(&uid) {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
        // Mounts went with the namespace's last user, or go with this thread.
        let none = None::<&str>;
        let _ = mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none);
        let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap_or_default();
        for line in mounts.lines().rev() {
            let Some(point) = line.split(' ').nth(1) else { continue };
            if Path::new(point).starts_with(&self.root) {
                let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
            }
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// The options of the node whose files are below `root`.
pub fn options(root: &Path) -> Options {
    let mut options = Options::new("node1");
    options.node_addresses = vec![IpAddr::from([10, 99, 255, 1])];
    options.kubeconfig = root.join("kubeconfig");
    options.state_directory = root.join("state");
    options.image_directory = root.join("images");
    options.registries = root.join("registries.json");
    options.seccomp_directory = root.join("seccomp");
    options.run_directory = root.join("run");
    options.cluster_dns = vec![IpAddr::from([10, 96, 0, 10])];
    options.pause_binary = binaries().join("flatnet-pause");
    options.toolbox_binary = binaries().join("flatnet-toolbox");
    options.cni_configuration_directory = root.join("networks");
    options.cni_plugin_directory = root.join("plugins");
    options.cni_cache_directory = root.join("cni");
    options.serving_certificate = root.join("pki/node1.crt");
    options.serving_key = root.join("pki/node1.key");
    options.client_authority = root.join("pki/ca.crt");
    options.client_name = CLIENT_NAME.into();
    options
}

fn kill_pause(socket: &Path) {
    use std::os::fd::AsFd;
    let Ok(stream) = std::os::unix::net::UnixStream::connect(socket) else { return };
    let credentials = nix::sys::socket::sockopt::PeerCredentials;
    let Ok(peer) = nix::sys::socket::getsockopt(&stream.as_fd(), credentials) else { return };
    if let Ok(pidfd) = crate::sys::pidfd_open(peer.pid()) {
        let _ = crate::sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
    }
}

/// Where a process that a test starts finds the programs that the test has built: it waits for no
/// other build.
pub const BINARIES: &str = "FLATNET_TEST_BINARIES";

/// Builds the two static programs once, and says where they are.
pub fn binaries() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        if let Some(built) = std::env::var_os(BINARIES) {
            return built.into();
        }
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let own = std::env::current_exe().expect("this program");
        let directory = own
            .ancestors()
            .find(|path| path.ends_with("debug") || path.ends_with("release"))
            .and_then(Path::parent)
            .expect("the target directory");
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--quiet", "-p", "pause", "-p", "toolbox", "--target", &target])
            .arg("--target-dir")
            .arg(directory)
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .expect("cargo");
        assert!(status.success(), "flatnet-pause and flatnet-toolbox must build");
        directory.join(target).join("debug")
    })
}

/// Runs a test on a thread of its own, in a runtime with one thread.
pub fn on_node<F: Future<Output = ()>>(
    name: &'static str,
    test: impl FnOnce(Node) -> F + Send + 'static,
) {
    let thread = std::thread::spawn(move || {
        let node = Node::new(name);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test(node));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A container that runs a script with the machine's shell.
pub fn shell(script: &str) -> Value {
    json!({"name": "main", "image": "localhost/host", "command": ["sh", "-c", script]})
}

/// Whether the pod's first container runs.
pub fn is_running(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running"
        && pod["status"]["containerStatuses"][0]["state"]["running"].is_object()
}
