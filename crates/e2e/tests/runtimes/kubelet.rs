//! containerd as a kubelet uses it: sandboxes, containers in them, host ports, annotations.

use anyhow::{Context, Result, ensure};
use e2e::eventually;

use crate::containerd::SOCKET;
use crate::cri::{Cri, PodOptions};
use crate::machine::{
    GONE_DEADLINE, Machine, NODE, ask_from_here, ask_from_outside, command, output,
    without_configuration,
};

/// A pod with a web server. It is removed with the value too, when a test fails.
struct Pod<'a> {
    cri: &'a Cri,
    sandbox: String,
    container: String,
    address: String,
}

impl<'a> Pod<'a> {
    fn start(cri: &'a Cri, name: &str, options: PodOptions) -> Result<Self> {
        let sandbox = cri.run_sandbox(name, options)?;
        let mut pod = Self { cri, sandbox, container: String::new(), address: String::new() };
        pod.address = cri.address(&pod.sandbox)?;
        pod.container = cri.run_container(name, &pod.sandbox, &["serve", "--http", "8080"])?;
        Ok(pod)
    }

    fn ask(&self, url: &str) -> Result<()> {
        eventually(url, GONE_DEADLINE, || {
            let (code, text) =
                self.cri.exec(&self.container, &["http", url, "--timeout-ms", "1000"])?;
            ensure!(code == 0, "exit code {code}: {text}");
            Ok(())
        })
    }

    fn remove(self) -> Result<()> {
        self.cri.stop_sandbox(&self.sandbox)?;
        self.cri.remove_sandbox(&self.sandbox)
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        // Gone already, unless the test failed.
        let _ = self.cri.stop_sandbox(&self.sandbox);
        let _ = self.cri.remove_sandbox(&self.sandbox);
    }
}

/// The address that the runtime tells the kubelet is where the pod answers.
pub fn two_pods(machine: &Machine) -> Result<()> {
    let cri = Cri::new(SOCKET)?;
    let one = Pod::start(&cri, "one", PodOptions::default())?;
    let two = Pod::start(&cri, "two", PodOptions::default())?;
    ensure!(one.address != two.address, "both have {}", one.address);
    one.ask(&format!("http://{}:8080/", two.address))?;
    two.ask(&format!("http://{}:8080/", one.address))?;
    ask_from_here(&format!("http://{}:8080/", two.address))?;
    one.remove()?;
    two.remove()?;
    machine.ensure_empty()
}

/// The pod's hostPort, by portMappings.
pub fn host_port(machine: &Machine) -> Result<()> {
    let cri = Cri::new(SOCKET)?;
    let options = PodOptions { host_ports: &[(18081, 8080)], ..PodOptions::default() };
    let pod = Pod::start(&cri, "exposed", options)?;
    let other = Pod::start(&cri, "other", PodOptions::default())?;
    ask_from_outside(&format!("http://{NODE}:18081/"))?;
    ask_from_here(&format!("http://{NODE}:18081/"))?;
    other.ask(&format!("http://{NODE}:18081/"))?;
    pod.remove()?;
    other.remove()?;
    machine.ensure_empty()
}

/// `kubernetes.io/ingress-bandwidth` and `egress-bandwidth` end as rates at the pod's link. How
/// exact they are is the plugin's own test.
pub fn bandwidth(machine: &Machine) -> Result<()> {
    let cri = Cri::new(SOCKET)?;
    let annotations =
        [("kubernetes.io/ingress-bandwidth", "8M"), ("kubernetes.io/egress-bandwidth", "4M")];
    let options = PodOptions { annotations: &annotations, ..PodOptions::default() };
    let pod = Pod::start(&cri, "limited", options)?;
    let disciplines = output("tc", &["qdisc", "show"])?;
    for rate in ["rate 8Mbit", "rate 4Mbit"] {
        ensure!(disciplines.contains(rate), "{rate} is not in\n{disciplines}");
    }
    let free = Pod::start(&cri, "free", PodOptions::default())?;
    free.ask(&format!("http://{}:8080/", pod.address))?;
    free.remove()?;
    pod.remove()?;
    machine.ensure_empty()
}

/// A kubelet repeats its calls, and a pod's first process may die before them.
pub fn stopping(machine: &Machine) -> Result<()> {
    let cri = Cri::new(SOCKET)?;
    let pod = Pod::start(&cri, "stopped", PodOptions::default())?;
    cri.stop_sandbox(&pod.sandbox)?;
    machine.ensure_empty().context("after the first stop")?;
    cri.stop_sandbox(&pod.sandbox).context("the second stop")?;
    pod.remove()?;
    machine.ensure_empty()?;

    let pod = Pod::start(&cri, "killed", PodOptions::default())?;
    let tasks = output("ctr", &["--address", SOCKET, "--namespace", "k8s.io", "tasks", "list"])?;
    let line = tasks.lines().find(|line| line.starts_with(&pod.sandbox)).context("the sandbox")?;
    let process = line.split_whitespace().nth(1).context("its process")?;
    command("kill", &["-KILL", process])?;
    pod.remove()?;
    machine.ensure_empty()?;
    ensure!(cri.sandboxes()?.is_empty(), "no sandbox is left");
    Ok(())
}

/// What makes the kubelet report the node NotReady, and Ready again with the file.
pub fn readiness(_: &Machine) -> Result<()> {
    let cri = Cri::new(SOCKET)?;
    let wait_for = |wanted: bool| {
        eventually("the network's condition", GONE_DEADLINE, || {
            let (ready, message) = cri.network_ready()?;
            ensure!(ready == wanted, "ready: {ready} {message}");
            Ok(())
        })
    };
    wait_for(true)?;
    without_configuration(|| wait_for(false))?;
    wait_for(true)
}
