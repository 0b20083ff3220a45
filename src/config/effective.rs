//! The settings that hold, as TOML: what `wsgate check` prints. Read as a file, it gives the same
//! settings again, but for the API key, which is not shown.

use std::fmt::Write as _;

use super::key::Key;
use super::{Config, compression_mode_name, slow_consumer_name, value};

impl Config {
    /// Every setting on a line of its own, with the source of its value as a comment; one that is
    /// not set is a comment altogether.
    pub fn to_toml(&self) -> String {
        let mut toml = String::new();
        for key in Key::all() {
            let source = self.sources[key].of(*key);
            let line = match self.shown(*key) {
                Some(value) => format!("{key} = {value}  # {source}"),
                None => format!("# {key} is not set"),
            };
            writeln!(toml, "{line}").expect("a String takes everything");
        }
        toml
    }

    /// The value of `key` in TOML, or `None` where it has none.
    pub(super) fn shown(&self, key: Key) -> Option<String> {
        let server = &self.settings;
        let shard = &server.shard;
        let size = |bytes: usize| {
            let shown = value::show_size(bytes as u64);
            if shown.bytes().all(|byte| byte.is_ascii_digit()) { shown } else { quoted(&shown) }
        };
        let duration = |duration| quoted(&value::show_duration(duration));
        Some(match key {
            Key::Listen => quoted(&server.listen.to_string()),
            Key::AdminListen => quoted(&server.admin_listen.to_string()),
            Key::PortFile => quoted(&server.port_file.as_ref()?.to_string_lossy()),
            Key::Shards => server.shards.to_string(),
            Key::MaxConnections => server.max_connections?.to_string(),
            Key::MaxChannelsPerConnection => shard.max_channels_per_connection.to_string(),
            Key::HandshakeTimeout => duration(shard.handshake_timeout),
            Key::PingInterval => duration(shard.ping_interval),
            Key::IdleTimeout => duration(shard.idle_timeout),
            Key::MaxMessageBytes => size(shard.max_message_bytes),
            Key::OutboundQueueBytes => size(shard.outbound_queue_bytes),
            Key::SlowConsumer => quoted(slow_consumer_name(shard.slow_consumer)),
            Key::MailboxEntries => shard.mailbox_entries.to_string(),
            Key::MailboxBytes => size(shard.mailbox_bytes),
            Key::Compression => quoted(compression_mode_name(shard.compression.mode)),
            Key::CompressionMinBytes => size(shard.compression.min_bytes),
            Key::CompressionWindow => size(shard.compression.window.bytes()),
            Key::CompressionMemory => size(shard.compression.max_memory_bytes),
            Key::AllowedOrigins => {
                let patterns: Vec<_> = shard
                    .allowed_origins
                    .iter()
                    .map(|pattern| quoted(&pattern.to_string()))
                    .collect();
                format!("[{}]", patterns.join(", "))
            }
            Key::ApiKey => server.api_key.as_ref().map(|_| quoted("***"))?,
            Key::DrainGrace => duration(server.drain_grace),
            Key::DrainDuration => duration(server.drain_duration),
            Key::LogFormat => quoted(self.log_format.name()),
            Key::LogLevel => quoted(&self.log_level.to_string()),
        })
    }
}

/// `text` as a TOML string. What JSON escapes, it escapes as TOML does.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
