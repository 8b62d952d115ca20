//! Service addresses and node ports. The index is derived from the Services, IPAddresses and
//! ServiceCIDRs of the head state and changes only where an object is written, so that an address
//! and its Service come and go together: nothing can leak, and of two writers that want the same
//! address the second is refused.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use model::cluster::{address_count, nth_address};
use model::{Family, NamespacedName};
use serde_json::Value;

use crate::kinds::addressing::{self, belongs_to};
use crate::kinds::service_families;
use crate::validate::FieldErrors;
use crate::{Random, StoreConfig, json};

/// The ServiceCIDR that tells of the configured ranges, and adds none.
pub const DEFAULT_SERVICE_CIDR: &str = "kubernetes";

/// Which Service owns which address and which node port.
#[derive(Clone, Debug)]
pub struct Allocations {
    ranges: Vec<IpNet>,
    /// Ranges of further ServiceCIDRs, by their names.
    added_ranges: BTreeMap<String, Vec<IpNet>>,
    ports: (u16, u16),
    address_owners: BTreeMap<IpAddr, NamespacedName>,
    /// Addresses with an IPAddress object, and the Service that this names; `None` for those that
    /// somebody keeps for something else.
    reserved: BTreeMap<IpAddr, Option<NamespacedName>>,
    port_owners: BTreeMap<u16, NamespacedName>,
}

impl Allocations {
    /// An empty index over the configured ranges.
    pub fn new(config: &StoreConfig) -> Self {
        Self {
            ranges: config.service_cidrs.clone(),
            added_ranges: BTreeMap::new(),
            ports: config.node_port_range,
            address_owners: BTreeMap::new(),
            reserved: BTreeMap::new(),
            port_owners: BTreeMap::new(),
        }
    }

    /// The families that are configured; the first is the default.
    pub fn families(&self) -> Vec<Family> {
        self.ranges.iter().map(|range| Family::of(&range.addr())).collect()
    }

    /// Follows a write of a Service: `old` and `new` are its objects, absent before its creation
    /// and after its deletion.
    pub fn replace(&mut self, key: &NamespacedName, old: Option<&Value>, new: Option<&Value>) {
        if let Some(old) = old {
            for address in cluster_addresses(old) {
                if self.address_owners.get(&address) == Some(key) {
                    self.address_owners.remove(&address);
                }
            }
            for port in node_ports(old) {
                if self.port_owners.get(&port) == Some(key) {
                    self.port_owners.remove(&port);
                }
            }
        }
        if let Some(new) = new {
            for address in cluster_addresses(new) {
                self.address_owners.entry(address).or_insert_with(|| key.clone());
            }
            for port in node_ports(new) {
                self.port_owners.entry(port).or_insert_with(|| key.clone());
            }
        }
    }

    /// The Service that has an address.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<&NamespacedName> {
        self.address_owners.get(&address)
    }

    /// Follows a write of an IPAddress: `new` is absent after its deletion.
    pub(crate) fn replace_ip_address(&mut self, name: &str, new: Option<&Value>) {
        let Ok(address) = name.parse::<IpAddr>() else { return };
        match new {
            None => self.reserved.remove(&address),
            Some(new) => {
                let text = |field: &str| json::text(new, &format!("/spec/parentRef/{field}"));
                let service = NamespacedName::new(text("namespace"), text("name"));
                let service = Some(service).filter(|service| belongs_to(new, service));
                self.reserved.insert(address, service)
            }
        };
    }

    /// Follows a write of a ServiceCIDR.
    pub(crate) fn replace_service_cidr(&mut self, name: &str, new: Option<&Value>) {
        let ranges = new.map(addressing::ranges).unwrap_or_default();
        if ranges.is_empty() || name == DEFAULT_SERVICE_CIDR {
            self.added_ranges.remove(name);
        } else {
            self.added_ranges.insert(name.to_owned(), ranges);
        }
    }

    /// Fills in the addresses and node ports that a Service needs and has not, and checks those
    /// that it asks for. Nothing is reserved: that happens when the object is written.
    pub(crate) fn fill(
        &self,
        key: &NamespacedName,
        service: &mut Value,
        old: Option<&Value>,
        random: &mut dyn Random,
        dry_run: bool,
    ) -> FieldErrors {
        let mut errors = FieldErrors::default();
        service_families::fill(service, old, &self.families(), &mut errors);
        if !errors.is_empty() {
            return errors;
        }
        let mut picker = Picker { allocations: self, key, random, dry_run, taken: Vec::new() };
        picker.fill_addresses(service, &mut errors);
        if errors.is_empty() && needs_node_ports(service) {
            picker.fill_node_ports(service, &mut errors);
        }
        if errors.is_empty() && needs_health_check_node_port(service) {
            picker.fill_health_check_node_port(service, &mut errors);
        }
        errors
    }

    /// The ranges of a family, the configured one first.
    fn ranges_of(&self, family: Family) -> Vec<IpNet> {
        let all = self.ranges.iter().chain(self.added_ranges.values().flatten());
        all.filter(|range| Family::of(&range.addr()) == family).copied().collect()
    }

    fn is_address_free(&self, address: IpAddr, key: &NamespacedName) -> bool {
        self.address_owners.get(&address).is_none_or(|owner| owner == key)
            && self.reserved.get(&address).is_none_or(|owner| owner.as_ref() == Some(key))
    }

    fn is_port_free(&self, port: u16, key: &NamespacedName) -> bool {
        self.port_owners.get(&port).is_none_or(|owner| owner == key)
    }
}

/// Whether a Service has cluster addresses at all.
pub(crate) fn needs_cluster_ip(service: &Value) -> bool {
    json::text(service, "/spec/type") != "ExternalName"
}

/// Whether a Service has node ports. `allocateLoadBalancerNodePorts: false` keeps a LoadBalancer
/// from getting new ones, which the caller sees in [`needs_new_node_ports`].
pub(crate) fn needs_node_ports(service: &Value) -> bool {
    matches!(json::text(service, "/spec/type"), "NodePort" | "LoadBalancer")
}

/// Whether a Service needs a port at which its load balancer asks for local endpoints.
pub(crate) fn needs_health_check_node_port(service: &Value) -> bool {
    json::text(service, "/spec/type") == "LoadBalancer"
        && json::text(service, "/spec/externalTrafficPolicy") == "Local"
}

fn needs_new_node_ports(service: &Value) -> bool {
    json::text(service, "/spec/type") == "NodePort"
        || json::at(service, "/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false))
}

pub(crate) fn cluster_addresses(service: &Value) -> Vec<IpAddr> {
    json::texts(service, "/spec/clusterIPs").iter().filter_map(|text| text.parse().ok()).collect()
}

fn node_ports(service: &Value) -> Vec<u16> {
    let ports = json::items(service, "/spec/ports").iter();
    ports
        .filter_map(|port| json::integer(port, "/nodePort"))
        .chain(json::integer(service, "/spec/healthCheckNodePort"))
        .filter_map(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
        .collect()
}

const PORT_TAKEN: &str = "provided port is already allocated";

struct Picker<'a> {
    allocations: &'a Allocations,
    key: &'a NamespacedName,
    random: &'a mut dyn Random,
    dry_run: bool,
    /// Node ports that this very write has chosen.
    taken: Vec<u16>,
}

impl Picker<'_> {
    fn fill_addresses(&mut self, service: &mut Value, errors: &mut FieldErrors) {
        if !needs_cluster_ip(service) {
            return;
        }
        let given: Vec<String> =
            json::texts(service, "/spec/clusterIPs").into_iter().map(str::to_owned).collect();
        if given.first().is_some_and(|address| address == "None") {
            return;
        }
        let families: Vec<Family> = json::texts(service, "/spec/ipFamilies")
            .into_iter()
            .filter_map(family_from_text)
            .collect();
        let mut addresses = Vec::new();
        for (index, family) in families.into_iter().enumerate() {
            let ranges = self.allocations.ranges_of(family);
            if ranges.is_empty() {
                continue;
            }
            let chosen = match given.get(index).filter(|text| !text.is_empty()) {
                Some(text) => self.check_address(&ranges, text).map(|()| text.clone()),
                None => self.pick_address(&ranges).map(|address| address.to_string()),
            };
            match chosen {
                Ok(address) => addresses.push(address),
                Err(why) => {
                    errors.invalid("spec.clusterIPs", given, &why);
                    return;
                }
            }
        }
        if let Some(first) = addresses.first() {
            json::set(service, "/spec/clusterIP", first.clone());
            json::set(service, "/spec/clusterIPs", addresses);
        }
    }

    fn check_address(&self, ranges: &[IpNet], text: &str) -> Result<(), String> {
        let fail = |why: &str| Err(format!("failed to allocate IP {text}: {why}"));
        let parsed = text.parse::<IpAddr>().ok();
        // What a Service has it keeps, also when its range is being given up.
        if parsed.is_some_and(|own| self.allocations.address_owners.get(&own) == Some(self.key)) {
            return Ok(());
        }
        let usable = parsed.filter(|one| ranges.iter().any(|range| is_usable(range, *one)));
        match usable {
            None => fail("the provided network does not match the current range"),
            Some(address) if !self.allocations.is_address_free(address, self.key) => {
                fail("provided IP is already allocated")
            }
            Some(_) => Ok(()),
        }
    }

    /// A free address of the first range that has one: from the upper band at random, from the
    /// lower band only when that is full. (KEP-3070: static requests find room in the lower band.)
    fn pick_address(&mut self, ranges: &[IpNet]) -> Result<IpAddr, String> {
        for range in ranges {
            if self.dry_run {
                return Ok(range.network());
            }
            let usable = usable_count(range);
            let offset = band_offset(usable, 16, 256);
            let (allocations, key) = (self.allocations, self.key);
            let is_free = |index: u128| {
                nth_address(range, index + 1)
                    .filter(|address| allocations.is_address_free(*address, key))
            };
            let used = allocations.address_owners.len() + allocations.reserved.len();
            let found = pick(offset, usable, used, self.random, is_free)
                .or_else(|| pick(0, offset, used, self.random, is_free));
            if let Some(address) = found {
                return Ok(address);
            }
        }
        Err("failed to allocate a serviceIP: range is full".to_owned())
    }

    fn fill_node_ports(&mut self, service: &mut Value, errors: &mut FieldErrors) {
        let ports: Vec<Value> = json::items(service, "/spec/ports").to_vec();
        let needs_new = needs_new_node_ports(service);
        let mut chosen: Vec<Option<u16>> = Vec::new();
        for (index, port) in ports.iter().enumerate() {
            let field = format!("spec.ports[{index}].nodePort");
            let given = json::integer(port, "/nodePort").unwrap_or(0);
            if given != 0 {
                match self.check_port(given) {
                    Ok(given) => {
                        self.taken.push(given);
                        chosen.push(Some(given));
                    }
                    Err(why) => {
                        errors.invalid(field, given, &why);
                        return;
                    }
                }
                continue;
            }
            let shared = shared_node_port(&ports, &chosen, port);
            if shared.is_some() || !needs_new {
                chosen.push(shared);
                continue;
            }
            match self.pick_port() {
                Some(new) => {
                    self.taken.push(new);
                    chosen.push(Some(new));
                }
                None => {
                    errors.invalid(field, 0, "failed to allocate a nodePort: range is full");
                    return;
                }
            }
        }
        for (port, chosen) in json::items_mut(service, "/spec/ports").zip(chosen) {
            if let Some(chosen) = chosen {
                json::set(port, "/nodePort", chosen);
            }
        }
    }

    fn fill_health_check_node_port(&mut self, service: &mut Value, errors: &mut FieldErrors) {
        let field = "spec.healthCheckNodePort";
        let given = json::integer(service, "/spec/healthCheckNodePort").unwrap_or(0);
        if given != 0 {
            let taken = self.taken.iter().any(|port| i64::from(*port) == given);
            let free = if taken { Err(PORT_TAKEN.to_owned()) } else { self.check_port(given) };
            if let Err(why) = free {
                errors.invalid(field, given, &why);
            }
            return;
        }
        match self.pick_port() {
            Some(port) => json::set(service, "/spec/healthCheckNodePort", port),
            None => errors.invalid(field, 0, "failed to allocate a nodePort: range is full"),
        }
    }

    fn check_port(&self, port: i64) -> Result<u16, String> {
        let (first, last) = self.allocations.ports;
        match u16::try_from(port) {
            Ok(port) if (first..=last).contains(&port) => {
                if self.allocations.is_port_free(port, self.key) {
                    Ok(port)
                } else {
                    Err(PORT_TAKEN.to_owned())
                }
            }
            _ => Err(format!(
                "provided port is not in the valid range. The range of valid ports is {first}-{last}"
            )),
        }
    }

    fn pick_port(&mut self) -> Option<u16> {
        let (first, last) = self.allocations.ports;
        if self.dry_run {
            // The real server answers a port that cannot be meant: two above the range.
            return Some(last.saturating_add(2));
        }
        let size = u128::from(last.saturating_sub(first)) + 1;
        let offset = band_offset(size, 32, 128);
        let (owners, taken) = (&self.allocations.port_owners, &self.taken);
        let used = owners.len() + taken.len();
        let is_free = |index: u128| {
            let port = first.checked_add(u16::try_from(index).ok()?)?;
            (!owners.contains_key(&port) && !taken.contains(&port)).then_some(port)
        };
        pick(offset, size, used, self.random, is_free)
            .or_else(|| pick(0, offset, used, self.random, is_free))
    }
}

/// Ports of one Service with the same number and different protocols share one node port
/// (DNS: 53/UDP and 53/TCP).
fn shared_node_port(ports: &[Value], chosen: &[Option<u16>], port: &Value) -> Option<u16> {
    let number = json::integer(port, "/port");
    let protocol = json::text(port, "/protocol");
    ports
        .iter()
        .zip(chosen)
        .find(|(other, _)| {
            json::integer(other, "/port") == number && json::text(other, "/protocol") != protocol
        })
        .and_then(|(_, chosen)| *chosen)
}

/// Tries the indexes `begin..end` from a random one on, wrapping. With `used` of them taken at
/// most, `used + 1` tries find a free one.
fn pick<T>(
    begin: u128,
    end: u128,
    used: usize,
    random: &mut dyn Random,
    is_free: impl Fn(u128) -> Option<T>,
) -> Option<T> {
    let size = end.checked_sub(begin).filter(|size| *size > 0)?;
    let start = u128::from(random.next_u64()) % size;
    let tries = size.min(used as u128 + 1);
    (0..tries).find_map(|step| is_free(begin + (start + step) % size))
}

/// Where the upper band begins: the lower one is kept for static requests.
fn band_offset(size: u128, divisor: u128, most: u128) -> u128 {
    if size <= 16 { 0 } else { (size / divisor).max(16).min(most) }
}

/// Addresses of a range without the network address and, for IPv4, without the broadcast address.
fn usable_count(range: &IpNet) -> u128 {
    let special = if range.addr().is_ipv4() { 2 } else { 1 };
    address_count(range).saturating_sub(special)
}

fn is_usable(range: &IpNet, address: IpAddr) -> bool {
    range.contains(&address)
        && address != range.network()
        && !(address.is_ipv4() && address == range.broadcast())
}

/// The family that the API's text names.
pub(crate) fn family_from_text(text: &str) -> Option<Family> {
    match text {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    }
}
