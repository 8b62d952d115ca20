//! How an agent hands zones to the DNS worker: frames over a stream, each a whole zone.
//!
//! A frame is its length in octets as a little-endian 32-bit number, and that many octets of
//! JSON. Each frame replaces all earlier ones, so a worker that connects anew, or reads late,
//! misses nothing.

use plan::zone::Zone;

/// The largest frame in octets: about a hundred thousand endpoints.
pub const MAX_FRAME_OCTETS: usize = 32 << 20;
const LENGTH_OCTETS: usize = 4;

/// Why a frame cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The zone does not fit.
    #[error(
        "the zone takes {octets} octets, more than the {MAX_FRAME_OCTETS} that a frame holds: the cluster has more names than one DNS worker serves"
    )]
    TooLarge {
        /// The size.
        octets: usize,
    },
    /// The octets are no zone.
    #[error("a zone cannot be read: {0}; agent and DNS worker may be of different versions")]
    NotAZone(#[from] serde_json::Error),
}

/// Writes a zone as one frame.
///
/// # Errors
/// When the zone is too large for a frame.
pub fn frame(zone: &Zone) -> Result<Vec<u8>, FeedError> {
    let mut written = vec![0; LENGTH_OCTETS];
    serde_json::to_writer(&mut written, zone)?;
    let octets = written.len() - LENGTH_OCTETS;
    match u32::try_from(octets) {
        Ok(length) if octets <= MAX_FRAME_OCTETS => {
            written[..LENGTH_OCTETS].copy_from_slice(&length.to_le_bytes());
            Ok(written)
        }
        _ => Err(FeedError::TooLarge { octets }),
    }
}

/// Collects octets of a stream and gives the newest whole frame.
#[derive(Debug, Default)]
pub struct Decoder {
    octets: Vec<u8>,
}

impl Decoder {
    /// Takes what came.
    pub fn push(&mut self, octets: &[u8]) {
        self.octets.extend_from_slice(octets);
    }

    /// The JSON of the newest frame that is whole; earlier ones are passed over, since it
    /// replaces them.
    ///
    /// # Errors
    /// When a frame claims to be larger than any may be: the stream is then of no use any more.
    pub fn newest(&mut self) -> Result<Option<Vec<u8>>, FeedError> {
        let mut newest = None;
        let mut start = 0;
        while let Some(length) = self.octets.get(start..start + LENGTH_OCTETS) {
            let octets = length.iter().rev().fold(0, |sum, octet| sum << 8 | usize::from(*octet));
            if octets > MAX_FRAME_OCTETS {
                return Err(FeedError::TooLarge { octets });
            }
            let body = start + LENGTH_OCTETS..start + LENGTH_OCTETS + octets;
            if body.end > self.octets.len() {
                break;
            }
            start = body.end;
            newest = Some(body);
        }
        let frame = newest.and_then(|body| self.octets.get(body)).map(<[u8]>::to_vec);
        self.octets.drain(..start);
        // A large frame must not be paid for in memory ever after.
        self.octets.shrink_to(self.octets.len());
        Ok(frame)
    }
}

/// Reads the JSON of a frame, or of the file that the worker keeps it in.
///
/// # Errors
/// When it is no zone.
pub fn decode(json: &[u8]) -> Result<Zone, FeedError> {
    Ok(serde_json::from_slice(json)?)
}

#[cfg(test)]
mod tests {
    use model::ClusterConfig;

    use super::*;

    #[test]
    fn the_newest_whole_frame_counts_however_the_stream_is_cut() {
        let first = Zone::empty(&ClusterConfig::default());
        let second = Zone { domain: "other.example".into(), ..first.clone() };
        let stream = [frame(&first).expect("fits"), frame(&second).expect("fits")].concat();
        for piece in [1, 3, 7, stream.len()] {
            let mut decoder = Decoder::default();
            let mut last = None;
            for octets in stream.chunks(piece) {
                decoder.push(octets);
                last = decoder.newest().expect("a frame").or(last);
            }
            let zone = decode(&last.expect("a frame")).expect("a zone");
            assert_eq!(zone, second, "in pieces of {piece}");
            assert!(decoder.octets.is_empty());
        }
    }

    #[test]
    fn an_impossible_length_ends_the_stream() {
        let mut decoder = Decoder::default();
        decoder.push(&u32::MAX.to_le_bytes());
        assert!(matches!(decoder.newest(), Err(FeedError::TooLarge { .. })));
    }
}
