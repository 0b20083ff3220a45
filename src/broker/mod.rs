//! How does a publication reach the other shards?
//!
//! - [`Broker`]: the promises, whatever stands behind them.
//! - [`memory`]: the broker of one process: a home shard for each channel.
//! - [`directory`]: which shards have subscribers of which channel.
//! - [`lane`]: a bounded queue from many threads to one.

pub mod directory;
pub mod lane;
pub mod memory;

use std::sync::Arc;
use std::task::{Context, Poll};

use crate::pubsub::{Batch, ChannelName, ShardId};

/// Carries publications between shards. Each shard has one; its methods are called on that shard.
///
/// # Promises
///
/// - **Order.** All subscribers of a channel on this node are handed its publications in the same
///   order, and each publisher's in the order in which it published them.
/// - **Causality.** A publication that is published after a subscriber was told that its subscription
///   stands reaches that subscriber.
/// - **No loss.** A publication is never dropped. Where there is no room for it, the broker says that
///   it is congested, and the shard stops reading from publishers until there is.
/// - **No deadlock.** Deliveries are always taken, because handing them to subscribers never waits;
///   only publications wait, and only for deliveries.
pub trait Broker {
    /// Room for one announcement of a subscription.
    type Permit;

    /// The shard that decides the order of the channel's publications: always the same one, so that
    /// whoever publishes often may remember it.
    fn home(&self, channel: &ChannelName) -> ShardId;

    /// Waits until a subscription to `channel` can be announced.
    fn permit(&self, channel: &ChannelName) -> impl Future<Output = Self::Permit>;

    /// Announces that this shard has its first subscriber of `channel`.
    fn subscribe(&self, channel: &ChannelName, permit: Self::Permit);

    /// Announces that this shard has lost its last subscriber of `channel`.
    fn unsubscribe(&self, channel: &ChannelName);

    /// Publishes `batch` to `channel`, whose [`Broker::home`] is `home`. Where its place in the
    /// channel's order is decided right here and this shard has subscribers, it is returned: it is to
    /// be handed to them now, before anything else to that channel. Otherwise they get it by
    /// [`Broker::poll_inbound`].
    fn publish(
        &self,
        channel: &ChannelName,
        home: ShardId,
        batch: Arc<Batch>,
    ) -> Option<Arc<Batch>>;

    /// Whether publications to channels with this home have to wait. They end waiting with
    /// [`Inbound::Room`].
    fn is_congested(&self, home: ShardId) -> bool;

    /// What came in for this shard.
    fn poll_inbound(&self, cx: &mut Context<'_>) -> Poll<Inbound>;
}

/// Something that came in for a shard.
#[derive(Debug)]
pub enum Inbound {
    /// Hand it to the subscribers here.
    Delivery(ChannelName, Arc<Batch>),
    /// Publish it with the other publications of this turn: this shard decides its order.
    Publication(ChannelName, Arc<Batch>),
    /// Something is no longer congested.
    Room,
}
