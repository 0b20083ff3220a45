//! One client: a socket, what it has read of a message, and what it knows about its messages.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;

use crate::client::deflate::{Agreed, Inflated, Inflater};
use crate::client::frame::{self, FrameError, opcode};
use crate::client::http;
use crate::client::nats::{self, Line};
use crate::client::payload::Payload;
use crate::client::stamp::Stamp;
use crate::client::tls::Session;
use crate::engine::plan::{Plan, Role};
use crate::target::Dialect;

/// How far a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It has no socket.
    Away,
    /// TCP's handshake is under way.
    Dialing,
    /// The request was sent.
    Handshake,
    /// It speaks NATS and has not heard that it is subscribed.
    Subscribing,
    Open,
    /// It has sent Close.
    Closing,
}

/// One client.
pub(crate) struct Connection {
    pub(crate) number: usize,
    pub(crate) role: Role,
    pub(crate) state: State,
    pub(crate) socket: Option<TcpStream>,
    /// Between the socket and all else, where the server is spoken to over TLS.
    pub(crate) tls: Option<Box<Session>>,
    /// When it was to be opened, in nanoseconds of the run.
    pub(crate) dial_due: u64,
    /// When that began.
    pub(crate) dial_began: u64,
    /// When it may publish again after a refusal.
    pub(crate) not_before: u64,
    /// The beginning of something that is not whole.
    pub(crate) kept: Vec<u8>,
    /// What the socket did not take; over TLS, of records.
    pub(crate) unsent: Vec<u8>,
    /// Whether epoll was told that it waits for the socket to take more.
    pub(crate) wants_write: bool,
    /// Not read while it stalls.
    pub(crate) is_paused: bool,
    /// When the messages that are on their way were due, oldest first.
    pub(crate) due: VecDeque<u64>,
    /// NATS's stream so far as it is not understood.
    stream: Vec<u8>,
    /// The beginning of a message in fragments, and whether it is compressed.
    fragments: Vec<u8>,
    is_compressed: bool,
    /// How compressed messages are read; `None` where compression was not agreed on.
    deflate: Option<Deflate>,
    /// Of the frames of messages that nobody has counted.
    pub(crate) wire_bytes: u64,
    /// Echoes of varied content: how many were sent on this socket, and how many came back.
    pub(crate) sent: u64,
    pub(crate) echoed: u64,
    /// The next number of each publisher of the channel.
    pub(crate) next: Vec<u32>,
    pub(crate) received: u64,
    pub(crate) gaps: u64,
    pub(crate) close_code: Option<u16>,
    /// Echoes left until it goes.
    pub(crate) messages_left: u32,
}

/// How compressed messages are read.
enum Deflate {
    /// Nothing is kept: the thread's [`Inflated`] serves all of its connections.
    Shared,
    Window(Box<Inflater>),
}

/// What a connection has heard.
pub(crate) enum Heard<'a> {
    /// The handshake was answered, or what else it takes to be open.
    Opened,
    /// The response to a publication.
    Published(http::Response),
    /// A message; its payload is masked if the dialect is.
    Message(&'a [u8]),
    Ping,
    /// A Close with this code; 1005 where it has none.
    Close(u16),
}

/// Why a connection is over.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The server has ended the stream.
    End,
    Io(io::Error),
    Frame(FrameError),
    Handshake(String),
    Protocol(String),
}

impl Fault {
    /// For the count of errors.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::End => "connection ended by the server".to_owned(),
            Self::Io(error) => match error.kind() {
                ErrorKind::ConnectionRefused => "connection refused".to_owned(),
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "connection reset".to_owned(),
                ErrorKind::InvalidData => format!("TLS: {error}"),
                _ => format!("socket: {error}"),
            },
            Self::Frame(error) => format!("broken frame: {error}"),
            Self::Handshake(text) => format!("handshake: {text}"),
            Self::Protocol(text) => text.clone(),
        }
    }
}

impl Connection {
    pub(crate) fn new(number: usize, role: Role) -> Self {
        Self {
            number,
            role,
            state: State::Away,
            socket: None,
            tls: None,
            dial_due: 0,
            dial_began: 0,
            not_before: 0,
            kept: Vec::new(),
            unsent: Vec::new(),
            wants_write: false,
            is_paused: false,
            due: VecDeque::new(),
            stream: Vec::new(),
            fragments: Vec::new(),
            is_compressed: false,
            deflate: None,
            wire_bytes: 0,
            sent: 0,
            echoed: 0,
            next: Vec::new(),
            received: 0,
            gaps: 0,
            close_code: None,
            messages_left: 0,
        }
    }

    /// Lets go of the socket and of all that belonged to it.
    pub(crate) fn leave(&mut self) {
        self.state = State::Away;
        self.socket = None;
        self.tls = None;
        self.kept = Vec::new();
        self.unsent = Vec::new();
        self.stream = Vec::new();
        self.fragments = Vec::new();
        self.deflate = None;
        self.sent = 0;
        self.echoed = 0;
        self.wants_write = false;
        self.is_paused = false;
        self.due.clear();
    }

    /// The path that this client's WebSocket is opened at.
    pub(crate) fn path(&self, plan: &Plan) -> String {
        match self.role.channel() {
            Some(channel) => plan.target.channel(channel),
            None => plan.target.echo(self.number),
        }
    }

    /// What is sent first.
    pub(crate) fn greeting(&self, plan: &Plan) -> Vec<u8> {
        if let Role::HttpPublisher { .. } = self.role {
            return Vec::new();
        }
        let path = match plan.target.dialect {
            Dialect::Nats => "/".to_owned(),
            Dialect::WebSocket | Dialect::MaskedFrames => self.path(plan),
        };
        let mut headers = plan.headers.clone();
        headers.extend(plan.compression.offer().map(str::to_owned));
        http::handshake(&path, &plan.target.host, &headers).into_bytes()
    }

    /// Sends `bytes`, or keeps them until the socket takes them. Returns whether some were kept.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let Some(socket) = &mut self.socket else {
            return Ok(false);
        };
        if let Some(session) = &mut self.tls {
            session.encrypt(bytes, &mut self.unsent)?;
            return self.flush();
        }
        let mut sent = 0;
        if self.unsent.is_empty() {
            sent = match socket.write(bytes) {
                Ok(sent) => sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            };
        }
        self.unsent.extend_from_slice(&bytes[sent..]);
        Ok(!self.unsent.is_empty())
    }

    /// Sends what was kept. Returns whether some is left.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        let Some(socket) = &mut self.socket else {
            return Ok(false);
        };
        while !self.unsent.is_empty() {
            match socket.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Reads once into `buffer` behind what was kept, and says what was heard. The buffer has room for
    /// what is kept and more. `inflated` is for all connections of the thread.
    pub(crate) fn read(
        &mut self,
        buffer: &mut Vec<u8>,
        plan: &Plan,
        inflated: &mut Inflated,
        mut heard: impl FnMut(&mut Self, Heard<'_>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let Some(socket) = &mut self.socket else {
            return Ok(());
        };
        let kept = self.kept.len();
        if buffer.len() < kept + READ_BYTES {
            buffer.resize(kept + READ_BYTES, 0);
        }
        buffer[..kept].copy_from_slice(&self.kept);
        let read = match socket.read(&mut buffer[kept..]) {
            Ok(0) => return Err(Fault::End),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(Fault::Io(error)),
        };
        let read = match &mut self.tls {
            None => read,
            Some(session) => {
                // Its plaintext takes the place of what it is made of.
                let ciphertext = buffer[kept..kept + read].to_vec();
                let plaintext = session.decrypt(&ciphertext, buffer, kept, &mut self.unsent);
                let plaintext = plaintext.map_err(Fault::Io)?;
                self.flush().map_err(Fault::Io)?;
                plaintext
            }
        };
        let mut input = &buffer[..kept + read];
        while !input.is_empty() {
            let taken = match self.state {
                State::Handshake => self.read_handshake(input, plan, &mut heard)?,
                State::Open if matches!(self.role, Role::HttpPublisher { .. }) => {
                    self.read_response(input, &mut heard)?
                }
                State::Subscribing | State::Open | State::Closing => {
                    self.read_frame(input, plan.target.dialect, inflated, &mut heard)?
                }
                State::Away | State::Dialing => return Ok(()),
            };
            match taken {
                0 => break,
                taken => input = &input[taken..],
            }
        }
        self.kept.clear();
        self.kept.extend_from_slice(input);
        Ok(())
    }

    fn read_handshake(
        &mut self,
        input: &[u8],
        plan: &Plan,
        heard: &mut impl FnMut(&mut Self, Heard<'_>) -> Result<(), Fault>,
    ) -> Result<usize, Fault> {
        let response =
            http::response(input).map_err(|error| Fault::Handshake(error.to_string()))?;
        let Some(response) = response else {
            return Ok(0);
        };
        if response.status != 101 {
            return Err(Fault::Handshake(format!("status {}", response.status)));
        }
        let checked = plan.compression.check(response.agreed);
        checked.map_err(|error| Fault::Handshake(error.to_owned()))?;
        self.deflate = response.agreed.map(|agreed: Agreed| match agreed.keeps_window {
            true => Deflate::Window(Box::new(Inflater::new(agreed))),
            false => Deflate::Shared,
        });
        if plan.target.dialect == Dialect::Nats {
            self.state = State::Subscribing;
            let open = nats::open(&nats::subject(&self.path(plan)));
            let mut bytes = Vec::new();
            frame::encode(opcode::BINARY, open.as_bytes(), &mut bytes);
            self.send(&bytes).map_err(Fault::Io)?;
        } else {
            self.state = State::Open;
            heard(self, Heard::Opened)?;
        }
        Ok(response.bytes)
    }

    fn read_response(
        &mut self,
        input: &[u8],
        heard: &mut impl FnMut(&mut Self, Heard<'_>) -> Result<(), Fault>,
    ) -> Result<usize, Fault> {
        let response = http::response(input).map_err(|error| Fault::Protocol(error.to_string()))?;
        let Some(response) = response else {
            return Ok(0);
        };
        let bytes = response.bytes;
        heard(self, Heard::Published(response))?;
        Ok(bytes)
    }

    #[inline]
    fn read_frame(
        &mut self,
        input: &[u8],
        dialect: Dialect,
        inflated: &mut Inflated,
        heard: &mut impl FnMut(&mut Self, Heard<'_>) -> Result<(), Fault>,
    ) -> Result<usize, Fault> {
        let is_masked = dialect == Dialect::MaskedFrames;
        let Some(frame) = frame::decode(input, is_masked).map_err(Fault::Frame)? else {
            return Ok(0);
        };
        if frame.is_compressed && self.deflate.is_none() {
            return Err(Fault::Frame(FrameError::ReservedBit));
        }
        if frame.opcode < opcode::CLOSE {
            self.wire_bytes += frame.bytes as u64;
        }
        match frame.opcode {
            opcode::TEXT | opcode::BINARY | opcode::CONTINUATION if dialect == Dialect::Nats => {
                self.read_stream(frame.payload, heard)?;
            }
            opcode::TEXT | opcode::BINARY if frame.is_final => {
                self.read_message(frame.payload, frame.is_compressed, inflated, heard)?;
            }
            opcode::TEXT | opcode::BINARY | opcode::CONTINUATION => {
                if frame.opcode != opcode::CONTINUATION {
                    self.is_compressed = frame.is_compressed;
                }
                self.fragments.extend_from_slice(frame.payload);
                if frame.is_final {
                    let message = std::mem::take(&mut self.fragments);
                    self.read_message(&message, self.is_compressed, inflated, heard)?;
                }
            }
            opcode::PING => {
                let mut pong = Vec::new();
                frame::encode(opcode::PONG, frame.payload, &mut pong);
                self.send(&pong).map_err(Fault::Io)?;
                heard(self, Heard::Ping)?;
            }
            opcode::CLOSE => {
                let code =
                    frame.payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                heard(self, Heard::Close(code))?;
            }
            _ => {}
        }
        Ok(frame.bytes)
    }

    #[inline]
    fn read_message(
        &mut self,
        payload: &[u8],
        is_compressed: bool,
        inflated: &mut Inflated,
        heard: &mut impl FnMut(&mut Self, Heard<'_>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let broken = |error| Fault::Protocol(format!("broken message: {error}"));
        match &mut self.deflate {
            Some(Deflate::Shared) if is_compressed => {
                let message = inflated.message(payload).map_err(broken)?;
                heard(self, Heard::Message(message))
            }
            Some(Deflate::Window(inflater)) if is_compressed => {
                let message = inflater.inflate(payload).map_err(broken)?;
                heard(self, Heard::Message(&message))
            }
            _ => heard(self, Heard::Message(payload)),
        }
    }

    fn read_stream(
        &mut self,
        payload: &[u8],
        heard: &mut impl FnMut(&mut Self, Heard<'_>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut stream = std::mem::take(&mut self.stream);
        stream.extend_from_slice(payload);
        let mut rest = &stream[..];
        while let Some((line, bytes)) =
            nats::decode(rest).map_err(|error| Fault::Protocol(error.to_string()))?
        {
            match line {
                Line::Message(payload) => heard(self, Heard::Message(payload))?,
                Line::Pong if self.state == State::Subscribing => {
                    self.state = State::Open;
                    heard(self, Heard::Opened)?;
                }
                Line::Ping => {
                    let mut pong = Vec::new();
                    frame::encode(opcode::BINARY, b"PONG\r\n", &mut pong);
                    self.send(&pong).map_err(Fault::Io)?;
                    heard(self, Heard::Ping)?;
                }
                Line::Pong | Line::Other => {}
            }
            rest = &rest[bytes..];
        }
        let understood = stream.len() - rest.len();
        stream.drain(..understood);
        self.stream = stream;
        Ok(())
    }

    /// Reads the stamp of a message.
    #[inline]
    pub(crate) fn stamp(message: &[u8], payload: Payload, dialect: Dialect) -> Option<Stamp> {
        /// Of the mask's key: it begins anew so often.
        const PERIOD: usize = 4;
        let at = payload.stamp_at();
        if dialect == Dialect::MaskedFrames {
            let before = at % PERIOD;
            let masked = message.get(at - before..at + Stamp::BYTES)?;
            let mut text = [0; Stamp::BYTES + PERIOD];
            text[..masked.len()].copy_from_slice(masked);
            frame::mask(&mut text);
            return Stamp::read(&text[before..]);
        }
        Stamp::read(message.get(at..)?)
    }

    /// Takes note of message `number` of the publisher with this `index` in its channel. Returns how
    /// many are missing before it, or `None` if it was here already.
    #[inline]
    pub(crate) fn note(&mut self, index: usize, number: u32) -> Option<u32> {
        if self.next.len() <= index {
            self.next.resize(index + 1, 0);
        }
        let next = &mut self.next[index];
        let missing = number.checked_sub(*next)?;
        *next = number + 1;
        self.received += 1;
        self.gaps += u64::from(missing);
        Some(missing)
    }
}

/// How much is read at once, in bytes.
pub(crate) const READ_BYTES: usize = 256 * 1024;
