//! Load tests for WebSocket servers, with clients of its own: it shares no code with the gateway.
//!
//! - [`report`]: how is a result said?
//! - [`floor`]: the server that does only what the kernel makes every server do.
//! - [`peers`]: how are the servers started that a gateway is compared with?

pub mod cli;
mod client;
mod compare;
mod engine;
pub mod floor;
pub mod peers;
mod peers_command;
pub mod report;
mod scenario;
mod server_process;
mod suite;
pub mod target;
