//! The directories of provisioned volumes. All nodes of a cluster of this machine have them under
//! one path.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Names with this beginning are those of provisioned volumes: nothing else is ever removed.
const PREFIX: &str = "pvc-";
/// Any user of any container may write; the directory above is root's alone.
const MODE: u32 = 0o777;

/// The directory above them all.
#[derive(Clone, Debug)]
pub(crate) struct Volumes {
    root: PathBuf,
}

impl Volumes {
    pub fn at(root: impl AsRef<Path>) -> Self {
        Self { root: root.as_ref().to_owned() }
    }

    /// Makes the directory of a volume; one that is there keeps what is in it.
    pub fn make(&self, volume: &str) -> Result<(), String> {
        let path = self.path(volume)?;
        let failed = |error| format!("cannot make {}: {error}", path.display());
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.root).map_err(failed)?;
        builder.create(&path).map_err(failed)?;
        // The mask of the process does not count here.
        fs::set_permissions(&path, fs::Permissions::from_mode(MODE)).map_err(failed)
    }

    /// Removes the directory of a volume with all that is in it.
    pub fn remove(&self, volume: &str) -> Result<(), String> {
        let path = self.path(volume)?;
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(format!("cannot remove {}: {error}", path.display()))
            }
            _ => Ok(()),
        }
    }

    fn path(&self, volume: &str) -> Result<PathBuf, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if volume.starts_with(PREFIX) && volume.chars().all(plain) {
            Ok(self.root.join(volume))
        } else {
            Err(format!("{volume:?} is no name of a provisioned volume"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_volumes_are_made_and_removed() {
        let root = std::env::temp_dir().join(format!("volumes-of-claims-{}", std::process::id()));
        let volumes = Volumes::at(&root);
        volumes.make("pvc-1").expect("made");
        fs::write(root.join("pvc-1/file"), "data").expect("written");
        volumes.make("pvc-1").expect("there already");
        assert_eq!(fs::read(root.join("pvc-1/file")).expect("kept"), b"data");
        let mode = fs::metadata(root.join("pvc-1")).expect("there").permissions().mode();
        assert_eq!(mode & 0o7777, MODE);
        for name in ["", ".", "..", "pvc-/../..", "other", "pvc-1/file"] {
            assert!(volumes.make(name).is_err() && volumes.remove(name).is_err(), "{name:?}");
        }
        volumes.remove("pvc-1").expect("removed");
        volumes.remove("pvc-1").expect("gone already");
        assert!(!root.join("pvc-1").exists());
        fs::remove_dir_all(root).expect("cleaned up");
    }
}
