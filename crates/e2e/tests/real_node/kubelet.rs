//! The kubelet's part on the machine: what the applied DaemonSet says becomes containers. Each has
//! a root of the host's `/usr` with our two programs, the mounts, environment and capabilities
//! that its specification has, and nothing else.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use e2e::cluster::Cluster;
use e2e::{eventually, program, workspace};
use serde_json::{Value, json};

use super::machine::{ADDRESS, Machine, NAME, write};

/// Where the manifests put everything.
pub const NAMESPACE: &str = "kube-system";
/// The label by which DaemonSets choose the machine alone.
pub const CHOSEN: &str = "e2e.flatnet.io/machine: only";
/// Where ServiceAccounts' tokens are in containers.
const TOKEN_DIRECTORY: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Sources of volumes that the kubelet makes, on the machine.
const VOLUMES: &str = "/run/containers/volumes";

/// Makes the Node, as a kubelet does when it starts, and waits for its range.
pub fn register(cluster: &Cluster) -> Result<String> {
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": NAME, "labels": { "e2e.flatnet.io/machine": "only" } },
    });
    cluster.apply(&node.to_string())?;
    // A kubelet that is never silent.
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": NAME, "namespace": "kube-node-lease" },
        "spec": {
            "holderIdentity": NAME,
            "leaseDurationSeconds": 40,
            "renewTime": "2100-01-01T00:00:00.000000Z",
        },
    });
    cluster.apply(&lease.to_string())?;
    let range = eventually("the Node has a range", e2e::cluster::READY, || {
        cluster.field("", "node", NAME, "/spec/podCIDR")
    })?;
    let path = format!("/api/v1/nodes/{NAME}/status");
    eventually("the Node has an address", e2e::cluster::READY, || {
        let mut node = cluster.get("", "node", NAME)?;
        node["status"]["addresses"] = json!([{ "type": "InternalIP", "address": ADDRESS }]);
        send(cluster, "replace", &path, &node)
    })?;
    Ok(range)
}

/// Sends an object to a path of the API: `create` is POST, `replace` PUT.
pub fn send(cluster: &Cluster, verb: &str, path: &str, object: &Value) -> Result<Value> {
    let file = workspace().join("target/tmp").join(format!("{}-request.json", cluster.name));
    fs::write(&file, object.to_string())?;
    let file = file.display().to_string();
    Ok(serde_json::from_str(&cluster.kubectl(&[verb, "--raw", path, "-f", &file])?)?)
}

/// The containers of a DaemonSet's pod on the machine.
pub struct Pod {
    specification: Value,
    running: BTreeMap<String, Child>,
}

impl Pod {
    /// Reads the DaemonSet, and makes the volumes of its pod: the ConfigMap, and a token of its
    /// ServiceAccount unless it wants none.
    pub fn prepare(cluster: &Cluster, machine: &Machine, daemon_set: &str) -> Result<Self> {
        let daemon_set = cluster.get(NAMESPACE, "daemonset", daemon_set)?;
        let specification = daemon_set["spec"]["template"]["spec"].clone();
        for volume in specification["volumes"].as_array().into_iter().flatten() {
            if let Some(name) = volume.pointer("/configMap/name").and_then(Value::as_str) {
                let map = cluster.get(NAMESPACE, "configmap", name)?;
                for (key, text) in map["data"].as_object().into_iter().flatten() {
                    let text = text.as_str().context("no text")?;
                    write(
                        machine,
                        &format!("{VOLUMES}/{}/{key}", text_at(volume, "/name")?),
                        text,
                    )?;
                }
            }
        }
        if has_token(&specification) {
            make_token(cluster, machine, &text_at(&specification, "/serviceAccountName")?)?;
        }
        Ok(Self { specification, running: BTreeMap::new() })
    }

    /// Runs its init containers to their ends. Answers what they said.
    pub fn initialize(&self, machine: &Machine) -> Result<String> {
        let containers = self.specification["initContainers"].as_array();
        containers
            .into_iter()
            .flatten()
            .map(|container| {
                let script = script(&self.specification, container, &image())?;
                let name = text_at(container, "/name")?;
                let output = machine.command(&isolated(&name, &script)).output()?;
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                ensure!(output.status.success(), "{}: {said}", container["name"]);
                Ok(said + &String::from_utf8_lossy(&output.stdout))
            })
            .collect()
    }

    /// Starts a container.
    pub fn start(&mut self, machine: &Machine, name: &str) -> Result<()> {
        let script = script(&self.specification, self.container(name)?, &image())?;
        let log = File::options().create(true).append(true).open(log_file(name))?;
        let mut command = machine.command(&isolated(name, &script));
        let child = command.stdout(log.try_clone()?).stderr(log).spawn()?;
        self.running.insert(name.to_owned(), child);
        Ok(())
    }

    /// Runs a container's startup probe in it, once.
    pub fn probe_start(&self, machine: &Machine, name: &str) -> Result<()> {
        let words = &self.container(name)?["startupProbe"]["exec"]["command"];
        let words: Vec<&str> =
            words.as_array().context("no probe")?.iter().filter_map(Value::as_str).collect();
        let target = self.process(name)?.to_string();
        let enter = ["nsenter", "--target", &target, "--mount", "--pid", "--root", "--"];
        machine.run(&[&enter[..], &words].concat()).map(drop)
    }

    /// The URL of a container's readiness probe.
    pub fn readiness(&self, name: &str) -> Result<String> {
        let probe = &self.container(name)?["readinessProbe"]["httpGet"];
        let (host, path) = (text_at(probe, "/host")?, text_at(probe, "/path")?);
        Ok(format!("http://{host}:{}{path}", probe["port"]))
    }

    fn container(&self, name: &str) -> Result<&Value> {
        let containers = self.specification["containers"].as_array().context("no containers")?;
        containers.iter().find(|one| one["name"] == name).context("no such container")
    }

    /// The process of a container, by its number on the host.
    pub fn process(&self, name: &str) -> Result<u32> {
        let parent = self.running.get(name).context("it does not run")?.id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
        let first = children.split_whitespace().next().context("it has no process")?;
        Ok(first.parse()?)
    }

    /// Signals a container's process and waits for its end.
    pub fn end(&mut self, name: &str, signal: &str) -> Result<()> {
        e2e::processes::signal(self.process(name)?.into(), signal)?;
        let mut child = self.running.remove(name).context("it does not run")?;
        eventually("the container ends", e2e::cluster::READY, || {
            child.try_wait()?.context("it runs").map(drop)
        })
    }

    /// Fails when a container has ended by itself.
    pub fn ensure_runs(&mut self, name: &str) -> Result<()> {
        let child = self.running.get_mut(name).context("it was not started")?;
        match child.try_wait()? {
            Some(status) => bail!("{name} ended: {status}"),
            None => Ok(()),
        }
    }

    /// What a container has said since the suite began.
    pub fn log(&self, name: &str) -> Result<String> {
        Ok(fs::read_to_string(log_file(name))?)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let names: Vec<String> = self.running.keys().cloned().collect();
        for name in names {
            let _ = self.end(&name, "KILL");
        }
    }
}

/// Empties what containers said in an earlier run.
pub fn clear_logs() -> Result<()> {
    fs::create_dir_all(workspace().join("target/tmp"))?;
    for name in ["agent", "dns"] {
        File::create(log_file(name))?;
    }
    Ok(())
}

fn log_file(container: &str) -> PathBuf {
    workspace().join("target/tmp").join(format!("real-{container}.log"))
}

/// The image's layer above `/usr`.
fn image() -> PathBuf {
    workspace().join("target/tmp/real-image")
}

/// Makes it, once: containers of a file system that changes below them would run what is not whole.
pub fn make_image() -> Result<()> {
    let layer = image();
    fs::create_dir_all(layer.join("bin"))?;
    fs::create_dir_all(layer.join("lib/modules"))?;
    for name in ["flatnet", "flatnet-cni", "flatnet-dnsworker"] {
        let target = layer.join("bin").join(name);
        let _ = fs::remove_file(&target);
        fs::copy(program(name), &target).with_context(|| format!("copying {name}"))?;
    }
    Ok(())
}

/// A cgroup and a process namespace, as each container has; its end is the end of all in it.
fn isolated<'a>(name: &'a str, script: &'a str) -> [&'a str; 5] {
    const ENTER: &str = "C=/sys/fs/cgroup/containers/$0; mkdir -p $C; echo $$ >$C/cgroup.procs
        exec unshare --mount --pid --cgroup --fork --kill-child sh -c \"$1\"";
    ["sh", "-c", ENTER, name, script]
}

/// What a runtime does before it executes a container's command.
fn script(pod: &Value, container: &Value, image: &std::path::Path) -> Result<String> {
    let root = format!("/run/containers/{}", text_at(container, "/name")?);
    let mut lines = vec![format!(
        "set -e; R={root}
mount --make-rprivate /
mkdir -p $R; mount -t tmpfs root $R; cd $R
mkdir usr proc sys dev tmp etc
mount -t overlay -o lowerdir={image}:/usr usr usr
for link in bin sbin lib lib64; do ln -s usr/$link $link; done
mount -t proc proc proc; mount --bind proc/sys proc/sys
B=proc/sys/kernel/random/boot_id; mount --bind /$B $B; mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup sys/fs/cgroup; mount -o remount,bind,ro sys/fs/cgroup
for device in null urandom; do touch dev/$device; mount --bind /dev/$device dev/$device; done
cp /etc/resolv.conf etc/",
        image = image.display(),
    )];
    let mounts = container["volumeMounts"].as_array().context("no mounts")?;
    for mount in mounts {
        let (name, path) = (text_at(mount, "/name")?, text_at(mount, "/mountPath")?);
        lines.push(bind(&source(pod, &name)?, &path, mount["readOnly"] == true));
    }
    // As the API server's admission adds it, where nothing else is mounted there.
    if has_token(pod) && !mounts.iter().any(|mount| mount["mountPath"] == TOKEN_DIRECTORY) {
        lines.push(bind(&format!("{VOLUMES}/token"), TOKEN_DIRECTORY, true));
    }
    let security = &container["securityContext"];
    ensure!(security["capabilities"]["drop"] == json!(["ALL"]), "it keeps what runtimes give");
    ensure!(security["runAsUser"] == 0 && security["privileged"] == false, "{security}");
    ensure!(security["allowPrivilegeEscalation"] == false, "{security}");
    if security["readOnlyRootFilesystem"] == true {
        lines.push("mount -o remount,ro $R".into());
    }
    let added = security["capabilities"]["add"].as_array().context("no capabilities")?;
    let added: Vec<String> = added
        .iter()
        .filter_map(|name| name.as_str().map(|name| format!(",+{}", name.to_lowercase())))
        .collect();
    lines.push(format!(
        "exec chroot $R env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin {} \\
setpriv --bounding-set=-all{} --inh-caps=-all --no-new-privs -- {}",
        environment(container)?,
        added.concat(),
        words(container)?,
    ));
    Ok(lines.join("\n"))
}

/// Makes the volume with a token of a ServiceAccount.
fn make_token(cluster: &Cluster, machine: &Machine, account: &str) -> Result<()> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token");
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": { "expirationSeconds": 3600 },
    });
    let answer = send(cluster, "create", &path, &request)?;
    let token = text_at(&answer, "/status/token")?;
    write(machine, &format!("{VOLUMES}/token/token"), &token)?;
    let authority = format!("/var/lib/flatnet/{}/pki/ca.crt", cluster.name);
    let authority = fs::read_to_string(&authority).with_context(|| authority)?;
    write(machine, &format!("{VOLUMES}/token/ca.crt"), &authority)
}

fn has_token(pod: &Value) -> bool {
    pod["automountServiceAccountToken"] != false
}

/// Where a volume is on the machine.
fn source(pod: &Value, name: &str) -> Result<String> {
    let volumes = pod["volumes"].as_array().context("no volumes")?;
    let volume = volumes.iter().find(|volume| volume["name"] == name).context("no such volume")?;
    let path = volume.pointer("/hostPath/path").and_then(Value::as_str);
    Ok(match path {
        // Runtimes make it; here it would be made on the host.
        Some(path) if path.starts_with("/lib") && !fs::exists(path)? => format!("{VOLUMES}/none"),
        Some(path) => path.to_owned(),
        None => format!("{VOLUMES}/{name}"),
    })
}

fn bind(source: &str, path: &str, read_only: bool) -> String {
    let inside = path.trim_start_matches('/');
    let remount = if read_only { "; mount -o remount,bind,ro $M" } else { "" };
    format!("M={inside}; mkdir -p {source} $M; mount --bind {source} $M{remount}")
}

fn environment(container: &Value) -> Result<String> {
    let given = container["env"].as_array();
    let pairs = given.into_iter().flatten().map(|variable| {
        let field = text_at(variable, "/valueFrom/fieldRef/fieldPath")?;
        ensure!(field == "spec.nodeName", "{variable}");
        Ok(format!("{}={NAME} ", text_at(variable, "/name")?))
    });
    pairs.collect()
}

/// The command and its arguments, with `$(NAME)` replaced as the kubelet does.
fn words(container: &Value) -> Result<String> {
    let mut text = String::new();
    for key in ["command", "args"] {
        for word in container[key].as_array().into_iter().flatten() {
            let word = word.as_str().context("no text")?.replace("$(NODE_NAME)", NAME);
            text.push_str(&format!("'{word}' "));
        }
    }
    Ok(text)
}

fn text_at(value: &Value, pointer: &str) -> Result<String> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    Ok(found.with_context(|| format!("no {pointer} in {value}"))?.to_owned())
}

/// A request with the agent's own token, from the host. Answers the status code.
pub fn ask_with_token(
    cluster: &Cluster,
    machine: &Machine,
    server: &str,
    request: (&str, &str, &str),
) -> Result<u16> {
    let (method, path, body) = request;
    let token = fs::read_to_string(machine.file(&format!("{VOLUMES}/token/token")))?;
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let output = Command::new("curl")
        .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10", "-X", method])
        .args(["--cacert", &format!("/var/lib/flatnet/{}/pki/ca.crt", cluster.name)])
        .args(["-H", &format!("Authorization: Bearer {token}")])
        .args(["-H", &format!("Content-Type: {kind}"), "-d", body, &format!("{server}{path}")])
        .stdin(Stdio::null())
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}
