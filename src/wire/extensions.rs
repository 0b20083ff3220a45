//! Which extension is in use? The negotiation of permessage-deflate (RFC 7692 sections 5 and 7.1), over
//! parsed HTTP headers.
//!
//! A client offers, in its order of preference; the first offer that can be met is accepted. An offer
//! that names another extension, or a parameter that is unknown, twice there or malformed, is declined
//! (section 7.1), and so is what does not follow the grammar of RFC 6455 section 9.1: compression is
//! nothing to refuse a client for.

use std::fmt;

use http::HeaderMap;
use http::header::SEC_WEBSOCKET_EXTENSIONS;

/// The extension's name (section 7).
const NAME: &str = "permessage-deflate";

/// Most offers that are looked at. A client has one or two. Elements of the list that are empty are no
/// offers (RFC 9110 section 5.6.1): what bounds those is that a request head is.
const MAX_OFFERS: usize = 16;

/// How far back a deflated message may refer: 2^8 to 2^15 bytes (section 7.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WindowBits(u8);

impl WindowBits {
    /// 256 bytes.
    pub const MIN: Self = Self(8);
    /// 32 KiB.
    pub const MAX: Self = Self(15);

    /// A window of 2^`bits` bytes, if there is such a one.
    pub const fn new(bits: u8) -> Option<Self> {
        match bits {
            8..=15 => Some(Self(bits)),
            _ => None,
        }
    }

    /// 8 to 15.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Its size in bytes.
    pub const fn bytes(self) -> usize {
        1 << self.0
    }

    /// The value of a parameter: decimal, without leading zeros (section 7.1.2).
    fn parse(value: &[u8]) -> Option<Self> {
        match value {
            [b'8'] => Some(Self(8)),
            [b'9'] => Some(Self(9)),
            [b'1', digit @ b'0'..=b'5'] => Some(Self(10 + (digit - b'0'))),
            _ => None,
        }
    }
}

/// What this side is ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Messages that stand alone, in both directions.
    NoTakeover,
    /// Messages that refer to earlier ones, as far as a window of this size reaches. At least 2^9 bytes.
    Takeover(WindowBits),
}

/// How messages are deflated on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// How far back our messages refer.
    pub server_window: WindowBits,
    /// Ours refer to earlier ones.
    pub server_takeover: bool,
    /// How far back the client's messages refer.
    pub client_window: WindowBits,
    /// The client's refer to earlier ones.
    pub client_takeover: bool,
    /// The client has offered to use a smaller window, so the answer may say which.
    names_client_window: bool,
    /// The client asks for a smaller window of ours, so the answer must say which.
    names_server_window: bool,
}

impl Agreement {
    /// Bytes that the two windows take on each side, once they are full.
    pub const fn window_bytes(&self) -> usize {
        let server = if self.server_takeover { self.server_window.bytes() } else { 0 };
        let client = if self.client_takeover { self.client_window.bytes() } else { 0 };
        server + client
    }
}

/// The value of `Sec-WebSocket-Extensions` that accepts the offer.
impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAME)?;
        if !self.server_takeover {
            f.write_str("; server_no_context_takeover")?;
        }
        if !self.client_takeover {
            f.write_str("; client_no_context_takeover")?;
        }
        if self.names_server_window {
            write!(f, "; server_max_window_bits={}", self.server_window.bits())?;
        }
        if self.names_client_window {
            write!(f, "; client_max_window_bits={}", self.client_window.bits())?;
        }
        Ok(())
    }
}

/// The first offer of permessage-deflate in `headers` that can be met, answered as far as `readiness`
/// goes. `None`: nothing was offered, or nothing that can be met, and messages travel as they are.
pub fn negotiate(headers: &HeaderMap, readiness: Readiness) -> Option<Agreement> {
    let values = headers.get_all(SEC_WEBSOCKET_EXTENSIONS).iter();
    let elements = values.flat_map(|value| split(value.as_bytes(), b','));
    let mut offers = elements.filter(|element| !element.is_empty()).take(MAX_OFFERS);
    offers.find_map(Offer::parse).map(|offer| offer.accept(readiness))
}

/// One offer that can be met.
#[derive(Clone, Copy, Debug, Default)]
struct Offer {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<WindowBits>,
    /// `Some(None)`: there without a value.
    client_max_window_bits: Option<Option<WindowBits>>,
}

impl Offer {
    /// Of bytes and not of text: those that are none of ASCII are in no offer that can be met, and say
    /// nothing of the others.
    fn parse(element: &[u8]) -> Option<Self> {
        let mut parts = split(element, b';');
        if !parts.next()?.eq_ignore_ascii_case(NAME.as_bytes()) {
            return None;
        }
        let mut offer = Self::default();
        for parameter in parts {
            let mut name_and_value = parameter.splitn(2, |byte| *byte == b'=');
            let name = name_and_value.next()?.trim_ascii_end().to_ascii_lowercase();
            let value = match name_and_value.next() {
                Some(value) => Some(unquote(value.trim_ascii_start())?),
                None => None,
            };
            let is_new = match (&name[..], value) {
                (b"server_no_context_takeover", None) => {
                    !std::mem::replace(&mut offer.server_no_context_takeover, true)
                }
                (b"client_no_context_takeover", None) => {
                    !std::mem::replace(&mut offer.client_no_context_takeover, true)
                }
                (b"server_max_window_bits", Some(value)) => {
                    offer.server_max_window_bits.replace(WindowBits::parse(&value)?).is_none()
                }
                (b"client_max_window_bits", value) => {
                    let bits = match value {
                        Some(value) => Some(WindowBits::parse(&value)?),
                        None => None,
                    };
                    offer.client_max_window_bits.replace(bits).is_none()
                }
                _ => return None,
            };
            if !is_new {
                return None;
            }
        }
        Some(offer)
    }

    fn accept(self, readiness: Readiness) -> Agreement {
        let asked = self.server_max_window_bits.unwrap_or(WindowBits::MAX);
        // Without a value the client leaves the choice to us; with one it will not go beyond.
        let offered = self.client_max_window_bits.map(|bits| bits.unwrap_or(WindowBits::MAX));
        match readiness {
            Readiness::NoTakeover => Agreement {
                server_window: asked,
                server_takeover: false,
                client_window: offered.unwrap_or(WindowBits::MAX),
                client_takeover: false,
                names_server_window: self.server_max_window_bits.is_some(),
                names_client_window: self.client_max_window_bits.flatten().is_some(),
            },
            Readiness::Takeover(ours) => Agreement {
                server_window: asked.min(ours),
                // A dictionary of 2^8 bytes is more than zlib can use of a window of that size.
                server_takeover: !self.server_no_context_takeover && asked > WindowBits::MIN,
                client_window: offered.map_or(WindowBits::MAX, |bits| bits.min(ours)),
                // A client that does not let us choose would have us remember 2^15 bytes.
                client_takeover: !self.client_no_context_takeover
                    && (offered.is_some() || ours == WindowBits::MAX),
                names_server_window: self.server_max_window_bits.is_some(),
                names_client_window: self.client_max_window_bits.is_some(),
            },
        }
    }
}

/// The parts of `text` between those `separator`s that are not inside quotes, without the blanks around
/// them.
fn split(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let parts = text.split(move |byte| {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            _ => return *byte == separator && !is_quoted,
        }
        false
    });
    parts.map(<[u8]>::trim_ascii)
}

/// The value of a parameter, which may stand in quotes: then it is what is left without them and the
/// backslashes of escapes (RFC 6455 section 9.1). `None` where the quotes are not around all of it.
fn unquote(value: &[u8]) -> Option<Vec<u8>> {
    let Some(quoted) = value.strip_prefix(b"\"") else {
        return Some(value.to_vec());
    };
    let mut unquoted = Vec::new();
    let mut bytes = quoted.iter();
    loop {
        match bytes.next()? {
            b'"' => return bytes.as_slice().is_empty().then_some(unquoted),
            b'\\' => unquoted.push(*bytes.next()?),
            byte => unquoted.push(*byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const WINDOW_OF_4_KIB: Readiness = Readiness::Takeover(WindowBits(12));

    /// What is answered to these headers.
    fn answer(offers: &[&str], readiness: Readiness) -> Option<String> {
        let mut headers = HeaderMap::new();
        for offer in offers {
            // Unlike `from_str` this takes what is not ASCII.
            let value = HeaderValue::from_bytes(offer.as_bytes()).unwrap();
            headers.append(SEC_WEBSOCKET_EXTENSIONS, value);
        }
        negotiate(&headers, readiness).map(|agreement| agreement.to_string())
    }

    fn shared(offer: &str) -> Option<String> {
        answer(&[offer], Readiness::NoTakeover)
    }

    fn dedicated(offer: &str) -> Option<String> {
        answer(&[offer], WINDOW_OF_4_KIB)
    }

    /// The answer of a server that keeps nothing, with these parameters more.
    fn no_takeover(more: &str) -> Option<String> {
        let always = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        Some(format!("{always}{more}"))
    }

    #[test]
    fn without_takeover_both_sides_are_told_to_begin_each_message_anew() {
        assert_eq!(shared("permessage-deflate"), no_takeover(""));
        assert_eq!(shared("permessage-deflate; client_max_window_bits"), no_takeover(""));
        assert_eq!(shared("permessage-deflate; server_no_context_takeover"), no_takeover(""));
        assert_eq!(shared("PerMessage-Deflate;Client_No_Context_Takeover"), no_takeover(""));
    }

    #[test]
    fn window_that_the_client_asks_of_us_is_kept_and_said() {
        for bits in 8..=15 {
            let offer = format!("permessage-deflate; server_max_window_bits={bits}");
            let said = format!("; server_max_window_bits={bits}");
            assert_eq!(shared(&offer), no_takeover(&said));
            let no_takeover = if bits == 8 { "; server_no_context_takeover" } else { "" };
            let bits = bits.min(12);
            let said = format!(
                "permessage-deflate{no_takeover}; client_no_context_takeover; \
                 server_max_window_bits={bits}"
            );
            assert_eq!(dedicated(&offer), Some(said));
        }
    }

    #[test]
    fn window_of_the_client_is_said_only_where_it_was_offered() {
        let takeover = |more: &str| Some(format!("permessage-deflate{more}"));
        for (offered, said) in [("", 12), ("=15", 12), ("=12", 12), ("=9", 9), ("=8", 8)] {
            let offer = format!("permessage-deflate; client_max_window_bits{offered}");
            assert_eq!(dedicated(&offer), takeover(&format!("; client_max_window_bits={said}")));
        }
        assert_eq!(
            shared("permessage-deflate; client_max_window_bits=10"),
            no_takeover("; client_max_window_bits=10")
        );
    }

    #[test]
    fn client_that_does_not_let_us_choose_its_window_has_takeover_only_where_ours_is_as_large() {
        let offer = ["permessage-deflate"];
        assert_eq!(
            answer(&offer, WINDOW_OF_4_KIB).unwrap(),
            "permessage-deflate; client_no_context_takeover"
        );
        let readiness = Readiness::Takeover(WindowBits::MAX);
        assert_eq!(answer(&offer, readiness).unwrap(), "permessage-deflate");
    }

    #[test]
    fn takeover_that_the_client_does_not_want_is_not_used() {
        assert_eq!(
            dedicated("permessage-deflate; server_no_context_takeover; client_max_window_bits"),
            Some(
                "permessage-deflate; server_no_context_takeover; client_max_window_bits=12"
                    .to_owned()
            )
        );
        assert_eq!(
            dedicated("permessage-deflate; client_no_context_takeover"),
            Some("permessage-deflate; client_no_context_takeover".to_owned())
        );
    }

    #[test]
    fn first_offer_that_can_be_met_is_taken_also_over_several_headers() {
        let preferred = "permessage-deflate; server_max_window_bits=10";
        assert_eq!(
            answer(
                &["x-webkit-deflate-frame, foo; bar=\"a, b;c\"", preferred],
                Readiness::NoTakeover
            ),
            no_takeover("; server_max_window_bits=10")
        );
        let offers = format!("permessage-deflate; unknown, {preferred}, permessage-deflate");
        assert_eq!(shared(&offers), no_takeover("; server_max_window_bits=10"));
    }

    #[test]
    fn malformed_or_unknown_parameter_declines_the_offer_and_not_the_next() {
        for parameter in [
            "unknown",
            "unknown=1",
            "",
            "=",
            "=5",
            "server_no_context_takeover=1",
            "server_no_context_takeover=",
            "client_no_context_takeover=true",
            "server_no_context_takeover; server_no_context_takeover",
            "client_no_context_takeover; client_no_context_takeover",
            "server_max_window_bits",
            "server_max_window_bits=",
            "server_max_window_bits=7",
            "server_max_window_bits=16",
            "server_max_window_bits=09",
            "server_max_window_bits=+9",
            "server_max_window_bits=9.0",
            "server_max_window_bits=\"9",
            "server_max_window_bits=\"9\\\"",
            "server_max_window_bits=\"9\\\\\"",
            "server_max_window_bits=\"9\"0",
            "server_max_window_bits=\\9",
            "server_max_window_bits=\"\"",
            "server_max_window_bits=\"\\09\"",
            "server_no_context_takeover=\"\"",
            "server_max_window_bits=9; server_max_window_bits=9",
            "client_max_window_bits=",
            "client_max_window_bits=7",
            "client_max_window_bits=016",
            "client_max_window_bits; client_max_window_bits",
        ] {
            let offer = format!("permessage-deflate; {parameter}");
            assert_eq!(shared(&offer), None, "{offer}");
            if !parameter.contains('"') {
                let offers = format!("{offer}, permessage-deflate");
                assert_eq!(shared(&offers), no_takeover(""), "{offers}");
            }
        }
        for other in ["", "permessage-deflat", "permessage-deflate2", "deflate-stream", ",,;;"] {
            assert_eq!(shared(other), None, "{other}");
        }
    }

    #[test]
    fn value_may_stand_in_quotes_and_blanks_around_it_mean_nothing() {
        assert_eq!(
            shared(" permessage-deflate ;\tserver_max_window_bits = \"10\" , x"),
            no_takeover("; server_max_window_bits=10")
        );
    }

    #[test]
    fn escape_in_quotes_means_what_is_escaped() {
        for value in ["\"1\\0\"", "\"\\1\\0\"", "\"\\10\""] {
            let offer = format!("permessage-deflate; server_max_window_bits={value}");
            assert_eq!(shared(&offer), no_takeover("; server_max_window_bits=10"), "{offer}");
        }
        // A quote or a separator that is escaped ends nothing.
        assert_eq!(
            shared(r#"x; y="\", permessage-deflate; \"", permessage-deflate"#),
            no_takeover("")
        );
    }

    #[test]
    fn byte_that_is_not_ascii_declines_its_own_offer_and_not_those_beside_it() {
        for other in [
            "\u{e4}",
            "permessage-deflate; \u{e4}",
            "x; y=\"\u{e4}, \"",
            "permessage-deflate\u{a0}",
        ] {
            assert_eq!(shared(other), None, "{other}");
            for offers in
                [format!("{other}, permessage-deflate"), format!("permessage-deflate, {other}")]
            {
                assert_eq!(shared(&offers), no_takeover(""), "{offers}");
            }
        }
    }

    #[test]
    fn empty_elements_are_no_offers_however_many_they_are() {
        let commas = ", ,\t,".repeat(1_000);
        assert_eq!(shared(&format!("{commas}permessage-deflate{commas}")), no_takeover(""));
        assert_eq!(answer(&["", ",", "", NAME], Readiness::NoTakeover), no_takeover(""));
        assert_eq!(shared(&commas), None);
    }

    #[test]
    fn endless_offers_are_not_read_to_their_end() {
        let mut offers = vec!["x"; MAX_OFFERS];
        offers.push(NAME);
        assert_eq!(shared(&offers.join(",")), None);
        assert_eq!(shared(&offers[1..].join(",")), no_takeover(""));
    }

    proptest! {
        #[test]
        fn whatever_is_offered_the_answer_is_one_that_the_offer_allows(
            offer in "(permessage-deflate|x)?( ?[;,=\"\\\\] ?(permessage-deflate|server_no_context_takeover|client_no_context_takeover|server_max_window_bits|client_max_window_bits|[0-9]{1,2}|\"))*",
        ) {
            for readiness in [Readiness::NoTakeover, WINDOW_OF_4_KIB] {
                let Some(answer) = answer(&[&offer], readiness) else { continue };
                prop_assert!(offer.to_ascii_lowercase().contains(NAME));
                for parameter in ["server_max_window_bits", "client_max_window_bits"] {
                    prop_assert!(!answer.contains(parameter) || offer.contains(parameter));
                }
            }
        }
    }
}
