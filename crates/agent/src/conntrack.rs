//! How full the node's connection tracking is: the kernel drops the first packet of each
//! further flow when it is full, whoever sends it, and says so in its own log alone.

use std::fmt::Write as _;

use netlink::sysctl;
use render::net::CONNTRACK_MAX;
use serde::{Deserialize, Serialize};

use crate::report::Condition;

/// The Node's condition.
const CONDITION: &str = "FlatnetConntrackPressure";
/// How many flows this network namespace has.
const COUNT: &str = "net/netfilter/nf_conntrack_count";
/// From here on it is nearly full, in percent.
const SCARCE_PERCENT: u64 = 90;
/// And below this it has room again: what hovers about one number is told once.
const AMPLE_PERCENT: u64 = 80;

/// How full it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConntrackFill {
    /// Flows of this node.
    pub entries: u64,
    /// Those that it takes.
    pub limit: u64,
}

impl ConntrackFill {
    /// Reads it; `None` where nothing is tracked.
    pub(crate) fn read() -> Option<Self> {
        let number = |key: &str| sysctl::read(key).ok()?.parse().ok();
        Some(Self { entries: number(COUNT)?, limit: number(CONNTRACK_MAX)? })
    }

    /// The same as metrics.
    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        for (name, help, value) in [
            ("entries", "Flows in the node's connection tracking.", self.entries),
            ("limit", "Flows that it takes; further ones are dropped.", self.limit),
        ] {
            let name = format!("flatnet_conntrack_{name}");
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
        }
        text
    }

    fn is_at_least(&self, percent: u64) -> bool {
        // Without a limit (0) it is never full.
        self.limit > 0
            && u128::from(self.entries) * 100 >= u128::from(self.limit) * u128::from(percent)
    }
}

/// What is known of it.
#[derive(Debug, Default)]
pub(crate) struct Conntrack {
    fill: Option<ConntrackFill>,
    is_scarce: bool,
}

impl Conntrack {
    /// Takes in what was read. Answers whether there is something to be told.
    pub(crate) fn look(&mut self, fill: Option<ConntrackFill>) -> bool {
        let percent = if self.is_scarce { AMPLE_PERCENT } else { SCARCE_PERCENT };
        let is_scarce = fill.is_some_and(|fill| fill.is_at_least(percent));
        let is_other = is_scarce != self.is_scarce || fill.is_some() != self.fill.is_some();
        (self.fill, self.is_scarce) = (fill, is_scarce);
        is_other
    }

    /// What is wrong, and what to do.
    pub(crate) fn problem(&self) -> Option<String> {
        let fill = self.fill.filter(|_| self.is_scarce)?;
        Some(format!(
            "connection tracking is nearly full: of {} flows more than {AMPLE_PERCENT} % are taken, \
             and what comes beyond them is dropped; raise conntrack.maxPerCore in the \
             configuration (in the machine's own network namespace; elsewhere \
             net.netfilter.nf_conntrack_max of the machine), or find who opens so many \
             (conntrack -L)",
            fill.limit
        ))
    }

    /// The Node's condition; `None` where nothing is tracked.
    pub(crate) fn condition(&self) -> Option<Condition> {
        let fill = self.fill?;
        let (status, reason, message) = match self.problem() {
            Some(problem) => ("True", "ConntrackNearlyFull", problem),
            None => {
                let room = format!("connection tracking of {} flows has room", fill.limit);
                ("False", "ConntrackHasRoom", room)
            }
        };
        Some(Condition { kind: CONDITION, status, reason, message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(entries: u64, limit: u64) -> Option<ConntrackFill> {
        Some(ConntrackFill { entries, limit })
    }

    #[test]
    fn a_table_that_fills_is_told_once_until_it_has_room_again() {
        let mut conntrack = Conntrack::default();
        assert_eq!(conntrack.condition(), None);
        // Entries of 1,000; whether it is news; whether it is nearly full.
        let rows = [
            (899, true, false),
            (100, false, false),
            (900, true, true),
            (1_000, false, true),
            (850, false, true),
            (800, false, true),
            (799, true, false),
            (899, false, false),
        ];
        for (entries, is_news, is_scarce) in rows {
            assert_eq!(conntrack.look(fill(entries, 1_000)), is_news, "{entries}");
            let condition = conntrack.condition().expect("it is known");
            let status = if is_scarce { "True" } else { "False" };
            assert_eq!(condition.status, status, "{entries}: {}", condition.message);
            assert_eq!(conntrack.problem().is_some(), is_scarce, "{entries}");
        }
        assert!(conntrack.look(None) && conntrack.condition().is_none());
        assert!(conntrack.look(fill(u64::MAX, 0)) && conntrack.problem().is_none(), "no limit");
    }

    #[test]
    fn a_higher_limit_gives_room() {
        let mut conntrack = Conntrack::default();
        assert!(conntrack.look(fill(131_072, 131_072)));
        assert!(conntrack.problem().expect("full").contains("131072"));
        assert!(conntrack.look(fill(131_072, 262_144)));
        assert_eq!(conntrack.condition().expect("known").reason, "ConntrackHasRoom");
    }

    #[test]
    fn metrics_have_both_numbers() {
        let text = ConntrackFill { entries: 12, limit: 262_144 }.metrics();
        for line in ["flatnet_conntrack_entries 12", "flatnet_conntrack_limit 262144"] {
            assert!(text.lines().any(|own| own == line), "{line}: {text}");
        }
        assert_eq!(text.matches("# TYPE").count(), 2);
    }
}
