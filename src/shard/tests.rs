//! A real shard on a thread of its own, with real sockets. `flush` has one that writes when the test
//! says so; `referring` has clients with context takeover there, and `tls` some that speak TLS. `turns` is
//! about how long one client may take.

mod flush;
mod referring;
mod tls;
mod turns;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};

use tungstenite::protocol::{Role, WebSocket};
use tungstenite::{Error, Message};

use super::*;
use crate::auth::access::Access;
use crate::auth::origin::AllowedOrigins;
use crate::broker::memory::{self, Bounds};
use crate::connection::outbound::SlowConsumerPolicy;
use crate::shard::driver::tests::PANIC;
use crate::shard::settings::{Admission, Compression, CompressionMode};
use crate::telemetry::counters::INITIATORS;
use crate::wire::extensions::WindowBits;

/// A test that fails waits no longer for anything.
const PATIENCE: Duration = Duration::from_secs(30);

fn settings() -> Settings {
    Settings {
        max_message_bytes: 64 * 1024,
        max_channels_per_connection: 100,
        compression: Compression {
            mode: CompressionMode::Shared,
            min_bytes: 256,
            window: WindowBits::MAX,
            max_memory_bytes: 1 << 20,
        },
        ping_interval: Duration::from_secs(25),
        idle_timeout: Duration::from_secs(60),
        handshake_timeout: Duration::from_secs(5),
        close_timeout: Duration::from_secs(5),
        outbound_queue_bytes: 1 << 20,
        slow_consumer: SlowConsumerPolicy::Close,
        mailbox_entries: 64,
        mailbox_bytes: 1 << 20,
        allowed_origins: AllowedOrigins::same_host(),
        access: Arc::new(Access::open()),
        admission: Admission::default(),
        console: false,
    }
}

/// A shard that serves until it is drained.
struct Running {
    address: SocketAddr,
    handle: Handle,
    counters: Arc<Counters>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Running {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let settings = settings();
        let bounds = Bounds { entries: settings.mailbox_entries, bytes: settings.mailbox_bytes };
        let (mut seats, _) = memory::connect(1, bounds);
        let (handle, orders) = Handle::new();
        let counters: Arc<Counters> = Arc::default();
        let seed = Seed {
            id: ShardId::new(0),
            gateway: GatewayId::new(7),
            settings: Arc::new(settings),
            listeners: vec![Listener {
                socket: ListeningSocket::Tcp(listener),
                entrance: Entrance::default(),
            }],
            seat: seats.remove(0),
            orders,
            shards: Arc::from([handle.clone()]),
            loads: Arc::new(Loads::new(1, 100)),
            counters: Arc::clone(&counters),
        };
        let (started, _) = oneshot::channel();
        let thread = thread::spawn(move || run(seed, started));
        Self { address, handle, counters, thread }
    }

    /// A client that is not our own code, once its handshake is over.
    fn connect(&self, path: &str) -> WebSocket<TcpStream> {
        let mut socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: shard\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "));
        WebSocket::from_raw_socket(socket, Role::Client, None)
    }

    /// Drains the shard and demands that it ends well.
    fn end(self) {
        let (reply, drained) = oneshot::channel();
        self.handle.try_order(Order::Drain { duration: Duration::ZERO, reply }).unwrap();
        drained.blocking_recv().unwrap();
        self.handle.try_order(Order::End).unwrap();
        self.thread.join().unwrap().unwrap();
    }
}

/// The code and reason of the next message, which is a Close, once the closing handshake is over.
fn closed(client: &mut WebSocket<TcpStream>) -> (u16, String) {
    let Message::Close(Some(close)) = client.read().unwrap() else {
        panic!("expected a Close");
    };
    let ended = client.read();
    assert!(matches!(ended, Err(Error::ConnectionClosed)), "{ended:?}");
    (close.code.into(), close.reason.to_string())
}

#[test]
fn panic_in_serving_one_connection_closes_it_with_1011_and_harms_no_other() {
    let shard = Running::start();
    let text = |text: &[u8]| Message::text(std::str::from_utf8(text).unwrap());
    for path in ["/echo", "/channels/news"] {
        let (mut victim, mut bystander) = (shard.connect(path), shard.connect(path));
        let panics = shard.counters.panics.value();
        victim.send(text(PANIC)).unwrap();
        assert_eq!(closed(&mut victim), (1011, "internal error".to_owned()));
        assert_eq!(shard.counters.panics.value(), panics + 1);

        bystander.send(text(b"still served")).unwrap();
        assert_eq!(bystander.read().unwrap(), text(b"still served"));
        bystander.close(None).unwrap();
        assert!(matches!(bystander.read(), Ok(Message::Close(_))));
        drop(shard.connect(path));
    }
    let counters = Arc::clone(&shard.counters);
    shard.end();
    let by_us_with_1011 = close_code_index(1011) * INITIATORS.len();
    assert_eq!(counters.connections_closed[by_us_with_1011].value(), 2);
    assert_eq!(counters.connections.value(), 0);
    assert_eq!(counters.subscriptions.value(), 0);
    assert_eq!(counters.outbound_queue_bytes.value(), 0);
}
