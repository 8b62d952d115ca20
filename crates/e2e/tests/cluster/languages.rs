//! Clients in other languages: Python and JavaScript.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::cluster::text_of;
use e2e::workspace;

use super::world::World;

pub fn python(world: &World) -> Result<()> {
    let output = Command::new(interpreter())
        .arg(data("client.py"))
        .env("KUBECONFIG", world.cluster.kubeconfig())
        .output()
        .with_context(|| format!("starting {} (`./x test` makes it)", interpreter().display()))?;
    let text = text_of(output)?;
    ensure!(text.trim_end().ends_with("python client: all well"), "{text}");
    Ok(())
}

pub fn npm(world: &World) -> Result<()> {
    let packages = workspace().join("target/tools/npm");
    // A program from standard input finds packages where it is started.
    let program = fs::File::open(data("npm/client.mjs"))?;
    let output = Command::new("node")
        .args(["--input-type=module", "-"])
        .current_dir(&packages)
        .env("KUBECONFIG", world.cluster.kubeconfig())
        .stdin(Stdio::from(program))
        .output()
        .with_context(|| {
            format!("starting node in {} (`./x test` fills it)", packages.display())
        })?;
    let text = text_of(output)?;
    ensure!(text.trim_end().ends_with("npm client: all well"), "{text}");
    Ok(())
}

pub fn data(name: &str) -> PathBuf {
    workspace().join("crates/e2e/tests/data").join(name)
}

pub fn interpreter() -> PathBuf {
    workspace().join("target/tools/python/bin/python3")
}
