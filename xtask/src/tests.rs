//! Running tests: the pure ones need nothing, the others need root and say so.

use anyhow::{Result, bail};

use crate::build;
use crate::process::{self, Package, run, run_with, step};

/// Crates that touch nothing of the machine: all their tests are pure.
const PURE_PACKAGES: &[&str] = &[
    "model",
    "oracle",
    "plan",
    "render",
    "reconcile",
    "store",
    "controllers",
    "ipam",
    "dns",
    "xtask",
];
/// Integration tests of other crates that need nothing of the machine either.
const PURE_TESTS: &[(&str, &str)] =
    &[("testkit", "cases"), ("testkit", "laws"), ("testkit", "simulation")];

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
    step("programs for the cluster tests", || build::build(&[]))?;
    step("tests that need root", || privileged(&packages))
}

fn pure(packages: &[Package]) -> Result<()> {
    let mut call = vec!["test"];
    for package in packages.iter().filter(|one| PURE_PACKAGES.contains(&one.name.as_str())) {
        call.extend(["-p", &package.name]);
    }
    run("cargo", &call)?;
    // Unit tests of the shell crates are pure too.
    let mut call = vec!["test", "--workspace", "--lib", "--bins"];
    for name in PURE_PACKAGES {
        call.extend(["--exclude", name]);
    }
    run("cargo", &call)?;
    for (package, test) in PURE_TESTS {
        run("cargo", &["test", "-p", package, "--test", test])?;
    }
    Ok(())
}

fn privileged(packages: &[Package]) -> Result<()> {
    for package in packages.iter().filter(|one| !PURE_PACKAGES.contains(&one.name.as_str())) {
        let tests: Vec<&String> = package
            .tests
            .iter()
            .filter(|test| !PURE_TESTS.contains(&(package.name.as_str(), test.as_str())))
            .collect();
        if tests.is_empty() {
            continue;
        }
        let mut call = vec!["test", "-p", &package.name];
        for test in tests {
            call.extend(["--test", test.as_str()]);
        }
        run("cargo", &call)?;
    }
    Ok(())
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

/// The command `bench`.
///
/// # Errors
/// When it does not build.
pub fn bench(arguments: &[String]) -> Result<()> {
    let mut call = vec!["bench", "-p", "testkit", "--bench", "spine", "--"];
    call.extend(arguments.iter().map(String::as_str));
    run("cargo", &call)
}

fn is_root() -> Result<bool> {
    Ok(process::output("id", &["-u"])?.trim() == "0")
}
