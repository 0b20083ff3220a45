//! The command line: what may be written, and what was. Nothing is read as a value here, so that a
//! bad one is told in the same words wherever it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, FromArgMatches, Parser, Subcommand, value_parser};
use clap_complete::Shell;

use super::connect::ConnectFlags;
use super::epilogue;
use super::key::{DefaultValue, Key};
use super::token_command::TokenCommand;

/// The arguments of `wsgate`.
#[derive(Debug, Parser)]
#[command(
    name = "wsgate",
    version,
    about = "A multi-core WebSocket gateway",
    max_term_width = 80,
    after_help = epilogue::help("wsgate")
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `wsgate` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway
    #[command(after_help = epilogue::help("wsgate-serve"))]
    Serve(Flags),
    /// Validate a configuration exactly as serve would, and show the settings that hold
    #[command(after_help = epilogue::help("wsgate-check"))]
    Check(Flags),
    /// Make and check tokens, with the settings about tokens that serve would have
    #[command(subcommand)]
    Token(TokenCommand),
    /// Talk to a WebSocket server, at a terminal or in a script
    #[command(after_help = epilogue::help("wsgate-connect"))]
    Connect(Box<ConnectFlags>),
    /// Tell about the settings
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a script that completes arguments in a shell
    #[command(after_help = epilogue::help("wsgate-completions"))]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print a page of the manual
    #[command(after_help = epilogue::help("wsgate-man"))]
    Man {
        /// The command that it is about, in one word or in several [default: wsgate itself]
        #[arg(value_name = "COMMAND", conflicts_with = "directory")]
        command: Vec<String>,
        /// Write all pages into this directory instead
        #[arg(long, value_name = "DIRECTORY")]
        directory: Option<PathBuf>,
    },
}

/// What can be told about the settings.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every setting with its default, its unit and its meaning
    Doc,
}

/// The settings that were given as flags, as they were written.
#[derive(Clone, Default)]
pub struct Flags {
    config: Option<PathBuf>,
    /// A flag that may be repeated is here once, its values joined by commas.
    given: BTreeMap<Key, String>,
}

const CONFIG: &str = "config";

/// Behind the help of a setting that can change while the gateway runs.
const RELOADS: &str = " [reload]";

impl Flags {
    /// The file that `--config` names.
    pub(super) fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// What was written behind the flag of `key`.
    pub(super) fn find(&self, key: Key) -> Option<&str> {
        self.given.get(&key).map(String::as_str)
    }
}

// By hand instead of derived: `Key` already knows everything about a flag.
impl clap::Args for Flags {
    fn augment_args(command: clap::Command) -> clap::Command {
        let config = Arg::new(CONFIG)
            .long(CONFIG)
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("TOML file with settings, also given as WSGATE_CONFIG [default: none]");
        Key::all().iter().fold(command.arg(config), |command, key| {
            let about = key.about();
            let default = match about.default {
                DefaultValue::Text(text) => text,
                DefaultValue::Described(words) => words,
            };
            let reload = if key.needs_restart() { "" } else { RELOADS };
            let action = if key.is_list() { ArgAction::Append } else { ArgAction::Set };
            command.arg(
                Arg::new(about.name)
                    .long(about.name)
                    .value_name(about.placeholder)
                    .action(action)
                    .help(format!("{} [default: {default}]{reload}", about.help))
                    .help_heading(about.heading),
            )
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = Key::all().iter().filter_map(|key| {
            let values: Vec<&str> =
                matches.get_many::<String>(key.about().name)?.map(String::as_str).collect();
            Some((*key, values.join(",")))
        });
        Ok(Self { config: matches.get_one(CONFIG).cloned(), given: given.collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self
            .given
            .iter()
            .map(|(key, value)| (key.flag(), if key.is_secret() { "***" } else { value.as_str() }));
        f.debug_map().entry(&"--config", &self.config).entries(shown).finish()
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_of_serve_has_every_flag_with_its_default() {
        let mut command = Cli::command();
        let serve = command.find_subcommand_mut("serve").expect("serve is a subcommand");
        let help = serve.render_long_help().to_string();
        for key in Key::all() {
            assert!(help.contains(&format!("{} <", key.flag())), "{key} is missing:\n{help}");
        }
        assert!(help.contains("[default: 64KiB]"), "{help}");
    }

    #[test]
    fn debug_of_flags_hides_the_api_key() {
        let cli = Cli::try_parse_from(["wsgate", "serve", "--api-key", "sesame", "--shards", "2"])
            .expect("these are flags of serve");
        let shown = format!("{cli:?}");
        assert!(!shown.contains("sesame"), "{shown}");
        assert!(shown.contains(r#""--shards": "2""#), "{shown}");
    }
}
