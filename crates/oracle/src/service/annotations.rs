//! Our annotations, read anew for every question. One that cannot be read says nothing.

use std::net::IpAddr;

use model::kinds::{Endpoint, PORT_RANGES_ANNOTATION, SCHEDULING_ANNOTATION, WEIGHTS_ANNOTATION};
use model::{Protocol, Service};

/// Whether the Service has a port by its annotation.
pub fn has_port(service: &Service, protocol: Protocol, port: u16) -> bool {
    let Some(text) = service.metadata.annotations.get(PORT_RANGES_ANNOTATION) else {
        return false;
    };
    if text.trim() == "all" {
        return port != 0;
    }
    let items: Option<Vec<(Protocol, u16, u16)>> = text.split(',').map(port_range).collect();
    // More than 64 are not read.
    items.filter(|items| items.len() <= 64).is_some_and(|items| {
        let mut items = items.into_iter();
        items.any(|(own, first, last)| own == protocol && (first..=last).contains(&port))
    })
}

/// The weight of an endpoint: 1 unless the annotation says otherwise.
pub fn weight(service: &Service, endpoint: &Endpoint, address: IpAddr) -> u16 {
    let annotations = &service.metadata.annotations;
    let scheduling = annotations.get(SCHEDULING_ANNOTATION).map(|text| text.trim());
    let Some(text) = annotations.get(WEIGHTS_ANNOTATION) else { return 1 };
    if matches!(scheduling, Some("least-connection" | "maglev")) {
        return 1;
    }
    let items: Option<Vec<(&str, u16)>> = text.split(',').map(weight_item).collect();
    // More than 256 are not read.
    let Some(items) = items.filter(|items| items.len() <= 256) else { return 1 };
    let name = endpoint.target_ref.as_ref().map_or("", |target| &target.name);
    let fits = |who: &str| match (who.parse::<IpAddr>(), who.strip_suffix('*')) {
        (Ok(chosen), _) => chosen == address,
        (_, Some(beginning)) => !name.is_empty() && name.starts_with(beginning),
        (_, None) => who == name,
    };
    items.into_iter().find(|(who, _)| fits(who)).map_or(1, |(_, weight)| weight)
}

/// `tcp:30000-30100` or `udp:5060`.
fn port_range(item: &str) -> Option<(Protocol, u16, u16)> {
    let (protocol, ports) = item.trim().split_once(':')?;
    let (first, last) = match ports.split_once('-') {
        Some((first, last)) => (first.parse().ok()?, last.parse().ok()?),
        None => (ports.parse().ok()?, ports.parse().ok()?),
    };
    let range = (protocol.parse().ok()?, first, last);
    (first > 0 && first <= last).then_some(range)
}

/// `web-*=5`: an address, a pod's name or the beginning of one, and a weight.
fn weight_item(item: &str) -> Option<(&str, u16)> {
    let (who, weight) = item.split_once('=')?;
    let who = who.trim();
    let name = who.strip_suffix('*').unwrap_or(who);
    (!who.is_empty() && !name.contains('*')).then_some((who, weight.trim().parse().ok()?))
}
