//! [`Edge`]: the rules where pods meet the node, as the CNI plugin adds and removes them for one pod,
//! and as the agent keeps them for all. See [`render::edge`] for what they say.
//!
//! The plugin's order is record, rules, link on ADD, and link, rules, record on DEL: a pod's link
//! never carries a packet without its rules (invariant 7), and whoever is killed between leaves a
//! record from which [`Edge::repair`] finishes.

mod forwarding;
mod iptables;

use std::os::fd::{AsFd, BorrowedFd};

use model::attachment::PortMapping;
use model::{Attachment, Family, Protocol};
use netlink::{Error, Netns};
use render::OpError;
use render::edge::host_ports::Endpoint;
use render::edge::{self, host_ports};
use render::nft::state::Command;
use render::nft::{NftObserved, Transaction};

use crate::nft::{ForeignDrop, NftDriver};
use forwarding::Change;

/// The writer of rules at pods' edges. It holds one socket and no state: two of them, in two
/// processes, differ in nothing. Writers of one network take turns by the lock of its records.
pub struct Edge {
    driver: NftDriver,
    /// Where the socket is; programs that we run are to be there too.
    namespace: Netns,
}

impl Edge {
    /// Opens it in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the system refuses the socket.
    pub fn open() -> Result<Self, OpError> {
        Ok(Self { driver: NftDriver::open()?, namespace: Netns::current().map_err(refused)? })
    }

    /// Adds a pod's rules, in one transaction of set elements. Where that cannot be (the first pod,
    /// flushed tables, another version's, elements that a killed plugin left), everything is written
    /// anew from `records`: all pods of the node, this one among them or not.
    ///
    /// Tracked UDP flows to the pod's ports of the node are forgotten: a client would else stay with
    /// whoever had the port before.
    ///
    /// # Errors
    /// When a port of the node leads to another pod, with its name; when a mapping cannot be served;
    /// when the kernel refuses.
    pub fn attach(
        &mut self,
        attachment: &Attachment,
        records: impl FnOnce() -> Vec<Attachment>,
    ) -> Result<(), OpError> {
        if let Some(reason) = edge::refusal(attachment) {
            return Err(OpError { errno: libc::EINVAL, message: reason });
        }
        let additions = edge::additions(attachment);
        if !additions.is_empty() {
            match self.driver.commit(&additions) {
                Err(error) if is_other_layout(error.errno) => {
                    self.attach_slowly(attachment, records())?;
                }
                result => result?,
            }
        }
        self.change_forwarding(std::slice::from_ref(attachment), Change::Add)?;
        self.forget_udp_flows(attachment)
    }

    /// Removes a pod's rules, and forgets the tracked flows of its addresses: only then may
    /// they be another pod's. What is not there is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn detach(&mut self, attachment: &Attachment) -> Result<(), OpError> {
        let attachment = &self.without_ports_of_others(attachment)?;
        let removals = edge::removals(attachment);
        if !removals.is_empty() {
            match self.driver.commit(&removals) {
                // Some of them are gone already: the others one by one.
                Err(error) if error.errno == libc::ENOENT => self.remove_singly(&removals)?,
                result => result?,
            }
        }
        self.change_forwarding(std::slice::from_ref(attachment), Change::Remove)?;
        for address in &attachment.addresses {
            self.driver.forget_flows_of(address.addr())?;
        }
        self.forget_udp_flows(attachment)
    }

    /// Reads back all tables at pods' edges.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn observe(&mut self) -> Result<NftObserved, OpError> {
        self.driver.observe_tables(&edge::tables())
    }

    /// Makes the rules what the records of all pods of this node (those of this boot) want, and
    /// answers what was wrong, in words. Writes nothing where nothing is.
    ///
    /// # Errors
    /// When the kernel cannot be asked or refuses; it is tried again with the next call.
    pub fn repair(&mut self, attachments: &[Attachment]) -> Result<Vec<String>, OpError> {
        let ops = edge::diff(attachments, &self.observe()?);
        for op in &ops {
            self.driver.apply(op)?;
        }
        let mut damages = edge::damages(&ops);
        damages.extend(self.change_forwarding(attachments, Change::Set)?);
        Ok(damages)
    }

    /// What [`Edge::repair`] would find, without writing.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn damages(&mut self, attachments: &[Attachment]) -> Result<Vec<String>, OpError> {
        let mut damages = edge::damages(&edge::diff(attachments, &self.observe()?));
        damages.extend(self.change_forwarding(attachments, Change::Look)?);
        Ok(damages)
    }

    /// What is wrong with the rules of one pod (CHECK), whatever the others' are.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn check(&mut self, attachment: &Attachment) -> Result<Vec<String>, OpError> {
        let observed = self.observe()?;
        let mut missing = Vec::new();
        for Transaction { table, commands } in edge::additions(attachment) {
            for command in commands {
                let Command::AddElements(set, elements) = command else { continue };
                let present = observed.tables.get(&table).and_then(|table| table.sets.get(&set));
                for (key, datum) in elements {
                    if present.and_then(|set| set.elements.get(&key)) != Some(datum) {
                        let key: Vec<String> = key.iter().map(ToString::to_string).collect();
                        missing.push(format!(
                            "set {set} of nftables table {table} lacks {}",
                            key.join(" . ")
                        ));
                    }
                }
            }
        }
        missing
            .extend(self.change_forwarding(std::slice::from_ref(attachment), Change::LookForOne)?);
        Ok(missing)
    }

    /// Chains of nf_tables of others that drop by policy whatever is forwarded, also those that
    /// `iptables` makes there.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn foreign_drops(&mut self) -> Result<Vec<ForeignDrop>, OpError> {
        self.driver.foreign_drops()
    }

    fn attach_slowly(
        &mut self,
        attachment: &Attachment,
        mut records: Vec<Attachment>,
    ) -> Result<(), OpError> {
        if let Some(reason) = edge::conflict(&records, attachment) {
            return Err(OpError { errno: libc::EADDRINUSE, message: reason });
        }
        let own = |other: &Attachment| {
            other.container_id == attachment.container_id && other.interface == attachment.interface
        };
        records.retain(|other| !own(other));
        records.push(attachment.clone());
        self.repair(&records).map(drop)
    }

    /// The attachment without the ports that lead to others. A plugin whose ADD was refused since
    /// another pod has the port must not take it away with its DEL.
    fn without_ports_of_others(&mut self, attachment: &Attachment) -> Result<Attachment, OpError> {
        let mut own = attachment.clone();
        for Endpoint { mapping, table, map, spec, key, endpoint } in
            host_ports::endpoints(attachment)
        {
            let present = self.driver.element(&table, &map, &spec, &key)?;
            if present.is_some_and(|present| present != endpoint) {
                own.edge.host_ports.retain(|one| *one != mapping);
            }
        }
        Ok(own)
    }

    fn remove_singly(&mut self, removals: &[Transaction]) -> Result<(), OpError> {
        for Transaction { table, commands } in removals {
            for command in commands {
                let Command::DeleteElements(set, keys) = command else { continue };
                for key in keys {
                    let commands = vec![Command::DeleteElements(set.clone(), vec![key.clone()])];
                    let one = Transaction { table: table.clone(), commands };
                    match self.driver.commit(&[one]) {
                        Err(error) if error.errno == libc::ENOENT => {}
                        result => result?,
                    }
                }
            }
        }
        Ok(())
    }

    fn forget_udp_flows(&mut self, attachment: &Attachment) -> Result<(), OpError> {
        let udp = |mapping: &&PortMapping| mapping.protocol == Protocol::Udp;
        for mapping in attachment.edge.host_ports.iter().filter(udp) {
            for family in [Family::V4, Family::V6] {
                let has = attachment.addresses.iter().any(|it| Family::of(&it.addr()) == family);
                if has && mapping.host_ip.is_none_or(|it| Family::of(&it) == family) {
                    let port = mapping.host_port;
                    self.driver.forget_flows_to_port(family, mapping.protocol, port)?;
                }
            }
        }
        Ok(())
    }
}

impl AsFd for Edge {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.driver.as_fd()
    }
}

/// The errors that tell of other tables than this version's, or of what was left in them.
fn is_other_layout(errno: i32) -> bool {
    matches!(errno, libc::ENOENT | libc::EEXIST | libc::EBUSY | libc::EINVAL)
}

fn refused(error: Error) -> OpError {
    OpError { errno: error.errno, message: error.to_string() }
}
