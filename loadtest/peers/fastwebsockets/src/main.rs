//! An echo server with fastwebsockets, for comparisons: the loop of the library's own example
//! `echo_server`, on one thread.
//!
//! ```text
//! peer-fastwebsockets LISTEN PORT_FILE
//! ```
//!
//! Every path is an echo. The library has no channels. It has no cancellable read either, so a ping
//! beside its `read_frame` would need its unstable split: this server sends none.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use fastwebsockets::{FragmentCollector, OpCode, WebSocketError, upgrade};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// The allocator of the gateway, so that a difference is not one of allocators.
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As many as Linux lets wait by default (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [listen, port_file] = &words[..] else {
        return Err("usage: peer-fastwebsockets LISTEN PORT_FILE".into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let served: Result<Infallible, Failure> = runtime.block_on(serve(listen.parse()?, port_file));
    served.map(|never| match never {})
}

async fn serve(listen: SocketAddr, port_file: &str) -> Result<Infallible, Failure> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(listen)?;
    let listener = socket.listen(BACKLOG)?;
    announce(&listener, port_file)?;
    loop {
        // A refused accept is one of a client that has gone, or of too many descriptors: neither ends
        // the server.
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(upgrade_connection(stream));
    }
}

/// Writes where the server listens, whole or not at all: the reader waits for the file.
fn announce(listener: &TcpListener, port_file: &str) -> std::io::Result<()> {
    let partial = format!("{port_file}.partial");
    std::fs::write(&partial, format!("listen={}\n", listener.local_addr()?))?;
    std::fs::rename(partial, port_file)
}

async fn upgrade_connection(stream: TcpStream) {
    // The example leaves Nagle's algorithm on; whoever measures latency turns it off.
    if stream.set_nodelay(true).is_ok() {
        _ = http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service_fn(answer))
            .with_upgrades()
            .await;
    }
}

async fn answer(mut request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, WebSocketError> {
    let (response, upgraded) = upgrade::upgrade(&mut request)?;
    // Unconstrained as in the example: tokio's budget for one task is not counted.
    tokio::spawn(tokio::task::unconstrained(async move {
        _ = echo(upgraded).await;
    }));
    Ok(response)
}

async fn echo(upgraded: upgrade::UpgradeFut) -> Result<(), WebSocketError> {
    let mut websocket = FragmentCollector::new(upgraded.await?);
    loop {
        let frame = websocket.read_frame().await?;
        match frame.opcode {
            OpCode::Close => return Ok(()),
            OpCode::Text | OpCode::Binary => websocket.write_frame(frame).await?,
            OpCode::Continuation | OpCode::Ping | OpCode::Pong => {}
        }
    }
}
