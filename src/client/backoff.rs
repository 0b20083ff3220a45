//! When to try again: exponential, capped, and with full jitter, so that the clients of a gateway
//! that has gone do not come back all at once.

use std::time::Duration;

/// How a lost connection is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Longest wait before the first attempt; it doubles with each one.
    pub first: Duration,
    /// Longest wait before any attempt.
    pub longest: Duration,
    /// Most attempts in a row.
    pub max_attempts: u32,
}

impl Backoff {
    /// How long to wait before `attempt`, the first of which is 1; `None` after the last.
    ///
    /// `random` is any number, each as likely as the others. `at_least` is what the server asked
    /// for (`Retry-After`); it counts up to the longest wait.
    pub(super) fn delay(&self, attempt: u32, random: u64, at_least: Duration) -> Option<Duration> {
        if attempt > self.max_attempts {
            return None;
        }
        let doublings = attempt.saturating_sub(1).min(31);
        let most = self.first.saturating_mul(1 << doublings).min(self.longest);
        let part = random as f64 / u64::MAX as f64;
        Some(at_least.saturating_add(most.mul_f64(part)).min(self.longest))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BACKOFF: Backoff = Backoff {
        first: Duration::from_secs(1),
        longest: Duration::from_secs(30),
        max_attempts: 10,
    };

    fn longest(attempt: u32) -> Duration {
        BACKOFF.delay(attempt, u64::MAX, Duration::ZERO).expect("not the last attempt")
    }

    #[test]
    fn longest_wait_doubles_up_to_the_cap() {
        let waits: Vec<u64> = (1..=7).map(|attempt| longest(attempt).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn wait_is_anything_from_nothing_to_the_longest() {
        assert_eq!(BACKOFF.delay(3, 0, Duration::ZERO), Some(Duration::ZERO));
        let half = BACKOFF.delay(3, u64::MAX / 2, Duration::ZERO).expect("not the last");
        assert!(half.abs_diff(Duration::from_secs(2)) < Duration::from_millis(1), "{half:?}");
    }

    #[test]
    fn server_may_ask_for_more_up_to_the_cap() {
        let asked = Duration::from_secs(5);
        assert_eq!(BACKOFF.delay(1, 0, asked), Some(asked));
        assert_eq!(BACKOFF.delay(1, u64::MAX, asked), Some(Duration::from_secs(6)));
        assert_eq!(BACKOFF.delay(1, 0, Duration::from_secs(3600)), Some(BACKOFF.longest));
    }

    #[test]
    fn attempts_come_to_an_end() {
        assert!(BACKOFF.delay(10, 0, Duration::ZERO).is_some());
        assert_eq!(BACKOFF.delay(11, 0, Duration::ZERO), None);
    }

    proptest! {
        #[test]
        fn no_wait_is_longer_than_the_longest(attempt in 1..=10u32, random: u64, asked: u64) {
            let wait = BACKOFF.delay(attempt, random, Duration::from_secs(asked));
            prop_assert!(wait.expect("not the last attempt") <= BACKOFF.longest);
        }
    }
}
