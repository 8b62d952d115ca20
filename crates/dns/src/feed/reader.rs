//! How far a reader of the feed is. A snapshot is made part by part, each when the one before was
//! written, so that neither its octets nor the lock of the zone are held for a whole zone. What
//! changes meanwhile goes between its parts.

use std::sync::Arc;

use super::{Change, FeedError, Frame, LENGTH_OCTETS, Publisher};
use crate::index::Key;

/// Changes in one part of a snapshot.
const CHANGES_PER_PART: usize = 64;

/// One reader of the feed. A new one has nothing, and needs a snapshot.
#[derive(Debug, Default)]
pub struct Reader(Option<Has>);

/// What a reader has: all changes up to the number, of those Services and pods that it heard of.
#[derive(Debug)]
struct Has {
    sequence: u64,
    heard_of: HeardOf,
}

#[derive(Debug)]
enum HeardOf {
    /// Those up to this one.
    UpTo(Option<Key>),
    All,
}

/// A frame, and what its reader has then.
type Step = (Arc<[u8]>, Has);

impl Publisher {
    /// The next frame for a reader; `None` when it has everything.
    ///
    /// # Errors
    /// When a part of the zone does not fit into a frame. The reader begins anew when it is asked
    /// for again, which is of use after another change.
    pub fn next_frame(&self, reader: &mut Reader) -> Option<Result<Arc<[u8]>, FeedError>> {
        match self.step(reader.0.as_ref()) {
            Ok(Some((frame, has))) => {
                reader.0 = Some(has);
                Some(Ok(frame))
            }
            Ok(None) => None,
            Err(error) => {
                reader.0 = None;
                Some(Err(error))
            }
        }
    }

    fn step(&self, has: Option<&Has>) -> Result<Option<Step>, FeedError> {
        let known = has.and_then(|has| Some((has, self.since(has.sequence)?)));
        let Some((Has { sequence, heard_of }, mut behind)) = known else {
            // What it has is too old, or has other settings.
            let begin = Frame::Begin(self.index().settings().clone());
            let (sequence, heard_of) = (self.sequence(), HeardOf::UpTo(None));
            return Ok(Some((begin.encode()?.into(), Has { sequence, heard_of })));
        };
        let next = Has { sequence: sequence + 1, heard_of: HeardOf::All };
        Ok(match (heard_of, behind.next()) {
            (HeardOf::All, changed) => changed.map(|frame| (frame, next)),
            (HeardOf::UpTo(last), Some(changed)) => {
                // A change is a whole value: what the reader comes to only later, it hears twice.
                let heard_of = HeardOf::UpTo(last.clone());
                Some((as_part(&changed)?, Has { heard_of, ..next }))
            }
            (HeardOf::UpTo(last), None) => {
                let (frame, heard_of) = self.part(last.as_ref(), *sequence);
                Some((frame.encode()?.into(), Has { sequence: *sequence, heard_of }))
            }
        })
    }

    /// The part of a snapshot behind a key, or its end.
    fn part(&self, last: Option<&Key>, sequence: u64) -> (Frame, HeardOf) {
        let part: Vec<Change> = self.index().changes_behind(last).take(CHANGES_PER_PART).collect();
        match part.last().map(Key::of) {
            Some(key) => (Frame::Part(part), HeardOf::UpTo(Some(key))),
            None => (Frame::End { sequence }, HeardOf::All),
        }
    }
}

/// What changed, as a part of a snapshot, where workers take no other changes.
fn as_part(delta: &[u8]) -> Result<Arc<[u8]>, FeedError> {
    let json = delta.get(LENGTH_OCTETS..).unwrap_or_default();
    match serde_json::from_slice(json)? {
        Frame::Delta { changes, .. } => Ok(Frame::Part(changes).encode()?.into()),
        // Nothing else is kept.
        frame => Ok(frame.encode()?.into()),
    }
}
