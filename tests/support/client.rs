//! A WebSocket client that is not our own code: fastwebsockets over tokio.

use std::net::SocketAddr;
use std::pin::Pin;

use bytes::Bytes;
use fastwebsockets::handshake;
use fastwebsockets::{FragmentCollector, Frame, OpCode, Payload, Role, WebSocket};
use http::Request;
use http_body_util::Empty;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::gateway::shard_of;
use crate::support::within;

/// How many handshakes [`connect_many`] has going on at a time.
const CONCURRENT_HANDSHAKES: usize = 32;

/// Something that a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Text(String),
    Binary(Vec<u8>),
    /// The code is absent where the Close carries none.
    Close(Option<u16>, String),
}

/// An open connection. It answers Ping and Close by itself, but only while it reads.
pub(crate) struct Client {
    socket: FragmentCollector<TokioIo<Upgraded>>,
    /// What the gateway calls it.
    pub(crate) id: String,
}

/// Has hyper's tasks run by tokio.
struct Spawn;

impl hyper::rt::Executor<Pin<Box<dyn Future<Output = ()> + Send>>> for Spawn {
    fn execute(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(future);
    }
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, path: &str) -> Self {
        let connecting = async {
            let socket = TcpStream::connect(address).await?;
            socket.set_nodelay(true)?;
            std::io::Result::Ok(socket)
        };
        let socket = within("a socket", connecting).await.expect("the gateway listens");
        Self::connect_over(socket, &address.to_string(), path).await
    }

    /// Over a socket that is connected to `host`.
    pub(crate) async fn connect_over<S>(socket: S, host: &str, path: &str) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let request = Request::builder()
            .uri(path)
            .header("host", host)
            .header("upgrade", "websocket")
            .header("connection", "upgrade")
            .header("sec-websocket-key", handshake::generate_key())
            .header("sec-websocket-version", "13")
            .body(Empty::<Bytes>::new())
            .expect("tests ask for good paths");
        let connecting = handshake::client(&Spawn, request, socket);
        let (socket, response) = within("the end of a handshake", connecting).await.expect(path);
        let id = response.headers()["x-connection-id"].to_str().expect("a UUID").to_owned();
        Self { socket: FragmentCollector::new(socket), id }
    }

    /// Over a stream of HTTP/2 that was answered.
    pub(crate) fn from_upgraded(upgraded: Upgraded, id: String) -> Self {
        let socket = WebSocket::after_handshake(TokioIo::new(upgraded), Role::Client);
        Self { socket: FragmentCollector::new(socket), id }
    }

    /// One that the given shard serves: which one does is the gateway's choice, so others are opened
    /// until it is that one, and then closed.
    pub(crate) async fn connect_to_shard(address: SocketAddr, shard: usize, path: &str) -> Self {
        // Meanwhile they stay, or a shard that has more connections already would get no further one.
        let mut others = Vec::new();
        for _ in 0..200 {
            let client = Self::connect(address, path).await;
            if client.shard() == shard {
                return client;
            }
            others.push(client);
        }
        panic!("of 200 connections none was served by shard {shard}");
    }

    /// The shard that serves it.
    pub(crate) fn shard(&self) -> usize {
        shard_of(&self.id)
    }

    pub(crate) async fn send_text(&mut self, text: &str) {
        self.send_frame(Frame::text(Payload::Borrowed(text.as_bytes()))).await;
    }

    pub(crate) async fn send_binary(&mut self, payload: &[u8]) {
        self.send_frame(Frame::binary(Payload::Borrowed(payload))).await;
    }

    /// Sends a binary message in fragments of at most `fragment_bytes` bytes.
    pub(crate) async fn send_fragmented(&mut self, payload: &[u8], fragment_bytes: usize) {
        let mut fragments = payload.chunks(fragment_bytes).peekable();
        let mut opcode = OpCode::Binary;
        while let Some(fragment) = fragments.next() {
            let is_last = fragments.peek().is_none();
            let frame = Frame::new(is_last, opcode, None, Payload::Borrowed(fragment));
            self.send_frame(frame).await;
            opcode = OpCode::Continuation;
        }
    }

    pub(crate) async fn send_close(&mut self, code: u16, reason: &str) {
        self.send_frame(Frame::close(code, reason.as_bytes())).await;
    }

    async fn send_frame(&mut self, frame: Frame<'_>) {
        // tokio's budget would make a socket look full, and tokio-rustls would then keep what it has
        // taken until the next message.
        let sending = tokio::task::unconstrained(self.socket.write_frame(frame));
        let sent = within("a message to be sent", sending).await;
        sent.expect("the gateway listens");
    }

    /// The next message.
    pub(crate) async fn read(&mut self) -> Message {
        let frame = within("a message", self.socket.read_frame()).await;
        let frame = frame.expect("the gateway has more to say");
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text is UTF-8");
        match frame.opcode {
            OpCode::Text => Message::Text(text(&frame.payload)),
            OpCode::Binary => Message::Binary(frame.payload.to_vec()),
            OpCode::Close => match frame.payload.split_first_chunk() {
                Some((code, reason)) => {
                    Message::Close(Some(u16::from_be_bytes(*code)), text(reason))
                }
                None => Message::Close(None, String::new()),
            },
            OpCode::Continuation | OpCode::Ping | OpCode::Pong => {
                panic!("fastwebsockets keeps {:?} to itself", frame.opcode)
            }
        }
    }

    /// The next message, which is a text.
    pub(crate) async fn read_text(&mut self) -> String {
        match self.read().await {
            Message::Text(text) => text,
            other => panic!("expected a text, not {other:?}"),
        }
    }

    /// The next message, which is binary.
    pub(crate) async fn read_binary(&mut self) -> Vec<u8> {
        match self.read().await {
            Message::Binary(payload) => payload,
            other => panic!("expected a binary message, not {other:?}"),
        }
    }
}

/// Opens `count` connections to the same path.
pub(crate) async fn connect_many(address: SocketAddr, path: &str, count: usize) -> Vec<Client> {
    let mut connecting = JoinSet::new();
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        if connecting.len() == CONCURRENT_HANDSHAKES {
            let connected = connecting.join_next().await;
            clients.push(connected.expect("some are connecting").expect("connecting succeeds"));
        }
        let path = path.to_owned();
        connecting.spawn(async move { Client::connect(address, &path).await });
    }
    clients.extend(connecting.join_all().await);
    clients
}
