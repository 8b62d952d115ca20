//! The test programs of the emulated machine, built static: it has no libraries of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{build, process, programs};

/// A target directory of its own: flags and profile differ from all other builds.
const TARGET: &str = "target/emulated/build";
/// Interpreted code is slow.
const PROFILE: (&str, &str) = ("CARGO_PROFILE_DEV_OPT_LEVEL", "1");

/// What was built.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Built {
    /// Each test program and the directory of its package, by `package/test`.
    pub tests: BTreeMap<String, (PathBuf, PathBuf)>,
    /// Programs of these packages: tests know their paths since they were compiled.
    binaries: BTreeSet<PathBuf>,
}

impl Built {
    /// All programs.
    pub fn programs(&self) -> impl Iterator<Item = &Path> {
        let tests = self.tests.values().map(|(program, _)| program.as_path());
        tests.chain(self.binaries.iter().map(PathBuf::as_path))
    }

    /// Directories that tests start in.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.tests.values().map(|(_, directory)| directory.as_path())
    }
}

/// Builds test programs, each named by package and test.
///
/// # Errors
/// When one does not compile or is not there.
pub fn build(wanted: &[(&str, &str)]) -> Result<Built> {
    let triple = build::host_triple()?;
    let mut call = vec!["test", "--no-run", "--message-format=json-render-diagnostics"];
    for (package, test) in wanted {
        call.extend(["-p", package, "--test", test]);
    }
    call.extend(["--target", &triple, "--target-dir", TARGET]);
    let environment = [PROFILE, build::STATIC_FLAGS].map(|(name, value)| (name, value.to_owned()));
    let built = read(&process::output_shown("cargo", &call, &environment)?, wanted)?;
    for (package, test) in wanted {
        let name = format!("{package}/{test}");
        built.tests.get(&name).with_context(|| format!("cargo built no test {name}"))?;
    }
    Ok(built)
}

/// What is in the messages of cargo; programs that are not asked for have the name of one that is.
fn read(messages: &str, wanted: &[(&str, &str)]) -> Result<Built> {
    let mut built = Built::default();
    for program in programs::read(messages)? {
        if !program.is_test {
            built.binaries.insert(program.path);
        } else if wanted.iter().any(|(package, test)| program.is(package, test)) {
            let name = format!("{}/{}", program.package, program.name);
            built.tests.insert(name, (program.path, program.directory));
        }
    }
    Ok(built)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_that_are_not_asked_for_are_left_out() {
        let artifact = |package: &str, kind: &str, name: &str, program: &str| {
            serde_json::json!({
                "reason": "compiler-artifact",
                "manifest_path": format!("/w/crates/{package}/Cargo.toml"),
                "target": { "kind": [kind], "name": name },
                "profile": { "test": kind == "test" },
                "executable": program,
            })
            .to_string()
        };
        let messages = [
            artifact("cni", "bin", "flatnet-cni", "/t/flatnet-cni"),
            artifact("cni", "test", "pods", "/t/pods-1"),
            artifact("other", "test", "pods", "/t/pods-2"),
        ]
        .join("\n");
        let built = read(&messages, &[("cni", "pods")]).expect("messages");
        let programs: Vec<&Path> = built.programs().collect();
        assert_eq!(programs, [Path::new("/t/pods-1"), Path::new("/t/flatnet-cni")]);
        assert_eq!(built.directories().collect::<Vec<_>>(), [Path::new("/w/crates/cni")]);
    }
}
