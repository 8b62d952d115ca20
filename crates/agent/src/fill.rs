//! How full the maps of Services in eBPF are, counted when somebody asks.

use std::fmt::Write as _;

use kernel::bpf::FILE_SYSTEM;
use kernel::bpf::fill::{MapFill, fill};
use model::EbpfMapSizes;
use serde::{Deserialize, Serialize};

/// One map of Services in eBPF.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MapRow {
    /// Its name.
    pub name: String,
    /// The entries that it has. Of flows and clients also those whose time is over, until their
    /// place is needed.
    pub entries: u64,
    /// Those that it takes.
    pub entries_max: u32,
}

/// The maps of this node; none where there are none, or the kernel cannot be asked.
pub(crate) async fn rows(sizes: EbpfMapSizes) -> Vec<MapRow> {
    // Large maps take a while, and the loop's thread has other work.
    let counted = tokio::task::spawn_blocking(move || fill(FILE_SYSTEM.as_ref(), &sizes)).await;
    match counted {
        Ok(Ok(maps)) => maps.into_iter().map(row).collect(),
        Ok(Err(error)) => {
            tracing::warn!("{error}");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

fn row(map: MapFill) -> MapRow {
    MapRow { name: map.name.to_owned(), entries: map.entries, entries_max: map.entries_max }
}

/// The same as metrics.
pub(crate) fn metrics(rows: &[MapRow]) -> String {
    let mut text = String::new();
    if rows.is_empty() {
        return text;
    }
    let mut gauge = |name: &str, help: &str, value: fn(&MapRow) -> u64| {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
        for row in rows {
            let _ = writeln!(text, "{name}{{map=\"{}\"}} {}", row.name, value(row));
        }
    };
    gauge("flatnet_ebpf_map_entries", "Entries of a map of Services in eBPF.", |row| row.entries);
    let help = "Entries that it takes (ebpfMaps in the configuration).";
    gauge("flatnet_ebpf_map_entries_max", help, |row| row.entries_max.into());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_name_each_map_and_nothing_where_there_is_none() {
        assert_eq!(metrics(&[]), "");
        let flows = MapRow { name: "flows".into(), entries: 12, entries_max: 1024 };
        let text = metrics(&[flows]);
        for line in [
            "# TYPE flatnet_ebpf_map_entries gauge",
            "flatnet_ebpf_map_entries{map=\"flows\"} 12",
            "flatnet_ebpf_map_entries_max{map=\"flows\"} 1024",
        ] {
            assert!(text.lines().any(|own| own == line), "{line}: {text}");
        }
    }
}
