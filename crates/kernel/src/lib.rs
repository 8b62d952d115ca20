//! The only writer of Linux network state beyond a pod's own link (invariant 10).

pub mod bpf;
pub mod edge;
pub mod iptables;
pub mod ipvs;
pub mod net;
pub mod nft;
pub mod round_trip;
pub mod wireguard;

use model::{EbpfMapSizes, ServiceBackend};
use render::{Kernel, Observed, Op, OpError};

use render::ebpf::node::UplinkProgram;
use render::iptables::{IptablesObserved, IptablesOp};
use render::nft::{NftOp, StaleFlows};

use bpf::node::NodeServices;
use iptables::IptablesDriver;
use ipvs::IpvsDriver;
use net::NetDriver;
use nft::NftDriver;
use wireguard::KeyStore;

/// The kernel of this machine, in the network namespace in which it was opened.
pub struct Linux {
    /// Links, addresses, neighbours, routes, sysctls.
    pub net: NetDriver,
    /// The nftables tables.
    pub nft: NftDriver,
    iptables: LazyIptables,
    ipvs: IpvsDriver,
    ebpf: NodeServices,
}

/// What implements Services when the configuration asks for `wanted`; never
/// [`ServiceBackend::Auto`].
///
/// # Errors
/// When this machine does not have it.
pub fn service_backend(wanted: ServiceBackend) -> Result<ServiceBackend, OpError> {
    let lacking = |message: &str| Err(OpError { errno: 0, message: message.to_owned() });
    match wanted {
        ServiceBackend::Auto | ServiceBackend::Nftables => Ok(ServiceBackend::Nftables),
        ServiceBackend::Iptables if iptables::is_installed() => Ok(wanted),
        ServiceBackend::Iptables => {
            lacking("the service backend iptables needs its programs: install iptables")
        }
        ServiceBackend::Ipvs => match ipvs::missing()?.as_slice() {
            [] => Ok(wanted),
            missing => lacking(&format!(
                "the service backend ipvs needs what this kernel lacks: {}; choose another \
                 --service-backend",
                missing.join(", ")
            )),
        },
        ServiceBackend::Ebpf => match bpf::node::missing().as_slice() {
            [] => Ok(wanted),
            missing => lacking(&format!(
                "the service backend ebpf needs what is missing here: {}; choose another \
                 --service-backend",
                missing.join("; ")
            )),
        },
    }
}

impl Linux {
    /// Opens all drivers in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the system refuses a socket.
    pub fn open() -> Result<Self, OpError> {
        Self::with_net(NetDriver::open()?)
    }

    /// The same with WireGuard keys of another place than the usual, and eBPF maps of these sizes.
    ///
    /// # Errors
    /// When the system refuses a socket.
    pub fn with(keys: KeyStore, sizes: EbpfMapSizes) -> Result<Self, OpError> {
        let ebpf = NodeServices::default().with_sizes(sizes);
        Ok(Self { ebpf, ..Self::with_net(NetDriver::with_keys(keys)?)? })
    }

    /// The same with Services in eBPF of another file system and cgroup than the machine's own.
    ///
    /// # Errors
    /// When the system refuses a socket.
    pub fn with_ebpf(ebpf: NodeServices) -> Result<Self, OpError> {
        Ok(Self { ebpf, ..Self::open()? })
    }

    fn with_net(net: NetDriver) -> Result<Self, OpError> {
        Ok(Self {
            net,
            nft: NftDriver::open()?,
            iptables: LazyIptables::default(),
            ipvs: IpvsDriver::open()?,
            ebpf: NodeServices::default(),
        })
    }

    /// Whether something has changed, since it was read or written, that tells nobody of its
    /// changes and needs more than a look.
    pub fn has_changed_silently(&mut self) -> bool {
        self.iptables.has_changed() || self.ipvs.has_changed() || self.ebpf.has_changed()
    }

    /// Brings programs of Services in eBPF to links that have come, at once
    /// ([`NodeServices::follow_links`]).
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn follow_links(&mut self, link: &str) -> Result<Option<bool>, OpError> {
        self.ebpf.follow_links(link)
    }

    /// What comes before the stack at the uplink ([`NodeServices::uplink`]).
    pub fn uplink_program(&self) -> Option<&UplinkProgram> {
        self.ebpf.uplink()
    }

    /// Removes all of IPVS at once; [`Kernel::apply`] would let connections go on.
    ///
    /// # Errors
    /// When something of ours stays.
    pub fn remove_ipvs(&mut self) -> Result<(), OpError> {
        self.ipvs.remove()
    }

    /// Removes all of eBPF at once; [`Kernel::apply`] would let flows go on.
    ///
    /// # Errors
    /// When something of ours stays.
    pub fn remove_ebpf(&mut self) -> Result<(), OpError> {
        self.ebpf.remove()
    }

    /// The addresses of our sockets: what notifications of our own changes carry.
    pub fn port_ids(&self) -> [u32; 2] {
        [self.net.port_id(), self.nft.port_id()]
    }
}

impl Kernel for Linux {
    fn observe(&mut self) -> Result<Observed, OpError> {
        Ok(Observed {
            net: self.net.observe()?,
            nft: self.nft.observe()?,
            iptables: self.iptables.observe()?,
            ipvs: Box::new(self.ipvs.observe()?),
            ebpf: Box::new(self.ebpf.observe()?),
        })
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>> {
        render::carry_out(ops, |_, op| match op {
            Op::Net(op) => self.net.apply(op),
            Op::Nft(op) => self.nft.apply(op),
            Op::Iptables(op) => self.iptables.apply(op),
            Op::Ipvs(op) => self.ipvs.apply(op),
            Op::Ebpf(op) => self.ebpf.apply(op),
        })
    }

    fn forget_flows(&mut self, stray: &[StaleFlows]) -> Result<(), OpError> {
        let mut stray = stray.iter();
        stray.try_for_each(|flows| self.nft.apply(&NftOp::ForgetFlows(flows.clone())))
    }
}

/// Chains of iptables, where there are any: its programs are not run for nothing again and again,
/// and need not be installed.
#[derive(Default)]
struct LazyIptables {
    driver: Option<IptablesDriver>,
    /// Nothing of ours was there when it was looked at, and nothing was written since.
    is_known_empty: bool,
}

impl LazyIptables {
    fn observe(&mut self) -> Result<IptablesObserved, OpError> {
        if self.is_known_empty || (self.driver.is_none() && !iptables::is_installed()) {
            return Ok(IptablesObserved::default());
        }
        let observed = self.driver()?.observe()?;
        self.is_known_empty = observed.tables.is_empty();
        Ok(observed)
    }

    fn has_changed(&self) -> bool {
        !self.is_known_empty && self.driver.as_ref().is_some_and(IptablesDriver::has_changed)
    }

    fn apply(&mut self, op: &IptablesOp) -> Result<(), OpError> {
        self.is_known_empty = false;
        self.driver()?.apply(op)
    }

    fn driver(&mut self) -> Result<&mut IptablesDriver, OpError> {
        let driver = match self.driver.take() {
            Some(driver) => driver,
            None => IptablesDriver::open()?,
        };
        Ok(self.driver.insert(driver))
    }
}
