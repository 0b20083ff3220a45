//! The end of a shard: every connection closed with 1001, evenly over a time, and then no more.

use std::rc::Rc;
use std::time::Duration;

use crate::pubsub::ConnectionId;
use crate::shard::Shard;
use crate::shard::wheel::TICK;
use crate::wire::close::CloseCode;

/// How often connections are closed meanwhile.
const STEP: Duration = Duration::from_millis(10);

const REASON: &str = "the gateway is draining";

/// Stops accepting, closes the connections evenly over `duration`, waits for their closing
/// handshakes, and ends the shard. What waits in a connection's queue is sent before its Close.
pub(crate) async fn drain(shard: Rc<Shard>, duration: Duration) {
    shard.is_closing.set(true);
    shard.stop_accepting.notify_one();
    // Names, not the connections themselves: one that has ended must let go of its socket.
    let clients = shard.client_ids();
    let start = tokio::time::Instant::now();
    let mut closed = 0;
    while closed < clients.len() {
        let elapsed = start.elapsed();
        let due = if elapsed >= duration {
            clients.len()
        } else {
            // The first at the start, the others each one even step later.
            let share = elapsed.as_secs_f64() / duration.as_secs_f64();
            ((clients.len() as f64 * share) as usize + 1).min(clients.len())
        };
        shard.close_all(&clients[closed..due]);
        closed = due;
        if closed < clients.len() {
            tokio::time::sleep(STEP).await;
        }
    }
    // Those that came while the others were being closed.
    shard.close_all(&shard.client_ids());
    // By then the close timeout has let go of whoever does not answer; a handshake that is still under
    // way would come to nothing anyway.
    let limit = shard.timing.close_timeout + TICK * 4;
    let all_gone = async {
        while shard.table.borrow().len() > 0 {
            shard.emptied.notified().await;
        }
    };
    _ = tokio::time::timeout(limit, all_gone).await;
    shard.ended.notify_one();
}

impl Shard {
    fn client_ids(&self) -> Vec<ConnectionId> {
        self.table.borrow().clients().map(|client| client.id).collect()
    }

    /// Closes those of `clients` that are still there.
    fn close_all(&self, clients: &[ConnectionId]) {
        for id in clients {
            let client = self.table.borrow().client(*id).cloned();
            if let Some(client) = client {
                self.guard(&client, || client.close(CloseCode::GOING_AWAY, REASON, self));
            }
        }
    }
}
