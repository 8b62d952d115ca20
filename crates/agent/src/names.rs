//! The fast path of DNS: plain questions for addresses of the cluster's names are answered by eBPF
//! at the links of this node's pods (`bpf/names.c`), as the worker would. A task of its own: the
//! network never waits for it. The same task tells the zone of pods that have just come.
//!
//! ```text
//! feed (changes of names, SOA) ──┐
//! worker (rules, TTL, addresses) ┼─▶ task ─▶ kernel::bpf::names ─▶ maps, programs at pods' links
//! links of pods, their records ──┘     └───▶ status, metrics, the Node's condition
//! ```
//!
//! Before the zone is complete, and before the worker has said how it answers, nothing is changed
//! (invariant 3). Where its rules may be about the cluster's names, or the kernel refuses, the worker
//! answers alone. What a killed agent left answers on for [`LEASE`], and the next one takes it over.

mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use cni::records;
use dns::feed::Plain;
use kernel::bpf::names::{LEASE, NameAnswers, Wanted, is_present, missing};
use kernel::bpf::{self, FILE_SYSTEM, probe};
use model::{DnsFastPath, layout};
use netlink::{Monitor, Netlink, Notice};
use render::OpError;
use render::names::{Client, Times, settings};
use tokio::io::unix::AsyncFd;
use tokio::task::JoinSet;

use crate::feed::{Feed, LocalPods, unix_us};
use crate::monitor::register;
use crate::options::Options;

pub(crate) use state::FastPath;
pub use state::{FastPathAnswer, FastPathStatus};

/// Attachments and pins are looked at, and the lease renewed, this often.
const PERIOD: Duration = Duration::from_secs(5);
/// What the kernel refused is not tried again earlier than this.
const RETRY: Duration = Duration::from_secs(60);
/// Bytes of `struct ifinfomsg`.
const LINK_HEADER_BYTES: usize = 16;
const IFLA_IFALIAS: u16 = 20;

/// Starts the task.
pub(crate) fn spawn(options: &Options, feed: &Feed, tasks: &mut JoinSet<()>) -> FastPath {
    let config = &options.config;
    let path = FastPath::new(config.dns_fast_path);
    let keeper = Keeper {
        path: path.clone(),
        feed: feed.clone(),
        domain: config.cluster_domain.trim_end_matches('.').to_ascii_lowercase(),
        records: options.places.records.clone(),
        plain: None,
        is_whole: false,
        not_before: None,
        clients: BTreeMap::new(),
        pod_links: BTreeSet::new(),
    };
    tasks.spawn(keeper.run());
    path
}

/// What woke the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Zone,
    Worker,
    Links,
    Period,
}

struct Keeper {
    path: FastPath,
    feed: Feed,
    domain: String,
    /// Where the plugin's records are.
    records: PathBuf,
    /// As the kernel has it.
    plain: Option<Plain>,
    /// Whether the kernel has every name.
    is_whole: bool,
    /// When to try again what was refused.
    not_before: Option<Instant>,
    /// The pods of this node that have a link, by its name, as they were seen last.
    clients: BTreeMap<String, Client>,
    /// The numbers of those links.
    pod_links: BTreeSet<u32>,
}

impl Keeper {
    async fn run(mut self) {
        let (mut newest, mut said) = (self.feed.newest(), self.feed.said());
        let mut links = Monitor::open(libc::NETLINK_ROUTE, &[libc::RTNLGRP_LINK])
            .map_err(anyhow::Error::from)
            .and_then(register)
            .inspect_err(|error| tracing::warn!("pods' links are looked for now and then: {error}"))
            .ok();
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let cause = tokio::select! {
                changed = newest.changed() => match changed {
                    Ok(()) => Cause::Zone,
                    Err(_) => return,
                },
                changed = said.changed() => match changed {
                    Ok(()) => Cause::Worker,
                    Err(_) => return,
                },
                () = self.hear_links(&mut links) => Cause::Links,
                _ = period.tick() => Cause::Period,
            };
            let listed = *newest.borrow_and_update() != 0;
            let plain = said.borrow_and_update().clone();
            self.turn(cause, listed, plain);
        }
    }

    /// Waits until links of pods come or go.
    async fn hear_links(&self, links: &mut Option<AsyncFd<Monitor>>) {
        let Some(links) = links else { return std::future::pending().await };
        loop {
            let Ok(mut ready) = links.readable_mut().await else {
                return std::future::pending().await;
            };
            let Ok(read) = ready.get_inner_mut().read() else {
                return std::future::pending().await;
            };
            if !read.more {
                ready.clear_ready();
            }
            if read.lost || read.notices.iter().any(|notice| self.is_news(notice)) {
                return;
            }
        }
    }

    fn is_news(&self, notice: &Notice) -> bool {
        let index = notice.payload.get(4..).and_then(netlink::message::u32_of).unwrap_or_default();
        let is_known = self.pod_links.contains(&index);
        // A port that leaves a bridge is told of in the bridge's family, and is there.
        let is_of_bridge = notice.payload.first() == Some(&(libc::AF_BRIDGE as u8));
        match notice.kind {
            libc::RTM_DELLINK => is_known && !is_of_bridge,
            libc::RTM_NEWLINK if !is_known => {
                let alias = notice.attributes(LINK_HEADER_BYTES).text(IFLA_IFALIAS);
                alias.is_some_and(|alias| alias.starts_with(layout::POD_LINK_ALIAS_PREFIX))
            }
            _ => false,
        }
    }

    fn turn(&mut self, cause: Cause, listed: bool, plain: Option<Plain>) {
        if matches!(cause, Cause::Links | Cause::Period)
            && let Err(error) = self.look_for_pods()
        {
            tracing::warn!("pods of this node are not seen: {error:#}");
        }
        if self.path.wanted() == DnsFastPath::Off {
            return self.stop("it is switched off (dnsFastPath)");
        }
        if !listed {
            return self.path.wait("the API's objects were not listed yet");
        }
        let Some(plain) = plain else {
            return self.path.wait("the DNS worker of this node has not said yet how it answers");
        };
        if let Some(option) = &plain.ruled_by {
            let reason = format!(
                "the option {option} of the DNS configuration may be about names of the cluster"
            );
            return self.stop(&reason);
        }
        if plain.exposure != self.feed.exposure() {
            return self.path.wait("another choice of names is being made");
        }
        if plain.servers.is_empty() {
            return self.stop("the DNS worker answers at no address of the cluster's DNS");
        }
        if self.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let done = self.follow(cause, plain);
        self.not_before = None;
        if let Err(error) = done {
            self.is_whole = false;
            self.not_before = Some(Instant::now() + RETRY);
            // What the kernel has may be wrong now.
            self.path.end_lease();
            self.path.fail(&error.message);
        }
    }

    /// Brings the kernel to what is wanted now.
    fn follow(&mut self, cause: Cause, plain: Plain) -> Result<(), OpError> {
        if !self.path.is_loaded() {
            self.path.load(load()?);
            self.is_whole = false;
        }
        let path = self.path.clone();
        let mut guard = path.inner();
        let inner = &mut *guard;
        let Some(answers) = &mut inner.answers else { return Ok(()) };
        let is_other = self.plain.as_ref() != Some(&plain);
        if !self.is_whole || is_other || (cause == Cause::Period && !answers.are_pinned()) {
            let (names, soa) = self.feed.all_names();
            let wanted = Wanted {
                clients: self.clients.clone(),
                servers: plain.servers.clone(),
                settings: settings(&self.domain, times(&plain), &soa),
            };
            let done = answers.apply(&wanted, &names)?;
            (self.is_whole, self.plain) = (true, Some(plain));
            tell(done.changes, done.failures)?;
        } else {
            let news = self.feed.take_names();
            answers.change(&news.changes)?;
            answers.set(&settings(&self.domain, times(&plain), &news.soa))?;
            if let Some(heard_us) = news.heard_us {
                let took_us = unix_us().saturating_sub(heard_us);
                inner.lag.record(Duration::from_micros(took_us));
            }
            if matches!(cause, Cause::Links | Cause::Period) {
                let done = answers.set_clients(&self.clients)?;
                tell(done.changes, done.failures)?;
            }
        }
        answers.renew(LEASE)?;
        inner.clients.clone_from(&self.clients);
        drop(guard);
        self.path.answer();
        Ok(())
    }

    /// The worker answers alone.
    fn stop(&mut self, reason: &str) {
        (self.is_whole, self.plain) = (false, None);
        self.feed.forget_names();
        if let Err(error) = self.path.unload() {
            tracing::warn!("the fast path of DNS stays: {error}");
        }
        self.path.leave(reason);
    }

    /// Finds the pods of this node, and tells their namespaces to the zone.
    fn look_for_pods(&mut self) -> Result<()> {
        let links = Netlink::open()?.links()?;
        let boot_id = records::boot_id()?;
        let attachments = records::of_all_networks(&self.records)?;
        self.pod_links.clear();
        self.clients.clear();
        let mut local = LocalPods::new();
        for attachment in attachments.into_iter().filter(|it| it.boot_id == boot_id) {
            let Some(name) = attachment.link.node_end() else { continue };
            // One that comes, or goes, is heard of.
            let Some(link) = links.iter().find(|link| link.name == name) else { continue };
            self.pod_links.insert(link.index);
            let addresses: Vec<IpAddr> =
                attachment.addresses.iter().map(|address| address.addr()).collect();
            if let Some(pod) = &attachment.pod {
                local.extend(addresses.iter().map(|address| (*address, pod.namespace.clone())));
            }
            self.clients.insert(name.to_owned(), Client { addresses, mac: attachment.mac });
        }
        self.feed.set_local_pods(local);
        Ok(())
    }
}

/// Loads the program, or takes over what another agent left.
fn load() -> Result<NameAnswers, OpError> {
    let file_system = PathBuf::from(FILE_SYSTEM);
    let missing = missing(&file_system);
    if !missing.is_empty() {
        return Err(OpError { errno: libc::EOPNOTSUPP, message: missing.join("; ") });
    }
    let hook = probe(&file_system).hook;
    NameAnswers::load(&bpf::Options { file_system, hook })
}

/// Takes away what any agent left.
///
/// # Errors
/// When something of ours stays.
pub(crate) fn remove() -> Result<bool, OpError> {
    if !is_present(FILE_SYSTEM.as_ref()) {
        return Ok(false);
    }
    load()?.remove().map(|()| true)
}

fn times(plain: &Plain) -> Times {
    Times { ttl_s: plain.ttl_s, negative_ttl_s: plain.negative_ttl_s }
}

/// A link that went meanwhile is no failure: that it goes is heard of.
fn tell(changes: Vec<String>, failures: Vec<OpError>) -> Result<(), OpError> {
    for change in changes {
        tracing::debug!("fast path of DNS: {change}");
    }
    failures.into_iter().find(|failure| failure.errno != libc::ENODEV).map_or(Ok(()), Err)
}
