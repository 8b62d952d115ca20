//! The only writer of Linux network state beyond a pod's own link (invariant 10).

pub mod bpf;
pub mod edge;
pub mod iptables;
pub mod net;
pub mod nft;
pub mod wireguard;

use render::{Kernel, Observed, Op, OpError};

use net::NetDriver;
use nft::NftDriver;
use wireguard::KeyStore;

/// The kernel of this machine, in the network namespace in which it was opened.
pub struct Linux {
    /// Links, addresses, neighbours, routes, sysctls.
    pub net: NetDriver,
    /// The nftables tables.
    pub nft: NftDriver,
}

impl Linux {
    /// Opens all drivers in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the system refuses a socket.
    pub fn open() -> Result<Self, OpError> {
        Ok(Self { net: NetDriver::open()?, nft: NftDriver::open()? })
    }

    /// The same with WireGuard keys of another place than the usual.
    ///
    /// # Errors
    /// When the system refuses a socket.
    pub fn with_keys(keys: KeyStore) -> Result<Self, OpError> {
        Ok(Self { net: NetDriver::with_keys(keys)?, nft: NftDriver::open()? })
    }

    /// The addresses of our sockets: what notifications of our own changes carry.
    pub fn port_ids(&self) -> [u32; 2] {
        [self.net.port_id(), self.nft.port_id()]
    }
}

impl Kernel for Linux {
    fn observe(&mut self) -> Result<Observed, OpError> {
        Ok(Observed { net: self.net.observe()?, nft: self.nft.observe()? })
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>> {
        ops.iter()
            .map(|op| match op {
                Op::Net(op) => self.net.apply(op),
                Op::Nft(op) => self.nft.apply(op),
            })
            .collect()
    }
}
