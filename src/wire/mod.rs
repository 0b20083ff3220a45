//! What do these bytes mean, by RFC 6455 and RFC 7692? Bytes in, frames out, and back.
//!
//! Nothing here reads a socket, a clock or a random source; the caller passes in what it needs.
//!
//! - [`header`]: the frame header, where most protocol errors are found.
//! - [`decoder`]: client frames to messages; unmasks and re-frames in place.
//! - [`frame`]: server frames: headers, whole frames, and walking over encoded ones.
//! - [`utf8`]: UTF-8 over pieces, failing at the first byte that cannot be right.
//! - [`extensions`], [`deflate`]: the negotiation of permessage-deflate (RFC 7692), and the deflating.
//! - [`close`]: close codes and the payload of a Close frame.
//! - [`handshake`]: the rules of the opening handshake, over parsed HTTP headers.

pub mod close;
pub mod decoder;
pub mod deflate;
pub mod extensions;
pub mod frame;
pub mod handshake;
pub mod header;
pub mod utf8;
