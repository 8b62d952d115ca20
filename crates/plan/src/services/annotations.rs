//! What Services ask for by annotations. A text that cannot be read changes nothing: the Service
//! works as without it, and a [`crate::Finding`] says why (invariant 8).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::Protocol;
use model::kinds::{Endpoint, ServicePort};

use super::{IpvsScheduler, Scheduling};

/// The most ranges that one Service may ask for.
pub const PORT_RANGES_MAX: usize = 64;
/// The most weights that one Service may give.
pub const WEIGHTS_MAX: usize = 256;

/// Ranges of ports by protocol: sorted, with gaps between them, without the ports that the Service
/// lists itself.
pub(super) type PortRanges = BTreeMap<Protocol, Vec<(u16, u16)>>;

/// Reads `all`, or a list such as `tcp:30000-30100,udp:5060`.
pub(super) fn port_ranges(text: &str, listed: &[ServicePort]) -> Result<PortRanges, String> {
    let mut asked: BTreeMap<Protocol, BTreeSet<(u16, u16)>> = BTreeMap::new();
    if text.trim() == "all" {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            asked.entry(protocol).or_default().insert((1, u16::MAX));
        }
    } else {
        if text.split(',').count() > PORT_RANGES_MAX {
            return Err(format!("there are more than {PORT_RANGES_MAX} ranges"));
        }
        for item in text.split(',') {
            let (protocol, range) = port_range(item.trim())?;
            asked.entry(protocol).or_default().insert(range);
        }
    }
    let mut ranges = PortRanges::new();
    for (protocol, asked) in asked {
        let listed: BTreeSet<u16> =
            listed.iter().filter(|port| port.protocol == protocol).map(|port| port.port).collect();
        ranges.insert(protocol, without(&joined(&asked), &listed));
    }
    Ok(ranges)
}

fn port_range(item: &str) -> Result<(Protocol, (u16, u16)), String> {
    let example = "write for example tcp:30000-30100";
    let Some((protocol, ports)) = item.split_once(':') else {
        return Err(format!("{item:?} names no protocol: {example}"));
    };
    let protocol: Protocol = protocol.parse()?;
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let number = |text: &str| text.parse::<u16>().ok().filter(|&port| port != 0);
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok((protocol, (first, last))),
        _ => Err(format!("{ports:?} is no range of ports from 1 to 65535: {example}")),
    }
}

/// Ranges in order, with those that touch made one.
fn joined(ranges: &BTreeSet<(u16, u16)>) -> Vec<(u16, u16)> {
    let mut joined: Vec<(u16, u16)> = Vec::new();
    for &(first, last) in ranges {
        match joined.last_mut() {
            Some(previous) if first <= previous.1.saturating_add(1) => {
                previous.1 = previous.1.max(last);
            }
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// What is left of ranges without some ports.
fn without(ranges: &[(u16, u16)], ports: &BTreeSet<u16>) -> Vec<(u16, u16)> {
    let mut left = Vec::new();
    for &(first, last) in ranges {
        let mut next = u32::from(first);
        for &port in ports.range(first..=last) {
            push_range(&mut left, next, u32::from(port) - 1);
            next = u32::from(port) + 1;
        }
        push_range(&mut left, next, u32::from(last));
    }
    left
}

/// Bounds are wider than ports: one beyond the last port, or one before the first, is no range.
fn push_range(ranges: &mut Vec<(u16, u16)>, first: u32, last: u32) {
    if let (Ok(first), Ok(last)) = (u16::try_from(first), u16::try_from(last))
        && first <= last
    {
        ranges.push((first, last));
    }
}

/// Reads the way to choose endpoints.
pub(super) fn scheduling(text: &str) -> Result<Scheduling, String> {
    match text.trim() {
        "random" => Ok(Scheduling::Random),
        "least-connection" => Ok(Scheduling::LeastConnection),
        "maglev" => Ok(Scheduling::Maglev),
        other => match IpvsScheduler::from_annotation(other) {
            Some(scheduler) => Ok(Scheduling::Ipvs(scheduler, BTreeMap::new())),
            None => Err(format!(
                "{other:?} is none of random, least-connection, maglev, and ipvs- with the name of \
                 an algorithm of IPVS"
            )),
        },
    }
}

/// Weights of endpoints in the order of the annotation.
#[derive(Default)]
pub(super) struct Weights<'a>(Vec<(Chosen<'a>, u16)>);

/// Which endpoints a weight is for.
enum Chosen<'a> {
    Address(IpAddr),
    Name(&'a str),
    NameBegins(&'a str),
}

impl<'a> Weights<'a> {
    /// Reads a list such as `web-canary-*=5,web-*=95,10.0.0.7=0`.
    pub(super) fn read(text: &'a str) -> Result<Self, String> {
        if text.split(',').count() > WEIGHTS_MAX {
            return Err(format!("there are more than {WEIGHTS_MAX} weights"));
        }
        let items = text.split(',').map(|item| {
            let (chosen, weight) = item
                .split_once('=')
                .ok_or_else(|| format!("{item:?} gives no weight: write for example web-*=5"))?;
            let weight: u16 = weight
                .trim()
                .parse()
                .map_err(|_| format!("{weight:?} is no weight from 0 to {}", u16::MAX))?;
            Ok((Chosen::read(chosen.trim())?, weight))
        });
        Ok(Self(items.collect::<Result<_, String>>()?))
    }

    /// Whether any weight is given.
    pub(super) fn are_given(&self) -> bool {
        !self.0.is_empty()
    }

    /// The weight of one endpoint.
    pub(super) fn of(&self, endpoint: &Endpoint, address: IpAddr) -> u16 {
        let name = endpoint.target_ref.as_ref().map_or("", |target| target.name.as_str());
        let fits = |chosen: &Chosen<'_>| match *chosen {
            Chosen::Address(chosen) => chosen == address,
            Chosen::Name(chosen) => chosen == name,
            Chosen::NameBegins(beginning) => !name.is_empty() && name.starts_with(beginning),
        };
        self.0.iter().find(|(chosen, _)| fits(chosen)).map_or(1, |&(_, weight)| weight)
    }
}

impl<'a> Chosen<'a> {
    fn read(text: &'a str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        match text.strip_suffix('*') {
            Some(beginning) if !beginning.contains('*') => Ok(Self::NameBegins(beginning)),
            None if !text.is_empty() && !text.contains('*') => Ok(Self::Name(text)),
            _ => Err(format!(
                "{text:?} is no address, no pod's name and no beginning of one with one * at its end"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ports_are_joined_and_leave_the_listed_ports_out() {
        use Protocol::{Sctp, Tcp, Udp};
        type Row<'a> = (&'a str, &'a [(Protocol, u16)], &'a [(Protocol, &'a [(u16, u16)])]);
        let rows: [Row<'_>; 9] = [
            ("tcp:30000-30100", &[], &[(Tcp, &[(30000, 30100)])]),
            ("udp:5060", &[], &[(Udp, &[(5060, 5060)])]),
            (" sctp:1-2 , UDP:7", &[], &[(Udp, &[(7, 7)]), (Sctp, &[(1, 2)])]),
            ("tcp:1-5,tcp:3-9,tcp:10-12,tcp:14", &[], &[(Tcp, &[(1, 12), (14, 14)])]),
            ("tcp:1-9", &[(Tcp, 5), (Udp, 7)], &[(Tcp, &[(1, 4), (6, 9)])]),
            ("tcp:1-9", &[(Tcp, 1), (Tcp, 9), (Tcp, 10)], &[(Tcp, &[(2, 8)])]),
            ("tcp:5", &[(Tcp, 5)], &[(Tcp, &[])]),
            ("tcp:1-65535", &[(Tcp, 1), (Tcp, 65535)], &[(Tcp, &[(2, 65534)])]),
            (
                "all",
                &[(Tcp, 80), (Udp, 53)],
                &[
                    (Tcp, &[(1, 79), (81, 65535)]),
                    (Udp, &[(1, 52), (54, 65535)]),
                    (Sctp, &[(1, 65535)]),
                ],
            ),
        ];
        for (text, listed, expected) in rows {
            let port = |&(protocol, port)| ServicePort { protocol, port, ..Default::default() };
            let listed: Vec<ServicePort> = listed.iter().map(port).collect();
            let expected: PortRanges =
                expected.iter().map(|(protocol, ranges)| (*protocol, ranges.to_vec())).collect();
            assert_eq!(port_ranges(text, &listed), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_range_is_named() {
        let many = vec!["tcp:1"; PORT_RANGES_MAX + 1].join(",");
        let rows = [
            ("", "names no protocol"),
            ("80", "names no protocol"),
            ("tcp:0-5", "no range"),
            ("tcp:5-4", "no range"),
            ("tcp:1-65536", "no range"),
            ("tcp:", "no range"),
            ("icmp:1", "unknown protocol"),
            ("all,tcp:1", "names no protocol"),
            (&many, "more than 64"),
        ];
        for (text, reason) in rows {
            let error = port_ranges(text, &[]).expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn the_first_weight_that_fits_counts() {
        let text = "10.0.0.7=0, web-canary-*=5,web-*=95 ,db=7";
        let weights = Weights::read(text).expect("weights");
        let rows = [
            ("web-canary-1", "10.0.0.1", 5),
            ("web-1", "10.0.0.1", 95),
            ("web-1", "10.0.0.7", 0),
            ("db", "10.0.0.1", 7),
            ("db-0", "10.0.0.1", 1),
            ("", "10.0.0.1", 1),
        ];
        for (name, address, expected) in rows {
            let target_ref = model::kinds::TargetReference { name: name.into() };
            let endpoint = Endpoint { target_ref: Some(target_ref.into()), ..Endpoint::default() };
            let address = address.parse().expect("an address");
            assert_eq!(weights.of(&endpoint, address), expected, "{name} {address}");
        }
    }

    #[test]
    fn what_is_no_weight_is_named() {
        let many = vec!["a=1"; WEIGHTS_MAX + 1].join(",");
        let rows = [
            ("", "gives no weight"),
            ("web", "gives no weight"),
            ("web=65536", "no weight from 0 to 65535"),
            ("web=-1", "no weight"),
            ("=5", "no address"),
            ("w*b=5", "no address"),
            ("**=5", "no address"),
            (&many, "more than 256"),
        ];
        for (text, reason) in rows {
            let error = Weights::read(text).err().unwrap_or_default();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
