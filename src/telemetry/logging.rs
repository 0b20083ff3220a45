//! What happened, in words: one line an event on standard error, as text or as JSON.
//!
//! - [`LogFormat`]: how a line is written.
//! - [`LogFilter`]: which events are written at all.
//! - [`install`]: makes both hold for the whole process.

use std::fmt;
use std::io::{IsTerminal, stderr};
use std::str::FromStr;

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{LevelFilter, ParseError, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people: coloured where standard error is a terminal.
    Text,
    /// For log collectors: one JSON object a line, the fields of the event at its top level.
    Json,
}

impl LogFormat {
    /// Every format, for whoever has to list them.
    pub const ALL: [Self; 2] = [Self::Text, Self::Json];

    /// The word that an operator writes for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// Which events are written: a level, or levels by target, such as `info,wsgate::shard=debug`.
///
/// Only text that [`EnvFilter`] takes becomes one. It is kept as text since `EnvFilter` itself can
/// neither be cloned nor compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

/// Why a text is no [`LogFilter`].
#[derive(Debug, thiserror::Error)]
pub enum LogFilterError {
    /// A single word that is not a level.
    ///
    /// [`EnvFilter`] would take it for a target: `inof` would be "all of the target `inof`", and so
    /// a typing error would silence the log.
    #[error(
        "{0:?} is not a level. Write off, error, warn, info, debug or trace, or a target with its \
         level, such as wsgate={0}",
        .word
    )]
    NotALevel {
        /// The word as it was written.
        word: String,
    },
    /// Anything else that [`EnvFilter`] refuses.
    #[error("not a log filter ({0}). Write a level, or levels by target: info,wsgate::shard=debug")]
    NotAFilter(ParseError),
}

impl FromStr for LogFilter {
    type Err = LogFilterError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // `EnvFilter` takes no blanks, but no filter without quoted field values needs any.
        let text = &if text.contains('"') { text.to_owned() } else { text.replace(' ', "") };
        // The fields of a span, in brackets, may hold commas of their own, so such a filter is left
        // to `EnvFilter` alone.
        if !text.contains('[') {
            let words = text.split(',').filter(|word| !word.is_empty() && !word.contains('='));
            for word in words {
                if word.parse::<LevelFilter>().is_err() {
                    return Err(LogFilterError::NotALevel { word: word.to_owned() });
                }
            }
        }
        EnvFilter::builder().parse(text).map_err(LogFilterError::NotAFilter)?;
        Ok(Self(text.to_owned()))
    }
}

impl LogFilter {
    fn to_env_filter(&self) -> EnvFilter {
        let filter = EnvFilter::builder().parse(&self.0);
        filter.expect("a LogFilter is only made of what EnvFilter takes")
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why the log could not be installed: the process already has one.
#[derive(Debug, thiserror::Error)]
#[error("the log is already installed in this process")]
pub struct AlreadyInstalled(#[from] TryInitError);

/// Changes which events the installed log shows.
pub struct LogControl(reload::Handle<EnvFilter, Registry>);

impl LogControl {
    /// Shows the events that `filter` lets through from now on.
    pub fn set_filter(&self, filter: &LogFilter) {
        // The log lives as long as the process.
        _ = self.0.reload(filter.to_env_filter());
    }
}

/// Writes the events that `filter` lets through to standard error, from now on and for the whole
/// process.
///
/// # Errors
///
/// [`AlreadyInstalled`], where this was called before.
pub fn install(format: LogFormat, filter: &LogFilter) -> Result<LogControl, AlreadyInstalled> {
    let (filter, control) = reload::Layer::new(filter.to_env_filter());
    let log = tracing_subscriber::registry().with(filter);
    let lines =
        tracing_subscriber::fmt::layer().with_writer(stderr).with_ansi(stderr().is_terminal());
    let harmless = filter_fn(shows_no_request);
    match format {
        LogFormat::Text => log.with(lines.with_filter(harmless)).try_init()?,
        LogFormat::Json => {
            log.with(lines.json().flatten_event(true).with_filter(harmless)).try_init()?;
        }
    }
    // A panic is an event like others, so that a log of JSON stays one.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let text = panic.payload_as_str().unwrap_or("no text");
        tracing::error!(place, "panic: {text}");
    }));
    Ok(LogControl(control))
}

/// What the h2 crate says below info quotes paths that it does not take, and those may hold a token.
fn shows_no_request(metadata: &Metadata<'_>) -> bool {
    let is_of_h2 = metadata.target() == "h2" || metadata.target().starts_with("h2::");
    !is_of_h2 || *metadata.level() <= Level::INFO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_levels_by_target_are_filters() {
        for text in ["info", "OFF", "info,wsgate::shard=debug", "[span]=trace"] {
            assert_eq!(text.parse::<LogFilter>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn blanks_between_levels_are_allowed() {
        let filter: LogFilter = "warn, hyper = off".parse().expect("a filter but for the blanks");
        assert_eq!(filter.to_string(), "warn,hyper=off");
    }

    #[test]
    fn misspelt_level_is_refused_instead_of_silencing_the_log() {
        let error = "inof".parse::<LogFilter>().expect_err("a misspelt level");
        assert!(error.to_string().starts_with("\"inof\" is not a level. Write off, error,"));
        assert!("info, wsgat".parse::<LogFilter>().is_err());
        assert!("wsgate=loud".parse::<LogFilter>().is_err());
    }
}
