//! Whatever lies in the directory: torn, foreign, huge, links, pipes, directories, odd names.
//! Nothing panics or blocks, nothing outside is read or changed, and no address that a file
//! stands for is given out.

mod scratch;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::Path;

use ipam::{Ask, Directory, Error, Range, RangeSet, Withheld};
use model::Timestamp;
use nix::sys::stat::Mode;
use proptest::prelude::*;
use scratch::Scratch;

const NETWORK: &str = "net";
/// Stands outside of the directory; links lead to it.
const SECRET: &str = "c0\r\neth0";

/// One entry of the directory.
#[derive(Clone, Debug)]
enum Entry {
    File(Vec<u8>),
    Huge,
    LinkOutside,
    LinkToItself,
    Pipe,
    Directory,
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (2..7_u8).prop_map(|host| format!("10.0.0.{host}")),
        2 => (2..7_u8).prop_map(|host| format!("FD00:0::{host}")),
        1 => (2..7_u8).prop_map(|host| format!("::ffff:10.0.0.{host}")),
        1 => (2..7_u8, any::<u32>()).prop_map(|(host, hash)| format!(".owner-{hash:08x}-10.0.0.{host}")),
        1 => (2..7_u8, any::<i64>()).prop_map(|(host, at)| format!(".released-{at}-10.0.0.{host}")),
        1 => prop::sample::select(vec![
            ".unfinished", "last_reserved_ip.0", "last_reserved_ip.", "...", ".owner-", ".released--1-",
            "10.0.0.2 ", " 10.0.0.2", "10.0.0", "10.0.0.256", "10.0.0.02", "~", "-", "\u{202e}", "a\nb",
        ]).prop_map(str::to_owned),
        1 => "[a-zA-Z0-9.:_-]{1,40}".prop_filter("a name", |name| !matches!(name.as_str(), "." | ".." | "lock")),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        3 => prop::sample::select(vec!["c1\r\neth0", "c1\neth0\n", " c1 ", "c2\r\neth0", "", "\r\n", "c1\r\neth0\r\nmore"])
            .prop_map(|text| Entry::File(text.as_bytes().to_vec())),
        2 => prop::collection::vec(any::<u8>(), 0..64).prop_map(Entry::File),
        1 => prop::sample::select(vec![
            Entry::Huge, Entry::LinkOutside, Entry::LinkToItself, Entry::Pipe, Entry::Directory,
        ]),
    ]
}

fn make(directory: &Path, outside: &Path, name: &str, entry: &Entry) {
    let path = directory.join(name);
    match entry {
        Entry::File(bytes) => fs::write(path, bytes).expect("written"),
        Entry::Huge => {
            let file = fs::File::create(path).expect("a file");
            file.set_len(1 << 40).expect("a hole");
        }
        Entry::LinkOutside => symlink(outside, path).expect("a link"),
        Entry::LinkToItself => symlink(name, path).expect("a link"),
        Entry::Pipe => nix::unistd::mkfifo(&path, Mode::S_IRWXU).expect("a pipe"),
        Entry::Directory => fs::create_dir(path).expect("a directory"),
    }
}

fn sets() -> Vec<RangeSet> {
    let range = |text: &str| Range::whole(text.parse().expect("a subnet"));
    vec![vec![range("10.0.0.0/29")], vec![range("fd00::/125")]]
}

fn taken(names: &BTreeSet<String>) -> BTreeSet<IpAddr> {
    names
        .iter()
        .filter_map(|name| name.parse::<IpAddr>().ok())
        .map(|one| one.to_canonical())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_content_is_survived(
        entries in prop::collection::btree_map(name(), entry(), 0..12)
    ) {
        let scratch = Scratch::new();
        let directory = scratch.0.join(NETWORK);
        let outside = scratch.0.join("secret");
        fs::create_dir_all(&directory).expect("a directory");
        fs::write(&outside, SECRET).expect("written");
        for (name, entry) in &entries {
            make(&directory, &outside, name, entry);
        }
        let names: BTreeSet<String> = entries.keys().cloned().collect();
        let taken = taken(&names);

        let open = Directory::open(&scratch.0, NETWORK).expect("the directory");
        let listed = open.reservations().expect("listed");
        prop_assert_eq!(listed.keys().copied().collect::<BTreeSet<_>>(), taken.clone());
        prop_assert!(listed.values().all(|held| held.container_id != "c0"), "read through a link");

        let sets = sets();
        let withheld = Withheld::default();
        let ask = Ask {
            sets: &sets,
            withheld: &withheld,
            container_id: "fresh",
            interface: "eth0",
            requested: &[],
        };
        // A directory or link in the place of a file of ours may make it fail, with a reason.
        match open.reserve(&ask) {
            Ok(reserved) => {
                prop_assert!(reserved.iter().all(|one| !taken.contains(&one.address)));
                let given: BTreeSet<IpAddr> = reserved.iter().map(|one| one.address).collect();
                let freed = open.release("fresh", "eth0", Timestamp::from_seconds(1));
                if let Ok(freed) = freed {
                    prop_assert_eq!(freed.into_iter().collect::<BTreeSet<_>>(), given);
                }
            }
            Err(Error::Exhausted(_) | Error::File { .. }) => {}
            Err(other) => prop_assert!(false, "{}", other),
        }
        let freed = open.release("c1", "eth0", Timestamp::from_seconds(2));
        if let Ok(freed) = freed {
            prop_assert!(freed.iter().all(|address| taken.contains(address)));
            let again = open.release("c1", "eth0", Timestamp::from_seconds(3)).expect("nothing");
            prop_assert!(again.is_empty());
        }
        prop_assert_eq!(fs::read_to_string(&outside).expect("untouched"), SECRET);
    }
}

/// Of the random content above, few have just these names.
#[test]
fn our_own_names_may_be_anything() {
    let kinds =
        [Entry::Huge, Entry::LinkOutside, Entry::LinkToItself, Entry::Pipe, Entry::Directory];
    for name in [".unfinished", "last_reserved_ip.0", "lock"] {
        for entry in &kinds {
            let scratch = Scratch::new();
            let outside = scratch.0.join("secret");
            fs::create_dir_all(scratch.0.join(NETWORK)).expect("a directory");
            fs::write(&outside, SECRET).expect("written");
            make(&scratch.0.join(NETWORK), &outside, name, entry);
            let sets = sets();
            let ask = Ask {
                sets: &sets,
                withheld: &Withheld::default(),
                container_id: "fresh",
                interface: "eth0",
                requested: &[],
            };
            let open = Directory::open(&scratch.0, NETWORK);
            let reserved = open.and_then(|open| open.reserve(&ask));
            let refused = matches!(reserved, Err(Error::File { .. }));
            assert!(refused || reserved.is_ok(), "{name} as {entry:?}: {reserved:?}");
            assert_eq!(fs::read_to_string(&outside).expect("untouched"), SECRET);
        }
    }
}

#[test]
fn a_network_must_have_a_name_that_stays_in_its_place() {
    let scratch = Scratch::new();
    for name in ["", ".", "..", ".hidden", "a/b", "../etc", "/etc", "a\0b", "a b", "ü"] {
        let refused = Directory::open(&scratch.0, name).expect_err(name);
        assert!(matches!(refused, Error::Name(_)), "{name:?}: {refused}");
    }
    assert!(!scratch.0.exists(), "nothing was made");
    assert!(Directory::open_existing(&scratch.0, "net").expect("an answer").is_none());
    assert!(!scratch.0.exists(), "asking makes nothing");
}
