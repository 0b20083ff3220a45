//! Frames as a client writes and reads them (RFC 6455 section 5).

use thiserror::Error;

/// Every frame has this masking key. A client that has something to hide takes a new one each time; a
/// load test has to cost little, and a server cannot tell.
const KEY: [u8; 4] = [0x5a, 0xc3, 0x17, 0x8e];

/// What a frame is for.
pub(crate) mod opcode {
    pub(crate) const CONTINUATION: u8 = 0;
    pub(crate) const TEXT: u8 = 1;
    pub(crate) const BINARY: u8 = 2;
    pub(crate) const CLOSE: u8 = 8;
    pub(crate) const PING: u8 = 9;
    pub(crate) const PONG: u8 = 10;
}

/// The server broke the protocol.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum FrameError {
    /// A reserved bit that no extension has a use for.
    #[error("a reserved bit is set")]
    ReservedBit,
    /// An opcode that RFC 6455 does not have.
    #[error("unknown opcode")]
    Opcode,
    /// The frame has a mask where it should have none, or has none where it should.
    #[error("wrong mask bit")]
    Mask,
    /// A length beyond what this client takes.
    #[error("frame too large")]
    TooLarge,
}

/// One whole frame in a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) opcode: u8,
    pub(crate) is_final: bool,
    /// RSV1, by which permessage-deflate marks the first frame of a compressed message (RFC 7692
    /// section 6); for who has agreed to it.
    pub(crate) is_compressed: bool,
    /// As it lies in the buffer: masked if the dialect is.
    pub(crate) payload: &'a [u8],
    /// Of the frame with its header.
    pub(crate) bytes: usize,
}

/// A frame larger than this is refused, in bytes.
pub(crate) const MAX_PAYLOAD_BYTES: u64 = 1 << 30;

/// Reads the frame at the front of `input`; `None` while a part of it is missing.
#[inline]
pub(crate) fn decode(input: &[u8], is_masked: bool) -> Result<Option<Frame<'_>>, FrameError> {
    let [first, second, rest @ ..] = input else {
        return Ok(None);
    };
    let opcode = first & 0x0f;
    let is_compressed = first & 0x40 != 0;
    if first & 0x30 != 0 || (is_compressed && !matches!(opcode, opcode::TEXT | opcode::BINARY)) {
        return Err(FrameError::ReservedBit);
    }
    if !matches!(opcode, 0..=2 | 8..=10) {
        return Err(FrameError::Opcode);
    }
    if (second & 0x80 != 0) != is_masked {
        return Err(FrameError::Mask);
    }
    let (length, mut header) = match (second & 0x7f, rest) {
        (126, [a, b, ..]) => (u64::from(u16::from_be_bytes([*a, *b])), 4),
        (127, [a, b, c, d, e, f, g, h, ..]) => {
            (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), 10)
        }
        (126 | 127, _) => return Ok(None),
        (short, _) => (u64::from(short), 2),
    };
    if length > MAX_PAYLOAD_BYTES {
        return Err(FrameError::TooLarge);
    }
    if is_masked {
        header += 4;
    }
    let bytes = header + length as usize;
    let payload = input.get(header..bytes);
    let is_final = first & 0x80 != 0;
    Ok(payload.map(|payload| Frame { opcode, is_final, is_compressed, payload, bytes }))
}

/// Appends one masked frame.
pub(crate) fn encode(opcode: u8, payload: &[u8], output: &mut Vec<u8>) {
    output.push(0x80 | opcode);
    match payload.len() {
        short @ 0..=125 => output.push(0x80 | short as u8),
        medium @ 126..=0xffff => {
            output.push(0x80 | 126);
            output.extend((medium as u16).to_be_bytes());
        }
        long => {
            output.push(0x80 | 127);
            output.extend((long as u64).to_be_bytes());
        }
    }
    output.extend(KEY);
    let start = output.len();
    output.extend_from_slice(payload);
    mask(&mut output[start..]);
}

/// Masks from the payload's first byte on, or takes the mask off again.
pub(crate) fn mask(payload: &mut [u8]) {
    for (byte, key) in payload.iter_mut().zip(KEY.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_is_read_once_it_is_whole_and_not_before() {
        for size in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![b'x'; size];
            let mut bytes = Vec::new();
            encode(opcode::TEXT, &payload, &mut bytes);
            for split in (0..bytes.len()).step_by(1 + bytes.len() / 300) {
                assert_eq!(decode(&bytes[..split], true), Ok(None));
            }
            let mut masked = payload.clone();
            mask(&mut masked);
            let frame = decode(&bytes, true).unwrap().unwrap();
            assert_eq!((frame.opcode, frame.is_final), (opcode::TEXT, true));
            assert_eq!((frame.payload, frame.bytes), (&masked[..], bytes.len()));
        }
    }

    #[test]
    fn what_breaks_the_protocol_is_refused() {
        for reserved in [0xa1, 0x91, 0xc0, 0xc9] {
            assert_eq!(decode(&[reserved, 0], false), Err(FrameError::ReservedBit), "{reserved:x}");
        }
        assert!(decode(&[0xc1, 0], false).unwrap().unwrap().is_compressed);
        assert_eq!(decode(&[0x83, 0], false), Err(FrameError::Opcode));
        assert_eq!(decode(&[0x81, 0x80], false), Err(FrameError::Mask));
        assert_eq!(decode(&[0x81, 0], true), Err(FrameError::Mask));
        let huge = [0x81, 127, 0x7f, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(decode(&huge, false), Err(FrameError::TooLarge));
    }
}
