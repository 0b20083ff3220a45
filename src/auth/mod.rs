//! Who is this, and what may it do? No socket, no clock: headers, tokens and the time come in,
//! verdicts go out.
//!
//! - [`origin`]: which web pages may open a connection (RFC 6455 section 10.2).
//! - [`access`]: who is let in: the verdict on one opening handshake.
//! - [`bearer`]: where a request has its token.
//! - [`token`]: what a token says, and whether it is to be believed (RFC 7515 and 7519).
//! - [`keys`]: what its signature is checked with: a secret, PEM, JWKS (RFC 7517).
//! - [`identity`]: who is connected, and the grants without which nothing is subscribed or published.
//! - [`pattern`]: which channels a permission is about.
//! - [`signer`]: the other side, for `wsgate token` and tests: makes tokens.

pub mod access;
pub mod bearer;
pub mod identity;
pub mod keys;
pub mod origin;
pub mod pattern;
pub mod signer;
pub mod token;
