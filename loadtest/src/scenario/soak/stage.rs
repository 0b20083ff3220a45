//! What all clients of a soak share: the server, what it has promised, the time, and what they find.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::client::deflate::Compression;
use crate::client::frame::opcode;
use crate::client::payload::{Payload, Random};
use crate::client::stamp::Stamp;
use crate::engine::sample::histogram;
use crate::scenario::arguments::Place;
use crate::scenario::soak::promises::{FollowerId, Ledger};
use crate::scenario::soak::socket::Socket;
use crate::scenario::soak::verdicts::{Breach, Invariant, Verdicts};

/// Whoever waits for the load to go on looks so often.
pub(super) const LOOK: Duration = Duration::from_millis(20);

/// What the server is known to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) max_message_bytes: usize,
    pub(super) outbound_queue_bytes: usize,
    pub(super) handshake_timeout: Duration,
}

/// What goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    Load,
    /// Nothing new is begun.
    Quiet,
    Ended,
}

/// Shared by all threads.
pub(super) struct Stage {
    pub(super) place: Place,
    pub(super) limits: Limits,
    /// What those offer who compress.
    pub(super) compression: Compression,
    pub(super) channels: u32,
    /// The publishers with a smaller number publish by the API, which is text.
    pub(super) api_publishers: u16,
    epoch: Instant,
    phase: AtomicU8,
    /// Publications, echoes and visits that were begun and are not done.
    under_way: AtomicUsize,
    pub(super) open: AtomicU64,
    pub(super) opened: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) received_bytes: AtomicU64,
    ledger: Mutex<Ledger>,
    verdicts: Mutex<Verdicts>,
    /// What was done, and how often.
    done: Mutex<BTreeMap<&'static str, u64>>,
    latency: Mutex<Histogram<u64>>,
}

/// Something that was begun; it is done when this is dropped.
pub(super) struct UnderWay<'a>(&'a Stage);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A client that hears channels, and knows where it is in each.
pub(super) struct Membership {
    pub(super) name: String,
    followers: BTreeMap<u32, FollowerId>,
}

impl Stage {
    pub(super) fn new(
        place: Place,
        limits: Limits,
        compression: Compression,
        channels: u32,
        api_publishers: u16,
        publishers: impl IntoIterator<Item = u32>,
    ) -> Self {
        Self {
            place,
            limits,
            compression,
            channels,
            api_publishers,
            epoch: Instant::now(),
            phase: AtomicU8::new(Phase::Quiet as u8),
            under_way: AtomicUsize::new(0),
            open: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            ledger: Mutex::new(Ledger::new(channels, publishers)),
            verdicts: Mutex::default(),
            done: Mutex::default(),
            latency: Mutex::new(histogram()),
        }
    }

    /// Nanoseconds since the soak began.
    pub(super) fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.phase.load(Ordering::SeqCst) == Phase::Ended as u8
    }

    /// Begins something, unless nothing is to be begun now.
    pub(super) fn begin(&self) -> Option<UnderWay<'_>> {
        // Counted first: who waits for all to be done must not miss it.
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let under_way = UnderWay(self);
        (self.phase.load(Ordering::SeqCst) == Phase::Load as u8).then_some(under_way)
    }

    /// Begins something as soon as that may be; `None` when the soak has ended.
    pub(super) fn begin_when_loaded(&self) -> Option<UnderWay<'_>> {
        while !self.has_ended() {
            if let Some(under_way) = self.begin() {
                return Some(under_way);
            }
            std::thread::sleep(LOOK);
        }
        None
    }

    pub(super) fn is_idle(&self) -> bool {
        self.under_way.load(Ordering::SeqCst) == 0
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("no thread panics with it")
    }

    pub(super) fn verdicts(&self) -> MutexGuard<'_, Verdicts> {
        self.verdicts.lock().expect("no thread panics with it")
    }

    pub(super) fn latency(&self) -> MutexGuard<'_, Histogram<u64>> {
        self.latency.lock().expect("no thread panics with it")
    }

    pub(super) fn done(&self) -> MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.done.lock().expect("no thread panics with it")
    }

    /// One more of these was done.
    pub(super) fn count(&self, what: &'static str) {
        *self.done().entry(what).or_default() += 1;
    }

    pub(super) fn broken(&self, invariant: Invariant, text: String) {
        self.add(Breach { invariant, text });
    }

    pub(super) fn add(&self, breach: Breach) {
        self.verdicts().add(breach);
    }

    /// Whether the check was kept, and counts it.
    pub(super) fn check(&self, invariant: Invariant, result: Result<(), String>) {
        self.verdicts().count(invariant, 1);
        if let Err(text) = result {
            self.broken(invariant, text);
        }
    }

    /// Opens a WebSocket.
    ///
    /// # Errors
    ///
    /// Why it cannot be opened, and when that turned out, for a person.
    pub(super) fn open(&self, path: &str, compression: Compression) -> Result<Socket, String> {
        let Place { target, headers, .. } = &self.place;
        let began = Instant::now();
        let socket = Socket::open(target, headers, path, compression);
        let socket =
            socket.map_err(|end| format!("{end}, after {} ms", began.elapsed().as_millis()))?;
        self.opened.fetch_add(1, Ordering::Relaxed);
        Ok(socket)
    }

    /// The path of a channel, with others to be heard beside it.
    pub(super) fn channel_path(&self, channel: u32, also: &[u32]) -> String {
        let target = &self.place.target;
        let mut path = target.channel(channel);
        for (index, other) in also.iter().enumerate() {
            path.push(if index == 0 { '?' } else { '&' });
            path.push_str("also=");
            path.push_str(&crate::target::channel_name(*other));
        }
        path
    }

    /// Somebody whose handshake was answered hears these channels from now on.
    pub(super) fn join(&self, name: String, channels: &[u32]) -> Membership {
        let mut ledger = self.ledger();
        let followers = channels.iter().map(|channel| (*channel, ledger.join(*channel, &name)));
        let followers = followers.collect();
        Membership { name, followers }
    }

    /// A member has gone.
    pub(super) fn leave(&self, membership: &mut Membership) {
        for follower in std::mem::take(&mut membership.followers).into_values() {
            let breach = self.ledger().leave(follower);
            if let Some(breach) = breach {
                self.add(breach);
            }
        }
    }

    /// A member of channels has heard a message.
    pub(super) fn heard(&self, member: &Membership, opcode: u8, payload: &[u8]) {
        self.received.fetch_add(1, Ordering::Relaxed);
        self.received_bytes.fetch_add(payload.len() as u64, Ordering::Relaxed);
        let stamp = payload.get(STAMPED.stamp_at()..).and_then(Stamp::read);
        let channel = stamp.and_then(|stamp| self.ledger().channel_of(stamp.publisher));
        let follower = channel.and_then(|channel| member.followers.get(&channel));
        let (Some(stamp), Some(follower)) = (stamp, follower) else {
            let whose = match (stamp, channel) {
                (Some(stamp), Some(channel)) => format!(
                    "message {} of publisher {} on channel {channel}, which it does not hear",
                    stamp.number, stamp.publisher
                ),
                _ => format!("{} bytes that nobody has published", payload.len()),
            };
            self.broken(Invariant::Foreign, format!("{} got {whose}", member.name));
            return;
        };
        let noted = self.ledger().note(*follower, (stamp.publisher, stamp.number));
        if let Err(breach) = noted {
            self.add(breach);
        }
        let (sent_as, expected) = self.message(stamp);
        if opcode != sent_as || payload != expected {
            let Stamp { publisher, number, .. } = stamp;
            let text = format!(
                "channel {}: {} got message {number} of publisher {publisher} changed",
                channel.unwrap_or_default(),
                member.name
            );
            self.broken(Invariant::Content, text);
        }
        self.latency().saturating_record(self.now().saturating_sub(stamp.due));
        let mut verdicts = self.verdicts();
        for invariant in [
            Invariant::Loss,
            Invariant::Order,
            Invariant::SharedOrder,
            Invariant::Repetition,
            Invariant::Foreign,
            Invariant::Content,
        ] {
            verdicts.count(invariant, 1);
        }
    }

    /// The message with this stamp: its opcode and payload, which are always the same.
    pub(super) fn message(&self, stamp: Stamp) -> (u8, Vec<u8>) {
        let is_text = stamp.publisher < self.api_publishers || stamp.publisher.is_multiple_of(2);
        let opcode = if is_text { opcode::TEXT } else { opcode::BINARY };
        let mut random = Random::new(u64::from(stamp.publisher) << 32 ^ u64::from(stamp.number));
        let bytes = random.one_of(&SIZES).min(self.limits.max_message_bytes);
        let bytes = bytes.max(STAMPED.min_bytes());
        let mut payload = Vec::with_capacity(bytes);
        STAMPED.write(stamp.publisher.into(), stamp.number.into(), bytes, &mut payload);
        stamp.write(&mut payload[STAMPED.stamp_at()..]);
        (opcode, payload)
    }
}

/// What the messages of a soak are made of.
const STAMPED: Payload = Payload::Json;

/// Sizes of published messages, in bytes.
const SIZES: [usize; 16] =
    [64, 64, 80, 125, 126, 200, 255, 256, 300, 500, 700, 1_000, 1_024, 2_000, 4_096, 16_384];
