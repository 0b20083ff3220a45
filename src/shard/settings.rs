//! What the operator may decide about a shard.

use std::time::Duration;

use crate::auth::origin::AllowedOrigins;
use crate::connection::outbound::SlowConsumerPolicy;
use crate::wire::extensions::WindowBits;

/// What is done with an offer of permessage-deflate (RFC 7692).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionMode {
    /// It is declined.
    Off,
    /// Messages stand alone in both directions: a publication is deflated once for all subscribers.
    Shared,
    /// Messages refer to earlier ones of their connection.
    Dedicated,
}

/// How messages are deflated.
#[derive(Clone, Copy, Debug)]
pub struct Compression {
    /// For whom.
    pub mode: CompressionMode,
    /// Shortest message that is sent deflated, in bytes.
    pub min_bytes: usize,
    /// How far back messages refer, in either direction, with [`CompressionMode::Dedicated`].
    pub window: WindowBits,
    /// Most that all windows may take together, in bytes. Beyond it messages stand alone.
    pub max_memory_bytes: usize,
}

/// Settings shared by all shards and fixed while they run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Largest message taken from a client, over all its fragments, in bytes. A message of exactly
    /// this size passes; a larger one ends its connection with 1009.
    pub max_message_bytes: usize,
    /// Most channels that one connection is subscribed to. At least one.
    pub max_channels_per_connection: usize,
    /// Whether and how messages are deflated.
    pub compression: Compression,
    /// Silence after which a peer is pinged. Zero: it never is.
    pub ping_interval: Duration,
    /// Silence after which a peer is closed with 1001.
    pub idle_timeout: Duration,
    /// Time from accepting a socket to the end of its opening handshake.
    pub handshake_timeout: Duration,
    /// Time from sending Close to giving up on the peer's answer.
    pub close_timeout: Duration,
    /// Bound of one connection's outbound queue in bytes. At least one message of the largest size
    /// fits.
    pub outbound_queue_bytes: usize,
    /// What happens to a connection whose outbound queue is full.
    pub slow_consumer: SlowConsumerPolicy,
    /// Bound of one lane of a shard's mailbox in entries.
    pub mailbox_entries: usize,
    /// Bound of one lane of a shard's mailbox in bytes of publications. At least one message of the
    /// largest size fits.
    pub mailbox_bytes: usize,
    /// Web origins whose pages may connect.
    pub allowed_origins: AllowedOrigins,
}
