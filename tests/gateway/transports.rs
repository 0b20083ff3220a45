//! Whatever way a client takes to the gateway, it gets the same: over plain TCP, a Unix socket, TLS 1.2
//! and 1.3, and HTTP/2, alone on its connection or with others.

use rustix::process::Signal;
use serde_json::json;

use crate::support::client::Message;
use crate::support::transport::{Entry, TRANSPORTS, Transport};
use crate::support::within;

#[tokio::test]
async fn every_message_comes_back_as_it_was_sent() {
    for transport in TRANSPORTS {
        println!("over {transport:?}");
        let mut entry = Entry::start(transport, &["--shards", "2"]).await;
        let mut clients = entry.connect_many("/echo", 4).await;
        for client in &mut clients {
            client.send_text("").await;
            assert_eq!(client.read_text().await, "");
            for bytes in [1, 125, 126, 4_096, 16_384, 65_535, 65_536] {
                let payload: Vec<u8> = (0..bytes).map(|at| at as u8).collect();
                client.send_binary(&payload).await;
                assert_eq!(client.read_binary().await, payload);
                client.send_fragmented(&payload, 10_000).await;
                assert_eq!(client.read_binary().await, payload);
            }
            for number in 0..100 {
                client.send_text(&number.to_string()).await;
            }
            for number in 0..100 {
                assert_eq!(client.read_text().await, number.to_string());
            }
            client.send_close(1000, "enough").await;
            assert_eq!(client.read().await, Message::Close(Some(1000), String::new()));
        }
        drop(clients);
        entry.gateway.until_metric("wsgate_connections", &[], 0.0).await;
        let over = match transport {
            Transport::Http2 | Transport::Http2Together => "2",
            _ => "1.1",
        };
        let metrics = entry.gateway.metrics().await;
        assert_eq!(metrics.sum("wsgate_handshakes_total", &[("http", over)]), 4.0);
        assert_eq!(metrics.sum("wsgate_handshakes_total", &[]), 4.0);
        let remote = [("code", "1000"), ("initiator", "remote")];
        assert_eq!(metrics.sum("wsgate_connections_closed_total", &remote), 4.0);
    }
}

#[tokio::test]
async fn subscribers_hear_all_publishers_in_one_order() {
    const MESSAGES: usize = 200;
    for transport in TRANSPORTS {
        println!("over {transport:?}");
        let mut entry = Entry::start(transport, &["--shards", "2"]).await;
        let mut subscribers = entry.connect_many("/channels/news?also=sport", 4).await;
        let mut publishers = [
            entry.connect("/channels/news?own=false").await,
            entry.connect("/channels/sport?own=false").await,
        ];
        for number in 0..MESSAGES {
            for (name, publisher) in ["news", "sport"].into_iter().zip(&mut publishers) {
                publisher.send_text(&format!("{name} {number}")).await;
            }
        }
        for subscriber in &mut subscribers {
            let mut next = [0, 0];
            for _ in 0..2 * MESSAGES {
                let text = subscriber.read_text().await;
                let (name, number) = text.split_once(' ').expect("a name and a number");
                let next = &mut next[usize::from(name == "sport")];
                assert_eq!(number, next.to_string(), "of {name}");
                *next += 1;
            }
        }
        // What is published after a handshake is heard, however soon.
        for number in 0..20 {
            let channel = format!("late-{number}");
            let mut client = entry.connect(&format!("/channels/{channel}")).await;
            entry.gateway.call("publish", json!({ "channel": channel, "data": channel })).await;
            assert_eq!(client.read_text().await, channel);
        }
    }
}

#[tokio::test]
async fn message_of_exactly_the_limit_passes_and_a_larger_one_gets_1009() {
    for transport in TRANSPORTS {
        println!("over {transport:?}");
        let flags = ["--shards", "1", "--max-message-bytes", "30000"];
        let mut entry = Entry::start(transport, &flags).await;
        let mut client = entry.connect("/echo").await;
        client.send_binary(&[7; 30_000]).await;
        assert_eq!(client.read_binary().await, [7; 30_000]);
        client.send_binary(&[7; 30_001]).await;
        assert!(matches!(client.read().await, Message::Close(Some(1009), _)));
    }
}

#[tokio::test]
async fn subscriber_that_does_not_read_is_closed_with_1008_and_the_others_hear_everything() {
    const MESSAGE_BYTES: usize = 60_000;
    for transport in TRANSPORTS {
        println!("over {transport:?}");
        let flags = ["--shards", "1", "--outbound-queue-bytes", "200000"];
        let mut entry = Entry::start(transport, &flags).await;
        let mut slow = entry.connect("/channels/news").await;
        let mut quick = entry.connect("/channels/news").await;
        let slow_consumers = [("action", "close")];
        let mut published = 0;
        loop {
            let data = format!("{published:0MESSAGE_BYTES$}");
            entry.gateway.call("publish", json!({ "channel": "news", "data": data })).await;
            assert_eq!(quick.read_text().await, data);
            published += 1;
            let metrics = entry.gateway.metrics().await;
            assert!(metrics.sum("wsgate_outbound_queue_bytes", &[]) <= 200_000.0);
            if metrics.sum("wsgate_slow_consumers_total", &slow_consumers) == 1.0 {
                break;
            }
            assert!(published < 1_000, "60 MB are no bound");
        }
        let mut heard = 0;
        let end = loop {
            match slow.read().await {
                Message::Text(text) => {
                    assert_eq!(text, format!("{heard:0MESSAGE_BYTES$}"));
                    heard += 1;
                }
                end => break end,
            }
        };
        assert_eq!(end, Message::Close(Some(1008), "slow consumer".to_owned()));
        let dropped = [("reason", "close")];
        let dropped = entry.gateway.metrics().await.sum("wsgate_dropped_messages_total", &dropped);
        assert_eq!(heard as f64 + dropped, f64::from(published), "each is heard or counted");
    }
}

#[tokio::test]
async fn drain_closes_everyone_with_1001_and_ends_with_0() {
    const CLIENTS: usize = 30;
    for transport in TRANSPORTS {
        println!("over {transport:?}");
        let flags = ["--shards", "2", "--drain-grace", "0s", "--drain-duration", "300ms"];
        let mut entry = Entry::start(transport, &flags).await;
        let mut clients = entry.connect_many("/echo", CLIENTS / 2).await;
        clients.extend(entry.connect_many("/channels/news", CLIENTS / 2).await);
        entry.gateway.signal(Signal::TERM);
        for client in &mut clients {
            let text = "the gateway is draining".to_owned();
            assert_eq!(client.read().await, Message::Close(Some(1001), text));
        }
        drop(clients);
        let ended = within("the end of the gateway", entry.gateway.exit()).await;
        assert_eq!(ended.code(), Some(0));
        assert!(entry.gateway.log().contains("drain: done"), "{}", entry.gateway.log());
    }
}
