//! All backends agree with the oracle on random packets in random clusters. `FLATNET_SEED=N` runs
//! one seed, as a failure prints it; `FLATNET_PACKETS=100000` sends so many, with both from that
//! seed on.

use testkit::agreement::{PACKETS, run};

/// Packets of an ordinary run.
const ORDINARY: usize = 10_000;
/// So many failed seeds tell enough.
const FAILED_MAX: usize = 5;

#[test]
fn all_backends_do_what_the_api_means() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("FLATNET_SEED");
    let ordinary = if first.is_some() { PACKETS } else { ORDINARY } as u64;
    let packets = number("FLATNET_PACKETS").unwrap_or(ordinary);
    let first = first.unwrap_or(0);
    let seeds = first..first.saturating_add(packets.div_ceil(PACKETS as u64));
    let (mut sent, mut by_services, mut stopped) = (0, 0, 0);
    let mut failed = Vec::new();
    for seed in seeds.clone() {
        match run(seed) {
            Ok(report) => {
                sent += report.packets;
                by_services += report.by_services;
                stopped += report.stopped;
            }
            Err(error) => failed.push(format!("seed {seed}: {error:#}")),
        }
        if failed.len() == FAILED_MAX {
            break;
        }
    }
    assert!(
        failed.is_empty(),
        "again: FLATNET_SEED=N cargo test -p testkit --test agreement\n  {}",
        failed.join("\n  ")
    );
    println!("{sent} packets, {by_services} by Services, {stopped} stopped");
    if seeds.end - seeds.start > 1 {
        // Packets that meet nothing show nothing.
        assert!(by_services * 4 > sent, "only {by_services} of {sent} met a Service");
        assert!(stopped * 10 > sent, "only {stopped} of {sent} were stopped");
    }
}
