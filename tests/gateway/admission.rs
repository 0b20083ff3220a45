//! Where clients are, by whoever is believed to know it, and how much each of them may do.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;

use crate::support::gateway::Gateway;
use crate::support::raw::{BINARY, PING, PONG, RawClient, TEXT, encode, request, request_with};
use crate::support::until;

const REJECTED: &str = "wsgate_connections_rejected_total";
const LIMITED: &str = "wsgate_rate_limited_total";

/// Every client of these tests comes from a proxy that is believed.
const TRUSTED: [&str; 4] = ["--shards", "1", "--trusted-proxies", "127.0.0.0/8"];

fn v1(source: &str) -> Vec<u8> {
    let family = if source.contains(':') { "TCP6" } else { "TCP4" };
    format!("PROXY {family} {source} {source} 4711 80\r\n").into_bytes()
}

fn v2(source: &str) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    let address = match source.parse().expect("an address") {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    header.push(if address.len() == 4 { 0x11 } else { 0x21 });
    // Two addresses, two ports, and something that nobody asked for.
    header.extend((address.len() as u16 * 2 + 4 + 5).to_be_bytes());
    header.extend([&address[..], &address, &[0x12, 0x67, 0, 80, 0xea, 0, 2, b'i', b'd']].concat());
    header
}

/// Where the gateway says that the client of this connection is.
async fn address_of(gateway: &Gateway, connection: &str) -> String {
    let answer = gateway.call("connection", json!({ "connection": connection })).await;
    assert_eq!(answer["connection"], connection);
    answer["address"].as_str().expect("it has one").to_owned()
}

/// The head of the answer to whatever `client` sends.
async fn answer(client: &mut RawClient, bytes: &[u8]) -> String {
    client.send(bytes).await;
    client.read_head().await
}

/// The id of a connection that was answered so.
fn id_in(head: &str) -> &str {
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let id = head.lines().find_map(|line| line.strip_prefix("x-connection-id: "));
    id.expect("a 101 tells the id")
}

fn assert_limited(head: &str) {
    assert!(head.starts_with("HTTP/1.1 429 "), "{head}");
    let wait = head.lines().find_map(|line| line.strip_prefix("retry-after: "));
    assert!(wait.expect(head).parse::<u32>().expect(head) >= 1);
}

/// A handshake from this address of the loopback network.
async fn handshake_from(gateway: &Gateway, source: [u8; 4]) -> (RawClient, String) {
    let mut client = RawClient::connect_from(source.into(), gateway.listen).await;
    let head = answer(&mut client, &request("/echo")).await;
    (client, head)
}

#[tokio::test]
async fn proxy_header_tells_where_the_client_is() {
    let gateway = Gateway::start(&TRUSTED).await;
    for (header, expected) in [
        (v1("192.0.2.1"), "192.0.2.1"),
        (v1("2001:db8::1"), "2001:db8::1"),
        (v1("::ffff:192.0.2.7"), "192.0.2.7"),
        (v2("192.0.2.2"), "192.0.2.2"),
        (v2("2001:db8::2"), "2001:db8::2"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec(), "127.0.0.1"),
    ] {
        // With the request in one piece, and byte by byte.
        let mut client = RawClient::connect(gateway.listen).await;
        let whole = [&header[..], &request("/channels/news?also=sport")].concat();
        let head = answer(&mut client, &whole).await;
        assert_eq!(address_of(&gateway, id_in(&head)).await, expected);
        let call = json!({ "connection": id_in(&head) });
        let channels = gateway.call("connection", call).await["channels"].clone();
        assert_eq!(channels, json!(["news", "sport"]));

        let mut client = RawClient::connect(gateway.listen).await;
        for byte in header {
            client.send(&[byte]).await;
        }
        // Nor is a header believed that says otherwise: it is the client's own.
        let spoofed = request_with("/echo", "X-Forwarded-For: 203.0.113.9\r\n");
        let head = answer(&mut client, &spoofed).await;
        assert_eq!(address_of(&gateway, id_in(&head)).await, expected);
        client.send_frame(TEXT, b"served").await;
        assert_eq!(client.read_message(TEXT).await, b"served");
    }
}

#[tokio::test]
async fn trusted_proxy_without_a_sound_header_is_closed_and_counted() {
    let flags = [&TRUSTED[..], &["--handshake-timeout", "2s"]].concat();
    let gateway = Gateway::start(&flags).await;
    let endless = [&b"PROXY TCP4 "[..], &[b'1'; 200]].concat();
    let too_long = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".to_vec();
    let broken = b"PROXY TCP4 192.0.2.1 192.0.2.256 1 2\r\n".to_vec();
    let tls = b"\x16\x03\x01\x02\x00\x01".to_vec();
    let wrong = [request("/echo"), endless, too_long, broken, tls];
    for (sent, counted) in wrong.iter().zip(1..) {
        let mut client = RawClient::connect(gateway.listen).await;
        client.offer(sent).await;
        client.read_end().await;
        let reason = [("reason", "proxy_protocol")];
        gateway.until_metric(REJECTED, &reason, f64::from(counted)).await;
    }
    // Neither silence nor dripping holds a socket for longer than a handshake may take.
    for (sent, counted) in [&b""[..], b"PROXY", &v2("192.0.2.1")[..20]].into_iter().zip(1..) {
        let mut client = RawClient::connect(gateway.listen).await;
        client.send(sent).await;
        client.read_end().await;
        gateway.until_metric(REJECTED, &[("reason", "timeout")], f64::from(counted)).await;
    }
    let mut client = RawClient::connect(gateway.listen).await;
    client.send(b"PROXY TCP4").await;
    client.shut_down().await;
    client.read_end().await;
    gateway.until_metric(REJECTED, &[("reason", "disconnected")], 1.0).await;
}

#[tokio::test]
async fn nobody_else_is_believed() {
    let gateway = Gateway::start(&["--shards", "1", "--trusted-proxies", "10.0.0.0/8"]).await;
    let mut client = RawClient::connect(gateway.listen).await;
    let head = answer(&mut client, &[v1("192.0.2.1"), request("/echo")].concat()).await;
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    gateway.until_metric(REJECTED, &[("reason", "bad_request")], 1.0).await;
    for header in ["X-Forwarded-For: 192.0.2.1\r\n", "Forwarded: for=192.0.2.1\r\n"] {
        let mut client = RawClient::connect(gateway.listen).await;
        let head = answer(&mut client, &request_with("/echo", header)).await;
        assert_eq!(address_of(&gateway, id_in(&head)).await, "127.0.0.1");
    }
}

#[tokio::test]
async fn rightmost_address_that_is_no_trusted_proxy_is_taken_from_the_header_that_is_believed() {
    let networks = ["--trusted-proxies", "127.0.0.0/8,10.0.0.0/8", "--proxy-protocol", "off"];
    let both = "X-Forwarded-For: 203.0.113.9, 192.0.2.1, 10.0.0.1\r\n\
                Forwarded: for=203.0.113.9, for=\"[2001:db8::1]:4711\";proto=https\r\n\
                Forwarded: for=10.0.0.1\r\n";
    for (believed, expected) in
        [("x-forwarded-for", "192.0.2.1"), ("forwarded", "2001:db8::1"), ("off", "127.0.0.1")]
    {
        let flags = [&networks[..], &["--forwarded-header", believed]].concat();
        let gateway = Gateway::start(&flags).await;
        let mut client = RawClient::connect(gateway.listen).await;
        let head = answer(&mut client, &request_with("/echo", both)).await;
        assert_eq!(address_of(&gateway, id_in(&head)).await, expected, "{believed}");
        let (_client, head) = handshake_from(&gateway, [127, 0, 0, 9]).await;
        assert_eq!(address_of(&gateway, id_in(&head)).await, "127.0.0.9", "nobody is named");
    }
}

#[tokio::test]
async fn address_is_in_the_log() {
    let flags = [&TRUSTED[..], &["--log-level", "debug"]].concat();
    let gateway = Gateway::start(&flags).await;
    let mut client = RawClient::connect(gateway.listen).await;
    let head = answer(&mut client, &[v1("192.0.2.1"), request("/echo")].concat()).await;
    let connection = id_in(&head).to_owned();
    let opened = format!("connection opened connection={connection} address=192.0.2.1");
    gateway.until_logged(&opened).await;
    drop(client);
    let closed = format!("connection closed connection={connection} address=192.0.2.1");
    gateway.until_logged(&closed).await;
    let mut client = RawClient::connect(gateway.listen).await;
    answer(&mut client, &[v1("192.0.2.2"), request("/nowhere")].concat()).await;
    gateway.until_logged("handshake refused address=192.0.2.2 reason=\"not_found\"").await;
}

#[tokio::test]
async fn address_has_no_more_connections_than_it_may_and_others_do_not_notice() {
    let limit = ["--shards", "2", "--max-connections-per-address", "2"];
    let gateway = Gateway::start(&limit).await;
    let mut clients = Vec::new();
    for source in [[127, 0, 0, 2], [127, 0, 0, 3]] {
        for _ in 0..2 {
            let (client, head) = handshake_from(&gateway, source).await;
            id_in(&head);
            clients.push(client);
        }
    }
    for refused in 1..=3 {
        let (_, head) = handshake_from(&gateway, [127, 0, 0, 2]).await;
        assert_limited(&head);
        let reason = [("reason", "address_limit")];
        gateway.until_metric(REJECTED, &reason, f64::from(refused)).await;
    }
    gateway.until_metric("wsgate_addresses", &[], 2.0).await;
    drop(clients.swap_remove(0));
    let client = until("its place to be somebody else's", async || {
        let (client, head) = handshake_from(&gateway, [127, 0, 0, 2]).await;
        head.starts_with("HTTP/1.1 101 ").then_some(client)
    })
    .await;
    clients.push(client);
    clients.clear();
    gateway.until_metric("wsgate_addresses", &[], 0.0).await;
}

#[tokio::test]
async fn beyond_those_who_wait_to_be_told_sockets_of_a_full_address_are_closed_unanswered() {
    const WAITING: usize = 32;
    let limit = ["--shards", "1", "--max-connections-per-address", "1"];
    let gateway = Gateway::start(&limit).await;
    let (_client, head) = handshake_from(&gateway, [127, 0, 0, 1]).await;
    id_in(&head);
    let mut waiting = Vec::new();
    for _ in 0..WAITING {
        waiting.push(RawClient::connect(gateway.listen).await);
    }
    let accepted = WAITING as f64 + 1.0;
    gateway.until_metric("wsgate_connections_accepted_total", &[], accepted).await;
    for unanswered in 1..=4 {
        let mut client = RawClient::connect(gateway.listen).await;
        client.read_end().await;
        let reason = [("reason", "address_limit")];
        gateway.until_metric(REJECTED, &reason, f64::from(unanswered)).await;
    }
    for client in &mut waiting {
        assert_limited(&answer(client, &request("/echo")).await);
    }
    let (_client, head) = handshake_from(&gateway, [127, 0, 0, 2]).await;
    id_in(&head);
}

#[tokio::test]
async fn ipv6_is_counted_by_64_and_a_proxy_that_names_nobody_not_at_all() {
    let flags = [&TRUSTED[..], &["--max-connections-per-address", "2"]].concat();
    let gateway = Gateway::start(&flags).await;
    let mut clients = Vec::new();
    let mut connect = async |header: Vec<u8>| {
        let mut client = RawClient::connect(gateway.listen).await;
        let head = answer(&mut client, &[header, request("/echo")].concat()).await;
        clients.push(client);
        head
    };
    for address in ["2001:db8::1", "2001:db8::ffff:0:0:1", "2001:db8:0:1::1"] {
        id_in(&connect(v2(address)).await);
    }
    assert_limited(&connect(v2("2001:db8::2")).await);
    id_in(&connect(v2("2001:db8:0:1::2")).await);
    assert_limited(&connect(v1("2001:db8:0:1::3")).await);
    for _ in 0..4 {
        id_in(&connect(b"PROXY UNKNOWN\r\n".to_vec()).await);
    }
    let random = Ipv6Addr::from_bits(0x2001_0db8_ffff_0000_0000_0000_0000_0001).to_string();
    id_in(&connect(v2(&random)).await);
}

#[tokio::test]
async fn limits_hold_for_those_whom_a_proxy_names_in_requests() {
    let flags = ["--proxy-protocol", "off", "--max-connections-per-address", "1"];
    let gateway = Gateway::start(&[&TRUSTED[..], &flags].concat()).await;
    let mut clients = Vec::new();
    let mut connect = async |named: &str| {
        let mut client = RawClient::connect(gateway.listen).await;
        let header = format!("X-Forwarded-For: {named}\r\n");
        let head = answer(&mut client, &request_with("/echo", &header)).await;
        clients.push(client);
        head
    };
    id_in(&connect("192.0.2.1").await);
    // Whatever the client itself has put in front of it.
    assert_limited(&connect("203.0.113.9, 192.0.2.1").await);
    id_in(&connect("192.0.2.2").await);
    gateway.until_metric(REJECTED, &[("reason", "address_limit")], 1.0).await;
}

#[tokio::test]
async fn address_that_connects_too_often_is_told_to_wait_and_others_are_not() {
    let flags = ["--shards", "2", "--max-handshakes-per-second-per-address", "2"];
    let gateway = Gateway::start(&flags).await;
    let limited = crate::support::until("an address to be limited", async || {
        let (_, head) = handshake_from(&gateway, [127, 0, 0, 2]).await;
        head.starts_with("HTTP/1.1 429 ").then_some(head)
    });
    assert_limited(&limited.await);
    let (_, head) = handshake_from(&gateway, [127, 0, 0, 3]).await;
    id_in(&head);
    let reason = [("reason", "address_rate")];
    gateway.until_metric(REJECTED, &reason, 1.0).await;
    // Its time comes, and then nothing is kept of it.
    crate::support::until("its time to come", async || {
        let (_, head) = handshake_from(&gateway, [127, 0, 0, 2]).await;
        head.starts_with("HTTP/1.1 101 ").then_some(())
    })
    .await;
    crate::support::until("the table to be empty", async || {
        // Forgetting comes with the next that enters.
        handshake_from(&gateway, [127, 0, 0, 4]).await;
        (gateway.metrics().await.sum("wsgate_addresses", &[]) <= 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn all_together_connect_no_more_often_than_they_may() {
    const CLIENTS: usize = 40;
    let gateway = Gateway::start(&["--shards", "2", "--max-handshakes-per-second", "5"]).await;
    let start = Instant::now();
    let mut handshakes = JoinSet::new();
    for number in 0..CLIENTS {
        let listen = gateway.listen;
        handshakes.spawn(async move {
            let source = [127, 0, 1, number as u8].into();
            let mut client = RawClient::connect_from(source, listen).await;
            let head = answer(&mut client, &request("/echo")).await;
            (client, head)
        });
    }
    let answers = handshakes.join_all().await;
    let (accepted, refused): (Vec<_>, Vec<_>) =
        answers.iter().partition(|(_, head)| head.starts_with("HTTP/1.1 101 "));
    let most = 5.0 + start.elapsed().as_secs_f64() * 5.0;
    assert!(accepted.len() >= 5 && accepted.len() as f64 <= most, "{}", accepted.len());
    refused.iter().for_each(|(_, head)| assert_limited(head));
    let counted = refused.len() as f64;
    gateway.until_metric(REJECTED, &[("reason", "handshake_rate")], counted).await;
}

#[tokio::test]
async fn too_many_messages_wait_for_their_time_in_their_order_and_none_is_lost() {
    let flags = ["--max-messages-per-second", "20", "--max-messages-burst", "5"];
    for compression in ["off", "shared"] {
        let flags = [&["--shards", "1", "--compression", compression][..], &flags].concat();
        let gateway = Gateway::start(&flags).await;
        let mut client = gateway.open_raw("/echo").await;
        let mut other = gateway.open_raw("/echo").await;
        let start = Instant::now();
        let numbers: Vec<String> = (0..25).map(|number: u32| number.to_string()).collect();
        let mut frames: Vec<u8> =
            numbers.iter().flat_map(|number| encode(TEXT, number.as_bytes())).collect();
        // What comes behind waits too.
        frames.extend(encode(PING, b"last"));
        client.send(&frames).await;
        for number in &numbers {
            assert_eq!(client.read_message(TEXT).await, number.as_bytes());
        }
        assert_eq!(client.read_message(PONG).await, b"last");
        assert!(start.elapsed() >= Duration::from_secs(1), "20 of 25 wait for 50 ms each");
        let metrics = gateway.metrics().await;
        let slowed = [("limit", "messages"), ("action", "slow")];
        assert!((1.0..=21.0).contains(&metrics.sum(LIMITED, &slowed)));
        assert_eq!(metrics.sum("wsgate_messages_received_total", &[]), 25.0);
        // Each connection has its own.
        other.send_frame(TEXT, b"served").await;
        assert_eq!(other.read_message(TEXT).await, b"served");
    }
}

#[tokio::test]
async fn flood_is_taken_at_its_pace_and_the_rest_stays_in_the_socket() {
    let flags = ["--shards", "1", "--max-messages-per-second", "50"];
    let gateway = Gateway::start(&flags).await;
    let mut client = gateway.open_raw("/channels/news?own=false").await;
    let start = Instant::now();
    let frames = encode(BINARY, b"x").repeat(10_000);
    let sent = client.send_until_full(&frames, 64 << 20).await;
    let metrics = gateway.metrics().await;
    let acted_on = metrics.sum("wsgate_messages_received_total", &[]);
    let most = 50.0 + start.elapsed().as_secs_f64() * 50.0;
    assert!(acted_on <= most, "{acted_on} messages, and {most} are allowed");
    // One read, and what each message takes.
    let read = metrics.sum("wsgate_received_bytes_total", &[]);
    assert!(read <= 16.0 * 1024.0 + acted_on * 7.0, "{read} of {sent} bytes were read");
    // It can still be closed.
    gateway.signal(rustix::process::Signal::TERM);
    gateway.until_logged("drain").await;
}

#[tokio::test]
async fn message_beyond_the_rate_closes_where_that_is_asked_for() {
    let flags = [
        "--shards=1",
        "--max-messages-per-second=1",
        "--max-messages-burst=5",
        "--rate-limit-action=close",
    ];
    let gateway = Gateway::start(&flags).await;
    let mut client = gateway.open_raw("/echo").await;
    client.send(&encode(TEXT, b"served").repeat(5)).await;
    for _ in 0..5 {
        assert_eq!(client.read_message(TEXT).await, b"served");
    }
    let closed = async {
        client.offer(&encode(TEXT, b"one too many").repeat(500)).await;
        let frames = client.reader.read_frames().await;
        frames.last().expect("a Close at least").close().1.to_owned()
    };
    assert_eq!(closed.await, "too many messages");
    let limited = [("limit", "messages"), ("action", "close")];
    gateway.until_metric(LIMITED, &limited, 1.0).await;
    let code = [("code", "1008"), ("initiator", "local")];
    drop(client);
    gateway.until_metric("wsgate_connections_closed_total", &code, 1.0).await;
}

#[tokio::test]
async fn bytes_are_read_at_their_rate() {
    const MESSAGE: usize = 48 * 1024;
    let flags = ["--max-bytes-per-second", "64KiB", "--max-bytes-burst", "16KiB"];
    let gateway = Gateway::start(&[&["--shards", "1"][..], &flags].concat()).await;
    let mut client = gateway.open_raw("/echo").await;
    let start = Instant::now();
    for _ in 0..2 {
        client.send_frame(BINARY, &[7; MESSAGE]).await;
        assert_eq!(client.read_message(BINARY).await, [7; MESSAGE]);
    }
    // 80 KiB at 64 KiB a second.
    assert!(start.elapsed() >= Duration::from_millis(1_250), "{:?}", start.elapsed());
    let slowed = [("limit", "bytes"), ("action", "slow")];
    assert!(gateway.metrics().await.sum(LIMITED, &slowed) >= 1.0);
}

#[tokio::test]
async fn bytes_beyond_the_rate_close_where_that_is_asked_for() {
    let flags = ["--shards=1", "--max-bytes-per-second=1KiB", "--rate-limit-action=close"];
    let gateway = Gateway::start(&flags).await;
    let mut client = gateway.open_raw("/echo").await;
    client.send_frame(BINARY, &[7; 1_000]).await;
    assert_eq!(client.read_message(BINARY).await, [7; 1_000]);
    client.send_frame(BINARY, &[7; 50_000]).await;
    let frame = client.read_frame().await;
    assert_eq!(frame.close(), (1008, "too many bytes"));
    let limited = [("limit", "bytes"), ("action", "close")];
    gateway.until_metric(LIMITED, &limited, 1.0).await;
}

#[tokio::test]
async fn client_that_is_slowed_is_not_taken_for_idle() {
    let flags =
        ["--shards=1", "--max-messages-per-second=1", "--idle-timeout=300ms", "--ping-interval=0s"];
    let gateway = Gateway::start(&flags).await;
    let mut client = RawClient::connect(gateway.listen).await;
    // All at once: whoever waits for its turn may be late with it.
    let messages = encode(TEXT, b"one a second").repeat(4);
    client.send(&[request("/echo"), messages].concat()).await;
    assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
    for _ in 0..4 {
        assert_eq!(client.read_message(TEXT).await, b"one a second");
    }
    // Now it is.
    assert_eq!(client.read_close().await, (1001, "idle timeout".to_owned()));
}

#[tokio::test]
async fn connections_end_at_their_age_and_not_all_at_once() {
    const CLIENTS: usize = 24;
    let gateway = Gateway::start(&["--shards", "2", "--max-connection-age", "2s"]).await;
    let mut ages = JoinSet::new();
    for _ in 0..CLIENTS {
        let opened = Instant::now();
        let mut client = gateway.open_raw("/channels/news").await;
        ages.spawn(async move {
            assert_eq!(client.read_close().await, (1001, "connection age".to_owned()));
            opened.elapsed()
        });
    }
    let mut ages = ages.join_all().await;
    ages.sort();
    // The age is spread by a tenth.
    assert!(ages[0] >= Duration::from_millis(1_750), "{ages:?}");
    let spread = ages[CLIENTS - 1] - ages[0];
    assert!(spread >= Duration::from_millis(100), "{ages:?}");
    gateway.until_metric("wsgate_connections_aged_total", &[], CLIENTS as f64).await;
    gateway.until_metric("wsgate_connections", &[], 0.0).await;
}
