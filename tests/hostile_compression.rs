//! What a client could ask of an inflater: that much comes of little. Others are served meanwhile, and
//! nothing of it stays.

mod support;

use std::time::Duration;

use flate2::{Compress, Compression, FlushCompress};
use support::deflate::DeflateClient;
use support::raw::{BINARY, CONTINUATION, FIN, RSV1, encode_with};
use support::siege::Siege;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

const OFFER: &str = "permessage-deflate";

/// A client to which every answer goes plain.
const SMALLEST_WINDOW: &str = "permessage-deflate; server_max_window_bits=8";

const FLOODERS: usize = 5;

/// For how long one of them tries to be heard.
const PRESSURE: Duration = Duration::from_secs(3);

/// What one of them says.
const FLOOD_BYTES: usize = 256 * 1024;

/// 64 KiB of zeros, deflated.
fn bomb() -> Vec<u8> {
    let mut deflated = Vec::with_capacity(1_000);
    let mut compress = Compress::new(Compression::best(), false);
    compress.compress_vec(&[0; 65_536], &mut deflated, FlushCompress::Sync).expect("zeros");
    deflated.truncate(deflated.len() - 4);
    deflated
}

/// A message of empty final blocks.
fn final_blocks(count: usize) -> Vec<u8> {
    [&[0x03, 0x00].repeat(count)[..], &[0]].concat()
}

/// Messages one after the other, as many as a flooder says.
fn flood(payload: &[u8]) -> Vec<u8> {
    let message = encode_with(FIN | RSV1 | BINARY, payload);
    message.repeat(FLOOD_BYTES / message.len())
}

/// Has clients on `path`, in which `{}` is their number, say `flood` and read nothing, while others are
/// served. Returns the most that the gateway's memory grew by.
async fn besiege(path: &str, offer: &str, flood: Vec<u8>) -> usize {
    let siege = Siege::begin(&["--max-message-bytes", "64KiB"]).await;
    let toll = siege
        .withstand(async |siege| {
            let mut flooders = JoinSet::new();
            for number in 0..FLOODERS {
                let path = path.replace("{}", &number.to_string());
                let mut client = DeflateClient::connect(siege.gateway.listen, &path, offer).await;
                let flood = flood.clone();
                flooders.spawn(async move {
                    // The gateway stops reading, or lets go, or takes all of it.
                    _ = tokio::time::timeout(PRESSURE, client.raw.writer.write_all(&flood)).await;
                    client
                });
            }
            siege.until_others_are_served().await;
            for client in flooders.join_all().await {
                client.raw.reset();
            }
        })
        .await;
    toll.memory_bytes
}

#[tokio::test]
async fn echoes_of_bombs_are_bounded_by_the_queue_and_not_by_what_they_inflate_to() {
    // What is read at once inflates to a thousand times as much.
    let grown = besiege("/echo", SMALLEST_WINDOW, flood(&bomb())).await;
    assert!(grown < 24 << 20, "{grown} bytes");
}

#[tokio::test]
async fn publications_of_bombs_leave_others_their_turn_and_take_a_turns_memory() {
    let grown = besiege("/channels/bombs-{}?own=false", OFFER, flood(&bomb())).await;
    assert!(grown < 24 << 20, "{grown} bytes");
}

#[tokio::test]
async fn messages_of_final_blocks_leave_others_their_turn() {
    let grown = besiege("/echo", OFFER, flood(&final_blocks(200))).await;
    assert!(grown < 24 << 20, "{grown} bytes");
}

#[tokio::test]
async fn unfinished_deflated_message_takes_what_has_arrived_of_it() {
    let grown = besiege("/echo", OFFER, {
        // One message without an end, in fragments that hold nothing.
        let first = encode_with(RSV1 | BINARY, &bomb());
        let empty = encode_with(CONTINUATION, b"").repeat(50_000);
        [first, empty].concat()
    })
    .await;
    assert!(grown < 8 << 20, "{grown} bytes");
}
