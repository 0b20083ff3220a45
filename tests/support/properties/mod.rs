//! What must hold for any bytes whatever: written once, for the fuzz targets under `fuzz/` and for
//! `tests/fuzz_corpus.rs`.
//!
//! Each takes the bytes that a fuzzer made up and panics when the property does not hold.
//!
//! - [`decoder()`]: bytes mean the same in whichever pieces they arrive, and the same to tungstenite.
//! - [`assembly()`]: frames make the messages that a model of RFC 6455 section 5.4 makes of them.
//! - [`handshake()`]: a request is refused for a rule that it breaks, and for no other reason.
//! - [`extensions()`]: an answer is one that RFC 7692 allows for the first offer that can be met.
//! - [`inflate()`]: a payload becomes what miniz_oxide makes of it, within the limit, or is refused.
//! - [`deflate()`]: a message that is deflated and inflated is itself, whoever does the one or the other.
//! - [`channel_path()`]: a URL is refused or understood, and understood the same when said again.
//! - [`api_body()`]: the body of a call is refused or understood, as another reading of it says.
//! - [`token()`]: no token is believed but a signed one, and that for what its JSON says.
//! - [`proxy_protocol()`]: a PROXY header means the same in pieces, and what the specification says.
//! - [`outbound_queue()`]: what leaves is whole frames in order, as a plain list of frames says.
//! - [`hub()`]: who is subscribed is who a plain list of subscriptions says.
//!
//! What they share is in `input` (choices out of bytes), `frames` (what the decoder is fed and says)
//! and `reference` (what tungstenite says).

#![allow(dead_code, reason = "each user needs a part of this")]
#![allow(unreachable_pub, reason = "the fuzz package shows this to its targets")]

mod api_body;
mod assembly;
mod channel_path;
mod decoder;
mod deflate;
mod extensions;
mod frames;
mod handshake;
mod hub;
mod inflate;
mod input;
mod outbound_queue;
mod proxy_protocol;
mod reference;
mod token;

pub use api_body::api_body;
pub use assembly::assembly;
pub use channel_path::channel_path;
pub use decoder::decoder;
pub use deflate::deflate;
pub use extensions::extensions;
pub use handshake::handshake;
pub use hub::hub;
pub use inflate::inflate;
pub use outbound_queue::outbound_queue;
pub use proxy_protocol::proxy_protocol;
pub use token::token;
