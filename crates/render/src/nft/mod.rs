//! Interface of this half of the renderer; its owner fills it in.

use model::ClusterConfig;
use plan::{Desired, NodeFacts};

use crate::OpError;

/// What shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NftProgram {}

/// What is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NftObserved {}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NftOp {}

/// Says a plan.
pub fn render(_desired: &Desired, _config: &ClusterConfig, _facts: &NodeFacts) -> NftProgram {
    NftProgram::default()
}

/// The ops from what is to what shall be.
pub fn diff(_program: &NftProgram, _observed: &NftObserved) -> Vec<NftOp> {
    vec![]
}

impl NftObserved {
    /// The state after one op, or why Linux would refuse it.
    ///
    /// # Errors
    /// The errno that Linux answers.
    pub fn apply(&mut self, op: &NftOp) -> Result<(), OpError> {
        match *op {}
    }
}
