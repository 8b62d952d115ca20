//! The packet table: columns separated by `|`, aligned when written.

use std::str::FromStr;

use anyhow::{Context, Result, bail};
use model::Protocol;

/// The columns, in order. The last four are results and may be left out before `bless`.
const COLUMNS: [&str; 7] =
    ["from", "to", "protocol", "verdict", "rewritten to", "source", "decided by"];

/// One packet and what becomes of it, all in the words of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Who sends: `pod NAME`, `node`, `node NAME`, `outside`.
    pub from: String,
    /// The destination, see [`super::names`].
    pub to: String,
    /// The protocol.
    pub protocol: Protocol,
    /// `pass`, `reject`, `drop`; all four results are empty before `bless`.
    pub verdict: String,
    /// The possible destinations, or `unchanged`.
    pub rewritten_to: String,
    /// `kept`, `masqueraded`, `masqueraded towards …`.
    pub source: String,
    /// What the verdict follows from.
    pub decided_by: String,
}

/// Reads a table.
///
/// # Errors
/// When a row has not the columns, or an unknown protocol.
pub fn parse(body: &[String]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for line in body {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if cells == COLUMNS[..cells.len().min(COLUMNS.len())] {
            continue;
        }
        let (from, to, protocol) = match cells.as_slice() {
            [from, to, protocol, ..] if cells.len() <= COLUMNS.len() => (from, to, protocol),
            _ => bail!("{line:?} has not the columns {}", COLUMNS.join(" | ")),
        };
        let cell = |index: usize| cells.get(index).copied().unwrap_or_default().to_string();
        rows.push(Row {
            from: from.to_string(),
            to: to.to_string(),
            protocol: Protocol::from_str(protocol)
                .map_err(anyhow::Error::msg)
                .with_context(|| format!("in {line:?}"))?,
            verdict: cell(3),
            rewritten_to: cell(4),
            source: cell(5),
            decided_by: cell(6),
        });
    }
    if rows.is_empty() {
        bail!("a table without packets");
    }
    Ok(rows)
}

/// Prints a table, aligned and indented.
pub fn print(rows: &[Row]) -> Vec<String> {
    let header = COLUMNS.map(String::from);
    let cells: Vec<[String; 7]> =
        std::iter::once(header).chain(rows.iter().map(Row::cells)).collect();
    let width = |column: usize| {
        cells.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    cells
        .iter()
        .map(|row| {
            let padded: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}", width = *width))
                .collect();
            format!("  {}", padded.join(" | ").trim_end())
        })
        .collect()
}

impl Row {
    fn cells(&self) -> [String; 7] {
        [
            self.from.clone(),
            self.to.clone(),
            self.protocol.to_string(),
            self.verdict.clone(),
            self.rewritten_to.clone(),
            self.source.clone(),
            self.decided_by.clone(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_back() {
        let rows = vec![
            Row {
                from: "pod client".into(),
                to: "web:80".into(),
                verdict: "pass".into(),
                rewritten_to: "web-1:8080, web-2:8080".into(),
                source: "kept".into(),
                decided_by: "default/web port 80".into(),
                ..Row::default()
            },
            Row { from: "node".into(), to: "x:1".into(), verdict: "drop".into(), ..Row::default() },
        ];
        assert_eq!(parse(&print(&rows)).expect("a table"), rows);
    }

    #[test]
    fn wrong_rows_are_named() {
        for line in ["only | two", "a | b | ICMP"] {
            let error = parse(&[line.to_string()]).expect_err("a fault");
            assert!(format!("{error:#}").contains(line), "{error:#}");
        }
    }
}
