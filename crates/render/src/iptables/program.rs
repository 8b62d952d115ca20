//! The tables that shall be, kept up to date Service by Service.
//!
//! What a Service adds is a function of its plan ([`layout::Addition`]), so it is taken out by its
//! former plan and put in by its new one; of the lists that many Services stand in, the branches on
//! the way to its own rules are written anew. So the program after any number of changes equals the
//! one that is rendered from scratch, and remains a function of the current plan alone
//! (invariant 1).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::{ClusterConfig, Family, NamespacedName, Protocol};
use plan::services::{Frontend, ServicePlan};
use plan::{Desired, NodeFacts};

use super::language::{ChainName, Fixed, Rule, Table, TableId, TableName};
use super::layout::{Addition, Layout};
use super::tree::{Branches, Leaves, Writer};

/// What shall be: a nat and a filter table in each family that the cluster uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IptablesProgram {
    /// By family and name. Without any, all that is ours goes.
    pub tables: BTreeMap<TableId, Table>,
    lists: BTreeMap<Family, Lists>,
    /// How many Services claim each frontend: the first by name has it. Without that, clients that
    /// it drops or refuses would get to the others.
    claims: BTreeMap<Frontend, u32>,
}

/// Rules that stand in chains of all Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Lists {
    by_address: Leaves,
    by_node_port: BTreeMap<Protocol, Leaves>,
    firewall: BTreeMap<NamespacedName, Vec<Rule>>,
}

/// Where a program may differ from what is there since the two agreed last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// Anywhere.
    Everything,
    /// In these families only.
    Only(BTreeMap<Family, TouchedTables>),
}

/// What changed in the tables of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TouchedTables {
    /// Chains, by their table.
    pub chains: BTreeMap<TableName, BTreeSet<ChainName>>,
    /// Where clients of what changed send UDP to.
    pub places: Places,
}

/// Addresses and node ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Of Services.
    pub addresses: BTreeSet<IpAddr>,
    /// Of nodes.
    pub node_ports: BTreeSet<u16>,
}

/// Says a plan in iptables. A pure function of its arguments.
pub fn render(desired: &Desired, config: &ClusterConfig, facts: &NodeFacts) -> IptablesProgram {
    let ranges = [&config.pod_cidrs, &config.service_cidrs, &config.node_cidrs];
    let families: BTreeSet<Family> =
        ranges.into_iter().flatten().map(|range| Family::of(&range.addr())).collect();
    let mut program = IptablesProgram::default();
    for family in families {
        let layout = Layout::new(family, desired, config, facts);
        program.tables.extend(layout.base());
        program.lists.insert(family, Lists::default());
        let claims = &mut program.claims;
        let additions: Vec<_> = desired
            .services
            .iter()
            .map(|(name, plan)| {
                let added = layout.addition(name, plan, |frontend| {
                    let count = claims.entry(*frontend).or_default();
                    *count += 1;
                    *count == 1
                });
                (name, added)
            })
            .collect();
        let mut edit = Edit::of(&mut program, family);
        for (name, added) in additions {
            edit.replace(name, Addition::default(), added);
        }
        edit.finish(&layout);
    }
    program
}

/// Brings a program up to date with the plans of some Services, whose former plans `before` has.
/// All else that it depends on must be as it was. Answers where the program changed.
pub fn update(
    program: &mut IptablesProgram,
    desired: &Desired,
    config: &ClusterConfig,
    facts: &NodeFacts,
    before: &BTreeMap<NamespacedName, Option<ServicePlan>>,
) -> Touched {
    if program.claim_anew(desired, before) {
        // Which of them has the frontend shows only when all stand in order.
        *program = render(desired, config, facts);
        return Touched::Everything;
    }
    let mut touched = BTreeMap::new();
    let families: Vec<Family> = program.lists.keys().copied().collect();
    for family in families {
        let layout = Layout::new(family, desired, config, facts);
        let addition = |name: &NamespacedName, plan: Option<&ServicePlan>| {
            plan.map(|plan| layout.addition(name, plan, |_| true)).unwrap_or_default()
        };
        let mut places = Places::default();
        let mut edit = Edit::of(program, family);
        for (name, former) in before {
            let plan = desired.services.get(name);
            edit.replace(name, addition(name, former.as_ref()), addition(name, plan));
            former.iter().chain(plan).for_each(|plan| places.add(family, plan));
        }
        let chains = edit.finish(&layout);
        if chains.values().any(|chains| !chains.is_empty()) {
            touched.insert(family, TouchedTables { chains, places });
        }
    }
    Touched::Only(touched)
}

impl IptablesProgram {
    /// Counts who claims the frontends of these Services. Answers whether another one does too.
    fn claim_anew(
        &mut self,
        desired: &Desired,
        before: &BTreeMap<NamespacedName, Option<ServicePlan>>,
    ) -> bool {
        let mut is_contested = false;
        for frontend in before.values().flatten().flat_map(|plan| plan.frontends.keys()) {
            if let Some(count) = self.claims.get_mut(frontend) {
                is_contested |= *count > 1;
                *count -= 1;
                if *count == 0 {
                    self.claims.remove(frontend);
                }
            }
        }
        let plans = before.keys().filter_map(|name| desired.services.get(name));
        for frontend in plans.flat_map(|plan| plan.frontends.keys()) {
            if self.lists.contains_key(&frontend.family()) {
                let count = self.claims.entry(*frontend).or_default();
                is_contested |= *count > 0;
                *count += 1;
            }
        }
        is_contested
    }
}

/// The tables of one family while they change.
struct Edit<'a> {
    program: &'a mut IptablesProgram,
    family: Family,
    lists: Lists,
    nat: Writer,
    filter: Writer,
    /// Keys of lists whose rules are others than before.
    addresses: BTreeSet<u128>,
    node_ports: BTreeMap<Protocol, BTreeSet<u128>>,
}

impl<'a> Edit<'a> {
    fn of(program: &'a mut IptablesProgram, family: Family) -> Self {
        let mut writer = |name| {
            let table = program.tables.entry(TableId { family, name }).or_default();
            Writer::new(std::mem::take(&mut table.chains))
        };
        let (nat, filter) = (writer(TableName::Nat), writer(TableName::Filter));
        let lists = program.lists.remove(&family).unwrap_or_default();
        let (addresses, node_ports) = Default::default();
        Self { program, family, lists, nat, filter, addresses, node_ports }
    }

    /// Takes out what a Service added, and puts in what it adds now.
    fn replace(&mut self, name: &NamespacedName, former: Addition, added: Addition) {
        self.nat.replace(former.nat, added.nat);
        self.filter.replace(former.filter, added.filter);
        let leaves = &mut self.lists.by_address;
        self.addresses.extend(set(leaves, name, &former.by_address, added.by_address));
        let mut ports = added.by_node_port;
        for protocol in former.by_node_port.keys() {
            ports.entry(*protocol).or_default();
        }
        let nothing = BTreeMap::new();
        for (protocol, added) in ports {
            let leaves = self.lists.by_node_port.entry(protocol).or_default();
            let former = former.by_node_port.get(&protocol).unwrap_or(&nothing);
            let changed = set(leaves, name, former, added);
            self.node_ports.entry(protocol).or_default().extend(changed);
        }
        if added.firewall.is_empty() {
            self.lists.firewall.remove(name);
        } else {
            self.lists.firewall.insert(name.clone(), added.firewall);
        }
    }

    /// Writes the chains that all Services share. Answers which chains are not as before.
    fn finish(mut self, layout: &Layout<'_>) -> BTreeMap<TableName, BTreeSet<ChainName>> {
        let Lists { by_address, by_node_port, firewall } = &mut self.lists;
        let rules = self.nat.plant(Branches::of(self.family), by_address, &self.addresses);
        self.nat.write(Fixed::Services.into(), Some(layout.services(rules)));
        by_node_port.retain(|_, leaves| !leaves.is_empty());
        let mut rules = Vec::new();
        for (protocol, leaves) in by_node_port {
            let changed = self.node_ports.entry(*protocol).or_default();
            rules.extend(self.nat.plant(Branches::Ports(*protocol), leaves, changed));
        }
        self.nat.write(Fixed::NodePorts.into(), Some(rules));
        let rules = firewall.values().flatten().cloned().collect();
        self.filter.write(Fixed::Firewall.into(), Some(rules));
        self.program.lists.insert(self.family, self.lists);
        let mut written = BTreeMap::new();
        for (name, writer) in [(TableName::Nat, self.nat), (TableName::Filter, self.filter)] {
            let (chains, changed) = writer.finish();
            let id = TableId { family: self.family, name };
            self.program.tables.entry(id).or_default().chains = chains;
            written.insert(name, changed);
        }
        written
    }
}

/// Sets the rules of a Service where they are others than before. Answers the keys of these.
fn set(
    leaves: &mut Leaves,
    name: &NamespacedName,
    former: &BTreeMap<u128, Vec<Rule>>,
    added: BTreeMap<u128, Vec<Rule>>,
) -> Vec<u128> {
    let gone = former.keys().filter(|key| !added.contains_key(*key)).map(|key| (*key, vec![]));
    let gone: Vec<(u128, Vec<Rule>)> = gone.collect();
    let mut changed = Vec::new();
    for (key, rules) in gone.into_iter().chain(added) {
        if former.get(&key) == Some(&rules) {
            continue;
        }
        let leaf = leaves.entry(key).or_default();
        leaf.retain(|(owner, _)| owner != name);
        let place = leaf.partition_point(|(owner, _)| owner < name);
        leaf.splice(place..place, rules.into_iter().map(|rule| (name.clone(), rule)));
        if leaf.is_empty() {
            leaves.remove(&key);
        }
        changed.push(key);
    }
    changed
}

impl Touched {
    /// Nowhere.
    pub fn nothing() -> Self {
        Self::Only(BTreeMap::new())
    }

    /// Whether the program differs nowhere.
    pub fn is_nothing(&self) -> bool {
        matches!(self, Self::Only(families) if families.is_empty())
    }

    /// Adds what changed besides.
    pub fn merge(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Everything, _) => {}
            (_, Self::Everything) => *self = Self::Everything,
            (Self::Only(families), Self::Only(others)) => {
                for (family, other) in others {
                    families.entry(family).or_default().merge(other);
                }
            }
        }
    }
}

impl TouchedTables {
    fn merge(&mut self, other: Self) {
        for (table, chains) in other.chains {
            self.chains.entry(table).or_default().extend(chains);
        }
        self.places.addresses.extend(other.places.addresses);
        self.places.node_ports.extend(other.places.node_ports);
    }
}

impl Places {
    fn add(&mut self, family: Family, plan: &ServicePlan) {
        let of_udp = |frontend: &&Frontend| {
            frontend.family() == family && frontend.protocol() == Protocol::Udp
        };
        for frontend in plan.frontends.keys().filter(of_udp) {
            match *frontend {
                Frontend::ClusterIp { address, .. } | Frontend::External { address, .. } => {
                    self.addresses.insert(address);
                }
                Frontend::NodePort { port, .. } => {
                    self.node_ports.insert(port);
                }
            }
        }
        let ranges = plan.ranges.keys().filter(|range| range.protocol == Protocol::Udp);
        let addresses = ranges.map(|range| range.address);
        self.addresses.extend(addresses.filter(|address| Family::of(address) == family));
    }
}
