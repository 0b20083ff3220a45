//! What a typed line asks for.

use std::path::PathBuf;

use thiserror::Error;

use crate::wire::close::{CloseCode, MAX_REASON_BYTES};
use crate::wire::header::MAX_CONTROL_PAYLOAD_BYTES;

/// What `/help` shows.
pub(super) const HELP: &str = "\
what is typed is sent as a text message; these lines do something else:
  /ping [TEXT]           send a Ping
  /binary HEX            send a binary message: /binary 48 65 6c 6c 6f
  /binary @FILE          send a file as a binary message
  /close [CODE [TEXT]]   close the connection, with 1000 or this code
  /help                  this
  //TEXT                 send /TEXT
Ctrl-D closes with 1000; so does Ctrl-C, which ends at once the second time.
";

/// One line, understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// An empty line.
    Nothing,
    Text(String),
    Binary(Vec<u8>),
    /// The contents of this file, as a binary message.
    BinaryFile(PathBuf),
    /// At most 125 bytes.
    Ping(String),
    /// The reason has at most 123 bytes.
    Close(CloseCode, String),
    Help,
}

/// Why a line that begins with a slash cannot be carried out.
#[derive(Debug, PartialEq, Eq, Error)]
pub(super) enum CommandError {
    #[error("there is no /{0}; /help lists what there is, and //{0} sends it as a text")]
    Unknown(String),
    #[error("not hexadecimal. Write two digits for each byte: /binary 48 65 6c 6c 6f")]
    Hex,
    #[error("{0} is no close code. Write 1000, or one from 3000 to 4999")]
    CloseCode(String),
    #[error("a reason has at most {MAX_REASON_BYTES} bytes, this one has {0}")]
    LongReason(usize),
    #[error("a Ping carries at most {MAX_CONTROL_PAYLOAD_BYTES} bytes, this one has {0}")]
    LongPing(usize),
}

/// Understands `line`, which has no line end.
pub(super) fn parse(line: &str) -> Result<Command, CommandError> {
    let Some(command) = line.strip_prefix('/') else {
        let is_empty = line.is_empty();
        return Ok(if is_empty { Command::Nothing } else { Command::Text(line.to_owned()) });
    };
    if command.starts_with('/') {
        return Ok(Command::Text(command.to_owned()));
    }
    let (name, rest) = command.split_once(' ').unwrap_or((command, ""));
    match name {
        "ping" if rest.len() as u64 > MAX_CONTROL_PAYLOAD_BYTES => {
            Err(CommandError::LongPing(rest.len()))
        }
        "ping" => Ok(Command::Ping(rest.to_owned())),
        "binary" => match rest.trim().strip_prefix('@') {
            Some(file) => Ok(Command::BinaryFile(file.into())),
            None => bytes(rest).map(Command::Binary).ok_or(CommandError::Hex),
        },
        "close" => close(rest.trim()),
        "help" => Ok(Command::Help),
        other => Err(CommandError::Unknown(other.to_owned())),
    }
}

/// `[CODE [TEXT]]`
fn close(rest: &str) -> Result<Command, CommandError> {
    let (code, reason) = rest.split_once(' ').unwrap_or((rest, ""));
    let reason = reason.trim_start();
    if reason.len() > MAX_REASON_BYTES {
        return Err(CommandError::LongReason(reason.len()));
    }
    let code = match code {
        "" => CloseCode::NORMAL,
        code => code
            .parse()
            .ok()
            .and_then(CloseCode::from_wire)
            .ok_or_else(|| CommandError::CloseCode(code.to_owned()))?,
    };
    Ok(Command::Close(code, reason.to_owned()))
}

/// The bytes that `text` writes in hexadecimal, with or without blanks between them.
fn bytes(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .filter(|letter| !letter.is_whitespace())
        .map(|letter| letter.to_digit(16).map(|digit| digit as u8))
        .collect();
    let (pairs, rest) = digits.as_ref()?.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_is_sent_as_it_is_unless_a_single_slash_begins_it() {
        assert_eq!(parse(" hello /close "), Ok(Command::Text(" hello /close ".to_owned())));
        assert_eq!(parse("//close"), Ok(Command::Text("/close".to_owned())));
        assert_eq!(parse(""), Ok(Command::Nothing));
        assert_eq!(parse("/help"), Ok(Command::Help));
        assert_eq!(parse("/me waves"), Err(CommandError::Unknown("me".to_owned())));
    }

    #[test]
    fn close_takes_a_code_and_a_reason() {
        let close = |code, reason: &str| {
            Ok(Command::Close(CloseCode::from_wire(code).expect("it may travel"), reason.into()))
        };
        assert_eq!(parse("/close"), close(1000, ""));
        assert_eq!(parse("/close 4000"), close(4000, ""));
        assert_eq!(parse("/close 3001 see you  later"), close(3001, "see you  later"));
        for code in ["1005", "1006", "99999", "bye"] {
            let refused = Err(CommandError::CloseCode(code.to_owned()));
            assert_eq!(parse(&format!("/close {code}")), refused);
        }
        let long = "x".repeat(124);
        assert_eq!(parse(&format!("/close 1000 {long}")), Err(CommandError::LongReason(124)));
    }

    #[test]
    fn ping_carries_what_follows() {
        assert_eq!(parse("/ping"), Ok(Command::Ping(String::new())));
        assert_eq!(parse("/ping are you there"), Ok(Command::Ping("are you there".to_owned())));
        let long = format!("/ping {}", "x".repeat(126));
        assert_eq!(parse(&long), Err(CommandError::LongPing(126)));
    }

    #[test]
    fn binary_is_hexadecimal_or_a_file() {
        assert_eq!(parse("/binary 00fF 7e"), Ok(Command::Binary(vec![0x00, 0xff, 0x7e])));
        assert_eq!(parse("/binary"), Ok(Command::Binary(Vec::new())));
        assert_eq!(parse("/binary @a b.bin"), Ok(Command::BinaryFile("a b.bin".into())));
        for wrong in ["/binary f", "/binary 0x00", "/binary é0"] {
            assert_eq!(parse(wrong), Err(CommandError::Hex), "{wrong}");
        }
    }
}
