//! How much of one client's a shard does before it is the others' turn.

use flate2::{Compress, Compression as Level, FlushCompress};
use tokio::io::AsyncWriteExt;

use super::flush::{Still, run};
use super::*;
use crate::telemetry::counters::{BINARY, TEXT};

const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";

/// A message under the masking key of zeros.
fn masked(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[first_byte, 0x80 | 126], &length[..], &[0; 4], payload].concat()
}

/// Has a client send `message` to `/echo` so often, at once. Returns how many of them are taken in one turn
/// at most.
async fn most_in_a_turn(still: &Still, headers: &str, message: &[u8], count: usize) -> u64 {
    let socket = still.begin_with_buffers(1 << 20).await;
    let mut peer = still.upgrade_with(socket, "/echo", headers).await;
    peer.socket.write_all(&message.repeat(count)).await.unwrap();
    let received = &still.shard.counters.messages_received;
    let received = || received[TEXT].value() + received[BINARY].value();
    let (start, mut before, mut most) = (received(), received(), 0);
    while before - start < count as u64 {
        tokio::task::yield_now().await;
        most = most.max(received() - before);
        before = received();
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
            let message = masked(0x81, &[b'.'; 200]);
            let plain = most_in_a_turn(&still, "", &message, 240).await;
            assert!(
                plain > 100,
                "{plain}: a hundred of them take less time than two of those below"
            );
            let deflated = most_in_a_turn(&still, OFFER, &message, 240).await;
            assert!((1..=40).contains(&deflated), "{deflated} in one turn, {mode:?}");
        }
    });
}

/// Each final block has the inflater begin anew, and be shown what it had made before.
#[test]
fn messages_of_many_final_blocks_are_few_in_a_turn() {
    let mut payload = Vec::with_capacity(1_000);
    let mut compress = Compress::new(Level::best(), false);
    compress.compress_vec(&[b'.'; 33_000], &mut payload, FlushCompress::Sync).unwrap();
    payload.extend([0x03, 0x00].repeat(254));
    payload.push(0);
    let message = masked(0x82 | 0x40, &payload);
    run(async || {
        let still = Still::new(|_| {}).await;
        let most = most_in_a_turn(&still, OFFER, &message, 40).await;
        assert_eq!(most, 1);
    });
}
