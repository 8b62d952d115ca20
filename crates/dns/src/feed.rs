//! How an agent hands its zone to the DNS worker: frames over a stream. First a snapshot in parts,
//! with what changes meanwhile between them, then every change under a number of its own. A worker that finds a number missing, or that
//! reads too late, connects anew and gets a snapshot again.
//!
//! A worker that is connected says in turn how it answers ([`Plain`]), and what of the cluster shall
//! have names; a zone that was made by another choice it passes over.
//!
//! Agents and workers are updated one after the other. Kinds of frames and of changes that a worker
//! does not know, it passes over, and fields that either does not know, so that each can be the
//! newer one.
//!
//! A frame is its length in octets as a little-endian 32-bit number, and that many octets of
//! JSON. The worker keeps the frames in a file as they came.

mod follower;
mod known;
mod plain;
mod publisher;
mod reader;

use std::net::IpAddr;

use ipnet::IpNet;
use model::{ClusterConfig, NamespacedName};
use plan::zone::{Exposed, PodNames, ServiceNews, ServiceRecords, Zone};
use serde::{Deserialize, Serialize};

use crate::records::Records;

pub use plan::zone::{Exposure, ServiceKind};

pub use follower::{Follower, News, Place, Received};
pub use plain::{MAX_SAID_OCTETS, Plain};
pub use publisher::Publisher;
pub use reader::Reader;

/// The largest frame in octets: one Service with half a million endpoints.
pub const MAX_FRAME_OCTETS: usize = 32 << 20;
const LENGTH_OCTETS: usize = 4;

/// What a zone says besides Services and pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The cluster's domain in lower case, without a final dot.
    pub domain: String,
    /// The addresses that the zone is served at.
    pub name_servers: Vec<IpAddr>,
    /// Ranges whose reverse names belong to the cluster.
    pub reverse_ranges: Vec<IpNet>,
    /// What of the cluster has names.
    #[serde(default)]
    pub exposed: Exposed,
}

/// One thing that is another now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A Service.
    Service {
        /// Its namespace.
        namespace: Box<str>,
        /// Its name.
        name: Box<str>,
        /// Its records; `None`: it has none.
        records: Option<Records>,
        /// Its kind, for the measure of latency; snapshots do not tell.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kind: Option<ServiceKind>,
    },
    /// The pods at an address.
    Pod {
        /// The address.
        address: IpAddr,
        /// Whose they are; `None`: there are none.
        names: Option<PodNames>,
    },
    /// Machines of the cluster, which are answered.
    Client {
        /// Their addresses.
        range: IpNet,
        /// Whether they are of the cluster; those of `Settings::reverse_ranges` always are.
        is_there: bool,
    },
}

/// One message of the feed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Frame {
    /// A snapshot begins: an empty zone with these settings.
    Begin(Settings),
    /// A part of it; of what stands in two parts, the later one counts.
    Part(#[serde(deserialize_with = "known::changes")] Vec<Change>),
    /// It is whole, and all changes up to this number are in it.
    End {
        /// The number.
        sequence: u64,
    },
    /// What changed next.
    Delta {
        /// One more than the number before.
        sequence: u64,
        /// When the agent heard of it, in microseconds since 1970.
        heard_us: u64,
        /// What changed.
        #[serde(deserialize_with = "known::changes")]
        changes: Vec<Change>,
    },
}

/// Why a frame cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The frame does not fit.
    #[error(
        "a part of the zone takes {octets} octets, more than the {MAX_FRAME_OCTETS} that a frame holds: one Service has more endpoints than a DNS worker serves"
    )]
    TooLarge {
        /// The size.
        octets: usize,
    },
    /// The octets are no frame.
    #[error("a zone cannot be read: {0}; agent and DNS worker may be of different versions")]
    NotAFrame(#[from] serde_json::Error),
    /// A change was missed, or came before its snapshot.
    #[error("change {found} of the zone does not follow {expected:?}: a snapshot is needed")]
    Missed {
        /// The number that came last.
        expected: Option<u64>,
        /// The number that came now.
        found: u64,
    },
}

impl Settings {
    /// Those of a cluster.
    pub fn new(config: &ClusterConfig) -> Self {
        Self::of(&Zone::empty(config))
    }

    pub(crate) fn of(zone: &Zone) -> Self {
        Self {
            domain: zone.domain.clone(),
            name_servers: zone.name_servers.clone(),
            reverse_ranges: zone.reverse_ranges.clone(),
            exposed: Exposed::default(),
        }
    }

    /// Whether names of an address are the cluster's.
    pub(crate) fn is_inside(&self, address: IpAddr) -> bool {
        self.reverse_ranges.iter().any(|range| range.contains(&address))
    }
}

impl Change {
    /// A Service has these records now.
    pub fn of_service(key: &NamespacedName, records: Option<&ServiceRecords>) -> Self {
        Self::service(&key.namespace, &key.name, records)
    }

    /// A Service is like this now.
    pub fn of_news(key: &NamespacedName, news: &ServiceNews) -> Self {
        let mut change = Self::of_service(key, news.records.as_ref());
        if let Self::Service { kind, .. } = &mut change {
            *kind = news.kind;
        }
        change
    }

    pub(crate) fn service(namespace: &str, name: &str, records: Option<&ServiceRecords>) -> Self {
        let records = records.map(Records::new);
        Self::Service { namespace: namespace.into(), name: name.into(), records, kind: None }
    }
}

impl Frame {
    /// The octets of the frame.
    ///
    /// # Errors
    /// When there are too many.
    pub fn encode(&self) -> Result<Vec<u8>, FeedError> {
        framed(self, MAX_FRAME_OCTETS)
    }
}

/// The zone's serial number behind a change; serial numbers go round (RFC 1982).
fn serial(sequence: u64) -> u32 {
    sequence as u32
}

/// The JSON of a message behind its length.
fn framed(message: &impl Serialize, max_octets: usize) -> Result<Vec<u8>, FeedError> {
    let mut written = vec![0; LENGTH_OCTETS];
    serde_json::to_writer(&mut written, message)?;
    let octets = written.len() - LENGTH_OCTETS;
    match (u32::try_from(octets), written.first_chunk_mut()) {
        (Ok(length), Some(place)) if octets <= max_octets => {
            *place = length.to_le_bytes();
            Ok(written)
        }
        _ => Err(FeedError::TooLarge { octets }),
    }
}
