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
/// A machine that is not off by then is stopped. A hung test takes its own deadline only.
const DEADLINE: Duration = Duration::from_secs(25 * 60);
const POLL: Duration = Duration::from_millis(100);
/// So many lines of the kernel's messages are shown when the machine does not end by itself.
const CONSOLE_LINES: usize = 30;

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
        for old in [&console, &results] {
            File::create(old).with_context(|| format!("cannot write {}", old.display()))?;
        }
        let child = self.command(&console, &results).spawn();
        let mut child = child.with_context(|| format!("cannot start {PROGRAM}"))?;
        let ended = wait(&mut child);
        let said = String::from_utf8_lossy(&std::fs::read(&results)?).into_owned();
        if let Err(error) = ended {
            return Err(error.context(last_lines(&console, &said)));
        }
        if !said.contains("@@off") {
            bail!("the emulated machine stopped early\n{}", last_lines(&console, &said));
        }
        Ok(said)
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

fn wait(child: &mut Child) -> Result<()> {
    let end = Instant::now() + DEADLINE;
    while Instant::now() < end {
        if let Some(status) = child.try_wait()? {
            if status.success() {
                return Ok(());
            }
            bail!("{PROGRAM} failed ({status})");
        }
        std::thread::sleep(POLL);
    }
    child.kill().context("stopping the emulated machine")?;
    child.wait()?;
    bail!("the emulated machine was not off after {} s", DEADLINE.as_secs())
}

fn last_lines(console: &Path, said: &str) -> String {
    let text = std::fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut parts = String::new();
    for (what, text) in [("the kernel's", &*text), ("the tests'", said)] {
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(CONSOLE_LINES);
        parts.push_str(&format!("{what} last lines:\n{}\n", lines[from..].join("\n")));
    }
    parts
}
