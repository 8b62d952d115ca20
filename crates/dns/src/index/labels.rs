//! A name cut into labels without copying it.

use crate::name::{MAX_NAME_OCTETS, labels};

/// More labels than a name can have.
const MAX_LABELS: usize = MAX_NAME_OCTETS / 2 + 1;
/// More labels below a zone than any name that has records: those of an IPv6 address.
const MAX_BELOW: usize = 33;

/// Where the labels of a name begin.
pub(crate) struct Labels<'n> {
    name: &'n [u8],
    starts: [u8; MAX_LABELS],
    count: usize,
}

/// The labels of a name below another, the uppermost first.
pub(crate) struct Below<'n> {
    labels: [&'n [u8]; MAX_BELOW],
    count: usize,
}

impl<'n> Labels<'n> {
    /// `None` for what is no name.
    pub(crate) fn new(name: &'n [u8]) -> Option<Self> {
        let mut starts = [0; MAX_LABELS];
        let mut count = 0;
        let mut position = 0;
        for label in labels(name) {
            *starts.get_mut(count)? = u8::try_from(position).ok()?;
            count += 1;
            position += label.len() + 1;
        }
        Some(Self { name, starts, count })
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The labels below a name other than the root.
    pub(crate) fn below(&self, above: &[u8]) -> Option<Below<'n>> {
        let above_count = labels(above).count();
        let count = self.count.checked_sub(above_count).filter(|_| above_count > 0)?;
        let start = usize::from(*self.starts.get(count)?);
        if self.name.get(start..)? != above {
            return None;
        }
        let mut below = Below { labels: [&[]; MAX_BELOW], count };
        let uppermost_first = self.starts.get(..count)?.iter().rev();
        for (place, start) in below.labels.iter_mut().zip(uppermost_first) {
            *place = labels(self.name.get(usize::from(*start)..)?).next()?;
        }
        Some(below)
    }
}

impl<'n> Below<'n> {
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// All labels; `None` when there are more than any name with records has.
    pub(crate) fn whole(&self) -> Option<&[&'n [u8]]> {
        self.labels.get(..self.count)
    }

    /// The uppermost labels.
    pub(crate) fn upper(&self) -> &[&'n [u8]] {
        self.labels.get(..self.count.min(MAX_BELOW)).unwrap_or_default()
    }
}
