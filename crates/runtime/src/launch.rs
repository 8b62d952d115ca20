//! One start of a container: from the pod's spec to what the pause process is told.

use std::fs::{File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pause::{Bind, ContainerSpec};

use crate::disk::{self, PodDirectory};
use crate::environment::{self, Sources};
use crate::images::{Chosen, Identity, Images};
use crate::logs;
use crate::machine::StartFailure;
use crate::pod::{Container, Pod};
use crate::volumes;

/// Bytes of one log file; one older file is kept beside it (kubelet's `containerLogMaxSize`).
const LOG_LIMIT_BYTES: u64 = 10 << 20;
/// How readily the kernel ends a container for want of memory: more readily than the node's own.
const OOM_SCORE_ADJUST: i32 = 500;

/// Capabilities by number, in the order of `linux/capability.h`, as far as a pod may have them.
const CAPABILITIES: [(&str, u32); 14] = [
    ("CHOWN", 0),
    ("DAC_OVERRIDE", 1),
    ("FOWNER", 3),
    ("FSETID", 4),
    ("KILL", 5),
    ("SETGID", 6),
    ("SETUID", 7),
    ("SETPCAP", 8),
    ("NET_BIND_SERVICE", 10),
    ("NET_ADMIN", 12),
    ("NET_RAW", 13),
    ("SYS_CHROOT", 18),
    ("SETFCAP", 31),
    ("IPC_LOCK", 14),
];
/// Capabilities that a pod has only when it asks: each acts on the pod's own namespaces alone.
const ON_REQUEST: [&str; 2] = ["NET_ADMIN", "IPC_LOCK"];

/// Which start of which container.
pub struct Start<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container.
    pub container: &'a Container,
    /// Its identity.
    pub id: &'a str,
    /// How often it was started before.
    pub restarts: u32,
    /// What it is made of.
    pub image: &'a Chosen,
    /// `cgroup.procs` files to enter.
    pub cgroups: Vec<PathBuf>,
}

/// Lays out the container's directories and says how to start it.
///
/// # Errors
/// Why it cannot be started, sorted by what the pod's status shows.
pub fn prepare(
    start: &Start<'_>,
    directory: &PodDirectory,
    images: &Images,
    sources: &Sources,
) -> Result<ContainerSpec, StartFailure> {
    let (pod, container) = (start.pod, start.container);
    let image = start.image;
    let config = StartFailure::Config;
    let variables = environment::environment(pod, container, sources).map_err(config)?;
    check_user(pod, container, image).map_err(config)?;
    let identity = identity(pod, container, image, images).map_err(config)?;
    let capabilities = capabilities(container).map_err(config)?;
    let mut binds = volumes::binds(pod, container, directory).map_err(config)?;
    let expand = |texts: &[String]| -> Vec<String> {
        texts.iter().map(|text| environment::expand(text, &variables)).collect()
    };
    let (entry_point, default_arguments) =
        (image.config.entrypoint.clone(), image.config.cmd.clone());
    // A pod's command replaces the image's arguments as well.
    let mut arguments = match (container.command.is_empty(), container.args.is_empty()) {
        (true, true) => [entry_point, default_arguments].concat(),
        (true, false) => [entry_point, expand(&container.args)].concat(),
        (false, _) => [expand(&container.command), expand(&container.args)].concat(),
    };
    if arguments.is_empty() {
        return Err(StartFailure::Run("no command specified".into()));
    }
    arguments.truncate(MAX_ARGUMENTS);
    let layers = directory.layers(&container.name, start.restarts);
    disk::remove_tree(&layers).map_err(StartFailure::Run)?;
    let root = layers.join("mount");
    disk::make_private(&root).map_err(StartFailure::Run)?;
    let overlays = images.overlays(image, &layers).map_err(StartFailure::Run)?;
    binds.push(last_words_file(container, &layers).map_err(StartFailure::Run)?);
    let mut all = environment::of_image(pod, &image.config.env);
    all.extend(variables);
    let home = if identity.home.is_empty() { "/" } else { identity.home.as_str() };
    all.entry("HOME".to_owned()).or_insert_with(|| home.to_owned());
    let environment = all.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let own_directory = image.config.working_dir.as_str();
    let directories = [container.working_dir.as_str(), own_directory, "/"];
    let working_directory = directories.into_iter().find(|path| !path.is_empty());
    Ok(ContainerSpec {
        name: container.name.clone(),
        id: start.id.to_owned(),
        root,
        overlays,
        binds,
        read_only_root: container.security_context.read_only_root_filesystem.unwrap_or(false),
        arguments,
        environment,
        working_directory: working_directory.unwrap_or("/").to_owned(),
        user: identity.user,
        group: identity.group,
        groups: identity.groups,
        capabilities,
        cgroups: start.cgroups.clone(),
        oom_score_adjust: OOM_SCORE_ADJUST,
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        terminal: container.tty,
        log_file: directory.log(&container.name, start.restarts),
        log_limit_bytes: LOG_LIMIT_BYTES,
        exit_file: directory.exit(&container.name, start.restarts),
    })
}

/// What a container that ended with `code` wrote to its `terminationMessagePath`, or, where its
/// policy says so, last to its log; empty when nothing.
pub fn last_words(
    directory: &PodDirectory,
    container: &Container,
    restarts: u32,
    code: i32,
) -> String {
    let mut text = Vec::new();
    let path = directory.layers(&container.name, restarts).join(LAST_WORDS);
    // A file that is not there says nothing.
    let _ =
        File::open(path).and_then(|file| file.take(LAST_WORDS_LIMIT_BYTES).read_to_end(&mut text));
    let falls_back = container.termination_message_policy == "FallbackToLogsOnError";
    if text.is_empty() && code != 0 && falls_back {
        let log = directory.log(&container.name, restarts);
        text = logs::end(log, LAST_WORDS_LOG_LINES, LAST_WORDS_LOG_BYTES);
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn last_words_file(container: &Container, layers: &Path) -> Result<Bind, String> {
    let source = layers.join(LAST_WORDS);
    let failed = |error: std::io::Error| format!("cannot make {}: {error}", source.display());
    File::create(&source)
        .and_then(|file| file.set_permissions(Permissions::from_mode(0o666)))
        .map_err(failed)?;
    let target = match container.termination_message_path.as_str() {
        "" => "/dev/termination-log",
        path => path,
    };
    Ok(Bind { source, sub_path: String::new(), target: target.to_owned(), read_only: false })
}

/// The file, beside the container's layers, in which its last words are left.
const LAST_WORDS: &str = "termination-log";
/// As much of it as the status shows, bytes (the kubelet's).
const LAST_WORDS_LIMIT_BYTES: u64 = 4096;
/// As much of the log's end as stands in for it, lines and bytes (the kubelet's).
const LAST_WORDS_LOG_LINES: usize = 80;
const LAST_WORDS_LOG_BYTES: usize = 2048;
/// Most words of a command line.
const MAX_ARGUMENTS: usize = 4096;

fn check_user(pod: &Pod, container: &Container, image: &Chosen) -> Result<(), String> {
    let (own, shared) = (&container.security_context, &pod.spec.security_context);
    if own.privileged.unwrap_or(false) {
        return Err(format!(
            "container {} asks to be privileged, which would make it root on this machine: \
             remove securityContext.privileged; NET_ADMIN can be asked for by capabilities.add",
            container.name
        ));
    }
    if !own.run_as_non_root.or(shared.run_as_non_root).unwrap_or(false) {
        return Ok(());
    }
    let problem = match own.run_as_user.or(shared.run_as_user) {
        Some(0) => "container's runAsUser breaks non-root policy".to_owned(),
        Some(_) => return Ok(()),
        None => match image.user_number() {
            Some(0) => "container has runAsNonRoot and image will run as root".to_owned(),
            Some(_) => return Ok(()),
            None => format!(
                "container has runAsNonRoot and image has non-numeric user ({}), cannot verify \
                 user is non-root",
                image.config.user.split(':').next().unwrap_or_default()
            ),
        },
    };
    Err(format!(
        "{problem} (pod: \"{}_{}({})\", container: {})",
        pod.metadata.name, pod.metadata.namespace, pod.metadata.uid, container.name
    ))
}

/// The pod's user or else the image's, with the groups of both.
fn identity(
    pod: &Pod,
    container: &Container,
    image: &Chosen,
    images: &Images,
) -> Result<Identity, String> {
    let (own, shared) = (&container.security_context, &pod.spec.security_context);
    let user = own.run_as_user.or(shared.run_as_user);
    let wanted = user.map_or_else(|| image.config.user.clone(), |user| user.to_string());
    let mut identity = images.identity(image, &wanted)?;
    identity.group = own.run_as_group.or(shared.run_as_group).unwrap_or(identity.group);
    identity.groups.extend(&shared.supplemental_groups);
    identity.groups.extend(shared.fs_group);
    Ok(identity)
}

fn capabilities(container: &Container) -> Result<u64, String> {
    let bit = |number: u32| 1_u64 << number;
    let mut kept: u64 = CAPABILITIES
        .iter()
        .filter(|(name, _)| !ON_REQUEST.contains(name))
        .fold(0, |mask, (_, number)| mask | bit(*number));
    let asked = &container.security_context.capabilities;
    let plain = |name: &str| name.trim_start_matches("CAP_").to_uppercase();
    if asked.drop.iter().any(|name| plain(name) == "ALL") {
        kept = 0;
    }
    for name in &asked.drop {
        if let Some((_, number)) = CAPABILITIES.iter().find(|(known, _)| *known == plain(name)) {
            kept &= !bit(*number);
        }
    }
    for name in &asked.add {
        match CAPABILITIES.iter().find(|(known, _)| *known == plain(name)) {
            Some((_, number)) => kept |= bit(*number),
            None => {
                let names: Vec<&str> = CAPABILITIES.iter().map(|(known, _)| *known).collect();
                return Err(format!(
                    "container {} asks for the capability {name}, which this node gives to no pod; \
                     it gives {}",
                    container.name,
                    names.join(", ")
                ));
            }
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn container(security: Value) -> Container {
        let text = json!({"name": "a", "securityContext": security});
        serde_json::from_value(text).expect("a container")
    }

    #[test]
    fn no_pod_gets_more_than_the_listed_capabilities() {
        let default = capabilities(&container(json!({}))).expect("a mask");
        for (number, kept) in [(0, true), (10, true), (12, false), (21, false), (27, false)] {
            assert_eq!(default & (1 << number) != 0, kept, "capability {number}");
        }
        let only = json!({"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}});
        assert_eq!(capabilities(&container(only)), Ok(1 << 10));
        let less = json!({"capabilities": {"drop": ["CAP_NET_RAW"]}});
        assert_eq!(capabilities(&container(less)), Ok(default & !(1 << 13)));
        let more = json!({"capabilities": {"add": ["SYS_ADMIN"]}});
        let error = capabilities(&container(more)).expect_err("refused");
        assert!(error.contains("SYS_ADMIN, which this node gives to no pod"), "{error}");
    }

    #[test]
    fn root_is_refused_where_the_pod_forbids_it() {
        let pod = Pod::default();
        let check = |security: Value, user: &str| {
            check_user(&pod, &container(security), &Chosen::for_test(user))
                .err()
                .unwrap_or_default()
        };
        let non_root = || json!({"runAsNonRoot": true});
        assert!(check(json!({"privileged": true}), "").contains("privileged"));
        assert!(check(non_root(), "").contains("image will run as root"));
        assert!(check(non_root(), "0:5").contains("image will run as root"));
        assert!(check(non_root(), "web").contains("non-numeric user (web)"));
        assert!(check(json!({"runAsNonRoot": true, "runAsUser": 0}), "7").contains("runAsUser"));
        assert_eq!(check(non_root(), "7"), "");
        assert_eq!(check(json!({"runAsNonRoot": true, "runAsUser": 7}), "web"), "");
        assert_eq!(check(json!({}), ""), "");
    }
}
