//! The opt-in socket fast path between pods of one node, by `bpf/sockets.c`.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use aya::maps::SockHash;
use aya::programs::links::{FdLink, LinkError};
use aya::programs::{CgroupAttachMode, ProgramError, SkMsg, SockOps};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use render::OpError;

use super::attach::unpin;
use super::objects::{fingerprint, make_directory, versioned};
use super::{absent, refused};

/// `bpf/sockets.c`, compiled.
static SOCKETS: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sockets.o"));

const PREFIX: &str = "sockets-";
/// The pin of the attachment to the cgroup; with it everything else lives.
const LINK: &str = "on_event";
const MAP: &str = "sockets";

/// Attaches the programs to the processes of a cgroup of version 2: those of the node's pods and no
/// other node's. They are pinned, and outlive this process; connections that were made before, or
/// go elsewhere, stay with TCP. [`super::Forwarding`] fills the map of pods that they read, and has
/// to be loaded before. Where this build is attached to this cgroup already, nothing is written.
///
/// Asked for, never a default: packet captures and counters miss the data of such connections, many
/// kernels answer `ioctl(FIONREAD)` without it, and a blocking read may return `EAGAIN` while
/// another thread writes to the same socket (the kernel waits once, for any event of the socket).
/// Programs that poll, as most servers do, notice nothing.
///
/// # Errors
/// When the kernel has no socket maps (`CONFIG_BPF_STREAM_PARSER`) or refuses the programs.
pub fn load(file_system: &Path, cgroup: &Path) -> Result<(), OpError> {
    let top = versioned(file_system);
    let opening = |error| refused(&format!("open the cgroup {}", cgroup.display()), &error);
    let group = File::open(cgroup).map_err(opening)?;
    let number = group.metadata().map_err(opening)?.ino();
    let directory = top.join(format!("{PREFIX}{}-{number}", fingerprint(SOCKETS)));
    if directory.join(LINK).exists() {
        return Ok(());
    }
    make_directory(&directory)?;
    let failed = |error: &(dyn std::error::Error + 'static)| {
        refused(&format!("load the socket fast path for {}", cgroup.display()), error)
    };
    // Not by `Loader`: these programs are attached by hand, and only what holds them is pinned.
    let mut object = EbpfLoader::new()
        .default_map_pin_directory(top.join("maps"))
        .load(SOCKETS)
        .map_err(|error| failed(&error))?;
    attach_sender(&mut object)?.map_err(|error| failed(&error))?;
    let link = attach_events(&mut object, &group)?.map_err(|error| failed(&error))?;
    link.pin(directory.join(LINK)).map_err(|error| failed(&error))?;
    // What another build attached, or this one to a cgroup that is gone.
    remove_all(&top, Some(&directory))
}

/// Detaches it, where any process loaded it: new connections are TCP's alone, and so is what
/// established ones send from now on. What was sent before is read first.
///
/// # Errors
/// When something of ours stays.
pub fn remove(file_system: &Path) -> Result<(), OpError> {
    let top = versioned(file_system);
    let map = top.join("maps").join(MAP);
    if !map.exists() {
        return Ok(());
    }
    remove_all(&top, None)?;
    fs::remove_file(&map).map_err(|error| refused(&format!("remove {}", map.display()), &error))
}

/// Sockets get the program when they come into the map, so it goes first.
fn attach_sender(object: &mut Ebpf) -> Result<Result<(), ProgramError>, OpError> {
    let map = object.map(MAP).ok_or_else(absent)?;
    let map: Result<SockHash<_, [u8; ebpf_abi::SocketKey::BYTES]>, _> = map.try_into();
    let map = map.map(|sockets| sockets.fd().try_clone());
    let program = object.program_mut("on_send").ok_or_else(absent)?;
    Ok((|| {
        let program: &mut SkMsg = program.try_into()?;
        program.load()?;
        let id = program.attach(&map??)?;
        // The map holds the program, not this process.
        std::mem::forget(program.take_link(id)?);
        Ok(())
    })())
}

fn attach_events(
    object: &mut Ebpf,
    cgroup: &File,
) -> Result<Result<FdLink, ProgramError>, OpError> {
    let program = object.program_mut("on_event").ok_or_else(absent)?;
    let other = |error: LinkError| ProgramError::IOError(std::io::Error::other(error));
    Ok((|| {
        let program: &mut SockOps = program.try_into()?;
        program.load()?;
        let id = program.attach(cgroup, CgroupAttachMode::Single)?;
        FdLink::try_from(program.take_link(id)?).map_err(other)
    })())
}

fn remove_all(top: &Path, except: Option<&Path>) -> Result<(), OpError> {
    let failed = |error: std::io::Error| refused(&format!("clean up {}", top.display()), &error);
    for entry in fs::read_dir(top).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(PREFIX) && Some(path.as_path()) != except {
            let link = path.join(LINK);
            if link.exists() {
                unpin(&link)?;
            }
            fs::remove_dir_all(&path).map_err(failed)?;
        }
    }
    Ok(())
}
