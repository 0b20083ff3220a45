//! What a shard writes to clients that speak TLS, and in how many system calls.

use std::future::poll_fn;

use rcgen::CertifiedKey;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::flush::{Peer, Still, run, text};
use super::*;
use crate::shard::stream::Stream;
use crate::shard::stream::tls::{Identity, MAX_WRITE_BYTES, Tls};

/// How a listener called `shard` speaks TLS, and what its clients trust.
fn both_ends() -> (Arc<ServerConfig>, TlsConnector) {
    let CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["shard".to_owned()]).unwrap();
    let key = signing_key.serialize_der().try_into().unwrap();
    let config = ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![cert.der().clone()], key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let trusting = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    (Arc::new(config), Arc::new(trusting).into())
}

/// A shard whose listener speaks TLS, and what its clients trust.
async fn still_with_tls(change: impl FnOnce(&mut Settings)) -> (Still, TlsConnector) {
    let (config, connector) = both_ends();
    let mut still = Still::new(change).await;
    still.entrance.tls = Some(Arc::new(Identity::new(config)));
    (still, connector)
}

/// A connection over TLS of which the kernel takes about `bytes` when the client does not read.
async fn connect(
    (still, connector): &(Still, TlsConnector),
    path: &str,
    bytes: u32,
) -> Peer<TlsStream<TcpStream>> {
    let socket = still.begin_with_buffers(bytes).await;
    let name = ServerName::try_from("shard").unwrap();
    let socket = connector.connect(name, socket).await.unwrap();
    still.upgrade(socket, path).await
}

/// System calls that have written to `client`.
fn writes(client: &Client) -> u64 {
    match &*client.socket.borrow() {
        Stream::Tls(tls) => tls.writes,
        Stream::Plain(_) | Stream::Http2(_) => panic!("not over TLS"),
    }
}

/// A session over a socket in which there are records of so many bytes of plaintext.
async fn with_records(records: &[usize]) -> (Tls, TlsStream<TcpStream>) {
    /// Of a record of TLS 1.3: its header, its type and its tag.
    const OVERHEAD_BYTES: usize = 5 + 1 + 16;
    let (config, connector) = both_ends();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let name = ServerName::try_from("shard").unwrap();
    let (client, server) =
        tokio::join!(connector.connect(name, socket), TlsAcceptor::from(config).accept(accepted));
    let (mut client, (socket, session)) = (client.unwrap(), server.unwrap().into_inner());
    for bytes in records {
        client.write_all(&vec![b'x'; *bytes]).await.unwrap();
        client.flush().await.unwrap();
    }
    let sent = records.iter().map(|bytes| bytes + OVERHEAD_BYTES).sum::<usize>();
    let mut ciphertext = vec![0; 2 * sent];
    let all_there = async {
        while socket.peek(&mut ciphertext).await.unwrap() < sent {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, all_there).await.expect("the client has sent it");
    (Tls::new(socket, session), client)
}

/// rustls had more plaintext than it takes ciphertext beside, and that ended the connection.
#[tokio::test]
async fn reader_with_little_room_gets_all_of_several_records() {
    const RECORDS: [usize; 3] = [16_384, 1_500, 3_000];
    for room in [1, 100, 800, 3_000, 50_000] {
        let (mut tls, _client) = with_records(&RECORDS).await;
        let mut read = 0;
        while read < RECORDS.iter().sum() {
            let mut room = vec![0; room];
            let mut buffer = ReadBuf::new(&mut room);
            poll_fn(|cx| tls.poll_read(cx, &mut buffer)).await.unwrap();
            assert!(!buffer.filled().is_empty(), "the end after {read} bytes");
            read += buffer.filled().len();
        }
    }
}

#[test]
fn each_delivery_over_tls_is_one_system_call() {
    run(async || {
        let still = still_with_tls(|_| {}).await;
        let mut one = connect(&still, "/channels/a", 1 << 20).await;
        let mut several = connect(&still, "/channels/a?also=b&also=c", 1 << 20).await;
        let before = [writes(&one.client), writes(&several.client)];
        let frames = [text("a", 9), text("large", 50_000), text("b", 9), text("c", 9)];
        for (channel, frame) in ["a", "a", "b", "c"].into_iter().zip(&frames) {
            still.0.publish(channel, frame.clone());
        }
        assert_eq!(still.0.shard.flush_turn(), 2, "one for each of them");
        one.expect(&[&frames[0], &frames[1]]).await;
        several.expect(&frames.iter().collect::<Vec<_>>()).await;
        let after = [writes(&one.client), writes(&several.client)];
        assert_eq!(after, before.map(|count| count + 1));
        let counters = &still.0.shard.counters;
        assert_eq!(counters.outbound_queue_bytes.value(), 0, "nothing had to wait");
    });
}

#[test]
fn client_over_tls_that_does_not_read_holds_one_write_and_its_queue_and_is_closed() {
    const QUEUE_BYTES: usize = 70_000;
    run(async || {
        let still = still_with_tls(|settings| settings.outbound_queue_bytes = QUEUE_BYTES).await;
        let mut slow = connect(&still, "/channels/a", 4_096).await;
        let counters = &still.0.shard.counters;
        let mut published = 0;
        while counters.slow_consumers[SlowConsumerPolicy::Close as usize].value() == 0 {
            still.0.publish("a", text(&format!("{published:05}"), 1_000));
            still.0.shard.flush_turn();
            assert!(counters.outbound_queue_bytes.value() <= QUEUE_BYTES as u64);
            published += 1;
            assert!(published < 10_000, "it is never closed");
        }
        let dropped = counters.dropped_messages[SlowConsumerPolicy::Close as usize].value();
        for number in 0..published - dropped {
            slow.expect(&[&text(&format!("{number:05}"), 1_000)]).await;
        }
        let close = frame::encode_close(Some(CloseCode::POLICY_VIOLATION), "slow consumer");
        slow.expect(&[&close]).await;
        let Stream::Tls(tls) = &*slow.client.socket.borrow() else { panic!("it is over TLS") };
        assert!(!tls.has_unsent());
        assert_eq!(counters.outbound_queue_bytes.value(), 0);
    });
}

#[test]
fn close_behind_waiting_ciphertext_is_sent_and_ends_with_close_notify() {
    run(async || {
        let still = still_with_tls(|_| {}).await;
        let mut slow = connect(&still, "/channels/a", 4_096).await;
        // More than the kernel takes, and no more than one write: nothing waits in the queue.
        let frame = text("large", MAX_WRITE_BYTES - 4);
        still.0.publish("a", frame.clone());
        still.0.shard.flush_turn();
        assert!(slow.client.has_unsent(), "the kernel took it all");
        slow.client.close(CloseCode::GOING_AWAY, "bye", &still.0.shard);
        tokio::io::AsyncWriteExt::write_all(&mut slow.socket, b"\x88\x80\0\0\0\0").await.unwrap();
        let close = frame::encode_close(Some(CloseCode::GOING_AWAY), "bye");
        slow.expect(&[&frame, &close]).await;
        // Without close_notify this would be an error.
        assert_eq!(slow.socket.read(&mut [0]).await.unwrap(), 0);
    });
}
