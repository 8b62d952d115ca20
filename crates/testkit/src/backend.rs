//! The ways to carry out Services, each on a kernel of its own in memory, behind one face: what
//! the case runner and the laws hold against the oracle (invariant 13).

use std::fmt::Debug;

use model::ClusterConfig;
use model::packet::{Packet, Verdict};
use plan::{Desired, NodeFacts};
use render::OpError;
use render::nft::{NftObserved, NftOp, NftProgram};

use crate::verdict::normal;

/// What a node is, besides the objects of the API.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The cluster's configuration.
    pub config: &'a ClusterConfig,
    /// What the node knows of itself.
    pub facts: &'a NodeFacts,
}

/// One way to carry out Services.
pub trait Backend {
    /// Its name, as configuration and cases have it.
    fn name(&self) -> &'static str;

    /// Brings the kernel to what the node shall hold. Answers the operations that it took.
    ///
    /// # Errors
    /// When the kernel refuses one.
    fn bring(&mut self, desired: &Desired, place: Place<'_>) -> Result<Vec<String>, String>;

    /// What becomes of a packet in that kernel.
    ///
    /// # Errors
    /// When the tracer cannot follow what is there.
    fn trace(&self, packet: &Packet, place: Place<'_>) -> Result<Verdict, String>;

    /// The same backend on an empty kernel.
    fn anew(&self) -> Box<dyn Backend>;
}

/// All of them, on empty kernels.
pub fn all() -> Vec<Box<dyn Backend>> {
    vec![Box::new(InMemory::<Nftables>::default())]
}

/// What `render::<name>` offers, as every backend has it.
trait Rules {
    const NAME: &'static str;
    type Program;
    type Observed: Default;
    type Op: Debug;

    fn render(desired: &Desired, place: Place<'_>) -> Self::Program;
    fn diff(program: &Self::Program, observed: &Self::Observed) -> Vec<Self::Op>;
    fn apply(observed: &mut Self::Observed, op: &Self::Op) -> Result<(), OpError>;
    fn trace(
        observed: &Self::Observed,
        packet: &Packet,
        place: Place<'_>,
    ) -> Result<Verdict, String>;
}

struct InMemory<R: Rules> {
    observed: R::Observed,
}

impl<R: Rules> Default for InMemory<R> {
    fn default() -> Self {
        Self { observed: R::Observed::default() }
    }
}

impl<R: Rules + 'static> Backend for InMemory<R> {
    fn name(&self) -> &'static str {
        R::NAME
    }

    fn bring(&mut self, desired: &Desired, place: Place<'_>) -> Result<Vec<String>, String> {
        let program = R::render(desired, place);
        let ops = R::diff(&program, &self.observed);
        for op in &ops {
            R::apply(&mut self.observed, op).map_err(|error| format!("{error} at {op:?}"))?;
        }
        Ok(ops.iter().map(|op| format!("{op:?}")).collect())
    }

    fn trace(&self, packet: &Packet, place: Place<'_>) -> Result<Verdict, String> {
        R::trace(&self.observed, packet, place).map(normal)
    }

    fn anew(&self) -> Box<dyn Backend> {
        Box::new(Self::default())
    }
}

/// `render::nft`.
struct Nftables;

impl Rules for Nftables {
    const NAME: &'static str = "nftables";
    type Program = NftProgram;
    type Observed = NftObserved;
    type Op = NftOp;

    fn render(desired: &Desired, place: Place<'_>) -> NftProgram {
        render::nft::render(desired, place.config, place.facts)
    }

    fn diff(program: &NftProgram, observed: &NftObserved) -> Vec<NftOp> {
        render::nft::diff(program, observed)
    }

    fn apply(observed: &mut NftObserved, op: &NftOp) -> Result<(), OpError> {
        observed.apply(op)
    }

    fn trace(observed: &NftObserved, packet: &Packet, place: Place<'_>) -> Result<Verdict, String> {
        render::nft::trace(observed, packet, place.config, place.facts)
            .map_err(|error| error.to_string())
    }
}
