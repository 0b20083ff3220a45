//! One open connection: its socket beside its protocol state.

use std::cell::{Cell, OnceCell, RefCell, RefMut};
use std::io::{self, IoSlice};
use std::ops::{Deref, DerefMut};
use std::os::fd::{BorrowedFd, RawFd};
use std::rc::Rc;
use std::task::Waker;
use std::time::Instant;

use bytes::{Buf, Bytes};
use rustix::io::Errno;

use crate::auth::identity::PublishGrant;
use crate::connection::outbound::{Pushed, SlowConsumerPolicy};
use crate::connection::{Connection, Ending};
use crate::hub::{ChannelKey, SubscriptionKey};
use crate::protocol::raw::Ask;
use crate::pubsub::{Batch, ConnectionId, Count, ShardId};
use crate::shard::Shard;
use crate::shard::admitted::Admitted;
use crate::shard::compression::{Coding, Takeover};
use crate::shard::stream::{Stream, send_bytes, send_slices};
use crate::telemetry::counters::{BINARY, SlowConsumer, TEXT};
use crate::wire::close::CloseCode;
use crate::wire::frame;

/// What one pass deflates for single subscribers, as bytes that are deflated: it takes less than a tenth
/// of a second. A publication of 1 KiB is so deflated for more than 1,000. Without the bound a turn of small
/// messages to as many would take minutes, in which nobody else is served.
const MAX_REFERRING_BYTES: usize = 4 << 20;

/// Most slices of one vectored write: what Linux takes (`IOV_MAX`).
const MAX_SLICES: usize = 1_024;

/// A channel, as one of its subscribers remembers it.
#[derive(Clone, Copy)]
pub(crate) struct Channel {
    pub(crate) key: ChannelKey,
    /// Where its publications go.
    pub(crate) home: ShardId,
}

/// One connection past its handshake. Its driver, the fan-out, the timers and the orders from other
/// threads all come to it here.
pub(crate) struct Client {
    pub(crate) id: ConnectionId,
    /// What its messages ask for.
    pub(crate) ask: Ask,
    /// The channel that it publishes to, and is subscribed to like to those of `subscriptions`.
    pub(crate) channel: Option<Channel>,
    /// Leave to publish to `channel`: taken away and given by the newest token.
    pub(crate) publish_grant: Cell<Option<PublishGrant>>,
    /// It came with a token, and the shard knows whose ([`Users`](crate::shard::users::Users)).
    pub(crate) is_identified: bool,
    /// Some of its messages are for the gateway itself.
    pub(crate) takes_control: bool,
    /// How its messages are deflated. Those that are alike share one.
    pub(crate) coding: Rc<Coding>,
    /// Given back when the connection ends.
    pub(crate) subscriptions: Cell<Subscriptions>,
    pub(crate) socket: RefCell<Stream>,
    /// Borrowed by [`Client::hold`] alone, so that the table always knows what it is worth.
    connection: RefCell<Connection>,
    /// The table says that the socket may be written to without another look.
    is_direct: Cell<bool>,
    /// Wakes the driver. There once that has been polled.
    pub(crate) waker: OnceCell<Waker>,
    /// The tick of its one entry in the wheel that counts, less its upper half, which is the same for
    /// all entries for seven years; 0 for none.
    pub(crate) timer_tick: Cell<u32>,
    /// It publishes to a congested channel and is on the shard's list to be woken.
    pub(crate) is_paused: Cell<bool>,
    /// The socket's sending side was shut down.
    pub(crate) is_shut: Cell<bool>,
    /// What is remembered of how it came in, where that is anything.
    pub(crate) admitted: Option<Box<Admitted>>,
}

/// The subscriptions of one connection. Nearly all have one, which then takes no memory of its own.
#[derive(Debug, Default)]
pub(crate) enum Subscriptions {
    #[default]
    None,
    One(SubscriptionKey),
    Several(Box<SeveralSubscriptions>),
}

/// Behind a pointer of one word: with one more, [`Client`] would need the next larger size of the
/// allocator, also where there is one subscription.
#[derive(Debug)]
pub(crate) struct SeveralSubscriptions(Box<[SubscriptionKey]>);

impl Subscriptions {
    pub(crate) fn new(mut keys: Vec<SubscriptionKey>) -> Self {
        match keys.len() {
            0 | 1 => keys.pop().map_or(Self::None, Self::One),
            _ => Self::Several(Box::new(SeveralSubscriptions(keys.into()))),
        }
    }

    pub(crate) fn for_each(self, end: impl FnMut(SubscriptionKey)) {
        match self {
            Self::None => {}
            Self::One(key) => Some(key).into_iter().for_each(end),
            Self::Several(several) => several.0.into_iter().for_each(end),
        }
    }

    /// All of them.
    pub(crate) fn keys(&self) -> &[SubscriptionKey] {
        match self {
            Self::None => &[],
            Self::One(key) => std::slice::from_ref(key),
            Self::Several(several) => &several.0,
        }
    }
}

/// What a connection may do beside hearing its channels.
#[derive(Clone, Copy)]
pub(crate) struct Leave {
    pub(crate) publish_grant: Option<PublishGrant>,
    pub(crate) is_identified: bool,
    pub(crate) takes_control: bool,
}

impl Client {
    #[expect(clippy::too_many_arguments, reason = "each is a part that the handshake has made")]
    pub(crate) fn new(
        id: ConnectionId,
        ask: Ask,
        leave: Leave,
        channel: Option<Channel>,
        subscriptions: Subscriptions,
        coding: Rc<Coding>,
        socket: Stream,
        admitted: Option<Box<Admitted>>,
        now: Instant,
    ) -> Self {
        Self {
            id,
            ask,
            publish_grant: Cell::new(leave.publish_grant),
            is_identified: leave.is_identified,
            takes_control: leave.takes_control,
            channel,
            coding,
            subscriptions: Cell::new(subscriptions),
            socket: RefCell::new(socket),
            connection: RefCell::new(Connection::new(now)),
            is_direct: Cell::new(false),
            waker: OnceCell::new(),
            timer_tick: Cell::new(0),
            is_paused: Cell::new(false),
            is_shut: Cell::new(false),
            admitted,
        }
    }

    /// The connection's state, to be looked at or changed.
    ///
    /// # Panics
    ///
    /// Somebody holds it already.
    #[inline]
    pub(crate) fn hold<'a>(&'a self, shard: &'a Shard) -> Held<'a> {
        Held { connection: self.connection.borrow_mut(), client: self, shard }
    }

    /// The same, unless somebody holds it already: where a panic has come from under them.
    pub(crate) fn try_hold<'a>(&'a self, shard: &'a Shard) -> Option<Held<'a>> {
        let connection = self.connection.try_borrow_mut().ok()?;
        Some(Held { connection, client: self, shard })
    }

    /// Whether what the table says of it holds.
    pub(crate) fn is_writable_at_once(&self) -> bool {
        self.connection.try_borrow().is_ok_and(|connection| connection.is_writable_at_once())
    }

    /// Of the socket, where frames are written to it as they are.
    pub(crate) fn plain_descriptor(&self) -> Option<RawFd> {
        self.socket.borrow().plain_descriptor()
    }

    /// Whether something that its stream took has yet to be sent.
    #[inline]
    pub(crate) fn has_unsent(&self) -> bool {
        self.socket.borrow().has_unsent()
    }

    /// Lets the driver look at the connection again.
    pub(crate) fn wake_driver(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }

    /// Writes what waits, as far as the socket takes it. Returns whether it took anything.
    pub(crate) fn write_waiting(&self, connection: &mut Connection, shard: &Shard) -> bool {
        let before = connection.outbound.bytes();
        let mut socket = self.socket.borrow_mut();
        let mut has_taken = false;
        if socket.has_unsent() {
            match socket.try_flush() {
                Ok(bytes) => has_taken = bytes > 0,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => connection.handle_disconnect(),
            }
        }
        while !connection.outbound.is_empty() && !socket.has_unsent() {
            match socket.try_write_slices(&connection.outbound.slices()) {
                Ok(bytes) => {
                    shard.counters.sent_bytes.add(bytes as u64);
                    connection.outbound.advance(bytes);
                    has_taken = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    connection.handle_disconnect();
                    break;
                }
            }
        }
        shard.counters.outbound_queue_bytes.moved(before, connection.outbound.bytes());
        has_taken
    }

    /// Sends one whole plain frame, deflated, to a connection whose messages refer to earlier ones.
    pub(crate) fn send_referring(&self, connection: &mut Connection, frame: &[u8], shard: &Shard) {
        let Coding::Takeover(takeover) = &*self.coding else {
            return self.send_borrowed(connection, frame, shard);
        };
        // As in `deliver_referring`: what waits can be dropped, for what the API sends.
        let mut written = Some(0);
        if connection.outbound.is_empty() {
            shard.with_deflated(frame, &self.coding, |frame| {
                written = self.write_first(connection, frame, shard);
                if let Some(bytes @ 1..) = written
                    && bytes < frame.len()
                {
                    self.queue(connection, &Bytes::copy_from_slice(frame), bytes, shard);
                }
            });
        }
        if written == Some(0) {
            takeover.forget_ours();
            shard.with_deflated(frame, &Coding::Alone(takeover.window()), |frame| {
                self.queue(connection, &Bytes::copy_from_slice(frame), 0, shard);
            });
        }
    }

    /// Whether a message of this length is deflated for this connection.
    #[inline]
    pub(crate) fn deflates(&self, payload_bytes: usize, shard: &Shard) -> bool {
        self.coding.is_on() && shard.codec.is_worth(payload_bytes)
    }

    /// Sends whole frames that lie in a buffer which will be used again.
    #[inline]
    pub(crate) fn send_borrowed(&self, connection: &mut Connection, frames: &[u8], shard: &Shard) {
        let written = match self.write_first(connection, frames, shard) {
            Some(written) if written == frames.len() => return,
            Some(written) => written,
            None => return,
        };
        self.queue(connection, &Bytes::copy_from_slice(frames), written, shard);
    }

    /// Sends whole frames that have a buffer of their own.
    pub(crate) fn send(&self, connection: &mut Connection, frames: &Bytes, shard: &Shard) {
        if let Some(written) = self.write_first(connection, frames, shard)
            && written < frames.len()
        {
            self.queue(connection, frames, written, shard);
        }
    }

    /// Offers `frames` to the socket if nothing waits before them. Returns how many bytes it took, or
    /// `None` when the socket has failed.
    #[inline]
    fn write_first(
        &self,
        connection: &mut Connection,
        frames: &[u8],
        shard: &Shard,
    ) -> Option<usize> {
        if !connection.outbound.is_empty() {
            return Some(0);
        }
        let written = self.write(frames);
        self.written(written, connection, shard)
    }

    /// Offers `frames` to the socket. Returns how many bytes it took.
    #[inline]
    fn write(&self, frames: &[u8]) -> io::Result<usize> {
        self.try_write(|socket| socket.try_write(frames))
    }

    /// Offers `slices` to the socket in as few calls as the kernel allows, which is one up to
    /// [`MAX_SLICES`]. Returns how many bytes it took.
    #[inline]
    fn write_vectored(&self, slices: &[IoSlice<'_>], tally: &Tally) -> io::Result<usize> {
        if slices.len() <= MAX_SLICES {
            return self.write_slices(slices);
        }
        let mut written = 0;
        for (index, slices) in slices.chunks(MAX_SLICES).enumerate() {
            if index > 0 {
                tally.count_write();
            }
            let offered: usize = slices.iter().map(|slice| slice.len()).sum();
            match self.write_slices(slices) {
                Ok(bytes) => {
                    written += bytes;
                    if bytes < offered {
                        break;
                    }
                }
                // The same answer comes again when the rest is written, and is heard then.
                Err(_) if written > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    #[inline(never)]
    fn write_slices(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.try_write(|socket| socket.try_write_slices(slices))
    }

    #[inline(always)]
    fn try_write(&self, write: impl FnOnce(&mut Stream) -> io::Result<usize>) -> io::Result<usize> {
        let socket = &mut *self.socket.borrow_mut();
        let written = write(socket);
        if socket.has_unsent() {
            // It is the driver that waits for room.
            self.wake_driver();
        }
        written
    }

    #[inline]
    fn written(
        &self,
        written: io::Result<usize>,
        connection: &mut Connection,
        shard: &Shard,
    ) -> Option<usize> {
        match written {
            Ok(bytes) => {
                shard.counters.sent_bytes.add(bytes as u64);
                Some(bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(0),
            Err(_) => {
                connection.handle_disconnect();
                None
            }
        }
    }

    fn queue(&self, connection: &mut Connection, frames: &Bytes, written: usize, shard: &Shard) {
        let before = connection.outbound.bytes();
        connection.outbound.push_answers(frames, written);
        shard.counters.outbound_queue_bytes.moved(before, connection.outbound.bytes());
    }

    /// Hands `offer` to this subscriber: into the socket where it takes all of it, else into the
    /// outbound queue, by the slow-consumer policy. `written` is how many bytes of it the socket has
    /// taken already.
    #[inline(never)]
    pub(crate) fn deliver(&self, offer: &Offer<'_>, written: usize, tally: &Tally, shard: &Shard) {
        let mut connection = self.hold(shard);
        if written == 0 {
            let batches = std::iter::once(offer.batch);
            return self.deliver_carefully(&mut connection, batches, tally, shard);
        }
        tally.count_write();
        let (segments, count) = (offer.batch.segments().iter(), offer.batch.count());
        self.hand_over(&mut connection, segments, count, Some(Ok(written)), shard);
    }

    /// Hands several batches to this subscriber in one write, in this order and deflated as it has
    /// agreed. `slices` is room that is used again.
    pub(crate) fn deliver_together<'a>(
        &self,
        batches: impl Iterator<Item = &'a Batch> + Clone,
        slices: &mut Vec<IoSlice<'a>>,
        tally: &Tally,
        shard: &Shard,
    ) {
        match &*self.coding {
            Coding::Off => self.deliver_as_they_are(batches, slices, tally, shard),
            Coding::Alone(window) => {
                let batches = batches.map(|batch| shard.deflated(batch, *window));
                self.deliver_as_they_are(batches, slices, tally, shard);
            }
            Coding::Takeover(takeover) if !self.coding.refers() => {
                let batches = batches.map(|batch| shard.deflated(batch, takeover.window()));
                self.deliver_as_they_are(batches, slices, tally, shard);
            }
            Coding::Takeover(takeover) => {
                self.deliver_referring(batches, takeover, slices, tally, shard);
            }
        }
    }

    fn deliver_as_they_are<'a>(
        &self,
        batches: impl Iterator<Item = &'a Batch> + Clone,
        slices: &mut Vec<IoSlice<'a>>,
        tally: &Tally,
        shard: &Shard,
    ) {
        let mut connection = self.hold(shard);
        let (mut count, mut bytes) = (Count::default(), 0);
        let mut gets_all = connection.is_open() && connection.outbound.is_empty();
        if gets_all {
            slices.clear();
            for batch in batches.clone() {
                gets_all &= !batch.excludes(self.id);
                count += batch.count();
                bytes += batch.bytes();
                slices.extend(batch.segments().iter().map(|segment| IoSlice::new(segment)));
            }
        }
        if !gets_all {
            return self.deliver_carefully(&mut connection, batches, tally, shard);
        }
        tally.count_write();
        match self.write_vectored(slices, tally) {
            Ok(written) if written == bytes => {
                shard.counters.sent_bytes.add(bytes as u64);
                shard.count_deliveries(count, 1);
            }
            written => {
                let segments = batches.flat_map(Batch::segments);
                self.hand_over(&mut connection, segments, count, Some(written), shard);
            }
        }
    }

    /// As [`Client::deliver_together`], to a connection with context takeover.
    ///
    /// A message that refers to others must not be dropped, nor must those that it refers to. So only
    /// what the socket takes refers to anything; what has to wait, and can be dropped by the
    /// slow-consumer policy, stands alone, and what comes after it refers to nothing before it. So does
    /// what a pass has no more time to deflate for this connection only.
    fn deliver_referring<'a>(
        &self,
        batches: impl Iterator<Item = &'a Batch> + Clone,
        takeover: &Takeover,
        slices: &mut Vec<IoSlice<'a>>,
        tally: &Tally,
        shard: &Shard,
    ) {
        let mut connection = self.hold(shard);
        let alone = batches.clone().map(|batch| shard.deflated(batch, takeover.window()));
        if !connection.is_open() || !connection.outbound.is_empty() {
            takeover.forget_ours();
            return self.deliver_carefully(&mut connection, alone, tally, shard);
        }
        let (mut count, mut effort_bytes, mut plain) = (Count::default(), 0, Vec::new());
        for batch in batches {
            let (segments, others) = batch.segments_for(self.id);
            count += others;
            if shard.codec.is_worth(batch.largest_frame_bytes()) {
                effort_bytes += takeover.effort_bytes(&segments, others);
            }
            plain.extend(segments);
        }
        if count == Count::default() {
            return;
        }
        if !tally.has_time_for(effort_bytes) {
            takeover.forget_ours();
            drop(connection);
            return self.deliver_as_they_are(alone, slices, tally, shard);
        }
        let mut frames = Vec::new();
        for segment in &plain {
            frame::for_each(segment, |frame| {
                shard.with_deflated(frame, &self.coding, |frame| frames.extend_from_slice(frame));
            });
        }
        tally.count_write();
        let written = self.write(&frames);
        let taken = match written {
            Ok(bytes) if bytes == frames.len() => {
                shard.counters.sent_bytes.add(bytes as u64);
                return shard.count_deliveries(count, 1);
            }
            Ok(bytes) => bytes,
            Err(_) => 0,
        };
        takeover.forget_ours();
        // The frame of which a part is written stays; those behind it are taken from the others.
        frames.truncate(frame::boundary_from(&frames, taken));
        let mut done = frame::count_messages(&frames);
        let mut segments = if frames.is_empty() { Vec::new() } else { vec![Bytes::from(frames)] };
        for batch in alone {
            for mut segment in batch.segments_for(self.id).0 {
                let mut at = 0;
                while done > 0 && at < segment.len() {
                    at += frame::first_frame_bytes(&segment[at..]);
                    done -= 1;
                }
                if at < segment.len() {
                    segment.advance(at);
                    if at > 0 || batch.excludes(self.id) {
                        let_go_of_the_whole(&mut segment);
                    }
                    segments.push(segment);
                }
            }
        }
        self.hand_over(&mut connection, segments.iter(), count, Some(written), shard);
    }

    /// As [`Client::deliver_together`], whatever state the connection is in and whatever the batches
    /// leave out for it.
    #[inline(never)]
    fn deliver_carefully<'a>(
        &self,
        connection: &mut Connection,
        batches: impl Iterator<Item = &'a Batch> + Clone,
        tally: &Tally,
        shard: &Shard,
    ) {
        if !connection.is_open() {
            return;
        }
        let mut count = Count::default();
        if !batches.clone().any(|batch| batch.excludes(self.id)) {
            batches.clone().for_each(|batch| count += batch.count());
            let segments = batches.flat_map(Batch::segments);
            return self.offer_and_hand_over(connection, segments, count, tally, shard);
        }
        let mut less_own = Vec::new();
        for batch in batches {
            let (segments, others) = batch.segments_for(self.id);
            less_own.extend(segments);
            count += others;
        }
        if count == Count::default() {
            return;
        }
        let written = self.offer(connection, less_own.iter(), tally);
        let bytes: usize = less_own.iter().map(Bytes::len).sum();
        if !matches!(written, Some(Ok(written)) if written == bytes) {
            less_own.iter_mut().for_each(let_go_of_the_whole);
        }
        self.hand_over(connection, less_own.iter(), count, written, shard);
    }

    fn offer_and_hand_over<'a>(
        &self,
        connection: &mut Connection,
        segments: impl Iterator<Item = &'a Bytes> + Clone,
        count: Count,
        tally: &Tally,
        shard: &Shard,
    ) {
        if count == Count::default() {
            return;
        }
        let written = self.offer(connection, segments.clone(), tally);
        self.hand_over(connection, segments, count, written, shard);
    }

    /// Writes what the socket takes of `segments`, if nothing waits before them.
    fn offer<'a>(
        &self,
        connection: &Connection,
        segments: impl Iterator<Item = &'a Bytes>,
        tally: &Tally,
    ) -> Option<io::Result<usize>> {
        connection.outbound.is_empty().then(|| {
            let slices: Vec<_> = segments.map(|segment| IoSlice::new(segment)).collect();
            tally.count_write();
            self.write_vectored(&slices, tally)
        })
    }

    /// Takes note of what became of whole frames that were offered to the socket, or were not since
    /// others wait before them (`written` is `None`): counts them, and queues what it did not take.
    #[cold]
    #[inline(never)]
    fn hand_over<'a>(
        &self,
        connection: &mut Connection,
        segments: impl Iterator<Item = &'a Bytes> + Clone,
        count: Count,
        written: Option<io::Result<usize>>,
        shard: &Shard,
    ) {
        let waited_before = written.is_none();
        let Some(written) = self.written(written.unwrap_or(Ok(0)), connection, shard) else {
            self.wake_driver();
            return;
        };
        shard.count_deliveries(count, 1);
        self.queue_rest(connection, segments, written, shard);
        if !connection.is_open() {
            shard.arm(self, connection);
        }
        if !waited_before && (!connection.outbound.is_empty() || !connection.is_open()) {
            self.wake_driver();
        }
    }

    /// Queues what the socket did not take of `segments`.
    fn queue_rest<'a>(
        &self,
        connection: &mut Connection,
        mut segments: impl Iterator<Item = &'a Bytes>,
        mut written: usize,
        shard: &Shard,
    ) {
        let before = connection.outbound.bytes();
        while let Some(segment) = segments.next() {
            if written >= segment.len() {
                written -= segment.len();
                continue;
            }
            let taken = std::mem::take(&mut written);
            let pushed = match taken {
                0 => connection.outbound.push(segment, &shard.limit()),
                written => connection.outbound.push_rest(segment, written, &shard.limit()),
            };
            match pushed {
                Pushed::Queued => {}
                Pushed::Dropped(frames) => shard.count_slow_consumer(frames),
                Pushed::Overflow => {
                    let rest = segment.slice(frame::boundary_from(segment, taken)..);
                    let behind =
                        segments.map(|frames| frame::count_messages(frames)).sum::<usize>();
                    let refused = frame::count_messages(&rest) + behind;
                    let waiting = connection.close_slow_consumer(shard.now(), &shard.timing());
                    shard.count_slow_consumer(refused + waiting);
                    break;
                }
            }
        }
        shard.counters.outbound_queue_bytes.moved(before, connection.outbound.bytes());
    }

    /// Starts the closing handshake from outside the driver.
    pub(crate) fn close(&self, code: CloseCode, reason: &str, shard: &Shard) {
        let mut connection = self.hold(shard);
        if connection.ended().is_some() {
            return;
        }
        connection.close(shard.now(), code, reason, &shard.timing());
        self.write_waiting(&mut connection, shard);
        shard.arm(self, &connection);
        self.wake_driver();
    }

    /// How the connection ended, once it has.
    pub(crate) fn ending(&self) -> Ending {
        let connection = self.connection.try_borrow();
        connection.ok().and_then(|connection| connection.ended()).unwrap_or(Ending::ABNORMAL)
    }
}

/// The state of a connection while somebody works with it. When they are done, the table learns whether
/// the socket may be written to without another look.
pub(crate) struct Held<'a> {
    connection: RefMut<'a, Connection>,
    client: &'a Client,
    shard: &'a Shard,
}

impl Deref for Held<'_> {
    type Target = Connection;

    #[inline]
    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for Held<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        let is_direct = self.client.channel.is_some() && self.connection.is_writable_at_once();
        if self.client.is_direct.get() != is_direct {
            self.client.is_direct.set(is_direct);
            self.shard.table.borrow().set_direct(self.client, is_direct);
        }
    }
}

/// A batch, ready to be offered to one subscriber after the other.
pub(crate) struct Offer<'a> {
    batch: &'a Batch,
    /// Its first segment.
    first: &'a [u8],
    /// All its segments where it has more than one, else none.
    slices: Vec<IoSlice<'a>>,
    /// Every subscriber gets all of it, in one call.
    is_for_all: bool,
}

impl<'a> Offer<'a> {
    pub(crate) fn new(batch: &'a Batch) -> Self {
        let (first, slices) = match batch.segments() {
            [] => (&[][..], Vec::new()),
            [segment] => (&segment[..], Vec::new()),
            several => {
                let slices = several.iter().map(|segment| IoSlice::new(segment)).collect();
                (&several[0][..], slices)
            }
        };
        let is_for_all = slices.len() <= MAX_SLICES && !batch.excludes_some();
        Self { batch, first, slices, is_for_all }
    }

    /// Of all of it.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.batch.bytes()
    }

    /// Whether it may be written to a socket without a look at the connection.
    #[inline]
    pub(crate) fn is_for_all(&self) -> bool {
        self.is_for_all
    }

    /// Writes it to a socket before which nothing waits. Returns how many bytes that took.
    #[inline]
    pub(crate) fn write(&self, socket: BorrowedFd<'_>) -> Result<usize, Errno> {
        match &*self.slices {
            [] => send_bytes(socket, self.first),
            slices => send_slices(socket, slices),
        }
    }
}

/// What is counted while the batches of a pass are delivered.
#[derive(Default)]
pub(crate) struct Tally {
    /// What was deflated for single subscribers, at most [`MAX_REFERRING_BYTES`].
    referring_bytes: Cell<usize>,
    /// Subscribers whose sockets took all of the batch in one call, and that are not counted elsewhere.
    whole: Cell<u64>,
    /// All other system calls that write.
    writes: Cell<u64>,
}

impl Tally {
    #[inline]
    fn count_write(&self) {
        self.writes.set(self.writes.get() + 1);
    }

    #[inline]
    pub(crate) fn count_whole(&self) {
        self.whole.set(self.whole.get() + 1);
    }

    /// Whether there is time to deflate so much for a single subscriber, which is then taken.
    fn has_time_for(&self, effort_bytes: usize) -> bool {
        let all = self.referring_bytes.get().saturating_add(effort_bytes);
        let is_enough = all <= MAX_REFERRING_BYTES;
        if is_enough {
            self.referring_bytes.set(all);
        }
        is_enough
    }

    /// How many system calls wrote it.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.get() + self.whole.get()
    }

    /// Counts what those got that were only tallied, and forgets them.
    pub(crate) fn count_for(&self, batch: &Batch, shard: &Shard) {
        let whole = self.whole.take();
        self.writes.set(self.writes.get() + whole);
        shard.counters.sent_bytes.add(whole * batch.bytes() as u64);
        shard.count_deliveries(batch.count(), whole);
    }
}

impl Shard {
    /// Counts `count` publications that were handed to each of `subscribers` subscribers.
    fn count_deliveries(&self, count: Count, subscribers: u64) {
        self.counters.deliveries.add(u64::from(count.total()) * subscribers);
        self.counters.messages_sent[TEXT].add(u64::from(count.texts) * subscribers);
        self.counters.messages_sent[BINARY].add(u64::from(count.binaries) * subscribers);
    }

    /// Counts a full outbound queue and the `frames` that it cost.
    fn count_slow_consumer(&self, frames: usize) {
        let action = match self.limit().policy {
            SlowConsumerPolicy::Close => SlowConsumer::Close,
            SlowConsumerPolicy::DropOldest => SlowConsumer::DropOldest,
            SlowConsumerPolicy::DropNewest => SlowConsumer::DropNewest,
        };
        self.counters.slow_consumers[action as usize].increment();
        self.counters.dropped_messages[action as usize].add(frames as u64);
    }
}

/// Has `part` of a segment lie alone in memory. In a queue, which counts what is to be written, it would hold
/// all of the segment there, with what its connection has published itself and does not get.
fn let_go_of_the_whole(part: &mut Bytes) {
    *part = Bytes::copy_from_slice(part);
}
