//! A layer's archive becomes a directory that overlayfs takes as one: names that it hides are
//! whiteouts, directories that hide all below are opaque.
//!
//! Layers come from strangers. Nothing is ever resolved by the kernel through a link of theirs: a
//! path is walked here, link by link, within the layers of the image, and only then opened, below
//! the new directory and through real directories alone.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstatat, mkdirat, mknodat,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};

use super::tar::{Archive, Entry, Kind};
use crate::sys;

/// Most entries of a layer.
const MAX_ENTRIES: usize = 2_000_000;
/// Most bytes that one layer's files may have.
const MAX_LAYER_BYTES: u64 = 32 << 30;
/// Most links on the way to one entry (the kernel's).
const MAX_LINKS: usize = 40;
/// Most names of one path.
const MAX_DEPTH: usize = 1024;
/// Hides this name of the layers below.
const WHITEOUT: &[u8] = b".wh.";
/// Hides all that the layers below have in this directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Begins names that the first union file system used for itself.
const RESERVED: &[u8] = b".wh..wh.";
/// What tells overlayfs that a directory is opaque.
const OPAQUE_ATTRIBUTE: &std::ffi::CStr = c"trusted.overlay.opaque";

/// Unpacks a layer into the empty `directory`, above the layers of `below`, topmost first. Returns
/// the bytes of its files.
///
/// # Errors
/// The entry and what is wrong with it.
pub fn unpack(
    archive: &mut Archive<impl Read>,
    directory: &Path,
    below: &[PathBuf],
) -> Result<u64, String> {
    let mut layer = Layer::open(directory, below)?;
    let failed = |error: io::Error| error.to_string();
    let mut count = 0;
    while let Some(entry) = archive.next().map_err(failed)? {
        count += 1;
        if count > MAX_ENTRIES {
            return Err(format!("the layer has more than {MAX_ENTRIES} entries"));
        }
        layer.bytes = layer.bytes.saturating_add(entry.size);
        if layer.bytes > MAX_LAYER_BYTES {
            return Err(format!("the layer's files have more than {MAX_LAYER_BYTES} bytes"));
        }
        let name = String::from_utf8_lossy(&entry.path).into_owned();
        layer.add(&entry, archive).map_err(|error| format!("entry {name:?}: {error}"))?;
    }
    nix::unistd::syncfs(&layer.own).map_err(|error| format!("cannot write the layer: {error}"))?;
    Ok(layer.bytes)
}

/// A file that the layers of an image show at a path without links, such as `etc/passwd`.
pub fn find_file(layers: &[PathBuf], path: &str) -> Option<File> {
    let opened: Option<Vec<OwnedFd>> =
        layers.iter().map(|layer| open_directory(layer).ok()).collect();
    let opened = opened?;
    let all: Vec<usize> = (0..opened.len()).collect();
    let stack = Stack { layers: &opened };
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut shown = all;
    let mut done = PathBuf::new();
    for part in parent.split('/').filter(|part| !part.is_empty()) {
        done.push(part);
        shown = stack.enter(&shown, &done);
    }
    done.push(name);
    let (index, stat) = stack.find(&shown, &done)?;
    let is_file = kind(&stat) == SFlag::S_IFREG;
    let file = open_below(&opened[index], &done, OFlag::O_RDONLY | OFlag::O_NONBLOCK).ok()?;
    is_file.then(|| File::from(file))
}

/// Directories over each other, topmost first.
struct Stack<'a> {
    layers: &'a [OwnedFd],
}

impl Stack<'_> {
    /// What the layers of `shown` have at a path, unless it is hidden.
    fn find(&self, shown: &[usize], path: &Path) -> Option<(usize, FileStat)> {
        let first = shown.iter().find_map(|index| {
            let stat = stat_below(&self.layers[*index], path).ok()?;
            Some((*index, stat))
        })?;
        (!is_whiteout(&first.1)).then_some(first)
    }

    /// Which of the layers of `shown` have a part in the directory at `path`.
    fn enter(&self, shown: &[usize], path: &Path) -> Vec<usize> {
        let mut entered = Vec::new();
        for index in shown {
            match stat_below(&self.layers[*index], path) {
                Err(_) => {}
                Ok(stat) if kind(&stat) == SFlag::S_IFDIR => {
                    entered.push(*index);
                    if is_opaque(&self.layers[*index], path) {
                        break;
                    }
                }
                Ok(_) => break,
            }
        }
        entered
    }
}

/// The layer that is unpacked.
struct Layer {
    own: OwnedFd,
    below: Vec<OwnedFd>,
    /// Directories of this layer, each with the layers below that have a part in it.
    known: BTreeMap<PathBuf, Vec<usize>>,
    bytes: u64,
}

impl Layer {
    fn open(directory: &Path, below: &[PathBuf]) -> Result<Self, String> {
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |error: nix::Error| format!("cannot open {path}: {error}")
        };
        let own = open_directory(directory).map_err(failed(directory))?;
        let below: Vec<OwnedFd> = below
            .iter()
            .map(|layer| open_directory(layer).map_err(failed(layer)))
            .collect::<Result<_, _>>()?;
        let known = [(PathBuf::new(), (0..below.len()).collect())].into();
        Ok(Self { own, below, known, bytes: 0 })
    }

    fn add(&mut self, entry: &Entry, content: &mut impl Read) -> io::Result<()> {
        let Some((parent, name)) = split(&entry.path)? else { return Ok(()) };
        let parent = self.directory(&parent)?;
        let bytes = name.as_bytes();
        if bytes == OPAQUE {
            return self.make_opaque(&parent);
        }
        if bytes.starts_with(RESERVED) {
            return Ok(());
        }
        if let Some(hidden) = bytes.strip_prefix(WHITEOUT) {
            return self.hide(&parent, OsStr::from_bytes(hidden));
        }
        let path = parent.join(&name);
        if entry.kind == Kind::Directory {
            self.make_directory(&path)?;
            return self.set_metadata(&path, entry);
        }
        if entry.kind == Kind::Device {
            return Ok(()); // Every container has its own, and no other would open.
        }
        self.remove(&path)?;
        let place = open_below(&self.own, &parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        match &entry.kind {
            Kind::File => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
                let mode = Mode::from_bits_truncate(0o600);
                let flags = flags | OFlag::O_CLOEXEC;
                let file = nix::fcntl::openat(&place, name.as_os_str(), flags, mode)?;
                io::copy(content, &mut File::from(file))?;
            }
            Kind::Symlink(target) => {
                symlinkat(OsStr::from_bytes(target), &place, name.as_os_str())?;
            }
            Kind::Link(target) => return self.link(target, &place, &name),
            Kind::Fifo => {
                let mode = Mode::from_bits_truncate(0o600);
                mknodat(&place, name.as_os_str(), SFlag::S_IFIFO, mode, 0)?;
            }
            Kind::Directory | Kind::Device => {}
        }
        self.set_metadata(&path, entry)
    }

    /// The real directory of this layer that stands for a path, made where it is missing.
    fn directory(&mut self, path: &Path) -> io::Result<PathBuf> {
        if self.known.contains_key(path) {
            return Ok(path.to_owned());
        }
        let mut done = PathBuf::new();
        let mut todo: Vec<OsString> = path.iter().rev().map(OsStr::to_owned).collect();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == ".." {
                done.pop(); // Of a link's target: above the root is the root.
                continue;
            }
            let candidate = done.join(&part);
            if self.known.contains_key(&candidate) {
                done = candidate;
                continue;
            }
            match self.find(&done, &candidate).map(|(stat, _)| kind(&stat)) {
                None | Some(SFlag::S_IFDIR) => self.make_directory(&candidate)?,
                Some(SFlag::S_IFLNK) => {
                    links += 1;
                    if links > MAX_LINKS || todo.len() > MAX_DEPTH {
                        return Err(io::Error::other("too many links on its way"));
                    }
                    let target = self.read_link(&done, &candidate)?;
                    if target.is_absolute() {
                        done = PathBuf::new();
                    }
                    let parts = target.iter().filter(|part| *part != "/" && *part != ".");
                    let parts: Vec<OsString> = parts.map(OsStr::to_owned).collect();
                    todo.extend(parts.into_iter().rev());
                    continue;
                }
                Some(_) => {
                    let message = format!("{} is no directory", candidate.display());
                    return Err(io::Error::other(message));
                }
            }
            done = candidate;
        }
        Ok(done)
    }

    /// What is at a path whose parent is known, and in which layer: this one, or one below.
    fn find(&self, parent: &Path, path: &Path) -> Option<(FileStat, &OwnedFd)> {
        if let Ok(stat) = stat_below(&self.own, path) {
            return (!is_whiteout(&stat)).then_some((stat, &self.own));
        }
        let stack = Stack { layers: &self.below };
        let shown = self.known.get(parent).map(Vec::as_slice).unwrap_or_default();
        stack.find(shown, path).map(|(index, stat)| (stat, &self.below[index]))
    }

    fn read_link(&self, parent: &Path, path: &Path) -> io::Result<PathBuf> {
        let layer = self.find(parent, path).map_or(&self.own, |(_, layer)| layer);
        let place = open_below(layer, parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        let name = path.file_name().unwrap_or_default();
        Ok(PathBuf::from(nix::fcntl::readlinkat(&place, name)?))
    }

    /// Makes a directory whose parent is known, with owner and mode of the one below that it covers.
    fn make_directory(&mut self, path: &Path) -> io::Result<()> {
        if self.known.contains_key(path) {
            return Ok(());
        }
        let parent = path.parent().unwrap_or(Path::new("")).to_owned();
        let name = path.file_name().unwrap_or_default();
        let own = stat_below(&self.own, path).ok();
        let is_there = own.as_ref().is_some_and(|stat| kind(stat) == SFlag::S_IFDIR);
        let was_hidden = own.is_some() && !is_there;
        let covered = match self.find(&parent, path) {
            Some((stat, _)) if !was_hidden && kind(&stat) == SFlag::S_IFDIR => Some(stat),
            _ => None,
        };
        let shown = if is_there || covered.is_some() {
            let shown = self.known.get(&parent).map(Vec::as_slice).unwrap_or_default();
            Stack { layers: &self.below }.enter(shown, path)
        } else {
            Vec::new()
        };
        if !is_there {
            self.remove(path)?;
            let place = open_below(&self.own, &parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
            mkdirat(&place, name, Mode::from_bits_truncate(0o700))?;
            let (user, group, mode) = covered
                .map_or((0, 0, 0o755), |stat| (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777));
            change(&place, name, user, group, Some(mode))?;
        }
        self.known.insert(path.to_owned(), shown);
        if was_hidden { self.make_opaque(path) } else { Ok(()) }
    }

    fn make_opaque(&mut self, path: &Path) -> io::Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let directory = open_below(&self.own, path, flags)?;
        sys::set_attribute(directory.as_fd(), OPAQUE_ATTRIBUTE, b"y")?;
        // Nothing below has a part in it any more.
        for (known, shown) in &mut self.known {
            if known.starts_with(path) {
                shown.clear();
            }
        }
        Ok(())
    }

    /// Hides a name of the layers below. What this layer has there itself stays.
    fn hide(&mut self, parent: &Path, name: &OsStr) -> io::Result<()> {
        if name.is_empty() || name == "." || name == ".." {
            return Err(io::Error::other("it hides no name"));
        }
        let path = parent.join(name);
        match stat_below(&self.own, &path) {
            Ok(stat) if kind(&stat) == SFlag::S_IFDIR => {
                self.known.insert(path.clone(), Vec::new());
                self.make_opaque(&path)
            }
            Ok(_) => Ok(()),
            Err(_) => {
                let place = open_below(&self.own, parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
                Ok(mknodat(&place, name, SFlag::S_IFCHR, Mode::empty(), 0)?)
            }
        }
    }

    /// Removes what this layer has at a path.
    fn remove(&mut self, path: &Path) -> io::Result<()> {
        let Ok(stat) = stat_below(&self.own, path) else { return Ok(()) };
        let parent = path.parent().unwrap_or(Path::new(""));
        let place = open_below(&self.own, parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        let name = path.file_name().unwrap_or_default();
        if kind(&stat) == SFlag::S_IFDIR {
            self.known.retain(|known, _| !known.starts_with(path));
            let tree = format!("/proc/self/fd/{}", place.as_raw_fd());
            return std::fs::remove_dir_all(Path::new(&tree).join(name));
        }
        Ok(unlinkat(&place, name, UnlinkatFlags::NoRemoveDir)?)
    }

    fn link(&mut self, target: &[u8], place: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let none = || io::Error::other("it is a link to nothing");
        let (parent, file) = split(target)?.ok_or_else(none)?;
        let parent = self.directory(&parent)?;
        let from = open_below(&self.own, &parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        linkat(&from, file.as_os_str(), place, name, AtFlags::empty()).map_err(|error| {
            let target = String::from_utf8_lossy(target);
            io::Error::other(format!(
                "it is a link to {target:?}, which its layer has not: {error}"
            ))
        })
    }

    fn set_metadata(&self, path: &Path, entry: &Entry) -> io::Result<()> {
        let parent = path.parent().unwrap_or(Path::new(""));
        let place = open_below(&self.own, parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        let name = path.file_name().unwrap_or_default();
        let mode = (!matches!(entry.kind, Kind::Symlink(_))).then_some(entry.mode);
        change(&place, name, entry.user, entry.group, mode)?;
        let time = TimeSpec::new(entry.modified_s, 0);
        Ok(utimensat(&place, name, &time, &time, UtimensatFlags::NoFollowSymlink)?)
    }
}

/// Owner first: a change of owner takes set-user-id bits away.
fn change(
    place: &OwnedFd,
    name: &OsStr,
    user: u32,
    group: u32,
    mode: Option<u32>,
) -> io::Result<()> {
    let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
    fchownat(place, name, user, group, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if let Some(mode) = mode {
        let mode = Mode::from_bits_truncate(mode);
        fchmodat(place, name, mode, FchmodatFlags::FollowSymlink)?;
    }
    Ok(())
}

/// An entry's parent and name; `None` for the root itself.
fn split(path: &[u8]) -> io::Result<Option<(PathBuf, OsString)>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(io::Error::other("its path leads out of the image")),
            part if part.contains(&0) => return Err(io::Error::other("its path has a NUL byte")),
            part => parts.push(part),
        }
    }
    if parts.len() > MAX_DEPTH {
        return Err(io::Error::other("its path is too deep"));
    }
    let Some(name) = parts.pop() else { return Ok(None) };
    let parent = parts.into_iter().map(OsStr::from_bytes).collect();
    Ok(Some((parent, OsString::from_vec(name.to_vec()))))
}

fn open_directory(path: &Path) -> nix::Result<OwnedFd> {
    open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Opens a path through real directories alone, below `base`.
fn open_below(base: &OwnedFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let resolve = resolve | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    openat2(base, path, how)
}

fn stat_below(base: &OwnedFd, path: &Path) -> nix::Result<FileStat> {
    let parent = path.parent().unwrap_or(Path::new(""));
    let place = open_below(base, parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    fstatat(&place, path.file_name().unwrap_or_default(), AtFlags::AT_SYMLINK_NOFOLLOW)
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn is_whiteout(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

fn is_opaque(layer: &OwnedFd, path: &Path) -> bool {
    open_below(layer, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
        .is_ok_and(|directory| sys::has_attribute(directory.as_fd(), OPAQUE_ATTRIBUTE, b"y"))
}

#[cfg(test)]
mod tests;
