//! What would a client see? `wsgate connect`: a WebSocket client for a person at a terminal, and for
//! scripts.
//!
//! - [`connect`], [`Options`], [`Failure`]: one run, from the first attempt to the last.
//! - [`endpoint`]: the URL. [`handshake`]: from there to an open connection; [`tls`]: whom to trust.
//! - [`awaited`]: what a run waits for. [`backoff`]: when to try again.
//! - `session`: the one place that knows all the others: what is typed, what arrives, and the clock.
//! - `connection`, `messages`, `offer`: an open connection; frames to messages; permessage-deflate.
//! - `ending`: how a connection ended, and whether another attempt makes sense.
//! - `command`, `input`: what a line asks for, and where lines come from.
//! - `output`, `text`: what is shown, and what may be.
//!
//! It shares nothing with the serving side but the vocabulary of `wire` and its deflate.

pub mod awaited;
pub mod backoff;
mod command;
mod connection;
mod ending;
pub mod endpoint;
pub mod handshake;
mod input;
mod messages;
mod offer;
mod output;
mod random;
mod session;
mod text;
pub mod tls;

use std::io;
use std::time::Duration;

use thiserror::Error;

use self::awaited::Awaited;
use self::backoff::Backoff;
use self::endpoint::Endpoint;
use self::handshake::Wishes;
use self::tls::{Trust, TrustError};

/// What a run is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to connect.
    pub endpoint: Endpoint,
    /// What the handshake says.
    pub wishes: Wishes,
    /// Whom to trust in TLS.
    pub trust: Trust,
    /// Largest message that is taken from the server, over all its fragments and once inflated, and
    /// largest line or file that is sent.
    pub max_message_bytes: usize,
    /// What has to come.
    pub awaited: Awaited,
    /// Longest time for the run; zero for none. Where none is named, what is awaited has
    /// [`ANSWER_TIMEOUT`] from the end of the input.
    pub timeout: Option<Duration>,
    /// Whether a lost connection is made again.
    pub reconnect: Reconnect,
    /// How it is.
    pub backoff: Backoff,
}

/// Whether a lost connection is made again, where that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reconnect {
    /// A person can see what happens; a script wants to know that it failed.
    AtTerminal,
    /// In a script too.
    Always,
    /// Not even for a person.
    Never,
}

/// Time for what is awaited, from the end of the input, where no other is named.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a run did not end well.
#[derive(Debug, Error)]
pub enum Failure {
    /// The connection could not be made, or ended early, in words.
    #[error("{0}")]
    Ended(String),
    /// What was awaited did not come, in words.
    #[error("{0}")]
    Missed(String),
    /// The input cannot be sent, in words.
    #[error("{0}")]
    Input(String),
    /// The user did not want to wait for the first connection, or for the closing handshake.
    #[error("interrupted")]
    Interrupted,
    /// Standard output is closed, or full.
    #[error("what is received cannot be written: {0}")]
    Output(io::Error),
    /// Nobody can be trusted.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The system refused what an event loop needs.
    #[error("cannot start: {0}")]
    Start(io::Error),
}

/// Connects, and stays until the user, the server or what is awaited ends it.
///
/// # Errors
///
/// Why it did not end well. Told is only what was shown meanwhile: print the error, and exit with 1.
pub fn connect(options: &Options) -> Result<(), Failure> {
    session::run(options)
}
