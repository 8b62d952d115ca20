//! Laws over random sequences of requests, crashes and foreign files.

mod scratch;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;

use ipam::{Ask, Directory, Error, Range, RangeSet, Withheld};
use model::Timestamp;
use proptest::prelude::*;
use scratch::Scratch;

/// One step. Containers are numbers; a few, so that steps meet.
#[derive(Clone, Debug)]
enum Step {
    Reserve(u8),
    Release(u8),
    /// The hint where to go on is lost or torn.
    TearHint(bool),
    /// A writer died and left its unfinished file.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..12_u8).prop_map(Step::Reserve),
        4 => (0..12_u8).prop_map(Step::Release),
        1 => any::<bool>().prop_map(Step::TearHint),
        1 => Just(Step::Crash),
    ]
}

fn sets() -> Vec<RangeSet> {
    let range = |text: &str| Range::whole(text.parse().expect("a subnet"));
    vec![vec![range("10.0.0.0/29"), range("10.0.1.0/30")], vec![range("fd00::/125")]]
}

/// How many containers the smallest set holds: five and one of the IPv4 ranges (a /29 and a /30
/// without network, gateway and broadcast), six of the IPv6 range.
const CAPACITY: usize = 6;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_address_is_given_twice_none_is_lost_and_capacity_is_whole(
        steps in prop::collection::vec(step(), 1..40)
    ) {
        let scratch = Scratch::new();
        let base = scratch.0.clone();
        let network = base.join("net");
        let mut held: BTreeMap<u8, BTreeSet<IpAddr>> = BTreeMap::new();
        for (now, step) in (0..).zip(steps) {
            let directory = Directory::open(&base, "net").expect("the directory");
            match step {
                Step::Reserve(container) => {
                    let answer = directory.reserve(&Ask {
                        sets: &sets(),
                        withheld: &Withheld::default(),
                        container_id: &container.to_string(),
                        interface: "eth0",
                        requested: &[],
                    });
                    match answer {
                        Ok(reserved) => {
                            let given: BTreeSet<_> =
                                reserved.iter().map(|one| one.address).collect();
                            prop_assert_eq!(given.len(), 2, "one of each set");
                            prop_assert!(held.insert(container, given).is_none(), "only once");
                        }
                        Err(Error::Duplicate { .. }) => prop_assert!(held.contains_key(&container)),
                        Err(Error::Exhausted(_)) => prop_assert_eq!(held.len(), CAPACITY),
                        Err(error) => prop_assert!(false, "{}", error),
                    }
                }
                Step::Release(container) => {
                    let released = directory.release(
                        &container.to_string(),
                        "eth0",
                        Timestamp::from_seconds(now),
                    );
                    let released: BTreeSet<_> = released.expect("released").into_iter().collect();
                    prop_assert_eq!(released, held.remove(&container).unwrap_or_default());
                }
                Step::TearHint(lost) => {
                    let hint = network.join("last_reserved_ip.0");
                    let _ = if lost { fs::remove_file(hint) } else { fs::write(hint, "10.0.") };
                }
                Step::Crash => {
                    let _ = fs::remove_file(network.join(".unfinished"));
                    fs::write(network.join(".unfinished"), "7\r\n").expect("left behind");
                }
            }
            let on_disk = directory.reservations().expect("listed");
            let wanted: BTreeMap<IpAddr, String> = held
                .iter()
                .flat_map(|(owner, all)| all.iter().map(|one| (*one, owner.to_string())))
                .collect();
            let found: BTreeMap<IpAddr, String> =
                on_disk.into_iter().map(|(address, held)| (address, held.container_id)).collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
