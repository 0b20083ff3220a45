//! The program as a person uses it: scenarios against the floor, and against servers that misbehave.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flate2::{Compress, Compression, FlushCompress};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

/// A server that this test has started, ended with it.
struct Floor {
    process: Child,
    address: SocketAddr,
}

impl Floor {
    fn start() -> Self {
        let port_file = temporary("port");
        let process = Command::new(env!("CARGO_BIN_EXE_loadtest"))
            .args(["floor", "--listen", "127.0.0.1:0", "--port-file"])
            .arg(&port_file)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let ports = loop {
            match std::fs::read_to_string(&port_file) {
                Ok(ports) => break ports,
                Err(error) => assert!(Instant::now() < deadline, "no port file: {error}"),
            }
            std::thread::yield_now();
        };
        _ = std::fs::remove_file(&port_file);
        let address = ports.lines().find_map(|line| line.strip_prefix("listen=")).unwrap();
        Self { process, address: address.parse().unwrap() }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// A file name of this process's own.
fn temporary(what: &str) -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("loadtest-{}-{number}-{what}", std::process::id()))
}

fn loadtest(words: &str, more: &[&str]) -> Output {
    let words = words.split_whitespace();
    Command::new(env!("CARGO_BIN_EXE_loadtest")).args(words).args(more).output().unwrap()
}

/// Runs a scenario and returns its report; it has to end with this status.
fn report(words: &str, address: SocketAddr, status: i32) -> Value {
    report_at(words, &format!("ws://{address}"), status)
}

fn report_at(words: &str, url: &str, status: i32) -> Value {
    let output = loadtest(words, &["--quiet", "--json", "-", "--url", url]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{said}");
    let json: Value = serde_json::from_slice(&output.stdout).expect(&said);
    json["reports"][0].clone()
}

fn finding(report: &Value, label: &str) -> f64 {
    let findings = report["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["label"] == label);
    found.unwrap_or_else(|| panic!("no \"{label}\" in {findings:?}"))["value"].as_f64().unwrap()
}

const SHORT: &str = "--dialect masked-frames --duration 300ms --warmup 50ms";

#[test]
fn every_echo_comes_back_at_every_size_and_number_in_flight() {
    let floor = Floor::start();
    for (size, in_flight, message) in
        [("0", 1, "text"), ("64", 16, "binary"), ("125", 3, "text"), ("70KiB", 4, "binary")]
    {
        let words = format!(
            "echo {SHORT} --connections 7 --size {size} --in-flight {in_flight} --message {message} --threads 2"
        );
        let report = report(&words, floor.address, 0);
        assert!(report["messages"]["received"].as_u64().unwrap() > 0, "{size}");
        assert_eq!(report["errors"], serde_json::json!({}), "{size}");
        assert_eq!(report["connections"]["opened"], 7);
        assert!(report["latency"]["p99_99"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn every_subscriber_gets_what_is_published_to_its_channel_and_nothing_else() {
    let floor = Floor::start();
    // 20 subscribers and 4 publishers on 2 channels: 10 and 2 on each, so 12 deliveries a message.
    let words = format!(
        "fanout {SHORT} --subscribers 20 --channels 2 --publishers 4 --rate 500 --threads 2"
    );
    let report = report(&words, floor.address, 0);
    assert_eq!(report["errors"], serde_json::json!({}));
    let deliveries = report["latency"]["count"].as_u64().unwrap();
    assert!(deliveries > 0 && deliveries.is_multiple_of(12), "{deliveries}");
}

#[test]
fn rate_of_an_open_loop_is_kept() {
    let floor = Floor::start();
    let words =
        "echo --dialect masked-frames --duration 4s --connections 3 --rate 200 --min-rate 100";
    let report = report(words, floor.address, 0);
    let sent = report["messages"]["sent"].as_u64().unwrap();
    assert!((600..=840).contains(&sent), "{sent}");
}

#[test]
fn usage_of_the_server_is_told_by_its_process() {
    let floor = Floor::start();
    let pid = floor.process.id();
    let words = format!("echo {SHORT} --in-flight 8 --server-pid {pid}");
    let report = report(&words, floor.address, 0);
    assert_eq!(report["server"]["pid"], pid);
    assert!(report["server"]["cpu_per_message"].as_f64().unwrap() > 0.0);
    assert!(report["server"]["memory_at_end"].as_u64().unwrap() > 0);
}

#[test]
fn conditions_that_are_not_met_are_told_and_end_with_status_1() {
    let floor = Floor::start();
    let words = format!("echo {SHORT} --max-p99 1ns --min-rate 1e12 --max-errors 0");
    let failed = report(&words, floor.address, 1);
    let passed = |report: &Value| {
        let checks = report["checks"].as_array().unwrap();
        checks.iter().map(|check| check["passed"].as_bool().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(passed(&failed), [false, false, true]);
    let words = format!("echo {SHORT} --max-p99 1h --min-rate 1 --max-errors 0");
    assert_eq!(passed(&report(&words, floor.address, 0)), [true, true, true]);
    let url = format!("ws://{}", floor.address);
    let output = loadtest(&format!("echo {SHORT} --max-p99 1ns"), &["--quiet", "--url", &url]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("FAILED max-p99"));
}

#[test]
fn wrong_usage_ends_with_status_2_and_says_what_is_wrong() {
    for (words, named) in [
        ("echo --connections 0", "connections"),
        ("echo --url http://127.0.0.1:1", "ws://HOST:PORT"),
        ("echo --url ws://127.0.0.1:1/echo", "ws://HOST:PORT"),
        ("echo --size many", "size"),
        ("echo --in-flight 2 --rate 5", "in-flight"),
        ("echo --server-pid 4294967295", "server-pid is 4294967295"),
        ("fanout --size 20", "size is 20"),
        ("echo --size 20 --payload json", "size is 20"),
        ("echo --compression much", "compression"),
        ("compare --with floor+shared echo", "floor"),
        ("compare --with floor+tls echo", "floor"),
        ("echo --url wss://127.0.0.1:1", "--ca FILE"),
        ("echo --url ws://127.0.0.1:1 --insecure", "wss://"),
        ("echo --url wss://127.0.0.1:1 --ca /nowhere", "ca is /nowhere"),
        ("soak --url wss://127.0.0.1:1 --insecure", "without TLS"),
        ("soak --gateway wsgate --url ws://127.0.0.1:1", "--url"),
        ("soak --without nonsense", "nonsense"),
        ("fanout --publish-by http", "api is not set"),
        ("slow --stalled 5 --subscribers 5", "stalled is 5"),
        ("echo --header nonsense", "header is \"nonsense\""),
        ("compare", "--file"),
        ("compare --with nobody echo", "nobody"),
    ] {
        let output = loadtest(words, &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words}: {said}");
        assert!(said.contains(named), "{words}: {said}");
    }
}

#[test]
fn nobody_to_talk_to_ends_with_status_1_and_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    drop(listener);
    for words in ["echo --quiet --connections 3", "churn --quiet --connections 3 --duration 100ms"]
    {
        let output = loadtest(words, &["--url", &url]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("connection refused ("), "{said}");
    }
}

#[test]
fn rate_that_cannot_be_sent_is_an_error_and_what_was_sent_is_read() {
    let floor = Floor::start();
    let words =
        "echo --dialect masked-frames --connections 1 --rate 1e9 --warmup 10ms --duration 100ms";
    let report = report(words, floor.address, 0);
    assert!(report["errors"]["messages due and not sent"].as_u64().unwrap() > 1_000_000);
    assert!(report["messages"]["received"].as_u64().unwrap() > 0);
    assert_eq!(report["errors"].as_object().unwrap().len(), 1, "{}", report["errors"]);
}

#[test]
fn scenarios_that_are_done_are_told_when_a_later_one_fails() {
    let floor = Floor::start();
    let file = temporary("suite.toml");
    let text = format!(
        "duration = \"50ms\"\nwarmup = \"10ms\"\nquiet = true\n\
         [[scenario]]\nkind = \"echo\"\nurl = \"ws://{}\"\ndialect = \"masked-frames\"\n\
         [[scenario]]\nkind = \"echo\"\nurl = \"ws://127.0.0.1:1\"\n",
        floor.address
    );
    std::fs::write(&file, text).unwrap();
    let output = loadtest("run", &[file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("no errors"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("connection refused"));
    _ = std::fs::remove_file(file);
}

#[test]
fn connections_come_and_go_and_come_back_after_a_storm() {
    let floor = Floor::start();
    let words = format!("churn {SHORT} --connections 10 --messages 2");
    let churn = report(&words, floor.address, 0);
    assert_eq!(churn["errors"], serde_json::json!({}));
    assert!(finding(&churn, "connections come and gone") > 0.0);
    let words = format!("storm {SHORT} --connections 100 --storms 2 --hold 10ms");
    let storm = report(&words, floor.address, 0);
    assert_eq!(storm["errors"], serde_json::json!({}));
    assert_eq!(storm["connections"]["opened"], 300);
    assert_eq!(storm["connections"]["open_at_end"], 100);
}

#[test]
fn memory_and_cpu_of_an_idle_connection_are_found() {
    let floor = Floor::start();
    let pid = floor.process.id();
    let words = format!("idle {SHORT} --connections 600 --connect-rate 4000 --server-pid {pid}");
    let report = report(&words, floor.address, 0);
    assert_eq!(report["connections"]["open_at_end"], 600);
    assert!(finding(&report, "memory of a connection") < 10_000.0);
    assert!(finding(&report, "CPU of a handshake") > 0.0);
}

#[test]
fn scenarios_of_a_file_run_in_turn_into_one_page() {
    let floor = Floor::start();
    let (file, page) = (temporary("suite.toml"), temporary("page.html"));
    let text = format!(
        "url = \"ws://{}\"\ndialect = \"masked-frames\"\nduration = \"100ms\"\nwarmup = \"10ms\"\nquiet = true\n\
         [[scenario]]\nkind = \"echo\"\nname = \"first <b>\"\nmax-errors = 0\n\
         [[scenario]]\nkind = \"fanout\"\nname = \"second\"\nsubscribers = 5\nmin-rate = 1e12\n",
        floor.address
    );
    std::fs::write(&file, &text).unwrap();
    let words = [file.to_str().unwrap(), "--html", page.to_str().unwrap()];
    let output = loadtest("run", &words);
    assert_eq!(output.status.code(), Some(1), "the second cannot meet its condition");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("first <b>") && said.contains("FAILED min-rate"), "{said}");
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("first &lt;b&gt;") && html.contains("second") && html.contains("<svg"));
    assert!(!html.contains("http://") || !html.contains("src="), "the page needs nothing else");

    std::fs::write(&file, text.replace("name = \"second\"", "nmae = \"second\"")).unwrap();
    let output = loadtest("run", &words);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--nmae"));
    _ = std::fs::remove_file(file);
    _ = std::fs::remove_file(page);
}

/// A server for so many clients: answers their handshakes, then does what `serve` says with them, in
/// the order in which they came.
fn clients<const N: usize>(serve: impl FnOnce([TcpStream; N]) + Send + 'static) -> SocketAddr {
    clients_with("", serve)
}

/// The same with one more line in the answer.
fn clients_with<const N: usize>(
    line: &'static str,
    serve: impl FnOnce([TcpStream; N]) + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        serve(std::array::from_fn(|_| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\n\
                 Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n{line}\r\n"
            );
            stream.write_all(answer.as_bytes()).unwrap();
            stream
        }));
    });
    address
}

fn one_client(serve: impl FnOnce(TcpStream) + Send + 'static) -> SocketAddr {
    clients(|[stream]| serve(stream))
}

/// Reads one masked frame of fewer than 65,536 bytes, and returns its payload without the mask.
fn read_frame(stream: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut head = [0; 2];
    stream.read_exact(&mut head)?;
    let mut length = usize::from(head[1] & 0x7f);
    if length == 126 {
        let mut longer = [0; 2];
        stream.read_exact(&mut longer)?;
        length = u16::from_be_bytes(longer).into();
    }
    let (mut key, mut payload) = ([0; 4], vec![0; length]);
    stream.read_exact(&mut key)?;
    stream.read_exact(&mut payload)?;
    for (byte, key) in payload.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
    Ok(payload)
}

fn write_frame(stream: &mut impl Write, payload: &[u8]) -> std::io::Result<()> {
    let frame = [&[0x82, payload.len() as u8], payload].concat();
    stream.write_all(&frame)
}

#[test]
fn messages_that_had_to_wait_count_as_late_from_when_they_were_due() {
    // Once, it answers nothing until 100 more have come, which takes half a second. A client that waits
    // for its answers would send nothing meanwhile and see one late message; by the clock of the open
    // loop, a hundred are late.
    let address = one_client(|mut stream| {
        let (mut count, mut withheld) = (0, Vec::new());
        while let Ok(payload) = read_frame(&mut stream) {
            count += 1;
            withheld.push(payload);
            if (100..200).contains(&count) {
                continue;
            }
            for payload in withheld.drain(..) {
                if write_frame(&mut stream, &payload).is_err() {
                    return;
                }
            }
        }
    });
    let words = "echo --connections 1 --rate 200 --warmup 50ms --duration 1500ms";
    let report = report(words, address, 0);
    let latency = &report["latency"];
    assert!(latency["max"].as_f64().unwrap() >= 450_000.0, "{latency}");
    assert!(latency["p90"].as_f64().unwrap() >= 250_000.0, "{latency}");
}

#[test]
fn echo_of_something_else_and_echo_that_never_comes_are_errors() {
    let address = one_client(|mut stream| {
        while let Ok(mut payload) = read_frame(&mut stream) {
            payload[5] = b'y';
            _ = write_frame(&mut stream, &payload);
        }
    });
    let words = "echo --connections 1 --duration 200ms --warmup 0s --max-errors 0";
    let wrong = report(words, address, 1);
    assert_eq!(wrong["errors"]["an echo is not what was sent"], 1);

    let address = one_client(|mut stream| while read_frame(&mut stream).is_ok() {});
    let silent = report(words, address, 1);
    assert_eq!(silent["errors"]["messages unanswered"], 1);
}

#[test]
fn lost_and_repeated_messages_of_a_channel_are_errors() {
    let address = clients(|[mut subscriber, mut publisher]| {
        let mut count = 0;
        while let Ok(payload) = read_frame(&mut publisher) {
            // The third message is lost on the way to the subscriber, the fifth comes twice.
            let times = [1, 1, 0, 1, 2].get(count).copied().unwrap_or(1);
            count += 1;
            for _ in 0..times {
                _ = write_frame(&mut subscriber, &payload);
            }
            _ = write_frame(&mut publisher, &payload);
        }
    });
    let words = "fanout --subscribers 1 --rate 100 --duration 300ms --warmup 0s --max-errors 0";
    let errors = &report(words, address, 1)["errors"];
    let expected = serde_json::json!({ "messages lost": 1, "message repeated or out of order": 1 });
    assert_eq!(*errors, expected);
}

#[test]
fn close_and_broken_frames_of_the_server_are_told_by_kind() {
    let words = "echo --connections 1 --duration 200ms --warmup 0s --max-errors 0";
    let address = one_client(|mut stream| {
        _ = read_frame(&mut stream);
        _ = stream.write_all(&[0x88, 2, 0x03, 0xf3]);
        _ = stream.read(&mut [0; 64]);
    });
    assert_eq!(report(words, address, 1)["errors"]["closed by the server with 1011"], 1);
    let address = one_client(|mut stream| {
        _ = read_frame(&mut stream);
        _ = stream.write_all(&[0xc2, 0]);
        _ = stream.read(&mut [0; 64]);
    });
    assert_eq!(report(words, address, 1)["errors"]["broken frame: a reserved bit is set"], 1);
}

/// What a server answers that compresses each message by itself.
const SHARED: &str = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n";
/// What one answers that keeps a window.
const DEDICATED: &str = "Sec-WebSocket-Extensions: permessage-deflate\r\n";

/// Sends a compressed message of fewer than 65,536 compressed bytes.
fn write_compressed(stream: &mut TcpStream, deflate: &mut Compress, payload: &[u8]) {
    let mut compressed = Vec::with_capacity(payload.len() + 64);
    deflate.compress_vec(payload, &mut compressed, FlushCompress::Sync).unwrap();
    compressed.truncate(compressed.len() - 4);
    let mut frame = vec![0xc2, 126];
    frame.extend((compressed.len() as u16).to_be_bytes());
    frame.extend(compressed);
    // Who has heard enough is gone.
    _ = stream.write_all(&frame);
}

fn deflate() -> Compress {
    Compress::new(Compression::default(), false)
}

#[test]
fn compressed_echoes_are_inflated_and_compared_with_and_without_a_window() {
    for (mode, line) in [("shared", SHARED), ("dedicated", DEDICATED), ("deflate", SHARED)] {
        let address = clients_with(line, move |[mut stream]| {
            let mut deflate = deflate();
            while let Ok(payload) = read_frame(&mut stream) {
                if line == SHARED {
                    deflate.reset();
                }
                write_compressed(&mut stream, &mut deflate, &payload);
            }
        });
        let words = format!(
            "echo --connections 1 --in-flight 4 --duration 200ms --warmup 0s --size 1KiB \
             --payload json --compression {mode}"
        );
        let report = report(&words, address, 0);
        assert_eq!(report["errors"], serde_json::json!({}), "{mode}");
        let received = report["messages"]["received"].as_f64().unwrap();
        assert_eq!(report["messages"]["received_bytes"].as_f64().unwrap(), received * 1024.0);
        // Names and keys come again, ids and prices do not.
        let saved = finding(&report, "saved of the payload's bytes");
        assert!((20.0..95.0).contains(&saved), "{mode}: {saved}");
    }
}

#[test]
fn compressed_deliveries_are_checked_like_others() {
    let address = clients_with(SHARED, |[mut subscriber, mut publisher]| {
        let (mut deflate, mut count) = (deflate(), 0);
        while let Ok(payload) = read_frame(&mut publisher) {
            // The third message is lost on the way to the subscriber, the fifth comes twice.
            let times = [1, 1, 0, 1, 2].get(count).copied().unwrap_or(1);
            count += 1;
            for _ in 0..times {
                deflate.reset();
                write_compressed(&mut subscriber, &mut deflate, &payload);
            }
            deflate.reset();
            write_compressed(&mut publisher, &mut deflate, &payload);
        }
    });
    let words = "fanout --subscribers 1 --rate 100 --duration 300ms --warmup 0s --max-errors 0 \
                 --size 500 --payload json --compression shared";
    let errors = &report(words, address, 1)["errors"];
    let expected = serde_json::json!({ "messages lost": 1, "message repeated or out of order": 1 });
    assert_eq!(*errors, expected);
}

#[test]
fn changed_and_broken_compressed_messages_are_errors() {
    let words =
        "echo --connections 1 --duration 200ms --warmup 0s --max-errors 0 --compression shared";
    let address = clients_with(SHARED, |[mut stream]| {
        while let Ok(mut payload) = read_frame(&mut stream) {
            payload[5] = b'y';
            write_compressed(&mut stream, &mut deflate(), &payload);
        }
    });
    assert_eq!(report(words, address, 1)["errors"]["an echo is not what was sent"], 1);
    let address = clients_with(SHARED, |[mut stream]| {
        _ = read_frame(&mut stream);
        _ = stream.write_all(&[0xc2, 3, 0xff, 0xff, 0xff]);
        _ = stream.read(&mut [0; 64]);
    });
    let error = "broken message: a compressed message is corrupt";
    assert_eq!(report(words, address, 1)["errors"][error], 1);
}

#[test]
fn handshake_that_is_answered_otherwise_than_the_mode_demands_has_failed() {
    for (mode, line, error) in [
        ("deflate", "", "the server does not accept permessage-deflate"),
        ("shared", DEDICATED, "permessage-deflate without server_no_context_takeover"),
        ("dedicated", SHARED, "permessage-deflate with server_no_context_takeover"),
        ("off", SHARED, "an extension that was not offered"),
    ] {
        let address = clients_with(line, |[mut stream]| _ = stream.read(&mut [0; 64]));
        let url = format!("ws://{address}");
        let words = format!("idle --quiet --connections 1 --duration 10ms --compression {mode}");
        let output = loadtest(&words, &["--url", &url]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{mode}: {said}");
        assert!(said.contains(error), "{mode}: {said}");
    }
}

#[test]
fn json_goes_through_echoes_and_channels_of_every_dialect() {
    let floor = Floor::start();
    for scenario in ["echo --connections 3 --in-flight 4", "fanout --subscribers 6 --publishers 2"]
    {
        for size in [47, 48, 49, 50, 1_000] {
            let words = format!("{scenario} {SHORT} --payload json --size {size} --message text");
            let report = report(&words, floor.address, 0);
            assert!(report["messages"]["received"].as_u64().unwrap() > 0, "{words}");
            assert_eq!(report["errors"], serde_json::json!({}), "{words}");
        }
    }
}

/// A server for any number of clients that echoes over TLS, and answers a Close. Its certificate for
/// 127.0.0.1, which has signed itself, is in the file.
fn tls_server() -> (SocketAddr, PathBuf) {
    let signed = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = builder.with_single_cert(vec![signed.cert.der().clone()], key).unwrap();
    let config = Arc::new(config);
    let file = temporary("certificate.pem");
    std::fs::write(&file, signed.cert.pem()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            socket.set_nodelay(true).unwrap();
            let session = ServerConnection::new(Arc::clone(&config)).unwrap();
            // Whoever goes without a word, or does not believe the certificate, is gone.
            std::thread::spawn(move || echo_until_close(&mut StreamOwned::new(session, socket)));
        }
    });
    (address, file)
}

fn echo_until_close(stream: &mut (impl Read + Write)) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let answer = "HTTP/1.1 101 Switching Protocols\r\n\
                  Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    stream.write_all(answer.as_bytes())?;
    loop {
        let payload = read_frame(stream)?;
        if payload == 1000u16.to_be_bytes() {
            return stream.write_all(&[0x88, 2, payload[0], payload[1]]);
        }
        write_frame(stream, &payload)?;
    }
}

#[test]
fn clients_echo_and_idle_and_come_and_go_over_tls() {
    let (address, certificate) = tls_server();
    let ca = certificate.to_str().unwrap();
    let url = format!("wss://{address}");
    for (words, trust) in [
        ("echo --connections 7 --size 64 --in-flight 16", format!("--ca {ca}")),
        ("echo --connections 3 --size 125 --in-flight 1", "--insecure".to_owned()),
        ("echo --connections 3 --size 100 --rate 200", format!("--ca {ca}")),
        ("idle --connections 10", format!("--ca {ca}")),
        ("churn --connections 5 --messages 3", format!("--ca {ca}")),
    ] {
        let words = format!("{words} {trust} --duration 300ms --warmup 50ms --threads 2");
        let report = report_at(&words, &url, 0);
        assert_eq!(report["errors"], serde_json::json!({}), "{words}");
        assert_eq!(report["target"], url, "{words}");
        if !words.starts_with("idle") {
            assert!(report["messages"]["received"].as_u64().unwrap() > 0, "{words}");
        }
    }
    _ = std::fs::remove_file(certificate);
}

#[test]
fn server_with_the_certificate_of_another_is_not_spoken_to() {
    let (address, certificate) = tls_server();
    let (_, other) = tls_server();
    let url = format!("wss://{address}");
    let words = ["--url", &url, "--ca", other.to_str().unwrap()];
    let output = loadtest("echo --quiet --connections 2", &words);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("TLS: invalid peer certificate"), "{said}");
    for file in [certificate, other] {
        _ = std::fs::remove_file(file);
    }
}
