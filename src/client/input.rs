//! Where lines come from: a pipe, or an editor at a terminal. Each is read by a thread of its own,
//! since neither can be waited for in another way; it ends with the process.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::stdio::dup2_stdout;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor, ExternalPrinter as _};
use tokio::sync::mpsc;
use unicode_width::UnicodeWidthStr as _;

use crate::client::command::{self, Command};
use crate::client::output::Sink;

/// Lines that wait to be taken. While it is full nothing more is read.
const QUEUE: usize = 16;
/// Lines that are remembered from one run to the next.
const MAX_HISTORY_LINES: usize = 1_000;

const PROMPT: &str = "> ";

/// Longest that an editor which has begun takes until the terminal is its own: far more than it needs.
const EDITOR_START: Duration = Duration::from_millis(250);
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// What was read.
#[derive(Debug)]
pub(super) enum Input {
    /// Never empty, and no file is left to read.
    Command(Command),
    /// There is no more.
    End,
    /// What was read cannot be sent, in words.
    Failed(String),
}

/// A queue for lines.
pub(super) fn queue() -> (mpsc::Sender<Input>, mpsc::Receiver<Input>) {
    mpsc::channel(QUEUE)
}

/// Sends each line of standard input, without its end, as a text.
pub(super) fn read_lines(lines: mpsc::Sender<Input>, max_line_bytes: usize) {
    thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        for number in 1u64.. {
            let input = match read_line(&mut stdin, max_line_bytes) {
                Ok(Some(line)) => Input::Command(Command::Text(line)),
                Ok(None) => Input::End,
                Err(error) => Input::Failed(format!("line {number} of the input {error}")),
            };
            let is_last = !matches!(input, Input::Command(_));
            if lines.blocking_send(input).is_err() || is_last {
                return;
            }
        }
    });
}

/// The next line; `None` at the end. The error goes on where "line 3 " begins.
fn read_line(input: &mut impl io::BufRead, max_bytes: usize) -> Result<Option<String>, String> {
    let mut line = Vec::new();
    // Two more for the end of the line.
    let most = max_bytes as u64 + 2;
    let read = input.take(most).read_until(b'\n', &mut line);
    if read.map_err(|error| format!("cannot be read: {error}"))? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
        line.pop_if(|byte| *byte == b'\r');
    }
    if line.len() > max_bytes {
        return Err(format!("has more than {max_bytes} bytes (--max-message-bytes)"));
    }
    String::from_utf8(line).map(Some).map_err(|_| "is not UTF-8, which a text has to be".to_owned())
}

/// A terminal with an editor on it.
pub(super) struct Terminal {
    /// Its modes when it is ours no more.
    original: Termios,
    /// Its modes while the editor has no line.
    between_lines: Termios,
    state: Arc<Mutex<State>>,
}

/// What the editor is doing.
#[derive(Default)]
struct State {
    /// It has a line, or is about to show that it may be typed.
    is_editing: bool,
    /// It begins no other one.
    is_over: bool,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Terminal {
    /// Begins to edit. `None` where standard input and output are no terminal that can do it.
    ///
    /// `interrupts` hears each Ctrl-C; `history` is the file of lines to go back to.
    pub(super) fn start(
        lines: mpsc::Sender<Input>,
        interrupts: mpsc::Sender<()>,
        history: Option<PathBuf>,
        max_message_bytes: usize,
    ) -> Option<(Self, Sink)> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return None;
        }
        let original = tcgetattr(io::stdin()).ok()?;
        let config = Config::builder()
            .max_history_size(MAX_HISTORY_LINES)
            .ok()?
            .auto_add_history(true)
            .history_ignore_space(true)
            .build();
        let mut editor = Editor::<(), FileHistory>::with_config(config).ok()?;
        let mut printer = editor.create_external_printer().ok()?;
        let between_lines = keep_keys(&original);
        tcsetattr(io::stdin(), OptionalActions::Now, &between_lines).ok()?;
        let sink: Sink = Box::new(move |lines| printer.print(lines).map_err(io::Error::other));
        let state: Arc<Mutex<State>> = Arc::default();
        let terminal = Self { original, between_lines, state: Arc::clone(&state) };
        thread::spawn(move || {
            let history = history.and_then(|file| open_history(&mut editor, file));
            loop {
                {
                    let mut state = lock(&state);
                    if state.is_over {
                        return;
                    }
                    state.is_editing = true;
                }
                let line = editor.readline(PROMPT);
                lock(&state).is_editing = false;
                erase(line.as_deref().unwrap_or_default());
                let input = match line {
                    Ok(line) => {
                        if let Some(file) = &history {
                            // A line that is not remembered is no reason not to send it.
                            _ = editor.append_history(file);
                        }
                        match understand(&line, max_message_bytes) {
                            Ok(Some(command)) => Input::Command(command),
                            Ok(None) => continue,
                            Err(error) => {
                                println!("! {error}");
                                continue;
                            }
                        }
                    }
                    Err(ReadlineError::Interrupted) => {
                        // Two that wait say all that there is to say.
                        _ = interrupts.try_send(());
                        continue;
                    }
                    Err(_) => Input::End,
                };
                let is_last = matches!(input, Input::End);
                if lines.blocking_send(input).is_err() || is_last {
                    return;
                }
            }
        });
        Some((terminal, sink))
    }

    /// Lets the editor begin no other line, and waits for one that it is about to begin: what it does to
    /// the terminal would otherwise come behind [`Terminal::restore`].
    pub(super) fn stop(&self) {
        lock(&self.state).is_over = true;
        let deadline = Instant::now() + EDITOR_START;
        let is_between_lines = || {
            let now = tcgetattr(io::stdin());
            now.is_ok_and(|now| now.local_modes == self.between_lines.local_modes)
        };
        while lock(&self.state).is_editing && is_between_lines() && Instant::now() < deadline {
            thread::sleep(BETWEEN_LOOKS);
        }
    }

    /// Gives the terminal back as it was, whatever the editor is doing. Nothing can be shown on standard
    /// output after that.
    pub(super) fn restore(&self) {
        let screen = silence();
        if lock(&self.state).is_editing
            && let Some(mut screen) = screen
        {
            // The prompt goes, and pastes come without brackets again.
            _ = screen.write_all(b"\r\x1b[J\x1b[?2004l");
        }
        // It may be gone.
        _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.original);
    }
}

/// Modes in which the terminal keeps keys for the editor's next line: it would otherwise make lines of
/// them itself, and of Ctrl-D a NUL, which the editor passes over. Ctrl-C still interrupts.
fn keep_keys(original: &Termios) -> Termios {
    let mut modes = original.clone();
    modes.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
    modes
}

/// Has what is still written to standard output go nowhere: the editor draws its prompt whenever it likes,
/// until the process ends. Returns what standard output was.
fn silence() -> Option<File> {
    _ = io::stdout().flush();
    let screen = io::stdout().as_fd().try_clone_to_owned().ok()?;
    let nowhere = File::options().write(true).open("/dev/null").ok()?;
    dup2_stdout(nowhere).ok()?;
    Some(screen.into())
}

/// What an editor is given to show twice at the end: when it has taken the second one, all that came
/// before is on the screen. Up and down again changes nothing there.
pub(super) const NOTHING_TO_SHOW: &str = "\x1b[A\n";

/// What a typed line asks for, its file read; `None` where there is nothing to do.
fn understand(line: &str, max_bytes: usize) -> Result<Option<Command>, String> {
    match command::parse(line).map_err(|error| error.to_string())? {
        Command::Nothing => Ok(None),
        Command::Help => {
            print!("{}", command::HELP);
            Ok(None)
        }
        Command::BinaryFile(path) => {
            let bytes = read_file(&path, max_bytes)
                .map_err(|error| format!("{} cannot be sent: {error}", path.display()))?;
            Ok(Some(Command::Binary(bytes)))
        }
        command => Ok(Some(command)),
    }
}

fn read_file(path: &Path, max_bytes: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max_bytes as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max_bytes {
        let limit = format!("it has more than {max_bytes} bytes (--max-message-bytes)");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, limit));
    }
    Ok(bytes)
}

/// Takes the line that was typed off the screen: it is shown again with its time when it is sent.
fn erase(line: &str) {
    let columns = tcgetwinsize(io::stdout()).map_or(80, |size| usize::from(size.ws_col.max(1)));
    let mut rows = 0;
    for (index, part) in line.split('\n').enumerate() {
        let prompt = if index == 0 { PROMPT.len() } else { 0 };
        rows += (prompt + part.width()) / columns + 1;
    }
    print!("\x1b[{rows}A\r\x1b[J");
    _ = io::stdout().flush();
}

/// Where lines are remembered, by the environment: `$XDG_STATE_HOME/wsgate/history`.
pub(super) fn history_file(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let absolute = |name| variable(name).filter(|path: &PathBuf| path.is_absolute());
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local").join("state")))?;
    Some(state.join("wsgate").join("history"))
}

/// Loads what is remembered; `None` where nothing can be.
fn open_history(editor: &mut Editor<(), FileHistory>, file: PathBuf) -> Option<PathBuf> {
    DirBuilder::new().recursive(true).mode(0o700).create(file.parent()?).ok()?;
    if fs::exists(&file).ok()? {
        editor.load_history(&file).ok()?;
    }
    Some(file)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags, open};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    use super::*;

    fn read_all(mut text: &[u8], max_bytes: usize) -> Vec<Result<Option<String>, String>> {
        let mut lines = Vec::new();
        loop {
            let line = read_line(&mut text, max_bytes);
            let is_last = !matches!(line, Ok(Some(_)));
            lines.push(line);
            if is_last {
                return lines;
            }
        }
    }

    fn line(text: &str) -> Result<Option<String>, String> {
        Ok(Some(text.to_owned()))
    }

    #[test]
    fn lines_come_without_their_ends() {
        assert_eq!(
            read_all(b"a\nb\r\n\nc", 10),
            [line("a"), line("b"), line(""), line("c"), Ok(None)]
        );
        assert_eq!(read_all(b"", 10), [Ok(None)]);
    }

    #[test]
    fn line_of_exactly_the_limit_passes_and_a_longer_one_is_not_read() {
        assert_eq!(
            read_all(b"abc\nabc\r\nabc", 3),
            [line("abc"), line("abc"), line("abc"), Ok(None)]
        );
        let refused = read_all(b"abcdefghi", 3);
        assert_eq!(refused, [Err("has more than 3 bytes (--max-message-bytes)".to_owned())]);
    }

    #[test]
    fn line_that_is_not_utf8_is_refused() {
        assert!(read_all(b"ok\n\xff\n", 10)[1].is_err());
    }

    #[test]
    fn end_of_input_that_is_typed_between_two_lines_reaches_the_editor() {
        let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let name = ptsname(&person, Vec::new()).unwrap();
        let terminal = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let (mut person, mut terminal) = (File::from(person), File::from(terminal));

        let between_lines = keep_keys(&tcgetattr(&terminal).unwrap());
        tcsetattr(&terminal, OptionalActions::Now, &between_lines).unwrap();
        person.write_all(b"\x04.").unwrap();
        let mut typed = [0; 2];
        terminal.read_exact(&mut typed).unwrap();
        assert_eq!(typed, *b"\x04.");
    }

    #[test]
    fn history_is_where_xdg_says_and_nowhere_without_a_home() {
        let with = |variables: &[(&str, &str)]| {
            history_file(|name| {
                let found = variables.iter().find(|(variable, _)| *variable == name);
                found.map(|(_, value)| PathBuf::from(value))
            })
        };
        let home = ("HOME", "/home/me");
        assert_eq!(with(&[home]), Some("/home/me/.local/state/wsgate/history".into()));
        assert_eq!(with(&[home, ("XDG_STATE_HOME", "/s")]), Some("/s/wsgate/history".into()));
        assert_eq!(with(&[home, ("XDG_STATE_HOME", "s")]), with(&[home]));
        assert_eq!(with(&[]), None);
    }
}
