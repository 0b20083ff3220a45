//! What does this connection do next? One WebSocket connection without its socket: bytes and
//! instants go in, frames and deadlines come out.
//!
//! - [`Connection`]: the closing handshake of RFC 6455 section 7.1, heartbeat and idle timeout.
//! - [`outbound`]: frames waiting to be written, and what happens when they are too many.

pub mod outbound;

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::connection::outbound::OutboundQueue;
use crate::wire::close::CloseCode;
use crate::wire::decoder::Decoder;
use crate::wire::frame;
use crate::wire::header::ProtocolError;

/// How long a connection waits for what. The same for all connections, so not kept in each.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Silence after which the peer is pinged. Zero: it never is.
    pub ping_interval: Duration,
    /// Silence after which the connection is closed.
    pub idle_timeout: Duration,
    /// Time for a closing handshake, from its first frame to the end of the socket.
    pub close_timeout: Duration,
}

/// Who sent the first Close, or let go without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initiator {
    /// This gateway.
    Local,
    /// The client.
    Remote,
}

/// How a connection came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The first Close code that was sent; 1005 for a Close without one, 1006 where the socket ended
    /// without a Close (RFC 6455 section 7.4.1).
    pub code: u16,
    /// Who began it.
    pub initiator: Initiator,
}

impl Ending {
    /// The peer was gone without a word.
    pub const ABNORMAL: Self = Self { code: 1006, initiator: Initiator::Remote };
}

/// The closing handshake of RFC 6455 section 7.1, seen from the server.
#[derive(Debug)]
enum State {
    Open,
    /// Our Close is sent or queued; we still read until the peer's Close arrives or `deadline`
    /// passes.
    ClosingLocally {
        deadline: Instant,
        ending: Ending,
    },
    /// The peer broke a rule. Our Close is sent or queued; what it sends has no meaning any more
    /// and is thrown away until it lets go of the socket or `deadline` passes. (Closing the socket
    /// at once would reset it, and could take our Close from the peer.)
    Failing {
        deadline: Instant,
        ending: Ending,
    },
    /// Both Close frames are sent, received or queued: the end, once the queue is written.
    Finishing {
        deadline: Instant,
        ending: Ending,
    },
    Closed(Ending),
}

/// What a driver does with bytes that it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// They are frames: decode them and act on the messages.
    Decode,
    /// They are frames: decode them for the peer's Close only.
    DecodeForClose,
    /// They mean nothing.
    Discard,
    /// Do not read.
    None,
}

/// The protocol state of one connection.
#[derive(Debug)]
pub struct Connection {
    /// The receiving side.
    pub decoder: Decoder,
    /// Frames that the socket did not take yet.
    pub outbound: OutboundQueue,
    state: State,
    /// When the peer last gave a sign of life.
    last_alive: Instant,
    /// Pings since then.
    pings: u32,
}

impl Connection {
    /// A connection whose opening handshake ends at `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            decoder: Decoder::default(),
            outbound: OutboundQueue::default(),
            state: State::Open,
            last_alive: now,
            pings: 0,
        }
    }

    /// Neither side has begun to close, and nothing waits to be written before something new.
    #[inline]
    pub fn is_writable_at_once(&self) -> bool {
        self.is_open() && self.outbound.is_empty()
    }

    /// Neither side has begun to close.
    #[inline]
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// What to do with bytes from the peer.
    #[inline]
    pub fn input(&self) -> Input {
        match self.state {
            State::Open => Input::Decode,
            State::ClosingLocally { .. } => Input::DecodeForClose,
            State::Failing { .. } => Input::Discard,
            State::Finishing { .. } | State::Closed(_) => Input::None,
        }
    }

    /// The sending side is done for good: the socket can be shut down for writing, so that the peer
    /// sees the end.
    pub fn is_failed_and_flushed(&self) -> bool {
        matches!(self.state, State::Failing { .. }) && self.outbound.is_empty()
    }

    /// How it ended, once nothing more will be read or written.
    pub fn ended(&self) -> Option<Ending> {
        match self.state {
            State::Closed(ending) => Some(ending),
            State::Finishing { ending, .. } if self.outbound.is_empty() => Some(ending),
            State::Finishing { .. }
            | State::Open
            | State::ClosingLocally { .. }
            | State::Failing { .. } => None,
        }
    }

    /// It is over, whatever was still to be written: the peer is gone, or has let a deadline pass.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed(_))
    }

    /// Takes note that the peer lives: bytes came in, or it made room for bytes that waited for it. A
    /// subscriber that only reads, and slowly, says nothing and is far from idle.
    #[inline]
    pub fn handle_sign_of_life(&mut self, now: Instant) {
        self.last_alive = now;
        self.pings = 0;
    }

    /// Takes note of the peer's Close, and answers it if ours was not sent before, with the same
    /// code (section 5.5.1).
    pub fn handle_close(&mut self, now: Instant, code: Option<CloseCode>, timing: &Timing) {
        self.state = match self.state {
            State::Open => {
                self.outbound.push_close(frame::encode_close(code, ""));
                let code = code.map_or(1005, CloseCode::as_u16);
                let ending = Ending { code, initiator: Initiator::Remote };
                State::Finishing { deadline: now + timing.close_timeout, ending }
            }
            State::ClosingLocally { deadline, ending } => State::Finishing { deadline, ending },
            State::Failing { .. } | State::Finishing { .. } | State::Closed(_) => return,
        };
    }

    /// Takes note that the peer will send no more, or that the socket failed.
    pub fn handle_disconnect(&mut self) {
        self.state = State::Closed(match self.state {
            State::Open => Ending::ABNORMAL,
            State::ClosingLocally { ending, .. }
            | State::Failing { ending, .. }
            | State::Finishing { ending, .. }
            | State::Closed(ending) => ending,
        });
    }

    /// Fails the connection for a rule that the peer broke (section 7.1.7).
    pub fn handle_violation(&mut self, now: Instant, error: ProtocolError, timing: &Timing) {
        self.fail(now, error.close_code(), &error.to_string(), timing);
    }

    /// Starts the closing handshake. What is queued is sent before. Does nothing when the connection
    /// is closing already.
    pub fn close(&mut self, now: Instant, code: CloseCode, reason: &str, timing: &Timing) {
        if self.is_open() {
            self.outbound.push_close(frame::encode_close(Some(code), reason));
            let ending = Ending { code: code.as_u16(), initiator: Initiator::Local };
            let deadline = now + timing.close_timeout;
            self.state = State::ClosingLocally { deadline, ending };
        }
    }

    /// Closes without listening to the peer any more.
    pub fn fail(&mut self, now: Instant, code: CloseCode, reason: &str, timing: &Timing) {
        let deadline = now + timing.close_timeout;
        self.state = match self.state {
            State::Open => {
                self.outbound.push_close(frame::encode_close(Some(code), reason));
                let ending = Ending { code: code.as_u16(), initiator: Initiator::Local };
                State::Failing { deadline, ending }
            }
            // Our Close is out and there can be only one.
            State::ClosingLocally { deadline, ending } => State::Failing { deadline, ending },
            State::Failing { .. } | State::Finishing { .. } | State::Closed(_) => return,
        };
        self.decoder = Decoder::default();
    }

    /// Closes for reading too slowly: what is queued is dropped, so that nothing is sent behind the
    /// gap. Returns how many frames that are.
    pub fn close_slow_consumer(&mut self, now: Instant, timing: &Timing) -> usize {
        let dropped = self.outbound.drop_waiting();
        self.close(now, CloseCode::POLICY_VIOLATION, "slow consumer", timing);
        dropped
    }

    /// When to call [`Connection::handle_timeout`] next, if nothing else happens before.
    pub fn poll_timeout(&self, timing: &Timing) -> Option<Instant> {
        match self.state {
            State::Open => {
                let idle = self.last_alive + timing.idle_timeout;
                Some(self.next_ping(timing).map_or(idle, |ping| ping.min(idle)))
            }
            State::ClosingLocally { deadline, .. }
            | State::Failing { deadline, .. }
            | State::Finishing { deadline, .. } => Some(deadline),
            State::Closed(_) => None,
        }
    }

    /// Acts on every deadline that is not after `now`. `ping` is a whole Ping frame.
    pub fn handle_timeout(&mut self, now: Instant, ping: &Bytes, timing: &Timing) {
        match self.state {
            State::Open => {
                if now >= self.last_alive + timing.idle_timeout {
                    self.close(now, CloseCode::GOING_AWAY, "idle timeout", timing);
                } else if self.next_ping(timing).is_some_and(|due| now >= due) {
                    self.pings = self.pings.saturating_add(1);
                    // Not in the place of a Pong that waits: that one was asked for.
                    self.outbound.push_ping(ping.clone());
                }
            }
            State::ClosingLocally { deadline, ending }
            | State::Failing { deadline, ending }
            | State::Finishing { deadline, ending } => {
                if now >= deadline {
                    self.state = State::Closed(ending);
                }
            }
            State::Closed(_) => {}
        }
    }

    fn next_ping(&self, timing: &Timing) -> Option<Instant> {
        (!timing.ping_interval.is_zero())
            .then(|| self.last_alive + timing.ping_interval * self.pings.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing {
        ping_interval: Duration::from_secs(25),
        idle_timeout: Duration::from_secs(60),
        close_timeout: Duration::from_secs(5),
    };
    const PING: Bytes = Bytes::from_static(b"\x89\x00");

    fn written(connection: &mut Connection) -> Vec<u8> {
        let mut bytes = Vec::new();
        while !connection.outbound.is_empty() {
            let written = outbound::tests::offered(&connection.outbound);
            connection.outbound.advance(written.len());
            bytes.extend(written);
        }
        bytes
    }

    #[test]
    fn peer_that_never_answers_close_is_dropped_after_the_close_timeout() {
        let start = Instant::now();
        let mut connection = Connection::new(start);
        connection.close(start, CloseCode::GOING_AWAY, "bye", &TIMING);
        assert_eq!(written(&mut connection), b"\x88\x05\x03\xe9bye");
        assert_eq!(connection.ended(), None);
        assert_eq!(connection.poll_timeout(&TIMING), Some(start + TIMING.close_timeout));
        connection.handle_timeout(start + TIMING.close_timeout, &PING, &TIMING);
        let ending = Ending { code: 1001, initiator: Initiator::Local };
        assert_eq!(connection.ended(), Some(ending));
    }

    #[test]
    fn close_of_the_peer_is_answered_with_its_code_and_ends_once_that_is_written() {
        let start = Instant::now();
        for (code, answer, ended) in [
            (Some(CloseCode::NORMAL), &b"\x88\x02\x03\xe8"[..], 1000),
            (None, &b"\x88\x00"[..], 1005),
        ] {
            let mut connection = Connection::new(start);
            connection.handle_close(start, code, &TIMING);
            assert_eq!(connection.input(), Input::None);
            assert_eq!(connection.ended(), None, "the answer is not written yet");
            assert_eq!(written(&mut connection), answer);
            let ending = Ending { code: ended, initiator: Initiator::Remote };
            assert_eq!(connection.ended(), Some(ending));
        }
    }

    #[test]
    fn our_close_is_sent_once_and_ends_with_the_peers() {
        let start = Instant::now();
        let mut connection = Connection::new(start);
        connection.close(start, CloseCode::NORMAL, "", &TIMING);
        connection.close(start, CloseCode::GOING_AWAY, "", &TIMING);
        assert_eq!(written(&mut connection), b"\x88\x02\x03\xe8");
        assert_eq!(connection.input(), Input::DecodeForClose);
        connection.handle_close(start, Some(CloseCode::NORMAL), &TIMING);
        assert_eq!(written(&mut connection), b"");
        let ending = Ending { code: 1000, initiator: Initiator::Local };
        assert_eq!(connection.ended(), Some(ending));
    }

    #[test]
    fn peer_that_broke_a_rule_is_told_and_then_not_listened_to_until_it_lets_go() {
        let start = Instant::now();
        let mut connection = Connection::new(start);
        connection.handle_violation(start, ProtocolError::MessageTooBig, &TIMING);
        assert!(!connection.is_failed_and_flushed());
        let close =
            frame::encode_close(Some(CloseCode::MESSAGE_TOO_BIG), "message larger than the limit");
        assert_eq!(written(&mut connection), close);
        assert!(connection.is_failed_and_flushed());
        assert_eq!(connection.input(), Input::Discard);
        connection.handle_disconnect();
        let ending = Ending { code: 1009, initiator: Initiator::Local };
        assert_eq!(connection.ended(), Some(ending));
    }

    #[test]
    fn peer_that_vanishes_without_close_is_an_abnormal_end() {
        let mut connection = Connection::new(Instant::now());
        connection.handle_disconnect();
        assert_eq!(connection.ended(), Some(Ending::ABNORMAL));
    }

    #[test]
    fn silent_peer_is_pinged_and_then_closed() {
        let start = Instant::now();
        let mut connection = Connection::new(start);
        let mut seen = Vec::new();
        while connection.is_open() {
            let due = connection.poll_timeout(&TIMING).unwrap();
            connection.handle_timeout(due, &PING, &TIMING);
            seen.push(((due - start).as_secs(), written(&mut connection)));
        }
        let close = frame::encode_close(Some(CloseCode::GOING_AWAY), "idle timeout").to_vec();
        assert_eq!(seen, [(25, PING.to_vec()), (50, PING.to_vec()), (60, close)]);
    }

    #[test]
    fn any_byte_starts_the_silence_anew() {
        let start = Instant::now();
        let mut connection = Connection::new(start);
        let later = start + Duration::from_secs(59);
        connection.handle_timeout(start + TIMING.ping_interval, &PING, &TIMING);
        connection.handle_sign_of_life(later);
        assert_eq!(connection.poll_timeout(&TIMING), Some(later + TIMING.ping_interval));
    }

    #[test]
    fn pings_keep_their_pace_however_many_go_unanswered() {
        let start = Instant::now();
        let ping_interval = Duration::from_millis(100);
        let timing = Timing { ping_interval, ..TIMING };
        let mut connection = Connection::new(start);
        for sent in 1..=500 {
            let due = connection.poll_timeout(&timing).unwrap();
            assert_eq!(due, start + ping_interval * sent);
            connection.handle_timeout(due, &PING, &timing);
            assert_eq!(written(&mut connection), *PING);
        }
    }

    #[test]
    fn ping_does_not_take_the_place_of_a_pong_that_waits() {
        let start = Instant::now();
        let mut connection = Connection::new(start);
        let pong = frame::encode(crate::wire::header::Opcode::Pong, b"asked for");
        connection.outbound.push_pong(pong.clone());
        connection.handle_timeout(start + TIMING.ping_interval, &PING, &TIMING);
        assert_eq!(written(&mut connection), *pong);
    }

    #[test]
    fn ping_interval_of_zero_means_no_pings() {
        let start = Instant::now();
        let timing = Timing { ping_interval: Duration::ZERO, ..TIMING };
        let connection = Connection::new(start);
        assert_eq!(connection.poll_timeout(&timing), Some(start + TIMING.idle_timeout));
    }

    #[test]
    fn slow_consumer_gets_its_close_behind_no_gap() {
        let start = Instant::now();
        let mut connection = Connection::new(start);
        let limit = outbound::Limit { max_bytes: 100, policy: outbound::SlowConsumerPolicy::Close };
        let frame = frame::encode(crate::wire::header::Opcode::Text, b"0123456789");
        connection.outbound.push_rest(&frame, 5, &limit);
        connection.outbound.push(&frame, &limit);
        assert_eq!(connection.close_slow_consumer(start, &TIMING), 1);
        let mut expected = frame[5..].to_vec();
        expected.extend(frame::encode_close(Some(CloseCode::POLICY_VIOLATION), "slow consumer"));
        assert_eq!(written(&mut connection), expected);
    }
}
