//! Services: addresses, node ports, families, changes of type, and the texts of refusals.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::Api;
use ipnet::IpNet;
use proptest::prelude::*;
use serde_json::{Value, json};
use store::{PatchKind, Status, Store, StoreConfig};

fn service(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": spec})
}

fn create(api: &mut Api, name: &str, spec: Value) -> Result<Value, Status> {
    api.create("services", "default", service(name, spec)).map(|object| object.value.clone())
}

fn patch(api: &mut Api, name: &str, spec: Value) -> Result<Value, Status> {
    api.patch("services", "default", name, PatchKind::Merge, json!({"spec": spec}))
        .map(|object| object.value.clone())
}

fn api_with(cidrs: &[&str], ports: (u16, u16)) -> Api {
    let service_cidrs: Vec<IpNet> =
        cidrs.iter().map(|cidr| cidr.parse().expect("a range")).collect();
    let mut api = Api::over(Store::new(StoreConfig { service_cidrs, node_port_range: ports }));
    api.create("namespaces", "", json!({"metadata": {"name": "default"}})).expect("created");
    api
}

fn address(value: &Value) -> u32 {
    let text = value["spec"]["clusterIP"].as_str().expect("an address");
    text.parse::<std::net::Ipv4Addr>().expect("IPv4").into()
}

#[test]
fn dynamic_addresses_leave_the_lower_band_to_static_ones() {
    let mut api = Api::new();
    let mut seen = BTreeSet::new();
    for index in 0..300 {
        let value = create(&mut api, &format!("s{index}"), json!({"ports": [{"port": 80}]}));
        let address = address(&value.expect("created"));
        assert!(seen.insert(address), "given twice");
        assert!(address >= u32::from(std::net::Ipv4Addr::new(10, 96, 1, 0)), "in the lower band");
    }
}

#[test]
fn a_small_range_is_used_up_to_its_last_address_and_then_refuses() {
    // 62 usable addresses; the band below offset 16 is used last.
    let mut api = api_with(&["10.96.0.0/26"], (30000, 30010));
    let mut given = Vec::new();
    for index in 0..62 {
        let value = create(&mut api, &format!("s{index}"), json!({"ports": [{"port": 80}]}));
        given.push(address(&value.expect("created")) & 0x3f);
    }
    assert!(given[..46].iter().all(|host| *host > 16), "{given:?}");
    let all: BTreeSet<u32> = given.into_iter().collect();
    assert_eq!(all, (1..=62).collect());
    let status = create(&mut api, "more", json!({"ports": [{"port": 80}]})).expect_err("full");
    assert!(status.message.contains("range is full"), "{status}");
    api.delete("services", "default", "s7", json!({})).expect("deleted");
    create(&mut api, "more", json!({"ports": [{"port": 80}]})).expect("the freed address");
}

#[test]
fn network_and_broadcast_address_are_nobodys() {
    let mut api = api_with(&["10.96.0.0/28"], (30000, 30010));
    for address in ["10.96.0.0", "10.96.0.15", "10.96.0.16"] {
        let status = create(&mut api, "s", json!({"clusterIP": address, "ports": [{"port": 80}]}));
        assert_eq!(
            status.expect_err("refused").message,
            format!(
                "Service \"s\" is invalid: spec.clusterIPs: Invalid value: [\"{address}\"]: failed \
                 to allocate IP {address}: the provided network does not match the current range"
            )
        );
    }
}

#[test]
fn what_a_failed_write_or_a_dry_run_chose_is_free_again() {
    let mut api = Api::new();
    let fixed = json!({"clusterIP": "10.96.0.50", "ports": [{"port": 80}]});
    api.dry_run = true;
    create(&mut api, "one", fixed.clone()).expect("fine");
    api.dry_run = false;
    // Staged, then lost: the shell could not write.
    let request = common::request(
        common::row("services"),
        "default",
        "",
        None,
        store::Action::Create(service("one", fixed.clone())),
    );
    api.stage(&request).expect("staged");
    assert!(api.stage(&request).is_err(), "a later request of the batch sees the earlier");
    api.store.discard();
    assert!(!api.store.has_staged());
    create(&mut api, "one", fixed.clone()).expect("free");
    let status = create(&mut api, "two", fixed.clone()).expect_err("taken");
    assert_eq!(
        status.message,
        "Service \"two\" is invalid: spec.clusterIPs: Invalid value: [\"10.96.0.50\"]: failed to \
         allocate IP 10.96.0.50: provided IP is already allocated"
    );
    api.delete("services", "default", "one", json!({})).expect("deleted");
    create(&mut api, "two", fixed).expect("free again");
}

#[test]
fn node_ports_come_from_the_upper_band_and_are_shared_between_protocols() {
    let mut api = Api::new();
    let ports = json!([
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
        {"name": "web", "port": 80},
    ]);
    let value = create(&mut api, "dns", json!({"type": "NodePort", "ports": ports}));
    let value = value.expect("created");
    let ports = value["spec"]["ports"].as_array().expect("ports");
    assert_eq!(ports[0]["nodePort"], ports[1]["nodePort"]);
    assert_ne!(ports[0]["nodePort"], ports[2]["nodePort"]);
    assert!(ports[0]["nodePort"].as_u64() >= Some(30086), "{value}");
    let taken = ports[0]["nodePort"].clone();
    let status = create(
        &mut api,
        "two",
        json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": taken}]}),
    );
    assert_eq!(
        status.expect_err("taken").message,
        format!(
            "Service \"two\" is invalid: spec.ports[0].nodePort: Invalid value: {taken}: provided \
             port is already allocated"
        )
    );
}

#[test]
fn node_ports_run_out_and_come_back() {
    let mut api = api_with(&["10.96.0.0/24"], (30000, 30001));
    let spec = || json!({"type": "NodePort", "ports": [{"port": 80}]});
    create(&mut api, "a", spec()).expect("one");
    create(&mut api, "b", spec()).expect("two");
    assert_eq!(create(&mut api, "c", spec()).expect_err("full").code, 422);
    patch(&mut api, "a", json!({"type": "ClusterIP"})).expect("changed");
    let value = api.get("services", "default", "a").expect("stored").value.clone();
    assert_eq!(value["spec"]["ports"][0].get("nodePort"), None);
    assert_eq!(value["spec"].get("externalTrafficPolicy"), None);
    create(&mut api, "c", spec()).expect("the freed one");
}

#[test]
fn an_update_keeps_what_was_allocated() {
    let mut api = Api::new();
    let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
    let value = create(&mut api, "web", spec.clone()).expect("created");
    let replaced = api.update("services", "default", "web", service("web", spec)).expect("kept");
    assert_eq!(replaced.value, value);
    let status = patch(&mut api, "web", json!({"clusterIP": "10.96.0.77", "clusterIPs": null}));
    assert_eq!(
        status.expect_err("immutable").message,
        "Service \"web\" is invalid: spec.clusterIPs[0]: Invalid value: [\"10.96.0.77\"]: may not \
         change once set"
    );
    let value =
        patch(&mut api, "web", json!({"type": "ExternalName", "externalName": "a.example"}))
            .expect("changed");
    assert_eq!(value["spec"].get("clusterIP"), None, "{value}");
    let value = patch(&mut api, "web", json!({"type": "ClusterIP", "externalName": null}))
        .expect("changed back");
    assert!(value["spec"]["clusterIP"].as_str().is_some_and(|ip| ip.starts_with("10.96.")));
}

#[test]
fn a_local_load_balancer_gets_a_health_check_port_and_keeps_it() {
    let mut api = Api::new();
    let spec = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}],
        "allocateLoadBalancerNodePorts": false,
    });
    let value = create(&mut api, "lb", spec).expect("created");
    let port = value["spec"]["healthCheckNodePort"].as_u64().expect("a port");
    assert!((30086..=32767).contains(&port));
    assert_eq!(value["spec"]["ports"][0].get("nodePort"), None);
    let changed = patch(&mut api, "lb", json!({"healthCheckNodePort": null})).expect("kept");
    assert_eq!(changed["spec"]["healthCheckNodePort"], port);
    let changed = patch(&mut api, "lb", json!({"externalTrafficPolicy": "Cluster"}));
    assert_eq!(changed.expect("changed")["spec"].get("healthCheckNodePort"), None);
}

#[test]
fn families_follow_the_policy_and_the_cluster() {
    let both = ["10.96.0.0/16", "fd00:96::/112"];
    let ports = json!([{"port": 80}]);
    let v4_only: &[&str] = &["10.96.0.0/16"];
    for (cidrs, spec, families, policy) in [
        (v4_only, json!({}), json!(["IPv4"]), "SingleStack"),
        (v4_only, json!({"ipFamilyPolicy": "PreferDualStack"}), json!(["IPv4"]), "PreferDualStack"),
        (v4_only, json!({"clusterIP": "None"}), json!(["IPv4", "IPv6"]), "RequireDualStack"),
        (
            v4_only,
            json!({"clusterIP": "None", "selector": {"a": "b"}}),
            json!(["IPv4"]),
            "SingleStack",
        ),
        (&both, json!({}), json!(["IPv4"]), "SingleStack"),
        (&both, json!({"ipFamilies": ["IPv6"]}), json!(["IPv6"]), "SingleStack"),
        (
            &both,
            json!({"ipFamilyPolicy": "PreferDualStack"}),
            json!(["IPv4", "IPv6"]),
            "PreferDualStack",
        ),
        (
            &both,
            json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}),
            json!(["IPv6", "IPv4"]),
            "RequireDualStack",
        ),
    ] {
        let mut api = api_with(cidrs, (30000, 32767));
        let mut spec = spec;
        spec["ports"] = ports.clone();
        let value = create(&mut api, "web", spec.clone()).unwrap_or_else(|s| panic!("{spec}: {s}"));
        assert_eq!(value["spec"]["ipFamilies"], families, "{spec}");
        assert_eq!(value["spec"]["ipFamilyPolicy"], policy, "{spec}");
        let addresses = value["spec"]["clusterIPs"].as_array().expect("addresses");
        if value["spec"]["clusterIP"] != "None" {
            assert_eq!(addresses.len(), families.as_array().map_or(0, Vec::len), "{value}");
            assert_eq!(addresses[0], value["spec"]["clusterIP"]);
        }
    }
    for (spec, message) in [
        (
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not \
             configured for dual-stack services",
        ),
        (
            json!({"ipFamilies": ["IPv6"]}),
            "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
        ),
    ] {
        let mut api = Api::new();
        let mut spec = spec;
        spec["ports"] = ports.clone();
        let status = create(&mut api, "web", spec).expect_err("refused");
        assert_eq!(status.message, format!("Service \"web\" is invalid: {message}"));
    }
}

#[test]
fn giving_up_the_second_family_frees_its_address() {
    let mut api = api_with(&["10.96.0.0/16", "fd00:96::/112"], (30000, 32767));
    let spec = json!({"ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80}]});
    let value = create(&mut api, "web", spec).expect("created");
    let second = value["spec"]["clusterIPs"][1].clone();
    let value = patch(&mut api, "web", json!({"ipFamilyPolicy": "SingleStack"})).expect("changed");
    assert_eq!(value["spec"]["clusterIPs"], json!([value["spec"]["clusterIP"]]));
    assert_eq!(value["spec"]["ipFamilies"], json!(["IPv4"]));
    let spec = json!({"clusterIP": second, "ports": [{"port": 80}]});
    create(&mut api, "other", spec).expect("free");
}

#[test]
fn refusals_read_as_those_of_the_real_server() {
    let mut api = Api::new();
    let twice = json!([{"name": "a", "port": 80}, {"name": "b", "port": 80}]);
    for (spec, message) in [
        (
            json!({"sessionAffinity": "Zzz", "ports": [{"port": 99999}]}),
            "[spec.ports[0].port: Invalid value: 99999: must be between 1 and 65535, inclusive, \
             spec.ports[0].targetPort: Invalid value: 99999: must be between 1 and 65535, \
             inclusive, spec.sessionAffinity: Unsupported value: \"Zzz\": supported values: \
             \"ClientIP\", \"None\"]",
        ),
        (json!({}), "spec.ports: Required value"),
        (
            json!({"ports": [{"port": 80}, {"name": "b", "port": 81}]}),
            "spec.ports[0].name: Required value",
        ),
        (
            json!({"ports": twice}),
            "spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}",
        ),
        (
            json!({"ports": [{"port": 80, "nodePort": 30080}]}),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            json!({"type": "ExternalName", "externalName": "not a name"}),
            "spec.externalName: Invalid value: \"not a name\": a lowercase RFC 1123 subdomain must \
             consist of lower case alphanumeric characters, '-' or '.', and must start and end \
             with an alphanumeric character (e.g. 'example.com', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
        ),
    ] {
        let status = create(&mut api, "bad", spec.clone()).expect_err("refused");
        assert_eq!(status.message, format!("Service \"bad\" is invalid: {message}"), "{spec}");
    }
    let status = create(&mut api, "1bad", json!({"ports": [{"port": 80}]})).expect_err("a name");
    assert!(status.message.contains("a DNS-1035 label must consist of"), "{status}");
}

#[derive(Clone, Debug)]
enum Step {
    Create(usize, Value),
    Change(usize, Value),
    Delete(usize),
    Publish,
    Discard,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let spec = prop_oneof![
        Just(json!({"type": "ClusterIP"})),
        Just(json!({"type": "NodePort"})),
        Just(json!({"type": "LoadBalancer"})),
        Just(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"})),
        Just(json!({"type": "ExternalName", "externalName": "example.org"})),
        (30000..30012_u16).prop_map(|port| json!({"type": "NodePort", "ports": [
            {"name": "a", "port": 80, "nodePort": port}, {"name": "b", "port": 80, "protocol": "UDP"}]})),
        (1..14_u8).prop_map(|host| json!({"clusterIP": format!("10.96.0.{host}")})),
    ];
    let name = 0..9_usize;
    let step = prop_oneof![
        5 => (name.clone(), spec.clone()).prop_map(|(name, spec)| Step::Create(name, spec)),
        4 => (name.clone(), spec).prop_map(|(name, spec)| Step::Change(name, spec)),
        3 => name.prop_map(Step::Delete),
        3 => Just(Step::Publish),
        1 => Just(Step::Discard),
    ];
    proptest::collection::vec(step, 1..80)
}

fn stage(api: &mut Api, step: &Step) {
    let resource = common::row("services");
    let on = |name: usize, action| {
        common::request(resource, "default", &format!("s{name}"), None, action)
    };
    // Refusals are part of the game: the ranges are small.
    let _ = match step {
        Step::Create(name, spec) => {
            let mut spec = spec.clone();
            if spec.get("ports").is_none() {
                spec["ports"] = json!([{"port": 80}]);
            }
            let action = store::Action::Create(service(&format!("s{name}"), spec));
            api.stage(&common::request(resource, "default", "", None, action))
        }
        Step::Change(name, spec) => {
            let action = store::Action::Patch(PatchKind::Merge, json!({"spec": spec}));
            api.stage(&on(*name, action))
        }
        Step::Delete(name) => api.stage(&on(*name, store::Action::Delete(Default::default()))),
        Step::Publish | Step::Discard => return,
    };
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn nothing_is_given_twice_and_nothing_leaks(steps in steps()) {
        let mut api = api_with(&["10.96.0.0/28"], (30000, 30011));
        for step in &steps {
            stage(&mut api, step);
            match step {
                Step::Publish => { api.store.publish(); }
                Step::Discard => api.store.discard(),
                _ => {}
            }
        }
        api.store.publish();
        let list = api.store.list(common::row("services"), &Default::default()).expect("a list");
        let mut owners: BTreeMap<String, String> = BTreeMap::new();
        for object in &list.items {
            let spec = &object.value["spec"];
            let mut mine: BTreeSet<String> = BTreeSet::new();
            let ports = spec["ports"].as_array().into_iter().flatten();
            mine.extend(ports.filter_map(|port| port.get("nodePort")).map(Value::to_string));
            mine.extend(spec.get("healthCheckNodePort").map(Value::to_string));
            mine.extend(spec.get("clusterIP").map(Value::to_string));
            for thing in mine {
                let owner = owners.insert(thing.clone(), object.key.name.clone());
                prop_assert_eq!(owner, None, "{} has two owners", thing);
            }
        }
        // When all are gone, all can be given again: 14 addresses, 12 node ports.
        for object in &list.items {
            api.delete("services", "default", &object.key.name, json!({})).expect("deleted");
        }
        for index in 0..14 {
            let kind = if index < 12 { "NodePort" } else { "ClusterIP" };
            let spec = json!({"type": kind, "ports": [{"port": 80}]});
            create(&mut api, &format!("n{index}"), spec).expect("free again");
        }
    }
}
