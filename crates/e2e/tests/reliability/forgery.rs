//! X-07 while agents die: a pod sends under its own address and under others', and a neighbour on
//! the same node counts what arrives of each.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use e2e::eventually;
use e2e::processes::Held;
use netlink::{Neighbour, Netlink, Netns, sysctl};

use super::kills::back;
use super::pods::{Pods, run};
use super::world::World;

/// Where the neighbour listens.
const PORT: u16 = 7000;
/// Nobody's address (RFC 5737).
const UNKNOWN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
/// One datagram of each source is sent this often.
const PERIOD: Duration = Duration::from_millis(1);
/// So much of what is sent honestly must arrive, or the rest says nothing.
const MEANINGFUL: f64 = 0.9;
/// What is under way at the end has arrived after this.
const SETTLED: Duration = Duration::from_millis(200);
/// Without the rules forged datagrams arrive this soon.
const UNHINDERED: Duration = Duration::from_secs(5);
/// What keeps pods from speaking for others.
const RULES: &str = "nft delete table bridge flatnet-pods";

/// Two pods on the first node, one of which forges.
pub struct Forger<'a> {
    world: &'a World,
    pods: Pods,
    forger: Netns,
    victim: Netns,
    own: Ipv4Addr,
    forged: [Ipv4Addr; 2],
    to: SocketAddrV4,
}

/// A stream that runs.
pub struct Stream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<BTreeMap<Ipv4Addr, u64>>,
    own: Ipv4Addr,
}

/// What came of a stream.
#[derive(Debug)]
pub struct Arrived {
    /// Datagrams that were sent from each address.
    sent: u64,
    /// Of those with the pod's own address.
    honest: u64,
    /// Of those with others', by address.
    forged: BTreeMap<Ipv4Addr, u64>,
}

impl<'a> Forger<'a> {
    /// Makes the pods, and sees that without the rules everything forged arrives.
    ///
    /// # Errors
    /// When it does not.
    pub fn prepare(world: &'a World) -> Result<Self> {
        back(world)?;
        let mut pods = Pods::default();
        let refused = pods.add(&world.cluster, "node1", 2)?;
        ensure!(refused.is_empty(), "{refused:?}");
        let made: Vec<(String, Ipv4Addr)> = pods
            .all()
            .map(|(_, name, address)| {
                let address = address.split('/').next().unwrap_or_default().parse()?;
                Ok((name.to_owned(), address))
            })
            .collect::<Result<_>>()?;
        let [(forger, own), (victim, to)] = made.as_slice() else {
            return Err(anyhow!("not two pods: {made:?}"));
        };
        let neighbour = world.pod_ip("echo-node1")?.parse()?;
        let this = Self {
            world,
            forger: namespace(world, forger)?,
            victim: namespace(world, victim)?,
            own: *own,
            forged: [neighbour, UNKNOWN],
            to: SocketAddrV4::new(*to, PORT),
            pods,
        };
        this.take_names()?;
        this.ensure_it_works()?;
        Ok(this)
    }

    /// The addresses become the forger's own, as root in a pod may do.
    fn take_names(&self) -> Result<()> {
        // It neither answers for them nor asks with them: this is about datagrams.
        self.forger.run(|| sysctl::write("net/ipv4/conf/all/arp_ignore", "1"))??;
        let mut here = Netlink::open_in(&self.forger)?;
        let (loopback, link) = (here.require_link("lo")?.index, here.require_link("eth0")?.index);
        for address in self.forged {
            here.add_address(loopback, format!("{address}/32").parse()?)?;
        }
        let mac = Netlink::open_in(&self.victim)?.require_link("eth0")?.mac;
        let mac = mac.context("the neighbour's link has no address")?;
        let address = (*self.to.ip()).into();
        here.set_neighbour(&Neighbour { link_index: link, address, mac })?;
        Ok(())
    }

    /// The attack with its defence off, while nobody is there to put it back.
    fn ensure_it_works(&self) -> Result<()> {
        let held = Held::hold(&self.world.cluster, &["node1"])?;
        run(&self.world.cluster, "node1", RULES)?;
        let arrives = eventually("forged datagrams arrive without the rules", UNHINDERED, || {
            let stream = self.start()?;
            std::thread::sleep(PERIOD * 50);
            let arrived = stream.finish()?;
            let all = self.forged.iter().all(|source| arrived.forged.contains_key(source));
            ensure!(all, "{arrived:?}");
            Ok(())
        });
        drop(held);
        back(self.world)?;
        arrives
    }

    /// Begins to send from all addresses.
    ///
    /// # Errors
    /// When a socket cannot be had.
    pub fn start(&self) -> Result<Stream> {
        let open = |address: Ipv4Addr, port| UdpSocket::bind((address, port));
        let receiver = self.victim.run(|| open(Ipv4Addr::UNSPECIFIED, PORT))??;
        receiver.set_read_timeout(Some(SETTLED))?;
        let sources = [[self.own].as_slice(), &self.forged].concat();
        let sockets: Vec<UdpSocket> = sources
            .into_iter()
            .map(|source| Ok(self.forger.run(|| open(source, 0))??))
            .collect::<Result<_>>()?;
        let (to, stop) = (self.to, Arc::new(AtomicBool::new(false)));
        let (sending, receiving) = (stop.clone(), stop.clone());
        Ok(Stream {
            stop,
            sender: std::thread::spawn(move || send(&sockets, to, &sending)),
            receiver: std::thread::spawn(move || receive(&receiver, &receiving)),
            own: self.own,
        })
    }

    /// Deletes the pods.
    ///
    /// # Errors
    /// When one could not be.
    pub fn remove(mut self) -> Result<()> {
        self.pods.delete(&self.world.cluster, "node1", 2, false).map(drop)
    }
}

impl Stream {
    /// Ends it and waits for what is under way.
    ///
    /// # Errors
    /// When one of its threads panicked.
    pub fn finish(self) -> Result<Arrived> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_| anyhow!("the sender panicked"))?;
        let mut forged = self.receiver.join().map_err(|_| anyhow!("the receiver panicked"))?;
        let honest = forged.remove(&self.own).unwrap_or(0);
        Ok(Arrived { sent, honest, forged })
    }
}

impl Arrived {
    /// # Errors
    /// When anything forged arrived, or too little else to say so.
    pub fn ensure_all_stopped(&self) -> Result<()> {
        ensure!(self.forged.is_empty(), "a pod spoke under other names: {self:?}");
        let enough = self.sent as f64 * MEANINGFUL;
        ensure!(self.sent > 0 && self.honest as f64 >= enough, "too little arrived: {self:?}");
        Ok(())
    }
}

fn send(sockets: &[UdpSocket], to: SocketAddrV4, stop: &AtomicBool) -> u64 {
    let mut sent = 0;
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        for socket in sockets {
            // What the kernel refuses to send is stopped too.
            let _ = socket.send_to(b"whose?", to);
        }
        sent += 1;
        next += PERIOD;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    sent
}

fn receive(socket: &UdpSocket, stop: &AtomicBool) -> BTreeMap<Ipv4Addr, u64> {
    let mut arrived = BTreeMap::new();
    let mut buffer = [0; 64];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((_, from)) => {
                if let std::net::IpAddr::V4(from) = from.ip() {
                    *arrived.entry(from).or_default() += 1;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                // Nothing has come for a while.
                if stop.load(Ordering::Relaxed) {
                    return arrived;
                }
            }
            Err(_) => {}
        }
    }
}

/// The network namespace of a pod of the schedule: its name is the node's own.
fn namespace(world: &World, name: &str) -> Result<Netns> {
    let pid = world.cluster.process("runtime/node1")?;
    let path = PathBuf::from(format!("/proc/{pid}/root/run/netns/{name}"));
    Ok(Netns::open(&path)?)
}
