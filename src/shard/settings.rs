//! What the operator may decide about a shard.

use std::sync::Arc;
use std::time::Duration;

use crate::admission::addresses::Limits;
use crate::admission::forwarded::ForwardedHeader;
use crate::admission::proxies::TrustedProxies;
use crate::admission::rate::Rate;
use crate::auth::access::Access;
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

/// Whether trusted proxies begin a connection with a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// They do. One that does not is closed.
    Required,
    /// They do not; they name their clients in requests.
    Off,
}

/// What is done with a client that sends more than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateLimitAction {
    /// It is not read until it may go on.
    Slow,
    /// It is closed with 1008.
    Close,
}

/// Where clients are, and how much each of them may do. By default nobody is believed to speak for
/// others, and nothing is limited.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Peers that are believed when they say for whom they speak.
    pub trusted_proxies: TrustedProxies,
    /// How they say it first.
    pub proxy_protocol: ProxyProtocol,
    /// Which header of a request they say it in.
    pub forwarded_header: ForwardedHeader,
    /// Connections and handshakes.
    pub limits: Limits,
    /// Messages taken from one connection. `None`: as many as come.
    pub messages: Option<Rate>,
    /// Bytes taken from one connection. `None`: as many as come.
    pub bytes: Option<Rate>,
    /// What happens beyond the two above.
    pub rate_limit_action: RateLimitAction,
    /// Age at which a connection is closed with 1001, give or take a tenth. `None`: it never is.
    pub max_connection_age: Option<Duration>,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            trusted_proxies: TrustedProxies::default(),
            proxy_protocol: ProxyProtocol::Required,
            forwarded_header: ForwardedHeader::XForwardedFor,
            limits: Limits::default(),
            messages: None,
            bytes: None,
            rate_limit_action: RateLimitAction::Slow,
            max_connection_age: None,
        }
    }
}

/// Settings shared by all shards. A reload gives them others while they run.
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
    /// Who may connect, and what they may do.
    pub access: Arc<Access>,
    /// Where clients are, and how much each of them may do.
    pub admission: Admission,
    /// Whether the console page is served.
    pub console: bool,
}
