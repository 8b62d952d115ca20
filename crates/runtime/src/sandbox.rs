//! A pod's sandbox: its network namespace, its attachment to the network, its pause process.

use std::fs;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use netlink::Netns;
use pause::SandboxSpec;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::cni::{self, Attachment};
use crate::context::Context;
use crate::disk::{self, PodDirectory};
use crate::pause_client;
use crate::pod::Pod;
use crate::pod_files::{self, Resolver};
use crate::security;

/// Longest start of a pause process, seconds.
const START_TIMEOUT_S: u64 = 10;
/// Longest name of a node or a pod that the kernel takes, bytes (`HOST_NAME_MAX`).
const MAX_HOSTNAME_BYTES: usize = 64;
/// How often the groups of ended processes are tried to be removed, and the wait between,
/// milliseconds: the kernel takes a moment to let go of them.
const REMOVE_ATTEMPTS: u32 = 50;
const REMOVE_WAIT_MS: u64 = 10;

/// Makes a sandbox. What was made is removed again when a step fails.
///
/// # Errors
/// For people: the step and the reason.
pub async fn create(context: &Context, pod: &Pod) -> Result<Vec<IpAddr>, String> {
    let directory = context.pod_directory(&pod.metadata.uid);
    // What an earlier attempt of a killed runtime has left.
    remove(context, pod).await?;
    match try_create(context, pod, &directory).await {
        Ok(addresses) => Ok(addresses),
        Err(message) => match remove(context, pod).await {
            Ok(()) => Err(message),
            Err(second) => Err(format!("{message}; and what was made is not removed: {second}")),
        },
    }
}

/// Removes a sandbox, whatever there is of it. Can be repeated.
///
/// # Errors
/// For people; to be tried again.
pub async fn remove(context: &Context, pod: &Pod) -> Result<(), String> {
    let directory = context.pod_directory(&pod.metadata.uid);
    pause_client::kill(&directory.socket()).await?;
    let _ = fs::remove_file(directory.socket());
    if let Some(attachment) = disk::read_json::<Attachment>(&directory.attachment()) {
        context.cni.delete(&attachment).await?;
        fs::remove_file(directory.attachment()).map_err(|error| {
            format!("cannot remove {}: {error}", directory.attachment().display())
        })?;
    }
    Netns::delete_at(&directory.namespace()).map_err(|error| error.to_string())?;
    for _ in 0..REMOVE_ATTEMPTS {
        context.cgroups.end_pod(&pod.metadata.uid);
        if context.cgroups.remove_pod(&pod.metadata.uid) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(REMOVE_WAIT_MS)).await;
    }
    Err(format!("cgroups of pod {} are still in use", pod.metadata.uid))
}

async fn try_create(
    context: &Context,
    pod: &Pod,
    directory: &PodDirectory,
) -> Result<Vec<IpAddr>, String> {
    security::check_users(pod)?;
    disk::make_private(&directory.shared_memory())?;
    let addresses = if pod.spec.host_network {
        context.options.node_addresses.clone()
    } else {
        add_network(context, pod, directory).await?
    };
    write_files(context, pod, directory, &addresses)?;
    start_pause(context, pod, directory).await?;
    Ok(addresses)
}

async fn add_network(
    context: &Context,
    pod: &Pod,
    directory: &PodDirectory,
) -> Result<Vec<IpAddr>, String> {
    let configuration = context.cni.configuration()?.ok_or_else(|| {
        format!(
            "network is not ready: no CNI configuration in {} yet; the node's agent writes it",
            context.cni.configuration_directory.display()
        )
    })?;
    Netns::create_at(&directory.namespace()).map_err(|error| error.to_string())?;
    let metadata = &pod.metadata;
    let attachment = Attachment {
        id: random_id()?,
        namespace: directory.namespace(),
        pod: [metadata.namespace.clone(), metadata.name.clone(), metadata.uid.clone()],
        configuration: configuration.document().clone(),
        capabilities: cni::capabilities(pod)?,
    };
    context.cni.add(&attachment, &directory.attachment()).await
}

/// An identity never used before: the plugin keys its state by it.
fn random_id() -> Result<String, String> {
    let read = || fs::read_to_string("/proc/sys/kernel/random/uuid");
    let text = read().and_then(|one| Ok(one + &read()?)).map_err(|error| error.to_string())?;
    Ok(text.chars().filter(char::is_ascii_hexdigit).collect())
}

fn write_files(
    context: &Context,
    pod: &Pod,
    directory: &PodDirectory,
    addresses: &[IpAddr],
) -> Result<(), String> {
    let options = &context.options;
    let node = |path| fs::read_to_string(path).unwrap_or_default();
    let resolv_conf = node("/etc/resolv.conf");
    let resolver = Resolver {
        cluster_dns: &options.cluster_dns,
        cluster_domain: &options.cluster_domain,
        node: &resolv_conf,
    };
    let hostname = pod.hostname(&options.node_name, &options.cluster_domain);
    let etc = directory.state.join("etc");
    disk::make_private(&etc)?;
    let files = [
        ("hosts", pod_files::hosts(pod, addresses, &options.cluster_domain, &node("/etc/hosts"))),
        ("hostname", format!("{hostname}\n")),
        ("resolv.conf", pod_files::resolv_conf(pod, &resolver)),
    ];
    for (name, text) in files {
        // In place: containers of the pod have this very file bound into theirs.
        let path = etc.join(name);
        fs::write(&path, text)
            .and_then(|()| {
                fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644))
            })
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(())
}

async fn start_pause(context: &Context, pod: &Pod, directory: &PodDirectory) -> Result<(), String> {
    let host_network = pod.spec.host_network;
    let options = &context.options;
    let hostname = pod.hostname(&options.node_name, &options.cluster_domain);
    if hostname.len() > MAX_HOSTNAME_BYTES {
        return Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {hostname} is \
             too long ({MAX_HOSTNAME_BYTES} characters is the max, {} characters requested)",
            hostname.len()
        ));
    }
    let spec = SandboxSpec {
        socket: directory.socket(),
        hostname,
        network_namespace: (!host_network).then(|| directory.namespace()),
        node_processes: pod.spec.host_pid,
        shared_memory: (!pod.spec.host_ipc).then(|| directory.shared_memory()),
        cgroups: context.cgroups.create_pod(&pod.metadata.uid, context.options.pod_process_limit),
        sysctls: security::sysctls(pod),
    };
    let text = serde_json::to_vec(&spec).map_err(|error| error.to_string())?;
    let program = &context.options.pause_binary;
    let failed = |problem: String| format!("cannot start {}: {problem}", program.display());
    let mut child = Command::new(program)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let stdin = child.stdin.take();
    let exchange = async {
        if let Some(mut stdin) = stdin {
            stdin.write_all(&text).await?;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(Duration::from_secs(START_TIMEOUT_S), exchange)
        .await
        .map_err(|_| failed(format!("not ready within {START_TIMEOUT_S} s")))?
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}
