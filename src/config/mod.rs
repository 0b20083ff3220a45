//! What did the operator ask for? Flags, environment, file and defaults go in, in that order of
//! precedence; out comes a [`Config`] in which nothing has to be checked again, or every reason why
//! there is none.
//!
//! - [`Cli`], [`Command`], [`Flags`], [`TokenCommand`]: the command line.
//! - [`Config`]: the settings that hold, and where each of them came from.
//! - [`ConfigErrors`]: what is wrong, each with its setting, its value, its place and its remedy.
//! - `key`: every setting with its name, its default and its help: **begin here to add one**.
//! - `epilogue`: what stands below the options of a command, in its help and in the manual.
//! - [`words`]: every setting in words, completions for shells, pages of the manual.
//! - `connect`: the command line of `wsgate connect`.
//! - `layers`: which source decides a setting.
//! - `file`: the TOML file, as settings not yet read.
//! - `value`: sizes, durations and the like, out of text.
//! - `tokens`: who may connect, and the files with keys.
//! - `effective`: the settings that hold, as TOML.
//! - `reload`: what of a new configuration a running process takes.
//!
//! Only [`Config::load`] touches the outside, to read the file and those that it names, and to count
//! cores; all else is told.

mod cli;
mod connect;
mod effective;
mod epilogue;
mod error;
mod file;
mod key;
mod layers;
mod reload;
mod token_command;
mod tokens;
mod value;
pub mod words;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::admission::addresses::Limits;
use crate::admission::forwarded::ForwardedHeader;
use crate::admission::proxies::TrustedProxies;
use crate::admission::rate::Rate;
use crate::auth::origin::AllowedOrigins;
use crate::connection::outbound::SlowConsumerPolicy;
use crate::server;
use crate::server::certificates;
use crate::server::settings::{
    ApiKey, CertificatePair, ClientAuth, Http2, ListenAddress, TlsSettings,
};
use crate::shard;
use crate::shard::settings::{
    Admission, Compression, CompressionMode, ProxyProtocol, RateLimitAction,
};
use crate::telemetry::logging::{LogFilter, LogFormat};
use crate::wire::frame::MAX_HEADER_BYTES;

pub use self::cli::{Cli, Command, ConfigCommand, Flags};
pub use self::connect::{ConnectError, ConnectFlags, TOKEN_VARIABLE};
pub use self::error::{ConfigError, ConfigErrors, Source};
pub use self::key::Key;
pub use self::reload::Reloaded;
pub use self::token_command::{Check, Make, TokenCommand};
pub use self::value::ValueError;

use self::file::File;
use self::layers::{Environment, Layers};
use self::tokens::TokenSettings;
use self::value::Raw;

/// The settings that hold, checked.
#[derive(Clone)]
pub struct Config {
    /// What the server runs by.
    pub settings: server::settings::Settings,
    /// How a line of the log is written.
    pub log_format: LogFormat,
    /// Which events the log shows.
    pub log_level: LogFilter,
    tokens: TokenSettings,
    /// Holds every key.
    sources: BTreeMap<Key, Source>,
    /// What [`Layers`] noticed; the settings alone no longer tell it.
    notices: Vec<String>,
}

/// Time from sending Close to giving up on the peer's answer. No setting: an operator has no reason
/// to want another, and a drain has a deadline of its own.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

const DEFAULT_OUTBOUND_QUEUE_BYTES: usize = 1 << 20;
const DEFAULT_MAILBOX_BYTES: usize = 16 << 20;

/// More shards than any machine has cores for; a larger number is a slip of the pen.
const MAX_SHARDS: NonZeroU16 = NonZeroU16::new(1024).expect("1024 is not zero");
/// A message is held in memory whole, so a larger limit is a way to run out of it.
const MAX_MESSAGE_BYTES: u64 = 1 << 30;
const MAX_QUEUE_BYTES: u64 = 1 << 40;
/// Fewer, and a mailbox stands full for much of every turn of its shard.
const MIN_MAILBOX_ENTRIES: u64 = 16;
/// More names than the head of a handshake has room for.
const MAX_CHANNELS_PER_CONNECTION: u64 = 8 * 1024;
/// More than one process can have file descriptors for, or a mailbox memory.
const MAX_ENTRIES: u64 = 1 << 30;

impl Config {
    /// Reads the configuration of this process.
    ///
    /// `variables` is its environment; only names that begin with `WSGATE_` are looked at. The file
    /// is the one that `--config` or `WSGATE_CONFIG` names; without either, none is read.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, as far as it can be told at once. The operator erred: print it and
    /// exit with 2.
    pub fn load(
        flags: &Flags,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigErrors> {
        let environment = Environment::new(variables);
        let path = flags.config().or_else(|| environment.config());
        let file = path.map(|path| match std::fs::read_to_string(path) {
            Ok(text) => File::parse(path, &text),
            Err(error) => File::unreadable(path, error),
        });
        let cores = std::thread::available_parallelism()
            .ok()
            .and_then(|cores| NonZeroU16::try_from(cores).ok())
            .unwrap_or(NonZeroU16::MIN);
        let config = Self::resolve(flags, environment, file, cores)?.read_key_files()?;
        if let Some(tls) = &config.settings.tls
            && let Err(error) = certificates::load(tls, config.settings.http2)
        {
            return Err(ConfigErrors::from(ConfigError::from(error)));
        }
        Ok(config)
    }

    /// [`Config::load`] but for the files with keys, with everything that the outside has to say as an argument.
    fn resolve(
        flags: &Flags,
        environment: Environment,
        file: Option<File>,
        cores: NonZeroU16,
    ) -> Result<Self, ConfigErrors> {
        let mut layers = Layers::new(flags, environment, file);

        let max_message_bytes =
            layers.value(Key::MaxMessageBytes, |raw| value::size(raw, 1..=MAX_MESSAGE_BYTES));
        // What the largest message takes up in a queue.
        let largest_frame_bytes = max_message_bytes + MAX_HEADER_BYTES;
        let queue_bytes = |layers: &mut Layers<'_>, key, default: usize| {
            let Some(bytes) = layers.optional(key, |raw| value::size(raw, 1..=MAX_QUEUE_BYTES))
            else {
                return default.max(largest_frame_bytes);
            };
            if bytes < largest_frame_bytes {
                layers.refuse_small_queue(key, bytes, max_message_bytes, largest_frame_bytes);
            }
            bytes
        };
        let outbound_queue_bytes =
            queue_bytes(&mut layers, Key::OutboundQueueBytes, DEFAULT_OUTBOUND_QUEUE_BYTES);
        let mailbox_bytes = queue_bytes(&mut layers, Key::MailboxBytes, DEFAULT_MAILBOX_BYTES);

        let compression = Compression {
            mode: layers.value(Key::Compression, |raw| {
                value::choice(raw, &COMPRESSION_MODES, compression_mode_name)
            }),
            min_bytes: layers
                .value(Key::CompressionMinBytes, |raw| value::size(raw, 0..=MAX_MESSAGE_BYTES)),
            window: layers.value(Key::CompressionWindow, value::window),
            max_memory_bytes: layers
                .value(Key::CompressionMemory, |raw| value::size(raw, 0..=MAX_QUEUE_BYTES)),
        };

        let tokens = TokenSettings::resolve(&mut layers);

        let shard = shard::settings::Settings {
            max_message_bytes,
            max_channels_per_connection: layers.value(Key::MaxChannelsPerConnection, |raw| {
                value::count(raw, 1..=MAX_CHANNELS_PER_CONNECTION)
            }),
            compression,
            ping_interval: layers.value(Key::PingInterval, value::duration),
            idle_timeout: layers.value(Key::IdleTimeout, value::positive_duration),
            handshake_timeout: layers.value(Key::HandshakeTimeout, value::positive_duration),
            close_timeout: CLOSE_TIMEOUT,
            outbound_queue_bytes,
            slow_consumer: layers.value(Key::SlowConsumer, |raw| {
                value::choice(raw, &SLOW_CONSUMER_POLICIES, slow_consumer_name)
            }),
            mailbox_entries: layers.value(Key::MailboxEntries, |raw| {
                value::count(raw, MIN_MAILBOX_ENTRIES..=MAX_ENTRIES)
            }),
            mailbox_bytes,
            allowed_origins: AllowedOrigins::patterns(
                layers.value(Key::AllowedOrigins, value::origins),
            ),
            access: Arc::new(tokens.without_files()),
            admission: admission(&mut layers),
            console: layers
                .value(Key::Console, |raw| value::choice(raw, &[true, false], switch_name)),
        };
        let listen = layers.value(Key::Listen, value::listen_addresses);
        let plain_listen =
            layers.optional(Key::PlainListen, value::listen_addresses).unwrap_or_default();
        let admin_listen = layers.value(Key::AdminListen, value::address);
        refuse_collisions(&mut layers, &listen, &plain_listen, admin_listen);
        let tls = resolve_tls(&mut layers);
        let settings = server::settings::Settings {
            listen,
            plain_listen,
            admin_listen,
            tls,
            http2: layers.value(Key::Http2, |raw| value::choice(raw, &HTTP2_MODES, http2_name)),
            shards: layers
                .optional(Key::Shards, |raw| value::count(raw, 1..=u64::from(MAX_SHARDS.get())))
                .and_then(NonZeroU16::new)
                .unwrap_or(cores.min(MAX_SHARDS)),
            max_connections: layers
                .optional(Key::MaxConnections, |raw| value::count(raw, 1..=MAX_ENTRIES)),
            api_key: layers.optional(Key::ApiKey, value::api_key).map(ApiKey::new),
            drain_grace: layers.value(Key::DrainGrace, value::duration),
            drain_duration: layers.value(Key::DrainDuration, value::duration),
            port_file: layers.optional(Key::PortFile, value::text).map(PathBuf::from),
            handover_socket: layers.optional(Key::HandoverSocket, value::text).map(PathBuf::from),
            shard,
        };
        let log_format = layers
            .value(Key::LogFormat, |raw| value::choice(raw, &LogFormat::ALL, LogFormat::name));
        let log_level = layers.value(Key::LogLevel, value::log_filter);

        let (sources, notices) = layers.finish()?;
        Ok(Self { settings, log_format, log_level, tokens, sources, notices })
    }

    /// What may be meant but is more likely a mistake, in plain words for the log.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.notices.clone();
        let shard = &self.settings.shard;
        if !shard.ping_interval.is_zero() && shard.ping_interval >= shard.idle_timeout {
            warnings.push(format!(
                "idle_timeout is {idle} but ping_interval is {ping}: a silent client is closed \
                 before it is ever pinged. Lower ping_interval to less than half of idle_timeout, \
                 or set it to 0s if no client shall be pinged",
                idle = value::show_duration(shard.idle_timeout),
                ping = value::show_duration(shard.ping_interval),
            ));
        }
        warnings.extend(self.admission_warnings());
        if self.sources[&Key::ApiKey] == Source::Flag {
            warnings.push(format!(
                "api_key is given by {flag}: whoever may list the processes of this machine can \
                 read it. Give it by {variable} or in the file instead",
                flag = Key::ApiKey.flag(),
                variable = Key::ApiKey.variable(),
            ));
        }
        warnings.extend(self.token_warnings());
        warnings
    }
}

/// Reads where clients are and how much they may do.
fn admission(layers: &mut Layers<'_>) -> Admission {
    let most = u64::from(Rate::MAX);
    let mut rate = |per_second: Key, burst: Key, read: fn(&Raw, u64) -> Result<u32, ValueError>| {
        let per_second = layers.optional(per_second, |raw| read(raw, most));
        let burst = layers.optional(burst, |raw| read(raw, most));
        per_second.map(|per_second| Rate::new(per_second, burst.unwrap_or(per_second)))
    };
    let size = |raw: &Raw, most| value::size(raw, 1..=most).map(|bytes| bytes as u32);
    let count = |raw: &Raw, most| value::count(raw, 1..=most);
    let messages = rate(Key::MaxMessagesPerSecond, Key::MaxMessagesBurst, count);
    let bytes = rate(Key::MaxBytesPerSecond, Key::MaxBytesBurst, size);
    let mut handshakes =
        |key: Key| layers.optional(key, |raw| value::count(raw, 1..=most)).map(Rate::per_second);
    let limits = Limits {
        handshakes: handshakes(Key::MaxHandshakesPerSecond),
        handshakes_per_address: handshakes(Key::MaxHandshakesPerSecondPerAddress),
        connections_per_address: layers
            .optional(Key::MaxConnectionsPerAddress, |raw| value::count(raw, 1..=MAX_ENTRIES)),
    };
    let proxies = layers.optional(Key::TrustedProxies, value::trusted_proxies);
    Admission {
        trusted_proxies: TrustedProxies::new(proxies.unwrap_or_default()),
        proxy_protocol: layers.value(Key::ProxyProtocol, |raw| {
            value::choice(raw, &PROXY_PROTOCOLS, proxy_protocol_name)
        }),
        forwarded_header: layers.value(Key::ForwardedHeader, |raw| {
            value::choice(raw, &FORWARDED_HEADERS, forwarded_header_name)
        }),
        limits,
        messages,
        bytes,
        rate_limit_action: layers.value(Key::RateLimitAction, |raw| {
            value::choice(raw, &RATE_LIMIT_ACTIONS, rate_limit_action_name)
        }),
        max_connection_age: layers.optional(Key::MaxConnectionAge, value::positive_duration),
    }
}

impl Config {
    /// What of [`admission`] is more likely a mistake.
    fn admission_warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let shard = &self.settings.shard;
        let admission = &shard.admission;
        if let Some(rate) = admission.bytes
            && admission.rate_limit_action == RateLimitAction::Close
            && (rate.burst() as usize) < shard.max_message_bytes
        {
            warnings.push(format!(
                "max_message_bytes is {message} but max_bytes_burst is {burst} and rate_limit_action \
                 is close: a message of the largest size would end its connection. Raise \
                 max_bytes_burst, or set rate_limit_action to slow",
                message = shard.max_message_bytes,
                burst = rate.burst(),
            ));
        }
        for (burst, per_second, is_set) in [
            (Key::MaxMessagesBurst, Key::MaxMessagesPerSecond, admission.messages.is_some()),
            (Key::MaxBytesBurst, Key::MaxBytesPerSecond, admission.bytes.is_some()),
        ] {
            if !is_set && self.sources[&burst] != Source::Default {
                warnings.push(format!("{burst} is set and means nothing without {per_second}"));
            }
        }
        for key in [Key::ProxyProtocol, Key::ForwardedHeader] {
            if admission.trusted_proxies.is_empty() && self.sources[&key] != Source::Default {
                warnings.push(format!("{key} is set and means nothing without trusted_proxies"));
            }
        }
        warnings
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its TOML form hides the API key; the `Debug` of the settings would show it.
        f.debug_tuple("Config").field(&self.to_toml()).finish()
    }
}

/// Certificates and keys in pairs, and what goes with them.
fn resolve_tls(layers: &mut Layers<'_>) -> Option<TlsSettings> {
    let certs = layers.optional(Key::TlsCert, value::files).unwrap_or_default();
    let keys = layers.optional(Key::TlsKey, value::files).unwrap_or_default();
    let client_ca = layers.optional(Key::TlsClientCa, value::text).map(PathBuf::from);
    let client_auth = layers.optional(Key::TlsClientAuth, |raw| {
        value::choice(raw, &CLIENT_AUTH_MODES, client_auth_name)
    });
    if certs.len() != keys.len() {
        layers.refuse_tls_pairs(certs.len(), keys.len());
    }
    let asks = matches!(client_auth, Some(ClientAuth::Optional | ClientAuth::Required));
    if asks && client_ca.is_none() {
        let reason = "nothing says whose certificates are good";
        layers.refuse_without(Key::TlsClientAuth, Key::TlsClientCa, reason);
    }
    if client_ca.is_some() && certs.is_empty() {
        let reason = "clients show certificates over TLS alone";
        layers.refuse_without(Key::TlsClientCa, Key::TlsCert, reason);
    }
    let pairs = certs.into_iter().zip(keys).map(|(cert, key)| CertificatePair { cert, key });
    let pairs: Vec<_> = pairs.collect();
    let by_default = if client_ca.is_some() { ClientAuth::Required } else { ClientAuth::Off };
    let client_auth = client_auth.unwrap_or(by_default);
    (!pairs.is_empty()).then_some(TlsSettings { pairs, client_ca, client_auth })
}

/// Notes every two listeners that want the same port of the same address.
fn refuse_collisions(
    layers: &mut Layers<'_>,
    listen: &[ListenAddress],
    plain_listen: &[ListenAddress],
    admin_listen: SocketAddr,
) {
    let of = |key, addresses: &[ListenAddress]| {
        let tcp = addresses.iter().filter_map(|address| match address {
            ListenAddress::Tcp(address) => Some((key, *address)),
            ListenAddress::Unix(_) => None,
        });
        tcp.collect::<Vec<_>>()
    };
    let mut all = of(Key::Listen, listen);
    all.extend(of(Key::PlainListen, plain_listen));
    all.push((Key::AdminListen, admin_listen));
    for (index, one) in all.iter().enumerate() {
        for other in &all[index + 1..] {
            if would_collide(one.1, other.1) {
                layers.refuse_same_port(*one, *other);
            }
        }
    }
}

const CLIENT_AUTH_MODES: [ClientAuth; 3] =
    [ClientAuth::Off, ClientAuth::Optional, ClientAuth::Required];

/// The word that an operator writes for `mode`.
fn client_auth_name(mode: ClientAuth) -> &'static str {
    match mode {
        ClientAuth::Off => "off",
        ClientAuth::Optional => "optional",
        ClientAuth::Required => "required",
    }
}

const HTTP2_MODES: [Http2; 3] = [Http2::Off, Http2::Tls, Http2::All];

/// The word that an operator writes for `mode`.
fn http2_name(mode: Http2) -> &'static str {
    match mode {
        Http2::Off => "off",
        Http2::Tls => "tls",
        Http2::All => "all",
    }
}

/// Whether a secret is shorter than what an HMAC with SHA-256 makes of it (RFC 7518 section 3.2).
fn would_be_guessed(secret: &str) -> bool {
    secret.len() < 32
}

const PROXY_PROTOCOLS: [ProxyProtocol; 2] = [ProxyProtocol::Required, ProxyProtocol::Off];

/// The word that an operator writes for `mode`.
fn proxy_protocol_name(mode: ProxyProtocol) -> &'static str {
    match mode {
        ProxyProtocol::Required => "required",
        ProxyProtocol::Off => "off",
    }
}

const FORWARDED_HEADERS: [ForwardedHeader; 3] =
    [ForwardedHeader::XForwardedFor, ForwardedHeader::Forwarded, ForwardedHeader::Off];

/// The word that an operator writes for `header`.
fn forwarded_header_name(header: ForwardedHeader) -> &'static str {
    match header {
        ForwardedHeader::XForwardedFor => "x-forwarded-for",
        ForwardedHeader::Forwarded => "forwarded",
        ForwardedHeader::Off => "off",
    }
}

const RATE_LIMIT_ACTIONS: [RateLimitAction; 2] = [RateLimitAction::Slow, RateLimitAction::Close];

/// The word that an operator writes for `action`.
fn rate_limit_action_name(action: RateLimitAction) -> &'static str {
    match action {
        RateLimitAction::Slow => "slow",
        RateLimitAction::Close => "close",
    }
}

const COMPRESSION_MODES: [CompressionMode; 3] =
    [CompressionMode::Off, CompressionMode::Shared, CompressionMode::Dedicated];

/// The word that an operator writes for `mode`.
fn compression_mode_name(mode: CompressionMode) -> &'static str {
    match mode {
        CompressionMode::Off => "off",
        CompressionMode::Shared => "shared",
        CompressionMode::Dedicated => "dedicated",
    }
}

/// The word that an operator writes for what is there or not.
fn switch_name(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
}

const SLOW_CONSUMER_POLICIES: [SlowConsumerPolicy; 3] =
    [SlowConsumerPolicy::Close, SlowConsumerPolicy::DropOldest, SlowConsumerPolicy::DropNewest];

/// The word that an operator writes for `policy`.
fn slow_consumer_name(policy: SlowConsumerPolicy) -> &'static str {
    match policy {
        SlowConsumerPolicy::Close => "close",
        SlowConsumerPolicy::DropOldest => "drop-oldest",
        SlowConsumerPolicy::DropNewest => "drop-newest",
    }
}

/// Whether two listeners would want the same port of the same address.
///
/// The kernel would not always say so: a listener on one address takes connections away from
/// another on all addresses without a word.
fn would_collide(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |wide: SocketAddr, narrow: SocketAddr| {
        wide.ip() == narrow.ip()
            || wide.ip().is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4())
    };
    one.port() != 0 && one.port() == other.port() && (covers(one, other) || covers(other, one))
}

#[cfg(test)]
mod tests;
