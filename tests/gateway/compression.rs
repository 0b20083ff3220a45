//! permessage-deflate (RFC 7692): what is agreed, what travels, and what a client cannot do with it.

use flate2::{Compress, Compression, FlushCompress, Status};
use serde_json::json;

use crate::support::deflate::DeflateClient;
use crate::support::gateway::Gateway;
use crate::support::raw::{
    BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, RSV1, RawClient, TEXT, encode, encode_header,
    encode_with, request_with,
};

const OFFER: &str = "permessage-deflate; client_max_window_bits";
const SHARED: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

/// JSON of a few hundred bytes, another for each number.
fn document(number: usize) -> String {
    let item =
        |item: usize| json!({ "id": number * 10 + item, "symbol": "ABC-USD", "price": 17.5 });
    json!({ "number": number, "items": (0..8).map(item).collect::<Vec<_>>() }).to_string()
}

async fn two_shards(flags: &[&str]) -> Gateway {
    Gateway::start(&[&["--shards", "2"], flags].concat()).await
}

/// The head of the answer to a handshake with these extension headers.
async fn agreed(gateway: &Gateway, offers: &[&str]) -> String {
    let mut client = RawClient::connect(gateway.listen).await;
    let headers: String =
        offers.iter().map(|offer| format!("Sec-WebSocket-Extensions: {offer}\r\n")).collect();
    client.send(&request_with("/echo", &headers)).await;
    let head = client.read_head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let found = head.lines().find_map(|line| line.strip_prefix("sec-websocket-extensions: "));
    found.unwrap_or("none").to_owned()
}

#[tokio::test]
async fn each_mode_answers_an_offer_as_it_says() {
    let shared = two_shards(&[]).await;
    assert_eq!(agreed(&shared, &[OFFER]).await, SHARED);
    assert_eq!(agreed(&shared, &[]).await, "none");
    assert_eq!(agreed(&shared, &["permessage-deflate; unknown=1"]).await, "none");
    let narrow = "permessage-deflate; server_max_window_bits=10";
    assert_eq!(
        agreed(&shared, &["permessage-deflate; client_max_window_bits=99, x-other", narrow]).await,
        format!("{SHARED}; server_max_window_bits=10")
    );

    let off = two_shards(&["--compression", "off"]).await;
    assert_eq!(agreed(&off, &[OFFER]).await, "none");

    let dedicated =
        two_shards(&["--compression", "dedicated", "--compression-window", "4KiB"]).await;
    assert_eq!(agreed(&dedicated, &[OFFER]).await, "permessage-deflate; client_max_window_bits=12");
    assert_eq!(
        agreed(&dedicated, &[narrow]).await,
        "permessage-deflate; client_no_context_takeover; server_max_window_bits=10"
    );
}

#[tokio::test]
async fn message_comes_back_deflated_from_the_smallest_size_on_and_plain_below() {
    for flags in [&[][..], &["--compression", "dedicated"]] {
        let gateway = two_shards(&[&["--compression-min-bytes", "100"], flags].concat()).await;
        let mut client = DeflateClient::connect(gateway.listen, "/echo", OFFER).await;
        for (length, is_deflated) in [(0, false), (1, false), (99, false), (100, true)] {
            let text = "x".repeat(length);
            client.send_deflated(TEXT, text.as_bytes()).await;
            let echoed = client.read_message(TEXT).await;
            assert_eq!(echoed, (text.into_bytes(), is_deflated), "{length} bytes");
        }
        // Plain ones may come between, and what is sent plain may come back deflated.
        client.raw.send_frame(BINARY, &[7; 300]).await;
        assert_eq!(client.read_message(BINARY).await, (vec![7; 300], true));
        for number in 0..50 {
            let text = document(number);
            client.send_deflated(TEXT, text.as_bytes()).await;
            client.raw.send_frame(TEXT, b"between").await;
            assert_eq!(client.read_message(TEXT).await, (text.into_bytes(), true));
            assert_eq!(client.read_message(TEXT).await, (b"between".to_vec(), false));
        }
    }
}

#[tokio::test]
async fn what_does_not_get_shorter_comes_back_plain() {
    let gateway = two_shards(&[]).await;
    let mut client = DeflateClient::connect(gateway.listen, "/echo", OFFER).await;
    let mut state = 1_u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(2_000)
    .collect();
    client.send_deflated(BINARY, &noise).await;
    assert_eq!(client.read_message(BINARY).await, (noise, false));
}

#[tokio::test]
async fn deflated_fragments_with_control_frames_between_are_one_message_at_every_split() {
    let gateway = two_shards(&[]).await;
    let mut client = DeflateClient::connect(gateway.listen, "/echo", OFFER).await;
    let text = document(1);
    let deflated = client.deflate(text.as_bytes());
    for split in 0..=deflated.len() {
        let (first, second) = deflated.split_at(split);
        let frames = [
            encode_with(RSV1 | TEXT, first),
            encode(PING, b"between"),
            encode_with(CONTINUATION, b""),
            encode_with(FIN | CONTINUATION, second),
        ];
        client.raw.send(&frames.concat()).await;
        assert_eq!(client.raw.read_message(PONG).await, b"between");
        assert_eq!(client.read_message(TEXT).await, (text.clone().into_bytes(), true));
    }
    // And however its bytes arrive.
    let frame = encode_with(FIN | RSV1 | TEXT, &deflated);
    for split in 1..frame.len() {
        client.raw.send(&frame[..split]).await;
        tokio::task::yield_now().await;
        client.raw.send(&frame[split..]).await;
        assert_eq!(client.read_message(TEXT).await, (text.clone().into_bytes(), true));
    }
}

/// What a connection that sends `frames` is closed with.
async fn closed_for(gateway: &Gateway, offer: &str, frames: &[u8]) -> (u16, String) {
    let mut client = DeflateClient::connect(gateway.listen, "/echo", offer).await;
    client.raw.send(frames).await;
    let frame = client.read_frame().await;
    let (code, reason) = frame.close();
    (code, reason.to_owned())
}

#[tokio::test]
async fn rsv1_where_it_has_no_meaning_is_closed_with_1002() {
    let gateway = two_shards(&[]).await;
    let fragment = encode_with(RSV1 | TEXT, b"\xf2");
    for (offer, frames) in [
        ("x-none", encode_with(FIN | RSV1 | TEXT, b"\0")),
        (OFFER, encode_with(FIN | RSV1 | PING, b"")),
        (OFFER, encode_with(FIN | RSV1 | CLOSE, b"")),
        (OFFER, encode_with(FIN | RSV1 | CONTINUATION, b"")),
        (OFFER, [fragment, encode_with(FIN | RSV1 | CONTINUATION, b"")].concat()),
        (OFFER, encode_with(FIN | 0x20 | TEXT, b"")),
        (OFFER, encode_with(FIN | RSV1 | 0x10 | TEXT, b"")),
    ] {
        assert_eq!(closed_for(&gateway, offer, &frames).await.0, 1002, "{frames:02x?}");
    }
}

#[tokio::test]
async fn what_cannot_be_inflated_or_is_no_text_is_closed_with_1007_and_counted() {
    let gateway = two_shards(&[]).await;
    for payload in [&b"\xff\xff\xff"[..], b"\x06", b"\xf2\x48\xcd", b"\xf2\x00\x11\x00\x00"] {
        let frame = encode_with(FIN | RSV1 | TEXT, payload);
        let (code, reason) = closed_for(&gateway, OFFER, &frame).await;
        assert_eq!(code, 1007, "{reason}");
        assert_eq!(reason, "message that is marked as deflated and is not DEFLATE data");
    }
    let kind = |kind| [("kind", kind)];
    let errors = "wsgate_protocol_errors_total";
    gateway.until_metric(errors, &kind("not_deflated"), 4.0).await;
    // Stored blocks: "\xff" is no text, and a good binary message.
    let stored = b"\x00\x01\x00\xfe\xff\xff\x00";
    let text = encode_with(FIN | RSV1 | TEXT, stored);
    assert_eq!(closed_for(&gateway, OFFER, &text).await.0, 1007);
    gateway.until_metric(errors, &kind("text_not_utf8"), 1.0).await;
    let mut client = DeflateClient::connect(gateway.listen, "/echo", OFFER).await;
    client.raw.send(&encode_with(FIN | RSV1 | BINARY, stored)).await;
    assert_eq!(client.read_message(BINARY).await, (vec![0xff], false));
}

/// `bytes` zeros, deflated.
fn bomb(bytes: usize) -> Vec<u8> {
    let mut compress = Compress::new(Compression::best(), false);
    let mut deflated = Vec::with_capacity(bytes / 500 + 1_000);
    compress.compress_vec(&vec![0; bytes], &mut deflated, FlushCompress::Sync).expect("zeros");
    deflated.truncate(deflated.len() - 4);
    deflated
}

#[tokio::test]
async fn message_that_inflates_beyond_the_limit_is_closed_with_1009_and_takes_no_memory() {
    for mode in ["shared", "dedicated"] {
        let flags = ["--max-message-bytes", "64KiB", "--compression", mode];
        let gateway = two_shards(&flags).await;
        let mut client = DeflateClient::connect(gateway.listen, "/echo", OFFER).await;
        client.raw.send(&encode_with(FIN | RSV1 | BINARY, &bomb(65_536))).await;
        assert_eq!(client.read_message(BINARY).await, (vec![0; 65_536], true));
        let before = gateway.metrics().await.sum("process_resident_memory_bytes", &[]);
        let bomb = bomb(60_000_000);
        assert!(bomb.len() < 65_536, "{} bytes", bomb.len());
        for frames in [
            encode_with(FIN | RSV1 | BINARY, &bomb),
            [encode_with(RSV1 | BINARY, &bomb), encode(CONTINUATION, b"")].concat(),
            encode_with(FIN | RSV1 | BINARY, &self::bomb(65_537)),
            // More than a message of the limit can be on the wire: refused before it arrives.
            encode_header(FIN | RSV1 | BINARY, 75_000),
        ] {
            let (code, reason) = closed_for(&gateway, OFFER, &frames).await;
            let expected = (1009, "message larger than the limit");
            assert_eq!((code, reason.as_str()), expected, "{mode}");
        }
        let after = gateway.metrics().await.sum("process_resident_memory_bytes", &[]);
        assert!(after - before < 8e6, "{mode}: {before} bytes before and {after} after");
        client.send_deflated(TEXT, b"others are still served").await;
        assert_eq!(client.read_message(TEXT).await.0, b"others are still served");
    }
}

/// `text` in three final blocks (BFINAL), each with what `window` holds and what was said in this
/// message before as its dictionary.
fn in_final_blocks(window: &[u8], text: &[u8]) -> Vec<u8> {
    let mut said = window.to_vec();
    let mut deflated = Vec::with_capacity(2 * text.len() + 100);
    for part in text.chunks(text.len().div_ceil(3)) {
        let mut compress = Compress::new_with_window_bits(Compression::best(), false, 13);
        if !said.is_empty() {
            compress.set_dictionary(&said).expect("before anything is deflated");
        }
        let ended = compress.compress_vec(part, &mut deflated, FlushCompress::Finish);
        assert_eq!(ended.expect("it takes any bytes"), Status::StreamEnd);
        said.extend(part);
    }
    // RFC 7692 section 7.2.3.4: an empty block without BFINAL, whose last four bytes do not travel.
    deflated.push(0);
    deflated
}

#[tokio::test]
async fn messages_in_several_final_blocks_refer_to_earlier_ones_and_are_echoed() {
    let gateway = two_shards(&["--compression", "dedicated", "--compression-window", "8KiB"]).await;
    let mut client = DeflateClient::connect(gateway.listen, "/echo", OFFER).await;
    assert_eq!(client.agreed, "permessage-deflate; client_max_window_bits=13");
    let text = document(1);
    let mut sizes = Vec::new();
    for said_before in 0..5 {
        let window = text.repeat(said_before);
        let deflated = in_final_blocks(window.as_bytes(), text.as_bytes());
        sizes.push(deflated.len());
        client.raw.send(&encode_with(FIN | RSV1 | TEXT, &deflated)).await;
        assert_eq!(client.read_message(TEXT).await, (text.clone().into_bytes(), true));
    }
    assert!(sizes[1..].iter().all(|size| size * 2 < sizes[0]), "nothing is referred to: {sizes:?}");
    // What is sent plain in between is nothing to refer to, and takes nothing away.
    let mut window = text.repeat(5);
    for number in 2..5 {
        let plain = document(number);
        client.raw.send(&encode(TEXT, plain.as_bytes())).await;
        assert_eq!(client.read_message(TEXT).await.0, plain.as_bytes());
        let deflated = in_final_blocks(window.as_bytes(), text.as_bytes());
        client.raw.send(&encode_with(FIN | RSV1 | TEXT, &deflated)).await;
        assert_eq!(client.read_message(TEXT).await.0, text.as_bytes());
        window.push_str(&text);
    }
}

/// Every kind of subscriber, two of each, so that both shards are likely to have some.
async fn subscribers(gateway: &Gateway) -> Vec<DeflateClient> {
    let mut clients = Vec::new();
    for path in ["/channels/news", "/channels/news?also=other", "/channels/x?also=news&own=false"] {
        for offer in [
            "x-none",
            "permessage-deflate",
            OFFER,
            "permessage-deflate; server_max_window_bits=9",
            "permessage-deflate; server_max_window_bits=8",
            "permessage-deflate; server_no_context_takeover",
        ] {
            for _ in 0..2 {
                clients.push(DeflateClient::connect(gateway.listen, path, offer).await);
            }
        }
    }
    clients
}

#[tokio::test]
async fn every_subscriber_gets_what_was_published_however_it_was_sent_and_is_received() {
    for mode in ["shared", "dedicated"] {
        let gateway = two_shards(&["--compression", mode]).await;
        let mut clients = subscribers(&gateway).await;
        let mut publisher = DeflateClient::connect(gateway.listen, "/channels/news", OFFER).await;
        for number in 0..30 {
            let text = document(number);
            match number % 3 {
                0 => publisher.send_deflated(TEXT, text.as_bytes()).await,
                1 => publisher.raw.send_frame(TEXT, text.as_bytes()).await,
                _ => {
                    let call = json!({ "channel": "news", "data": text });
                    gateway.call("publish", call).await;
                }
            }
            assert_eq!(publisher.read_message(TEXT).await.0, text.as_bytes());
            for client in &mut clients {
                let (received, deflated) = client.read_message(TEXT).await;
                assert_eq!(received, text.as_bytes(), "{mode}: {}", client.agreed);
                let may_be = !client.agreed.is_empty() && !client.has("server_max_window_bits=8");
                assert_eq!(deflated, may_be, "{mode}: {}", client.agreed);
            }
        }
    }
}

#[tokio::test]
async fn publisher_that_wants_none_of_its_own_gets_the_others_messages_deflated() {
    let gateway = two_shards(&[]).await;
    let path = "/channels/news?own=false";
    let mut one = DeflateClient::connect(gateway.listen, path, OFFER).await;
    let mut other = DeflateClient::connect(gateway.listen, path, OFFER).await;
    for number in 0..20 {
        let (text, answer) = (document(number), document(1_000 + number));
        one.send_deflated(TEXT, text.as_bytes()).await;
        assert_eq!(other.read_message(TEXT).await, (text.into_bytes(), true));
        other.send_deflated(TEXT, answer.as_bytes()).await;
        assert_eq!(one.read_message(TEXT).await, (answer.into_bytes(), true));
    }
}

#[tokio::test]
async fn publication_is_deflated_once_whatever_the_audience() {
    let gateway = two_shards(&[]).await;
    let mut clients = Vec::new();
    for number in 0..200 {
        let offer = ["permessage-deflate", OFFER][number % 2];
        clients.push(DeflateClient::connect(gateway.listen, "/channels/news", offer).await);
    }
    let text = document(1);
    gateway.call("publish", json!({ "channel": "news", "data": text })).await;
    let mut seen = Vec::new();
    for client in &mut clients {
        let frame = client.read_frame().await;
        assert_eq!(client.inflate(&frame), text.as_bytes());
        seen.push(frame);
    }
    assert!(seen.iter().all(|frame| *frame == seen[0]), "all get the same bytes");
    let sent_bytes = 200.0 * seen[0].bytes as f64;
    gateway.until_metric("wsgate_sent_bytes_total", &[], sent_bytes).await;
    let metrics = gateway.metrics().await;
    let plain_frame_bytes = 4.0 + text.len() as f64;
    assert_eq!(metrics.sum("wsgate_deflate_input_bytes_total", &[]), plain_frame_bytes);
    assert_eq!(metrics.sum("wsgate_deflate_output_bytes_total", &[]), seen[0].bytes as f64);
    assert_eq!(metrics.sum("wsgate_compressed_connections", &[("mode", "shared")]), 200.0);
    drop(clients);
    gateway.until_metric("wsgate_compressed_connections", &[("mode", "shared")], 0.0).await;
}

#[tokio::test]
async fn publication_is_deflated_once_for_clients_with_smaller_windows_where_it_fits_into_them() {
    let offers = [
        "permessage-deflate",
        "permessage-deflate; server_max_window_bits=10",
        "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12",
        "permessage-deflate; server_no_context_takeover; client_max_window_bits",
    ];
    for (mode, offers) in [("shared", &offers[..]), ("dedicated", &offers[3..])] {
        let gateway = two_shards(&["--compression", mode]).await;
        let mut clients = Vec::new();
        for number in 0..20 {
            let offer = offers[number % offers.len()];
            clients.push(DeflateClient::connect(gateway.listen, "/channels/news", offer).await);
        }
        let text = document(1);
        gateway.call("publish", json!({ "channel": "news", "data": text })).await;
        for client in &mut clients {
            assert_eq!(client.read_message(TEXT).await, (text.clone().into_bytes(), true));
        }
        let deflated = gateway.metrics().await.sum("wsgate_deflate_input_bytes_total", &[]);
        assert_eq!(deflated, 4.0 + text.len() as f64, "{mode}");
    }
}

#[tokio::test]
async fn what_the_api_sends_over_a_full_queue_breaks_no_echo_that_refers_to_another() {
    let gateway = two_shards(&[
        "--compression",
        "dedicated",
        "--slow-consumer",
        "drop-oldest",
        "--outbound-queue-bytes",
        "70KiB",
    ])
    .await;
    let raw = RawClient::connect_with_little_room(gateway.listen).await;
    let mut slow = DeflateClient::open(raw, "/echo?hello=true", OFFER).await;
    let hello = slow.read_message(TEXT).await.0;
    let hello: serde_json::Value = serde_json::from_slice(&hello).expect("JSON");
    // It sends until echoes wait, and reads none.
    let waiting = async || gateway.metrics().await.sum("wsgate_outbound_queue_bytes", &[]);
    let mut sent = 0;
    while waiting().await < 20_000.0 {
        for _ in 0..20 {
            slow.send_deflated(TEXT, incompressible(sent / 2).as_bytes()).await;
            sent += 1;
        }
    }
    let large: String = (0..30).map(|number| incompressible(1_000 + number)).collect();
    let call = json!({ "connection": hello["connection"], "data": format!("api {large}") });
    while dropped(&gateway).await == 0.0 {
        gateway.call("send", call.clone()).await;
    }
    slow.send_deflated(TEXT, b"the last").await;
    let mut echoed = 0;
    loop {
        let frame = slow.read_frame().await;
        let text = String::from_utf8(slow.inflate(&frame)).expect("text");
        match text.split(' ').next() {
            Some("the") => break,
            Some("api") => {}
            Some(number) => {
                assert_eq!(text, incompressible(number.parse().expect("a number")));
                echoed += 1;
            }
            None => unreachable!("a split has a first part"),
        }
    }
    assert!(echoed < sent, "{echoed} of {sent} echoed");
}

#[tokio::test]
async fn takeover_makes_a_message_that_was_said_before_nearly_vanish() {
    let gateway = two_shards(&["--compression", "dedicated"]).await;
    for path in ["/echo", "/channels/news"] {
        let mut client = DeflateClient::connect(gateway.listen, path, OFFER).await;
        let text = document(1);
        let mut sizes = Vec::new();
        for _ in 0..3 {
            client.send_deflated(TEXT, text.as_bytes()).await;
            let frame = client.read_frame().await;
            sizes.push(frame.payload.len());
            assert_eq!(client.inflate(&frame), text.as_bytes());
        }
        assert!(sizes[0] > 60 && sizes[1] < 20 && sizes[2] < 20, "{path}: {sizes:?}");
    }
}

#[tokio::test]
async fn windows_take_memory_up_to_the_bound_and_those_beyond_share() {
    let gateway = two_shards(&[
        "--compression",
        "dedicated",
        "--compression-window",
        "4KiB",
        "--compression-memory",
        "12KiB",
    ])
    .await;
    let connect = async |offer| DeflateClient::connect(gateway.listen, "/echo", offer).await;
    let memory = "wsgate_compression_memory_bytes";
    // One that does not let us choose its window is not remembered, for that would take 32 KiB.
    let one_window = connect("permessage-deflate").await;
    assert_eq!(one_window.agreed, "permessage-deflate; client_no_context_takeover");
    gateway.until_metric(memory, &[], 4.0 * 1024.0).await;
    let two_windows = connect(OFFER).await;
    assert_eq!(two_windows.agreed, "permessage-deflate; client_max_window_bits=12");
    gateway.until_metric(memory, &[], 12.0 * 1024.0).await;

    let mut fallen_back = connect(OFFER).await;
    assert_eq!(fallen_back.agreed, SHARED);
    fallen_back.send_deflated(TEXT, document(1).as_bytes()).await;
    assert_eq!(fallen_back.read_message(TEXT).await, (document(1).into_bytes(), true));
    // One that wants nothing remembered needs no memory, so there is no lack of it.
    let needless = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    assert_eq!(connect(needless).await.agreed, SHARED);
    gateway.until_metric("wsgate_compression_fallbacks_total", &[], 1.0).await;

    drop(two_windows);
    gateway.until_metric(memory, &[], 4.0 * 1024.0).await;
    assert!(connect(OFFER).await.has("client_max_window_bits=12"));
    drop(one_window);
}

#[tokio::test]
async fn dropped_messages_leave_nothing_that_refers_to_them() {
    for policy in ["drop-oldest", "drop-newest"] {
        let gateway = two_shards(&[
            "--compression",
            "dedicated",
            "--slow-consumer",
            policy,
            "--outbound-queue-bytes",
            "70KiB",
        ])
        .await;
        let raw = RawClient::connect_with_little_room(gateway.listen).await;
        let mut slow = DeflateClient::open(raw, "/channels/news", OFFER).await;
        let mut quick = DeflateClient::connect(gateway.listen, "/channels/news", OFFER).await;
        // Rounds of stalling and reading, so that what stands alone and what refers follow each other.
        let (mut sent, mut received) = (0, 0);
        for round in 0..4 {
            let dropped_before = dropped(&gateway).await;
            while dropped(&gateway).await < dropped_before + 20.0 {
                for _ in 0..50 {
                    quick.send_deflated(TEXT, incompressible(sent).as_bytes()).await;
                    assert_eq!(
                        quick.read_message(TEXT).await.0,
                        incompressible(sent).as_bytes(),
                        "who reads gets everything"
                    );
                    sent += 1;
                }
            }
            // What is left inflates, in order, and it is what was sent.
            loop {
                let frame = slow.read_frame().await;
                let text = slow.inflate(&frame);
                let text = String::from_utf8(text).expect("text");
                let number: usize = text.split(' ').next().unwrap().parse().unwrap();
                assert_eq!(text, incompressible(number));
                received += 1;
                if has_nothing_waiting(&gateway).await {
                    break;
                }
            }
            // With an empty queue messages refer to each other again.
            for _ in 0..2 {
                let text = format!("quiet {round} {}", document(7));
                quick.send_deflated(TEXT, text.as_bytes()).await;
                quick.read_message(TEXT).await;
                let found = loop {
                    let frame = slow.read_frame().await;
                    let found = String::from_utf8(slow.inflate(&frame)).expect("text");
                    if found.starts_with("quiet") {
                        break found;
                    }
                };
                assert_eq!(found, text);
            }
        }
        assert!(received > 0 && received < sent, "{policy}: {received} of {sent}");
    }
}

/// A text of its own for each number that deflates to about two thirds.
fn incompressible(number: usize) -> String {
    let mut state = number as u64 + 1;
    let word = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        format!("{:016x}", state ^ (state >> 29))
    };
    format!("{number} {}", (0..60).map(word).collect::<String>())
}

async fn dropped(gateway: &Gateway) -> f64 {
    gateway.metrics().await.sum("wsgate_dropped_messages_total", &[])
}

async fn has_nothing_waiting(gateway: &Gateway) -> bool {
    gateway.metrics().await.sum("wsgate_outbound_queue_bytes", &[]) == 0.0
}

#[tokio::test]
async fn message_to_one_connection_is_deflated_as_that_has_agreed() {
    for mode in ["shared", "dedicated", "off"] {
        let gateway = two_shards(&["--compression", mode]).await;
        let mut client = DeflateClient::connect(gateway.listen, "/echo?hello=true", OFFER).await;
        let hello = client.read_message(TEXT).await.0;
        let hello: serde_json::Value = serde_json::from_slice(&hello).expect("JSON");
        for number in 0..3 {
            let text = document(number);
            let call = json!({ "connection": hello["connection"], "data": text });
            gateway.call("send", call).await;
            assert_eq!(client.read_message(TEXT).await, (text.into_bytes(), mode != "off"));
        }
    }
}

#[tokio::test]
async fn nothing_is_left_of_connections_that_were_deflated() {
    let gateway = two_shards(&["--compression", "dedicated"]).await;
    for _ in 0..2 {
        let mut clients = Vec::new();
        for number in 0..50 {
            let mut client =
                DeflateClient::connect(gateway.listen, &format!("/channels/{number}"), OFFER).await;
            let text = document(number);
            client.send_deflated(TEXT, text.as_bytes()).await;
            assert_eq!(client.read_message(TEXT).await.0, text.as_bytes());
            clients.push(client);
        }
        drop(clients);
        for gauge in ["wsgate_compression_memory_bytes", "wsgate_subscriptions"] {
            gateway.until_metric(gauge, &[], 0.0).await;
        }
        let dedicated = [("mode", "dedicated")];
        gateway.until_metric("wsgate_compressed_connections", &dedicated, 0.0).await;
    }
}
