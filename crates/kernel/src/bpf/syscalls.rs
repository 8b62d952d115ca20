//! The commands of `bpf(2)` that aya lacks: batches of entries, and another program for a pinned
//! attachment. Numbers and layouts are those of include/uapi/linux/bpf.h.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;
const BPF_LINK_UPDATE: libc::c_long = 29;
/// `asm-generic/socket.h`; Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Entries that one call reads: what a call allocates stays below a megabyte.
const READ_ENTRIES: usize = 4096;
/// Bytes of the kernel's place in a map between two calls: a key, or a number.
const CURSOR_BYTES: usize = 32;
/// Calls of one reading, so that a map that somebody else keeps filling ends it too.
const READ_CALLS_MAX: usize = 1 << 14;

/// `batch` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    elem_flags: u64,
    flags: u64,
}

/// `link_update` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link: u32,
    new_program: u32,
    flags: u32,
    old_program: u32,
}

/// The first members of the part of `union bpf_attr` that opens pins.
#[repr(C)]
#[derive(Default)]
struct ObjGet {
    path: u64,
    fd: u32,
    flags: u32,
}

/// `info` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct GetInfo {
    fd: u32,
    bytes: u32,
    info: u64,
}

/// The first members of `struct bpf_link_info`.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program_id: u32,
    padding: u32,
    /// Of a cgroup its number; of tcx the link's index, and how it is attached.
    place: [u32; 2],
    further: [u32; 2],
}

/// What an attachment attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attachment {
    /// The program's number.
    pub program_id: u32,
    /// To which link, where it is one of tcx; 0: to none any more.
    pub link_index: u32,
    /// Whether a cgroup has it, where it is one of cgroups: somebody may have detached it.
    pub has_cgroup: bool,
}

/// Writes entries over what is there. `keys` and `values` hold `count` of each, one after another.
///
/// # Errors
/// The kernel's. Entries before the refused one are written.
pub(super) fn update_batch(
    map: BorrowedFd<'_>,
    keys: &[u8],
    values: &[u8],
    count: usize,
) -> io::Result<()> {
    change(BPF_MAP_UPDATE_BATCH, map, keys, values, count)
}

/// Removes entries.
///
/// # Errors
/// The kernel's. Entries before the refused one are removed.
pub(super) fn delete_batch(map: BorrowedFd<'_>, keys: &[u8], count: usize) -> io::Result<()> {
    change(BPF_MAP_DELETE_BATCH, map, keys, &[], count)
}

fn change(
    command: libc::c_long,
    map: BorrowedFd<'_>,
    keys: &[u8],
    values: &[u8],
    count: usize,
) -> io::Result<()> {
    let mut batch = Batch {
        keys: address(keys),
        values: address(values),
        count: u32::try_from(count).map_err(io::Error::other)?,
        map: map.as_raw_fd().cast_unsigned(),
        ..Batch::default()
    };
    // SAFETY: `batch` is the member of `union bpf_attr` that the command reads; the caller's
    // slices hold `count` keys and values of the map's sizes and outlive the call.
    unsafe { bpf(command, &mut batch) }.map(drop)
}

/// Reads all entries: keys and values, one after another each.
///
/// # Errors
/// The kernel's.
pub(super) fn read_all(
    map: BorrowedFd<'_>,
    key_bytes: usize,
    value_bytes: usize,
) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let (mut all_keys, mut all_values) = (Vec::new(), Vec::new());
    read_parts(map, key_bytes, value_bytes, |keys, values| {
        all_keys.extend_from_slice(keys);
        all_values.extend_from_slice(values);
    })?;
    Ok((all_keys, all_values))
}

/// The same a part at a time, for maps that are too large to be held.
///
/// # Errors
/// The kernel's.
pub(super) fn read_parts(
    map: BorrowedFd<'_>,
    key_bytes: usize,
    value_bytes: usize,
    mut take: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    let mut keys = vec![0; READ_ENTRIES * key_bytes];
    let mut values = vec![0; READ_ENTRIES * value_bytes];
    let mut place = [0_u8; CURSOR_BYTES];
    let mut next = [0_u8; CURSOR_BYTES];
    for call in 0..READ_CALLS_MAX {
        let mut batch = Batch {
            in_batch: if call == 0 { 0 } else { address(&place) },
            out_batch: address_mut(&mut next),
            keys: address_mut(&mut keys),
            values: address_mut(&mut values),
            count: READ_ENTRIES as u32,
            map: map.as_raw_fd().cast_unsigned(),
            ..Batch::default()
        };
        // SAFETY: `batch` is the member of `union bpf_attr` that the command reads; the buffers
        // take `count` entries of the map's sizes and a place, and outlive the call.
        let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut batch) };
        let is_last = match result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        let count = (batch.count as usize).min(READ_ENTRIES);
        take(&keys[..count * key_bytes], &values[..count * value_bytes]);
        if is_last {
            return Ok(());
        }
        place = next;
    }
    Err(io::Error::other("the map grows faster than it can be read"))
}

/// Opens what is pinned at a path.
///
/// # Errors
/// The kernel's.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let mut get = ObjGet { path: address(path.as_bytes_with_nul()), ..ObjGet::default() };
    // SAFETY: `get` is the member of `union bpf_attr` that the command reads, and the path ends
    // with a zero and outlives the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut get) }?;
    // SAFETY: the kernel made the descriptor for us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What an attachment attaches, and to what. Needs no right to see programs of others.
///
/// # Errors
/// The kernel's.
pub(super) fn attachment(link: BorrowedFd<'_>) -> io::Result<Attachment> {
    let mut info = LinkInfo::default();
    let mut get = GetInfo {
        fd: link.as_raw_fd().cast_unsigned(),
        bytes: size_of::<LinkInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: `get` is the member of `union bpf_attr` that the command reads; `info` has as many
    // bytes as it says, and outlives the call.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut get) }?;
    Ok(Attachment {
        program_id: info.program_id,
        link_index: info.place[0],
        has_cgroup: info.place != [0; 2],
    })
}

/// Gives an attachment another program in one step.
///
/// # Errors
/// The kernel's: `ENOLINK` when what it was attached to is gone.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut update = LinkUpdate {
        link: link.as_raw_fd().cast_unsigned(),
        new_program: program.as_raw_fd().cast_unsigned(),
        ..LinkUpdate::default()
    };
    // SAFETY: `update` is the member of `union bpf_attr` that the command reads, of open
    // descriptors.
    unsafe { bpf(BPF_LINK_UPDATE, &mut update) }.map(drop)
}

/// The number by which programs know the network namespace of this thread.
///
/// # Errors
/// The kernel's.
pub(super) fn namespace_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).or_else(|_| {
        // A namespace whose loopback is down still has sockets.
        std::net::UdpSocket::bind(("0.0.0.0", 0))
    })?;
    let mut cookie = 0_u64;
    let mut bytes = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option's value is a u64, for which there is room as `bytes` says.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut bytes,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Seconds since the machine started, as programs count them (`bpf_ktime_get_ns`).
pub(super) fn uptime_s() -> u32 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is as the call expects it and outlives it; this clock cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    u32::try_from(now.tv_sec).unwrap_or(u32::MAX)
}

fn address(bytes: &[u8]) -> u64 {
    bytes.as_ptr() as u64
}

fn address_mut(bytes: &mut [u8]) -> u64 {
    bytes.as_mut_ptr() as u64
}

/// # Safety
/// `attributes` begins a `union bpf_attr` as the command reads it, and what it points to is valid
/// for the sizes that it says.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the caller promises what the kernel reads and writes; it knows the size.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}
