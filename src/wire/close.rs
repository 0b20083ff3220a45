//! Close codes and the payload of a Close frame (RFC 6455 sections 5.5.1 and 7.4).

use crate::wire::header::ProtocolError;

/// Why a connection is being closed: the status code of a Close frame (RFC 6455 section 7.4).
///
/// Only codes that may travel on the wire can be constructed. The reserved 1005, 1006 and 1015 are
/// what an endpoint reports when *no* code travelled, so they are `None` of an
/// `Option<CloseCode>`, never a value of this type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseCode(u16);

impl CloseCode {
    /// 1000: the purpose of the connection has been fulfilled.
    pub const NORMAL: Self = Self(1000);
    /// 1001: the endpoint is going away; this gateway sends it while draining and to idle peers.
    pub const GOING_AWAY: Self = Self(1001);
    /// 1002: the peer broke the framing rules.
    pub const PROTOCOL_ERROR: Self = Self(1002);
    /// 1003: the peer sent a kind of data that this endpoint cannot take.
    pub const UNSUPPORTED_DATA: Self = Self(1003);
    /// 1007: a text message or a close reason is not UTF-8.
    pub const INVALID_PAYLOAD: Self = Self(1007);
    /// 1008: the peer broke a rule of ours that has no code of its own, such as reading too slowly.
    pub const POLICY_VIOLATION: Self = Self(1008);
    /// 1009: a message is larger than this endpoint takes.
    pub const MESSAGE_TOO_BIG: Self = Self(1009);
    /// 1011: a bug on our side.
    pub const INTERNAL_ERROR: Self = Self(1011);
    /// 1013: overloaded; the peer may come back later.
    pub const TRY_AGAIN_LATER: Self = Self(1013);

    /// Reads a code received from a peer or asked for by a caller. `None` if RFC 6455 section 7.4
    /// and the IANA registry keep it off the wire.
    pub const fn from_wire(code: u16) -> Option<Self> {
        match code {
            1000..=1003 | 1007..=1014 | 3000..=4999 => Some(Self(code)),
            _ => None,
        }
    }

    /// The code as it is written on the wire.
    pub const fn as_u16(self) -> u16 {
        self.0
    }
}

/// Longest reason of a Close frame in bytes: a control payload of 125 less the code.
pub const MAX_REASON_BYTES: usize = 123;

/// The code that a Close payload carries; `None` for an empty payload, which is legal.
///
/// # Errors
///
/// One byte alone, a code that may not travel, or a reason that is not UTF-8 (RFC 6455
/// section 5.5.1).
pub fn parse_payload(payload: &[u8]) -> Result<Option<CloseCode>, ProtocolError> {
    match payload {
        [] => Ok(None),
        [_] => Err(ProtocolError::ClosePayloadOfOneByte),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            let code = CloseCode::from_wire(code).ok_or(ProtocolError::CloseCode(code))?;
            match std::str::from_utf8(reason) {
                Ok(_) => Ok(Some(code)),
                Err(_) => Err(ProtocolError::CloseReasonNotUtf8),
            }
        }
    }
}

/// The longest prefix of `reason` that fits into a Close frame without cutting a character.
pub fn truncate_reason(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(MAX_REASON_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_reserved_for_local_use_are_refused_from_the_wire() {
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, u16::MAX] {
            assert_eq!(CloseCode::from_wire(code), None, "code {code}");
        }
    }

    #[test]
    fn close_without_a_payload_has_no_code_and_is_legal() {
        assert_eq!(parse_payload(&[]), Ok(None));
    }

    #[test]
    fn close_payload_is_refused_for_half_a_code_a_reserved_code_and_a_broken_reason() {
        assert_eq!(parse_payload(&[3]), Err(ProtocolError::ClosePayloadOfOneByte));
        assert_eq!(parse_payload(&1005u16.to_be_bytes()), Err(ProtocolError::CloseCode(1005)));
        assert_eq!(parse_payload(&[0x03, 0xe8, 0xff]), Err(ProtocolError::CloseReasonNotUtf8));
    }

    #[test]
    fn reason_is_cut_between_characters() {
        let long = "é".repeat(100);
        let cut = truncate_reason(&long);
        assert_eq!(cut.len(), 122);
        assert_eq!(truncate_reason("short"), "short");
    }
}
