//! What happened, in numbers and in words?
//!
//! - [`cell`]: counters and gauges with one writer.
//! - [`histogram`]: durations with one writer.
//! - [`counters`]: what each shard counts.
//! - [`export`]: all shards' counters as Prometheus sees them.
//! - [`logging`]: the log.

pub mod cell;
pub mod counters;
pub mod export;
pub mod histogram;
pub mod logging;
