//! `wsgate connect` in a script: what it sends, what it prints, and what it exits with.
//!
//! A person at a terminal is played in tests/clients/python/test_connect.py.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedKey, IsCa, KeyPair,
    generate_simple_self_signed,
};
use rustix::process::{Pid, Signal, kill_process};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_blocking;
use tokio_rustls::TlsAcceptor;

use crate::support::gateway::Gateway;
use crate::support::place::Place;
use crate::support::{until, within};

/// What a run came to.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Outcome {
    /// One that ended well.
    fn good(stdout: &str) -> Self {
        Self { code: Some(0), stdout: stdout.to_owned(), stderr: String::new() }
    }

    /// Demands that the run failed while running, and what was said.
    fn failure(&self) -> &str {
        assert_eq!(self.code, Some(1), "{self:?}");
        &self.stderr
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wsgate"));
    command.arg("connect").args(arguments).env_clear();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it with this for standard input, to its end.
async fn run_command(mut command: Command, input: &[u8]) -> Outcome {
    let mut child = command.spawn().expect("wsgate starts");
    let mut stdin = child.stdin.take().expect("it is a pipe");
    let input = input.to_vec();
    let writing = spawn_blocking(move || {
        // It may have ended before it has read everything.
        _ = stdin.write_all(&input);
    });
    let output = spawn_blocking(move || child.wait_with_output());
    let output = within("the end of wsgate connect", output).await;
    let output = output.expect("waiting does not panic").expect("it was started");
    writing.await.expect("writing does not panic");
    let text = |bytes| String::from_utf8(bytes).expect("it prints UTF-8");
    Outcome { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

async fn run(input: &str, arguments: &[&str]) -> Outcome {
    run_command(command(arguments), input.as_bytes()).await
}

/// A run that goes on while the test does other things. It is killed when this is dropped.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let mut child = command(arguments).spawn().expect("wsgate starts");
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().map(BufReader::new);
        Self { child, stdin, stdout }
    }

    /// Types a line.
    fn send(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("it is open");
        writeln!(stdin, "{line}").expect("it reads");
    }

    /// The next line that it prints.
    async fn line(&mut self) -> String {
        let mut stdout = self.stdout.take().expect("nobody else reads it");
        let reading = spawn_blocking(move || {
            let mut line = String::new();
            stdout.read_line(&mut line).expect("standard output is a pipe");
            (stdout, line)
        });
        let (stdout, line) = within("a line", reading).await.expect("reading does not panic");
        self.stdout = Some(stdout);
        line.trim_end_matches('\n').to_owned()
    }

    /// The next line that it says to standard error.
    async fn notice(&mut self) -> String {
        let mut stderr = self.child.stderr.take().expect("nobody else reads it");
        let reading = spawn_blocking(move || {
            let mut line = Vec::new();
            // One byte at a time: the rest is for the next one.
            while !line.ends_with(b"\n") {
                let mut byte = [0];
                stderr.read_exact(&mut byte).expect("it says something");
                line.extend(byte);
            }
            (stderr, line)
        });
        let (stderr, line) = within("a notice", reading).await.expect("reading does not panic");
        self.child.stderr = Some(stderr);
        String::from_utf8(line).expect("it says UTF-8")
    }

    /// Its exit code, when it ends by itself.
    async fn exit(&mut self) -> Option<i32> {
        let child = &mut self.child;
        let ended = until("the end of wsgate connect", async || child.try_wait().expect("ours"));
        ended.await.code()
    }

    /// Ends the input. Returns its exit code, and what it has said to standard error.
    async fn end(mut self) -> (Option<i32>, String) {
        drop(self.stdin.take());
        let code = self.exit().await;
        let mut said = String::new();
        let stderr = self.child.stderr.as_mut().expect("it is a pipe");
        stderr.read_to_string(&mut said).expect("UTF-8");
        (code, said)
    }

    fn interrupt(&self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("it runs");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

async fn gateway() -> Gateway {
    Gateway::start(&["--shards", "1", "--drain-grace", "0s", "--drain-duration", "0s"]).await
}

fn url(gateway: &Gateway, path: &str) -> String {
    format!("ws://{}{path}", gateway.listen)
}

#[tokio::test]
async fn each_line_is_sent_and_each_answer_printed() {
    let gateway = gateway().await;
    let echo = url(&gateway, "/echo");
    let outcome = run("hello\r\n\n  wörld \u{1b}[1m", &[&echo]).await;
    assert_eq!(outcome, Outcome::good("hello\n\n  wörld \u{1b}[1m\n"));
    assert_eq!(run("", &[&echo]).await, Outcome::good(""));
    gateway.until_metric("wsgate_connections_closed_total", &[("code", "1000")], 2.0).await;
}

#[tokio::test]
async fn many_lines_go_both_ways_at_once() {
    let gateway = gateway().await;
    // More than both kernels and all queues have room for.
    let lines: String = (0..60_000).map(|number| format!("line {number} of many\n")).collect();
    let echo = url(&gateway, "/echo");
    let outcome = run(&lines, &[&echo, "--timeout", "30s"]).await;
    assert_eq!((outcome.code, outcome.stdout == lines), (Some(0), true), "{}", outcome.stderr);
}

#[tokio::test]
async fn expectation_that_is_met_ends_the_run_well() {
    let gateway = gateway().await;
    let echo = url(&gateway, "/echo");
    let outcome = run("hello\n", &[&echo, "--expect", "hello", "--timeout", "20s"]).await;
    assert_eq!(outcome, Outcome::good("hello\n"));
    let outcome = run("one\ntwo\n", &[&echo, "--expect", "two", "--expect-part", "n"]).await;
    assert_eq!(outcome, Outcome::good("one\ntwo\n"));

    // The input need not end.
    let mut running = Running::start(&[&echo, "--expect", "now"]);
    running.send("now");
    assert_eq!(running.line().await, "now");
    assert_eq!(running.exit().await, Some(0));
}

#[tokio::test]
async fn expectation_that_is_not_met_in_time_fails() {
    let gateway = gateway().await;
    let echo = url(&gateway, "/echo");
    let outcome = run("hello\n", &[&echo, "--expect", "bye", "--timeout", "3s"]).await;
    assert_eq!(outcome.stdout, "hello\n");
    let expected =
        "wsgate: \"bye\" was expected and did not come within 3s; messages received: 1\n";
    assert_eq!(outcome.failure(), expected);

    let outcome = run("hello\n", &[&echo, "--expect", "bye", "--count", "1"]).await;
    assert!(outcome.failure().contains("did not come among 1 messages"), "{outcome:?}");
}

#[tokio::test]
async fn count_says_how_many_messages_are_waited_for() {
    let gateway = gateway().await;
    let unanswered = url(&gateway, "/channels/news?own=false");
    assert_eq!(run("hello\n", &[&unanswered, "--count", "0"]).await, Outcome::good(""));
    let outcome = run("hello\n", &[&unanswered, "--timeout", "3s"]).await;
    assert!(outcome.failure().contains("received 0 of 1 messages within 3s"), "{outcome:?}");

    // Without input it hears what others say.
    let mut listener = Running::start(&[&url(&gateway, "/channels/news"), "--count", "2"]);
    gateway.until_metric("wsgate_subscriptions", &[], 1.0).await;
    let both = url(&gateway, "/channels/news?own=false");
    assert_eq!(run("a\nb\n", &[&both, "--count", "0"]).await.code, Some(0));
    assert_eq!((listener.line().await, listener.line().await), ("a".into(), "b".into()));
    assert_eq!(listener.end().await, (Some(0), String::new()));
}

#[tokio::test]
async fn binary_message_is_printed_in_hexadecimal() {
    let gateway = gateway().await;
    let mut listener = Running::start(&[&url(&gateway, "/channels/news"), "--count", "1"]);
    gateway.until_metric("wsgate_subscriptions", &[], 1.0).await;
    gateway.connect("/channels/news").await.send_binary(&[0x00, 0x1b, 0xff]).await;
    assert_eq!(listener.line().await, "001bff");
    assert_eq!(listener.end().await.0, Some(0));
}

#[tokio::test]
async fn refusal_is_told_with_its_status_and_what_its_body_says() {
    let gateway = gateway().await;
    let outcome = run("", &[&url(&gateway, "/nothing")]).await;
    assert!(outcome.failure().starts_with("wsgate: refused with 404 Not Found"), "{outcome:?}");
    let origin = ["--origin", "http://evil.example"];
    let outcome = run("", &[&url(&gateway, "/echo"), origin[0], origin[1]]).await;
    assert!(outcome.failure().starts_with("wsgate: refused with 403 Forbidden"), "{outcome:?}");
    let own = format!("http://{}", gateway.listen);
    let outcome = run("", &[&url(&gateway, "/echo"), "--origin", &own]).await;
    assert_eq!(outcome, Outcome::good(""));
}

#[tokio::test]
async fn server_that_is_not_there_or_says_nothing_fails_the_run() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let silent = format!("ws://{}/", listener.local_addr().expect("bound"));
    let outcome = run("", &[&silent, "--timeout", "300ms"]).await;
    assert_eq!(outcome.failure(), "wsgate: no connection within 300ms\n");
    drop(listener);
    let outcome = run("", &[&silent]).await;
    assert!(outcome.failure().starts_with("wsgate: cannot connect: "), "{outcome:?}");
}

#[tokio::test]
async fn wrong_usage_exits_with_2() {
    for arguments in [
        &[][..],
        &["localhost:8080"],
        &["ws://localhost/", "--timeout", "2"],
        &["wss://localhost/", "--ca", "/nowhere/at/all.pem"],
    ] {
        let outcome = run("", arguments).await;
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), ""), "{outcome:?}");
        assert_ne!(outcome.stderr, "", "{arguments:?}");
    }
}

#[tokio::test]
async fn line_that_is_not_utf8_is_not_sent() {
    let gateway = gateway().await;
    let outcome = run_command(command(&[&url(&gateway, "/echo")]), b"good\n\xff\n").await;
    let expected = "wsgate: line 2 of the input is not UTF-8, which a text has to be\n";
    assert_eq!(outcome.failure(), expected);
}

#[tokio::test]
async fn message_beyond_the_bound_ends_the_connection_with_1009() {
    let gateway = gateway().await;
    let news = url(&gateway, "/channels/news");
    let listener = Running::start(&[&news, "--count", "1", "--max-message-bytes", "10"]);
    gateway.until_metric("wsgate_subscriptions", &[], 1.0).await;
    gateway.connect("/channels/news").await.send_text("eleven bytes").await;
    gateway.until_metric("wsgate_connections_closed_total", &[("code", "1009")], 1.0).await;
    let (code, said) = listener.end().await;
    assert_eq!(code, Some(1));
    assert!(said.contains("message larger than the limit"), "{said}");
}

#[tokio::test]
async fn compression_is_offered_and_used_both_ways() {
    for mode in ["shared", "dedicated", "off"] {
        let gateway = Gateway::start(&["--shards", "1", "--compression", mode]).await;
        let line = "the same again and again, ".repeat(40);
        let lines = format!("{line}\n{line}\n");
        let outcome = run(&lines, &[&url(&gateway, "/echo"), "--compression"]).await;
        assert_eq!(outcome, Outcome::good(&lines), "{mode}");
        let metrics = gateway.metrics().await;
        for name in ["wsgate_inflate_output_bytes_total", "wsgate_deflate_input_bytes_total"] {
            assert_eq!(metrics.sum(name, &[]) > 1_000.0, mode != "off", "{mode}: {name}");
        }
    }
}

#[tokio::test]
async fn gateway_that_drains_is_come_back_to_if_asked_for() {
    let flags = ["--shards", "1", "--drain-grace", "0s", "--drain-duration", "0s"];
    let mut gateway = Gateway::start(&flags).await;
    let address = gateway.listen.to_string();
    let echo = url(&gateway, "/echo");
    let delays = ["--reconnect-delay", "10ms", "--max-reconnect-delay", "50ms"];
    let mut running = Running::start(&[&[echo.as_str(), "--reconnect"][..], &delays].concat());
    running.send("before");
    assert_eq!(running.line().await, "before");
    gateway.signal(Signal::TERM);
    gateway.exit().await;
    let again = Gateway::start_at(&address, &flags).await;
    running.send("after");
    assert_eq!(running.line().await, "after");
    let (code, said) = running.end().await;
    drop(again);
    assert_eq!(code, Some(0), "{said}");
    let expected =
        "wsgate: connection closed: 1001 going away (the gateway is draining); trying again in ";
    assert!(said.starts_with(expected), "{said}");
}

#[tokio::test]
async fn drain_fails_a_script_that_did_not_ask_to_come_back() {
    let gateway = gateway().await;
    let mut running = Running::start(&[&url(&gateway, "/echo")]);
    running.send("before");
    assert_eq!(running.line().await, "before");
    gateway.signal(Signal::TERM);
    assert_eq!(running.exit().await, Some(1));
}

#[tokio::test]
async fn attempts_come_to_an_end() {
    let arguments = ["ws://127.0.0.1:1/", "--reconnect", "--max-attempts", "2"];
    let outcome = run("", &[&arguments[..], &["--reconnect-delay", "1ms"]].concat()).await;
    let said = outcome.failure();
    assert_eq!(said.lines().count(), 3, "{said}");
    assert!(said.contains("(attempt 2)\n"), "{said}");
    assert!(said.ends_with("; gave up after 2 attempts\n"), "{said}");
}

#[tokio::test]
async fn interrupt_closes_with_1000() {
    let gateway = gateway().await;
    let mut running = Running::start(&[&url(&gateway, "/echo")]);
    running.send("here");
    assert_eq!(running.line().await, "here");
    running.interrupt();
    assert_eq!(running.exit().await, Some(0));
    let labels = [("code", "1000"), ("initiator", "remote")];
    gateway.until_metric("wsgate_connections_closed_total", &labels, 1.0).await;
}

#[tokio::test]
async fn interrupt_between_two_connections_ends_well_where_nothing_is_missing() {
    for (awaited, code, missing) in [
        (&[][..], 0, ""),
        (&["--count", "0"], 0, ""),
        (&["--count", "2"], 1, "received 1 of 2 messages before the end"),
        (&["--expect", "more"], 1, "\"more\" was expected and did not come before the end"),
    ] {
        let mut gateway = gateway().await;
        let echo = url(&gateway, "/echo");
        let delays = ["--reconnect-delay", "1h", "--max-reconnect-delay", "1h"];
        let arguments = [&[echo.as_str(), "--reconnect"][..], &delays, awaited].concat();
        let mut running = Running::start(&arguments);
        running.send("here");
        assert_eq!(running.line().await, "here");
        gateway.signal(Signal::TERM);
        gateway.exit().await;
        let notice = running.notice().await;
        assert!(notice.contains("; trying again in "), "{notice}");
        running.interrupt();
        let (ended, said) = running.end().await;
        assert_eq!(ended, Some(code), "{awaited:?}: {said}");
        assert!(said.contains(missing) && !said.contains("interrupted"), "{awaited:?}: {said}");
    }
}

#[tokio::test]
async fn interrupt_before_the_first_connection_fails_the_run() {
    let delays = ["--reconnect-delay", "1h", "--max-reconnect-delay", "1h"];
    let mut running =
        Running::start(&[&["ws://127.0.0.1:1/", "--reconnect"][..], &delays].concat());
    assert!(running.notice().await.contains("; trying again in "));
    running.interrupt();
    assert_eq!(running.end().await, (Some(1), "wsgate: interrupted\n".to_owned()));
}

/// Answers one handshake with what its head says, and then a text with the request's head in it.
async fn tell_request(mut socket: impl AsyncRead + AsyncWrite + Unpin, chosen: &str) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.expect("a whole head"));
    }
    let head = String::from_utf8(head).expect("a head is ASCII");
    let lower = head.to_lowercase();
    let start = lower.find("sec-websocket-key: ").expect("a key") + 19;
    let key = head[start..].lines().next().expect("a line");
    let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{chosen}\r\n"
    );
    socket.write_all(answer.as_bytes()).await.expect("it reads");
    let text = lower.replace("\r\n", "|");
    let frame = wsgate::wire::frame::encode(wsgate::wire::header::Opcode::Text, text.as_bytes());
    socket.write_all(&frame).await.expect("it reads");
    // The first byte of its Close, or its end.
    _ = socket.read_u8().await;
}

async fn accept(listener: &TcpListener) -> TcpStream {
    within("a connection", listener.accept()).await.expect("it connects").0
}

#[tokio::test]
async fn headers_token_and_subprotocols_are_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("ws://{}/a?b=c", listener.local_addr().expect("bound"));
    let mut command =
        command(&[&url, "--header", "X-One: 1", "--subprotocol", "two", "--count", "1"]);
    command.args(["--subprotocol", "three", "--timeout", "20s"]).env("WSGATE_TOKEN", "sesame");
    let server = async {
        tell_request(accept(&listener).await, "Sec-WebSocket-Protocol: three\r\n").await;
    };
    let (outcome, ()) = tokio::join!(run_command(command, b""), server);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    for part in [
        "get /a?b=c http/1.1|",
        "|x-one: 1|",
        "|authorization: bearer sesame|",
        "|sec-websocket-protocol: two, three|",
    ] {
        assert!(outcome.stdout.contains(part), "{part}: {}", outcome.stdout);
    }
}

#[tokio::test]
async fn subprotocol_that_was_not_offered_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("ws://{}/", listener.local_addr().expect("bound"));
    let server = async {
        tell_request(accept(&listener).await, "Sec-WebSocket-Protocol: other\r\n").await;
    };
    let arguments = [url.as_str()];
    let (outcome, ()) = tokio::join!(run("", &arguments), server);
    let said = outcome.failure();
    assert!(said.contains("chose the subprotocol \"other\", which was not offered"), "{said}");
}

/// A server's side of TLS with this certificate.
fn acceptor(certificate: &Certificate, key: &KeyPair) -> TlsAcceptor {
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("they fit");
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn tls_is_trusted_by_its_authority_or_by_nobody() {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let pem = Place::file("pem", &cert.pem());
    let acceptor = acceptor(&cert, &signing_key);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let url = format!("wss://localhost:{port}/");
    let serve = async || {
        // A client that does not trust it goes before the end of the handshake.
        if let Ok(socket) = acceptor.accept(accept(&listener).await).await {
            tell_request(socket, "").await;
        }
    };
    for trust in [&["--ca", pem.text()][..], &["--insecure"]] {
        let arguments = [&[url.as_str(), "--count", "1", "--timeout", "20s"][..], trust].concat();
        let (outcome, ()) = tokio::join!(run("", &arguments), serve());
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(outcome.stdout.contains(&format!("|host: localhost:{port}|")), "{outcome:?}");
    }
    let mut distrustful = command(&[&url, "--reconnect"]);
    // Whatever authorities this machine has, one that signed this is not among them.
    let other = generate_simple_self_signed(["other.example".to_owned()]).expect("a certificate");
    let other = Place::file("pem", &other.cert.pem());
    distrustful.env("SSL_CERT_FILE", other.path());
    let (outcome, ()) = tokio::join!(run_command(distrustful, b""), serve());
    assert!(outcome.failure().contains("Trust its issuer with --ca FILE"), "{outcome:?}");
}

/// What `openssl req -x509` makes is an authority's unless it is told otherwise.
#[tokio::test]
async fn certificate_of_an_authority_is_told_with_the_remedy() {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).expect("a certificate");
    let pem = Place::file("pem", &certificate.pem());
    let acceptor = acceptor(&certificate, &key);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("wss://localhost:{}/", listener.local_addr().expect("bound").port());
    let serve = async {
        let refused = acceptor.accept(accept(&listener).await).await;
        assert!(refused.is_err(), "it is not trusted");
    };
    // Another attempt would end no better.
    let arguments = [url.as_str(), "--ca", pem.text(), "--reconnect"];
    let (outcome, ()) = tokio::join!(run("", &arguments), serve);
    let said = outcome.failure();
    assert_eq!(said.lines().count(), 1, "{said}");
    for part in ["the certificate of an authority (CA:TRUE)", "basicConstraints=critical,CA:FALSE"]
    {
        assert!(said.contains(part), "{said}");
    }
    assert!(!said.contains("Trust its issuer"), "{said}");
}

#[tokio::test]
async fn port_that_speaks_another_scheme_is_told_with_the_one_to_try() {
    let gateway = gateway().await;
    let plain = format!("wss://{}/echo", gateway.listen);
    let outcome = run("", &[&plain, "--insecure", "--reconnect"]).await;
    let said = outcome.failure();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("does not speak TLS") && said.contains("Try ws://"), "{said}");

    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let acceptor = acceptor(&cert, &signing_key);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let tls = format!("ws://{}/", listener.local_addr().expect("bound"));
    let serve = async {
        let refused = acceptor.accept(accept(&listener).await).await;
        assert!(refused.is_err(), "it is no handshake of TLS");
    };
    let arguments = [tls.as_str(), "--reconnect"];
    let (outcome, ()) = tokio::join!(run("", &arguments), serve);
    let said = outcome.failure();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("its answer is not HTTP/1") && said.contains("try wss://"), "{said}");
}
