//! Pods that run: the rules at their edges and their links are kept, and their MTU follows the
//! network's.
//!
//! The plugin writes rules without us. Whatever it is in the middle of is no damage: records are
//! written before rules, and damage is only believed, and mended, under the locks of all networks'
//! records.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use cni::link;
use cni::records::{self, Records};
use kernel::edge::Edge;
use model::{Attachment, layout};

/// Networks whose records are locked; a node has one or two.
const NETWORKS_MAX: usize = 64;

/// The keeper of pods' edges.
pub(crate) struct Edges {
    edge: Edge,
    base: PathBuf,
    boot_id: String,
    mtu: Option<u32>,
    pods: usize,
}

impl Edges {
    /// Opens it in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the system refuses the socket.
    pub(crate) fn open(base: &Path) -> Result<Self> {
        let boot_id = records::boot_id()?;
        Ok(Self { edge: Edge::open()?, base: base.to_owned(), boot_id, mtu: None, pods: 0 })
    }

    /// Pods that were there at the last look.
    pub(crate) fn pods(&self) -> usize {
        self.pods
    }

    /// Puts back what is wrong, and answers it in words. Writes nothing where nothing is.
    ///
    /// # Errors
    /// When records or kernel cannot be read, or the kernel refuses.
    pub(crate) fn mend(&mut self) -> Result<Vec<String>> {
        // Without a lock first: pods are not kept waiting for nothing.
        let attachments = self.attachments()?;
        self.pods = attachments.len();
        let rules = self.edge.damages(&attachments);
        if rules.is_ok_and(|rules| rules.is_empty()) && link::damages(&attachments)?.is_empty() {
            return Ok(vec![]);
        }
        let _locks = self.lock()?;
        let attachments = self.attachments()?;
        // Rules first: what a link lets through again is judged by them (invariant 7).
        let rules = self.edge.repair(&attachments);
        // What cannot be had in others' chains stops no link (invariant 6).
        let links = link::repair(&attachments)?;
        let mut mended = rules?;
        mended.extend(links);
        Ok(mended)
    }

    /// Brings the pods of our network to its MTU, once for each value. Answers what could not be:
    /// such a pod keeps its own until it is made anew.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub(crate) fn set_mtu(&mut self, mtu: u32) -> Result<Vec<String>> {
        if self.mtu == Some(mtu) {
            return Ok(vec![]);
        }
        self.mtu = Some(mtu);
        let mut faults = Vec::new();
        for attachment in self.attachments()? {
            if attachment.network != layout::CNI_NETWORK {
                continue;
            }
            if let Err(fault) = link::set_mtu(&attachment, mtu) {
                let container = &attachment.container_id;
                faults.push(format!("container {container} keeps its MTU: {fault}"));
            }
        }
        Ok(faults)
    }

    /// The records of pods of this boot: those of an earlier one have no links, and no rules either.
    pub(crate) fn attachments(&self) -> Result<Vec<Attachment>> {
        let mut all = records::of_all_networks(&self.base)?;
        all.retain(|attachment| attachment.boot_id == self.boot_id);
        Ok(all)
    }

    fn lock(&self) -> Result<Vec<Records>> {
        let mut networks = vec![layout::CNI_NETWORK.to_owned()];
        for entry in fs::read_dir(&self.base).into_iter().flatten().flatten().take(NETWORKS_MAX) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path().is_dir() && !networks.contains(&name) {
                networks.push(name);
            }
        }
        // In one order everywhere: two who lock all of them do not wait for each other.
        networks.sort();
        networks.iter().map(|network| Ok(Records::open(&self.base, network)?)).collect()
    }
}
