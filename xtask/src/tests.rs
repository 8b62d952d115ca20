//! Running tests: the pure ones need nothing, the others need root and say so.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::disk;
use crate::emulated::{self, TestName};
use crate::process::{self, run, run_with, step};
use crate::programs::{self, Program};
use crate::tools;

/// Tests that make network namespaces or whole clusters: they need root, and fail without it. All
/// others need nothing of the machine but a temporary directory and loopback.
const ROOT_TESTS: &[(&str, &str)] = &[
    ("agent", "forwarding"),
    ("agent", "paths"),
    ("agent", "real"),
    ("agent", "tunnels"),
    ("cni", "kill_sweep"),
    ("cni", "bandwidth"),
    ("cni", "links"),
    ("cni", "nodes"),
    ("cni", "tunnel"),
    ("cni", "pods"),
    ("cni", "protocol"),
    ("cni", "chain"),
    ("cni", "parallel"),
    ("cni", "moving"),
    ("cni", "power_loss"),
    ("cni", "unattended"),
    ("flatnet", "cni"),
    // These need Debian's kubectl; webhooks needs root too.
    ("controlplane", "kubectl"),
    ("controlplane", "rights"),
    ("controlplane", "webhooks"),
    ("dnsworker", "upstream"),
    ("dnsworker", "handover"),
    ("dnsworker", "worker"),
    ("e2e", "cluster"),
    ("e2e", "pods"),
    ("e2e", "real_node"),
    ("e2e", "refusals"),
    ("e2e", "reliability"),
    ("e2e", "runtimes"),
    ("flatnet", "ipam"),
    // This one needs no root, but Debian's host-local.
    ("ipam", "host_local"),
    ("kernel", "bpf"),
    ("kernel", "names"),
    ("kernel", "service_nat"),
    ("kernel", "edge"),
    ("kernel", "iptables"),
    ("kernel", "ipvs"),
    ("kernel", "nft"),
    ("kernel", "socket_services"),
    ("kernel", "sockets"),
    ("kernel", "paths"),
    ("netlink", "kernel"),
    ("netlink", "pods"),
    ("netlink", "rights"),
    ("runtime", "limits"),
    ("testkit", "emulated"),
    ("testkit", "lab"),
    ("toolbox", "toolbox"),
];

/// Modules of a crate's own tests that make containers, and so need root too.
const ROOT_MODULES: (&str, &[&str]) = (
    "runtime",
    &[
        "tests::attach",
        "tests::hooks",
        "tests::host_image",
        "tests::images",
        "tests::kill",
        "tests::limits",
        "tests::pods",
        "tests::processes",
        "tests::remote",
        "tests::restarts",
        "tests::security",
        "tests::volumes",
    ],
);

/// The command `test`.
///
/// # Errors
/// When a test fails, and when tests that need root are asked for without it.
pub fn test(arguments: &[String]) -> Result<()> {
    let pure_only = match arguments {
        [] => false,
        [flag] if flag == "--pure" => true,
        _ => bail!("test takes --pure or nothing"),
    };
    if !pure_only && !is_root()? {
        bail!(
            "the lab and the cluster tests make network namespaces and need root: run it as root, \
             or run the tests that need nothing with `./x test --pure`"
        );
    }
    if !pure_only {
        disk::has_room()?;
    }
    let programs = step("test programs", programs::build_all)?;
    root_tests_are_there(&programs)?;
    let mut results = Results::default();
    step("pure tests", || {
        pure(&programs, &mut results);
        Ok(())
    })?;
    if pure_only {
        return results.judge();
    }
    // The very programs that `./x up` installs.
    step("programs for the cluster tests", || build::build(&["--release".into()]))?;
    step("clients for the cluster tests", || tools::clients(&[]))?;
    let deferred = Deferred::collect()?;
    step("tests that need root", || {
        privileged(&programs, &deferred, &mut results);
        Ok(())
    })?;
    let deferred = deferred.list()?;
    // Before the long way through the emulated kernel.
    results.judge()?;
    let there = step("tests in an emulated kernel", || emulated::suite(&deferred))?;
    eprintln!(
        "{} tests passed on this kernel {}, {} in the emulated kernel {}; {} of these only there, \
         for what this kernel lacks",
        results.passed - deferred.len(),
        process::output("uname", &["-r"])?.trim(),
        there.passed,
        there.release,
        deferred.len()
    );
    Ok(())
}

/// What test programs came to. One that fails stops no other: all that is wrong is seen at once.
#[derive(Default)]
struct Results {
    passed: usize,
    failed: Vec<String>,
}

impl Results {
    fn run(&mut self, program: &Program, arguments: &[&str], environment: &[(&str, String)]) {
        match programs::run(program, arguments, environment) {
            Ok(passed) => self.passed += passed,
            Err(error) => {
                eprintln!("   {error:#}");
                self.failed.push(format!("{error:#}"));
            }
        }
    }

    fn judge(&self) -> Result<()> {
        if self.failed.is_empty() {
            return Ok(());
        }
        bail!("{} test programs failed:\n{}", self.failed.len(), self.failed.join("\n"))
    }
}

fn pure(programs: &[Program], results: &mut Results) {
    let (package, modules) = ROOT_MODULES;
    let skips: Vec<&str> = modules.iter().flat_map(|module| ["--skip", *module]).collect();
    for program in programs.iter().filter(|program| program.is_test && !needs_root(program)) {
        let is_divided = program.kind == "lib" && program.package == package;
        results.run(program, if is_divided { &skips } else { &[] }, &[]);
    }
}

/// The file into which tests write their names when this kernel lacks what they need: the
/// agreement stands in `testkit::emulated`.
struct Deferred(PathBuf);

impl Deferred {
    fn collect() -> Result<Self> {
        let path = process::root().join("target/deferred");
        std::fs::write(&path, "").with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self(path))
    }

    /// What tests are told.
    fn environment(&self) -> [(&'static str, String); 1] {
        [("FLATNET_DEFERRED", self.0.display().to_string())]
    }

    fn list(&self) -> Result<BTreeSet<TestName>> {
        let text = std::fs::read_to_string(&self.0)?;
        text.lines().map(emulated::deferred_name).collect()
    }
}

/// Tests that defer themselves count as passed here, and must pass in the emulated kernel.
fn privileged(programs: &[Program], deferred: &Deferred, results: &mut Results) {
    let environment = deferred.environment();
    let (package, modules) = ROOT_MODULES;
    for program in programs.iter().filter(|program| program.is_test) {
        if program.kind == "lib" && program.package == package {
            results.run(program, modules, &environment);
        } else if needs_root(program) {
            results.run(program, &[], &environment);
        }
    }
}

fn root_tests_are_there(programs: &[Program]) -> Result<()> {
    for (package, test) in ROOT_TESTS {
        if !programs.iter().any(|program| program.is(package, test)) {
            bail!("ROOT_TESTS names the test {test} of {package}, which is not there");
        }
    }
    Ok(())
}

fn needs_root(program: &Program) -> bool {
    ROOT_TESTS.iter().any(|(package, test)| program.is(package, test))
}

/// The command `case`: one behaviour, in memory and with real packets.
///
/// # Errors
/// When an executor disagrees, or no case has the name.
pub fn case(arguments: &[String]) -> Result<()> {
    let [name] = arguments else { bail!("case takes the NAME of a file in cases/") };
    let only = [("FLATNET_CASE", name.clone())];
    run_with("cargo", &["test", "-p", "testkit", "--test", "cases"], &only)?;
    if !is_root()? {
        bail!("the case agrees in memory; its real packets need root");
    }
    run_with("cargo", &["test", "-p", "testkit", "--test", "lab"], &only)
}

/// The command `bless`: expectations are written anew from the oracle and the plan.
///
/// # Errors
/// When a case cannot be read, or the executors disagree with each other.
pub fn bless(arguments: &[String]) -> Result<()> {
    let mut environment = vec![("FLATNET_BLESS", "1".to_string())];
    match arguments {
        [] => {}
        [name] => environment.push(("FLATNET_CASE", name.clone())),
        _ => bail!("bless takes one NAME or nothing"),
    }
    run_with("cargo", &["test", "-p", "testkit", "--test", "cases"], &environment)?;
    run("git", &["diff", "--stat", "--", "cases"])
}

/// The benchmarks: name and crate.
const BENCHES: [(&str, &str); 13] = [
    ("api", "controlplane"),
    ("cni", "cni"),
    ("dns", "dnsworker"),
    ("memory", "agent"),
    ("edge", "kernel"),
    ("spine", "testkit"),
    ("startup", "e2e"),
    ("forwarding", "kernel"),
    ("iptables", "kernel"),
    ("names", "kernel"),
    ("peers", "kernel"),
    ("services", "kernel"),
    ("zone", "dns"),
];

/// The command `bench`: all benchmarks, or the named ones.
///
/// # Errors
/// When one does not build or run, or has no such name.
pub fn bench(arguments: &[String]) -> Result<()> {
    if let Some(unknown) = arguments.iter().find(|name| !BENCHES.iter().any(|one| one.0 == *name)) {
        let names: Vec<&str> = BENCHES.iter().map(|one| one.0).collect();
        bail!("there is no benchmark {unknown:?}: the names are {}", names.join(", "));
    }
    build::build(&["--release".into()])?;
    for (name, package) in BENCHES {
        if arguments.is_empty() || arguments.iter().any(|one| one == name) {
            match name {
                "api" => drop(tools::unpack("etcd-server")?),
                "dns" => tools::unbound()?,
                _ => {}
            }
            run("cargo", &["bench", "-p", package, "--bench", name])?;
        }
    }
    Ok(())
}

/// The command `chaos`: the random run of the reliability suite, R-25 with all its pods, and R-01 with
/// all its kills on each backend.
///
/// # Errors
/// When something does not hold; the seed is in the output.
pub fn chaos(arguments: &[String]) -> Result<()> {
    let mut call = vec!["test", "-p", "e2e", "--test", "reliability", "--"];
    call.extend(["chaos_", "r_25", "--pods=2000", "--cluster=chaos"]);
    call.extend(["r_01_killed_agents_cost_nothing_on_each", "--kills=50"]);
    let mut options = Vec::new();
    for pair in arguments.chunks(2) {
        match pair {
            [name, value] if name == "--minutes" || name == "--seed" => {
                options.push(format!("{name}={value}"));
            }
            _ => bail!("chaos takes --minutes N and --seed S, or nothing"),
        }
    }
    if !is_root()? {
        bail!("the chaos run makes a cluster and needs root");
    }
    build::build(&["--release".into()])?;
    call.extend(options.iter().map(String::as_str));
    run("cargo", &call)
}

fn is_root() -> Result<bool> {
    Ok(process::output("id", &["-u"])?.trim() == "0")
}

#[cfg(test)]
mod which {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Who writes this into a test changes namespaces or calls fetched programs, which are not
    /// there yet while the pure tests run.
    const NEEDS: [&str; 4] = ["unshare", "target/tools", "eeds root", "CLONE_NEW"];

    fn text_of(path: &Path) -> String {
        if path.is_dir() {
            let entries = fs::read_dir(path).expect("a directory").flatten();
            return entries.map(|entry| text_of(&entry.path())).collect();
        }
        fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn what_pure_tests_run_needs_neither_root_nor_fetched_programs() {
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
        let mut seen = 0;
        for package in fs::read_dir(crates).expect("crates").flatten() {
            let Ok(tests) = fs::read_dir(package.path().join("tests")) else { continue };
            for test in tests.flatten().map(|entry| entry.path()) {
                let is_target = test.extension().is_some_and(|extension| extension == "rs")
                    || test.join("main.rs").exists();
                let name = test.file_stem().expect("a name").to_string_lossy().into_owned();
                let package = package.file_name().to_string_lossy().into_owned();
                if !is_target || ROOT_TESTS.contains(&(package.as_str(), name.as_str())) {
                    continue;
                }
                seen += 1;
                let text = text_of(&test);
                let need = NEEDS.iter().find(|need| text.contains(**need));
                assert_eq!(need, None, "{package}/{name} belongs into ROOT_TESTS");
            }
        }
        assert!(seen > 20, "the tests are found");
    }
}
