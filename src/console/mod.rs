//! What does somebody see who opens the gateway in a browser? One page, a WebSocket client to try
//! things with, and the headers that it travels with. Nothing else in the gateway knows of it.
//!
//! - `page.html`: the page, with its style and its script in it, so that a browser fetches nothing
//!   else.
//! - [`response`]: the page as an answer to a request.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Response};
use http_body_util::Full;
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;

/// Where the page is.
pub const PATH: &str = "/";

/// The methods that it is read with, as `Allow` lists them.
pub const METHODS: &str = "GET, HEAD";

const PAGE: &str = include_str!("page.html");

/// Names the page's own script and style by their hashes, so that no other ones run, whatever a
/// message holds. Connections may go anywhere: people try other gateways from here.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; script-src {script}; style-src {style}; img-src data:; \
         connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'",
        script = hash_source(inside("script")),
        style = hash_source(inside("style")),
    );
    HeaderValue::try_from(policy).expect("visible ASCII")
});

/// The page, as it is answered with to a request with one of [`METHODS`]. What does not belong to an
/// answer to HEAD is left out by whoever sends it.
pub fn response() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(PAGE));
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        // A gateway of another version may be here tomorrow.
        (CACHE_CONTROL, "no-cache"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(CONTENT_SECURITY_POLICY, POLICY.clone());
    response
}

/// What stands in the one element of the page that is called `name`.
fn inside(name: &str) -> &'static str {
    let (_, rest) = PAGE.split_once(&format!("<{name}>")).expect("the page has such an element");
    rest.split_once(&format!("</{name}>")).expect("the element ends").0
}

/// `text` as a Content Security Policy names it.
fn hash_source(text: &str) -> String {
    // The SHA-256 that TLS needs anyway.
    let suite = TLS13_AES_128_GCM_SHA256.tls13().expect("a suite of TLS 1.3");
    let hash = suite.common.hash_provider.hash(text.as_bytes());
    format!("'sha256-{}'", STANDARD.encode(hash.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_that_of_the_policys_specification() {
        // The example of Content Security Policy Level 3, section 8.3.
        let text = "alert('Hello, world.');";
        assert_eq!(hash_source(text), "'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='");
    }

    #[test]
    fn page_has_one_script_one_style_and_nothing_to_fetch() {
        for name in ["<script", "<style"] {
            assert_eq!(PAGE.matches(name).count(), 1, "{name}");
        }
        for attribute in [" src=", " style=", " onclick=", "@import", "url("] {
            assert!(!PAGE.contains(attribute), "{attribute}");
        }
        // The icon, so that no browser asks for one.
        assert_eq!(PAGE.matches(" href=").count(), 1);
        assert!(PAGE.contains(r#"<link rel="icon" href="data:image/svg+xml,"#));
    }

    #[test]
    fn page_never_makes_html_of_text() {
        for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!PAGE.contains(way), "{way}");
        }
    }
}
