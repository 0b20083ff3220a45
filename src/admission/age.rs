//! When has a connection lasted long enough?

use std::time::Duration;

/// How much an age differs from the one that was asked for, at most: one part in so many.
const JITTER: u32 = 10;

/// `age`, less or more by up to a tenth as `random` decides, so that connections which came together do
/// not go together.
pub fn with_jitter(age: Duration, random: u64) -> Duration {
    let most = age / JITTER;
    // The upper half of a u64 of nanoseconds is centuries.
    let range = (2 * most).as_nanos() as u64;
    age - most + Duration::from_nanos(random % (range + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn age_is_off_by_a_tenth_at_most(seconds in 0u64..3_000_000, random: u64) {
            let age = Duration::from_secs(seconds);
            let jittered = with_jitter(age, random);
            prop_assert!((age * 9 / 10..=age * 11 / 10).contains(&jittered), "{jittered:?}");
        }
    }

    #[test]
    fn ages_are_spread_evenly() {
        let age = Duration::from_secs(1_000);
        let mut tenths = [0; 10];
        for number in 0..10_000u64 {
            // Any numbers that are spread over all of u64 (Fibonacci hashing).
            let early = with_jitter(age, number.wrapping_mul(0x9e37_79b9_7f4a_7c15)) - age * 9 / 10;
            tenths[(early.as_secs() / 20).min(9) as usize] += 1;
        }
        assert!(tenths.iter().all(|count| (900..1_100).contains(count)), "{tenths:?}");
    }
}
