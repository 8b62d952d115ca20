//! The two images that need no registry, and what each start of a container gets of them.
//!
//! `localhost/toolbox` is one static binary. `localhost/host` is the machine's own programs: `/usr`
//! and `/etc` of the host, read-only under overlays. It is a list of what is shown, not of what is
//! hidden: everything else at the top of the host's file system is an empty directory of our own.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, mknod};
use pause::Overlay;

use super::oci::ImageConfig;
use super::reference::Reference;
use crate::disk;

/// What the host image shows of the host. `/bin`, `/lib` and the like are links into `/usr` on every
/// current distribution, and are shown as they are.
const SHOWN: [&str; 8] = ["usr", "etc", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Empty directories of the host image, with their modes.
const EMPTY: [(&str, u32); 19] = [
    ("boot", 0o755),
    ("dev", 0o755),
    ("home", 0o755), // People's files.
    ("media", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o755),
    ("root", 0o700), // The administrator's keys and histories.
    ("run", 0o755),  // Sockets of the machine's daemons: Docker's alone is as good as root.
    ("srv", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777), // Other people's sockets and files.
    ("var", 0o755),  // Databases, logs, mail, other runtimes' and our own state.
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/mail", 0o755),
    ("var/spool", 0o755),
    ("var/tmp", 0o1777),
];
/// Below these the host's directories are there by name, without their content: nginx and others
/// expect theirs.
const NAMES_SHOWN: [&str; 4] = ["var/cache", "var/lib", "var/log", "var/spool"];
/// Parts of /etc that are hidden by name. Besides, everything there that not every user of the host
/// may read is hidden: that is how a host marks its secrets.
const ETC_HIDDEN: [&str; 14] = [
    "cni",     // Networks of the node, not of the pod.
    "docker",  // Registry credentials, TLS keys.
    "flatnet", // Our own credentials.
    "gshadow", // Password hashes.
    "gshadow-",
    "kubernetes",     // Cluster credentials.
    "letsencrypt",    // TLS keys.
    "machine-id",     // The host's identity.
    "NetworkManager", // Wi-Fi and VPN passwords.
    "openvpn",        // Keys.
    "shadow",         // Password hashes.
    "shadow-",
    "ssh",       // Host keys.
    "wireguard", // Keys.
];
/// Files of /etc that each container has its own of.
const ETC_REPLACED: [&str; 3] = ["hosts", "hostname", "resolv.conf"];
/// Most entries of /etc that are looked at.
const MAX_ETC_ENTRIES: usize = 100_000;

/// An image of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Builtin {
    /// The host's programs.
    Host,
    /// Our static binary.
    Toolbox,
}

impl Builtin {
    /// Finds an image by its name. The tag is not looked at: there is one version.
    pub fn find(reference: &Reference) -> Option<Self> {
        match (reference.registry.as_str(), reference.repository.as_str()) {
            ("localhost", "host") => Some(Self::Host),
            ("localhost", "toolbox") => Some(Self::Toolbox),
            _ => None,
        }
    }

    /// What its containers are started with.
    pub fn config(self) -> ImageConfig {
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        let (entrypoint, cmd) = match self {
            Self::Host => (Vec::new(), texts(&["/bin/sh"])),
            Self::Toolbox => (texts(&["/bin/toolbox"]), texts(&["serve", "--http", "8080"])),
        };
        ImageConfig { entrypoint, cmd, ..ImageConfig::default() }
    }
}

/// The images of this machine, laid out on disk for one node.
#[derive(Clone, Debug)]
pub struct Builtins {
    directory: PathBuf,
}

impl Builtins {
    /// Lays the images out below `directory`; what is there already is brought up to date.
    ///
    /// # Errors
    /// The path and the reason.
    pub fn prepare(directory: PathBuf, toolbox: &Path) -> Result<Self, String> {
        let images = Self { directory };
        let failed = |what: &str, error: io::Error| format!("cannot lay out {what}: {error}");
        images.lay_out_host().map_err(|error| failed("localhost/host", error))?;
        images.lay_out_toolbox(toolbox).map_err(|error| {
            failed("localhost/toolbox", error) + &format!(" (from {})", toolbox.display())
        })?;
        Ok(images)
    }

    /// The overlays of a new container, whose written layers go below `layers`.
    ///
    /// # Errors
    /// The path and the reason.
    pub fn overlays(&self, image: Builtin, layers: &Path) -> Result<Vec<Overlay>, String> {
        let root = match image {
            Builtin::Host => self.directory.join("host"),
            Builtin::Toolbox => self.directory.join("toolbox"),
        };
        let mut overlays = vec![overlay("/", vec![root], layers)?];
        if image == Builtin::Host {
            for name in SHOWN {
                let path = Path::new("/").join(name);
                if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
                    overlays.push(overlay(&format!("/{name}"), vec![path], layers)?);
                }
            }
            let etc = layers.join("etc/upper");
            hide_secrets(&etc).map_err(|error| format!("cannot hide secrets of /etc: {error}"))?;
        }
        Ok(overlays)
    }

    fn lay_out_host(&self) -> io::Result<()> {
        let root = self.directory.join("host");
        make_directory(&root, 0o755)?;
        for (name, mode) in EMPTY {
            make_directory(&root.join(name), mode)?;
        }
        for name in SHOWN {
            let (host, own) = (Path::new("/").join(name), root.join(name));
            match fs::symlink_metadata(&host) {
                Ok(metadata) if metadata.is_symlink() => link(&fs::read_link(&host)?, &own)?,
                Ok(metadata) if metadata.is_dir() => make_directory(&own, 0o755)?,
                _ => {}
            }
        }
        link(Path::new("/run"), &root.join("var/run"))?;
        link(Path::new("/run/lock"), &root.join("var/lock"))?;
        for parent in NAMES_SHOWN {
            for entry in fs::read_dir(Path::new("/").join(parent)).into_iter().flatten().flatten() {
                let metadata = entry.metadata()?;
                if metadata.is_dir() && metadata.mode() & 0o005 == 0o005 {
                    let own = root.join(parent).join(entry.file_name());
                    make_directory(&own, metadata.mode() & 0o7777)?;
                    chown(&own, Some(metadata.uid()), Some(metadata.gid()))?;
                }
            }
        }
        Ok(())
    }

    fn lay_out_toolbox(&self, binary: &Path) -> io::Result<()> {
        let root = self.directory.join("toolbox");
        let rows = [("", 0o755), ("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("root", 0o700)];
        for (name, mode) in rows {
            make_directory(&root.join(name), mode)?;
        }
        let users =
            "root:x:0:0:root:/root:/bin/toolbox\nnobody:x:65534:65534:nobody:/:/bin/toolbox\n";
        fs::write(root.join("etc/passwd"), users)?;
        fs::write(root.join("etc/group"), "root:x:0:\nnobody:x:65534:\n")?;
        link(Path::new("toolbox"), &root.join("bin/flatnet-toolbox"))?;
        let (own, temporary) = (root.join("bin/toolbox"), root.join("bin/.toolbox"));
        let present = fs::metadata(&own).ok();
        let wanted = fs::metadata(binary)?;
        if present.is_some_and(|present| {
            present.ino() == wanted.ino() && present.dev() == wanted.dev()
                || present.len() == wanted.len() && present.mtime() >= wanted.mtime()
        }) {
            return Ok(());
        }
        let _ = fs::remove_file(&temporary);
        // One inode for all nodes of a machine: its pages are in memory once.
        if fs::hard_link(binary, &temporary).is_err() {
            fs::copy(binary, &temporary)?;
            fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755))?;
        }
        fs::rename(&temporary, &own)
    }
}

/// An overlay of read-only directories, topmost first, and one that is written below `layers`.
///
/// # Errors
/// The path and the reason.
pub fn overlay(target: &str, lowers: Vec<PathBuf>, layers: &Path) -> Result<Overlay, String> {
    let name = if target == "/" { "root" } else { target.trim_start_matches('/') };
    let (upper, work) = (layers.join(name).join("upper"), layers.join(name).join("work"));
    // The upper directory's own mode is what the mount's root shows.
    for (path, mode) in [(&upper, 0o755), (&work, 0o700)] {
        make_directory(path, mode)
            .map_err(|error| format!("cannot make {}: {error}", path.display()))?;
    }
    Ok(Overlay { target: target.to_owned(), lowers, upper, work })
}

/// Puts a whiteout over each secret into a new container's upper layer of /etc. The container
/// cannot take one away: what it makes in that place hides the host's file as well.
fn hide_secrets(upper: &Path) -> io::Result<()> {
    for name in ETC_HIDDEN.iter().filter(|name| Path::new("/etc").join(name).exists()) {
        whiteout(&upper.join(name))?;
    }
    for name in ETC_REPLACED {
        let path = upper.join(name);
        fs::OpenOptions::new().create(true).append(true).mode(0o644).open(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    }
    let mut seen = 0;
    hide_unreadable(Path::new("/etc"), upper, &mut seen)
}

fn hide_unreadable(directory: &Path, upper: &Path, seen: &mut usize) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        *seen += 1;
        if *seen > MAX_ETC_ENTRIES {
            return Err(io::Error::other(format!("/etc has more than {MAX_ETC_ENTRIES} entries")));
        }
        let own = upper.join(entry.file_name());
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_symlink() || fs::symlink_metadata(&own).is_ok() {
            continue; // A link is no secret, and what it leads to is judged itself.
        }
        let wanted = if metadata.is_dir() { 0o005 } else { 0o004 };
        if metadata.mode() & wanted != wanted {
            make_parents(directory, upper)?;
            whiteout(&own)?;
        } else if metadata.is_dir() {
            hide_unreadable(&entry.path(), &own, seen)?;
        }
    }
    Ok(())
}

/// Directories of the upper layer show their own owner and mode: those of the host's.
fn make_parents(host: &Path, upper: &Path) -> io::Result<()> {
    if upper.exists() {
        return Ok(());
    }
    if let (Some(host), Some(upper)) = (host.parent(), upper.parent()) {
        make_parents(host, upper)?;
    }
    let metadata = fs::metadata(host)?;
    make_directory(upper, metadata.mode() & 0o7777)?;
    chown(upper, Some(metadata.uid()), Some(metadata.gid()))
}

/// A character device 0:0 is how an overlay's upper layer says "not there".
fn whiteout(path: &Path) -> io::Result<()> {
    match mknod(path, SFlag::S_IFCHR, Mode::empty(), 0) {
        Ok(()) | Err(nix::Error::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        disk::make_private(parent).map_err(io::Error::other)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // The umask does not hold for this.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn link(target: &Path, path: &Path) -> io::Result<()> {
    match fs::read_link(path) {
        Ok(present) if present == target => return Ok(()),
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    symlink(target, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_digests_are_not_looked_at() {
        let digest = format!("localhost/toolbox:1.2@sha256:{}", "0".repeat(64));
        let cases = [
            ("localhost/host", Some(Builtin::Host)),
            ("localhost/host:latest", Some(Builtin::Host)),
            (digest.as_str(), Some(Builtin::Toolbox)),
            ("nginx", None),
            ("localhost/nginx:1", None),
            ("docker.io/localhost/host", None),
        ];
        for (text, image) in cases {
            let reference = Reference::parse(text).expect("a name");
            assert_eq!(Builtin::find(&reference), image, "{text}");
        }
    }
}
