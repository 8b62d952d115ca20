//! Whose the files of a volume are: `fsGroup`, as the kubelet applies it.

use std::fs::{self, Metadata, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use crate::pod::SecurityContext;

/// What a group gets of files and directories that it may write.
const WRITABLE: u32 = 0o660;
/// The same of those that nobody may write.
const READABLE: u32 = 0o440;
/// What it gets of directories besides; what is made in them is the group's too.
const DIRECTORIES: u32 = 0o2110;
/// Most directories below each other of a volume that are handed over.
const MAX_DEPTH: u32 = 256;

/// Whose one file or directory shall be.
#[derive(Clone, Copy, Debug)]
pub struct Ownership {
    /// Its user; left alone where there is none.
    pub owner: Option<u32>,
    /// Its group; left alone where there is none.
    pub group: Option<u32>,
    /// Whether the group may write.
    pub writable: bool,
}

impl Ownership {
    /// Gives a path its owner and mode, and its group what a group shall have.
    ///
    /// # Errors
    /// The path and the reason.
    pub fn set(&self, path: &Path, mode: u32) -> Result<(), String> {
        let failed = |error| format!("cannot hand over {}: {error}", path.display());
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        if self.owner.is_some() || self.group.is_some() {
            lchown(path, self.owner, self.group).map_err(failed)?;
        }
        if metadata.is_symlink() {
            return Ok(()); // It has no mode of its own.
        }
        let mode = mode & 0o7777;
        let mode = if self.group.is_some() { mode | self.of_group(&metadata) } else { mode };
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)
    }

    fn of_group(&self, metadata: &Metadata) -> u32 {
        let bits = if self.writable { WRITABLE } else { READABLE };
        if metadata.is_dir() { bits | DIRECTORIES } else { bits }
    }
}

/// Hands a volume that has files already over to the pod's group, as its policy says.
///
/// # Errors
/// The path and the reason.
pub fn hand_over(path: &Path, context: &SecurityContext) -> Result<(), String> {
    let Some(group) = context.fs_group else { return Ok(()) };
    let ownership = Ownership { owner: None, group: Some(group), writable: true };
    let metadata = fs::symlink_metadata(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let bits = ownership.of_group(&metadata);
    let is_done = metadata.gid() == group && metadata.mode() & bits == bits;
    if is_done && context.fs_group_change_policy == "OnRootMismatch" {
        return Ok(());
    }
    below(path, &ownership, MAX_DEPTH)
}

/// The top goes last: until then the whole counts as not handed over.
fn below(path: &Path, ownership: &Ownership, depth: u32) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    if metadata.is_dir() {
        let deeper = depth.checked_sub(1).ok_or_else(|| {
            format!("{} lies deeper than {MAX_DEPTH} directories", path.display())
        })?;
        for entry in fs::read_dir(path).map_err(failed)? {
            below(&entry.map_err(failed)?.path(), ownership, deeper)?;
        }
    }
    ownership.set(path, metadata.mode())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_volume_is_handed_over_once_or_always() {
        let root = std::env::temp_dir().join(format!("ownership-{}", std::process::id()));
        fs::create_dir_all(root.join("d")).expect("directories");
        fs::write(root.join("d/file"), "").expect("a file");
        let outside = root.with_extension("outside");
        fs::write(&outside, "").expect("a file");
        symlink(&outside, root.join("d/link")).expect("a link");
        let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o7777;
        for (path, bits) in [(root.as_path(), 0o700), (&root.join("d/file"), 0o600)] {
            fs::set_permissions(path, Permissions::from_mode(bits)).expect("a mode");
        }
        fs::set_permissions(&outside, Permissions::from_mode(0o600)).expect("a mode");
        // The group that this test runs as: any other needs root.
        let group = fs::metadata(&root).expect("there").gid();
        let mut context = SecurityContext { fs_group: Some(group), ..SecurityContext::default() };
        hand_over(&root, &context).expect("handed over");
        assert_eq!((mode(&root), mode(&root.join("d/file"))), (0o2770, 0o660));
        assert_eq!(mode(&outside), 0o600, "a link leads to what is not the volume's");
        fs::set_permissions(root.join("d/file"), Permissions::from_mode(0o600)).expect("a mode");
        context.fs_group_change_policy = "OnRootMismatch".into();
        hand_over(&root, &context).expect("nothing to do");
        assert_eq!(mode(&root.join("d/file")), 0o600);
        context.fs_group_change_policy = "Always".into();
        hand_over(&root, &context).expect("handed over");
        assert_eq!(mode(&root.join("d/file")), 0o660);
        fs::remove_dir_all(&root).expect("removed");
        fs::remove_file(&outside).expect("removed");
    }
}
