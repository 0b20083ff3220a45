//! What must hold for any bytes whatever: written once, for the fuzz targets under `fuzz/` and for
//! `tests/fuzz_corpus.rs`.
//!
//! - [`decoder`]: frames mean the same in whichever pieces they arrive, and cost no more memory than
//!   arrived.
//! - [`target`]: a URL is refused or understood, and understood the same when it is said again.
//!
//! Each takes the bytes that a fuzzer made up and panics when the property does not hold.

#![allow(dead_code, reason = "each fuzz target is a crate of its own and uses a part of this")]

use wsgate::protocol::target::{Endpoint, Target};
use wsgate::pubsub::ChannelName;
use wsgate::wire::decoder::{Decoder, Event, MAX_KEPT_BYTES, Rules, ServerFrame};
use wsgate::wire::frame::{self, MAX_HEADER_BYTES, MessageKind};
use wsgate::wire::header::{Opcode, ProtocolError};

/// The limits on a message that an input can choose from: around the lengths at which the form of a
/// header changes, so that announced lengths fall on both sides.
const MAX_MESSAGE_BYTES: [usize; 4] = [125, 1_000, 65_535, 100_000];

/// The decoder may double its buffer, and grows by this much at least.
const MIN_GROWTH_BYTES: usize = 256;

/// Checks the decoder with one input: `[limit, n, n lengths less one, what a client sends]`.
///
/// `limit` chooses from [`MAX_MESSAGE_BYTES`]; the lengths (1 to 256 bytes each) are those of the
/// pieces, over and over until all has arrived. Whole, in these pieces and byte by byte, the bytes
/// must mean the same.
pub(crate) fn decoder(data: &[u8]) {
    let &[limit, count, ref rest @ ..] = data else {
        return;
    };
    let max_message_bytes = MAX_MESSAGE_BYTES[usize::from(limit) % MAX_MESSAGE_BYTES.len()];
    let (lengths, sent) = rest.split_at(rest.len().min(count.into()));
    let whole = decode_pieces([sent], max_message_bytes);
    let in_pieces = decode_pieces(cut(sent, lengths), max_message_bytes);
    assert_eq!(in_pieces, whole, "in pieces and whole");
    let byte_by_byte = decode_pieces(sent.chunks(1), max_message_bytes);
    assert_eq!(byte_by_byte, whole, "byte by byte and whole");
}

/// Cuts `sent` into pieces of `lengths` plus one, starting over when they are used up.
fn cut<'a>(mut sent: &'a [u8], lengths: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut lengths = lengths.iter().cycle();
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

/// What a client said, without the place it lay in.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Message(MessageKind, Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
}

/// Feeds `pieces` to a decoder as a connection feeds the reads of its socket: up to a Close or the
/// first error, which comes back beside what was said before.
fn decode_pieces<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    max_message_bytes: usize,
) -> (Vec<Said>, Option<ProtocolError>) {
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
            let decoded = match decoder
                .decode(&mut buffer[at..], Rules { max_message_bytes, deflate: false })
            {
                Ok(decoded) => decoded,
                Err(error) => return (said, Some(error)),
            };
            let input = &buffer[at..];
            assert!(decoded.consumed <= input.len(), "consumed more than there was");
            at += decoded.consumed;
            let Some(event) = decoded.event else {
                break;
            };
            if matches!(event, Event::Message { .. }) {
                arrived_bytes = buffer.len() - at;
            }
            let event = understand(event, input, max_message_bytes);
            let is_close = matches!(event, Said::Close(_));
            said.push(event);
            if is_close {
                return (said, None);
            }
        }
        assert!(buffer.len() - at <= MAX_KEPT_BYTES, "more left unread than may be kept");
        decoder.keep(&buffer[at..]);
        assert_memory(&decoder, arrived_bytes, max_message_bytes);
    }
    (said, None)
}

/// Takes an event out of its `input`, and checks that what would be sent on is one whole server frame.
fn understand(event: Event, input: &[u8], max_message_bytes: usize) -> Said {
    match event {
        Event::Message { kind, payload_bytes, frame } => {
            let frame = match &frame {
                ServerFrame::InPlace(range) => &input[range.clone()],
                ServerFrame::Gathered(bytes) => bytes,
            };
            let payload = &frame[frame.len() - payload_bytes..];
            assert_eq!(frame, frame::encode(kind.opcode(), payload), "one whole server frame");
            assert_eq!(frame::first_frame_bytes(frame), frame.len());
            assert!(payload_bytes <= max_message_bytes, "a message above the limit");
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
        Event::DeflatedMessage { .. } => panic!("deflated, and that was not negotiated"),
        Event::Pong => Said::Pong,
        Event::Close(code) => Said::Close(code.map(|code| code.as_u16())),
    }
}

/// Memory follows what has arrived, never what a header announced: at most twice of it, since a
/// buffer grows by doubling, and at most one message.
fn assert_memory(decoder: &Decoder, arrived_bytes: usize, max_message_bytes: usize) {
    let held_bytes = decoder.held_bytes();
    let used_bytes = arrived_bytes + MAX_HEADER_BYTES;
    assert!(
        held_bytes <= used_bytes + used_bytes.max(MIN_GROWTH_BYTES),
        "{held_bytes} bytes held after {arrived_bytes} arrived"
    );
    assert!(
        held_bytes <= max_message_bytes + MAX_HEADER_BYTES + MAX_KEPT_BYTES,
        "{held_bytes} bytes held for a message of at most {max_message_bytes}"
    );
}

/// Checks [`Target::parse`] with one input: a path and, behind the first `?`, a query.
pub(crate) fn target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (path, query) = match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text, None),
    };
    match Target::parse(path, query) {
        // The text goes back to whoever sent the request, however long that was.
        Err(error) => assert!(error.to_string().len() < 256, "{error}"),
        Ok(target) => {
            let (path, query) = spell(&target);
            assert_eq!(Target::parse(&path, Some(&query)), Ok(target), "{path}?{query}");
        }
    }
}

/// A path and query that mean `target`, with every byte of a channel name percent-encoded.
fn spell(target: &Target) -> (String, String) {
    let hello = target.hello;
    match &target.endpoint {
        Endpoint::Echo => ("/echo".to_owned(), format!("hello={hello}")),
        Endpoint::Channel { name, own } => {
            let also: String =
                target.also.iter().map(|name| format!("&also={}", encoded(name))).collect();
            (format!("/channels/{}", encoded(name)), format!("hello={hello}&own={own}{also}"))
        }
    }
}

fn encoded(name: &ChannelName) -> String {
    name.as_str().bytes().map(|byte| format!("%{byte:02x}")).collect()
}
