//! The ways to carry out Services, each on a kernel of its own in memory, behind one face: what
//! the case runner and the laws hold against the oracle (invariant 13).

use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};

use model::packet::{Packet, SourceTranslation, Verdict};
use model::{ClusterConfig, ServiceBackend};
use plan::{Desired, NodeFacts};
use render::OpError;
use render::ebpf::{self, EbpfObserved};
use render::iptables::{self, IptablesObserved};
use render::ipvs::{self, IpvsObserved};
use render::nft::{self, NftObserved, Role};

use crate::verdict::normal;

/// Looks at IPVS until whatever retires is gone.
const RETIREMENT_ROUNDS: usize = 3;

/// What a node is, besides the objects of the API.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The cluster's configuration.
    pub config: &'a ClusterConfig,
    /// What the node knows of itself.
    pub facts: &'a NodeFacts,
}

/// One way to carry out Services, with all of a node's rules that packets meet.
pub trait Backend {
    /// Which one it is.
    fn kind(&self) -> ServiceBackend;

    /// Brings the kernel to what the node shall hold. Answers the operations that it took.
    ///
    /// # Errors
    /// When the kernel refuses one.
    fn bring(&mut self, desired: &Desired, place: Place<'_>) -> Result<Vec<String>, String>;

    /// What becomes of a packet in that kernel.
    ///
    /// # Errors
    /// When the tracer cannot follow what is there.
    fn trace(&self, packet: &Packet, place: Place<'_>) -> Result<Verdict, String>;

    /// Whether the backend refuses something of the Services.
    fn refuses(&self, desired: &Desired) -> bool {
        let refused = |(name, plan)| !render::unsupported(self.kind(), name, plan).is_empty();
        desired.services.iter().any(refused)
    }

    /// The same backend on an empty kernel.
    fn anew(&self) -> Box<dyn Backend>;
}

/// All of them, on empty kernels.
pub fn all() -> Vec<Box<dyn Backend>> {
    vec![
        Box::new(Nftables::default()),
        Box::new(Iptables::default()),
        Box::new(Ebpf::default()),
        Box::new(Ipvs::default()),
    ]
}

/// The name of a backend, as the configuration has it.
pub fn name(kind: ServiceBackend) -> String {
    format!("{kind:?}").to_lowercase()
}

/// `render::nft` alone.
#[derive(Default)]
struct Nftables {
    rules: NftObserved,
}

impl Backend for Nftables {
    fn kind(&self) -> ServiceBackend {
        ServiceBackend::Nftables
    }

    fn bring(&mut self, desired: &Desired, place: Place<'_>) -> Result<Vec<String>, String> {
        bring_nft(&mut self.rules, Role::Backend, desired, place)
    }

    fn trace(&self, packet: &Packet, place: Place<'_>) -> Result<Verdict, String> {
        trace_nft(&self.rules, packet, place)
    }

    fn anew(&self) -> Box<dyn Backend> {
        Box::new(Self::default())
    }
}

/// `render::iptables`, beside the nftables table.
#[derive(Default)]
struct Iptables {
    observed: IptablesObserved,
    beside: NftObserved,
}

impl Backend for Iptables {
    fn kind(&self) -> ServiceBackend {
        ServiceBackend::Iptables
    }

    fn bring(&mut self, desired: &Desired, place: Place<'_>) -> Result<Vec<String>, String> {
        let mut done = bring_nft(&mut self.beside, Role::Beside, desired, place)?;
        let program = iptables::render(desired, place.config, place.facts);
        let ops = iptables::diff(&program, &self.observed);
        done.extend(carry_out(&ops, |op| self.observed.apply(op))?);
        Ok(done)
    }

    fn trace(&self, packet: &Packet, place: Place<'_>) -> Result<Verdict, String> {
        let verdict = iptables::trace(&self.observed, packet, place.config, place.facts)
            .map_err(|error| error.to_string())?;
        go_on(verdict, &self.beside, packet, place)
    }

    fn anew(&self) -> Box<dyn Backend> {
        Box::new(Self::default())
    }
}

/// `render::ebpf`, beside the nftables table.
#[derive(Default)]
struct Ebpf {
    observed: EbpfObserved,
    beside: NftObserved,
}

impl Backend for Ebpf {
    fn kind(&self) -> ServiceBackend {
        ServiceBackend::Ebpf
    }

    fn bring(&mut self, desired: &Desired, place: Place<'_>) -> Result<Vec<String>, String> {
        let mut done = bring_nft(&mut self.beside, Role::BesideEbpf, desired, place)?;
        let program = ebpf::render(desired, place.config, place.facts);
        let ops = ebpf::diff(&program, &self.observed);
        done.extend(carry_out(&ops, |op| self.observed.apply(op))?);
        Ok(done)
    }

    fn trace(&self, packet: &Packet, place: Place<'_>) -> Result<Verdict, String> {
        let Place { config, facts } = place;
        let traced = ebpf::trace_beside(&self.observed, &self.beside, packet, config, facts);
        traced.map(normal).map_err(|error| error.to_string())
    }

    fn anew(&self) -> Box<dyn Backend> {
        Box::new(Self::default())
    }
}

/// `render::ipvs`, with the nftables table that it needs.
#[derive(Default)]
struct Ipvs {
    observed: IpvsObserved,
    beside: NftObserved,
}

impl Backend for Ipvs {
    fn kind(&self) -> ServiceBackend {
        ServiceBackend::Ipvs
    }

    fn bring(&mut self, desired: &Desired, place: Place<'_>) -> Result<Vec<String>, String> {
        let mut done = bring_nft(&mut self.beside, Role::BeforeIpvs, desired, place)?;
        let program = ipvs::render(desired, place.config, place.facts);
        // A server goes once its connections have ended, which are none here, and its address after
        // it.
        for _ in 0..RETIREMENT_ROUNDS {
            let ops = ipvs::diff(&program, &self.observed);
            done.extend(carry_out(&ops, |op| self.observed.apply(op))?);
        }
        Ok(done)
    }

    fn trace(&self, packet: &Packet, place: Place<'_>) -> Result<Verdict, String> {
        let Place { config, facts } = place;
        let traced = ipvs::trace(&self.observed, &self.beside, packet, config, facts);
        traced.map(normal).map_err(|error| error.to_string())
    }

    fn anew(&self) -> Box<dyn Backend> {
        Box::new(Self::default())
    }
}

fn bring_nft(
    rules: &mut NftObserved,
    role: Role,
    desired: &Desired,
    place: Place<'_>,
) -> Result<Vec<String>, String> {
    let program = nft::render_as(role, desired, place.config, place.facts);
    carry_out(&nft::diff(&program, rules), |op| rules.apply(op))
}

fn carry_out<Op: Debug>(
    ops: &[Op],
    mut apply: impl FnMut(&Op) -> Result<(), OpError>,
) -> Result<Vec<String>, String> {
    let mut done = Vec::new();
    for op in ops {
        apply(op).map_err(|error| format!("{error} at {op:?}"))?;
        done.push(format!("{op:?}"));
    }
    Ok(done)
}

fn trace_nft(rules: &NftObserved, packet: &Packet, place: Place<'_>) -> Result<Verdict, String> {
    let traced = nft::trace(rules, packet, place.config, place.facts);
    traced.map(normal).map_err(|error| error.to_string())
}

/// What becomes of a packet in the end that met a backend's own rules first: the nftables table
/// beside them sees where it goes now.
fn go_on(
    verdict: Verdict,
    beside: &NftObserved,
    packet: &Packet,
    place: Place<'_>,
) -> Result<Verdict, String> {
    let Verdict::Pass { destinations, source, mut source_ports } = normal(verdict.clone()) else {
        return Ok(verdict);
    };
    let mut masqueraded_to = match &source {
        SourceTranslation::Kept => Default::default(),
        SourceTranslation::Masqueraded => destinations.iter().map(SocketAddr::ip).collect(),
        SourceTranslation::MasqueradedTo(these) => these.clone(),
    };
    let mut reached = Vec::new();
    for destination in &destinations {
        let translated = Packet { destination: *destination, ..packet.clone() };
        match trace_nft(beside, &translated, place)? {
            Verdict::Pass { destinations, source, source_ports: ports } => {
                // The source that a packet has got is not changed again.
                let again = |address: &IpAddr| masqueraded_to.contains(address);
                source_ports.extend(ports.into_iter().filter(|(address, _)| !again(address)));
                match source {
                    SourceTranslation::Kept => {}
                    SourceTranslation::Masqueraded => {
                        masqueraded_to.extend(destinations.iter().map(SocketAddr::ip));
                    }
                    SourceTranslation::MasqueradedTo(these) => masqueraded_to.extend(these),
                }
                reached.extend(destinations);
            }
            refused if destinations.len() == 1 => return Ok(refused),
            refused => return Err(format!("{destination} by chance: {refused}")),
        }
    }
    Ok(normal(Verdict::Pass {
        destinations: reached.into_iter().collect(),
        source: SourceTranslation::MasqueradedTo(masqueraded_to),
        source_ports,
    }))
}
