//! Publications to one channel that travel together.

use std::ops::{AddAssign, Range, SubAssign};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;

use crate::pubsub::ConnectionId;

/// From this size on a frame is shared instead of copied beside the small ones. Copying a small
/// frame costs less than one more entry in a vectored write, and a slow reader that holds it does
/// not hold the read buffer it came in.
const SHARED_FRAME_BYTES: usize = 16 * 1024;

/// How many forms a batch can have beside the one it was made in.
pub const FORMS: usize = 8;

/// How many publications of which kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Text messages.
    pub texts: u32,
    /// Binary messages.
    pub binaries: u32,
}

impl Count {
    /// Both kinds together.
    pub fn total(self) -> u32 {
        self.texts + self.binaries
    }

    /// One frame. Its kind stands in the last four bits of its first byte.
    fn one(frame: &[u8]) -> Self {
        const TEXT: u8 = 0x1;
        match frame[0] & 0xf {
            TEXT => Self { texts: 1, binaries: 0 },
            _ => Self { texts: 0, binaries: 1 },
        }
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.texts += other.texts;
        self.binaries += other.binaries;
    }
}

impl SubAssign for Count {
    fn sub_assign(&mut self, other: Self) {
        self.texts -= other.texts;
        self.binaries -= other.binaries;
    }
}

/// The publications of one turn to one channel, encoded once, for however many subscribers.
#[derive(Debug)]
pub struct Batch {
    /// Whole server frames one after the other, oldest first; no segment is empty and no frame lies
    /// in two.
    segments: Vec<Bytes>,
    bytes: usize,
    largest_frame_bytes: usize,
    count: Count,
    received_at: Instant,
    /// Sorted by publisher.
    excluded: Vec<Exclusion>,
    /// The batches that were joined to this one, if it is nothing else: they may have been otherwise
    /// encoded already.
    parts: Vec<Arc<Batch>>,
    /// The same publications otherwise encoded, as far as somebody has asked.
    forms: OnceLock<Box<[OnceLock<Batch>; FORMS]>>,
}

/// Publications that their publisher does not want back.
#[derive(Clone, Debug)]
struct Exclusion {
    publisher: ConnectionId,
    /// Where they lie, counted over all segments.
    range: Range<usize>,
    count: Count,
}

impl Batch {
    /// A batch of one frame, received at `now`.
    pub fn single(frame: Bytes, now: Instant) -> Self {
        let mut builder = BatchBuilder::new(now);
        builder.push(frame, None);
        builder.finish()
    }

    /// The frames: whole ones in every segment, oldest first.
    pub fn segments(&self) -> &[Bytes] {
        &self.segments
    }

    /// Length of all frames in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What the batch takes of a bound on memory, in bytes.
    pub fn weight(&self) -> usize {
        self.bytes + self.excluded.len() * size_of::<Exclusion>()
    }

    /// Length of the longest frame in bytes.
    pub fn largest_frame_bytes(&self) -> usize {
        self.largest_frame_bytes
    }

    /// The same publications in the form of this number, below [`FORMS`]. Whoever asks first has it made
    /// by `make`; all others, on whichever shard, get the same, also as a part of a larger batch.
    pub fn form(&self, form: usize, make: &mut dyn FnMut(&Self) -> Self) -> &Self {
        let forms = self.forms.get_or_init(Box::default);
        forms[form].get_or_init(|| {
            if self.parts.is_empty() {
                return make(self);
            }
            let mut builder = BatchBuilder::new(self.received_at);
            self.parts.iter().for_each(|part| builder.append(part.form(form, make)));
            builder.finish()
        })
    }

    /// The same publications, each as `encode` has appended it; where `encode` says `false` it has
    /// appended nothing, and the frame stays as it is. `first_frame_bytes` tells the length of the
    /// frame at the front of what it is given.
    pub fn encoded_again(
        &self,
        first_frame_bytes: impl Fn(&[u8]) -> usize,
        mut encode: impl FnMut(&[u8], &mut Vec<u8>) -> bool,
    ) -> Self {
        let mut excluded: Vec<_> = self.excluded.iter().collect();
        excluded.sort_by_key(|entry| entry.range.start);
        let mut excluded = excluded.into_iter().peekable();
        let mut builder = BatchBuilder::new(self.received_at);
        let (mut position, mut again) = (0, Vec::new());
        for segment in &self.segments {
            let mut at = 0;
            while at < segment.len() {
                let end = at + first_frame_bytes(&segment[at..]);
                while excluded.next_if(|entry| entry.range.end <= position).is_some() {}
                let entry = excluded.peek().filter(|entry| entry.range.start <= position);
                let publisher = entry.map(|entry| entry.publisher);
                again.clear();
                if encode(&segment[at..end], &mut again) {
                    builder.push_borrowed(&again, publisher);
                } else {
                    builder.push(segment.slice(at..end), publisher);
                }
                position += end - at;
                at = end;
            }
        }
        builder.finish()
    }

    /// How many frames there are.
    pub fn count(&self) -> Count {
        self.count
    }

    /// When the oldest publication came in.
    pub fn received_at(&self) -> Instant {
        self.received_at
    }

    /// Whether somebody who published some of it does not want that back.
    #[inline]
    pub fn excludes_some(&self) -> bool {
        !self.excluded.is_empty()
    }

    /// Whether some of it was published by `subscriber`, which does not want that back.
    #[inline]
    pub fn excludes(&self, subscriber: ConnectionId) -> bool {
        !self.excluded.is_empty()
            && self.excluded.binary_search_by_key(&subscriber, |entry| entry.publisher).is_ok()
    }

    /// What `subscriber` gets where [`Batch::excludes`] something from it: the other frames, and how
    /// many they are.
    pub fn segments_for(&self, subscriber: ConnectionId) -> (Vec<Bytes>, Count) {
        let first = self.excluded.partition_point(|entry| entry.publisher < subscriber);
        let own = self.excluded[first..].iter().take_while(|entry| entry.publisher == subscriber);
        let mut own = own.peekable();
        let mut kept = Vec::with_capacity(self.segments.len());
        let mut count = self.count;
        let mut offset = 0;
        for segment in &self.segments {
            let end = offset + segment.len();
            let mut at = offset;
            // A range may begin in the segment before and go on in the next.
            while let Some(range) =
                own.peek().map(|own| &own.range).filter(|range| range.start < end)
            {
                if range.start > at {
                    kept.push(segment.slice(at - offset..range.start - offset));
                }
                at = range.end.min(end);
                if range.end > end {
                    break;
                }
                count -= own.next().map_or(Count::default(), |own| own.count);
            }
            if at < end {
                kept.push(segment.slice(at - offset..));
            }
            offset = end;
        }
        (kept, count)
    }
}

/// A batch that is being collected.
#[derive(Debug)]
pub struct BatchBuilder {
    /// Finished segments; the frames in `tail` come after them.
    segments: Vec<Bytes>,
    tail: Vec<u8>,
    bytes: usize,
    largest_frame_bytes: usize,
    count: Count,
    received_at: Instant,
    /// In the order in which they lie.
    excluded: Vec<Exclusion>,
    /// Batches of which it is made, if they are all there is in it.
    parts: Vec<Arc<Batch>>,
}

impl BatchBuilder {
    /// An empty batch whose first publication came in at `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            segments: Vec::new(),
            tail: Vec::new(),
            bytes: 0,
            largest_frame_bytes: 0,
            count: Count::default(),
            received_at: now,
            excluded: Vec::new(),
            parts: Vec::new(),
        }
    }

    /// Adds one frame that lies in a buffer which will be used again. `excluded` does not get it.
    pub fn push_borrowed(&mut self, frame: &[u8], excluded: Option<ConnectionId>) {
        self.note(frame, excluded);
        if frame.len() < SHARED_FRAME_BYTES {
            self.tail.extend_from_slice(frame);
        } else {
            self.end_tail();
            self.segments.push(Bytes::copy_from_slice(frame));
        }
    }

    /// Adds one frame that has a buffer of its own. `excluded` does not get it.
    pub fn push(&mut self, frame: Bytes, excluded: Option<ConnectionId>) {
        if frame.len() < SHARED_FRAME_BYTES {
            self.push_borrowed(&frame, excluded);
        } else {
            self.note(&frame, excluded);
            self.end_tail();
            self.segments.push(frame);
        }
    }

    /// Adds everything in `batch`, behind what is here already.
    pub fn push_batch(&mut self, batch: &Arc<Batch>) {
        if self.bytes == 0 || !self.parts.is_empty() {
            self.parts.push(Arc::clone(batch));
        }
        self.append(batch);
    }

    fn append(&mut self, batch: &Batch) {
        let offset = self.bytes;
        self.excluded.extend(batch.excluded.iter().map(|entry| Exclusion {
            range: entry.range.start + offset..entry.range.end + offset,
            ..entry.clone()
        }));
        self.bytes += batch.bytes;
        self.largest_frame_bytes = self.largest_frame_bytes.max(batch.largest_frame_bytes);
        self.count += batch.count;
        self.received_at = self.received_at.min(batch.received_at);
        for segment in &batch.segments {
            if segment.len() < SHARED_FRAME_BYTES {
                self.tail.extend_from_slice(segment);
            } else {
                self.end_tail();
                self.segments.push(segment.clone());
            }
        }
    }

    /// What the batch takes of a bound on memory so far, in bytes.
    pub fn weight(&self) -> usize {
        self.bytes + self.excluded.len() * size_of::<Exclusion>()
    }

    /// The batch, ready to be shared.
    pub fn finish(mut self) -> Batch {
        self.end_tail();
        // A stable sort keeps the ranges of one publisher in the order they lie in.
        self.excluded.sort_by_key(|entry| entry.publisher);
        Batch {
            segments: self.segments,
            bytes: self.bytes,
            largest_frame_bytes: self.largest_frame_bytes,
            count: self.count,
            received_at: self.received_at,
            excluded: self.excluded,
            parts: self.parts,
            forms: OnceLock::new(),
        }
    }

    fn note(&mut self, frame: &[u8], excluded: Option<ConnectionId>) {
        self.parts.clear();
        let range = self.bytes..self.bytes + frame.len();
        let count = Count::one(frame);
        self.bytes = range.end;
        self.largest_frame_bytes = self.largest_frame_bytes.max(frame.len());
        self.count += count;
        let Some(publisher) = excluded else {
            return;
        };
        match self.excluded.last_mut() {
            Some(last) if last.publisher == publisher && last.range.end == range.start => {
                last.range.end = range.end;
                last.count += count;
            }
            Some(_) | None => self.excluded.push(Exclusion { publisher, range, count }),
        }
    }

    fn end_tail(&mut self) {
        if !self.tail.is_empty() {
            self.segments.push(std::mem::take(&mut self.tail).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pubsub::ShardId;

    fn id(slot: u32) -> ConnectionId {
        ConnectionId { shard: ShardId::new(0), slot, generation: 0 }
    }

    fn text(segments: &[Bytes]) -> String {
        String::from_utf8(segments.concat()).unwrap()
    }

    #[test]
    fn small_frames_share_one_segment_and_large_ones_keep_their_own() {
        let mut builder = BatchBuilder::new(Instant::now());
        let large = Bytes::from(vec![b'L'; SHARED_FRAME_BYTES]);
        builder.push_borrowed(b"a", None);
        builder.push_borrowed(b"b", None);
        builder.push(large.clone(), None);
        builder.push(Bytes::from_static(b"c"), None);
        let batch = builder.finish();
        assert_eq!(batch.segments(), [&b"ab"[..], &large, &b"c"[..]]);
        assert_eq!(batch.segments()[1].as_ptr(), large.as_ptr(), "a large frame is not copied");
        assert_eq!((batch.count().total(), batch.bytes()), (4, SHARED_FRAME_BYTES + 3));
    }

    #[test]
    fn publisher_that_left_itself_out_gets_the_frames_of_the_others_only() {
        let mut builder = BatchBuilder::new(Instant::now());
        for (frame, publisher) in [("a1", 1), ("b1", 2), ("a2", 1), ("a3", 1), ("c1", 3)] {
            let excluded = (publisher != 3).then(|| id(publisher));
            builder.push_borrowed(frame.as_bytes(), excluded);
        }
        let batch = builder.finish();
        for (subscriber, expected, publications) in
            [(1, "b1c1", 2), (2, "a1a2a3c1", 4), (3, "a1b1a2a3c1", 5), (4, "a1b1a2a3c1", 5)]
        {
            let (segments, count) = batch.segments_for(id(subscriber));
            assert_eq!((text(&segments).as_str(), count.total()), (expected, publications));
        }
    }

    #[test]
    fn neighbouring_exclusions_of_one_publisher_are_one_also_over_segments() {
        let mut builder = BatchBuilder::new(Instant::now());
        builder.push_borrowed(b"x0", None);
        let large = Bytes::from(vec![0x82; SHARED_FRAME_BYTES]);
        for frame in [Bytes::from_static(b"\x81a"), large, Bytes::from_static(b"\x81b")] {
            builder.push(frame, Some(id(1)));
        }
        builder.push_borrowed(b"x1", None);
        let batch = builder.finish();
        assert_eq!(batch.weight(), batch.bytes() + size_of::<Exclusion>());
        assert!(batch.excludes(id(1)) && !batch.excludes(id(2)));
        let (segments, count) = batch.segments_for(id(1));
        assert_eq!((text(&segments).as_str(), count.total()), ("x0x1", 2));
    }

    #[test]
    fn exclusions_move_with_a_batch_that_joins_another() {
        let now = Instant::now();
        let mut remote = BatchBuilder::new(now);
        remote.push_borrowed(b"r1", Some(id(1)));
        remote.push(Bytes::from(vec![b'R'; SHARED_FRAME_BYTES]), Some(id(1)));
        remote.push_borrowed(b"r2", None);
        let mut home = BatchBuilder::new(now);
        home.push_borrowed(b"h1", Some(id(2)));
        home.push_batch(&Arc::new(remote.finish()));
        home.push_borrowed(b"h2", Some(id(1)));
        let batch = home.finish();
        assert_eq!(batch.count().total(), 5);
        assert_eq!(text(&batch.segments_for(id(1)).0), "h1r2");
        assert!(text(&batch.segments_for(id(2)).0).starts_with("r1RRR"));
        assert!(text(&batch.segments_for(id(2)).0).ends_with("RRRr2h2"));
    }

    #[test]
    fn form_of_joined_batches_is_made_of_theirs() {
        let single = |frame: &'static str| {
            Arc::new(Batch::single(Bytes::from_static(frame.as_bytes()), Instant::now()))
        };
        let twice = |batch: &Batch| {
            let mut builder = BatchBuilder::new(batch.received_at());
            batch.segments().iter().for_each(|frames| builder.push(frames.repeat(2).into(), None));
            builder.finish()
        };
        let (a, b) = (single("a"), single("b"));
        let mut made = 0;
        let mut make = |batch: &Batch| {
            made += 1;
            twice(batch)
        };
        assert_eq!(text(a.form(0, &mut make).segments()), "aa");
        let mut joined = BatchBuilder::new(Instant::now());
        joined.push_batch(&a);
        joined.push_batch(&b);
        let joined = Arc::new(joined.finish());
        assert_eq!(text(joined.form(0, &mut make).segments()), "aabb");
        let mut again = BatchBuilder::new(Instant::now());
        again.push_batch(&joined);
        assert_eq!(text(again.finish().form(0, &mut make).segments()), "aabb");
        assert_eq!(made, 2, "each batch once");

        let mut mixed = BatchBuilder::new(Instant::now());
        mixed.push_batch(&a);
        mixed.push_borrowed(b"c", None);
        mixed.push_batch(&b);
        assert_eq!(text(mixed.finish().form(0, &mut |batch| twice(batch)).segments()), "acbacb");
    }

    #[test]
    fn form_is_made_once_and_leaves_out_the_same_publications() {
        let mut builder = BatchBuilder::new(Instant::now());
        let large = Bytes::from(vec![b'L'; SHARED_FRAME_BYTES]);
        for (frame, publisher) in [("a1", Some(1)), ("b1", Some(2)), ("a2", Some(1)), ("c1", None)]
        {
            builder.push_borrowed(frame.as_bytes(), publisher.map(id));
        }
        builder.push(large.clone(), Some(id(1)));
        builder.push_borrowed(b"b2", Some(id(2)));
        let batch = builder.finish();
        assert_eq!(batch.largest_frame_bytes(), SHARED_FRAME_BYTES);

        // Each frame of this test is two bytes long, or large; the large one stays as it is.
        let first_frame_bytes = |frames: &[u8]| match frames[0] {
            b'L' => SHARED_FRAME_BYTES,
            _ => 2,
        };
        let encode = |frame: &[u8], output: &mut Vec<u8>| {
            let is_small = frame.len() == 2;
            if is_small {
                output.extend_from_slice(b"<");
                output.extend_from_slice(frame);
                output.extend_from_slice(b">");
            }
            is_small
        };
        let mut make = |batch: &Batch| batch.encoded_again(first_frame_bytes, encode);
        let form = batch.form(3, &mut make);
        assert!(std::ptr::eq(form, batch.form(3, &mut |_| unreachable!("it is there"))));
        assert_eq!(form.segments()[1].as_ptr(), large.as_ptr(), "what stays is shared");
        assert_eq!(form.count().total(), batch.count().total());
        for subscriber in [1, 2, 3] {
            let (plain, count) = batch.segments_for(id(subscriber));
            let bracketed: String =
                text(&plain).as_bytes().chunks(2).fold(String::new(), |all, frame| match frame {
                    b"LL" => all + "LL",
                    frame => format!("{all}<{}>", std::str::from_utf8(frame).unwrap()),
                });
            let (segments, form_count) = form.segments_for(id(subscriber));
            assert_eq!(text(&segments), bracketed);
            assert_eq!(form_count.total(), count.total());
        }
    }

    /// A frame and who published it, counted over all of a test.
    #[derive(Clone, Debug)]
    struct Published {
        frame: Bytes,
        publisher: u32,
        wants_own: bool,
    }

    /// Small frames mostly, some on either side of the size from which one is shared.
    fn published() -> impl Strategy<Value = Published> {
        let shared = SHARED_FRAME_BYTES;
        let bytes = prop_oneof![9 => 1..20usize, 1 => shared - 1..shared + 2];
        (bytes, any::<u8>(), any::<bool>(), 0u32..4, prop::bool::weighted(0.3)).prop_map(
            |(bytes, filler, is_text, publisher, wants_own)| {
                let mut frame = vec![filler; bytes];
                frame[0] = if is_text { 0x81 } else { 0x82 };
                Published { frame: frame.into(), publisher, wants_own }
            },
        )
    }

    fn push(builder: &mut BatchBuilder, published: &Published, is_borrowed: bool) {
        let excluded = (!published.wants_own).then(|| id(published.publisher));
        if is_borrowed {
            builder.push_borrowed(&published.frame, excluded);
        } else {
            builder.push(published.frame.clone(), excluded);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_subscriber_gets_all_but_what_it_does_not_want_back_however_batches_were_joined(
            parts in proptest::collection::vec(
                (proptest::collection::vec((published(), any::<bool>()), 0..8), any::<bool>()), 1..6),
        ) {
            let now = Instant::now();
            let mut builder = BatchBuilder::new(now);
            for (part, is_a_batch) in &parts {
                let mut apart = BatchBuilder::new(now);
                let target = if *is_a_batch { &mut apart } else { &mut builder };
                part.iter().for_each(|(published, is_borrowed)| push(target, published, *is_borrowed));
                builder.push_batch(&Arc::new(apart.finish()));
            }
            let batch = builder.finish();
            let all: Vec<&Published> =
                parts.iter().flat_map(|(part, _)| part).map(|(published, _)| published).collect();
            for subscriber in 0..5 {
                let is_own = |one: &&&Published| one.publisher == subscriber && !one.wants_own;
                let wanted: Vec<_> = all.iter().filter(|one| !is_own(one)).collect();
                let mut count = Count::default();
                wanted.iter().for_each(|one| count += Count::one(&one.frame));
                let (segments, counted) = batch.segments_for(id(subscriber));
                prop_assert!(segments.iter().all(|segment| !segment.is_empty()));
                let wanted: Vec<u8> = wanted.iter().flat_map(|one| one.frame.to_vec()).collect();
                prop_assert!(segments.concat() == wanted, "what subscriber {} gets", subscriber);
                prop_assert_eq!(counted, count);
                prop_assert_eq!(batch.excludes(id(subscriber)), all.iter().any(|one| is_own(&one)));
            }
            let everything: Vec<u8> = all.iter().flat_map(|one| one.frame.to_vec()).collect();
            prop_assert!(batch.segments().concat() == everything);
            prop_assert_eq!(batch.bytes(), everything.len());
        }
    }
}
