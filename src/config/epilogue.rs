//! What stands below the options of a command, in its help and on its page of the manual: how it
//! ends, what its settings look like, and lines to copy.

use super::words::push_wrapped;

/// A part of it, under a heading of its own.
pub(super) struct Section {
    pub(super) heading: &'static str,
    pub(super) parts: &'static [Part],
}

/// A part of a section.
pub(super) enum Part {
    /// A paragraph, wrapped wherever a line is full.
    Prose(&'static str),
    /// Shown as they are, so that they can be copied.
    Lines(&'static [&'static str]),
}

use Part::{Lines, Prose};

/// The sections of the command whose page of the manual has this name; most have none.
pub(super) fn sections(page: &str) -> &'static [Section] {
    match page {
        "wsgate" => FIRST_STEPS,
        "wsgate-serve" | "wsgate-check" => SETTINGS,
        "wsgate-connect" => CONNECT,
        "wsgate-completions" => COMPLETIONS,
        "wsgate-man" => MAN,
        _ => &[],
    }
}

const FIRST_STEPS: &[Section] = &[Section {
    heading: "First steps",
    parts: &[Lines(&[
        "Start:    wsgate serve",
        "Try it:   wsgate connect ws://localhost:8080/echo",
        "Settings: wsgate config doc",
    ])],
}];

const SETTINGS: &[Section] = &[
    Section {
        heading: "Sources",
        parts: &[
            Prose(
                "Every option but --config can also be set in the environment and in the file, by \
                 the same word:",
            ),
            Lines(&[
                "  --max-message-bytes 64KiB",
                "  WSGATE_MAX_MESSAGE_BYTES=64KiB",
                "  max_message_bytes = \"64KiB\"",
            ]),
            Prose("A flag wins over the environment, and the environment over the file."),
            Prose("On SIGHUP serve reads them anew, and settings marked [reload] change at once."),
        ],
    },
    Section {
        heading: "Units",
        parts: &[Lines(&[
            "Sizes are bytes or have a unit: 65536, 64KiB, 1MiB",
            "Durations have a unit: 500ms, 25s, 1m 30s",
        ])],
    },
];

const CONNECT: &[Section] = &[
    Section {
        heading: "Input and output",
        parts: &[Prose(
            "At a terminal, what is typed is sent as a text, and what arrives is shown with its time \
             and direction; /help lists the commands. Otherwise each line of standard input is sent, \
             and each message that arrives is a line of standard output: a text as it is, a binary \
             message in hexadecimal. After the end of the input, as many messages are waited for as \
             lines were sent, unless --expect or --count say what.",
        )],
    },
    Section {
        heading: "Exit status",
        parts: &[Lines(&[
            "0  all went well",
            "1  no connection, one that ended early or abnormally, or what was",
            "   awaited did not come in time",
            "2  wrong usage",
        ])],
    },
    Section {
        heading: "Examples",
        parts: &[Lines(&[
            "wsgate connect ws://localhost:8080/channels/news",
            "echo hi | wsgate connect ws://localhost:8080/echo --expect hi --timeout 2s",
            "echo '{\"a\":1}' | wsgate connect --count 0 \\",
            "    'ws://localhost:8080/channels/news?own=false'",
            "wsgate connect ws://localhost:8080/channels/news --count 1 < /dev/null",
            "wsgate connect wss://example.com/echo --ca test-ca.pem --compression",
            "wsgate connect ws+unix:///run/wsgate.sock:/echo",
        ])],
    },
];

const COMPLETIONS: &[Section] = &[
    Section {
        heading: "Bash",
        parts: &[Lines(&[
            "wsgate completions bash > ~/.local/share/bash-completion/completions/wsgate",
        ])],
    },
    Section {
        heading: "Zsh",
        parts: &[
            Prose("Into a directory of $fpath, such as:"),
            Lines(&["wsgate completions zsh > ~/.zfunc/_wsgate"]),
        ],
    },
    Section {
        heading: "Fish",
        parts: &[Lines(&["wsgate completions fish > ~/.config/fish/completions/wsgate.fish"])],
    },
];

const MAN: &[Section] = &[Section {
    heading: "Examples",
    parts: &[Lines(&[
        "wsgate man connect | man -l -",
        "wsgate man token make | man -l -",
        "wsgate man --directory ~/.local/share/man/man1",
    ])],
}];

/// In front of a line of the help.
pub(super) const INDENT: &str = "  ";

/// What the help of a command says below its options, in lines of 80 columns.
pub(super) fn help(page: &str) -> String {
    let mut text = String::new();
    for Section { heading, parts } in sections(page) {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&format!("{heading}:\n"));
        for part in *parts {
            match part {
                Prose(words) => push_wrapped(&mut text, INDENT, words),
                Lines(lines) => {
                    lines.iter().for_each(|line| text.push_str(&format!("{INDENT}{line}\n")));
                }
            }
        }
    }
    text.trim_end().to_owned()
}

/// The same as sections of a page of the manual.
pub(super) fn roff(page: &str) -> String {
    let mut text = String::new();
    for Section { heading, parts } in sections(page) {
        text.push_str(&format!(".SH \"{}\"\n", escaped(&heading.to_uppercase())));
        for (index, part) in parts.iter().enumerate() {
            if index > 0 {
                text.push_str(".PP\n");
            }
            match part {
                Prose(words) => text.push_str(&format!("{}\n", escaped(words))),
                Lines(lines) => {
                    text.push_str(".nf\n");
                    lines.iter().for_each(|line| text.push_str(&format!("{}\n", escaped(line))));
                    text.push_str(".fi\n");
                }
            }
        }
    }
    text
}

/// One line of text as roff has to be told it, so that each character comes out as itself and can be
/// copied. `roff` of clap_mangen knows of hyphens, backslashes and apostrophes only: a `~` or a `^`
/// is an accent to groff.
pub(super) fn escaped(line: &str) -> String {
    let mut text = String::new();
    if line.starts_with(['.', '\'']) {
        // Otherwise it would be a request.
        text.push_str("\\&");
    }
    for character in line.chars() {
        match character {
            '\\' => text.push_str("\\e"),
            '-' => text.push_str("\\-"),
            '\'' => text.push_str("\\(aq"),
            '"' => text.push_str("\\(dq"),
            '~' => text.push_str("\\(ti"),
            '^' => text.push_str("\\(ha"),
            '`' => text.push_str("\\(ga"),
            _ => text.push(character),
        }
    }
    text
}
