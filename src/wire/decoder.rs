//! Client frames to messages (RFC 6455 sections 5 and 8.1).
//!
//! A masked header is exactly four bytes longer than the unmasked one of the same length, so a
//! message that came in one frame is unmasked where it lies and its server header is written right
//! before it: the slice is then a complete server frame, and nobody copies the payload to send it
//! on. Only a message in several fragments, or in a frame that is not complete yet, is gathered in
//! a buffer of its own, and that buffer becomes the frame that is sent on.

use std::ops::Range;

use bytes::Bytes;
use fastwebsockets::unmask;

use crate::wire::close::{self, CloseCode};
use crate::wire::deflate::max_deflated_bytes;
use crate::wire::frame::{MAX_HEADER_BYTES, MessageKind, write_header_before};
use crate::wire::header::{ClientFrameHeader, MAX_CONTROL_PAYLOAD_BYTES, Opcode, ProtocolError};
use crate::wire::utf8::Utf8Validator;

/// Most bytes that a decoder may leave unread: all but the last byte of the longest control frame.
pub const MAX_KEPT_BYTES: usize = 6 + MAX_CONTROL_PAYLOAD_BYTES as usize - 1;

/// The smallest growth of the buffer of a gathered message in bytes.
const MIN_GROWTH_BYTES: usize = 256;

/// What a client's messages may be. The same for all connections with the same extension.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Largest message over all its fragments, and after inflation, in bytes.
    pub max_message_bytes: usize,
    /// permessage-deflate was negotiated.
    pub deflate: bool,
}

/// The receiving side of one connection. Between messages it holds nothing on the heap.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The message whose fragments are arriving, or whose only frame is.
    gathered: Option<Box<Gathered>>,
    /// From [`Decoder::keep`] or [`Decoder::keep_unread`].
    kept: Option<Box<Kept>>,
}

/// Bytes between two calls.
#[derive(Debug)]
struct Kept {
    bytes: Vec<u8>,
    /// They have not been looked at and may hold whole frames.
    are_unread: bool,
}

/// What [`Decoder::decode`] made of the front of its input.
#[derive(Debug)]
pub struct Decoded {
    /// How much of the input is done with, in bytes.
    pub consumed: usize,
    /// What it meant. `None`: the rest of the input (`consumed..`) is less than
    /// [`MAX_KEPT_BYTES`] + 1 bytes and means nothing yet; show it again with more behind it.
    pub event: Option<Event>,
}

/// Something that a client said.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A whole data message.
    Message {
        /// Text is known to be UTF-8.
        kind: MessageKind,
        /// Length of the payload in bytes.
        payload_bytes: usize,
        /// The message as one server frame.
        frame: ServerFrame,
    },
    /// A whole data message that is deflated. Text is not checked yet.
    DeflatedMessage {
        /// What it is once it is inflated.
        kind: MessageKind,
        /// Its payload as it travelled, unmasked.
        payload: DeflatedPayload,
    },
    /// A Ping. The range of the input holds its answer: a whole Pong frame with the same payload.
    Ping {
        /// Where the Pong lies.
        pong: Range<usize>,
    },
    /// A Pong, asked for or not. It has no effect beyond being a sign of life.
    Pong,
    /// The peer starts or answers the closing handshake. Nothing after it has a meaning.
    Close(Option<CloseCode>),
}

/// A complete server frame, header included.
#[derive(Debug, PartialEq, Eq)]
pub enum ServerFrame {
    /// It lies in this range of the input.
    InPlace(Range<usize>),
    /// It was gathered from pieces.
    Gathered(Bytes),
}

impl ServerFrame {
    /// Its bytes, where `input` is what was decoded.
    #[inline]
    pub fn bytes<'a>(&'a self, input: &'a [u8]) -> &'a [u8] {
        match self {
            Self::InPlace(range) => &input[range.clone()],
            Self::Gathered(frame) => frame,
        }
    }
}

/// The payload of a deflated message.
#[derive(Debug, PartialEq, Eq)]
pub enum DeflatedPayload {
    /// It lies in this range of the input.
    InPlace(Range<usize>),
    /// It was gathered from pieces.
    Gathered(Vec<u8>),
}

impl DeflatedPayload {
    /// Its bytes, where `input` is what was decoded.
    #[inline]
    pub fn bytes<'a>(&'a self, input: &'a [u8]) -> &'a [u8] {
        match self {
            Self::InPlace(range) => &input[range.clone()],
            Self::Gathered(payload) => payload,
        }
    }
}

impl Decoder {
    /// Takes one event from the front of `input`: the unread bytes of the connection, oldest first,
    /// starting with what [`Decoder::restore`] gave back.
    ///
    /// Payloads are unmasked in place.
    ///
    /// # Errors
    ///
    /// The first rule that the client broke, as early as it can be known: a length that is too
    /// large when its header arrives, text that is not UTF-8 inside a frame that is not complete.
    /// It is fatal; what follows in the input has no meaning.
    #[inline]
    pub fn decode(&mut self, input: &mut [u8], rules: Rules) -> Result<Decoded, ProtocolError> {
        if self.gathered.is_some() {
            return self.decode_gathering(input, rules);
        }
        let Some((header, header_bytes)) = ClientFrameHeader::decode(input, rules.deflate)? else {
            return Ok(Decoded { consumed: 0, event: None });
        };
        let kind = match header.opcode {
            Opcode::Text => MessageKind::Text,
            Opcode::Binary => MessageKind::Binary,
            Opcode::Continuation => return Err(ProtocolError::UnexpectedContinuation),
            Opcode::Close | Opcode::Ping | Opcode::Pong => {
                return decode_control(header, header_bytes, input);
            }
        };
        if header.payload_bytes > rules.max_payload_bytes(header.deflated) as u64 {
            return Err(ProtocolError::MessageTooBig);
        }
        let payload_bytes = header.payload_bytes as usize;
        let end = header_bytes + payload_bytes;
        if header.fin && end <= input.len() {
            let (head, payload) = input[..end].split_at_mut(header_bytes);
            unmask(payload, header.masking_key);
            if header.deflated {
                let payload = DeflatedPayload::InPlace(header_bytes..end);
                let event = Some(Event::DeflatedMessage { kind, payload });
                return Ok(Decoded { consumed: end, event });
            }
            if kind == MessageKind::Text && simdutf8::basic::from_utf8(payload).is_err() {
                return Err(ProtocolError::TextNotUtf8);
            }
            let start = write_header_before(head, header.opcode, payload_bytes);
            let frame = ServerFrame::InPlace(start..end);
            let event = Some(Event::Message { kind, payload_bytes, frame });
            return Ok(Decoded { consumed: end, event });
        }
        self.gathered = Some(Box::new(Gathered::new(kind, header)));
        let rest = self.decode_gathering(&mut input[header_bytes..], rules)?;
        Ok(rest.after(header_bytes))
    }

    /// Decodes while fragments or a large frame are being gathered.
    fn decode_gathering(
        &mut self,
        input: &mut [u8],
        rules: Rules,
    ) -> Result<Decoded, ProtocolError> {
        let mut at = 0;
        loop {
            let gathered = self.gathered.as_mut().expect("only called while gathering");
            if gathered.frame.is_some() {
                at += gathered.take_payload(&mut input[at..])?;
                match gathered.progress()? {
                    Progress::MoreOfFrame => return Ok(Decoded { consumed: at, event: None }),
                    Progress::MoreFrames => {}
                    Progress::Whole => {
                        let gathered = self.gathered.take().expect("it was there above");
                        let event = Some(gathered.into_event());
                        return Ok(Decoded { consumed: at, event });
                    }
                }
            }
            let rest = &mut input[at..];
            let Some((header, header_bytes)) = ClientFrameHeader::decode(rest, rules.deflate)?
            else {
                return Ok(Decoded { consumed: at, event: None });
            };
            match header.opcode {
                Opcode::Text | Opcode::Binary => return Err(ProtocolError::InterleavedMessage),
                Opcode::Close | Opcode::Ping | Opcode::Pong => {
                    return decode_control(header, header_bytes, rest)
                        .map(|decoded| decoded.after(at));
                }
                Opcode::Continuation => {
                    let most = rules.max_payload_bytes(gathered.deflated);
                    // Less than what is there already, where the rules have changed meanwhile.
                    let room = most.saturating_sub(gathered.payload_bytes());
                    if header.payload_bytes > room as u64 {
                        return Err(ProtocolError::MessageTooBig);
                    }
                    gathered.frame = Some(header);
                    at += header_bytes;
                }
            }
        }
    }

    /// Keeps `rest`, what [`Decoder::decode`] left unread, until more arrives.
    pub fn keep(&mut self, rest: &[u8]) {
        debug_assert!(
            rest.len() <= MAX_KEPT_BYTES,
            "the decoder leaves no more than a control frame"
        );
        self.keep_as(rest, false);
    }

    /// Keeps `rest`, which nobody has looked at: what came behind an event after which it is somebody
    /// else's turn. It goes before whatever arrives.
    pub fn keep_unread(&mut self, rest: &[u8]) {
        self.keep_as(rest, true);
    }

    fn keep_as(&mut self, rest: &[u8], are_unread: bool) {
        self.kept = (!rest.is_empty()).then(|| Box::new(Kept { bytes: rest.to_vec(), are_unread }));
    }

    /// How many bytes are kept: at most [`MAX_KEPT_BYTES`], unless they are unread.
    #[inline]
    pub fn kept_bytes(&self) -> usize {
        self.kept.as_ref().map_or(0, |kept| kept.bytes.len())
    }

    /// What is kept came from [`Decoder::keep_unread`]: decode it before anything more is read.
    #[inline]
    pub fn has_unread(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.are_unread)
    }

    /// Puts the kept bytes back into `space`, which is of their length. What arrives next goes right
    /// behind it.
    #[inline]
    pub fn restore(&mut self, space: &mut [u8]) {
        if let Some(kept) = self.kept.take() {
            space.copy_from_slice(&kept.bytes);
        }
    }

    /// Bytes on the heap that belong to messages which have not arrived whole.
    pub fn held_bytes(&self) -> usize {
        let gathered = self.gathered.as_ref().map_or(0, |gathered| gathered.buffer.capacity());
        gathered + self.kept_bytes()
    }
}

impl Rules {
    /// Longest payload of a message over all its fragments, as it travels.
    #[inline]
    fn max_payload_bytes(self, deflated: bool) -> usize {
        if deflated { max_deflated_bytes(self.max_message_bytes) } else { self.max_message_bytes }
    }
}

impl Decoded {
    /// The same, seen from `offset` bytes earlier.
    fn after(mut self, offset: usize) -> Self {
        self.consumed += offset;
        if let Some(Event::Ping { pong }) = &mut self.event {
            *pong = pong.start + offset..pong.end + offset;
        }
        self
    }
}

/// Decodes the control frame at the front of `input`, whose header was read before.
fn decode_control(
    header: ClientFrameHeader,
    header_bytes: usize,
    input: &mut [u8],
) -> Result<Decoded, ProtocolError> {
    let end = header_bytes + header.payload_bytes as usize;
    let Some(frame) = input.get_mut(..end) else {
        return Ok(Decoded { consumed: 0, event: None });
    };
    let (head, payload) = frame.split_at_mut(header_bytes);
    unmask(payload, header.masking_key);
    let event = match header.opcode {
        Opcode::Ping => {
            let start = write_header_before(head, Opcode::Pong, payload.len());
            Event::Ping { pong: start..end }
        }
        Opcode::Pong => Event::Pong,
        Opcode::Close => Event::Close(close::parse_payload(payload)?),
        Opcode::Continuation | Opcode::Text | Opcode::Binary => {
            unreachable!("only control frames come here")
        }
    };
    Ok(Decoded { consumed: end, event: Some(event) })
}

/// A message that did not come in one piece.
#[derive(Debug)]
struct Gathered {
    kind: MessageKind,
    deflated: bool,
    /// Room for the longest server header, then the payload so far, unmasked. Grows with what has
    /// arrived, never with what a header announced.
    buffer: Vec<u8>,
    /// Only used for text that is not deflated.
    utf8: Utf8Validator,
    /// The frame whose payload is arriving; `payload_bytes` is what is still missing and
    /// `masking_key` starts with the byte for the next payload byte.
    frame: Option<ClientFrameHeader>,
}

enum Progress {
    MoreOfFrame,
    MoreFrames,
    Whole,
}

impl Gathered {
    fn new(kind: MessageKind, first: ClientFrameHeader) -> Self {
        Self {
            kind,
            deflated: first.deflated,
            buffer: Vec::new(),
            utf8: Utf8Validator::default(),
            frame: Some(first),
        }
    }

    fn is_plain_text(&self) -> bool {
        self.kind == MessageKind::Text && !self.deflated
    }

    fn payload_bytes(&self) -> usize {
        self.buffer.len().saturating_sub(MAX_HEADER_BYTES)
    }

    /// Takes what `input` holds of the current frame's payload and returns its length in bytes.
    fn take_payload(&mut self, input: &mut [u8]) -> Result<usize, ProtocolError> {
        let frame = self.frame.as_mut().expect("a frame is arriving");
        let piece_bytes = input.len().min(frame.payload_bytes.try_into().unwrap_or(usize::MAX));
        if piece_bytes == 0 {
            return Ok(0);
        }
        let piece = &mut input[..piece_bytes];
        unmask(piece, frame.masking_key);
        frame.masking_key.rotate_left(piece_bytes % 4);
        frame.payload_bytes -= piece_bytes as u64;
        let missing_bytes = frame.payload_bytes as usize;
        if self.is_plain_text() {
            self.utf8.push(piece).map_err(|_| ProtocolError::TextNotUtf8)?;
        }
        if self.buffer.is_empty() {
            self.buffer.reserve_exact(MAX_HEADER_BYTES + piece_bytes);
            self.buffer.resize(MAX_HEADER_BYTES, 0);
        }
        let spare = self.buffer.capacity() - self.buffer.len();
        if spare < piece_bytes {
            // Twofold growth, but never beyond the frame: its last growth ends exactly there.
            let double = self.buffer.len().max(MIN_GROWTH_BYTES);
            self.buffer.reserve_exact(piece_bytes + missing_bytes.min(double));
        }
        self.buffer.extend_from_slice(piece);
        Ok(piece_bytes)
    }

    /// What is missing after the last piece.
    fn progress(&mut self) -> Result<Progress, ProtocolError> {
        let Some(frame) = self.frame else {
            return Ok(Progress::MoreFrames);
        };
        if frame.payload_bytes > 0 {
            return Ok(Progress::MoreOfFrame);
        }
        self.frame = None;
        if !frame.fin {
            return Ok(Progress::MoreFrames);
        }
        if self.is_plain_text() && !self.utf8.is_complete() {
            return Err(ProtocolError::TextNotUtf8);
        }
        Ok(Progress::Whole)
    }

    fn into_event(mut self) -> Event {
        if self.deflated {
            self.buffer.drain(..MAX_HEADER_BYTES.min(self.buffer.len()));
            let payload = DeflatedPayload::Gathered(self.buffer);
            return Event::DeflatedMessage { kind: self.kind, payload };
        }
        let payload_bytes = self.payload_bytes();
        self.buffer.resize(MAX_HEADER_BYTES + payload_bytes, 0);
        let head = &mut self.buffer[..MAX_HEADER_BYTES];
        let start = write_header_before(head, self.kind.opcode(), payload_bytes);
        let frame = ServerFrame::Gathered(Bytes::from(self.buffer).slice(start..));
        Event::Message { kind: self.kind, payload_bytes, frame }
    }
}

#[cfg(test)]
mod tests;
