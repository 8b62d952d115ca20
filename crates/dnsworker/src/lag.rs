//! How long changes take from the agent's ears to the worker's answers.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds of the histogram, in microseconds.
const BOUNDS_US: [u64; 10] =
    [500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000, 1_000_000];
/// The name that CoreDNS gives it.
const NAME: &str = "coredns_kubernetes_dns_programming_duration_seconds";

/// A histogram of changes of the zone.
#[derive(Default)]
pub(crate) struct Lag {
    /// Changes that took at most each bound, and all.
    buckets: [AtomicU64; BOUNDS_US.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Lag {
    /// Counts one change.
    pub(crate) fn record_us(&self, took_us: u64) {
        for (bucket, bound_us) in self.buckets.iter().zip(BOUNDS_US) {
            bucket.fetch_add(u64::from(took_us <= bound_us), Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(took_us, Ordering::Relaxed);
    }

    /// The text of the metric.
    pub(crate) fn metrics(&self) -> String {
        let mut text = format!(
            "# HELP {NAME} Time from an event at the agent until its names are answered.\n\
             # TYPE {NAME} histogram\n"
        );
        let count = self.count.load(Ordering::Relaxed);
        for (bucket, bound_us) in self.buckets.iter().zip(BOUNDS_US) {
            let (bound, below) = (bound_us as f64 / 1e6, bucket.load(Ordering::Relaxed));
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{NAME}_bucket{{le=\"{bound}\"}} {below}");
        }
        let sum = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(
            text,
            "{NAME}_bucket{{le=\"+Inf\"}} {count}\n{NAME}_sum {sum}\n{NAME}_count {count}"
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bucket_counts_what_took_at_most_its_bound() {
        let lag = Lag::default();
        [400, 1_500, 2_000_000].into_iter().for_each(|took_us| lag.record_us(took_us));
        let text = lag.metrics();
        for line in [
            "{le=\"0.0005\"} 1",
            "{le=\"0.002\"} 2",
            "{le=\"1\"} 2",
            "{le=\"+Inf\"} 3",
            "_sum 2.0019",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
