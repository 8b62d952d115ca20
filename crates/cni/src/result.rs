//! [`Success`]: what ADD answers, written and read in every version of the specification.

mod read;

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::config::{Dns, Route};
use crate::version::at_least;

/// What ADD made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Success {
    /// All interfaces, the node's and the pod's.
    pub interfaces: Vec<Interface>,
    /// The pod's addresses.
    pub addresses: Vec<Address>,
    /// Routes inside the pod.
    pub routes: Vec<Route>,
    /// Resolver settings, passed through.
    pub dns: Dns,
}

/// An interface that ADD made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its link-layer address; empty when it has none.
    pub mac: String,
    /// Its MTU in bytes; 0 when nobody said.
    pub mtu: u32,
    /// Its network namespace; empty for the node's.
    pub sandbox: String,
    /// The socket of an interface that is one, not a link (since 1.1.0).
    pub socket_path: String,
    /// The PCI device behind it (since 1.1.0).
    #[serde(rename = "pciID")]
    pub pci_id: String,
}

/// An address that the pod got.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Address {
    /// The address with its prefix length.
    pub address: IpNet,
    /// The gateway of its subnet.
    pub gateway: Option<IpAddr>,
    /// Which of the interfaces has it; IPAM plugins do not say.
    #[serde(rename = "interface")]
    pub interface_index: Option<usize>,
}

impl Success {
    /// The document in one supported version.
    pub fn to_json(&self, version: &str) -> Value {
        if at_least(version, "0.3.0") {
            self.to_list_form(version)
        } else {
            self.to_pair_form(version)
        }
    }

    /// 0.3.0 and later: lists of interfaces, addresses and routes.
    fn to_list_form(&self, version: &str) -> Value {
        let interfaces = self.interfaces.iter().map(|interface| {
            let mut entry = Map::new();
            entry.insert("name".into(), json!(interface.name));
            let mut insert = |key: &str, text: &str| {
                if !text.is_empty() {
                    entry.insert(key.into(), json!(text));
                }
            };
            insert("mac", &interface.mac);
            insert("sandbox", &interface.sandbox);
            if at_least(version, "1.1.0") {
                insert("socketPath", &interface.socket_path);
                insert("pciID", &interface.pci_id);
                if interface.mtu != 0 {
                    entry.insert("mtu".into(), json!(interface.mtu));
                }
            }
            Value::Object(entry)
        });
        let addresses = self.addresses.iter().map(|address| {
            let mut entry = Map::new();
            if !at_least(version, "1.0.0") {
                let family = if address.address.addr().is_ipv4() { "4" } else { "6" };
                entry.insert("version".into(), json!(family));
            }
            if let Some(index) = address.interface_index {
                entry.insert("interface".into(), json!(index));
            }
            entry.insert("address".into(), json!(address.address));
            if let Some(gateway) = address.gateway {
                entry.insert("gateway".into(), json!(gateway));
            }
            Value::Object(entry)
        });
        let routes = self.routes.iter().map(|route| route_json(route, version));
        let mut document = Map::new();
        document.insert("cniVersion".into(), json!(version));
        // An IPAM plugin's result has none.
        if !self.interfaces.is_empty() {
            document.insert("interfaces".into(), interfaces.collect());
        }
        document.insert("ips".into(), addresses.collect());
        document.insert("routes".into(), routes.collect());
        document.insert("dns".into(), json!(self.dns));
        Value::Object(document)
    }

    /// Before 0.3.0: at most one address a family, with its routes inside.
    fn to_pair_form(&self, version: &str) -> Value {
        let mut document = Map::new();
        document.insert("cniVersion".into(), json!(version));
        for (key, ipv4) in [("ip4", true), ("ip6", false)] {
            let of_family = |address: &&Address| address.address.addr().is_ipv4() == ipv4;
            let Some(address) = self.addresses.iter().find(of_family) else { continue };
            let routes = self.routes.iter().filter(|route| route.dst.addr().is_ipv4() == ipv4);
            let mut entry = Map::new();
            entry.insert("ip".into(), json!(address.address));
            if let Some(gateway) = address.gateway {
                entry.insert("gateway".into(), json!(gateway));
            }
            let routes: Vec<Value> = routes.map(|route| route_json(route, version)).collect();
            entry.insert("routes".into(), Value::Array(routes));
            document.insert(key.into(), Value::Object(entry));
        }
        document.insert("dns".into(), json!(self.dns));
        Value::Object(document)
    }
}

/// A route; all but destination and gateway is known from 1.1.0 on.
fn route_json(route: &Route, version: &str) -> Value {
    if at_least(version, "1.1.0") {
        return json!(route);
    }
    json!(Route { gw: route.gw, ..Route::to(route.dst) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn success() -> Success {
        let interface = |name: &str, sandbox: &str| Interface {
            name: name.into(),
            mac: "0a:58:0a:f4:01:05".into(),
            mtu: 1450,
            sandbox: sandbox.into(),
            ..Interface::default()
        };
        let address = |text: &str, gateway: &str| Address {
            address: text.parse().expect("a prefix"),
            gateway: gateway.parse().ok(),
            interface_index: Some(1),
        };
        let route = |destination: &str| Route {
            mtu: Some(1400),
            table: Some(100),
            scope: Some(0),
            ..Route::to(destination.parse().expect("a prefix"))
        };
        Success {
            interfaces: vec![interface("veth1", ""), interface("eth0", "/run/netns/c1")],
            addresses: vec![
                address("10.244.1.5/24", "10.244.1.1"),
                address("fd00::5/64", "fd00::1"),
            ],
            routes: vec![route("0.0.0.0/0"), route("::/0")],
            dns: Dns::default(),
        }
    }

    #[test]
    fn before_0_3_0_there_is_one_address_a_family() {
        for version in ["0.1.0", "0.2.0"] {
            let expected = json!({
                "cniVersion": version,
                "ip4": { "ip": "10.244.1.5/24", "gateway": "10.244.1.1", "routes": [{ "dst": "0.0.0.0/0" }] },
                "ip6": { "ip": "fd00::5/64", "gateway": "fd00::1", "routes": [{ "dst": "::/0" }] },
                "dns": {},
            });
            assert_eq!(success().to_json(version), expected);
        }
    }

    #[test]
    fn up_to_0_4_0_addresses_say_their_family() {
        for version in ["0.3.0", "0.3.1", "0.4.0"] {
            let result = success().to_json(version);
            assert_eq!(
                result["ips"][1],
                json!({ "version": "6", "interface": 1, "address": "fd00::5/64", "gateway": "fd00::1" })
            );
            assert_eq!(
                result["interfaces"][0],
                json!({ "name": "veth1", "mac": "0a:58:0a:f4:01:05" })
            );
            assert_eq!(result["routes"][0], json!({ "dst": "0.0.0.0/0" }));
        }
    }

    #[test]
    fn from_1_0_0_they_do_not_and_1_1_0_adds_mtus() {
        let old = success().to_json("1.0.0");
        assert_eq!(
            old["ips"][0],
            json!({ "interface": 1, "address": "10.244.1.5/24", "gateway": "10.244.1.1" })
        );
        assert_eq!(old["interfaces"][1]["sandbox"], "/run/netns/c1");
        assert_eq!(old["interfaces"][1].get("mtu"), None);
        let new = success().to_json("1.1.0");
        assert_eq!(new["interfaces"][1]["mtu"], 1450);
        let route = json!({ "dst": "0.0.0.0/0", "mtu": 1400, "table": 100, "scope": 0 });
        assert_eq!(new["routes"][0], route);
    }

    /// CNI-08: what is written in a version reads back as far as that version can say it.
    #[test]
    fn every_version_reads_back_as_itself() {
        for version in crate::version::SUPPORTED {
            let written = success().to_json(version);
            let read = Success::from_json(&written).expect(version);
            assert_eq!(read.to_json(version), written, "{version}");
            assert_eq!(read.addresses.len(), 2, "{version}");
        }
        let newest = success().to_json("1.1.0");
        assert_eq!(Success::from_json(&newest), Ok(success()));
    }

    /// CNI-08 both ways: an old result in a new version has all that the old one said.
    #[test]
    fn pair_form_becomes_list_form() {
        let old = json!({
            "ip4": { "ip": "10.1.0.5/24", "gateway": "10.1.0.1", "routes": [{ "dst": "0.0.0.0/0" }] },
            "dns": { "nameservers": ["10.96.0.10"] },
        });
        let expected = json!({
            "cniVersion": "1.1.0",
            "ips": [{ "address": "10.1.0.5/24", "gateway": "10.1.0.1" }],
            "routes": [{ "dst": "0.0.0.0/0" }],
            "dns": { "nameservers": ["10.96.0.10"] },
        });
        assert_eq!(Success::from_json(&old).expect("a result").to_json("1.1.0"), expected);
    }

    #[test]
    fn results_that_cannot_be_understood_are_refused() {
        let interfaces = json!([{ "name": "eth0" }]);
        for wrong in [
            json!([]),
            json!("text"),
            json!({ "ips": [{ "address": "10.1.0.5" }] }),
            json!({ "ips": "10.1.0.5/24" }),
            json!({ "interfaces": interfaces, "ips": [{ "address": "10.1.0.5/24", "interface": 1 }] }),
            json!({ "interfaces": interfaces, "ips": [{ "address": "10.1.0.5/24", "interface": -1 }] }),
            json!({ "ip4": { "ip": "10.1.0.5/33" } }),
        ] {
            assert!(Success::from_json(&wrong).is_err(), "{wrong}");
        }
    }
}
