//! Synchronous rtnetlink over one socket: links, addresses, routes, neighbours, and network
//! namespaces. No runtime, no thread but the short-lived ones that enter a namespace.
//!
//! ```no_run
//! # fn main() -> Result<(), netlink::Error> {
//! use netlink::{LinkChange, Netlink, Netns, VethSpec};
//!
//! let pod = Netns::create_at("/run/netns/pod".as_ref())?;
//! let mut host = Netlink::open()?;
//! host.create_veth(&VethSpec::new("veth0", "eth0").peer_in(&pod))?;
//! let mut inside = Netlink::open_in(&pod)?;
//! let eth0 = inside.require_link("eth0")?;
//! inside.add_address(eth0.index, "10.244.1.5/24".parse().expect("a prefix"))?;
//! inside.change_link(eth0.index, &LinkChange::up())?;
//! # Ok(())
//! # }
//! ```
//!
//! A [`Netlink`] belongs to the namespace that it was opened in, for its whole life, whichever
//! thread uses it later.

mod address;
mod bridge;
mod error;
mod generic;
pub mod ipvs;
mod link;
mod macvlan;
pub mod message;
mod monitor;
mod neighbour;
mod netns;
pub mod offload;
pub mod probe;
mod prompt;
mod route;
pub mod socket;
pub mod sysctl;
mod traffic;
mod tunnel;
pub mod wireguard;

pub use address::Address;
pub use bridge::{PortOptions, PortVlan};
pub use error::Error;
pub use link::{BridgeSpec, Ipv4Parameter, Link, LinkChange, VethSpec, VxlanParameters, VxlanSpec};
pub use macvlan::{MacvlanMode, MacvlanSpec};
pub use monitor::{Monitor, Notice, Notices};
pub use neighbour::{FdbEntry, Neighbour};
pub use netns::Netns;
pub use route::{OuterHeader, Route, RouteScope};
pub use traffic::TokenBucket;
pub use tunnel::{IpipParameters, IpipSpec};

use socket::Socket;

/// A kept rtnetlink socket.
pub struct Netlink {
    socket: Socket,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the system refuses the socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(libc::NETLINK_ROUTE)? })
    }

    /// See [`Socket::port_id`].
    pub fn port_id(&self) -> u32 {
        self.socket.port_id()
    }

    /// Opens a socket in another network namespace; the caller stays where it is.
    ///
    /// # Errors
    /// When the namespace cannot be entered (it needs `CAP_SYS_ADMIN`) or refuses the socket.
    pub fn open_in(namespace: &Netns) -> Result<Self, Error> {
        namespace.run(Self::open)?
    }
}
