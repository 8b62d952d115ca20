//! A pod's volumes: made before its sandbox, bound into its containers, removed with it.

mod files;
mod host_path;
mod ownership;
mod projection;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use pause::Bind;

use crate::disk::{self, PodDirectory};
use crate::environment::{self, Sources};
use crate::pod::{Container, Pod, Volume, VolumeMount};
use crate::quantity;

pub use files::{TokenRequest, are_projected, references, token_requests};
use ownership::Ownership;

/// Size of a memory volume of projected files, bytes.
const PROJECTED_BYTES: i64 = 64 << 20;

/// Makes every volume that is not there yet, and brings projected files up to date.
///
/// # Errors
/// The kubelet's words, naming the volume.
pub fn prepare(pod: &Pod, directory: &PodDirectory, sources: &Sources) -> Result<(), String> {
    for volume in &pod.spec.volumes {
        prepare_one(pod, volume, directory, sources).map_err(|problem| {
            format!("MountVolume.SetUp failed for volume {:?} : {problem}", volume.name)
        })?;
    }
    Ok(())
}

/// Unmounts the pod's memory volumes: the first step of removing its directories.
pub fn unmount_all(directory: &PodDirectory) {
    for entry in fs::read_dir(directory.memory_volume("")).into_iter().flatten().flatten() {
        let _ = umount2(&entry.path(), MntFlags::MNT_DETACH);
    }
}

/// What is bound into a container that has these variables: its volumes, parents before children,
/// then its own files.
///
/// # Errors
/// For a mount that the pod's volumes do not explain.
pub fn binds(
    pod: &Pod,
    container: &Container,
    variables: &BTreeMap<String, String>,
    directory: &PodDirectory,
) -> Result<Vec<Bind>, String> {
    let mut binds = Vec::new();
    for mounted in &container.volume_mounts {
        let volume = pod
            .spec
            .volumes
            .iter()
            .find(|volume| volume.name == mounted.name)
            .ok_or_else(|| format!("volume {:?} is mounted but not defined", mounted.name))?;
        if !mounted.mount_path.starts_with('/') || mounted.mount_path.trim_matches('/').is_empty() {
            return Err(format!("mountPath {:?} must be a path below /", mounted.mount_path));
        }
        let is_read_only =
            volume.persistent_volume_claim.as_ref().is_some_and(|claim| claim.read_only);
        binds.push(Bind {
            source: place(volume, directory)?,
            sub_path: sub_path(container, mounted, variables)?,
            target: mounted.mount_path.clone(),
            read_only: mounted.read_only || files::is_projected(volume) || is_read_only,
        });
    }
    for name in ["hosts", "hostname", "resolv.conf"] {
        let target = format!("/etc/{name}");
        if binds.iter().all(|bind| bind.target.trim_end_matches('/') != target) {
            let source = directory.state.join("etc").join(name);
            binds.push(Bind { source, sub_path: String::new(), target, read_only: false });
        }
    }
    binds.sort_by_key(|bind| bind.target.matches('/').count());
    Ok(binds)
}

/// The part of the volume that a container sees; empty for all of it.
fn sub_path(
    container: &Container,
    mounted: &VolumeMount,
    variables: &BTreeMap<String, String>,
) -> Result<String, String> {
    let path = if mounted.sub_path_expr.is_empty() {
        mounted.sub_path.clone()
    } else {
        environment::expand_known(&mounted.sub_path_expr, variables).map_err(|name| {
            format!(
                "cannot expand subPathExpr {:?} of container {}: missing value for {name:?}",
                mounted.sub_path_expr, container.name
            )
        })?
    };
    if path.is_empty() { Ok(path) } else { check_relative(&path).map(|()| path) }
}

fn is_memory(volume: &Volume) -> bool {
    volume.secret.is_some()
        || volume.projected.is_some()
        || volume.empty_dir.as_ref().is_some_and(|directory| directory.medium == "Memory")
}

fn place(volume: &Volume, directory: &PodDirectory) -> Result<PathBuf, String> {
    if let Some(host) = &volume.host_path {
        return Ok(PathBuf::from(&host.path));
    }
    check_relative(&volume.name)?;
    if volume.persistent_volume_claim.is_some() {
        // Which directory the claim is was found out when the pod's volumes were made.
        let link = directory.volume(&volume.name);
        return fs::read_link(&link).map_err(|error| {
            format!("cannot read which directory volume {:?} is: {error}", volume.name)
        });
    }
    Ok(if is_memory(volume) {
        directory.memory_volume(&volume.name)
    } else {
        directory.volume(&volume.name)
    })
}

fn prepare_one(
    pod: &Pod,
    volume: &Volume,
    directory: &PodDirectory,
    sources: &Sources,
) -> Result<(), String> {
    if let Some(claim) = &volume.persistent_volume_claim {
        return prepare_claim(pod, volume, &claim.claim_name, directory, sources);
    }
    let path = place(volume, directory)?;
    if let Some(host) = &volume.host_path {
        return host_path::check(&host.path, &host.kind);
    }
    let group = pod.spec.security_context.fs_group;
    if let Some(empty) = &volume.empty_dir {
        if path.exists() {
            return Ok(());
        }
        disk::make_private(&path)?;
        if empty.medium == "Memory" {
            let limit = empty.size_limit.as_ref().and_then(quantity::milli);
            mount_memory(&path, memory_size(pod, limit.map(|milli| milli / 1000), sources))?;
        }
        // Any user of any container may write, as the kubelet has it.
        return Ownership { owner: None, group, writable: true }.set(&path, 0o777);
    }
    let files = files::of(pod, volume, sources)?;
    if is_memory(volume) && !path.exists() {
        disk::make_private(&path)?;
        mount_memory(&path, PROJECTED_BYTES)?;
    }
    disk::make_private(&path)?;
    projection::project(&path, &files, group)
}

/// A claim is a directory of the node, which the pod's group may own as the kubelet has it: where
/// the volume is `local`, not where it is a `hostPath`.
fn prepare_claim(
    pod: &Pod,
    volume: &Volume,
    claim: &str,
    directory: &PodDirectory,
    sources: &Sources,
) -> Result<(), String> {
    let found = sources.claims.get(claim);
    let found = found.ok_or_else(|| format!("claim {claim:?} was not looked up"))?;
    let path = Path::new(&found.directory.path);
    host_path::check(&found.directory.path, &found.directory.kind)?;
    check_relative(&volume.name)?;
    let link = directory.volume(&volume.name);
    // Once a pod, not at each look whether files are up to date.
    if found.is_local && fs::symlink_metadata(&link).is_err() {
        ownership::hand_over(path, &pod.spec.security_context)?;
    }
    point_at(&link, path)
}

/// The kubelet's: what the pod's containers may have in all, or the node where one of them has no
/// limit; the volume's own limit lowers it.
fn memory_size(pod: &Pod, limit_bytes: Option<i64>, sources: &Sources) -> i64 {
    let limits: Option<Vec<i64>> = pod
        .own_containers()
        .map(|container| quantity::milli(container.resources.limits.get("memory")?))
        .collect();
    let of_pod = limits.map(|limits| limits.iter().sum::<i64>() / 1000);
    let of_node = sources.allocatable.get("memory").map(|milli| milli / 1000);
    let sizes = limit_bytes.into_iter().chain(of_pod).chain(of_node);
    sizes.filter(|bytes| *bytes > 0).min().unwrap_or(PROJECTED_BYTES)
}

/// Remembers which directory a claim is: a link, so that what removes the pod's directories leaves
/// the claim's alone.
fn point_at(link: &Path, target: &Path) -> Result<(), String> {
    if fs::read_link(link).is_ok_and(|present| present == target) {
        return Ok(());
    }
    let failed = |error| format!("cannot link {}: {error}", link.display());
    if let Some(parent) = link.parent() {
        disk::make_private(parent)?;
    }
    match fs::remove_file(link) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
        _ => symlink(target, link).map_err(failed),
    }
}

fn mount_memory(path: &Path, bytes: i64) -> Result<(), String> {
    let options = format!("size={bytes},mode=0755");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(|error| format!("cannot mount memory at {}: {error}", path.display()))
}

/// Names from outside must not lead out of their directory.
///
/// # Errors
/// The path, and what it must be.
pub fn check_relative(path: &str) -> Result<(), String> {
    let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if inside && !path.is_empty() && !path.starts_with("..") {
        Ok(())
    } else {
        Err(format!("{path:?} must be a relative path without \"..\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn paths_that_lead_out_are_refused() {
        for path in ["../x", "/etc", "a/../../b", "", "..data", "."] {
            assert!(check_relative(path).is_err(), "{path:?}");
        }
        assert!(check_relative("a/b.c").is_ok());
    }

    fn shown(mounted: Value) -> Result<String, String> {
        let mounted = serde_json::from_value(mounted).expect("a mount");
        let variables = [("POD".to_owned(), "web-1".to_owned()), ("OUT".into(), "../x".into())];
        sub_path(&Container::default(), &mounted, &variables.into())
    }

    #[test]
    fn the_part_of_a_volume_may_come_from_the_environment() {
        assert_eq!(shown(json!({})), Ok(String::new()));
        assert_eq!(shown(json!({"subPath": "a/b"})), Ok("a/b".to_owned()));
        assert_eq!(shown(json!({"subPathExpr": "logs/$(POD)"})), Ok("logs/web-1".to_owned()));
        let missing = shown(json!({"subPathExpr": "$(NONE)"})).expect_err("no such variable");
        assert!(missing.contains("missing value for \"NONE\""), "{missing}");
        assert!(shown(json!({"subPathExpr": "$(OUT)"})).is_err(), "it leads out");
    }

    #[test]
    fn a_memory_volume_is_as_large_as_its_pod_may_be() {
        let mut pod = Pod::default();
        let mut sources = Sources::default();
        sources.allocatable.insert("memory".into(), 900_000);
        assert_eq!(memory_size(&pod, None, &sources), 900);
        let limited = |limit: &str| {
            let text = json!({"resources": {"limits": {"memory": limit}}});
            serde_json::from_value(text).expect("a container")
        };
        pod.spec.containers = vec![limited("300"), limited("400")];
        assert_eq!(memory_size(&pod, None, &sources), 700);
        assert_eq!(memory_size(&pod, Some(100), &sources), 100);
        pod.spec.containers.push(Container::default());
        assert_eq!(memory_size(&pod, None, &sources), 900);
    }
}
