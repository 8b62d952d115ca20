//! The rules of the configuration, each a function of the question alone.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::{AclAction, AclRule, Clients, Dns64, Matcher, Rewrite};
use crate::message::kind;
use crate::{Index, Name};

/// Whether a client is answered at all. Before there is a zone nobody knows: it is told so.
pub(crate) fn is_client(
    clients: &Clients,
    own: &BTreeSet<IpAddr>,
    index: Option<&Index>,
    client: IpAddr,
) -> bool {
    let (Clients::Cluster(more), Some(index)) = (clients, index) else { return true };
    // A socket for both families writes IPv4 clients as IPv6.
    let client = client.to_canonical();
    index.is_client(client)
        || client.is_loopback()
        || own.contains(&client)
        || more.iter().any(|range| range.contains(&client))
}

/// What the rules say of who asks what. No rule that fits: it is answered.
pub(crate) fn access(rules: &[AclRule], client: IpAddr, name: &Name, kind: u16) -> AclAction {
    // A socket for both families writes IPv4 clients as IPv6.
    let client = client.to_canonical();
    let fits = |rule: &&AclRule| {
        rule.zones.iter().any(|zone| zone.holds(name))
            && (rule.types.is_empty()
                || rule.types.iter().any(|one| one.0 == kind || one.0 == kind::ANY))
            && (rule.networks.is_empty()
                || rule.networks.iter().any(|network| network.contains(&client)))
    };
    rules.iter().find(fits).map_or(AclAction::Allow, |rule| rule.action)
}

/// The name that a name stands for. `None` when no rule fits, or what it makes is no name.
pub(crate) fn rewritten(rules: &[Rewrite], name: &Name) -> Option<Name> {
    if rules.is_empty() {
        return None;
    }
    let full = name.to_lower().to_string();
    let text = full.trim_end_matches('.');
    let new = rules.iter().find_map(|rule| apply(rule, text, &full))?;
    new.parse::<Name>().ok().map(|name| name.to_lower()).filter(|new| !new.is(name))
}

fn apply(rule: &Rewrite, text: &str, full: &str) -> Option<String> {
    let to = &rule.to;
    match &rule.from {
        Matcher::Exact(from) => (text == from).then(|| to.clone()),
        Matcher::Prefix(from) => text.strip_prefix(from.as_str()).map(|rest| format!("{to}{rest}")),
        Matcher::Suffix(from) => text.strip_suffix(from.as_str()).map(|rest| format!("{rest}{to}")),
        Matcher::Substring(from) => text.contains(from.as_str()).then(|| text.replace(from, to)),
        Matcher::Regex(pattern) => {
            // With its final dot, as CoreDNS shows names to expressions; or without, as people
            // write them.
            let regex = pattern.regex();
            let captures = regex.captures(full).or_else(|| regex.captures(text))?;
            let mut new = to.clone();
            for number in 0..captures.len() {
                let group = captures.get(number).map_or("", |group| group.as_str());
                new = new.replace(&format!("{{{number}}}"), group);
            }
            Some(new)
        }
    }
}

/// The IPv6 address that stands for an IPv4 address (RFC 6052, 2.2).
pub(crate) fn synthesised(dns64: &Dns64, address: Ipv4Addr) -> Ipv6Addr {
    let mut octets = dns64.prefix.network().octets();
    let mut place = usize::from(dns64.prefix.prefix_len() / 8);
    for octet in address.octets() {
        // Bits 64 to 71 stay zero.
        if place == 8 {
            place += 1;
        }
        if let Some(slot) = octets.get_mut(place) {
            *slot = octet;
        }
        place += 1;
    }
    Ipv6Addr::from(octets)
}

/// The name that an address has below `in-addr.arpa` or `ip6.arpa`.
pub(crate) fn reverse_name(address: IpAddr) -> Option<Name> {
    let text = match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(v6) => {
            let nibbles = v6.octets().into_iter().rev().flat_map(|octet| [octet & 15, octet >> 4]);
            nibbles.map(|nibble| format!("{nibble:x}.")).collect::<String>() + "ip6.arpa"
        }
    };
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn config(text: &str) -> Config {
        Config::parse(text).expect("a configuration")
    }

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn names_are_rewritten_by_the_first_rule_that_fits() {
        let rules = config(
            "rewrite:\n\
             - {from: old.example, to: new.example}\n\
             - {type: prefix, from: stage-, to: \"\"}\n\
             - {type: suffix, from: .corp.example, to: .shop.svc.cluster.local}\n\
             - {type: substring, from: legacy, to: modern}\n\
             - {type: regex, from: '^(.*)-(eu|us)\\.example\\.$', to: '{2}.{1}.example'}\n",
        )
        .rewrite;
        for (from, to) in [
            ("OLD.example", Some("new.example.")),
            ("older.example", None),
            ("stage-web.example", Some("web.example.")),
            ("web.corp.example", Some("web.shop.svc.cluster.local.")),
            ("corp.example", None),
            ("a.legacy.example", Some("a.modern.example.")),
            ("web-eu.example", Some("eu.web.example.")),
            ("web-asia.example", None),
        ] {
            let found = rewritten(&rules, &name(from)).map(|name| name.to_string());
            assert_eq!(found.as_deref(), to, "{from}");
        }
    }

    /// zones are compared by labels, so that no name passes for one of another zone.
    #[test]
    fn access_is_decided_by_labels_networks_and_types() {
        let rules = config(
            "acl:\n\
             - {action: allow, networks: [10.240.0.0/12], zones: [secret.example]}\n\
             - {action: block, zones: [secret.example]}\n\
             - {action: filter, types: [AAAA], zones: [v4.example]}\n\
             - {action: drop, networks: [192.0.2.0/24]}\n",
        )
        .acl;
        for (client, asked, kind, action) in [
            ("10.240.0.1", "a.secret.example", kind::A, AclAction::Allow),
            ("::ffff:10.240.0.1", "a.secret.example", kind::A, AclAction::Allow),
            ("10.1.0.1", "a.SECRET.example", kind::A, AclAction::Block),
            ("10.1.0.1", "topsecret.example", kind::A, AclAction::Allow),
            ("10.1.0.1", "x.v4.example", kind::AAAA, AclAction::Filter),
            ("10.1.0.1", "x.v4.example", kind::A, AclAction::Allow),
            ("192.0.2.9", "www.example", kind::A, AclAction::Drop),
        ] {
            let client = client.parse().expect("an address");
            assert_eq!(access(&rules, client, &name(asked), kind), action, "{client} {asked}");
        }
        // The defence off, that is by text: another zone's name passes for one of this.
        assert!("topsecret.example".ends_with("secret.example"));
    }

    #[test]
    fn ipv6_addresses_are_made_as_rfc_6052_shows() {
        let address = Ipv4Addr::new(192, 0, 2, 33);
        for (prefix, expected) in [
            ("2001:db8::/32", "2001:db8:c000:221::"),
            ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
            ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
            ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
            ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100:0"),
            ("64:ff9b::/96", "64:ff9b::c000:221"),
        ] {
            let dns64 = Dns64 { prefix: prefix.parse().expect("a prefix"), translate_all: false };
            assert_eq!(synthesised(&dns64, address).to_string(), expected);
        }
    }

    #[test]
    fn reverse_names_are_written_backwards() {
        let reverse = |text: &str| reverse_name(text.parse().expect("an address"));
        assert_eq!(reverse("192.0.2.1"), Some(name("1.2.0.192.in-addr.arpa")));
        let v6 = reverse("2001:db8::1").expect("a name").to_string();
        assert!(v6.starts_with("1.0.0.0.") && v6.ends_with(".8.b.d.0.1.0.0.2.ip6.arpa."), "{v6}");
    }
}
