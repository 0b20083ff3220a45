//! One open connection: a socket, what arrives on it, and what waits to be sent. Every wait may be
//! given up without losing a byte.

use std::io;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tungstenite::protocol::frame::coding::Control;

use crate::client::handshake::Opened;
use crate::client::messages::{self, Event, Inbound, Outbound, ServerError};
use crate::client::random;
use crate::wire::close::CloseCode;
use crate::wire::frame::MessageKind;

/// No more is taken from the input while this much waits to be sent.
const MAX_WAITING_BYTES: usize = 1 << 20;
/// Nothing is read while this much waits: what is beyond the above are answers to Pings.
const MAX_WAITING_PONG_BYTES: usize = 2 * MAX_WAITING_BYTES;
/// Room for one read.
const READ_BYTES: usize = 64 * 1024;

/// What has been done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Done {
    Read,
    Written,
    /// The server sends no more.
    End,
}

/// An open connection.
pub(super) struct Connection {
    reader: ReadHalf<TokioIo<Upgraded>>,
    writer: WriteHalf<TokioIo<Upgraded>>,
    inbound: Inbound,
    outbound: Outbound,
    /// Frames, oldest byte first, from `written` on.
    waiting: Vec<u8>,
    written: usize,
    /// TLS may hold back what was written until it is told not to.
    is_flushed: bool,
}

impl Connection {
    pub(super) fn new(opened: Opened, max_message_bytes: usize) -> Self {
        let (reader, writer) = tokio::io::split(opened.socket);
        Self {
            reader,
            writer,
            inbound: Inbound::new(max_message_bytes, opened.agreed),
            outbound: Outbound::new(opened.agreed),
            waiting: Vec::new(),
            written: 0,
            is_flushed: true,
        }
    }

    /// The next event that has arrived.
    pub(super) fn poll_event(&mut self) -> Result<Option<Event>, ServerError> {
        self.inbound.poll_event()
    }

    pub(super) fn send(&mut self, kind: MessageKind, payload: &[u8]) {
        self.outbound.append_message(&mut self.waiting, kind, payload, random::masking_key());
    }

    pub(super) fn ping(&mut self, payload: &[u8]) {
        self.append_control(Control::Ping, payload);
    }

    pub(super) fn pong(&mut self, payload: &[u8]) {
        self.append_control(Control::Pong, payload);
    }

    pub(super) fn close(&mut self, code: Option<CloseCode>, reason: &str) {
        self.append_control(Control::Close, &messages::close_payload(code, reason));
    }

    fn append_control(&mut self, opcode: Control, payload: &[u8]) {
        messages::append_control(&mut self.waiting, opcode, payload, random::masking_key());
    }

    /// Whether more may be sent, or has to wait until some of it is written.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < MAX_WAITING_BYTES
    }

    /// Whether all is written that was sent.
    pub(super) fn is_written(&self) -> bool {
        self.waiting.is_empty() && self.is_flushed
    }

    /// Reads, where `may_read`, or writes, whichever the socket is ready for first. Waits for ever
    /// where there is nothing to do.
    pub(super) async fn progress(&mut self, may_read: bool) -> io::Result<Done> {
        let may_read = may_read && self.waiting.len() < MAX_WAITING_PONG_BYTES;
        let has_more = !self.is_written();
        let buffer = self.inbound.buffer();
        buffer.reserve(READ_BYTES);
        tokio::select! {
            read = self.reader.read_buf(buffer), if may_read => {
                Ok(if read? == 0 { Done::End } else { Done::Read })
            }
            written = write(&mut self.writer, &self.waiting[self.written..]), if has_more => {
                match written? {
                    0 => self.is_flushed = true,
                    bytes => {
                        self.written += bytes;
                        self.is_flushed = false;
                    }
                }
                if self.written == self.waiting.len() {
                    self.waiting.clear();
                    self.written = 0;
                }
                Ok(Done::Written)
            }
            else => std::future::pending().await,
        }
    }
}

/// Writes some of `bytes`, or flushes where there are none. Returns how many were written.
async fn write(writer: &mut WriteHalf<TokioIo<Upgraded>>, bytes: &[u8]) -> io::Result<usize> {
    if bytes.is_empty() {
        writer.flush().await?;
        return Ok(0);
    }
    match writer.write(bytes).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        written => Ok(written),
    }
}
