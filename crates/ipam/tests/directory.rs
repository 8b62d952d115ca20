//! The directory of reservations, on a real file system.

mod scratch;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use ipam::{Ask, Directory, Error, Range, RangeSet, Reserved, Withheld, life};
use model::{Attachment, Timestamp};
use scratch::Scratch;

/// A network's directory.
struct Network(Scratch);

impl Network {
    fn new() -> Self {
        Self(Scratch::new())
    }

    fn open(&self) -> Directory {
        Directory::open(&self.0.0, "flatnet").expect("the directory")
    }

    /// One ADD of the interface eth0.
    fn add(
        &self,
        sets: &[RangeSet],
        id: &str,
        requested: &[IpAddr],
    ) -> Result<Vec<Reserved>, Error> {
        let withheld = Withheld::default();
        self.open().reserve(&ask(sets, &withheld, id, "eth0", requested))
    }

    /// One DEL of the interface eth0.
    fn del(&self, id: &str) -> Vec<IpAddr> {
        self.open().release(id, "eth0", at(0)).expect("released")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.0.join("flatnet").join(name)
    }
}

fn ask<'a>(
    sets: &'a [RangeSet],
    withheld: &'a Withheld,
    container_id: &'a str,
    interface: &'a str,
    requested: &'a [IpAddr],
) -> Ask<'a> {
    Ask { sets, withheld, container_id, interface, requested }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_seconds(1_700_000_000 + second)
}

fn sets(subnet: &str) -> Vec<RangeSet> {
    vec![vec![Range::whole(subnet.parse().expect("a subnet"))]]
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn a_reservation_is_a_file_that_host_local_understands() {
    let network = Network::new();
    let reserved = network.add(&sets("10.244.1.0/24"), "c1", &[]).expect("one");
    assert_eq!(reserved[0].address, address("10.244.1.2"));
    assert_eq!(fs::read(network.file("10.244.1.2")).expect("the file"), b"c1\r\neth0");
    let last = fs::read_to_string(network.file("last_reserved_ip.0")).expect("the hint");
    assert_eq!(last, "10.244.1.2");
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: PathBuf| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(network.file("10.244.1.2")), 0o600);
    assert_eq!(mode(network.file("")), 0o700);
    assert!(!network.file(".unfinished").exists());
}

#[test]
fn a_released_address_is_the_last_to_come_again() {
    let network = Network::new();
    let ranges = sets("10.244.1.0/29");
    for (container, expected) in [("a", 2), ("b", 3)] {
        let one = network.add(&ranges, container, &[]).expect("one");
        assert_eq!(one[0].address, address(&format!("10.244.1.{expected}")));
    }
    assert_eq!(network.del("a"), [address("10.244.1.2")]);
    assert_eq!(network.del("a"), Vec::<IpAddr>::new());
    for (container, expected) in [("c", 4), ("d", 5), ("e", 6), ("f", 2)] {
        let one = network.add(&ranges, container, &[]).expect("one");
        assert_eq!(one[0].address, address(&format!("10.244.1.{expected}")));
    }
    let error = network.add(&ranges, "g", &[]).expect_err("all taken");
    assert!(error.to_string().contains("10.244.1.1-10.244.1.6"), "{error}");
}

/// HL: the same id and interface twice is an error.
#[test]
fn asking_twice_is_refused_and_release_is_by_interface() {
    let network = Network::new();
    let ranges = sets("10.244.1.0/24");
    let first = network.add(&ranges, "c1", &[]).expect("one");
    let again = network.add(&ranges, "c1", &[]).expect_err("a second");
    assert!(matches!(again, Error::Duplicate { .. }), "{again}");
    assert!(again.to_string().contains("10.244.1.2 has been allocated to container c1"), "{again}");
    let withheld = Withheld::default();
    let other = ask(&ranges, &withheld, "c1", "net1", &[]);
    let second = network.open().reserve(&other).expect("another");
    assert_ne!(second[0].address, first[0].address);
    network.open().release("c1", "net1", at(0)).expect("released");
    let left = network.open().reservations().expect("listed");
    assert_eq!(left.keys().copied().collect::<Vec<_>>(), [first[0].address]);
}

#[test]
fn files_of_others_count_whatever_they_hold() {
    let network = Network::new();
    drop(network.open());
    let rows: [(&str, &[u8]); 4] = [
        ("10.244.1.2", b""),
        ("10.244.1.3", b"  old-style-id \n"),
        ("10.244.1.4", b"c1\neth0\n"),
        ("10.244.1.5", b"\xff\xfe\0"),
    ];
    for (name, content) in rows {
        fs::write(network.file(name), content).expect("written");
    }
    fs::write(network.file(".unfinished"), "half a reserv").expect("left by a crash");
    fs::write(network.file("last_reserved_ip.0"), "10.244.").expect("torn");
    fs::write(network.file("notes.txt"), "no address").expect("foreign");
    let directory = network.open();
    let one = directory
        .reserve(&ask(&sets("10.244.1.0/24"), &Withheld::default(), "c2", "eth0", &[]))
        .expect("one");
    assert_eq!(one[0].address, address("10.244.1.6"));
    assert_eq!(directory.release("c1", "eth0", at(0)).expect("released"), [address("10.244.1.4")]);
    let old_style = directory.release("old-style-id", "eth0", at(0)).expect("released");
    assert_eq!(old_style, [address("10.244.1.3")], "without an interface: the whole container");
    assert_eq!(directory.release("", "", at(0)).expect("nobody"), Vec::<IpAddr>::new());
}

#[test]
fn a_crash_after_the_link_leaves_the_owner_alone() {
    let network = Network::new();
    let ranges = sets("10.244.1.0/24");
    network.add(&ranges, "c1", &[]).expect("one");
    fs::hard_link(network.file("10.244.1.2"), network.file(".unfinished")).expect("as a crash");
    network.add(&ranges, "c2", &[]).expect("the next");
    let owners = network.open().reservations().expect("listed");
    assert_eq!(owners[&address("10.244.1.2")].container_id, "c1");
    assert_eq!(owners[&address("10.244.1.3")].container_id, "c2");
}

#[test]
fn a_failure_in_the_second_set_gives_the_first_back() {
    let network = Network::new();
    let mut ranges = sets("10.244.1.0/24");
    ranges.extend(sets("10.245.0.0/30"));
    network.add(&ranges, "c1", &[]).expect("the only one of the second set");
    let error = network.add(&ranges, "c2", &[]).expect_err("none left");
    assert!(error.to_string().contains("10.245.0.1-10.245.0.2"), "{error}");
    let owners: BTreeSet<String> = network
        .open()
        .reservations()
        .expect("listed")
        .into_values()
        .map(|reservation| reservation.container_id)
        .collect();
    assert_eq!(owners, BTreeSet::from(["c1".to_owned()]));
}

#[test]
fn requested_addresses_are_given_or_refused_with_the_reason() {
    let network = Network::new();
    let ranges = sets("10.244.1.0/24");
    let wanted = [address("10.244.1.77")];
    let one = network.add(&ranges, "c1", &wanted).expect("free");
    assert_eq!(one[0].address, wanted[0]);
    let taken = network.add(&ranges, "c2", &wanted).expect_err("taken");
    assert!(matches!(taken, Error::Taken(_)), "{taken}");
    for outside in ["10.244.2.5", "10.244.1.1", "10.244.1.0", "10.244.1.255"] {
        let refused = network.add(&ranges, "c2", &[address(outside)]).expect_err(outside);
        assert!(matches!(refused, Error::NotAllowed(_)), "{refused}");
    }
}

#[test]
fn many_at_once_never_share_an_address() {
    let network = Network::new();
    let addresses: Vec<IpAddr> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..32)
            .map(|number| {
                let network = &network;
                scope.spawn(move || {
                    let name = format!("c{number}");
                    let one = network.add(&sets("10.244.1.0/24"), &name, &[]);
                    one.expect("one")[0].address
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker")).collect()
    });
    assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), 32);
}

/// R-09: addresses are not used up by pods that come and go.
#[test]
fn a_thousand_pods_pass_through_a_small_range() {
    let network = Network::new();
    let ranges = sets("10.244.1.0/28");
    let stays = network.add(&ranges, "stays", &[]).expect("one")[0].address;
    for number in 0..1000 {
        let id = format!("c{number}");
        let one = network.add(&ranges, &id, &[]).unwrap_or_else(|error| panic!("{id}: {error}"));
        assert_ne!(one[0].address, stays);
        let freed = network.open().release(&id, "eth0", at(number)).expect("released");
        assert_eq!(freed, [one[0].address]);
    }
    let files = fs::read_dir(network.file("")).expect("the directory").count();
    assert!(files < 20, "{files} files: releases are remembered once an address");
}

/// R-09: what an earlier boot left goes, unless its namespace lives.
#[test]
fn leases_of_an_earlier_boot_go_with_their_namespaces() {
    let network = Network::new();
    let ranges = sets("10.244.1.0/28");
    // Container, boot of its record, whether its namespace exists, whether it stays.
    let rows = [
        ("old-gone", "before", false, false),
        ("old-alive", "before", true, true),
        ("new-gone", "now", false, true),
        ("new-alive", "now", true, true),
    ];
    for (id, _, _, _) in rows {
        network.add(&ranges, id, &[]).expect(id);
    }
    let record = |boot: &str| Attachment { boot_id: boot.into(), ..Attachment::default() };
    let freed = network.open().release_where(at(0), |held| {
        rows.iter().any(|(id, boot, exists, _)| {
            *id == held.container_id && life::died_with_boot(&record(boot), "now", *exists)
        })
    });
    assert_eq!(freed.expect("released").len(), 1);
    let left: BTreeSet<String> = network
        .open()
        .reservations()
        .expect("listed")
        .into_values()
        .map(|held| held.container_id)
        .collect();
    for (id, _, _, stays) in rows {
        assert_eq!(left.contains(id), stays, "{id}");
    }
}

/// R-10: the longest-free comes first, and none within the delay while another is left.
#[test]
fn an_address_rests_before_it_comes_again() {
    let network = Network::new();
    let ranges = sets("10.244.1.0/29"); // .2 to .6
    for id in ["a", "b", "c", "d", "e"] {
        network.add(&ranges, id, &[]).expect(id);
    }
    for (id, second) in [("c", 10), ("a", 20), ("e", 20), ("b", 45)] {
        network.open().release(id, "eth0", at(second)).expect("released");
    }
    // Also when host-local's hint, by which the round goes on, is gone or points at the freshest.
    fs::write(network.file("last_reserved_ip.0"), "10.244.1.2").expect("written");
    let order = ["f", "g", "h", "i"].map(|id| network.add(&ranges, id, &[]).expect(id)[0].address);
    let expected = [4, 2, 6, 3].map(|host| address(&format!("10.244.1.{host}")));
    assert_eq!(order, expected, "the last of them only because no other is left");
    assert!(network.add(&ranges, "j", &[]).is_err());
}

/// Releases are remembered for a while, not for ever.
#[test]
fn old_releases_are_forgotten() {
    let network = Network::new();
    drop(network.open());
    for number in 0..1100_u32 {
        let name = format!(".released-{}-fd00::{:x}", i64::from(number), 0x1000 + number);
        fs::write(network.file(&name), "").expect("written");
    }
    network.add(&sets("10.244.1.0/29"), "a", &[]).expect("one");
    network.open().release("a", "eth0", at(0)).expect("released");
    let released = network.open().released().expect("listed");
    assert!(released.contains_key(&address("10.244.1.2")), "the newest stays");
    assert!((1024..=1025).contains(&released.len()), "{}", released.len());
    assert!(!released.contains_key(&address("fd00::1000")), "the oldest went");
}

#[test]
fn what_the_configuration_keeps_back_goes_to_nobody_or_on_request_alone() {
    let network = Network::new();
    let ranges = sets("10.244.1.0/29");
    let withheld: Withheld = serde_json::from_str(
        r#"{"reserved":["10.244.1.2-10.244.1.3"],"onRequest":["10.244.1.4"]}"#,
    )
    .expect("withheld");
    let add = |id: &str, requested: &[IpAddr]| {
        network.open().reserve(&ask(&ranges, &withheld, id, "eth0", requested))
    };
    assert_eq!(add("a", &[]).expect("one")[0].address, address("10.244.1.5"));
    assert_eq!(add("b", &[]).expect("one")[0].address, address("10.244.1.6"));
    assert!(matches!(add("c", &[]), Err(Error::Exhausted(_))));
    assert!(matches!(add("c", &[address("10.244.1.3")]), Err(Error::Withheld(_))));
    assert_eq!(
        add("c", &[address("10.244.1.4")]).expect("on request")[0].address,
        address("10.244.1.4")
    );
    network.del("c");
    assert!(matches!(add("d", &[]), Err(Error::Exhausted(_))), "also after it was given back");
}

#[test]
fn more_addresses_than_sets_are_refused_and_nothing_is_kept() {
    let network = Network::new();
    let ranges = sets("10.244.1.0/24");
    let two = [address("10.244.1.7"), address("10.244.1.8")];
    let refused = network.add(&ranges, "c1", &two).expect_err("one too many");
    assert!(matches!(refused, Error::Unused(left) if left == two[1]), "{refused}");
    assert!(network.open().reservations().expect("listed").is_empty());
}
