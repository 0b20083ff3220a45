//! The admin listener: its own port on the control thread.

use std::convert::Infallible;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, watch};
use tracing::{debug, warn};

use crate::api::gateway::Gateway;
use crate::api::http;

/// Admin connections at a time. More wait in the listening socket's backlog.
pub(super) const MAX_CONNECTIONS: usize = 128;

/// Time for a request's head, and between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest life of a connection. Whoever does not read the answers must not hold a place for ever, and
/// everybody else can connect again.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);

/// How long to leave the backlog alone when accepting fails.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the process ends, or until `leave` says that another one serves here now: then nobody
/// is accepted any more, and those who are connected are let go after the answer that they wait for.
pub(super) async fn serve(
    gateway: Rc<Gateway>,
    listener: TcpListener,
    leave: watch::Receiver<bool>,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            warn!(%error, "the admin listener cannot be watched; the admin port is dead");
            return;
        }
    };
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut leaves = std::pin::pin!(left(leave.clone()));
    loop {
        let next = async {
            let place = Arc::clone(&room).acquire_owned().await;
            (place.expect("the semaphore is never closed"), listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            biased;
            () = &mut leaves => return,
            next = next => next,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                debug!(%error, "cannot accept an admin connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (gateway, leave) = (Rc::clone(&gateway), leave.clone());
        tokio::task::spawn_local(async move {
            let service = service_fn(|request| {
                let gateway = Rc::clone(&gateway);
                async move { Ok::<_, Infallible>(http::answer(&gateway, request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(socket), service);
            let mut connection = std::pin::pin!(connection);
            let served = async {
                tokio::select! {
                    ended = &mut connection => return ended,
                    () = left(leave) => {}
                }
                connection.as_mut().graceful_shutdown();
                connection.await
            };
            match tokio::time::timeout(CONNECTION_TIMEOUT, served).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "an admin connection ended"),
                Err(_) => debug!("an admin connection has lasted long enough"),
            }
            drop(place);
        });
    }
}

/// Resolves once `leave` says so, if it ever does.
async fn left(mut leave: watch::Receiver<bool>) {
    if leave.wait_for(|leaves| *leaves).await.is_err() {
        std::future::pending().await
    }
}
