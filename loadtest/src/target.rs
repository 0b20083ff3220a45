//! Which server, and how is it spoken to?

use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use thiserror::Error;

use crate::client::tls::{Tls, TlsError, Trust};

/// How a server is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Dialect {
    /// Messages are the payload of frames, whole, as RFC 6455 has them.
    #[default]
    #[value(name = "websocket")]
    WebSocket,
    /// The same, but the server's frames carry the client's mask: the floor sends back what it got, and
    /// knows neither Close nor Ping.
    #[value(name = "masked-frames")]
    MaskedFrames,
    /// NATS's protocol in binary frames. A subject is a path without its first slash, with dots for the
    /// others.
    Nats,
}

/// A server under test.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where it listens for WebSockets.
    pub address: SocketAddr,
    /// What the Host header says.
    pub host: String,
    /// How TLS is spoken to it; `None` where it is not.
    pub tls: Option<Tls>,
    /// How it is spoken to.
    pub dialect: Dialect,
    /// The path that echoes; `{connection}` stands for a number of each connection's own.
    pub echo_path: String,
    /// The path of a channel; `{channel}` stands for its name.
    pub channel_path: String,
}

/// A URL that no WebSocket can be opened to.
#[derive(Debug, Error)]
pub enum UrlError {
    /// Not a URL that this harness understands.
    #[error(
        "the URL \"{0}\" is not of the form ws://HOST:PORT or wss://HOST:PORT (paths have flags of their own)"
    )]
    Form(String),
    /// The name has no address.
    #[error("the host of \"{url}\" cannot be found: {error}")]
    Resolve {
        /// As it was given.
        url: String,
        /// What the resolver said.
        error: std::io::Error,
    },
    /// Over TLS, but nobody said whom to believe.
    #[error(
        "the URL is {0}, but whose certificates count is not set: give --ca FILE, such as /etc/ssl/certs/ca-certificates.crt, or --insecure"
    )]
    Trust(String),
    /// Not over TLS, but somebody said whom to believe.
    #[error("ca and insecure are for TLS, but the URL is {0}: leave them out, or ask for wss://")]
    Plain(String),
    /// TLS cannot be spoken to it.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Target {
    /// A server at `ws://HOST:PORT` with the paths of the gateway.
    ///
    /// # Errors
    ///
    /// The URL has another form, or its host is not known.
    pub fn new(url: &str) -> Result<Self, UrlError> {
        Self::with_trust(url, None)
    }

    /// A server at `ws://HOST:PORT`, or at `wss://HOST:PORT` with whom to believe there.
    pub(crate) fn with_trust(url: &str, trust: Option<Trust<'_>>) -> Result<Self, UrlError> {
        let is_tls = url.starts_with("wss://");
        let (host, address) = authority(url, if is_tls { "wss://" } else { "ws://" })?;
        let tls = match (is_tls, trust) {
            (true, Some(trust)) => {
                let port = format!(":{}", address.port());
                Some(Tls::new(host.strip_suffix(&port).unwrap_or(&host), trust)?)
            }
            (true, None) => return Err(UrlError::Trust(url.to_owned())),
            (false, Some(_)) => return Err(UrlError::Plain(url.to_owned())),
            (false, None) => None,
        };
        Ok(Self {
            address,
            host,
            tls,
            dialect: Dialect::WebSocket,
            echo_path: "/echo".to_owned(),
            channel_path: "/channels/{channel}".to_owned(),
        })
    }

    /// For a person.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "wss" } else { "ws" };
        format!("{scheme}://{}", self.host)
    }

    /// The path of connection `number`'s echo.
    pub(crate) fn echo(&self, number: usize) -> String {
        self.echo_path.replace("{connection}", &number.to_string())
    }

    /// The path of channel `number`.
    pub(crate) fn channel(&self, number: u32) -> String {
        self.channel_path.replace("{channel}", &channel_name(number))
    }
}

/// The name of channel `number`.
pub(crate) fn channel_name(number: u32) -> String {
    format!("loadtest-{number}")
}

/// Host and address of a URL with `scheme` and without a path.
pub(crate) fn authority(url: &str, scheme: &str) -> Result<(String, SocketAddr), UrlError> {
    let form = || UrlError::Form(url.to_owned());
    let rest = url.strip_prefix(scheme).ok_or_else(form)?;
    let host = rest.strip_suffix('/').unwrap_or(rest).to_owned();
    // The paths have flags of their own; one that is not used would be measured as another.
    if host.contains('/') || host.is_empty() {
        return Err(form());
    }
    if let Ok(address) = SocketAddr::from_str(&host) {
        return Ok((host, address));
    }
    let port = if scheme == "wss://" { 443 } else { 80 };
    let with_port = if host.contains(':') { host.clone() } else { format!("{host}:{port}") };
    let addresses = with_port
        .to_socket_addrs()
        .map_err(|error| UrlError::Resolve { url: url.to_owned(), error })?;
    let addresses: Vec<SocketAddr> = addresses.collect();
    // Only there can clients take turns over source addresses.
    let address = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    let address = *address.ok_or_else(form)?;
    Ok((host, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_gives_host_and_address() {
        let target = Target::new("ws://127.0.0.1:8080/").unwrap();
        assert_eq!(target.address, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(target.url(), "ws://127.0.0.1:8080");
        assert_eq!(Target::new("ws://localhost:9000").unwrap().address.port(), 9000);
        assert!(matches!(Target::new("http://localhost"), Err(UrlError::Form(_))));
        assert!(matches!(Target::new("localhost:80"), Err(UrlError::Form(_))));
        assert!(matches!(Target::new("ws://localhost:80/echo"), Err(UrlError::Form(_))));
    }

    #[test]
    fn tls_is_spoken_where_the_url_says_so_and_somebody_is_believed() {
        let target = Target::with_trust("wss://127.0.0.1", Some(Trust::Anybody)).unwrap();
        assert_eq!((target.address.port(), target.tls.is_some()), (443, true));
        assert_eq!(target.url(), "wss://127.0.0.1");
        let with_port = Target::with_trust("wss://localhost:9", Some(Trust::Anybody)).unwrap();
        assert_eq!(with_port.address.port(), 9);
        assert!(matches!(Target::new("wss://127.0.0.1"), Err(UrlError::Trust(_))));
        let plain = Target::with_trust("ws://127.0.0.1", Some(Trust::Anybody));
        assert!(matches!(plain, Err(UrlError::Plain(_))));
    }

    #[test]
    fn paths_are_filled_in() {
        let mut target = Target::new("ws://127.0.0.1:1").unwrap();
        target.echo_path = "/echo/{connection}".to_owned();
        assert_eq!(target.echo(7), "/echo/7");
        assert_eq!(target.channel(3), "/channels/loadtest-3");
    }
}
