//! What a client's bytes mean to the decoder, in whichever pieces they arrive.

use wsgate::wire::decoder::{Decoder, DeflatedPayload, Event, MAX_KEPT_BYTES, Rules, ServerFrame};
use wsgate::wire::deflate::max_deflated_bytes;
use wsgate::wire::frame::{self, MAX_HEADER_BYTES, MessageKind};
use wsgate::wire::header::{Opcode, ProtocolError};

use super::input::Input;

/// The limits on a message that an input can choose from: around the lengths at which the form of a
/// header changes, so that announced lengths fall on both sides.
const MAX_MESSAGE_BYTES: [usize; 4] = [125, 1_000, 65_535, 100_000];

/// The decoder may double its buffer, and grows by this much at least.
const MIN_GROWTH_BYTES: usize = 256;

/// On the first byte of an input: permessage-deflate was negotiated.
const DEFLATE: u8 = 0x80;

/// How the bytes of a client arrive: the front of an input, `[limit, n, n lengths less one]`.
pub(super) struct Arrival<'a> {
    pub(super) rules: Rules,
    /// The lengths (1 to 256 bytes each, less one) are those of the pieces, over and over until all
    /// has arrived.
    lengths: &'a [u8],
}

impl<'a> Arrival<'a> {
    pub(super) fn take(input: &mut Input<'a>) -> Self {
        let first = input.byte();
        let max_message_bytes = MAX_MESSAGE_BYTES[usize::from(first) % MAX_MESSAGE_BYTES.len()];
        let rules = Rules { max_message_bytes, deflate: first & DEFLATE != 0 };
        let count = input.byte();
        Self { rules, lengths: input.bytes(count.into()) }
    }

    /// What `sent` means, which is the same whole, in the pieces and byte by byte.
    pub(super) fn decode(&self, sent: &[u8]) -> Meaning {
        let whole = decode_pieces([sent], self.rules);
        let in_pieces = decode_pieces(self.cut(sent), self.rules);
        assert_eq!(in_pieces, whole, "in pieces and whole");
        let byte_by_byte = decode_pieces(sent.chunks(1), self.rules);
        assert_eq!(byte_by_byte, whole, "byte by byte and whole");
        whole
    }

    fn cut(&self, mut sent: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let mut lengths = self.lengths.iter().cycle();
        std::iter::from_fn(move || {
            if sent.is_empty() {
                return None;
            }
            let piece_bytes = lengths.next().map_or(sent.len(), |length| usize::from(*length) + 1);
            let (piece, rest) = sent.split_at(piece_bytes.min(sent.len()));
            sent = rest;
            Some(piece)
        })
    }
}

/// What a client said, without the place it lay in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Message(MessageKind, Vec<u8>),
    /// Its payload is deflated.
    Deflated(MessageKind, Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
}

/// All that a client said, up to a Close or the first rule that it broke.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Meaning {
    pub(super) said: Vec<Said>,
    pub(super) violation: Option<ProtocolError>,
}

/// Feeds `pieces` to a decoder as a connection feeds the reads of its socket: up to a Close or the
/// first violation.
fn decode_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, rules: Rules) -> Meaning {
    let mut decoder = Decoder::default();
    let mut said = Vec::new();
    // Bytes since the end of the last message: only they may occupy memory.
    let mut arrived_bytes = 0;
    for piece in pieces {
        let kept_bytes = decoder.kept_bytes();
        let mut buffer = vec![0; kept_bytes];
        decoder.restore(&mut buffer);
        buffer.extend_from_slice(piece);
        arrived_bytes += piece.len();
        let mut at = 0;
        loop {
            let decoded = match decoder.decode(&mut buffer[at..], rules) {
                Ok(decoded) => decoded,
                Err(error) => return Meaning { said, violation: Some(error) },
            };
            let input = &buffer[at..];
            assert!(decoded.consumed <= input.len(), "consumed more than there was");
            at += decoded.consumed;
            let Some(event) = decoded.event else {
                break;
            };
            if matches!(event, Event::Message { .. } | Event::DeflatedMessage { .. }) {
                arrived_bytes = buffer.len() - at;
            }
            let event = understand(event, input, rules);
            let is_close = matches!(event, Said::Close(_));
            said.push(event);
            if is_close {
                return Meaning { said, violation: None };
            }
        }
        assert!(buffer.len() - at <= MAX_KEPT_BYTES, "more left unread than may be kept");
        decoder.keep(&buffer[at..]);
        assert_memory(&decoder, arrived_bytes, rules);
    }
    Meaning { said, violation: None }
}

/// Takes an event out of its `input`, and checks that what would be sent on is one whole server frame.
fn understand(event: Event, input: &[u8], rules: Rules) -> Said {
    match event {
        Event::Message { kind, payload_bytes, frame } => {
            let frame = match &frame {
                ServerFrame::InPlace(range) => &input[range.clone()],
                ServerFrame::Gathered(bytes) => bytes,
            };
            let payload = &frame[frame.len() - payload_bytes..];
            assert_eq!(frame, frame::encode(kind.opcode(), payload), "one whole server frame");
            assert_eq!(frame::first_frame_bytes(frame), frame.len());
            assert!(payload_bytes <= rules.max_message_bytes, "a message above the limit");
            assert!(
                kind == MessageKind::Binary || std::str::from_utf8(payload).is_ok(),
                "text that is not UTF-8"
            );
            Said::Message(kind, payload.to_vec())
        }
        Event::Ping { pong } => {
            let payload = &input[pong.start + 2..pong.end];
            assert_eq!(input[pong.clone()], frame::encode(Opcode::Pong, payload), "a whole Pong");
            Said::Ping(payload.to_vec())
        }
        Event::DeflatedMessage { kind, payload } => {
            let payload = match payload {
                DeflatedPayload::InPlace(range) => input[range].to_vec(),
                DeflatedPayload::Gathered(payload) => payload,
            };
            assert!(rules.deflate, "deflated, and that was not negotiated");
            let most = max_deflated_bytes(rules.max_message_bytes);
            assert!(payload.len() <= most, "more than a message of the limit can need");
            Said::Deflated(kind, payload)
        }
        Event::Pong => Said::Pong,
        Event::Close(code) => Said::Close(code.map(|code| code.as_u16())),
    }
}

/// Memory follows what has arrived, never what a header announced: at most twice of it, since a
/// buffer grows by doubling, and at most one message.
fn assert_memory(decoder: &Decoder, arrived_bytes: usize, rules: Rules) {
    let most = match rules.deflate {
        true => max_deflated_bytes(rules.max_message_bytes),
        false => rules.max_message_bytes,
    };
    let held_bytes = decoder.held_bytes();
    let used_bytes = arrived_bytes + MAX_HEADER_BYTES;
    assert!(
        held_bytes <= used_bytes + used_bytes.max(MIN_GROWTH_BYTES),
        "{held_bytes} bytes held after {arrived_bytes} arrived"
    );
    assert!(
        held_bytes <= most + MAX_HEADER_BYTES + MAX_KEPT_BYTES,
        "{held_bytes} bytes held for a message of at most {most}"
    );
}
