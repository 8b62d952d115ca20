//! The whole cluster by seeds. `FLATNET_SEED=N` runs one seed, as a failure prints it;
//! `FLATNET_SEEDS=N` runs so many.

use std::collections::BTreeMap;

use testkit::sim;

/// Seeds of an ordinary run.
const SEEDS: u64 = 60;
/// Steps of one seed.
const STEPS: usize = 600;

#[test]
fn clusters_come_to_what_the_api_means_after_any_faults() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds = match number("FLATNET_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("FLATNET_SEEDS").unwrap_or(SEEDS),
    };
    let (mut packets, mut by_services) = (0, 0);
    let mut faults: BTreeMap<String, usize> = BTreeMap::new();
    for seed in seeds.clone() {
        match sim::run(seed, STEPS) {
            Ok(report) => {
                packets += report.packets;
                by_services += report.by_services;
                for (fault, count) in report.faults {
                    *faults.entry(fault).or_default() += count;
                }
            }
            Err(error) => panic!(
                "seed {seed}: {error:#}\nagain: FLATNET_SEED={seed} cargo test -p testkit --test simulation"
            ),
        }
    }
    println!("{packets} packets, {by_services} by Services, faults {faults:?}");
    if seeds.end - seeds.start >= SEEDS {
        // A simulation in which nothing happens shows nothing.
        assert!(by_services * 4 > packets, "only {by_services} of {packets} met a Service");
        assert_eq!(faults.len(), 6, "{faults:?}");
    }
}

#[test]
fn one_seed_is_one_run() {
    let report = sim::run(7, STEPS).expect("a cluster");
    assert_eq!(sim::run(7, STEPS).expect("a cluster"), report);
    assert!(report.operations > 0 && report.actions > 0);
}
