//! One start of a container: from the pod's spec to what the pause process is told.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pause::{Bind, ContainerSpec, ProcessNamespace};

use crate::disk::{self, PodDirectory};
use crate::environment::{self, Sources};
use crate::images::{Chosen, Identity, Images};
use crate::logs;
use crate::machine::StartFailure;
use crate::pod::{Container, Pod};
use crate::security::{self, Rights, RightsError};
use crate::system_calls::Document;
use crate::volumes;

/// Bytes of one log file; one older file is kept beside it (kubelet's `containerLogMaxSize`).
const LOG_LIMIT_BYTES: u64 = 10 << 20;
/// Largest profile of system calls, bytes.
const MAX_PROFILE_BYTES: u64 = 1 << 20;
/// What the node's own processes share.
const NODE_SHARED_MEMORY: &str = "/dev/shm";
/// How readily the kernel ends a container for want of memory: more readily than the node's own.
const OOM_SCORE_ADJUST: i32 = 500;

/// Which start of which container.
pub struct Start<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The name that the pod's processes see.
    pub hostname: String,
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
    /// The capabilities that the node's own root has.
    pub available: u64,
    /// Where the administrator's profiles of system calls are.
    pub seccomp_directory: &'a Path,
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
    security::check_user(pod, container, image).map_err(config)?;
    let identity = identity(pod, container, image, images).map_err(config)?;
    let rights = rights(start)?;
    let mut binds = volumes::binds(pod, container, &variables, directory).map_err(config)?;
    let arguments = arguments(container, image, &variables)?;
    let layers = directory.layers(&container.name, start.restarts);
    disk::remove_tree(&layers).map_err(StartFailure::Run)?;
    let root = layers.join("mount");
    disk::make_private(&root).map_err(StartFailure::Run)?;
    let overlays = images.overlays(image, &layers).map_err(StartFailure::Run)?;
    binds.push(last_words_file(container, &layers).map_err(StartFailure::Run)?);
    let mut all = environment::of_image(&start.hostname, &image.config.env);
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
        shared_memory: if pod.spec.host_ipc {
            PathBuf::from(NODE_SHARED_MEMORY)
        } else {
            directory.shared_memory()
        },
        binds,
        read_only_root: container.security_context.read_only_root_filesystem.unwrap_or(false),
        arguments,
        environment,
        working_directory: working_directory.unwrap_or("/").to_owned(),
        user: identity.user,
        group: identity.group,
        groups: identity.groups,
        capabilities: rights.capabilities,
        no_new_privileges: rights.no_new_privileges,
        system_calls: rights.system_calls,
        privileged: rights.privileged,
        whole_proc: rights.whole_proc,
        cgroups: start.cgroups.clone(),
        oom_score_adjust: OOM_SCORE_ADJUST,
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        terminal: container.tty,
        process_namespace: process_namespace(pod, container),
        log_file: directory.log(&container.name, start.restarts),
        log_limit_bytes: LOG_LIMIT_BYTES,
        exit_file: directory.exit(&container.name, start.restarts),
    })
}

/// What the container may do. An administrator's profile is read anew at each start.
fn rights(start: &Start<'_>) -> Result<Rights, StartFailure> {
    let (pod, container) = (start.pod, start.container);
    let failed =
        |problem: String| StartFailure::Create(format!("failed to create container: {problem}"));
    let Some(name) = security::localhost_profile(pod, container) else {
        return Ok(security::rights(pod, container, start.available, None)?);
    };
    let path = start.seccomp_directory.join(name);
    let place = path.display();
    volumes::check_relative(name).map_err(StartFailure::Config)?;
    let text = read_profile(&path).map_err(|error| {
        failed(format!("cannot load seccomp profile \"{place}\": open {place}: {error}"))
    })?;
    let document: Document = serde_json::from_slice(&text)
        .map_err(|error| failed(format!("decoding seccomp profile failed \"{place}\": {error}")))?;
    match security::rights(pod, container, start.available, Some(&document)) {
        Err(RightsError::Profile(problem)) => {
            Err(failed(format!("seccomp profile \"{place}\": {problem}")))
        }
        judged => Ok(judged?),
    }
}

impl From<RightsError> for StartFailure {
    fn from(error: RightsError) -> Self {
        match error {
            RightsError::Config(message) => Self::Config(message),
            RightsError::Profile(message) => Self::Create(message),
        }
    }
}

/// The errors are worded as everywhere in Kubernetes.
fn read_profile(path: &Path) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(MAX_PROFILE_BYTES + 1).read_to_end(&mut text));
    match read {
        Ok(_) if text.len() as u64 > MAX_PROFILE_BYTES => {
            Err(format!("it is larger than {MAX_PROFILE_BYTES} bytes"))
        }
        Ok(_) => Ok(text),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err("no such file or directory".to_owned())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// What is run: a pod's command replaces the image's arguments as well as its entry point.
fn arguments(
    container: &Container,
    image: &Chosen,
    variables: &BTreeMap<String, String>,
) -> Result<Vec<String>, StartFailure> {
    let expand = |texts: &[String]| -> Vec<String> {
        texts.iter().map(|text| environment::expand(text, variables)).collect()
    };
    let entry_point = || image.config.entrypoint.clone();
    let mut arguments = match (container.command.is_empty(), container.args.is_empty()) {
        (true, true) => [entry_point(), image.config.cmd.clone()].concat(),
        (true, false) => [entry_point(), expand(&container.args)].concat(),
        (false, _) => [expand(&container.command), expand(&container.args)].concat(),
    };
    if arguments.is_empty() {
        return Err(StartFailure::Run("no command specified".into()));
    }
    arguments.truncate(MAX_ARGUMENTS);
    Ok(arguments)
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

fn process_namespace(pod: &Pod, container: &Container) -> ProcessNamespace {
    match container.target_container_name.as_str() {
        _ if pod.spec.share_process_namespace || pod.spec.host_pid => ProcessNamespace::Pod,
        "" => ProcessNamespace::Own,
        target => ProcessNamespace::Of(target.to_owned()),
    }
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
    if shared.supplemental_groups_policy == "Strict" {
        identity.groups.clear();
    }
    identity.groups.extend(&shared.supplemental_groups);
    identity.groups.extend(shared.fs_group);
    Ok(identity)
}
