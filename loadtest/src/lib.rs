//! Load tests for WebSocket servers, with clients of its own: it shares no code with the gateway.
//!
//! - [`report`]: how is a result said?
//! - [`floor`]: the server that does only what the kernel makes every server do.
//! - [`peers`]: how are the servers started that a gateway is compared with?

pub mod floor;
pub mod peers;
pub mod report;
