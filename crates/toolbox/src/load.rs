//! `load`: steady requests for a time, and an honest count of what failed.

use std::time::{Duration, Instant};

use crate::arguments::Arguments;
use crate::requests::{Client, MAX_CONCURRENCY, Target, note};
use crate::resolver;
use crate::summary::Summary;
use crate::{CommandResult, Outcome};

/// The longest run.
const MAX_DURATION: Duration = Duration::from_secs(24 * 3600);
/// After a failed connection a worker waits this long, so that a refusal, which takes
/// microseconds, is not counted a million times.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(1);

/// The command. The host's name is resolved once: the name server is not what is under load.
pub(crate) fn run(arguments: &Arguments) -> CommandResult {
    let target = Target::from_arguments(arguments)?;
    let duration_s: Option<f64> = arguments.parsed("--duration-s")?;
    let duration_s =
        duration_s.ok_or_else(|| arguments.misuse("--duration-s is missing".into()))?;
    let duration = Duration::try_from_secs_f64(duration_s)
        .map_err(|error| arguments.misuse(format!("--duration-s: {error}")))?
        .min(MAX_DURATION);
    let concurrency: usize = arguments.parsed("--concurrency")?.unwrap_or(1);
    let concurrency = concurrency.clamp(1, MAX_CONCURRENCY);
    let rate: Option<f64> = arguments.parsed("--rate")?;
    let interval = match rate {
        None => Duration::ZERO,
        Some(rate) => Duration::try_from_secs_f64(concurrency as f64 / rate)
            .map_err(|_| arguments.misuse("--rate must be above 0".into()))?,
    };
    let addresses = resolver::resolve(&target.host)?;
    let keeps_alive = arguments.has("--keep-alive");
    let mut total = Summary::default();
    let began = Instant::now();
    let end = began + duration;
    std::thread::scope(|scope| {
        let start = |worker: usize| {
            let client = Client::new(target.clone(), addresses.clone(), keeps_alive);
            // Workers take turns rather than starting together.
            let first = began + interval.mul_f64(worker as f64 / concurrency as f64);
            scope.spawn(move || work(client, first, interval, end))
        };
        let workers: Vec<_> = (0..concurrency).map(start).collect();
        for worker in workers {
            match worker.join() {
                Ok(summary) => total.merge(&summary),
                Err(_) => total.failed("a thread of this client failed"),
            }
        }
    });
    let mut json = total.json();
    json["duration_ms"] = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX).into();
    println!("{json}");
    Ok(if total.failed == 0 && total.requests > 0 { Outcome::Success } else { Outcome::Failed })
}

fn work(mut client: Client, first: Instant, interval: Duration, end: Instant) -> Summary {
    let mut summary = Summary::default();
    let mut next = first;
    loop {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        let began = Instant::now();
        if began >= end {
            summary.resent = client.resent;
            return summary;
        }
        let result = client.request(None, &mut |_| {});
        if result.is_err() {
            std::thread::sleep(PAUSE_AFTER_FAILURE);
        }
        note(&mut summary, result, began.elapsed());
        // A late worker does not catch up in a burst.
        next = (next + interval).max(Instant::now());
    }
}
