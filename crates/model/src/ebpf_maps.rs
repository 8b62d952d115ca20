//! How much the maps of Services in eBPF take.

use serde::{Deserialize, Serialize};

/// Entries that the maps of the eBPF backend take at most. Maps of other sizes are other maps: they
/// are filled before they take over from the old ones, and established flows go on (of more than a
/// smaller map takes, those that were used last).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct EbpfMapSizes {
    /// Frontends; as many parts of port ranges, and source ranges.
    pub services: u32,
    /// Slots of all frontends but their first ones, which lie with them; Maglev entries; members:
    /// each.
    pub slots: u32,
    /// Clients with affinity, and UDP flows of sockets: each.
    pub clients: u32,
    /// Packets' flows at links: two entries each, four where the source is masqueraded. The longest
    /// unused go first where it is full.
    pub flows: u32,
}

/// Entries of one map at least: the Services of a cluster's own, and a few.
pub const EBPF_MAP_ENTRIES_MIN: u32 = 256;
/// Entries of one map at most: a map that is full of frontends takes 1.1 GB of the
/// kernel's memory then.
pub const EBPF_MAP_ENTRIES_MAX: u32 = 1 << 22;

impl Default for EbpfMapSizes {
    fn default() -> Self {
        Self { services: 65_536, slots: 262_144, clients: 65_536, flows: 131_072 }
    }
}

impl EbpfMapSizes {
    /// The names of sizes that no map can have, as the configuration has them.
    pub fn impossible(&self) -> impl Iterator<Item = &'static str> {
        let rows = [
            ("services", self.services),
            ("slots", self.slots),
            ("clients", self.clients),
            ("flows", self.flows),
        ];
        let allowed = EBPF_MAP_ENTRIES_MIN..=EBPF_MAP_ENTRIES_MAX;
        rows.into_iter().filter(move |(_, size)| !allowed.contains(size)).map(|(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_no_map_can_have_are_named() {
        let default = EbpfMapSizes::default();
        assert_eq!(default.impossible().count(), 0);
        let rows = [
            (EbpfMapSizes { services: 255, ..default }, vec!["services"]),
            (EbpfMapSizes { slots: 1 << 22, ..default }, vec![]),
            (
                EbpfMapSizes { slots: (1 << 22) + 1, clients: 0, ..default },
                vec!["slots", "clients"],
            ),
            (EbpfMapSizes { flows: 100, ..default }, vec!["flows"]),
        ];
        for (sizes, expected) in rows {
            assert_eq!(sizes.impossible().collect::<Vec<_>>(), expected, "{sizes:?}");
        }
    }

    #[test]
    fn what_is_left_out_has_its_default_and_what_is_misspelt_is_refused() {
        let read = serde_json::from_str::<EbpfMapSizes>(r#"{"services": 1000}"#).expect("read");
        assert_eq!(read, EbpfMapSizes { services: 1000, ..EbpfMapSizes::default() });
        let error = serde_json::from_str::<EbpfMapSizes>(r#"{"service": 1000}"#).expect_err("bad");
        assert!(error.to_string().contains("`services`"), "{error}");
    }
}
