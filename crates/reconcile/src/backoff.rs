//! When a failed operation is tried again.

use std::time::Duration;

use crate::Now;

/// The first wait after a failure.
const FIRST: Duration = Duration::from_millis(50);
/// No wait is longer.
const LIMIT: Duration = Duration::from_secs(10);

/// Doubling waits, reset by a success.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
    until: Option<Now>,
}

impl Backoff {
    pub(crate) fn fail(&mut self, now: Now) {
        let wait = FIRST.saturating_mul(1 << self.failures.min(16)).min(LIMIT);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + wait);
    }

    pub(crate) fn succeed(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn is_over(&self, now: Now) -> bool {
        self.until.is_none_or(|until| until <= now)
    }

    pub(crate) fn until(&self) -> Option<Now> {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_a_success_resets_them() {
        let mut backoff = Backoff::default();
        backoff.fail(Now::ZERO);
        assert!(!backoff.is_over(FIRST / 2));
        assert!(backoff.is_over(FIRST));
        for _ in 0..40 {
            backoff.fail(Now::ZERO);
        }
        assert_eq!(backoff.until(), Some(LIMIT));
        backoff.succeed();
        assert!(backoff.is_over(Now::ZERO));
    }
}
