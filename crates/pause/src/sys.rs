//! The system calls that have no safe wrapper elsewhere. The process has one thread, which is what
//! makes `fork` followed by ordinary code sound.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sched::CloneFlags;

/// Forks into new namespaces. Returns the child's process id, and 0 in the child.
pub fn fork_into(namespaces: CloneFlags) -> io::Result<i32> {
    let flags = namespaces.bits() as libc::c_long | libc::c_long::from(libc::SIGCHLD);
    // SAFETY: without a stack and CLONE_VM this is fork: the child runs on a copy of this stack.
    // The process has one thread, so no lock is held by a thread that the child lacks.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid as i32) }
}

/// A descriptor for a process in this process's pid namespace.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave this descriptor to us and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Takes ownership of a descriptor that arrived in a control message.
pub fn received(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel installed it for this message; the caller passes each one once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Opens `path` below the directory `base`, with `base` as the root that no link leaves
/// (`RESOLVE_IN_ROOT`), or, with `beneath`, refusing every way out (`RESOLVE_BENEATH`).
pub fn open_within(
    base: BorrowedFd<'_>,
    path: &str,
    flags: i32,
    beneath: bool,
) -> io::Result<OwnedFd> {
    let path = CString::new(path)?;
    // SAFETY: open_how is plain integers, for which zero is a value.
    let mut how: libc::open_how = unsafe { mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.resolve = if beneath { libc::RESOLVE_BENEATH } else { libc::RESOLVE_IN_ROOT }
        | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: both pointers are valid for the call, and the size is that of the structure.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            base.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            mem::size_of::<libc::open_how>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Keeps only the capabilities of `mask`, in every set, for this process and what it executes.
pub fn keep_capabilities(mask: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3`: two words of 32 capabilities.
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |bits: u64| Data { effective: bits as u32, permitted: bits as u32, inheritable: 0 };
    let data = [half(mask), half(mask >> 32)];
    // SAFETY: both structures have the layout that version 3 of the call defines.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Removes every capability outside `mask` from the bounding set: no executable brings it back.
pub fn limit_bounding_set(mask: u64) -> io::Result<()> {
    for capability in 0..64_u64 {
        // SAFETY: integer arguments only.
        let known = unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) };
        if known < 0 {
            break; // One past the newest capability of this kernel.
        }
        if mask & (1 << capability) == 0 && known == 1 {
            // SAFETY: integer arguments only.
            if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Lets the kernel judge every system call from now on, also of what is executed. Each number is
/// an instruction as `ContainerSpec::system_calls` has it.
pub fn filter_system_calls(instructions: &[u64]) -> io::Result<()> {
    let mut filter: Vec<libc::sock_filter> = instructions
        .iter()
        .map(|bits| libc::sock_filter {
            code: (bits >> 48) as u16,
            jt: (bits >> 40) as u8,
            jf: (bits >> 32) as u8,
            k: *bits as u32,
        })
        .collect();
    let len = u16::try_from(filter.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    // SAFETY: the program names as many instructions as the vector holds, and both outlive the
    // call. The kernel checks every jump of a filter before it takes it.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes descriptor 0 the controlling terminal of this session.
pub fn control_terminal() -> io::Result<()> {
    // SAFETY: an ioctl on our own descriptor with an integer argument.
    let result = unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Marks every descriptor from 3 on to be closed by `execve`.
pub fn close_all_on_exec() {
    // SAFETY: integer arguments; descriptors stay open until execve.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Gives every signal its default action again: a Rust program starts with SIGPIPE ignored, which
/// `execve` would pass on.
pub fn default_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL runs no code of ours. SIGKILL, SIGSTOP and libc's own are refused.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Ends a forked child at once, without running the parent's exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Replaces the program. Returns only the error.
pub fn execute(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end in a null pointer and outlive the call.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}
