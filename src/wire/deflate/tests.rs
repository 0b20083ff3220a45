use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use proptest::prelude::*;

use super::*;

const LIMIT: usize = 100_000;

fn bits(bits: u8) -> WindowBits {
    WindowBits::new(bits).unwrap()
}

/// What `payload` is deflated, behind the header of its frame, or itself if it is not.
fn deflate(deflater: &mut Deflater, payload: &[u8], dictionary: &[u8]) -> (Vec<u8>, bool) {
    let mut output = b"what was there before".to_vec();
    let before = output.len();
    if !deflater.append_frame(&mut output, MessageKind::Text, payload, dictionary) {
        assert_eq!(output.len(), before);
        return (payload.to_vec(), false);
    }
    let frame = &output[before..];
    assert_eq!((frame[0], frame::first_frame_bytes(frame)), (0xc1, frame.len()));
    (frame::open(frame).1.to_vec(), true)
}

fn inflate(payload: &[u8], dictionary: &[u8], max_bytes: usize) -> Result<Vec<u8>, InflateError> {
    let mut output = b"before".to_vec();
    Inflater::default().inflate(payload, dictionary, max_bytes, &mut output)?;
    assert!(output.starts_with(b"before"));
    Ok(output.split_off(6))
}

/// What a client makes of a message that has room for no more than `window`: it takes what is inflated
/// out of that a few bytes at a time.
fn inflate_in_window(payload: &[u8], dictionary: &[u8], window: WindowBits) -> Vec<u8> {
    let mut decompress = Decompress::new_with_window_bits(false, window.bits().max(9));
    if !dictionary.is_empty() {
        decompress.set_dictionary(dictionary).unwrap();
    }
    let input = [payload, &TAIL].concat();
    let mut output = Vec::new();
    loop {
        let mut few = [0; 7];
        let (taken, made) = (decompress.total_in() as usize, decompress.total_out());
        decompress.decompress(&input[taken..], &mut few, FlushDecompress::Sync).unwrap();
        let made = (decompress.total_out() - made) as usize;
        output.extend_from_slice(&few[..made]);
        if made == 0 && decompress.total_in() as usize == input.len() {
            return output;
        }
    }
}

/// Deflated by hand: a block for each piece, ended as `flush` says, without the tail of the last.
fn blocks(pieces: &[&[u8]], level: u32, flush: FlushCompress) -> Vec<u8> {
    let mut compress = Compress::new(Compression::new(level), false);
    let mut output = Vec::new();
    for piece in pieces {
        output.reserve(piece.len() + 128);
        compress.compress_vec(piece, &mut output, flush).unwrap();
    }
    assert!(output.ends_with(&TAIL));
    output.truncate(output.len() - TAIL.len());
    output
}

/// A final block that holds `payload`, and nothing behind it.
fn final_block(payload: &[u8]) -> Vec<u8> {
    let mut output = Vec::with_capacity(payload.len() + 128);
    let mut compress = Compress::new(Compression::default(), false);
    compress.compress_vec(payload, &mut output, FlushCompress::Finish).unwrap();
    output
}

/// Bytes that no compressor makes shorter.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[test]
fn examples_of_the_rfc_are_understood() {
    // Section 7.2.3, in its order.
    let messages: [&[u8]; 5] = [
        &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
        &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
        &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
        &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
        &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
    ];
    for message in messages {
        assert_eq!(inflate(message, b"", LIMIT).unwrap(), b"Hello", "{message:x?}");
    }
    // The second message with takeover.
    assert_eq!(inflate(&[0xf2, 0x00, 0x11, 0x00, 0x00], b"Hello", LIMIT).unwrap(), b"Hello");
    // An empty one.
    assert_eq!(inflate(&[0x00], b"", LIMIT).unwrap(), b"");
    assert_eq!(inflate(&[], b"", LIMIT).unwrap(), b"");
}

#[test]
fn payload_is_deflated_only_where_that_makes_it_shorter() {
    let mut deflater = Deflater::new(WindowBits::MAX);
    for payload in [&b""[..], b"x", b"short", &noise(1_000), &noise(70_000)] {
        assert_eq!(deflate(&mut deflater, payload, b""), (payload.to_vec(), false));
    }
    for length in [100, 1_000, 70_000, 1_000_000] {
        let payload = b"{\"id\":17,\"name\":\"a name\"}".repeat(length / 25);
        let (deflated, is_deflated) = deflate(&mut deflater, &payload, b"");
        assert!(is_deflated && deflated.len() < payload.len() / 2);
        assert_eq!(inflate(&deflated, b"", payload.len()).unwrap(), payload);
    }
}

#[test]
fn message_that_repeats_what_was_said_before_refers_to_it() {
    let mut deflater = Deflater::new(bits(12));
    let said = noise(1_000);
    assert!(!deflate(&mut deflater, &said, b"").1);
    let (deflated, is_deflated) = deflate(&mut deflater, &said, &said);
    assert!(is_deflated && deflated.len() < 40, "{} bytes", deflated.len());
    assert_eq!(inflate(&deflated, &said, LIMIT).unwrap(), said);
    // A window is no part of the deflater: the next message stands alone.
    assert!(!deflate(&mut deflater, &said, b"").1);
}

#[test]
fn message_refers_no_further_back_than_its_window() {
    for bits in [8, 9, 10, 14] {
        let window = self::bits(bits);
        let mut deflater = Deflater::new(window);
        let said = noise(window.bytes());
        // The same again would be short with a larger window.
        let payload = [&said[..], &said[..window.bytes() / 2]].concat();
        let is_deflated = deflate(&mut deflater, &payload, b"").1;
        assert!(!is_deflated, "a window of {} bytes", window.bytes());
        let near = noise(64).repeat(4);
        assert!(deflate(&mut deflater, &near, b"").1, "what is near is found");
    }
}

#[test]
fn smallest_window_is_kept_by_sending_longer_messages_as_they_are() {
    let mut deflater = Deflater::new(WindowBits::MIN);
    assert!(deflate(&mut deflater, &[b'x'; 256], b"").1);
    assert!(!deflate(&mut deflater, &[b'x'; 257], b"").1);
}

#[test]
fn several_blocks_of_every_kind_are_one_message() {
    let pieces: [&[u8]; 3] = [&b"one ".repeat(100), &noise(300), b"three"];
    let whole = pieces.concat();
    for level in [0, 1, 6, 9] {
        for flush in [FlushCompress::Sync, FlushCompress::Full] {
            let message = blocks(&pieces, level, flush);
            assert_eq!(inflate(&message, b"", LIMIT).unwrap(), whole, "level {level}");
        }
    }
}

#[test]
fn final_blocks_do_not_end_a_message_nor_what_is_remembered() {
    let first = final_block(b"Hello");
    for message in [
        first.clone(),
        [&first[..], &[0]].concat(),
        [&first[..], &[0, 0, 0, 0xff, 0xff, 0]].concat(),
    ] {
        assert_eq!(inflate(&message, b"", LIMIT).unwrap(), b"Hello", "{message:x?}");
    }
    let twice = [&first[..], &final_block(b" again"), &[0]].concat();
    assert_eq!(inflate(&twice, b"", LIMIT).unwrap(), b"Hello again");
    // The RFC's second "Hello" refers to one that is 5 bytes back: before or in the same message.
    let again = [0xf2, 0x00, 0x11, 0x00, 0x00];
    assert_eq!(inflate(&[&first[..], &again].concat(), b"", LIMIT).unwrap(), b"HelloHello");
    assert_eq!(
        inflate(&[&final_block(b"")[..], &again].concat(), b"Hello", LIMIT).unwrap(),
        b"Hello"
    );
    let endless = final_block(b"").repeat(MAX_FINAL_BLOCKS + 1);
    assert_eq!(inflate(&[&endless[..], &[0]].concat(), b"", LIMIT), Err(InflateError::Corrupt));
}

#[test]
fn message_of_exactly_the_limit_passes_and_a_bomb_stops_there() {
    for length in [0, 1, 255, 4_096, LIMIT] {
        let message = blocks(&[&vec![b'x'; length]], 9, FlushCompress::Sync);
        assert_eq!(inflate(&message, b"", length).unwrap().len(), length);
        if length > 0 {
            assert_eq!(inflate(&message, b"", length - 1), Err(InflateError::TooBig));
        }
    }
    let bomb = blocks(&[&vec![0; 100_000_000]], 9, FlushCompress::Sync);
    assert!(bomb.len() < 110_000);
    let mut output = Vec::new();
    let inflated = Inflater::default().inflate(&bomb, b"", 65_536, &mut output);
    assert_eq!(inflated, Err(InflateError::TooBig));
    assert!(output.capacity() < 4 * bomb.len(), "{} bytes for 64 KiB", output.capacity());
}

#[test]
fn what_is_not_deflated_data_is_corrupt() {
    for message in [
        &b"Hello"[..],
        &[0x06], // a block of the reserved type
        &[0xff; 40],
        &[0x00, 0x05, 0x00, 0xfa],       // a stored block without its data
        &[0x00, 0x05, 0x00, 0x00, 0x00], // lengths that do not agree
        &[0xf2, 0x00, 0x11, 0x00, 0x00], // refers to what was never said
    ] {
        assert_eq!(inflate(message, b"", LIMIT), Err(InflateError::Corrupt), "{message:x?}");
    }
    // The next message has nothing to do with it.
    let mut inflater = Inflater::default();
    let mut output = Vec::new();
    assert!(inflater.inflate(&[0xff; 40], b"", LIMIT, &mut output).is_err());
    output.clear();
    inflater.inflate(&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], b"", LIMIT, &mut output).unwrap();
    assert_eq!(output, b"Hello");
}

#[test]
fn message_that_is_cut_off_is_corrupt_wherever_that_is() {
    let payload = [&b"{\"some\":\"text\"}".repeat(10)[..], &noise(50)].concat();
    let message = blocks(&[&payload], 6, FlushCompress::Sync);
    for length in 1..message.len() - 1 {
        let cut = inflate(&message[..length], b"", LIMIT);
        assert_eq!(cut, Err(InflateError::Corrupt), "{length} of {} bytes", message.len());
    }
}

#[test]
fn window_keeps_the_end_of_what_was_said_and_grows_no_larger() {
    let mut window = Window::new(bits(9));
    let mut said = Vec::new();
    for length in [0, 1, 100, 300, 200, 512, 3, 600, 40] {
        let payload = noise(length);
        window.push(&payload);
        said.extend(payload);
        assert_eq!(window.bytes(), &said[said.len().saturating_sub(512)..]);
        assert!(window.said.capacity() <= 512);
    }
    window.clear();
    assert_eq!(window.bytes(), b"");
}

proptest! {
    #[test]
    fn whatever_is_deflated_is_inflated_again(
        messages in proptest::collection::vec(
            ("[a-d]{0,200}", 0usize..40).prop_map(|(text, times)| text.repeat(times)), 1..12),
        window in 8u8..=15,
        takeover in any::<bool>(),
    ) {
        let window = bits(window);
        let mut deflater = Deflater::new(window);
        let (mut ours, mut theirs) = (Window::new(window), Window::new(window));
        for payload in messages {
            let payload = payload.as_bytes();
            let (sent, is_deflated) = deflate(&mut deflater, payload, ours.bytes());
            if !is_deflated {
                prop_assert_eq!(&sent, payload);
                continue;
            }
            let said = inflate(&sent, theirs.bytes(), payload.len()).unwrap();
            prop_assert_eq!(&said, payload);
            prop_assert_eq!(inflate_in_window(&sent, theirs.bytes(), window), payload);
            if takeover && window > WindowBits::MIN {
                ours.push(payload);
                theirs.push(&said);
            }
        }
    }

    #[test]
    fn no_bytes_make_the_inflater_exceed_its_limit(
        message in proptest::collection::vec(any::<u8>(), 0..300),
        dictionary in proptest::collection::vec(any::<u8>(), 0..300),
        max_bytes in 0usize..2_000,
    ) {
        if let Ok(payload) = inflate(&message, &dictionary, max_bytes) {
            prop_assert!(payload.len() <= max_bytes);
        }
    }
}
