//! Transmit checksum offload (`include/uapi/linux/ethtool.h`).
//!
//! A VXLAN link offers to leave the inner checksum to the device below. Some devices then write
//! none, or a wrong one: only pings pass the tunnel. Off, the kernel writes it itself.
#![allow(unsafe_code)] // ioctl(SIOCETHTOOL), which has no netlink form for old kernels

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::Error;

const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_STXCSUM: u32 = 0x17;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Whether a link of the calling thread's namespace leaves checksums to the device below.
///
/// # Errors
/// `ENODEV` when there is no such link.
pub fn tx_checksum(link: &str) -> Result<bool, Error> {
    let action = || format!("read the checksum offload of {link}");
    call(link, Value { command: ETHTOOL_GTXCSUM, data: 0 })
        .map(|data| data != 0)
        .map_err(|errno| Error::new(errno as i32, action()))
}

/// Switches it.
///
/// # Errors
/// `ENODEV` when there is no such link, `EOPNOTSUPP` when it has no such switch.
pub fn set_tx_checksum(link: &str, on: bool) -> Result<(), Error> {
    let action = || format!("switch the checksum offload of {link}");
    call(link, Value { command: ETHTOOL_STXCSUM, data: u32::from(on) })
        .map(drop)
        .map_err(|errno| Error::new(errno as i32, action()))
}

fn call(link: &str, mut value: Value) -> Result<u32, Errno> {
    let socket: OwnedFd =
        socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut name = [0; libc::IFNAMSIZ];
    if link.len() >= name.len() {
        return Err(Errno::ENODEV);
    }
    for (to, from) in name.iter_mut().zip(link.bytes()) {
        *to = from as libc::c_char;
    }
    let data = std::ptr::from_mut(&mut value).cast();
    let mut request =
        libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: data } };
    // SAFETY: `request` is a whole ifreq and its data pointer is a live ethtool_value, as
    // SIOCETHTOOL expects of these two commands; both outlive the call.
    let result = unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, std::ptr::from_mut(&mut request))
    };
    Errno::result(result)?;
    Ok(value.data)
}
