//! The fuzz properties on the stable toolchain: the seeds under `fuzz/seeds`, and some thousand inputs
//! that are made up the same way each time. docs/FUZZING.md tells how to look further.

#[path = "support/properties/mod.rs"]
mod properties;

use std::fs;
use std::path::Path;

const INPUTS: u64 = 3_000;

#[test]
fn seeds_of_the_api_body_hold_its_property() {
    replay("api_body", properties::api_body);
}

#[test]
fn seeds_of_the_assembly_hold_its_property() {
    replay("assembly", properties::assembly);
}

#[test]
fn seeds_of_the_channel_path_hold_its_property() {
    replay("channel_path", properties::channel_path);
}

#[test]
fn seeds_of_the_decoder_hold_its_property() {
    replay("decoder", properties::decoder);
}

#[test]
fn seeds_of_the_handshake_hold_its_property() {
    replay("handshake", properties::handshake);
}

#[test]
fn seeds_of_the_hub_hold_its_property() {
    replay("hub", properties::hub);
}

#[test]
fn seeds_of_the_outbound_queue_hold_its_property() {
    replay("outbound_queue", properties::outbound_queue);
}

#[test]
fn seeds_of_the_deflate_hold_its_property() {
    replay("deflate", properties::deflate);
}

#[test]
fn seeds_of_the_extensions_hold_its_property() {
    replay("extensions", properties::extensions);
}

#[test]
fn seeds_of_the_proxy_protocol_hold_its_property() {
    replay("proxy_protocol", properties::proxy_protocol);
}

#[test]
fn random_bytes_hold_the_property_of_the_proxy_protocol() {
    random_bytes(150, properties::proxy_protocol);
}

#[test]
fn seeds_of_the_inflate_hold_its_property() {
    replay("inflate", properties::inflate);
}

#[test]
fn seeds_of_the_token_hold_its_property() {
    replay("token", properties::token);
}

#[test]
fn random_bytes_hold_the_property_of_the_token() {
    random_bytes(300, properties::token);
}

#[test]
fn every_target_has_seeds_that_are_replayed_here() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let this = fs::read_to_string(root.join("tests/fuzz_corpus.rs")).unwrap();
    for entry in fs::read_dir(root.join("fuzz/fuzz_targets")).unwrap() {
        let path = entry.unwrap().path();
        let target = path.file_stem().unwrap().to_str().unwrap();
        let call = format!("replay(\"{target}\", properties::{target});");
        assert!(this.contains(&call), "no test replays the seeds of {target}");
    }
}

#[test]
fn random_operations_hold_the_property_of_the_outbound_queue() {
    random_bytes(300, properties::outbound_queue);
}

#[test]
fn random_operations_hold_the_property_of_the_hub() {
    random_bytes(100, properties::hub);
}

#[test]
fn random_messages_hold_the_property_of_the_deflate() {
    random_bytes(30, properties::deflate);
}

#[test]
fn random_frames_hold_the_property_of_the_assembly() {
    random_bytes(100, properties::assembly);
}

#[test]
fn random_bytes_hold_the_property_of_the_decoder() {
    random_bytes(300, properties::decoder);
}

#[test]
fn sequences_of_frames_hold_the_property_of_the_decoder_sound_and_damaged() {
    for seed in 0..INPUTS {
        let mut random = Random(seed);
        let mut data = vec![random.byte()];
        let pieces = random.below(6);
        data.push(pieces as u8);
        data.extend((0..pieces).map(|_| random.byte()));
        let start = data.len();
        for _ in 0..=random.below(8) {
            append_frame(&mut data, &mut random);
        }
        if random.below(3) == 0 {
            let at = start + random.below(data.len() - start);
            data[at] ^= 1 << random.below(8);
        }
        named(seed, || properties::decoder(&data));
    }
}

#[test]
fn random_urls_hold_the_property_of_the_channel_path() {
    const PARTS: [&str; 14] = [
        "/echo",
        "/channels/",
        "?",
        "&",
        "=",
        "own",
        "hello",
        "true",
        "false",
        "%2F",
        "%c3%a9",
        "%",
        "é",
        "news",
    ];
    for seed in 0..INPUTS {
        let mut random = Random(seed);
        let start = PARTS[random.below(2)];
        let rest = (0..random.below(10)).map(|_| PARTS[random.below(PARTS.len())]);
        let url: String = std::iter::once(start).chain(rest).collect();
        named(seed, || properties::channel_path(url.as_bytes()));
    }
}

/// Replays every file of `fuzz/seeds/{target}`.
fn replay(target: &str, property: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut replayed = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        named(path.display(), || property(&fs::read(&path).unwrap()));
        replayed += 1;
    }
    assert!(replayed > 0, "{} has no seeds", folder.display());
}

/// Runs `property` on inputs of fewer than `most_bytes` random bytes.
fn random_bytes(most_bytes: usize, property: fn(&[u8])) {
    for seed in 0..INPUTS {
        let mut random = Random(seed);
        let length = random.below(most_bytes);
        let data: Vec<u8> = (0..length).map(|_| random.byte()).collect();
        named(seed, || property(&data));
    }
}

/// Runs `check`, and says which input it was when that panics.
fn named(input: impl std::fmt::Display, check: impl FnOnce()) {
    if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)) {
        eprintln!("the property does not hold for input {input}");
        std::panic::resume_unwind(panic);
    }
}

/// Appends a frame that a client could have sent, or nearly: half of them start or continue a message
/// as they please, and some end before their payload does.
fn append_frame(data: &mut Vec<u8>, random: &mut Random) {
    const FIRST_BYTES: [u8; 10] = [0x81, 0x82, 0x01, 0x02, 0x00, 0x00, 0x80, 0x89, 0x8a, 0x88];
    let first = FIRST_BYTES[random.below(FIRST_BYTES.len())];
    let payload = payload(first, random);
    data.push(first);
    match payload.len() {
        0..=125 => data.push(0x80 | payload.len() as u8),
        126..=0xffff => {
            data.push(0xfe);
            data.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        }
        _ => {
            data.push(0xff);
            data.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    let masking_key = random.next().to_be_bytes();
    data.extend_from_slice(&masking_key[..4]);
    let arrives =
        if random.below(16) == 0 { random.below(payload.len() + 1) } else { payload.len() };
    data.extend(payload[..arrives].iter().zip(0..).map(|(byte, at)| byte ^ masking_key[at % 4]));
}

/// A payload that suits the first byte of its header: of any length, but mostly short.
fn payload(first: u8, random: &mut Random) -> Vec<u8> {
    let is_control = first & 0x08 != 0;
    let payload_bytes = match random.below(64) {
        _ if is_control => random.below(126),
        0 => random.below(70_000),
        1..16 => random.below(1_100),
        _ => random.below(130),
    };
    match first & 0x0f {
        0x8 => [&1000u16.to_be_bytes()[..], b"bye"].concat(),
        0x2 => (0..payload_bytes).map(|_| random.byte()).collect(),
        // Cut where a character may be half, so that the next fragment has its other half or not.
        _ => "aé€𝄞z".bytes().cycle().skip(random.below(11)).take(payload_bytes).collect(),
    }
}

/// SplitMix64: the same numbers for the same seed, on every machine and in every version.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    /// A number from `0..end`.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}
