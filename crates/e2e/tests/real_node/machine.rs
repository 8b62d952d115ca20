//! A machine that is none of the cluster's: a network namespace on the node network, and places of
//! its own for what a node keeps under default paths. It can start anew: then it has its network card
//! and its disk, nothing else, and another boot id.

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, READY, text_of};
use e2e::{eventually, program, workspace};

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
exec unshare --cgroup sh -c \"$1\" \"$2\"";
/// Its argument is the machine's disk.
const ARRANGE: &str = "set -e
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf -o mode=700 bpf /sys/fs/bpf
mkdir /run/netns /run/disk
mount -n --bind $0 /run/disk
for place in etc opt var/lib; do
  mkdir -p /run/overlay/$place/upper /run/overlay/$place/work
  mount -t overlay -o lowerdir=/$place,upperdir=/run/overlay/$place/upper,workdir=/run/overlay/$place/work node /$place
done
for place in /var/lib/cni /var/lib/flatnet /etc/cni/net.d /opt/cni/bin; do
  mkdir -p $place /run/disk$place
  mount -n --bind /run/disk$place $place
done
umount -n /run/disk
cat /proc/sys/kernel/random/uuid >/run/boot_id
mount -n --bind /run/boot_id /proc/sys/kernel/random/boot_id
hostname worker
echo ready
exec cat";

/// All that flatnet could leave behind. Kernel parameters stay as they are, and so do directories
/// that the kubelet makes for mounts, what a container runtime keeps of results, and iptables' lock.
/// The number of the other end of its network card is another one after each start.
const EVERYTHING: &str = "\
ip -o link | sed -E 's/^[0-9]+: //; s/@if[0-9]+//; s/qlen.*//'
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
    gateway: String,
    disk: PathBuf,
    holder: RefCell<Child>,
}

impl Machine {
    /// Plugs one into a cluster's node network.
    pub fn start(cluster: &Cluster, gateway: &str) -> Result<Self> {
        let namespace = format!("{}-{NAME}", cluster.name);
        let disk = workspace().join("target/tmp").join(format!("{namespace}-disk"));
        let _ = fs::remove_dir_all(&disk);
        fs::create_dir_all(&disk)?;
        let disk = disk.canonicalize()?;
        let holder = RefCell::new(first_process(&namespace, &disk)?);
        let network = format!("{}-net", cluster.name);
        let machine = Self { namespace, network, gateway: gateway.to_owned(), disk, holder };
        machine.plug_in("")?;
        Ok(machine)
    }

    /// All that runs on it ends at once, and it starts anew.
    pub fn reboot(&self) -> Result<()> {
        let link = self.run(&["ip", "-o", "link", "show", "eth0"])?;
        let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
        let card = words.nth(1).with_context(|| link.clone())?;
        self.power_off();
        *self.holder.borrow_mut() = first_process(&self.namespace, &self.disk)?;
        self.plug_in(&format!(" address {card}"))
    }

    /// Connects it, by a new network card or the one that it had.
    fn plug_in(&self, card: &str) -> Result<()> {
        wait(&mut self.holder.borrow_mut())?;
        let Self { namespace: inside, network, gateway, .. } = self;
        for command in [
            format!("-n {network} link add {NAME} type veth peer name eth0{card} netns {inside}"),
            format!("-n {network} link set {NAME} master nodes up"),
            format!("-n {inside} link set lo up"),
            format!("-n {inside} link set eth0 up"),
            format!("-n {inside} address add {ADDRESS}/24 dev eth0"),
            format!("-n {inside} route add default via {gateway}"),
        ] {
            ip(&command.split(' ').collect::<Vec<_>>())?;
        }
        eventually("its addresses are in use", READY, || {
            let text = self.run(&["ip", "-6", "address", "show", "dev", "eth0"])?;
            ensure!(text.contains("fe80:") && !text.contains("tentative"), "{text}");
            Ok(())
        })
    }

    fn power_off(&self) {
        let mut holder = self.holder.borrow_mut();
        drop(holder.stdin.take());
        let _ = holder.wait();
        let _ = ip(&["-n", &self.network, "link", "delete", NAME]);
        let _ = ip(&["netns", "delete", &self.namespace]);
        if let Err(error) = eventually("its cgroup is empty", READY, remove_cgroup) {
            eprintln!("the machine's cgroup stays: {error:#}");
        }
    }

    /// A command that will run there.
    pub fn command(&self, words: &[&str]) -> Command {
        const ENTER: &str = "echo $$ >/proc/$0/root/sys/fs/cgroup/cgroup.procs &&
            exec nsenter --net --mount --uts --cgroup --target $0 -- \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", ENTER, &self.holder.borrow().id().to_string()]).args(words);
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
        format!("/proc/{}/root{path}", self.holder.borrow().id())
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
        self.power_off();
        let _ = fs::remove_dir_all(&self.disk);
    }
}

/// Makes its namespaces. They go with the process, whose input is to be closed then.
fn first_process(namespace: &str, disk: &Path) -> Result<Child> {
    let _ = ip(&["netns", "delete", namespace]);
    ip(&["netns", "add", namespace])?;
    let holder = Command::new("ip")
        .args(["netns", "exec", namespace, "unshare", "--mount", "--uts"])
        .args(["sh", "-c", ENTER_CGROUP, CGROUP, ARRANGE])
        .arg(disk)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    Ok(holder)
}

/// Waits until it has arranged its places.
fn wait(holder: &mut Child) -> Result<()> {
    let mut line = String::new();
    BufReader::new(holder.stdout.take().context("no stdout")?).read_line(&mut line)?;
    let mut reason = String::new();
    if line.trim() != "ready" {
        holder.stderr.take().context("no stderr")?.read_to_string(&mut reason)?;
    }
    ensure!(reason.is_empty() && line.trim() == "ready", "no machine: {reason}");
    Ok(())
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
