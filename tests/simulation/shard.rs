//! The shard as the state machines see it: their methods, called in the order in which
//! `src/shard/driver.rs`, `client.rs`, `fan_out.rs`, `turn.rs` and `mod.rs` call them, with a simulated
//! socket and clock in the place of tokio's.
//!
//! It is as thin as it can be, and knows nothing of promises but whom to tell: each [`Client`] has a
//! [`Record`].

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use wsgate::connection::outbound::Pushed;
use wsgate::connection::{Connection, Initiator, Input};
use wsgate::hub::{ChannelKey, Group, Hub, SubscriptionKey};
use wsgate::pubsub::{Batch, BatchBuilder, ChannelName, ConnectionId};
use wsgate::wire::close::CloseCode;
use wsgate::wire::decoder::{Decoded, Decoder, Event, MAX_KEPT_BYTES, Rules, ServerFrame};
use wsgate::wire::frame;
use wsgate::wire::header::{Opcode, ProtocolError};

use crate::promises::{Id, Messages, Origin, Record, Said, TICK, Terms};
use crate::socket::{Read, Refusal, Socket};

/// What the operator decided, for one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) terms: Terms,
    /// Most bytes of one read.
    pub(crate) read_buffer_bytes: usize,
    /// A turn that has as much is flushed before more is read.
    pub(crate) max_turn_bytes: usize,
}

impl Settings {
    /// What one read of a connection that echoes may bring, and what may wait when it is made.
    pub(crate) fn half_queue_bytes(&self) -> usize {
        self.terms.limit.max_bytes / 2
    }
}

/// The decoder as the driver calls it.
fn decode(
    decoder: &mut Decoder,
    input: &mut [u8],
    settings: &Settings,
) -> Result<Decoded, ProtocolError> {
    let max_message_bytes = settings.terms.max_message_bytes;
    decoder.decode(input, Rules { max_message_bytes, deflate: false })
}

/// What the connections of a shard share.
pub(crate) struct Shard {
    pub(crate) settings: Settings,
    pub(crate) now: Instant,
    start: Instant,
    pub(crate) hub: Hub,
    turn: Vec<Collected>,
    turn_bytes: usize,
    read_buffer: Vec<u8>,
    ping: Bytes,
    /// What happened how often.
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

/// What a turn has for one channel.
struct Collected {
    key: Option<ChannelKey>,
    channel: usize,
    batch: BatchBuilder,
    /// The messages in `batch`, and who does not get them.
    messages: Vec<(Id, Option<ConnectionId>)>,
}

/// A batch for the subscribers of a channel.
pub(crate) struct Ready {
    pub(crate) key: ChannelKey,
    pub(crate) channel: usize,
    batch: Batch,
    pub(crate) messages: Vec<(Id, Option<ConnectionId>)>,
}

/// What the messages of a connection ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    Echo,
    Publish { key: ChannelKey, channel: usize, own: bool },
}

/// One connection, from the end of its handshake to its own.
pub(crate) struct Client {
    pub(crate) id: ConnectionId,
    pub(crate) ask: Ask,
    pub(crate) subscriptions: Vec<SubscriptionKey>,
    pub(crate) connection: Connection,
    pub(crate) socket: Socket,
    /// When the wheel looks at it.
    armed: Option<Instant>,
    /// Its driver is to run.
    pub(crate) is_woken: bool,
    /// Its driver has come to its end.
    pub(crate) is_over: bool,
    pub(crate) record: Record,
}

enum Driven {
    /// Look at the connection again.
    Again,
    /// After the others' turn.
    Later,
    /// Once it is woken.
    Waiting,
}

impl Shard {
    pub(crate) fn new(settings: Settings, start: Instant) -> Self {
        Self {
            settings,
            now: start,
            start,
            hub: Hub::default(),
            turn: Vec::new(),
            turn_bytes: 0,
            read_buffer: vec![0; MAX_KEPT_BYTES + settings.read_buffer_bytes],
            ping: frame::encode(Opcode::Ping, b""),
            counts: BTreeMap::new(),
        }
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// The instant at which the wheel acts on `deadline`.
    fn tick(&self, deadline: Instant) -> Instant {
        let tick = TICK.as_nanos();
        let of = |instant: Instant| instant.saturating_duration_since(self.start).as_nanos();
        let ticks = of(deadline).div_ceil(tick).max(of(self.now) / tick + 1);
        self.start + TICK * ticks as u32
    }

    /// Adds what a connection publishes to the turn.
    fn publish(
        &mut self,
        (key, channel): (ChannelKey, usize),
        id: Id,
        frame: Published<'_>,
        excluded: Option<ConnectionId>,
    ) {
        let now = self.now;
        let place = self.turn.iter().position(|collected| collected.key == Some(key));
        let place = place.unwrap_or_else(|| {
            let batch = BatchBuilder::new(now);
            self.turn.push(Collected { key: Some(key), channel, batch, messages: Vec::new() });
            self.turn.len() - 1
        });
        let Collected { batch, messages, .. } = &mut self.turn[place];
        let before = batch.weight();
        match frame {
            Published::Borrowed(frame) => batch.push_borrowed(frame, excluded),
            Published::Owned(frame) => batch.push(frame, excluded),
        }
        messages.push((id, excluded));
        self.turn_bytes += batch.weight() - before;
    }

    /// Adds a batch that comes from elsewhere to the turn.
    pub(crate) fn publish_batch(
        &mut self,
        channel: usize,
        name: &ChannelName,
        batch: &Arc<Batch>,
        ids: &[Id],
    ) {
        let key = self.hub.find(name);
        let last = self.turn.iter().rposition(|collected| collected.channel == channel);
        let place = last.filter(|place| self.turn[*place].key == key).unwrap_or_else(|| {
            let builder = BatchBuilder::new(self.now);
            self.turn.push(Collected { key, channel, batch: builder, messages: Vec::new() });
            self.turn.len() - 1
        });
        let collected = &mut self.turn[place];
        collected.batch.push_batch(batch);
        collected.messages.extend(ids.iter().map(|id| (*id, None)));
        self.turn_bytes += batch.weight();
    }

    /// Forgets that a channel is known by `key`.
    pub(crate) fn forget(&mut self, key: ChannelKey) {
        for collected in self.turn.iter_mut().filter(|collected| collected.key == Some(key)) {
            collected.key = None;
        }
    }

    pub(crate) fn has_turn(&self) -> bool {
        !self.turn.is_empty()
    }

    /// Takes what the turn has for channels with a subscriber.
    pub(crate) fn take_turn(&mut self, channels: &[ChannelName]) -> Vec<Ready> {
        self.turn_bytes = 0;
        let taken = std::mem::take(&mut self.turn);
        let mut ready = Vec::new();
        for Collected { key, channel, batch, messages } in taken {
            // The first subscriber may have come since it was collected.
            let found = key.or_else(|| self.hub.find(&channels[channel]));
            if let Some(found) = found {
                if key.is_none() {
                    self.count("subscribers that came within a turn");
                }
                ready.push(Ready { key: found, channel, batch: batch.finish(), messages });
            }
        }
        ready
    }

    /// The slots of those that hear `channel`.
    pub(crate) fn subscribers(&self, channel: ChannelKey, group: Group) -> Vec<u32> {
        self.hub.subscribers(channel, group).collect()
    }
}

/// A frame to be published: in the read buffer, or in a buffer of its own.
enum Published<'a> {
    Borrowed(&'a [u8]),
    Owned(Bytes),
}

impl Client {
    pub(crate) fn new(
        id: ConnectionId,
        ask: Ask,
        subscriptions: Vec<SubscriptionKey>,
        room: usize,
        shard: &Shard,
    ) -> Self {
        let mut client = Self {
            id,
            ask,
            subscriptions,
            connection: Connection::new(shard.now),
            socket: Socket::new(room),
            armed: None,
            is_woken: true,
            is_over: false,
            record: Record::new(shard.now),
        };
        client.arm(shard);
        client
    }

    // driver.rs

    /// The driver's turn.
    pub(crate) fn drive(&mut self, shard: &mut Shard, messages: &Messages) {
        self.is_woken = false;
        loop {
            self.poll_write(shard);
            if self.connection.ended().is_some() {
                self.is_over = true;
                return;
            }
            if self.connection.is_failed_and_flushed() {
                self.socket.shut();
            }
            match self.poll_read(shard, messages) {
                Driven::Again => {}
                Driven::Later => {
                    self.is_woken = true;
                    self.poll_write(shard);
                    self.is_over = self.connection.ended().is_some();
                    return;
                }
                Driven::Waiting => return,
            }
        }
    }

    fn poll_write(&mut self, shard: &mut Shard) {
        while !self.connection.outbound.is_empty() {
            let waiting = self.connection.outbound.bytes();
            self.write_waiting(shard);
            if self.connection.outbound.bytes() < waiting {
                self.sign_of_life(shard);
            }
            let is_done = self.connection.outbound.is_empty() || self.connection.ended().is_some();
            if is_done || !self.socket.has_room() {
                return;
            }
        }
    }

    fn poll_read(&mut self, shard: &mut Shard, messages: &Messages) -> Driven {
        let input = self.connection.input();
        let max_bytes = match (input, self.ask) {
            (Input::None, _) => return Driven::Waiting,
            (Input::Discard | Input::DecodeForClose, _) => shard.settings.read_buffer_bytes,
            (Input::Decode, Ask::Echo) => {
                let half_queue_bytes = shard.settings.half_queue_bytes();
                if self.connection.outbound.bytes() >= half_queue_bytes.max(1) {
                    shard.count("echo not read while its answers wait");
                    return Driven::Waiting;
                }
                half_queue_bytes.clamp(1, shard.settings.read_buffer_bytes)
            }
            (Input::Decode, Ask::Publish { .. }) => {
                if shard.turn_bytes >= shard.settings.max_turn_bytes {
                    self.is_woken = true;
                    return Driven::Waiting;
                }
                shard.settings.read_buffer_bytes
            }
        };
        let mut buffer = std::mem::take(&mut shard.read_buffer);
        let read = self.socket.read(&mut buffer[MAX_KEPT_BYTES..MAX_KEPT_BYTES + max_bytes]);
        let driven = match read {
            Read::Nothing => Driven::Waiting,
            Read::End => {
                self.disconnect(shard);
                Driven::Again
            }
            Read::Bytes(read_bytes) => {
                self.sign_of_life(shard);
                if input != Input::Discard {
                    self.record.read(read_bytes);
                    self.process(&mut buffer, read_bytes, shard, messages);
                    if !self.connection.is_open() {
                        self.arm(shard);
                    }
                }
                if read_bytes == max_bytes { Driven::Later } else { Driven::Again }
            }
        };
        shard.read_buffer = buffer;
        driven
    }

    fn process(
        &mut self,
        buffer: &mut [u8],
        read_bytes: usize,
        shard: &mut Shard,
        messages: &Messages,
    ) {
        let timing = shard.settings.terms.timing;
        let end = MAX_KEPT_BYTES + read_bytes;
        let mut at = MAX_KEPT_BYTES - self.connection.decoder.kept_bytes();
        self.connection.decoder.restore(&mut buffer[at..MAX_KEPT_BYTES]);
        let mut answer = Vec::new();
        loop {
            let input = &mut buffer[at..end];
            let decoded = match decode(&mut self.connection.decoder, input, &shard.settings) {
                Ok(decoded) => decoded,
                Err(violation) => {
                    self.send_answer(&mut answer, shard);
                    let code = violation.close_code().as_u16();
                    self.record.hear(Said::Violation(code), 0);
                    self.record.close(shard.now, code, Initiator::Local);
                    self.connection.handle_violation(shard.now, violation, &timing);
                    shard.count("violations");
                    return;
                }
            };
            let start = at;
            at += decoded.consumed;
            let rest = end - at;
            let lies = |range: &Range<usize>| start + range.start..start + range.end;
            match decoded.event {
                None => break,
                Some(Event::DeflatedMessage { .. }) => unreachable!("that was not negotiated"),
                Some(Event::Pong) => self.record.hear(Said::Pong, rest),
                Some(Event::Message { frame, .. }) => {
                    let frame = match frame {
                        ServerFrame::InPlace(range) => Published::Borrowed(&buffer[lies(&range)]),
                        ServerFrame::Gathered(frame) => Published::Owned(frame),
                    };
                    let bytes = match &frame {
                        Published::Borrowed(frame) => frame,
                        Published::Owned(frame) => &frame[..],
                    };
                    let id = self.record.hear_message(bytes, rest, messages);
                    if self.connection.is_open() {
                        self.handle_message(id, frame, &mut answer, shard);
                    }
                }
                Some(Event::Ping { pong }) => {
                    let pong = &buffer[lies(&pong)];
                    self.record.hear(Said::Ping(pong[2..].to_vec()), rest);
                    if !self.connection.is_open() {
                        self.record.forget_ping();
                    } else if self.connection.outbound.is_empty() {
                        answer.extend_from_slice(pong);
                    } else {
                        self.connection.outbound.push_pong(Bytes::copy_from_slice(pong));
                        shard.count("Pongs before what waits");
                    }
                }
                Some(Event::Close(code)) => {
                    self.send_answer(&mut answer, shard);
                    let number = code.map(CloseCode::as_u16);
                    self.record.hear(Said::Close(number), rest);
                    if !self.connection.is_open() && !self.connection.outbound.is_empty() {
                        shard.count("Closes that pass ours on the way");
                    }
                    self.record.close(shard.now, number.unwrap_or(1005), Initiator::Remote);
                    self.connection.handle_close(shard.now, code, &timing);
                    shard.count("Closes of peers");
                    return;
                }
            }
        }
        self.send_answer(&mut answer, shard);
        self.connection.decoder.keep(&buffer[at..end]);
    }

    fn handle_message(
        &mut self,
        id: Id,
        frame: Published<'_>,
        answer: &mut Vec<u8>,
        shard: &mut Shard,
    ) {
        match (self.ask, frame) {
            (Ask::Echo, frame) => {
                self.record.offer(Origin::Echo, id);
                match frame {
                    Published::Borrowed(frame) => answer.extend_from_slice(frame),
                    Published::Owned(frame) => {
                        shard.count("messages in pieces");
                        self.send_answer(answer, shard);
                        self.send(&frame, shard);
                    }
                }
            }
            (Ask::Publish { key, channel, own }, frame) => {
                let excluded = (!own).then_some(self.id);
                shard.publish((key, channel), id, frame, excluded);
            }
        }
    }

    fn send_answer(&mut self, answer: &mut Vec<u8>, shard: &mut Shard) {
        if !answer.is_empty() {
            self.send(&std::mem::take(answer).into(), shard);
        }
    }

    // client.rs

    /// Writes what waits, as far as the socket takes it.
    fn write_waiting(&mut self, shard: &mut Shard) {
        while !self.connection.outbound.is_empty() {
            let slices = self.connection.outbound.slices();
            match self.socket.write(slices.iter().map(|slice| &slice[..])) {
                Ok(bytes) => self.connection.outbound.advance(bytes),
                Err(Refusal::Full) => break,
                Err(Refusal::Failed) => {
                    self.disconnect(shard);
                    break;
                }
            }
        }
    }

    fn send(&mut self, frames: &Bytes, shard: &mut Shard) {
        let written = if self.connection.outbound.is_empty() {
            self.socket.write([&frames[..]])
        } else {
            Ok(0)
        };
        match self.written(written, shard) {
            Some(written) if written < frames.len() => {
                self.connection.outbound.push_answers(frames, written);
            }
            Some(_) | None => {}
        }
    }

    fn written(&mut self, written: Result<usize, Refusal>, shard: &mut Shard) -> Option<usize> {
        match written {
            Ok(bytes) => Some(bytes),
            Err(Refusal::Full) => Some(0),
            Err(Refusal::Failed) => {
                self.disconnect(shard);
                None
            }
        }
    }

    /// Hands `batch` to this subscriber. `written` is how many bytes of it the socket has taken.
    fn deliver(&mut self, batch: &Batch, written: usize, shard: &mut Shard) {
        if written == 0 {
            return self.deliver_carefully(&[batch], shard);
        }
        self.hand_over(batch.segments(), Some(Ok(written)), shard);
    }

    /// As the fan-out does it: with a look at the connection only where that is needed.
    pub(crate) fn deliver_directly(&mut self, ready: &Ready, shard: &mut Shard) {
        let batch = &ready.batch;
        let mut written = 0;
        if !batch.excludes_some() && self.connection.is_writable_at_once() {
            written = self.socket.write(batch.segments().iter().map(|s| &s[..])).unwrap_or(0);
            if written == batch.bytes() {
                return;
            }
        }
        self.deliver(batch, written, shard);
    }

    /// One frame for this connection alone.
    pub(crate) fn deliver_frame(&mut self, frame: Bytes, shard: &mut Shard) {
        self.deliver(&Batch::single(frame, shard.now), 0, shard);
    }

    /// Hands several batches to this subscriber in one write.
    pub(crate) fn deliver_together(&mut self, ready: &[&Ready], shard: &mut Shard) {
        shard.count("batches of several channels in one write");
        let batches: Vec<&Batch> = ready.iter().map(|ready| &ready.batch).collect();
        let gets_all = self.connection.is_writable_at_once()
            && !batches.iter().any(|batch| batch.excludes(self.id));
        if !gets_all {
            return self.deliver_carefully(&batches, shard);
        }
        let bytes: usize = batches.iter().map(|batch| batch.bytes()).sum();
        let segments: Vec<Bytes> =
            batches.iter().flat_map(|batch| batch.segments()).cloned().collect();
        let written = self.socket.write(segments.iter().map(|segment| &segment[..]));
        if written != Ok(bytes) {
            self.hand_over(&segments, Some(written), shard);
        }
    }

    fn deliver_carefully(&mut self, batches: &[&Batch], shard: &mut Shard) {
        if !self.connection.is_open() {
            return;
        }
        let mut segments = Vec::new();
        for batch in batches {
            if batch.excludes(self.id) {
                shard.count("batches less the subscriber's own");
                segments.extend(batch.segments_for(self.id).0);
            } else {
                segments.extend_from_slice(batch.segments());
            }
        }
        if segments.is_empty() {
            return;
        }
        let written = self
            .connection
            .outbound
            .is_empty()
            .then(|| self.socket.write(segments.iter().map(|segment| &segment[..])));
        self.hand_over(&segments, written, shard);
    }

    /// Takes note of what became of whole frames that were offered to the socket, or were not since
    /// others wait before them.
    fn hand_over(
        &mut self,
        segments: &[Bytes],
        written: Option<Result<usize, Refusal>>,
        shard: &mut Shard,
    ) {
        let waited_before = written.is_none();
        let Some(written) = self.written(written.unwrap_or(Ok(0)), shard) else {
            self.is_woken = true;
            return;
        };
        self.queue_rest(segments, written, shard);
        if !self.connection.is_open() {
            self.arm(shard);
        }
        if !waited_before && (!self.connection.outbound.is_empty() || !self.connection.is_open()) {
            self.is_woken = true;
        }
    }

    /// Queues what the socket did not take of `segments`.
    fn queue_rest(&mut self, segments: &[Bytes], mut written: usize, shard: &mut Shard) {
        let Terms { timing, limit, .. } = shard.settings.terms;
        let mut segments = segments.iter();
        while let Some(segment) = segments.next() {
            if written >= segment.len() {
                written -= segment.len();
                continue;
            }
            let taken = std::mem::take(&mut written);
            let waiting_bytes = self.connection.outbound.bytes();
            let pushed = match taken {
                0 => self.connection.outbound.push(segment, &limit),
                written => self.connection.outbound.push_rest(segment, written, &limit),
            };
            let most = waiting_bytes.max(limit.max_bytes);
            let now_waiting_bytes = self.connection.outbound.bytes();
            assert!(now_waiting_bytes <= most, "{now_waiting_bytes} bytes wait of at most {most}");
            match pushed {
                Pushed::Queued => {}
                Pushed::Dropped(frames) => {
                    shard.count("pushes that dropped");
                    self.record.drop_counted(frames);
                }
                Pushed::Overflow => {
                    let rest = segment.slice(frame::boundary_from(segment, taken)..);
                    let is_full = now_waiting_bytes + rest.len() > limit.max_bytes;
                    assert!(is_full, "no room for {} behind {now_waiting_bytes}", rest.len());
                    let behind: usize = segments.map(|frames| frame::count_messages(frames)).sum();
                    let refused = frame::count_messages(&rest) + behind;
                    self.record.trip(shard.now);
                    let waiting = self.connection.close_slow_consumer(shard.now, &timing);
                    self.record.drop_counted(refused + waiting);
                    shard.count("slow consumers closed");
                    break;
                }
            }
        }
    }

    /// Starts the closing handshake from outside the driver.
    pub(crate) fn close(&mut self, code: CloseCode, reason: &str, shard: &mut Shard) {
        if self.connection.ended().is_some() {
            return;
        }
        self.record.close(shard.now, code.as_u16(), Initiator::Local);
        self.connection.close(shard.now, code, reason, &shard.settings.terms.timing);
        self.write_waiting(shard);
        self.arm(shard);
        self.is_woken = true;
    }

    // mod.rs

    /// Has the wheel look at this connection when its next deadline is due.
    fn arm(&mut self, shard: &Shard) {
        if let Some(deadline) = self.connection.poll_timeout(&shard.settings.terms.timing) {
            let tick = shard.tick(deadline);
            self.armed = Some(self.armed.map_or(tick, |armed| armed.min(tick)));
        }
    }

    /// When the wheel looks at this connection.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.armed
    }

    /// The wheel looks at it.
    pub(crate) fn handle_timeout(&mut self, shard: &mut Shard) {
        self.armed = None;
        let timing = shard.settings.terms.timing;
        let was_waiting = !self.connection.outbound.is_empty();
        if let Some(due) = self.record.time_out(shard.now, &timing) {
            shard.count(due);
        }
        self.connection.handle_timeout(shard.now, &shard.ping, &timing);
        if !was_waiting {
            self.write_waiting(shard);
        }
        self.arm(shard);
        if !self.connection.is_open() || !self.connection.outbound.is_empty() {
            self.is_woken = true;
        }
    }

    /// Ends the connection for a bug that showed while it was served.
    pub(crate) fn fail(&mut self, shard: &mut Shard) {
        shard.count("connections that failed");
        if self.connection.is_open() {
            self.record.close(shard.now, 1011, Initiator::Local);
        }
        let timing = &shard.settings.terms.timing;
        self.connection.fail(shard.now, CloseCode::INTERNAL_ERROR, "internal error", timing);
        self.arm(shard);
        self.is_woken = true;
    }

    fn sign_of_life(&mut self, shard: &Shard) {
        self.record.sign_of_life(shard.now);
        self.connection.handle_sign_of_life(shard.now);
    }

    fn disconnect(&mut self, shard: &mut Shard) {
        shard.count("sockets that ended");
        self.record.disconnect();
        self.connection.handle_disconnect();
    }
}
