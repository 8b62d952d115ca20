use super::*;
use crate::Config;
use crate::config::{Clients, Kubernetes, Policy, RefreshMode};
use model::selector::LabelSelector;

/// The Corefile that kubeadm writes.
const USUAL: &str = r#"
.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
    }
    loop
    reload
    loadbalance
}
corp.example:53 { # a stub domain
    forward . 192.0.2.1 192.0.2.2:5353 {
        policy sequential
        health_check 1s
    }
    cache 10
}
"#;

#[test]
fn the_usual_corefile_is_carried_over() {
    let imported = import(USUAL).expect("a Corefile");
    let config = Config::parse(&imported.yaml).unwrap_or_else(|e| panic!("{e}\n{}", imported.yaml));
    assert_eq!(config.kubernetes.ttl.seconds(), 30);
    assert_eq!(config.kubernetes.fallthrough.len(), 2);
    assert_eq!(config.forward.len(), 2);
    assert_eq!(config.forward[0].max_concurrent, 1000);
    assert_eq!(config.forward[1].policy, Policy::Sequential);
    assert_eq!(config.forward[1].to.len(), 2);
    assert_eq!(config.cache.success.ttl.seconds(), 30);
    assert_eq!(config.prometheus.port(), 9153);
    assert_eq!(
        imported.lost,
        [
            "line 18: disable success cluster.local: `cache` has no such option here",
            "line 29: cache 10: there is one cache for all zones",
        ]
    );
    assert_eq!(imported.needless.len(), 5, "{:?}", imported.needless);
    assert_eq!(imported.needless.last().map(String::as_str), Some(CLIENTS));
    assert_eq!(config.clients, Clients::default(), "X-26: only whoever writes it answers others");
}

#[test]
fn every_plugin_that_has_a_place_is_carried_over() {
    let imported = import(
        r#"
        example.org:1053, .:53 {
            log { class denial }
            autopath @kubernetes
            hosts {
                192.0.2.9 box.example other.example
                2001:db8::9 box.example
                ttl 60
                fallthrough
            }
            rewrite name exact old.example new.example
            rewrite stop {
                name regex (.*)\.corp\.example {1}.example answer auto
            }
            rewrite name suffix .a.example .b.example answer auto
            template IN A nip.example {
                match "^ip-(?P<a>[0-9]+)[.]nip[.]example[.]$"
                answer "{{ .Name }} 60 IN A 192.0.2.{{ .Group.a }}"
                fallthrough
            }
            dns64 { prefix 64:ff9b::/96 
                translate_all
            }
            acl example.org {
                allow type A AAAA net 10.0.0.0/8 192.0.2.1
                block
            }
            cache {
                success 5000 600
                denial 500
                prefetch 5 2m 20%
                serve_stale 2h verify
            }
            forward . tls://192.0.2.1 { tls_servername dns.example
            }
            k8s_external example.org
        }
        "#,
    )
    .expect("a Corefile");
    let config = Config::parse(&imported.yaml).unwrap_or_else(|e| panic!("{e}\n{}", imported.yaml));
    assert_eq!(config.hosts.entries.len(), 2);
    assert_eq!(config.rewrite.len(), 3);
    assert_eq!(config.template.len(), 1);
    assert!(config.dns64.is_some_and(|dns64| dns64.translate_all));
    assert_eq!(config.acl.len(), 2);
    assert_eq!((config.acl[0].types.len(), config.acl[0].networks.len()), (2, 2));
    assert_eq!(config.cache.success.capacity, 5000);
    assert_eq!(config.cache.prefetch.amount, 5);
    assert_eq!(config.cache.serve_stale.refresh_mode, RefreshMode::Verify);
    assert_eq!(config.forward[0].zones.len(), 2);
    assert_eq!(imported.lost.len(), 1, "{:?}", imported.lost);
    assert!(imported.lost[0].contains("k8s_external"));
}

/// CoreDNS's `tls [CERT KEY] [CA]` of `forward`.
#[test]
fn certificates_of_servers_over_tls_are_carried_over() {
    let identity = Some(("/us.pem".to_owned(), "/us.key".to_owned()));
    let ca = Some("/ca.pem".to_owned());
    for (option, to, expected, lost) in [
        ("tls /ca.pem", "tls://192.0.2.1", (ca.clone(), None), ""),
        ("tls /us.pem /us.key", "tls://192.0.2.1", (None, identity.clone()), ""),
        ("tls /us.pem /us.key /ca.pem", "tls://192.0.2.1", (ca.clone(), identity.clone()), ""),
        ("tls", "tls://192.0.2.1", (None, None), ""),
        ("tls /ca.pem", "192.0.2.1", (None, None), ""),
        ("tls /ca.pem", "https://192.0.2.1", (ca.clone(), None), ""),
        ("tls ca.pem", "tls://192.0.2.1", (None, None), "from / on"),
        ("tls /ca.pem", "tls://192.0.2.1 192.0.2.2", (None, None), "all servers"),
        ("tls /a /b /c /d", "tls://192.0.2.1", (None, None), "more files"),
    ] {
        let imported = import(&format!(". {{\n forward . {to} {{\n {option}\n }}\n}}\n"));
        let imported = imported.expect("a Corefile");
        let config = Config::parse(&imported.yaml).unwrap_or_else(|e| panic!("{option}: {e}"));
        let files = &config.forward[0].tls;
        assert_eq!((files.ca.clone(), files.identity.clone()), expected, "{option} for {to}");
        let said = imported.lost.join("\n");
        assert_eq!(said.is_empty(), lost.is_empty(), "{option} for {to}: {said}");
        assert!(said.contains(lost), "{option} for {to}: {said}");
    }
}

/// Options by what becomes of them: nothing is left out without a word.
#[test]
fn options_without_a_place_are_needless_or_lost() {
    for (block, option, is_lost) in [
        ("kubernetes cluster.local", "ignore empty_service", false),
        ("kubernetes cluster.local", "endpoint https://192.0.2.1", false),
        ("kubernetes cluster.local", "kubeconfig /etc/kubeconfig context", false),
        ("kubernetes cluster.local", "tls /cert /key /ca", false),
        ("kubernetes cluster.local", "startup_timeout 5s", false),
        ("kubernetes cluster.local", "ignore what", true),
        ("kubernetes cluster.local", "multicluster clusterset.local", true),
        ("forward . 192.0.2.1", "failover SERVFAIL REFUSED", false),
        ("forward . 192.0.2.1", "failover NXDOMAIN", true),
        ("forward . 192.0.2.1", "expire 10s", false),
        ("forward . 192.0.2.1", "next NXDOMAIN", true),
        ("cache", "servfail 5s", true),
        ("cache", "keepttl", true),
    ] {
        let imported = import(&format!(". {{\n {block} {{\n {option}\n }}\n}}\n"));
        let imported = imported.expect("a Corefile");
        let counts = (imported.lost.len(), imported.needless.len());
        // Beside the one line about everybody's clients.
        let expected = if is_lost { (1, 1) } else { (0, 2) };
        assert_eq!(counts, expected, "{block}: {option}: {imported:?}");
        Config::parse(&imported.yaml).unwrap_or_else(|e| panic!("{block}: {option}: {e}"));
    }
}

/// Which objects have names.
#[test]
fn choices_of_names_are_carried_over() {
    let labels = |text: &str| Some(text.parse::<LabelSelector>().expect("a selector"));
    for (option, check) in [
        ("namespaces shop bank", (&|it: &Kubernetes| it.namespaces.len() == 2) as &dyn Fn(&_) -> _),
        ("namespace_labels team in (sales, money),!old", &|it: &Kubernetes| {
            it.namespace_labels == labels("team in (sales, money),!old")
        }),
        ("labels app=web,tier!=db", &|it: &Kubernetes| it.labels == labels("app=web,tier!=db")),
        ("noendpoints", &|it: &Kubernetes| it.noendpoints && !it.endpoint_pod_names),
        ("endpoint_pod_names", &|it: &Kubernetes| it.endpoint_pod_names && !it.noendpoints),
    ] {
        let text = format!(". {{\n kubernetes cluster.local {{\n {option}\n }}\n}}\n");
        let imported = import(&text).expect("a Corefile");
        assert_eq!(imported.lost, Vec::<String>::new(), "{option}");
        let config = Config::parse(&imported.yaml).expect(option);
        assert!(check(&config.kubernetes), "{option}: {}", imported.yaml);
    }
    let text = ". {\n kubernetes cluster.local clusterset.local {\n multicluster clusterset.local\n }\n}\n";
    let imported = import(text).expect("a Corefile");
    assert!(imported.lost[0].contains("ServiceImport"), "{:?}", imported.lost);
}

/// Servers in forms that CoreDNS has and we have not.
#[test]
fn servers_are_carried_over_where_they_are_addresses() {
    for (to, expected, name, lost) in [
        ("tls://192.0.2.1%dns.example", "tls://192.0.2.1:853", Some("dns.example"), 0),
        ("tls://192.0.2.1%dns.example:8853", "tls://192.0.2.1:8853", Some("dns.example"), 0),
        (
            "tls://192.0.2.1%a.example tls://192.0.2.2%a.example",
            "tls://192.0.2.1:853",
            Some("a.example"),
            0,
        ),
        (
            "tls://192.0.2.1%a.example tls://192.0.2.2%b.example",
            "tls://192.0.2.1:853",
            Some("a.example"),
            1,
        ),
        ("192.0.2.1 dns.corp.example", "192.0.2.1:53", None, 1),
        ("https://192.0.2.1", "https://192.0.2.1:443/dns-query", None, 0),
        ("dns://192.0.2.1", "192.0.2.1:53", None, 0),
    ] {
        let imported = import(&format!(". {{\n forward . {to}\n}}\n")).expect("a Corefile");
        let config = Config::parse(&imported.yaml).unwrap_or_else(|e| panic!("{to}: {e}"));
        let rule = &config.forward[0];
        let Target::Server(server) = &rule.to[0] else { panic!("{to}: no server") };
        assert_eq!(server.to_string(), expected, "{to}");
        assert_eq!(rule.tls_servername.as_deref(), name, "{to}");
        assert_eq!(imported.lost.len(), lost, "{to}: {:?}", imported.lost);
    }
    let imported = import(". {\n forward . dns.corp.example\n}\n").expect("a Corefile");
    assert_eq!(imported.lost.len(), 2, "{:?}", imported.lost);
    assert!(Config::parse(&imported.yaml).expect("a configuration").forward.is_empty());
}

#[test]
fn what_is_no_corefile_is_refused_by_line() {
    for (text, part) in [
        (". {\n forward . 192.0.2.1\n", "`}` is missing"),
        ("}\n", "line 1"),
        (". {\n log \"x\n}\n", "line 2"),
        ("a {\n b {\n c {\n d {\n e {\n", "line 5"),
        (". {\n rewrite name a.example b\u{1}.example\n}\n", "line 2: control characters"),
    ] {
        let error = import(text).expect_err(text);
        assert!(error.contains(part), "{error}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_importer_panic(text in "[a-z.:{}\"# \n0-9/]{0,300}") {
        let _ = import(&text);
    }
}
