//! Desired to kernel programs, and programs to operations.
//!
//! ```text
//! Desired ─render─▶ Program ┐
//!                           ├─diff─▶ Vec<Op> ─▶ Kernel::apply ─▶ one result an op
//! Kernel::observe ▶ Observed┘
//! ```
//!
//! The same [`Observed::apply`] moves the believed state of the loop and the [`fake`] kernel.

pub mod bpf;
pub mod ebpf;
pub mod edge;
pub mod fake;
pub mod inventory;
pub mod iptables;
pub mod net;
pub mod nft;
pub mod owned;

use std::collections::BTreeMap;

use model::{ClusterConfig, NamespacedName};
use plan::services::ServicePlan;
use plan::{Desired, NodeFacts};

/// What the kernel shall hold of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// Links, addresses, neighbours, routes, sysctls.
    pub net: net::NetProgram,
    /// The nftables tables.
    pub nft: nft::NftProgram,
}

/// What the kernel holds of ours, read back; foreign objects are not in it (invariant 4).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Links, addresses, neighbours, routes, sysctls.
    pub net: net::NetObserved,
    /// The nftables tables.
    pub nft: nft::NftObserved,
}

/// One operation on the kernel. An op succeeds or fails as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// On links, addresses, neighbours, routes or sysctls.
    Net(net::NetOp),
    /// One nftables transaction.
    Nft(nft::NftOp),
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
}

/// Says a plan in the words of the kernel. A pure function of its arguments.
pub fn render(desired: &Desired, config: &ClusterConfig, facts: &NodeFacts) -> Program {
    Program { net: net::render(desired, config, facts), nft: nft::render(desired, config, facts) }
}

/// The ops that turn what is there into what shall be: additions in dependency order, removals
/// reversed (invariant 5). Rules come before the links that would let traffic pass without them,
/// and go after them. `diff(p, p)` is empty.
pub fn diff(program: &Program, observed: &Observed) -> Vec<Op> {
    let nft = nft::diff(&program.nft, &observed.nft).into_iter().map(Op::Nft);
    let net = net::diff(&program.net, &observed.net).into_iter().map(Op::Net);
    nft.chain(net).collect()
}

/// Where a program may differ from what is there since the two agreed last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touched {
    /// Anywhere in links, addresses, neighbours, routes and sysctls.
    pub net: bool,
    /// In the nftables tables.
    pub nft: nft::Touched,
}

impl Touched {
    /// Nowhere.
    pub fn nothing() -> Self {
        Self { net: false, nft: nft::Touched::nothing() }
    }

    /// Anywhere.
    pub fn everything() -> Self {
        Self { net: true, nft: nft::Touched::Everything }
    }

    /// Whether the program differs nowhere.
    pub fn is_nothing(&self) -> bool {
        !self.net && self.nft.is_nothing()
    }

    /// Adds what changed besides.
    pub fn merge(&mut self, other: Self) {
        self.net |= other.net;
        self.nft.merge(other.nft);
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
    let role = nft::Role::Backend;
    let nft = nft::update(&mut program.nft, role, desired, config, facts, before);
    Touched { net: false, nft }
}

/// As [`diff`], at a cost that depends on what was touched since `observed` was as the program.
pub fn diff_touched(program: &Program, observed: &Observed, touched: &Touched) -> Vec<Op> {
    let nft = nft::diff_touched(&program.nft, &observed.nft, &touched.nft);
    let net = if touched.net { net::diff(&program.net, &observed.net) } else { vec![] };
    nft.into_iter().map(Op::Nft).chain(net.into_iter().map(Op::Net)).collect()
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
        }
    }
}
