//! A pod's volumes: made before its sandbox, bound into its containers, removed with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use pause::Bind;

use crate::disk::{self, PodDirectory};
use crate::environment::{self, Data, Sources};
use crate::pod::{Container, KeyToPath, Pod, Volume};
use crate::quantity;

/// Mode of projected files where nobody says (the API's default).
const DEFAULT_MODE: u32 = 0o644;
/// Size of a memory volume without a limit, bytes.
const MEMORY_VOLUME_BYTES: i64 = 64 << 20;

/// The ConfigMaps and Secrets that a pod's volumes name.
pub fn references(pod: &Pod) -> (BTreeSet<String>, BTreeSet<String>) {
    let volumes = &pod.spec.volumes;
    let config_maps = volumes.iter().filter_map(|volume| volume.config_map.as_ref());
    let secrets = volumes.iter().filter_map(|volume| volume.secret.as_ref());
    (
        config_maps.map(|source| source.name.clone()).collect(),
        secrets.map(|source| source.secret_name.clone()).collect(),
    )
}

/// Whether any volume shows objects of the API, which may change.
pub fn are_projected(pod: &Pod) -> bool {
    pod.spec.volumes.iter().any(|volume| {
        volume.config_map.is_some() || volume.secret.is_some() || volume.downward_api.is_some()
    })
}

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

/// What is bound into a container: its volumes, parents before children, then its own files.
///
/// # Errors
/// For a mount that the pod's volumes do not explain.
pub fn binds(
    pod: &Pod,
    container: &Container,
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
        if !mounted.sub_path.is_empty() {
            check_relative(&mounted.sub_path)?;
        }
        let is_read_only =
            volume.persistent_volume_claim.as_ref().is_some_and(|claim| claim.read_only);
        let projected =
            volume.config_map.is_some() || volume.secret.is_some() || volume.downward_api.is_some();
        binds.push(Bind {
            source: place(volume, directory)?,
            sub_path: mounted.sub_path.clone(),
            target: mounted.mount_path.clone(),
            read_only: mounted.read_only || projected || is_read_only,
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

fn is_memory(volume: &Volume) -> bool {
    volume.secret.is_some()
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
        let found = sources.claims.get(&claim.claim_name);
        let found =
            found.ok_or_else(|| format!("claim {:?} was not looked up", claim.claim_name))?;
        check_host_path(&found.path, &found.kind)?;
        check_relative(&volume.name)?;
        return point_at(&directory.volume(&volume.name), Path::new(&found.path));
    }
    let path = place(volume, directory)?;
    if let Some(host) = &volume.host_path {
        return check_host_path(&host.path, &host.kind);
    }
    let group = pod.spec.security_context.fs_group;
    if let Some(empty) = &volume.empty_dir {
        if path.exists() {
            return Ok(());
        }
        disk::make_private(&path)?;
        if empty.medium == "Memory" {
            let limit = empty.size_limit.as_ref().and_then(quantity::milli);
            let bytes = limit.map_or(MEMORY_VOLUME_BYTES, |milli| milli / 1000);
            mount_memory(&path, bytes)?;
        }
        // Any user of any container may write, as the kubelet has it.
        return open_to_all(&path, 0o777, group);
    }
    let (files, mode) = if let Some(source) = &volume.config_map {
        let data = data("configmap", &sources.config_maps, &source.name, source.optional)?;
        (select(&source.name, data, &source.items, source.optional)?, source.default_mode)
    } else if let Some(source) = &volume.secret {
        let name = &source.secret_name;
        let data = data("secret", &sources.secrets, name, source.optional)?;
        (select(name, data, &source.items, source.optional)?, source.default_mode)
    } else if let Some(source) = &volume.downward_api {
        let mut files = Vec::new();
        for item in &source.items {
            let reference = item.field_ref.as_ref().ok_or("only fieldRef is supported")?;
            let value = environment::field(pod, reference, sources)?;
            files.push((item.path.clone(), value.into_bytes(), item.mode));
        }
        (files, source.default_mode)
    } else {
        return Err("its type is not supported by this node: use emptyDir, configMap, secret, \
                    downwardAPI, hostPath or persistentVolumeClaim"
            .into());
    };
    if volume.secret.is_some() && !path.exists() {
        disk::make_private(&path)?;
        mount_memory(&path, MEMORY_VOLUME_BYTES)?;
    }
    disk::make_private(&path)?;
    open_to_all(&path, 0o755, group)?;
    project(&path, &files, mode.unwrap_or(DEFAULT_MODE), group)
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

fn check_host_path(path: &str, kind: &str) -> Result<(), String> {
    let is_wanted = match (kind, fs::metadata(path)) {
        ("" | "DirectoryOrCreate", Err(_)) => {
            return fs::create_dir_all(path)
                .map_err(|error| format!("cannot make {path}: {error}"));
        }
        ("FileOrCreate", Err(_)) => {
            return fs::write(path, "").map_err(|error| format!("cannot make {path}: {error}"));
        }
        ("", Ok(_)) => true,
        ("Directory" | "DirectoryOrCreate", Ok(metadata)) => metadata.is_dir(),
        ("File" | "FileOrCreate", Ok(metadata)) => metadata.is_file(),
        (_, metadata) => metadata.is_ok(),
    };
    if is_wanted {
        Ok(())
    } else {
        Err(format!("hostPath type check failed: {path} is not a {kind}"))
    }
}

fn data<'a>(
    kind: &str,
    objects: &'a BTreeMap<String, Data>,
    name: &str,
    optional: bool,
) -> Result<Option<&'a BTreeMap<String, Vec<u8>>>, String> {
    match objects.get(name) {
        Some(Some(data)) => Ok(Some(data)),
        _ if optional => Ok(None),
        _ => Err(format!("{kind} {name:?} not found")),
    }
}

/// A file's path, content and mode.
type ProjectedFile = (String, Vec<u8>, Option<u32>);

fn select(
    name: &str,
    data: Option<&BTreeMap<String, Vec<u8>>>,
    items: &[KeyToPath],
    optional: bool,
) -> Result<Vec<ProjectedFile>, String> {
    let Some(data) = data else { return Ok(Vec::new()) };
    if items.is_empty() {
        let file = |(key, value): (&String, &Vec<u8>)| (key.clone(), value.clone(), None);
        return Ok(data.iter().map(file).collect());
    }
    let mut files = Vec::new();
    for item in items {
        match data.get(&item.key) {
            Some(value) => files.push((item.path.clone(), value.clone(), item.mode)),
            None if optional => {}
            None => return Err(format!("references non-existent key {:?} of {name}", item.key)),
        }
    }
    Ok(files)
}

/// Writes files behind one link, as the kubelet does: readers see all of the old or all of the new.
fn project(
    path: &Path,
    files: &[ProjectedFile],
    mode: u32,
    group: Option<u32>,
) -> Result<(), String> {
    let failed = |error: std::io::Error| error.to_string();
    let current = fs::read_link(path.join("..data")).ok();
    if current.as_ref().is_some_and(|current| holds(&path.join(current), files)) {
        return Ok(());
    }
    let number: u64 = current
        .as_ref()
        .and_then(|name| name.to_str()?.strip_prefix("..")?.parse().ok())
        .unwrap_or(0);
    let name = format!("..{}", number + 1);
    let directory = path.join(&name);
    disk::remove_tree(&directory)?;
    disk::make_private(&directory)?;
    open_to_all(&directory, 0o755, group)?;
    let mut tops = BTreeSet::new();
    for (file, content, own_mode) in files {
        check_relative(file)?;
        let target = directory.join(file);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        fs::write(&target, content).map_err(failed)?;
        open_to_all(&target, own_mode.unwrap_or(mode), group)?;
        tops.extend(Path::new(file).iter().next().map(PathBuf::from));
    }
    let temporary = path.join("..data_new");
    let _ = fs::remove_file(&temporary);
    symlink(&name, &temporary).map_err(failed)?;
    fs::rename(&temporary, path.join("..data")).map_err(failed)?;
    for top in &tops {
        let link = path.join(top);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new("..data").join(top), &link).map_err(failed)?;
        }
    }
    for entry in fs::read_dir(path).map_err(failed)?.flatten() {
        let file = PathBuf::from(entry.file_name());
        if !file.to_string_lossy().starts_with("..") && !tops.contains(&file) {
            fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    match current {
        Some(current) => disk::remove_tree(&path.join(current)),
        None => Ok(()),
    }
}

fn holds(directory: &Path, files: &[ProjectedFile]) -> bool {
    let same = |(file, content, _): &ProjectedFile| {
        fs::read(directory.join(file)).is_ok_and(|present| present == *content)
    };
    let count = fs::read_dir(directory).map_or(0, Iterator::count);
    let tops: BTreeSet<_> =
        files.iter().filter_map(|(file, ..)| Path::new(file).iter().next()).collect();
    count == tops.len() && files.iter().all(same)
}

fn mount_memory(path: &Path, bytes: i64) -> Result<(), String> {
    let options = format!("size={bytes},mode=0755");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(|error| format!("cannot mount memory at {}: {error}", path.display()))
}

fn open_to_all(path: &Path, mode: u32, group: Option<u32>) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot open {}: {error}", path.display());
    if group.is_some() {
        chown(path, None, group).map_err(failed)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777)).map_err(failed)
}

/// Names from outside must not lead out of their directory.
fn check_relative(path: &str) -> Result<(), String> {
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

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("volumes-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a scratch directory");
        path
    }

    #[test]
    fn projected_files_change_all_at_once_and_leave_nothing_behind() {
        let path = scratch("project");
        let file = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec(), None);
        project(&path, &[file("a", "1"), file("b", "2"), file("d/e", "3")], 0o640, None)
            .expect("written");
        assert_eq!(fs::read_to_string(path.join("a")).expect("a"), "1");
        assert_eq!(fs::read_to_string(path.join("d/e")).expect("e"), "3");
        let mode = fs::metadata(path.join("a")).expect("a").permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        project(&path, &[file("a", "1"), file("c", "4")], 0o640, None).expect("written");
        assert_eq!(fs::read_to_string(path.join("c")).expect("c"), "4");
        assert!(!path.join("b").exists() && !path.join("d").exists());
        let names = fs::read_dir(&path).expect("a directory").count();
        assert_eq!(names, 4, "a, c, ..data and one generation");
        let before = fs::read_link(path.join("..data")).expect("a link");
        project(&path, &[file("a", "1"), file("c", "4")], 0o640, None).expect("nothing to do");
        assert_eq!(fs::read_link(path.join("..data")).expect("a link"), before);
        fs::remove_dir_all(path).expect("removed");
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        for path in ["../x", "/etc", "a/../../b", "", "..data", "."] {
            assert!(check_relative(path).is_err(), "{path:?}");
        }
        assert!(check_relative("a/b.c").is_ok());
    }
}
