//! Every setting there is. The flag, the variable and the key of the file are made of one name, so
//! that whoever knows one of them knows all three.
//!
//! A new setting is a variant here, its row in [`Key::about`], its line in [`Key::change`] that says
//! whether it can change while the gateway runs, its line in [`Config::resolve`], its line in
//! [`Config::shown`] and its lines in `docs/wsgate.example.toml`. The compiler and the
//! tests ask for each of them.
//!
//! [`Config::resolve`]: super::Config::resolve
//! [`Config::shown`]: super::Config::shown

use std::fmt;

use clap::ValueEnum;

/// What the name of an environment variable begins with.
pub(super) const VARIABLE_PREFIX: &str = "WSGATE_";

/// One setting. Shown as the file has it: `max_message_bytes`.
// `ValueEnum` is derived for its list of all variants, which nobody then has to keep by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
#[allow(missing_docs, reason = "`Key::about` documents each, for operators and for us")]
pub enum Key {
    Listen,
    PlainListen,
    AdminListen,
    PortFile,
    HandoverSocket,
    Shards,
    MaxConnections,
    MaxChannelsPerConnection,
    HandshakeTimeout,
    PingInterval,
    IdleTimeout,
    MaxMessageBytes,
    OutboundQueueBytes,
    SlowConsumer,
    MailboxEntries,
    MailboxBytes,
    TlsCert,
    TlsKey,
    TlsClientCa,
    TlsClientAuth,
    Http2,
    Compression,
    CompressionMinBytes,
    CompressionWindow,
    CompressionMemory,
    TrustedProxies,
    ProxyProtocol,
    ForwardedHeader,
    MaxConnectionsPerAddress,
    MaxHandshakesPerSecond,
    MaxHandshakesPerSecondPerAddress,
    MaxMessagesPerSecond,
    MaxMessagesBurst,
    MaxBytesPerSecond,
    MaxBytesBurst,
    RateLimitAction,
    MaxConnectionAge,
    AllowedOrigins,
    Console,
    ApiKey,
    Anonymous,
    AnonymousSubscribe,
    AnonymousPublish,
    TokenHmacSecret,
    TokenPublicKey,
    TokenJwks,
    TokenAudience,
    TokenIssuer,
    TokenLeeway,
    TokenDefaultChannels,
    DrainGrace,
    DrainDuration,
    LogFormat,
    LogLevel,
}

/// What is to be known about a [`Key`].
#[derive(Clone, Copy)]
pub(super) struct About {
    /// As the flag has it, with hyphens and without the two in front.
    pub(super) name: &'static str,
    pub(super) heading: &'static str,
    /// What stands for the value in the help.
    pub(super) placeholder: &'static str,
    pub(super) default: DefaultValue,
    /// Meaning and unit; the default is added to it.
    pub(super) help: &'static str,
}

/// What holds where no source says anything.
#[derive(Clone, Copy)]
pub(super) enum DefaultValue {
    /// This, read like what an operator writes.
    Text(&'static str),
    /// A value that depends on the machine or on other settings, or none: in words, for the help.
    Described(&'static str),
}

const LISTENERS: &str = "Listeners and threads";
const CONNECTIONS: &str = "Connections";
const MESSAGES: &str = "Messages and queues";
const TLS: &str = "TLS and HTTP/2";
const COMPRESSION: &str = "Compression";
const PROXIES: &str = "Proxies";
const LIMITS: &str = "Limits by address and rate";
const ACCESS: &str = "Access";
const TOKENS: &str = "Tokens";
const DRAIN: &str = "Drain";
const LOG: &str = "Log";

impl Key {
    /// Every key, in the order in which people read them.
    pub(super) fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// The key that the file calls `name`; hyphens are as good as underscores.
    pub(super) fn by_name(name: &str) -> Option<Self> {
        let name = name.replace('_', "-");
        Self::all().iter().copied().find(|key| key.about().name == name)
    }

    /// The key of the environment variable `variable`.
    pub(super) fn by_variable(variable: &str) -> Option<Self> {
        Self::all().iter().copied().find(|key| key.variable() == variable)
    }

    /// The key that was most likely meant by `name`, written as in a file.
    pub(super) fn closest(name: &str) -> Option<Self> {
        let name = name.to_lowercase().replace('-', "_");
        // A quarter of the letters wrong is a misspelling; more is another word.
        let most_edits = (name.chars().count() / 4).max(1);
        Self::all()
            .iter()
            .map(|key| (edits_between(&name, &key.to_string()), *key))
            .filter(|(edits, _)| *edits <= most_edits)
            .min_by_key(|(edits, _)| *edits)
            .map(|(_, key)| key)
    }

    /// `--max-message-bytes`
    pub fn flag(self) -> String {
        format!("--{}", self.about().name)
    }

    /// `WSGATE_MAX_MESSAGE_BYTES`
    pub fn variable(self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.about().name.replace('-', "_").to_uppercase())
    }

    /// Whether the value must never be shown.
    pub(super) fn is_secret(self) -> bool {
        matches!(self, Self::ApiKey | Self::TokenHmacSecret)
    }

    /// Whether the flag may be given more than once.
    pub(super) fn is_list(self) -> bool {
        matches!(
            self,
            Self::Listen
                | Self::PlainListen
                | Self::TlsCert
                | Self::TlsKey
                | Self::TrustedProxies
                | Self::AllowedOrigins
                | Self::AnonymousSubscribe
                | Self::AnonymousPublish
                | Self::TokenAudience
                | Self::TokenIssuer
                | Self::TokenDefaultChannels
        )
    }

    pub(super) fn about(self) -> About {
        let (name, heading, placeholder, default, help) = match self {
            Self::Listen => (
                "listen",
                LISTENERS,
                "ADDRESSES",
                DefaultValue::Text("0.0.0.0:8080"),
                "Where clients connect, over TLS where tls-cert is set: addresses with a port or \
                 unix:/path, separated by commas or in repeated flags; port 0 takes a free one",
            ),
            Self::PlainListen => (
                "plain-listen",
                LISTENERS,
                "ADDRESSES",
                DefaultValue::Described("none"),
                "Where clients connect without TLS, beside listen and written like it",
            ),
            Self::AdminListen => (
                "admin-listen",
                LISTENERS,
                "ADDRESS",
                DefaultValue::Text("127.0.0.1:8081"),
                "Where operators and backends connect: metrics, health and the HTTP API; port 0 \
                 takes a free one",
            ),
            Self::PortFile => (
                "port-file",
                LISTENERS,
                "FILE",
                DefaultValue::Described("none"),
                "File to write once both listeners are open, with the addresses that they took",
            ),
            Self::HandoverSocket => (
                "handover-socket",
                LISTENERS,
                "FILE",
                DefaultValue::Described("none"),
                "Unix socket by which a new process with the same setting takes over the listening \
                 sockets, without a connection refused; of this user only",
            ),
            Self::Shards => (
                "shards",
                LISTENERS,
                "COUNT",
                DefaultValue::Described("one per core"),
                "Threads that serve connections, 1 to 1024",
            ),
            Self::MaxConnections => (
                "max-connections",
                CONNECTIONS,
                "COUNT",
                DefaultValue::Described("what the limit of open files allows"),
                "Most connections at a time, over all shards; one more is answered with 503",
            ),
            Self::MaxChannelsPerConnection => (
                "max-channels-per-connection",
                CONNECTIONS,
                "COUNT",
                DefaultValue::Text("100"),
                "Most channels that one connection may be subscribed to, 1 to 8192; a handshake \
                 that asks for more is answered with 400",
            ),
            Self::HandshakeTimeout => (
                "handshake-timeout",
                CONNECTIONS,
                "DURATION",
                DefaultValue::Text("5s"),
                "Time from accepting a connection to the end of its opening handshake",
            ),
            Self::PingInterval => (
                "ping-interval",
                CONNECTIONS,
                "DURATION",
                DefaultValue::Text("25s"),
                "Silence after which a client is pinged; 0s never pings",
            ),
            Self::IdleTimeout => (
                "idle-timeout",
                CONNECTIONS,
                "DURATION",
                DefaultValue::Text("60s"),
                "Silence after which a client is closed with 1001",
            ),
            Self::MaxMessageBytes => (
                "max-message-bytes",
                MESSAGES,
                "SIZE",
                DefaultValue::Text("64KiB"),
                "Largest message taken from a client, over all its fragments, 1 byte to 1GiB; a \
                 larger one ends its connection with 1009",
            ),
            Self::OutboundQueueBytes => (
                "outbound-queue-bytes",
                MESSAGES,
                "SIZE",
                DefaultValue::Described("1MiB, or one message of the largest size"),
                "Most that may wait to be sent to one client",
            ),
            Self::SlowConsumer => (
                "slow-consumer",
                MESSAGES,
                "POLICY",
                DefaultValue::Text("close"),
                "What happens to a client whose outbound queue is full: close (with 1008), \
                 drop-oldest or drop-newest",
            ),
            Self::MailboxEntries => (
                "mailbox-entries",
                MESSAGES,
                "COUNT",
                DefaultValue::Text("4096"),
                "Most entries that may wait from one shard for another, at least 16; when full, \
                 publishers wait",
            ),
            Self::MailboxBytes => (
                "mailbox-bytes",
                MESSAGES,
                "SIZE",
                DefaultValue::Described("16MiB, or one message of the largest size"),
                "Most bytes that may wait from one shard for another; when full, publishers wait",
            ),
            Self::TlsCert => (
                "tls-cert",
                TLS,
                "FILES",
                DefaultValue::Described("none: listen is plain"),
                "PEM file with the certificate that clients see and those that sign it; several, \
                 separated by commas or in repeated flags, are chosen by the name that a client asks \
                 for, and the first is for all others. A file that changes is loaded anew",
            ),
            Self::TlsKey => (
                "tls-key",
                TLS,
                "FILES",
                DefaultValue::Described("none"),
                "PEM file with the private key of the certificate, as many and in the same order",
            ),
            Self::TlsClientCa => (
                "tls-client-ca",
                TLS,
                "FILE",
                DefaultValue::Described("none"),
                "PEM file with the certificates of those who sign clients' certificates",
            ),
            Self::TlsClientAuth => (
                "tls-client-auth",
                TLS,
                "MODE",
                DefaultValue::Described("required with tls-client-ca, else off"),
                "Whether clients show a certificate: off, optional (one that is shown must be good) or \
                 required",
            ),
            Self::Http2 => (
                "http2",
                TLS,
                "MODE",
                DefaultValue::Text("tls"),
                "Where WebSockets over HTTP/2 (RFC 8441) are served beside HTTP/1.1: off, tls (where a \
                 client negotiates it) or all (also on plain listeners, to clients that begin with it)",
            ),
            Self::Compression => (
                "compression",
                COMPRESSION,
                "MODE",
                DefaultValue::Text("shared"),
                "What is done with a client's offer of permessage-deflate: off, shared (a \
                 publication is deflated once for all subscribers, and a connection keeps no \
                 memory for it) or dedicated (each connection refers to its own earlier messages)",
            ),
            Self::CompressionMinBytes => (
                "compression-min-bytes",
                COMPRESSION,
                "SIZE",
                DefaultValue::Text("256"),
                "Shortest message that is sent deflated",
            ),
            Self::CompressionWindow => (
                "compression-window",
                COMPRESSION,
                "SIZE",
                DefaultValue::Text("8KiB"),
                "How far back messages refer with dedicated compression, in either direction: a \
                 power of two from 512B to 32KiB; or its exponent, 9 to 15",
            ),
            Self::CompressionMemory => (
                "compression-memory",
                COMPRESSION,
                "SIZE",
                DefaultValue::Text("64MiB"),
                "Most memory for the windows of all connections with dedicated compression; those \
                 that come when it is taken get shared compression",
            ),
            Self::TrustedProxies => (
                "trusted-proxies",
                PROXIES,
                "NETWORKS",
                DefaultValue::Described("none"),
                "Proxies that are believed when they say where a client is, separated by commas \
                 or in repeated flags: networks (10.0.0.0/8), addresses, unix for peers of a Unix \
                 socket",
            ),
            Self::ProxyProtocol => (
                "proxy-protocol",
                PROXIES,
                "MODE",
                DefaultValue::Text("required"),
                "Whether trusted proxies begin each connection with a PROXY header, version 1 or \
                 2: required (one without it is closed) or off (they name clients in requests)",
            ),
            Self::ForwardedHeader => (
                "forwarded-header",
                PROXIES,
                "HEADER",
                DefaultValue::Text("x-forwarded-for"),
                "The header of requests in which trusted proxies name clients: x-forwarded-for, \
                 forwarded (RFC 7239) or off",
            ),
            Self::MaxConnectionsPerAddress => (
                "max-connections-per-address",
                LIMITS,
                "COUNT",
                DefaultValue::Described("no limit"),
                "Most connections of one IPv4 address or one /64 of IPv6; one more is answered \
                 with 429",
            ),
            Self::MaxHandshakesPerSecond => (
                "max-handshakes-per-second",
                LIMITS,
                "COUNT",
                DefaultValue::Described("no limit"),
                "Most handshakes a second of all clients together; one more is answered with 429",
            ),
            Self::MaxHandshakesPerSecondPerAddress => (
                "max-handshakes-per-second-per-address",
                LIMITS,
                "COUNT",
                DefaultValue::Described("no limit"),
                "Most handshakes a second of one IPv4 address or one /64 of IPv6; one more is \
                 answered with 429",
            ),
            Self::MaxMessagesPerSecond => (
                "max-messages-per-second",
                LIMITS,
                "COUNT",
                DefaultValue::Described("no limit"),
                "Most messages a second taken from one connection",
            ),
            Self::MaxMessagesBurst => (
                "max-messages-burst",
                LIMITS,
                "COUNT",
                DefaultValue::Described("those of one second"),
                "Most messages taken from one connection at once, after a pause",
            ),
            Self::MaxBytesPerSecond => (
                "max-bytes-per-second",
                LIMITS,
                "SIZE",
                DefaultValue::Described("no limit"),
                "Most bytes a second taken from one connection, as they travel",
            ),
            Self::MaxBytesBurst => (
                "max-bytes-burst",
                LIMITS,
                "SIZE",
                DefaultValue::Described("those of one second"),
                "Most bytes taken from one connection at once, after a pause",
            ),
            Self::RateLimitAction => (
                "rate-limit-action",
                LIMITS,
                "ACTION",
                DefaultValue::Text("slow"),
                "What happens to a connection that sends more: slow (it is not read until it may \
                 go on) or close (with 1008)",
            ),
            Self::MaxConnectionAge => (
                "max-connection-age",
                LIMITS,
                "DURATION",
                DefaultValue::Described("no limit"),
                "Age at which a connection is closed with 1001, give or take a tenth, so that its \
                 client reconnects and finds new nodes",
            ),
            Self::AllowedOrigins => (
                "allowed-origins",
                ACCESS,
                "ORIGINS",
                DefaultValue::Text("same-host"),
                "Origins whose pages may connect, separated by commas or in repeated flags: \
                 same-host, https://example.com, https://*.example.com, http://localhost:*, null, \
                 *",
            ),
            Self::Console => (
                "console",
                ACCESS,
                "SWITCH",
                DefaultValue::Text("on"),
                "Whether / is answered with a page to try the gateway with in a browser: on or off",
            ),
            Self::ApiKey => (
                "api-key",
                ACCESS,
                "KEY",
                DefaultValue::Described("none: the API answers only on a loopback address"),
                "What callers of the HTTP API send as X-API-Key; better given as WSGATE_API_KEY \
                 or in the file, since others can read a command line",
            ),
            Self::Anonymous => (
                "anonymous",
                TOKENS,
                "CHOICE",
                DefaultValue::Described("allow without a key, deny with one"),
                "Whether clients without a token may connect: allow or deny (with 401)",
            ),
            Self::AnonymousSubscribe => (
                "anonymous-subscribe",
                TOKENS,
                "PATTERNS",
                DefaultValue::Text("*"),
                "Channels that clients without a token may subscribe to, where they may connect: \
                 names in which * is any characters and ? is one, separated by commas or in \
                 repeated flags",
            ),
            Self::AnonymousPublish => (
                "anonymous-publish",
                TOKENS,
                "PATTERNS",
                DefaultValue::Text("*"),
                "Channels that clients without a token may publish to, in the same way",
            ),
            Self::TokenHmacSecret => (
                "token-hmac-secret",
                TOKENS,
                "SECRET",
                DefaultValue::Described("none"),
                "Secret of tokens that are signed by HS256, HS384 or HS512; better given as \
                 WSGATE_TOKEN_HMAC_SECRET or in the file, since others can read a command line",
            ),
            Self::TokenPublicKey => (
                "token-public-key",
                TOKENS,
                "FILE",
                DefaultValue::Described("none"),
                "PEM file with public keys of tokens that are signed by RS256, RS384, RS512, ES256, \
                 ES384 or EdDSA",
            ),
            Self::TokenJwks => (
                "token-jwks",
                TOKENS,
                "FILE",
                DefaultValue::Described("none"),
                "JWK Set (RFC 7517) with keys of any of these kinds; a token names its key by kid",
            ),
            Self::TokenAudience => (
                "token-audience",
                TOKENS,
                "NAMES",
                DefaultValue::Described("none: a token with an aud is refused"),
                "Names of which a token must have one in its aud, separated by commas or in \
                 repeated flags",
            ),
            Self::TokenIssuer => (
                "token-issuer",
                TOKENS,
                "NAMES",
                DefaultValue::Described("none: iss is not looked at"),
                "Names of which one must be the iss of a token, separated by commas or in repeated \
                 flags",
            ),
            Self::TokenLeeway => (
                "token-leeway",
                TOKENS,
                "DURATION",
                DefaultValue::Text("5s"),
                "How far the clocks of those who make tokens may be from ours: exp and nbf hold so \
                 much longer and earlier; in whole seconds",
            ),
            Self::TokenDefaultChannels => (
                "token-default-channels",
                TOKENS,
                "PATTERNS",
                DefaultValue::Described("none"),
                "Channels to subscribe and publish for tokens that have none of the claims \
                 subscribe, publish and channels",
            ),
            Self::DrainGrace => (
                "drain-grace",
                DRAIN,
                "DURATION",
                DefaultValue::Text("5s"),
                "How long a draining gateway still accepts, so that load balancers can look \
                 elsewhere",
            ),
            Self::DrainDuration => (
                "drain-duration",
                DRAIN,
                "DURATION",
                DefaultValue::Text("20s"),
                "Over how long, after the grace, connections are closed with 1001",
            ),
            Self::LogFormat => (
                "log-format",
                LOG,
                "FORMAT",
                DefaultValue::Text("text"),
                "How the log on standard error is written: text or json",
            ),
            Self::LogLevel => (
                "log-level",
                LOG,
                "FILTER",
                DefaultValue::Text("info"),
                "Which events the log shows: off, error, warn, info, debug, trace, or levels by \
                 target such as info,wsgate::shard=debug",
            ),
        };
        About { name, heading, placeholder, default, help }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.about().name.replace('-', "_"))
    }
}

/// The fewest letters to add, take away or replace that make `one` into `other` (Levenshtein).
fn edits_between(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    // The edits from what was read of `one` so far to each beginning of `other`.
    let mut edits: Vec<usize> = (0..=other.len()).collect();
    for (read, letter) in one.chars().enumerate() {
        let mut replaced = edits[0];
        edits[0] = read + 1;
        for (column, other_letter) in other.iter().enumerate() {
            let replace = replaced + usize::from(letter != *other_letter);
            replaced = edits[column + 1];
            edits[column + 1] = replace.min(replaced + 1).min(edits[column] + 1);
        }
    }
    edits[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flag_variable_and_file_say_the_same_word() {
        assert_eq!(Key::MaxMessageBytes.to_string(), "max_message_bytes");
        assert_eq!(Key::MaxMessageBytes.flag(), "--max-message-bytes");
        assert_eq!(Key::MaxMessageBytes.variable(), "WSGATE_MAX_MESSAGE_BYTES");
        for key in Key::all() {
            assert_eq!(Key::by_name(&key.to_string()), Some(*key));
            assert_eq!(Key::by_name(key.about().name), Some(*key));
            assert_eq!(Key::by_variable(&key.variable()), Some(*key));
        }
    }

    #[test]
    fn misspelt_key_is_recognised_and_another_word_is_not() {
        assert_eq!(Key::closest("max_mesage_bytes"), Some(Key::MaxMessageBytes));
        assert_eq!(Key::closest("max-message-size"), Some(Key::MaxMessageBytes));
        assert_eq!(Key::closest("Listen"), Some(Key::Listen));
        assert_eq!(Key::closest("shard"), Some(Key::Shards));
        assert_eq!(Key::closest("tls_certificate"), None);
        assert_eq!(Key::closest(""), None);
        assert_eq!(Key::closest("port"), None);
    }

    #[test]
    fn edits_are_counted() {
        assert_eq!(edits_between("kitten", "sitting"), 3);
        assert_eq!(edits_between("", "abc"), 3);
        assert_eq!(edits_between("abc", ""), 3);
        assert_eq!(edits_between("shards", "shards"), 0);
    }
}
