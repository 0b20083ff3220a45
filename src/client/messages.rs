//! Server frames to messages, and messages to client frames. Bytes in, events out.
//!
//! The frames themselves are tungstenite's, which unlike fastwebsockets hands on the bit that marks
//! a deflated message (RSV1), and keeps nothing of a frame that it has not read to its end. What is
//! put together of them here has a bound over all its fragments, and once inflated.

use std::io::Cursor;

use bytes::{Buf as _, Bytes, BytesMut};
use thiserror::Error;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tungstenite::protocol::frame::{Frame, FrameHeader};

use crate::client::offer::Agreed;
use crate::wire::close::{self, CloseCode};
use crate::wire::deflate::{Deflater, Inflater, Window, max_deflated_bytes};
use crate::wire::frame::{self, MessageKind};
use crate::wire::header::{MAX_CONTROL_PAYLOAD_BYTES, ProtocolError};

/// Shorter messages are sent as they are: deflating makes them longer or hardly shorter.
const MIN_DEFLATED_BYTES: usize = 64;

/// What has arrived.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    Text(String),
    Binary(Vec<u8>),
    Ping(Bytes),
    Pong(Bytes),
    /// Without a code where the Close carries none.
    Close(Option<CloseCode>, String),
}

/// A rule that the server broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum ServerError {
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// Section 5.1.
    #[error("server frame with a masking key")]
    Masked,
}

impl ServerError {
    /// The code to close the connection with.
    pub(super) fn close_code(self) -> CloseCode {
        match self {
            Self::Protocol(error) => error.close_code(),
            Self::Masked => CloseCode::PROTOCOL_ERROR,
        }
    }
}

/// What arrives on one connection.
#[derive(Debug)]
pub(super) struct Inbound {
    unread: BytesMut,
    /// A message whose last fragment has not come.
    begun: Option<Begun>,
    /// Deflated messages are understood.
    inflation: Option<Inflation>,
    max_message_bytes: usize,
}

#[derive(Debug)]
struct Begun {
    kind: MessageKind,
    is_deflated: bool,
    payload: Vec<u8>,
}

#[derive(Debug)]
struct Inflation {
    inflater: Inflater,
    /// What the server's next message may refer to; none where each stands alone.
    window: Option<Window>,
}

impl Inbound {
    /// `agreed` is what was negotiated of permessage-deflate.
    pub(super) fn new(max_message_bytes: usize, agreed: Option<Agreed>) -> Self {
        let inflation = agreed.map(|agreed| Inflation {
            inflater: Inflater::default(),
            window: agreed.server_takeover.then(|| Window::new(agreed.server_window)),
        });
        Self { unread: BytesMut::new(), begun: None, inflation, max_message_bytes }
    }

    /// Where to put what is read next. It holds at most one frame that has not come whole, and one
    /// read.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.unread
    }

    /// The next event, if it has arrived whole.
    ///
    /// # Errors
    ///
    /// The rule that the server broke. It is fatal: send [`ServerError::close_code`] and stop
    /// reading.
    pub(super) fn poll_event(&mut self) -> Result<Option<Event>, ServerError> {
        loop {
            let mut cursor = Cursor::new(&self.unread[..]);
            let Some((header, payload_bytes)) = parse_header(&mut cursor)? else {
                return Ok(None);
            };
            let header_bytes = cursor.position() as usize;
            self.check(&header, payload_bytes)?;
            let payload_bytes = payload_bytes as usize;
            if self.unread.len() - header_bytes < payload_bytes {
                return Ok(None);
            }
            self.unread.advance(header_bytes);
            let payload = self.unread.split_to(payload_bytes).freeze();
            match header.opcode {
                OpCode::Control(Control::Ping) => return Ok(Some(Event::Ping(payload))),
                OpCode::Control(Control::Pong) => return Ok(Some(Event::Pong(payload))),
                OpCode::Control(_) => return close_event(&payload).map(Some),
                OpCode::Data(kind) => {
                    self.push_fragment(&header, kind, &payload);
                    if header.is_final
                        && let Some(message) = self.begun.take()
                    {
                        return self.finish(message).map(Some);
                    }
                }
            }
        }
    }

    /// Judges a frame by its header and by those before it, before anything of its payload is kept.
    fn check(&self, header: &FrameHeader, payload_bytes: u64) -> Result<(), ServerError> {
        let begins = matches!(header.opcode, OpCode::Data(Data::Text | Data::Binary));
        let may_be_deflated = begins && self.inflation.is_some();
        if header.rsv2 || header.rsv3 || header.rsv1 && !may_be_deflated {
            let bits = [header.rsv1, header.rsv2, header.rsv3];
            let bits = bits.iter().fold(0, |bits, bit| bits << 1 | u8::from(*bit));
            return Err(ProtocolError::ReservedBits(bits).into());
        }
        if header.mask.is_some() {
            return Err(ServerError::Masked);
        }
        if matches!(header.opcode, OpCode::Control(_)) {
            return match header.is_final {
                false => Err(ProtocolError::FragmentedControlFrame.into()),
                true if payload_bytes > MAX_CONTROL_PAYLOAD_BYTES => {
                    Err(ProtocolError::ControlFrameTooLong.into())
                }
                true => Ok(()),
            };
        }
        let (is_deflated, gathered) = match &self.begun {
            Some(_) if begins => return Err(ProtocolError::InterleavedMessage.into()),
            None if !begins => return Err(ProtocolError::UnexpectedContinuation.into()),
            Some(begun) => (begun.is_deflated, begun.payload.len()),
            None => (header.rsv1, 0),
        };
        let most = match is_deflated {
            true => max_deflated_bytes(self.max_message_bytes),
            false => self.max_message_bytes,
        };
        if payload_bytes > (most - gathered) as u64 {
            return Err(ProtocolError::MessageTooBig.into());
        }
        Ok(())
    }

    fn push_fragment(&mut self, header: &FrameHeader, kind: Data, payload: &[u8]) {
        let begun = self.begun.get_or_insert_with(|| Begun {
            kind: if kind == Data::Text { MessageKind::Text } else { MessageKind::Binary },
            is_deflated: header.rsv1,
            payload: Vec::new(),
        });
        begun.payload.extend_from_slice(payload);
    }

    fn finish(&mut self, message: Begun) -> Result<Event, ServerError> {
        let mut payload = message.payload;
        if let Some(inflation) = self.inflation.as_mut().filter(|_| message.is_deflated) {
            let known = inflation.window.as_ref().map_or(&[][..], Window::bytes);
            let mut inflated = Vec::new();
            inflation
                .inflater
                .inflate(&payload, known, self.max_message_bytes, &mut inflated)
                .map_err(ProtocolError::from)?;
            if let Some(window) = &mut inflation.window {
                window.push(&inflated);
            }
            payload = inflated;
        }
        match message.kind {
            MessageKind::Binary => Ok(Event::Binary(payload)),
            MessageKind::Text => String::from_utf8(payload)
                .map(Event::Text)
                .map_err(|_| ProtocolError::TextNotUtf8.into()),
        }
    }
}

fn parse_header(cursor: &mut Cursor<&[u8]>) -> Result<Option<(FrameHeader, u64)>, ProtocolError> {
    let first = cursor.get_ref().first().copied().unwrap_or_default();
    // Read from memory, so the one thing that can be wrong is the opcode.
    FrameHeader::parse(cursor).map_err(|_| ProtocolError::ReservedOpcode(first & 0xf))
}

fn close_event(payload: &[u8]) -> Result<Event, ServerError> {
    let code = close::parse_payload(payload)?;
    let reason = payload.get(2..).unwrap_or_default();
    Ok(Event::Close(code, String::from_utf8_lossy(reason).into_owned()))
}

/// What this client says on one connection.
#[derive(Debug)]
pub(super) struct Outbound {
    deflater: Option<Deflater>,
}

impl Outbound {
    /// `agreed` is what was negotiated of permessage-deflate.
    pub(super) fn new(agreed: Option<Agreed>) -> Self {
        // Each message stands alone, as a client may decide without a word (RFC 7692 section 7.1.1.2):
        // what people type gains nothing from what they typed before.
        Self { deflater: agreed.map(|agreed| Deflater::new(agreed.client_window)) }
    }

    /// Appends `payload` as one frame to `output`.
    pub(super) fn append_message(
        &mut self,
        output: &mut Vec<u8>,
        kind: MessageKind,
        payload: &[u8],
        masking_key: [u8; 4],
    ) {
        let opcode = OpCode::Data(match kind {
            MessageKind::Text => Data::Text,
            MessageKind::Binary => Data::Binary,
        });
        let mut deflated = Vec::new();
        let is_deflated = payload.len() >= MIN_DEFLATED_BYTES
            && self
                .deflater
                .as_mut()
                .is_some_and(|deflater| deflater.append_frame(&mut deflated, kind, payload, &[]));
        // What comes out is a server's frame; a client's has the same payload.
        let payload = if is_deflated { frame::open(&deflated).1 } else { payload };
        append_frame(output, opcode, is_deflated, payload, masking_key);
    }
}

/// Appends a Ping or a Pong, or a Close with this payload, to `output`.
pub(super) fn append_control(
    output: &mut Vec<u8>,
    opcode: Control,
    payload: &[u8],
    masking_key: [u8; 4],
) {
    append_frame(output, OpCode::Control(opcode), false, payload, masking_key);
}

/// The payload of a Close frame.
pub(super) fn close_payload(code: Option<CloseCode>, reason: &str) -> Vec<u8> {
    let Some(code) = code else { return Vec::new() };
    let mut payload = code.as_u16().to_be_bytes().to_vec();
    payload.extend_from_slice(close::truncate_reason(reason).as_bytes());
    payload
}

fn append_frame(
    output: &mut Vec<u8>,
    opcode: OpCode,
    rsv1: bool,
    payload: &[u8],
    masking_key: [u8; 4],
) {
    let header = FrameHeader { opcode, rsv1, mask: Some(masking_key), ..FrameHeader::default() };
    let frame = Frame::from_payload(header, Bytes::copy_from_slice(payload));
    frame.format(output).expect("a Vec takes everything");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::extensions::WindowBits;
    use crate::wire::header::{ClientFrameHeader, Opcode};

    const LIMIT: usize = 1_000;

    fn agreed(server_takeover: bool) -> Agreed {
        Agreed { server_takeover, server_window: WindowBits::MAX, client_window: WindowBits::MAX }
    }

    /// Every event of `bytes`, which arrive at once, and the error behind them.
    fn read_all(mut inbound: Inbound, bytes: &[u8]) -> (Vec<Event>, Option<ServerError>) {
        inbound.buffer().extend_from_slice(bytes);
        let mut events = Vec::new();
        loop {
            match inbound.poll_event() {
                Ok(Some(event)) => events.push(event),
                Ok(None) => return (events, None),
                Err(error) => return (events, Some(error)),
            }
        }
    }

    fn plain(bytes: &[u8]) -> (Vec<Event>, Option<ServerError>) {
        read_all(Inbound::new(LIMIT, None), bytes)
    }

    fn error_of(bytes: &[u8]) -> Option<ServerError> {
        plain(bytes).1
    }

    fn server_frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        frame::encode(opcode, payload).to_vec()
    }

    #[test]
    fn frames_become_events() {
        let bytes = [
            server_frame(Opcode::Text, "grüße".as_bytes()),
            server_frame(Opcode::Ping, b"?"),
            server_frame(Opcode::Pong, b"!"),
            server_frame(Opcode::Binary, &[0, 255]),
            frame::encode_close(Some(CloseCode::GOING_AWAY), "bye").to_vec(),
        ];
        let expected = [
            Event::Text("grüße".to_owned()),
            Event::Ping(Bytes::from_static(b"?")),
            Event::Pong(Bytes::from_static(b"!")),
            Event::Binary(vec![0, 255]),
            Event::Close(Some(CloseCode::GOING_AWAY), "bye".to_owned()),
        ];
        assert_eq!(plain(&bytes.concat()), (expected.into(), None));
        assert_eq!(plain(&[0x88, 0]).0, [Event::Close(None, String::new())]);
    }

    #[test]
    fn message_in_fragments_is_put_together_around_control_frames() {
        // "é" is cut in the middle.
        let bytes = b"\x01\x02a\xc3\x89\x00\x80\x01\xa9";
        assert_eq!(plain(bytes).0, [Event::Ping(Bytes::new()), Event::Text("aé".to_owned())]);
    }

    #[test]
    fn events_are_the_same_however_the_bytes_are_cut() {
        let bytes = [
            server_frame(Opcode::Text, &[b'x'; 200]),
            b"\x02\x01a\x80\x01b".to_vec(),
            server_frame(Opcode::Ping, b"?"),
        ]
        .concat();
        let (expected, _) = plain(&bytes);
        assert_eq!(expected.len(), 3);
        for cut in 0..=bytes.len() {
            let mut inbound = Inbound::new(LIMIT, None);
            let mut events = Vec::new();
            for piece in [&bytes[..cut], &bytes[cut..]] {
                inbound.buffer().extend_from_slice(piece);
                while let Some(event) = inbound.poll_event().expect("no rule is broken") {
                    events.push(event);
                }
            }
            assert_eq!(events, expected, "cut at {cut}");
        }
    }

    #[test]
    fn server_that_breaks_a_rule_is_told_which() {
        use ProtocolError as Rule;
        for (bytes, error) in [
            (&b"\xc1\x00"[..], Rule::ReservedBits(0b100)),
            (b"\xb1\x00", Rule::ReservedBits(0b011)),
            (b"\x83\x00", Rule::ReservedOpcode(3)),
            (b"\x09\x00", Rule::FragmentedControlFrame),
            (b"\x89\x7e\x00\x7e", Rule::ControlFrameTooLong),
            (b"\x80\x00", Rule::UnexpectedContinuation),
            (b"\x01\x00\x81\x00", Rule::InterleavedMessage),
            (b"\x81\x01\xff", Rule::TextNotUtf8),
            (b"\x88\x01\x03", Rule::ClosePayloadOfOneByte),
            (b"\x88\x02\x03\xed", Rule::CloseCode(1005)),
        ] {
            assert_eq!(error_of(bytes), Some(error.into()), "{bytes:x?}");
        }
        assert_eq!(error_of(b"\x81\x81abcd!"), Some(ServerError::Masked));
    }

    #[test]
    fn message_of_exactly_the_limit_passes_and_a_larger_one_does_not() {
        let too_big = Some(ProtocolError::MessageTooBig.into());
        assert_eq!(error_of(&server_frame(Opcode::Binary, &[0; LIMIT])), None);
        assert_eq!(error_of(&server_frame(Opcode::Binary, &[0; LIMIT + 1])[..4]), too_big);
        let mut fragments = server_frame(Opcode::Binary, &[0; LIMIT]);
        fragments[0] &= 0x7f;
        fragments.extend([0x80, 0x01]);
        assert_eq!(error_of(&fragments), too_big);
    }

    #[test]
    fn deflated_messages_are_inflated_with_and_without_what_was_said_before() {
        for takeover in [false, true] {
            let mut deflater = Deflater::new(WindowBits::MAX);
            let mut window = Window::new(WindowBits::MAX);
            let mut bytes = Vec::new();
            let text = "the same again and again ".repeat(4);
            for _ in 0..3 {
                let known = if takeover { window.bytes() } else { &[] };
                assert!(deflater.append_frame(
                    &mut bytes,
                    MessageKind::Text,
                    text.as_bytes(),
                    known
                ));
                window.push(text.as_bytes());
            }
            let inbound = Inbound::new(LIMIT, Some(agreed(takeover)));
            let (events, error) = read_all(inbound, &bytes);
            assert_eq!(error, None);
            assert_eq!(events, [(); 3].map(|()| Event::Text(text.clone())));
        }
    }

    #[test]
    fn message_that_inflates_beyond_the_limit_is_refused() {
        let mut bytes = Vec::new();
        let mut deflater = Deflater::new(WindowBits::MAX);
        assert!(deflater.append_frame(&mut bytes, MessageKind::Binary, &[0; LIMIT + 1], &[]));
        let inbound = Inbound::new(LIMIT, Some(agreed(false)));
        assert_eq!(read_all(inbound, &bytes).1, Some(ProtocolError::MessageTooBig.into()));
    }

    #[test]
    fn client_frame_is_masked_and_deflated_where_that_pays() {
        let key = [1, 2, 3, 4];
        for (agreed, payload, deflated) in [
            (None, &[b'x'; 500][..], false),
            (Some(agreed(false)), &[b'x'; 500], true),
            (Some(agreed(false)), b"short", false),
        ] {
            let mut output = Vec::new();
            Outbound::new(agreed).append_message(&mut output, MessageKind::Text, payload, key);
            let decoded = ClientFrameHeader::decode(&output, true).expect("a good header");
            let (header, header_bytes) = decoded.expect("a whole one");
            assert_eq!(header.opcode, Opcode::Text);
            assert_eq!(header.deflated, deflated);
            assert_eq!(header.masking_key, key);
            let mut sent = output[header_bytes..].to_vec();
            assert_eq!(sent.len() as u64, header.payload_bytes);
            fastwebsockets::unmask(&mut sent, key);
            if deflated {
                let mut inflated = Vec::new();
                Inflater::default().inflate(&sent, &[], 500, &mut inflated).expect("deflated");
                sent = inflated;
            }
            assert_eq!(sent, payload);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_server_make_it_panic(bytes: Vec<u8>, deflate: bool) {
            let agreed = deflate.then(|| agreed(true));
            _ = read_all(Inbound::new(LIMIT, agreed), &bytes);
        }
    }
}
