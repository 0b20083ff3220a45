//! The words about the command line and the settings, all made of what reads them: the list of every
//! setting, completions for shells, and pages of the manual.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;

use super::cli::Cli;
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
        push_wrapped(&mut text, "", &format!("{}.", about.help));
        if let Some(unit) = unit(about.placeholder) {
            push_wrapped(&mut text, "Unit:        ", unit);
        }
        push_wrapped(&mut text, "Default:     ", default);
        push_wrapped(&mut text, "Flag:        ", &format!("{} {}", key.flag(), about.placeholder));
        push_wrapped(&mut text, "Environment: ", &key.variable());
    }
    text
}

const STRING: &str = "a String takes everything";

/// What a value is counted in, by what stands for it in the help; `None` where the meaning says it.
fn unit(placeholder: &str) -> Option<&'static str> {
    match placeholder {
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

/// Appends a paragraph that is indented by four, and by the length of `label` from its second line on.
fn push_wrapped(text: &mut String, label: &str, words: &str) {
    const INDENT: usize = 4;
    text.push_str(&" ".repeat(INDENT));
    text.push_str(label);
    let start = INDENT + label.len();
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

/// The page of the manual on `wsgate`, or on one of its commands; `None` where there is no such one.
pub fn manual(command: Option<&str>) -> Option<Vec<u8>> {
    let mut cli = Cli::command();
    // Gives each command its full name.
    cli.build();
    let about = match command {
        None => cli,
        Some(name) => cli.find_subcommand(name)?.clone(),
    };
    let mut page = Vec::new();
    Man::new(about).render(&mut page).expect("a Vec takes everything");
    Some(page)
}

/// Writes every page of the manual into a folder that exists.
///
/// # Errors
///
/// What the file system says.
pub fn write_manuals(folder: &Path) -> io::Result<()> {
    clap_mangen::generate_to(Cli::command(), folder)
}

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
        assert_narrow(&text);
    }

    #[test]
    fn help_fits_into_80_columns() {
        let mut cli = Cli::command();
        assert_narrow(&cli.render_long_help().to_string());
        let names: Vec<String> =
            cli.get_subcommands().map(|command| command.get_name().to_owned()).collect();
        for name in names {
            // As if asked for it: the width is the program's, not the command's.
            let help = Cli::command()
                .try_get_matches_from(["wsgate", &name, "--help"])
                .expect_err("help is no match");
            assert_narrow(&help.to_string());
        }
    }

    #[test]
    fn completions_and_manual_know_every_command_and_flag() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(completions(shell)).expect("a script is text");
            for word in ["connect", "max-message-bytes", "subprotocol"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
        let page = |command| String::from_utf8(manual(command).expect("a page")).expect("text");
        assert!(page(None).contains("wsgate\\-connect(1)"), "{}", page(None));
        assert!(page(Some("serve")).contains("max\\-message\\-bytes"));
        assert!(page(Some("connect")).contains("subprotocol"));
        assert!(manual(Some("dance")).is_none());
    }

    #[test]
    fn paragraph_is_wrapped_behind_its_label() {
        let mut text = String::new();
        push_wrapped(&mut text, "Label: ", &"word ".repeat(20));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("    Label: word word "));
        assert!(lines[1].starts_with("           word"));
        assert_narrow(&text);
    }
}
