//! Props for tests against the real binary.
//!
//! - [`gateway`]: one running gateway, its admin port, its log and its end.
//! - [`admin`]: requests to the admin port.
//! - [`freeze`]: one of its threads standing still.
//! - [`place`]: where a test keeps its files and sockets.
//! - [`metrics`]: a scrape, parsed as strictly as the format allows.
//! - [`client`]: a WebSocket client that is not our own code.
//! - [`raw`]: a TCP client that writes the bytes it is given, and reads what comes.
//! - [`deflate`]: the same with permessage-deflate.
//! - [`sequence`]: messages that tell their publisher and number.
//! - [`tls`]: certificates made for a test, and clients that speak TLS.
//! - [`transport`]: the ways to a gateway, so that one test can take them all.
//! - [`siege`]: what must hold while a gateway is attacked, and afterwards.
//!
//! Nothing here sleeps until something has surely happened: a test looks at the thing itself, with
//! [`until`], or waits for it, with [`within`], and fails after [`PATIENCE`].

pub(crate) mod admin;
pub(crate) mod client;
pub(crate) mod deflate;
pub(crate) mod freeze;
pub(crate) mod gateway;
pub(crate) mod metrics;
pub(crate) mod place;
pub(crate) mod raw;
pub(crate) mod sequence;
pub(crate) mod siege;
pub(crate) mod tls;
pub(crate) mod transport;

use std::time::{Duration, Instant};

/// After this a test gives up on what it waits for. Long, since it is only ever waited for by a test
/// that fails, and machines that run tests are busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How long to leave a thing alone between two looks at it.
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// The result of `future`, which is `what` the test waits for.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(PATIENCE, future).await;
    result.unwrap_or_else(|_| panic!("waited {PATIENCE:?} in vain for {what}"))
}

/// Looks again and again until `what` the test waits for is there.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for {what}");
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}
