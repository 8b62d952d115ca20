//! Pseudo terminals, in system calls that have no safe wrapper elsewhere.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The terminal's side of a pseudo terminal, opened without its path: that lies in the container.
///
/// # Errors
/// The descriptor is not the controlling side of one.
pub fn peer(controller: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: both ioctls act on our own descriptor; unlock outlives the first call.
    let fd = unsafe {
        let unlock: libc::c_int = 0;
        if libc::ioctl(controller.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::ioctl(controller.as_raw_fd(), libc::TIOCGPTPEER, flags)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Tells the programs on a terminal its size.
///
/// # Errors
/// The descriptor is no terminal.
pub fn resize(controller: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: size outlives the call, which only reads it.
    let result = unsafe { libc::ioctl(controller.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
