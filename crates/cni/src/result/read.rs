//! Results of others: an earlier plugin's, or a delegate's.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::{Address, Interface, Success};
use crate::config::{Dns, Route};

/// A result of 0.3.0 or later. What it does not say is empty.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ListForm {
    interfaces: Vec<Interface>,
    ips: Vec<Address>,
    routes: Vec<Route>,
    dns: Dns,
}

/// A result of 0.1.0 or 0.2.0.
#[derive(Default, Deserialize)]
#[serde(default)]
struct PairForm {
    ip4: Option<PairEntry>,
    ip6: Option<PairEntry>,
    dns: Dns,
}

#[derive(Deserialize)]
struct PairEntry {
    ip: IpNet,
    gateway: Option<IpAddr>,
    #[serde(default)]
    routes: Vec<Route>,
}

impl Success {
    /// Reads a result of any version. Old ones are told by their keys, since the first plugins
    /// wrote no version.
    ///
    /// # Errors
    /// What cannot be understood, in words.
    pub fn from_json(value: &Value) -> Result<Self, String> {
        let object = value.as_object().ok_or("it is no JSON object")?;
        let pair_form = ["ip4", "ip6"].iter().any(|key| object.contains_key(*key));
        let success = if pair_form {
            serde_json::from_value(value.clone()).map(from_pair_form)
        } else {
            serde_json::from_value(value.clone()).map(from_list_form)
        };
        let success: Self = success.map_err(|error| error.to_string())?;
        let count = success.interfaces.len();
        let nowhere = |address: &&Address| address.interface_index.is_some_and(|one| one >= count);
        if let Some(address) = success.addresses.iter().find(nowhere) {
            return Err(format!(
                "the address {} is of no interface that it names",
                address.address
            ));
        }
        Ok(success)
    }

    /// The position of a container's interface: one of that name in any namespace but the node's.
    pub fn position(&self, interface: &str) -> Option<usize> {
        self.interfaces.iter().position(|one| one.name == interface && !one.sandbox.is_empty())
    }
}

fn from_list_form(form: ListForm) -> Success {
    Success { interfaces: form.interfaces, addresses: form.ips, routes: form.routes, dns: form.dns }
}

fn from_pair_form(form: PairForm) -> Success {
    let mut success = Success { dns: form.dns, ..Success::default() };
    for entry in [form.ip4, form.ip6].into_iter().flatten() {
        let PairEntry { ip, gateway, routes } = entry;
        success.addresses.push(Address { address: ip, gateway, interface_index: None });
        success.routes.extend(routes);
    }
    success
}
