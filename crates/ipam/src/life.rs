//! Whose pod lives: what may be given back without a DEL.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::Attachment;

use crate::directory::Reservation;

/// All that lives on a network, as the container runtime tells it in a GC (CNI 1.1,
/// `cni.dev/valid-attachments`), with the addresses that are known of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Living {
    interfaces: BTreeMap<String, BTreeSet<String>>,
    addresses: BTreeSet<IpAddr>,
}

impl Living {
    /// Adds one interface of one container.
    pub fn add(&mut self, container_id: &str, interface: &str) {
        self.interfaces.entry(container_id.into()).or_default().insert(interface.into());
    }

    /// Adds an address that a living interface has, by a record or an earlier result.
    pub fn add_address(&mut self, address: IpAddr) {
        self.addresses.insert(address);
    }

    /// Whether a reservation must stay. A torn one names nobody: no DEL will ever find it, so it
    /// stays only while its address is known to be in use.
    pub fn holds(&self, reservation: &Reservation) -> bool {
        if reservation.container_id.is_empty() {
            return self.addresses.contains(&reservation.address);
        }
        self.interfaces.get(&reservation.container_id).is_some_and(|all| {
            reservation.interface.is_empty() || all.contains(&reservation.interface)
        })
    }
}

/// Whether a pod died with an earlier boot: its record was written in another one, and
/// its namespace is gone. A namespace that exists keeps the pod: after a restore from a
/// checkpoint the boot is another and the pod lives.
pub fn died_with_boot(record: &Attachment, boot_id: &str, namespace_exists: bool) -> bool {
    record.boot_id != boot_id && !namespace_exists
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_ones_stay_by_name_and_torn_ones_by_address() {
        let mut living = Living::default();
        living.add("c1", "eth0");
        living.add_address("10.0.0.9".parse().expect("an address"));
        let rows = [
            ("10.0.0.2", "c1", "eth0", true),
            ("10.0.0.2", "c1", "net1", false),
            ("10.0.0.2", "c1", "", true),
            ("10.0.0.2", "c2", "eth0", false),
            ("10.0.0.9", "c2", "eth0", false),
            ("10.0.0.9", "", "", true),
            ("10.0.0.8", "", "", false),
        ];
        for (address, container_id, interface, stays) in rows {
            let reservation = Reservation {
                address: address.parse().expect("an address"),
                container_id: container_id.into(),
                interface: interface.into(),
                since: model::Timestamp::default(),
            };
            assert_eq!(living.holds(&reservation), stays, "{reservation:?}");
        }
    }

    #[test]
    fn only_another_boot_without_the_namespace_is_death() {
        let record = Attachment { boot_id: "one".into(), ..Attachment::default() };
        let rows = [
            ("one", true, false),
            ("one", false, false),
            ("two", true, false),
            ("two", false, true),
        ];
        for (boot_id, namespace_exists, dead) in rows {
            assert_eq!(died_with_boot(&record, boot_id, namespace_exists), dead, "{boot_id}");
        }
    }
}
