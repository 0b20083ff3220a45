//! Endpoints without an envelope: a message is what the application sent, nothing more.

use bytes::Bytes;

use crate::protocol::target::Endpoint;
use crate::wire::frame;
use crate::wire::header::Opcode;

/// What a data message asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Send it back.
    Echo,
    /// Deliver it to the connection's channel.
    Publish {
        /// The sender gets it too.
        own: bool,
    },
}

/// What every data message on `endpoint` asks for.
#[inline]
pub fn ask(endpoint: &Endpoint) -> Ask {
    match endpoint {
        Endpoint::Echo => Ask::Echo,
        Endpoint::Channel { own, .. } => Ask::Publish { own: *own },
    }
}

/// The greeting that tells a client its connection id.
pub fn hello(connection_id: &str) -> Bytes {
    let text = serde_json::json!({ "connection": connection_id }).to_string();
    frame::encode(Opcode::Text, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greeting_is_a_text_frame_with_the_id_in_json() {
        assert_eq!(hello("x-1"), &b"\x81\x14{\"connection\":\"x-1\"}"[..]);
    }
}
