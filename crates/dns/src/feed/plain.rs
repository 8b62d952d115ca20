//! What a worker tells its agent, on the connection of the feed: what of the cluster shall have names,
//! and how it answers plain questions for addresses, so that the kernel can in its place
//! (`bpf/names.c`).

use std::collections::BTreeSet;
use std::net::IpAddr;

use plan::zone::Exposure;
use serde::{Deserialize, Serialize};

use super::{FeedError, framed};
use crate::config::{Domain, LogClass, Matcher, Rewrite};
use crate::{Config, NEGATIVE_TTL_S, Name};

/// The largest message of a worker, in octets without its length.
pub const MAX_SAID_OCTETS: usize = 64 << 10;

/// How a worker answers questions for the addresses of the cluster's names. It says so behind each
/// snapshot of the zone, and whenever its configuration becomes another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plain {
    /// The addresses that it is asked at.
    pub servers: BTreeSet<IpAddr>,
    /// How long clients may keep an address, in seconds.
    pub ttl_s: u32,
    /// How long clients may keep that there is none, in seconds.
    pub negative_ttl_s: u32,
    /// The option of the configuration that may be about the cluster's names; then the worker
    /// alone answers.
    pub ruled_by: Option<String>,
    /// What of the cluster shall have names.
    #[serde(default)]
    pub exposure: Exposure,
}

impl Plain {
    /// What a worker says that serves a domain by a configuration.
    pub fn new(config: &Config, domain: &str, servers: BTreeSet<IpAddr>) -> Self {
        let ruled_by = domain.parse().map_or(Some("kubernetes"), |name| ruled_by(config, &name));
        Self {
            servers,
            ttl_s: config.kubernetes.ttl.seconds(),
            negative_ttl_s: NEGATIVE_TTL_S,
            ruled_by: ruled_by.map(str::to_owned),
            exposure: config.kubernetes.exposure(),
        }
    }

    /// The octets of the message: its length as in frames of the zone, and JSON.
    ///
    /// # Errors
    /// When there are too many.
    pub fn encode(&self) -> Result<Vec<u8>, FeedError> {
        framed(self, MAX_SAID_OCTETS)
    }

    /// Reads a message without its length.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(json: &[u8]) -> Result<Self, FeedError> {
        Ok(serde_json::from_slice(json)?)
    }
}

/// The first option whose rules could be about a name of the domain that exists. What is only about
/// names of others, or about absence (`fallthrough`, `dns64`), is none.
fn ruled_by(config: &Config, domain: &Name) -> Option<&'static str> {
    let is_below = |name: &Name| Domain::new(domain).holds(name);
    let meets = |zone: &Domain| zone.holds(domain) || is_below(zone.name());
    let rows = [
        ("acl", config.acl.iter().any(|rule| rule.zones.iter().any(meets))),
        ("rewrite", config.rewrite.iter().any(|rule| may_match(rule, domain))),
        ("hosts", config.hosts.entries.keys().any(|host| is_below(host.name()))),
        ("template", config.template.iter().any(|rule| rule.zones.iter().any(meets))),
        ("log", config.log == LogClass::All),
    ];
    rows.into_iter().find_map(|(option, is_so)| is_so.then_some(option))
}

/// Whether a rewrite may be about a name of a domain; of those that look at a name's beginning, or
/// inside it, nobody can say.
fn may_match(rule: &Rewrite, domain: &Name) -> bool {
    let domain = domain.to_lower().to_string();
    let domain = domain.trim_end_matches('.');
    match &rule.from {
        Matcher::Exact(text) => text.ends_with(domain),
        Matcher::Suffix(text) => text.ends_with(domain) || domain.ends_with(text.as_str()),
        Matcher::Prefix(_) | Matcher::Substring(_) | Matcher::Regex(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_rules_when_it_may_be_about_a_name_of_the_cluster() {
        for (text, expected) in [
            ("", None),
            (
                "{kubernetes: {ttl: 30s, fallthrough: [cluster.local]}, dns64: {}, autopath: false}",
                None,
            ),
            ("log: denial", None),
            ("log: all", Some("log")),
            ("acl: [{action: block}]", Some("acl")),
            ("acl: [{action: block, zones: [lab.svc.cluster.local]}]", Some("acl")),
            ("acl: [{action: block, zones: [local]}]", Some("acl")),
            ("acl: [{action: block, zones: [other.local]}]", None),
            ("hosts: {entries: {web.lab.svc.cluster.local: [192.0.2.1]}}", Some("hosts")),
            ("hosts: {entries: {registry.example: [192.0.2.1]}}", None),
            ("rewrite: [{from: old.example, to: web.lab.svc.cluster.local}]", None),
            ("rewrite: [{from: web.lab.svc.Cluster.Local, to: new.example}]", Some("rewrite")),
            ("rewrite: [{type: suffix, from: .corp.example, to: .lab.svc.cluster.local}]", None),
            ("rewrite: [{type: suffix, from: .local, to: .example}]", Some("rewrite")),
            ("rewrite: [{type: suffix, from: .svc.cluster.local, to: .example}]", Some("rewrite")),
            ("rewrite: [{type: prefix, from: stage-, to: ''}]", Some("rewrite")),
            ("rewrite: [{type: regex, from: '^web', to: x}]", Some("rewrite")),
            ("template: [{type: A, zones: [nip.example]}]", None),
            ("template: [{type: A}]", Some("template")),
        ] {
            let config = Config::parse(text).expect(text);
            let plain = Plain::new(&config, "Cluster.local", BTreeSet::new());
            assert_eq!(plain.ruled_by.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_said_comes_as_it_was_meant() {
        let servers = ["10.96.0.10", "fd00::a"].map(|text| text.parse().expect("an address"));
        let config = Config::parse("{kubernetes: {ttl: 30s}, log: all}").expect("a configuration");
        let plain = Plain::new(&config, "cluster.local", servers.into());
        assert_eq!(plain.ttl_s, 30);
        let octets = plain.encode().expect("it fits");
        let (length, json) = octets.split_first_chunk().expect("a length");
        assert_eq!(u32::from_le_bytes(*length) as usize, json.len());
        assert_eq!(Plain::parse(json).expect("a message"), plain);
        assert!(Plain::parse(b"{").is_err());
    }
}
