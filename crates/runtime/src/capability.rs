//! Capabilities: their names, what every container has, what one that asks has. Pure.
//!
//! Source: `linux/capability.h`; the default set is containerd's.

use crate::pod::Capabilities;

/// A capability, by its number in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability(pub u32);

/// All names, each at the place of its number.
#[rustfmt::skip]
const NAMES: [&str; 41] = [
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
    "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
];

/// What every container has that does not say otherwise.
pub const DEFAULT: u64 = mask([
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
]);

const fn mask<const N: usize>(names: [&str; N]) -> u64 {
    let (mut mask, mut index) = (0, 0);
    while index < N {
        mask |= 1 << named(names[index]).0;
        index += 1;
    }
    mask
}

/// The capability of a name that stands in this program: a wrong one is an error of its build.
pub const fn named(name: &str) -> Capability {
    let mut number = 0;
    while number < NAMES.len() {
        if is_same(NAMES[number].as_bytes(), name.as_bytes()) {
            return Capability(number as u32);
        }
        number += 1;
    }
    panic!("no such capability")
}

const fn is_same(one: &[u8], other: &[u8]) -> bool {
    let mut index = 0;
    while index < one.len() && index < other.len() && one[index] == other[index] {
        index += 1;
    }
    index == one.len() && index == other.len()
}

/// Whether a mask has a capability.
pub fn has(mask: u64, capability: Capability) -> bool {
    mask & (1 << capability.0) != 0
}

/// The mask of a container that adds and drops, on a node whose own root has `available`.
///
/// # Errors
/// For a name that is none, or one that the node could not give.
pub fn chosen(asked: &Capabilities, available: u64) -> Result<u64, String> {
    let is_all = |name: &String| plain(name) == "ALL";
    let mut kept = DEFAULT & available;
    if asked.add.iter().any(is_all) {
        kept = available;
    }
    if asked.drop.iter().any(is_all) {
        kept = 0;
    }
    for name in asked.drop.iter().filter(|name| !is_all(name)) {
        kept &= !(1 << find(name)?.0);
    }
    for name in asked.add.iter().filter(|name| !is_all(name)) {
        let capability = find(name)?;
        if !has(available, capability) {
            return Err(format!(
                "capability {name} is not available: this node itself has not got it"
            ));
        }
        kept |= 1 << capability.0;
    }
    Ok(kept)
}

fn plain(name: &str) -> String {
    let upper = name.to_uppercase();
    upper.strip_prefix("CAP_").map(str::to_owned).unwrap_or(upper)
}

fn find(name: &str) -> Result<Capability, String> {
    let wanted = plain(name);
    let number = NAMES.iter().position(|known| *known == wanted);
    let number = number.and_then(|number| u32::try_from(number).ok());
    number.map(Capability).ok_or_else(|| format!("unknown capability {name:?}"))
}

/// What a process may have at most, from its `/proc/PID/status`.
pub fn available(status: &str) -> u64 {
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    bounding.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(add: &[&str], drop: &[&str]) -> Capabilities {
        let texts = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Capabilities { add: texts(add), drop: texts(drop) }
    }

    #[test]
    fn names_stand_at_the_place_of_their_numbers() {
        let numbers = [("CHOWN", 0), ("NET_ADMIN", 12), ("SYS_ADMIN", 21), ("MKNOD", 27)];
        let more = [("AUDIT_READ", 37), ("BPF", 39), ("CHECKPOINT_RESTORE", 40)];
        for (name, number) in numbers.into_iter().chain(more) {
            assert_eq!(find(name), Ok(Capability(number)), "{name}");
        }
        assert_eq!(DEFAULT, 0xa804_25fb, "containerd's");
    }

    #[test]
    fn a_container_has_the_defaults_and_what_it_adds_and_drops() {
        let all = 0x1ff_ffff_ffff;
        let cases = [
            (asked(&[], &[]), DEFAULT),
            (asked(&["NET_BIND_SERVICE"], &["ALL"]), 1 << 10),
            (asked(&[], &["CAP_NET_RAW", "chown"]), DEFAULT & !(1 << 13) & !1),
            (asked(&["SYS_ADMIN", "CAP_NET_ADMIN"], &[]), DEFAULT | 1 << 21 | 1 << 12),
            (asked(&["ALL"], &[]), all),
            (asked(&["ALL"], &["MKNOD"]), all & !(1 << 27)),
        ];
        for (asked, expected) in cases {
            assert_eq!(chosen(&asked, all), Ok(expected), "{asked:?}");
        }
        let error = chosen(&asked(&["EVERYTHING"], &[]), all).expect_err("no such name");
        assert_eq!(error, "unknown capability \"EVERYTHING\"");
        let without = all & !(1 << 24);
        assert_eq!(chosen(&asked(&["ALL"], &[]), without), Ok(without));
        let error = chosen(&asked(&["SYS_RESOURCE"], &[]), without).expect_err("not here");
        assert!(error.contains("SYS_RESOURCE is not available"), "{error}");
    }

    #[test]
    fn what_a_node_has_is_read_from_its_status() {
        assert_eq!(available("Name:\tx\nCapBnd:\t000001fffeffffff\n"), 0x1ff_feff_ffff);
        assert_eq!(available(""), DEFAULT);
    }
}
