//! What may a backend or an operator ask over HTTP? The shapes are those of Centrifugo's HTTP API, so
//! that its server SDKs work.
//!
//! - [`http`]: paths, methods, keys, bodies and statuses.
//! - [`gateway`]: what the answers are made from.
//! - [`request`]: what a method and a body ask for, without a gateway.
//! - [`methods`]: the API's methods, carried out.
//! - [`error`]: what can be wrong with a call, and how that is said.

pub mod error;
pub mod gateway;
pub mod http;
pub mod methods;
pub mod request;
