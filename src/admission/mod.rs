//! Who is at the other end, and may it come in now? Bytes of a header, addresses and instants go in;
//! an address, a yes or a "not now" comes out. No socket and no clock.
//!
//! - [`proxies`]: which peers are believed when they say whom they speak for.
//! - [`proxy_protocol`]: what they say before the first byte of the client (PROXY v1 and v2).
//! - [`forwarded`]: what they say in the client's request (`X-Forwarded-For`, `Forwarded`).
//! - [`rate`]: so many a second, as a token bucket.
//! - [`addresses`]: how many connections and handshakes each address has.
//! - [`age`]: when a connection has lasted long enough.

pub mod addresses;
pub mod age;
pub mod forwarded;
pub mod proxies;
pub mod proxy_protocol;
pub mod rate;
