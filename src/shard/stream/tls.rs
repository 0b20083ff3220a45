//! A TLS session over a socket, once its handshake is over.
//!
//! Both directions go past tokio-rustls, for two bounds that it leaves to the caller. What is written
//! leaves in one system call, and while the socket has not taken all of it nothing more is taken: rustls
//! holds one write's records, [`MAX_WRITE_BYTES`] at most, and everything behind them waits in the
//! outbound queue, where the slow-consumer policy sees it. What is read comes in one system call for as
//! much as there is, not in one for every 4 KiB.

use std::cell::RefCell;
use std::io::{self, IoSlice, Read, Write};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use rustls::{ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use crate::shard::stream::{send_bytes, send_slices, try_write};

/// Most plaintext taken by one write, in bytes: four full records, and one system call.
pub(crate) const MAX_WRITE_BYTES: usize = 64 * 1024;

/// Most ciphertext read by one system call.
const MAX_READ_BYTES: usize = 64 * 1024;

/// The largest record that rustls may hold an incomplete one of.
const MAX_RECORD_BYTES: usize = 16 * 1024 + 2_048 + 5;

thread_local! {
    /// Room for the ciphertext of one read. Its content means nothing between two reads.
    static CIPHERTEXT: RefCell<Box<[u8]>> = RefCell::new(vec![0; MAX_READ_BYTES].into());
}

/// What a TLS listener tells its clients who it is by. It can be exchanged while the shards run.
#[derive(Debug)]
pub struct Identity {
    config: RwLock<Arc<ServerConfig>>,
}

impl Identity {
    /// The identity that `config` holds.
    pub fn new(config: Arc<ServerConfig>) -> Self {
        Self { config: RwLock::new(config) }
    }

    /// For one handshake. Only an exchange ever makes it wait, and that is an assignment.
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Every handshake that begins after this gets `config`; connections keep what they have.
    pub fn replace(&self, config: Arc<ServerConfig>) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
    }
}

/// See the module.
pub(crate) struct Tls {
    socket: TcpStream,
    session: ServerConnection,
    /// Ciphertext that was read and for whose plaintext there was no room: less than one read, and nothing
    /// where the reader has much room.
    undecrypted: Vec<u8>,
    /// We have said that nothing more comes.
    has_said_end: bool,
    /// System calls that wrote, for tests.
    #[cfg(test)]
    pub(crate) writes: u64,
}

impl Tls {
    /// Takes over a session whose handshake is over.
    pub(crate) fn new(socket: TcpStream, mut session: ServerConnection) -> Self {
        session.set_buffer_limit(Some(MAX_WRITE_BYTES));
        Self {
            socket,
            session,
            undecrypted: Vec::new(),
            has_said_end: false,
            #[cfg(test)]
            writes: 0,
        }
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub(crate) fn has_unsent(&self) -> bool {
        self.session.wants_write()
    }

    /// Takes as much of `slices` as fits, unless earlier ciphertext is in its way, and offers it to the
    /// socket once. Returns how many bytes of plaintext it took: they will be sent, now or later.
    pub(crate) fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.has_unsent() {
            self.try_flush()?;
            if self.has_unsent() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        let taken = self.session.writer().write_vectored(slices)?;
        if taken == 0 {
            // The keys are used up, or the end was said.
            return Err(io::ErrorKind::WriteZero.into());
        }
        match self.try_flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            Ok(_) | Err(_) => Ok(taken),
        }
    }

    /// Offers what is unsent to the socket, once. Returns how many bytes of ciphertext it took.
    pub(crate) fn try_flush(&mut self) -> io::Result<usize> {
        if !self.has_unsent() {
            return Ok(0);
        }
        #[cfg(test)]
        {
            self.writes += 1;
        }
        self.session.write_tls(&mut Sender(&self.socket))
    }

    /// Ready once nothing is unsent.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.has_unsent() {
            match self.try_flush() {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::task::ready!(self.socket.poll_write_ready(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// As [`Tls::try_write`], and has the task woken when there is room.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_flush(cx))?;
        Poll::Ready(self.try_write(slices))
    }

    /// Says that nothing more comes (close_notify, RFC 8446 section 6.1), as far as the socket takes it.
    pub(crate) fn say_end(&mut self) {
        if !std::mem::replace(&mut self.has_said_end, true) {
            self.session.send_close_notify();
            // Whoever does not take it has no use for it.
            _ = self.try_flush();
        }
    }

    /// Reads plaintext into `buffer` until that is full or the socket is empty.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let is_over = self.take_plaintext(buffer)?;
            if is_over || !buffer.filled().is_empty() || buffer.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if !self.undecrypted.is_empty() {
                let ciphertext = std::mem::take(&mut self.undecrypted);
                self.take_ciphertext(&ciphertext, buffer)?;
                continue;
            }
            // Its plaintext fits, also that of a record whose beginning is here already. Where there is
            // little room it may not, and then some of it waits.
            let room = buffer.remaining().saturating_sub(MAX_RECORD_BYTES);
            let read = CIPHERTEXT.with_borrow_mut(|ciphertext| {
                let ciphertext = &mut ciphertext[..room.clamp(4_096, MAX_READ_BYTES)];
                let mut read_buf = ReadBuf::new(ciphertext);
                let read = Pin::new(&mut self.socket).poll_read(cx, &mut read_buf);
                std::task::ready!(read)?;
                Poll::Ready(self.take_ciphertext(read_buf.filled(), buffer))
            });
            std::task::ready!(read)?;
        }
    }

    /// Decrypts `ciphertext`, and moves the plaintext of it to `buffer` as far as that has room.
    fn take_ciphertext(
        &mut self,
        mut ciphertext: &[u8],
        buffer: &mut ReadBuf<'_>,
    ) -> io::Result<()> {
        loop {
            // None is taken at the end of the stream, nor behind a close_notify.
            let is_end = self.session.read_tls(&mut ciphertext)? == 0;
            if let Err(error) = self.session.process_new_packets() {
                // rustls has an alert for the peer, which tells it what was wrong.
                _ = self.try_flush();
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            if ciphertext.is_empty() || is_end {
                break;
            }
            self.take_plaintext(buffer)?;
            if buffer.remaining() == 0 {
                // rustls may have more plaintext than it takes ciphertext beside.
                self.undecrypted = ciphertext.to_vec();
                break;
            }
        }
        // An answer of the TLS layer itself, such as new keys. If it has to wait, it goes before the
        // next write.
        match self.try_flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Moves plaintext to `buffer`. Returns whether the peer will send no more.
    fn take_plaintext(&mut self, buffer: &mut ReadBuf<'_>) -> io::Result<bool> {
        while buffer.remaining() > 0 {
            match self.session.reader().read(buffer.initialize_unfilled()) {
                Ok(0) => return Ok(true),
                Ok(bytes) => buffer.advance(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                // Gone without close_notify. Every frame says its length, so nothing that was cut short
                // is taken for whole.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// Hands rustls's records to the kernel, all of them in one call.
struct Sender<'a>(&'a TcpStream);

impl Write for Sender<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        try_write(self.0, |socket| send_bytes(socket, bytes))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match slices {
            [one] => self.write(one),
            slices => try_write(self.0, |socket| send_slices(socket, slices)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
