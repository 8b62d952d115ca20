//! S-03, S-04, S-14: what the API takes of a Service and what a change of it does, by tables. The
//! texts of refusals are those of the real server.

mod common;

use common::Api;
use ipnet::IpNet;
use serde_json::{Value, json};
use store::{PatchKind, Status, Store, StoreConfig};

const V4: &str = "10.96.0.0/16";
const V6: &str = "fd00:96::/112";

fn cluster(cidrs: &[&str]) -> Api {
    let service_cidrs: Vec<IpNet> =
        cidrs.iter().map(|cidr| cidr.parse().expect("a range")).collect();
    let config = StoreConfig { service_cidrs, node_port_range: (30000, 32767) };
    let mut api = Api::over(Store::new(config));
    api.create("namespaces", "", json!({"metadata": {"name": "default"}})).expect("created");
    api
}

fn create(api: &mut Api, spec: Value) -> Result<Value, Status> {
    let body = json!({"metadata": {"name": "web"}, "spec": with_ports(spec)});
    api.create("services", "default", body).map(|object| object.value.clone())
}

fn with_ports(mut spec: Value) -> Value {
    if spec.get("ports").is_none() {
        spec["ports"] = json!([{"port": 80}]);
    }
    spec
}

fn patch(api: &mut Api, body: Value) -> Result<Value, Status> {
    api.patch("services", "default", "web", PatchKind::Merge, body)
        .map(|object| object.value.clone())
}

/// The refusal without the words that all have.
fn refusal(result: Result<Value, Status>, case: &Value) -> String {
    let status = match result {
        Ok(value) => panic!("{case} was taken: {value}"),
        Err(status) => status,
    };
    assert_eq!(status.code, 422, "{case}: {status}");
    status.message.replacen("Service \"web\" is invalid: ", "", 1)
}

#[test]
fn what_no_service_may_say() {
    let balanced = |mut spec: Value| {
        spec["type"] = json!("LoadBalancer");
        spec
    };
    for (spec, message) in [
        (
            json!({"trafficDistribution": "PreferFar"}),
            "spec.trafficDistribution: Unsupported value: \"PreferFar\": supported values: \
             \"PreferClose\", \"PreferSameNode\", \"PreferSameZone\"",
        ),
        (
            json!({"loadBalancerClass": "example.org/a"}),
            "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            json!({"allocateLoadBalancerNodePorts": false}),
            "spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is \
             'LoadBalancer'",
        ),
        (
            json!({"loadBalancerSourceRanges": ["10.0.0.0/8"]}),
            "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is \
             'LoadBalancer'",
        ),
        (
            balanced(json!({"loadBalancerSourceRanges": ["10.0.0.0/8", "10.0.0.0/33"]})),
            "spec.LoadBalancerSourceRanges[1]: Invalid value: \"10.0.0.0/33\": must be a valid \
             CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        ),
        (
            json!({"healthCheckNodePort": 30100}),
            "spec.healthCheckNodePort: Invalid value: 30100: may only be set when `type` is \
             'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ),
        (
            balanced(json!({"healthCheckNodePort": 30100})),
            "spec.healthCheckNodePort: Invalid value: 30100: may only be set when `type` is \
             'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ),
        (
            balanced(json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 30080,
                "ports": [{"port": 80, "nodePort": 30080}]})),
            "spec.healthCheckNodePort: Invalid value: 30080: provided port is already allocated",
        ),
        (
            json!({"externalTrafficPolicy": "Local"}),
            "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for \
             externally-accessible services",
        ),
        (
            json!({"internalTrafficPolicy": "Near"}),
            "spec.internalTrafficPolicy: Unsupported value: \"Near\": supported values: \
             \"Cluster\", \"Local\"",
        ),
        (
            json!({"sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0: must be greater \
             than 0 and less than 86400",
        ),
        (
            json!({"externalIPs": ["127.0.0.1"]}),
            "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range \
             (127.0.0.0/8, ::1/128)",
        ),
        (
            json!({"type": "NodePort", "ports": [
                {"name": "a", "port": 80, "nodePort": 30080},
                {"name": "b", "port": 81, "nodePort": 30080}]}),
            "spec.ports[1].nodePort: Duplicate value: 30080",
        ),
        (
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}),
            "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. \
             The range of valid ports is 30000-32767",
        ),
        (
            json!({"clusterIPs": ["10.96.0.20"]}),
            "spec.clusterIPs: Invalid value: [\"10.96.0.20\"]: must be empty when `clusterIP` is \
             not specified",
        ),
        (
            json!({"clusterIP": "10.96.0.21", "clusterIPs": ["10.96.0.20"]}),
            "spec.clusterIPs: Invalid value: [\"10.96.0.20\"]: first value must match `clusterIP`",
        ),
        (
            json!({"clusterIP": "None", "clusterIPs": ["None", "10.96.0.20"]}),
            "spec.clusterIPs: Invalid value: [\"None\",\"10.96.0.20\"]: 'None' must be the first \
             and only value",
        ),
        (
            json!({"type": "ExternalName", "externalName": "a.example",
                "ipFamilies": ["IPv4"]}),
            "spec.ipFamilies: Invalid value: [\"IPv4\"]: may not be set for ExternalName services",
        ),
        (
            json!({"clusterIP": "fd00:96::5"}),
            "spec.clusterIPs[0]: Invalid value: [\"fd00:96::5\"]: IPv6 is not configured on this \
             cluster",
        ),
    ] {
        let mut api = cluster(&[V4]);
        assert_eq!(refusal(create(&mut api, spec.clone()), &spec), message, "{spec}");
    }
}

#[test]
fn what_a_service_may_say_is_kept() {
    for spec in [
        json!({"trafficDistribution": "PreferSameNode"}),
        json!({"type": "LoadBalancer", "loadBalancerClass": "example.org/a",
            "loadBalancerSourceRanges": ["10.0.0.0/8", "fd00::/8"], "loadBalancerIP": "192.0.2.1"}),
        json!({"externalIPs": ["192.0.2.1"], "externalTrafficPolicy": "Local"}),
        json!({"internalTrafficPolicy": "Local", "publishNotReadyAddresses": true}),
        json!({"ports": [{"name": "a", "port": 80, "protocol": "SCTP", "appProtocol": "http",
            "targetPort": "web"}]}),
        // One number for three protocols.
        json!({"type": "NodePort", "ports": [
            {"name": "t", "port": 53, "protocol": "TCP", "nodePort": 30053, "targetPort": 53},
            {"name": "u", "port": 53, "protocol": "UDP", "nodePort": 30053, "targetPort": 53},
            {"name": "s", "port": 53, "protocol": "SCTP", "nodePort": 30053, "targetPort": 53}]}),
    ] {
        let mut api = cluster(&[V4]);
        let value = create(&mut api, spec.clone()).unwrap_or_else(|why| panic!("{spec}: {why}"));
        for (field, wanted) in spec.as_object().expect("fields") {
            assert_eq!(value["spec"][field], *wanted, "{field}");
        }
    }
}

#[test]
fn affinity_by_client_lasts_three_hours_unless_somebody_says_otherwise() {
    let mut api = cluster(&[V4]);
    let value = create(&mut api, json!({"sessionAffinity": "ClientIP"})).expect("created");
    assert_eq!(value["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10_800);
    let value = patch(&mut api, json!({"spec": {"sessionAffinity": "None"}})).expect("changed");
    assert_eq!(value["spec"].get("sessionAffinityConfig"), None);
}

/// From each type to each other one: what is there then, and what is not.
#[test]
fn a_change_of_type_gives_and_takes_what_the_type_has() {
    let specs = [
        ("ExternalName", json!({"type": "ExternalName", "externalName": "a.example"})),
        ("ClusterIP", json!({"type": "ClusterIP", "externalName": null})),
        ("NodePort", json!({"type": "NodePort", "externalName": null})),
        (
            "LoadBalancer",
            json!({"type": "LoadBalancer", "externalName": null,
            "externalTrafficPolicy": "Local"}),
        ),
    ];
    for (from, first) in &specs {
        for (to, second) in &specs {
            let mut api = cluster(&[V4]);
            let mut first = first.clone();
            first.as_object_mut().expect("fields").retain(|_, value| !value.is_null());
            let before = create(&mut api, first).expect("created");
            let after = patch(&mut api, json!({"spec": second}))
                .unwrap_or_else(|why| panic!("{from} to {to}: {why}"));
            let case = format!("{from} to {to}: {after}");
            let spec = &after["spec"];
            let has = |field: &str| spec.get(field).is_some();
            let inside = *to != "ExternalName";
            let outside = matches!(*to, "NodePort" | "LoadBalancer");
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                assert_eq!(has(field), inside, "{field}, {case}");
            }
            assert_eq!(has("internalTrafficPolicy"), inside, "{case}");
            assert_eq!(has("externalTrafficPolicy"), outside, "{case}");
            assert_eq!(spec["ports"][0].get("nodePort").is_some(), outside, "{case}");
            for field in ["healthCheckNodePort", "allocateLoadBalancerNodePorts"] {
                assert_eq!(has(field), *to == "LoadBalancer", "{field}, {case}");
            }
            if inside && *from != "ExternalName" {
                assert_eq!(spec["clusterIP"], before["spec"]["clusterIP"], "{case}");
            }
            if outside && matches!(*from, "NodePort" | "LoadBalancer") {
                assert_eq!(spec["ports"], before["spec"]["ports"], "{case}");
            }
        }
    }
}

#[test]
fn node_ports_stay_with_the_name_of_their_port() {
    let mut api = cluster(&[V4]);
    let ports = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}]);
    let value = create(&mut api, json!({"type": "NodePort", "ports": ports})).expect("created");
    let number = |value: &Value, index: usize| value["spec"]["ports"][index]["nodePort"].clone();
    let (a, b) = (number(&value, 0), number(&value, 1));
    // Another number and protocol under the same names, in another order.
    let ports = json!([{"name": "b", "port": 91, "protocol": "UDP"}, {"name": "a", "port": 90}]);
    let changed = patch(&mut api, json!({"spec": {"ports": ports}})).expect("changed");
    assert_eq!((number(&changed, 0), number(&changed, 1)), (b.clone(), a.clone()));
    // A port takes the other's number: that one gets a new one.
    let ports = json!([{"name": "a", "port": 90, "nodePort": b}, {"name": "b", "port": 91}]);
    let changed = patch(&mut api, json!({"spec": {"ports": ports}})).expect("changed");
    assert_eq!(number(&changed, 0), b);
    assert!(number(&changed, 1).is_number() && number(&changed, 1) != b, "{changed}");
}

#[test]
fn a_load_balancer_without_node_ports_gives_up_those_that_are_left_out() {
    let mut api = cluster(&[V4]);
    let value = create(&mut api, json!({"type": "LoadBalancer"})).expect("created");
    let port = value["spec"]["ports"][0]["nodePort"].clone();
    assert!(port.is_number());
    let none = json!({"spec": {"allocateLoadBalancerNodePorts": false}});
    let value = patch(&mut api, none).expect("changed");
    assert_eq!(value["spec"]["ports"][0]["nodePort"], port, "what is there stays");
    let value = patch(&mut api, json!({"spec": {"ports": [{"port": 80}]}})).expect("changed");
    assert_eq!(value["spec"]["ports"][0].get("nodePort"), None);
    let body = json!({"metadata": {"name": "other"},
        "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}});
    api.create("services", "default", body).expect("the number is free");
}

#[test]
fn what_may_not_change_does_not() {
    let balanced = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 30200, "loadBalancerClass": "example.org/a"});
    for (spec, change, message) in [
        (
            balanced.clone(),
            json!({"loadBalancerClass": "example.org/b"}),
            "spec.loadBalancerClass: Invalid value: \"example.org/b\": may not change once set",
        ),
        (
            balanced.clone(),
            json!({"loadBalancerClass": null}),
            "spec.loadBalancerClass: Invalid value: null: may not change once set",
        ),
        (
            balanced,
            json!({"healthCheckNodePort": 30201}),
            "spec.healthCheckNodePort: Invalid value: 30201: field is immutable",
        ),
        (
            json!({"clusterIP": "10.96.0.50"}),
            json!({"clusterIP": "10.96.0.51"}),
            "spec.clusterIPs[0]: Invalid value: [\"10.96.0.51\"]: may not change once set",
        ),
        (
            json!({"clusterIP": "10.96.0.50"}),
            json!({"clusterIP": "None", "clusterIPs": ["None"]}),
            "spec.clusterIPs[0]: Invalid value: [\"None\"]: may not change once set",
        ),
        (
            json!({"ipFamilyPolicy": "RequireDualStack", "clusterIP": "10.96.0.50",
                "clusterIPs": ["10.96.0.50", "fd00:96::50"]}),
            json!({"clusterIPs": ["10.96.0.50", "fd00:96::51"]}),
            "spec.clusterIPs[1]: Invalid value: [\"10.96.0.50\",\"fd00:96::51\"]: may not change \
             once set",
        ),
        (
            json!({"clusterIP": "None", "selector": {"a": "b"}, "ipFamilies": ["IPv4"]}),
            json!({"ipFamilies": ["IPv6"]}),
            "spec.ipFamilies[0]: Invalid value: [\"IPv6\"]: may not change once set",
        ),
        (
            json!({"ipFamilyPolicy": "PreferDualStack", "clusterIP": "10.96.0.50",
                "clusterIPs": ["10.96.0.50", "fd00:96::50"]}),
            json!({"clusterIPs": ["10.96.0.50"]}),
            "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be 'SingleStack' to \
             release the secondary cluster IP",
        ),
        (
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            json!({"ipFamilies": ["IPv4"]}),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be 'SingleStack' to \
             release the secondary IP family",
        ),
        (
            json!({}),
            json!({"ipFamilies": ["IPv4", "IPv6"]}),
            "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or \
             'PreferDualStack' when multiple IP families are specified",
        ),
    ] {
        let mut api = cluster(&[V4, V6]);
        create(&mut api, spec.clone()).unwrap_or_else(|why| panic!("{spec}: {why}"));
        let result = patch(&mut api, json!({"spec": change}));
        assert_eq!(refusal(result, &change), message, "{spec} {change}");
    }
}

#[test]
fn a_service_goes_up_to_two_families_and_down_again() {
    // (first policy, its families) → up, the families then; each back down to its first one
    for (families, up, wanted) in [
        (json!(["IPv4"]), "PreferDualStack", json!(["IPv4", "IPv6"])),
        (json!(["IPv4"]), "RequireDualStack", json!(["IPv4", "IPv6"])),
        (json!(["IPv6"]), "PreferDualStack", json!(["IPv6", "IPv4"])),
        (json!(["IPv6"]), "RequireDualStack", json!(["IPv6", "IPv4"])),
    ] {
        for kind in ["ClusterIP", "NodePort"] {
            let mut api = cluster(&[V4, V6]);
            let spec = json!({"type": kind, "ipFamilies": families});
            let before = create(&mut api, spec).expect("created");
            let both = patch(&mut api, json!({"spec": {"ipFamilyPolicy": up}})).expect("changed");
            assert_eq!(both["spec"]["ipFamilies"], wanted, "{families} {up}");
            assert_eq!(both["spec"]["clusterIPs"].as_array().map(Vec::len), Some(2));
            assert_eq!(both["spec"]["clusterIP"], before["spec"]["clusterIP"]);
            assert_eq!(both["spec"]["ports"], before["spec"]["ports"], "one node port for both");
            let one = json!({"spec": {"ipFamilyPolicy": "SingleStack"}});
            let after = patch(&mut api, one).expect("changed back");
            assert_eq!(after["spec"], before["spec"], "{families} {up}");
        }
    }
}

#[test]
fn a_preference_for_two_families_follows_no_change_of_the_cluster() {
    let mut api = cluster(&[V4]);
    create(&mut api, json!({"ipFamilyPolicy": "PreferDualStack"})).expect("created");
    let objects: Vec<_> = api
        .log
        .iter()
        .map(|record| {
            let bytes = record.object.value.to_string();
            store::record::object_from_bytes(
                &store::Definitions::default(),
                &record.object_key(),
                bytes.as_bytes(),
            )
        })
        .collect::<Result<_, _>>()
        .expect("objects");
    let service_cidrs = [V4, V6].map(|cidr| cidr.parse().expect("a range")).to_vec();
    let config = StoreConfig { service_cidrs, node_port_range: (30000, 32767) };
    let mut api = Api::over(
        Store::restore(config, store::Definitions::default(), objects, []).expect("a store"),
    );
    let labels = json!({"metadata": {"labels": {"a": "b"}}});
    let value = patch(&mut api, labels).expect("changed");
    assert_eq!(value["spec"]["ipFamilies"], json!(["IPv4"]));
    let require = json!({"spec": {"ipFamilyPolicy": "RequireDualStack"}});
    let value = patch(&mut api, require).expect("changed");
    assert_eq!(value["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
}

#[test]
fn addresses_of_load_balancers_are_written_through_the_status_and_checked() {
    let mut api = cluster(&[V4]);
    create(&mut api, json!({"type": "LoadBalancer"})).expect("created");
    let status = |api: &mut Api, ingress: Value| {
        let body = json!({"status": {"loadBalancer": {"ingress": ingress}}});
        let written = api.patch_status("services", "default", "web", body);
        written.map(|object| object.value.clone())
    };
    let value = status(
        &mut api,
        json!([{"ip": "192.0.2.1"}, {"ip": "192.0.2.2",
        "ipMode": "Proxy"}, {"hostname": "lb.example"}]),
    );
    let ingress = json!([{"ip": "192.0.2.1", "ipMode": "VIP"}, {"ip": "192.0.2.2",
        "ipMode": "Proxy"}, {"hostname": "lb.example"}]);
    assert_eq!(value.expect("written")["status"]["loadBalancer"]["ingress"], ingress);
    for (bad, message) in [
        (
            json!([{"ip": "nowhere"}]),
            "status.loadBalancer.ingress[0].ip: Invalid value: \"nowhere\": must be a valid IP \
             address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            json!([{"ip": "192.0.2.1", "ipMode": "Mirror"}]),
            "status.loadBalancer.ingress[0].ipMode: Unsupported value: \"Mirror\": supported \
             values: \"Proxy\", \"VIP\"",
        ),
        (
            json!([{"hostname": "lb.example", "ipMode": "VIP"}]),
            "status.loadBalancer.ingress[0].ipMode: Forbidden: may not be specified when `ip` is \
             not set",
        ),
        (
            json!([{"hostname": "192.0.2.1"}]),
            "status.loadBalancer.ingress[0].hostname: Invalid value: \"192.0.2.1\": must be a DNS \
             name, not an IP address",
        ),
    ] {
        assert_eq!(refusal(status(&mut api, bad.clone()), &bad), message, "{bad}");
    }
    // With the type the addresses go; and none come where nothing balances.
    let value = patch(&mut api, json!({"spec": {"type": "ClusterIP"}})).expect("changed");
    assert_eq!(value["status"]["loadBalancer"], json!({}));
    let bad = json!([{"ip": "192.0.2.1"}]);
    assert_eq!(
        refusal(status(&mut api, bad.clone()), &bad),
        "status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is \
         \"LoadBalancer\""
    );
}

#[test]
fn a_service_that_a_load_balancer_cleans_up_after_waits_for_it() {
    let mut api = cluster(&[V4]);
    let finalizer = "service.kubernetes.io/load-balancer-cleanup";
    let body = json!({"metadata": {"name": "web", "finalizers": [finalizer]},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}});
    api.create("services", "default", body).expect("created");
    api.delete("services", "default", "web", json!({})).expect("marked");
    let value = api.get("services", "default", "web").expect("it waits").value.clone();
    assert!(value["metadata"]["deletionTimestamp"].is_string());
    patch(&mut api, json!({"metadata": {"finalizers": null}})).expect("cleaned up");
    assert!(api.get("services", "default", "web").is_err());
}

#[test]
fn slices_and_endpoints_are_checked() {
    let slice = |mut fields: Value| {
        fields["metadata"] = json!({"name": "web"});
        fields["addressType"] = json!("IPv4");
        fields
    };
    let endpoint = |mut fields: Value| {
        fields["addresses"] = json!(["10.1.2.3"]);
        slice(json!({"endpoints": [fields]}))
    };
    let zones: Vec<Value> = (0..9).map(|index| json!({"name": format!("z{index}")})).collect();
    let subsets = |subset: Value| json!({"metadata": {"name": "web"}, "subsets": [subset]});
    for (plural, body, message) in [
        (
            "endpointslices",
            endpoint(json!({"hints": {"forZones": zones}})),
            "endpoints[0].hints.forZones: Too many: 9: must have at most 8 items",
        ),
        (
            "endpointslices",
            endpoint(json!({"hints": {"forNodes": [{"name": "n"}, {"name": "n"}]}})),
            "endpoints[0].hints.forNodes[1].name: Duplicate value: \"n\"",
        ),
        (
            "endpointslices",
            endpoint(json!({"hints": {"forZones": [{}]}})),
            "endpoints[0].hints.forZones[0].name: Required value",
        ),
        (
            "endpointslices",
            slice(json!({"ports": [{"name": "a", "port": 0}]})),
            "ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            "endpoints",
            subsets(json!({"ports": [{"port": 80}]})),
            "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`",
        ),
        (
            "endpoints",
            subsets(json!({"addresses": [{"ip": "169.254.169.254"}], "ports": [{"port": 80}]})),
            "subsets[0].addresses[0].ip: Invalid value: \"169.254.169.254\": may not be in the \
             link-local range (169.254.0.0/16, fe80::/10)",
        ),
        (
            "endpoints",
            subsets(json!({"addresses": [{"ip": "10.1.2.3"}],
                "ports": [{"name": "a", "port": 80}, {"port": 81}]})),
            "subsets[0].ports[1].name: Required value",
        ),
    ] {
        let mut api = cluster(&[V4]);
        let status = api.create(plural, "default", body.clone()).expect_err("refused");
        let end = format!("\"web\" is invalid: {message}");
        assert!(status.message.ends_with(&end), "{body}: {status}");
    }
}
