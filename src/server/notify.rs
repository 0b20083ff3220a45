//! What the service manager is told (`sd_notify(3)`). Without one nothing here does anything.

use std::rc::Rc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use crate::api::gateway::Gateway;
use crate::shard::orders::{Handle, Order};

/// The gateway serves, by this process. `is_successor`: it has taken over from another one, which the
/// manager still watches.
pub(super) fn ready(status: &str, is_successor: bool) {
    let pid = is_successor.then(|| NotifyState::MainPid(std::process::id()));
    let states = [NotifyState::Ready, NotifyState::Status(status)];
    tell(&pid.into_iter().chain(states).collect::<Vec<_>>());
}

/// The configuration is being read anew; [`ready`] follows.
pub(super) fn reloading() {
    // Both in one message: systemd.service(5), Type=notify-reload.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => debug!(%error, "cannot read the monotonic clock"),
    }
}

/// The gateway drains, and will have ended after `limit`.
pub(super) fn stopping(status: &str, limit: Duration) {
    let limit = limit.as_micros().try_into().unwrap_or(u32::MAX);
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status(status),
        NotifyState::ExtendTimeoutUsec(limit),
    ]);
}

/// What the manager shows of the gateway.
pub(super) fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "cannot notify the service manager");
    }
}

/// Tells the manager's watchdog that the gateway is well, again and again and only while every shard
/// turns. Ends at once where nobody watches.
pub(super) async fn watchdog(gateway: Rc<Gateway>) {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else {
        return;
    };
    info!(?limit, "the service manager's watchdog watches the shards");
    let mut beats: Vec<_> = gateway.shards().iter().map(Beats::new).collect();
    let mut interval = tokio::time::interval(limit / 2);
    // Pings that were missed do not come all at once.
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut was_well = true;
    interval.tick().await;
    loop {
        // Each is asked again, whatever the others say.
        beats.iter_mut().for_each(Beats::ask);
        interval.tick().await;
        let is_well = beats.iter_mut().all(Beats::have_come);
        if is_well {
            tell(&[NotifyState::Watchdog]);
        } else if was_well {
            warn!("a shard does not turn; the service manager is not told that all is well");
        }
        was_well = is_well;
    }
}

/// The signs of life of one shard.
struct Beats<'a> {
    shard: &'a Handle,
    /// Asked for and not seen yet. There is one at a time, so a shard that is stuck has no heap of them.
    awaited: Option<oneshot::Receiver<()>>,
}

impl<'a> Beats<'a> {
    fn new(shard: &'a Handle) -> Self {
        Self { shard, awaited: None }
    }

    fn ask(&mut self) {
        if self.awaited.is_none() {
            let (reply, answer) = oneshot::channel();
            // Without room for one more order the shard does not turn, and the answer never comes.
            self.awaited = self.shard.try_order(Order::Beat { reply }).is_ok().then_some(answer);
        }
    }

    /// Whether the shard has turned since it was asked, or has ended, as it does in a drain.
    fn have_come(&mut self) -> bool {
        let has_turned = self.awaited.as_mut().is_some_and(|answer| answer.try_recv().is_ok());
        if has_turned {
            self.awaited = None;
        }
        has_turned || self.shard.is_ended()
    }
}
