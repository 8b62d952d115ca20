//! The commands of `bpf(2)` that aya lacks: batches of entries, and another program for a pinned
//! attachment. Numbers and layouts are those of include/uapi/linux/bpf.h.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::programs::TcAttachType;
use aya_obj::generated::bpf_insn;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_BTF_LOAD: libc::c_long = 18;
const BPF_MAP_FREEZE: libc::c_long = 22;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;
const BPF_LINK_GET_NEXT_ID: libc::c_long = 31;
const BPF_LINK_DETACH: libc::c_long = 34;
/// `BPF_OBJ_NAME_LEN`, the byte at its end included.
const NAME_BYTES: usize = 16;
/// Where there is no such entry yet.
const BPF_NOEXIST: u64 = 1;
/// `enum bpf_attach_type`.
const BPF_XDP: u32 = 37;
/// `BPF_LINK_TYPE_CGROUP` of `enum bpf_link_type`.
const LINK_OF_CGROUP: u32 = 3;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
/// Before all others, where no other is named.
const BPF_F_BEFORE: u32 = 8;
/// `linux/if_link.h`: in the driver, not in front of the stack.
const XDP_FLAGS_DRV_MODE: u32 = 4;
/// Room that a frame may grow by.
const FRAME_GROWTH_BYTES: usize = 256;
/// `asm-generic/socket.h`; Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Entries that one call reads: what a call allocates stays below a megabyte.
const READ_ENTRIES: usize = 4096;
/// Bytes of the kernel's place in a map between two calls: a key, or a number.
const CURSOR_BYTES: usize = 32;
/// Calls of one reading, so that a map that somebody else keeps filling ends it too.
const READ_CALLS_MAX: usize = 1 << 14;
/// Attachments of the whole machine that are looked at.
const ATTACHMENTS_MAX: usize = 1 << 16;

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

/// The part of `union bpf_attr` that makes a map, up to and with its name.
#[repr(C)]
#[derive(Default)]
struct MapCreate {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries_max: u32,
    flags: u32,
    inner: u32,
    numa_node: u32,
    name: [u8; NAME_BYTES],
}

/// The part of it that is about one entry of a map.
#[repr(C)]
#[derive(Default)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
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

/// `link_create` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    link_index: u32,
    attach_type: u32,
    flags: u32,
}

/// `test` of `union bpf_attr`, up to and with the contexts.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    answer: u32,
    bytes_in: u32,
    bytes_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration_ns: u32,
    context_bytes_in: u32,
    context_bytes_out: u32,
    context_in: u64,
    context_out: u64,
}

/// `struct xdp_md`.
#[repr(C)]
#[derive(Default)]
struct FrameContext {
    data: u32,
    data_end: u32,
    data_meta: u32,
    came_by: u32,
    queue: u32,
    leaves_by: u32,
}

/// The first members of the part of `union bpf_attr` that makes and opens pins.
#[repr(C)]
#[derive(Default)]
struct ObjGet {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that loads a program, up to and with the program that it extends.
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; NAME_BYTES],
    device: u32,
    attach_type: u32,
    types: u32,
    function_bytes: u32,
    functions: u64,
    function_count: u32,
    line_bytes: u32,
    lines: u64,
    line_count: u32,
    attach_types_id: u32,
    attach_program: u32,
    padding: u32,
}

/// The part of it that loads types, up to and with the level of words about them.
#[repr(C)]
#[derive(Default)]
struct TypesLoad {
    types: u64,
    log: u64,
    bytes: u32,
    log_bytes: u32,
    log_level: u32,
    padding: u32,
}

/// `info` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct GetInfo {
    fd: u32,
    bytes: u32,
    info: u64,
}

/// The part of `union bpf_attr` that names an attachment by its number.
#[repr(C)]
#[derive(Default)]
struct LinkId {
    /// Of this attachment, or the one after which to look.
    id: u32,
    next: u32,
    open_flags: u32,
}

/// The part of it that detaches.
#[repr(C)]
struct LinkDetach {
    link: u32,
}

/// The first members of `struct bpf_link_info`.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program_id: u32,
    padding: u32,
    /// Of a cgroup its number; of tcx the link's index, and how it is attached; of XDP the index.
    place: [u32; 2],
    further: [u32; 2],
}

/// What an attachment attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attachment {
    /// The program's number.
    pub program_id: u32,
    /// To which link, where it is one of tcx or XDP; 0: to none any more.
    pub link_index: u32,
    /// The number of the cgroup, where it is one of cgroups; 0: somebody has detached it.
    pub cgroup: u64,
}

/// A map that shall be made.
pub(super) struct NewMap<'a> {
    /// Its name; of a longer one the beginning.
    pub(super) name: &'a str,
    /// `enum bpf_map_type`.
    pub(super) kind: u32,
    /// The bytes of a key.
    pub(super) key_bytes: usize,
    /// The bytes of a value.
    pub(super) value_bytes: usize,
    /// How many entries it takes.
    pub(super) entries_max: u32,
    /// Where its entries are maps: one like them.
    pub(super) inner: Option<BorrowedFd<'a>>,
}

/// Makes a map.
///
/// # Errors
/// The kernel's.
pub(super) fn create_map(new: &NewMap<'_>) -> io::Result<OwnedFd> {
    let mut create = MapCreate {
        kind: new.kind,
        key_bytes: u32::try_from(new.key_bytes).map_err(io::Error::other)?,
        value_bytes: u32::try_from(new.value_bytes).map_err(io::Error::other)?,
        entries_max: new.entries_max,
        inner: new.inner.map_or(0, |inner| inner.as_raw_fd().cast_unsigned()),
        name: short_name(new.name),
        ..MapCreate::default()
    };
    // SAFETY: `create` is the member of `union bpf_attr` that the command reads.
    let fd = unsafe { bpf(BPF_MAP_CREATE, &mut create) }?;
    // SAFETY: the kernel made the descriptor for us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Writes an entry where there is none. `key` and `value` have the map's sizes. Answers whether
/// there was none.
///
/// # Errors
/// The kernel's.
pub(super) fn add_entry(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<bool> {
    let mut element = Element {
        map: map.as_raw_fd().cast_unsigned(),
        key: address(key),
        value: address(value),
        flags: BPF_NOEXIST,
        ..Element::default()
    };
    // SAFETY: `element` is the member of `union bpf_attr` that the command reads; the caller's
    // slices have the map's sizes and outlive the call.
    match unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut element) } {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        result => result.map(|_| true),
    }
}

/// The number of the map at a place of an array of maps.
///
/// # Errors
/// The kernel's.
pub(super) fn map_at(maps: BorrowedFd<'_>, place: u32) -> io::Result<Option<u32>> {
    let mut id = [0; 4];
    let mut element = element_at(maps, &place);
    element.value = address_mut(&mut id);
    // SAFETY: `element` is the member of `union bpf_attr` that the command reads; such a map has
    // keys and answers numbers of four bytes, and both outlive the call.
    match unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut element) } {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        result => result.map(|_| Some(u32::from_ne_bytes(id))),
    }
}

/// Puts a map at a place of an array of maps, or nothing. When this returns no program uses any more
/// what was there.
///
/// # Errors
/// The kernel's.
pub(super) fn put_map(
    maps: BorrowedFd<'_>,
    place: u32,
    map: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut element = element_at(maps, &place);
    let Some(map) = map else {
        // SAFETY: `element` is the member of `union bpf_attr` that the command reads; such a map
        // has keys of four bytes, and this one outlives the call.
        return match unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut element) } {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result.map(drop),
        };
    };
    let fd = map.as_raw_fd();
    element.value = std::ptr::from_ref(&fd) as u64;
    // SAFETY: as above; the value is a descriptor, of four bytes too.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut element) }.map(drop)
}

fn element_at(map: BorrowedFd<'_>, key: &u32) -> Element {
    let map = map.as_raw_fd().cast_unsigned();
    Element { map, key: std::ptr::from_ref(key) as u64, ..Element::default() }
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

/// Pins what a descriptor holds.
///
/// # Errors
/// The kernel's.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let mut pin = ObjGet {
        path: address(path.as_bytes_with_nul()),
        fd: object.as_raw_fd().cast_unsigned(),
        ..ObjGet::default()
    };
    // SAFETY: `pin` is the member of `union bpf_attr` that the command reads, and the path ends
    // with a zero and outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut pin) }.map(drop)
}

/// A program that shall be loaded.
pub(super) struct NewProgram<'a> {
    /// Its name; of a longer one the beginning.
    pub(super) name: &'a str,
    /// `enum bpf_prog_type`.
    pub(super) kind: u32,
    /// `enum bpf_attach_type`; 0 where the kind has one alone.
    pub(super) attach_type: u32,
    /// With the numbers of maps in them.
    pub(super) instructions: &'a [bpf_insn],
    /// The license that it names.
    pub(super) license: &'a CStr,
    /// The types of its object, in the kernel.
    pub(super) types: Option<BorrowedFd<'a>>,
    /// What types its functions have: records, and the bytes of each.
    pub(super) functions: (&'a [u8], usize),
    /// Which lines its instructions are from, in the same way.
    pub(super) lines: (&'a [u8], usize),
}

/// Loads a program. What the kernel has to say of it is written to `log`, where that has room.
///
/// # Errors
/// The kernel's.
pub(super) fn load_program(new: &NewProgram<'_>, log: &mut [u8]) -> io::Result<OwnedFd> {
    let mut load = ProgramLoad {
        kind: new.kind,
        instruction_count: u32::try_from(new.instructions.len()).map_err(io::Error::other)?,
        instructions: new.instructions.as_ptr() as u64,
        license: new.license.as_ptr() as u64,
        attach_type: new.attach_type,
        name: short_name(new.name),
        ..ProgramLoad::default()
    };
    if let Some(types) = new.types {
        load.types = types.as_raw_fd().cast_unsigned();
        (load.functions, load.function_bytes, load.function_count) = records(new.functions);
        (load.lines, load.line_bytes, load.line_count) = records(new.lines);
    }
    if !log.is_empty() {
        load.log_level = 1;
        load.log_bytes = u32::try_from(log.len()).map_err(io::Error::other)?;
        load.log = address_mut(log);
    }
    // SAFETY: `load` is the member of `union bpf_attr` that the command reads; all that it points to
    // has as many items as it says, the license ends by a zero byte, and they outlive the call.
    let descriptor = unsafe { bpf(BPF_PROG_LOAD, &mut load) }?;
    // SAFETY: the command answers a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Address, bytes of each and number of records.
fn records((all, each): (&[u8], usize)) -> (u64, u32, u32) {
    let number = all.len().checked_div(each).unwrap_or_default();
    (address(all), each as u32, number as u32)
}

/// Writes what programs take for constants into the one entry of a map, which nobody changes then.
///
/// # Errors
/// The kernel's.
pub(super) fn fill_constants(map: BorrowedFd<'_>, constants: &[u8]) -> io::Result<()> {
    update_batch(map, &[0; 4], constants, 1)?;
    let mut freeze = map.as_raw_fd().cast_unsigned();
    // SAFETY: the command reads the number of a map, which is open.
    unsafe { bpf(BPF_MAP_FREEZE, &mut freeze) }.map(drop)
}

/// Loads the types of an object (BTF).
///
/// # Errors
/// The kernel's.
pub(super) fn load_types(types: &[u8]) -> io::Result<OwnedFd> {
    let mut load = TypesLoad {
        types: address(types),
        bytes: u32::try_from(types.len()).map_err(io::Error::other)?,
        ..TypesLoad::default()
    };
    // SAFETY: `load` is the member of `union bpf_attr` that the command reads, and the types have as
    // many bytes as it says.
    let descriptor = unsafe { bpf(BPF_BTF_LOAD, &mut load) }?;
    // SAFETY: the command answers a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Attaches a program to the hook XDP of a link's driver, for as long as what is answered lives.
///
/// # Errors
/// The kernel's: `EOPNOTSUPP` where the driver has none, `EBUSY` where another program has it.
pub(super) fn attach_xdp(program: BorrowedFd<'_>, link_index: u32) -> io::Result<OwnedFd> {
    create_link(program, link_index, (BPF_XDP, XDP_FLAGS_DRV_MODE))
}

/// Attaches a program before all others to one side of a link, for as long as what is answered
/// lives.
///
/// # Errors
/// The kernel's: `EINVAL` where it has no tcx (Linux 6.6).
pub(super) fn attach_tcx(
    program: BorrowedFd<'_>,
    link_index: u32,
    side: TcAttachType,
) -> io::Result<OwnedFd> {
    let side = match side {
        TcAttachType::Egress => BPF_TCX_EGRESS,
        _ => BPF_TCX_INGRESS,
    };
    create_link(program, link_index, (side, BPF_F_BEFORE))
}

/// `how`: the type of the attachment, and its flags.
fn create_link(program: BorrowedFd<'_>, link_index: u32, how: (u32, u32)) -> io::Result<OwnedFd> {
    let (attach_type, flags) = how;
    let program = program.as_raw_fd().cast_unsigned();
    let mut create = LinkCreate { program, link_index, attach_type, flags };
    // SAFETY: `create` is the member of `union bpf_attr` that the command reads, of an open
    // descriptor.
    let fd = unsafe { bpf(BPF_LINK_CREATE, &mut create) }?;
    // SAFETY: the kernel made the descriptor for us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs a program of XDP on one frame as if it came by a link of this thread's network namespace:
/// its answer, and the frame as it left it.
///
/// # Errors
/// The kernel's.
pub(super) fn run_xdp(
    program: BorrowedFd<'_>,
    link_index: u32,
    frame: &[u8],
) -> io::Result<(u32, Vec<u8>)> {
    let bytes = u32::try_from(frame.len()).map_err(io::Error::other)?;
    let mut left = vec![0; frame.len() + FRAME_GROWTH_BYTES];
    let context = FrameContext { data_end: bytes, came_by: link_index, ..FrameContext::default() };
    let mut run = TestRun {
        program: program.as_raw_fd().cast_unsigned(),
        bytes_in: bytes,
        bytes_out: u32::try_from(left.len()).map_err(io::Error::other)?,
        data_in: address(frame),
        data_out: address_mut(&mut left),
        context_bytes_in: size_of::<FrameContext>() as u32,
        context_in: std::ptr::from_ref(&context) as u64,
        ..TestRun::default()
    };
    // SAFETY: `run` is the member of `union bpf_attr` that the command reads; frame, context and
    // the room for what is left have as many bytes as it says, and outlive the call.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut run) }?;
    left.truncate(run.bytes_out as usize);
    Ok((run.answer, left))
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
    let LinkInfo { kind, program_id, place: [first, second], .. } = info;
    let [a, b, c, d] = first.to_ne_bytes();
    let [e, f, g, h] = second.to_ne_bytes();
    let cgroup = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
    Ok(match kind {
        LINK_OF_CGROUP => Attachment { program_id, link_index: 0, cgroup },
        _ => Attachment { program_id, link_index: first, cgroup: 0 },
    })
}

/// Goes through all attachments of the machine, in whatever network namespace. Needs the right to
/// see those of others.
///
/// # Errors
/// The kernel's, and what is answered of one.
pub(super) fn each_attachment(
    mut each: impl FnMut(&OwnedFd, &Attachment) -> io::Result<()>,
) -> io::Result<()> {
    let mut id = 0;
    for _ in 0..ATTACHMENTS_MAX {
        let mut after = LinkId { id, ..LinkId::default() };
        // SAFETY: `after` is the member of `union bpf_attr` that the command reads and writes.
        match unsafe { bpf(BPF_LINK_GET_NEXT_ID, &mut after) } {
            Ok(_) => id = after.next,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut this = LinkId { id, ..LinkId::default() };
        // SAFETY: `this` is the member of `union bpf_attr` that the command reads.
        let link = match unsafe { bpf(BPF_LINK_GET_FD_BY_ID, &mut this) } {
            // SAFETY: the kernel made the descriptor for us just now.
            Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
            // Gone since it was named, or not yet there: somebody is just making it.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EAGAIN)) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        each(&link, &attachment(link.as_fd())?)?;
    }
    Ok(())
}

/// Detaches what is attached, whoever holds it.
///
/// # Errors
/// The kernel's.
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut detach = LinkDetach { link: link.as_raw_fd().cast_unsigned() };
    // SAFETY: `detach` is the member of `union bpf_attr` that the command reads, of an open
    // descriptor.
    unsafe { bpf(BPF_LINK_DETACH, &mut detach) }.map(drop)
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

/// The beginning of a name, and a zero.
fn short_name(name: &str) -> [u8; NAME_BYTES] {
    let mut short = [0; NAME_BYTES];
    let length = name.len().min(NAME_BYTES - 1);
    short[..length].copy_from_slice(&name.as_bytes()[..length]);
    short
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
