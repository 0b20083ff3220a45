//! A socket without a network: it takes as many bytes as the test has given it room for, and has the
//! bytes that the test let arrive.

use std::collections::VecDeque;

/// What came of reading.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Bytes(usize),
    /// Nothing has arrived.
    Nothing,
    /// The peer sends no more, or the connection was reset.
    End,
}

/// Why a write took nothing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Full,
    Failed,
}

/// The gateway's end of one connection.
#[derive(Debug)]
pub(crate) struct Socket {
    arrived: VecDeque<u8>,
    /// The peer has shut its sending side down.
    is_ended: bool,
    /// A reset has arrived.
    is_reset: bool,
    /// How many more bytes it takes.
    room: usize,
    /// What it took since the test last looked.
    taken: Vec<u8>,
    /// The gateway has shut its sending side down.
    is_shut: bool,
}

impl Socket {
    pub(crate) fn new(room: usize) -> Self {
        Self {
            arrived: VecDeque::new(),
            is_ended: false,
            is_reset: false,
            room,
            taken: Vec::new(),
            is_shut: false,
        }
    }

    // What the gateway does with it.

    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Read {
        if self.is_reset {
            return Read::End;
        }
        let bytes = buffer.len().min(self.arrived.len());
        for (place, byte) in buffer.iter_mut().zip(self.arrived.drain(..bytes)) {
            *place = byte;
        }
        match bytes {
            0 if self.is_ended => Read::End,
            0 => Read::Nothing,
            bytes => Read::Bytes(bytes),
        }
    }

    /// Takes from the front of `slices` what there is room for. That is all of it, a part, or a
    /// [`Refusal`].
    pub(crate) fn write<'a>(
        &mut self,
        slices: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<usize, Refusal> {
        assert!(!self.is_shut, "a write after the sending side was shut down");
        match self.room {
            _ if self.is_reset => return Err(Refusal::Failed),
            0 => return Err(Refusal::Full),
            _ => {}
        }
        let before = self.taken.len();
        for slice in slices {
            let bytes = slice.len().min(self.room);
            self.taken.extend_from_slice(&slice[..bytes]);
            self.room -= bytes;
        }
        assert!(self.taken.len() > before, "a write of nothing");
        Ok(self.taken.len() - before)
    }

    pub(crate) fn shut(&mut self) {
        self.is_shut = true;
    }

    // What the test does with it.

    pub(crate) fn arrive(&mut self, bytes: impl IntoIterator<Item = u8>) {
        self.arrived.extend(bytes);
    }

    /// How much has arrived that is not read.
    pub(crate) fn arrived_bytes(&self) -> usize {
        self.arrived.len()
    }

    pub(crate) fn end(&mut self) {
        self.is_ended = true;
    }

    pub(crate) fn reset(&mut self) {
        self.is_reset = true;
        self.arrived.clear();
    }

    pub(crate) fn set_room(&mut self, bytes: usize) {
        self.room = bytes;
    }

    pub(crate) fn has_room(&self) -> bool {
        self.room > 0
    }

    /// What it took since the last look.
    pub(crate) fn look(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.taken)
    }
}
