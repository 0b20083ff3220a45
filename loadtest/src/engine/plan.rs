//! What the clients of a run are and what they do; and what all threads share while they do it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::client::deflate::Compression;
use crate::client::payload::Payload;
use crate::target::Target;

/// What one client is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Sends and expects its messages back.
    Echo,
    /// Opens an echo and sends nothing.
    Idle,
    /// Reads a channel.
    Subscriber { channel: u32 },
    /// Reads a channel, but not while measuring.
    Stalled { channel: u32 },
    /// Sends to a channel and reads it.
    Publisher { channel: u32, publisher: u16 },
    /// Sends to a channel by the HTTP API.
    HttpPublisher { channel: u32, publisher: u16 },
    /// Comes, has so many echoes, goes, and comes again.
    Churn { messages: u32 },
}

impl Role {
    /// The channel that it reads.
    pub(crate) fn channel(self) -> Option<u32> {
        match self {
            Self::Subscriber { channel }
            | Self::Stalled { channel }
            | Self::Publisher { channel, .. } => Some(channel),
            Self::Echo | Self::Idle | Self::HttpPublisher { .. } | Self::Churn { .. } => None,
        }
    }

    pub(crate) fn publisher(self) -> Option<(u32, u16)> {
        match self {
            Self::Publisher { channel, publisher } | Self::HttpPublisher { channel, publisher } => {
                Some((channel, publisher))
            }
            Self::Echo
            | Self::Idle
            | Self::Subscriber { .. }
            | Self::Stalled { .. }
            | Self::Churn { .. } => None,
        }
    }

    /// Whether it sends what is measured.
    pub(crate) fn sends(self) -> bool {
        self == Self::Echo || self.publisher().is_some()
    }
}

/// When messages are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Load {
    /// Never.
    None,
    /// Each sender keeps so many on their way: it sends the next when one has come back.
    Closed { in_flight: u32 },
    /// So many a second, of all senders in turn, whatever comes back.
    Open { per_second: f64 },
}

/// Where the HTTP API is.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) address: SocketAddr,
    pub(crate) host: String,
    pub(crate) key: Option<String>,
}

/// Everything that the threads have to know before they start.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) target: Target,
    pub(crate) api: Option<Api>,
    /// Lines of the handshake's request, without line ends.
    pub(crate) headers: Vec<String>,
    /// One for each client. Those who publish come last.
    pub(crate) roles: Vec<Role>,
    pub(crate) load: Load,
    pub(crate) payload: Payload,
    pub(crate) payload_bytes: usize,
    pub(crate) is_text: bool,
    /// What every client offers.
    pub(crate) compression: Compression,
    pub(crate) threads: usize,
    /// Handshakes begun in a second; `None`: as fast as it goes.
    pub(crate) connect_rate: Option<f64>,
    /// Handshakes that each thread has under way at most.
    pub(crate) max_dialing: usize,
    pub(crate) connect_timeout: Duration,
    /// The threads never sleep.
    pub(crate) is_busy: bool,
    /// A client whose connection fails while it is opened tries again.
    pub(crate) retries: bool,
}

impl Plan {
    /// The publishers of each channel.
    pub(crate) fn publishers(&self) -> BTreeMap<u32, Vec<u16>> {
        let mut publishers: BTreeMap<u32, Vec<u16>> = BTreeMap::new();
        for (channel, publisher) in self.roles.iter().filter_map(|role| role.publisher()) {
            publishers.entry(channel).or_default().push(publisher);
        }
        publishers
    }
}

/// The phases of a run, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    Connecting,
    WarmingUp,
    /// As when measuring, with all readers reading: what a comparison within the run begins with.
    Baseline,
    Measuring,
    /// Nothing is sent any more; what is on its way arrives.
    Settling,
    Ended,
}

impl Phase {
    const ALL: [Self; 6] = [
        Self::Connecting,
        Self::WarmingUp,
        Self::Baseline,
        Self::Measuring,
        Self::Settling,
        Self::Ended,
    ];

    /// Whether messages are sent.
    pub(crate) fn is_loaded(self) -> bool {
        matches!(self, Self::WarmingUp | Self::Baseline | Self::Measuring)
    }
}

/// What all threads share.
#[derive(Debug)]
pub(crate) struct Control {
    /// All times are nanoseconds since then.
    pub(crate) epoch: Instant,
    phase: AtomicU8,
    phase_began: AtomicU64,
    /// Clients with a smaller number may connect.
    pub(crate) may_connect: AtomicU64,
    /// How often everyone was told to leave and come again.
    pub(crate) storms: AtomicU32,
    /// Threads whose clients have left for the latest storm.
    pub(crate) left: AtomicU64,
    /// Connections open now.
    pub(crate) open: AtomicU64,
    /// Clients that will not connect any more.
    pub(crate) failed: AtomicU64,
    /// Messages of each publisher, by its number.
    pub(crate) published: Vec<AtomicU32>,
}

impl Control {
    pub(crate) fn new(publishers: usize) -> Self {
        Self {
            epoch: Instant::now(),
            phase: AtomicU8::new(Phase::Connecting as u8),
            phase_began: AtomicU64::new(0),
            may_connect: AtomicU64::new(0),
            storms: AtomicU32::new(0),
            left: AtomicU64::new(0),
            open: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            published: (0..publishers).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Nanoseconds since the run began.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// The phase, and when it began.
    pub(crate) fn phase(&self) -> (Phase, u64) {
        let phase = Phase::ALL[usize::from(self.phase.load(Ordering::Acquire))];
        (phase, self.phase_began.load(Ordering::Relaxed))
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase_began.store(self.now(), Ordering::Relaxed);
        self.phase.store(phase as u8, Ordering::Release);
    }
}
