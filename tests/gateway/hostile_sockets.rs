//! Sockets that are slow, cut, half closed or too many before there is a connection: others are served
//! meanwhile, and nothing of it stays.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use rustix::process::Signal;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::support::admin::{self, Requests};
use crate::support::client::connect_many;
use crate::support::gateway::Gateway;
use crate::support::metrics::Metrics;
use crate::support::raw::{CLOSE, RawClient, TEXT, close_payload, encode, request};
use crate::support::siege::Siege;
use crate::support::{until, within};

/// So long that nothing here ends because of it.
const PATIENT: [&str; 2] = ["--handshake-timeout", "120s"];

/// As a siege has them.
const TWO_SHARDS: [&str; 2] = ["--shards", "2"];

const ACCEPTED: &str = "wsgate_connections_accepted_total";

const REJECTED: &str = "wsgate_connections_rejected_total";

/// Sends `begin`, and then one byte of `drip` after the other until the gateway lets go. Returns what
/// it said.
async fn drip(gateway: SocketAddr, begin: Vec<u8>, drip: Vec<u8>) -> String {
    let mut client = RawClient::connect(gateway).await;
    client.offer(&begin).await;
    let mut writer = client.writer;
    let dripping = tokio::spawn(async move {
        let mut clock = tokio::time::interval(Duration::from_millis(25));
        for byte in drip.iter().cycle() {
            clock.tick().await;
            if writer.write_all(&[*byte]).await.is_err() {
                return;
            }
        }
    });
    let answer = client.reader.read_rest().await;
    within("the end of the drip", dripping).await.expect("it writes to nobody in the end");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn half_handshakes_that_drip_are_cut_at_the_handshake_timeout() {
    const CLIENTS: usize = 300;
    let flags = ["--handshake-timeout", "1s", "--max-connections", "400"];
    let siege = Siege::begin(&flags).await;
    let begun = b"GET /echo HTTP/1.1\r\nHost: gateway\r\n".to_vec();
    let kinds: [(Vec<u8>, Vec<u8>); 5] = [
        (Vec::new(), b"G".to_vec()),
        (b"GET /echo?".to_vec(), b"x".to_vec()),
        (Vec::new(), b"\r\n".to_vec()),
        (begun.clone(), b"X: a\r\n".to_vec()),
        ([&begun[..], b"X: "].concat(), b"a".to_vec()),
    ];
    let attack = async |siege: &Siege| {
        let mut attackers = JoinSet::new();
        for number in 0..CLIENTS {
            let (begin, endless) = kinds[number % kinds.len()].clone();
            attackers.spawn(drip(siege.gateway.listen, begin, endless));
        }
        let answers = attackers.join_all().await;
        let (told, untold): (Vec<_>, Vec<_>) =
            answers.iter().partition(|answer| answer.starts_with("HTTP/1.1 408 "));
        println!("{} of {CLIENTS} were told", told.len());
        assert!(!told.is_empty(), "nobody is told");
        // A byte that comes right after the answer resets the connection, and can take it away.
        assert!(untold.iter().all(|answer| answer.is_empty()), "{untold:?}");
    };
    let rounds = siege.withstand(attack).await.rounds;
    let after = siege.gateway.metrics().await;
    let all = (rounds * CLIENTS) as f64;
    assert_eq!(after.sum(REJECTED, &[("reason", "timeout")]), all);
    assert_eq!(after.sum(REJECTED, &[]), all);
    all_places_are_free(&siege.end(), 400).await;
}

/// Demands of a gateway that nobody is connected to that it has room for `places` clients, and for no
/// more: none who is gone holds a place.
async fn all_places_are_free(gateway: &Gateway, places: usize) {
    gateway.until_metric("wsgate_connections", &[], 0.0).await;
    let clients = connect_many(gateway.listen, "/echo", places).await;
    let mut another = RawClient::connect(gateway.listen).await;
    another.send(&request("/echo")).await;
    let head = another.read_head().await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    drop(clients);
}

/// How far a client gets before it is gone.
#[derive(Clone, Copy, Debug)]
enum Gone {
    AfterConnect,
    WithinRequest,
    AfterRequest,
}

/// Connects and resets in turn, many times.
async fn connect_and_reset(gone: Gone) {
    /// In turn means that the gateway has taken each of so many before the next: the kernel's backlog
    /// is not what is tried here.
    const AT_A_TIME: usize = 250;
    const CLIENTS: usize = 10_000;
    /// For these and the others.
    const PLACES: usize = 400;
    let flags = [&PATIENT[..], &["--max-connections", "400"]].concat();
    let siege = Siege::begin(&flags).await;
    let mut requests = siege.gateway.requests().await;
    let attack = async |siege: &Siege| {
        let before = requests.scrape().await;
        for client in 1..=CLIENTS {
            let path = format!("/channels/reset-{client}?also=resets&also=also-{client}");
            let request = request(&path);
            let mut attacker = RawClient::connect(siege.gateway.listen).await;
            match gone {
                Gone::AfterConnect => {}
                Gone::WithinRequest => attacker.send(&request[..request.len() / 2]).await,
                Gone::AfterRequest => attacker.send(&request).await,
            }
            attacker.reset();
            if client % AT_A_TIME == 0 {
                until("all to be gone", async || {
                    let gone = gone_since(&before, &requests.scrape().await);
                    (gone >= client as f64).then_some(())
                })
                .await;
            }
        }
    };
    let rounds = siege.withstand(attack).await.rounds;
    let after = siege.gateway.metrics().await;
    let [early, late] = [
        after.sum(REJECTED, &[("reason", "disconnected")]),
        after.sum("wsgate_connections_closed_total", &[("code", "1006")]),
    ];
    println!("{gone:?}: {early} gone during their handshake, {late} after it");
    assert_eq!(after.sum(REJECTED, &[]), early, "for no other reason");
    if !matches!(gone, Gone::AfterRequest) {
        assert_eq!(early, (rounds * CLIENTS) as f64);
    }
    let gateway = siege.end();
    all_places_are_free(&gateway, PLACES).await;
    for name in ["wsgate_subscriptions", "wsgate_channels"] {
        gateway.until_metric(name, &[], 0.0).await;
    }
}

/// How many clients left between two scrapes, during their handshakes or after.
fn gone_since(before: &Metrics, after: &Metrics) -> f64 {
    let gone = |metrics: &Metrics| {
        let closed = metrics.sum("wsgate_connections_closed_total", &[("code", "1006")]);
        metrics.sum(REJECTED, &[]) + closed
    };
    gone(after) - gone(before)
}

/// What is answered with 503 has places too.
#[tokio::test]
async fn resets_of_clients_for_whom_there_is_no_room_leave_the_places_for_telling() {
    // Twice as many as may wait to be told, on two shards.
    const TOLD: usize = 128;
    const CLIENTS: usize = 2_000;
    let flags = [&PATIENT[..], &["--max-connections", "60"]].concat();
    let siege = Siege::begin(&flags).await;
    let attack = async |siege: &Siege| {
        let mut served = Vec::new();
        loop {
            let mut client = RawClient::connect(siege.gateway.listen).await;
            client.send(&request("/echo")).await;
            if client.read_head().await.starts_with("HTTP/1.1 503 ") {
                break;
            }
            served.push(client);
        }
        for client in 0..CLIENTS {
            let mut attacker = RawClient::connect(siege.gateway.listen).await;
            let request = request("/echo");
            attacker.send(&request[..client % request.len()]).await;
            attacker.reset();
        }
        for _ in 0..TOLD {
            until("to be told", async || {
                let mut client = RawClient::connect(siege.gateway.listen).await;
                client.offer(&request("/echo")).await;
                let answer = client.reader.read_rest().await;
                // While others wait to be told this one may be let go without an answer.
                answer.starts_with(b"HTTP/1.1 503 ").then_some(())
            })
            .await;
        }
    };
    siege.withstand(attack).await;
    all_places_are_free(&siege.end(), 60).await;
}

#[tokio::test]
async fn half_handshakes_cannot_hold_up_the_end() {
    let drain = ["--drain-grace", "0s", "--drain-duration", "100ms"];
    let flags = [&TWO_SHARDS[..], &PATIENT, &drain].concat();
    let mut gateway = Gateway::start(&flags).await;
    let mut half = Vec::new();
    let request = request("/echo");
    for client in 0..200 {
        let mut attacker = RawClient::connect(gateway.listen).await;
        attacker.send(&request[..client % request.len()]).await;
        half.push(attacker);
    }
    gateway.until_metric(ACCEPTED, &[], 200.0).await;
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.exit().await.code(), Some(0));
    for client in &mut half {
        client.reader.read_rest().await;
    }
}

#[tokio::test]
async fn ten_thousand_resets_right_after_connect_leave_nothing() {
    connect_and_reset(Gone::AfterConnect).await;
}

#[tokio::test]
async fn ten_thousand_resets_within_the_request_leave_nothing() {
    connect_and_reset(Gone::WithinRequest).await;
}

#[tokio::test]
async fn ten_thousand_resets_right_after_the_request_leave_nothing() {
    connect_and_reset(Gone::AfterRequest).await;
}

#[tokio::test]
async fn reset_at_any_byte_of_the_handshake_ends_it() {
    let siege = Siege::begin(&PATIENT).await;
    let bytes = [request("/channels/reset?hello=true"), encode(TEXT, b"behind")].concat();
    let mut turns = siege.gateway.requests().await;
    let attack = async |siege: &Siege| {
        for end in 0..=bytes.len() {
            let mut early = RawClient::connect(siege.gateway.listen).await;
            early.send(&bytes[..end]).await;
            early.reset();
            // And once it was read.
            let mut late = RawClient::connect(siege.gateway.listen).await;
            late.send(&bytes[..end]).await;
            turns.ask(Method::GET, "/healthz", String::new()).await;
            late.reset();
        }
    };
    siege.withstand(attack).await;
}

#[tokio::test]
async fn half_close_at_any_byte_of_the_handshake_ends_it() {
    let siege = Siege::begin(&PATIENT).await;
    let request = request("/echo");
    let attack = async |siege: &Siege| {
        for end in 0..=request.len() {
            let mut client = RawClient::connect(siege.gateway.listen).await;
            client.send(&request[..end]).await;
            client.shut_down().await;
            let answer = client.reader.read_rest().await;
            let answer = String::from_utf8_lossy(&answer);
            // Who has said everything may get an answer, but no connection can come of it.
            let may_be_answered = end == request.len() && answer.starts_with("HTTP/1.1 101 ");
            assert!(answer.is_empty() || may_be_answered, "{end}: {answer}");
        }
        // A frame that came with the request is heard, and answered, before the end is noticed.
        let mut client = RawClient::connect(siege.gateway.listen).await;
        client.send(&[&request[..], &encode(TEXT, b"last words")].concat()).await;
        client.shut_down().await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
        assert_eq!(client.read_message(TEXT).await, b"last words");
        client.read_end().await;
    };
    siege.withstand(attack).await;
}

#[tokio::test]
async fn answer_that_nobody_reads_holds_nothing_once_the_client_is_gone() {
    const CLIENTS: usize = 300;
    const PATHS: [&str; 3] = ["/echo", "/channels/unread", "/nothing"];
    let siege = Siege::begin(&PATIENT).await;
    let mut requests = siege.gateway.requests().await;
    let attack = async |siege: &Siege| {
        let before = requests.scrape().await;
        let mut attackers = Vec::new();
        for number in 0..CLIENTS {
            let mut client = RawClient::connect_with_little_room(siege.gateway.listen).await;
            client.send(&request(PATHS[number % PATHS.len()])).await;
            attackers.push(client);
        }
        until("all to be answered", async || {
            let now = requests.scrape().await;
            let more = |name| now.sum(name, &[]) - before.sum(name, &[]);
            (more("wsgate_connections") + more(REJECTED) == CLIENTS as f64).then_some(())
        })
        .await;
        for (number, client) in attackers.into_iter().enumerate() {
            match number % 2 {
                0 => client.reset(),
                _ => drop(client),
            }
        }
    };
    let rounds = siege.withstand(attack).await.rounds;
    let after = siege.gateway.metrics().await;
    let all = (rounds * CLIENTS / PATHS.len()) as f64;
    assert_eq!(after.sum(REJECTED, &[("reason", "not_found")]), all);
}

#[tokio::test]
async fn slow_reader_of_the_101_gets_all_of_it_and_what_was_echoed_behind_it() {
    const CLIENTS: usize = 20;
    let siege = Siege::begin(&PATIENT).await;
    let message = vec![b'.'; 700];
    let bytes = [request("/echo?hello=true"), encode(TEXT, &message).repeat(100)].concat();
    let attack = async |siege: &Siege| {
        let mut attackers = Vec::new();
        for _ in 0..CLIENTS {
            // A window of a few segments, which stays shut while nothing is read.
            let mut client = RawClient::connect_with_little_room(siege.gateway.listen).await;
            client.offer(&bytes[..16 * 1_024]).await;
            attackers.push(client);
        }
        for client in &mut attackers {
            client.send(&bytes[16 * 1_024..]).await;
            let head = client.read_head().await;
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            let hello = client.read_message(TEXT).await;
            assert!(hello.starts_with(b"{"), "{hello:02x?}");
            for _ in 0..100 {
                assert_eq!(client.read_message(TEXT).await, message);
            }
            client.send_frame(CLOSE, &close_payload(1000, "")).await;
            assert_eq!(client.read_frame().await.close().0, 1000);
            client.read_end().await;
        }
    };
    siege.withstand(attack).await;
}

/// A gateway without a free descriptor: clients that are served, and clients that wait for one.
struct Exhausted {
    served: Vec<RawClient>,
    /// They have sent their requests already.
    waiting: Vec<RawClient>,
    descriptors: u64,
}

impl Exhausted {
    /// Lowers the limit of a running gateway to what it has open, and has more clients come than it
    /// has room for.
    async fn new(gateway: &Gateway, requests: &mut Requests) -> Self {
        let mut waiting = Vec::new();
        for _ in 0..20 {
            waiting.push(RawClient::connect(gateway.listen).await);
        }
        let accepted = async || (requests.scrape().await.sum(ACCEPTED, &[]) == 20.0).then_some(());
        until("all to be accepted", accepted).await;
        // Behind its own: a shell may have left it one with a high number.
        let open = gateway.descriptors();
        let is_end = |end: &u64| (*end..end + 10).all(|number| !open.contains(&number));
        let descriptors = (0..).find(is_end).expect("numbers have no end");
        gateway.limit_open_files(descriptors);
        for _ in 0..60 {
            waiting.push(RawClient::connect(gateway.listen).await);
        }
        for client in &mut waiting {
            client.send(&request("/echo")).await;
        }
        let mut exhausted = Self { served: Vec::new(), waiting, descriptors };
        gateway.until_logged("cannot accept connections for now").await;
        exhausted.until_admitted(20).await;
        // Some numbers below the highest one were free, for scrapes too.
        until("the last descriptor to be taken", async || {
            exhausted.admit().await;
            let open = gateway.descriptors();
            (0..descriptors).all(|number| open.contains(&number)).then_some(())
        })
        .await;
        exhausted
    }

    /// Sees who of those that wait has been answered, and demands that it was with 101.
    async fn admit(&mut self) {
        for mut client in std::mem::take(&mut self.waiting) {
            // This looks, and does not wait.
            match tokio::time::timeout(Duration::ZERO, client.read_head()).await {
                Ok(head) => {
                    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
                    self.served.push(client);
                }
                Err(_) => self.waiting.push(client),
            }
        }
    }

    /// Waits until so many are served.
    async fn until_admitted(&mut self, count: usize) {
        until("clients to be accepted", async || {
            self.admit().await;
            (self.served.len() >= count).then_some(())
        })
        .await;
    }

    /// Demands that those who are served are.
    async fn echo(&mut self) {
        for client in &mut self.served {
            client.send_frame(TEXT, b"served").await;
            assert_eq!(client.read_message(TEXT).await, b"served");
        }
    }
}

#[tokio::test]
async fn gateway_at_its_limit_of_descriptors_serves_those_it_has_and_accepts_again() {
    let gateway = Gateway::start(&[TWO_SHARDS, PATIENT].concat()).await;
    let mut requests = gateway.requests().await;
    let before = requests.scrape().await;
    let mut exhausted = Exhausted::new(&gateway, &mut requests).await;
    // The other listener has no descriptor for anyone either.
    let address = gateway.admin_listen;
    let asked = tokio::spawn(admin::ask(address, Method::GET, "/healthz", String::new()));
    // Long enough for several attempts to accept.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(600) {
        exhausted.echo().await;
        let answer = requests.ask(Method::GET, "/healthz", String::new()).await;
        assert_eq!(answer.status, StatusCode::OK);
        // What is read from /proc needs a descriptor for a moment. All else is there without.
        let connections = requests.scrape().await.sum("wsgate_connections", &[]);
        assert!(connections >= exhausted.served.len() as f64);
    }
    assert!(!asked.is_finished(), "the admin port had a descriptor left");
    let told = gateway.log().lines().filter(|line| line.contains("WARN")).count();
    assert!(told <= 2, "each shard tells once, not for each attempt: {}", gateway.log());

    // Ten of the served leave, and as many get their places: one may be that of the admin port, and
    // none is of a number beyond the limit.
    exhausted.served.drain(..10);
    let stayed = exhausted.served.len();
    exhausted.until_admitted(stayed + 9).await;
    exhausted.echo().await;

    // All leave, the impatient too; then there is room again on both listeners.
    drop(exhausted);
    let answer = within("an answer of the admin port", asked).await.expect("it is answered");
    assert_eq!(answer.status, StatusCode::OK);
    gateway.until_back_at(&before, &mut requests).await;
    let siege = Siege::of(gateway).await;
    assert_eq!(siege.gateway.metrics().await.sum("wsgate_panics_total", &[]), 0.0);
}

#[tokio::test]
async fn gateway_at_its_limit_of_descriptors_drains() {
    let drain = ["--drain-grace", "0s", "--drain-duration", "100ms"];
    let flags = [&TWO_SHARDS[..], &PATIENT, &drain].concat();
    let mut gateway = Gateway::start(&flags).await;
    let mut exhausted = Exhausted::new(&gateway, &mut gateway.requests().await).await;
    gateway.signal(Signal::TERM);
    for client in &mut exhausted.served {
        assert_eq!(client.read_close().await.0, 1001);
        client.read_end().await;
    }
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn log_of_a_gateway_at_its_limit_does_not_flood_while_clients_come_and_go() {
    const COME_AND_GO: usize = 30;
    // That there are none, and that there are again, of each of two shards, and once more of either.
    const MOST_LINES: usize = 8;
    let gateway = Gateway::start(&[TWO_SHARDS, PATIENT].concat()).await;
    let lines = gateway.log().lines().count();
    let mut requests = gateway.requests().await;
    let before = requests.scrape().await;
    let mut exhausted = Exhausted::new(&gateway, &mut requests).await;
    for gone in 1..=COME_AND_GO {
        // One leaves, one of those who wait gets its place, and the next cannot be accepted.
        drop(exhausted.served.remove(0));
        let stayed = exhausted.served.len();
        exhausted.until_admitted(stayed + 1).await;
        let told = gateway.log().lines().count() - lines;
        assert!(told <= MOST_LINES, "{told} lines when {gone} have come and gone");
    }
    gateway.limit_open_files(exhausted.descriptors + 500);
    let all = exhausted.served.len() + exhausted.waiting.len();
    exhausted.until_admitted(all).await;
    exhausted.echo().await;
    drop(exhausted);
    gateway.until_back_at(&before, &mut requests).await;
}
