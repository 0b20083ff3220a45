//! What a client could ask of an inflater: that much comes of little. Others are served meanwhile, and
//! nothing of it stays.

use std::time::Duration;

use flate2::{Compress, Compression, FlushCompress};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::support::deflate::DeflateClient;
use crate::support::raw::{BINARY, CONTINUATION, FIN, RSV1, encode_with};
use crate::support::siege::{SHARDS, Siege};

const OFFER: &str = "permessage-deflate; client_max_window_bits";

/// A client to which every answer goes plain.
const SMALLEST_WINDOW: &str =
    "permessage-deflate; client_max_window_bits; server_max_window_bits=8";

/// Without and with context takeover.
const MODES: [&str; 2] = ["shared", "dedicated"];

const FLOODERS: usize = 5;

/// For how long one of them tries to be heard.
const PRESSURE: Duration = Duration::from_secs(2);

/// What one of them says. Its kernel has room for all of it, so a gateway that is slow has it to read even
/// when the client is gone.
const FLOOD_BYTES: usize = 64 * 1024;

const MIB: usize = 1 << 20;

/// Of each lane between the shards. By default it is 16 times as much, which a shard that waits for a
/// processor lets fill.
const MAILBOX_BYTES: usize = MIB;

/// What one turn holds at most: its bound, and what the read that reached it has inflated, which is 256 KiB
/// and one message.
const TURN_BYTES: usize = MIB + 256 * 1024 + 64 * 1024;

/// What publications may take, by the table of bounds in docs/ARCHITECTURE.md. A shard has a lane of
/// publications and one of deliveries, for each of them as much as one turn that waits for room in it, a
/// turn that is collected and one that is flushed. The allocator rounds 64 KiB and a header up by a
/// quarter. What waits unread, and buffers, are less than the rest.
const PUBLISHED_BYTES: usize = SHARDS * (2 * MAILBOX_BYTES + 4 * TURN_BYTES) * 5 / 4 + 2 * MIB;

/// So many zeros, deflated.
fn bomb(bytes: usize) -> Vec<u8> {
    let mut deflated = Vec::with_capacity(1_000 + bytes / 500);
    let mut compress = Compress::new(Compression::best(), false);
    compress.compress_vec(&vec![0; bytes], &mut deflated, FlushCompress::Sync).expect("zeros");
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
/// served. The gateway's memory may grow by `most_bytes`, however it deflates.
async fn besiege(path: &str, offer: &str, flood: Vec<u8>, most_bytes: usize) {
    for mode in MODES {
        let mailbox = MAILBOX_BYTES.to_string();
        let bounds = ["--max-message-bytes", "64KiB", "--mailbox-bytes", &mailbox];
        let grown = besiege_in(mode, &bounds, path, offer, &flood).await;
        assert!(grown < most_bytes, "{mode}: {grown} bytes");
    }
}

/// Returns the most that the gateway's memory grew by.
async fn besiege_in(mode: &str, flags: &[&str], path: &str, offer: &str, flood: &[u8]) -> usize {
    let siege = Siege::begin(&[flags, &["--compression", mode]].concat()).await;
    let toll = siege
        .withstand(async |siege| {
            let mut flooders = JoinSet::new();
            for number in 0..FLOODERS {
                let path = path.replace("{}", &number.to_string());
                let mut client = DeflateClient::connect(siege.gateway.listen, &path, offer).await;
                assert_eq!(client.has("client_no_context_takeover"), mode == "shared");
                let flood = flood.to_vec();
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
    besiege("/echo", SMALLEST_WINDOW, flood(&bomb(65_536)), 24 * MIB).await;
}

#[tokio::test]
async fn publications_of_bombs_leave_others_their_turn_and_take_what_turns_and_lanes_may() {
    besiege("/channels/bombs-{}?own=false", OFFER, flood(&bomb(65_536)), PUBLISHED_BYTES).await;
}

#[tokio::test]
async fn messages_of_final_blocks_leave_others_their_turn() {
    besiege("/echo", OFFER, flood(&final_blocks(200)), 24 * MIB).await;
}

#[tokio::test]
async fn unfinished_deflated_message_takes_what_has_arrived_of_it() {
    // One message without an end, in fragments that hold nothing. Inflated it would be 20 MiB of all.
    let first = encode_with(RSV1 | BINARY, &bomb(4 * MIB));
    let empty = encode_with(CONTINUATION, b"").repeat(50_000);
    let flood = [first, empty].concat();
    let queue = ["--outbound-queue-bytes", "8MiB", "--mailbox-bytes", "8MiB"];
    let large = [&["--max-message-bytes", "4MiB"], &queue[..]].concat();
    for mode in MODES {
        let grown = besiege_in(mode, &large, "/echo", OFFER, &flood).await;
        assert!(grown < 8 * MIB, "{mode}: {grown} bytes");
    }
}
