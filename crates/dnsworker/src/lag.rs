//! How long changes take from the agent's ears to the worker's answers.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use dns::feed::{Change, ServiceKind};

/// Upper bounds of the histogram, in microseconds.
const BOUNDS_US: [u64; 10] =
    [500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000, 1_000_000];
/// The name that CoreDNS gives it.
const NAME: &str = "coredns_kubernetes_dns_programming_duration_seconds";

/// Histograms of changes of the zone, by the kind of the Services that changed. What is about pods
/// and clients alone, and Services that are gone, is of no kind.
#[derive(Default)]
pub(crate) struct Lag {
    kinds: [Histogram; KINDS.len()],
}

/// Kinds, and CoreDNS's names for them.
const KINDS: [(ServiceKind, &str); 3] = [
    (ServiceKind::ClusterIp, "cluster_ip"),
    (ServiceKind::HeadlessWithSelector, "headless_with_selector"),
    (ServiceKind::HeadlessWithoutSelector, "headless_without_selector"),
];

#[derive(Default)]
struct Histogram {
    /// Changes that took at most each bound, and all.
    buckets: [AtomicU64; BOUNDS_US.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

/// The kinds of Services among changes that came together.
pub(crate) fn kinds(changes: &[Change]) -> BTreeSet<ServiceKind> {
    let kind = |change: &Change| match change {
        Change::Service { kind, .. } => *kind,
        Change::Pod { .. } | Change::Client { .. } => None,
    };
    changes.iter().filter_map(kind).collect()
}

impl Lag {
    /// Counts changes that came together, once for each kind of Services among them.
    pub(crate) fn record_us(&self, kinds: &BTreeSet<ServiceKind>, took_us: u64) {
        for ((kind, _), histogram) in KINDS.iter().zip(&self.kinds) {
            if kinds.contains(kind) {
                histogram.record_us(took_us);
            }
        }
    }

    /// The text of the metric.
    pub(crate) fn metrics(&self) -> String {
        let mut text = format!(
            "# HELP {NAME} Time from an event at the agent until its names are answered.\n\
             # TYPE {NAME} histogram\n"
        );
        for ((_, kind), histogram) in KINDS.iter().zip(&self.kinds) {
            histogram.print(&mut text, &format!("service_kind=\"{kind}\""));
        }
        text
    }
}

impl Histogram {
    fn record_us(&self, took_us: u64) {
        for (bucket, bound_us) in self.buckets.iter().zip(BOUNDS_US) {
            bucket.fetch_add(u64::from(took_us <= bound_us), Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(took_us, Ordering::Relaxed);
    }

    fn print(&self, text: &mut String, label: &str) {
        let count = self.count.load(Ordering::Relaxed);
        for (bucket, bound_us) in self.buckets.iter().zip(BOUNDS_US) {
            let (bound, below) = (bound_us as f64 / 1e6, bucket.load(Ordering::Relaxed));
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{NAME}_bucket{{{label},le=\"{bound}\"}} {below}");
        }
        let sum = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(
            text,
            "{NAME}_bucket{{{label},le=\"+Inf\"}} {count}\n{NAME}_sum{{{label}}} {sum}\n\
             {NAME}_count{{{label}}} {count}"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use model::NamespacedName;
    use plan::zone::ServiceNews;

    use super::*;

    fn of(kind: Option<ServiceKind>) -> Change {
        let news = ServiceNews { records: None, kind };
        Change::of_news(&NamespacedName::new("shop", "web"), &news)
    }

    #[test]
    fn each_kind_counts_what_took_at_most_each_bound() {
        let lag = Lag::default();
        let pod = Change::Pod { address: IpAddr::from([10, 244, 0, 1]), names: None };
        let selected = of(Some(ServiceKind::HeadlessWithSelector));
        for (took_us, changes) in [
            (400, vec![selected.clone(), selected.clone(), pod.clone()]),
            (1_500, vec![of(Some(ServiceKind::ClusterIp)), selected.clone()]),
            (2_000_000, vec![selected]),
            (300, vec![pod, of(None)]),
        ] {
            lag.record_us(&kinds(&changes), took_us);
        }
        let text = lag.metrics();
        for line in [
            "_bucket{service_kind=\"headless_with_selector\",le=\"0.0005\"} 1",
            "_bucket{service_kind=\"headless_with_selector\",le=\"0.002\"} 2",
            "_bucket{service_kind=\"headless_with_selector\",le=\"1\"} 2",
            "_bucket{service_kind=\"headless_with_selector\",le=\"+Inf\"} 3",
            "_sum{service_kind=\"headless_with_selector\"} 2.0019",
            "_count{service_kind=\"cluster_ip\"} 1",
            "_count{service_kind=\"headless_without_selector\"} 0",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
