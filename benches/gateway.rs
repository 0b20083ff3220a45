//! What the release gateway costs: server CPU for each message beside a plain fastwebsockets echo loop
//! and the floor, memory of an idle connection, and what is left after many connections.
//!
//! ```text
//! cargo bench --bench gateway                    # everything, about two minutes
//! cargo bench --bench gateway -- echo            # one of: echo, fan-out, idle, churn
//! ```
//!
//! Every contestant is a process of its own with one thread that serves, so that its CPU seconds can
//! be told apart. They take turns, and a ratio is the median of the ratios of the single rounds, since
//! the machine may be busier in one minute than in the next. The floor does only what the kernel makes
//! every server do: one `recv`, XOR, one `send`.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The same allocator as the gateway's, for the contestants that this binary is.
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);

/// Connections of the idle measurement.
const IDLE: usize = 10_000;

/// Connections that come and go in the churn measurement, and how many at a time.
const CHURN: usize = 100_000;
const CHURN_AT_A_TIME: usize = 100;

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["serve-fastwebsockets"] => block_on(serve_fastwebsockets()),
        ["serve-floor"] => block_on(serve_floor()),
        // `cargo test --benches` and `cargo bench -- --test` only want to know that it builds and runs.
        ["--test"] => block_on(echo(&[(4, 2, 64)], 1, Duration::from_millis(100))),
        [] => ["echo", "fan-out", "idle", "churn"].into_iter().for_each(measure),
        _ => words.into_iter().for_each(measure),
    }
}

fn measure(what: &str) {
    match what {
        "echo" => {
            let workloads = [(200, 1, 64), (50, 16, 64), (50, 1, 16 * 1024)];
            block_on(echo(&workloads, ROUNDS, ROUND));
        }
        "fan-out" => block_on(fan_out(ROUNDS, ROUND)),
        "idle" => block_on(idle()),
        "churn" => block_on(churn()),
        unknown => {
            eprintln!(
                "there is no measurement \"{unknown}\"; there are echo, fan-out, idle, churn"
            );
            std::process::exit(2);
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build_local(tokio::runtime::LocalOptions::default());
    runtime.expect("a runtime").block_on(future)
}

// Contestants.

/// A process that serves, ended when it is dropped.
struct Server {
    name: &'static str,
    process: Child,
    address: SocketAddr,
}

impl Server {
    fn gateway(more: &[&str]) -> Self {
        let port_file = std::env::temp_dir().join(format!("wsgate-bench-{}", std::process::id()));
        _ = std::fs::remove_file(&port_file);
        let process = Command::new(env!("CARGO_BIN_EXE_wsgate"))
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .args(["--shards", "1", "--log-level", "warn", "--port-file"])
            .arg(&port_file)
            .args(more)
            .spawn()
            .expect("the gateway starts");
        let deadline = Instant::now() + Duration::from_secs(10);
        let ports = loop {
            match std::fs::read_to_string(&port_file) {
                Ok(ports) => break ports,
                Err(_) if Instant::now() < deadline => std::thread::yield_now(),
                Err(error) => panic!("the gateway did not write its port file: {error}"),
            }
        };
        _ = std::fs::remove_file(&port_file);
        let address = ports.lines().find_map(|line| line.strip_prefix("listen="));
        let address = address.expect("a line with the address").parse().expect("an address");
        Self { name: "wsgate", process, address }
    }

    /// This binary again, as another server.
    fn other(name: &'static str, role: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("a path"))
            .arg(role)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut port = [0; 2];
        process.stdout.as_mut().expect("piped").read_exact(&mut port).expect("its port");
        let address = SocketAddr::from(([127, 0, 0, 1], u16::from_be_bytes(port)));
        Self { name, process, address }
    }

    /// CPU time of all its threads.
    fn cpu(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.id())).expect("procfs");
        let nanoseconds = tasks.map(|task| {
            let path = task.expect("a task").path().join("schedstat");
            let stat = std::fs::read_to_string(path).unwrap_or_default();
            stat.split(' ').next().and_then(|time| time.parse().ok()).unwrap_or(0)
        });
        Duration::from_nanos(nanoseconds.sum())
    }

    /// Bytes of its own memory: resident less what is mapped from files.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.expect("procfs");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kilobytes = line.expect("a line").trim().trim_end_matches(" kB").parse::<u64>();
        kilobytes.expect("a number") * 1024
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).expect("procfs").count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

async fn listen() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("its address").port();
    let mut stdout = std::io::stdout();
    stdout.write_all(&port.to_be_bytes()).and_then(|()| stdout.flush()).expect("our parent reads");
    listener
}

/// The echo loop of fastwebsockets' own example, on a current-thread runtime.
async fn serve_fastwebsockets() {
    use fastwebsockets::{FragmentCollector, OpCode, upgrade};
    use http_body_util::Empty;
    use hyper::service::service_fn;

    let listener = listen().await;
    loop {
        let (socket, _) = listener.accept().await.expect("a connection");
        socket.set_nodelay(true).expect("a socket option");
        tokio::task::spawn_local(async move {
            let service =
                service_fn(|mut request: hyper::Request<hyper::body::Incoming>| async move {
                    let (response, upgraded) = upgrade::upgrade(&mut request)?;
                    tokio::task::spawn_local(async move {
                        let mut websocket =
                            FragmentCollector::new(upgraded.await.expect("an upgrade"));
                        loop {
                            let Ok(frame) = websocket.read_frame().await else { break };
                            if frame.opcode == OpCode::Close {
                                break;
                            }
                            let is_data = matches!(frame.opcode, OpCode::Text | OpCode::Binary);
                            if is_data && websocket.write_frame(frame).await.is_err() {
                                break;
                            }
                        }
                    });
                    Ok::<hyper::Response<Empty<bytes::Bytes>>, fastwebsockets::WebSocketError>(
                        response,
                    )
                });
            _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(hyper_util::rt::TokioIo::new(socket), service)
                .with_upgrades()
                .await;
        });
    }
}

/// One `recv`, XOR, one `send`, without a look at what it is: the bytes are a client's frames with
/// their headers, and as many come back as went out.
async fn serve_floor() {
    use std::os::fd::AsFd;

    use rustix::event::epoll;

    let listener = listen().await.into_std().expect("a listener");
    listener.set_nonblocking(false).expect("a socket option");
    let events = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll instance");
    let flags = epoll::EventFlags::IN;
    epoll::add(&events, &listener, epoll::EventData::new_u64(u64::MAX), flags).expect("added");
    let mut sockets: Vec<Option<std::net::TcpStream>> = Vec::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut ready = Vec::with_capacity(1024);
    loop {
        ready.clear();
        epoll::wait(&events, rustix::buffer::spare_capacity(&mut ready), None).expect("events");
        for event in &ready {
            let index = event.data.u64();
            if index == u64::MAX {
                let (mut socket, _) = listener.accept().expect("a connection");
                socket.set_nodelay(true).expect("a socket option");
                // The client asks for an upgrade and gets whatever ends its wait.
                _ = socket.read(&mut buffer);
                socket.write_all(b"HTTP/1.1 101 Floor\r\n\r\n").expect("an answer");
                let data = epoll::EventData::new_u64(sockets.len() as u64);
                epoll::add(&events, socket.as_fd(), data, flags).expect("added");
                sockets.push(Some(socket));
                continue;
            }
            let place = &mut sockets[index as usize];
            let socket = place.as_mut().expect("it is still open");
            match socket.read(&mut buffer) {
                Ok(0) | Err(_) => *place = None,
                Ok(bytes) => {
                    fastwebsockets::unmask(&mut buffer[..bytes], [1, 2, 3, 4]);
                    if socket.write_all(&buffer[..bytes]).is_err() {
                        *place = None;
                    }
                }
            }
        }
    }
}

// Clients.

/// A binary client frame of `size` bytes of payload.
fn client_frame(size: usize) -> Vec<u8> {
    let mut frame = vec![0x82];
    match size {
        0..=125 => frame.push(0x80 | size as u8),
        126..=0xffff => {
            frame.push(0xfe);
            frame.extend((size as u16).to_be_bytes());
        }
        _ => {
            frame.push(0xff);
            frame.extend((size as u64).to_be_bytes());
        }
    }
    frame.extend([0x11, 0x22, 0x33, 0x44]);
    frame.resize(frame.len() + size, b'x');
    frame
}

async fn connect(address: SocketAddr, path: &str) -> TcpStream {
    // Each loopback address has 28,000 ports of its own to connect from.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    let mut stream = socket.connect(address).await.expect("a connection");
    stream.set_nodelay(true).expect("a socket option");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("a request");
    let mut head = Vec::new();
    let mut byte = [0; 512];
    while !head.ends_with(b"\r\n\r\n") {
        let bytes = stream.read(&mut byte).await.expect("an answer");
        assert!(bytes > 0, "the server hung up: {}", String::from_utf8_lossy(&head));
        head.extend_from_slice(&byte[..bytes]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    stream
}

/// Keeps `in_flight` messages on their way until `until` and returns how many came back.
async fn echo_client(
    mut stream: TcpStream,
    in_flight: usize,
    size: usize,
    echo_bytes: usize,
    until: Instant,
) -> u64 {
    let frames = client_frame(size).repeat(in_flight);
    let frame_bytes = frames.len() / in_flight;
    let mut buffer = vec![0; 256 * 1024];
    let (mut messages, mut partial_bytes) = (0, 0);
    stream.write_all(&frames).await.expect("a message");
    loop {
        let bytes = stream.read(&mut buffer).await.expect("an echo");
        assert!(bytes > 0, "the server hung up");
        // Each read starts with a frame while one is in flight: its length tells whether the server
        // sends what is being counted.
        if in_flight == 1 && partial_bytes == 0 && size < 126 && echo_bytes == 2 + size {
            assert_eq!(buffer[1], size as u8, "a server's frame has no mask");
        }
        partial_bytes += bytes;
        let whole = partial_bytes / echo_bytes;
        partial_bytes %= echo_bytes;
        messages += whole as u64;
        if Instant::now() >= until {
            return messages;
        }
        stream.write_all(&frames[..whole * frame_bytes]).await.expect("a message");
    }
}

// Measurements.

async fn echo(workloads: &[(usize, usize, usize)], rounds: usize, round: Duration) {
    for (connections, in_flight, size) in workloads.iter().copied() {
        let servers = [
            Server::gateway(&[]),
            Server::other("fastwebsockets", "serve-fastwebsockets"),
            Server::other("floor", "serve-floor"),
        ];
        let mut costs = vec![Vec::new(); servers.len()];
        for _ in 0..rounds {
            for (server, costs) in servers.iter().zip(&mut costs) {
                let header_bytes = if size < 126 { 2 } else { 4 };
                // The floor sends a frame back as it came, with its mask.
                let mask_bytes = if server.name == "floor" { 4 } else { 0 };
                let echo_bytes = header_bytes + mask_bytes + size;
                let mut streams = Vec::new();
                for _ in 0..connections {
                    streams.push(connect(server.address, "/echo").await);
                }
                let before = server.cpu();
                let until = Instant::now() + round;
                let clients = streams.into_iter().map(|stream| {
                    let client = echo_client(stream, in_flight, size, echo_bytes, until);
                    tokio::task::spawn_local(client)
                });
                let mut messages = 0;
                for client in clients.collect::<Vec<_>>() {
                    messages += client.await.expect("a client");
                }
                costs.push((server.cpu() - before).as_secs_f64() * 1e6 / messages as f64);
            }
        }
        println!("echo, {size} B, {connections} connections, {in_flight} in flight");
        print_costs(&servers, &costs, "message");
    }
}

fn print_costs(servers: &[Server], costs: &[Vec<f64>], each: &str) {
    for (server, own) in servers.iter().zip(costs) {
        let ratios = servers.iter().zip(costs).filter(|(other, _)| other.name != server.name);
        let ratios = ratios.map(|(other, theirs)| {
            let ratios = own.iter().zip(theirs).map(|(own, theirs)| own / theirs).collect();
            format!("{:.2} x {}", median(ratios), other.name)
        });
        let ratios: Vec<String> = ratios.collect();
        let microseconds = median(own.clone());
        println!(
            "  {:<15} {microseconds:7.3} µs of CPU a {each}   {}",
            server.name,
            ratios.join(", ")
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// One publisher, 1,000 subscribers; the publisher sends the next when its own copy is back.
async fn fan_out(rounds: usize, round: Duration) {
    const SUBSCRIBERS: usize = 1_000;
    const SIZE: usize = 64;
    for in_flight in [1, 16] {
        let server = Server::gateway(&[]);
        let mut costs = Vec::new();
        for _ in 0..rounds {
            let mut readers = Vec::new();
            for _ in 1..SUBSCRIBERS {
                let mut stream = connect(server.address, "/channels/bench").await;
                readers.push(tokio::task::spawn_local(async move {
                    let mut buffer = vec![0; 16 * 1024];
                    let mut bytes = 0;
                    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                        bytes += read as u64;
                    }
                    bytes
                }));
            }
            let publisher = connect(server.address, "/channels/bench").await;
            let before = server.cpu();
            let until = Instant::now() + round;
            let messages = echo_client(publisher, in_flight, SIZE, 2 + SIZE, until).await;
            let cpu = server.cpu() - before;
            costs.push(cpu.as_secs_f64() * 1e6 / (messages * SUBSCRIBERS as u64) as f64);
            readers.iter().for_each(|reader| reader.abort());
        }
        println!("fan-out 1 to {SUBSCRIBERS}, {SIZE} B, {in_flight} in flight");
        print_costs(&[server], &[costs], "delivery");
    }
}

async fn idle() {
    for path in ["/echo", "/channels/idle"] {
        let server = Server::gateway(&[]);
        // What the first connections allocate for good is not theirs.
        let first: Vec<TcpStream> = connect_many(&server, path, 200).await;
        let before = server.memory();
        let streams = connect_many(&server, path, IDLE).await;
        settle(&server).await;
        let bytes = server.memory().saturating_sub(before) as f64 / IDLE as f64;
        println!("idle, {IDLE} connections on {path}: {bytes:.0} bytes of memory each");
        drop((first, streams));
    }
}

async fn connect_many(server: &Server, path: &str, count: usize) -> Vec<TcpStream> {
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        streams.push(connect(server.address, path).await);
    }
    streams
}

/// Waits until the server's memory has stopped falling: the allocator gives pages back with a delay.
async fn settle(server: &Server) {
    let mut last = server.memory();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let memory = server.memory();
        if memory >= last || Instant::now() > deadline {
            return;
        }
        last = memory;
    }
}

async fn churn() {
    let server = Server::gateway(&[]);
    let come_and_go = |count: usize| {
        let server = &server;
        async move {
            for _ in 0..count / CHURN_AT_A_TIME {
                drop(connect_many(server, "/channels/churn", CHURN_AT_A_TIME).await);
            }
            let deadline = Instant::now() + Duration::from_secs(10);
            while server.descriptors() > 100 && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            settle(server).await;
        }
    };
    come_and_go(1_000).await;
    let (memory, descriptors, cpu) = (server.memory(), server.descriptors(), server.cpu());
    come_and_go(CHURN).await;
    println!(
        "churn, {CHURN} connections come and gone: memory {} KiB before, {} KiB after; descriptors \
         {descriptors} before, {} after; {:.1} µs of CPU each",
        memory / 1024,
        server.memory() / 1024,
        server.descriptors(),
        (server.cpu() - cpu).as_secs_f64() * 1e6 / CHURN as f64,
    );
}
