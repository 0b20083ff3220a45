//! A WebSocket on one stream of an HTTP/2 connection.
//!
//! hyper takes each write as one piece and passes it on to the connection's task. Two such pieces wait at
//! most, beside what the task itself holds; then a write has to wait, and the outbound queue grows, where
//! the slow-consumer policy sees it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes of one piece: one DATA frame of the size that every client takes.
const MAX_PIECE_BYTES: usize = 16 * 1024;

/// What the WebSockets of one HTTP/2 connection tell it. Each of them holds it. All of them are on one
/// thread, but hyper asks more of a stream.
#[derive(Default)]
pub(crate) struct Siblings(Mutex<Welcome>);

/// Where the client is to open its next WebSocket.
enum Welcome {
    /// Here. If that changes somebody is to be woken.
    Here(Waker),
    Elsewhere,
}

impl Default for Welcome {
    fn default() -> Self {
        Self::Here(Waker::noop().clone())
    }
}

impl Siblings {
    /// Their client is to open its next WebSocket elsewhere.
    fn send_elsewhere(&self) {
        let mut welcome = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Welcome::Here(waker) = std::mem::replace(&mut *welcome, Welcome::Elsewhere) {
            waker.wake();
        }
    }

    /// Whether the client is to go elsewhere. If not, it has the task of `cx` look again once it is.
    pub(crate) fn poll_unwelcome(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Welcome::Here(waker) => {
                waker.clone_from(cx.waker());
                Poll::Pending
            }
            Welcome::Elsewhere => Poll::Ready(()),
        }
    }
}

/// See the module.
pub(crate) struct Http2 {
    stream: TokioIo<Upgraded>,
    /// The driver's, whoever writes: it is the driver that goes on when there is room.
    waker: Waker,
    siblings: Arc<Siblings>,
}

impl Http2 {
    pub(crate) fn new(upgraded: Upgraded, siblings: Arc<Siblings>) -> Self {
        Self { stream: TokioIo::new(upgraded), waker: Waker::noop().clone(), siblings }
    }

    /// The client is to open its next WebSocket elsewhere.
    pub(crate) fn send_elsewhere(&self) {
        self.siblings.send_elsewhere();
    }

    /// Takes as much of `slices` as there is room for. Returns how many bytes that are.
    pub(crate) fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut gathered;
        let mut bytes = match slices {
            [one] => &**one,
            slices => {
                gathered = Vec::new();
                slices.iter().for_each(|slice| gathered.extend_from_slice(slice));
                &gathered[..]
            }
        };
        let mut taken = 0;
        while !bytes.is_empty() {
            let piece = &bytes[..bytes.len().min(MAX_PIECE_BYTES)];
            let mut cx = Context::from_waker(&self.waker);
            match Pin::new(&mut self.stream).poll_write(&mut cx, piece) {
                Poll::Ready(Ok(written)) => {
                    taken += written;
                    bytes = &bytes[written..];
                }
                Poll::Ready(Err(_)) | Poll::Pending if taken > 0 => break,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Err(io::ErrorKind::WouldBlock.into()),
            }
        }
        Ok(taken)
    }

    pub(crate) fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    pub(crate) fn poll_shut_down(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.stream).poll_shutdown(cx).map(|_| ())
    }

    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.waker.will_wake(cx.waker()) {
            self.waker = cx.waker().clone();
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}
