use model::attachment::Side;
use serde_json::json;

use super::*;

fn parse(value: Value) -> Result<Config, Fault> {
    Config::parse(&value, "1.0.0".into())
}

fn with(key: &str, value: Value) -> Value {
    let mut config = json!({ "name": "net" });
    config[key] = value;
    config
}

#[test]
fn old_and_new_spellings_of_ranges_add_up() {
    let config = parse(json!({
        "name": "net", "type": "flatnet",
        "ipam": {
            "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "reserved": ["10.1.0.20"],
            "ranges": [[{ "subnet": "fd00::/64", "gateway": "fd00::9" }]],
        },
    }))
    .expect("a configuration");
    let Addressing::BuiltIn(built_in) = config.addressing else { panic!("built in") };
    assert_eq!(built_in.ranges.len(), 2);
    assert_eq!(built_in.ranges[0][0].range_start, "10.1.0.9".parse().ok());
    assert_eq!(built_in.ranges[1][0].gateway(), "fd00::9".parse().ok());
    assert_eq!(built_in.withheld.reserved.len(), 1);
    assert_eq!(built_in.data_directory, PathBuf::from(layout::IPAM_DIRECTORY));
    assert_eq!(config.data_directory, PathBuf::from(layout::CNI_RECORD_DIRECTORY));
}

#[test]
fn addresses_come_from_nobody_from_us_or_from_a_delegate() {
    let of = |ipam: Value| parse(with("ipam", ipam)).expect("a configuration").addressing;
    for nothing in [Value::Null, json!({}), json!({ "type": "" })] {
        assert_eq!(of(nothing), Addressing::None);
    }
    for kind in ["host-local", "flatnet"] {
        let ipam = json!({ "type": kind, "subnet": "10.1.0.0/24" });
        assert!(matches!(of(ipam), Addressing::BuiltIn(_)), "{kind}");
    }
    let own_keys =
        json!({ "type": "static", "addresses": [{ "address": "10.1.0.5/24" }], "ranges": 7 });
    assert_eq!(of(own_keys), Addressing::Delegated("static".into()));
}

/// CNI-06, CNI-03, PM and FW: code 7 or 2, with key and value.
#[test]
fn faults_have_the_codes_of_the_specification_and_name_key_and_value() {
    let mapping = |mapping: Value| with("runtimeConfig", json!({ "portMappings": [mapping] }));
    let twice = json!({ "hostPort": 80, "containerPort": 80 });
    let rows = [
        (json!({ "type": "flatnet" }), INVALID_CONFIG, "network name"),
        (json!({ "name": "-net" }), INVALID_CONFIG, "\"-net\""),
        (json!({ "name": "../etc" }), INVALID_CONFIG, "network name"),
        (with("mtu", json!(5)), INVALID_CONFIG, "mtu: 5"),
        (with("mtu", json!("big")), INVALID_CONFIG, "cannot be understood"),
        (with("ipam", json!({ "type": "../x" })), INVALID_CONFIG, "ipam.type: \"../x\""),
        (with("ipam", json!({ "type": "host-local" })), INVALID_CONFIG, "no ranges"),
        (
            with("ipam", json!({ "ranges": [[{ "subnet": "10.0.0.1/24" }]] })),
            INVALID_CONFIG,
            "ranges of ipam",
        ),
        (with("runtimeConfig", json!({ "ips": ["ten"] })), INVALID_CONFIG, "\"ten\""),
        (
            with("runtimeConfig", json!({ "infinibandGUID": "c2:11" })),
            UNSUPPORTED_FIELD,
            "runtimeConfig.infinibandGUID: \"c2:11\"",
        ),
        (
            with("args", json!({ "cni": { "infinibandGUID": "c2:11" } })),
            UNSUPPORTED_FIELD,
            "args.cni.infinibandGUID",
        ),
        (with("conditionsV4", json!(["-p", "tcp"])), UNSUPPORTED_FIELD, "conditionsV4: [\"-p\""),
        (with("conditionsV4", json!(["-s"])), UNSUPPORTED_FIELD, "conditionsV4: [\"-s\"]"),
        (with("conditionsV4", json!(["-d", "10.0.0.1,10.0.0.2"])), UNSUPPORTED_FIELD, "10.0.0.2"),
        (with("conditionsV4", json!(["-s", "fd00::/8"])), UNSUPPORTED_FIELD, "conditionsV4"),
        (with("conditionsV6", json!(["!", "-i", "eth0"])), UNSUPPORTED_FIELD, "\"eth0\""),
        (with("conditionsV6", json!("-s ::1")), INVALID_CONFIG, "conditionsV6"),
        (with("markMasqBit", json!(32)), INVALID_CONFIG, "markMasqBit: 32"),
        (with("markMasqBit", json!(5)), UNSUPPORTED_FIELD, "markMasqBit: 5"),
        (with("externalSetMarkChain", json!("MINE")), UNSUPPORTED_FIELD, "Chain: \"MINE\""),
        (
            json!({ "name": "net", "markMasqBit": 14, "externalSetMarkChain": "KUBE-MARK-MASQ" }),
            INVALID_CONFIG,
            "markMasqBit is given too",
        ),
        (with("ipMasqBackend", json!("ipfw")), INVALID_CONFIG, "\"ipfw\""),
        (with("firewall", json!({ "ingressPolicy": "closed" })), INVALID_CONFIG, "\"closed\""),
        (
            with("firewall", json!({ "backend": "firewalld" })),
            UNSUPPORTED_FIELD,
            "firewall.backend: \"firewalld\"",
        ),
        (with("backend", json!("firewalld")), UNSUPPORTED_FIELD, "backend: \"firewalld\""),
        (with("backend", json!("ipfw")), INVALID_CONFIG, "backend: \"ipfw\""),
        (with("firewalldZone", json!("work")), UNSUPPORTED_FIELD, "firewalldZone: \"work\""),
        (
            with("firewall", json!({ "iptablesAdminChainName": "MINE" })),
            UNSUPPORTED_FIELD,
            "firewall.iptablesAdminChainName: \"MINE\"",
        ),
        (with("unshapedSubnets", json!(["10.0.0.0/8"])), UNSUPPORTED_FIELD, "unshapedSubnets"),
        (with("dataDir", json!("state")), INVALID_CONFIG, "dataDir: state"),
        (with("dataDir", json!("/var/lib/../../etc")), INVALID_CONFIG, "dataDir"),
        (with("prevResult", json!("none")), INVALID_CONFIG, "prevResult"),
        (
            mapping(json!({ "hostPort": 0, "containerPort": 80 })),
            INVALID_CONFIG,
            "hostPort in portMappings: 0",
        ),
        (mapping(json!({ "hostPort": 80, "containerPort": 65536 })), INVALID_CONFIG, "65536"),
        (mapping(json!({ "hostPort": 80, "containerPort": -1 })), INVALID_CONFIG, "-1"),
        (
            mapping(json!({ "hostPort": 80, "containerPort": 80, "protocol": "icmp" })),
            INVALID_CONFIG,
            "portMappings",
        ),
        (
            mapping(json!({ "hostPort": 80, "containerPort": 80, "hostIP": "here" })),
            INVALID_CONFIG,
            "\"here\"",
        ),
        (
            with("runtimeConfig", json!({ "portMappings": [twice, twice] })),
            INVALID_CONFIG,
            "hostPort 80 of TCP twice",
        ),
    ];
    for (value, code, expected) in rows {
        let fault = parse(value).expect_err(expected);
        assert_eq!(fault.code, code, "{fault}");
        assert!(fault.message.contains(expected), "{fault} should name {expected}");
    }
}

#[test]
fn keys_that_ask_for_nothing_and_keys_of_others_are_no_fault() {
    let config = json!({
        "name": "net", "ipMasq": false, "conditionsV4": [], "mtu": 0,
        "externalSetMarkChain": "KUBE-MARK-MASQ", "x-vendor": { "a": 1 }, "dataDir": "",
        "backend": "iptables", "firewalldZone": "", "shapedSubnets": [],
        "runtimeConfig": { "infinibandGUID": "", "portMappings": [] },
    });
    let config = parse(config).expect("a configuration");
    assert_eq!(config.edge, EdgeOptions::default());
    assert!(config.edge.edge.anti_spoofing, "on unless switched off");
}

#[test]
fn the_edge_has_all_that_was_asked_for() {
    let config = json!({
        "name": "net", "ipMasq": true, "ipMasqBackend": "iptables", "snat": false, "masqAll": true,
        "antiSpoofing": false, "extraSources": ["192.0.2.0/24"], "markMasqBit": 14,
        "conditionsV4": ["!", "-d", "192.0.2.0/24", "--source", "10.0.0.1"],
        "conditionsV6": ["-s", "fd00::/8"],
        "firewall": { "ingressPolicy": "same-bridge" },
        "runtimeConfig": { "portMappings": [
            { "hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "::" },
            { "hostPort": 8080, "containerPort": 80 },
        ]},
    });
    let options = parse(config).expect("a configuration").edge;
    let edge = options.of(&["10.1.0.5/24".parse().expect("a prefix")]);
    let except = edge.masquerade.expect("a masquerade").except;
    let except: Vec<String> = except.iter().map(ToString::to_string).collect();
    assert_eq!(except, ["10.1.0.0/24", "224.0.0.0/4"]);
    let ports: Vec<_> = edge.host_ports.iter().map(|one| (one.protocol, one.host_ip)).collect();
    let any = "::".parse().ok();
    assert_eq!(ports, [(model::Protocol::Tcp, None), (model::Protocol::Udp, any)]);
    assert!(edge.host_ports.iter().all(|one| !one.snat && one.masquerade_all));
    assert_eq!((edge.anti_spoofing, edge.extra_sources.len()), (false, 1));
    let conditions: Vec<_> = edge
        .host_port_conditions
        .iter()
        .map(|one| (one.side, one.range.to_string(), one.outside))
        .collect();
    let expected = [
        (Side::Destination, "192.0.2.0/24".into(), true),
        (Side::Source, "10.0.0.1/32".into(), false),
        (Side::Source, "fd00::/8".into(), false),
    ];
    assert_eq!(conditions, expected);
    let policy = edge.firewall.expect("a firewall").ingress_policy;
    assert_eq!(policy, model::attachment::IngressPolicy::SameBridge);
}
