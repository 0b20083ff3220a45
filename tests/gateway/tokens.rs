//! Who may connect, what they may do, and how long: from the handshake to the end of the connection,
//! as clients and backends meet it.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use wsgate::auth::signer::SigningKey;

use crate::support::client::Message;
use crate::support::gateway::Gateway;
use crate::support::raw::{BINARY, RawClient, TEXT, encode, request_with};

const SECRET: &str = "correct horse battery staple 0123456789";

/// Flags of a gateway that knows this secret, and is as exact as a test.
const FLAGS: [&str; 6] = ["--shards", "2", "--token-hmac-secret", SECRET, "--token-leeway", "0s"];

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

fn token(claims: Value) -> String {
    let key = SigningKey::from_secret(SECRET).expect("a secret");
    key.sign(claims.as_object().expect("an object"), None, None).expect("it signs")
}

/// A token of `user` for every channel, that expires after the test.
fn token_of(user: &str) -> String {
    token(json!({ "sub": user, "exp": now() + 3600, "channels": ["*"] }))
}

async fn start(more: &[&str]) -> Gateway {
    Gateway::start(&[&FLAGS[..], more].concat()).await
}

/// The head and body of the answer to an opening handshake with these headers more.
async fn answer(address: SocketAddr, path: &str, headers: &str) -> String {
    let mut client = RawClient::connect(address).await;
    client.send(&request_with(path, headers)).await;
    let head = client.read_head().await;
    if head.starts_with("HTTP/1.1 101 ") {
        return head;
    }
    format!("{head}{}", String::from_utf8_lossy(&client.reader.read_rest().await))
}

/// A connection with a token of `user`, once its handshake is over.
async fn open(gateway: &Gateway, path: &str, token: &str) -> RawClient {
    let mut client = RawClient::connect(gateway.listen).await;
    client.send(&request_with(path, &format!("Authorization: Bearer {token}\r\n"))).await;
    let head = client.read_head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    client
}

fn query(path: &str, token: &str) -> String {
    let separator = if path.contains('?') { '&' } else { '?' };
    format!("{path}{separator}token={token}")
}

#[tokio::test]
async fn token_opens_a_connection_from_each_of_three_places_and_bearer_is_selected_for_one() {
    let gateway = start(&[]).await;
    let token = token_of("alice");
    for (path, headers, selected) in [
        ("/echo".to_owned(), format!("Authorization: Bearer {token}\r\n"), false),
        (query("/echo", &token), String::new(), false),
        ("/echo".to_owned(), format!("Sec-WebSocket-Protocol: bearer, {token}\r\n"), true),
        ("/echo".to_owned(), format!("Sec-WebSocket-Protocol: chat, bearer, {token}\r\n"), true),
    ] {
        let head = answer(gateway.listen, &path, &headers).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert_eq!(head.contains("sec-websocket-protocol: bearer\r\n"), selected, "{head}");
    }
    // Two of them that say the same are one; two that do not are none.
    let both =
        format!("Authorization: Bearer {token}\r\nSec-WebSocket-Protocol: bearer, {token}\r\n");
    let head = answer(gateway.listen, "/echo", &both).await;
    assert!(head.contains("sec-websocket-protocol: bearer\r\n"), "{head}");
    let other = query("/echo", &token_of("bob"));
    let refused = answer(gateway.listen, &other, &both).await;
    assert!(refused.starts_with("HTTP/1.1 400 "), "{refused}");
    assert!(refused.contains("more than one token"), "{refused}");
}

#[tokio::test]
async fn handshake_without_a_good_token_is_answered_with_401_and_the_reason() {
    let gateway = start(&[]).await;
    let plain = answer(gateway.listen, "/echo", "").await;
    assert!(plain.starts_with("HTTP/1.1 401 "), "{plain}");
    assert!(plain.contains("www-authenticate: Bearer realm=\"wsgate\"\r\n"), "{plain}");
    assert!(plain.contains("a token is needed here"), "{plain}");

    let forged = SigningKey::from_secret("another secret").expect("a secret");
    let forged = forged.sign(json!({}).as_object().expect("one"), None, None).expect("it signs");
    for (token, reason) in [
        (token(json!({ "exp": now() - 1 })), "the token has expired"),
        (token(json!({ "nbf": now() + 60 })), "the token is not valid yet"),
        (token(json!({ "aud": "another" })), "the token is for another audience (aud)"),
        (token(json!({ "sub": 7 })), "the claim sub of the token cannot be read"),
        (forged, "the signature of the token does not hold"),
        ("eyJhbGciOiJub25lIn0.e30.".to_owned(), "the token is signed by an algorithm"),
        ("sesame".to_owned(), "the token is malformed"),
    ] {
        let refused = answer(gateway.listen, &query("/echo", &token), "").await;
        assert!(refused.starts_with("HTTP/1.1 401 "), "{refused}");
        assert!(refused.contains("error=\"invalid_token\"\r\n"), "{refused}");
        assert!(refused.contains(reason), "{reason}: {refused}");
        assert!(!refused.contains(&token), "{refused}");
    }
    gateway
        .until_metric("wsgate_connections_rejected_total", &[("reason", "unauthorized")], 8.0)
        .await;
    gateway.until_metric("wsgate_token_rejections_total", &[], 7.0).await;
    gateway.until_metric("wsgate_token_rejections_total", &[("reason", "expired")], 1.0).await;
}

#[tokio::test]
async fn channel_that_the_token_does_not_allow_is_answered_with_403() {
    let gateway = start(&[]).await;
    let token = token(json!({ "subscribe": ["news:*"], "publish": ["chat"] }));
    for path in ["/channels/secret", "/channels/news:eu?also=secret"] {
        let refused = answer(gateway.listen, &query(path, &token), "").await;
        assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
        assert!(refused.contains("error=\"insufficient_scope\"\r\n"), "{refused}");
        assert!(refused.contains("may not subscribe to the channel secret"), "{refused}");
    }
    // Whoever may only publish cannot connect to the channel: to connect is to subscribe.
    let refused = answer(gateway.listen, &query("/channels/chat", &token), "").await;
    assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
    for path in ["/channels/news:eu?also=news:de", "/echo"] {
        let head = answer(gateway.listen, &query(path, &token), "").await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    }
    gateway
        .until_metric("wsgate_connections_rejected_total", &[("reason", "forbidden")], 3.0)
        .await;
    gateway.until_metric("wsgate_subscriptions", &[], 0.0).await;
}

#[tokio::test]
async fn client_that_may_only_subscribe_hears_and_is_closed_when_it_publishes() {
    for compression in ["off", "shared"] {
        let gateway = start(&["--compression", compression]).await;
        let reader = token(json!({ "subscribe": ["news"] }));
        let writer = token(json!({ "channels": ["news"] }));
        let mut reader = gateway.connect(&query("/channels/news?own=false", &reader)).await;
        let mut writer = gateway.connect(&query("/channels/news", &writer)).await;
        writer.send_text("allowed").await;
        assert_eq!(reader.read_text().await, "allowed");
        assert_eq!(writer.read_text().await, "allowed");
        reader.send_text("not allowed").await;
        let reason = "not allowed to publish to this channel".to_owned();
        assert_eq!(reader.read().await, Message::Close(Some(1008), reason));
        writer.send_text("next").await;
        assert_eq!(writer.read_text().await, "next", "nothing of it was published");
        let metrics = gateway.metrics().await;
        assert_eq!(metrics.sum("wsgate_forbidden_publications_total", &[]), 1.0);
        assert_eq!(metrics.sum("wsgate_publications_total", &[("source", "connection")]), 2.0);
    }
}

#[tokio::test]
async fn anonymous_clients_may_do_what_the_operator_says() {
    let flags = ["--anonymous", "allow", "--anonymous-subscribe", "news:*"];
    let gateway = start(&[&flags[..], &["--anonymous-publish", "news:chat"]].concat()).await;
    let refused = answer(gateway.listen, "/channels/private", "").await;
    assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
    let mut chat = gateway.connect("/channels/news:chat").await;
    chat.send_text("hello").await;
    assert_eq!(chat.read_text().await, "hello");
    let mut news = gateway.connect("/channels/news:eu").await;
    news.send_text("hello").await;
    assert!(matches!(news.read().await, Message::Close(Some(1008), _)));
    // A bad token is no way in, not even to where one needs none.
    let refused = answer(gateway.listen, "/echo?token=sesame", "").await;
    assert!(refused.starts_with("HTTP/1.1 401 "), "{refused}");
    gateway.until_metric("wsgate_identified_connections", &[], 0.0).await;
}

#[tokio::test]
async fn tokens_are_not_looked_at_without_a_key() {
    let gateway = Gateway::start(&[]).await;
    let headers = "Authorization: Bearer nonsense\r\nSec-WebSocket-Protocol: bearer, x\r\n";
    let head = answer(gateway.listen, "/channels/a?token=z", headers).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(!head.contains("sec-websocket-protocol"), "{head}");
}

#[tokio::test]
async fn expiry_of_the_token_closes_the_connection_with_3005() {
    let gateway = start(&[]).await;
    for path in ["/echo", "/channels/news"] {
        let expires_at = now() + 5;
        let short = token(json!({ "exp": expires_at, "channels": "*" }));
        let mut client = gateway.connect(&query(path, &short)).await;
        client.send_text("still here").await;
        assert_eq!(client.read_text().await, "still here");
        let closed = client.read().await;
        assert_eq!(closed, Message::Close(Some(3005), "token expired".to_owned()));
        assert!(now() >= expires_at, "not before its time");
    }
    gateway.until_metric("wsgate_token_expirations_total", &[], 2.0).await;
    let by_us = [("code", "3xxx"), ("initiator", "local")];
    gateway.until_metric("wsgate_connections_closed_total", &by_us, 2.0).await;
    gateway.until_metric("wsgate_identified_connections", &[], 0.0).await;
}

#[tokio::test]
async fn control_message_renews_a_token_and_the_connection_outlives_the_old_one() {
    let gateway = start(&[]).await;
    let (short, later) = (now() + 5, now() + 9);
    let first = token(json!({ "sub": "alice", "exp": short, "channels": "a" }));
    let next = token(json!({ "sub": "alice", "exp": later, "channels": "a" }));
    let mut client = gateway.connect(&query("/channels/a?control=true", &first)).await;
    client.send_text(&json!({ "refresh": next }).to_string()).await;
    assert_eq!(client.read_text().await, json!({ "refresh": { "expires_at": later } }).to_string());
    // What is not for the gateway is published, also as JSON.
    client.send_text("{\"refreshed\":1}").await;
    assert_eq!(client.read_text().await, "{\"refreshed\":1}");
    let closed = client.read().await;
    assert_eq!(closed, Message::Close(Some(3005), "token expired".to_owned()));
    assert!(now() >= later, "it outlived its first token");
    let published = [("source", "connection")];
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.sum("wsgate_publications_total", &published), 1.0, "no token is published");
}

#[tokio::test]
async fn control_message_with_a_bad_token_is_answered_and_too_many_close_the_connection() {
    let gateway = start(&[]).await;
    let mut client = gateway.connect(&query("/echo?control=true", &token_of("alice"))).await;
    let refresh = |token: &str| json!({ "refresh": token }).to_string();
    let error = |text: &str| -> Value { serde_json::from_str(text).expect("JSON") };
    client.send_text(&refresh(&token_of("bob"))).await;
    let answer = error(&client.read_text().await);
    assert_eq!(answer["error"]["code"], 101, "{answer}");
    client.send_text(&refresh(&token(json!({ "sub": "alice", "exp": 1 })))).await;
    let answer = error(&client.read_text().await);
    assert_eq!(answer["error"]["code"], 109, "{answer}");
    client.send_text("{\"refresh\":7}").await;
    assert_eq!(error(&client.read_text().await)["error"]["code"], 107);
    client.send_text("{\"refresh\":\"x\",\"more\":1}").await;
    assert_eq!(client.read_text().await, "{\"refresh\":\"x\",\"more\":1}", "not for the gateway");
    for _ in 0..5 {
        client.send_text(&refresh("sesame")).await;
        assert_eq!(error(&client.read_text().await)["error"]["code"], 101);
    }
    client.send_text(&refresh("sesame")).await;
    assert!(matches!(client.read().await, Message::Close(Some(1008), _)));
}

#[tokio::test]
async fn connection_that_did_not_ask_has_no_control_messages() {
    let gateway = start(&[]).await;
    let mut client = gateway.connect(&query("/echo", &token_of("alice"))).await;
    let message = json!({ "refresh": "sesame" }).to_string();
    client.send_text(&message).await;
    assert_eq!(client.read_text().await, message);
}

#[tokio::test]
async fn control_message_may_be_deflated_and_in_fragments_and_a_binary_one_is_none() {
    let gateway = start(&["--compression-min-bytes", "0"]).await;
    let text = json!({ "refresh": token_of("alice") }).to_string();
    let mut client = open(&gateway, "/echo?control=true", &token_of("alice")).await;
    let (head, tail) = text.as_bytes().split_at(text.len() / 2);
    client.send(&crate::support::raw::encode_with(TEXT, head)).await;
    client.send(&encode(crate::support::raw::CONTINUATION, tail)).await;
    let answer = client.read_frame().await;
    assert!(answer.payload.starts_with(b"{\"refresh\":{\"expires_at\":"), "{answer:?}");
    client.send_frame(BINARY, text.as_bytes()).await;
    assert_eq!(client.read_frame().await.payload, text.as_bytes());
}

#[tokio::test]
async fn new_token_changes_what_the_connection_may_do() {
    let gateway = start(&[]).await;
    let exp = now() + 3600;
    let reads = json!({ "sub": "alice", "exp": exp, "subscribe": ["a", "b"] });
    let writes = json!({ "sub": "alice", "exp": exp, "subscribe": ["b"], "channels": ["a"] });
    let less = json!({ "sub": "alice", "exp": exp, "channels": ["a"] });
    let refresh = |claims: &Value| json!({ "refresh": token(claims.clone()) }).to_string();
    let path = query("/channels/a?also=b&control=true", &token(reads.clone()));
    let mut client = gateway.connect(&path).await;
    client.send_text(&refresh(&writes)).await;
    assert!(client.read_text().await.starts_with("{\"refresh\":"));
    client.send_text("now it may").await;
    assert_eq!(client.read_text().await, "now it may");
    client.send_text(&refresh(&less)).await;
    let reason = "the new token does not allow a channel of this connection".to_owned();
    assert_eq!(client.read().await, Message::Close(Some(1008), reason));

    let mut client = gateway.connect(&path).await;
    client.send_text(&refresh(&writes)).await;
    client.read_text().await;
    client.send_text(&refresh(&reads)).await;
    assert!(client.read_text().await.starts_with("{\"refresh\":"));
    client.send_text("not any more").await;
    assert!(matches!(client.read().await, Message::Close(Some(1008), _)));
}

#[tokio::test]
async fn api_renews_one_connection_or_all_of_a_user() {
    let gateway = start(&[]).await;
    let expiry = now() + 6;
    let short = token(json!({ "sub": "alice", "exp": expiry }));
    let mut by_id = gateway.connect(&query("/echo", &short)).await;
    let mut by_user = [
        gateway.connect_to_shard(0, &query("/echo", &short)).await,
        gateway.connect_to_shard(1, &query("/echo", &short)).await,
    ];
    let mut forgotten = gateway.connect(&query("/echo", &token(json!({ "exp": expiry })))).await;
    let id = by_id.id.clone();
    gateway.call("refresh", json!({ "user": "alice", "token": token_of("alice") })).await;
    gateway
        .call("refresh", json!({ "client": id, "user": "alice", "expire_at": now() + 3600 }))
        .await;
    assert!(matches!(forgotten.read().await, Message::Close(Some(3005), _)));
    for client in by_user.iter_mut().chain([&mut by_id]) {
        client.send_text("still here").await;
        assert_eq!(client.read_text().await, "still here");
    }
    // The other way round.
    gateway.call("refresh", json!({ "connection": id, "expire_at": 1 })).await;
    assert!(matches!(by_id.read().await, Message::Close(Some(3005), _)));
    gateway.call("refresh", json!({ "user": "alice", "expired": true })).await;
    for client in &mut by_user {
        assert!(matches!(client.read().await, Message::Close(Some(3005), _)));
    }
    gateway.until_metric("wsgate_identified_connections", &[], 0.0).await;
}

#[tokio::test]
async fn api_refuses_to_renew_what_cannot_be() {
    let gateway = start(&["--anonymous", "allow"]).await;
    let alice = gateway.connect(&query("/echo", &token_of("alice"))).await;
    let nobody = gateway.connect("/echo").await;
    let mut requests = gateway.requests().await;
    let expired = token(json!({ "sub": "alice", "exp": 1 }));
    for (parameters, code) in [
        (json!({ "connection": alice.id, "token": token_of("bob") }), 107),
        (json!({ "user": "alice", "token": token_of("bob") }), 107),
        (json!({ "connection": alice.id, "token": "sesame" }), 107),
        (json!({ "connection": alice.id, "token": expired }), 109),
        (json!({ "connection": nobody.id, "token": token_of("alice") }), 107),
        (json!({ "connection": alice.id, "user": "bob", "expired": true }), 404),
        (json!({ "connection": alice.id }), 107),
        (json!({ "connection": alice.id, "expired": true, "expire_at": 7 }), 107),
        (json!({ "token": token_of("alice") }), 107),
        (json!({ "user": "u".repeat(256), "expired": true }), 107),
    ] {
        let answer = requests.call("refresh", parameters.clone()).await.json();
        assert_eq!(answer["error"]["code"], code, "{answer}");
        let text = answer.to_string();
        assert!(!text.contains("eyJ") && !text.contains("sesame"), "{text}");
    }
    // A user who is not here has nothing to renew, and that is well.
    gateway.call("refresh", json!({ "user": "carol", "token": token_of("carol") })).await;
}

#[tokio::test]
async fn api_disconnects_all_connections_of_a_user_and_no_other() {
    let gateway = start(&[]).await;
    let (alice, bob) = (token_of("alice"), token_of("bob"));
    let mut hers = Vec::new();
    for shard in [0, 1, 0, 1] {
        hers.push(gateway.connect_to_shard(shard, &query("/channels/a", &alice)).await);
    }
    // One that has come and gone leaves the others where they are.
    let mut gone = hers.remove(1);
    gone.send_close(1000, "").await;
    gone.read().await;
    let mut his = gateway.connect(&query("/channels/a", &bob)).await;
    let mut spared = hers.pop().expect("three are left");
    let parameters = json!({
        "user": "alice", "whitelist": [spared.id], "disconnect": { "code": 4001, "reason": "out" },
    });
    assert_eq!(gateway.call("disconnect", parameters).await, json!({}));
    for client in &mut hers {
        assert_eq!(client.read().await, Message::Close(Some(4001), "out".to_owned()));
    }
    his.send_text("both hear this").await;
    assert_eq!(his.read_text().await, "both hear this");
    assert_eq!(spared.read_text().await, "both hear this");

    let of_bob = json!({ "user": "bob", "client": spared.id });
    let answer = gateway.requests().await.call("disconnect", of_bob).await.json();
    assert_eq!(answer["error"]["code"], 404, "she is not bob");
    gateway.call("disconnect", json!({ "user": "alice", "client": spared.id })).await;
    assert!(matches!(spared.read().await, Message::Close(Some(1000), _)));
    assert_eq!(gateway.call("disconnect", json!({ "user": "nobody" })).await, json!({}));
    gateway.until_metric("wsgate_identified_connections", &[], 1.0).await;
}

#[tokio::test]
async fn user_with_many_connections_is_disconnected_from_all_of_them() {
    let gateway = start(&[]).await;
    let path = query("/echo", &token_of("alice"));
    let mut clients = gateway.open_many_raw(&path, 400).await;
    gateway.until_metric("wsgate_identified_connections", &[], 400.0).await;
    gateway.call("disconnect", json!({ "user": "alice", "code": 4000 })).await;
    for client in &mut clients {
        assert_eq!(client.read_frame().await.close().0, 4000);
    }
    drop(clients);
    gateway.until_metric("wsgate_identified_connections", &[], 0.0).await;
}

#[tokio::test]
async fn no_token_and_no_secret_appears_in_a_log_a_metric_or_an_answer() {
    let gateway = start(&["--log-level", "trace"]).await;
    // Each has a part that is nowhere else.
    let good = token_of("alice");
    let signature = |token: &str| token.rsplit('.').next().expect("three parts").to_owned();
    let bad = format!("{}x", &good[..good.len() - 3]);
    let wrong = "sesame-open-sesame";
    let mut answers = String::new();
    for token in [good.as_str(), &bad, wrong] {
        for (path, headers) in [
            (query("/echo", token), String::new()),
            ("/echo".to_owned(), format!("Authorization: Bearer {token}\r\n")),
            ("/echo".to_owned(), format!("Sec-WebSocket-Protocol: bearer, {token}\r\n")),
            (query("/nowhere", token), String::new()),
            (query("/channels/%zz", token), String::new()),
            (format!("/echo?hello={token}&token={token}"), "Broken\r\n".to_owned()),
        ] {
            answers += &answer(gateway.listen, &path, &headers).await;
        }
    }
    let mut client = gateway.connect(&query("/echo?control=1", &good)).await;
    for token in [good.as_str(), &bad, wrong] {
        client.send_text(&json!({ "refresh": token }).to_string()).await;
        answers += &client.read_text().await;
        let parameters = json!({ "user": "alice", "token": token });
        answers += &gateway.requests().await.call("refresh", parameters).await.body;
        let broken = format!("{{\"user\":\"alice\",\"token\":\"{token}");
        answers += &crate::support::admin::ask(
            gateway.admin_listen,
            http::Method::POST,
            "/api/refresh",
            broken,
        )
        .await
        .body;
    }
    answers += &gateway.get("/metrics").await.body;
    let log = gateway.log();
    assert!(log.contains("connection opened"), "the log is at trace: {log}");
    for secret in [SECRET, &signature(&good), &signature(&bad), wrong, "eyJ"] {
        assert!(!log.contains(secret), "{secret} is in the log");
        assert!(!answers.contains(secret), "{secret} is in an answer: {answers}");
    }
}

#[tokio::test]
async fn what_is_kept_of_a_large_token_is_less_than_the_head_that_it_came_in() {
    let gateway = start(&["--anonymous", "allow"]).await;
    let measure = async |path: &str| {
        let before = gateway.memory_bytes();
        let clients = gateway.open_many_raw(path, 2_000).await;
        let took = gateway.memory_bytes().saturating_sub(before);
        drop(clients);
        gateway.until_metric("wsgate_connections", &[], 0.0).await;
        took / 2_000
    };
    measure("/echo").await;
    let long: Vec<String> = (0..100).map(|number| format!("channel:{number}:*")).collect();
    let large = token(json!({ "sub": "alice", "subscribe": long }));
    let identified = measure(&query("/echo", &large)).await;
    assert!(identified < 8 * 1024, "{identified} bytes for each");
}

/// Each shard checked it, and each counted.
#[tokio::test]
async fn refused_token_of_a_user_is_counted_once_and_so_is_each_expired_connection() {
    let gateway = start(&[]).await;
    let path = query("/echo", &token_of("alice"));
    let mut client = gateway.open_raw_on_shard(1, &path).await;
    let mut requests = gateway.requests().await;
    let refused = requests.call("refresh", json!({ "user": "alice", "token": "x.y.z" })).await;
    assert_eq!(refused.json()["error"]["code"], 107, "{}", refused.body);
    gateway.until_metric("wsgate_connections", &[], 1.0).await;
    for _ in 0..2 {
        let expired = requests.call("refresh", json!({ "user": "alice", "expired": true })).await;
        assert_eq!(expired.json(), json!({ "result": {} }));
    }
    assert_eq!(client.read_close().await.0, 3005);
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.sum("wsgate_token_rejections_total", &[]), 1.0);
    assert_eq!(metrics.sum("wsgate_token_expirations_total", &[]), 1.0);
}
