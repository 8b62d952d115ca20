//! Services in the maps of `bpf/services.h`: flat, so that a Service costs entries and nothing
//! else.
//!
//! ```text
//! services  address·protocol·port ─▶ ids and counts of slots, one for each view; the first slots
//! ranges    address·protocol·first bits of a port ─▶ the same, where `services` has nothing
//! slots     id·slot ─▶ endpoint, of the other slots
//! maglev    id·hash ─▶ slot
//! members   id·endpoint, where flows outlive a choice (affinity, UDP)
//! ```
//!
//! A Service at the node's own addresses has the unspecified address of its family and the scope
//! [`SCOPE_NODE_PORT`]; the map `node_addresses` says where it answers.
//!
//! Most Services have few endpoints. These lie in the frontend's own entry: it is written at once
//! with them, and whoever finds it needs no second look-up. Entries are the cost of a full load, and
//! hardly their bytes.

use crate::layout::{Field, Layout, abi_struct};

/// Number of the layout of these maps. Maps of different numbers live in different directories, so
/// that the programs of one never meet the maps of another (R-03).
pub const SERVICES_VERSION: u32 = 2;

/// Bits of a [`RangeKey`] before the port.
pub const RANGE_PORT_BITS: u32 = 144;
/// Bits of a [`ServiceSourceKey`] before the address.
pub const SERVICE_SOURCE_ID_BITS: u32 = 32;

/// [`ServiceKey::scope`]: the address is the Service's own (ClusterIP, external address).
pub const SCOPE_ADDRESS: u8 = 0;
/// [`ServiceKey::scope`]: every address of the node that the map `node_addresses` has.
pub const SCOPE_NODE_PORT: u8 = 1;

/// [`Service::flags`]: the inside view masquerades everybody, not only who is no pod of this node.
pub const MASQUERADE: u32 = 1;
/// [`Service::flags`]: the inside view has no slots because the Service has no endpoint anywhere,
/// and refuses. Without slots and without this flag it drops.
pub const REJECT: u32 = 2;
/// [`Service::flags`]: clients outside the cluster have a view of their own, which keeps their
/// source.
pub const OUTSIDE: u32 = 4;
/// [`Service::flags`]: [`REJECT`] of the outside view.
pub const OUTSIDE_REJECT: u32 = 8;
/// [`Service::flags`]: only sources that `service_sources` has under [`Service::id`] may come.
pub const SOURCE_RANGES: u32 = 16;
/// [`Service::flags`]: the node itself is among these sources; at the socket, its processes have no
/// source yet.
pub const NODE_ALLOWED: u32 = 32;
/// [`Service::flags`]: endpoints answer clients outside of the cluster past this node, where they
/// can (direct server return).
pub const DIRECT: u32 = 64;

/// In the map `direct_hosts`: pods of a node that understands what is handed on to it.
pub const DIRECT_PODS: u32 = 1;
/// In the map `direct_hosts`: an address of such a node, whose word is believed.
pub const DIRECT_NODE: u32 = 2;
/// Most ranges of pods and addresses of nodes in the map `direct_hosts`.
pub const DIRECT_HOSTS_MAX: u32 = 65_536;

/// [`Slot::keep`]: this slot is never passed on to its alias.
pub const KEEP_ALWAYS: u32 = u32::MAX;

/// Slots that lie in a frontend's own entry at most. With five, an entry of `services` fills the 256
/// bytes that the kernel allocates for it (48 of its own, 24 of the key, 176 of the value, 8 of the
/// allocator).
pub const NEAR_SLOTS: u32 = 5;

abi_struct! {
    /// A frontend with one port.
    ServiceKey {
        /// The Service's address; of the scope [`SCOPE_NODE_PORT`] the unspecified one.
        address: [u8; 16],
        /// Its port.
        port: u16,
        /// The transport protocol's number.
        protocol: u8,
        /// [`SCOPE_ADDRESS`] or [`SCOPE_NODE_PORT`].
        scope: u8,
    }
}

abi_struct! {
    /// A part of a range of ports: key of a map by longest prefix.
    RangeKey {
        /// [`RANGE_PORT_BITS`] and the bits of the port that count.
        prefix_bits: u32,
        /// The Service's address.
        address: [u8; 16],
        /// The transport protocol's number.
        protocol: u8,
        /// Nothing.
        zero: u8,
        /// The first port.
        port: u16,
    }
}

abi_struct! {
    /// What clients get at a frontend.
    Service {
        /// [`MASQUERADE`], [`REJECT`], [`OUTSIDE`], [`OUTSIDE_REJECT`], [`SOURCE_RANGES`],
        /// [`NODE_ALLOWED`], [`DIRECT`].
        flags: u32,
        /// Of the slots of the inside view, and of the source ranges.
        id: u32,
        /// How many slots the inside view has.
        count: u32,
        /// Of the slots of the outside view.
        outside_id: u32,
        /// How many slots the outside view has.
        outside_count: u32,
        /// Seconds after its last new connection in which a client gets the same endpoint; 0: none.
        affinity_timeout_s: u32,
        /// Entries that each view has in `maglev`; 0: a slot by chance.
        maglev_size: u32,
        /// How many slots of the inside view are in `near`: the first ones. `slots` has the others,
        /// and all of the outside view.
        near_count: u32,
        /// The first slots of the inside view, as many as `near_count` says.
        near: [Slot; NEAR_SLOTS as usize],
    }
}

impl Service {
    /// The slots of the inside view that lie in this entry.
    pub fn near_slots(&self) -> &[Slot] {
        let count = usize::try_from(self.near_count).unwrap_or(usize::MAX);
        self.near.get(..count).unwrap_or(&self.near)
    }

    /// Takes the first slots of the inside view into this entry, and answers the others.
    pub fn keep_near<'a>(&mut self, slots: &'a [Slot]) -> &'a [Slot] {
        let (near, others) = slots.split_at(slots.len().min(self.near.len()));
        self.near = [Slot::default(); NEAR_SLOTS as usize];
        for (place, slot) in self.near.iter_mut().zip(near) {
            *place = *slot;
        }
        self.near_count = u32::try_from(near.len()).unwrap_or(NEAR_SLOTS);
        others
    }
}

abi_struct! {
    /// One slot of a view, or one entry of its Maglev table.
    SlotKey {
        /// The view's id.
        id: u32,
        /// The number of the slot or of the entry, from 0.
        slot: u32,
    }
}

abi_struct! {
    /// An endpoint in its slot. Weights are an alias table: of those who come to this slot some
    /// are passed on to another (Walker's method), so that a choice costs the same for any weights.
    Slot {
        /// The endpoint's address.
        address: [u8; 16],
        /// Its port; 0: the port that the client asked for.
        port: u16,
        /// Nothing.
        zero: [u8; 2],
        /// Stays here with the probability `keep` ÷ 2³²; [`KEEP_ALWAYS`]: always.
        keep: u32,
        /// The slot that others are passed on to.
        alias: u32,
    }
}

impl Field for [Slot; NEAR_SLOTS as usize] {
    const C_TYPE: &'static str = "struct slot";
    const ARRAY: Option<usize> = Some(NEAR_SLOTS as usize);

    fn put(&self, bytes: &mut [u8]) {
        for (slot, part) in self.iter().zip(bytes.chunks_exact_mut(Slot::BYTES)) {
            part.copy_from_slice(&slot.to_bytes());
        }
    }

    fn get(bytes: &[u8]) -> Self {
        let mut slots = [Slot::default(); NEAR_SLOTS as usize];
        for (slot, part) in slots.iter_mut().zip(bytes.as_chunks().0) {
            *slot = Slot::from_bytes(part);
        }
        slots
    }
}

abi_struct! {
    /// An endpoint of a view, whatever its slot.
    MemberKey {
        /// The view's id.
        id: u32,
        /// The endpoint's address.
        address: [u8; 16],
        /// Its port, as in its slot.
        port: u16,
        /// Nothing.
        zero: [u8; 2],
    }
}

abi_struct! {
    /// Clients that may come: key of a map by longest prefix.
    ServiceSourceKey {
        /// [`SERVICE_SOURCE_ID_BITS`] and the bits of the address that count.
        prefix_bits: u32,
        /// [`Service::id`].
        id: u32,
        /// The range's address.
        address: [u8; 16],
    }
}

abi_struct! {
    /// A range of addresses: key of a map by longest prefix.
    NetworkKey {
        /// The bits of the address that count.
        prefix_bits: u32,
        /// The range's address.
        address: [u8; 16],
    }
}

abi_struct! {
    /// A client of a view with session affinity.
    AffinityKey {
        /// The client's address; at the socket, where it has none yet, what names its network
        /// namespace.
        client: [u8; 16],
        /// The view's id.
        id: u32,
    }
}

abi_struct! {
    /// The endpoint of such a client.
    Affinity {
        /// The endpoint's address.
        address: [u8; 16],
        /// Its port, as in its slot.
        port: u16,
        /// Nothing.
        zero: [u8; 2],
        /// When it was chosen last, in seconds since the machine started.
        used_s: u32,
    }
}

abi_struct! {
    /// An address and a port.
    Endpoint {
        /// The address.
        address: [u8; 16],
        /// The port.
        port: u16,
        /// Nothing.
        zero: [u8; 2],
    }
}

abi_struct! {
    /// Whom a UDP socket sends to, or who answers it.
    SocketFlowKey {
        /// The socket's cookie.
        cookie: u64,
        /// The address.
        address: [u8; 16],
        /// The port.
        port: u16,
        /// Nothing.
        zero: [u8; 6],
    }
}

abi_struct! {
    /// What holds for all Services: the only element of an array.
    ServiceSettings {
        /// The cookie of the node's own network namespace: its processes need no masquerade at
        /// the socket.
        node_namespace: u64,
    }
}

/// All structures, in the order of the header.
pub(crate) const LAYOUTS: [&Layout; 13] = [
    &ServiceKey::LAYOUT,
    &RangeKey::LAYOUT,
    &Slot::LAYOUT,
    &Service::LAYOUT,
    &SlotKey::LAYOUT,
    &MemberKey::LAYOUT,
    &ServiceSourceKey::LAYOUT,
    &NetworkKey::LAYOUT,
    &AffinityKey::LAYOUT,
    &Affinity::LAYOUT,
    &Endpoint::LAYOUT,
    &SocketFlowKey::LAYOUT,
    &ServiceSettings::LAYOUT,
];

/// Numbers that both sides use, by their names in C.
pub(crate) const NUMBERS: [(&str, u32); 16] = [
    ("RANGE_PORT_BITS", RANGE_PORT_BITS),
    ("SERVICE_SOURCE_ID_BITS", SERVICE_SOURCE_ID_BITS),
    ("SCOPE_ADDRESS", SCOPE_ADDRESS as u32),
    ("SCOPE_NODE_PORT", SCOPE_NODE_PORT as u32),
    ("MASQUERADE", MASQUERADE),
    ("REJECT", REJECT),
    ("OUTSIDE", OUTSIDE),
    ("OUTSIDE_REJECT", OUTSIDE_REJECT),
    ("SOURCE_RANGES", SOURCE_RANGES),
    ("NODE_ALLOWED", NODE_ALLOWED),
    ("DIRECT", DIRECT),
    ("DIRECT_PODS", DIRECT_PODS),
    ("DIRECT_NODE", DIRECT_NODE),
    ("DIRECT_HOSTS_MAX", DIRECT_HOSTS_MAX),
    ("KEEP_ALWAYS", KEEP_ALWAYS),
    ("NEAR_SLOTS", NEAR_SLOTS),
];
