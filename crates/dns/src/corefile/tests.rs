use super::*;
use crate::Config;
use crate::config::{Policy, RefreshMode};

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
    assert_eq!(imported.needless.len(), 4, "{:?}", imported.needless);
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

#[test]
fn what_is_no_corefile_is_refused_by_line() {
    for (text, part) in [
        (". {\n forward . 192.0.2.1\n", "`}` is missing"),
        ("}\n", "line 1"),
        (". {\n log \"x\n}\n", "line 2"),
        ("a {\n b {\n c {\n d {\n e {\n", "line 5"),
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
