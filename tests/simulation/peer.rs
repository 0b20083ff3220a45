//! The other end of a connection: what it says, sound and broken, and how it behaves.

use std::collections::VecDeque;

use crate::frames::{BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT, masked};
use crate::promises::{Id, Messages, Origin, Record, Said};
use crate::random::Random;

/// A peer says no more while as much is not read.
const MAX_UNREAD_BYTES: usize = 100_000;

/// RSV2, for which there is no extension.
const RESERVED_BIT: u8 = 0x20;

/// One peer.
pub(crate) struct Peer {
    /// Among all of the run.
    pub(crate) number: usize,
    /// What it has said and has not arrived.
    under_way: VecDeque<u8>,
    pings_said: usize,
    pings_answered: usize,
    answers_pings: bool,
    answers_close: bool,
    /// It said Close, which does not keep it from saying more.
    has_closed: bool,
    /// Behind all that it said it shuts its sending side down.
    ends: bool,
}

impl Peer {
    pub(crate) fn new(number: usize, random: &mut Random) -> Self {
        Self {
            number,
            under_way: VecDeque::new(),
            pings_said: 0,
            pings_answered: 0,
            answers_pings: random.percent(70),
            answers_close: random.percent(70),
            has_closed: false,
            ends: false,
        }
    }

    /// It says nothing, or nothing more while `arrived` bytes are not read.
    pub(crate) fn is_silent(&self, arrived: usize) -> bool {
        self.ends || self.under_way.len() + arrived > MAX_UNREAD_BYTES
    }

    /// Takes up to `bytes` of what is under way.
    pub(crate) fn arrive(&mut self, bytes: usize) -> VecDeque<u8> {
        let rest = self.under_way.split_off(bytes.min(self.under_way.len()));
        std::mem::replace(&mut self.under_way, rest)
    }

    /// Nothing is under way and nothing will be.
    pub(crate) fn has_ended(&self) -> bool {
        self.ends && self.under_way.is_empty()
    }

    pub(crate) fn end(&mut self) {
        self.ends = true;
    }

    /// Says a message of up to `max_bytes`, in one frame or in fragments.
    pub(crate) fn say_message(
        &mut self,
        origin: Origin,
        max_bytes: usize,
        record: &mut Record,
        messages: &mut Messages,
        random: &mut Random,
    ) {
        let opcode = random.one_of(&[TEXT, BINARY]);
        let bytes = random.between(1, max_bytes);
        let id = messages.make(origin, Some(self.number), opcode, bytes);
        let payload = &messages.get(id).payload;
        let fragments = if random.percent(30) { 1 + random.below(4) } else { 1 };
        let mut at = 0;
        for fragment in 1..=fragments {
            let is_last = fragment == fragments;
            let end =
                if is_last { payload.len() } else { at + random.below(payload.len() - at + 1) };
            let first = if fragment == 1 { opcode } else { CONTINUATION };
            let fin = if is_last { FIN } else { 0 };
            let frame = masked(first | fin, &payload[at..end], random.four_bytes());
            let said: Option<Id> = is_last.then_some(id);
            self.say(&frame, said.map(Said::Message), record);
            at = end;
            if !is_last && random.percent(30) {
                self.say_ping(record, random);
            }
        }
    }

    pub(crate) fn say_ping(&mut self, record: &mut Record, random: &mut Random) {
        let mut payload = self.pings_said.to_string().into_bytes();
        payload.resize(payload.len().max(random.between(0, 125)), b' ');
        self.pings_said += 1;
        let frame = masked(FIN | PING, &payload, random.four_bytes());
        self.say(&frame, Some(Said::Ping(payload)), record);
    }

    pub(crate) fn say_pong(&mut self, record: &mut Record, random: &mut Random) {
        let frame = masked(FIN | PONG, b"", random.four_bytes());
        self.say(&frame, Some(Said::Pong), record);
    }

    pub(crate) fn say_close(
        &mut self,
        code: Option<u16>,
        record: &mut Record,
        random: &mut Random,
    ) {
        let payload = code.map_or(Vec::new(), |code| [&code.to_be_bytes()[..], b"bye"].concat());
        let frame = masked(FIN | CLOSE, &payload, random.four_bytes());
        self.say(&frame, Some(Said::Close(code)), record);
        self.has_closed = true;
    }

    /// Does what the gateway's frames ask for, if it ever does.
    pub(crate) fn react(&mut self, record: &mut Record, random: &mut Random) {
        if self.answers_pings && record.pings_seen() > self.pings_answered {
            self.pings_answered = record.pings_seen();
            self.say_pong(record, random);
        }
        if let Some(code) = record.close_seen()
            && self.answers_close
        {
            if !self.has_closed {
                self.say_close(code, record, random);
            }
            self.end();
        }
    }

    /// Breaks a rule of RFC 6455, or the bound on a message.
    pub(crate) fn violate(
        &mut self,
        max_message_bytes: usize,
        record: &mut Record,
        random: &mut Random,
    ) {
        let key = random.four_bytes();
        let (bytes, code) = match random.below(12) {
            0 => (vec![FIN | TEXT, 0], 1002),
            1 => (masked(FIN | RESERVED_BIT | TEXT, b"reserved bit", key), 1002),
            2 => (masked(FIN | 0x3, b"reserved opcode", key), 1002),
            3 => (masked(PING, b"a fragment", key), 1002),
            4 => (masked(FIN | PING, &[b'x'; 126], key), 1002),
            5 => (masked(FIN | CONTINUATION, b"of nothing", key), 1002),
            6 => {
                let interrupted = masked(BINARY, b"to be continued", key);
                (interrupted.into_iter().chain(masked(FIN | TEXT, b"another", key)).collect(), 1002)
            }
            7 => (masked(FIN | TEXT, b"not \xff UTF-8", key), 1007),
            8 => (masked(FIN | CLOSE, b"x", key), 1002),
            9 => (masked(FIN | CLOSE, &1005u16.to_be_bytes(), key), 1002),
            10 => (masked(FIN | CLOSE, b"\x03\xe8\xff", key), 1007),
            _ => {
                let mut frame = masked(FIN | BINARY, &vec![0; max_message_bytes + 1], key);
                frame.truncate(random.between(14, 100));
                (frame, 1009)
            }
        };
        self.say(&bytes, Some(Said::Violation(code)), record);
    }

    fn say(&mut self, bytes: &[u8], said: Option<Said>, record: &mut Record) {
        self.under_way.extend(bytes);
        record.say(said, bytes.len());
    }
}
