//! Who came to this shard with a token: by connection, and by user. No socket, no clock.
//!
//! Anonymous connections are not in here, and take no memory for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::auth::identity::{Identity, User};

/// The connections with a token, by slot.
#[derive(Default)]
pub(crate) struct Users {
    by_slot: HashMap<u32, Identified>,
    /// Never holds an empty list: the last connection of a user takes it with it.
    slots: HashMap<User, Vec<u32>>,
}

/// A connection with a token.
struct Identified {
    identity: Arc<Identity>,
    ends_at: Option<Instant>,
    /// Index into the list of its user's slots, so that leaving it takes no search.
    position: u32,
    /// Tokens that were refused since the last good one.
    refused_tokens: u8,
}

impl Users {
    /// Takes note of a connection that ends at `ends_at` unless its token is renewed.
    pub(crate) fn add(&mut self, slot: u32, identity: Arc<Identity>, ends_at: Option<Instant>) {
        let mut position = 0;
        if let Some(user) = identity.user() {
            let slots = self.slots.entry(user.clone()).or_default();
            position = slots.len() as u32;
            slots.push(slot);
        }
        let identified = Identified { identity, ends_at, position, refused_tokens: 0 };
        let replaced = self.by_slot.insert(slot, identified);
        debug_assert!(replaced.is_none(), "a connection comes once");
    }

    /// Takes note that a connection has ended. Returns whether it was there.
    pub(crate) fn remove(&mut self, slot: u32) -> bool {
        let Some(Identified { identity, position, .. }) = self.by_slot.remove(&slot) else {
            return false;
        };
        if let Some(user) = identity.user()
            && let Some(slots) = self.slots.get_mut(user)
        {
            slots.swap_remove(position as usize);
            if let Some(moved) = slots.get(position as usize) {
                let moved = self.by_slot.get_mut(moved).expect("who is listed is there");
                moved.position = position;
            }
            if slots.is_empty() {
                self.slots.remove(user);
            }
        }
        shrink(&mut self.by_slot);
        shrink(&mut self.slots);
        true
    }

    /// Who is in `slot`.
    pub(crate) fn identity(&self, slot: u32) -> Option<&Arc<Identity>> {
        self.by_slot.get(&slot).map(|identified| &identified.identity)
    }

    /// When the connection in `slot` ends.
    pub(crate) fn ends_at(&self, slot: u32) -> Option<Instant> {
        self.by_slot.get(&slot)?.ends_at
    }

    /// Moves the end of the connection in `slot`.
    pub(crate) fn set_end(&mut self, slot: u32, ends_at: Option<Instant>) {
        if let Some(identified) = self.by_slot.get_mut(&slot) {
            identified.ends_at = ends_at;
        }
    }

    /// Gives the connection in `slot` another identity, which is of the same user.
    pub(crate) fn renew(&mut self, slot: u32, identity: Arc<Identity>, ends_at: Option<Instant>) {
        if let Some(identified) = self.by_slot.get_mut(&slot) {
            debug_assert_eq!(identified.identity.user(), identity.user(), "the list is by user");
            identified.identity = identity;
            identified.ends_at = ends_at;
            identified.refused_tokens = 0;
        }
    }

    /// Counts one more token that the connection in `slot` has sent in vain. Returns how many there are.
    pub(crate) fn count_refused(&mut self, slot: u32) -> u8 {
        self.by_slot.get_mut(&slot).map_or(u8::MAX, |identified| {
            identified.refused_tokens = identified.refused_tokens.saturating_add(1);
            identified.refused_tokens
        })
    }

    /// The slots of all connections of `user`.
    pub(crate) fn slots(&self, user: &User) -> &[u32] {
        self.slots.get(user).map_or(&[], Vec::as_slice)
    }
}

/// A crowd that has left gives its memory back.
fn shrink<K: Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>) {
    if map.capacity() > 64 && map.len() * 8 < map.capacity() {
        map.shrink_to(map.len() * 2);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::auth::access::{Access, Entrant};
    use crate::auth::identity::UnixSeconds;
    use crate::auth::keys::Keys;
    use crate::auth::pattern::Permissions;
    use crate::auth::signer::SigningKey;
    use crate::auth::token::{TOKEN_ERRORS, Verifier};
    use crate::telemetry::counters::TOKEN_REJECTIONS;

    /// Identities of users 0 to 3, and of one without a name.
    fn identities() -> Vec<Arc<Identity>> {
        let mut keys = Keys::default();
        keys.add_secret("secret").expect("a secret");
        let verifier = Verifier {
            keys,
            audiences: Vec::new(),
            issuers: Vec::new(),
            leeway_seconds: 0,
            default_permissions: Permissions::default(),
        };
        let access = Access::new(Some(verifier), None);
        let key = SigningKey::from_secret("secret").expect("a secret");
        let claims = (0..4).map(|user| serde_json::json!({ "sub": user.to_string() }));
        let claims = claims.chain([serde_json::json!({})]);
        claims
            .map(|claims| {
                let token = key.sign(claims.as_object().expect("an object"), None, None);
                let query = format!("token={}", token.expect("it signs"));
                let judged = access.judge(&Default::default(), Some(&query), UnixSeconds(0));
                let Entrant { identity, .. } = judged.expect("a good token");
                identity
            })
            .collect()
    }

    proptest! {
        #[test]
        fn index_of_users_is_what_a_plain_list_says(
            steps in proptest::collection::vec((0..12_u32, 0..5_usize), 0..80),
        ) {
            let identities = identities();
            let mut users = Users::default();
            let mut plain: Vec<(u32, usize)> = Vec::new();
            for (slot, user) in steps {
                match plain.iter().position(|(taken, _)| *taken == slot) {
                    Some(at) => {
                        plain.remove(at);
                        prop_assert!(users.remove(slot));
                        prop_assert!(!users.remove(slot));
                    }
                    None => {
                        plain.push((slot, user));
                        users.add(slot, Arc::clone(&identities[user]), None);
                    }
                }
                for (user, identity) in identities.iter().enumerate() {
                    let mut expected: Vec<u32> =
                        plain.iter().filter(|(_, of)| *of == user).map(|(slot, _)| *slot).collect();
                    expected.sort_unstable();
                    let Some(name) = identity.user() else { continue };
                    let mut found = users.slots(name).to_vec();
                    found.sort_unstable();
                    prop_assert_eq!(found, expected);
                }
                prop_assert_eq!(users.by_slot.len(), plain.len());
            }
            for (slot, _) in plain {
                users.remove(slot);
            }
            prop_assert!(users.by_slot.is_empty() && users.slots.is_empty());
        }
    }

    #[test]
    fn crowd_that_has_left_leaves_no_memory_behind() {
        let (identities, mut users) = (identities(), Users::default());
        for slot in 0..10_000 {
            users.add(slot, Arc::clone(&identities[0]), None);
        }
        for slot in 0..10_000 {
            assert!(users.remove(slot));
        }
        assert!(users.by_slot.capacity() <= 64 && users.slots.capacity() <= 64);
    }

    #[test]
    fn reasons_are_called_the_same_in_the_metrics() {
        assert_eq!(TOKEN_REJECTIONS, TOKEN_ERRORS);
    }
}
