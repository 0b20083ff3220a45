//! What a thread tells about a short time.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::engine::plan::Phase;

/// Three digits of every duration are kept.
const DIGITS: u8 = 3;

/// A histogram of nanoseconds. What takes less than a tenth of a microsecond cannot be told apart.
pub(crate) fn histogram() -> Histogram<u64> {
    let bounds = Histogram::new_with_bounds(100, 600_000_000_000, DIGITS);
    bounds.expect("the bounds are in order")
}

/// What happened on one thread since its last sample, within one phase.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) phase: Phase,
    pub(crate) counts: Counts,
    /// Nanoseconds from when a message was due.
    pub(crate) latency: Option<Histogram<u64>>,
    /// Nanoseconds from when a connection was due until its handshake was answered.
    pub(crate) connect_latency: Option<Histogram<u64>>,
    /// By kind.
    pub(crate) errors: BTreeMap<String, u64>,
}

/// Plain counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Of payloads, inflated where they were compressed.
    pub(crate) received_bytes: u64,
    /// Of the frames that they came in.
    pub(crate) wire_bytes: u64,
    /// Handshakes answered with 101.
    pub(crate) opened: u64,
    /// Connections that came, did what they were for, and went.
    pub(crate) completed: u64,
    /// Pings answered.
    pub(crate) pings: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.received += other.received;
        self.received_bytes += other.received_bytes;
        self.wire_bytes += other.wire_bytes;
        self.opened += other.opened;
        self.completed += other.completed;
        self.pings += other.pings;
    }
}

/// How a reader that was stalled fared.
#[derive(Clone, Debug, Default)]
pub(crate) struct StalledReader {
    /// Messages that it got, in the end.
    pub(crate) received: u64,
    /// Messages that are missing between others.
    pub(crate) gaps: u64,
    /// Messages that are missing after the last one.
    pub(crate) tail: u64,
    /// The code of the server's Close.
    pub(crate) close_code: Option<u16>,
    /// The connection was ended without a Close.
    pub(crate) is_cut: bool,
}

/// What a thread tells when it ends.
#[derive(Debug, Default)]
pub(crate) struct Last {
    /// Deliveries that were due to readers and did not come.
    pub(crate) lost: u64,
    /// Echoes that did not come.
    pub(crate) unanswered: u64,
    pub(crate) stalled: Vec<StalledReader>,
}

/// What comes from the threads.
#[derive(Debug)]
pub(crate) enum Told {
    Sample(Box<Sample>),
    /// The thread has ended.
    Last(Box<Last>),
    /// The thread cannot go on.
    Failed(std::io::Error),
}
