//! The gateway as a service of systemd: notifications, the watchdog, and sockets that are passed to it.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdUnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tokio::net::UnixDatagram;

use crate::support::gateway::Gateway;
use crate::support::place::Place;
use crate::support::raw::{RawClient, TEXT, request};
use crate::support::within;

/// What a service manager listens to.
struct Manager {
    place: Place,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let place = Place::new("notify");
        let socket = UnixDatagram::bind(place.path());
        Self { place, socket: socket.expect("the directory for tests can be written to") }
    }

    fn path(&self) -> &str {
        self.place.text()
    }

    /// The next message, by variable.
    async fn told(&self) -> BTreeMap<String, String> {
        let mut buffer = [0; 4096];
        let bytes = within("a notification", self.socket.recv(&mut buffer)).await;
        let text = std::str::from_utf8(&buffer[..bytes.expect("it is bound")]).expect("UTF-8");
        let lines = text.lines().map(|line| line.split_once('=').expect("a variable"));
        lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

#[tokio::test]
async fn manager_is_told_of_every_step() {
    let manager = Manager::new();
    let variables = [("NOTIFY_SOCKET", manager.path())];
    let flags = ["--shards", "2", "--drain-grace", "100ms", "--drain-duration", "3s"];
    let mut gateway = Gateway::start_with_variables(&variables, &flags).await;
    let ready = manager.told().await;
    assert_eq!(ready["READY"], "1");
    assert_eq!(ready["STATUS"], format!("serving {} with 2 shards", gateway.listen));
    assert!(!ready.contains_key("MAINPID"), "{ready:?}");

    gateway.signal(Signal::HUP);
    let reloading = manager.told().await;
    assert_eq!(reloading["RELOADING"], "1");
    assert!(reloading["MONOTONIC_USEC"].parse::<u64>().is_ok_and(|usec| usec > 0));
    assert_eq!(manager.told().await["READY"], "1");

    gateway.signal(Signal::TERM);
    let stopping = manager.told().await;
    assert_eq!(stopping["STOPPING"], "1");
    assert_eq!(stopping["STATUS"], "draining 0 connections");
    let extended: u64 = stopping["EXTEND_TIMEOUT_USEC"].parse().expect("a number");
    // Grace, duration, and the closing handshakes of the last.
    assert!((8_100_000..20_000_000).contains(&extended), "{extended}");
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn watchdog_hears_nothing_while_a_shard_stands_still() {
    const LIMIT: Duration = Duration::from_millis(1_000);
    let manager = Manager::new();
    let usec = LIMIT.as_micros().to_string();
    let variables = [("NOTIFY_SOCKET", manager.path()), ("WATCHDOG_USEC", &usec)];
    let gateway = Gateway::start_with_variables(&variables, &["--shards", "2"]).await;
    assert_eq!(manager.told().await["READY"], "1");
    for _ in 0..3 {
        assert_eq!(manager.told().await["WATCHDOG"], "1");
    }
    let frozen = gateway.freeze(1);
    gateway.until_logged("a shard does not turn").await;
    // What was sent before is read, and then nothing comes for as long as would be enough to be ended.
    while tokio::time::timeout(Duration::ZERO, manager.told()).await.is_ok() {}
    let told = tokio::time::timeout(LIMIT + LIMIT / 2, manager.told()).await;
    assert!(told.is_err(), "{told:?}");
    frozen.thaw();
    for _ in 0..2 {
        assert_eq!(manager.told().await["WATCHDOG"], "1");
    }
}

#[tokio::test]
async fn passed_sockets_are_used_by_all_shards_and_count_for_more_than_the_settings() {
    let [listen, admin_listen] =
        [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
    let flags = ["--shards", "2"];
    let gateway = Gateway::start_with_sockets(&listen, &admin_listen, &flags).await;
    assert_eq!(gateway.listen, listen.local_addr().expect("it is bound"));
    assert_eq!(gateway.admin_listen, admin_listen.local_addr().expect("it is bound"));
    let mut clients = gateway.open_many_raw("/echo", 40).await;
    for client in &mut clients {
        client.send_frame(TEXT, b"passed on").await;
        assert_eq!(client.read_message(TEXT).await, b"passed on");
    }
    let metrics = gateway.metrics().await;
    for shard in ["0", "1"] {
        let served = metrics.sum("wsgate_connections", &[("shard", shard)]);
        assert!(served >= 10.0, "shard {shard} serves {served} of 40");
    }
}

#[tokio::test]
async fn client_that_comes_between_two_runs_waits_in_the_passed_socket() {
    let [listen, admin_listen] =
        [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
    let flags = ["--shards", "2", "--drain-grace", "0s", "--drain-duration", "0s"];
    let mut first = Gateway::start_with_sockets(&listen, &admin_listen, &flags).await;
    // A handshake that is under way is completed, and then told to go.
    let mut undecided = RawClient::connect(first.listen).await;
    undecided.send(&request("/echo")[..20]).await;
    first.until_metric("wsgate_connections_accepted_total", &[], 1.0).await;
    first.signal(Signal::TERM);
    first.until_logged("accepting no more").await;
    let mut waiting = RawClient::connect(first.listen).await;
    waiting.send(&request("/echo")).await;
    undecided.send(&request("/echo")[20..]).await;
    assert!(undecided.read_head().await.starts_with("HTTP/1.1 101 "));
    assert_eq!(undecided.read_close().await.0, 1001);
    assert_eq!(first.exit().await.code(), Some(0));

    let _second = Gateway::start_with_sockets(&listen, &admin_listen, &flags).await;
    assert!(waiting.read_head().await.starts_with("HTTP/1.1 101 "));
    waiting.send_frame(TEXT, b"still here").await;
    assert_eq!(waiting.read_message(TEXT).await, b"still here");
}

#[test]
fn passed_socket_that_cannot_be_used_ends_the_start_with_a_reason() {
    let socket = StdUnixDatagram::unbound().expect("there are descriptors left");
    let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" serve";
    let output = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_wsgate")])
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(socket)))
        .output()
        .expect("there is a shell");
    let complaint = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(
        complaint.contains("passed for listen cannot be used: it does not listen"),
        "{complaint}"
    );
}
