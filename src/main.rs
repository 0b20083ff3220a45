//! The `wsgate` binary: arguments in, exit code out. 0 is success, 1 a failure while running, 2 a
//! mistake in the arguments or in the configuration.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Parser as _;
use wsgate::config::{
    self, Cli, Command, Config, ConfigCommand, ConnectFlags, Flags, TOKEN_VARIABLE, TokenCommand,
    words,
};
use wsgate::{client, server, telemetry, tool};

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The operator erred. clap exits with the same code when the arguments are wrong.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(flags) => serve(&flags),
        Command::Check(flags) => check(&flags),
        Command::Token(command) => token(&command),
        Command::Connect(flags) => connect(*flags),
        Command::Config(ConfigCommand::Doc) => print(words::settings().as_bytes()),
        Command::Completions { shell } => print(&words::completions(shell)),
        Command::Man { directory: Some(directory), .. } => {
            words::write_manuals(&directory).map_err(failed)
        }
        Command::Man { command, directory: None } => manual(&command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, error)) => {
            eprintln!("wsgate: {}", in_words(&*error));
            code
        }
    }
}

/// What to exit with, and what to say.
type Failure = (ExitCode, Box<dyn Error>);

fn serve(flags: &Flags) -> Result<(), Failure> {
    let config = load(flags)?;
    let log = telemetry::logging::install(config.log_format, &config.log_level).map_err(failed)?;
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let (flags, settings, mut running) = (flags.clone(), config.settings.clone(), config);
    let reload = move || {
        let config::Reloaded { config, taken, not_taken } = running.reload(&flags)?;
        log.set_filter(&config.log_level);
        let (settings, warnings) = (config.settings.clone(), config.warnings());
        running = config;
        Ok(server::reload::Reloaded { settings, taken, not_taken, warnings })
    };
    server::serve(settings, Box::new(reload)).map_err(failed)
}

fn check(flags: &Flags) -> Result<(), Failure> {
    let config = load(flags)?;
    for warning in config.warnings() {
        eprintln!("wsgate: warning: {warning}");
    }
    print(format!("{}ok\n", config.to_toml()).as_bytes())
}

fn connect(flags: ConnectFlags) -> Result<(), Failure> {
    let options = flags
        .options(std::env::var_os(TOKEN_VARIABLE))
        .map_err(|error| (USAGE.into(), error.into()))?;
    client::connect(&options).map_err(failed)
}

fn manual(command: &[String]) -> Result<(), Failure> {
    print(&words::manual(command).map_err(|error| (USAGE.into(), error.into()))?)
}

fn print(text: &[u8]) -> Result<(), Failure> {
    // Not `println!`, which panics when a pager is closed early.
    std::io::stdout().write_all(text).map_err(failed)
}

fn token(command: &TokenCommand) -> Result<(), Failure> {
    let config = load(command.flags())?;
    let answer = tool::token::run(command, &config, SystemTime::now()).map_err(|error| {
        let code = if error.is_usage() { USAGE.into() } else { ExitCode::FAILURE };
        (code, error.into())
    })?;
    writeln!(std::io::stdout(), "{answer}").map_err(failed)
}

fn load(flags: &Flags) -> Result<Config, Failure> {
    Config::load(flags, std::env::vars_os()).map_err(|errors| (USAGE.into(), errors.into()))
}

fn failed(error: impl Error + 'static) -> Failure {
    (ExitCode::FAILURE, error.into())
}

/// `error` and its causes as one message. A cause that the message above it already tells is not
/// told again.
fn in_words(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    for cause in causes.map(ToString::to_string) {
        if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    message
}
