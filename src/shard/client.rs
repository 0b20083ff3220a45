//! One open connection: its socket beside its protocol state.

use std::cell::{Cell, RefCell};
use std::io;
use std::task::Waker;
use std::time::Instant;

use bytes::Bytes;
use tokio::net::TcpStream;

use crate::connection::outbound::{Limit, Pushed, SlowConsumerPolicy};
use crate::connection::{Connection, Ending};
use crate::hub::{ChannelKey, SubscriptionKey};
use crate::protocol::raw::Ask;
use crate::pubsub::{Batch, ConnectionId, ShardId};
use crate::shard::Shard;
use crate::telemetry::counters::{BINARY, SlowConsumer, TEXT};
use crate::wire::close::CloseCode;
use crate::wire::frame;

/// A channel, as one of its subscribers remembers it.
#[derive(Clone, Copy)]
pub(crate) struct Channel {
    pub(crate) key: ChannelKey,
    /// Where its publications go.
    pub(crate) home: ShardId,
}

/// One connection past its handshake. Its driver, the fan-out, the timers and the orders from other
/// threads all come to it here.
pub(crate) struct Client {
    pub(crate) id: ConnectionId,
    /// What its messages ask for.
    pub(crate) ask: Ask,
    /// The channel that it is subscribed to and publishes to.
    pub(crate) channel: Option<Channel>,
    /// Given back when the connection ends.
    pub(crate) subscription: Cell<Option<SubscriptionKey>>,
    pub(crate) socket: RefCell<TcpStream>,
    pub(crate) connection: RefCell<Connection>,
    /// Wakes the driver.
    pub(crate) waker: RefCell<Option<Waker>>,
    /// The tick of its one entry in the wheel that counts; 0 for none.
    pub(crate) timer_tick: Cell<u64>,
    /// It publishes to a congested channel and is on the shard's list to be woken.
    pub(crate) is_paused: Cell<bool>,
    /// The socket's sending side was shut down.
    pub(crate) is_shut: Cell<bool>,
}

/// What a client gets in answer to its own frames is bounded by not reading from it, never by a policy.
pub(crate) const UNLIMITED: Limit =
    Limit { max_bytes: usize::MAX, policy: SlowConsumerPolicy::Close };

impl Client {
    pub(crate) fn new(
        id: ConnectionId,
        ask: Ask,
        subscribed: Option<(Channel, SubscriptionKey)>,
        socket: TcpStream,
        now: Instant,
    ) -> Self {
        let (channel, subscription) = subscribed.unzip();
        Self {
            id,
            ask,
            channel,
            subscription: Cell::new(subscription),
            socket: RefCell::new(socket),
            connection: RefCell::new(Connection::new(now)),
            waker: RefCell::new(None),
            timer_tick: Cell::new(0),
            is_paused: Cell::new(false),
            is_shut: Cell::new(false),
        }
    }

    /// Lets the driver look at the connection again.
    pub(crate) fn wake_driver(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Writes what waits, as far as the socket takes it.
    pub(crate) fn write_waiting(&self, connection: &mut Connection, shard: &Shard) {
        let before = connection.outbound.bytes();
        while !connection.outbound.is_empty() {
            let written = self.socket.borrow().try_write_vectored(&connection.outbound.slices());
            match written {
                Ok(bytes) => {
                    shard.counters.sent_bytes.add(bytes as u64);
                    connection.outbound.advance(bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    connection.handle_disconnect();
                    break;
                }
            }
        }
        shard.counters.outbound_queue_bytes.moved(before, connection.outbound.bytes());
    }

    /// Sends whole frames that lie in a buffer which will be used again.
    #[inline]
    pub(crate) fn send_borrowed(&self, connection: &mut Connection, frames: &[u8], shard: &Shard) {
        let written = match self.write_first(connection, frames, shard) {
            Some(written) if written == frames.len() => return,
            Some(written) => written,
            None => return,
        };
        self.queue(connection, &Bytes::copy_from_slice(frames), written, shard);
    }

    /// Sends whole frames that have a buffer of their own.
    pub(crate) fn send(&self, connection: &mut Connection, frames: &Bytes, shard: &Shard) {
        if let Some(written) = self.write_first(connection, frames, shard)
            && written < frames.len()
        {
            self.queue(connection, frames, written, shard);
        }
    }

    /// Offers `frames` to the socket if nothing waits before them. Returns how many bytes it took, or
    /// `None` when the socket has failed.
    #[inline]
    fn write_first(
        &self,
        connection: &mut Connection,
        frames: &[u8],
        shard: &Shard,
    ) -> Option<usize> {
        if !connection.outbound.is_empty() {
            return Some(0);
        }
        let written = self.socket.borrow().try_write(frames);
        self.written(written, connection, shard)
    }

    #[inline]
    fn written(
        &self,
        written: io::Result<usize>,
        connection: &mut Connection,
        shard: &Shard,
    ) -> Option<usize> {
        match written {
            Ok(bytes) => {
                shard.counters.sent_bytes.add(bytes as u64);
                Some(bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(0),
            Err(_) => {
                connection.handle_disconnect();
                None
            }
        }
    }

    fn queue(&self, connection: &mut Connection, frames: &Bytes, written: usize, shard: &Shard) {
        let before = connection.outbound.bytes();
        if written > 0 {
            connection.outbound.push_rest(frames, written, &UNLIMITED);
        } else {
            connection.outbound.push(frames, &UNLIMITED);
        }
        shard.counters.outbound_queue_bytes.moved(before, connection.outbound.bytes());
    }

    /// Hands `batch` to this subscriber: into the socket where it takes all of it, else into the
    /// outbound queue, by the slow-consumer policy.
    #[inline]
    pub(crate) fn deliver(&self, batch: &Batch, shard: &Shard) {
        let mut connection = self.connection.borrow_mut();
        if !connection.is_open() {
            return;
        }
        let less_own;
        let (segments, count) = if batch.excludes(self.id) {
            less_own = batch.segments_for(self.id);
            (less_own.0.as_slice(), less_own.1)
        } else {
            (batch.segments(), batch.count())
        };
        let waited_before = !connection.outbound.is_empty();
        let written = match segments {
            [] => return,
            _ if waited_before => Some(0),
            [segment] => self.write_first(&mut connection, segment, shard),
            several => {
                // The kernel takes 1,024 slices at most; what it leaves is queued like any rest.
                let slices: Vec<_> =
                    several.iter().take(1_024).map(|segment| io::IoSlice::new(segment)).collect();
                let written = self.socket.borrow().try_write_vectored(&slices);
                self.written(written, &mut connection, shard)
            }
        };
        let Some(written) = written else {
            self.wake_driver();
            return;
        };
        shard.counters.deliveries.add(u64::from(count.total()));
        shard.counters.messages_sent[TEXT].add(u64::from(count.texts));
        shard.counters.messages_sent[BINARY].add(u64::from(count.binaries));
        self.queue_rest(&mut connection, segments, written, shard);
        if !connection.is_open() {
            shard.arm(self, &connection);
        }
        if !waited_before && (!connection.outbound.is_empty() || !connection.is_open()) {
            self.wake_driver();
        }
    }

    /// Queues what the socket did not take of `segments`.
    #[inline]
    fn queue_rest(
        &self,
        connection: &mut Connection,
        segments: &[Bytes],
        mut written: usize,
        shard: &Shard,
    ) {
        let before = connection.outbound.bytes();
        for (index, segment) in segments.iter().enumerate() {
            if written >= segment.len() {
                written -= segment.len();
                continue;
            }
            let taken = std::mem::take(&mut written);
            let pushed = match taken {
                0 => connection.outbound.push(segment, &shard.limit),
                written => connection.outbound.push_rest(segment, written, &shard.limit),
            };
            match pushed {
                Pushed::Queued => {}
                Pushed::Dropped(frames) => shard.count_slow_consumer(frames),
                Pushed::Overflow => {
                    let rest = segment.slice(frame::boundary_from(segment, taken)..);
                    let behind = &segments[index + 1..];
                    let refused: usize = std::iter::once(&rest)
                        .chain(behind)
                        .map(|frames| frame::count_messages(frames))
                        .sum();
                    let waiting = connection.close_slow_consumer(shard.now(), &shard.timing);
                    shard.count_slow_consumer(refused + waiting);
                    break;
                }
            }
        }
        shard.counters.outbound_queue_bytes.moved(before, connection.outbound.bytes());
    }

    /// Starts the closing handshake from outside the driver.
    pub(crate) fn close(&self, code: CloseCode, reason: &str, shard: &Shard) {
        let mut connection = self.connection.borrow_mut();
        if connection.ended().is_some() {
            return;
        }
        connection.close(shard.now(), code, reason, &shard.timing);
        self.write_waiting(&mut connection, shard);
        shard.arm(self, &connection);
        self.wake_driver();
    }

    /// How the connection ended, once it has.
    pub(crate) fn ending(&self) -> Ending {
        let connection = self.connection.try_borrow();
        connection.ok().and_then(|connection| connection.ended()).unwrap_or(Ending::ABNORMAL)
    }
}

impl Shard {
    /// Counts a full outbound queue and the `frames` that it cost.
    fn count_slow_consumer(&self, frames: usize) {
        let action = match self.limit.policy {
            SlowConsumerPolicy::Close => SlowConsumer::Close,
            SlowConsumerPolicy::DropOldest => SlowConsumer::DropOldest,
            SlowConsumerPolicy::DropNewest => SlowConsumer::DropNewest,
        };
        self.counters.slow_consumers[action as usize].increment();
        self.counters.dropped_messages[action as usize].add(frames as u64);
    }
}
