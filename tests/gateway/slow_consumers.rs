//! A client that reads slowly, or never, harms itself at most. What the slow-consumer policies do is
//! in `policies_under_load.rs`.

use std::time::Instant;

use crate::support::client::connect_many;
use crate::support::gateway::Gateway;
use crate::support::raw::{BINARY, CONTINUATION, PING, PONG, encode, encode_with};

const MESSAGE_BYTES: usize = 4_096;

const MIB: f64 = 1024.0 * 1024.0;

fn message(number: usize) -> Vec<u8> {
    let mut payload = vec![b'.'; MESSAGE_BYTES];
    payload[..8].copy_from_slice(&(number as u64).to_be_bytes());
    payload
}

fn number_of(payload: &[u8]) -> usize {
    let (number, padding) = payload.split_first_chunk().expect("eight bytes");
    assert!(padding.iter().all(|byte| *byte == b'.') && payload.len() == MESSAGE_BYTES);
    u64::from_be_bytes(*number) as usize
}

async fn resident_bytes(gateway: &Gateway) -> f64 {
    gateway.metrics().await.sum("process_resident_memory_bytes", &[])
}

#[tokio::test]
async fn echo_client_that_never_reads_is_not_read_and_harms_nobody() {
    const DEAF: usize = 8;
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let frame = encode(BINARY, &[b'x'; 60_000]);
    let mut others = connect_many(gateway.listen, "/echo", 4).await;
    let before = resident_bytes(&gateway).await;
    let mut deaf = Vec::new();
    for _ in 0..DEAF {
        let mut client = gateway.open_stalled("/echo").await;
        // A gateway that goes on reading would have to hold the answers somewhere.
        let sent = client.send_until_full(&frame, 64 << 20).await;
        deaf.push((client, sent));
        for other in &mut others {
            other.send_text("still quick").await;
            assert_eq!(other.read_text().await, "still quick");
        }
    }
    let grown = resident_bytes(&gateway).await - before;
    // A queue of at most 1 MiB for each, and the rest for what an allocator keeps.
    assert!(grown < DEAF as f64 * MIB + 16.0 * MIB, "{} MiB", grown / MIB);
    let queued = gateway.metrics().await.sum("wsgate_outbound_queue_bytes", &[]);
    assert!(queued <= DEAF as f64 * MIB, "{queued}");
    assert!(queued > 0.0, "nobody was ever slow, so this test says nothing");

    // Whoever reads late still gets every answer.
    let (late, sent) = &mut deaf[0];
    for _ in 0..*sent / frame.len() {
        assert_eq!(late.read_message(BINARY).await.len(), 60_000);
    }
    late.send(&frame[*sent % frame.len()..]).await;
    assert_eq!(late.read_message(BINARY).await.len(), 60_000);

    drop(deaf);
    gateway.until_metric("wsgate_connections", &[], 4.0).await;
    gateway.until_metric("wsgate_outbound_queue_bytes", &[], 0.0).await;
}

#[tokio::test]
async fn pings_of_a_client_that_does_not_read_cannot_fill_its_queue() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let before = resident_bytes(&gateway).await;
    let mut client = gateway.open_stalled("/echo").await;
    let pings = encode(PING, &[b'x'; 125]).repeat(500);
    // Only the latest Ping needs an answer, so it may go on reading. What it holds does not grow.
    let mut sent = 0;
    while sent < 16 << 20 {
        client.send(&pings).await;
        sent += pings.len();
    }
    let received = || async { gateway.metrics().await.sum("wsgate_received_bytes_total", &[]) };
    crate::support::until("all Pings to be read", async || {
        (received().await >= sent as f64).then_some(())
    })
    .await;
    assert!(resident_bytes(&gateway).await - before < 8.0 * MIB);
    let mut other = gateway.connect("/echo").await;
    other.send_text("still quick").await;
    assert_eq!(other.read_text().await, "still quick");
}

#[tokio::test]
async fn pong_goes_out_before_the_messages_that_wait() {
    let gateway = Gateway::start(&["--shards", "1", "--outbound-queue-bytes", "64MiB"]).await;
    let mut stalled = gateway.open_stalled("/channels/news").await;
    let mut publisher = gateway.connect("/channels/news?own=false").await;
    let mut published = 0;
    let queued_bytes =
        async || gateway.metrics().await.sum("wsgate_outbound_queue_bytes", &[]) as usize;
    while queued_bytes().await < MIB as usize {
        for _ in 0..100 {
            publisher.send_binary(&message(published)).await;
            published += 1;
        }
        gateway.until_metric("wsgate_deliveries_total", &[], published as f64).await;
    }
    let received = gateway.metrics().await.sum("wsgate_received_bytes_total", &[]);
    let ping = encode(PING, b"are you there?");
    stalled.send(&ping).await;
    let expected = received + ping.len() as f64;
    gateway.until_metric("wsgate_received_bytes_total", &[], expected).await;
    // The kernel may have taken some more until the Ping came.
    let queued = queued_bytes().await;

    let (mut heard, mut bytes_from_pong) = (0, None);
    while heard < published {
        let frame = stalled.read_frame().await;
        if frame.opcode == PONG {
            assert_eq!(frame.payload, b"are you there?");
            bytes_from_pong = Some(frame.bytes);
            continue;
        }
        assert_eq!(number_of(&frame.payload), heard);
        heard += 1;
        bytes_from_pong = bytes_from_pong.map(|bytes| bytes + frame.bytes);
    }
    // The one frame of which a part was written cannot be interrupted.
    let bytes = bytes_from_pong.expect("a Pong") + MESSAGE_BYTES + 4;
    assert!(bytes >= queued, "{bytes} of {queued}");
}

#[tokio::test]
async fn ping_is_answered_while_a_large_message_is_still_arriving() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let mut client = gateway.open_raw("/echo").await;
    client.send(&encode_with(BINARY, &[b'x'; 30_000])).await;
    client.send_frame(PING, b"first").await;
    assert_eq!(client.read_message(PONG).await, b"first");
    let middle = encode_with(CONTINUATION, &[b'x'; 30_000]);
    client.send(&middle[..10_000]).await;
    client.send(&[&middle[10_000..], &encode(PING, b"second")].concat()).await;
    assert_eq!(client.read_message(PONG).await, b"second");
    client.send_frame(CONTINUATION, &[b'x'; 5_000]).await;
    assert_eq!(client.read_message(BINARY).await, [b'x'; 65_000]);
}

#[tokio::test]
async fn subscriber_that_does_not_read_does_not_slow_the_others() {
    let gateway = Gateway::start(&["--shards", "1", "--slow-consumer", "drop-newest"]).await;
    let mut stalled = Vec::new();
    for _ in 0..10 {
        stalled.push(gateway.open_stalled("/channels/news").await);
    }
    let mut client = gateway.connect("/channels/news").await;
    let before = resident_bytes(&gateway).await;
    let start = Instant::now();
    for number in 0..1_000 {
        client.send_binary(&message(number)).await;
        assert_eq!(number_of(&client.read_binary().await), number);
    }
    assert!(start.elapsed() < crate::support::PATIENCE / 2, "{:?}", start.elapsed());
    let grown = resident_bytes(&gateway).await - before;
    assert!(grown < 10.0 * MIB + 16.0 * MIB, "{} MiB", grown / MIB);
    let queued = gateway.metrics().await.sum("wsgate_outbound_queue_bytes", &[]);
    assert!(queued <= 10.0 * MIB, "{queued}");
    drop(stalled);
}
