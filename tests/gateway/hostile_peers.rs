//! Clients that do not read, read next to nothing, or end in any way but a good one, at every moment of
//! a connection: others are served meanwhile, and nothing is left of them, neither in the gateway nor in
//! its kernel.
//!
//! What is wrong with their bytes is in `hostile_frames.rs`.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tokio::task::JoinSet;

use crate::support::client::connect_many;
use crate::support::deflate::DeflateClient;
use crate::support::gateway::Gateway;
use crate::support::raw::{
    BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, RSV1, RawClient, TEXT, close_payload, encode,
    encode_header, encode_with, request,
};
use crate::support::sequence::{self, Heard};
use crate::support::siege::Siege;
use crate::support::until;

const PATHS: [&str; 2] = ["/echo", "/channels/hostile"];

const MIB: usize = 1024 * 1024;

const CLOSED: &str = "wsgate_connections_closed_total";

/// Closed by the gateway for silence.
const IDLE: [(&str, &str); 2] = [("code", "1001"), ("initiator", "local")];

async fn sum(gateway: &Gateway, name: &str, labels: &[(&str, &str)]) -> f64 {
    gateway.metrics().await.sum(name, labels)
}

#[tokio::test]
async fn pings_of_clients_that_never_read_are_taken_and_only_the_latest_pongs_are_kept() {
    const CLIENTS_OF_A_KIND: usize = 2;
    const FLOOD_BYTES: usize = 3 * MIB;
    const FLOOD_BYTES_A_WRITE: usize = 64 * 1024;
    // The Pongs for what one read holds wait in the queue; later ones replace each other.
    const MOST_PER_CLIENT: usize = 512 * 1024;
    let siege = Siege::begin(&[]).await;
    let toll = siege.withstand(async |siege| {
        let mut flooding = JoinSet::new();
        for path in PATHS {
            for payload_bytes in [0, 125] {
                for _ in 0..CLIENTS_OF_A_KIND {
                    let mut client = siege.gateway.open_stalled(path).await;
                    let ping = encode(PING, &vec![b'.'; payload_bytes]);
                    let pings = ping.repeat(FLOOD_BYTES_A_WRITE / ping.len());
                    flooding.spawn(async move {
                        for _ in 0..FLOOD_BYTES / FLOOD_BYTES_A_WRITE {
                            client.send(&pings).await;
                        }
                        client
                    });
                }
            }
        }
        siege.until_others_are_served().await;
        let clients = flooding.join_all().await;
        // The latest Ping is answered to whoever reads in the end.
        for mut client in clients {
            client.send_frame(PING, b"latest").await;
            while client.read_message(PONG).await != b"latest" {}
        }
    });
    let toll = toll.await;
    assert!(toll.memory_bytes < 4 * CLIENTS_OF_A_KIND * MOST_PER_CLIENT, "{toll:?}");
}

/// What it was sent lay in memory between its own messages, which it did not get and which stayed there.
#[tokio::test]
async fn subscriber_that_never_reads_and_publishes_keeps_no_memory_with_what_is_its_own() {
    const OWN: &str = "/channels/own?own=false";
    const QUEUED: f64 = 600.0 * 1024.0;
    let gateway = Gateway::start(&["--shards", "1"]).await;
    let mut stalled = gateway.open_stalled(OWN).await;
    let mut other = gateway.open_raw(OWN).await;
    let queued = async || sum(&gateway, "wsgate_outbound_queue_bytes", &[]).await;
    let message = encode(BINARY, &[b'.'; 4_200]);
    // What the kernel has room for.
    while queued().await == 0.0 {
        other.send(&message.repeat(10)).await;
    }
    assert!(queued().await < QUEUED / 2.0, "so this test says nothing");
    let before = gateway.memory_bytes();
    let own = encode(BINARY, &[b'o'; 16_000]).repeat(4);
    while queued().await < QUEUED {
        // All of it comes in one turn.
        let frozen = gateway.freeze(0);
        stalled.send(&own).await;
        other.send(&message).await;
        frozen.thaw();
    }
    let grown = gateway.memory_bytes().saturating_sub(before);
    assert!(grown < 2 * MIB, "{grown} bytes for {} that are queued", queued().await);
}

#[tokio::test]
async fn echo_clients_that_never_read_are_not_read_and_end_with_the_idle_timeout() {
    const CLIENTS: usize = 8;
    // Half of the queue when reading stops, the other half by the last read, and a message on top.
    const MOST_QUEUED_PER_CLIENT: usize = MIB + MIB / 16;
    const MOST_PER_CLIENT: usize = 2 * MIB;
    let siege = Siege::begin(&["--idle-timeout", "2s", "--ping-interval", "500ms"]).await;
    let frame = encode(BINARY, &[b'x'; 60_000]);
    let toll = siege.withstand(async |siege| {
        let idle_before = sum(&siege.gateway, CLOSED, &IDLE).await;
        let mut flooding = JoinSet::new();
        for _ in 0..CLIENTS {
            let mut client = siege.gateway.open_stalled("/echo").await;
            let frame = frame.clone();
            flooding.spawn(async move {
                client.send_until_full(&frame, 64 * MIB).await;
                client
            });
        }
        let clients = flooding.join_all().await;
        siege.until_others_are_served().await;
        let queued = sum(&siege.gateway, "wsgate_outbound_queue_bytes", &[]).await;
        assert!(queued > 0.0, "nobody was ever slow, so this test says nothing");
        assert!(queued <= (CLIENTS * MOST_QUEUED_PER_CLIENT) as f64, "{queued}");
        // Nobody takes what waits and nobody is read: that is silence, whoever causes it.
        let idle = idle_before + CLIENTS as f64;
        siege.gateway.until_metric(CLOSED, &IDLE, idle).await;
        siege.until_connections_are_gone().await;
        drop(clients);
    });
    let toll = toll.await;
    assert!(toll.memory_bytes < CLIENTS * MOST_PER_CLIENT, "{toll:?}");
}

/// Has one subscriber read a byte now and then, while others read all that is published.
async fn read_drop_by_drop(policy: &str, action: &str) {
    const MESSAGE_BYTES: usize = 4_000;
    // At a time: less than the sockets and queues of those who read have room for.
    const MESSAGES_A_ROUND: u32 = 8;
    // Many times of what the queue of the one who does not read holds.
    const ROUNDS: u32 = 60;
    const QUEUE_BYTES: usize = 128 * 1024;
    let queue = QUEUE_BYTES.to_string();
    let siege = Siege::begin(&["--slow-consumer", policy, "--outbound-queue-bytes", &queue]).await;
    let labels = [("action", action)];
    let toll = siege.withstand(async |siege| {
        let gateway = &siege.gateway;
        let slow_before = sum(gateway, "wsgate_slow_consumers_total", &labels).await;
        let dropped_before = sum(gateway, "wsgate_dropped_messages_total", &[]).await;
        let mut readers = gateway.open_many_raw("/channels/hostile", 4).await;
        let mut publisher = gateway.open_raw("/channels/hostile?own=false").await;
        let RawClient { writer, mut reader } = gateway.open_narrow("/channels/hostile").await;
        let (stop, mut is_stopped) = tokio::sync::oneshot::channel();
        let dripping = tokio::spawn(async move {
            // A byte a second, a hundred times faster.
            let mut clock = tokio::time::interval(Duration::from_millis(10));
            loop {
                tokio::select! {
                    _ = &mut is_stopped => return reader,
                    _ = clock.tick() => assert!(reader.read_byte().await, "nobody lets it go"),
                }
            }
        });

        let frames = sequence::frames(1, ROUNDS * MESSAGES_A_ROUND, MESSAGE_BYTES);
        let round_bytes = sequence::frame_bytes(MESSAGE_BYTES) * MESSAGES_A_ROUND as usize;
        let mut heard: Vec<_> = readers.iter().map(|_| Heard::default()).collect();
        for round in frames.chunks(round_bytes) {
            publisher.send(round).await;
            for (reader, heard) in readers.iter_mut().zip(&mut heard) {
                for _ in 0..MESSAGES_A_ROUND {
                    heard.next_from_the_first(&reader.read_message(TEXT).await);
                }
            }
        }
        siege.until_others_are_served().await;
        let slow = sum(gateway, "wsgate_slow_consumers_total", &labels).await - slow_before;
        assert!(slow > 0.0, "nobody was ever slow, so this test says nothing");

        stop.send(()).expect("it drips until it is told to stop");
        let mut reader = dripping.await.expect("it only reads");
        let dropped = sum(gateway, "wsgate_dropped_messages_total", &[]).await - dropped_before;
        // What it got is whole, and in order.
        let mut slow_heard = Heard::default();
        if policy == "close" {
            let left = loop {
                let frame = reader.read_frame().await;
                match frame.opcode {
                    CLOSE => break frame,
                    _ => slow_heard.next_from_the_first(&frame.payload),
                }
            };
            assert_eq!(left.close(), (1008, "slow consumer"));
        } else {
            let due = (ROUNDS * MESSAGES_A_ROUND) as usize - dropped as usize;
            while slow_heard.messages < due {
                let frame = reader.read_frame().await;
                slow_heard.later(&frame.payload);
            }
        }
        drop(writer);
    });
    let toll = toll.await;
    assert!(toll.memory_bytes < QUEUE_BYTES + 2 * MIB, "{toll:?}");
}

#[tokio::test]
async fn subscriber_that_reads_a_byte_at_a_time_is_closed_as_a_slow_consumer() {
    read_drop_by_drop("close", "close").await;
}

#[tokio::test]
async fn subscriber_that_reads_a_byte_at_a_time_loses_the_oldest_and_no_other_does() {
    read_drop_by_drop("drop-oldest", "drop_oldest").await;
}

#[tokio::test]
async fn subscriber_that_reads_a_byte_at_a_time_loses_the_newest_and_no_other_does() {
    read_drop_by_drop("drop-newest", "drop_newest").await;
}

#[tokio::test]
async fn flood_of_tiny_messages_to_subscribers_that_lose_them_leaves_others_their_turn() {
    const QUEUE_BYTES: usize = 128 * 1024;
    const MESSAGES_A_WRITE: usize = 5_000;
    // More than the queues of the two hold, so that both lose messages all the while.
    const WRITES: usize = 10;
    let queue = QUEUE_BYTES.to_string();
    let flood = encode(BINARY, b"").repeat(MESSAGES_A_WRITE);
    for policy in ["drop-oldest", "drop-newest"] {
        // What waits between the shards is bounded too, by 16 MiB unless it is told otherwise.
        let bounds = ["--outbound-queue-bytes", &queue, "--mailbox-bytes", "512KiB"];
        let siege = Siege::begin(&[&["--slow-consumer", policy], &bounds[..]].concat()).await;
        let toll = siege.withstand(async |siege| {
            let gateway = &siege.gateway;
            let mut stalled = Vec::new();
            for shard in 0..2 {
                stalled.push(gateway.open_narrow_on_shard(shard, "/channels/hostile").await);
            }
            let mut publisher = gateway.open_raw("/channels/hostile?own=false").await;
            let dropped = async || sum(gateway, "wsgate_dropped_messages_total", &[]).await;
            let before = dropped().await;
            while dropped().await == before {
                publisher.send(&flood).await;
            }
            siege
                .repeat_while_others_are_served(WRITES, async || publisher.send(&flood).await)
                .await;
            drop(stalled);
        });
        let toll = toll.await;
        assert!(toll.memory_bytes < 8 * MIB, "{policy}: {toll:?}");
    }
}

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Idle,
    BehindAnUpgradeThatItDidNotRead,
    InAShortHeader,
    InALongHeader,
    InAPayload,
    InAFragment,
    BetweenFragments,
    InAPingBetweenFragments,
    WithABacklog,
    WithABacklogInAPayload,
    BehindItsOwnClose,
    BehindItsOwnCloseWithABacklog,
    BehindTheGatewaysClose,
    BehindTheGatewaysCloseWithABacklog,
    BehindTheGatewaysCloseInAPayload,
    Failed,
    FailedWithABacklog,
    BehindADeflatedMessage,
    InADeflatedPayload,
    BetweenDeflatedFragments,
    WithADeflatedBacklog,
    FailedToBeInflated,
}

impl Moment {
    const ALL: [Self; 22] = [
        Self::Idle,
        Self::BehindAnUpgradeThatItDidNotRead,
        Self::InAShortHeader,
        Self::InALongHeader,
        Self::InAPayload,
        Self::InAFragment,
        Self::BetweenFragments,
        Self::InAPingBetweenFragments,
        Self::WithABacklog,
        Self::WithABacklogInAPayload,
        Self::BehindItsOwnClose,
        Self::BehindItsOwnCloseWithABacklog,
        Self::BehindTheGatewaysClose,
        Self::BehindTheGatewaysCloseWithABacklog,
        Self::BehindTheGatewaysCloseInAPayload,
        Self::Failed,
        Self::FailedWithABacklog,
        Self::BehindADeflatedMessage,
        Self::InADeflatedPayload,
        Self::BetweenDeflatedFragments,
        Self::WithADeflatedBacklog,
        Self::FailedToBeInflated,
    ];

    /// More waits for the client than its socket has room for.
    fn has_a_backlog(self) -> bool {
        matches!(
            self,
            Self::WithABacklog
                | Self::WithABacklogInAPayload
                | Self::BehindItsOwnCloseWithABacklog
                | Self::BehindTheGatewaysCloseWithABacklog
                | Self::FailedWithABacklog
                | Self::WithADeflatedBacklog
        )
    }

    /// The client has agreed on permessage-deflate, and has messages inflated.
    fn is_deflated(self) -> bool {
        matches!(
            self,
            Self::BehindADeflatedMessage
                | Self::InADeflatedPayload
                | Self::BetweenDeflatedFragments
                | Self::WithADeflatedBacklog
                | Self::FailedToBeInflated
        )
    }

    fn is_behind_the_gateways_close(self) -> bool {
        matches!(
            self,
            Self::BehindTheGatewaysClose
                | Self::BehindTheGatewaysCloseWithABacklog
                | Self::BehindTheGatewaysCloseInAPayload
        )
    }
}

/// A client on a channel or on `/echo` for which more waits than its socket has room for.
async fn open_with_a_backlog(gateway: &Gateway, path: &str) -> (RawClient, String) {
    const QUEUED: &str = "wsgate_outbound_queue_bytes";
    let before = sum(gateway, QUEUED, &[]).await;
    let mut client = RawClient::connect_with_little_room(gateway.listen).await;
    let id = client.upgrade(path).await;
    // Its own answers, or its own publications.
    let message = encode(BINARY, &[b'x'; 30_000]);
    while sum(gateway, QUEUED, &[]).await <= before {
        client.offer(&message).await;
    }
    (client, id)
}

/// A text of its own for each seed, that deflates to about half.
fn digits(seed: u32, count: usize) -> String {
    let mut state = seed;
    let digit = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from_digit(state >> 28, 16).expect("four bits")
    };
    (0..count).map(digit).collect()
}

/// A connection that is at this moment of its life, of those with permessage-deflate. It has had a
/// message inflated, so that there is something to refer to where that is agreed.
async fn open_deflated_at(gateway: &Gateway, path: &str, moment: Moment) -> RawClient {
    const QUEUED: &str = "wsgate_outbound_queue_bytes";
    let raw = RawClient::connect_with_little_room(gateway.listen).await;
    let offer = "permessage-deflate; client_max_window_bits";
    let mut client = DeflateClient::open(raw, path, offer).await;
    let text = digits(1, 3_000);
    client.send_deflated(TEXT, text.as_bytes()).await;
    assert_eq!(client.read_message(TEXT).await, (text.clone().into_bytes(), true));
    if moment.has_a_backlog() {
        let large = digits(2, 30_000);
        let before = sum(gateway, QUEUED, &[]).await;
        while sum(gateway, QUEUED, &[]).await <= before {
            let deflated = client.deflate(large.as_bytes());
            client.raw.offer(&encode_with(FIN | RSV1 | TEXT, &deflated)).await;
        }
    }
    let deflated = client.deflate(digits(3, 2_000).as_bytes());
    let half = &deflated[..deflated.len() / 2];
    let bytes = match moment {
        Moment::InADeflatedPayload | Moment::WithADeflatedBacklog => {
            encode_with(FIN | RSV1 | TEXT, &deflated)[..500].to_vec()
        }
        Moment::BetweenDeflatedFragments => encode_with(RSV1 | TEXT, half),
        Moment::FailedToBeInflated => encode_with(FIN | RSV1 | TEXT, b"\xff\xff\xff"),
        _ => vec![],
    };
    client.raw.send(&bytes).await;
    client.raw
}

/// A connection that is at this moment of its life.
async fn open_at(gateway: &Gateway, path: &str, moment: Moment) -> RawClient {
    if moment.is_deflated() {
        return open_deflated_at(gateway, path, moment).await;
    }
    if moment == Moment::BehindAnUpgradeThatItDidNotRead {
        let mut client = RawClient::connect(gateway.listen).await;
        client.send(&request(path)).await;
        return client;
    }
    let (mut client, id) = if moment.has_a_backlog() {
        open_with_a_backlog(gateway, path).await
    } else {
        let mut client = RawClient::connect(gateway.listen).await;
        let id = client.upgrade(path).await;
        (client, id)
    };
    let begun = &encode(TEXT, &[b'x'; 3_000])[..1_000];
    let bytes = match moment {
        Moment::Idle | Moment::WithABacklog | Moment::BehindAnUpgradeThatItDidNotRead => vec![],
        Moment::InAShortHeader => encode_header(FIN | TEXT, 5)[..1].to_vec(),
        Moment::InALongHeader => encode_header(FIN | TEXT, 1 << 16)[..9].to_vec(),
        Moment::InAPayload | Moment::WithABacklogInAPayload => begun.to_vec(),
        Moment::InAFragment => encode_with(TEXT, &[b'x'; 300])[..200].to_vec(),
        Moment::BetweenFragments => encode_with(BINARY, b"begun"),
        Moment::InAPingBetweenFragments => {
            [&encode_with(BINARY, b"begun"), &encode(PING, &[b'.'; 100])[..50]].concat()
        }
        Moment::BehindItsOwnClose | Moment::BehindItsOwnCloseWithABacklog => {
            encode(CLOSE, &close_payload(1000, "bye"))
        }
        Moment::BehindTheGatewaysClose | Moment::BehindTheGatewaysCloseWithABacklog => vec![],
        Moment::BehindTheGatewaysCloseInAPayload => begun.to_vec(),
        Moment::Failed | Moment::FailedWithABacklog => encode(CONTINUATION, b"of nothing"),
        Moment::BehindADeflatedMessage
        | Moment::InADeflatedPayload
        | Moment::BetweenDeflatedFragments
        | Moment::WithADeflatedBacklog
        | Moment::FailedToBeInflated => unreachable!("opened above"),
    };
    client.send(&bytes).await;
    if moment.is_behind_the_gateways_close() {
        gateway.call("disconnect", json!({ "connection": id })).await;
    }
    client
}

/// How a client lets go of its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It sends no more, and reads no more either, but keeps its socket.
    HalfClose,
    Reset,
    Close,
}

#[tokio::test]
async fn client_that_half_closes_resets_or_closes_its_socket_at_any_moment_leaves_nothing_behind() {
    end_at_any_moment("shared").await;
}

#[tokio::test]
async fn client_that_ends_at_any_moment_leaves_no_window_of_its_own_behind() {
    end_at_any_moment("dedicated").await;
}

/// Has clients end in every way at every moment, where messages are deflated in this mode.
async fn end_at_any_moment(compression: &str) {
    // While a backlog keeps a client of `/echo` from being read, the end of what it sends is not seen
    // either: then the idle timeout ends it.
    let idle = ["--idle-timeout", "2s", "--ping-interval", "0s"];
    let siege = Siege::begin(&[&idle[..], &["--compression", compression]].concat()).await;
    let toll = siege.withstand(async |siege| {
        // One that is reset at once may be gone before its handshake is over.
        let count = async || {
            let metrics = siege.gateway.metrics().await;
            metrics.sum(CLOSED, &[]) + metrics.sum("wsgate_connections_rejected_total", &[])
        };
        let ended_before = count().await;
        let (mut half_closed, mut ended) = (Vec::new(), 0.0);
        for moment in Moment::ALL {
            for end in [End::HalfClose, End::Reset, End::Close] {
                // What is published for a backlog on one channel would be one for all that are on it, and
                // some of it may still be on its way when the one who published it has ended.
                for path in ["/echo".to_owned(), format!("/channels/{moment:?}-{end:?}")] {
                    let mut client = open_at(&siege.gateway, &path, moment).await;
                    match end {
                        End::HalfClose => {
                            client.shut_down_if_connected().await;
                            half_closed.push(client);
                        }
                        End::Reset => client.reset(),
                        End::Close => drop(client),
                    }
                    ended += 1.0;
                }
            }
        }
        siege.until_others_are_served().await;
        // The gateway lets go by itself, and of every one once.
        siege.until_connections_are_gone().await;
        assert_eq!(count().await - ended_before, ended);
        siege.gateway.until_metric("wsgate_compression_memory_bytes", &[], 0.0).await;
        drop(half_closed);
    });
    let toll = toll.await;
    assert!(toll.memory_bytes < 8 * MIB, "{toll:?}");
}

#[tokio::test]
async fn slow_consumer_that_resets_or_half_closes_before_its_close_is_written_leaves_nothing() {
    let siege = Siege::begin(&["--outbound-queue-bytes", "128KiB"]).await;
    let toll = siege.withstand(async |siege| {
        let gateway = &siege.gateway;
        let mut half_closed = Vec::new();
        for end in [End::HalfClose, End::Reset, End::Close] {
            let before = sum(gateway, "wsgate_slow_consumers_total", &[]).await;
            let mut client = gateway.open_narrow("/channels/hostile").await;
            let mut publisher = gateway.open_raw("/channels/hostile?own=false").await;
            let message = encode(BINARY, &[b'x'; 30_000]);
            while sum(gateway, "wsgate_slow_consumers_total", &[]).await == before {
                publisher.send(&message).await;
            }
            match end {
                End::HalfClose => {
                    client.shut_down().await;
                    half_closed.push(client);
                }
                End::Reset => client.reset(),
                End::Close => drop(client),
            }
        }
        siege.until_others_are_served().await;
        siege.until_connections_are_gone().await;
        drop(half_closed);
    });
    let toll = toll.await;
    assert!(toll.memory_bytes < 4 * MIB, "{toll:?}");
}

#[tokio::test]
async fn subscribers_that_end_in_the_middle_of_a_fan_out_cost_the_others_nothing() {
    const LEAVING: usize = 30;
    const MESSAGES: u32 = 60;
    const MESSAGE_BYTES: usize = 4_000;
    let siege = Siege::begin(&[]).await;
    let frames = sequence::frames(1, MESSAGES, MESSAGE_BYTES);
    let frame_bytes = sequence::frame_bytes(MESSAGE_BYTES);
    let toll = siege.withstand(async |siege| {
        let gateway = &siege.gateway;
        let path = "/channels/hostile";
        let mut publisher = gateway.open_raw("/channels/hostile?own=false").await;
        // They stay: before, between and behind those that leave.
        let mut staying = gateway.open_many_raw(path, 4).await;
        let mut leaving = gateway.open_many_raw(path, LEAVING).await;
        staying.extend(gateway.open_many_raw(path, 4).await);
        leaving.extend(gateway.open_many_raw(path, LEAVING).await);
        staying.extend(gateway.open_many_raw(path, 4).await);

        let mut half_closed = Vec::new();
        for (number, frame) in frames.chunks(frame_bytes).enumerate() {
            // Now and then the shards hear of the publication and of the end at the same time.
            let frozen = (number % 10 == 0).then(|| [gateway.freeze(0), gateway.freeze(1)]);
            publisher.send(frame).await;
            let mut client = leaving.pop().expect("there is one for each message");
            match number % 3 {
                0 => client.reset(),
                1 => drop(client),
                _ => {
                    client.shut_down().await;
                    half_closed.push(client);
                }
            }
            drop(frozen);
        }
        for client in &mut staying {
            let mut heard = Heard::default();
            while heard.messages < MESSAGES as usize {
                heard.next_from_the_first(&client.read_message(TEXT).await);
            }
        }
        siege.until_others_are_served().await;
        drop((staying, publisher));
        siege.until_connections_are_gone().await;
    });
    let toll = toll.await;
    assert!(toll.memory_bytes < 8 * MIB, "{toll:?}");
}

#[tokio::test]
async fn clients_that_end_badly_while_a_drain_closes_them_do_not_keep_the_gateway() {
    let flags = ["--shards", "2", "--drain-grace", "0s", "--drain-duration", "0s"];
    let mut gateway = Gateway::start(&flags).await;
    let mut clients = Vec::new();
    for path in PATHS {
        for end in [End::HalfClose, End::Reset, End::Close] {
            for is_told in [true, false] {
                clients.push((end, is_told, gateway.open_raw(path).await));
            }
        }
    }
    // These never answer, and one of them cannot even be told.
    let mut vanished = gateway.open_many_raw("/echo", 4).await;
    vanished.extend(gateway.open_many_raw("/channels/hostile", 4).await);
    vanished.iter().for_each(RawClient::vanish);
    let (blocked, _) = open_with_a_backlog(&gateway, "/channels/blocked").await;
    blocked.vanish();

    gateway.signal(Signal::TERM);
    let mut half_closed = Vec::new();
    for (end, is_told, mut client) in clients {
        if is_told {
            assert_eq!(client.read_frame().await.close().0, 1001);
        }
        match end {
            End::HalfClose => {
                client.shut_down_if_connected().await;
                half_closed.push(client);
            }
            End::Reset => client.reset(),
            End::Close => drop(client),
        }
    }
    assert_eq!(gateway.exit().await.code(), Some(0));
    assert!(!gateway.log().contains("bug"), "{}", gateway.log());
}

// Clients vanish by a filter on their own sockets (`RawClient::vanish`), which drops every segment that
// arrives before TCP sees it. To the gateway and its kernel that is what a dropped veth or another network
// namespace is: a segment is never acknowledged, is sent again with growing pauses, and neither FIN nor
// reset ever comes. It needs no privileges, so it is tried wherever the tests are, and it can be done to one
// connection while others of the same host go on. `until_forgotten` looks at the kernel's own table for
// whether it was so.

/// What the kernel has for the gateway's end of a connection.
struct KernelSocket {
    /// Of `include/net/tcp_states.h`.
    state: u8,
    /// Bytes that were written and not acknowledged.
    unacknowledged_bytes: usize,
}

/// What the kernel has for the gateway's ends of these clients' connections, less those that it has
/// forgotten.
async fn kernel_sockets(gateway: &Gateway, clients: &[SocketAddr]) -> Vec<KernelSocket> {
    // Everybody is on the same address here, so the port tells them apart.
    let port = |address: &SocketAddr| format!(":{:04X}", address.port());
    let (gateway, clients) = (port(&gateway.listen), clients.iter().map(port).collect::<Vec<_>>());
    // On a thread of its own: a long table takes its time, in which everybody else is served.
    let read = tokio::task::spawn_blocking(|| fs::read_to_string("/proc/net/tcp"));
    let table = read.await.expect("it only reads").expect("Linux tells of its sockets");
    let sockets = table.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, local, remote, state, queues, ..] = fields[..] else {
            return None;
        };
        let is_one = local.ends_with(&gateway) && clients.iter().any(|port| remote.ends_with(port));
        let (unacknowledged, _) = queues.split_once(':').filter(|_| is_one)?;
        Some(KernelSocket {
            state: u8::from_str_radix(state, 16).expect("a hexadecimal number"),
            unacknowledged_bytes: usize::from_str_radix(unacknowledged, 16).expect("and this too"),
        })
    });
    sockets.collect()
}

/// Waits until the kernel has nothing left of the gateway's ends of these connections either.
async fn until_forgotten(gateway: &Gateway, clients: &[SocketAddr]) {
    /// The gateway has it try for 5 s more, which it notices when it next repeats itself. On its own it
    /// would try for 100 s or so.
    const SOON: Duration = Duration::from_secs(25);
    let is_forgotten = until("the kernel to forget", async || {
        kernel_sockets(gateway, clients).await.is_empty().then_some(())
    });
    if tokio::time::timeout(SOON, is_forgotten).await.is_err() {
        let left = kernel_sockets(gateway, clients).await;
        let describe = |KernelSocket { state, unacknowledged_bytes }: &KernelSocket| {
            format!("one in state {state} with {unacknowledged_bytes} bytes")
        };
        let left: Vec<_> = left.iter().map(describe).collect();
        panic!("the gateway has let go, its kernel has not: {left:#?}");
    }
}

#[tokio::test]
async fn idle_clients_that_vanish_are_pinged_in_vain_and_closed_with_the_idle_timeout() {
    const VANISHING: usize = 20;
    let siege = Siege::begin(&["--idle-timeout", "3s", "--ping-interval", "500ms"]).await;
    let toll = siege.withstand(async |siege| {
        let gateway = &siege.gateway;
        let idle_before = sum(gateway, CLOSED, &IDLE).await;
        let mut vanished = Vec::new();
        for path in PATHS {
            vanished.extend(gateway.open_many_raw(path, VANISHING / 2).await);
        }
        vanished.iter().for_each(RawClient::vanish);
        let addresses: Vec<_> = vanished.iter().map(RawClient::local_address).collect();
        until("a Ping that nobody acknowledges", async || {
            let sockets = kernel_sockets(gateway, &addresses).await;
            let pinged = sockets.iter().filter(|socket| socket.unacknowledged_bytes > 0);
            (pinged.count() == VANISHING).then_some(())
        })
        .await;
        siege.until_others_are_served().await;
        siege.gateway.until_metric(CLOSED, &IDLE, idle_before + VANISHING as f64).await;
        siege.until_connections_are_gone().await;
        until_forgotten(gateway, &addresses).await;
        vanished.into_iter().for_each(RawClient::reset);
    });
    let toll = toll.await;
    assert!(toll.memory_bytes < 2 * MIB, "{toll:?}");
}

#[tokio::test]
async fn subscribers_that_vanish_with_a_backlog_end_and_everyone_else_hears_everything_meanwhile() {
    const VANISHING: usize = 4;
    const MESSAGE_BYTES: usize = 4_000;
    // All of them together have more than this to be written to each who vanishes.
    const ROUNDS: u32 = 200;
    const MESSAGES_A_ROUND: u32 = 8;
    const QUEUE_BYTES: usize = 256 * 1024;
    let queue = QUEUE_BYTES.to_string();
    let times = ["--idle-timeout", "3s", "--ping-interval", "500ms"];
    let queue = ["--slow-consumer", "drop-oldest", "--outbound-queue-bytes", &queue];
    let siege = Siege::begin(&[times, queue].concat()).await;
    let toll = siege.withstand(async |siege| {
        let gateway = &siege.gateway;
        let idle_before = sum(gateway, CLOSED, &IDLE).await;
        let mut readers = connect_many(gateway.listen, "/channels/hostile", 3).await;
        let mut publisher = gateway.open_raw("/channels/hostile?own=false").await;
        let vanished = gateway.open_many_raw("/channels/hostile", VANISHING).await;
        vanished.iter().for_each(RawClient::vanish);
        let addresses: Vec<_> = vanished.iter().map(RawClient::local_address).collect();

        let frames = sequence::frames(1, ROUNDS * MESSAGES_A_ROUND, MESSAGE_BYTES);
        let round_bytes = sequence::frame_bytes(MESSAGE_BYTES) * MESSAGES_A_ROUND as usize;
        let mut heard: Vec<_> = readers.iter().map(|_| Heard::default()).collect();
        for round in frames.chunks(round_bytes) {
            publisher.send(round).await;
            for (reader, heard) in readers.iter_mut().zip(&mut heard) {
                for _ in 0..MESSAGES_A_ROUND {
                    heard.next_from_the_first(reader.read_text().await.as_bytes());
                }
            }
        }
        let sockets = kernel_sockets(gateway, &addresses).await;
        let in_the_kernel: usize = sockets.iter().map(|socket| socket.unacknowledged_bytes).sum();
        let in_the_gateway = sum(gateway, "wsgate_outbound_queue_bytes", &[]).await;
        println!("{in_the_kernel} bytes unacknowledged, {in_the_gateway} queued");
        assert!(in_the_kernel > 0, "nobody has vanished, so this test says nothing");
        assert!(in_the_gateway <= (VANISHING * QUEUE_BYTES) as f64);

        siege.until_others_are_served().await;
        drop((readers, publisher));
        gateway.until_metric(CLOSED, &IDLE, idle_before + VANISHING as f64).await;
        siege.until_connections_are_gone().await;
        until_forgotten(gateway, &addresses).await;
        vanished.into_iter().for_each(RawClient::reset);
    });
    let toll = toll.await;
    assert!(toll.memory_bytes < VANISHING * QUEUE_BYTES + 4 * MIB, "{toll:?}");
}
