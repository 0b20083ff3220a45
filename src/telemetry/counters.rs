//! What each shard counts. The owner of a [`Counters`] is its one writer.

use crate::telemetry::cell::{Counter, Gauge};
use crate::telemetry::histogram::Histogram;

/// One counter for each of a closed set of labels.
#[derive(Debug)]
pub struct Family<const N: usize> {
    counters: [Counter; N],
}

impl<const N: usize> Default for Family<N> {
    fn default() -> Self {
        Self { counters: std::array::from_fn(|_| Counter::default()) }
    }
}

impl<const N: usize> std::ops::Index<usize> for Family<N> {
    type Output = Counter;

    fn index(&self, index: usize) -> &Counter {
        &self.counters[index]
    }
}

/// Why a socket or request did not become a connection. The order is that of
/// [`Rejection::LABELS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// 400: not an opening handshake, or a broken one.
    BadRequest,
    /// 403: an origin that is not allowed.
    Origin,
    /// 401: no token where one is needed, or one that is not believed.
    Unauthorized,
    /// 403: a token that does not allow a channel.
    Forbidden,
    /// 404: no such endpoint.
    NotFound,
    /// 405: not GET.
    Method,
    /// 426: another version of the protocol.
    Version,
    /// 503: as many connections as are allowed.
    Full,
    /// 503: a drain has stopped taking new connections.
    Draining,
    /// 408 or nothing: the handshake took too long.
    Timeout,
    /// 431 or 414: too large a request head.
    TooLarge,
    /// The peer left before the end of the handshake.
    Disconnected,
    /// The socket was closed unanswered: too many others were being refused.
    Overload,
    /// A TLS alert: no version, cipher or certificate that both take, or no TLS at all.
    Tls,
    /// 429 or nothing: as many connections of this address as are allowed.
    AddressLimit,
    /// 429 or nothing: too many handshakes of this address.
    AddressRate,
    /// 429 or nothing: too many handshakes of all.
    HandshakeRate,
    /// A trusted proxy sent no PROXY header, or a broken one.
    ProxyProtocol,
}

impl Rejection {
    /// Values of the label `reason`.
    pub const LABELS: [&str; 18] = [
        "bad_request",
        "origin",
        "unauthorized",
        "forbidden",
        "not_found",
        "method",
        "version",
        "full",
        "draining",
        "timeout",
        "too_large",
        "disconnected",
        "overload",
        "tls",
        "address_limit",
        "address_rate",
        "handshake_rate",
        "proxy_protocol",
    ];
}

/// Values of the label `kind` of messages.
pub const MESSAGE_KINDS: [&str; 2] = ["text", "binary"];

/// Position of text in [`MESSAGE_KINDS`].
pub const TEXT: usize = 0;

/// Position of binary in [`MESSAGE_KINDS`].
pub const BINARY: usize = 1;

/// Values of the label `code` of closed connections: what can travel, 1005 for a Close without a
/// code, 1006 for none at all, and one value for each range that applications may use.
pub const CLOSE_CODES: [&str; 16] = [
    "1000", "1001", "1002", "1003", "1005", "1006", "1007", "1008", "1009", "1010", "1011", "1012",
    "1013", "1014", "3xxx", "4xxx",
];

/// Position of `code` in [`CLOSE_CODES`].
pub fn close_code_index(code: u16) -> usize {
    match code {
        1000..=1003 => usize::from(code - 1000),
        1005..=1014 => usize::from(code - 1001),
        3000..=3999 => 14,
        4000..=4999 => 15,
        // No other code can travel, so no connection ends with one.
        _ => 5,
    }
}

/// Position of a closed connection's counter: by code, and for each code by [`INITIATORS`].
pub fn closed_index(code: usize, initiator: usize) -> usize {
    code * INITIATORS.len() + initiator
}

/// Values of the label `initiator`.
pub const INITIATORS: [&str; 2] = ["local", "remote"];

/// What a full outbound queue led to. The order is that of [`SlowConsumer::LABELS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowConsumer {
    /// The connection was closed.
    Close,
    /// The oldest messages were dropped.
    DropOldest,
    /// The newest messages were dropped.
    DropNewest,
}

impl SlowConsumer {
    /// Values of the label `action`, and of `reason` of dropped messages.
    pub const LABELS: [&str; 3] = ["close", "drop_oldest", "drop_newest"];
}

/// Values of the label `reason` of tokens that were not believed, in the order of the auth room.
pub const TOKEN_REJECTIONS: [&str; 9] = [
    "malformed",
    "algorithm",
    "unknown_key",
    "signature",
    "expired",
    "not_yet_valid",
    "audience",
    "issuer",
    "claim",
];

/// What a client sent too much of. The order is that of [`RateLimit::LABELS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateLimit {
    /// Messages a second.
    Messages,
    /// Bytes a second.
    Bytes,
}

impl RateLimit {
    /// Values of the label `limit`.
    pub const LABELS: [&str; 2] = ["messages", "bytes"];
}

/// Values of the label `action` of clients that sent too much.
pub const RATE_LIMIT_ACTIONS: [&str; 2] = ["slow", "close"];

/// Position of the counter of clients that sent too much: by limit, and for each by
/// [`RATE_LIMIT_ACTIONS`].
pub fn rate_limited_index(limit: RateLimit, action: usize) -> usize {
    limit as usize * RATE_LIMIT_ACTIONS.len() + action
}

/// Values of the label `mode` of connections that negotiated permessage-deflate.
pub const COMPRESSION_MODES: [&str; 2] = ["shared", "dedicated"];

/// Position of messages that stand alone in [`COMPRESSION_MODES`].
pub const SHARED: usize = 0;

/// Position of context takeover in [`COMPRESSION_MODES`].
pub const DEDICATED: usize = 1;

/// Values of the label `version` of TLS handshakes.
pub const TLS_VERSIONS: [&str; 2] = ["1.2", "1.3"];

/// Values of the label `result` of reloads.
pub const RELOAD_RESULTS: [&str; 2] = ["success", "failure"];

/// Position of what was read and holds now in [`RELOAD_RESULTS`].
pub const RELOAD_SUCCEEDED: usize = 0;

/// Position of what is wrong, and of which nothing was taken, in [`RELOAD_RESULTS`].
pub const RELOAD_FAILED: usize = 1;

/// Values of the label `http` of opening handshakes.
pub const HTTP_VERSIONS: [&str; 2] = ["1.1", "2"];

/// Position of HTTP/1.1 in [`HTTP_VERSIONS`].
pub const HTTP_1: usize = 0;

/// Position of HTTP/2 in [`HTTP_VERSIONS`].
pub const HTTP_2: usize = 1;

/// Most values of the label `kind` of protocol errors.
pub const MAX_PROTOCOL_ERRORS: usize = 16;

/// What one shard, or the control thread, counts.
#[derive(Debug, Default)]
#[repr(align(128))] // The next shard's counters must not share a cache line with these.
pub struct Counters {
    /// Connections that are open or closing.
    pub connections: Gauge,
    /// Sockets accepted.
    pub connections_accepted: Counter,
    /// By [`Rejection`].
    pub connections_rejected: Family<{ Rejection::LABELS.len() }>,
    /// Requests that were answered with the console page.
    pub console_requests: Counter,
    /// By [`closed_index`].
    pub connections_closed: Family<{ CLOSE_CODES.len() * INITIATORS.len() }>,
    /// Opening handshakes that succeeded, by [`HTTP_VERSIONS`].
    pub handshakes: Family<{ HTTP_VERSIONS.len() }>,
    /// TLS handshakes that succeeded, by [`TLS_VERSIONS`].
    pub tls_handshakes: Family<{ TLS_VERSIONS.len() }>,
    /// Certificates loaded anew, by [`RELOAD_RESULTS`].
    pub tls_reloads: Family<{ RELOAD_RESULTS.len() }>,
    /// When the first of the certificates in use expires, in seconds since 1970; 0 without TLS.
    pub tls_certificate_expiry: Gauge,
    /// Connections that came with a token.
    pub identified_connections: Gauge,
    /// By [`TOKEN_REJECTIONS`], in handshakes and refreshes.
    pub token_rejections: Family<{ TOKEN_REJECTIONS.len() }>,
    /// Connections that were closed since their token had expired.
    pub token_expirations: Counter,
    /// Messages that were not published, and ended their connection, since it may only subscribe.
    pub forbidden_publications: Counter,
    /// Connections that were closed since they had lasted long enough.
    pub connections_aged: Counter,
    /// By [`rate_limited_index`].
    pub rate_limited: Family<{ RateLimit::LABELS.len() * RATE_LIMIT_ACTIONS.len() }>,
    /// From accepting a socket to the end of its opening handshake.
    pub handshake_duration: Histogram,
    /// By kind.
    pub messages_received: Family<{ MESSAGE_KINDS.len() }>,
    /// By kind; handed to a connection, whether its socket, its queue or its policy took them.
    pub messages_sent: Family<{ MESSAGE_KINDS.len() }>,
    /// Frames with their headers, as read from sockets.
    pub received_bytes: Counter,
    /// Frames with their headers, as written to sockets.
    pub sent_bytes: Counter,
    /// Publications that came from connections.
    pub publications_from_connections: Counter,
    /// Publications that came from the API.
    pub publications_from_api: Counter,
    /// Publications times the subscribers they were handed to.
    pub deliveries: Counter,
    /// From a publication's arrival to the last subscriber's write on a shard; one observation for
    /// each batch and shard.
    pub delivery_lag: Histogram,
    /// By [`SlowConsumer`].
    pub slow_consumers: Family<{ SlowConsumer::LABELS.len() }>,
    /// By [`SlowConsumer`].
    pub dropped_messages: Family<{ SlowConsumer::LABELS.len() }>,
    /// Bytes waiting in outbound queues.
    pub outbound_queue_bytes: Gauge,
    /// Times that a lane of some mailbox was full.
    pub mailbox_full: Counter,
    /// Channels whose home is this shard.
    pub channels: Gauge,
    /// Subscriptions on this shard.
    pub subscriptions: Gauge,
    /// Connections that negotiated permessage-deflate, by [`COMPRESSION_MODES`].
    pub compressed_connections: [Gauge; COMPRESSION_MODES.len()],
    /// Memory of compression windows, taken when a connection begins.
    pub compression_memory_bytes: Gauge,
    /// Connections that got shared compression where dedicated was set: its memory was taken.
    pub compression_fallbacks: Counter,
    /// Frames that were to be deflated, before.
    pub deflate_input_bytes: Counter,
    /// Frames that were to be deflated, after; those that grew no shorter as they were.
    pub deflate_output_bytes: Counter,
    /// Payloads of deflated messages from clients, before.
    pub inflate_input_bytes: Counter,
    /// Payloads of deflated messages from clients, after.
    pub inflate_output_bytes: Counter,
    /// By the protocol error's kind.
    pub protocol_errors: Family<MAX_PROTOCOL_ERRORS>,
    /// Times that the configuration was read anew, by [`RELOAD_RESULTS`]. The control thread's.
    pub config_reloads: Family<{ RELOAD_RESULTS.len() }>,
    /// Panics that were caught while serving a connection.
    pub panics: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stand_where_their_values_point() {
        for code in [1000, 1001, 1003, 1005, 1006, 1007, 1014] {
            assert_eq!(CLOSE_CODES[close_code_index(code)], code.to_string());
        }
        assert_eq!(CLOSE_CODES[close_code_index(3000)], "3xxx");
        assert_eq!(CLOSE_CODES[close_code_index(4999)], "4xxx");
        assert_eq!(Rejection::LABELS[Rejection::Full as usize], "full");
        assert_eq!(Rejection::LABELS[Rejection::Overload as usize], "overload");
        assert_eq!(Rejection::LABELS[Rejection::Tls as usize], "tls");
        assert_eq!(Rejection::LABELS[Rejection::ProxyProtocol as usize], "proxy_protocol");
        assert_eq!(RateLimit::LABELS[RateLimit::Bytes as usize], "bytes");
        assert_eq!(SlowConsumer::LABELS[SlowConsumer::DropNewest as usize], "drop_newest");
    }
}
