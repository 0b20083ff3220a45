//! How a connection ended or failed to begin, and whether another attempt makes sense.

use std::io;
use std::time::Duration;

use http::StatusCode;
use rustls::{CertificateError, InvalidMessage};
use thiserror::Error;

use crate::client::messages::ServerError;
use crate::client::offer::UnknownExtension;
use crate::client::text;
use crate::wire::close::CloseCode;

/// Why there is no connection any more, or none yet.
#[derive(Debug, Error)]
pub(super) enum Ending {
    #[error("connection closed: {}", in_words(*code, reason))]
    Closed { code: Option<CloseCode>, reason: String },
    #[error("connection lost: no Close came before its end")]
    Cut,
    #[error("connection lost: {0}")]
    Lost(io::Error),
    #[error("the server broke a rule of the protocol: {0}")]
    ServerError(#[from] ServerError),
    #[error("cannot connect: {0}")]
    Unreachable(io::Error),
    #[error("cannot connect: no answer within {0:?}")]
    Slow(Duration),
    #[error("cannot connect: {0}. Trust its issuer with --ca FILE, or anyone with --insecure")]
    Certificate(rustls::Error),
    #[error(
        "cannot connect: the server shows the certificate of an authority (CA:TRUE), which is none of a \
         server, also where --ca names it. Give the server one that is (openssl req -x509 … -addext \
         basicConstraints=critical,CA:FALSE), or trust anyone with --insecure"
    )]
    AuthorityAsServer,
    #[error("cannot connect: the server does not speak TLS ({0}). Try ws://")]
    NotTls(rustls::Error),
    #[error("refused with {status}{}", behind_status(told))]
    Refused { status: StatusCode, retry_after: Option<Duration>, told: String },
    #[error("not a WebSocket server: {0}")]
    NotWebSocket(&'static str),
    #[error("not a WebSocket server: its answer is not HTTP/1 ({error}){}", remedy(*.transport))]
    NotHttp { error: hyper::Error, transport: Transport },
    #[error(transparent)]
    UnknownExtension(#[from] UnknownExtension),
    #[error("the server chose the subprotocol \"{}\", which was not offered", text::escaped(.0))]
    UnknownSubprotocol(String),
}

/// What a handshake went over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Tls,
    Unix,
}

impl Ending {
    /// A failure to open a socket or to speak TLS on it.
    pub(super) fn connecting(error: io::Error) -> Self {
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
        match cause {
            Some(rustls::Error::InvalidCertificate(cause)) if is_authority(cause) => {
                Self::AuthorityAsServer
            }
            Some(cause @ rustls::Error::InvalidCertificate(_)) => Self::Certificate(cause.clone()),
            Some(cause @ rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
                Self::NotTls(cause.clone())
            }
            Some(_) | None => Self::Unreachable(error),
        }
    }

    /// A failure to ask for a WebSocket, or to get an answer.
    pub(super) fn asking(error: hyper::Error, transport: Transport) -> Self {
        if error.is_parse() {
            Self::NotHttp { error, transport }
        } else {
            Self::Unreachable(io::Error::other(error))
        }
    }

    /// Whether what went wrong may be over in a while.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Cut | Self::Lost(_) | Self::Unreachable(_) | Self::Slow(_) => true,
            Self::Closed { code, .. } => code.is_some_and(|code| {
                // Going away, internal error, and those of the IANA registry for a service that is
                // restarted, overloaded, or behind a gateway that cannot reach it. An application's
                // own (3000 and above) are for that application to understand.
                matches!(code.as_u16(), 1001 | 1011..=1014)
            }),
            Self::Refused { status, .. } => {
                status.is_server_error()
                    || matches!(
                        *status,
                        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
                    )
            }
            Self::ServerError(_)
            | Self::Certificate(_)
            | Self::AuthorityAsServer
            | Self::NotTls(_)
            | Self::NotWebSocket(_)
            | Self::NotHttp { .. }
            | Self::UnknownExtension(_)
            | Self::UnknownSubprotocol(_) => false,
        }
    }

    /// The server has said all that it had to say: 1000, or a Close without a code.
    pub(super) fn is_normal(&self) -> bool {
        matches!(self, Self::Closed { code: None | Some(CloseCode::NORMAL), .. })
    }

    /// How long the server wants to be left alone.
    pub(super) fn retry_after(&self) -> Duration {
        match self {
            Self::Refused { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        }
    }
}

/// Whether a certificate was refused because it is an authority's. rustls has no variant for it, and
/// hands on the error of webpki, which we do not depend on; its `Display` is the name of its variant.
fn is_authority(error: &CertificateError) -> bool {
    matches!(error, CertificateError::Other(other) if other.to_string() == "CaUsedAsEndEntity")
}

/// Behind an answer that is not HTTP/1: an alert of TLS is the most usual one.
fn remedy(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => ". If it speaks TLS, try wss://",
        Transport::Tls | Transport::Unix => "",
    }
}

/// `1001 going away (the gateway is draining)`
fn in_words(code: Option<CloseCode>, reason: &str) -> String {
    let Some(code) = code else {
        return "no code".to_owned();
    };
    let name = match code.as_u16() {
        1000 => " normal",
        1001 => " going away",
        1002 => " protocol error",
        1003 => " unsupported data",
        1007 => " invalid data",
        1008 => " policy violation",
        1009 => " message too big",
        1010 => " extension required",
        1011 => " internal error",
        1012 => " service restart",
        1013 => " try again later",
        1014 => " bad gateway",
        _ => "",
    };
    let code = code.as_u16();
    match reason {
        "" => format!("{code}{name}"),
        reason => format!("{code}{name} ({})", text::escaped(reason)),
    }
}

/// What the body of a refusal says, behind its status.
fn behind_status(body: &str) -> String {
    match body.trim() {
        "" => String::new(),
        body => format!(": {}", text::escaped(body)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::header::ProtocolError;

    fn closed(code: u16) -> Ending {
        let code = Some(CloseCode::from_wire(code).expect("it may travel"));
        Ending::Closed { code, reason: String::new() }
    }

    fn refused(status: u16) -> Ending {
        let status = StatusCode::from_u16(status).expect("a status");
        Ending::Refused { status, retry_after: None, told: String::new() }
    }

    #[test]
    fn another_attempt_is_made_where_what_went_wrong_may_pass() {
        for code in [1001, 1011, 1012, 1013, 1014] {
            assert!(closed(code).may_pass(), "{code}");
        }
        for code in [1000, 1002, 1003, 1007, 1008, 1009, 1010, 3000, 4000] {
            assert!(!closed(code).may_pass(), "{code}");
        }
        for status in [408, 429, 500, 502, 503] {
            assert!(refused(status).may_pass(), "{status}");
        }
        for status in [200, 301, 400, 401, 403, 404, 426] {
            assert!(!refused(status).may_pass(), "{status}");
        }
        assert!(Ending::Cut.may_pass());
        assert!(Ending::connecting(io::ErrorKind::ConnectionRefused.into()).may_pass());
        assert!(!Ending::ServerError(ProtocolError::TextNotUtf8.into()).may_pass());
    }

    #[test]
    fn certificate_that_is_not_trusted_stays_so() {
        let error = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let ending = Ending::connecting(io::Error::other(error));
        assert!(!ending.may_pass());
        assert!(ending.to_string().contains("--ca FILE"), "{ending}");
    }

    #[test]
    fn close_is_told_with_its_name_and_its_reason() {
        let ending = Ending::Closed {
            code: Some(CloseCode::GOING_AWAY),
            reason: "the gateway is draining\x1b[2J".to_owned(),
        };
        let shown = "connection closed: 1001 going away (the gateway is draining\\u{1b}[2J)";
        assert_eq!(ending.to_string(), shown);
        assert_eq!(closed(4000).to_string(), "connection closed: 4000");
        let without = Ending::Closed { code: None, reason: String::new() };
        assert_eq!(without.to_string(), "connection closed: no code");
        assert!(without.is_normal() && closed(1000).is_normal() && !closed(1001).is_normal());
    }
}
