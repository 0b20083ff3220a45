//! Server frames (RFC 6455 section 5.2): never masked, never fragmented by this gateway.
//!
//! A server frame is the same bytes for whoever gets it, so it is encoded once and shared.

use bytes::Bytes;

use crate::wire::close::{CloseCode, truncate_reason};
use crate::wire::header::Opcode;

/// Longest header of a server frame in bytes.
pub const MAX_HEADER_BYTES: usize = 10;

/// What a data message is (RFC 6455 section 5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// UTF-8.
    Text,
    /// Any bytes.
    Binary,
}

impl MessageKind {
    /// The opcode of its first frame.
    pub const fn opcode(self) -> Opcode {
        match self {
            Self::Text => Opcode::Text,
            Self::Binary => Opcode::Binary,
        }
    }
}

/// How many bytes the header of a server frame takes: 2, 4 or 10.
#[inline]
pub const fn header_bytes(payload_bytes: usize) -> usize {
    match payload_bytes {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => MAX_HEADER_BYTES,
    }
}

/// Writes the header of an unfragmented server frame so that it ends at the end of `space`, which
/// has at least [`header_bytes`] of them. Returns where in `space` the header starts.
#[inline]
pub fn write_header_before(space: &mut [u8], opcode: Opcode, payload_bytes: usize) -> usize {
    let start = space.len() - header_bytes(payload_bytes);
    let header = &mut space[start..];
    header[0] = 0x80 | opcode.bits();
    match header {
        [_, length] => *length = payload_bytes as u8,
        [_, length, high, low] => {
            *length = 126;
            [*high, *low] = (payload_bytes as u16).to_be_bytes();
        }
        [_, length, extended @ ..] => {
            *length = 127;
            extended.copy_from_slice(&(payload_bytes as u64).to_be_bytes());
        }
        [] | [_] => unreachable!("a header has 2, 4 or 10 bytes"),
    }
    start
}

/// Appends one whole frame to `output`.
pub fn append(output: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    output.reserve(header_bytes(payload.len()) + payload.len());
    let first = 0x80 | opcode.bits();
    // Arrays whose length the compiler knows: half the time of copying a part of a scratch header.
    match payload.len() {
        length @ 0..=125 => output.extend_from_slice(&[first, length as u8]),
        length @ 126..=0xffff => {
            let [high, low] = (length as u16).to_be_bytes();
            output.extend_from_slice(&[first, 126, high, low]);
        }
        length => {
            output.extend_from_slice(&[first, 127]);
            output.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    output.extend_from_slice(payload);
}

/// One whole frame.
pub fn encode(opcode: Opcode, payload: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(header_bytes(payload.len()) + payload.len());
    append(&mut frame, opcode, payload);
    frame.into()
}

/// A Close frame. A reason too long for a control frame is cut between two characters.
pub fn encode_close(code: Option<CloseCode>, reason: &str) -> Bytes {
    match code {
        None => Bytes::from_static(&[0x88, 0x00]),
        Some(code) => {
            let mut payload = code.as_u16().to_be_bytes().to_vec();
            payload.extend_from_slice(truncate_reason(reason).as_bytes());
            encode(Opcode::Close, &payload)
        }
    }
}

/// Length in bytes of the frame, header included, at the front of `frames`, which starts with a
/// whole server frame that this module encoded.
pub fn first_frame_bytes(frames: &[u8]) -> usize {
    let (payload_bytes, header_bytes) = match frames[1] {
        126 => (usize::from(u16::from_be_bytes([frames[2], frames[3]])), 4),
        127 => {
            let length = frames[2..10].try_into().expect("a slice of eight bytes");
            (u64::from_be_bytes(length) as usize, MAX_HEADER_BYTES)
        }
        short => (usize::from(short), 2),
    };
    header_bytes + payload_bytes
}

/// The kind and the payload of `message`, one whole data message that this module encoded.
pub fn open(message: &[u8]) -> (MessageKind, &[u8]) {
    let kind = match message[0] & 0xf {
        0x1 => MessageKind::Text,
        _ => MessageKind::Binary,
    };
    let header_bytes = match message[1] {
        126 => 4,
        127 => MAX_HEADER_BYTES,
        _ => 2,
    };
    (kind, &message[header_bytes..])
}

/// The first end of a frame in `frames`, which holds whole ones, that is not before `position`.
pub fn boundary_from(frames: &[u8], position: usize) -> usize {
    let mut boundary = 0;
    while boundary < position {
        boundary += first_frame_bytes(&frames[boundary..]);
    }
    boundary
}

/// How many data messages `frames` holds, which are whole frames. Control frames do not count.
pub fn count_messages(mut frames: &[u8]) -> usize {
    let mut count = 0;
    while !frames.is_empty() {
        count += usize::from(is_message(frames));
        frames = &frames[first_frame_bytes(frames)..];
    }
    count
}

/// Hands each frame of `frames`, which are whole ones, to `take`.
pub fn for_each(mut frames: &[u8], mut take: impl FnMut(&[u8])) {
    while !frames.is_empty() {
        let (first, rest) = frames.split_at(first_frame_bytes(frames));
        take(first);
        frames = rest;
    }
}

/// Whether the frame at the front of `frames` is a data message, not a control frame.
pub fn is_message(frames: &[u8]) -> bool {
    frames[0] & 0x8 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_takes_the_shortest_form_at_each_boundary() {
        for (payload_bytes, expected) in
            [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10), (1 << 20, 10)]
        {
            let frame = encode(Opcode::Binary, &vec![7; payload_bytes]);
            assert_eq!(frame.len(), expected + payload_bytes);
            assert_eq!(first_frame_bytes(&frame), frame.len());
            assert_eq!(frame[0], 0x82);
            assert_eq!(open(&frame), (MessageKind::Binary, &vec![7; payload_bytes][..]));
        }
    }

    #[test]
    fn header_written_before_a_payload_is_the_one_that_is_appended() {
        for payload_bytes in [0, 125, 126, 65_535, 65_536] {
            let mut space = [0; MAX_HEADER_BYTES + 4];
            let start = write_header_before(&mut space, Opcode::Text, payload_bytes);
            let frame = encode(Opcode::Text, &vec![b'x'; payload_bytes]);
            assert_eq!(space[start..], frame[..frame.len() - payload_bytes]);
        }
    }

    #[test]
    fn frames_that_lie_together_are_counted_one_by_one() {
        let mut frames = Vec::new();
        for payload_bytes in [0, 1, 125, 126, 70_000] {
            append(&mut frames, Opcode::Text, &vec![b'x'; payload_bytes]);
        }
        append(&mut frames, Opcode::Pong, b"not a message");
        assert_eq!(count_messages(&frames), 5);
        assert_eq!(count_messages(&[]), 0);
    }

    #[test]
    fn boundary_is_the_next_end_of_a_frame_or_the_position_itself() {
        let frames = [encode(Opcode::Text, b"abc"), encode(Opcode::Text, b"")].concat();
        let boundaries: Vec<usize> = (0..=7).map(|at| boundary_from(&frames, at)).collect();
        assert_eq!(boundaries, [0, 5, 5, 5, 5, 5, 7, 7]);
    }

    #[test]
    fn close_frame_holds_code_and_reason() {
        assert_eq!(encode_close(Some(CloseCode::GOING_AWAY), "bye"), &b"\x88\x05\x03\xe9bye"[..]);
        assert_eq!(encode_close(None, "a reason needs a code"), &b"\x88\x00"[..]);
    }
}
