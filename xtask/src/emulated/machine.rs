//! The emulated machine: always interpreted, since the device of hardware virtualisation may be
//! there and hang; without a network, a disk or a screen.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::tools;

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
const MEMORY_MIB: &str = "2048";
const PROCESSORS: &str = "2";
/// How long a machine may take, each far above what it takes when all is well.
const DEADLINES: Deadlines =
    Deadlines { begin: Duration::from_secs(3 * 60), end: Duration::from_secs(25 * 60) };
/// The emulator was seen to stand still for good while the kernel came up, with no word of either,
/// before any test: such a machine is booted anew, so often in all.
const BOOTS: usize = 3;
const POLL: Duration = Duration::from_millis(100);
/// So many lines of the kernel's messages are shown when the machine does not end by itself.
const CONSOLE_LINES: usize = 30;
/// The first process's first word (`init.sh`).
const FIRST_MARK: &str = "@@begin";
/// Its last.
const LAST_MARK: &str = "@@off";

/// What is booted, and where the machine's words go.
pub struct Machine {
    /// The kernel.
    pub kernel: PathBuf,
    /// The archive of all files.
    pub initramfs: PathBuf,
    /// A directory for what the machine says.
    pub directory: PathBuf,
}

impl Machine {
    /// Boots, waits until the machine switches itself off, and answers what it said on its second
    /// serial line.
    ///
    /// # Errors
    /// When the emulator is missing, does not start, or the machine does not end in time.
    pub fn run(&self) -> Result<String> {
        tools::install(PROGRAM, &[PACKAGE])?;
        let console = self.directory.join("console.log");
        let results = self.directory.join("results.log");
        for _ in 0..BOOTS {
            for old in [&console, &results] {
                File::create(old).with_context(|| format!("cannot write {}", old.display()))?;
            }
            let child = self.command(&console, &results).spawn();
            let mut child = child.with_context(|| format!("cannot start {PROGRAM}"))?;
            let end = wait(&mut child, &results, &DEADLINES);
            let said = read(&results)?;
            let lines = || last_lines(&read(&console).unwrap_or_default(), &said);
            match end.with_context(lines)? {
                End::Off if said.contains(LAST_MARK) => return Ok(said),
                End::Off => bail!("the emulated machine stopped early\n{}", lines()),
                End::NeverBegan => eprintln!(
                    "   the emulated machine stood still before its first test:\n{}",
                    lines()
                ),
            }
        }
        bail!("the emulated machine did not come up in {BOOTS} tries")
    }

    fn command(&self, console: &Path, results: &Path) -> Command {
        let serial = |path: &Path| format!("file:{}", path.display());
        let mut command = Command::new(PROGRAM);
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-accel", "tcg,thread=multi", "-cpu", "max"])
            .args(["-m", MEMORY_MIB, "-smp", PROCESSORS, "-nic", "none"])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(["-append", "console=ttyS0 loglevel=5 panic=-1 mitigations=off nokaslr"])
            .args(["-serial", &serial(console), "-serial", &serial(results)])
            .stdin(Stdio::null());
        command
    }
}

/// How long a machine may take.
struct Deadlines {
    /// Until the first test program begins.
    begin: Duration,
    /// Until it is off. A hung test takes its own deadline only.
    end: Duration,
}

/// How a machine ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Off,
    NeverBegan,
}

fn wait(child: &mut Child, results: &Path, deadlines: &Deadlines) -> Result<End> {
    let start = Instant::now();
    let mut has_begun = false;
    while start.elapsed() < deadlines.end {
        if let Some(status) = child.try_wait()? {
            if status.success() {
                return Ok(End::Off);
            }
            bail!("{PROGRAM} failed ({status})");
        }
        if !has_begun && start.elapsed() > deadlines.begin {
            has_begun = read(results)?.contains(FIRST_MARK);
            if !has_begun {
                stop(child)?;
                return Ok(End::NeverBegan);
            }
        }
        std::thread::sleep(POLL);
    }
    stop(child)?;
    bail!("the emulated machine was not off after {} s", deadlines.end.as_secs())
}

fn stop(child: &mut Child) -> Result<()> {
    child.kill().context("stopping the emulated machine")?;
    child.wait()?;
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn last_lines(console: &str, said: &str) -> String {
    let mut parts = String::new();
    for (what, text) in [("the kernel's", console), ("the tests'", said)] {
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(CONSOLE_LINES);
        parts.push_str(&format!("{what} last lines:\n{}\n", lines[from..].join("\n")));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a machine that says `text` and then runs for `seconds` comes to.
    fn end_of(text: &str, seconds: &str) -> Result<End> {
        let name = format!("flatnet-machine-{}-{}-{seconds}", std::process::id(), text.len());
        let results = std::env::temp_dir().join(name);
        std::fs::write(&results, text)?;
        let mut child = Command::new("sleep").arg(seconds).spawn()?;
        let deadlines =
            Deadlines { begin: Duration::from_millis(300), end: Duration::from_secs(2) };
        let end = wait(&mut child, &results, &deadlines);
        assert!(child.try_wait()?.is_some(), "no machine outlives its end");
        std::fs::remove_file(&results)?;
        end
    }

    #[test]
    fn a_machine_that_stands_still_before_its_first_test_is_told_from_one_that_hangs_in_it() {
        assert_eq!(end_of("", "60").expect("it may be booted anew"), End::NeverBegan);
        assert_eq!(end_of("@@begin kernel/nft\n", "1").expect("off in time"), End::Off);
        let error = end_of("@@begin kernel/nft\n", "60").expect_err("a test hangs the kernel");
        assert!(error.to_string().contains("was not off"), "{error}");
    }
}
