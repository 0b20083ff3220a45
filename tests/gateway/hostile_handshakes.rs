//! Bytes that are no opening handshake, or more than one, or too many: each is answered as RFC 9112
//! and RFC 6455 want it, others are served meanwhile, and nothing of it stays.

use std::hash::{BuildHasher, RandomState};

use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::raw::{
    BINARY, CLOSE, PING, PONG, RawClient, TEXT, close_payload, encode, encode_with, request,
};
use crate::support::siege::Siege;
use crate::support::within;

/// So long that nothing here ends because of it: who is let go is let go for what was sent.
const PATIENT: [&str; 2] = ["--handshake-timeout", "120s"];

/// Most bytes of a request head.
const MAX_HEAD_BYTES: usize = 8 * 1_024;

const REJECTED: &str = "wsgate_connections_rejected_total";

const GET_ECHO: &str = "GET /echo HTTP/1.1";

const HOST: &str = "Host: gateway";

/// An opening handshake with this request line and first header, and `more` behind the other headers:
/// lines with their ends.
fn handshake(request_line: &str, host: &str, more: &[u8]) -> Vec<u8> {
    let head = format!(
        "{request_line}\r\n{host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    );
    [head.as_bytes(), more, b"\r\n"].concat()
}

/// One for `/echo` with these headers beside its own.
fn with_headers(more: &[u8]) -> Vec<u8> {
    handshake(GET_ECHO, HOST, more)
}

/// One for `/echo` whose head is `bytes` long.
fn with_head_of(bytes: usize) -> Vec<u8> {
    let filler = bytes - with_headers(b"X-Filler: \r\n").len();
    with_headers(format!("X-Filler: {}\r\n", "x".repeat(filler)).as_bytes())
}

/// Everything that the gateway says to these bytes until it lets go.
async fn answer_to(gateway: &Gateway, bytes: &[u8]) -> String {
    let mut client = RawClient::connect(gateway.listen).await;
    client.offer(bytes).await;
    String::from_utf8_lossy(&client.reader.read_rest().await).into_owned()
}

/// Demands that these bytes are answered once, with `status`, and that the gateway then lets go.
async fn refused(gateway: &Gateway, bytes: &[u8], status: u16) {
    let sent = String::from_utf8_lossy(bytes);
    let answer = answer_to(gateway, bytes).await;
    let (line, rest) = answer.split_once("\r\n").unwrap_or_else(|| panic!("{answer:?} to {sent}"));
    let begins = format!(" {status} ");
    assert!(line.starts_with("HTTP/1.") && line[8..].starts_with(&begins), "{line} to {sent}");
    assert_eq!(rest.matches("connection: close").count(), 1, "{answer} to {sent}");
    assert_eq!(rest.matches("\r\n\r\n").count(), 1, "two answers, {answer} to {sent}");
}

/// Demands that these bytes open a connection to `/echo`, which then echoes.
async fn accepted(gateway: &Gateway, bytes: &[u8]) {
    let mut client = RawClient::connect(gateway.listen).await;
    client.send(bytes).await;
    let head = client.read_head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head} to {}", String::from_utf8_lossy(bytes));
    client.send_frame(TEXT, b"served").await;
    assert_eq!(client.read_message(TEXT).await, b"served");
}

/// A request that would be answered with 101 if it were taken for one.
fn smuggled() -> Vec<u8> {
    request("/channels/smuggled")
}

#[tokio::test]
async fn upgrade_request_with_a_body_is_refused_and_what_follows_is_no_request() {
    // What frames the body, and the body.
    let cases: [(&str, &str); 32] = [
        ("Content-Length: 5\r\n", "hello"),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", "hello"),
        ("Content-Length: 0\r\nContent-Length: 5\r\n", "hello"),
        ("Content-Length: 5\r\nContent-Length: 0\r\n", "hello"),
        ("Content-Length: 5, 5\r\n", "hello"),
        ("Content-Length: 0, 0\r\n", ""),
        ("Content-Length: +5\r\n", "hello"),
        ("Content-Length: +0\r\n", ""),
        ("Content-Length: -0\r\n", ""),
        ("Content-Length: 0x5\r\n", "hello"),
        ("Content-Length: 5 5\r\n", "hello"),
        ("Content-Length:\r\n", ""),
        ("Content-Length: 00\r\n", ""),
        ("Content-Length: 18446744073709551616\r\n", ""),
        ("Content-Length: 18446744073709551614, 0\r\n", ""),
        ("Content-Length : 5\r\n", "hello"),
        ("Content-Length: 5\r\nExpect: 100-continue\r\n", ""),
        ("Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "5;ext=\"\n\"\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: identity, chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: identity\r\n", ""),
        ("Transfer-Encoding:\r\n", ""),
        ("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
        ("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
    ];
    let siege = Siege::begin(&PATIENT).await;
    let attack = async |siege: &Siege| {
        for (framing, body) in cases {
            let bytes =
                [&with_headers(framing.as_bytes()), body.as_bytes(), &smuggled()[..]].concat();
            refused(&siege.gateway, &bytes, 400).await;
        }
        let longest = format!("Content-Length: {}\r\n", u64::MAX);
        refused(&siege.gateway, &[with_headers(longest.as_bytes()), smuggled()].concat(), 431)
            .await;
    };
    let rounds = siege.withstand(attack).await.rounds;
    let after = siege.gateway.metrics().await;
    let refused = after.sum(REJECTED, &[("reason", "bad_request")]);
    assert_eq!(refused, (rounds * cases.len()) as f64);
}

#[tokio::test]
async fn length_of_nothing_is_no_body() {
    let gateway = Gateway::start(&PATIENT).await;
    for length in ["Content-Length: 0\r\n", "Content-Length: 0\r\nContent-Length: 0\r\n"] {
        accepted(&gateway, &with_headers(length.as_bytes())).await;
    }
    // Nor is there one that could be waited for.
    accepted(&gateway, &with_headers(b"Content-Length: 0\r\nExpect: 100-continue\r\n")).await;
}

#[tokio::test]
async fn header_that_must_be_single_is_refused_twice_and_what_follows_is_no_request() {
    let siege = Siege::begin(&PATIENT).await;
    let attack = async |siege: &Siege| {
        for (header, status) in [
            ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", 400),
            ("sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==", 400),
            ("Sec-WebSocket-Version: 13", 426),
            ("Sec-WebSocket-Version: 8", 426),
            ("Host: gateway", 400),
            ("hOST: another", 400),
            ("Origin: http://gateway\r\nOrigin: http://gateway", 403),
        ] {
            let more = format!("{header}\r\n");
            let bytes = [with_headers(more.as_bytes()), smuggled()].concat();
            refused(&siege.gateway, &bytes, status).await;
        }
    };
    siege.withstand(attack).await;
}

/// RFC 6455 sections 11.3.2 and 11.3.4: unlike the others these may be there more than once, and are
/// one list then.
#[tokio::test]
async fn list_over_several_headers_is_one_and_what_follows_is_no_request() {
    const PROTOCOL: &str = "Sec-WebSocket-Protocol: unheard-of\r\n";
    let deflate = "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=";
    let twice = format!("Sec-WebSocket-Extensions: x-unknown\r\n{deflate}10\r\n{deflate}11\r\n");
    let malformed = format!(
        "Sec-WebSocket-Extensions: x; y=\"\r\nsec-websocket-extensions:\r\n{deflate}10\r\n"
    );
    let siege = Siege::begin(&PATIENT).await;
    let attack = async |siege: &Siege| {
        for (headers, agreed) in [
            (PROTOCOL.repeat(2), None),
            (format!("{PROTOCOL}Sec-WebSocket-Protocol: another\r\n"), None),
            (format!("{PROTOCOL}Sec-WebSocket-Protocol: \u{ff}, ,\r\n"), None),
            (twice.clone(), Some("server_max_window_bits=10")),
            (malformed.clone(), Some("server_max_window_bits=10")),
            (format!("{PROTOCOL}{twice}{PROTOCOL}"), Some("server_max_window_bits=10")),
        ] {
            let mut client = RawClient::connect(siege.gateway.listen).await;
            let bytes = [with_headers(headers.as_bytes()), encode(TEXT, b"served"), smuggled()];
            client.send(&bytes.concat()).await;
            let head = client.read_head().await;
            assert!(head.starts_with("HTTP/1.1 101 "), "{head} to {headers}");
            // What the client has not asked for, or not as a list of one, would fail its handshake.
            assert!(!head.contains("sec-websocket-protocol"), "{head} to {headers}");
            let answers = head.matches("sec-websocket-extensions").count();
            assert_eq!(answers, agreed.iter().len(), "{head} to {headers}");
            assert!(agreed.is_none_or(|agreed| head.contains(agreed)), "{head} to {headers}");
            assert_eq!(client.read_message(TEXT).await, b"served");
            assert_eq!(client.read_close().await.0, 1002);
            client.read_end().await;
        }
    };
    siege.withstand(attack).await;
}

#[tokio::test]
async fn request_behind_a_refused_one_is_never_read() {
    let siege = Siege::begin(&PATIENT).await;
    let upgrade = smuggled();
    let length = upgrade.len();
    let get = "GET /nothing HTTP/1.1\r\nHost: gateway\r\n\r\n".to_owned();
    let keep_alive =
        "GET /nothing HTTP/1.0\r\nHost: gateway\r\nConnection: keep-alive\r\n\r\n".to_owned();
    // The upgrade is the body, or the server's idea of its length is another than the proxy's.
    let post =
        format!("POST /nothing HTTP/1.1\r\nHost: gateway\r\nContent-Length: {length}\r\n\r\n");
    let chunked = format!(
        "POST /echo HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n"
    );
    let attack = async |siege: &Siege| {
        for (first, status) in [(&get, 404), (&keep_alive, 404), (&post, 404), (&chunked, 405)] {
            refused(&siege.gateway, &[first.as_bytes(), &upgrade].concat(), status).await;
            refused(&siege.gateway, &[first.as_bytes(), &upgrade, &upgrade].concat(), status).await;
        }
    };
    let rounds = siege.withstand(attack).await.rounds;
    let after = siege.gateway.metrics().await;
    assert_eq!(after.sum(REJECTED, &[("reason", "not_found")]), rounds as f64 * 6.0);
}

#[tokio::test]
async fn request_behind_an_upgrade_is_taken_for_frames_and_fails_as_such() {
    let siege = Siege::begin(&PATIENT).await;
    let attack = async |siege: &Siege| {
        for second in [smuggled(), b"POST / HTTP/1.1\r\nHost: gateway\r\n\r\n".to_vec()] {
            let mut client = RawClient::connect(siege.gateway.listen).await;
            client.send(&[request("/echo"), second].concat()).await;
            let head = client.read_head().await;
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            assert_eq!(client.read_close().await.0, 1002);
            client.read_end().await;
        }
    };
    siege.withstand(attack).await;
}

#[tokio::test]
async fn other_versions_of_http_are_refused() {
    let siege = Siege::begin(&PATIENT).await;
    let attack = async |siege: &Siege| {
        for line in [
            "GET /echo HTTP/1.0",
            "GET /echo",
            "GET /echo ",
            "GET /echo HTTP/0.9",
            "GET /echo HTTP/1.2",
            "GET /echo HTTP/2.0",
            "GET /echo HTTP/3",
            "GET /echo HTTP/11.1",
            "GET /echo HTTP/1.10",
            "GET /echo HTTP/1,1",
            "GET /echo http/1.1",
            "GET /echo Http/1.1",
            "GET /echo HTTPS/1.1",
            "GET /echo RTSP/1.0",
        ] {
            refused(&siege.gateway, &[handshake(line, HOST, b""), smuggled()].concat(), 400).await;
        }
        for connection in ["close", "keep-alive", "Upgrade"] {
            let head = format!("GET /echo HTTP/1.0\r\nConnection: {connection}\r\n\r\n");
            refused(&siege.gateway, head.as_bytes(), 400).await;
        }
        refused(&siege.gateway, b"GET /echo\r\n", 400).await;
        refused(&siege.gateway, b"GET /echo\n", 400).await;
    };
    siege.withstand(attack).await;
}

#[tokio::test]
async fn client_that_speaks_http2_or_tls_is_let_go_at_once() {
    let siege = Siege::begin(&PATIENT).await;
    // A client that knows that it speaks HTTP/2 could read no answer in HTTP/1.1.
    let preface = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    // The record and handshake headers of a ClientHello of TLS 1.2, and some of the rest of it.
    let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[0x5a; 508]].concat();
    let attack = async |siege: &Siege| {
        assert_eq!(answer_to(&siege.gateway, &preface).await, "");
        refused(&siege.gateway, &hello, 400).await;
        refused(&siege.gateway, &hello[..1], 400).await;
    };
    let rounds = siege.withstand(attack).await.rounds;
    let after = siege.gateway.metrics().await;
    assert_eq!(after.sum(REJECTED, &[("reason", "bad_request")]), rounds as f64 * 3.0);
}

#[tokio::test]
async fn request_target_in_absolute_form_is_taken() {
    let siege = Siege::begin(&PATIENT).await;
    // RFC 9112 section 3.2: without Host it is no request of HTTP/1.1 all the same.
    let without_host = handshake("GET http://gateway/echo HTTP/1.1", "X-Host: gateway", b"");
    let attack = async |siege: &Siege| {
        for target in [
            "http://gateway/echo",
            "HTTP://GATEWAY:80/echo?hello=false",
            "http://127.0.0.1:8080/echo",
            "http://[::1]/echo",
            "ws://gateway/echo",
        ] {
            let line = format!("GET {target} HTTP/1.1");
            accepted(&siege.gateway, &handshake(&line, HOST, b"")).await;
        }
        refused(&siege.gateway, &[&without_host[..], &smuggled()].concat(), 400).await;
    };
    siege.withstand(attack).await;
}

#[tokio::test]
async fn authority_of_an_absolute_target_wins_over_host() {
    let siege = Siege::begin(&PATIENT).await;
    let line = "GET http://gateway/echo HTTP/1.1";
    // RFC 9112 section 3.2.2: the received Host is to be ignored.
    let own = handshake(line, "Host: elsewhere.example", b"Origin: http://gateway\r\n");
    let foreign =
        handshake(line, "Host: elsewhere.example", b"Origin: http://elsewhere.example\r\n");
    let attack = async |siege: &Siege| {
        accepted(&siege.gateway, &own).await;
        refused(&siege.gateway, &[&foreign[..], &smuggled()].concat(), 403).await;
    };
    siege.withstand(attack).await;
}

#[tokio::test]
async fn request_target_that_is_no_path_of_an_endpoint_is_refused() {
    let cases = [
        // In the other forms: of CONNECT, and of OPTIONS for the server as a whole.
        ("gateway:80", 404),
        ("echo", 404),
        ("*", 404),
        ("http://gateway", 404),
        ("http://gateway?hello=true", 404),
        ("http:///echo", 400),
        // No path is made better than it came: a proxy in front may have let pass what it does not
        // take for /echo.
        ("/%65cho", 404),
        ("/echo%00", 404),
        ("/./echo", 404),
        ("/x/../echo", 404),
        ("/echo/.", 404),
        ("//echo", 404),
        ("/echo/", 404),
        ("/echo;x", 404),
        ("/ECHO", 404),
        ("/channels/", 400),
        ("/channels/%", 400),
        ("/channels/%4", 400),
        ("/channels/%zz", 400),
        ("/channels/%ff", 400),
        ("/channels/%00", 400),
        ("/channels/%0d%0aX-Injected:%20yes", 400),
        ("\\echo", 400),
        ("#", 400),
        ("/echo\0", 400),
        ("/echo\rX", 400),
        ("/ec ho", 400),
        (" /echo", 400),
        ("/echo ", 400),
        ("/echo\t", 400),
        ("", 400),
    ];
    let siege = Siege::begin(&PATIENT).await;
    let attack = async |siege: &Siege| {
        for (target, status) in cases {
            let line = format!("GET {target} HTTP/1.1");
            refused(&siege.gateway, &handshake(&line, HOST, b""), status).await;
        }
    };
    siege.withstand(attack).await;
}

#[tokio::test]
async fn fragment_of_a_target_is_no_part_of_it() {
    let gateway = Gateway::start(&PATIENT).await;
    // No client may send one. What stands before it is what any server would see.
    accepted(&gateway, &handshake("GET /echo#/channels/news HTTP/1.1", HOST, b"")).await;
}

#[tokio::test]
async fn other_methods_are_refused() {
    let siege = Siege::begin(&PATIENT).await;
    let attack = async |siege: &Siege| {
        let methods = [
            "HEAD",
            "POST",
            "PUT",
            "DELETE",
            "OPTIONS",
            "TRACE",
            "PATCH",
            "PRI",
            "get",
            "Get",
            "GETT",
            "GE",
            "CONNECT",
            "X-!#$%&'*+.^_`|~0",
        ];
        for method in methods {
            let line = format!("{method} /echo HTTP/1.1");
            let bytes = [handshake(&line, HOST, b"Cookie: secret\r\n"), smuggled()].concat();
            refused(&siege.gateway, &bytes, 405).await;
            // Least of all may TRACE say what it was told.
            assert!(!answer_to(&siege.gateway, &bytes).await.contains("secret"));
        }
        refused(&siege.gateway, &handshake("CONNECT gateway:80 HTTP/1.1", HOST, b""), 404).await;
        refused(&siege.gateway, &handshake("OPTIONS * HTTP/1.1", HOST, b""), 404).await;
        for line in ["G@T /echo HTTP/1.1", "G\0T /echo HTTP/1.1", " GET /echo HTTP/1.1"] {
            refused(&siege.gateway, &handshake(line, HOST, b""), 400).await;
        }
    };
    siege.withstand(attack).await;
}

#[tokio::test]
async fn host_that_is_none_is_refused() {
    let siege = Siege::begin(&PATIENT).await;
    let attack = async |siege: &Siege| {
        for host in [
            "X-Host: gateway",
            "Host: two hosts",
            "Host: a.example, b.example",
            "Host: user@gateway",
            "Host: gateway/echo",
            "Host: http://gateway",
            "Host: gateway:http",
            "Host: [::1",
            "Host: \u{e4}",
            " Host: gateway",
        ] {
            let bytes = [handshake(GET_ECHO, host, b""), smuggled()].concat();
            refused(&siege.gateway, &bytes, 400).await;
        }
    };
    siege.withstand(attack).await;
    for host in ["Host:", "Host: [::1]:8080", "Host: gateway:"] {
        accepted(&siege.gateway, &handshake(GET_ECHO, host, b"")).await;
    }
}

#[tokio::test]
async fn malformed_headers_are_refused() {
    let siege = Siege::begin(&PATIENT).await;
    let attack = async |siege: &Siege| {
        for header in [
            // A line that goes on in the next one.
            "X: a\r\n b",
            "X: a\r\n\tb",
            "X:\r\n a",
            "X : a",
            "X\t: a",
            " X: a",
            "X",
            "X a",
            ": a",
            "X: a\rY: b",
            "X: a\r\rY: b",
            "X: \r",
            "X: a\n b",
        ] {
            let more = format!("{header}\r\nX-Last: yes\r\n");
            let bytes = [with_headers(more.as_bytes()), smuggled()].concat();
            refused(&siege.gateway, &bytes, 400).await;
        }
        refused(&siege.gateway, b"\r\r\nGET /echo HTTP/1.1\r\n\r\n", 400).await;
    };
    siege.withstand(attack).await;
}

#[tokio::test]
async fn lines_may_end_without_carriage_return_and_begin_after_empty_ones() {
    let gateway = Gateway::start(&PATIENT).await;
    // RFC 9112 section 2.2 leaves both to the server, and proxies in front agree on what they mean.
    let text = String::from_utf8(request("/echo")).expect("a request is ASCII");
    accepted(&gateway, text.replace("\r\n", "\n").as_bytes()).await;
    accepted(&gateway, format!("\r\n\r\n\n\n{text}").as_bytes()).await;
}

#[tokio::test]
async fn each_byte_in_a_header_is_taken_or_refused_as_its_grammar_says() {
    let siege = Siege::begin(&PATIENT).await;
    let is_of_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let is_of_value = |byte: u8| byte == b'\t' || (byte >= b' ' && byte != 0x7f);
    let attack = async |siege: &Siege| {
        for byte in 0..=u8::MAX {
            let in_name = with_headers(&[b"X", &[byte][..], b"Y: a\r\n"].concat());
            match byte {
                b':' => accepted(&siege.gateway, &in_name).await,
                _ if is_of_token(byte) => accepted(&siege.gateway, &in_name).await,
                _ => refused(&siege.gateway, &in_name, 400).await,
            }
            let in_value = with_headers(&[b"X: a", &[byte][..], b"b\r\n"].concat());
            match is_of_value(byte) {
                true => accepted(&siege.gateway, &in_value).await,
                false => refused(&siege.gateway, &in_value, 400).await,
            }
        }
    };
    siege.withstand(attack).await;
}

#[tokio::test]
async fn head_of_8_kib_is_taken_and_one_of_a_byte_more_is_not() {
    let siege = Siege::begin(&PATIENT).await;
    let frame = encode(TEXT, b"behind a full buffer");
    let attack = async |siege: &Siege| {
        for split in [0, 1, MAX_HEAD_BYTES / 2, MAX_HEAD_BYTES - 1, MAX_HEAD_BYTES] {
            let mut client = RawClient::connect(siege.gateway.listen).await;
            let bytes = [with_head_of(MAX_HEAD_BYTES), frame.clone()].concat();
            client.send(&bytes[..split]).await;
            client.send(&bytes[split..]).await;
            let head = client.read_head().await;
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            assert_eq!(client.read_message(TEXT).await, b"behind a full buffer");
            for bytes in [MAX_HEAD_BYTES + 1, MAX_HEAD_BYTES + 2, 3 * MAX_HEAD_BYTES] {
                refused(&siege.gateway, &with_head_of(bytes), 431).await;
            }
        }
    };
    siege.withstand(attack).await;
}

#[tokio::test]
async fn bombs_of_a_thousand_clients_at_once_are_cut_at_8_kib() {
    // More than a head may be, and all of it is sent at once by each.
    const BYTES: usize = 64 * 1_024;
    const CLIENTS: usize = 1_000;
    let begun = b"GET /echo HTTP/1.1\r\nHost: gateway\r\n";
    let fill = |begin: &[u8], filler: &[u8]| {
        let fillers = (BYTES - begin.len()) / filler.len();
        [begin, &filler.repeat(fillers)].concat()
    };
    let bombs = [
        fill(begun, b"a:b\r\n"),
        fill(begun, b"Cookie: a\r\n"),
        fill(begun, b"\xffendless"),
        fill(&[&begun[..], b"X-Endless: "].concat(), b"x"),
        fill(&[&begun[..], b"X-Endless: "].concat(), b" "),
        fill(&[&begun[..], b"X-Endless"].concat(), b"x"),
        fill(b"GET /echo?", b"x"),
        fill(b"GET /channels/", b"%41"),
        fill(b"GET ", b"/"),
        fill(b"", b"G"),
        fill(b"", b"\r\n"),
        fill(b"", b"\n"),
    ];
    let siege = Siege::begin(&PATIENT).await;
    let attack = async |siege: &Siege| {
        let mut attackers = JoinSet::new();
        for number in 0..CLIENTS {
            let (address, bomb) = (siege.gateway.listen, bombs[number % bombs.len()].clone());
            attackers.spawn(async move {
                let mut client = RawClient::connect(address).await;
                client.offer(&bomb).await;
                let answer = client.reader.read_rest().await;
                // That none of these bytes can be in a header is known before there are too many.
                let status = if bomb.contains(&0xff) { "400" } else { "431" };
                let answer = String::from_utf8_lossy(&answer).into_owned();
                assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer:?}");
            });
        }
        attackers.join_all().await;
    };
    siege.withstand(attack).await;
}

#[tokio::test]
async fn thousand_heads_that_stop_before_their_end_hold_no_more_than_they_sent() {
    // Of the gateway for each: its buffer of 8 KiB, and what a socket in its handshake costs anyway.
    const MOST_BYTES_EACH: f64 = 24.0 * 1_024.0;
    const CLIENTS: usize = 1_000;
    let siege = Siege::begin(&PATIENT).await;
    let mut head = with_head_of(MAX_HEAD_BYTES);
    head.truncate(MAX_HEAD_BYTES - 1);
    let mut requests = siege.gateway.requests().await;
    let attack = async |siege: &Siege| {
        let mut bystanders = [
            siege.gateway.connect_to_shard(0, "/echo").await,
            siege.gateway.connect_to_shard(1, "/echo").await,
        ];
        let before = requests.scrape().await;
        let mut attackers = Vec::new();
        for _ in 0..CLIENTS {
            let mut client = RawClient::connect(siege.gateway.listen).await;
            client.send(&head).await;
            attackers.push(client);
        }
        let accepted = "wsgate_connections_accepted_total";
        let all = before.sum(accepted, &[]) + CLIENTS as f64;
        siege.gateway.until_metric(accepted, &[], all).await;
        // A shard looks at so many sockets in more than one turn.
        for _ in 0..8 {
            turn(&mut bystanders).await;
        }
        let during = requests.scrape().await;
        let resident = "process_resident_memory_bytes";
        let each = (during.sum(resident, &[]) - before.sum(resident, &[])) / CLIENTS as f64;
        println!("{each:.0} bytes for each of {CLIENTS}");
        assert!(each < MOST_BYTES_EACH, "{each} bytes for each of {CLIENTS}");
        for client in &mut attackers {
            client.send(b"x").await;
            let head = client.read_head().await;
            assert!(head.starts_with("HTTP/1.1 431 "), "{head}");
        }
    };
    siege.withstand(attack).await;
}

/// Waits until each shard has answered one more message: whatever had reached its sockets before is
/// read by then.
async fn turn(bystanders: &mut [Client; 2]) {
    for bystander in bystanders {
        bystander.send_text("your turn").await;
        assert_eq!(bystander.read_text().await, "your turn");
    }
}

#[tokio::test]
async fn request_and_the_frames_behind_it_may_be_split_anywhere() {
    let siege = Siege::begin(&PATIENT).await;
    let bytes = [
        request("/echo"),
        encode(TEXT, b"whole"),
        encode(PING, b"ping"),
        encode_with(BINARY, b"in two "),
        encode(0, b"fragments"),
    ]
    .concat();
    let attack = async |siege: &Siege| {
        let mut bystanders = [
            siege.gateway.connect_to_shard(0, "/echo").await,
            siege.gateway.connect_to_shard(1, "/echo").await,
        ];
        for split in 0..=bytes.len() {
            let mut client = RawClient::connect(siege.gateway.listen).await;
            client.send(&bytes[..split]).await;
            turn(&mut bystanders).await;
            client.send(&bytes[split..]).await;
            let head = client.read_head().await;
            assert!(head.starts_with("HTTP/1.1 101 "), "{split}: {head}");
            assert_eq!(client.read_message(TEXT).await, b"whole", "{split}");
            assert_eq!(client.read_message(PONG).await, b"ping", "{split}");
            assert_eq!(client.read_message(BINARY).await, b"in two fragments", "{split}");
        }
    };
    siege.withstand(attack).await;
}

#[tokio::test]
async fn nothing_is_lost_of_what_is_sent_right_behind_the_request() {
    let siege = Siege::begin(&PATIENT).await;
    let head_bytes = request("/echo").len();
    // Up to the end of the buffer of the handshake, beyond it, and beyond that of the shard.
    let lengths = [MAX_HEAD_BYTES - head_bytes, 16 * 1_024, 256 * 1_024, 768 * 1_024];
    let attack = async |siege: &Siege| {
        for length in lengths {
            for bytes in [length - 1, length, length + 1] {
                let mut frames = Vec::new();
                let mut messages = Vec::new();
                while frames.len() < bytes {
                    // With its header of 6 or 8 bytes a message fills what is left, or 500.
                    let left = (bytes - frames.len()).saturating_sub(8).min(500);
                    let message = format!("{:<left$}", messages.len()).into_bytes();
                    frames.extend(encode(BINARY, &message));
                    messages.push(message);
                }
                let mut client = RawClient::connect(siege.gateway.listen).await;
                let (mut writer, mut reader) = (client.writer, client.reader);
                let bytes = [request("/echo"), frames].concat();
                let sending = async move {
                    writer.write_all(&bytes).await.expect("the gateway listens");
                    writer
                };
                let reading = async {
                    let head = reader.read_head().await;
                    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
                    for message in &messages {
                        let frame = reader.read_frame().await;
                        assert_eq!((frame.opcode, &frame.payload), (BINARY, message));
                    }
                };
                let (writer, ()) = within("echoes", async { tokio::join!(sending, reading) }).await;
                client = RawClient { writer, reader };
                client.send_frame(CLOSE, &close_payload(1000, "")).await;
                assert_eq!(client.read_frame().await.close().0, 1000);
                client.read_end().await;
            }
        }
    };
    siege.withstand(attack).await;
}

#[tokio::test]
async fn close_or_violation_right_behind_the_request_ends_the_connection_that_it_opened() {
    let siege = Siege::begin(&PATIENT).await;
    let unmasked = [0x81, 5, b'h', b'e', b'l', b'l', b'o'];
    let endings = [
        (encode(CLOSE, &close_payload(4000, "bye")), 4000),
        (encode(0x3, b""), 1002),
        (unmasked.to_vec(), 1002),
        (encode(TEXT, b"\xff"), 1007),
        ([&encode(TEXT, b"before")[..], &encode(0x3, b"")].concat(), 1002),
    ];
    let attack = async |siege: &Siege| {
        for path in ["/echo", "/channels/early"] {
            for (bytes, code) in &endings {
                let mut client = RawClient::connect(siege.gateway.listen).await;
                let frame_behind = encode(TEXT, b"unheard");
                client.send(&[&request(path)[..], bytes, &frame_behind].concat()).await;
                let head = client.read_head().await;
                assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
                let mut frame = client.read_frame().await;
                if frame.opcode == TEXT {
                    assert_eq!(frame.payload, b"before");
                    frame = client.read_frame().await;
                }
                assert_eq!(frame.close().0, *code);
                client.offer(&encode(CLOSE, &code.to_be_bytes())).await;
                client.read_end().await;
            }
        }
    };
    siege.withstand(attack).await;
}

/// A small generator of numbers that look random (SplitMix64), so that one number tells a whole test.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }
}

/// Bytes that are random, or a handshake with frames behind it of which a few bytes were changed,
/// taken out, doubled or put in.
fn random_bytes(random: &mut Random) -> Vec<u8> {
    if random.below(4) == 0 {
        return (0..random.below(400)).map(|_| random.byte()).collect();
    }
    let mut bytes = [request("/channels/random?hello=true"), encode(TEXT, b"hello")].concat();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(5) {
            0 => bytes[at] = random.byte(),
            1 => bytes.truncate(at + 1),
            2 => bytes.insert(at, b"\r\n\0 :\t,"[random.below(7)]),
            3 if bytes.len() > 1 => _ = bytes.remove(at),
            _ => {
                let piece = bytes[at..bytes.len().min(at + 30)].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, piece);
            }
        }
    }
    bytes
}

#[tokio::test]
async fn random_bytes_end_their_own_connection_and_nothing_else() {
    const CLIENTS: usize = 2_000;
    const AT_A_TIME: usize = 50;
    let seed = match std::env::var("WSGATE_TEST_SEED") {
        Ok(seed) => seed.parse().expect("a seed is a number"),
        Err(_) => RandomState::new().hash_one(()),
    };
    println!("seed: WSGATE_TEST_SEED={seed}");
    let mut random = Random(seed);
    let siege = Siege::begin(&PATIENT).await;
    let attack = async |siege: &Siege| {
        for _ in 0..CLIENTS / AT_A_TIME {
            let mut attackers = JoinSet::new();
            for _ in 0..AT_A_TIME {
                let (address, bytes) = (siege.gateway.listen, random_bytes(&mut random));
                attackers.spawn(async move {
                    let mut client = RawClient::connect(address).await;
                    client.offer(&bytes).await;
                    // It may be gone already.
                    _ = client.writer.shutdown().await;
                    client.reader.read_rest().await;
                });
            }
            attackers.join_all().await;
        }
    };
    siege.withstand(attack).await;
}
