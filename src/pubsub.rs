//! The vocabulary of publish/subscribe. Values only: nothing here acts.
//!
//! - [`ChannelName`], [`ShardId`], [`ConnectionId`]: what things are called.
//! - [`Batch`]: publications to one channel on their way to its subscribers.

mod batch;
mod channel;
mod connection_id;

pub use batch::{Batch, BatchBuilder, Count, FORMS};
pub use channel::{ChannelName, ChannelNameError};
pub use connection_id::{ConnectionId, ConnectionIdError, GatewayId, ShardId};
