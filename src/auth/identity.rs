//! Who is connected, and what may it do? Without the grants that an [`Identity`] gives, nothing can be
//! subscribed or published: what does either asks for one, and nothing else can make one.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use thiserror::Error;

use crate::auth::pattern::{ChannelPattern, Permissions};
use crate::pubsub::ChannelName;

/// A point in time as tokens have it, in whole seconds since 1970 (NumericDate of RFC 7519).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixSeconds(pub u64);

impl UnixSeconds {
    /// The second that `time` is in. What is before 1970 is its beginning.
    pub fn at(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }
}

/// Who a token is for: its `sub`. 1 to 255 bytes. Cheap to clone, also for another thread.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct User(Arc<str>);

/// A text that names no user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a user has 1 to 255 bytes; this one has {0}")]
pub struct UserError(usize);

impl User {
    /// Longest name in bytes.
    pub const MAX_BYTES: usize = 255;

    /// The user called `name`.
    ///
    /// # Errors
    ///
    /// It is empty or too long.
    pub fn new(name: &str) -> Result<Self, UserError> {
        match name.len() {
            1..=Self::MAX_BYTES => Ok(Self(name.into())),
            bytes => Err(UserError(bytes)),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who is at the other end of a connection, as far as is known, and what it may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// A token may be about permissions alone.
    user: Option<User>,
    permissions: Permissions,
    expiry: Expiry,
}

/// How long an identity holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expiry {
    /// There is no token that could expire.
    Anonymous,
    /// The `exp` of its token, where that has one.
    Token(Option<UnixSeconds>),
}

/// Leave to subscribe to one channel.
#[derive(Debug)]
pub struct SubscribeGrant(ChannelName);

impl SubscribeGrant {
    /// To which.
    pub fn channel(&self) -> &ChannelName {
        &self.0
    }
}

/// Leave to publish to the channel of a connection. It takes no memory.
#[derive(Clone, Copy, Debug)]
pub struct PublishGrant(());

impl Identity {
    /// Whoever comes without a token.
    pub fn anonymous(permissions: Permissions) -> Self {
        Self { user: None, permissions, expiry: Expiry::Anonymous }
    }

    /// Whoever comes with a token that was found good.
    pub(super) fn from_token(
        user: Option<User>,
        permissions: Permissions,
        expires_at: Option<UnixSeconds>,
    ) -> Self {
        Self { user, permissions, expiry: Expiry::Token(expires_at) }
    }

    /// Who it is, where a token says so.
    pub fn user(&self) -> Option<&User> {
        self.user.as_ref()
    }

    /// It came without a token.
    pub fn is_anonymous(&self) -> bool {
        matches!(self.expiry, Expiry::Anonymous)
    }

    /// When the token expires, where there is one and it does.
    pub fn expires_at(&self) -> Option<UnixSeconds> {
        match self.expiry {
            Expiry::Anonymous => None,
            Expiry::Token(expires_at) => expires_at,
        }
    }

    /// What it may do.
    pub fn permissions(&self) -> &Permissions {
        &self.permissions
    }

    /// Leave to subscribe to `channel`, if it has that.
    pub fn may_subscribe(&self, channel: &ChannelName) -> Option<SubscribeGrant> {
        is_matched(&self.permissions.subscribe, channel).then(|| SubscribeGrant(channel.clone()))
    }

    /// Leave to publish to `channel`, if it has that.
    pub fn may_publish(&self, channel: &ChannelName) -> Option<PublishGrant> {
        is_matched(&self.permissions.publish, channel).then_some(PublishGrant(()))
    }
}

fn is_matched(patterns: &[ChannelPattern], channel: &ChannelName) -> bool {
    patterns.iter().any(|pattern| pattern.matches(channel))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(patterns: &[&str]) -> Vec<ChannelPattern> {
        patterns.iter().map(|pattern| pattern.parse().expect("a pattern")).collect()
    }

    #[test]
    fn grant_is_given_for_what_a_pattern_of_its_kind_matches() {
        let permissions = Permissions::new(patterns(&["news:*", "me"]), patterns(&["me"]));
        let identity = Identity::anonymous(permissions.expect("few"));
        let name = |name| ChannelName::new(name).expect("a name");
        let grant = identity.may_subscribe(&name("news:eu")).expect("news:* matches");
        assert_eq!(grant.channel(), &name("news:eu"));
        assert!(identity.may_publish(&name("news:eu")).is_none());
        assert!(identity.may_publish(&name("me")).is_some());
        assert!(identity.may_subscribe(&name("you")).is_none());
    }

    #[test]
    fn permission_that_is_not_given_is_none() {
        let nobody = Identity::anonymous(Permissions::default());
        let name = ChannelName::new("news").expect("a name");
        assert!(nobody.may_subscribe(&name).is_none() && nobody.may_publish(&name).is_none());
    }

    #[test]
    fn one_byte_is_what_leave_to_publish_takes_in_a_connection() {
        assert_eq!(size_of::<Option<PublishGrant>>(), 1);
    }

    #[test]
    fn user_has_1_to_255_bytes() {
        assert_eq!(User::new(""), Err(UserError(0)));
        assert_eq!(User::new(&"u".repeat(256)), Err(UserError(256)));
        assert_eq!(User::new("alice").expect("a user").as_str(), "alice");
    }
}
