//! What can be wrong with a call, and how that is said.

use http::StatusCode;
use serde_json::{Value, json};
use thiserror::Error;

use crate::auth::access::RenewalError;
use crate::auth::identity::UserError;
use crate::auth::token::TokenError;
use crate::pubsub::{ChannelNameError, ConnectionIdError};

/// Why a call was not carried out. Codes below 400 are Centrifugo's.
#[derive(Debug, Error)]
pub enum ApiError {
    /// 101.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// 104.
    #[error(
        "there is no method {0}; there are publish, broadcast, send, disconnect, refresh, connection, \
         channels, info, drain and shed"
    )]
    MethodNotFound(String),
    /// 107, and the body is not JSON at all.
    #[error("the body is not a JSON object: {0}")]
    NotJson(String),
    /// 107.
    #[error("{0}")]
    BadRequest(String),
    /// 107.
    #[error("channel: {0}")]
    ChannelName(#[from] ChannelNameError),
    /// 107.
    #[error("connection: {0}")]
    ConnectionId(#[from] ConnectionIdError),
    /// 107.
    #[error("user: {0}")]
    User(#[from] UserError),
    /// 107.
    #[error("connection: it came without a token, so there is nothing to renew")]
    ConnectionAnonymous,
    /// 107: 101 is about the API key. 109 where it has expired.
    #[error("token: {0}")]
    Token(RenewalError),
    /// 106.
    #[error("the message has {bytes} bytes; max_message_bytes is {max_bytes}")]
    MessageTooBig {
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        max_bytes: usize,
    },
    /// 106, and the body was not read.
    #[error("the body has more than {max_bytes} bytes, the most that this gateway reads")]
    BodyTooBig {
        /// How long it may be.
        max_bytes: usize,
    },
    /// 107.
    #[error("the body did not arrive in time, or not whole")]
    BodyIncomplete,
    /// 404.
    #[error("no connection has this id; it may have ended")]
    ConnectionNotFound,
    /// 409. It goes on already, and once at a time is enough.
    #[error("{0}")]
    Conflict(&'static str),
    /// 108. The call may be made again.
    #[error("{0}; try again")]
    Busy(&'static str),
}

impl ApiError {
    /// The code in the body.
    pub fn code(&self) -> u32 {
        match self {
            Self::Unauthorized(_) => 101,
            Self::MethodNotFound(_) => 104,
            Self::MessageTooBig { .. } | Self::BodyTooBig { .. } => 106,
            Self::NotJson(_)
            | Self::BadRequest(_)
            | Self::ChannelName(_)
            | Self::ConnectionId(_)
            | Self::User(_)
            | Self::ConnectionAnonymous
            | Self::BodyIncomplete => 107,
            Self::Token(RenewalError::Token(TokenError::Expired)) => 109,
            Self::Token(_) => 107,
            Self::Busy(_) => 108,
            Self::ConnectionNotFound => 404,
            Self::Conflict(_) => 409,
        }
    }

    /// The HTTP status, where the caller wants errors to have one.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::MethodNotFound(_) | Self::ConnectionNotFound => StatusCode::NOT_FOUND,
            Self::MessageTooBig { .. } | Self::BodyTooBig { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NotJson(_)
            | Self::BadRequest(_)
            | Self::ChannelName(_)
            | Self::ConnectionId(_)
            | Self::User(_)
            | Self::ConnectionAnonymous
            | Self::Token(_) => StatusCode::BAD_REQUEST,
            Self::BodyIncomplete => StatusCode::REQUEST_TIMEOUT,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Whether the call itself came to nothing before its parameters were looked at. Such an error
    /// always has its HTTP status; Centrifugo answers the others with 200, and its SDKs read the
    /// error from the body.
    pub fn is_transport(&self) -> bool {
        match self {
            Self::Unauthorized(_)
            | Self::MethodNotFound(_)
            | Self::NotJson(_)
            | Self::BodyTooBig { .. }
            | Self::BodyIncomplete
            | Self::Busy(_) => true,
            Self::BadRequest(_)
            | Self::ChannelName(_)
            | Self::ConnectionId(_)
            | Self::User(_)
            | Self::ConnectionAnonymous
            | Self::Token(_)
            | Self::MessageTooBig { .. }
            | Self::Conflict(_)
            | Self::ConnectionNotFound => false,
        }
    }

    /// `{"error": {"code": …, "message": …}}`.
    pub fn to_json(&self) -> Value {
        json!({ "error": { "code": self.code(), "message": self.to_string() } })
    }
}
