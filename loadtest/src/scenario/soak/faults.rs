//! Faults: clients that break the rules, and how each of them has to end.

use std::time::{Duration, Instant};

use crate::client::deflate::Compression;
use crate::client::frame::{self, opcode};
use crate::client::payload::{Payload, Random};
use crate::client::stamp::Stamp;
use crate::scenario::soak::load::close;
use crate::scenario::soak::socket::{End, Heard, PATIENCE, Socket};
use crate::scenario::soak::stage::Stage;
use crate::scenario::soak::verdicts::Invariant;

/// What an intruder does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Fault {
    /// Stops reading a channel on which much is said: closed with 1008
    SlowReader,
    /// Breaks a rule of RFC 6455: closed with 1002 or 1007
    Garbage,
    /// Sends a part of a handshake, or drips it: cut at the handshake timeout
    HalfHandshake,
    /// Asks for something that is no WebSocket: refused with its status
    BadRequest,
    /// Announces more than a message may have, at once or in fragments: closed with 1009
    Oversized,
    /// Sends thousands of Pings before it reads: the latest is answered
    PingFlood,
    /// Goes in the middle of a handshake or a message
    Vanish,
}

impl Fault {
    pub(super) const ALL: [Self; 7] = [
        Self::SlowReader,
        Self::Garbage,
        Self::HalfHandshake,
        Self::BadRequest,
        Self::Oversized,
        Self::PingFlood,
        Self::Vanish,
    ];

    fn done(self) -> &'static str {
        match self {
            Self::SlowReader => "slow readers cut",
            Self::Garbage => "rules broken",
            Self::HalfHandshake => "half handshakes",
            Self::BadRequest => "bad requests",
            Self::Oversized => "oversized messages",
            Self::PingFlood => "Ping floods",
            Self::Vanish => "clients vanished",
        }
    }

    fn commit(self, stage: &Stage, random: &mut Random) -> Result<(), String> {
        let wrong = |end: End| format!("{self:?}: {end}");
        match self {
            Self::SlowReader => slow_reader(stage, random),
            Self::Garbage => garbage(stage, random),
            Self::HalfHandshake => half_handshake(stage, random).map_err(wrong),
            Self::BadRequest => bad_request(stage, random),
            Self::Oversized => oversized(stage, random),
            Self::PingFlood => ping_flood(stage),
            Self::Vanish => vanish(stage, random).map_err(wrong),
        }
    }
}

/// Commits one fault after the other until the end. `number` is another one for each intruder.
pub(super) fn intrude(stage: &Stage, faults: &[Fault], number: u64, seed: u64) {
    let mut random = Random::new(seed);
    // Each begins elsewhere, so that a short soak has seen all.
    let turns = faults.iter().cycle().skip(number as usize);
    for fault in turns {
        let Some(under_way) = stage.begin_when_loaded() else { return };
        let result = fault.commit(stage, &mut random);
        stage.check(Invariant::Faults, result);
        stage.count(fault.done());
        drop(under_way);
        std::thread::sleep(Duration::from_millis(100 + random.below(200)));
    }
}

fn open_echo(stage: &Stage) -> Result<Socket, String> {
    let path = stage.place.target.echo(2);
    let opened = stage.open(&path, Compression::Off);
    opened.map_err(|end| format!("an intruder cannot connect: {end}"))
}

/// Sends `bytes` and expects to be closed with `code`.
fn ends_with(stage: &Stage, what: &str, bytes: &[u8], code: u16) -> Result<(), String> {
    let mut socket = open_echo(stage)?;
    let ended = socket.send_raw(bytes).and_then(|()| socket.drain(PATIENCE));
    match ended {
        Ok(Some(found)) if found == code => Ok(()),
        Ok(Some(found)) => Err(format!("{what}: closed with {found} instead of {code}")),
        Ok(None) => Err(format!("{what}: ended without Close {code}")),
        Err(end) => Err(format!("{what}: no Close {code}: {end}")),
    }
}

/// Frames that break a rule: what is wrong, the bytes, and the code that they are closed with.
const GARBAGE: [(&str, &[u8], u16); 14] = [
    ("a reserved opcode", &[0x83, 0x80, 0, 0, 0, 0], 1002),
    ("a reserved control opcode", &[0x8b, 0x80, 0, 0, 0, 0], 1002),
    ("RSV1 without an extension", &[0xc1, 0x80, 0, 0, 0, 0], 1002),
    ("RSV2", &[0xa1, 0x80, 0, 0, 0, 0], 1002),
    ("RSV3", &[0x92, 0x80, 0, 0, 0, 0], 1002),
    ("a frame without a mask", &[0x81, 0x02, b'h', b'i'], 1002),
    ("a continuation of nothing", &[0x80, 0x80, 0, 0, 0, 0], 1002),
    ("a message within a message", &[0x01, 0x80, 0, 0, 0, 0, 0x81, 0x80, 0, 0, 0, 0], 1002),
    ("a Ping in fragments", &[0x09, 0x80, 0, 0, 0, 0], 1002),
    ("a Ping of 126 bytes", &[0x89, 0xfe, 0, 126, 0, 0, 0, 0], 1002),
    ("a Close of one byte", &[0x88, 0x81, 0, 0, 0, 0, 3], 1002),
    ("a Close with 1005", &[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xed], 1002),
    ("text that is not UTF-8", &[0x81, 0x82, 0, 0, 0, 0, 0xc3, 0x28], 1007),
    ("a reason that is not UTF-8", &[0x88, 0x83, 0, 0, 0, 0, 0x03, 0xe8, 0xff], 1007),
];

fn garbage(stage: &Stage, random: &mut Random) -> Result<(), String> {
    let (what, bytes, code) = random.one_of(&GARBAGE);
    ends_with(stage, what, bytes, code)
}

fn oversized(stage: &Stage, random: &mut Random) -> Result<(), String> {
    let max_bytes = stage.limits.max_message_bytes as u64;
    let announce = |first: u8, bytes: u64| {
        let mut header = vec![first, 0xff];
        header.extend(bytes.to_be_bytes());
        header.extend([0; 4]);
        header
    };
    match random.below(3) {
        0 => {
            let header = announce(0x82, max_bytes + 1);
            ends_with(stage, "a message of one byte too many", &header, 1009)
        }
        1 => ends_with(stage, "a message of 2^62 bytes", &announce(0x82, 1 << 62), 1009),
        _ => {
            let mut frames = Vec::new();
            frame::encode(opcode::BINARY, &[1], &mut frames);
            frames[0] &= 0x7f;
            frames.extend(announce(0x80, max_bytes));
            ends_with(stage, "fragments of one byte too many", &frames, 1009)
        }
    }
}

fn half_handshake(stage: &Stage, random: &mut Random) -> Result<(), End> {
    let mut socket = Socket::connect(stage.place.target.address)?;
    let request = b"GET /echo HTTP/1.1\r\nHost: soak\r\nUpgrade: websocket\r\nX-Long: yes";
    let timeout = stage.limits.handshake_timeout;
    if random.below(2) == 0 {
        let part = random.below(request.len() as u64) as usize;
        socket.send_raw(&request[..part])?;
        return socket.drain_raw(timeout + PATIENCE);
    }
    // One byte at a time, and never the last: it must not gain time by that.
    let end = Instant::now() + timeout + PATIENCE;
    for byte in request.iter().chain(std::iter::repeat(&b'x')) {
        match socket.send_raw(&[*byte]) {
            Err(sent) if sent.is_gone() => return Ok(()),
            sent => sent?,
        }
        match socket.drain_raw(Duration::from_millis(100)) {
            Err(End::Silence) if Instant::now() < end => {}
            drained => return drained,
        }
    }
    Ok(())
}

fn bad_request(stage: &Stage, random: &mut Random) -> Result<(), String> {
    let upgrade = "Host: soak\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let (what, request, expected) = match random.below(4) {
        0 => ("a plain GET", "GET /echo HTTP/1.1\r\nHost: soak\r\n\r\n".to_owned(), 400),
        1 => {
            let request =
                format!("GET /echo HTTP/1.1\r\n{upgrade}Sec-WebSocket-Version: 12\r\n\r\n");
            ("version 12", request, 426)
        }
        2 => {
            let request =
                format!("GET /nowhere HTTP/1.1\r\n{upgrade}Sec-WebSocket-Version: 13\r\n\r\n");
            ("another path", request, 404)
        }
        _ => {
            let line = format!("X-Long: {}\r\n", "x".repeat(1_000));
            let request = format!("GET /echo HTTP/1.1\r\n{upgrade}{}\r\n", line.repeat(10));
            ("a head of 10,000 bytes", request, 431)
        }
    };
    let response = Socket::connect(stage.place.target.address).and_then(|mut socket| {
        socket.send_raw(request.as_bytes())?;
        socket.response()
    });
    match response {
        Ok(response) if response.status == expected => Ok(()),
        Ok(response) => Err(format!("{what}: status {} instead of {expected}", response.status)),
        // It may be reset by a server that has refused what it did not read to the end.
        Err(end) if expected == 431 && end.is_gone() => Ok(()),
        Err(end) => Err(format!("{what}: no status {expected}: {end}")),
    }
}

/// How many Pings are sent before anything is read.
const PINGS: u32 = 3_000;

fn ping_flood(stage: &Stage) -> Result<(), String> {
    let mut socket = open_echo(stage)?;
    let mut frames = Vec::new();
    for number in 0..PINGS {
        frame::encode(opcode::PING, &number.to_be_bytes(), &mut frames);
    }
    let sent = socket.send_raw(&frames);
    sent.map_err(|end| format!("Ping flood: cannot send all: {end}"))?;
    let latest = (PINGS - 1).to_be_bytes();
    loop {
        match socket.expect() {
            Ok(Heard::Pong(payload)) if payload == latest => break,
            Ok(Heard::Pong(_)) => {}
            Ok(heard) => return Err(format!("Ping flood: {heard:?} instead of Pongs")),
            Err(end) => return Err(format!("Ping flood: the latest was not answered: {end}")),
        }
    }
    close(&mut socket, "Ping flood")
}

fn vanish(stage: &Stage, random: &mut Random) -> Result<(), End> {
    let kind = random.below(4);
    let mut socket = Socket::connect(stage.place.target.address)?;
    if kind == 0 {
        return socket.reset();
    }
    if kind == 1 {
        socket.send_raw(b"GET /echo HTTP/1.1\r\nHost: so")?;
        return socket.reset();
    }
    let path = stage.place.target.echo(3);
    socket.upgrade(&stage.place.target, &stage.place.headers, &path, Compression::Off)?;
    let mut frames = Vec::new();
    let bytes = stage.limits.max_message_bytes;
    frame::encode(opcode::BINARY, &vec![b'x'; bytes], &mut frames);
    if kind == 2 {
        frames.truncate(bytes / 2);
    }
    socket.send_raw(&frames)?;
    socket.reset()
}

/// What a slow reader is sent at a time, in bytes.
const SLOW_MESSAGE_BYTES: usize = 16 * 1024;

/// How long a slow reader does not read at least, beyond what it takes to publish.
const STALLS: Duration = Duration::from_millis(100);

/// How often a reader may get everything in time, or come back too late: a busy machine may let it.
const MAX_ESCAPES: u32 = 3;

fn slow_reader(stage: &Stage, random: &mut Random) -> Result<(), String> {
    for escapes in 1..=MAX_ESCAPES {
        let stalls = STALLS * escapes * escapes;
        if slow_reader_is_cut(stage, random, stalls)
            .map_err(|text| format!("slow reader: {text}"))?
        {
            return Ok(());
        }
    }
    Err(format!("slow reader: was not cut, although it did not read {MAX_ESCAPES} times"))
}

/// How a slow reader has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// With 1008.
    Close,
    /// It has got everything.
    No,
    /// It came back too late for its Close.
    Unseen,
}

/// How long a server may wait for its Close to be read. Whoever comes back later may find the connection
/// gone, as on a machine that has too much else to do.
const CLOSE_WAITS: Duration = Duration::from_secs(4);

/// Returns whether it was cut in sight.
fn slow_reader_is_cut(
    stage: &Stage,
    random: &mut Random,
    stalls: Duration,
) -> Result<bool, String> {
    let target = &stage.place.target;
    let headers = &stage.place.headers;
    // A channel of its own: nobody else is to be slowed.
    let path = target.channel(1_000_000 + random.below(1_000_000_000) as u32);
    let mut reader = Socket::connect_narrow(target.address).map_err(|end| end.to_string())?;
    let upgraded = reader.upgrade(target, headers, &path, Compression::Off);
    upgraded.map_err(|end| end.to_string())?;
    let own = format!("{path}?own=false");
    let publisher = Socket::open(target, headers, &own, Compression::Off);
    let mut publisher = publisher.map_err(|end| end.to_string())?;
    let size = SLOW_MESSAGE_BYTES.min(stage.limits.max_message_bytes).max(Stamp::BYTES);
    let count = (2 * stage.limits.outbound_queue_bytes + (512 << 10)) / size;
    let mut payload = vec![b'x'; size];
    let began = Instant::now();
    for number in 0..count as u32 {
        Stamp { due: 0, publisher: 0, number }.write(&mut payload[Payload::Filler.stamp_at()..]);
        let sent = publisher.send(opcode::BINARY, &payload);
        sent.map_err(|end| format!("its publisher cannot publish: {end}"))?;
    }
    // When the Pong comes, all before the Ping is taken.
    let answered = publisher.send(opcode::PING, b"").and_then(|()| publisher.expect());
    match answered {
        Ok(Heard::Pong(_)) => {}
        other => return Err(format!("its publisher got no Pong: {other:?}")),
    }
    std::thread::sleep(stalls);
    let mut next = 0;
    let cut = loop {
        match reader.expect() {
            Ok(Heard::Message { payload, .. }) => {
                let number = Stamp::read(&payload).map(|stamp| stamp.number);
                if number != Some(next) {
                    let got = number.map_or("nonsense".to_owned(), |it| format!("message {it}"));
                    return Err(format!("got {got} instead of message {next}, and was not cut"));
                }
                next += 1;
                if next == count as u32 {
                    break Cut::No;
                }
            }
            Ok(Heard::Close(1008)) => break Cut::Close,
            Ok(heard) => return Err(format!("{heard:?} instead of Close 1008")),
            // The server need not wait longer for its Close to be read.
            Err(end) if end.is_gone() && began.elapsed() > CLOSE_WAITS => break Cut::Unseen,
            Err(end) => return Err(format!("after {next} of {count} messages: {end}")),
        }
    };
    match cut {
        Cut::Close => {
            _ = reader.send(opcode::CLOSE, &1008u16.to_be_bytes());
            let ended = reader.drain(PATIENCE);
            ended.map_err(|end| format!("after its Close: {end}"))?;
        }
        Cut::No => close(&mut reader, "slow reader that got all")?,
        Cut::Unseen => {}
    }
    close(&mut publisher, "publisher to a slow reader")?;
    Ok(cut == Cut::Close)
}
