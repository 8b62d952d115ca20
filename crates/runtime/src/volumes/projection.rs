//! Files of a volume that change all at once.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::check_relative;
use super::ownership::Ownership;
use crate::disk;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectedFile {
    /// Its path in the volume.
    pub path: String,
    /// What is in it.
    pub content: Vec<u8>,
    /// Its mode.
    pub mode: u32,
    /// Its owner; root where none is given.
    pub owner: Option<u32>,
}

/// Writes files behind one link, as the kubelet does: readers see all of the old or all of the new.
///
/// # Errors
/// The reason.
pub fn project(path: &Path, files: &[ProjectedFile], group: Option<u32>) -> Result<(), String> {
    let of_directories = Ownership { owner: None, group, writable: false };
    of_directories.set(path, 0o755)?;
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
    of_directories.set(&directory, 0o755)?;
    let mut tops = BTreeSet::new();
    for file in files {
        check_relative(&file.path)?;
        let target = directory.join(&file.path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        // Nobody else may open it before it has its mode.
        disk::write(&target, &file.content, 0o600)?;
        Ownership { owner: file.owner, group, writable: false }.set(&target, file.mode)?;
        tops.extend(Path::new(&file.path).iter().next().map(PathBuf::from));
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
    let same = |file: &ProjectedFile| {
        fs::read(directory.join(&file.path)).is_ok_and(|present| present == file.content)
    };
    let count = fs::read_dir(directory).map_or(0, Iterator::count);
    let tops: BTreeSet<_> =
        files.iter().filter_map(|file| Path::new(&file.path).iter().next()).collect();
    count == tops.len() && files.iter().all(same)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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
        let file = |name: &str, text: &str| ProjectedFile {
            path: name.to_owned(),
            content: text.as_bytes().to_vec(),
            mode: 0o640,
            owner: None,
        };
        project(&path, &[file("a", "1"), file("b", "2"), file("d/e", "3")], None).expect("written");
        assert_eq!(fs::read_to_string(path.join("a")).expect("a"), "1");
        assert_eq!(fs::read_to_string(path.join("d/e")).expect("e"), "3");
        let mode = fs::metadata(path.join("a")).expect("a").permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        project(&path, &[file("a", "1"), file("c", "4")], None).expect("written");
        assert_eq!(fs::read_to_string(path.join("c")).expect("c"), "4");
        assert!(!path.join("b").exists() && !path.join("d").exists());
        let names = fs::read_dir(&path).expect("a directory").count();
        assert_eq!(names, 4, "a, c, ..data and one generation");
        let before = fs::read_link(path.join("..data")).expect("a link");
        project(&path, &[file("a", "1"), file("c", "4")], None).expect("nothing to do");
        assert_eq!(fs::read_link(path.join("..data")).expect("a link"), before);
        fs::remove_dir_all(path).expect("removed");
    }
}
