//! NATS's protocol as a client speaks it: lines that end in CRLF, and payloads of announced length.
//! Frames carry it as a stream: their borders mean nothing.

use thiserror::Error;

/// What a server says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// `MSG`: a message for our subscription.
    Message(&'a [u8]),
    /// `PING`, to be answered.
    Ping,
    /// `PONG`: all that we asked before our `PING` is done.
    Pong,
    /// `INFO` and `+OK`.
    Other,
}

/// The server said something else.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum NatsError {
    /// `-ERR`.
    #[error("{0}")]
    Refused(String),
    /// Not a line of the protocol.
    #[error("not a line of NATS's protocol")]
    Line,
}

/// What a subject is called: a path without its slashes.
pub(crate) fn subject(path: &str) -> String {
    path.trim_matches('/').replace('/', ".")
}

/// What opens a session and subscribes; the server's `PONG` says that it is done.
pub(crate) fn open(subject: &str) -> String {
    let options =
        r#"{"verbose":false,"pedantic":false,"echo":true,"lang":"loadtest","version":"1"}"#;
    format!("CONNECT {options}\r\nSUB {subject} 1\r\nPING\r\n")
}

/// Appends a publication.
pub(crate) fn publish(subject: &str, payload: &[u8], output: &mut Vec<u8>) {
    output.extend_from_slice(format!("PUB {subject} {}\r\n", payload.len()).as_bytes());
    output.extend_from_slice(payload);
    output.extend_from_slice(b"\r\n");
}

/// Reads what is at the front of `input`, and how many bytes of it that was; `None` while a part of it
/// is missing.
pub(crate) fn decode(input: &[u8]) -> Result<Option<(Line<'_>, usize)>, NatsError> {
    let Some(end) = input.windows(2).position(|pair| pair == b"\r\n") else {
        return Ok(None);
    };
    let (line, after) = (&input[..end], end + 2);
    match line {
        b"PING" => Ok(Some((Line::Ping, after))),
        b"PONG" => Ok(Some((Line::Pong, after))),
        _ if line.starts_with(b"MSG ") => {
            let size = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
            let size = std::str::from_utf8(size).ok().and_then(|size| size.parse::<usize>().ok());
            let size = size.ok_or(NatsError::Line)?;
            let payload = input.get(after..after.saturating_add(size).saturating_add(2));
            Ok(payload.map(|payload| (Line::Message(&payload[..size]), after + size + 2)))
        }
        _ if line.starts_with(b"INFO") || line == b"+OK" => Ok(Some((Line::Other, after))),
        _ if line.starts_with(b"-ERR") => {
            Err(NatsError::Refused(String::from_utf8_lossy(line).into_owned()))
        }
        _ => Err(NatsError::Line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_once_they_are_whole_and_not_before() {
        let stream = b"INFO {}\r\nMSG a.b 1 5\r\nhel\r\n\r\nPING\r\nPONG\r\n+OK\r\n";
        let expected =
            [Line::Other, Line::Message(b"hel\r\n"), Line::Ping, Line::Pong, Line::Other];
        let mut rest = &stream[..];
        for expected in expected {
            let (line, bytes) = decode(rest).unwrap().unwrap();
            for split in 0..bytes {
                assert_eq!(decode(&rest[..split]), Ok(None));
            }
            assert_eq!(line, expected);
            rest = &rest[bytes..];
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn refusals_and_garbage_are_told_apart() {
        assert!(matches!(decode(b"-ERR 'no'\r\n"), Err(NatsError::Refused(_))));
        assert_eq!(decode(b"HTTP/1.1 200 OK\r\n"), Err(NatsError::Line));
        assert_eq!(decode(b"MSG a 1 x\r\n"), Err(NatsError::Line));
    }
}
