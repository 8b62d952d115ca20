//! A container's root file system, built in the container's own mount namespace: nothing of it is
//! visible elsewhere, and all of it goes when the container's last process goes.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use pause::{Bind, ContainerSpec, Overlay};

use crate::sys;

/// Parts of /proc that tell of or change the machine, hidden as every runtime hides them.
const MASKED: [&str; 8] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
/// Parts of /proc that change the machine when written.
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Devices that every program may expect: name, major, minor.
const DEVICES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Builds the root and makes it the root of this process.
pub fn enter(spec: &ContainerSpec) -> Result<(), String> {
    let none = None::<&str>;
    // Nothing that follows may reach the pod's or the node's mount namespace.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(|error| format!("cannot make mounts private: {error}"))?;
    for overlay in &spec.overlays {
        mount_overlay(&spec.root, overlay)?;
    }
    let root = directory(&spec.root)?;
    mount_kernel_file_systems(spec, root.as_fd())?;
    for bind in &spec.binds {
        mount_bind(root.as_fd(), bind, spec.privileged).map_err(|error| {
            format!("cannot mount {} at {}: {error}", bind.source.display(), bind.target)
        })?;
    }
    pivot(&spec.root)?;
    if !spec.privileged {
        restrict_kernel_file_systems(spec.whole_proc)?;
    }
    if spec.read_only_root {
        for overlay in &spec.overlays {
            remount_read_only(&overlay.target)?;
        }
    }
    Ok(())
}

fn mount_overlay(root: &Path, overlay: &Overlay) -> Result<(), String> {
    let target = root.join(overlay.target.trim_start_matches('/'));
    // The kernel takes one page of options: descriptors' names are short, and need no escapes.
    let open = |path: &Path| directory(path).map(|opened| (descriptor_path(&opened), opened));
    let lowers: Vec<(String, OwnedFd)> =
        overlay.lowers.iter().map(|lower| open(lower)).collect::<Result<_, _>>()?;
    let names: Vec<&str> = lowers.iter().map(|(name, _)| name.as_str()).collect();
    let (upper, work) = (open(&overlay.upper)?, open(&overlay.work)?);
    let options = format!("lowerdir={},upperdir={},workdir={}", names.join(":"), upper.0, work.0);
    // A container may make devices, as with other runtimes, but open none.
    let flags = MsFlags::MS_NODEV;
    mount(Some("overlay"), &target, Some("overlay"), flags, Some(options.as_str())).map_err(
        |error| {
            let below = overlay.lowers.first().map(|lower| lower.display().to_string());
            let below = below.unwrap_or_default();
            format!("cannot mount the image at {below} as an overlay: {error}")
        },
    )
}

fn mount_kernel_file_systems(spec: &ContainerSpec, root_fd: BorrowedFd<'_>) -> Result<(), String> {
    let (none, root) = (None::<&str>, &spec.root);
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    let system = if spec.privileged { quiet } else { quiet | MsFlags::MS_RDONLY };
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let rows: [(&str, &str, MsFlags, Option<&str>); 4] = [
        ("proc", "proc", quiet, none),
        ("sys", "sysfs", system, none),
        ("dev", "tmpfs", plain, Some("mode=755,size=64k")),
        ("dev/pts", "devpts", plain, Some("newinstance,ptmxmode=0666,mode=0620,gid=5")),
    ];
    for (place, kind, flags, data) in rows {
        make_directory(root_fd, place).map_err(|error| format!("cannot make /{place}: {error}"))?;
        mount(Some(kind), &root.join(place), Some(kind), flags, data)
            .map_err(|error| format!("cannot mount {kind} at /{place}: {error}"))?;
    }
    share_memory(root_fd, root, &spec.shared_memory)?;
    let dev = root.join("dev");
    let filled = fill_devices(&dev).and_then(|()| match spec.privileged {
        true => copy_devices(Path::new("/dev"), &dev),
        false => confine_devices(&dev),
    });
    filled.map_err(|error| format!("cannot fill /dev: {error}"))
}

fn share_memory(root_fd: BorrowedFd<'_>, root: &Path, shared: &Path) -> Result<(), String> {
    let failed =
        |error: io::Error| format!("cannot bind {} at /dev/shm: {error}", shared.display());
    make_directory(root_fd, "dev/shm").map_err(failed)?;
    let (none, place) = (None::<&str>, root.join("dev/shm"));
    let flags = MsFlags::MS_BIND;
    let restricted =
        flags | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    mount(Some(shared), &place, none, flags, none)
        .and_then(|()| mount(none, &place, none, restricted, none))
        .map_err(|error| failed(error.into()))
}

fn fill_devices(dev: &Path) -> io::Result<()> {
    for (name, major, minor) in DEVICES {
        make_device(&dev.join(name), SFlag::S_IFCHR, makedev(major, minor), 0o666)?;
    }
    let links = [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("pts/ptmx", "ptmx"),
    ];
    for (target, name) in links {
        std::os::unix::fs::symlink(target, dev.join(name))?;
    }
    Ok(())
}

fn make_device(path: &Path, kind: SFlag, device: u64, mode: u32) -> io::Result<()> {
    mknod(path, kind, Mode::from_bits_truncate(mode), device)?;
    // mknod obeys the umask, chmod does not.
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Devices that the container makes itself cannot be opened: those that are there are mounts of
/// their own, which the mark of the directory's mount does not hold for.
fn confine_devices(dev: &Path) -> io::Result<()> {
    let none = None::<&str>;
    for (name, ..) in DEVICES {
        let path = dev.join(name);
        mount(Some(&path), &path, none, MsFlags::MS_BIND, none)?;
    }
    let flags = MsFlags::MS_BIND
        | MsFlags::MS_REMOUNT
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NOEXEC
        | MsFlags::MS_NODEV;
    Ok(mount(none, dev, none, flags, none)?)
}

/// Gives a privileged container the node's devices. What is there already is its own, as are
/// terminals and shared memory.
fn copy_devices(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (own, metadata) = (to.join(entry.file_name()), entry.metadata()?);
        let kind = match metadata.file_type() {
            kind if kind.is_char_device() => SFlag::S_IFCHR,
            kind if kind.is_block_device() => SFlag::S_IFBLK,
            kind if kind.is_dir() && !own.exists() => {
                fs::create_dir(&own)?;
                copy_devices(&entry.path(), &own)?;
                continue;
            }
            _ => continue,
        };
        match make_device(&own, kind, metadata.rdev(), metadata.mode() & 0o777) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => chown(&own, Some(metadata.uid()), Some(metadata.gid()))?,
        }
    }
    Ok(())
}

/// Both ends are resolved without leaving their base: a pod's own links in a shared volume must not
/// lead a mount to a place outside (CVE-2021-25741 and its kind).
fn mount_bind(root: BorrowedFd<'_>, bind: &Bind, privileged: bool) -> io::Result<()> {
    let none = None::<&str>;
    let base = open(&bind.source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    let source = if bind.sub_path.is_empty() {
        base
    } else {
        make_directory_unless_there(base.as_fd(), &bind.sub_path)?;
        sys::open_within(base.as_fd(), &bind.sub_path, libc::O_PATH, true)?
    };
    let place = bind.target.trim_start_matches('/');
    let is_directory = fs::metadata(descriptor_path(&source))?.is_dir();
    if is_directory {
        make_directory(root, place)?;
    } else {
        make_file(root, place)?;
    }
    let target = sys::open_within(root, place, libc::O_PATH, false)?;
    let (source_path, target_path) = (descriptor_path(&source), descriptor_path(&target));
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(source_path.as_str()), target_path.as_str(), none, flags, none)?;
    // The descriptor of the target still names what lies under the mount: open what lies on top.
    let mounted = sys::open_within(root, place, libc::O_PATH, false)?;
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
    if !privileged {
        flags |= MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    }
    if bind.read_only {
        flags |= MsFlags::MS_RDONLY;
    }
    Ok(mount(none, descriptor_path(&mounted).as_str(), none, flags, none)?)
}

fn pivot(root: &Path) -> Result<(), String> {
    let failed = |error: nix::Error| format!("cannot enter the root file system: {error}");
    nix::unistd::chdir(root).map_err(failed)?;
    // The old root is stacked on the new one and then detached: no directory for it is needed.
    nix::unistd::pivot_root(".", ".").map_err(failed)?;
    umount2(".", MntFlags::MNT_DETACH).map_err(failed)?;
    nix::unistd::chdir("/").map_err(failed)
}

/// Paths that this kernel does not have are passed over; one that is there and cannot be hidden
/// keeps the container from starting.
fn restrict_kernel_file_systems(whole_proc: bool) -> Result<(), String> {
    let none = None::<&str>;
    let is_cut = |path: &str| !(whole_proc && path.starts_with("/proc/"));
    for path in MASKED.into_iter().filter(|path| is_cut(path)) {
        let Ok(metadata) = fs::symlink_metadata(path) else { continue };
        if metadata.is_dir() {
            mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_RDONLY, Some("mode=000"))
        } else {
            mount(Some("/dev/null"), path, none, MsFlags::MS_BIND, none)
        }
        .map_err(|error| format!("cannot hide {path}: {error}"))?;
    }
    let read_only = READ_ONLY.into_iter().filter(|path| is_cut(path) && Path::new(path).exists());
    for path in read_only {
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(path), path, none, bind, none)
            .map_err(|error| format!("cannot bind {path}: {error}"))?;
        remount_read_only(path)?;
    }
    Ok(())
}

fn remount_read_only(path: &str) -> Result<(), String> {
    let none = None::<&str>;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NODEV;
    mount(none, path, none, flags, none)
        .map_err(|error| format!("cannot make {path} read-only: {error}"))
}

fn directory(path: &Path) -> Result<OwnedFd, String> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty())
        .map_err(|error| format!("cannot open {}: {error}", path.display()))
}

fn make_directory_unless_there(base: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    match sys::open_within(base, path, libc::O_PATH, true) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_directory(base, path),
        found => found.map(drop),
    }
}

/// Makes a directory and its parents below `root`, without leaving it.
fn make_directory(root: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let mut done = String::from(".");
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        let parent = sys::open_within(root, &done, libc::O_PATH | libc::O_DIRECTORY, false)?;
        match nix::sys::stat::mkdirat(&parent, part, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(nix::Error::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        done = format!("{done}/{part}");
    }
    Ok(())
}

fn make_file(root: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    if sys::open_within(root, path, libc::O_PATH, false).is_ok() {
        return Ok(());
    }
    let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
    make_directory(root, parent)?;
    let parent = sys::open_within(root, parent, libc::O_PATH | libc::O_DIRECTORY, false)?;
    let flags = OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_WRONLY;
    nix::fcntl::openat(&parent, name, flags, Mode::from_bits_truncate(0o644))?;
    Ok(())
}

fn descriptor_path(descriptor: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}
