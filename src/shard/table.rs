//! The connections of one shard by slot. A slot is used again, with a new generation.
//!
//! A slot also says whether its connection can be written to at once, and where: the fan-out goes over
//! slots, which lie side by side, and touches a connection only when something is special about it.
//! A connection is several cache lines that the kernel's work for the one before has pushed out.
#![expect(unsafe_code, reason = "a descriptor without the socket that owns it, argued below")]

use std::cell::Cell;
use std::os::fd::{BorrowedFd, RawFd};
use std::rc::Rc;

use crate::pubsub::{ConnectionId, ShardId};
use crate::shard::client::Client;
use crate::shard::handshake::Handshake;

/// Who is in a slot.
#[derive(Clone)]
pub(crate) enum Occupant {
    /// A socket whose opening handshake is not over, or that of an HTTP/2 connection.
    Handshake(Rc<Handshake>),
    /// An open or closing connection.
    Client(Rc<Client>),
}

struct Slot {
    generation: u32,
    /// The socket of the client in this slot while it is open and nothing waits in its queue, else
    /// [`NOWHERE`], which it always is where frames are not written as they are. It takes the room that would be left free behind the generation.
    direct: Cell<RawFd>,
    occupant: Option<Occupant>,
}

/// No socket.
const NOWHERE: RawFd = -1;

/// All occupants of one shard.
pub(crate) struct Table {
    shard: ShardId,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Table {
    pub(crate) fn new(shard: ShardId) -> Self {
        Self { shard, slots: Vec::new(), free: Vec::new() }
    }

    /// Puts the handshake that `make` makes of its id into a free slot. `None` when there is none,
    /// which takes a thousand million connections.
    pub(crate) fn insert(
        &mut self,
        make: impl FnOnce(ConnectionId) -> Rc<Handshake>,
    ) -> Option<Rc<Handshake>> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < ConnectionId::MAX_SLOTS as usize => {
                self.slots.push(Slot { generation: 0, direct: Cell::new(NOWHERE), occupant: None });
                (self.slots.len() - 1) as u32
            }
            None => return None,
        };
        let entry = &mut self.slots[slot as usize];
        let handshake =
            make(ConnectionId { shard: self.shard, slot, generation: entry.generation });
        entry.occupant = Some(Occupant::Handshake(Rc::clone(&handshake)));
        Some(handshake)
    }

    /// Puts `client` in the place of its handshake.
    pub(crate) fn open(&mut self, client: Rc<Client>) {
        let slot = &mut self.slots[client.id.slot as usize];
        debug_assert_eq!(slot.generation, client.id.generation, "the handshake holds the slot");
        slot.occupant = Some(Occupant::Client(client));
    }

    /// Empties the slot of `id`.
    pub(crate) fn remove(&mut self, id: ConnectionId) {
        let slot = &mut self.slots[id.slot as usize];
        debug_assert_eq!(slot.generation, id.generation, "a connection is removed once");
        slot.direct.set(NOWHERE);
        slot.occupant = None;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.slot);
    }

    /// Who is in `slot`, if it is still of that `generation`.
    pub(crate) fn occupant(&self, slot: u32, generation: u32) -> Option<&Occupant> {
        let slot = self.slots.get(slot as usize).filter(|slot| slot.generation == generation)?;
        slot.occupant.as_ref()
    }

    /// The connection called `id`, if it is past its handshake and still there.
    pub(crate) fn client(&self, id: ConnectionId) -> Option<&Rc<Client>> {
        match self.occupant(id.slot, id.generation)? {
            Occupant::Client(client) => Some(client),
            Occupant::Handshake(_) => None,
        }
    }

    /// The connection in `slot`, if it is past its handshake.
    #[inline]
    pub(crate) fn client_in(&self, slot: u32) -> Option<&Rc<Client>> {
        match &self.slots[slot as usize].occupant {
            Some(Occupant::Client(client)) => Some(client),
            Some(Occupant::Handshake(_)) | None => None,
        }
    }

    /// The socket of the connection in `slot`, if it may be written to without another look.
    #[inline]
    pub(crate) fn direct(&self, slot: u32) -> Option<BorrowedFd<'_>> {
        let direct = self.slots[slot as usize].direct.get();
        // SAFETY: it is the descriptor of the socket that the client in this slot owns, as
        // `set_direct` took it from there. The slot holds the client until `remove`, which makes
        // this `NOWHERE` and needs the table that is borrowed here; a client never lets go of its
        // socket. `NOWHERE` is not borrowed.
        (direct != NOWHERE).then(|| unsafe { BorrowedFd::borrow_raw(direct) })
    }

    /// Takes note whether the connection of `client` may be written to without another look.
    pub(crate) fn set_direct(&self, client: &Client, is_direct: bool) {
        let ConnectionId { slot, generation, .. } = client.id;
        // One that has left its slot has nothing there to be noted.
        if let Some(Occupant::Client(occupant)) = self.occupant(slot, generation)
            && std::ptr::eq(&raw const **occupant, client)
        {
            let direct = is_direct.then(|| client.plain_descriptor()).flatten();
            self.slots[slot as usize].direct.set(direct.unwrap_or(NOWHERE));
        }
    }

    /// All connections past their handshake.
    pub(crate) fn clients(&self) -> impl Iterator<Item = &Rc<Client>> {
        self.slots.iter().filter_map(|slot| match &slot.occupant {
            Some(Occupant::Client(client)) => Some(client),
            Some(Occupant::Handshake(_)) | None => None,
        })
    }

    /// Whether a socket is in its handshake.
    pub(crate) fn has_handshakes(&self) -> bool {
        self.handshakes().next().is_some()
    }

    /// All sockets in their handshake, and those of HTTP/2 connections.
    pub(crate) fn handshakes(&self) -> impl Iterator<Item = &Rc<Handshake>> {
        self.slots.iter().filter_map(|slot| match &slot.occupant {
            Some(Occupant::Handshake(handshake)) => Some(handshake),
            Some(Occupant::Client(_)) | None => None,
        })
    }

    /// How many slots are in use.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
