//! `flatnet dns import`: a Corefile of CoreDNS as a configuration of the DNS worker.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use dns::{Config, corefile};

use super::check::read;

/// Something of the Corefile has no place in the configuration.
const EXIT_LOST: u8 = 2;

/// Arguments of `flatnet dns import`.
#[derive(clap::Args)]
#[command(
    after_help = "Exit codes: 0 all was carried over, 1 the file is no Corefile, 2 something was \
                  not carried over (listed on standard error)."
)]
pub struct Arguments {
    /// The Corefile.
    #[arg(value_name = "COREFILE")]
    file: PathBuf,
}

/// Prints the configuration, and on standard error what is not in it.
///
/// # Errors
/// When the file cannot be read, or is no Corefile.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let name = arguments.file.display();
    let text = read(&arguments.file, corefile::MAX_COREFILE_OCTETS)?;
    let imported = corefile::import(&text).map_err(|error| anyhow!("{name}: {error}"))?;
    print!("{}", imported.yaml);
    for line in &imported.needless {
        eprintln!("not needed: {line}");
    }
    for line in &imported.lost {
        eprintln!("not carried over: {line}");
    }
    Config::parse(&imported.yaml)
        .with_context(|| format!("{name}: a value of it is none that the DNS worker takes"))?;
    Ok(if imported.lost.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_LOST) })
}
