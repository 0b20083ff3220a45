//! Thousands of clients on a few threads, each with its own epoll loop.
//!
//! - [`plan`]: what the clients are and what they do.
//! - [`fleet`]: starts the threads, leads them through the phases, collects what they measure.
//! - [`worker`]: one thread's loop.
//! - [`connection`]: one client.
//! - [`sample`]: what the threads tell.

pub(crate) mod connection;
pub(crate) mod fleet;
pub(crate) mod plan;
pub(crate) mod sample;
pub(crate) mod worker;
