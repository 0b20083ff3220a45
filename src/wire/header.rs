//! The header of a client frame (RFC 6455 section 5.2): 6 to 14 bytes.

use thiserror::Error;

use crate::wire::close::CloseCode;
use crate::wire::deflate::InflateError;

/// Longest payload of a control frame in bytes (RFC 6455 section 5.5).
pub const MAX_CONTROL_PAYLOAD_BYTES: u64 = 125;

/// What a frame carries (RFC 6455 section 5.2). Reserved opcodes have no value here: the decoder
/// answers them with [`ProtocolError::ReservedOpcode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// 0x0: the next fragment of the message that is being sent.
    Continuation,
    /// 0x1: the first fragment of a UTF-8 message.
    Text,
    /// 0x2: the first fragment of a binary message.
    Binary,
    /// 0x8: starts or answers the closing handshake.
    Close,
    /// 0x9: asks for a Pong.
    Ping,
    /// 0xA: answers a Ping, or is sent unasked as a heartbeat.
    Pong,
}

impl Opcode {
    /// The four bits on the wire.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xa,
        }
    }

    /// Close, Ping or Pong: may stand between the fragments of a message.
    pub const fn is_control(self) -> bool {
        self.bits() & 0x8 != 0
    }
}

/// The header of a frame sent by a client, as far as it can be judged without knowing the frames
/// before it.
///
/// The masking key is not an `Option`: a client frame without one is a protocol error
/// (RFC 6455 section 5.1), so it never becomes a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientFrameHeader {
    /// Last frame of its message.
    pub fin: bool,
    /// RSV1 on the first frame of a message: its payload is deflated (RFC 7692 section 6).
    pub deflated: bool,
    /// What the frame carries.
    pub opcode: Opcode,
    /// Length of the payload that follows the header, in bytes. Below 2^63.
    pub payload_bytes: u64,
    /// What the payload is XORed with (section 5.3).
    pub masking_key: [u8; 4],
}

impl ClientFrameHeader {
    /// Longest header of a client frame in bytes.
    pub const MAX_BYTES: usize = 14;

    /// Decodes one header from the front of `input`.
    ///
    /// `input` is the unread part of the receive buffer, oldest byte first; nothing is taken from
    /// it. Returns the header and its own length in bytes (6..=14), or `None` while `input` is too
    /// short to hold it. `deflate`: permessage-deflate was negotiated.
    ///
    /// # Errors
    ///
    /// The rule of RFC 6455 section 5 that the client broke, as soon as the byte that breaks it is
    /// there. It is fatal: send [`ProtocolError::close_code`] and stop reading.
    #[inline]
    pub fn decode(input: &[u8], deflate: bool) -> Result<Option<(Self, usize)>, ProtocolError> {
        let &[first, ref rest @ ..] = input else {
            return Ok(None);
        };
        let deflated = first & 0x70 != 0;
        if deflated {
            check_reserved_bits(first, deflate)?;
        }
        let opcode = match first & 0x0f {
            0x0 => Opcode::Continuation,
            0x1 => Opcode::Text,
            0x2 => Opcode::Binary,
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xa => Opcode::Pong,
            reserved => return Err(ProtocolError::ReservedOpcode(reserved)),
        };
        let fin = first & 0x80 != 0;
        if opcode.is_control() && !fin {
            return Err(ProtocolError::FragmentedControlFrame);
        }
        let &[second, ..] = rest else {
            return Ok(None);
        };
        if second & 0x80 == 0 {
            return Err(ProtocolError::UnmaskedFrame);
        }
        let short_length = u64::from(second & 0x7f);
        if opcode.is_control() && short_length > MAX_CONTROL_PAYLOAD_BYTES {
            return Err(ProtocolError::ControlFrameTooLong);
        }
        let (payload_bytes, mask_start) = match short_length {
            126 => match input.get(2..4) {
                Some(&[high, low]) => (u64::from(u16::from_be_bytes([high, low])), 4),
                _ => return Ok(None),
            },
            127 => match input.get(2..10).and_then(<[u8]>::first_chunk::<8>) {
                Some(bytes) => (u64::from_be_bytes(*bytes), 10),
                None => return Ok(None),
            },
            short => (short, 2),
        };
        match short_length {
            126 if payload_bytes < 126 => return Err(ProtocolError::LengthNotMinimal),
            127 if payload_bytes >> 63 != 0 => return Err(ProtocolError::LengthOverflow),
            127 if payload_bytes <= u64::from(u16::MAX) => {
                return Err(ProtocolError::LengthNotMinimal);
            }
            _ => {}
        }
        let Some(masking_key) = input.get(mask_start..).and_then(<[u8]>::first_chunk::<4>) else {
            return Ok(None);
        };
        let masking_key = *masking_key;
        Ok(Some((Self { fin, deflated, opcode, payload_bytes, masking_key }, mask_start + 4)))
    }
}

/// Refuses reserved bits in the first byte of a frame, of which there are some: only RSV1 has a meaning,
/// where it was negotiated, and only on the first frame of a message (RFC 7692 section 6).
#[cold]
fn check_reserved_bits(first: u8, deflate: bool) -> Result<(), ProtocolError> {
    let is_first_of_message = matches!(first & 0x0f, 0x1 | 0x2);
    match (first & 0x70) >> 4 {
        0b100 if deflate && is_first_of_message => Ok(()),
        bits => Err(ProtocolError::ReservedBits(bits)),
    }
}

/// A rule of RFC 6455, or the bound on a message, that the client broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProtocolError {
    /// One of the bits RSV1 to RSV3 where no extension gives it a meaning (section 5.2).
    #[error("reserved bits {0:#05b} are set where no negotiated extension gives them a meaning")]
    ReservedBits(u8),
    /// Opcodes 0x3..=0x7 and 0xb..=0xf (section 5.2).
    #[error("reserved opcode {0:#x}")]
    ReservedOpcode(u8),
    /// Every client frame is masked (section 5.1).
    #[error("client frame without a masking key")]
    UnmaskedFrame,
    /// A Close, Ping or Pong without FIN (section 5.5).
    #[error("fragmented control frame")]
    FragmentedControlFrame,
    /// A Close, Ping or Pong of more than 125 bytes (section 5.5).
    #[error("control frame of more than 125 bytes")]
    ControlFrameTooLong,
    /// A length that would have fitted into fewer bytes (section 5.2).
    #[error("payload length not in its shortest form")]
    LengthNotMinimal,
    /// A 64-bit length with its highest bit set (section 5.2).
    #[error("payload length of 2^63 bytes or more")]
    LengthOverflow,
    /// A continuation frame while no message is being sent (section 5.4).
    #[error("continuation frame without a message to continue")]
    UnexpectedContinuation,
    /// A new message before the last fragment of the previous one (section 5.4).
    #[error("new message before the end of a fragmented one")]
    InterleavedMessage,
    /// Text that is not UTF-8 (section 8.1).
    #[error("text message that is not UTF-8")]
    TextNotUtf8,
    /// A Close payload holds a whole code or nothing (section 5.5.1).
    #[error("Close payload of one byte")]
    ClosePayloadOfOneByte,
    /// A code that may not travel (section 7.4).
    #[error("close code {0} may not be sent")]
    CloseCode(u16),
    /// A close reason that is not UTF-8 (section 5.5.1).
    #[error("close reason that is not UTF-8")]
    CloseReasonNotUtf8,
    /// A message larger than the operator allows, over all its fragments (section 10.4), and after
    /// inflation.
    #[error("message larger than the limit")]
    MessageTooBig,
    /// A deflated message that cannot be inflated (RFC 7692 section 7.2.2).
    #[error("message that is marked as deflated and is not DEFLATE data")]
    NotDeflated,
}

impl From<InflateError> for ProtocolError {
    fn from(error: InflateError) -> Self {
        match error {
            InflateError::TooBig => Self::MessageTooBig,
            InflateError::Corrupt => Self::NotDeflated,
        }
    }
}

impl ProtocolError {
    /// Every value of [`ProtocolError::kind`], for whoever keeps a count of each.
    pub const KINDS: [&str; 15] = [
        "reserved_bits",
        "reserved_opcode",
        "unmasked_frame",
        "fragmented_control_frame",
        "control_frame_too_long",
        "length_not_minimal",
        "length_overflow",
        "unexpected_continuation",
        "interleaved_message",
        "text_not_utf8",
        "close_payload_of_one_byte",
        "close_code",
        "close_reason_not_utf8",
        "message_too_big",
        "not_deflated",
    ];

    /// Position of this error's kind in [`ProtocolError::KINDS`].
    pub const fn kind(self) -> usize {
        match self {
            Self::ReservedBits(_) => 0,
            Self::ReservedOpcode(_) => 1,
            Self::UnmaskedFrame => 2,
            Self::FragmentedControlFrame => 3,
            Self::ControlFrameTooLong => 4,
            Self::LengthNotMinimal => 5,
            Self::LengthOverflow => 6,
            Self::UnexpectedContinuation => 7,
            Self::InterleavedMessage => 8,
            Self::TextNotUtf8 => 9,
            Self::ClosePayloadOfOneByte => 10,
            Self::CloseCode(_) => 11,
            Self::CloseReasonNotUtf8 => 12,
            Self::MessageTooBig => 13,
            Self::NotDeflated => 14,
        }
    }

    /// The code to close the connection with.
    pub const fn close_code(self) -> CloseCode {
        match self {
            Self::TextNotUtf8 | Self::CloseReasonNotUtf8 | Self::NotDeflated => {
                CloseCode::INVALID_PAYLOAD
            }
            Self::MessageTooBig => CloseCode::MESSAGE_TOO_BIG,
            Self::ReservedBits(_)
            | Self::ReservedOpcode(_)
            | Self::UnmaskedFrame
            | Self::FragmentedControlFrame
            | Self::ControlFrameTooLong
            | Self::LengthNotMinimal
            | Self::LengthOverflow
            | Self::UnexpectedContinuation
            | Self::InterleavedMessage
            | Self::ClosePayloadOfOneByte
            | Self::CloseCode(_) => CloseCode::PROTOCOL_ERROR,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_split_at_any_byte_waits_for_the_rest() {
        let whole = [0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4];
        for split in 0..whole.len() {
            assert_eq!(
                ClientFrameHeader::decode(&whole[..split], false),
                Ok(None),
                "split at {split}"
            );
        }
        let (header, header_bytes) = ClientFrameHeader::decode(&whole, false).unwrap().unwrap();
        assert_eq!((header.payload_bytes, header_bytes), (65_536, 14));
    }

    #[test]
    fn each_broken_rule_of_the_header_is_found_at_the_byte_that_breaks_it() {
        let cases: [(&[u8], ProtocolError); 13] = [
            (&[0xc1], ProtocolError::ReservedBits(0b100)),
            (&[0x91], ProtocolError::ReservedBits(0b001)),
            (&[0x83], ProtocolError::ReservedOpcode(3)),
            (&[0x8f], ProtocolError::ReservedOpcode(15)),
            (&[0x09], ProtocolError::FragmentedControlFrame),
            (&[0x81, 0x02], ProtocolError::UnmaskedFrame),
            (&[0x89, 0xfe], ProtocolError::ControlFrameTooLong),
            (&[0x88, 0xff], ProtocolError::ControlFrameTooLong),
            (&[0x82, 0xfe, 0, 125], ProtocolError::LengthNotMinimal),
            (&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff], ProtocolError::LengthNotMinimal),
            (&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0, 1], ProtocolError::LengthNotMinimal),
            (&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], ProtocolError::LengthOverflow),
            (
                &[0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
                ProtocolError::LengthOverflow,
            ),
        ];
        for (input, error) in cases {
            assert_eq!(ClientFrameHeader::decode(input, false), Err(error), "{input:x?}");
            assert_eq!(
                ClientFrameHeader::decode(&input[..input.len() - 1], false),
                Ok(None),
                "one byte less than {input:x?} breaks no rule yet"
            );
        }
    }

    #[test]
    fn rsv1_means_deflated_on_the_first_frame_of_a_message_where_that_was_negotiated() {
        for first in 0..=255 {
            let decoded = ClientFrameHeader::decode(&[first, 0x80, 1, 2, 3, 4], true);
            let plain = ClientFrameHeader::decode(&[first & 0x8f, 0x80, 1, 2, 3, 4], false);
            match (first & 0x70) >> 4 {
                0 => assert_eq!(decoded, plain),
                0b100 if matches!(first & 0xf, 1 | 2) => {
                    let (mut header, header_bytes) = decoded.unwrap().unwrap();
                    assert!(std::mem::replace(&mut header.deflated, false));
                    assert_eq!(Ok(Some((header, header_bytes))), plain);
                }
                bits => assert_eq!(decoded, Err(ProtocolError::ReservedBits(bits))),
            }
        }
    }

    #[test]
    fn kinds_are_named_once_each() {
        let mut names = ProtocolError::KINDS.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ProtocolError::KINDS.len());
        assert_eq!(ProtocolError::KINDS[ProtocolError::MessageTooBig.kind()], "message_too_big");
        assert_eq!(ProtocolError::KINDS[ProtocolError::NotDeflated.kind()], "not_deflated");
    }
}
