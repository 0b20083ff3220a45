//! The load: those who stay. They do nothing wrong, so whatever befalls them is the server's fault.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::client::deflate::Compression;
use crate::client::frame::{self, opcode};
use crate::client::http;
use crate::client::payload::{Payload, Random};
use crate::client::stamp::Stamp;
use crate::engine::plan::Api;
use crate::scenario::soak::socket::{Heard, Socket};
use crate::scenario::soak::stage::{LOOK, Membership, Stage};
use crate::scenario::soak::verdicts::Invariant;
use crate::target::channel_name;

/// Somebody who stays connected.
pub(super) struct Steady {
    socket: Socket,
    member: Membership,
}

impl Steady {
    /// Connects to an echo (no channels), or to channels, the first of which is published to.
    pub(super) fn connect(
        stage: &Stage,
        name: String,
        channels: &[u32],
        compression: Compression,
    ) -> Result<Self, String> {
        let path = match channels {
            [] => stage.place.target.echo(0),
            [channel, also @ ..] => stage.channel_path(*channel, also),
        };
        let socket = stage.open(&path, compression)?;
        stage.open.fetch_add(1, Ordering::Relaxed);
        Ok(Self { socket, member: stage.join(name, channels) })
    }

    /// Hears what comes until `deadline`. Returns whether the connection is still there.
    fn listen(&mut self, stage: &Stage, deadline: Instant) -> bool {
        loop {
            match self.socket.next(deadline) {
                Ok(None) => return true,
                Ok(Some(Heard::Message { opcode, payload })) => {
                    stage.heard(&self.member, opcode, &payload);
                }
                Ok(Some(Heard::Pong(_))) => {}
                Ok(Some(Heard::Close(code))) => {
                    self.lose(stage, &format!("was closed with {code}"));
                    return false;
                }
                Err(end) => {
                    self.lose(stage, &end.to_string());
                    return false;
                }
            }
        }
    }

    /// The connection is over although nobody has done anything wrong.
    fn lose(&mut self, stage: &Stage, how: &str) {
        stage.open.fetch_sub(1, Ordering::Relaxed);
        stage.broken(Invariant::Connections, format!("{}: {how}", self.member.name));
        // It cannot hear the rest.
        stage.leave(&mut self.member);
    }

    /// Goes by the closing handshake.
    fn leave(mut self, stage: &Stage) {
        stage.open.fetch_sub(1, Ordering::Relaxed);
        stage.check(Invariant::Connections, close(&mut self.socket, &self.member.name));
        stage.leave(&mut self.member);
    }
}

/// Makes the closing handshake, whatever comes before the answer.
pub(super) fn close(socket: &mut Socket, name: &str) -> Result<(), String> {
    let closed = socket.send(opcode::CLOSE, &1000u16.to_be_bytes()).and_then(|()| {
        loop {
            if let Heard::Close(code) = socket.expect()? {
                return Ok(code);
            }
        }
    });
    match closed {
        Ok(1000) => Ok(()),
        Ok(code) => Err(format!("{name}: Close 1000 was answered with {code}")),
        Err(end) => Err(format!("{name}: Close 1000 was not answered: {end}")),
    }
}

/// Those who only read, subscribers and idle ones, on one thread.
pub(super) fn read(stage: &Stage, mut readers: Vec<Steady>) {
    while !stage.has_ended() {
        let mut ready: Vec<PollFd<'_>> = readers
            .iter()
            .map(|reader| PollFd::new(reader.socket.stream(), PollFlags::IN))
            .collect();
        let timeout = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        _ = poll(&mut ready, Some(&timeout));
        let ready: Vec<bool> = ready.iter().map(|one| !one.revents().is_empty()).collect();
        let now = Instant::now();
        let mut turn = ready.into_iter();
        readers.retain_mut(|reader| !turn.next().unwrap_or_default() || reader.listen(stage, now));
        if readers.is_empty() {
            return;
        }
    }
    for reader in readers {
        reader.leave(stage);
    }
}

/// Publishes every `interval`, and reads meanwhile.
pub(super) fn publish(stage: &Stage, mut steady: Steady, publisher: u16, interval: Duration) {
    // Not all at the same moment.
    let mut due = Instant::now() + interval.mul_f64(f64::from(publisher % 16) / 16.0);
    while !stage.has_ended() {
        if !steady.listen(stage, due.min(Instant::now() + LOOK)) {
            return;
        }
        if due > Instant::now() {
            continue;
        }
        // What was not published while it was quiet is not made up for.
        due = (due + interval).max(Instant::now());
        let Some(_under_way) = stage.begin() else { continue };
        let number = stage.ledger().publish(publisher);
        let stamp = Stamp { due: stage.now(), publisher, number };
        let (opcode, payload) = stage.message(stamp);
        let mut frames = Vec::new();
        let compresses = number % 2 == 1;
        write_message(stage, &mut steady.socket, opcode, &payload, 1, compresses, &mut frames);
        if let Err(end) = steady.socket.send_raw(&frames) {
            steady.lose(stage, &format!("cannot publish: {end}"));
            return;
        }
        stage.sent.fetch_add(1, Ordering::Relaxed);
        stage.count("publications by WebSocket");
    }
    steady.leave(stage);
}

/// Publishes by the API every `interval`.
pub(super) fn publish_by_api(
    stage: &Stage,
    api: &Api,
    publisher: u16,
    channel: u32,
    interval: Duration,
) {
    while !stage.has_ended() {
        std::thread::sleep(interval);
        let Some(_under_way) = stage.begin() else { continue };
        let number = stage.ledger().publish(publisher);
        let stamp = Stamp { due: stage.now(), publisher, number };
        let (_, payload) = stage.message(stamp);
        let data = String::from_utf8_lossy(&payload);
        let key = api.key.as_deref();
        let request = http::publish(&api.host, &channel_name(channel), &data, key);
        let response = Socket::connect(api.address).and_then(|mut socket| {
            socket.send_raw(request.as_bytes())?;
            socket.response()
        });
        let what = match response {
            Ok(response) if response.status == 200 && !response.has_error => {
                stage.sent.fetch_add(1, Ordering::Relaxed);
                stage.count("publications by the API");
                continue;
            }
            Ok(response) if response.status == 503 => {
                stage.ledger().take_back(publisher);
                stage.count("publications that the API refused with 503");
                continue;
            }
            Ok(response) => {
                stage.ledger().take_back(publisher);
                format!("status {}", response.status)
            }
            // Whether it was published nobody knows; if not, it will be missed.
            Err(end) => end.to_string(),
        };
        let text = format!("channel {channel}: a publication by the API failed: {what}");
        stage.broken(Invariant::Connections, text);
    }
}

/// Sizes of echoes, in bytes, beside the largest that the server takes.
const ECHO_SIZES: [usize; 12] = [0, 1, 64, 125, 126, 127, 255, 256, 1_000, 4_096, 16_384, 60_000];

/// Sends bursts of messages of all sizes, whole and in fragments, and compares what comes back.
pub(super) fn echo(stage: &Stage, mut steady: Steady, seed: u64) {
    let mut random = Random::new(seed);
    while !stage.has_ended() {
        let pause = Duration::from_millis(50 + random.below(100));
        if !steady.listen(stage, Instant::now() + pause) {
            return;
        }
        let Some(_under_way) = stage.begin() else { continue };
        let count = 1 + random.below(3);
        if let Err(text) = exchange(stage, &mut steady.socket, &mut random, count) {
            stage.broken(Invariant::Echo, format!("{}: {text}", steady.member.name));
            stage.open.fetch_sub(1, Ordering::Relaxed);
            return;
        }
    }
    steady.leave(stage);
}

/// Sends `count` messages and waits for them to come back.
pub(super) fn exchange(
    stage: &Stage,
    socket: &mut Socket,
    random: &mut Random,
    count: u64,
) -> Result<(), String> {
    let mut frames = Vec::new();
    let mut sent = Vec::new();
    for _ in 0..count {
        let max_bytes = stage.limits.max_message_bytes;
        let bytes = match random.below(24) {
            0 => max_bytes,
            _ => random.one_of(&ECHO_SIZES).min(max_bytes),
        };
        let mut payload = Vec::with_capacity(bytes);
        let is_json = bytes >= Payload::Json.min_bytes() && random.below(4) > 0;
        let made_of = if is_json { Payload::Json } else { Payload::Filler };
        made_of.write(random.next() >> 40, random.next() >> 40, bytes, &mut payload);
        let kind = random.one_of(&[opcode::TEXT, opcode::BINARY]);
        let parts = if random.below(5) == 0 { 1 + random.below(4) } else { 1 };
        let compresses = random.below(2) == 0;
        write_message(stage, socket, kind, &payload, parts as usize, compresses, &mut frames);
        sent.push((kind, payload));
    }
    let began = Instant::now();
    socket.send_raw(&frames).map_err(|end| format!("{count} messages cannot be sent: {end}"))?;
    for (index, (kind, expected)) in sent.iter().enumerate() {
        let size = expected.len();
        match socket.expect() {
            Ok(Heard::Message { opcode, payload }) if opcode == *kind && payload == *expected => {}
            Ok(Heard::Message { payload, .. }) => {
                return Err(format!(
                    "message {} of {count}, {size} bytes, came back as {} other bytes",
                    index + 1,
                    payload.len()
                ));
            }
            Ok(Heard::Pong(_)) => return Err("a Pong to no Ping".to_owned()),
            Ok(Heard::Close(code)) => {
                return Err(format!("closed with {code} instead of an echo of {size} bytes"));
            }
            Err(end) => return Err(format!("no echo of {size} bytes: {end}")),
        }
        stage.received_bytes.fetch_add(size as u64, Ordering::Relaxed);
    }
    if count > 0 {
        stage.latency().saturating_record(began.elapsed().as_nanos() as u64);
    }
    stage.sent.fetch_add(count, Ordering::Relaxed);
    stage.received.fetch_add(count, Ordering::Relaxed);
    *stage.done().entry("echoes").or_default() += count;
    stage.verdicts().count(Invariant::Echo, count);
    Ok(())
}

/// Appends a message in so many frames; compressed where that is wanted and was agreed on.
fn write_message(
    stage: &Stage,
    socket: &mut Socket,
    kind: u8,
    payload: &[u8],
    parts: usize,
    compresses: bool,
    output: &mut Vec<u8>,
) {
    let first = output.len();
    let compressed = if compresses { socket.deflate(payload) } else { None };
    let mut rest = compressed.as_deref().unwrap_or(payload);
    let size = rest.len().div_ceil(parts).max(1);
    for part in 0..parts {
        let (this, behind) = rest.split_at(size.min(rest.len()));
        rest = behind;
        let start = output.len();
        let kind = if part == 0 { kind } else { opcode::CONTINUATION };
        frame::encode(kind, this, output);
        if part + 1 < parts {
            output[start] &= !FIN;
        }
    }
    if compressed.is_some() {
        output[first] |= RSV1;
        stage.count("messages sent compressed");
    }
}

/// The bit of a message's last frame.
const FIN: u8 = 0x80;
/// The bit of a compressed message's first frame.
const RSV1: u8 = 0x40;
