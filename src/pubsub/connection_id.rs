//! How connections are named, inside the process and to the outside.

use std::fmt;
use std::num::NonZeroU16;

use thiserror::Error;

/// Which shard of this process.
///
/// Holds one more than its index, so that where there may be none it takes no room for that: each connection
/// has one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(NonZeroU16);

impl ShardId {
    /// Most shards that a connection id can tell apart.
    pub const MAX_SHARDS: u16 = 1 << 12;

    /// The shard with this number, which is below [`ShardId::MAX_SHARDS`].
    pub fn new(index: u16) -> Self {
        assert!(index < Self::MAX_SHARDS, "shard {index} cannot be named");
        Self(NonZeroU16::MIN.saturating_add(index))
    }

    /// Position in a list of all shards.
    pub fn index(self) -> usize {
        usize::from(self.0.get() - 1)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.index().fmt(f)
    }
}

impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ShardId").field(&self.index()).finish()
    }
}

/// A random number that tells this process from every other, 48 bits of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatewayId(u64);

impl GatewayId {
    /// Takes the lower 48 bits of `random`.
    pub fn new(random: u64) -> Self {
        Self(random & ((1 << 48) - 1))
    }
}

impl fmt::Display for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}", self.0)
    }
}

/// Names one connection for as long as the process lives: a slot that is used again gets a new
/// `generation`, so a stale id never reaches somebody else's connection.
///
/// The outside sees it as a UUID of version 8 (RFC 9562 section 5.8) that says where the connection
/// lives, so no table has to be kept to find it: 48 bits of [`GatewayId`], 12 of shard, 30 of slot
/// and 32 of generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    /// The shard that owns it.
    pub shard: ShardId,
    /// Index into the shard's connection table; below 2^30.
    pub slot: u32,
    /// How often the slot had been used before.
    pub generation: u32,
}

/// A text that names no connection of this gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConnectionIdError {
    /// It has not the form of a UUID.
    #[error("a connection id is a UUID such as 0f9c2a4e-77d1-8000-8000-000000000000")]
    NotAnId,
    /// A connection of another gateway process, or of an earlier run of this one.
    #[error("this id was not given by this gateway process")]
    Elsewhere,
}

impl ConnectionId {
    /// Most slots that an id can tell apart.
    pub const MAX_SLOTS: u32 = 1 << 30;

    /// The id as the outside sees it, 36 bytes of ASCII.
    pub fn to_uuid(self, gateway: GatewayId) -> String {
        let version = 8u64;
        let variant = 0b10u64;
        let high = gateway.0 << 16 | version << 12 | self.shard.index() as u64;
        let low = variant << 62 | u64::from(self.slot) << 32 | u64::from(self.generation);
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            high >> 16 & 0xffff,
            high & 0xffff,
            low >> 48,
            low & 0xffff_ffff_ffff
        )
    }

    /// Reads what [`ConnectionId::to_uuid`] wrote, in either case.
    ///
    /// # Errors
    ///
    /// The text is no UUID, or not one that this gateway gave.
    pub fn parse_uuid(text: &str, gateway: GatewayId) -> Result<Self, ConnectionIdError> {
        let groups: Vec<&str> = text.split('-').collect();
        let well_formed = groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
            && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
        if !well_formed {
            return Err(ConnectionIdError::NotAnId);
        }
        let bits =
            u128::from_str_radix(&groups.concat(), 16).map_err(|_| ConnectionIdError::NotAnId)?;
        let (high, low) = ((bits >> 64) as u64, bits as u64);
        if high >> 16 != gateway.0 || high >> 12 & 0xf != 8 || low >> 62 != 0b10 {
            return Err(ConnectionIdError::Elsewhere);
        }
        Ok(Self {
            shard: ShardId::new((high & 0xfff) as u16),
            slot: (low >> 32) as u32 & (Self::MAX_SLOTS - 1),
            generation: low as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn id_of_another_process_and_a_text_that_is_no_id_are_told_apart() {
        let id = ConnectionId { shard: ShardId::new(1), slot: 2, generation: 3 };
        let text = id.to_uuid(GatewayId::new(7));
        assert_eq!(text, "00000000-0007-8001-8000-000200000003");
        assert_eq!(
            ConnectionId::parse_uuid(&text, GatewayId::new(8)),
            Err(ConnectionIdError::Elsewhere)
        );
        for text in
            ["", "7", "00000000-0007-8001-8000-00020000000g", "00000000000780018000000200000003"]
        {
            assert_eq!(
                ConnectionId::parse_uuid(text, GatewayId::new(7)),
                Err(ConnectionIdError::NotAnId)
            );
        }
    }

    proptest! {
        #[test]
        fn every_id_reads_back_as_itself(
            gateway: u64, shard in 0..ShardId::MAX_SHARDS, slot in 0..ConnectionId::MAX_SLOTS, generation: u32,
        ) {
            let gateway = GatewayId::new(gateway);
            let id = ConnectionId { shard: ShardId::new(shard), slot, generation };
            let text = id.to_uuid(gateway);
            prop_assert_eq!(ConnectionId::parse_uuid(&text, gateway), Ok(id));
            prop_assert_eq!(ConnectionId::parse_uuid(&text.to_uppercase(), gateway), Ok(id));
        }
    }
}
