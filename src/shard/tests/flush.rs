//! What one flush writes: a shard on the test's own thread, with real sockets, where the test is the
//! one that flushes.

use std::collections::VecDeque;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::*;
use crate::hub::Group;
use crate::pubsub::{Batch, ChannelName};
use crate::telemetry::counters::TEXT;

/// A shard with everything but the task that flushes.
pub(super) struct Still {
    pub(super) shard: Rc<Shard>,
    listener: TcpListener,
    pub(super) entrance: Entrance,
}

/// One connection: the shard's side of it and the client's.
pub(super) struct Peer<S = TcpStream> {
    pub(super) client: Rc<Client>,
    pub(super) socket: S,
}

/// A data message with its channel and number, as long as it is asked to be.
pub(super) fn text(label: &str, length: usize) -> Bytes {
    frame::encode(Opcode::Text, format!("{label:.<length$}").as_bytes())
}

impl Still {
    pub(super) async fn new(change: impl FnOnce(&mut Settings)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut settings = settings();
        change(&mut settings);
        let bounds = Bounds { entries: settings.mailbox_entries, bytes: settings.mailbox_bytes };
        let (mut seats, _) = memory::connect(1, bounds);
        let counters: Arc<Counters> = Arc::default();
        let shard = Shard::new(
            ShardId::new(0),
            GatewayId::new(7),
            Arc::new(settings),
            MemoryBroker::new(seats.remove(0), Arc::clone(&counters)),
            Arc::from([Handle::new().0]),
            Arc::new(Loads::new(1, 10_000)),
            counters,
        );
        Self { shard: Rc::new(shard), listener, entrance: Entrance::default() }
    }

    async fn connect(&self, path: &str) -> Peer {
        self.connect_with_buffers(path, 1 << 20).await
    }

    /// A connection of which the kernel takes about `bytes` when the client does not read.
    async fn connect_with_buffers(&self, path: &str, bytes: u32) -> Peer {
        let socket = self.begin_with_buffers(bytes).await;
        self.upgrade(socket, path).await
    }

    /// The client's side of a socket that is served.
    pub(super) async fn begin_with_buffers(&self, bytes: u32) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(bytes).unwrap();
        let socket = socket.connect(self.listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = self.listener.accept().await.unwrap();
        socket2::SockRef::from(&accepted).set_send_buffer_size(bytes as usize).unwrap();
        assert!(self.shard.loads.try_enter());
        self.shard.loads.place(self.shard.id);
        handshake::begin(&self.shard, accepted, self.entrance.clone(), Instant::now(), None);
        socket
    }

    /// The connection that comes of a handshake over `socket`.
    pub(super) async fn upgrade<S>(&self, socket: S, path: &str) -> Peer<S>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.upgrade_with(socket, path, "").await
    }

    /// As [`Still::upgrade`], with these headers besides, each with its end.
    pub(super) async fn upgrade_with<S>(&self, mut socket: S, path: &str, headers: &str) -> Peer<S>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: shard\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "));
        let newest = self.shard.table.borrow().clients().last().cloned();
        Peer { client: newest.expect("it was answered"), socket }
    }

    /// Publishes as the API does.
    pub(super) fn publish(&self, channel: &str, frame: Bytes) {
        let batch = Arc::new(Batch::single(frame, Instant::now()));
        let (name, hub) = (ChannelName::new(channel).unwrap(), self.shard.hub.borrow());
        self.shard.started_turn().publish_batch(name, self.shard.id, &hub, batch);
    }

    /// Adds what a home on another shard would have sent.
    fn deliver(&self, channel: &str, frame: Bytes) {
        let batch = Arc::new(Batch::single(frame, Instant::now()));
        let key = self.shard.hub.borrow().find(&ChannelName::new(channel).unwrap());
        self.shard.started_turn().deliver_batch(key.expect("somebody is subscribed"), batch);
    }

    /// What was delivered and not dropped.
    fn kept(&self) -> u64 {
        let counters = &self.shard.counters;
        let dropped: u64 = (0..3).map(|policy| counters.dropped_messages[policy].value()).sum();
        counters.deliveries.value() - dropped
    }
}

impl<S: AsyncRead + Unpin> Peer<S> {
    /// Demands that exactly these frames arrive, one behind the other.
    pub(super) async fn expect(&mut self, frames: &[&Bytes]) {
        let expected: Vec<u8> = frames.iter().flat_map(|frame| frame.to_vec()).collect();
        let mut got = vec![0; expected.len()];
        self.socket.read_exact(&mut got).await.unwrap();
        assert!(got == expected, "{:?}", String::from_utf8_lossy(&got));
    }
}

impl Peer {
    fn expect_nothing_more(&self) {
        let nothing = self.socket.try_read(&mut [0]);
        assert_eq!(nothing.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}

pub(super) fn run(test: impl AsyncFnOnce()) {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let test = async { tokio::time::timeout(PATIENCE, test()).await.expect("it does not end") };
    runtime.unwrap().block_on(test);
}

#[test]
fn subscriber_of_several_active_channels_gets_one_write() {
    run(async || {
        let still = Still::new(|_| {}).await;
        let mut one = still.connect("/channels/a").await;
        let mut several = still.connect("/channels/a?also=b&also=c&also=quiet").await;
        let [a1, a2, b, c] = ["a1", "a2", "b", "c"].map(|label| text(label, 9));
        still.publish("b", b.clone());
        still.publish("a", a1.clone());
        still.deliver("c", c.clone());
        still.publish("a", a2.clone());
        assert_eq!(still.shard.flush_turn(), 2, "one write for each of them");
        several.expect(&[&b, &a1, &a2, &c]).await;
        one.expect(&[&a1, &a2]).await;

        // With one active channel there is nothing to be gathered, and nothing left of before.
        still.publish("c", c.clone());
        assert_eq!(still.shard.flush_turn(), 1);
        several.expect(&[&c]).await;
        assert_eq!(still.shard.flush_turn(), 0, "nothing comes twice");
        several.expect_nothing_more();
        let counters = &still.shard.counters;
        assert_eq!((counters.deliveries.value(), counters.messages_sent[TEXT].value()), (7, 7));
        assert_eq!(counters.sent_bytes.value(), 7 * 11);
        let lags = counters.delivery_lag.snapshot();
        let observed: u64 = lags.since(&Default::default()).map(|(count, _)| count).sum();
        assert_eq!(observed, 4, "one for each batch");
    });
}

#[test]
fn more_slices_than_one_call_takes_are_written_in_as_few_as_possible() {
    const CHANNELS: usize = 1_500;
    run(async || {
        let still = Still::new(|_| {}).await;
        let mut several = still.connect("/channels/main?also=other").await;
        let names: Vec<String> = (0..CHANNELS).map(|number| format!("{number:04}")).collect();
        let slot = several.client.id.slot;
        let mut keys = Vec::new();
        for name in &names {
            let name = ChannelName::new(name).unwrap();
            let subscribed =
                still.shard.hub.borrow_mut().subscribe(slot, &name, Group::SeveralPlain);
            keys.push(subscribed.key);
        }
        let frames: Vec<Bytes> = names.iter().map(|name| text(name, 10)).collect();
        for (name, frame) in names.iter().zip(&frames) {
            still.deliver(name, frame.clone());
        }
        assert_eq!(still.shard.flush_turn(), 2);
        several.expect(&frames.iter().collect::<Vec<_>>()).await;
        keys.into_iter().for_each(|key| _ = still.shard.hub.borrow_mut().unsubscribe(key));
    });
}

#[test]
fn batch_of_several_segments_is_one_write_for_whoever_gets_it() {
    run(async || {
        let still = Still::new(|_| {}).await;
        let mut one = still.connect("/channels/a").await;
        let mut several = still.connect("/channels/a?also=b").await;
        let frames = [text("small", 9), text("large", 20_000), text("last", 9), text("b", 30_000)];
        frames[..3].iter().for_each(|frame| still.publish("a", frame.clone()));
        still.publish("b", frames[3].clone());
        assert_eq!(still.shard.flush_turn(), 2);
        one.expect(&frames[..3].iter().collect::<Vec<_>>()).await;
        several.expect(&frames.iter().collect::<Vec<_>>()).await;
    });
}

#[test]
fn publisher_that_wants_none_of_its_own_hears_all_its_channels_else() {
    run(async || {
        let still = Still::new(|_| {}).await;
        let mut quiet = still.connect("/channels/a?also=b&own=false").await;
        let mut other = still.connect("/channels/b?also=a").await;
        let [own, others, b] = ["own", "others", "b"].map(|label| text(label, 9));
        let (shard, now) = (&still.shard, Instant::now());
        let grant = quiet.client.publish_grant.get().expect("everybody may publish");
        shard.publish(&quiet.client, grant, false, Frame::Borrowed(&own), now);
        assert_eq!(shard.flush_turn(), 1, "nothing is left of it for the publisher");
        other.expect(&[&own]).await;

        shard.publish(&quiet.client, grant, false, Frame::Borrowed(&own), now);
        shard.publish(&other.client, grant, true, Frame::Borrowed(&b), now);
        still.publish("a", others.clone());
        assert_eq!(shard.flush_turn(), 2);
        quiet.expect(&[&others, &b]).await;
        other.expect(&[&own, &others, &b]).await;
        assert_eq!(shard.counters.deliveries.value(), 6);
    });
}

#[test]
fn slow_consumer_of_several_channels_loses_exactly_what_is_counted() {
    const MESSAGE_BYTES: usize = 1_000;
    for policy in
        [SlowConsumerPolicy::Close, SlowConsumerPolicy::DropOldest, SlowConsumerPolicy::DropNewest]
    {
        run(async || {
            let still = Still::new(|settings| {
                settings.slow_consumer = policy;
                settings.outbound_queue_bytes = 70_000;
            })
            .await;
            let mut slow = still.connect_with_buffers("/channels/a?also=b&also=c", 4_096).await;
            let counters = &still.shard.counters;
            let dropped = || counters.dropped_messages[policy as usize].value();
            let mut round = 0_u64;
            let mut rounds_after_a_drop = 0;
            while rounds_after_a_drop < 3 {
                for channel in ["a", "b", "c", "a"] {
                    still.publish(channel, text(&format!("{channel}{round:05}"), MESSAGE_BYTES));
                    round += 1;
                }
                assert!(still.shard.flush_turn() <= 1);
                rounds_after_a_drop += usize::from(dropped() > 0);
            }
            let is_closed = policy == SlowConsumerPolicy::Close;
            // What is published to a closed connection is not handed to it.
            assert_eq!(counters.deliveries.value() < round, is_closed);
            assert!(counters.outbound_queue_bytes.value() <= 70_000);

            let kept = still.kept() as usize;
            let mut latest = std::collections::HashMap::new();
            for _ in 0..kept {
                let mut message = [0; 4 + MESSAGE_BYTES];
                slow.socket.read_exact(&mut message).await.unwrap();
                assert_eq!(message[..4], [0x81, 126, 3, 232]);
                let number = std::str::from_utf8(&message[5..10]).unwrap().parse::<u64>().unwrap();
                let before = latest.insert(message[4], number);
                assert!(before.is_none_or(|before| before < number), "in its channel's order");
            }
            if is_closed {
                let close = frame::encode_close(Some(CloseCode::POLICY_VIOLATION), "slow consumer");
                slow.expect(&[&close]).await;
            }
            slow.expect_nothing_more();
            assert_eq!(counters.outbound_queue_bytes.value(), 0);
        });
    }
}

#[test]
fn panic_in_writing_to_one_subscriber_keeps_nothing_from_the_others() {
    run(async || {
        let still = Still::new(|_| {}).await;
        let mut peers = VecDeque::new();
        for path in ["/channels/a", "/channels/a", "/channels/a", "/channels/a?also=b"] {
            peers.push_back(still.connect(path).await);
        }
        for victim in [0, 1, 3] {
            let frame = text("x", 9);
            still.publish("a", frame.clone());
            still.publish("b", frame.clone());
            // Whoever touches what is held panics, and one that cannot be written to at once has to be.
            let client = &peers[victim].client;
            still.shard.table.borrow().set_direct(client, false);
            let held = client.hold(&still.shard);
            still.shard.flush_turn();
            drop(held);
            for (index, peer) in peers.iter_mut().enumerate().filter(|(index, _)| *index != victim)
            {
                let count = if index == 3 { 2 } else { 1 };
                peer.expect(&vec![&frame; count]).await;
                peer.expect_nothing_more();
            }
        }
        assert_eq!(still.shard.counters.panics.value(), 3);
    });
}

#[test]
fn subscriptions_end_with_their_connection_all_of_them() {
    run(async || {
        let still = Still::new(|_| {}).await;
        let counters = &still.shard.counters;
        let several = still.connect("/channels/a?also=b&also=c&also=a").await;
        let one = still.connect("/channels/a").await;
        let gauges = || (counters.subscriptions.value(), counters.channels.value());
        assert_eq!(gauges(), (4, 3));
        drop(several.socket);
        while gauges() != (1, 1) {
            tokio::task::yield_now().await;
        }
        drop(one.socket);
        while gauges() != (0, 0) {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn client_fits_into_224_bytes_which_is_a_size_of_the_allocator() {
    let counts_of_the_rc = 2 * size_of::<usize>();
    assert!(size_of::<Client>() + counts_of_the_rc <= 224, "{}", size_of::<Client>());
}
