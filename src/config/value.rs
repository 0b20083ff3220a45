//! Text becomes a size, a duration, an address: the last place where a value can be wrong.
//!
//! Every reader takes a [`Raw`] and says what is wrong in words that fit any source; who wrote it,
//! and where, is added by whoever asked.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;

use crate::admission::proxies::{TrustedProxy, TrustedProxyError};
use crate::auth::keys::KeyError;
use crate::auth::origin::{OriginPattern, OriginPatternError};
use crate::auth::pattern::{ChannelPattern, PatternError, Permissions};
use crate::server::settings::{ListenAddress, UNIX_PREFIX};
use crate::telemetry::logging::{LogFilter, LogFilterError};
use crate::wire::extensions::WindowBits;

/// A value as a source has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Raw {
    /// From anywhere.
    Text(String),
    /// A TOML integer, in decimal digits.
    Integer(String),
    /// A TOML array of strings.
    List(Vec<String>),
    /// A TOML value that no setting takes.
    Unfit {
        /// What it is: `a boolean`.
        kind: &'static str,
        /// As it was written, or nearly.
        shown: String,
    },
    /// An environment variable that is not UTF-8.
    NotUtf8,
}

impl Raw {
    /// The text, however it was written.
    ///
    /// # Errors
    ///
    /// What is no text and no integer, and text of nothing but blanks: a variable that is set to
    /// nothing is more often a mistake than a wish for the default.
    fn as_text(&self, wanted: impl Into<Cow<'static, str>>) -> Result<&str, ValueError> {
        match self {
            Self::Text(text) if text.trim().is_empty() => Err(ValueError::Empty),
            Self::Text(text) => Ok(text.trim()),
            Self::Integer(digits) => Ok(digits),
            Self::List(_) => Err(ValueError::Kind { wanted: wanted.into(), found: "a list" }),
            Self::Unfit { kind, .. } => {
                Err(ValueError::Kind { wanted: wanted.into(), found: kind })
            }
            Self::NotUtf8 => Err(ValueError::NotUtf8),
        }
    }

    /// The text, where only a text will do.
    fn as_string(&self, wanted: &'static str) -> Result<&str, ValueError> {
        match self {
            Self::Integer(_) => {
                Err(ValueError::Kind { wanted: wanted.into(), found: "an integer" })
            }
            Self::Text(_) | Self::List(_) | Self::Unfit { .. } | Self::NotUtf8 => {
                self.as_text(wanted)
            }
        }
    }
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Enough to recognise what was written, and little enough to leave the message readable.
        const MAX_SHOWN_CHARS: usize = 200;

        match self {
            Self::Text(text) => match text.char_indices().nth(MAX_SHOWN_CHARS) {
                Some((end, _)) => write!(f, "{:?}...", &text[..end]),
                None => write!(f, "{text:?}"),
            },
            Self::Integer(digits) => f.write_str(digits),
            Self::List(texts) => write!(f, "{texts:?}"),
            Self::Unfit { shown, .. } => write!(f, "{shown:.MAX_SHOWN_CHARS$}"),
            Self::NotUtf8 => f.write_str("not text"),
        }
    }
}

/// What is wrong with a value, and what to write instead.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum ValueError {
    #[error("it is empty. Write a value, or leave the setting out for its default")]
    Empty,
    #[error("it is not UTF-8. Write it in UTF-8")]
    NotUtf8,
    #[error("it is {found}. Write {wanted}")]
    Kind { wanted: Cow<'static, str>, found: &'static str },
    #[error("not a size. Write bytes, or a number with a unit: 65536, 64KiB, 1MiB")]
    Size,
    #[error(
        "not a window. Write 512B, 1KiB, 2KiB, 4KiB, 8KiB, 16KiB or 32KiB, or 9 to 15 for \
             two to the power of that"
    )]
    Window,
    #[error("not a whole number. Write digits alone")]
    Count,
    #[error("out of range. Write a value from {min} to {max}")]
    Range { min: String, max: String },
    #[error("a duration needs a unit. Write {digits}s for seconds or {digits}ms for milliseconds")]
    DurationUnit { digits: String },
    #[error("not a duration ({0}). Write a number with a unit: 500ms, 25s, 1m 30s")]
    Duration(humantime::DurationError),
    #[error("too long. Write at most {}", show_duration(MAX_DURATION))]
    LongDuration,
    #[error("it must be longer than 0s. Write a duration such as 500ms, 25s or 1m 30s")]
    ZeroDuration,
    #[error(
        "it has a fraction of a second, and the times in tokens have none. Write whole seconds, such \
         as 0s, 1s or 1m 30s"
    )]
    FractionOfSecond,
    #[error(
        "not an address. Write an IP address and a port: 0.0.0.0:8080 for every IPv4 address, \
         127.0.0.1:8080 or [::1]:8080 for this machine alone"
    )]
    Address,
    #[error(
        "not an address. Write an IP address and a port such as 0.0.0.0:8080 or [::1]:8080, or \
         unix:/path of a Unix socket"
    )]
    ListenAddress,
    #[error("not one of the choices. Write {}", .choices.join(" or "))]
    Choice { choices: Vec<&'static str> },
    #[error(
        "it holds blanks, control characters or characters beyond ASCII, which a header cannot \
         carry to us. Write visible ASCII characters alone; look for a line end behind the key"
    )]
    ApiKey,
    #[error("it cannot be read: {0}. Name a file that this user may read")]
    KeyFile(std::io::Error),
    #[error("it has more than 1MiB, which no file of keys has. Name another file")]
    LongKeyFile,
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error("a name is empty. Take out the comma too many")]
    EmptyName,
    #[error(transparent)]
    Origin(#[from] OriginPatternError),
    #[error(transparent)]
    TrustedProxy(#[from] TrustedProxyError),
    #[error(transparent)]
    LogFilter(#[from] LogFilterError),
}

/// A number of bytes within `bounds`.
pub(super) fn size(raw: &Raw, bounds: RangeInclusive<u64>) -> Result<usize, ValueError> {
    let text = raw.as_text("bytes, or a text with a unit such as \"64KiB\"")?;
    // ByteSize would take "1.5" for one byte.
    if text.contains('.') && !text.contains(|letter: char| letter.is_ascii_alphabetic()) {
        return Err(ValueError::Size);
    }
    let bytes = text.parse::<ByteSize>().map_err(|_| ValueError::Size)?.as_u64();
    within(bytes, &bounds, show_size)
}

/// A compression window: its size in bytes, or the exponent of that.
pub(super) fn window(raw: &Raw) -> Result<WindowBits, ValueError> {
    let bytes = size(raw, 0..=u64::MAX)?;
    let bits = match bytes {
        9..=15 => bytes as u8,
        bytes if bytes.is_power_of_two() => bytes.ilog2() as u8,
        _ => return Err(ValueError::Window),
    };
    WindowBits::new(bits).filter(|bits| *bits > WindowBits::MIN).ok_or(ValueError::Window)
}

/// A number of things within `bounds`, in the type that will hold it.
///
/// `bounds` must lie within what that type can hold.
pub(super) fn count<T: TryFrom<u64>>(
    raw: &Raw,
    bounds: RangeInclusive<u64>,
) -> Result<T, ValueError> {
    let text = raw.as_text("a whole number")?;
    let number = text.parse::<u64>().map_err(|_| ValueError::Count)?;
    within(number, &bounds, |number| number.to_string())
}

fn within<T: TryFrom<u64>>(
    number: u64,
    bounds: &RangeInclusive<u64>,
    show: impl Fn(u64) -> String,
) -> Result<T, ValueError> {
    let range = || ValueError::Range { min: show(*bounds.start()), max: show(*bounds.end()) };
    if !bounds.contains(&number) {
        return Err(range());
    }
    // A `usize` of 32 bits is smaller than the widest bounds.
    T::try_from(number).map_err(|_| range())
}

/// Longer than any of our waits makes sense for, and short enough to be added to any instant.
const MAX_DURATION: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A duration with its unit, up to [`MAX_DURATION`].
pub(super) fn duration(raw: &Raw) -> Result<Duration, ValueError> {
    let text = raw.as_text("a text with a unit such as \"25s\"")?;
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ValueError::DurationUnit { digits: text.to_owned() });
    }
    let duration = humantime::parse_duration(text).map_err(ValueError::Duration)?;
    if duration > MAX_DURATION { Err(ValueError::LongDuration) } else { Ok(duration) }
}

/// A duration that is not zero.
pub(super) fn positive_duration(raw: &Raw) -> Result<Duration, ValueError> {
    let duration = duration(raw)?;
    if duration.is_zero() { Err(ValueError::ZeroDuration) } else { Ok(duration) }
}

/// A duration without a fraction of a second.
pub(super) fn whole_seconds(raw: &Raw) -> Result<Duration, ValueError> {
    let duration = duration(raw)?;
    if duration.subsec_nanos() > 0 { Err(ValueError::FractionOfSecond) } else { Ok(duration) }
}

/// An IP address with a port. No names: what a name resolves to may change behind our back.
pub(super) fn address(raw: &Raw) -> Result<SocketAddr, ValueError> {
    raw.as_text("a text such as \"0.0.0.0:8080\"")?.parse().map_err(|_| ValueError::Address)
}

/// Addresses with a port, and paths of Unix sockets, separated by commas or listed.
pub(super) fn listen_addresses(raw: &Raw) -> Result<Vec<ListenAddress>, ValueError> {
    let wanted = "a text, or a list of texts such as [\"0.0.0.0:8080\", \"unix:/run/wsgate.sock\"]";
    let read = |text: &str| match text.strip_prefix(UNIX_PREFIX) {
        Some("") => Err(ValueError::ListenAddress),
        Some(path) => Ok(ListenAddress::Unix(path.into())),
        None => text.parse().map(ListenAddress::Tcp).map_err(|_| ValueError::ListenAddress),
    };
    listed(raw, wanted)?.into_iter().map(read).collect()
}

/// Names of files, separated by commas or listed.
pub(super) fn files(raw: &Raw) -> Result<Vec<PathBuf>, ValueError> {
    let texts = listed(raw, "a text, or a list of texts, each the name of a file")?;
    if texts.iter().any(|text| text.is_empty()) {
        return Err(ValueError::Empty);
    }
    Ok(texts.into_iter().map(PathBuf::from).collect())
}

/// Texts separated by commas, or a list of them; at least one.
fn listed<'a>(raw: &'a Raw, wanted: &'static str) -> Result<Vec<&'a str>, ValueError> {
    match raw {
        Raw::List(texts) if texts.is_empty() => Err(ValueError::Empty),
        Raw::List(texts) => Ok(texts.iter().map(|text| text.trim()).collect()),
        Raw::Text(_) | Raw::Integer(_) | Raw::Unfit { .. } | Raw::NotUtf8 => {
            Ok(raw.as_string(wanted)?.split(',').map(str::trim).collect())
        }
    }
}

/// The one of `choices` with the name that was written.
pub(super) fn choice<T: Copy>(
    raw: &Raw,
    choices: &[T],
    name: impl Fn(T) -> &'static str,
) -> Result<T, ValueError> {
    let quoted: Vec<_> = choices.iter().map(|choice| format!("\"{}\"", name(*choice))).collect();
    let text = raw.as_text(format!("{}, in quotes", quoted.join(" or ")))?;
    choices.iter().copied().find(|choice| name(*choice) == text).ok_or_else(|| ValueError::Choice {
        choices: choices.iter().map(|choice| name(*choice)).collect(),
    })
}

/// Text of any content.
pub(super) fn text(raw: &Raw) -> Result<String, ValueError> {
    raw.as_string("it in quotes").map(str::to_owned)
}

/// A key that fits in an `X-API-Key` header.
pub(super) fn api_key(raw: &Raw) -> Result<String, ValueError> {
    raw.as_string("it in quotes")?;
    match raw {
        // Refused rather than trimmed: whoever else reads the same secret may not trim it.
        Raw::Text(text) if text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(text.clone()),
        Raw::Text(_) | Raw::Integer(_) | Raw::List(_) | Raw::Unfit { .. } | Raw::NotUtf8 => {
            Err(ValueError::ApiKey)
        }
    }
}

/// Patterns separated by commas, or a list of them.
pub(super) fn origins(raw: &Raw) -> Result<Vec<OriginPattern>, ValueError> {
    list(raw, "a text, or a list of texts such as [\"https://example.com\"]")
}

/// Networks and addresses separated by commas, or a list of them.
pub(super) fn trusted_proxies(raw: &Raw) -> Result<Vec<TrustedProxy>, ValueError> {
    list(raw, "a text, or a list of texts such as [\"10.0.0.0/8\"]")
}

fn list<T: FromStr>(raw: &Raw, wanted: &'static str) -> Result<Vec<T>, ValueError>
where
    ValueError: From<T::Err>,
{
    let values: Result<Vec<_>, _> = match raw {
        Raw::List(texts) if texts.is_empty() => return Err(ValueError::Empty),
        Raw::List(texts) => texts.iter().map(|text| text.parse()).collect(),
        Raw::Text(_) | Raw::Integer(_) | Raw::Unfit { .. } | Raw::NotUtf8 => {
            raw.as_string(wanted)?.split(',').map(str::parse).collect()
        }
    };
    Ok(values?)
}

/// A secret: text of any content but nothing, as it was written.
pub(super) fn secret(raw: &Raw) -> Result<String, ValueError> {
    raw.as_string("it in quotes")?;
    match raw {
        Raw::Text(text) => Ok(text.clone()),
        Raw::Integer(_) | Raw::List(_) | Raw::Unfit { .. } | Raw::NotUtf8 => {
            unreachable!("it is a text")
        }
    }
}

/// Names separated by commas, or a list of them.
pub(super) fn texts(raw: &Raw) -> Result<Vec<String>, ValueError> {
    let texts = match raw {
        Raw::List(texts) => texts.clone(),
        Raw::Text(_) | Raw::Integer(_) | Raw::Unfit { .. } | Raw::NotUtf8 => {
            let text = raw.as_string("a text, or a list of texts")?;
            text.split(',').map(|name| name.trim().to_owned()).collect()
        }
    };
    if texts.iter().any(String::is_empty) { Err(ValueError::EmptyName) } else { Ok(texts) }
}

/// Patterns of channels separated by commas, or a list of them, which may be empty.
pub(super) fn patterns(raw: &Raw) -> Result<Vec<ChannelPattern>, ValueError> {
    let texts = texts(raw)?;
    if texts.len() > Permissions::MAX_PATTERNS {
        return Err(PatternError::TooMany(texts.len()).into());
    }
    texts.iter().map(|text| Ok(text.parse()?)).collect()
}

/// A filter of the log.
pub(super) fn log_filter(raw: &Raw) -> Result<LogFilter, ValueError> {
    Ok(raw.as_string("a level in quotes, such as \"off\" or \"info\"")?.parse()?)
}

/// `bytes` in the largest unit that divides it, such as `64KiB`, or alone.
pub(super) fn show_size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    UNITS
        .iter()
        .find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit))
        .map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

/// `duration` as [`duration()`] reads it, such as `1m 30s`.
pub(super) fn show_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> Raw {
        Raw::Text(text.to_owned())
    }

    fn read_size(text: &str) -> Result<usize, String> {
        size(&written(text), 1..=1 << 30).map_err(|error| error.to_string())
    }

    fn read_duration(text: &str) -> Result<Duration, String> {
        duration(&written(text)).map_err(|error| error.to_string())
    }

    #[test]
    fn sizes_are_bytes_or_have_a_unit() {
        assert_eq!(read_size("65536"), Ok(65_536));
        assert_eq!(read_size("64KiB"), Ok(65_536));
        assert_eq!(read_size(" 64 KiB "), Ok(65_536));
        assert_eq!(read_size("1.5MiB"), Ok(1_572_864));
        assert_eq!(read_size("1GiB"), Ok(1 << 30));
        assert_eq!(size(&Raw::Integer("4096".to_owned()), 1..=4096).expect("in bounds"), 4096);
    }

    #[test]
    fn bad_sizes_are_refused_with_the_remedy() {
        for text in ["12 parsecs", "-1", "1.5", "KiB", "64KiB64"] {
            let error = read_size(text).expect_err(text);
            assert!(error.starts_with("not a size. Write bytes, or a number with"), "{error}");
        }
        let range = Err("out of range. Write a value from 1 to 1GiB".to_owned());
        assert_eq!(read_size("0"), range);
        assert_eq!(read_size("2GiB"), range);
        assert_eq!(read_size("99999999999999TiB"), range);
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(read_duration("25s"), Ok(Duration::from_secs(25)));
        assert_eq!(read_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(read_duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(read_duration("0s"), Ok(Duration::ZERO));
        assert_eq!(read_duration("30days"), Ok(MAX_DURATION));
    }

    #[test]
    fn bad_durations_are_refused_with_the_remedy() {
        assert_eq!(
            read_duration("25"),
            Err("a duration needs a unit. Write 25s for seconds or 25ms for milliseconds"
                .to_owned())
        );
        assert!(read_duration("soon").expect_err("no duration").contains("500ms, 25s, 1m 30s"));
        assert!(read_duration("-1s").is_err());
        assert_eq!(read_duration("31days"), Err("too long. Write at most 30days".to_owned()));
        assert!(read_duration("99999999999999999999s").is_err());
        assert!(matches!(positive_duration(&written("0ms")), Err(ValueError::ZeroDuration)));
    }

    #[test]
    fn counts_stay_in_their_bounds() {
        assert_eq!(count::<u16>(&written("7"), 1..=9).expect("in bounds"), 7);
        assert!(matches!(count::<u16>(&written("0"), 1..=9), Err(ValueError::Range { .. })));
        assert!(matches!(count::<u16>(&written("10"), 1..=9), Err(ValueError::Range { .. })));
        assert!(matches!(count::<u16>(&written("many"), 1..=9), Err(ValueError::Count)));
        assert!(matches!(count::<u16>(&written("-1"), 1..=9), Err(ValueError::Count)));
        assert!(matches!(
            count::<u16>(&Raw::Unfit { kind: "a boolean", shown: "true".to_owned() }, 1..=9),
            Err(ValueError::Kind { found: "a boolean", .. })
        ));
    }

    #[test]
    fn addresses_are_numeric_and_have_a_port() {
        assert!(address(&written("[::1]:0")).is_ok());
        for text in ["localhost:8080", ":8080", "8080", "0.0.0.0", "::1:8080", "0.0.0.0:99999"] {
            assert!(matches!(address(&written(text)), Err(ValueError::Address)), "{text}");
        }
    }

    #[test]
    fn api_key_is_what_a_header_can_carry() {
        assert_eq!(api_key(&written("s3cret+/=")).expect("visible ASCII"), "s3cret+/=");
        assert!(matches!(api_key(&written("")), Err(ValueError::Empty)));
        assert!(matches!(api_key(&written(" ")), Err(ValueError::Empty)));
        assert!(matches!(api_key(&written("s3cret\n")), Err(ValueError::ApiKey)));
        assert!(matches!(api_key(&written("schlüssel")), Err(ValueError::ApiKey)));
        assert!(matches!(api_key(&Raw::Integer("1234".into())), Err(ValueError::Kind { .. })));
    }

    #[test]
    fn origins_are_separated_by_commas_or_listed() {
        let separated = origins(&written("https://a.example, same-host")).expect("two patterns");
        let listed = origins(&Raw::List(vec!["https://a.example".into(), "same-host".into()]));
        assert_eq!(separated, listed.expect("two patterns"));
        assert!(matches!(origins(&Raw::List(Vec::new())), Err(ValueError::Empty)));
        assert!(matches!(
            origins(&written("same-host,,null")),
            Err(ValueError::Origin(OriginPatternError::Empty))
        ));
    }

    #[test]
    fn long_values_are_cut_short_in_messages() {
        assert_eq!(written("64KiB").to_string(), "\"64KiB\"");
        assert_eq!(written(&"é".repeat(1000)).to_string().chars().count(), 205);
    }

    #[test]
    fn sizes_are_shown_in_the_unit_that_divides_them() {
        for (bytes, shown) in
            [(0, "0"), (10, "10"), (1024, "1KiB"), (65_546, "65546"), (3 << 30, "3GiB")]
        {
            assert_eq!(show_size(bytes), shown);
        }
    }
}
