//! Test programs: built for all crates at once, so that every crate's dependencies are built with
//! the same features, and run one by one, each with a deadline.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process;

/// A test program that takes longer hangs: it is ended, and fails. The longest takes a third.
const PROGRAM_DEADLINE_S: u64 = 900;
/// Whether a silent program has ended is looked at so often.
const SILENCE_MS: u64 = 200;

/// Something that cargo built and that can be run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Program {
    /// Its crate.
    pub package: String,
    /// The crate's directory, in which tests start.
    pub directory: PathBuf,
    /// `lib`, `bin`, `test` or `bench`.
    pub kind: String,
    /// The target's name: for kind `test` the name of its file.
    pub name: String,
    /// Whether it was built to run its tests.
    pub is_test: bool,
    /// The program.
    pub path: PathBuf,
}

impl Program {
    /// Whether this is the integration test of a crate.
    pub fn is(&self, package: &str, test: &str) -> bool {
        self.kind == "test" && self.package == package && self.name == test
    }
}

/// Builds every test program of the workspace; they come in the order of their crates.
///
/// # Errors
/// When one does not compile.
pub fn build_all() -> Result<Vec<Program>> {
    let call = ["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"];
    eprintln!("── cargo {}", call.join(" "));
    let mut programs = read(&process::output_shown("cargo", &call, &[])?)?;
    programs.sort();
    Ok(programs)
}

/// Reads cargo's messages: what was built, in their order.
///
/// # Errors
/// When one is not what cargo writes.
pub fn read(messages: &str) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Value = serde_json::from_str(line).context("a message of cargo")?;
        let Some(path) = message["executable"].as_str().map(PathBuf::from) else { continue };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let manifest = PathBuf::from(text(&message["manifest_path"]));
        let directory = manifest.parent().unwrap_or(&manifest).to_path_buf();
        let package = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        programs.push(Program {
            package: package.to_owned(),
            directory: directory.clone(),
            kind: text(&message["target"]["kind"][0]),
            name: text(&message["target"]["name"]),
            is_test: message["profile"]["test"] == true,
            path,
        });
    }
    Ok(programs)
}

/// Runs a test program, shows its output, and answers how many tests passed.
///
/// # Errors
/// When a test fails, or the program does not end in time.
pub fn run(program: &Program, arguments: &[&str], environment: &[(&str, String)]) -> Result<usize> {
    let name = format!("{} ({} of {})", program.name, program.kind, program.package);
    eprintln!("── {name} {}", arguments.join(" "));
    let child = Command::new(&program.path)
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .env("CARGO_MANIFEST_DIR", &program.directory)
        .current_dir(&program.directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", program.path.display()))?;
    watch(child, Duration::from_secs(PROGRAM_DEADLINE_S)).with_context(|| format!("test {name}"))
}

/// Shows what a program prints until it ends, or ends it.
fn watch(mut child: Child, longest: Duration) -> Result<usize> {
    let deadline = Instant::now() + longest;
    let (sender, lines) = mpsc::channel();
    let output = child.stdout.take().context("no output to read")?;
    // What a program left behind may hold its output open: nobody waits for this thread.
    std::thread::spawn(move || forward(output, &sender));
    let mut passed = 0;
    let mut ended = None;
    while ended.is_none() {
        match lines.recv_timeout(Duration::from_millis(SILENCE_MS)) {
            Ok(line) => {
                println!("{line}");
                passed += passed_tests(&line);
            }
            Err(RecvTimeoutError::Disconnected) => ended = Some(child.wait()?),
            Err(RecvTimeoutError::Timeout) => ended = child.try_wait()?,
        }
        if ended.is_none() && Instant::now() > deadline {
            child.kill().context("cannot end it")?;
            child.wait()?;
            bail!("did not end within {} s: its last line says where", longest.as_secs());
        }
    }
    match ended {
        Some(status) if !status.success() => bail!("failed ({status})"),
        _ => Ok(passed),
    }
}

fn forward(output: impl Read, sender: &mpsc::Sender<String>) {
    let mut reader = BufReader::new(output);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
        let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
        if sender.send(text).is_err() {
            return;
        }
        line.clear();
    }
}

/// The number in the closing line of one test program, `test result: ok. 12 passed; 0 failed; …`.
fn passed_tests(line: &str) -> usize {
    let rest = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "));
    let number = rest.and_then(|(_, rest)| rest.split_once(" passed"));
    number.and_then(|(number, _)| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn programs_are_found_in_the_messages_of_cargo() {
        let artifact = |package: &str, kind: &str, name: &str, program: Value, test: bool| {
            serde_json::json!({
                "reason": "compiler-artifact",
                "manifest_path": format!("/w/crates/{package}/Cargo.toml"),
                "target": { "kind": [kind], "name": name },
                "profile": { "test": test },
                "executable": program,
            })
            .to_string()
        };
        let messages = [
            artifact("cni", "lib", "cni", Value::Null, false),
            artifact("cni", "bin", "flatnet-cni", "/t/flatnet-cni".into(), false),
            artifact("cni", "test", "pods", "/t/pods-1".into(), true),
            "a warning".to_owned(),
        ]
        .join("\n");
        let programs = read(&messages).expect("messages");
        let paths: Vec<&Path> = programs.iter().map(|program| program.path.as_path()).collect();
        assert_eq!(paths, [Path::new("/t/flatnet-cni"), Path::new("/t/pods-1")]);
        assert!(programs[1].is("cni", "pods") && !programs[0].is_test);
        assert_eq!(programs[1].directory, Path::new("/w/crates/cni"));
    }

    #[test]
    fn passed_tests_are_counted_from_the_closing_line_alone() {
        let closing = "test result: ok. 12 passed; 0 failed; 0 ignored; finished in 0.3s";
        assert_eq!(passed_tests(closing), 12);
        assert_eq!(passed_tests("test result: FAILED. 3 passed; 1 failed"), 3);
        assert_eq!(passed_tests("test a::b ... ok"), 0);
        assert_eq!(passed_tests("12 passed"), 0);
    }

    #[test]
    fn a_program_that_hangs_is_ended_and_fails() {
        let start = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).stdout(Stdio::piped()).spawn().expect("a shell")
        };
        let hanging = start("echo begun; exec sleep 1000");
        let error = watch(hanging, Duration::from_millis(300)).expect_err("it hangs");
        assert!(error.to_string().contains("did not end"), "{error}");
        let failing = watch(start("exit 3"), Duration::from_secs(60)).expect_err("it fails");
        assert!(failing.to_string().contains("failed"), "{failing}");
        let good = start("echo 'test result: ok. 2 passed; 0 failed'");
        assert_eq!(watch(good, Duration::from_secs(60)).expect("it passes"), 2);
    }
}
