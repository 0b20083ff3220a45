//! Where does a request have its token? Browsers can set none of a WebSocket's headers but the
//! subprotocols, so there are three places:
//!
//! - `Authorization: Bearer TOKEN` (RFC 6750 section 2.1),
//! - `?token=TOKEN`, which may end in the logs of proxies on the way; not in ours,
//! - `Sec-WebSocket-Protocol: bearer, TOKEN`: the server then selects `bearer`.

use std::borrow::Cow;
use std::fmt;

use http::HeaderMap;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use percent_encoding::percent_decode_str;
use thiserror::Error;

/// The subprotocol that is selected where a token was offered as one.
pub const BEARER: &str = "bearer";

/// The token of a request. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Presented<'a> {
    /// As it was written.
    pub token: Cow<'a, str>,
    /// The client expects [`BEARER`] to be selected.
    pub by_subprotocol: bool,
}

impl fmt::Debug for Presented<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presented").field("by_subprotocol", &self.by_subprotocol).finish()
    }
}

/// Why it cannot be told which token is meant. 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PresentationError {
    /// Two places, two tokens.
    #[error(
        "the request has more than one token, and they differ; send one of them, by Authorization, \
         by ?token= or by Sec-WebSocket-Protocol"
    )]
    Several,
    /// `bearer` stands alone.
    #[error(
        "the subprotocol bearer must be followed by the token: Sec-WebSocket-Protocol: bearer, TOKEN"
    )]
    NoTokenBehindBearer,
    /// The header or the parameter is not text.
    #[error("the token is not text")]
    NotText,
}

/// The token of a request with these headers and this query, if it has one. `Authorization` with
/// another scheme than Bearer is somebody else's.
///
/// # Errors
///
/// It has several that differ, or half of one.
pub fn presented<'a>(
    headers: &'a HeaderMap,
    query: Option<&'a str>,
) -> Result<Option<Presented<'a>>, PresentationError> {
    let mut found: Option<Presented<'a>> = None;
    let mut add = |token: Cow<'a, str>, by_subprotocol: bool| match &mut found {
        None => {
            found = Some(Presented { token, by_subprotocol });
            Ok(())
        }
        Some(first) if first.token == token => {
            first.by_subprotocol |= by_subprotocol;
            Ok(())
        }
        Some(_) => Err(PresentationError::Several),
    };
    for value in headers.get_all(AUTHORIZATION) {
        let Some((scheme, token)) = split_scheme(value.as_bytes()) else { continue };
        if scheme.eq_ignore_ascii_case(BEARER.as_bytes()) {
            let token = std::str::from_utf8(token).map_err(|_| PresentationError::NotText)?;
            add(Cow::Borrowed(token), false)?;
        }
    }
    for pair in query.unwrap_or_default().split('&') {
        if let Some(encoded) = pair.strip_prefix("token=") {
            let token = percent_decode_str(encoded).decode_utf8();
            add(token.map_err(|_| PresentationError::NotText)?, false)?;
        }
    }
    let mut is_bearer = false;
    for protocol in subprotocols(headers) {
        let protocol = std::str::from_utf8(protocol).map_err(|_| PresentationError::NotText)?;
        if std::mem::take(&mut is_bearer) {
            add(Cow::Borrowed(protocol), true)?;
        } else {
            is_bearer = protocol == BEARER;
        }
    }
    if is_bearer { Err(PresentationError::NoTokenBehindBearer) } else { Ok(found) }
}

/// The scheme of an `Authorization` and what is behind it.
fn split_scheme(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let value = value.trim_ascii();
    let space = value.iter().position(|byte| *byte == b' ')?;
    Some((&value[..space], value[space..].trim_ascii()))
}

/// The subprotocols of a request, over all its headers of that name (RFC 6455 section 11.3.4).
fn subprotocols(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let protocols = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    protocols.map(<[u8]>::trim_ascii).filter(|protocol| !protocol.is_empty())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let value = HeaderValue::from_str(value).expect("a value");
            headers.append(HeaderName::from_static(name), value);
        }
        headers
    }

    /// The token, and whether `bearer` is to be selected.
    fn found(
        lines: &[(&'static str, &str)],
        query: Option<&str>,
    ) -> Result<Option<(String, bool)>, PresentationError> {
        let found = presented(&headers(lines), query)?
            .map(|presented| (presented.token.clone().into_owned(), presented.by_subprotocol));
        Ok(found)
    }

    #[test]
    fn token_is_found_in_each_of_the_three_places() {
        let token = |by_subprotocol| Ok(Some(("a.b.c".to_owned(), by_subprotocol)));
        assert_eq!(found(&[("authorization", "Bearer a.b.c")], None), token(false));
        assert_eq!(found(&[("authorization", "bearer  a.b.c ")], None), token(false));
        assert_eq!(found(&[], Some("hello=true&token=a.b.c")), token(false));
        assert_eq!(found(&[], Some("token=a%2Eb%2ec")), token(false));
        assert_eq!(found(&[("sec-websocket-protocol", "bearer, a.b.c")], None), token(true));
        assert_eq!(found(&[("sec-websocket-protocol", "chat,bearer,a.b.c,x")], None), token(true));
        let split = [("sec-websocket-protocol", "bearer"), ("sec-websocket-protocol", "a.b.c")];
        assert_eq!(found(&split, None), token(true));
    }

    #[test]
    fn request_without_a_token_has_none() {
        assert_eq!(found(&[], None), Ok(None));
        assert_eq!(found(&[("authorization", "Basic dXNlcjpwYXNz")], Some("tokens=a")), Ok(None));
        assert_eq!(found(&[("authorization", "Bearer")], None), Ok(None));
        assert_eq!(found(&[("sec-websocket-protocol", "chat, Bearer, x")], None), Ok(None));
    }

    #[test]
    fn same_token_twice_is_one_and_two_different_ones_are_refused() {
        let both = [("authorization", "Bearer a.b.c"), ("sec-websocket-protocol", "bearer, a.b.c")];
        assert_eq!(found(&both, Some("token=a.b.c")), Ok(Some(("a.b.c".to_owned(), true))));
        assert_eq!(found(&both, Some("token=other")), Err(PresentationError::Several));
        assert_eq!(found(&[], Some("token=a&token=b")), Err(PresentationError::Several));
        let empty = [("authorization", "Bearer a.b.c")];
        assert_eq!(found(&empty, Some("token=")), Err(PresentationError::Several));
    }

    #[test]
    fn bearer_without_a_token_behind_it_is_refused() {
        let error = Err(PresentationError::NoTokenBehindBearer);
        assert_eq!(found(&[("sec-websocket-protocol", "bearer")], None), error);
        assert_eq!(found(&[("sec-websocket-protocol", "chat, bearer ,")], None), error);
    }

    #[test]
    fn presented_token_is_not_shown() {
        let headers = headers(&[("authorization", "Bearer sesame")]);
        let presented = presented(&headers, None).expect("one").expect("one");
        assert!(!format!("{presented:?}").contains("sesame"));
    }

    proptest! {
        #[test]
        fn token_is_found_as_it_was_sent_whichever_way(
            token in "[A-Za-z0-9_.-]{1,80}", others in "([a-z]{1,8}, ){0,3}",
        ) {
            prop_assume!(!others.contains("bearer") && token != BEARER);
            let header = format!("Bearer {token}");
            prop_assert_eq!(
                found(&[("authorization", &header)], None),
                Ok(Some((token.clone(), false)))
            );
            let query = format!("own=false&token={token}");
            prop_assert_eq!(found(&[], Some(&query)), Ok(Some((token.clone(), false))));
            let protocols = format!("{others}bearer, {token}");
            prop_assert_eq!(
                found(&[("sec-websocket-protocol", &protocols)], None),
                Ok(Some((token, true)))
            );
        }

        #[test]
        fn any_headers_and_query_are_read_or_refused(
            values in proptest::collection::vec("[ -~]{0,40}", 0..4), query in "\\PC{0,40}",
        ) {
            let mut headers = HeaderMap::new();
            for value in &values {
                headers.append(AUTHORIZATION, HeaderValue::from_str(value).expect("ASCII"));
                headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_str(value).expect("ASCII"));
            }
            _ = presented(&headers, Some(&query));
        }
    }
}
