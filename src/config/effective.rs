//! The settings that hold, as TOML: what `wsgate check` prints. Read as a file, it gives the same
//! settings again, but for the API key, which is not shown.

use std::fmt::Write as _;

use super::key::Key;
use super::{
    Config, client_auth_name, compression_mode_name, forwarded_header_name, http2_name,
    proxy_protocol_name, rate_limit_action_name, slow_consumer_name, switch_name, value,
};

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
            Key::Listen => one_or_list(&server.listen),
            Key::PlainListen => {
                (!server.plain_listen.is_empty()).then(|| one_or_list(&server.plain_listen))?
            }
            Key::AdminListen => quoted(&server.admin_listen.to_string()),
            Key::PortFile => quoted(&server.port_file.as_ref()?.to_string_lossy()),
            Key::HandoverSocket => quoted(&server.handover_socket.as_ref()?.to_string_lossy()),
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
            Key::TlsCert => {
                let pairs = &server.tls.as_ref()?.pairs;
                one_or_list(pairs.iter().map(|pair| pair.cert.display()))
            }
            Key::TlsKey => {
                let pairs = &server.tls.as_ref()?.pairs;
                one_or_list(pairs.iter().map(|pair| pair.key.display()))
            }
            Key::TlsClientCa => quoted(&server.tls.as_ref()?.client_ca.as_ref()?.to_string_lossy()),
            Key::TlsClientAuth => quoted(client_auth_name(server.tls.as_ref()?.client_auth)),
            Key::Http2 => quoted(http2_name(server.http2)),
            Key::Compression => quoted(compression_mode_name(shard.compression.mode)),
            Key::CompressionMinBytes => size(shard.compression.min_bytes),
            Key::CompressionWindow => size(shard.compression.window.bytes()),
            Key::CompressionMemory => size(shard.compression.max_memory_bytes),
            Key::TrustedProxies => {
                if shard.admission.trusted_proxies.is_empty() {
                    return None;
                }
                let proxies: Vec<_> = shard
                    .admission
                    .trusted_proxies
                    .iter()
                    .map(|proxy| quoted(&proxy.to_string()))
                    .collect();
                format!("[{}]", proxies.join(", "))
            }
            Key::ProxyProtocol => quoted(proxy_protocol_name(shard.admission.proxy_protocol)),
            Key::ForwardedHeader => quoted(forwarded_header_name(shard.admission.forwarded_header)),
            Key::MaxConnectionsPerAddress => {
                shard.admission.limits.connections_per_address?.to_string()
            }
            Key::MaxHandshakesPerSecond => {
                shard.admission.limits.handshakes?.a_second().to_string()
            }
            Key::MaxHandshakesPerSecondPerAddress => {
                shard.admission.limits.handshakes_per_address?.a_second().to_string()
            }
            Key::MaxMessagesPerSecond => shard.admission.messages?.a_second().to_string(),
            Key::MaxMessagesBurst => shard.admission.messages?.burst().to_string(),
            Key::MaxBytesPerSecond => size(shard.admission.bytes?.a_second() as usize),
            Key::MaxBytesBurst => size(shard.admission.bytes?.burst() as usize),
            Key::RateLimitAction => {
                quoted(rate_limit_action_name(shard.admission.rate_limit_action))
            }
            Key::MaxConnectionAge => duration(shard.admission.max_connection_age?),
            Key::AllowedOrigins => {
                let patterns: Vec<_> = shard
                    .allowed_origins
                    .iter()
                    .map(|pattern| quoted(&pattern.to_string()))
                    .collect();
                format!("[{}]", patterns.join(", "))
            }
            Key::Console => quoted(switch_name(shard.console)),
            Key::Anonymous => quoted(self.tokens.anonymous.name()),
            Key::AnonymousSubscribe => list(&self.tokens.anonymous_subscribe)?,
            Key::AnonymousPublish => list(&self.tokens.anonymous_publish)?,
            Key::TokenHmacSecret => self.tokens.hmac_secret.as_ref().map(|_| quoted("***"))?,
            Key::TokenPublicKey => quoted(&self.tokens.public_key.as_ref()?.to_string_lossy()),
            Key::TokenJwks => quoted(&self.tokens.jwks.as_ref()?.to_string_lossy()),
            Key::TokenAudience => set_list(&self.tokens.audiences)?,
            Key::TokenIssuer => set_list(&self.tokens.issuers)?,
            Key::TokenLeeway => duration(self.tokens.leeway),
            Key::TokenDefaultChannels => set_list(&self.tokens.default_channels)?,
            Key::ApiKey => server.api_key.as_ref().map(|_| quoted("***"))?,
            Key::DrainGrace => duration(server.drain_grace),
            Key::DrainDuration => duration(server.drain_duration),
            Key::LogFormat => quoted(self.log_format.name()),
            Key::LogLevel => quoted(&self.log_level.to_string()),
        })
    }
}

/// One value as a TOML string, several as a list of them.
fn one_or_list<T: ToString>(values: impl IntoIterator<Item = T>) -> String {
    let values: Vec<_> = values.into_iter().map(|value| quoted(&value.to_string())).collect();
    match &*values {
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    }
}

/// `texts` as a TOML list of strings.
fn list(texts: &[impl ToString]) -> Option<String> {
    let texts: Vec<_> = texts.iter().map(|text| quoted(&text.to_string())).collect();
    Some(format!("[{}]", texts.join(", ")))
}

/// The same where there are any; none are what there is without a word.
fn set_list(texts: &[impl ToString]) -> Option<String> {
    if texts.is_empty() { None } else { list(texts) }
}

/// `text` as a TOML string. What JSON escapes, it escapes as TOML does.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
