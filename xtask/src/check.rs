//! All that can be said about the sources without running a test of them.

use anyhow::{Result, bail};

use crate::process::{self, step};
use crate::{layers, tidy, tools};

type Check = fn() -> Result<()>;

/// The command.
///
/// # Errors
/// Each failing check by name; all are run.
pub fn check(arguments: &[String]) -> Result<()> {
    if !arguments.is_empty() {
        bail!("check takes no arguments");
    }
    let checks: [(&str, Check); 5] = [
        ("format", || process::run("cargo", &["fmt", "--all", "--check"])),
        ("tidy", || tidy::run(&[])),
        ("layers", || layers::run(&[])),
        ("lints", lints),
        ("licences, bans, sources", licences),
    ];
    let mut failed = Vec::new();
    for (name, work) in checks {
        if let Err(error) = step(name, work) {
            eprintln!("   {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join("; "));
    }
    Ok(())
}

fn lints() -> Result<()> {
    let arguments = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    process::run("cargo", &arguments)
}

fn licences() -> Result<()> {
    tools::cargo_deny()?;
    let arguments = ["deny", "--log-level", "warn", "check", "licenses", "bans", "sources"];
    process::run("cargo", &arguments)
}
