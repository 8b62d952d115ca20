//! The worker's side: frames out of octets, and the zone out of frames.

use plan::zone::Exposure;

use super::known::Known;
use super::{Change, FeedError, Frame, LENGTH_OCTETS, MAX_FRAME_OCTETS, Settings, serial};
use crate::Index;

/// Reads the feed.
#[derive(Debug, Default)]
pub struct Follower {
    /// The choice that zones must be made by.
    wanted: Exposure,
    /// Whether the zone that comes is made by another.
    is_passing_over: bool,
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
    /// It is of no use: of an unknown kind, or of a zone that was made by another choice.
    PassedOver,
}

/// What is new.
#[derive(Debug)]
pub enum News {
    /// Serve this zone.
    Zone(Box<Index>),
    /// A zone of this domain comes that was made by another choice than the one that is wanted; it
    /// is passed over.
    Other(String),
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
    /// Reads zones that were made by this choice.
    pub fn new(wanted: Exposure) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// From the next zone on, another choice counts.
    pub fn want(&mut self, wanted: Exposure) {
        self.wanted = wanted;
    }

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
        let Known(known) = serde_json::from_slice(json)?;
        let (place, news) = match known {
            Some(Frame::Begin(settings)) => self.begin(settings),
            Some(frame) if !self.is_passing_over => self.take(frame)?,
            _ => (Place::PassedOver, None),
        };
        Ok(Some(Received { frame, place, news }))
    }

    fn begin(&mut self, settings: Settings) -> (Place, Option<News>) {
        self.sequence = None;
        self.is_passing_over = settings.exposed.exposure != self.wanted;
        if self.is_passing_over {
            self.building = None;
            return (Place::PassedOver, Some(News::Other(settings.domain)));
        }
        self.building = Some(Box::new(Index::empty(settings)));
        (Place::Begin, None)
    }

    fn take(&mut self, frame: Frame) -> Result<(Place, Option<News>), FeedError> {
        match frame {
            Frame::Begin(settings) => Ok(self.begin(settings)),
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
