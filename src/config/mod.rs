//! What did the operator ask for? Flags, environment, file and defaults go in, in that order of
//! precedence; out comes a [`Config`] in which nothing has to be checked again, or every reason why
//! there is none.
//!
//! - [`Cli`], [`Command`], [`Flags`]: the command line.
//! - [`Config`]: the settings that hold, and where each of them came from.
//! - [`ConfigErrors`]: what is wrong, each with its setting, its value, its place and its remedy.
//! - `key`: every setting with its name, its default and its help: **begin here to add one**.
//! - `layers`: which source decides a setting.
//! - `file`: the TOML file, as settings not yet read.
//! - `value`: sizes, durations and the like, out of text.
//! - `effective`: the settings that hold, as TOML.
//!
//! Only [`Config::load`] touches the outside, to read the file and to count cores; all else is
//! told.

mod cli;
mod effective;
mod error;
mod file;
mod key;
mod layers;
mod value;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use crate::auth::origin::AllowedOrigins;
use crate::connection::outbound::SlowConsumerPolicy;
use crate::server;
use crate::server::settings::ApiKey;
use crate::shard;
use crate::shard::settings::{Compression, CompressionMode};
use crate::telemetry::logging::{LogFilter, LogFormat};
use crate::wire::frame::MAX_HEADER_BYTES;

pub use self::cli::{Cli, Command, Flags};
pub use self::error::{ConfigError, ConfigErrors, Source};
pub use self::key::Key;
pub use self::value::ValueError;

use self::file::File;
use self::layers::{Environment, Layers};

/// The settings that hold, checked.
#[derive(Clone)]
pub struct Config {
    /// What the server runs by.
    pub settings: server::settings::Settings,
    /// How a line of the log is written.
    pub log_format: LogFormat,
    /// Which events the log shows.
    pub log_level: LogFilter,
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
        Self::resolve(flags, environment, file, cores)
    }

    /// [`Config::load`], with everything that the outside has to say as an argument.
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
        };
        let listen = layers.value(Key::Listen, value::address);
        let admin_listen = layers.value(Key::AdminListen, value::address);
        if would_collide(listen, admin_listen) {
            layers.refuse_same_port(listen, admin_listen);
        }
        let settings = server::settings::Settings {
            listen,
            admin_listen,
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
            shard,
        };
        let log_format = layers
            .value(Key::LogFormat, |raw| value::choice(raw, &LogFormat::ALL, LogFormat::name));
        let log_level = layers.value(Key::LogLevel, value::log_filter);

        let (sources, notices) = layers.finish()?;
        Ok(Self { settings, log_format, log_level, sources, notices })
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
        if self.sources[&Key::ApiKey] == Source::Flag {
            warnings.push(format!(
                "api_key is given by {flag}: whoever may list the processes of this machine can \
                 read it. Give it by {variable} or in the file instead",
                flag = Key::ApiKey.flag(),
                variable = Key::ApiKey.variable(),
            ));
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
