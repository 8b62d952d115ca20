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

use model::ClusterConfig;
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
