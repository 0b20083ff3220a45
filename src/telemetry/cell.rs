//! Counters and gauges that one thread writes and any thread reads.
//!
//! A shard counts several things for every message. With one writer a plain load and a plain store
//! are enough, which compile to the same instructions as a `Cell<u64>`: no locked instruction, no
//! cache line that two writers fight for. And a scrape reads them without asking the shard, so
//! `/metrics` answers at once even while a shard is stuck, which is when somebody looks.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`. Only the owner may.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// Adds one. Only the owner may.
    #[inline]
    pub fn increment(&self) {
        self.add(1);
    }

    /// The number so far, from any thread.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down, never below zero.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Replaces the number. Only the owner may.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Takes note that a part of the whole went from `before` to `after`. Only the owner may.
    #[inline]
    pub fn moved(&self, before: usize, after: usize) {
        if before != after {
            let value = self.value().wrapping_sub(before as u64).wrapping_add(after as u64);
            self.set(value);
        }
    }

    /// The number now, from any thread.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
