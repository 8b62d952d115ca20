//! Building all programs, side by side in one directory.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::process::{self, Package};

/// Crates whose programs run inside pods or beside runtimes of others, and so are static.
const STATIC_PACKAGES: &[&str] = &["cni", "pause", "toolbox"];
/// Crates whose programs run on the machine that built them.
const DYNAMIC_PACKAGES: &[&str] = &["flatnet", "dnsworker"];
/// The environment variable that makes cargo build static programs.
pub const STATIC_FLAGS: (&str, &str) = ("RUSTFLAGS", "-C target-feature=+crt-static");
/// Where the programs end up, below the workspace.
pub const DIRECTORY: &str = "target/flatnet";
/// Static programs have flags of their own, and so a target directory of their own: otherwise
/// every switch would build all dependencies again.
const STATIC_TARGET: &str = "target/static";

/// The command.
///
/// # Errors
/// When a crate does not build.
pub fn build(arguments: &[String]) -> Result<()> {
    let release = match arguments {
        [] => false,
        [flag] if flag == "--release" => true,
        _ => bail!("build takes --release or nothing"),
    };
    let packages = process::packages()?;
    let triple = host_triple()?;
    std::fs::create_dir_all(DIRECTORY)?;
    let profile = if release { "release" } else { "debug" };

    let programs = of(&packages, DYNAMIC_PACKAGES);
    let mut call = cargo_build(&programs, release);
    process::run("cargo", &borrow(&call))?;
    gather(&programs, &Path::new("target").join(profile))?;

    let programs = of(&packages, STATIC_PACKAGES);
    call = cargo_build(&programs, release);
    call.extend(["--target", &triple, "--target-dir", STATIC_TARGET].map(String::from));
    let flags = [(STATIC_FLAGS.0, STATIC_FLAGS.1.to_string())];
    process::run_with("cargo", &borrow(&call), &flags)?;
    gather(&programs, &Path::new(STATIC_TARGET).join(&triple).join(profile))
}

fn of<'a>(packages: &'a [Package], names: &[&str]) -> Vec<&'a Package> {
    packages
        .iter()
        .filter(|package| names.contains(&package.name.as_str()) && !package.programs.is_empty())
        .collect()
}

fn cargo_build(packages: &[&Package], release: bool) -> Vec<String> {
    let mut call: Vec<String> = vec!["build".into(), "--bins".into()];
    for package in packages {
        call.extend(["-p".into(), package.name.clone()]);
    }
    if release {
        call.push("--release".into());
    }
    call
}

fn borrow(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// Puts programs into the common directory. A running program's file cannot be written, but it
/// can be replaced.
fn gather(packages: &[&Package], from: &Path) -> Result<()> {
    for program in packages.iter().flat_map(|package| &package.programs) {
        let source = from.join(program);
        let target = Path::new(DIRECTORY).join(program);
        let new = Path::new(DIRECTORY).join(format!(".{program}.new"));
        std::fs::copy(&source, &new)
            .with_context(|| format!("cannot copy {} to {DIRECTORY}", source.display()))?;
        std::fs::rename(&new, &target)?;
    }
    Ok(())
}

/// The platform that this machine builds for.
///
/// # Errors
/// When the compiler does not say.
pub fn host_triple() -> Result<String> {
    let text = process::output("rustc", &["-vV"])?;
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.context("rustc -vV names no host")?.to_string())
}
