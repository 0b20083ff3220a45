//! Frames waiting to be written to one connection, and what happens when they are too many.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Bytes, BytesMut};

use crate::wire::frame;

/// Most slices that are offered to one vectored write. Linux takes 1,024; more than this many small
/// frames in one call no longer pay.
const MAX_SLICES: usize = 64;

/// Frames smaller than this are copied together. As an entry of their own they would take many times
/// the memory that the queue counts.
const MAX_COPIED_BYTES: usize = 4 * 1024;

/// Frames are copied together up to this size.
const MAX_CHUNK_BYTES: usize = 16 * 1024;

/// What happens to a connection that reads more slowly than it is sent to, once its queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowConsumerPolicy {
    /// It is closed with 1008.
    Close,
    /// The frames that wait longest are dropped for new ones.
    DropOldest,
    /// New frames are dropped.
    DropNewest,
}

/// The bound of an outbound queue. The same for all connections, so not kept in each.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Most bytes of frames that may wait. A frame is never larger.
    pub max_bytes: usize,
    /// What happens beyond.
    pub policy: SlowConsumerPolicy,
}

/// What became of frames that were to be queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// They all wait.
    Queued,
    /// This many data messages, these or older ones, were dropped by the policy.
    Dropped(usize),
    /// The policy says to close the connection; these frames were not taken.
    Overflow,
}

/// The frames that one connection's socket did not take yet.
///
/// An empty queue, which is what nearly every connection has at nearly every moment, is one word.
#[derive(Debug, Default)]
pub struct OutboundQueue {
    /// `None` when nothing waits.
    backlog: Option<Box<Backlog>>,
}

/// Written in the order of its fields.
#[derive(Debug, Default)]
struct Backlog {
    /// The rest of a frame whose first bytes the socket took. Nothing may come before it.
    started: Bytes,
    /// The answer to the latest Ping, or a Ping of ours. An older one that still waits is replaced:
    /// only the latest Ping needs an answer (RFC 6455 section 5.5.3), so Pings cannot fill the queue.
    control: Bytes,
    /// One or more whole frames in each entry.
    frames: VecDeque<Bytes>,
    /// Our Close; no frame is taken after it.
    close: Option<Bytes>,
    /// Length of `started` and `frames`: what the limit is about.
    bytes: usize,
}

impl OutboundQueue {
    /// Nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.backlog.is_none()
    }

    /// Bytes of frames that wait, less a control frame and a Close of which nothing is written.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.backlog.as_ref().map_or(0, |backlog| backlog.bytes)
    }

    /// Appends `frames`: one or more whole server frames.
    pub fn push(&mut self, frames: &Bytes, limit: &Limit) -> Pushed {
        if frames.is_empty() {
            return Pushed::Queued;
        }
        let backlog = self.backlog.get_or_insert_default();
        if backlog.close.is_some() {
            return Pushed::Queued;
        }
        if backlog.bytes + frames.len() <= limit.max_bytes {
            backlog.append(frames.clone());
            return Pushed::Queued;
        }
        let pushed = match limit.policy {
            SlowConsumerPolicy::Close => Pushed::Overflow,
            SlowConsumerPolicy::DropOldest => {
                Pushed::Dropped(backlog.push_over_oldest(frames, limit))
            }
            SlowConsumerPolicy::DropNewest => {
                Pushed::Dropped(backlog.push_what_fits(frames, limit))
            }
        };
        self.forget_if_empty();
        pushed
    }

    /// Appends what is left of `frames` (whole server frames) after the socket took their first
    /// `written` bytes, which it can only do while nothing waits. The frame that it took a part of
    /// stays whatever the policy says: a frame cannot be left half.
    pub fn push_rest(&mut self, frames: &Bytes, written: usize, limit: &Limit) -> Pushed {
        debug_assert!(self.is_empty(), "written past frames that wait");
        let boundary = frame::boundary_from(frames, written);
        if boundary > written {
            let backlog = self.backlog.get_or_insert_default();
            backlog.started = exact(frames, written, boundary);
            backlog.bytes += backlog.started.len();
        }
        if boundary == frames.len() {
            return Pushed::Queued;
        }
        self.push(&exact(frames, boundary, frames.len()), limit)
    }

    /// Appends what is left of `frames`, which answer the peer's own, after the socket took their first
    /// `written` bytes; others may wait before them only if it took none. No policy bounds them. The
    /// latest Pong among them waits like any other: behind data a newer one would pass it, and a policy
    /// could drop it.
    pub fn push_answers(&mut self, frames: &Bytes, written: usize) {
        let boundary = frame::boundary_from(frames, written);
        let backlog = self.backlog.get_or_insert_default();
        if backlog.close.is_some() {
            return;
        }
        if boundary > written {
            debug_assert!(backlog.started.is_empty(), "written past frames that wait");
            backlog.start(exact(frames, written, boundary));
        }
        for_each_frame(&frames.slice(boundary..), |frame| {
            if frame::is_message(&frame) {
                backlog.append(frame);
            } else {
                backlog.control = frame;
            }
        });
        self.forget_if_empty();
    }

    /// Takes a Pong frame. It goes before the data frames that wait, in the place of an earlier control
    /// frame that still does.
    pub fn push_pong(&mut self, pong: Bytes) {
        let backlog = self.backlog.get_or_insert_default();
        if backlog.close.is_none() {
            backlog.control = pong;
        }
    }

    /// Takes a Ping frame, unless another control frame waits. It goes before the data frames that
    /// wait.
    pub fn push_ping(&mut self, ping: Bytes) {
        if self.backlog.as_ref().is_none_or(|backlog| backlog.control.is_empty()) {
            self.push_pong(ping);
        }
    }

    /// Takes our Close frame. It goes after all that waits; nothing is taken after it.
    pub fn push_close(&mut self, close: Bytes) {
        self.backlog.get_or_insert_default().close = Some(close);
    }

    /// Drops the frames of which no byte was written, and returns how many data messages they hold.
    pub fn drop_waiting(&mut self) -> usize {
        let Some(backlog) = &mut self.backlog else {
            return 0;
        };
        let dropped = backlog.frames.iter().map(|frames| frame::count_messages(frames)).sum();
        backlog.frames = VecDeque::new();
        backlog.bytes = backlog.started.len();
        self.forget_if_empty();
        dropped
    }

    /// What to write next, in order: at most 64 slices, none of them empty.
    pub fn slices(&self) -> Vec<IoSlice<'_>> {
        let slices = self.backlog.iter().flat_map(|backlog| backlog.slices());
        slices.take(MAX_SLICES).map(|bytes| IoSlice::new(bytes)).collect()
    }

    /// Takes note that the socket took the first `written` bytes of [`OutboundQueue::slices`].
    pub fn advance(&mut self, mut written: usize) {
        let Some(backlog) = &mut self.backlog else {
            return;
        };
        let started = written.min(backlog.started.len());
        backlog.bytes -= started;
        backlog.started = backlog.started.split_off(started);
        written -= started;

        let control = std::mem::take(&mut backlog.control);
        if written < control.len() {
            match written {
                0 => backlog.control = control,
                _ => backlog.start(control.slice(written..)),
            }
            written = 0;
        } else {
            written -= control.len();
        }

        while written > 0 {
            let Some(frames) = backlog.frames.pop_front() else {
                let close = backlog.close.take().expect("the socket took no more than there was");
                backlog.start(close.slice(written..));
                // A Close that is on its way still lets nothing follow it.
                backlog.close = Some(Bytes::new());
                break;
            };
            backlog.bytes -= frames.len();
            if written >= frames.len() {
                written -= frames.len();
                continue;
            }
            let boundary = frame::boundary_from(&frames, written);
            if boundary < frames.len() {
                backlog.bytes += frames.len() - boundary;
                backlog.frames.push_front(frames.slice(boundary..));
            }
            backlog.start(exact(&frames, written, boundary));
            written = 0;
        }
        self.forget_if_empty();
    }

    fn forget_if_empty(&mut self) {
        if self.backlog.as_ref().is_some_and(|backlog| backlog.slices().next().is_none()) {
            self.backlog = None;
        }
    }
}

impl Backlog {
    fn slices(&self) -> impl Iterator<Item = &Bytes> {
        [&self.started, &self.control]
            .into_iter()
            .chain(&self.frames)
            .chain(&self.close)
            .filter(|bytes| !bytes.is_empty())
    }

    fn append(&mut self, frames: Bytes) {
        self.bytes += frames.len();
        if frames.len() >= MAX_COPIED_BYTES {
            self.frames.push_back(frames);
            return;
        }
        let mut chunk = match self.frames.pop_back() {
            Some(last) if last.len() + frames.len() <= MAX_CHUNK_BYTES => {
                // It is shared where other slow connections have the same batch.
                last.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]))
            }
            Some(last) => {
                self.frames.push_back(last);
                BytesMut::new()
            }
            None => BytesMut::new(),
        };
        chunk.extend_from_slice(&frames);
        self.frames.push_back(chunk.freeze());
    }

    /// Makes `rest` of a frame the next thing to be written.
    fn start(&mut self, rest: Bytes) {
        self.bytes += rest.len();
        self.started = rest;
    }

    /// Appends the frames of `frames` that fit; returns how many data messages did not.
    fn push_what_fits(&mut self, frames: &Bytes, limit: &Limit) -> usize {
        let mut dropped = 0;
        for_each_frame(frames, |frame| {
            if self.bytes + frame.len() <= limit.max_bytes {
                self.append(frame);
            } else {
                dropped += usize::from(frame::is_message(&frame));
            }
        });
        dropped
    }

    /// Appends all of `frames` and drops as many waiting ones, oldest first, as that takes. A frame
    /// of which a part is written stays, so the newest does not fit where that one fills the queue.
    fn push_over_oldest(&mut self, frames: &Bytes, limit: &Limit) -> usize {
        let mut dropped = 0;
        for_each_frame(frames, |frame| {
            while self.bytes + frame.len() > limit.max_bytes {
                let Some(oldest) = self.frames.pop_front() else {
                    break;
                };
                let boundary = frame::first_frame_bytes(&oldest);
                self.bytes -= boundary;
                dropped += usize::from(frame::is_message(&oldest));
                if boundary < oldest.len() {
                    self.frames.push_front(oldest.slice(boundary..));
                }
            }
            if self.bytes + frame.len() <= limit.max_bytes {
                self.append(frame);
            } else {
                dropped += usize::from(frame::is_message(&frame));
            }
        });
        dropped
    }
}

/// Hands each frame of `frames` on its own to `take`.
fn for_each_frame(frames: &Bytes, mut take: impl FnMut(Bytes)) {
    let mut start = 0;
    while start < frames.len() {
        let end = start + frame::first_frame_bytes(&frames[start..]);
        take(exact(frames, start, end));
        start = end;
    }
}

/// The part `start..end` of `frames`, copied if it is the smaller one: a shared part would hold all
/// of `frames` in memory, so that a queue could hold many times what it counts.
fn exact(frames: &Bytes, start: usize, end: usize) -> Bytes {
    if (end - start) * 2 < frames.len() {
        Bytes::copy_from_slice(&frames[start..end])
    } else {
        frames.slice(start..end)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::close::CloseCode;
    use crate::wire::header::Opcode;

    fn limit(max_bytes: usize, policy: SlowConsumerPolicy) -> Limit {
        Limit { max_bytes, policy }
    }

    /// A text frame whose payload is `text`; two bytes longer.
    fn text(text: &str) -> Bytes {
        frame::encode(Opcode::Text, text.as_bytes())
    }

    fn texts(texts: &[&str]) -> Bytes {
        texts.iter().flat_map(|payload| text(payload)).collect()
    }

    /// What the queue would write in one call.
    pub(crate) fn offered(queue: &OutboundQueue) -> Vec<u8> {
        queue.slices().iter().flat_map(|slice| slice.to_vec()).collect()
    }

    /// Writes everything, `step` bytes at a time.
    fn drain(queue: &mut OutboundQueue, step: usize) -> Vec<u8> {
        let mut output = Vec::new();
        while !queue.is_empty() {
            let offered = offered(queue);
            let written = offered.len().min(step);
            output.extend_from_slice(&offered[..written]);
            queue.advance(written);
        }
        output
    }

    #[test]
    fn empty_queue_is_one_word_and_becomes_so_again() {
        assert_eq!(size_of::<OutboundQueue>(), size_of::<usize>());
        let mut queue = OutboundQueue::default();
        queue.push(&text("a"), &limit(100, SlowConsumerPolicy::Close));
        assert_eq!(drain(&mut queue, 1), *text("a"));
        assert!(queue.backlog.is_none());
    }

    #[test]
    fn frames_that_would_pass_the_bound_are_refused_and_leave_the_queue_as_it_was() {
        let limit = limit(6, SlowConsumerPolicy::Close);
        let mut queue = OutboundQueue::default();
        assert_eq!(queue.push(&text("four"), &limit), Pushed::Queued);
        assert_eq!(queue.push(&text(""), &limit), Pushed::Overflow);
        assert_eq!(drain(&mut queue, 100), *text("four"));
    }

    #[test]
    fn drop_newest_keeps_what_waits_and_counts_each_frame_of_a_batch() {
        let limit = limit(9, SlowConsumerPolicy::DropNewest);
        let mut queue = OutboundQueue::default();
        assert_eq!(queue.push(&texts(&["a", "b"]), &limit), Pushed::Queued);
        assert_eq!(queue.push(&texts(&["c", "d", "e"]), &limit), Pushed::Dropped(2));
        assert_eq!(drain(&mut queue, 100), *texts(&["a", "b", "c"]));
    }

    #[test]
    fn drop_oldest_keeps_the_newest_and_counts_each_frame_of_a_batch() {
        let limit = limit(9, SlowConsumerPolicy::DropOldest);
        let mut queue = OutboundQueue::default();
        assert_eq!(queue.push(&texts(&["a", "b"]), &limit), Pushed::Queued);
        assert_eq!(queue.push(&texts(&["c", "d", "e"]), &limit), Pushed::Dropped(2));
        assert_eq!(drain(&mut queue, 100), *texts(&["c", "d", "e"]));
    }

    #[test]
    fn frame_of_which_a_part_is_written_is_never_dropped() {
        let limit = limit(9, SlowConsumerPolicy::DropOldest);
        let mut queue = OutboundQueue::default();
        let batch = texts(&["abc", "d"]);
        assert_eq!(queue.push_rest(&batch, 1, &limit), Pushed::Queued);
        assert_eq!(queue.push(&texts(&["e", "f"]), &limit), Pushed::Dropped(2));
        assert_eq!(drain(&mut queue, 100), [&batch[1..5], &text("f")].concat());
    }

    #[test]
    fn latest_pong_goes_before_data_but_never_into_a_frame() {
        let limit = limit(100, SlowConsumerPolicy::Close);
        let pong = |payload: &str| frame::encode(Opcode::Pong, payload.as_bytes());
        for step in [1, 2, 3, 100] {
            let mut queue = OutboundQueue::default();
            queue.push_rest(&texts(&["abc", "d"]), 2, &limit);
            queue.push_pong(pong("1"));
            queue.push_pong(pong("2"));
            assert_eq!(drain(&mut queue, step), [&b"abc"[..], &pong("2"), &text("d")].concat());
        }
    }

    #[test]
    fn latest_pong_of_answers_that_wait_goes_before_their_data_and_is_never_dropped() {
        let limit = limit(9, SlowConsumerPolicy::DropOldest);
        let pong = |payload: &str| frame::encode(Opcode::Pong, payload.as_bytes());
        let answers = Bytes::from([text("abc"), pong("1"), text("d"), pong("2")].concat());
        let mut queue = OutboundQueue::default();
        queue.push_answers(&answers, 0);
        assert_eq!(queue.push(&texts(&["e", "f", "g"]), &limit), Pushed::Dropped(2));
        assert_eq!(drain(&mut queue, 1), [&pong("2")[..], &texts(&["e", "f", "g"])].concat());
        queue.push_answers(&answers, 2);
        assert_eq!(drain(&mut queue, 1), [&b"abc"[..], &pong("2"), &text("d")].concat());
        queue.push_answers(&answers, 6);
        queue.push_pong(pong("3"));
        assert_eq!(drain(&mut queue, 100), [&pong("1")[1..], &pong("3"), &text("d")].concat());
        queue.push_answers(&answers, answers.len());
        assert!(queue.is_empty());
    }

    #[test]
    fn nothing_follows_close_even_when_half_of_it_is_written() {
        let limit = limit(100, SlowConsumerPolicy::Close);
        let close = frame::encode_close(Some(CloseCode::NORMAL), "bye");
        let mut queue = OutboundQueue::default();
        queue.push(&text("a"), &limit);
        queue.push_close(close.clone());
        queue.push(&text("late"), &limit);
        queue.advance(4);
        queue.push(&text("later"), &limit);
        queue.push_pong(frame::encode(Opcode::Pong, b""));
        assert_eq!(drain(&mut queue, 100), close[1..]);
    }

    #[test]
    fn many_tiny_frames_take_no_more_memory_than_they_count() {
        let limit = limit(1 << 20, SlowConsumerPolicy::Close);
        let mut queue = OutboundQueue::default();
        for _ in 0..50_000 {
            assert_eq!(queue.push(&text(""), &limit), Pushed::Queued);
        }
        let backlog = queue.backlog.as_ref().unwrap();
        assert_eq!(backlog.bytes, 100_000);
        assert!(
            backlog.frames.len() <= 100_000 / (MAX_CHUNK_BYTES - 2) + 1,
            "{}",
            backlog.frames.len()
        );
    }

    #[test]
    fn dropped_control_frames_are_not_counted_as_messages() {
        let limit = limit(8, SlowConsumerPolicy::DropOldest);
        let mut queue = OutboundQueue::default();
        let pong = frame::encode(Opcode::Pong, b"");
        queue.push(&[text("a"), pong.clone(), text("b")].concat().into(), &limit);
        assert_eq!(queue.push(&text("cd"), &limit), Pushed::Dropped(1));
        assert_eq!(drain(&mut queue, 100), [&text("b")[..], &text("cd")].concat());
        queue.push(&[pong, text("a")].concat().into(), &limit);
        assert_eq!(queue.drop_waiting(), 1);
    }

    #[test]
    fn small_rest_of_a_large_batch_does_not_hold_the_batch() {
        let large: Bytes = (0..1_000).flat_map(|_| text("x")).collect();
        let rest = exact(&large, 2_997, 3_000);
        assert!(!large.as_ptr_range().contains(&rest.as_ptr()));
    }

    proptest! {
        #[test]
        fn whatever_the_socket_takes_frames_stay_whole_and_in_order(
            batches in proptest::collection::vec(
                proptest::collection::vec("[a-z]{0,200}", 1..5), 1..6),
            first_written in any::<prop::sample::Index>(),
            step in 1usize..50,
        ) {
            let limit = limit(1 << 20, SlowConsumerPolicy::Close);
            let batches: Vec<Bytes> = batches
                .iter()
                .map(|batch| batch.iter().flat_map(|payload| text(payload)).collect())
                .collect();
            let written = first_written.index(batches[0].len());
            let mut queue = OutboundQueue::default();
            queue.push_rest(&batches[0], written, &limit);
            for batch in &batches[1..] {
                queue.push(batch, &limit);
            }
            let whole = batches.concat();
            prop_assert_eq!(queue.bytes(), whole.len() - written);
            prop_assert_eq!(drain(&mut queue, step), &whole[written..]);
        }

        #[test]
        fn dropping_policies_keep_the_bound_and_count_every_frame(
            payloads in proptest::collection::vec("[a-z]{0,30}", 1..60),
            together in 1usize..6,
            oldest: bool,
            step in 0usize..60,
        ) {
            let policy =
                if oldest { SlowConsumerPolicy::DropOldest } else { SlowConsumerPolicy::DropNewest };
            let limit = limit(100, policy);
            let mut queue = OutboundQueue::default();
            let (mut dropped, mut output) = (0, Vec::new());
            for batch in payloads.chunks(together) {
                let batch: Bytes = batch.iter().flat_map(|payload| text(payload)).collect();
                if let Pushed::Dropped(frames) = queue.push(&batch, &limit) {
                    dropped += frames;
                }
                prop_assert!(queue.bytes() <= limit.max_bytes);
                let offered = offered(&queue);
                let written = offered.len().min(step);
                output.extend_from_slice(&offered[..written]);
                queue.advance(written);
            }
            output.extend(drain(&mut queue, 7));
            prop_assert_eq!(frame::count_messages(&output) + dropped, payloads.len());
        }
    }
}
