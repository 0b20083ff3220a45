//! What does it cost to get a publication to its subscribers, and what does that grow with?
//!
//! - `shard`: a real shard with real sockets: CPU of its thread for each delivery. With 1, 10 and 1,000
//!   subscribers; then with 10 of them beside channels and connections that the publication does not
//!   concern; then JSON of 1 KiB for 1,000, as it is and deflated for those who asked for that.
//! - `hub`, `directory`: the tables in its way, with 1, 1,000 and 100,000 channels.
//! - `mailbox`: a lane from one shard to another, on one thread and between two.
//! - `batch`, `outbound_queue`: the parts at both of its ends.
//!
//! One publication is on its way at a time in `shard`, so nothing is batched and each delivery is one
//! system call: the most that a delivery can cost. A thread reads the subscribers' sockets; neither
//! its time nor the publisher's counts, only the CPU that the kernel says the shard's thread has used.
//!
//! `cargo bench --bench fan_out -- hub` runs one group, `-- --test` each bench once.

use std::fs;
use std::future::poll_fn;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput};
use nix::unistd::gettid;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::oneshot;
use wsgate::auth::access::Access;
use wsgate::auth::origin::AllowedOrigins;
use wsgate::broker::directory::Directory;
use wsgate::broker::lane::{self, Weigh};
use wsgate::broker::memory::{self, Bounds};
use wsgate::connection::outbound::{Limit, OutboundQueue, SlowConsumerPolicy};
use wsgate::hub::{Group, Hub};
use wsgate::pubsub::{BatchBuilder, ChannelName, ConnectionId, GatewayId, ShardId};
use wsgate::shard::orders::{Handle, Order};
use wsgate::shard::settings::{Admission, Compression, CompressionMode, Settings};
use wsgate::shard::{Entrance, Listener, ListeningSocket, Loads, Seed};
use wsgate::telemetry::counters::Counters;
use wsgate::wire::deflate::Deflater;
use wsgate::wire::extensions::WindowBits;
use wsgate::wire::frame::{self, MessageKind};
use wsgate::wire::header::Opcode;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PAYLOAD_BYTES: usize = 64;

/// A header by which a client asks for deflated messages.
const PERMESSAGE_DEFLATE: &str = "Sec-WebSocket-Extensions: permessage-deflate\r\n";

/// How many channels there are, whatever a publication concerns.
const CHANNELS: [usize; 3] = [1, 1_000, 100_000];

/// Channels of one connection where there are more of them than sockets.
const CHANNELS_PER_CONNECTION: usize = 100;

/// What is waited for comes within this time, or never.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1_000))
        .sample_size(20)
        .nresamples(2_000)
        .configure_from_args();
    batch(&mut criterion);
    hub(&mut criterion);
    directory(&mut criterion);
    mailbox(&mut criterion);
    outbound_queue(&mut criterion);
    shard(&mut criterion);
    criterion.final_summary();
}

fn name(number: usize) -> ChannelName {
    ChannelName::new(&format!("channel:{number}")).expect("a good name")
}

fn names(count: usize) -> Vec<ChannelName> {
    (0..count).map(name).collect()
}

/// The numbers below `count`, in an order in which no cache line is used twice in a row.
fn strides(count: usize) -> impl Iterator<Item = usize> {
    const PRIME: usize = 7_919;
    (0..).map(move |step: usize| step.wrapping_mul(PRIME) % count)
}

// Parts.

/// Collecting what one turn publishes to one channel.
fn batch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batch");
    let frame = frame::encode(Opcode::Text, &[b'x'; PAYLOAD_BYTES]);
    let now = Instant::now();
    let publisher = ConnectionId { shard: ShardId::new(0), slot: 1, generation: 0 };
    for frames in [1, 16] {
        for (label, excluded) in [("own", None), ("not_own", Some(publisher))] {
            group.throughput(Throughput::Elements(frames));
            group.bench_function(BenchmarkId::new(label, frames), |bencher| {
                bencher.iter(|| {
                    let mut builder = BatchBuilder::new(now);
                    for _ in 0..frames {
                        builder.push_borrowed(black_box(&frame), excluded);
                    }
                    builder.finish()
                });
            });
        }
    }
    group.finish();
}

/// One channel of many: finding its ten subscribers, joining it, and being its first and last one.
fn hub(criterion: &mut Criterion) {
    const SUBSCRIBERS: u32 = 10;
    let mut group = criterion.benchmark_group("hub");
    for channels in CHANNELS {
        let names = names(channels);
        let mut hub = Hub::default();
        for name in &names {
            for slot in 0..SUBSCRIBERS {
                hub.subscribe(slot, name, Group::Plain);
            }
        }
        let mut next = strides(channels);
        let mut any = || &names[next.next().unwrap_or_default()];
        group.bench_function(BenchmarkId::new("find_10_subscribers", channels), |bencher| {
            bencher.iter(|| {
                let channel = hub.find(any()).expect("it is there");
                hub.subscribers(channel, Group::Plain).map(u64::from).sum::<u64>()
            });
        });
        group.bench_function(BenchmarkId::new("join_and_leave", channels), |bencher| {
            bencher.iter(|| {
                let subscribed = hub.subscribe(SUBSCRIBERS, any(), Group::Plain);
                hub.unsubscribe(subscribed.key)
            });
        });
        let new = ChannelName::new("new").expect("a good name");
        group.bench_function(BenchmarkId::new("first_and_last", channels), |bencher| {
            bencher.iter(|| {
                let subscribed = hub.subscribe(0, &new, Group::Plain);
                hub.unsubscribe(subscribed.key)
            });
        });
    }
    group.finish();
}

fn directory(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("directory");
    let [one, other] = [0, 1].map(ShardId::new);
    for channels in CHANNELS {
        let names = names(channels);
        let mut directory = Directory::default();
        names.iter().for_each(|name| directory.add(name, one));
        let mut next = strides(channels);
        let mut any = || &names[next.next().unwrap_or_default()];
        group.bench_function(BenchmarkId::new("lookup", channels), |bencher| {
            bencher.iter(|| directory.shards(any()).len());
        });
        group.bench_function(BenchmarkId::new("shard_comes_and_goes", channels), |bencher| {
            bencher.iter(|| {
                let name = any();
                directory.add(name, other);
                directory.remove(name, other);
            });
        });
        let new = ChannelName::new("new").expect("a good name");
        group.bench_function(BenchmarkId::new("channel_comes_and_goes", channels), |bencher| {
            bencher.iter(|| {
                directory.add(&new, one);
                directory.remove(&new, one);
            });
        });
    }
    group.finish();
}

/// What travels from shard to shard weighs as much as this.
struct Entry(Arc<[u8; PAYLOAD_BYTES]>);

impl Weigh for Entry {
    fn bytes(&self) -> usize {
        self.0.len() + 128
    }
}

/// The bounds are the gateway's defaults.
fn mailbox(criterion: &mut Criterion) {
    const ENTRIES: usize = 4_096;
    const BYTES: usize = 16 << 20;
    let mut group = criterion.benchmark_group("mailbox");
    let payload = Arc::new([b'x'; PAYLOAD_BYTES]);
    for burst in [1, 64] {
        let (sender, mut receiver) = lane::lane(ENTRIES, BYTES);
        let mut cx = Context::from_waker(Waker::noop());
        group.throughput(Throughput::Elements(burst));
        group.bench_function(BenchmarkId::new("one_thread", burst), |bencher| {
            bencher.iter(|| {
                for _ in 0..burst {
                    let sent = sender.try_send(Entry(Arc::clone(&payload)));
                    assert!(sent.is_ok(), "there is room");
                }
                let mut received = 0;
                while let Poll::Ready(Some(entry)) = receiver.poll_recv(&mut cx) {
                    black_box(entry);
                    received += 1;
                }
                received
            });
        });
    }
    group.throughput(Throughput::Elements(1));
    group.bench_function("two_threads", |bencher| {
        let (sender, mut receiver) = lane::lane(ENTRIES, BYTES);
        let received = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&received);
        let other = thread::spawn(move || {
            current_thread().block_on(async {
                while poll_fn(|cx| receiver.poll_recv(cx)).await.is_some() {
                    counter.fetch_add(1, Ordering::Release);
                }
            });
        });
        bencher.iter_custom(|iterations| {
            let goal = received.load(Ordering::Acquire) + iterations;
            let start = Instant::now();
            for _ in 0..iterations {
                let mut entry = Entry(Arc::clone(&payload));
                while let Err(back) = sender.try_send(entry) {
                    entry = back;
                    thread::yield_now();
                }
            }
            while received.load(Ordering::Acquire) < goal {
                thread::yield_now();
            }
            start.elapsed()
        });
        drop(sender);
        other.join().expect("the receiver ends with its senders");
    });
    // A full lane is asked for every publication that has to wait.
    let (sender, _receiver) = lane::lane(1, BYTES);
    assert!(sender.try_send(Entry(Arc::clone(&payload))).is_ok());
    group.bench_function("full", |bencher| {
        let mut entry = Some(Entry(Arc::clone(&payload)));
        bencher.iter(|| entry = sender.try_send(entry.take().expect("it came back")).err());
    });
    group.finish();
}

fn outbound_queue(criterion: &mut Criterion) {
    const QUEUE_BYTES: usize = 1 << 20;
    let mut group = criterion.benchmark_group("outbound_queue");
    let close = Limit { max_bytes: QUEUE_BYTES, policy: SlowConsumerPolicy::Close };
    group.throughput(Throughput::Elements(1));
    for (size, payload_bytes) in [("64B", PAYLOAD_BYTES), ("16KiB", 16 << 10)] {
        let frame = frame::encode(Opcode::Text, &vec![b'x'; payload_bytes]);
        // The queue is empty before and after.
        group.bench_function(BenchmarkId::new("push_and_advance", size), |bencher| {
            let mut queue = OutboundQueue::default();
            bencher.iter(|| {
                queue.push(black_box(&frame), &close);
                queue.advance(frame.len());
                queue.is_empty()
            });
        });
        // What fan-out does for a socket that took the first bytes.
        group.bench_function(BenchmarkId::new("push_rest_and_advance", size), |bencher| {
            let mut queue = OutboundQueue::default();
            bencher.iter(|| {
                queue.push_rest(black_box(&frame), 10, &close);
                queue.advance(frame.len() - 10);
                queue.is_empty()
            });
        });
        // Nothing is left to queue.
        group.bench_function(BenchmarkId::new("push_rest_of_nothing", size), |bencher| {
            let mut queue = OutboundQueue::default();
            bencher.iter(|| queue.push_rest(black_box(&frame), frame.len(), &close));
        });
        for (label, policy) in [
            ("overflow_close", SlowConsumerPolicy::Close),
            ("overflow_drop_oldest", SlowConsumerPolicy::DropOldest),
            ("overflow_drop_newest", SlowConsumerPolicy::DropNewest),
        ] {
            let limit = Limit { max_bytes: QUEUE_BYTES, policy };
            group.bench_function(BenchmarkId::new(label, size), |bencher| {
                let mut queue = full_queue(&frame, QUEUE_BYTES);
                bencher.iter(|| queue.push(black_box(&frame), &limit));
            });
        }
    }
    group.finish();
}

/// A queue with no room for another `frame`.
fn full_queue(frame: &Bytes, max_bytes: usize) -> OutboundQueue {
    let limit = Limit { max_bytes, policy: SlowConsumerPolicy::DropNewest };
    let mut queue = OutboundQueue::default();
    for _ in 0..max_bytes / frame.len() {
        queue.push(frame, &limit);
    }
    queue
}

fn current_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
}

// A whole shard.

fn shard(criterion: &mut Criterion) {
    raise_open_files_limit();
    let mut group = criterion.benchmark_group("shard");
    for subscribers in [1, 10, 1_000] {
        let mut scene = None;
        group.bench_function(BenchmarkId::new("subscribers", subscribers), |bencher| {
            let scene = scene.get_or_insert_with(|| Scene::open(subscribers, 0, 0));
            bencher.iter_custom(|publications| scene.cpu_of_one_delivery(publications));
        });
    }
    // Ten subscribers, beside connections with as many channels of their own.
    for (connections, channels) in [
        (1, 1),
        (1_000, 1),
        (3_000, 1),
        (10, CHANNELS_PER_CONNECTION),
        (1_000, CHANNELS_PER_CONNECTION),
    ] {
        let label = format!("{}_by_{connections}_connections", connections * channels);
        let mut scene = None;
        group.bench_function(
            BenchmarkId::new("10_subscribers_beside_channels", label),
            |bencher| {
                let scene = scene.get_or_insert_with(|| Scene::open(10, connections, channels));
                bencher.iter_custom(|publications| scene.cpu_of_one_delivery(publications));
            },
        );
    }
    for (label, offer) in [("plain", ""), ("deflated", PERMESSAGE_DEFLATE)] {
        let mut scene = None;
        group.bench_function(BenchmarkId::new("json_of_1_KiB_for_1000", label), |bencher| {
            let scene = scene.get_or_insert_with(|| Scene::with_json(1_000, offer));
            bencher.iter_custom(|publications| scene.cpu_of_one_delivery(publications));
        });
    }
    group.finish();
}

/// As many files as the kernel lets us have: each connection takes two.
fn raise_open_files_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("up to the maximum");
}

/// A shard, its subscribers, and those who have nothing to do with what is published.
struct Scene {
    shard: Shard,
    publisher: TcpStream,
    subscribers: usize,
    readers: Readers,
    /// What the publisher sends.
    message: Vec<u8>,
    /// What each subscriber gets of it.
    delivered_bytes: usize,
    /// Open for as long as the shard is.
    _bystanders: Vec<TcpStream>,
}

impl Scene {
    fn open(subscribers: usize, bystanders: usize, channels_each: usize) -> Self {
        let shard = Shard::start();
        let readers = (0..subscribers).map(|_| shard.connect("/channels/news")).collect();
        let bystanders: Vec<TcpStream> = (0..bystanders)
            .map(|bystander| {
                let mut path = format!("/channels/own:{bystander}");
                for more in 1..channels_each {
                    let mark = if more == 1 { '?' } else { '&' };
                    path += &format!("{mark}also=own:{bystander}:{more}");
                }
                shard.connect(&path)
            })
            .collect();
        let publisher = shard.connect("/channels/news?own=false");
        let expected = subscribers + bystanders.len() * channels_each + 1;
        until("all subscriptions", || shard.counters.subscriptions.value() == expected as u64);
        let readers = Readers::read(readers);
        Self {
            shard,
            publisher,
            subscribers,
            readers,
            message: client_frame(&[b'x'; PAYLOAD_BYTES]),
            delivered_bytes: PAYLOAD_BYTES + 2,
            _bystanders: bystanders,
        }
    }

    /// Subscribers that make this offer, and JSON.
    fn with_json(subscribers: usize, offer: &str) -> Self {
        let json = json();
        let mut delivered = frame::encode(Opcode::Text, &json).to_vec();
        if !offer.is_empty() {
            delivered.clear();
            Deflater::new(WindowBits::MAX).append_frame(
                &mut delivered,
                MessageKind::Text,
                &json,
                &[],
            );
        }
        let shard = Shard::start();
        let connect = |_| shard.connect_with("/channels/news", offer);
        let readers = Readers::read((0..subscribers).map(connect).collect());
        let publisher = shard.connect("/channels/news?own=false");
        Self {
            shard,
            publisher,
            subscribers,
            readers,
            message: client_frame(&json),
            delivered_bytes: delivered.len(),
            _bystanders: Vec::new(),
        }
    }

    /// Publishes so often, each time after everybody has read the one before. Returns the CPU that the
    /// shard took for each subscriber, times `publications`.
    fn cpu_of_one_delivery(&mut self, publications: u64) -> Duration {
        let delivered_bytes = (self.delivered_bytes * self.subscribers) as u64;
        let before = self.shard.cpu();
        for _ in 0..publications {
            let goal = self.readers.bytes.load(Ordering::Acquire) + delivered_bytes;
            self.publisher.write_all(&self.message).expect("the shard listens");
            until("every delivery", || self.readers.bytes.load(Ordering::Acquire) >= goal);
        }
        (self.shard.cpu() - before) / self.subscribers as u32
    }
}

/// A shard that serves on a thread of its own until this is dropped.
struct Shard {
    address: SocketAddr,
    handle: Handle,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    thread_id: i32,
}

impl Shard {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("sockets can be");
        let address = listener.local_addr().expect("it is bound");
        let settings = Settings {
            compression: Compression {
                mode: CompressionMode::Shared,
                min_bytes: 256,
                window: WindowBits::MAX,
                max_memory_bytes: 0,
            },
            max_message_bytes: 64 * 1024,
            ping_interval: Duration::ZERO,
            idle_timeout: Duration::from_secs(3_600),
            handshake_timeout: PATIENCE,
            close_timeout: Duration::from_secs(5),
            outbound_queue_bytes: 1 << 20,
            slow_consumer: SlowConsumerPolicy::Close,
            mailbox_entries: 4_096,
            mailbox_bytes: 16 << 20,
            max_channels_per_connection: CHANNELS_PER_CONNECTION,
            allowed_origins: AllowedOrigins::same_host(),
            access: Arc::new(Access::open()),
            admission: Admission::default(),
            console: false,
        };
        let bounds = Bounds { entries: settings.mailbox_entries, bytes: settings.mailbox_bytes };
        let (mut seats, _) = memory::connect(1, bounds);
        let (handle, orders) = Handle::new();
        let counters: Arc<Counters> = Arc::default();
        let seed = Seed {
            id: ShardId::new(0),
            gateway: GatewayId::new(7),
            settings: Arc::new(settings),
            listeners: vec![Listener {
                socket: ListeningSocket::Tcp(listener),
                entrance: Entrance::default(),
            }],
            seat: seats.remove(0),
            orders,
            shards: Arc::from([handle.clone()]),
            loads: Arc::new(Loads::new(1, 10_000)),
            counters: Arc::clone(&counters),
        };
        let (tell, told) = std::sync::mpsc::channel();
        let (started, _) = oneshot::channel();
        let thread = thread::spawn(move || {
            tell.send(gettid().as_raw()).expect("somebody waits for it");
            wsgate::shard::run(seed, started)
        });
        let thread_id = told.recv().expect("the thread runs");
        Self { address, handle, counters, thread: Some(thread), thread_id }
    }

    /// A connection, once its handshake is over.
    fn connect(&self, path: &str) -> TcpStream {
        self.connect_with(path, "")
    }

    /// The same with these headers more, each of them with its line end.
    fn connect_with(&self, path: &str, headers: &str) -> TcpStream {
        let mut socket = TcpStream::connect(self.address).expect("the shard listens");
        socket.set_nodelay(true).expect("TCP has this option");
        socket.set_read_timeout(Some(PATIENCE)).expect("sockets have one");
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: shard\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
        );
        socket.write_all(request.as_bytes()).expect("the shard listens");
        // Nothing follows the head: nobody publishes yet.
        let mut head = Vec::new();
        let mut part = [0; 1_024];
        while !head.ends_with(b"\r\n\r\n") {
            let bytes = socket.read(&mut part).expect("the shard answers");
            assert!(bytes > 0, "the shard let go");
            head.extend_from_slice(&part[..bytes]);
        }
        let head = String::from_utf8_lossy(&head);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        socket
    }

    /// What the shard's thread has used so far.
    fn cpu(&self) -> Duration {
        let path = format!("/proc/self/task/{}/schedstat", self.thread_id);
        let text = fs::read_to_string(path).expect("the thread runs");
        let nanoseconds = text.split(' ').next().and_then(|number| number.parse().ok());
        Duration::from_nanos(nanoseconds.expect("the first of three numbers"))
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        let (reply, drained) = oneshot::channel();
        let order = Order::Drain { duration: Duration::ZERO, reply };
        // A shard that is so busy that it takes no order ends with this process.
        if self.handle.try_order(order).is_ok()
            && drained.blocking_recv().is_ok()
            && self.handle.try_order(Order::End).is_ok()
            && let Some(thread) = self.thread.take()
        {
            _ = thread.join();
        }
    }
}

/// A thread that reads everything the subscribers are sent, and counts the bytes.
struct Readers {
    bytes: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Readers {
    fn read(mut sockets: Vec<TcpStream>) -> Self {
        let bytes = Arc::new(AtomicU64::new(0));
        let is_over = Arc::new(AtomicBool::new(false));
        let (counter, until) = (Arc::clone(&bytes), Arc::clone(&is_over));
        let thread = thread::spawn(move || {
            let events = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll instance");
            for (index, socket) in sockets.iter().enumerate() {
                let data = epoll::EventData::new_u64(index as u64);
                epoll::add(&events, socket, data, epoll::EventFlags::IN).expect("a socket");
            }
            let look = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            let mut ready = Vec::with_capacity(1_024);
            let mut buffer = vec![0; 64 << 10];
            while !until.load(Ordering::Relaxed) {
                ready.clear();
                epoll::wait(&events, spare_capacity(&mut ready), Some(&look)).expect("events");
                let mut read_bytes = 0;
                for event in &ready {
                    let socket = &mut sockets[event.data.u64() as usize];
                    read_bytes += socket.read(&mut buffer).expect("the shard is there");
                }
                counter.fetch_add(read_bytes as u64, Ordering::Release);
            }
        });
        Self { bytes, is_over, thread: Some(thread) }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

/// Waits for what another thread does, and leaves the core to it.
fn until(what: &str, is_there: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_there() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::yield_now();
    }
}

/// JSON of about 1 KiB, as a feed of prices has it.
fn json() -> Vec<u8> {
    let trade = |number: u64| {
        let price = number * 7_919 % 100_000;
        let symbol = ["ABC", "DEFG", "HI"][number as usize % 3];
        format!(
            "{{\"id\":{price},\"symbol\":\"{symbol}-USD\",\"price\":{price}.{number},\"side\":\"buy\"}}"
        )
    };
    let trades: Vec<String> = (1..17).map(trade).collect();
    format!("{{\"type\":\"trades\",\"items\":[{}]}}", trades.join(",")).into_bytes()
}

/// A masked text frame of a payload below 64 KiB.
fn client_frame(payload: &[u8]) -> Vec<u8> {
    const MASKING_KEY: [u8; 4] = [0x12, 0x34, 0x56, 0x78];
    let mut frame = vec![0x81];
    match payload.len() {
        length @ 0..=125 => frame.push(0x80 | length as u8),
        length => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
    }
    frame.extend(MASKING_KEY);
    frame.extend(payload.iter().zip(MASKING_KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}
