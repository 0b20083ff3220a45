//! What is wrong with a configuration. Every message names the setting, its value, where the value
//! came from, and the remedy.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::server::certificates::CertificateError;

use super::key::Key;
use super::value::ValueError;

/// Where the value of a setting came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Flag,
    /// The environment variable of the setting.
    Environment,
    /// The file.
    File {
        /// As it was given, not made absolute.
        path: PathBuf,
        /// The first line is 1.
        line: usize,
    },
    /// Nobody said anything.
    Default,
}

impl Source {
    /// Names the place as the operator knows it, such as `from --shards`.
    pub(super) fn of(&self, key: Key) -> String {
        match self {
            Self::Flag => format!("from {}", key.flag()),
            Self::Environment => format!("from {}", key.variable()),
            Self::File { path, line } => format!("from {}, line {line}", path.display()),
            Self::Default => "by default".to_owned(),
        }
    }
}

/// One thing that is wrong. The operator erred.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that its setting cannot take.
    #[error("{key} is {shown} ({}): {error}", .from.of(*.key))]
    Value {
        /// The setting.
        key: Key,
        /// The value as it was written, or `***` where it must not be shown.
        shown: String,
        /// Where it was written.
        from: Source,
        /// What is wrong with it, and the remedy.
        error: ValueError,
    },
    /// A queue that a message of the largest size would never fit in.
    #[error(
        "{key} is {bytes} ({}) but max_message_bytes is {max_message_bytes} ({}): with its \
         header a message of the largest size takes up to {needed} bytes and could never be \
         delivered. Raise {key} to at least {needed} or lower max_message_bytes",
        .from.of(*.key),
        .max_message_from.of(Key::MaxMessageBytes)
    )]
    SmallQueue {
        /// The setting that is too small.
        key: Key,
        /// Its value.
        bytes: usize,
        /// Where that was written.
        from: Source,
        /// What it is too small for.
        max_message_bytes: usize,
        /// Where that was written.
        max_message_from: Source,
        /// The least value that will do.
        needed: usize,
    },
    /// Two listeners that cannot both be opened.
    #[error(
        "{key} is {address} ({}) and {other_key} is {other_address} ({}): both need the same port \
         of the same address. Give one of them another port",
        .from.of(*.key),
        .other_from.of(*.other_key)
    )]
    SamePort {
        /// The setting of the one.
        key: Key,
        /// Its address.
        address: SocketAddr,
        /// Where that was written.
        from: Source,
        /// The setting of the other.
        other_key: Key,
        /// Its address.
        other_address: SocketAddr,
        /// Where that was written.
        other_from: Source,
    },
    /// Certificates and keys that cannot be paired.
    #[error(
        "tls_cert names {certs} ({}) but tls_key names {keys} ({}): every certificate needs its key. \
         Name as many of the one as of the other, in the same order",
        .cert_from.of(Key::TlsCert),
        .key_from.of(Key::TlsKey)
    )]
    TlsPairs {
        /// How many certificates.
        certs: usize,
        /// Where they were written.
        cert_from: Source,
        /// How many keys.
        keys: usize,
        /// Where they were written.
        key_from: Source,
    },
    /// Clients' certificates that nothing says how to check, or nobody could show.
    #[error(
        "{key} is set ({}) but {missing} is not: {reason}. Set {missing}, or leave {key} out",
        .from.of(*.key)
    )]
    TlsPartMissing {
        /// The setting that is there.
        key: Key,
        /// Where it was written.
        from: Source,
        /// The one that it needs.
        missing: Key,
        /// What for.
        reason: &'static str,
    },
    /// A certificate that cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Nobody could connect.
    #[error(
        "anonymous is deny ({}) but there is no key to check tokens with: nobody could connect. Give \
         token_hmac_secret, token_public_key or token_jwks, or set anonymous to allow",
        .from.of(Key::Anonymous)
    )]
    Nobody {
        /// Where anonymous clients are denied.
        from: Source,
    },
    /// The file has a key that is none of ours.
    #[error("{name:?} in {}, line {line}, is no setting. {}", .path.display(), remedy(*.meant))]
    UnknownKey {
        /// The key as it was written.
        name: String,
        /// The file.
        path: PathBuf,
        /// The first line is 1.
        line: usize,
        /// The setting that was probably meant.
        meant: Option<Key>,
    },
    /// The file has a key twice, once with hyphens and once with underscores.
    #[error(
        "{key} is in {} twice, on lines {first} and {second}. Take one of them out",
        .path.display()
    )]
    DuplicateKey {
        /// The setting.
        key: Key,
        /// The file.
        path: PathBuf,
        /// The line of the one.
        first: usize,
        /// The line of the other.
        second: usize,
    },
    /// The file is not TOML.
    #[error("{}, line {line}, is not TOML: {message}. Correct it there", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The first line is 1.
        line: usize,
        /// What the parser says. Never a piece of the file, which may hold an API key.
        message: String,
    },
    /// The file cannot be read.
    #[error(
        "config is {path:?}, which cannot be read: {error}. Name a readable file with --config or \
         WSGATE_CONFIG, or leave both out"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        error: std::io::Error,
    },
}

fn remedy(meant: Option<Key>) -> String {
    match meant {
        Some(key) => format!("Did you mean {key}?"),
        None => "Take it out; `wsgate serve --help` lists the settings".to_owned(),
    }
}

/// Everything that is wrong with a configuration; at least one thing.
#[derive(Debug)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// `None` where nothing is wrong.
    pub(super) fn new(errors: Vec<ConfigError>) -> Option<Self> {
        (!errors.is_empty()).then_some(Self(errors))
    }

    /// Each of them, in the order in which they were found.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.0.iter()
    }
}

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        Self(vec![error])
    }
}

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    /// One line for one error, and a heading above several.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [only] => write!(f, "{only}"),
            several => {
                write!(f, "the configuration has {} errors:", several.len())?;
                several.iter().try_for_each(|error| write!(f, "\n  {error}"))
            }
        }
    }
}
