//! Watchers of all kinds, slow ones too, over `kill -9` of the server under load: none loses an
//! event, sees one twice or out of order, and all end with what a list says.

#[path = "watch_history/checker.rs"]
mod checker;
#[path = "watch_history/many.rs"]
mod many;
#[path = "support/process.rs"]
mod process;
mod support;
#[path = "watch_history/watcher.rs"]
mod watcher;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use checker::Truth;
use client::{Client, DeleteOptions, PatchKind, ResourcePath};
use process::ServerProcess;
use serde_json::{Value, json};
use support::{Scratch, within, write_kubeconfig};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use watcher::{LAST, Mode, SELECTED, Watched};

/// How often the server is killed.
const KILLS: usize = 4;
/// Acknowledged writes before each kill, and after the last one.
const WRITES_BETWEEN_KILLS: usize = 250;
/// Clients that write at once, each its own objects.
const WRITERS: u64 = 4;
/// Objects of a writer.
const OBJECTS: u64 = 5;
/// How long a writer waits for a server that is away.
const AWAY: Duration = Duration::from_millis(20);
/// The watchers. The slow ones fall some hundred events behind, less than the server keeps.
const MODES: [Mode; 7] = [
    Mode::PLAIN,
    Mode { selects: true, ..Mode::PLAIN },
    Mode { streams_list: true, ..Mode::PLAIN },
    Mode { leaves_after: 37, ..Mode::PLAIN },
    Mode { leaves_after: 53, selects: true, ..Mode::PLAIN },
    Mode { pause_ms: 3, ..Mode::PLAIN },
    Mode { pause_ms: 3, leaves_after: 101, selects: true, ..Mode::PLAIN },
];

fn main() {
    process::main(&[
        ("the_checker_finds_faults", checker::faults_are_found),
        ("no_event_is_lost_doubled_or_reordered", || {
            process::block_on(no_event_is_lost_doubled_or_reordered());
        }),
        ("ten_thousand_objects_are_watched_and_listed_over_kills", || {
            process::block_on(many::are_watched_and_listed_over_kills());
        }),
    ]);
}

async fn no_event_is_lost_doubled_or_reordered() {
    let mut site = Site::start("history").await;
    let watchers = site.watch(&MODES).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (told, mut hears) = mpsc::unbounded_channel();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let prefix = format!("writer{writer}");
        let client = site.client.clone();
        let writer = Writer { client, told: told.clone(), chance: writer + 1 };
        writers.spawn(writer.write_until(prefix, Arc::clone(&stop)));
    }
    drop(told);
    let mut acknowledged = Vec::new();
    for round in 0..=KILLS {
        while acknowledged.len() < (round + 1) * WRITES_BETWEEN_KILLS {
            acknowledged.push(within("a write", hears.recv()).await.expect("writers write"));
        }
        if round < KILLS {
            site.kill_and_start();
        }
    }
    stop.store(true, Ordering::Relaxed);
    within("the writers", writers.join_all()).await;
    while let Ok(write) = hears.try_recv() {
        acknowledged.push(write);
    }
    site.create_last().await;
    let watched = within("the watchers", watchers.tasks.join_all()).await;
    judge(&site.client, &watched, &acknowledged).await;
}

/// A server that can be killed, and its client.
struct Site {
    scratch: Scratch,
    server: Option<ServerProcess>,
    port: u16,
    kubeconfig: PathBuf,
    client: Client,
}

impl Site {
    async fn start(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let pki = support::make_pki(&scratch.0);
        let (server, port) = ServerProcess::start(&scratch.0, 0);
        let kubeconfig = write_kubeconfig(&scratch.0, &pki, port);
        let client = Client::from_kubeconfig(&kubeconfig).await.expect("a client");
        Self { scratch, server: Some(server), port, kubeconfig, client }
    }

    fn kill_and_start(&mut self) {
        self.server.take().expect("it runs").kill();
        self.server = Some(ServerProcess::start(&self.scratch.0, self.port).0);
    }

    /// Starts watchers, and returns when they watch.
    async fn watch(&self, modes: &[Mode]) -> Watchers {
        let mut watchers = Watchers { tasks: JoinSet::new(), reached: Vec::new() };
        for mode in modes {
            let (reaches, reached) = watch::channel(None);
            watchers.tasks.spawn(watcher::follow(self.kubeconfig.clone(), *mode, reaches));
            watchers.reached.push(reached);
        }
        watchers.reach(0).await;
        watchers
    }

    /// Makes the object that ends all watches.
    async fn create_last(&self) {
        let last = json!({"metadata": {"name": LAST, "labels": {"watched": SELECTED}}});
        self.client.create::<_, Value>(&config_maps(), &last).await.expect("the last object");
    }
}

/// Running watchers, and which revision each has reached: `None` before its first connection.
struct Watchers {
    tasks: JoinSet<Watched>,
    reached: Vec<watch::Receiver<Option<u64>>>,
}

impl Watchers {
    /// Waits until all have seen a revision.
    async fn reach(&mut self, revision: u64) {
        for reached in &mut self.reached {
            let there = reached.wait_for(|until| until.is_some_and(|until| until >= revision));
            within("a watcher", there).await.expect("watchers watch");
        }
    }
}

/// All that the checker knows to ask.
async fn judge(client: &Client, watched: &[Watched], acknowledged: &[(String, u64)]) {
    let mut truth = Truth::default();
    for watched in watched.iter().filter(|watched| !watched.mode.selects) {
        for history in &watched.histories {
            truth.take(history).unwrap_or_else(|fault| panic!("{:?}: {fault}", watched.mode));
        }
    }
    // All watchers began before the first write.
    for (name, revision) in acknowledged {
        truth.has(name, *revision).expect("every acknowledged write was seen");
    }
    assert!(truth.len() >= acknowledged.len(), "{} writes", truth.len());
    let listed = async |selects| watcher::list(client, selects).await.expect("a list").listed;
    let (all, selected) = (listed(false).await, listed(true).await);
    for watched in watched {
        let mode = watched.mode;
        for history in &watched.histories {
            truth.check(history, mode.selects).unwrap_or_else(|fault| panic!("{mode:?}: {fault}"));
            history.replay().unwrap_or_else(|fault| panic!("{mode:?}: {fault}"));
        }
        let last = watched.histories.last().expect("a history");
        let stored = if mode.selects { &selected } else { &all };
        assert!(last.replay().expect("checked") == *stored, "{mode:?}: a list says otherwise");
        // A slow one may still read what one server sent while the next is killed.
        assert!(watched.connections > 1, "{mode:?}: it came back after no kill");
        assert_eq!(watched.histories.len(), 1, "{mode:?}: it had to list again");
    }
}

fn config_maps() -> ResourcePath {
    ResourcePath::new("v1", "configmaps").namespace("default")
}

/// Makes, changes and removes its own objects.
struct Writer {
    client: Client,
    told: mpsc::UnboundedSender<(String, u64)>,
    /// State of a generator of numbers that look random (Knuth's constants).
    chance: u64,
}

impl Writer {
    async fn write_until(mut self, prefix: String, stop: Arc<AtomicBool>) {
        while !stop.load(Ordering::Relaxed) {
            let name = format!("{prefix}-{}", self.next() % OBJECTS);
            let answer = match self.next() % 4 {
                0 => self.remove(&name).await,
                _ => self.put(&name).await,
            };
            match answer {
                Ok(Some(revision)) => {
                    let _ = self.told.send((name, revision));
                }
                Ok(None) => {}
                Err(()) => tokio::time::sleep(AWAY).await,
            }
        }
    }

    /// Changes the object, or makes it: the revision.
    async fn put(&mut self, name: &str) -> Result<Option<u64>, ()> {
        let selected = if self.next().is_multiple_of(2) { SELECTED } else { "no" };
        let metadata = json!({"name": name, "labels": {"watched": selected}});
        let object = json!({"metadata": metadata, "data": {"number": self.next().to_string()}});
        let path = config_maps().name(name);
        let mut answer = self.client.patch::<_, Value>(&path, PatchKind::Merge, &object).await;
        if answer.as_ref().is_err_and(client::ClientError::is_not_found) {
            answer = self.client.create::<_, Value>(&config_maps(), &object).await;
        }
        answer.map(|object| Some(watcher::revision(&object))).map_err(drop)
    }

    /// The answer to a deletion names no revision.
    async fn remove(&mut self, name: &str) -> Result<Option<u64>, ()> {
        let path = config_maps().name(name);
        match self.client.delete(&path, &DeleteOptions::default()).await {
            Ok(_) => Ok(None),
            Err(error) if error.is_not_found() => Ok(None),
            Err(_) => Err(()),
        }
    }

    fn next(&mut self) -> u64 {
        self.chance = self
            .chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.chance >> 33
    }
}
