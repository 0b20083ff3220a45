//! What becomes of a connection's token: it expires, it is renewed by the API or by the client, or its
//! user is sent away. And what becomes of whoever publishes without leave.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::debug;

use crate::auth::access::RenewalError;
use crate::auth::identity::{Identity, UnixSeconds, User};
use crate::auth::token::TokenError;
use crate::connection::Connection;
use crate::protocol::control::{self, Control};
use crate::pubsub::ConnectionId;
use crate::shard::Shard;
use crate::shard::client::Client;
use crate::shard::orders::{Refreshed, Renewal, Whose};
use crate::telemetry::counters::TEXT;
use crate::wire::close::CloseCode;

/// What a connection is closed with whose token has expired; Centrifugo's code for the same.
const TOKEN_EXPIRED: CloseCode =
    CloseCode::from_wire(3005).expect("applications' codes may travel");

/// Tokens that a client may send in vain, one after the other: each of them takes CPU to check.
const MAX_REFUSED_TOKENS: u8 = 8;

/// Connections of one user that are closed before the others get their turn.
const MAX_CLOSED_AT_ONCE: usize = 128;

/// Codes of the API, which control messages use too.
const UNAUTHORIZED: u32 = 101;
const BAD_REQUEST: u32 = 107;
const EXPIRED: u32 = 109;

impl Shard {
    /// Takes note of whose connection `client` is.
    pub(super) fn remember_user(&self, client: &Client, identity: Arc<Identity>) {
        let ends_at = self.end_of(&identity);
        self.users.borrow_mut().add(client.id.slot, identity, ends_at);
        self.counters.identified_connections.moved(0, 1);
    }

    /// The same, once it is over.
    pub(super) fn forget_user(&self, client: &Client) {
        if client.is_identified && self.users.borrow_mut().remove(client.id.slot) {
            self.counters.identified_connections.moved(1, 0);
        }
    }

    /// When the token of `client` expires, if it has one that does.
    pub(super) fn expiry(&self, client: &Client) -> Option<Instant> {
        if !client.is_identified {
            return None;
        }
        self.users.borrow().ends_at(client.id.slot)
    }

    /// Closes the connection of `client` if its token has expired.
    pub(super) fn close_expired(&self, client: &Client, connection: &mut Connection, now: Instant) {
        if connection.is_open() && self.expiry(client).is_some_and(|ends_at| now >= ends_at) {
            self.counters.token_expirations.increment();
            connection.close(now, TOKEN_EXPIRED, "token expired", &self.timing());
        }
    }

    /// Closes the connection of `client` for a message that it has no leave to publish. A raw channel
    /// has no way to say that one message was not published and the next may be.
    #[cold]
    pub(super) fn refuse_publication(
        &self,
        client: &Client,
        connection: &mut Connection,
        now: Instant,
    ) {
        self.counters.forbidden_publications.increment();
        debug!(connection = %client.id.to_uuid(self.gateway), "may not publish");
        let reason = "not allowed to publish to this channel";
        connection.close(now, CloseCode::POLICY_VIOLATION, reason, &self.timing());
    }

    /// Does what a client asks of the gateway itself, and says so.
    pub(super) fn handle_control(
        &self,
        client: &Client,
        connection: &mut Connection,
        control: Control,
        now: Instant,
    ) {
        let answer = match control {
            Control::Malformed => {
                control::refused(BAD_REQUEST, "refresh is not a text; write the new token there")
            }
            Control::Refresh { .. } if !client.is_identified => {
                control::refused(BAD_REQUEST, "this connection has no token that could be renewed")
            }
            Control::Refresh { token } => match self.renewed_by(client, &token) {
                Ok(identity) => {
                    let expires_at = identity.expires_at().map(|UnixSeconds(seconds)| seconds);
                    self.renew(client, connection, identity, now);
                    control::refreshed(expires_at)
                }
                Err(error) => {
                    let refused_tokens = self.users.borrow_mut().count_refused(client.id.slot);
                    if refused_tokens >= MAX_REFUSED_TOKENS {
                        let reason = "too many tokens that are not believed";
                        connection.close(now, CloseCode::POLICY_VIOLATION, reason, &self.timing());
                    }
                    let code = match &error {
                        RenewalError::Token(TokenError::Expired) => EXPIRED,
                        RenewalError::NoKey | RenewalError::Token(_) | RenewalError::OtherUser => {
                            UNAUTHORIZED
                        }
                    };
                    control::refused(code, &error.to_string())
                }
            },
        };
        if connection.is_open() {
            self.counters.messages_sent[TEXT].increment();
            client.send(connection, &answer, self);
        }
    }

    /// Closes all connections of `user` but `except`.
    pub(super) fn disconnect_user(
        self: &Rc<Self>,
        user: &User,
        except: &[ConnectionId],
        code: CloseCode,
        reason: String,
    ) {
        let mut clients = self.clients_of(user);
        clients.retain(|client| !except.contains(&client.id));
        self.close_each(clients, code, reason);
    }

    /// Renews what `whose` connections have, or ends them. A token that is not believed is for whoever asked
    /// to count: they ask each shard.
    pub(super) fn refresh(self: &Rc<Self>, whose: &Whose, renewal: &Renewal) -> Refreshed {
        let (clients, user) = match whose {
            Whose::Connection { connection, user } => {
                let Some(client) = self.open_client_of(*connection, user.as_ref()) else {
                    return Refreshed::NotFound;
                };
                if !client.is_identified {
                    return Refreshed::Anonymous;
                }
                let identity = self.users.borrow().identity(client.id.slot).cloned();
                let user = identity.and_then(|identity| identity.user().cloned());
                (vec![client], user)
            }
            Whose::User(user) => (self.clients_of(user), Some(user.clone())),
        };
        match renewal {
            Renewal::Token(token) => {
                let identity = match self.believe_renewal(user.as_ref(), token) {
                    Ok(identity) => Arc::new(identity),
                    Err(error) => return Refreshed::Refused(error),
                };
                let now = self.now();
                for client in clients {
                    self.guard(&client, || {
                        let mut connection = client.hold(self);
                        self.renew(&client, &mut connection, Arc::clone(&identity), now);
                        client.write_waiting(&mut connection, self);
                    });
                    client.wake_driver();
                }
            }
            Renewal::ExpireAt(end) => {
                let ends_at = self.instant_of(*end);
                for client in clients {
                    self.users.borrow_mut().set_end(client.id.slot, ends_at);
                    self.guard(&client, || self.arm(&client, &client.hold(self)));
                }
            }
            Renewal::Expired => {
                let open = clients.iter().filter(|client| client.hold(self).is_open());
                self.counters.token_expirations.add(open.count() as u64);
                self.close_each(clients, TOKEN_EXPIRED, "token expired".to_owned());
            }
        }
        Refreshed::Done
    }

    /// The connection called `id` if it is open and, where a user is given, that user's.
    pub(super) fn open_client_of(
        &self,
        id: ConnectionId,
        user: Option<&User>,
    ) -> Option<Rc<Client>> {
        let client = self.open_client(id)?;
        let is_theirs = user.is_none_or(|user| {
            let users = self.users.borrow();
            users.identity(id.slot).and_then(|identity| identity.user()) == Some(user)
        });
        is_theirs.then_some(client)
    }

    fn clients_of(&self, user: &User) -> Vec<Rc<Client>> {
        let (users, table) = (self.users.borrow(), self.table.borrow());
        users.slots(user).iter().filter_map(|slot| table.client_in(*slot).cloned()).collect()
    }

    /// Closes `clients`, a few at a time: one user may have thousands.
    fn close_each(self: &Rc<Self>, clients: Vec<Rc<Client>>, code: CloseCode, reason: String) {
        // Names, not the connections themselves: one that has ended must let go of its socket.
        let ids: Vec<ConnectionId> = clients.iter().map(|client| client.id).collect();
        let (first, rest) = ids.split_at(ids.len().min(MAX_CLOSED_AT_ONCE));
        self.close_all(first, code, &reason);
        if !rest.is_empty() {
            let (shard, rest) = (Rc::clone(self), rest.to_vec());
            tokio::task::spawn_local(async move {
                for ids in rest.chunks(MAX_CLOSED_AT_ONCE) {
                    tokio::task::yield_now().await;
                    shard.close_all(ids, code, &reason);
                }
            });
        }
    }

    fn renewed_by(&self, client: &Client, token: &str) -> Result<Arc<Identity>, RenewalError> {
        let current = self.users.borrow().identity(client.id.slot).cloned();
        let user = current.as_ref().and_then(|identity| identity.user());
        let renewed = self.believe_renewal(user, token);
        if let Err(RenewalError::Token(error)) = &renewed {
            self.counters.token_rejections[error.index()].increment();
        }
        renewed.map(Arc::new)
    }

    fn believe_renewal(&self, user: Option<&User>, token: &str) -> Result<Identity, RenewalError> {
        let now = UnixSeconds::at(SystemTime::now());
        self.settings().access.renew(user, token, now)
    }

    /// From now on `client` is what its newest token says. A channel that this does not allow it to
    /// hear ends the connection: what it was promised at the handshake cannot be kept.
    fn renew(
        &self,
        client: &Client,
        connection: &mut Connection,
        identity: Arc<Identity>,
        now: Instant,
    ) {
        if let Some(channel) = client.channel {
            let hub = self.hub.borrow();
            client.publish_grant.set(identity.may_publish(hub.name(channel.key)));
            let subscriptions = client.subscriptions.take();
            let hears_all = subscriptions.keys().iter().all(|subscription| {
                identity.may_subscribe(hub.name(hub.channel(subscription))).is_some()
            });
            client.subscriptions.set(subscriptions);
            if !hears_all {
                let reason = "the new token does not allow a channel of this connection";
                connection.close(now, CloseCode::POLICY_VIOLATION, reason, &self.timing());
            }
        }
        let ends_at = self.end_of(&identity);
        self.users.borrow_mut().renew(client.id.slot, identity, ends_at);
        self.arm(client, connection);
    }

    fn end_of(&self, identity: &Identity) -> Option<Instant> {
        self.instant_of(self.settings().access.end_of(identity)?)
    }

    /// When our clock will show `time`; `None` where that is further away than an `Instant` reaches.
    fn instant_of(&self, time: UnixSeconds) -> Option<Instant> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.now().checked_add(Duration::from_secs(time.0).saturating_sub(now))
    }
}
