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
/// agreement holds. Where the headers follow the grammar, the offer is the first that can be met, and
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
    let answered = answer.as_deref().map(|answer| parse(answer).expect("a list of one extension"));
    if let (Some(agreement), Some(answered)) = (agreement, &answered) {
        let [answered] = &answered[..] else {
            panic!("one answer: {answered:?}");
        };
        let answered = Parameters::of(answered).expect("known parameters, each once");
        assert_says(&answered, &agreement, readiness);
    }
    let texts: Vec<&str> = values.iter().filter_map(|value| value.to_str().ok()).collect();
    let commas: usize = texts.iter().map(|text| text.matches(',').count()).sum();
    let offers: Option<Vec<_>> = texts.iter().map(|text| parse(text)).collect();
    let Some(offers) = offers.filter(|_| commas + texts.len() <= MAX_OFFERS) else {
        assert!(answer.is_none() || texts.concat().to_ascii_lowercase().contains(NAME));
        return;
    };
    // Whatever is asked for in one that is well-formed can be met.
    let offer = offers.into_iter().flatten().find_map(|offer| Parameters::of(&offer));
    match (offer, answered, agreement) {
        (None, None, None) => {}
        (Some(offer), Some(answered), Some(agreement)) => {
            let answered = Parameters::of(&answered[0]).expect("it was one above");
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

/// The grammar of RFC 6455 section 9.1, strictly. `None` for what does not follow it, or follows it
/// with an escape.
fn parse(text: &str) -> Option<Vec<Extension>> {
    let mut rest = text;
    let mut extensions = Vec::new();
    loop {
        skip_blanks(&mut rest);
        // RFC 7230 section 7 allows for empty elements.
        if !rest.is_empty() && !rest.starts_with(',') {
            let mut extension = Extension { name: take_token(&mut rest)?, parameters: Vec::new() };
            skip_blanks(&mut rest);
            while skip(&mut rest, ';') {
                skip_blanks(&mut rest);
                let name = take_token(&mut rest)?;
                skip_blanks(&mut rest);
                let value = if skip(&mut rest, '=') {
                    skip_blanks(&mut rest);
                    let is_quoted = skip(&mut rest, '"');
                    let value = take_token(&mut rest)?;
                    if is_quoted && !skip(&mut rest, '"') {
                        return None;
                    }
                    Some(value)
                } else {
                    None
                };
                extension.parameters.push((name, value));
                skip_blanks(&mut rest);
            }
            extensions.push(extension);
        }
        if rest.is_empty() {
            return Some(extensions);
        }
        if !skip(&mut rest, ',') {
            return None;
        }
    }
}

fn skip(rest: &mut &str, separator: char) -> bool {
    let behind = rest.strip_prefix(separator);
    *rest = behind.unwrap_or(rest);
    behind.is_some()
}

fn skip_blanks(rest: &mut &str) {
    *rest = rest.trim_start_matches([' ', '\t']);
}

/// A token (RFC 7230 section 3.2.6) from the front.
fn take_token(rest: &mut &str) -> Option<String> {
    let is_letter =
        |letter: char| letter.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(letter);
    let (token, behind) =
        rest.split_at(rest.find(|letter| !is_letter(letter)).unwrap_or(rest.len()));
    *rest = behind;
    (!token.is_empty()).then(|| token.to_owned())
}
