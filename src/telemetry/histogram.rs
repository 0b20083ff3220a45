//! Durations that one thread writes and any thread reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::telemetry::cell::Counter;

/// Upper bounds of the buckets in seconds, from a delivery in 50 µs to one in 5 s.
pub const BOUNDS_SECONDS: [f64; 15] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 5.0,
];

const BUCKETS: usize = BOUNDS_SECONDS.len() + 1;

/// How often durations fell between which bounds, and how long they were in all.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Bucket; BUCKETS],
}

#[derive(Debug, Default)]
struct Bucket {
    observations: Counter,
    /// The bits of an `f64`.
    seconds: AtomicU64,
}

impl Histogram {
    /// Takes note of one duration. Only the owner may.
    pub fn record(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = &self.buckets[BOUNDS_SECONDS.partition_point(|bound| *bound < seconds)];
        let sum = f64::from_bits(bucket.seconds.load(Ordering::Relaxed)) + seconds;
        bucket.seconds.store(sum.to_bits(), Ordering::Relaxed);
        bucket.observations.increment();
    }

    /// Observations and their sum in seconds for each bucket, from any thread.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(std::array::from_fn(|index| {
            let bucket = &self.buckets[index];
            let seconds = f64::from_bits(bucket.seconds.load(Ordering::Relaxed));
            (bucket.observations.value(), seconds)
        }))
    }
}

/// A histogram at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot([(u64, f64); BUCKETS]);

impl Snapshot {
    /// What came since `earlier`: for each bucket that grew, how many observations, and the mean of
    /// them in seconds, which lies in that bucket.
    pub fn since(&self, earlier: &Self) -> impl Iterator<Item = (u64, f64)> {
        let buckets = self.0.iter().zip(&earlier.0).enumerate();
        buckets.filter_map(|(index, ((count, sum), (old_count, old_sum)))| {
            let new = count.wrapping_sub(*old_count);
            (new > 0).then(|| (new, Self::within(index, (sum - old_sum) / new as f64)))
        })
    }

    /// The mean of new observations in the bucket of this index, kept in that bucket: the owner may
    /// have been between writing the sum and the count when they were read.
    fn within(index: usize, mean: f64) -> f64 {
        let lower = index.checked_sub(1).map_or(0.0, |below| BOUNDS_SECONDS[below].next_up());
        let upper = BOUNDS_SECONDS.get(index).copied().unwrap_or(f64::MAX);
        mean.clamp(lower, upper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_since_a_snapshot_keeps_count_and_sum() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_millis(3));
        let earlier = histogram.snapshot();
        histogram.record(Duration::from_millis(3));
        histogram.record(Duration::from_millis(5));
        histogram.record(Duration::from_secs(60));
        let mut since: Vec<_> = histogram.snapshot().since(&earlier).collect();
        since.iter_mut().for_each(|(_, mean)| *mean = (*mean * 1e6).round() / 1e6);
        assert_eq!(since, [(2, 0.004), (1, 60.0)]);
    }
}
