//! What pods keep on the node's disk, against their limits: a pod that is over one is evicted, as
//! by the kubelet (`localStorageEviction`), which looks as often and says the same.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use crate::disk::PodDirectory;
use crate::pod::{Container, Pod, Volume};
use crate::quantity;

/// Time between two looks at a pod that has limits.
pub const PERIOD: Duration = Duration::from_secs(10);
/// Files and directories that are counted in one look at a pod.
const MAX_ENTRIES: usize = 1_000_000;
/// Directories below each other that are looked into: each is open meanwhile.
const MAX_DEPTH: usize = 64;
/// What the kernel counts a file's disk space in, bytes.
const BLOCK_BYTES: u64 = 512;
/// The resource by which containers are limited.
pub const RESOURCE: &str = "ephemeral-storage";

/// Whether anything of a pod's disk space is limited.
pub fn is_limited(pod: &Pod) -> bool {
    sized_volumes(pod).next().is_some() || limit_of_pod(pod).is_some()
}

/// Looks at a pod's files: why it must go, if it must. To be called where waiting is allowed.
pub fn exceeded(pod: &Pod, directory: &PodDirectory) -> Option<String> {
    let mut count = Count { entries: MAX_ENTRIES, linked: BTreeSet::new() };
    let volumes = pod.spec.volumes.iter().filter(|volume| is_on_disk(volume));
    let volumes = volumes.map(|volume| (volume.name.clone(), directory.volume(&volume.name)));
    let volumes: Vec<(String, u64)> =
        volumes.map(|(name, path)| (name, count.below(&path))).collect();
    // Logs, and what was written beside images.
    let containers = pod.own_containers().map(|container| container.name.clone());
    let containers: Vec<(String, u64)> = containers
        .map(|name| (directory.container(&name), name))
        .map(|(path, name)| (name, count.below(&path)))
        .collect();
    judge(pod, &volumes, &containers)
}

/// The kubelet's order and words, from the space that volumes and containers take, by name.
fn judge(pod: &Pod, volumes: &[(String, u64)], containers: &[(String, u64)]) -> Option<String> {
    let used = |all: &[(String, u64)], name: &str| {
        all.iter().find(|(known, _)| known == name).map_or(0, |(_, bytes)| *bytes)
    };
    for (name, limit) in sized_volumes(pod) {
        if used(volumes, name) > limit.bytes {
            return Some(format!(
                "Usage of EmptyDir volume \"{name}\" exceeds the limit \"{}\". ",
                limit.text
            ));
        }
    }
    let total: u64 = volumes.iter().chain(containers).map(|(_, bytes)| *bytes).sum();
    if let Some(limit) = limit_of_pod(pod).filter(|limit| total > *limit) {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            binary(limit)
        ));
    }
    let over = pod.spec.containers.iter().find_map(|container| {
        let limit = limit_of(container)?;
        (used(containers, &container.name) > limit.bytes).then_some((&container.name, limit))
    });
    over.map(|(name, limit)| {
        format!("Container {name} exceeded its local ephemeral storage limit \"{}\". ", limit.text)
    })
}

/// A limit, and how the pod has it.
struct Limit {
    bytes: u64,
    text: String,
}

fn limit(value: &serde_json::Value) -> Option<Limit> {
    let bytes = u64::try_from(quantity::milli(value)? / 1000).ok().filter(|bytes| *bytes > 0)?;
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Some(Limit { bytes, text })
}

fn is_on_disk(volume: &Volume) -> bool {
    volume.empty_dir.as_ref().is_some_and(|empty| empty.medium != "Memory")
}

/// Those in memory are as large as their file system.
fn sized_volumes(pod: &Pod) -> impl Iterator<Item = (&str, Limit)> {
    let volumes = pod.spec.volumes.iter().filter(|volume| is_on_disk(volume));
    volumes.filter_map(|volume| {
        let size = volume.empty_dir.as_ref()?.size_limit.as_ref()?;
        Some((volume.name.as_str(), limit(size)?))
    })
}

fn limit_of(container: &Container) -> Option<Limit> {
    limit(container.resources.limits.get(RESOURCE)?)
}

/// What all containers that run together may have, or a larger one that ran before them; those
/// that have no limit add nothing, as in the kubelet.
fn limit_of_pod(pod: &Pod) -> Option<u64> {
    let bytes = |container: &Container| limit_of(container).map(|limit| limit.bytes);
    let inits = &pod.spec.init_containers;
    let sidecars = inits.iter().filter(|init| init.is_sidecar());
    let together: Vec<u64> = pod.spec.containers.iter().chain(sidecars).filter_map(bytes).collect();
    let before = inits.iter().filter(|init| !init.is_sidecar()).filter_map(bytes).max();
    let together = (!together.is_empty()).then(|| together.iter().sum());
    together.into_iter().chain(before).max()
}

/// As quantities with binary suffixes are written.
fn binary(bytes: u64) -> String {
    let suffixes = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut rest = bytes;
    let mut power = 0;
    while rest >= 1024 && rest.is_multiple_of(1024) && power + 1 < suffixes.len() {
        rest /= 1024;
        power += 1;
    }
    format!("{rest}{}", suffixes[power])
}

/// One look at a pod's files. They change meanwhile, and containers may mean ill: no link is
/// followed, and nothing is looked up twice by its name.
struct Count {
    /// How many more are looked at.
    entries: usize,
    /// Files of several names that were counted, by device and number.
    linked: BTreeSet<(u64, u64)>,
}

impl Count {
    /// The disk space of a directory and all in it, bytes. What is gone takes none.
    fn below(&mut self, path: &Path) -> u64 {
        open(path).map_or(0, |directory| self.of(&directory, MAX_DEPTH))
    }

    fn of(&mut self, directory: &File, depth: usize) -> u64 {
        let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let mut bytes = 0;
        for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
            if self.entries == 0 {
                break;
            }
            self.entries -= 1;
            let Ok(metadata) = entry.metadata() else { continue };
            let is_known = !metadata.is_dir()
                && metadata.nlink() > 1
                && !self.linked.insert((metadata.dev(), metadata.ino()));
            if !is_known {
                bytes += metadata.blocks() * BLOCK_BYTES;
            }
            if metadata.is_dir() && depth > 0 {
                let below = open(&Path::new(&path).join(entry.file_name()));
                bytes += below.map_or(0, |below| self.of(&below, depth - 1));
            }
        }
        bytes
    }
}

fn open(path: &Path) -> Option<File> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags).open(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({ "spec": spec })).expect("a pod")
    }

    fn limited(name: &str, limit: &str) -> Value {
        json!({"name": name, "resources": {"limits": {"ephemeral-storage": limit}}})
    }

    fn used(all: &[(&str, u64)]) -> Vec<(String, u64)> {
        all.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect()
    }

    #[test]
    fn only_what_is_over_a_limit_is_told() {
        let sized = pod(json!({
            "containers": [{"name": "a"}],
            "volumes": [
                {"name": "free", "emptyDir": {}},
                {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1"}},
                {"name": "disk", "emptyDir": {"sizeLimit": "1Mi"}},
            ],
        }));
        assert!(is_limited(&sized));
        let judged = |bytes| judge(&sized, &used(&[("free", 9 << 30), ("disk", bytes)]), &[]);
        assert_eq!(judged(1 << 20), None);
        let message = "Usage of EmptyDir volume \"disk\" exceeds the limit \"1Mi\". ";
        assert_eq!(judged((1 << 20) + 1).as_deref(), Some(message));
        assert!(!is_limited(&pod(json!({"containers": [{"name": "a"}],
            "volumes": [{"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1"}}]}))));
    }

    #[test]
    fn containers_are_limited_together_and_each() {
        let both = pod(json!({"containers": [limited("a", "1Mi"), limited("b", "3Mi")]}));
        let judged =
            |a, b, volume| judge(&both, &used(&[("disk", volume)]), &used(&[("a", a), ("b", b)]));
        assert_eq!(judged(1 << 20, 1 << 20, 2 << 20), None);
        let of_pod =
            "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. ";
        assert_eq!(judged(0, 0, (4 << 20) + 1).as_deref(), Some(of_pod));
        let of_one = "Container a exceeded its local ephemeral storage limit \"1Mi\". ";
        assert_eq!(judged(2 << 20, 0, 0).as_deref(), Some(of_one));
        let before = pod(json!({"initContainers": [limited("a", "5Gi")],
            "containers": [{"name": "b"}]}));
        assert_eq!(limit_of_pod(&before), Some(5 << 30));
        assert_eq!(limit_of_pod(&pod(json!({"containers": [{"name": "b"}]}))), None);
        assert_eq!([binary(1000), binary(1 << 20), binary(1536 << 10)], ["1000", "1Mi", "1536Ki"]);
    }

    #[test]
    fn disk_space_is_counted_once_and_links_are_not_followed() {
        let root = std::env::temp_dir().join(format!("flatnet-storage-{}", std::process::id()));
        let below = root.join("counted/below");
        fs::create_dir_all(&below).expect("directories");
        fs::write(below.join("file"), vec![1; 64 << 10]).expect("a file");
        fs::hard_link(below.join("file"), root.join("counted/again")).expect("a link");
        fs::write(root.join("outside"), vec![1; 8 << 20]).expect("a file");
        std::os::unix::fs::symlink(&root, root.join("counted/out")).expect("a link");
        let sparse = File::create(below.join("sparse")).expect("a file");
        sparse.set_len(1 << 30).expect("longer");
        let count =
            |entries| Count { entries, linked: BTreeSet::new() }.below(&root.join("counted"));
        let counted = count(MAX_ENTRIES);
        let (least, none, absent) = (count(2), count(0), Path::new("/nowhere/of/that/name"));
        let absent = Count { entries: 9, linked: BTreeSet::new() }.below(absent);
        fs::remove_dir_all(&root).expect("removed");
        assert!((64 << 10..1 << 20).contains(&counted), "{counted} bytes");
        assert!(least <= counted && none == 0 && absent == 0);
    }
}
