//! From observations to sentences, choices and the Node's condition.

use std::collections::BTreeMap;
use std::net::IpAddr;

use model::overlay::DETOURS_ANNOTATION;
use model::{ClusterConfig, Overlay};

use super::{Observation, State, is_tried_beside};
use crate::Finding;
use crate::network::NetworkPlan;

/// Peers that the condition names; of more it says how many.
const NAMED_MAX: usize = 3;
/// Findings of one judgement; the table has all paths.
const FINDINGS_MAX: usize = 20;

/// What follows from all observations of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// The largest packet in bytes that reaches all peers, where that is less than promised.
    pub pod_mtu_limit: Option<u32>,
    /// Whether this node's links write wrong checksums into tunnel packets, or lose trains of
    /// segments that they shall cut apart: both they do only where the tunnel link leaves it to
    /// them.
    pub checksum_broken: bool,
    /// What an operator should know, the worst first.
    pub findings: Vec<Finding>,
    /// One row a peer.
    pub rows: Vec<Row>,
    /// The Node's condition; `None` before anything was tested.
    pub verdict: Option<Verdict>,
}

/// The path to one peer, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The other node.
    pub peer: String,
    /// How pod packets travel.
    pub way: Overlay,
    /// The largest packet of a pod in bytes that arrives there.
    pub mtu: Option<u32>,
    /// The fastest answer in microseconds.
    pub rtt_us: Option<u32>,
    /// What was found.
    pub state: State,
    /// Whether the way is a detour.
    pub detour: bool,
}

/// The Node's condition `FlatnetPathsReady`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether pods reach those of all nodes that can be heard.
    pub ready: bool,
    /// In one word, for machines.
    pub reason: &'static str,
    /// For people, of bounded length.
    pub message: String,
}

/// What the observations of a node say.
pub fn judge(
    own: &str,
    config: &ClusterConfig,
    plan: &NetworkPlan,
    observations: &BTreeMap<String, Observation>,
) -> Judgement {
    let mut judgement = Judgement::default();
    let mut told: Vec<(State, Finding)> = Vec::new();
    for (peer, found) in observations {
        let Some(planned) = plan.peers.get(peer) else { continue };
        let state = found.state();
        let mtu = found.pods.mtu;
        if let Some(mtu) = mtu.filter(|mtu| *mtu < found.pods.promised_mtu) {
            let limit = judgement.pod_mtu_limit.map_or(mtu, |limit| limit.min(mtu));
            judgement.pod_mtu_limit = Some(limit);
        }
        judgement.checksum_broken |= state.blames_links();
        let detour = planned.avoided.is_some();
        let rtt_us = found.pods.rtt_us;
        let row = Row { peer: peer.clone(), way: found.way, mtu, rtt_us, state, detour };
        judgement.rows.push(row);
        let (avoided, tried) = (planned.avoided, is_tried_beside(plan, planned));
        let pair = Pair { own, peer, config, found, avoided, tried };
        if let Some(message) = pair.sentence() {
            told.push((state, Finding { about: format!("Node {own}"), message }));
        }
    }
    told.sort_by(|one, other| other.0.cmp(&one.0).then_with(|| one.1.cmp(&other.1)));
    judgement.verdict = (!judgement.rows.is_empty()).then(|| verdict(&judgement.rows, &told));
    let findings = told.into_iter().map(|(_, finding)| finding);
    judgement.findings = findings.take(FINDINGS_MAX).collect();
    judgement
}

fn verdict(rows: &[Row], told: &[(State, Finding)]) -> Verdict {
    let broken = rows.iter().filter(|row| row.state.is_broken()).count();
    let silent = rows.iter().filter(|row| row.state == State::Silent).count();
    let (ready, reason, head) = match (broken, told.len()) {
        (0, 0) => (true, "AllPathsWork", "pods reach those of all nodes that answer".to_owned()),
        (0, avoided) => (true, "FaultsAvoided", format!("{avoided} paths have faults, avoided")),
        _ => (false, "PathsBroken", format!("{broken} of {} paths do not work", rows.len())),
    };
    let mut message = head;
    for (_, finding) in told.iter().take(NAMED_MAX) {
        message.push_str(&format!("; {}", finding.message));
    }
    if let Some(more) = told.len().checked_sub(NAMED_MAX).filter(|more| *more > 0) {
        message.push_str(&format!("; and {more} more, see `flatnet node status`"));
    }
    if silent > 0 {
        message.push_str(&format!("; nothing is heard of {silent} nodes"));
    }
    Verdict { ready, reason, message }
}

/// One pair, as it is told.
struct Pair<'a> {
    own: &'a str,
    peer: &'a str,
    config: &'a ClusterConfig,
    found: &'a Observation,
    avoided: Option<Overlay>,
    /// Whether the avoided way is tried all the time.
    tried: bool,
}

impl Pair<'_> {
    /// What is wrong, the likely cause, and what to do; `None` when nothing is, or nobody can say.
    fn sentence(&self) -> Option<String> {
        let Observation { own_address, peer_address, .. } = self.found;
        let Self { own, peer, .. } = self;
        let out = format!("from {own} ({own_address}) to {peer} ({peer_address})");
        let back = format!("from {peer} ({peer_address}) to {own} ({own_address})");
        match self.found.state() {
            State::Works => self.avoided.map(|avoided| self.detour(avoided)),
            State::Silent => None,
            State::SmallMtu => Some(self.small_mtu(&out)),
            State::BadSegments => Some(self.bad_segments(&out)),
            State::BadChecksum => Some(format!(
                "packets {out} arrive only without a checksum: a link or its driver writes wrong \
                 checksums into tunnel packets; the tunnel link now writes them itself, which \
                 costs time: update the driver, or switch off tx-udp_tnl-csum-segmentation"
            )),
            State::BadChecksumIn => Some(format!(
                "packets {back} arrive only without a checksum: a link of {peer} or its driver \
                 writes wrong checksums into tunnel packets; the agent there avoids that when it \
                 finds it: see that it runs, and update the driver"
            )),
            State::BlockedOut => Some(self.dropped(&out)),
            State::BlockedIn => Some(self.dropped(&back)),
        }
    }

    fn detour(&self, avoided: Overlay) -> String {
        let Self { own, peer, config, found, .. } = self;
        let (way, carrier) = (found.way, carrier(avoided, config, found.own_address));
        let end = match self.tried {
            true => format!(
                "it is tried beside and taken again by itself when it has worked for some time, \
                 at once when the annotation {DETOURS_ANNOTATION} is removed from both Nodes"
            ),
            false => {
                format!("then remove the annotation {DETOURS_ANNOTATION} from both Nodes")
            }
        };
        format!(
            "between {own} and {peer} the path self-test found {avoided} blocked and {way} \
             working, which is used: open {carrier} both ways; {end}"
        )
    }

    fn small_mtu(&self, out: &str) -> String {
        let Observation { pods, nodes, way, .. } = self.found;
        let (promised, mtu) = (pods.promised_mtu, pods.mtu.unwrap_or_default());
        let narrow = nodes.mtu.filter(|mtu| nodes.rtt_us.is_some() && *mtu < nodes.promised_mtu);
        let cause = match narrow {
            Some(outer) => format!(
                "the network between them carries {outer} bytes and not {}, and tells nobody",
                nodes.promised_mtu
            ),
            None => format!("packets of the nodes themselves pass, those by {way} do not"),
        };
        format!(
            "packets of pods {out} arrive up to {mtu} bytes and not up to {promised}: {cause}; \
             pods of {} use {mtu}: raise the MTU of that network, or lower that of the uplinks",
            self.own
        )
    }

    fn bad_segments(&self, out: &str) -> String {
        let avoided = match self.found.way {
            Overlay::Vxlan => {
                "the tunnel link now cuts and checks them itself, which costs time: update the \
                 driver, or switch off tx-udp_tnl-segmentation and tx-udp_tnl-csum-segmentation"
            }
            _ => "update the driver, or switch off tso and gso of the uplink with ethtool -K",
        };
        format!(
            "datagrams {out} arrive in every size and streams crawl: a link or its driver loses \
             segments of TCP that it shall cut apart; {avoided}"
        )
    }

    fn dropped(&self, direction: &str) -> String {
        let Observation { way, own_address, nodes, pods, .. } = self.found;
        let carrier = carrier(*way, self.config, *own_address);
        if nodes.rtt_us.is_none() && pods.heard.is_none() {
            return format!(
                "nothing arrives {direction}, although the other direction works: look for packet \
                 filters and asymmetric routes, and open {carrier} in that direction"
            );
        }
        format!(
            "{carrier} is dropped {direction}: open it in packet filters and security groups in \
             that direction"
        )
    }
}

/// What the network between the nodes sees of a way.
fn carrier(way: Overlay, config: &ClusterConfig, own: IpAddr) -> String {
    match way {
        Overlay::Vxlan => format!("UDP port {}", config.tunnels.vxlan_port),
        Overlay::Wireguard => format!("UDP port {}", config.tunnels.wireguard_port),
        Overlay::Ipip if own.is_ipv4() => "IP protocol 4".to_owned(),
        Overlay::Ipip => "IP protocol 41".to_owned(),
        Overlay::HostGw | Overlay::Native => "traffic of pod addresses".to_owned(),
    }
}
