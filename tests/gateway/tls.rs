//! Certificates: which one a client sees, how they change, and who may come in by one of their own.

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio_rustls::TlsConnector;
use x509_parser::pem::Pem;

use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::raw::RawClient;
use crate::support::tls::{self, Authority, Pair, replace, shown_certificate};
use crate::support::transport::HOST;
use crate::support::until;

const RELOADS: &str = "wsgate_tls_reloads_total";

/// Starts `wsgate serve` with these certificates, the first of which is for those who name none.
async fn start(pairs: &[&Pair], flags: &[&str]) -> Gateway {
    let flags_of_pairs: Vec<String> = pairs.iter().flat_map(|pair| pair.flags()).collect();
    let flags: Vec<&str> =
        flags_of_pairs.iter().map(String::as_str).chain(flags.iter().copied()).collect();
    Gateway::start(&flags).await
}

async fn connect(connector: &TlsConnector, gateway: &Gateway, name: &str) -> Client {
    let socket = tls::connect(connector, gateway.listen, name).await.expect("TLS");
    Client::connect_over(socket, name, "/echo").await
}

/// What a new handshake is shown.
async fn shown(connector: &TlsConnector, gateway: &Gateway, name: &str) -> Vec<u8> {
    let socket = tls::connect(connector, gateway.listen, name).await;
    shown_certificate(&socket.expect("TLS"))
}

/// The certificate in `pem`.
fn der(pem: &str) -> Vec<u8> {
    let pem = Pem::iter_from_buffer(pem.as_bytes()).next().expect("one certificate");
    pem.expect("PEM").contents
}

async fn echo(client: &mut Client, text: &str) {
    client.send_text(text).await;
    assert_eq!(client.read_text().await, text);
}

#[tokio::test]
async fn certificate_swapped_a_hundred_times_breaks_nothing_and_new_handshakes_see_the_newest() {
    let authority = Authority::new();
    let (pair, connector) = (authority.sign("gateway", &[HOST]), authority.connector());
    let gateway = start(&[&pair], &["--shards", "2"]).await;
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push(connect(&connector, &gateway, HOST).await);
    }
    for swap in 1..=100 {
        let (cert, key) = authority.sign_pem(&[HOST]);
        replace(&pair.cert, &cert);
        replace(&pair.key, &key);
        gateway.signal(Signal::HUP);
        for client in &mut open {
            echo(client, &swap.to_string()).await;
        }
        gateway.until_metric(RELOADS, &[("result", "success")], f64::from(swap)).await;
        assert_eq!(shown(&connector, &gateway, HOST).await, der(&cert), "after {swap} swaps");
        for client in &mut open {
            echo(client, "still here").await;
        }
    }
    assert_eq!(gateway.metrics().await.sum(RELOADS, &[("result", "failure")]), 0.0);
}

#[tokio::test]
async fn files_that_change_are_loaded_without_a_signal_and_what_does_not_fit_is_not() {
    let authority = Authority::new();
    let (pair, connector) = (authority.sign("gateway", &[HOST]), authority.connector());
    let gateway = start(&[&pair], &["--shards", "1"]).await;
    let before = shown(&connector, &gateway, HOST).await;
    let (cert, key) = authority.sign_pem(&[HOST]);
    replace(&pair.cert, &cert);
    gateway.until_metric(RELOADS, &[("result", "failure")], 1.0).await;
    assert_eq!(shown(&connector, &gateway, HOST).await, before, "its key is another one's");
    gateway.until_logged("the key is not that of the certificate").await;

    replace(&pair.key, &key);
    gateway.until_metric(RELOADS, &[("result", "success")], 1.0).await;
    assert_eq!(shown(&connector, &gateway, HOST).await, der(&cert));

    replace(&pair.key, &key[..key.len() / 2]);
    gateway.signal(Signal::HUP);
    gateway.until_metric(RELOADS, &[("result", "failure")], 2.0).await;
    assert_eq!(shown(&connector, &gateway, HOST).await, der(&cert));
    let expiry = gateway.metrics().await;
    let expiry = expiry.sum("wsgate_tls_certificate_expiry_timestamp_seconds", &[]);
    assert!(expiry > 1_700_000_000.0, "{expiry}");
}

/// A renewal that only root may read was ignored without a word.
#[tokio::test]
async fn file_that_cannot_be_read_is_told_once_and_what_was_loaded_stays() {
    let authority = Authority::new();
    let (pair, connector) = (authority.sign("gateway", &[HOST]), authority.connector());
    let gateway = start(&[&pair], &["--shards", "1"]).await;
    let before = shown(&connector, &gateway, HOST).await;
    let (cert, key) = authority.sign_pem(&[HOST]);
    // Root may read everything, but no directory.
    let link = pair.key.with_extension("link");
    std::os::unix::fs::symlink(std::env::temp_dir(), &link).expect("nothing is there");
    std::fs::rename(&link, &pair.key).expect("a file gives way to it");
    replace(&pair.cert, &cert);
    gateway.until_metric(RELOADS, &[("result", "failure")], 1.0).await;
    gateway.until_logged("cannot be read").await;
    assert_eq!(shown(&connector, &gateway, HOST).await, before);

    replace(&pair.key, &key);
    gateway.until_metric(RELOADS, &[("result", "success")], 1.0).await;
    assert_eq!(shown(&connector, &gateway, HOST).await, der(&cert));
    assert_eq!(gateway.metrics().await.sum(RELOADS, &[("result", "failure")]), 1.0);
}

/// Each refused client cost as much as one that is let in.
#[tokio::test]
async fn flood_of_clients_over_the_limit_costs_a_handshake_of_tls_for_few_of_them() {
    const CLIENTS: usize = 400;
    let authority = Authority::new();
    let (pair, connector) = (authority.sign("gateway", &[HOST]), authority.connector());
    let limit = ["--shards", "1", "--max-handshakes-per-second", "1"];
    let gateway = start(&[&pair], &limit).await;
    let start = Instant::now();
    let mut encrypted = 0;
    for _ in 0..CLIENTS {
        encrypted += usize::from(tls::connect(&connector, gateway.listen, HOST).await.is_ok());
    }
    // One a second comes in, 50 a second hear why not, and so many at once.
    let most = 1.0 + 32.0 + 51.0 * start.elapsed().as_secs_f64() + 1.0;
    assert!((10.0..=most).contains(&(encrypted as f64)), "{encrypted} of at most {most}");
    let counted = async || {
        let metrics = gateway.metrics().await;
        let rejected = metrics.sum("wsgate_connections_rejected_total", &[]);
        (rejected >= CLIENTS as f64).then_some(())
    };
    until("each of them is counted", counted).await;
}

#[tokio::test]
async fn certificate_is_chosen_by_the_name_that_the_client_asks_for() {
    let authority = Authority::new();
    let first = authority.sign("first", &["first.example", "other.example"]);
    let second = authority.sign("second", &["second.example", "*.wild.example"]);
    let connector = authority.connector();
    let gateway = start(&[&first, &second], &["--shards", "1"]).await;
    let read = |pair: &Pair| der(&std::fs::read_to_string(&pair.cert).expect("it was written"));
    for (name, pair) in [
        ("first.example", &first),
        ("other.example", &first),
        ("second.example", &second),
        ("any.wild.example", &second),
        ("ANY.wild.example", &second),
    ] {
        assert_eq!(shown(&connector, &gateway, name).await, read(pair), "{name}");
    }
    // It sees the first, which is not for it.
    for name in ["wild.example", "two.labels.wild.example", "nobody.example"] {
        let refused = tls::connect(&connector, gateway.listen, name).await;
        assert!(refused.unwrap_err().to_string().contains("not valid for name"), "{name}");
    }
}

#[test]
fn pair_that_cannot_be_used_is_an_error_of_the_operator() {
    let authority = Authority::new();
    let (one, other) = (authority.sign("one", &[HOST]), authority.sign("other", &[HOST]));
    let missing = one.cert.with_file_name("missing.crt");
    for (cert, key, complaint) in [
        (&one.cert, &other.key, "the key is not that of the certificate"),
        (&missing, &one.key, "which cannot be read"),
        (&one.key, &one.key, "which holds no certificate"),
        (&one.cert, &one.cert, "which holds no private key"),
    ] {
        for command in ["check", "serve"] {
            let mut wsgate = Command::new(env!("CARGO_BIN_EXE_wsgate"));
            wsgate.arg(command).args(["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"]);
            let output = wsgate.arg("--tls-cert").arg(cert).arg("--tls-key").arg(key).output();
            let output = output.expect("wsgate starts");
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{text}");
            assert!(text.contains(complaint) && text.contains("tls_"), "{text}");
        }
    }
}

#[tokio::test]
async fn clients_show_a_good_certificate_where_that_is_required() {
    let authority = Authority::new();
    let pair = authority.sign("gateway", &[HOST]);
    let own = authority.sign("client", &["client.example"]);
    let others = Authority::new();
    let stranger = others.sign("stranger", &["client.example"]);
    let ca = format!("--tls-client-ca={}", authority.cert().display());
    let without = authority.connector();
    let with = |own| authority.connector_with(rustls::ALL_VERSIONS, &[], Some(own));
    for mode in ["required", "optional"] {
        let mode = format!("--tls-client-auth={mode}");
        let gateway = start(&[&pair], &["--shards", "1", &ca, &mode]).await;
        echo(&mut connect(&with(&own), &gateway, HOST).await, "known").await;
        let refused = || async {
            gateway.metrics().await.sum("wsgate_connections_rejected_total", &[("reason", "tls")])
        };
        if mode.ends_with("optional") {
            echo(&mut connect(&without, &gateway, HOST).await, "anonymous").await;
            assert_eq!(refused().await, 0.0);
        } else {
            // With TLS 1.3 the client hears of it only when it reads.
            _ = tls::connect(&without, gateway.listen, HOST).await;
            until("a refusal", async || (refused().await == 1.0).then_some(())).await;
        }
        let before = refused().await;
        _ = tls::connect(&with(&stranger), gateway.listen, HOST).await;
        until("a refusal", async || (refused().await == before + 1.0).then_some(())).await;
    }
}

#[tokio::test]
async fn what_is_no_tls_is_refused_and_half_a_handshake_ends_at_its_timeout() {
    let authority = Authority::new();
    let pair = authority.sign("gateway", &[HOST]);
    let gateway = start(&[&pair], &["--shards", "1", "--handshake-timeout", "2s"]).await;
    let rejected = |reason| ("wsgate_connections_rejected_total", [("reason", reason)]);

    let mut plain = RawClient::connect(gateway.listen).await;
    plain.send(&crate::support::raw::request("/echo")).await;
    let answer = plain.reader.read_rest().await;
    assert_eq!(answer.first(), Some(&21), "an alert of TLS: {answer:02x?}");
    let (name, labels) = rejected("tls");
    gateway.until_metric(name, &labels, 1.0).await;

    let start = std::time::Instant::now();
    let mut half = RawClient::connect(gateway.listen).await;
    half.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await;
    half.read_end().await;
    assert!(start.elapsed() >= Duration::from_secs(2));
    // TLS is agreed on, and then no request comes.
    let silent = tls::connect(&authority.connector(), gateway.listen, HOST).await.expect("TLS");
    let (name, labels) = rejected("timeout");
    gateway.until_metric(name, &labels, 2.0).await;
    drop(silent);
    RawClient::connect(gateway.listen).await.shut_down().await;
    let (name, labels) = rejected("disconnected");
    gateway.until_metric(name, &labels, 1.0).await;
}

#[tokio::test]
async fn plain_listener_and_unix_socket_stand_beside_tls_and_go_with_the_process() {
    let authority = Authority::new();
    let pair = authority.sign("gateway", &[HOST]);
    let path = pair.cert.with_file_name("plain.sock");
    let unix = format!("127.0.0.1:0,unix:{}", path.display());
    let flags = ["--shards", "2", "--plain-listen", &unix, "--drain-grace", "0s"];
    let mut gateway = start(&[&pair], &[&flags[..], &["--drain-duration", "0s"]].concat()).await;
    let line = |begin: &str| gateway.ports.lines().find_map(|line| line.strip_prefix(begin));
    let plain = line("plain_listen=").expect("it is told").parse().expect("an address");
    assert_eq!(line("plain_listen=unix:"), path.to_str());

    echo(&mut connect(&authority.connector(), &gateway, HOST).await, "over TLS").await;
    echo(&mut Client::connect(plain, "/echo").await, "plain").await;
    let socket = tokio::net::UnixStream::connect(&path).await.expect("it listens");
    echo(&mut Client::connect_over(socket, HOST, "/echo").await, "by a path").await;
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.exit().await.code(), Some(0));
    assert!(!path.exists());
}
