//! A drain of many connections keeps its pace. A program of its own, since cargo runs one after the
//! other: no other test makes the clock of this one uneven.

#[allow(dead_code, reason = "tests/gateway uses all of it")]
mod support;

use std::time::Instant;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use support::gateway::Gateway;
use support::raw::{CLOSE, close_payload, encode, request};
use support::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// A client of whom only the end counts. Returns when its Close came.
async fn stay(mut client: TcpStream) -> Instant {
    let mut close = [0; 4];
    client.read_exact(&mut close).await.expect("a Close before the end");
    let closed_at = Instant::now();
    assert_eq!((close[0] & 0xf, &close[2..]), (CLOSE, &close_payload(1001, "")[..]));
    client.write_all(&encode(CLOSE, &close[2..])).await.expect("the gateway reads the answer");
    client.read_to_end(&mut Vec::new()).await.expect("an end without a reset");
    closed_at
}

/// An open connection with as little around it as can be.
async fn open_small(gateway: std::net::SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(gateway).await.expect("the gateway listens");
    client.write_all(&request("/echo")).await.expect("the gateway reads");
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        assert!(client.read_buf(&mut head).await.expect("an answer") > 0, "the end instead of it");
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    client
}

const CLIENTS: usize = 10_000;
const SECONDS: usize = 10;

const FLAGS: [&str; 6] = ["--shards", "2", "--drain-grace", "0s", "--drain-duration", "10s"];

/// Drains a gateway with [`FLAGS`] that has [`CLIENTS`] connections. Returns after how many seconds each of
/// them got its Close, in order.
async fn drain(start: impl Future<Output = Gateway>) -> Vec<f64> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    raised.expect("a process may use all that it is allowed");
    assert!(maximum.is_none_or(|most| most > 11_000), "this test needs `ulimit -Hn` above 11,000");

    let mut gateway = start.await;
    let mut clients = Vec::with_capacity(CLIENTS);
    while clients.len() < CLIENTS {
        let mut opening = JoinSet::new();
        for _ in 0..50 {
            opening.spawn(within("a handshake", open_small(gateway.listen)));
        }
        clients.extend(opening.join_all().await);
    }
    let mut closing = JoinSet::new();
    for client in clients {
        closing.spawn(stay(client));
    }
    gateway.until_metric("wsgate_connections", &[], CLIENTS as f64).await;
    let start = Instant::now();
    gateway.signal(Signal::TERM);
    let closed_at = within("every Close", closing.join_all()).await;
    let mut after: Vec<f64> =
        closed_at.into_iter().map(|closed_at| (closed_at - start).as_secs_f64()).collect();
    after.sort_by(f64::total_cmp);
    assert_eq!(after.len(), CLIENTS);
    assert_eq!(gateway.exit().await.code(), Some(0));
    after
}

fn by_second(after: &[f64]) -> [usize; SECONDS] {
    let mut by_second = [0; SECONDS];
    for after in after {
        // The last ones are due at the very end of the last second.
        by_second[(*after as usize).min(SECONDS - 1)] += 1;
    }
    by_second
}

#[tokio::test]
async fn drain_of_10_000_connections_over_10_s_closes_each_with_1001_and_none_before_its_time() {
    let after = drain(Gateway::start(&FLAGS)).await;
    println!("closed in each second: {:?}", by_second(&after));
    for (index, after) in after.iter().enumerate() {
        // Each shard has half of them, and closes its first at once.
        let due = (SECONDS * index.saturating_sub(2)) as f64 / CLIENTS as f64;
        // A busy machine makes some late.
        assert!((due..due + 5.0).contains(after), "{index}: {after}, due at {due}");
    }
}

#[tokio::test]
#[ignore = "needs a machine that is not busy with other things; scripts/test pace runs it"]
async fn drain_of_10_000_connections_over_10_s_closes_1_000_in_each_second() {
    let binary = std::env::var("GATEWAY_BINARY").expect("GATEWAY_BINARY names a release build");
    let by_second = by_second(&drain(Gateway::start_binary(&binary, &FLAGS)).await);
    println!("closed in each second: {by_second:?}");
    let even = CLIENTS / SECONDS;
    let is_even = |closed: &usize| (even * 9 / 10..=even * 11 / 10).contains(closed);
    assert!(by_second.iter().all(is_even), "{by_second:?}");
}
