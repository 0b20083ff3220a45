//! What does a token say, and is it to be believed? A JWT (RFC 7519) in the compact form of a JWS (RFC
//! 7515), no longer than the head of a request.
//!
//! | claim | meaning |
//! |---|---|
//! | `sub` | the user |
//! | `exp`, `nbf` | until when and from when it holds, in seconds since 1970 |
//! | `aud`, `iss` | compared with what the operator expects; an `aud` where none is expected is refused |
//! | `subscribe`, `publish`, `channels` | patterns of channels, a text or a list; `channels` is both |
//!
//! The library checks signatures and nothing else: its own checks ask the clock.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Number, Value};
use thiserror::Error;

use crate::auth::identity::{Identity, UnixSeconds, User};
use crate::auth::keys::{Algorithm, Keys};
use crate::auth::pattern::{ChannelPattern, PatternError, Permissions};

/// Longest token in bytes: as long as the head of a request, in which most of them come.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// Why a token is not believed. Holds nothing of it, so that the text can be sent and logged.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    /// It has not the form of a token.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// It names an algorithm that is not taken, or for which there is no key.
    #[error("the token is signed by an algorithm that this gateway has no key for")]
    Algorithm,
    /// It names a key that is not there.
    #[error("the token is signed with a key that this gateway does not know")]
    UnknownKey,
    /// It is not what was signed.
    #[error("the signature of the token does not hold")]
    Signature,
    /// Its `exp` is over.
    #[error("the token has expired")]
    Expired,
    /// Its `nbf` is yet to come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// Its `aud` is another one, is missing, or is there where none is expected.
    #[error("the token is for another audience (aud)")]
    Audience,
    /// Its `iss` is another one, or is missing.
    #[error("the token comes from another issuer (iss)")]
    Issuer,
    /// One of its claims cannot be read.
    #[error("the claim {claim} of the token cannot be read: {problem}")]
    Claim {
        /// Which.
        claim: &'static str,
        /// What is wrong with it, without repeating it.
        problem: String,
    },
}

impl TokenError {
    /// Position of its name in a closed set of labels:
    /// [`crate::auth::token::TOKEN_ERRORS`].
    pub fn index(&self) -> usize {
        match self {
            Self::Malformed(_) => 0,
            Self::Algorithm => 1,
            Self::UnknownKey => 2,
            Self::Signature => 3,
            Self::Expired => 4,
            Self::NotYetValid => 5,
            Self::Audience => 6,
            Self::Issuer => 7,
            Self::Claim { .. } => 8,
        }
    }
}

/// A short name for each kind of [`TokenError`].
pub const TOKEN_ERRORS: [&str; 9] = [
    "malformed",
    "algorithm",
    "unknown_key",
    "signature",
    "expired",
    "not_yet_valid",
    "audience",
    "issuer",
    "claim",
];

/// A token that is believed.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Whose, and what that may do.
    pub identity: Identity,
    /// How it was signed.
    pub algorithm: Algorithm,
    /// Which key it names.
    pub key_id: Option<String>,
}

/// Believes tokens, or not.
#[derive(Clone, Debug)]
pub struct Verifier {
    /// At least one.
    pub keys: Keys,
    /// One of these has to be in `aud`. Empty: a token must have none.
    pub audiences: Vec<String>,
    /// One of these has to be `iss`. Empty: it is not looked at.
    pub issuers: Vec<String>,
    /// How much the clocks of those who make tokens may be ahead of or behind ours, in seconds.
    pub leeway_seconds: u64,
    /// What a token may do that says nothing about channels.
    pub default_permissions: Permissions,
}

#[derive(Deserialize)]
struct Header {
    alg: Value,
    #[serde(default)]
    kid: Option<Value>,
    /// Extensions that must be understood: there is none that we do (RFC 7515 section 4.1.11).
    #[serde(default)]
    crit: Option<Value>,
    /// An unencoded payload (RFC 7797), which is an extension too.
    #[serde(default)]
    b64: Option<Value>,
}

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    sub: Option<Value>,
    #[serde(default)]
    exp: Option<Value>,
    #[serde(default)]
    nbf: Option<Value>,
    #[serde(default)]
    aud: Option<Value>,
    #[serde(default)]
    iss: Option<Value>,
    #[serde(default)]
    subscribe: Option<Value>,
    #[serde(default)]
    publish: Option<Value>,
    #[serde(default)]
    channels: Option<Value>,
}

impl Verifier {
    /// Believes `token` at the time `now`.
    ///
    /// # Errors
    ///
    /// Why it is not believed: of several reasons the first in the order of [`TOKEN_ERRORS`], but for
    /// claims that cannot be read, which are found before what they say is compared.
    pub fn verify(&self, token: &str, now: UnixSeconds) -> Result<Verified, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed("it is longer than 8 KiB"));
        }
        let form = TokenError::Malformed("it is not three parts with dots between them");
        let (message, signature) = token.rsplit_once('.').ok_or_else(|| form.clone())?;
        let (header, payload) = message.split_once('.').ok_or_else(|| form.clone())?;
        if payload.contains('.') {
            return Err(form);
        }
        let header: Header = part(header, "its header is not a JSON object in base64url")?;
        if header.crit.is_some() || header.b64.is_some() {
            return Err(TokenError::Malformed(
                "its header has critical extensions, and none is known",
            ));
        }
        let algorithm = header.alg.as_str().and_then(Algorithm::by_name);
        let algorithm =
            algorithm.filter(|one| self.keys.take(*one)).ok_or(TokenError::Algorithm)?;
        let key_id = match header.kid {
            None | Some(Value::Null) => None,
            Some(Value::String(id)) => Some(id),
            Some(_) => return Err(TokenError::Malformed("the kid of its header is not a text")),
        };
        self.check_signature(algorithm, key_id.as_deref(), message, signature)?;
        let claims: Claims = part(payload, "its claims are not a JSON object in base64url")?;
        let identity = self.believe(claims, now)?;
        Ok(Verified { identity, algorithm, key_id })
    }

    /// When an identity ends whose token expires at `expires_at`: from then on the token would be
    /// refused.
    pub fn end_of(&self, expires_at: UnixSeconds) -> UnixSeconds {
        UnixSeconds(expires_at.0.saturating_add(self.leeway_seconds))
    }

    fn check_signature(
        &self,
        algorithm: Algorithm,
        key_id: Option<&str>,
        message: &str,
        signature: &str,
    ) -> Result<(), TokenError> {
        let mut error = TokenError::UnknownKey;
        for key in self.keys.candidates(algorithm, key_id) {
            match key.verifies(algorithm, message, signature) {
                Ok(true) => return Ok(()),
                Ok(false) | Err(_) => error = TokenError::Signature,
            }
        }
        Err(error)
    }

    fn believe(&self, claims: Claims, now: UnixSeconds) -> Result<Identity, TokenError> {
        let user =
            match claims.sub {
                None | Some(Value::Null) => None,
                Some(Value::String(name)) => Some(User::new(&name).map_err(|error| {
                    TokenError::Claim { claim: "sub", problem: error.to_string() }
                })?),
                Some(_) => return Err(unreadable("sub", "it is not a text")),
            };
        let expires_at = date("exp", claims.exp)?;
        let valid_from = date("nbf", claims.nbf)?;
        let permissions = permissions(claims.subscribe, claims.publish, claims.channels)?;
        if expires_at.is_some_and(|expires_at| now >= self.end_of(expires_at)) {
            return Err(TokenError::Expired);
        }
        if valid_from.is_some_and(|from| now.0.saturating_add(self.leeway_seconds) < from.0) {
            return Err(TokenError::NotYetValid);
        }
        self.check_audience(claims.aud.as_ref())?;
        if !self.issuers.is_empty() {
            let issuer = claims.iss.as_ref().and_then(Value::as_str).ok_or(TokenError::Issuer)?;
            if !self.issuers.iter().any(|expected| expected == issuer) {
                return Err(TokenError::Issuer);
            }
        }
        let permissions = permissions.unwrap_or_else(|| self.default_permissions.clone());
        Ok(Identity::from_token(user, permissions, expires_at))
    }

    /// RFC 7519 section 4.1.3: who is not named by an `aud` that is there must refuse the token.
    fn check_audience(&self, audience: Option<&Value>) -> Result<(), TokenError> {
        let is_ours = |name: &Value| {
            name.as_str().is_some_and(|name| self.audiences.iter().any(|ours| ours == name))
        };
        let is_good = match audience {
            None | Some(Value::Null) => self.audiences.is_empty(),
            Some(Value::Array(names)) => names.iter().any(is_ours),
            Some(name) => is_ours(name),
        };
        if is_good { Ok(()) } else { Err(TokenError::Audience) }
    }
}

fn part<T: for<'a> Deserialize<'a>>(encoded: &str, problem: &'static str) -> Result<T, TokenError> {
    let malformed = || TokenError::Malformed(problem);
    let text = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| malformed())?;
    // A structure could be read from a list too.
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err(malformed());
    }
    // In what it skips serde_json would not look for it.
    let text = std::str::from_utf8(&text).map_err(|_| malformed())?;
    serde_json::from_str(text).map_err(|_| malformed())
}

fn unreadable(claim: &'static str, problem: &str) -> TokenError {
    TokenError::Claim { claim, problem: problem.to_owned() }
}

/// A NumericDate, which may have a fraction; it is cut off.
fn date(claim: &'static str, value: Option<Value>) -> Result<Option<UnixSeconds>, TokenError> {
    let seconds = |number: &Number| {
        let whole = number.as_u64();
        let cut = || number.as_f64().filter(|number| *number >= 0.0).map(|number| number as u64);
        whole.or_else(cut)
    };
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => match seconds(&number) {
            Some(seconds) => Ok(Some(UnixSeconds(seconds))),
            None => Err(unreadable(claim, "it is before 1970")),
        },
        Some(_) => Err(unreadable(claim, "it is not a number of seconds")),
    }
}

/// `None` where the token says nothing about channels.
fn permissions(
    subscribe: Option<Value>,
    publish: Option<Value>,
    channels: Option<Value>,
) -> Result<Option<Permissions>, TokenError> {
    if subscribe.is_none() && publish.is_none() && channels.is_none() {
        return Ok(None);
    }
    let both = patterns("channels", channels)?;
    let with_both = |claim, value| -> Result<Vec<ChannelPattern>, TokenError> {
        let mut patterns = patterns(claim, value)?;
        patterns.extend_from_slice(&both);
        Ok(patterns)
    };
    let (subscribe, publish) = (with_both("subscribe", subscribe)?, with_both("publish", publish)?);
    match Permissions::new(subscribe, publish) {
        Ok(permissions) => Ok(Some(permissions)),
        Err(error) => Err(unreadable("channels", &error.to_string())),
    }
}

fn patterns(claim: &'static str, value: Option<Value>) -> Result<Vec<ChannelPattern>, TokenError> {
    let wrong = || unreadable(claim, "it is not a list of patterns such as news:*");
    let pattern = |text: &str| {
        text.parse().map_err(|error: PatternError| unreadable(claim, &error.to_string()))
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![pattern(&text)?]),
        Some(Value::Array(list)) => {
            if list.len() > Permissions::MAX_PATTERNS {
                return Err(unreadable(claim, &PatternError::TooMany(list.len()).to_string()));
            }
            list.iter().map(|one| pattern(one.as_str().ok_or_else(wrong)?)).collect()
        }
        Some(_) => Err(wrong()),
    }
}

#[cfg(test)]
mod tests;
