//! SIGHUP: what can change while the gateway runs changes, and what cannot is named. Nobody is dropped.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use rustix::process::Signal;

use crate::support::admin;
use crate::support::client::Message;
use crate::support::gateway::Gateway;
use crate::support::place::Place;
use crate::support::raw::{BINARY, RawClient, TEXT, request, request_with};

/// What `wsgate check` exits with for this file, and what it complains of.
fn check(file: &Place) -> (Option<i32>, String) {
    let mut wsgate = Command::new(env!("CARGO_BIN_EXE_wsgate"));
    let output = wsgate.args(["check", "--config", file.text()]).env_clear().output();
    let output = output.expect("wsgate starts");
    (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8"))
}

/// Sends SIGHUP and waits until that many reloads have come to `result`.
async fn reload(gateway: &Gateway, result: &str, count: f64) {
    gateway.signal(Signal::HUP);
    gateway.until_metric("wsgate_config_reloads_total", &[("result", result)], count).await;
}

#[tokio::test]
async fn limits_origins_and_the_log_change_for_open_and_new_connections() {
    let file = Place::file("wsgate.toml", "log_level = \"info\"\n");
    let gateway = Gateway::start(&["--shards", "2", "--config", file.text()]).await;
    let mut open = Vec::new();
    for shard in 0..2 {
        open.push(gateway.open_raw_on_shard(shard, "/echo").await);
    }
    for client in &mut open {
        client.send_frame(BINARY, &[1; 1000]).await;
        assert_eq!(client.read_message(BINARY).await, [1; 1000]);
    }
    file.write(
        "log_level = \"info,wsgate::shard=debug\"\nmax_message_bytes = 999\n\
         max_channels_per_connection = 1\nallowed_origins = [\"https://example.com\"]\n\
         max_connections = 3\n",
    );
    reload(&gateway, "success", 1.0).await;
    let log = gateway.log();
    for line in [
        "configuration reloaded: ",
        "max_message_bytes is now 999",
        "allowed_origins is now [\"https://example.com\"]",
    ] {
        assert!(log.contains(line), "{line:?} is missing:\n{log}");
    }

    // Those that are open stay, and go by the new limit.
    for client in &mut open {
        client.send_frame(TEXT, &[b'x'; 999]).await;
        assert_eq!(client.read_message(TEXT).await, [b'x'; 999]);
        client.send_frame(TEXT, &[b'x'; 1000]).await;
        assert_eq!(client.read_close().await.0, 1009);
    }
    drop(open);
    gateway.until_metric("wsgate_connections", &[], 0.0).await;
    for (path, headers, status) in [
        ("/channels/a?also=b", "", "400"),
        ("/echo", "Origin: http://gateway\r\n", "403"),
        ("/echo", "Origin: https://example.com\r\n", "101"),
    ] {
        let mut client = RawClient::connect(gateway.listen).await;
        client.send(&request_with(path, headers)).await;
        let head = client.read_head().await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {headers}: {head}");
    }
    gateway.until_logged("connection opened").await;
    gateway.until_metric("wsgate_connections", &[], 0.0).await;
    let _three = gateway.open_many_raw("/echo", 3).await;
    let mut one_more = RawClient::connect(gateway.listen).await;
    one_more.send(&request("/echo")).await;
    let head = one_more.read_head().await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
}

#[tokio::test]
async fn api_key_and_message_limit_of_the_api_change_too() {
    let file = Place::file("wsgate.toml", "api_key = \"old-secret\"\n");
    let gateway = Gateway::start(&["--shards", "1", "--config", file.text()]).await;
    let asked = async |key: &str| {
        let mut client = RawClient::connect(gateway.admin_listen).await;
        let head = format!(
            "POST /api/publish HTTP/1.1\r\nHost: gateway\r\nX-API-Key: {key}\r\nContent-Length: 33\r\n\
             X-Centrifugo-Error-Mode: transport\r\nConnection: close\r\n\r\n"
        );
        client.send(head.as_bytes()).await;
        client.send(br#"{"channel":"a","data":"0123456"} "#).await;
        client.read_head().await[9..12].to_owned()
    };
    assert_eq!(asked("old-secret").await, "200");
    file.write("api_key = \"new-secret\"\n");
    reload(&gateway, "success", 1.0).await;
    assert_eq!(asked("old-secret").await, "401");
    assert_eq!(asked("new-secret").await, "200");
    file.write("api_key = \"new-secret\"\nmax_message_bytes = 6\n");
    reload(&gateway, "success", 2.0).await;
    assert_eq!(asked("new-secret").await, "413");
    assert!(!gateway.log().contains("secret"), "{}", gateway.log());
    assert!(gateway.log().contains("api_key is now"), "{}", gateway.log());
}

#[tokio::test]
async fn shorter_idle_timeout_counts_soon_for_those_who_are_connected() {
    let file = Place::file("wsgate.toml", "");
    let gateway = Gateway::start(&["--shards", "2", "--config", file.text()]).await;
    let mut clients = gateway.open_many_raw("/echo", 10).await;
    file.write("ping_interval = \"0s\"\nidle_timeout = \"300ms\"\n");
    let start = Instant::now();
    reload(&gateway, "success", 1.0).await;
    for client in &mut clients {
        assert_eq!(client.read_close().await, (1001, "idle timeout".to_owned()));
    }
    // The deadline that was entered at their handshake is 25 s away.
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[tokio::test]
async fn bad_file_changes_nothing_and_is_reported() {
    let file = Place::file("wsgate.toml", "max_message_bytes = 100\n");
    let gateway = Gateway::start(&["--shards", "2", "--config", file.text()]).await;
    let mut client = gateway.connect("/echo").await;
    for (count, bad) in [
        "max_message_bytes = 200\nidle_timeout = \"0s\"\n",
        "max_message_bytes = \n",
        "max_message_bytes = 200\nmax_mesage_bytes = 1\ndrain_grace = 5\n",
    ]
    .into_iter()
    .enumerate()
    {
        file.write(bad);
        reload(&gateway, "failure", (count + 1) as f64).await;
        let (code, complaint) = check(&file);
        assert_eq!(code, Some(2), "{complaint}");
    }
    let log = gateway.log();
    assert!(log.contains("the configuration was not reloaded, and nothing has changed: "), "{log}");
    assert!(log.contains("idle_timeout is \"0s\""), "{log}");
    let last_line = log.lines().last().expect("there is one");
    assert!(last_line.contains("drain_grace is 5") && last_line.contains("Did you mean"), "{log}");
    let successful = "wsgate_config_last_reload_successful";
    assert_eq!(gateway.metrics().await.sum(successful, &[]), 0.0);
    // 101 bytes are too many, as before.
    client.send_text(&"x".repeat(100)).await;
    assert_eq!(client.read_text().await, "x".repeat(100));
    client.send_text(&"x".repeat(101)).await;
    assert!(matches!(client.read().await, Message::Close(Some(1009), _)));

    fs::remove_file(file.path()).expect("it is there");
    reload(&gateway, "failure", 4.0).await;
    let read_at = "wsgate_config_last_reload_success_timestamp_seconds";
    let before = gateway.metrics().await.sum(read_at, &[]);
    file.write("max_message_bytes = 100\n");
    reload(&gateway, "success", 1.0).await;
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.sum(successful, &[]), 1.0);
    assert!(metrics.sum(read_at, &[]) > before, "it is the time of the last good one");
    assert!(gateway.log().contains("configuration reloaded: no setting has changed"));
}

#[tokio::test]
async fn what_needs_a_restart_is_named_and_the_rest_is_taken() {
    let file = Place::file("wsgate.toml", "shards = 2\n");
    let flags = ["--config", file.text(), "--drain-grace", "0s"];
    let mut gateway = Gateway::start(&flags).await;
    file.write(
        "shards = 4\nlog_format = \"json\"\nmailbox_entries = 100\n\
         drain_grace = \"60s\"\ndrain_duration = \"0s\"\n",
    );
    reload(&gateway, "success", 1.0).await;
    let log = gateway.log();
    for line in [
        "not reloaded: shards is now 4 (from ",
        "wsgate.toml, line 1); it needs a restart",
        "not reloaded: log_format is now \"json\"",
        "not reloaded: mailbox_entries is now 100",
        "configuration reloaded: drain_duration is now \"0s\"",
    ] {
        assert!(log.contains(line), "{line:?} is missing:\n{log}");
    }
    assert_eq!(gateway.metrics().await.families["wsgate_connections"].samples.len(), 2);
    // The flag wins over the file, as at the start; the new duration holds.
    let mut client = gateway.open_raw("/echo").await;
    gateway.signal(Signal::TERM);
    assert_eq!(client.read_close().await.0, 1001);
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn gateway_is_ready_and_serves_while_it_is_told_to_reload_again_and_again() {
    let file = Place::file("wsgate.toml", "");
    let gateway = Gateway::start(&["--shards", "2", "--config", file.text()]).await;
    let mut client = gateway.connect("/channels/news").await;
    for round in 0..50 {
        file.write(&format!(
            "max_message_bytes = {}\nping_interval = \"{}s\"\n",
            100 + round,
            5 + round
        ));
        gateway.signal(Signal::HUP);
        client.send_text(&format!("{round}")).await;
        assert_eq!(client.read_text().await, format!("{round}"));
        let ready = admin::ask(gateway.admin_listen, Method::GET, "/readyz", String::new()).await;
        assert_eq!(ready.status, StatusCode::OK);
    }
    reload(&gateway, "failure", 0.0).await;
}
