//! Desired to kernel programs, and programs to operations.
//!
//! ```text
//! Desired ─render─▶ Program ┐
//!                           ├─diff─▶ Vec<Op> ─▶ Kernel::apply ─▶ one result an op
//! Kernel::observe ▶ Observed┘
//! ```
//!
//! Services are one backend's work ([`ClusterConfig::service_backend`]); what is no Service is
//! always the nftables tables'. When the backend changes, the new one is there before the old one
//! goes, and flows that are established go on: connection tracking keeps their translation, as the
//! nftables tables keep its hooks.
//!
//! The same [`Observed::apply`] moves the believed state of the loop and the [`fake`] kernel.

pub mod bpf;
pub mod ebpf;
pub mod edge;
pub mod fake;
pub mod flows;
pub mod implementation;
pub mod inventory;
pub mod iptables;
pub mod ipvs;
pub mod names;
pub mod net;
pub mod nft;
pub mod owned;

use std::collections::BTreeMap;

use model::{ClusterConfig, NamespacedName, ServiceBackend};
use plan::services::{Scheduling, ServicePlan};
use plan::{Desired, Finding, NodeFacts};

/// What the kernel shall hold of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// Links, addresses, neighbours, routes, sysctls.
    pub net: net::NetProgram,
    /// The nftables tables.
    pub nft: nft::NftProgram,
    /// Chains of iptables; none unless it is the backend of Services.
    pub iptables: iptables::IptablesProgram,
    /// Virtual servers of IPVS; none unless it is the backend of Services.
    pub ipvs: ipvs::IpvsProgram,
    /// Maps and programs of eBPF; none unless it is the backend of Services.
    pub ebpf: Option<ebpf::NodeProgram>,
}

/// What the kernel holds of ours, read back; foreign objects are not in it (invariant 4).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Links, addresses, neighbours, routes, sysctls.
    pub net: net::NetObserved,
    /// The nftables tables.
    pub nft: nft::NftObserved,
    /// Chains of iptables.
    pub iptables: iptables::IptablesObserved,
    /// Virtual servers of IPVS, their link and parameters.
    pub ipvs: Box<ipvs::IpvsObserved>,
    /// Maps and programs of eBPF.
    pub ebpf: Box<ebpf::NodeObserved>,
}

/// One operation on the kernel. An op succeeds or fails as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// On links, addresses, neighbours, routes or sysctls.
    Net(net::NetOp),
    /// One nftables transaction.
    Nft(nft::NftOp),
    /// One iptables transaction.
    Iptables(iptables::IptablesOp),
    /// On virtual servers of IPVS.
    Ipvs(ipvs::IpvsOp),
    /// On maps and programs of eBPF.
    Ebpf(ebpf::NodeOp),
}

/// Why the kernel refused an op.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpError {
    /// The kernel's errno, as a positive number; 0 when the reason is not the kernel's.
    pub errno: i32,
    /// What failed, on which object, the likely cause.
    pub message: String,
}

impl std::fmt::Display for OpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for OpError {}

/// A kernel: Linux (`kernel::Linux`) or the honest fake ([`fake::FakeKernel`]).
pub trait Kernel {
    /// Reads back all that is ours.
    ///
    /// # Errors
    /// When the kernel cannot be asked; nothing may be concluded about what is there.
    fn observe(&mut self) -> Result<Observed, OpError>;

    /// Carries out the ops in order and answers one result an op. A failed op stops no unrelated
    /// one (invariant 6): later ops are still tried, unless they depend on it.
    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>>;

    /// Forgets tracked flows that lead elsewhere than they may ([`flows::stray`]). Where none does,
    /// nothing is written.
    ///
    /// # Errors
    /// When the kernel cannot be asked or refuses: some of them may be left.
    fn forget_flows(&mut self, stray: &[nft::StaleFlows]) -> Result<(), OpError>;
}

/// Carries out ops in order by `one`, which gets each with its number. A backend of Services that
/// another one takes over from stays until nothing of what stands before its end has failed:
/// otherwise nobody would translate (invariant 6).
pub fn carry_out(
    ops: &[Op],
    mut one: impl FnMut(usize, &Op) -> Result<(), OpError>,
) -> Vec<Result<(), OpError>> {
    let mut has_failed = false;
    let carried_out = ops.iter().enumerate().map(|(number, op)| {
        if has_failed && op.is_end_of_ebpf() {
            return Err(OpError {
                errno: 0,
                message: "Services stay in eBPF until the backend that takes over is there".into(),
            });
        }
        let result = one(number, op);
        has_failed |= result.is_err() && !matches!(op, Op::Net(_) | Op::Ebpf(_));
        result
    });
    carried_out.collect()
}

impl Op {
    /// Whether it forgets flows that a change left: nothing tells of them once it has failed.
    pub fn forgets_flows(&self) -> bool {
        matches!(
            self,
            Self::Nft(nft::NftOp::ForgetFlows(_))
                | Self::Iptables(iptables::IptablesOp::ForgetFlows(_))
                | Self::Ipvs(ipvs::IpvsOp::ForgetFlows(_))
        )
    }

    fn is_end_of_ebpf(&self) -> bool {
        use ebpf::NodeOp;
        let Self::Ebpf(op) = self else { return false };
        matches!(op, NodeOp::DetachSockets | NodeOp::Drain | NodeOp::Remove)
    }
}

/// Says a plan in the words of the kernel. A pure function of its arguments.
pub fn render(desired: &Desired, config: &ClusterConfig, facts: &NodeFacts) -> Program {
    let is_iptables = config.service_backend == ServiceBackend::Iptables;
    let iptables = is_iptables.then(|| iptables::render(desired, config, facts));
    let is_ipvs = config.service_backend == ServiceBackend::Ipvs;
    let ipvs = is_ipvs.then(|| ipvs::render(desired, config, facts));
    let is_ebpf = config.service_backend == ServiceBackend::Ebpf;
    Program {
        net: net::render(desired, config, facts),
        nft: nft::render_as(role(config), desired, config, facts),
        iptables: iptables.unwrap_or_default(),
        ipvs: ipvs.unwrap_or_default(),
        ebpf: is_ebpf.then(|| ebpf::render_node(desired, config, facts)),
    }
}

fn role(config: &ClusterConfig) -> nft::Role {
    match config.service_backend {
        ServiceBackend::Auto | ServiceBackend::Nftables => nft::Role::Backend,
        ServiceBackend::Ebpf => nft::Role::BesideEbpf,
        ServiceBackend::Iptables => nft::Role::Beside,
        ServiceBackend::Ipvs => nft::Role::BeforeIpvs,
    }
}

/// What a backend cannot do of a Service, and does in another way (invariant 13).
pub fn unsupported(
    backend: ServiceBackend,
    service: &NamespacedName,
    plan: &ServicePlan,
) -> Vec<Finding> {
    let (name, why) = match backend {
        ServiceBackend::Auto | ServiceBackend::Nftables => {
            ("nftables", "counts no connections and has no consistent hash")
        }
        ServiceBackend::Iptables => {
            ("iptables", "counts no connections and has no consistent hash")
        }
        ServiceBackend::Ebpf => ("ebpf", "counts no connections"),
        ServiceBackend::Ipvs => {
            let found = ipvs::unsupported(service, plan).into_iter();
            return found.chain(without_direct(backend, service, plan)).collect();
        }
    };
    let plans = plan.frontends.values().chain(plan.ranges.values());
    let asked = plans.map(|plan| &plan.scheduling).find_map(|scheduling| match scheduling {
        Scheduling::LeastConnection => Some("least-connection"),
        Scheduling::Maglev if backend != ServiceBackend::Ebpf => Some("maglev"),
        Scheduling::Ipvs(scheduler, _) => Some(scheduler.name()),
        Scheduling::Random | Scheduling::Weighted(_) | Scheduling::Maglev => None,
    });
    let finding = |asked| Finding {
        about: format!("Service {service}"),
        message: format!(
            "scheduling {asked} is not possible with the service backend {name}, which {why}: \
             endpoints are chosen at random; choose another --service-backend, or take the \
             annotation away"
        ),
    };
    asked.map(finding).into_iter().chain(without_direct(backend, service, plan)).collect()
}

/// What is to be told where answers shall go past this node and the backend cannot do it.
fn without_direct(
    backend: ServiceBackend,
    service: &NamespacedName,
    plan: &ServicePlan,
) -> Option<Finding> {
    let mut plans = plan.frontends.values().chain(plan.ranges.values());
    let is_lacking = backend != ServiceBackend::Ebpf && plans.any(|plan| plan.direct);
    is_lacking.then(|| Finding {
        about: format!("Service {service}"),
        message: format!(
            "direct server return is not possible with the service backend {backend}: clients \
             outside of the cluster are masqueraded; choose --service-backend ebpf, or \
             --load-balancer-mode snat"
        ),
    })
}

/// The ops that turn what is there into what shall be: additions in dependency order, removals
/// reversed (invariant 5). Rules come before the links that would let traffic pass without them,
/// and go after them. `diff(p, p)` is empty.
pub fn diff(program: &Program, observed: &Observed) -> Vec<Op> {
    diff_touched(program, observed, &Touched::everything())
}

/// Where a program may differ from what is there since the two agreed last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touched {
    /// Anywhere in links, addresses, neighbours, routes and sysctls.
    pub net: bool,
    /// In the nftables tables.
    pub nft: nft::Touched,
    /// In chains of iptables.
    pub iptables: iptables::Touched,
    /// In virtual servers of IPVS.
    pub ipvs: ipvs::Touched,
    /// In maps of eBPF, and anywhere in its programs.
    pub ebpf: ebpf::Touched,
}

impl Touched {
    /// Nowhere.
    pub fn nothing() -> Self {
        Self {
            net: false,
            nft: nft::Touched::nothing(),
            iptables: iptables::Touched::nothing(),
            ipvs: ipvs::Touched::nothing(),
            ebpf: ebpf::Touched::nothing(),
        }
    }

    /// Anywhere.
    pub fn everything() -> Self {
        Self {
            net: true,
            nft: nft::Touched::Everything,
            iptables: iptables::Touched::Everything,
            ipvs: ipvs::Touched::Everything,
            ebpf: ebpf::Touched::Everything,
        }
    }

    /// Whether the program differs nowhere.
    pub fn is_nothing(&self) -> bool {
        let others = [self.iptables.is_nothing(), self.ipvs.is_nothing(), self.ebpf.is_nothing()];
        !self.net && self.nft.is_nothing() && others == [true; 3]
    }

    /// Adds what changed besides.
    pub fn merge(&mut self, other: Self) {
        self.net |= other.net;
        self.nft.merge(other.nft);
        self.iptables.merge(other.iptables);
        self.ipvs.merge(other.ipvs);
        self.ebpf.merge(other.ebpf);
    }
}

/// Brings a program up to date with the plans of some Services, at a cost that does not depend on
/// the others; `before` has their former plans. The outcome is that of [`render`]; all else that it
/// depends on must be as it was. Answers where the program changed.
pub fn update(
    program: &mut Program,
    desired: &Desired,
    config: &ClusterConfig,
    facts: &NodeFacts,
    before: &BTreeMap<NamespacedName, Option<ServicePlan>>,
) -> Touched {
    let nft = nft::update(&mut program.nft, role(config), desired, config, facts, before);
    let iptables = match config.service_backend {
        ServiceBackend::Iptables => {
            iptables::update(&mut program.iptables, desired, config, facts, before)
        }
        _ => iptables::Touched::nothing(),
    };
    let ipvs = match config.service_backend {
        ServiceBackend::Ipvs => ipvs::update(&mut program.ipvs, desired, config, facts, before),
        _ => ipvs::Touched::nothing(),
    };
    let ebpf = match &mut program.ebpf {
        Some(program) => ebpf::update_node(program, desired, config, facts, before),
        None => ebpf::Touched::nothing(),
    };
    Touched { net: false, nft, iptables, ipvs, ebpf }
}

/// As [`diff`], at a cost that depends on what was touched since `observed` was as the program.
pub fn diff_touched(program: &Program, observed: &Observed, touched: &Touched) -> Vec<Op> {
    let nft = nft::diff_touched(&program.nft, &observed.nft, &touched.nft);
    let mut ops: Vec<Op> = nft.into_iter().map(Op::Nft).collect();
    // The backend that takes over is there before the one that it takes over from goes.
    let place = |is_backend, ops: &[Op]| if is_backend { 0 } else { ops.len() };
    if !touched.iptables.is_nothing() {
        let touched = &touched.iptables;
        let iptables = iptables::diff_touched(&program.iptables, &observed.iptables, touched);
        let place = place(!program.iptables.tables.is_empty(), &ops);
        ops.splice(place..place, iptables.into_iter().map(Op::Iptables));
    }
    if !touched.ipvs.is_nothing() {
        // What takes over stands there first, and what goes has no new connections any more.
        let ipvs = ipvs::diff_touched(&program.ipvs, &observed.ipvs, &touched.ipvs);
        let is_first = |op: &ipvs::IpvsOp| ipvs::is_preparation(op, &observed.nft);
        let (first, last): (Vec<_>, Vec<_>) = ipvs.into_iter().partition(is_first);
        ops.splice(0..0, first.into_iter().map(Op::Ipvs));
        ops.extend(last.into_iter().map(Op::Ipvs));
    }
    if !touched.ebpf.is_nothing() {
        let ebpf = ebpf::diff_node_touched(program.ebpf.as_ref(), &observed.ebpf, &touched.ebpf);
        let place = place(program.ebpf.is_some(), &ops);
        ops.splice(place..place, ebpf.into_iter().map(Op::Ebpf));
    }
    if touched.net {
        ops.extend(net::diff(&program.net, &observed.net).into_iter().map(Op::Net));
    }
    ops
}

impl Observed {
    /// The state after one op, or why Linux would refuse it; then nothing has changed.
    ///
    /// # Errors
    /// The errno that Linux answers for the same op in the same state.
    pub fn apply(&mut self, op: &Op) -> Result<(), OpError> {
        match op {
            Op::Net(op) => self.net.apply(op),
            Op::Nft(op) => self.nft.apply(op),
            Op::Iptables(op) => self.iptables.apply(op),
            Op::Ipvs(op) => self.ipvs.apply(op),
            Op::Ebpf(op) => self.ebpf.apply(op),
        }
    }
}
