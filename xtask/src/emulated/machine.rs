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
/// How long may pass until the first test program begins, far above what it takes when all is well.
pub const BEGIN_DEADLINE: Duration = Duration::from_secs(3 * 60);
const POLL: Duration = Duration::from_millis(100);
/// So many lines are shown of what kernel and tests said, when the machine does not end by itself.
const SHOWN_LINES: usize = 80;
/// How the kernel begins to say that something is wrong with it.
const ALARMS: &[&str] =
    &["BUG:", "Oops", "Kernel panic", "self-detected stall", "detected stalls", "watchdog:"];
/// The kernel panics, and so ends the machine, instead of standing still: a processor that has not
/// come back for a minute, and a fault of its own.
const PARAMETERS: &str = "console=ttyS0 loglevel=5 panic=-1 watchdog_thresh=30 softlockup_panic=1 oops=panic mitigations=off nokaslr";
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

/// What a machine said until its end.
pub struct Said {
    /// On its second serial line: the tests' output between marks (`report`).
    pub results: String,
    /// Why it ended before it switched itself off, with the kernel's and the tests' last words.
    pub trouble: Option<String>,
}

impl Machine {
    /// Boots, and waits until the machine is off.
    ///
    /// # Errors
    /// When the emulator is missing, does not start, or fails.
    pub fn run(&self, processors: Processors, deadlines: &Deadlines) -> Result<Said> {
        tools::install(PROGRAM, &[PACKAGE])?;
        let console = self.directory.join("console.log");
        let results = self.directory.join("results.log");
        for old in [&console, &results] {
            File::create(old).with_context(|| format!("cannot write {}", old.display()))?;
        }
        let child = self.command(processors, &console, &results).spawn();
        let mut child = child.with_context(|| format!("cannot start {PROGRAM}"))?;
        let end = wait(&mut child, &results, deadlines)?;
        let results = read(&results)?;
        let why = match end {
            End::Off if results.contains(LAST_MARK) => None,
            End::Off => Some("its kernel gave up".to_owned()),
            End::NeverBegan => {
                Some(format!("no test began within {} s", deadlines.begin.as_secs()))
            }
            End::Late => Some("its time was over".to_owned()),
        };
        let words = || last_words(&read(&console).unwrap_or_default(), &results);
        let trouble = why.map(|why| format!("{why}\n{}", words()));
        Ok(Said { results, trouble })
    }

    fn command(&self, processors: Processors, console: &Path, results: &Path) -> Command {
        let accelerator = match processors {
            Processors::AtOnce => "tcg,thread=multi",
            Processors::InTurns => "tcg,thread=single",
        };
        let serial = |path: &Path| format!("file:{}", path.display());
        let mut command = Command::new(PROGRAM);
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-accel", accelerator, "-cpu", "max"])
            .args(["-m", MEMORY_MIB, "-smp", PROCESSORS, "-nic", "none"])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(["-append", PARAMETERS])
            .args(["-serial", &serial(console), "-serial", &serial(results)])
            .stdin(Stdio::null());
        command
    }
}

/// How the machine's processors are interpreted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processors {
    /// By a thread each: fast.
    AtOnce,
    /// By one thread, a while each: half as fast, without races of the emulator's own.
    InTurns,
}

/// How long a machine may take.
pub struct Deadlines {
    /// Until the first test program begins.
    pub begin: Duration,
    /// Until it is off. A hung test takes its own deadline only.
    pub end: Duration,
}

/// How a machine ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Off,
    NeverBegan,
    Late,
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
    Ok(End::Late)
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

/// Of the kernel, what it said from its first alarm on; of both else the last lines.
fn last_words(console: &str, said: &str) -> String {
    let lines: Vec<&str> = console.lines().collect();
    let alarm = lines.iter().position(|line| ALARMS.iter().any(|alarm| line.contains(alarm)));
    let kernels = match alarm {
        Some(first) => lines.iter().skip(first).take(SHOWN_LINES).copied().collect(),
        None => last(&lines),
    };
    let tests = last(&said.lines().collect::<Vec<&str>>());
    format!("the kernel said:\n{}\nthe tests said:\n{}\n", kernels.join("\n"), tests.join("\n"))
}

fn last<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    lines[lines.len().saturating_sub(SHOWN_LINES)..].to_vec()
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
    fn a_machine_that_stands_still_before_its_first_test_is_told_from_one_that_does_in_it() {
        assert_eq!(end_of("", "60").expect("it may be booted anew"), End::NeverBegan);
        assert_eq!(end_of("@@begin kernel/nft\n", "1").expect("off in time"), End::Off);
        assert_eq!(end_of("@@begin kernel/nft\n", "60").expect("stopped"), End::Late);
    }

    #[test]
    fn the_kernels_first_alarm_is_shown_and_not_its_last_repetition() {
        let repeated: Vec<String> = (0..500).map(|number| format!("trace {number}")).collect();
        let console = format!("booted\nwatchdog: BUG: soft lockup\n{}", repeated.join("\n"));
        let words = last_words(&console, "test a ... ok\n");
        assert!(words.contains("soft lockup\ntrace 0\n"), "{words}");
        assert!(!words.contains("booted") && !words.contains("trace 499"), "{words}");
        assert!(words.contains("test a ... ok"), "{words}");
        assert!(last_words("one\ntwo\n", "").contains("one\ntwo"), "no alarm: the last lines");
    }
}
