//! Tests in an emulated kernel 6.1 (spec/test-kernels.md): for what this machine's kernel lacks,
//! and to see that what we load into a kernel is accepted by one of 2022 too. One boot runs all,
//! unless the machine stands still.

mod archive;
mod guest;
mod machine;
mod programs;
mod progress;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process;
use guest::Kernel;
use machine::{BEGIN_DEADLINE, Deadlines, Machine};
use programs::Built;
use progress::Progress;
use report::Section;

/// One test program that the emulated machine runs.
struct Program {
    package: &'static str,
    test: &'static str,
    /// Tests that say nothing more there, each with why.
    left_out: &'static [(&'static str, &'static str)],
}

/// What `./x test` runs there. A test that defers itself must be in one of these.
const SUITE: &[Program] = &[
    all_of("netlink", "kernel"),
    all_of("netlink", "pods"),
    Program {
        package: "kernel",
        test: "nft",
        left_out: &[(
            "ten_thousand_services_load_and_one_changes_alone",
            "minutes of interpreted code for what smaller loads show",
        )],
    },
    all_of("kernel", "ipvs"),
    all_of("kernel", "edge"),
    all_of("kernel", "bpf"),
    all_of("kernel", "names"),
    Program {
        package: "kernel",
        test: "service_nat",
        left_out: &[(
            "busy::connections_by_a_node_port_are_made_at_once_whatever_ports_were_used_before",
            "a counter that Linux 6.1 has not, and more connections than interpreted code can make",
        )],
    },
    all_of("kernel", "socket_services"),
    all_of("kernel", "sockets"),
    all_of("kernel", "paths"),
    all_of("cni", "nodes"),
    all_of("cni", "pods"),
    all_of("cni", "links"),
    all_of("cni", "tunnel"),
    all_of("cni", "unattended"),
    all_of("agent", "tunnels"),
    Program {
        package: "agent",
        test: "forwarding",
        left_out: &[
            ("what_somebody_takes_off_is_put_back_within_a_second", BY_PINS),
            ("what_somebody_takes_off_is_put_back_and_nothing_is_left_after_uninstall", BY_PINS),
            ("connections_go_on_from_backend_to_backend", BY_PINS),
            ("connections_go_on_whose_handshake_the_kernel_began_and_ebpf_ended", BY_PINS),
            ("a_node_port_of_another_node_answers_pods", THE_OWN_KERNEL_SHOWS),
            ("what_a_pod_sends_to_everybody_reaches_no_other", THE_OWN_KERNEL_SHOWS),
            ("the_socket_fast_path_comes_and_goes_with_the_configuration", THE_OWN_KERNEL_SHOWS),
        ],
    },
    all_of("runtime", "limits"),
    all_of("testkit", "emulated"),
    Program {
        package: "testkit",
        test: "lab",
        left_out: &[
            ("real_packets_do_what_every_case_says", THE_OWN_KERNEL_SHOWS),
            ("real_packets_do_what_cases_say_by_ebpf", THE_OWN_KERNEL_SHOWS),
            (
                "flows::the_first_datagram_after_any_change_ends_where_it_shall",
                THE_OWN_KERNEL_SHOWS,
            ),
            (
                "flows::the_first_datagram_after_a_kill_within_a_change_ends_where_it_shall",
                THE_OWN_KERNEL_SHOWS,
            ),
            (
                "many::ten_thousand_services_load_change_and_outlive_a_restart_by_nftables",
                THE_OWN_KERNEL_SHOWS,
            ),
            (
                "many::ten_thousand_services_load_change_and_outlive_a_restart_by_iptables",
                THE_OWN_KERNEL_SHOWS,
            ),
            (
                "many::ten_thousand_services_load_change_and_outlive_a_restart_by_ebpf",
                THE_OWN_KERNEL_SHOWS,
            ),
            ("flows::established_connections_outlive_what_made_them", THE_OWN_KERNEL_SHOWS),
            ("flows::flows_go_on_from_backend_to_backend", THE_OWN_KERNEL_SHOWS),
        ],
    },
];

const fn all_of(package: &'static str, test: &'static str) -> Program {
    Program { package, test, left_out: &[] }
}

const THE_OWN_KERNEL_SHOWS: &str =
    "minutes of interpreted code for what the machine's own kernel shows";
/// Of agents; that of `kernel` does it on either kernel.
const BY_PINS: &str =
    "what is attached is seen, and taken off, by pins of links, which Linux 6.1 has not";

/// Where the machine's files are, below the workspace.
const DIRECTORY: &str = "target/emulated";
/// What chooses cases of the lab, there as here.
const PASSED_ON: [&str; 3] = ["FLATNET_CASE", "FLATNET_BACKEND", "FLATNET_SEED"];
/// All boots together may take so long, far above what they take when all is well.
const DEADLINE: Duration = Duration::from_secs(30 * 60);
/// One test program is killed after so many seconds; the others still run.
const PROGRAM_DEADLINE_S: u32 = 600;

/// One test, as its harness names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TestName {
    program: String,
    name: String,
}

/// What ran in the emulated kernel.
pub struct Emulated {
    /// How many tests passed there; all did.
    pub passed: usize,
    /// The kernel's release.
    pub release: String,
}

/// Reads what a test wrote when it deferred itself: package, test program, name, missing features
/// (`testkit::emulated`).
///
/// # Errors
/// When it is not that.
pub fn deferred_name(line: &str) -> Result<TestName> {
    let mut words = line.split(' ');
    let (Some(package), Some(test), Some(name)) = (words.next(), words.next(), words.next()) else {
        bail!("no test's name in {line:?}");
    };
    Ok(TestName { program: format!("{package}/{test}"), name: name.to_owned() })
}

/// The command `emulated`: all of the suite, or one test program with the harness's arguments.
///
/// # Errors
/// When a test fails there, or the machine cannot be had.
pub fn run(arguments: &[String]) -> Result<()> {
    let here = match arguments.split_first() {
        None => suite(&BTreeSet::new())?,
        Some((program, names)) => {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let (package, test) =
                program.split_once('/').context("the first argument is PACKAGE/TEST")?;
            boot(&[(package, test, &names)])?
        }
    };
    eprintln!("{} tests passed in the emulated kernel {}", here.passed, here.release);
    Ok(())
}

/// Runs the suite. Each of the deferred tests must be among what passed.
///
/// # Errors
/// When a test fails, or a deferred one did not run.
pub fn suite(deferred: &BTreeSet<TestName>) -> Result<Emulated> {
    let arguments: Vec<Vec<&str>> = SUITE.iter().map(Program::arguments).collect();
    let programs: Vec<(&str, &str, &[&str])> = SUITE
        .iter()
        .zip(&arguments)
        .map(|(program, arguments)| (program.package, program.test, arguments.as_slice()))
        .collect();
    if let Some(homeless) = deferred.iter().find(|test| {
        !SUITE.iter().any(|one| format!("{}/{}", one.package, one.test) == test.program)
    }) {
        bail!(
            "{} deferred {} to the emulated kernel, which does not run that program: add it to \
             SUITE in xtask",
            homeless.program,
            homeless.name
        );
    }
    let (kernel, sections) = boot_and_read(&programs)?;
    let emulated = judge(&kernel, &sections)?;
    let missing = not_passed(deferred, &sections);
    if !missing.is_empty() {
        bail!("deferred to the emulated kernel, but not run there: {missing:?}");
    }
    Ok(emulated)
}

impl Program {
    fn arguments(&self) -> Vec<&'static str> {
        let skips = self.left_out.iter().flat_map(|(name, _)| ["--skip", name]);
        // Names are whole, so that a new test is not left out by accident.
        std::iter::once("--exact").chain(skips).collect()
    }
}

fn not_passed<'a>(
    deferred: &'a BTreeSet<TestName>,
    sections: &BTreeMap<String, Section>,
) -> Vec<&'a TestName> {
    let has_passed = |test: &TestName| {
        let section = sections.get(&test.program);
        section.and_then(|section| section.tests.get(&test.name)) == Some(&true)
    };
    deferred.iter().filter(|test| !has_passed(test)).collect()
}

fn boot(programs: &[(&str, &str, &[&str])]) -> Result<Emulated> {
    let (kernel, sections) = boot_and_read(programs)?;
    judge(&kernel, &sections)
}

fn boot_and_read(
    programs: &[(&str, &str, &[&str])],
) -> Result<(Kernel, BTreeMap<String, Section>)> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the emulated kernel is for x86_64, and tests are built for this machine alone");
    }
    let wanted: Vec<(&str, &str)> =
        programs.iter().map(|(package, test, _)| (*package, *test)).collect();
    let directory = process::root().join(DIRECTORY);
    std::fs::create_dir_all(&directory)?;
    let _alone = lock(&directory)?;
    let built = programs::build(&wanted)?;
    let kernel = Kernel::fetch()?;
    let initramfs = directory.join("initramfs.cpio");
    let machine = Machine { kernel: kernel.image.clone(), initramfs, directory };
    let start = Instant::now();
    let mut progress = Progress::new(programs.iter().map(|(package, test, _)| (*package, *test)));
    while !progress.has_ended() {
        let left: Vec<_> = programs
            .iter()
            .filter(|(package, test, _)| progress.is_left(package, test))
            .copied()
            .collect();
        guest::assemble(&machine.initramfs, &kernel, &built, &script(&left, &built)?)?;
        let end = DEADLINE.saturating_sub(start.elapsed());
        let deadlines = Deadlines { begin: BEGIN_DEADLINE, end };
        progress.add(machine.run(progress.processors(), &deadlines)?)?;
    }
    eprintln!("   the emulated machine was up for {:.1} s", start.elapsed().as_secs_f32());
    Ok((kernel, progress.sections()))
}

/// Two runs would write the same files: the later one waits, as for a build.
fn lock(directory: &Path) -> Result<File> {
    let lock = File::create(directory.join("lock"))?;
    if lock.try_lock().is_err() {
        eprintln!("   waiting for another run in the emulated kernel");
        lock.lock().context("waiting for another run in the emulated kernel")?;
    }
    Ok(lock)
}

/// What the machine's first process runs.
fn script(programs: &[(&str, &str, &[&str])], built: &Built) -> Result<String> {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let mut script = String::new();
    for name in PASSED_ON {
        if let Ok(value) = std::env::var(name) {
            script.push_str(&format!("export {name}={}\n", quoted(&value)));
        }
    }
    for (package, test, arguments) in programs {
        let name = format!("{package}/{test}");
        let (program, directory) = built.tests.get(&name).context("a program that was built")?;
        let quote = |path: &Path| quoted(&path.display().to_string());
        script.push_str(&format!(
            "run {name} {} {PROGRAM_DEADLINE_S} {}",
            quote(directory),
            quote(program)
        ));
        for argument in *arguments {
            script.push_str(&format!(" {}", quote(Path::new(argument))));
        }
        script.push('\n');
    }
    Ok(script)
}

/// Prints a line for each program, and the output of those that failed.
fn judge(kernel: &Kernel, sections: &BTreeMap<String, Section>) -> Result<Emulated> {
    let mut passed = 0;
    let mut failed = Vec::new();
    for (name, section) in sections {
        let good = section.tests.values().filter(|passed| **passed).count();
        passed += good;
        eprintln!("   {name}: {good} of {} passed in the emulated kernel", section.tests.len());
        if !section.has_passed() {
            eprintln!("{}", section.output);
            let end = match section.exit_code {
                Some(code) => format!("exit code {code}"),
                None => "did not end".to_owned(),
            };
            failed.push(format!("{name} ({end})"));
        }
    }
    if !failed.is_empty() {
        bail!("failed in the emulated kernel {}: {}", kernel.release, failed.join(", "));
    }
    Ok(Emulated { passed, release: kernel.release.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deferred_test_must_have_passed_there() {
        let text = "@@begin k/t\ntest a ... ok\ntest b ... FAILED\n@@end k/t 101\n";
        let sections = report::read(text);
        let deferred: BTreeSet<TestName> =
            ["k t a [Netem]", "k t b [Netem]", "k t c [Netem]", "k other a [Ipip, Dummy]"]
                .iter()
                .map(|line| deferred_name(line).expect("a line"))
                .collect();
        let missing: Vec<String> = not_passed(&deferred, &sections)
            .iter()
            .map(|test| format!("{} {}", test.program, test.name))
            .collect();
        assert_eq!(missing, ["k/other a", "k/t b", "k/t c"]);
        assert!(deferred_name("k t").is_err());
    }

    #[test]
    fn every_test_that_is_left_out_says_why() {
        let mut left_out = SUITE.iter().flat_map(|program| program.left_out);
        assert!(left_out.all(|(_, why)| why.len() > 15));
    }
}
