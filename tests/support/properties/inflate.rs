//! Any bytes as a deflated payload, and what another inflater makes of them.

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use wsgate::wire::deflate::{InflateError, Inflater};

use super::input::Input;

/// Limits on a message that an input can choose from.
const MAX_BYTES: [usize; 4] = [0, 100, 4_000, 100_000];

/// What RFC 7692 section 7.2.2 puts behind a payload, and an empty final block.
const TAIL_AND_END: [u8; 9] = [0, 0, 0xff, 0xff, 0x01, 0, 0, 0xff, 0xff];

/// Most final blocks in one message, of those behind which more comes.
const MAX_FINAL_BLOCKS: usize = 256;

/// Checks [`Inflater`] with one input: `[limit, length of the dictionary, a payload]`.
///
/// It becomes what miniz_oxide makes of it, or is too big as it is there, or is refused; also by an
/// inflater that has had it before. What it becomes is within the limit, and so is the memory for it.
pub fn inflate(data: &[u8]) {
    let mut input = Input::new(data);
    let max_bytes = input.choose(&MAX_BYTES);
    let dictionary = dictionary(input.length());
    let payload = input.rest();
    let mut inflater = Inflater::default();
    let ours = inflate_with(&mut inflater, payload, &dictionary, max_bytes);
    let theirs = inflate_with_miniz(payload, &dictionary, max_bytes);
    // zlib refuses codes that are not complete, of which no compressor makes any, and miniz_oxide goes
    // on with them. That ours refuses nothing which a compressor makes is what `deflate` holds.
    if ours != Err(InflateError::Corrupt) {
        assert_eq!(ours, theirs, "ours and miniz_oxide");
    }
    let again = inflate_with(&mut inflater, payload, &dictionary, max_bytes);
    assert_eq!(again, ours, "the second time");
}

/// What was said before, as far as it goes.
fn dictionary(bytes: usize) -> Vec<u8> {
    br#"{"symbol":"ACME","price":17.25,"at":1700000000}"#.iter().copied().cycle().take(bytes).collect()
}

pub(super) fn inflate_with(
    inflater: &mut Inflater,
    payload: &[u8],
    dictionary: &[u8],
    max_bytes: usize,
) -> Result<Vec<u8>, InflateError> {
    let mut output = Vec::new();
    let inflated = inflater.inflate(payload, dictionary, max_bytes, &mut output);
    assert!(output.capacity() <= max_bytes + 1, "{} bytes held", output.capacity());
    inflated.map(|_| {
        assert!(output.len() <= max_bytes, "inflated beyond the limit");
        output
    })
}

/// The same with miniz_oxide, into one piece of memory that begins with the dictionary.
pub(super) fn inflate_with_miniz(
    payload: &[u8],
    dictionary: &[u8],
    max_bytes: usize,
) -> Result<Vec<u8>, InflateError> {
    if payload.is_empty() {
        return Ok(Vec::new());
    }
    let start = dictionary.len();
    let mut output = [dictionary, &vec![0; max_bytes + 1]].concat();
    let (mut end, mut final_blocks) = (start, 0);
    let mut state = DecompressorOxide::new();
    for mut input in [payload, &TAIL_AND_END] {
        loop {
            let flags = TINFL_FLAG_HAS_MORE_INPUT | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
            let (status, taken, made) = decompress(&mut state, input, &mut output, end, flags);
            end += made;
            input = &input[taken..];
            if end - start > max_bytes {
                return Err(InflateError::TooBig);
            }
            match status {
                TINFLStatus::Done if input.is_empty() => {
                    return Ok(output[start..end].to_vec());
                }
                TINFLStatus::Done if final_blocks < MAX_FINAL_BLOCKS => {
                    final_blocks += 1;
                    state.init();
                }
                TINFLStatus::NeedsMoreInput => break,
                _ => return Err(InflateError::Corrupt),
            }
        }
    }
    Err(InflateError::Corrupt)
}
