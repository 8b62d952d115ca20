//! HL: our directory and the reference plugin host-local on the same directory, each following
//! the other as on a node where one takes over from the other. Needs Debian's package
//! containernetworking-plugins.

mod scratch;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use ipam::{Ask, Directory, Error, RangeSet, Withheld, allocator};
use model::Timestamp;
use scratch::Scratch;
use serde_json::{Value, json};

const HOST_LOCAL: &str = "/usr/lib/cni/host-local";
const NETWORK: &str = "flatnet";

/// One directory and the ranges that both programs have.
struct Shared {
    scratch: Scratch,
    ranges: Value,
}

impl Shared {
    fn new(ranges: Value) -> Self {
        Self { scratch: Scratch::new(), ranges }
    }

    /// Calls host-local. `Err` is its message.
    fn reference(&self, command: &str, id: &str, arguments: &str) -> Result<Vec<IpAddr>, String> {
        let config = json!({
            "cniVersion": "1.0.0",
            "name": NETWORK,
            "ipam": { "type": "host-local", "dataDir": self.scratch.0, "ranges": self.ranges },
        });
        let mut child = Command::new(HOST_LOCAL)
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", id)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", "/dev/null")
            .env("CNI_PATH", "/usr/lib/cni")
            .env("CNI_ARGS", arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("host-local starts (package containernetworking-plugins)");
        let mut input = child.stdin.take().expect("its input");
        input.write_all(config.to_string().as_bytes()).expect("written");
        drop(input);
        let output = child.wait_with_output().expect("it ends");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        if !output.status.success() {
            return Err(answer["msg"].as_str().unwrap_or_default().to_owned());
        }
        let address = |entry: &Value| {
            let text = entry["address"].as_str().and_then(|text| text.split('/').next());
            text.and_then(|text| text.parse().ok()).expect("an address")
        };
        Ok(answer["ips"].as_array().into_iter().flatten().map(address).collect())
    }

    fn directory(&self) -> Directory {
        Directory::open(&self.scratch.0, NETWORK).expect("the directory")
    }

    fn sets(&self) -> Vec<RangeSet> {
        serde_json::from_value(self.ranges.clone()).expect("ranges")
    }

    fn ours(&self, id: &str, requested: &[IpAddr]) -> Result<Vec<IpAddr>, Error> {
        let reserved = self.directory().reserve(&Ask {
            sets: &self.sets(),
            withheld: &Withheld::default(),
            container_id: id,
            interface: "eth0",
            requested,
        })?;
        Ok(reserved.into_iter().map(|one| one.address).collect())
    }

    fn release(&self, id: &str) -> Vec<IpAddr> {
        self.directory().release(id, "eth0", Timestamp::from_seconds(9)).expect("released")
    }

    /// All names in the directory but the lock and the hints.
    fn names(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.scratch.0.join(NETWORK)).expect("the directory");
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name != "lock" && !name.starts_with("last_reserved_ip.")).collect()
    }
}

fn addresses<const N: usize>(texts: [&str; N]) -> Vec<IpAddr> {
    texts.map(|text| text.parse().expect("an address")).into()
}

fn dual_stack() -> Shared {
    Shared::new(json!([[{ "subnet": "10.1.0.0/28" }], [{ "subnet": "fd00::/124" }]]))
}

#[test]
fn each_goes_on_after_the_other_and_releases_what_the_other_reserved() {
    let shared = dual_stack();
    assert_eq!(shared.reference("ADD", "a", ""), Ok(addresses(["10.1.0.2", "fd00::2"])));
    assert_eq!(shared.ours("b", &[]).expect("b"), addresses(["10.1.0.3", "fd00::3"]));
    assert_eq!(shared.reference("ADD", "c", ""), Ok(addresses(["10.1.0.4", "fd00::4"])));
    assert_eq!(shared.ours("d", &[]).expect("d"), addresses(["10.1.0.5", "fd00::5"]));

    assert_eq!(shared.reference("CHECK", "d", ""), Ok(vec![]));
    let owners = shared.directory().reservations().expect("listed");
    let of = |text: &str| owners[&text.parse::<IpAddr>().expect("an address")].clone();
    assert_eq!((of("fd00::4").container_id, of("fd00::4").interface), ("c".into(), "eth0".into()));

    let twice = shared.ours("a", &[]).expect_err("host-local's");
    assert!(matches!(twice, Error::Duplicate { .. }), "{twice}");
    let twice = shared.reference("ADD", "b", "").expect_err("ours");
    assert!(twice.contains("duplicate allocation"), "{twice}");

    assert_eq!(shared.release("a"), addresses(["10.1.0.2", "fd00::2"]));
    assert!(shared.reference("CHECK", "c", "").is_ok() && shared.reference("DEL", "b", "").is_ok());
    let held: Vec<IpAddr> =
        shared.directory().reservations().expect("listed").into_keys().collect();
    assert_eq!(held, addresses(["10.1.0.4", "10.1.0.5", "fd00::4", "fd00::5"]));
    // What we gave back is free for host-local, although we remember it.
    assert_eq!(shared.reference("ADD", "a", "IP=10.1.0.2"), Ok(addresses(["10.1.0.2", "fd00::6"])));
}

/// host-local removes every file that names an owner, so our second names go with the first.
#[test]
fn a_release_by_host_local_leaves_nothing_of_ours() {
    let shared = dual_stack();
    shared.ours("a", &[]).expect("a");
    assert_eq!(shared.names().len(), 4, "{:?}", shared.names());
    shared.reference("DEL", "a", "").expect("DEL");
    assert_eq!(shared.names(), BTreeSet::new());
}

/// After host-local gave an address to another, our index of the old owner counts for nothing.
#[test]
fn an_index_that_host_local_outdated_is_not_believed() {
    let shared = dual_stack();
    shared.ours("a", &[]).expect("a");
    fs::remove_file(shared.scratch.0.join(NETWORK).join("10.1.0.2")).expect("by hand");
    shared.reference("ADD", "b", "IP=10.1.0.2").expect("b");
    assert!(shared.names().iter().any(|name| name.ends_with("-10.1.0.2")), "{:?}", shared.names());
    assert_eq!(shared.release("a"), addresses(["fd00::2"]));
    assert_eq!(shared.release("b"), addresses(["10.1.0.2", "fd00::3"]));
    let left = shared.directory().reservations().expect("listed");
    assert!(left.is_empty(), "{left:?}");
}

/// The same configurations and requests, refused by both.
#[test]
fn what_host_local_refuses_we_refuse() {
    let plain = json!([[{ "subnet": "10.1.0.0/29" }]]);
    let rows = [
        ("the gateway", plain.clone(), "IP=10.1.0.1"),
        ("outside", plain.clone(), "IP=10.2.0.1"),
        ("taken", plain.clone(), "IP=10.1.0.2"),
        ("left over", plain.clone(), "IP=10.1.0.3,10.1.0.4"),
        (
            "below rangeStart",
            json!([[{ "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9" }]]),
            "IP=10.1.0.8",
        ),
        (
            "above rangeEnd",
            json!([[{ "subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.9" }]]),
            "IP=10.1.0.10",
        ),
        ("a /31", json!([[{ "subnet": "10.1.0.0/31" }]]), ""),
        ("an IPv6 /127", json!([[{ "subnet": "fd00::/127" }]]), ""),
        ("host bits", json!([[{ "subnet": "10.1.0.1/24" }]]), ""),
        (
            "overlap in a set",
            json!([[{ "subnet": "10.1.0.0/24" }, { "subnet": "10.1.0.128/25" }]]),
            "",
        ),
        (
            "overlap of sets",
            json!([[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "10.1.0.0/25" }]]),
            "",
        ),
        (
            "two families in a set",
            json!([[{ "subnet": "10.1.0.0/24" }, { "subnet": "fd00::/64" }]]),
            "",
        ),
        (
            "start behind end",
            json!([[{ "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8" }]]),
            "",
        ),
        ("start outside", json!([[{ "subnet": "10.1.0.0/24", "rangeStart": "10.2.0.9" }]]), ""),
    ];
    for (name, ranges, arguments) in rows {
        let shared = Shared::new(ranges);
        let held = shared.scratch.0.join(NETWORK);
        fs::create_dir_all(&held).expect("a directory");
        fs::write(held.join("10.1.0.2"), "other\r\neth0").expect("held");
        let refused = shared.reference("ADD", "a", arguments);
        assert!(refused.is_err(), "{name}: host-local gave {refused:?}");
        let requested: Vec<IpAddr> = arguments
            .trim_start_matches("IP=")
            .split(',')
            .filter_map(|text| text.parse().ok())
            .collect();
        let sets = shared.sets();
        let ours = allocator::check(&sets).map_err(|error| error.to_string());
        let ours =
            ours.and_then(|()| shared.ours("a", &requested).map_err(|error| error.to_string()));
        assert!(ours.is_err(), "{name}: we gave {ours:?}, host-local said {refused:?}");
    }
}

/// The same addresses in the same order, until one comes again; then both say which range is
/// exhausted.
#[test]
fn the_first_round_is_host_locals() {
    let rows = [
        json!([[{ "subnet": "10.1.0.0/29" }]]),
        json!([[{ "subnet": "10.1.0.0/29", "gateway": "10.1.0.4" }]]),
        json!([[{ "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.200", "rangeEnd": "10.1.0.205" }]]),
        json!([[{ "subnet": "10.1.0.0/30" }, { "subnet": "10.2.0.0/29" }, { "subnet": "10.3.0.0/30" }]]),
        json!([[{ "subnet": "10.1.0.0/29" }], [{ "subnet": "fd00::/125" }]]),
    ];
    for ranges in rows {
        let [theirs, mine] = [(); 2].map(|()| Shared::new(ranges.clone()));
        for number in 0.. {
            let id = format!("c{number}");
            let (expected, found) = (theirs.reference("ADD", &id, ""), mine.ours(&id, &[]));
            match (expected, found) {
                (Ok(expected), Ok(found)) => assert_eq!(found, expected, "{ranges}"),
                (Err(expected), Err(found)) => {
                    let (_, range) = expected.split_once("range set: ").expect("names the range");
                    assert!(found.to_string().contains(range), "{found} as {expected}");
                    assert!(number > 3, "{ranges}: after {number}");
                    break;
                }
                other => panic!("{ranges}: {other:?}"),
            }
        }
        let hints =
            |shared: &Shared| fs::read(shared.scratch.0.join(NETWORK).join("last_reserved_ip.0"));
        assert_eq!(hints(&theirs).expect("a hint"), hints(&mine).expect("a hint"), "{ranges}");
    }
}

#[test]
fn both_at_once_never_share_an_address() {
    let shared = Shared::new(json!([[{ "subnet": "10.1.0.0/26" }]]));
    let given: Vec<IpAddr> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..48)
            .map(|number| {
                let shared = &shared;
                scope.spawn(move || {
                    let id = format!("c{number}");
                    if number % 2 == 0 {
                        shared.reference("ADD", &id, "").expect("host-local's")[0]
                    } else {
                        shared.ours(&id, &[]).expect("ours")[0]
                    }
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker")).collect()
    });
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 48);
}
