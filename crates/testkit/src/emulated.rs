//! What the kernel under a test may lack, and the agreement by which such a test runs in the
//! emulated kernel instead (spec/test-kernels.md): never a silent skip.
//!
//! ```no_run
//! # fn a_tunnel_encrypts() {
//! use testkit::emulated::Feature;
//! if testkit::deferred!(Feature::WireGuard) {
//!     return;
//! }
//! # }
//! ```
//!
//! Where the kernel has all that the test names, or the test already runs in the emulated kernel,
//! the answer is false and the test goes on. Otherwise the test writes its name into the file that
//! [`DEFERRED_FILE_VARIABLE`] names, and `./x test` fails unless the emulated kernel then passes
//! just that test. Without such a file (a plain `cargo test`) nobody would run it, so it fails.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Command;

use netlink::Netns;
use netlink::ipvs::Ipvs;

/// The environment variable with the file that collects the names of deferred tests, one a line.
pub const DEFERRED_FILE_VARIABLE: &str = "FLATNET_DEFERRED";
/// The environment variable that is set in the emulated kernel: nothing is deferred from there.
pub const EMULATED_VARIABLE: &str = "FLATNET_EMULATED";

/// What some kernels lack. Each is looked for by using it once in a namespace of its own: a list
/// of modules tells nothing of what is built in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Links of the kind `wireguard`.
    WireGuard,
    /// Links of the kind `ipip`.
    Ipip,
    /// Links of the kind `ip6tnl`: either family within IPv6.
    Ip6Tunnel,
    /// Links of the kind `dummy`.
    Dummy,
    /// Links of the kind `ifb`.
    Ifb,
    /// Links of the kind `macvlan`.
    Macvlan,
    /// Links of the kind `vlan`.
    Vlan,
    /// Delay, loss and rate on a wire: the queueing discipline `netem`.
    Netem,
    /// Virtual servers: IPVS.
    Ipvs,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::WireGuard,
        Self::Ipip,
        Self::Ip6Tunnel,
        Self::Dummy,
        Self::Ifb,
        Self::Macvlan,
        Self::Vlan,
        Self::Netem,
        Self::Ipvs,
    ];

    /// The command that works only where the feature is there, for `ip` or `tc`; none where the
    /// kernel is asked itself.
    fn probe(self) -> Option<&'static str> {
        let command = match self {
            Self::WireGuard => "ip link add probe type wireguard",
            Self::Ipip => "ip link add probe type ipip local 192.0.2.1 remote 192.0.2.2",
            Self::Ip6Tunnel => {
                "ip link add probe type ip6tnl mode any local 2001:db8::1 remote 2001:db8::2"
            }
            Self::Dummy => "ip link add probe type dummy",
            Self::Ifb => "ip link add probe type ifb",
            Self::Macvlan => "ip link add probe link base type macvlan mode bridge",
            Self::Vlan => "ip link add probe link base type vlan id 7",
            Self::Netem => "tc qdisc add dev lo root netem delay 1ms",
            Self::Ipvs => return None,
        };
        Some(command)
    }

    /// Whether this kernel has it.
    ///
    /// # Panics
    /// Without the rights to make a network namespace, or the programs `ip` and `tc`.
    pub fn is_here(self) -> bool {
        let namespace = Netns::create().expect("a network namespace (these tests need root)");
        let run = |line: &str| {
            let mut words = line.split(' ');
            let program = words.next().unwrap_or_default();
            namespace
                .run(|| Command::new(program).args(words).output())
                .expect("the namespace")
                .unwrap_or_else(|error| panic!("cannot start `{line}`: {error}"))
                .status
                .success()
        };
        assert!(
            run("ip link add base type veth peer name other"),
            "every kernel with pods has veth"
        );
        match self.probe() {
            Some(command) => run(command),
            None => {
                let load = || Ipvs::open().and_then(|mut ipvs| ipvs.load());
                namespace.run(load).expect("the namespace").is_ok()
            }
        }
    }
}

/// Whether the calling test is left to the emulated kernel because this one lacks a feature: the
/// test then returns at once. To be called by the test function itself, whose name it takes.
#[macro_export]
macro_rules! deferred {
    ($($feature:expr),+ $(,)?) => {{
        fn here() {}
        let inside = ::std::any::type_name_of_val(&here);
        $crate::emulated::defer(env!("CARGO_PKG_NAME"), inside, &[$($feature),+])
    }};
}

/// The function behind [`deferred!`]: `inside` is the path of a function within the test.
///
/// # Panics
/// When a feature is missing and no file collects deferred tests, or it cannot be written.
pub fn defer(package: &str, inside: &str, features: &[Feature]) -> bool {
    if std::env::var_os(EMULATED_VARIABLE).is_some() {
        return false;
    }
    let missing: Vec<Feature> =
        features.iter().copied().filter(|feature| !feature.is_here()).collect();
    if missing.is_empty() {
        return false;
    }
    let (test, name) = test_name(inside);
    let Some(file) = std::env::var_os(DEFERRED_FILE_VARIABLE) else {
        panic!(
            "this kernel lacks {missing:?}: run the test in the emulated kernel with \
             `cargo xtask emulated {package}/{test} {name}`, or all tests with `./x test`"
        );
    };
    let mut line = String::new();
    let _ = writeln!(line, "{package} {test} {name} {missing:?}");
    // One write to a file opened for appending: tests of several threads do not mix their lines.
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(&file)
        .and_then(|mut file| file.write_all(line.as_bytes()))
        .unwrap_or_else(|error| panic!("cannot defer the test to {}: {error}", file.display()));
    true
}

/// The test program and the name of the test within it, as the test harness says them, from the
/// path of a function within the test: `paths::wireguard::is_strict::here`.
fn test_name(inside: &str) -> (&str, &str) {
    let test = inside.strip_suffix("::here").unwrap_or(inside);
    test.split_once("::").unwrap_or((test, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_names_itself_as_the_harness_does() {
        fn here() {}
        let (program, name) = test_name(std::any::type_name_of_val(&here));
        assert_eq!(program, "testkit");
        assert_eq!(name, "emulated::tests::a_test_names_itself_as_the_harness_does");
    }
}
