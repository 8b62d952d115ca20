//! What shall be in the kernel beside what is: for the operator (`flatnet links`, `routes`,
//! `node status`) and for naming damage. The very values that the loop compares (invariant 12).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use model::{ServiceAcceleration, layout};
use serde::{Deserialize, Serialize};

use crate::ebpf::node::{LinkPrograms, PacketsObserved, Sockets, UplinkProgram};
use crate::ebpf::{self, EbpfOp, NodeObserved, NodeProgram};
use crate::iptables::{self, IptablesObserved, IptablesOp, IptablesProgram};
use crate::ipvs::{self, IpvsObserved, IpvsProgram};
use crate::net::{
    self, LinkKind, LinkState, NetObserved, NetProgram, NetState, RouteState, WireguardPeer,
};
use crate::nft::{self, NftObserved, NftOp, NftProgram};
use crate::{Observed, Program};

const AS_PLANNED: &str = "as planned";

/// One object of ours, wanted or present.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// What it is: also the label of the counter of repairs.
    pub kind: RowKind,
    /// Which one.
    pub name: String,
    /// What it shall be; absent when it shall not be there.
    pub wanted: Option<String>,
    /// What it is; absent when it is not there.
    pub present: Option<String>,
    /// Whether the two differ.
    pub different: bool,
}

/// The kinds of object that the operator tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RowKind {
    /// A link, or the port that a pod's link shall be.
    Link,
    /// An address on a link.
    Address,
    /// A permanent neighbour.
    Neighbour,
    /// A forwarding entry of a tunnel.
    Forwarding,
    /// A WireGuard device or peer.
    Wireguard,
    /// A route.
    Route,
    /// A kernel parameter.
    Sysctl,
    /// The eBPF maps of Services, or programs that use them.
    Ebpf,
    /// A program that forwards packets of pods, and its link.
    Program,
    /// The virtual servers of IPVS, with the operations that would mend them.
    Ipvs,
    /// An iptables table, with the commands that would mend it.
    Iptables,
    /// An nftables table, with the commands that would mend it.
    Nftables,
}

impl RowKind {
    /// All kinds, in the order of the report.
    pub const ALL: [Self; 12] = [
        Self::Link,
        Self::Address,
        Self::Neighbour,
        Self::Forwarding,
        Self::Wireguard,
        Self::Route,
        Self::Sysctl,
        Self::Ebpf,
        Self::Program,
        Self::Ipvs,
        Self::Iptables,
        Self::Nftables,
    ];

    /// As it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Address => "address",
            Self::Neighbour => "neighbour",
            Self::Forwarding => "forwarding",
            Self::Wireguard => "wireguard",
            Self::Route => "route",
            Self::Sysctl => "sysctl",
            Self::Ebpf => "ebpf",
            Self::Program => "program",
            Self::Ipvs => "ipvs",
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

/// Everything that is wanted or present. Before anything is known of the node's network (no
/// [`NetProgram::state`](crate::net::NetProgram)) nothing of it differs.
pub fn inventory(program: &Program, observed: &Observed) -> Vec<Row> {
    rows(program, observed, true)
}

/// The rows of [`inventory`] that differ.
pub fn differences(program: &Program, observed: &Observed) -> Vec<Row> {
    rows(program, observed, false)
}

/// What somebody else broke between two readings of the kernel: differs now and did not before,
/// or differs in another way.
pub fn damage(program: &Program, before: &Observed, after: &Observed) -> Vec<Row> {
    if before == after {
        return vec![];
    }
    let known: BTreeSet<Row> = differences(program, before).into_iter().collect();
    differences(program, after).into_iter().filter(|row| !known.contains(row)).collect()
}

fn rows(program: &Program, observed: &Observed, all: bool) -> Vec<Row> {
    let present = &observed.net.state;
    let wanted = program.net.state.as_ref().unwrap_or(present);
    let mut rows = Rows { all, rows: vec![] };
    rows.net(wanted, &observed.net);
    rows.detached(wanted, &observed.net);
    rows.sysctls(wanted, &observed.net);
    rows.tracked_flows(&program.net, &observed.net);
    rows.ebpf(program.ebpf.as_ref(), &observed.ebpf);
    rows.ipvs(&program.ipvs, &observed.ipvs);
    rows.iptables(&program.iptables, &observed.iptables);
    rows.nft(&program.nft, &observed.nft);
    rows.rows
}

struct Rows {
    all: bool,
    rows: Vec<Row>,
}

impl Rows {
    fn net(&mut self, wanted: &NetState, observed: &NetObserved) {
        let present = &observed.state;
        self.maps(RowKind::Link, &wanted.links, &present.links, Clone::clone, link_text);
        let addresses = |state: &NetState| -> BTreeMap<String, ()> {
            let ours = |link: &str, address| {
                link != crate::net::LOOPBACK
                    || observed.marked_addresses.contains(&address)
                    || wanted.addresses.contains(&(link.to_owned(), address))
            };
            let named = state.addresses.iter().filter(|(link, address)| ours(link, *address));
            named.map(|(link, address)| (format!("{address} on {link}"), ())).collect()
        };
        let yes = |(): &()| "yes".to_owned();
        let (one, other) = (addresses(wanted), addresses(present));
        self.maps(RowKind::Address, &one, &other, Clone::clone, yes);
        let on_link = |(link, address): &(String, _)| format!("{address} on {link}");
        let (one, other) = (&wanted.neighbours, &present.neighbours);
        self.maps(RowKind::Neighbour, one, other, on_link, ToString::to_string);
        let on_link = |(link, mac): &(String, _)| format!("{mac} on {link}");
        let (one, other) = (&wanted.forwarding, &present.forwarding);
        self.maps(RowKind::Forwarding, one, other, on_link, ToString::to_string);
        let (one, other) = (&wanted.wireguard, &present.wireguard);
        self.maps(RowKind::Wireguard, one, other, Clone::clone, |device| {
            format!("key {} port {}", device.public_key, device.port)
        });
        let peer = |(link, key): &(String, _)| format!("peer {key} on {link}");
        let (one, other) = (&wanted.wireguard_peers, &present.wireguard_peers);
        self.maps(RowKind::Wireguard, one, other, peer, peer_text);
        let (one, other) = (&wanted.routes, &present.routes);
        self.maps(RowKind::Route, one, other, ToString::to_string, route_text);
    }

    fn detached(&mut self, wanted: &NetState, observed: &NetObserved) {
        if !wanted.links.contains_key(layout::BRIDGE) {
            return;
        }
        for port in &observed.detached_ports {
            self.push(
                RowKind::Link,
                port.clone(),
                Some(format!("port of {}", layout::BRIDGE)),
                Some("no port".to_owned()),
                true,
            );
        }
    }

    /// Only wanted ones: what others set is theirs.
    fn sysctls(&mut self, wanted: &NetState, observed: &NetObserved) {
        for (key, value) in &wanted.sysctls {
            if observed.without_ipv6 && key.starts_with("net/ipv6/") {
                continue;
            }
            let present = observed.state.sysctls.get(key);
            let different = present != Some(value);
            let name = key.replace('/', ".");
            self.push(RowKind::Sysctl, name, Some(value.clone()), present.cloned(), different);
        }
    }

    /// How many flows are tracked, where this node may set that.
    fn tracked_flows(&mut self, program: &NetProgram, observed: &NetObserved) {
        let (Some(config), Some(limit)) = (&program.conntrack, &observed.conntrack) else { return };
        let Some(least) = config.entries_min(limit.processors) else { return };
        let different = net::missing_entries(config, limit).is_some();
        let (wanted, present) = (format!("{least} or more"), limit.entries_max.to_string());
        let name = net::CONNTRACK_MAX.replace('/', ".");
        self.push(RowKind::Sysctl, name, Some(wanted), Some(present), different);
    }

    fn nft(&mut self, program: &NftProgram, observed: &NftObserved) {
        let mut faults: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for op in nft::diff(program, observed) {
            if let NftOp::Transaction(transaction) = op {
                let faults = faults.entry(transaction.table.to_string()).or_default();
                faults.extend(transaction.commands.iter().map(ToString::to_string));
            }
        }
        let wanted = program.tables.keys().map(ToString::to_string).collect();
        let present = observed.tables.keys().map(ToString::to_string).collect();
        self.tables(RowKind::Nftables, &wanted, &present, faults);
    }

    fn ebpf(&mut self, program: Option<&NodeProgram>, observed: &NodeObserved) {
        if program.is_none() && *observed == NodeObserved::default() {
            return;
        }
        let wanted = |text: &str| program.map(|_| text.to_owned());
        let maps = observed.maps.as_ref().map(|maps| {
            let ops = program.map(|program| ebpf::diff(&program.maps, maps)).unwrap_or_default();
            match ops.iter().map(EbpfOp::count).sum() {
                0 => AS_PLANNED.to_owned(),
                count => format!("{count} entries are not as planned"),
            }
        });
        self.texts("maps of Services", wanted(AS_PLANNED), maps);
        let sockets = match observed.sockets {
            Sockets::Detached => None,
            Sockets::Partly => Some("attached in part".to_owned()),
            Sockets::Attached => Some("attached".to_owned()),
        };
        self.texts("programs at sockets", wanted("attached"), sockets);
        let packets = observed.packets.as_ref();
        let taking = packets.map(|packets| match packets.draining {
            true => "known flows alone".to_owned(),
            false => "all flows".to_owned(),
        });
        self.texts("programs at links", wanted("all flows"), taking);
        for (link, state) in packets.into_iter().flat_map(|packets| &packets.links) {
            let present = match state {
                // It comes, or goes, in a moment, and nobody broke anything.
                LinkPrograms::New | LinkPrograms::Gone => continue,
                LinkPrograms::Attached => "attached",
                LinkPrograms::Damaged => "attached in part",
            };
            let name = format!("programs at {link}");
            self.texts(&name, wanted("attached"), Some(present.to_owned()));
        }
        self.uplink_program(program, packets);
    }

    fn uplink_program(
        &mut self,
        program: Option<&NodeProgram>,
        observed: Option<&PacketsObserved>,
    ) {
        // Until the links have been brought to something nobody knows which is the uplink.
        let Some(observed) = observed.filter(|packets| packets.place.is_some()) else { return };
        let acceleration = program.map(|program| program.place.acceleration).unwrap_or_default();
        let is_wanted = acceleration != ServiceAcceleration::Disabled;
        let present = match &observed.uplink {
            UplinkProgram::Absent => None,
            UplinkProgram::Attached => Some("attached".to_owned()),
            UplinkProgram::Refused(reason) => Some(format!("refused: {reason}")),
        };
        let wanted = is_wanted.then(|| "attached".to_owned());
        if wanted.is_none() && present.is_none() {
            return;
        }
        let different = !observed.uplink.serves(acceleration);
        self.push(RowKind::Ebpf, "XDP at the uplink".to_owned(), wanted, present, different);
    }

    fn texts(&mut self, name: &str, wanted: Option<String>, present: Option<String>) {
        let different = wanted != present;
        self.push(RowKind::Ebpf, name.to_owned(), wanted, present, different);
    }

    /// What goes and waits for its connections is no fault.
    fn ipvs(&mut self, program: &IpvsProgram, observed: &IpvsObserved) {
        let is_there = observed.link.is_some() || !observed.servers.is_empty();
        if !program.is_on && !is_there {
            return;
        }
        let faults = ipvs::diff(program, observed);
        let different = !faults.is_empty();
        let present = match program.is_on || different {
            true => state_of(&faults),
            false => "known connections alone".to_owned(),
        };
        let wanted = program.is_on.then(|| AS_PLANNED.to_owned());
        let present = is_there.then_some(present);
        self.push(RowKind::Ipvs, "virtual servers".to_owned(), wanted, present, different);
    }

    fn iptables(&mut self, program: &IptablesProgram, observed: &IptablesObserved) {
        let mut faults: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for op in iptables::diff(program, observed) {
            if let IptablesOp::Transaction(transaction) = op {
                let faults = faults.entry(transaction.table.to_string()).or_default();
                faults.extend(transaction.commands.iter().map(ToString::to_string));
            }
        }
        let wanted = program.tables.keys().map(ToString::to_string).collect();
        let present = observed.tables.keys().map(ToString::to_string).collect();
        self.tables(RowKind::Iptables, &wanted, &present, faults);
    }

    /// Tables by name, with the commands that would mend each.
    fn tables(
        &mut self,
        kind: RowKind,
        wanted: &BTreeSet<String>,
        present: &BTreeSet<String>,
        mut faults: BTreeMap<String, Vec<String>>,
    ) {
        for table in wanted.union(present) {
            let faults = faults.remove(table).unwrap_or_default();
            let present = present.contains(table).then(|| state_of(&faults));
            let wanted = wanted.contains(table).then(|| AS_PLANNED.to_owned());
            self.push(kind, format!("table {table}"), wanted, present, !faults.is_empty());
        }
    }

    fn maps<K: Ord, V: Eq + Debug>(
        &mut self,
        kind: RowKind,
        wanted: &BTreeMap<K, V>,
        present: &BTreeMap<K, V>,
        name: impl Fn(&K) -> String,
        text: impl Fn(&V) -> String,
    ) {
        let keys: BTreeSet<&K> = wanted.keys().chain(present.keys()).collect();
        for key in keys {
            let (wanted, present) = (wanted.get(key), present.get(key));
            let different = wanted != present;
            if self.all || different {
                self.push(kind, name(key), wanted.map(&text), present.map(&text), different);
            }
        }
    }

    fn push(
        &mut self,
        kind: RowKind,
        name: String,
        wanted: Option<String>,
        present: Option<String>,
        different: bool,
    ) {
        if self.all || different {
            self.rows.push(Row { kind, name, wanted, present, different });
        }
    }
}

/// What is there, by what would mend it.
fn state_of(faults: &[impl ToString]) -> String {
    match faults {
        [] => AS_PLANNED.to_owned(),
        [first] => format!("needs: {}", first.to_string()),
        [first, rest @ ..] => format!("needs: {}, and {} more", first.to_string(), rest.len()),
    }
}

fn link_text(link: &LinkState) -> String {
    let kind = match &link.kind {
        LinkKind::Bridge => "bridge".to_owned(),
        LinkKind::Vxlan { vni, port, local, uplink, learning } => {
            let local = local.map_or("any".to_owned(), |local| local.to_string());
            let uplink = uplink.as_deref().unwrap_or("none");
            let learning = if *learning { " learning" } else { "" };
            format!("vxlan id {vni} port {port} local {local} dev {uplink}{learning}")
        }
        LinkKind::Ipip { local, uplink } => {
            let local = local.map_or("any".to_owned(), |local| local.to_string());
            format!("ipip local {local} dev {}", uplink.as_deref().unwrap_or("none"))
        }
        LinkKind::Wireguard => "wireguard".to_owned(),
    };
    let up = if link.up { "up" } else { "down" };
    let checksum = match link.tx_checksum {
        Some(true) => " tx-checksum",
        _ => "",
    };
    format!("{kind} {} mtu {} {up}{checksum}", link.mac, link.mtu)
}

fn peer_text(peer: &WireguardPeer) -> String {
    let endpoint = peer.endpoint.map_or("unknown".to_owned(), |endpoint| endpoint.to_string());
    let allowed: Vec<String> = peer.allowed.iter().map(ToString::to_string).collect();
    format!("endpoint {endpoint} allowed {}", allowed.join(","))
}

fn route_text(route: &RouteState) -> String {
    let mut text = match route.gateway {
        Some(gateway) => format!("via {gateway} dev {}", route.link),
        None => format!("dev {}", route.link),
    };
    if let Some(source) = route.source {
        text.push_str(&format!(" src {source}"));
    }
    if route.onlink {
        text.push_str(" onlink");
    }
    if let Some(mtu) = route.mtu {
        text.push_str(&format!(" mtu {mtu}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(link: &str) -> RouteState {
        RouteState { gateway: None, link: link.into(), source: None, onlink: false, mtu: None }
    }

    fn state(link: &str) -> NetState {
        let mut state = NetState::default();
        state.routes.insert("10.244.2.0/24".parse().expect("a range"), route(link));
        state.sysctls.insert("net/ipv4/ip_forward".into(), "1".into());
        state
    }

    fn observed(state: NetState) -> Observed {
        let net = NetObserved { state, ..NetObserved::default() };
        Observed { net, ..Observed::default() }
    }

    fn program() -> Program {
        let net = NetProgram { state: Some(state("eth0")), ..NetProgram::default() };
        Program { net, ..Program::default() }
    }

    #[test]
    fn what_is_as_wanted_is_listed_and_does_not_differ() {
        let rows = inventory(&program(), &observed(state("eth0")));
        let kinds: Vec<RowKind> = rows.iter().map(|row| row.kind).collect();
        assert_eq!(kinds, [RowKind::Route, RowKind::Sysctl]);
        assert!(rows.iter().all(|row| !row.different && row.wanted == row.present), "{rows:?}");
        assert_eq!(differences(&program(), &observed(state("eth0"))), []);
    }

    #[test]
    fn damage_is_what_differs_now_and_did_not_before() {
        let whole = observed(state("eth0"));
        let mut without = NetState::default();
        without.sysctls.insert("net/ipv4/ip_forward".into(), "0".into());
        let broken = observed(without);
        let found = damage(&program(), &whole, &broken);
        let told: Vec<(&str, &str, Option<&str>)> = found
            .iter()
            .map(|row| (row.kind.name(), row.name.as_str(), row.present.as_deref()))
            .collect();
        let expected =
            [("route", "10.244.2.0/24", None), ("sysctl", "net.ipv4.ip_forward", Some("0"))];
        assert_eq!(told, expected);
        assert_eq!(damage(&program(), &broken, &broken), [], "told once");
        assert_eq!(damage(&program(), &broken, &whole), [], "mended is no damage");
        let elsewhere = damage(&program(), &broken, &observed(state("wlan0")));
        assert_eq!(elsewhere.len(), 1, "broken in another way is told again: {elsewhere:?}");
    }

    #[test]
    fn without_a_plan_of_the_network_nothing_of_it_differs() {
        assert_eq!(differences(&Program::default(), &observed(state("eth0"))), []);
    }
}
