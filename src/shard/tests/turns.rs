//! How much of one client's a shard does before it is the others' turn.

use tokio::io::AsyncWriteExt;

use super::flush::{Still, run};
use super::*;
use crate::telemetry::counters::TEXT;

const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";

/// Has a client send `count` messages of so many bytes at once. Returns how many of them are answered in
/// one turn at most.
async fn most_in_a_turn(still: &Still, headers: &str, count: u64, message_bytes: u8) -> u64 {
    let socket = still.begin_with_buffers(1 << 20).await;
    let mut peer = still.upgrade_with(socket, "/echo", headers).await;
    let mut message = vec![0x81, 0x80 | 126, 0, message_bytes, 0, 0, 0, 0];
    message.extend(vec![b'.'; message_bytes.into()]);
    peer.socket.write_all(&message.repeat(count as usize)).await.unwrap();
    let received = &still.shard.counters.messages_received[TEXT];
    let (start, mut before, mut most) = (received.value(), received.value(), 0);
    while before - start < count {
        tokio::task::yield_now().await;
        most = most.max(received.value() - before);
        before = received.value();
    }
    most
}

#[test]
fn echoes_that_are_deflated_are_far_fewer_in_a_turn_than_those_that_are_not() {
    run(async || {
        for mode in [CompressionMode::Shared, CompressionMode::Dedicated] {
            let still = Still::new(|settings| {
                settings.compression.mode = mode;
                settings.compression.min_bytes = 200;
            })
            .await;
            let plain = most_in_a_turn(&still, "", 240, 200).await;
            assert!(
                plain > 100,
                "{plain}: a hundred of them take less time than two of those below"
            );
            let deflated = most_in_a_turn(&still, OFFER, 240, 200).await;
            assert!((1..=40).contains(&deflated), "{deflated} in one turn, {mode:?}");
        }
    });
}
