//! `kill -9` in the midst of writes: every acknowledged one is there afterwards.
//!
//! Started with `serve DIRECTORY PORT`, this program is the server that the test kills.

#[path = "support/process.rs"]
mod process;
mod support;

use std::collections::BTreeMap;

use client::{Client, List, ListOptions, ResourcePath};
use process::ServerProcess;
use serde_json::{Value, json};
use support::{Scratch, write_kubeconfig};

/// How often the server is killed.
const ROUNDS: usize = 5;
/// Clients that write at once.
const WRITERS: usize = 8;
/// Acknowledged writes after which the server is killed.
const WRITES_BEFORE_KILL: usize = 150;

fn main() {
    process::main(&[("acknowledged_writes_survive_kill_9", || {
        process::block_on(acknowledged_writes_survive_kill_9());
    })]);
}

fn config_maps() -> ResourcePath {
    ResourcePath::new("v1", "configmaps").namespace("default")
}

async fn acknowledged_writes_survive_kill_9() {
    let scratch = Scratch::new("kill");
    let pki = support::make_pki(&scratch.0);
    let mut acknowledged: BTreeMap<String, u64> = BTreeMap::new();
    let mut newest = 0;
    for round in 0..ROUNDS {
        let (server, port) = ServerProcess::start(&scratch.0, 0);
        let kubeconfig = write_kubeconfig(&scratch.0, &pki, port);
        let client = Client::from_kubeconfig(&kubeconfig).await.expect("a client");
        newest = check(&client, &acknowledged, newest).await;
        acknowledged.extend(write_until_killed(&client, server, round).await);
    }
    let (_server, port) = ServerProcess::start(&scratch.0, 0);
    let kubeconfig = write_kubeconfig(&scratch.0, &pki, port);
    let client = Client::from_kubeconfig(&kubeconfig).await.expect("a client");
    check(&client, &acknowledged, newest).await;
    assert!(acknowledged.len() >= ROUNDS * WRITES_BEFORE_KILL);
}

/// Writes from several clients, kills the server in the midst of it, and gives what was
/// acknowledged.
async fn write_until_killed(
    client: &Client,
    server: ServerProcess,
    round: usize,
) -> Vec<(String, u64)> {
    let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
    for writer in 0..WRITERS {
        let (client, told) = (client.clone(), told.clone());
        tokio::spawn(async move {
            for number in 0.. {
                let name = format!("r{round}-w{writer}-{number}");
                let object = json!({"metadata": {"name": name}, "data": {"a": "1"}});
                let made = client.create::<_, Value>(&config_maps(), &object).await;
                let Ok(made) = made else { break };
                if told.send((name, version(&made))).is_err() {
                    break;
                }
            }
        });
    }
    drop(told);
    let mut acknowledged = Vec::new();
    let mut server = Some(server);
    while let Some(write) = support::within("a write", hears.recv()).await {
        acknowledged.push(write);
        if acknowledged.len() >= WRITES_BEFORE_KILL
            && let Some(server) = server.take()
        {
            server.kill();
        }
    }
    acknowledged
}

/// Every acknowledged object is there with its revision, and no revision was given twice.
async fn check(client: &Client, acknowledged: &BTreeMap<String, u64>, newest: u64) -> u64 {
    let listed: List<Value> =
        client.list(&config_maps(), &ListOptions::default()).await.expect("a list");
    let stored: BTreeMap<String, u64> = listed
        .items
        .iter()
        .map(|object| {
            let name = object["metadata"]["name"].as_str().expect("a name");
            (name.to_owned(), version(object))
        })
        .collect();
    for (name, revision) in acknowledged {
        assert_eq!(stored.get(name), Some(revision), "{name} was acknowledged");
    }
    let mut revisions: Vec<u64> = stored.values().copied().collect();
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), stored.len(), "a revision was given twice");
    let now: u64 = listed.metadata.resource_version.parse().expect("a revision");
    assert!(now >= newest && now >= revisions.last().copied().unwrap_or(0));
    now
}

fn version(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str().expect("a version");
    text.parse().expect("a number")
}
