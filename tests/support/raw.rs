//! A TCP client that writes the bytes it is given, and takes apart what comes.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{SockFilter, SockRef};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::within;

pub(crate) const CONTINUATION: u8 = 0x0;
pub(crate) const TEXT: u8 = 0x1;
pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xa;

/// The bit of the first byte that says that a message ends with this frame.
pub(crate) const FIN: u8 = 0x80;

/// The bit of the first byte of a message that says that it is deflated (RFC 7692 section 6).
pub(crate) const RSV1: u8 = 0x40;

const MASKED: u8 = 0x80;
const MASKING_KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A socket that takes nothing for so long is taken to be full.
const FULL_AFTER: Duration = Duration::from_millis(500);

/// A masked frame with FIN.
pub(crate) fn encode(opcode: u8, payload: &[u8]) -> Vec<u8> {
    encode_with(FIN | opcode, payload)
}

/// A masked frame that begins with `first_byte`.
pub(crate) fn encode_with(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = encode_header(first_byte, payload.len() as u64);
    frame.extend(mask(payload));
    frame
}

/// The header of a masked frame, with its masking key.
pub(crate) fn encode_header(first_byte: u8, payload_bytes: u64) -> Vec<u8> {
    let mut header = vec![first_byte];
    match payload_bytes {
        0..126 => header.push(MASKED | payload_bytes as u8),
        126..0x1_0000 => {
            header.push(MASKED | 126);
            header.extend((payload_bytes as u16).to_be_bytes());
        }
        _ => {
            header.push(MASKED | 127);
            header.extend(payload_bytes.to_be_bytes());
        }
    }
    header.extend(MASKING_KEY);
    header
}

/// `payload` as it travels behind a header of [`encode_header`].
pub(crate) fn mask(payload: &[u8]) -> Vec<u8> {
    payload.iter().zip(MASKING_KEY.iter().cycle()).map(|(byte, key)| byte ^ key).collect()
}

/// The payload of a Close frame.
pub(crate) fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes(), reason.as_bytes()].concat()
}

/// An opening handshake.
pub(crate) fn request(path: &str) -> Vec<u8> {
    request_with(path, "")
}

/// An opening handshake with these headers more, each of them with its line end.
pub(crate) fn request_with(path: &str, headers: &str) -> Vec<u8> {
    let text = format!(
        "GET {path} HTTP/1.1\r\nHost: gateway\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
    );
    text.into_bytes()
}

/// One frame of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) opcode: u8,
    /// RSV1 is set.
    pub(crate) deflated: bool,
    pub(crate) payload: Vec<u8>,
    /// With its header.
    pub(crate) bytes: usize,
}

impl Frame {
    /// Demands that it is a Close, and returns its code and reason.
    pub(crate) fn close(&self) -> (u16, &str) {
        assert_eq!(self.opcode, CLOSE, "expected a Close, not {self:?}");
        let (code, reason) = self.payload.split_first_chunk().expect("a Close with a code");
        (u16::from_be_bytes(*code), std::str::from_utf8(reason).expect("a reason is UTF-8"))
    }
}

/// A connection of which every byte is the test's.
pub(crate) struct RawClient {
    pub(crate) writer: OwnedWriteHalf,
    pub(crate) reader: FrameReader,
}

/// The half of it that reads.
pub(crate) struct FrameReader {
    socket: OwnedReadHalf,
    /// permessage-deflate was negotiated.
    pub(crate) deflate: bool,
    /// Read and not taken apart yet, from `at` on.
    buffer: Vec<u8>,
    at: usize,
}

impl RawClient {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).await.expect("the gateway listens"))
    }

    /// A client at this address of the loopback network.
    pub(crate) async fn connect_from(source: IpAddr, address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("there are descriptors left");
        socket.bind((source, 0).into()).expect("all of 127.0.0.0/8 is ours");
        Self::new(socket.connect(address).await.expect("the gateway listens"))
    }

    /// A client whose kernel keeps little for it when it does not read.
    pub(crate) async fn connect_with_receive_buffer(address: SocketAddr, bytes: u32) -> Self {
        let socket = TcpSocket::new_v4().expect("there are descriptors left");
        socket.set_recv_buffer_size(bytes).expect("any size is taken");
        Self::new(socket.connect(address).await.expect("the gateway listens"))
    }

    /// A client for which the kernel keeps little on the gateway's side too: that has room for a few
    /// small segments instead of the MiB of large ones that it has over loopback otherwise.
    pub(crate) async fn connect_with_little_room(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("there are descriptors left");
        socket.set_recv_buffer_size(8_192).expect("any size is taken");
        SockRef::from(&socket).set_tcp_mss(1_400).expect("TCP has this option");
        Self::new(socket.connect(address).await.expect("the gateway listens"))
    }

    fn new(socket: TcpStream) -> Self {
        socket.set_nodelay(true).expect("TCP has this option");
        let (socket, writer) = socket.into_split();
        Self { writer, reader: FrameReader { socket, deflate: false, buffer: Vec::new(), at: 0 } }
    }

    /// Sends an opening handshake and demands a 101. Returns what the gateway calls the connection.
    pub(crate) async fn upgrade(&mut self, path: &str) -> String {
        self.send(&request(path)).await;
        let head = self.read_head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let id = head.lines().find_map(|line| line.strip_prefix("x-connection-id: "));
        id.expect(&head).to_owned()
    }

    /// Sends these bytes.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let sent = within("bytes to be sent", self.writer.write_all(bytes)).await;
        sent.expect("the gateway has not let go");
    }

    /// Sends a masked frame with FIN.
    pub(crate) async fn send_frame(&mut self, opcode: u8, payload: &[u8]) {
        self.send(&encode(opcode, payload)).await;
    }

    /// Sends `bytes` over and over until the socket takes no more, and returns how many it took.
    /// Fails when it takes more than `most`.
    pub(crate) async fn send_until_full(&mut self, bytes: &[u8], most: usize) -> usize {
        let mut sent = 0;
        loop {
            let rest = &bytes[sent % bytes.len()..];
            match tokio::time::timeout(FULL_AFTER, self.writer.write(rest)).await {
                Ok(written) => sent += written.expect("the gateway has not let go"),
                Err(_) => return sent,
            }
            assert!(sent <= most, "the gateway takes more than {most} bytes");
        }
    }

    /// Tells the gateway that nothing more will be sent.
    pub(crate) async fn shut_down(&mut self) {
        self.writer.shutdown().await.expect("the gateway has not let go");
    }

    /// Lets go with a reset, as a client does whose process is killed with bytes unread.
    pub(crate) fn reset(self) {
        let socket = self.reader.socket.reunite(self.writer).expect("two halves of one socket");
        let linger = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
        linger.expect("TCP has this option");
    }

    pub(crate) async fn read_head(&mut self) -> String {
        self.reader.read_head().await
    }

    pub(crate) async fn read_frame(&mut self) -> Frame {
        self.reader.read_frame().await
    }

    /// The payload of the next frame, which is a data frame with this opcode.
    pub(crate) async fn read_message(&mut self, opcode: u8) -> Vec<u8> {
        let frame = self.read_frame().await;
        assert_eq!(frame.opcode, opcode, "{frame:?}");
        frame.payload
    }

    /// Demands that the gateway lets go without another byte.
    pub(crate) async fn read_end(&mut self) {
        let rest = self.reader.read_rest().await;
        assert!(rest.is_empty(), "{} bytes instead of the end: {rest:02x?}", rest.len());
    }

    /// The code and reason of the next frame, which is a Close. It is answered.
    pub(crate) async fn read_close(&mut self) -> (u16, String) {
        let frame = self.read_frame().await;
        let (code, reason) = frame.close();
        self.send_frame(CLOSE, &code.to_be_bytes()).await;
        (code, reason.to_owned())
    }

    /// Sends these bytes, or as many of them as the gateway is there for.
    pub(crate) async fn offer(&mut self, bytes: &[u8]) {
        // It may let go at any byte of what it has no use for.
        _ = within("bytes to be sent", self.writer.write_all(bytes)).await;
    }

    /// Tells the gateway that nothing more will be sent, if it is still there.
    pub(crate) async fn shut_down_if_connected(&mut self) {
        _ = self.writer.shutdown().await;
    }

    /// Is gone without a word, as a machine is that lost its network: from now on its kernel throws
    /// everything away that comes for it, before TCP sees it. Nothing is acknowledged and no FIN or
    /// reset is sent, as long as this is neither dropped nor written to.
    pub(crate) fn vanish(&self) {
        // BPF_RET with BPF_K: the verdict on every segment is to keep 0 bytes of it.
        let nothing = SockFilter::new(0x06, 0, 0, 0);
        let filtered = SockRef::from(self.writer.as_ref()).attach_filter(&[nothing]);
        filtered.expect("anyone may filter what comes to their own socket");
    }

    /// Its own address, by which the kernel's table of sockets tells connections apart.
    pub(crate) fn local_address(&self) -> SocketAddr {
        self.writer.local_addr().expect("it is connected")
    }
}

impl FrameReader {
    /// The head of an HTTP response, without the empty line at its end.
    pub(crate) async fn read_head(&mut self) -> String {
        loop {
            let unread = &self.buffer[self.at..];
            if let Some(end) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8(unread[..end].to_vec()).expect("a head is ASCII");
                self.at += end + 4;
                return head;
            }
            assert!(self.read_more().await > 0, "the end instead of a response");
        }
    }

    /// The next frame, which is neither masked nor a fragment.
    pub(crate) async fn read_frame(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.decode() {
                return frame;
            }
            assert!(self.read_more().await > 0, "the end instead of a frame");
        }
    }

    /// Reads on until these bytes have come, whatever comes before them.
    pub(crate) async fn read_through(&mut self, wanted: &[u8]) {
        loop {
            let unread = &self.buffer[self.at..];
            if let Some(start) = unread.windows(wanted.len()).position(|found| found == wanted) {
                self.at += start + wanted.len();
                return;
            }
            assert!(self.read_more().await > 0, "the end instead of {wanted:02x?}");
        }
    }

    /// Everything until the gateway lets go. A reset counts as that.
    pub(crate) async fn read_rest(&mut self) -> Vec<u8> {
        while self.read_more().await > 0 {}
        self.buffer.split_off(self.at)
    }

    /// Reads a single byte, which the next frame begins or goes on with. Returns whether there was one.
    pub(crate) async fn read_byte(&mut self) -> bool {
        let read = within("a byte of the gateway", self.socket.read_u8()).await;
        self.buffer.extend(read.as_ref().ok());
        read.is_ok()
    }

    /// Every frame until the gateway lets go, and no half one.
    pub(crate) async fn read_frames(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            match self.decode() {
                Some(frame) => frames.push(frame),
                None if self.read_more().await > 0 => {}
                None => break,
            }
        }
        let rest = &self.buffer[self.at..];
        assert!(rest.is_empty(), "the end within a frame: {rest:02x?}");
        frames
    }

    /// Reads once, looks at nothing, and returns how many bytes came; 0 at the end.
    pub(crate) async fn discard(&mut self) -> usize {
        self.at = self.buffer.len();
        self.read_more().await
    }

    fn decode(&mut self) -> Option<Frame> {
        let unread = &self.buffer[self.at..];
        let [first, second, ..] = *unread else {
            return None;
        };
        let deflated = first & RSV1 != 0;
        assert_eq!(first & 0xf0 & !RSV1, FIN, "the gateway sends whole messages");
        assert!(!deflated || self.deflate, "deflated, and that was not negotiated");
        let (header_bytes, payload_bytes) = match second {
            0..126 => (2, usize::from(second)),
            126 => (4, usize::from(u16::from_be_bytes(unread.get(2..4)?.try_into().ok()?))),
            127 => (10, u64::from_be_bytes(unread.get(2..10)?.try_into().ok()?) as usize),
            _ => panic!("the gateway masks nothing"),
        };
        let bytes = header_bytes + payload_bytes;
        let payload = unread.get(header_bytes..bytes)?.to_vec();
        self.at += bytes;
        Some(Frame { opcode: first & 0xf, deflated, payload, bytes })
    }

    /// Reads once and returns how many bytes came; 0 at the end.
    async fn read_more(&mut self) -> usize {
        self.buffer.drain(..self.at);
        self.at = 0;
        let read = within("bytes of the gateway", self.socket.read_buf(&mut self.buffer)).await;
        read.unwrap_or(0)
    }
}
