//! What this node's kernel lacks of what the network needs: told where operators look, in a
//! condition of the Node and in Events. The agent cannot load modules itself.

use std::collections::BTreeSet;

use render::net::Feature;
use render::{Op, OpError};

use crate::report::Condition;

/// The Node's condition.
const CONDITION: &str = "FlatnetKernelReady";

/// What was refused because the kernel has no such thing.
#[derive(Debug, Default)]
pub(crate) struct Lacking(BTreeSet<Feature>);

impl Lacking {
    /// Takes in what became of ops.
    pub(crate) fn note(&mut self, ops: &[Op], results: &[Result<(), OpError>]) {
        for (op, result) in ops.iter().zip(results) {
            let Op::Net(op) = op else { continue };
            match result {
                Ok(()) => {
                    Feature::of(op).map(|there| self.0.remove(&there));
                }
                Err(error) => self.0.extend(Feature::lacked(op, error.errno)),
            }
        }
    }

    /// All that is wanted is there: what was lacked is not wanted any more.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// What to do, for each.
    pub(crate) fn advice(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|feature| feature.advice())
    }

    /// The Node's condition; `None` while nobody knows.
    pub(crate) fn condition(&self, converged: bool) -> Option<Condition> {
        let (status, reason, message) = match (self.0.is_empty(), converged) {
            (true, false) => return None,
            (true, true) => {
                ("True", "AllFeaturesPresent", "the kernel has what the network needs".to_owned())
            }
            (false, _) => {
                let advice: Vec<&str> = self.advice().collect();
                ("False", "FeatureMissing", advice.join("; "))
            }
        };
        Some(Condition { kind: CONDITION, status, reason, message })
    }
}

#[cfg(test)]
mod tests {
    use render::net::NetOp;

    use super::*;

    #[test]
    fn what_is_lacked_is_told_until_it_is_there_or_not_wanted() {
        let op = |key: &str| Op::Net(NetOp::SetSysctl { key: key.into(), value: "1".into() });
        let bridge = op("net/bridge/bridge-nf-call-iptables");
        let ops = [op("net/ipv4/ip_forward"), bridge, op("net/netfilter/nf_conntrack_max")];
        let refused = |errno| Err(OpError { errno, message: String::new() });
        let mut lacking = Lacking::default();
        assert_eq!(lacking.condition(false), None);
        lacking.note(&ops, &[refused(2), refused(2), refused(1)]);
        let said = lacking.condition(false).expect("it is known");
        assert_eq!((said.status, said.reason), ("False", "FeatureMissing"));
        assert_eq!(
            said.message,
            "the kernel module br_netfilter is not loaded: modprobe br_netfilter"
        );
        lacking.note(&ops, &[Ok(()), Ok(()), refused(2)]);
        assert!(lacking.condition(true).expect("it is known").message.contains("nf_conntrack"));
        lacking.clear();
        assert_eq!(lacking.condition(true).expect("it is known").status, "True");
    }
}
