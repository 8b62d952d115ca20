//! Requests and answers of the path self-test: one socket an own address, for both.
//!
//! Answered are requests of known nodes alone, each from its own address to the address that
//! belongs to the same side, at most [`ANSWERS_A_SECOND`] each, and never with more bytes than
//! were asked with.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netlink::probe;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::avoided::Avoided;
use super::packet::{BESIDE_REQUEST_BYTES, PACKET_BYTES, PACKET_BYTES_MAX, Packet, Side};
use super::pair::EXCHANGES_MAX;
use super::stream;

/// Answers that one node gets in a second: more than one whole test of it takes.
const ANSWERS_A_SECOND: u32 = 100;
const _: () = assert!(EXCHANGES_MAX <= ANSWERS_A_SECOND as usize);
/// After an error of a socket nothing is read for this long.
const ERROR_PAUSE: Duration = Duration::from_millis(100);
/// What was heard longer ago than this says nothing of now.
const LATELY: Duration = Duration::from_secs(10);
/// Peers that came back and are to be told of; further ones are found when they are tested.
const RETURNED_PEERS: usize = 64;

/// The sockets and what came in by them.
pub(super) struct Exchange {
    port: u16,
    sockets: BTreeMap<IpAddr, Arc<UdpSocket>>,
    receivers: BTreeMap<IpAddr, Receiver>,
    inbox: Arc<Mutex<Inbox>>,
    /// Peers that were missed and have come back.
    returned: mpsc::Receiver<String>,
}

/// One task reads each socket, and ends with it.
type Receiver = JoinSet<()>;

/// A way to send requests that may be given to another task.
#[derive(Clone)]
pub(super) struct Line {
    socket: Arc<UdpSocket>,
    to: SocketAddr,
    side: Side,
    peer: String,
    /// Requests go by this way, past the routes.
    avoided: Option<Avoided>,
    inbox: Arc<Mutex<Inbox>>,
}

struct Inbox {
    /// Who may ask, by address and side.
    known: BTreeMap<(IpAddr, Side), String>,
    /// Ways that detours go past, by peer: what came by one is answered by it.
    avoided: BTreeMap<String, Avoided>,
    /// Requests that are under way.
    pending: BTreeMap<u64, Pending>,
    peers: BTreeMap<String, Heard>,
    /// Where this node takes streams, at the gateway of its pods; 0 for nowhere.
    stream_port: u16,
    /// Datagrams that are no answer and get none.
    refused: u64,
    returned: mpsc::Sender<String>,
}

/// A request that waits for its answer.
struct Pending {
    beside: bool,
    answered: oneshot::Sender<()>,
}

/// What is known of one peer.
#[derive(Default)]
struct Heard {
    /// When its requests came in, by side.
    requests: BTreeMap<Side, Instant>,
    /// When it last heard requests of ours, by its own word.
    ours: BTreeMap<Side, Instant>,
    /// When it last said anything.
    word: Option<Instant>,
    /// Where it takes streams; 0 for nowhere.
    stream_port: u16,
    /// Whether it is to be told of when it is heard between gateways.
    missed: bool,
    /// The present second of the limit, and the answers in it.
    second: Option<(Instant, u32)>,
}

impl Exchange {
    pub(super) fn new(port: u16) -> Self {
        let (sockets, receivers) = (BTreeMap::new(), BTreeMap::new());
        let (sender, returned) = mpsc::channel(RETURNED_PEERS);
        let inbox = Arc::new(Mutex::new(Inbox::new(sender)));
        Self { port, sockets, receivers, inbox, returned }
    }

    /// Waits until a peer that was missed is heard between gateways.
    pub(super) async fn returned(&mut self) -> String {
        match self.returned.recv().await {
            Some(peer) => peer,
            // The other end is the inbox, which lives as long.
            None => std::future::pending().await,
        }
    }

    /// Says whether a peer is to be told of when it is heard between gateways.
    pub(super) fn miss(&self, peer: &str, missed: bool) {
        lock(&self.inbox).peers.entry(peer.to_owned()).or_default().missed = missed;
    }

    /// Listens on exactly these addresses; those that are there already stay. Answers what cannot
    /// be, to be tried again: the agent may not have made an address yet.
    pub(super) fn listen(&mut self, own: &[(IpAddr, Side)]) -> Result<()> {
        self.sockets.retain(|address, _| own.iter().any(|(wanted, _)| wanted == address));
        self.receivers.retain(|address, _| own.iter().any(|(wanted, _)| wanted == address));
        for (address, side) in own {
            if self.sockets.contains_key(address) {
                continue;
            }
            let socket = probe::open(SocketAddr::new(*address, self.port))?;
            let socket = UdpSocket::from_std(socket).context("opening the path self-test")?;
            let socket = Arc::new(socket);
            let mut receiver = Receiver::new();
            receiver.spawn(receive(Arc::clone(&socket), *side, Arc::clone(&self.inbox)));
            if *side == Side::Pods {
                let inbox = Arc::clone(&self.inbox);
                let known = move |from| lock(&inbox).known.contains_key(&(from, Side::Pods));
                let port = stream::listen(*address, known, &mut receiver);
                lock(&self.inbox).stream_port = port.context("taking streams of the self-test")?;
            }
            self.sockets.insert(*address, socket);
            self.receivers.insert(*address, receiver);
        }
        Ok(())
    }

    /// From now on these may ask, and by these avoided ways. Of others everything is forgotten.
    pub(super) fn know(
        &self,
        known: BTreeMap<(IpAddr, Side), String>,
        avoided: BTreeMap<String, Avoided>,
    ) {
        let mut inbox = lock(&self.inbox);
        inbox.avoided = avoided;
        inbox.peers.retain(|name, _| known.values().any(|peer| peer == name));
        inbox.known = known;
    }

    /// A line from an own address to a peer; `None` while nothing listens there.
    pub(super) fn line(&self, from: IpAddr, to: IpAddr, side: Side, peer: &str) -> Option<Line> {
        Some(Line {
            socket: Arc::clone(self.sockets.get(&from)?),
            to: SocketAddr::new(to, self.port),
            side,
            peer: peer.to_owned(),
            avoided: None,
            inbox: Arc::clone(&self.inbox),
        })
    }
}

impl Line {
    /// The same by a way that the routes go past.
    pub(super) fn by(self, avoided: Avoided) -> Self {
        Self { avoided: Some(avoided), ..self }
    }

    /// Sends one request of a size, and waits for its answer. `None` when none came in time, also
    /// when the size does not even fit this node's link.
    pub(super) async fn ask(
        &self,
        size: usize,
        unchecked: bool,
        patience: Duration,
    ) -> Option<Duration> {
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).ok()?;
        let nonce = u64::from_ne_bytes(nonce);
        let (answered, answer) = oneshot::channel();
        let beside = self.avoided.is_some();
        let request = {
            let mut inbox = lock(&self.inbox);
            inbox.pending.insert(nonce, Pending { beside, answered });
            let request = inbox.packet(&self.peer, self.side, nonce, unchecked);
            Packet { beside, ..request }
        };
        let began = Instant::now();
        let sent = match &self.avoided {
            Some(avoided) => {
                let size = size.max(BESIDE_REQUEST_BYTES);
                avoided.send(&request.bytes(size)).context("sending by the avoided way")
            }
            None => send(&self.socket, &request, size, self.to),
        };
        let answered = match sent {
            Ok(()) => tokio::time::timeout(patience, answer).await.is_ok_and(|got| got.is_ok()),
            Err(_) => false,
        };
        lock(&self.inbox).pending.remove(&nonce);
        answered.then(|| began.elapsed())
    }

    /// Whether a stream gets through to the peer as it is sent; `None` when there was none.
    pub(super) async fn passes_streams(&self, patience: Duration) -> Option<bool> {
        let port = lock(&self.inbox).peers.get(&self.peer)?.stream_port;
        let from = self.socket.local_addr().ok()?.ip();
        let to = (port != 0).then_some(SocketAddr::new(self.to.ip(), port))?;
        stream::passes(from, to, patience).await
    }

    /// Whether the peer says that it heard this side's requests since then; `None` when it said
    /// nothing since.
    pub(super) fn is_heard_since(&self, since: Instant) -> Option<bool> {
        let inbox = lock(&self.inbox);
        let heard = inbox.peers.get(&self.peer)?;
        heard.word.filter(|word| *word >= since)?;
        Some(heard.ours.get(&self.side).is_some_and(|at| *at >= since))
    }

    /// Whether requests of the peer came in lately.
    pub(super) fn hears(&self) -> bool {
        let inbox = lock(&self.inbox);
        let heard = inbox.peers.get(&self.peer);
        heard.and_then(|heard| heard.requests.get(&self.side)).is_some_and(|at| is_late(*at))
    }
}

impl Inbox {
    fn new(returned: mpsc::Sender<String>) -> Self {
        Self {
            known: BTreeMap::new(),
            avoided: BTreeMap::new(),
            pending: BTreeMap::new(),
            peers: BTreeMap::new(),
            stream_port: 0,
            refused: 0,
            returned,
        }
    }

    /// A request to a peer, with what was heard of it.
    fn packet(&self, peer: &str, side: Side, nonce: u64, unchecked: bool) -> Packet {
        let ago = |side| {
            let heard = self.peers.get(peer)?.requests.get(&side)?;
            Some(heard.elapsed())
        };
        Packet {
            is_answer: false,
            side,
            unchecked,
            beside: false,
            nonce,
            heard_nodes: ago(Side::Nodes),
            heard_pods: ago(Side::Pods),
            stream_port: self.stream_port,
        }
    }

    /// Takes a datagram in and says what to answer, if anything, and by which way past
    /// the routes.
    fn take(
        &mut self,
        bytes: &[u8],
        from: IpAddr,
        side: Side,
        now: Instant,
    ) -> Option<(Packet, Option<Avoided>)> {
        let packet = Packet::parse(bytes).filter(|packet| packet.side == side);
        let (Some(packet), Some(peer)) = (packet, self.known.get(&(from, side)).cloned()) else {
            self.refused += 1;
            return None;
        };
        let heard = self.peers.entry(peer.clone()).or_default();
        let before = |ago: Duration| now.checked_sub(ago);
        let words = [(Side::Nodes, packet.heard_nodes), (Side::Pods, packet.heard_pods)];
        for (side, ago) in words {
            if let Some(at) = ago.and_then(before) {
                heard.ours.insert(side, at);
            }
        }
        heard.word = Some(now);
        heard.stream_port = packet.stream_port;
        if packet.is_answer {
            let waits = self.pending.get(&packet.nonce);
            // What came back by the detour says nothing of the way that it goes past.
            if waits.is_some_and(|waits| waits.beside == packet.beside)
                && let Some(waiting) = self.pending.remove(&packet.nonce)
            {
                // Who asked may have stopped waiting.
                let _ = waiting.answered.send(());
            }
            return None;
        }
        let avoided = self.avoided.get(&peer).filter(|_| packet.beside).cloned();
        let answerable =
            !packet.beside || (avoided.is_some() && bytes.len() >= BESIDE_REQUEST_BYTES);
        // What passes without a checksum alone is not heard as pods' packets are.
        if !packet.beside && !packet.unchecked {
            heard.requests.insert(side, now);
            if side == Side::Pods && std::mem::take(&mut heard.missed) {
                // A peer too many is found when it is tested.
                let _ = self.returned.try_send(peer.clone());
            }
        }
        if !answerable || !heard.may_ask(now) {
            self.refused += 1;
            return None;
        }
        let answer = self.packet(&peer, side, packet.nonce, packet.unchecked);
        Some((Packet { is_answer: true, beside: packet.beside, ..answer }, avoided))
    }
}

impl Heard {
    fn may_ask(&mut self, now: Instant) -> bool {
        let (second, count) = match self.second {
            Some((began, count)) if now.duration_since(began) < Duration::from_secs(1) => {
                (began, count)
            }
            _ => (now, 0),
        };
        self.second = Some((second, count + 1));
        count < ANSWERS_A_SECOND
    }
}

async fn receive(socket: Arc<UdpSocket>, side: Side, inbox: Arc<Mutex<Inbox>>) {
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // Whatever it is, it may pass; not in a busy loop.
            Err(_) => {
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        let answer = lock(&inbox).take(bytes, from.ip(), side, Instant::now());
        // A lost answer is what is being looked for.
        let _ = match answer {
            Some((answer, Some(avoided))) => {
                avoided.send(&answer.bytes(PACKET_BYTES)).context("answering by the avoided way")
            }
            Some((answer, None)) => send(&socket, &answer, PACKET_BYTES, from),
            None => Ok(()),
        };
    }
}

/// Sends at once or not at all.
fn send(socket: &UdpSocket, packet: &Packet, size: usize, to: SocketAddr) -> Result<()> {
    if packet.unchecked {
        probe::set_checksum(socket, to.is_ipv6(), false)?;
    }
    let sent = socket.try_send_to(&packet.bytes(size), to);
    if packet.unchecked {
        probe::set_checksum(socket, to.is_ipv6(), true)?;
    }
    sent.map(drop).context("sending")
}

fn is_late(at: Instant) -> bool {
    at.elapsed() < LATELY
}

fn lock(inbox: &Mutex<Inbox>) -> MutexGuard<'_, Inbox> {
    inbox.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::avoided::Wrapping;
    use super::*;

    fn request(beside: bool, is_answer: bool) -> Packet {
        Packet {
            is_answer,
            side: Side::Pods,
            unchecked: false,
            beside,
            nonce: 7,
            heard_nodes: None,
            heard_pods: None,
            stream_port: 0,
        }
    }

    #[test]
    fn what_passes_without_a_checksum_alone_is_not_heard() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let gateway = address("10.244.2.1");
        let mut inbox = Inbox::new(mpsc::channel(1).0);
        inbox.known.insert((gateway, Side::Pods), "node2".into());
        let mut heard_after = |unchecked| {
            let packet = Packet { unchecked, ..request(false, false) };
            let bytes = packet.bytes(PACKET_BYTES);
            let answer = inbox.take(&bytes, gateway, Side::Pods, Instant::now());
            let (answer, _) = answer.expect("an answer");
            assert_eq!(answer.unchecked, unchecked);
            answer.heard_pods.is_some()
        };
        assert!(!heard_after(true));
        assert!(heard_after(false));
    }

    #[tokio::test]
    async fn a_peer_that_was_missed_is_told_of_once_when_it_is_heard_between_gateways() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let (node, gateway) = (address("172.30.0.3"), address("10.244.2.1"));
        let mut exchange = Exchange::new(0);
        let both = [((node, Side::Nodes), "node2".into()), ((gateway, Side::Pods), "node2".into())];
        exchange.know(both.into(), BTreeMap::new());
        let ask = |exchange: &Exchange, from, side| {
            let packet = Packet { side, ..request(false, false) };
            let bytes = packet.bytes(PACKET_BYTES);
            let answer = lock(&exchange.inbox).take(&bytes, from, side, Instant::now());
            assert!(answer.is_some());
        };
        ask(&exchange, gateway, Side::Pods);
        assert!(exchange.returned.try_recv().is_err(), "nobody missed it");
        exchange.miss("node2", true);
        ask(&exchange, node, Side::Nodes);
        assert!(exchange.returned.try_recv().is_err(), "that is no pod's way");
        ask(&exchange, gateway, Side::Pods);
        ask(&exchange, gateway, Side::Pods);
        assert_eq!(exchange.returned().await, "node2");
        assert!(exchange.returned.try_recv().is_err(), "it is told once");
    }

    #[test]
    fn by_an_avoided_way_only_what_came_by_it_is_answered_and_never_with_more() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let gateway = address("10.244.2.1");
        let avoided = Avoided {
            wrapping: Wrapping::Vxlan { vni: 1, port: 8472 },
            nodes: (address("172.30.0.2"), address("172.30.0.3")),
            pods: (address("10.244.1.1"), gateway),
            test_port: 8473,
        };
        let mut inbox = Inbox::new(mpsc::channel(1).0);
        inbox.known.insert((gateway, Side::Pods), "node2".into());
        let (through, plain) = (request(true, false), request(false, false));
        let ask = |inbox: &mut Inbox, packet: Packet, size| {
            inbox.take(&packet.bytes(size), gateway, Side::Pods, Instant::now())
        };
        let size = BESIDE_REQUEST_BYTES;
        assert_eq!(ask(&mut inbox, through, size), None, "there is no detour");
        inbox.avoided.insert("node2".into(), avoided.clone());
        assert_eq!(ask(&mut inbox, through, size - 1), None, "the answer would be larger");
        let (answer, by) = ask(&mut inbox, through, size).expect("an answer");
        assert!(answer.is_answer && answer.beside && by == Some(avoided));
        // What comes through it says nothing of the way that pods take.
        assert_eq!(answer.heard_pods, None);
        let (answer, by) = ask(&mut inbox, plain, PACKET_BYTES).expect("an answer");
        assert!(!answer.beside && by.is_none() && answer.heard_pods.is_some());

        for (beside, counts) in [(false, false), (true, true)] {
            let (answered, mut answer) = oneshot::channel();
            inbox.pending.insert(7, Pending { beside: true, answered });
            assert_eq!(ask(&mut inbox, request(beside, true), PACKET_BYTES), None);
            assert_eq!(answer.try_recv().is_ok(), counts, "an answer, beside: {beside}");
        }
    }
}
