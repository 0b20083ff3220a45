//! The client's side of the protocols, without a socket.
//!
//! - [`frame`]: RFC 6455 frames.
//! - [`deflate`]: permessage-deflate (RFC 7692), offered and read.
//! - [`nats`]: NATS's protocol, which travels inside of frames.
//! - [`tls`]: TLS sessions, for `wss://`.
//! - [`http`]: the opening handshake, and publishing by HTTP.
//! - [`payload`]: what messages are made of.
//! - [`stamp`]: what a measured message says about itself.

pub(crate) mod deflate;
pub(crate) mod frame;
pub(crate) mod http;
pub(crate) mod nats;
pub(crate) mod payload;
pub(crate) mod stamp;
pub(crate) mod tls;
