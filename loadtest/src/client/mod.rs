//! The client's side of the protocols, without a socket.
//!
//! - [`frame`]: RFC 6455 frames.
//! - [`nats`]: NATS's protocol, which travels inside of frames.
//! - [`http`]: the opening handshake, and publishing by HTTP.
//! - [`stamp`]: what a measured message says about itself.

pub(crate) mod frame;
pub(crate) mod http;
pub(crate) mod nats;
pub(crate) mod stamp;
