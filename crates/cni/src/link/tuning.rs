//! [`Tuning`]: properties of the pod's interface and kernel parameters of its namespace
//! (reference plugin `tuning`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use model::MacAddress;
use model::attachment::InterfaceState;
use netlink::{Link, LinkChange, Netlink, sysctl};
use regex_lite::Regex;
use serde::Deserialize;
use serde_json::Value;

use super::options::invalid;
use crate::fault::{ADDRESS_STORE, Fault};

/// Where an administrator says which parameters a configuration may set, one regular expression
/// a line: the reference plugin's file.
const ALLOW_LIST: &str = "/etc/cni/tuning/allowlist.conf";
/// Bytes of that file that are read at most.
const ALLOW_LIST_BYTES_MAX: u64 = 64 * 1024;
/// Stands for the interface's name in keys and in the list.
const INTERFACE: &str = "IFNAME";

/// Further properties of the pod's interface. What is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    /// Kernel parameters, by their path below `/proc/sys`.
    pub sysctl: BTreeMap<String, String>,
    /// Whether it takes frames for others.
    pub promiscuous: Option<bool>,
    /// Whether it takes all multicast frames.
    pub all_multicast: Option<bool>,
    /// Packets that its queue takes.
    pub transmit_queue_length: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    sysctl: BTreeMap<String, String>,
    promisc: Option<bool>,
    allmulti: Option<bool>,
    #[serde(rename = "txQLen")]
    transmit_queue_length: Option<u32>,
}

/// Reads and checks the keys of tuning in a whole network configuration.
///
/// # Errors
/// Code 7 for a parameter that is not the namespace's, not allowed, or named twice.
pub(crate) fn parse(config: &Value, interface: &str) -> Result<Tuning, Fault> {
    let document: Document = Document::deserialize(config)
        .map_err(|error| invalid("the configuration cannot be understood", error))?;
    let allowed = match document.sysctl.is_empty() {
        true => None,
        false => read_allow_list(Path::new(ALLOW_LIST), interface)?,
    };
    Ok(Tuning {
        sysctl: parameters(&document.sysctl, interface, allowed.as_deref())?,
        promiscuous: document.promisc,
        all_multicast: document.allmulti,
        transmit_queue_length: document.transmit_queue_length,
    })
}

impl Tuning {
    /// Sets the properties of the interface; the caller has made sure of its index.
    pub(super) fn apply(
        &self,
        pod: &mut Netlink,
        index: u32,
        mac: Option<MacAddress>,
        mtu: Option<u32>,
    ) -> Result<(), netlink::Error> {
        let change = LinkChange {
            promiscuous: self.promiscuous,
            all_multicast: self.all_multicast,
            transmit_queue_length: self.transmit_queue_length,
            mac,
            mtu,
            ..LinkChange::default()
        };
        let changes = self.promiscuous.is_some()
            || self.all_multicast.is_some()
            || self.transmit_queue_length.is_some()
            || mac.is_some()
            || mtu.is_some();
        if changes { pod.change_link(index, &change) } else { Ok(()) }
    }

    /// Sets the parameters; inside the pod's namespace.
    pub(super) fn write_parameters(&self) -> Result<(), netlink::Error> {
        self.sysctl.iter().try_for_each(|(key, value)| sysctl::write(key, value))
    }

    /// What differs from what was set; `None` when nothing does. Inside the pod's namespace.
    pub(super) fn difference(&self, link: &Link) -> Result<Option<String>, netlink::Error> {
        let name = &link.name;
        let flags = [
            ("promisc", self.promiscuous, link.promiscuous),
            ("allmulti", self.all_multicast, link.all_multicast),
        ];
        for (flag, wanted, found) in flags {
            if wanted.is_some_and(|wanted| wanted != found) {
                return Ok(Some(format!("{flag} of {name} is {found}")));
            }
        }
        let length = link.transmit_queue_length;
        if self.transmit_queue_length.is_some_and(|wanted| wanted != length) {
            return Ok(Some(format!("txQLen of {name} is {length}")));
        }
        for (key, wanted) in &self.sysctl {
            let found = sysctl::read(key)?;
            // The kernel separates the numbers of one parameter with tabs.
            if !found.split_whitespace().eq(wanted.split_whitespace()) {
                return Ok(Some(format!("the kernel parameter {key} is {found}")));
            }
        }
        Ok(None)
    }
}

/// What an interface is like, for [`restore`].
pub(super) fn state_of(link: &Link) -> InterfaceState {
    InterfaceState {
        mac: link.mac.unwrap_or_default(),
        mtu: link.mtu,
        promiscuous: link.promiscuous,
        all_multicast: link.all_multicast,
        transmit_queue_length: link.transmit_queue_length,
    }
}

/// Puts an interface back into an earlier state.
pub(super) fn restore(
    pod: &mut Netlink,
    index: u32,
    state: &InterfaceState,
) -> Result<(), netlink::Error> {
    let change = LinkChange {
        mac: Some(state.mac),
        mtu: Some(state.mtu),
        promiscuous: Some(state.promiscuous),
        all_multicast: Some(state.all_multicast),
        transmit_queue_length: Some(state.transmit_queue_length),
        ..LinkChange::default()
    };
    pod.change_link(index, &change)
}

/// The patterns of the administrator's list; `None` without one, which allows every parameter
/// of the namespace's network.
fn read_allow_list(file: &Path, interface: &str) -> Result<Option<Vec<Regex>>, Fault> {
    let failed = |error: &dyn std::fmt::Display| {
        Fault::new(ADDRESS_STORE, format!("cannot read {}", file.display()), error)
    };
    let bytes = match fs::metadata(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
        Ok(metadata) => metadata.len(),
    };
    if bytes > ALLOW_LIST_BYTES_MAX {
        return Err(failed(&format!("it has more than {ALLOW_LIST_BYTES_MAX} bytes")));
    }
    let text = fs::read_to_string(file).map_err(|error| failed(&error))?;
    patterns(&text, interface).map(Some).map_err(|error| failed(&error))
}

fn patterns(text: &str, interface: &str) -> Result<Vec<Regex>, regex_lite::Error> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    // Dots of an interface's name stand for themselves.
    let name = regex_lite::escape(interface);
    lines.map(|line| Regex::new(&line.replace(INTERFACE, &name))).collect()
}

/// Parameters by their path, from keys in either spelling of `sysctl(8)`.
fn parameters(
    written: &BTreeMap<String, String>,
    interface: &str,
    allowed: Option<&[Regex]>,
) -> Result<BTreeMap<String, String>, Fault> {
    let mut parameters = BTreeMap::new();
    for (key, value) in written {
        let refuse = |why: &str| Err(invalid(&format!("invalid sysctl: {key}"), why));
        let path = path_of(key, interface);
        let inside = path
            .strip_prefix("net/")
            .is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")));
        if !inside {
            return refuse("only parameters below net can be set for a pod");
        }
        if let Some(patterns) = allowed {
            let dotted = swap_separators(&path);
            if !patterns.iter().any(|pattern| pattern.is_match(&dotted)) {
                return refuse(&format!("{ALLOW_LIST} does not allow it"));
            }
        }
        if parameters.insert(path, value.clone()).is_some() {
            return refuse("it is there twice, in two spellings");
        }
    }
    Ok(parameters)
}

/// The path of a key. The first separator says whether dots or slashes part it; the other of the
/// two is then part of a name, as in `net.ipv4.conf.eth0/100.forwarding`.
fn path_of(key: &str, interface: &str) -> String {
    let slashes = key.find(['.', '/']).is_some_and(|at| key.as_bytes().get(at) == Some(&b'/'));
    let path = if slashes { key.to_owned() } else { swap_separators(key) };
    path.replace(INTERFACE, interface)
}

fn swap_separators(text: &str) -> String {
    let swap = |c: char| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    text.chars().map(swap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(key: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(key.to_owned(), "1".to_owned())])
    }

    /// TU: the sysctl allow-list; no path separators that lead elsewhere.
    #[test]
    fn parameters_stay_below_net_in_every_spelling() {
        let rows = [
            ("net.ipv4.conf.IFNAME.arp_filter", Some("net/ipv4/conf/eth0.5/arp_filter")),
            ("net/ipv4/conf/IFNAME/arp_filter", Some("net/ipv4/conf/eth0.5/arp_filter")),
            ("net.ipv4.conf.eth1/7.forwarding", Some("net/ipv4/conf/eth1.7/forwarding")),
            ("net.core.somaxconn", Some("net/core/somaxconn")),
            ("kernel.core_pattern", None),
            ("kernel/core_pattern", None),
            ("net/../kernel/core_pattern", None),
            ("net.ipv4./..kernel", None),
            ("net/./core/somaxconn", None),
            ("net//core", None),
            ("/net/core/somaxconn", None),
            ("net.", None),
            ("net", None),
            ("", None),
        ];
        for (key, path) in rows {
            let found = parameters(&one(key), "eth0.5", None);
            match path {
                Some(path) => assert_eq!(found.expect(key).keys().collect::<Vec<_>>(), [path]),
                None => {
                    let fault = found.expect_err(key);
                    assert!(fault.message.contains(key), "{fault}");
                }
            }
        }
    }

    /// TU: duplicates refused.
    #[test]
    fn a_parameter_that_is_there_twice_is_refused() {
        let mut both = one("net.core.somaxconn");
        both.extend(one("net/core/somaxconn"));
        let fault = parameters(&both, "eth0", None).expect_err("twice");
        assert!(fault.details.contains("twice"), "{fault}");
    }

    /// TU: the allow-list of the reference plugin.
    #[test]
    fn the_administrators_list_decides_by_its_patterns() {
        let list = "^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$\n\n ^net\\.core\\.somaxconn$ \n";
        let patterns = patterns(list, "eth0").expect("patterns");
        let rows = [
            ("net.ipv4.conf.IFNAME.arp_filter", true),
            ("net/ipv4/conf/eth0/arp_filter", true),
            ("net.ipv4.conf.eth1.arp_filter", false),
            ("net.core.somaxconn", true),
            ("net.core.somaxconn2", false),
        ];
        for (key, allowed) in rows {
            let found = parameters(&one(key), "eth0", Some(&patterns));
            assert_eq!(found.is_ok(), allowed, "{key}");
        }
        assert!(super::patterns("(", "eth0").is_err());
    }
}
