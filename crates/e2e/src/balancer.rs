//! A load balancer outside of the cluster, as clouds have them: it asks the nodes for their health
//! at the `healthCheckNodePort` of a Service, and sends each new connection to a node that is well.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use netlink::Netns;
use serde_json::Value;

use crate::outside::{self, Outside};

/// The time between two health checks of a node: that of a fast load balancer.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// A check or request without an answer after this long has failed.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Clients at once, and the time between two requests of one.
const CLIENTS: usize = 4;
const REQUEST_INTERVAL: Duration = Duration::from_millis(25);
/// Changes of health, and reasons of failures, that are told.
const NOTES_MAX: usize = 40;
/// Octets of an answer that are read.
const ANSWER_OCTETS_MAX: u64 = 65_536;
/// The header by which weighted load balancers share connections out; names are in lower case.
const WEIGHT_HEADER: &str = "x-load-balancing-endpoint-weight";

/// What a node says of a Service's endpoints there, as kube-proxy does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// 200 or 503.
    pub code: u16,
    /// `localEndpoints` of the body.
    pub local_endpoints: u64,
    /// `serviceProxyHealthy` of the body.
    pub is_proxy_healthy: bool,
    /// Namespace and name of the Service, of the body.
    pub service: String,
    /// The number in the header.
    pub weight: u64,
    /// `Content-Type`.
    pub content_type: String,
}

impl Health {
    /// Asks a node from outside of the cluster.
    ///
    /// # Errors
    /// When it does not answer, or not in the form of kube-proxy.
    pub fn ask(outside: &Netns, node: SocketAddr) -> Result<Self> {
        let answer = Answer::get(outside, node)?;
        let body: Value = serde_json::from_str(&answer.body).with_context(|| answer.said())?;
        let header = |name: &str| answer.headers.get(name).cloned().with_context(|| answer.said());
        let text = |pointer| body.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        Ok(Self {
            code: answer.code,
            local_endpoints: body["localEndpoints"].as_u64().with_context(|| answer.said())?,
            is_proxy_healthy: body["serviceProxyHealthy"] == true,
            service: format!("{}/{}", text("/service/namespace"), text("/service/name")),
            weight: header(WEIGHT_HEADER)?.parse()?,
            content_type: header("content-type")?,
        })
    }

    /// What a node with so many ready endpoints of its own has to say.
    pub fn of(service: &str, local_endpoints: u64) -> Self {
        Self {
            code: if local_endpoints == 0 { 503 } else { 200 },
            local_endpoints,
            is_proxy_healthy: true,
            service: service.to_owned(),
            weight: local_endpoints,
            content_type: "application/json".to_owned(),
        }
    }
}

/// A load balancer at work. It ends with the value.
pub struct Balancer {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    network: Netns,
    nodes: Vec<IpAddr>,
    port: u16,
    health_port: u16,
    is_over: AtomicBool,
    well: Mutex<BTreeSet<IpAddr>>,
    turn: AtomicUsize,
    began: Instant,
    outcome: Mutex<Balanced>,
}

/// What came of the connections.
#[derive(Clone, Debug, Default)]
pub struct Balanced {
    /// How many were made.
    pub requests: u64,
    /// How many failed.
    pub failed: u64,
    /// Why, with how many did so, and when the first and the last.
    pub reasons: BTreeMap<String, (u64, [Duration; 2])>,
    /// When a node became well or unwell, and what it said.
    pub changes: Vec<(Duration, String)>,
    /// Connections by node.
    pub by_node: BTreeMap<IpAddr, u64>,
    /// Connections by the pod that answered.
    pub by_pod: BTreeMap<String, u64>,
}

impl Balancer {
    /// Starts one for a port of the nodes.
    ///
    /// # Errors
    /// When the machine outside is gone.
    pub fn start(outside: &Outside, nodes: &[IpAddr], port: u16, health_port: u16) -> Result<Self> {
        let shared = Arc::new(Shared {
            network: outside.network()?,
            nodes: nodes.to_vec(),
            port,
            health_port,
            is_over: AtomicBool::new(false),
            well: Mutex::default(),
            turn: AtomicUsize::new(0),
            began: Instant::now(),
            outcome: Mutex::default(),
        });
        shared.check();
        let checker = Arc::clone(&shared);
        let mut threads = vec![std::thread::spawn(move || {
            checker.until_over(CHECK_INTERVAL, Shared::check);
        })];
        for _ in 0..CLIENTS {
            let client = Arc::clone(&shared);
            threads.push(std::thread::spawn(move || {
                client.until_over(REQUEST_INTERVAL, Shared::request);
            }));
        }
        Ok(Self { shared, threads })
    }

    /// The nodes to which it sends at the moment.
    pub fn sends_to(&self) -> BTreeSet<IpAddr> {
        lock(&self.shared.well).clone()
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it sent nothing.
    pub fn finish(mut self) -> Result<Balanced> {
        self.shared.is_over.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a thread of the load balancer panicked"))?;
        }
        let outcome = lock(&self.shared.outcome).clone();
        ensure!(outcome.requests > 0, "the load balancer sent nothing");
        Ok(outcome)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn until_over(&self, interval: Duration, work: fn(&Self)) {
        while !self.is_over.load(Ordering::SeqCst) {
            work(self);
            std::thread::sleep(interval);
        }
    }

    /// A node that does not answer is not well.
    fn check(&self) {
        for node in &self.nodes {
            let health = Health::ask(&self.network, SocketAddr::new(*node, self.health_port));
            let is_well = health.as_ref().is_ok_and(|health| health.code == 200);
            let mut well = lock(&self.well);
            let has_changed = if is_well { well.insert(*node) } else { well.remove(node) };
            drop(well);
            if has_changed {
                let mut outcome = lock(&self.outcome);
                if outcome.changes.len() < NOTES_MAX {
                    outcome.changes.push((self.began.elapsed(), format!("{node}: {health:?}")));
                }
            }
        }
    }

    /// One connection to a node that is well; nodes take turns.
    fn request(&self) {
        let well: Vec<IpAddr> = lock(&self.well).iter().copied().collect();
        let turn = self.turn.fetch_add(1, Ordering::SeqCst);
        let node = turn.checked_rem(well.len()).and_then(|place| well.get(place));
        let answered = match node {
            Some(node) => self.ask(*node).with_context(|| format!("at {node}")),
            None => Err(anyhow!("no node is well")),
        };
        let mut outcome = lock(&self.outcome);
        outcome.requests += 1;
        match (answered, node) {
            (Ok(pod), Some(node)) => {
                *outcome.by_node.entry(*node).or_default() += 1;
                *outcome.by_pod.entry(pod).or_default() += 1;
            }
            (Err(error), _) => {
                outcome.failed += 1;
                outcome.note(self.began.elapsed(), format!("{error:#}"));
            }
            (Ok(_), None) => {}
        }
    }

    /// Who answers. It has to see the client's own address.
    fn ask(&self, node: IpAddr) -> Result<String> {
        let answer = Answer::get(&self.network, SocketAddr::new(node, self.port))?;
        ensure!(answer.code == 200, "{}", answer.said());
        let body: Value = serde_json::from_str(&answer.body).with_context(|| answer.said())?;
        ensure!(body["client"] == outside::ADDRESS, "the client's address is lost: {body}");
        Ok(body["pod"].as_str().unwrap_or_default().to_owned())
    }
}

impl Balanced {
    fn note(&mut self, at: Duration, why: String) {
        if self.reasons.len() < NOTES_MAX || self.reasons.contains_key(&why) {
            let (count, [_, last]) = self.reasons.entry(why).or_insert((0, [at; 2]));
            *count += 1;
            *last = at;
        }
    }
}

/// An answer by HTTP.
#[derive(Debug)]
struct Answer {
    code: u16,
    /// With names in lower case.
    headers: BTreeMap<String, String>,
    body: String,
}

impl Answer {
    /// GET of the root, on a connection of its own.
    fn get(network: &Netns, server: SocketAddr) -> Result<Self> {
        let connect = || TcpStream::connect_timeout(&server, TIMEOUT);
        let mut stream = network.run(connect)?.context("connecting")?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        write!(stream, "GET / HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.take(ANSWER_OCTETS_MAX).read_to_string(&mut text).context("reading")?;
        Self::parse(&text).with_context(|| format!("no answer of HTTP: {text:?}"))
    }

    fn parse(text: &str) -> Option<Self> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let (status, fields) = head.split_once("\r\n")?;
        let code = status.split(' ').nth(1)?.parse().ok()?;
        let field = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        let headers = fields.lines().filter_map(field).collect();
        Some(Self { code, headers, body: body.to_owned() })
    }

    fn said(&self) -> String {
        format!("the answer was {self:?}")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
