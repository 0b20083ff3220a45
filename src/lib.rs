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
//! | [`admission`]  | who is at the other end, and may it come in now?               | yes  |
//! | [`console`]    | what does somebody see who opens the gateway in a browser?     | yes  |
//! | [`telemetry`]  | what happened, in numbers and in words?                        | no   |
//! | [`broker`]     | how does a publication reach the other shards?                 | no   |
//! | [`shard`]      | how do bytes and messages get there, on one core?              | no   |
//! | [`api`]        | what may a backend or an operator ask over HTTP?               | no   |
//! | [`client`]     | what would a client see? (`wsgate connect`)                    | no   |
//! | [`server`]     | how do listeners, threads, signals and the drain fit together? | no   |
//! | [`config`]     | what did the operator ask for?                                 | no   |
//! | [`tool`]       | what does an operator do beside running the gateway?           | no   |
//!
//! The last four are not there where the fuzz targets are built (`cfg(fuzzing)`): no target comes to them, and
//! they are much of what is compiled.

#[cfg_attr(not(test), deny(clippy::disallowed_methods))]
pub mod admission;
pub mod api;
#[cfg_attr(not(test), deny(clippy::disallowed_methods))]
pub mod auth;
pub mod broker;
#[cfg(not(fuzzing))]
pub mod client;
#[cfg(not(fuzzing))]
pub mod config;
#[cfg_attr(not(test), deny(clippy::disallowed_methods))]
pub mod connection;
#[cfg_attr(not(test), deny(clippy::disallowed_methods))]
pub mod console;
#[cfg_attr(not(test), deny(clippy::disallowed_methods))]
pub mod hub;
#[cfg_attr(not(test), deny(clippy::disallowed_methods))]
pub mod protocol;
#[cfg_attr(not(test), deny(clippy::disallowed_methods))]
pub mod pubsub;
#[cfg(not(fuzzing))]
pub mod server;
pub mod shard;
pub mod telemetry;
#[cfg(not(fuzzing))]
pub mod tool;
#[cfg_attr(not(test), deny(clippy::disallowed_methods))]
pub mod wire;
