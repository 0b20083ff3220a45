//! Every server of a comparison that is installed starts, echoes, fans out and ends.
//!
//! ```text
//! GATEWAY_BINARY=target/release/wsgate cargo test -p loadtest --test peers [-- NAME...]
//! ```
//!
//! It has a main function of its own because the floor is started as the running program.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use loadtest::peers::{Dialect, Peer, Running, StartError, StartOptions};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [floor, _listen, address, _port_file, path] = &words[..]
        && floor == "floor"
    {
        let address = address.parse().expect("an address");
        let Err(error) = loadtest::floor::serve(address, Some(Path::new(path)));
        panic!("{error}");
    }
    // What else comes is for the harness of the other tests, or names.
    let named: Vec<Peer> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let options = StartOptions {
        gateway: std::env::var_os("GATEWAY_BINARY").map(PathBuf::from).unwrap_or_default(),
        shards: 1,
        compression: None,
        is_tls: false,
        gateway_arguments: Vec::new(),
        heartbeat: None,
    };
    for peer in Peer::ALL.into_iter().filter(|peer| named.is_empty() || named.contains(peer)) {
        match peer.start(&options) {
            Ok(running) => {
                echoes(&running);
                if peer.can_fan_out() {
                    fans_out(&running);
                }
                ends(running);
                println!("{peer}: ok");
            }
            Err(error @ StartError::Missing { .. }) => println!("{peer}: skipped: {error}"),
            Err(error) => panic!("{error}"),
        }
    }
    pings(&options, &named);
}

/// Messages of all sizes come back as they were, in their order, with many in flight.
fn echoes(running: &Running) {
    let peer = running.peer;
    let path = running.echo_path.replace("{connection}", "1");
    let mut client = Client::connect(running, &path);
    for size in [1, 64, 125, 126, 16 * 1024, 65_000] {
        let message = Message::text(size, 'x');
        client.send(&message);
        assert_eq!(client.receive(), message, "{peer}, {size} bytes");
    }
    if running.dialect != Dialect::Nats {
        let binary = Message { is_text: false, payload: vec![0xff, 0x00, 0x80] };
        client.send(&binary);
        assert_eq!(client.receive(), binary, "{peer}");
    }
    for number in 0..64_u8 {
        client.send(&Message::text(100, char::from(b'0' + number)));
    }
    for number in 0..64_u8 {
        assert_eq!(client.receive(), Message::text(100, char::from(b'0' + number)), "{peer}");
    }
    // An echo is one's own.
    let mut other = Client::connect(running, &running.echo_path.replace("{connection}", "2"));
    client.send(&Message::text(1, 'a'));
    other.send(&Message::text(1, 'b'));
    assert_eq!(client.receive(), Message::text(1, 'a'), "{peer}");
    assert_eq!(other.receive(), Message::text(1, 'b'), "{peer}");
}

/// Two members of a channel get what one of them sends, and who has gone does not matter.
fn fans_out(running: &Running) {
    let peer = running.peer;
    let path = |channel: &str| running.channel_path.replace("{channel}", channel);
    let mut first = Client::connect(running, &path("red"));
    let mut second = Client::connect(running, &path("red"));
    let mut elsewhere = Client::connect(running, &path("blue"));
    for round in 0..20_u8 {
        let letter = char::from(b'a' + round);
        let goes = Client::connect(running, &path("red"));
        for size in [64, 16 * 1024] {
            let message = Message::text(size, letter);
            second.send(&message);
            assert_eq!(first.receive(), message, "{peer}");
            assert_eq!(second.receive(), message, "{peer}");
        }
        drop(goes);
    }
    // With many in flight nobody misses one.
    for number in 0..64_u8 {
        first.send(&Message::text(100, char::from(b'0' + number)));
    }
    for client in [&mut first, &mut second] {
        for number in 0..64_u8 {
            assert_eq!(client.receive(), Message::text(100, char::from(b'0' + number)), "{peer}");
        }
    }
    elsewhere.send(&Message::text(1, 'c'));
    assert_eq!(elsewhere.receive(), Message::text(1, 'c'), "{peer}");
}

/// Nothing of it is left: no process, no directory.
fn ends(running: Running) {
    let processes = running.processes();
    let workers = if running.peer == Peer::Nchan { 1 } else { 0 };
    assert_eq!(processes.len(), 1 + workers, "{}", running.peer);
    let peer = running.peer;
    drop(running);
    for process in processes {
        let state = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{peer} still runs: {state}");
    }
    let ours = format!("loadtest-{}-", std::process::id());
    for entry in std::fs::read_dir(std::env::temp_dir()).expect("a directory") {
        let name = entry.expect("an entry").file_name();
        assert!(!name.to_string_lossy().starts_with(&ours), "{peer} left {name:?}");
    }
}

/// A silent client is pinged by who can.
fn pings(options: &StartOptions, named: &[Peer]) {
    let options = StartOptions { heartbeat: Some(Duration::from_secs(1)), ..options.clone() };
    for peer in Peer::ALL.into_iter().filter(|peer| peer.can_ping() && *peer != Peer::Nats) {
        if !named.is_empty() && !named.contains(&peer) {
            continue;
        }
        let Ok(running) = peer.start(&options) else { continue };
        let path = running.channel_path.replace("{channel}", "red");
        let mut client = Client::connect(&running, &path);
        let (opcode, _) = client.receive_frame();
        assert_eq!(opcode, 0x9, "{peer} pings");
        println!("{peer}: pings");
    }
}

#[derive(Clone, PartialEq, Eq)]
struct Message {
    is_text: bool,
    payload: Vec<u8>,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let start = &self.payload[..self.payload.len().min(8)];
        write!(f, "{} bytes, text: {}, {start:?}...", self.payload.len(), self.is_text)
    }
}

impl Message {
    fn text(size: usize, letter: char) -> Self {
        Self { is_text: true, payload: vec![letter as u8; size] }
    }
}

/// One connection, with blocking calls.
struct Client {
    stream: TcpStream,
    dialect: Dialect,
    /// The subject of NATS.
    subject: String,
    /// Bytes of NATS' protocol that no message was made of yet.
    unread: VecDeque<u8>,
}

impl Client {
    fn connect(running: &Running, path: &str) -> Self {
        let mut client = Self {
            stream: handshake(running.address, path),
            dialect: running.dialect,
            subject: path.trim_start_matches('/').replace('/', "."),
            unread: VecDeque::new(),
        };
        if client.dialect == Dialect::Nats {
            assert!(client.line().starts_with("INFO "));
            let words = format!(
                "CONNECT {{\"verbose\":false,\"pedantic\":false}}\r\nSUB {} 1\r\nPING\r\n",
                client.subject
            );
            client.send_frame(0x2, words.as_bytes());
            assert_eq!(client.line(), "PONG");
        }
        client
    }

    fn send(&mut self, message: &Message) {
        if self.dialect == Dialect::Nats {
            let mut words =
                format!("PUB {} {}\r\n", self.subject, message.payload.len()).into_bytes();
            words.extend_from_slice(&message.payload);
            words.extend_from_slice(b"\r\n");
            self.send_frame(0x2, &words);
        } else {
            self.send_frame(if message.is_text { 0x1 } else { 0x2 }, &message.payload);
        }
    }

    fn receive(&mut self) -> Message {
        if self.dialect == Dialect::Nats {
            let line = self.line();
            let words: Vec<&str> = line.split(' ').collect();
            assert_eq!(words[..3], ["MSG", &self.subject, "1"], "{line}");
            let size: usize = words[3].parse().expect("a size");
            while self.unread.len() < size + 2 {
                self.read_more();
            }
            let payload = self.unread.drain(..size).collect();
            self.unread.drain(..2);
            return Message { is_text: true, payload };
        }
        match self.receive_frame() {
            (opcode @ (0x1 | 0x2), payload) => Message { is_text: opcode == 0x1, payload },
            (opcode, _) => panic!("a frame of opcode {opcode}"),
        }
    }

    /// A line of NATS' protocol, without its end.
    fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return String::from_utf8(line).expect("text").trim_end().to_owned();
            }
            self.read_more();
        }
    }

    fn read_more(&mut self) {
        let (opcode, payload) = self.receive_frame();
        assert_eq!(opcode, 0x2);
        self.unread.extend(payload);
    }

    fn send_frame(&mut self, opcode: u8, payload: &[u8]) {
        let mut frame = vec![0x80 | opcode];
        match payload.len() {
            size @ 0..=125 => frame.push(0x80 | size as u8),
            size @ 126..=0xffff => {
                frame.push(0x80 | 126);
                frame.extend((size as u16).to_be_bytes());
            }
            size => {
                frame.push(0x80 | 127);
                frame.extend((size as u64).to_be_bytes());
            }
        }
        let key = [0x11, 0x22, 0x33, 0x44];
        frame.extend(key);
        frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        self.stream.write_all(&frame).expect("sent");
    }

    fn receive_frame(&mut self) -> (u8, Vec<u8>) {
        let [first, second] = self.exactly();
        assert_eq!(first & 0xf0, 0x80, "a frame that is a whole message");
        let masked = second & 0x80 != 0;
        assert_eq!(masked, self.dialect == Dialect::MaskedFrames);
        let size = match second & 0x7f {
            126 => u16::from_be_bytes(self.exactly()).into(),
            127 => u64::from_be_bytes(self.exactly()) as usize,
            size => size.into(),
        };
        let key: [u8; 4] = if masked { self.exactly() } else { [0; 4] };
        let mut payload = vec![0; size];
        self.stream.read_exact(&mut payload).expect("a payload");
        for (byte, key) in payload.iter_mut().zip(key.iter().cycle()) {
            *byte ^= key;
        }
        (first & 0x0f, payload)
    }

    fn exactly<const SIZE: usize>(&mut self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        self.stream.read_exact(&mut bytes).expect("a frame");
        bytes
    }
}

fn handshake(address: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    stream.set_nodelay(true).expect("a socket option");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("a request");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    stream
}
