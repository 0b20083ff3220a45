//! `wsgate token`: makes a token, and checks one as the gateway would, with the same settings.

use std::fmt::Write as _;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::auth::identity::{UnixSeconds, User};
use crate::auth::pattern::ChannelPattern;
use crate::auth::signer::{SigningError, SigningKey};
use crate::auth::token::{MAX_TOKEN_BYTES, TokenError, Verified};
use crate::config::{Check, Config, Make, TokenCommand};

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum TokenCommandError {
    /// Nothing to sign with. The operator erred.
    #[error(
        "there is no key to sign with. Give token_hmac_secret (WSGATE_TOKEN_HMAC_SECRET), or a \
         private key with --signing-key FILE"
    )]
    NoSigningKey,
    /// The key cannot be read. The operator erred.
    #[error("--signing-key is {path:?}, which cannot be read: {error}. Name a readable file")]
    SigningKeyFile {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The key cannot sign that. The operator erred.
    #[error("{what}: {error}")]
    Signing {
        /// Which setting names the key.
        what: String,
        /// What is wrong with it.
        error: SigningError,
    },
    /// A user is one that the gateway would not believe. The operator erred.
    #[error("--sub has {0} bytes. Write 1 to 255")]
    User(usize),
    /// No key to check with. The operator erred.
    #[error(
        "there is no key to check tokens with. Give token_hmac_secret, token_public_key or \
         token_jwks, as for serve"
    )]
    NoKey,
    /// Standard input failed.
    #[error("cannot read the token from standard input: {0}")]
    Input(std::io::Error),
    /// The token is not believed.
    #[error("{0}")]
    Token(#[from] TokenError),
}

impl TokenCommandError {
    /// Whether the arguments or the settings are to blame, not the token.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::NoSigningKey
            | Self::SigningKeyFile { .. }
            | Self::Signing { .. }
            | Self::User(_)
            | Self::NoKey => true,
            Self::Input(_) | Self::Token(_) => false,
        }
    }
}

/// Does what `command` asks for, with the settings that hold, and returns what to print.
///
/// # Errors
///
/// Why it cannot, or why the token is not believed.
pub fn run(
    command: &TokenCommand,
    config: &Config,
    now: SystemTime,
) -> Result<String, TokenCommandError> {
    match command {
        TokenCommand::Make(make) => sign(make, config, now),
        TokenCommand::Check(check) => verify(check, config, now),
    }
}

fn sign(make: &Make, config: &Config, now: SystemTime) -> Result<String, TokenCommandError> {
    if let Some(sub) = &make.sub {
        User::new(sub).map_err(|_| TokenCommandError::User(sub.len()))?;
    }
    let (what, key) = match &make.signing_key {
        Some(path) => {
            let pem = std::fs::read_to_string(path)
                .map_err(|error| TokenCommandError::SigningKeyFile { path: path.clone(), error })?;
            (format!("--signing-key is {path:?}"), SigningKey::from_pem(&pem))
        }
        None => {
            let secret = config.token_hmac_secret().ok_or(TokenCommandError::NoSigningKey)?;
            ("token_hmac_secret".to_owned(), SigningKey::from_secret(secret))
        }
    };
    let failed = |error| TokenCommandError::Signing { what: what.clone(), error };
    let claims = claims(make, config, now);
    let key = key.map_err(failed)?;
    key.sign(&claims, make.algorithm, make.key_id.as_deref()).map_err(failed)
}

fn claims(make: &Make, config: &Config, now: SystemTime) -> Map<String, Value> {
    let UnixSeconds(now) = UnixSeconds::at(now);
    let after = |duration: Duration| json!(now.saturating_add(duration.as_secs()));
    let mut claims = Map::new();
    let mut add = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            claims.insert(name.to_owned(), value);
        }
    };
    let patterns = |patterns: &[ChannelPattern]| {
        let patterns: Vec<_> = patterns.iter().map(ChannelPattern::as_str).collect();
        (!patterns.is_empty()).then(|| json!(patterns))
    };
    let first = |given: &Option<String>, expected: &[String]| {
        given.as_ref().or(expected.first()).map(|name| json!(name))
    };
    add("sub", make.sub.as_ref().map(|sub| json!(sub)));
    add("iss", first(&make.issuer, config.token_issuers()));
    add("aud", first(&make.audience, config.token_audiences()));
    add("iat", Some(json!(now)));
    add("nbf", make.valid_in.map(after));
    add("exp", (!make.never_expires).then(|| after(make.expires_in)));
    add("subscribe", patterns(&make.subscribe));
    add("publish", patterns(&make.publish));
    add("channels", patterns(&make.channels));
    claims
}

fn verify(check: &Check, config: &Config, now: SystemTime) -> Result<String, TokenCommandError> {
    let verifier = config.settings.shard.access.verifier().ok_or(TokenCommandError::NoKey)?;
    let token = match check.token.as_str() {
        "-" => {
            let mut token = String::new();
            // One byte more than a token may have, and a line end: it is then too long.
            let input = std::io::stdin().take(MAX_TOKEN_BYTES as u64 + 3);
            { input }.read_to_string(&mut token).map_err(TokenCommandError::Input)?;
            token
        }
        token => token.to_owned(),
    };
    let verified = verifier.verify(token.trim(), UnixSeconds::at(now))?;
    Ok(if check.json { as_json(&verified) } else { in_words(&verified, now) })
}

fn as_json(verified: &Verified) -> String {
    let Verified { identity, algorithm, key_id } = verified;
    let permissions = identity.permissions();
    let patterns = |patterns: &[ChannelPattern]| -> Vec<String> {
        patterns.iter().map(ToString::to_string).collect()
    };
    let value = json!({
        "user": identity.user().map(|user| user.as_str()),
        "algorithm": algorithm.name(),
        "key_id": key_id,
        "expires_at": identity.expires_at().map(|UnixSeconds(seconds)| seconds),
        "subscribe": patterns(permissions.subscribe()),
        "publish": patterns(permissions.publish()),
    });
    value.to_string()
}

fn in_words(verified: &Verified, now: SystemTime) -> String {
    let Verified { identity, algorithm, key_id } = verified;
    let permissions = identity.permissions();
    let patterns = |patterns: &[ChannelPattern]| match patterns {
        [] => "nothing".to_owned(),
        patterns => patterns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let expires = match identity.expires_at() {
        None => "never".to_owned(),
        Some(UnixSeconds(seconds)) => {
            let at = UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
            // Years of five digits cannot be written in RFC 3339.
            match at.filter(|_| seconds < 253_402_300_800) {
                None => format!("in second {seconds} after 1970"),
                Some(at) => match at.duration_since(now) {
                    Ok(left) => {
                        let left = Duration::from_secs(left.as_secs());
                        let at = humantime::format_rfc3339_seconds(at);
                        format!("{at}, in {}", humantime::format_duration(left))
                    }
                    // Within the leeway.
                    Err(_) => format!("{}, just now", humantime::format_rfc3339_seconds(at)),
                },
            }
        }
    };
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        writeln!(text, "{name:<11}{value}").expect("a String takes everything");
    };
    line("user", identity.user().map_or("none", |user| user.as_str()));
    line("signed by", algorithm.name());
    if let Some(key_id) = key_id {
        line("key", key_id);
    }
    line("expires", &expires);
    line("subscribe", &patterns(permissions.subscribe()));
    line("publish", &patterns(permissions.publish()));
    text.trim_end().to_owned()
}
