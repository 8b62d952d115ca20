//! The worker's side: frames out of octets, and the zone out of frames.

use super::{Change, FeedError, Frame, LENGTH_OCTETS, MAX_FRAME_OCTETS, serial};
use crate::Index;

/// Reads the feed.
#[derive(Debug, Default)]
pub struct Follower {
    octets: Vec<u8>,
    /// The snapshot that is not whole yet.
    building: Option<Box<Index>>,
    sequence: Option<u64>,
}

/// One frame that came.
#[derive(Debug)]
pub struct Received {
    /// Its octets, with their length before them.
    pub frame: Vec<u8>,
    /// Where it stands in the stream.
    pub place: Place,
    /// What to do with it, if anything.
    pub news: Option<News>,
}

/// Where a frame stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It begins a snapshot.
    Begin,
    /// It is part of a snapshot.
    Inside,
    /// It ends a snapshot.
    End,
    /// It is a change after the snapshot.
    Behind,
}

/// What is new.
#[derive(Debug)]
pub enum News {
    /// Serve this zone.
    Zone(Box<Index>),
    /// Take these changes into the zone.
    Changes {
        /// The zone's serial number with them.
        serial: u32,
        /// When the agent heard of them, in microseconds since 1970.
        heard_us: u64,
        /// The changes.
        changes: Vec<Change>,
    },
}

impl Follower {
    /// Takes what came.
    pub fn push(&mut self, octets: &[u8]) {
        self.octets.extend_from_slice(octets);
    }

    /// The next frame that is whole.
    ///
    /// # Errors
    /// When it is none, or a change is missing before it: the stream is of no use any more.
    pub fn next_frame(&mut self) -> Result<Option<Received>, FeedError> {
        let Some(length) = self.octets.first_chunk::<LENGTH_OCTETS>() else { return Ok(None) };
        let octets = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        if octets > MAX_FRAME_OCTETS {
            return Err(FeedError::TooLarge { octets });
        }
        if self.octets.len() < LENGTH_OCTETS + octets {
            return Ok(None);
        }
        let rest = self.octets.split_off(LENGTH_OCTETS + octets);
        let frame = std::mem::replace(&mut self.octets, rest);
        let json = frame.get(LENGTH_OCTETS..).unwrap_or_default();
        let (place, news) = self.take(serde_json::from_slice(json)?)?;
        Ok(Some(Received { frame, place, news }))
    }

    fn take(&mut self, frame: Frame) -> Result<(Place, Option<News>), FeedError> {
        match frame {
            Frame::Begin(settings) => {
                self.building = Some(Box::new(Index::empty(settings)));
                self.sequence = None;
                Ok((Place::Begin, None))
            }
            Frame::Part(changes) => {
                let missed = FeedError::Missed { expected: self.sequence, found: 0 };
                let building = self.building.as_mut().ok_or(missed)?;
                changes.into_iter().for_each(|change| building.apply(change));
                Ok((Place::Inside, None))
            }
            Frame::End { sequence } => {
                let missed = FeedError::Missed { expected: self.sequence, found: sequence };
                let mut index = self.building.take().ok_or(missed)?;
                index.set_serial(serial(sequence));
                self.sequence = Some(sequence);
                Ok((Place::End, Some(News::Zone(index))))
            }
            Frame::Delta { sequence, heard_us, changes } => {
                if self.sequence.and_then(|last| last.checked_add(1)) != Some(sequence) {
                    return Err(FeedError::Missed { expected: self.sequence, found: sequence });
                }
                self.sequence = Some(sequence);
                let news = News::Changes { serial: serial(sequence), heard_us, changes };
                Ok((Place::Behind, Some(news)))
            }
        }
    }
}
