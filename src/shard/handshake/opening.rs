//! How a socket whose request was answered with 101 becomes a connection.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tracing::debug;

use crate::auth::identity::Identity;
use crate::protocol::raw;
use crate::protocol::target::{Endpoint, Target};
use crate::pubsub::ConnectionId;
use crate::shard::Shard;
use crate::shard::admitted::{Admitted, Shown};
use crate::shard::client::{Client, Leave};
use crate::shard::compression::Coding;
use crate::shard::drain::{DRAINING, Stage};
use crate::shard::driver::{self, Driver};
use crate::shard::handshake::answer::Announced;
use crate::shard::handshake::check_in::CheckIn;
use crate::shard::stream::Stream;
use crate::telemetry::counters::TEXT;
use crate::wire::close::CloseCode;

/// What a connection begins with.
pub(super) struct Opening {
    pub(super) id: ConnectionId,
    /// Where its client is, and its place among the connections of that address.
    pub(super) check_in: CheckIn,
    pub(super) socket: Stream,
    /// Came right behind the request.
    pub(super) early: Bytes,
    pub(super) target: Target,
    pub(super) coding: Rc<Coding>,
    pub(super) subscriptions: Announced,
    pub(super) identity: Arc<Identity>,
}

/// Makes the connection and starts its driver.
pub(super) fn open(shard: &Rc<Shard>, opening: Opening) {
    let Opening { id, check_in, socket, early, target, coding, subscriptions, identity } = opening;
    let now = shard.now();
    let (channel, subscriptions) = subscriptions.take();
    let ask = raw::ask(&target.endpoint);
    let publish_grant = match &target.endpoint {
        Endpoint::Echo => None,
        Endpoint::Channel { name, .. } => identity.may_publish(name),
    };
    let is_identified = !identity.is_anonymous();
    let leave = Leave { publish_grant, is_identified, takes_control: target.control };
    let (address, ticket) = match check_in {
        // What the socket itself can tell need not be kept.
        CheckIn::In(client, ticket) => {
            let is_kept = client.is_proxied || socket.peer_address().is_none();
            (client.address.filter(|_| is_kept), ticket)
        }
        CheckIn::Later | CheckIn::Refused { .. } => (None, None),
    };
    let admitted = Admitted::new(id, address, ticket, &shard.settings().admission, now);
    let client = Client::new(id, ask, leave, channel, subscriptions, coding, socket, admitted, now);
    let client = Rc::new(client);
    shard.counters.connections.moved(0, 1);
    if let Some(mode) = client.coding.mode() {
        shard.counters.compressed_connections[mode].moved(0, 1);
    }
    shard.table.borrow_mut().open(Rc::clone(&client));
    if is_identified {
        shard.remember_user(&client, identity);
    }
    // From here on its driver's end is the connection's end, also if what follows should panic.
    let driver = Driver::new(Rc::clone(&client), Rc::clone(shard));
    debug!(
        connection = %id.to_uuid(shard.gateway),
        address = %Shown(client.address()),
        endpoint = ?target.endpoint,
        "connection opened"
    );
    shard.guard(&client, || {
        let mut connection = client.hold(shard);
        if target.hello {
            shard.counters.messages_sent[TEXT].increment();
            client.send(&mut connection, &raw::hello(&id.to_uuid(shard.gateway)), shard);
        }
        if !early.is_empty() {
            driver::process_early(&client, &mut connection, shard, &early, now);
        }
        if shard.stage.get() == Stage::Refusing {
            connection.close(now, CloseCode::GOING_AWAY, DRAINING, &shard.timing());
        }
        shard.arm(&client, &connection);
    });
    tokio::task::spawn_local(driver);
}
