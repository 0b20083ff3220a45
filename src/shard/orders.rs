//! What other threads ask of a shard.

use std::net::{IpAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use globset::GlobMatcher;
use tokio::sync::{mpsc, oneshot};

use crate::auth::access::RenewalError;
use crate::auth::identity::{UnixSeconds, User};
use crate::broker::{Broker, Inbound};
use crate::pubsub::{Batch, ChannelName, ConnectionId};
use crate::shard::accept::Entrance;
use crate::shard::client::{Client, Tally};
use crate::shard::drain::Stage;
use crate::shard::settings::Settings;
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
        /// By which listener: what is spoken on it.
        entrance: Entrance,
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
        /// Only if it is this user's.
        user: Option<User>,
        /// With this code.
        code: CloseCode,
        /// And this reason.
        reason: String,
        /// Whether the connection was open.
        reply: oneshot::Sender<bool>,
    },
    /// Close all connections of a user.
    DisconnectUser {
        /// Whose.
        user: User,
        /// But these.
        except: Vec<ConnectionId>,
        /// With this code.
        code: CloseCode,
        /// And this reason.
        reason: String,
        /// It is done, or, where they are many, under way.
        reply: oneshot::Sender<()>,
    },
    /// Renew what connections were let in by, or say that it has expired.
    Refresh {
        /// Whose.
        whose: Whose,
        /// By what.
        renewal: Renewal,
        /// What came of it.
        reply: oneshot::Sender<Refreshed>,
    },
    /// Tell what is known of one connection.
    Describe {
        /// Which.
        connection: ConnectionId,
        /// `None` where it is not open.
        reply: oneshot::Sender<Option<Description>>,
    },
    /// List channels with the subscriptions they have here.
    Channels {
        /// Only names that it matches.
        pattern: Option<GlobMatcher>,
        /// In no order.
        reply: oneshot::Sender<Vec<(ChannelName, usize)>>,
    },
    /// Go by other settings from now on.
    Reload {
        /// What the shard cannot change while it runs is as it was.
        settings: Arc<Settings>,
        /// They hold.
        reply: oneshot::Sender<()>,
    },
    /// Say that the shard turns.
    Beat {
        /// Dropped unanswered by a shard that ends.
        reply: oneshot::Sender<()>,
    },
    /// Close a share of the connections, and serve on.
    Shed {
        /// Which share, and how.
        shed: Shed,
        /// How many connections that are.
        reply: oneshot::Sender<usize>,
    },
    /// Stop accepting, since another process accepts from the same sockets. Handshakes that are under
    /// way go on.
    Leave {
        /// Nothing more is accepted or handed to other shards.
        reply: oneshot::Sender<()>,
    },
    /// Stop accepting and close every connection within this time.
    Drain {
        /// Over how long the closes are spread.
        duration: Duration,
        /// None is left, or the time for those that are is over.
        reply: oneshot::Sender<()>,
    },
    /// End. Not before every shard has drained: clients elsewhere hear channels whose home this is.
    End,
}

/// A share of a shard's connections to be closed.
#[derive(Clone, Copy, Debug)]
pub struct Shed {
    /// 0 to 1.
    pub share: f64,
    /// What the count is rounded with, 0 to 1: with another one for each shard, the counts of many
    /// small shards come to the right share of all.
    pub rounding: f64,
    /// Over how long the closes are spread.
    pub duration: Duration,
}

impl Shed {
    /// The share of `all`, spread evenly over them.
    pub(crate) fn choose<T: Copy>(&self, all: &[T]) -> Vec<T> {
        let count = ((all.len() as f64 * self.share + self.rounding) as usize).min(all.len());
        (0..count).map(|number| all[number * all.len() / count]).collect()
    }
}

/// Which connections are meant.
#[derive(Clone, Debug)]
pub enum Whose {
    /// One.
    Connection {
        /// Which.
        connection: ConnectionId,
        /// Only if it is this user's.
        user: Option<User>,
    },
    /// All of a user.
    User(User),
}

/// What becomes of the token of a connection.
#[derive(Clone)]
pub enum Renewal {
    /// This is the new one. It has to be the same user's.
    Token(Arc<str>),
    /// It holds until then, whatever it says.
    ExpireAt(UnixSeconds),
    /// It holds no longer.
    Expired,
}

impl std::fmt::Debug for Renewal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Token(_) => f.write_str("Token(***)"),
            Self::ExpireAt(end) => f.debug_tuple("ExpireAt").field(end).finish(),
            Self::Expired => f.write_str("Expired"),
        }
    }
}

/// What came of renewing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refreshed {
    /// It is renewed; for a user perhaps of no connection at all.
    Done,
    /// No such connection is open.
    NotFound,
    /// The connection came without a token.
    Anonymous,
    /// The new token is not believed.
    Refused(RenewalError),
}

/// What is known of a connection.
#[derive(Debug)]
pub struct Description {
    /// Where its client is. `None` where that is at the end of a Unix socket.
    pub address: Option<IpAddr>,
    /// What it hears, that which it publishes to first.
    pub channels: Vec<ChannelName>,
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

    /// Whether the shard has ended and takes no orders any more.
    pub fn is_ended(&self) -> bool {
        self.orders.is_closed()
    }

    /// Gives an order once there is room. Does nothing when the shard has ended.
    pub async fn order(&self, order: Order) {
        _ = self.orders.send(order).await;
    }
}

/// Gives an order to all shards, and waits until each has carried it out. One that is stuck keeps no other
/// from it, and gets it when it goes on, also where nobody waits any more.
pub async fn tell_all(shards: &[Handle], order: impl Fn(oneshot::Sender<()>) -> Order) {
    let mut answers = Vec::with_capacity(shards.len());
    for shard in shards {
        let (reply, answer) = oneshot::channel();
        answers.push(answer);
        if let Err(order) = shard.try_order(order(reply)) {
            let shard = shard.clone();
            tokio::spawn(async move { shard.order(order).await });
        }
    }
    for answer in answers {
        // A shard that fails has nothing more to do.
        _ = answer.await;
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
            // Whoever asked was told to ask again: it must not happen twice.
            Order::Send { reply, .. } if reply.is_closed() => {}
            Order::Shed { reply, .. } if reply.is_closed() => {}
            Order::Serve { socket, entrance, accepted_at } => {
                handshake::begin_handed_over(self, socket, entrance, accepted_at);
            }
            Order::Send { connection, frame, reply } => {
                // Whoever asked may have stopped waiting for the answer.
                _ = reply.send(self.send_to(connection, frame));
            }
            Order::Disconnect { connection, user, code, reason, reply } => {
                let client = self.open_client_of(connection, user.as_ref());
                if let Some(client) = &client {
                    self.guard(client, || client.close(code, &reason, self));
                }
                _ = reply.send(client.is_some());
            }
            Order::DisconnectUser { user, except, code, reason, reply } => {
                self.disconnect_user(&user, &except, code, reason);
                _ = reply.send(());
            }
            Order::Refresh { whose, renewal, reply } => {
                _ = reply.send(self.refresh(&whose, &renewal));
            }
            Order::Describe { connection, reply } => {
                _ = reply.send(self.describe(connection));
            }
            Order::Channels { pattern, reply } => {
                let matches = |name: &ChannelName| {
                    pattern.as_ref().is_none_or(|pattern| pattern.is_match(name.as_str()))
                };
                let hub = self.hub.borrow();
                let channels = hub.channels().filter(|(name, _)| matches(name));
                _ = reply.send(channels.map(|(name, count)| (name.clone(), count)).collect());
            }
            Order::Reload { settings, reply } => {
                self.reload(settings);
                _ = reply.send(());
            }
            Order::Beat { reply } => _ = reply.send(()),
            Order::Shed { shed, reply } => _ = reply.send(self.shed(shed)),
            Order::Leave { reply } => {
                self.stop_accepting(Stage::Leaving);
                _ = reply.send(());
            }
            Order::Drain { duration, reply } => {
                let shard = Rc::clone(self);
                tokio::task::spawn_local(async move {
                    drain::drain(&shard, duration).await;
                    _ = reply.send(());
                });
            }
            Order::End => self.ended.notify_one(),
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

    fn describe(&self, connection: ConnectionId) -> Option<Description> {
        let client = self.open_client(connection)?;
        let subscriptions = client.subscriptions.take();
        let hub = self.hub.borrow();
        let channels = subscriptions.keys().iter().map(|key| hub.name_of(key).clone()).collect();
        client.subscriptions.set(subscriptions);
        Some(Description { address: client.address(), channels })
    }

    pub(super) fn open_client(&self, id: ConnectionId) -> Option<Rc<Client>> {
        let client = self.table.borrow().client(id).cloned()?;
        let is_open = client.hold(self).is_open();
        is_open.then_some(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shard_that_takes_no_order_keeps_no_other_from_its_own() {
        let (stuck, _orders) = Handle::new();
        loop {
            let (reply, _) = oneshot::channel();
            if stuck.try_order(Order::Beat { reply }).is_err() {
                break;
            }
        }
        let (other, mut orders) = Handle::new();
        let shards = [stuck, other];
        tokio::select! {
            () = tell_all(&shards, |reply| Order::Leave { reply }) => panic!("one does not turn"),
            order = orders.recv() => assert!(matches!(order, Some(Order::Leave { .. }))),
        }
    }

    #[test]
    fn share_is_taken_from_all_over_and_comes_out_right_over_many_small_shards() {
        let shed = |share, rounding| Shed { share, rounding, duration: Duration::ZERO };
        let all: Vec<u32> = (0..10).collect();
        assert_eq!(shed(0.3, 0.5).choose(&all), [0, 3, 6]);
        assert_eq!(shed(1.0, 0.99).choose(&all), all);
        assert_eq!(shed(0.5, 0.99).choose::<u32>(&[]), [0; 0]);
        let shards = 8;
        let rounding = |shard| (f64::from(shard) + 0.5) / f64::from(shards);
        let chosen = (0..shards).map(|shard| shed(0.25, rounding(shard)).choose(&[0]).len());
        assert_eq!(chosen.sum::<usize>(), 2, "a quarter of eight that are one to a shard");
    }
}
