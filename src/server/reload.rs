//! New settings for a gateway that runs.
//!
//! Where they come from is not known here: the configuration is a room above.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tracing::{error, info, warn};

use crate::api::gateway::Gateway;
use crate::server::settings::Settings;
use crate::server::{api_access, host, sockets};
use crate::shard::orders::{Order, tell_all};

/// What reading the configuration anew came to.
#[derive(Debug)]
pub struct Reloaded {
    /// What holds from now on. What a running gateway cannot change is as it was.
    pub settings: Settings,
    /// Each setting that has another value now, in words. Never a secret.
    pub taken: Vec<String>,
    /// Each setting that would need a restart to have another value, in words.
    pub not_taken: Vec<String>,
    /// What may be meant but is more likely a mistake, in words.
    pub warnings: Vec<String>,
}

/// Reads the configuration anew. An error changes nothing.
pub type Reload = Box<dyn FnMut() -> Result<Reloaded, Box<dyn Error>>>;

/// How long to wait for a shard to take the new settings, before they are called reloaded without it.
const SHARD_TIMEOUT: Duration = Duration::from_secs(2);

/// What the settings are applied to.
pub(super) struct Applied<'a> {
    pub(super) gateway: &'a Gateway,
    pub(super) admin_listen: SocketAddr,
    pub(super) open_files: u64,
}

/// Reads the configuration anew and applies what can change. Returns the settings that hold then, which
/// are `settings` where it is wrong.
pub(super) async fn reload(read: &mut Reload, settings: Settings, to: &Applied<'_>) -> Settings {
    let reloaded = match read() {
        Ok(reloaded) => reloaded,
        Err(error) => {
            // On one line, however many things are wrong.
            let error = error.to_string().replace('\n', "");
            error!(
                "the configuration was not reloaded, and nothing has changed: {error}. Correct it, try \
                 it with wsgate check, and send SIGHUP again"
            );
            to.gateway.note_reload(false, SystemTime::now());
            return settings;
        }
    };
    let Reloaded { settings: new, taken, not_taken, warnings } = reloaded;
    apply(&settings, &new, to).await;
    to.gateway.note_reload(true, SystemTime::now());
    match &taken[..] {
        [] => info!("configuration reloaded: no setting has changed, key files were read anew"),
        taken => info!("configuration reloaded: {}", taken.join(", ")),
    }
    not_taken.iter().for_each(|line| warn!("not reloaded: {line}"));
    warnings.iter().for_each(|warning| warn!("{warning}"));
    new
}

/// Done once every shard goes by `new`.
async fn apply(old: &Settings, new: &Settings, to: &Applied<'_>) {
    let gateway = to.gateway;
    if new.max_connections != old.max_connections {
        let shards = new.shards.get();
        let most = sockets::max_connections(new.max_connections, to.open_files, shards);
        gateway.loads().set_max_connections(most);
        host::warn_of_conflicts(new);
    }
    if new.api_key != old.api_key {
        gateway.set_access(api_access(new, to.admin_listen));
    }
    gateway.set_max_message_bytes(new.shard.max_message_bytes);
    let settings = Arc::new(new.shard.clone());
    let all_applied = tell_all(gateway.shards(), |reply| Order::Reload {
        settings: Arc::clone(&settings),
        reply,
    });
    if tokio::time::timeout(SHARD_TIMEOUT, all_applied).await.is_err() {
        warn!("a shard does not turn; it will go by the new settings when it does");
    }
    gateway.loads().set_limits(&new.shard.admission.limits);
}
