//! Laws of revisions: whatever is written, in whatever order, every watch from every revision
//! tells how its selection became what it is, and the log alone rebuilds the store.

mod common;

use std::collections::BTreeMap;

use common::{Api, named, request, row};
use model::ClusterConfig;
use proptest::prelude::*;
use serde_json::{Value, json};
use store::selector::{FieldSelector, LabelSelector};
use store::{
    Action, DeleteOptions, ListOptions, PatchKind, Record, Store, StoreConfig, WATCH_WINDOW_EVENTS,
    WatchEvent, WatchOptions, record,
};

#[derive(Clone, Debug)]
enum Step {
    Create(usize),
    Label(usize, usize),
    Delete(usize),
    Publish,
    /// The shell could not make the batch durable.
    Discard,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..5_usize).prop_map(Step::Create),
        6 => (0..5_usize, 0..3_usize).prop_map(|(object, tier)| Step::Label(object, tier)),
        3 => (0..5_usize).prop_map(Step::Delete),
        4 => Just(Step::Publish),
        1 => Just(Step::Discard),
    ];
    // Long enough for records that the window keeps as text.
    proptest::collection::vec(step, 1..150)
}

/// Runs the steps; gives the store and the log as the shell would have kept it.
fn run(steps: &[Step]) -> (Api, Vec<Record>) {
    let mut api = Api::new();
    let mut durable: Vec<Record> = std::mem::take(&mut api.log);
    let mut batch = Vec::new();
    let resource = row("configmaps");
    for step in steps {
        let action = |name: String, action| request(resource, "default", &name, None, action);
        let request = match step {
            Step::Create(object) => {
                let mut body = named(resource, &format!("c{object}"));
                body["metadata"]["labels"] = json!({"tier": "0"});
                request(resource, "default", "", None, Action::Create(body))
            }
            Step::Label(object, tier) => {
                let body = json!({"metadata": {"labels": {"tier": tier.to_string()}}});
                action(format!("c{object}"), Action::Patch(PatchKind::Merge, body))
            }
            Step::Delete(object) => {
                action(format!("c{object}"), Action::Delete(DeleteOptions::default()))
            }
            Step::Publish => {
                api.store.publish();
                durable.append(&mut batch);
                continue;
            }
            Step::Discard => {
                api.store.discard();
                batch.clear();
                continue;
            }
        };
        if let Ok(staged) = api.stage(&request) {
            batch.extend(staged.records);
        }
    }
    api.store.publish();
    durable.append(&mut batch);
    (api, durable)
}

fn listed(store: &Store, labels: &str, revision: Option<u64>) -> BTreeMap<String, Value> {
    let options = ListOptions {
        labels: LabelSelector::parse(labels).expect("a selector"),
        resource_version: revision.map(|revision| revision.to_string()).unwrap_or_default(),
        resource_version_match: revision.map(|_| "Exact".to_owned()).unwrap_or_default(),
        ..ListOptions::default()
    };
    let list = store.list(row("configmaps"), &options).expect("a list");
    list.items.iter().map(|object| (object.key.to_string(), object.value.clone())).collect()
}

fn watched(
    store: &Store,
    labels: &str,
    from: u64,
    limit: usize,
) -> Vec<(String, String, Value, u64)> {
    let options = WatchOptions {
        labels: LabelSelector::parse(labels).expect("a selector"),
        fields: FieldSelector::default(),
        resource_version: from.to_string(),
        ..WatchOptions::default()
    };
    let mut watcher = store.watch(row("configmaps"), options).expect("a watch");
    let mut events = Vec::new();
    // Bounded: each call looks at `limit` records of a short history.
    for _ in 0..200 {
        for event in store.watch_next(&mut watcher, limit).expect("in the window") {
            let WatchEvent::Object(kind, object) = event else { panic!("a bookmark") };
            let stated = object.value["metadata"]["resourceVersion"].as_str().expect("a version");
            let stated = stated.parse().expect("a number");
            let name = object.key.to_string();
            events.push((kind.as_str().to_owned(), name, object.value.clone(), stated));
        }
    }
    events
}

/// Plays events over a state, refusing those that make no sense.
fn play(
    mut state: BTreeMap<String, Value>,
    events: &[(String, String, Value, u64)],
    from: u64,
) -> BTreeMap<String, Value> {
    let mut last = from;
    for (kind, name, value, revision) in events {
        assert!(*revision > last, "revisions rise: {revision} after {last}");
        last = *revision;
        match kind.as_str() {
            "ADDED" => assert!(state.insert(name.clone(), value.clone()).is_none(), "{name} twice"),
            "MODIFIED" => assert!(state.insert(name.clone(), value.clone()).is_some(), "{name}"),
            "DELETED" => assert!(state.remove(name).is_some(), "{name} was not there"),
            other => panic!("{other}"),
        }
    }
    state
}

/// From every revision and for every selection: the state of then, and the events since, make the
/// state of now.
fn check_every_watch(api: &Api, limit: usize) {
    for labels in ["", "tier=1", "tier!=1", "tier in (0,2)"] {
        let now = listed(&api.store, labels, None);
        for from in 1..=api.store.revision() {
            let then = listed(&api.store, labels, Some(from));
            let events = watched(&api.store, labels, from, limit);
            assert_eq!(play(then, &events, from), now, "{labels} from {from}");
        }
    }
}

#[test]
fn late_watchers_see_the_same_as_early_ones() {
    // Many more records than the window keeps parsed.
    let mut steps: Vec<Step> = (0..3).map(Step::Create).collect();
    for round in 0..60 {
        steps.push(Step::Label(round % 3, (round / 3 + round) % 3));
        if round % 7 == 0 {
            steps.push(Step::Delete(round % 3));
            steps.push(Step::Create(round % 3));
        }
    }
    let (api, durable) = run(&steps);
    assert!(durable.len() > 60, "{}", durable.len());
    check_every_watch(&api, 50);
}

#[test]
fn a_selected_page_does_not_say_how_much_remains() {
    let mut api = Api::new();
    for name in ["a", "b", "c"] {
        api.create("configmaps", "default", named(row("configmaps"), name)).expect("created");
    }
    let mut options = ListOptions { limit: 1, ..ListOptions::default() };
    let page = api.store.list(row("configmaps"), &options).expect("a page");
    assert_eq!((page.remaining, page.continue_token.is_some()), (Some(2), true));
    options.labels = LabelSelector::parse("!tier").expect("a selector");
    let page = api.store.list(row("configmaps"), &options).expect("a page");
    assert_eq!((page.remaining, page.continue_token.is_some()), (None, true));
    for (token, version) in [("garbage", ""), (page.continue_token.as_deref().unwrap_or(""), "7")] {
        options.continue_token = token.to_owned();
        options.resource_version = version.to_owned();
        assert_eq!(api.store.list(row("configmaps"), &options).expect_err("refused").code, 400);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn every_watch_tells_each_change_once_and_in_order(steps in steps(), limit in 1..9_usize) {
        let (api, durable) = run(&steps);
        check_every_watch(&api, limit);
        // Without a selector the events are the log itself.
        let events = watched(&api.store, "", 1, limit);
        let revisions: Vec<u64> = events.iter().map(|event| event.3).collect();
        let logged: Vec<u64> = durable
            .iter()
            .filter(|record| record.resource().plural == "configmaps")
            .map(|record| record.revision)
            .collect();
        prop_assert_eq!(revisions, logged);
    }

    #[test]
    fn the_durable_rows_rebuild_the_same_store(steps in steps()) {
        let (api, durable) = run(&steps);
        let mut objects: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut log = Vec::new();
        for record in &durable {
            match record.object_bytes() {
                Some(bytes) => objects.insert(record.object_key(), bytes.to_vec()),
                None => objects.remove(&record.object_key()),
            };
            log.push(Record::from_bytes(&store::Definitions::default(), record.revision, &record.to_bytes()).expect("read back"));
        }
        let objects: Vec<store::Object> = objects
            .iter()
            .map(|(key, bytes)| record::object_from_bytes(&store::Definitions::default(), key, bytes).expect("read back"))
            .collect();
        let config = StoreConfig::from(&ClusterConfig::default());
        let restored = Store::restore(config, store::Definitions::default(), objects, log).expect("restored");
        prop_assert_eq!(restored.revision(), api.store.revision());
        for labels in ["", "tier=1"] {
            prop_assert_eq!(listed(&restored, labels, None), listed(&api.store, labels, None));
            for from in 1..=api.store.revision() {
                prop_assert_eq!(
                    watched(&restored, labels, from, 3),
                    watched(&api.store, labels, from, 3)
                );
            }
        }
    }
}

#[test]
fn a_watch_beyond_the_window_is_told_to_begin_anew() {
    let mut api = Api::new();
    api.create("configmaps", "default", named(row("configmaps"), "c")).expect("created");
    let first = api.store.revision();
    let mut dropped = Vec::new();
    let mut log = std::mem::take(&mut api.log);
    for index in 0..WATCH_WINDOW_EVENTS + 5 {
        let body = json!({"data": {"n": index.to_string()}});
        let action = Action::Patch(PatchKind::Merge, body);
        let staged = api.stage(&request(row("configmaps"), "default", "c", None, action));
        log.extend(staged.expect("staged").records);
        dropped.extend(api.store.publish().dropped);
    }
    assert_eq!(dropped, (first..first + 6).collect::<Vec<u64>>());
    let from = |revision: u64| WatchOptions {
        resource_version: revision.to_string(),
        ..WatchOptions::default()
    };
    let status = api.events(row("configmaps"), from(first)).expect_err("too old");
    assert_eq!((status.code, status.reason), (410, "Expired"));
    assert_eq!(status.message, format!("too old resource version: {first} ({})", first + 5));
    let events = api.events(row("configmaps"), from(first + 5)).expect("just in the window");
    assert_eq!(events.len(), WATCH_WINDOW_EVENTS);
    // Other resources are not touched by it.
    api.events(row("pods"), from(first)).expect("nothing was ever lost there");
    let exact = ListOptions {
        resource_version: first.to_string(),
        resource_version_match: "Exact".to_owned(),
        ..ListOptions::default()
    };
    assert_eq!(api.store.list(row("configmaps"), &exact).expect_err("too old").code, 410);
    // The same after a restart, over the log without what the shell was told to drop.
    let stored = |record: &Record| {
        let (key, bytes) = (record.object_key(), record.object_bytes().expect("it is there"));
        let object = record::object_from_bytes(&store::Definitions::default(), &key, bytes);
        (key, object.expect("read back"))
    };
    let objects: BTreeMap<_, _> = log.iter().map(stored).collect();
    log.retain(|record| !dropped.contains(&record.revision));
    let config = StoreConfig::from(&ClusterConfig::default());
    let restored =
        Store::restore(config, store::Definitions::default(), objects.into_values(), log)
            .expect("restored");
    let api = Api::over(restored);
    assert_eq!(api.events(row("configmaps"), from(first + 4)).expect_err("too old").code, 410);
    let events = api.events(row("configmaps"), from(first + 5)).expect("just in the window");
    assert_eq!(events.len(), WATCH_WINDOW_EVENTS);
    api.events(row("pods"), from(first)).expect("nothing was ever lost there");
}

#[test]
fn objects_are_read_back_in_whatever_order_their_members_stand() {
    let mut api = Api::new();
    let mut object = named(row("configmaps"), "c");
    object["data"] = json!({"a": "1"});
    api.create("configmaps", "default", object).expect("created");
    let record = api.log.last().expect("a record");
    let (key, ours) = (record.object_key(), record.object_bytes().expect("it is there"));
    // As programs before this one wrote it: all members by name.
    let whole: Value = serde_json::from_slice(ours).expect("JSON");
    let theirs = whole.to_string().into_bytes();
    assert_ne!(theirs, ours);
    for bytes in [ours, &theirs] {
        let read = record::object_from_bytes(&store::Definitions::default(), &key, bytes);
        let read = read.expect("read back");
        assert_eq!((read.revision, &read.key), (record.revision, &record.object.key));
        assert_eq!(read.to_value(), whole);
        assert!(read.value.managed_fields().is_some());
    }
}

#[test]
fn watches_begin_with_the_state_when_they_name_no_revision() {
    let mut api = Api::new();
    api.create("configmaps", "default", named(row("configmaps"), "c")).expect("created");
    for revision in ["", "0"] {
        let options =
            WatchOptions { resource_version: revision.to_owned(), ..WatchOptions::default() };
        let events = api.events(row("configmaps"), options).expect("events");
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].0.as_str(), events[0].1.as_str()), ("ADDED", "default/c"));
    }
}

#[test]
fn a_streaming_list_ends_with_its_bookmark_and_later_bookmarks_follow_the_store() {
    let mut api = Api::new();
    api.create("configmaps", "default", named(row("configmaps"), "c")).expect("created");
    let options = WatchOptions {
        send_initial_events: Some(true),
        resource_version_match: "NotOlderThan".to_owned(),
        allow_bookmarks: true,
        ..WatchOptions::default()
    };
    let mut watcher = api.store.watch(row("configmaps"), options).expect("a watch");
    assert!(watcher.bookmark().is_none(), "the state comes first");
    let events = api.store.watch_next(&mut watcher, 10).expect("events");
    let revision = api.store.revision().to_string();
    assert_eq!(
        events.last().map(WatchEvent::to_value),
        Some(json!({"type": "BOOKMARK", "object": {
            "kind": "ConfigMap",
            "apiVersion": "v1",
            "metadata": {
                "resourceVersion": revision,
                "annotations": {"k8s.io/initial-events-end": "true"},
            },
        }}))
    );
    // Writes of other kinds move the bookmark, so that the watch never grows too old.
    api.create("secrets", "default", named(row("secrets"), "s")).expect("created");
    assert!(api.store.watch_next(&mut watcher, 10).expect("nothing").is_empty());
    let bookmark = watcher.bookmark().map(|event| event.to_value()).expect("a bookmark");
    let revision = api.store.revision().to_string();
    assert_eq!(bookmark["object"]["metadata"]["resourceVersion"], revision);
}

#[test]
fn nothing_staged_can_be_read() {
    let mut api = Api::new();
    let before = api.store.revision();
    let body = named(row("configmaps"), "c");
    let create = request(row("configmaps"), "default", "", None, Action::Create(body));
    api.stage(&create).expect("staged");
    assert!(api.get("configmaps", "default", "c").is_err());
    assert_eq!(api.names("configmaps", "", ""), [""; 0]);
    assert_eq!(api.store.revision(), before);
    let published = api.store.publish();
    assert_eq!((published.revision, published.storages), (before + 1, vec!["configmaps"]));
    api.get("configmaps", "default", "c").expect("visible");
}

#[test]
fn damaged_rows_are_named() {
    let error =
        record::object_from_bytes(&store::Definitions::default(), "configmaps/default/c", b"{")
            .expect_err("damaged");
    assert!(error.to_string().contains("configmaps/default/c"), "{error}");
    let error = record::object_from_bytes(
        &store::Definitions::default(),
        "gadgets/default/c",
        b"{\"metadata\":{}}",
    );
    assert!(error.expect_err("unknown").to_string().contains("newer program"));
    assert!(Record::from_bytes(&store::Definitions::default(), 7, b"{}").is_err());
}
