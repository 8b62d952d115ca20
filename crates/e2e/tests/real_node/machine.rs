//! A machine that is none of the cluster's: a network namespace on the node network, and places of
//! its own for what a node keeps under default paths.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, READY, text_of};
use e2e::{eventually, program};

/// Its name in the API, and what its namespace is called after.
pub const NAME: &str = "worker";
/// Its address on the node network.
pub const ADDRESS: &str = "172.29.76.200";

/// The cgroup of version 2 that is the machine's outermost.
const CGROUP: &str = "flatnet-e2e-worker";

/// What a machine of its own looks like to the programs on it. Nothing reaches the host. Its first
/// process enters its cgroup before it makes a namespace of it. Without `-n`, mount would leave a
/// directory in the host's `/run`.
const ENTER_CGROUP: &str = "set -e
mount --make-rslave /
mount -n -t tmpfs -o mode=755,nosuid,nodev node /run
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /sys/fs/cgroup/$0
echo $$ >/sys/fs/cgroup/$0/cgroup.procs
umount /sys/fs/cgroup
exec unshare --cgroup sh -c \"$1\"";
const ARRANGE: &str = "set -e
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf -o mode=700 bpf /sys/fs/bpf
mkdir /run/netns
for place in etc opt var/lib; do
  mkdir -p /run/overlay/$place/upper /run/overlay/$place/work
  mount -t overlay -o lowerdir=/$place,upperdir=/run/overlay/$place/upper,workdir=/run/overlay/$place/work node /$place
done
mkdir -p /var/lib/cni /var/lib/flatnet /etc/cni/net.d /opt/cni/bin
for place in /var/lib/cni /var/lib/flatnet /etc/cni/net.d /opt/cni/bin; do
  mount -t tmpfs -o mode=755 node $place
done
hostname worker
echo ready
exec cat";

/// All that flatnet could leave behind. Kernel parameters stay as they are, and so do directories
/// that the kubelet makes for mounts, what a container runtime keeps of results, and iptables' lock.
const EVERYTHING: &str = "\
ip -o link | sed -E 's/^[0-9]+: //; s/qlen.*//'
ip -o address | sed -E 's/^[0-9]+: //; s/valid_lft.*//'
ip route show table all; ip -6 route show table all
ip rule; ip -6 rule
ip neigh show nud permanent
bridge fdb show | grep -v permanent
tc qdisc show
nft list ruleset
iptables-legacy-save 2>/dev/null | grep '^-A'
ip netns list
find /etc/cni /opt/cni /var/lib/cni /var/lib/flatnet /run /sys/fs/bpf -not -path '/run/overlay*' -not -path '/run/containers*' -not -path '/var/lib/cni/results*' -not -name xtables.lock -not -type d
true";

/// The machine. It goes away with the value.
pub struct Machine {
    namespace: String,
    network: String,
    holder: Child,
}

impl Machine {
    /// Plugs one into a cluster's node network.
    pub fn start(cluster: &Cluster, gateway: &str) -> Result<Self> {
        let namespace = format!("{}-{NAME}", cluster.name);
        let network = format!("{}-net", cluster.name);
        let _ = ip(&["netns", "delete", &namespace]);
        ip(&["netns", "add", &namespace])?;
        let holder = Command::new("ip")
            .args(["netns", "exec", &namespace, "unshare", "--mount", "--uts"])
            .args(["sh", "-c", ENTER_CGROUP, CGROUP, ARRANGE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut machine = Self { namespace, network, holder };
        machine.wait()?;
        let (inside, network) = (&machine.namespace, &machine.network);
        for command in [
            format!("-n {network} link add {NAME} type veth peer name eth0 netns {inside}"),
            format!("-n {network} link set {NAME} master nodes up"),
            format!("-n {inside} link set lo up"),
            format!("-n {inside} link set eth0 up"),
            format!("-n {inside} address add {ADDRESS}/24 dev eth0"),
            format!("-n {inside} route add default via {gateway}"),
        ] {
            ip(&command.split(' ').collect::<Vec<_>>())?;
        }
        eventually("its addresses are in use", READY, || {
            let text = machine.run(&["ip", "-6", "address", "show", "dev", "eth0"])?;
            ensure!(text.contains("fe80:") && !text.contains("tentative"), "{text}");
            Ok(())
        })?;
        Ok(machine)
    }

    fn wait(&mut self) -> Result<()> {
        let mut line = String::new();
        BufReader::new(self.holder.stdout.take().context("no stdout")?).read_line(&mut line)?;
        let mut reason = String::new();
        if line.trim() != "ready" {
            self.holder.stderr.take().context("no stderr")?.read_to_string(&mut reason)?;
        }
        ensure!(reason.is_empty() && line.trim() == "ready", "no machine: {reason}");
        Ok(())
    }

    /// A command that will run there.
    pub fn command(&self, words: &[&str]) -> Command {
        const ENTER: &str = "echo $$ >/proc/$0/root/sys/fs/cgroup/cgroup.procs &&
            exec nsenter --net --mount --uts --cgroup --target $0 -- \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", ENTER, &self.holder.id().to_string()]).args(words);
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    /// Runs a command there, whatever comes of it.
    pub fn output(&self, words: &[&str]) -> Result<Output> {
        self.command(words).output().with_context(|| words.join(" "))
    }

    /// Runs a command there and answers its standard output.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        text_of(self.output(words)?).with_context(|| words.join(" "))
    }

    /// The same for a line of shell.
    pub fn shell(&self, line: &str) -> Result<String> {
        self.run(&["sh", "-c", line])
    }

    /// The same for `flatnet`.
    pub fn flatnet(&self, words: &[&str]) -> Result<String> {
        text_of(self.flatnet_output(words)?).with_context(|| words.join(" "))
    }

    /// The same for `flatnet`, whatever comes of it.
    pub fn flatnet_output(&self, words: &[&str]) -> Result<Output> {
        let program = program("flatnet").display().to_string();
        let all: Vec<&str> = [program.as_str()].into_iter().chain(words.iter().copied()).collect();
        self.output(&all)
    }

    /// Its network namespace.
    pub fn network_namespace(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.namespace)
    }

    /// A file of the machine, as a path of the host.
    pub fn file(&self, path: &str) -> String {
        format!("/proc/{}/root{path}", self.holder.id())
    }

    /// All that flatnet could leave behind, a line each.
    pub fn everything(&self) -> Result<String> {
        let text = self.shell(EVERYTHING)?;
        ensure!(text.lines().count() > 10, "the machine said too little: {text}");
        Ok(text)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
        let _ = ip(&["-n", &self.network, "link", "delete", NAME]);
        let _ = ip(&["netns", "delete", &self.namespace]);
        if let Err(error) = eventually("its cgroup is empty", READY, remove_cgroup) {
            eprintln!("the machine's cgroup stays: {error:#}");
        }
    }
}

/// Removes the machine's cgroup with those of its containers. The host may have no mount of them.
fn remove_cgroup() -> Result<()> {
    const REMOVE: &str = "mount -n -t cgroup2 cgroup /sys/fs/cgroup
        cd /sys/fs/cgroup && find $0 -depth -type d -exec rmdir {} +";
    let words = ["--mount", "sh", "-c", REMOVE, CGROUP];
    text_of(Command::new("unshare").args(words).output()?).map(drop)
}

/// Runs `ip` on the host.
fn ip(arguments: &[&str]) -> Result<String> {
    let output = Command::new("ip").args(arguments).output().context("starting ip")?;
    text_of(output).with_context(|| format!("ip {}", arguments.join(" ")))
}

/// Writes a file of the machine.
pub fn write(machine: &Machine, path: &str, text: &str) -> Result<()> {
    let target = machine.file(path);
    if let Some((directory, _)) = target.rsplit_once('/') {
        fs::create_dir_all(directory)?;
    }
    fs::write(&target, text).with_context(|| target)
}
