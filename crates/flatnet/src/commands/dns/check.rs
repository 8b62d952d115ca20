//! `flatnet dns check`: whether a configuration of the DNS worker is one.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

/// Arguments of `flatnet dns check`.
#[derive(clap::Args)]
#[command(after_help = "Exit codes: 0 the configuration is good, 1 it is not.")]
pub struct Arguments {
    /// The configuration (YAML, see docs/dns.md).
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Says what is wrong with the file, by line and field.
///
/// # Errors
/// When it cannot be read, or is no configuration.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let file = &arguments.file;
    let text = read(file, dns::config::MAX_CONFIG_OCTETS)?;
    dns::Config::parse(&text).with_context(|| file.display().to_string())?;
    println!("{}: good", file.display());
    Ok(ExitCode::SUCCESS)
}

/// Reads a file of bounded size.
///
/// # Errors
/// When it cannot be read, or is too large.
pub fn read(file: &Path, octets_max: usize) -> Result<String> {
    let reading = || format!("reading {}", file.display());
    let length = std::fs::metadata(file).with_context(reading)?.len();
    if length > octets_max as u64 {
        bail!("{}: {length} bytes are too many, at most {octets_max} are read", file.display());
    }
    std::fs::read_to_string(file).with_context(reading)
}
