//! What one client may ask: a bucket a client, and what each asked so far.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::config::RateLimit;

/// Clients that have buckets of their own; further ones share one.
pub const MAX_CLIENTS: usize = 4096;
/// How often clients that went are looked for when there are too many, in microseconds.
const SWEEP_INTERVAL_US: u64 = 1_000_000;

/// What is known of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCounts {
    /// Questions.
    pub asked: u64,
    /// Of these, over the limit.
    pub limited: u64,
    /// Answers that said failure.
    pub failed: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// Millionths of a question.
    filled: u64,
    filled_at_us: u64,
    counts: ClientCounts,
}

/// The buckets of all clients.
#[derive(Debug)]
pub(crate) struct Limits {
    limit: RateLimit,
    clients: BTreeMap<IpAddr, Bucket>,
    others: Bucket,
    swept_at_us: u64,
}

impl Limits {
    pub(crate) fn new(limit: RateLimit) -> Self {
        let others = full(limit, 0);
        Self { limit, clients: BTreeMap::new(), others, swept_at_us: 0 }
    }

    pub(crate) fn configure(&mut self, limit: RateLimit) {
        self.limit = limit;
    }

    /// Counts a question, and says whether it is within the limit.
    pub(crate) fn allows(&mut self, client: IpAddr, now_us: u64) -> bool {
        let limit = self.limit;
        let bucket = self.bucket(client, now_us);
        bucket.counts.asked += 1;
        if limit.queries_per_second == 0 {
            return true;
        }
        let passed_us = now_us.saturating_sub(bucket.filled_at_us);
        let gained = passed_us.saturating_mul(u64::from(limit.queries_per_second));
        bucket.filled = bucket.filled.saturating_add(gained).min(capacity(limit));
        bucket.filled_at_us = now_us;
        match bucket.filled.checked_sub(QUESTION) {
            Some(rest) => {
                bucket.filled = rest;
                true
            }
            None => {
                bucket.counts.limited += 1;
                false
            }
        }
    }

    /// Counts a failure.
    pub(crate) fn failed(&mut self, client: IpAddr) {
        if let Some(bucket) = self.clients.get_mut(&client) {
            bucket.counts.failed += 1;
        }
    }

    /// What is known of each client.
    pub(crate) fn clients(&self) -> impl Iterator<Item = (IpAddr, ClientCounts)> {
        self.clients.iter().map(|(client, bucket)| (*client, bucket.counts))
    }

    fn bucket(&mut self, client: IpAddr, now_us: u64) -> &mut Bucket {
        if self.clients.len() >= MAX_CLIENTS && !self.clients.contains_key(&client) {
            if now_us >= self.swept_at_us + SWEEP_INTERVAL_US {
                self.swept_at_us = now_us;
                self.forget_idle(now_us);
            }
            if self.clients.len() >= MAX_CLIENTS {
                return &mut self.others;
            }
        }
        let limit = self.limit;
        self.clients.entry(client).or_insert_with(|| full(limit, now_us))
    }

    /// Forgets clients whose buckets are full again: a new bucket is as good.
    fn forget_idle(&mut self, now_us: u64) {
        let (limit, capacity) = (self.limit, capacity(self.limit));
        self.clients.retain(|_, bucket| {
            let passed_us = now_us.saturating_sub(bucket.filled_at_us);
            let gained = passed_us.saturating_mul(u64::from(limit.queries_per_second));
            bucket.filled.saturating_add(gained) < capacity
        });
    }
}

/// One question, in millionths.
const QUESTION: u64 = 1_000_000;

fn capacity(limit: RateLimit) -> u64 {
    u64::from(limit.burst.max(1)) * QUESTION
}

fn full(limit: RateLimit, now_us: u64) -> Bucket {
    Bucket { filled: capacity(limit), filled_at_us: now_us, counts: ClientCounts::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: RateLimit = RateLimit { queries_per_second: 100, burst: 10 };

    fn client(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0AF0_0000 + number).into()
    }

    /// one client has its share, and others theirs.
    #[test]
    fn a_client_has_its_burst_and_then_its_speed() {
        let mut limits = Limits::new(LIMIT);
        let allowed = |limits: &mut Limits, number, now_us| {
            (0..100).filter(|_| limits.allows(client(number), now_us)).count()
        };
        assert_eq!(allowed(&mut limits, 1, 0), 10);
        assert_eq!(allowed(&mut limits, 1, 50_000), 5);
        assert_eq!(allowed(&mut limits, 2, 50_000), 10);
        assert_eq!(allowed(&mut limits, 1, 10_000_000), 10);
        let counts: Vec<_> = limits.clients().map(|(_, counts)| counts.limited).collect();
        assert_eq!(counts, [90 + 95 + 90, 90]);
        let off = RateLimit { queries_per_second: 0, burst: 0 };
        assert_eq!(allowed(&mut Limits::new(off), 1, 0), 100, "with the limit off, all pass");
    }

    #[test]
    fn a_crowd_of_clients_takes_no_more_memory() {
        let mut limits = Limits::new(LIMIT);
        for number in 0..3 * MAX_CLIENTS as u32 {
            limits.allows(client(number), 0);
        }
        assert_eq!(limits.clients.len(), MAX_CLIENTS);
        // Those that went make room.
        assert!(limits.allows(client(9_000_000), 2_000_000));
        assert_eq!(limits.clients.len(), 1);
    }
}
