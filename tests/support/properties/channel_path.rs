//! The path and query of a WebSocket URL.

use std::collections::HashSet;

use wsgate::protocol::target::{Endpoint, Target};
use wsgate::pubsub::ChannelName;

/// Checks [`Target::parse`] with one input: a path and, behind the first `?`, a query.
///
/// It is refused with a short text, or understood: the same when every byte of its channels is
/// percent-encoded, and the same beside parameters that nobody knows.
pub fn channel_path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (path, query) = match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text, None),
    };
    let parsed = Target::parse(path, query);
    let more = format!("{}&unknown=%zz&&=", query.unwrap_or_default());
    assert_eq!(Target::parse(path, Some(&more)), parsed, "with more parameters");
    match parsed {
        // The text goes back to whoever sent the request, however long that was.
        Err(error) => assert!(error.to_string().len() < 256, "{error}"),
        Ok(target) => {
            assert_channels(&target);
            let (path, query) = spell(&target);
            assert_eq!(Target::parse(&path, Some(&query)), Ok(target), "{path}?{query}");
        }
    }
}

/// Every channel is there once and has a name that may be one, and as many are counted as there are.
fn assert_channels(target: &Target) {
    let own = match &target.endpoint {
        Endpoint::Echo => None,
        Endpoint::Channel { name, .. } => Some(name),
    };
    let channels: Vec<&ChannelName> = own.into_iter().chain(&target.also).collect();
    assert!(own.is_some() || channels.is_empty(), "/echo has channels");
    assert_eq!(channels.iter().collect::<HashSet<_>>().len(), channels.len(), "one is there twice");
    for name in &channels {
        assert!(
            (1..=255).contains(&name.as_str().len()) && !name.as_str().contains(char::is_control)
        );
    }
    assert_eq!(target.channels(), channels.len());
    assert_eq!(target.check_channels(channels.len()), Ok(()));
    assert!(channels.is_empty() || target.check_channels(channels.len() - 1).is_err());
}

/// A path and query that mean `target`, with every byte of a channel name percent-encoded.
fn spell(target: &Target) -> (String, String) {
    let (hello, control) = (target.hello, target.control);
    match &target.endpoint {
        Endpoint::Echo => ("/echo".to_owned(), format!("hello={hello}&control={control}")),
        Endpoint::Channel { name, own } => {
            let also: String =
                target.also.iter().map(|name| format!("&also={}", encoded(name))).collect();
            (
                format!("/channels/{}", encoded(name)),
                format!("hello={hello}&control={control}&own={own}{also}"),
            )
        }
    }
}

fn encoded(name: &ChannelName) -> String {
    name.as_str().bytes().map(|byte| format!("%{byte:02x}")).collect()
}
