//! A queue from many threads to one, bounded in entries and in bytes.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::{Semaphore, mpsc};

/// How much of a lane an entry takes.
pub trait Weigh {
    /// Its bytes.
    fn bytes(&self) -> usize;
}

/// A new lane for at most `entries` entries of together at most `bytes` bytes. A single entry larger
/// than that counts as `bytes`, so that it can pass when the lane is empty.
pub fn lane<T: Weigh>(entries: usize, bytes: usize) -> (Sender<T>, Receiver<T>) {
    let (entries, receiver) = mpsc::channel(entries);
    let max_bytes = u32::try_from(bytes).unwrap_or(u32::MAX).max(1);
    let room = Arc::new(Semaphore::new(max_bytes as usize));
    let sender = Sender { entries, room: Arc::clone(&room), max_bytes };
    (sender, Receiver { entries: receiver, room, max_bytes })
}

/// The end that any thread has.
#[derive(Debug)]
pub struct Sender<T> {
    entries: mpsc::Sender<T>,
    room: Arc<Semaphore>,
    max_bytes: u32,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        let Self { entries, room, max_bytes } = self;
        Self { entries: entries.clone(), room: Arc::clone(room), max_bytes: *max_bytes }
    }
}

/// The end that one thread has.
#[derive(Debug)]
pub struct Receiver<T> {
    entries: mpsc::Receiver<T>,
    room: Arc<Semaphore>,
    max_bytes: u32,
}

fn weight<T: Weigh>(entry: &T, max_bytes: u32) -> u32 {
    u32::try_from(entry.bytes()).unwrap_or(u32::MAX).min(max_bytes)
}

impl<T: Weigh> Sender<T> {
    /// Sends `entry` if there is room.
    ///
    /// # Errors
    ///
    /// There is none, or the receiver is gone: the entry comes back.
    pub fn try_send(&self, entry: T) -> Result<(), T> {
        let Ok(room) = self.room.try_acquire_many(weight(&entry, self.max_bytes)) else {
            return Err(entry);
        };
        match self.entries.try_send(entry) {
            Ok(()) => {
                room.forget();
                Ok(())
            }
            Err(
                mpsc::error::TrySendError::Full(entry) | mpsc::error::TrySendError::Closed(entry),
            ) => Err(entry),
        }
    }

    /// Sends `entry` once there is room. Does nothing when the receiver is gone, which it is only
    /// when its shard has ended.
    pub async fn send(&self, entry: T) {
        let room = self.room.acquire_many(weight(&entry, self.max_bytes)).await;
        if let Ok(room) = room
            && self.entries.send(entry).await.is_ok()
        {
            room.forget();
        }
    }
}

impl<T: Weigh> Receiver<T> {
    /// The oldest entry; `None` once all senders are gone.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let entry = ready!(self.entries.poll_recv(cx));
        if let Some(entry) = &entry {
            self.room.add_permits(weight(entry, self.max_bytes) as usize);
        }
        Poll::Ready(entry)
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.room.close();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    impl Weigh for &'static str {
        fn bytes(&self) -> usize {
            self.len()
        }
    }

    #[tokio::test]
    async fn lane_is_full_by_entries_or_by_bytes_and_empties_again() {
        let (sender, mut receiver) = lane(2, 10);
        assert_eq!(sender.try_send("12345678"), Ok(()));
        assert_eq!(sender.try_send("123"), Err("123"), "11 bytes");
        assert_eq!(sender.try_send("1"), Ok(()));
        assert_eq!(sender.try_send(""), Err(""), "three entries");
        assert_eq!(poll_fn(|cx| receiver.poll_recv(cx)).await, Some("12345678"));
        assert_eq!(sender.try_send("123"), Ok(()));
    }

    #[tokio::test]
    async fn entry_larger_than_the_lane_passes_when_it_is_empty() {
        let (sender, mut receiver) = lane(2, 4);
        assert_eq!(sender.try_send("123456"), Ok(()));
        assert_eq!(sender.try_send("1"), Err("1"));
        assert_eq!(poll_fn(|cx| receiver.poll_recv(cx)).await, Some("123456"));
        assert_eq!(sender.try_send("1"), Ok(()));
    }

    #[tokio::test]
    async fn sender_that_waits_goes_on_when_there_is_room_and_when_the_shard_is_gone() {
        let (sender, mut receiver) = lane(1, 10);
        sender.send("first").await;
        let waiting = tokio::spawn({
            let sender = sender.clone();
            async move { sender.send("second").await }
        });
        assert_eq!(poll_fn(|cx| receiver.poll_recv(cx)).await, Some("first"));
        assert_eq!(poll_fn(|cx| receiver.poll_recv(cx)).await, Some("second"));
        waiting.await.unwrap();
        drop(receiver);
        sender.send("nobody").await;
    }
}
