//! The feed: whoever follows it, however late and in whatever pieces, has the publisher's zone.

use std::collections::BTreeSet;
use std::net::IpAddr;

use dns::Index;
use dns::feed::{Change, FeedError, Follower, Frame, News, Plain, Publisher, Reader, Settings};
use ipnet::IpNet;
use model::NamespacedName;
use plan::zone::{Exposed, PodNames, ServiceRecords};
use proptest::prelude::*;
use serde_json::{Value, json};

fn settings() -> Settings {
    Settings { domain: "cluster.local".into(), ..Settings::default() }
}

fn change(service: u8, value: Option<u8>) -> Change {
    let records = value.map(|last| ServiceRecords::ClusterIp {
        addresses: vec![IpAddr::from([10, 96, 0, last])],
        ports: vec![],
    });
    let key = NamespacedName::new(format!("n{}", service % 2), format!("s{service}"));
    Change::of_service(&key, records.as_ref())
}

fn pod(last: u8, namespace: Option<u8>) -> Change {
    let names = namespace
        .map(|number| PodNames { namespaces: vec![format!("n{number}").into()], is_own: true });
    Change::Pod { address: IpAddr::from([10, 244, 0, last]), names }
}

/// All that a zone says, in its order.
fn content(index: &Index) -> Vec<String> {
    index.changes().map(|change| format!("{change:?}")).collect()
}

/// What a reader has after these octets, read in pieces.
fn follow(follower: &mut Follower, index: &mut Option<Index>, octets: &[u8], piece: usize) {
    for piece in octets.chunks(piece) {
        follower.push(piece);
        while let Some(received) = follower.next_frame().expect("a good stream") {
            match (received.news, index.as_mut()) {
                (Some(News::Zone(zone)), _) => *index = Some(*zone),
                (Some(News::Changes { serial, changes, .. }), Some(index)) => {
                    changes.into_iter().for_each(|change| index.apply(change));
                    index.set_serial(serial);
                }
                (Some(News::Changes { .. }), None) => panic!("changes of nothing"),
                (Some(News::Other(_)) | None, _) => {}
            }
        }
    }
}

fn snapshot(publisher: &Publisher) -> Vec<u8> {
    publisher.snapshot().map(|frame| frame.expect("fits")).collect::<Vec<_>>().concat()
}

/// Reads so many frames, or all there are. Whether that were all.
fn read(publisher: &Publisher, reader: &mut Reader, frames: usize) -> (Vec<u8>, bool) {
    let mut octets = vec![];
    for _ in 0..frames {
        match publisher.next_frame(reader) {
            Some(frame) => octets.extend_from_slice(&frame.expect("fits")),
            None => return (octets, true),
        }
    }
    (octets, false)
}

proptest! {
    /// However the reading of a snapshot and the changes of the zone take turns.
    #[test]
    fn a_reader_has_what_was_published(
        at_first in 0u8..200,
        steps in proptest::collection::vec(
            (any::<bool>(), 0u8..200, proptest::option::of(0u8..4), 0usize..4), 0..60),
        piece in 1usize..2000,
    ) {
        let mut publisher = Publisher::new(settings(), 1000);
        publisher.publish((0..at_first).map(|name| change(name, Some(9))), 0).expect("fits");
        publisher.publish((0..at_first).map(|last| pod(last, Some(9))), 0).expect("fits");
        let (mut reader, mut follower, mut index) = (Reader::default(), Follower::default(), None);
        for (is_pod, name, value, frames) in steps {
            let one = if is_pod { pod(name, value) } else { change(name, value) };
            publisher.publish([one.clone()], 5).expect("fits");
            prop_assert!(!publisher.publish([one], 5).expect("fits"), "the same again is no change");
            let (octets, has_all) = read(&publisher, &mut reader, frames);
            follow(&mut follower, &mut index, &octets, piece);
            if has_all {
                let index = index.as_ref().expect("a zone");
                prop_assert_eq!(content(index), content(publisher.index()));
                prop_assert_eq!(u64::from(index.serial()), publisher.sequence());
            }
        }
        let (octets, _) = read(&publisher, &mut reader, usize::MAX);
        follow(&mut follower, &mut index, &octets, piece);
        let mut fresh = None;
        follow(&mut Follower::default(), &mut fresh, &snapshot(&publisher), 64 << 10);
        let index = index.expect("a zone");
        prop_assert_eq!(content(&index), content(publisher.index()));
        prop_assert_eq!(u64::from(index.serial()), publisher.sequence());
        prop_assert_eq!(content(&index), content(&fresh.expect("a zone")));
    }

    #[test]
    fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..300), length in 0u32..300) {
        let mut follower = Follower::default();
        follower.push(&length.to_le_bytes());
        follower.push(&noise);
        for _ in 0..300 {
            if !matches!(follower.next_frame(), Ok(Some(_))) {
                break;
            }
        }
    }
}

/// The kinds of the frames that a reader gets until it has everything.
fn kinds(publisher: &Publisher, reader: &mut Reader) -> Vec<String> {
    let frames = std::iter::from_fn(|| publisher.next_frame(reader));
    let kind = |frame: &[u8]| match serde_json::from_slice(&frame[4..]).expect("JSON") {
        Value::Object(object) => object.into_iter().map(|(kind, _)| kind).collect(),
        other => panic!("{other}"),
    };
    frames.map(|frame| kind(&frame.expect("fits"))).collect()
}

#[test]
fn a_reader_that_is_far_behind_gets_a_snapshot() {
    let mut publisher = Publisher::new(settings(), 1);
    let (mut reader, mut slow) = (Reader::default(), Reader::default());
    assert_eq!(kinds(&publisher, &mut reader), ["Begin", "End"]);
    assert!(publisher.next_frame(&mut slow).is_some(), "it begins, and is slow from then on");
    for number in 0..1100_u32 {
        publisher.publish([change(1, Some(number as u8))], 0).expect("fits");
    }
    for late in [&mut reader, &mut slow] {
        assert_eq!(kinds(&publisher, late), ["Begin", "Part", "End"]);
        assert!(kinds(&publisher, late).is_empty(), "it has everything");
    }
    for number in 0..3 {
        publisher.publish([change(2, Some(number))], 0).expect("fits");
    }
    assert_eq!(kinds(&publisher, &mut reader), ["Delta"; 3]);
    for is_another in [true, false] {
        publisher.set(&["10.0.0.0/8".parse().expect("a range")], &Exposed::default());
        let expected: &[&str] = if is_another { &["Begin", "Part", "End"] } else { &[] };
        assert_eq!(kinds(&publisher, &mut reader), expected, "settings come with a snapshot alone");
    }
}

/// A first list would otherwise be kept as text, as large as the zone, for whoever never needs it.
#[test]
fn what_changes_most_of_the_zone_comes_as_a_snapshot() {
    let mut publisher = Publisher::new(settings(), 1);
    let mut reader = Reader::default();
    let all = |value: fn(u8) -> Option<u8>| (0..=u8::MAX).map(move |one| change(one, value(one)));
    for (changes, expected) in [
        (all(Some).collect::<Vec<_>>(), &["Begin", "Part", "Part", "Part", "Part", "End"][..]),
        (all(|_| Some(7)).take(128).collect(), &["Delta"]),
        (all(|_| Some(8)).take(129).collect(), &["Begin", "Part", "Part", "Part", "Part", "End"]),
        (all(|_| None).collect(), &["Begin", "End"]),
        (all(|_| Some(9)).take(64).collect(), &["Delta"]),
    ] {
        let count = changes.len();
        assert!(publisher.publish(changes, 0).expect("fits"));
        assert_eq!(kinds(&publisher, &mut reader), expected, "{count} changes");
    }
    let mut index = None;
    follow(&mut Follower::default(), &mut index, &snapshot(&publisher), 100);
    assert_eq!(index.as_ref().map(content), Some(content(publisher.index())));
}

/// whom the worker answers goes with the snapshot and with changes, each once.
#[test]
fn readers_hear_who_is_of_the_cluster() {
    let ranges = |texts: &[&str]| -> BTreeSet<IpNet> {
        texts.iter().map(|text| text.parse().expect("a range")).collect()
    };
    let mut publisher = Publisher::new(settings(), 1);
    let tell = |publisher: &mut Publisher, texts: &[&str]| {
        let changes = publisher.client_changes(&ranges(texts));
        publisher.publish(changes, 0).expect("fits")
    };
    assert!(tell(&mut publisher, &["172.30.0.2/32", "10.244.1.0/24"]));
    assert!(!tell(&mut publisher, &["172.30.0.2/32", "10.244.1.0/24"]), "as before");
    let (mut reader, mut follower, mut index) = (Reader::default(), Follower::default(), None);
    follow(&mut follower, &mut index, &read(&publisher, &mut reader, usize::MAX).0, 100);
    assert_eq!(index.as_ref().map(content), Some(content(publisher.index())));
    assert!(tell(&mut publisher, &["172.30.0.3/32", "10.244.1.0/24"]));
    follow(&mut follower, &mut index, &read(&publisher, &mut reader, usize::MAX).0, 100);
    let told = index.as_ref().map(content).unwrap_or_default().concat();
    assert_eq!(Some(told.as_str()), Some(content(publisher.index()).concat().as_str()));
    assert!(told.contains("172.30.0.3/32") && !told.contains("172.30.0.2/32"), "{told}");
}

#[test]
fn a_missed_change_ends_the_stream() {
    let delta = |sequence| Frame::Delta { sequence, heard_us: 0, changes: vec![] };
    for (frames, ends) in [
        (vec![Frame::Begin(settings()), Frame::End { sequence: 7 }, delta(8)], false),
        (vec![Frame::Begin(settings()), Frame::End { sequence: 7 }, delta(9)], true),
        (vec![Frame::Begin(settings()), Frame::End { sequence: 7 }, delta(7)], true),
        (vec![Frame::Begin(settings()), delta(1)], true),
        (vec![Frame::Part(vec![])], true),
        (vec![Frame::End { sequence: 1 }], true),
    ] {
        let mut follower = Follower::default();
        for frame in &frames {
            follower.push(&frame.encode().expect("fits"));
        }
        let ended = loop {
            match follower.next_frame() {
                Ok(Some(_)) => {}
                Ok(None) => break false,
                Err(FeedError::Missed { .. }) => break true,
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(ended, ends, "{frames:?}");
    }
    let mut follower = Follower::default();
    follower.push(&u32::MAX.to_le_bytes());
    assert!(matches!(follower.next_frame(), Err(FeedError::TooLarge { .. })));
}

/// A frame as an agent writes it that may be newer than we are.
fn written(frame: &Value) -> Vec<u8> {
    let json = frame.to_string().into_bytes();
    [(json.len() as u32).to_le_bytes().as_slice(), &json].concat()
}

/// An agent may be updated before the worker that it feeds: what it tells of kinds that the worker
/// does not know changes nothing, and everything else counts.
#[test]
fn what_a_newer_agent_tells_beside_is_passed_over() {
    let known = |service: u8| serde_json::to_value(change(service, Some(service))).expect("JSON");
    let mut with_field = known(4);
    with_field["Service"]["colour"] = json!("blue");
    let unknown = json!({"Gateway": {"name": "edge", "listeners": [{"Service": 1}]}});
    let frames = [
        json!({"Begin": {"domain": "cluster.local", "name_servers": [], "reverse_ranges": [],
            "season": {"of": "mists"}}}),
        json!({"Part": [unknown, known(1), {"Bare": null}]}),
        json!({"Interlude": [known(9)]}),
        json!({"End": {"sequence": 7, "of": 3}}),
        json!({"Interlude": {"sequence": 8}}),
        json!({"Delta": {"sequence": 8, "heard_us": 5, "changes": [known(2), unknown, with_field]}}),
        json!({"Delta": {"sequence": 9, "heard_us": 5, "changes": [unknown]}}),
        json!({"Delta": {"sequence": 10, "heard_us": 5, "changes": [known(3)]}}),
    ];
    let (mut follower, mut index) = (Follower::default(), None);
    for frame in &frames {
        follow(&mut follower, &mut index, &written(frame), 40);
    }
    let index = index.expect("a zone");
    let expected: Vec<String> =
        [2, 4, 1, 3].map(|number: u8| format!("{:?}", change(number, Some(number)))).into();
    assert_eq!(content(&index), expected);
    assert_eq!(index.serial(), 10);
    // What is known and wrong is still an error.
    for wrong in [
        json!({"Part": [{"Service": {"namespace": "shop"}}]}),
        json!({"Delta": {"sequence": "8", "heard_us": 5, "changes": []}}),
        json!({"Part": [5]}),
        json!("End"),
    ] {
        let mut follower = Follower::default();
        follower.push(&written(&frames[0]));
        follower.push(&written(&wrong));
        follower.next_frame().expect("a good frame");
        assert!(matches!(follower.next_frame(), Err(FeedError::NotAFrame(_))), "{wrong}");
    }
}

/// Agents and workers of before know nothing of choices of names.
#[test]
fn what_an_older_agent_left_out_has_a_default() {
    let frame =
        json!({"Begin": {"domain": "cluster.local", "name_servers": [], "reverse_ranges": []}});
    let plain = json!({"servers": [], "ttl_s": 5, "negative_ttl_s": 5, "ruled_by": null});
    let Frame::Begin(read) = serde_json::from_value(frame).expect("a frame") else {
        panic!("it begins a zone")
    };
    assert_eq!(read, settings());
    let plain = Plain::parse(plain.to_string().as_bytes()).expect("what a worker says");
    assert_eq!(plain.exposure, read.exposed.exposure);
}
