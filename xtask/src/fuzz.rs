//! Fuzzing that is guided by what inputs reach: the targets of `crates/dns/examples/fuzz.rs` and
//! `crates/store/examples/fuzz.rs` under AFL++, built by the stable compiler, whose code generator
//! counts edges when it is asked to.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process::{self, run, run_with, step};
use crate::tools;

/// Where AFL++ keeps what counts for its programs: Debian's package `afl++`.
const RUNTIME: &str = "/usr/lib/afl/afl-compiler-rt.o";
/// How long each target runs when nobody says.
const MINUTES: u64 = 5;
/// An input that takes longer counts as one that hangs, in milliseconds.
const HANG_MS: u64 = 2000;
/// What an input may take, in MB.
const MEMORY_MB: u64 = 512;

/// Targets with the crate whose example has them.
const TARGETS: &[(&str, &str)] = &[
    ("message", "dns"),
    ("upstream", "dns"),
    ("name", "dns"),
    ("configuration", "dns"),
    ("corefile", "dns"),
    ("resolv-conf", "dns"),
    ("cel", "store"),
    ("selector", "store"),
    ("json", "store"),
    ("yaml", "store"),
    ("protobuf", "store"),
    ("patch", "store"),
];

/// The command `fuzz`: one target, or all, one after the other.
///
/// # Errors
/// When an input was found that a target does not pass; the message says where it is.
pub fn fuzz(arguments: &[String]) -> Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (wanted, minutes) = match arguments.as_slice() {
        [] => (None, None),
        ["--minutes", minutes] => (None, Some(*minutes)),
        [target] => (Some(*target), None),
        [target, "--minutes", minutes] => (Some(*target), Some(*minutes)),
        _ => bail!("fuzz takes a TARGET, or nothing for all, and --minutes N for each"),
    };
    let is_wanted = |(target, _): &&(&str, &str)| wanted.is_none_or(|wanted| wanted == *target);
    let targets: Vec<(&str, &str)> = TARGETS.iter().filter(is_wanted).copied().collect();
    if targets.is_empty() {
        let known: Vec<&str> = TARGETS.iter().map(|(target, _)| *target).collect();
        bail!("there is no target {:?}: they are {}", wanted.unwrap_or_default(), known.join(", "));
    }
    let minutes = minutes.map_or(Ok(MINUTES), str::parse).context("--minutes takes a number")?;
    tools::install("afl-fuzz", &["afl++"])?;
    let place = process::root().join("target/fuzz");
    let samples = place.join("samples");
    let mut found = Vec::new();
    for (target, package) in targets {
        let program = step("the targets, counting edges", || build(package))?;
        run(&program, &["--samples", &samples.display().to_string()])?;
        let output = place.join("found").join(target);
        step(target, || look(&program, target, &samples.join(target), &output, minutes))?;
        found.extend(inputs(&output)?);
    }
    if found.is_empty() {
        return Ok(());
    }
    bail!(
        "{} inputs do not pass: mend what they show, and keep them in the tests, in \
         crates/dns/tests/fuzz/found/TARGET/ or as a case of the crate\n{}",
        found.len(),
        found.join("\n")
    )
}

/// Builds the targets of a crate; answers the program.
fn build(package: &str) -> Result<String> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let flags = [
        "-Cpasses=sancov-module",
        "-Cllvm-args=-sanitizer-coverage-level=3",
        "-Cllvm-args=-sanitizer-coverage-trace-pc-guard",
        // A panic is a crash for the fuzzer, and so is a sum that does not fit.
        "-Cpanic=abort",
        "-Cdebug-assertions",
        "-Coverflow-checks",
        &format!("-Clink-arg={RUNTIME}"),
    ];
    let environment = [("RUSTFLAGS", flags.join(" "))];
    // With the target named, programs that only the build runs are as ever.
    let call = ["build", "--release", "-p", package, "--example", "fuzz", "--target", &target];
    run_with("cargo", &[&call[..], &["--target-dir", "target/fuzz"]].concat(), &environment)?;
    Ok(process::root()
        .join("target/fuzz")
        .join(target)
        .join("release/examples/fuzz")
        .display()
        .to_string())
}

/// Looks for inputs for some minutes, and goes on where an earlier run ended.
fn look(program: &str, target: &str, samples: &Path, output: &Path, minutes: u64) -> Result<()> {
    std::fs::create_dir_all(output)?;
    let log = std::fs::File::create(output.join("log"))?;
    let status = Command::new("afl-fuzz")
        .arg("-i")
        .arg(samples)
        .arg("-o")
        .arg(output)
        .args(["-V", &(minutes * 60).to_string(), "-t", &HANG_MS.to_string()])
        .args(["-m", &MEMORY_MB.to_string(), "--", program, target])
        .envs([("AFL_NO_UI", "1"), ("AFL_SKIP_CPUFREQ", "1"), ("AFL_NO_AFFINITY", "1")])
        .envs([("AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES", "1"), ("AFL_AUTORESUME", "1")])
        .stdout(Stdio::from(log))
        .status()
        .context("cannot start afl-fuzz (package afl++)")?;
    if !status.success() {
        bail!("afl-fuzz failed ({status}): see {}/log", output.display());
    }
    let stats = std::fs::read_to_string(output.join("default/fuzzer_stats"))?;
    let number = |name: &str| {
        let line = stats.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map_or("?", |(_, value)| value.trim()).to_owned()
    };
    eprintln!(
        "   {target}: {} inputs, {} of them reached something new, {} of all edges",
        number("execs_done"),
        number("corpus_count"),
        number("bitmap_cvg")
    );
    Ok(())
}

/// Inputs that crashed or hung.
fn inputs(output: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for kind in ["crashes", "hangs"] {
        for entry in std::fs::read_dir(output.join("default").join(kind))? {
            let path = entry?.path().display().to_string();
            found.extend((!path.ends_with("README.txt")).then_some(path));
        }
    }
    Ok(found)
}
