//! Churn: clients that come, do something sensible, and go in every way there is.

use std::time::{Duration, Instant};

use crate::client::deflate::Compression;
use crate::client::payload::Random;
use crate::scenario::soak::load::{close, exchange};
use crate::scenario::soak::socket::{Heard, PATIENCE, Socket};
use crate::scenario::soak::stage::{Membership, Stage};
use crate::scenario::soak::verdicts::Invariant;

/// How a visitor goes.
#[derive(Clone, Copy)]
enum Exit {
    Close,
    Reset,
    /// It ends its half of the stream without a Close.
    HalfClose,
}

/// Comes and goes until the end.
pub(super) fn visit(stage: &Stage, seed: u64) {
    let mut random = Random::new(seed);
    while let Some(under_way) = stage.begin_when_loaded() {
        let compression = random.one_of(&[Compression::Off, stage.compression]);
        let result = match random.below(2) {
            0 => visit_echo(stage, &mut random, compression),
            _ => visit_channels(stage, &mut random, compression),
        };
        stage.check(Invariant::Connections, result);
        drop(under_way);
        std::thread::sleep(Duration::from_millis(20 + random.below(80)));
    }
}

fn visit_echo(stage: &Stage, random: &mut Random, compression: Compression) -> Result<(), String> {
    let path = stage.place.target.echo(1);
    let mut socket = stage
        .open(&path, compression)
        .map_err(|end| format!("a visitor of the echo cannot connect: {end}"))?;
    let count = random.below(3);
    if let Err(text) = exchange(stage, &mut socket, random, count) {
        stage.broken(Invariant::Echo, format!("a visitor: {text}"));
        return Ok(());
    }
    leave(stage, socket, None, random, "a visitor of the echo")
}

fn visit_channels(
    stage: &Stage,
    random: &mut Random,
    compression: Compression,
) -> Result<(), String> {
    let channel = random.below(stage.channels.into()) as u32;
    let others = (0..stage.channels).filter(|other| *other != channel);
    let also: Vec<u32> = others.filter(|_| random.below(4) == 0).collect();
    let name = format!("a visitor of channel {channel}");
    let mut socket = stage
        .open(&stage.channel_path(channel, &also), compression)
        .map_err(|end| format!("{name} cannot connect: {end}"))?;
    let channels: Vec<u32> = std::iter::once(channel).chain(also).collect();
    let member = stage.join(name.clone(), &channels);
    let until = Instant::now() + Duration::from_millis(random.below(400));
    loop {
        match socket.next(until) {
            Ok(Some(Heard::Message { opcode, payload })) => stage.heard(&member, opcode, &payload),
            Ok(Some(Heard::Pong(_))) => {}
            Ok(Some(Heard::Close(code))) => return Err(format!("{name} was closed with {code}")),
            Ok(None) => break,
            Err(end) => return Err(format!("{name}: {end}")),
        }
    }
    leave(stage, socket, Some(member), random, &name)
}

fn leave(
    stage: &Stage,
    mut socket: Socket,
    member: Option<Membership>,
    random: &mut Random,
    name: &str,
) -> Result<(), String> {
    let exit = random.one_of(&[Exit::Close, Exit::Close, Exit::Reset, Exit::HalfClose]);
    let (done, result) = match exit {
        Exit::Close => {
            let closed = close(&mut socket, name).and_then(|()| {
                let ended = socket.drain(PATIENCE);
                ended.map(drop).map_err(|end| format!("{name}, after its Close: {end}"))
            });
            ("visits that ended by Close", closed)
        }
        Exit::Reset => {
            let reset = socket.reset();
            ("visits that ended by reset", reset.map_err(|end| format!("{name}: {end}")))
        }
        Exit::HalfClose => {
            let ended = socket.half_close().and_then(|()| socket.drain(PATIENCE));
            let ended = ended.map(drop);
            let ended = ended.map_err(|end| format!("{name}, after the end of its stream: {end}"));
            ("visits that ended by half-close", ended)
        }
    };
    stage.count(done);
    if let Some(mut member) = member {
        stage.leave(&mut member);
    }
    result
}
