//! One thread: an epoll loop over its share of the clients.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;

use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use crate::client::deflate::Inflated;
use crate::client::frame::{self, opcode};
use crate::client::payload::Payload;
use crate::client::stamp::Stamp;
use crate::client::{http, nats};
use crate::engine::connection::{Connection, Fault, Heard, READ_BYTES, State};
use crate::engine::plan::{Control, Load, Phase, Plan, Role};
use crate::engine::sample::{Counts, Last, Sample, StalledReader, Told, histogram};
use crate::target::{Dialect, channel_name};

/// How often a thread tells what happened, and looks for handshakes that take too long, in nanoseconds.
const SAMPLE_EVERY: u64 = 250_000_000;

/// A refused handshake or publication is tried again after so many nanoseconds.
const RETRY_AFTER: u64 = 50_000_000;

/// A sender of an open loop that has so many bytes unsent waits with the next message, which does not
/// change when that one was due.
const MAX_UNSENT_BYTES: usize = 4 << 20;

/// Messages of an open loop that are sent before what has come meanwhile is read.
const MAX_SENT_A_TURN: usize = 1_024;

/// Clients take turns over so many loopback addresses, each of which has 28,000 ports.
const SOURCE_ADDRESSES: usize = 32;

/// Marks the event that wakes the thread.
const WAKE: u64 = u64::MAX;

/// One thread's clients and its loop.
pub(crate) struct Worker {
    connections: Vec<Connection>,
    plan: Arc<Plan>,
    buffer: Vec<u8>,
    inflated: Inflated,
    cx: Context,
}

/// All that the clients of a thread share.
struct Context {
    plan: Arc<Plan>,
    control: Arc<Control>,
    epoll: OwnedFd,
    told: Sender<Told>,
    phase: Phase,
    phase_began: u64,
    counts: Counts,
    latency: Histogram<u64>,
    connect_latency: Histogram<u64>,
    errors: BTreeMap<String, u64>,
    unanswered: u64,
    /// Handshakes under way.
    dialing: usize,
    /// Messages that came back in this read.
    replies: u32,
    /// A publication was refused in this read, and may come again after so many nanoseconds.
    refused: Option<u64>,
    /// A message of an echo as it has to come back, where they are all the same.
    expected: Vec<u8>,
    /// Frames of a message, as many as may be in flight.
    frames: Vec<u8>,
    frame_bytes: usize,
    /// A message in the making.
    scratch: Vec<u8>,
    /// Index of each publisher among those of its channel.
    publisher_index: HashMap<u16, usize>,
}

impl Worker {
    /// Runs thread `index` until the run has ended.
    pub(crate) fn run(
        index: usize,
        plan: Arc<Plan>,
        control: Arc<Control>,
        wake: &OwnedFd,
        told: Sender<Told>,
    ) {
        let to_tell = told.clone();
        let result = Self::new(index, plan, control, wake, told).and_then(Self::turn_until_end);
        // The other end is gone only when nobody is interested any more.
        _ = match result {
            Ok(last) => to_tell.send(Told::Last(Box::new(last))),
            Err(error) => to_tell.send(Told::Failed(error)),
        };
    }

    fn new(
        index: usize,
        plan: Arc<Plan>,
        control: Arc<Control>,
        wake: &OwnedFd,
        told: Sender<Told>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // Edge-triggered: what is told is in the phase; nobody reads the event away.
        let wake_flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, wake, epoll::EventData::new_u64(WAKE), wake_flags)?;
        let numbers = (index..plan.roles.len()).step_by(plan.threads);
        let connections = numbers.map(|number| Connection::new(number, plan.roles[number]));
        let connections: Vec<Connection> = connections.collect();
        let payload = vec![b'x'; plan.payload_bytes];
        let mut frames = Vec::new();
        frame::encode(message_opcode(&plan), &payload, &mut frames);
        let frame_bytes = frames.len();
        if let Load::Closed { in_flight } = plan.load {
            frames = frames.repeat(in_flight as usize);
        }
        let mut expected = payload;
        if plan.target.dialect == Dialect::MaskedFrames {
            frame::mask(&mut expected);
        }
        let publishers = plan.publishers();
        let publisher_index = publishers.values().flat_map(|publishers| {
            publishers.iter().enumerate().map(|(index, publisher)| (*publisher, index))
        });
        let cx = Context {
            publisher_index: publisher_index.collect(),
            control,
            epoll,
            told,
            phase: Phase::Connecting,
            phase_began: 0,
            counts: Counts::default(),
            latency: histogram(),
            connect_latency: histogram(),
            errors: BTreeMap::new(),
            unanswered: 0,
            dialing: 0,
            replies: 0,
            refused: None,
            expected,
            frames,
            frame_bytes,
            scratch: Vec::new(),
            plan: Arc::clone(&plan),
        };
        let (buffer, inflated) = (vec![0; READ_BYTES], Inflated::new());
        Ok(Self { connections, plan, buffer, inflated, cx })
    }

    fn turn_until_end(mut self) -> io::Result<Last> {
        let mut dialer = Dialer::new(&self.plan);
        let mut schedule = Schedule::new(&self.plan, &self.connections);
        let mut events = Vec::with_capacity(1024);
        let mut next_sample = SAMPLE_EVERY;
        loop {
            let now = self.cx.control.now();
            if self.cx.control.phase().0 != self.cx.phase {
                self.enter_phase(&mut schedule)?;
                if self.cx.phase == Phase::Ended {
                    return Ok(self.last());
                }
            }
            if now >= next_sample {
                self.cx.tell();
                self.give_up_on_slow_handshakes(&mut dialer, now);
                next_sample = now + SAMPLE_EVERY;
            }
            self.dial(&mut dialer, now);
            self.send_what_is_due(&mut schedule, &mut dialer);

            let next = [Some(next_sample), dialer.next(self.cx.dialing), schedule.next()];
            let next = next.into_iter().flatten().min().unwrap_or(next_sample);
            let wait = match self.plan.is_busy {
                true => 0,
                false => next.saturating_sub(self.cx.control.now()),
            };
            let timeout = Timespec {
                tv_sec: (wait / 1_000_000_000) as i64,
                tv_nsec: (wait % 1_000_000_000) as i64,
            };
            events.clear();
            match epoll::wait(&self.cx.epoll, spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                if event.data.u64() != WAKE {
                    self.handle(event.data.u64() as usize, event.flags, &mut dialer);
                }
            }
        }
    }

    fn enter_phase(&mut self, schedule: &mut Schedule) -> io::Result<()> {
        self.cx.tell();
        let before = self.cx.phase;
        (self.cx.phase, self.cx.phase_began) = self.cx.control.phase();
        if before.is_loaded() && !self.cx.phase.is_loaded() {
            self.send_what_was_due(schedule, self.cx.phase_began);
            let unsent = schedule.stop(self.cx.phase_began);
            if unsent > 0 {
                *self.cx.errors.entry("messages due and not sent".to_owned()).or_default() +=
                    unsent;
            }
        }
        if self.cx.phase.is_loaded() && !before.is_loaded() {
            schedule.start(self.cx.phase_began);
            if let Load::Closed { in_flight } = self.plan.load {
                for slot in 0..self.connections.len() {
                    let connection = &self.connections[slot];
                    if connection.state == State::Open && connection.role.sends() {
                        self.send_messages(slot, in_flight);
                    }
                }
            }
        }
        let stalls = self.cx.phase == Phase::Measuring;
        for (slot, connection) in self.connections.iter_mut().enumerate() {
            if matches!(connection.role, Role::Stalled { .. })
                && connection.state == State::Open
                && connection.is_paused != stalls
                && let Some(socket) = &connection.socket
            {
                connection.is_paused = stalls;
                if stalls {
                    epoll::delete(&self.cx.epoll, socket)?;
                } else {
                    let data = epoll::EventData::new_u64(slot as u64);
                    epoll::add(&self.cx.epoll, socket, data, epoll::EventFlags::IN)?;
                }
            }
        }
        Ok(())
    }

    fn handle(&mut self, slot: usize, flags: epoll::EventFlags, dialer: &mut Dialer) {
        let connection = &mut self.connections[slot];
        let result = if connection.state == State::Dialing {
            self.cx.finish_dial(connection, slot)
        } else {
            let mut result = Ok(());
            if flags.contains(epoll::EventFlags::OUT) {
                result = connection.flush().map_err(Fault::Io).and_then(|is_waiting| {
                    self.cx.wait_for_room(connection, slot, is_waiting).map_err(Fault::Io)
                });
            }
            let ends = epoll::EventFlags::HUP | epoll::EventFlags::ERR;
            if result.is_ok() && flags.intersects(epoll::EventFlags::IN | ends) {
                let cx = &mut self.cx;
                let (buffer, inflated) = (&mut self.buffer, &mut self.inflated);
                result = connection.read(buffer, &self.plan, inflated, |connection, heard| {
                    cx.heard(connection, heard)
                });
            }
            result
        };
        if let Err(fault) = result {
            self.lose(slot, &fault, dialer);
            return;
        }
        let replies = std::mem::take(&mut self.cx.replies);
        if let Some(after) = self.cx.refused.take() {
            let not_before = self.cx.control.now() + after;
            self.connections[slot].not_before = not_before;
            dialer.publications.push(Reverse((not_before, slot)));
            return;
        }
        let connection = &self.connections[slot];
        if connection.state == State::Open
            && connection.role.sends()
            && self.cx.phase.is_loaded()
            && let Load::Closed { .. } = self.plan.load
            && replies > 0
        {
            self.send_messages(slot, replies);
        } else if let Role::HttpPublisher { .. } = connection.role {
            let sent = self.cx.publish_by_http(&mut self.connections[slot]);
            self.sent(slot, sent);
        } else if !connection.unsent.is_empty() && !connection.wants_write {
            // A Pong or a Close did not fit.
            _ = self.cx.wait_for_room(&mut self.connections[slot], slot, true);
        }
    }

    /// Has the client in `slot` send so many messages that are due now.
    fn send_messages(&mut self, slot: usize, count: u32) {
        let now = self.cx.control.now();
        let connection = &mut self.connections[slot];
        let sent = match connection.role {
            Role::HttpPublisher { .. } => {
                connection.due.push_back(now);
                self.cx.publish_by_http(connection)
            }
            _ => self.cx.send_messages(connection, count, now),
        };
        self.sent(slot, sent);
    }

    fn sent(&mut self, slot: usize, sent: io::Result<bool>) {
        let connection = &mut self.connections[slot];
        // A socket that has failed tells so as an event.
        if let Ok(is_waiting) = sent
            && is_waiting != connection.wants_write
        {
            _ = self.cx.wait_for_room(connection, slot, is_waiting);
        }
    }

    fn send_what_is_due(&mut self, schedule: &mut Schedule, dialer: &mut Dialer) {
        while let Some(slot) = dialer.publication_due(self.cx.control.now()) {
            let sent = self.cx.publish_by_http(&mut self.connections[slot]);
            self.sent(slot, sent);
        }
        if self.cx.phase.is_loaded() {
            self.send_what_was_due(schedule, self.cx.control.now());
        }
    }

    /// Sends what was due by `now`, as much as may be sent before something is read again.
    fn send_what_was_due(&mut self, schedule: &mut Schedule, now: u64) {
        for _ in 0..MAX_SENT_A_TURN {
            let Some((due, slot)) = schedule.take(now, &self.connections) else {
                return;
            };
            let connection = &mut self.connections[slot];
            let sent = match connection.role {
                Role::HttpPublisher { .. } => {
                    connection.due.push_back(due);
                    self.cx.publish_by_http(connection)
                }
                _ => self.cx.send_messages(connection, 1, due),
            };
            self.sent(slot, sent);
        }
    }

    fn dial(&mut self, dialer: &mut Dialer, now: u64) {
        let storms = self.cx.control.storms.load(Ordering::Acquire);
        if storms != dialer.storms {
            dialer.storms = storms;
            dialer.forget();
            for (slot, connection) in self.connections.iter_mut().enumerate() {
                if connection.state == State::Open {
                    self.cx.control.open.fetch_sub(1, Ordering::Relaxed);
                }
                connection.leave();
                dialer.queue.push_back((slot, now));
            }
            self.cx.dialing = 0;
            self.cx.control.left.fetch_add(1, Ordering::Release);
        }
        let may_connect = self.cx.control.may_connect.load(Ordering::Acquire) as usize;
        while let Some(connection) = self.connections.get(dialer.next_slot)
            && connection.number < may_connect
        {
            dialer.queue.push_back((dialer.next_slot, now));
            dialer.next_slot += 1;
        }
        while let Some((slot, due)) = dialer.take(now, self.cx.dialing) {
            let connection = &mut self.connections[slot];
            connection.dial_due = due;
            connection.dial_began = now;
            self.cx.dialing += 1;
            if let Err(error) = self.cx.begin_dial(connection, slot) {
                connection.state = State::Dialing;
                self.lose(slot, &Fault::Io(error), dialer);
            }
        }
    }

    fn give_up_on_slow_handshakes(&mut self, dialer: &mut Dialer, now: u64) {
        let timeout = self.plan.connect_timeout.as_nanos() as u64;
        for slot in 0..self.connections.len() {
            let connection = &self.connections[slot];
            let is_opening = matches!(
                connection.state,
                State::Dialing | State::Handshake | State::Subscribing | State::Closing
            );
            if is_opening && now.saturating_sub(connection.dial_began) > timeout {
                let what = match connection.state {
                    State::Dialing => "no connection within the connect timeout",
                    State::Closing => "no Close within the connect timeout",
                    _ => "no answer to the handshake within the connect timeout",
                };
                self.lose(slot, &Fault::Protocol(what.to_owned()), dialer);
            }
        }
    }

    /// The connection in `slot` is over.
    fn lose(&mut self, slot: usize, fault: &Fault, dialer: &mut Dialer) {
        self.cx.replies = 0;
        let now = self.cx.control.now();
        let connection = &mut self.connections[slot];
        let state = connection.state;
        self.cx.unanswered += match connection.role {
            Role::Echo => connection.due.len() as u64,
            _ => 0,
        };
        match state {
            State::Away => {}
            State::Dialing | State::Handshake | State::Subscribing => {
                self.cx.dialing -= 1;
                self.cx.count_error(fault.kind());
                if self.plan.retries || matches!(connection.role, Role::Churn { .. }) {
                    // Not all at the same moment.
                    dialer.retry(slot, now + RETRY_AFTER + (slot as u64 % 64) * 1_000_000);
                } else {
                    self.cx.control.failed.fetch_add(1, Ordering::Release);
                }
            }
            State::Open | State::Closing => {
                self.cx.control.open.fetch_sub(1, Ordering::Relaxed);
                let is_done = state == State::Closing
                    && (matches!(fault, Fault::End) || connection.close_code.is_some());
                if is_done {
                    self.cx.counts.completed += 1;
                } else if !matches!(connection.role, Role::Stalled { .. }) {
                    self.cx.count_error(fault.kind());
                }
                if let Role::Churn { .. } = connection.role
                    && self.cx.phase < Phase::Settling
                {
                    dialer.queue.push_back((slot, now));
                }
            }
        }
        connection.leave();
    }

    fn last(mut self) -> Last {
        let mut last = Last::default();
        let published = |publisher: u16| {
            self.cx.control.published[usize::from(publisher)].load(Ordering::Acquire)
        };
        let publishers = self.plan.publishers();
        for connection in &mut self.connections {
            if connection.role == Role::Echo {
                self.cx.unanswered += connection.due.len() as u64;
            }
            let Some(channel) = connection.role.channel() else {
                continue;
            };
            let numbers = publishers.get(&channel).into_iter().flatten().enumerate();
            let tail = numbers.map(|(index, publisher)| {
                let next = connection.next.get(index).copied().unwrap_or(0);
                u64::from(published(*publisher).saturating_sub(next))
            });
            let tail: u64 = tail.sum();
            if let Role::Stalled { .. } = connection.role {
                last.stalled.push(StalledReader {
                    received: connection.received,
                    gaps: connection.gaps,
                    tail,
                    close_code: connection.close_code,
                    is_cut: connection.state == State::Away && connection.close_code.is_none(),
                });
            } else {
                last.lost += connection.gaps + tail;
            }
        }
        last.unanswered = self.cx.unanswered;
        last
    }
}

fn message_opcode(plan: &Plan) -> u8 {
    match plan.is_text {
        true => opcode::TEXT,
        false => opcode::BINARY,
    }
}

impl Context {
    fn count_error(&mut self, kind: String) {
        *self.errors.entry(kind).or_default() += 1;
    }

    /// Tells what happened since the last time.
    fn tell(&mut self) {
        let full = |histogram: &mut Histogram<u64>| {
            let is_empty = histogram.is_empty();
            (!is_empty).then(|| std::mem::replace(histogram, self::histogram()))
        };
        let sample = Sample {
            phase: self.phase,
            counts: std::mem::take(&mut self.counts),
            latency: full(&mut self.latency),
            connect_latency: full(&mut self.connect_latency),
            errors: std::mem::take(&mut self.errors),
        };
        _ = self.told.send(Told::Sample(Box::new(sample)));
    }

    fn begin_dial(&self, connection: &mut Connection, slot: usize) -> io::Result<()> {
        use socket2::{Domain, Socket, Type};

        let address = match (connection.role, &self.plan.api) {
            (Role::HttpPublisher { .. }, Some(api)) => api.address,
            _ => self.plan.target.address,
        };
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
        socket.set_tcp_nodelay(true)?;
        if address.ip().is_loopback() && address.is_ipv4() {
            let last = 1 + (connection.number % SOURCE_ADDRESSES) as u8;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0)).into())?;
        }
        if let Role::Stalled { .. } = connection.role {
            // So that it is the server that holds what is not read: with small segments the kernels
            // on both sides keep tens of kilobytes for it instead of megabytes.
            socket.set_recv_buffer_size(4_096)?;
            socket.set_tcp_mss(536)?;
        }
        match socket.connect(&address.into()) {
            Err(error)
                if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) =>
            {
                return Err(error);
            }
            Ok(()) | Err(_) => {}
        }
        let socket = TcpStream::from(socket);
        let data = epoll::EventData::new_u64(slot as u64);
        epoll::add(&self.epoll, &socket, data, epoll::EventFlags::OUT)?;
        connection.socket = Some(socket);
        connection.tls = match (connection.role, &self.plan.target.tls) {
            (Role::HttpPublisher { .. }, _) | (_, None) => None,
            (_, Some(tls)) => Some(Box::new(tls.session())),
        };
        connection.state = State::Dialing;
        connection.close_code = None;
        Ok(())
    }

    fn finish_dial(&mut self, connection: &mut Connection, slot: usize) -> Result<(), Fault> {
        let error = connection.socket.as_ref().and_then(|socket| socket.take_error().transpose());
        if let Some(error) = error {
            return Err(Fault::Io(error.unwrap_or_else(|error| error)));
        }
        connection.state = State::Handshake;
        let greeting = connection.greeting(&self.plan);
        let is_waiting = connection.send(&greeting).map_err(Fault::Io)?;
        connection.wants_write = true;
        self.wait_for_room(connection, slot, is_waiting).map_err(Fault::Io)?;
        if let Role::HttpPublisher { .. } = connection.role {
            connection.state = State::Open;
            return self.heard(connection, Heard::Opened);
        }
        Ok(())
    }

    /// Has epoll tell when the socket takes more, or not any more.
    fn wait_for_room(
        &self,
        connection: &mut Connection,
        slot: usize,
        is_waiting: bool,
    ) -> io::Result<()> {
        let Some(socket) = &connection.socket else {
            return Ok(());
        };
        if connection.wants_write != is_waiting && !connection.is_paused {
            connection.wants_write = is_waiting;
            let mut flags = epoll::EventFlags::IN;
            flags.set(epoll::EventFlags::OUT, is_waiting);
            epoll::modify(&self.epoll, socket, epoll::EventData::new_u64(slot as u64), flags)?;
        }
        Ok(())
    }

    #[inline]
    fn record(&mut self, due: u64, now: u64) {
        // What was due before this phase belongs to none.
        if due >= self.phase_began || self.phase == Phase::Settling {
            self.latency.saturating_record(now.saturating_sub(due));
        }
    }

    #[inline]
    fn heard(&mut self, connection: &mut Connection, heard: Heard<'_>) -> Result<(), Fault> {
        match heard {
            Heard::Message(payload) => self.heard_message(connection, payload),
            Heard::Opened => self.opened(connection),
            Heard::Published(response) => self.published(connection, &response),
            Heard::Ping => {
                self.counts.pings += 1;
                Ok(())
            }
            Heard::Close(code) => {
                connection.close_code = Some(code);
                if connection.state == State::Closing {
                    return Err(Fault::End);
                }
                let mut close = Vec::new();
                let payload = code.to_be_bytes();
                let payload = if code == 1005 { &[][..] } else { &payload };
                frame::encode(opcode::CLOSE, payload, &mut close);
                _ = connection.send(&close);
                Err(Fault::Protocol(format!("closed by the server with {code}")))
            }
        }
    }

    fn opened(&mut self, connection: &mut Connection) -> Result<(), Fault> {
        self.dialing -= 1;
        self.control.open.fetch_add(1, Ordering::Release);
        self.counts.opened += 1;
        let latency = self.control.now().saturating_sub(connection.dial_due);
        self.connect_latency.saturating_record(latency);
        match connection.role {
            Role::Churn { messages: 0 } => self.close(connection),
            Role::Churn { messages } => {
                connection.messages_left = messages;
                let now = self.control.now();
                self.send_messages(connection, 1, now).map(drop).map_err(Fault::Io)
            }
            role => {
                // Who comes when the load is under way begins with what the others began with.
                if let Load::Closed { in_flight } = self.plan.load
                    && role.sends()
                {
                    self.replies += in_flight;
                }
                Ok(())
            }
        }
    }

    fn close(&self, connection: &mut Connection) -> Result<(), Fault> {
        let mut close = Vec::new();
        frame::encode(opcode::CLOSE, &1000u16.to_be_bytes(), &mut close);
        connection.send(&close).map_err(Fault::Io)?;
        connection.state = State::Closing;
        Ok(())
    }

    #[inline]
    fn heard_message(&mut self, connection: &mut Connection, payload: &[u8]) -> Result<(), Fault> {
        let now = self.control.now();
        self.counts.received += 1;
        self.counts.received_bytes += payload.len() as u64;
        self.counts.wire_bytes += std::mem::take(&mut connection.wire_bytes);
        match connection.role {
            Role::Echo | Role::Churn { .. } => {
                if !self.is_next_echo(connection, payload) {
                    return Err(Fault::Protocol("an echo is not what was sent".to_owned()));
                }
                let Some(due) = connection.due.pop_front() else {
                    return Err(Fault::Protocol("an echo of nothing".to_owned()));
                };
                self.record(due, now);
                self.replies += 1;
                if let Role::Churn { .. } = connection.role {
                    connection.messages_left -= 1;
                    return match connection.messages_left {
                        0 => self.close(connection),
                        _ => self.send_messages(connection, 1, now).map(drop).map_err(Fault::Io),
                    };
                }
            }
            Role::Subscriber { .. } | Role::Publisher { .. } | Role::Stalled { .. } => {
                let dialect = self.plan.target.dialect;
                let stamp = Connection::stamp(payload, self.plan.payload, dialect)
                    .filter(|_| payload.len() == self.plan.payload_bytes);
                let index = stamp.and_then(|stamp| self.publisher_index.get(&stamp.publisher));
                let (Some(stamp), Some(index)) = (stamp, index) else {
                    return Err(Fault::Protocol("a message that nobody sent".to_owned()));
                };
                if connection.note(*index, stamp.number).is_none() {
                    self.count_error("message repeated or out of order".to_owned());
                }
                if !matches!(connection.role, Role::Stalled { .. }) {
                    self.record(stamp.due, now);
                }
                if let Role::Publisher { publisher, .. } = connection.role
                    && publisher == stamp.publisher
                {
                    self.replies += 1;
                }
            }
            Role::Idle | Role::HttpPublisher { .. } => {}
        }
        Ok(())
    }

    /// Whether this is the oldest message that `connection` has sent and has not got back.
    #[inline]
    fn is_next_echo(&mut self, connection: &mut Connection, payload: &[u8]) -> bool {
        if self.plan.payload == Payload::Filler {
            return payload == self.expected;
        }
        self.expected.clear();
        let (sender, bytes) = (connection.number as u64, self.plan.payload_bytes);
        self.plan.payload.write(sender, connection.echoed, bytes, &mut self.expected);
        connection.echoed += 1;
        if self.plan.target.dialect == Dialect::MaskedFrames {
            frame::mask(&mut self.expected);
        }
        payload == self.expected
    }

    /// Sends so many messages that are due at `due`. Returns whether the socket did not take all.
    fn send_messages(
        &mut self,
        connection: &mut Connection,
        count: u32,
        due: u64,
    ) -> io::Result<bool> {
        self.counts.sent += u64::from(count);
        let is_nats = self.plan.target.dialect == Dialect::Nats;
        let is_repeated = self.plan.payload == Payload::Filler;
        if connection.role.publisher().is_none() && !is_nats && is_repeated {
            connection.due.extend((0..count).map(|_| due));
            let bytes = (count as usize * self.frame_bytes).min(self.frames.len());
            return connection.send(&self.frames[..bytes]);
        }
        let opcode = message_opcode(&self.plan);
        let mut payload = std::mem::take(&mut self.scratch);
        let mut frames = Vec::new();
        for _ in 0..count {
            match connection.role.publisher() {
                Some((_, publisher)) => self.write_message(publisher, due, &mut payload),
                None => {
                    payload.clear();
                    let (sender, bytes) = (connection.number as u64, self.plan.payload_bytes);
                    self.plan.payload.write(sender, connection.sent, bytes, &mut payload);
                    connection.sent += 1;
                    connection.due.push_back(due);
                }
            }
            if is_nats {
                let mut publication = Vec::new();
                let subject = nats::subject(&connection.path(&self.plan));
                nats::publish(&subject, &payload, &mut publication);
                frame::encode(opcode::BINARY, &publication, &mut frames);
            } else {
                frame::encode(opcode, &payload, &mut frames);
            }
        }
        self.scratch = payload;
        connection.send(&frames)
    }

    /// Writes a publisher's next message over what `message` was.
    fn write_message(&self, publisher: u16, due: u64, message: &mut Vec<u8>) {
        let published = &self.control.published[usize::from(publisher)];
        let stamp = Stamp { due, publisher, number: published.fetch_add(1, Ordering::Release) };
        let Plan { payload, payload_bytes, .. } = *self.plan;
        message.clear();
        payload.write(publisher.into(), stamp.number.into(), payload_bytes, message);
        stamp.write(&mut message[payload.stamp_at()..]);
    }

    /// Publishes the oldest message that is due, if none is under way.
    fn publish_by_http(&mut self, connection: &mut Connection) -> io::Result<bool> {
        let (Some((channel, publisher)), Some(due), Some(api)) =
            (connection.role.publisher(), connection.due.front(), &self.plan.api)
        else {
            return Ok(false);
        };
        let is_refused = self.control.now() < connection.not_before;
        if connection.messages_left > 0 || is_refused || connection.state != State::Open {
            return Ok(false);
        }
        connection.messages_left = 1;
        self.counts.sent += 1;
        let mut payload = Vec::new();
        self.write_message(publisher, *due, &mut payload);
        let data = String::from_utf8_lossy(&payload);
        let key = api.key.as_deref();
        let request = http::publish(&api.host, &channel_name(channel), &data, key);
        connection.send(request.as_bytes())
    }

    fn published(
        &mut self,
        connection: &mut Connection,
        response: &http::Response,
    ) -> Result<(), Fault> {
        connection.messages_left = 0;
        if response.status == 200 && !response.has_error {
            connection.due.pop_front();
            self.replies += 1;
            return Ok(());
        }
        if let Some((_, publisher)) = connection.role.publisher() {
            // Nobody will get it under this number.
            self.control.published[usize::from(publisher)].fetch_sub(1, Ordering::Release);
            self.counts.sent -= 1;
        }
        if response.status == 503 {
            self.count_error("publication refused with 503".to_owned());
            let seconds = response.retry_after.map(|seconds| seconds * 1_000_000_000);
            self.refused = Some(seconds.unwrap_or(RETRY_AFTER));
            return Ok(());
        }
        Err(Fault::Protocol(format!("publication refused with status {}", response.status)))
    }
}

/// Who is to be connected, and when.
struct Dialer {
    /// Nanoseconds between two; 0: none.
    interval: f64,
    /// When the next may begin.
    next_due: f64,
    max_dialing: usize,
    /// The first that was never dialed.
    next_slot: usize,
    /// Whose turn it is, and since when.
    queue: VecDeque<(usize, u64)>,
    /// Who failed, and when to try again.
    retries: BinaryHeap<Reverse<(u64, usize)>>,
    /// Refused publications, and when to try again.
    publications: BinaryHeap<Reverse<(u64, usize)>>,
    storms: u32,
}

impl Dialer {
    fn new(plan: &Plan) -> Self {
        let interval = plan.connect_rate.map_or(0.0, |rate| 1e9 * plan.threads as f64 / rate);
        Self {
            interval,
            next_due: 0.0,
            max_dialing: plan.max_dialing,
            next_slot: 0,
            queue: VecDeque::new(),
            retries: BinaryHeap::new(),
            publications: BinaryHeap::new(),
            storms: 0,
        }
    }

    fn forget(&mut self) {
        self.queue.clear();
        self.retries.clear();
    }

    fn retry(&mut self, slot: usize, at: u64) {
        self.retries.push(Reverse((at, slot)));
    }

    /// Who is to be dialed now, and when that was due.
    fn take(&mut self, now: u64, dialing: usize) -> Option<(usize, u64)> {
        while let Some(Reverse((at, slot))) = self.retries.peek().copied()
            && at <= now
        {
            self.retries.pop();
            self.queue.push_back((slot, at));
        }
        if dialing >= self.max_dialing {
            return None;
        }
        let &(slot, since) = self.queue.front()?;
        if self.interval == 0.0 {
            self.queue.pop_front();
            return Some((slot, since));
        }
        if self.next_due > now as f64 {
            return None;
        }
        self.queue.pop_front();
        // After a time without anybody to dial, the rate does not make up for it.
        let due = self.next_due.max(since as f64);
        self.next_due = due + self.interval;
        Some((slot, due as u64))
    }

    /// When there is something to do.
    fn next(&self, dialing: usize) -> Option<u64> {
        let retry = self.retries.peek().map(|Reverse((at, _))| *at);
        let publication = self.publications.peek().map(|Reverse((at, _))| *at);
        let is_waiting = !self.queue.is_empty() && dialing < self.max_dialing;
        let dial = is_waiting.then_some(self.next_due as u64);
        [retry, publication, dial].into_iter().flatten().min()
    }

    fn publication_due(&mut self, now: u64) -> Option<usize> {
        let Reverse((at, slot)) = *self.publications.peek()?;
        (at <= now).then(|| {
            self.publications.pop();
            slot
        })
    }
}

/// When the messages of an open loop are due.
struct Schedule {
    senders: Vec<usize>,
    /// Nanoseconds between two messages of this thread; 0: there are none.
    interval: f64,
    next_due: Option<f64>,
    turn: usize,
    /// All senders were full or gone; nobody looks again before.
    blocked_until: u64,
}

/// How long a thread waits when all of its senders are full, in nanoseconds.
const BLOCKED_FOR: u64 = 1_000_000;

impl Schedule {
    fn new(plan: &Plan, connections: &[Connection]) -> Self {
        let slots = connections.iter().enumerate();
        let senders: Vec<usize> =
            slots.filter(|(_, connection)| connection.role.sends()).map(|(slot, _)| slot).collect();
        let all = plan.roles.iter().filter(|role| role.sends()).count();
        let interval = match plan.load {
            Load::Open { per_second } if !senders.is_empty() => {
                1e9 * all as f64 / (per_second * senders.len() as f64)
            }
            Load::Open { .. } | Load::Closed { .. } | Load::None => 0.0,
        };
        Self { senders, interval, next_due: None, turn: 0, blocked_until: 0 }
    }

    fn start(&mut self, at: u64) {
        if self.interval > 0.0 {
            self.next_due = Some(at as f64 + self.interval);
        }
    }

    /// Returns how many messages were due before `end` and are not sent.
    fn stop(&mut self, end: u64) -> u64 {
        let late = self.next_due.take().map(|due| end as f64 - due).filter(|late| *late >= 0.0);
        late.map_or(0, |late| (late / self.interval) as u64 + 1)
    }

    fn next(&self) -> Option<u64> {
        self.next_due.map(|due| (due as u64).max(self.blocked_until))
    }

    /// The next message that is due by `now`: when it was, and who sends it.
    fn take(&mut self, now: u64, connections: &[Connection]) -> Option<(u64, usize)> {
        let due = self.next_due.filter(|due| *due <= now as f64 && self.blocked_until <= now)?;
        for _ in 0..self.senders.len() {
            let slot = self.senders[self.turn % self.senders.len()];
            self.turn += 1;
            let connection = &connections[slot];
            if connection.state == State::Open && connection.unsent.len() < MAX_UNSENT_BYTES {
                self.next_due = Some(due + self.interval);
                return Some((due as u64, slot));
            }
        }
        self.blocked_until = now + BLOCKED_FOR;
        None
    }
}
