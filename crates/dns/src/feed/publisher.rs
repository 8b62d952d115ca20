//! The agent's side: the zone as it is, and what changed lately.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use ipnet::IpNet;
use plan::zone::Exposed;

use super::{Change, FeedError, Frame, Reader, Settings, serial};
use crate::Index;

/// Changes kept for readers that are behind; one that is further behind gets a snapshot.
const MAX_KEPT_FRAMES: usize = 1024;
/// Octets of changes kept.
const MAX_KEPT_OCTETS: usize = 4 << 20;
/// So many changes at once are kept in any case, even when the zone has few more entries.
const MAX_FEW_CHANGES: usize = 64;

/// The zone of an agent, and its newest changes.
#[derive(Debug)]
pub struct Publisher {
    index: Index,
    sequence: u64,
    /// The newest changes, up to `sequence`.
    kept: VecDeque<Arc<[u8]>>,
    kept_octets: usize,
}

impl Publisher {
    /// A zone without Services and pods. The first number should be larger than all of an earlier
    /// agent: it becomes the serial number of the zone.
    pub fn new(settings: Settings, sequence: u64) -> Self {
        let mut index = Index::empty(settings);
        index.set_serial(serial(sequence));
        Self { index, sequence, kept: VecDeque::new(), kept_octets: 0 }
    }

    /// Serves reverse names of these ranges from now on, and names of pods that are exposed; names of
    /// Services come as changes. Readers get a snapshot.
    pub fn set(&mut self, reverse_ranges: &[IpNet], exposed: &Exposed) {
        let settings = self.index.settings();
        if settings.reverse_ranges == reverse_ranges && settings.exposed == *exposed {
            return;
        }
        let settings = Settings {
            reverse_ranges: reverse_ranges.to_vec(),
            exposed: exposed.clone(),
            ..settings.clone()
        };
        let mut index = Index::empty(settings);
        self.index.changes().for_each(|change| index.apply(change));
        self.index = index;
        self.count();
        self.forget();
    }

    /// The changes after which these are the clients.
    pub fn client_changes(&self, ranges: &BTreeSet<IpNet>) -> Vec<Change> {
        let gone = self.index.clients().filter(|range| !ranges.contains(range));
        let gone = gone.map(|range| Change::Client { range: *range, is_there: false });
        let there = ranges.iter().map(|range| Change::Client { range: *range, is_there: true });
        gone.chain(there).collect()
    }

    /// Takes changes in, those that change something under the next number. Returns whether there
    /// was one. When they are most of the zone, readers get a snapshot.
    ///
    /// # Errors
    /// When they do not fit into a frame; the zone has them all the same, and readers get a
    /// snapshot.
    pub fn publish(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
        heard_us: u64,
    ) -> Result<bool, FeedError> {
        let changes: Vec<Change> = changes.into_iter().filter(|change| !self.has(change)).collect();
        if changes.is_empty() {
            return Ok(false);
        }
        if self.is_most(changes.len()) {
            changes.into_iter().for_each(|change| self.index.apply(change));
            self.count();
            self.forget();
            return Ok(true);
        }
        for change in &changes {
            self.index.apply(change.clone());
        }
        self.count();
        match (Frame::Delta { sequence: self.sequence, heard_us, changes }).encode() {
            Ok(frame) => {
                self.keep(frame.into());
                Ok(true)
            }
            Err(error) => {
                self.forget();
                Err(error)
            }
        }
    }

    /// The zone as it is.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The number of the newest change.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The changes behind a number. `None` when they are not kept: a snapshot is needed.
    pub(super) fn since(&self, sequence: u64) -> Option<impl Iterator<Item = Arc<[u8]>>> {
        let behind = usize::try_from(self.sequence.checked_sub(sequence)?).ok()?;
        let skipped = self.kept.len().checked_sub(behind)?;
        Some(self.kept.iter().skip(skipped).cloned())
    }

    /// The whole zone, as a new reader gets it.
    pub fn snapshot(&self) -> impl Iterator<Item = Result<Arc<[u8]>, FeedError>> {
        let mut reader = Reader::default();
        std::iter::from_fn(move || self.next_frame(&mut reader))
    }

    fn count(&mut self) {
        self.sequence += 1;
        self.index.set_serial(serial(self.sequence));
    }

    /// Whether a change says what already is.
    fn has(&self, change: &Change) -> bool {
        match change {
            Change::Service { namespace, name, records, .. } => {
                self.index.records(namespace, name) == records.as_ref()
            }
            Change::Pod { address, names } => self.index.pods_at(*address) == names.as_ref(),
            Change::Client { range, is_there } => self.index.has_client(range) == *is_there,
        }
    }

    /// Whether so many changes are as good as a snapshot, such as those of a first list: kept, they
    /// would take as much memory as the zone, and for long.
    fn is_most(&self, changes: usize) -> bool {
        changes > MAX_FEW_CHANGES && changes > self.index.len() / 2
    }

    /// What is kept must not have a hole.
    fn forget(&mut self) {
        self.kept.clear();
        self.kept_octets = 0;
    }

    fn keep(&mut self, frame: Arc<[u8]>) {
        self.kept_octets += frame.len();
        self.kept.push_back(frame);
        while self.kept.len() > MAX_KEPT_FRAMES || self.kept_octets > MAX_KEPT_OCTETS {
            let Some(oldest) = self.kept.pop_front() else { return };
            self.kept_octets -= oldest.len();
        }
    }
}
