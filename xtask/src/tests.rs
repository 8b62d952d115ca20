//! Running tests: the pure ones need nothing, the others need root and say so.

use anyhow::{Result, bail};

use crate::build;
use crate::process::{self, Package, run, run_with, step};
use crate::tools;

/// Tests that make network namespaces or whole clusters: they need root, and fail without it. All
/// others need nothing of the machine but a temporary directory and loopback.
const ROOT_TESTS: &[(&str, &str)] = &[
    ("cni", "kill_sweep"),
    ("cni", "nodes"),
    ("cni", "tunnel"),
    ("cni", "pods"),
    ("cni", "power_loss"),
    // This one needs no root, but Debian's kubectl.
    ("controlplane", "kubectl"),
    ("dnsworker", "worker"),
    ("e2e", "cluster"),
    ("e2e", "refusals"),
    ("kernel", "nft"),
    ("netlink", "kernel"),
    ("testkit", "lab"),
];

/// Modules of a crate's own tests that make containers, and so need root too.
const ROOT_MODULES: (&str, &[&str]) = (
    "runtime",
    &["tests::host_image", "tests::kill", "tests::pods", "tests::remote", "tests::restarts"],
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
    let packages = process::packages()?;
    step("pure tests", || pure(&packages))?;
    if pure_only {
        return Ok(());
    }
    // The very programs that `./x up` installs.
    step("programs for the cluster tests", || build::build(&["--release".into()]))?;
    step("clients for the cluster tests", || {
        tools::kubectl(&[])?;
        tools::python()
    })?;
    step("tests that need root", || privileged(&packages))
}

fn pure(packages: &[Package]) -> Result<()> {
    let (package, modules) = ROOT_MODULES;
    run("cargo", &["test", "--workspace", "--lib", "--bins", "--exclude", package])?;
    let mut call = vec!["test", "-p", package, "--lib", "--"];
    call.extend(modules.iter().flat_map(|module| ["--skip", *module]));
    run("cargo", &call)?;
    for package in packages {
        test_some(package, |test| !needs_root(package, test))?;
    }
    Ok(())
}

fn privileged(packages: &[Package]) -> Result<()> {
    for (package, test) in ROOT_TESTS {
        let found = packages.iter().find(|one| one.name == *package);
        if !found.is_some_and(|found| found.tests.iter().any(|one| one == test)) {
            bail!("ROOT_TESTS names the test {test} of {package}, which is not there");
        }
    }
    let (package, modules) = ROOT_MODULES;
    let mut call = vec!["test", "-p", package, "--lib", "--"];
    call.extend(modules);
    run("cargo", &call)?;
    for package in packages {
        test_some(package, |test| needs_root(package, test))?;
    }
    Ok(())
}

fn needs_root(package: &Package, test: &str) -> bool {
    ROOT_TESTS.contains(&(package.name.as_str(), test))
}

fn test_some(package: &Package, choose: impl Fn(&str) -> bool) -> Result<()> {
    let chosen: Vec<&String> = package.tests.iter().filter(|test| choose(test)).collect();
    if chosen.is_empty() {
        return Ok(());
    }
    let mut call = vec!["test", "-p", &package.name];
    for test in chosen {
        call.extend(["--test", test.as_str()]);
    }
    run("cargo", &call)
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
const BENCHES: [(&str, &str); 2] = [("spine", "testkit"), ("startup", "e2e")];

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
            run("cargo", &["bench", "-p", package, "--bench", name])?;
        }
    }
    Ok(())
}

fn is_root() -> Result<bool> {
    Ok(process::output("id", &["-u"])?.trim() == "0")
}
