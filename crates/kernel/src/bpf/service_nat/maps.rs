//! The maps of flows and links: compared, and written where they differ.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use ebpf_abi::flows::{
    ENTERING, FLOW_ANSWERED, FLOW_BACK, FLOW_FIN_ANSWERED, FLOW_FIN_SENT, FLOW_MASQUERADED,
    FLOW_RESET, Flow, FlowKey, NAT_REASONS, NatLink, NatSecret, NatSettings, SCTP_S, TCP_CLOSED_S,
    TCP_ESTABLISHED_S, TCP_HALF_CLOSED_S, TCP_UNANSWERED_S, UDP_ANSWERED_S, UDP_UNANSWERED_S,
};
use render::OpError;

use super::super::objects::{FLOW_TABLES, FLOWS};
use super::super::{Applied, canonical, refused};
use super::TrackedFlow;

/// The maps by name: those of flows, and the others as `bpf/tracking.h` declares them.
pub(super) const MAPS: [&str; 6] =
    [FLOWS, FLOW_TABLES, "nat_links", "nat_settings", "nat_secret", "nat_counters"];

pub(super) fn are_pinned(directory: &Path) -> bool {
    MAPS.iter().all(|name| directory.join(name).exists())
}

/// The open maps.
pub(super) struct Maps {
    /// Each by its name.
    all: [(&'static str, MapData); MAPS.len()],
    flows: HashMap<MapData, [u8; FlowKey::BYTES], [u8; Flow::BYTES]>,
    links: HashMap<MapData, u32, [u8; NatLink::BYTES]>,
    settings: Array<MapData, [u8; NatSettings::BYTES]>,
    counters: PerCpuArray<MapData, u64>,
}

impl Maps {
    pub(super) fn open(directory: &Path) -> Result<Self, OpError> {
        let data = |name: &str| {
            let path = directory.join(name);
            MapData::from_pin(&path)
                .map_err(|error| refused(&format!("open the map {}", path.display()), &error))
        };
        let open = |name: &str| {
            Map::from_map_data(data(name)?)
                .map_err(|error| refused(&format!("open the map {name}"), &error))
        };
        let mut all = Vec::new();
        for name in MAPS {
            all.push((name, data(name)?));
        }
        let wrong = |error: MapError| refused("open the maps of flows", &error);
        draw_secret(open("nat_secret")?.try_into().map_err(wrong)?)?;
        Ok(Self {
            all: all.try_into().map_err(|_| super::super::absent())?,
            flows: open(FLOWS)?.try_into().map_err(wrong)?,
            links: open("nat_links")?.try_into().map_err(wrong)?,
            settings: open("nat_settings")?.try_into().map_err(wrong)?,
            counters: open("nat_counters")?.try_into().map_err(wrong)?,
        })
    }

    /// Pins those again whose pins are gone.
    pub(super) fn pin_again(&self, directory: &Path) -> Result<(), OpError> {
        for (name, map) in &self.all {
            let path = directory.join(name);
            if !path.exists() {
                let action = || format!("pin the map {} again", path.display());
                map.pin(&path).map_err(|error| refused(&action(), &error))?;
            }
        }
        Ok(())
    }

    pub(super) fn settings(&self) -> Result<NatSettings, OpError> {
        let found = self.settings.get(&0, 0);
        let bytes =
            found.map_err(|error| refused("read the settings of Services in eBPF", &error))?;
        Ok(NatSettings::from_bytes(&bytes))
    }

    pub(super) fn write_settings(
        &mut self,
        wanted: NatSettings,
        done: &mut Applied,
    ) -> Result<(), OpError> {
        if self.settings()? != wanted {
            self.settings
                .set(0, wanted.to_bytes(), 0)
                .map_err(|error| refused("write the settings of Services in eBPF", &error))?;
            done.changes.push("wrote the settings of flows".into());
        }
        Ok(())
    }

    /// Writes links that are absent or other. One that the kernel refuses stops no other
    /// (invariant 6).
    pub(super) fn write_links(
        &mut self,
        wanted: &BTreeMap<u32, NatLink>,
        done: &mut Applied,
    ) -> Result<(), OpError> {
        let present = self.links()?;
        for (index, link) in wanted {
            let bytes = link.to_bytes();
            if present.get(index) == Some(&bytes) {
                continue;
            }
            match self.links.insert(index, bytes, 0) {
                Ok(()) => done.changes.push(format!("wrote link number {index} for Services")),
                Err(error) => done
                    .failures
                    .push(refused(&format!("write link number {index} for Services"), &error)),
            }
        }
        Ok(())
    }

    pub(super) fn remove_links(
        &mut self,
        wanted: &BTreeMap<u32, NatLink>,
        done: &mut Applied,
    ) -> Result<(), OpError> {
        for index in self.links()?.keys().filter(|index| !wanted.contains_key(index)) {
            match self.links.remove(index) {
                Ok(()) => done.changes.push(format!("removed link number {index} from Services")),
                Err(error) => done
                    .failures
                    .push(refused(&format!("remove link number {index} from Services"), &error)),
            }
        }
        Ok(())
    }

    pub(super) fn counters(&self) -> Result<BTreeMap<&'static str, u64>, OpError> {
        let mut counters = BTreeMap::new();
        for (reason, name) in NAT_REASONS {
            let values = self
                .counters
                .get(&reason.index(), 0)
                .map_err(|error| refused("read the counters of Services in eBPF", &error))?;
            counters.insert(name, values.iter().sum());
        }
        Ok(counters)
    }

    pub(super) fn flows(&self) -> Result<Vec<TrackedFlow>, OpError> {
        let mut flows = Vec::new();
        for entry in self.flows.iter() {
            let (key, flow) =
                entry.map_err(|error| refused("read the flows of Services in eBPF", &error))?;
            let (key, flow) = (FlowKey::from_bytes(&key), Flow::from_bytes(&flow));
            if u32::from(key.side) == ENTERING && flow.flags & FLOW_BACK == 0 {
                flows.push(tracked(&key, &flow));
            }
        }
        flows.sort();
        Ok(flows)
    }

    /// Whether a flow was used within the time that one of its kind is known.
    pub(super) fn has_flows(&self, now_s: u32) -> Result<bool, OpError> {
        for entry in self.flows.iter() {
            let (key, flow) =
                entry.map_err(|error| refused("read the flows of Services in eBPF", &error))?;
            let (key, flow) = (FlowKey::from_bytes(&key), Flow::from_bytes(&flow));
            let is_flow = u32::from(key.side) == ENTERING && flow.flags & FLOW_BACK == 0;
            let idle_s = now_s.saturating_sub(flow.used_s);
            if is_flow && idle_s <= lifetime_s(key.protocol, flow.flags) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn links(&self) -> Result<BTreeMap<u32, [u8; NatLink::BYTES]>, OpError> {
        self.links
            .iter()
            .collect::<Result<_, _>>()
            .map_err(|error| refused("read the links of Services in eBPF", &error))
    }
}

/// Draws the secret of the first ports, once for as long as there are flows: a client's port keeps
/// its place over restarts.
fn draw_secret(mut map: Array<MapData, [u8; NatSecret::BYTES]>) -> Result<(), OpError> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        refused("draw the secret of the ports of Services in eBPF", error)
    };
    let mut secret = map.get(&0, 0).map_err(|error| failed(&error))?;
    if NatSecret::from_bytes(&secret) != NatSecret::default() {
        return Ok(());
    }
    getrandom::fill(&mut secret).map_err(|error| failed(&error))?;
    map.set(0, secret, 0).map_err(|error| failed(&error))
}

fn tracked(key: &FlowKey, flow: &Flow) -> TrackedFlow {
    let is_masqueraded = flow.flags & FLOW_MASQUERADED != 0 && flow.other_port != 0;
    TrackedFlow {
        protocol: key.protocol,
        client: socket_address(key.source, key.source_port),
        frontend: socket_address(key.destination, key.destination_port),
        endpoint: socket_address(flow.address, flow.port),
        masqueraded_as: is_masqueraded.then(|| socket_address(flow.other, flow.other_port)),
        is_answered: flow.flags & FLOW_ANSWERED != 0,
        used_s: flow.used_s,
    }
}

fn socket_address(address: [u8; 16], port: u16) -> SocketAddr {
    let address: IpAddr = canonical(Ipv6Addr::from(address));
    SocketAddr::new(address, port)
}

/// As the programs judge (`bpf/tracking.h`).
fn lifetime_s(protocol: u8, flags: u32) -> u32 {
    let has = |flag| flags & flag != 0;
    let is_answered = has(FLOW_ANSWERED);
    match i32::from(protocol) {
        libc::IPPROTO_UDP if is_answered => UDP_ANSWERED_S,
        libc::IPPROTO_UDP => UDP_UNANSWERED_S,
        libc::IPPROTO_SCTP => SCTP_S,
        _ if has(FLOW_RESET) || has(FLOW_FIN_SENT) && has(FLOW_FIN_ANSWERED) => TCP_CLOSED_S,
        _ if has(FLOW_FIN_SENT) || has(FLOW_FIN_ANSWERED) => TCP_HALF_CLOSED_S,
        _ if is_answered => TCP_ESTABLISHED_S,
        _ => TCP_UNANSWERED_S,
    }
}
