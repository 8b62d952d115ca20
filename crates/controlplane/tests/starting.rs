//! What can be wrong at the start, and what the person at the keyboard is told.

mod support;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;

use client::{ListOptions, ResourcePath};
use controlplane::{ControlPlane, Options, STORE_FILE, StartError};
use serde_json::{Value, json};
use support::{LOOPBACK, Scratch, config, make_pki, start};

fn options(scratch: &Scratch, port: u16) -> Options {
    let listen = vec![SocketAddr::new(LOOPBACK, port)];
    let advertised = "172.30.0.1:6443".parse().expect("an address");
    Options::new(scratch.0.clone(), config(), listen, advertised)
}

async fn refused(scratch: &Scratch, port: u16) -> StartError {
    match ControlPlane::start(options(scratch, port)).await {
        Ok(_) => panic!("it starts"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn a_second_control_plane_of_the_same_cluster_is_refused() {
    let scratch = Scratch::new("second");
    let server = start(&scratch.0, 0).await;
    let error = refused(&scratch, 0).await.to_string();
    assert!(error.contains("another control plane of this cluster runs"), "{error}");
    server.running.stop().await;
}

#[tokio::test]
async fn a_busy_port_is_named() {
    let scratch = Scratch::new("busy");
    make_pki(&scratch.0);
    let taken = std::net::TcpListener::bind((LOOPBACK, 0)).expect("a port");
    let address = taken.local_addr().expect("an address");
    let error = refused(&scratch, address.port()).await.to_string();
    assert!(error.contains(&address.to_string()) && error.contains("ss -ltnp"), "{error}");
    let store = scratch.0.join(STORE_FILE);
    assert!(!store.exists(), "nothing half made is left behind");
}

#[tokio::test]
async fn a_damaged_store_is_named_and_left_alone() {
    let scratch = Scratch::new("damaged");
    make_pki(&scratch.0);
    let store = scratch.0.join(STORE_FILE);
    let rubbish = vec![b'x'; 100_000];
    std::fs::write(&store, &rubbish).expect("written");
    let error = refused(&scratch, 0).await.to_string();
    assert!(error.contains(STORE_FILE) && error.contains("is damaged"), "{error}");
    assert!(error.contains("restore it from a copy"), "{error}");
    assert_eq!(std::fs::read(&store).expect("a file"), rubbish);
}

#[tokio::test]
async fn flipped_bytes_never_become_objects() {
    let scratch = Scratch::new("flipped");
    let server = start(&scratch.0, 0).await;
    let maps = ResourcePath::new("v1", "configmaps").namespace("default");
    let object = json!({"metadata": {"name": "marked"}, "data": {"mark": "MARKMARKMARK"}});
    let _: Value = server.client.create(&maps, &object).await.expect("created");
    server.running.stop().await;
    let store = scratch.0.join(STORE_FILE);
    let mut bytes = std::fs::read(&store).expect("a file");
    let mut flipped = 0;
    for at in 0..bytes.len().saturating_sub(12) {
        if &bytes[at..at + 12] == b"MARKMARKMARK" {
            // A quote ends the text early: no longer JSON.
            bytes[at + 3] = b'"';
            flipped += 1;
        }
    }
    assert!(flipped > 0, "the object is on disk");
    std::fs::write(&store, &bytes).expect("written");
    let error = refused(&scratch, 0).await.to_string();
    assert!(error.contains(STORE_FILE), "{error}");
}

#[tokio::test]
async fn missing_certificates_are_named() {
    let scratch = Scratch::new("no-pki");
    let error = refused(&scratch, 0).await.to_string();
    assert!(error.contains("ca.crt"), "{error}");
}

#[tokio::test]
async fn the_store_is_roots_alone_and_survives_a_restart() {
    let scratch = Scratch::new("modes");
    let server = start(&scratch.0, 0).await;
    let maps = ResourcePath::new("v1", "configmaps").namespace("default");
    let object = json!({"metadata": {"name": "kept"}, "data": {"a": "1"}});
    let made: Value = server.client.create(&maps, &object).await.expect("created");
    server.running.stop().await;
    let mode = std::fs::metadata(scratch.0.join(STORE_FILE)).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let server = start(&scratch.0, 0).await;
    let found: Value = server.client.get(&maps.clone().name("kept")).await.expect("it is there");
    assert_eq!(found, made);
    let before = server.client.list::<Value>(&maps, &ListOptions::default()).await;
    let before = before.expect("a list").metadata.resource_version;
    server.running.stop().await;
    // Invariant 14: a start with nothing changed writes nothing.
    let server = start(&scratch.0, 0).await;
    let after = server.client.list::<Value>(&maps, &ListOptions::default()).await;
    assert_eq!(after.expect("a list").metadata.resource_version, before);
    server.running.stop().await;
}

/// Controllers list everything first, from the thread that serves clients.
#[tokio::test]
async fn requests_of_the_control_plane_itself_leave_room_for_others() {
    const REQUESTS: usize = 20;
    let scratch = Scratch::new("room");
    let server = start(&scratch.0, 0).await;
    let (turns, seen) = tokio::sync::watch::channel(0);
    let other = tokio::spawn(async move {
        loop {
            turns.send_modify(|turns| *turns += 1);
            tokio::task::yield_now().await;
        }
    });
    let client = server.running.client();
    let maps = ResourcePath::new("v1", "configmaps");
    for _ in 0..REQUESTS {
        let list = client.list::<Value>(&maps, &ListOptions::default()).await;
        list.expect("a list");
    }
    assert!(*seen.borrow() >= REQUESTS, "{} turns in {REQUESTS} requests", *seen.borrow());
    other.abort();
    drop(client);
    server.running.stop().await;
}
