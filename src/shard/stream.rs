//! What does a connection write to and read from? A socket of the kernel, TLS over one, or a stream of
//! HTTP/2.
//!
//! - [`Stream`]: any of them, as `client` and `driver` use it.
//! - [`tls`]: a TLS session over a socket, every buffer of it bounded.
//! - [`http2`]: one of many streams over a socket that another task writes to.
//!
//! A Unix socket is a [`TcpStream`] here too: std makes one of any socket's descriptor, and what is done
//! to it (recv, send, shutdown) is the same system call for both. What only TCP has fails on it, and is
//! ignored where it is tried.

pub(crate) mod http2;
pub(crate) mod tls;

use std::io::{self, IoSlice};
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, send, sendmsg};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::shard::stream::http2::Http2;
use crate::shard::stream::tls::Tls;

/// A socket that does not take everything at once says so; one that the peer has closed fails.
const SEND_FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

/// One connection's way to its peer.
pub(crate) enum Stream {
    Plain(TcpStream),
    /// Behind a pointer, so that a plain connection takes no more memory for it.
    Tls(Box<Tls>),
    Http2(Box<Http2>),
}

impl Stream {
    /// The socket, where what is written to it is what the peer reads.
    pub(crate) fn plain_descriptor(&self) -> Option<RawFd> {
        match self {
            Self::Plain(socket) => Some(socket.as_raw_fd()),
            Self::Tls(_) | Self::Http2(_) => None,
        }
    }

    /// Offers `bytes`. Returns how many of them it took.
    ///
    /// # Errors
    ///
    /// `WouldBlock` where it is full; all others are the end.
    #[inline]
    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => try_write(socket, |socket| send_bytes(socket, bytes)),
            Self::Tls(tls) => tls.try_write(&[IoSlice::new(bytes)]),
            Self::Http2(stream) => stream.try_write(&[IoSlice::new(bytes)]),
        }
    }

    /// The same with `slices`, of which there are no more than the kernel takes in one call.
    #[inline]
    pub(crate) fn try_write_slices(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => try_write(socket, |socket| send_slices(socket, slices)),
            Self::Tls(tls) => tls.try_write(slices),
            Self::Http2(stream) => stream.try_write(slices),
        }
    }

    /// Whether some of what it took has not gone to the kernel yet. Then it takes nothing more, and
    /// somebody has to wait for [`Stream::poll_write_ready`].
    #[inline]
    pub(crate) fn has_unsent(&self) -> bool {
        match self {
            Self::Plain(_) | Self::Http2(_) => false,
            Self::Tls(tls) => tls.has_unsent(),
        }
    }

    /// Hands the kernel of what is unsent as much as it takes. Returns how many bytes that are.
    pub(crate) fn try_flush(&mut self) -> io::Result<usize> {
        match self {
            Self::Plain(_) | Self::Http2(_) => Ok(0),
            Self::Tls(tls) => tls.try_flush(),
        }
    }

    /// Ready once it has nothing unsent and may take more.
    pub(crate) fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(socket) => socket.poll_write_ready(cx),
            Self::Tls(tls) => tls.poll_flush(cx),
            Self::Http2(stream) => stream.poll_write_ready(cx),
        }
    }

    /// Tells the peer that nothing more will be written, as far as that can be told at once. What was
    /// written before has to be sent.
    pub(crate) fn say_end(&mut self) {
        match self {
            // The end of the one is told by the kernel, that of the other by hyper.
            Self::Plain(_) | Self::Http2(_) => {}
            Self::Tls(tls) => tls.say_end(),
        }
    }

    /// Has a client that is asked to connect again do so on another connection, since who balances chooses
    /// a gateway for each of those. Of a socket of its own that is the next in any case.
    pub(crate) fn send_elsewhere(&self) {
        match self {
            Self::Plain(_) | Self::Tls(_) => {}
            Self::Http2(stream) => stream.send_elsewhere(),
        }
    }

    /// Ends the sending side. Ready once that is done, or cannot be done any more.
    pub(crate) fn poll_shut_down(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.say_end();
        if self.has_unsent() && ready!(self.poll_write_ready(cx)).is_err() {
            return Poll::Ready(());
        }
        match self {
            // A peer that is gone already has no use for the end of the stream.
            Self::Plain(socket) => _ = SockRef::from(&*socket).shutdown(Shutdown::Write),
            Self::Tls(tls) => _ = SockRef::from(tls.socket()).shutdown(Shutdown::Write),
            Self::Http2(stream) => return stream.poll_shut_down(cx),
        }
        Poll::Ready(())
    }

    /// Where the other end of the socket is. `None` for a Unix socket, for one that the kernel has let go
    /// of, and for a stream of HTTP/2, which has no socket of its own.
    pub(crate) fn peer_address(&self) -> Option<IpAddr> {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => tls.socket(),
            Self::Http2(_) => return None,
        };
        Some(socket.peer_addr().ok()?.ip().to_canonical())
    }

    /// Has the kernel let go of what it still has for a peer that gives no sign for so long.
    pub(crate) fn give_up_after(&self, patience: Duration) {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => tls.socket(),
            // Other streams live on that socket.
            Self::Http2(_) => return,
        };
        // A Unix socket's peer cannot vanish.
        _ = SockRef::from(socket).set_tcp_user_timeout(Some(patience));
    }
}

impl AsyncRead for Stream {
    #[inline]
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buffer),
            Self::Tls(tls) => tls.poll_read(cx, buffer),
            Self::Http2(stream) => stream.poll_read(cx, buffer),
        }
    }
}

/// As hyper wants it, which writes until the upgrade.
impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            Self::Tls(tls) => tls.poll_write(cx, slices),
            Self::Http2(stream) => {
                ready!(stream.poll_write_ready(cx))?;
                Poll::Ready(stream.try_write(slices))
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(tls) => tls.poll_flush(cx),
            Self::Http2(stream) => stream.poll_write_ready(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_shut_down(cx).map(Ok)
    }
}

/// Sends past tokio: see `Client::write`.
#[inline]
pub(crate) fn send_bytes(socket: impl AsFd, bytes: &[u8]) -> Result<usize, Errno> {
    send(socket, bytes, SEND_FLAGS)
}

/// The same with up to as many slices as the kernel takes in one call.
#[inline(never)]
pub(crate) fn send_slices(socket: impl AsFd, slices: &[IoSlice<'_>]) -> Result<usize, Errno> {
    sendmsg(socket, slices, &mut SendAncillaryBuffer::default(), SEND_FLAGS)
}

/// Writes past tokio: its look at the socket's readiness touches one more cache line, and libc's
/// `send` costs two locked instructions, since a thread can be cancelled in it. Without these a
/// delivery takes 102 instructions instead of 256 (callgrind, 1 to 1,000).
#[inline(always)]
fn try_write(
    socket: &TcpStream,
    mut write: impl FnMut(&TcpStream) -> Result<usize, Errno>,
) -> io::Result<usize> {
    write(socket).or_else(|error| try_write_again(socket, error, write))
}

/// What becomes of a write that failed with `error`. Where the socket is full the same is tried once
/// more, now through tokio, which so learns of it and has the driver woken when there is room.
#[cold]
#[inline(never)]
fn try_write_again(
    socket: &TcpStream,
    error: Errno,
    mut write: impl FnMut(&TcpStream) -> Result<usize, Errno>,
) -> io::Result<usize> {
    match error {
        Errno::AGAIN => {
            socket.try_io(Interest::WRITABLE, || write(socket).map_err(io::Error::from))
        }
        error => Err(error.into()),
    }
}
