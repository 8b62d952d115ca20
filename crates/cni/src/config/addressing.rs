//! The key `ipam`: who gives the pod its addresses, and from where.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipam::{Range, RangeSet, Withheld, allocator};
use ipnet::IpNet;
use model::layout;
use serde::Deserialize;
use serde_json::Value;

use super::{Dns, Route, absolute, invalid};
use crate::fault::{Fault, IO_FAILURE};

/// Values of `ipam.type` that mean the allocator that is built in: both have one directory
/// layout, so that either program can follow the other.
const BUILT_IN: [&str; 2] = [layout::CNI_PLUGIN, "host-local"];
/// Bytes of a resolver's configuration that are read at most.
const RESOLV_CONF_BYTES_MAX: u64 = 64 * 1024;

/// Who gives the pod its addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Addressing {
    /// Nobody: the interface has none, or another plugin made it.
    #[default]
    None,
    /// This program.
    BuiltIn(Box<BuiltIn>),
    /// Another IPAM plugin, of this name in `CNI_PATH`.
    Delegated(String),
}

/// What the built-in allocator is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuiltIn {
    /// Where pods get addresses from, one of each set.
    pub ranges: Vec<RangeSet>,
    /// What is kept back.
    pub withheld: Withheld,
    /// Routes inside the pod.
    pub routes: Vec<Route>,
    /// Where reservations are kept, a directory a network.
    pub data_directory: PathBuf,
    /// A file with the resolver settings for pods.
    pub resolv_conf: Option<ResolvConf>,
    /// The agent's socket, where it knows better which addresses a pod is to have.
    pub agent_socket: Option<PathBuf>,
}

/// A file like `/etc/resolv.conf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvConf(pub PathBuf);

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    #[serde(rename = "type")]
    kind: Option<String>,
    data_dir: Option<PathBuf>,
    ranges: Vec<RangeSet>,
    routes: Vec<Route>,
    #[serde(flatten)]
    withheld: Withheld,
    // One range beside `ranges`, as old configurations write it.
    subnet: Option<IpNet>,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
    resolv_conf: Option<PathBuf>,
    agent_socket: Option<PathBuf>,
}

impl Addressing {
    /// Reads and checks the value of `ipam`.
    ///
    /// # Errors
    /// Code 7.
    pub(super) fn parse(value: &Value) -> Result<Self, Fault> {
        if value.is_null() {
            return Ok(Self::None);
        }
        // Only the delegate knows its own keys.
        let named = value.get("type").and_then(Value::as_str).filter(|kind| !kind.is_empty());
        if let Some(kind) = named.filter(|kind| !BUILT_IN.contains(kind)) {
            return delegate(kind);
        }
        let document: Document = Document::deserialize(value)
            .map_err(|error| invalid("ipam cannot be understood", error))?;
        let ranges = document.range_sets();
        if ranges.is_empty() {
            return match document.kind.filter(|kind| !kind.is_empty()) {
                None => Ok(Self::None),
                Some(_) => Err(invalid("ipam names no ranges", "add ranges, or remove ipam")),
            };
        }
        allocator::check(&ranges)
            .map_err(|error| invalid("the ranges of ipam cannot work", error))?;
        Ok(Self::BuiltIn(Box::new(BuiltIn {
            ranges,
            withheld: document.withheld,
            routes: document.routes,
            data_directory: absolute("ipam.dataDir", document.data_dir)?
                .unwrap_or_else(|| layout::IPAM_DIRECTORY.into()),
            resolv_conf: absolute("ipam.resolvConf", document.resolv_conf)?.map(ResolvConf),
            agent_socket: absolute("ipam.agentSocket", document.agent_socket)?,
        })))
    }
}

impl Document {
    fn range_sets(&self) -> Vec<RangeSet> {
        let beside = self.subnet.map(|subnet| {
            vec![Range {
                subnet,
                range_start: self.range_start,
                range_end: self.range_end,
                gateway: self.gateway,
            }]
        });
        beside.into_iter().chain(self.ranges.iter().cloned()).collect()
    }
}

fn delegate(kind: &str) -> Result<Addressing, Fault> {
    if kind.contains('/') || kind == ".." || kind == "." {
        return Err(invalid(
            &format!("invalid ipam.type: {kind:?}"),
            "it is the name of a program in CNI_PATH, without a directory",
        ));
    }
    Ok(Addressing::Delegated(kind.to_owned()))
}

impl ResolvConf {
    /// Reads the settings (resolv.conf(5)); of lines that repeat, the last holds, but all servers.
    ///
    /// # Errors
    /// Code 5 when the file cannot be read.
    pub fn read(&self) -> Result<Dns, Fault> {
        let text = read_bounded(&self.0).map_err(|error| {
            let message = format!("cannot read ipam.resolvConf {}", self.0.display());
            Fault::new(IO_FAILURE, message, error)
        })?;
        let mut dns = Dns::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let key = words.next().unwrap_or_default();
            let values = words.take_while(|word| !word.starts_with(['#', ';'])).map(str::to_owned);
            match key {
                "nameserver" => dns.nameservers.extend(values.take(1)),
                "domain" => dns.domain = values.take(1).collect(),
                "search" => dns.search = values.collect(),
                "options" => dns.options.extend(values),
                _ => {}
            }
        }
        Ok(dns)
    }
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(RESOLV_CONF_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// HL `resolvConf`.
    #[test]
    fn resolver_files_are_read_as_the_resolver_reads_them() {
        let path = std::env::temp_dir().join(format!("flatnet-resolv-{}", std::process::id()));
        let text = "# by hand\nnameserver 10.96.0.10 # first\nnameserver fd00::a\n\
                    domain old\nsearch a.example b.example\n; end\noptions ndots:5\nbroken\n";
        std::fs::write(&path, text).expect("written");
        let dns = ResolvConf(path.clone()).read();
        std::fs::remove_file(&path).expect("removed");
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let expected = Dns {
            nameservers: words(&["10.96.0.10", "fd00::a"]),
            domain: "old".into(),
            search: words(&["a.example", "b.example"]),
            options: words(&["ndots:5"]),
        };
        assert_eq!(dns, Ok(expected));
        assert_eq!(ResolvConf(path).read().map_err(|fault| fault.code), Err(IO_FAILURE));
    }
}
