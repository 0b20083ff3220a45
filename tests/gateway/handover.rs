//! One gateway takes over from another: nobody is refused, and nobody is cut.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;
use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

use crate::http2::{DATA, END_HEADERS, HEADERS, PREFACE, frame};
use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::place::Place;
use crate::support::raw::{CLOSE, FIN, RawClient, TEXT, encode, request};
use crate::support::{until, within};

/// Where one test's gateways hand over.
struct Path(Place);

impl Path {
    fn new() -> Self {
        Self(Place::new("handover"))
    }

    fn text(&self) -> &str {
        self.0.text()
    }

    /// A gateway that hands over here, and takes over where one runs.
    async fn start(&self, shards: &str, flags: &[&str]) -> Gateway {
        let ours = ["--handover-socket", self.text(), "--shards", shards];
        Gateway::start(&[&ours, flags].concat()).await
    }

    /// What somebody else says here, up to whatever comes back.
    async fn say(&self, bytes: &[u8]) -> UnixStream {
        let mut socket = UnixStream::connect(self.0.path()).await.expect("the gateway listens");
        socket.write_all(bytes).await.expect("it takes what comes");
        socket
    }
}

/// What a gateway offers to a successor.
async fn offer(successor: &mut UnixStream) -> serde_json::Value {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.push(within("an offer", successor.read_u8()).await.expect("it answers"));
    }
    serde_json::from_slice(&line).expect("a line of JSON")
}

/// The grace is for those who have just come; then they go quickly.
const DRAIN: [&str; 4] = ["--drain-grace", "1s", "--drain-duration", "1s"];

/// What one client of the load went through: a handshake, an echo, and then the end that the gateway
/// gives it. Whatever else happens is an error.
async fn come_and_stay(gateway: std::net::SocketAddr) -> io::Result<u16> {
    let unexpected = |what: &str| Err(io::Error::other(what.to_owned()));
    let socket = TcpStream::connect(gateway).await?;
    socket.set_nodelay(true)?;
    let mut socket = BufStream::with_capacity(512, 64, socket);
    socket.write_all(&request("/echo")).await?;
    socket.flush().await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await?);
    }
    if !head.starts_with(b"HTTP/1.1 101 ") {
        return unexpected(&String::from_utf8_lossy(&head));
    }
    socket.write_all(&encode(TEXT, b"hello")).await?;
    socket.flush().await?;
    let mut echo = [0; 7];
    socket.read_exact(&mut echo).await?;
    if echo[..] != [&[FIN | TEXT, 5][..], b"hello"].concat() {
        return unexpected(&format!("{echo:02x?} instead of the echo"));
    }
    let mut close = [0; 4];
    socket.read_exact(&mut close).await?;
    if close[0] != FIN | CLOSE {
        return unexpected(&format!("{close:02x?} instead of a Close"));
    }
    let code = u16::from_be_bytes([close[2], close[3]]);
    socket.write_all(&encode(CLOSE, &close[2..])).await?;
    socket.flush().await?;
    // The rest of the reason, then the end; no reset.
    socket.read_to_end(&mut Vec::new()).await?;
    Ok(code)
}

/// Clients that come at an even pace until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    clients: tokio::task::JoinHandle<JoinSet<io::Result<u16>>>,
}

impl Load {
    /// A client every so many milliseconds.
    fn start(gateway: std::net::SocketAddr, every: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let clients = tokio::spawn(async move {
            let mut clients = JoinSet::new();
            let mut pace = tokio::time::interval(every);
            while !stopped.load(Ordering::Relaxed) {
                pace.tick().await;
                clients.spawn(come_and_stay(gateway));
            }
            clients
        });
        Self { stop, clients }
    }

    async fn end(self) -> JoinSet<io::Result<u16>> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.await.expect("the load does not panic")
    }
}

#[tokio::test]
async fn binary_that_is_replaced_under_500_new_connections_a_second_loses_none() {
    const REPLACEMENTS: usize = 4;
    let path = Path::new();
    let mut running = path.start("2", &DRAIN).await;
    let (listen, admin_listen) = (running.listen, running.admin_listen);
    let start = Instant::now();
    let load = Load::start(listen, Duration::from_millis(2));
    running.until_metric_above("wsgate_connections", 200.0).await;
    for _ in 0..REPLACEMENTS {
        let successor = path.start("2", &DRAIN).await;
        assert_eq!((successor.listen, successor.admin_listen), (listen, admin_listen));
        // The admin port is the successor's at once: it knows nothing of the connections before.
        assert_eq!(successor.get("/readyz").await.status, StatusCode::OK);
        assert_eq!(successor.metrics().await.sum("wsgate_draining", &[]), 0.0);
        assert_eq!(running.exit().await.code(), Some(0));
        let log = running.log();
        assert!(log.contains("drain: another process accepts") && log.contains("cut=0"), "{log}");
        running = successor;
    }
    let clients = load.end().await;
    let count = clients.len();
    let a_second = count as f64 / start.elapsed().as_secs_f64();
    running.signal(Signal::TERM);
    let ended = within("every client to be closed", clients.join_all()).await;
    let failed: Vec<_> = ended.iter().filter(|ended| !matches!(ended, Ok(1001))).collect();
    assert!(failed.is_empty(), "{} of {count}, such as {:?}", failed.len(), failed[0]);
    // A machine that is busy with other things delays them, and then they come together.
    assert!(a_second > 250.0, "{a_second} clients a second are no load");
    assert_eq!(running.exit().await.code(), Some(0));
    println!("{count} clients, {a_second:.0} a second, over {REPLACEMENTS} replacements");
}

#[tokio::test]
async fn number_of_shards_may_change_with_a_replacement() {
    let path = Path::new();
    let mut running = path.start("1", &DRAIN).await;
    let listen = running.listen;
    let load = Load::start(listen, Duration::from_millis(10));
    for shards in ["3", "2", "1"] {
        running.until_metric_above("wsgate_connections", 20.0).await;
        let successor = path.start(shards, &DRAIN).await;
        assert_eq!(running.exit().await.code(), Some(0));
        running = successor;
    }
    let clients = load.end().await;
    running.signal(Signal::TERM);
    let ended = within("every client to be closed", clients.join_all()).await;
    assert!(ended.iter().all(|ended| matches!(ended, Ok(1001))), "{ended:?}");
}

#[tokio::test]
async fn handshake_that_is_under_way_is_completed_and_then_closed_with_1001() {
    let path = Path::new();
    // The rest of the handshake comes in the grace.
    let mut running = path.start("2", &["--drain-grace", "5s", "--drain-duration", "1s"]).await;
    let mut undecided = RawClient::connect(running.listen).await;
    undecided.send(&request("/channels/news")[..20]).await;
    running.until_metric("wsgate_connections_accepted_total", &[], 1.0).await;
    let _successor = path.start("2", &DRAIN).await;
    running.until_logged("drain: another process accepts").await;
    undecided.send(&request("/channels/news")[20..]).await;
    assert!(undecided.read_head().await.starts_with("HTTP/1.1 101 "));
    undecided.send(&encode(TEXT, b"to myself")).await;
    assert_eq!(undecided.read_message(TEXT).await, b"to myself");
    assert_eq!(undecided.read_close().await, (1001, "the gateway is draining".to_owned()));
    assert_eq!(running.exit().await.code(), Some(0));
}

#[tokio::test]
async fn successor_that_dies_before_it_is_ready_changes_nothing() {
    let path = Path::new();
    let mut running = path.start("2", &DRAIN).await;
    let mut client = running.connect("/echo").await;
    for count in 1..=3 {
        let mut successor = path.say(b"{\"wsgate_handover\":1}\n").await;
        let offer = offer(&mut successor).await;
        assert_eq!(offer["sockets"][0], json!({ "setting": "listen", "count": 2 }));
        drop(successor);
        until("the log to say so", async || {
            let told = running.log().matches("handover came to nothing; serving on").count();
            (told == count).then_some(())
        })
        .await;
    }
    client.send_text("still served").await;
    assert_eq!(client.read_text().await, "still served");
    drop(running.connect("/echo").await);
    assert_eq!(running.get("/readyz").await.status, StatusCode::OK);
    // And then one that lives.
    let successor = path.start("2", &DRAIN).await;
    assert_eq!(successor.listen, running.listen);
    drop(client);
    assert_eq!(running.exit().await.code(), Some(0));
}

#[tokio::test]
async fn reload_in_the_middle_of_a_handover_does_not_cut_it_short() {
    let path = Path::new();
    let mut running = path.start("2", &DRAIN).await;
    let mut successor = path.say(b"{\"wsgate_handover\":1}\n").await;
    running.until_logged("another process takes over; serving on until it is ready").await;
    running.signal(Signal::HUP);
    running.until_metric("wsgate_config_reloads_total", &[], 1.0).await;
    successor.write_all(b"{\"ready\":true}\n").await.expect("the gateway waits for it");
    let mut said = Vec::new();
    within("the end", successor.read_to_end(&mut said)).await.expect("no reset");
    assert!(said.ends_with(b"{\"leaving\":true}\n"), "{}", String::from_utf8_lossy(&said));
    assert_eq!(running.exit().await.code(), Some(0));
}

#[tokio::test]
async fn successor_that_is_late_is_told_that_the_other_one_stays() {
    let path = Path::new();
    let running = path.start("2", &DRAIN).await;
    let late = path.say(b"{\"wsgate_handover\":1}\n{\"ready\":false}\n").await;
    let mut said = Vec::new();
    within("the end", BufStream::new(late).read_to_end(&mut said)).await.expect("no reset");
    assert!(said.ends_with(b"{\"leaving\":false}\n"), "{}", String::from_utf8_lossy(&said));
    drop(running.connect("/echo").await);
}

#[tokio::test]
async fn successor_that_cannot_start_leaves_the_unix_socket_to_whom_it_belongs() {
    let (path, place) = (Path::new(), Place::new("sock"));
    let unix = format!("--plain-listen=unix:{}", place.text());
    let mut running = path.start("2", &[&DRAIN[..], &[&unix]].concat()).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = format!("--plain-listen={}", taken.local_addr().expect("bound"));
    let output = Command::new(env!("CARGO_BIN_EXE_wsgate"))
        .args(["serve", "--listen", &running.listen.to_string(), "--admin-listen"])
        .args([&running.admin_listen.to_string(), "--handover-socket", path.text(), &unix, &taken])
        .env_clear()
        .output()
        .expect("wsgate starts");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let socket = UnixStream::connect(place.path()).await.expect("it is there still");
    let mut client = Client::connect_over(socket, "localhost", "/echo").await;
    client.send_text("still served").await;
    assert_eq!(client.read_text().await, "still served");
    drop(client);
    running.signal(Signal::TERM);
    assert!(running.exit().await.success());
    assert!(!place.path().exists(), "it goes with the one that it belongs to");
}

#[tokio::test]
async fn sockets_that_a_successor_has_opened_besides_are_handed_on_as_well() {
    let path = Path::new();
    let mut first = path.start("1", &DRAIN).await;
    let second = path.start("3", &DRAIN).await;
    assert!(first.exit().await.success());
    let mut third = path.say(b"{\"wsgate_handover\":1}\n").await;
    let offer = offer(&mut third).await;
    assert_eq!(offer["sockets"][0], json!({ "setting": "listen", "count": 3 }));
    drop(second);
}

#[tokio::test]
async fn handover_socket_that_somebody_has_put_in_its_place_stays() {
    let (path, other) = (Path::new(), Place::new("other"));
    let mut running = path.start("1", &DRAIN).await;
    let socket = std::os::unix::net::UnixListener::bind(other.path()).expect("a free place");
    fs::rename(other.path(), path.0.path()).expect("the folder is ours");
    running.signal(Signal::TERM);
    assert!(running.exit().await.success());
    assert!(path.0.path().exists());
    drop(socket);
}

#[tokio::test]
async fn nonsense_on_the_handover_socket_harms_nobody() {
    let path = Path::new();
    let mut running = path.start("2", &DRAIN).await;
    let mode = fs::metadata(path.0.path()).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let long = vec![b'x'; 100_000];
    let unready = b"{\"wsgate_handover\":1}\n{\"ready\":false}\n";
    for (count, said) in
        [&b""[..], b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b"{\"wsgate_handover\":2}\n", b"\n", unready]
            .into_iter()
            .chain([&long[..]])
            .enumerate()
    {
        let mut socket = UnixStream::connect(path.0.path()).await.expect("the gateway listens");
        // It may let go at any byte.
        _ = socket.write_all(said).await;
        _ = socket.shutdown().await;
        until("the log to say so", async || {
            let told = running.log().matches("handover came to nothing; serving on").count();
            (told == count + 1).then_some(())
        })
        .await;
    }
    drop(running.connect("/echo").await);
    let _successor = path.start("2", &DRAIN).await;
    assert_eq!(running.exit().await.code(), Some(0));
}

#[tokio::test]
async fn socket_that_nobody_answers_at_is_replaced_and_another_file_is_not() {
    let path = Path::new();
    drop(std::os::unix::net::UnixListener::bind(path.0.path()).expect("the folder is ours"));
    let mut first = path.start("1", &DRAIN).await;
    first.signal(Signal::TERM);
    assert_eq!(first.exit().await.code(), Some(0));
    assert!(!path.0.path().exists(), "a gateway takes its socket away when it ends");

    fs::write(path.0.path(), "somebody's notes").expect("the folder is ours");
    let flags = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let output = Command::new(env!("CARGO_BIN_EXE_wsgate"))
        .args(flags)
        .args(["--handover-socket", path.text()])
        .env_clear()
        .output()
        .expect("wsgate starts");
    assert_eq!(output.status.code(), Some(1));
    let complaint = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(
        complaint.contains("handover_socket is ") && complaint.contains("something else is there")
    );
    assert_eq!(fs::read_to_string(path.0.path()).expect("it is there"), "somebody's notes");
}

#[tokio::test]
async fn gateway_that_drains_in_the_middle_of_a_handover_leaves_its_places_to_the_successor() {
    let path = Path::new();
    let drain = ["--drain-grace", "60s", "--drain-duration", "60s"];
    let mut running = path.start("2", &drain).await;
    let _client = running.connect("/echo").await;
    let mut successor = path.say(b"{\"wsgate_handover\":1}\n").await;
    assert_eq!(offer(&mut successor).await["wsgate_handover"], 1);
    running.until_logged("another process takes over").await;
    // The sockets come with this byte. Read like this they are closed, so that this successor has none.
    let byte = within("the sockets", successor.read_u8()).await.expect("they are sent");
    assert_eq!(byte, b'.');
    running.signal(Signal::TERM);
    // Two that answer at one admin port would contradict each other.
    until("the admin port to be left", async || {
        TcpStream::connect(running.admin_listen).await.is_err().then_some(())
    })
    .await;
    running.signal(Signal::TERM);
    assert!(running.exit().await.success());
    assert!(path.0.path().exists(), "what is there is the successor's");
}

/// Opens a WebSocket over HTTP/2 with frames of our own, as a client that has not heard of a GOAWAY yet.
async fn connect_late(client: &mut RawClient) {
    let literal = |name: &[u8], value: &[u8]| {
        [&[0, name.len() as u8][..], name, &[value.len() as u8], value].concat()
    };
    let headers = [
        literal(b":method", b"CONNECT"),
        literal(b":protocol", b"websocket"),
        literal(b":scheme", b"http"),
        literal(b":path", b"/echo"),
        literal(b":authority", b"localhost"),
        literal(b"sec-websocket-version", b"13"),
    ]
    .concat();
    client.send(&frame(HEADERS, END_HEADERS, 1, &headers)).await;
}

/// The HTTP/2 connection was cut 5 s after the GOAWAY, whatever was on it by then.
#[tokio::test]
async fn websocket_that_is_opened_over_http2_while_another_process_accepts_is_served_to_its_end() {
    const CUT_AFTER: Duration = Duration::from_secs(5);
    let path = Path::new();
    let flags = ["--http2", "all", "--drain-grace", "60s"];
    let running = path.start("1", &flags).await;
    let mut client = RawClient::connect(running.listen).await;
    client.send(PREFACE).await;
    running.until_metric("wsgate_connections_accepted_total", &[], 1.0).await;
    let _successor = path.start("1", &flags).await;
    running.until_logged("drain: another process accepts").await;
    let left_at = Instant::now();
    connect_late(&mut client).await;
    until("the time to pass in which it was cut", async || {
        (left_at.elapsed() > CUT_AFTER + Duration::from_millis(500)).then_some(())
    })
    .await;
    client.send(&frame(DATA, 0, 1, &encode(TEXT, b"still served"))).await;
    client.reader.read_through(b"still served").await;
}
