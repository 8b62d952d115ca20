//! [`World`]: the current objects and nothing of their history.
//!
//! The watch may skip, repeat or revert (invariant 2): an object is present with a value, or
//! absent. What changed is reported as [`DirtyKey`]s, so that one pending entry a key is the
//! back-pressure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::packed::Unsorted;
use crate::{
    EndpointSlice, NamespacedName, Node, Pack, PackedMap, Pod, Service, ServiceCidr, Unpack,
    Unreachable,
};

/// The kinds that the network reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// core/v1 Node.
    Node,
    /// core/v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// networking.k8s.io/v1 ServiceCIDR.
    ServiceCidr,
    /// core/v1 Pod.
    Pod,
}

/// One object of a kind that the network reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A node.
    Node(Arc<Node>),
    /// A Service.
    Service(Arc<Service>),
    /// A slice.
    EndpointSlice(Arc<EndpointSlice>),
    /// Ranges of Service addresses.
    ServiceCidr(Arc<ServiceCidr>),
    /// A pod.
    Pod(Arc<Pod>),
}

impl Object {
    /// The object's name.
    pub fn key(&self) -> NamespacedName {
        match self {
            Self::Node(node) => node.metadata.key(),
            Self::Service(service) => service.metadata.key(),
            Self::EndpointSlice(slice) => slice.metadata.key(),
            Self::ServiceCidr(ranges) => ranges.metadata.key(),
            Self::Pod(pod) => pod.metadata.key(),
        }
    }

    /// The object's kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Node(_) => Kind::Node,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::ServiceCidr(_) => Kind::ServiceCidr,
            Self::Pod(_) => Kind::Pod,
        }
    }
}

/// Something whose plan may have changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DirtyKey {
    /// One Service, by itself or by its slices.
    Service(NamespacedName),
    /// The pod network: nodes, their ranges and addresses; ranges of Services.
    Network,
    /// One pod.
    Pod(NamespacedName),
}

/// All objects of one kind, in the form that [`World`] keeps them in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum List {
    /// Nodes by name.
    Nodes(BTreeMap<String, Arc<Node>>),
    /// Services.
    Services(PackedMap<NamespacedName, Service>),
    /// Slices.
    EndpointSlices(PackedMap<NamespacedName, EndpointSlice>),
    /// Ranges of Service addresses by name.
    ServiceCidrs(BTreeMap<String, Arc<ServiceCidr>>),
    /// Pods.
    Pods(BTreeMap<NamespacedName, Arc<Pod>>),
}

impl List {
    /// A list of these objects, of equal names the last one. Objects of another kind are ignored.
    pub fn new(kind: Kind, objects: impl IntoIterator<Item = Object>) -> Self {
        let mut services: Unsorted<NamespacedName, Service> = Unsorted::default();
        let mut slices: Unsorted<NamespacedName, EndpointSlice> = Unsorted::default();
        let mut list = match kind {
            Kind::Node => Self::Nodes(BTreeMap::new()),
            Kind::ServiceCidr => Self::ServiceCidrs(BTreeMap::new()),
            Kind::Pod => Self::Pods(BTreeMap::new()),
            Kind::Service | Kind::EndpointSlice => Self::Services(PackedMap::new()),
        };
        for object in objects.into_iter().filter(|object| object.kind() == kind) {
            match object {
                Object::Service(service) => services.push(&service.metadata.key(), &service),
                Object::EndpointSlice(slice) => slices.push(&slice.metadata.key(), &slice),
                object => list.set(object),
            }
        }
        match kind {
            Kind::Service => Self::Services(services.into_map()),
            Kind::EndpointSlice => Self::EndpointSlices(slices.into_map()),
            Kind::Node | Kind::ServiceCidr | Kind::Pod => list,
        }
    }

    /// The kind of all its objects.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Nodes(_) => Kind::Node,
            Self::Services(_) => Kind::Service,
            Self::EndpointSlices(_) => Kind::EndpointSlice,
            Self::ServiceCidrs(_) => Kind::ServiceCidr,
            Self::Pods(_) => Kind::Pod,
        }
    }

    /// The number of objects.
    pub fn len(&self) -> usize {
        match self {
            Self::Nodes(nodes) => nodes.len(),
            Self::Services(services) => services.len(),
            Self::EndpointSlices(slices) => slices.len(),
            Self::ServiceCidrs(ranges) => ranges.len(),
            Self::Pods(pods) => pods.len(),
        }
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An object is present with this value. One of another kind is ignored.
    pub fn set(&mut self, object: Object) {
        let key = object.key();
        match (self, object) {
            (Self::Nodes(nodes), Object::Node(node)) => {
                nodes.insert(key.name, node);
            }
            (Self::Services(services), Object::Service(service)) => {
                services.insert(&key, &service);
            }
            (Self::EndpointSlices(slices), Object::EndpointSlice(slice)) => {
                slices.insert(&key, &slice);
            }
            (Self::ServiceCidrs(all), Object::ServiceCidr(ranges)) => {
                all.insert(key.name, ranges);
            }
            (Self::Pods(pods), Object::Pod(pod)) => {
                pods.insert(key, pod);
            }
            _ => {}
        }
    }

    /// An object is absent.
    pub fn remove(&mut self, key: &NamespacedName) {
        match self {
            Self::Nodes(nodes) => drop(nodes.remove(&key.name)),
            Self::Services(services) => drop(services.remove(key)),
            Self::EndpointSlices(slices) => drop(slices.remove(key)),
            Self::ServiceCidrs(ranges) => drop(ranges.remove(&key.name)),
            Self::Pods(pods) => drop(pods.remove(key)),
        }
    }
}

/// The current objects, indexed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    nodes: BTreeMap<String, Arc<Node>>,
    services: PackedMap<NamespacedName, Service>,
    slices: PackedMap<NamespacedName, EndpointSlice>,
    service_cidrs: BTreeMap<String, Arc<ServiceCidr>>,
    pods: BTreeMap<NamespacedName, Arc<Pod>>,
    slices_by_service: PackedMap<SliceOf, ()>,
    unreachable: Unreachable,
}

/// A slice of a Service, which is of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SliceOf {
    service: NamespacedName,
    slice: String,
}

/// It begins as the Service's name does.
impl Pack for SliceOf {
    fn pack(&self, to: &mut Vec<u8>) {
        self.service.pack(to);
        to.extend_from_slice(self.slice.as_bytes());
    }
}

impl Unpack for SliceOf {
    fn unpack(bytes: &[u8]) -> Self {
        let slice = bytes.rsplit(|byte| *byte == 0).next().unwrap_or_default();
        let slice = String::from_utf8_lossy(slice).into_owned();
        Self { service: NamespacedName::unpack(bytes), slice }
    }
}

impl World {
    /// Sets one object to its present value and says what that touches. An equal value touches
    /// nothing.
    pub fn set(&mut self, object: Object) -> Vec<DirtyKey> {
        let key = object.key();
        match object {
            Object::Node(node) => {
                let old = self.nodes.insert(key.name, node.clone());
                if old.as_ref() == Some(&node) { vec![] } else { vec![DirtyKey::Network] }
            }
            Object::Service(service) => {
                let changed = self.services.insert(&key, &service);
                if changed { vec![DirtyKey::Service(key)] } else { vec![] }
            }
            Object::EndpointSlice(slice) => self.set_slice(key, slice),
            Object::ServiceCidr(ranges) => {
                let old = self.service_cidrs.insert(key.name, ranges.clone());
                if old.as_ref() == Some(&ranges) { vec![] } else { vec![DirtyKey::Network] }
            }
            Object::Pod(pod) => {
                let old = self.pods.insert(key.clone(), pod.clone());
                if old.as_ref() == Some(&pod) { vec![] } else { vec![DirtyKey::Pod(key)] }
            }
        }
    }

    /// Removes one object and says what that touches. An absent one touches nothing.
    pub fn remove(&mut self, kind: Kind, key: &NamespacedName) -> Vec<DirtyKey> {
        match kind {
            Kind::Node => match self.nodes.remove(&key.name) {
                Some(_) => vec![DirtyKey::Network],
                None => vec![],
            },
            Kind::Service => match self.services.remove(key) {
                Some(_) => vec![DirtyKey::Service(key.clone())],
                None => vec![],
            },
            Kind::EndpointSlice => match self.slices.remove(key) {
                Some(slice) => self.unlink_slice(key, &slice).into_iter().collect(),
                None => vec![],
            },
            Kind::ServiceCidr => match self.service_cidrs.remove(&key.name) {
                Some(_) => vec![DirtyKey::Network],
                None => vec![],
            },
            Kind::Pod => match self.pods.remove(key) {
                Some(_) => vec![DirtyKey::Pod(key.clone())],
                None => vec![],
            },
        }
    }

    /// Replaces all objects of one kind by a complete list and says what that touches.
    pub fn replace(&mut self, list: List) -> Vec<DirtyKey> {
        match list {
            List::Nodes(nodes) => {
                let old = std::mem::replace(&mut self.nodes, nodes);
                if old == self.nodes { vec![] } else { vec![DirtyKey::Network] }
            }
            List::ServiceCidrs(ranges) => {
                let old = std::mem::replace(&mut self.service_cidrs, ranges);
                if old == self.service_cidrs { vec![] } else { vec![DirtyKey::Network] }
            }
            List::Services(services) => {
                let old = std::mem::replace(&mut self.services, services);
                let changed = self.services.keys_other_than_in(&old);
                let gone = old.keys_absent_in(&self.services);
                in_order(changed.chain(gone).map(DirtyKey::Service).collect())
            }
            List::EndpointSlices(slices) => self.replace_slices(slices),
            List::Pods(pods) => {
                let old = std::mem::replace(&mut self.pods, pods);
                let changed = self.pods.iter().filter(|(key, pod)| old.get(*key) != Some(*pod));
                let gone = old.keys().filter(|key| !self.pods.contains_key(*key));
                let keys = changed.map(|(key, _)| key).chain(gone);
                in_order(keys.cloned().map(DirtyKey::Pod).collect())
            }
        }
    }

    /// A slice that is another now touches the Service that it had and the one that it has.
    fn replace_slices(
        &mut self,
        slices: PackedMap<NamespacedName, EndpointSlice>,
    ) -> Vec<DirtyKey> {
        let old = std::mem::replace(&mut self.slices, slices);
        let new = &self.slices;
        let here = new.other_than_in(&old).map(|(_, slice)| slice);
        let changed = old.other_than_in(new).map(|(_, slice)| slice);
        let services = here.chain(changed).filter_map(|slice| slice.service());
        let dirty = in_order(services.map(DirtyKey::Service).collect());
        let mut by_service = Unsorted::default();
        for (key, slice) in new.iter() {
            if let Some(service) = slice.service() {
                by_service.push(&SliceOf { service, slice: key.name }, &());
            }
        }
        self.slices_by_service = by_service.into_map();
        dirty
    }

    /// Sets what does not answer this node, and says which Services that touches.
    pub fn set_unreachable(&mut self, unreachable: Unreachable) -> Vec<DirtyKey> {
        let changed = self.unreachable.difference(&unreachable);
        self.unreachable = unreachable;
        if changed.is_empty() {
            return vec![];
        }
        let concerned = self.slices().filter(|slice| changed.concerns(slice));
        let services: BTreeSet<NamespacedName> =
            concerned.filter_map(|slice| slice.service()).collect();
        services.into_iter().map(DirtyKey::Service).collect()
    }

    /// What does not answer this node; it is of no kind, since no object says it.
    pub fn unreachable(&self) -> &Unreachable {
        &self.unreachable
    }

    /// The number of objects of a kind.
    pub fn len_of(&self, kind: Kind) -> usize {
        match kind {
            Kind::Node => self.nodes.len(),
            Kind::Service => self.services.len(),
            Kind::EndpointSlice => self.slices.len(),
            Kind::ServiceCidr => self.service_cidrs.len(),
            Kind::Pod => self.pods.len(),
        }
    }

    /// The names of all objects of a kind.
    pub fn keys(&self, kind: Kind) -> Vec<NamespacedName> {
        match kind {
            Kind::Node => self.nodes.values().map(|node| node.metadata.key()).collect(),
            Kind::Service => self.services.keys().collect(),
            Kind::EndpointSlice => self.slices.keys().collect(),
            Kind::ServiceCidr => {
                self.service_cidrs.values().map(|ranges| ranges.metadata.key()).collect()
            }
            Kind::Pod => self.pods.keys().cloned().collect(),
        }
    }

    /// One node.
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(name)
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// One Service.
    pub fn service(&self, key: &NamespacedName) -> Option<Service> {
        self.services.get(key)
    }

    /// All Services, by name.
    pub fn services(&self) -> impl Iterator<Item = Service> {
        self.services.values()
    }

    /// The slices of a Service, by name; also those that came before it.
    pub fn slices_of(&self, service: &NamespacedName) -> impl Iterator<Item = EndpointSlice> {
        let names = self.slices_by_service.starting_with(service);
        let keys = names
            .map(|(of, ())| NamespacedName { namespace: of.service.namespace, name: of.slice });
        keys.filter_map(|key| self.slices.get(&key))
    }

    /// All slices, by name.
    pub fn slices(&self) -> impl Iterator<Item = EndpointSlice> {
        self.slices.values()
    }

    /// All objects with ranges of Service addresses, by name.
    pub fn service_cidrs(&self) -> impl Iterator<Item = &Arc<ServiceCidr>> {
        self.service_cidrs.values()
    }

    /// One pod.
    pub fn pod(&self, key: &NamespacedName) -> Option<&Arc<Pod>> {
        self.pods.get(key)
    }

    /// All pods that are watched, by name.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values()
    }

    fn set_slice(&mut self, key: NamespacedName, slice: Arc<EndpointSlice>) -> Vec<DirtyKey> {
        let old = self.slices.get(&key);
        if !self.slices.insert(&key, &slice) {
            return vec![];
        }
        // The label can move a slice from one Service to another: both change.
        let left = old.and_then(|old| self.unlink_slice(&key, &old));
        let joined = slice.service().map(|service| {
            let of = SliceOf { service: service.clone(), slice: key.name };
            self.slices_by_service.insert(&of, &());
            DirtyKey::Service(service)
        });
        let dirty: BTreeSet<DirtyKey> = left.into_iter().chain(joined).collect();
        dirty.into_iter().collect()
    }

    fn unlink_slice(&mut self, key: &NamespacedName, slice: &EndpointSlice) -> Option<DirtyKey> {
        let service = slice.service()?;
        let of = SliceOf { service: service.clone(), slice: key.name.clone() };
        self.slices_by_service.remove(&of);
        Some(DirtyKey::Service(service))
    }
}

/// Each once.
fn in_order(mut keys: Vec<DirtyKey>) -> Vec<DirtyKey> {
    keys.sort_unstable();
    keys.dedup();
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Protocol;
    use crate::kinds::{Endpoint, EndpointPort, SERVICE_NAME_LABEL};

    fn slice(name: &str, service: &str) -> Object {
        let mut slice = EndpointSlice::default();
        slice.metadata.namespace = "shop".into();
        slice.metadata.name = name.into();
        slice.metadata.labels.insert(SERVICE_NAME_LABEL.into(), service.into());
        Object::EndpointSlice(Arc::new(slice))
    }

    fn service_key(name: &str) -> NamespacedName {
        NamespacedName::new("shop", name)
    }

    #[test]
    fn a_slice_may_come_before_its_service() {
        let mut world = World::default();
        assert_eq!(world.set(slice("web-1", "web")), [DirtyKey::Service(service_key("web"))]);
        assert_eq!(world.slices_of(&service_key("web")).count(), 1);
    }

    #[test]
    fn a_relabelled_slice_touches_both_services() {
        let mut world = World::default();
        world.set(slice("s", "old"));
        let dirty = world.set(slice("s", "new"));
        assert_eq!(
            dirty,
            [DirtyKey::Service(service_key("new")), DirtyKey::Service(service_key("old"))]
        );
        assert_eq!(world.slices_of(&service_key("old")).count(), 0);
    }

    #[test]
    fn repeats_touch_nothing() {
        let mut world = World::default();
        world.set(slice("s", "web"));
        assert_eq!(world.set(slice("s", "web")), []);
        world.remove(Kind::EndpointSlice, &service_key("s"));
        assert_eq!(world.remove(Kind::EndpointSlice, &service_key("s")), []);
    }

    #[test]
    fn what_becomes_unreachable_and_comes_back_touches_only_its_services() {
        let mut world = World::default();
        for (name, node, address, protocol) in [
            ("web", "node2", "10.244.1.5", Protocol::Tcp),
            ("db", "node3", "10.244.2.5", Protocol::Tcp),
            ("names", "node3", "10.244.1.5", Protocol::Udp),
        ] {
            let Object::EndpointSlice(mut one) = slice(name, name) else { unreachable!() };
            let stated = Arc::make_mut(&mut one);
            stated.ports = vec![EndpointPort { name: "p".into(), protocol, port: Some(80) }];
            stated.endpoints = vec![Endpoint {
                addresses: vec![address.into()],
                node_name: node.into(),
                ..Endpoint::default()
            }];
            world.set(Object::EndpointSlice(one));
        }
        let touched = |names: &[&str]| -> Vec<DirtyKey> {
            names.iter().map(|name| DirtyKey::Service(service_key(name))).collect()
        };
        let node = Unreachable { nodes: ["node3".into()].into(), ..Unreachable::default() };
        let endpoints = ["10.244.1.5:80".parse().expect("an address")].into();
        let endpoint = Unreachable { endpoints, ..Unreachable::default() };
        assert_eq!(world.set_unreachable(node.clone()), touched(&["db", "names"]));
        assert_eq!(world.set_unreachable(node), []);
        assert_eq!(world.set_unreachable(endpoint), touched(&["db", "names", "web"]));
        assert_eq!(world.set_unreachable(Unreachable::default()), touched(&["web"]));
    }

    #[test]
    fn a_list_removes_what_it_does_not_name() {
        let mut world = World::default();
        world.set(slice("a", "web"));
        world.set(slice("b", "db"));
        let dirty = world.replace(List::new(Kind::EndpointSlice, [slice("a", "web")]));
        assert_eq!(dirty, [DirtyKey::Service(service_key("db"))]);
        assert_eq!(world.keys(Kind::EndpointSlice), [service_key("a")]);
    }

    /// Whatever was there before: the world after a list is the one that its objects make.
    #[test]
    fn a_list_makes_the_world_that_its_objects_make_one_by_one() {
        let service = |name: &str, kind| {
            let mut service = Service::default();
            (service.metadata.namespace, service.metadata.name) = ("shop".into(), name.into());
            service.spec.kind = kind;
            Object::Service(Arc::new(service))
        };
        let node = |name: &str, label: &str| {
            let mut node = Node::default();
            node.metadata.name = name.into();
            node.metadata.labels.insert("zone".into(), label.into());
            Object::Node(Arc::new(node))
        };
        let plain = crate::kinds::ServiceType::ClusterIP;
        let states = [
            vec![],
            vec![slice("a", "web"), slice("b", "db"), service("web", plain), node("n", "1")],
            vec![slice("b", "web"), slice("a", "web"), service("web", plain), node("n", "1")],
            vec![slice("c", "web"), service("db", plain), node("m", "1"), slice("a", "web")],
            vec![slice("a", "db"), service("db", crate::kinds::ServiceType::NodePort)],
        ];
        for (before, after) in states.iter().flat_map(|one| states.iter().map(move |it| (one, it)))
        {
            let (mut listed, mut stepped) = (World::default(), World::default());
            for object in before {
                listed.set(object.clone());
                stepped.set(object.clone());
            }
            for kind in [Kind::Node, Kind::Service, Kind::EndpointSlice] {
                let list = List::new(kind, after.iter().cloned());
                assert_eq!(list.kind(), kind);
                let keys =
                    |world: &World| -> BTreeSet<_> { world.keys(kind).into_iter().collect() };
                let dirty = listed.replace(list.clone());
                assert_eq!(listed.len_of(kind), list.len());
                let mut touched = BTreeSet::new();
                for key in keys(&stepped).difference(&keys(&listed)) {
                    touched.extend(stepped.remove(kind, key));
                }
                for object in after.iter().filter(|object| object.kind() == kind) {
                    touched.extend(stepped.set(object.clone()));
                }
                assert_eq!(listed, stepped, "{before:?} {after:?}");
                assert_eq!(dirty, touched.into_iter().collect::<Vec<_>>());
                assert_eq!(listed.replace(list), [], "the same list again");
            }
        }
    }
}
