//! The one task of a connection: reads, decodes, answers, and ends it.
//!
//! It is woken by its socket and, rarely, by others: when a fan-out left something in the outbound
//! queue, when a deadline or an order closed the connection, when a congested channel has room again.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::task::yield_now;
use tracing::{debug, error};

use crate::auth::identity::PublishGrant;
use crate::broker::Broker;
use crate::connection::{Connection, Input};
use crate::protocol::control::{self, Control};
use crate::protocol::raw::Ask;
use crate::shard::client::Client;
use crate::shard::compression::Inflated;
use crate::shard::settings::RateLimitAction;
use crate::shard::turn::Frame;
use crate::shard::{READ_BUFFER_BYTES, Shard};
use crate::telemetry::counters::{BINARY, RateLimit, TEXT, rate_limited_index};
use crate::wire::close::CloseCode;
use crate::wire::decoder::{Event, MAX_KEPT_BYTES, Rules, ServerFrame};
use crate::wire::frame::{self, MessageKind};
use crate::wire::header::ProtocolError;

/// Most bytes of one read of a connection whose messages may be deflated, or for the gateway itself. What
/// of it is not acted on at once is kept.
const MAX_KEPT_READ_BYTES: usize = 64 * 1024;

/// Once a read has taken so much inflating and deflating, as bytes that are inflated, the rest of it waits for
/// the others' turn: a client gets little more of a shard's time, and none of its memory, by deflating than
/// without.
const MAX_EFFORT_BYTES: usize = READ_BUFFER_BYTES;

/// Answers that are not in the read buffer are sent once they are so many bytes.
const MAX_GATHERED_BYTES: usize = 64 * 1024;

/// Drives one connection to its end.
pub(crate) struct Driver {
    client: Rc<Client>,
    shard: Rc<Shard>,
}

/// What came of trying to read.
enum Read {
    /// Something was read: look at the connection again.
    Some,
    /// As much was read as there was room for, so there is likely more: after the others' turn.
    Filled,
    /// Nothing is there, or nothing may be read now. Somebody will wake us.
    Pending,
}

impl Driver {
    pub(crate) fn new(client: Rc<Client>, shard: Rc<Shard>) -> Self {
        Self { client, shard }
    }

    fn drive(&self, cx: &mut Context<'_>) -> Poll<()> {
        let (client, shard) = (&*self.client, &*self.shard);
        // The waker of a task is the same for its life.
        client.waker.get_or_init(|| cx.waker().clone());
        loop {
            let mut connection = client.hold(shard);
            poll_write(client, &mut connection, shard, cx);
            if is_over(client, &connection) {
                return Poll::Ready(());
            }
            if connection.is_failed_and_flushed()
                && !client.is_shut.get()
                && client.socket.borrow_mut().poll_shut_down(cx).is_ready()
            {
                client.is_shut.set(true);
            }
            match poll_read(client, &mut connection, shard, cx) {
                Read::Some => {}
                Read::Filled => {
                    // The shard's other connections come first, those too of whose sockets it has not
                    // heard yet: it looks at the sockets before it wakes what is deferred. Woken at
                    // once, a few such connections would keep it from that for a whole interval.
                    _ = pin!(yield_now()).poll(cx);
                    drop(connection);
                    return self.write_before_waiting(cx);
                }
                Read::Pending => return Poll::Pending,
            }
        }
    }

    /// What the last read led to is written before the others' turn.
    fn write_before_waiting(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut connection = self.client.hold(&self.shard);
        poll_write(&self.client, &mut connection, &self.shard, cx);
        if is_over(&self.client, &connection) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// A bug ends the connection in which it showed, and no other.
    fn handle_panic(&self, panic: &(dyn Any + Send)) -> Poll<()> {
        let id = self.client.id.to_uuid(self.shard.gateway);
        report_panic(&id, panic, &self.shard);
        let Some(mut connection) = self.client.try_hold(&self.shard) else {
            return Poll::Ready(());
        };
        if !connection.is_open() {
            return Poll::Ready(());
        }
        let (now, timing) = (self.shard.now(), self.shard.timing());
        connection.fail(now, CloseCode::INTERNAL_ERROR, "internal error", &timing);
        self.shard.arm(&self.client, &connection);
        self.client.wake_driver();
        Poll::Pending
    }
}

/// Logs and counts a panic that was caught while serving the connection called `id`.
pub(crate) fn report_panic(id: &str, panic: &(dyn Any + Send), shard: &Shard) {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    error!(connection = id, panic = text.unwrap_or("no text"), "bug: closing one connection");
    shard.counters.panics.increment();
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // The state that a panic could leave half changed is this connection's, which is then failed.
        match catch_unwind(AssertUnwindSafe(|| self.drive(cx))) {
            Ok(poll) => poll,
            Err(panic) => self.handle_panic(&*panic),
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.shard.handle_end(&self.client);
    }
}

/// Nothing more will be read or written, and what was written is sent or given up.
fn is_over(client: &Client, connection: &Connection) -> bool {
    if connection.ended().is_none() || !connection.is_closed() && client.has_unsent() {
        return false;
    }
    client.socket.borrow_mut().say_end();
    true
}

/// Writes what waits, and has the driver woken when the socket takes more.
fn poll_write(client: &Client, connection: &mut Connection, shard: &Shard, cx: &mut Context<'_>) {
    while !connection.outbound.is_empty() || client.has_unsent() {
        if client.write_waiting(connection, shard) {
            // What comes here was refused by a full socket before, so the peer has made room.
            connection.handle_sign_of_life(shard.now());
        }
        if connection.outbound.is_empty() && !client.has_unsent() || connection.is_closed() {
            return;
        }
        match client.socket.borrow_mut().poll_write_ready(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => connection.handle_disconnect(),
            Poll::Pending => return,
        }
    }
}

fn poll_read(
    client: &Client,
    connection: &mut Connection,
    shard: &Shard,
    cx: &mut Context<'_>,
) -> Read {
    let input = connection.input();
    let max_bytes = match input {
        Input::None => return Read::Pending,
        Input::Discard | Input::DecodeForClose => READ_BUFFER_BYTES,
        Input::Decode => match client.channel {
            // What comes back waits in the outbound queue, so its bound is kept by not reading.
            channel
                if (channel.is_none() || client.takes_control)
                    && connection.outbound.bytes() >= shard.terms.get().max_echo_backlog_bytes =>
            {
                return Read::Pending;
            }
            None => shard.terms.get().max_echo_read_bytes,
            Some(channel) => {
                if shard.turn.borrow().is_full() {
                    _ = pin!(yield_now()).poll(cx);
                    return Read::Pending;
                }
                if shard.broker.is_congested(channel.home) {
                    shard.pause(client);
                    return Read::Pending;
                }
                READ_BUFFER_BYTES
            }
        },
    };
    let may_keep_unread = client.coding.is_on() || client.takes_control;
    let max_bytes = if may_keep_unread { max_bytes.min(MAX_KEPT_READ_BYTES) } else { max_bytes };
    let max_bytes = match client.pace().filter(|_| input == Input::Decode) {
        None => max_bytes,
        Some(pace) => match pace.poll_room(client, shard, connection.decoder.has_unread()) {
            Some(room) => max_bytes.min(room),
            None => return Read::Pending,
        },
    };
    let buffer = &mut *shard.read_buffer.borrow_mut();
    if connection.decoder.has_unread() {
        process(client, connection, shard, buffer, 0, shard.now());
        if !connection.is_open() {
            shard.arm(client, connection);
        }
        return Read::Filled;
    }
    let mut read_buf = ReadBuf::new(&mut buffer[MAX_KEPT_BYTES..MAX_KEPT_BYTES + max_bytes]);
    match Pin::new(&mut *client.socket.borrow_mut()).poll_read(cx, &mut read_buf) {
        Poll::Pending => return Read::Pending,
        Poll::Ready(Ok(())) if !read_buf.filled().is_empty() => {}
        Poll::Ready(Ok(()) | Err(_)) => {
            connection.handle_disconnect();
            return Read::Some;
        }
    }
    let read_bytes = read_buf.filled().len();
    shard.counters.received_bytes.add(read_bytes as u64);
    let now = shard.now();
    connection.handle_sign_of_life(now);
    if input != Input::Discard {
        process_read(client, connection, shard, buffer, read_bytes, now);
        if !connection.is_open() {
            shard.arm(client, connection);
        }
    }
    let has_more = read_bytes == max_bytes || connection.decoder.has_unread();
    if has_more { Read::Filled } else { Read::Some }
}

/// As [`process`], for bytes that came right behind the request. Where the driver would not read now, they
/// wait until it would.
pub(crate) fn process_early(
    client: &Client,
    connection: &mut Connection,
    shard: &Shard,
    early: &[u8],
    now: Instant,
) {
    shard.counters.received_bytes.add(early.len() as u64);
    if let Some(pace) = client.pace()
        && !pace.take_bytes(early.len(), now)
    {
        return handle_excess(client, connection, shard, RateLimit::Bytes, now);
    }
    let must_wait = client.channel.is_some_and(|channel| {
        shard.turn.borrow().is_full() || shard.broker.is_congested(channel.home)
    });
    if must_wait {
        return connection.decoder.keep_unread(early);
    }
    let buffer = &mut *shard.read_buffer.borrow_mut();
    buffer[MAX_KEPT_BYTES..MAX_KEPT_BYTES + early.len()].copy_from_slice(early);
    process(client, connection, shard, buffer, early.len(), now);
}

/// As [`process`], for bytes that have just been read, if so many may be.
fn process_read(
    client: &Client,
    connection: &mut Connection,
    shard: &Shard,
    buffer: &mut [u8],
    read_bytes: usize,
    now: Instant,
) {
    if let Some(pace) = client.pace()
        && connection.is_open()
        && !pace.take_bytes(read_bytes, now)
    {
        return handle_excess(client, connection, shard, RateLimit::Bytes, now);
    }
    process(client, connection, shard, buffer, read_bytes, now);
}

/// Acts on `read_bytes` bytes in `buffer`, which start behind the room for the bytes that the decoder
/// kept; on what it kept unread, if there is that, and then nothing was read.
pub(crate) fn process(
    client: &Client,
    connection: &mut Connection,
    shard: &Shard,
    buffer: &mut [u8],
    read_bytes: usize,
    now: Instant,
) {
    let kept_bytes = connection.decoder.kept_bytes();
    let (mut at, end) = match connection.decoder.has_unread() {
        true => (0, kept_bytes),
        false => (MAX_KEPT_BYTES - kept_bytes, MAX_KEPT_BYTES + read_bytes),
    };
    connection.decoder.restore(&mut buffer[at..at + kept_bytes]);
    let mut effort_bytes = 0;
    let mut answer = Answer::default();
    let rules =
        Rules { max_message_bytes: shard.max_message_bytes(), deflate: client.coding.is_on() };
    let pace = client.pace();
    loop {
        if let Some(pace) = pace
            && at < end
            && connection.is_open()
            && pace.must_wait(now)
        {
            answer.send(client, connection, shard, buffer);
            return connection.decoder.keep_unread(&buffer[at..end]);
        }
        let decoded = match connection.decoder.decode(&mut buffer[at..end], rules) {
            Ok(decoded) => decoded,
            Err(violation) => {
                answer.send(client, connection, shard, buffer);
                return handle_violation(client, connection, shard, violation, now);
            }
        };
        let start = at;
        at += decoded.consumed;
        match decoded.event {
            None => break,
            Some(Event::Pong) => {}
            // After our Close the peer's Close is all that counts.
            Some(Event::Message { .. } | Event::DeflatedMessage { .. } | Event::Ping { .. })
                if !connection.is_open() => {}
            Some(Event::Message { .. } | Event::DeflatedMessage { .. })
                if pace.is_some_and(|pace| !pace.take_message(now)) =>
            {
                answer.send(client, connection, shard, buffer);
                return handle_excess(client, connection, shard, RateLimit::Messages, now);
            }
            Some(Event::Message { kind, payload_bytes, frame }) => {
                #[cfg(test)]
                tests::panic_if_asked(&buffer[start..at]);
                count_received(shard, kind);
                if client.takes_control
                    && let Some(control) = control_in(frame.bytes(&buffer[start..]))
                {
                    answer.send(client, connection, shard, buffer);
                    shard.handle_control(client, connection, control, now);
                    // One a turn: to check a token takes long.
                    return connection.decoder.keep_unread(&buffer[at..end]);
                }
                match (client.ask, frame) {
                    (Ask::Echo, frame) if client.deflates(payload_bytes, shard) => {
                        count_echoed(shard, kind);
                        answer.begin_gathering(buffer);
                        answer.deflate(client, connection, shard, frame.bytes(&buffer[start..]));
                        effort_bytes += client.coding.inflated_effort_bytes(payload_bytes);
                        if effort_bytes >= MAX_EFFORT_BYTES {
                            answer.send(client, connection, shard, buffer);
                            return connection.decoder.keep_unread(&buffer[at..end]);
                        }
                    }
                    (Ask::Echo, ServerFrame::InPlace(range)) => {
                        count_echoed(shard, kind);
                        answer.append(buffer, start + range.start..start + range.end);
                    }
                    (Ask::Echo, ServerFrame::Gathered(frame)) => {
                        count_echoed(shard, kind);
                        answer.send(client, connection, shard, buffer);
                        client.send(connection, &frame, shard);
                    }
                    (Ask::Publish { own }, frame) => {
                        let Some(grant) = client.publish_grant.get() else {
                            answer.send(client, connection, shard, buffer);
                            shard.refuse_publication(client, connection, now);
                            continue;
                        };
                        let frame = match frame {
                            ServerFrame::InPlace(range) => {
                                Frame::Borrowed(&buffer[start + range.start..start + range.end])
                            }
                            ServerFrame::Gathered(frame) => Frame::Owned(frame),
                        };
                        shard.publish(client, grant, own, frame, now);
                    }
                }
            }
            Some(Event::DeflatedMessage { kind, payload }) => {
                let payload = payload.bytes(&buffer[start..]);
                let inflated = match shard.inflate(kind, payload, &client.coding) {
                    Ok(inflated) => inflated,
                    Err(violation) => {
                        answer.send(client, connection, shard, buffer);
                        return handle_violation(client, connection, shard, violation, now);
                    }
                };
                effort_bytes += inflated.effort_bytes;
                count_received(shard, kind);
                if client.takes_control
                    && let Some(control) = control_in(&inflated)
                {
                    shard.recycle(inflated);
                    answer.send(client, connection, shard, buffer);
                    shard.handle_control(client, connection, control, now);
                    return connection.decoder.keep_unread(&buffer[at..end]);
                }
                match client.ask {
                    Ask::Echo => {
                        count_echoed(shard, kind);
                        answer.begin_gathering(buffer);
                        answer.deflate(client, connection, shard, &inflated);
                        if client.deflates(inflated.len(), shard) {
                            effort_bytes += client.coding.inflated_effort_bytes(inflated.len());
                        }
                        shard.recycle(inflated);
                    }
                    Ask::Publish { own } => match client.publish_grant.get() {
                        Some(grant) => publish_inflated(client, shard, grant, own, inflated, now),
                        None => {
                            shard.recycle(inflated);
                            answer.send(client, connection, shard, buffer);
                            shard.refuse_publication(client, connection, now);
                        }
                    },
                }
                if effort_bytes >= MAX_EFFORT_BYTES {
                    answer.send(client, connection, shard, buffer);
                    return connection.decoder.keep_unread(&buffer[at..end]);
                }
            }
            Some(Event::Ping { pong }) => {
                let pong = start + pong.start..start + pong.end;
                if connection.outbound.is_empty() {
                    answer.append(buffer, pong);
                } else {
                    // It goes before the data that waits, and must not wait for it.
                    let pong = bytes::Bytes::copy_from_slice(&buffer[pong]);
                    connection.outbound.push_pong(pong);
                }
            }
            Some(Event::Close(code)) => {
                answer.send(client, connection, shard, buffer);
                connection.handle_close(now, code, &shard.timing());
                return;
            }
        }
    }
    answer.send(client, connection, shard, buffer);
    connection.decoder.keep(&buffer[at..end]);
}

fn publish_inflated(
    client: &Client,
    shard: &Shard,
    grant: PublishGrant,
    own: bool,
    inflated: Inflated,
    now: Instant,
) {
    if inflated.is_large() {
        return shard.publish(client, grant, own, Frame::Owned(inflated.into_bytes()), now);
    }
    shard.publish(client, grant, own, Frame::Borrowed(&inflated), now);
    shard.recycle(inflated);
}

/// What a whole message asks of the gateway itself.
fn control_in(message: &[u8]) -> Option<Control> {
    match frame::open(message) {
        (MessageKind::Text, payload) => control::parse(payload),
        (MessageKind::Binary, _) => None,
    }
}

/// Fails the connection for more than it may send.
#[cold]
fn handle_excess(
    client: &Client,
    connection: &mut Connection,
    shard: &Shard,
    limit: RateLimit,
    now: Instant,
) {
    let index = rate_limited_index(limit, RateLimitAction::Close as usize);
    shard.counters.rate_limited[index].increment();
    let reason = match limit {
        RateLimit::Messages => "too many messages",
        RateLimit::Bytes => "too many bytes",
    };
    debug!(connection = %client.id.to_uuid(shard.gateway), reason, "rate limit");
    connection.fail(now, CloseCode::POLICY_VIOLATION, reason, &shard.timing());
}

/// Fails the connection for a rule that the peer broke.
#[cold]
fn handle_violation(
    client: &Client,
    connection: &mut Connection,
    shard: &Shard,
    violation: ProtocolError,
    now: Instant,
) {
    if connection.is_open() {
        shard.counters.protocol_errors[violation.kind()].increment();
        debug!(connection = %client.id.to_uuid(shard.gateway), %violation, "protocol error");
    }
    connection.handle_violation(now, violation, &shard.timing());
}

/// Frames to be sent back, so that those of one read leave in one write.
#[derive(Default)]
struct Answer {
    /// Where they lie one behind the other, in the part of the buffer that is done with.
    in_place: Range<usize>,
    /// Once one of them is not in the buffer they are all here.
    gathered: Vec<u8>,
}

impl Answer {
    /// Adds the frame that lies in `range` of `buffer`.
    #[inline]
    fn append(&mut self, buffer: &mut [u8], range: Range<usize>) {
        if !self.gathered.is_empty() {
            self.gathered.extend_from_slice(&buffer[range]);
        } else if self.in_place.is_empty() {
            self.in_place = range;
        } else {
            // Right behind the others.
            let moved = self.in_place.end..self.in_place.end + range.len();
            buffer.copy_within(range, moved.start);
            self.in_place.end = moved.end;
        }
    }

    /// The next frame is not in `buffer`.
    fn begin_gathering(&mut self, buffer: &[u8]) {
        self.gathered.extend_from_slice(&buffer[std::mem::take(&mut self.in_place)]);
    }

    /// Adds a plain frame as `client` gets it, after [`Answer::begin_gathering`].
    fn deflate(
        &mut self,
        client: &Client,
        connection: &mut Connection,
        shard: &Shard,
        frame: &[u8],
    ) {
        if client.coding.refers() {
            // What it may refer to depends on what the socket takes.
            self.send(client, connection, shard, &[]);
            return client.send_referring(connection, frame, shard);
        }
        shard.with_deflated(frame, &client.coding, |frame| self.gathered.extend_from_slice(frame));
        if self.gathered.len() >= MAX_GATHERED_BYTES {
            self.send(client, connection, shard, &[]);
        }
    }

    /// Sends them, and is empty again.
    #[inline]
    fn send(&mut self, client: &Client, connection: &mut Connection, shard: &Shard, buffer: &[u8]) {
        let in_place = std::mem::take(&mut self.in_place);
        if !in_place.is_empty() {
            client.send_borrowed(connection, &buffer[in_place], shard);
        } else if !self.gathered.is_empty() {
            client.send_borrowed(connection, &self.gathered, shard);
            self.gathered.clear();
        }
    }
}

#[inline]
fn count_received(shard: &Shard, kind: MessageKind) {
    match kind {
        MessageKind::Text => shard.counters.messages_received[TEXT].increment(),
        MessageKind::Binary => shard.counters.messages_received[BINARY].increment(),
    }
}

#[inline]
fn count_echoed(shard: &Shard, kind: MessageKind) {
    match kind {
        MessageKind::Text => shard.counters.messages_sent[TEXT].increment(),
        MessageKind::Binary => shard.counters.messages_sent[BINARY].increment(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    /// A message of exactly this text, unmasked, makes its driver panic: the one way to see what a
    /// bug in serving a connection does to the others.
    pub(crate) const PANIC: &[u8] = b"panic, please: this is a test";

    pub(crate) fn panic_if_asked(frame: &[u8]) {
        assert!(!frame.ends_with(PANIC), "a test asked for it");
    }
}
