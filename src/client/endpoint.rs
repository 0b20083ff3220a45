//! Where to connect: a `ws:`, `wss:` or `ws+unix:` URL, taken apart.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use http::Uri;
use thiserror::Error;

/// A WebSocket URL. Shown as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    url: String,
    pub(super) place: Place,
    /// TLS is spoken from the first byte.
    pub(super) is_tls: bool,
    /// What the `Host` header says: the port is left out where it is the scheme's own.
    pub(super) authority: String,
    /// Path and query, as the request line has them.
    pub(super) target: String,
}

/// What is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A name or an address, an IPv6 one without its brackets.
    Tcp { host: String, port: u16 },
    /// A Unix socket.
    Unix(PathBuf),
}

/// Why a text is no WebSocket URL.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum EndpointError {
    /// It is no URL at all.
    #[error("not a URL. Write ws://HOST:PORT/PATH, wss://HOST/PATH or ws+unix:///FILE:/PATH")]
    Form,
    /// Another scheme than those of a WebSocket.
    #[error("\"{0}\" is no scheme of a WebSocket. Write ws:// or, for TLS, wss://")]
    Scheme(String),
    /// A user name before the host.
    #[error("a user before the host is not sent. Give it by --header 'Authorization: Basic …'")]
    User,
    /// RFC 6455 section 3.
    #[error("a WebSocket URL has no fragment. Leave out what follows #, or write %23 for it")]
    Fragment,
}

const UNIX: &str = "ws+unix://";

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(url: &str) -> Result<Self, EndpointError> {
        if url.contains('#') {
            return Err(EndpointError::Fragment);
        }
        if let Some(rest) = url.strip_prefix(UNIX) {
            return Self::unix(url, rest);
        }
        let uri: Uri = url.parse().map_err(|_| EndpointError::Form)?;
        let scheme = uri.scheme_str().ok_or(EndpointError::Form)?;
        let is_tls = match scheme {
            // What is copied from a browser's address bar is meant as well.
            "ws" | "http" => false,
            "wss" | "https" => true,
            other => return Err(EndpointError::Scheme(other.to_owned())),
        };
        let authority = uri.authority().ok_or(EndpointError::Form)?;
        if authority.as_str().contains('@') {
            return Err(EndpointError::User);
        }
        let default_port = if is_tls { 443 } else { 80 };
        let host = authority.host();
        let port = match authority.as_str()[host.len()..].strip_prefix(':') {
            None | Some("") => default_port,
            Some(port) => port.parse().map_err(|_| EndpointError::Form)?,
        };
        if host.is_empty() {
            return Err(EndpointError::Form);
        }
        let authority =
            if port == default_port { host.to_owned() } else { format!("{host}:{port}") };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        // `ws://host?query` is a query of the root.
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Ok(Self {
            url: url.to_owned(),
            place: Place::Tcp { host, port },
            is_tls,
            authority,
            target,
        })
    }
}

impl Endpoint {
    /// `rest` is `/FILE:/PATH`, or `/FILE` for the root.
    fn unix(url: &str, rest: &str) -> Result<Self, EndpointError> {
        let (file, target) = rest.split_once(":/").unwrap_or((rest, ""));
        let target = format!("/{target}");
        let is_target = target.parse::<Uri>().is_ok();
        if !file.starts_with('/') || !is_target {
            return Err(EndpointError::Form);
        }
        Ok(Self {
            url: url.to_owned(),
            place: Place::Unix(file.into()),
            is_tls: false,
            authority: "localhost".to_owned(),
            target,
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: &str) -> Endpoint {
        url.parse().unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    fn tcp(host: &str, port: u16) -> Place {
        Place::Tcp { host: host.to_owned(), port }
    }

    #[test]
    fn port_that_cannot_be_one_is_refused_and_not_replaced() {
        for url in ["ws://localhost:65536/", "wss://localhost:99999", "ws://[::1]:70000/"] {
            assert_eq!(url.parse::<Endpoint>().unwrap_err(), EndpointError::Form, "{url}");
        }
        assert_eq!("ws://localhost:/".parse::<Endpoint>().unwrap().authority, "localhost");
    }

    #[test]
    fn url_is_taken_apart() {
        let plain = endpoint("ws://localhost:8080/channels/news?own=false");
        assert_eq!(plain.place, tcp("localhost", 8080));
        assert_eq!(plain.authority, "localhost:8080");
        assert_eq!(plain.target, "/channels/news?own=false");
        assert!(!plain.is_tls);

        let encrypted = endpoint("wss://example.com");
        assert_eq!(encrypted.place, tcp("example.com", 443));
        assert_eq!(encrypted.authority, "example.com");
        assert_eq!(encrypted.target, "/");
        assert!(encrypted.is_tls);
        assert_eq!(endpoint("ws://example.com?a=b").target, "/?a=b");
    }

    #[test]
    fn ipv6_address_is_connected_to_without_its_brackets() {
        let endpoint = endpoint("ws://[::1]:9000/echo");
        assert_eq!(endpoint.place, tcp("::1", 9000));
        assert_eq!(endpoint.authority, "[::1]:9000");
    }

    #[test]
    fn unix_socket_is_named_before_the_path() {
        let socket = endpoint("ws+unix:///run/wsgate.sock:/echo?x");
        assert_eq!(socket.place, Place::Unix("/run/wsgate.sock".into()));
        assert_eq!(socket.target, "/echo?x");
        assert_eq!(endpoint("ws+unix:///run/wsgate.sock").target, "/");
        let socket = endpoint("ws+unix:///run/wsgate.sock:/channels/a?also=x:/y");
        assert_eq!(socket.place, Place::Unix("/run/wsgate.sock".into()));
        assert_eq!(socket.target, "/channels/a?also=x:/y");
    }

    #[test]
    fn what_is_no_websocket_url_is_refused_with_the_remedy() {
        let refused = |url: &str| url.parse::<Endpoint>().unwrap_err();
        assert_eq!(refused("localhost:8080/echo"), EndpointError::Form);
        assert_eq!(refused("/echo"), EndpointError::Form);
        assert_eq!(refused("ws://"), EndpointError::Form);
        assert_eq!(refused("ws+unix://echo"), EndpointError::Form);
        assert_eq!(refused("ftp://host/"), EndpointError::Scheme("ftp".to_owned()));
        assert_eq!(refused("ws://me:secret@host/"), EndpointError::User);
        assert_eq!(refused("ws://host/#part"), EndpointError::Fragment);
    }
}
