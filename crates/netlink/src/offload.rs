//! Transmit checksum offload (`include/uapi/linux/ethtool.h`).
//!
//! A VXLAN link offers to leave the inner checksum to the device below. Some devices then write
//! none, or a wrong one: only pings pass the tunnel. Off, the kernel writes it itself.
#![allow(unsafe_code)] // ioctl(SIOCETHTOOL), which has no netlink form for old kernels

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::{Error, Netlink};

/// Links of this driver write wrong checksums.
const BROKEN_DRIVER: &[u8] = b"vmxnet3";
/// The first kernel whose checksums are right, major and minor.
const FIRST_SOUND_RELEASE: (u32, u32) = (5, 7);

const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GLINK: u32 = 0x0a;
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_STXCSUM: u32 = 0x17;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ethtool_drvinfo`: the driver's name, then what is not looked at.
#[repr(C)]
struct Driver {
    command: u32,
    name: [u8; 32],
    rest: [u8; 160],
}

impl Netlink {
    /// Whether a link has a carrier. Before it answers, a kernel since 6.8 completes what a change
    /// of it has begun (`linkwatch_sync_dev`). Otherwise a worker does that at some later time, and
    /// until then the link drops whatever it shall send, and a bridge keeps the port closed;
    /// [`crate::Link::operational`] tells.
    ///
    /// # Errors
    /// `ENODEV` when there is no such link.
    pub fn carrier(&self, link: &str) -> Result<bool, Error> {
        let mut value = Value { command: ETHTOOL_GLINK, data: 0 };
        // Any socket can be asked about the links of its namespace.
        ioctl(self.socket.as_fd(), link, std::ptr::from_mut(&mut value).cast())
            .map(|()| value.data != 0)
            .map_err(|errno| Error::new(errno as i32, format!("read the carrier of {link}")))
    }
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

/// Whether tunnel packets that leave by an uplink are known to get wrong inner checksums: kernels
/// before 5.7 compute them wrongly for tunnel packets that are masqueraded, and VMware's vmxnet3
/// writes them wrongly for VXLAN on ports that it does not know.
///
/// # Errors
/// When there is no such link, or the system does not tell its version.
pub fn tunnel_checksum_is_broken(uplink: &str) -> Result<bool, Error> {
    let system = nix::sys::utsname::uname()
        .map_err(|errno| Error::new(errno as i32, "read the kernel's version"))?;
    let release = system.release().to_string_lossy().into_owned();
    Ok(release_is_older(&release, FIRST_SOUND_RELEASE) || has_broken_driver(uplink)?)
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

fn has_broken_driver(link: &str) -> Result<bool, Error> {
    let mut driver = Driver { command: ETHTOOL_GDRVINFO, name: [0; 32], rest: [0; 160] };
    match ioctl_alone(link, std::ptr::from_mut(&mut driver).cast()) {
        Ok(()) => Ok(driver.name.starts_with(BROKEN_DRIVER)),
        // A link without a driver.
        Err(Errno::EOPNOTSUPP) => Ok(false),
        Err(errno) => Err(Error::new(errno as i32, format!("read the driver of {link}"))),
    }
}

/// Whether a release such as `6.1.0-18-amd64` is older than a version; what is no release is not.
fn release_is_older(release: &str, version: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < version,
        _ => false,
    }
}

fn call(link: &str, mut value: Value) -> Result<u32, Errno> {
    ioctl_alone(link, std::ptr::from_mut(&mut value).cast()).map(|()| value.data)
}

/// [`ioctl`] on a socket of its own.
fn ioctl_alone(link: &str, argument: *mut libc::c_char) -> Result<(), Errno> {
    let socket: OwnedFd =
        socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    ioctl(socket.as_fd(), link, argument)
}

/// `argument` is one of the structs above, with its command.
fn ioctl(socket: BorrowedFd<'_>, link: &str, argument: *mut libc::c_char) -> Result<(), Errno> {
    let mut name = [0; libc::IFNAMSIZ];
    if link.len() >= name.len() {
        return Err(Errno::ENODEV);
    }
    for (to, from) in name.iter_mut().zip(link.bytes()) {
        *to = from as libc::c_char;
    }
    let mut request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: argument },
    };
    // SAFETY: `request` is a whole ifreq and its data pointer is one of the two live structs of
    // this module, which have the layout that SIOCETHTOOL expects for their commands; both
    // outlive the call.
    let result = unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, std::ptr::from_mut(&mut request))
    };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_their_first_two_numbers() {
        let rows = [("5.6.19", true), ("4.18.0-553.el8", true), ("5.7.0", false), ("6.1", false)];
        for (release, older) in rows {
            assert_eq!(release_is_older(release, FIRST_SOUND_RELEASE), older, "{release}");
        }
        assert!(!release_is_older("unknown", FIRST_SOUND_RELEASE));
    }

    #[test]
    fn loopback_has_no_broken_driver_and_an_absent_link_is_an_error() {
        assert_eq!(has_broken_driver("lo"), Ok(false));
        assert_eq!(has_broken_driver("absent").map_err(|error| error.errno), Err(libc::ENODEV));
    }
}
