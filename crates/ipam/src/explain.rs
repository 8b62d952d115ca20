//! Why an address is free or not, and what contradicts itself: for people who look. Everything
//! here reads the very files that the allocator goes by (invariant 12).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::{Attachment, NamespacedName, Timestamp};
use serde::Serialize;

use crate::allocator::{Range, RangeSet};
use crate::directory::{REUSE_DELAY_S, Reservation};
use crate::withheld::Withheld;

/// Addresses of a range that are counted one by one; of larger ones only what is not free.
const COUNTED_MAX: u128 = 1 << 16;

/// All that is known of a network on a node.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Its name.
    pub network: &'a str,
    /// Its ranges; none when no configuration names it any more.
    pub sets: &'a [RangeSet],
    /// What the configuration keeps back.
    pub withheld: &'a Withheld,
    /// Its files.
    pub reservations: &'a BTreeMap<IpAddr, Reservation>,
    /// What was given back, and when.
    pub released: &'a BTreeMap<IpAddr, Timestamp>,
    /// Its attachments.
    pub records: &'a [Attachment],
    /// The time.
    pub now: Timestamp,
}

/// What an address is at the moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum State {
    /// A container has it.
    Held {
        /// Its id.
        #[serde(rename = "containerID")]
        container_id: String,
        /// The interface inside.
        interface: String,
        /// The pod, where a record names it.
        pod: Option<NamespacedName>,
        /// Since when.
        since: Timestamp,
    },
    /// A file stands for it that names nobody: its writer died, or it is no file of ours.
    Torn {
        /// Since when.
        since: Timestamp,
    },
    /// The pods' gateway.
    Gateway,
    /// The subnet's own address.
    Network,
    /// IPv4's address of all.
    Broadcast,
    /// The configuration gives it to nobody.
    Reserved,
    /// Free for a pod that asks for it.
    OnRequest,
    /// Free, but others come first (R-10).
    Resting {
        /// When it was given back.
        released: Timestamp,
        /// When it has rested.
        until: Timestamp,
    },
    /// Free.
    Free,
    /// In no range: nobody gets it here.
    Outside,
}

/// One address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AddressState {
    /// The network.
    pub network: String,
    /// The address.
    pub address: IpAddr,
    /// What it is.
    #[serde(flatten)]
    pub state: State,
}

/// How full a range is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RangeUse {
    /// The network.
    pub network: String,
    /// First and last address.
    pub range: String,
    /// Addresses that containers have.
    pub held: usize,
    /// Addresses that were given back a moment ago.
    pub resting: usize,
    /// Addresses that the next pod can have; absent for ranges that never run out.
    pub free: Option<usize>,
}

/// What was seen of a record's pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether its namespace exists.
    pub namespace: bool,
    /// Whether the node's end of its link exists; true for links that have none.
    pub link: bool,
    /// The addresses in its namespace.
    pub addresses: BTreeSet<IpAddr>,
}

/// Something that is wrong with an address. The text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The network.
    pub network: String,
    /// The address.
    pub address: IpAddr,
    /// What is wrong, and what to do.
    pub problem: String,
}

/// Says what an address is.
pub fn explain(known: &Known<'_>, address: IpAddr) -> AddressState {
    AddressState { network: known.network.to_owned(), address, state: state(known, address) }
}

/// All addresses that are not free, or not for everybody. Spans that are kept back stand in the
/// configuration and are not spelled out.
pub fn overview(known: &Known<'_>) -> Vec<AddressState> {
    let ranges = || known.sets.iter().flatten();
    let mut addresses: BTreeSet<IpAddr> = known.reservations.keys().copied().collect();
    addresses.extend(known.released.keys());
    addresses.extend(ranges().filter_map(Range::gateway));
    addresses.extend(ranges().map(|range| range.subnet.network()));
    let ipv4 = ranges().filter(|range| range.subnet.addr().is_ipv4());
    addresses.extend(ipv4.map(|range| range.subnet.broadcast()));
    let all = addresses.into_iter().map(|address| explain(known, address));
    all.filter(|one| one.state != State::Free).collect()
}

/// How full the ranges are.
pub fn ranges(known: &Known<'_>) -> Vec<RangeUse> {
    known.sets.iter().flatten().map(|range| range_use(known, range)).collect()
}

/// What contradicts itself. `seen` is what was found at each record's pod, in the same order.
pub fn check(known: &Known<'_>, seen: &[Seen]) -> Vec<Problem> {
    let mut problems = BTreeSet::new();
    let mut problem = |address: IpAddr, problem: String| {
        problems.insert(Problem { network: known.network.to_owned(), address, problem });
    };
    let mut users: BTreeMap<IpAddr, Vec<&Attachment>> = BTreeMap::new();
    for (record, seen) in known.records.iter().zip(seen) {
        for address in record.addresses.iter().map(|net| net.addr()) {
            let owner = known.reservations.get(&address);
            let is_own = owner.is_some_and(|owner| owner.container_id == record.container_id);
            if let Some(text) = fault_of(record, seen, address, is_own) {
                problem(address, text);
            }
            if seen.namespace {
                users.entry(address).or_default().push(record);
            }
        }
    }
    for (address, users) in users {
        if let [one, other, ..] = users.as_slice() {
            let (one, other) = (describe(one), describe(other));
            problem(address, format!("two pods have it, {one} and {other}: delete one of them"));
        }
    }
    for reservation in known.reservations.values().filter(|held| held.container_id.is_empty()) {
        let advice = format!("no DEL will free it: `flatnet ipam release {}`", reservation.address);
        problem(reservation.address, format!("its file names no container; {advice}"));
    }
    problems.into_iter().collect()
}

/// Addresses that two networks of a node give out.
pub fn check_across(networks: &[Known<'_>]) -> Vec<Problem> {
    let mut holders: BTreeMap<IpAddr, &str> = BTreeMap::new();
    let mut problems = Vec::new();
    for known in networks {
        for address in known.reservations.keys() {
            if let Some(other) = holders.insert(*address, known.network) {
                let network = known.network.to_owned();
                let problem = format!(
                    "the network {other} has given it out too: give the networks ranges that do \
                     not overlap"
                );
                problems.push(Problem { network, address: *address, problem });
            }
        }
    }
    problems
}

fn state(known: &Known<'_>, address: IpAddr) -> State {
    if let Some(held) = known.reservations.get(&address) {
        return held_state(known, held);
    }
    let ranges = || known.sets.iter().flatten();
    let Some(range) = ranges().find(|range| range.subnet.contains(&address)) else {
        return State::Outside;
    };
    if ranges().any(|range| range.gateway() == Some(address)) {
        return State::Gateway;
    }
    if address == range.subnet.network() {
        return State::Network;
    }
    if address.is_ipv4() && address == range.subnet.broadcast() {
        return State::Broadcast;
    }
    if !ranges().any(|range| range.allows(address)) {
        return State::Outside;
    }
    if known.withheld.is_reserved(address) {
        return State::Reserved;
    }
    if known.withheld.is_on_request(address) {
        return State::OnRequest;
    }
    match known.released.get(&address) {
        Some(released) if !has_rested(*released, known.now) => State::Resting {
            released: *released,
            until: Timestamp::from_microseconds(
                released.microseconds().saturating_add(REUSE_DELAY_S * 1_000_000),
            ),
        },
        _ => State::Free,
    }
}

fn held_state(known: &Known<'_>, held: &Reservation) -> State {
    if held.container_id.is_empty() {
        return State::Torn { since: held.since };
    }
    let record = known.records.iter().find(|record| {
        record.container_id == held.container_id
            && (held.interface.is_empty() || record.interface == held.interface)
    });
    State::Held {
        container_id: held.container_id.clone(),
        interface: held.interface.clone(),
        pod: record.and_then(|record| record.pod.clone()),
        since: held.since,
    }
}

fn range_use(known: &Known<'_>, range: &Range) -> RangeUse {
    let (first, last) = range.bounds();
    let is_in = |address: &&IpAddr| (first..=last).contains(*address);
    let resting = known
        .released
        .iter()
        .filter(|(address, at)| is_in(address) && !has_rested(**at, known.now))
        .count();
    let span: Option<crate::Span> = format!("{first}-{last}").parse().ok();
    let free = span.filter(|span| span.count() <= COUNTED_MAX).map(|span| {
        let all = (0..span.count()).filter_map(|index| span.nth(index));
        all.filter(|address| {
            range.allows(*address)
                && !known.reservations.contains_key(address)
                && known.withheld.skip(*address).is_none()
        })
        .count()
    });
    RangeUse {
        network: known.network.to_owned(),
        range: format!("{first}-{last}"),
        held: known.reservations.keys().filter(is_in).count(),
        resting,
        free,
    }
}

fn fault_of(record: &Attachment, seen: &Seen, address: IpAddr, is_own: bool) -> Option<String> {
    let pod = describe(record);
    if !seen.namespace {
        let advice = format!("the pod is gone: `flatnet ipam release {address}`");
        return is_own.then(|| format!("leaked by {pod}, whose namespace is gone; {advice}"));
    }
    if !is_own {
        return Some(format!(
            "{pod} has it, but its reservation is missing or another's, so that it may be given \
             twice: delete the pod"
        ));
    }
    if !seen.addresses.contains(&address) {
        return Some(format!("reserved for {pod}, which lost it: delete the pod"));
    }
    (!seen.link).then(|| format!("the node's link to {pod} is gone: delete the pod"))
}

fn describe(record: &Attachment) -> String {
    match &record.pod {
        Some(pod) => format!("pod {pod}"),
        None => format!("container {}", record.container_id),
    }
}

fn has_rested(released: Timestamp, now: Timestamp) -> bool {
    let passed = now.microseconds().saturating_sub(released.microseconds());
    passed >= REUSE_DELAY_S * 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn reservation(text: &str, container_id: &str) -> (IpAddr, Reservation) {
        let held = Reservation {
            address: address(text),
            container_id: container_id.into(),
            interface: "eth0".into(),
            since: Timestamp::from_seconds(10),
        };
        (held.address, held)
    }

    fn record(container_id: &str, addresses: &[&str]) -> Attachment {
        let pod = NamespacedName { namespace: "shop".into(), name: format!("pod-{container_id}") };
        Attachment {
            container_id: container_id.into(),
            interface: "eth0".into(),
            pod: Some(pod),
            addresses: addresses
                .iter()
                .map(|text| format!("{text}/24").parse().expect("a prefix"))
                .collect(),
            ..Attachment::default()
        }
    }

    fn alive(addresses: &[&str]) -> Seen {
        let addresses = addresses.iter().map(|text| address(text)).collect();
        Seen { namespace: true, link: true, addresses }
    }

    struct Case {
        sets: Vec<RangeSet>,
        withheld: Withheld,
        reservations: BTreeMap<IpAddr, Reservation>,
        released: BTreeMap<IpAddr, Timestamp>,
        records: Vec<Attachment>,
    }

    impl Case {
        fn new() -> Self {
            let ranges = r#"[[{"subnet":"10.0.0.0/28"}],[{"subnet":"fd00::/64"}]]"#;
            let withheld = r#"{"reserved":["10.0.0.8"],"onRequest":["10.0.0.9-10.0.0.10"]}"#;
            Self {
                sets: serde_json::from_str(ranges).expect("ranges"),
                withheld: serde_json::from_str(withheld).expect("withheld"),
                reservations: [reservation("10.0.0.2", "c1"), reservation("10.0.0.3", "")].into(),
                released: [
                    (address("10.0.0.4"), Timestamp::from_seconds(80)),
                    (address("10.0.0.5"), Timestamp::from_seconds(60)),
                ]
                .into(),
                records: vec![record("c1", &["10.0.0.2"])],
            }
        }

        fn known(&self) -> Known<'_> {
            Known {
                network: "net",
                sets: &self.sets,
                withheld: &self.withheld,
                reservations: &self.reservations,
                released: &self.released,
                records: &self.records,
                now: Timestamp::from_seconds(100),
            }
        }
    }

    #[test]
    fn every_address_has_a_reason() {
        let case = Case::new();
        let rows = [
            ("10.0.0.0", "network"),
            ("10.0.0.1", "gateway"),
            ("10.0.0.2", "held"),
            ("10.0.0.3", "torn"),
            ("10.0.0.4", "resting"),
            ("10.0.0.5", "free"),
            ("10.0.0.8", "reserved"),
            ("10.0.0.9", "onRequest"),
            ("10.0.0.14", "free"),
            ("10.0.0.15", "broadcast"),
            ("10.0.0.16", "outside"),
            ("fd00::1", "gateway"),
            ("fd00::2", "free"),
        ];
        for (text, expected) in rows {
            let found = serde_json::to_value(explain(&case.known(), address(text))).expect("JSON");
            assert_eq!(found["state"], expected, "{text}");
        }
        let held = serde_json::to_value(explain(&case.known(), address("10.0.0.2")));
        let expected = serde_json::json!({
            "network": "net", "address": "10.0.0.2", "state": "held", "containerID": "c1",
            "interface": "eth0", "since": "1970-01-01T00:00:10Z",
            "pod": { "namespace": "shop", "name": "pod-c1" },
        });
        assert_eq!(held.expect("JSON"), expected);
        let listed: Vec<String> =
            overview(&case.known()).iter().map(|one| one.address.to_string()).collect();
        let expected = [
            "10.0.0.0",
            "10.0.0.1",
            "10.0.0.2",
            "10.0.0.3",
            "10.0.0.4",
            "10.0.0.15",
            "fd00::",
            "fd00::1",
        ];
        assert_eq!(listed, expected);
    }

    /// A free address of the count is one that the allocator gives.
    #[test]
    fn what_counts_as_free_is_what_the_allocator_gives() {
        let case = Case::new();
        let uses = ranges(&case.known());
        assert_eq!((uses[0].held, uses[0].resting, uses[1].free), (2, 1, None));
        let mut occupancy = crate::allocator::Occupancy {
            taken: case.reservations.keys().copied().collect(),
            released: case.released.clone(),
        };
        let mut given = 0;
        while let Ok((address, _)) =
            crate::allocator::next(&case.sets[0], &occupancy, &case.withheld, None)
        {
            occupancy.taken.insert(address);
            given += 1;
        }
        assert_eq!(uses[0].free, Some(given));
    }

    #[test]
    fn leaks_doubles_and_losses_are_found_and_nothing_else() {
        let gone = Seen::default();
        let no_link = Seen { link: false, ..alive(&["10.0.0.2"]) };
        type Row<'a> = (&'a str, Vec<Attachment>, Vec<Seen>, Option<&'a str>);
        let rows: [Row<'_>; 6] = [
            ("well", vec![record("c1", &["10.0.0.2"])], vec![alive(&["10.0.0.2"])], None),
            ("leak", vec![record("c1", &["10.0.0.2"])], vec![gone.clone()], Some("leaked by")),
            ("moved on", vec![record("c9", &["10.0.0.2"])], vec![gone], None),
            ("lost", vec![record("c1", &["10.0.0.2"])], vec![alive(&[])], Some("lost it")),
            (
                "link",
                vec![record("c1", &["10.0.0.2"])],
                vec![no_link],
                Some("link to pod shop/pod-c1"),
            ),
            (
                "free",
                vec![record("c1", &["10.0.0.7"])],
                vec![alive(&["10.0.0.7"])],
                Some("given twice"),
            ),
        ];
        for (name, records, seen, expected) in rows {
            let mut case = Case::new();
            case.reservations.remove(&address("10.0.0.3"));
            case.records = records;
            let found: Vec<String> =
                check(&case.known(), &seen).into_iter().map(|one| one.problem).collect();
            match (expected, found.as_slice()) {
                (None, []) => {}
                (Some(expected), [only]) => assert!(only.contains(expected), "{name}: {only}"),
                _ => panic!("{name}: {found:?}"),
            }
        }
        let case = Case::new();
        assert_eq!(check_across(&[case.known()]), []);
        let other = Known { network: "other", ..case.known() };
        let doubles = check_across(&[case.known(), other]);
        assert_eq!(doubles.len(), 2);
        assert!(doubles[0].problem.contains("the network net has given it out too"), "{doubles:?}");

        let mut case = Case::new();
        case.records.push(record("c2", &["10.0.0.2"]));
        let seen = [alive(&["10.0.0.2"]), alive(&["10.0.0.2"])];
        let all: Vec<String> =
            check(&case.known(), &seen).into_iter().map(|one| one.problem).collect();
        for expected in
            ["two pods have it, pod shop/pod-c1 and pod shop/pod-c2", "names no container"]
        {
            assert!(all.iter().any(|text| text.contains(expected)), "{expected}: {all:?}");
        }
    }
}
