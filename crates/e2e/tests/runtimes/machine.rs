//! A machine of its own for the runtimes: namespaces in which they find their programs and default
//! directories, and of which nothing stays on the host, not even when a runtime is killed.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::eventually;
use serde_json::json;

use crate::containerd::Containerd;
use crate::image;

/// Set in the process inside.
const INSIDE: &str = "E2E_RUNTIMES_INSIDE";
/// Debian's packages, unpacked by `./x test`.
const PACKAGES: &str = "target/tools/runtimes";
/// A command that runs longer than this is killed, seconds.
const COMMAND_DEADLINE_S: &str = "60";
/// Within this time the plugin has removed what a runtime gave back.
pub const GONE_DEADLINE: Duration = Duration::from_secs(10);

/// The network's name in the configuration.
pub const NETWORK: &str = "flatnet";
/// The machine's address on the wire to outside.
pub const NODE: &str = "172.31.0.2";
/// A machine outside.
const OUTSIDE: &str = "outside";
const OUTSIDE_ADDRESS: &str = "172.31.0.9";
const CONFIGURATION: &str = "/etc/cni/net.d/10-flatnet.conflist";

/// Whether this process is inside already.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs this program again inside: in namespaces of its own and a cgroup of its own. The first
/// process there adopts what the runtimes leave behind, and its end is the end of all others.
pub fn run_inside() -> Result<ExitCode> {
    let cgroup = Cgroup::create()?;
    // Runtimes look for a tree of cgroups of their own kind: it is made of the cgroup that the
    // process is in when it gets its own view.
    let script = "echo $$ > \"$0/cgroup.procs\" && exec unshare --mount --net --pid --cgroup --uts \
        --ipc --fork --kill-child --propagation private sh -c '\"$0\" \"$@\"; exit $?' \"$@\"";
    let status = Command::new("sh")
        .args(["-c", script])
        .arg(&cgroup.0)
        .arg(std::env::current_exe()?)
        .args(std::env::args().skip(1))
        .env(INSIDE, "1")
        .status()
        .context("cannot start `sh`")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A cgroup of version 2, wherever that is mounted. It goes with the value.
struct Cgroup(PathBuf);

impl Cgroup {
    fn create() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mut words = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mount = words
            .find(|words| words.get(2) == Some(&"cgroup2"))
            .context("no cgroup2 is mounted on this machine: `mount -t cgroup2`")?;
        let path = Path::new(mount[1]).join(format!("flatnet-runtimes-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| {
            format!("cannot make the cgroup {}: these tests need root", path.display())
        })?;
        Ok(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The processes are gone, but the kernel takes its time to say so.
        let removed = eventually("the cgroup can be removed", GONE_DEADLINE, || remove(&self.0));
        if let Err(error) = removed {
            eprintln!("{} stays: {error:#}", self.0.display());
        }
    }
}

fn remove(cgroup: &Path) -> Result<()> {
    for entry in fs::read_dir(cgroup)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    Ok(fs::remove_dir(cgroup)?)
}

/// The machine, from inside.
pub struct Machine {
    /// The daemon, for its end.
    _containerd: Containerd,
    /// What is there while no container is.
    empty: BTreeSet<String>,
}

impl Machine {
    /// Makes the machine, with one container already started and gone: what stays of that is the
    /// network's (the bridge, the tables), not a container's.
    pub fn prepare() -> Result<Self> {
        file_systems()?;
        configure()?;
        wire_to_outside()?;
        let archive = image::archive()?;
        crate::podman::prepare(&archive)?;
        let containerd = Containerd::start(&archive)?;
        let mut machine = Self { _containerd: containerd, empty: BTreeSet::new() };
        crate::podman::Container::start("first", &["--publish", "18080:8080"])?.remove()?;
        machine.empty = inventory()?;
        Ok(machine)
    }

    /// Waits until nothing of any container is there.
    pub fn ensure_empty(&self) -> Result<()> {
        eventually("nothing of a container is left", GONE_DEADLINE, || {
            let now = inventory()?;
            let [added, lost] = [now.difference(&self.empty), self.empty.difference(&now)];
            let [added, lost] = [added, lost].map(|lines| lines.collect::<Vec<_>>());
            ensure!(added.is_empty() && lost.is_empty(), "added {added:#?}, lost {lost:#?}");
            Ok(())
        })
    }
}

/// Links, rules, reserved addresses and records, a line each.
fn inventory() -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    let links = output("ip", &["-o", "link"])?;
    lines.extend(links.lines().filter_map(|line| line.split(": ").nth(1)).map(str::to_owned));
    let mut table = String::new();
    for line in output("nft", &["list", "ruleset"])?.lines() {
        if line.starts_with("table ") {
            line.clone_into(&mut table);
        }
        lines.insert(format!("{table} {}", line.trim()));
    }
    // Beside addresses and records there are locks, and what remembers who was last.
    let reserved = file_names(&Path::new("/var/lib/cni/networks").join(NETWORK));
    lines.extend(reserved.into_iter().filter(|name| name.parse::<IpAddr>().is_ok()));
    let records = file_names(&Path::new("/var/lib/cni/flatnet").join(NETWORK));
    lines.extend(records.into_iter().filter(|name| name.ends_with(".json")));
    Ok(lines)
}

fn file_names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Writable layers in memory over the host's directories, the runtimes' packages laid over its
/// programs, and kernel file systems that show these namespaces.
fn file_systems() -> Result<()> {
    let packages = e2e::workspace().canonicalize()?.join(PACKAGES);
    ensure!(
        packages.join("usr/bin/podman").exists(),
        "no podman in {}: run `cargo xtask runtimes`",
        packages.display()
    );
    let layers = "/run/layers";
    // Without -n, these two would leave a directory of mount's in the host's /run.
    command("mount", &["-n", "-t", "proc", "proc", "/proc"])?;
    command("mount", &["-n", "-t", "tmpfs", "tmpfs", "/run"])?;
    // First, since the work tree may lie below /tmp, and overlays stack only twice.
    for (part, place) in [("usr", "/usr"), ("lib", "/usr/lib")] {
        if packages.join(part).exists() {
            let options = format!("lowerdir={}/{part}:{place}", packages.display());
            command("mount", &["-t", "overlay", "overlay", "-o", &options, place])?;
        }
    }
    for directory in ["etc", "opt", "tmp", "var"] {
        let [upper, work] = ["upper", "work"].map(|part| format!("{layers}/{directory}-{part}"));
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&work)?;
        let options = format!("lowerdir=/{directory},upperdir={upper},workdir={work}");
        command("mount", &["-t", "overlay", "overlay", "-o", &options, &format!("/{directory}")])?;
    }
    command("mount", &["-t", "sysfs", "sysfs", "/sys"])?;
    // The hierarchies of the host may be of both versions; here is one, of this cgroup.
    command("mount", &["-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"])
}

/// As somebody would who replaces bridge, host-local, portmap, bandwidth, firewall and tuning.
fn configure() -> Result<()> {
    fs::create_dir_all("/etc/cni/net.d")?;
    fs::create_dir_all("/opt/cni/bin")?;
    for other in fs::read_dir("/etc/cni/net.d")?.flatten() {
        fs::remove_file(other.path())?;
    }
    fs::copy(e2e::program("flatnet-cni"), "/opt/cni/bin/flatnet")
        .context("no target/flatnet/flatnet-cni: run `./x build --release`")?;
    // The runtime of a kubelet calls this one for each pod, whatever the network is.
    fs::copy("/usr/lib/cni/loopback", "/opt/cni/bin/loopback")?;
    let list = json!({
        "cniVersion": "1.0.0",
        "name": NETWORK,
        "plugins": [{
            "type": "flatnet",
            "bridge": "cni0",
            "isGateway": true,
            "ipMasq": true,
            "mtu": 1450,
            "capabilities": { "portMappings": true, "bandwidth": true, "ips": true, "mac": true },
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": "10.99.0.0/24", "gateway": "10.99.0.1" }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    });
    fs::write(CONFIGURATION, list.to_string())?;
    Ok(())
}

/// Runs `work` while the machine has no network configuration. It comes back as the agent installs
/// it: renamed within its directory, which is what containerd's watch understands.
pub fn without_configuration<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let aside = format!("{CONFIGURATION}.aside");
    fs::rename(CONFIGURATION, &aside)?;
    let result = work();
    fs::rename(&aside, CONFIGURATION)?;
    result
}

fn wire_to_outside() -> Result<()> {
    let ip = |line: &str| command("ip", &line.split(' ').collect::<Vec<_>>());
    ip("link set lo up")?;
    ip(&format!("netns add {OUTSIDE}"))?;
    ip(&format!("link add wire type veth peer name eth0 netns {OUTSIDE}"))?;
    ip(&format!("address add {NODE}/24 dev wire"))?;
    ip("link set wire up")?;
    ip(&format!("-n {OUTSIDE} link set lo up"))?;
    ip(&format!("-n {OUTSIDE} address add {OUTSIDE_ADDRESS}/24 dev eth0"))?;
    ip(&format!("-n {OUTSIDE} link set eth0 up"))
}

/// Asks a web server from the machine outside, until it answers.
pub fn ask_from_outside(url: &str) -> Result<()> {
    let toolbox = e2e::program("flatnet-toolbox").display().to_string();
    eventually(url, GONE_DEADLINE, || {
        let ask = ["netns", "exec", OUTSIDE, &toolbox, "http", url, "--timeout-ms", "1000"];
        command("ip", &ask)
    })
}

/// Asks a web server from the machine itself, until it answers.
pub fn ask_from_here(url: &str) -> Result<()> {
    let toolbox = e2e::program("flatnet-toolbox").display().to_string();
    eventually(url, GONE_DEADLINE, || command(&toolbox, &["http", url, "--timeout-ms", "1000"]))
}

/// Runs a program.
pub fn command(program: &str, arguments: &[&str]) -> Result<()> {
    output(program, arguments).map(drop)
}

/// Runs a program and answers what it printed.
pub fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new("timeout")
        .args(["--signal=KILL", COMMAND_DEADLINE_S, program])
        .args(arguments)
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!(
            "`{program} {}` failed ({}): {}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
