//! Echo and channels with tokio-tungstenite, for comparisons: one thread, one task for each
//! connection, one bounded queue for each member of a channel.
//!
//! ```text
//! peer-tungstenite LISTEN PORT_FILE [PING_SECONDS]
//! ```
//!
//! - `/echo`: each message comes back.
//! - `/channels/{name}`: each message goes to everyone on the channel, its sender included.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Interval;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};

/// The allocator of the gateway, so that a difference is not one of allocators.
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As many as Linux lets wait by default (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;

/// Room for a message of 16 KiB with its header. The library clears as much before each read: with its
/// default of 128 KiB an echo of 64 bytes takes twice the CPU time, 14 µs instead of 7; with less, an
/// echo of 16 KiB takes two reads.
const READ_BUFFER_BYTES: usize = 20 * 1024;

/// What may wait for one member of a channel; then it is disconnected.
const QUEUED_MESSAGES: usize = 4096;

type Failure = Box<dyn std::error::Error>;

type WebSocket = WebSocketStream<TcpStream>;

/// The queues of the members of each channel.
type Channels = Rc<RefCell<HashMap<String, Vec<mpsc::Sender<Message>>>>>;

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (listen, port_file, ping_interval) = match &words[..] {
        [listen, port_file] => (listen, port_file, None),
        [listen, port_file, seconds] => {
            (listen, port_file, Some(Duration::from_secs(seconds.parse()?)))
        }
        _ => return Err("usage: peer-tungstenite LISTEN PORT_FILE [PING_SECONDS]".into()),
    };
    let listen = listen.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    let served: Result<Infallible, Failure> =
        runtime.block_on(serve(listen, port_file, ping_interval));
    served.map(|never| match never {})
}

async fn serve(
    listen: SocketAddr,
    port_file: &str,
    ping_interval: Option<Duration>,
) -> Result<Infallible, Failure> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(listen)?;
    let listener = socket.listen(BACKLOG)?;
    announce(&listener, port_file)?;
    let channels = Channels::default();
    loop {
        // A refused accept is one of a client that has gone, or of too many descriptors: neither ends
        // the server.
        let Ok((stream, _)) = listener.accept().await else { continue };
        let channels = Rc::clone(&channels);
        tokio::task::spawn_local(async move {
            // What ends a connection is the client's affair.
            _ = serve_connection(stream, channels, ping_interval).await;
        });
    }
}

/// Writes where the server listens, whole or not at all: the reader waits for the file.
fn announce(listener: &TcpListener, port_file: &str) -> std::io::Result<()> {
    let partial = format!("{port_file}.partial");
    std::fs::write(&partial, format!("listen={}\n", listener.local_addr()?))?;
    std::fs::rename(partial, port_file)
}

async fn serve_connection(
    stream: TcpStream,
    channels: Channels,
    ping_interval: Option<Duration>,
) -> Result<(), Error> {
    stream.set_nodelay(true)?;
    let mut path = String::new();
    #[expect(clippy::result_large_err, reason = "the library says what a callback returns")]
    let take_path = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        path = request.uri().path().to_owned();
        Ok(response)
    };
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES);
    let websocket =
        tokio_tungstenite::accept_hdr_async_with_config(stream, take_path, Some(config)).await?;
    let pings = ping_interval
        .map(|period| tokio::time::interval_at(tokio::time::Instant::now() + period, period));
    match path.strip_prefix("/channels/") {
        Some(name) => serve_member(websocket, &channels, name, pings).await,
        None => echo(websocket, pings).await,
    }
}

/// Completes when a ping is due; never without pings.
async fn ping_due(pings: &mut Option<Interval>) {
    match pings {
        Some(interval) => _ = interval.tick().await,
        None => std::future::pending().await,
    }
}

/// Sends each message back. What is there at once goes out together, as with `forward` in the
/// library's own echo.
async fn echo(mut websocket: WebSocket, mut pings: Option<Interval>) -> Result<(), Error> {
    loop {
        let next = match websocket.next().now_or_never() {
            Some(next) => next,
            None => {
                websocket.flush().await?;
                tokio::select! {
                    biased;
                    next = websocket.next() => next,
                    () = ping_due(&mut pings) => {
                        websocket.feed(Message::Ping(Bytes::new())).await?;
                        continue;
                    }
                }
            }
        };
        let Some(message) = next else { return Ok(()) };
        let message = message?;
        if message.is_text() || message.is_binary() {
            websocket.feed(message).await?;
        }
    }
}

async fn serve_member(
    mut websocket: WebSocket,
    channels: &Channels,
    name: &str,
    mut pings: Option<Interval>,
) -> Result<(), Error> {
    let (queue, mut queued) = mpsc::channel(QUEUED_MESSAGES);
    channels.borrow_mut().entry(name.to_owned()).or_default().push(queue);
    let result = loop {
        tokio::select! {
            biased;
            message = queued.recv() => {
                // No sender is left once the queue was full.
                let Some(message) = message else { break Ok(()) };
                if let Err(error) = send_queued(&mut websocket, message, &mut queued).await {
                    break Err(error);
                }
            }
            next = websocket.next() => match next {
                Some(Ok(message)) if message.is_text() || message.is_binary() => {
                    publish(channels, name, &message);
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => break Err(error),
                None => break Ok(()),
            },
            () = ping_due(&mut pings) => {
                if let Err(error) = websocket.send(Message::Ping(Bytes::new())).await {
                    break Err(error);
                }
            }
        }
    };
    drop(queued);
    leave(channels, name);
    result
}

/// Sends `message` and what waits behind it with one flush.
async fn send_queued(
    websocket: &mut WebSocket,
    message: Message,
    queued: &mut mpsc::Receiver<Message>,
) -> Result<(), Error> {
    websocket.feed(message).await?;
    while let Ok(message) = queued.try_recv() {
        websocket.feed(message).await?;
    }
    websocket.flush().await
}

/// Every member gets the same payload: cloning a message counts a reference. Who has no place left in
/// its queue is no member any more.
fn publish(channels: &Channels, name: &str, message: &Message) {
    if let Some(members) = channels.borrow_mut().get_mut(name) {
        members.retain(|member| member.try_send(message.clone()).is_ok());
    }
}

/// Takes those out whose connections have ended.
fn leave(channels: &Channels, name: &str) {
    let mut channels = channels.borrow_mut();
    if let Some(members) = channels.get_mut(name) {
        members.retain(|member| !member.is_closed());
        if members.is_empty() {
            channels.remove(name);
        }
    }
}
