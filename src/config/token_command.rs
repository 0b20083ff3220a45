//! The arguments of `wsgate token`; what it does is elsewhere.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::cli::Flags;
use super::value::ValueError;
use crate::auth::keys::Algorithm;
use crate::auth::pattern::ChannelPattern;

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token, for a try; an application makes its own with the library of its language
    Make(Box<Make>),
    /// Say what a token is and does, or why the gateway would not believe it
    Check(Box<Check>),
}

/// What is to be in a token.
#[derive(Debug, Args)]
pub struct Make {
    /// The user (claim sub)
    #[arg(long, value_name = "USER", help_heading = "Claims")]
    pub sub: Option<String>,
    /// How long it holds (claim exp), such as 15m, 1h or 30days
    #[arg(long, value_name = "DURATION", help_heading = "Claims", default_value = "1h",
          value_parser = time_in_token, conflicts_with = "never_expires")]
    pub expires_in: Duration,
    /// It holds as long as its key
    #[arg(long, help_heading = "Claims")]
    pub never_expires: bool,
    /// From when it holds, from now on (claim nbf)
    #[arg(long, value_name = "DURATION", help_heading = "Claims",
          value_parser = time_in_token)]
    pub valid_in: Option<Duration>,
    /// Channels that it may subscribe to, such as 'news:*'; may be repeated
    #[arg(long, value_name = "PATTERN", help_heading = "Claims")]
    pub subscribe: Vec<ChannelPattern>,
    /// Channels that it may publish to; may be repeated
    #[arg(long, value_name = "PATTERN", help_heading = "Claims")]
    pub publish: Vec<ChannelPattern>,
    /// Channels that it may subscribe and publish to; may be repeated
    #[arg(long, value_name = "PATTERN", help_heading = "Claims")]
    pub channels: Vec<ChannelPattern>,
    /// For whom it is (claim aud) [default: the first of --token-audience]
    #[arg(long, value_name = "NAME", help_heading = "Claims")]
    pub audience: Option<String>,
    /// Who makes it (claim iss) [default: the first of --token-issuer]
    #[arg(long, value_name = "NAME", help_heading = "Claims")]
    pub issuer: Option<String>,
    /// PEM file with the private key to sign with [default: the secret of --token-hmac-secret]
    #[arg(long, value_name = "FILE", help_heading = "Signature")]
    pub signing_key: Option<PathBuf>,
    /// HS256, HS384, HS512, RS256, RS384, RS512, ES256, ES384 or EdDSA [default: what is usual for the
    /// key]
    #[arg(long, value_name = "NAME", help_heading = "Signature", value_parser = algorithm)]
    pub algorithm: Option<Algorithm>,
    /// Which key it is (kid of the header)
    #[arg(long, value_name = "KID", help_heading = "Signature")]
    pub key_id: Option<String>,
    /// The settings that were given as flags.
    #[command(flatten)]
    pub flags: Flags,
}

/// Which token, and how to answer.
#[derive(Args)]
pub struct Check {
    /// The token; - reads it from standard input, where it stays out of the list of processes
    #[arg(value_name = "TOKEN")]
    pub token: String,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
    /// The settings that were given as flags.
    #[command(flatten)]
    pub flags: Flags,
}

// By hand: a token is never shown.
impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { token: _, json, flags } = self;
        f.debug_struct("Check").field("json", json).field("flags", flags).finish_non_exhaustive()
    }
}

/// Longer than a setting may be.
fn time_in_token(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration.subsec_nanos() > 0 {
        return Err(ValueError::FractionOfSecond.to_string());
    }
    Ok(duration)
}

fn algorithm(name: &str) -> Result<Algorithm, String> {
    let names = || Algorithm::ALL.map(Algorithm::name).join(", ");
    Algorithm::by_name(name).ok_or_else(|| format!("not one of the choices. Write {}", names()))
}

impl TokenCommand {
    /// The settings that were given as flags.
    pub fn flags(&self) -> &Flags {
        match self {
            Self::Make(make) => &make.flags,
            Self::Check(check) => &check.flags,
        }
    }
}
