//! What is shown. A thread of its own writes it, so that a reader who takes nothing holds up neither
//! the clock nor the answers to Pings.

use std::borrow::Cow;
use std::io::{self, Write as _};
use std::thread;

use time::{OffsetDateTime, UtcOffset};
use tokio::sync::{mpsc, oneshot};

use crate::client::text;

/// Nothing more is read from the connection while so much waits to be shown. As much again may be with
/// the thread, and one message may come on top of each.
const MAX_PENDING_BYTES: usize = 1 << 20;

/// How things are shown.
#[derive(Clone, Copy, Debug)]
pub(super) enum Style {
    /// Messages and nothing else, one a line. `is_escaped`: they go to a terminal.
    Plain { is_escaped: bool },
    /// For a person: everything, with time and direction.
    Decorated { has_colours: bool, offset: UtcOffset },
}

/// A message, or what stands for one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
}

/// Which way something went, or that it is this client's own remark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Received,
    Sent,
    Remark,
}

impl Style {
    /// The line for `content`, without its end; `None` where it is not shown.
    pub(super) fn line(
        self,
        direction: Direction,
        content: Content<'_>,
        now: OffsetDateTime,
    ) -> Option<String> {
        match self {
            Self::Plain { .. } if direction != Direction::Received => None,
            Self::Plain { is_escaped } => Some(match content {
                Content::Text(text) if is_escaped => text::escaped(text).into_owned(),
                Content::Text(text) => text.to_owned(),
                Content::Binary(bytes) => text::hex(bytes),
            }),
            Self::Decorated { has_colours, offset } => {
                let now = now.to_offset(offset);
                let (hour, minute, second) = now.time().as_hms();
                let time = format!("{hour:02}:{minute:02}:{second:02}.{:03}", now.millisecond());
                let content = match content {
                    Content::Text(text) => text::escaped(text),
                    Content::Binary(bytes) => Cow::Owned(text::shown_bytes(bytes)),
                };
                let (sign, colour) = match direction {
                    Direction::Received => ('<', "\x1b[32m"),
                    Direction::Sent => ('>', "\x1b[36m"),
                    Direction::Remark => ('*', "\x1b[33m"),
                };
                Some(match has_colours {
                    true => format!("\x1b[2m{time}\x1b[0m {colour}{sign}\x1b[0m {content}"),
                    false => format!("{time} {sign} {content}"),
                })
            }
        }
    }
}

/// Where lines go.
pub(super) type Sink = Box<dyn FnMut(String) -> io::Result<()> + Send>;

/// Standard output.
pub(super) fn stdout() -> Sink {
    Box::new(|lines| {
        let mut stdout = io::stdout().lock();
        stdout.write_all(lines.as_bytes())?;
        stdout.flush()
    })
}

/// What waits to be shown.
pub(super) struct Output {
    style: Style,
    /// Whole lines.
    pending: String,
    lines: mpsc::Sender<String>,
    written: oneshot::Receiver<io::Result<()>>,
}

impl Output {
    /// `sink` is used in a thread of its own; `last` is done there with it when all is written.
    pub(super) fn start(style: Style, mut sink: Sink, last: fn(&mut Sink)) -> Self {
        let (lines, mut chunks) = mpsc::channel::<String>(1);
        let (done, written) = oneshot::channel();
        thread::spawn(move || {
            let mut result = Ok(());
            while let Some(chunk) = chunks.blocking_recv() {
                result = sink(chunk);
                if result.is_err() {
                    break;
                }
            }
            last(&mut sink);
            // Nobody may be left who wants to know.
            _ = done.send(result);
        });
        Self { style, pending: String::new(), lines, written }
    }

    pub(super) fn show(&mut self, direction: Direction, content: Content<'_>) {
        if let Some(line) = self.style.line(direction, content, OffsetDateTime::now_utc()) {
            self.pending.push_str(&line);
            self.pending.push('\n');
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.pending.len() < MAX_PENDING_BYTES
    }

    /// Hands on what waits, as soon as the thread takes it. Waits for ever where nothing does.
    ///
    /// # Errors
    ///
    /// Nothing can be shown any more.
    pub(super) async fn progress(&mut self) -> Result<(), OutputClosed> {
        if self.pending.is_empty() {
            return std::future::pending().await;
        }
        let permit = self.lines.reserve().await.map_err(|_| OutputClosed)?;
        permit.send(std::mem::take(&mut self.pending));
        Ok(())
    }

    /// Waits until all is shown.
    pub(super) async fn finish(mut self) -> io::Result<()> {
        if !self.pending.is_empty() {
            // Where it cannot be, the thread tells why.
            _ = self.progress().await;
        }
        drop(self.lines);
        self.written.await.unwrap_or(Ok(()))
    }
}

/// The thread has ended, since nobody reads what it writes.
#[derive(Debug)]
pub(super) struct OutputClosed;

#[cfg(test)]
mod tests {
    use super::*;

    /// Half past ten and seven seconds.
    fn now() -> OffsetDateTime {
        let midnight = OffsetDateTime::UNIX_EPOCH;
        midnight + std::time::Duration::from_millis(37_807_123)
    }

    fn decorated(has_colours: bool, offset: UtcOffset) -> Style {
        Style::Decorated { has_colours, offset }
    }

    #[test]
    fn person_sees_time_and_direction() {
        let style = decorated(false, UtcOffset::UTC);
        let line = |direction, text| style.line(direction, Content::Text(text), now());
        assert_eq!(line(Direction::Received, "text"), Some("10:30:07.123 < text".to_owned()));
        assert_eq!(line(Direction::Sent, "text"), Some("10:30:07.123 > text".to_owned()));
        assert_eq!(line(Direction::Remark, "\x1b"), Some("10:30:07.123 * \\u{1b}".to_owned()));
        let bytes = style.line(Direction::Received, Content::Binary(&[1, 2]), now());
        assert_eq!(bytes, Some("10:30:07.123 < 2 bytes: 01 02".to_owned()));
    }

    #[test]
    fn time_is_that_of_the_place() {
        let style = decorated(false, UtcOffset::from_hms(-2, -30, 0).expect("an offset"));
        let line = style.line(Direction::Received, Content::Text(""), now()).expect("shown");
        assert!(line.starts_with("08:00:07.123 "), "{line}");
    }

    #[test]
    fn colours_are_only_around_what_is_ours() {
        let style = decorated(true, UtcOffset::UTC);
        let line = style.line(Direction::Received, Content::Text("\x1b[31m"), now());
        let expected = "\x1b[2m10:30:07.123\x1b[0m \x1b[32m<\x1b[0m \\u{1b}[31m";
        assert_eq!(line.as_deref(), Some(expected));
    }

    #[test]
    fn script_gets_messages_as_they_are_and_nothing_else() {
        let line = |is_escaped, direction, content| {
            Style::Plain { is_escaped }.line(direction, content, now())
        };
        let text = Content::Text("\x1b[1m");
        assert_eq!(line(false, Direction::Received, text).as_deref(), Some("\x1b[1m"));
        assert_eq!(line(true, Direction::Received, text).as_deref(), Some("\\u{1b}[1m"));
        let bytes = Content::Binary(&[0x0a, 0xff]);
        assert_eq!(line(false, Direction::Received, bytes).as_deref(), Some("0aff"));
        assert_eq!(line(false, Direction::Sent, text), None);
        assert_eq!(line(false, Direction::Remark, text), None);
    }
}
