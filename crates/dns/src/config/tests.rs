use super::*;
use crate::Name;

#[test]
fn an_empty_document_has_the_defaults() {
    for text in ["", "{}", "# nothing\n"] {
        let config = Config::parse(text).expect("a configuration");
        assert!(config.forward.is_empty() && config.autopath && config.detect_loops, "{text:?}");
        assert_eq!(config.cache.success.ttl, Duration::from_ms(3_600_000));
        assert_eq!(config.rate_limit.queries_per_second, 1000);
        assert_eq!(config.clients, Clients::Cluster(vec![]));
    }
}

#[test]
fn every_option_is_read() {
    let config = Config::parse(include_str!("every-option.yaml")).expect("a configuration");
    assert_eq!(config.kubernetes.ttl.seconds(), 30);
    let exposure = config.kubernetes.exposure();
    assert_eq!(exposure.namespaces, Namespaces::Named(["bank".into(), "shop".into()].into()));
    assert_eq!(exposure.labels, "tier in (front, back)".parse().expect("a selector"));
    assert!(exposure.without_endpoints && exposure.endpoint_pod_names);
    assert_eq!(config.forward.len(), 3);
    assert_eq!(config.forward[0].policy, Policy::RoundRobin);
    assert!(
        matches!(&config.forward[1].to[0], Target::Server(Server { carrier: Carrier::Tls(_), address }) if address.port() == 853)
    );
    let files = &config.forward[1].tls;
    assert_eq!(files.ca.as_deref(), Some("/etc/flatnet/ca.pem"));
    let identity = ("/etc/flatnet/us.pem".to_owned(), "/etc/flatnet/us.key".to_owned());
    assert_eq!(files.identity, Some(identity));
    assert_eq!(config.forward[2].tls, TlsFiles::default());
    assert_eq!(config.cache.prefetch.percentage, 20);
    assert_eq!(config.cache.serve_stale.refresh_mode, RefreshMode::Immediate);
    assert_eq!(config.hosts.entries.len(), 1);
    assert_eq!(config.rewrite.len(), 5);
    assert_eq!(config.template.len(), 2);
    assert!(config.dns64.is_some_and(|dns64| dns64.translate_all));
    assert_eq!(config.acl.len(), 4);
    assert!(matches!(&config.clients, Clients::Cluster(ranges) if ranges.len() == 2));
    assert_eq!(config.log, LogClass::Denial);
    assert!(!config.errors && !config.detect_loops && !config.autopath);
    assert_eq!(config.prometheus.port(), 9253);
}

/// Issue 5, item 4: errors name the line and the field.
#[test]
fn errors_name_field_and_line() {
    for (text, parts) in [
        ("forwards: []\n", &["forwards", "line 1"] as &[&str]),
        ("cache:\n  succes: {ttl: 5s}\n", &["cache", "succes", "line 2"]),
        (
            "forward:\n- to: [9.9.9.9]\n- to: [dns.example]\n",
            &["forward[1].to", "dns.example", "line 3"],
        ),
        ("forward:\n- to: []\n", &["forward[0]", "`to` needs one to 15 servers", "line 2"]),
        (
            "forward:\n- to: [9.9.9.9]\n  policy: fast\n",
            &["forward[0].policy", "round_robin", "line 3"],
        ),
        (
            "forward:\n- to: [9.9.9.9]\n  health_check: soon\n",
            &["health_check", "no duration", "line 3"],
        ),
        (
            "forward:\n- to: ['tls://9.9.9.9']\n  tls: {ca: ca.pem}\n",
            &["forward[0].tls.ca", "ca.pem", "from / on", "line 3"],
        ),
        (
            "forward:\n- to: ['tls://9.9.9.9']\n  tls: {cert: /us.pem}\n",
            &["forward[0]", "`tls`", "`cert` and `key`", "line 2"],
        ),
        (
            "forward:\n- to: ['tls://9.9.9.9']\n  tls: {issuer: /ca.pem}\n",
            &["forward[0].tls", "issuer", "line 3"],
        ),
        (
            "forward:\n- to: [9.9.9.9]\n- to: ['tls://9.9.9.9', 9.9.9.9]\n  tls: {ca: /ca.pem}\n",
            &["forward", "`to`: 9.9.9.9:53 would be", "tls://", "line 2"],
        ),
        (
            "rewrite:\n- {from: a, to: b}\n- {type: regex, from: '(', to: x}\n",
            &["rewrite", "expression", "line 3"],
        ),
        ("rewrite:\n- {from: a, too: b}\n", &["rewrite[0]", "too", "line 2"]),
        (
            "template:\n- {type: A, answer: ['{{ .Nme }} 60 IN A 192.0.2.1']}\n",
            &["template[0].answer", ".Nme", "line 2"],
        ),
        (
            "template:\n- {type: A, answer: ['x 60 IN NS y']}\n",
            &["template[0].answer", "type is none of", "line 2"],
        ),
        ("dns64:\n  prefix: 64:ff9b::/90\n", &["dns64", "`prefix`", "96 bits", "line 2"]),
        ("acl:\n- {action: allow, networks: [10.0.0.0/33]}\n", &["acl[0].networks", "line 2"]),
        ("log: all\nclients: all\n", &["clients", "`any`", "line 2"]),
        ("clients: [192.0.2.0/24, nobody]\n", &["clients[1]", "line 1"]),
        ("clients: {any: true}\n", &["clients", "list of ranges", "line 1"]),
        ("acl:\n- {zones: [.]}\n", &["acl[0]", "action", "line 2"]),
        ("hosts:\n  entries:\n    a..b: [192.0.2.1]\n", &["hosts.entries", "a..b", "line 3"]),
        ("kubernetes:\n  ttl: 2h\n", &["kubernetes", "`ttl`", "an hour", "line 2"]),
        (
            "kubernetes:\n  namespaces: [shop]\n  namespace_labels: team=sales\n",
            &["kubernetes", "`namespaces`", "`namespace_labels`", "write one", "line 3"],
        ),
        (
            "kubernetes:\n  pods: verified\n  labels: 'tier near (db)'\n",
            &["kubernetes.labels", "tier near (db)", "KEY in (VALUE", "line 3"],
        ),
        ("kubernetes:\n  noendpoints: perhaps\n", &["kubernetes.noendpoints", "line 2"]),
        (
            "kubernetes:\n  ttl: 5s\n  kubeconfig: /etc/kubeconfig\n",
            &["kubernetes", "`kubeconfig`", "the agent watches the API server", "line 3"],
        ),
        (
            "kubernetes:\n  multicluster: [clusterset.local]\n",
            &["kubernetes", "`multicluster`", "ServiceImport", "line 2"],
        ),
        (
            "forward:\n- to: [9.9.9.9]\n  endpoint: x\n",
            &["forward[0]", "expected one of", "line 3"],
        ),
        ("log: everything\n", &["log", "denial", "line 1"]),
        ("autopath: true\rcache: {}\r\nforwards: []\u{85}", &["forwards", "line 3"]),
    ] {
        let error = Config::parse(text).expect_err(text).to_string();
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in {error:?}, for\n{text}");
        }
    }
    let long = format!("# {}\n", "x".repeat(MAX_CONFIG_OCTETS));
    assert!(matches!(Config::parse(&long), Err(ConfigError::TooLarge { .. })));
    let many = format!(
        "hosts:\n  entries:\n{}",
        (0..1001).map(|n| format!("    h{n}: []\n")).collect::<String>()
    );
    assert!(matches!(Config::parse(&many), Err(ConfigError::TooMany { count: 1001, .. })));
}

#[test]
fn durations_are_written_as_in_go() {
    for (text, ms) in [("30s", 30_000), ("500ms", 500), ("1h30m", 5_400_000), ("7", 7000)] {
        assert_eq!(text.parse::<Duration>().map(Duration::ms), Ok(ms), "{text}");
    }
    for text in ["", "s", "5x", "-1s", "1h30", "8000h", "99999999999999999999s"] {
        assert!(text.parse::<Duration>().is_err(), "{text}");
    }
}

/// X-26 (GO-2026-5417): a zone holds names by labels, whatever their text ends with.
#[test]
fn zones_are_compared_by_labels() {
    let domain =
        |text: &str| -> Domain { serde_yaml_ng::from_str(&format!("'{text}'")).expect("a domain") };
    for (zone, name, expected) in [
        ("example.com", "www.Example.COM", true),
        ("example.com", "example.com", true),
        ("example.com", "notexample.com", false),
        ("example.com", "com", false),
        (".", "anything.example", true),
        (".", ".", true),
    ] {
        let name = name.parse().expect("a name");
        assert_eq!(domain(zone).holds(&name), expected, "{zone} {name}");
    }
    // The text of one label that looks like two.
    let sly = Name::from_labels([b"x".as_slice(), b"a\x07example", b"com"]).expect("a name");
    assert!(!domain("example.com").holds(&sly));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "[a-z:\\[\\]{}\\-'\" \n0-9./]{0,200}") {
        let _ = Config::parse(&text);
    }
}
