//! System calls that have no safe wrapper elsewhere.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor that stands for a process, and becomes readable when it ends.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: integer arguments; the result is a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    owned(fd)
}

/// Sends a signal to exactly the process that the descriptor stands for.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo asks the kernel to fill it in as for kill().
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A descriptor that the async runtime waits for.
pub fn asynchronous(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open descriptor until it is dropped, and the AsyncFd that
    // takes it drops it only after its registration.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, interest) };
    registered.map_err(io::Error::from)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Gives an open file or directory an extended attribute.
pub fn set_attribute(file: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    let (fd, pointer) = (file.as_raw_fd(), value.as_ptr().cast());
    // SAFETY: the name ends in a NUL byte, and the value is valid for its length.
    let result = unsafe { libc::fsetxattr(fd, name.as_ptr(), pointer, value.len(), 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether an open file or directory has an extended attribute of just this value.
pub fn has_attribute(file: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> bool {
    let mut buffer = [0_u8; 64];
    let pointer = buffer.as_mut_ptr().cast();
    // SAFETY: the name ends in a NUL byte, and the buffer is valid for its length.
    let length = unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), pointer, buffer.len()) };
    usize::try_from(length).is_ok_and(|length| buffer.get(..length) == Some(value))
}
