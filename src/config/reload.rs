//! What of a new configuration holds at once? A process keeps what it cannot change while it runs, takes
//! the rest, and says which is which.

use super::key::Key;
use super::{Config, ConfigErrors, Flags};

/// When a changed setting holds.
#[derive(Clone, Copy)]
pub(super) enum Change {
    /// From the reload on.
    WhileRunning,
    /// From the next start on; until then this puts back what the process was started with.
    AtRestart(PutBack),
    /// From the reload on where both of them speak TLS, else as above.
    WhileSpeakingTls(PutBack),
}

type PutBack = fn(fresh: &mut Config, running: &Config);

/// What became of a new configuration.
#[derive(Debug)]
pub struct Reloaded {
    /// What holds from now on.
    pub config: Config,
    /// Each setting that has another value now, in words. Never a secret.
    pub taken: Vec<String>,
    /// Each setting that has another value in the sources and keeps its old one, in words.
    pub not_taken: Vec<String>,
}

impl Key {
    /// When another value of it holds.
    pub(super) fn change(self) -> Change {
        match self {
            Self::Listen => Change::AtRestart(|fresh, running| {
                fresh.settings.listen.clone_from(&running.settings.listen);
            }),
            Self::PlainListen => Change::AtRestart(|fresh, running| {
                fresh.settings.plain_listen.clone_from(&running.settings.plain_listen);
            }),
            Self::TlsCert | Self::TlsKey | Self::TlsClientCa | Self::TlsClientAuth => {
                Change::WhileSpeakingTls(|fresh, running| {
                    fresh.settings.tls.clone_from(&running.settings.tls);
                })
            }
            Self::Http2 => Change::AtRestart(|fresh, running| {
                fresh.settings.http2 = running.settings.http2;
            }),
            Self::AdminListen => Change::AtRestart(|fresh, running| {
                fresh.settings.admin_listen = running.settings.admin_listen;
            }),
            Self::PortFile => Change::AtRestart(|fresh, running| {
                fresh.settings.port_file.clone_from(&running.settings.port_file);
            }),
            Self::HandoverSocket => Change::AtRestart(|fresh, running| {
                fresh.settings.handover_socket.clone_from(&running.settings.handover_socket);
            }),
            Self::Shards => Change::AtRestart(|fresh, running| {
                fresh.settings.shards = running.settings.shards;
            }),
            Self::MailboxEntries => Change::AtRestart(|fresh, running| {
                fresh.settings.shard.mailbox_entries = running.settings.shard.mailbox_entries;
            }),
            Self::MailboxBytes => Change::AtRestart(|fresh, running| {
                fresh.settings.shard.mailbox_bytes = running.settings.shard.mailbox_bytes;
            }),
            Self::LogFormat => Change::AtRestart(|fresh, running| {
                fresh.log_format = running.log_format;
            }),
            Self::MaxConnections
            | Self::MaxChannelsPerConnection
            | Self::HandshakeTimeout
            | Self::PingInterval
            | Self::IdleTimeout
            | Self::MaxMessageBytes
            | Self::OutboundQueueBytes
            | Self::SlowConsumer
            | Self::Compression
            | Self::CompressionMinBytes
            | Self::CompressionWindow
            | Self::CompressionMemory
            | Self::TrustedProxies
            | Self::ProxyProtocol
            | Self::ForwardedHeader
            | Self::MaxConnectionsPerAddress
            | Self::MaxHandshakesPerSecond
            | Self::MaxHandshakesPerSecondPerAddress
            | Self::MaxMessagesPerSecond
            | Self::MaxMessagesBurst
            | Self::MaxBytesPerSecond
            | Self::MaxBytesBurst
            | Self::RateLimitAction
            | Self::MaxConnectionAge
            | Self::AllowedOrigins
            | Self::Console
            | Self::ApiKey
            | Self::Anonymous
            | Self::AnonymousSubscribe
            | Self::AnonymousPublish
            | Self::TokenHmacSecret
            | Self::TokenPublicKey
            | Self::TokenJwks
            | Self::TokenAudience
            | Self::TokenIssuer
            | Self::TokenLeeway
            | Self::TokenDefaultChannels
            | Self::DrainGrace
            | Self::DrainDuration
            | Self::LogLevel => Change::WhileRunning,
        }
    }

    /// Whether another value of it holds only after a restart.
    pub fn needs_restart(self) -> bool {
        match self.change() {
            Change::AtRestart(_) => true,
            Change::WhileRunning | Change::WhileSpeakingTls(_) => false,
        }
    }
}

impl Config {
    /// Loads the configuration anew, exactly as at the start, and works out what of it can hold now.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it. Nothing of it may be taken then.
    pub fn reload(&self, flags: &Flags) -> Result<Reloaded, ConfigErrors> {
        Self::load(flags, std::env::vars_os()).map(|fresh| self.change_to(fresh))
    }

    /// What becomes of `fresh` in a process that runs by this configuration.
    pub(super) fn change_to(&self, fresh: Self) -> Reloaded {
        let (mut config, mut taken, mut not_taken) = (fresh, Vec::new(), Vec::new());
        let speak_tls = self.settings.tls.is_some() && config.settings.tls.is_some();
        // Said before anything is put back: the settings of TLS are put back together.
        let differing = Key::all().iter().filter(|key| self.differs(&config, **key));
        let said = differing.map(|key| match config.shown(*key) {
            Some(value) => (*key, format!("{key} is now {value}")),
            None => (*key, format!("{key} is now not set")),
        });
        for (key, now) in said.collect::<Vec<_>>() {
            match key.change() {
                Change::WhileRunning => taken.push(now),
                Change::WhileSpeakingTls(_) if speak_tls => taken.push(now),
                Change::AtRestart(put_back) | Change::WhileSpeakingTls(put_back) => {
                    let from = config.sources[&key].of(key);
                    not_taken.push(format!("{now} ({from}); it needs a restart"));
                    put_back(&mut config, self);
                    config.sources.insert(key, self.sources[&key].clone());
                }
            }
        }
        Reloaded { config, taken, not_taken }
    }

    fn differs(&self, other: &Self, key: Key) -> bool {
        if key.is_secret() {
            return self.secret(key) != other.secret(key);
        }
        self.shown(key) != other.shown(key)
    }

    /// The value of a `key` that is never shown, to be compared.
    fn secret(&self, key: Key) -> Option<&str> {
        match key {
            Key::ApiKey => self.settings.api_key.as_ref().map(|key| key.expose()),
            Key::TokenHmacSecret => self.tokens.hmac_secret.as_ref().map(|secret| secret.expose()),
            key => unreachable!("{key} is secret, so it is to be compared here"),
        }
    }
}
