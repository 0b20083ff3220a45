use proptest::prelude::*;

use super::*;
use crate::wire::frame;

const LIMIT: usize = 1_000;
const KEY: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

/// What a client said, owned and without the places it lay in.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Message(MessageKind, Vec<u8>),
    Deflated(MessageKind, Vec<u8>),
    Pong(Vec<u8>),
    SignOfLife,
    Close(Option<u16>),
}

/// A client frame; the masking key is XORed in here, by the book.
fn client_frame(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![u8::from(fin) << 7 | opcode];
    match payload.len() {
        0..=125 => frame.push(0x80 | payload.len() as u8),
        126..=0xffff => {
            frame.push(0xfe);
            frame.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        }
        _ => {
            frame.push(0xff);
            frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&KEY);
    frame.extend(payload.iter().enumerate().map(|(index, byte)| byte ^ KEY[index % 4]));
    frame
}

const fn rules(max_message_bytes: usize) -> Rules {
    Rules { max_message_bytes, deflate: true }
}

/// Feeds `pieces` as reads of a socket and returns what was said, up to the first error.
fn decode_pieces(pieces: &[&[u8]], limit: usize) -> (Vec<Said>, Option<ProtocolError>) {
    let mut decoder = Decoder::default();
    let mut said = Vec::new();
    for piece in pieces {
        let mut buffer = vec![0; decoder.kept_bytes()];
        decoder.restore(&mut buffer);
        buffer.extend_from_slice(piece);
        let mut at = 0;
        loop {
            let decoded = match decoder.decode(&mut buffer[at..], rules(limit)) {
                Ok(decoded) => decoded,
                Err(error) => return (said, Some(error)),
            };
            let input = &buffer[at..];
            at += decoded.consumed;
            said.push(match decoded.event {
                None => break,
                Some(Event::Message { kind, payload_bytes, frame }) => {
                    let frame = match &frame {
                        ServerFrame::InPlace(range) => &input[range.clone()],
                        ServerFrame::Gathered(bytes) => bytes,
                    };
                    let payload = &frame[frame.len() - payload_bytes..];
                    assert_eq!(
                        frame,
                        frame::encode(kind.opcode(), payload),
                        "a whole server frame"
                    );
                    Said::Message(kind, payload.to_vec())
                }
                Some(Event::DeflatedMessage { kind, payload }) => {
                    let payload = match payload {
                        DeflatedPayload::InPlace(range) => input[range].to_vec(),
                        DeflatedPayload::Gathered(payload) => payload,
                    };
                    Said::Deflated(kind, payload)
                }
                Some(Event::Ping { pong }) => {
                    let payload = &input[pong.start + 2..pong.end];
                    assert_eq!(input[pong.clone()], frame::encode(Opcode::Pong, payload));
                    Said::Pong(payload.to_vec())
                }
                Some(Event::Pong) => Said::SignOfLife,
                Some(Event::Close(code)) => Said::Close(code.map(CloseCode::as_u16)),
            });
        }
        decoder.keep(&buffer[at..]);
    }
    (said, None)
}

fn decode(input: &[u8]) -> (Vec<Said>, Option<ProtocolError>) {
    decode_pieces(&[input], LIMIT)
}

/// Whole, at every split point, and byte by byte, `input` must mean the same.
fn assert_means(input: &[u8], said: &[Said], error: Option<ProtocolError>) {
    assert_eq!(decode(input), (said.to_vec(), error), "whole");
    for split in 0..=input.len() {
        let (first, second) = input.split_at(split);
        assert_eq!(decode_pieces(&[first, second], LIMIT), (said.to_vec(), error), "at {split}");
    }
    let bytes: Vec<&[u8]> = input.chunks(1).collect();
    assert_eq!(decode_pieces(&bytes, LIMIT), (said.to_vec(), error), "byte by byte");
}

fn text(payload: &str) -> Said {
    Said::Message(MessageKind::Text, payload.into())
}

fn binary(payload: &[u8]) -> Said {
    Said::Message(MessageKind::Binary, payload.into())
}

#[test]
fn text_and_binary_come_out_as_server_frames_at_every_split_point() {
    for payload_bytes in [0, 1, 3, 4, 125, 126, 200, 1_000] {
        let payload = "x".repeat(payload_bytes);
        let mut input = client_frame(true, 1, payload.as_bytes());
        input.extend(client_frame(true, 2, payload.as_bytes()));
        assert_means(&input, &[text(&payload), binary(payload.as_bytes())], None);
    }
}

#[test]
fn fragments_become_one_message_with_control_frames_in_between() {
    let mut input = client_frame(false, 1, "Hé".as_bytes().split_last().unwrap().1);
    input.extend(client_frame(true, 9, b"are you there?"));
    input.extend(client_frame(false, 0, &"é".as_bytes()[1..]));
    input.extend(client_frame(true, 10, b"unasked"));
    input.extend(client_frame(false, 0, b""));
    input.extend(client_frame(true, 0, b"llo"));
    input.extend(client_frame(true, 8, &[0x03, 0xe8]));
    assert_means(
        &input,
        &[
            Said::Pong(b"are you there?".to_vec()),
            Said::SignOfLife,
            text("Héllo"),
            Said::Close(Some(1000)),
        ],
        None,
    );
}

#[test]
fn message_of_exactly_the_limit_passes_and_one_byte_more_does_not() {
    assert_means(&client_frame(true, 2, &[7; LIMIT]), &[binary(&[7; LIMIT])], None);
    let mut input = client_frame(true, 2, &[7; LIMIT + 1]);
    input.truncate(12);
    assert_means(&input, &[], Some(ProtocolError::MessageTooBig));
}

#[test]
fn limit_that_is_lowered_below_what_has_arrived_of_a_message_ends_it_with_the_next_byte() {
    let mut decoder = Decoder::default();
    let mut input = client_frame(false, 2, &[7; LIMIT]);
    let decoded = decoder.decode(&mut input, rules(LIMIT)).unwrap();
    assert_eq!((decoded.consumed, decoded.event), (input.len(), None));
    let mut more = client_frame(false, 0, b"x");
    let refused = decoder.decode(&mut more, rules(LIMIT / 2)).unwrap_err();
    assert_eq!(refused, ProtocolError::MessageTooBig);
}

#[test]
fn limit_holds_over_all_fragments() {
    let mut input = client_frame(false, 2, &[7; LIMIT - 1]);
    input.extend(client_frame(true, 0, &[7; 1]));
    assert_eq!(decode(&input), (vec![binary(&[7; LIMIT])], None));
    let mut input = client_frame(false, 2, &[7; LIMIT - 1]);
    input.extend(client_frame(true, 0, &[7; 2]));
    assert_eq!(decode(&input), (vec![], Some(ProtocolError::MessageTooBig)));
}

#[test]
fn order_of_fragments_is_enforced() {
    let continuation = client_frame(true, 0, b"of what?");
    assert_means(&continuation, &[], Some(ProtocolError::UnexpectedContinuation));
    for opcode in [1, 2] {
        let mut input = client_frame(false, 1, b"first");
        input.extend(client_frame(true, opcode, b"second"));
        assert_means(&input, &[], Some(ProtocolError::InterleavedMessage));
    }
    let mut input = client_frame(false, 1, b"a");
    input.extend(client_frame(true, 0, b"b"));
    input.extend(client_frame(true, 0, b"c"));
    assert_means(&input, &[text("ab")], Some(ProtocolError::UnexpectedContinuation));
}

#[test]
fn text_fails_at_the_first_byte_that_cannot_be_right_inside_an_unfinished_frame() {
    let whole = client_frame(true, 1, b"fine so far \xf4\x90 and never looked at");
    let bytes: Vec<&[u8]> = whole[..6 + 13].chunks(1).collect();
    assert_eq!(decode_pieces(&bytes, LIMIT), (vec![], None));
    let bytes: Vec<&[u8]> = whole[..6 + 14].chunks(1).collect();
    assert_eq!(decode_pieces(&bytes, LIMIT), (vec![], Some(ProtocolError::TextNotUtf8)));
}

#[test]
fn text_that_ends_inside_a_character_is_refused_whole_and_fragmented() {
    assert_means(&client_frame(true, 1, &[0xe2, 0x82]), &[], Some(ProtocolError::TextNotUtf8));
    let mut input = client_frame(false, 1, &[0xe2]);
    input.extend(client_frame(true, 0, &[0x82]));
    assert_means(&input, &[], Some(ProtocolError::TextNotUtf8));
}

#[test]
fn binary_may_hold_any_bytes() {
    assert_means(&client_frame(true, 2, &[0xff, 0xfe, 0]), &[binary(&[0xff, 0xfe, 0])], None);
}

/// The same frame with RSV1.
fn deflated(mut frame: Vec<u8>) -> Vec<u8> {
    frame[0] |= 0x40;
    frame
}

#[test]
fn deflated_message_comes_out_as_it_travelled_whole_and_fragmented() {
    // Not UTF-8, and not checked before it is inflated.
    let payload = &b"\xff\xfe what a deflater gives"[..];
    let whole = deflated(client_frame(true, 1, payload));
    assert_means(&whole, &[Said::Deflated(MessageKind::Text, payload.to_vec())], None);
    let input = [
        deflated(client_frame(false, 2, &payload[..5])),
        client_frame(true, 9, b"ping"),
        client_frame(false, 0, b""),
        client_frame(true, 0, &payload[5..]),
        client_frame(true, 1, b"plain"),
        deflated(client_frame(true, 2, b"")),
        deflated(client_frame(false, 2, b"")),
        client_frame(true, 0, b""),
    ];
    let empty = || Said::Deflated(MessageKind::Binary, vec![]);
    let said = [
        Said::Pong(b"ping".to_vec()),
        Said::Deflated(MessageKind::Binary, payload.to_vec()),
        Said::Message(MessageKind::Text, b"plain".to_vec()),
        empty(),
        empty(),
    ];
    assert_means(&input.concat(), &said, None);
}

#[test]
fn reserved_bit_on_a_continuation_is_refused_inside_a_deflated_message_too() {
    let input = [deflated(client_frame(false, 1, b"a")), deflated(client_frame(true, 0, b"b"))];
    assert_means(&input.concat(), &[], Some(ProtocolError::ReservedBits(0b100)));
}

#[test]
fn deflated_message_may_travel_a_little_longer_than_the_limit_and_no_more() {
    let most = max_deflated_bytes(LIMIT);
    for (length, error) in [(most, None), (most + 1, Some(ProtocolError::MessageTooBig))] {
        let payload = vec![7; length];
        let whole = deflated(client_frame(true, 2, &payload));
        let fragments = [
            deflated(client_frame(false, 2, &payload[..LIMIT])),
            client_frame(true, 0, &payload[LIMIT..]),
        ];
        for input in [whole, fragments.concat()] {
            let (said, refused) = decode(&input);
            assert_eq!((said.len(), refused), (usize::from(error.is_none()), error));
        }
    }
}

#[test]
fn what_is_kept_unread_is_told_from_what_means_nothing_yet() {
    let mut decoder = Decoder::default();
    let frames = client_frame(true, 1, &[b'x'; 500]).repeat(2);
    for (unread, is_kept) in [(&frames[..], true), (&frames[..3], true), (&[], false)] {
        decoder.keep_unread(unread);
        assert_eq!((decoder.has_unread(), decoder.kept_bytes()), (is_kept, unread.len()));
        let mut space = vec![0; decoder.kept_bytes()];
        decoder.restore(&mut space);
        assert_eq!(space, unread);
        assert!(!decoder.has_unread() && decoder.kept_bytes() == 0);
    }
    decoder.keep(&frames[..3]);
    assert!(!decoder.has_unread() && decoder.kept_bytes() == 3);
}

#[test]
fn announced_length_takes_no_memory_before_the_payload_arrives() {
    let mut decoder = Decoder::default();
    let mut header = client_frame(true, 2, &vec![0; 1 << 20]);
    header.truncate(14);
    let decoded = decoder.decode(&mut header, rules(1 << 20)).unwrap();
    assert_eq!((decoded.consumed, decoded.event), (14, None));
    assert_eq!(decoder.held_bytes(), 0);
    decoder.decode(&mut [0; 100], rules(1 << 20)).unwrap();
    assert!(decoder.held_bytes() <= 100 + MAX_HEADER_BYTES);
}

#[test]
fn gathered_message_ends_in_a_buffer_of_its_exact_size() {
    let mut decoder = Decoder::default();
    let input = client_frame(true, 2, &[1; 900]);
    for piece in input.chunks(100) {
        let mut piece = piece.to_vec();
        let held = decoder.held_bytes();
        assert!(held <= MAX_HEADER_BYTES + 900, "{held} bytes held for a message of 900");
        decoder.decode(&mut piece, rules(LIMIT)).unwrap();
    }
    assert_eq!(decoder.held_bytes(), 0);
}

#[test]
fn decoder_of_an_idle_connection_is_two_words() {
    assert!(size_of::<Decoder>() <= 16);
}

/// One thing a well-behaved client may send, as frames and as what they mean.
fn utterance() -> impl Strategy<Value = (Vec<Vec<u8>>, Said)> {
    let data = prop_oneof![
        ".{0,60}".prop_map(|text| (1u8, MessageKind::Text, text.into_bytes())),
        proptest::collection::vec(any::<u8>(), 0..300).prop_map(|bytes| (
            2u8,
            MessageKind::Binary,
            bytes
        )),
    ];
    let fragmented = (data, proptest::collection::vec(any::<prop::sample::Index>(), 0..4))
        .prop_map(|((opcode, kind, payload), cuts)| {
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
            at.extend([0, payload.len()]);
            at.sort_unstable();
            let last = at.len() - 2;
            let frames = at.windows(2).enumerate().map(|(index, pair)| {
                let opcode = if index == 0 { opcode } else { 0 };
                client_frame(index == last, opcode, &payload[pair[0]..pair[1]])
            });
            (frames.collect(), Said::Message(kind, payload.clone()))
        });
    let ping = proptest::collection::vec(any::<u8>(), 0..=125)
        .prop_map(|payload| (vec![client_frame(true, 9, &payload)], Said::Pong(payload)));
    prop_oneof![fragmented, ping]
}

fn cut<'a>(input: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
    at.extend([0, input.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect()
}

proptest! {
    #[test]
    fn what_a_client_says_does_not_depend_on_how_its_bytes_arrive(
        utterances in proptest::collection::vec(utterance(), 1..5),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let input: Vec<u8> = utterances.iter().flat_map(|(frames, _)| frames.concat()).collect();
        let said: Vec<Said> = utterances.into_iter().map(|(_, said)| said).collect();
        prop_assert_eq!(decode_pieces(&cut(&input, &cuts), LIMIT), (said, None));
    }

    #[test]
    fn any_bytes_in_any_pieces_end_in_the_same_events_and_error(
        input in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0x81), Just(0x80)], 0..300),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let (said, error) = decode(&input);
        prop_assert_eq!(decode_pieces(&cut(&input, &cuts), LIMIT), (said, error));
    }
}
