//! Messages deflated one after the other, and what both sides remember of them.

use miniz_oxide::deflate::compress_to_vec;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use wsgate::wire::deflate::{Deflater, InflateError, Inflater, Window, max_deflated_bytes};
use wsgate::wire::extensions::WindowBits;
use wsgate::wire::frame::{self, MessageKind};

use super::inflate::{inflate_with, inflate_with_miniz};
use super::input::Input;

/// RSV1.
const DEFLATED: u8 = 0x40;

/// Checks [`Deflater`], [`Inflater`] and [`Window`] with one input: `[window, takeover, messages]`, where a
/// message is `[content, length]` and in some cases its bytes.
///
/// Every message that is deflated is one whole frame, shorter than the plain one, that our inflater and
/// miniz_oxide make the same message of; miniz_oxide with no more memory than the window has. What
/// miniz_oxide deflates, with another end than ours, our inflater takes too.
pub fn deflate(data: &[u8]) {
    let mut input = Input::new(data);
    let bits = WindowBits::new(8 + input.below(8) as u8).expect("8 to 15");
    // There is no takeover with the smallest window.
    let takeover = input.below(2) == 1 && bits > WindowBits::MIN;
    let mut sides = Sides {
        bits,
        takeover,
        deflater: Deflater::new(bits),
        inflater: Inflater::default(),
        sent: Window::new(bits),
        received: Window::new(bits),
    };
    let mut last = Vec::new();
    while !input.is_empty() {
        let payload = message(&mut input, &last);
        sides.pass_on(&payload);
        last = payload;
    }
}

struct Sides {
    bits: WindowBits,
    takeover: bool,
    deflater: Deflater,
    inflater: Inflater,
    sent: Window,
    received: Window,
}

impl Sides {
    fn pass_on(&mut self, payload: &[u8]) {
        let before = b"what lies before";
        let mut output = before.to_vec();
        let kind = MessageKind::Text;
        let is_deflated = self.deflater.append_frame(&mut output, kind, payload, self.sent.bytes());
        let (kept, frame) = output.split_at(before.len());
        assert_eq!(kept, before);
        assert_eq!(frame.is_empty(), !is_deflated, "appended, and not deflated, or not appended");
        if is_deflated {
            let plain = frame::encode(kind.opcode(), payload);
            assert_eq!(frame::first_frame_bytes(frame), frame.len(), "one whole frame");
            assert_eq!(frame[0], plain[0] | DEFLATED);
            assert!(frame.len() < plain.len(), "no shorter than the plain one");
            let header_bytes = match frame[1] {
                126 => 4,
                127 => 10,
                _ => 2,
            };
            self.inflate(&frame[header_bytes..], payload);
            if self.takeover {
                self.sent.push(payload);
                self.received.push(payload);
                let known = self.sent.bytes();
                assert!(known.len() <= self.bits.bytes(), "more than the window");
                assert!(payload.ends_with(known) || known.ends_with(payload));
            }
        }
        self.inflate_what_others_deflate(payload);
    }

    fn inflate(&mut self, deflated: &[u8], payload: &[u8]) {
        assert!(deflated.len() <= max_deflated_bytes(payload.len()));
        let known = self.received.bytes();
        let ours = inflate_with(&mut self.inflater, deflated, known, payload.len());
        assert_eq!(ours.as_deref(), Ok(payload), "inflated by ours");
        let theirs = inflate_with_miniz(deflated, known, payload.len());
        assert_eq!(theirs.as_deref(), Ok(payload), "inflated by miniz_oxide");
        let narrow = inflate_in_window(deflated, known, self.bits);
        assert_eq!(narrow, payload, "inflated in a window of 2^{} bytes", self.bits.bits());
        if let Some(too_few) = payload.len().checked_sub(1) {
            let refused = inflate_with(&mut self.inflater, deflated, known, too_few);
            assert_eq!(refused, Err(InflateError::TooBig), "one byte over the limit");
        }
    }

    /// Messages that end with a final block (RFC 7692 section 7.2.3.4), also where more follows.
    fn inflate_what_others_deflate(&mut self, payload: &[u8]) {
        let (first, second) = payload.split_at(payload.len() / 2);
        // Stored or with codes, in one stream or two: which of them depends on the length, since to
        // try them all takes most of the time.
        let level = if payload.len().is_multiple_of(2) { 6 } else { 0 };
        let parts = if payload.len() % 4 < 2 { vec![payload] } else { vec![first, second] };
        let deflated: Vec<u8> =
            parts.iter().flat_map(|part| compress_to_vec(part, level)).collect();
        let inflated = inflate_with(&mut self.inflater, &deflated, b"", payload.len());
        assert_eq!(inflated.as_deref(), Ok(payload), "from miniz_oxide at level {level}");
    }
}

/// Inflates with a window of its own, so that what lies further back is gone.
fn inflate_in_window(deflated: &[u8], known: &[u8], bits: WindowBits) -> Vec<u8> {
    let size = bits.bytes();
    let mut window = vec![0; size];
    window[..known.len()].copy_from_slice(known);
    let (mut at, mut inflated) = (known.len() % size, Vec::new());
    let mut state = DecompressorOxide::new();
    let deflated = [deflated, &[0, 0, 0xff, 0xff]].concat();
    let mut input = &deflated[..];
    loop {
        let (status, taken, made) =
            decompress(&mut state, input, &mut window, at, TINFL_FLAG_HAS_MORE_INPUT);
        inflated.extend_from_slice(&window[at..at + made]);
        at = (at + made) % size;
        input = &input[taken..];
        match status {
            TINFLStatus::HasMoreOutput => {}
            TINFLStatus::NeedsMoreInput => return inflated,
            status => panic!("{status:?} in a window of {size} bytes"),
        }
    }
}

/// Something that was said before, something that repeats itself, noise, or bytes of the input.
fn message(input: &mut Input, last: &[u8]) -> Vec<u8> {
    let content = input.byte();
    let bytes = input.length();
    match content {
        0..64 => last.to_vec(),
        64..128 => {
            let text = br#"{"symbol":"ACME","price":17.25,"volume":1200,"at":1700000000}"#;
            text.iter().copied().cycle().skip(content.into()).take(bytes).collect()
        }
        128..192 => {
            let mut state = u32::from(content);
            let noise = std::iter::repeat_with(|| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            });
            noise.take(bytes).chain(last.iter().copied().take(bytes)).collect()
        }
        _ => input.bytes(bytes).to_vec(),
    }
}
