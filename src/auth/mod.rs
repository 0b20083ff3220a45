//! Who is this, and what may it do? No socket, no clock: headers come in, verdicts go out.
//!
//! - [`origin`]: which web pages may open a connection (RFC 6455 section 10.2).

pub mod origin;
