//! The console page at `/`: whom it is given to, with which headers, and what it counts as.

use http::{StatusCode, Version};
use http_body_util::BodyExt;
use tokio::net::TcpStream;

use crate::support::gateway::Gateway;
use crate::support::raw::{RawClient, request};
use crate::support::transport::Http2;

const REQUESTS: &str = "wsgate_console_requests_total";
const REJECTED: &str = "wsgate_connections_rejected_total";

/// What the gateway says until it lets go: the head, in lines, and the body.
async fn answer_to(gateway: &Gateway, request: &[u8]) -> (Vec<String>, String) {
    let mut client = RawClient::connect(gateway.listen).await;
    client.send(request).await;
    let head = client.read_head().await;
    let body = client.reader.read_rest().await;
    (head.split("\r\n").map(str::to_owned).collect(), String::from_utf8(body).expect("text"))
}

async fn ask(gateway: &Gateway, method: &str, target: &str) -> (Vec<String>, String) {
    answer_to(gateway, format!("{method} {target} HTTP/1.1\r\nHost: gateway\r\n\r\n").as_bytes())
        .await
}

/// The value of a header that is there once.
fn header<'a>(head: &'a [String], name: &str) -> &'a str {
    let values: Vec<_> = head
        .iter()
        .filter_map(|line| line.split_once(": "))
        .filter(|(found, _)| *found == name)
        .collect();
    assert_eq!(values.len(), 1, "{name} in {head:#?}");
    values[0].1
}

#[tokio::test]
async fn page_comes_whole_with_headers_that_let_nothing_else_in() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let (head, body) = ask(&gateway, "GET", "/").await;
    assert_eq!(head[0], "HTTP/1.1 200 OK");
    assert_eq!(header(&head, "content-type"), "text/html; charset=utf-8");
    assert_eq!(header(&head, "content-length"), body.len().to_string());
    assert_eq!(header(&head, "cache-control"), "no-cache");
    assert_eq!(header(&head, "connection"), "close");
    assert_eq!(header(&head, "referrer-policy"), "no-referrer");
    assert_eq!(header(&head, "x-content-type-options"), "nosniff");
    let policy = header(&head, "content-security-policy");
    for directive in [
        "default-src 'none'",
        "script-src 'sha256-",
        "style-src 'sha256-",
        "connect-src 'self' ws: wss:",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.contains(directive), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert!(body.starts_with("<!doctype html>") && body.trim_end().ends_with("</html>"));
    for button in ["Connect", "Close Connection", "Send Message"] {
        assert!(body.contains(&format!(">{button}</button>")), "{button}");
    }
}

#[tokio::test]
async fn head_gets_the_headers_and_no_body() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let (of_get, page) = ask(&gateway, "GET", "/").await;
    let (head, body) = ask(&gateway, "HEAD", "/").await;
    assert_eq!((&head[..1], body.as_str()), (&of_get[..1], ""));
    assert_eq!(header(&head, "content-length"), page.len().to_string());
    for name in ["content-type", "content-security-policy", "cache-control", "connection"] {
        assert_eq!(header(&head, name), header(&of_get, name));
    }
}

#[tokio::test]
async fn page_is_there_whatever_the_query_and_for_every_version_of_http() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    for request in [
        "GET /?from=a-link HTTP/1.1\r\nHost: gateway\r\n\r\n",
        "GET http://gateway/ HTTP/1.1\r\nHost: gateway\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: gateway\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
    ] {
        let (head, body) = answer_to(&gateway, request.as_bytes()).await;
        assert!(head[0].ends_with(" 200 OK"), "{} to {request}", head[0]);
        assert!(body.trim_end().ends_with("</html>"), "to {request}");
    }
}

#[tokio::test]
async fn page_comes_over_http2_beside_websockets_and_without_a_word_about_the_connection() {
    let gateway = Gateway::start(&["--shards", "1", "--http2", "all"]).await;
    let socket = TcpStream::connect(gateway.listen).await.expect("it listens");
    let mut http2 = Http2::over(socket).await;
    let mut client = http2.connect("/echo").await;
    let (over_http1, _) = ask(&gateway, "GET", "/").await;
    for _ in 0..2 {
        let page = http2.ask("/", None, &[]).await;
        assert_eq!((page.status(), page.version()), (StatusCode::OK, Version::HTTP_2));
        for name in ["content-type", "content-security-policy", "cache-control"] {
            assert_eq!(page.headers()[name], header(&over_http1, name));
        }
        assert!(!page.headers().contains_key("connection"));
        let body = page.into_body().collect().await.expect("a body").to_bytes();
        assert!(body.trim_ascii_end().ends_with(b"</html>"));
    }
    assert_eq!(http2.ask("/", Some("websocket"), &[]).await.status(), StatusCode::NOT_FOUND);
    client.send_text("still here").await;
    assert_eq!(client.read_text().await, "still here");
    gateway.until_metric(REQUESTS, &[], 3.0).await;
}

#[tokio::test]
async fn page_needs_no_token_where_connections_do() {
    let gateway = Gateway::start(&["--shards", "1", "--token-hmac-secret", &"k".repeat(32)]).await;
    assert_eq!(ask(&gateway, "GET", "/").await.0[0], "HTTP/1.1 200 OK");
    let (head, _) = answer_to(&gateway, &request("/echo")).await;
    assert_eq!(head[0], "HTTP/1.1 401 Unauthorized");
}

#[tokio::test]
async fn what_is_no_request_for_the_page_is_refused() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let (head, _) = ask(&gateway, "POST", "/").await;
    assert_eq!(head[0], "HTTP/1.1 405 Method Not Allowed");
    assert_eq!(header(&head, "allow"), "GET, HEAD");
    for request in ["GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: two hosts\r\n\r\n"] {
        let (head, _) = answer_to(&gateway, request.as_bytes()).await;
        assert_eq!(head[0], "HTTP/1.1 400 Bad Request", "to {request}");
    }
    let (head, body) = answer_to(&gateway, &request("/")).await;
    assert_eq!(head[0], "HTTP/1.1 404 Not Found");
    assert!(body.contains("/channels/{name}"), "{body}");
    for target in ["//", "/index.html", "/favicon.ico"] {
        assert_eq!(ask(&gateway, "GET", target).await.0[0], "HTTP/1.1 404 Not Found", "{target}");
    }
}

#[tokio::test]
async fn page_is_counted_by_itself_and_leaves_nothing_behind() {
    let gateway = Gateway::start(&["--shards", "2", "--max-connections", "2"]).await;
    for _ in 0..20 {
        ask(&gateway, "GET", "/").await;
    }
    gateway.until_metric(REQUESTS, &[], 20.0).await;
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.sum("wsgate_connections_accepted_total", &[]), 20.0);
    assert_eq!(metrics.sum(REJECTED, &[]), 0.0);
    assert_eq!(metrics.sum("wsgate_connections", &[]), 0.0);
    // The slots are free again.
    for _ in 0..2 {
        gateway.connect("/echo").await.send_text("served").await;
    }
}

#[tokio::test]
async fn page_takes_a_place_among_the_connections_as_every_request_does() {
    let gateway = Gateway::start(&["--shards", "1", "--max-connections", "1"]).await;
    let _client = gateway.connect("/echo").await;
    let (head, _) = ask(&gateway, "GET", "/").await;
    assert_eq!(head[0], "HTTP/1.1 503 Service Unavailable");
    gateway.until_metric(REJECTED, &[("reason", "full")], 1.0).await;
    assert_eq!(gateway.metrics().await.sum(REQUESTS, &[]), 0.0);
}

#[tokio::test]
async fn page_that_is_asked_for_too_slowly_is_408() {
    let flags = ["--shards", "1", "--handshake-timeout", "300ms"];
    let gateway = Gateway::start(&flags).await;
    let (head, _) = answer_to(&gateway, b"GET / HTTP/1.1\r\nHost: gateway\r\n").await;
    assert_eq!(head[0], "HTTP/1.1 408 Request Timeout");
    gateway.until_metric(REJECTED, &[("reason", "timeout")], 1.0).await;
}

#[tokio::test]
async fn request_behind_one_for_the_page_is_never_read() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    for first in
        ["GET / HTTP/1.1\r\nHost: gateway\r\n\r\n", "HEAD / HTTP/1.1\r\nHost: gateway\r\n\r\n"]
    {
        let (head, rest) =
            answer_to(&gateway, &[first.as_bytes(), &request("/echo")].concat()).await;
        assert_eq!(head[0], "HTTP/1.1 200 OK");
        assert!(!rest.contains("101 Switching"), "{rest}");
    }
    gateway.until_metric(REQUESTS, &[], 2.0).await;
    assert_eq!(gateway.metrics().await.sum("wsgate_connections_accepted_total", &[]), 2.0);
}

#[tokio::test]
async fn page_that_is_off_is_not_found() {
    let gateway = Gateway::start(&["--shards", "1", "--console", "off"]).await;
    for method in ["GET", "POST"] {
        assert_eq!(ask(&gateway, method, "/").await.0[0], "HTTP/1.1 404 Not Found");
    }
    assert_eq!(ask(&gateway, "HEAD", "/").await.1, "");
    gateway.until_metric(REJECTED, &[("reason", "not_found")], 3.0).await;
    assert_eq!(gateway.metrics().await.sum(REQUESTS, &[]), 0.0);
    assert!(!gateway.log().contains("in a browser"), "{}", gateway.log());
}

#[tokio::test]
async fn log_says_where_the_page_is() {
    let gateway = Gateway::start(&["--shards", "1"]).await;
    gateway.until_logged(&format!("open http://{} in a browser", gateway.listen)).await;
}
