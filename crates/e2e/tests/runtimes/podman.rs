//! podman, with CNI as its network backend.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::eventually;

use crate::image::{NAME, PROGRAM};
use crate::machine::{
    GONE_DEADLINE, Machine, NETWORK, NODE, ask_from_here, ask_from_outside, command, output,
};

/// Its own state in memory. Cgroups are left out: a build machine may have none to give.
const FLAGS: &[&str] = &[
    "--root=/run/podman/root",
    "--runroot=/run/podman/run",
    "--tmpdir=/run/podman/tmp",
    "--cgroup-manager=cgroupfs",
    "--events-backend=file",
    "--storage-driver=overlay",
    "--runtime=crun",
];
const CONFIGURATION: &str = "[network]\nnetwork_backend = \"cni\"\n\
    cni_plugin_dirs = [\"/opt/cni/bin\"]\nnetwork_config_dir = \"/etc/cni/net.d\"\n\
    default_network = \"flatnet\"\n";
/// So many containers start at once.
const MANY: usize = 16;

/// Configures podman and loads the image.
pub fn prepare(archive: &Path) -> Result<()> {
    fs::create_dir_all("/etc/containers")?;
    fs::write("/etc/containers/containers.conf", CONFIGURATION)?;
    fs::write(
        "/etc/containers/policy.json",
        "{\"default\":[{\"type\":\"insecureAcceptAnything\"}]}",
    )?;
    podman(&["load", "--quiet", "--input", &archive.display().to_string()]).map(drop)
}

fn podman(arguments: &[&str]) -> Result<String> {
    let call: Vec<&str> = FLAGS.iter().chain(arguments).copied().collect();
    output("podman", &call)
}

/// A running container with a web server. It is removed with the value too, when a test fails.
pub struct Container {
    name: String,
    /// What podman says its address is.
    pub address: String,
}

impl Container {
    /// Starts one; `flags` are those of `podman run`.
    pub fn start(name: &str, flags: &[&str]) -> Result<Self> {
        let mut call = vec!["run", "--detach", "--cgroups=disabled", "--network", NETWORK];
        call.extend(["--name", name]);
        call.extend(flags);
        call.extend([NAME, "serve", "--http", "8080"]);
        let mut container = Self { name: name.to_owned(), address: String::new() };
        podman(&call)?;
        let format = "{{.NetworkSettings.Networks.flatnet.IPAddress}}";
        container.address = podman(&["inspect", "--format", format, name])?;
        Ok(container)
    }

    /// Asks a web server from within, until it answers.
    pub fn ask(&self, url: &str) -> Result<()> {
        let call = ["exec", &self.name, PROGRAM, "http", url, "--timeout-ms", "1000"];
        eventually(url, GONE_DEADLINE, || podman(&call).map(drop))
    }

    /// Stops and removes it, and fails where podman does.
    pub fn remove(self) -> Result<()> {
        podman(&["rm", "--force", "--time=0", &self.name]).map(drop)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Gone already, unless the test failed.
        let _ = podman(&["rm", "--force", "--ignore", "--time=0", &self.name]);
    }
}

/// CNI-24 in small: addresses differ, and each container answers the others and the machine.
pub fn two_containers(machine: &Machine) -> Result<()> {
    let [one, two] = [Container::start("one", &[])?, Container::start("two", &[])?];
    ensure!(one.address != two.address, "both have {}", one.address);
    one.ask(&format!("http://{}:8080/", two.address))?;
    two.ask(&format!("http://{}:8080/", one.address))?;
    ask_from_here(&format!("http://{}:8080/", one.address))?;
    // The link is our plugin's, not of a network that podman would make itself.
    let links = output("ip", &["-o", "link", "show", "master", "cni0"])?;
    ensure!(links.lines().count() == 2, "two links at the bridge: {links}");
    one.remove()?;
    two.remove()?;
    machine.ensure_empty()
}

/// `-p` becomes the capability portMappings.
pub fn published_port(machine: &Machine) -> Result<()> {
    let container = Container::start("published", &["--publish", "18080:8080"])?;
    ask_from_outside(&format!("http://{NODE}:18080/"))?;
    ask_from_here(&format!("http://{NODE}:18080/"))?;
    container.remove()?;
    machine.ensure_empty()
}

/// Runs `work` for so many numbers at once; the first error counts.
pub fn at_once<T: Send>(work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..MANY).map(|number| scope.spawn(move || work(number))).collect();
        threads.into_iter().map(|thread| thread.join().ok().context("a thread panicked")?).collect()
    })
}

/// Sixteen at once get sixteen addresses; removed at once they leave none.
pub fn many_at_once(machine: &Machine) -> Result<()> {
    let containers = at_once(|number| Container::start(&format!("many{number}"), &[]))?;
    let mut addresses: Vec<&str> = containers.iter().map(|one| one.address.as_str()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    ensure!(addresses.len() == MANY, "{MANY} different addresses: {addresses:?}");
    let first = &containers[0];
    for other in &containers[1..] {
        first.ask(&format!("http://{}:8080/", other.address))?;
    }
    let names: Vec<String> = containers.iter().map(|one| one.name.clone()).collect();
    at_once(|number| {
        let mut call: Vec<&str> = FLAGS.to_vec();
        call.extend(["rm", "--force", "--time=0", &names[number]]);
        command("podman", &call)
    })?;
    machine.ensure_empty()
}
