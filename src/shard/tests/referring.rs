//! What one flush deflates for subscribers with context takeover.

use flate2::{Decompress, FlushDecompress};
use tokio::io::AsyncReadExt;

use super::flush::{Peer, Still, run, text};
use super::*;

const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";

/// A subscriber that goes on with its inflater where it stopped.
struct Subscriber {
    peer: Peer,
    inflate: Decompress,
}

impl Subscriber {
    async fn connect(still: &Still) -> Self {
        let socket = still.begin_with_buffers(1 << 20).await;
        let peer = still.upgrade_with(socket, "/channels/a", OFFER).await;
        assert!(peer.client.coding.refers());
        Self { peer, inflate: Decompress::new(false) }
    }

    /// Demands that this plain frame comes next, deflated. Returns how long it was so, in bytes.
    async fn expect(&mut self, frame: &Bytes) -> usize {
        let socket = &mut self.peer.socket;
        assert_eq!(socket.read_u8().await.unwrap(), frame[0] | 0x40, "text, deflated");
        let length = match socket.read_u8().await.unwrap() {
            126 => usize::from(socket.read_u16().await.unwrap()),
            length => usize::from(length),
        };
        let mut payload = vec![0; length];
        socket.read_exact(&mut payload).await.unwrap();
        payload.extend([0, 0, 0xff, 0xff]);
        let plain = frame::open(frame).1;
        let mut inflated = Vec::with_capacity(plain.len() + 1);
        self.inflate.decompress_vec(&payload, &mut inflated, FlushDecompress::Sync).unwrap();
        assert!(inflated == plain, "{:?}", String::from_utf8_lossy(&inflated));
        length
    }
}

#[test]
fn pass_deflates_for_single_subscribers_as_long_as_it_has_time_and_then_once_for_all_the_others() {
    const MESSAGES: usize = 1_000;
    const SUBSCRIBERS: usize = 3;
    run(async || {
        let still = Still::new(|settings| {
            settings.compression.mode = CompressionMode::Dedicated;
        })
        .await;
        let mut subscribers = Vec::new();
        for _ in 0..SUBSCRIBERS {
            subscribers.push(Subscriber::connect(&still).await);
        }
        let frames: Vec<Bytes> =
            (0..MESSAGES).map(|number| text(&format!("{number:04}"), 300)).collect();
        let plain_bytes: u64 = frames.iter().map(|frame| frame.len() as u64).sum();
        let deflated_bytes = &still.shard.counters.deflate_input_bytes;
        frames.iter().for_each(|frame| still.publish("a", frame.clone()));
        assert_eq!(still.shard.flush_turn(), SUBSCRIBERS as u64, "one write for each of them");
        // For the first of them, and for those for whom there was no time.
        assert_eq!(deflated_bytes.value(), 2 * plain_bytes);
        for subscriber in &mut subscribers {
            for frame in &frames {
                subscriber.expect(frame).await;
            }
        }

        // With little to do everybody gets their own, which refers to what was said since.
        let frame = text("again", 300);
        for round in 0..3 {
            let before = deflated_bytes.value();
            still.publish("a", frame.clone());
            still.shard.flush_turn();
            let bytes = (SUBSCRIBERS * frame.len()) as u64;
            assert_eq!(deflated_bytes.value() - before, bytes);
            for subscriber in &mut subscribers {
                let length = subscriber.expect(&frame).await;
                assert!(round == 0 || length < 10, "{length} bytes of what was said before");
            }
        }
    });
}
