//! Offers of extensions.

use http::header::SEC_WEBSOCKET_EXTENSIONS;
use http::{HeaderMap, HeaderValue};
use wsgate::wire::extensions::{Agreement, Readiness, WindowBits, negotiate};

use super::input::Input;

const NAME: &str = "permessage-deflate";

/// Of more offers than these the rest is not looked at.
const MAX_OFFERS: usize = 16;

/// Checks [`negotiate`] with one input: `[readiness, values of Sec-WebSocket-Extensions]`, the values a
/// line each.
///
/// An answer is one that RFC 7692 section 7.1 allows for an offer that was made, and says what the
/// agreement holds. As long as it is clear where offers end, the offer is the first that can be met, and
/// there is no answer only where none can.
pub fn extensions(data: &[u8]) {
    let mut input = Input::new(data);
    let readiness = match input.byte() % 8 {
        0 => Readiness::NoTakeover,
        bits => Readiness::Takeover(WindowBits::new(8 + bits).expect("9 to 15")),
    };
    let lines = input.rest().split(|byte| *byte == b'\n').take(MAX_OFFERS);
    let values: Vec<HeaderValue> =
        lines.filter_map(|line| HeaderValue::from_bytes(line.trim_ascii()).ok()).collect();
    let mut headers = HeaderMap::new();
    for value in &values {
        headers.append(SEC_WEBSOCKET_EXTENSIONS, value.clone());
    }
    let agreement = negotiate(&headers, readiness);
    let answer = agreement.map(|agreement| agreement.to_string());
    let answered = answer.as_deref().map(|answer| match parse(answer.as_bytes()).as_deref() {
        Some([Some(extension)]) => Parameters::of(extension).expect("known parameters, each once"),
        other => panic!("one extension: {other:?}"),
    });
    if let (Some(agreement), Some(answered)) = (agreement, &answered) {
        assert_says(answered, &agreement, readiness);
    }
    let offers: Option<Vec<_>> = values.iter().map(|value| parse(value.as_bytes())).collect();
    let Some(offers) = offers else {
        let all = values.iter().flat_map(HeaderValue::as_bytes).copied().collect::<Vec<u8>>();
        let all = String::from_utf8_lossy(&all).to_ascii_lowercase();
        assert!(answer.is_none() || all.contains(NAME));
        return;
    };
    // Whatever is asked for in one that is well-formed can be met.
    let offers = offers.into_iter().flatten().take(MAX_OFFERS).flatten();
    let offer = offers.into_iter().find_map(|offer| Parameters::of(&offer));
    match (offer, answered, agreement) {
        (None, None, None) => {}
        (Some(offer), Some(answered), Some(agreement)) => {
            assert_allowed(&offer, &answered, &agreement);
        }
        (offer, ..) => panic!("answered {answer:?} to {offer:?}"),
    }
}

/// What the answer says is what the agreement holds, and what this side is ready for.
fn assert_says(answered: &Parameters, agreement: &Agreement, readiness: Readiness) {
    assert_eq!(answered.server_no_context_takeover, !agreement.server_takeover);
    assert_eq!(answered.client_no_context_takeover, !agreement.client_takeover);
    let ours = u64::from(agreement.server_window.bits());
    let theirs = u64::from(agreement.client_window.bits());
    assert!(answered.server_max_window_bits.is_none_or(|bits| bits == Some(ours)));
    assert!(answered.client_max_window_bits.is_none_or(|bits| bits == Some(theirs)));
    let mut window_bytes = 0;
    if agreement.server_takeover {
        window_bytes += 1 << ours;
    }
    if agreement.client_takeover {
        window_bytes += 1 << theirs;
    }
    assert_eq!(agreement.window_bytes(), window_bytes);
    match readiness {
        Readiness::NoTakeover => assert_eq!(window_bytes, 0),
        Readiness::Takeover(most) => assert!(agreement.server_window <= most),
    }
}

/// RFC 7692 sections 7.1.1 and 7.1.2.
fn assert_allowed(offer: &Parameters, answered: &Parameters, agreement: &Agreement) {
    if offer.server_no_context_takeover {
        assert!(answered.server_no_context_takeover, "asked for, and not answered");
    }
    if let Some(asked) = offer.server_max_window_bits {
        let said = answered.server_max_window_bits.expect("asked for");
        assert!(said <= asked, "a window of 2^{said:?} for {asked:?}");
    }
    // What the client may use if nothing is said.
    let allowed = offer.client_max_window_bits.flatten().unwrap_or(15);
    match answered.client_max_window_bits {
        Some(said) => {
            assert!(offer.client_max_window_bits.is_some(), "answered, and not offered");
            assert!(said <= Some(allowed), "a window of 2^{said:?} for {allowed}");
        }
        None => assert!(u64::from(agreement.client_window.bits()) >= allowed),
    }
}

/// One extension of a list: its name, and parameters with or without a value.
#[derive(Debug)]
struct Extension {
    name: String,
    parameters: Vec<(String, Option<String>)>,
}

/// The parameters of permessage-deflate.
#[derive(Debug, Default)]
struct Parameters {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<Option<u64>>,
    client_max_window_bits: Option<Option<u64>>,
}

impl Parameters {
    /// `None` where it is another extension, or not all of them are known, there once and well-formed.
    fn of(extension: &Extension) -> Option<Self> {
        if !extension.name.eq_ignore_ascii_case(NAME) {
            return None;
        }
        let mut seen = Vec::new();
        let mut parameters = Self::default();
        for (name, value) in &extension.parameters {
            let name = name.to_ascii_lowercase();
            if seen.contains(&name) {
                return None;
            }
            let bits = value.as_deref().map(|value| {
                let is_decimal = value.bytes().all(|byte| byte.is_ascii_digit());
                let bits = value.parse().ok().filter(|bits| (8..=15).contains(bits));
                bits.filter(|_| is_decimal && !value.starts_with('0'))
            });
            match (&name[..], bits) {
                ("server_no_context_takeover", None) => {
                    parameters.server_no_context_takeover = true;
                }
                ("client_no_context_takeover", None) => {
                    parameters.client_no_context_takeover = true;
                }
                ("server_max_window_bits", Some(Some(bits))) => {
                    parameters.server_max_window_bits = Some(Some(bits));
                }
                ("client_max_window_bits", None) => {
                    parameters.client_max_window_bits = Some(None);
                }
                ("client_max_window_bits", Some(Some(bits))) => {
                    parameters.client_max_window_bits = Some(Some(bits));
                }
                _ => return None,
            }
            seen.push(name);
        }
        Some(parameters)
    }
}

/// The elements of a list after the grammar of RFC 6455 section 9.1, strictly: `None` for one that does
/// not follow it, and nothing for one that is empty (RFC 9110 section 5.6.1). `None` for a list of which
/// nobody can say where such an element ends, since there are quotes in it.
fn parse(text: &[u8]) -> Option<Vec<Option<Extension>>> {
    let mut rest = text;
    let mut elements = Vec::new();
    loop {
        skip_blanks(&mut rest);
        if !rest.is_empty() && !rest.starts_with(b",") {
            let start = rest;
            let extension = take_extension(&mut rest);
            let is_whole = rest.is_empty() || rest.starts_with(b",");
            if let Some(extension) = extension.filter(|_| is_whole) {
                elements.push(Some(extension));
            } else {
                let end = start.iter().position(|byte| *byte == b',').unwrap_or(start.len());
                if start[..end].contains(&b'"') {
                    return None;
                }
                rest = &start[end..];
                elements.push(None);
            }
        }
        if !skip(&mut rest, b',') {
            return Some(elements);
        }
    }
}

/// An extension from the front, and the blanks behind it.
fn take_extension(rest: &mut &[u8]) -> Option<Extension> {
    let mut extension = Extension { name: take_token(rest)?, parameters: Vec::new() };
    skip_blanks(rest);
    while skip(rest, b';') {
        skip_blanks(rest);
        let name = take_token(rest)?;
        skip_blanks(rest);
        let value = if skip(rest, b'=') {
            skip_blanks(rest);
            Some(if skip(rest, b'"') { take_quoted(rest)? } else { take_token(rest)? })
        } else {
            None
        };
        extension.parameters.push((name, value));
        skip_blanks(rest);
    }
    Some(extension)
}

fn skip(rest: &mut &[u8], separator: u8) -> bool {
    let behind = rest.strip_prefix(&[separator]);
    *rest = behind.unwrap_or(rest);
    behind.is_some()
}

fn skip_blanks(rest: &mut &[u8]) {
    while skip(rest, b' ') || skip(rest, b'\t') {}
}

/// A token (RFC 9110 section 5.6.2) from the front.
fn take_token(rest: &mut &[u8]) -> Option<String> {
    let is_in_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let end = rest.iter().position(|byte| !is_in_token(byte)).unwrap_or(rest.len());
    let (token, behind) = rest.split_at(end);
    *rest = behind;
    (!token.is_empty()).then(|| String::from_utf8_lossy(token).into_owned())
}

/// What a quoted string (RFC 9110 section 5.6.4) means, of which the first quote is taken already. It
/// need not be a token here: no parameter that is known has a value that is none.
fn take_quoted(rest: &mut &[u8]) -> Option<String> {
    let mut meant = Vec::new();
    while !skip(rest, b'"') {
        skip(rest, b'\\');
        let (byte, behind) = rest.split_first()?;
        meant.push(*byte);
        *rest = behind;
    }
    Some(String::from_utf8_lossy(&meant).into_owned())
}
