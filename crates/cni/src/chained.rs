//! ADD behind a plugin that made the interface: only what happens at its edge is ours, and the
//! result is the one that came (CNI-11).

use model::Attachment;
use model::attachment::PodLink;
use netlink::{Link, Netns};
use serde_json::{Value, json};

use crate::addresses::Invocation;
use crate::command::{begun, delete, open_records, protect};
use crate::config::Previous;
use crate::fault::{Fault, INVALID_CONFIG};
use crate::link;
use crate::link::options::LinkOptions;

/// Adds rules, limits and properties to the interface, and passes the result on.
pub(crate) fn add(call: &Invocation<'_>) -> Result<Value, Fault> {
    let (request, config) = (call.request, call.config);
    let Some(previous) = &config.previous else { return Ok(Value::Null) };
    let options = LinkOptions::parse(call.value, request)?;
    let namespace = link::open_namespace(request)?;
    let attachment = adopt(call, previous, &options, &namespace)?;
    let records = open_records(call)?;
    let twice = records.find(&request.container_id, &request.interface)?;
    if twice.is_some_and(|other| !matches!(other.link, PodLink::Chained { .. })) {
        return Err(Fault::new(
            INVALID_CONFIG,
            "this plugin made the interface itself",
            "name it once in the list, with all keys",
        ));
    }
    let change = || -> Result<Link, Fault> {
        protect(call, &records, &attachment)?;
        link::show_to_rules(&attachment)?;
        let tuned = link::tune(request, &options, &namespace, &attachment)?;
        records.finish(&attachment)?;
        drop(records);
        Ok(tuned)
    };
    let tuned = change().inspect_err(|_| {
        let _ = delete(call);
    })?;
    let mut result = passed_on(previous, &config.version);
    let own = previous.success.position(&request.interface);
    if let Some(entry) = own.and_then(|own| result.pointer_mut(&format!("/interfaces/{own}"))) {
        if options.mac.is_some() {
            entry["mac"] = json!(tuned.mac.unwrap_or_default().to_string());
        }
        if options.mtu.is_some() && entry.get("mtu").is_some() {
            entry["mtu"] = json!(tuned.mtu);
        }
    }
    Ok(result)
}

fn adopt(
    call: &Invocation<'_>,
    previous: &Previous,
    options: &LinkOptions,
    namespace: &Netns,
) -> Result<Attachment, Fault> {
    let interface = &call.request.interface;
    let original = link::adopt(namespace, interface)?;
    let own = previous.success.position(interface);
    let addresses = previous.success.addresses.iter();
    let addresses: Vec<_> = addresses
        .filter(|one| one.interface_index.is_none() || one.interface_index == own)
        .map(|one| one.address)
        .collect();
    let mut edge = call.config.edge.of(&addresses);
    edge.anti_spoofing &= !addresses.is_empty();
    Ok(Attachment {
        link: link::find_chained(namespace, interface)?,
        mac: options.mac.unwrap_or(original.mac),
        addresses,
        edge,
        original: Some(original),
        ..begun(call, options)?
    })
}

/// The earlier result in the caller's version: as it came, where it is in that version.
fn passed_on(previous: &Previous, version: &str) -> Value {
    let mut value = previous.value.clone();
    match value.get("cniVersion").and_then(Value::as_str) {
        Some(came) if came != version => previous.success.to_json(version),
        Some(_) => value,
        None => {
            value["cniVersion"] = json!(version);
            value
        }
    }
}
