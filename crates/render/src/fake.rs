//! An honest fake of the kernel: it keeps what Linux would keep, refuses what Linux refuses, and
//! can be told to fail.

use std::collections::BTreeMap;

use crate::nft::StaleFlows;
use crate::{Kernel, Observed, Op, OpError, carry_out};

/// A kernel in memory, for the simulator and for case files.
#[derive(Clone, Debug, Default)]
pub struct FakeKernel {
    /// What it holds.
    pub state: Observed,
    /// Ops that were carried out, in order.
    pub applied: Vec<Op>,
    /// Refuse the n-th op from now (0 is the next) with this errno.
    pub faults: BTreeMap<usize, i32>,
    /// By what flows were judged, each time.
    pub judged: Vec<Vec<StaleFlows>>,
    /// Refuse to forget flows so many times, the last errno first.
    pub flow_faults: Vec<i32>,
}

impl Kernel for FakeKernel {
    fn observe(&mut self) -> Result<Observed, OpError> {
        // Nobody has connections here that a virtual server could wait for.
        self.state.ipvs.retiring.clear();
        Ok(self.state.clone())
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>> {
        let faults = std::mem::take(&mut self.faults);
        let results = carry_out(ops, |index, op| match faults.get(&index) {
            Some(&errno) => Err(OpError { errno, message: format!("injected fault on {op:?}") }),
            None => {
                self.state.apply(op)?;
                self.applied.push(op.clone());
                Ok(())
            }
        });
        self.faults =
            faults.range(ops.len()..).map(|(&index, &errno)| (index - ops.len(), errno)).collect();
        results
    }

    fn forget_flows(&mut self, stray: &[StaleFlows]) -> Result<(), OpError> {
        // Nobody sends anything here.
        self.judged.push(stray.to_vec());
        let fault = self.flow_faults.pop();
        fault.map_or(Ok(()), |errno| Err(OpError { errno, message: "injected fault".into() }))
    }
}
