//! Bytes that no honest client sends, and honest ones in numbers that none would: each is told what it
//! did, others are served meanwhile, and nothing is left of it.
//!
//! What a single broken rule leads to is in `closing.rs`; clients that do not read or do not end well
//! are in `hostile_peers.rs`.

use std::hash::{BuildHasher, RandomState};

use serde_json::json;
use tokio::task::JoinSet;

use crate::support::raw::{
    BINARY, CLOSE, CONTINUATION, FIN, Frame, PING, PONG, RawClient, TEXT, close_payload, encode,
    encode_header, encode_with, request,
};
use crate::support::siege::Siege;

const PATHS: [&str; 2] = ["/echo", "/channels/hostile"];

const KIB: usize = 1024;

const MIB: usize = 1024 * KIB;

/// Sends a Ping and waits for its Pong: then the gateway has acted on all that came before.
async fn until_read(client: &mut RawClient) {
    client.send_frame(PING, b"read?").await;
    assert_eq!(client.read_message(PONG).await, b"read?");
}

/// Has a new client send `bytes`, at once and then byte by byte, and demands a Close with this code, the
/// end of the socket, and nothing else.
async fn assert_refused(siege: &Siege, path: &str, what: &str, bytes: &[u8], code: u16) {
    for step in [bytes.len(), 1] {
        let mut client = siege.gateway.open_raw(path).await;
        for piece in bytes.chunks(step) {
            client.offer(piece).await;
        }
        let frames = client.reader.read_frames().await;
        let [close] = &frames[..] else { panic!("one Close for {what} on {path}: {frames:?}") };
        assert_eq!(close.close().0, code, "{what} on {path}");
    }
}

#[tokio::test]
async fn thousand_announcements_of_a_message_of_the_largest_size_take_no_memory_until_it_arrives() {
    const CLIENTS: usize = 1_000;
    // Of a connection with its kept bytes, in a debug build.
    const MOST_PER_CLIENT: usize = 4 * KIB;
    for largest in [64 * KIB, 16 * MIB] {
        let largest_text = largest.to_string();
        let siege = Siege::begin(&["--max-message-bytes", &largest_text]).await;
        let toll = siege.withstand(async |siege| {
            let mut clients = Vec::new();
            for path in PATHS {
                clients.extend(siege.gateway.open_many_raw(path, CLIENTS / 2).await);
            }
            let whole = encode_header(FIN | BINARY, largest as u64);
            let first = encode_header(TEXT, largest as u64);
            let rest = encode_header(FIN | CONTINUATION, largest as u64 - 1);
            let announcements = [
                whole.clone(),
                [&whole[..], b"x"].concat(),
                [&first[..], b"x"].concat(),
                [encode_with(TEXT, b"x"), rest].concat(),
            ];
            for (client, announcement) in clients.iter_mut().zip(announcements.iter().cycle()) {
                // In one segment: what is behind a Ping is read with it.
                client.send(&[&encode(PING, b""), &announcement[..]].concat()).await;
            }
            for client in &mut clients {
                assert_eq!(client.read_message(PONG).await, b"");
            }
            siege.until_others_are_served().await;
        });
        let toll = toll.await;
        assert!(toll.memory_bytes < CLIENTS * MOST_PER_CLIENT, "{largest}: {toll:?}");
    }
}

/// How a length is written.
#[derive(Clone, Copy, Debug)]
enum Written {
    /// In 16 bits.
    Two(u16),
    /// In 64 bits.
    Eight(u64),
}

impl Written {
    /// The header of a masked frame of this length.
    fn header(self, first_byte: u8) -> Vec<u8> {
        let (marker, length) = match self {
            Self::Two(length) => (126, length.to_be_bytes().to_vec()),
            Self::Eight(length) => (127, length.to_be_bytes().to_vec()),
        };
        [&[first_byte, 0x80 | marker][..], &length, &[1, 2, 3, 4]].concat()
    }
}

#[tokio::test]
async fn lengths_beyond_all_bounds_or_not_in_their_shortest_form_are_refused_in_every_frame() {
    let lengths = [
        (Written::Two(0), 1002),
        (Written::Two(1), 1002),
        (Written::Two(125), 1002),
        (Written::Eight(0), 1002),
        (Written::Eight(125), 1002),
        (Written::Eight(126), 1002),
        (Written::Eight(0xffff), 1002),
        (Written::Eight(64 * 1024 + 1), 1009),
        (Written::Eight(1 << 31), 1009),
        (Written::Eight(1 << 32), 1009),
        (Written::Eight(1 << 62), 1009),
        (Written::Eight((1 << 63) - 1), 1009),
        (Written::Eight(1 << 63), 1002),
        (Written::Eight(u64::MAX), 1002),
    ];
    let siege = Siege::begin(&[]).await;
    let toll = siege.withstand(async |siege| {
        for (length, code) in lengths {
            for path in PATHS {
                for first_byte in [FIN | TEXT, FIN | BINARY, TEXT, BINARY] {
                    let what = format!("{length:?} behind {first_byte:#04x}");
                    assert_refused(siege, path, &what, &length.header(first_byte), code).await;
                }
                for first_byte in [FIN | CONTINUATION, CONTINUATION] {
                    let what = format!("{length:?} behind {first_byte:#04x}");
                    let begun = [encode_with(BINARY, b"x"), length.header(first_byte)].concat();
                    assert_refused(siege, path, &what, &begun, code).await;
                }
                for first_byte in [FIN | CLOSE, FIN | PING, FIN | PONG] {
                    let what = format!("{length:?} behind {first_byte:#04x}");
                    assert_refused(siege, path, &what, &length.header(first_byte), 1002).await;
                }
            }
        }
        siege.until_others_are_served().await;
    });
    let toll = toll.await;
    assert!(toll.memory_bytes < 2 * MIB, "{toll:?}");
}

#[tokio::test]
async fn hundreds_of_thousands_of_empty_fragments_are_one_message_and_take_no_memory() {
    const FRAGMENTS: usize = 300_000;
    const FRAGMENTS_A_WRITE: usize = 5_000;
    let siege = Siege::begin(&[]).await;
    let fragments = encode_with(CONTINUATION, b"").repeat(FRAGMENTS_A_WRITE);
    let toll = siege.withstand(async |siege| {
        let mut clients = Vec::new();
        for shard in 0..2 {
            for path in ["/echo".to_owned(), format!("/channels/hostile-{shard}")] {
                clients.push(siege.gateway.open_raw_on_shard(shard, &path).await);
            }
        }
        // Half of them begin with an empty fragment as well.
        let firsts: [&[u8]; 4] = [b"f", b"", b"", b"f"];
        for (client, first) in clients.iter_mut().zip(firsts) {
            client.send(&encode_with(TEXT, first)).await;
        }
        siege
            .repeat_while_others_are_served(FRAGMENTS / FRAGMENTS_A_WRITE, async || {
                for client in &mut clients {
                    client.send(&fragments).await;
                }
            })
            .await;
        for (client, first) in clients.iter_mut().zip(firsts) {
            // Still a message, between whose fragments a Ping may stand.
            until_read(client).await;
            client.send_frame(CONTINUATION, b"in").await;
            assert_eq!(client.read_message(TEXT).await, [first, b"in"].concat());
        }
    });
    let toll = toll.await;
    assert!(toll.memory_bytes < MIB, "{toll:?}");
}

#[tokio::test]
async fn client_that_fills_every_read_is_read_once_and_then_it_is_the_others_turn() {
    const ANSWERS: usize = 10;
    // A read takes 256 KiB at most. The answer to whoever speaks meanwhile is some reads away, the more
    // the busier the machine is on which that one runs, but not hundreds of them.
    const MOST_READ_PER_ANSWER: usize = 16 * MIB;
    let siege = Siege::begin(&[]).await;
    let floods = [
        ("empty fragments", encode_with(CONTINUATION, b"").repeat(10_000)),
        ("empty Pongs", encode(PONG, b"").repeat(10_000)),
        ("full Pongs", encode(PONG, &[b'.'; 125]).repeat(1_000)),
    ];
    let toll = siege.withstand(async |siege| {
        for (what, flood) in &floods {
            let mut flooder = siege.gateway.open_raw_on_shard(0, "/echo").await;
            flooder.send(&encode_with(TEXT, b"begun")).await;
            let mut other = siege.gateway.connect_to_shard(0, "/echo").await;
            let flood = flood.clone();
            let flooding = tokio::spawn(async move {
                // Until it is told to stop.
                loop {
                    flooder.send(&flood).await;
                }
            });
            let received =
                async || siege.gateway.metrics().await.sum("wsgate_received_bytes_total", &[]);
            let before = received().await;
            for _ in 0..ANSWERS {
                other.send_text("and I?").await;
                assert_eq!(other.read_text().await, "and I?");
            }
            let read = (received().await - before) as usize / ANSWERS;
            flooding.abort();
            assert!(read < MOST_READ_PER_ANSWER, "{read} bytes of {what} are read for one answer");
        }
    });
    let toll = toll.await;
    assert!(toll.memory_bytes < 2 * MIB, "{toll:?}");
}

#[tokio::test]
async fn endless_empty_messages_are_published_and_others_served() {
    const MESSAGES: usize = 20_000;
    const MESSAGES_A_WRITE: usize = 1_000;
    let siege = Siege::begin(&[]).await;
    let messages = encode(BINARY, b"").repeat(MESSAGES_A_WRITE);
    let toll = siege.withstand(async |siege| {
        for path in PATHS {
            let mut client = siege.gateway.open_raw(path).await;
            siege
                .repeat_while_others_are_served(MESSAGES / MESSAGES_A_WRITE, async || {
                    client.send(&messages).await;
                    for _ in 0..MESSAGES_A_WRITE {
                        assert_eq!(client.read_message(BINARY).await, b"");
                    }
                })
                .await;
        }
    });
    let toll = toll.await;
    assert!(toll.memory_bytes < 4 * MIB, "{toll:?}");
}

#[tokio::test]
async fn ten_thousand_closes_in_one_write_get_one_answer() {
    let siege = Siege::begin(&[]).await;
    let good = encode(CLOSE, &close_payload(1000, "bye"));
    let bad = encode(CLOSE, &close_payload(1005, ""));
    let toll = siege.withstand(async |siege| {
        for path in PATHS {
            for (flood, code) in [
                (good.repeat(10_000), 1000),
                (bad.repeat(10_000), 1002),
                ([&good[..], &bad].concat().repeat(5_000), 1000),
                ([&bad[..], &good].concat().repeat(5_000), 1002),
            ] {
                let mut client = siege.gateway.open_raw(path).await;
                client.offer(&flood).await;
                let frames = client.reader.read_frames().await;
                let [close] = &frames[..] else { panic!("one answer, not {frames:?}") };
                assert_eq!(close.close().0, code);
            }
        }
        siege.until_others_are_served().await;
    });
    let toll = toll.await;
    assert!(toll.memory_bytes < 2 * MIB, "{toll:?}");
}

/// Codes that may not travel: RFC 6455 section 7.4 and the registry of IANA.
fn illegal_codes() -> impl Iterator<Item = u16> {
    let near = (0..16).chain(984..1_000).chain(1_004..=1_006).chain(1_015..1_050);
    let far = (1_050..3_000).step_by(50).chain(2_980..3_000).chain(5_000..5_020);
    near.chain(far).chain((5_000..=u16::MAX).step_by(2_500)).chain([0x7fff, 0x8000, u16::MAX])
}

#[tokio::test]
async fn close_with_a_code_that_may_not_travel_or_a_broken_payload_is_a_violation() {
    let with_reason = |reason: &[u8]| [&1000u16.to_be_bytes()[..], reason].concat();
    let long = "x".repeat(121);
    let mut payloads: Vec<(Vec<u8>, u16)> = vec![
        (vec![0], 1002),
        (vec![3], 1002),
        (vec![0xff], 1002),
        (with_reason(b"\xff"), 1007),
        (with_reason(b"fine so far \xc3"), 1007),
        (with_reason(b"\xed\xa0\x80"), 1007),
        (with_reason(b"\xf4\x90\x80\x80"), 1007),
        (with_reason(&[long.as_bytes(), b"\xe2\x82"].concat()), 1007),
        // One byte longer than a control frame may be.
        (with_reason("x".repeat(124).as_bytes()), 1002),
    ];
    payloads.extend(illegal_codes().map(|code| (close_payload(code, "reason"), 1002)));
    let siege = Siege::begin(&[]).await;
    let toll = siege.withstand(async |siege| {
        for (index, (payload, code)) in payloads.iter().enumerate() {
            let path = PATHS[index % PATHS.len()];
            let what = format!("{payload:02x?}");
            assert_refused(siege, path, &what, &encode(CLOSE, payload), *code).await;
        }
        siege.until_others_are_served().await;
    });
    let toll = toll.await;
    assert!(toll.memory_bytes < 2 * MIB, "{toll:?}");
}

/// What may come behind a Close, of which nothing may have an effect.
fn late_frames() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("text", encode(TEXT, b"late")),
        ("the end of a message", encode(CONTINUATION, b"late")),
        ("the beginning of a message", encode_with(TEXT, b"late")),
        ("many messages", encode(BINARY, b"late").repeat(1_000)),
        ("Ping", encode(PING, b"late")),
        ("Pings", encode(PING, &[b'.'; 125]).repeat(1_000)),
        ("Pong", encode(PONG, b"late")),
        ("another Close", encode(CLOSE, &close_payload(4000, "late"))),
        ("a Close with a code that may not travel", encode(CLOSE, &close_payload(1005, ""))),
        ("a violation", encode_with(0xf3, b"late")),
        ("text that is not UTF-8", encode(TEXT, b"\xff")),
        ("a length of 2^62", Written::Eight(1 << 62).header(FIN | BINARY)),
        ("a part of a header", encode(TEXT, b"late")[..3].to_vec()),
        ("HTTP", request("/channels/hostile")),
        ("garbage", (0..=255).rev().cycle().take(5_000).collect()),
    ]
}

/// Demands that `listener` has heard nothing: the next thing that it hears is what is published now.
async fn assert_nothing_was_published(siege: &Siege, listener: &mut RawClient) {
    siege.gateway.call("publish", json!({ "channel": "hostile", "data": "in time" })).await;
    assert_eq!(listener.read_message(TEXT).await, b"in time");
}

#[tokio::test]
async fn frames_behind_a_clients_close_are_not_acted_on() {
    let siege = Siege::begin(&[]).await;
    let toll = siege.withstand(async |siege| {
        let mut listener = siege.gateway.open_raw("/channels/hostile").await;
        for (what, late) in late_frames() {
            for path in PATHS {
                for is_together in [true, false] {
                    let mut client = siege.gateway.open_raw(path).await;
                    // The message that it has begun stays unsaid.
                    let close = encode(CLOSE, &close_payload(1000, ""));
                    let close = [encode_with(TEXT, b"un"), close].concat();
                    if is_together {
                        client.offer(&[&close[..], &late].concat()).await;
                    } else {
                        client.offer(&close).await;
                        client.offer(&late).await;
                    }
                    let frames = client.reader.read_frames().await;
                    let closes: Vec<_> = frames.iter().map(Frame::close).collect();
                    assert_eq!(closes, [(1000, "")], "{what} on {path}");
                }
            }
            assert_nothing_was_published(siege, &mut listener).await;
        }
        siege.until_others_are_served().await;
    });
    let toll = toll.await;
    assert!(toll.memory_bytes < 2 * MIB, "{toll:?}");
}

#[tokio::test]
async fn frames_behind_the_gateways_close_are_not_acted_on_and_get_no_second_close() {
    let siege = Siege::begin(&[]).await;
    let toll = siege.withstand(async |siege| {
        let mut listener = siege.gateway.open_raw("/channels/hostile").await;
        for (what, late) in late_frames() {
            for path in PATHS {
                // Asked to leave: the gateway waits for the client's Close.
                let mut client = RawClient::connect(siege.gateway.listen).await;
                let id = client.upgrade(path).await;
                client.send(&encode_with(TEXT, b"un")).await;
                until_read(&mut client).await;
                siege.gateway.call("disconnect", json!({ "connection": id, "code": 4001 })).await;
                assert_eq!(client.read_frame().await.close().0, 4001, "{what} on {path}");
                client.offer(&late).await;
                client.offer(&encode(CLOSE, &close_payload(4001, ""))).await;
                client.shut_down_if_connected().await;
                let frames = client.reader.read_frames().await;
                assert!(frames.is_empty(), "{what} on {path}: {frames:?}");

                // Failed for a violation: nothing that it says has a meaning any more.
                let mut client = siege.gateway.open_raw(path).await;
                client.offer(&[encode_with(TEXT, b"un"), encode(0x3, b"")].concat()).await;
                assert_eq!(client.read_frame().await.close().0, 1002, "{what} on {path}");
                client.offer(&late).await;
                let frames = client.reader.read_frames().await;
                assert!(frames.is_empty(), "{what} on {path}: {frames:?}");
            }
            assert_nothing_was_published(siege, &mut listener).await;
        }
        siege.until_others_are_served().await;
    });
    let toll = toll.await;
    assert!(toll.memory_bytes < 2 * MIB, "{toll:?}");
}

/// What becomes of an empty frame.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Refused,
    Closed,
    /// The frames that come for it.
    Answered(Vec<(u8, Vec<u8>)>),
}

/// RFC 6455 section 5.2, read once more: what becomes of an empty frame that begins with `first_byte`,
/// alone or behind the first fragment `begun` of a text.
fn outcome(first_byte: u8, is_masked: bool, begun: Option<&[u8]>) -> Outcome {
    let has_fin = first_byte >= 0x80;
    let has_reserved_bits = first_byte & 0b0111_0000 != 0;
    if has_reserved_bits || !is_masked {
        return Outcome::Refused;
    }
    let nothing = Outcome::Answered(Vec::new());
    match (first_byte & 0b1111, has_fin, begun) {
        (CONTINUATION, true, Some(begun)) => Outcome::Answered(vec![(TEXT, begun.to_vec())]),
        (CONTINUATION, false, Some(_)) => nothing,
        (opcode @ (TEXT | BINARY), true, None) => Outcome::Answered(vec![(opcode, Vec::new())]),
        (TEXT | BINARY, false, None) => nothing,
        (CLOSE, true, _) => Outcome::Closed,
        (PING, true, _) => Outcome::Answered(vec![(PONG, Vec::new())]),
        (PONG, true, _) => nothing,
        _ => Outcome::Refused,
    }
}

#[tokio::test]
async fn each_first_byte_with_and_without_a_masking_key_has_the_outcome_of_the_rfc() {
    let siege = Siege::begin(&[]).await;
    let toll = siege.withstand(async |siege| {
        for first_byte in 0..=u8::MAX {
            for (is_masked, begun) in
                [(true, None), (false, None), (true, Some(&b"begun"[..])), (false, Some(b"begun"))]
            {
                let mut client = siege.gateway.open_raw("/echo").await;
                let begin = begun.map(|begun| encode_with(TEXT, begun)).unwrap_or_default();
                let frame: &[u8] =
                    if is_masked { &[first_byte, 0x80, 1, 2, 3, 4] } else { &[first_byte, 0] };
                client.offer(&[&begin, frame, &encode(PING, b"end")].concat()).await;
                let mut answers = Vec::new();
                let found = loop {
                    let Frame { opcode, payload, .. } = client.read_frame().await;
                    match (opcode, &payload[..]) {
                        (CLOSE, []) => break Outcome::Closed,
                        (CLOSE, [3, 234, ..]) => break Outcome::Refused,
                        (PONG, b"end") => break Outcome::Answered(answers),
                        _ => answers.push((opcode, payload)),
                    }
                };
                let expected = outcome(first_byte, is_masked, begun);
                assert_eq!(found, expected, "{first_byte:#04x}, {is_masked}, {begun:?}");
                if !matches!(found, Outcome::Answered(_)) {
                    client.read_end().await;
                }
            }
        }
        siege.until_others_are_served().await;
    });
    let toll = toll.await;
    assert!(toll.memory_bytes < 2 * MIB, "{toll:?}");
}

/// A frame masked with `key`.
fn encode_masked(first_byte: u8, key: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let header = [first_byte, 0x80 | payload.len() as u8];
    let masked = payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key);
    header.into_iter().chain(key).chain(masked).collect()
}

#[tokio::test]
async fn masking_keys_of_zero_and_ones_and_one_for_each_fragment_are_as_good_as_others() {
    const KEYS: [[u8; 4]; 5] = [[0; 4], [0xff; 4], [0, 0, 0, 1], [0x80, 0, 0, 0], [1, 2, 3, 4]];
    let text = "grüße, κόσμε 🦀";
    let siege = Siege::begin(&[]).await;
    let toll = siege.withstand(async |siege| {
        for path in PATHS {
            let mut client = siege.gateway.open_raw(path).await;
            for key in KEYS {
                client.send(&encode_masked(FIN | TEXT, key, text.as_bytes())).await;
                assert_eq!(client.read_message(TEXT).await, text.as_bytes());
                client.send(&encode_masked(FIN | PING, key, b"ping")).await;
                assert_eq!(client.read_message(PONG).await, b"ping");
                for split in 0..=text.len() {
                    let (first, second) = text.as_bytes().split_at(split);
                    for other_key in KEYS {
                        let fragments = [
                            encode_masked(TEXT, key, first),
                            encode_masked(FIN | CONTINUATION, other_key, second),
                        ];
                        client.send(&fragments.concat()).await;
                        assert_eq!(client.read_message(TEXT).await, text.as_bytes());
                    }
                }
            }
        }
        siege.until_others_are_served().await;
    });
    let toll = toll.await;
    assert!(toll.memory_bytes < 2 * MIB, "{toll:?}");
}

#[tokio::test]
async fn text_cut_within_a_character_is_whole_again_only_if_the_next_fragment_goes_on_with_it() {
    let text = "aé€🦀";
    let siege = Siege::begin(&[]).await;
    let toll = siege.withstand(async |siege| {
        for cut in 0..=text.len() {
            let (before, behind) = text.as_bytes().split_at(cut);
            let is_between_characters = text.is_char_boundary(cut);
            // Whatever stands between the fragments.
            for between in [vec![], encode(PING, b""), encode_with(CONTINUATION, b"").repeat(3)] {
                let mut client = siege.gateway.open_raw("/echo").await;
                let whole =
                    [&encode_with(TEXT, before), &between[..], &encode(CONTINUATION, behind)];
                client.send(&whole.concat()).await;
                if between.first() == Some(&(FIN | PING)) {
                    assert_eq!(client.read_message(PONG).await, b"");
                }
                assert_eq!(client.read_message(TEXT).await, text.as_bytes());
            }
            if is_between_characters {
                continue;
            }
            for path in PATHS {
                let what = format!("{before:02x?}");
                let ends = encode(TEXT, before);
                assert_refused(siege, path, &what, &ends, 1007).await;
                for next in [&b""[..], b"x", "é".as_bytes(), b"\xff"] {
                    let what = format!("{before:02x?} and {next:02x?}");
                    let fragments = [encode_with(TEXT, before), encode(CONTINUATION, next)];
                    assert_refused(siege, path, &what, &fragments.concat(), 1007).await;
                }
            }
        }
        siege.until_others_are_served().await;
    });
    let toll = toll.await;
    assert!(toll.memory_bytes < 2 * MIB, "{toll:?}");
}

/// Numbers that look random and are the same for the same seed (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }

    /// A frame with any bits, but a length that holds.
    fn frame(&mut self) -> Vec<u8> {
        let first_byte = match self.below(16) {
            // Anything; else something that means something.
            0 => self.next() as u8,
            _ => [0x00, 0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8a][self.below(9)],
        };
        let bytes = [0, 1, 2, 5, 125, 126, 127, 1_000][self.below(8)];
        let payload = if self.below(4) == 0 { self.bytes(bytes) } else { vec![b'.'; bytes] };
        encode_with(first_byte, &payload)
    }

    /// What one client sends behind its handshake.
    fn conversation(&mut self) -> Vec<u8> {
        let noise_bytes = self.below(3_000);
        let frames = self.below(30);
        match self.below(3) {
            0 => self.bytes(noise_bytes),
            1 => (0..frames).flat_map(|_| self.frame()).collect(),
            // Good frames with a few bytes that are not what they were.
            _ => {
                let mut bytes = encode(TEXT, b"hello").repeat(frames + 1);
                for _ in 0..=self.below(3) {
                    let at = self.below(bytes.len());
                    bytes[at] = self.next() as u8;
                }
                bytes
            }
        }
    }
}

/// Has a client send what `numbers` say, in pieces, and leave in one way or another.
async fn talk_nonsense(mut client: RawClient, mut numbers: Numbers) {
    let conversation = numbers.conversation();
    let piece = 1 + numbers.below(600);
    for piece in conversation.chunks(piece) {
        client.offer(piece).await;
    }
    match numbers.below(4) {
        0 => client.reset(),
        1 => drop(client),
        _ => {
            client.shut_down_if_connected().await;
            let frames = client.reader.read_frames().await;
            let closes = frames.iter().filter(|frame| frame.opcode == CLOSE).count();
            let is_last = frames.last().is_some_and(|last| last.opcode == CLOSE);
            assert!(closes == usize::from(is_last), "nothing follows a Close: {frames:?}");
        }
    }
}

#[tokio::test]
async fn random_bytes_of_a_thousand_clients_break_no_more_than_their_own_connections() {
    const CLIENTS: usize = 1_000;
    const AT_A_TIME: usize = 50;
    let given = std::env::var("WSGATE_TEST_SEED").ok();
    let seed = given.map_or_else(
        || RandomState::new().hash_one("a seed"),
        |seed| seed.parse().expect("a number"),
    );
    println!("WSGATE_TEST_SEED={seed} does the same again");
    let siege = Siege::begin(&[]).await;
    let toll = siege.withstand(async |siege| {
        for first in (0..CLIENTS).step_by(AT_A_TIME) {
            let path = PATHS[first / AT_A_TIME % PATHS.len()];
            let mut talking = JoinSet::new();
            let clients = siege.gateway.open_many_raw(path, AT_A_TIME).await;
            for (client, number) in clients.into_iter().zip(first..) {
                let numbers = Numbers(seed.wrapping_add(number as u64));
                talking.spawn(talk_nonsense(client, numbers));
            }
            talking.join_all().await;
        }
        siege.until_others_are_served().await;
    });
    let toll = toll.await;
    assert!(toll.memory_bytes < 4 * MIB, "{toll:?}");
}
