//! How fast may this connection send? Its token buckets, and what is done when they are empty: it is not
//! read, or it is closed.
//!
//! **Slowing.** What a client may not say yet stays where it is: bytes in the socket, and of a read whose
//! messages are too many those that are left, at most [`MAX_PACED_READ_BYTES`]. Everything behind them
//! waits too, Pings and Close among it. The shard's wheel wakes the driver when the next may be taken.

use std::cell::Cell;
use std::time::Instant;

use crate::admission::rate::{Rate, TokenBucket};
use crate::shard::Shard;
use crate::shard::client::Client;
use crate::shard::settings::{Admission, RateLimitAction};
use crate::telemetry::counters::{RateLimit, rate_limited_index};

/// Most bytes of one read of a connection whose messages are slowed: what it keeps unread at most.
pub(crate) const MAX_PACED_READ_BYTES: usize = 16 * 1024;

/// A connection whose bytes are slowed reads as many at once as come in so many parts of a second, or
/// none: reading each byte when it may be read would cost more than the byte.
const READS_PER_SECOND: u32 = 20;

/// The pace of one connection, which is that of the settings when it began.
pub(crate) struct Pace {
    action: RateLimitAction,
    messages: Option<Bucket>,
    bytes: Option<Bucket>,
    /// The last read took all that the bucket of bytes had, so there is likely more.
    was_cut: Cell<bool>,
    /// It is not read until this tick of the wheel.
    resume_tick: Cell<Option<u64>>,
}

struct Bucket {
    rate: Rate,
    tokens: Cell<TokenBucket>,
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self { rate, tokens: Cell::new(TokenBucket::full(rate, now)) }
    }

    #[inline]
    fn with<T>(&self, work: impl FnOnce(&mut TokenBucket, Rate) -> T) -> T {
        let mut tokens = self.tokens.get();
        let result = work(&mut tokens, self.rate);
        self.tokens.set(tokens);
        result
    }
}

impl Pace {
    /// `None` where nothing is limited.
    pub(crate) fn new(settings: &Admission, now: Instant) -> Option<Box<Self>> {
        if settings.messages.is_none() && settings.bytes.is_none() {
            return None;
        }
        Some(Box::new(Self {
            action: settings.rate_limit_action,
            messages: settings.messages.map(|rate| Bucket::full(rate, now)),
            bytes: settings.bytes.map(|rate| Bucket::full(rate, now)),
            was_cut: Cell::new(false),
            resume_tick: Cell::new(None),
        }))
    }

    /// What is behind may not be acted on yet.
    #[inline]
    pub(crate) fn must_wait(&self, now: Instant) -> bool {
        match (&self.messages, self.action) {
            (Some(bucket), RateLimitAction::Slow) => {
                bucket.with(|tokens, rate| tokens.tokens(rate, now)) == 0
            }
            (Some(_), RateLimitAction::Close) | (None, _) => false,
        }
    }

    /// Counts a message. Returns whether it may be acted on; of a client that is slowed it always may,
    /// since [`Pace::must_wait`] was asked before.
    #[inline]
    pub(crate) fn take_message(&self, now: Instant) -> bool {
        let take = |bucket: &Bucket| bucket.with(|tokens, rate| tokens.try_take(rate, now).is_ok());
        self.messages.as_ref().is_none_or(take) || self.action == RateLimitAction::Slow
    }

    /// Counts bytes that were read. Returns whether they may be acted on.
    pub(crate) fn take_bytes(&self, count: usize, now: Instant) -> bool {
        let Some(bucket) = &self.bytes else {
            return true;
        };
        let were_there = bucket.with(|tokens, rate| tokens.take(count, rate, now));
        match self.action {
            RateLimitAction::Slow => {
                self.was_cut.set(bucket.with(|tokens, rate| tokens.tokens(rate, now)) == 0);
                true
            }
            RateLimitAction::Close => were_there,
        }
    }

    /// How many bytes may be read now, or decoded of what was kept. `None`: none, and the driver of
    /// `client` is woken when some may be. `has_unread`: some are kept.
    pub(crate) fn poll_room(
        &self,
        client: &Client,
        shard: &Shard,
        has_unread: bool,
    ) -> Option<usize> {
        if self.resume_tick.get().is_some() {
            return None;
        }
        if self.action == RateLimitAction::Close {
            return Some(usize::MAX);
        }
        let now = shard.now();
        // Whether messages have to wait is known when some are there.
        if has_unread && let Some(bucket) = &self.messages {
            let wait = bucket.with(|tokens, rate| tokens.time_until(1, rate, now));
            if !wait.is_zero() {
                self.wait(client, shard, now + wait, RateLimit::Messages, true);
                return None;
            }
        }
        let most = if self.messages.is_some() { MAX_PACED_READ_BYTES } else { usize::MAX };
        // What is kept was counted when it was read.
        let Some(bucket) = self.bytes.as_ref().filter(|_| !has_unread) else {
            return Some(most);
        };
        let worth = (bucket.rate.a_second() / READS_PER_SECOND).max(1);
        let wait = bucket.with(|tokens, rate| tokens.time_until(worth, rate, now));
        if !wait.is_zero() {
            let was_cut = self.was_cut.get();
            self.wait(client, shard, now + wait, RateLimit::Bytes, was_cut);
            return None;
        }
        Some(most.min(bucket.with(|tokens, rate| tokens.tokens(rate, now))))
    }

    fn wait(&self, client: &Client, shard: &Shard, until: Instant, limit: RateLimit, counts: bool) {
        if counts {
            let index = rate_limited_index(limit, RateLimitAction::Slow as usize);
            shard.counters.rate_limited[index].increment();
        }
        self.resume_tick.set(Some(shard.enter_deadline(client.id, until)));
    }

    /// It is not read for now.
    pub(crate) fn is_waiting(&self) -> bool {
        self.resume_tick.get().is_some()
    }

    /// `tick` has come. Returns whether it was waited for.
    pub(crate) fn handle_tick(&self, tick: u64) -> bool {
        let is_due = self.resume_tick.get() == Some(tick);
        if is_due {
            self.resume_tick.set(None);
        }
        is_due
    }
}
