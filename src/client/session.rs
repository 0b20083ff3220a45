//! One run: connects, passes on what is typed and what arrives, watches the clock, and tries again.

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use time::UtcOffset;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::client::awaited::{self, Progress, Verdict};
use crate::client::command::Command;
use crate::client::connection::{Connection, Done};
use crate::client::ending::Ending;
use crate::client::handshake;
use crate::client::input::{self, Input, Terminal};
use crate::client::messages::Event;
use crate::client::output::{self, Content, Direction, Output, Style};
use crate::client::{ANSWER_TIMEOUT, Failure, Options, Reconnect, random, tls};
use crate::wire::close::CloseCode;
use crate::wire::frame::MessageKind;

/// Time for the server to answer our Close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for our answer to the server's Close to be written.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection that has lived so long was a good one: the next attempt is the first again.
const STEADY: Duration = Duration::from_secs(10);
/// Time for an editor to show the last lines.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);
/// One interrupt closes, two end at once; more say nothing new.
const MAX_INTERRUPTS: usize = 2;

/// See [`super::connect`].
pub(super) fn run(options: &Options) -> Result<(), Failure> {
    // While there is one thread: with more, the system's time zone cannot be asked for safely.
    let offset = UtcOffset::current_local_offset().unwrap_or(UtcOffset::UTC);
    let tls = options.endpoint.is_tls.then(|| tls::client_config(&options.trust)).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::Start)?;
    let result = runtime.block_on(start(options, tls, offset));
    // A look-up of a name may still be going on.
    runtime.shutdown_background();
    result
}

async fn start(
    options: &Options,
    tls: Option<Arc<ClientConfig>>,
    offset: UtcOffset,
) -> Result<(), Failure> {
    let (interrupt, interrupts) = mpsc::channel(MAX_INTERRUPTS);
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let mut signals = signal(kind).map_err(Failure::Start)?;
        let interrupt = interrupt.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                _ = interrupt.try_send(());
            }
        });
    }
    let (lines, input) = input::queue();
    let history = input::history_file(|name| std::env::var_os(name).map(PathBuf::from));
    let max_bytes = options.max_message_bytes;
    let started = Terminal::start(lines.clone(), interrupt, history, max_bytes);
    let (terminal, output) = match started {
        Some((terminal, sink)) => {
            let has_colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            let style = Style::Decorated { has_colours, offset };
            (Some(terminal), Output::start(style, sink, flush_editor))
        }
        None => {
            input::read_lines(lines, max_bytes);
            let style = Style::Plain { is_escaped: io::stdout().is_terminal() };
            (None, Output::start(style, output::stdout(), |_| ()))
        }
    };
    let limit = options.timeout.filter(|limit| !limit.is_zero());
    let mut session = Session {
        options,
        tls,
        is_terminal: terminal.is_some(),
        input,
        input_state: awaited::Input::Open,
        was_connected: false,
        interrupts,
        output,
        progress: Progress::new(options.awaited.clone()),
        limit: limit.map(|limit| Limit { at: Instant::now() + limit, length: limit }),
    };
    let result = session.run().await;
    let Session { output, mut interrupts, .. } = session;
    let Some(terminal) = terminal else {
        let written = tokio::select! {
            written = output.finish() => written,
            // Who reads nothing cannot keep it from ending.
            Some(()) = interrupts.recv() => return Err(Failure::Interrupted),
        };
        return result.and(written.map_err(Failure::Output));
    };
    terminal.stop();
    _ = timeout(LAST_LINES_TIMEOUT, output.finish()).await;
    terminal.restore();
    result
}

/// Has an editor show all that it was given.
fn flush_editor(sink: &mut output::Sink) {
    for _ in 0..2 {
        // It may have ended, and shows everything at once then.
        _ = sink(input::NOTHING_TO_SHOW.to_owned());
    }
}

/// Until when, and how long that is from the start.
#[derive(Clone, Copy)]
struct Limit {
    at: Instant,
    length: Duration,
}

struct Session<'a> {
    options: &'a Options,
    tls: Option<Arc<ClientConfig>>,
    /// A person types.
    is_terminal: bool,
    input: mpsc::Receiver<Input>,
    input_state: awaited::Input,
    /// There is or was a connection.
    was_connected: bool,
    interrupts: mpsc::Receiver<()>,
    output: Output,
    progress: Progress,
    limit: Option<Limit>,
}

/// What came of a wait without a connection.
enum Meanwhile<T> {
    /// What was waited for.
    Over(T),
    /// The run is over.
    Finished(Result<(), Failure>),
}

/// What came of a connection.
enum After {
    /// The run is over.
    Finished(Result<(), Failure>),
    /// The connection is.
    Ended(Ending),
}

/// We have sent Close.
struct Closing {
    /// No longer is the server waited for.
    until: Instant,
    result: Result<(), Failure>,
}

impl Closing {
    fn new(result: Result<(), Failure>) -> Option<Self> {
        Some(Self { until: Instant::now() + CLOSE_TIMEOUT, result })
    }
}

impl Session<'_> {
    async fn run(&mut self) -> Result<(), Failure> {
        let options = self.options;
        let tls = self.tls.clone();
        let reconnects = match options.reconnect {
            Reconnect::AtTerminal => self.is_terminal,
            Reconnect::Always => true,
            Reconnect::Never => false,
        };
        let mut attempt = 0;
        loop {
            let opening = handshake::open(&options.endpoint, &options.wishes, tls.as_ref());
            let opened = match self.meanwhile(opening).await {
                Meanwhile::Over(opened) => opened,
                Meanwhile::Finished(result) => return result,
            };
            let ending = match opened {
                Err(ending) => ending,
                Ok(opened) => {
                    self.was_connected = true;
                    self.remark(&connected(options, &opened));
                    let since = Instant::now();
                    let connection = Connection::new(opened, options.max_message_bytes);
                    match self.serve(connection).await {
                        After::Finished(result) => return result,
                        After::Ended(ending) => {
                            if since.elapsed() >= STEADY {
                                attempt = 0;
                            }
                            ending
                        }
                    }
                }
            };
            if !reconnects || !ending.may_pass() {
                return self.result_after(&ending);
            }
            attempt += 1;
            let delay = options.backoff.delay(attempt, random::number(), ending.retry_after());
            let Some(delay) = delay else {
                let attempts = options.backoff.max_attempts;
                return Err(Failure::Ended(format!("{ending}; gave up after {attempts} attempts")));
            };
            let seconds = delay.as_secs_f64();
            self.notice(&format!("{ending}; trying again in {seconds:.1} s (attempt {attempt})"));
            match self.meanwhile(sleep(delay)).await {
                Meanwhile::Over(()) => {}
                Meanwhile::Finished(result) => return result,
            }
        }
    }

    /// Waits for `future` while there is no connection. A person who types meanwhile is told so, or
    /// ends the run; a script's lines stay where they are.
    async fn meanwhile<T>(&mut self, future: impl Future<Output = T>) -> Meanwhile<T> {
        let mut future = std::pin::pin!(future);
        loop {
            let limit = self.limit;
            let takes_input = self.is_terminal && self.input_state == awaited::Input::Open;
            let result = tokio::select! {
                result = &mut future => return Meanwhile::Over(result),
                Some(()) = self.interrupts.recv() => {
                    // A probe that never had a connection is not one that went well.
                    if self.was_connected { self.result_of_user() } else { Err(Failure::Interrupted) }
                }
                () = until(limit.map(|limit| limit.at)) => {
                    let length = limit.map_or(Duration::ZERO, |limit| limit.length);
                    Err(Failure::Ended(format!("no connection within {length:?}")))
                }
                shown = self.output.progress() => match shown {
                    Ok(()) => continue,
                    Err(_) => Err(closed_output()),
                },
                input = self.input.recv(), if takes_input => match input {
                    Some(Input::Command(Command::Close(..)) | Input::End) | None => {
                        self.result_of_user()
                    }
                    Some(Input::Command(_)) => {
                        self.remark("not connected: nothing was sent");
                        continue;
                    }
                    Some(Input::Failed(error)) => Err(Failure::Input(error)),
                },
            };
            return Meanwhile::Finished(result);
        }
    }

    async fn serve(&mut self, mut connection: Connection) -> After {
        let mut closing = None;
        loop {
            while self.output.has_room() {
                match connection.poll_event() {
                    Ok(None) => break,
                    Ok(Some(event)) => {
                        if let Some((code, reason)) =
                            self.handle_event(event, &mut connection, &closing)
                        {
                            if let Some(Closing { result, .. }) = closing {
                                return After::Finished(result);
                            }
                            farewell(&mut connection, code, "").await;
                            return After::Ended(Ending::Closed { code, reason });
                        }
                        // What comes after the last message that was awaited is not waited for.
                        if closing.is_none() && self.verdict() != Verdict::Waiting {
                            break;
                        }
                    }
                    Err(error) => {
                        farewell(&mut connection, Some(error.close_code()), "").await;
                        return After::Ended(error.into());
                    }
                }
            }
            if closing.is_none()
                && let Some(result) = self.result()
            {
                connection.close(Some(CloseCode::NORMAL), "");
                closing = Closing::new(result);
            }
            let may_read = self.output.has_room();
            let takes_input = closing.is_none()
                && self.input_state == awaited::Input::Open
                && connection.has_room();
            let limit = match &closing {
                Some(closing) => Some(closing.until),
                None => self.limit.map(|limit| limit.at),
            };
            tokio::select! {
                done = connection.progress(may_read) => {
                    let ending = match done {
                        Ok(Done::Read | Done::Written) => continue,
                        Ok(Done::End) => Ending::Cut,
                        Err(error) => Ending::Lost(error),
                    };
                    return match closing {
                        Some(closing) => After::Finished(closing.result),
                        None => After::Ended(ending),
                    };
                }
                input = self.input.recv(), if takes_input => {
                    let input = input.unwrap_or(Input::End);
                    closing = self.handle_input(input, &mut connection);
                }
                Some(()) = self.interrupts.recv() => {
                    if closing.is_some() {
                        return After::Finished(Err(Failure::Interrupted));
                    }
                    connection.close(Some(CloseCode::NORMAL), "");
                    closing = Closing::new(self.result_of_user());
                }
                () = until(limit) => {
                    if let Some(closing) = closing {
                        return After::Finished(closing.result);
                    }
                    farewell(&mut connection, Some(CloseCode::NORMAL), "").await;
                    return After::Finished(Err(self.timed_out()));
                }
                shown = self.output.progress() => if shown.is_err() {
                    farewell(&mut connection, Some(CloseCode::NORMAL), "").await;
                    return After::Finished(Err(closed_output()));
                },
            }
        }
    }

    /// Shows, counts and answers. Returns what the server's Close says, if it is one.
    fn handle_event(
        &mut self,
        event: Event,
        connection: &mut Connection,
        closing: &Option<Closing>,
    ) -> Option<(Option<CloseCode>, String)> {
        // A script that has what it wanted gets no more; a person sees what there is.
        let is_wanted = closing.is_none() || self.is_terminal;
        match event {
            Event::Text(text) if is_wanted => {
                self.progress.handle_received(Some(&text));
                self.output.show(Direction::Received, Content::Text(&text));
            }
            Event::Binary(bytes) if is_wanted => {
                self.progress.handle_received(None);
                self.output.show(Direction::Received, Content::Binary(&bytes));
            }
            Event::Text(_) | Event::Binary(_) => {}
            Event::Ping(payload) if closing.is_none() => connection.pong(&payload),
            Event::Ping(_) => {}
            Event::Pong(payload) => {
                let text = String::from_utf8_lossy(&payload);
                self.show_remark(Direction::Received, &format!("(pong) {text}"));
            }
            Event::Close(code, reason) => return Some((code, reason)),
        }
        None
    }

    /// Does what was typed. Returns how the run ends, if that ends it.
    fn handle_input(&mut self, input: Input, connection: &mut Connection) -> Option<Closing> {
        match input {
            Input::Command(Command::Text(text)) => {
                connection.send(MessageKind::Text, text.as_bytes());
                self.progress.handle_sent();
                self.output.show(Direction::Sent, Content::Text(&text));
            }
            Input::Command(Command::Binary(bytes)) => {
                connection.send(MessageKind::Binary, &bytes);
                self.progress.handle_sent();
                self.output.show(Direction::Sent, Content::Binary(&bytes));
            }
            Input::Command(Command::Ping(text)) => {
                connection.ping(text.as_bytes());
                self.show_remark(Direction::Sent, &format!("(ping) {text}"));
            }
            Input::Command(Command::Close(code, reason)) => {
                connection.close(Some(code), &reason);
                let shown = format!("(close) {} {reason}", code.as_u16());
                self.show_remark(Direction::Sent, shown.trim_end());
                return Closing::new(self.result_of_user());
            }
            // These are not handed on.
            Input::Command(Command::Nothing | Command::Help | Command::BinaryFile(_)) => {}
            Input::Failed(error) => {
                connection.close(Some(CloseCode::NORMAL), "");
                return Closing::new(Err(Failure::Input(error)));
            }
            Input::End => {
                self.input_state = awaited::Input::Ended;
                if self.is_terminal {
                    connection.close(Some(CloseCode::NORMAL), "");
                    return Closing::new(self.result_of_user());
                }
                if self.options.timeout.is_none() {
                    let at = Instant::now() + ANSWER_TIMEOUT;
                    self.limit = Some(Limit { at, length: ANSWER_TIMEOUT });
                }
            }
        }
        None
    }

    fn verdict(&self) -> Verdict {
        self.progress.verdict(self.input_state)
    }

    /// How the run ends, if all that was awaited has come, or can come no more.
    fn result(&self) -> Option<Result<(), Failure>> {
        match self.verdict() {
            Verdict::Waiting => None,
            Verdict::Met => Some(Ok(())),
            Verdict::Missed => {
                let among = format!("among {} messages", self.progress.received());
                Some(Err(self.missed(&among)))
            }
        }
    }

    /// How a run ends that the user ends: well, if nothing that was asked for is missing.
    fn result_of_user(&self) -> Result<(), Failure> {
        let is_missing = self.progress.unmet().is_some()
            || self.options.awaited.count.is_some_and(|count| self.progress.received() < count);
        if is_missing { Err(self.missed("before the end")) } else { Ok(()) }
    }

    /// How a run ends whose connection has ended like this and is not made again.
    fn result_after(&mut self, ending: &Ending) -> Result<(), Failure> {
        if !ending.is_normal() {
            return Err(Failure::Ended(ending.to_string()));
        }
        let is_met = self.verdict() == Verdict::Met;
        let is_free = self.is_terminal && self.options.awaited == awaited::Awaited::default();
        if is_met || is_free {
            if self.is_terminal {
                self.remark(&ending.to_string());
            }
            return Ok(());
        }
        Err(self.missed(&format!("before the end ({ending})")))
    }

    fn timed_out(&self) -> Failure {
        let length = self.limit.map_or(Duration::ZERO, |limit| limit.length);
        self.missed(&format!("within {length:?}"))
    }

    /// Says what has not come `when`.
    fn missed(&self, when: &str) -> Failure {
        let received = self.progress.received();
        Failure::Missed(match self.progress.unmet() {
            Some(expected) => format!(
                "\"{}\" was expected and did not come {when}; messages received: {received}",
                expected.text().escape_debug()
            ),
            None => {
                let wanted = self.progress.wanted();
                format!("received {received} of {wanted} messages {when}")
            }
        })
    }

    /// Tells a person, but not a script.
    fn remark(&mut self, text: &str) {
        self.show_remark(Direction::Remark, text);
    }

    fn show_remark(&mut self, direction: Direction, text: &str) {
        if self.is_terminal {
            self.output.show(direction, Content::Text(text));
        }
    }

    /// Tells a person, and the log of a script.
    fn notice(&mut self, text: &str) {
        if self.is_terminal {
            self.remark(text);
        } else {
            eprintln!("wsgate: {text}");
        }
    }
}

/// What a person is told of a new connection.
fn connected(options: &Options, opened: &handshake::Opened) -> String {
    let mut text = format!("connected to {}", options.endpoint);
    if opened.agreed.is_some() {
        text.push_str(", with permessage-deflate");
    } else if options.wishes.compression {
        text.push_str(", without permessage-deflate");
    }
    match &opened.subprotocol {
        Some(chosen) => text.push_str(&format!(", subprotocol {chosen}")),
        None if !options.wishes.subprotocols.is_empty() => {
            text.push_str(", without any of the subprotocols");
        }
        None => {}
    }
    text
}

/// Sends Close behind all that waits, and gives it a moment to be written.
async fn farewell(connection: &mut Connection, code: Option<CloseCode>, reason: &str) {
    connection.close(code, reason);
    let writing =
        async { while !connection.is_written() && connection.progress(false).await.is_ok() {} };
    // The connection ends in either case.
    _ = timeout(FAREWELL_TIMEOUT, writing).await;
}

fn closed_output() -> Failure {
    Failure::Output(io::ErrorKind::BrokenPipe.into())
}

/// Waits until `instant`; for ever without one.
async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
