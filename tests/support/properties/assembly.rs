//! Frames that are sound each for itself, in any order: which messages do they make?

use wsgate::wire::frame::MessageKind;
use wsgate::wire::header::{Opcode, ProtocolError};

use wsgate::wire::decoder::Rules;
use wsgate::wire::deflate::max_deflated_bytes;

use super::frames::{Arrival, Meaning, Said};
use super::input::Input;

const OPCODES: [Opcode; 8] = [
    Opcode::Text,
    Opcode::Binary,
    Opcode::Continuation,
    Opcode::Continuation,
    Opcode::Continuation,
    Opcode::Ping,
    Opcode::Pong,
    Opcode::Close,
];

/// One masked frame.
struct Frame {
    fin: bool,
    /// RSV1.
    deflated: bool,
    opcode: Opcode,
    payload: Vec<u8>,
}

/// Checks the assembly of messages with one input: `[limit, n, n lengths of pieces, frames]`, where a
/// frame is `[opcode, RSV1 and FIN, content, length]` and in some cases its payload.
///
/// What the frames mean is what a model says that gathers whole frames, in whichever pieces their
/// bytes arrive.
pub fn assembly(data: &[u8]) {
    let mut input = Input::new(data);
    let arrival = Arrival::take(&mut input);
    let mut sent = Vec::new();
    let mut model = Model::default();
    let mut violation = None;
    while !input.is_empty() {
        let frame = Frame::take(&mut input);
        frame.append_to(&mut sent);
        if violation.is_none() && !model.is_closed() {
            violation = model.handle_frame(frame, arrival.rules).err();
        }
    }
    assert_eq!(arrival.decode(&sent), Meaning { said: model.said, violation });
}

impl Frame {
    fn take(input: &mut Input) -> Self {
        let first = input.byte();
        let opcode = OPCODES[usize::from(first) % OPCODES.len()];
        let content = input.byte();
        let payload_bytes = match input.length() {
            length if opcode.is_control() => length % 126,
            length => length,
        };
        let payload = match content {
            // Text that is cut where a character may be half, so that the next fragment has its
            // other half or not.
            0..128 => {
                let text = "aé€𝄞z".bytes().cycle();
                text.skip(usize::from(content) % 11).take(payload_bytes).collect()
            }
            128..160 => vec![content; payload_bytes],
            _ => input.bytes(payload_bytes).to_vec(),
        };
        let payload = match opcode {
            Opcode::Close if content < 160 && payload_bytes >= 2 => b"\x03\xe8bye".to_vec(),
            _ => payload,
        };
        let fin = opcode.is_control() || first & 0x80 != 0;
        Self { fin, deflated: first & 0x40 != 0, opcode, payload }
    }

    fn append_to(&self, sent: &mut Vec<u8>) {
        sent.push(u8::from(self.fin) << 7 | u8::from(self.deflated) << 6 | self.opcode.bits());
        match self.payload.len() {
            length @ 0..126 => sent.push(0x80 | length as u8),
            length @ 126..0x1_0000 => {
                sent.push(0xfe);
                sent.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                sent.push(0xff);
                sent.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        let masking_key = [0x12, 0x34, 0x56, self.payload.len() as u8];
        sent.extend_from_slice(&masking_key);
        let masks = masking_key.iter().cycle();
        sent.extend(self.payload.iter().zip(masks).map(|(byte, mask)| byte ^ mask));
    }
}

/// RFC 6455 section 5.4 and RFC 7692 section 6, over whole frames.
#[derive(Default)]
struct Model {
    said: Vec<Said>,
    open: Option<Open>,
}

/// The message of which fragments have come.
struct Open {
    kind: MessageKind,
    deflated: bool,
    gathered: Vec<u8>,
}

impl Model {
    fn is_closed(&self) -> bool {
        matches!(self.said.last(), Some(Said::Close(_)))
    }

    fn handle_frame(&mut self, frame: Frame, rules: Rules) -> Result<(), ProtocolError> {
        let Frame { fin, deflated, opcode, payload } = frame;
        let is_first = matches!(opcode, Opcode::Text | Opcode::Binary);
        if deflated && !(is_first && rules.deflate) {
            return Err(ProtocolError::ReservedBits(0b100));
        }
        let mut open = match (opcode, self.open.take()) {
            (Opcode::Ping | Opcode::Pong | Opcode::Close, open) => {
                self.open = open;
                self.said.push(control(opcode, payload)?);
                return Ok(());
            }
            (Opcode::Continuation, Some(open)) => open,
            (Opcode::Continuation, None) => return Err(ProtocolError::UnexpectedContinuation),
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                return Err(ProtocolError::InterleavedMessage);
            }
            (Opcode::Text, None) => {
                Open { kind: MessageKind::Text, deflated, gathered: Vec::new() }
            }
            (Opcode::Binary, None) => {
                Open { kind: MessageKind::Binary, deflated, gathered: Vec::new() }
            }
        };
        open.gathered.extend(payload);
        let most = match open.deflated {
            true => max_deflated_bytes(rules.max_message_bytes),
            false => rules.max_message_bytes,
        };
        if open.gathered.len() > most {
            return Err(ProtocolError::MessageTooBig);
        }
        if open.kind == MessageKind::Text
            && !open.deflated
            && let Err(error) = std::str::from_utf8(&open.gathered)
            && (fin || error.error_len().is_some())
        {
            return Err(ProtocolError::TextNotUtf8);
        }
        if !fin {
            self.open = Some(open);
        } else if open.deflated {
            self.said.push(Said::Deflated(open.kind, open.gathered));
        } else {
            self.said.push(Said::Message(open.kind, open.gathered));
        }
        Ok(())
    }
}

fn control(opcode: Opcode, payload: Vec<u8>) -> Result<Said, ProtocolError> {
    match (opcode, &payload[..]) {
        (Opcode::Ping, _) => Ok(Said::Ping(payload)),
        (Opcode::Pong, _) => Ok(Said::Pong),
        (_, []) => Ok(Said::Close(None)),
        (_, [_]) => Err(ProtocolError::ClosePayloadOfOneByte),
        (_, [high, low, reason @ ..]) => match u16::from_be_bytes([*high, *low]) {
            code @ (0..1000 | 1004..=1006 | 1015..3000 | 5000..) => {
                Err(ProtocolError::CloseCode(code))
            }
            code if std::str::from_utf8(reason).is_ok() => Ok(Said::Close(Some(code))),
            _ => Err(ProtocolError::CloseReasonNotUtf8),
        },
    }
}
