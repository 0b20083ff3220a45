//! The promises of a channel, over two shards: every subscriber hears every message, exactly once,
//! in its publisher's order, and in the same order as every other subscriber.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use http::StatusCode;
use serde_json::json;
use tokio::task::{JoinSet, yield_now};

use crate::support::client::{Client, connect_many};
use crate::support::gateway::Gateway;

/// The text by which a message can be told from every other.
fn label(publisher: &str, number: usize) -> String {
    format!("{publisher}:{number}")
}

/// Demands that `heard` holds `count` messages of each of `publishers`, each once and each
/// publisher's in the order sent, and nothing else.
fn assert_complete_and_in_order(heard: &[String], publishers: &[String], count: usize) {
    let mut next: HashMap<&str, usize> = HashMap::new();
    for message in heard {
        let (publisher, number) = message.split_once(':').expect("messages have labels");
        let expected = next.entry(publisher).or_default();
        assert_eq!(number, expected.to_string(), "of {publisher}, after {expected} in order");
        *expected += 1;
    }
    let expected: HashMap<&str, usize> =
        publishers.iter().map(|publisher| (publisher.as_str(), count)).collect();
    assert_eq!(next, expected);
}

async fn read_texts(client: &mut Client, count: usize) -> Vec<String> {
    let mut heard = Vec::with_capacity(count);
    for _ in 0..count {
        heard.push(client.read_text().await);
    }
    heard
}

/// Sends `count` messages, and lets others send between any two of them.
async fn publish(client: &mut Client, publisher: &str, count: usize) {
    for number in 0..count {
        client.send_text(&label(publisher, number)).await;
        yield_now().await;
    }
}

#[tokio::test]
async fn two_thousand_subscribers_hear_each_message_exactly_once_and_in_the_same_order() {
    const SUBSCRIBERS: usize = 2_000;
    const PUBLISHERS: usize = 8;
    const MESSAGES: usize = 15;
    let gateway = Gateway::start(&["--shards", "2"]).await;
    let clients = connect_many(gateway.listen, "/channels/everyone", SUBSCRIBERS).await;
    gateway.until_metric("wsgate_subscriptions", &[], SUBSCRIBERS as f64).await;
    let metrics = gateway.metrics().await;
    for shard in ["0", "1"] {
        let connections = metrics.sum("wsgate_connections", &[("shard", shard)]);
        assert!((900.0..=1_100.0).contains(&connections), "shard {shard} has {connections}");
    }

    let mut tasks = JoinSet::new();
    for (index, mut client) in clients.into_iter().enumerate() {
        tasks.spawn(async move {
            if index % (SUBSCRIBERS / PUBLISHERS) == 0 {
                publish(&mut client, &index.to_string(), MESSAGES).await;
            }
            let heard = read_texts(&mut client, PUBLISHERS * MESSAGES).await;
            (client, heard)
        });
    }
    let (mut clients, heard): (Vec<Client>, Vec<Vec<String>>) =
        tasks.join_all().await.into_iter().unzip();
    let step = SUBSCRIBERS / PUBLISHERS;
    let publishers: Vec<_> = (0..PUBLISHERS).map(|index| (index * step).to_string()).collect();
    assert_complete_and_in_order(&heard[0], &publishers, MESSAGES);
    for other in &heard[1..] {
        assert_eq!(*other, heard[0], "all hear the same order");
    }

    // What comes next is the next message: nothing came twice.
    gateway.call("publish", json!({ "channel": "everyone", "data": "end" })).await;
    for client in &mut clients {
        assert_eq!(client.read_text().await, "end");
    }
    let published = (PUBLISHERS * MESSAGES + 1) as f64;
    gateway.until_metric("wsgate_publications_total", &[], published).await;
    let deliveries = published * SUBSCRIBERS as f64;
    gateway.until_metric("wsgate_deliveries_total", &[], deliveries).await;
}

#[tokio::test]
async fn publisher_that_wants_none_of_its_own_hears_the_others_only() {
    let gateway = Gateway::start(&["--shards", "2"]).await;
    let mut quiet = Vec::new();
    for shard in [0, 1, 0, 1] {
        quiet.push(gateway.connect_to_shard(shard, "/channels/room?own=false").await);
    }
    let mut plain = gateway.connect("/channels/room").await;
    for round in 0..50 {
        for (index, client) in quiet.iter_mut().enumerate() {
            client.send_text(&label(&index.to_string(), round)).await;
        }
        plain.send_text(&label("plain", round)).await;
    }
    let publishers = ["0", "1", "2", "3", "plain"].map(str::to_owned);
    let everything = read_texts(&mut plain, publishers.len() * 50).await;
    assert_complete_and_in_order(&everything, &publishers, 50);
    for (index, client) in quiet.iter_mut().enumerate() {
        let own = format!("{index}:");
        let expected: Vec<String> =
            everything.iter().filter(|message| !message.starts_with(&own)).cloned().collect();
        assert_eq!(read_texts(client, expected.len()).await, expected);
    }
}

#[tokio::test]
async fn messages_of_the_api_and_of_connections_keep_each_publishers_order() {
    const MESSAGES: usize = 100;
    let gateway = Gateway::start(&["--shards", "2"]).await;
    let mut subscribers = connect_many(gateway.listen, "/channels/mixed?own=false", 20).await;
    let mut publishing = JoinSet::new();
    for publisher in ["one", "two", "three"] {
        let mut client = gateway.connect("/channels/mixed").await;
        publishing.spawn(async move {
            publish(&mut client, publisher, MESSAGES).await;
            // Kept open: closing over unread messages is a reset, which takes back what was sent.
            Some(client)
        });
    }
    for publisher in ["first", "second"] {
        let mut requests = gateway.requests().await;
        publishing.spawn(async move {
            for number in 0..MESSAGES {
                let data = label(publisher, number);
                let parameters = json!({ "channel": "mixed", "data": data });
                let answer = requests.call("publish", parameters).await;
                assert_eq!(answer.json(), json!({ "result": {} }));
            }
            None
        });
    }
    let publishers = ["one", "two", "three", "first", "second"].map(str::to_owned);
    let all = publishers.len() * MESSAGES;
    let heard = read_texts(&mut subscribers[0], all).await;
    assert_complete_and_in_order(&heard, &publishers, MESSAGES);
    for other in &mut subscribers[1..] {
        assert_eq!(read_texts(other, all).await, heard);
    }
    publishing.join_all().await;
}

/// Keeps both shards busy until it is dropped, from a thread of its own.
struct Noise {
    is_over: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Noise {
    fn make(gateway: &Gateway) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (listen, until) = (gateway.listen, Arc::clone(&is_over));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("there are descriptors left").block_on(async {
                let mut clients = connect_many(listen, "/echo", 16).await;
                while !until.load(Ordering::Relaxed) {
                    for client in &mut clients {
                        for _ in 0..4 {
                            client.send_text("noise").await;
                        }
                    }
                    for client in &mut clients {
                        read_texts(client, 4).await;
                    }
                }
            });
        });
        Self { is_over, thread: Some(thread) }
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Where it failed, so does the test by what it then finds.
            _ = thread.join();
        }
    }
}

#[tokio::test]
async fn publication_right_after_a_subscribers_handshake_always_reaches_it() {
    let gateway = Gateway::start(&["--shards", "2"]).await;
    let _noise = Noise::make(&gateway);
    let mut requests = gateway.requests().await;
    let mut publishers_on = [0, 0];
    for round in 0..200 {
        // A new channel each time, so that its home and the first subscriber's shard change.
        let path = format!("/channels/round-{round}");
        let mut publisher = gateway.connect(&path).await;
        let mut by_connection = gateway.connect(&path).await;
        publisher.send_text("from a connection").await;
        assert_eq!(by_connection.read_text().await, "from a connection", "round {round}");
        publishers_on[usize::from(publisher.shard() == by_connection.shard())] += 1;

        let channel = format!("api-{round}");
        let mut by_api = gateway.connect(&format!("/channels/{channel}")).await;
        requests.call("publish", json!({ "channel": channel, "data": "from the API" })).await;
        assert_eq!(by_api.read_text().await, "from the API", "round {round}");
    }
    assert!(publishers_on.iter().all(|rounds| *rounds > 0), "{publishers_on:?}");
}

/// A message whose every byte follows from its publisher and number.
fn numbered(publisher: u8, number: u8, bytes: usize) -> Vec<u8> {
    let mut payload: Vec<u8> =
        (0..bytes).map(|at| (at / 7) as u8 ^ publisher.wrapping_mul(31) ^ number).collect();
    payload[..2].copy_from_slice(&[publisher, number]);
    payload
}

#[tokio::test]
async fn large_and_small_messages_keep_their_order_and_every_byte() {
    const SIZES: [usize; 6] = [10, 65_536, 1_000, 40_000, 3, 65_536];
    const MESSAGES: u8 = 60;
    let size = |number: u8| SIZES[usize::from(number) % SIZES.len()];
    // All of it fits into a queue, so that no reader here is too slow.
    let gateway = Gateway::start(&["--shards", "2", "--outbound-queue-bytes", "32MiB"]).await;
    let subscribers = connect_many(gateway.listen, "/channels/sizes", 8).await;
    let mut tasks = JoinSet::new();
    for (publisher, shard) in [(0, 0), (1, 1), (2, 0)] {
        let mut client = gateway.connect_to_shard(shard, "/channels/sizes?own=false").await;
        tasks.spawn(async move {
            for number in 0..MESSAGES {
                let payload = numbered(publisher, number, size(number));
                match number % 4 {
                    3 => client.send_fragmented(&payload, 30_000).await,
                    _ => client.send_binary(&payload).await,
                }
                yield_now().await;
            }
            // Not closed before the subscribers have heard everything.
            (client, Vec::new())
        });
    }
    for mut client in subscribers {
        tasks.spawn(async move {
            let mut order = Vec::new();
            let mut next = [0; 3];
            for _ in 0..3 * usize::from(MESSAGES) {
                let payload = client.read_binary().await;
                let [publisher, number] = payload[..2] else {
                    unreachable!("no message is shorter");
                };
                assert_eq!(number, next[usize::from(publisher)], "in the publisher's order");
                assert!(payload == numbered(publisher, number, size(number)), "every byte");
                next[usize::from(publisher)] += 1;
                order.push((publisher, number));
            }
            (client, order)
        });
    }
    let orders = tasks.join_all().await.into_iter().map(|(_, order)| order);
    let orders: Vec<_> = orders.filter(|order: &Vec<_>| !order.is_empty()).collect();
    assert_eq!(orders.len(), 8);
    assert!(orders.iter().all(|order| *order == orders[0]), "all hear the same order");
}

#[tokio::test]
async fn api_publish_is_told_to_come_again_where_the_mailbox_is_full_and_what_it_took_arrives() {
    const SUBSCRIBERS: usize = 50;
    const CALLERS: usize = 16;
    // One message of the largest size fills a mailbox, and takes the shard a while to hand out.
    let flags = ["--shards", "1", "--mailbox-bytes", "66000", "--outbound-queue-bytes", "64MiB"];
    let gateway = Gateway::start(&flags).await;
    let mut subscribers = connect_many(gateway.listen, "/channels/busy", SUBSCRIBERS).await;
    let mut calling = JoinSet::new();
    for caller in 0..CALLERS {
        let mut requests = gateway.requests().await;
        calling.spawn(async move {
            let mut taken = Vec::new();
            let mut refused = 0;
            for number in 0..8 {
                let data = format!("{}:{}", label(&caller.to_string(), number), "x".repeat(60_000));
                let parameters = json!({ "channel": "busy", "data": data });
                let answer = requests.call("publish", parameters).await;
                match answer.status {
                    StatusCode::OK => taken.push(label(&caller.to_string(), number)),
                    StatusCode::SERVICE_UNAVAILABLE => {
                        assert_eq!(answer.header("retry-after"), Some("1"));
                        assert_eq!(answer.json()["error"]["code"], 108, "{}", answer.body);
                        refused += 1;
                    }
                    other => panic!("{other}: {}", answer.body),
                }
            }
            (taken, refused)
        });
    }
    let (taken, refused): (Vec<Vec<String>>, Vec<usize>) =
        calling.join_all().await.into_iter().unzip();
    let refused: usize = refused.iter().sum();
    assert!(refused > 0, "the mailbox was never full, so this test says nothing");
    let mut taken = taken.concat();
    taken.sort();
    for subscriber in &mut subscribers {
        let mut heard: Vec<String> = Vec::new();
        for text in read_texts(subscriber, taken.len()).await {
            heard.push(text.trim_end_matches('x').trim_end_matches(':').to_owned());
        }
        heard.sort();
        assert_eq!(heard, taken);
    }
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.sum("wsgate_mailbox_full_total", &[]), refused as f64);
    let from_api = [("source", "api")];
    assert_eq!(metrics.sum("wsgate_publications_total", &from_api), taken.len() as f64);
}
