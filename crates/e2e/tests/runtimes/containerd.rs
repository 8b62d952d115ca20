//! containerd and its own client `ctr`, which runs CNI itself.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use e2e::eventually;

use crate::image::{NAME, PROGRAM};
use crate::machine::{GONE_DEADLINE, Machine, output};
use crate::podman::{self, at_once};

/// Where the daemon listens.
pub const SOCKET: &str = "/run/containerd-test/socket";
/// The daemon's, and what a kubelet's containers are in: one place of images for both.
const NAMESPACE: &str = "k8s.io";
/// Cgroups and out-of-memory scores are left out: a build machine may have none to give.
const CONFIGURATION: &str = r#"version = 2
root = "/run/containerd-test/root"
state = "/run/containerd-test/state"
[grpc]
address = "/run/containerd-test/socket"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/toolbox:latest"
disable_cgroup = true
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"
"#;

/// The daemon. It is stopped with the value.
pub struct Containerd(Child);

impl Containerd {
    /// Starts the daemon and loads the image.
    pub fn start(archive: &Path) -> Result<Self> {
        fs::create_dir_all("/run/containerd-test")?;
        fs::write("/run/containerd-test/config.toml", CONFIGURATION)?;
        let log = fs::File::create("/run/containerd-test/log")?;
        let child = Command::new("containerd")
            .args(["--config", "/run/containerd-test/config.toml", "--log-level", "warn"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start containerd")?;
        let daemon = Self(child);
        eventually("containerd answers", GONE_DEADLINE, || ctr(&["version"]))?;
        ctr(&["image", "import", &archive.display().to_string()])?;
        Ok(daemon)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ctr(arguments: &[&str]) -> Result<String> {
    let mut call = vec!["--address", SOCKET, "--namespace", NAMESPACE];
    call.extend(arguments);
    output("ctr", &call)
}

/// A running container with a web server. `ctr` removes its network when it ends by itself, and so
/// stays beside it.
pub struct Container {
    name: String,
    client: Child,
    /// Its address.
    pub address: String,
}

impl Container {
    /// Starts one.
    pub fn start(name: &str) -> Result<Self> {
        let client = Command::new("ctr")
            .args(["--address", SOCKET, "--namespace", NAMESPACE, "run", "--rm", "--cni"])
            // Without the cgroup's controller of processors, which a build machine may not have.
            .args(["--cpu-shares", "0", NAME, name, PROGRAM, "serve", "--http", "8080"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start ctr")?;
        let mut container = Self { name: name.to_owned(), client, address: String::new() };
        let started = eventually("the container runs", GONE_DEADLINE, || container.own_address());
        container.address = match started {
            Ok(address) => address,
            Err(error) => bail!("{error:#}: {}", container.complaint()),
        };
        Ok(container)
    }

    /// What `ctr` printed, after it was stopped.
    fn complaint(&mut self) -> String {
        let _ = self.client.kill();
        let mut text = String::new();
        if let Some(errors) = &mut self.client.stderr {
            let _ = std::io::Read::read_to_string(errors, &mut text);
        }
        text
    }

    /// The address of `eth0` as the container sees it.
    fn own_address(&self) -> Result<String> {
        let links = self.exec(&["ip"])?;
        let mut addresses = links.lines().filter_map(|line| line.strip_prefix("eth0 "));
        let address = addresses.find(|address| address.contains('.'));
        let address = address.and_then(|address| address.split('/').next());
        address.map(str::to_owned).with_context(|| format!("no address of eth0 in {links}"))
    }

    fn exec(&self, arguments: &[&str]) -> Result<String> {
        // Each call has a name of its own.
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let id = format!("exec{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let mut call = vec!["tasks", "exec", "--exec-id", &id, &self.name, PROGRAM];
        call.extend(arguments);
        ctr(&call)
    }

    /// Asks a web server from within, until it answers.
    pub fn ask(&self, url: &str) -> Result<()> {
        eventually(url, GONE_DEADLINE, || {
            self.exec(&["http", url, "--timeout-ms", "1000"]).map(drop)
        })
    }

    /// Ends it, and waits until `ctr` has removed all.
    pub fn remove(mut self) -> Result<()> {
        ctr(&["tasks", "kill", "--signal", "KILL", &self.name])?;
        eventually("ctr ends", GONE_DEADLINE, || {
            self.client.try_wait()?.context("it runs")?;
            Ok(())
        })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Gone already, unless the test failed.
        if !matches!(self.client.try_wait(), Ok(Some(_))) {
            let _ = ctr(&["tasks", "kill", "--signal", "KILL", &self.name]);
            let _ = self.client.kill();
            let _ = self.client.wait();
        }
    }
}

/// Each container answers the other.
pub fn two_containers(machine: &Machine) -> Result<()> {
    let [one, two] = [Container::start("one")?, Container::start("two")?];
    ensure!(one.address != two.address, "both have {}", one.address);
    one.ask(&format!("http://{}:8080/", two.address))?;
    two.ask(&format!("http://{}:8080/", one.address))?;
    one.remove()?;
    two.remove()?;
    machine.ensure_empty()
}

/// Sixteen at once get sixteen addresses; ended at once they leave none.
pub fn many_at_once(machine: &Machine) -> Result<()> {
    let containers = at_once(|number| Container::start(&format!("many{number}")))?;
    let mut addresses: Vec<&str> = containers.iter().map(|one| one.address.as_str()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    ensure!(addresses.len() == containers.len(), "all different: {addresses:?}");
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            containers.into_iter().map(|one| scope.spawn(move || one.remove())).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().ok().context("a thread panicked")?)
    })?;
    machine.ensure_empty()
}

/// Two runtimes on one node share the pool of addresses and the bridge.
pub fn beside_podman(machine: &Machine) -> Result<()> {
    let one = Container::start("one")?;
    let two = podman::Container::start("two", &[])?;
    ensure!(one.address != two.address, "both have {}", one.address);
    one.ask(&format!("http://{}:8080/", two.address))?;
    two.ask(&format!("http://{}:8080/", one.address))?;
    one.remove()?;
    two.remove()?;
    machine.ensure_empty()
}
