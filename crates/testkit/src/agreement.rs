//! All backends and the oracle mean the same for every packet of random clusters (invariant 13):
//! one seed is one cluster, a change of it, and some packets.

use anyhow::{Result, anyhow, ensure};
use model::World;
use model::packet::Verdict;
use oracle::service::Rule;

use crate::backend::{self, Place};
use crate::random::{self, Choices};
use crate::verdict;

/// Packets of one seed.
pub const PACKETS: usize = 25;
/// Bytes that decide a cluster, the same again for its change.
const CLUSTER_BYTES: usize = 600;
/// Bytes that decide what does not answer.
const SILENT_BYTES: usize = 100;
/// Bytes that decide one packet.
const PACKET_BYTES: usize = 16;

/// What a seed showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Packets compared.
    pub packets: usize,
    /// Those that a Service decided.
    pub by_services: usize,
    /// Those that some backend's rules refuse or drop.
    pub stopped: usize,
}

/// Brings every backend to a random cluster, then to another one, and sends packets through each.
///
/// # Errors
/// The first disagreement; the caller knows the seed, which is all that is needed to see it again.
pub fn run(seed: u64) -> Result<Report> {
    let bytes = random::bytes(seed, 2 * CLUSTER_BYTES);
    let (before, after) = bytes.split_at(CLUSTER_BYTES);
    let silent = random::bytes(seed.rotate_left(32), SILENT_BYTES);
    let mut choices = Choices::new(before);
    let config = random::config(&mut choices);
    let facts = random::facts(&mut choices, &config);
    let place = Place { config: &config, facts: &facts };
    let mut backends = backend::all();
    let mut world = World::default();
    for bytes in [before, after] {
        let mut choices = Choices::new(bytes);
        world = World::default();
        let objects = random::nodes(&mut choices, &config).into_iter();
        for object in objects.chain(random::services(&mut choices, &config)) {
            world.set(object);
        }
        world.set_unreachable(random::unreachable(&mut Choices::new(&silent), &world));
        let (desired, _) = plan::node(&world, &config, &facts);
        for backend in &mut backends {
            let name = backend::name(backend.kind());
            let refused = |error| anyhow!("{name} was refused {error}");
            backend.bring(&desired, place).map_err(refused)?;
            let again = backend.bring(&desired, place).map_err(refused)?;
            ensure!(again.is_empty(), "{name} wrote twice: {again:?}");
        }
    }
    let mut report = Report::default();
    let bytes = random::bytes(seed ^ u64::MAX, PACKETS * PACKET_BYTES);
    for bytes in bytes.chunks(PACKET_BYTES) {
        let packet = random::packet(&mut Choices::new(bytes), &world, &config, &facts);
        let meant = verdict::by_oracle(&world, &config, &facts, &packet);
        for backend in &backends {
            let said = backend.trace(&packet, place);
            let meant_of =
                |said| verdict::meant_of(backend.kind(), &meant.verdict, &meant.rule, said);
            ensure!(
                said.as_ref().is_ok_and(|said| *said == meant_of(said)),
                "{packet:?}: the API means {} by {:?}, {} does {said:?}",
                meant.verdict,
                meant.rule,
                backend::name(backend.kind()),
            );
        }
        report.packets += 1;
        report.by_services += usize::from(is_of_service(&meant.rule));
        report.stopped += usize::from(!matches!(meant.verdict, Verdict::Pass { .. }));
    }
    Ok(report)
}

/// Whether a Service decides.
pub fn is_of_service(rule: &Rule) -> bool {
    matches!(
        rule,
        Rule::ClusterIp(..)
            | Rule::External(..)
            | Rule::NodePort(..)
            | Rule::PortRange(..)
            | Rule::SourceRanges(..)
    )
}
