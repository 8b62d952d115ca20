//! Which times of a schedule are over, and which comes next.

use model::Timestamp;
use model::cron::{Schedule, Zone};

/// Missed times beyond which people are told.
const MAX_MISSED: i64 = 100;
/// Times that are walked over one by one to find the latest: the estimate begins close to it.
const MAX_WALK: usize = 10_000;

/// A schedule at a moment.
pub(super) struct Times<'a> {
    pub schedule: &'a Schedule,
    pub zone: &'a Zone,
    pub now: Timestamp,
}

/// What is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// The latest time that is over; those before it are left out.
    pub time: Option<Timestamp>,
    /// Whether so many were missed that people should know.
    pub too_many: bool,
}

impl Times<'_> {
    /// The latest time after `since` that is over. With a deadline nothing before it counts.
    pub fn latest(&self, since: Timestamp, deadline_seconds: Option<i64>) -> Due {
        let horizon = deadline_seconds
            .map(|seconds| Timestamp::from_seconds(self.now.seconds().saturating_sub(seconds)));
        let since = horizon.map_or(since, |horizon| horizon.max(since));
        let Some(first) = self.next(since).filter(|first| *first <= self.now) else {
            return Due::default();
        };
        let Some(second) = self.next(first).filter(|second| *second <= self.now) else {
            return Due { time: Some(first), too_many: false };
        };
        let distance = second.seconds().saturating_sub(first.seconds()).max(1);
        let missed = self.now.seconds().saturating_sub(first.seconds()) / distance + 1;
        Due { time: self.walk(first, distance, missed), too_many: missed > MAX_MISSED }
    }

    /// The latest time that is over, by an estimate of how many there were. It leaps by whole
    /// distances, so that `@every` keeps its rhythm, to shortly before now; where times are not
    /// evenly spread it leaps less and less far, until one is found.
    fn walk(&self, first: Timestamp, distance_seconds: i64, missed: i64) -> Option<Timestamp> {
        let mut short = 1_i64;
        loop {
            let leaps = (missed - 1).saturating_sub(short).max(0);
            let leap = leaps.saturating_mul(distance_seconds);
            let near = Timestamp::from_seconds(first.seconds().saturating_add(leap));
            let later = std::iter::successors(self.next(near), |time| self.next(*time));
            let over = later.take(MAX_WALK).take_while(|time| *time <= self.now);
            let latest = over.last();
            if latest.is_some() || leaps == 0 {
                return latest;
            }
            short = short.saturating_mul(2);
        }
    }

    /// The next time that is not over.
    pub fn following(&self, since: Timestamp) -> Option<Timestamp> {
        let base = self.latest(since, None).time.unwrap_or(since);
        self.next(base).filter(|next| *next > self.now).or_else(|| self.next(self.now))
    }

    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        self.schedule.next(after, self.zone)
    }
}

/// A time as Go's RFC1123Z writes it, in UTC.
pub(super) fn rfc1123(time: Timestamp) -> String {
    let time = jiff::Timestamp::from_second(time.seconds()).unwrap_or_default();
    time.strftime("%a, %d %b %Y %H:%M:%S %z").to_string()
}
