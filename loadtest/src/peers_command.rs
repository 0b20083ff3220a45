//! `loadtest peers`.

use crate::cli::Failure;
use crate::peers::{self, Peer};

/// The arguments of `loadtest peers`.
#[derive(Debug, clap::Args)]
pub(crate) struct Peers {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Which servers there are, what they can, and how those come that are not here
    List,
    /// Get the servers that are not here, from crates.io, npm and Debian; all of them without names
    Install {
        /// Which
        #[arg(value_name = "NAME")]
        peers: Vec<Peer>,
    },
}

impl Peers {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        match &self.command {
            Command::List => {
                let yes = |can| if can { "yes" } else { "-" };
                println!(
                    "{:<18} {:<22} {:<5} {:<8} {:<6} remedy",
                    "name", "version", "echo", "channels", "pings"
                );
                for one in peers::list() {
                    println!(
                        "{:<18} {:<22} {:<5} {:<8} {:<6} {}",
                        one.peer.name(),
                        one.version.as_deref().unwrap_or("-"),
                        yes(one.can_echo),
                        yes(one.can_fan_out),
                        yes(one.can_ping),
                        one.remedy.as_deref().unwrap_or("installed"),
                    );
                }
                Ok(())
            }
            Command::Install { peers } => {
                peers::install(peers).map_err(|error| Failure::Run(error.to_string()))
            }
        }
    }
}
