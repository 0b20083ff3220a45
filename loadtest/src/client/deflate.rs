//! permessage-deflate (RFC 7692) as a client that offers it, reads what comes, and may compress what
//! it sends: after the extension was agreed on each message goes compressed or plain (section 6).

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use thiserror::Error;

use crate::client::frame::MAX_PAYLOAD_BYTES;

/// What is offered in the handshake, and what the server has to answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Compression {
    /// Nothing is offered.
    #[default]
    Off,
    /// Whatever the server grants
    Deflate,
    /// With server_no_context_takeover, which lets a server compress a publication once for all
    Shared,
    /// Without it: the server keeps a window for each connection
    Dedicated,
}

impl Compression {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Deflate => "deflate",
            Self::Shared => "shared",
            Self::Dedicated => "dedicated",
        }
    }

    /// The line of the handshake's request. It is the same in all modes, what browsers send: which of
    /// them it becomes is the server's choice.
    pub(crate) fn offer(self) -> Option<&'static str> {
        let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits";
        (self != Self::Off).then_some(offer)
    }

    /// Whether the server has answered as it has to.
    ///
    /// # Errors
    ///
    /// What it should have answered.
    pub(crate) fn check(self, agreed: Option<Agreed>) -> Result<(), &'static str> {
        match (self, agreed) {
            (Self::Off, None) | (Self::Deflate, Some(_)) => Ok(()),
            (Self::Off, Some(_)) => Err("an extension that was not offered"),
            (Self::Deflate | Self::Shared | Self::Dedicated, None) => {
                Err("the server does not accept permessage-deflate")
            }
            (Self::Shared, Some(agreed)) if agreed.keeps_window => {
                Err("permessage-deflate without server_no_context_takeover")
            }
            (Self::Dedicated, Some(agreed)) if !agreed.keeps_window => {
                Err("permessage-deflate with server_no_context_takeover")
            }
            (Self::Shared | Self::Dedicated, Some(_)) => Ok(()),
        }
    }
}

/// What the server has agreed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    /// A message may refer to those before it (there is no `server_no_context_takeover`).
    pub(crate) keeps_window: bool,
    /// The server asks for a smaller window than DEFLATE has (`client_max_window_bits`).
    pub(crate) limits_client: bool,
}

/// Reads the answer to [`Compression::offer`]; `None` where it is none (section 7.1).
pub(crate) fn agreed(header: &str) -> Option<Agreed> {
    let mut parts = header.split(';').map(str::trim);
    if parts.next() != Some("permessage-deflate") {
        return None;
    }
    let mut seen: Vec<&str> = Vec::new();
    let mut limits_client = false;
    for part in parts {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
            None => (part, None),
        };
        let bits = value.and_then(|value| value.parse::<u8>().ok());
        let is_good = match name {
            "server_no_context_takeover" | "client_no_context_takeover" => value.is_none(),
            "server_max_window_bits" | "client_max_window_bits" => {
                bits.is_some_and(|bits| (8..=15).contains(&bits))
            }
            _ => false,
        };
        if !is_good || seen.contains(&name) {
            return None;
        }
        limits_client |= name == "client_max_window_bits" && bits != Some(15);
        seen.push(name);
    }
    let keeps_window = !seen.contains(&"server_no_context_takeover");
    Some(Agreed { keeps_window, limits_client })
}

/// A message cannot be inflated.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum InflateError {
    /// It is not DEFLATE.
    #[error("a compressed message is corrupt")]
    Corrupt,
    /// A length beyond what this client takes.
    #[error("a compressed message is too large")]
    TooLarge,
}

/// What every message ends with, and the sender takes off (section 7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// Inflates the messages of one connection, or of many that keep no window.
pub(crate) struct Inflater {
    state: Decompress,
    keeps_window: bool,
}

impl Inflater {
    pub(crate) fn new(agreed: Agreed) -> Self {
        Self { state: Decompress::new(false), keeps_window: agreed.keeps_window }
    }

    /// Inflates one message.
    pub(crate) fn inflate(&mut self, compressed: &[u8]) -> Result<Vec<u8>, InflateError> {
        if !self.keeps_window {
            self.state.reset(false);
        }
        let mut message = Vec::with_capacity(compressed.len() * 4 + 64);
        for part in [compressed, &TAIL] {
            self.inflate_part(part, &mut message)?;
        }
        Ok(message)
    }

    fn inflate_part(&mut self, part: &[u8], message: &mut Vec<u8>) -> Result<(), InflateError> {
        let mut rest = part;
        loop {
            if message.len() == message.capacity() {
                message.reserve(message.len().max(64));
            }
            let before = self.state.total_in();
            let status = self.state.decompress_vec(rest, message, FlushDecompress::Sync);
            let status = status.map_err(|_| InflateError::Corrupt)?;
            rest = &rest[(self.state.total_in() - before) as usize..];
            if message.len() as u64 > MAX_PAYLOAD_BYTES {
                return Err(InflateError::TooLarge);
            }
            match status {
                // A block marked as the last one: what follows begins anew (section 7.2.3.4).
                Status::StreamEnd => {
                    self.state.reset(false);
                    if rest.is_empty() {
                        return Ok(());
                    }
                }
                // All is taken, and what came of it fits.
                Status::Ok | Status::BufError
                    if rest.is_empty() && message.len() < message.capacity() =>
                {
                    return Ok(());
                }
                Status::BufError if message.len() < message.capacity() => {
                    return Err(InflateError::Corrupt);
                }
                Status::Ok | Status::BufError => {}
            }
        }
    }
}

/// Compresses messages, each by itself: a client need not refer to what it has sent before.
pub(crate) struct Deflater(Compress);

impl Deflater {
    pub(crate) fn new() -> Self {
        Self(Compress::new(flate2::Compression::fast(), false))
    }

    /// Compresses one message.
    pub(crate) fn deflate(&mut self, message: &[u8]) -> Vec<u8> {
        self.0.reset();
        let mut output = Vec::with_capacity(message.len() / 2 + 64);
        loop {
            let rest = &message[self.0.total_in() as usize..];
            let flushed = self.0.compress_vec(rest, &mut output, FlushCompress::Sync);
            flushed.expect("no parameter is wrong, and no memory is asked for");
            // All is flushed when there is room left.
            if output.len() < output.capacity() {
                break;
            }
            output.reserve(output.len());
        }
        debug_assert!(output.ends_with(&TAIL), "a flush ends so");
        output.truncate(output.len() - TAIL.len());
        output
    }
}

/// How many messages [`Inflated`] holds: more than a batch has.
const MAX_INFLATED: usize = 64;

/// Messages that were inflated lately, on connections that keep no window: there the same bytes are the
/// same message. A delivery is compared with those before it, and only what is new is inflated, so
/// that a thousand subscribers of a publication cost its client one inflation.
pub(crate) struct Inflated {
    inflater: Inflater,
    /// Compressed and inflated. At most [`MAX_INFLATED`]: the oldest goes first.
    latest: Vec<(Vec<u8>, Vec<u8>)>,
    oldest: usize,
    /// The one behind the last that was asked for: subscribers hear batches in the same order.
    guess: usize,
}

impl Inflated {
    pub(crate) fn new() -> Self {
        let inflater = Inflater::new(Agreed { keeps_window: false, limits_client: false });
        Self { inflater, latest: Vec::new(), oldest: 0, guess: 0 }
    }

    /// The message that `compressed` stands for.
    #[inline]
    pub(crate) fn message(&mut self, compressed: &[u8]) -> Result<&[u8], InflateError> {
        let is_it = |at: &usize| self.latest.get(*at).is_some_and(|(same, _)| same == compressed);
        let known = Some(self.guess).filter(is_it).or_else(|| (0..self.latest.len()).find(is_it));
        let at = match known {
            Some(at) => at,
            None => {
                let one = (compressed.to_vec(), self.inflater.inflate(compressed)?);
                let at = self.oldest;
                match self.latest.get_mut(at) {
                    Some(place) => *place = one,
                    None => self.latest.push(one),
                }
                self.oldest = (at + 1) % MAX_INFLATED;
                at
            }
        };
        self.guess = (at + 1) % MAX_INFLATED;
        Ok(&self.latest[at].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::payload::Random;

    /// Compresses as RFC 7692 section 7.2.1 says.
    fn deflate(state: &mut Compress, message: &[u8]) -> Vec<u8> {
        let mut output = Vec::with_capacity(message.len() + 64);
        state.compress_vec(message, &mut output, FlushCompress::Sync).unwrap();
        assert!(output.ends_with(&TAIL));
        output.truncate(output.len() - TAIL.len());
        output
    }

    fn agreed(keeps_window: bool) -> Agreed {
        Agreed { keeps_window, limits_client: false }
    }

    fn compress() -> Compress {
        Compress::new(flate2::Compression::default(), false)
    }

    #[test]
    fn answer_is_read_and_wrong_ones_are_refused() {
        let keeps = |header| super::agreed(header).map(|agreed| agreed.keeps_window);
        let limits = |header| super::agreed(header).map(|agreed| agreed.limits_client);
        assert_eq!(limits("permessage-deflate; client_max_window_bits=15"), Some(false));
        assert_eq!(limits("permessage-deflate; client_max_window_bits=9"), Some(true));
        assert_eq!(keeps("permessage-deflate"), Some(true));
        assert_eq!(keeps("permessage-deflate; server_no_context_takeover"), Some(false));
        assert_eq!(
            keeps("permessage-deflate;server_no_context_takeover; server_max_window_bits=10"),
            Some(false)
        );
        for wrong in [
            "permessage-brotli",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; nonsense",
            "permessage-deflate, permessage-deflate",
        ] {
            assert_eq!(keeps(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn each_mode_demands_its_answer() {
        let (keeps, shares) = (agreed(true), agreed(false));
        for (mode, none, with_window, without) in [
            (Compression::Off, true, false, false),
            (Compression::Deflate, false, true, true),
            (Compression::Shared, false, false, true),
            (Compression::Dedicated, false, true, false),
        ] {
            let verdicts =
                [None, Some(keeps), Some(shares)].map(|agreed| mode.check(agreed).is_ok());
            assert_eq!(verdicts, [none, with_window, without], "{mode:?}");
        }
    }

    #[test]
    fn messages_are_inflated_with_and_without_a_window() {
        for keeps_window in [true, false] {
            let mut inflater = Inflater::new(agreed(keeps_window));
            let mut compress = compress();
            for size in [0, 1, 100, 5_000, 300_000] {
                let message: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
                if !keeps_window {
                    compress.reset();
                }
                let compressed = deflate(&mut compress, &message);
                assert_eq!(inflater.inflate(&compressed), Ok(message), "{size}");
            }
        }
        // The example with a last block of RFC 7692 section 7.2.3.4.
        let mut inflater = Inflater::new(agreed(true));
        let last = [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00];
        assert_eq!(inflater.inflate(&last), Ok(b"Hello".to_vec()));
        assert_eq!(inflater.inflate(&[0xff; 20]), Err(InflateError::Corrupt));
    }

    #[test]
    fn what_is_deflated_is_inflated_again_whether_it_compresses_or_not() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new(agreed(true)));
        let mut random = Random::new(1);
        for size in [0, 1, 125, 4_096, 65_536, 200_000] {
            let noise: Vec<u8> = (0..size).map(|_| random.next() as u8).collect();
            for message in [noise, vec![b'x'; size]] {
                let compressed = deflater.deflate(&message);
                assert_eq!(inflater.inflate(&compressed), Ok(message), "{size}");
            }
        }
    }

    #[test]
    fn same_bytes_are_the_same_message_and_the_oldest_are_forgotten() {
        let mut inflated = Inflated::new();
        let mut compress = compress();
        for number in 0..3 * MAX_INFLATED {
            let message = format!("message {number}").into_bytes();
            compress.reset();
            let compressed = deflate(&mut compress, &message);
            for _ in 0..3 {
                assert_eq!(inflated.message(&compressed), Ok(&message[..]));
            }
        }
        assert_eq!(inflated.latest.len(), MAX_INFLATED);
        assert_eq!(inflated.message(&[0xff; 20]), Err(InflateError::Corrupt));
    }
}
