//! Ten thousand objects: watchers over `kill -9` in the midst of their making, and a list in
//! pages that shows one revision while objects change and the server is killed.

use client::{Client, ClientError, DeleteOptions, ListOptions, PatchKind};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::checker::Snapshot;
use crate::support::within;
use crate::watcher::{self, Mode, SELECTED};
use crate::{AWAY, Site, config_maps, judge};

/// Objects that are made.
const OBJECTS: usize = 10_000;
/// Objects after which all watchers are waited for: fewer than the server keeps for who lags behind.
const ROUND: usize = 500;
/// The rounds in whose midst the server is killed.
const KILLED_ROUNDS: [usize; 3] = [4, 9, 15];
/// Clients that make objects at once.
const CREATORS: usize = 16;
/// Objects of a page.
const PAGE: u32 = 500;
/// The page after which the server is killed.
const KILLED_PAGE: usize = 8;
const MODES: [Mode; 3] = [
    Mode { selects: true, ..Mode::PLAIN },
    Mode { leaves_after: 1_499, ..Mode::PLAIN },
    Mode { leaves_after: 701, selects: true, streams_list: true, ..Mode::PLAIN },
];

pub async fn are_watched_and_listed_over_kills() {
    let mut site = Site::start("many").await;
    let mut watchers = site.watch(&MODES).await;
    let mut acknowledged = Vec::new();
    for round in 0..OBJECTS / ROUND {
        acknowledged.extend(site.make_round(round, KILLED_ROUNDS.contains(&round)).await);
        let newest = acknowledged.iter().map(|write| write.1).max().expect("a write");
        watchers.reach(newest).await;
    }
    site.create_last().await;
    let watched = within("the watchers", watchers.tasks.join_all()).await;
    judge(&site.client, &watched, &acknowledged).await;
    let all = watched.iter().find(|one| !one.mode.selects).expect("one sees everything");
    let state = all.histories[0].replay().expect("checked");
    assert_eq!(state.len(), OBJECTS + 1);
    site.list_in_pages(&state).await;
}

impl Site {
    /// Makes the objects of a round, the last one when all others are there; with a kill when half
    /// of them are.
    async fn make_round(&mut self, round: usize, kills: bool) -> Vec<(String, u64)> {
        let (told, mut hears) = mpsc::unbounded_channel();
        let mut creators = JoinSet::new();
        for creator in 0..CREATORS {
            let (client, told) = (self.client.clone(), told.clone());
            creators.spawn(async move {
                for number in (creator..ROUND - 1).step_by(CREATORS) {
                    let made = create(&client, round, number).await;
                    told.send(made).expect("the round is waited for");
                }
            });
        }
        drop(told);
        let mut made = Vec::new();
        while let Some(write) = within("a write", hears.recv()).await {
            made.push(write);
            if kills && made.len() == ROUND / 2 {
                self.kill_and_start();
            }
        }
        within("the creators", creators.join_all()).await;
        // Every watcher sees it, whatever it selects.
        made.push(within("a write", create(&self.client, round, ROUND - 1)).await);
        assert_eq!(made.len(), ROUND);
        made
    }

    /// Lists page by page what is there, while some of it changes between the pages.
    async fn list_in_pages(&mut self, state: &Snapshot) {
        let last = state.keys().next_back().expect("an object").clone();
        let mut left = state.keys().rev().skip(1).cloned();
        let (mut seen, mut revisions) = (Snapshot::new(), Vec::new());
        let mut options = ListOptions { limit: PAGE, ..ListOptions::default() };
        for page in 0.. {
            let list = async || self.client.list::<Value>(&config_maps(), &options).await;
            let list = reached(list).await;
            revisions.push(list.metadata.resource_version.clone());
            for object in &list.items {
                let shown = watcher::snapshot(object);
                assert!(seen.insert(shown.0.clone(), shown.1).is_none(), "{} twice", shown.0);
            }
            options.continue_token = list.metadata.continue_token;
            if options.continue_token.is_empty() {
                break;
            }
            if page == KILLED_PAGE {
                self.kill_and_start();
            }
            let gone = left.next().expect("enough objects");
            self.change_what_later_pages_show(page, &gone, &last).await;
        }
        assert_eq!(revisions.len(), (OBJECTS + 1).div_ceil(PAGE as usize));
        revisions.dedup();
        assert_eq!(revisions.len(), 1, "all pages are of one revision");
        assert!(seen == *state, "the pages show what was there at the first");
        let now = watcher::list(&self.client, false).await.expect("a list").listed;
        assert!(now != *state, "meanwhile it has changed");
    }

    async fn change_what_later_pages_show(&self, page: usize, gone: &str, changed: &str) {
        let client = &self.client;
        let path = config_maps().name(gone);
        reached(async || client.delete(&path, &DeleteOptions::default()).await).await;
        let patch = json!({"data": {"page": page.to_string()}});
        let path = config_maps().name(changed);
        reached(async || client.patch::<_, Value>(&path, PatchKind::Merge, &patch).await).await;
        let new = json!({"metadata": {"name": format!("zzz-new-{page}")}});
        reached(async || client.create::<_, Value>(&config_maps(), &new).await).await;
    }
}

/// The answer of a server that was killed while nobody asked it: the client's connection may be to
/// the one before.
async fn reached<T>(ask: impl AsyncFn() -> Result<T, ClientError>) -> T {
    loop {
        match within("an answer", ask()).await {
            Err(error) if error.is_transport() => tokio::time::sleep(AWAY).await,
            answer => return answer.expect("an answer"),
        }
    }
}

/// Makes an object, however often the server is away meanwhile: its name and revision.
async fn create(client: &Client, round: usize, number: usize) -> (String, u64) {
    let name = format!("round{round:02}-{number:04}");
    let is_selected = number == ROUND - 1 || number.is_multiple_of(3);
    let labels = json!({"watched": if is_selected { SELECTED } else { "no" }});
    let object = json!({"metadata": {"name": name, "labels": labels}, "data": {"a": "1"}});
    loop {
        let mut made = client.create::<_, Value>(&config_maps(), &object).await;
        // The answer was lost with the server.
        if made.as_ref().is_err_and(client::ClientError::is_already_exists) {
            made = client.get(&config_maps().name(name.as_str())).await;
        }
        match made {
            Ok(object) => return (name, watcher::revision(&object)),
            Err(_) => tokio::time::sleep(AWAY).await,
        }
    }
}
