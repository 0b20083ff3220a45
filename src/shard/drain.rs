//! The end of connections, paced: of all of them when the shard ends, of a share of them when it sheds.

use std::rc::Rc;
use std::time::Duration;

use crate::pubsub::ConnectionId;
use crate::shard::Shard;
use crate::shard::client::Client;
use crate::shard::orders::Shed;
use crate::shard::wheel::TICK;
use crate::wire::close::CloseCode;

/// How often connections are closed meanwhile.
const STEP: Duration = Duration::from_millis(10);

pub(crate) const DRAINING: &str = "the gateway is draining";

const SHEDDING: &str = "please connect again, to another gateway";

/// Where a shard stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Accepting.
    Serving,
    /// Accepting no more. Handshakes that are under way are told to try elsewhere.
    Refusing,
    /// Accepting no more, since others accept from the same sockets. Handshakes that are under way are
    /// answered as ever.
    Leaving,
}

impl Shard {
    /// Ends the accepting for good, in the way that `stage` says.
    pub(crate) fn stop_accepting(&self, stage: Stage) {
        // A second order changes nothing: the first may have promised an answer already.
        if self.stage.get() == Stage::Serving {
            self.stage.set(stage);
            self.stop_accepting.notify_waiters();
            // HTTP/2 connections without a WebSocket end now, the others with their last one.
            self.table.borrow().handshakes().for_each(|handshake| handshake.wake());
        }
    }

    /// Resolves once nothing more is to be accepted.
    pub(crate) async fn accepting_stopped(&self) {
        let stopped = self.stop_accepting.notified();
        if self.stage.get() == Stage::Serving {
            stopped.await;
        }
    }

    pub(crate) fn client_ids(&self) -> Vec<ConnectionId> {
        self.table.borrow().clients().map(|client| client.id).collect()
    }

    /// Closes those of `clients` that are still there.
    pub(super) fn close_all(&self, clients: &[ConnectionId], code: CloseCode, reason: &str) {
        self.for_each_left(clients, |client| client.close(code, reason, self));
    }

    /// The same, so that their clients connect again, to another gateway.
    fn send_all_elsewhere(&self, clients: &[ConnectionId], reason: &str) {
        self.for_each_left(clients, |client| {
            client.socket.borrow().send_elsewhere();
            client.close(CloseCode::GOING_AWAY, reason, self);
        });
    }

    fn for_each_left(&self, clients: &[ConnectionId], act: impl Fn(&Client)) {
        for id in clients {
            let client = self.table.borrow().client(*id).cloned();
            if let Some(client) = client {
                self.guard(&client, || act(&client));
            }
        }
    }

    /// Begins to close a share of the connections. Returns how many it will be.
    pub(crate) fn shed(self: &Rc<Self>, shed: Shed) -> usize {
        let clients = self.client_ids();
        let chosen = shed.choose(&clients);
        let count = chosen.len();
        let shard = Rc::clone(self);
        tokio::task::spawn_local(async move {
            close_evenly(&shard, &chosen, shed.duration, SHEDDING).await;
        });
        count
    }
}

/// Stops accepting, closes the connections evenly over `duration`, and waits for their closing
/// handshakes. What waits in a connection's queue is sent before its Close.
pub(crate) async fn drain(shard: &Shard, duration: Duration) {
    shard.stop_accepting(Stage::Refusing);
    // Names, not the connections themselves: one that has ended must let go of its socket.
    let clients = shard.client_ids();
    close_evenly(shard, &clients, duration, DRAINING).await;
    if shard.stage.get() == Stage::Leaving {
        handshakes_over(shard).await;
    }
    // Those that came while the others were being closed.
    shard.close_all(&shard.client_ids(), CloseCode::GOING_AWAY, DRAINING);
    // By then the close timeout has let go of whoever does not answer; a handshake that is still under
    // way would come to nothing anyway.
    let limit = shard.timing().close_timeout + TICK * 4;
    let all_gone = async {
        while shard.table.borrow().len() > 0 {
            shard.emptied.notified().await;
        }
    };
    _ = tokio::time::timeout(limit, all_gone).await;
}

/// Closes `clients` one after the other: the first at once, the others each one even step later. Over as
/// soon as nobody is there.
async fn close_evenly(shard: &Shard, clients: &[ConnectionId], duration: Duration, reason: &str) {
    let start = tokio::time::Instant::now();
    let mut closed = 0;
    while closed < clients.len() {
        let elapsed = start.elapsed();
        let due = if elapsed >= duration {
            clients.len()
        } else {
            let share = elapsed.as_secs_f64() / duration.as_secs_f64();
            ((clients.len() as f64 * share) as usize + 1).min(clients.len())
        };
        shard.send_all_elsewhere(&clients[closed..due], reason);
        closed = due;
        if shard.table.borrow().len() == 0 {
            return;
        }
        if closed < clients.len() {
            tokio::time::sleep(STEP).await;
        }
    }
}

/// Waits until no handshake is under way, which is no longer than one may take.
async fn handshakes_over(shard: &Shard) {
    let limit = shard.settings().handshake_timeout + TICK * 4;
    let over = async {
        while shard.table.borrow().has_handshakes() {
            tokio::time::sleep(STEP).await;
        }
    };
    _ = tokio::time::timeout(limit, over).await;
}
