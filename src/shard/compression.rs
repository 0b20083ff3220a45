//! Deflated messages on one shard: its deflaters and its inflater, which no connection owns, and what a
//! connection with context takeover has of its own.
//!
//! A publication is deflated once for all subscribers that get messages which stand alone. With context
//! takeover each connection gets its own, since what it refers to is what this connection was told.

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use bytes::Bytes;

use crate::hub::Group;
use crate::pubsub::{Batch, Count, FORMS};
use crate::shard::Shard;
use crate::shard::driver::report_panic;
use crate::shard::settings::{Compression, CompressionMode};
use crate::telemetry::counters::{DEDICATED, SHARED};
use crate::wire::deflate::{Deflater, Inflater, Window};
use crate::wire::extensions::{Agreement, Readiness, WindowBits};
use crate::wire::frame::{self, MAX_HEADER_BYTES, MessageKind};
use crate::wire::header::ProtocolError;

/// The buffer for inflated messages keeps no more room than this, in bytes.
const MAX_KEPT_BYTES: usize = 256 * 1024;

/// From this size on an inflated message keeps its buffer instead of being copied out of it.
const OWNED_MESSAGE_BYTES: usize = 16 * 1024;

/// What a final block inside a message costs, as bytes that are inflated.
const FINAL_BLOCK_BYTES: usize = 2 * 1024;

/// What any message costs beside its bytes.
const MESSAGE_BYTES: usize = 512;

/// How many bytes are inflated in the time in which one is deflated.
const DEFLATING_WEIGHT: usize = 10;

/// How messages of one connection are deflated.
#[derive(Debug)]
pub(crate) enum Coding {
    /// They are not: the client did not offer it, or the operator does not want it.
    Off,
    /// Each stands alone, and ours refer no further back than this.
    Alone(WindowBits),
    /// They refer to earlier ones.
    Takeover(Takeover),
}

/// What a connection with context takeover remembers.
#[derive(Debug)]
pub(crate) struct Takeover {
    /// How far back our messages refer, within one message also where there is no takeover.
    window: WindowBits,
    /// What we have said. `None`: ours stand alone.
    ours: Option<RefCell<Window>>,
    /// What the client has said. `None`: its messages stand alone.
    theirs: Option<RefCell<Window>>,
    /// Its part of the bound.
    _memory: Reserved,
}

/// Memory for windows that was taken from what all shards may have together. Given back on drop.
pub(crate) struct Reserved {
    shard: Rc<Shard>,
    bytes: usize,
}

impl std::fmt::Debug for Reserved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reserved({} bytes)", self.bytes)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.shard.loads.give_back_window_bytes(self.bytes);
        self.shard.counters.compression_memory_bytes.moved(self.bytes, 0);
    }
}

impl Coding {
    /// The client's messages may be deflated.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        !matches!(self, Self::Off)
    }

    /// Our messages refer to earlier ones.
    pub(crate) fn refers(&self) -> bool {
        matches!(self, Self::Takeover(takeover) if takeover.ours.is_some())
    }

    /// What it takes to deflate a message of so many bytes for this connection only, as bytes that are
    /// inflated.
    pub(crate) fn inflated_effort_bytes(&self, message_bytes: usize) -> usize {
        let each = match self {
            Self::Takeover(takeover) if takeover.ours.is_some() => takeover.message_effort_bytes(),
            Self::Off | Self::Alone(_) | Self::Takeover(_) => MESSAGE_BYTES,
        };
        DEFLATING_WEIGHT * (message_bytes + each)
    }

    /// Whom a connection like this is written to alike with. `hears_one`: it hears one channel alone.
    pub(crate) fn group(&self, hears_one: bool) -> Group {
        match (self, hears_one) {
            (Self::Off, true) => Group::Plain,
            (Self::Off, false) => Group::SeveralPlain,
            (Self::Alone(WindowBits::MAX), true) => Group::Deflated,
            (Self::Alone(WindowBits::MAX), false) => Group::SeveralDeflated,
            (Self::Alone(_) | Self::Takeover(_), _) => Group::Own,
        }
    }

    /// Which of the counters of connections it belongs to.
    pub(crate) fn mode(&self) -> Option<usize> {
        match self {
            Self::Off => None,
            Self::Alone(_) => Some(SHARED),
            Self::Takeover(_) => Some(DEDICATED),
        }
    }
}

impl Takeover {
    fn new(agreement: Agreement, memory: Reserved) -> Self {
        let window = |is_kept: bool, bits| is_kept.then(|| RefCell::new(Window::new(bits)));
        Self {
            window: agreement.server_window,
            ours: window(agreement.server_takeover, agreement.server_window),
            theirs: window(agreement.client_takeover, agreement.client_window),
            _memory: memory,
        }
    }

    /// Our next message must not refer to what was said before.
    pub(crate) fn forget_ours(&self) {
        if let Some(ours) = &self.ours {
            ours.borrow_mut().clear();
        }
    }

    /// What it takes to deflate `count` messages in `segments` for this connection only, as bytes that are
    /// deflated. To show a deflater a window of 8 KiB takes 8 us, in which it deflates half a KiB.
    pub(crate) fn effort_bytes(&self, segments: &[Bytes], count: Count) -> usize {
        let each = self.message_effort_bytes();
        segments.iter().map(Bytes::len).sum::<usize>() + each * count.total() as usize
    }

    fn message_effort_bytes(&self) -> usize {
        MESSAGE_BYTES + self.window.bytes() / 16
    }

    /// How far back messages refer that stand alone.
    pub(crate) fn window(&self) -> WindowBits {
        self.window
    }
}

/// The compressors of one shard, each made when it is first needed.
pub(crate) struct Codec {
    min_bytes: Cell<usize>,
    /// By window.
    deflaters: [RefCell<Option<Box<Deflater>>>; FORMS],
    inflater: RefCell<Inflater>,
    /// Room for what is inflated.
    inflated: RefCell<Vec<u8>>,
    /// Room for what is deflated for one connection.
    deflated: RefCell<Vec<u8>>,
    off: Rc<Coding>,
    /// By window.
    alone: [Rc<Coding>; FORMS],
}

impl Codec {
    pub(crate) fn new(settings: &Compression) -> Self {
        Self {
            min_bytes: Cell::new(settings.min_bytes),
            deflaters: Default::default(),
            inflater: RefCell::default(),
            inflated: RefCell::default(),
            deflated: RefCell::default(),
            off: Rc::new(Coding::Off),
            alone: std::array::from_fn(|form| {
                let window = WindowBits::new(WindowBits::MIN.bits() + form as u8);
                Rc::new(Coding::Alone(window.expect("a form for each window")))
            }),
        }
    }

    /// What is agreed, as a connection has it. `memory` is there where the agreement needs some.
    pub(crate) fn coding(
        &self,
        agreement: Option<Agreement>,
        memory: Option<Reserved>,
    ) -> Rc<Coding> {
        match (agreement, memory) {
            (None, _) => Rc::clone(&self.off),
            (Some(agreement), None) => Rc::clone(&self.alone[form(agreement.server_window)]),
            (Some(agreement), Some(memory)) => {
                Rc::new(Coding::Takeover(Takeover::new(agreement, memory)))
            }
        }
    }

    /// Whether a message of this length is worth deflating.
    #[inline]
    pub(crate) fn is_worth(&self, payload_bytes: usize) -> bool {
        payload_bytes >= self.min_bytes.get()
    }

    /// Deflates messages from this length on.
    pub(crate) fn set_min_bytes(&self, min_bytes: usize) {
        self.min_bytes.set(min_bytes);
    }
}

/// The number of the form of a batch in which messages refer no further back than `window`.
fn form(window: WindowBits) -> usize {
    usize::from(window.bits() - WindowBits::MIN.bits())
}

/// An inflated message as one server frame.
pub(crate) struct Inflated {
    buffer: Vec<u8>,
    start: usize,
    /// What it took to inflate it, as bytes that are inflated.
    pub(crate) effort_bytes: usize,
}

impl Deref for Inflated {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.start..]
    }
}

impl Inflated {
    /// It is so large that it should keep its buffer.
    pub(crate) fn is_large(&self) -> bool {
        self.buffer.len() >= OWNED_MESSAGE_BYTES
    }

    /// In a buffer of its own.
    pub(crate) fn into_bytes(mut self) -> Bytes {
        self.buffer.shrink_to_fit();
        Bytes::from(self.buffer).slice(self.start..)
    }
}

impl Shard {
    /// What this shard offers to those who offer permessage-deflate, with the memory that it needs:
    /// context takeover as long as there is memory for windows, else messages that stand alone.
    pub(crate) fn negotiate_deflate(
        self: &Rc<Self>,
        negotiate: impl Fn(Readiness) -> Option<Agreement>,
    ) -> (Option<Agreement>, Option<Reserved>) {
        let alone = || negotiate(Readiness::NoTakeover);
        let Compression { mode, window, max_memory_bytes, .. } = self.settings().compression;
        match mode {
            CompressionMode::Off => return (None, None),
            CompressionMode::Shared => return (alone(), None),
            CompressionMode::Dedicated => {}
        }
        let Some(agreement) = negotiate(Readiness::Takeover(window)) else {
            return (None, None);
        };
        match agreement.window_bytes() {
            0 => (Some(agreement), None),
            bytes if self.loads.try_take_window_bytes(bytes, max_memory_bytes) => {
                self.counters.compression_memory_bytes.moved(0, bytes);
                (Some(agreement), Some(Reserved { shard: Rc::clone(self), bytes }))
            }
            _ => {
                self.counters.compression_fallbacks.increment();
                (alone(), None)
            }
        }
    }

    /// The publications of `batch` for those who get deflated messages that stand alone. A bug in the
    /// deflater leaves them as they are, which everybody may get.
    pub(crate) fn deflated<'a>(&self, batch: &'a Batch, window: WindowBits) -> &'a Batch {
        if !self.codec.is_worth(batch.largest_frame_bytes()) {
            return batch;
        }
        // What is no longer than the window cannot refer beyond it.
        let fits = batch.largest_frame_bytes() <= window.bytes();
        let window = if fits { WindowBits::MAX } else { window };
        let made = catch_unwind(AssertUnwindSafe(|| {
            batch.form(form(window), &mut |batch| {
                batch.encoded_again(frame::first_frame_bytes, |frame, output| {
                    self.codec.is_worth(frame::open(frame).1.len())
                        && self.append_deflated(output, frame, window, &[])
                })
            })
        }));
        made.unwrap_or_else(|panic| {
            report_panic("none: deflating a publication", &*panic, self);
            batch
        })
    }

    /// Appends `frame` deflated to `output`, or nothing where that makes it no shorter.
    fn append_deflated(
        &self,
        output: &mut Vec<u8>,
        frame: &[u8],
        window: WindowBits,
        dictionary: &[u8],
    ) -> bool {
        let mut deflater = self.codec.deflaters[form(window)].borrow_mut();
        let deflater = deflater.get_or_insert_with(|| Box::new(Deflater::new(window)));
        let (before, (kind, payload)) = (output.len(), frame::open(frame));
        let is_deflated = deflater.append_frame(output, kind, payload, dictionary);
        let sent = if is_deflated { &output[before..] } else { frame };
        self.counters.deflate_input_bytes.add(frame.len() as u64);
        self.counters.deflate_output_bytes.add(sent.len() as u64);
        is_deflated
    }

    /// Appends `frame` deflated to `output`, for a connection with context takeover that gets it next,
    /// or nothing where that makes it no shorter.
    fn append_referring(&self, output: &mut Vec<u8>, frame: &[u8], takeover: &Takeover) -> bool {
        let mut ours = takeover.ours.as_ref().map(RefCell::borrow_mut);
        let dictionary = ours.as_ref().map_or(&[][..], |ours| ours.bytes());
        let is_deflated = self.append_deflated(output, frame, takeover.window, dictionary);
        if let Some(ours) = &mut ours
            && is_deflated
        {
            ours.push(frame::open(frame).1);
        }
        is_deflated
    }

    /// Hands `frame`, a whole plain server frame, to `send` as it goes next to a connection that
    /// deflates like this.
    pub(crate) fn with_deflated(&self, frame: &[u8], coding: &Coding, send: impl FnOnce(&[u8])) {
        let is_worth = self.codec.is_worth(frame::open(frame).1.len());
        let mut output = self.codec.deflated.take();
        output.clear();
        let is_deflated = is_worth
            && match coding {
                Coding::Off => false,
                Coding::Alone(window) => self.append_deflated(&mut output, frame, *window, &[]),
                Coding::Takeover(takeover) => self.append_referring(&mut output, frame, takeover),
            };
        send(if is_deflated { &output } else { frame });
        output.shrink_to(MAX_KEPT_BYTES);
        self.codec.deflated.replace(output);
    }

    /// Inflates the payload of a message of a client that deflates like this.
    pub(crate) fn inflate(
        &self,
        kind: MessageKind,
        payload: &[u8],
        coding: &Coding,
    ) -> Result<Inflated, ProtocolError> {
        let mut buffer = self.codec.inflated.take();
        buffer.clear();
        buffer.resize(MAX_HEADER_BYTES, 0);
        let theirs = match coding {
            Coding::Takeover(takeover) => takeover.theirs.as_ref(),
            Coding::Off | Coding::Alone(_) => None,
        };
        let mut theirs = theirs.map(RefCell::borrow_mut);
        let dictionary = theirs.as_ref().map_or(&[][..], |theirs| theirs.bytes());
        let mut inflater = self.codec.inflater.borrow_mut();
        let final_blocks =
            inflater.inflate(payload, dictionary, self.max_message_bytes(), &mut buffer)?;
        let (head, message) = buffer.split_at_mut(MAX_HEADER_BYTES);
        self.counters.inflate_input_bytes.add(payload.len() as u64);
        self.counters.inflate_output_bytes.add(message.len() as u64);
        if kind == MessageKind::Text && simdutf8::basic::from_utf8(message).is_err() {
            return Err(ProtocolError::TextNotUtf8);
        }
        if let Some(theirs) = &mut theirs {
            theirs.push(message);
        }
        let effort_bytes = message.len() + FINAL_BLOCK_BYTES * final_blocks + MESSAGE_BYTES;
        let start = frame::write_header_before(head, kind.opcode(), message.len());
        Ok(Inflated { buffer, start, effort_bytes })
    }

    /// Takes the room of a message that is done with, for the next one.
    pub(crate) fn recycle(&self, inflated: Inflated) {
        let mut buffer = inflated.buffer;
        buffer.clear();
        buffer.shrink_to(MAX_KEPT_BYTES);
        self.codec.inflated.replace(buffer);
    }
}
