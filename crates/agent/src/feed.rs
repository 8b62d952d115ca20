//! The DNS worker's feed: every connection gets the zone as it is, and then what changes, each
//! change once. Its cost does not depend on how large the zone is. The worker in turn says how it
//! answers, for those who answer in its place ([`crate::names`]).
//!
//! Whose pods have which addresses comes from a watch of its own: nothing else on a node reads all
//! pods of the cluster, and so little is kept of each that the loop's `World` is not the place. The
//! pods of this node are known before the API says which addresses they have: the plugin wrote it
//! down before it made their links.

mod exposed;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use client::{Client, ResourcePath, WatchEvent, WatchSpec};
use dns::feed::{Change, MAX_SAID_OCTETS, Plain, Publisher, Reader, Settings};
use dns::{Index, Records};
use model::{ClusterConfig, NamespacedName, Pod, layout};
use plan::zone::{Exposed, Exposure, PodAddresses, PodNames, ZoneChanges};
use render::names::{NameChanges, Names, changes, of_labels};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The agent's end of the feed.
#[derive(Clone)]
pub(crate) struct Feed {
    zone: Arc<Mutex<Published>>,
    /// The number of the newest change; 0 before the first complete list (invariant 3).
    newest: watch::Sender<u64>,
    /// How the worker that was connected last answers.
    said: watch::Sender<Option<Plain>>,
    /// What shall have names.
    exposed: watch::Sender<Exposed>,
}

/// The zone, and what the kernel has not got of it.
struct Published {
    publisher: Publisher,
    /// The pods of the cluster, as the API knows them.
    pods: PodAddresses,
    /// The namespaces of this node's own, as the plugin's records know them.
    local: LocalPods,
    /// Names that changed since they were taken; `None` while nobody takes them.
    untaken: Option<NameChanges>,
    /// When the agent heard of the first of them, in microseconds since 1970.
    heard_us: Option<u64>,
}

/// Namespaces of pods of this node by address.
pub(crate) type LocalPods = BTreeMap<IpAddr, String>;

/// The names that the kernel has not got.
pub(crate) struct UntakenNames {
    /// What changed since they were taken last.
    pub(crate) changes: NameChanges,
    /// When the agent heard of the first change, in microseconds since 1970.
    pub(crate) heard_us: Option<u64>,
    /// The data of the zone's SOA record.
    pub(crate) soa: Vec<u8>,
}

impl Feed {
    /// Listens in the run directory. The socket is root's alone; a worker connects before it drops
    /// its privileges or by the directory handle that it kept.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub(crate) fn serve(
        run_directory: &Path,
        config: &ClusterConfig,
        client: &Client,
        tasks: &mut JoinSet<()>,
    ) -> Result<Self> {
        let listener = bind(run_directory, layout::DNS_FEED_SOCKET)?;
        // More than a former agent's, unless that heard of a change each second of its life.
        let sequence = unix_us() / 1_000_000;
        let publisher = Publisher::new(Settings::new(config), sequence);
        let zone = Arc::new(Mutex::new(Published::new(publisher)));
        let feed = Self {
            zone,
            newest: watch::Sender::new(0),
            said: watch::Sender::new(None),
            exposed: watch::Sender::new(Exposed::default()),
        };
        tasks.spawn(feed.clone().accept(listener));
        tasks.spawn(feed.clone().follow_exposure(client.clone()));
        tasks.spawn(feed.clone().follow_pods(client.clone()));
        Ok(feed)
    }

    /// Passes on what changed; the first time, everything.
    pub(crate) fn publish(&self, changes: ZoneChanges, heard_us: u64) {
        let mut zone = self.zone();
        zone.publisher.set(&changes.reverse_ranges, &changes.exposed);
        let services = changes.services.iter();
        let services: Vec<Change> =
            services.map(|(key, news)| Change::of_news(key, news)).collect();
        zone.note_names(&services, heard_us);
        let clients = changes.clients.map(|ranges| zone.publisher.client_changes(&ranges));
        let changed = clients.into_iter().flatten().chain(services);
        if let Err(error) = zone.publisher.publish(changed, heard_us) {
            tracing::error!("a change cannot be sent to the DNS worker: {error}");
        }
        let sequence = zone.publisher.sequence();
        drop(zone);
        self.newest.send_replace(sequence);
    }

    /// Hears of each change of the zone: its number, 0 before the first complete list.
    pub(crate) fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Hears of how the worker answers.
    pub(crate) fn said(&self) -> watch::Receiver<Option<Plain>> {
        self.said.subscribe()
    }

    /// Hears of what shall have names.
    pub(crate) fn exposed(&self) -> watch::Receiver<Exposed> {
        self.exposed.subscribe()
    }

    /// The choice that the zone is made by.
    pub(crate) fn exposure(&self) -> Exposure {
        self.zone().publisher.index().settings().exposed.exposure.clone()
    }

    /// All names; from now on their changes are kept for [`Feed::take_names`].
    pub(crate) fn all_names(&self) -> (Names, Vec<u8>) {
        let mut zone = self.zone();
        (zone.untaken, zone.heard_us) = (Some(NameChanges::new()), None);
        let index = zone.publisher.index();
        (names_of(index), dns::soa_data(index))
    }

    /// What changed since names were taken last.
    pub(crate) fn take_names(&self) -> UntakenNames {
        let mut zone = self.zone();
        let changes = zone.untaken.replace(NameChanges::new()).unwrap_or_default();
        let heard_us = zone.heard_us.take();
        UntakenNames { changes, heard_us, soa: dns::soa_data(zone.publisher.index()) }
    }

    /// Changes of names are not kept any more.
    pub(crate) fn forget_names(&self) {
        let mut zone = self.zone();
        (zone.untaken, zone.heard_us) = (None, None);
    }

    async fn follow_pods(self, client: Client) {
        let mut watcher = client.watch::<Pod>(WatchSpec::new(ResourcePath::new("v1", "pods")));
        loop {
            let event = watcher.next().await;
            let mut zone = self.zone();
            let touched = match event {
                WatchEvent::Listed(list) => zone.pods.replace(&list),
                WatchEvent::Applied(pod) => zone.pods.set(&pod),
                WatchEvent::Deleted(pod) => zone.pods.remove(&pod.metadata.key()),
                WatchEvent::Lost { reason } => {
                    tracing::warn!("the watch of pods for DNS is lost: {reason}");
                    continue;
                }
                WatchEvent::Resumed => continue,
            };
            let sequence = zone.publish_pods(&touched);
            drop(zone);
            self.tell_of_pods(sequence);
        }
    }

    /// Takes in which pods are on this node.
    pub(crate) fn set_local_pods(&self, local: LocalPods) {
        let mut zone = self.zone();
        let touched = zone.set_local(local);
        if !touched.is_empty() {
            let sequence = zone.publish_pods(&touched);
            drop(zone);
            self.tell_of_pods(sequence);
        }
    }

    /// Not before the first list of Services: names that come then would not exist yet.
    fn tell_of_pods(&self, sequence: u64) {
        self.newest.send_if_modified(|newest| {
            let tell = *newest != 0 && *newest != sequence;
            if tell {
                *newest = sequence;
            }
            tell
        });
    }

    async fn accept(self, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(self.clone().feed(stream))),
                Err(error) => {
                    tracing::warn!("a DNS worker could not connect: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Serves one worker until it goes; its successor connects anew.
    async fn feed(self, stream: UnixStream) {
        let (from_worker, mut stream) = stream.into_split();
        // Its end tells us that there is nobody left to feed.
        let mut listening = std::pin::pin!(self.listen(from_worker));
        let mut newest = self.newest.subscribe();
        let mut reader = Reader::default();
        loop {
            if *newest.borrow_and_update() != 0 {
                while let Some(frame) = self.next_frame(&mut reader) {
                    if stream.write_all(&frame).await.is_err() {
                        return;
                    }
                }
            }
            tokio::select! {
                changed = newest.changed() => if changed.is_err() { return },
                () = &mut listening => return,
            }
        }
    }

    /// Hears what a worker says until it goes.
    async fn listen(&self, mut stream: impl AsyncRead + Unpin) {
        while let Ok(octets) = stream.read_u32_le().await {
            let octets = usize::try_from(octets).unwrap_or(usize::MAX);
            if octets > MAX_SAID_OCTETS {
                tracing::warn!("a DNS worker says {octets} octets at once: it is not heard");
                return;
            }
            let mut json = vec![0; octets];
            if stream.read_exact(&mut json).await.is_err() {
                return;
            }
            match Plain::parse(&json) {
                Ok(plain) => drop(self.said.send_replace(Some(plain))),
                Err(error) => tracing::warn!("what a DNS worker says is not understood: {error}"),
            }
        }
    }

    /// What a worker lacks next, if anything.
    fn next_frame(&self, reader: &mut Reader) -> Option<Arc<[u8]>> {
        match self.zone().publisher.next_frame(reader)? {
            Ok(frame) => Some(frame),
            Err(error) => {
                tracing::error!("the zone cannot be sent to the DNS worker: {error}");
                None
            }
        }
    }

    fn zone(&self) -> MutexGuard<'_, Published> {
        self.zone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Published {
    fn new(publisher: Publisher) -> Self {
        Self {
            publisher,
            pods: PodAddresses::default(),
            local: LocalPods::new(),
            untaken: None,
            heard_us: None,
        }
    }

    /// Answers the addresses whose names may be others now.
    fn set_local(&mut self, local: LocalPods) -> BTreeSet<IpAddr> {
        let before = std::mem::replace(&mut self.local, local);
        let all = before.keys().chain(self.local.keys());
        all.filter(|one| before.get(one) != self.local.get(one)).copied().collect()
    }

    /// Tells whose pods have these addresses; answers the number of the newest change.
    fn publish_pods(&mut self, touched: &BTreeSet<IpAddr>) -> u64 {
        let change =
            |address: &IpAddr| Change::Pod { address: *address, names: self.names_at(*address) };
        let changes: Vec<Change> = touched.iter().map(change).collect();
        if let Err(error) = self.publisher.publish(changes, unix_us()) {
            tracing::error!("a change cannot be sent to the DNS worker: {error}");
        }
        self.publisher.sequence()
    }

    /// Of an address that a pod of this node has, the API may still say whose it was before.
    fn names_at(&self, address: IpAddr) -> Option<PodNames> {
        match self.local.get(&address) {
            Some(namespace) => {
                Some(PodNames { namespaces: vec![namespace.as_str().into()], is_own: true })
            }
            None => self.pods.names_at(address),
        }
    }

    /// Keeps which names will be others, before the index has the changes.
    fn note_names(&mut self, services: &[Change], heard_us: u64) {
        let Some(untaken) = &mut self.untaken else { return };
        let index = self.publisher.index();
        for change in services {
            let Change::Service { namespace, name, records, .. } = change else { continue };
            let key = NamespacedName::new(namespace.as_ref(), name.as_ref());
            let domain = &index.settings().domain;
            let names = |records: Option<&Records>| {
                records.map_or_else(Names::new, |it| of_labels(domain, &key, &it.by_label()))
            };
            let changed = changes(&names(index.records(namespace, name)), &names(records.as_ref()));
            if !changed.is_empty() {
                self.heard_us.get_or_insert(heard_us);
                untaken.extend(changed);
            }
        }
    }
}

/// All names of a zone's Services.
fn names_of(index: &Index) -> Names {
    let mut names = Names::new();
    for change in index.changes() {
        if let Change::Service { namespace, name, records: Some(records), .. } = change {
            let key = NamespacedName::new(namespace.as_ref(), name.as_ref());
            names.extend(of_labels(&index.settings().domain, &key, &records.by_label()));
        }
    }
    names
}

/// Now, in microseconds since 1970.
pub(crate) fn unix_us() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}

/// Binds a unix socket for root alone, in the place of one that a killed agent left.
///
/// # Errors
/// The file system's.
pub(crate) fn bind(run_directory: &Path, name: &str) -> Result<UnixListener> {
    let path = run_directory.join(name);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", path.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(&path).with_context(|| format!("listening on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use plan::zone::{Namespaces, ServiceKind, ServiceNews, ServiceRecords};
    use render::names::key_of;

    use super::*;

    #[test]
    fn a_pod_of_this_node_has_its_names_before_the_api_says_so_and_whatever_it_said() {
        let settings = Settings::new(&ClusterConfig::default());
        let mut zone = Published::new(Publisher::new(settings, 1));
        let address: IpAddr = [10, 244, 1, 5].into();
        let namespaces = |zone: &Published| {
            let names = zone.publisher.index().pods_at(address);
            names.map(|names| names.namespaces.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let mut old = Pod::default();
        (old.metadata.namespace, old.metadata.name) = ("bank".into(), "gone".into());
        old.status.pod_ip = address.to_string();
        let touched = zone.pods.set(&old);
        zone.publish_pods(&touched);
        assert_eq!(namespaces(&zone), Some(vec!["bank".to_owned()]));
        let touched = zone.set_local([(address, "shop".to_owned())].into());
        zone.publish_pods(&touched);
        assert_eq!(namespaces(&zone), Some(vec!["shop".to_owned()]));
        assert!(zone.set_local([(address, "shop".to_owned())].into()).is_empty(), "as before");
        let touched = zone.pods.remove(&old.metadata.key());
        zone.publish_pods(&touched);
        let touched = zone.set_local(LocalPods::new());
        zone.publish_pods(&touched);
        assert_eq!(namespaces(&zone), None);
    }

    fn news(last: u8) -> ServiceNews {
        let addresses = vec![IpAddr::from([10, 96, 0, last])];
        let records = Some(ServiceRecords::ClusterIp { addresses, ports: vec![] });
        ServiceNews { records, kind: Some(ServiceKind::ClusterIp) }
    }

    /// What the kernel answers is what the worker would, also when other objects have names: told as
    /// changes and told anew.
    #[test]
    fn the_kernel_has_the_names_of_the_choice_that_the_worker_has() {
        let config = ClusterConfig::default();
        let publisher = Publisher::new(Settings::new(&config), 1);
        let feed = Feed {
            zone: Arc::new(Mutex::new(Published::new(publisher))),
            newest: watch::Sender::new(0),
            said: watch::Sender::new(None),
            exposed: watch::Sender::new(Exposed::default()),
        };
        let keys = ["shop", "bank"].map(|namespace| NamespacedName::new(namespace, "web"));
        let (mut kernel, _) = feed.all_names();
        for chosen in [&[][..], &["shop"], &["bank"], &["shop", "bank"], &["nobody"], &[]] {
            let names = chosen.iter().map(|name| (*name).to_owned()).collect();
            let namespaces =
                if chosen.is_empty() { Namespaces::All } else { Namespaces::Named(names) };
            let exposure = Exposure { namespaces, ..Exposure::default() };
            let exposed = Exposed { exposure: exposure.clone(), ..Exposed::default() };
            let mut changes = ZoneChanges::none(&config, &exposed);
            for (key, last) in keys.iter().zip([1, 2]) {
                let is_there = exposed.has_namespace(&key.namespace);
                let news = if is_there { news(last) } else { ServiceNews::default() };
                changes.services.insert(key.clone(), news);
            }
            feed.publish(changes, 5);
            assert_eq!(feed.exposure(), exposure);
            for (key, change) in feed.take_names().changes {
                match change {
                    Some(found) => drop(kernel.insert(key, found)),
                    None => drop(kernel.remove(&key)),
                }
            }
            for key in &keys {
                let name = format!("web.{}.svc.cluster.local.", key.namespace);
                let query = dns::query(1, &name.parse().expect("a name"), 1, true);
                let asker = dns::Client {
                    transport: dns::Transport::Udp,
                    address: IpAddr::from([127, 0, 0, 1]),
                };
                let mut reply = vec![];
                let rules = dns::Rules::default();
                let zone = feed.zone();
                dns::answer(&query, Some(zone.publisher.index()), &rules, asker, &mut reply);
                let answers = dns::parse_response(&reply).expect("a response").answers;
                let found = kernel.get(&key_of(&name).expect("a name"));
                let addresses: Vec<Vec<u8>> = answers.into_iter().map(|one| one.data).collect();
                let of_kernel: Vec<Vec<u8>> =
                    found.iter().map(|found| found.ipv4[..4].to_vec()).collect();
                assert_eq!(of_kernel, addresses, "{name} with {chosen:?}");
                assert_eq!(found.is_some(), exposed.has_namespace(&key.namespace), "{name}");
            }
        }
        assert_eq!(kernel, feed.all_names().0);
    }
}
