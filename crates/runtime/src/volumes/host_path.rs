//! Paths of the node in a pod: whether they are what the pod expects, made where it says so.

use std::fs;
use std::os::unix::fs::FileTypeExt;

/// Checks a path against the `type` of a `hostPath` volume.
///
/// # Errors
/// The kubelet's words.
pub fn check(path: &str, kind: &str) -> Result<(), String> {
    let found = fs::metadata(path).ok().map(|metadata| metadata.file_type());
    let made = |result: std::io::Result<()>| {
        result.map_err(|error| format!("cannot make {path}: {error}"))
    };
    let (is_it, name) = match (kind, found) {
        ("" | "DirectoryOrCreate", None) => return made(fs::create_dir_all(path)),
        ("FileOrCreate", None) => return made(fs::write(path, "")),
        ("", Some(_)) => return Ok(()),
        ("Directory" | "DirectoryOrCreate", found) => {
            (found.is_some_and(|found| found.is_dir()), "directory")
        }
        ("File" | "FileOrCreate", found) => (found.is_some_and(|found| found.is_file()), "file"),
        ("Socket", found) => (found.is_some_and(|found| found.is_socket()), "socket"),
        ("CharDevice", found) => {
            (found.is_some_and(|found| found.is_char_device()), "character device")
        }
        ("BlockDevice", found) => {
            (found.is_some_and(|found| found.is_block_device()), "block device")
        }
        (other, _) => return Err(format!("{other:?} is no type of a hostPath volume")),
    };
    if is_it { Ok(()) } else { Err(format!("hostPath type check failed: {path} is not a {name}")) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_path_is_what_its_type_says_or_made_so() {
        let root = std::env::temp_dir().join(format!("host-paths-{}", std::process::id()));
        fs::create_dir_all(root.join("directory")).expect("a directory");
        fs::write(root.join("file"), "").expect("a file");
        let _listener = UnixListener::bind(root.join("socket")).expect("a socket");
        let at = |name: &str| root.join(name).to_string_lossy().into_owned();
        let kinds = [("Directory", "directory"), ("File", "file"), ("Socket", "socket")];
        for (kind, right) in kinds {
            for (_, name) in kinds {
                assert_eq!(check(&at(name), kind).is_ok(), name == right, "{name} as {kind}");
            }
            let error = check(&at("none"), kind).expect_err("not there");
            assert!(error.ends_with(&format!("none is not a {right}")), "{error}");
        }
        assert_eq!(check("/dev/null", "CharDevice"), Ok(()));
        assert!(check("/dev/null", "BlockDevice").is_err());
        assert!(check(&at("file"), "Pipe").is_err());
        check(&at("new/deep"), "DirectoryOrCreate").expect("made");
        check(&at("new/file"), "FileOrCreate").expect("made");
        assert!(root.join("new/deep").is_dir() && root.join("new/file").is_file());
        assert!(check(&at("file"), "DirectoryOrCreate").is_err(), "it is never replaced");
        fs::remove_dir_all(root).expect("removed");
    }
}
