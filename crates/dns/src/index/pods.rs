//! Whose pods have which addresses. Most pods of a namespace have the same names, which are kept
//! once: of a hundred thousand pods, ten megabytes less.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::{Bound, RangeInclusive};
use std::sync::Arc;

use plan::zone::PodNames;

/// The names by address.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pods {
    at: BTreeMap<IpAddr, Arc<PodNames>>,
    /// Each of these values once.
    names: BTreeSet<Arc<PodNames>>,
}

/// Who holds the names of a pod that is gone, when it was the last: whoever took it out, and the set.
/// (Where a zone was copied, the copy's pods count too, and names may stay in the set without a pod.)
const LAST_COUNT: usize = 2;

impl Pods {
    pub(crate) fn get(&self, address: IpAddr) -> Option<&PodNames> {
        self.at.get(&address).map(Arc::as_ref)
    }

    /// How many addresses there are.
    pub(crate) fn len(&self) -> usize {
        self.at.len()
    }

    pub(crate) fn insert(&mut self, address: IpAddr, names: PodNames) {
        self.remove(address);
        let names = match self.names.get(&names) {
            Some(same) => same.clone(),
            None => Arc::new(names),
        };
        self.names.insert(names.clone());
        self.at.insert(address, names);
    }

    pub(crate) fn remove(&mut self, address: IpAddr) -> Option<PodNames> {
        let names = self.at.remove(&address)?;
        if Arc::strong_count(&names) == LAST_COUNT {
            self.names.remove(&names);
        }
        Some(Arc::unwrap_or_clone(names))
    }

    pub(crate) fn are_in(&self, range: RangeInclusive<IpAddr>) -> bool {
        self.at.range(range).next().is_some()
    }

    /// Those from an address on.
    pub(crate) fn behind(&self, from: Bound<&IpAddr>) -> impl Iterator<Item = (IpAddr, &PodNames)> {
        let pods = self.at.range((from, Bound::Unbounded));
        pods.map(|(address, names)| (*address, names.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_once_and_go_with_the_last_pod() {
        let names = |namespace: &str| PodNames { namespaces: vec![namespace.into()], is_own: true };
        let address = |last: u8| IpAddr::from([10, 244, 0, last]);
        let mut pods = Pods::default();
        for last in 1..=9 {
            pods.insert(address(last), names(if last == 9 { "bank" } else { "shop" }));
        }
        pods.insert(address(1), names("shop"));
        assert_eq!((pods.at.len(), pods.names.len()), (9, 2));
        pods.insert(address(9), names("shop"));
        assert_eq!((pods.at.len(), pods.names.len()), (9, 1));
        assert_eq!(pods.get(address(9)), Some(&names("shop")));
        for last in 1..=9 {
            assert_eq!(pods.names.len(), 1, "{last}");
            assert_eq!(pods.remove(address(last)), Some(names("shop")));
        }
        assert_eq!(pods.remove(address(1)), None);
        assert_eq!((pods.at.len(), pods.names.len()), (0, 0));
    }
}
