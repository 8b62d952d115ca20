//! Interface of this half of the renderer; its owner fills it in.

use model::ClusterConfig;
use plan::{Desired, NodeFacts};

use crate::OpError;

/// What shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetProgram {}

/// What is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetObserved {}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetOp {}

/// Says a plan.
pub fn render(_desired: &Desired, _config: &ClusterConfig, _facts: &NodeFacts) -> NetProgram {
    NetProgram::default()
}

/// The ops from what is to what shall be.
pub fn diff(_program: &NetProgram, _observed: &NetObserved) -> Vec<NetOp> {
    vec![]
}

impl NetObserved {
    /// The state after one op, or why Linux would refuse it.
    ///
    /// # Errors
    /// The errno that Linux answers.
    pub fn apply(&mut self, op: &NetOp) -> Result<(), OpError> {
        match *op {}
    }
}
