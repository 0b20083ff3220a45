//! `loadtest`: load tests for WebSocket servers.

fn main() {}
