//! The files that tell a container its names: /etc/hosts and /etc/resolv.conf. Pure.

use std::net::IpAddr;

use crate::pod::Pod;

/// Most nameservers that a resolv.conf may have (kubelet's check).
const MAX_NAMESERVERS: usize = 3;
/// Most domains of a search path, and characters of all of them in a line (kubelet's limits since
/// KEP-2595). What comes behind is left out, as kubelet does.
const MAX_SEARCH_DOMAINS: usize = 32;
const MAX_SEARCH_CHARACTERS: usize = 2048;

/// What a pod's resolv.conf is made from.
pub struct Resolver<'a> {
    /// Addresses of cluster DNS.
    pub cluster_dns: &'a [IpAddr],
    /// The cluster's domain.
    pub cluster_domain: &'a str,
    /// The node's own resolv.conf.
    pub node: &'a str,
}

/// `/etc/hosts`. Pods of the node's network get the node's, others one with their own address.
pub fn hosts(pod: &Pod, addresses: &[IpAddr], domain: &str, node: &str) -> String {
    let mut text = String::new();
    if pod.spec.host_network {
        text.push_str("# Kubernetes-managed hosts file (host network).\n");
        text.push_str(node);
        if !text.ends_with('\n') {
            text.push('\n');
        }
    } else {
        text.push_str("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n");
        text.push_str("::1\tlocalhost ip6-localhost ip6-loopback\n");
        text.push_str("fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\n");
        text.push_str("fe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n");
        let full = pod.full_name(domain).map(|name| format!("{name}\t")).unwrap_or_default();
        let hostname = pod.short_name();
        for address in addresses {
            text.push_str(&format!("{address}\t{full}{hostname}\n"));
        }
    }
    if !pod.spec.host_aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in &pod.spec.host_aliases {
            text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.join("\t")));
        }
    }
    text
}

/// `/etc/resolv.conf` by `dnsPolicy` and `dnsConfig`.
pub fn resolv_conf(pod: &Pod, resolver: &Resolver<'_>) -> String {
    let cluster = match pod.spec.dns_policy.as_str() {
        "None" => None,
        "Default" => Some(false),
        "ClusterFirstWithHostNet" => Some(true),
        _ => Some(!pod.spec.host_network),
    };
    let (mut nameservers, mut searches, mut options) = (Vec::new(), Vec::new(), Vec::new());
    match cluster {
        None => {}
        Some(true) => {
            let (namespace, domain) = (&pod.metadata.namespace, resolver.cluster_domain);
            nameservers.extend(resolver.cluster_dns.iter().map(IpAddr::to_string));
            searches.extend([
                format!("{namespace}.svc.{domain}"),
                format!("svc.{domain}"),
                domain.to_owned(),
            ]);
            options.push("ndots:5".to_owned());
        }
        Some(false) => read_node(resolver.node, &mut nameservers, &mut searches, &mut options),
    }
    let config = &pod.spec.dns_config;
    nameservers.extend(config.nameservers.iter().cloned());
    searches.extend(config.searches.iter().cloned());
    for option in &config.options {
        let text = match &option.value {
            Some(value) => format!("{}:{value}", option.name),
            None => option.name.clone(),
        };
        // The pod's own value of an option replaces the policy's.
        options.retain(|known: &String| known.split(':').next() != Some(option.name.as_str()));
        options.push(text);
    }
    let mut text = String::new();
    let searches = within_limits(without_repeats(searches));
    if !searches.is_empty() {
        text.push_str(&format!("search {}\n", searches.join(" ")));
    }
    for nameserver in without_repeats(nameservers).iter().take(MAX_NAMESERVERS) {
        text.push_str(&format!("nameserver {nameserver}\n"));
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

fn read_node(
    text: &str,
    nameservers: &mut Vec<String>,
    searches: &mut Vec<String>,
    options: &mut Vec<String>,
) {
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => nameservers.extend(words.next()),
            Some("search" | "domain") => *searches = words.collect(),
            Some("options") => options.extend(words),
            _ => {}
        }
    }
}

fn within_limits(mut searches: Vec<String>) -> Vec<String> {
    searches.truncate(MAX_SEARCH_DOMAINS);
    while searches.join(" ").len() > MAX_SEARCH_CHARACTERS {
        searches.pop();
    }
    searches
}

fn without_repeats(texts: Vec<String>) -> Vec<String> {
    let mut unique: Vec<String> = Vec::new();
    for text in texts {
        if !unique.contains(&text) {
            unique.push(text);
        }
    }
    unique
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        let metadata = json!({"name": "web", "namespace": "shop"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("a pod")
    }

    #[test]
    fn resolv_conf_follows_policy_and_config() {
        let dns: Vec<IpAddr> = vec!["10.96.0.10".parse().expect("an address")];
        let node = "# by hand\nnameserver 192.0.2.1\nsearch lan\noptions edns0\n";
        let resolver = Resolver { cluster_dns: &dns, cluster_domain: "cluster.local", node };
        let cluster = "search shop.svc.cluster.local svc.cluster.local cluster.local\n\
                       nameserver 10.96.0.10\noptions ndots:5\n";
        let of_node = "search lan\nnameserver 192.0.2.1\noptions edns0\n";
        let config = json!({"nameservers": ["192.0.2.9"], "searches": ["x.test"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "rotate"}]});
        let cases = [
            (json!({}), cluster),
            (json!({"dnsPolicy": "ClusterFirst"}), cluster),
            (json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}), of_node),
            (json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}), cluster),
            (json!({"dnsPolicy": "Default"}), of_node),
            (
                json!({"dnsPolicy": "None", "dnsConfig": config}),
                "search x.test\nnameserver 192.0.2.9\noptions ndots:2 rotate\n",
            ),
            (
                json!({"dnsConfig": config}),
                "search shop.svc.cluster.local svc.cluster.local cluster.local x.test\n\
                 nameserver 10.96.0.10\nnameserver 192.0.2.9\noptions ndots:2 rotate\n",
            ),
        ];
        for (spec, expected) in cases {
            assert_eq!(resolv_conf(&pod(spec.clone()), &resolver), expected, "{spec}");
        }
    }

    /// D-08: what is too much goes from the end, whole domains at a time.
    #[test]
    fn search_paths_are_kept_within_kubelets_limits() {
        let resolver = Resolver { cluster_dns: &[], cluster_domain: "cluster.local", node: "" };
        let searches = |domains: &[String]| {
            let spec = json!({"dnsPolicy": "None", "dnsConfig": {"searches": domains}});
            let text = resolv_conf(&pod(spec), &resolver);
            let line = text.lines().next().and_then(|line| line.strip_prefix("search "));
            line.unwrap_or_default().split(' ').map(str::to_owned).collect::<Vec<_>>()
        };
        let short: Vec<String> = (0..40).map(|number| format!("d{number}.test")).collect();
        assert_eq!(searches(&short), short[..32]);
        // With the blanks between them, eight domains of 255 characters are 2,047, nine are 2,303.
        let long: Vec<String> =
            (0..12).map(|number| format!("{number:02}{}.test", "x".repeat(248))).collect();
        assert!(long.iter().all(|domain| domain.len() == 255));
        assert_eq!(searches(&long), long[..8]);
        let exact = [&long[..7], &["y".repeat(256)]].concat();
        assert_eq!(searches(&exact), exact, "2,048 characters");
        let over = [&long[..7], &["y".repeat(257)]].concat();
        assert_eq!(searches(&over), long[..7], "2,049 characters");
    }

    #[test]
    fn processes_see_the_pods_name_its_whole_name_or_the_nodes() {
        let name = |spec| pod(spec).hostname("node1", "c.l");
        let placed =
            |full: bool| json!({"hostname": "db-0", "subdomain": "db", "setHostnameAsFQDN": full});
        assert_eq!(name(placed(false)), "db-0");
        assert_eq!(name(placed(true)), "db-0.db.shop.svc.c.l");
        let without = json!({"hostname": "db-0", "setHostnameAsFQDN": true});
        assert_eq!(name(without), "db-0", "no subdomain, no other name");
        assert_eq!(name(json!({"hostname": "db-0", "hostNetwork": true})), "node1");
    }

    #[test]
    fn hosts_name_the_pod_and_its_aliases() {
        let address: Vec<IpAddr> = vec!["10.244.1.5".parse().expect("an address")];
        let text = hosts(
            &pod(json!({"hostname": "db-0", "subdomain": "db",
            "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["a", "b"]}]})),
            &address,
            "c.l",
            "",
        );
        assert!(text.contains("10.244.1.5\tdb-0.db.shop.svc.c.l\tdb-0\n"), "{text}");
        assert!(text.ends_with("# Entries added by HostAliases.\n192.0.2.7\ta\tb\n"), "{text}");
        let text = hosts(&pod(json!({"hostNetwork": true})), &address, "c.l", "127.0.0.1 node");
        assert_eq!(text, "# Kubernetes-managed hosts file (host network).\n127.0.0.1 node\n");
    }
}
