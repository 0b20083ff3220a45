//! The gateway's binary, run and used as its users do. One program for all of it, since to build and to link
//! one for each file would take longer than to run them.
//!
//! - What it promises: [`transports`], [`fan_out`], [`several_channels`], [`compression`], [`closing`],
//!   [`metrics`].
//! - Who may come in, and do what: [`admission`], [`tls`], [`http2`], [`tokens`]; [`edge`] has all of these
//!   together.
//! - What is bounded: [`limits`], [`backpressure`], [`slow_consumers`], [`policies_under_load`].
//! - What it withstands: [`hostile_handshakes`], [`hostile_frames`], [`hostile_compression`],
//!   [`hostile_peers`], [`hostile_sockets`].
//! - What its operator does: [`cli`], [`reload`], [`drain`], [`handover`], [`systemd`].
//! - What people see: [`console`], [`connect`].
//! - What went wrong once: [`regression`].

#[path = "../support/mod.rs"]
mod support;

mod admission;
mod backpressure;
mod cli;
mod closing;
mod compression;
mod connect;
mod console;
mod drain;
mod edge;
mod fan_out;
mod handover;
mod hostile_compression;
mod hostile_frames;
mod hostile_handshakes;
mod hostile_peers;
mod hostile_sockets;
mod http2;
mod limits;
mod metrics;
mod policies_under_load;
mod regression;
mod reload;
mod several_channels;
mod slow_consumers;
mod systemd;
mod tls;
mod tokens;
mod transports;
