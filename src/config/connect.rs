//! The command line of `wsgate connect`, read into what `client` is told. It has no file and, but for
//! the token, no environment: it is no service.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue, ORIGIN};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use thiserror::Error;

use crate::client::awaited::{Awaited, Expected};
use crate::client::backoff::Backoff;
use crate::client::endpoint::Endpoint;
use crate::client::handshake::{OWN_HEADERS, Wishes};
use crate::client::tls::Trust;
use crate::client::{Options, Reconnect};

use super::value::{self, Raw, ValueError};

/// Where the token may stand, so that nobody who lists the processes reads it.
pub const TOKEN_VARIABLE: &str = "WSGATE_TOKEN";

/// A message is held in memory whole; see `MAX_MESSAGE_BYTES` of the gateway.
const MAX_MESSAGE_BYTES: u64 = 1 << 30;

const HANDSHAKE: &str = "Handshake";
const TLS: &str = "TLS";
const RECONNECTING: &str = "Reconnecting";
const SCRIPTS: &str = "Scripts";

/// The arguments of `wsgate connect`.
#[derive(Clone, Debug, Args)]
pub struct ConnectFlags {
    /// Where to connect.
    #[arg(
        value_name = "URL",
        help = "ws://HOST:PORT/PATH, wss://… for TLS, or ws+unix:///FILE:/PATH for a Unix socket"
    )]
    url: Endpoint,

    /// Largest message taken from the server, over all its fragments and once inflated, and largest
    /// line or file that is sent; 1 byte to 1GiB
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = read_size)]
    max_message_bytes: usize,

    /// Send this header too, as 'Name: value'; may be repeated
    #[arg(long, value_name = "HEADER", help_heading = HANDSHAKE, value_parser = read_header)]
    header: Vec<(HeaderName, HeaderValue)>,

    /// Offer this subprotocol; may be repeated, the most wanted first
    #[arg(long, value_name = "NAME", help_heading = HANDSHAKE, value_parser = read_subprotocol)]
    subprotocol: Vec<String>,

    /// Send this as a bearer token; better given as WSGATE_TOKEN, since others can read a command
    /// line
    #[arg(long, value_name = "TOKEN", help_heading = HANDSHAKE)]
    token: Option<Token>,

    /// Connect as a page of this origin would; an origin is a scheme and a host, with its port if it
    /// has another one than its scheme
    #[arg(long, value_name = "ORIGIN", help_heading = HANDSHAKE, value_parser = read_origin)]
    origin: Option<HeaderValue>,

    /// Offer permessage-deflate
    #[arg(long, help_heading = HANDSHAKE)]
    compression: bool,

    /// Trust the certificates of this PEM file, and no others [default: those of the system]
    #[arg(long, value_name = "FILE", help_heading = TLS)]
    ca: Option<PathBuf>,

    /// Take any certificate: whoever is in between can read and change everything
    #[arg(long, help_heading = TLS, conflicts_with = "ca")]
    insecure: bool,

    /// Never connect again
    #[arg(long, help_heading = RECONNECTING)]
    no_reconnect: bool,

    /// Connect again also when standard input or output is no terminal
    #[arg(long, help_heading = RECONNECTING, conflicts_with = "no_reconnect")]
    reconnect: bool,

    /// Most attempts in a row to connect again
    #[arg(long, value_name = "COUNT", help_heading = RECONNECTING, default_value_t = 100)]
    max_attempts: u32,

    /// Longest wait before the first attempt; it doubles with each, and any part of it is waited
    #[arg(
        long,
        value_name = "DURATION",
        help_heading = RECONNECTING,
        default_value = "1s",
        value_parser = read_duration
    )]
    reconnect_delay: Duration,

    /// Longest wait before any attempt, also where the server asks for more (Retry-After)
    #[arg(
        long,
        value_name = "DURATION",
        help_heading = RECONNECTING,
        default_value = "30s",
        value_parser = read_duration
    )]
    max_reconnect_delay: Duration,

    /// End well as soon as this text message has come; may be repeated, in any order
    #[arg(long, value_name = "TEXT", help_heading = SCRIPTS)]
    expect: Vec<String>,

    /// The same for a text message that holds this
    #[arg(long, value_name = "TEXT", help_heading = SCRIPTS)]
    expect_part: Vec<String>,

    /// End well as soon as so many messages have come; 0 waits for none after the end of the input.
    /// With --expect: the expected ones have to be among so many
    #[arg(long, value_name = "COUNT", help_heading = SCRIPTS)]
    count: Option<u64>,

    /// Longest time for all of it, from the start; 0s for none [default: none at a terminal,
    /// otherwise 10s from the end of the input]
    #[arg(long, value_name = "DURATION", help_heading = SCRIPTS, value_parser = read_duration)]
    timeout: Option<Duration>,
}

/// A token as it was given. Never shown, so it is not for clap to say what is wrong with it.
#[derive(Clone)]
struct Token(String);

impl From<String> for Token {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

/// What is wrong with the arguments beside what clap has told already.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The file of `--ca` cannot be read, or is none of PEM.
    #[error("--ca is \"{}\", which cannot be used: {error}. Name a PEM file of certificates", .path.display())]
    Ca {
        /// As it was given.
        path: PathBuf,
        /// What is wrong with it.
        error: String,
    },
    /// The token of the flag or of the environment, which is not repeated.
    #[error("{from}: {error}")]
    Token {
        /// Where it was given.
        from: &'static str,
        /// What is wrong with it.
        error: String,
    },
}

impl ConnectFlags {
    /// What the client is told. `token` is the value of [`TOKEN_VARIABLE`].
    ///
    /// # Errors
    ///
    /// The operator erred: print it, and exit with 2.
    pub fn options(self, token: Option<OsString>) -> Result<Options, ConnectError> {
        let (token, from) = match (self.token, token) {
            (Some(Token(token)), _) => (Some(Ok(token)), "--token"),
            (None, token) => (token.map(OsString::into_string), TOKEN_VARIABLE),
        };
        let bearer = token.map(|token| {
            let token = token.map_err(|_| "it is not text".to_owned());
            let bearer = token.and_then(|token| read_bearer(&token));
            bearer.map_err(|error| ConnectError::Token { from, error })
        });
        let trust = match self.ca {
            Some(path) => read_ca(path)?,
            None if self.insecure => Trust::Anyone,
            None => Trust::System,
        };
        let whole = self.expect.into_iter().map(Expected::Whole);
        let parts = self.expect_part.into_iter().map(Expected::Part);
        Ok(Options {
            endpoint: self.url,
            wishes: Wishes {
                headers: self.header,
                subprotocols: self.subprotocol,
                bearer: bearer.transpose()?,
                origin: self.origin,
                compression: self.compression,
            },
            trust,
            max_message_bytes: self.max_message_bytes,
            awaited: Awaited { texts: whole.chain(parts).collect(), count: self.count },
            timeout: self.timeout,
            reconnect: match (self.reconnect, self.no_reconnect) {
                (true, _) => Reconnect::Always,
                (false, true) => Reconnect::Never,
                (false, false) => Reconnect::AtTerminal,
            },
            backoff: Backoff {
                first: self.reconnect_delay,
                longest: self.max_reconnect_delay,
                max_attempts: self.max_attempts,
            },
        })
    }
}

fn read_ca(path: PathBuf) -> Result<Trust, ConnectError> {
    let certificates = CertificateDer::pem_file_iter(&path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| error.to_string())
        .and_then(|certificates| {
            let mut roots = RootCertStore::empty();
            let added = certificates.iter().try_for_each(|one| roots.add(one.clone()));
            added.map(|()| certificates).map_err(|error| error.to_string())
        });
    match certificates {
        Ok(certificates) if certificates.is_empty() => {
            Err(ConnectError::Ca { path, error: "it holds no certificate".to_owned() })
        }
        Ok(certificates) => Ok(Trust::Only(certificates)),
        Err(error) => Err(ConnectError::Ca { path, error }),
    }
}

fn read_size(text: &str) -> Result<usize, ValueError> {
    value::size(&Raw::Text(text.to_owned()), 1..=MAX_MESSAGE_BYTES)
}

fn read_duration(text: &str) -> Result<Duration, ValueError> {
    value::duration(&Raw::Text(text.to_owned()))
}

fn read_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let form = "not a header. Write 'Name: value'";
    let (name, value) = text.split_once(':').ok_or(form)?;
    let name: HeaderName = name.trim().parse().map_err(|_| form)?;
    let value = HeaderValue::from_str(value.trim())
        .map_err(|_| "the value of a header holds no control characters")?;
    if name == ORIGIN || name == AUTHORIZATION || !OWN_HEADERS.contains(&name) {
        return Ok((name, value));
    }
    Err(format!("{name} is the handshake's own; see --subprotocol and --compression"))
}

/// RFC 6455 section 4.1: a token of RFC 9110 section 5.6.2.
fn read_subprotocol(text: &str) -> Result<String, String> {
    let is_token_byte =
        |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.is_empty() || !text.bytes().all(is_token_byte) {
        return Err("not a subprotocol. Write letters, digits and any of !#$%&'*+-.^_`|~; \
                    repeat the flag for several"
            .to_owned());
    }
    Ok(text.to_owned())
}

fn read_bearer(token: &str) -> Result<HeaderValue, String> {
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("a token has visible ASCII characters alone; look for a line end".to_owned());
    }
    let mut bearer =
        HeaderValue::from_str(&format!("Bearer {token}")).map_err(|error| error.to_string())?;
    // So that no `Debug` shows it.
    bearer.set_sensitive(true);
    Ok(bearer)
}

fn read_origin(text: &str) -> Result<HeaderValue, String> {
    let is_origin = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let value = HeaderValue::from_str(text).ok().filter(|_| is_origin);
    value.ok_or_else(|| "not an origin. Write https://example.com".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::config::{Cli, Command};

    fn flags(arguments: &[&str]) -> Result<ConnectFlags, String> {
        let arguments = ["wsgate", "connect"].iter().chain(arguments);
        match Cli::try_parse_from(arguments).map_err(|error| error.to_string())?.command {
            Command::Connect(flags) => Ok(*flags),
            other => panic!("{other:?}"),
        }
    }

    fn options(arguments: &[&str]) -> Options {
        flags(arguments).expect("good arguments").options(None).expect("a good file")
    }

    #[test]
    fn url_is_enough() {
        let options = options(&["ws://localhost:8080/echo"]);
        assert_eq!(options.endpoint, "ws://localhost:8080/echo".parse().expect("a URL"));
        assert_eq!(options.max_message_bytes, 16 << 20);
        assert_eq!(options.trust, Trust::System);
        assert_eq!(options.awaited, Awaited::default());
        assert_eq!(options.timeout, None);
        assert_eq!(options.reconnect, Reconnect::AtTerminal);
        let (first, longest) = (Duration::from_secs(1), Duration::from_secs(30));
        assert_eq!(options.backoff, Backoff { first, longest, max_attempts: 100 });
        assert!(flags(&[]).is_err());
    }

    #[test]
    fn bad_value_is_refused_with_the_remedy() {
        for (arguments, remedy) in [
            (&["localhost:8080"][..], "Write ws://HOST:PORT/PATH"),
            (&["ws://h/", "--timeout", "2"], "Write 2s for seconds or 2ms"),
            (&["ws://h/", "--max-message-bytes", "0"], "Write a value from 1 to 1GiB"),
            (&["ws://h/", "--header", "X-A 1"], "Write 'Name: value'"),
            (&["ws://h/", "--header", "Upgrade: h2c"], "upgrade is the handshake's own"),
            (&["ws://h/", "--subprotocol", "a, b"], "repeat the flag for several"),
            (&["ws://h/", "--origin", ""], "Write https://example.com"),
            (&["ws://h/", "--ca", "f", "--insecure"], "cannot be used with"),
        ] {
            let error = flags(arguments).expect_err(remedy);
            assert!(error.contains(remedy), "{error}");
        }
    }

    #[test]
    fn token_comes_from_the_flag_or_the_environment_and_is_never_shown() {
        let flags = || flags(&["ws://h/"]).expect("good");
        let options = flags().options(Some("sesame".into())).expect("a good token");
        assert_eq!(options.wishes.bearer.as_ref().expect("one"), "Bearer sesame");
        assert!(!format!("{options:?}").contains("sesame"));

        let by_flag = super::tests::options(&["ws://h/", "--token", "mine"]);
        assert_eq!(by_flag.wishes.bearer.expect("one"), "Bearer mine");

        let bad =
            super::tests::flags(&["ws://h/", "--token", "sesame\r"]).expect("not looked at yet");
        assert!(!format!("{bad:?}").contains("sesame"));
        for (from, refused) in [
            ("--token: ", bad.options(None)),
            ("WSGATE_TOKEN: ", flags().options(Some("sesame\r".into()))),
        ] {
            let error = refused.expect_err("it has a line end").to_string();
            assert!(error.starts_with(from) && error.contains("look for a line end"), "{error}");
            assert!(!error.contains("sesame"), "{error}");
        }
    }

    #[test]
    fn file_without_certificates_is_named() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let broken = std::env::temp_dir().join(format!("wsgate-{}.pem", std::process::id()));
        let pem = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
        std::fs::write(&broken, pem).expect("room for a file");
        for path in [file, "/nowhere/at/all.pem", broken.to_str().expect("a path of text")] {
            let flags = flags(&["wss://h/", "--ca", path]).expect("the path is not looked at yet");
            let error = flags.options(None).expect_err("no certificate").to_string();
            assert!(error.starts_with(&format!("--ca is \"{path}\"")), "{error}");
        }
        std::fs::remove_file(broken).expect("it is there");
    }
}
