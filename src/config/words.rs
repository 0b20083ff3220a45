//! The words about the command line and the settings, all made of what reads them: the list of every
//! setting, completions for shells, and pages of the manual.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;
use thiserror::Error;

use super::cli::Cli;
use super::epilogue;
use super::key::{DefaultValue, Key};

/// Columns of a terminal that has not been made wider.
const COLUMNS: usize = 80;

/// Every setting with its names, its default, its unit and its meaning, in lines of 80 columns.
pub fn settings() -> String {
    let mut text = String::from(
        "Every setting of wsgate serve. A flag wins over the environment, the environment\n\
         over the file, and the file over the default.\n",
    );
    let mut heading = "";
    for key in Key::all() {
        let about = key.about();
        if about.heading != heading {
            heading = about.heading;
            write!(text, "\n\n{heading}\n{}\n", "-".repeat(heading.len())).expect(STRING);
        }
        let default = match about.default {
            DefaultValue::Text(text) => text,
            DefaultValue::Described(words) => words,
        };
        writeln!(text, "\n{key}").expect(STRING);
        push_wrapped(&mut text, "    ", &format!("{}.", about.help));
        if let Some(unit) = unit(*key) {
            push_wrapped(&mut text, "    Unit:        ", unit);
        }
        push_wrapped(&mut text, "    Default:     ", default);
        let flag = format!("{} {}", key.flag(), about.placeholder);
        push_wrapped(&mut text, "    Flag:        ", &flag);
        push_wrapped(&mut text, "    Environment: ", &key.variable());
    }
    text
}

const STRING: &str = "a String takes everything";

/// What a value is counted in; `None` where the meaning says it.
fn unit(key: Key) -> Option<&'static str> {
    match key.about().placeholder {
        "DURATION" if key == Key::TokenLeeway => Some("whole seconds, with a unit: 5s, 1m 30s"),
        "SIZE" => Some("bytes, or a number with a unit: 65536, 64KiB, 1MiB"),
        "DURATION" => Some("a number with a unit: 500ms, 25s, 1m 30s"),
        "COUNT" => Some("a whole number"),
        "ADDRESS" => Some("an IP address and a port: 127.0.0.1:8080, [::1]:8080"),
        "ADDRESSES" => Some("IP addresses and ports, and unix:/path for Unix sockets"),
        "NETWORKS" => Some("IP addresses and networks: 127.0.0.1, 10.0.0.0/8, fd00::/8"),
        "FILE" => Some("a path"),
        "FILES" => Some("paths"),
        _ => None,
    }
}

/// Appends a paragraph behind `label`, and indented by the length of that from its second line on.
pub(super) fn push_wrapped(text: &mut String, label: &str, words: &str) {
    text.push_str(label);
    let start = label.len();
    let mut column = start;
    for word in words.split_whitespace() {
        let width = word.chars().count();
        if column > start && column + 1 + width > COLUMNS {
            text.push('\n');
            text.push_str(&" ".repeat(start));
            column = start;
        }
        if column > start {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += width;
    }
    text.push('\n');
}

/// The script that completes the arguments in `shell`.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "wsgate", &mut script);
    script
}

/// Why a page of the manual is not there.
#[derive(Debug, Error)]
pub enum ManualError {
    /// The operator erred.
    #[error(
        "\"{}\" is none of the commands. Write nothing for wsgate itself, or one of: {}",
        .name.escape_debug(),
        .commands.join(", ")
    )]
    UnknownCommand {
        /// As it was asked for.
        name: String,
        /// Those that there are.
        commands: Vec<String>,
    },
    /// The file system does not take a page.
    #[error(
        "{} cannot be written: {error}. Name a directory that is there and that this user may write \
         to",
        .path.display()
    )]
    Unwritten {
        /// The page.
        path: PathBuf,
        /// What the file system says.
        error: io::Error,
    },
}

/// The page of the manual on the command of these words, or on `wsgate` itself where there are none.
///
/// `token make`, `token-make` and `wsgate-token-make`, as other pages refer to it, are the same.
///
/// # Errors
///
/// There is no such command.
pub fn manual(command: &[String]) -> Result<Vec<u8>, ManualError> {
    let name = command.join(" ");
    let wanted = name.split_whitespace().collect::<Vec<_>>().join("-");
    let pages = pages();
    let page = pages.iter().find(|page| {
        let short = page.name.strip_prefix(PAGE_PREFIX).unwrap_or_default();
        wanted == page.name || wanted == short
    });
    page.map(Page::render).ok_or_else(|| {
        let commands = pages.iter().filter_map(|page| page.command.get_bin_name());
        let commands = commands.filter_map(|words| words.strip_prefix("wsgate "));
        ManualError::UnknownCommand { name, commands: commands.map(str::to_owned).collect() }
    })
}

/// Writes every page of the manual into a folder that exists.
///
/// # Errors
///
/// What the file system says.
pub fn write_manuals(folder: &Path) -> Result<(), ManualError> {
    pages().iter().try_for_each(|page| {
        let path = folder.join(format!("{}.1", page.name));
        let written = std::fs::write(&path, page.render());
        written.map_err(|error| ManualError::Unwritten { path, error })
    })
}

/// What the names of all pages but the first begin with.
const PAGE_PREFIX: &str = "wsgate-";

/// A page of the manual.
struct Page {
    /// `wsgate-token-make`
    name: String,
    command: clap::Command,
}

/// That on `wsgate` itself, and one on each command, those of commands included.
fn pages() -> Vec<Page> {
    fn add(command: &clap::Command, pages: &mut Vec<Page>) {
        let name = command.get_display_name().unwrap_or_else(|| command.get_name());
        pages.push(Page { name: name.to_owned(), command: command.clone() });
        command.get_subcommands().for_each(|command| add(command, pages));
    }
    // `wsgate help connect` is no command but a question.
    let mut cli = Cli::command().disable_help_subcommand(true);
    // Gives each command its full name.
    cli.build();
    let mut pages = Vec::new();
    add(&cli, &mut pages);
    pages
}

impl Page {
    /// As `Man::render` does, but for what is below the options, of which that makes one paragraph.
    fn render(&self) -> Vec<u8> {
        let man = Man::new(self.command.clone()).source(SOURCE);
        let mut page = Vec::new();
        man.render_title(&mut page).expect(VEC);
        man.render_name_section(&mut page).expect(VEC);
        man.render_synopsis_section(&mut page).expect(VEC);
        man.render_description_section(&mut page).expect(VEC);
        if self.command.get_arguments().next().is_some() {
            man.render_options_section(&mut page).expect(VEC);
        }
        if self.command.has_subcommands() {
            man.render_subcommands_section(&mut page).expect(VEC);
        }
        page.extend(epilogue::roff(&self.name).into_bytes());
        if self.command.get_version().is_some() {
            man.render_version_section(&mut page).expect(VEC);
        }
        page
    }
}

/// At the foot of a page.
const SOURCE: &str = concat!("wsgate ", env!("CARGO_PKG_VERSION"));

const VEC: &str = "a Vec takes everything";

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_narrow(text: &str) {
        for line in text.lines() {
            assert!(line.chars().count() <= COLUMNS, "{line:?} of:\n{text}");
        }
    }

    #[test]
    fn every_setting_is_there_with_its_default() {
        let text = settings();
        for key in Key::all() {
            for shown in [format!("\n{key}\n"), key.variable(), format!("{} ", key.flag())] {
                assert!(text.contains(&shown), "{shown} is missing:\n{text}");
            }
        }
        assert!(text.contains("    Default:     64KiB\n"), "{text}");
        let leeway = text.split("\ntoken_leeway\n").nth(1).expect("it is a setting");
        let unit = leeway.lines().find(|line| line.contains("Unit:")).expect("it has one");
        assert_eq!(unit, "    Unit:        whole seconds, with a unit: 5s, 1m 30s");
        assert_narrow(&text);
    }

    #[test]
    fn completions_and_manual_know_every_command_and_flag() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(completions(shell)).expect("a script is text");
            for word in ["connect", "max-message-bytes", "subprotocol"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
        assert!(page(&[]).contains("wsgate\\-connect(1)"), "{}", page(&[]));
        assert!(page(&["serve"]).contains("max\\-message\\-bytes"));
        assert!(page(&["connect"]).contains("subprotocol"));
    }

    fn page(command: &[&str]) -> String {
        let command: Vec<String> = command.iter().map(|&word| word.to_owned()).collect();
        String::from_utf8(manual(&command).expect("a page")).expect("it is text")
    }

    #[test]
    fn page_is_found_by_the_words_of_its_command_and_by_its_name() {
        for command in
            [&["token", "make"][..], &["token make"], &["token-make"], &["wsgate-token-make"]]
        {
            assert!(page(command).contains(".TH wsgate-token-make 1 "), "{command:?}");
        }
        for command in [&[][..], &["wsgate"]] {
            assert!(page(command).contains(".TH wsgate 1 "), "{command:?}");
        }
    }

    #[test]
    fn unknown_command_is_told_with_those_that_have_a_page() {
        for word in ["dance", "help", "make", "wsgate-"] {
            let error = manual(&[word.to_owned()]).expect_err(word).to_string();
            let begin =
                format!("\"{word}\" is none of the commands. Write nothing for wsgate itself,");
            assert!(error.starts_with(&begin), "{error}");
            let list = "one of: serve, check, token, token make, token check, connect, config, config \
                        doc, completions, man";
            assert!(error.ends_with(list), "{error}");
        }
    }

    /// The lines that were written to be shown as they are, on the page of this name.
    fn preformatted(page: &str) -> impl Iterator<Item = &'static str> {
        let parts = epilogue::sections(page).iter().flat_map(|section| section.parts);
        parts
            .flat_map(|part| match part {
                epilogue::Part::Lines(lines) => *lines,
                epilogue::Part::Prose(_) => &[],
            })
            .copied()
    }

    #[test]
    fn what_is_below_the_options_is_shown_as_it_is_written() {
        let mut seen = 0;
        for page in pages() {
            // As if asked for it: the width is the program's, not the command's.
            let words = page.command.get_bin_name().unwrap_or("wsgate").split(' ');
            let help = Cli::command()
                .try_get_matches_from(words.chain(["--help"]))
                .expect_err("help is no match")
                .to_string();
            assert_narrow(&help);
            let epilogue = epilogue::help(&page.name);
            let lines: Vec<&str> = help.lines().collect();
            for line in epilogue.lines() {
                assert!(lines.contains(&line), "{line:?} is not in the help:\n{help}");
            }
            for line in preformatted(&page.name) {
                let line = format!("{}{line}", epilogue::INDENT);
                assert!(lines.contains(&line.as_str()), "{line:?} is not in the help:\n{help}");
                seen += 1;
            }
        }
        assert!(seen > 10, "{seen}");
    }

    #[test]
    fn sections_of_a_page_are_apart_and_their_lines_are_kept() {
        let page = page(&["connect"]);
        for part in [
            "\n.SH \"EXIT STATUS\"\n.nf\n0  all went well\n",
            "\n.fi\n.SH \"EXAMPLES\"\n.nf\nwsgate connect ws://localhost:8080/channels/news\n",
            "\necho \\(aq{\\(dqa\\(dq:1}\\(aq | wsgate connect \\-\\-count 0 \\e\n    \\(aqws://",
        ] {
            assert!(page.contains(part), "{part:?} is missing:\n{page}");
        }
        assert!(!page.contains("EXTRA"), "{page}");
    }

    #[test]
    fn line_that_begins_like_a_request_is_none() {
        assert_eq!(epilogue::escaped(".so x"), "\\&.so x");
        assert_eq!(epilogue::escaped("'tis ~/a-b"), "\\&\\(aqtis \\(ti/a\\-b");
    }

    #[test]
    fn paragraph_is_wrapped_behind_its_label() {
        let mut text = String::new();
        push_wrapped(&mut text, "    Label: ", &"word ".repeat(20));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("    Label: word word "));
        assert!(lines[1].starts_with("           word"));
        assert_narrow(&text);
    }
}
