//! The `wsgate` binary: arguments in, exit code out. 0 is success, 1 a failure while running, 2 a
//! mistake in the arguments or in the configuration.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use wsgate::config::{Cli, Command, Config, Flags};
use wsgate::{server, telemetry};

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The operator erred. clap exits with the same code when the arguments are wrong.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(flags) => serve(&flags),
        Command::Check(flags) => check(&flags),
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
    telemetry::logging::install(config.log_format, &config.log_level).map_err(failed)?;
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    server::serve(config.settings).map_err(failed)
}

fn check(flags: &Flags) -> Result<(), Failure> {
    let config = load(flags)?;
    for warning in config.warnings() {
        eprintln!("wsgate: warning: {warning}");
    }
    // Not `println!`, which panics when a pager is closed early.
    writeln!(std::io::stdout(), "{}ok", config.to_toml()).map_err(failed)
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
