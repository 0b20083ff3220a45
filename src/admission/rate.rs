//! So many a second, as a token bucket. Integers alone: however often it is asked, it gives out exactly
//! its rate.

use std::time::{Duration, Instant};

/// So many a second, and so many at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// 1 to [`Rate::MAX`].
    per_second: u32,
    /// 1 to [`Rate::MAX`].
    burst: u32,
}

impl Rate {
    /// Most a second, and most at once: what a bucket can hold in billionths.
    pub const MAX: u32 = 1 << 30;

    /// `per_second` a second, as many at once. Either is taken to be 1 to [`Rate::MAX`].
    pub fn per_second(per_second: u32) -> Self {
        Self::new(per_second, per_second)
    }

    /// `per_second` a second, and `burst` at once. Either is taken to be 1 to [`Rate::MAX`].
    pub fn new(per_second: u32, burst: u32) -> Self {
        Self { per_second: per_second.clamp(1, Self::MAX), burst: burst.clamp(1, Self::MAX) }
    }

    /// How many a second.
    pub fn a_second(self) -> u32 {
        self.per_second
    }

    /// How many at once.
    pub fn burst(self) -> u32 {
        self.burst
    }

    /// How long an empty bucket takes to be full.
    pub fn refill_time(self) -> Duration {
        self.time_for(i64::from(self.burst) * BILLION)
    }

    /// How long so many billionths take to come.
    fn time_for(self, billionths: i64) -> Duration {
        let billionths = billionths.max(0) as u64;
        Duration::from_nanos(billionths.div_ceil(u64::from(self.per_second)))
    }
}

/// A rate of one a second adds so many billionths of a token as nanoseconds pass.
const BILLION: i64 = 1_000_000_000;

/// Tokens that come at a rate, which whoever asks gives, and are taken by what is let through.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    /// Billionths of a token. Below zero: taken before they came.
    billionths: i64,
    /// When they were that many.
    updated: Instant,
}

impl TokenBucket {
    /// A full bucket.
    pub fn full(rate: Rate, now: Instant) -> Self {
        Self { billionths: i64::from(rate.burst) * BILLION, updated: now }
    }

    /// Takes one token.
    ///
    /// # Errors
    ///
    /// There is none. It says how long it takes until there is one.
    #[inline]
    pub fn try_take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        self.update(rate, now);
        if self.billionths < BILLION {
            return Err(rate.time_for(BILLION - self.billionths));
        }
        self.billionths -= BILLION;
        Ok(())
    }

    /// Takes `count` tokens, also those that are not there yet. Returns whether all were there.
    pub fn take(&mut self, count: usize, rate: Rate, now: Instant) -> bool {
        self.update(rate, now);
        let billionths = i64::try_from(count).unwrap_or(i64::MAX).saturating_mul(BILLION);
        let were_there = self.billionths >= billionths;
        self.billionths = self.billionths.saturating_sub(billionths);
        were_there
    }

    /// Whole tokens that are there.
    pub fn tokens(&mut self, rate: Rate, now: Instant) -> usize {
        self.update(rate, now);
        (self.billionths.max(0) / BILLION) as usize
    }

    /// How long it takes until `count` tokens are there, or a full bucket.
    pub fn time_until(&mut self, count: u32, rate: Rate, now: Instant) -> Duration {
        self.update(rate, now);
        let wanted = i64::from(count.min(rate.burst)) * BILLION;
        rate.time_for(wanted.saturating_sub(self.billionths))
    }

    /// No more tokens would come.
    pub fn is_full(&mut self, rate: Rate, now: Instant) -> bool {
        self.update(rate, now);
        self.billionths >= i64::from(rate.burst) * BILLION
    }

    /// Adds what has come up to `now`. A clock that went back adds nothing.
    #[inline]
    fn update(&mut self, rate: Rate, now: Instant) {
        // All messages of one read come at the same instant.
        if now <= self.updated {
            return;
        }
        let elapsed = now.saturating_duration_since(self.updated).as_nanos();
        let come = elapsed.saturating_mul(u128::from(rate.per_second));
        let come = i64::try_from(come).unwrap_or(i64::MAX);
        let most = i64::from(rate.burst) * BILLION;
        self.billionths = self.billionths.saturating_add(come).min(most);
        self.updated = now;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn burst_passes_at_once_and_then_one_whenever_its_time_has_come() {
        let (rate, start) = (Rate::new(10, 3), Instant::now());
        let mut bucket = TokenBucket::full(rate, start);
        for _ in 0..3 {
            assert_eq!(bucket.try_take(rate, start), Ok(()));
        }
        assert_eq!(bucket.try_take(rate, start), Err(millis(100)));
        assert_eq!(bucket.try_take(rate, start + millis(40)), Err(millis(60)));
        assert_eq!(bucket.try_take(rate, start + millis(100)), Ok(()));
        assert_eq!(bucket.try_take(rate, start + millis(100)), Err(millis(100)));
        // However long the pause, no more than the burst.
        let later = start + Duration::from_secs(1_000_000_000);
        assert_eq!(bucket.tokens(rate, later), 3);
        assert!(bucket.is_full(rate, later));
    }

    #[test]
    fn what_is_taken_before_it_came_has_to_come_first() {
        let (rate, start) = (Rate::per_second(1_000), Instant::now());
        let mut bucket = TokenBucket::full(rate, start);
        assert!(bucket.take(1_000, rate, start));
        assert!(!bucket.take(500, rate, start));
        assert_eq!(bucket.tokens(rate, start), 0);
        assert_eq!(bucket.time_until(1, rate, start), millis(501));
        assert_eq!(bucket.time_until(u32::MAX, rate, start), millis(1_500), "until it is full");
        assert_eq!(bucket.try_take(rate, start + millis(500)), Err(millis(1)));
        assert_eq!(bucket.try_take(rate, start + millis(501)), Ok(()));
    }

    #[test]
    fn clock_that_goes_back_gives_nothing_twice() {
        let (rate, start) = (Rate::per_second(1), Instant::now() + Duration::from_secs(60));
        let mut bucket = TokenBucket::full(rate, start);
        assert_eq!(bucket.try_take(rate, start), Ok(()));
        assert!(bucket.try_take(rate, start - Duration::from_secs(30)).is_err());
        assert!(bucket.try_take(rate, start + millis(999)).is_err());
        assert_eq!(bucket.try_take(rate, start + millis(1_000)), Ok(()));
    }

    #[test]
    fn largest_rates_do_not_overflow() {
        let (rate, start) = (Rate::per_second(u32::MAX), Instant::now());
        let mut bucket = TokenBucket::full(rate, start);
        for _ in 0..100 {
            bucket.take(usize::MAX, rate, start);
        }
        bucket.tokens(rate, start + Duration::from_secs(1 << 40));
        assert!(bucket.time_until(u32::MAX, rate, start) > Duration::ZERO);
    }

    proptest! {
        /// As many as the burst and the rate allow, to the token, however the asking is spread.
        #[test]
        fn greedy_client_gets_the_burst_and_the_rate_exactly(
            per_second in 1u32..2_000,
            burst in 1u32..50,
            pauses in proptest::collection::vec(0u64..2_000_000_000, 1..200),
        ) {
            let (rate, start) = (Rate::new(per_second, burst), Instant::now());
            let mut bucket = TokenBucket::full(rate, start);
            // The model: tokens in billionths, as a number that cannot overflow or round.
            let (mut now, mut model) = (start, u128::from(burst) * 1_000_000_000);
            for pause in pauses {
                now += Duration::from_nanos(pause);
                model = (model + u128::from(pause) * u128::from(per_second))
                    .min(u128::from(burst) * 1_000_000_000);
                let mut passed = 0;
                while bucket.try_take(rate, now).is_ok() {
                    passed += 1;
                }
                prop_assert_eq!(passed, model / 1_000_000_000);
                model %= 1_000_000_000;
                let wait = bucket.try_take(rate, now).expect_err("it is empty");
                let mut copy = bucket;
                prop_assert!(copy.try_take(rate, now + wait).is_ok());
                let mut copy = bucket;
                prop_assert!(copy.try_take(rate, now + wait - Duration::from_nanos(1)).is_err());
            }
        }
    }
}
