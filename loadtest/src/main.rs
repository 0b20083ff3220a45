//! `loadtest`: load tests for WebSocket servers.

use std::process::ExitCode;

/// Clients come and go by tens of thousands.
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    loadtest::cli::main()
}
