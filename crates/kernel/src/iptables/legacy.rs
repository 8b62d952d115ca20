//! A look at the tables of the legacy variant, whose kernel tells nobody of changes.
#![allow(unsafe_code)] // nix has no such option of sockets, see `shape`

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};

use model::Family;
use netlink::{Error, Netns};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use render::iptables::language::{TableId, TableName};

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO` (`uapi/linux/netfilter_ipv4/ip_tables.h`).
const SO_GET_INFO: libc::c_int = 64;
/// `XT_TABLE_MAXNAMELEN`.
const NAME_BYTES: usize = 32;
/// Numbers behind the name in `struct ipt_getinfo`: hooks, their entries and underflows, how many
/// rules there are and how many bytes they have.
const NUMBERS: usize = 1 + 5 + 5 + 1 + 1;

/// What the kernel tells of a table for one system call, however long it is. A rule that comes or
/// goes changes it. One that is replaced by another of the same length does not: that is found when
/// the table is read.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    name: [u8; NAME_BYTES],
    numbers: [u32; NUMBERS],
}

/// The shapes of the tables that may have chains of ours. One that is not there is not made by that.
pub(super) fn shapes(namespace: &Netns) -> Result<BTreeMap<TableId, Shape>, Error> {
    namespace.run(|| {
        let mut shapes = BTreeMap::new();
        for family in [Family::V4, Family::V6] {
            let names = names(family);
            let present = |table: &TableName| names.lines().any(|name| name == table.text());
            let tables = [TableName::Nat, TableName::Filter].into_iter().filter(present);
            let mut tables = tables.peekable();
            if tables.peek().is_none() {
                continue;
            }
            let socket = open(family)?;
            for name in tables {
                shapes.insert(TableId { family, name }, shape(&socket, family, name)?);
            }
        }
        Ok(shapes)
    })?
}

/// The tables that there are, in the namespace of the calling thread; none in a kernel without the
/// variant.
pub(super) fn names(family: Family) -> String {
    let path = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    std::fs::read_to_string(path).unwrap_or_default()
}

fn open(family: Family) -> Result<OwnedFd, Error> {
    let address_family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    let raw = (SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
    socket(address_family, raw.0, raw.1, raw.2)
        .map_err(|errno| Error::new(errno as i32, "open a socket to look at iptables"))
}

fn shape(socket: &OwnedFd, family: Family, table: TableName) -> Result<Shape, Error> {
    let level = match family {
        Family::V4 => libc::SOL_IP,
        Family::V6 => libc::SOL_IPV6,
    };
    let mut shape = Shape { name: [0; NAME_BYTES], numbers: [0; NUMBERS] };
    for (to, from) in shape.name.iter_mut().zip(table.text().bytes()) {
        *to = from;
    }
    let mut length = size_of::<Shape>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and both pointers are to values that live past the call; the
    // kernel writes at most `length` bytes, numbers for which every pattern is one.
    let result = unsafe {
        let value = (&raw mut shape).cast();
        libc::getsockopt(socket.as_raw_fd(), level, SO_GET_INFO, value, &raw mut length)
    };
    match result {
        0 => Ok(shape),
        _ => {
            let action = format!("look at the table {} of {family}", table.text());
            Err(Error::new(Errno::last_raw(), action))
        }
    }
}
