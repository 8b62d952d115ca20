//! What many requests came to.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

/// Different error texts, or pods, that are counted apart; the rest are counted together.
const MAX_NAMES: usize = 256;
/// Latencies are counted in buckets: exact below this many microseconds, above it within one part
/// in 64, so that a run of any length takes the same memory.
const EXACT_US: u64 = 128;
const BUCKETS_PER_OCTAVE: u64 = 64;
const BUCKETS: usize = 64 * 30;

/// Counts of requests.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    /// Requests sent again because the server had closed a kept connection before a byte of the
    /// answer, as every HTTP client does (RFC 9110, 9.2.2). They are no failures.
    pub(crate) resent: u64,
    pub(crate) body_bytes: u64,
    by_pod: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
    latencies: Vec<u64>,
    max_us: u64,
}

impl Default for Summary {
    fn default() -> Self {
        Self {
            requests: 0,
            failed: 0,
            resent: 0,
            body_bytes: 0,
            by_pod: BTreeMap::new(),
            errors: BTreeMap::new(),
            latencies: vec![0; BUCKETS],
            max_us: 0,
        }
    }
}

impl Summary {
    /// Counts a request that was answered as expected.
    pub(crate) fn succeeded(&mut self, pod: Option<&str>, took: Duration) {
        self.requests += 1;
        if let Some(pod) = pod {
            count(&mut self.by_pod, pod, 1);
        }
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.max_us = self.max_us.max(us);
        if let Some(bucket) = self.latencies.get_mut(bucket_of(us)) {
            *bucket += 1;
        }
    }

    /// Counts a request that was not.
    pub(crate) fn failed(&mut self, error: &str) {
        self.requests += 1;
        self.failed += 1;
        count(&mut self.errors, error, 1);
    }

    /// Adds another's counts.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.resent += other.resent;
        self.body_bytes += other.body_bytes;
        self.max_us = self.max_us.max(other.max_us);
        for (name, number) in &other.by_pod {
            count(&mut self.by_pod, name, *number);
        }
        for (text, number) in &other.errors {
            count(&mut self.errors, text, *number);
        }
        for (bucket, number) in self.latencies.iter_mut().zip(&other.latencies) {
            *bucket += number;
        }
    }

    /// All of it as JSON.
    pub(crate) fn json(&self) -> Value {
        json!({
            "requests": self.requests,
            "failed": self.failed,
            "resent": self.resent,
            "by_pod": self.by_pod,
            "errors": self.errors,
            "body_bytes": self.body_bytes,
            "p50_us": self.percentile_us(50),
            "p99_us": self.percentile_us(99),
            "max_us": self.max_us,
        })
    }

    /// The latency that this share of the answered requests stayed within.
    fn percentile_us(&self, percent: u64) -> u64 {
        let answered: u64 = self.latencies.iter().sum();
        let rank = (answered * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (bucket, number) in self.latencies.iter().enumerate() {
            seen += number;
            if seen >= rank {
                return upper_bound_us(bucket).min(self.max_us);
            }
        }
        0
    }
}

fn count(counts: &mut BTreeMap<String, u64>, name: &str, number: u64) {
    let known = counts.contains_key(name) || counts.len() < MAX_NAMES;
    *counts.entry(if known { name } else { "(others)" }.to_string()).or_default() += number;
}

fn bucket_of(us: u64) -> usize {
    if us < EXACT_US {
        return us as usize;
    }
    // The seven highest bits, the first of which is always set.
    let octave = u64::from(us.ilog2()) - 6;
    let bucket = octave * BUCKETS_PER_OCTAVE + (us >> octave);
    usize::try_from(bucket).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

fn upper_bound_us(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < EXACT_US {
        return bucket;
    }
    let octave = bucket / BUCKETS_PER_OCTAVE - 1;
    let top = bucket - octave * BUCKETS_PER_OCTAVE;
    ((top + 1) << octave) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_their_values_within_two_percent() {
        for us in (0..100_000).chain([1 << 20, 59_999_999, 1 << 33]) {
            let bound = upper_bound_us(bucket_of(us));
            assert!(bound >= us && bound <= us + us / 50 + 1, "{us} in a bucket up to {bound}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_and_counts_of_merged_summaries() {
        let (mut one, mut other) = (Summary::default(), Summary::default());
        (1..=90).for_each(|us| one.succeeded(Some("a"), Duration::from_micros(us)));
        (91..=100).for_each(|us| other.succeeded(Some("b"), Duration::from_micros(us)));
        other.failed("timeout");
        one.merge(&other);
        let json = one.json();
        assert_eq!(
            (&json["p50_us"], &json["p99_us"], &json["max_us"]),
            (&50.into(), &99.into(), &100.into())
        );
        assert_eq!((&json["requests"], &json["failed"]), (&101.into(), &1.into()));
        assert_eq!(json["by_pod"], json!({"a": 90, "b": 10}));
        assert_eq!(json["errors"], json!({"timeout": 1}));
    }
}
