//! One client with a thread's patience: it reads and writes until a deadline, and says how it ended.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;
use thiserror::Error;

use crate::client::deflate::{Compression, Deflater, Inflater};
use crate::client::frame::{self, opcode};
use crate::client::http;
use crate::target::Target;

/// Nothing that a server does at once takes longer, however busy the machine is.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// How much is read at once, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// A WebSocket, or a socket on which none has been opened.
pub(super) struct Socket {
    stream: TcpStream,
    input: Vec<u8>,
    /// The first frame's opcode, whether the message is compressed, and what has come of it.
    fragments: Option<(u8, bool, Vec<u8>)>,
    inflater: Option<Inflater>,
    deflater: Option<Deflater>,
}

/// What a client hears.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Message {
        opcode: u8,
        payload: Vec<u8>,
    },
    Pong(Vec<u8>),
    /// With this code; 1005 where it has none.
    Close(u16),
}

/// Why a client hears nothing more.
#[derive(Debug, Error)]
pub(super) enum End {
    #[error("the server has ended the connection")]
    Stream,
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("the server refused with status {0}")]
    Refused(u16),
    #[error("the server sent nonsense: {0}")]
    Nonsense(String),
    #[error("the server does not answer")]
    Silence,
}

impl End {
    /// Whether the connection is gone, however that came.
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Self::Stream => true,
            Self::Io(error) => {
                matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
            }
            Self::Refused(_) | Self::Nonsense(_) | Self::Silence => false,
        }
    }
}

impl Socket {
    /// Opens a TCP connection.
    pub(super) fn connect(address: SocketAddr) -> Result<Self, End> {
        Self::over(TcpStream::connect_timeout(&address, PATIENCE)?)
    }

    /// One that takes little: it is the server that holds what is not read. With small segments the
    /// kernels on both sides keep tens of kilobytes for it instead of megabytes.
    pub(super) fn connect_narrow(address: SocketAddr) -> Result<Self, End> {
        use socket2::{Domain, Type};
        let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_recv_buffer_size(4_096)?;
        socket.set_tcp_mss(536)?;
        socket.connect_timeout(&address.into(), PATIENCE)?;
        Self::over(socket.into())
    }

    fn over(stream: TcpStream) -> Result<Self, End> {
        stream.set_nodelay(true)?;
        // Whoever is not read for so long has found a server that stands still.
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, input: Vec::new(), fragments: None, inflater: None, deflater: None })
    }

    /// Opens a WebSocket at `path`.
    pub(super) fn open(
        target: &Target,
        headers: &[String],
        path: &str,
        compression: Compression,
    ) -> Result<Self, End> {
        let mut socket = Self::connect(target.address)?;
        socket.upgrade(target, headers, path, compression)?;
        Ok(socket)
    }

    /// Makes the opening handshake.
    pub(super) fn upgrade(
        &mut self,
        target: &Target,
        headers: &[String],
        path: &str,
        compression: Compression,
    ) -> Result<(), End> {
        let mut headers = headers.to_vec();
        headers.extend(compression.offer().map(str::to_owned));
        self.send_raw(http::handshake(path, &target.host, &headers).as_bytes())?;
        let response = self.response()?;
        if response.status != 101 {
            return Err(End::Refused(response.status));
        }
        let checked = compression.check(response.agreed);
        checked.map_err(|error| End::Nonsense(error.to_owned()))?;
        self.inflater = response.agreed.map(Inflater::new);
        let is_free = response.agreed.is_some_and(|agreed| !agreed.limits_client);
        self.deflater = is_free.then(Deflater::new);
        Ok(())
    }

    /// Waits for a response to what was sent.
    pub(super) fn response(&mut self) -> Result<http::Response, End> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let response = http::response(&self.input);
            if let Some(response) = response.map_err(|error| End::Nonsense(error.to_string()))? {
                self.input.drain(..response.bytes);
                return Ok(response);
            }
            if !self.fill(deadline)? {
                return Err(End::Silence);
            }
        }
    }

    /// All that comes until the server ends the connection.
    pub(super) fn text(mut self) -> Result<String, End> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.fill(deadline) {
                Ok(true) => {}
                Ok(false) => return Err(End::Silence),
                Err(end) if end.is_gone() => {
                    return Ok(String::from_utf8_lossy(&self.input).into_owned());
                }
                Err(end) => return Err(end),
            }
        }
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(super) fn send_raw(&mut self, bytes: &[u8]) -> Result<(), End> {
        match self.stream.write_all(bytes) {
            // The name that a timeout has differs between systems.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(End::Silence)
            }
            result => Ok(result?),
        }
    }

    pub(super) fn send(&mut self, opcode: u8, payload: &[u8]) -> Result<(), End> {
        let mut bytes = Vec::with_capacity(payload.len() + 14);
        frame::encode(opcode, payload, &mut bytes);
        self.send_raw(&bytes)
    }

    /// A message as it goes over this connection if it goes compressed; `None` where it may not.
    pub(super) fn deflate(&mut self, payload: &[u8]) -> Option<Vec<u8>> {
        Some(self.deflater.as_mut()?.deflate(payload))
    }

    /// What is heard next; `None` where nothing is until `deadline`. Pings are answered.
    pub(super) fn next(&mut self, deadline: Instant) -> Result<Option<Heard>, End> {
        loop {
            if let Some(heard) = self.decode()? {
                return Ok(Some(heard));
            }
            if !self.fill(deadline)? {
                return Ok(None);
            }
        }
    }

    /// What is heard next, which is due at once.
    pub(super) fn expect(&mut self) -> Result<Heard, End> {
        self.next(Instant::now() + PATIENCE)?.ok_or(End::Silence)
    }

    /// Reads until the server ends the connection, whatever it says before. Returns the code of its
    /// Close.
    pub(super) fn drain(&mut self, within: Duration) -> Result<Option<u16>, End> {
        let deadline = Instant::now() + within;
        let mut code = None;
        loop {
            match self.next(deadline) {
                Ok(Some(Heard::Close(closed_with))) => {
                    code = Some(closed_with);
                    // So that it need not wait for an answer; it may have gone already.
                    _ = self.send(opcode::CLOSE, &closed_with.to_be_bytes());
                }
                Ok(Some(_)) => {}
                Ok(None) => return Err(End::Silence),
                Err(end) if end.is_gone() => return Ok(code),
                Err(end) => return Err(end),
            }
        }
    }

    /// Waits for the end of what may be no WebSocket.
    pub(super) fn drain_raw(&mut self, within: Duration) -> Result<(), End> {
        let deadline = Instant::now() + within;
        loop {
            match self.fill(deadline) {
                Ok(true) => self.input.clear(),
                Ok(false) => return Err(End::Silence),
                Err(end) if end.is_gone() => return Ok(()),
                Err(end) => return Err(end),
            }
        }
    }

    /// Says nothing more, and can still hear.
    pub(super) fn half_close(&self) -> Result<(), End> {
        Ok(self.stream.shutdown(Shutdown::Write)?)
    }

    /// Goes without a word, and without an end of the stream.
    pub(super) fn reset(self) -> Result<(), End> {
        Ok(SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))?)
    }

    /// Reads once, until `deadline`. Returns whether something came.
    fn fill(&mut self, deadline: Instant) -> Result<bool, End> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut ready = [PollFd::new(&self.stream, PollFlags::IN)];
        match poll(&mut ready, Some(&timeout)) {
            Ok(0) => return Ok(false),
            Err(rustix::io::Errno::INTR) => return Ok(true),
            Ok(_) => {}
            Err(error) => return Err(End::Io(error.into())),
        }
        let kept = self.input.len();
        self.input.resize(kept + READ_BYTES, 0);
        let read = self.stream.read(&mut self.input[kept..]);
        self.input.truncate(kept + *read.as_ref().unwrap_or(&0));
        match read? {
            0 => Err(End::Stream),
            _ => Ok(true),
        }
    }

    fn decode(&mut self) -> Result<Option<Heard>, End> {
        loop {
            let nonsense = |text: &str| Err(End::Nonsense(text.to_owned()));
            let frame = frame::decode(&self.input, false);
            let frame = frame.map_err(|error| End::Nonsense(error.to_string()))?;
            let Some(frame) = frame else { return Ok(None) };
            if frame.is_compressed && self.inflater.is_none() {
                return nonsense("a compressed message without compression");
            }
            let (bytes, is_final, opcode) = (frame.bytes, frame.is_final, frame.opcode);
            let (is_compressed, payload) = (frame.is_compressed, frame.payload.to_vec());
            self.input.drain(..bytes);
            match (opcode, &mut self.fragments) {
                (opcode::TEXT | opcode::BINARY, Some(_)) | (opcode::CONTINUATION, None) => {
                    return nonsense("fragments that do not belong together");
                }
                (opcode::TEXT | opcode::BINARY, None) => {
                    self.fragments = Some((opcode, is_compressed, payload));
                }
                (opcode::CONTINUATION, Some((_, _, message))) => message.extend(payload),
                (opcode::PING, _) => self.send(opcode::PONG, &payload)?,
                (opcode::PONG, _) => return Ok(Some(Heard::Pong(payload))),
                _ => {
                    let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                    return Ok(Some(Heard::Close(code)));
                }
            }
            if is_final
                && opcode < opcode::CLOSE
                && let Some((opcode, is_compressed, payload)) = self.fragments.take()
            {
                let payload = match &mut self.inflater {
                    Some(inflater) if is_compressed => {
                        let inflated = inflater.inflate(&payload);
                        inflated.map_err(|error| End::Nonsense(error.to_string()))?
                    }
                    _ => payload,
                };
                return Ok(Some(Heard::Message { opcode, payload }));
            }
        }
    }
}
