//! Any bytes at all, and what another implementation makes of them.

use wsgate::wire::header::ProtocolError;

use super::frames::{Arrival, Meaning, Said};
use super::input::Input;
use super::reference::{self, End};

/// Checks the decoder with one input: `[limit, n, n lengths of pieces, what a client sends]`.
///
/// The bytes mean the same in whichever pieces they arrive, and what tungstenite says they mean.
/// With `0x80` on the limit they may be deflated messages.
pub fn decoder(data: &[u8]) {
    let mut input = Input::new(data);
    let arrival = Arrival::take(&mut input);
    let sent = input.rest();
    let meaning = arrival.decode(sent);
    // It knows no extension.
    if !arrival.rules.deflate {
        agrees_with_tungstenite(meaning, sent, arrival.rules.max_message_bytes);
    }
}

fn agrees_with_tungstenite(ours: Meaning, sent: &[u8], max_message_bytes: usize) {
    let mut sent = sent.to_vec();
    if ours.violation.is_some() {
        // It judges a frame once that is whole. Nothing behind a violation has a meaning.
        sent.resize(sent.len() + reference::LONGEST_HEADER_BYTES + max_message_bytes, 0);
    }
    let (theirs, end) = reference::read(&sent, max_message_bytes);
    let mut said = ours.said;
    let Some(violation) = ours.violation else {
        if let Some(Said::Close(Some(code @ 1014))) = said.last_mut() {
            // Registered after tungstenite's list was made.
            *code = reference::CODE_FOR_ONE_THAT_MAY_NOT_TRAVEL;
        }
        assert_eq!((theirs, end), (said, End::OfInput), "tungstenite and ours");
        return;
    };
    let code = violation.close_code().as_u16();
    match violation {
        // It takes a length in any form, so what it makes of the rest is not defined.
        ProtocolError::LengthNotMinimal | ProtocolError::LengthOverflow => {
            assert!(theirs.starts_with(&said), "tungstenite {theirs:?} and ours {said:?}");
        }
        // A length of more bytes than it needs says that a control frame is too long, whichever it is;
        // tungstenite takes it, and then judges what the frame holds.
        ProtocolError::ControlFrameTooLong => {
            assert!(theirs.starts_with(&said), "tungstenite {theirs:?} and ours {said:?}");
            match theirs.get(said.len()) {
                Some(Said::Ping(_) | Said::Pong | Said::Close(_)) => {}
                Some(other) => panic!("tungstenite reads {other:?} where a control frame is"),
                None => assert!(matches!(end, End::Violation(_)), "tungstenite takes it"),
            }
        }
        // It hands such a Close on, with the code that is to be answered; but looks at the reason
        // first, which can be wrong as well.
        ProtocolError::CloseCode(_) if end == End::Violation(1007) => {
            assert_eq!(theirs, said, "tungstenite and ours before {violation}");
        }
        ProtocolError::CloseCode(_) => {
            said.push(Said::Close(Some(reference::CODE_FOR_ONE_THAT_MAY_NOT_TRAVEL)));
            assert_eq!((theirs, end), (said, End::OfInput), "tungstenite and ours");
        }
        // A header can announce too much and break another rule as well; tungstenite looks at its
        // length first.
        ProtocolError::ReservedBits(_)
        | ProtocolError::ReservedOpcode(_)
        | ProtocolError::UnmaskedFrame
        | ProtocolError::FragmentedControlFrame
        | ProtocolError::UnexpectedContinuation
        | ProtocolError::InterleavedMessage => {
            assert_eq!(theirs, said, "tungstenite and ours before {violation}");
            assert!(
                matches!(end, End::Violation(theirs) if theirs == code || theirs == 1009),
                "tungstenite ends with {end:?}, ours with {violation}"
            );
        }
        ProtocolError::TextNotUtf8
        | ProtocolError::ClosePayloadOfOneByte
        | ProtocolError::CloseReasonNotUtf8
        | ProtocolError::MessageTooBig
        | ProtocolError::NotDeflated => {
            assert_eq!(theirs, said, "tungstenite and ours before {violation}");
            assert_eq!(end, End::Violation(code), "tungstenite and ours: {violation}");
        }
    }
}
