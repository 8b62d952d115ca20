//! The embedded API server: how soon it serves, what 10,000 objects take, how many durable writes a
//! second, and how soon watchers hear of them (goals G17 and G18), with `etcd-server` as the peer of
//! the writes. The server is a process of its own. Run it with `./x bench api`.

mod etcd;
mod figures;
mod server;

use std::path::Path;
use std::time::{Duration, Instant};

use client::{Client, WatchEvent, WatchSpec};
use figures::{Samples, micros};
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use server::{Scratch, Server, collection};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Rounds of starts and of writes, ours and the peer's in turns.
const ROUNDS: usize = 5;
/// Clients that write at once.
const WRITERS: usize = 64;
/// How long they write in one round.
const WRITING: Duration = Duration::from_secs(2);
/// Objects of the memory's row.
const OBJECTS: usize = 10_000;
/// Text in each object, so that it is about a kilobyte, and of each value of the peer.
const TEXT_BYTES: usize = 600;
/// Watchers of the last two rows, and writes that each of them hears of.
const WATCHERS: [(usize, usize); 2] = [(20, 400), (1_000, 100)];
/// Segments of a connection that the kernel acknowledges one by one, at its beginning and when it was
/// idle (`TCP_MAX_QUICKACKS` of `net/ipv4/tcp_input.c`). On loopback the acknowledgement is worked off
/// within the server's call that sends, and nearly doubles what an event costs.
const ACKNOWLEDGED_AT_ONCE: usize = 16;
/// What the names of their objects begin with.
const EVENT: &str = "event-";
/// Longest wait for a watcher's event.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    if server::is_the_server() {
        return server::be_the_server();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let scratch = Scratch::new();
        // One part alone, by its name: to compare two programs in turns.
        let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
        let is_wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
        if is_wanted("starts") {
            starts(&scratch.0).await;
        }
        if is_wanted("writes") {
            writes(&scratch.0).await;
        }
        if is_wanted("memory") {
            memory(&scratch.0).await;
        }
        for (watchers, writes) in WATCHERS {
            if is_wanted(&format!("watch{watchers}")) {
                deliveries(&scratch.0, watchers, writes).await;
            }
        }
    });
}

/// From exec to the first list that is answered, on an empty store.
async fn starts(directory: &Path) {
    let mut samples = Samples::default();
    for round in 0..ROUNDS {
        let started = Instant::now();
        let server = Server::start(&directory.join(format!("start{round}"))).await;
        samples.add(started.elapsed().as_secs_f64() * 1e3);
        drop(server);
    }
    figures::heading("the API server", "min", "median", "max");
    samples.row("exec to the first list, ms (goal G17: 100)");
}

/// Durable creates a second, and what one costs the server.
async fn writes(directory: &Path) {
    let ours = Server::start(&directory.join("writes")).await;
    let peer = etcd::Etcd::start(&directory.join("etcd")).await;
    let mut rows: Vec<(String, Samples)> = Vec::new();
    let mut add = |label: String, value: f64| match rows.iter_mut().find(|row| row.0 == label) {
        Some(row) => row.1.add(value),
        None => rows.push((label, Samples::of(value))),
    };
    for round in 0..ROUNDS {
        add("fdatasync of 1 kB, µs".to_owned(), micros(server::sync_time(directory)));
        for writers in [WRITERS, 1] {
            let before = server::processor_ns(ours.id());
            let made = create_for(&ours.client, writers, &format!("r{round}w{writers}")).await;
            let spent = server::processor_ns(ours.id()) - before;
            let before = server::processor_ns(peer.id());
            let put = peer.put_for(writers, WRITING, TEXT_BYTES).await;
            let spent_by_peer = server::processor_ns(peer.id()) - before;
            let seconds = WRITING.as_secs_f64();
            let (made, put) = (made as f64, put as f64);
            add(format!("creates a second, {writers} clients"), made / seconds);
            add(format!("etcd: puts a second, {writers} clients"), put / seconds);
            add(format!("creates to etcd's puts, {writers} clients"), made / put);
            add(format!("processor a create, µs, {writers} clients"), spent as f64 / made / 1e3);
            add(format!("etcd: a put, µs, {writers} clients"), spent_by_peer as f64 / put / 1e3);
        }
    }
    figures::heading("durable writes (goal G18: 5,000 a second)", "min", "median", "max");
    for (label, samples) in rows {
        samples.row(&label);
    }
}

/// Creates ConfigMaps from some clients at once; answers how many.
async fn create_for(client: &Client, writers: usize, prefix: &str) -> usize {
    let until = Instant::now() + WRITING;
    let mut tasks = JoinSet::new();
    for writer in 0..writers {
        let (client, prefix) = (client.clone(), prefix.to_owned());
        tasks.spawn(async move {
            let mut made = 0;
            while Instant::now() < until {
                create(&client, &format!("{prefix}-{writer}-{made}")).await;
                made += 1;
            }
            made
        });
    }
    tasks.join_all().await.into_iter().sum()
}

/// Creates one ConfigMap and reads the answer to its end.
async fn create(client: &Client, name: &str) {
    let body = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
        "data": {"text": "x".repeat(TEXT_BYTES)},
    });
    let _: Value = client.create(&collection(), &body).await.expect("a ConfigMap is created");
}

/// What the server takes with 10,000 objects, as they came and after a restart, and the peer with as
/// many keys.
async fn memory(directory: &Path) {
    let place = directory.join("memory");
    let server = Server::start(&place).await;
    let empty = server.settled_memory().await;
    let mut tasks = JoinSet::new();
    for writer in 0..WRITERS {
        let client = server.client.clone();
        tasks.spawn(async move {
            for number in (writer..OBJECTS).step_by(WRITERS) {
                create(&client, &format!("object-{number}")).await;
            }
        });
    }
    tasks.join_all().await;
    let full = server.settled_memory().await;
    let (mut lists, mut restarts) = (Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        lists.add(list_time(&server.client).await);
    }
    let after_list = server.settled_memory().await;
    drop(server);
    let mut after_restart = None;
    for round in 1..=ROUNDS {
        let started = Instant::now();
        let server = Server::start(&place).await;
        restarts.add(started.elapsed().as_secs_f64() * 1e3);
        assert!(list_bytes(&server.client).await > OBJECTS * TEXT_BYTES, "all are there");
        if round == ROUNDS {
            after_restart = Some(server.settled_memory().await);
        }
    }
    figures::heading("memory, MB (goal G17: 60 resident)", "resident", "PSS", "");
    empty.row("no objects");
    full.row("10,000 objects");
    after_list.row("and after lists of all of them");
    after_restart.expect("it was read").row("after a restart");
    memory_of_peer(&directory.join("etcd-memory")).await;
    figures::heading("with 10,000 objects, ms", "min", "median", "max");
    lists.row("a list of all");
    restarts.row("exec to the first list (goal G17: 100)");
}

/// The peer with as many keys and values as the server had objects; the real API server comes on
/// top of it.
async fn memory_of_peer(directory: &Path) {
    let peer = etcd::Etcd::start(directory).await;
    peer.put_all(WRITERS, OBJECTS, TEXT_BYTES).await;
    server::settled_memory(peer.id()).await.row("etcd with 10,000 keys");
}

/// Milliseconds of a list of everything, read to the end.
async fn list_time(client: &Client) -> f64 {
    let started = Instant::now();
    assert!(list_bytes(client).await > OBJECTS * TEXT_BYTES);
    started.elapsed().as_secs_f64() * 1e3
}

/// Bytes of a list of everything.
async fn list_bytes(client: &Client) -> usize {
    let path = collection().to_string();
    let answer = client.raw(Method::GET, &path, None, Bytes::new()).await.expect("a list");
    assert_eq!(answer.status(), StatusCode::OK);
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.expect("a whole list");
    body.to_bytes().len()
}

/// What the watchers read of an object: no more, since all of them share one processor here.
#[derive(Deserialize)]
struct Named {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

/// How long after a write was sent, and after it was answered, each watcher has it.
async fn deliveries(directory: &Path, watchers: usize, writes: usize) {
    let server = Server::start(&directory.join(format!("watch{watchers}"))).await;
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    for _ in 0..watchers {
        let mut watcher = server.client.watch::<Named>(WatchSpec::new(collection()));
        let heard = heard.clone();
        tasks.spawn(async move {
            loop {
                let event = watcher.next().await;
                let at = Instant::now();
                let name = match &event {
                    WatchEvent::Listed(_) => Some(String::new()),
                    WatchEvent::Applied(object) => Some(object.metadata.name.clone()),
                    _ => None,
                };
                // The controllers write there too.
                if let Some(name) = name.filter(|name| name.is_empty() || name.starts_with(EVENT))
                    && heard.send((name, at)).is_err()
                {
                    return;
                }
            }
        });
    }
    let mut next = async || {
        tokio::time::timeout(PATIENCE, hearing.recv()).await.expect("in time").expect("a watcher")
    };
    for _ in 0..watchers {
        assert_eq!(next().await.0, "", "each watcher lists first");
    }
    let (mut sent_to_event, mut answer_to_event) = (Samples::default(), Samples::default());
    let mut sent_to_later_event = Samples::default();
    let before = server::processor_ns(server.id());
    for number in 0..writes {
        let name = format!("{EVENT}{number}");
        let sent = Instant::now();
        create(&server.client, &name).await;
        let answered = Instant::now();
        let mut left = watchers;
        while left > 0 {
            let (which, at) = next().await;
            assert_eq!(which, name, "events come in order");
            sent_to_event.add(micros(at - sent));
            if number >= ACKNOWLEDGED_AT_ONCE {
                sent_to_later_event.add(micros(at - sent));
            }
            answer_to_event.add(micros(at.saturating_duration_since(answered)));
            left -= 1;
        }
    }
    let spent = server::processor_ns(server.id()) - before;
    let title = format!("{watchers} watchers, µs");
    figures::heading(&title, "median", "p99", "max");
    sent_to_event.tail_row("from the write's sending to its event");
    sent_to_later_event.tail_row("  from the seventeenth write on");
    answer_to_event.tail_row("from the write's answer to its event");
    let events = (watchers * writes) as f64;
    println!("processor an event and watcher: {:.1} µs", spent as f64 / events / 1e3);
}
