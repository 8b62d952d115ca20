//! The directory of reservations, on a real file system.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use ipam::{Ask, Directory, Error, Range, RangeSet, Reserved, Withheld};
use model::Timestamp;

/// A directory of one test, removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("flatnet-ipam-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    fn open(&self) -> Directory {
        Directory::open(&self.0, "flatnet").expect("the directory")
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
        self.0.join("flatnet").join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
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
    let scratch = Scratch::new("layout");
    let reserved = scratch.add(&sets("10.244.1.0/24"), "c1", &[]).expect("one");
    assert_eq!(reserved[0].address, address("10.244.1.2"));
    assert_eq!(fs::read(scratch.file("10.244.1.2")).expect("the file"), b"c1\r\neth0");
    let last = fs::read_to_string(scratch.file("last_reserved_ip.0")).expect("the hint");
    assert_eq!(last, "10.244.1.2");
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: PathBuf| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(scratch.file("10.244.1.2")), 0o600);
    assert_eq!(mode(scratch.file("")), 0o700);
    assert!(!scratch.file(".unfinished").exists());
}

#[test]
fn a_released_address_is_the_last_to_come_again() {
    let scratch = Scratch::new("round");
    let ranges = sets("10.244.1.0/29");
    for (container, expected) in [("a", 2), ("b", 3)] {
        let one = scratch.add(&ranges, container, &[]).expect("one");
        assert_eq!(one[0].address, address(&format!("10.244.1.{expected}")));
    }
    assert_eq!(scratch.del("a"), [address("10.244.1.2")]);
    assert_eq!(scratch.del("a"), Vec::<IpAddr>::new());
    for (container, expected) in [("c", 4), ("d", 5), ("e", 6), ("f", 2)] {
        let one = scratch.add(&ranges, container, &[]).expect("one");
        assert_eq!(one[0].address, address(&format!("10.244.1.{expected}")));
    }
    let error = scratch.add(&ranges, "g", &[]).expect_err("all taken");
    assert!(error.to_string().contains("10.244.1.1-10.244.1.6"), "{error}");
}

/// HL: the same id and interface twice is an error.
#[test]
fn asking_twice_is_refused_and_release_is_by_interface() {
    let scratch = Scratch::new("twice");
    let ranges = sets("10.244.1.0/24");
    let first = scratch.add(&ranges, "c1", &[]).expect("one");
    let again = scratch.add(&ranges, "c1", &[]).expect_err("a second");
    assert!(matches!(again, Error::Duplicate { .. }), "{again}");
    assert!(again.to_string().contains("10.244.1.2 has been allocated to container c1"), "{again}");
    let withheld = Withheld::default();
    let other = ask(&ranges, &withheld, "c1", "net1", &[]);
    let second = scratch.open().reserve(&other).expect("another");
    assert_ne!(second[0].address, first[0].address);
    scratch.open().release("c1", "net1", at(0)).expect("released");
    let left = scratch.open().reservations().expect("listed");
    assert_eq!(left.keys().copied().collect::<Vec<_>>(), [first[0].address]);
}

#[test]
fn files_of_others_count_whatever_they_hold() {
    let scratch = Scratch::new("torn");
    drop(scratch.open());
    let rows: [(&str, &[u8]); 4] = [
        ("10.244.1.2", b""),
        ("10.244.1.3", b"  old-style-id \n"),
        ("10.244.1.4", b"c1\neth0\n"),
        ("10.244.1.5", b"\xff\xfe\0"),
    ];
    for (name, content) in rows {
        fs::write(scratch.file(name), content).expect("written");
    }
    fs::write(scratch.file(".unfinished"), "half a reserv").expect("left by a crash");
    fs::write(scratch.file("last_reserved_ip.0"), "10.244.").expect("torn");
    fs::write(scratch.file("notes.txt"), "no address").expect("foreign");
    let directory = scratch.open();
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
    let scratch = Scratch::new("linked");
    let ranges = sets("10.244.1.0/24");
    scratch.add(&ranges, "c1", &[]).expect("one");
    fs::hard_link(scratch.file("10.244.1.2"), scratch.file(".unfinished")).expect("as a crash");
    scratch.add(&ranges, "c2", &[]).expect("the next");
    let owners = scratch.open().reservations().expect("listed");
    assert_eq!(owners[&address("10.244.1.2")].container_id, "c1");
    assert_eq!(owners[&address("10.244.1.3")].container_id, "c2");
}

#[test]
fn a_failure_in_the_second_set_gives_the_first_back() {
    let scratch = Scratch::new("partial");
    let mut ranges = sets("10.244.1.0/24");
    ranges.extend(sets("10.245.0.0/30"));
    scratch.add(&ranges, "c1", &[]).expect("the only one of the second set");
    let error = scratch.add(&ranges, "c2", &[]).expect_err("none left");
    assert!(error.to_string().contains("10.245.0.1-10.245.0.2"), "{error}");
    let owners: BTreeSet<String> = scratch
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
    let scratch = Scratch::new("requested");
    let ranges = sets("10.244.1.0/24");
    let wanted = [address("10.244.1.77")];
    let one = scratch.add(&ranges, "c1", &wanted).expect("free");
    assert_eq!(one[0].address, wanted[0]);
    let taken = scratch.add(&ranges, "c2", &wanted).expect_err("taken");
    assert!(matches!(taken, Error::Taken(_)), "{taken}");
    for outside in ["10.244.2.5", "10.244.1.1", "10.244.1.0", "10.244.1.255"] {
        let refused = scratch.add(&ranges, "c2", &[address(outside)]).expect_err(outside);
        assert!(matches!(refused, Error::NotAllowed(_)), "{refused}");
    }
}

#[test]
fn many_at_once_never_share_an_address() {
    let scratch = Scratch::new("parallel");
    let addresses: Vec<IpAddr> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..32)
            .map(|number| {
                let scratch = &scratch;
                scope.spawn(move || {
                    let name = format!("c{number}");
                    let one = scratch.add(&sets("10.244.1.0/24"), &name, &[]);
                    one.expect("one")[0].address
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker")).collect()
    });
    assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), 32);
}
