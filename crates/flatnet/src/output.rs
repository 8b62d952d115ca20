//! What people see: progress, tables, structured output.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

/// `--output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables and sentences.
    #[default]
    Text,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// Prints a value as JSON or YAML, or by `text` for people.
///
/// # Errors
/// When standard output is closed.
pub fn print<T: Serialize>(format: Format, value: &T, text: impl FnOnce() -> String) -> Result<()> {
    let text = match format {
        Format::Text => text(),
        Format::Json => format!("{}\n", serde_json::to_string_pretty(value)?),
        Format::Yaml => serde_yaml_ng::to_string(value)?,
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// Lines up rows below a header, three spaces between columns, as kubectl does.
pub fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = header.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String; N]| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            text.push_str(&format!("{cell:<width$}   "));
        }
        format!("{}\n", text.trim_end())
    };
    let mut text = line(&header.map(str::to_owned));
    for row in rows {
        text.push_str(&line(row));
    }
    text
}

/// Steps of long work, on standard error: results go to standard output.
pub struct Progress {
    started: Instant,
    step: Instant,
    quiet: bool,
    colours: bool,
}

impl Progress {
    /// Starts counting.
    pub fn new(quiet: bool) -> Self {
        let now = Instant::now();
        Self { started: now, step: now, quiet, colours: std::io::stderr().is_terminal() }
    }

    /// Says that a step is done, and how long it took.
    pub fn done(&mut self, step: &str) {
        let now = Instant::now();
        if !self.quiet {
            let took = now.duration_since(self.step).as_millis();
            let (green, plain) = if self.colours { ("\x1b[32m", "\x1b[0m") } else { ("", "") };
            eprintln!(" {green}✓{plain} {step} ({took} ms)");
        }
        self.step = now;
    }

    /// Since the start.
    pub fn elapsed_ms(&self) -> u128 {
        self.started.elapsed().as_millis()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_trailing_space() {
        let text = table(["NAME", "AGE"], &[["a".into(), "1s".into()], ["long".into(), "".into()]]);
        assert_eq!(text, "NAME   AGE\na      1s\nlong\n");
    }
}
