//! What is promised to each connection, and whether it was kept so far.
//!
//! A [`Record`] goes with each connection. The schedule tells it what the peer says and what the
//! connection is to get, the driver what it does, and [`Record::check`] compares that with the bytes
//! that the socket took and those that wait behind them.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use wsgate::connection::outbound::{Limit, SlowConsumerPolicy};
use wsgate::connection::{Connection, Ending, Initiator, Input, Timing};
use wsgate::wire::frame::MAX_HEADER_BYTES;

use crate::frames::{BINARY, CLOSE, Frame, PING, PONG, Parser, TEXT};

/// How late a deadline may be acted on: the shard's wheel turns in steps of this length.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// Longest control frame of a server.
const MAX_CONTROL_FRAME_BYTES: usize = 2 + 125;

/// The decoder may double its buffer, and grows by this much at least.
const MIN_GROWTH_BYTES: usize = 256;

/// Most slices that a queue offers at a time. A check needs to see all that waits, so the bounds of a
/// simulation are too small for as many.
const MAX_SLICES: usize = 64;

/// Names a message: its place among all messages of the run.
pub(crate) type Id = usize;

/// Why a connection gets a message. What comes from one origin comes in one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// It sent the message itself.
    Echo,
    /// It is subscribed to the channel of this number.
    Channel(usize),
    /// Somebody sent it to this connection alone.
    Direct,
}

/// A message that somebody sends.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) origin: Origin,
    /// Which connection of the run said it. `None`: somebody outside.
    pub(crate) publisher: Option<usize>,
    pub(crate) opcode: u8,
    /// Begins with its [`Id`] in decimal digits.
    pub(crate) payload: Vec<u8>,
}

/// The messages of a run.
#[derive(Debug, Default)]
pub(crate) struct Messages(Vec<Message>);

impl Messages {
    /// Makes up the next message, of `bytes` or a little more.
    pub(crate) fn make(
        &mut self,
        origin: Origin,
        publisher: Option<usize>,
        opcode: u8,
        bytes: usize,
    ) -> Id {
        let id = self.0.len();
        let mut payload = format!("{id}:").into_bytes();
        payload.resize(bytes.max(payload.len()), b'.');
        self.0.push(Message { origin, publisher, opcode, payload });
        id
    }

    pub(crate) fn get(&self, id: Id) -> &Message {
        &self.0[id]
    }

    /// Which message `frame` is.
    fn identify(&self, frame: &Frame) -> Id {
        let digits = frame.payload.split(|byte| *byte == b':').next().unwrap_or_default();
        let id = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
        let id: Id = id.unwrap_or_else(|| panic!("a message nobody sent: {frame:?}"));
        let Message { opcode, payload, .. } = &self.0[id];
        assert!(
            (*opcode, payload) == (frame.opcode, &frame.payload),
            "message {id} was changed on its way"
        );
        id
    }
}

/// Something that a peer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Message(Id),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
    /// Breaks a rule that the connection is to be failed for with this code.
    Violation(u16),
}

/// How and when a connection began to close.
#[derive(Clone, Copy, Debug)]
struct Closing {
    at: Instant,
    ending: Ending,
    /// For reading too slowly.
    is_tripped: bool,
}

/// The frames of one connection, as far as they are looked at.
#[derive(Clone, Debug, Default)]
struct Wire {
    parser: Parser,
    /// By origin: how many of the messages offered lie before what comes next.
    passed: BTreeMap<Origin, usize>,
    /// By publisher: its last message.
    last: BTreeMap<usize, Id>,
    messages: usize,
    pings: usize,
    /// How many of the Pings heard are answered, or need no answer any more.
    pongs: usize,
    close: Option<Vec<u8>>,
}

/// What one connection was promised and what it got.
#[derive(Debug)]
pub(crate) struct Record {
    /// What its peer says that is to be heard, with where in the stream it ends.
    said: VecDeque<(u64, Said)>,
    said_bytes: u64,
    read_bytes: u64,
    /// Bytes read since the end of the last message.
    kept_bytes: usize,
    pings_heard: Vec<Vec<u8>>,
    /// What it is to get.
    offered: BTreeMap<Origin, Vec<Id>>,
    offered_messages: usize,
    /// What of that is new since the last check.
    newly_offered: Vec<Id>,
    /// Messages of which the queue said that they were dropped.
    dropped: usize,
    wire: Wire,
    /// At the last check: the messages that waited and of which no byte was written.
    waiting: Vec<Id>,
    /// Pings of ours that were due, and those that are written or wait.
    pings_due: usize,
    pings_sent: usize,
    /// At the last check a control frame waited.
    control_waits: bool,
    last_alive: Instant,
    /// Pings due since then.
    unanswered: u32,
    closing: Option<Closing>,
    is_disconnected: bool,
}

/// What the promises depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) timing: Timing,
    pub(crate) limit: Limit,
    pub(crate) max_message_bytes: usize,
    /// Most bytes of answers and own messages that may wait, whatever the policy.
    pub(crate) max_answer_bytes: usize,
}

impl Record {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            said: VecDeque::new(),
            said_bytes: 0,
            read_bytes: 0,
            kept_bytes: 0,
            pings_heard: Vec::new(),
            offered: BTreeMap::new(),
            offered_messages: 0,
            newly_offered: Vec::new(),
            dropped: 0,
            wire: Wire::default(),
            waiting: Vec::new(),
            pings_due: 0,
            pings_sent: 0,
            control_waits: false,
            last_alive: now,
            unanswered: 0,
            closing: None,
            is_disconnected: false,
        }
    }

    // What happens on the peer's side.

    /// The peer says `said`, which takes the next `bytes` of its stream.
    pub(crate) fn say(&mut self, said: Option<Said>, bytes: usize) {
        self.said_bytes += bytes as u64;
        self.said.extend(said.map(|said| (self.said_bytes, said)));
    }

    /// The code of the gateway's Close, once the peer has it.
    pub(crate) fn close_seen(&self) -> Option<Option<u16>> {
        self.wire.close.as_ref().map(|payload| close_code(payload))
    }

    /// How many Pings of the gateway the peer has.
    pub(crate) fn pings_seen(&self) -> usize {
        self.wire.pings
    }

    // What the driver does.

    /// `bytes` were read that are to be decoded.
    pub(crate) fn read(&mut self, bytes: usize) {
        self.read_bytes += bytes as u64;
        self.kept_bytes += bytes;
    }

    /// The decoder said this, with `rest` bytes that are still to be decoded.
    pub(crate) fn hear(&mut self, heard: Said, rest: usize) {
        let (end, said) = self.said.pop_front().expect("something was heard that nobody said");
        assert_eq!(heard, said, "what was heard and what was said");
        // A broken rule is noticed as early as it can be.
        let is_early = end > self.read_bytes && !matches!(said, Said::Violation(_));
        assert!(!is_early, "{said:?} was heard before it had arrived");
        match said {
            Said::Message(_) => self.kept_bytes = rest,
            Said::Ping(payload) => self.pings_heard.push(payload),
            Said::Pong => {}
            // Nothing that follows has a meaning.
            Said::Close(_) | Said::Violation(_) => {
                self.said.clear();
                self.kept_bytes = 0;
            }
        }
    }

    /// The decoder said that `frame` is a message.
    pub(crate) fn hear_message(&mut self, frame: &[u8], rest: usize, messages: &Messages) -> Id {
        let mut parser = Parser::default();
        let [frame] = &parser.take(frame)[..] else { panic!("a message is one server frame") };
        assert!(parser.is_between_frames(), "a message is one server frame");
        let id = messages.identify(frame);
        self.hear(Said::Message(id), rest);
        id
    }

    /// A Ping was heard while the connection was not open, and needs no answer.
    pub(crate) fn forget_ping(&mut self) {
        self.pings_heard.pop();
    }

    /// `id` is handed to this connection, which has to get it.
    pub(crate) fn offer(&mut self, origin: Origin, id: Id) {
        self.offered.entry(origin).or_default().push(id);
        self.offered_messages += 1;
        self.newly_offered.push(id);
    }

    /// The queue said that it dropped `messages`.
    pub(crate) fn drop_counted(&mut self, messages: usize) {
        self.dropped += messages;
    }

    pub(crate) fn sign_of_life(&mut self, now: Instant) {
        self.last_alive = now;
        self.unanswered = 0;
    }

    /// One side begins to close. Only the first counts.
    pub(crate) fn close(&mut self, at: Instant, code: u16, initiator: Initiator) {
        let ending = Ending { code, initiator };
        self.closing.get_or_insert(Closing { at, ending, is_tripped: false });
    }

    /// The queue is full and the policy says to close.
    pub(crate) fn trip(&mut self, at: Instant) {
        assert!(self.closing.is_none(), "a queue that is closing overflows no more");
        let ending = Ending { code: 1008, initiator: Initiator::Local };
        self.closing = Some(Closing { at, ending, is_tripped: true });
    }

    pub(crate) fn disconnect(&mut self) {
        self.is_disconnected = true;
    }

    /// The deadlines of the connection are looked at. Returns what is due, in words.
    pub(crate) fn time_out(&mut self, now: Instant, timing: &Timing) -> Option<&'static str> {
        if self.is_disconnected {
            return None;
        }
        if let Some(closing) = self.closing {
            return (now >= closing.at + timing.close_timeout).then_some("closing cut off");
        }
        if now >= self.last_alive + timing.idle_timeout {
            self.close(now, 1001, Initiator::Local);
            return Some("idle peers closed");
        }
        self.next_ping(timing).filter(|due| now >= *due)?;
        self.pings_due += 1;
        self.unanswered += 1;
        Some("Pings due")
    }

    fn next_ping(&self, timing: &Timing) -> Option<Instant> {
        let interval = timing.ping_interval;
        (!interval.is_zero()).then(|| self.last_alive + interval * (self.unanswered + 1))
    }

    // Whether the promises are kept.

    /// The connection is let go of, after a check: nothing that its peer had time to read is missing.
    pub(crate) fn check_end(&self, connection: &Connection, now: Instant, timing: &Timing) {
        let ending = self.closing.map_or(Ending::ABNORMAL, |closing| closing.ending);
        assert_eq!(connection.ended(), Some(ending), "how it ended");
        let is_cut_off =
            self.closing.is_some_and(|closing| now >= closing.at + timing.close_timeout);
        if !self.is_disconnected && !is_cut_off {
            assert!(self.wire.close.is_some(), "it ended before our Close was written");
        }
    }

    /// Whether it is to be open.
    pub(crate) fn is_open(&self) -> bool {
        self.closing.is_none() && !self.is_disconnected
    }

    /// What it still waits for, now that there was room and time for everything.
    pub(crate) fn missing(&self) -> usize {
        self.offered_messages - self.dropped - self.wire.messages
    }

    /// Compares what was promised with `taken`, which the socket took since the last check, and what
    /// waits behind it.
    pub(crate) fn check(
        &mut self,
        connection: &Connection,
        taken: &[u8],
        now: Instant,
        terms: &Terms,
        messages: &Messages,
    ) {
        let mut wire = std::mem::take(&mut self.wire);
        let written = self.look(&mut wire, taken, messages);
        self.wire = wire;
        self.check_state(connection, now, &terms.timing);
        self.check_memory(connection, terms);
        if !self.is_disconnected {
            self.check_queue(connection, &written, terms, messages);
        }
    }

    fn check_state(&self, connection: &Connection, now: Instant, timing: &Timing) {
        let ending = self.closing.map(|closing| closing.ending);
        assert_eq!(connection.is_open(), self.is_open(), "open, where {ending:?} is to be the end");
        let input = connection.input();
        if let (Input::Decode | Input::DecodeForClose, Some((end, said))) =
            (input, self.said.front())
        {
            assert!(*end > self.read_bytes, "{said:?} has arrived and was not heard");
        }
        let is_late = |due: Instant| now >= due + TICK;
        if self.is_open() {
            assert!(!is_late(self.last_alive + timing.idle_timeout), "an idle peer is not closed");
            let ping = self.next_ping(timing);
            assert!(!ping.is_some_and(is_late), "a silent peer is not pinged");
            assert_eq!(input, Input::Decode);
        } else if connection.ended().is_none() {
            let closing = self.closing.expect("a connection without a peer has ended");
            assert!(!is_late(closing.at + timing.close_timeout), "closing takes too long");
        }
    }

    fn check_memory(&self, connection: &Connection, terms: &Terms) {
        let held_bytes = connection.decoder.held_bytes();
        let used_bytes = self.kept_bytes + MAX_HEADER_BYTES;
        assert!(
            held_bytes == 0 || held_bytes <= used_bytes + used_bytes.max(MIN_GROWTH_BYTES),
            "the decoder holds {held_bytes} bytes after {} arrived",
            self.kept_bytes
        );
        let queued_bytes = connection.outbound.bytes();
        let most = terms.limit.max_bytes.max(terms.max_answer_bytes) + MAX_CONTROL_FRAME_BYTES;
        assert!(queued_bytes <= most, "{queued_bytes} bytes wait, of at most {most}");
    }

    /// What the socket will take if nothing else happens: whole frames behind what it took, in which
    /// every message is that was offered and not counted as dropped.
    fn check_queue(
        &mut self,
        connection: &Connection,
        written: &[Id],
        terms: &Terms,
        messages: &Messages,
    ) {
        let mut ahead = self.wire.clone();
        let started = usize::from(ahead.parser.opcode().is_some_and(|opcode| opcode < CLOSE));
        let slices = connection.outbound.slices();
        assert!(slices.len() < MAX_SLICES, "the queue shows only a part of what waits");
        assert_eq!(slices.is_empty(), connection.outbound.is_empty(), "empty");
        let mut waiting = Vec::new();
        for slice in &slices {
            assert!(!slice.is_empty(), "a slice without a byte");
            waiting.extend(self.look(&mut ahead, slice, messages));
        }
        assert!(ahead.parser.is_between_frames(), "the end of a frame is missing");
        let shown_bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        let uncounted_bytes = shown_bytes.checked_sub(connection.outbound.bytes());
        assert!(
            uncounted_bytes.is_some_and(|bytes| bytes <= 2 * MAX_CONTROL_FRAME_BYTES),
            "{} bytes are counted of {shown_bytes}",
            connection.outbound.bytes()
        );

        let lost = self.offered_messages - ahead.messages;
        assert_eq!(lost, self.dropped, "messages that are nowhere, and those counted as dropped");
        self.check_losses(written, &waiting, started, &terms.limit);
        self.check_control_frames(&ahead);
        self.waiting = waiting.split_off(started);
        self.newly_offered.clear();
    }

    /// Only those are lost that the policy says. Of the first `started` of `waiting` a part is written.
    fn check_losses(&self, written: &[Id], waiting: &[Id], started: usize, limit: &Limit) {
        let is_here = |id: &Id| written.contains(id) || waiting.contains(id);
        let lost_waiting = self.waiting.iter().position(|id| !is_here(id));
        let oldest_waiting = self.waiting.iter().position(|id| waiting[started..].contains(id));
        let is_tripped = self.closing.is_some_and(|closing| closing.is_tripped);
        match limit.policy {
            SlowConsumerPolicy::Close if is_tripped => {
                assert_eq!(waiting.len(), started, "a tripped connection gets {waiting:?}");
            }
            SlowConsumerPolicy::Close => assert_eq!(self.dropped, 0, "dropped without a close"),
            SlowConsumerPolicy::DropNewest => {
                let lost = lost_waiting.map(|at| self.waiting[at]);
                assert_eq!(lost, None, "a message that waited was dropped for a new one");
            }
            SlowConsumerPolicy::DropOldest => {
                let lost_new = self.newly_offered.iter().any(|id| !is_here(id));
                let last_lost = self.waiting.iter().rposition(|id| !is_here(id));
                if let Some(oldest) = oldest_waiting {
                    assert!(!lost_new, "a new message was dropped before one that waited");
                    assert!(last_lost.is_none_or(|last| last < oldest), "not the oldest dropped");
                }
            }
        }
    }

    fn check_control_frames(&mut self, ahead: &Wire) {
        let is_tripped = self.closing.is_some_and(|closing| closing.is_tripped);
        if !is_tripped {
            assert_eq!(ahead.pongs, self.pings_heard.len(), "the latest Ping has no Pong");
        }
        let (sent, due) = (ahead.pings, self.pings_due);
        assert!(sent <= due, "{sent} Pings are sent of {due} that were due");
        self.control_waits = (ahead.pings, ahead.pongs) != (self.wire.pings, self.wire.pongs);
        self.pings_sent = sent;
        match (&self.closing, &ahead.close) {
            (None, None) => {}
            (Some(closing), Some(payload)) => {
                let code = close_code(payload).unwrap_or(1005);
                assert_eq!(code, closing.ending.code, "the code of our Close");
                let reason = std::str::from_utf8(payload.get(2..).unwrap_or_default());
                let reason = reason.expect("a reason is UTF-8");
                assert!(!closing.is_tripped || reason == "slow consumer", "closed for {reason:?}");
            }
            (closing, close) => {
                let ending = closing.map(|closing| closing.ending);
                panic!("our Close is {close:?} where {ending:?} is to be the end");
            }
        }
    }

    /// Whether a Ping that is due now would be sent, beside how many were sent before.
    pub(crate) fn before_time_out(&self) -> PingCheck {
        PingCheck { due: self.pings_due, sent: self.pings_sent, may_wait: self.control_waits }
    }

    /// After a look at the deadlines: what was due then is sent.
    pub(crate) fn after_time_out(&self, before: &PingCheck) {
        if !before.may_wait && !self.is_disconnected {
            let (sent, due) = (self.pings_sent - before.sent, self.pings_due - before.due);
            assert_eq!(sent, due, "Pings sent now, and due now");
        }
    }

    /// Understands the next `bytes` of the stream in `wire`. Returns the messages in it.
    fn look(&self, wire: &mut Wire, bytes: &[u8], messages: &Messages) -> Vec<Id> {
        let mut seen = Vec::new();
        for frame in wire.parser.take(bytes) {
            assert_eq!(wire.close, None, "{frame:?} follows our Close");
            match frame.opcode {
                TEXT | BINARY => {
                    let id = messages.identify(&frame);
                    self.look_at_message(wire, id, messages.get(id));
                    seen.push(id);
                }
                PING => {
                    assert!(frame.payload.is_empty(), "a heartbeat says nothing");
                    wire.pings += 1;
                }
                PONG => {
                    let later = &self.pings_heard[wire.pongs..];
                    let answered = later.iter().position(|ping| *ping == frame.payload);
                    let answered = answered.expect("a Pong answers a Ping later than the last one");
                    wire.pongs += answered + 1;
                }
                CLOSE => wire.close = Some(frame.payload),
                opcode => unreachable!("the parser refuses opcode {opcode:#x}"),
            }
        }
        seen
    }

    fn look_at_message(&self, wire: &mut Wire, id: Id, message: &Message) {
        let passed = wire.passed.entry(message.origin).or_default();
        let offered = self.offered.get(&message.origin).map_or(&[][..], |offered| offered);
        let place = offered[*passed..].iter().position(|offered| *offered == id);
        let place = place.unwrap_or_else(|| {
            panic!("message {id} was not to come here, comes twice or out of order")
        });
        *passed += place + 1;
        if let Some(publisher) = message.publisher {
            let last = wire.last.insert(publisher, id);
            assert!(last < Some(id), "{last:?} of publisher {publisher} came before {id}");
        }
        wire.messages += 1;
    }
}

/// See [`Record::before_time_out`].
pub(crate) struct PingCheck {
    due: usize,
    sent: usize,
    may_wait: bool,
}

fn close_code(payload: &[u8]) -> Option<u16> {
    payload.first_chunk().map(|code| u16::from_be_bytes(*code))
}
