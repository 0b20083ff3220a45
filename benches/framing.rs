//! What do frames cost, beside fastwebsockets and tungstenite on the same bytes?
//!
//! - `header`: one header, nothing behind it.
//! - `decode_*`: a client's bytes to messages. For the gateway that is also the re-framing: what comes
//!   out is a server frame already.
//! - `decode_in_pieces`: the same, cut as reads of a socket could cut it.
//! - `echo`: a client's bytes to the bytes of the answer, handed to a sink. This is where re-framing
//!   in place shows.
//! - `encode`, `unmask`, `utf8`: the parts.
//!
//! Everyone decodes the same masked bytes, and everyone has them copied out of one place by a read,
//! for unmasking spoils them; so one copy of the bytes is in everyone's time. Nobody waits: memory is
//! always ready, and no runtime is in between. Buffers and sockets are made once, outside of the
//! time. The allocator is the gateway's.
//!
//! What is compared is not quite the same work:
//!
//! - The gateway decodes out of a buffer that all connections share, refuses lengths that are not
//!   minimal and unmasked frames, and bounds a message over all its fragments.
//! - fastwebsockets owns a growing buffer per connection and hands out payloads split off it. It takes
//!   unmasked frames and any form of a length, leaves UTF-8 over several frames and the size of a
//!   message over its fragments to a collector above, and checks text once its frame is complete.
//! - tungstenite also assembles fragments and bounds them. It zeroes its read buffer before each
//!   read: with its default of 128 KiB that would be most of what is measured for a small message, so
//!   its buffer has the size of fastwebsockets' here. UTF-8 is checked by the standard library.
//!
//! `cargo bench --bench framing -- echo` runs one group, `-- --test` each bench once.

use std::cell::Cell;
use std::hint::black_box;
use std::io::{self, Cursor, IoSlice, Read, Write};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use fastwebsockets::{Frame, OpCode, Payload};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::protocol::frame::coding::{Data, OpCode as TungsteniteOpcode};
use tungstenite::protocol::frame::{Frame as TungsteniteFrame, FrameHeader, Utf8Bytes};
use wsgate::wire::decoder::{Decoder, Event, MAX_KEPT_BYTES, Rules, ServerFrame};
use wsgate::wire::frame;
use wsgate::wire::header::{ClientFrameHeader, Opcode};
use wsgate::wire::utf8::Utf8Validator;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Payloads from a cursor position to the largest message that the gateway takes by default.
const PAYLOAD_BYTES: [usize; 5] = [16, 64, 1 << 10, 16 << 10, 64 << 10];

/// What TCP over Ethernet brings in one segment.
const SEGMENT_BYTES: usize = 1_448;

const MASKING_KEY: [u8; 4] = [0x12, 0x34, 0x56, 0x78];
const MAX_MESSAGE_BYTES: usize = 64 << 10;

const RULES: Rules = Rules { max_message_bytes: MAX_MESSAGE_BYTES, deflate: false };

fn main() {
    // Shorter than Criterion's defaults: over a hundred benches shall not take half an hour.
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .sample_size(20)
        .nresamples(2_000)
        .configure_from_args();
    header(&mut criterion);
    decode(&mut criterion);
    decode_in_pieces(&mut criterion);
    decode_batch(&mut criterion);
    echo(&mut criterion);
    encode(&mut criterion);
    unmask(&mut criterion);
    utf8(&mut criterion);
    criterion.final_summary();
}

/// fastwebsockets has no header apart from its stream.
fn header(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("header");
    group.throughput(Throughput::Elements(1));
    for payload_bytes in [64, 1 << 10, 64 << 10] {
        let wire = client_frame(Opcode::Binary, &binary(payload_bytes));
        let header_bytes = wire.len() - payload_bytes;
        let header = wire[..header_bytes].to_vec();
        let size = format!("{header_bytes}B");
        group.bench_function(BenchmarkId::new("wsgate", &size), |bencher| {
            bencher.iter(|| ClientFrameHeader::decode(black_box(&header), false));
        });
        group.bench_function(BenchmarkId::new("tungstenite", &size), |bencher| {
            bencher.iter(|| FrameHeader::parse(&mut Cursor::new(black_box(&header))));
        });
    }
    group.finish();
}

fn decode(criterion: &mut Criterion) {
    for (name, opcode, payload) in [
        ("decode_binary", Opcode::Binary, binary as fn(usize) -> Vec<u8>),
        ("decode_text", Opcode::Text, ascii),
    ] {
        let mut group = criterion.benchmark_group(name);
        for payload_bytes in PAYLOAD_BYTES {
            let wire = client_frame(opcode, &payload(payload_bytes));
            let input = Input { read_bytes: wire.len(), wire, messages: 1, payload_bytes };
            compare_decoding(&mut group, &size(payload_bytes), &input);
        }
        group.finish();
    }
}

fn decode_in_pieces(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode_in_pieces");
    for payload_bytes in PAYLOAD_BYTES {
        let wire = client_frame(Opcode::Text, &ascii(payload_bytes));
        let input = Input { read_bytes: wire.len().div_ceil(4), wire, messages: 1, payload_bytes };
        compare_decoding(&mut group, &format!("{}_in_4", size(payload_bytes)), &input);
    }
    let payload_bytes = MAX_MESSAGE_BYTES;
    let wire = client_frame(Opcode::Text, &ascii(payload_bytes));
    let input = Input { read_bytes: SEGMENT_BYTES, wire, messages: 1, payload_bytes };
    compare_decoding(&mut group, &format!("{}_in_segments", size(payload_bytes)), &input);
    group.finish();
}

fn decode_batch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode_batch");
    let (messages, payload_bytes) = (16, 64);
    let wire = client_frame(Opcode::Text, &ascii(payload_bytes)).repeat(messages);
    let input = Input { read_bytes: wire.len(), wire, messages, payload_bytes };
    compare_decoding(&mut group, "16x64B", &input);
    group.finish();
}

/// What a client sends in one iteration.
struct Input {
    wire: Vec<u8>,
    /// What one read brings at most.
    read_bytes: usize,
    /// How many messages `wire` holds.
    messages: usize,
    /// Length of each.
    payload_bytes: usize,
}

fn compare_decoding(group: &mut BenchmarkGroup<'_, WallTime>, id: &str, input: &Input) {
    let all_payload_bytes = input.messages * input.payload_bytes;
    group.throughput(Throughput::Bytes(all_payload_bytes as u64));
    let mut gateway = Gateway::new(input);
    measure(group, "wsgate", id, all_payload_bytes, || {
        gateway.receive(|_, frame, payload_bytes| _ = black_box(&frame[..payload_bytes]))
    });
    let mut fast = Fast::new(input);
    measure(group, "fastwebsockets", id, all_payload_bytes, || fast.receive());
    let mut tungstenite = Tungstenite::new(input);
    measure(group, "tungstenite", id, all_payload_bytes, || tungstenite.receive());
}

/// Bytes to bytes. The sink takes whole slices and looks at nothing: what a write to the kernel
/// would copy is the same for all.
fn echo(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("echo");
    for payload_bytes in PAYLOAD_BYTES {
        let wire = client_frame(Opcode::Binary, &binary(payload_bytes));
        let input = Input { read_bytes: wire.len(), wire, messages: 1, payload_bytes };
        let id = size(payload_bytes);
        let answer_bytes = frame::header_bytes(payload_bytes) + payload_bytes;
        group.throughput(Throughput::Bytes(payload_bytes as u64));
        let mut gateway = Gateway::new(&input);
        measure(&mut group, "wsgate", &id, answer_bytes, || gateway.echo());
        let mut fast = Fast::new(&input);
        measure(&mut group, "fastwebsockets", &id, answer_bytes, || fast.echo());
        let mut tungstenite = Tungstenite::new(&input);
        measure(&mut group, "tungstenite", &id, answer_bytes, || tungstenite.echo());
    }
    group.finish();
}

/// A server frame out of a payload, into a buffer that is used again; `wsgate_shared` is what a
/// publication needs: a frame of its own that many queues can hold.
fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    for payload_bytes in PAYLOAD_BYTES {
        let payload = half_a_page_off(&binary(payload_bytes));
        let id = size(payload_bytes);
        let frame_bytes = frame::header_bytes(payload_bytes) + payload_bytes;
        group.throughput(Throughput::Bytes(payload_bytes as u64));
        let mut output = Vec::with_capacity(2 * frame_bytes);
        measure(&mut group, "wsgate", &id, frame_bytes, || {
            output.clear();
            frame::append(&mut output, Opcode::Binary, black_box(&payload));
            black_box(&output[..]).len()
        });
        measure(&mut group, "wsgate_shared", &id, frame_bytes, || {
            black_box(frame::encode(Opcode::Binary, black_box(&payload))).len()
        });
        let mut output = Vec::with_capacity(2 * frame_bytes);
        measure(&mut group, "fastwebsockets", &id, frame_bytes, || {
            let payload = Payload::Borrowed(black_box(&payload));
            let mut frame = Frame::new(true, OpCode::Binary, None, payload);
            black_box(frame.write(&mut output)).len()
        });
        // The header and payload are written one after the other, and the payload is counted in and
        // out: tungstenite's frame owns a `Bytes`.
        let mut output = Vec::with_capacity(2 * frame_bytes);
        measure(&mut group, "tungstenite", &id, frame_bytes, || {
            output.clear();
            let opcode = TungsteniteOpcode::Data(Data::Binary);
            let frame = TungsteniteFrame::message(black_box(&payload).clone(), opcode, true);
            frame.format(&mut output).expect("a Vec takes everything");
            black_box(&output[..]).len()
        });
    }
    group.finish();
}

/// In place, over and over: unmasking twice gives the first bytes again. The gateway uses the
/// function of fastwebsockets, whose source names tungstenite's (which is private) as its model, so
/// the rival is the loop of RFC 6455 section 5.3.
fn unmask(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("unmask");
    for payload_bytes in PAYLOAD_BYTES {
        let id = size(payload_bytes);
        group.throughput(Throughput::Bytes(payload_bytes as u64));
        // A payload begins anywhere; two bytes off a word is as good as any.
        for (name, offset) in [("fastwebsockets", 0), ("fastwebsockets_unaligned", 2)] {
            let mut space = vec![0; offset + payload_bytes];
            measure(&mut group, name, &id, payload_bytes, || {
                fastwebsockets::unmask(black_box(&mut space[offset..]), black_box(MASKING_KEY));
                black_box(&space[offset..]).len()
            });
        }
        let mut space = vec![0; payload_bytes];
        measure(&mut group, "byte_by_byte", &id, payload_bytes, || {
            let masking_key = black_box(MASKING_KEY);
            for (at, byte) in black_box(&mut space[..]).iter_mut().enumerate() {
                *byte ^= masking_key[at % 4];
            }
            black_box(&space[..]).len()
        });
    }
    group.finish();
}

/// `wsgate` is the check of a message that came in one frame, `wsgate_in_segments` that of one which
/// is still arriving.
fn utf8(criterion: &mut Criterion) {
    for (name, text) in [("utf8_ascii", ascii as fn(usize) -> Vec<u8>), ("utf8_mixed", mixed)] {
        let mut group = criterion.benchmark_group(name);
        for payload_bytes in PAYLOAD_BYTES {
            let text = Bytes::from(text(payload_bytes));
            let id = size(payload_bytes);
            group.throughput(Throughput::Bytes(text.len() as u64));
            group.bench_function(BenchmarkId::new("wsgate", &id), |bencher| {
                bencher.iter(|| simdutf8::basic::from_utf8(black_box(&text)).expect("UTF-8").len());
            });
            group.bench_function(BenchmarkId::new("wsgate_in_segments", &id), |bencher| {
                bencher.iter(|| {
                    let mut validator = Utf8Validator::default();
                    for segment in black_box(&text).chunks(SEGMENT_BYTES) {
                        validator.push(segment).expect("UTF-8");
                    }
                    assert!(validator.is_complete());
                });
            });
            group.bench_function(BenchmarkId::new("fastwebsockets", &id), |bencher| {
                bencher
                    .iter(|| assert!(Frame::text(Payload::Borrowed(black_box(&text))).is_utf8()));
            });
            group.bench_function(BenchmarkId::new("tungstenite", &id), |bencher| {
                bencher
                    .iter(|| Utf8Bytes::try_from(black_box(&text).clone()).expect("UTF-8").len());
            });
        }
        group.finish();
    }
}

/// Measures `contestant`, which returns how many bytes came out of it: a wrong number ends the bench
/// before it has told a story.
fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    id: &str,
    expected_bytes: usize,
    mut contestant: impl FnMut() -> usize,
) {
    // More than once, since what one iteration leaves behind is the next one's start.
    for _ in 0..3 {
        assert_eq!(contestant(), expected_bytes, "{name} {id}");
    }
    group.bench_function(BenchmarkId::new(name, id), |bencher| bencher.iter(&mut contestant));
}

/// The gateway's read path: a read into the shared buffer, then one event after the other.
struct Gateway {
    stream: Stream,
    buffer: Vec<u8>,
    decoder: Decoder,
}

impl Gateway {
    fn new(input: &Input) -> Self {
        let buffer = vec![0; MAX_KEPT_BYTES + input.wire.len()];
        Self { stream: Stream::new(input), buffer, decoder: Decoder::default() }
    }

    /// Receives what is sent once, and shows each message as a server frame with the length of its
    /// payload. Returns the sum of those lengths.
    fn receive(&mut self, mut handle: impl FnMut(&Stream, &[u8], usize)) -> usize {
        let mut all_payload_bytes = 0;
        loop {
            let mut at = MAX_KEPT_BYTES - self.decoder.kept_bytes();
            self.decoder.restore(&mut self.buffer[at..MAX_KEPT_BYTES]);
            let read_bytes =
                self.stream.read(&mut self.buffer[MAX_KEPT_BYTES..]).expect("memory does not fail");
            let end = MAX_KEPT_BYTES + read_bytes;
            loop {
                let input = &mut self.buffer[at..end];
                let decoded = self.decoder.decode(input, RULES).expect("good frames");
                at += decoded.consumed;
                match decoded.event {
                    None => break,
                    Some(Event::Message { payload_bytes, frame, .. }) => {
                        all_payload_bytes += payload_bytes;
                        let frame = match &frame {
                            ServerFrame::InPlace(range) => &input[range.clone()],
                            ServerFrame::Gathered(frame) => frame,
                        };
                        handle(&self.stream, black_box(frame), payload_bytes);
                    }
                    Some(_) => unreachable!("only data messages are sent"),
                }
            }
            self.decoder.keep(&self.buffer[at..end]);
            if self.stream.is_at_start() {
                return all_payload_bytes;
            }
        }
    }

    fn echo(&mut self) -> usize {
        self.receive(|stream, frame, _| stream.put(frame));
        self.stream.written_bytes.take()
    }
}

struct Fast {
    socket: fastwebsockets::WebSocket<Stream>,
    messages: usize,
    /// What the stream counts: the socket lends it to nobody.
    written_bytes: Rc<Cell<usize>>,
}

impl Fast {
    fn new(input: &Input) -> Self {
        let stream = Stream::new(input);
        let written_bytes = Rc::clone(&stream.written_bytes);
        let role = fastwebsockets::Role::Server;
        let mut socket = fastwebsockets::WebSocket::after_handshake(stream, role);
        // A message of exactly its limit is one too large for it.
        socket.set_max_message_size(MAX_MESSAGE_BYTES + 1);
        Self { socket, messages: input.messages, written_bytes }
    }

    fn receive(&mut self) -> usize {
        let messages = 0..self.messages;
        messages
            .map(|_| {
                let frame = ready(self.socket.read_frame()).expect("good frames");
                black_box(&frame.payload[..]).len()
            })
            .sum()
    }

    fn echo(&mut self) -> usize {
        let frame = ready(self.socket.read_frame()).expect("good frames");
        // A frame that was read remembers its masking key and would be written with it.
        let answer = Frame::new(frame.fin, frame.opcode, None, frame.payload);
        ready(self.socket.write_frame(answer)).expect("a sink takes everything");
        self.written_bytes.take()
    }
}

struct Tungstenite {
    socket: tungstenite::WebSocket<Stream>,
    messages: usize,
}

impl Tungstenite {
    fn new(input: &Input) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(8 << 10)
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let role = tungstenite::protocol::Role::Server;
        let stream = Stream::new(input);
        let socket = tungstenite::WebSocket::from_raw_socket(stream, role, Some(config));
        Self { socket, messages: input.messages }
    }

    fn receive(&mut self) -> usize {
        let messages = 0..self.messages;
        messages.map(|_| black_box(self.socket.read().expect("good frames")).len()).sum()
    }

    fn echo(&mut self) -> usize {
        let message = self.socket.read().expect("good frames");
        self.socket.send(message).expect("a sink takes everything");
        self.socket.get_ref().written_bytes.take()
    }
}

/// A peer in memory: sends the same bytes again and again, and takes whatever is written.
struct Stream {
    wire: Bytes,
    at: usize,
    read_bytes: usize,
    written_bytes: Rc<Cell<usize>>,
}

impl Stream {
    fn new(input: &Input) -> Self {
        let wire = half_a_page_off(&input.wire);
        Self { wire, at: 0, read_bytes: input.read_bytes, written_bytes: Rc::default() }
    }

    /// What one read brings into `room` bytes: never beyond the end of what is sent in one iteration.
    fn take(&mut self, room: usize) -> &[u8] {
        let end = self.wire.len().min(self.at + room.min(self.read_bytes));
        let start = std::mem::replace(&mut self.at, if end == self.wire.len() { 0 } else { end });
        &self.wire[start..end]
    }

    fn is_at_start(&self) -> bool {
        self.at == 0
    }

    fn put(&self, written: &[u8]) {
        self.written_bytes.update(|sum| sum + black_box(written).len());
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let taken = self.take(buffer.len());
        buffer[..taken.len()].copy_from_slice(taken);
        Ok(taken.len())
    }
}

impl Write for Stream {
    fn write(&mut self, written: &[u8]) -> io::Result<usize> {
        self.put(written);
        Ok(written.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = buffer.remaining();
        buffer.put_slice(self.get_mut().take(room));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        written: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.put(written);
        Poll::Ready(Ok(written.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        slices.iter().for_each(|slice| self.put(slice));
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Runs a future that never waits.
fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("memory is always ready"),
    }
}

/// One masked frame, by the book.
fn client_frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    frame::append(&mut wire, opcode, payload);
    let header_bytes = wire.len() - payload.len();
    wire[1] |= 0x80;
    wire.splice(header_bytes..header_bytes, MASKING_KEY);
    for (at, byte) in wire[header_bytes + 4..].iter_mut().enumerate() {
        *byte ^= MASKING_KEY[at % 4];
    }
    wire
}

/// A copy of `bytes` that starts about half a page away from where an allocator lets a large buffer
/// start. Copies of 16 KiB from one such start to a few bytes behind another took thirty times as
/// long (9.1 µs instead of 0.3; most likely loads and stores that are 4 KiB apart are taken for one
/// another), and which contestant was hit was luck.
fn half_a_page_off(bytes: &[u8]) -> Bytes {
    const HALF_A_PAGE: usize = 2 << 10;
    let mut space = vec![0; HALF_A_PAGE];
    space.extend_from_slice(bytes);
    Bytes::from(space).slice(HALF_A_PAGE..)
}

fn binary(payload_bytes: usize) -> Vec<u8> {
    (0..payload_bytes).map(|at| (at * 31) as u8).collect()
}

fn ascii(payload_bytes: usize) -> Vec<u8> {
    br#"{"channel":"news","data":"hello"},"#.iter().copied().cycle().take(payload_bytes).collect()
}

/// Characters of every length, none cut: up to three bytes less than asked for.
fn mixed(max_payload_bytes: usize) -> Vec<u8> {
    let text = "Grüße aus 東京 и Москвы 🎉, ".repeat(max_payload_bytes / 16 + 1);
    text[..text.floor_char_boundary(max_payload_bytes)].into()
}

/// `64B`, `16KiB`.
fn size(bytes: usize) -> String {
    if bytes < 1 << 10 { format!("{bytes}B") } else { format!("{}KiB", bytes >> 10) }
}
