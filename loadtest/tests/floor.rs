//! The floor over sockets: what comes goes out as it came, to whom it should.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A floor that serves until the test process ends.
fn start(name: &str) -> SocketAddr {
    let port_file = port_file(name);
    _ = std::fs::remove_file(&port_file);
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let to_write = port_file.clone();
    std::thread::spawn(move || loadtest::floor::serve(listen, Some(&to_write)));
    let deadline = Instant::now() + PATIENCE;
    loop {
        match std::fs::read_to_string(&port_file) {
            Ok(ports) => {
                _ = std::fs::remove_file(&port_file);
                let address = ports.strip_prefix("listen=").expect("the key").trim_end();
                return address.parse().expect("an address");
            }
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::yield_now();
    }
}

fn port_file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("loadtest-floor-{}-{name}", std::process::id()))
}

/// A connection after its opening handshake.
fn connect(address: SocketAddr, path: &str) -> TcpStream {
    let (stream, head) = ask(address, path);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
    stream
}

fn ask(address: SocketAddr, path: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    // In two parts, as the network may bring it.
    let (first, second) = request.as_bytes().split_at(20);
    stream.write_all(first).expect("a request");
    stream.write_all(second).expect("the rest of it");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        head.push(byte[0]);
    }
    (stream, String::from_utf8(head).expect("text"))
}

fn receive(stream: &mut TcpStream, bytes: usize) -> Vec<u8> {
    let mut received = vec![0; bytes];
    stream.read_exact(&mut received).expect("so many bytes");
    received
}

#[test]
fn what_a_client_sends_comes_back_as_it_was() {
    let mut client = connect(start("echo"), "/echo");
    for message in [b"a".to_vec(), (0..=255).collect(), vec![7; 100_000]] {
        client.write_all(&message).expect("sent");
        assert_eq!(receive(&mut client, message.len()), message);
    }
}

#[test]
fn everyone_on_a_channel_gets_a_message_and_nobody_else() {
    let address = start("channels");
    let mut red = [connect(address, "/channels/red"), connect(address, "/channels/red")];
    let mut blue = connect(address, "/channels/blue");
    red[0].write_all(b"to red").expect("sent");
    for member in &mut red {
        assert_eq!(receive(member, 6), b"to red");
    }
    blue.write_all(b"to blue").expect("sent");
    assert_eq!(receive(&mut blue, 7), b"to blue");
    for member in &mut red {
        member.set_nonblocking(true).expect("a socket option");
        let nothing = member.read(&mut [0; 8]).expect_err("nothing came").kind();
        assert_eq!(nothing, ErrorKind::WouldBlock);
    }
}

#[test]
fn a_member_that_has_gone_is_forgotten() {
    let address = start("gone");
    let mut stays = connect(address, "/channels/red");
    for _ in 0..100 {
        drop(connect(address, "/channels/red"));
        let mut comes = connect(address, "/channels/red");
        stays.write_all(b"still here").expect("sent");
        assert_eq!(receive(&mut stays, 10), b"still here");
        assert_eq!(receive(&mut comes, 10), b"still here");
    }
}

#[test]
fn an_echo_waits_for_a_client_that_does_not_read() {
    // More than the socket buffers of both sides hold.
    const BYTES: usize = 64 * 1024 * 1024;
    let mut client = connect(start("slow"), "/echo");
    let mut sender = client.try_clone().expect("the same socket");
    let sender = std::thread::spawn(move || {
        for part in 0..BYTES / 65_536 {
            sender.write_all(&[part as u8; 65_536]).expect("sent");
        }
    });
    for part in 0..BYTES / 65_536 {
        assert_eq!(receive(&mut client, 65_536), [part as u8; 65_536]);
    }
    sender.join().expect("all is sent");
}

#[test]
fn a_member_that_never_reads_does_not_hold_the_others_up() {
    static MESSAGE: [u8; 65_536] = [9; 65_536];
    let address = start("never");
    let mut never_reads = connect(address, "/channels/red");
    let mut reads = connect(address, "/channels/red");
    // Far more than the floor keeps for one client and the kernel for one socket.
    for _ in 0..1024 {
        reads.write_all(&MESSAGE).expect("sent");
        assert_eq!(receive(&mut reads, MESSAGE.len()), MESSAGE);
    }
    // It is disconnected: behind what the kernel had for it there is an end.
    let mut rest = Vec::new();
    match never_reads.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

#[test]
fn a_path_that_is_not_there_is_refused() {
    let (mut stream, head) = ask(start("paths"), "/nothing");
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    assert_eq!(stream.read(&mut [0]).expect("an end"), 0);
}

#[test]
fn thousands_of_connections_are_held_at_a_time() {
    let address = start("thousands");
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    // Both ends are in this process, and other tests have connections too.
    let connections = limit.current.unwrap_or(20_000).min(20_000) as usize / 4;
    let mut clients: Vec<_> = (0..connections).map(|_| connect(address, "/channels/all")).collect();
    clients[0].write_all(b"to all").expect("sent");
    for client in &mut clients {
        assert_eq!(receive(client, 6), b"to all");
    }
}
