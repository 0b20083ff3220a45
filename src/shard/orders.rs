//! What other threads ask of a shard.

use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use globset::GlobMatcher;
use tokio::sync::{mpsc, oneshot};

use crate::broker::{Broker, Inbound};
use crate::pubsub::{Batch, ChannelName, ConnectionId};
use crate::shard::client::{Client, Tally};
use crate::shard::{Shard, drain, handshake};
use crate::wire::close::CloseCode;

/// Orders that may wait at one shard. An order that finds no room comes back to whoever gave it.
const MAX_WAITING_ORDERS: usize = 1_024;

/// Orders and parcels taken before the connections get their turn.
const MAX_TAKEN_PER_TURN: usize = 64;

/// Something that a shard is asked to do.
#[derive(Debug)]
pub enum Order {
    /// Serve a socket that another shard has accepted and counted for this one.
    Serve {
        /// Accepted and non-blocking.
        socket: TcpStream,
        /// When.
        accepted_at: Instant,
    },
    /// Send a frame to one connection.
    Send {
        /// Which.
        connection: ConnectionId,
        /// A whole server frame.
        frame: Bytes,
        /// Whether the connection is open.
        reply: oneshot::Sender<bool>,
    },
    /// Close one connection.
    Disconnect {
        /// Which.
        connection: ConnectionId,
        /// With this code.
        code: CloseCode,
        /// And this reason.
        reason: String,
        /// Whether the connection was open.
        reply: oneshot::Sender<bool>,
    },
    /// List channels with the subscriptions they have here.
    Channels {
        /// Only names that it matches.
        pattern: Option<GlobMatcher>,
        /// In no order.
        reply: oneshot::Sender<Vec<(ChannelName, usize)>>,
    },
    /// Stop accepting and close every connection within this time, then end.
    Drain {
        /// Over how long the closes are spread.
        duration: Duration,
    },
}

/// Reaches one shard from any thread.
#[derive(Clone, Debug)]
pub struct Handle {
    orders: mpsc::Sender<Order>,
}

impl Handle {
    /// A handle, and the end of it that belongs into the shard's [`Seed`](crate::shard::Seed).
    pub fn new() -> (Self, mpsc::Receiver<Order>) {
        let (orders, receiver) = mpsc::channel(MAX_WAITING_ORDERS);
        (Self { orders }, receiver)
    }

    /// Gives an order if there is room for one more.
    ///
    /// # Errors
    ///
    /// There is none, or the shard has ended: the order comes back.
    pub fn try_order(&self, order: Order) -> Result<(), Order> {
        self.orders.try_send(order).map_err(|error| match error {
            mpsc::error::TrySendError::Full(order) | mpsc::error::TrySendError::Closed(order) => {
                order
            }
        })
    }

    /// Gives an order once there is room. Does nothing when the shard has ended.
    pub async fn order(&self, order: Order) {
        _ = self.orders.send(order).await;
    }
}

/// Takes what comes in for the shard, from the broker's lanes and from its handle.
pub(crate) async fn take(shard: Rc<Shard>, mut orders: mpsc::Receiver<Order>) {
    loop {
        let mut order = None;
        let mut taken = 0;
        let has_more = std::future::poll_fn(|cx| {
            // A turn that is full is flushed before more joins it.
            while taken < MAX_TAKEN_PER_TURN && !shard.turn.borrow().is_full() {
                match shard.broker.poll_inbound(cx) {
                    Poll::Pending => {
                        let Poll::Ready(Some(next)) = orders.poll_recv(cx) else {
                            return if taken == 0 { Poll::Pending } else { Poll::Ready(false) };
                        };
                        order = Some(next);
                        return Poll::Ready(false);
                    }
                    Poll::Ready(Inbound::Room) => shard.resume(),
                    Poll::Ready(Inbound::Delivery(channel, batch)) => {
                        shard.collect_delivery(&channel, batch);
                    }
                    Poll::Ready(Inbound::Publication(channel, batch)) => {
                        shard.collect_publication(channel, batch);
                    }
                }
                taken += 1;
            }
            // However much comes in, an order is taken with each round of it.
            if let Poll::Ready(Some(next)) = orders.poll_recv(cx) {
                order = Some(next);
            }
            Poll::Ready(true)
        })
        .await;
        if let Some(order) = order {
            // What was published before it goes before it.
            shard.flush_turn();
            shard.handle_order(order);
        }
        if has_more {
            // The flush and the connections come first.
            tokio::task::yield_now().await;
        }
    }
}

impl Shard {
    /// Adds a batch that was published on another shard or by the API to this turn: this shard is
    /// the home of `channel`.
    fn collect_publication(&self, channel: ChannelName, batch: Arc<Batch>) {
        self.started_turn().publish_batch(channel, self.id, &self.hub.borrow(), batch);
    }

    /// Adds a batch from another shard, the home of `channel`, to this turn.
    fn collect_delivery(&self, channel: &ChannelName, batch: Arc<Batch>) {
        // The last subscriber may have left while it was under way.
        if let Some(key) = self.hub.borrow().find(channel) {
            self.started_turn().deliver_batch(key, batch);
        }
    }

    fn handle_order(self: &Rc<Self>, order: Order) {
        match order {
            Order::Serve { socket, accepted_at } => {
                handshake::begin_handed_over(self, socket, accepted_at);
            }
            Order::Send { connection, frame, reply } => {
                // Whoever asked may have stopped waiting for the answer.
                _ = reply.send(self.send_to(connection, frame));
            }
            Order::Disconnect { connection, code, reason, reply } => {
                let client = self.open_client(connection);
                if let Some(client) = &client {
                    self.guard(client, || client.close(code, &reason, self));
                }
                _ = reply.send(client.is_some());
            }
            Order::Channels { pattern, reply } => {
                let matches = |name: &ChannelName| {
                    pattern.as_ref().is_none_or(|pattern| pattern.is_match(name.as_str()))
                };
                let hub = self.hub.borrow();
                let channels = hub.channels().filter(|(name, _)| matches(name));
                _ = reply.send(channels.map(|(name, count)| (name.clone(), count)).collect());
            }
            Order::Drain { duration } => {
                tokio::task::spawn_local(drain::drain(Rc::clone(self), duration));
            }
        }
    }

    /// Sends one frame to one connection, if it is open.
    fn send_to(&self, connection: ConnectionId, frame: Bytes) -> bool {
        let Some(client) = self.open_client(connection) else {
            return false;
        };
        let batch = Batch::single(frame, self.now());
        let tally = Tally::default();
        self.guard(&client, || {
            client.deliver_together(std::iter::once(&batch), &mut Vec::new(), &tally, self);
        });
        true
    }

    fn open_client(&self, id: ConnectionId) -> Option<Rc<Client>> {
        let client = self.table.borrow().client(id).cloned()?;
        let is_open = client.hold(self).is_open();
        is_open.then_some(client)
    }
}
