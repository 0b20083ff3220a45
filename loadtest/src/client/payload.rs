//! What messages are made of: a filler, or JSON as applications send it.

use std::io::Write;

use crate::client::stamp::Stamp;

/// What a message is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Payload {
    /// The same character over and over
    #[default]
    Filler,
    /// An order book with names, ids, numbers and times, another one in each message
    Json,
}

impl Payload {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Filler => "filler",
            Self::Json => "json",
        }
    }

    /// Where a measured message has its [`Stamp`].
    #[inline]
    pub(crate) fn stamp_at(self) -> usize {
        match self {
            Self::Filler => 0,
            Self::Json => HEAD.len(),
        }
    }

    /// The least that a measured message of this kind has, in bytes.
    pub(crate) fn min_bytes(self) -> usize {
        match self {
            Self::Filler => Stamp::BYTES,
            Self::Json => HEAD.len() + Stamp::BYTES + 1 + TEXT.len() + END.len(),
        }
    }

    /// Appends message `number` of `sender`, which is the same each time. JSON has room for a stamp,
    /// and at least [`Self::min_bytes`].
    pub(crate) fn write(self, sender: u64, number: u64, bytes: usize, output: &mut Vec<u8>) {
        match self {
            Self::Filler => output.resize(output.len() + bytes, b'x'),
            Self::Json => {
                write_json(&mut Random::new(sender << 40 ^ number), number, bytes, output)
            }
        }
    }
}

const HEAD: &[u8] = b"{\"id\":\"";
const TEXT: &[u8] = b",\"note\":\"";
const END: &[u8] = b"\"}";

const NAMES: [&str; 12] = [
    "Amara Okafor",
    "Ben Whitfield",
    "Chiara Russo",
    "Daniel Novak",
    "Elif Demir",
    "Farid Haddad",
    "Grace Lindqvist",
    "Hiroshi Tanaka",
    "Ines Moreau",
    "Jonas Keller",
    "Kavya Raman",
    "Liam Walsh",
];
const SYMBOLS: [&str; 6] = ["BTC-EUR", "ETH-USD", "SOL-USD", "ADA-EUR", "XRP-USD", "DOT-EUR"];
const WORDS: [&str; 16] = [
    "limit", "order", "moved", "after", "the", "close", "please", "confirm", "before", "noon",
    "and", "keep", "a", "margin", "of", "two",
];

/// Numbers that look random and are the same each time (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// An order book of exactly `bytes` bytes: as many orders as fit, and a note that takes the rest.
fn write_json(random: &mut Random, number: u64, bytes: usize, output: &mut Vec<u8>) {
    let end = output.len() + bytes - TEXT.len() - END.len();
    output.extend_from_slice(HEAD);
    output.resize(output.len() + Stamp::BYTES, b'0');
    output.push(b'"');
    let mut part = Vec::with_capacity(160);
    let time = 1_750_000_000_000 + number * 37;
    let symbol = random.one_of(&SYMBOLS);
    let written = write!(
        part,
        ",\"type\":\"book\",\"symbol\":\"{symbol}\",\"sequence\":{number},\"time\":{time},\"orders\":["
    );
    written.expect("a Vec takes all");
    if output.len() + part.len() < end {
        output.extend_from_slice(&part);
        let mut separator = "";
        let price = 20_000 + random.below(40_000);
        loop {
            part.clear();
            let written = write!(
                part,
                "{separator}{{\"order\":{},\"trader\":\"{}\",\"side\":\"{}\",\"price\":{}.{:02},\"amount\":{}.{:04},\"at\":{}}}",
                10_000_000 + random.below(90_000_000),
                random.one_of(&NAMES),
                random.one_of(&["buy", "sell"]),
                price + random.below(300),
                random.below(100),
                random.below(5),
                random.below(10_000),
                time - random.below(60_000),
            );
            written.expect("a Vec takes all");
            if output.len() + part.len() + 1 > end {
                break;
            }
            output.extend_from_slice(&part);
            separator = ",";
        }
        output.push(b']');
    }
    output.extend_from_slice(TEXT);
    let end = end + TEXT.len();
    while output.len() < end {
        output.extend_from_slice(random.one_of(&WORDS).as_bytes());
        output.push(b' ');
    }
    output.truncate(end);
    output.extend_from_slice(END);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: Payload, sender: u64, number: u64, bytes: usize) -> Vec<u8> {
        let mut output = b"before".to_vec();
        payload.write(sender, number, bytes, &mut output);
        output.split_off(6)
    }

    #[test]
    fn every_size_is_exact_and_json_is_json_with_a_stamp_in_it() {
        for payload in [Payload::Filler, Payload::Json] {
            for bytes in (payload.min_bytes()..400).chain([1_024, 16_384, 65_536]) {
                let mut one = message(payload, 3, 7, bytes);
                assert_eq!(one.len(), bytes);
                let stamp = Stamp { due: 123, publisher: 3, number: 7 };
                stamp.write(&mut one[payload.stamp_at()..]);
                assert_eq!(Stamp::read(&one[payload.stamp_at()..]), Some(stamp));
                if payload == Payload::Json {
                    let value: serde_json::Value =
                        serde_json::from_slice(&one).expect("it is JSON");
                    assert_eq!(value["id"].as_str().map(str::len), Some(Stamp::BYTES), "{bytes}");
                }
            }
        }
    }

    #[test]
    fn json_differs_in_each_message_and_comes_again() {
        let one = message(Payload::Json, 1, 1, 1_024);
        assert_eq!(one, message(Payload::Json, 1, 1, 1_024));
        assert_ne!(one, message(Payload::Json, 1, 2, 1_024));
        assert_ne!(one, message(Payload::Json, 2, 1, 1_024));
    }
}
