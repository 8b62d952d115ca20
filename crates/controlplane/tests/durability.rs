//! `kill -9` in the midst of writes: every acknowledged one is there afterwards.
//!
//! Started with `serve DIRECTORY`, this program is the server that the test kills.

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use client::{Client, List, ListOptions, ResourcePath};
use serde_json::{Value, json};
use support::{Scratch, start, write_kubeconfig};

/// How often the server is killed.
const ROUNDS: usize = 5;
/// Clients that write at once.
const WRITERS: usize = 8;
/// Acknowledged writes after which the server is killed.
const WRITES_BEFORE_KILL: usize = 150;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    match arguments.as_slice() {
        [_, verb, directory] if verb == "serve" => runtime.block_on(serve(Path::new(directory))),
        // cargo asks test programs what they hold.
        [_, rest @ ..] if rest.iter().any(|argument| argument == "--list") => {
            println!("acknowledged_writes_survive_kill_9: test");
        }
        _ => {
            runtime.block_on(acknowledged_writes_survive_kill_9());
            println!("test acknowledged_writes_survive_kill_9 ... ok");
        }
    }
}

/// Serves until it is killed; tells its port on standard output.
async fn serve(directory: &Path) {
    let server = start(directory, 0).await;
    println!("{}", server.address.port());
    std::io::stdout().flush().expect("the parent listens");
    std::future::pending::<()>().await;
}

struct Server(Child);

impl Server {
    /// Starts the server in a process of its own, and gives its port.
    fn start(directory: &Path) -> (Self, u16) {
        let mut child = Command::new(std::env::current_exe().expect("a name"))
            .arg("serve")
            .arg(directory)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        let output = child.stdout.take().expect("a pipe");
        let server = Self(child);
        BufReader::new(output).read_line(&mut line).expect("a line");
        (server, line.trim().parse().expect("the server tells its port"))
    }

    fn kill(mut self) {
        self.0.kill().expect("SIGKILL");
        self.0.wait().expect("it ends");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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
        let (server, port) = Server::start(&scratch.0);
        let kubeconfig = write_kubeconfig(&scratch.0, &pki, port);
        let client = Client::from_kubeconfig(&kubeconfig).await.expect("a client");
        newest = check(&client, &acknowledged, newest).await;
        acknowledged.extend(write_until_killed(&client, server, round).await);
    }
    let (_server, port) = Server::start(&scratch.0);
    let kubeconfig = write_kubeconfig(&scratch.0, &pki, port);
    let client = Client::from_kubeconfig(&kubeconfig).await.expect("a client");
    check(&client, &acknowledged, newest).await;
    assert!(acknowledged.len() >= ROUNDS * WRITES_BEFORE_KILL);
}

/// Writes from several clients, kills the server in the midst of it, and gives what was
/// acknowledged.
async fn write_until_killed(client: &Client, server: Server, round: usize) -> Vec<(String, u64)> {
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
