//! The kernel objects that implement one Service, for the operator (`flatnet service show`).
//!
//! Which they are is a question of names: those that a program with this Service alone has and one
//! without any Service has not. Their values are those that the loop compares: what is planned
//! ([`Program`]) and what was read back last ([`Observed`], invariant 12).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ebpf_abi::services::{
    KEEP_ALWAYS, MASQUERADE, OUTSIDE, OUTSIDE_REJECT, REJECT, SCOPE_NODE_PORT, SOURCE_RANGES,
    Service as EbpfService, ServiceKey, Slot,
};
use model::{ClusterConfig, NamespacedName};
use plan::{Desired, NodeFacts};
use serde::{Deserialize, Serialize};

use crate::ebpf::{EbpfObserved, EbpfProgram, FrontendKey};
use crate::iptables::language::{Rule as IptablesRule, Table as IptablesTable};
use crate::iptables::{IptablesProgram, text};
use crate::ipvs::{IpvsObserved, IpvsProgram};
use crate::nft::NftProgram;
use crate::nft::language::{Chain, Datum, Rule, Table, TableFamily, Tuple};
use crate::nft::text::text_of;
use crate::{Observed, Program};

/// One object, or one entry of a shared one, that a Service is implemented by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KernelObject {
    /// What holds it, such as `nftables ip flatnet`, `iptables nat of IPv4`, `ipvs`, `ebpf`.
    pub within: String,
    /// What it is, such as `map cluster-ip-endpoints`, `chain FLATNET-SVC-…`, `server`.
    pub object: String,
    /// What it says: an entry as key and value, or a rule.
    pub text: String,
    /// Whether the kernel has it like this, as read back last.
    pub present: bool,
}

/// All of a Service, in a fixed order; none of one that has no plan.
pub fn of_service(
    service: &NamespacedName,
    desired: &Desired,
    config: &ClusterConfig,
    facts: &NodeFacts,
    (program, observed): (&Program, &Observed),
) -> Vec<KernelObject> {
    let Some(plan) = desired.services.get(service) else { return vec![] };
    let none = Desired { network: desired.network.clone(), services: BTreeMap::new() };
    let alone = Desired {
        network: desired.network.clone(),
        services: [(service.clone(), plan.clone())].into(),
    };
    let none = super::render(&none, config, facts);
    let alone = super::render(&alone, config, facts);
    let mut objects = Objects::default();
    objects.nft((&alone.nft, &none.nft), &program.nft, &observed.nft.tables);
    let iptables = (&alone.iptables, &none.iptables);
    objects.iptables(iptables, &program.iptables, &observed.iptables.tables);
    objects.ipvs(&alone.ipvs, &program.ipvs, &observed.ipvs);
    if let (Some(alone), Some(program)) = (&alone.ebpf, &program.ebpf) {
        let nothing = EbpfObserved::default();
        let maps = observed.ebpf.maps.as_ref().unwrap_or(&nothing);
        objects.ebpf(&alone.maps, &program.maps, maps);
    }
    objects.0
}

#[derive(Default)]
struct Objects(Vec<KernelObject>);

impl Objects {
    fn push(&mut self, within: impl Display, object: impl Display, text: String, present: bool) {
        let (within, object) = (within.to_string(), object.to_string());
        self.0.push(KernelObject { within, object, text, present });
    }

    fn nft(
        &mut self,
        (alone, none): (&NftProgram, &NftProgram),
        program: &NftProgram,
        observed: &BTreeMap<crate::nft::language::TableId, Table>,
    ) {
        let empty = Table::default();
        for (id, alone) in &alone.tables {
            let (Some(none), Some(program)) = (none.tables.get(id), program.tables.get(id)) else {
                continue;
            };
            let within = format!("nftables {id}");
            let present = observed.get(id).unwrap_or(&empty);
            for (name, set) in &alone.table.sets {
                let known = none.table.sets.get(name);
                let kind = if is_map(set) { "map" } else { "set" };
                let planned = program.table.sets.get(name);
                let found = present.sets.get(name);
                for key in set.elements.keys() {
                    if known.is_some_and(|known| known.elements.contains_key(&key)) {
                        continue;
                    }
                    let planned = planned.and_then(|set| set.elements.get(&key));
                    let found = found.and_then(|set| set.elements.get(&key));
                    let is_as_planned = found == planned;
                    let Some(datum) = found.or(planned) else { continue };
                    let text = element_text(&key, &datum);
                    self.push(&within, format!("{kind} {name}"), text, is_as_planned);
                }
            }
            for (map, frontends) in &alone.endpoints {
                let found = present.sets.get(map);
                for frontend in frontends.keys() {
                    let slots = found.map(|set| crate::nft::elements_of(set, &frontend));
                    for (key, datum) in slots.into_iter().flatten() {
                        self.push(&within, format!("map {map}"), element_text(&key, &datum), true);
                    }
                }
            }
            for name in alone.table.chains.keys() {
                if none.table.chains.contains_key(name) {
                    continue;
                }
                let Some(planned) = program.table.chains.get(name) else { continue };
                let found = present.chains.get(name);
                self.nft_chain(&within, id.family, name, planned, found);
            }
        }
    }

    fn nft_chain(
        &mut self,
        within: &str,
        family: TableFamily,
        name: &str,
        planned: &Chain,
        found: Option<&Chain>,
    ) {
        let prints =
            |chain: &Chain| -> Vec<u64> { chain.rules.iter().map(Rule::fingerprint).collect() };
        let present = found.is_some_and(|found| prints(found) == prints(planned));
        for rule in &planned.rules {
            let text = text_of(family, rule.statements().unwrap_or_default());
            self.push(within, format!("chain {name}"), text, present);
        }
    }

    fn iptables(
        &mut self,
        (alone, none): (&IptablesProgram, &IptablesProgram),
        program: &IptablesProgram,
        observed: &BTreeMap<crate::iptables::language::TableId, IptablesTable>,
    ) {
        let empty = IptablesTable::default();
        for (id, alone) in &alone.tables {
            let (Some(none), Some(program)) = (none.tables.get(id), program.tables.get(id)) else {
                continue;
            };
            let within = format!("iptables {id}");
            let found = observed.get(id).unwrap_or(&empty);
            // Rules that dispatch to it stand in chains of all Services, or in branches of these.
            let dispatching: Vec<&IptablesRule> = alone
                .chains
                .iter()
                .filter_map(|(name, rules)| Some((rules, none.chains.get(name)?)))
                .flat_map(|(rules, known)| rules.iter().filter(|rule| !known.contains(rule)))
                .collect();
            for (name, rules) in &program.chains {
                let is_own = alone.chains.contains_key(name) && !none.chains.contains_key(name);
                let found = found.chains.get(name);
                for rule in rules.iter().filter(|rule| is_own || dispatching.contains(rule)) {
                    let present = found.is_some_and(|found| found.contains(rule));
                    let text = text::print(id.family, rule);
                    self.push(&within, format!("chain {name}"), text, present);
                }
            }
        }
    }

    fn ipvs(&mut self, alone: &IpvsProgram, program: &IpvsProgram, observed: &IpvsObserved) {
        for key in alone.servers.keys() {
            let Some(planned) = program.servers.get(key) else { continue };
            let found = observed.servers.get(key);
            let affinity = planned.settings.affinity_timeout_s;
            let affinity = affinity.map(|it| format!(" persistent {it}")).unwrap_or_default();
            let text = format!("{key} scheduler {}{affinity}", planned.settings.scheduler.name());
            let same = found.is_some_and(|found| found.settings == planned.settings);
            self.push("ipvs", "server", text, same);
            let found = found.map(|found| &found.destinations);
            let endpoints: BTreeSet<&SocketAddr> = planned
                .destinations
                .keys()
                .chain(found.into_iter().flat_map(BTreeMap::keys))
                .collect();
            for endpoint in endpoints {
                let planned = planned.destinations.get(endpoint);
                let found = found.and_then(|found| found.get(endpoint));
                let weight = found.map_or(planned.copied(), |found| Some(found.weight));
                let text = format!("{key} : {endpoint} weight {}", weight.unwrap_or_default());
                // One that goes waits for its last connection, with weight 0.
                let same = found.is_some_and(|it| it.weight == planned.copied().unwrap_or(0));
                self.push("ipvs", "destination", text, same);
            }
        }
    }

    fn ebpf(&mut self, alone: &EbpfProgram, program: &EbpfProgram, observed: &EbpfObserved) {
        for key in alone.frontends.keys().filter(|key| program.frontends.contains_key(key)) {
            let entries: Vec<(&str, String, Option<EbpfService>)> = match &key {
                FrontendKey::Port(port) => {
                    vec![("map services", key_text(port), observed.services.get(port))]
                }
                FrontendKey::Range { .. } => {
                    let keys = key.range_keys().into_iter();
                    let entry = |key: ebpf_abi::services::RangeKey| {
                        let bits = key.prefix_bits - ebpf_abi::services::RANGE_PORT_BITS;
                        let (address, port) = (address_of(&key.address), key.port);
                        let text = format!("{address} . {} . {port}/{bits}", key.protocol);
                        ("map ranges", text, observed.ranges.get(&key))
                    };
                    keys.map(entry).collect()
                }
            };
            for (map, key, value) in &entries {
                let text = value.as_ref().map_or("-".to_owned(), service_text);
                self.push("ebpf", map, format!("{key} : {text}"), value.is_some());
            }
            if let Some(service) = entries.into_iter().find_map(|(_, _, value)| value) {
                self.ebpf_slots(&service, observed);
            }
        }
    }

    /// What the ids of an entry lead to; all parts of a range have the same.
    fn ebpf_slots(&mut self, service: &EbpfService, observed: &EbpfObserved) {
        for (number, slot) in (0_u32..).zip(service.near_slots()) {
            self.push("ebpf", "map services", slot_text(service.id, number, slot), true);
        }
        let views = [(service.id, service.count), (service.outside_id, service.outside_count)];
        for (id, count) in views.into_iter().filter(|(_, count)| *count > 0) {
            for (key, slot) in observed.slots.of_id(id).filter(|(key, _)| key.slot < count) {
                self.push("ebpf", "map slots", slot_text(id, key.slot, &slot), true);
            }
        }
        if service.flags & SOURCE_RANGES != 0 {
            for source in observed.sources.keys().filter(|source| source.id == service.id) {
                let text = format!("{} . {}", source.id, source.range);
                self.push("ebpf", "map service_sources", text, true);
            }
        }
    }
}

fn is_map(set: &crate::nft::language::Set) -> bool {
    set.spec.data != crate::nft::language::DataType::None
}

fn element_text(key: &Tuple, datum: &Datum) -> String {
    let words = |tuple: &Tuple| {
        let words: Vec<String> = tuple.iter().map(ToString::to_string).collect();
        words.join(" . ")
    };
    match datum {
        Datum::Member => words(key),
        Datum::Values(values) => format!("{} : {}", words(key), words(values)),
        Datum::Verdict(verdict) => format!("{} : {verdict}", words(key)),
    }
}

fn key_text(key: &ServiceKey) -> String {
    let ServiceKey { address, port, protocol, scope } = key;
    let scope = if *scope == SCOPE_NODE_PORT { " . node port" } else { "" };
    format!("{} . {port} . {protocol}{scope}", address_of(address))
}

fn service_text(service: &EbpfService) -> String {
    let mut text = format!("id {} slots {}", service.id, service.count);
    if service.flags & OUTSIDE != 0 {
        let (id, count) = (service.outside_id, service.outside_count);
        text.push_str(&format!(" outside id {id} slots {count}"));
    }
    let flags = [
        (MASQUERADE, " masquerade"),
        (REJECT, " reject"),
        (OUTSIDE_REJECT, " outside reject"),
        (SOURCE_RANGES, " source ranges"),
    ];
    for (_, word) in flags.into_iter().filter(|(flag, _)| service.flags & flag != 0) {
        text.push_str(word);
    }
    if service.affinity_timeout_s > 0 {
        text.push_str(&format!(" affinity {} s", service.affinity_timeout_s));
    }
    if service.maglev_size > 0 {
        text.push_str(&format!(" maglev {}", service.maglev_size));
    }
    text
}

fn slot_text(id: u32, number: u32, slot: &Slot) -> String {
    let endpoint = SocketAddr::new(address_of(&slot.address), slot.port);
    let alias = match slot.keep {
        KEEP_ALWAYS => String::new(),
        keep => {
            let passed_on = 100.0 - f64::from(keep) * 100.0 / f64::from(u32::MAX);
            format!(", {passed_on:.1} % to slot {}", slot.alias)
        }
    };
    format!("{id} . {number} : {endpoint}{alias}")
}

fn address_of(bytes: &[u8; 16]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(*bytes)).to_canonical()
}
