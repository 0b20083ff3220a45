//! What the operator may decide about the whole process.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use crate::shard;

/// Settings of `wsgate serve`, checked: nothing below has to check them again.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where clients connect. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where operators and backends connect. Port 0 takes a free one.
    pub admin_listen: SocketAddr,
    /// How many shards to run; each is one thread.
    pub shards: NonZeroU16,
    /// Most connections at a time, over all shards. `None`: what the descriptor limit allows.
    pub max_connections: Option<usize>,
    /// What a caller of the API must know. `None`: the API answers only on a loopback address.
    pub api_key: Option<ApiKey>,
    /// How long a draining process still accepts, so that load balancers can look elsewhere.
    pub drain_grace: Duration,
    /// Over how long the closes of a drain are spread.
    pub drain_duration: Duration,
    /// Written once both listeners are open, with the addresses that they took.
    pub port_file: Option<PathBuf>,
    /// Settings of each shard.
    pub shard: shard::settings::Settings,
}

/// What a caller of the API must know. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// A key; any text that fits into a header.
    pub fn new(key: String) -> Self {
        Self(key)
    }

    /// The key itself, to be compared.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(***)")
    }
}
