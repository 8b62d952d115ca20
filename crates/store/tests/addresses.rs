//! S-13: ServiceCIDR and IPAddress objects, and the Service addresses that come from them.

mod common;

use std::collections::BTreeSet;

use common::{Api, row};
use ipnet::IpNet;
use serde_json::{Value, json};
use store::{PatchKind, Status, Store, StoreConfig, Subresource};

fn cluster(cidrs: &[&str]) -> Api {
    let mut api = Api::over(Store::new(config(cidrs)));
    api.create("namespaces", "", json!({"metadata": {"name": "default"}})).expect("created");
    api
}

fn config(cidrs: &[&str]) -> StoreConfig {
    let service_cidrs: Vec<IpNet> =
        cidrs.iter().map(|cidr| cidr.parse().expect("a range")).collect();
    StoreConfig { service_cidrs, node_port_range: (30000, 32767) }
}

fn service(api: &mut Api, name: &str, mut spec: Value) -> Result<Value, Status> {
    spec["ports"] = json!([{"port": 80}]);
    let body = json!({"metadata": {"name": name}, "spec": spec});
    api.create("services", "default", body).map(|object| object.value.clone())
}

fn range(api: &mut Api, name: &str, cidrs: Value) -> Result<Value, Status> {
    let body = json!({"metadata": {"name": name}, "spec": {"cidrs": cidrs}});
    api.create("servicecidrs", "", body).map(|object| object.value.clone())
}

fn addresses(api: &Api) -> BTreeSet<(String, String)> {
    let list = api.store.list(row("ipaddresses"), &Default::default()).expect("a list");
    let parent = |value: &Value| {
        let parent = &value["spec"]["parentRef"];
        let text = |field: &str| parent[field].as_str().unwrap_or_default().to_owned();
        format!("{}/{}/{}", text("resource"), text("namespace"), text("name"))
    };
    list.items.iter().map(|object| (object.key.name.clone(), parent(&object.value))).collect()
}

fn pairs<const N: usize>(list: [(&str, &str); N]) -> BTreeSet<(String, String)> {
    list.map(|(address, parent)| (address.to_owned(), parent.to_owned())).into()
}

#[test]
fn every_address_of_a_service_is_an_object_as_long_as_the_service_has_it() {
    let mut api = cluster(&["10.96.0.0/16", "fd00:96::/112"]);
    let fixed = json!({"ipFamilyPolicy": "RequireDualStack", "clusterIP": "10.96.0.50",
        "clusterIPs": ["10.96.0.50", "fd00:96::50"]});
    service(&mut api, "web", fixed).expect("created");
    service(&mut api, "bare", json!({"clusterIP": "None"})).expect("created");
    let both =
        pairs([("10.96.0.50", "services/default/web"), ("fd00:96::50", "services/default/web")]);
    assert_eq!(addresses(&api), both);
    let object = api.get("ipaddresses", "", "fd00:96::50").expect("stored").value.clone();
    assert_eq!(
        object["metadata"]["labels"],
        json!({"ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            "ipaddress.kubernetes.io/ip-family": "IPv6"})
    );
    assert!(object["metadata"]["uid"].is_string() && object["apiVersion"].is_string());
    let spec = json!({"spec": {"ipFamilyPolicy": "SingleStack"}});
    api.patch("services", "default", "web", PatchKind::Merge, spec).expect("changed");
    assert_eq!(addresses(&api), pairs([("10.96.0.50", "services/default/web")]));
    let spec = json!({"spec": {"type": "ExternalName", "externalName": "a.example"}});
    api.patch("services", "default", "web", PatchKind::Merge, spec).expect("changed");
    assert_eq!(addresses(&api), BTreeSet::new());
    service(&mut api, "other", json!({"clusterIP": "10.96.0.50"})).expect("free");
    api.delete("services", "default", "other", json!({})).expect("deleted");
    assert_eq!(addresses(&api), BTreeSet::new());
}

#[test]
fn a_service_and_its_address_come_in_one_batch_or_not_at_all() {
    let mut api = cluster(&["10.96.0.0/16"]);
    let body = json!({"metadata": {"name": "web"},
        "spec": {"clusterIP": "10.96.0.50", "ports": [{"port": 80}]}});
    let create = store::Action::Create(body);
    let request = common::request(row("services"), "default", "", None, create);
    let staged = api.stage(&request).expect("staged");
    let kinds: Vec<&str> =
        staged.records.iter().map(|record| record.object.resource.kind).collect();
    assert_eq!(kinds, ["IPAddress", "Service"]);
    api.store.discard();
    assert_eq!(addresses(&api), BTreeSet::new());
    api.dry_run = true;
    api.run(&request).expect("fine");
    api.dry_run = false;
    assert_eq!(addresses(&api), BTreeSet::new(), "a dry run leaves nothing");
    // Two writers of one batch, as two servers over one store would be.
    api.stage(&request).expect("the first");
    let other = json!({"metadata": {"name": "other"},
        "spec": {"clusterIP": "10.96.0.50", "ports": [{"port": 80}]}});
    let create = store::Action::Create(other);
    let status = api
        .stage(&common::request(row("services"), "default", "", None, create))
        .expect_err("the second");
    assert!(status.message.ends_with("provided IP is already allocated"), "{status}");
}

#[test]
fn an_address_that_somebody_keeps_for_something_else_is_not_given() {
    let mut api = cluster(&["10.96.0.0/28"]);
    for host in 1..=14 {
        let kept = json!({"metadata": {"name": format!("10.96.0.{host}")},
            "spec": {"parentRef": {"group": "example.org", "resource": "gateways", "name": "g"}}});
        if host != 9 {
            api.create("ipaddresses", "", kept).expect("created");
        }
    }
    let status = service(&mut api, "a", json!({"clusterIP": "10.96.0.3"})).expect_err("kept");
    assert!(status.message.ends_with("provided IP is already allocated"), "{status}");
    let value = service(&mut api, "a", json!({})).expect("created");
    assert_eq!(value["spec"]["clusterIP"], "10.96.0.9", "the only one that is free");
    let status = service(&mut api, "b", json!({})).expect_err("full");
    assert!(status.message.contains("range is full"), "{status}");
    api.delete("ipaddresses", "", "10.96.0.3", json!({})).expect("deleted");
    let value = service(&mut api, "b", json!({})).expect("created");
    assert_eq!(value["spec"]["clusterIP"], "10.96.0.3");
    // Whoever removes the object of a Service does not free the address.
    let uid = |api: &Api| {
        let object = api.get("ipaddresses", "", "10.96.0.3").expect("an object");
        assert_eq!(object.value["spec"]["parentRef"]["name"], "b");
        object.uid().to_owned()
    };
    let before = uid(&api);
    api.delete("ipaddresses", "", "10.96.0.3", json!({})).expect("deleted");
    assert_ne!(uid(&api), before, "another object in its place");
    let status = service(&mut api, "c", json!({"clusterIP": "10.96.0.3"})).expect_err("taken");
    assert!(status.message.ends_with("provided IP is already allocated"), "{status}");
}

#[test]
fn a_range_that_is_added_gives_addresses_at_once_until_it_is_deleted() {
    let mut api = cluster(&["10.96.0.0/28"]);
    for index in 0..14 {
        service(&mut api, &format!("s{index}"), json!({})).expect("created");
    }
    service(&mut api, "more", json!({})).expect_err("full");
    let far = json!({"clusterIP": "10.97.0.5"});
    service(&mut api, "far", far.clone()).expect_err("outside");
    range(&mut api, "more", json!(["10.97.0.0/24"])).expect("created");
    let value = service(&mut api, "more", json!({})).expect("the added range");
    let address = value["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
    assert!(address.starts_with("10.97.0."), "{address}");
    service(&mut api, "far", far).expect("inside now");
    // It survives a restart.
    let objects = api
        .log
        .iter()
        .filter(|record| {
            api.get(
                record.object.resource.plural,
                &record.object.key.namespace,
                &record.object.key.name,
            )
            .is_ok()
        })
        .map(|record| record.object.value.to_string())
        .zip(api.log.iter().map(store::Record::object_key))
        .map(|(text, key)| {
            store::record::object_from_bytes(&store::Definitions::default(), &key, text.as_bytes())
        });
    let objects: Vec<_> = objects.collect::<Result<_, _>>().expect("objects");
    let mut api = Api::over(
        Store::restore(config(&["10.96.0.0/28"]), store::Definitions::default(), objects, [])
            .expect("one"),
    );
    service(&mut api, "again", json!({})).expect("from the added range");
    // It is held while addresses are out there, but gives no more of them.
    let held = json!({"metadata": {"finalizers": ["networking.k8s.io/service-cidr-finalizer"]}});
    api.patch("servicecidrs", "", "more", PatchKind::Merge, held).expect("held");
    api.delete("servicecidrs", "", "more", json!({})).expect("marked");
    let status = service(&mut api, "late", json!({})).expect_err("full again");
    assert!(status.message.contains("range is full"), "{status}");
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    api.patch("services", "default", "far", PatchKind::Merge, label).expect("what it has it keeps");
}

#[test]
fn ranges_are_checked_and_only_grow_by_a_family() {
    let one = json!(["10.97.0.0/24"]);
    for (cidrs, message) in [
        (json!([]), "spec.cidrs: Required value: at least one CIDR required"),
        (
            json!(["10.97.0.0/24", "fd00:97::/64", "10.98.0.0/24"]),
            "spec.cidrs: Invalid value: [\"10.97.0.0/24\",\"fd00:97::/64\",\"10.98.0.0/24\"]: may \
             only hold up to 2 values",
        ),
        (
            json!(["10.97.0.0/24", "10.98.0.0/24"]),
            "spec.cidrs: Invalid value: [\"10.97.0.0/24\",\"10.98.0.0/24\"]: may specify no more \
             than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
        ),
        (
            json!(["10.97.0.1/24"]),
            "spec.cidrs[0]: Invalid value: \"10.97.0.1/24\": must not have bits set beyond the \
             prefix length",
        ),
    ] {
        let status = range(&mut cluster(&["10.96.0.0/16"]), "r", cidrs).expect_err("refused");
        let wanted = format!("ServiceCIDR.networking.k8s.io \"r\" is invalid: {message}");
        assert_eq!(status.message, wanted);
    }
    let mut api = cluster(&["10.96.0.0/16"]);
    range(&mut api, "r", one.clone()).expect("created");
    let mut change = |cidrs: Value| {
        let body = json!({"spec": {"cidrs": cidrs}});
        api.patch("servicecidrs", "", "r", PatchKind::Merge, body).map(|_| ())
    };
    change(json!(["10.98.0.0/24"])).expect_err("another range");
    change(json!(["fd00:97::/64", "10.97.0.0/24"])).expect_err("another order");
    change(json!(["10.97.0.0/24", "fd00:97::/64"])).expect("a second family");
    change(one).expect_err("back to one");
}

#[test]
fn an_ip_address_object_has_the_name_of_an_address_and_a_parent_for_good() {
    let mut api = cluster(&["10.96.0.0/16"]);
    let parent = json!({"resource": "services", "namespace": "default", "name": "web"});
    for (name, spec, message) in [
        (
            "one",
            json!({"parentRef": parent}),
            "metadata.name: Invalid value: \"one\": must be a valid IP address, (e.g. 10.9.8.7 or \
             2001:db8::ffff)",
        ),
        (
            "fd00:0::1",
            json!({"parentRef": parent}),
            "metadata.name: Invalid value: \"fd00:0::1\": must be in canonical form (\"fd00::1\")",
        ),
        ("10.96.7.1", json!({}), "spec.parentRef: Required value"),
        (
            "10.96.7.1",
            json!({"parentRef": {"resource": "services"}}),
            "spec.parentRef.name: Required value",
        ),
    ] {
        let body = json!({"metadata": {"name": name}, "spec": spec});
        let status = api.create("ipaddresses", "", body).expect_err("refused");
        let wanted = format!("IPAddress.networking.k8s.io \"{name}\" is invalid: {message}");
        assert_eq!(status.message, wanted);
    }
    let body = json!({"metadata": {"name": "10.96.7.1"}, "spec": {"parentRef": parent}});
    api.create("ipaddresses", "", body).expect("created");
    let other = json!({"spec": {"parentRef": {"name": "other"}}});
    let status = api.patch("ipaddresses", "", "10.96.7.1", PatchKind::Merge, other);
    assert!(status.expect_err("refused").message.contains("field is immutable"));
    // Who made it for a Service beforehand has kept the address for that one.
    let fixed = json!({"clusterIP": "10.96.7.1"});
    service(&mut api, "other", fixed.clone()).expect_err("kept for another");
    service(&mut api, "web", fixed).expect("kept for this one");
    let objects = api.store.list(row("ipaddresses"), &Default::default()).expect("a list");
    let table = store::table::table(
        row("ipaddresses"),
        objects.items.iter().map(|object| &**object),
        json!({}),
        api.now,
        store::Include::None,
        false,
    );
    assert_eq!(table["rows"][0]["cells"], json!(["10.96.7.1", "services/default/web", "0s"]));
    assert!(row("servicecidrs").subresource("status") == Some(Subresource::Status));
}
