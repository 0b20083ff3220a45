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
    /// Where clients connect, over TLS if there is a certificate. Port 0 takes a free one. At least one.
    pub listen: Vec<ListenAddress>,
    /// Where clients connect without TLS in any case.
    pub plain_listen: Vec<ListenAddress>,
    /// How clients are told who this is.
    pub tls: Option<TlsSettings>,
    /// Where HTTP/2 is spoken beside HTTP/1.1.
    pub http2: Http2,
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
    /// Where a new process asks for the listening sockets. `None`: it cannot.
    pub handover_socket: Option<PathBuf>,
    /// Settings of each shard.
    pub shard: shard::settings::Settings,
}

/// Where a listener is. Shown as operators write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a Unix socket, written `unix:/path`.
    Unix(PathBuf),
}

/// What stands before the path of a Unix socket.
pub const UNIX_PREFIX: &str = "unix:";

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX_PREFIX}{}", path.display()),
        }
    }
}

/// Files of one certificate, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificatePair {
    /// The certificate, and behind it those that sign it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Whether clients show certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// They are not asked.
    Off,
    /// One that is shown must be good.
    Optional,
    /// Nobody comes in without a good one.
    Required,
}

/// Where HTTP/2 is spoken beside HTTP/1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http2 {
    /// Nowhere.
    Off,
    /// Where TLS negotiates it.
    Tls,
    /// There, and on plain listeners with clients that begin with it (RFC 9113 section 3.3).
    All,
}

/// How clients are told who this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// At least one; the first is for those who ask for none of them.
    pub pairs: Vec<CertificatePair>,
    /// Who signs clients' certificates. There unless `client_auth` is off.
    pub client_ca: Option<PathBuf>,
    /// Whether clients show certificates.
    pub client_auth: ClientAuth,
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
