//! What does a request or a message ask for, and how is an answer said to the client? No socket.
//!
//! - [`target`]: the path and query of a WebSocket URL.
//! - [`control`]: messages to the gateway itself.
//! - [`raw`]: endpoints without an envelope, for any WebSocket client.

pub mod control;
pub mod raw;
pub mod target;
