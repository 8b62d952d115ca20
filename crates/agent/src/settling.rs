//! [`Settling`]: when a node has settled, and what nobody waits for may begin.
//!
//! The kernel attaches a program to a link only after a grace period of RCU (about 10 ms), and as
//! long no link of the whole machine changes: it holds the lock of all links. So accelerations that
//! nothing depends on come when no link has come for a while, and pods come up sooner.

use std::time::{Duration, Instant};

/// A node has settled when nothing has come for so long.
const QUIET: Duration = Duration::from_millis(500);
/// And at the latest so long after the first that came.
const LONGEST: Duration = Duration::from_secs(3);

/// Whether links come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settling {
    /// When the first of them came, and when the node will have settled.
    coming: Option<(Instant, Instant)>,
}

impl Settling {
    /// Something has come, or is about to.
    pub(crate) fn note(&mut self, now: Instant) {
        let (first, _) = self.coming.filter(|(_, end)| now < *end).unwrap_or((now, now));
        self.coming = Some((first, (now + QUIET).min(first + LONGEST)));
    }

    /// When the node will have settled; `None`: it has.
    pub(crate) fn end(&self, now: Instant) -> Option<Instant> {
        self.coming.map(|(_, end)| end).filter(|end| now < *end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_settled_when_nothing_comes_or_after_a_while() {
        let mut settling = Settling::default();
        let start = Instant::now();
        assert_eq!(settling.end(start), None);
        settling.note(start);
        assert_eq!(settling.end(start), Some(start + QUIET));
        settling.note(start + QUIET / 2);
        assert_eq!(settling.end(start + QUIET), Some(start + QUIET / 2 + QUIET));
        assert_eq!(settling.end(start + QUIET * 2), None);

        let again = start + QUIET * 4;
        let mut now = again;
        while now < again + LONGEST {
            settling.note(now);
            now += QUIET / 2;
        }
        assert_eq!(settling.end(now - QUIET / 2), Some(again + LONGEST), "they never stop coming");
        assert_eq!(settling.end(again + LONGEST), None);
    }
}
