//! Messages that tell who published them and as which one, and a subscriber's check that none is
//! missing, doubled or out of order.

use std::collections::BTreeMap;

use crate::support::raw::{TEXT, encode};

/// Length of what a message tells: two numbers of eight hexadecimal digits.
const LABEL_BYTES: usize = 16;

/// What fills a message after that.
const FILLER: u8 = b'.';

/// The text of message `number` of `publisher`, `bytes` long.
pub(crate) fn text(publisher: u32, number: u32, bytes: usize) -> String {
    let label = format!("{publisher:08x}{number:08x}");
    format!("{label:.<bytes$}")
}

/// Messages `0..count` of `publisher`, `bytes` long each, as a client sends them.
pub(crate) fn frames(publisher: u32, count: u32, bytes: usize) -> Vec<u8> {
    let mut frames = encode(TEXT, text(publisher, 0, bytes).as_bytes()).repeat(count as usize);
    let frame_bytes = frame_bytes(bytes);
    for (frame, number) in frames.chunks_mut(frame_bytes).zip(0..) {
        // Only the label differs, and masking the rest anew would take most of a test's time.
        let label = &text(publisher, number, LABEL_BYTES);
        let label_at = frame_bytes - bytes;
        let masked = encode(TEXT, label.as_bytes());
        let masked = &masked[masked.len() - LABEL_BYTES..];
        frame[label_at..label_at + LABEL_BYTES].copy_from_slice(masked);
    }
    frames
}

/// Length of one of [`frames`].
pub(crate) fn frame_bytes(bytes: usize) -> usize {
    encode(TEXT, text(0, 0, bytes).as_bytes()).len()
}

/// The publisher and number of a message of [`text`] or [`frames`], of which every byte is looked at.
pub(crate) fn publisher_and_number(payload: &[u8]) -> (u32, u32) {
    let (label, filler) = payload.split_at(LABEL_BYTES);
    assert!(filler.iter().all(|byte| *byte == FILLER), "a message whose filler was changed");
    let label = std::str::from_utf8(label).expect("a label is ASCII");
    let number = |digits| u32::from_str_radix(digits, 16).expect("a label is hexadecimal");
    let (publisher, place) = label.split_at(LABEL_BYTES / 2);
    (number(publisher), number(place))
}

/// What one subscriber has heard.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// By publisher: the number after that of its last message.
    next: BTreeMap<u32, u32>,
    /// Messages of all publishers.
    pub(crate) messages: usize,
    /// Messages since the last gap, the one behind it included.
    pub(crate) without_a_gap: usize,
}

impl Heard {
    /// Takes note of a message, which has to be the next of its publisher, beginning with the first.
    pub(crate) fn next_from_the_first(&mut self, payload: &[u8]) {
        let (publisher, _) = publisher_and_number(payload);
        self.next.entry(publisher).or_insert(0);
        self.next(payload);
    }

    /// Takes note of a message, which has to be the next of its publisher, beginning with any.
    pub(crate) fn next(&mut self, payload: &[u8]) {
        let (publisher, number) = publisher_and_number(payload);
        let next = *self.next.entry(publisher).or_insert(number);
        assert_eq!(number, next, "the next of publisher {publisher}");
        self.later(payload);
    }

    /// Takes note of a message, which has to come somewhere behind what its publisher published before.
    pub(crate) fn later(&mut self, payload: &[u8]) {
        let (publisher, number) = publisher_and_number(payload);
        let next = self.next.insert(publisher, number + 1).unwrap_or(0);
        assert!(number >= next, "{number} of publisher {publisher} comes after {next} was due");
        self.messages += 1;
        self.without_a_gap = if number == next { self.without_a_gap + 1 } else { 1 };
    }

    /// The number of the last message of `publisher`.
    pub(crate) fn last_of(&self, publisher: u32) -> Option<u32> {
        self.next.get(&publisher).map(|next| next - 1)
    }
}
