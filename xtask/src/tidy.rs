//! The repository's own checks: sizes, headings, unsafe code, files that nothing refers to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::layers::report;
use crate::process::{self, Package};
use crate::source;

/// No source file is longer, in lines.
const FILE_LINES_MAX: usize = 800;
/// No function is longer, in lines, unless the ratchet file names it.
const FUNCTION_LINES_MAX: usize = 70;
/// Functions that are longer, with their length; it may only go down.
const RATCHET: &str = "xtask/tidy-ratchet.txt";

/// Modules with unsafe code, each for one reason.
const UNSAFE_MODULES: &[(&str, &str)] = &[
    ("crates/memory/src/allocator.rs", "what the C library's allocator can be told"),
    ("crates/memory/src/program.rs", "where the program's own pages are, and letting go of them"),
    ("crates/netlink/src/", "system calls and sockets that nix does not wrap"),
    ("crates/kernel/src/", "system calls and sockets that nix does not wrap"),
    ("crates/agent/src/monitor.rs", "a netlink socket in tokio's reactor"),
    ("crates/pause/src/", "fork, clone3 and waitid before any allocation"),
    ("crates/runtime/src/", "clone3 into a cgroup, pivot_root, descriptors over exec"),
    ("crates/flatnet/src/", "namespaces of nodes, inherited sockets"),
    ("crates/dnsworker/src/", "sockets inherited from the supervisor"),
    ("crates/toolbox/src/", "terminal and socket options"),
    ("crates/testkit/src/lab/", "threads that enter namespaces"),
];

/// The command. `--ratchet` writes the list of long functions anew.
///
/// # Errors
/// All faults found.
pub fn run(arguments: &[String]) -> Result<()> {
    let write_ratchet = match arguments {
        [] => false,
        [flag] if flag == "--ratchet" => true,
        _ => bail!("tidy takes --ratchet or nothing"),
    };
    let root = process::root();
    let packages = process::packages()?;
    let mut faults = Vec::new();
    let mut long_functions = BTreeMap::new();
    for package in &packages {
        let mut sources = BTreeMap::new();
        for path in source::files(&package.directory, ".rs")? {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            sources.insert(path, text);
        }
        for (path, text) in &sources {
            let name = path.strip_prefix(&root).unwrap_or(path).display().to_string();
            faults.extend(check_size(&name, text));
            // The file that names a `tests.rs` has said what it is for.
            if !name.ends_with("/tests.rs") {
                faults.extend(check_heading(&name, text));
            }
            faults.extend(check_unsafe(&name, text));
            long_functions.extend(find_long_functions(&name, text));
        }
        faults.extend(check_references(package, &sources, &root));
    }
    if write_ratchet {
        std::fs::write(root.join(RATCHET), print_ratchet(&long_functions))?;
    }
    let ratchet = std::fs::read_to_string(root.join(RATCHET)).unwrap_or_default();
    faults.extend(check_ratchet(&long_functions, &ratchet));
    report("tidy", &faults)
}

fn check_size(name: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if lines <= FILE_LINES_MAX {
        return vec![];
    }
    vec![format!("{name}: {lines} lines, at most {FILE_LINES_MAX}: split it by what it enumerates")]
}

fn check_heading(name: &str, text: &str) -> Vec<String> {
    // Constructors of test tables and build scripts explain themselves too.
    let first = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!"));
    if first.is_some_and(|line| line.starts_with("//!")) {
        return vec![];
    }
    vec![format!("{name}: begins without a `//!` heading: say in a sentence what the file is for")]
}

fn check_unsafe(name: &str, text: &str) -> Vec<String> {
    let code = source::without_comments_and_literals(text);
    let is_named = UNSAFE_MODULES.iter().any(|(module, _)| name.starts_with(module));
    // A test may cut corners with unsafe code, but says why as anybody.
    let is_test = source::is_test_file(name);
    let lines: Vec<&str> = text.lines().collect();
    let mut faults = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let has = line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe");
        if !has || line.trim_start().starts_with("#") {
            continue;
        }
        let place = format!("{name}:{}", index + 1);
        if !is_named && !is_test {
            faults.push(format!("{place}: unsafe code outside of UNSAFE_MODULES in xtask"));
        }
        let before = &lines[index.saturating_sub(SAFETY_NOTE_LINES)..=index.min(lines.len() - 1)];
        let is_type = line.contains("unsafe fn(") || line.contains("unsafe extern");
        if !is_type
            && !before.iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety"))
        {
            faults.push(format!("{place}: unsafe code without a `// SAFETY:` note above it"));
        }
    }
    faults
}

/// The note stands at most so many lines above the word.
const SAFETY_NOTE_LINES: usize = 6;

fn find_long_functions(name: &str, text: &str) -> BTreeMap<String, usize> {
    if source::is_test_file(name) {
        return BTreeMap::new();
    }
    let code = source::without_comments_and_literals(text);
    let code = source::without_test_modules(&code);
    source::functions(&code)
        .into_iter()
        .filter(|function| function.lines > FUNCTION_LINES_MAX)
        .map(|function| (format!("{name} {}", function.name), function.lines))
        .collect()
}

fn print_ratchet(long: &BTreeMap<String, usize>) -> String {
    let mut text = format!(
        "# Functions longer than {FUNCTION_LINES_MAX} lines. Lengths may only go down: split one and take its line out.\n"
    );
    for (function, lines) in long {
        text.push_str(&format!("{function} {lines}\n"));
    }
    text
}

fn check_ratchet(long: &BTreeMap<String, usize>, ratchet: &str) -> Vec<String> {
    let known: BTreeMap<&str, usize> = ratchet
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .filter_map(|(function, lines)| Some((function, lines.parse().ok()?)))
        .collect();
    let mut faults = Vec::new();
    for (function, lines) in long {
        match known.get(function.as_str()) {
            None => faults.push(format!(
                "{function}: {lines} lines, at most {FUNCTION_LINES_MAX}: split it"
            )),
            Some(allowed) if lines > allowed => faults
                .push(format!("{function}: grew from {allowed} to {lines} lines: split it")),
            Some(allowed) if lines < allowed => faults.push(format!(
                "{function}: {lines} lines, but {RATCHET} still allows {allowed}: run tidy --ratchet"
            )),
            Some(_) => {}
        }
    }
    for function in known.keys().filter(|function| !long.contains_key(**function)) {
        faults.push(format!("{function}: in {RATCHET}, but no longer long: run tidy --ratchet"));
    }
    faults
}

/// Every file below `src` is a root or named by a `mod` of one that is reached.
fn check_references(
    package: &Package,
    sources: &BTreeMap<PathBuf, String>,
    root: &Path,
) -> Vec<String> {
    let mut reached: BTreeSet<PathBuf> = BTreeSet::new();
    let mut open: Vec<PathBuf> = package.roots.clone();
    while let Some(path) = open.pop() {
        let Some(text) = sources.get(&path) else { continue };
        if !reached.insert(path.clone()) {
            continue;
        }
        let is_root =
            package.roots.contains(&path) || path.file_name().is_some_and(|name| name == "mod.rs");
        let directory = path.parent().unwrap_or(Path::new(""));
        let below = if is_root {
            directory.to_path_buf()
        } else {
            directory.join(path.file_stem().unwrap_or_default())
        };
        for module in modules(text) {
            open.push(below.join(format!("{module}.rs")));
            open.push(below.join(module).join("mod.rs"));
        }
    }
    let source_directory = package.directory.join("src");
    sources
        .keys()
        .filter(|path| path.starts_with(&source_directory) && !reached.contains(*path))
        .map(|path| {
            let name = path.strip_prefix(root).unwrap_or(path).display();
            format!("{name}: no `mod` refers to it: remove it or use it")
        })
        .collect()
}

fn modules(text: &str) -> Vec<String> {
    let code = source::without_comments_and_literals(text);
    code.lines()
        .filter_map(|line| {
            let line = line.trim();
            let at = if line.starts_with("mod ") { 0 } else { line.find(" mod ")? + 1 };
            let name = line[at + 4..].strip_suffix(';')?;
            Some(name.trim().to_string())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_files_are_found() {
        assert!(check_size("a.rs", &"x\n".repeat(800)).is_empty());
        assert_eq!(check_size("a.rs", &"x\n".repeat(801)).len(), 1);
    }

    #[test]
    fn missing_headings_are_found() {
        assert!(check_heading("a.rs", "//! What it is.\n").is_empty());
        assert_eq!(check_heading("a.rs", "use std::fs;\n").len(), 1);
    }

    #[test]
    fn unsafe_code_needs_its_place_and_its_note() {
        let noted = "// SAFETY: the pointer is ours.\nunsafe { f() }\n";
        assert!(check_unsafe("crates/netlink/src/lib.rs", noted).is_empty());
        assert_eq!(check_unsafe("crates/plan/src/lib.rs", noted).len(), 1);
        assert_eq!(check_unsafe("crates/netlink/src/lib.rs", "unsafe { f() }\n").len(), 1);
        assert!(
            check_unsafe("crates/plan/src/lib.rs", "// unsafe\n#![deny(unsafe_code)]").is_empty()
        );
    }

    #[test]
    fn long_functions_only_shrink() {
        let long = format!("fn long() {{\n{}}}\n", "x;\n".repeat(70));
        let found = find_long_functions("a.rs", &long);
        assert_eq!(found.get("a.rs long"), Some(&72));
        assert_eq!(check_ratchet(&found, "").len(), 1);
        assert!(check_ratchet(&found, &print_ratchet(&found)).is_empty());
        assert_eq!(check_ratchet(&found, "a.rs long 71\n").len(), 1);
        assert_eq!(check_ratchet(&found, "a.rs long 73\n").len(), 1);
        assert_eq!(check_ratchet(&BTreeMap::new(), "a.rs long 72\n").len(), 1);
    }

    #[test]
    fn files_without_a_module_are_found() {
        let package = Package {
            name: "a".into(),
            directory: "/r/a".into(),
            dependencies: vec![],
            roots: vec!["/r/a/src/lib.rs".into()],
            programs: vec![],
        };
        let sources: BTreeMap<PathBuf, String> = [
            ("/r/a/src/lib.rs", "pub mod used;\npub(crate) mod deep;\n"),
            ("/r/a/src/used.rs", ""),
            ("/r/a/src/deep/mod.rs", "mod deeper;"),
            ("/r/a/src/deep/deeper.rs", ""),
            ("/r/a/src/lost.rs", ""),
            ("/r/a/tests/outside.rs", ""),
        ]
        .into_iter()
        .map(|(path, text)| (path.into(), text.into()))
        .collect();
        let faults = check_references(&package, &sources, Path::new("/r"));
        assert_eq!(faults, ["a/src/lost.rs: no `mod` refers to it: remove it or use it"]);
    }
}
