//! Frames that wait for a socket which takes some bytes now and then.

use std::collections::VecDeque;

use bytes::Bytes;
use wsgate::connection::outbound::{Limit, OutboundQueue, Pushed, SlowConsumerPolicy};
use wsgate::wire::close::CloseCode;
use wsgate::wire::frame::{self, MessageKind};
use wsgate::wire::header::Opcode;

use super::input::Input;

const POLICIES: [SlowConsumerPolicy; 3] =
    [SlowConsumerPolicy::Close, SlowConsumerPolicy::DropOldest, SlowConsumerPolicy::DropNewest];

/// Most bytes that may wait: in one frame, in one chunk of frames copied together, in several.
const MAX_BYTES: [usize; 4] = [64, 1_000, 20_000, 100_000];

/// Most slices that the queue offers to one write.
const MAX_SLICES: usize = 64;

/// How much of what waits is compared after every step.
const LOOKED_AT_BYTES: usize = 2_000;

/// Checks [`OutboundQueue`] with one input: `[policy, bound, operations]`, see [`Run::step`].
///
/// The queue offers, counts and drops what a list of single frames does. What leaves in all is whole
/// frames, messages in the order in which they came, none twice, and every message that was taken and
/// did not leave is one that was counted as dropped.
pub fn outbound_queue(data: &[u8]) {
    let mut input = Input::new(data);
    let limit = Limit { policy: input.choose(&POLICIES), max_bytes: input.choose(&MAX_BYTES) };
    let mut run = Run {
        limit,
        queue: OutboundQueue::default(),
        model: Model::default(),
        messages: 0,
        taken: 0,
        dropped: 0,
        written: Vec::new(),
        is_bounded: true,
    };
    while !input.is_empty() && !run.has_sent_close() {
        run.step(&mut input);
        run.assert_queue_is_as_the_model();
    }
    run.drain();
    run.assert_promises();
}

struct Run {
    limit: Limit,
    queue: OutboundQueue,
    model: Model,
    /// How many were made, which is the number of the next.
    messages: u32,
    /// How many messages the queue took, of which it may have dropped some.
    taken: usize,
    /// How many messages the queue says that it dropped.
    dropped: usize,
    /// What the socket took.
    written: Vec<u8>,
    /// No answers were more than the bound.
    is_bounded: bool,
}

impl Run {
    /// One operation: its first byte says which, those behind it say with what.
    fn step(&mut self, input: &mut Input) {
        match input.byte() % 16 {
            0 => self.push_answers(input),
            1..6 => {
                let batch = self.batch(input);
                let frames = Bytes::from(batch.concat());
                let is_closing = self.model.close.is_some();
                let (pushed, expected, kept_bytes) = if self.queue.is_empty() {
                    // A socket for which nothing waits is written to first.
                    let written = position(input, frames.len());
                    self.written.extend_from_slice(&frames[..written]);
                    let pushed = self.queue.push_rest(&frames, written, &self.limit);
                    let expected = self.model.push_rest(batch, written, &self.limit);
                    (pushed, expected, frame::boundary_from(&frames, written))
                } else {
                    let pushed = self.queue.push(&frames, &self.limit);
                    (pushed, self.model.push(batch, &self.limit), 0)
                };
                assert_eq!(pushed, expected, "what became of a batch");
                self.taken += match pushed {
                    Pushed::Queued if is_closing => 0,
                    Pushed::Queued => frame::count_messages(&frames),
                    Pushed::Dropped(messages) => {
                        self.dropped += messages;
                        frame::count_messages(&frames)
                    }
                    Pushed::Overflow => frame::count_messages(&frames[..kept_bytes]),
                };
            }
            6..12 => {
                let offered = self.offered();
                let written = position(input, offered.len());
                self.written.extend_from_slice(&offered[..written]);
                self.queue.advance(written);
                self.model.advance(written);
            }
            12 => {
                let pong = frame::encode(Opcode::Pong, input.bytes(1));
                self.queue.push_pong(pong.clone());
                self.model.push_pong(pong);
            }
            13 => {
                let ping = frame::encode(Opcode::Ping, b"");
                self.queue.push_ping(ping.clone());
                if self.model.control.is_empty() {
                    self.model.push_pong(ping);
                }
            }
            14 => {
                let dropped = self.queue.drop_waiting();
                assert_eq!(dropped, self.model.drop_waiting(), "dropped on demand");
                self.dropped += dropped;
            }
            // A connection sends one Close.
            _ if self.model.close.is_some() => {}
            _ => {
                let close = frame::encode_close(Some(CloseCode::NORMAL), "bye");
                self.queue.push_close(close.clone());
                self.model.close = Some(close);
            }
        }
    }

    /// Answers to what the peer sent. They are not bounded here, since it is no longer read meanwhile.
    fn push_answers(&mut self, input: &mut Input) {
        let batch = self.batch(input);
        let frames = Bytes::from(batch.concat());
        let written = if self.queue.is_empty() { position(input, frames.len()) } else { 0 };
        self.written.extend_from_slice(&frames[..written]);
        if self.model.close.is_none() {
            self.taken += frame::count_messages(&frames);
        }
        self.queue.push_answers(&frames, written);
        self.model.push_answers(batch, written);
        self.is_bounded &= self.model.bytes() <= self.limit.max_bytes;
    }

    /// One to four frames, none larger than the bound: messages that begin with their number, and
    /// now and then a Pong.
    fn batch(&mut self, input: &mut Input) -> Vec<Bytes> {
        let count = 1 + input.below(4);
        let frames = (0..count).map(|_| {
            let length = input.length();
            if length == 199 {
                return frame::encode(Opcode::Pong, b"early");
            }
            let most = self.limit.max_bytes - frame::MAX_HEADER_BYTES;
            let number = self.messages;
            self.messages += 1;
            let mut payload = number.to_be_bytes().to_vec();
            payload.resize(payload.len().max(length.min(most)), b'.');
            frame::encode(MessageKind::Binary.opcode(), &payload)
        });
        frames.collect()
    }

    fn offered(&self) -> Vec<u8> {
        self.queue.slices().iter().flat_map(|slice| slice.to_vec()).collect()
    }

    fn has_sent_close(&self) -> bool {
        self.model.close.as_ref().is_some_and(Bytes::is_empty) && self.model.started.is_empty()
    }

    fn assert_queue_is_as_the_model(&self) {
        let slices = self.queue.slices();
        assert!(slices.iter().all(|slice| !slice.is_empty()), "an empty slice is offered");
        let offered = front(slices.iter().map(|slice| &slice[..]));
        let expected = front(self.model.waiting().map(|frame| &frame[..]));
        let is_cut = slices.len() == MAX_SLICES && expected.starts_with(&offered);
        assert!(offered == expected || is_cut, "offered out of order, or too little");
        let offered_bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        let waiting_bytes: usize = self.model.waiting().map(Bytes::len).sum();
        assert!(offered_bytes == waiting_bytes || slices.len() == MAX_SLICES, "offered too little");
        assert_eq!(self.queue.is_empty(), waiting_bytes == 0);
        assert_eq!(self.queue.bytes(), self.model.bytes(), "bytes that wait");
        let whole_frames: usize = self.model.frames.iter().map(Bytes::len).sum();
        assert!(
            !self.is_bounded || whole_frames <= self.limit.max_bytes,
            "{whole_frames} bytes wait where {} may",
            self.limit.max_bytes
        );
    }

    fn drain(&mut self) {
        while !self.queue.is_empty() {
            let offered = self.offered();
            self.written.extend_from_slice(&offered);
            self.queue.advance(offered.len());
            self.model.advance(offered.len());
            self.assert_queue_is_as_the_model();
        }
    }

    /// What a client may rely on, said without the model.
    fn assert_promises(&self) {
        let (mut rest, mut numbers) = (&self.written[..], Vec::new());
        while !rest.is_empty() {
            let (frame, behind) = rest.split_at(frame::first_frame_bytes(rest));
            if frame::is_message(frame) {
                let header_bytes = (2..=frame::MAX_HEADER_BYTES)
                    .find(|&bytes| bytes == frame::header_bytes(frame.len() - bytes));
                let payload = &frame[header_bytes.expect("a server frame")..];
                numbers.push(u32::from_be_bytes(*payload.first_chunk().expect("a number")));
            }
            let is_close = frame[0] & 0x0f == Opcode::Close.bits();
            assert!(!is_close || behind.is_empty(), "something follows Close");
            rest = behind;
        }
        assert!(numbers.is_sorted_by(|left, right| left < right), "out of order: {numbers:?}");
        assert_eq!(numbers.len() + self.dropped, self.taken, "sent and dropped, and taken");
    }
}

/// The first bytes of what lies in `pieces`: enough to know whether it is the right thing, where to look
/// at all of it after every step would be most of the work.
fn front<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut front = Vec::new();
    for piece in pieces {
        front.extend_from_slice(&piece[..piece.len().min(LOOKED_AT_BYTES - front.len())]);
    }
    front
}

/// A number from `0..=most`: near to the start, near to the end, or by 256ths between.
fn position(input: &mut Input, most: usize) -> usize {
    match usize::from(input.byte()) {
        near @ 0..16 => near.min(most),
        near @ 16..32 => most.saturating_sub(near - 16),
        part => most * part / 255,
    }
}

/// The same queue as a list of single frames.
#[derive(Default)]
struct Model {
    /// The rest of a frame of which the socket has a part.
    started: Bytes,
    control: Bytes,
    frames: VecDeque<Bytes>,
    /// Empty once its first byte is written.
    close: Option<Bytes>,
}

impl Model {
    fn bytes(&self) -> usize {
        self.started.len() + self.frames.iter().map(Bytes::len).sum::<usize>()
    }

    /// All that waits, in order.
    fn waiting(&self) -> impl Iterator<Item = &Bytes> {
        [&self.started, &self.control].into_iter().chain(&self.frames).chain(&self.close)
    }

    fn push(&mut self, batch: Vec<Bytes>, limit: &Limit) -> Pushed {
        let bytes: usize = batch.iter().map(Bytes::len).sum();
        if self.close.is_some() {
            return Pushed::Queued;
        }
        if self.bytes() + bytes <= limit.max_bytes {
            self.frames.extend(batch);
            return Pushed::Queued;
        }
        let mut dropped = 0;
        for frame in batch {
            let mut fits = self.bytes() + frame.len() <= limit.max_bytes;
            match limit.policy {
                SlowConsumerPolicy::Close => return Pushed::Overflow,
                SlowConsumerPolicy::DropNewest => {}
                SlowConsumerPolicy::DropOldest => {
                    while !fits && let Some(oldest) = self.frames.pop_front() {
                        dropped += usize::from(frame::is_message(&oldest));
                        fits = self.bytes() + frame.len() <= limit.max_bytes;
                    }
                }
            }
            if fits {
                self.frames.push_back(frame);
            } else {
                dropped += usize::from(frame::is_message(&frame));
            }
        }
        Pushed::Dropped(dropped)
    }

    fn push_rest(&mut self, batch: Vec<Bytes>, mut written: usize, limit: &Limit) -> Pushed {
        let mut rest = Vec::new();
        for frame in batch {
            if written >= frame.len() {
                written -= frame.len();
            } else if written > 0 {
                self.started = frame.slice(written..);
                written = 0;
            } else {
                rest.push(frame);
            }
        }
        if rest.is_empty() { Pushed::Queued } else { self.push(rest, limit) }
    }

    fn push_answers(&mut self, batch: Vec<Bytes>, mut written: usize) {
        for frame in batch {
            if self.close.is_some() {
                return;
            }
            if written >= frame.len() {
                written -= frame.len();
            } else if written > 0 {
                self.started = frame.slice(written..);
                written = 0;
            } else if frame::is_message(&frame) {
                self.frames.push_back(frame);
            } else {
                self.control = frame;
            }
        }
    }

    fn push_pong(&mut self, pong: Bytes) {
        if self.close.is_none() {
            self.control = pong;
        }
    }

    fn drop_waiting(&mut self) -> usize {
        self.frames.drain(..).filter(|frame| frame::is_message(frame)).count()
    }

    fn advance(&mut self, mut written: usize) {
        while written > 0 {
            let is_started = !self.started.is_empty();
            let next = if is_started {
                std::mem::take(&mut self.started)
            } else if !self.control.is_empty() {
                std::mem::take(&mut self.control)
            } else if let Some(frame) = self.frames.pop_front() {
                frame
            } else {
                self.close.replace(Bytes::new()).expect("no more is written than waits")
            };
            let taken = written.min(next.len());
            self.started = next.slice(taken..);
            written -= taken;
        }
    }
}
