//! Running other programs, and asking cargo about the workspace.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The top of the workspace.
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_path_buf()
}

/// Runs a program in the workspace and shows its output.
///
/// # Errors
/// When it cannot be started or fails; the message names the whole command line.
pub fn run(program: &str, arguments: &[&str]) -> Result<()> {
    run_with(program, arguments, &[])
}

/// The same, with environment variables set.
///
/// # Errors
/// As [`run`].
pub fn run_with(program: &str, arguments: &[&str], environment: &[(&str, String)]) -> Result<()> {
    let line = format!("{program} {}", arguments.join(" "));
    eprintln!("── {line}");
    let status = Command::new(program)
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir(root())
        .status()
        .with_context(|| format!("cannot start `{program}`: is it installed and on the PATH?"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Runs a program and returns what it prints.
///
/// # Errors
/// When it cannot be started or fails.
pub fn output(program: &str, arguments: &[&str]) -> Result<String> {
    finish(&mut command(program, arguments), program, arguments)
}

/// The same, with environment variables set; what it says of its progress is shown.
///
/// # Errors
/// When it cannot be started or fails.
pub fn output_shown(
    program: &str,
    arguments: &[&str],
    environment: &[(&str, String)],
) -> Result<String> {
    let mut command = command(program, arguments);
    command.envs(environment.iter().map(|(name, value)| (name, value))).stderr(Stdio::inherit());
    finish(&mut command, program, arguments)
}

fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    command
}

fn finish(command: &mut Command, program: &str, arguments: &[&str]) -> Result<String> {
    let line = format!("{program} {}", arguments.join(" "));
    let output = command
        .output()
        .with_context(|| format!("cannot start `{program}`: is it installed and on the PATH?"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs one step of a longer command and says how long it took.
///
/// # Errors
/// Those of the step, with its name.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let done = work().with_context(|| name.to_string())?;
    eprintln!("   {name}: ok, {:.1} s", start.elapsed().as_secs_f32());
    Ok(done)
}

/// One crate of the workspace, as cargo sees it.
#[derive(Clone, Debug)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its directory.
    pub directory: PathBuf,
    /// Names of what it depends on outside of tests.
    pub dependencies: Vec<String>,
    /// Root source files of its library and programs.
    pub roots: Vec<PathBuf>,
    /// Names of its programs.
    pub programs: Vec<String>,
}

/// All crates of the workspace.
///
/// # Errors
/// When cargo cannot read a manifest.
pub fn packages() -> Result<Vec<Package>> {
    let text = output("cargo", &["metadata", "--format-version=1", "--no-deps", "--offline"])?;
    let metadata: Value = serde_json::from_str(&text)?;
    let list = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    Ok(list.iter().map(package).collect())
}

fn package(value: &Value) -> Package {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let targets = array(&value["targets"]);
    let of_kind = |kind: &str| -> Vec<&Value> {
        targets.iter().filter(|one| array(&one["kind"]).iter().any(|k| k == kind)).collect()
    };
    let manifest = PathBuf::from(text(&value["manifest_path"]));
    let roots = of_kind("lib").into_iter().chain(of_kind("bin"));
    Package {
        name: text(&value["name"]),
        directory: manifest.parent().map(Path::to_path_buf).unwrap_or_default(),
        dependencies: array(&value["dependencies"])
            .iter()
            .filter(|dependency| dependency["kind"] != "dev")
            .map(|dependency| text(&dependency["name"]))
            .collect(),
        roots: roots.map(|target| PathBuf::from(text(&target["src_path"]))).collect(),
        programs: of_kind("bin").into_iter().map(|target| text(&target["name"])).collect(),
    }
}
