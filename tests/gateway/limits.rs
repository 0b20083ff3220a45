//! Everything has a bound: what happens when it is reached, and that nothing is left behind.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::support::admin::Requests;
use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::raw::{CLOSE, RawClient, TEXT, close_payload, request};

const REJECTED: &str = "wsgate_connections_rejected_total";

const MIB: f64 = 1024.0 * 1024.0;

async fn echo(client: &mut Client) {
    client.send_text("served").await;
    assert_eq!(client.read_text().await, "served");
}

/// The head of the answer to a handshake, whatever it is.
async fn answer_to_handshake(gateway: &Gateway) -> String {
    let mut client = RawClient::connect(gateway.listen).await;
    client.send(&request("/echo")).await;
    client.read_head().await
}

#[tokio::test]
async fn client_beyond_max_connections_gets_503_until_another_leaves() {
    let gateway = Gateway::start(&["--shards", "2", "--max-connections", "3"]).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(gateway.connect("/echo").await);
    }
    for refused in 1..=5 {
        let head = answer_to_handshake(&gateway).await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert!(head.contains("\r\nretry-after: "), "{head}");
        gateway.until_metric(REJECTED, &[("reason", "full")], f64::from(refused)).await;
    }
    let readiness = gateway.get("/readyz").await;
    assert_eq!(readiness.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(readiness.body, "full: 3 connections of at most 3\n");
    for client in &mut clients {
        echo(client).await;
    }

    clients.pop();
    crate::support::until("readyz to say that there is room", async || {
        (gateway.get("/readyz").await.status == StatusCode::OK).then_some(())
    })
    .await;
    echo(&mut gateway.connect("/echo").await).await;
}

#[tokio::test]
async fn clients_beyond_those_who_wait_for_a_503_are_closed_unanswered() {
    // As many as wait to be told that there is no room, on one shard.
    const WAITING: usize = 32;
    let gateway = Gateway::start(&["--shards", "1", "--max-connections", "1"]).await;
    let mut served = gateway.connect("/echo").await;
    let mut waiting = Vec::new();
    for _ in 0..WAITING {
        waiting.push(RawClient::connect(gateway.listen).await);
    }
    let accepted = WAITING as f64 + 1.0;
    gateway.until_metric("wsgate_connections_accepted_total", &[], accepted).await;
    for unanswered in 1..=8 {
        let mut client = RawClient::connect(gateway.listen).await;
        client.read_end().await;
        let overload = [("reason", "overload")];
        gateway.until_metric(REJECTED, &overload, f64::from(unanswered)).await;
    }
    for client in &mut waiting {
        client.send(&request("/echo")).await;
        let head = client.read_head().await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    }
    echo(&mut served).await;
}

#[tokio::test]
async fn handshake_that_takes_too_long_is_answered_with_408() {
    let gateway = Gateway::start(&["--shards", "1", "--handshake-timeout", "400ms"]).await;
    let request = request("/echo");
    for beginning in [&b""[..], &request[..1], &request[..request.len() - 1]] {
        let mut client = RawClient::connect(gateway.listen).await;
        client.send(beginning).await;
        let head = client.read_head().await;
        assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
        client.reader.read_rest().await;
    }
    // Nor does it help never to be silent.
    let mut client = RawClient::connect(gateway.listen).await;
    let mut writer = client.writer;
    let trickle = tokio::spawn(async move {
        let mut clock = tokio::time::interval(Duration::from_millis(20));
        for byte in request {
            clock.tick().await;
            if writer.write_all(&[byte]).await.is_err() {
                return;
            }
        }
    });
    let head = client.reader.read_head().await;
    assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
    trickle.await.expect("it ends one way or the other");
    gateway.until_metric(REJECTED, &[("reason", "timeout")], 4.0).await;
    assert_eq!(gateway.metrics().await.sum(REJECTED, &[]), 4.0);
    echo(&mut gateway.connect("/echo").await).await;
}

#[tokio::test]
async fn request_head_of_more_than_8_kib_is_answered_with_431() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let with_header_of = |bytes: usize| {
        let mut head = request("/echo");
        head.truncate(head.len() - 2);
        head.extend(b"X-Filler: ");
        head.resize(bytes - 4, b'x');
        head.extend(b"\r\n\r\n");
        head
    };
    let mut client = RawClient::connect(gateway.listen).await;
    client.send(&with_header_of(8_000)).await;
    let head = client.read_head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    for (index, bytes) in [8_400, 9_000, 20_000, 200_000].into_iter().enumerate() {
        let mut client = RawClient::connect(gateway.listen).await;
        client.send(&with_header_of(bytes)).await;
        let head = client.read_head().await;
        assert!(head.starts_with("HTTP/1.1 431 "), "{bytes}: {head}");
        let refused = index as f64 + 1.0;
        gateway.until_metric(REJECTED, &[("reason", "too_large")], refused).await;
    }
}

/// Opens a connection, has something echoed, and ends it in one of the ways in which clients do.
async fn come_and_go(address: std::net::SocketAddr, number: usize) {
    let path = match number % 3 {
        0 => "/echo".to_owned(),
        1 => "/channels/everyone".to_owned(),
        _ => format!("/channels/{number}"),
    };
    let mut client = RawClient::connect(address).await;
    client.upgrade(&path).await;
    client.send_frame(TEXT, b"hello").await;
    assert_eq!(client.read_frame().await.opcode, TEXT);
    match number % 4 {
        0 => {
            client.send_frame(CLOSE, &close_payload(1000, "")).await;
            while client.read_frame().await.opcode != CLOSE {}
        }
        1 => drop(client),
        _ => client.reset(),
    }
}

#[tokio::test]
async fn memory_and_descriptors_come_back_when_connections_have_come_and_gone() {
    const AT_A_TIME: usize = 250;
    let more = std::env::var("WSGATE_TEST_CONNECTIONS");
    let count = more.map_or(5_000, |count| count.parse().expect("a number of connections"));
    let gateway = Gateway::start(&["--shards", "2"]).await;
    let mut numbers = 0..;
    let mut wave = async |connections: usize| {
        let mut clients = JoinSet::new();
        for number in numbers.by_ref().take(connections) {
            clients.spawn(come_and_go(gateway.listen, number));
        }
        clients.join_all().await;
        gateway.until_metric("wsgate_connections", &[], 0.0).await;
    };
    // What is allocated once is allocated by then.
    for _ in 0..4 {
        wave(AT_A_TIME).await;
    }
    let before = gateway.metrics().await;
    // Without pages of the executable, of which more are needed as more of it is used.
    let memory_before = gateway.memory_bytes();
    for _ in 0..count / AT_A_TIME {
        wave(AT_A_TIME).await;
    }
    let after = gateway.metrics().await;
    let grown = |name: &str| after.sum(name, &[]) - before.sum(name, &[]);
    // The connection of a scrape may still be ending while the next one is answered.
    let descriptors = before.sum("process_open_fds", &[]);
    crate::support::until("the descriptors to be back", async || {
        let open = gateway.metrics().await.sum("process_open_fds", &[]);
        (open <= descriptors).then_some(())
    })
    .await;
    // The allocator gives back what is free a little later, when it is called again.
    crate::support::until("the memory to be back", async || {
        wave(AT_A_TIME).await;
        let grown_mib = gateway.memory_bytes().saturating_sub(memory_before) as f64 / MIB;
        println!("{count} connections leave {grown_mib:.1} MiB behind");
        (grown_mib < 4.0).then_some(())
    })
    .await;
    for name in ["subscriptions", "channels", "outbound_queue_bytes"] {
        gateway.until_metric(&format!("wsgate_{name}"), &[], 0.0).await;
    }
    let accepted = grown("wsgate_connections_accepted_total");
    assert_eq!(accepted, (count / AT_A_TIME * AT_A_TIME) as f64);
}

#[tokio::test]
async fn limit_of_open_files_bounds_the_connections_before_descriptors_run_out() {
    let flags = ["--shards", "1", "--max-connections", "1000"];
    let gateway = Gateway::start_with_open_files(256, &flags).await;
    assert!(gateway.log().contains("max_connections is lowered to 16,"), "{}", gateway.log());
    let mut clients = Vec::new();
    for _ in 0..16 {
        clients.push(gateway.connect("/echo").await);
    }
    for _ in 0..100 {
        let head = answer_to_handshake(&gateway).await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    }
    for client in &mut clients {
        echo(client).await;
    }
    clients.clear();
    gateway.until_metric("wsgate_connections", &[], 0.0).await;
    echo(&mut gateway.connect("/echo").await).await;
    assert!(!gateway.log().contains("cannot accept"), "{}", gateway.log());
}

#[tokio::test]
async fn gateway_without_a_descriptor_left_serves_on_and_accepts_again_when_some_are_free() {
    // So few that not even those who are told that there is no room get one each.
    let patience = ["--handshake-timeout", "60s"];
    let flags = [&["--shards", "1"][..], &patience].concat();
    let gateway = Gateway::start_with_open_files(40, &flags).await;
    let mut served = gateway.connect("/echo").await;
    let mut requests = gateway.requests().await;
    // Once it is answered it has its descriptor.
    ask_for_health(&mut requests).await;
    let before = requests.scrape().await;
    let mut waiting = Vec::new();
    for _ in 0..60 {
        waiting.push(RawClient::connect(gateway.listen).await);
    }
    gateway.until_logged("cannot accept connections for now").await;
    // Long enough for several attempts to accept.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(500) {
        echo(&mut served).await;
        ask_for_health(&mut requests).await;
    }
    let told = gateway.log().matches("cannot accept").count();
    assert_eq!(told, 1, "told once, not for each attempt");
    waiting.clear();
    gateway.until_logged("accepting again").await;
    drop(served);
    gateway.until_metric("wsgate_connections", &[], 0.0).await;
    crate::support::until("room for a client", async || {
        answer_to_handshake(&gateway).await.starts_with("HTTP/1.1 101 ").then_some(())
    })
    .await;
    gateway.until_back_at(&before, &mut requests).await;
}

async fn ask_for_health(requests: &mut Requests) {
    let answer = requests.ask(Method::GET, "/healthz", String::new()).await;
    assert_eq!(answer.body, "ok\n");
}
