//! What tungstenite makes of the bytes that a client sends.

use std::io::{self, Cursor, Read, Write};

use tungstenite::error::ProtocolError;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};
use wsgate::wire::frame::MessageKind;

use super::frames::Said;

pub(super) const LONGEST_HEADER_BYTES: usize = 14;

/// What it says in the place of a Close code that may not travel.
pub(super) const CODE_FOR_ONE_THAT_MAY_NOT_TRAVEL: u16 = 1002;

/// Where it stopped.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// At a Close, or where the input ends.
    OfInput,
    /// At a violation of this class.
    Violation(u16),
}

/// Reads `sent` up to a Close or the first violation.
pub(super) fn read(sent: &[u8], max_message_bytes: usize) -> (Vec<Said>, End) {
    let config = WebSocketConfig::default()
        .read_buffer_size(4 * 1024)
        .max_frame_size(Some(max_message_bytes))
        .max_message_size(Some(max_message_bytes));
    let mut socket =
        WebSocket::from_raw_socket(Socket(Cursor::new(sent)), Role::Server, Some(config));
    let mut said = Vec::new();
    loop {
        let message = match socket.read() {
            Ok(Message::Text(text)) => Said::Message(MessageKind::Text, text.as_bytes().to_vec()),
            Ok(Message::Binary(payload)) => Said::Message(MessageKind::Binary, payload.to_vec()),
            Ok(Message::Ping(payload)) => Said::Ping(payload.to_vec()),
            Ok(Message::Pong(_)) => Said::Pong,
            Ok(Message::Close(close)) => {
                said.push(Said::Close(close.map(|close| close.code.into())));
                return (said, End::OfInput);
            }
            Ok(Message::Frame(_)) => unreachable!("read gives whole messages"),
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
                return (said, End::OfInput);
            }
            Err(Error::Protocol(_)) => return (said, End::Violation(1002)),
            Err(Error::Utf8(_)) => return (said, End::Violation(1007)),
            Err(Error::Capacity(_)) => return (said, End::Violation(1009)),
            Err(error) => panic!("tungstenite: {error}"),
        };
        said.push(message);
    }
}

/// Gives what the client sent and swallows what is said to it.
struct Socket<'a>(Cursor<&'a [u8]>);

impl Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
