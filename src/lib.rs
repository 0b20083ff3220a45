//! A multi-core WebSocket gateway. These are its rooms, lowest first; `tests/layering.rs` keeps the
//! arrows between them pointing one way.
//!
//! | module         | question it answers                                           | pure |
//! |----------------|---------------------------------------------------------------|------|
//! | [`wire`]       | what do these bytes mean, by RFC 6455?                         | yes  |
//! | [`pubsub`]     | what do we call the things we route?                           | yes  |
//! | [`connection`] | what does this connection do next?                             | yes  |
//! | [`protocol`]   | what does a request or a message ask for?                      | yes  |
//! | [`hub`]        | who on this shard gets it?                                     | yes  |
//! | [`auth`]       | who is this and what may it do?                                | yes  |
//! | [`telemetry`]  | what happened, in numbers and in words?                        | no   |
//! | [`broker`]     | how does a publication reach the other shards?                 | no   |
//! | [`shard`]      | how do bytes and messages get there, on one core?              | no   |
//! | [`api`]        | what may a backend or an operator ask over HTTP?               | no   |
//! | [`server`]     | how do listeners, threads, signals and the drain fit together? | no   |
//! | [`config`]     | what did the operator ask for?                                 | no   |

pub mod api;
#[cfg_attr(not(test), deny(clippy::disallowed_methods))]
pub mod auth;
pub mod broker;
pub mod config;
#[cfg_attr(not(test), deny(clippy::disallowed_methods))]
pub mod connection;
#[cfg_attr(not(test), deny(clippy::disallowed_methods))]
pub mod hub;
#[cfg_attr(not(test), deny(clippy::disallowed_methods))]
pub mod protocol;
#[cfg_attr(not(test), deny(clippy::disallowed_methods))]
pub mod pubsub;
pub mod server;
pub mod shard;
pub mod telemetry;
#[cfg_attr(not(test), deny(clippy::disallowed_methods))]
pub mod wire;
